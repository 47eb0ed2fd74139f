//! Answers that come before the whole of their request was read: over HTTP/1.1 nothing else can come over that connection
//! then, and the client is told so. Else it would send its next request there and find the connection closed.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    BoxError,
    body::{Body, Bytes},
    http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION},
};
use http_body::{Body as HttpBody, Frame, SizeHint};

/// A request's body, and whether its end was read.
struct Watched<B> {
    inner: B,
    over: Arc<AtomicBool>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.over.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What has to be said in the answer of a request, if anything.
#[must_use]
pub(crate) struct Unread(Option<Arc<AtomicBool>>);

/// Watches how far a request's body is read.
pub(crate) fn watch<B>(request: Request<B>) -> (Request<Body>, Unread)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    // A stream of HTTP/2 ends by itself.
    if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
        return (request.map(Body::new), Unread(None));
    }
    let over = Arc::new(AtomicBool::new(false));
    let unread = Unread(Some(Arc::clone(&over)));
    (request.map(|inner| Body::new(Watched { inner, over })), unread)
}

impl Unread {
    /// Says in an answer that it is the last of its connection, where that is so; whether it is.
    pub(crate) fn say<B>(&self, response: &mut Response<B>) -> bool {
        let Self(Some(over)) = self else { return false };
        let last = !over.load(Ordering::Relaxed) && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        if last {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    async fn told(version: Version, body: &'static str, read: bool) -> bool {
        let mut request = Request::new(Full::new(Bytes::from_static(body.as_bytes())));
        *request.version_mut() = version;
        let (request, unread) = watch(request);
        if read {
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), body);
        }
        let mut response = Response::new(());
        let last = unread.say(&mut response);
        assert_eq!(last, response.headers().contains_key(CONNECTION));
        response.headers().contains_key(CONNECTION)
    }

    #[tokio::test]
    async fn who_was_not_heard_out_is_told() {
        assert!(told(Version::HTTP_11, "a body", false).await);
        assert!(told(Version::HTTP_10, "a body", false).await);
    }

    #[tokio::test]
    async fn nobody_else_is() {
        assert!(!told(Version::HTTP_11, "a body", true).await);
        assert!(!told(Version::HTTP_11, "", false).await);
        assert!(!told(Version::HTTP_2, "a body", false).await);
    }
}
