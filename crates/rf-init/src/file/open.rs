//! Opening files without ever opening what is not a regular file.

use core::ffi::CStr;

use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat, openat2},
    io::Errno,
};

use super::{
    Told,
    reply::{Reply, entry_of},
};
use crate::text::Name;

/// `PROC_SUPER_MAGIC` (statfs(2)).
const PROC_MAGIC: i64 = 0x9fa0;
/// `SYSFS_MAGIC` (statfs(2)).
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Device and inode: which file it is.
pub(super) type Place = (u64, u64);

/// Which file a stat is of.
pub(super) const fn place_of(stat: &Stat) -> Place {
    (stat.st_dev, stat.st_ino)
}

/// Names a file without opening it.
pub(super) fn look(path: &CStr, follow: bool) -> Result<OwnedFd, Errno> {
    look_at(CWD, path, follow)
}

/// [`look`] from a directory.
pub(super) fn look_at(directory: BorrowedFd<'_>, path: &CStr, follow: bool) -> Result<OwnedFd, Errno> {
    let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::PATH | OFlags::CLOEXEC | last;
    openat2(directory, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Opens a directory to be listed or worked in.
pub(super) fn directory_at(directory: BorrowedFd<'_>, path: &CStr, follow: bool) -> Result<OwnedFd, Errno> {
    let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK | last;
    openat2(directory, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// The path by which the kernel names a descriptor's own file.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> Result<Name<32>, Errno> {
    Name::numbered(b"/proc/self/fd/", fd.as_raw_fd().unsigned_abs()).ok_or(Errno::BADF)
}

/// The stat of a regular file that may be opened.
pub(super) fn regular(file: BorrowedFd<'_>) -> Result<Stat, Errno> {
    let stat = fstat(file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        FileType::Fifo | FileType::Socket => return Err(Errno::SPIPE),
        FileType::Symlink => return Err(Errno::LOOP),
        _ => return Err(Errno::NODEV),
    }
    if fstatfs(file)?.f_type == PROC_MAGIC { Err(Errno::ACCESS) } else { Ok(stat) }
}

/// Whether a directory is on procfs or sysfs, whose files are not content.
pub(super) fn is_of_the_kernel(directory: BorrowedFd<'_>) -> bool {
    fstatfs(directory).is_ok_and(|fs| matches!(fs.f_type, PROC_MAGIC | SYSFS_MAGIC))
}

/// Opens the file that `file` names, which [`regular`] has passed.
pub(super) fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Not waiting for a lease that the workload holds on it (fcntl(2), F_SETLEASE).
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat(CWD, path_of(file)?.cstr(), flags, Mode::empty())
}

/// `READ`.
pub(super) fn read(path: &CStr, reply: &mut Reply) -> Result<Told, Errno> {
    let named = look(path, true)?;
    let stat = regular(named.as_fd())?;
    let file = reopen(named.as_fd(), OFlags::RDONLY)?;
    reply.entry(&entry_of(&stat, path.to_bytes(), b""), Some(file.as_fd()))?;
    Ok(Told::Already)
}
