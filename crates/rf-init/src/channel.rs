//! One socket to the server or the warden: receiving orders, and answering without ever waiting.
//!
//! When the other side does not read, the answer waits here and no further order is read from it, so at most one answer
//! waits for each socket, whatever the other side does.

use core::mem::MaybeUninit;

use rf_wire::init::{FDS_MAX, Writer, answer};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{Errno, IoSlice, IoSliceMut},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

/// Longest answer that init makes: the header and an `EXEC`, rounded up.
const ANSWER_MAX: usize = 128;

/// Descriptors that came beside a message.
#[derive(Debug, Default)]
pub(crate) struct Fds([Option<OwnedFd>; FDS_MAX]);

impl Fds {
    /// Takes one out, by its place in the message.
    pub(crate) fn take(&mut self, index: usize) -> Option<OwnedFd> {
        self.0.get_mut(index)?.take()
    }

    /// Takes out the first; those behind it move up into its place.
    pub(crate) fn take_first(&mut self) -> Option<OwnedFd> {
        let [first, rest @ ..] = core::mem::take(&mut self.0);
        for (slot, fd) in self.0.iter_mut().zip(rest) {
            *slot = fd;
        }
        first
    }
}

/// One answer with the descriptors that travel beside it.
#[derive(Debug)]
pub(crate) struct Answer {
    bytes: [u8; ANSWER_MAX],
    len: usize,
    fds: [Option<OwnedFd>; 3],
}

impl Answer {
    /// An answer whose body is written by `body`.
    pub(crate) fn new(kind: u16, tag: u64, body: impl FnOnce(&mut Writer<'_>)) -> Self {
        let mut bytes = [0; ANSWER_MAX];
        let mut writer = Writer::new(&mut bytes, kind, tag);
        body(&mut writer);
        // Only numbers are ever written into an answer, and `ANSWER_MAX` has room for the longest.
        let len = writer.finish().unwrap_or(0);
        Self { bytes, len, fds: [const { None }; 3] }
    }

    /// `FAILED` at a stage.
    pub(crate) fn failed(tag: u64, stage: u32, errno: Errno) -> Self {
        Self::new(answer::FAILED, tag, |writer| {
            writer.u32(errno.raw_os_error().unsigned_abs());
            writer.u32(stage);
        })
    }

    /// `DONE`.
    pub(crate) fn done(tag: u64) -> Self {
        Self::new(answer::DONE, tag, |_| ())
    }

    /// Adds descriptors.
    pub(crate) fn with(mut self, fds: [Option<OwnedFd>; 3]) -> Self {
        self.fds = fds;
        self
    }

    /// The message.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What came of a send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sent {
    /// It is on its way.
    Yes,
    /// The other side does not read now.
    Later,
    /// The other side is gone.
    Gone,
    /// The kernel refuses this message, and would again.
    Refused(Errno),
}

/// Sends one datagram without waiting.
pub(crate) fn send<'a>(socket: BorrowedFd<'_>, bytes: &[u8], fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Sent {
    let mut list = [socket; FDS_MAX];
    let mut count = 0;
    for fd in fds.into_iter().take(FDS_MAX) {
        list[count] = fd;
        count += 1;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        // There is room for `FDS_MAX`.
        control.push(SendAncillaryMessage::ScmRights(&list[..count]));
    }
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        return match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => Sent::Yes,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Sent::Later,
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => Sent::Gone,
            Err(errno) => Sent::Refused(errno),
        };
    }
}

/// What came of a receive.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message of so many bytes.
    Message(usize, Fds),
    /// A message that is too long, or with too many descriptors: dropped.
    Unfit,
    /// Nothing now.
    Nothing,
    /// The other side is gone.
    Gone,
}

/// Receives one datagram without waiting.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
        Ok(got) => got,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
        Err(_) => return Received::Gone,
    };
    let mut fds = Fds::default();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            for (slot, fd) in fds.0.iter_mut().zip(rights) {
                *slot = Some(fd);
            }
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Received::Unfit;
    }
    // No order is empty: on a socket of this type that is the end.
    if got.bytes == 0 { Received::Gone } else { Received::Message(got.bytes, fds) }
}

/// A `LIST` that is being answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listing {
    /// Its tag.
    pub(crate) tag: u64,
    /// The next place of the table.
    pub(crate) next: usize,
}

/// One of the two sockets.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    socket: Option<OwnedFd>,
    /// The other side did not read: poll for room before anything else.
    pub(crate) blocked: bool,
    waiting: Option<Answer>,
    /// A list under way.
    pub(crate) listing: Option<Listing>,
}

impl Channel {
    /// A channel over `socket`.
    pub(crate) fn new(socket: Option<OwnedFd>) -> Self {
        Self { socket, ..Self::default() }
    }

    /// The socket while it is open.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Closes it and drops what waits.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }

    /// Sends bytes that are made again when the answer is [`Sent::Later`].
    pub(crate) fn send<'a>(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Sent {
        let Some(socket) = self.socket() else { return Sent::Gone };
        let sent = send(socket, bytes, fds);
        match sent {
            Sent::Later => self.blocked = true,
            Sent::Gone => self.close(),
            Sent::Yes | Sent::Refused(_) => {}
        }
        sent
    }

    /// Sends an answer now or keeps it for later.
    ///
    /// # Errors
    /// When the kernel will not send it at all.
    pub(crate) fn answer(&mut self, answer: Answer) -> Result<(), Errno> {
        let sent = self.send(answer.bytes(), answer.fds.iter().flatten().map(AsFd::as_fd));
        match sent {
            Sent::Later => self.waiting = Some(answer),
            Sent::Refused(errno) => return Err(errno),
            Sent::Yes | Sent::Gone => {}
        }
        Ok(())
    }

    /// There is room again: sends what waits. True when nothing waits any more.
    pub(crate) fn flush(&mut self) -> bool {
        self.blocked = false;
        if let Some(answer) = self.waiting.take() {
            // An answer refused for ever is dropped; its order is lost to the server, which notices by time.
            let _ = self.answer(answer);
        }
        !self.blocked
    }
}
