//! Plan -> sandbox: the only module that makes one. Two processes take part:
//!
//! ```text
//! warden                                        new process (root of its user namespace only)
//! cgroups + limits
//! clone3 (user, pid, time; into its cgroup) ──▶ has descriptors of its own: APART
//! id maps                                       enters the version 1 cgroups
//! IDS ────────────────────────────────────────▶ takes its identity, unshare
//! opens template as detached, id-mapped mounts
//! GO + mounts ────────────────────────────────▶ mounts, pivot_root, filters
//!                          ◀──────────────────  FACTS, or FAILED step errno
//!                                               exec init
//!             ◀───────────────────────────────  READY (from init)
//! reads back what the kernel holds
//! ```
//!
//! Every limit is set before the process exists, so it holds before the first instruction of anybody's. Until READY
//! the sandbox is a [`Starting`]; dropping one, or a [`Sandbox`], leaves nothing running.

use std::{
    cell::RefCell,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Instant,
};

use rf_sys::{
    mount::{attribute, set_attributes},
    owner,
    process::{self, Forked, Reserve, namespaces},
    seccomp::Instruction,
};
use rf_types::{DiskKind, Enforcement, Layer};
use rf_wire::init::{Ready, answer};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{Pid, Uid},
};

use crate::{
    cgroup::{Ahead, CgroupError, Share},
    disk::{self, DiskError, Images},
    ending::{Child, Cleanup},
    enforce::{self, OwnNamespaces},
    host::HostReport,
    packet,
    plan::{IDS_PER_SANDBOX, Ids, Plan, USER_ID},
    program, seccomp,
    setup::{self, Facts, Failed, Handover, Mounts},
};

/// The program of process 1, as built beside this crate.
pub(crate) static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rf-init"));

/// Why a sandbox did not launch. Whatever the variant, nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Its control groups could not be made or limited.
    #[error("cannot limit the sandbox")]
    Cgroup(#[from] CgroupError),
    /// Its disk could not be made.
    #[error("cannot make the sandbox's disk")]
    Disk(#[from] DiskError),
    /// A step of the warden's failed.
    #[error("cannot {step}")]
    Warden {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step inside the new process failed.
    #[error("cannot {step} inside the sandbox")]
    Inside {
        /// Which.
        step: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A directory or file that the root is made from cannot be opened.
    #[error("cannot use {} for the root", path.display())]
    Source {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The new process ended without a word: killed, for want of memory or from outside.
    #[error("the new process ended before it was ready")]
    Died,
    /// Init said something else than that it is ready.
    #[error("init's first message is not the one expected")]
    NotInit,
    /// A layer was to be held and, read back, is not.
    #[error("the kernel does not hold the layer `{layer}`: {evidence}")]
    NotHeld {
        /// Which.
        layer: Layer,
        /// What was read.
        evidence: String,
    },
}

/// Names the step of the warden's in which an error came up.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, LaunchError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, LaunchError> {
        self.map_err(|source| LaunchError::Warden { step, source: source.into() })
    }
}

/// What every launch shares.
#[derive(Debug)]
pub struct Launcher {
    host: HostReport,
    init: OwnedFd,
    null: OwnedFd,
    /// What every root is mounted in, with root; see [`setup::shared_top`].
    top: Option<OwnedFd>,
    /// Whether a mount that is attached nowhere can be copied: then the warden keeps hold of each sandbox's disk.
    copies_detached: bool,
    images: Images,
    filter: Vec<Instruction>,
    own: OwnNamespaces,
    /// Whether this process is less likely than others to be chosen when memory runs out, which is passed on.
    is_spared: bool,
    /// Where a new process finds its descriptors.
    reserve: Reserve,
    /// Groups for the next sandbox.
    ahead: RefCell<Option<Ahead>>,
}

/// Places in [`Launcher::reserve`], in the order in which they are given.
mod place {
    pub(super) const SETUP: usize = 0;
    pub(super) const WARDEN: usize = 1;
    pub(super) const SERVER: usize = 2;
    pub(super) const PROGRAM: usize = 3;
    pub(super) const NULL: usize = 4;
    /// Init's cgroup, or `/dev/null` where there is none.
    pub(super) const CGROUP: usize = 5;
    /// The ways into the groups of version 1, from here on: there are at most six such hierarchies that we use.
    pub(super) const ENTRANCES: usize = 6;
}

/// How long a new process may take until it runs; chosen: it has nothing to do before that, and the warden waits.
const APART_TIME: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

impl Launcher {
    /// Makes what launches share. `images` and `shared` are directories that only the caller can reach.
    ///
    /// The caller must have one thread. With root it also moves into a mount namespace of its own, so that what it
    /// mounts is seen by nobody and gone with it.
    ///
    /// # Errors
    /// The step that failed.
    pub fn new(host: HostReport, images: PathBuf, shared: &Path) -> Result<Self, LaunchError> {
        let null =
            rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
        let top = if host.rooted { Some(Self::own_mounts(shared)?) } else { None };
        let copies_detached = host.rooted && Self::copies_detached()?;
        let launcher = Self {
            host,
            init: program::sealed()?,
            top,
            copies_detached,
            images: Images::new(images),
            filter: seccomp::filter(),
            own: OwnNamespaces::look(),
            is_spared: fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|adjusted| adjusted.starts_with('-')),
            reserve: Reserve::new(null.as_fd()).step("reserve descriptors")?,
            null,
            ahead: RefCell::default(),
        };
        // Each new process begins as a copy of this one.
        process::give_back_heap();
        Ok(launcher)
    }

    /// Since Linux 6.15; found by trying.
    fn copies_detached() -> Result<bool, LaunchError> {
        let mount = disk::in_memory(4096, 4)?;
        Ok(copy_of(mount.as_fd()).is_ok())
    }

    /// Whether sandboxes made here can be saved; where not, why.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn can_save(&self) -> Result<(), &'static str> {
        match (self.host.rooted, self.copies_detached) {
            (true, true) if !self.host.of(Layer::Landlock).available => {
                Err("saving sandboxes needs Landlock, which holds the process that copies their files")
            }
            (true, true) => Ok(()),
            (false, _) => Err("saving sandboxes needs a warden with root, which maps the ids of their files"),
            (true, false) => {
                Err("saving sandboxes needs Linux 6.15 or later, which copies mounts that are attached nowhere")
            }
        }
    }

    fn own_mounts(at: &Path) -> Result<OwnedFd, LaunchError> {
        use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
        process::unshare(namespaces::MOUNT).step("make a mount namespace of the warden's own")?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave).step("keep the warden's mounts to itself")?;
        let top = setup::shared_top().map_err(by_warden)?;
        // Before Linux 6.15 only a mount that is attached somewhere can be copied.
        move_mount(&top, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("attach what is shared")?;
        Ok(top)
    }

    /// The host as probed.
    #[must_use]
    pub const fn host(&self) -> &HostReport {
        &self.host
    }

    /// What makes disks on images. [`Launcher::begin`] needs a blank image of the size that its plan has.
    #[must_use]
    pub const fn images(&self) -> &Images {
        &self.images
    }

    pub(crate) fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    pub(crate) fn filter(&self) -> &[Instruction] {
        &self.filter
    }

    /// Makes ahead what the next launch needs and can be made without knowing it, for when there is nothing else to do.
    /// Best effort: what is not there is made by the launch, which says why it cannot be.
    pub fn prepare(&self) {
        let mut ahead = self.ahead.borrow_mut();
        if ahead.is_none() {
            *ahead = self.host.hierarchies.ahead().ok().flatten();
        }
    }

    /// Begins a launch. The caller waits until one of [`Starting::watched`] is readable, and calls
    /// [`Starting::advance`].
    ///
    /// # Errors
    /// The step that failed; nothing is left.
    pub fn begin(&self, plan: Plan) -> Result<Starting, LaunchError> {
        let owner = match plan.ids {
            Ids::Range { base } => Some(base),
            Ids::One { .. } => None,
        };
        let (name, block_io) = (plan.id.to_string(), plan.disk == DiskKind::Image);
        let group = self.host.hierarchies.create(&name, owner, block_io, self.ahead.take())?;
        let mut group = Cleanup::new(group);
        let image = match plan.disk {
            DiskKind::Memory => None,
            DiskKind::Image => Some(self.images.make(disk::Size::of(&plan.limits))?),
        };
        let device = image.as_ref().filter(|_| plan.holds(Layer::Io)).map(|image| image.device.clone());
        let entrances = group.group.begin(&plan.limits, device.as_deref())?;

        let (setup, setup_child) = packet::pair_without_descriptors().step("make a socket")?;
        let (warden, warden_child) = packet::pair_without_descriptors().step("make a socket")?;
        let (server, server_child) = packet::pair().step("make a socket")?;
        let mut new = namespaces::USER | namespaces::PID;
        if plan.holds(Layer::Time) {
            new |= namespaces::TIME;
        }
        let cgroup = group.group.v2_fd().map(AsFd::as_fd);
        // In the order of `place`.
        let (null, init) = (self.null.as_fd(), self.init.as_fd());
        let ends = [setup_child.as_fd(), warden_child.as_fd(), server_child.as_fd()];
        let ways = entrances.iter().map(AsFd::as_fd);
        let given: Vec<_> = ends.into_iter().chain([init, null, cgroup.unwrap_or(null)]).chain(ways).collect();
        let fork = || process::fork_with(new, cgroup, &self.reserve, &given);
        let forked = match plan.ids {
            // What its processes make is counted for the owner as well: each sandbox has one of its own.
            Ids::Range { base } => owner::fork_as(Uid::from_raw(base), fork),
            Ids::One { .. } => fork(),
        };
        match forked.step("clone the sandbox's first process")? {
            // What of the parent's is dropped here would run its clean-up a second time, and its descriptors are closed
            // here: this process only ever leaves by exec or `exit`.
            Forked::Child => child(&plan, &self.filter, &self.reserve, cgroup.is_some(), entrances.len()),
            Forked::Parent { pid, pidfd } => {
                group.child = Some(Child { pid, pidfd });
                let mut starting = Starting {
                    plan,
                    cleanup: group,
                    setup: Some(setup),
                    warden,
                    server,
                    facts: None,
                    device,
                    disk: None,
                    begun: Instant::now(),
                };
                let mounts =
                    starting.map_ids().and_then(|()| self.mounts(&mut starting, image.map(|image| image.mount)));
                // Whatever became of that: until then the two share their descriptors.
                if let Err(error) = starting.wait_until_apart() {
                    // Killed and gone, before anything is closed.
                    drop(starting);
                    self.reserve.release().step("release descriptors")?;
                    return Err(error);
                }
                drop((setup_child, warden_child, server_child, entrances));
                self.reserve.release().step("release descriptors")?;
                let mounts = mounts?;
                let fds: Vec<BorrowedFd<'_>> = mounts.iter().map(AsFd::as_fd).collect();
                starting.tell(b"G", &fds).step("start the sandbox's first process")?;
                Ok(starting)
            }
        }
    }

    /// Opens what the process will mount; `image` is the disk of a sandbox that has one.
    fn mounts(&self, starting: &mut Starting, image: Option<OwnedFd>) -> Result<Vec<OwnedFd>, LaunchError> {
        if self.is_spared {
            // With CAP_SYS_RESOURCE, so that nobody inside sets it any lower (fs/proc/base.c, `__set_oom_adj`).
            fs::write(starting.proc("oom_score_adj"), "0").step("spare the sandbox no more than others")?;
        }
        let plan = &starting.plan;
        let disk = match (image, plan.ids) {
            (Some(image), _) => Some(image),
            // Elsewhere the sandbox makes its own: a kernel that cannot copy it (before 6.15) may not be able to map the
            // ids of one in memory either (before 6.3).
            (None, Ids::Range { .. }) if self.copies_detached => {
                Some(disk::in_memory(plan.limits.disk_bytes_max, plan.limits.inodes_max)?)
            }
            (None, Ids::Range { .. } | Ids::One { .. }) => None,
        };
        let mut mounts = Vec::new();
        if matches!(plan.ids, Ids::Range { .. }) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let path = starting.proc("ns/user");
            let namespace = rustix::fs::open(path, flags, Mode::empty()).step("open the user namespace")?;
            for path in plan.source.mounted() {
                mounts.push(read_only(&path, Some(namespace.as_fd()))?);
            }
            let on_disk = disk.as_ref().filter(|_| self.copies_detached).map(AsFd::as_fd);
            mounts.push(setup::own_dev(on_disk).map_err(by_warden)?);
            if let Some(top) = &self.top {
                let copy = copy_of(top.as_fd()).step("copy what is shared")?;
                let set = attribute::RDONLY | attribute::NOSUID | attribute::NOEXEC;
                set_attributes(copy.as_fd(), set, false, None).step("make what is shared read-only")?;
                mounts.push(copy);
            }
            if let Some(disk) = disk {
                let given = if self.copies_detached {
                    let copy = copy_of(disk.as_fd()).step("copy the disk's mount")?;
                    starting.disk = Some(disk);
                    copy
                } else {
                    disk
                };
                set_attributes(given.as_fd(), 0, false, Some(namespace.as_fd())).step("map the ids of the disk")?;
                mounts.push(given);
            }
        }
        Ok(mounts)
    }
}

/// What failed in the warden and not in the new process.
fn by_warden(Failed { step, errno }: Failed) -> LaunchError {
    LaunchError::Warden { step, source: errno.into() }
}

/// A detached copy of a mount.
pub(crate) fn copy_of(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(mount, "", flags)
}

/// A detached, read-only copy of the mount at `path`, with its ids mapped through `namespace`.
pub(crate) fn read_only(path: &Path, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, LaunchError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let source = |errno| LaunchError::Source { path: path.to_owned(), errno };
    let mount = open_tree(CWD, path, flags).map_err(source)?;
    let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV;
    set_attributes(mount.as_fd(), set, false, namespace).map_err(source)?;
    Ok(mount)
}

/// The new process: everything up to its exec. Never returns.
fn child(plan: &Plan, filter: &[Instruction], given: &Reserve, has_cgroup: bool, entrances: usize) -> ! {
    let place = |index| given.get(index).unwrap_or_else(|| process::exit(1));
    let setup = place(place::SETUP);
    if packet::send(setup, b"A", &[]).is_err() {
        process::exit(1);
    }
    let mut entrances = (place::ENTRANCES..).take(entrances).map(place);
    if let Err(errno) = entrances.try_for_each(|entrance| rustix::io::write(entrance, b"0").map(drop)) {
        tell(setup, &Failed { step: "enter the control groups", errno });
        process::exit(1);
    }
    let handover = Handover {
        null: place(place::NULL),
        warden: place(place::WARDEN),
        server: place(place::SERVER),
        cgroup: has_cgroup.then(|| place(place::CGROUP)),
        program: place(place::PROGRAM),
    };
    // One datagram each; anything else is a warden that is gone.
    let hear = |wanted: u8| {
        let mut word = [0];
        match packet::receive(setup, &mut word, true) {
            Ok((1, fds)) if word == [wanted] => fds,
            _ => process::exit(1),
        }
    };
    hear(b'I');
    // What needs no mount is made while the warden opens those.
    let result = setup::take_identity(plan).and_then(|()| setup::own_namespaces(plan)).and_then(|facts| {
        let mounts = take_mounts(plan, hear(b'G'));
        setup::own_root(plan, &mounts).map(|()| (facts, mounts.top))
    });
    let (facts, top) = match result {
        Ok(made) => made,
        Err(error) => {
            tell(setup, &error);
            process::exit(1)
        }
    };
    if packet::send(setup, format!("K{}", facts.keyring).as_bytes(), &[]).is_err() {
        process::exit(1);
    }
    let (error, report) = setup::become_init(plan, filter, &handover, top.as_ref(), setup);
    tell(report, &error);
    process::exit(1)
}

/// What [`tell`] said: the step, and with what it failed.
pub(crate) fn failed_step(word: &str) -> Option<(String, Errno)> {
    let (number, step) = word.strip_prefix('F')?.split_once('\0')?;
    Some((step.to_owned(), number.parse().map_or(Errno::IO, Errno::from_raw_os_error)))
}

/// Takes what the new process said. One that ended before it read all that it was sent makes the kernel say so first,
/// once, and only then what it said itself (net/unix/af_unix.c, `unix_release_sock`; net/core/datagram.c).
fn hear(setup: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    match packet::receive(setup, buffer, false) {
        Err(Errno::CONNRESET) => packet::receive(setup, buffer, false),
        other => other,
    }
    .map(|(len, _)| len)
}

/// Tells the warden what failed. It sees a process that ended in any case.
pub(crate) fn tell(report: BorrowedFd<'_>, Failed { step, errno }: &Failed) {
    let _ = packet::send(report, format!("F{}\0{step}", errno.raw_os_error()).as_bytes(), &[]);
}

/// Sorts what came with GO.
fn take_mounts(plan: &Plan, fds: Vec<OwnedFd>) -> Mounts {
    let mut fds = fds.into_iter();
    match plan.ids {
        Ids::Range { .. } => {
            let sources = fds.by_ref().take(plan.source.mounted_count()).collect();
            Mounts { sources, dev: fds.next(), top: fds.next(), disk: fds.next() }
        }
        Ids::One { .. } => Mounts { sources: Vec::new(), dev: None, top: None, disk: None },
    }
}

/// A sandbox on its way up.
#[derive(Debug)]
pub struct Starting {
    plan: Plan,
    cleanup: Cleanup,
    setup: Option<OwnedFd>,
    warden: OwnedFd,
    server: OwnedFd,
    facts: Option<Facts>,
    device: Option<String>,
    disk: Option<OwnedFd>,
    begun: Instant,
}

impl Starting {
    /// How it was planned, and what ends it; all else of it is dropped.
    pub(crate) fn into_parts(self) -> (Plan, Cleanup) {
        (self.plan, self.cleanup)
    }

    fn pid(&self) -> Pid {
        // `child` is set from birth until its end.
        self.cleanup.child.as_ref().map_or(Pid::INIT, |child| child.pid)
    }

    /// A file of the new process in the host's `/proc`.
    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid().as_raw_pid())
    }

    /// Maps the ids, and has the process go on with what needs nothing else.
    fn map_ids(&self) -> Result<(), LaunchError> {
        match self.plan.ids {
            Ids::Range { base } => {
                let map = format!("0 {base} {IDS_PER_SANDBOX}");
                fs::write(self.proc("uid_map"), &map).step("map the users")?;
                fs::write(self.proc("gid_map"), &map).step("map the groups")?;
            }
            Ids::One { uid, gid } => {
                fs::write(self.proc("setgroups"), "deny").step("map the groups")?;
                fs::write(self.proc("uid_map"), format!("{USER_ID} {uid} 1")).step("map the user")?;
                fs::write(self.proc("gid_map"), format!("{USER_ID} {gid} 1")).step("map the group")?;
            }
        }
        self.tell(b"I", &[]).step("tell the sandbox's first process of its ids")
    }

    /// Sends the new process a word. One that has ended said why, which [`Self::advance`] takes.
    fn tell(&self, word: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        match self.setup.as_ref().map(|setup| packet::send(setup, word, fds)) {
            None | Some(Ok(()) | Err(Errno::PIPE | Errno::CONNRESET)) => Ok(()),
            Some(failed) => failed,
        }
    }

    /// Waits until the new process has a table of descriptors of its own.
    fn wait_until_apart(&self) -> Result<(), LaunchError> {
        let (Some(setup), Some(child)) = (&self.setup, &self.cleanup.child) else { return Err(LaunchError::Died) };
        let mut fds = [PollFd::new(setup, PollFlags::IN), PollFd::new(&child.pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&APART_TIME))).step("wait for the new process")?;
        let mut word = [0; 1];
        match hear(setup.as_fd(), &mut word) {
            Ok(1) if word == *b"A" => Ok(()),
            _ => Err(LaunchError::Died),
        }
    }

    /// How it was planned.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// When it began, for the caller's deadline.
    #[must_use]
    pub const fn begun(&self) -> Instant {
        self.begun
    }

    /// Readable when [`Self::advance`] has something to do.
    #[must_use]
    pub fn watched(&self) -> Vec<BorrowedFd<'_>> {
        self.setup.iter().map(AsFd::as_fd).chain([self.warden.as_fd()]).collect()
    }

    /// Takes what the new process said: `None` while it is not ready yet.
    ///
    /// # Errors
    /// Why there will be no sandbox; nothing of it is left once `self` is dropped.
    pub fn advance(&mut self, launcher: &Launcher) -> Result<Option<Confirmed>, LaunchError> {
        let mut buffer = [0; 256];
        while let Some(setup) = &self.setup {
            match hear(setup.as_fd(), &mut buffer) {
                Err(Errno::AGAIN) => break,
                // The exec closed it; init speaks next, or the process has died.
                Ok(0) => self.setup = None,
                Ok(len) => self.take_word(&buffer[..len])?,
                Err(errno) => return Err(errno).step("hear from the sandbox's first process"),
            }
        }
        // READY has less; what is longer is refused. On the stack: each page of the heap that is written while the new
        // process still has our memory is copied by the kernel.
        let len = match packet::receive(&self.warden, &mut buffer, false) {
            Err(Errno::AGAIN) => return Ok(None),
            Ok((0, _)) | Err(Errno::CONNRESET) => return Err(LaunchError::Died),
            Err(Errno::MSGSIZE) => return Err(LaunchError::NotInit),
            Ok((len, _)) => len,
            Err(errno) => return Err(errno).step("hear from init"),
        };
        let mut reader = match rf_wire::init::Reader::message(&buffer[..len]) {
            Ok((header, reader)) if header.kind == answer::READY => reader,
            _ => return Err(LaunchError::NotInit),
        };
        let ready = Ready { probes: reader.u32().map_err(|_| LaunchError::NotInit)? };
        let facts = self.facts.take().ok_or(LaunchError::NotInit)?;
        let child = self.cleanup.child.as_ref().ok_or(LaunchError::Died)?;
        let enforcement = enforce::read_back(&self.plan, child, &self.cleanup.group, &facts, ready, &launcher.own)?;
        Ok(Some(Confirmed { enforcement }))
    }

    fn take_word(&mut self, word: &[u8]) -> Result<(), LaunchError> {
        let text = String::from_utf8_lossy(word);
        if let Some(serial) = text.strip_prefix('K') {
            self.facts = Some(Facts { keyring: serial.parse().map_err(|_| LaunchError::NotInit)? });
            return Ok(());
        }
        match failed_step(&text) {
            Some((step, errno)) => Err(LaunchError::Inside { step, errno }),
            None => Err(LaunchError::NotInit),
        }
    }

    /// Makes a confirmed one a sandbox.
    #[must_use]
    pub fn into_sandbox(self, confirmed: Confirmed) -> Sandbox {
        Sandbox {
            plan: self.plan,
            cleanup: self.cleanup,
            warden: self.warden,
            server: Some(self.server),
            device: self.device,
            disk: self.disk,
            pushed: 0,
            enforcement: confirmed.enforcement,
        }
    }
}

/// What the kernel was found to hold for a [`Starting`].
#[derive(Debug)]
pub struct Confirmed {
    enforcement: Enforcement,
}

/// A sandbox that is up. Dropping it destroys it, and waits for that, though not for long.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) plan: Plan,
    pub(crate) cleanup: Cleanup,
    pub(crate) warden: OwnedFd,
    server: Option<OwnedFd>,
    device: Option<String>,
    /// The file system that all it writes is on, as its owner's ids are stored; where sandboxes can be saved.
    pub(crate) disk: Option<OwnedFd>,
    /// How often its written layer was made a read-only one.
    pub(crate) pushed: u32,
    enforcement: Enforcement,
}

impl Sandbox {
    /// How it was planned; its limits as they are now.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What holds it.
    #[must_use]
    pub const fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    /// The server's end of init's socket: once.
    pub fn take_server_socket(&mut self) -> Option<OwnedFd> {
        self.server.take()
    }

    /// The warden's own socket to init.
    #[must_use]
    pub fn warden_socket(&self) -> BorrowedFd<'_> {
        self.warden.as_fd()
    }

    /// Gives init a new socket for the server, in place of the one that the last server had; returns our end.
    ///
    /// # Errors
    /// When init takes no message.
    pub fn renew_server_socket(&self) -> Result<OwnedFd, LaunchError> {
        let (ours, inits) = packet::pair().step("make a socket")?;
        self.give_server_socket(inits.as_fd()).map(|()| ours)
    }

    pub(crate) fn give_server_socket(&self, socket: BorrowedFd<'_>) -> Result<(), LaunchError> {
        let mut buffer = [0; 16];
        let writer = rf_wire::init::Writer::new(&mut buffer, rf_wire::init::order::ADOPT, 1);
        let len = writer.finish().map_err(|_| LaunchError::NotInit)?;
        packet::send(&self.warden, &buffer[..len], &[socket]).step("tell init of the new server")
    }

    /// Readable when process 1, and with it every process, has ended.
    #[must_use]
    pub fn ended(&self) -> Option<BorrowedFd<'_>> {
        self.cleanup.child.as_ref().map(|child| child.pidfd.as_fd())
    }

    /// Sets other limits of memory, tasks, CPU and I/O.
    ///
    /// # Errors
    /// The file that could not be written; some limits may be set then, each to the old or the new number.
    pub fn limit(&mut self, limits: &rf_types::Limits) -> Result<(), LaunchError> {
        self.cleanup.group.limit(limits, self.device.as_deref())?;
        let disk = self.plan.limits;
        self.plan.limits =
            rf_types::Limits { disk_bytes_max: disk.disk_bytes_max, inodes_max: disk.inodes_max, ..*limits };
        enforce::refresh_limits(&mut self.enforcement, &self.cleanup.group);
        Ok(())
    }

    /// What it uses now.
    #[must_use]
    pub fn usage(&self) -> rf_wire::warden::Usage {
        let mut usage = self.cleanup.group.usage();
        // The root as its own processes see it: the quota is the file system's size.
        let root = self.cleanup.child.as_ref().map(|child| format!("/proc/{}/root", child.pid.as_raw_pid()));
        if let Some(stat) = root.and_then(|root| rustix::fs::statfs(root).ok()) {
            let block = u64::try_from(stat.f_bsize).unwrap_or(0);
            usage.disk_bytes = stat.f_blocks.saturating_sub(stat.f_bfree) * block;
            usage.inodes = stat.f_files.saturating_sub(stat.f_ffree);
        }
        usage
    }

    /// How often it has been held up by its CPU limit so far; nothing where there is none.
    #[must_use]
    pub fn throttled(&self) -> Option<u64> {
        self.cleanup.group.throttled()
    }

    /// CPU time of all its processes so far, microseconds; nothing where it is not counted.
    #[must_use]
    pub fn cpu_us(&self) -> Option<u64> {
        self.cleanup.group.cpu_us()
    }

    /// Holds it to these processors; whether that could be done. It is no limit.
    #[must_use]
    pub fn hold_to(&self, processors: &[usize]) -> bool {
        let held = self.cleanup.group.hold_to(processors).is_ok();
        if !held {
            self.cleanup.group.hold_no_more();
        }
        held
    }

    /// Lets it use every processor again.
    pub fn hold_no_more(&self) {
        self.cleanup.group.hold_no_more();
    }

    /// Sets its share of a processor that others want too. Best effort: it is no limit.
    pub fn share(&self, share: Share) {
        self.cleanup.group.share(share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_said_is_heard_though_it_left_its_orders_unread() {
        let (warden, child) = packet::pair().unwrap();
        packet::send(&warden, b"I", &[]).unwrap();
        packet::send(&child, b"A", &[]).unwrap();
        tell(child.as_fd(), &Failed { step: "unshare", errno: Errno::NOSPC });
        drop(child);
        let mut buffer = [0; 64];
        // Control: the kernel's own word comes first.
        let (other, end) = packet::pair().unwrap();
        packet::send(&other, b"I", &[]).unwrap();
        drop(end);
        assert_eq!(packet::receive(&other, &mut buffer, false).map(|(len, _)| len), Err(Errno::CONNRESET));

        assert_eq!(hear(warden.as_fd(), &mut buffer), Ok(1));
        let len = hear(warden.as_fd(), &mut buffer).unwrap();
        let (step, errno) = failed_step(std::str::from_utf8(&buffer[..len]).unwrap()).unwrap();
        assert_eq!((step.as_str(), errno), ("unshare", Errno::NOSPC));
        assert_eq!(hear(warden.as_fd(), &mut buffer), Ok(0));
    }
}
