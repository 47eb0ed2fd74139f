//! One datagram with descriptors beside it; unix(7), `SCM_RIGHTS`.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

/// Most descriptors beside one datagram that we send or take; the kernel's own bound is 253.
pub const FDS_MAX: usize = 160;

/// Two connected sockets of datagrams that keep their order and bounds.
///
/// # Errors
/// As socketpair(2).
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one datagram, without waiting for room.
///
/// # Errors
/// `EAGAIN` when there is no room; `EPIPE` when the other side is gone; as sendmsg(2).
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags))?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Takes one datagram into `buffer`; its length and its descriptors. A length of 0 is the end.
///
/// # Errors
/// `EAGAIN` when there is none and `wait` is false; `EMSGSIZE` for one that is longer than the buffer or had more
/// descriptors than [`FDS_MAX`] (what came of it is closed); as recvmsg(2).
pub fn receive(socket: impl AsFd, buffer: &mut [u8], wait: bool) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    let got =
        rustix::io::retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut *buffer)], &mut control, flags))?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok((got.bytes, fds))
}
