//! Strings as the kernel has them: ended by a NUL.

use core::ffi::CStr;

/// The program's arguments and environment, as the kernel put them on the first stack.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    args: &'static [*const u8],
    env: *const *const u8,
}

/// Reads what the kernel left on the stack.
///
/// # Safety
/// `stack` is the stack pointer at the program's first instruction.
#[cfg(feature = "guest-entry")]
pub(super) unsafe fn args_of_stack(stack: *const usize) -> Args {
    // SAFETY: argc is at the stack pointer, then as many pointers, a null, the environment and another null (System V
    // ABI, AMD64 supplement, 3.4.1). They stay for the program's life.
    unsafe {
        let count = stack.read();
        let first = stack.add(1).cast::<*const u8>();
        Args { args: core::slice::from_raw_parts(first, count), env: first.add(count + 1) }
    }
}

impl Args {
    /// How many arguments, the program's own name included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// One argument.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&'static CStr> {
        let pointer = *self.args.get(index)?;
        // SAFETY: the kernel ends each argument with a NUL; they stay for the program's life.
        Some(unsafe { CStr::from_ptr(pointer.cast()) })
    }

    /// The environment's strings.
    pub fn env(&self) -> impl Iterator<Item = &'static CStr> {
        let mut next = self.env;
        core::iter::from_fn(move || {
            // SAFETY: `next` walks the kernel's list of pointers and stops at the null that ends it.
            let pointer = unsafe { next.read() };
            if pointer.is_null() {
                return None;
            }
            next = next.wrapping_add(1);
            // SAFETY: each is a string with a NUL that stays for the program's life.
            Some(unsafe { CStr::from_ptr(pointer.cast()) })
        })
    }
}

/// The string that `bytes` begins with; empty when there is no NUL in it.
#[must_use]
pub fn cstr(bytes: &[u8]) -> &CStr {
    CStr::from_bytes_until_nul(bytes).unwrap_or(c"")
}
