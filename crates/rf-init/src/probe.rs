//! What init tries at its start, so that the warden can report what the kernel refuses.

use core::ffi::CStr;

use rf_sys::guest::forbidden_calls;
use rf_wire::init::ready;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, mknodat, unlinkat},
    io::Errno,
};

/// The bits of [`ready`] that were found to hold; `makes_cgroups` tells whether one could be made for an exec.
pub(crate) fn probe(makes_cgroups: bool) -> u32 {
    let mut probes = 0;
    if landlock_holds() {
        probes |= ready::LANDLOCK;
    }
    let (unlisted, keyring) = forbidden_calls();
    if unlisted == Some(Errno::NOSYS) && matches!(keyring, Some(Errno::PERM | Errno::NOSYS)) {
        probes |= ready::SECCOMP;
    }
    if makes_cgroups {
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
