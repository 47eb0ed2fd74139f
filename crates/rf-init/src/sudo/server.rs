//! Process 1's side of `sudo`: the listening socket and the commands under way.

use rf_sys::guest::{FdSlot, peer_of};
use rf_wire::init::{Reader, Spawn, UNLIMITED, stage};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Mode, chmodat, unlinkat},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with},
    process::{Signal, kill_process_group},
};

use super::{EXITED, FAILED, RUN, SIGNAL, SOCKET};
use crate::{
    channel::{Answer, Fds, Received, receive, send},
    exec::{Refused, Streams},
};

/// Most commands of `sudo` at once; chosen.
pub(crate) const SESSIONS_MAX: usize = 16;

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    socket: FdSlot,
    /// The pid of the command, which leads a process group of its own; 0 before it runs.
    pid: i32,
}

/// The socket and its connections.
#[derive(Debug)]
pub(crate) struct Sudo {
    listener: OwnedFd,
    sessions: [Session; SESSIONS_MAX],
}

/// A command that a connection asks for.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Which connection.
    pub(crate) session: usize,
    /// Who asks.
    pub(crate) pid: i32,
    /// What to run.
    pub(crate) order: Spawn<'a>,
    /// Its standard input, output and error.
    pub(crate) streams: Streams,
}

/// What a connection came with.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// Nothing that process 1 has to do.
    None,
    /// Run this.
    Run(Request<'a>),
    /// The client is gone and its command, with this pid, is not.
    Abandoned(i32),
}

impl Sudo {
    /// Listens, for everybody in the sandbox.
    ///
    /// # Errors
    /// When there is no `/run` to listen in; then there is no `sudo`.
    pub(crate) fn listen() -> Result<Self, Errno> {
        Ok(Self {
            listener: Self::bound()?,
            sessions: [const { Session { socket: FdSlot::EMPTY, pid: 0 } }; SESSIONS_MAX],
        })
    }

    /// Listens anew at the same path, below another root than before.
    pub(crate) fn listen_again(&mut self) {
        // Where there is nowhere to listen any more, nobody can ask any more.
        if let Ok(listener) = Self::bound() {
            self.listener = listener;
        }
    }

    fn bound() -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let _ = unlinkat(CWD, SOCKET, AtFlags::empty());
        bind(&listener, &SocketAddrUnix::new(SOCKET)?)?;
        chmodat(CWD, SOCKET, Mode::from_raw_mode(0o666), AtFlags::empty())?;
        listen(&listener, SESSIONS_MAX as i32)?;
        Ok(listener)
    }

    /// The listening socket, to be waited on while there is room for another connection.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        let has_room = self.sessions.iter().any(|session| session.socket.get().is_none());
        has_room.then(|| self.listener.as_fd())
    }

    /// The connections, to be waited on; by their places.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.sessions.iter().enumerate().filter_map(|(place, session)| Some((place, session.socket.get()?)))
    }

    /// Takes a connection.
    pub(crate) fn accept(&mut self) {
        let free = self.sessions.iter_mut().find(|session| session.socket.get().is_none());
        if let Some(session) = free
            && let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            *session = Session { socket: FdSlot::of(socket), pid: 0 };
        }
    }

    /// Attends to one connection that has something.
    pub(crate) fn attend<'a>(&mut self, place: usize, buffer: &'a mut [u8]) -> Event<'a> {
        let Some(session) = self.sessions.get_mut(place) else { return Event::None };
        let Some(socket) = session.socket.get() else { return Event::None };
        match receive(socket, buffer) {
            Received::Nothing => Event::None,
            Received::Message(len, fds) => {
                let pid = peer_of(socket).map_or(0, |(pid, _)| pid);
                match message(session, pid, &buffer[..len], fds) {
                    Ok(Some((order, streams))) => Event::Run(Request { session: place, pid, order, streams }),
                    Ok(None) => Event::None,
                    Err(errno) if session.pid == 0 => {
                        self.refused(place, Refused { stage: stage::ORDER, errno });
                        Event::None
                    }
                    // A mistaken message does not end a command that runs.
                    Err(_) => Event::None,
                }
            }
            Received::Gone | Received::Unfit => {
                let pid = session.pid;
                *session = Session { socket: FdSlot::EMPTY, pid: 0 };
                if pid == 0 { Event::None } else { Event::Abandoned(pid) }
            }
        }
    }

    /// The command runs.
    pub(crate) fn runs(&mut self, place: usize, pid: i32) {
        self.sessions[place].pid = pid;
    }

    /// The command could not be run.
    pub(crate) fn refused(&mut self, place: usize, refused: Refused) {
        self.end(
            place,
            &Answer::new(FAILED, 0, |writer| {
                writer.u32(refused.errno.raw_os_error().unsigned_abs());
                writer.u32(refused.stage);
            }),
        );
    }

    /// The command with this pid ended.
    pub(crate) fn ended(&mut self, pid: i32, status: u32) {
        if let Some(place) = self.sessions.iter().position(|session| session.pid == pid && pid != 0) {
            self.end(place, &Answer::new(EXITED, 0, |writer| writer.u32(status)));
        }
    }

    fn end(&mut self, place: usize, answer: &Answer) {
        let session = &mut self.sessions[place];
        if let Some(socket) = session.socket.get() {
            // It is the only message of this connection, so there is room; and if not, the client sees the end.
            send(socket, answer.bytes(), []);
        }
        *session = Session { socket: FdSlot::EMPTY, pid: 0 };
    }
}

/// Reads one message of a client, who is a stranger.
fn message<'a>(
    session: &Session,
    peer: i32,
    bytes: &'a [u8],
    mut fds: Fds,
) -> Result<Option<(Spawn<'a>, Streams)>, Errno> {
    let (header, mut reader) = Reader::message(bytes).map_err(|_| Errno::PROTO)?;
    match header.kind {
        RUN if session.pid == 0 && peer > 0 => {
            let order = Spawn::read(&mut reader).map_err(|_| Errno::PROTO)?;
            let stdio = [0, 1, 2].map(|stream| fds.take(stream));
            if stdio.iter().any(Option::is_none) {
                return Err(Errno::BADF);
            }
            let order = Spawn { exec: 0, flags: 0, timeout_ms: UNLIMITED, rlimits: [UNLIMITED; 4], ..order };
            Ok(Some((order, Streams::given(stdio))))
        }
        SIGNAL if session.pid != 0 => {
            let number = reader.u32().map_err(|_| Errno::PROTO)?;
            let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw).ok_or(Errno::INVAL)?;
            let group = rustix::process::Pid::from_raw(session.pid).ok_or(Errno::SRCH)?;
            // Not reaped yet, or the session would have ended: the number is still the command's.
            kill_process_group(group, signal).map(|()| None)
        }
        _ => Err(Errno::PROTO),
    }
}
