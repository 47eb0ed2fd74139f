//! Held by no_new_privs, the capability bounding set, the user namespace, nosuid and nodev mounts, and Landlock.

use super::{Attack, Control::*, root, user};

pub(crate) const IDENTITY: &[Attack] = &[
    user("become root by a call", &["set_uid", "0"], &["EPERM"], Host),
    user("take root's group", &["set_groups"], &["EPERM"], Host),
    user(
        "become root by a set-user-id program",
        &["run_set_user_id", "/tmp/set-user-id"],
        &["EPERM"],
        Prepared(
            "cp /usr/bin/id /tmp/ringfence-set-user-id; chown 65534 /tmp/ringfence-set-user-id; chmod 4755 /tmp/ringfence-set-user-id; trap 'rm -f /tmp/ringfence-set-user-id' EXIT; python3 {state}/../probe.py run_set_user_id /tmp/ringfence-set-user-id; exit",
        ),
    ),
    root("take an id that is not mapped", &["set_uid", "70000"], &["EINVAL"], Host),
    root("change the host name", &["set_hostname"], &["EPERM", "ENOSYS"], Private("-u")),
    user("give a file to root", &["change_owner"], &["EPERM"], Host),
    user("make a character device", &["make_device", "c", "1", "1"], &["EPERM", "EACCES"], Host),
    root("make the device of the memory", &["make_device", "c", "1", "1"], &["EPERM", "EACCES"], Host),
    root("make a block device", &["make_device", "b", "7", "0"], &["EPERM", "EACCES"], Host),
    user("make the whiteout device, which everybody may elsewhere", &["make_device", "c", "0", "0"], &["EPERM"], Host),
    root("make the whiteout device as root", &["make_device", "c", "0", "0"], &["EPERM"], Host),
    root(
        "open the host's memory",
        &["open_path_only", "/dev/mem"],
        &["ENOENT"],
        // Kernels are built without it.
        HostOr { lacks: &["ENOENT", "ENXIO"], inside: &["open_path_only", "/dev/zero"] },
    ),
    root("open the host's disk", &["open_path_only", "/dev/loop0"], &["ENOENT"], Host),
    root("open KVM", &["open_path_only", "/dev/kvm"], &["ENOENT"], Host),
    root("open FUSE", &["open_path_only", "/dev/fuse"], &["ENOENT"], Host),
    root("open the tunnel device", &["open_path_only", "/dev/net/tun"], &["ENOENT"], Host),
    root("open the loop control", &["open_path_only", "/dev/loop-control"], &["ENOENT"], Host),
    root("open the kernel's log device", &["open_path_only", "/dev/kmsg"], &["ENOENT"], Host),
    root("set the clock", &["set_clock"], &["EPERM", "ENOSYS"], Host),
    root("send a packet of one's own making", &["socket_of", "2", "3", "1"], &["EPERM", "ESOCKTNOSUPPORT"], Host),
    user("listen on port 80 as the user", &["bind_port", "80"], &["EACCES"], Private("-n")),
];
