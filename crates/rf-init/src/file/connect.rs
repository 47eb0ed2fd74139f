//! `CONNECT`: a TCP connection to a port inside the sandbox. Handed over not blocking.
//!
//! A listener on the loopback takes a connection while connect(2) still runs, so init itself makes it, without waiting
//! and without a helper. Where it is not taken at once, because the listener's queue is full, a helper waits for it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rf_wire::init::{Entry, Writer, file_answer};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect as start, socket_with, sockopt::socket_error},
};

use super::{Told, reply::Reply};
use crate::channel::{Sent, send};

/// How long a listener may be too busy to take the connection; chosen.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Longest answer of [`at_once`]: a header, an [`Entry`] with two empty strings, or an error with one.
const ANSWER_MAX: usize = 128;
/// Not waiting.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Connects and answers, if both are done without waiting; whether they were. For process 1, which must not wait; the
/// caller sees to it that the socket is the user's.
pub(crate) fn at_once(port: u32, tag: u64, reply: BorrowedFd<'_>) -> bool {
    let connected = number(port).and_then(|port| {
        or_ipv6(|address| match begin(address, port)? {
            Begun::Connected(socket) => Ok(socket),
            Begun::UnderWay(socket) => match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&NOW)) {
                Ok(1) => socket_error(&socket)?.map(|()| socket),
                Ok(_) | Err(_) => Err(Errno::AGAIN),
            },
        })
    });
    let mut buffer = [0; ANSWER_MAX];
    let (length, socket) = match connected {
        Ok(socket) => {
            let mut writer = Writer::new(&mut buffer, file_answer::OPENED, tag);
            NO_FILE.write(&mut writer);
            (writer.finish(), Some(socket))
        }
        // Nobody listens, or nothing is a port: told as it is. Everything else is for a helper, which may wait.
        Err(errno @ (Errno::CONNREFUSED | Errno::INVAL)) => {
            let mut writer = Writer::new(&mut buffer, file_answer::FAILED, tag);
            writer.u32(errno.raw_os_error().unsigned_abs());
            writer.string(b"");
            (writer.finish(), None)
        }
        Err(_) => return false,
    };
    let Ok(length) = length else { return false };
    // Whatever hinders it is for the helper to meet again; a server that is gone needs no answer.
    matches!(send(reply, &buffer[..length], socket.as_ref().map(AsFd::as_fd)), Sent::Yes | Sent::Gone)
}

/// What stands for the description of a file in the answer.
const NO_FILE: Entry<'_> = Entry { mode: 0, uid: 0, gid: 0, size: 0, modified_ms: 0, path: b"", target: b"" };

fn number(port: u32) -> Result<u16, Errno> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Errno::INVAL)
}

/// Over IPv4, and where nobody listens there over IPv6.
fn or_ipv6(connect: impl Fn(IpAddr) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    match connect(IpAddr::V4(Ipv4Addr::LOCALHOST)) {
        Err(Errno::CONNREFUSED) => connect(IpAddr::V6(Ipv6Addr::LOCALHOST)).map_err(|errno| {
            // No IPv6 here: what counts is that nobody listened.
            if matches!(errno, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) { Errno::CONNREFUSED } else { errno }
        }),
        outcome => outcome,
    }
}

/// A connection that was begun.
enum Begun {
    Connected(OwnedFd),
    UnderWay(OwnedFd),
}

fn begin(address: IpAddr, port: u16) -> Result<Begun, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match start(&socket, &SocketAddr::new(address, port)) {
        Ok(()) => Ok(Begun::Connected(socket)),
        Err(Errno::INPROGRESS) => Ok(Begun::UnderWay(socket)),
        Err(errno) => Err(errno),
    }
}

pub(super) fn connect(port: u32, reply: &mut Reply) -> Result<Told, Errno> {
    let port = number(port)?;
    let socket = or_ipv6(|address| connect_to(address, port, reply))?;
    reply.entry(&NO_FILE, Some(socket.as_fd()))?;
    Ok(Told::Already)
}

fn connect_to(address: IpAddr, port: u16, reply: &Reply) -> Result<OwnedFd, Errno> {
    let socket = match begin(address, port)? {
        Begun::Connected(socket) => return Ok(socket),
        Begun::UnderWay(socket) => socket,
    };
    let abandoned = reply.socket();
    let mut fds = [PollFd::new(&socket, PollFlags::OUT), PollFd::from_borrowed_fd(abandoned, PollFlags::empty())];
    loop {
        match poll(&mut fds, Some(&PATIENCE)) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) if fds[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) => return Err(Errno::CANCELED),
            Ok(_) => break,
        }
    }
    match socket_error(&socket)? {
        Ok(()) => Ok(socket),
        Err(errno) => Err(errno),
    }
}
