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
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Where the low half of an argument is in struct seccomp_data (seccomp(2)).
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// What follows the calls that are taken. Of socket(2) init's own form is refused. Of mknod(2) and mknodat(2) character
/// devices: everybody may make the device 0:0, which hides files in an overlay, and kernels differ in whether Landlock
/// takes that for a device (stable ones of 2026 do not).
const REST: [libc::sock_filter; 12] = [
    op(JUMP_EQUAL, 0, 2, libc::SYS_socket as u32),
    op(LOAD, 0, 0, argument(3)),
    op(JUMP_EQUAL, 7, 8, OWN_NETLINK),
    op(JUMP_EQUAL, 0, 2, libc::SYS_mknod as u32),
    op(LOAD, 0, 0, argument(1)),
    op(JUMP, 0, 0, 2),
    op(JUMP_EQUAL, 0, 4, libc::SYS_mknodat as u32),
    op(LOAD, 0, 0, argument(2)),
    op(AND, 0, 0, libc::S_IFMT),
    op(JUMP_EQUAL, 0, 1, libc::S_IFCHR),
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

/// Takes the calls of [`TAKEN_FROM_WORKLOAD`] and the forms of [`REST`] from the calling thread and its children, for ever. See seccomp(2).
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would; see seccomp(2) and linux/filter.h.
    fn run(number: i64, arguments: [u64; 6]) -> u32 {
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let i = PROGRAM[at];
            at += 1;
            match i.code {
                LOAD if i.k == 0 => a = number as u32,
                LOAD => a = arguments[((i.k - 16) / 8) as usize] as u32,
                AND => a &= i.k,
                JUMP => at += i.k as usize,
                JUMP_EQUAL => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                RETURN => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn what_is_taken_is_refused_and_nothing_else() {
        let refused = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
        for number in 0..500 {
            let taken = TAKEN_FROM_WORKLOAD.iter().find(|(taken, ..)| *taken == number);
            let expected = taken.map_or(libc::SECCOMP_RET_ALLOW, |(_, errno, _)| refused(i32::from(*errno)));
            assert_eq!(run(number, [0; 6]), expected, "{number}");
        }
        let own = u64::from(OWN_NETLINK);
        assert_eq!(run(libc::SYS_socket, [16, 3, 0, own, 0, 0]), refused(libc::EPERM));
        assert_eq!(run(libc::SYS_socket, [16, 3, own, own + 1, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(libc::SYS_bind, [16, 3, 0, own, 0, 0]), libc::SECCOMP_RET_ALLOW);
        for (number, at) in [(libc::SYS_mknod, 1), (libc::SYS_mknodat, 2)] {
            let make = |mode: u64| {
                let mut arguments = [0; 6];
                arguments[at] = mode;
                run(number, arguments)
            };
            assert_eq!([0x2000, 0x21b6, 0xffff_0000_0000_2000].map(make), [refused(libc::EPERM); 3]);
            // A block device, which Landlock and the kernel refuse, a FIFO, a socket, a plain file.
            assert_eq!([0x61b6, 0x11b6, 0xc1b6, 0x81b6, 0x1b6].map(make), [libc::SECCOMP_RET_ALLOW; 5]);
        }
    }
}
