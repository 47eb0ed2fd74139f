//! `CONNECT`: a TCP connection to a port inside the sandbox. Handed over not blocking.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rf_wire::init::Entry;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect as start, socket_with, sockopt::socket_error},
};

use super::{Told, reply::Reply};

/// How long a listener may be too busy to take the connection; chosen.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

pub(super) fn connect(port: u32, reply: &mut Reply) -> Result<Told, Errno> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Errno::INVAL)?;
    let socket = match connect_to(IpAddr::V4(Ipv4Addr::LOCALHOST), port, reply) {
        Err(Errno::CONNREFUSED) => connect_to(IpAddr::V6(Ipv6Addr::LOCALHOST), port, reply).map_err(|errno| {
            // No IPv6 here: what counts is that nobody listened.
            if matches!(errno, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) { Errno::CONNREFUSED } else { errno }
        }),
        outcome => outcome,
    }?;
    let entry = Entry { mode: 0, uid: 0, gid: 0, size: 0, modified_ms: 0, path: b"", target: b"" };
    reply.entry(&entry, Some(socket.as_fd()))?;
    Ok(Told::Already)
}

fn connect_to(address: IpAddr, port: u16, reply: &Reply) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match start(&socket, &SocketAddr::new(address, port)) {
        Err(Errno::INPROGRESS) => {}
        outcome => return outcome.map(|()| socket),
    }
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
