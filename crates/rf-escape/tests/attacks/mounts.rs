//! Held by the user and mount namespaces, the capability bounding set, the call list and Landlock.

use super::{Attack, Control::*, root, user};

const NO: &[&str] = &["EPERM", "ENOSYS"];

pub(crate) const MOUNTS: &[Attack] = &[
    user("mount", &["mount_tmpfs"], NO, Private("-m")),
    root("mount as root", &["mount_tmpfs"], NO, Private("-m")),
    root("make /dev writable", &["remount_writable", "/dev"], NO, Private("-m")),
    root(
        "make /proc/sys writable",
        &["remount_writable", "/proc/sys"],
        NO,
        Prepared("exec unshare -m bash -c 'mount --bind /proc/sys /proc/sys; exec python3 \"$@\"' control \"$@\""),
    ),
    root(
        "unmount a cover of /proc",
        &["unmount", "/proc/cmdline"],
        NO,
        Prepared("exec unshare -m bash -c 'mount --bind /dev/null /proc/cmdline; exec python3 \"$@\"' control \"$@\""),
    ),
    root("change the root", &["change_root"], NO, Host),
    user("change the root as the user", &["change_root"], NO, Host),
    root("pivot the root", &["pivot"], NO, Private("-m")),
    root("take a copy of a mount", &["open_tree"], NO, Private("-m")),
    root("make a file system", &["fs_open"], NO, Host),
    root("pick a file system up", &["syscall", "433", "-100", "0", "0"], NO, Host),
    root("move a mount", &["syscall", "429", "-1", "0", "-1", "0", "0"], NO, Host),
    root("set a mount's attributes", &["syscall", "442", "-1", "0", "0", "0", "0"], NO, Host),
    root("list mounts by their ids", &["syscall", "458", "0", "0", "0", "0"], NO, Host),
    user("make a user namespace", &["unshare", "0x10000000"], NO, Host),
    user("make a user and a mount namespace", &["unshare", "0x10020000"], NO, Host),
    root("make a user namespace as root", &["unshare", "0x10000000"], NO, Host),
    root("make a mount namespace", &["unshare", "0x20000"], NO, Host),
    root("make a pid namespace", &["unshare", "0x20000000"], NO, Host),
    root("make a network namespace", &["unshare", "0x40000000"], NO, Host),
    root("make an IPC namespace", &["unshare", "0x8000000"], NO, Host),
    root("make a UTS namespace", &["unshare", "0x4000000"], NO, Host),
    root("make a cgroup namespace", &["unshare", "0x2000000"], NO, Host),
    root("make a time namespace", &["unshare", "0x80"], NO, Host),
    user("clone into a user namespace", &["clone_with", "0x10000000"], NO, Host),
    root("clone into a network namespace", &["clone_with", "0x40000000"], NO, Host),
    user("clone3 into a user namespace", &["clone3_with", "0x10000000"], NO, Host),
    user("clone3 at all, whose flags no filter can read", &["clone3_with", "0"], &["ENOSYS"], Host),
    user("enter a namespace by a pidfd", &["syscall", "308", "-1", "0"], NO, Host),
];
