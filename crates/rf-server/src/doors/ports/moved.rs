//! Long bodies of answers that the kernel moves: read and written here, each byte of them would be copied twice more.
//!
//! ```text
//! head of the answer ─▶ hyper has read some of its body ─ take_out ─▶ what it has read, piece by piece
//!                                                                └─▶ the rest: see `edge::duct`
//! all of it moved ─▶ the connection is HTTP's again, for the next request
//! ```

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    BoxError,
    body::{Body, Bytes},
    http::{Request, Response, Version, header::CONNECTION},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use rf_places::sandbox::SandboxPlace;
use rf_types::SandboxId;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::pool::{Pool, Sender, TakenOut};
use crate::edge::{Duct, Filling};

/// Bodies from this length on are moved by the kernel. Chosen: some milliseconds of copying, beside which what it takes to
/// begin is little.
const BYTES_MIN: u64 = 1 << 20;
/// Most bytes of a request's head for which it is certain that it was sent whole when the answer is there. Chosen: less
/// than a socket takes at once, however little it has taken before.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// What a program's socket may have waiting here while its body is moved, bytes, of which the kernel allows twice as much
/// for its own part (socket(7)). Measured: with the 64 KiB that sockets of a sandbox begin with, everybody waits for
/// everybody else after each two pieces, and the server's part is four times as much work.
const RECEIVE_BYTES: usize = 256 << 10;
/// The same for a connection that is kept: as it began.
const RECEIVE_BYTES_KEPT: usize = 64 << 10;

/// Whether a request is one head of moderate length, of which nothing is left to be sent once it is answered.
pub(super) fn is_small(request: &Request<Body>) -> bool {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let path = request.uri().path_and_query().map_or(1, |path| path.as_str().len());
    request.body().is_end_stream() && fields.sum::<usize>() + path <= REQUEST_BYTES_MAX
}

/// Whether a body is long enough, and its length is known.
pub(super) fn is_worth_it(body: &Incoming) -> bool {
    body.size_hint().exact().is_some_and(|length| length >= BYTES_MIN)
}

/// Whether the program takes another request over the connection of this answer (RFC 9112, section 9.3).
pub(super) fn is_kept_alive<B>(response: &Response<B>) -> bool {
    let closes = |value: &axum::http::HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(',').any(|name| name.trim().eq_ignore_ascii_case("close")))
    };
    response.version() == Version::HTTP_11 && !response.headers().get_all(CONNECTION).iter().any(closes)
}

/// Where a connection goes when its body was moved.
pub(super) struct Back {
    pub(super) pool: Pool,
    pub(super) place: Arc<SandboxPlace>,
    pub(super) sandbox: SandboxId,
    pub(super) port: u16,
}

/// The same body, moved by the kernel where that can be.
pub(super) async fn body(inner: Incoming, sender: Sender, duct: &Duct, back: Option<Back>) -> Body {
    let (Some(left), Some(filling)) = (inner.size_hint().exact(), duct.take()) else { return Body::new(inner) };
    match sender.take_out().await {
        Some(taken) => {
            // A smaller one only moves less at once.
            let _ = set_socket_recv_buffer_size(&taken.stream, RECEIVE_BYTES);
            Body::new(Moved { inner: Some(inner), left, taken: Some(taken), back, filling })
        }
        // It has ended: whatever came of the body is in it.
        None => Body::new(inner),
    }
}

/// A body that is in a socket.
struct Moved {
    /// Until all of it was handed on that hyper had read.
    inner: Option<Incoming>,
    left: u64,
    /// Until the body is whole.
    taken: Option<TakenOut>,
    back: Option<Back>,
    filling: Filling,
}

impl Moved {
    /// Counts a piece that goes out; the last one gives the connection back.
    fn counted(&mut self, piece: Bytes) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.left = self.left.saturating_sub(piece.len() as u64);
        if self.left == 0
            && let Some(taken) = self.taken.take()
            && let Some(Back { pool, place, sandbox, port }) = self.back.take()
            // What is more than was announced belongs to no answer.
            && taken.read.is_empty()
        {
            // Kept ones are many, and have nothing to receive.
            let _ = set_socket_recv_buffer_size(&taken.stream, RECEIVE_BYTES_KEPT);
            tokio::spawn(async move { pool.give_back(&place, sandbox, port, taken).await });
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for Moved {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        while let Some(inner) = &mut this.inner {
            match ready!(Pin::new(inner).poll_frame(context)) {
                Some(Ok(frame)) => {
                    // A body of a known length has nothing else.
                    if let Ok(piece) = frame.into_data() {
                        return this.counted(piece);
                    }
                }
                // That it was taken out is an incomplete message to hyper. Whether it is one shows below.
                Some(Err(_)) | None => this.inner = None,
            }
        }
        let left = this.left;
        let Some(taken) = this.taken.as_mut().filter(|_| left > 0) else { return Poll::Ready(None) };
        if !taken.read.is_empty() {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(taken.read.len());
            let piece = taken.read.split_to(length);
            return this.counted(piece);
        }
        let piece = ready!(this.filling.poll_fill(&taken.stream, left, context))?;
        if piece.is_empty() {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())));
        }
        this.counted(piece)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
