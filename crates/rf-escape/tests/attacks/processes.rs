//! Held by the pid namespace, hidepid and init's own protection.

use super::{Attack, Control, Control::*, root, user};

const HIDDEN: &[&str] = &["ENOENT", "EACCES", "EPERM"];

/// A pid namespace whose process 1 is a shell that nothing protects.
const OPEN: Control = Prepared("exec unshare --pid --fork --mount-proc bash -c 'python3 \"$@\"; exit' control \"$@\"");

pub(crate) const PROCESSES: &[Attack] = &[
    user("see a process of the host", &["see_process", "{marker}"], &["ESRCH"], Host),
    user("signal a process of the host", &["signal_process", "{victim}"], &["ESRCH"], Host),
    root("signal a process of the host as root", &["signal_process", "{victim}"], &["ESRCH"], Host),
    user("trace a process of the host", &["ptrace_process", "{victim}"], &["ESRCH"], Host),
    root("trace a process of the host as root", &["ptrace_process", "{victim}"], &["ESRCH"], Host),
    user("read the memory of a process of the host", &["read_process_memory", "{victim}"], &["ESRCH"], Host),
    user("hold a process of the host by a pidfd", &["pidfd_of", "{victim}"], &["ESRCH"], Host),
    user("list the descriptors of a process of the host", &["list_path", "/proc/{victim}/fd"], &["ENOENT"], Host),
    user("read the environment of process 1", &["open_path", "/proc/1/environ"], HIDDEN, OPEN),
    root("read the environment of process 1 as root", &["open_path", "/proc/1/environ"], HIDDEN, OPEN),
    root("write the memory of process 1", &["write_path", "/proc/1/mem"], HIDDEN, OPEN),
    root("read the memory of process 1", &["open_path_only", "/proc/1/mem"], HIDDEN, OPEN),
    root("list the descriptors of process 1", &["list_path", "/proc/1/fd"], HIDDEN, OPEN),
    root("follow the root of process 1", &["readlink_path", "/proc/1/root"], HIDDEN, OPEN),
    root("trace process 1", &["ptrace_process", "1"], &["EPERM"], OPEN),
    user("trace process 1 as the user", &["ptrace_process", "1"], &["EPERM"], OPEN),
    root("take process 1 its descriptors by a limit", &["limit_process", "1"], &["EPERM"], OPEN),
    user("take process 1 its descriptors as the user", &["limit_process", "1"], &["EPERM"], OPEN),
    root("hold the program of process 1 open (CVE-2019-5736)", &["open_path_only", "/proc/1/exe"], HIDDEN, OPEN),
    root(
        "enter the mount namespace of process 1",
        &["enter_namespace", "/proc/1/ns/mnt"],
        HIDDEN,
        HostAt(&["enter_namespace", "/proc/{victim}/ns/mnt"]),
    ),
    // The kernel itself holds this one, for every process 1 from within its namespace: there is none to be had without.
    root("end process 1", &["end_process_1"], &["EPERM"], Inside(&["end_own_child"])),
    user("take real-time priority", &["realtime"], &["EPERM"], Host),
    root("take real-time priority as root", &["realtime"], &["EPERM"], Host),
    user("take a higher priority", &["negative_nice"], &["EPERM", "EACCES"], Host),
    root("take a higher priority as root", &["negative_nice"], &["EPERM", "EACCES"], Host),
    root(
        "raise the hard limit of open files",
        &["raise_limit"],
        &["EPERM"],
        // Root of a host that was given no CAP_SYS_RESOURCE may not either.
        HostOr { lacks: &["EPERM"], inside: &["lower_limit"] },
    ),
];
