//! `process.Process`: execs of a sandbox by their pids, followed live.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use buffa::MessageField;
use bytes::Bytes;
use connectrpc::{ConnectError, RequestContext, Response, ServiceResult, ServiceStream};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use rf_e2b::rpc::process::{
    __buffa::oneof::{
        process_event::{Event, data_event::Output},
        process_input::Input,
        process_selector::Selector,
        stream_input_request,
    },
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse, ProcessConfig,
    ProcessEvent, ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest, SendInputResponse, SendSignalRequest,
    SendSignalResponse, Signal, StartRequest, StartResponse, StreamInputRequest, StreamInputResponse, UpdateRequest,
    UpdateResponse,
    process_event::{DataEvent, EndEvent, KeepAlive, StartEvent},
};
use rf_places::{ExecEvent, LiveEvents, LiveName, LiveNote, place::Place, sandbox::SandboxPlace};
use rf_policy::Action;
use rf_types::{Code, ExecId, ExecSpec, ExecState, ExitReport, Fault, Program, Pty, Rlimits, SandboxEnv};
use tokio::sync::Mutex;

use super::{
    Asked,
    rpc::{asked, error, keepalive, no_such_user, refused},
};
use crate::{
    doors::execs::is_root,
    input,
    operation::{Ask, Operation},
};

/// Most bytes of one event; specified by the clients' protocol.
const PIPE_BYTES_MAX: usize = 32 << 10;
const TERMINAL_BYTES_MAX: usize = 16 << 10;
/// Longest environment and tag that are kept of a running exec, for lists. Chosen.
const LISTED_ENV_BYTES_MAX: usize = 16 << 10;
const LISTED_TAG_CHARS_MAX: usize = 1_024;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// `List`.
pub(super) async fn list(context: RequestContext, _: ListRequest) -> ServiceResult<ListResponse> {
    let asked = asked(&context)?;
    let ask = Ask::of(Action::ExecRead).place(asked.place()).detail("op", "list");
    let operation = asked.app.begin(&asked.caller, ask).await.map_err(refused)?;
    let live = asked.app.places().execs().live(operation.permit().user(), asked.place());
    let processes = live.into_iter().map(|info| {
        let mut argv = info.argv.into_iter();
        let config = ProcessConfig {
            cmd: argv.next().unwrap_or_default(),
            args: argv.collect(),
            envs: BTreeMap::from(info.note.env).into_iter().collect(),
            cwd: info.note.cwd,
        };
        ProcessInfo { config: MessageField::some(config), pid: info.pid, tag: info.note.tag }
    });
    let processes = operation.finish(Ok(processes.collect())).await.map_err(refused)?;
    Response::ok(ListResponse { processes })
}

/// The exec that a request asks for.
fn spec(asked: &Asked, context: &RequestContext, request: &mut StartRequest) -> Result<ExecSpec, ConnectError> {
    let config = request.process.as_option_mut().ok_or_else(|| ConnectError::invalid_argument("process is missing"))?;
    let mut argv = vec![std::mem::take(&mut config.cmd)];
    argv.append(&mut config.args);
    let pty = request.pty.as_option().map(|pty| {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let (rows, cols) = pty.size.as_option().map_or((0, 0), |size| (size.rows, size.cols));
        Pty { rows: cells(rows), cols: cells(cols) }
    });
    let cwd = match config.cwd.as_deref() {
        None | Some("" | "~") => None,
        Some(home) if home.starts_with("~/") => Some(home[2..].trim_start_matches('/').to_owned()),
        Some(other) if other.starts_with('~') => {
            return Err(ConnectError::invalid_argument("cannot expand user-specific home dir"));
        }
        Some(cwd) => Some(cwd.to_owned()),
    };
    let time_left = context.time_remaining();
    Ok(ExecSpec {
        program: Program::Argv(argv),
        env: config.envs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        // What E2B's sandboxes have: `PATH`, `HOME`, `USER` and `LOGNAME`, and what was asked for.
        no_language: true,
        cwd: cwd.filter(|cwd| !cwd.is_empty()),
        user: asked.user.clone(),
        // A terminal is its own input.
        stdin: pty.is_none() && request.stdin.unwrap_or(true),
        pty,
        timeout_ms: time_left.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)),
        rlimits: Rlimits::default(),
    })
}

/// What is listed of an exec: a long environment is not kept for that.
fn note(spec: &ExecSpec, tag: Option<String>) -> LiveNote {
    let bytes: usize = spec.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    let env = if bytes <= LISTED_ENV_BYTES_MAX { spec.env.clone().into() } else { SandboxEnv::default() };
    let tag = tag.map(|tag| tag.chars().take(LISTED_TAG_CHARS_MAX).collect());
    LiveNote { tag, env, cwd: spec.cwd.clone(), servers_own: false }
}

/// `Start`.
pub(super) async fn start(
    context: RequestContext,
    mut request: StartRequest,
) -> ServiceResult<ServiceStream<StartResponse>> {
    let asked = asked(&context)?;
    let (app, caller) = (&asked.app, &asked.caller);
    let mut spec = spec(&asked, &context, &mut request)?;
    let redactor = app.redactor();
    let mut record = Ask::of(Action::Exec).place(asked.place());
    if let Program::Argv(argv) = &spec.program {
        record = record.detail("argv", redactor.argv(argv, &[]));
    }
    if !spec.env.is_empty() {
        record = record.detail("env", redactor.env(&spec.env));
    }
    let note = note(&spec, request.tag.take());
    app.fill_from_template(caller, asked.target.id, &mut spec).map_err(|fault| error(&fault))?;
    for (name, text) in [("cwd", &spec.cwd), ("as", &spec.user)] {
        if let Some(text) = text {
            record = record.detail(name, redactor.text(text, &[]));
        }
    }
    let id = ExecId::random();
    let judged = app.claim_exec(caller, is_root(&spec));
    let (operation, claim) = app.begin_judged(caller, record.subject(id), judged).await.map_err(refused)?;
    let fallen = operation.fallen();
    // Whoever comes first: the one that starts it, or its end.
    let operation = Arc::new(Mutex::new(Some(operation)));
    let ending = Arc::clone(&operation);
    let ended = Box::new(move |state| ended(ending, state).boxed());
    let place: Arc<dyn Place> = Arc::clone(&asked.target.place) as Arc<dyn Place>;
    let started = app.places().execs().run_live(claim, &place, id, &spec, note, ended).await;
    let (pid, events) = match started {
        Ok(started) => started,
        Err(fault) => {
            let failed = start_error(&fault, &spec);
            if let Some(operation) = operation.lock().await.take() {
                operation.fail(fault).await;
            }
            return Err(failed);
        }
    };
    let recorded = match operation.lock().await.as_mut() {
        Some(operation) => operation.durable().await,
        None => Ok(()),
    };
    if let Err(refusal) = recorded {
        app.end_unrecorded(caller, id).await;
        return Err(refused(refusal));
    }
    let place = Some(Arc::clone(&asked.target.place));
    let talk = Talk { fallen, place, ..Talk::new(pid, events, spec.pty.is_some(), keepalive(&context)) };
    Response::stream_ok(talk.stream(|event| StartResponse { event: MessageField::some(event) }))
}

/// Records how an exec ended.
async fn ended(operation: Arc<Mutex<Option<Operation>>>, state: ExecState) {
    let Some(mut operation) = operation.lock().await.take() else { return };
    let result = match state {
        ExecState::Exited(report) => {
            operation.set_exit(&report);
            Ok(())
        }
        ExecState::Running | ExecState::Lost => Err(Fault::new(Code::PlaceLost, "the sandbox went away", "")),
    };
    if let Err(refusal) = operation.finish(result).await {
        tracing::debug!(fault = %refusal.fault, "an exec ended badly");
    }
}

/// Why a program was not started, in the words that the clients know.
fn start_error(fault: &Fault, spec: &ExecSpec) -> ConnectError {
    if rf_places::is_no_such_user(fault) {
        return no_such_user(spec.user.as_deref());
    }
    if rf_places::is_no_directory(fault) {
        let cwd = spec.cwd.as_deref().unwrap_or("~");
        return ConnectError::invalid_argument(format!("cwd '{cwd}' does not exist"));
    }
    error(fault)
}

/// `Connect`.
pub(super) async fn connect(
    context: RequestContext,
    request: ConnectRequest,
) -> ServiceResult<ServiceStream<ConnectResponse>> {
    let asked = asked(&context)?;
    let (operation, exec) = begin(&asked, Action::ExecRead, "connect", request.process.as_option()).await?;
    let execs = asked.app.places().execs();
    let followed = execs.has_terminal(operation.permit().user(), exec);
    let followed = followed.and_then(|pty| execs.follow(operation.permit(), exec).map(|followed| (pty, followed)));
    let fallen = operation.fallen();
    let (pty, (pid, events)) = operation.finish(followed).await.map_err(refused)?;
    let place = Some(Arc::clone(&asked.target.place));
    let talk = Talk { fallen, place, ..Talk::new(pid, events, pty, keepalive(&context)) };
    Response::stream_ok(talk.stream(|event| ConnectResponse { event: MessageField::some(event) }))
}

/// Begins an operation on the process that a request names.
async fn begin(
    asked: &Asked,
    action: Action,
    op: &'static str,
    selector: Option<&ProcessSelector>,
) -> Result<(Operation, ExecId), ConnectError> {
    let selector = selector.and_then(|selector| selector.selector.as_ref());
    let (name, missing) = match selector {
        Some(Selector::Pid(pid)) => (LiveName::Pid(*pid), format!("process with pid {pid} not found")),
        Some(Selector::Tag(tag)) => (LiveName::Tag(tag), format!("process with tag {tag} not found")),
        None => return Err(ConnectError::invalid_argument("the process is not named")),
    };
    let user = asked.caller.who.principal().user;
    let found = asked.app.places().execs().named(user, asked.place(), name);
    let mut ask = Ask::of(action).place(asked.place()).detail("op", op);
    if let Ok(exec) = &found {
        ask = ask.subject(exec);
    }
    // Judged first, so that only who is let in learns what is there.
    let operation = asked.app.begin(&asked.caller, ask).await.map_err(refused)?;
    match found {
        Ok(exec) => Ok((operation, exec)),
        Err(fault) => {
            let refusal = operation.fail(fault).await;
            let is_missing = refusal.fault.code == Code::NotFound;
            Err(if is_missing { ConnectError::not_found(missing) } else { refused(refusal) })
        }
    }
}

/// `Update`.
pub(super) async fn update(context: RequestContext, request: UpdateRequest) -> ServiceResult<UpdateResponse> {
    let asked = asked(&context)?;
    let (operation, exec) = begin(&asked, Action::ExecControl, "resize", request.process.as_option()).await?;
    let result = match request.pty.as_option() {
        Some(pty) => {
            let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
            let (rows, cols) = pty.size.as_option().map_or((0, 0), |size| (cells(size.rows), cells(size.cols)));
            asked.app.places().execs().set_size(operation.permit(), exec, rows, cols)
        }
        None => Ok(()),
    };
    match operation.finish(result).await {
        Ok(()) => Response::ok(UpdateResponse {}),
        Err(refusal) if refusal.fault.code == Code::Conflict => {
            Err(ConnectError::internal("error resizing tty: tty not assigned to process"))
        }
        Err(refusal) => Err(refused(refusal)),
    }
}

/// Gives a process what it is sent.
async fn feed(asked: &Asked, operation: &Operation, exec: ExecId, input: &ProcessInput) -> Result<usize, Fault> {
    let execs = asked.app.places().execs();
    let pty = execs.has_terminal(operation.permit().user(), exec)?;
    let wrong = |message: &str| Fault::new(Code::Internal, message, "");
    let bytes = match (&input.input, pty) {
        (Some(Input::Stdin(bytes)), false) | (Some(Input::Pty(bytes)), true) => bytes,
        (Some(Input::Stdin(_)), true) => {
            return Err(wrong("error writing to stdin: tty assigned to process — input should be written to the pty"));
        }
        (Some(Input::Pty(_)), false) => {
            return Err(wrong("error writing to tty: tty not assigned to process"));
        }
        (None, _) => return Err(no_input()),
    };
    match execs.feed(operation.permit(), exec, bytes).await {
        Ok(()) => Ok(bytes.len()),
        Err(fault) if fault.code == Code::Conflict => Err(wrong("error writing to stdin: stdin not enabled or closed")),
        Err(fault) => Err(fault),
    }
}

fn no_input() -> Fault {
    Fault::new(Code::Unsupported, "invalid input type", "")
}

/// `SendInput`.
pub(super) async fn send_input(context: RequestContext, request: SendInputRequest) -> ServiceResult<SendInputResponse> {
    let asked = asked(&context)?;
    let (mut operation, exec) = begin(&asked, Action::ExecControl, "stdin", request.process.as_option()).await?;
    let input = request.input.as_option().cloned().unwrap_or_default();
    let (Some(Input::Stdin(bytes) | Input::Pty(bytes)), mut share) = (&input.input, operation.room().share()) else {
        return Err(refused(operation.fail(no_input()).await));
    };
    // A program that does not read may let it wait for long.
    let fed = match share.grow(bytes.len()) {
        true => feed(&asked, &operation, exec, &input).await,
        false => Err(input::no_room()),
    };
    operation.detail("bytes", fed.as_ref().copied().unwrap_or(0));
    operation.finish(fed).await.map_err(refused)?;
    Response::ok(SendInputResponse {})
}

/// `StreamInput`: one operation for all of a stream.
pub(super) async fn stream_input(
    context: RequestContext,
    mut requests: ServiceStream<StreamInputRequest>,
) -> ServiceResult<StreamInputResponse> {
    use stream_input_request::Event;

    let asked = asked(&context)?;
    let mut to: Option<(Operation, ExecId)> = None;
    let mut fallen = std::future::pending().boxed();
    let mut bytes = 0;
    let result = loop {
        let request = tokio::select! {
            biased;
            request = requests.next() => request,
            fault = &mut fallen => break Err(error(&fault)),
        };
        let request = match request {
            None => break Ok(()),
            Some(Ok(request)) => request,
            Some(Err(error)) => break Err(error),
        };
        match request.event {
            Some(Event::Start(start)) => {
                if let Some((mut operation, _)) = to.take() {
                    operation.detail("bytes", std::mem::take(&mut bytes));
                    operation.finish(Ok(())).await.map_err(refused)?;
                    // The request itself was counted for the first.
                    if let Err(fault) = asked.app.paced(&asked.caller).await {
                        break Err(error(&fault));
                    }
                }
                let begun = begin(&asked, Action::ExecControl, "stdin", start.process.as_option()).await?;
                fallen = begun.0.fallen();
                to = Some(begun);
            }
            Some(Event::Data(data)) => {
                let Some((operation, exec)) = &to else {
                    break Err(ConnectError::invalid_argument("the stream begins without naming a process"));
                };
                let input = data.input.as_option().cloned().unwrap_or_default();
                // A program that does not read may let it wait for long.
                let fed = tokio::select! {
                    biased;
                    fed = feed(&asked, operation, *exec, &input) => fed,
                    fault = &mut fallen => Err(fault),
                };
                match fed {
                    Ok(count) => bytes += count,
                    Err(fault) => break Err(error(&fault)),
                }
            }
            Some(Event::Keepalive(_)) => {}
            None => break Err(ConnectError::unimplemented("invalid event type")),
        }
    };
    if let Some((mut operation, _)) = to {
        operation.detail("bytes", bytes);
        let done = match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(Fault::invalid(error.message.clone().unwrap_or_default())),
        };
        // What the stream ended with is the answer.
        if let Err(refusal) = operation.finish(done).await
            && result.is_ok()
        {
            return Err(refused(refusal));
        }
    }
    result?;
    Response::ok(StreamInputResponse {})
}

/// `SendSignal`: the two that there are.
pub(super) async fn send_signal(
    context: RequestContext,
    request: SendSignalRequest,
) -> ServiceResult<SendSignalResponse> {
    let asked = asked(&context)?;
    let (mut operation, exec) = begin(&asked, Action::ExecControl, "signal", request.process.as_option()).await?;
    let signal = match request.signal.as_known() {
        Some(Signal::SIGNAL_SIGKILL) => SIGKILL,
        Some(Signal::SIGNAL_SIGTERM) => SIGTERM,
        Some(Signal::SIGNAL_UNSPECIFIED) | None => {
            let fault = Fault::new(Code::Unsupported, "invalid signal", "send SIGTERM or SIGKILL");
            return Err(refused(operation.fail(fault).await));
        }
    };
    operation.detail("signal", signal);
    let sent = asked.app.places().execs().stop(operation.permit(), exec, signal).await;
    operation.finish(sent).await.map_err(refused)?;
    Response::ok(SendSignalResponse {})
}

/// `CloseStdin`.
pub(super) async fn close_stdin(
    context: RequestContext,
    request: CloseStdinRequest,
) -> ServiceResult<CloseStdinResponse> {
    let asked = asked(&context)?;
    let (operation, exec) = begin(&asked, Action::ExecControl, "close_stdin", request.process.as_option()).await?;
    let execs = asked.app.places().execs();
    if let Ok(true) = execs.has_terminal(operation.permit().user(), exec) {
        let fault = Fault::new(Code::Conflict, "a terminal's input is not closed", "");
        operation.fail(fault).await;
        let text = "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead";
        return Err(ConnectError::unknown(text));
    }
    let closed = match execs.end_input(operation.permit(), exec).await {
        // Closed already, or never open.
        Err(fault) if fault.code == Code::Conflict => Ok(()),
        closed => closed,
    };
    operation.finish(closed).await.map_err(refused)?;
    Response::ok(CloseStdinResponse {})
}

/// The events of one process on their way to a client.
struct Talk {
    started: Option<u32>,
    events: LiveEvents,
    pty: bool,
    every: Duration,
    waiting: VecDeque<Output>,
    over: bool,
    /// Resolves when who follows may no longer.
    fallen: BoxFuture<'static, Fault>,
    place: Option<Arc<SandboxPlace>>,
}

impl Talk {
    fn new(pid: u32, events: LiveEvents, pty: bool, every: Duration) -> Self {
        let fallen = std::future::pending().boxed();
        Self { started: Some(pid), events, pty, every, waiting: VecDeque::new(), over: false, fallen, place: None }
    }

    fn stream<T: Send + 'static>(self, wrap: fn(ProcessEvent) -> T) -> ServiceStream<T> {
        let events = stream::unfold(self, |mut talk| async move { Some((talk.next().await?, talk)) });
        events.map(move |event| event.map(|event| wrap(ProcessEvent { event: Some(event) }))).boxed()
    }

    async fn next(&mut self) -> Option<Result<Event, ConnectError>> {
        if let Some(pid) = self.started.take() {
            return Some(Ok(StartEvent { pid }.into()));
        }
        loop {
            if let Some(output) = self.waiting.pop_front() {
                return Some(Ok(DataEvent { output: Some(output) }.into()));
            }
            if self.over {
                return None;
            }
            let event = tokio::select! {
                biased;
                event = self.events.next() => event,
                fault = &mut self.fallen => {
                    self.over = true;
                    return Some(Err(error(&fault)));
                }
                () = tokio::time::sleep(self.every) => return Some(Ok(KeepAlive {}.into())),
            };
            match event {
                Some(ExecEvent::Stdout(bytes)) if self.pty => self.cut(bytes, TERMINAL_BYTES_MAX, Output::Pty),
                Some(ExecEvent::Stdout(bytes)) => self.cut(bytes, PIPE_BYTES_MAX, Output::Stdout),
                Some(ExecEvent::Stderr(bytes)) => self.cut(bytes, PIPE_BYTES_MAX, Output::Stderr),
                Some(ExecEvent::Truncated(_)) => {}
                Some(ExecEvent::Ended(ExecState::Exited(report))) => {
                    self.over = true;
                    return Some(match report.timed_out {
                        true => Err(ConnectError::deadline_exceeded("the process was killed: its time is up")),
                        false => Ok(end_event(&report).into()),
                    });
                }
                Some(ExecEvent::Ended(ExecState::Running | ExecState::Lost)) | None => {
                    self.over = true;
                    if self.place.as_ref().is_some_and(|place| place.is_lost()) {
                        // The stream is broken off with its sandbox; an end of it would be another story.
                        return std::future::pending().await;
                    }
                    return Some(Err(ConnectError::unavailable(super::NOT_FOUND)));
                }
            }
        }
    }

    fn cut(&mut self, mut bytes: Bytes, max: usize, kind: fn(Bytes) -> Output) {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(max));
            self.waiting.push_back(kind(piece));
        }
    }
}

/// How a process ended, as Go says it.
fn end_event(report: &ExitReport) -> EndEvent {
    let (exit_code, exited, status) = match (report.code, report.signal) {
        (Some(code), _) => (code, true, format!("exit status {code}")),
        (None, Some(signal)) => (-1, false, format!("signal: {}", signal_name(signal))),
        (None, None) => (-1, false, "exit status unknown".to_owned()),
    };
    let error = (exit_code != 0).then(|| status.clone());
    EndEvent { exit_code, exited, status, error }
}

/// The words for a signal of Linux that Go has.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use rf_types::Usage;

    use super::*;

    fn report(code: Option<i32>, signal: Option<i32>) -> ExitReport {
        ExitReport { code, signal, timed_out: false, usage: Usage::default() }
    }

    #[test]
    fn ends_are_said_as_go_says_them() {
        let of = |code, signal| {
            let EndEvent { exit_code, exited, status, error } = end_event(&report(code, signal));
            (exit_code, exited, status, error)
        };
        assert_eq!(of(Some(0), None), (0, true, "exit status 0".into(), None));
        assert_eq!(of(Some(3), None), (3, true, "exit status 3".into(), Some("exit status 3".into())));
        assert_eq!(of(None, Some(9)), (-1, false, "signal: killed".into(), Some("signal: killed".into())));
        assert_eq!(of(None, Some(34)).2, "signal: signal 34");
    }

    #[tokio::test(start_paused = true)]
    async fn a_talk_begins_with_the_pid_cuts_output_and_ends_with_the_exit() {
        let events = [
            ExecEvent::Stdout(vec![b'o'; PIPE_BYTES_MAX + 1].into()),
            ExecEvent::Stderr(Bytes::from_static(b"e")),
            ExecEvent::Ended(ExecState::Exited(report(Some(1), None))),
        ];
        let later = stream::iter(events).then(|event| async {
            tokio::time::sleep(Duration::from_secs(70)).await;
            event
        });
        let talk = Talk::new(7, later.boxed(), false, Duration::from_secs(50));
        let said: Vec<_> = talk.stream(|event| event).map(|event| event.unwrap().event.unwrap()).collect().await;
        let short: Vec<_> = (said.iter())
            .map(|event| match event {
                Event::Start(start) => format!("start {}", start.pid),
                Event::Data(data) => match data.output.as_ref().unwrap() {
                    Output::Stdout(bytes) => format!("stdout {}", bytes.len()),
                    Output::Stderr(bytes) => format!("stderr {}", bytes.len()),
                    Output::Pty(bytes) => format!("pty {}", bytes.len()),
                },
                Event::End(end) => format!("end {}", end.exit_code),
                Event::Keepalive(_) => "keepalive".to_owned(),
            })
            .collect();
        let expected =
            ["start 7", "keepalive", "stdout 32768", "stdout 1", "keepalive", "stderr 1", "keepalive", "end 1"];
        assert_eq!(short, expected);
    }
}
