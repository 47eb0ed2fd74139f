//! Sandboxes: make, see, extend, pause, resume, save, fork, destroy.

use rf_types::{PauseKind, SandboxId, SnapshotId};
use serde_json::json;

use crate::{
    client::Client,
    error::ClientError,
    types::{Fork, ForkRequest, LimitsRequest, Sandbox, SandboxRequest, Snapshot},
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

    /// Pauses a sandbox; answers when its processes are frozen, or its files are saved.
    ///
    /// # Errors
    /// `not_found`, `conflict` when it does not run; see [`ClientError`].
    pub async fn sandbox_pause(&self, id: SandboxId, keep: PauseKind) -> Result<Sandbox, ClientError> {
        self.post(&format!("/v1/sandboxes/{id}/pause"), &json!({ "keep": keep })).await
    }

    /// Resumes a paused sandbox; answers when it serves. With `cold` it begins anew from its files.
    ///
    /// # Errors
    /// `not_found`, `conflict` when it is not paused, `limit_reached`; see [`ClientError`].
    pub async fn sandbox_resume(
        &self,
        id: SandboxId,
        lease_ms: Option<u64>,
        cold: bool,
    ) -> Result<Sandbox, ClientError> {
        self.post(&format!("/v1/sandboxes/{id}/resume"), &json!({ "lease_ms": lease_ms, "cold": cold })).await
    }

    /// Saves the files of a sandbox, which goes on.
    ///
    /// # Errors
    /// `not_found`, `limit_reached`; see [`ClientError`].
    pub async fn sandbox_snapshot(&self, id: SandboxId, name: Option<&str>) -> Result<Snapshot, ClientError> {
        self.post(&format!("/v1/sandboxes/{id}/snapshots"), &json!({ "name": name })).await
    }

    /// Makes sandboxes that begin with the files of this one as they are now; what came of each.
    ///
    /// # Errors
    /// `not_found`; what is refused to one fork is in its place; see [`ClientError`].
    pub async fn sandbox_fork(&self, id: SandboxId, request: &ForkRequest) -> Result<Vec<Fork>, ClientError> {
        #[derive(serde::Deserialize)]
        struct Forks {
            forks: Vec<Fork>,
        }
        let answer: Forks = self.post(&format!("/v1/sandboxes/{id}/fork"), request).await?;
        Ok(answer.forks)
    }

    /// The user's snapshots, newest first; only those of `sandbox`, if one is given.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn snapshots(&self, sandbox: Option<SandboxId>) -> Result<Vec<Snapshot>, ClientError> {
        let of: Vec<_> = sandbox.map(|id| ("sandbox", id.to_string())).into_iter().collect();
        self.list("/v1/snapshots", &of).await
    }

    /// Removes a snapshot; sandboxes that were made from it go on.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn snapshot_remove(&self, id: SnapshotId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/snapshots/{id}")).await
    }

    /// Destroys a sandbox; answers when nothing of it is left.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn sandbox_destroy(&self, id: SandboxId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/sandboxes/{id}")).await
    }
}
