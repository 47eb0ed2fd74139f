//! Landlock: rules that a process lays on itself; see landlock(7) and the kernel's userspace-api/landlock document.

use rustix::{
    fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    io::Errno,
};

use crate::check;

/// Rights on files. The comment gives the ABI that brought each.
pub mod fs {
    /// Execute a file (1).
    pub const EXECUTE: u64 = 1 << 0;
    /// Open for writing (1).
    pub const WRITE_FILE: u64 = 1 << 1;
    /// Open for reading (1).
    pub const READ_FILE: u64 = 1 << 2;
    /// Open a directory or list it (1).
    pub const READ_DIR: u64 = 1 << 3;
    /// Remove an empty directory (1).
    pub const REMOVE_DIR: u64 = 1 << 4;
    /// Unlink a file (1).
    pub const REMOVE_FILE: u64 = 1 << 5;
    /// Make a character device (1).
    pub const MAKE_CHAR: u64 = 1 << 6;
    /// Make a directory (1).
    pub const MAKE_DIR: u64 = 1 << 7;
    /// Make a regular file (1).
    pub const MAKE_REG: u64 = 1 << 8;
    /// Make a socket (1).
    pub const MAKE_SOCK: u64 = 1 << 9;
    /// Make a FIFO (1).
    pub const MAKE_FIFO: u64 = 1 << 10;
    /// Make a block device (1).
    pub const MAKE_BLOCK: u64 = 1 << 11;
    /// Make a symbolic link (1).
    pub const MAKE_SYM: u64 = 1 << 12;
    /// Link or rename between directories (2).
    pub const REFER: u64 = 1 << 13;
    /// Truncate (3).
    pub const TRUNCATE: u64 = 1 << 14;
    /// ioctl(2) on a device (5).
    pub const IOCTL_DEV: u64 = 1 << 15;
    /// All rights of an ABI.
    #[must_use]
    pub const fn all(abi: u32) -> u64 {
        match abi {
            0 => 0,
            1 => REFER - 1,
            2 => TRUNCATE - 1,
            3 | 4 => IOCTL_DEV - 1,
            _ => (IOCTL_DEV << 1) - 1,
        }
    }
}

/// Scopes (ABI 6): what cannot be reached outside the domain.
pub mod scope {
    /// Abstract Unix sockets of processes outside.
    pub const ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
    /// Signals to processes outside.
    pub const SIGNAL: u64 = 1 << 1;
}

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: RawFd,
}

/// The ABI version of the running kernel; 0 when it has no Landlock or it is off.
#[must_use]
pub fn abi() -> u32 {
    const CREATE_RULESET_VERSION: libc::c_ulong = 1;
    // SAFETY: with the version flag the kernel wants a null pointer and size 0, and touches no memory.
    let rc = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, core::ptr::null::<RulesetAttr>(), 0, CREATE_RULESET_VERSION)
    };
    check(rc).ok().and_then(|version| u32::try_from(version).ok()).unwrap_or(0)
}

/// A set of rules that is being made.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// A ruleset that denies every right in `handled_fs` and `handled_net` but where a rule allows it, and holds
    /// `scoped`.
    ///
    /// # Errors
    /// `EINVAL` for a right or scope that this ABI does not know; `EOPNOTSUPP` when Landlock is off; `ENOSYS`.
    pub fn new(handled_fs: u64, handled_net: u64, scoped: u64) -> Result<Self, Errno> {
        let attr = RulesetAttr { handled_access_fs: handled_fs, handled_access_net: handled_net, scoped };
        // An older kernel takes the longer struct as long as what it does not know is zero (E2BIG otherwise).
        // SAFETY: `attr` is a whole `landlock_ruleset_attr` and is only read during the call.
        let rc =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size_of::<RulesetAttr>(), 0) };
        let raw = RawFd::try_from(check(rc)?).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the call succeeded, so `raw` is a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Allows `access` on the file `parent`, or on the directory and all beneath it.
    ///
    /// # Errors
    /// `EINVAL` for a right that is not handled or that a file which is no directory cannot have; `EBADFD`.
    pub fn allow_beneath(&self, parent: BorrowedFd<'_>, access: u64) -> Result<(), Errno> {
        const RULE_PATH_BENEATH: libc::c_ulong = 1;
        let attr = PathBeneathAttr { allowed_access: access, parent_fd: parent.as_raw_fd() };
        // SAFETY: `attr` has the packed layout of `landlock_path_beneath_attr` and is only read during the call.
        let rc = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.0.as_raw_fd(), RULE_PATH_BENEATH, &raw const attr, 0)
        };
        check(rc).map(drop)
    }

    /// Lays the rules on the calling thread, for good, and on all it makes from then on.
    ///
    /// # Errors
    /// `EPERM` unless the thread has `no_new_privs` or `CAP_SYS_ADMIN`; `E2BIG` past 16 layers.
    pub fn restrict_self(self) -> Result<(), Errno> {
        // SAFETY: integers only.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) }).map(drop)
    }
}
