//! Taking every right from the calling process, for good, and proving it from what the kernel says.

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Gid, Pid, Signal, Uid, getppid, set_parent_process_death_signal},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

/// Ends this process when its supervisor ends, however that ends.
///
/// To be called after the last change of ids, which clears the setting; see prctl(2), PR_SET_PDEATHSIG.
///
/// # Errors
/// The supervisor is gone already.
pub(crate) fn die_with(supervisor: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot tie this process to its supervisor")?;
    // It may have ended before the call: then nobody would tell us.
    let parent = getppid().map(Pid::as_raw_nonzero).map_or(0, |pid| pid.get().unsigned_abs());
    if parent != supervisor {
        bail!("the supervisor is gone");
    }
    Ok(())
}

/// Becomes `id` without a capability and without a way to gain one.
///
/// To be called while the process has one thread: the kernel keeps these per thread.
///
/// # Errors
/// The step that failed; the process must not go on.
pub(crate) fn drop_to(id: u32) -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").context("cannot count the threads")?.count();
    if threads != 1 {
        bail!("{threads} threads run already, and rights are dropped for one only");
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[]).context("cannot drop the supplementary groups")?;
    set_thread_res_gid(gid, gid, gid).context("cannot change the group")?;
    // While CAP_SETPCAP is still there: what is not in the bounding set no program can give back.
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error).context("cannot empty the bounding set"),
        }
    }
    set_thread_res_uid(uid, uid, uid).context("cannot change the user")?;
    clear_ambient_capability_set().context("cannot clear the ambient capabilities")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("cannot drop the capabilities")?;
    Ok(())
}

/// Gives up the way to gain rights by a program: set-user-id bits and file capabilities; see prctl(2).
pub(crate) fn forbid_gaining() -> Result<()> {
    set_no_new_privs(true).context("cannot set no_new_privs")
}
