//! The one place where a descriptor is registered with the reactor.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor that is ours.
///
/// # Errors
/// `ENOMEM` and `ENOSPC` (epoll_ctl(2)).
#[expect(
    deprecated,
    reason = "deprecated for types that might give back another or a closed descriptor; an `OwnedFd` that is moved in \
              does neither, and the replacement is an unsafe function, which is for the cellar only"
)]
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// Registers a socket that is ours to be read. Not to be written as well: each message that the other side takes would
/// wake us for nothing; who finds it full waits as [`crate::packet::send_waiting`] does.
///
/// # Errors
/// As [`register`].
pub(crate) fn register_socket(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}
