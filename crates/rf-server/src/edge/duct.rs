//! Bytes that go from one socket to another without coming here: splice(2) by way of a pipe. For answers of programs in
//! sandboxes, which nobody here reads.
//!
//! HTTP stays hyper's affair: the body of such an answer hands out placeholders, which are as long as what it has put into
//! the pipe, and the connection sends from the pipe wherever hyper has it write a placeholder. So heads, lengths, the order
//! of answers and their ends are as for every other body.
//!
//! ```text
//! program's socket ─ fill ─▶ pipe ─ drain ─▶ client's socket
//!           Body::poll_frame   │   AsyncWrite::poll_write
//!                └ placeholder ┴─▶ hyper ─▶ ┘
//! ```

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream};

/// What stands for bytes in a pipe. Never read: a slice of it is known by where it lies. Where one were sent by a
/// connection that does not know of ducts, it would be zeros.
static PLACEHOLDER: [u8; PIECE_BYTES_MAX] = [0; PIECE_BYTES_MAX];
/// Most bytes that are in a pipe at once: it holds as many pieces of a page or less as its size has pages. Chosen: more.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// The size of a pipe, bytes. Chosen: what a socket of this room has at once; an id may have 64 MiB in pipes before the
/// kernel makes further ones small (pipe(7), pipe-user-pages-soft).
const PIPE_BYTES: usize = 256 << 10;
/// Pipes at once. Chosen: half of what the kernel lets an id have of that size.
const PIPES_MAX: usize = 128;

/// The pipes that there are.
static PIPES: AtomicUsize = AtomicUsize::new(0);

/// The way of bytes to one connection. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Duct(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    pipe: Option<Pipe>,
    /// A body makes use of it.
    in_use: bool,
    /// Who waits until the pipe is empty.
    waiting: Option<Waker>,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it.
    inside: usize,
}

impl Pipe {
    /// A pipe; none where there are too many.
    fn new() -> Option<Self> {
        let counted =
            PIPES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < PIPES_MAX).then_some(count + 1));
        counted.ok()?;
        match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok((read, write)) => {
                // A smaller one only moves less at once.
                let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
                Some(Self { read, write, inside: 0 })
            }
            Err(_) => {
                PIPES.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A duct that one body fills; it is free again when this is dropped and what was filled in has gone out.
#[derive(Debug)]
pub(crate) struct Filling(Duct);

impl Duct {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The duct for one body; none when there is no pipe to be had.
    pub(crate) fn take(&self) -> Option<Filling> {
        let mut state = self.lock();
        if state.in_use {
            return None;
        }
        if state.pipe.is_none() {
            state.pipe = Some(Pipe::new()?);
        }
        state.in_use = true;
        Some(Filling(self.clone()))
    }

    /// Sends what is in the pipe, at most `length` bytes of it.
    ///
    /// # Errors
    /// The socket's; when there is nothing in the pipe.
    pub(super) fn poll_drain(
        &self,
        to: &TcpStream,
        length: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let Some(pipe) = state.pipe.as_mut().filter(|pipe| pipe.inside > 0) else {
            return Poll::Ready(Err(io::Error::other("nothing is in the pipe that a placeholder stands for")));
        };
        let length = length.min(pipe.inside);
        let moved = loop {
            ready!(to.poll_write_ready(context))?;
            // Nothing in the pipe waits for anything, so what would block is the socket.
            match to.try_io(Interest::WRITABLE, || moved(splice(&pipe.read, None, to, None, length, FLAGS))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                moved => break moved?,
            }
        };
        pipe.inside -= moved;
        if pipe.inside == 0 {
            if !state.in_use {
                state.pipe = None;
            }
            if let Some(waiting) = state.waiting.take() {
                waiting.wake();
            }
        }
        Poll::Ready(Ok(moved))
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

fn moved(spliced: rustix::io::Result<usize>) -> io::Result<usize> {
    spliced.map_err(io::Error::from)
}

impl Filling {
    /// Fills the empty pipe with at most `length` bytes; gives what stands for them, to be written by the connection. At
    /// the source's end it is empty.
    ///
    /// # Errors
    /// The source's.
    pub(crate) fn poll_fill(
        &self,
        from: &TcpStream,
        length: u64,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let mut state = self.0.lock();
        let State { pipe, waiting, .. } = &mut *state;
        let Some(pipe) = pipe else { return Poll::Ready(Err(io::Error::other("there is no pipe"))) };
        if pipe.inside > 0 {
            // Only into an empty one: what would block is the source then, and not the pipe.
            *waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(PLACEHOLDER.len());
        loop {
            ready!(from.poll_read_ready(context))?;
            match from.try_io(Interest::READABLE, || moved(splice(from, None, &pipe.write, None, length, FLAGS))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                moved => {
                    pipe.inside = moved?;
                    // No more is ever moved than was asked for.
                    return Poll::Ready(Ok(Bytes::from_static(&PLACEHOLDER[..pipe.inside])));
                }
            }
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_use = false;
        state.waiting = None;
        if state.pipe.as_ref().is_some_and(|pipe| pipe.inside == 0) {
            state.pipe = None;
        }
    }
}

/// Whether bytes stand for others in a pipe.
pub(super) fn is_placeholder(bytes: &[u8]) -> bool {
    let within = PLACEHOLDER.as_ptr_range();
    !bytes.is_empty() && within.contains(&bytes.as_ptr())
}
