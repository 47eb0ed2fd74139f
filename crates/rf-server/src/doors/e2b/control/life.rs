//! The life of a sandbox that is there: its time, its network, pausing it, connecting to it, copies of it.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode},
};
use rf_e2b::{
    models::{Connect, Fork, Forked, Pause, Refresh, Timeout},
    network::{NetworkConfig, NetworkUpdate},
};
use rf_places::{Resume, SandboxRow};
use rf_policy::{Action, Asked};
use rf_types::{Code, Fault, OnLeaseEnd, PauseKind, SandboxAbout, SandboxEnv, SandboxId, SandboxSpec, SandboxState};

use super::{
    id,
    sandboxes::{lease_ms, some_network},
    view,
};
use crate::{
    app::{App, Caller, Named, json},
    doors::{
        self,
        e2b::{errors, notes::Notes, target::TrafficRules},
    },
    input::Json,
    operation::Ask,
    refusal::Refusal,
};

/// How long a sandbox lives on for which nobody asked for another time, seconds, by the call that asks.
const CONNECT: u32 = 300;
const REFRESH: u32 = 15;
const RESUME: u32 = 15;
const FORK: u32 = 15;
/// How often a call that connects begins anew because somebody else pauses or resumes the sandbox. Chosen.
const CONNECT_TRIES: u32 = 8;

/// How the end of a lease is set.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    /// So long from now; sooner or later than it was.
    At,
    /// At least so long from now.
    NotBefore,
}

async fn set_end(app: &App, caller: &Caller, id: SandboxId, end: End, lease_ms: u64) -> Result<SandboxRow, Refusal> {
    let mut ask = Ask::of(Action::SandboxUpdate).subject(id).detail("op", "lease").detail("lease_ms", lease_ms);
    ask.asked = Asked::Lease { lease_ms };
    let operation = app.begin(caller, ask).await?;
    let sandboxes = app.places().sandboxes();
    let result = match end {
        End::At => sandboxes.extend(operation.permit(), id, lease_ms).await,
        End::NotBefore => sandboxes.lengthen(operation.permit(), id, lease_ms).await,
    };
    operation.finish(result).await
}

/// Lets a sandbox live at least so long from now; one that is paused has no time that could be longer, and it is told so.
async fn extend_only(app: &App, caller: &Caller, row: SandboxRow, lease_ms: u64) -> Result<SandboxRow, Refusal> {
    if row.state == SandboxState::Paused || app.now().saturating_add(lease_ms) > row.lease_until {
        return set_end(app, caller, row.id, End::NotBefore, lease_ms).await;
    }
    Ok(row)
}

/// The row of a sandbox for a caller who may change it: what is answered with may hold its tokens.
async fn row_to_change(app: &App, caller: &Caller, id: SandboxId, op: &'static str) -> Result<SandboxRow, Refusal> {
    let operation = app.begin(caller, Ask::of(Action::SandboxUpdate).subject(id).detail("op", op)).await?;
    let found = app.places().sandboxes().row(operation.permit().user(), id);
    operation.finish(found).await
}

/// The row of a sandbox for a caller who connects to it, once it is neither being paused nor being resumed.
async fn row_to_connect(app: &App, caller: &Caller, id: SandboxId) -> Result<SandboxRow, Refusal> {
    let operation = app.begin(caller, Ask::of(Action::SandboxUpdate).subject(id).detail("op", "connect")).await?;
    let found = app.places().sandboxes().settled(operation.permit(), id).await;
    operation.finish(found).await
}

/// Sets the end of a sandbox's time; 0 ends it at once, the way it said when it was made.
pub(super) async fn timeout(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(Timeout { timeout }): Json<Timeout>,
) -> Result<StatusCode, Refusal> {
    let id = id(&text)?;
    let lease_ms = if timeout == 0 { 0 } else { lease_ms(Some(timeout), timeout, caller.who.limits())? };
    set_end(&app, &caller, id, End::At, lease_ms).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a sandbox live on; never ends it sooner.
pub(super) async fn refresh(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(Refresh { duration }): Json<Refresh>,
) -> Result<StatusCode, Refusal> {
    let id = id(&text)?;
    let lease_ms = lease_ms(duration, REFRESH, caller.who.limits())?;
    let row = row_to_change(&app, &caller, id, "refresh").await?;
    extend_only(&app, &caller, row, lease_ms).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a sandbox; answered when its processes are frozen, or its files saved.
pub(super) async fn pause(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(Pause { memory, require_healthy_guest }): Json<Pause>,
) -> Result<StatusCode, Refusal> {
    let id = id(&text)?;
    // Whoever may not pause it learns so below, and asks nothing of it.
    if require_healthy_guest == Some(true)
        && app.permit(&caller, Action::SandboxPause).is_ok()
        && let Ok(place) = app.places().sandboxes().get(caller.who.principal().user, id)
    {
        place.ping().await.map_err(|fault| {
            let what = "the sandbox does not answer, so it was not paused";
            let fault = Fault::new(Code::TimedOut, format!("{what}: {}", fault.message), "");
            // By 409 these clients would take it for paused already.
            Refusal::with_status(fault, StatusCode::SERVICE_UNAVAILABLE)
        })?;
    }
    let keep = if memory == Some(false) { PauseKind::Files } else { PauseKind::Memory };
    doors::life::pause(&app, &caller, id, keep).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resumes a paused sandbox; the oldest call for that.
pub(super) async fn resume(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(ask): Json<Connect>,
) -> Result<Response<Body>, Refusal> {
    let id = id(&text)?;
    let lease_ms = lease_ms(ask.timeout, RESUME, caller.who.limits())?;
    if let Some(pause) = ask.auto_pause {
        let row = row_to_change(&app, &caller, id, "resume").await?;
        if pause != (row.spec.on_lease_end == OnLeaseEnd::Pause) {
            let what = "`autoPause` is set when a sandbox is made and cannot be changed by a resume";
            return Err(Fault::invalid(what).into());
        }
    }
    let how = Resume { lease_ms: Some(lease_ms), cold: ask.memory == Some(false) };
    let row = doors::life::resume(&app, &caller, id, how).await?;
    Ok(json(StatusCode::CREATED, &view::sandbox(&app, &caller, &row)))
}

/// Connects to a sandbox, first version: the time must be given.
pub(super) async fn connect_v1(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(ask): Json<Connect>,
) -> Result<Response<Body>, Refusal> {
    if ask.timeout.is_none() {
        return Err(Fault::invalid("`timeout` is missing").into());
    }
    connect(&app, &caller, &text, ask).await
}

/// Connects to a sandbox, second version.
pub(super) async fn connect_v2(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(ask): Json<Connect>,
) -> Result<Response<Body>, Refusal> {
    connect(&app, &caller, &text, ask).await
}

/// Resumes a sandbox that is paused, and lets one that runs live on; one that is being paused or resumed is waited for.
async fn connect(app: &App, caller: &Caller, text: &str, ask: Connect) -> Result<Response<Body>, Refusal> {
    let id = id(text)?;
    let lease_ms = lease_ms(ask.timeout, CONNECT, caller.who.limits())?;
    let mut tries = 0;
    loop {
        let row = row_to_connect(app, caller, id).await?;
        let connected = if row.state == SandboxState::Paused {
            let how = Resume { lease_ms: Some(lease_ms), cold: ask.memory == Some(false) };
            doors::life::resume(app, caller, id, how).await.map(|row| (StatusCode::CREATED, row))
        } else {
            extend_only(app, caller, row, lease_ms).await.map(|row| (StatusCode::OK, row))
        };
        match connected {
            Ok((status, row)) => return Ok(json(status, &view::sandbox(app, caller, &row))),
            // Somebody else paused or resumed it at the same moment.
            Err(refusal) if tries < CONNECT_TRIES && matches!(refusal.fault.code, Code::Conflict | Code::Paused) => {
                tries += 1;
            }
            Err(refusal) => return Err(refusal),
        }
    }
}

/// Makes sandboxes that begin with the files of this one, as they are now. What its user told it in secret is not theirs:
/// they have no environment, and tokens of their own.
pub(super) async fn fork(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(Fork { timeout, count }): Json<Fork>,
) -> Result<Response<Body>, Refusal> {
    let id = id(&text)?;
    let lease_ms = lease_ms(timeout, FORK, caller.who.limits())?;
    let of = |parent: &SandboxRow| {
        let spec = SandboxSpec { lease_ms, ..parent.spec.clone() };
        (spec, SandboxAbout { env: SandboxEnv::default(), ..parent.about.clone() })
    };
    let forks = doors::life::fork(&app, &caller, id, count.unwrap_or(1), of).await?;
    let answer = |fork: Result<SandboxRow, Refusal>| match fork {
        Ok(row) => Forked::Made { sandbox: view::sandbox(&app, &caller, &row) },
        Err(refusal) => Forked::Failed { error: errors::body(&refusal) },
    };
    Ok(json(StatusCode::CREATED, &forks.into_iter().map(answer).collect::<Vec<_>>()))
}

/// Replaces the way out of a sandbox: everything that is let out is refused, and everything that is denied is denied.
pub(super) async fn network(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(update): Json<NetworkUpdate>,
) -> Result<StatusCode, Refusal> {
    let id = id(&text)?;
    let operation = app.begin(&caller, Ask::of(Action::SandboxUpdate).subject(id).detail("op", "network")).await?;
    let change = || {
        let row = app.places().sandboxes().row(operation.permit().user(), id)?;
        update.check().map_err(|error| Fault::invalid(error.to_string()))?;
        let old = Notes::of(&row.about).network.unwrap_or_default();
        let network = NetworkConfig { deny_out: update.deny_out.clone(), ..old };
        let notes = Notes { network: some_network(update.allow_internet_access, network) };
        let door = notes.door(&TrafficRules::of(&row.about.door));
        app.places().sandboxes().set_door(operation.permit(), id, door)
    };
    let result = change();
    operation.finish(result).await?;
    Ok(StatusCode::NO_CONTENT)
}
