//! clone3(2): a copy of ourselves, into a cgroup.

use rustix::{
    fd::{AsRawFd, BorrowedFd},
    io::Errno,
    process::Pid,
};

use super::arch::call;

/// struct clone_args up to `cgroup` (clone(2); 88 bytes, since Linux 5.7).
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

/// CLONE_CLEAR_SIGHAND: every signal that was handled gets its default in the child (clone(2), since Linux 5.5).
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// CLONE_INTO_CGROUP (clone(2), since Linux 5.7).
const INTO_CGROUP: u64 = 0x2_0000_0000;

impl CloneArgs {
    /// A child that tells of its end by SIGCHLD, in `cgroup` from its first instruction.
    pub(super) fn child(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Self {
        let flags = flags | CLEAR_SIGHAND;
        let exit_signal = libc::SIGCHLD as u64;
        match cgroup {
            None => Self { flags, exit_signal, ..Self::default() },
            Some(fd) => {
                Self { flags: flags | INTO_CGROUP, exit_signal, cgroup: fd.as_raw_fd() as u64, ..Self::default() }
            }
        }
    }
}

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug)]
pub enum Fork {
    /// The parent, with the child's pid.
    Parent(Pid),
    /// The child.
    Child,
}

/// Makes a copy of the program, which has one thread, in `cgroup` from its first instruction. See clone3(2).
///
/// # Errors
/// `EAGAIN` at the limit of tasks; `ENOMEM`; `EBUSY`, `ENODEV` or `EOPNOTSUPP` when the cgroup takes no process.
pub fn fork_into(cgroup: Option<BorrowedFd<'_>>) -> Result<Fork, Errno> {
    let args = CloneArgs::child(0, cgroup);
    // SAFETY: the kernel reads `args` only. Without CLONE_VM and without a stack the child goes on with a copy of all
    // our memory on a copy of our stack, as fork(2) does.
    let pid = unsafe { call(libc::SYS_clone3, [&raw const args as usize, size_of::<CloneArgs>(), 0, 0, 0, 0]) }?;
    Ok(Pid::from_raw(pid as i32).map_or(Fork::Child, Fork::Parent))
}
