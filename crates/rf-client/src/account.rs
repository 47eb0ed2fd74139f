//! Users, keys, machines, templates, audit, health.

use futures::Stream;
use reqwest::{Body, Method};
use rf_types::{KeyId, MachineId, Preference, TemplateName, Username, units::UnixMs};
use serde_json::{Value, json};

use crate::{
    client::{Client, escape, query},
    error::ClientError,
    types::{ApiKey, Enrolment, Import, KeyForm, Machine, Me, NewKey, Template, User, UserLimitsRequest},
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
        self.put::<serde::de::IgnoredAny>("/v1/me/preference", &json!({ "preference": preference })).await.map(drop)
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
    pub async fn user_add(&self, name: &Username, limits: &UserLimitsRequest) -> Result<User, ClientError> {
        self.post("/v1/users", &json!({ "name": name, "limits": limits })).await
    }

    /// Every user; for the operator.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn users(&self) -> Result<Vec<User>, ClientError> {
        self.list("/v1/users", &[]).await
    }

    /// One user; for the operator.
    ///
    /// # Errors
    /// `not_found`, `forbidden`; see [`ClientError`].
    pub async fn user(&self, name: &Username) -> Result<User, ClientError> {
        self.get(&format!("/v1/users/{}", escape(name.as_str()))).await
    }

    /// Sets what a user may have at once; for the operator.
    ///
    /// # Errors
    /// `not_found`, `forbidden`; see [`ClientError`].
    pub async fn user_limits(&self, name: &Username, limits: &UserLimitsRequest) -> Result<User, ClientError> {
        self.patch(&format!("/v1/users/{}", escape(name.as_str())), &json!({ "limits": limits })).await
    }

    /// Removes a user who has no sandbox left, and every row of theirs; for the operator.
    ///
    /// # Errors
    /// `not_found`, `conflict`, `forbidden`; see [`ClientError`].
    pub async fn user_remove(&self, name: &Username) -> Result<(), ClientError> {
        self.delete(&format!("/v1/users/{}", escape(name.as_str()))).await
    }

    /// Makes a key of one's own in one of its forms; the answer is the only time its secret is shown.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn key_add(
        &self,
        name: &str,
        scopes: &[String],
        expires_at: Option<UnixMs>,
        form: KeyForm,
    ) -> Result<NewKey, ClientError> {
        let scopes = (!scopes.is_empty()).then_some(scopes);
        let e2b = form == KeyForm::E2b;
        let ask = json!({ "name": name, "scopes": scopes, "expires_at": expires_at, "e2b": e2b });
        self.post("/v1/keys", &ask).await
    }

    /// Makes a key for a user; for the operator.
    ///
    /// # Errors
    /// `not_found`, `forbidden`; see [`ClientError`].
    pub async fn user_key_add(&self, user: &Username, name: &str) -> Result<NewKey, ClientError> {
        self.post(&format!("/v1/users/{}/keys", escape(user.as_str())), &json!({ "name": name })).await
    }

    /// The user's keys, without their secrets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn keys(&self) -> Result<Vec<ApiKey>, ClientError> {
        self.list("/v1/keys", &[]).await
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
        self.list("/v1/machines", &[]).await
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
        self.list("/v1/templates", &[]).await
    }

    /// One template.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn template(&self, name: &TemplateName) -> Result<Template, ClientError> {
        self.get(&format!("/v1/templates/{}", escape(name.as_str()))).await
    }

    /// How far the import of a template is.
    ///
    /// # Errors
    /// `not_found` when none goes on, `forbidden`; see [`ClientError`].
    pub async fn template_import(&self, name: &TemplateName) -> Result<Import, ClientError> {
        self.get(&format!("/v1/templates/{}/import", escape(name.as_str()))).await
    }

    /// Makes a template from an image of a registry.
    ///
    /// # Errors
    /// `template_unavailable`, `forbidden`; see [`ClientError`].
    pub async fn template_pull(&self, name: &TemplateName, image: &str) -> Result<Template, ClientError> {
        self.post("/v1/templates", &json!({ "name": name, "image": image })).await
    }

    /// Makes a template from an archive: a tar of a root, or with `image` a saved image or a tar of an `oci-layout`
    /// folder.
    ///
    /// # Errors
    /// `template_unavailable`, `forbidden`; see [`ClientError`].
    pub async fn template_upload(
        &self,
        name: &TemplateName,
        image: bool,
        bytes: impl Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static,
    ) -> Result<Template, ClientError> {
        let format = if image { "image" } else { "root" };
        let path = format!("/v1/templates/{}?format={format}", escape(name.as_str()));
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

    /// The newest records of the ledger, newest first: the user's own, or everybody's for the operator.
    ///
    /// # Errors
    /// `forbidden`; see [`ClientError`].
    pub async fn audit(&self, count: u32, everybody: bool) -> Result<Vec<Value>, ClientError> {
        let pairs = [("limit", count.clamp(1, 1_000).to_string()), ("all", everybody.to_string())];
        let page: Value = self.get(&format!("/v1/audit{}", query(&pairs))).await?;
        Ok(page["items"].as_array().cloned().unwrap_or_default())
    }
}
