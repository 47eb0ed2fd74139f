//! Held by close_range before the exec, an environment that is made anew, and a root with nothing of the host's in it.

use super::{Attack, Control::*, root, user};

pub(crate) const SECRETS: &[Attack] = &[
    user("a descriptor that leaked", &["descriptors"], &["EBADF"], Prepared("exec 7</dev/null 9</etc/passwd")),
    root("a descriptor that leaked to root", &["descriptors"], &["EBADF"], Prepared("exec 7</dev/null 9</etc/passwd")),
    user(
        "a variable of the server's",
        &["environment", "RINGFENCE", "CARGO"],
        &["ENODATA"],
        Prepared("export RINGFENCE_KEY=x"),
    ),
    root(
        "a variable of the server's as root",
        &["environment", "RINGFENCE", "CARGO"],
        &["ENODATA"],
        Prepared("export RINGFENCE_KEY=x"),
    ),
    root(
        "the server's key in a file",
        &["find_text", "/", "{key}"],
        &["ENODATA"],
        Prepared("python3 {state}/../probe.py find_text {state} {key}; exit"),
    ),
    root("the server's state", &["list_path", "{state}"], &["ENOENT"], Host),
    root(
        "root's home on the host",
        &["list_and_nonempty", "/root"],
        &["ENODATA"],
        Prepared(
            "HOME=/root; touch /root/.ringfence-escape; trap 'rm -f /root/.ringfence-escape' EXIT; python3 {state}/../probe.py list_and_nonempty /root; exit",
        ),
    ),
    root(
        "the host's password hashes",
        &["contains", "/etc/shadow", "$"],
        &["ENODATA"],
        Prepared(
            "d=$(mktemp -d); echo 'u:$6$x:1' > $d/shadow; trap 'rm -r $d' EXIT; python3 {state}/../probe.py contains $d/shadow '$'; exit",
        ),
    ),
    root(
        "the host's machine id",
        &["nonempty", "/etc/machine-id"],
        &["ENODATA", "ENOENT"],
        Prepared("d=$(mktemp); echo id > $d; trap 'rm $d' EXIT; python3 {state}/../probe.py nonempty $d; exit"),
    ),
    root(
        "a socket of a container engine or of anybody",
        &["find_sockets", "/"],
        &["ENODATA"],
        HostAt(&["find_sockets", "{state}"]),
    ),
    root("a socket of the warden's", &["list_path", "{state}/run"], &["ENOENT"], Host),
];
