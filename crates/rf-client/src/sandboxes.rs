//! Sandboxes: make, see, extend, destroy.

use rf_types::SandboxId;
use serde_json::json;

use crate::{
    client::Client,
    error::ClientError,
    types::{LimitsRequest, Sandbox, SandboxRequest},
};

impl Client {
    /// Makes a sandbox; it answers as soon as every limit of it holds.
    ///
    /// # Errors
    /// `limit_reached`, `layer_unavailable`, `template_unavailable`; see [`ClientError`].
    pub async fn sandbox_create(&self, request: &SandboxRequest) -> Result<Sandbox, ClientError> {
        self.post("/v1/sandboxes", request).await
    }

    /// The user's sandboxes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, ClientError> {
        self.list("/v1/sandboxes", &[]).await
    }

    /// One sandbox.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn sandbox(&self, id: SandboxId) -> Result<Sandbox, ClientError> {
        self.get(&format!("/v1/sandboxes/{id}")).await
    }

    /// Sets how long from now a sandbox lives, or its limits, or both.
    ///
    /// # Errors
    /// `not_found`, `limit_reached`; see [`ClientError`].
    pub async fn sandbox_update(
        &self,
        id: SandboxId,
        lease_ms: Option<u64>,
        limits: Option<LimitsRequest>,
    ) -> Result<Sandbox, ClientError> {
        self.patch(&format!("/v1/sandboxes/{id}"), &json!({ "lease_ms": lease_ms, "limits": limits })).await
    }

    /// Destroys a sandbox; answers when nothing of it is left.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn sandbox_destroy(&self, id: SandboxId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/sandboxes/{id}")).await
    }
}
