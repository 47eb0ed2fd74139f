//! Starts a command beneath a keeper: a process of ours that stays its parent, so that no descendant gets away.
//!
//! ```text
//! caller ──fork──▶ keeper (subreaper, keeps one socket) ──fork──▶ the command
//! ```
//!
//! Whatever a command leaves behind, sessions and double forks included, becomes a child of the keeper when its parent
//! dies (`PR_SET_CHILD_SUBREAPER`, prctl(2)). The keeper never execs: it waits, tells its caller over the socket how
//! the command ended, and on one byte, or when the caller is gone, kills its children over and over until it has none.
//! A child that it has not waited for keeps its pid, so it cannot hit a stranger.
//!
//! All that runs between fork and exec is here. It makes system calls only: no allocation, no lock, no panic.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    vec::Vec,
};

use crate::{landlock::Ruleset, seccomp};

/// A byte to the keeper: kill everything, then go.
pub const KILL_TREE: u8 = b'K';
/// A byte to the keeper, followed by a signal's number: signal the command itself, if it still runs.
pub const SIGNAL: u8 = b'S';
/// Length of a message from the keeper.
pub const REPORT_LEN: usize = 40;

/// What the command is held to. Each part is laid on it after the keeper's fork and before its exec.
#[derive(Debug)]
pub struct Hold {
    /// The keeper's end of a stream socket; the other end is the caller's.
    pub socket: OwnedFd,
    /// Landlock rules; with them comes `no_new_privs`.
    pub landlock: Option<Ruleset>,
    /// A system call filter; empty is none.
    pub filter: Vec<seccomp::Instruction>,
    /// Whether it loses every capability, for good. Root without them is held by file permissions and by Landlock; with
    /// them it would walk past both in places (`CAP_PERFMON` reads any process's memory map, for one).
    pub no_capabilities: bool,
    /// Whether standard input is a terminal to be its controlling one.
    pub terminal: bool,
    /// Limits as (resource, value) of setrlimit(2), never above the hard limit in force.
    pub rlimits: Vec<(u32, u64)>,
}

/// What the keeper says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// First: the command's pid.
    Started {
        /// The pid.
        pid: u32,
    },
    /// The command ended. Its descendants may go on.
    Ended {
        /// As of waitpid(2).
        status: i32,
        /// User time of it and of what it waited for, microseconds.
        cpu_user_us: u64,
        /// System time, microseconds.
        cpu_system_us: u64,
        /// Largest resident set, bytes.
        memory_peak_bytes: u64,
    },
}

impl Report {
    /// Reads a message of the keeper.
    #[must_use]
    pub fn decode(message: &[u8; REPORT_LEN]) -> Self {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        if word(0) == 0 {
            return Self::Started { pid: word(8) as u32 };
        }
        Self::Ended {
            status: word(8) as i32,
            cpu_user_us: word(16),
            cpu_system_us: word(24),
            memory_peak_bytes: word(32),
        }
    }
}

/// Arranges that `command` starts beneath a keeper and held to `hold`. The child that [`Command::spawn`] returns is the
/// keeper: wait for it, so that it does not stay a zombie; it ends when no descendant of the command is left.
///
/// The command gets a session of its own, and of the caller's descriptors 0, 1 and 2 alone (`CLOSE_RANGE_CLOEXEC`, Linux
/// 5.11; on an older kernel only what is held to nothing is started).
pub fn keep(command: &mut Command, hold: Hold) {
    let Hold { socket, mut landlock, filter, no_capabilities, terminal, rlimits } = hold;
    let before_exec = move || {
        // The keeper: a copy of the caller with one thread. From here to its end only system calls.
        set_subreaper()?;
        // A caller that ignores SIGCHLD would have our children reaped by the kernel, and the command's by it.
        // SAFETY: the default action is no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let child = fork_raw()?;
        if child != 0 {
            keeper(socket.as_raw_fd(), child);
        }
        // The command. It dies with its keeper, which cannot happen but by a stranger's kill.
        // SAFETY: integers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: no arguments.
        if unsafe { libc::setsid() } == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: integers only; descriptor 0 is the terminal's peer, as the caller says.
        if terminal && unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
        for (resource, value) in &rlimits {
            limit(*resource, *value)?;
        }
        let is_held = landlock.is_some() || !filter.is_empty() || no_capabilities;
        // What the caller was itself started with and whoever did so left open, such as a socket of a session's: no rule
        // on paths holds what is open already.
        // SAFETY: integers only; marks descriptors of this process and closes none, so their owners are none the worse.
        let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if marked == -1 && is_held {
            return Err(io::Error::last_os_error());
        }
        if is_held {
            // SAFETY: integers only; the unused arguments must be 0.
            if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        if no_capabilities {
            drop_capabilities()?;
        }
        if let Some(landlock) = landlock.take() {
            landlock.restrict_self().map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))?;
        }
        if !filter.is_empty() {
            seccomp::install(&filter).map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))?;
        }
        Ok(())
    };
    // SAFETY: the closure runs after fork in a copy of a process with many threads. It and all it calls make system
    // calls and write to their own stack; `io::Error` from an errno does not allocate. Its captures were made before
    // the fork, and dropping the ruleset there is one close(2).
    unsafe { command.pre_exec(before_exec) };
}

fn set_subreaper() -> io::Result<()> {
    // SAFETY: integers only; the attribute is the calling process's own.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// fork(2) without libc's fork handlers, which take locks that a thread left behind in the caller may have held.
fn fork_raw() -> io::Result<libc::pid_t> {
    let flags = libc::SIGCHLD as libc::c_ulong;
    // SAFETY: without CLONE_VM and with no stack given, the child goes on here on a copy of this stack; no pointer is
    // passed.
    let rc = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(rc as libc::pid_t) }
}

/// Takes every capability from the calling process, and from what it will exec; see capabilities(7).
fn drop_capabilities() -> io::Result<()> {
    // linux/capability.h: version 3, two words for each set.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none = [0u32; 6];
    // With no_new_privs in force and nothing permitted, an exec gives nothing either, also to root: the bounding set,
    // which only its owner may narrow, does not matter.
    // SAFETY: the kernel reads a whole header and two whole data structs of three words each; the pid 0 is the caller.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lowers a limit to `value`, or to the hard limit in force if that is lower.
fn limit(resource: u32, value: u64) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` is a whole `rlimit`, written during the call.
    if unsafe { libc::getrlimit(resource as _, &raw mut now) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let value = value.min(now.rlim_max);
    let new = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `new` is a whole `rlimit`, read during the call.
    if unsafe { libc::setrlimit(resource as _, &raw const new) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The keeper's life. `child` is the command.
fn keeper(socket: RawFd, child: libc::pid_t) -> ! {
    let signals = keeper_prepare(socket);
    say(socket, [0, child as u64, 0, 0, 0]);
    let mut command = Some(child);
    let mut polled = [
        libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: signals, events: libc::POLLIN, revents: 0 },
    ];
    loop {
        // Before the first wait too: a command that ended while SIGCHLD was not yet blocked left no signal behind.
        reap(socket, &mut command, libc::WNOHANG);
        // SAFETY: `polled` is two whole `pollfd`s, written during the call.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
        if polled[1].revents != 0 {
            let mut info = [0u8; 128];
            // SAFETY: the kernel writes at most 128 bytes, one `signalfd_siginfo`, to `info`. The descriptor does not
            // block.
            unsafe { libc::read(signals, info.as_mut_ptr().cast(), info.len()) };
        }
        if polled[0].revents != 0 {
            let mut order = [0u8; 2];
            // SAFETY: at most 2 bytes are written to `order`.
            let got = unsafe { libc::recv(socket, order.as_mut_ptr().cast(), 2, libc::MSG_DONTWAIT) };
            match (got, order) {
                (2, [SIGNAL, signal]) => {
                    if let Some(pid) = command {
                        // SAFETY: integers only. `pid` is our child and not waited for, so the number is still its.
                        unsafe { libc::kill(pid, i32::from(signal)) };
                    }
                }
                // The order to kill, or the caller is gone. An order that came in two parts cannot be: the caller
                // writes two bytes at once to an empty buffer far larger.
                (2 | 0, _) => kill_all(socket, &mut command),
                _ => {}
            }
        }
    }
}

/// Leaves the keeper nothing of the caller but `socket`; returns a descriptor that is readable when a child ended.
fn keeper_prepare(socket: RawFd) -> RawFd {
    // The command has its own copies of the standard streams: if the keeper kept its, they would never end. The pipe
    // by which `Command` learns of the exec is among the closed ones too.
    // SAFETY: closes descriptors of this process, whose owners never run again: the keeper ends by _exit.
    unsafe {
        if socket > 0 {
            libc::syscall(libc::SYS_close_range, 0, socket - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, socket + 1, u32::MAX, 0);
    }
    // SAFETY: `all` is a whole signal set, initialised by the call before it is used; the mask is this thread's own,
    // and it is the only one. A caller's handlers never run here.
    unsafe {
        let mut all = core::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, core::ptr::null_mut());
        let mut child = core::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut child);
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        libc::signalfd(-1, &raw const child, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    }
}

fn say(socket: RawFd, words: [u64; 5]) {
    // SAFETY: sends exactly the bytes of `words`, which outlive the call. Nobody there is no matter: the keeper then
    // finds the socket closed.
    unsafe { libc::send(socket, words.as_ptr().cast(), REPORT_LEN, libc::MSG_NOSIGNAL) };
}

/// Waits for children that ended; reports the command; ends the keeper with its last child.
fn reap(socket: RawFd, command: &mut Option<libc::pid_t>, flags: i32) {
    loop {
        let mut status = 0;
        // SAFETY: an all-zero `rusage` is a valid one.
        let mut usage = unsafe { core::mem::zeroed::<libc::rusage>() };
        // SAFETY: `status` and `usage` are whole and ours, written during the call.
        let pid = unsafe { libc::wait4(-1, &raw mut status, flags, &raw mut usage) };
        match pid {
            // Children are left, and none has ended.
            0 => return,
            // SAFETY: the errno of this thread, right after the call that set it.
            -1 if unsafe { *libc::__errno_location() } == libc::EINTR => {}
            // SAFETY: ends this process; nothing of it is to be unwound.
            -1 => unsafe { libc::_exit(0) },
            pid => {
                if *command == Some(pid) {
                    *command = None;
                    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
                    let peak = (usage.ru_maxrss as u64).saturating_mul(1024);
                    say(socket, [1, status as u64, micros(usage.ru_utime), micros(usage.ru_stime), peak]);
                }
                if flags & libc::WNOHANG == 0 {
                    // One gone: its children may be ours by now.
                    return;
                }
            }
        }
    }
}

/// Kills children until there are none; ends the keeper.
fn kill_all(socket: RawFd, command: &mut Option<libc::pid_t>) -> ! {
    loop {
        // First those that are there, without waiting in between, so that a bomb is behind and not ahead of us.
        if !kill_children() {
            // No list of children on this kernel: the command and its process group at least; never more, since a
            // wider kill would hit strangers.
            if let Some(pid) = *command {
                // SAFETY: integers only; `pid` is our child, not waited for, and leads its own session and group.
                unsafe {
                    libc::kill(-pid, libc::SIGKILL);
                    libc::kill(pid, libc::SIGKILL);
                }
            }
        }
        reap(socket, command, 0);
        reap(socket, command, libc::WNOHANG);
    }
}

/// Kills every child of the keeper once. Whether the kernel lists them (proc_pid_task_children in proc(5)).
fn kill_children() -> bool {
    // SAFETY: a NUL-terminated path that lives as long as the program; no memory is written. `thread-self` of the one
    // thread is the process.
    let list = unsafe { libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if list == -1 {
        return false;
    }
    let mut pid: libc::pid_t = 0;
    let mut buffer = [0u8; 4096];
    loop {
        // SAFETY: at most `buffer.len()` bytes are written to it.
        let got = unsafe { libc::read(list, buffer.as_mut_ptr().cast(), buffer.len()) };
        let Ok(got) = usize::try_from(got) else { break };
        if got == 0 {
            break;
        }
        for byte in buffer.iter().take(got) {
            if byte.is_ascii_digit() {
                pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
            } else if pid > 1 {
                // SAFETY: integers only. Our child and not waited for, so the number is still its.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                pid = 0;
            }
        }
    }
    // SAFETY: opened above and used by nobody else.
    unsafe { libc::close(list) };
    true
}
