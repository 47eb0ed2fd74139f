//! The mount calls that rustix does not have.

use core::ffi::CStr;

use rustix::{
    fd::{AsRawFd, BorrowedFd},
    io::Errno,
};

use crate::check;

/// Attributes of a mount; see mount_setattr(2).
pub mod attribute {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits do nothing.
    pub const NOSUID: u64 = 0x2;
    /// Device files do nothing.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// Ids are mapped through a user namespace (Linux 5.12).
    pub const IDMAP: u64 = 0x0010_0000;
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes on the mount that `mount` refers to, optionally on all below it, and optionally maps its ids through
/// a user namespace ([`attribute::IDMAP`] is added then).
///
/// Wraps `mount_setattr(mount, "", AT_EMPTY_PATH ...)`, Linux 5.12.
///
/// # Errors
/// `EBUSY` for [`attribute::RDONLY`] while somebody has a file open for writing through this mount; `EPERM` without
/// `CAP_SYS_ADMIN` over the mount's namespace, or for an id map over a file system's owner;
/// `EINVAL` when the file system cannot be id-mapped or the mount is already attached or mapped.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    recursive: bool,
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = MountAttr { attr_set: set, ..MountAttr::default() };
    if let Some(fd) = user_namespace {
        attr.attr_set |= attribute::IDMAP;
        attr.userns_fd = fd.as_raw_fd() as u64;
    }
    change(mount, recursive, &attr)
}

/// Takes attributes away from the mount that `mount` refers to; as [`set_attributes`].
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` over the mount's namespace, or for an attribute that is locked.
pub fn clear_attributes(mount: BorrowedFd<'_>, clear: u64) -> Result<(), Errno> {
    change(mount, false, &MountAttr { attr_clr: clear, ..MountAttr::default() })
}

fn change(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path is NUL-terminated and `attr` is a whole `mount_attr`; both are only read during the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            core::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(rc).map(drop)
}

/// Makes the current directory the root; the old root stays stacked on it until detached.
///
/// Wraps `pivot_root(".", ".")`; see pivot_root(2), NOTES. Since Linux 2.3.41.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; `EINVAL` when the current directory is not a mount point, or it or its parent mount
/// is shared.
pub fn pivot_root_here() -> Result<(), Errno> {
    const HERE: &CStr = c".";
    // SAFETY: the kernel reads two NUL-terminated strings during the call and keeps neither pointer; `HERE` is
    // 'static. It writes no memory of ours.
    let rc = unsafe { libc::syscall(libc::SYS_pivot_root, HERE.as_ptr(), HERE.as_ptr()) };
    check(rc).map(drop)
}
