//! Pushing: what a sandbox has written becomes a read-only layer below a new, empty one, and nothing is copied.
//!
//! ```text
//!  before             after
//!                      written (new)
//!  written             what was written: read-only from now on, shared with the snapshot
//!  layers              layers
//! ```
//!
//! An overlay cannot be given another layer, so a new root is put together over the same file system and takes the place
//! of the old one in the sandbox's mount namespace (`pivot_root`, which moves the root and the directory of process 1).
//! What somebody holds of the old root (a directory, a descriptor, a mapping) stays a thing of the old root, and what
//! they wrote through it would land in the layer: so this is done only while process 1, which holds nothing there, is the
//! only process, and frozen. The old overlays are made read-only first, which the kernel refuses while a file is open for
//! writing, as one may be by the server, which is not frozen: then nothing is pushed. The file system is the same, so its size holds what was pushed as well as what comes.
//!
//! It is done by a process of its own that is `root` of the sandbox's user namespace and nothing on the host, as a launch
//! is, and everything that can fail is done before the root is changed. Should it be killed at its work, by the kernel for
//! want of memory for one, another such process takes the sandbox back to its old root or on to the new one ([`Mend`]).

mod inside;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rf_sys::{
    mount::set_attributes,
    process::{self, Forked},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::{Signal, WaitId, WaitIdOptions},
};

use self::inside::{Given, Torn};
use crate::{
    ending,
    launch::{self, LaunchError, Sandbox, Step as _},
    packet,
    plan::RootSource,
};

/// Most times that the written layer of one sandbox becomes a read-only one. Chosen: overlayfs takes 500 layers, and
/// each makes the search for a name that is not there a little longer.
pub const PUSHES_MAX: u32 = 200;

/// The step that fails while a file is open for writing.
const STILL: &str = "keep the old root from being written";

/// Whether a push failed because a file is open for writing: by the server, which is not frozen.
#[must_use]
pub fn is_being_written(error: &LaunchError) -> bool {
    matches!(error, LaunchError::Inside { step, errno: Errno::BUSY } if step == STILL)
}

/// What a sandbox writes through one of its overlays.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    /// [`crate::plan::Bind::to`] of the bind; `None` is the root.
    pub bind: Option<PathBuf>,
    /// The layer, below the sandbox's disk.
    pub dir: PathBuf,
}

/// The name of a directory on the disk of a sandbox that was pushed so often; `index` is that of a bind.
fn name(pushed: u32, what: &str, index: Option<usize>) -> String {
    let index = index.map_or_else(String::new, |index| index.to_string());
    match pushed {
        0 => format!("{what}{index}"),
        pushed => format!("p{pushed}/{what}{index}"),
    }
}

impl Sandbox {
    /// How often its written layer became a read-only one.
    #[must_use]
    pub const fn pushed(&self) -> u32 {
        self.pushed
    }

    /// The file system that all it writes is on; `None` where sandboxes cannot be saved.
    #[must_use]
    pub fn disk(&self) -> Option<BorrowedFd<'_>> {
        self.disk.as_ref().map(AsFd::as_fd)
    }

    /// The layers that it writes now.
    #[must_use]
    pub fn written(&self) -> Vec<Written> {
        let root = Written { bind: None, dir: name(self.pushed, "upper", None).into() };
        let binds = self.plan.source.binds.iter().enumerate().filter(|(_, bind)| bind.overlay);
        let binds = binds.map(|(index, bind)| Written {
            bind: Some(bind.to.clone()),
            dir: name(self.pushed, "upper", Some(index)).into(),
        });
        std::iter::once(root).chain(binds).collect()
    }

    /// Which root its processes have, for telling one from another.
    fn root_device(&self) -> Option<u64> {
        let pid = self.cleanup.child.as_ref()?.pid.as_raw_pid();
        rustix::fs::stat(format!("/proc/{pid}/root/.")).ok().map(|stat| stat.st_dev)
    }
}

/// What came of a push.
#[derive(Debug)]
pub enum Pushed {
    /// What was written is a layer now.
    Done,
    /// Why it is none; the sandbox is as it was.
    NotDone(LaunchError),
    /// The process ended without a word: killed at whatever it was doing. The sandbox may have either root, one of them on
    /// the other, and neither writable, until [`Mend`] is done.
    CutOff,
}

/// A push under way. Dropped, it is cut off.
#[derive(Debug)]
pub struct Push {
    helper: Helper,
    report: OwnedFd,
    before: Option<u64>,
}

/// A sandbox being made whole whose push was cut off: what was not finished is undone, what was is finished. Dropped, it is
/// cut off itself.
#[derive(Debug)]
pub struct Mend {
    helper: Helper,
    report: OwnedFd,
    /// The device of the root that it had before the push.
    before: Option<u64>,
}

/// A process of the warden's that ends by itself. Dropped, it is killed, and waited for, though not for long.
#[derive(Debug)]
pub struct Helper {
    pidfd: OwnedFd,
    ended: bool,
}

impl Helper {
    pub(crate) const fn new(pidfd: OwnedFd) -> Self {
        Self { pidfd, ended: false }
    }

    /// Readable when it has ended.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills it; [`Self::ended`] comes.
    pub fn kill(&self) {
        // An error says that it has ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Takes its end, if it has ended, and with what; nothing of one that was killed. Once.
    pub(crate) fn try_status(&mut self) -> Option<Option<i32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
        match ended {
            Ok(None) => None,
            ended => {
                self.ended = true;
                Some(ended.ok().flatten().and_then(|status| status.exit_status()))
            }
        }
    }

    /// Takes its end, if it has ended.
    pub fn try_reap(&mut self) -> bool {
        self.ended = self.ended || ending::try_reap(self.pidfd.as_fd());
        self.ended
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.ended {
            ending::kill_and_wait(self.pidfd.as_fd());
        }
    }
}

/// Gives up descriptors whose last user may have much to free: a process that ends at once has them last.
///
/// # Errors
/// When there is no process to be had; then they are given up here.
pub fn release(last: Vec<OwnedFd>) -> Result<Helper, Errno> {
    match process::fork_into(0, None)? {
        Forked::Child => process::exit(0),
        Forked::Parent { pidfd, .. } => {
            drop(last);
            Ok(Helper::new(pidfd))
        }
    }
}

impl Push {
    /// Begins. The sandbox must be frozen, with process 1 alone in it, and stay so until [`Push::advance`] says that it is
    /// done. `source` is what its root is made from, as its layers can be had now.
    ///
    /// # Errors
    /// The step that failed; the sandbox is as it was.
    pub fn begin(sandbox: &Sandbox, source: &RootSource) -> Result<Self, LaunchError> {
        let child = sandbox.cleanup.child.as_ref().ok_or(LaunchError::Died)?;
        let disk = sandbox.disk().ok_or(Errno::NOTSUP).step("find the sandbox's disk")?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let user = format!("/proc/{}/ns/user", child.pid.as_raw_pid());
        let user = rustix::fs::open(user, flags, Mode::empty()).step("open the user namespace")?;
        let mut sources = Vec::new();
        for path in source.mounted() {
            sources.push(launch::read_only(&path, Some(user.as_fd()))?);
        }
        let disk = launch::copy_of(disk).step("copy the disk's mount")?;
        set_attributes(disk.as_fd(), 0, false, Some(user.as_fd())).step("map the ids of the disk")?;
        let (report, report_child) = packet::pair_without_descriptors().step("make a socket")?;
        let before = sandbox.root_device();
        let given = Given { plan: &sandbox.plan, source, next: sandbox.pushed + 1, disk, sources };
        match process::fork_into(0, None).step("clone a process that changes the root")? {
            Forked::Child => {
                drop(report);
                inside::run(&given, child.pidfd.as_fd(), report_child.as_fd())
            }
            Forked::Parent { pidfd, .. } => Ok(Self { helper: Helper::new(pidfd), report, before }),
        }
    }

    /// Readable when [`Self::advance`] has something to do.
    #[must_use]
    pub fn watched(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// What came of it: `None` while it is at work.
    ///
    /// The helper that is left ends by itself, once the kernel has put away the old root.
    pub fn advance(&self, sandbox: &mut Sandbox) -> Option<Pushed> {
        let mut buffer = [0; 256];
        match packet::receive(&self.report, &mut buffer, false) {
            Err(Errno::AGAIN) => None,
            Ok((len, _)) if &buffer[..len] == b"K" => {
                sandbox.pushed += 1;
                Some(Pushed::Done)
            }
            Ok((len, _)) => Some(match launch::failed_step(&String::from_utf8_lossy(&buffer[..len])) {
                Some((step, errno)) => Pushed::NotDone(LaunchError::Inside { step, errno }),
                None => Pushed::CutOff,
            }),
            Err(_) => Some(Pushed::CutOff),
        }
    }

    /// Kills it at its work, and waits for its end, though not for long.
    pub fn cut_off(&self) {
        ending::kill_and_wait(self.helper.ended());
    }

    /// The process that is left.
    #[must_use]
    pub fn into_helper(self) -> Helper {
        self.helper
    }
}

impl Mend {
    /// Begins, once `push` has ended. The sandbox must be frozen as for [`Push::begin`], and stay so.
    ///
    /// # Errors
    /// The step that failed; the sandbox is as the push left it.
    pub fn begin(sandbox: &Sandbox, push: &Push) -> Result<Self, LaunchError> {
        let child = sandbox.cleanup.child.as_ref().ok_or(LaunchError::Died)?;
        let disk = sandbox.disk().ok_or(Errno::NOTSUP).step("find the sandbox's disk")?;
        // Whichever it has now, and nothing that lies on it.
        let root = format!("/proc/{}/root", child.pid.as_raw_pid());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).step("open the sandbox's root")?;
        let (report, report_child) = packet::pair_without_descriptors().step("make a socket")?;
        let torn = Torn { plan: &sandbox.plan, disk, root };
        match process::fork_into(0, None).step("clone a process that makes a sandbox whole")? {
            Forked::Child => {
                drop(report);
                inside::run_mend(&torn, child.pidfd.as_fd(), report_child.as_fd())
            }
            Forked::Parent { pidfd, .. } => Ok(Self { helper: Helper::new(pidfd), report, before: push.before }),
        }
    }

    /// Readable when [`Self::advance`] has something to do.
    #[must_use]
    pub fn watched(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Waits for it, though not for long: for who cannot watch it.
    pub fn wait(&self) {
        ending::wait(self.report.as_fd());
    }

    /// Whether what was written is a layer now, and the sandbox has its new root; if not, it is as it was before the push.
    /// `None` while that is not known.
    ///
    /// # Errors
    /// The step that failed: the sandbox is of no use any more.
    pub fn advance(&self, sandbox: &mut Sandbox) -> Option<Result<bool, LaunchError>> {
        let mut buffer = [0; 256];
        match packet::receive(&self.report, &mut buffer, false) {
            Err(Errno::AGAIN) => None,
            Ok((len, _)) if &buffer[..len] == b"K" => match (self.before, sandbox.root_device()) {
                (Some(before), Some(now)) => {
                    sandbox.pushed += u32::from(before != now);
                    Some(Ok(before != now))
                }
                (None, _) | (_, None) => Some(Err(LaunchError::Died)),
            },
            Ok((len, _)) => Some(Err(match launch::failed_step(&String::from_utf8_lossy(&buffer[..len])) {
                Some((step, errno)) => LaunchError::Inside { step, errno },
                None => LaunchError::Died,
            })),
            Err(_) => Some(Err(LaunchError::Died)),
        }
    }

    /// The process that is left, which ends by itself.
    #[must_use]
    pub fn into_helper(self) -> Helper {
        self.helper
    }
}
