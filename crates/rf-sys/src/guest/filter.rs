//! The second seccomp filter: takes away from a workload what the sandbox's base filter allows for init's sake.

use rustix::io::Errno;

use super::arch::call;

/// Calls that only init may make, with the errno that a workload gets instead, and why.
///
/// The base filter of the sandbox allows them; every exec and every file helper gets this filter on top.
pub const TAKEN_FROM_WORKLOAD: [(i64, u16, &str); 2] = [
    (
        libc::SYS_clone3,
        libc::ENOSYS as u16,
        "its flags lie in memory, where a filter cannot see a new user namespace among them; libc then uses clone",
    ),
    (
        libc::SYS_seccomp,
        libc::ENOSYS as u16,
        "the code of all filters of the host is in one room (net.core.bpf_jit_limit), and no control group counts it",
    ),
];

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// `load nr; for each: if equal return its errno; allow`. The architecture is the base filter's affair: it kills every
/// other than the native one.
const PROGRAM: [libc::sock_filter; 2 + 2 * TAKEN_FROM_WORKLOAD.len()] = {
    // `nr` is the first field of struct seccomp_data (seccomp(2)).
    let mut program = [op(LOAD, 0, 0, 0); 2 + 2 * TAKEN_FROM_WORKLOAD.len()];
    let mut index = 0;
    while index < TAKEN_FROM_WORKLOAD.len() {
        let (nr, errno, _) = TAKEN_FROM_WORKLOAD[index];
        program[1 + 2 * index] = op(JUMP_EQUAL, 0, 1, nr as u32);
        program[2 + 2 * index] = op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32);
        index += 1;
    }
    program[1 + 2 * TAKEN_FROM_WORKLOAD.len()] = op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    program
};

/// Takes the calls of [`TAKEN_FROM_WORKLOAD`] from the calling thread and its children, for ever. See seccomp(2).
///
/// # Errors
/// `EACCES` without `no_new_privs`; `ENOMEM`.
pub fn install_workload_filter() -> Result<(), Errno> {
    static FILTER: [libc::sock_filter; PROGRAM.len()] = PROGRAM;
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    let mode = libc::SECCOMP_SET_MODE_FILTER as usize;
    // SAFETY: the kernel copies the program during the call and writes nothing; both live that long.
    unsafe { call(libc::SYS_seccomp, [mode, 0, &raw const program as usize, 0, 0, 0]) }.map(drop)
}
