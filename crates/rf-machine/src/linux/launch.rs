//! Starting a command as the owner's level allows, and the keeper that stays its parent.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use rf_sys::command::{Hold, KILL_TREE, REPORT_LEN, Report, SIGNAL, keep};
use rf_types::{Code, ExecSpec, ExitReport, Fault, Program, Rlimits, Usage};
use rf_wire::machine::Level;
use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{
    confine,
    resolve::{fault, show},
};
use crate::owner::Owner;

/// Signals, signal(7).
pub(crate) const SIGKILL: i32 = 9;

/// A command that runs, and our ends of its streams.
pub(crate) struct Launched {
    pub(crate) pid: u32,
    pub(crate) keeper: Keeper,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// With a terminal: its master, instead of the three.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Our end of the keeper: see [`rf_sys::command`].
pub(crate) struct Keeper {
    /// Ends with the last process of the tree; to be waited for.
    pub(crate) child: Child,
    /// Its reports come here; closed, it kills the tree.
    pub(crate) socket: UnixStream,
}

fn read_report(socket: &mut UnixStream) -> Option<Report> {
    let mut message = [0; REPORT_LEN];
    socket.read_exact(&mut message).ok()?;
    Some(Report::decode(&message))
}

/// How a command ended, of a keeper's second report.
pub(crate) fn ended(message: &[u8; REPORT_LEN], started: Instant, timed_out: bool) -> Option<ExitReport> {
    let Report::Ended { status, cpu_user_us, cpu_system_us, memory_peak_bytes } = Report::decode(message) else {
        return None;
    };
    // As of waitpid(2): the low seven bits are the signal, the next byte the exit code.
    let signal = status & 0x7f;
    let wall_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    Some(ExitReport {
        code: (signal == 0).then_some(status >> 8 & 0xff),
        signal: (signal != 0).then_some(signal),
        timed_out,
        usage: Usage { cpu_user_us, cpu_system_us, memory_peak_bytes, wall_us },
    })
}

/// Orders to a keeper.
#[derive(Debug)]
pub(crate) struct Orders(pub(crate) UnixStream);

impl Orders {
    /// Kills the whole tree. False when the keeper is gone, and so has nothing left to kill.
    pub(crate) fn kill_tree(&self) -> bool {
        (&self.0).write_all(&[KILL_TREE, 0]).is_ok()
    }

    /// Signals the command's first process, if it still runs.
    pub(crate) fn signal(&self, signal: u8) {
        let _ = (&self.0).write_all(&[SIGNAL, signal]);
    }
}

/// Starts a command. Blocks for as long as fork and exec take.
///
/// # Errors
/// `exec_failed` with what the kernel said; `layer_unavailable`; `invalid_request`; `owner_forbids`.
pub(crate) fn launch(owner: &Owner, spec: &ExecSpec) -> Result<Launched, Fault> {
    let mut command = match &spec.program {
        Program::Argv(argv) => {
            let (program, arguments) = argv.split_first().ok_or_else(|| Fault::invalid("`argv` is empty"))?;
            if program.is_empty() {
                return Err(Fault::invalid("the program's name is empty"));
            }
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Program::Shell(line) => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", line]);
            command
        }
    };
    command.env_clear().envs(owner.environment(spec.pty.is_some()));
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let name = show(OsStr::new(name));
            return Err(Fault::invalid(format!(
                "`{name}` is no name of an environment variable, or its value has a NUL"
            )));
        }
        command.env(name, value);
    }
    // Found as files are found, and then entered by descriptor.
    let cwd = owner.root.directory(spec.cwd.as_deref().unwrap_or(".")).map_err(|fault| match fault.code {
        Code::NotFound => Fault::new(Code::ExecFailed, format!("no directory {}", fault.message), ""),
        _ => fault,
    })?;
    command.current_dir(format!("/proc/self/fd/{}", cwd.as_raw_fd()));

    let broken = |errno: rustix::io::Errno| fault(errno, OsStr::new("pipe"));
    let (mut stdin, mut stdout, mut stderr, mut terminal) = (None, None, None, None);
    let mut terminal_path = None;
    if let Some(size) = spec.pty {
        let (master, peer, path) = open_terminal(size.rows, size.cols).map_err(broken)?;
        command.stdin(Stdio::from(peer.try_clone().map_err(|_| broken(rustix::io::Errno::MFILE))?));
        command.stdout(Stdio::from(peer.try_clone().map_err(|_| broken(rustix::io::Errno::MFILE))?));
        command.stderr(Stdio::from(peer));
        terminal = Some(master);
        terminal_path = Some(path);
    } else {
        if spec.stdin {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(broken)?;
            command.stdin(Stdio::from(theirs));
            stdin = Some(ours);
        } else {
            command.stdin(Stdio::null());
        }
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(broken)?;
        command.stdout(Stdio::from(theirs));
        stdout = Some(ours);
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(broken)?;
        command.stderr(Stdio::from(theirs));
        stderr = Some(ours);
    }
    let (landlock, filter) = match owner.level() {
        Level::Full => (None, Vec::new()),
        Level::Workspace => {
            let rules = confine::rules(owner.root.path(), &owner.private, &owner.readable, terminal_path.as_deref())?;
            (Some(rules), confine::filter())
        }
        Level::ReadOnly => return Err(owner.forbids("runs no commands")),
    };
    let pair = UnixStream::pair().and_then(|(ours, theirs)| Ok((ours.try_clone()?, ours, theirs)));
    // Before there is a child, so that nothing fails afterwards that would leave it to nobody.
    let (mut ours, socket, theirs) =
        pair.map_err(|error| Fault::new(Code::PlaceExhausted, format!("no socket for the keeper: {error}"), ""))?;
    let hold = Hold {
        socket: theirs.into(),
        landlock,
        filter,
        no_capabilities: owner.level() != Level::Full,
        terminal: spec.pty.is_some(),
        rlimits: limits(&spec.rlimits),
    };
    keep(&mut command, hold);
    let spawned = command.spawn();
    // Our copies of the command's ends and of the keeper's, which the command object holds.
    let program = show(command.get_program());
    drop(command);
    let child = spawned.map_err(|error| {
        let held = if owner.level() == Level::Workspace && error.kind() == std::io::ErrorKind::PermissionDenied {
            "the machine's owner holds commands to the workspace and the system's programs"
        } else {
            ""
        };
        let said = error.to_string();
        let said = said.split(" (os error").next().unwrap_or_default().to_lowercase();
        Fault::new(Code::ExecFailed, format!("cannot start `{program}`: {said}"), held)
    })?;
    let mut keeper = Keeper { child, socket };
    let Some(Report::Started { pid }) = read_report(&mut ours) else {
        keeper.child.kill().and_then(|()| keeper.child.wait()).ok();
        return Err(Fault::new(Code::ExecFailed, format!("`{program}` ended before it began"), ""));
    };
    Ok(Launched { pid, keeper, stdin, stdout, stderr, terminal })
}

fn open_terminal(rows: u16, cols: u16) -> rustix::io::Result<(OwnedFd, OwnedFd, PathBuf)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    set_size(&master, rows, cols)?;
    let path = PathBuf::from(OsStr::from_bytes(ptsname(&master, Vec::new())?.to_bytes()));
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let peer = rustix::fs::open(&path, flags, Mode::empty())?;
    Ok((master, peer, path))
}

/// Sets a terminal's size.
pub(crate) fn set_size(master: impl AsFd, rows: u16, cols: u16) -> rustix::io::Result<()> {
    tcsetwinsize(master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })
}

/// As (resource, value): linux/resource.h, the same on x86-64 and aarch64.
fn limits(asked: &Rlimits) -> Vec<(u32, u64)> {
    let Rlimits { cpu_seconds_max, address_space_bytes_max, file_bytes_max, files_max } = asked;
    [(0, cpu_seconds_max), (9, address_space_bytes_max), (1, file_bytes_max), (7, files_max)]
        .into_iter()
        .filter_map(|(resource, value)| value.map(|value| (resource, value)))
        .collect()
}

/// Sends `signal` to every process below `keeper`. One that forks meanwhile may be missed; for SIGKILL the keeper
/// itself kills until nobody is left.
pub(crate) fn signal_tree(keeper: u32, signal: i32) {
    /// Handles that are open at once. Chosen: well below what a program may have open, and few listings for a large tree.
    const HANDLES_MAX: usize = 256;
    let Some(signal) = rustix::process::Signal::from_named_raw(signal) else { return };
    for some in descendants(keeper).chunks(HANDLES_MAX) {
        let handle = |pid: &u32| {
            let raw = rustix::process::Pid::from_raw(i32::try_from(*pid).ok()?)?;
            Some((*pid, rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok()?))
        };
        let handles: Vec<_> = some.iter().filter_map(handle).collect();
        // Between the listing and the handle a number may have gone to a stranger; from here on it cannot any more.
        let still: HashSet<u32> = descendants(keeper).into_iter().collect();
        for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
            let _ = rustix::process::pidfd_send_signal(handle, signal);
        }
    }
}

/// All processes below `keeper`, parents first.
fn descendants(keeper: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut known = HashSet::new();
    let mut left = vec![keeper];
    while let Some(parent) = left.pop() {
        let tasks = std::fs::read_dir(Path::new("/proc").join(parent.to_string()).join("task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
            let children: Vec<_> = children.filter(|pid| known.insert(*pid)).collect();
            found.extend(&children);
            left.extend(children);
        }
    }
    found
}
