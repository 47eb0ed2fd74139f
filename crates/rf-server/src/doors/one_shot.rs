//! A sandbox for one command: made, used and destroyed by one request.
//!
//! ```text
//! judged, both ─▶ intent: create ─▶ warden ────────────▶ init ───────────────▶ result: exec ─▶ one commit ─▶ answer
//!                                     └ intent: exec       └ row, result: create                               └▶ destroy
//! ```
//!
//! Nothing waits for what it does not need: the exec's intent is written while the warden hands out the sandbox, the row
//! and the first result while the command runs, and the one group commit that is waited for, before the answer, makes all
//! four records durable.

use std::{sync::Arc, task::Poll};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, Response},
};
use futures::{FutureExt as _, future::BoxFuture, pin_mut, poll};
use rf_places::place::Place;
use rf_types::{ExecId, Fault, PlaceRef, SandboxId};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{ExecAnswer, RUN_TIMEOUT_MS_STANDARD, RunAsk},
    app::{App, Caller, Where},
    doors::{
        execs::{After, Running, Wanted, framed, is_root, waited, wants_frames},
        sandboxes,
    },
    input::Json,
    refusal::Refusal,
};

/// How much longer than its command the sandbox of a one-shot lives, milliseconds. Chosen: a slow destruction.
const LEASE_MARGIN_MS: u64 = 60_000;

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(run))
}

/// Makes a sandbox, runs a command in it and destroys it: 256 MiB, 1 CPU, 30 s and no network if nothing else is
/// asked for.
#[utoipa::path(post, path = "/v1/run", operation_id = "run", request_body = RunAsk,
    responses((status = 200, description = "It ended; or its frames",
        content((ExecAnswer = "application/json"), (String = "application/vnd.ringfence.frames")))))]
async fn run(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Json(ask): Json<RunAsk>,
) -> Result<Response<Body>, Refusal> {
    let (running, output_bytes_max, destroy) = start(&app, &caller, ask).await?;
    if wants_frames(&headers) {
        let destroy = async move { drop(destroy) }.boxed();
        return framed(running, &caller, destroy).await;
    }
    let answer = waited(running, output_bytes_max).await;
    // The connection writes the answer before its thread takes up what is begun here.
    drop(destroy);
    answer
}

/// Judges both, makes the sandbox and starts the command in it; when what comes third is dropped, it is destroyed.
async fn start(app: &App, caller: &Caller, ask: RunAsk) -> Result<(Running, usize, After), Refusal> {
    let RunAsk { mut exec, mut sandbox } = ask;
    if exec.background {
        return Err(Fault::invalid("a one-shot cannot be in the background: make a sandbox for it").into());
    }
    if exec.place.is_some() {
        return Err(Fault::invalid("a one-shot has a sandbox of its own: `place` cannot be given").into());
    }
    let timeout_ms = *exec.timeout_ms.get_or_insert(RUN_TIMEOUT_MS_STANDARD);
    if sandbox.lease_ms.is_none() {
        sandbox.lease_ms = Some(timeout_ms.saturating_add(LEASE_MARGIN_MS).max(1_000));
    }
    if exec.argv.is_none() && exec.shell.is_none() {
        exec.argv = Some(app.own_command(caller, sandbox.template.as_ref())?);
        exec.of_template = true;
    }
    // What is wrong with the command is found out before a sandbox is made for it.
    let wanted = app.wanted(caller, Where::Routed, exec, false)?;
    let Wanted { ask, spec: mut command, stdin, choice: _, output_bytes_max, held } = wanted;
    let (spec, making) = sandboxes::wanted(app, caller, &sandbox).await?;
    app.fill(caller, &spec.template, &making.about.env, &mut command)?;
    let id = ExecId::random();
    let ask = ask.subject(id);

    // Both are judged before either is recorded as begun: of a command that is refused no sandbox is made.
    let may_make = app.claim_sandbox(caller, &spec);
    let may_run = app.claim_exec(caller, is_root(&command));
    if let (Ok(_), Err(fault)) = (&may_make, &may_run) {
        return Err(app.refuse(caller, ask, fault.clone()).await);
    }
    let (mut making_it, claim) = app.begin_judged(caller, sandboxes::asked(app, &spec), may_make).await?;
    if let Err(fault) = sandboxes::check(app, caller, &spec, &making) {
        return Err(making_it.fail(fault).await);
    }
    // Its name is taken by its row, so one with a name is written down before anything runs in it.
    let named = making.name.is_some();
    let all = app.places().sandboxes();
    let made = all.create_for_one(claim, making);
    pin_mut!(made);
    let early = poll!(made.as_mut());
    // While the warden hands it out.
    let (mut running_it, claim) = match app.begin_judged(caller, ask, may_run).await {
        Ok(begun) => begun,
        Err(refusal) => return Err(making_it.fail(refusal.fault).await),
    };
    let made = match early {
        Poll::Ready(made) => made,
        Poll::Pending => made.await,
    };
    let (place, row) = match made {
        Ok(made) => made,
        Err(fault) => {
            // Recorded before, and durable with, the answer's own.
            let _ = running_it.finish_later::<()>(Err(fault.clone()));
            return Err(making_it.fail(fault).await);
        }
    };
    // Whatever comes next, also the client's going away, the sandbox is destroyed.
    let destroy = After(Some(destroy_later(app, caller, row.id)));
    let place: Arc<dyn Place> = place;
    let at = PlaceRef::Sandbox(row.id);
    sandboxes::note(&mut making_it, &row);
    running_it.set_place(at);

    let mut written = if named { all.write_down(&row) } else { Ok(()) };
    let started = app.places().execs().run(claim, &place, id, &command);
    pin_mut!(started);
    let mut early = Poll::Pending;
    if written.is_ok() {
        early = poll!(started.as_mut());
        // While the command runs.
        if !named {
            written = all.write_down(&row);
        }
    }
    if let Err(fault) = making_it.finish_later(written) {
        // What is dropped with this is killed, and nobody was told anything of it.
        return Err(running_it.fail(fault).await);
    }
    let exec = match early {
        Poll::Ready(started) => started,
        Poll::Pending => started.await,
    };
    match exec {
        Ok(exec) => Ok((Running { operation: running_it, exec, place: at, stdin, held }, output_bytes_max, destroy)),
        Err(fault) => Err(running_it.fail(fault).await),
    }
}

/// The destruction of a one-shot's sandbox, which nobody waits for: it is recorded like every other.
fn destroy_later(app: &App, caller: &Caller, id: SandboxId) -> BoxFuture<'static, ()> {
    let (app, caller) = (app.clone(), caller.again());
    async move {
        if let Err(refusal) = sandboxes::destroy(&app, &caller, id).await {
            // Its lease ends it.
            tracing::warn!(fault = %refusal.fault, sandbox = %id, "a one-shot's sandbox was not destroyed at once");
        }
    }
    .boxed()
}
