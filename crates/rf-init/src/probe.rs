//! What init tries at its start, so that the warden can report what the kernel refuses.

use core::ffi::CStr;

use rf_sys::guest::forbidden_calls;
use rf_wire::init::ready;
use rustix::{
    fd::BorrowedFd,
    fs::{AtFlags, CWD, FileType, Mode, mkdirat, mknodat, unlinkat},
    io::Errno,
};

/// The bits of [`ready`] that were found to hold.
pub(crate) fn probe(cgroups: Option<BorrowedFd<'_>>) -> u32 {
    let mut probes = 0;
    if landlock_holds() {
        probes |= ready::LANDLOCK;
    }
    let (unlisted, keyring) = forbidden_calls();
    if unlisted == Some(Errno::NOSYS) && matches!(keyring, Some(Errno::PERM | Errno::NOSYS)) {
        probes |= ready::SECCOMP;
    }
    if cgroups.is_some_and(cgroup_can_be_made) {
        probes |= ready::EXEC_CGROUPS;
    }
    probes
}

/// Everybody may make a 0:0 character device since Linux 5.8 (mknod(2)); only Landlock refuses it with `EACCES` to one
/// who may write to the directory.
fn landlock_holds() -> bool {
    const PLACES: [&CStr; 2] = [c"/run/.rf-init-probe", c"/tmp/.rf-init-probe"];
    for place in PLACES {
        match mknodat(CWD, place, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::ACCESS) => return true,
            Ok(()) => {
                let _ = unlinkat(CWD, place, AtFlags::empty());
                return false;
            }
            // No such directory, or not writable: the next one.
            Err(_) => {}
        }
    }
    false
}

fn cgroup_can_be_made(parent: BorrowedFd<'_>) -> bool {
    mkdirat(parent, c"files", Mode::from_raw_mode(0o755)).is_ok_and(|()| true)
        || rustix::fs::accessat(parent, c"files/cgroup.procs", rustix::fs::Access::WRITE_OK, AtFlags::empty()).is_ok()
}
