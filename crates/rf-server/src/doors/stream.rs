//! Two-way streams over WebSocket: an exec from its start, and an exec in the background from any offset.
//!
//! The first message is JSON, then one frame ([`rf_wire::frames`]) in each binary message, both ways. Output waits for
//! the client and input for the program, each without holding the other up.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{
        FromRequestParts, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderValue, Response, StatusCode, Uri, header, request::Parts},
};
use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _, stream::BoxStream};
use rf_places::{
    ExecEvent,
    place::{ByteWriter, Resize},
    type_end,
};
use rf_policy::Action;
use rf_types::{Code, ExecId, ExecState, Fault, RequestId};
use rf_wire::frames;
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt as _,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{ExecAsk, ResizeAsk, SignalAsk, Started, Stdin},
    app::{App, Caller, Named, Where},
    doors::{
        execs::{Running, is_line_end},
        frames::{end_frame, frame, frame_of, frames_of},
    },
    input,
    operation::{Ask, Operation},
    refusal::Refusal,
    room::Share,
};

/// Longest message from a client, bytes: one frame. Chosen: larger ones would only wait here.
const MESSAGE_MAX: usize = (1 << 20) + frames::HEADER_LEN;
/// Standard input that waits for the program, messages and bytes: past one of them no more is read from the client. Chosen:
/// as much as keeps a program busy, and with one more message of `MESSAGE_MAX` little enough for as many clients as there
/// may be.
const INPUT_MAX: usize = 8;
const INPUT_BYTES: usize = 512 << 10;
/// How long a client may take to its first message.
const FIRST_WITHIN: Duration = Duration::from_secs(15);
/// How often a silent client is asked whether it is there, and how long it may stay silent. Chosen.
const PING_PERIOD: Duration = Duration::from_secs(20);
const SILENCE_MAX: Duration = Duration::from_secs(70);
/// How often a client is asked from which nothing is read, as its program takes nothing: that it has gone is seen only by
/// what is sent to it then. Chosen: two of them, and its command ends.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// How long a client that still sends is heard out after the end was told. Chosen: a slow line's round trip, twice.
const LINGER: Duration = Duration::from_secs(2);
/// After how long without a message it is taken to have nothing more to say. Chosen: whoever waits for the end of a lost
/// place has it within two seconds, 1.5 of which the place's grace may take.
const QUIET: Duration = Duration::from_millis(200);

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(exec_stream))
        .routes(routes!(exec_stream_in_sandbox))
        .routes(routes!(exec_stream_on_machine))
        .routes(routes!(exec_attach))
}

/// A request that may become a WebSocket.
pub struct Socket(Option<WebSocketUpgrade>);

impl FromRequestParts<App> for Socket {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let upgrade = <WebSocketUpgrade as FromRequestParts<App>>::from_request_parts(parts, app).await.ok();
        Ok(Self(upgrade.map(|upgrade| upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX))))
    }
}

impl Socket {
    /// The WebSocket.
    ///
    /// # Errors
    /// 426 for a request that is none.
    pub fn required(self) -> Result<WebSocketUpgrade, Refusal> {
        let refusal = || {
            let fault = Fault::new(
                Code::InvalidRequest,
                "this endpoint is a WebSocket",
                "connect with `Connection: upgrade` and `Upgrade: websocket` over HTTP/1.1",
            );
            Refusal::with_status(fault, StatusCode::UPGRADE_REQUIRED)
        };
        self.0.ok_or_else(refusal)
    }
}

/// Runs a command where the user's calls go, as a two-way stream: the first message is the command as JSON, then
/// frames both ways. Its standard input is open until the client ends it.
#[utoipa::path(get, path = "/v1/exec/stream", operation_id = "exec_stream",
    responses((status = 101, description = "A WebSocket")))]
async fn exec_stream(State(app): State<App>, caller: Caller, socket: Socket) -> Result<Response<Body>, Refusal> {
    Ok(socket.required()?.on_upgrade(move |socket| serve(app, caller, Where::Routed, socket)))
}

/// Runs a command in a sandbox as a two-way stream; as `/v1/exec/stream`.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/exec/stream", operation_id = "sandbox_exec_stream",
    responses((status = 101, description = "A WebSocket")))]
async fn exec_stream_in_sandbox(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    socket: Socket,
) -> Result<Response<Body>, Refusal> {
    open(app, caller, at, socket).await
}

/// Runs a command on a machine as a two-way stream; as `/v1/exec/stream`.
#[utoipa::path(get, path = "/v1/machines/{id}/exec/stream", operation_id = "machine_exec_stream",
    responses((status = 101, description = "A WebSocket")))]
async fn exec_stream_on_machine(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    socket: Socket,
) -> Result<Response<Body>, Refusal> {
    open(app, caller, at, socket).await
}

/// A place that is not there is said before the upgrade, like everywhere else.
async fn open(app: App, caller: Caller, at: Where, socket: Socket) -> Result<Response<Body>, Refusal> {
    if let Some(place) = at.place() {
        let there = app.places().place(caller.who.principal().user, place);
        if let Err(fault) = there {
            let operation = app.begin(&caller, Ask::of(Action::Exec).place(place)).await?;
            return Err(operation.fail(fault).await);
        }
    }
    Ok(socket.required()?.on_upgrade(move |socket| serve(app, caller, at, socket)))
}

/// One exec over one socket.
async fn serve(app: App, caller: Caller, at: Where, mut socket: WebSocket) {
    let started = match first(&mut socket).await {
        Ok(ask) if ask.background => Err(Fault::invalid("a stream is not for the background: use POST").into()),
        // Always open: what a client never sends to, it ends at once.
        Ok(ask) => app.start(&caller, at, ask, true).await.map(|(running, _)| running),
        Err(fault) => Err(fault.into()),
    };
    let mut running = match started {
        Ok(running) => running,
        Err(refusal) => return refuse(socket, &refusal, caller.request).await,
    };
    if let Err(refusal) = running.operation.durable().await {
        return refuse(socket, &refusal, caller.request).await;
    }
    let inputs = Inputs::Own {
        exec: running.exec.id,
        stdin: Writer::start(
            running.exec.stdin.take(),
            std::mem::replace(&mut running.stdin, Stdin::None),
            std::mem::replace(&mut running.held, app.intake().room().share()),
            running.exec.resize.is_some(),
        ),
        resize: running.exec.resize.take(),
    };
    let output = output(running, &caller, &app);
    relay(&app, &caller, socket, output, inputs).await;
}

fn output(running: Running, caller: &Caller, app: &App) -> BoxStream<'static, Bytes> {
    frames_of(running, caller, app.metrics().clone())
}

/// The first message.
async fn first(socket: &mut WebSocket) -> Result<ExecAsk, Fault> {
    let deadline = Instant::now() + FIRST_WITHIN;
    loop {
        match tokio::time::timeout_at(deadline, socket.recv()).await {
            Ok(Some(Ok(Message::Text(text)))) => return input::parse(text.as_bytes()),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Binary(_)))) => {
                return Err(Fault::invalid("the first message must be the command as JSON text"));
            }
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => {
                return Err(Fault::invalid("the connection broke before its first message"));
            }
            Err(_) => {
                return Err(Fault::new(Code::TimedOut, "the first message did not come in time", "send it at once"));
            }
        }
    }
}

/// Says why not, as a frame, and closes.
async fn refuse(mut socket: WebSocket, refusal: &Refusal, request: RequestId) {
    let bytes = frame_of(frames::FAULT, &refusal.body(request));
    let say = async {
        socket.send(Message::Binary(bytes)).await?;
        close(&mut socket).await
    };
    // Whether it is heard is the client's affair.
    if let Ok(Ok(())) = tokio::time::timeout(FIRST_WITHIN, say).await {
        hear_out(&mut socket).await;
    }
}

/// Takes what a client sends until it has heard that this is the end. A connection that is closed with bytes unread is
/// reset, and what was said last, such as how the exec ended, is lost with it (RFC 1122, 4.2.2.13).
async fn hear_out(from_client: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin)) {
    let heard = async {
        // One that is silent has sent nothing that could be left unread, and waits for our end.
        loop {
            match tokio::time::timeout(QUIET, from_client.next()).await {
                Ok(Some(Ok(message))) if !is_close(&message) => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, heard).await;
}

fn is_close(message: &Message) -> bool {
    matches!(message, Message::Close(_))
}

async fn close(socket: &mut WebSocket) -> Result<(), axum::Error> {
    socket.send(Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))).await
}

/// Where a client's frames go.
enum Inputs {
    /// To an exec that this connection started.
    Own { exec: ExecId, stdin: Option<Writer>, resize: Option<Box<dyn Resize>> },
    /// To one in the background.
    Background { exec: ExecId, stdin: Option<Writer> },
}

/// Standard input, written beside everything else.
struct Writer {
    pieces: Option<mpsc::Sender<Piece>>,
    /// Bytes that may wait as well.
    room: Arc<Semaphore>,
    /// Gone with the connection.
    _connected: oneshot::Sender<Infallible>,
}

/// What a client sent, and its share of what may wait.
struct Piece {
    bytes: Bytes,
    _held: Option<OwnedSemaphorePermit>,
}

impl Writer {
    /// Begins to write what came with the command and what comes then.
    fn start(writer: Option<ByteWriter>, stdin: Stdin, held: Share, terminal: bool) -> Option<Self> {
        let mut writer = writer?;
        let (pieces, mut queue) = mpsc::channel::<Piece>(INPUT_MAX);
        let (connected, gone) = oneshot::channel();
        tokio::spawn(async move {
            let mut last = None;
            if let Stdin::Bytes(bytes) = stdin {
                last = bytes.last().copied();
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            drop(held);
            while let Some(piece) = queue.recv().await {
                last = piece.bytes.last().copied();
                // A program that closed its input takes no more.
                if writer.write_all(&piece.bytes).await.is_err() {
                    return;
                }
            }
            if terminal {
                tokio::select! {
                    () = type_end(&mut writer, !is_line_end(last)) => {}
                    // The exec is over, or its client is not there.
                    _ = gone => {}
                }
            } else {
                let _ = writer.shutdown().await;
            }
        });
        Some(Self { pieces: Some(pieces), room: Arc::new(Semaphore::new(INPUT_BYTES)), _connected: connected })
    }

    /// Begins to write to an exec in the background.
    fn background(app: &App, operation: Operation, exec: ExecId) -> Self {
        let (pieces, mut queue) = mpsc::channel::<Piece>(INPUT_MAX);
        let (connected, _) = oneshot::channel();
        let app = app.clone();
        tokio::spawn(async move {
            let mut operation = operation;
            let mut taken = 0;
            let mut result = Ok(());
            while let Some(piece) = queue.recv().await {
                // An empty piece is the end.
                result = if piece.bytes.is_empty() {
                    app.places().execs().close_stdin(operation.permit(), exec).await
                } else {
                    app.places().execs().write_stdin(operation.permit(), exec, &piece.bytes).await
                };
                if result.is_err() || piece.bytes.is_empty() {
                    break;
                }
                taken += piece.bytes.len() as u64;
            }
            operation.detail("bytes", taken);
            let _ = operation.finish(result).await;
        });
        Self { pieces: Some(pieces), room: Arc::new(Semaphore::new(INPUT_BYTES)), _connected: connected }
    }

    fn is_full(&self) -> bool {
        let is_full = |pieces: &mpsc::Sender<Piece>| pieces.capacity() == 0 || self.room.available_permits() == 0;
        self.pieces.as_ref().is_some_and(is_full)
    }

    /// Has a piece written. There is room, or it would not have been read; where nobody wants it, it is dropped.
    fn put(&self, bytes: Bytes) {
        let Some(pieces) = &self.pieces else { return };
        // Of the last one that fits only a part may: it is read already, so all of it waits.
        let length = bytes.len().min(self.room.available_permits());
        let held = u32::try_from(length).ok().and_then(|length| {
            let room = Arc::clone(&self.room);
            room.try_acquire_many_owned(length).ok()
        });
        let _ = pieces.try_send(Piece { bytes, _held: held });
    }
}

/// Resolves when there is room for another piece.
async fn room(inputs: &Inputs) {
    let (Inputs::Own { stdin, .. } | Inputs::Background { stdin, .. }) = inputs;
    if let Some(writer) = stdin.as_ref()
        && let Some(pieces) = &writer.pieces
    {
        // Closed: what comes is dropped, so there is room.
        if pieces.reserve().await.is_ok() {
            // Nobody closes it.
            drop(writer.room.acquire().await);
        }
    }
}

/// Carries frames both ways until the exec ended or the client went away.
async fn relay(
    app: &App,
    caller: &Caller,
    socket: WebSocket,
    output: impl Stream<Item = Bytes> + Send,
    mut inputs: Inputs,
) {
    let (mut to_client, mut from_client) = socket.split();
    let mut output = std::pin::pin!(output);
    let mut ping = tokio::time::interval_at(Instant::now() + PING_PERIOD, PING_PERIOD);
    let mut heard = Instant::now();
    loop {
        let full = {
            let (Inputs::Own { stdin, .. } | Inputs::Background { stdin, .. }) = &inputs;
            stdin.as_ref().is_some_and(Writer::is_full)
        };
        tokio::select! {
            bytes = output.next() => match bytes {
                Some(bytes) => {
                    // Waits for the client: that is the backpressure. One that never reads is ended by its silence.
                    match tokio::time::timeout(SILENCE_MAX, to_client.send(Message::Binary(bytes))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => return,
                    }
                }
                None => {
                    let bye = Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }));
                    if let Ok(Ok(())) = tokio::time::timeout(FIRST_WITHIN, to_client.send(bye)).await {
                        hear_out(&mut from_client).await;
                    }
                    return;
                }
            },
            () = room(&inputs), if full => {}
            // Anew at every turn: while output goes out, that tells it as well.
            () = tokio::time::sleep(PROBE_PERIOD), if full => {
                match tokio::time::timeout(SILENCE_MAX, to_client.send(Message::Ping(Bytes::new()))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
            message = from_client.next(), if !full => {
                heard = Instant::now();
                let wrong = match message {
                    Some(Ok(Message::Binary(bytes))) => take(app, caller, &mut inputs, &bytes).await.err(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => None,
                    Some(Ok(Message::Text(_))) => Some(Fault::invalid("a text where a frame belongs")),
                    // Dropping the output kills what is not in the background.
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if let Some(fault) = wrong {
                    let bytes = frame_of(frames::FAULT, &Refusal::from(fault).body(caller.request));
                    let _ = tokio::time::timeout(FIRST_WITHIN, to_client.send(Message::Binary(bytes))).await;
                    return;
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE_MAX && !full {
                    return;
                }
                match tokio::time::timeout(SILENCE_MAX, to_client.send(Message::Ping(Bytes::new()))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        }
    }
}

/// Takes one frame of the client's. What a program does not take is dropped; what breaks the protocol is a fault. Each
/// that orders something beside input counts as a request, and waits where there are too many.
async fn take(app: &App, caller: &Caller, inputs: &mut Inputs, message: &Bytes) -> Result<(), Fault> {
    let (kind, payload) =
        frames::parse_message(message).map_err(|error| Fault::invalid(format!("a message is no frame: {error:?}")))?;
    let payload = message.slice_ref(payload);
    match kind {
        frames::STDIN if payload.is_empty() => {}
        frames::STDIN => {
            if let Inputs::Background { exec, stdin } = inputs
                && stdin.is_none()
            {
                app.paced(caller).await?;
                let ask = Ask::of(Action::ExecControl).subject(*exec).detail("op", "stdin");
                let operation = app.begin(caller, ask).await.map_err(|refusal| refusal.fault)?;
                *stdin = Some(Writer::background(app, operation, *exec));
            }
            let (Inputs::Own { stdin, .. } | Inputs::Background { stdin, .. }) = inputs;
            if let Some(writer) = stdin {
                writer.put(payload);
            }
        }
        frames::STDIN_END => match inputs {
            Inputs::Own { stdin, .. } => {
                if let Some(writer) = stdin {
                    writer.pieces = None;
                }
            }
            Inputs::Background { exec, stdin } => {
                if stdin.is_none() {
                    app.paced(caller).await?;
                    let ask = Ask::of(Action::ExecControl).subject(*exec).detail("op", "stdin");
                    let operation = app.begin(caller, ask).await.map_err(|refusal| refusal.fault)?;
                    *stdin = Some(Writer::background(app, operation, *exec));
                }
                if let Some(writer) = stdin {
                    writer.put(Bytes::new());
                }
            }
        },
        frames::RESIZE => {
            let size: ResizeAsk = input::parse(&payload)?;
            app.paced(caller).await?;
            match inputs {
                Inputs::Own { resize, .. } => match resize {
                    // A terminal that is gone has no size; its end is told by the stream.
                    Some(resize) => drop(resize.resize(size.rows, size.cols)),
                    None => return Err(Fault::invalid("this exec has no terminal")),
                },
                Inputs::Background { exec, .. } => {
                    let ask = Ask::of(Action::ExecControl).subject(*exec).detail("op", "resize");
                    let operation = app.begin(caller, ask).await.map_err(|refusal| refusal.fault)?;
                    let result = app.places().execs().resize(operation.permit(), *exec, size.rows, size.cols);
                    operation.finish(result).await.map_err(|refusal| refusal.fault)?;
                }
            }
        }
        frames::SIGNAL => {
            let ask = input::parse::<SignalAsk>(&payload)?.check()?;
            app.paced(caller).await?;
            let (Inputs::Own { exec, .. } | Inputs::Background { exec, .. }) = inputs;
            match app.signal(caller, *exec, ask).await {
                Ok(()) => {}
                // It ended meanwhile, which the stream tells.
                Err(refusal) if refusal.fault.code == Code::NotFound => {}
                Err(refusal) => return Err(refusal.fault),
            }
        }
        other => return Err(Fault::invalid(format!("a client sends no frame of kind {other}"))),
    }
    Ok(())
}

/// From where to attach.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AttachQuery {
    /// First byte of standard output.
    #[serde(default)]
    stdout_offset: u64,
    /// First byte of standard error.
    #[serde(default)]
    stderr_offset: u64,
    /// Go on with what it prints until it ends; so if not given.
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// Follows a background exec: what it printed from the given offsets on, then what it prints, then how it ended; as a
/// WebSocket, which also takes frames for its input, terminal and signals, or as a body of frames.
#[utoipa::path(get, path = "/v1/execs/{id}/attach", params(AttachQuery),
    responses((status = 101, description = "A WebSocket"),
        (status = 200, content_type = "application/vnd.ringfence.frames", description = "Frames")))]
async fn exec_attach(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    uri: Uri,
    socket: Socket,
) -> Result<Response<Body>, Refusal> {
    let asked: AttachQuery = input::query(&uri)?;
    let id: ExecId = input::id("exec", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::ExecRead).subject(id).detail("op", "attach")).await?;
    let user = operation.permit().user();
    let execs = app.places().execs();
    let begin = || {
        let info = execs.info(user, id)?;
        let place = execs.place_of(user, id)?;
        let events = execs.attach(operation.permit(), id, asked.stdout_offset, asked.stderr_offset, asked.follow)?;
        Ok((Started { id, place, pid: info.pid }, events))
    };
    let (started, events) = match begin() {
        Ok(begun) => begun,
        Err(fault) => return Err(operation.fail(fault).await),
    };
    let operation = operation.made_durable().await?;
    let frames_out = replay(started, events, operation, caller.request);
    match socket.0 {
        Some(socket) => {
            let inputs = Inputs::Background { exec: id, stdin: None };
            Ok(socket.on_upgrade(move |socket| async move { relay(&app, &caller, socket, frames_out, inputs).await }))
        }
        None => {
            let mut response = Response::new(Body::from_stream(frames_out.map(Ok::<_, Infallible>)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(frames::MEDIA_TYPE));
            Ok(response)
        }
    }
}

/// The frames of an exec in the background.
fn replay(
    started: Started,
    events: BoxStream<'static, Result<ExecEvent, Fault>>,
    operation: Operation,
    request: RequestId,
) -> BoxStream<'static, Bytes> {
    struct Replay {
        first: Option<Bytes>,
        /// Output that did not fit one frame.
        rest: Option<(u8, Bytes)>,
        events: BoxStream<'static, Result<ExecEvent, Fault>>,
        operation: Option<Operation>,
        request: RequestId,
    }
    fn cut(kind: u8, mut bytes: Bytes) -> (Bytes, Option<(u8, Bytes)>) {
        let piece = bytes.split_to(bytes.len().min(1 << 20));
        (frame_of(kind, &piece), Some((kind, bytes)).filter(|(_, rest)| !rest.is_empty()))
    }
    let first = Some(frame(frames::STARTED, &started));
    let events = operation.while_standing(events);
    let state = Replay { first, rest: None, events, operation: Some(operation), request };
    futures::stream::unfold(state, |mut s| async move {
        if let Some(first) = s.first.take() {
            return Some((first, s));
        }
        loop {
            if let Some((kind, bytes)) = s.rest.take() {
                let (piece, rest) = cut(kind, bytes);
                s.rest = rest;
                return Some((piece, s));
            }
            s.operation.as_ref()?;
            match s.events.next().await {
                Some(Ok(ExecEvent::Stdout(bytes))) => s.rest = Some((frames::STDOUT, bytes)),
                Some(Ok(ExecEvent::Stderr(bytes))) => s.rest = Some((frames::STDERR, bytes)),
                // Said by the logs endpoint; the frames have no word for it.
                Some(Ok(ExecEvent::Truncated(_))) => {}
                Some(Ok(ExecEvent::Ended(state))) => {
                    return Some((finish(s.operation.take()?, Ok(Some(state)), s.request).await?, s));
                }
                Some(Err(fault)) => return Some((finish(s.operation.take()?, Err(fault), s.request).await?, s)),
                // It runs on, and nobody wanted to follow.
                None => return finish(s.operation.take()?, Ok(None), s.request).await.map(|bytes| (bytes, s)),
            }
        }
    })
    .boxed()
}

/// Ends an attachment; the last frame, if there is one.
async fn finish(operation: Operation, last: Result<Option<ExecState>, Fault>, request: RequestId) -> Option<Bytes> {
    match operation.finish(last).await {
        Ok(state) => state.map(|state| end_frame(state, request)),
        Err(refusal) => Some(frame_of(frames::FAULT, &refusal.body(request))),
    }
}
