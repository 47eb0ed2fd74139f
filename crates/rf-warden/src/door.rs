//! The socket on which the server gives its orders.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rf_sandbox::packet;
use rf_types::Fault;
use rf_wire::warden::{Answer, MESSAGE_MAX, Reply, Request};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::WardenError;

/// Longest queue of answers that a server does not take; past it the connection is closed.
const QUEUE_MAX: usize = 8192;

/// Listens at `path`, which only `server_uid` (and root) may reach.
pub(crate) fn listen(path: &Path, server_uid: u32) -> Result<OwnedFd, WardenError> {
    let step = WardenError::step;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(step("make the warden's socket"))?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(WardenError::file(path)(error)),
        // A former warden's: it holds no lock any more, or we would not be here.
        _ => {}
    }
    let address = SocketAddrUnix::new(path).map_err(step("name the warden's socket"))?;
    rustix::net::bind(&socket, &address).map_err(|e| WardenError::file(path)(e.into()))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o600)).map_err(|e| WardenError::file(path)(e.into()))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(server_uid), Some(server_uid)).map_err(WardenError::file(path))?;
    }
    rustix::net::listen(&socket, 16).map_err(step("listen on the warden's socket"))?;
    Ok(socket)
}

/// Takes the lock that one warden of a state directory holds for its life.
pub(crate) fn lock(path: &Path) -> Result<OwnedFd, WardenError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map_err(|e| WardenError::file(path)(e.into()))?;
    let begun = std::time::Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // What a warden that was killed had just started has a copy of its lock until it is killed as well.
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_TIME => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(WardenError::Running(path.to_owned())),
            Err(errno) => return Err(WardenError::file(path)(errno.into())),
        }
    }
}

/// How long, and how often, a lock that is held is tried again. Chosen.
const LOCK_TIME: std::time::Duration = std::time::Duration::from_millis(1_000);
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// One connection of a server.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    queue: std::collections::VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// For one order, made once: the warden's pages are shared with a child that was just started, and each that is
    /// written to is copied, while the child waits for this processor.
    buffer: Box<[u8]>,
}

impl Connection {
    /// Takes a waiting connection, if it is of an id that may give orders.
    pub(crate) fn accept(listener: &OwnedFd, server_uid: u32) -> Result<Option<Self>, Errno> {
        let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?.uid.as_raw();
        if peer != server_uid && peer != rustix::process::geteuid().as_raw() {
            return Ok(None);
        }
        let buffer = vec![0; MESSAGE_MAX].into_boxed_slice();
        Ok(Some(Self { socket, queue: std::collections::VecDeque::new(), buffer }))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next order and its descriptors; `None` when there is none yet.
    ///
    /// # Errors
    /// When the connection has ended or speaks another language: it is to be closed.
    pub(crate) fn receive(&mut self) -> Result<Option<(Request, Vec<OwnedFd>)>, Errno> {
        match packet::receive(&self.socket, &mut self.buffer, false) {
            Ok((0, _)) => Err(Errno::PIPE),
            Ok((len, fds)) => {
                serde_json::from_slice(&self.buffer[..len]).map(|r| Some((r, fds))).map_err(|_| Errno::BADMSG)
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Sends an answer, or queues it while the server does not take it.
    ///
    /// # Errors
    /// When the connection has ended, or its queue is full: it is to be closed.
    pub(crate) fn answer(&mut self, tag: u64, result: Result<Reply, Fault>, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(&Answer { tag, result }).map_err(|_| Errno::INVAL)?;
        self.queue.push_back((bytes, fd.into_iter().collect()));
        self.flush()
    }

    /// Sends what is queued, as far as the server takes it.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub(crate) fn flush(&mut self) -> Result<(), Errno> {
        while let Some((bytes, fds)) = self.queue.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match packet::send(&self.socket, bytes, &borrowed) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno::AGAIN) if self.queue.len() <= QUEUE_MAX => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Whether something is queued.
    pub(crate) fn behind(&self) -> bool {
        !self.queue.is_empty()
    }
}
