//! The two services over Connect: framing, codecs, compression of requests and deadlines are the library's; here is what
//! a handler gets, and what our faults are in the protocol's words.

use std::{
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response},
};
use bytes::Bytes;
use connectrpc::{
    CompressionPolicy, ConnectError, ConnectRpcService, DeadlinePolicy, ErrorCode, Limits, RequestContext, Router,
    client_streaming_handler_fn, handler_fn, streaming_handler_fn,
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use rf_places::detail::DetailFault;
use rf_types::{Code, Fault};
use tokio::time::{Sleep, sleep};
use tower::Service as _;

use super::{Asked, NOT_FOUND, envelopes, filesystem, process};
use crate::{input, refusal::Refusal, room::Share};

/// The paths of the two services.
const PROCESS: &str = "process.Process";
const FILESYSTEM: &str = "filesystem.Filesystem";
/// Largest message, and body of a call with one. Chosen: as the protocol's other servers have it.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How often a silent stream says that it is there, unless the client says how often.
const KEEPALIVE_TIME: Duration = Duration::from_secs(90);
/// Most often, so that nobody is made to talk without end.
const KEEPALIVE_TIME_MIN: Duration = Duration::from_secs(1);

static SERVICE: LazyLock<ConnectRpcService> = LazyLock::new(|| {
    let router = Router::new()
        .route(PROCESS, "List", handler_fn(process::list))
        .route_server_stream(PROCESS, "Start", streaming_handler_fn(process::start))
        .route_server_stream(PROCESS, "Connect", streaming_handler_fn(process::connect))
        .route(PROCESS, "Update", handler_fn(process::update))
        .route_client_stream(PROCESS, "StreamInput", client_streaming_handler_fn(process::stream_input))
        .route(PROCESS, "SendInput", handler_fn(process::send_input))
        .route(PROCESS, "SendSignal", handler_fn(process::send_signal))
        .route(PROCESS, "CloseStdin", handler_fn(process::close_stdin))
        .route(FILESYSTEM, "Stat", handler_fn(filesystem::stat))
        .route(FILESYSTEM, "MakeDir", handler_fn(filesystem::make_dir))
        .route(FILESYSTEM, "Move", handler_fn(filesystem::rename))
        .route(FILESYSTEM, "ListDir", handler_fn(filesystem::list_dir))
        .route(FILESYSTEM, "Remove", handler_fn(filesystem::remove))
        .route_server_stream(FILESYSTEM, "WatchDir", streaming_handler_fn(filesystem::watch_dir))
        .route(FILESYSTEM, "CreateWatcher", handler_fn(filesystem::create_watcher))
        .route(FILESYSTEM, "GetWatcherEvents", handler_fn(filesystem::get_watcher_events))
        .route(FILESYSTEM, "RemoveWatcher", handler_fn(filesystem::remove_watcher));
    let limits = Limits::default()
        .with_max_message_size(MESSAGE_BYTES_MAX)
        .with_max_request_body_size(MESSAGE_BYTES_MAX + (MESSAGE_BYTES_MAX >> 4));
    ConnectRpcService::new(router)
        .with_limits(limits)
        // What clients ask for is never compressed: they expect each event at once.
        .with_compression_policy(CompressionPolicy::disabled())
        .with_deadline_policy(DeadlinePolicy::new().with_enforce_on_streams(true))
});

/// Whether a path is one of the services'.
pub(super) fn is_path(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|rest| rest.split_once('/')).map(|(service, _)| service);
    matches!(service, Some(PROCESS | FILESYSTEM))
}

/// Answers one call.
pub(super) async fn answer(asked: Asked, mut request: Request<Body>) -> Response<Body> {
    let room = asked.app.intake().room();
    // A stream of input lasts as long as its client likes, and each of its messages has its own bound.
    request = if request.uri().path().ends_with("/StreamInput") {
        request.map(|body| envelopes::counted(body, room))
    } else {
        let time = Duration::from_millis(asked.app.config().door.body_timeout_ms);
        let share = room.share();
        request.map(|body| Body::new(Metered { body, share, length: 0, late: Box::pin(sleep(time)) }))
    };
    request.extensions_mut().insert(Arc::new(asked));
    let mut service = SERVICE.clone();
    match service.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

/// A call's body on its way into memory: it comes in time, and as far as there is room.
struct Metered {
    body: Body,
    share: Share,
    length: usize,
    late: Pin<Box<Sleep>>,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                ready!(self.late.as_mut().poll(context));
                let late = Fault::new(Code::TimedOut, "the body did not come in time", "send the body at once");
                return Poll::Ready(Some(Err(axum::Error::new(late))));
            }
            Poll::Ready(frame) => frame,
        };
        if let Some(Ok(frame)) = &frame {
            self.length += frame.data_ref().map_or(0, Bytes::len);
            let length = self.length;
            // Past the bound of a message the library refuses it.
            if length <= MESSAGE_BYTES_MAX && !self.share.grow(length) {
                return Poll::Ready(Some(Err(axum::Error::new(input::no_room()))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What [`answer`] gave the call along.
pub(super) fn asked(context: &RequestContext) -> Result<Arc<Asked>, ConnectError> {
    context.extensions().get::<Arc<Asked>>().cloned().ok_or_else(|| ConnectError::internal("nobody asked"))
}

/// How often this call's stream is to say that it is there.
pub(super) fn keepalive(context: &RequestContext) -> Duration {
    let seconds = context.header("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(KEEPALIVE_TIME, |seconds| Duration::from_secs(seconds).max(KEEPALIVE_TIME_MIN))
}

/// What a fault of ours is in the protocol's words.
pub(super) fn error(fault: &Fault) -> ConnectError {
    let code = match fault.code {
        Code::InvalidRequest | Code::ExecFailed => ErrorCode::InvalidArgument,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::Forbidden | Code::OwnerForbids => ErrorCode::PermissionDenied,
        Code::NotFound => ErrorCode::NotFound,
        Code::Conflict => ErrorCode::Aborted,
        Code::LimitReached | Code::RateLimited | Code::TooLarge | Code::DiskFull | Code::PlaceExhausted => {
            ErrorCode::ResourceExhausted
        }
        // The text by which the clients know a sandbox that has ended.
        Code::PlaceLost | Code::NoPlace | Code::Paused => return ConnectError::unavailable(NOT_FOUND),
        Code::LayerUnavailable
        | Code::TemplateUnavailable
        | Code::LedgerUnavailable
        | Code::StoreUnavailable
        | Code::WardenUnavailable
        | Code::ServerBusy => ErrorCode::Unavailable,
        Code::TimedOut => ErrorCode::DeadlineExceeded,
        Code::Unsupported => ErrorCode::Unimplemented,
        Code::FileFailed | Code::Internal => ErrorCode::Internal,
        // `Code` may grow in its own crate; what is not known here is ours to fix.
        _ => ErrorCode::Internal,
    };
    ConnectError::new(code, fault.message.clone())
}

/// As [`error`], of a refusal.
pub(super) fn refused(refusal: Refusal) -> ConnectError {
    error(&refusal.fault)
}

/// The errnos of Linux that are told apart (errno(3)).
pub(super) mod errno {
    pub(in super::super) const ENOENT: u32 = 2;
    pub(in super::super) const EACCES: u32 = 13;
    pub(in super::super) const EEXIST: u32 = 17;
    pub(in super::super) const ENOTDIR: u32 = 20;
    pub(in super::super) const EISDIR: u32 = 21;
    pub(in super::super) const EINVAL: u32 = 22;
    pub(in super::super) const ELOOP: u32 = 40;
    pub(in super::super) const EREMOTE: u32 = 66;
}

/// What a failed file operation is: `message` has what is said of each errno that means something there.
pub(super) fn file_error(
    failed: &DetailFault,
    user: Option<&str>,
    message: impl Fn(u32) -> Option<(ErrorCode, String)>,
) -> ConnectError {
    if let Some((code, text)) = failed.errno.and_then(message) {
        return ConnectError::new(code, text);
    }
    if rf_places::is_no_such_user(&failed.fault) {
        return no_such_user(user);
    }
    match failed.errno {
        Some(errno::EINVAL) => ConnectError::invalid_argument(failed.fault.message.clone()),
        Some(errno::EACCES) => ConnectError::permission_denied(failed.fault.message.clone()),
        Some(_) | None => error(&failed.fault),
    }
}

/// Nobody of that name is inside.
pub(super) fn no_such_user(user: Option<&str>) -> ConnectError {
    ConnectError::unauthenticated(format!("invalid username: '{}'", user.unwrap_or_default()))
}
