//! Held by the pid namespace, hidepid and init's own protection.

use super::{Attack, Control::*, root, user};

pub(crate) const PROCESSES: &[Attack] = &[
    user("see a process of the host", &["see_process", "{marker}"], &["ESRCH"], Host),
    user("signal a process of the host", &["signal_process", "{victim}"], &["ESRCH"], Host),
    root("signal a process of the host as root", &["signal_process", "{victim}"], &["ESRCH"], Host),
    user("trace a process of the host", &["ptrace_process", "{victim}"], &["ESRCH"], Host),
    root("trace a process of the host as root", &["ptrace_process", "{victim}"], &["ESRCH"], Host),
    user("read the memory of a process of the host", &["read_process_memory", "{victim}"], &["ESRCH"], Host),
    user("hold a process of the host by a pidfd", &["pidfd_of", "{victim}"], &["ESRCH"], Host),
    user("list the descriptors of a process of the host", &["list_path", "/proc/{victim}/fd"], &["ENOENT"], Host),
    user(
        "read the environment of process 1",
        &["open_path", "/proc/1/environ"],
        &["ENOENT", "EACCES", "EPERM"],
        Inside(&["open_path", "/proc/self/environ"]),
    ),
    root(
        "read the environment of process 1 as root",
        &["open_path", "/proc/1/environ"],
        &["ENOENT", "EACCES", "EPERM"],
        Inside(&["open_path", "/proc/self/environ"]),
    ),
    root(
        "write the memory of process 1",
        &["open_path", "/proc/1/mem", "r+b"],
        &["ENOENT", "EACCES", "EPERM"],
        Inside(&["open_path_only", "/proc/self/mem"]),
    ),
    root(
        "read the memory of process 1",
        &["open_path", "/proc/1/mem"],
        &["ENOENT", "EACCES", "EPERM"],
        Inside(&["open_path", "/proc/self/status"]),
    ),
    root(
        "list the descriptors of process 1",
        &["list_path", "/proc/1/fd"],
        &["ENOENT", "EACCES", "EPERM"],
        Inside(&["list_path", "/proc/self/fd"]),
    ),
    root(
        "follow the root of process 1",
        &["readlink_path", "/proc/1/root"],
        &["ENOENT", "EACCES", "EPERM"],
        Inside(&["readlink_path", "/proc/self/root"]),
    ),
    root("trace process 1", &["ptrace_process", "1"], &["EPERM"], Inside(&["ptrace_own_child"])),
    user("trace process 1 as the user", &["ptrace_process", "1"], &["EPERM"], Inside(&["ptrace_own_child"])),
    root(
        "enter the mount namespace of process 1",
        &["enter_namespace", "/proc/1/ns/mnt"],
        &["ENOENT", "EACCES", "EPERM"],
        HostAt(&["enter_namespace", "/proc/{victim}/ns/mnt"]),
    ),
    root("end process 1", &["end_process_1"], &["EPERM"], Inside(&["end_own_child"])),
    user("take real-time priority", &["realtime"], &["EPERM"], Host),
    root("take real-time priority as root", &["realtime"], &["EPERM"], Host),
    user("take a higher priority", &["negative_nice"], &["EPERM", "EACCES"], Host),
    root("take a higher priority as root", &["negative_nice"], &["EPERM", "EACCES"], Host),
    root("raise the hard limit of open files", &["raise_limit"], &["EPERM"], Inside(&["lower_limit"])),
];
