//! Calls that rustix does not wrap, or wraps with an allocator.

use core::ffi::CStr;

use rustix::{
    fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    io::Errno,
    process::{Pid, Signal},
};

use super::{
    arch::call,
    spawn::{Identity, take_identity},
};

/// What wait4(2) says of a child that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waited {
    /// Which.
    pub pid: i32,
    /// The status as of wait(2).
    pub status: u32,
    /// CPU in user mode, microseconds; with the children that it waited for.
    pub user_us: u64,
    /// CPU in the kernel, microseconds.
    pub system_us: u64,
    /// Peak resident memory of the largest of them, bytes.
    pub peak_bytes: u64,
}

/// Reaps one ended child, `pid` or any; `None` when none has ended (only with `now`). See wait4(2).
///
/// # Errors
/// `ECHILD` when there is no child.
pub fn wait(pid: Option<Pid>, now: bool) -> Result<Option<Waited>, Errno> {
    let mut status = 0_u32;
    // struct rusage: two timevals, then ru_maxrss in KiB, then thirteen words more (getrusage(2)).
    let mut usage = [0_u64; 18];
    let options = if now { libc::WNOHANG as usize } else { 0 };
    let which = pid.map_or(-1, Pid::as_raw_pid) as isize as usize;
    // SAFETY: the kernel writes an int and a struct rusage of 144 bytes, which is what the two variables are.
    let pid =
        unsafe { call(libc::SYS_wait4, [which, &raw mut status as usize, options, &raw mut usage as usize, 0, 0]) }?;
    if pid == 0 {
        return Ok(None);
    }
    let micros = |seconds: u64, micros: u64| seconds.saturating_mul(1_000_000).saturating_add(micros);
    Ok(Some(Waited {
        pid: pid as i32,
        status,
        user_us: micros(usage[0], usage[1]),
        system_us: micros(usage[2], usage[3]),
        peak_bytes: usage[4].saturating_mul(1024),
    }))
}

/// Microseconds of the monotonic clock. See clock_gettime(2).
#[must_use]
pub fn monotonic_us() -> u64 {
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes a struct timespec, two words. It cannot fail for this clock.
    let _ =
        unsafe { call(libc::SYS_clock_gettime, [libc::CLOCK_MONOTONIC as usize, &raw mut time as usize, 0, 0, 0, 0]) };
    time[0].saturating_mul(1_000_000).saturating_add(time[1] / 1000)
}

/// Seconds since 1970. See clock_gettime(2).
#[must_use]
pub fn realtime_s() -> u64 {
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes a struct timespec, two words. It cannot fail for this clock.
    let _ =
        unsafe { call(libc::SYS_clock_gettime, [libc::CLOCK_REALTIME as usize, &raw mut time as usize, 0, 0, 0, 0]) };
    time[0]
}

/// Blocks exactly the signals of `mask` (bit 0 is signal 1). See rt_sigprocmask(2).
///
/// # Errors
/// None that a correct call can meet.
pub fn set_signal_mask(mask: u64) -> Result<(), Errno> {
    let how = libc::SIG_SETMASK as usize;
    // SAFETY: the kernel reads one word, its own signal set.
    unsafe { call(libc::SYS_rt_sigprocmask, [how, &raw const mask as usize, 0, 8, 0, 0]) }.map(drop)
}

/// Gives a signal its default meaning again: what the program was started with may be "ignored". See rt_sigaction(2).
///
/// # Errors
/// `EINVAL` for a signal that has no other.
pub fn default_signal(signal: i32) -> Result<(), Errno> {
    // struct kernel_sigaction: handler (SIG_DFL is 0), flags, restorer, mask.
    let action = [0_usize; 4];
    // SAFETY: the kernel reads those four words; with SIG_DFL it never uses the restorer.
    unsafe { call(libc::SYS_rt_sigaction, [signal as usize, &raw const action as usize, 0, 8, 0, 0]) }.map(drop)
}

/// A descriptor that becomes readable when a signal of `mask` is pending; not blocking. See signalfd(2).
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn signal_fd(mask: u64) -> Result<OwnedFd, Errno> {
    let flags = (libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) as usize;
    // SAFETY: the kernel reads one word, its own signal set, and gives a new descriptor.
    let fd = unsafe { call(libc::SYS_signalfd4, [usize::MAX, &raw const mask as usize, 8, flags, 0, 0]) }?;
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes over a descriptor that was there when the program started.
///
/// Twice for one number is a mistake that shows as `EBADF` later; this program asks for each once, at its start.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn inherited(number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: F_GETFD takes numbers only.
    unsafe { call(libc::SYS_fcntl, [number as usize, libc::F_GETFD as usize, 0, 0, 0, 0]) }?;
    // SAFETY: it is open, and by the contract at exec it was given to this program to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Standard input, output or error, which this program never closes; `None` when it was started without.
#[must_use]
pub fn standard_stream(number: i32) -> Option<BorrowedFd<'static>> {
    if !(0..=2).contains(&number) {
        return None;
    }
    // SAFETY: F_GETFD takes numbers only.
    let is_open = unsafe { call(libc::SYS_fcntl, [number as usize, libc::F_GETFD as usize, 0, 0, 0, 0]) }.is_ok();
    // SAFETY: it is open, and nothing of this program owns it, so nothing closes it.
    is_open.then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Marks every descriptor from `first` on to be closed at an execve. See close_range(2).
///
/// # Errors
/// None that a correct call can meet.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    let flag = libc::CLOSE_RANGE_CLOEXEC as usize;
    // SAFETY: numbers only; closes nothing.
    unsafe { call(libc::SYS_close_range, [first as usize, u32::MAX as usize, flag, 0, 0, 0]) }.map(drop)
}

/// Moves up to two descriptors to 3 and 4 and closes all others above 2; for a helper just forked, which then uses
/// [`inherited`] to get at them. See dup2(2), close_range(2).
///
/// # Errors
/// `EBADF`.
pub fn keep_only(first: BorrowedFd<'_>, second: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let number = |nr: i64, a: usize, b: usize, c: usize| {
        // SAFETY: numbers only. Owners of the descriptors closed here are in a copy of the parent's memory that the
        // helper does not use again.
        unsafe { call(nr, [a, b, c, 0, 0, 0]) }
    };
    // Up first, out of the way of 3 and 4.
    let up = |fd: BorrowedFd<'_>| number(libc::SYS_fcntl, fd.as_raw_fd() as usize, libc::F_DUPFD_CLOEXEC as usize, 5);
    let first = up(first)?;
    let second = second.map(up).transpose()?;
    number(libc::SYS_dup3, first, 3, libc::O_CLOEXEC as usize)?;
    let mut next = 4;
    if let Some(second) = second {
        number(libc::SYS_dup3, second, 4, libc::O_CLOEXEC as usize)?;
        next = 5;
    }
    number(libc::SYS_close_range, next, u32::MAX as usize, 0).map(drop)
}

/// chdir(2).
///
/// # Errors
/// As the manual page has them.
pub fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the kernel reads a string with a NUL.
    unsafe { call(libc::SYS_chdir, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// The path of the working directory. See getcwd(2).
///
/// # Errors
/// `ERANGE` when the buffer is too short; `ENOENT` when it was removed.
pub fn current_directory(buffer: &mut [u8]) -> Result<&CStr, Errno> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes there, a NUL among them.
    unsafe { call(libc::SYS_getcwd, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0]) }?;
    Ok(super::cstr(buffer))
}

/// Takes on another identity for ever; see [`Identity`].
///
/// # Errors
/// `EPERM` without the capabilities; `EINVAL` for an id that the user namespace does not map.
pub fn become_user(identity: &Identity<'_>) -> Result<(), Errno> {
    take_identity(identity)
}

/// Empties the ambient set. See prctl(2), PR_CAP_AMBIENT.
///
/// # Errors
/// None that a correct call can meet.
pub fn clear_ambient_capabilities() -> Result<(), Errno> {
    let args = [libc::PR_CAP_AMBIENT as usize, libc::PR_CAP_AMBIENT_CLEAR_ALL as usize, 0, 0, 0, 0];
    // SAFETY: numbers only.
    unsafe { call(libc::SYS_prctl, args) }.map(drop)
}

/// Empties the effective, permitted and inheritable sets of the calling thread. See capset(2).
///
/// # Errors
/// None that a correct call can meet: less is always allowed.
pub fn drop_capabilities() -> Result<(), Errno> {
    // _LINUX_CAPABILITY_VERSION_3 and the calling thread; then twice three words of 32 bits.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none = [0_u32; 6];
    // SAFETY: the kernel reads both and writes neither, as the version is one it knows.
    unsafe { call(libc::SYS_capset, [&raw const header as usize, &raw const none as usize, 0, 0, 0, 0]) }.map(drop)
}

/// The calling thread's permitted capabilities. See capget(2).
///
/// # Errors
/// None that a correct call can meet.
pub fn permitted_capabilities() -> Result<u64, Errno> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: the kernel reads the header and writes six words of 32 bits.
    unsafe { call(libc::SYS_capget, [&raw const header as usize, &raw mut sets as usize, 0, 0, 0, 0]) }?;
    Ok(u64::from(sets[1]) | u64::from(sets[4]) << 32)
}

/// Does `make` with another user's file system ids, so that what it makes belongs to that user; then takes the own ids
/// back. See setfsuid(2), setfsgid(2): this needs neither CHOWN nor a process of its own.
///
/// Such a change clears the signal that a parent's death sends, and makes the program dumpable where the machine is set
/// to that (prctl(2)): both are set anew, to `death_signal` and to not dumpable.
///
/// # Errors
/// `EPERM` without the capabilities to change ids; what `make` gives.
pub fn as_file_owner<T>(
    ids: (u32, u32),
    death_signal: Option<Signal>,
    make: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    // SAFETY: both take a number; the ids are those of the calling thread, the only one.
    let set = |nr: i64, id: u32| unsafe { call(nr, [id as usize, 0, 0, 0, 0, 0]) }.map(|before| before as u32);
    // Neither call tells of a failure: it gives the id before. No id is -1, so that only asks.
    let (own_gid, own_uid) = (set(libc::SYS_setfsgid, ids.1)?, set(libc::SYS_setfsuid, ids.0)?);
    let is_set = set(libc::SYS_setfsuid, u32::MAX)? == ids.0 && set(libc::SYS_setfsgid, u32::MAX)? == ids.1;
    let made = if is_set { make() } else { Err(Errno::PERM) };
    set(libc::SYS_setfsuid, own_uid)?;
    set(libc::SYS_setfsgid, own_gid)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(death_signal)?;
    made
}

/// Fills `buffer` with directory entries (struct linux_dirent64, getdents(2)); 0 bytes at the end.
///
/// # Errors
/// `ENOTDIR`, `ENOENT` for a directory that was removed.
pub fn directory_entries(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let fd = directory.as_raw_fd() as usize;
    // SAFETY: the kernel writes at most `buffer.len()` bytes there.
    unsafe { call(libc::SYS_getdents64, [fd, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) }
}

/// The uid and pid of who connected the other end of a Unix socket. See unix(7), SO_PEERCRED.
///
/// # Errors
/// `ENOTSOCK`.
pub fn peer_of(socket: BorrowedFd<'_>) -> Result<(i32, u32), Errno> {
    let mut credentials = [0_u32; 3];
    let mut len = 12_u32;
    let (level, name) = (libc::SOL_SOCKET as usize, libc::SO_PEERCRED as usize);
    let (at, len) = (&raw mut credentials as usize, &raw mut len as usize);
    // SAFETY: the kernel writes a struct ucred, three words of 32 bits, and its length.
    unsafe { call(libc::SYS_getsockopt, [socket.as_raw_fd() as usize, level, name, at, len, 0]) }?;
    Ok((credentials[0] as i32, credentials[1]))
}

/// A pidfd of who connected the other end of a Unix socket, whoever has its number by now. See pidfd_open(2) and unix(7),
/// SO_PEERPIDFD; since Linux 6.5.
///
/// # Errors
/// `ENOPROTOOPT` on an older kernel; `ESRCH` or `EINVAL` when it has ended and was waited for; `EMFILE`.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // asm-generic/socket.h
    const SO_PEERPIDFD: usize = 77;
    let mut pidfd = -1_i32;
    let mut len = 4_u32;
    let (at, len) = (&raw mut pidfd as usize, &raw mut len as usize);
    let socket = socket.as_raw_fd() as usize;
    // SAFETY: the kernel writes an int, the number of a new descriptor, and its length.
    unsafe { call(libc::SYS_getsockopt, [socket, libc::SOL_SOCKET as usize, SO_PEERPIDFD, at, len, 0]) }?;
    if pidfd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// What the kernel says to two calls that a filter must refuse: `_sysctl` (156), and `add_key` with nothing. See
/// syscalls(2).
#[must_use]
pub fn forbidden_calls() -> (Option<Errno>, Option<Errno>) {
    // SAFETY: both get null addresses: the kernel refuses them, with or without a filter, and writes nothing.
    unsafe { (call(156, [0; 6]).err(), call(libc::SYS_add_key, [0; 6]).err()) }
}

/// Kills every process that the caller may signal, but itself and process 1 of its pid namespace. See kill(2).
///
/// # Errors
/// `ESRCH` when there is none.
pub fn kill_all() -> Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe { call(libc::SYS_kill, [usize::MAX, libc::SIGKILL as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Ends the program, running nothing more. See exit_group(2).
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes a number and does not return.
        let _ = unsafe { call(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]) };
    }
}
