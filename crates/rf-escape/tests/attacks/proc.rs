//! Held by the mount namespace, covers over /proc, a /sys that is only files, and ids that are not mapped.

use super::{Attack, Control, Control::*, root, user};

/// Kernels are built without one or the other of these files: then the same probe on a file that is everywhere.
const READS: Control = HostOr { lacks: &["ENOENT"], inside: &["open_path", "/proc/version"] };
const WRITES: Control = HostOr { lacks: &["ENOENT"], inside: &["write_path", "/proc/self/comm"] };
/// The same, where an empty file says that there is none of it.
const FILLED: Control = HostOr { lacks: &["ENOENT", "ENODATA"], inside: &["nonempty", "/proc/meminfo"] };

/// The same, of a kernel that does not measure pressure.
const WATCHES: Control = HostOr { lacks: &["ENOENT", "EOPNOTSUPP"], inside: &["write_path", "/proc/self/comm"] };

const NOT: &[&str] = &["EROFS", "EACCES", "EPERM", "ENOENT"];

pub(crate) const PROC: &[Attack] = &[
    root("set the core pattern", &["write_path", "/proc/sys/kernel/core_pattern"], NOT, Host),
    root("set what a panic does", &["write_path", "/proc/sys/kernel/panic"], NOT, Host),
    root("drop the host's caches", &["write_path", "/proc/sys/vm/drop_caches"], NOT, Host),
    root("press a SysRq key", &["write_path", "/proc/sysrq-trigger"], NOT, WRITES),
    root("change a network setting", &["write_path", "/proc/sys/net/ipv4/ip_forward"], NOT, Host),
    root("change the host name through /proc", &["write_path", "/proc/sys/kernel/hostname"], NOT, Host),
    root("read the kernel's memory", &["open_path", "/proc/kcore"], NOT, READS),
    root("read the kernel's log", &["open_path_only", "/proc/kmsg"], NOT, Host),
    root("read the kernel's timers", &["nonempty", "/proc/timer_list"], &["EACCES", "ENODATA"], Host),
    root("read the kernel's addresses", &["kernel_addresses"], &["ENODATA"], Host),
    user("read the kernel's command line", &["nonempty", "/proc/cmdline"], &["ENODATA"], Host),
    user("count the host's control groups, and so the sandboxes", &["nonempty", "/proc/cgroups"], &["ENODATA"], FILLED),
    user("read the disks of the host", &["nonempty", "/proc/partitions"], &["ENODATA"], Host),
    user("read the disks' counters", &["nonempty", "/proc/diskstats"], &["ENODATA"], Host),
    user("read the interrupts", &["nonempty", "/proc/interrupts"], &["ENODATA"], Host),
    user("read the loaded modules", &["nonempty", "/proc/modules"], &["ENODATA", "ENOENT"], FILLED),
    user("read the keys", &["nonempty", "/proc/keys"], &["ENODATA"], FILLED),
    // Locks of open file descriptions have no process, so every sandbox would see those of all others.
    user("read what others have locked", &["contains", "/proc/locks", " 1380319234 1380319234\n"], &["ENODATA"], Host),
    user("read who has keys", &["nonempty", "/proc/key-users"], &["ENODATA"], Host),
    user(
        "have the kernel watch the host's load",
        &["write_path", "/proc/pressure/memory", "some 1000000 2000000\n"],
        NOT,
        WATCHES,
    ),
    root(
        "have the kernel watch the host's load, as root",
        &["write_path", "/proc/pressure/io", "some 1000000 2000000\n"],
        NOT,
        WATCHES,
    ),
    user("read the file systems' state", &["list_and_nonempty", "/proc/fs"], &["ENODATA"], Host),
    user(
        "find the host's path in the mounts",
        &["contains", "/proc/self/mountinfo", "{state}"],
        &["ENODATA"],
        Prepared(
            "exec 3<{state}; unshare -m true; mkdir -p {state}/../m; mount -t tmpfs none {state}/../m; trap 'umount {state}/../m' EXIT; python3 {state}/../probe.py contains /proc/self/mountinfo $(dirname {state}); exit",
        ),
    ),
    user(
        "find the host's cgroup path",
        &["contains", "/proc/self/cgroup", "ringfence"],
        &["ENODATA"],
        Prepared(
            "mkdir /sys/fs/cgroup/pids/ringfence-escape-control-$$; echo $$ > /sys/fs/cgroup/pids/ringfence-escape-control-$$/cgroup.procs; python3 {state}/../probe.py contains /proc/self/cgroup ringfence; echo $$ > /sys/fs/cgroup/pids/cgroup.procs; rmdir /sys/fs/cgroup/pids/ringfence-escape-control-$$; exit",
        ),
    ),
    user(
        "make oneself unkillable for want of memory",
        &["negative_oom_score", "-1000"],
        &["EACCES"],
        // Root of a host that was given no CAP_SYS_RESOURCE may not either.
        HostOr { lacks: &["EACCES"], inside: &["negative_oom_score", "1000"] },
    ),
    root(
        "write to a control of the kernel in /sys",
        &["write_path", "/sys/kernel/mm/transparent_hugepage/enabled"],
        &["ENOENT"],
        Host,
    ),
    root("see a control group's file", &["list_and_nonempty", "/sys/fs/cgroup"], &["ENODATA", "ENOENT"], Host),
    root("see the devices in /sys", &["list_path", "/sys/class"], &["ENOENT"], Host),
];
