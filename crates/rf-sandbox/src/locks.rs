//! Locks on parts of files (fcntl(2), `F_SETLK`): Linux charges them to nobody and bounds them by nothing.
//!
//! A process of the warden's counts them, from outside, where also those are seen whose maker has ended. It looks at the
//! kernel's list of all locks, and only where that is long at the descriptors of sandboxes, one by one: what
//! `/proc/[pid]/fdinfo` shows of a descriptor are the locks that were made by it. (The list alone tells neither: it names
//! processes, and a lock lives on with whoever shares the table of descriptors with one that has ended.) It reads what
//! the kernel writes and nothing else, may read what is another's and nothing more, and waits for the kernel where the
//! warden must not: reading the list waits for a grace period of RCU (fs/locks.c, `locks_start`).

use std::{
    collections::HashMap,
    ffi::CString,
    fs,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use rf_sys::process::{self, Forked};
use rf_wire::init::{Writer, order};
use rustix::{
    io::Errno,
    process::{Pid, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use crate::{
    launch::{self, LaunchError, Launcher, Sandbox, Step as _},
    packet,
    push::Helper,
    setup::{Failed, bound_capabilities, dump_nothing},
};

/// Most locks of a sandbox, some 200 bytes each. Chosen: far above what databases hold, of which each connection has a
/// few; with them a sandbox takes 20 MB more of the host's memory than its limit.
pub const LOCKS_MAX: usize = 100_000;
/// How long the descriptors of one sandbox are looked at: at first, and where nobody was found by that. Chosen: time for
/// some 50,000 descriptors, and for a million, which are as much as the standard limit of memory is good for. One that
/// has even more, on a host where there are too many locks, counts as one that has them.
const PATIENCE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// DAC_READ_SEARCH and SYS_PTRACE (linux/capability.h): to read what `/proc` says of others' descriptors.
const CAPABILITIES: u64 = 1 << 2 | 1 << 19;
/// The name of the process, by which the audit of ours knows it.
pub const NAME: &str = "rf-locks";
/// What it says once, when it is confined.
const READY: &[u8] = b"K";
/// Most sandboxes of one look: their first processes are named in one message.
const SANDBOXES_MAX: usize = 16 * 1024;

/// The process that counts. Dropped, it ends.
#[derive(Debug)]
pub struct Watch {
    /// Kept for its end.
    _helper: Helper,
    socket: OwnedFd,
}

impl Watch {
    /// Starts it, and waits until it has given up what it does not need.
    ///
    /// # Errors
    /// The step that failed.
    pub fn begin(launcher: &Launcher) -> Result<Self, LaunchError> {
        let (socket, childs) = packet::pair().step("make a socket")?;
        match process::fork_into(0, None).step("clone a process that counts locks")? {
            Forked::Child => {
                drop(socket);
                child(launcher, &childs)
            }
            Forked::Parent { pidfd, .. } => {
                drop(childs);
                let watch = Self { _helper: Helper::new(pidfd), socket };
                let mut word = [0; 256];
                match packet::receive(&watch.socket, &mut word, true) {
                    Ok((len, _)) if &word[..len] == READY => Ok(watch),
                    Ok((len, _)) => Err(match launch::failed_step(&String::from_utf8_lossy(&word[..len])) {
                        Some((step, errno)) => LaunchError::Inside { step, errno },
                        None => LaunchError::Died,
                    }),
                    Err(_) => Err(LaunchError::Died),
                }
            }
        }
    }

    /// Readable when [`Self::said`] has something.
    #[must_use]
    pub fn watched(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Has it look at the sandboxes of these first processes. It answers once.
    ///
    /// # Errors
    /// `EAGAIN` when it is far behind; `EPIPE` when it has ended.
    pub fn look(&self, inits: impl Iterator<Item = Pid>) -> Result<(), Errno> {
        packet::send(&self.socket, &written(inits.map(|pid| pid.as_raw_pid().unsigned_abs())), &[])
    }

    /// Which of those it was asked for have too many.
    ///
    /// # Errors
    /// `EPIPE` when it has ended; as recvmsg(2).
    pub fn said(&self) -> Result<Vec<Pid>, Errno> {
        let mut buffer = vec![0; 4 * (SANDBOXES_MAX + 1)];
        match packet::receive(&self.socket, &mut buffer, false)? {
            (0, _) => Err(Errno::PIPE),
            (len, _) => Ok(read(&buffer[..len]).filter_map(|pid| Pid::from_raw(pid.cast_signed())).collect()),
        }
    }
}

impl Sandbox {
    /// The process 1, as the warden numbers it.
    #[must_use]
    pub fn init(&self) -> Option<Pid> {
        self.cleanup.child.as_ref().map(|child| child.pid)
    }

    /// Has process 1 kill every other process.
    ///
    /// # Errors
    /// When it takes no message.
    pub fn kill_workload(&self) -> Result<(), LaunchError> {
        let mut buffer = [0; 32];
        let len = Writer::new(&mut buffer, order::KILL_ALL, 1).finish().map_err(|_| LaunchError::NotInit)?;
        packet::send(self.warden_socket(), &buffer[..len], &[]).step("tell init to kill all processes")
    }

    /// Kills process 1, and with it all others (pid_namespaces(7)); [`Self::ended`] comes.
    pub fn kill(&self) {
        if let Some(child) = &self.cleanup.child {
            // An error says that it has ended already.
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
        }
    }
}

/// Numbers as a message. The first is theirs: a message of none is not the end.
fn written(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    let numbers: Vec<u32> = numbers.take(SANDBOXES_MAX).collect();
    let count = u32::try_from(numbers.len()).unwrap_or(0);
    [count].into_iter().chain(numbers).flat_map(u32::to_ne_bytes).collect()
}

fn read(message: &[u8]) -> impl Iterator<Item = u32> {
    message.as_chunks().0.iter().skip(1).map(|number| u32::from_ne_bytes(*number))
}

fn child(launcher: &Launcher, socket: &OwnedFd) -> ! {
    if let Err(errno) = confine(launcher, socket) {
        launch::tell(socket.as_fd(), &Failed { step: "confine the process that counts locks", errno });
        process::exit(1);
    }
    if packet::send(socket, READY, &[]).is_err() {
        process::exit(1);
    }
    let mut buffer = vec![0; 4 * (SANDBOXES_MAX + 1)];
    loop {
        let Ok((len @ 1.., _)) = packet::receive(socket, &mut buffer, true) else { process::exit(0) };
        let inits: Vec<u32> = read(&buffer[..len]).collect();
        // What cannot be read now may be read the next time; the warden starts another then.
        let Ok(greedy) = look(&inits) else { process::exit(1) };
        if packet::send(socket, &written(greedy.into_iter()), &[]).is_err() {
            process::exit(1);
        }
    }
}

fn confine(launcher: &Launcher, socket: &OwnedFd) -> Result<(), Errno> {
    process::close_all_but(&[socket.as_fd()])?;
    rustix::thread::set_name(&CString::new(NAME).map_err(|_| Errno::INVAL)?)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::chdir("/")?;
    dump_nothing()?;
    rustix::thread::set_no_new_privs(true)?;
    // Without root there are none. What is needed then comes with having made the sandboxes' user namespaces
    // (user_namespaces(7)).
    if launcher.host().rooted {
        bound_capabilities(CAPABILITIES).map_err(|failed| failed.errno)?;
        let few = CapabilitySet::from_bits_retain(CAPABILITIES);
        let sets = CapabilitySets { effective: few, permitted: few, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets)?;
    }
    rf_sys::seccomp::install(launcher.filter())
}

/// Which of the sandboxes have too many.
fn look(inits: &[u32]) -> io::Result<Vec<u32>> {
    if are_few(fs::File::open("/proc/locks")?)? {
        return Ok(Vec::new());
    }
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let mut sandboxes: HashMap<PathBuf, (u32, Vec<u32>)> =
        inits.iter().filter_map(|init| Some((space(*init)?, (*init, Vec::new())))).collect();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some((_, processes)) = space(pid).and_then(|space| sandboxes.get_mut(&space)) {
            processes.push(pid);
        }
    }
    let mut open: Vec<(u32, Vec<u32>)> = sandboxes.into_values().collect();
    for patience in PATIENCE {
        let mut greedy = Vec::new();
        open.retain(|(init, processes)| match has_too_many(processes, patience) {
            Some(true) => {
                greedy.push(*init);
                false
            }
            known => known.is_none(),
        });
        if !greedy.is_empty() || open.is_empty() {
            return Ok(greedy);
        }
    }
    Ok(open.into_iter().map(|(init, _)| init).collect())
}

/// Whether the list of all locks of the host has fewer than one sandbox may have. Read no further than that, since
/// reading on takes the longer the more was read (fs/seq_file.c).
fn are_few(mut list: impl io::Read) -> io::Result<bool> {
    let mut buffer = vec![0; 64 * 1024];
    let (mut lines, mut locks, mut kept) = (0, 0, 0);
    loop {
        let len = list.read(&mut buffer[kept..])?;
        if len == 0 {
            return Ok(true);
        }
        let text = &buffer[..kept + len];
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        lines += text[..whole].iter().filter(|byte| **byte == b'\n').count();
        locks += count(&text[..whole]);
        // Those of flock(2) are in the list as well, and each has a descriptor, which is charged for.
        if locks >= LOCKS_MAX || lines >= 2 * LOCKS_MAX {
            return Ok(false);
        }
        kept = text.len() - whole;
        buffer.copy_within(whole..whole + kept, 0);
        if kept == buffer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Whether these processes hold more locks than a sandbox may; one that cannot be looked at counts as if they did. Nothing
/// where that is not known in time.
fn has_too_many(processes: &[u32], patience: Duration) -> Option<bool> {
    let begun = Instant::now();
    let mut locks = 0;
    let mut text = Vec::new();
    for pid in processes {
        let descriptors = match fs::read_dir(format!("/proc/{pid}/fdinfo")) {
            Ok(descriptors) => descriptors,
            Err(error) if is_gone(&error) => continue,
            Err(_) => return Some(true),
        };
        for entry in descriptors {
            text.clear();
            let read = entry.and_then(|entry| fs::File::open(entry.path())?.read_to_end(&mut text));
            match read {
                Ok(_) => locks += count(&text),
                Err(error) if is_gone(&error) => {}
                Err(_) => return Some(true),
            }
            if locks > LOCKS_MAX {
                return Some(true);
            }
            if begun.elapsed() > patience {
                return None;
            }
        }
    }
    Some(false)
}

/// Whether the process, or the descriptor, is not there any more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// How many lines of a text tell of such a lock, held or waited for: `1: POSIX  ADVISORY  WRITE ...` in the list of all,
/// behind `lock:` in what is said of a descriptor (proc_locks(5), proc_pid_fdinfo(5)).
fn count(text: &[u8]) -> usize {
    text.split(|byte| *byte == b'\n').filter(|line| line.windows(7).take(32).any(|word| word == b" POSIX ")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "1: POSIX  ADVISORY  WRITE 4321 fe:00:1234 0 EOF\n1: -> POSIX  ADVISORY  READ 4322 fe:00:1234 0 EOF\n\
                        2: FLOCK  ADVISORY  WRITE 77 00:1a:5 0 EOF\n3: OFDLCK ADVISORY  READ -1 00:1a:5 0 EOF\n";

    #[test]
    fn locks_of_the_kind_are_counted_and_no_others() {
        assert_eq!(count(LIST.as_bytes()), 2);
        assert_eq!(count(b"pos:\t0\nflags:\t02\nlock:\t1: POSIX  ADVISORY  WRITE 5 00:1a:5 0 9\nlock:\t2: FLOCK "), 1);
        assert_eq!(count(b""), 0);
    }

    /// Gives its text in pieces of one length.
    struct Pieces<'a>(&'a [u8], usize);

    impl io::Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(self.0.len()).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    #[test]
    fn a_list_is_long_from_the_bound_on_however_it_is_read() {
        let line = LIST.lines().next().unwrap().to_owned() + "\n";
        for piece in [7, 4096, 1 << 20] {
            assert!(are_few(Pieces(LIST.as_bytes(), piece)).unwrap());
            assert!(are_few(Pieces(line.repeat(LOCKS_MAX - 1).as_bytes(), piece)).unwrap(), "{piece}");
            assert!(!are_few(Pieces(line.repeat(LOCKS_MAX).as_bytes(), piece)).unwrap(), "{piece}");
            let others = "2: FLOCK  ADVISORY  WRITE 77 00:1a:5 0 EOF\n".repeat(2 * LOCKS_MAX);
            assert!(!are_few(Pieces(others.as_bytes(), piece)).unwrap(), "{piece}");
        }
    }

    #[test]
    fn what_this_process_locks_is_found_by_its_descriptors() {
        use rustix::fs::{FlockOperation, fcntl_lock};
        let file = tempfile::tempfile().unwrap();
        let own = std::process::id();
        let held = || -> usize {
            let all = fs::read_dir(format!("/proc/{own}/fdinfo")).unwrap().flatten();
            all.map(|entry| count(&fs::read(entry.path()).unwrap_or_default())).sum()
        };
        let before = held();
        fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(held(), before + 1);
        assert_eq!(has_too_many(&[own], PATIENCE[0]), Some(false));
        // Nobody has this number: one that has ended holds nothing.
        assert_eq!(has_too_many(&[u32::MAX], PATIENCE[0]), Some(false));
        assert_eq!(has_too_many(&[own], Duration::ZERO), None);
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        for numbers in [vec![], vec![1], vec![7, 4_000_000]] {
            let message = written(numbers.iter().copied());
            assert!(!message.is_empty());
            assert_eq!(read(&message).collect::<Vec<_>>(), numbers);
        }
    }
}
