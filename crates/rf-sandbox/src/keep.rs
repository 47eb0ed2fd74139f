//! Keeping layers that sandboxes wrote: a process without rights copies them into a directory, or empties one.
//!
//! The names, links and content are a user's, or a stranger's who made an image, so no process with rights walks them.
//! This one has a user namespace of its own with a range of ids that nobody else has, no network, no other descriptor of
//! the warden's, the system calls of a sandbox, and by Landlock may read the layers and write below the target and nothing
//! else. Ids are stored as the layers have them (0 to 65535), since both come as mounts that map them. It does not read a
//! file's content but copies it, and follows no link.
//!
//! A warden without root has layers of templates alone, which are emptied under its own one id, without capabilities.

mod tree;

use std::{
    collections::HashSet,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rf_sys::{
    landlock,
    mount::{attribute, set_attributes},
    process::{self, Forked, namespaces},
};
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{Pid, Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};
use serde::{Deserialize, Serialize};

use crate::{
    launch::{self, LaunchError, Launcher, Step as _},
    packet,
    plan::IDS_PER_SANDBOX,
    push::Helper,
    setup::{bound_capabilities, dump_nothing},
};

/// First host id of such a process: a range below that of the unpacker.
const IDS_BASE: u32 = 0x6FFD_0000;
/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID (linux/capability.h).
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;
/// Longest report.
const REPORT_MAX: usize = 1024;
/// How much a copy in the background stands back behind what users run (nice(2)). Chosen.
const NICE: i32 = 10;
/// Most layers of one copy, over all its parts: they are handed over beside one message.
pub const LAYERS_MAX: usize = packet::FDS_MAX - 8;

/// What is copied into one directory of the target.
#[derive(Debug)]
pub struct Part {
    /// The directory's name.
    pub name: String,
    /// The layers, the uppermost first: what several have is taken as overlayfs would show them over yet others.
    pub layers: Vec<PathBuf>,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Bytes of files, holes not counted.
    pub bytes: u64,
    /// Files, directories and everything else that has a name.
    pub files: u64,
}

impl Kept {
    /// Both together. Such numbers come from processes that walked what is a user's: they are added up without overflow.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), files: self.files.saturating_add(other.files) }
    }
}

/// A copy, or a removal, under way. Dropped, it is cut off.
#[derive(Debug)]
pub struct Keeping {
    helper: Helper,
    report: OwnedFd,
    /// Closed, it lets the process end.
    control: OwnedFd,
}

/// What it does.
enum Task {
    Copy(Vec<Part>),
    Empty,
}

impl Keeping {
    /// Begins to copy into `target`, an empty directory. `background`: nobody waits for it.
    ///
    /// # Errors
    /// The step that failed; nothing is left running.
    pub fn copy(launcher: &Launcher, target: &Path, parts: Vec<Part>, background: bool) -> Result<Self, LaunchError> {
        Self::begin(launcher, target, Task::Copy(parts), background)
    }

    /// Begins to remove all that is in `target`.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn empty(launcher: &Launcher, target: &Path) -> Result<Self, LaunchError> {
        Self::begin(launcher, target, Task::Empty, true)
    }

    fn begin(launcher: &Launcher, target: &Path, task: Task, background: bool) -> Result<Self, LaunchError> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (report, report_child) = rustix::pipe::pipe_with(flags).step("make a pipe")?;
        let (control_child, control) = rustix::pipe::pipe_with(flags).step("make a pipe")?;
        let (setup, setup_child) = packet::pair_without_descriptors().step("make a socket")?;
        match process::fork_into(namespaces::USER | namespaces::PID, None).step("clone a process that copies")? {
            Forked::Child => {
                // With copies of the warden's ends it would never see that the warden is gone.
                drop((setup, report, control));
                let ends = Ends { setup: setup_child, report: report_child, control: control_child };
                child(launcher, &task, &ends, background)
            }
            Forked::Parent { pid, pidfd } => {
                let keeping = Self { helper: Helper::new(pidfd), report, control };
                drop((setup_child, report_child, control_child));
                give(pid, launcher.host().rooted, target, &task, &setup)?;
                Ok(keeping)
            }
        }
    }

    /// Readable when [`Self::advance`] has something to do.
    #[must_use]
    pub fn watched(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// What came of it, once it is said. The process holds the layers until [`Self::into_helper`], so that whoever else
    /// has them can let go of them first.
    ///
    /// # Errors
    /// What failed, for people.
    pub fn advance(&self) -> Result<Kept, String> {
        let mut buffer = [0; REPORT_MAX];
        // The process writes it at once, and a pipe takes that whole (pipe(7), PIPE_BUF).
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.report, &mut buffer[..])) {
            Ok(len) if len > 0 => {
                let said: Result<Kept, String> = serde_json::from_slice(&buffer[..len])
                    .unwrap_or_else(|_| Err("the copying process said what it should not".to_owned()));
                said
            }
            Ok(_) => Err("the copying process ended without a word".to_owned()),
            Err(errno) => Err(errno.to_string()),
        }
    }

    /// The process, killed at its work; what it did until then stays.
    #[must_use]
    pub fn cut_off(self) -> Helper {
        self.helper.kill();
        self.helper
    }

    /// The process, which ends now.
    #[must_use]
    pub fn into_helper(self) -> Helper {
        drop(self.control);
        self.helper
    }
}

/// Maps the new process's ids and sends it the target and the layers, with their ids mapped.
fn give(pid: Pid, rooted: bool, target: &Path, task: &Task, setup: &OwnedFd) -> Result<(), LaunchError> {
    let proc = |file: &str| format!("/proc/{}/{file}", pid.as_raw_pid());
    if !rooted {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        fs::write(proc("setgroups"), "deny").step("map the group of a process that empties")?;
        fs::write(proc("uid_map"), format!("0 {} 1", uid.as_raw())).step("map the user of a process that empties")?;
        fs::write(proc("gid_map"), format!("0 {} 1", gid.as_raw())).step("map the group of a process that empties")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::open(target, flags, Mode::empty()).step("open the directory to empty")?;
        return packet::send(setup, b"G", &[target.as_fd()]).step("start a process that empties");
    }
    let map = format!("0 {IDS_BASE} {IDS_PER_SANDBOX}");
    fs::write(proc("uid_map"), &map).step("map the users of a process that copies")?;
    fs::write(proc("gid_map"), &map).step("map the groups of a process that copies")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(proc("ns/user"), flags, Mode::empty()).step("open the user namespace")?;
    let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, target, tree).step("open the directory to keep a layer in")?;
    let set = attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
    set_attributes(mount.as_fd(), set, false, Some(namespace.as_fd())).step("map the ids of that directory")?;
    let mut mounts = vec![mount];
    if let Task::Copy(parts) = task {
        for layer in parts.iter().flat_map(|part| &part.layers) {
            mounts.push(launch::read_only(layer, Some(namespace.as_fd()))?);
        }
    }
    let fds: Vec<BorrowedFd<'_>> = mounts.iter().map(AsFd::as_fd).collect();
    packet::send(setup, b"G", &fds).step("start a process that copies")
}

struct Ends {
    setup: OwnedFd,
    report: OwnedFd,
    control: OwnedFd,
}

fn child(launcher: &Launcher, task: &Task, ends: &Ends, background: bool) -> ! {
    let mut buffer = [0; 8];
    let Ok((1, fds)) = packet::receive(&ends.setup, &mut buffer, true) else { process::exit(1) };
    let said = match confine(launcher, &fds, ends, background) {
        Ok(()) => work(task, fds),
        Err(errno) => Err(format!("cannot confine the process that copies: {errno}")),
    };
    if let Ok(bytes) = serde_json::to_vec(&said) {
        let _ = rustix::io::write(&ends.report, &bytes[..bytes.len().min(REPORT_MAX)]);
    }
    // Until the warden lets go of it.
    let _ = rustix::io::read(&ends.control, &mut buffer[..]);
    process::exit(i32::from(said.is_err()))
}

fn confine(launcher: &Launcher, fds: &[OwnedFd], ends: &Ends, background: bool) -> Result<(), Errno> {
    let mut needed = vec![ends.report.as_fd(), ends.control.as_fd()];
    needed.extend(fds.iter().map(AsFd::as_fd));
    process::close_all_but(&needed)?;
    let rooted = launcher.host().rooted;
    if rooted {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    process::unshare(namespaces::MOUNT | namespaces::NET | namespaces::IPC | namespaces::UTS)?;
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::empty());
    if background {
        // Staying as important as before is no fault.
        let _ = rustix::process::nice(NICE);
    }
    // A few for each directory on the way down.
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    dump_nothing()?;
    let handled = landlock::fs::all(landlock::abi());
    let rules = landlock::Ruleset::new(handled, 0, 0)?;
    for (index, fd) in fds.iter().enumerate() {
        let reading = landlock::fs::READ_FILE | landlock::fs::READ_DIR;
        // The first is the target. What is deleted in a layer is a device 0:0 there.
        rules.allow_beneath(fd.as_fd(), if index == 0 { handled } else { reading })?;
    }
    rustix::thread::set_no_new_privs(true)?;
    rules.restrict_self()?;
    let capabilities = if rooted { CAPABILITIES } else { 0 };
    bound_capabilities(capabilities).map_err(|failed| failed.errno)?;
    let few = CapabilitySet::from_bits_retain(capabilities);
    let sets = CapabilitySets { effective: few, permitted: few, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rf_sys::seccomp::install(launcher.filter())
}

fn work(task: &Task, fds: Vec<OwnedFd>) -> Result<Kept, String> {
    let mut fds = fds.into_iter();
    let target = fds.next().ok_or("no target")?;
    let failed = |failed: tree::Failed| failed.to_string();
    match task {
        Task::Empty => tree::empty(&target).map(|()| Kept::default()).map_err(failed),
        Task::Copy(parts) => {
            let mut kept = Kept::default();
            let mut names = HashSet::new();
            for part in parts {
                let layers: Vec<OwnedFd> = fds.by_ref().take(part.layers.len()).collect();
                if layers.is_empty() || !names.insert(&part.name) {
                    return Err(format!("`{}` has no layers of its own", part.name));
                }
                let added = tree::copy(&target, &part.name, &layers).map_err(failed)?;
                kept = kept.and(added);
            }
            tree::sync(&target).map_err(failed)?;
            Ok(kept)
        }
    }
}
