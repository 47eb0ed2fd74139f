//! Process 1's side of `sudo`: the listening socket, and the processes that attend to its connections; see
//! [`super::front`].

use rf_sys::guest::{Fork, exit, fork_into, monotonic_us};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Mode, chmodat, unlinkat},
    io::{Errno, read},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};

use super::SOCKET;

/// Most connections at once; chosen.
const FRONTS_MAX: usize = 16;
/// How long nobody is heard after no process could be made for a connection; chosen.
const REST_US: u64 = 50_000;

/// The socket, and who attends to its connections.
#[derive(Debug)]
pub(crate) struct Sudo {
    listener: OwnedFd,
    /// Closed at its other end once the process that was made last has taken its connection.
    taking: Option<OwnedFd>,
    /// The pids of the processes that attend to connections; 0 is none.
    fronts: [i32; FRONTS_MAX],
    /// Monotonic, microseconds; nobody is heard before.
    rest_until_us: u64,
}

impl Sudo {
    /// Listens, for everybody in the sandbox.
    ///
    /// # Errors
    /// When there is no `/run` to listen in; then there is no `sudo`.
    pub(crate) fn listen() -> Result<Self, Errno> {
        Ok(Self { listener: Self::bound()?, taking: None, fronts: [0; FRONTS_MAX], rest_until_us: 0 })
    }

    /// Listens anew at the same path, below another root than before. Process 1 is the only process then.
    pub(crate) fn listen_again(&mut self) {
        // Where there is nowhere to listen any more, nobody can ask any more.
        if let Ok(listener) = Self::bound() {
            give_up(core::mem::replace(&mut self.listener, listener));
        }
    }

    fn bound() -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let _ = unlinkat(CWD, SOCKET, AtFlags::empty());
        bind(&listener, &SocketAddrUnix::new(SOCKET)?)?;
        chmodat(CWD, SOCKET, Mode::from_raw_mode(0o666), AtFlags::empty())?;
        listen(&listener, FRONTS_MAX as i32)?;
        Ok(listener)
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// What is to be waited on, if anything: the last process to take its connection, or another connection.
    pub(crate) fn watched(&self) -> Option<BorrowedFd<'_>> {
        match &self.taking {
            Some(taking) => Some(taking.as_fd()),
            None => (self.fronts.contains(&0) && self.rests_until().is_none()).then(|| self.listener.as_fd()),
        }
    }

    /// Until when nobody is heard, monotonic microseconds.
    pub(crate) fn rests_until(&self) -> Option<u64> {
        (self.rest_until_us > monotonic_us()).then_some(self.rest_until_us)
    }

    /// What was watched is ready: whether a process is to be made for a connection.
    pub(crate) fn is_asked(&mut self) -> bool {
        self.taking.take().is_none()
    }

    /// A process was made for a connection; it closes the other end of `taking` when it has that.
    pub(crate) fn attended(&mut self, pid: Pid, taking: OwnedFd) {
        if let Some(slot) = self.fronts.iter_mut().find(|slot| **slot == 0) {
            *slot = pid.as_raw_pid();
        }
        self.taking = Some(taking);
    }

    /// None could be made.
    pub(crate) fn rest(&mut self) {
        self.rest_until_us = monotonic_us().saturating_add(REST_US);
    }

    /// A child has ended; whether it was one of these.
    pub(crate) fn ended(&mut self, pid: i32) -> bool {
        let front = self.fronts.iter_mut().find(|slot| **slot == pid);
        front.map(|slot| *slot = 0).is_some()
    }
}

/// Closes a socket in which strangers may have left something, without being the last to have it: see [`super::front`].
fn give_up(socket: OwnedFd) {
    // Where there are no descriptors or no process to be had, it is closed here.
    let Ok((wait, go)) = pipe_with(PipeFlags::CLOEXEC) else { return };
    let forked = fork_into(None);
    if let Ok(Fork::Child) = forked {
        drop(go);
        let _ = read(&wait, &mut [0; 1]);
        exit(0)
    }
    drop(socket);
    drop(go);
}
