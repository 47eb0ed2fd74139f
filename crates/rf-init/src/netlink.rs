//! Netlink sockets of the workload, made and counted by init.
//!
//! What the kernel answers to a question about interfaces and routes waits in the socket that asked, up to
//! `net.core.rmem_default` (the filter lets nobody set `SO_RCVBUF`), and is charged to no control group
//! (net/netlink/af_netlink.c, `netlink_dump`). Nothing else bounds how many such sockets there are than memory that is
//! charged, which is good for a hundred thousand of them. So the filter lets init make them (seccomp_unotify(2)), and it
//! makes no more than [`SOCKETS_MAX`] at once.
//!
//! Handing over a descriptor waits until the other has run, and a workload may see to it that it does not. So a process
//! of its own does it, started when the first one asks, and gone when none has asked for a while.

use rf_sys::guest::{Asked, Fork, drop_capabilities, exit, fork_into, inherited, keep_only};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, read},
    thread::set_name,
};

/// Most netlink sockets at once. Chosen: programs have one for as long as it takes to ask, or to listen for changes; with
/// what waits in them these are 16 MiB at most where `net.core.rmem_default` is the kernel's own.
const SOCKETS_MAX: u32 = 64;
/// How long nobody asked before the process ends. Chosen: a name that is looked up asks several times.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The listener, and who attends to it.
#[derive(Debug)]
pub(crate) struct Netlink {
    listener: OwnedFd,
    /// The pid of the process that attends to it; 0 is none.
    front: i32,
}

impl Netlink {
    pub(crate) const fn new(listener: OwnedFd) -> Self {
        Self { listener, front: 0 }
    }

    /// What is to be waited on: while another attends to it, nothing.
    pub(crate) fn watched(&self) -> Option<BorrowedFd<'_>> {
        (self.front == 0).then(|| self.listener.as_fd())
    }

    /// Somebody asks: starts the process that attends to it, in `cgroup`.
    pub(crate) fn attend(&mut self, cgroup: Result<Option<OwnedFd>, Errno>) {
        match cgroup.and_then(|cgroup| fork_into(cgroup.as_ref().map(AsFd::as_fd))) {
            Ok(Fork::Child) => {
                serve(&self.listener);
                exit(0)
            }
            Ok(Fork::Parent(pid)) => self.front = pid.as_raw_pid(),
            // At the limit of tasks there is no socket either.
            Err(_) => {
                if let Ok(asked) = Asked::receive(self.listener.as_fd()) {
                    let _ = asked.refuse(self.listener.as_fd(), Errno::NOBUFS);
                }
            }
        }
    }

    /// A child has ended; whether it was this one.
    pub(crate) fn ended(&mut self, pid: i32) -> bool {
        let was = self.front == pid;
        if was {
            self.front = 0;
        }
        was
    }
}

/// Makes sockets for whoever asks, until nobody has for [`IDLE`].
fn serve(listener: &OwnedFd) {
    let _ = set_name(c"rf-netlink");
    // Nothing of it is needed for this.
    if drop_capabilities().is_err() || keep_only(listener.as_fd(), None).is_err() {
        return;
    }
    let Ok(listener) = inherited(3) else { return };
    let listener = listener.as_fd();
    while poll(&mut [PollFd::from_borrowed_fd(listener, PollFlags::IN)], Some(&IDLE)).is_ok_and(|ready| ready > 0) {
        // Gone meanwhile.
        let Ok(asked) = Asked::receive(listener) else { continue };
        let given = sockets().and_then(|count| {
            if count >= SOCKETS_MAX {
                return Err(Errno::NFILE);
            }
            asked.make().and_then(|socket| asked.give(listener, socket.as_fd()))
        });
        if let Err(errno) = given {
            // Who has gone hears nothing.
            let _ = asked.refuse(listener, errno);
        }
    }
}

/// How many netlink sockets the network namespace has, the kernel's own not counted: the number behind the name and the
/// size, in the table of protocols (net/core/sock.c, `proto_seq_printf`).
fn sockets() -> Result<u32, Errno> {
    let table = openat(CWD, c"/proc/net/protocols", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; 4096];
    loop {
        // Whole lines, as many as there is room for.
        let len = read(&table, &mut text)?;
        if len == 0 {
            return Err(Errno::PROTO);
        }
        if let Some(count) = text[..len].split(|byte| *byte == b'\n').find_map(count) {
            return Ok(count);
        }
    }
}

fn count(line: &[u8]) -> Option<u32> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    words.next().filter(|name| *name == b"NETLINK")?;
    core::str::from_utf8(words.nth(1)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_sockets_is_read() {
        assert_eq!(count(b"NETLINK   1112     12      -1   NI       0   no   kernel      n  n"), Some(12));
        assert_eq!(count(b"PACKET    1472      0      -1   NI       0   no   kernel      n  n"), None);
        assert_eq!(count(b"protocol  size sockets  memory press maxhdr  slab module"), None);
        assert_eq!(count(b""), None);
    }

    #[test]
    fn the_kernel_counts_a_socket_that_is_not_bound() {
        use std::os::fd::OwnedFd;
        let before = sockets().unwrap();
        let family = rustix::net::AddressFamily::NETLINK;
        let made: Vec<OwnedFd> =
            (0..5).map(|_| rustix::net::socket(family, rustix::net::SocketType::RAW, None).unwrap()).collect();
        // Others on this machine make and close some of theirs.
        assert!(sockets().unwrap() + 3 >= before + made.len() as u32);
    }
}
