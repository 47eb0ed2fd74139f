//! Installing a system call filter; see seccomp(2).

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::check;

/// One instruction of classic BPF, laid out as `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison is true.
    pub jt: u8,
    /// Instructions to skip when it is false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Longest program that the kernel takes (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

/// Adds a filter to the calling thread, for good, and for all it makes from then on.
///
/// Wraps `seccomp(SECCOMP_SET_MODE_FILTER, 0, program)`. Spectre mitigations are left to the kernel's own default.
///
/// # Errors
/// `EACCES` unless the thread has `no_new_privs` or `CAP_SYS_ADMIN`; `EINVAL` for a program that is empty, longer than
/// [`INSTRUCTIONS_MAX`], or that the kernel's checker refuses; `ENOMEM`.
pub fn install(program: &[Instruction]) -> Result<(), Errno> {
    set_filter(program, 0).map(drop)
}

/// As [`install`], and gives the listener: it is readable when a call waits for an answer that the filter left to it
/// (`SECCOMP_RET_USER_NOTIF`; seccomp_unotify(2)). Close-on-exec.
///
/// # Errors
/// As [`install`]; `EBUSY` when the thread has a filter with a listener already.
pub fn install_with_listener(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    const SECCOMP_FILTER_FLAG_NEW_LISTENER: libc::c_ulong = 1 << 3;
    let fd = set_filter(program, SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: with this flag the call gives a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn set_filter(program: &[Instruction], flags: libc::c_ulong) -> Result<libc::c_long, Errno> {
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { len, filter: program.as_ptr() };
    // SAFETY: `program` has the layout of `struct sock_fprog` and points at `len` instructions of the layout of
    // `struct sock_filter`; the kernel copies them during the call. An unsuitable program is refused, not run.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
}
