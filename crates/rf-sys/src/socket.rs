//! What rustix has not of sockets.

use core::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// asm-generic/socket.h, since Linux 6.16; the libc crate has no name for it yet.
const SO_PASSRIGHTS: c_int = 83;

/// Has the kernel refuse to send descriptors to this unix socket: whoever tries gets `EPERM`, and none is queued for it.
/// Whether the kernel does; before Linux 6.16 it does not.
///
/// Wraps `setsockopt(SOL_SOCKET, SO_PASSRIGHTS)`; see unix(7). What was sent before is dropped when it is received.
///
/// # Errors
/// As setsockopt(2), but for a kernel that has no such option.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    let off: c_int = 0;
    // SAFETY: `off` is an int that lives through the call, of the size that is given; it is only read.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            core::ptr::from_ref(&off).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    match crate::check(rc.into()) {
        Ok(_) => Ok(true),
        Err(Errno::NOPROTOOPT) => Ok(false),
        Err(errno) => Err(errno),
    }
}
