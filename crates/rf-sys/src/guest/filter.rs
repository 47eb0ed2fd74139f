//! The second seccomp filter: takes away from a workload what the sandbox's base filter allows for init's sake.

use rustix::io::Errno;

use super::{OWN_NETLINK, arch::call};

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

/// Where the low half of a call's fourth argument is in struct seccomp_data (seccomp(2)).
const FOURTH_ARGUMENT: u32 = 16 + 3 * 8;
/// What follows the calls that are taken: init's own form of socket(2), and the answer to all else.
const REST: [libc::sock_filter; 5] = [
    op(JUMP_EQUAL, 0, 3, libc::SYS_socket as u32),
    op(LOAD, 0, 0, FOURTH_ARGUMENT),
    op(JUMP_EQUAL, 0, 1, OWN_NETLINK),
    op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
];
const PROGRAM_LEN: usize = 1 + 2 * TAKEN_FROM_WORKLOAD.len() + REST.len();

/// `load nr; for each: if equal return its errno; [`REST`]`. The architecture is the base filter's affair: it kills every
/// other than the native one.
const PROGRAM: [libc::sock_filter; PROGRAM_LEN] = {
    // `nr` is the first field of struct seccomp_data (seccomp(2)).
    let mut program = [op(LOAD, 0, 0, 0); PROGRAM_LEN];
    let mut index = 0;
    while index < TAKEN_FROM_WORKLOAD.len() {
        let (nr, errno, _) = TAKEN_FROM_WORKLOAD[index];
        program[1 + 2 * index] = op(JUMP_EQUAL, 0, 1, nr as u32);
        program[2 + 2 * index] = op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32);
        index += 1;
    }
    let mut rest = 0;
    while rest < REST.len() {
        program[1 + 2 * TAKEN_FROM_WORKLOAD.len() + rest] = REST[rest];
        rest += 1;
    }
    program
};

/// Takes the calls of [`TAKEN_FROM_WORKLOAD`] and the form of [`OWN_NETLINK`] from the calling thread and its children, for ever. See seccomp(2).
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
