//! The reply socket of a file operation. Unlike init itself, a helper may wait for the server to read.

use rf_sys::guest::TakeCell;
use rf_wire::{
    detail::ATTRIBUTES_BYTES_MAX,
    init::{Entry, Writer, file_answer},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::Stat,
    io::Errno,
};

use crate::channel::{Sent, send};

/// Room for the longest answer: a change with its path, a description with three, its attributes and the numbers.
const REPLY_MAX: usize = 4 * 4096 + ATTRIBUTES_BYTES_MAX + 256;

static BUFFER: TakeCell<[u8; REPLY_MAX]> = TakeCell::new([0; REPLY_MAX]);

/// The socket, and the tag of the order.
#[derive(Debug)]
pub(crate) struct Reply {
    socket: OwnedFd,
    tag: u64,
    buffer: &'static mut [u8],
}

impl Reply {
    pub(crate) fn new(socket: OwnedFd, tag: u64) -> Self {
        // Taken once: this process makes one reply.
        let buffer = BUFFER.take().map_or(&mut [][..], |buffer| &mut buffer[..]);
        Self { socket, tag, buffer }
    }

    /// The socket, to be waited on.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Tries to send; [`Sent::Later`] when the server does not read now.
    pub(crate) fn try_send(
        &mut self,
        kind: u16,
        fd: Option<BorrowedFd<'_>>,
        body: impl FnOnce(&mut Writer<'_>),
    ) -> Sent {
        let mut writer = Writer::new(self.buffer, kind, self.tag);
        body(&mut writer);
        match writer.finish() {
            Ok(len) => send(self.socket.as_fd(), &self.buffer[..len], fd),
            Err(_) => Sent::Refused(Errno::NAMETOOLONG),
        }
    }

    /// Sends, and waits while the server does not read.
    pub(super) fn send(
        &mut self,
        kind: u16,
        fd: Option<BorrowedFd<'_>>,
        body: impl Fn(&mut Writer<'_>),
    ) -> Result<(), Errno> {
        loop {
            match self.try_send(kind, fd, &body) {
                Sent::Yes => return Ok(()),
                Sent::Gone => return Err(Errno::PIPE),
                Sent::Refused(errno) => return Err(errno),
                Sent::Later => {
                    let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
                    let _ = poll(&mut fds, None);
                }
            }
        }
    }

    /// Describes a file; with `fd`, hands it over.
    pub(crate) fn entry(&mut self, entry: &Entry<'_>, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let kind = if fd.is_some() { file_answer::OPENED } else { file_answer::ENTRY };
        self.send(kind, fd, |writer| entry.write(writer))
    }

    /// The operation is done.
    pub(crate) fn done(&mut self) {
        // The server may be gone: then nobody wants to know.
        let _ = self.send(file_answer::DONE, None, |_| ());
    }

    /// The operation failed.
    pub(crate) fn failed(&mut self, errno: Errno, path: &[u8]) {
        let path = &path[..path.len().min(4096)];
        let _ = self.send(file_answer::FAILED, None, |writer| {
            writer.u32(errno.raw_os_error().unsigned_abs());
            writer.string(path);
        });
    }

    /// Waits until the server says something or closes its end.
    pub(crate) fn wait_for_word(&self) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let _ = poll(&mut fds, None);
    }

    /// Whether the server has closed its end, so that nobody wants the operation any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

/// What an `ENTRY` says of a file.
pub(crate) fn entry_of<'a>(stat: &Stat, path: &'a [u8], target: &'a [u8]) -> Entry<'a> {
    let millis = stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000);
    Entry {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        // Before 1970 is shown as 1970.
        modified_ms: u64::try_from(millis).unwrap_or(0),
        path,
        target,
    }
}
