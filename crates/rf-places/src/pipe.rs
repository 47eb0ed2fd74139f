//! The server's ends of an exec's pipes and terminal: checked when they come, read and written without blocking.
//!
//! A descriptor comes from a sandbox, whose init may share its open file description and change `O_NONBLOCK` at any
//! moment. Each read and write of a pipe therefore asks not to block by itself (`RWF_NOWAIT`, readv(2)), so a hostile
//! init cannot make a thread of the server hang. A terminal knows no such flag: there a hostile init (not a workload)
//! could hold up a thread; known wrinkle.
//!
//! An end is registered with the reactor only once it is found empty (or full): a short exec is often over before.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rf_types::Fault;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{FileType, OFlags},
    io::{Errno, ReadWriteFlags},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::{place::Resize, reactor, refusal};

/// Most bytes of one read; more would starve the other tasks of this thread. Chosen.
const READ_MAX: usize = 1024 * 1024;
/// The size a pipe gets once its reader is seen to be the slower side: the most an unprivileged process may ask for by
/// default (pipe(7), `/proc/sys/fs/pipe-max-size`).
const PIPE_LEN_LARGE: usize = 1024 * 1024;
/// The size a pipe has at first (pipe(7)).
const PIPE_LEN_FIRST: usize = 64 * 1024;
/// At the position of the file itself (preadv2(2)); the only one that a pipe has.
const AT_POSITION: u64 = u64::MAX;

/// A descriptor that is not what it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WrongDescriptor;

/// The end of a pipe that is ours.
#[derive(Debug)]
struct End {
    fd: Registered,
    /// Whether the kernel takes `RWF_NOWAIT` for it (pipes: since Linux 6.4).
    nowait: bool,
}

#[derive(Debug)]
enum Registered {
    NotYet(OwnedFd),
    Yes(AsyncFd<OwnedFd>),
    /// Between the two, and after an end.
    Closed,
}

impl End {
    /// # Errors
    /// When `fd` is no pipe, or not open for `access` alone.
    fn check(fd: OwnedFd, access: OFlags) -> Result<Self, WrongDescriptor> {
        let stat = rustix::fs::fstat(&fd).map_err(|_| WrongDescriptor)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err(WrongDescriptor);
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|_| WrongDescriptor)?;
        if flags & (OFlags::ACCMODE | OFlags::PATH) != access {
            return Err(WrongDescriptor);
        }
        Ok(Self { fd: Registered::NotYet(fd), nowait: true })
    }

    fn borrow(&self) -> Option<BorrowedFd<'_>> {
        match &self.fd {
            Registered::NotYet(fd) => Some(fd.as_fd()),
            Registered::Yes(fd) => Some(fd.get_ref().as_fd()),
            Registered::Closed => None,
        }
    }

    /// Does `io` with what is there, or registers and waits.
    fn poll_io<T>(
        &mut self,
        context: &mut Context<'_>,
        interest: Interest,
        mut io: impl FnMut(BorrowedFd<'_>, &mut bool) -> io::Result<T>,
    ) -> Poll<io::Result<Option<T>>> {
        loop {
            let would_block = match &self.fd {
                Registered::NotYet(fd) => match io(fd.as_fd(), &mut self.nowait) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                    done => return Poll::Ready(done.map(Some)),
                },
                Registered::Yes(fd) => {
                    let mut guard = if interest.is_readable() {
                        ready!(fd.poll_read_ready(context))?
                    } else {
                        ready!(fd.poll_write_ready(context))?
                    };
                    match io(fd.get_ref().as_fd(), &mut self.nowait) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            guard.clear_ready();
                            false
                        }
                        done => return Poll::Ready(done.map(Some)),
                    }
                }
                Registered::Closed => return Poll::Ready(Ok(None)),
            };
            if would_block && let Registered::NotYet(fd) = std::mem::replace(&mut self.fd, Registered::Closed) {
                self.fd = Registered::Yes(reactor::register(fd, interest)?);
            }
        }
    }
}

/// The kernel does not take `RWF_NOWAIT` for this file: fall back to the flag of the open file description.
fn without_nowait(fd: BorrowedFd<'_>, nowait: &mut bool) -> io::Result<()> {
    *nowait = false;
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

fn read_now(fd: BorrowedFd<'_>, nowait: &mut bool, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let got = if *nowait {
            let mut slices = [IoSliceMut::new(buffer)];
            rustix::io::preadv2(fd, &mut slices, AT_POSITION, ReadWriteFlags::NOWAIT)
        } else {
            rustix::io::read(fd, &mut *buffer)
        };
        match got {
            Ok(len) => return Ok(len),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if *nowait => without_nowait(fd, nowait)?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_now(fd: BorrowedFd<'_>, nowait: &mut bool, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let put = if *nowait {
            rustix::io::pwritev2(fd, &[IoSlice::new(bytes)], AT_POSITION, ReadWriteFlags::NOWAIT)
        } else {
            rustix::io::write(fd, bytes)
        };
        match put {
            Ok(len) => return Ok(len),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if *nowait => without_nowait(fd, nowait)?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The read end of a pipe.
#[derive(Debug)]
pub(crate) struct PipeReader {
    end: End,
    large: bool,
}

impl PipeReader {
    /// # Errors
    /// When `fd` is not the read end of a pipe.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, WrongDescriptor> {
        Ok(Self { end: End::check(fd, OFlags::RDONLY)?, large: false })
    }

    /// Waits until there is something to read, or the end.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        let look = |fd: BorrowedFd<'_>, _: &mut bool| {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&Timespec::default()))? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        };
        std::future::poll_fn(|context| self.end.poll_io(context, Interest::READABLE, look)).await.map(drop)
    }

    /// A second descriptor of the same end.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.end.borrow().ok_or(io::ErrorKind::BrokenPipe)?.try_clone_to_owned()
    }

    /// Makes the pipe as large as allowed. Failure is of no consequence: it then stays as it is.
    pub(crate) fn enlarge(&mut self) {
        if !self.large {
            self.large = true;
            if let Some(fd) = self.end.borrow() {
                // EPERM where the owner's share of pipe pages is used up (pipe(7)): then it stays small.
                let _stays_small = rustix::pipe::fcntl_setpipe_size(fd, PIPE_LEN_LARGE);
            }
        }
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = buffer.remaining().min(READ_MAX);
        let space = buffer.initialize_unfilled_to(len);
        let got = self.end.poll_io(context, Interest::READABLE, |fd, nowait| read_now(fd, nowait, space));
        let got = ready!(got)?.unwrap_or(0);
        buffer.advance(got);
        // A full pipe: the writer is faster than us, so fewer and larger reads pay.
        if got >= PIPE_LEN_FIRST {
            self.enlarge();
        }
        Poll::Ready(Ok(()))
    }
}

/// The write end of a pipe.
#[derive(Debug)]
pub(crate) struct PipeWriter {
    end: End,
}

impl PipeWriter {
    /// # Errors
    /// When `fd` is not the write end of a pipe.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, WrongDescriptor> {
        Ok(Self { end: End::check(fd, OFlags::WRONLY)? })
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(READ_MAX)];
        let put = self.end.poll_io(context, Interest::WRITABLE, |fd, nowait| write_now(fd, nowait, bytes));
        match ready!(put)? {
            Some(len) => Poll::Ready(Ok(len)),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.fd = Registered::Closed;
        Poll::Ready(Ok(()))
    }
}

/// The master of a terminal, shared by its reader, its writer and who sets its size.
#[derive(Clone, Debug)]
pub(crate) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// # Errors
    /// When `fd` is not the master of a pseudo-terminal (pts(4): character device 5:2).
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, WrongDescriptor> {
        let stat = rustix::fs::fstat(&fd).map_err(|_| WrongDescriptor)?;
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != (5, 2) {
            return Err(WrongDescriptor);
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|_| WrongDescriptor)?;
        if flags & (OFlags::ACCMODE | OFlags::PATH) != OFlags::RDWR {
            return Err(WrongDescriptor);
        }
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|_| WrongDescriptor)?;
        Ok(Self(Arc::new(reactor::register(fd, Interest::READABLE | Interest::WRITABLE).map_err(|_| WrongDescriptor)?)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let len = buffer.remaining().min(READ_MAX);
        let space = buffer.initialize_unfilled_to(len);
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match rustix::io::read(self.0.get_ref(), &mut *space) {
                Ok(len) => {
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => guard.clear_ready(),
                // Nobody holds the other side any more: the end of a terminal's output.
                Err(Errno::IO) => return Poll::Ready(Ok(())),
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(len) => return Poll::Ready(Ok(len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal's input has no end of its own: what the user types (`^D`) says it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Resize for Terminal {
    fn resize(&self, rows: u16, cols: u16) -> Result<(), Fault> {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.0.get_ref(), size).map_err(|_| refusal::lost("its terminal is gone"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_go_through_a_pipe_in_large_reads_until_its_end() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let mut reader = PipeReader::new(read_end).unwrap();
        let mut writer = PipeWriter::new(write_end).unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        writing.await.unwrap();
        assert!(got == expected);
    }

    #[test]
    fn only_the_right_end_of_a_pipe_passes() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        assert_eq!(PipeReader::new(write_end).err(), Some(WrongDescriptor));
        assert_eq!(PipeWriter::new(read_end).err(), Some(WrongDescriptor));
        let (socket, _other) = crate::packet::pair().unwrap();
        assert_eq!(PipeReader::new(socket).err(), Some(WrongDescriptor));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(PipeReader::new(file.into()).err(), Some(WrongDescriptor));
    }

    #[tokio::test]
    async fn only_the_master_of_a_terminal_passes() {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        assert!(Terminal::new(null.into()).is_err());
        let (read_end, _write_end) = rustix::pipe::pipe().unwrap();
        assert!(Terminal::new(read_end).is_err());
        let master = std::fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
        let terminal = Terminal::new(master.into()).unwrap();
        terminal.resize(24, 80).unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_finds_its_pipe_made_blocking_does_not_hang() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let shared = read_end.try_clone().unwrap();
        let mut reader = PipeReader::new(read_end).unwrap();
        let flags = rustix::fs::fcntl_getfl(&shared).unwrap();
        rustix::fs::fcntl_setfl(&shared, flags - OFlags::NONBLOCK).unwrap();
        let mut buffer = [0; 8];
        let empty = futures::poll!(std::pin::pin!(reader.read(&mut buffer)));
        assert!(empty.is_pending());
        drop(write_end);
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
    }
}
