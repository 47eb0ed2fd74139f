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

/// As [`pair`], where the first is for somebody who expects no descriptors from the other side: the kernel sends it none,
/// if it can refuse that (Linux 6.16). One that nobody asked for may take long to be closed (`SO_LINGER`, socket(7)).
///
/// # Errors
/// As [`pair`].
pub fn pair_without_descriptors() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = pair()?;
    // Where it cannot be refused, what comes is closed.
    let _ = rf_sys::socket::refuse_descriptors(ours.as_fd())?;
    Ok((ours, theirs))
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

/// Most datagrams that are dropped at once. More than a socket holds: each takes some 800 bytes of its buffer, which is
/// 208 KiB by default (`net.core.wmem_default`).
const DRAINED_MAX: usize = 1_000;

/// Drops what waits in a socket; of who sends all the time no more than a socket holds.
pub fn drain(socket: impl AsFd) {
    let mut buffer = [0; 256];
    // One that is too long for the buffer is dropped like the others.
    let mut waits = || {
        let got = receive(&socket, &mut buffer, false);
        matches!(got, Ok((1.., _)) | Err(Errno::MSGSIZE))
    };
    for _ in 0..DRAINED_MAX {
        if !waits() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_socket_holds_is_dropped_and_not_what_comes_all_the_time() {
        let (ours, theirs) = pair().unwrap();
        let fill = || (0..100_000).take_while(|_| send(&theirs, &[7; 300], &[]).is_ok()).count();
        let empty = || receive(&ours, &mut [0; 16], false).unwrap_err() == Errno::AGAIN;
        let held = fill();
        assert!((1..DRAINED_MAX).contains(&held), "{held}");
        drain(&ours);
        assert!(empty(), "all that it holds");
        // One that holds more stands for one that is filled while it is emptied.
        rustix::net::sockopt::set_socket_send_buffer_size_force(&theirs, 8 << 20).expect("run this as root");
        let held = fill();
        assert!(held > DRAINED_MAX, "{held}");
        drain(&ours);
        assert!(!empty());
    }

    #[test]
    fn who_expects_no_descriptors_is_sent_none_where_the_kernel_can_refuse_them() {
        let (ours, theirs) = pair_without_descriptors().unwrap();
        let can_refuse = rf_sys::socket::refuse_descriptors(ours.as_fd()).unwrap();
        let release = rustix::system::uname();
        eprintln!("{}: {can_refuse}", release.release().to_string_lossy());
        let expected = if can_refuse { Err(Errno::PERM) } else { Ok(()) };
        assert_eq!(send(&theirs, b"take", &[theirs.as_fd()]), expected);
        let mut buffer = [0; 16];
        let got = receive(&ours, &mut buffer, false).map(|(len, fds)| (len, fds.len()));
        assert_eq!(got, if can_refuse { Err(Errno::AGAIN) } else { Ok((4, 1)) });
        // Words still come, and the other side takes descriptors: what it is sent is asked for.
        send(&theirs, b"word", &[]).unwrap();
        assert_eq!(receive(&ours, &mut buffer, false).unwrap().0, 4);
        send(&ours, b"take", &[ours.as_fd()]).unwrap();
        assert_eq!(receive(&theirs, &mut buffer, false).unwrap().1.len(), 1);
    }
}
