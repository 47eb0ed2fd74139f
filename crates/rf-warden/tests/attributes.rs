//! Overlayfs's own attributes, set by a program where it writes without the overlay: what a snapshot makes of them.
//!
//! `/home/user` and `/tmp` are written directly while they are empty in all layers (`rf-sandbox/src/direct.rs`), so a
//! program can set `user.overlay.*` there, which through the overlay it cannot. Once what it wrote is a layer, the kernel
//! reads them. Whoever sets them may so hide or spoil files of its own; nothing of a layer below, nothing that was
//! deleted and nothing of the host comes to light by it, and nobody else's root changes.

mod support;

use rf_types::{DiskKind, SandboxSpec, units::MIB};
use rf_wire::warden::SnapshotWay;
use support::{Sandbox, Warden};

/// Makes directories and files with attributes below `home` and `tmp`, each with a file `mine` of its own in it.
const SET: &str = r#"
import os
FAR = [b"/etc", b"/", b"..", b"../../etc", b"/../../../../etc", b"\xff" * 300]
for place in ["/home/user", "/tmp"]:
    def made(name, **attributes):
        path = f"{place}/{name}"
        os.mkdir(path)
        open(f"{path}/mine", "w").write("mine")
        for key, value in attributes.items():
            os.setxattr(path, f"user.overlay.{key}", value)
            assert os.getxattr(path, f"user.overlay.{key}") == value
        return path
    made("plain")
    made("d")
    made("opaque", opaque=b"y")
    made("odd", opaque=b"?" * 200, impure=b"y", origin=b"\0" * 40, uuid=b"u" * 16)
    for number, to in enumerate(FAR):
        made(f"redirect{number}", redirect=to)
        made(f"both{number}", redirect=to, opaque=b"x")
        path = f"{place}/copy{number}"
        open(path, "w").write("mine")
        os.setxattr(path, "user.overlay.metacopy", b"")
        os.setxattr(path, "user.overlay.redirect", to + b"/passwd")
    # An empty file that is a whiteout, in a directory that says that there are such (since Linux 6.7).
    path = made("whiteouts", opaque=b"x")
    open(f"{path}/gone", "w").close()
    os.setxattr(f"{path}/gone", "user.overlay.whiteout", b"y")
    open(f"{path}/passwd", "w").close()
    os.setxattr(f"{path}/passwd", "user.overlay.whiteout", b"y")
print("set")
"#;

/// Prints what is below `home` and `tmp`: the names in each directory, the beginning of each file, or why not.
const LOOK: &str = r#"
import os
for place in ["/home/user", "/tmp"]:
    for name in sorted(os.listdir(place)):
        path = f"{place}/{name}"
        try:
            if os.path.isdir(path):
                print(path, ",".join(sorted(os.listdir(path))))
            else:
                print(path, open(path, "rb").read(60).decode(errors="replace").replace("\n", " "))
        except OSError as error:
            print(path, f"refused:{error.errno}")
"#;

/// What a root has that no program wrote.
const ROOT: &str = "ls / /etc /usr /usr/bin | md5sum; head -c 100000 /etc/passwd /etc/group | md5sum";

fn python(sandbox: &Sandbox, text: &str) -> String {
    sandbox.sh(&format!("cd /; python3 - <<'END'\n{text}\nEND"))
}

/// What may be seen of a directory or a file that somebody marked: what its maker put there, or a refusal.
fn is_the_makers(line: &str) -> bool {
    let (path, seen) = line.split_once(' ').unwrap_or((line.trim(), ""));
    let own = match path.rsplit('/').next().unwrap() {
        "whiteouts" => ["mine", "gone,mine,passwd"].contains(&seen),
        name if name.starts_with("copy") => ["mine", ""].contains(&seen),
        _ => ["mine", ""].contains(&seen),
    };
    own || seen.starts_with("refused:")
}

fn attributes_hide_at_most_what_is_the_setters(disk: DiskKind) {
    let warden = Warden::start();
    let mut server = warden.connect();
    let mut spec = SandboxSpec { disk, ..SandboxSpec::standard(600_000) };
    spec.limits.memory_bytes_max = 512 * MIB;
    let before = server.create(&spec);
    let untouched = before.sh(ROOT);
    // What was there once, and was deleted: in one layer, and by the next.
    before.sh("mkdir ~/d /tmp/d; echo secret > ~/d/secret; echo secret > /tmp/d/secret");
    server.snapshot(before.id());
    before.sh("rm -r ~/d /tmp/d");
    let deleted = server.snapshot(before.id());

    let source = server.create_from(&spec, deleted.id);
    let direct = "for dir in ~ /tmp; do test $(stat -c %d $dir) = $(stat -c %d /dev/shm) && echo direct; done | xargs";
    assert_eq!(source.sh(direct), "direct direct");
    assert_eq!(python(&source, SET), "set");
    // Control: until then nothing is hidden, and nothing else is there.
    let seen = python(&source, LOOK);
    assert!(seen.lines().all(is_the_makers) && !seen.contains("refused"), "{seen}");
    assert!(seen.contains("/tmp/whiteouts gone,mine,passwd"), "{seen}");

    let snapshot = server.snapshot(source.id());
    assert_eq!(snapshot.way, SnapshotWay::Pushed);
    let mut hidden = String::new();
    // As the kernel reads them where they were set, and as they are copied to disk.
    for durable in [false, true] {
        if durable {
            server.durable(snapshot.id);
        }
        let fork = server.create_from(&spec, snapshot.id);
        let own = python(&source, LOOK);
        let forks = python(&fork, LOOK);
        for (whose, seen) in [("source", &own), ("fork", &forks)] {
            let strange: Vec<_> = seen.lines().filter(|line| !is_the_makers(line)).collect();
            assert!(strange.is_empty(), "{whose}, durable {durable}: {strange:#?}");
            for plain in ["/home/user/plain mine", "/tmp/plain mine", "/home/user/d mine", "/tmp/d mine"] {
                assert!(seen.contains(plain), "{whose}: {seen}");
            }
        }
        hidden += &forks;
        assert_eq!(fork.sh(ROOT), untouched);
        // Through the overlay none can be set, not by `root` either; or what is set is no more than a name.
        let tries = "import os\nfor path in ['/etc', '/usr/bin', '/home/user/plain', '/']:\n  for key in ['opaque', \
            'redirect', 'whiteout', 'metacopy']:\n    try: os.setxattr(path, 'user.overlay.' + key, b'y')\n    except \
            OSError: pass\n";
        fork.sh_as("root", &format!("python3 - <<'END'\n{tries}\nEND"));
        let again = server.snapshot(fork.id());
        let second = server.create_from(&spec, again.id);
        assert_eq!(second.sh(ROOT), untouched, "durable {durable}");
        let seen = python(&second, LOOK);
        assert!(seen.lines().all(is_the_makers) && seen.contains("/home/user/plain mine"), "{seen}");
        for gone in [fork.id(), second.id()] {
            server.done(rf_wire::warden::Order::Destroy { id: gone });
        }
    }
    // Control: the kernel did read them.
    assert!(hidden.contains("/tmp/whiteouts mine\n") || hidden.contains("refused:"), "{hidden}");
    // Nobody else's root is another.
    let other = server.create(&spec);
    assert_eq!((other.sh(ROOT), python(&other, LOOK)), (untouched, String::new()));
    warden.stop();
}

#[test]
fn attributes_hide_at_most_what_is_the_setters_in_memory() {
    attributes_hide_at_most_what_is_the_setters(DiskKind::Memory);
}

#[test]
fn attributes_hide_at_most_what_is_the_setters_on_an_image() {
    attributes_hide_at_most_what_is_the_setters(DiskKind::Image);
}
