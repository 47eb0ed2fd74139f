//! What init tries at its start, so that the warden can report what the kernel refuses.

use core::ffi::CStr;

use rf_sys::guest::forbidden_calls;
use rf_wire::init::ready;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, makedev, mknodat, unlinkat},
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

/// To make a device takes `CAP_MKNOD` on the host, and the kernel answers `EPERM` without (mknod(2)); but Landlock is asked
/// before that, and answers `EACCES` (fs/namei.c, `do_mknodat`). Where one may write to the directory nobody else does.
///
/// A 0:0 device, which everybody may make, shows nothing: stable kernels of 2026 (6.1.192 is one) count it as a file.
fn landlock_holds() -> bool {
    const PLACES: [&CStr; 2] = [c"/run/.rf-init-probe", c"/tmp/.rf-init-probe"];
    // `/dev/null`'s number.
    let null = makedev(1, 3);
    for place in PLACES {
        match mknodat(CWD, place, FileType::CharacterDevice, Mode::empty(), null) {
            Err(Errno::ACCESS) => return true,
            Err(Errno::PERM) => return false,
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
