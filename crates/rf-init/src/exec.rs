//! From a `SPAWN` to a running process: pipes or terminal, cgroup, environment, plan.

use core::ffi::CStr;

use rf_sys::guest::{Failure, Identity, Mapping, Plan, Pointers, Program, Step, cstr, spawn as start};
use rf_wire::init::{Spawn, UNLIMITED, spawn, stage};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::Pid,
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::users::User;

/// Bytes a pipe of output holds; the most that an unprivileged pipe may (pipe(7), pipe-max-size).
const PIPE_BYTES: usize = 1024 * 1024;
/// Pointers to arguments and environment that need no mapping of their own.
const POINTERS_SMALL: usize = 256;
/// Where programs are looked for when the exec's environment does not say.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which step failed and what the kernel said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) stage: u32,
    pub(crate) errno: Errno,
}

/// Makes the error of a stage.
pub(crate) fn at(stage: u32) -> impl Fn(Errno) -> Refused {
    move |errno| Refused { stage, errno }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        let stage = match failure.step {
            Step::Fork => stage::FORK,
            Step::Identity => stage::IDENTITY,
            Step::Directory => stage::DIRECTORY,
            Step::Program => stage::PROGRAM,
        };
        Self { stage, errno: failure.errno }
    }
}

/// The two sides of an exec's streams.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Standard input, output, error of the process; `None` is `/dev/null`, or for a terminal the first again.
    child: [Option<OwnedFd>; 3],
    /// The server's ends, in the order of `SPAWNED`.
    pub(crate) server: [Option<OwnedFd>; 3],
    terminal: bool,
}

impl Streams {
    /// Makes pipes, or a terminal. They belong to whoever is the file system's user now.
    pub(crate) fn make(flags: u32, rows: u16, cols: u16) -> Result<Self, Errno> {
        if flags & spawn::PTY != 0 {
            return Self::terminal(rows, cols);
        }
        let mut child = [const { None }; 3];
        let mut server = [const { None }; 3];
        let mut next = 0;
        for (stream, child) in child.iter_mut().enumerate() {
            if stream == 0 && flags & spawn::STDIN == 0 {
                continue;
            }
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            let (ours, theirs) = if stream == 0 { (writer, reader) } else { (reader, writer) };
            if stream == 1 {
                // Beyond the user's share of pipe memory the pipe keeps its usual size (pipe(7)).
                let _ = fcntl_setpipe_size(&ours, PIPE_BYTES);
            }
            *child = Some(theirs);
            server[next] = Some(ours);
            next += 1;
        }
        Ok(Self { child, server, terminal: false })
    }

    fn terminal(rows: u16, cols: u16) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = openat(CWD, c"/dev/ptmx", flags, Mode::empty())?;
        unlockpt(&master)?;
        // By the master, not by a name: no other can be put in its place.
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?;
        Ok(Self { child: [Some(slave), None, None], server: [Some(master), None, None], terminal: true })
    }

    /// Streams that somebody else made.
    pub(crate) fn given(child: [Option<OwnedFd>; 3]) -> Self {
        Self { child, server: [const { None }; 3], terminal: false }
    }

    fn stdio<'a>(&'a self, null: BorrowedFd<'a>) -> [BorrowedFd<'a>; 3] {
        let first = self.child[0].as_ref().map_or(null, AsFd::as_fd);
        let other = |index: usize| match &self.child[index] {
            Some(fd) => fd.as_fd(),
            None if self.terminal => first,
            None => null,
        };
        [first, other(1), other(2)]
    }
}

/// Strings put together in a buffer.
struct Strings<'a>(&'a mut [u8]);

impl<'a> Strings<'a> {
    /// `name` and `value` one after the other.
    fn join(&mut self, name: &[u8], value: &[u8]) -> Result<&'a CStr, Errno> {
        let len = name.len() + value.len() + 1;
        let (text, rest) = core::mem::take(&mut self.0).split_at_mut_checked(len).ok_or(Errno::TOOBIG)?;
        self.0 = rest;
        text[..name.len()].copy_from_slice(name);
        text[name.len()..len - 1].copy_from_slice(value);
        text[len - 1] = 0;
        Ok(cstr(text))
    }
}

/// What `start_exec` needs beside the order.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) user: &'a User,
    /// One uid only: ids are kept, every capability goes.
    pub(crate) one_uid: bool,
    pub(crate) streams: &'a Streams,
    pub(crate) null: BorrowedFd<'a>,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// Starts what a `SPAWN` describes.
///
/// # Errors
/// Which step failed and what the kernel said; then nothing of it is left.
pub(crate) fn start_exec(order: &Spawn<'_>, context: &Context<'_>) -> Result<Pid, Refused> {
    let malformed = Refused { stage: stage::ORDER, errno: Errno::INVAL };
    let is_shell = order.flags & spawn::SHELL != 0;
    if order.argv.is_empty() || (is_shell && order.argv.len() != 1) {
        return Err(malformed);
    }
    // Two words at the front and end of each list, three words for a shell's, seven for the defaults.
    let (argv_words, env_words) = (order.argv.len() + 5, order.env.len() + 10);
    let mut small = [0; POINTERS_SMALL];
    let mut large = None;
    let words = if argv_words + env_words <= POINTERS_SMALL {
        &mut small[..]
    } else {
        let bytes = (argv_words + env_words) * size_of::<usize>();
        large.insert(Mapping::new(bytes).map_err(at(stage::PROGRAM))?).words()
    };
    let (argv_slots, env_slots) = words.split_at_mut(argv_words);

    let mut argv = Pointers::new(argv_slots).map_err(at(stage::PROGRAM))?;
    if is_shell {
        // The first is replaced by the shell's path.
        argv.push(c"sh").and_then(|()| argv.push(c"-c")).map_err(at(stage::PROGRAM))?;
    }
    for text in order.argv.clone() {
        argv.push(cstr(text)).map_err(at(stage::PROGRAM))?;
    }

    let mut buffer = [0; 1024];
    let mut strings = Strings(&mut buffer);
    let mut env = Pointers::new(env_slots).map_err(at(stage::PROGRAM))?;
    for text in order.env.clone() {
        env.push(cstr(text)).map_err(at(stage::PROGRAM))?;
    }
    let user = context.user;
    let terminal: &[u8] = if order.flags & spawn::PTY != 0 { b"xterm-256color" } else { b"" };
    let language: &[u8] = if order.flags & spawn::NO_LANGUAGE != 0 { b"" } else { b"C.UTF-8" };
    let defaults: [(&[u8], &[u8]); 7] = [
        (b"PATH=", DEFAULT_PATH),
        (b"HOME=", user.home.bytes()),
        (b"USER=", user.name.bytes()),
        (b"LOGNAME=", user.name.bytes()),
        (b"SHELL=", user.shell.bytes()),
        (b"LANG=", language),
        (b"TERM=", terminal),
    ];
    for (name, value) in defaults {
        if !value.is_empty() && !order.env.clone().any(|given| given.starts_with(name)) {
            let text = strings.join(name, value).map_err(at(stage::PROGRAM))?;
            env.push(text).map_err(at(stage::PROGRAM))?;
        }
    }
    let path = order.env.clone().find_map(|given| given.strip_prefix(b"PATH="));
    let path = path.map_or(DEFAULT_PATH, |path| cstr(path).to_bytes());

    let resources = [libc::RLIMIT_CPU, libc::RLIMIT_AS, libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE];
    let mut rlimits = [(0, 0); 4];
    let mut count = 0;
    for (resource, most) in resources.into_iter().zip(order.rlimits) {
        if most != UNLIMITED {
            rlimits[count] = (resource, most);
            count += 1;
        }
    }
    let pid = start(Plan {
        stdio: context.streams.stdio(context.null),
        terminal: context.streams.terminal,
        rlimits: &rlimits[..count],
        identity: Identity {
            ids: (!context.one_uid).then_some((user.uid, user.gid)),
            groups: user.groups(),
            keep_capabilities: user.uid == 0 && !context.one_uid,
        },
        home: user.home.cstr(),
        cwd: cstr(order.cwd),
        program: if is_shell { Program::Shell } else { Program::Search(path) },
        argv,
        env,
        cgroup: context.cgroup,
    })?;
    Ok(pid)
}
