//! Anonymous memory, given back as soon as it is no longer needed.

use rustix::io::Errno;

use super::arch::call;

/// Zeroed memory of this process alone.
#[derive(Debug)]
pub struct Mapping {
    // INVARIANT: `len` bytes at `address` were mapped by us, readable and writable, and nobody else has the address.
    address: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, more than 0. See mmap(2).
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` when `len` is 0.
    pub fn new(len: usize) -> Result<Self, Errno> {
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
        // SAFETY: without MAP_FIXED the kernel chooses a free range, so no memory in use is touched.
        let address = unsafe { call(libc::SYS_mmap, [0, len, protection, flags, usize::MAX, 0]) }?;
        Ok(Self { address, len })
    }

    /// The memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, readable, writable, zeroed and ours alone (invariant); `&mut self` makes it the only slice.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u8, self.len) }
    }

    /// The memory as words, for [`super::Pointers`]; what does not fill a word is left out.
    pub fn words(&mut self) -> &mut [usize] {
        // SAFETY: as for `bytes`; a mapping begins at a page, which is aligned for words; any bits are a word.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut usize, self.len / size_of::<usize>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours (invariant), and no slice of it outlives `self`.
        let _ = unsafe { call(libc::SYS_munmap, [self.address, self.len, 0, 0, 0, 0]) };
    }
}
