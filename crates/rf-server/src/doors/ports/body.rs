//! The body of an answer that is cut off, and not ended, when its sandbox is gone or its asker's credential.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    BoxError,
    body::{Body, Bytes},
    http::{Response, Version},
};
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use rf_places::sandbox::SandboxPlace;
use tokio_util::sync::CancellationToken;

use crate::edge::Line;

/// Up to this many bytes an answer is under way at once, and has no middle to be cut in.
const SHORT: u64 = 64 << 10;

/// A body of a sandbox's. When the sandbox is lost, or whoever makes the body breaks off, the client must not take what
/// came for the whole: over HTTP/1.1 the connection is reset, over HTTP/2 the stream.
struct Cut<T> {
    inner: Body,
    /// Resolves when nothing may come any more.
    over: BoxFuture<'static, ()>,
    line: Option<Line>,
    /// What ends with the body.
    _held: T,
}

/// Makes an answer's body one that is cut off with its sandbox, and with `fallen` where that is given. `version` is the
/// request's; `held` is dropped with the body.
pub(crate) fn cut<T: Send + Unpin + 'static>(
    response: Response<Body>,
    place: &Arc<SandboxPlace>,
    fallen: Option<CancellationToken>,
    line: &Line,
    version: Version,
    held: T,
) -> Response<Body> {
    let short = response.body().size_hint().exact().is_some_and(|length| length <= SHORT);
    if response.body().is_end_stream() || short && size_of::<T>() == 0 {
        return response;
    }
    let place = Arc::clone(place);
    let over = Box::pin(async move { over(&place, fallen.as_ref()).await });
    // The connection is this request's alone only where requests come one after the other.
    let line = (version < Version::HTTP_2).then(|| line.clone());
    response.map(|inner| Body::new(Cut { inner, over, line, _held: held }))
}

/// Resolves when the sandbox is lost, or who asked may no longer.
pub(super) async fn over(place: &SandboxPlace, fallen: Option<&CancellationToken>) {
    match fallen {
        None => drop(place.lost().await),
        Some(fallen) => tokio::select! {
            _ = place.lost() => {}
            () = fallen.cancelled() => {}
        },
    }
}

impl<T: Unpin> Cut<T> {
    fn broken(&self, error: BoxError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(line) = &self.line {
            line.reset_at_end();
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl<T: Unpin> HttpBody for Cut<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // First: what the body would say of its end then is not to be told as one.
        if self.over.as_mut().poll(context).is_ready() {
            return self.broken(io::Error::from(io::ErrorKind::ConnectionReset).into());
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => self.broken(error.into()),
            other => other.map(|frame| frame.map(|frame| frame.map_err(BoxError::from))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
