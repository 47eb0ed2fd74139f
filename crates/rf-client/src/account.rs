//! Users, keys, machines, templates, audit, health.

use futures::Stream;
use reqwest::{Body, Method};
use rf_types::{KeyId, MachineId, Preference, TemplateName, UserId, UserLimits, Username};
use serde_json::{Value, json};

use crate::{
    client::{Client, escape, query},
    error::ClientError,
    types::{ApiKey, Enrolment, Items, Machine, Me, NewKey, Template, User},
};

impl Client {
    /// Whether the server says that it is ready.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ready(&self) -> Result<Value, ClientError> {
        self.get("/v1/health/ready").await
    }

    /// Whose credential this is.
    ///
    /// # Errors
    /// `unauthenticated`; see [`ClientError`].
    pub async fn me(&self) -> Result<Me, ClientError> {
        self.get("/v1/me").await
    }

    /// Sets where the user's operations run unless a call says otherwise.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_preference(&self, preference: Preference) -> Result<(), ClientError> {
        self.patch::<serde::de::IgnoredAny>("/v1/me", &json!({ "preference": preference })).await.map(drop)
    }

    /// What the warden and its host say; for the operator.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn host_status(&self) -> Result<Value, ClientError> {
        self.get("/v1/health/host").await
    }

    /// Makes a user; for the operator.
    ///
    /// # Errors
    /// `conflict`, `forbidden`; see [`ClientError`].
    pub async fn user_add(&self, name: &Username, limits: Option<UserLimits>) -> Result<User, ClientError> {
        self.post("/v1/users", &json!({ "username": name, "limits": limits })).await
    }

    /// Every user; for the operator.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn users(&self) -> Result<Vec<User>, ClientError> {
        self.get::<Items<User>>("/v1/users").await.map(Items::into_vec)
    }

    /// Sets what a user may have at once; for the operator.
    ///
    /// # Errors
    /// `not_found`, `forbidden`; see [`ClientError`].
    pub async fn user_limits(&self, id: UserId, limits: UserLimits) -> Result<User, ClientError> {
        self.patch(&format!("/v1/users/{id}"), &json!({ "limits": limits })).await
    }

    /// Removes a user and destroys all that is theirs; for the operator.
    ///
    /// # Errors
    /// `not_found`, `forbidden`; see [`ClientError`].
    pub async fn user_remove(&self, id: UserId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/users/{id}")).await
    }

    /// Makes a key; the answer is the only time its secret is shown.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn key_add(&self, request: &Value) -> Result<NewKey, ClientError> {
        self.post("/v1/keys", request).await
    }

    /// The user's keys, without their secrets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn keys(&self) -> Result<Vec<ApiKey>, ClientError> {
        self.get::<Items<ApiKey>>("/v1/keys").await.map(Items::into_vec)
    }

    /// Ends a key.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn key_revoke(&self, id: KeyId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/keys/{id}")).await
    }

    /// A token by which one machine may join, once.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn machine_enrol(&self) -> Result<Enrolment, ClientError> {
        self.post("/v1/machines/enrol", &json!({})).await
    }

    /// The user's machines.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn machines(&self) -> Result<Vec<Machine>, ClientError> {
        self.get::<Items<Machine>>("/v1/machines").await.map(Items::into_vec)
    }

    /// Forgets a machine; its key is worth nothing afterwards.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn machine_remove(&self, id: MachineId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/machines/{id}")).await
    }

    /// The templates.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn templates(&self) -> Result<Vec<Template>, ClientError> {
        self.get::<Items<Template>>("/v1/templates").await.map(Items::into_vec)
    }

    /// Makes a template from an image of a registry.
    ///
    /// # Errors
    /// `template_unavailable`, `forbidden`; see [`ClientError`].
    pub async fn template_pull(&self, name: &TemplateName, image: &str) -> Result<Template, ClientError> {
        self.post("/v1/templates", &json!({ "name": name, "image": image })).await
    }

    /// Makes a template from a tar archive of a root, or of an `oci-layout` folder.
    ///
    /// # Errors
    /// `template_unavailable`, `forbidden`; see [`ClientError`].
    pub async fn template_upload(
        &self,
        name: &TemplateName,
        bytes: impl Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static,
    ) -> Result<Template, ClientError> {
        let path = format!("/v1/templates/{}", escape(name.as_str()));
        let answer = self.send(self.request(Method::PUT, &path).body(Body::wrap_stream(bytes))).await?;
        let body = self.read(answer).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Garbled { path, why: error.to_string() })
    }

    /// Removes a template.
    ///
    /// # Errors
    /// `not_found`, `forbidden`; see [`ClientError`].
    pub async fn template_remove(&self, name: &TemplateName) -> Result<(), ClientError> {
        self.delete(&format!("/v1/templates/{}", escape(name.as_str()))).await
    }

    /// Records of the ledger, newest last.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn audit(&self, limit: u32) -> Result<Value, ClientError> {
        self.get(&format!("/v1/audit{}", query(&[("limit", limit.to_string())]))).await
    }
}
