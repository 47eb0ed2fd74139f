//! Starting the unpacker of a layer: a process without rights that reads strangers' bytes and writes files.
//!
//! It runs in namespaces of its own (user, pid, mount, net, ipc, uts), as `root` of a range of ids that no sandbox and
//! nobody else has, with the four capabilities that giving files their owners takes. Its one way to write is the
//! target: Landlock allows nothing else. It may read what everybody may until its program is loaded
//! ([`forget_the_host`]), and then nothing but the target either. The files' owners are stored as 0 to 65535 (the target's
//! mount maps them), so that one layer serves every sandbox.

use std::{
    ffi::CString,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
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
    process::{Pid, Signal},
};

use crate::{
    launch::{self, LaunchError, Launcher, Step as _},
    packet,
    plan::IDS_PER_SANDBOX,
    push::Helper,
    setup::{Failed, bound_capabilities, dump_nothing},
};

/// First host id of the unpacker: a range below the sandboxes' own.
const IDS_BASE: u32 = 0x6FFE_0000;
/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID (linux/capability.h).
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;

/// An unpacker at work. Dropped, it is killed.
#[derive(Debug)]
pub struct Unpacker {
    helper: Helper,
    report: OwnedFd,
    /// Where it says which step of its confinement failed; its exec closes the other end.
    setup: OwnedFd,
}

impl Unpacker {
    /// Starts `program unpack argument` with `blob` as its input and the directory `target` as descriptor 3.
    ///
    /// # Errors
    /// The step that failed; nothing is left running.
    pub fn start(
        launcher: &Launcher,
        program: &Path,
        target: &Path,
        blob: BorrowedFd<'_>,
        argument: &str,
    ) -> Result<Self, LaunchError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let program = rustix::fs::open(program, flags, Mode::empty()).step("open the unpacker's program")?;
        let (report, report_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
        let (setup, setup_child) = packet::pair_without_descriptors().step("make a socket")?;
        let rooted = launcher.host().rooted;
        let argument = CString::new(argument).map_err(|_| Errno::INVAL).step("pass the unpacker its order")?;
        match process::fork_into(namespaces::USER | namespaces::PID, None).step("clone the unpacker")? {
            Forked::Child => {
                drop(setup);
                let given = Given { program, blob, report: report_child, argument };
                child(launcher, &given, &setup_child, rooted)
            }
            Forked::Parent { pid, pidfd } => {
                let unpacker = Self { helper: Helper::new(pidfd), report, setup };
                drop((report_child, setup_child));
                give_target(pid, rooted, target, &unpacker.setup)?;
                Ok(unpacker)
            }
        }
    }

    /// Readable when it has said something or has ended.
    #[must_use]
    pub fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Kills it, if it has not ended: the process.
    #[must_use]
    pub fn into_helper(self) -> Helper {
        self.helper.kill();
        self.helper
    }

    /// Which step of its confinement failed and why, if that is what ended it: then it has read nothing of the layer.
    #[must_use]
    pub fn unconfined(&self) -> Option<String> {
        let mut buffer = [0; 256];
        let (len, _) = packet::receive(&self.setup, &mut buffer, false).ok()?;
        let (step, errno) = launch::failed_step(&String::from_utf8_lossy(&buffer[..len]))?;
        Some(format!("cannot {step}: {errno}"))
    }
}

/// Maps the new process's ids and sends it the target, mounted with ids as they are to be stored.
fn give_target(pid: Pid, rooted: bool, target: &Path, setup: &OwnedFd) -> Result<(), LaunchError> {
    let proc = |file: &str| format!("/proc/{}/{file}", pid.as_raw_pid());
    let opened = if rooted {
        let map = format!("0 {IDS_BASE} {IDS_PER_SANDBOX}");
        fs::write(proc("uid_map"), &map).step("map the unpacker's users")?;
        fs::write(proc("gid_map"), &map).step("map the unpacker's groups")?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(proc("ns/user"), flags, Mode::empty()).step("open the user namespace")?;
        let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, target, tree).step("open the layer's directory")?;
        let set = attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
        set_attributes(mount.as_fd(), set, false, Some(namespace.as_fd())).step("map the layer's ids")?;
        mount
    } else {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        fs::write(proc("setgroups"), "deny").step("map the unpacker's group")?;
        fs::write(proc("uid_map"), format!("0 {} 1", uid.as_raw())).step("map the unpacker's user")?;
        fs::write(proc("gid_map"), format!("0 {} 1", gid.as_raw())).step("map the unpacker's group")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(target, flags, Mode::empty()).step("open the layer's directory")?
    };
    packet::send(setup, b"G", &[opened.as_fd()]).step("start the unpacker")
}

struct Given<'a> {
    program: OwnedFd,
    blob: BorrowedFd<'a>,
    report: OwnedFd,
    argument: CString,
}

fn child(launcher: &Launcher, given: &Given<'_>, setup: &OwnedFd, rooted: bool) -> ! {
    let mut buffer = [0; 8];
    let Ok((1, fds)) = packet::receive(setup, &mut buffer, true) else { process::exit(1) };
    let Some(target) = fds.first() else { process::exit(1) };
    let (failed, report) = become_unpacker(launcher, given, target.as_fd(), setup.as_fd(), rooted);
    launch::tell(report, &failed);
    process::exit(1)
}

/// Names the step of an error.
fn at(step: &'static str) -> impl FnOnce(Errno) -> Failed {
    move |errno| Failed { step, errno }
}

/// Everything up to the exec; comes back with what failed and where that is to be told.
fn become_unpacker<'a>(
    launcher: &Launcher,
    given: &Given<'_>,
    target: BorrowedFd<'_>,
    setup: BorrowedFd<'a>,
    rooted: bool,
) -> (Failed, BorrowedFd<'a>) {
    if let Err(failed) = confine(target, rooted) {
        return (failed, setup);
    }
    const PROGRAM: i32 = 4;
    const SETUP: i32 = 5;
    let fds = [given.blob, given.report.as_fd(), launcher.null(), target, given.program.as_fd(), setup];
    if let Err(failed) = process::arrange_descriptors(&fds, PROGRAM as usize).map_err(at("arrange descriptors")) {
        return (failed, setup);
    }
    let setup = process::arranged(SETUP);
    let failed = match rf_sys::seccomp::install(launcher.filter()).map_err(at("install the system call filter")) {
        Err(failed) => failed,
        Ok(()) => Failed {
            step: "start the unpacker",
            errno: process::execveat(PROGRAM, &[c"ringfence", c"unpack", &given.argument]),
        },
    };
    (failed, setup)
}

/// Gives up everything but reading what is there and writing below `target`.
fn confine(target: BorrowedFd<'_>, rooted: bool) -> Result<(), Failed> {
    if rooted {
        rustix::thread::set_thread_groups(&[]).map_err(at("give up the groups"))?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(at("take the group"))?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(at("take the user"))?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at("tie to the warden"))?;
    let new = namespaces::MOUNT | namespaces::NET | namespaces::IPC | namespaces::UTS;
    process::unshare(new).map_err(at("unshare"))?;
    rustix::process::chdir("/").map_err(at("go to the root"))?;
    dump_nothing().map_err(at("forbid core dumps"))?;
    hold_to(target).map_err(at("restrict itself by Landlock"))?;
    bound_capabilities(if rooted { CAPABILITIES } else { 0 })?;
    rustix::thread::set_no_new_privs(true).map_err(at("set no_new_privs"))
}

/// Takes from the calling thread, the unpacker's, what its program needed to be started: from here on it opens nothing but
/// what is below `target`. What of the host everybody may read would otherwise come into a layer by whoever takes the
/// unpacker over. It has `no_new_privs`.
///
/// # Errors
/// As landlock_restrict_self(2).
pub fn forget_the_host(target: BorrowedFd<'_>) -> Result<(), Errno> {
    let handled = landlock::fs::all(landlock::abi());
    let rules = landlock::Ruleset::new(handled, 0, 0)?;
    rules.allow_beneath(target, handled)?;
    rules.restrict_self()
}

fn hold_to(target: BorrowedFd<'_>) -> Result<(), Errno> {
    let handled = landlock::fs::all(landlock::abi());
    let rules = landlock::Ruleset::new(handled, 0, 0)?;
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let reading = landlock::fs::READ_FILE | landlock::fs::READ_DIR | landlock::fs::EXECUTE;
    rules.allow_beneath(root.as_fd(), reading)?;
    // Whiteouts of layers are devices 0:0.
    rules.allow_beneath(target, handled)?;
    rules.restrict_self()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_loaded_it_opens_nothing_but_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = fs::File::open(dir.path()).unwrap();
        let path = dir.path().join("file");
        let hosts = ["/etc/passwd", "/proc/self/status", "/usr/bin/env"];
        // Both are of a thread.
        let held = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            assert!(hosts.iter().all(|path| fs::File::open(path).is_ok()), "the control");
            forget_the_host(target.as_fd()).unwrap();
            fs::write(&path, "made").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"made");
            for host in hosts {
                assert_eq!(fs::File::open(host).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "{host}");
            }
            assert!(fs::read_dir("/").is_err() && std::process::Command::new("/usr/bin/env").spawn().is_err());
        });
        held.join().unwrap();
    }
}
