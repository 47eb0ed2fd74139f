//! The `host` template: what must be in its tree, and what must never be.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use rf_template::host::{HostTemplate, Plan, build_base, list};

/// Every file of a tree, links not followed.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

/// Files, links and names of the tree in which one of these occurs.
fn mentions(root: &Path, needles: &[&str]) -> Vec<String> {
    let has = |hay: &[u8]| {
        let hay = String::from_utf8_lossy(hay);
        needles.iter().any(|needle| hay.contains(needle))
    };
    let mut found = Vec::new();
    for path in walk(root) {
        let inner = path.strip_prefix(root).unwrap();
        let meta = path.symlink_metadata().unwrap();
        let bytes = if meta.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if meta.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if has(inner.as_os_str().as_bytes()) || has(&bytes) {
            found.push(inner.display().to_string());
        }
    }
    found
}

fn put(root: &Path, path: &str, text: &str) {
    let at = root.join(path);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(&at, text).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o644)).unwrap();
}

/// A host with `SECRET` wherever a real one keeps something of its own, and `PUBLIC` in what is copied.
fn fake_host(root: &Path) {
    for path in [
        "etc/passwd",
        "etc/group",
        "etc/shadow",
        "etc/hosts",
        "etc/hostname",
        "etc/machine-id",
        "etc/environment",
        "etc/resolv.conf",
        "etc/gitconfig",
        "etc/npmrc",
        "etc/pip.conf",
        "etc/krb5.conf",
        "etc/ld.so.preload",
        "etc/profile",
        "etc/profile.d/company.sh",
        "etc/bash.bashrc",
        "etc/fstab",
        "etc/crontab",
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssl/private/server.key",
        "etc/ssl/certs/company.pem",
        "etc/ssl/certs/ca-certificates.crt",
        "etc/ssl/certs/java/cacerts",
        "etc/apt/sources.list",
        "etc/apt/auth.conf.d/mirror.conf",
        "etc/apt/apt.conf.d/99proxy",
        "etc/skel/.netrc",
        "etc/wgetrc",
        "etc/security/opasswd",
        "etc/ansible/hosts",
        "root/.ssh/id_ed25519",
        "home/alice/notes",
        "var/log/auth.log",
        "var/lib/dpkg/available",
        "var/cache/debconf/passwords.dat",
        "var/lib/dbus/machine-id",
        "opt/product/key",
        "run/secret",
        "usr/local/share/ca-certificates/company.crt",
    ] {
        put(root, path, "SECRET\n");
    }
    for path in
        ["etc/ld.so.cache", "etc/services", "etc/pam.d/su", "var/lib/dpkg/status", "etc/java-21-openjdk/jvm.cfg"]
    {
        put(root, path, "PUBLIC\n");
    }
    put(root, "var/lib/dpkg/statoverride", "root SECRETGROUP 755 /usr/bin/x\nroot games 2755 /usr/games/PUBLIC\n");
    put(root, "usr/lib/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n");
    put(root, "usr/share/ca-certificates/mozilla/Root.crt", "PUBLIC ROOT");
    symlink("/usr/share/ca-certificates/mozilla/Root.crt", root.join("etc/ssl/certs/Root.pem")).unwrap();
    symlink("Root.pem", root.join("etc/ssl/certs/0123abcd.0")).unwrap();
    symlink("/usr/local/share/ca-certificates/company.crt", root.join("etc/ssl/certs/SECRET.pem")).unwrap();
    symlink("SECRET.pem", root.join("etc/ssl/certs/4567abcd.0")).unwrap();
    fs::create_dir_all(root.join("etc/alternatives")).unwrap();
    symlink("/usr/bin/mawk", root.join("etc/alternatives/awk")).unwrap();
    symlink("/home/alice/SECRET", root.join("etc/alternatives/tool")).unwrap();
    symlink("../../../../SECRET", root.join("etc/alternatives/climber")).unwrap();
    // On a listed tree, but the host keeps it from its users.
    put(root, "etc/pam.d/own", "SECRET");
    fs::set_permissions(root.join("etc/pam.d/own"), fs::Permissions::from_mode(0o640)).unwrap();
    put(root, "etc/java-21-openjdk/closed/file", "SECRET");
    fs::set_permissions(root.join("etc/java-21-openjdk/closed"), fs::Permissions::from_mode(0o750)).unwrap();
    for dir in ["usr/bin", "usr/lib64", "lib32", "sys/devices/system/cpu"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/home/alice/SECRET", root.join("lib64")).unwrap();
    put(root, "sys/devices/system/cpu/online", "0-3\n");
    put(root, "sys/devices/system/cpu/possible", "SECRET\n");
}

#[test]
fn nothing_of_the_host_but_the_lists_gets_in() {
    let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fake_host(host.path());
    let made = Plan::of(host.path(), &[]).unwrap().build(dir.path()).unwrap();
    // Control: the search finds what was copied, so that finding nothing means something.
    let public = mentions(&made.root, &["PUBLIC"]);
    for path in [
        "etc/ld.so.cache",
        "etc/services",
        "etc/pam.d/su",
        "var/lib/dpkg/status",
        "var/lib/dpkg/statoverride",
        "etc/java-21-openjdk/jvm.cfg",
        "etc/ssl/certs/ca-certificates.crt",
    ] {
        assert!(public.iter().any(|found| found == path), "{path} is missing; found {public:?}");
    }
    assert_eq!(mentions(&made.root, &["SECRET"]), Vec::<String>::new());
    let link = |path: &str| fs::read_link(made.root.join(path)).ok();
    assert_eq!(link("bin"), Some("usr/bin".into()));
    assert_eq!(link("lib64"), None);
    assert_eq!(link("etc/alternatives/awk"), Some("/usr/bin/mawk".into()));
    assert_eq!(link("etc/ssl/certs/0123abcd.0"), Some("Root.pem".into()));
    assert_eq!(fs::read_to_string(made.root.join("sys/devices/system/cpu/online")).unwrap(), "0-3\n");
    assert_eq!(fs::read_to_string(made.root.join("sys/devices/system/cpu/possible")).unwrap(), "0\n");
    let binds: Vec<_> = made.binds.iter().map(|bind| bind.to.to_str().unwrap()).collect();
    assert_eq!(binds, ["/usr", "/lib32"]);
}

#[test]
fn the_same_host_gives_the_same_tree_and_a_changed_one_another() {
    let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fake_host(host.path());
    let first = Plan::of(host.path(), &[]).unwrap().build(dir.path()).unwrap();
    let inode = first.root.metadata().unwrap().ino();
    let again = Plan::of(host.path(), &[]).unwrap().build(dir.path()).unwrap();
    assert_eq!(first, again);
    assert_eq!(again.root.metadata().unwrap().ino(), inode, "the tree was made again");
    put(host.path(), "etc/services", "PUBLIC and longer\n");
    let other = Plan::of(host.path(), &[]).unwrap().build(dir.path()).unwrap();
    assert_ne!(other.digest, first.digest);
    assert_eq!(fs::read_to_string(other.root.join("etc/services")).unwrap(), "PUBLIC and longer\n");
    assert_eq!(fs::read_to_string(first.root.join("etc/services")).unwrap(), "PUBLIC\n");
    assert_eq!(other.others(dir.path()).unwrap(), [first.root]);
}

#[test]
fn a_build_that_was_cut_off_is_removed_by_the_next() {
    let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fake_host(host.path());
    fs::create_dir_all(dir.path().join(".host-0123.part/etc")).unwrap();
    let made = Plan::of(host.path(), &[]).unwrap().build(dir.path()).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [made.root]);
}

#[test]
fn a_file_that_turned_private_after_the_plan_is_refused_and_nothing_is_left() {
    let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fake_host(host.path());
    let plan = Plan::of(host.path(), &[]).unwrap();
    fs::set_permissions(host.path().join("etc/services"), fs::Permissions::from_mode(0o600)).unwrap();
    let error = plan.build(dir.path()).unwrap_err();
    assert!(error.to_string().contains("`etc/services`"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // Control: with the old mode the same plan is built.
    fs::set_permissions(host.path().join("etc/services"), fs::Permissions::from_mode(0o644)).unwrap();
    plan.build(dir.path()).unwrap();
}

#[test]
fn extra_directories_get_a_mount_point_where_nothing_of_the_sandbox_stands() {
    let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fake_host(host.path());
    let with = |from: &str, to: &str| Plan::of(host.path(), &[(from.into(), to.into())]);
    let made = with("/opt/product", "/opt/a/b").unwrap().build(dir.path()).unwrap();
    assert!(made.root.join("opt/a/b").is_dir());
    let bind = made.binds.last().unwrap();
    assert_eq!(
        (bind.from.as_path(), bind.to.as_path()),
        (&*host.path().canonicalize().unwrap().join("opt/product"), Path::new("/opt/a/b"))
    );
    let file = with("/opt/product/key", "/srv/key").unwrap().build(dir.path()).unwrap();
    // A file's mount point is an empty file: the content comes with the mount.
    assert_eq!(fs::read(file.root.join("srv/key")).unwrap(), b"");
    for to in ["relative", "/", "/opt/../etc/x", "/etc/x", "/proc/x", "/usr/share/x", "/dev", "/var/lib/dpkg/status/x"]
    {
        assert!(with("/opt/product", to).is_err(), "`{to}` was taken");
    }
    assert!(with("/opt/absent", "/opt/a").is_err());
}

#[test]
fn the_base_of_images_has_what_a_sandbox_needs_and_nothing_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let base = build_base(dir.path()).unwrap();
    assert_eq!(build_base(dir.path()).unwrap(), base);
    for (path, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("tmp", 0o1777),
        ("run", 0o755),
        ("home/user", 0o755),
        ("root", 0o700),
    ] {
        assert_eq!(base.join(path).metadata().unwrap().mode() & 0o7777, mode, "{path}");
    }
    assert!(fs::read_to_string(base.join("etc/passwd")).unwrap().contains("user:x:1000:1000:"));
    let mut top: Vec<_> = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    top.sort();
    assert_eq!(top, ["dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var", "workspace"]);
    // No copy of anything: small files that are made, all of them.
    assert!(walk(&base).iter().all(|path| path.symlink_metadata().unwrap().len() <= 4096));
    // The host's tree beside it is another, and neither takes the other for an old one.
    let host = HostTemplate::build(dir.path(), &[]).unwrap();
    assert_eq!(host.others(dir.path()).unwrap(), Vec::<PathBuf>::new());
    assert!(base.is_dir());
}

#[test]
fn every_listed_entry_has_a_reason_and_a_path_below_etc_or_var() {
    for entry in list::COPIED {
        assert!(entry.why.len() > 10, "{} has no reason", entry.path);
        assert!(entry.path.starts_with("etc/") || entry.path.starts_with("var/lib/"), "{}", entry.path);
        for never in ["etc/shadow", "etc/passwd", "etc/ssh", "etc/hosts", "etc/machine-id", "etc/environment"] {
            assert!(!entry.path.starts_with(never), "{} must never be copied", entry.path);
        }
    }
}

#[test]
fn the_real_host_gives_a_root_that_tells_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = HostTemplate::build(dir.path(), &[]).unwrap();
    let mut needles: Vec<String> = Vec::new();
    let mut need = |text: &str| {
        // Shorter ones occur by chance in a package's description.
        if text.len() >= 12 {
            needles.push(text.to_owned());
        }
    };
    for file in ["/etc/machine-id", "/etc/hostname", "/proc/sys/kernel/random/boot_id"] {
        need(fs::read_to_string(file).unwrap_or_default().trim());
    }
    for line in fs::read_to_string("/etc/shadow").unwrap_or_default().lines() {
        need(line.split(':').nth(1).unwrap_or_default());
    }
    for (_, value) in std::env::vars() {
        // Values such as `/usr/bin/cc`, `/etc/ssl/openssl.cnf` or `en_US.UTF-8` are words of the distribution.
        if !["/usr/", "/etc/"].iter().any(|start| value.starts_with(start))
            && !value.contains("UTF-8")
            && value.len() >= 20
        {
            need(&value);
        }
    }
    for cert in fs::read_dir("/usr/local/share/ca-certificates").into_iter().flatten() {
        let text = fs::read_to_string(cert.unwrap().path()).unwrap_or_default();
        need(text.lines().nth(3).unwrap_or_default());
    }
    need("/root/.ssh");
    assert!(!needles.is_empty());
    let needles: Vec<&str> = needles.iter().map(String::as_str).collect();
    assert_eq!(mentions(&made.root, &needles), Vec::<String>::new());
    // Control: the same search finds a line that is known to be there.
    assert!(mentions(&made.root, &["user:x:1000:1000:"]).contains(&"etc/passwd".to_owned()));

    for (path, mode) in [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("home/user", 0o755), ("sys", 0o555)] {
        assert_eq!(made.root.join(path).metadata().unwrap().mode() & 0o7777, mode, "{path}");
    }
    for path in walk(&made.root) {
        let meta = path.symlink_metadata().unwrap();
        assert!(meta.is_dir() || meta.is_symlink() || meta.is_file(), "{} is special", path.display());
        assert!(meta.is_dir() || meta.mode() & 0o6000 == 0, "{} has set-user-id", path.display());
        if rustix::process::geteuid().is_root() {
            let user = path.starts_with(made.root.join("home/user")) || path == made.root.join("workspace");
            assert_eq!(meta.uid(), if user { 1000 } else { 0 }, "{}", path.display());
        }
    }
    // os-release is a link into /usr, which is mounted later: what it leads to is the host's own.
    let release = fs::read_link(made.root.join("etc/os-release")).unwrap();
    assert_eq!(release, Path::new("../usr/lib/os-release"));
    assert!(fs::read_to_string("/usr/lib/os-release").unwrap().contains("ID="));
    for (name, to) in ["bin", "sbin", "lib", "lib64"].map(|name| (name, fs::read_link(Path::new("/").join(name)).ok()))
    {
        assert_eq!(fs::read_link(made.root.join(name)).ok(), to, "{name}");
    }
}

/// Programs of the host run in the tree with its `/usr` bound: what they need below /etc is there. In a mount namespace
/// of its own (and a user namespace when not root), so that no mount outlives the test.
#[test]
fn programs_of_the_host_run_in_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let made = HostTemplate::build(dir.path(), &[]).unwrap();
    let mut script = String::from("set -e\n");
    for bind in &made.binds {
        script += &format!("mount --rbind '{}' '{}{}'\n", bind.from.display(), made.root.display(), bind.to.display());
    }
    script += &format!(
        "cd '{0}'\nmount --rbind /proc proc\nmount -t tmpfs none dev\nfor f in null urandom; do touch dev/$f; mount --bind /dev/$f dev/$f; done\nexec env -i PATH=/usr/bin:/bin \
         HOME=/root \"$(command -v chroot || echo /usr/sbin/chroot)\" . /bin/sh -c \"$1\"",
        made.root.display()
    );
    let run = |command: &str| {
        let mut unshare = std::process::Command::new("unshare");
        unshare.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" });
        let out = unshare.args(["sh", "-c", &script, "sh", command]).output().expect("unshare(1) is needed");
        assert!(out.status.success(), "`{command}`: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(run("awk 'BEGIN { print 6 * 7 }'"), "42\n");
    assert_eq!(run("id -un; id -un 1000; cat /etc/hostname"), "root\nuser\nsandbox\n");
    assert!(run("ldconfig -p 2>/dev/null || /sbin/ldconfig -p").contains("libc.so.6"));
    // The rest is asked of those programs that the host has below /usr.
    for (program, command, expect) in [
        (
            "python3",
            "python3 -c 'import ssl, sqlite3, mimetypes; print(mimetypes.guess_type(\"a.html\")[0])'",
            "text/html",
        ),
        ("perl", "perl -MSocket -e 'print 6 * 7'", "42"),
        (
            "git",
            "git --version && git init -q /tmp/r && cd /tmp/r && git -c user.name=a -c user.email=a@b commit -q \
                 --allow-empty -m first && git log --format=%s",
            "first",
        ),
        ("node", "node -e 'console.log(6 * 7)'", "42"),
        ("npm", "npm --version", "."),
        (
            "gcc",
            "printf 'int puts(const char*);int main(){puts(\"made\");}' >/tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a",
            "made",
        ),
        ("cc", "cc --version", "."),
        ("java", "java -version 2>&1", "ersion"),
        (
            "openssl",
            "openssl version && openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt \
                     \"$(ls /etc/ssl/certs/*.pem | head -1)\"",
            "OK",
        ),
        ("dpkg", "dpkg -l dpkg && dpkg --audit", "dpkg"),
        ("apt-get", "apt-get check", "Reading"),
    ] {
        if Path::new("/usr/bin").join(program).exists() {
            let out = run(command);
            assert!(out.contains(expect), "`{command}` printed {out}");
        }
    }
}
