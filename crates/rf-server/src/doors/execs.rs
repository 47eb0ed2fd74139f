//! Execs: run and wait, run and stream, run in the background; list, wait, logs, signal, standard input.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header},
};
use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Either, select},
    stream::BoxStream,
};
use http_body_util::BodyExt as _;
use rf_places::{ExecEvent, Foreground, Which, place::ByteWriter, type_end};
use rf_policy::Action;
use rf_types::{Code, ExecId, Fault, PlaceRef, Program, SignalScope};
use rf_wire::frames;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Choice, ExecAnswer, ExecAsk, ExecItem, List, PageQuery, ResizeAsk, SignalAsk, Started, Stdin},
    app::{App, Caller, Named, Where, json},
    doors::{frames::frames_of, sandboxes::paged},
    input::{self, Json},
    operation::{Ask, Operation},
    output::{Collected, Output},
    refusal::Refusal,
    room::Share,
};

/// Longest wait for an exec's end in one request, milliseconds.
const WAIT_MS_MAX: u64 = 3_600_000;

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(exec))
        .routes(routes!(exec_in_sandbox))
        .routes(routes!(exec_on_machine))
        .routes(routes!(execs))
        .routes(routes!(exec_read, exec_remove))
        .routes(routes!(exec_wait))
        .routes(routes!(exec_logs))
        .routes(routes!(exec_signal))
        .routes(routes!(exec_stdin))
        .routes(routes!(exec_resize))
}

/// An exec that was judged and runs.
pub struct Running {
    /// Its operation.
    pub operation: Operation,
    /// Its streams.
    pub exec: Foreground,
    /// Where it runs.
    pub place: PlaceRef,
    /// What it is given on standard input at once.
    pub stdin: Stdin,
    /// The memory that this input holds.
    pub held: Share,
}

impl Running {
    /// What is told of it first.
    #[must_use]
    pub fn started(&self) -> Started {
        Started { id: self.exec.id, place: self.place, pid: self.exec.pid }
    }
}

/// What to run, checked, and how to answer.
pub(super) struct Wanted {
    pub(super) ask: Ask<'static>,
    pub(super) spec: rf_types::ExecSpec,
    pub(super) stdin: Stdin,
    pub(super) choice: Choice,
    pub(super) output_bytes_max: usize,
    pub(super) held: Share,
}

impl App {
    /// Checks what is asked and writes down what the ledger is to know of it.
    pub(super) fn wanted(&self, caller: &Caller, at: Where, ask: ExecAsk, stdin_open: bool) -> Result<Wanted, Fault> {
        if at != Where::Routed && ask.place.is_some() {
            return Err(Fault::invalid("`place` cannot be given where the path says the place"));
        }
        let choice = Choice::parse(ask.place.as_deref())?;
        let most = self.config().door.output_bytes_max;
        let output_bytes_max = ask.output_bytes_max.map_or(most, |max| most.min(usize::try_from(max).unwrap_or(most)));
        let of_template = ask.of_template;
        let (mut spec, stdin) = ask.spec()?;
        let mut held = self.intake().room().share();
        // It stays until the program has taken it, which may be never.
        if let Stdin::Bytes(bytes) = &stdin
            && !held.grow(bytes.len())
        {
            return Err(input::no_room());
        }
        spec.stdin |= stdin_open;
        let mut record = Ask::of(Action::Exec);
        record.place = at.place();
        let redactor = self.redactor();
        record = match &spec.program {
            Program::Argv(argv) => record.detail("argv", redactor.argv(argv, &[])),
            Program::Shell(line) => record.detail("shell", redactor.text(line, &[])),
        };
        if of_template {
            record = record.detail("command_of", "template");
        }
        if !spec.env.is_empty() {
            record = record.detail("env", redactor.env(&spec.env));
        }
        match (at, choice) {
            (Where::Sandbox(id), _) | (Where::Routed, Choice::Place(PlaceRef::Sandbox(id))) => {
                self.fill_from_template(caller, id, &mut spec)?;
            }
            // The sandbox that is made at first use is of the template `host`, and a machine has none.
            (Where::Routed | Where::Machine(_), _) => {}
        }
        for (name, text) in [("cwd", &spec.cwd), ("as", &spec.user)] {
            if let Some(text) = text {
                record = record.detail(name, redactor.text(text, &[]));
            }
        }
        Ok(Wanted { ask: record, spec, stdin, choice, output_bytes_max, held })
    }

    /// Judges and starts an exec whose caller waits.
    ///
    /// # Errors
    /// What the gate and the place say.
    pub async fn start(
        &self,
        caller: &Caller,
        at: Where,
        ask: ExecAsk,
        stdin_open: bool,
    ) -> Result<(Running, usize), Refusal> {
        let wanted = self.wanted(caller, at, ask, stdin_open)?;
        let Wanted { ask, spec, stdin, choice, output_bytes_max, held } = wanted;
        let id = ExecId::random();
        let judged = self.claim_exec(caller, is_root(&spec));
        let (mut operation, claim) = self.begin_judged(caller, ask.subject(id), judged).await?;
        let place = match self.resolve(caller, &operation, at, choice).await {
            Ok(place) => place,
            Err(fault) => return Err(operation.fail(fault).await),
        };
        operation.set_place(place.place());
        match self.places().execs().run(claim, &place, id, &spec).await {
            Ok(exec) => Ok((Running { operation, exec, place: place.place(), stdin, held }, output_bytes_max)),
            Err(fault) => Err(operation.fail(fault).await),
        }
    }

    /// Judges and starts an exec that outlives its request.
    async fn start_background(&self, caller: &Caller, at: Where, ask: ExecAsk) -> Result<ExecItem, Refusal> {
        let Wanted { ask, spec, stdin, choice, held, .. } = self.wanted(caller, at, ask, false)?;
        let ask = ask.detail("background", true);
        let id = ExecId::random();
        let judged = self.claim_exec(caller, is_root(&spec));
        let (mut operation, claim) = self.begin_judged(caller, ask.subject(id), judged).await?;
        let place = match self.resolve(caller, &operation, at, choice).await {
            Ok(place) => place,
            Err(fault) => return Err(operation.fail(fault).await),
        };
        operation.set_place(place.place());
        let started = self.places().execs().run_background(claim, &place, id, &spec).await;
        let runs = started.is_ok();
        let info = match operation.finish(started).await {
            Ok(info) => info,
            Err(refusal) => {
                if runs {
                    self.end_unrecorded(caller, id).await;
                }
                return Err(refusal);
            }
        };
        if let Stdin::Bytes(bytes) = stdin {
            self.feed_background(caller, id, bytes, held).await?;
        }
        Ok(ExecItem::new(place.place(), info))
    }

    /// Ends an exec that would outlive its request and whose start could not be recorded: what is refused is not done.
    pub(super) async fn end_unrecorded(&self, caller: &Caller, id: ExecId) {
        const SIGKILL: i32 = 9;
        let ended = match self.permit(caller, Action::ExecControl) {
            Ok(permit) => self.places().execs().signal(&permit, id, SIGKILL, SignalScope::Tree).await,
            Err(fault) => Err(fault),
        };
        match ended {
            Ok(()) => {}
            // It was quicker.
            Err(fault) if fault.code == Code::NotFound => {}
            Err(fault) => tracing::error!(%fault, exec = %id, "an exec that is not on record could not be ended"),
        }
    }

    /// Feeds a background exec what its request brought along, beside the answer, and closes its input.
    async fn feed_background(&self, caller: &Caller, id: ExecId, bytes: Bytes, held: Share) -> Result<(), Refusal> {
        let ask = Ask::of(Action::ExecControl).subject(id).detail("op", "stdin").detail("bytes", bytes.len());
        let operation = self.begin(caller, ask).await?;
        let app = self.clone();
        // A program that does not read must not hold the answer; the bytes are held until it does or ends.
        tokio::spawn(async move {
            let execs = app.places().execs();
            let result = execs.write_stdin(operation.permit(), id, &bytes).await;
            if result.is_ok() {
                // One that took all and ended has closed it.
                let _ = execs.close_stdin(operation.permit(), id).await;
            }
            drop((bytes, held));
            if let Err(refusal) = operation.finish(result).await {
                tracing::debug!(fault = %refusal.fault, exec = %id, "standard input was not taken");
            }
        });
        Ok(())
    }
}

/// Whether an exec is to run as `root` inside.
pub(crate) fn is_root(spec: &rf_types::ExecSpec) -> bool {
    // By number as well, should a place take one.
    matches!(spec.user.as_deref(), Some("root" | "0"))
}

/// Gives an exec its standard input and ends it. Is over when the program does not want it; on a `terminal` only with the
/// program.
pub async fn feed(writer: Option<ByteWriter>, stdin: Stdin, held: Share, terminal: bool) {
    let Some(mut writer) = writer else { return };
    let mut cut = false;
    if let Stdin::Bytes(bytes) = stdin {
        cut = !is_line_end(bytes.last().copied());
        // A program that closes its input has its reasons.
        let _ = writer.write_all(&bytes).await;
    }
    drop(held);
    if terminal {
        type_end(&mut writer, cut).await;
    } else {
        let _ = writer.shutdown().await;
    }
}

/// Whether a line ends with this key, or none was begun.
pub(super) fn is_line_end(last: Option<u8>) -> bool {
    last.is_none_or(|last| matches!(last, b'\n' | b'\r'))
}

/// Whether a client asked for frames.
pub(super) fn wants_frames(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes() == frames::MEDIA_TYPE.as_bytes())
}

/// Runs a command where the user's calls go: waits for its end, streams it as frames (`Accept:
/// application/vnd.ringfence.frames`), or answers at once (`background`).
#[utoipa::path(post, path = "/v1/exec", operation_id = "exec", request_body = ExecAsk,
    responses((status = 200, description = "It ended; or its frames",
            content((ExecAnswer = "application/json"), (String = "application/vnd.ringfence.frames"))),
        (status = 202, body = ExecItem, description = "It runs in the background")))]
async fn exec(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Json(ask): Json<ExecAsk>,
) -> Result<Response<Body>, Refusal> {
    answer(&app, &caller, Where::Routed, &headers, ask).await
}

/// Runs a command in a sandbox; as `POST /v1/exec`.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec", operation_id = "sandbox_exec", request_body = ExecAsk,
    responses((status = 200, description = "It ended; or its frames",
            content((ExecAnswer = "application/json"), (String = "application/vnd.ringfence.frames"))),
        (status = 202, body = ExecItem, description = "It runs in the background")))]
async fn exec_in_sandbox(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    headers: HeaderMap,
    Json(ask): Json<ExecAsk>,
) -> Result<Response<Body>, Refusal> {
    answer(&app, &caller, at, &headers, ask).await
}

/// Runs a command on a machine; as `POST /v1/exec`.
#[utoipa::path(post, path = "/v1/machines/{id}/exec", operation_id = "machine_exec", request_body = ExecAsk,
    responses((status = 200, description = "It ended; or its frames",
            content((ExecAnswer = "application/json"), (String = "application/vnd.ringfence.frames"))),
        (status = 202, body = ExecItem, description = "It runs in the background")))]
async fn exec_on_machine(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    headers: HeaderMap,
    Json(ask): Json<ExecAsk>,
) -> Result<Response<Body>, Refusal> {
    answer(&app, &caller, at, &headers, ask).await
}

async fn answer(
    app: &App,
    caller: &Caller,
    at: Where,
    headers: &HeaderMap,
    ask: ExecAsk,
) -> Result<Response<Body>, Refusal> {
    if ask.background {
        let item = app.start_background(caller, at, ask).await?;
        return Ok(json(StatusCode::ACCEPTED, &item));
    }
    let (running, output_bytes_max) = app.start(caller, at, ask, false).await?;
    if wants_frames(headers) {
        framed(running, caller, async {}.boxed()).await
    } else {
        waited(running, output_bytes_max).await
    }
}

/// Waits for the end and answers with all of it.
pub(super) async fn waited(running: Running, output_bytes_max: usize) -> Result<Response<Body>, Refusal> {
    let started = running.started();
    let Running { mut operation, exec, place: _, stdin, held } = running;
    let room = operation.room();
    let Foreground { id: _, pid: _, stdin: writer, stdout, stderr, resize, exit } = exec;
    let output = Output::new(stdout, stderr, exit);
    // Input goes in while output comes out, or both sides could wait for each other.
    let collecting = std::pin::pin!(output.collect(output_bytes_max, &room));
    let feeding = std::pin::pin!(feed(writer, stdin, held, resize.is_some()));
    let collecting = async {
        match select(collecting, feeding).await {
            Either::Left((collected, _)) => collected,
            Either::Right(((), collecting)) => collecting.await,
        }
    };
    let collected = tokio::select! {
        collected = collecting => collected,
        // What is dropped with it is killed.
        fault = operation.fallen() => Err(fault),
    };
    if let Ok(collected) = &collected {
        operation.set_exit(&collected.exit);
    }
    operation.finish_and_tell(collected, |collected| json(StatusCode::OK, &told(started, collected))).await
}

/// All of an exec that ended.
fn told(started: Started, collected: Collected) -> ExecAnswer {
    let Collected { stdout, stderr, exit } = collected;
    let (stdout_truncated, stderr_truncated) = (stdout.truncated, stderr.truncated);
    let (stdout, stdout_encoding) = stdout.encoded();
    let (stderr, stderr_encoding) = stderr.encoded();
    ExecAnswer {
        started,
        exit: exit.into(),
        stdout,
        stdout_encoding,
        stdout_truncated,
        stderr,
        stderr_encoding,
        stderr_truncated,
    }
}

/// Answers with frames. `after` is done when the last was taken or the client went away.
pub(super) async fn framed(
    mut running: Running,
    caller: &Caller,
    after: BoxFuture<'static, ()>,
) -> Result<Response<Body>, Refusal> {
    running.operation.durable().await?;
    let metrics = running.operation.metrics();
    let frames_out = frames_of(running, caller, metrics);
    // What comes after must come also when the client does not wait for it.
    let after = After(Some(after));
    let stream = frames_out.map(Ok::<_, std::convert::Infallible>).chain(futures::stream::once(async move {
        drop(after);
        Ok(Bytes::new())
    }));
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(frames::MEDIA_TYPE));
    Ok(response)
}

/// Does something when it is dropped, on the runtime.
pub(super) struct After(pub(super) Option<BoxFuture<'static, ()>>);

impl Drop for After {
    fn drop(&mut self) {
        if let Some(after) = self.0.take() {
            tokio::spawn(after);
        }
    }
}

/// Which execs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExecsQuery {
    /// Only those in this sandbox.
    sandbox: Option<String>,
    /// Only those on this machine.
    machine: Option<String>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items, 1 to 1,000; 100 if not given.
    items_max: Option<u32>,
}

/// The user's execs, newest first: those that run, and the last that ended.
#[utoipa::path(get, path = "/v1/execs", params(ExecsQuery), responses((status = 200, body = List<ExecItem>)))]
async fn execs(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let asked: ExecsQuery = input::query(&uri)?;
    let operation = app.begin(&caller, Ask::of(Action::ExecRead).detail("op", "list")).await?;
    let user = operation.permit().user();
    let list = || {
        let place = match (&asked.sandbox, &asked.machine) {
            (None, None) => None,
            (Some(id), None) => Some(PlaceRef::Sandbox(input::id("sandbox", id)?)),
            (None, Some(id)) => Some(PlaceRef::Machine(input::id("machine", id)?)),
            (Some(_), Some(_)) => return Err(Fault::invalid("give either `sandbox` or `machine`")),
        };
        let page = PageQuery { after: asked.after, items_max: asked.items_max };
        paged(app.places().execs().list(user, place), &page, |info| info.id.to_string())
    };
    let List { items, next } = operation.finish(list()).await?;
    // One that was let go meanwhile is not there any more.
    let placed = items.into_iter().filter_map(|info| {
        let place = app.places().execs().place_of(user, info.id).ok()?;
        Some(ExecItem::new(place, info))
    });
    Ok(json(StatusCode::OK, &List { items: placed.collect(), next }))
}

impl App {
    fn exec_item(&self, operation: &Operation, id: ExecId) -> Result<ExecItem, Fault> {
        let user = operation.permit().user();
        let info = self.places().execs().info(user, id)?;
        Ok(ExecItem::new(self.places().execs().place_of(user, id)?, info))
    }
}

/// One exec.
#[utoipa::path(get, path = "/v1/execs/{id}", responses((status = 200, body = ExecItem)))]
async fn exec_read(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let id: ExecId = input::id("exec", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::ExecRead).subject(id)).await?;
    let result = app.exec_item(&operation, id);
    Ok(json(StatusCode::OK, &operation.finish(result).await?))
}

/// Forgets an exec that ended, with its output.
#[utoipa::path(delete, path = "/v1/execs/{id}", responses((status = 204, description = "Forgotten")))]
async fn exec_remove(State(app): State<App>, caller: Caller, Named(id): Named<String>) -> Result<StatusCode, Refusal> {
    let id: ExecId = input::id("exec", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::ExecControl).subject(id).detail("op", "remove")).await?;
    let result = app.places().execs().remove(operation.permit(), id);
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}

/// How long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// Milliseconds, at most an hour, which it is if not given. Then the exec is answered as it is.
    timeout_ms: Option<u64>,
}

/// Waits until an exec has ended.
#[utoipa::path(get, path = "/v1/execs/{id}/wait", params(WaitQuery), responses((status = 200, body = ExecItem)))]
async fn exec_wait(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    uri: Uri,
) -> Result<Response<Body>, Refusal> {
    let asked: WaitQuery = input::query(&uri)?;
    let id: ExecId = input::id("exec", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::ExecRead).subject(id).detail("op", "wait")).await?;
    let most = asked.timeout_ms.unwrap_or(WAIT_MS_MAX).min(WAIT_MS_MAX);
    let wait = async {
        let ended = app.places().execs().wait(operation.permit(), id);
        let ended = async {
            tokio::select! {
                ended = ended => ended,
                fault = operation.fallen() => Err(fault),
            }
        };
        match tokio::time::timeout(std::time::Duration::from_millis(most), ended).await {
            Ok(Err(fault)) => Err(fault),
            // Over or not: as it is now.
            Ok(Ok(_)) | Err(_) => app.exec_item(&operation, id),
        }
    };
    let result = wait.await;
    Ok(json(StatusCode::OK, &operation.finish(result).await?))
}

/// Which output.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// `stdout` (also a terminal's) or `stderr`; `stdout` if not given.
    #[param(inline)]
    stream: Option<LogStream>,
    /// First byte.
    #[serde(default)]
    offset: u64,
    /// Most bytes; not with `follow`.
    length: Option<u64>,
    /// Go on with what it prints until it ends.
    #[serde(default)]
    follow: bool,
}

/// One of two outputs.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum LogStream {
    /// Standard output, or all that a terminal prints.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a background exec printed, as bytes; what was dropped for its size is said in `x-ringfence-truncated`.
#[utoipa::path(get, path = "/v1/execs/{id}/logs", params(LogsQuery),
    responses((status = 200, content_type = "application/octet-stream", description = "The bytes")))]
async fn exec_logs(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    uri: Uri,
) -> Result<Response<Body>, Refusal> {
    let asked: LogsQuery = input::query(&uri)?;
    let id: ExecId = input::id("exec", &id)?;
    let which = match asked.stream {
        None | Some(LogStream::Stdout) => Which::Stdout,
        Some(LogStream::Stderr) => Which::Stderr,
    };
    let operation = app.begin(&caller, Ask::of(Action::ExecRead).subject(id).detail("op", "logs")).await?;
    let execs = app.places().execs();
    let (bytes, truncated) = if asked.follow {
        let (out, err) = if which == Which::Stdout { (asked.offset, 0) } else { (0, asked.offset) };
        match execs.attach(operation.permit(), id, out, err, true) {
            Ok(events) => (only(events, which), false),
            Err(fault) => return Err(operation.fail(fault).await),
        }
    } else {
        match execs.output(operation.permit(), id, which, asked.offset, asked.length) {
            Ok(output) => output,
            Err(fault) => return Err(operation.fail(fault).await),
        }
    };
    let operation = operation.made_durable().await?;
    let mut response = Response::new(super::files::streamed(operation, bytes, asked.length));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if truncated {
        headers.insert("x-ringfence-truncated", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The bytes of one output.
fn only(
    events: BoxStream<'static, Result<ExecEvent, Fault>>,
    which: Which,
) -> BoxStream<'static, Result<Bytes, Fault>> {
    events
        .filter_map(move |event| async move {
            match (event, which) {
                (Ok(ExecEvent::Stdout(bytes)), Which::Stdout) | (Ok(ExecEvent::Stderr(bytes)), Which::Stderr) => {
                    Some(Ok(bytes))
                }
                (Ok(_), _) => None,
                (Err(fault), _) => Some(Err(fault)),
            }
        })
        .boxed()
}

/// Sends a signal to a running exec.
#[utoipa::path(post, path = "/v1/execs/{id}/signal", request_body = SignalAsk,
    responses((status = 204, description = "Sent")))]
async fn exec_signal(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(ask): Json<SignalAsk>,
) -> Result<StatusCode, Refusal> {
    let ask = ask.check()?;
    let id: ExecId = input::id("exec", &id)?;
    app.signal(&caller, id, ask).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl App {
    /// Judges and sends a signal.
    ///
    /// # Errors
    /// What the gate and the place say.
    pub async fn signal(&self, caller: &Caller, id: ExecId, ask: SignalAsk) -> Result<(), Refusal> {
        let record = Ask::of(Action::ExecControl).subject(id).detail("op", "signal").detail("signal", ask.signal);
        let operation = self.begin(caller, record).await?;
        let result = self.places().execs().signal(operation.permit(), id, ask.signal, ask.scope).await;
        operation.finish(result).await
    }
}

/// Whether standard input ends.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StdinQuery {
    /// Close it after these bytes.
    #[serde(default)]
    end: bool,
}

/// Gives a background exec bytes on its standard input; answered when it has taken them.
#[utoipa::path(post, path = "/v1/execs/{id}/stdin", params(StdinQuery),
    request_body(content_type = "application/octet-stream", description = "The bytes"),
    responses((status = 204, description = "Taken")))]
async fn exec_stdin(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let asked: StdinQuery = input::query(&uri)?;
    let id: ExecId = input::id("exec", &id)?;
    let mut operation = app.begin(&caller, Ask::of(Action::ExecControl).subject(id).detail("op", "stdin")).await?;
    let door = &app.config().door;
    let idle = std::time::Duration::from_millis(door.upload_idle_timeout_ms);
    let mut taken = 0;
    let pour = async {
        let mut body = body;
        // Also without a byte: whether there is such an exec is said in any case.
        app.places().execs().info(operation.permit().user(), id)?;
        loop {
            let frame = tokio::time::timeout(idle, body.frame()).await;
            let frame = frame.map_err(|_| input::too_slow(idle))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| Fault::invalid("the connection broke within the body"))?;
            let Ok(piece) = frame.into_data() else { continue };
            taken += piece.len() as u64;
            if taken > door.upload_bytes_max {
                return Err(input::too_large(door.upload_bytes_max));
            }
            app.places().execs().write_stdin(operation.permit(), id, &piece).await?;
        }
        if !asked.end {
            return Ok(());
        }
        match app.places().execs().close_stdin(operation.permit(), id).await {
            // It took all and ended: closed is closed.
            Err(fault) if fault.code == Code::Conflict && taken > 0 => Ok(()),
            closed => closed,
        }
    };
    let result = tokio::select! {
        biased;
        result = pour => result,
        fault = operation.fallen() => Err(fault),
    };
    operation.detail("bytes", taken);
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}

/// Sets the size of a background exec's terminal.
#[utoipa::path(post, path = "/v1/execs/{id}/resize", request_body = ResizeAsk,
    responses((status = 204, description = "Set")))]
async fn exec_resize(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(ask): Json<ResizeAsk>,
) -> Result<StatusCode, Refusal> {
    let id: ExecId = input::id("exec", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::ExecControl).subject(id).detail("op", "resize")).await?;
    let result = app.places().execs().resize(operation.permit(), id, ask.rows, ask.cols);
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}
