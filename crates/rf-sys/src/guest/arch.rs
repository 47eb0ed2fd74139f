//! The processor's own part: how to enter the kernel, and how to start a child on another stack.
//!
//! x86-64 today. Another architecture needs `raw`, `rf_guest_clone_vm` and `_start`, nothing else.

use rustix::io::Errno;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("rf-sys::guest knows x86_64 only: add `raw` and `rf_guest_clone_vm` for this architecture");

/// Enters the kernel with call number `nr`; a value of -4095 to -1 is a negated errno (syscall(2)).
///
/// # Safety
/// As the call itself demands: every argument that the kernel takes for an address must be valid for what it does there.
#[inline]
pub(super) unsafe fn raw(nr: i64, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention (syscall(2)): number in rax, arguments in these six registers; it
    // clobbers rcx and r11 and keeps all others. The caller answers for the addresses.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// [`raw`] with the result told apart from the error.
///
/// # Safety
/// As for [`raw`].
#[inline]
pub(super) unsafe fn call(nr: i64, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    let result = unsafe { raw(nr, args) };
    if (-4095..0).contains(&result) { Err(Errno::from_raw_os_error(-result as i32)) } else { Ok(result as usize) }
}

unsafe extern "C" {
    /// clone3(2) for a child that shares our memory but runs `entry(data)` on the stack named in `args`, and never
    /// returns. Gives the child's pid or a negated errno.
    pub(super) fn rf_guest_clone_vm(
        args: *const super::fork::CloneArgs,
        size: usize,
        entry: unsafe extern "C" fn(*mut core::ffi::c_void) -> !,
        data: *mut core::ffi::c_void,
    ) -> isize;
}

// The child comes out of the call with every register of the parent but rax and rsp. So its entry and its argument
// wait in r8 and r9, which the kernel keeps. Its stack is empty and 16-aligned, as `call` wants it.
core::arch::global_asm!(
    ".pushsection .text.rf_guest_clone_vm,\"ax\",@progbits",
    ".globl rf_guest_clone_vm",
    ".type rf_guest_clone_vm,@function",
    "rf_guest_clone_vm:",
    "mov r8, rdx",
    "mov r9, rcx",
    "mov eax, 435",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "mov rdi, r9",
    "call r8",
    "ud2",
    "2: ret",
    ".size rf_guest_clone_vm, . - rf_guest_clone_vm",
    ".popsection",
);

#[cfg(feature = "guest-entry")]
core::arch::global_asm!(
    ".pushsection .text._start,\"ax\",@progbits",
    ".globl _start",
    ".type _start,@function",
    "_start:",
    // The kernel puts argc, argv, environment at rsp (System V ABI, AMD64 supplement, 3.4.1).
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    ".size _start, . - _start",
    ".popsection",
    entry = sym super::entry::entry,
);
