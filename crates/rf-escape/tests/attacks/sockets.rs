//! Held by the network namespace and the list of socket families.

use super::{Attack, Control, Control::*, root, user};

const NO: &[&str] = &["EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"];

/// Kernels are built without one or the other of these families: then the same probe with a family that is allowed.
const KNOWN: Control = HostOr { lacks: NO, inside: &["socket_of", "2", "1"] };

/// And without signatures on TCP: then with an option that is allowed.
const SIGNED: Control = HostOr { lacks: &["ENOPROTOOPT"], inside: &["tcp_option", "1"] };

pub(crate) const SOCKETS: &[Attack] = &[
    user("a socket to the hypervisor", &["socket_of", "40", "1"], NO, Host),
    user("the kernel's ciphers (CVE-2026-31431)", &["socket_of", "38", "5"], NO, KNOWN),
    root("packets of the wire", &["socket_of", "17", "3", "0x300"], NO, Host),
    root("kernel key management", &["socket_of", "15", "3", "2"], NO, KNOWN),
    root("RxRPC (CVE-2026-43500)", &["socket_of", "33", "2", "2"], NO, KNOWN),
    root("XDP", &["socket_of", "44", "3"], NO, KNOWN),
    user("Bluetooth", &["socket_of", "31", "3"], NO, KNOWN),
    user("TIPC", &["socket_of", "30", "1"], NO, KNOWN),
    user("CAN", &["socket_of", "29", "3", "1"], NO, KNOWN),
    root("netfilter's netlink", &["socket_of", "16", "3", "12"], NO, Host),
    root("IPsec's netlink (CVE-2026-43284)", &["socket_of", "16", "3", "6"], NO, KNOWN),
    root("the audit's netlink", &["socket_of", "16", "3", "9"], NO, KNOWN),
    user("generic netlink", &["socket_of", "16", "3", "16"], NO, Host),
    user("SCTP, which loads a module", &["socket_of", "2", "1", "132"], NO, KNOWN),
    user("UDP-Lite", &["socket_of", "2", "2", "136"], NO, KNOWN),
    user("an upper protocol on TCP (CVE-2026-46300)", &["upper_protocol"], &["ENOPROTOOPT"], Host),
    user("a signature on TCP, which loads digests", &["tcp_option", "14"], &["ENOPROTOOPT"], SIGNED),
    user("what loads the module of bridges", &["socket_ioctl", "0x8940"], &["EPERM"], Host),
    user("what loads the module of VLANs", &["socket_ioctl", "0x8982"], &["EPERM"], Host),
    user("encapsulation on UDP", &["udp_encapsulation"], &["ENOPROTOOPT"], Host),
    user("a filter program on a socket", &["socket_filter"], &["ENOPROTOOPT"], Host),
    user("an abstract socket of the host's", &["abstract_socket", "{abstract}"], &["ECONNREFUSED"], Host),
    user("a port of the host's loopback", &["tcp", "127.0.0.1", "{port}"], &["ECONNREFUSED"], Host),
    user("the server's own port", &["tcp", "127.0.0.1", "{server_port}"], &["ECONNREFUSED"], Host),
    user(
        "the metadata service of clouds",
        &["tcp", "169.254.169.254", "80"],
        &["ENETUNREACH"],
        Prepared(
            "exec unshare -n bash -c 'ip link set lo up; ip address add 169.254.169.254/32 dev lo; python3 \"$1\" listening 169.254.169.254 80 \"$@\"' control \"$@\"",
        ),
    ),
    user(
        "an address of the internet",
        &["tcp", "192.0.2.1", "443"],
        &["ENETUNREACH"],
        Prepared(
            "exec unshare -n bash -c 'ip link set lo up; ip address add 192.0.2.1/32 dev lo; python3 \"$1\" listening 192.0.2.1 443 \"$@\"' control \"$@\"",
        ),
    ),
    user(
        "the host's shared memory",
        &["shared_memory", "{shm}"],
        &["ENOENT"],
        Prepared(
            "python3 -c 'import ctypes; ctypes.CDLL(None).shmget(int(\"{shm}\", 16), 4096, 0o1600)'; trap 'ipcrm -M {shm}' EXIT; python3 {state}/../probe.py shared_memory {shm}; exit",
        ),
    ),
];
