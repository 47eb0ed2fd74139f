//! The system call filter: an allow-list compiled from [`table`] to the kernel's classic BPF.
//!
//! Default deny: a number that is not listed answers ENOSYS, as on a kernel that lacks it, so programs take their own
//! way round. (Two numbers Linux shows to no filter: uretprobe and uprobe, 335 and 336, which end by SIGILL or ENXIO
//! what calls them from elsewhere than a probe of the host's.) The entries for 32-bit and x32 programs kill the process: their numbers mean other calls. Installed
//! before init's first instruction; init adds [`rf_sys::guest`]'s small filter for each exec, which takes `clone3` away.

use rf_sys::{guest::OWN_NETLINK, seccomp::Instruction};

pub mod table;

use table::{CALLS, Call, Treatment};

/// Most calls that the list may have.
pub const CALLS_MAX: usize = 300;

// linux/filter.h and linux/bpf_common.h.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_BITS: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;

// linux/audit.h and asm/unistd.h.
const ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

const EPERM: u32 = 1;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;
const ENOPROTOOPT: u32 = 92;
const EPROTONOSUPPORT: u32 = 93;
const ESOCKTNOSUPPORT: u32 = 94;
const EAFNOSUPPORT: u32 = 97;

/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (linux/sched.h).
const NEW_NAMESPACES: u32 = 0x7e02_0080;
/// The same without CLONE_NEWTIME, whose bit is part of the exit signal in clone(2).
const NEW_NAMESPACES_OF_CLONE: u32 = 0x7e02_0000;
/// The child's parent is that of its maker, who could so leave the tree of its exec (linux/sched.h).
const CLONE_PARENT: u32 = 0x8000;

/// The requests of ioctl(2) that are refused; see [`by_argument`].
const IOCTLS_REFUSED: [u32; 9] = [0x5412, 0x541c, 0x5423, 0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1];

const fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The offset of the low half of an argument in `struct seccomp_data`.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const fn errno(number: u32) -> Instruction {
    op(RETURN, ERRNO | number)
}

/// The list, for printing.
#[must_use]
pub const fn calls() -> &'static [Call] {
    CALLS
}

/// The filter, compiled. The same for every sandbox.
#[must_use]
pub fn filter() -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD, OFFSET_ARCH),
        jump(JUMP_EQUAL, ARCH_X86_64, 1, 0),
        op(RETURN, KILL_PROCESS),
        op(LOAD, OFFSET_NUMBER),
        jump(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        op(RETURN, KILL_PROCESS),
    ];
    for call in CALLS {
        let block = match call.treatment {
            Treatment::Allowed | Treatment::InitOnly => continue,
            Treatment::Pretended => vec![errno(0)],
            Treatment::ByArgument => by_argument(call.name),
        };
        // A block ends in returns on every path, so nothing falls through it.
        let skip = u8::try_from(block.len()).unwrap_or(u8::MAX);
        program.push(jump(JUMP_EQUAL, call.number, 0, skip));
        program.extend(block);
    }
    search(&allowed_ranges(), &mut program);
    program
}

/// The checks of one call on its arguments; every path ends in a return.
fn by_argument(name: &str) -> Vec<Instruction> {
    match name {
        // The request, argument 1: TIOCSTI, TIOCLINUX (ioctl_tty(2)), TIOCSETD (asm-generic/ioctls.h); of any socket
        // SIOCGIFBR, SIOCSIFBR, SIOCGIFVLAN, SIOCSIFVLAN, SIOCBRADDBR and SIOCBRDELBR (linux/sockios.h), before which the
        // kernel runs modprobe for anybody (net/socket.c, `sock_ioctl`).
        "ioctl" => refuse_values(1, &IOCTLS_REFUSED, EPERM),
        // The command, argument 1: F_SETLEASE; F_OFD_SETLK and F_OFD_SETLKW as on a kernel that has none: such a lock lives
        // on in a descriptor that is on its way in a socket, where nobody can count it (linux/fcntl.h).
        "fcntl" => vec![
            op(LOAD, argument(1)),
            jump(JUMP_EQUAL, 1024, 3, 0),
            jump(JUMP_EQUAL, 37, 3, 0),
            jump(JUMP_EQUAL, 38, 2, 0),
            op(RETURN, ALLOW),
            errno(EPERM),
            errno(EINVAL),
        ],
        // The option, argument 0: PR_SET_SECCOMP and PR_SCHED_CORE (linux/prctl.h).
        "prctl" => refuse_values(0, &[22, 62], EINVAL),
        // The flags, argument 3: MAP_HUGETLB (asm-generic/mman-common.h).
        "mmap" => refuse_bits(3, 0x4_0000, ENOMEM),
        // The flags, argument 1: MFD_HUGETLB (linux/memfd.h).
        "memfd_create" => refuse_bits(1, 0x4, ENOMEM),
        // The resource, argument 0: RLIMIT_CORE (asm-generic/resource.h).
        "setrlimit" => refuse_values(0, &[4], 0),
        // The process, argument 0, the resource, argument 1, and whether there is a new limit, argument 2, an address.
        "prlimit64" => vec![
            op(LOAD, argument(2)),
            jump(JUMP_EQUAL, 0, 0, 2),
            op(LOAD, argument(2) + 4),
            jump(JUMP_EQUAL, 0, 4, 0), // only asks: allow
            op(LOAD, argument(0)),
            jump(JUMP_EQUAL, 1, 8, 0), // process 1, who says 0 of itself
            op(LOAD, argument(1)),
            jump(JUMP_EQUAL, 4, 1, 0), // RLIMIT_CORE, else allow
            op(RETURN, ALLOW),
            // Who asks for the old one as well would read what nobody wrote.
            op(LOAD, argument(3)),
            jump(JUMP_EQUAL, 0, 0, 3),
            op(LOAD, argument(3) + 4),
            jump(JUMP_EQUAL, 0, 0, 1),
            errno(0),
            errno(EPERM),
        ],
        "clone" => refuse_bits(0, NEW_NAMESPACES_OF_CLONE | CLONE_PARENT, EPERM),
        "unshare" => refuse_bits(0, NEW_NAMESPACES, EPERM),
        // Family, type, protocol; socket(2). Names in comments are those of the headers. Of type and protocol only what
        // the kernel has: for any other it runs modprobe on the host, as root and counted for no sandbox, before it
        // refuses (net/ipv4/af_inet.c, `inet_create`).
        "socket" => vec![
            op(LOAD, argument(0)),
            jump(JUMP_EQUAL, 1, 26, 0),  // AF_UNIX: allow
            jump(JUMP_EQUAL, 2, 8, 0),   // AF_INET
            jump(JUMP_EQUAL, 10, 13, 0), // AF_INET6
            jump(JUMP_EQUAL, 16, 1, 0),  // AF_NETLINK: check protocol
            errno(EAFNOSUPPORT),
            op(LOAD, argument(2)),
            jump(JUMP_EQUAL, 0, 0, 22), // NETLINK_ROUTE, else EPROTONOSUPPORT
            // Answers that wait in such a socket are memory that counts for nobody, so init counts the sockets.
            op(LOAD, argument(3)),
            jump(JUMP_EQUAL, OWN_NETLINK, 18, 0), // init's own: allow
            op(RETURN, NOTIFY),
            // AF_INET.
            op(LOAD, argument(1)),
            op(AND, 0xf),               // without SOCK_CLOEXEC and SOCK_NONBLOCK
            jump(JUMP_EQUAL, 1, 11, 0), // SOCK_STREAM
            jump(JUMP_EQUAL, 2, 0, 14), // SOCK_DGRAM, else ESOCKTNOSUPPORT
            op(LOAD, argument(2)),
            jump(JUMP_EQUAL, 1, 11, 6), // IPPROTO_ICMP: allow, else datagrams
            // AF_INET6.
            op(LOAD, argument(1)),
            op(AND, 0xf),
            jump(JUMP_EQUAL, 1, 5, 0), // SOCK_STREAM
            jump(JUMP_EQUAL, 2, 0, 8), // SOCK_DGRAM, else ESOCKTNOSUPPORT
            op(LOAD, argument(2)),
            jump(JUMP_EQUAL, 58, 5, 0), // IPPROTO_ICMPV6: allow, else datagrams
            // Datagrams: the type's own protocol, or IPPROTO_UDP.
            jump(JUMP_EQUAL, 0, 4, 0),
            jump(JUMP_EQUAL, 17, 3, 5),
            // Streams: the type's own protocol, or IPPROTO_TCP.
            op(LOAD, argument(2)),
            jump(JUMP_EQUAL, 0, 1, 0),
            jump(JUMP_EQUAL, 6, 0, 2),
            op(RETURN, ALLOW),
            errno(ESOCKTNOSUPPORT),
            errno(EPROTONOSUPPORT),
        ],
        "socketpair" => {
            vec![op(LOAD, argument(0)), jump(JUMP_EQUAL, 1, 0, 1), op(RETURN, ALLOW), errno(EAFNOSUPPORT)]
        }
        // Level and option; setsockopt(2).
        "setsockopt" => {
            let refused: [(u32, &[u32]); 5] = [
                // IPPROTO_TCP: TCP_MD5SIG, TCP_ULP, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY, _DEL_KEY, _INFO and _REPAIR
                // (linux/tcp.h).
                (6, &[14, 31, 32, 38, 39, 40, 42]),
                // IPPROTO_UDP: UDP_ENCAP (linux/udp.h).
                (17, &[100]),
                // SOL_SOCKET: SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF (asm-generic/socket.h).
                (1, &[26, 50, 51, 52]),
                // IPPROTO_IP: IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IP_MSFILTER; MCAST_JOIN_GROUP,
                // MCAST_JOIN_SOURCE_GROUP, MCAST_MSFILTER (linux/in.h).
                (0, &[35, 39, 41, 42, 46, 48]),
                // IPPROTO_IPV6: IPV6_ADD_MEMBERSHIP, IPV6_JOIN_ANYCAST, IPV6_FLOWLABEL_MGR, and those of MCAST
                // (linux/in6.h).
                (41, &[20, 27, 32, 42, 46, 48]),
            ];
            let mut blocks = refused.map(|(level, options)| (level, refuse_values(2, options, ENOPROTOOPT)));
            // SO_RCVBUF changes nothing, as where the most that may be asked for is what there is (socket(7)): what waits in
            // a netlink socket counts for nobody.
            let (_, of_sockets) = &mut blocks[2];
            of_sockets.splice(1..1, [jump(JUMP_EQUAL, 8, 0, 1), errno(0)]);
            let mut block = vec![op(LOAD, argument(1))];
            let mut before = 0;
            for ((level, own), left) in blocks.iter().zip((1..=blocks.len()).rev()) {
                // Over the comparisons that are left, the answer that allows, and the blocks before its own.
                let skip = u8::try_from(left + before).unwrap_or(u8::MAX);
                block.push(jump(JUMP_EQUAL, *level, skip, 0));
                before += own.len();
            }
            block.push(op(RETURN, ALLOW));
            block.extend(blocks.into_iter().flat_map(|(_, own)| own));
            block
        }
        "personality" => vec![
            op(LOAD, argument(0)),
            jump(JUMP_EQUAL, 0, 5, 0),
            jump(JUMP_EQUAL, 0x8, 4, 0),         // PER_LINUX32
            jump(JUMP_EQUAL, 0x2_0000, 3, 0),    // UNAME26
            jump(JUMP_EQUAL, 0x2_0008, 2, 0),    // both
            jump(JUMP_EQUAL, 0xffff_ffff, 1, 0), // the query
            errno(EPERM),
            op(RETURN, ALLOW),
        ],
        // The table and this match are checked against each other by a test.
        _ => vec![errno(EPERM)],
    }
}

/// Allows the call unless one of `bits` is set in the low half of the argument; then it answers this error.
fn refuse_bits(index: u32, bits: u32, error: u32) -> Vec<Instruction> {
    vec![op(LOAD, argument(index)), jump(JUMP_BITS, bits, 1, 0), op(RETURN, ALLOW), errno(error)]
}

/// Allows the call unless the low half of the argument is one of `values`; then it answers this error, 0 for success.
fn refuse_values(index: u32, values: &[u32], error: u32) -> Vec<Instruction> {
    let mut block = vec![op(LOAD, argument(index))];
    for (value, left) in values.iter().zip((1..=values.len()).rev()) {
        // Over the comparisons that are left and over the answer that allows.
        block.push(jump(JUMP_EQUAL, *value, u8::try_from(left).unwrap_or(u8::MAX), 0));
    }
    block.extend([op(RETURN, ALLOW), errno(error)]);
    block
}

/// The allowed numbers as ranges without gaps, in order.
fn allowed_ranges() -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for call in CALLS.iter().filter(|c| matches!(c.treatment, Treatment::Allowed | Treatment::InitOnly)) {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == call.number => *high = call.number,
            _ => ranges.push((call.number, call.number)),
        }
    }
    ranges
}

/// A binary search for the number over `ranges`: a filter that is linear in the list costs the kernel 0.2 ms when it
/// works out, at installation, which numbers it may pass without running the filter.
fn search(ranges: &[(u32, u32)], program: &mut Vec<Instruction>) {
    match ranges {
        [] => program.push(errno(ENOSYS)),
        [(low, high)] => program.extend([
            jump(JUMP_GREATER_EQUAL, *low, 0, 2),
            jump(JUMP_GREATER, *high, 1, 0),
            op(RETURN, ALLOW),
            errno(ENOSYS),
        ]),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let mut block = Vec::new();
            search(left, &mut block);
            // Some 60 ranges make 300 instructions, and half of them lie to the left: it fits in the 8 bits of a jump.
            let skip = u8::try_from(block.len()).unwrap_or(u8::MAX);
            program.push(jump(JUMP_GREATER_EQUAL, right[0].0, skip, 0));
            program.extend(block);
            search(right, program);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would; see seccomp(2) and linux/filter.h.
    fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let taken = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD if i.k == OFFSET_NUMBER => a = number,
                LOAD if i.k == OFFSET_ARCH => a = arch,
                LOAD => a = (arguments[((i.k - 16) / 8) as usize] >> (8 * (i.k % 8))) as u32,
                AND => a &= i.k,
                JUMP_EQUAL => at += taken(a == i.k),
                JUMP_GREATER => at += taken(a > i.k),
                JUMP_GREATER_EQUAL => at += taken(a >= i.k),
                JUMP_BITS => at += taken(a & i.k != 0),
                RETURN => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn answer(number: u32, arguments: [u64; 6]) -> u32 {
        run(&filter(), ARCH_X86_64, number, arguments)
    }

    fn number(name: &str) -> u32 {
        CALLS.iter().find(|call| call.name == name).unwrap().number
    }

    #[test]
    fn the_list_is_short_sorted_and_gives_reasons() {
        assert!(CALLS.len() <= CALLS_MAX, "{}", CALLS.len());
        assert!(CALLS.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert!(CALLS.iter().all(|call| call.reason.len() > 4));
        assert!(filter().len() < 512);
    }

    #[test]
    fn every_number_answers_as_listed() {
        let program = filter();
        for nr in 0..1024 {
            let got = run(&program, ARCH_X86_64, nr, [0; 6]);
            match CALLS.iter().find(|call| call.number == nr).map(|call| call.treatment) {
                Some(Treatment::Allowed | Treatment::InitOnly) => assert_eq!(got, ALLOW, "{nr}"),
                Some(Treatment::Pretended) => assert_eq!(got, ERRNO, "{nr}"),
                Some(Treatment::ByArgument) => assert_ne!(got, ERRNO | ENOSYS, "{nr}"),
                None => assert_eq!(got, ERRNO | ENOSYS, "{nr}"),
            }
        }
    }

    #[test]
    fn other_entries_are_killed() {
        const ARCH_I386: u32 = 0x4000_0003;
        assert_eq!(run(&filter(), ARCH_I386, 3, [0; 6]), KILL_PROCESS);
        assert_eq!(answer(X32_BIT, [0; 6]), KILL_PROCESS);
        assert_eq!(answer(X32_BIT | 1, [0; 6]), KILL_PROCESS);
        assert_eq!(answer(u32::MAX, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn socket_families_types_and_protocols_are_by_list() {
        let socket = |family, kind, protocol| answer(number("socket"), [family, kind, protocol, 0, 0, 0]);
        for family in 0..64 {
            let expected = match family {
                1 | 2 | 10 => ALLOW,
                16 => NOTIFY,
                _ => ERRNO | EAFNOSUPPORT,
            };
            assert_eq!(socket(family, 1, 0), expected, "family {family}");
        }
        for protocol in 0..300 {
            let expected = |ok: bool| if ok { ALLOW } else { ERRNO | EPROTONOSUPPORT };
            let netlink = if protocol == 0 { NOTIFY } else { expected(false) };
            assert_eq!(socket(16, 3, protocol), netlink, "netlink {protocol}");
            let own = answer(number("socket"), [16, 3, protocol, u64::from(OWN_NETLINK), 0, 0]);
            assert_eq!(own, expected(protocol == 0), "init's own netlink {protocol}");
            for (family, echo) in [(2, 1), (10, 58)] {
                // Every other would have the host look for a module.
                assert_eq!(socket(family, 1, protocol), expected([0, 6].contains(&protocol)), "stream {protocol}");
                let ok = [0, 17, echo].contains(&protocol);
                assert_eq!(socket(family, 2, protocol), expected(ok), "datagrams {family} {protocol}");
            }
        }
        for kind in 0..16 {
            let expected = if [1, 2].contains(&kind) { ALLOW } else { ERRNO | ESOCKTNOSUPPORT };
            for family in [2, 10] {
                assert_eq!(socket(family, kind | 0o2_004_000, 0), expected, "type {kind}");
            }
        }
    }

    #[test]
    fn no_flag_makes_a_namespace() {
        for bit in [0x0002_0000u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            assert_eq!(answer(number("clone"), [bit | 17, 0, 0, 0, 0, 0]), ERRNO | EPERM, "{bit:#x}");
            assert_eq!(answer(number("unshare"), [bit, 0, 0, 0, 0, 0]), ERRNO | EPERM, "{bit:#x}");
        }
        assert_eq!(answer(number("unshare"), [0x80, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        // A child that is its maker's sibling.
        assert_eq!(answer(number("clone"), [0x8000 | 17, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        // A thread as glibc makes it.
        assert_eq!(answer(number("clone"), [0x003d_0f00, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn rare_socket_options_and_terminal_injection_are_refused() {
        let option = |level, name| answer(number("setsockopt"), [3, level, name, 0, 0, 0]);
        let tcp = [14, 31, 32, 38, 39, 40, 42].map(|name| (6, name));
        let ip = [35, 39, 41, 42, 46, 48].map(|name| (0, name));
        let ipv6 = [20, 27, 32, 42, 46, 48].map(|name| (41, name));
        let others = [(17, 100), (1, 26), (1, 50), (1, 51), (1, 52)];
        for (level, name) in [&tcp[..], &ip, &ipv6, &others].concat() {
            assert_eq!(option(level, name), ERRNO | ENOPROTOOPT, "{level} {name}");
        }
        for (level, name) in
            [(6, 1), (6, 13), (6, 41), (17, 103), (1, 2), (1, 7), (1, 31), (0, 31), (0, 20), (0, 8), (41, 26), (41, 35)]
        {
            assert_eq!(option(level, name), ALLOW, "{level} {name}");
        }
        assert_eq!(option(1, 8), ERRNO, "what waits in a socket stays as bounded as it is");
        let ioctl = |request| answer(number("ioctl"), [0, request, 0, 0, 0, 0]);
        assert_eq!(ioctl(0x5412), ERRNO | EPERM);
        assert_eq!(ioctl(0xffff_ffff_0000_5412), ERRNO | EPERM);
        assert_eq!(ioctl(0x541c), ERRNO | EPERM);
        assert_eq!(ioctl(0x5423), ERRNO | EPERM);
        assert_eq!(ioctl(0x5413), ALLOW);
        // Those before which the kernel loads the modules of bridges and VLANs; and FIONREAD, SIOCGIFCONF, SIOCGIFFLAGS.
        for request in [0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1] {
            assert_eq!(ioctl(request), ERRNO | EPERM, "{request:#x}");
        }
        assert_eq!([0x541b, 0x8912, 0x8913].map(ioctl), [ALLOW; 3]);
    }

    #[test]
    fn a_lease_on_a_file_and_locks_of_open_descriptions_are_refused() {
        let fcntl = |command| answer(number("fcntl"), [3, command, 0, 0, 0, 0]);
        assert_eq!((fcntl(1024), fcntl(1025), fcntl(3)), (ERRNO | EPERM, ALLOW, ALLOW));
        // F_GETLK, F_SETLK, F_SETLKW; F_OFD_GETLK and those that set.
        assert_eq!([5, 6, 7, 36].map(fcntl), [ALLOW; 4]);
        assert_eq!([37, 38].map(fcntl), [ERRNO | EINVAL; 2]);
    }

    #[test]
    fn what_is_left_of_a_crash_cannot_be_asked_for_otherwise() {
        let set = |resource| answer(number("setrlimit"), [resource, 1 << 40, 0, 0, 0, 0]);
        assert_eq!((set(4), set(3), set(7)), (ERRNO, ALLOW, ALLOW));
        let limit = |resource, new, old| answer(number("prlimit64"), [0, resource, new, old, 0, 0]);
        for old in [0, 1, 1 << 40] {
            let answer = if old == 0 { ERRNO } else { ERRNO | EPERM };
            assert_eq!([limit(4, 0x7fff_0000_1000, old), limit(4, 1 << 32, old), limit(4, 1, old)], [answer; 3]);
            assert_eq!([limit(4, 0, old), limit(7, 0x7fff_0000_1000, old), limit(7, 0, old)], [ALLOW; 3]);
        }
    }

    #[test]
    fn nobody_sets_the_limits_of_process_1() {
        let limit = |pid, resource, new| answer(number("prlimit64"), [pid, resource, new, 0, 0, 0]);
        for resource in 0..16 {
            for new in [1, 0x7fff_0000_1000, 1 << 32] {
                assert_eq!(limit(1, resource, new), ERRNO | EPERM, "{resource}");
                assert_eq!(limit(0xffff_ffff_0000_0001, resource, new), ERRNO | EPERM, "{resource}");
            }
        }
        assert_eq!([limit(0, 7, 1), limit(2, 7, 1), limit(1, 7, 0)], [ALLOW; 3]);
    }

    #[test]
    fn huge_pages_of_the_host_are_refused() {
        let map = |flags| answer(number("mmap"), [0, 4096, 3, flags, u64::MAX, 0]);
        assert_eq!((map(0x22), map(0x4_0022), map(0x5404_0022)), (ALLOW, ERRNO | ENOMEM, ERRNO | ENOMEM));
        let file = |flags| answer(number("memfd_create"), [1, flags, 0, 0, 0, 0]);
        assert_eq!((file(1), file(3), file(5)), (ALLOW, ALLOW, ERRNO | ENOMEM));
    }

    #[test]
    fn processors_are_not_taken_from_others_and_no_filter_is_laid_on_this_one() {
        let option = |option| answer(number("prctl"), [option, 1, 0, 0, 0, 0]);
        assert_eq!((option(62), option(22), option(38), option(15)), (ERRNO | EINVAL, ERRNO | EINVAL, ALLOW, ALLOW));
    }

    #[test]
    fn personality_changes_nothing() {
        let ask = |value| answer(number("personality"), [value, 0, 0, 0, 0, 0]);
        assert_eq!((ask(0), ask(0xffff_ffff), ask(0x0004_0000)), (ALLOW, ALLOW, ERRNO | EPERM));
    }
}
