//! What the new process does between its birth and init's first instruction: mounts, identity, limits, filters.
//!
//! Runs as `root` of the sandbox's own user namespace and nowhere else: nothing here has a right over the host. Every
//! path of a template or the host was opened by the warden, and comes in as a detached mount; nothing is looked up by
//! a name that a workload could have chosen. Whatever fails is told to the warden by step, and the process ends.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rf_sys::{
    landlock,
    mount::{attribute, clear_attributes, pivot_root_here, set_attributes},
    process::{self, namespaces},
    seccomp::Instruction,
};
use rf_types::Layer;
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
        unmount,
    },
    process::{Resource, Rlimit},
    thread::{CapabilitySet, CapabilitySets},
};

use crate::{
    direct,
    plan::{Ids, Plan, below_root},
};

/// Where the new root is put together: a directory that every host has and that nothing of ours is in.
pub(crate) const SCRATCH: &str = "/tmp";
/// The group of terminals (`tty`), as in every distribution.
const TTY_GROUP: u32 = 5;
/// Most terminals at once. Chosen: the host has some 3,000 for all (kernel.pty.max less what is kept for its own).
const TERMINALS_MAX: &str = "128";

/// A step that failed, and with what.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    pub(crate) errno: Errno,
}

/// Names the step of a result.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failed>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &'static str) -> Result<T, Failed> {
        self.map_err(|errno| Failed { step, errno })
    }
}

/// The mounts that the warden made ready, detached, ids mapped.
#[derive(Debug)]
pub(crate) struct Mounts {
    /// As [`crate::plan::RootSource::mounted`] has them.
    pub(crate) sources: Vec<OwnedFd>,
    /// The read-only `/dev`, see [`own_dev`]; without one the devices are bound one by one.
    pub(crate) dev: Option<OwnedFd>,
    /// What the root is mounted in; see [`shared_top`].
    pub(crate) top: Option<OwnedFd>,
    /// The file system that all is written on; without one a tmpfs is made.
    pub(crate) disk: Option<OwnedFd>,
}

/// What init starts with.
pub(crate) struct Handover<'a> {
    pub(crate) null: BorrowedFd<'a>,
    pub(crate) warden: BorrowedFd<'a>,
    pub(crate) server: BorrowedFd<'a>,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) program: BorrowedFd<'a>,
}

/// What the child found that cannot be read from outside.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The serial number of the new session keyring; 0 where there is none.
    pub(crate) keyring: i32,
}

/// Becomes `root` inside; before any mount is taken over.
pub(crate) fn take_identity(plan: &Plan) -> Result<(), Failed> {
    match plan.ids {
        Ids::Range { .. } => {
            let (uid, gid) = (Uid::ROOT, Gid::ROOT);
            rustix::thread::set_thread_groups(&[]).step("give up the groups")?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).step("take the group")?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).step("take the user")?;
        }
        // The one id that is mapped is the one we have.
        Ids::One { .. } => {}
    }
    // After the change of identity, which clears it (prctl(2)).
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).step("tie to the warden")
}

/// Makes the namespaces, and what of them needs no mount.
pub(crate) fn own_namespaces(plan: &Plan) -> Result<Facts, Failed> {
    let mut new = namespaces::MOUNT | namespaces::NET | namespaces::IPC | namespaces::UTS;
    if plan.holds(Layer::CgroupNs) {
        new |= namespaces::CGROUP;
    }
    process::unshare(new).step("unshare")?;
    process::set_loopback_up().step("set lo up")?;
    rustix::system::sethostname(plan.hostname().as_bytes()).step("set the host name")?;
    // Until it is set it is the host's; "(none)" is the kernel's own word (uts_namespaces(7), linux/uts.h).
    rustix::system::setdomainname(b"(none)").step("set the domain name")?;
    let keyring = if plan.holds(Layer::Keyring) {
        process::join_new_session_keyring().step("join a new session keyring")?
    } else {
        0
    };
    Ok(Facts { keyring })
}

/// Puts the root together, enters it, and sets the limits of every process: all that is left but the filters.
pub(crate) fn own_root(plan: &Plan, mounts: &Mounts) -> Result<(), Failed> {
    match plan.ids {
        Ids::Range { .. } => build_root(plan, mounts)?,
        Ids::One { .. } => build_root(plan, &own_mounts(plan)?)?,
    }
    enter_root(mounts.top.as_ref())?;
    set_rlimits();
    Ok(())
}

/// Number that the reporting socket has once the descriptors are arranged.
const REPORT: i32 = 7;
/// Number of the filter's listener, see `rf-init`.
const LISTENER: i32 = 8;

/// Lays on the filters and becomes init. Returns only on failure, with the socket on which to tell it.
pub(crate) fn become_init<'a>(
    plan: &Plan,
    filter: &[Instruction],
    handover: &Handover<'a>,
    top: Option<&OwnedFd>,
    report: BorrowedFd<'a>,
) -> (Failed, BorrowedFd<'a>) {
    let laid = (|| {
        if plan.holds(Layer::Landlock) {
            landlock_root(top, handover.cgroup)?;
        }
        bound_capabilities(plan.capabilities())?;
        rustix::thread::set_no_new_privs(true).step("set no_new_privs")
    })();
    if let Err(failed) = laid {
        return (failed, report);
    }
    let flags = CString::new(plan.init_flags(handover.cgroup.is_some())).unwrap_or_default();
    const PROGRAM: i32 = 6;
    let fds = [
        handover.null,
        handover.null,
        handover.null,
        handover.warden,
        handover.server,
        handover.cgroup.unwrap_or(handover.null),
        handover.program,
        report,
    ];
    if let Err(failed) = process::arrange_descriptors(&fds, PROGRAM as usize).step("arrange descriptors") {
        return (failed, report);
    }
    let report = process::arranged(REPORT);
    // Last: from here on even this process can do no more than init.
    let failed = match rf_sys::seccomp::install_with_listener(filter).and_then(keep_listener) {
        Err(errno) => Failed { step: "install the system call filter", errno },
        Ok(_listener) => Failed { step: "start init", errno: process::execveat(PROGRAM, &[c"rf-init", &flags]) },
    };
    (failed, report)
}

/// Has init inherit the listener of its filter, under the number that it knows: the first that is free.
fn keep_listener(listener: OwnedFd) -> Result<OwnedFd, Errno> {
    if listener.as_raw_fd() != LISTENER {
        return Err(Errno::BADF);
    }
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
    Ok(listener)
}

pub(crate) fn bound_capabilities(keep: u64) -> Result<(), Failed> {
    for number in 0..64u32 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) if keep & (1 << number) == 0 => {
                rustix::thread::remove_capability_from_bounding_set(capability).step("bound the capabilities")?;
            }
            Ok(_) => {}
            // Past the last one that this kernel has.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Failed { step: "read the bounding set", errno }),
        }
    }
    let none = CapabilitySet::empty();
    let now = rustix::thread::capabilities(None).step("read the capabilities")?;
    let sets = CapabilitySets { effective: now.effective, permitted: now.permitted, inheritable: none };
    rustix::thread::set_capabilities(None, sets).step("clear the inheritable capabilities")
}

pub(crate) fn new_fs(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Puts a detached mount at a path below the current directory.
pub(crate) fn attach(mount: impl AsFd, at: &Path) -> Result<(), Errno> {
    move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

pub(crate) fn mkdir(path: impl rustix::path::Arg, mode: u32) -> Result<(), Errno> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(mode))
}

/// A copy of the mount at `path`, detached.
pub(crate) fn copy_of(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

pub(crate) const HELD: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Bounds the buffers of each TCP socket of the sandbox's network namespace: cgroups of version 1 count them apart from
/// memory and let senders pass that limit. Every connection inside is local, where a small window is as fast.
///
/// Through the sandbox's own `/proc`: in the host's the names of all network namespaces are in one chain of the kernel's
/// cache, which takes 0.1 us more with each of them (fs/proc/proc_sysctl.c, `proc_sys_compare`).
fn bound_tcp_buffers() -> Result<(), Failed> {
    for name in ["tcp_rmem", "tcp_wmem"] {
        std::fs::write(format!("root/proc/sys/net/ipv4/{name}"), "4096 32768 131072").map_err(|error| Failed {
            step: "bound the buffers of TCP sockets",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })?;
    }
    Ok(())
}

fn build_root(plan: &Plan, mounts: &Mounts) -> Result<(), Failed> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step("make mounts private")?;
    // One file system holds all that the sandbox writes, so one quota holds it.
    let base = match &mounts.disk {
        Some(disk) => disk
            .try_clone()
            .map_err(|e| Failed { step: "take the disk", errno: Errno::from_io_error(&e).unwrap_or(Errno::IO) })?,
        None => {
            let size = plan.limits.disk_bytes_max.to_string();
            let inodes = plan.limits.inodes_max.to_string();
            new_fs("tmpfs", &[("size", &size), ("nr_inodes", &inodes), ("mode", "0755")], HELD).step("mount tmpfs")?
        }
    };
    attach(&base, Path::new(SCRATCH)).step("attach the writable file system")?;
    rustix::process::chdir(SCRATCH).step("enter the writable file system")?;
    for dir in ["lower", "upper", "work", "root"] {
        mkdir(dir, 0o755).step("make the overlay's directories")?;
    }
    mkdir("shm", 0o1777).step("make /dev/shm")?;
    // mkdir's mode is cut by the umask.
    rustix::fs::chmod("shm", Mode::from_raw_mode(0o1777)).step("make /dev/shm")?;

    let mut sources = mounts.sources.iter();
    let lower = attach_layers("lower", sources.by_ref().take(plan.source.root_layers().count()))?;
    let root = overlay(&lower, "upper", "work").step("mount the root")?;
    attach(&root, Path::new("root")).step("attach the root")?;
    direct::lay(&root, "upper")?;

    for (index, bind) in plan.source.binds.iter().enumerate() {
        let target = Path::new("root").join(below_root(&bind.to));
        let mut layers = sources.by_ref().take(plan.source.bind_layers(bind).count());
        if bind.overlay {
            let (lower, upper, work) = (format!("lower{index}"), format!("upper{index}"), format!("work{index}"));
            for dir in [&lower, &upper, &work] {
                mkdir(dir, 0o755).step("make an overlay's directories")?;
            }
            let lower = attach_layers(&lower, layers)?;
            let merged = overlay(&lower, &upper, &work).step("mount a bind's overlay")?;
            attach(merged, &target).step("attach a bind's overlay")?;
        } else if let Some(mount) = layers.next() {
            attach(mount, &target).step("attach a bind")?;
        }
    }
    mount_proc(plan).and_then(|()| mount_dev(mounts))
}

/// Attaches layers, lowest first, below `dir`, and names them as overlay wants them, the uppermost first.
pub(crate) fn attach_layers<'a>(dir: &str, layers: impl Iterator<Item = &'a OwnedFd>) -> Result<Vec<String>, Failed> {
    let mut names = Vec::new();
    for (index, layer) in layers.enumerate() {
        let name = format!("{dir}/{index}");
        match mkdir(&name, 0o755) {
            // Of the root before this one.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failed { step: "make a layer's directory", errno }),
        }
        attach(layer, Path::new(&name)).step("attach a layer")?;
        names.insert(0, name);
    }
    Ok(names)
}

/// What a warden with rights opens from outside, opened from inside: with one id, whoever made this process may read
/// no more than it, so nothing is gained by either.
fn own_mounts(plan: &Plan) -> Result<Mounts, Failed> {
    let mut sources = Vec::new();
    for path in plan.source.mounted() {
        let mount = copy_of(&path).step("copy a directory of the root")?;
        let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV;
        set_attributes(mount.as_fd(), set, false, None).step("make a directory of the root read-only")?;
        sources.push(mount);
    }
    Ok(Mounts { sources, dev: None, top: None, disk: None })
}

/// An overlay of these lower directories, the uppermost first.
pub(crate) fn overlay(lower: &[String], upper: &str, work: &str) -> Result<OwnedFd, Errno> {
    /// Longest text that fsconfig(2) takes, its NUL included.
    const TEXT_MAX: usize = 256;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let joined = lower.join(":");
    if joined.len() < TEXT_MAX {
        fsconfig_set_string(&context, "lowerdir", joined.as_str())?;
    } else {
        // One by one: since Linux 6.7.
        for layer in lower {
            fsconfig_set_string(&context, "lowerdir+", layer.as_str())?;
        }
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    // `userxattr`: whiteouts and opaque directories are kept in attributes that a user namespace may write.
    fsconfig_set_flag(&context, "userxattr")?;
    // A layer may be the written one of an overlay that is about to go: then it is not written any more.
    fsconfig_set_string(&context, "index", "off")?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, HELD)
}

/// Covers the host's boot id with one of the sandbox's own: the host's tells which sandboxes share a host, and programs
/// take another one for a restart. The text is made as the kernel makes it (random(4)).
fn cover_boot_id() -> Result<(), Failed> {
    let failed = |error: std::io::Error| Failed {
        step: "make a boot id",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    };
    let id = std::fs::read("/proc/sys/kernel/random/uuid").map_err(failed)?;
    std::fs::write("boot_id", id).map_err(failed)?;
    rustix::fs::chmod("boot_id", Mode::from_raw_mode(0o444)).step("make a boot id")?;
    let cover = copy_of("boot_id").step("copy a boot id")?;
    set_attributes(cover.as_fd(), attribute::RDONLY | attribute::NOEXEC, false, None).step("cover the boot id")?;
    attach(cover, Path::new("root/proc/sys/kernel/random/boot_id")).step("cover the boot id")
}

fn mount_proc(plan: &Plan) -> Result<(), Failed> {
    let attributes = HELD | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mut options = vec![("hidepid", "invisible")];
    if !plan.exec_groups && matches!(plan.ids, Ids::Range { .. }) {
        // Init must see every process, to find those of an exec: it has the group 0, and no right to trace the user's.
        options.push(("gid", "0"));
    }
    let proc = new_fs("proc", &options, attributes).step("mount /proc")?;
    attach(proc, Path::new("root/proc")).step("attach /proc")?;
    bound_tcp_buffers()?;
    let sys = copy_of("root/proc/sys").step("copy /proc/sys")?;
    set_attributes(sys.as_fd(), attribute::RDONLY, false, None).step("make /proc/sys read-only")?;
    attach(sys, Path::new("root/proc/sys")).step("attach /proc/sys")?;
    cover_boot_id()?;
    if plan.proc_covered.is_empty() {
        return Ok(());
    }
    mkdir("cover", 0o555).step("make a cover for /proc")?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open("cover.file", flags, Mode::from_raw_mode(0o444)).step("make a cover for /proc")?;
    for name in &plan.proc_covered {
        let target = Path::new("root/proc").join(name);
        let directory = rustix::fs::stat(&target)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
            .step("look at a file of /proc")?;
        let cover = copy_of(if directory { "cover" } else { "cover.file" }).step("copy a cover for /proc")?;
        set_attributes(cover.as_fd(), attribute::RDONLY | attribute::NOEXEC, false, None)
            .step("cover a file of /proc")?;
        attach(cover, &target).step("cover a file of /proc")?;
    }
    Ok(())
}

/// Devices that every program may expect (null(4), random(4), tty(4)), and their numbers
/// (Documentation/admin-guide/devices.txt).
pub(crate) const DEVICES: [(&str, u32, u32); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];
/// Links in `/dev`.
pub(crate) const DEV_LINKS: [(&str, &str); 6] = [
    ("core", "/proc/kcore"),
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

fn mount_dev(mounts: &Mounts) -> Result<(), Failed> {
    match &mounts.dev {
        Some(dev) => attach(dev, Path::new("root/dev")).step("attach /dev")?,
        None => {
            mkdir("dev", 0o755).step("make /dev")?;
            for (name, ..) in DEVICES {
                let path = format!("dev/{name}");
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666)).step("make a device's place")?;
                let device = copy_of(format!("/dev/{name}")).step("copy a device")?;
                attach(device, Path::new(&path)).step("attach a device")?;
            }
            for (name, target) in DEV_LINKS {
                rustix::fs::symlink(target, format!("dev/{name}")).step("make a link of /dev")?;
            }
            for dir in ["dev/pts", "dev/shm"] {
                mkdir(dir, 0o755).step("make a directory of /dev")?;
            }
            let tree = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::from_bits_retain(0x8000); // AT_RECURSIVE: with the devices
            let dev = open_tree(CWD, "dev", tree).step("copy /dev")?;
            attach(dev, Path::new("root/dev")).step("attach /dev")?;
        }
    }
    let group = TTY_GROUP.to_string();
    let mut options = vec![("ptmxmode", "0666"), ("mode", "0620"), ("max", TERMINALS_MAX)];
    // With one id mapped there is no such group.
    if mounts.dev.is_some() {
        options.push(("gid", &group));
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = new_fs("devpts", &options, attributes).step("mount /dev/pts")?;
    attach(pts, Path::new("root/dev/pts")).step("attach /dev/pts")?;
    let shm = copy_of("shm").step("copy /dev/shm")?;
    attach(shm, Path::new("root/dev/shm")).step("attach /dev/shm")
}

fn enter_root(top: Option<&OwnedFd>) -> Result<(), Failed> {
    if let Some(top) = top {
        mkdir("top", 0o755).step("make the root's place")?;
        attach(top, Path::new("top")).step("attach the root's place")?;
        move_mount(CWD, "root", CWD, "top/root", MoveMountFlags::empty()).step("move the root to its place")?;
    }
    rustix::process::chdir(if top.is_some() { "top" } else { "root" }).step("enter the root")?;
    pivot_root_here().step("pivot to the root")?;
    // The old root lies on the new one now; detached, nothing of the host is left to reach.
    unmount(".", UnmountFlags::DETACH).step("detach the host's root")?;
    if top.is_some() {
        // Nobody inside has the capability to leave it (CAP_SYS_CHROOT), and there is nothing above it to be had.
        rustix::process::chroot("root").step("make the root in its place the root")?;
    }
    rustix::process::chdir("/").step("enter the new root")
}

/// Bytes of a core dump. Not 0, which stops no dump to a program of the host's that `core_pattern` names (core(5)): at 1
/// the kernel dumps nothing at all (fs/coredump.c). The filter keeps everybody from setting another.
const CORE_MAX: u64 = 1;

/// Has the kernel dump nothing of the calling process: for those that read what strangers wrote.
pub(crate) fn dump_nothing() -> Result<(), Errno> {
    // The soft limit counts, which is mostly 0. A hard one of 0 is another's word, and is not raised.
    let maximum = rustix::process::getrlimit(Resource::Core).maximum.map_or(CORE_MAX, |max| max.min(CORE_MAX));
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(maximum), maximum: Some(maximum) })
}

/// Resource limits of every process; setrlimit(2). What is higher already stays: limits are clamped, never raised.
fn set_rlimits() {
    let limits = [
        (Resource::Nofile, 8192),
        (Resource::Memlock, 8 << 20),
        (Resource::Msgqueue, 819_200),
        (Resource::Sigpending, 4096),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
        (Resource::Locks, 4096),
    ];
    for (resource, most) in limits {
        let now = rustix::process::getrlimit(resource);
        let maximum = now.maximum.map_or(most, |max| max.min(most));
        let current = now.current.map_or(maximum, |current| current.min(maximum));
        // Lowering one's own limit is never refused.
        let _ = rustix::process::setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) });
    }
    // Nor is this.
    let _ = dump_nothing();
}

/// Landlock over the whole root: no devices made anywhere, ioctl on devices only below `/dev`, no mounts changed, no
/// abstract socket and no signal beyond the sandbox.
fn landlock_root(top: Option<&OwnedFd>, cgroup: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
    let abi = landlock::abi();
    let handled = landlock::fs::all(abi);
    let scopes = if abi >= 6 { landlock::scope::ABSTRACT_UNIX_SOCKET | landlock::scope::SIGNAL } else { 0 };
    let rules = landlock::Ruleset::new(handled, 0, scopes).step("make the Landlock rules")?;
    let open =
        |path: &str| rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let devices = landlock::fs::MAKE_CHAR | landlock::fs::MAKE_BLOCK | landlock::fs::IOCTL_DEV;
    // What the root is mounted in, if anything: it stays when the root becomes another overlay. Landlock looks from a
    // file up through all mounts (landlock(7)).
    let root = open("/").step("open the root for Landlock")?;
    rules
        .allow_beneath(top.map_or(root.as_fd(), AsFd::as_fd), handled & !devices)
        .step("allow the root in Landlock")?;
    for place in direct::PLACES {
        // The same again, where programs write most: Landlock looks up from a file until somebody allows it.
        if let Ok(dir) = open(&format!("/{place}")) {
            rules.allow_beneath(dir.as_fd(), handled & !devices).step("allow a directory in Landlock")?;
        }
    }
    if handled & landlock::fs::IOCTL_DEV != 0 {
        let dev = open("/dev").step("open /dev for Landlock")?;
        rules.allow_beneath(dev.as_fd(), landlock::fs::IOCTL_DEV).step("allow /dev in Landlock")?;
    }
    if let Some(cgroup) = cgroup {
        // Init's own, to give each exec its group; no path inside leads there.
        use landlock::fs::{MAKE_DIR, READ_DIR, READ_FILE, REMOVE_DIR, WRITE_FILE};
        let access = MAKE_DIR | READ_DIR | READ_FILE | REMOVE_DIR | WRITE_FILE;
        rules.allow_beneath(cgroup, access).step("allow init its cgroups in Landlock")?;
    }
    rules.restrict_self().step("lay on the Landlock rules")
}

/// Makes what every root of a warden with root is mounted in: a file system with one empty directory, `root`.
///
/// The mount namespace of a sandbox has it at the top, read-only, and processes have for their root what is mounted in
/// its directory. So the root can become another mount, and what is bound to the top holds on.
pub(crate) fn shared_top() -> Result<OwnedFd, Failed> {
    let top = new_fs("tmpfs", &[("size", "4k"), ("nr_inodes", "4"), ("mode", "0755")], MountAttrFlags::empty())
        .step("mount the place of roots")?;
    rustix::fs::mkdirat(&top, "root", Mode::from_raw_mode(0o755)).step("make the place of roots")?;
    Ok(top)
}

/// Makes the `/dev` of one sandbox, for a warden with root: device files, links and the places for pts and shm, on the
/// sandbox's disk where a mount of that can be copied, else on a file system of its own.
///
/// No two sandboxes have it in common: what one does with a file can be seen by whoever has the same one, by inotify(7) and
/// by locks.
pub(crate) fn own_dev(disk: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Failed> {
    let dev = match disk {
        Some(disk) => {
            rustix::fs::mkdirat(disk, "dev", Mode::from_raw_mode(0o755)).step("make /dev")?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            open_tree(disk, "dev", flags).step("copy /dev")?
        }
        None => new_fs("tmpfs", &[("size", "64k"), ("nr_inodes", "64"), ("mode", "0755")], MountAttrFlags::empty())
            .step("mount /dev")?,
    };
    for (name, major, minor) in DEVICES {
        let (mode, number) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor));
        rustix::fs::mknodat(&dev, name, rustix::fs::FileType::CharacterDevice, mode, number).step("make a device")?;
        // mknod's mode is cut by the umask.
        rustix::fs::chmodat(&dev, name, mode, AtFlags::empty()).step("make a device")?;
    }
    for (name, target) in DEV_LINKS {
        rustix::fs::symlinkat(target, &dev, name).step("make a link of /dev")?;
    }
    for dir in ["pts", "shm"] {
        rustix::fs::mkdirat(&dev, dir, Mode::from_raw_mode(0o755)).step("make a directory of /dev")?;
    }
    clear_attributes(dev.as_fd(), attribute::NODEV).step("let devices work in /dev")?;
    let set = attribute::RDONLY | attribute::NOSUID | attribute::NOEXEC;
    set_attributes(dev.as_fd(), set, false, None).step("make /dev read-only")?;
    Ok(dev)
}
