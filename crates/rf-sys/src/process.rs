//! Making, replacing and ending processes.

use core::ffi::CStr;

use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    io::Errno,
    process::Pid,
};

use crate::check;

/// libc's constant of this name has too few bits for it (linux/sched.h).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's `struct clone_args`, as of Linux 5.7; see clone(2).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Namespaces that a clone makes anew, as `CLONE_NEW*` bits.
pub mod namespaces {
    /// User.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Pid.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Mount.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// Network.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// IPC.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// UTS.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// Cgroup.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Time (Linux 5.6). Only for clone3: the low bits are the exit signal in the older calls.
    pub const TIME: u64 = 0x80;
}

/// Which side of a [`fork_into`] this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller, with the child's pid and a pidfd of it.
    Parent {
        /// The child, as the caller's pid namespace numbers it.
        pid: Pid,
        /// Readable when the child has ended; signals sent through it reach no other process (pidfd_open(2)).
        pidfd: OwnedFd,
    },
}

/// Copies the calling process into new namespaces, optionally straight into a cgroup v2 directory.
///
/// Wraps `clone3` with `CLONE_PIDFD`, and `CLONE_INTO_CGROUP` (Linux 5.7) when `cgroup` is given; see clone(2).
/// The child has a copy of the caller's memory and goes on from here.
///
/// # Errors
/// `EPERM` without the rights for a namespace; `ENOSPC` past the limit on namespaces; `EAGAIN` past a limit on tasks;
/// `EBUSY`/`EOPNOTSUPP` for a cgroup that takes no processes; `EINVAL` when another thread is running (see Panics).
///
/// # Panics
/// Never; but a caller with other threads gets `EINVAL`, since the child's copies of locks that they hold would stay
/// locked for ever. Counted through `/proc/self/task` by [`is_single_threaded`] before the call.
pub fn fork_into(new: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    clone_into(new, cgroup)
}

/// Most descriptors that a process made by [`fork_with`] is given.
pub const GIVEN_MAX: usize = 16;

/// Low descriptor numbers, kept for what new processes are given; see [`fork_with`].
#[derive(Debug)]
pub struct Reserve {
    null: OwnedFd,
    places: std::boxed::Box<[OwnedFd]>,
}

impl Reserve {
    /// Takes the lowest numbers that are free. Until something is given they have what `null` has open.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new(null: BorrowedFd<'_>) -> Result<Self, Errno> {
        let copy = || rustix::io::fcntl_dupfd_cloexec(null, 3);
        let places = (0..GIVEN_MAX).map(|_| copy()).collect::<Result<_, _>>()?;
        Ok(Self { null: copy()?, places })
    }

    /// What was given as number `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.places.get(index).map(AsFd::as_fd)
    }

    fn put(&self, index: usize, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let place = self.places.get(index).ok_or(Errno::INVAL)?;
        // SAFETY: integers only. The number that is replaced is one of `places`, which goes on owning it; nobody has it
        // as anything else than what was put there.
        check(unsafe { libc::dup3(fd.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) }.into()).map(drop)
    }

    /// Closes what was given. Not before the new process has its own table of descriptors: [`fork_with`] has returned in
    /// it.
    ///
    /// # Errors
    /// As dup(2).
    pub fn release(&self) -> Result<(), Errno> {
        (0..self.places.len()).try_for_each(|index| self.put(index, self.null.as_fd()))
    }
}

/// As [`fork_into`], for a new process that has no descriptor but 0, 1, 2 and those `given`, on the numbers of `reserve`
/// in their order.
///
/// A copy of a table of descriptors is as large as its highest number, for as long as a process has it, whatever is
/// closed later; this one is as small as the numbers in `reserve`. The new process begins in the caller's own table
/// (`CLONE_FILES`) and leaves it at once (`CLOSE_RANGE_UNSHARE`, Linux 5.9), so it must tell the caller when it is here:
/// before that nothing of `given` may be closed, nor `reserve` be released.
///
/// In the new process no [`OwnedFd`] that the caller made may be used or dropped but those in `reserve`: the numbers are
/// closed.
///
/// # Errors
/// As [`fork_into`]; `EINVAL` when more is given than `reserve` has numbers. A new process that cannot have its own table
/// ends at once.
pub fn fork_with(
    new: u64,
    cgroup: Option<BorrowedFd<'_>>,
    reserve: &Reserve,
    given: &[BorrowedFd<'_>],
) -> Result<Forked, Errno> {
    for (index, fd) in given.iter().enumerate() {
        reserve.put(index, *fd)?;
    }
    let forked =
        clone_into(new | libc::CLONE_FILES as u64, cgroup).or_else(|errno| reserve.release().and(Err(errno)))?;
    if matches!(forked, Forked::Child) {
        let highest = reserve.places.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(2).unsigned_abs();
        // SAFETY: integers only. The kernel takes the table that we share apart first, so what is closed is closed in our
        // own copy; when it cannot, nothing is closed.
        let left = unsafe {
            libc::syscall(libc::SYS_close_range, highest + 1, u32::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_uint)
        };
        let mut kept = [reserve.null.as_fd(); GIVEN_MAX + 3];
        for (number, slot) in (0..).zip(&mut kept[..3]) {
            // SAFETY: only the number is used, for what is not to be closed, whether it is open or not.
            *slot = unsafe { BorrowedFd::borrow_raw(number) };
        }
        for (slot, place) in kept[3..].iter_mut().zip(&reserve.places[..given.len()]) {
            *slot = place.as_fd();
        }
        if check(left).is_err() || close_all_but(&kept[..3 + given.len()]).is_err() {
            exit(1);
        }
    }
    Ok(forked)
}

fn clone_into(new: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    if !is_single_threaded() {
        return Err(Errno::INVAL);
    }
    let mut pidfd: RawFd = -1;
    let mut flags = new | libc::CLONE_PIDFD as u64;
    let mut cgroup_fd = 0;
    if let Some(fd) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup_fd = fd.as_raw_fd() as u64;
    }
    let args = CloneArgs {
        flags,
        pidfd: core::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup_fd,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a whole `clone_args` and lives through the call; `pidfd` is an int that the kernel may write.
    // Without CLONE_VM and with a zero stack the child runs on its own copy of this stack, as after fork(2); the
    // check above means no other thread's lock is copied in a locked state.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match check(rc)? {
        0 => Ok(Forked::Child),
        raw => {
            let pid = i32::try_from(raw).ok().and_then(Pid::from_raw).ok_or(Errno::OVERFLOW)?;
            // SAFETY: clone3 with CLONE_PIDFD succeeded in the parent, so the kernel stored a new descriptor of this
            // process in `pidfd`, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid, pidfd })
        }
    }
}

/// Gives the kernel back the heap's pages that nothing is on any more: a process that makes others by a copy of itself
/// copies the tables of all the pages that it has, and the copy frees them again. See malloc_trim(3).
pub fn give_back_heap() {
    // A heap of another libc than GNU's is kept as it is.
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, may be called at any time by any thread, and gives back only pages without allocations.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether the calling process has exactly one thread: `/proc/self/task` has two links more than threads.
#[must_use]
pub fn is_single_threaded() -> bool {
    rustix::fs::stat(c"/proc/self/task").is_ok_and(|stat| stat.st_nlink == 3)
}

/// Puts `fds[i]` on descriptor number `i` and closes every number above them. Those from index `keep` on are closed by
/// the next exec.
///
/// For a child that is about to exec. After it, no [`OwnedFd`] of the caller may be used or dropped: the numbers no
/// longer mean what they did, so the caller must go straight to [`execveat`] or [`exit`]. Wraps `dup3` and
/// `close_range` (Linux 5.9).
///
/// # Errors
/// As dup(2) and close_range(2); `EINVAL` for more than 16.
pub fn arrange_descriptors(fds: &[BorrowedFd<'_>], keep: usize) -> Result<(), Errno> {
    const MOST: usize = 16;
    let mut high = [0; MOST];
    if fds.len() > MOST {
        return Err(Errno::INVAL);
    }
    // First to numbers above every target, so that no target overwrites a source that is still to come.
    for (slot, fd) in high.iter_mut().zip(fds) {
        // SAFETY: F_DUPFD_CLOEXEC takes integers and touches no memory of ours; the source is borrowed and open.
        let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, MOST as RawFd) };
        *slot = check(rc.into())? as RawFd;
    }
    for (target, source) in high.iter().take(fds.len()).enumerate() {
        let flags = if target < keep { 0 } else { libc::O_CLOEXEC };
        // SAFETY: integers only. It may close an OwnedFd of ours that has this number: the contract above.
        check(unsafe { libc::dup3(*source, target as RawFd, flags) }.into())?;
    }
    // SAFETY: integers only; closing our own descriptors is what the caller asked for, see the contract above.
    check(unsafe { libc::syscall(libc::SYS_close_range, fds.len(), u32::MAX, 0) }).map(drop)
}

/// Closes every descriptor but these.
///
/// For a new process that has copies of all of its parent's and goes on without an exec. As with
/// [`arrange_descriptors`] no other [`OwnedFd`] of the caller may be used or dropped after it: the caller must end by
/// [`exit`]. Wraps `close_range` (Linux 5.9).
///
/// # Errors
/// As close_range(2); `EINVAL` for more than 256.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    const MOST: usize = 256;
    let mut numbers = [u32::MAX; MOST];
    if keep.len() > MOST {
        return Err(Errno::INVAL);
    }
    for (number, fd) in numbers.iter_mut().zip(keep) {
        *number = fd.as_raw_fd().unsigned_abs();
    }
    let numbers = &mut numbers[..keep.len()];
    numbers.sort_unstable();
    let mut next = 0;
    for number in numbers.iter().copied().chain([u32::MAX]) {
        if number > next {
            let last = if number == u32::MAX { u32::MAX } else { number - 1 };
            // SAFETY: integers only; closing our own descriptors is what the caller asked for, see the contract above.
            check(unsafe { libc::syscall(libc::SYS_close_range, next, last, 0) })?;
        }
        next = number.saturating_add(1);
    }
    Ok(())
}

/// The descriptor that [`arrange_descriptors`] put on `number`.
///
/// # Panics
/// When that number is not open: it was not among those arranged.
#[must_use]
pub fn arranged(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: F_GETFD takes an integer and touches no memory.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) } != -1;
    assert!(open, "descriptor {number} was arranged");
    // SAFETY: it is open, as just seen, and after `arrange_descriptors` its owner is nobody's value: the process keeps
    // it until it execs or exits, as that function's contract has it.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Replaces the program by the one that descriptor number `program` has open, with `argv` and no environment.
///
/// Takes the number and not a borrow, since it is called after [`arrange_descriptors`]. Wraps
/// `execveat(program, "", argv, [], AT_EMPTY_PATH)`; see execveat(2). Returns only on failure.
pub fn execveat(program: RawFd, argv: &[&CStr]) -> Errno {
    const MOST: usize = 8;
    let mut pointers = [core::ptr::null(); MOST + 1];
    if argv.len() > MOST {
        return Errno::INVAL;
    }
    for (pointer, arg) in pointers.iter_mut().zip(argv) {
        *pointer = arg.as_ptr();
    }
    let environment = [core::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end with a null pointer and their strings with a NUL; all outlive the call, which on success
    // does not return and on failure has only read them.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(rc).err().unwrap_or(Errno::NOEXEC)
}

/// Ends the calling process at once, running no destructor and no exit handler; see _exit(2).
pub fn exit(code: i32) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Moves the calling process into new namespaces; see unshare(2) and [`namespaces`].
///
/// # Errors
/// `EPERM` without the rights; `ENOSPC` past the limit on namespaces; `EINVAL` for a multi-threaded caller.
pub fn unshare(new: u64) -> Result<(), Errno> {
    if new & !(namespaces::MOUNT | namespaces::NET | namespaces::IPC | namespaces::UTS | namespaces::CGROUP) != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: integers only. The namespaces allowed above do not change what any descriptor, pointer or id of the
    // caller refers to (CLONE_FILES, which would, is not among them).
    check(unsafe { libc::unshare(new as i32) }.into()).map(drop)
}

/// Opens the namespace of a process, named as in `/proc/PID/ns` (namespaces(7)), by the process's pidfd.
///
/// Wraps the ioctls `PIDFD_GET_*_NAMESPACE` (linux/pidfd.h). Since Linux 6.11.
///
/// # Errors
/// `ENOTTY` on an older kernel; `EPERM` without the right to look at the process (ptrace(2), `PTRACE_MODE_READ_FSCREDS`);
/// `ESRCH` when it has ended; `EINVAL` for another name.
pub fn namespace_of(pidfd: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let number = match name {
        "cgroup" => 1,
        "ipc" => 2,
        "mnt" => 3,
        "net" => 4,
        "pid" => 5,
        "time" => 7,
        "user" => 9,
        "uts" => 10,
        _ => return Err(Errno::INVAL),
    };
    // `_IO(PIDFS_IOCTL_MAGIC, number)`.
    let request = 0xff00 | number;
    // SAFETY: the request takes no argument and touches no memory of ours.
    let raw = check(unsafe { libc::ioctl(pidfd.as_raw_fd(), request, 0) }.into())?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    let namespace = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
    Ok(namespace)
}

/// Gives the calling process a new, empty session keyring; see keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`.
///
/// Returns its serial number.
///
/// # Errors
/// `ENOSYS` on a kernel without keys; `EDQUOT` past the quota of the user.
pub fn join_new_session_keyring() -> Result<i32, Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing of ours is read or written.
    let rc = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, core::ptr::null::<libc::c_char>(), 0, 0, 0)
    };
    check(rc).and_then(|serial| i32::try_from(serial).map_err(|_| Errno::OVERFLOW))
}

/// Sets `lo` of the calling process's network namespace up, which gives it 127.0.0.1 and ::1; see netdevice(7).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the namespace; what socket(2) says.
pub fn set_loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid `ifreq`: an array of characters and a union of plain data.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call and has a NUL-terminated name.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(rc.into()).map(drop)
}

/// Asks the scheduler to run the calling thread, and every process and thread that it makes from now on, in slices of this
/// many nanoseconds (100,000 to 100,000,000): who wakes waits no longer than that for one that computes. See
/// sched_setattr(2), `sched_runtime`; heeded by Linux 6.12 and later, and before that a request without effect.
///
/// # Errors
/// `EINVAL` outside the range.
pub fn set_slice(nanoseconds: u64) -> Result<(), Errno> {
    /// `struct sched_attr` of its first version (linux/sched/types.h).
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    const SIZE: u32 = size_of::<Attributes>() as u32;
    let mut attributes = Attributes { size: SIZE, ..Attributes::default() };
    // SAFETY: the kernel writes at most `SIZE` bytes to `attributes`; 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) })?;
    attributes.runtime = nanoseconds;
    // SAFETY: the kernel reads `attributes.size` bytes of it.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// Blocks these signals for the calling thread and gives a descriptor that is readable when one waits; signalfd(2).
///
/// The mask is inherited by what the caller makes; a program that is not ours is to be given an empty one.
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn watch_signals(signals: &[rustix::process::Signal]) -> Result<OwnedFd, Errno> {
    // SAFETY: all-zero bytes are a valid `sigset_t`, and `sigemptyset` makes it the empty set in any case.
    let mut set: libc::sigset_t = unsafe { core::mem::zeroed() };
    for signal in signals {
        // SAFETY: `set` is a valid set that lives through the call; the number is a signal's.
        check(unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) }.into())?;
    }
    // SAFETY: reads `set` during the call and stores no old mask.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, core::ptr::null_mut()) }.into())?;
    // SAFETY: -1 asks for a new descriptor; `set` is only read.
    let raw = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
}
