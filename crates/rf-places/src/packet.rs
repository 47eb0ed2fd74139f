//! Datagrams with descriptors over a `SOCK_SEQPACKET` Unix socket (unix(7)). Never blocks; knows no message.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rf_wire::init::{FDS_MAX, INLINE_MAX};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::reactor;

thread_local! {
    /// One receive buffer for each thread, not for each socket: thousands of sockets are idle at any moment.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; INLINE_MAX]);
}

/// What came of an attempt to receive.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// A message, already looked at.
    Message(T),
    /// Nothing there now.
    Empty,
    /// The other side is gone.
    Closed,
    /// A message that does not fit, or with too many descriptors: the other side breaks the rules.
    Broken,
}

/// The descriptors beside a message.
#[derive(Debug, Default)]
pub(crate) struct Fds {
    /// Those that came.
    pub(crate) list: Vec<OwnedFd>,
    /// Some are missing because this process may have no more; the other side did nothing wrong.
    pub(crate) cut: bool,
}

/// Takes one message, if there is one, and hands it with its descriptors to `look`.
///
/// `look` must not receive on this thread.
///
/// # Errors
/// What recvmsg(2) says, but for `EAGAIN` and `ECONNRESET`.
pub(crate) fn receive<T>(socket: BorrowedFd<'_>, look: impl FnOnce(&[u8], Fds) -> T) -> io::Result<Received<T>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Ok(got) => break got,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(Received::Empty),
                Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut list = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                list.extend(rights);
            }
        }
        // There was room for so many: where fewer came, the kernel had no number left to give (unix(7), recvmsg(2)).
        let cut = got.flags.contains(ReturnFlags::CTRUNC) && list.len() < FDS_MAX;
        let too_many = list.len() > FDS_MAX || (got.flags.contains(ReturnFlags::CTRUNC) && !cut);
        if got.flags.contains(ReturnFlags::TRUNC) || too_many {
            return Ok(Received::Broken);
        }
        // A datagram of no bytes is no message of ours either, so it may pass for the end.
        if got.bytes == 0 {
            return Ok(Received::Closed);
        }
        Ok(Received::Message(look(&buffer[..got.bytes], Fds { list, cut })))
    })
}

/// Sends one message with its descriptors, whole or not at all.
///
/// # Errors
/// `WouldBlock` when the other side's queue is full; else what sendmsg(2) says.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A pair of connected sockets, closed on exec. Both may block: the other end goes to a helper that waits, and ours is
/// never used without `MSG_DONTWAIT`.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`; see socketpair(2).
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Waits until there is room, then sends.
///
/// # Errors
/// As [`send`], but for `WouldBlock`.
pub(crate) async fn send_waiting(socket: &AsyncFd<OwnedFd>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    match send(socket.get_ref().as_fd(), bytes, &borrowed) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    // Seldom, so by a second descriptor of the socket, registered for this time only.
    let second = reactor::register(socket.get_ref().try_clone()?, Interest::WRITABLE)?;
    loop {
        let mut guard = second.writable().await?;
        match send(second.get_ref().as_fd(), bytes, &borrowed) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_waits_until_there_is_some() {
        let (a, b) = pair().unwrap();
        let a = reactor::register_socket(a).unwrap();
        let long = vec![1; 32 * 1024];
        let mut sent = 0;
        while send(a.get_ref().as_fd(), &long, &[]).is_ok() {
            sent += 1;
        }
        let waiting = send_waiting(&a, &long, &[]);
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        for _ in 0..sent {
            assert!(matches!(receive(b.as_fd(), |_, _| ()).unwrap(), Received::Message(())));
        }
        waiting.await.unwrap();
        assert!(matches!(receive(b.as_fd(), |_, _| ()).unwrap(), Received::Message(())));
    }

    #[test]
    fn a_message_keeps_its_borders_and_descriptors() {
        let (a, b) = pair().unwrap();
        let (read_end, _write_end) = rustix::pipe::pipe().unwrap();
        send(a.as_fd(), b"one", &[read_end.as_fd()]).unwrap();
        send(a.as_fd(), b"two", &[]).unwrap();
        let take = |bytes: &[u8], fds: Fds| (bytes.to_vec(), fds.list.len());
        let Received::Message(one) = receive(b.as_fd(), take).unwrap() else { panic!("no message") };
        let Received::Message(two) = receive(b.as_fd(), take).unwrap() else { panic!("no message") };
        assert_eq!((one, two), ((b"one".to_vec(), 1), (b"two".to_vec(), 0)));
        assert!(matches!(receive(b.as_fd(), take).unwrap(), Received::Empty));
        drop(a);
        assert!(matches!(receive(b.as_fd(), take).unwrap(), Received::Closed));
    }

    #[test]
    fn more_descriptors_than_allowed_are_broken() {
        let (a, b) = pair().unwrap();
        let fds: Vec<_> = (0..FDS_MAX + 2).map(|_| a.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(a.as_fd(), &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(receive(b.as_fd(), |_, _| ()).unwrap(), Received::Broken));
    }
}
