//! Static memory that is handed out once, and a slot for a descriptor that is all zero when empty: together they let
//! large tables lie in `.bss`, where untouched pages cost nothing.

use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// A static value that can be taken once, for ever.
#[derive(Debug)]
pub struct TakeCell<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: only the one caller that turned `taken` from false to true ever gets at the value.
unsafe impl<T: Send> Sync for TakeCell<T> {}

impl<T> TakeCell<T> {
    /// A cell with its value. All zero when the value is.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value, the first time.
    #[allow(clippy::mut_from_ref, reason = "handed out once")]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: the swap gives `false` to one caller only, so this is the only reference; the cell is static.
        Some(unsafe { &mut *self.value.get() })
    }
}

/// Room for one descriptor, closed when dropped. Empty is all zero, which `Option<OwnedFd>` is not.
#[derive(Debug)]
pub struct FdSlot(
    // INVARIANT: 0, or a descriptor that we own, plus 1.
    i32,
);

impl FdSlot {
    /// No descriptor.
    pub const EMPTY: Self = Self(0);

    /// A slot with a descriptor.
    #[must_use]
    pub fn of(fd: OwnedFd) -> Self {
        Self(fd.into_raw_fd() + 1)
    }

    /// The descriptor, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the slot owns the descriptor for as long as the borrow lasts (invariant).
        (self.0 != 0).then(|| unsafe { BorrowedFd::borrow_raw(self.0 - 1) })
    }

    /// Takes the descriptor out.
    pub fn take(&mut self) -> Option<OwnedFd> {
        let number = core::mem::take(&mut self.0);
        // SAFETY: the slot owned it (invariant) and has just given it up.
        (number != 0).then(|| unsafe { OwnedFd::from_raw_fd(number - 1) })
    }
}

impl Drop for FdSlot {
    fn drop(&mut self) {
        drop(self.take());
    }
}
