//! One thin wrapper per system call that rustix does not have; all our `unsafe`.
//!
//! Decides no policy, logs nothing, allocates nothing.

#![no_std]

#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "std")]
pub mod command;
pub mod guest;
#[cfg(feature = "std")]
pub mod landlock;
#[cfg(feature = "std")]
pub mod loopdev;
#[cfg(feature = "std")]
pub mod mount;
#[cfg(feature = "std")]
pub mod owner;
#[cfg(feature = "std")]
pub mod process;
#[cfg(feature = "std")]
pub mod seccomp;
#[cfg(feature = "std")]
pub mod socket;

/// The result of a call through libc: -1 is an error whose number is in `errno`.
#[cfg(feature = "std")]
fn check(rc: libc::c_long) -> Result<libc::c_long, rustix::io::Errno> {
    if rc == -1 {
        // SAFETY: libc's errno location is valid for the calling thread's life.
        let errno = unsafe { *libc::__errno_location() };
        Err(rustix::io::Errno::from_raw_os_error(errno))
    } else {
        Ok(rc)
    }
}
