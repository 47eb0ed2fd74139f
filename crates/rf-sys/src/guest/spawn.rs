//! Starting a workload: clone3 with shared memory (`CLONE_VM | CLONE_VFORK`), the child's preparation, execve.
//!
//! The child shares init's memory until its execve, while init waits. So it runs on a stack of its own, allocates
//! nothing, takes no lock, and tells of a failure by writing it where init looks afterwards.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_void},
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fd::{AsRawFd, BorrowedFd},
    io::Errno,
    process::Pid,
};

use super::{
    arch::{call, raw, rf_guest_clone_vm},
    calls, filter,
    fork::CloneArgs,
};

/// A list of strings for execve(2): pointers, and a null at the end.
#[derive(Debug)]
pub struct Pointers<'a> {
    // INVARIANT: `slots[..len]` are addresses of strings with a NUL that live for 'a; `slots[len]` is 0. The first is
    // room for one more in front, so that a shell can be put before a script.
    slots: &'a mut [usize],
    len: usize,
    strings: PhantomData<&'a CStr>,
}

impl<'a> Pointers<'a> {
    /// An empty list with room for two strings fewer than `slots` has words.
    ///
    /// # Errors
    /// `E2BIG` when there are fewer than two words.
    pub fn new(slots: &'a mut [usize]) -> Result<Self, Errno> {
        if slots.len() < 2 {
            return Err(Errno::TOOBIG);
        }
        slots[0] = 0;
        slots[1] = 0;
        Ok(Self { slots, len: 1, strings: PhantomData })
    }

    /// Appends a string.
    ///
    /// # Errors
    /// `E2BIG` when there is no room.
    pub fn push(&mut self, text: &'a CStr) -> Result<(), Errno> {
        let end = self.slots.get_mut(self.len + 1).ok_or(Errno::TOOBIG)?;
        *end = 0;
        self.slots[self.len] = text.as_ptr() as usize;
        self.len += 1;
        Ok(())
    }

    /// The first string.
    #[must_use]
    pub fn first(&self) -> Option<&'a CStr> {
        // SAFETY: a slot below `len` is the address of a string that lives for 'a (invariant).
        (self.len > 1).then(|| unsafe { CStr::from_ptr(self.slots[1] as *const _) })
    }

    fn list(&self) -> *const usize {
        self.slots[1..].as_ptr()
    }
}

/// How the program is found.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// `argv[0]`: as a path when it has a `/`, else looked for in this colon-separated list of directories (execvp(3)).
    Search(&'a [u8]),
    /// `/bin/bash`, or `/bin/sh` where there is no bash; `argv[0]` is replaced.
    Shell,
}

/// As whom the program runs.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// User and group; `None` keeps init's own.
    pub ids: Option<(u32, u32)>,
    /// Supplementary groups; not touched when the ids are kept.
    pub groups: &'a [u32],
    /// Keep the permitted capabilities (for root inside); else none is left.
    pub keep_capabilities: bool,
}

/// All that a child needs to know.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Standard input, output, error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether standard input is a terminal that becomes the controlling one.
    pub terminal: bool,
    /// Resource and its most (setrlimit(2)); never above the limit that holds already.
    pub rlimits: &'a [(u32, u64)],
    /// As whom.
    pub identity: Identity<'a>,
    /// The user's home; `/` where there is none.
    pub home: &'a CStr,
    /// The working directory; a relative one is below the home, and an empty one is the home itself.
    pub cwd: &'a CStr,
    /// How the program is found.
    pub program: Program<'a>,
    /// Its arguments; at least one.
    pub argv: Pointers<'a>,
    /// Its environment, complete.
    pub env: Pointers<'a>,
    /// The cgroup it starts in. Without one it takes the orphans of its own tree, which are not to be found otherwise.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The step at which a spawn failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// The process could not be made.
    Fork,
    /// Identity, limits, terminal or filter.
    Identity,
    /// Working directory.
    Directory,
    /// The program.
    Program,
}

/// Why a spawn failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Where.
    pub step: Step,
    /// What the kernel said.
    pub errno: Errno,
}

struct Stack(UnsafeCell<[u8; STACK_BYTES]>);
/// The child's path buffer is the largest thing on it (4 KiB); the rest is measured well below 2 KiB.
const STACK_BYTES: usize = 16 * 1024;
// SAFETY: used by one child at a time: `BUSY` is held from before the clone until the child has left the stack.
unsafe impl Sync for Stack {}

#[repr(align(16))]
struct Aligned(Stack);
static STACK: Aligned = Aligned(Stack(UnsafeCell::new([0; STACK_BYTES])));
static BUSY: AtomicBool = AtomicBool::new(false);

struct Shared<'p, 'a> {
    plan: &'p mut Plan<'a>,
    failure: Option<Failure>,
}

/// Starts a program; returns when it runs, or has failed to.
///
/// The calling program has one thread and handles no signal. The caller has set `no_new_privs`.
///
/// # Errors
/// Where it failed and what the kernel said; then no child is left.
pub fn spawn(mut plan: Plan<'_>) -> Result<Pid, Failure> {
    if BUSY.swap(true, Ordering::Acquire) {
        return Err(Failure { step: Step::Fork, errno: Errno::AGAIN });
    }
    let mut args = CloneArgs::child((libc::CLONE_VM | libc::CLONE_VFORK) as u64, plan.cgroup);
    args.stack = STACK.0.0.get() as u64;
    args.stack_size = STACK_BYTES as u64;
    let mut shared = Shared { plan: &mut plan, failure: None };
    let data = &raw mut shared;
    // SAFETY: the child runs `child(data)` on a stack that nobody else uses (`BUSY`), never returns, and is done with
    // our memory when the call returns here, for CLONE_VFORK holds us until its execve or exit. `shared` lives longer.
    let pid = unsafe { rf_guest_clone_vm(&raw const args, size_of::<CloneArgs>(), child, data.cast()) };
    BUSY.store(false, Ordering::Release);
    // SAFETY: ours; read through the pointer that the child wrote through.
    let failure = unsafe { (*data).failure.take() };
    match (Pid::from_raw(pid as i32), failure) {
        (_, _) if pid < 0 => Err(Failure { step: Step::Fork, errno: Errno::from_raw_os_error(-pid as i32) }),
        (Some(pid), None) => Ok(pid),
        (Some(pid), Some(failure)) => {
            // The child is exiting; nobody else waits for it.
            let _ = calls::wait(Some(pid), false);
            Err(failure)
        }
        (None, _) => Err(Failure { step: Step::Fork, errno: Errno::CHILD }),
    }
}

/// The child, on its own stack, in init's memory.
///
/// # Safety
/// `data` points to a `Shared` that nobody touches until this process execs or exits.
unsafe extern "C" fn child(data: *mut c_void) -> ! {
    // SAFETY: as the caller promises.
    let shared = unsafe { &mut *data.cast::<Shared<'_, '_>>() };
    let failure = match prepare(shared.plan) {
        Err(failure) => failure,
        Ok(()) => execute(shared.plan),
    };
    shared.failure = Some(failure);
    loop {
        // SAFETY: exit_group(2) ends this process (the memory is shared, the process is not) and does not return.
        unsafe { raw(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]) };
    }
}

fn prepare(plan: &Plan<'_>) -> Result<(), Failure> {
    let identity = |errno| Failure { step: Step::Identity, errno };
    let number = |nr: i64, a: usize, b: usize, c: usize| {
        // SAFETY: every call made through this takes numbers only. The descriptors closed are the child's copies.
        unsafe { call(nr, [a, b, c, 0, 0, 0]) }
    };
    number(libc::SYS_setsid, 0, 0, 0).map_err(identity)?;
    for (target, source) in plan.stdio.iter().enumerate() {
        let source = source.as_raw_fd() as usize;
        if source == target {
            number(libc::SYS_fcntl, target, libc::F_SETFD as usize, 0).map_err(identity)?;
        } else {
            number(libc::SYS_dup3, source, target, 0).map_err(identity)?;
        }
    }
    if plan.terminal {
        number(libc::SYS_ioctl, 0, libc::TIOCSCTTY as usize, 0).map_err(identity)?;
    }
    if plan.cgroup.is_none() {
        // Kept over execve, not passed on to children (prctl(2), PR_SET_CHILD_SUBREAPER).
        number(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER as usize, 1, 0).map_err(identity)?;
    }
    // From the change of identity until the execve the workload's other processes may signal this one: stopped, it would
    // hold init for ever.
    kill_if_stuck().map_err(identity)?;
    // All else, before the workload's identity is taken on.
    number(libc::SYS_close_range, 3, u32::MAX as usize, 0).map_err(identity)?;
    for (resource, most) in plan.rlimits {
        lower_limit(*resource, *most).map_err(identity)?;
    }
    take_identity(&plan.identity).map_err(identity)?;
    enter(plan.home, plan.cwd).map_err(|errno| Failure { step: Step::Directory, errno })?;
    filter::install_workload_filter().map_err(identity)?;
    calls::set_signal_mask(0).map_err(identity)
}

/// Makes `cwd` the working directory; see [`Plan::cwd`].
fn enter(home: &CStr, cwd: &CStr) -> Result<(), Errno> {
    if cwd.to_bytes().first() != Some(&b'/') {
        match calls::chdir(home) {
            Err(Errno::NOENT) => calls::chdir(c"/")?,
            entered => entered?,
        }
    }
    if cwd.is_empty() { Ok(()) } else { calls::chdir(cwd) }
}

/// How long a child may take to its execve; chosen: far above any that is not held up on purpose.
const PREPARATION_SECONDS: usize = 5;

/// Has the kernel kill this process if it does not come to its execve, which removes the timer (timer_create(2)). Also
/// one that is stopped, or waits for a lease on the program's file.
fn kill_if_stuck() -> Result<(), Errno> {
    // struct sigevent: value (8 bytes), signal and how to notify (32 bits each; 0 is by signal), and unused room.
    let mut event = [0_u64; 8];
    event[1] = libc::SIGKILL as u64;
    let mut timer = 0_i32;
    let clock = libc::CLOCK_MONOTONIC as usize;
    // SAFETY: the kernel reads a struct sigevent of 64 bytes and writes an int.
    unsafe { call(libc::SYS_timer_create, [clock, &raw const event as usize, &raw mut timer as usize, 0, 0, 0]) }?;
    // struct itimerspec: no interval; seconds and nanoseconds until the one time.
    let when = [0_usize, 0, PREPARATION_SECONDS, 0];
    // SAFETY: the kernel reads those four words, and writes none for a null address.
    unsafe { call(libc::SYS_timer_settime, [timer as usize, 0, &raw const when as usize, 0, 0, 0]) }.map(drop)
}

/// Sets soft and hard limit to `most`, or leaves a hard limit that is lower.
fn lower_limit(resource: u32, most: u64) -> Result<(), Errno> {
    let mut now = [0_u64; 2];
    // SAFETY: the kernel writes a struct rlimit64, two words, to `now`.
    unsafe { call(libc::SYS_prlimit64, [0, resource as usize, 0, &raw mut now as usize, 0, 0]) }?;
    let lower = [most.min(now[1]); 2];
    // SAFETY: the kernel reads a struct rlimit64, two words, from `lower`.
    unsafe { call(libc::SYS_prlimit64, [0, resource as usize, &raw const lower as usize, 0, 0, 0]) }.map(drop)
}

/// Takes on an identity for the calling thread, which is all there is.
pub(super) fn take_identity(identity: &Identity<'_>) -> Result<(), Errno> {
    if let Some((uid, gid)) = identity.ids {
        let (uid, gid) = (uid as usize, gid as usize);
        let (keep, dumpable) = (libc::PR_SET_KEEPCAPS as usize, libc::PR_SET_DUMPABLE as usize);
        // SAFETY: the kernel reads `groups.len()` numbers during the call; the others take numbers only. Groups first:
        // without the capability they could not be dropped any more.
        unsafe {
            call(libc::SYS_setgroups, [identity.groups.len(), identity.groups.as_ptr() as usize, 0, 0, 0, 0])?;
            call(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0])?;
            // Where the machine has `fs.suid_dumpable` at 1, a change of ids lets the new user trace this process, and so
            // reach memory that may be process 1's (proc_sys_fs(5), ptrace(2)). With capabilities that the user has not
            // it cannot be traced, so they stay until that is set right again.
            call(libc::SYS_prctl, [keep, 1, 0, 0, 0, 0])?;
            call(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0])?;
            call(libc::SYS_prctl, [dumpable, 0, 0, 0, 0, 0])?;
        }
    }
    calls::clear_ambient_capabilities()?;
    if identity.keep_capabilities { Ok(()) } else { calls::drop_capabilities() }
}

fn execute(plan: &mut Plan<'_>) -> Failure {
    let errno = match plan.program {
        Program::Shell => execute_shell(plan),
        Program::Search(directories) => match plan.argv.first() {
            None => Errno::INVAL,
            Some(name) if name.to_bytes().contains(&b'/') => execute_path(plan, name),
            Some(name) if name.is_empty() => Errno::NOENT,
            Some(name) => search(plan, name, directories),
        },
    };
    Failure { step: Step::Program, errno }
}

fn execute_shell(plan: &mut Plan<'_>) -> Errno {
    plan.argv.slots[1] = c"/bin/bash".as_ptr() as usize;
    let errno = execute_path(plan, c"/bin/bash");
    if errno != Errno::NOENT {
        return errno;
    }
    plan.argv.slots[1] = c"/bin/sh".as_ptr() as usize;
    execute_path(plan, c"/bin/sh")
}

/// As execvp(3): a directory that cannot be searched does not end the search.
fn search(plan: &mut Plan<'_>, name: &CStr, directories: &[u8]) -> Errno {
    let mut buffer = [0_u8; 4096];
    let mut refused = None;
    for directory in directories.split(|byte| *byte == b':') {
        // An empty entry is the working directory.
        let directory = if directory.is_empty() { b"." } else { directory };
        let name = name.to_bytes_with_nul();
        let Some(space) = buffer.get_mut(..directory.len() + 1 + name.len()) else { continue };
        space[..directory.len()].copy_from_slice(directory);
        space[directory.len()] = b'/';
        space[directory.len() + 1..].copy_from_slice(name);
        let Ok(path) = CStr::from_bytes_until_nul(space) else { continue };
        match execute_path(plan, path) {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {}
            Errno::ACCESS => refused = Some(Errno::ACCESS),
            errno => return errno,
        }
    }
    refused.unwrap_or(Errno::NOENT)
}

/// execve(2); a file that the kernel does not know how to run is a script for `/bin/sh`, as for execvp(3).
fn execute_path(plan: &mut Plan<'_>, path: &CStr) -> Errno {
    let errno = execve(path, plan.argv.list(), plan.env.list());
    if errno != Errno::NOEXEC {
        return errno;
    }
    let kept = (plan.argv.slots[0], plan.argv.slots[1]);
    plan.argv.slots[0] = c"/bin/sh".as_ptr() as usize;
    plan.argv.slots[1] = path.as_ptr() as usize;
    let errno = execve(c"/bin/sh", plan.argv.slots.as_ptr(), plan.env.list());
    (plan.argv.slots[0], plan.argv.slots[1]) = kept;
    errno
}

fn execve(path: &CStr, argv: *const usize, env: *const usize) -> Errno {
    // SAFETY: three addresses of strings and null-ended lists of strings (invariant of `Pointers`), which the kernel
    // only reads. When it succeeds nothing of this program is left to be wrong.
    match unsafe { call(libc::SYS_execve, [path.as_ptr() as usize, argv as usize, env as usize, 0, 0, 0]) } {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL,
    }
}
