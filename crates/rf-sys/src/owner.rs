//! Making a user namespace that belongs to somebody else than the caller.
//!
//! Much of what a process can make is counted for its user, and for the owners of the user namespaces above it too:
//! inotify instances and watches, pending signals and timers, namespaces (user_namespaces(7); kernel/ucount.c,
//! `inc_ucount`). Namespaces of one owner use up each other's, and the owner's own.

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Pid, Signal, Uid},
    thread::CapabilitySets,
};

use crate::{check, process::Forked};

/// Makes a process by `fork`; a new user namespace that it gets belongs to `owner`, an id of the caller's own namespace.
///
/// The caller takes on `owner` as its effective id for the call, with all its capabilities; its real and saved ids stay.
/// What the kernel resets then (prctl(2), `PR_SET_PDEATHSIG` and `PR_SET_DUMPABLE`) is put back. The child has `owner` as
/// its effective id until it takes on another. The caller has one thread, as for every `fork`.
///
/// # Errors
/// Those of `fork`; `EPERM` without `CAP_SETUID`.
pub fn fork_as(owner: Uid, fork: impl FnOnce() -> Result<Forked, Errno>) -> Result<Forked, Errno> {
    let own = OwnState::look()?;
    let forked = own.become_owner(owner).and_then(|()| fork());
    if !matches!(forked, Ok(Forked::Child)) {
        own.put_back()?;
    }
    forked
}

/// What of the calling process a change of its effective id changes.
struct OwnState {
    saved: Uid,
    death_signal: Option<Signal>,
    is_dumpable: bool,
    parent: Option<Pid>,
}

impl OwnState {
    fn look() -> Result<Self, Errno> {
        let (mut real, mut effective, mut saved) = (0, 0, 0);
        // SAFETY: the kernel writes three ids during the call, one to each of the three variables.
        check(unsafe { libc::getresuid(&raw mut real, &raw mut effective, &raw mut saved) }.into())?;
        Ok(Self {
            // Not the effective one: were that ever left another's, this would still be the caller's own.
            saved: Uid::from_raw(saved),
            death_signal: rustix::process::parent_process_death_signal()?,
            is_dumpable: rustix::process::dumpable_behavior()? == DumpableBehavior::Dumpable,
            parent: rustix::process::getppid(),
        })
    }

    fn become_owner(&self, owner: Uid) -> Result<(), Errno> {
        set_effective_uid(owner)?;
        // The change took all capabilities out of the effective set, and none out of the permitted one (capabilities(7),
        // "Effect of user ID changes on capabilities").
        let sets = rustix::thread::capabilities(None)?;
        rustix::thread::set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })
    }

    fn put_back(&self) -> Result<(), Errno> {
        // Back at the saved id, which is root's, the effective set is the permitted one again.
        set_effective_uid(self.saved)?;
        if self.is_dumpable {
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        }
        rustix::process::set_parent_process_death_signal(self.death_signal)?;
        match self.death_signal {
            // The parent ended in between, of which nobody tells any more.
            Some(signal) if rustix::process::getppid() != self.parent => {
                rustix::process::kill_process(rustix::process::getpid(), signal)
            }
            _ => Ok(()),
        }
    }
}

/// Sets the effective id of the calling thread, and leaves its real and saved ones; see setresuid(2).
fn set_effective_uid(uid: Uid) -> Result<(), Errno> {
    const KEEP: u32 = u32::MAX;
    // SAFETY: integers only. By the system call, not by libc, which would change every thread: there is one.
    check(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, uid.as_raw(), KEEP) }).map(drop)
}
