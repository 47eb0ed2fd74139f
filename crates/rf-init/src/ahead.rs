//! What the first exec of a sandbox would have to wait for, done while nobody waits.
//!
//! The names of a root are looked up anew in each sandbox; what was found stays in the kernel's cache. Nothing here
//! changes what an exec does: what cannot be found is not there for the exec either.

use core::ffi::CStr;

use rustix::fs::stat;

/// What every exec and the start of most programs looks up and a sandbox can have at little cost: some 10 KiB in all,
/// which take some 50 us from the first exec. Measured and left out: reading the users takes three more pages of stack for
/// good; the loader and libc would take 6 KiB more for 10 us.
const LOOKED_UP: [&CStr; 8] = [
    c"/etc/passwd",
    c"/etc/group",
    c"/usr/local/sbin",
    c"/usr/local/bin",
    c"/usr/sbin",
    c"/usr/bin",
    c"/etc/ld.so.preload",
    c"/etc/ld.so.cache",
];

/// Looks it all up.
pub(crate) fn look() {
    for name in LOOKED_UP {
        let _ = stat(name);
    }
}
