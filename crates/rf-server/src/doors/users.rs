//! Users, for the operator.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_policy::Action;
use rf_store::{NewUser, PageAsk, User};
use rf_types::{Code, Fault, KeyId, Preference, UserId, UserLimits, Username};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{List, PageQuery},
    app::{App, Caller, Named, json},
    doors::{
        self,
        account::{KeyAnswer, KeyAsk, KeyMadeAnswer, UserLimitsSchema, whole},
    },
    input::{self, Json},
    operation::Ask,
    refusal::Refusal,
};

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(users, user_make))
        .routes(routes!(user, user_change, user_delete))
        .routes(routes!(user_keys, user_key_make))
        .routes(routes!(user_key_revoke))
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
struct UserAnswer {
    /// Their id.
    #[schema(value_type = String)]
    id: UserId,
    /// Their name.
    #[schema(value_type = String)]
    name: Username,
    /// Whether they run this Ringfence.
    operator: bool,
    /// What they may have.
    #[schema(value_type = UserLimitsSchema)]
    limits: UserLimits,
    /// Where their calls run unless a call chooses.
    #[schema(value_type = String)]
    preference: Preference,
    /// When they were made, milliseconds since 1970.
    created_at: u64,
    /// Since when none of their credentials works.
    disabled_at: Option<u64>,
}

impl From<User> for UserAnswer {
    fn from(user: User) -> Self {
        let User { id, name, operator, limits, preference, created, disabled } = user;
        Self { id, name, operator, limits, preference, created_at: created, disabled_at: disabled }
    }
}

/// Limits over others.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserLimitsPatch {
    /// Sandboxes at once.
    sandboxes_max: Option<u32>,
    /// Execs at once.
    execs_max: Option<u32>,
    /// Sum of the sandboxes' CPU limits, thousandths of one CPU.
    cpu_milli_max: Option<u32>,
    /// Sum of the sandboxes' memory limits, bytes.
    memory_bytes_max: Option<u64>,
    /// Sum of the sandboxes' disk limits, bytes.
    disk_bytes_max: Option<u64>,
    /// Longest lease, milliseconds.
    lease_ms_max: Option<u64>,
    /// Whether `root` inside may be had.
    root_allowed: Option<bool>,
    /// Snapshots at once.
    snapshots_max: Option<u32>,
    /// Sum of the snapshots' bytes.
    snapshot_bytes_max: Option<u64>,
}

impl UserLimitsPatch {
    fn over(self, base: UserLimits) -> UserLimits {
        UserLimits {
            sandboxes_max: self.sandboxes_max.unwrap_or(base.sandboxes_max),
            execs_max: self.execs_max.unwrap_or(base.execs_max),
            cpu_milli_max: self.cpu_milli_max.unwrap_or(base.cpu_milli_max),
            memory_bytes_max: self.memory_bytes_max.unwrap_or(base.memory_bytes_max),
            disk_bytes_max: self.disk_bytes_max.unwrap_or(base.disk_bytes_max),
            lease_ms_max: self.lease_ms_max.unwrap_or(base.lease_ms_max),
            root_allowed: self.root_allowed.unwrap_or(base.root_allowed),
            snapshots_max: self.snapshots_max.unwrap_or(base.snapshots_max),
            snapshot_bytes_max: self.snapshot_bytes_max.unwrap_or(base.snapshot_bytes_max),
        }
    }
}

/// A user to be made.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserAsk {
    /// The name, not in use.
    #[schema(value_type = String)]
    name: Username,
    /// Whether they run this Ringfence.
    #[serde(default)]
    operator: bool,
    /// Limits over those of a new user.
    #[serde(default)]
    limits: UserLimitsPatch,
}

/// What to change of a user.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserPatch {
    /// Limits over those that they have.
    limits: Option<UserLimitsPatch>,
    /// Whether their credentials stop working.
    disabled: Option<bool>,
}

fn name(text: &str) -> Result<Username, Fault> {
    input::id("user", text)
}

/// All users, newest first. For operators.
#[utoipa::path(get, path = "/v1/users", params(PageQuery), responses((status = 200, body = List<UserAnswer>)))]
async fn users(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let page: PageQuery = input::query(&uri)?;
    let operation = app.begin(&caller, Ask::of(Action::Operate).detail("op", "user_list")).await?;
    let ask = PageAsk { after: page.after.as_deref(), items_max: page.items_max };
    let result = caller.operator().and_then(|operator| Ok(app.store().user_list(operator, ask)?));
    let page = operation.finish(result).await?;
    let items = page.items.into_iter().map(UserAnswer::from).collect();
    Ok(json(StatusCode::OK, &List { items, next: page.next }))
}

/// Makes a user. For operators.
#[utoipa::path(post, path = "/v1/users", request_body = UserAsk, responses((status = 201, body = UserAnswer)))]
async fn user_make(
    State(app): State<App>,
    caller: Caller,
    Json(ask): Json<UserAsk>,
) -> Result<Response<Body>, Refusal> {
    let named = Ask::of(Action::Operate).subject(&ask.name).detail("op", "user_make");
    let operation = app.begin(&caller, named.detail("operator", ask.operator)).await?;
    let new = NewUser { name: ask.name, operator: ask.operator, limits: ask.limits.over(UserLimits::STANDARD) };
    let result = caller.operator().and_then(|operator| Ok(app.store().user_create(operator, &new, app.now())?.1));
    Ok(json(StatusCode::CREATED, &UserAnswer::from(operation.finish(result).await?)))
}

/// One user. For operators.
#[utoipa::path(get, path = "/v1/users/{name}", responses((status = 200, body = UserAnswer)))]
async fn user(State(app): State<App>, caller: Caller, Named(text): Named<String>) -> Result<Response<Body>, Refusal> {
    let ask = Ask::of(Action::Operate).subject(app.redactor().text(&text, &[])).detail("op", "user_read");
    let operation = app.begin(&caller, ask).await?;
    let find = || Ok(app.store().user_by_name(caller.operator()?, &name(&text)?)?);
    Ok(json(StatusCode::OK, &UserAnswer::from(operation.finish(find()).await?)))
}

/// Changes what a user may have, or disables them. For operators.
#[utoipa::path(patch, path = "/v1/users/{name}", request_body = UserPatch,
    responses((status = 200, body = UserAnswer)))]
async fn user_change(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(patch): Json<UserPatch>,
) -> Result<Response<Body>, Refusal> {
    let ask = Ask::of(Action::Operate).subject(app.redactor().text(&text, &[])).detail("op", "user_change");
    let operation = app.begin(&caller, ask).await?;
    let change = || {
        let (operator, store) = (caller.operator()?, app.store());
        let user = store.user_by_name(operator, &name(&text)?)?;
        if let Some(limits) = patch.limits {
            store.user_set_limits(operator, user.id, &limits.over(user.limits))?;
        }
        if let Some(disabled) = patch.disabled {
            store.user_set_disabled(operator, user.id, disabled.then(|| app.now()))?;
        }
        Ok(store.user_get(operator, user.id)?)
    };
    Ok(json(StatusCode::OK, &UserAnswer::from(operation.finish(change()).await?)))
}

/// Deletes a user: no credential of theirs works from then on, their sandboxes are destroyed, their machines thrown
/// out, and every row of theirs goes. What the ledger has of them stays. For operators.
#[utoipa::path(delete, path = "/v1/users/{name}", responses((status = 204, description = "Deleted")))]
async fn user_delete(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<StatusCode, Refusal> {
    let ask = Ask::of(Action::Operate).subject(app.redactor().text(&text, &[])).detail("op", "user_delete");
    let operation = app.begin(&caller, ask).await?;
    let result = delete(&app, &caller, &text).await;
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}

async fn delete(app: &App, caller: &Caller, text: &str) -> Result<(), Fault> {
    let (operator, store) = (caller.operator()?, app.store());
    let user = store.user_by_name(operator, &name(text)?)?.id;
    // First, so that nothing new is let in while the old goes.
    store.user_set_disabled(operator, user, Some(app.now()))?;
    let sandboxes = app.places().sandboxes().list(user);
    if !sandboxes.is_empty() {
        let who = app.act_for_user(&caller.who, user, caller.request)?;
        let acting = Caller { who, request: caller.request, started: caller.started };
        for row in sandboxes {
            match doors::sandboxes::destroy(app, &acting, row.id).await {
                Ok(()) => {}
                // It ended by itself.
                Err(refusal) if refusal.fault.code == Code::NotFound => {}
                Err(refusal) => return Err(refusal.fault),
            }
        }
    }
    app.places().sandboxes().remove_snapshots_of(user)?;
    for machine in app.places().machines(user) {
        app.hub().remove(machine.id);
        app.places().remove_machine(user, machine.id, None);
    }
    // Refused while a sandbox of theirs lives that was on its way when they were disabled: ask again.
    Ok(store.user_delete(operator, user)?)
}

/// A user's keys. For operators.
#[utoipa::path(get, path = "/v1/users/{name}/keys", responses((status = 200, body = List<KeyAnswer>)))]
async fn user_keys(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let ask = Ask::of(Action::Operate).subject(app.redactor().text(&text, &[])).detail("op", "user_key_list");
    let operation = app.begin(&caller, ask).await?;
    let list = || {
        let operator = caller.operator()?;
        let user = app.store().user_by_name(operator, &name(&text)?)?;
        Ok(app.store().key_list(&app.store().act_for(operator, user.id)?)?)
    };
    let keys = operation.finish(list()).await?;
    Ok(json(StatusCode::OK, &whole(keys.into_iter().map(KeyAnswer::from))))
}

/// Makes a key for a user; the answer is the only one that shows it. For operators.
#[utoipa::path(post, path = "/v1/users/{name}/keys", request_body = KeyAsk,
    responses((status = 201, body = KeyMadeAnswer)))]
async fn user_key_make(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(ask): Json<KeyAsk>,
) -> Result<Response<Body>, Refusal> {
    let named = Ask::of(Action::Operate).subject(app.redactor().text(&text, &[])).detail("op", "user_key_make");
    let mut operation = app.begin(&caller, named).await?;
    let make = || {
        let operator = caller.operator()?;
        let user = app.store().user_by_name(operator, &name(&text)?)?;
        app.gate().key_make_for(operation.permit(), operator, user.id, &ask.asked(), app.now())
    };
    let result = make();
    if let Ok((key, _)) = &result {
        operation.detail("key", key.id.to_string());
    }
    let (key, secret) = operation.finish(result).await?;
    let answer = KeyMadeAnswer { key: secret.reveal().to_owned(), info: key.into() };
    Ok(json(StatusCode::CREATED, &answer))
}

/// Revokes a user's key at once. For operators.
#[utoipa::path(delete, path = "/v1/users/{name}/keys/{id}", responses((status = 204, description = "Revoked")))]
async fn user_key_revoke(
    State(app): State<App>,
    caller: Caller,
    Named((text, key)): Named<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let named = Ask::of(Action::Operate).subject(app.redactor().text(&text, &[])).detail("op", "user_key_revoke");
    let operation = app.begin(&caller, named).await?;
    let revoke = || {
        let operator = caller.operator()?;
        let user = app.store().user_by_name(operator, &name(&text)?)?;
        let key: KeyId = input::id("key", &key)?;
        app.store().key_revoke(&app.store().act_for(operator, user.id)?, key, app.now())?;
        Ok(StatusCode::NO_CONTENT)
    };
    operation.finish(revoke()).await
}
