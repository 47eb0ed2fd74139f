//! Loop devices: a file as a block device; see loop(4).

use rustix::{
    fd::{AsRawFd, BorrowedFd},
    io::Errno,
};

use crate::check;

const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// The kernel's `struct loop_info64`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `struct loop_config` (Linux 5.8).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// The number of a loop device that nobody uses at this moment; another process may take it first.
///
/// # Errors
/// As ioctl(2) on `/dev/loop-control`, which `control` has open.
pub fn free_number(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
    let rc = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    check(rc.into()).and_then(|number| u32::try_from(number).map_err(|_| Errno::OVERFLOW))
}

/// Backs the loop device `device` by `file`. It goes away by itself when its last user (a mount, a descriptor) does.
///
/// # Errors
/// `EBUSY` when somebody took the device first; `EINVAL` on a kernel before 5.8.
pub fn attach(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid `LoopConfig`: integers and arrays of them.
    let mut config: LoopConfig = unsafe { core::mem::zeroed() };
    config.fd = file.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: `config` is a whole `loop_config` and is only read during the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into()).map(drop)
}
