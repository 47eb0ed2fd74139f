//! Sandboxes: make, see, extend, destroy.

use rf_types::{Limits, SandboxId, units::UnixMs};
use serde_json::json;

use crate::{
    client::Client,
    error::ClientError,
    types::{Items, Sandbox, SandboxRequest},
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
        self.get::<Items<Sandbox>>("/v1/sandboxes").await.map(Items::into_vec)
    }

    /// One sandbox.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn sandbox(&self, id: SandboxId) -> Result<Sandbox, ClientError> {
        self.get(&format!("/v1/sandboxes/{id}")).await
    }

    /// Sets when a sandbox is destroyed, or its limits, or both.
    ///
    /// # Errors
    /// `not_found`, `limit_reached`; see [`ClientError`].
    pub async fn sandbox_update(
        &self,
        id: SandboxId,
        lease_until: Option<UnixMs>,
        limits: Option<Limits>,
    ) -> Result<Sandbox, ClientError> {
        self.patch(&format!("/v1/sandboxes/{id}"), &json!({ "lease_until": lease_until, "limits": limits })).await
    }

    /// Destroys a sandbox; answers when nothing of it is left.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn sandbox_destroy(&self, id: SandboxId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/sandboxes/{id}")).await
    }
}
