//! The entry of the program: from the kernel's first instruction to the program's `main`.

use super::{
    calls::exit,
    text::{Args, args_of_stack},
};

unsafe extern "Rust" {
    /// Defined by [`crate::guest_main`].
    fn rf_guest_main(args: Args) -> i32;
}

/// Called by `_start` with the stack pointer of the program's start.
///
/// # Safety
/// Only from `_start`, once.
pub(super) unsafe extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: `_start` hands over the stack as the kernel made it; it lives as long as the program.
    let args = unsafe { args_of_stack(stack) };
    // SAFETY: `guest_main` defines it with this very signature.
    let code = unsafe { rf_guest_main(args) };
    exit(code)
}

/// Ends the program at once; what a panic does.
pub fn die() -> ! {
    exit(134)
}

/// Makes a function the program's `main`, and a panic the program's end.
#[macro_export]
macro_rules! guest_main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn rf_guest_main(args: $crate::guest::Args) -> i32 {
            $main(args)
        }

        #[panic_handler]
        fn on_panic(_: &core::panic::PanicInfo<'_>) -> ! {
            $crate::guest::die()
        }
    };
}
