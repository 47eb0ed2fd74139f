//! What the process that changes a root does, as `root` of the sandbox's user namespace.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rf_sys::{
    mount::{attribute, clear_attributes, pivot_root_here, set_attributes},
    process::{self, namespaces},
};
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
    mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount},
    process::Signal,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::name;
use crate::{
    direct, launch, packet,
    plan::{Plan, RootSource, below_root},
    setup::{self, Failed, SCRATCH, Step as _},
};

/// What it was given.
pub(super) struct Given<'a> {
    pub(super) plan: &'a Plan,
    pub(super) source: &'a RootSource,
    /// The number of the layer that is written from now on.
    pub(super) next: u32,
    pub(super) disk: OwnedFd,
    /// As [`RootSource::mounted`] has them.
    pub(super) sources: Vec<OwnedFd>,
}

/// What is needed to make a sandbox whole again.
pub(super) struct Torn<'a> {
    pub(super) plan: &'a Plan,
    /// Its file system.
    pub(super) disk: BorrowedFd<'a>,
    /// The root that it has.
    pub(super) root: OwnedFd,
}

/// Most mounts that lie on the root of a sandbox after a push that was cut off: the new root, or the old one.
const STACKED_MAX: usize = 2;

/// Closes what is the warden's own, copied: what it closes is to be closed, and what it has is not ours.
fn close_all_but(needed: &[BorrowedFd<'_>], report: BorrowedFd<'_>) {
    if let Err(errno) = process::close_all_but(needed) {
        launch::tell(report, &Failed { step: "close what is the warden's", errno });
        process::exit(1);
    }
}

/// Does it, says so, and ends.
pub(super) fn run(given: &Given<'_>, sandbox: BorrowedFd<'_>, report: BorrowedFd<'_>) -> ! {
    let mut needed = vec![given.disk.as_fd(), sandbox, report];
    needed.extend(given.sources.iter().map(AsFd::as_fd));
    close_all_but(&needed, report);
    match push(given, sandbox) {
        Ok(old) => {
            // Whoever hears it thaws the sandbox.
            let told = packet::send(report, b"K", &[]);
            // The last user of the old root has the kernel put it away, which may take as long as much of an image is
            // not written yet.
            drop(old);
            process::exit(i32::from(told.is_err()))
        }
        Err(failed) => {
            launch::tell(report, &failed);
            process::exit(1)
        }
    }
}

/// Makes a sandbox whole, says so, and ends.
pub(super) fn run_mend(torn: &Torn<'_>, sandbox: BorrowedFd<'_>, report: BorrowedFd<'_>) -> ! {
    close_all_but(&[torn.disk, torn.root.as_fd(), sandbox, report], report);
    match mend(torn, sandbox) {
        Ok(()) => process::exit(i32::from(packet::send(report, b"K", &[]).is_err())),
        Err(failed) => {
            launch::tell(report, &failed);
            process::exit(1)
        }
    }
}

/// Takes away what lies on the root that the sandbox has, and makes what it writes there writable.
fn mend(torn: &Torn<'_>, sandbox: BorrowedFd<'_>) -> Result<(), Failed> {
    become_root(sandbox)?;
    move_into_thread_name_spaces(sandbox, ThreadNameSpaceType::MOUNT).step("enter the mount namespace")?;
    let own = rustix::fs::fstat(&torn.root).step("look at the root")?.st_dev;
    for _ in 0..=STACKED_MAX {
        // Whichever is uppermost.
        rustix::process::chdir("/root").step("enter the root")?;
        if rustix::fs::stat(".").step("look at what is on the root")?.st_dev == own {
            for mount in written_in(&torn.root, torn.disk, torn.plan)?.iter().chain([&torn.root]) {
                clear_attributes(mount.as_fd(), attribute::RDONLY).step("make the root writable")?;
            }
            return Ok(());
        }
        unmount(".", UnmountFlags::DETACH).step("take away what lies on the root")?;
    }
    Err(Failed { step: "find the root", errno: Errno::NOENT })
}

/// Becomes `root` of the sandbox's user namespace, and ends with the warden.
fn become_root(sandbox: BorrowedFd<'_>) -> Result<(), Failed> {
    move_into_thread_name_spaces(sandbox, ThreadNameSpaceType::USER).step("enter the user namespace")?;
    rustix::thread::set_thread_groups(&[]).step("give up the groups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("take the group")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step("take the user")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("tie to the warden")
}

/// What is written in a root beside the root itself: without its overlay, and through overlays of its binds.
fn written_in(root: &OwnedFd, disk: BorrowedFd<'_>, plan: &Plan) -> Result<Vec<OwnedFd>, Failed> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // No link of the sandbox's leads to a mount of something else.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut written = direct::laid(root, disk).step("find what is written without the root")?;
    for bind in plan.source.binds.iter().filter(|bind| bind.overlay) {
        let bind = rustix::fs::openat2(root, below_root(&bind.to), flags, Mode::empty(), resolve);
        written.push(bind.step("open an overlay of the root")?);
    }
    Ok(written)
}

/// Puts the new root together and in the place of the old; gives what was written of the old.
fn push(given: &Given<'_>, sandbox: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Failed> {
    become_root(sandbox)?;
    process::unshare(namespaces::MOUNT).step("unshare")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step("make mounts private")?;
    setup::attach(&given.disk, Path::new(SCRATCH)).step("attach the writable file system")?;
    rustix::process::chdir(SCRATCH).step("enter the writable file system")?;
    let root = put_together(given)?;

    move_into_thread_name_spaces(sandbox, ThreadNameSpaceType::MOUNT).step("enter the mount namespace")?;
    rustix::process::chroot("root").step("enter the old root")?;
    rustix::process::chdir("/").step("enter the old root")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).step("open the old root")?;
    let mut written = written_in(&old, given.disk.as_fd(), given.plan)?;
    written.push(old);
    let changed = hold_still(&written).and_then(|()| change_root(&root));
    if let Err(failed) = changed {
        for mount in &written {
            // Of one that was not changed nothing is taken.
            if clear_attributes(mount.as_fd(), attribute::RDONLY).is_err() {
                end_torn();
            }
        }
        return Err(failed);
    }
    Ok(written)
}

/// Ends without a word, so that another process makes the sandbox whole.
fn end_torn() -> ! {
    process::exit(1)
}

/// Makes the old overlays and what is written without them read-only, so that nothing is written into what becomes a layer, whoever holds what: the
/// kernel refuses it while a file is open for writing, as it is by the server during an upload.
fn hold_still(written: &[OwnedFd]) -> Result<(), Failed> {
    for mount in written {
        set_attributes(mount.as_fd(), attribute::RDONLY, false, None).step(super::STILL)?;
    }
    Ok(())
}

/// Puts the new root in the place of the one we stand in.
fn change_root(root: &OwnedFd) -> Result<(), Failed> {
    let parts = ["proc", "dev"];
    let kept: Vec<OwnedFd> = parts.into_iter().map(tree_at).collect::<Result<_, _>>().step("copy what stays")?;
    setup::attach(root, Path::new("/")).step("attach the new root")?;
    let changed = (|| {
        rustix::process::fchdir(root).step("enter the new root")?;
        for (mount, at) in kept.iter().zip(parts) {
            setup::attach(mount, Path::new(at)).step("attach what stays")?;
        }
        pivot_root_here().step("pivot to the new root")
    })();
    if let Err(failed) = changed {
        // Nobody stands in it: what the sandbox has is the old one.
        if rustix::process::fchdir(root).and_then(|()| unmount(".", UnmountFlags::DETACH)).is_err() {
            end_torn();
        }
        return Err(failed);
    }
    // As at a launch: the old root lies on the new one.
    if unmount(".", UnmountFlags::DETACH).is_err() {
        end_torn();
    }
    Ok(())
}

/// The new root with its overlays and binds, detached.
fn put_together(given: &Given<'_>) -> Result<OwnedFd, Failed> {
    let new_dir = |path: &str| match setup::mkdir(path, 0o755) {
        // Of a push that failed.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Failed { step: "make the overlay's directories", errno }),
    };
    let mut sources = given.sources.iter();
    let mut overlay_of = |lower: &str, index: Option<usize>, count: usize| {
        let (upper, work) = (name(given.next, "upper", index), name(given.next, "work", index));
        new_dir(&upper)?;
        new_dir(&work)?;
        let mut lowers: Vec<String> = (0..given.next).rev().map(|pushed| name(pushed, "upper", index)).collect();
        lowers.extend(setup::attach_layers(lower, sources.by_ref().take(count))?);
        setup::overlay(&lowers, &upper, &work).step("mount an overlay")
    };
    new_dir(&format!("p{}", given.next))?;
    let root = overlay_of("lower", None, given.source.root_layers().count())?;
    setup::attach(&root, Path::new("root")).step("attach the root")?;
    direct::lay(&root, &name(given.next, "upper", None))?;
    for (index, bind) in given.plan.source.binds.iter().enumerate() {
        let target = Path::new("root").join(below_root(&bind.to));
        let count = given.source.bind_layers(bind).count();
        if bind.overlay {
            let merged = overlay_of(&format!("lower{index}"), Some(index), count)?;
            setup::attach(merged, &target).step("attach a bind's overlay")?;
        } else {
            let at = given.source.root_layers().count()
                + given.source.binds[..index].iter().map(|bind| given.source.bind_layers(bind).count()).sum::<usize>();
            let mount = given.sources.get(at).ok_or(Failed { step: "find a bind", errno: Errno::NOENT })?;
            setup::attach(mount, &target).step("attach a bind")?;
        }
    }
    tree_at("root").step("copy the new root")
}

/// A copy of the mount at a path and of all below it.
fn tree_at(path: &str) -> Result<OwnedFd, Errno> {
    let recursive = OpenTreeFlags::from_bits_retain(0x8000); // AT_RECURSIVE
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive)
}
