//! The listener of the sandbox's filter: calls that wait until process 1 answers them (seccomp_unotify(2)).

use rustix::{
    fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    io::Errno,
};

use super::arch::call;

/// By this fourth argument of socket(2), which takes three, the base filter knows a call of init's own for a netlink
/// socket and lets it pass; the filter of workloads refuses it. Whatever else is there by chance is not this.
pub const OWN_NETLINK: u32 = 0x7266_6e6c;

/// struct seccomp_notif, with struct seccomp_data from `number` on (linux/seccomp.h; 80 bytes).
#[repr(C)]
#[derive(Debug, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    args: [u64; 6],
}

/// struct seccomp_notif_resp (linux/seccomp.h; 24 bytes).
#[repr(C)]
#[derive(Debug)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// struct seccomp_notif_addfd (linux/seccomp.h; 24 bytes).
#[repr(C)]
#[derive(Debug)]
struct Added {
    id: u64,
    flags: u32,
    fd: u32,
    number: u32,
    number_flags: u32,
}

// linux/seccomp.h: _IOWR('!', 0, 80 bytes), _IOWR('!', 1, 24 bytes), _IOW('!', 3, 24 bytes).
const RECEIVE: usize = 0xC050_2100;
const SEND: usize = 0xC018_2101;
const ADD_FD: usize = 0x4018_2103;
/// SECCOMP_ADDFD_FLAG_SEND: the descriptor's number is the call's result (Linux 5.14).
const ADD_AND_SEND: u32 = 1 << 1;

/// A call of socket(2) for netlink that waits.
#[derive(Debug)]
pub struct Asked {
    id: u64,
    kind: u64,
}

impl Asked {
    /// The next one.
    ///
    /// # Errors
    /// `ENOENT` when who called has gone meanwhile.
    pub fn receive(listener: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut asked = Notification::default();
        // SAFETY: the kernel writes a struct seccomp_notif, which is what the variable is, and wants it zeroed.
        unsafe { ioctl(listener, RECEIVE, &raw mut asked as usize) }?;
        Ok(Self { id: asked.id, kind: asked.args[1] })
    }

    /// Makes what was asked for.
    ///
    /// # Errors
    /// As socket(2) has them.
    pub fn make(&self) -> Result<OwnedFd, Errno> {
        let family = libc::AF_NETLINK as usize;
        // SAFETY: numbers only.
        let fd = unsafe { call(libc::SYS_socket, [family, self.kind as usize, 0, OWN_NETLINK as usize, 0, 0]) }?;
        // SAFETY: just made, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Lets the call return a copy of `socket`. Waits until who called has taken it.
    ///
    /// # Errors
    /// `EMFILE` when it may have no more descriptors: the call still waits. `ENOENT` or `ESRCH` when it waits no more.
    pub fn give(&self, listener: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let number_flags = self.kind as u32 & libc::SOCK_CLOEXEC as u32;
        let fd = socket.as_raw_fd().unsigned_abs();
        let added = Added { id: self.id, flags: ADD_AND_SEND, fd, number: 0, number_flags };
        // SAFETY: the kernel reads a struct seccomp_notif_addfd, which is what the variable is.
        unsafe { ioctl(listener, ADD_FD, &raw const added as usize) }
    }

    /// Lets the call fail.
    ///
    /// # Errors
    /// `ENOENT` when it waits no more.
    pub fn refuse(&self, listener: BorrowedFd<'_>, errno: Errno) -> Result<(), Errno> {
        let response = Response { id: self.id, value: 0, error: -errno.raw_os_error(), flags: 0 };
        // SAFETY: the kernel reads a struct seccomp_notif_resp, which is what the variable is.
        unsafe { ioctl(listener, SEND, &raw const response as usize) }
    }
}

/// ioctl(2).
///
/// # Safety
/// `argument` is the address of what `request` reads or writes.
unsafe fn ioctl(fd: BorrowedFd<'_>, request: usize, argument: usize) -> Result<(), Errno> {
    // SAFETY: as the caller promises.
    unsafe { call(libc::SYS_ioctl, [fd.as_raw_fd() as usize, request, argument, 0, 0, 0]) }.map(drop)
}

const _: () = assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24 && size_of::<Added>() == 24);
