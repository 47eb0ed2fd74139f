//! One connection of `sudo`, in a process of its own.
//!
//! Whoever closes the last copy of a descriptor may have to wait: for as long as its owner said, if that is a socket that
//! lingers (socket(7), `SO_LINGER`), alone or unread in the queue of another. So process 1, which must never wait, takes
//! neither the connection nor what comes by it. This process does; one that ends does not linger.
//!
//! A command belongs to the exec that asks for it: it is started in that one's cgroup, so that it is killed with it, and
//! held to its limits. Who asks is who connected, and must live: otherwise nobody knows whose the command would be.

use rf_sys::guest::{cstr, inherited, keep_only, peer_of, peer_pidfd, signal_fd, standard_stream, wait};
use rf_wire::init::{Reader, Spawn, UNLIMITED, stage};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{Errno, read},
    net::{SocketFlags, accept_with},
    process::{Pid, Signal, kill_process, kill_process_group},
    thread::set_name,
};

use super::{EXITED, FAILED, RUN, SIGNAL};
use crate::{
    channel::{Answer, Fds, Received, receive, send},
    exec::{Context, Refused, Streams, at, start_exec},
    kill,
    table::Table,
    users::{self, Rights},
};

/// What process 1 knows and this process needs.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    pub(crate) listener: BorrowedFd<'a>,
    /// The directory of the execs' cgroups, where they have any.
    pub(crate) cgroups: Option<BorrowedFd<'a>>,
    pub(crate) table: &'a Table,
    pub(crate) rights: Rights,
}

/// Takes a connection, closes `taken` when that is done, and attends to it. The process ends after this.
pub(crate) fn run(given: &Given<'_>, taken: OwnedFd, buffer: &mut [u8]) {
    // Not blocking, as the listener: the client may be gone already.
    let Ok(socket) = accept_with(given.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
    drop(taken);
    if keep_only(socket.as_fd(), given.cgroups).is_err() {
        return;
    }
    // These are the numbers now, and the one that it had is closed.
    core::mem::forget(socket);
    let Ok(socket) = inherited(3) else { return };
    let cgroups = given.cgroups.and_then(|_| inherited(4).ok());
    let _ = set_name(c"rf-sudo");
    let Ok(signals) = signal_fd(1 << (libc::SIGCHLD - 1)) else { return };
    match first(&socket, buffer) {
        None => {}
        Some(Err(errno)) => failed(&socket, Refused { stage: stage::ORDER, errno }),
        Some(Ok((order, streams))) => {
            let started = start(given, &order, &streams, &socket, cgroups.as_ref());
            drop(streams);
            match started {
                Ok(pid) => follow(&socket, &signals, pid),
                Err(refused) => failed(&socket, refused),
            }
        }
    }
}

/// What the client asks for; nothing when it leaves without a word.
fn first<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Option<Result<(Spawn<'a>, Streams), Errno>> {
    let (len, fds) = loop {
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], None);
        match receive(socket.as_fd(), buffer) {
            Received::Nothing => {}
            Received::Message(len, fds) => break (len, fds),
            Received::Gone | Received::Unfit => return None,
        }
    };
    Some(message(&buffer[..len], fds))
}

/// Reads the message of a client, who is a stranger.
fn message(bytes: &[u8], mut fds: Fds) -> Result<(Spawn<'_>, Streams), Errno> {
    let (header, mut reader) = Reader::message(bytes).map_err(|_| Errno::PROTO)?;
    if header.kind != RUN {
        return Err(Errno::PROTO);
    }
    let order = Spawn::read(&mut reader).map_err(|_| Errno::PROTO)?;
    let stdio = [0, 1, 2].map(|stream| fds.take(stream));
    if stdio.iter().any(Option::is_none) {
        return Err(Errno::BADF);
    }
    Ok((Spawn { exec: 0, flags: 0, timeout_ms: UNLIMITED, ..order }, Streams::given(stdio)))
}

/// Who connected.
struct Asker {
    pid: i32,
    /// Tells whether that is still it. Before Linux 6.5 nothing does: who ended may have its number taken by another of
    /// the same sandbox.
    pidfd: Result<OwnedFd, Errno>,
}

impl Asker {
    fn of(socket: &OwnedFd) -> Self {
        let pid = peer_of(socket.as_fd()).map_or(0, |(pid, _)| pid);
        Self { pid, pidfd: peer_pidfd(socket.as_fd()) }
    }

    fn lives(&self) -> bool {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        match &self.pidfd {
            // Readable once it has ended (pidfd_open(2)).
            Ok(pidfd) => poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&NOW)) == Ok(0),
            Err(errno) => *errno == Errno::NOPROTOOPT,
        }
    }
}

fn start(
    given: &Given<'_>,
    order: &Spawn<'_>,
    streams: &Streams,
    socket: &OwnedFd,
    cgroups: Option<&OwnedFd>,
) -> Result<Pid, Refused> {
    let user = users::find(cstr(order.user).to_bytes(), given.rights).map_err(at(stage::USER))?;
    let null = standard_stream(0).ok_or(Refused { stage: stage::PIPES, errno: Errno::BADF })?;
    let asker = Asker::of(socket);
    let gone = Refused { stage: stage::CGROUP, errno: Errno::SRCH };
    let (mut cgroup, mut rlimits) = (None, [UNLIMITED; 4]);
    if let Some(parent) = cgroups {
        let group = kill::group_of(parent.as_fd(), asker.pid).ok_or(gone)?;
        let name = kill::cgroup_name(group);
        cgroup = Some(kill::open_cgroup(parent.as_fd(), kill::name_cstr(&name)).map_err(at(stage::CGROUP))?);
        let exec = given.table.iter().find(|(_, exec)| exec.cgroup && exec.group == group);
        rlimits = exec.map_or(rlimits, |(_, exec)| exec.rlimits);
    }
    // Only now: what was found was found of a process of this number.
    if !asker.lives() {
        return Err(gone);
    }
    let context = Context { user: &user, one_uid: false, streams, null, cgroup: cgroup.as_ref().map(AsFd::as_fd) };
    let pid = start_exec(&Spawn { rlimits, ..order.clone() }, &context)?;
    if !asker.lives() {
        // Its exec may have been killed in between, and this was not there yet. Our child, not waited for.
        let _ = kill_process(pid, Signal::KILL);
    }
    Ok(pid)
}

/// Passes signals on until the command has ended, or the client is gone.
fn follow(socket: &OwnedFd, signals: &OwnedFd, pid: Pid) {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        let [asked, ended] = fds.each_ref().map(|fd| !fd.revents().is_empty());
        if ended {
            let _ = read(signals, &mut [0; 128]);
            while let Ok(Some(waited)) = wait(None, true) {
                if waited.pid == pid.as_raw_pid() {
                    return say(socket, &Answer::new(EXITED, 0, |writer| writer.u32(waited.status)));
                }
            }
        }
        let mut buffer = [0; 64];
        match if asked { receive(socket.as_fd(), &mut buffer) } else { Received::Nothing } {
            Received::Message(len, _) => {
                // A mistaken message does not end a command that runs.
                let _ = pass_on(&buffer[..len], pid);
            }
            Received::Nothing | Received::Unfit => {}
            Received::Gone => {
                // As when a terminal goes: it may tidy up. Process 1 takes its end.
                let _ = kill_process_group(pid, Signal::HUP);
                return;
            }
        }
    }
}

/// Signals the command's process group, which it leads: not waited for, the number is still its.
fn pass_on(bytes: &[u8], pid: Pid) -> Result<(), Errno> {
    let (header, mut reader) = Reader::message(bytes).map_err(|_| Errno::PROTO)?;
    let number = reader.u32().map_err(|_| Errno::PROTO)?;
    let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw).ok_or(Errno::INVAL)?;
    if header.kind == SIGNAL { kill_process_group(pid, signal) } else { Err(Errno::PROTO) }
}

fn failed(socket: &OwnedFd, refused: Refused) {
    say(
        socket,
        &Answer::new(FAILED, 0, |writer| {
            writer.u32(refused.errno.raw_os_error().unsigned_abs());
            writer.u32(refused.stage);
        }),
    );
}

fn say(socket: &OwnedFd, answer: &Answer) {
    // It is the only message of this connection, so there is room; and if not, the client sees the end.
    send(socket.as_fd(), answer.bytes(), []);
}
