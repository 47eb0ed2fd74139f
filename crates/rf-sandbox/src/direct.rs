//! Directories that are written without the overlay.
//!
//! An overlay keeps every file twice in the kernel's memory, its own inode over the written layer's, and takes two to
//! three times as long for each small one. A directory that is empty in all layers has nothing to be laid over: its place
//! in the written layer is mounted over the overlay's own. What is written there is in the same place, the layer, that it
//! would be in, so snapshots and copies know nothing of this, and the quota is the same.
//!
//! The kernel leaves open what an overlay shows of a directory that is written beneath it (Documentation/filesystems/
//! overlayfs.rst, "Changes to underlying filesystems"). Nobody sees it: the overlay's own directory is covered, none
//! inside can uncover it, and its parent cannot be renamed away, being of a lower layer (without `redirect_dir` that is
//! refused with `EXDEV`) or the root.

use std::{
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, RawDir, ResolveFlags},
    io::Errno,
    mount::{MoveMountFlags, move_mount},
};

use crate::setup::{Failed, Step as _, copy_of};

/// Where programs write most, below the root.
pub(crate) const PLACES: [&str; 2] = ["home/user", "tmp"];

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// No link of a template's is followed, and no other mount entered.
const STRAIGHT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Mounts them in the overlay `root`, which is attached, and whose written layer is `upper`.
pub(crate) fn lay(root: &OwnedFd, upper: &str) -> Result<(), Failed> {
    for place in PLACES {
        // What is not there, a link, or not empty is the overlay's, as is what cannot be made part of the written layer.
        let Some(covered) = empty(root, place) else { continue };
        let direct = copy_of(Path::new(upper).join(place)).step("copy a directory of the written layer")?;
        let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&direct, "", &covered, "", by_descriptors).step("attach a directory of the written layer")?;
    }
    Ok(())
}

/// The directory, if it is empty; it is in the written layer then.
fn empty(root: &OwnedFd, place: &str) -> Option<OwnedFd> {
    let dir = rustix::fs::openat2(root, place, DIRECTORY, Mode::empty(), STRAIGHT).ok()?;
    // On the stack: a new process copies each page of its parent's heap that it writes.
    let mut names = [MaybeUninit::uninit(); 1024];
    let mut names = RawDir::new(&dir, &mut names);
    while let Some(entry) = names.next() {
        if !matches!(entry.ok()?.file_name().to_bytes(), b"." | b"..") {
            return None;
        }
    }
    // The overlay makes it in the written layer when anything of it is changed.
    let mode = rustix::fs::fstat(&dir).ok()?.st_mode;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o7777)).ok()?;
    Some(dir)
}

/// Those that [`lay`] has mounted in `root`, which writes on the file system that `disk` is of.
pub(crate) fn laid(root: &OwnedFd, disk: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let device = rustix::fs::fstat(disk)?.st_dev;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut laid = Vec::new();
    for place in PLACES {
        match rustix::fs::openat2(root, place, flags, Mode::empty(), resolve) {
            Ok(dir) if rustix::fs::fstat(&dir)?.st_dev == device => laid.push(dir),
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(laid)
}
