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

/// Registers a descriptor that is ours for both directions.
///
/// # Errors
/// As [`register`].
pub(crate) fn register_both(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE | Interest::WRITABLE)
}
