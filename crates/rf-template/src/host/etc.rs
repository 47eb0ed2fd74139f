//! The synthetic part of the tree: who is there, what the place is called, where packages come from.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{Node, Plan, list};

/// Longest file of the host that is read to decide something, bytes.
const READ_MAX: u64 = 1 << 20;

/// Puts every made file into the plan. It comes after the copied ones, so that a made file wins.
pub(super) fn synthetic(plan: &mut Plan, host: &Path) -> io::Result<()> {
    let shell =
        if host.join("usr/bin/bash").exists() || host.join("bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    accounts(plan, shell);
    skeleton(plan);
    names(plan);
    plan.file("etc/host.conf", 0o644, "multi on\n");
    plan.file("etc/networks", 0o644, "loopback 127.0.0.0\n");
    plan.file("etc/profile", 0o644, list::PROFILE);
    plan.file("etc/bash.bashrc", 0o644, list::BASHRC);
    plan.file("etc/environment", 0o644, "");
    plan.file("etc/fstab", 0o644, "# The root is mounted from outside.\n");
    plan.file("etc/shells", 0o644, "/bin/sh\n/bin/bash\n/usr/bin/sh\n/usr/bin/bash\n");
    plan.file("etc/subuid", 0o644, "");
    plan.file("etc/subgid", 0o644, "");
    // Empty means "not set yet" (machine-id(5)): programs make do, and nothing of the host's is told.
    plan.file("etc/machine-id", 0o444, "");
    plan.file("etc/default/locale", 0o644, "LANG=C.UTF-8\n");
    plan.file("etc/timezone", 0o644, "Etc/UTC\n");
    plan.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC");
    plan.link("var/run", "/run");
    plan.link("var/lock", "/run/lock");
    plan.link("var/spool/mail", "../mail");

    if host.join("usr/lib/os-release").exists() {
        plan.link("etc/os-release", "../usr/lib/os-release");
    } else {
        plan.file("etc/os-release", 0o644, text(host, "etc/os-release")?);
    }
    packages(plan, host)?;

    processors(plan, host)
}

/// What the place and its network are called.
pub(super) fn names(plan: &mut Plan) {
    plan.file("etc/hostname", 0o644, "sandbox\n");
    plan.file("etc/hosts", 0o644, list::HOSTS);
    plan.file("etc/resolv.conf", 0o644, "# This sandbox has no network, so there is no resolver.\n");
    plan.file("etc/nsswitch.conf", 0o644, list::NSSWITCH);
    plan.link("etc/mtab", "../proc/self/mounts");
}

/// How many processors there are, where C libraries and allocators look for it.
pub(super) fn processors(plan: &mut Plan, host: &Path) -> io::Result<()> {
    for name in ["online", "possible", "present"] {
        let path = format!("sys/devices/system/cpu/{name}");
        let list = text(host, &path)?;
        let valid = !list.trim().is_empty() && list.trim().bytes().all(|b| b.is_ascii_digit() || b"-,".contains(&b));
        plan.file(&path, 0o444, if valid { list } else { "0\n".to_owned() });
    }
    Ok(())
}

/// `passwd`, `group` and their shadows. No password fits.
pub(super) fn accounts(plan: &mut Plan, shell: &str) {
    let (mut passwd, mut shadow, mut group, mut gshadow) = (String::new(), String::new(), String::new(), String::new());
    for &(name, id, gid, home, login) in list::USERS {
        let shell = if login { shell } else { "/usr/sbin/nologin" };
        // Writing to a String cannot fail.
        let _ = writeln!(passwd, "{name}:x:{id}:{gid}:{name}:{home}:{shell}");
        let _ = writeln!(shadow, "{name}:*:20000:0:99999:7:::");
    }
    for &(name, gid) in list::GROUPS {
        let _ = writeln!(group, "{name}:x:{gid}:");
        let _ = writeln!(gshadow, "{name}:*::");
    }
    plan.file("etc/passwd", 0o644, passwd);
    plan.file("etc/group", 0o644, group);
    // 42 is the group `shadow`.
    plan.put("etc/shadow", Node::File { mode: 0o640, owner: 0, group: 42, bytes: shadow.into_bytes() });
    plan.put("etc/gshadow", Node::File { mode: 0o640, owner: 0, group: 42, bytes: gshadow.into_bytes() });
}

/// Start-up files of shells, for new users. The default user's home begins empty, so that it can be written without the
/// overlay; `/etc/profile` does what its `.profile` would.
fn skeleton(plan: &mut Plan) {
    for (path, text) in [
        (".profile", "[ -n \"$BASH_VERSION\" ] && [ -f \"$HOME/.bashrc\" ] && . \"$HOME/.bashrc\"\n"),
        (".bashrc", "# Commands of interactive shells.\n"),
    ] {
        plan.file(&format!("etc/skel/{path}"), 0o644, text);
    }
}

/// What apt and dpkg need to install packages that are there as files. Sources there are none: the host's own may name
/// private mirrors and carry credentials, and a sandbox has no way out by which to reach others.
fn packages(plan: &mut Plan, host: &Path) -> io::Result<()> {
    if !plan.nodes.contains_key(Path::new("var/lib/dpkg/status")) {
        return Ok(());
    }
    plan.file("etc/apt/apt.conf.d/90ringfence", 0o644, list::APT_CONF);
    let known_user = |name: &str| list::USERS.iter().any(|user| user.0 == name) || name.starts_with('#');
    let known_group = |name: &str| list::GROUPS.iter().any(|group| group.0 == name) || name.starts_with('#');
    let mut overrides = String::new();
    for line in text(host, "var/lib/dpkg/statoverride")?.lines() {
        let mut fields = line.split(' ');
        if fields.next().is_some_and(known_user) && fields.next().is_some_and(known_group) {
            overrides.push_str(line);
            overrides.push('\n');
        }
    }
    plan.file("var/lib/dpkg/statoverride", 0o644, overrides);
    Ok(())
}

/// A small text file of the host; empty when there is none or it is no UTF-8.
fn text(host: &Path, path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    match File::open(host.join(path)) {
        Ok(file) => file.take(READ_MAX).read_to_end(&mut bytes)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    Ok(String::from_utf8(bytes).unwrap_or_default())
}
