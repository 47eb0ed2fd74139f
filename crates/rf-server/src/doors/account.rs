//! A user's own: who they are, keys, sessions, preference.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode},
};
use rf_gate::{KeyAsked, KeyForm};
use rf_policy::{Action, Credential, Scope, UserUsage};
use rf_store::{Key, Session};
use rf_types::{Fault, KeyId, Preference, SessionId, UserId, UserLimits, Username};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::List,
    app::{App, Caller, Named, json},
    input::{self, Json},
    operation::Ask,
    refusal::Refusal,
};

/// Life of a session for which nobody asked for another, milliseconds. Chosen: a day's work.
const SESSION_MS_STANDARD: u64 = 86_400_000;

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(me))
        .routes(routes!(set_preference))
        .routes(routes!(keys, key_make))
        .routes(routes!(key_revoke))
        .routes(routes!(sessions, session_begin))
        .routes(routes!(session_end))
}

/// What a user may have at once.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = UserLimits)]
pub struct UserLimitsSchema {
    /// Sandboxes at once.
    pub sandboxes_max: u32,
    /// Execs at once.
    pub execs_max: u32,
    /// Sum of the sandboxes' CPU limits, thousandths of one CPU.
    pub cpu_milli_max: u32,
    /// Sum of the sandboxes' memory limits, bytes.
    pub memory_bytes_max: u64,
    /// Sum of the sandboxes' disk limits, bytes.
    pub disk_bytes_max: u64,
    /// Longest lease, milliseconds.
    pub lease_ms_max: u64,
    /// Whether `root` inside may be had.
    pub root_allowed: bool,
    /// Snapshots at once.
    pub snapshots_max: u32,
    /// Sum of the snapshots' bytes.
    pub snapshot_bytes_max: u64,
}

/// What a user has at this moment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UserUsage)]
pub struct UserUsageSchema {
    /// Sandboxes alive.
    pub sandboxes: u32,
    /// Execs running.
    pub execs: u32,
    /// Sum of the sandboxes' CPU limits, thousandths of one CPU.
    pub cpu_milli: u32,
    /// Sum of the sandboxes' memory limits, bytes.
    pub memory_bytes: u64,
    /// Sum of the sandboxes' disk limits, bytes.
    pub disk_bytes: u64,
    /// Snapshots.
    pub snapshots: u32,
    /// Sum of the snapshots' bytes.
    pub snapshot_bytes: u64,
}

/// Who calls.
#[derive(Debug, Serialize, ToSchema)]
struct MeAnswer {
    /// The user's id.
    #[schema(value_type = String)]
    id: UserId,
    /// The user's name.
    #[schema(value_type = String)]
    name: Username,
    /// Whether they run this Ringfence, and this credential may be used for it.
    operator: bool,
    /// By what they proved it: `key`, `token` or `session`, and which.
    #[schema(value_type = Object)]
    credential: Credential,
    /// What the credential may be used for.
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    /// What they may have.
    #[schema(value_type = UserLimitsSchema)]
    limits: UserLimits,
    /// What they have.
    #[schema(value_type = UserUsageSchema)]
    usage: UserUsage,
    /// Where their calls run unless a call chooses.
    #[schema(value_type = String)]
    preference: Preference,
}

/// Who calls, what they may have and what they have.
#[utoipa::path(get, path = "/v1/me", responses((status = 200, body = MeAnswer)))]
async fn me(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).subject("me")).await?;
    let who = &caller.who;
    let user = who.principal().user;
    let answer = MeAnswer {
        id: user,
        name: who.principal().username.clone(),
        operator: who.operator().is_some(),
        credential: who.principal().credential.clone(),
        scopes: who.principal().scopes.clone(),
        limits: *who.limits(),
        usage: app.places().usage(user),
        preference: who.preference(),
    };
    Ok(json(StatusCode::OK, &operation.finish(Ok(answer)).await?))
}

/// Where calls run unless a call chooses.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PreferenceAsk {
    /// `machine`, `sandbox` or `machine-else-sandbox`.
    #[schema(value_type = String)]
    preference: Preference,
}

/// Sets where calls run unless a call chooses.
#[utoipa::path(put, path = "/v1/me/preference", request_body = PreferenceAsk,
    responses((status = 200, body = PreferenceAsk)))]
async fn set_preference(
    State(app): State<App>,
    caller: Caller,
    Json(ask): Json<PreferenceAsk>,
) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::MachineManage).subject("preference")).await?;
    let result = app.store().set_preference(caller.who.scope(), ask.preference).map_err(Fault::from);
    operation.finish(result).await?;
    Ok(json(StatusCode::OK, &ask))
}

/// An API key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyAnswer {
    /// Its id, which is public.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// What the user calls it.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// When it was made, milliseconds since 1970.
    pub created_at: u64,
    /// When it ends by itself.
    pub expires_at: Option<u64>,
    /// When it was revoked.
    pub revoked_at: Option<u64>,
    /// When it was last used, to five minutes.
    pub last_used_at: Option<u64>,
}

impl From<Key> for KeyAnswer {
    fn from(key: Key) -> Self {
        let Key { id, name, scopes, created, expires, revoked, last_used } = key;
        let scopes = scopes.split_ascii_whitespace().map(str::to_owned).collect();
        Self {
            id,
            name,
            scopes,
            created_at: created,
            expires_at: expires,
            revoked_at: revoked,
            last_used_at: last_used,
        }
    }
}

/// A fresh API key with its secret, shown this once.
#[derive(Serialize, ToSchema)]
pub struct KeyMadeAnswer {
    /// The secret.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub info: KeyAnswer,
}

/// A key to be made.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyAsk {
    /// What the user calls it, 1 to 100 characters.
    pub name: String,
    /// What it may be used for, of `read`, `run`, `account`, `audit`, `operate`; all that the credential in use may,
    /// if not given.
    #[schema(value_type = Option<Vec<String>>)]
    pub scopes: Option<Vec<Scope>>,
    /// When it ends by itself, milliseconds since 1970; never if not given.
    pub expires_at: Option<u64>,
    /// In the form that E2B's clients insist on.
    #[serde(default)]
    pub e2b: bool,
}

impl KeyAsk {
    /// As the gate takes it.
    #[must_use]
    pub fn asked(&self) -> KeyAsked<'_> {
        let form = if self.e2b { KeyForm::E2b } else { KeyForm::Ringfence };
        KeyAsked { name: &self.name, form, scopes: self.scopes.as_deref(), expires: self.expires_at }
    }
}

/// The user's keys.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = List<KeyAnswer>)))]
async fn keys(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::KeyManage).detail("op", "list")).await?;
    let keys = operation.finish(app.store().key_list(caller.who.scope()).map_err(Fault::from)).await?;
    Ok(json(StatusCode::OK, &whole(keys.into_iter().map(KeyAnswer::from))))
}

/// A list that has no next page.
pub fn whole<T>(items: impl Iterator<Item = T>) -> List<T> {
    List { items: items.collect(), next: None }
}

/// Makes a key; the answer is the only one that shows it.
#[utoipa::path(post, path = "/v1/keys", request_body = KeyAsk, responses((status = 201, body = KeyMadeAnswer)))]
async fn key_make(State(app): State<App>, caller: Caller, Json(ask): Json<KeyAsk>) -> Result<Response<Body>, Refusal> {
    let mut operation = app.begin(&caller, Ask::of(Action::KeyManage).detail("op", "make")).await?;
    let result = app.gate().key_make(operation.permit(), &caller.who, &ask.asked(), app.now());
    if let Ok((key, _)) = &result {
        operation.set_subject(key.id);
    }
    let (key, secret) = operation.finish(result).await?;
    let answer = KeyMadeAnswer { key: secret.reveal().to_owned(), info: key.into() };
    Ok(json(StatusCode::CREATED, &answer))
}

/// Revokes a key at once; also the one in use.
#[utoipa::path(delete, path = "/v1/keys/{id}", responses((status = 204, description = "Revoked")))]
async fn key_revoke(State(app): State<App>, caller: Caller, Named(key): Named<String>) -> Result<StatusCode, Refusal> {
    let key: KeyId = input::id("key", &key)?;
    let operation = app.begin(&caller, Ask::of(Action::KeyManage).subject(key).detail("op", "revoke")).await?;
    let result = app.gate().key_revoke(operation.permit(), &caller.who, key, app.now());
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
struct SessionAnswer {
    /// Its id: the user's name, when it began in seconds, and 32 hex digits.
    #[schema(value_type = String)]
    id: SessionId,
    /// What it may be used for.
    scopes: Vec<String>,
    /// When it began, milliseconds since 1970.
    created_at: u64,
    /// When it ends by itself.
    expires_at: u64,
}

impl From<Session> for SessionAnswer {
    fn from(session: Session) -> Self {
        let Session { id, scopes, created, expires, ended: _ } = session;
        let scopes = scopes.split_ascii_whitespace().map(str::to_owned).collect();
        Self { id, scopes, created_at: created, expires_at: expires }
    }
}

/// A fresh session with its secret, shown this once.
#[derive(Serialize, ToSchema)]
struct SessionMadeAnswer {
    /// The secret, for `Authorization: Bearer`.
    token: String,
    /// The rest.
    #[serde(flatten)]
    info: SessionAnswer,
}

/// A session to begin.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SessionAsk {
    /// What it may be used for; all that the credential in use may, if not given.
    #[schema(value_type = Option<Vec<String>>)]
    scopes: Option<Vec<Scope>>,
    /// How long it lasts, milliseconds; a day if not given.
    ttl_ms: Option<u64>,
}

/// The user's sessions that have not ended.
#[utoipa::path(get, path = "/v1/sessions", responses((status = 200, body = List<SessionAnswer>)))]
async fn sessions(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::SessionManage).detail("op", "list")).await?;
    let result = app.store().session_list(caller.who.scope(), app.now()).map_err(Fault::from);
    let sessions = operation.finish(result).await?;
    Ok(json(StatusCode::OK, &whole(sessions.into_iter().map(SessionAnswer::from))))
}

/// Begins a session; the answer is the only one that shows its secret.
#[utoipa::path(post, path = "/v1/sessions", request_body = SessionAsk,
    responses((status = 201, body = SessionMadeAnswer)))]
async fn session_begin(
    State(app): State<App>,
    caller: Caller,
    Json(ask): Json<SessionAsk>,
) -> Result<Response<Body>, Refusal> {
    let mut operation = app.begin(&caller, Ask::of(Action::SessionManage).detail("op", "begin")).await?;
    let ttl_ms = ask.ttl_ms.unwrap_or(SESSION_MS_STANDARD);
    let result = app.gate().session_begin(operation.permit(), &caller.who, ask.scopes.as_deref(), ttl_ms, app.now());
    if let Ok((session, _)) = &result {
        operation.set_subject(&session.id);
    }
    let (session, secret) = operation.finish(result).await?;
    let answer = SessionMadeAnswer { token: secret.reveal().to_owned(), info: session.into() };
    Ok(json(StatusCode::CREATED, &answer))
}

/// Ends a session at once; also the one in use.
#[utoipa::path(delete, path = "/v1/sessions/{id}", responses((status = 204, description = "Ended")))]
async fn session_end(
    State(app): State<App>,
    caller: Caller,
    Named(session): Named<String>,
) -> Result<StatusCode, Refusal> {
    let session: SessionId = input::id("session", &session)?;
    let operation = app.begin(&caller, Ask::of(Action::SessionManage).subject(&session).detail("op", "end")).await?;
    let result = app.gate().session_end(operation.permit(), &caller.who, &session, app.now());
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}
