//! The life of a sandbox beyond its making: pause, resume, snapshot, fork; and the user's snapshots.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_places::{Making, Origin, Resume, SandboxRow, SnapshotRow};
use rf_policy::Action;
use rf_store::PageAsk;
use rf_types::{Code, Fault, PauseKind, PlaceRef, SandboxAbout, SandboxId, SandboxSpec, SnapshotId};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{ForkAsk, List, PauseAsk, ResumeAsk, SnapshotAsk, SnapshotQuery},
    app::{App, Caller, Named, json},
    doors::sandboxes::{self, SandboxAnswer},
    input::{self, Json},
    operation::Ask,
    refusal::Refusal,
};

/// Most forks of one request. Chosen.
pub const FORKS_MAX: u32 = 20;
/// Range of a lease, milliseconds.
const LEASE_MS: std::ops::RangeInclusive<u64> = 1_000..=30 * 86_400_000;

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sandbox_pause))
        .routes(routes!(sandbox_resume))
        .routes(routes!(sandbox_snapshot))
        .routes(routes!(sandbox_fork))
        .routes(routes!(snapshots))
        .routes(routes!(snapshot, snapshot_delete))
}

/// A snapshot.
#[derive(Debug, Serialize, ToSchema)]
struct SnapshotAnswer {
    /// Its id.
    #[schema(value_type = String)]
    id: SnapshotId,
    /// What the user calls it.
    name: Option<String>,
    /// The sandbox it was made of; may be gone.
    #[schema(value_type = String)]
    sandbox: SandboxId,
    /// As that sandbox was then.
    #[schema(value_type = Object)]
    spec: SandboxSpec,
    /// Bytes of files that no older snapshot holds: what was written since the last one that the sandbox made or began
    /// with. At first as the file system counted them, then as they are on disk; more when an older snapshot is removed
    /// whose files this one holds as well.
    bytes: u64,
    /// Files, directories and everything else that has a name, of the same.
    files: u64,
    /// Whether it survives the end of the machine; one that is not yet will be, shortly after.
    durable: bool,
    /// When it was made, milliseconds since 1970.
    created_at: u64,
}

impl From<SnapshotRow> for SnapshotAnswer {
    fn from(row: SnapshotRow) -> Self {
        let SnapshotRow { id, user: _, name, sandbox, spec, bytes, files, durable, created_at } = row;
        Self { id, name, sandbox, spec, bytes, files, durable, created_at }
    }
}

/// What came of one fork: the one or the other.
#[derive(Debug, Serialize, ToSchema)]
struct ForkAnswer {
    /// The new sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<SandboxAnswer>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    error: Option<Fault>,
}

/// What came of each fork, in no particular order.
#[derive(Debug, Serialize, ToSchema)]
struct ForksAnswer {
    /// One for each that was asked for.
    forks: Vec<ForkAnswer>,
}

/// Pauses a sandbox: answered when its processes are frozen, or its files are saved. It has no lease until it is
/// resumed. `conflict` when it is not running.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/pause", request_body = PauseAsk,
    responses((status = 200, body = SandboxAnswer)))]
async fn sandbox_pause(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(ask): Json<PauseAsk>,
) -> Result<Response<Body>, Refusal> {
    let row = pause(&app, &caller, input::id("sandbox", &id)?, ask.keep).await?;
    Ok(json(StatusCode::OK, &SandboxAnswer::from(row)))
}

/// Judges and pauses; every door's way to it.
///
/// # Errors
/// What the gate says and [`rf_places::Sandboxes::pause`].
pub async fn pause(app: &App, caller: &Caller, id: SandboxId, keep: PauseKind) -> Result<SandboxRow, Refusal> {
    let ask = Ask::of(Action::SandboxPause).subject(id).place(PlaceRef::Sandbox(id)).detail("keep", keep.name());
    let operation = app.begin(caller, ask).await?;
    let result = app.places().sandboxes().pause(operation.permit(), id, keep).await;
    operation.finish(result).await
}

/// Resumes a paused sandbox: answered when it serves. `conflict` when it is not paused.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/resume", request_body = ResumeAsk,
    responses((status = 200, body = SandboxAnswer)))]
async fn sandbox_resume(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(ask): Json<ResumeAsk>,
) -> Result<Response<Body>, Refusal> {
    check_lease(ask.lease_ms)?;
    let how = Resume { lease_ms: ask.lease_ms, cold: ask.cold };
    let row = resume(&app, &caller, input::id("sandbox", &id)?, how).await?;
    Ok(json(StatusCode::OK, &SandboxAnswer::from(row)))
}

/// Judges, counts and resumes; every door's way to it.
///
/// # Errors
/// What the gate says and [`rf_places::Sandboxes::resume`].
pub async fn resume(app: &App, caller: &Caller, id: SandboxId, how: Resume) -> Result<SandboxRow, Refusal> {
    let mut ask = Ask::of(Action::SandboxResume).subject(id).place(PlaceRef::Sandbox(id)).detail("cold", how.cold);
    if let Some(lease_ms) = how.lease_ms {
        ask = ask.detail("lease_ms", lease_ms);
    }
    let judged = app.claim_resume(caller, id, &how);
    let (operation, claim) = app.begin_judged(caller, ask, judged).await?;
    let result = app.places().sandboxes().resume(claim, id, how).await;
    operation.finish(result).await
}

/// Saves the files of a sandbox, running or frozen, as they are at one instant. The sandbox goes on.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/snapshots", request_body = SnapshotAsk,
    responses((status = 201, body = SnapshotAnswer)))]
async fn sandbox_snapshot(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(ask): Json<SnapshotAsk>,
) -> Result<Response<Body>, Refusal> {
    let row = snapshot_of(&app, &caller, input::id("sandbox", &id)?, ask.name).await?;
    Ok(json(StatusCode::CREATED, &SnapshotAnswer::from(row)))
}

/// Judges, counts and makes a snapshot; every door's way to one. What was begun is made and recorded also when the client
/// goes away.
///
/// # Errors
/// What the gate says and [`rf_places::Sandboxes::snapshot`].
pub async fn snapshot_of(
    app: &App,
    caller: &Caller,
    id: SandboxId,
    name: Option<String>,
) -> Result<SnapshotRow, Refusal> {
    let mut ask = Ask::of(Action::SnapshotCreate).place(PlaceRef::Sandbox(id));
    if let Some(name) = &name {
        ask = ask.detail("name", app.redactor().text(name, &[]));
    }
    // How much it may be at most, as far as is known before it is made; nothing of another user's, who is told below.
    let bytes = app.places().sandboxes().bytes_written(caller.who.principal().user, id).await.unwrap_or(0);
    let judged = app.claim_snapshot(caller, bytes);
    let (mut operation, claim) = app.begin_judged(caller, ask, judged).await?;
    let app = app.clone();
    let made = async move {
        let result = app.places().sandboxes().snapshot(claim, id, name).await;
        if let Ok(row) = &result {
            operation.set_subject(row.id);
            operation.detail("bytes", row.bytes);
        }
        operation.finish(result).await
    };
    App::to_its_end(made).await
}

/// Makes sandboxes that begin with the files of this one, running or paused, as they are now. Each is judged by itself:
/// where one is refused the others are made all the same.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/fork", request_body = ForkAsk,
    responses((status = 201, body = ForksAnswer)))]
async fn sandbox_fork(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(ask): Json<ForkAsk>,
) -> Result<Response<Body>, Refusal> {
    let id = input::id("sandbox", &id)?;
    let count = ask.count.unwrap_or(1);
    check_lease(ask.lease_ms)?;
    let forks = fork(&app, &caller, id, count, |parent| {
        let about = SandboxAbout {
            labels: ask.labels.clone().unwrap_or(parent.about.labels.clone()),
            env: ask.env.clone(),
            door: serde_json::Value::Null,
            ..parent.about.clone()
        };
        let lease_ms = ask.lease_ms.unwrap_or(parent.spec.lease_ms);
        (SandboxSpec { lease_ms, ..parent.spec.clone() }, about)
    });
    let answer = |fork: Result<SandboxRow, Refusal>| match fork {
        Ok(row) => ForkAnswer { sandbox: Some(row.into()), error: None },
        Err(refusal) => ForkAnswer { sandbox: None, error: Some(refusal.fault) },
    };
    let forks = forks.await?.into_iter().map(answer).collect();
    Ok(json(StatusCode::CREATED, &ForksAnswer { forks }))
}

/// Judges and takes a sandbox's files as they are now, and makes `count` sandboxes that begin with them, each judged and
/// recorded by itself. All are judged and counted before anything is taken: where each is refused, nothing is. `of` says
/// what each is to be, given its parent; it copies nothing that may be secret, and in particular not the parent's
/// environment, unless its caller says so.
///
/// # Errors
/// What is refused to all of them; what is refused to one is that one's.
pub async fn fork(
    app: &App,
    caller: &Caller,
    id: SandboxId,
    count: u32,
    of: impl FnOnce(&SandboxRow) -> (SandboxSpec, SandboxAbout),
) -> Result<Vec<Result<SandboxRow, Refusal>>, Refusal> {
    if !(1..=FORKS_MAX).contains(&count) {
        return Err(Fault::invalid(format!("`count` must be 1 to {FORKS_MAX}")).into());
    }
    let ask = Ask::of(Action::SandboxFork).subject(id).place(PlaceRef::Sandbox(id)).detail("count", count);
    let operation = app.begin(caller, ask).await?;
    let taken = async {
        let parent = app.places().sandboxes().row(operation.permit().user(), id)?;
        let (spec, about) = of(&parent);
        about.validate()?;
        let judged: Vec<_> = (0..count).map(|_| app.claim_sandbox(caller, &spec)).collect();
        // The parent's processes stand still for it, and its layers are one more.
        let origin = match judged.iter().any(Result::is_ok) {
            true => Some(app.places().sandboxes().fork_origin(operation.permit(), id).await?),
            false => None,
        };
        Ok((spec, about, judged, origin))
    };
    let (spec, about, judged, origin) = match taken.await {
        // Durable with what comes after it: each of the forks is recorded, made or refused.
        Ok(taken) => operation.finish_later(Ok(taken))?,
        Err(fault) => return Err(operation.fail(fault).await),
    };
    let making = Making { about, from: origin, ..Making::default() };
    let make = |judged| sandboxes::make_judged(app, caller, spec.clone(), making.clone(), judged);
    Ok(futures::future::join_all(judged.into_iter().map(make)).await)
}

/// The user's snapshots, newest first.
#[utoipa::path(get, path = "/v1/snapshots", params(SnapshotQuery),
    responses((status = 200, body = List<SnapshotAnswer>)))]
async fn snapshots(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let query: SnapshotQuery = input::query(&uri)?;
    let (rows, next) = snapshot_list(&app, &caller, &query).await?;
    let items: Vec<_> = rows.into_iter().map(SnapshotAnswer::from).collect();
    Ok(json(StatusCode::OK, &List { items, next }))
}

/// Judges and lists; every door's way to it.
///
/// # Errors
/// What the gate says; `invalid_request` for a bad page.
pub async fn snapshot_list(
    app: &App,
    caller: &Caller,
    query: &SnapshotQuery,
) -> Result<(Vec<SnapshotRow>, Option<String>), Refusal> {
    let operation = app.begin(caller, Ask::of(Action::SnapshotRead).detail("op", "list")).await?;
    let list = || {
        let sandbox = match query.sandbox.as_deref().map(str::parse::<SandboxId>) {
            Some(Ok(id)) => Some(id),
            // What is no id names no sandbox, and there is no snapshot of none.
            Some(Err(_)) => return Ok((Vec::new(), None)),
            None => None,
        };
        let ask = PageAsk { after: query.after.as_deref(), items_max: query.items_max };
        let page = app.store().snapshot_list(caller.who.scope(), sandbox, query.name.as_deref(), ask)?;
        let user = operation.permit().user();
        let now = |item: rf_store::Snapshot| app.places().sandboxes().snapshot_row(user, item.id).ok();
        Ok((page.items.into_iter().filter_map(now).collect(), page.next))
    };
    let result = list();
    operation.finish(result).await
}

/// One snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{id}", responses((status = 200, body = SnapshotAnswer)))]
async fn snapshot(State(app): State<App>, caller: Caller, Named(id): Named<String>) -> Result<Response<Body>, Refusal> {
    let id: SnapshotId = input::id("snapshot", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::SnapshotRead).subject(id)).await?;
    let result = app.places().sandboxes().snapshot_row(operation.permit().user(), id);
    Ok(json(StatusCode::OK, &SnapshotAnswer::from(operation.finish(result).await?)))
}

/// Removes a snapshot. Sandboxes that were made from it go on.
#[utoipa::path(delete, path = "/v1/snapshots/{id}", responses((status = 204, description = "Gone")))]
async fn snapshot_delete(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
) -> Result<StatusCode, Refusal> {
    delete_snapshot(&app, &caller, input::id("snapshot", &id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Judges and removes; every door's way to it.
///
/// # Errors
/// What the gate says; `not_found`; `store_unavailable`.
pub async fn delete_snapshot(app: &App, caller: &Caller, id: SnapshotId) -> Result<(), Refusal> {
    let operation = app.begin(caller, Ask::of(Action::SnapshotDelete).subject(id)).await?;
    let result = app.places().sandboxes().remove_snapshot(operation.permit(), id);
    operation.finish(result).await
}

/// What a sandbox may begin with: a snapshot of the user's, by its id or its name.
///
/// # Errors
/// What the gate says; `not_found`.
pub async fn origin(app: &App, caller: &Caller, named: &str) -> Result<Origin, Refusal> {
    let ask = Ask::of(Action::SnapshotRead).subject(app.redactor().text(named, &[])).detail("op", "begin with it");
    let operation = app.begin(caller, ask).await?;
    let (user, all) = (operation.permit().user(), app.places().sandboxes());
    let id = match named.parse::<SnapshotId>() {
        Ok(id) => Ok(id),
        Err(_) => all.snapshot_named(user, named).map(|row| row.id),
    };
    match id.and_then(|id| all.origin(user, id)) {
        // Durable with what comes after it.
        Ok(origin) => Ok(operation.finish_later(Ok(origin))?),
        Err(fault) => Err(operation.fail(fault).await),
    }
}

fn check_lease(lease_ms: Option<u64>) -> Result<(), Fault> {
    match lease_ms {
        Some(lease_ms) if !LEASE_MS.contains(&lease_ms) => {
            Err(Fault::new(Code::InvalidRequest, "`lease_ms` must be 1000 to 2592000000", ""))
        }
        Some(_) | None => Ok(()),
    }
}
