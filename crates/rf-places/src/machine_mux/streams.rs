//! The two ends of one stream of a session: what is sent and what comes.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use rf_types::{Code, Fault};
use rf_wire::machine::{StreamNews, WINDOW, record};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Mux;

/// The sending side of a stream.
///
/// Dropped without [`Outgoing::end`] it breaks off, unless [`Outgoing::end_on_drop`] was called.
pub struct Outgoing {
    pub(super) mux: Mux,
    pub(super) stream: u32,
    pub(super) end_on_drop: bool,
    pub(super) over: bool,
}

impl Outgoing {
    /// Its number.
    #[must_use]
    pub fn stream(&self) -> u32 {
        self.stream
    }

    /// Lets bytes go out after the records sent so far; see [`Mux::open_out_held`].
    pub fn release(&self) {
        let mut state = self.mux.state();
        let after = state.control.end();
        if let Some(out) = state.outs.get_mut(&self.stream) {
            out.after = after;
        }
        drop(state);
        self.mux.shared.writable.notify_one();
    }

    /// A drop counts as the end, as it does for a pipe.
    pub fn end_on_drop(&mut self) {
        self.end_on_drop = true;
    }

    /// Takes as much of `bytes` as there is room for, at least one byte.
    ///
    /// # Errors
    /// Why the other side wants no more; the session's end.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Fault>> {
        let mut guard = self.mux.state();
        let state = &mut *guard;
        if let Some(fault) = &state.dead {
            return Poll::Ready(Err(fault.clone()));
        }
        let Some(out) = state.outs.get_mut(&self.stream).filter(|_| !self.over) else {
            return Poll::Ready(Err(Fault::new(Code::Internal, "a stream was used after its end", "")));
        };
        if let Some(fault) = &out.stopped {
            return Poll::Ready(Err(fault.clone()));
        }
        let count = bytes.len().min(out.room());
        if count == 0 && !bytes.is_empty() {
            out.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        out.ring.extend(&bytes[..count]);
        let queue = !out.queued;
        if queue {
            out.queued = true;
            state.ready.push_back(self.stream);
        }
        drop(guard);
        if queue {
            self.mux.shared.writable.notify_one();
        }
        Poll::Ready(Ok(count))
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// As for [`Outgoing::poll_send`].
    pub async fn send(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| self.poll_send(cx, bytes)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Waits until the other side wants no more, or the session is over.
    pub async fn stopped(&mut self) -> Fault {
        poll_fn(|cx| {
            let mut state = self.mux.state();
            if let Some(fault) = &state.dead {
                return Poll::Ready(fault.clone());
            }
            match state.outs.get_mut(&self.stream) {
                Some(out) => match &out.stopped {
                    Some(fault) => Poll::Ready(fault.clone()),
                    None => {
                        out.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                },
                None => Poll::Ready(Fault::new(Code::Internal, "a stream was used after its end", "")),
            }
        })
        .await
    }

    /// Whether the whole session is over, not only this stream.
    #[must_use]
    pub fn is_session_over(&self) -> bool {
        self.mux.dead().is_some()
    }

    /// What the other side's user has not taken, once the session is over, and the offset of its first byte: for the
    /// next session.
    #[must_use]
    pub fn take_untaken(&mut self) -> (u64, Vec<u8>) {
        let mut state = self.mux.state();
        let state = &mut *state;
        match state.outs.get_mut(&self.stream) {
            Some(out) if state.dead.is_some() => (out.base, std::mem::take(&mut out.ring).into()),
            _ => (0, Vec::new()),
        }
    }

    /// The stream is complete; waits until the other side has taken all.
    ///
    /// # Errors
    /// The session's end; [`Outgoing::take_untaken`] then has what was not taken.
    pub async fn end_and_wait(&mut self) -> Result<(), Fault> {
        self.close(None);
        poll_fn(|cx| {
            let mut state = self.mux.state();
            let state = &mut *state;
            // The other side's word that it is done removes the stream.
            let Some(out) = state.outs.get_mut(&self.stream) else { return Poll::Ready(Ok(())) };
            if let Some(fault) = &state.dead {
                return Poll::Ready(Err(fault.clone()));
            }
            out.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The stream is complete.
    pub fn end(mut self) {
        self.close(None);
    }

    /// The stream breaks off.
    pub fn abort(mut self, fault: Fault) {
        self.close(Some(fault));
    }

    fn close(&mut self, fault: Option<Fault>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let news = {
            let mut state = self.mux.state();
            let Some(out) = state.outs.get_mut(&self.stream) else { return };
            out.ended = true;
            let length = out.end();
            if out.stopped.is_some() {
                state.outs.remove(&self.stream);
                return;
            }
            match fault {
                Some(fault) => {
                    // What was not sent is dropped; what was sent is not sent again.
                    state.outs.remove(&self.stream);
                    StreamNews::Abort { stream: self.stream, fault }
                }
                None => StreamNews::End { stream: self.stream, length },
            }
        };
        self.mux.record(record::STREAM, &news);
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let fault = Fault::new(Code::PlaceLost, "the stream broke off before its end", "");
        self.close((!self.end_on_drop).then_some(fault));
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes).map_err(io::Error::other)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close(None);
        Poll::Ready(Ok(()))
    }
}

/// The receiving side of a stream. Dropped before its end, the other side is told to stop.
pub struct Incoming {
    pub(super) mux: Mux,
    pub(super) stream: u32,
    pub(super) over: bool,
}

impl Incoming {
    /// Its number.
    #[must_use]
    pub fn stream(&self) -> u32 {
        self.stream
    }

    /// What one call takes counts as taken only when the next call comes: then it is safe, also should this program be
    /// killed. Until then the other side keeps it.
    pub fn keep_until_next(&mut self) {
        if let Some(r#in) = self.mux.state().ins.get_mut(&self.stream) {
            r#in.safe = Some(r#in.taken);
        }
    }

    /// Takes at most `max` bytes; `None` at the end.
    ///
    /// # Errors
    /// Why it broke off; the session's end.
    pub fn poll_take(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Option<Result<Bytes, Fault>>> {
        let mut guard = self.mux.state();
        let state = &mut *guard;
        let Some(r#in) = state.ins.get_mut(&self.stream) else { return Poll::Ready(None) };
        if let Some(safe) = &mut r#in.safe {
            *safe = r#in.taken;
        }
        let taken = (!r#in.ring.is_empty()).then(|| {
            let count = r#in.ring.len().min(max);
            let bytes: Bytes = if count == r#in.ring.len() {
                Vec::from(std::mem::take(&mut r#in.ring)).into()
            } else {
                r#in.ring.drain(..count).collect::<Vec<u8>>().into()
            };
            r#in.taken += count as u64;
            bytes
        });
        // Tell early enough that the sender never waits for it, and seldom enough that it costs nothing.
        if r#in.done() - r#in.told >= WINDOW / 4 && !r#in.ack_queued {
            r#in.ack_queued = true;
            state.acks.push_back(self.stream);
            self.mux.shared.writable.notify_one();
        }
        if let Some(bytes) = taken {
            return Poll::Ready(Some(Ok(bytes)));
        }
        if r#in.length == Some(r#in.taken) {
            state.ins.remove(&self.stream);
            drop(guard);
            self.over = true;
            self.mux.record(record::STREAM, &StreamNews::Stop { stream: self.stream, fault: None });
            return Poll::Ready(None);
        }
        if let Some(fault) = r#in.abort.clone().or_else(|| state.dead.clone()) {
            return Poll::Ready(Some(Err(fault)));
        }
        r#in.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes what is there, at most `max` bytes; `None` at the end.
    ///
    /// # Errors
    /// As for [`Incoming::poll_take`].
    pub async fn next_piece(&mut self, max: usize) -> Option<Result<Bytes, Fault>> {
        poll_fn(|cx| self.poll_take(cx, max)).await
    }

    /// The bytes as a stream of pieces.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Fault>> + Send {
        futures::stream::unfold(Some(self), |state| async {
            let mut incoming = state?;
            let item = incoming.next_piece(WINDOW as usize).await?;
            let next = item.is_ok().then_some(incoming);
            Some((item, next))
        })
    }

    /// Whether the whole session is over, not only this stream.
    #[must_use]
    pub fn is_session_over(&self) -> bool {
        self.mux.dead().is_some()
    }

    /// Wants no more, and says why.
    pub fn stop(mut self, fault: Fault) {
        self.close(Some(fault));
    }

    fn close(&mut self, fault: Option<Fault>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let aborted = self.mux.state().ins.remove(&self.stream).is_none_or(|r#in| r#in.abort.is_some());
        if !aborted {
            self.mux.record(record::STREAM, &StreamNews::Stop { stream: self.stream, fault });
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.close(None);
    }
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.poll_take(cx, buf.remaining()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(())),
            Poll::Ready(Some(Err(fault))) => Poll::Ready(Err(io::Error::other(fault))),
            Poll::Ready(Some(Ok(bytes))) => {
                buf.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
        }
    }
}
