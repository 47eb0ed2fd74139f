//! Hosts that lack something: what cannot be held is refused or said by name, and never left out in silence.

mod support;

use std::{fs, process::Command};

use serde_json::Value;
use support::{Ran, System};

/// Becomes the binary on a host whose kernel has no Landlock: `landlock_create_ruleset` (444) answers ENOSYS.
const NO_LANDLOCK: &str = r#"#!/usr/bin/env python3
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *line) for line in code)
buffer = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program, len(program)), 0, 0) != 0:
    sys.exit(f"no filter: {ctypes.get_errno()}")
os.execv("BINARY", ["BINARY"] + sys.argv[1:])
"#;

/// Becomes the binary on a host without a version 2 tree of control groups.
const NO_UNIFIED_TREE: &str = r#"#!/bin/sh
exec unshare --mount sh -c '
    grep " - cgroup2 " /proc/self/mountinfo | cut -d " " -f 5 | while read -r point; do umount "$point" || exit 9; done
    exec BINARY "$@"' ringfence "$@"
"#;

/// Becomes the binary on a host with a domain name (domainname(1)).
const WITH_DOMAIN: &str = r#"#!/bin/sh
exec unshare --uts sh -c 'echo corp.example > /proc/sys/kernel/domainname; exec BINARY "$@"' ringfence "$@"
"#;

fn fault(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stderr).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn layer(made: &Value, name: &str) -> Value {
    let layers = made["enforcement"]["layers"].as_array().unwrap();
    layers.iter().find(|layer| layer["layer"] == name).unwrap().clone()
}

#[test]
fn without_landlock_sandboxes_and_layers_are_refused_by_name() {
    let system = System::start_under(NO_LANDLOCK);
    let refused = system.run(&["--json", "create"]);
    refused.expect(1);
    assert_eq!(fault(&refused)["code"], "layer_unavailable", "{refused:?}");
    assert!(fault(&refused)["message"].as_str().unwrap().contains("`landlock`"), "{refused:?}");
    let made = system.json(&["create", "--accept-missing", "landlock"]);
    assert_eq!(layer(&made, "landlock")["held"], "absent", "{made}");

    // The unpacker is held by Landlock alone to its directory: it reads not a byte without it.
    let root = system.dir().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "text").unwrap();
    let refused = system.run(&["--json", "template", "import", "mine", root.to_str().unwrap()]);
    refused.expect(1);
    let fault = fault(&refused);
    assert_eq!(fault["code"], "layer_unavailable", "{fault}");
    let message = fault["message"].as_str().unwrap();
    assert!(message.contains("restrict itself by Landlock") && message.contains("not implemented"), "{message}");
    assert_eq!(fs::read_dir(system.state().join("warden/layers")).unwrap().count(), 0);
    system.stop();
    // Control: the same tree, where Landlock is.
    let system = System::start();
    fs::create_dir(system.dir().join("root")).unwrap();
    fs::write(system.dir().join("root/file"), "text").unwrap();
    system.ok(&["template", "import", "mine", system.dir().join("root").to_str().unwrap()]);
    system.stop();
}

/// A machine that joined from such a host, with its user's key and its id.
fn joined(system: &System, user: &str, level: &str) -> (std::process::Child, String, String) {
    let key = system.json(&["user", "add", user])["key"].as_str().unwrap().to_owned();
    let of = |args: &[&str]| {
        let mut command = system.command(args);
        command.env("RINGFENCE_KEY", &key).env("RINGFENCE_URL", &system.url);
        Ran::of(command, b"")
    };
    let token: Value = serde_json::from_str(&of(&["--json", "machine", "token"]).expect(0)).unwrap();
    let home = system.dir().join(user);
    fs::create_dir_all(home.join("work")).unwrap();
    fs::write(home.join("work/file"), "text").unwrap();
    let mut join = system.command(&["join", &system.url, "--level", level, "--workspace"]);
    join.arg(home.join("work"))
        .arg("--key-dir")
        .arg(home.join("key"))
        .env("RINGFENCE_TOKEN", token["token"].as_str().unwrap());
    let join = join.spawn().unwrap();
    let mut machine = Value::Null;
    support::eventually("the machine is there", || {
        let list: Value = serde_json::from_str(&of(&["--json", "machine", "list"]).expect(0)).unwrap();
        machine = list[0].clone();
        machine["online"] == true
    });
    assert_eq!(machine["facts"]["landlock_abi"], 0, "{machine}");
    (join, key, machine["id"].as_str().unwrap().to_owned())
}

#[test]
fn without_landlock_a_machine_at_level_workspace_runs_no_command() {
    let system = System::start_under(NO_LANDLOCK);
    let of = |key: &str, args: &[&str]| {
        let mut command = system.command(args);
        command.env("RINGFENCE_KEY", key).env("RINGFENCE_URL", &system.url);
        Ran::of(command, b"")
    };
    let (mut held, ann, id) = joined(&system, "ann", "workspace");
    for args in [&["--", "touch", "made"][..], &["--sh", "touch made"], &["-d", "--", "touch", "made"]] {
        let refused = of(&ann, &[&["--json", "exec", "-m", &id], args].concat());
        assert_eq!((refused.code, fault(&refused)["code"].as_str()), (125, Some("layer_unavailable")), "{refused:?}");
        let fault = fault(&refused);
        assert!(fault["message"].as_str().unwrap().contains("Landlock ABI 0"), "{fault}");
        assert!(fault["hint"].as_str().unwrap().contains("--level full"), "{fault}");
    }
    assert!(!system.dir().join("ann/work/made").exists());
    // Files are held by the machine itself: they work, below the workspace alone.
    let back = system.dir().join("back");
    of(&ann, &["cp", ":file", back.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read_to_string(&back).unwrap(), "text");
    of(&ann, &["cp", ":../key", back.to_str().unwrap()]).expect(1);
    // Control: the same kernel, and an owner who asked for no such hold.
    let (mut free, ben, id) = joined(&system, "ben", "full");
    of(&ben, &["exec", "-m", &id, "--", "touch", "made"]).expect(0);
    assert!(system.dir().join("ben/work/made").exists());
    for join in [&mut held, &mut free] {
        support::signal(join.id(), "TERM");
        assert!(join.wait().unwrap().success());
    }
    system.stop();
}

#[test]
fn without_a_unified_tree_the_report_says_what_a_kill_may_miss() {
    let system = System::start_under(NO_UNIFIED_TREE);
    let made = system.run(&["--json", "create"]);
    if made.code == 0 {
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let tasks = layer(&made, "tasks");
        assert_eq!(tasks["held"], "partial", "{tasks}");
        assert!(tasks["missing"].as_str().unwrap().contains("/proc"), "{tasks}");
        // What is held there: the tree of a process that lives, and the whole sandbox.
        let id = made["id"].as_str().unwrap();
        let late = system.run(&["exec", "-s", id, "--timeout", "300ms", "--sh", "sh -c 'sleep 1000' & sleep 1000"]);
        assert_eq!(late.code, 137, "{late:?}");
        assert_eq!(system.run(&["exec", "-s", id, "--sh", "pgrep sleep"]).code, 1);
        system.ok(&["rm", id]);
    } else {
        // A host whose controllers are all in that tree has none now, and says so.
        assert_eq!(fault(&made)["code"], "layer_unavailable", "{made:?}");
    }
    system.stop();
    // Control: with the tree, nothing is missing of that layer.
    let system = System::start();
    let made = system.json(&["create"]);
    assert_eq!(layer(&made, "tasks")["held"], "full", "{made}");
    system.stop();
}

#[test]
fn a_sandbox_has_not_the_hosts_domain_name() {
    let look = "cat /proc/sys/kernel/domainname";
    let system = System::start_under(WITH_DOMAIN);
    assert_eq!(system.ok(&["run", "--", "sh", "-c", look]), "(none)");
    system.stop();
    // Control: what is made there takes it over.
    let mut command = Command::new("unshare");
    let there = format!("echo corp.example > /proc/sys/kernel/domainname; exec unshare --uts {look}");
    command.args(["--uts", "sh", "-c", &there]);
    assert_eq!(Ran::of(command, b"").expect(0), "corp.example");
}

#[test]
fn in_a_chroot_doctor_says_that_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    // Its root is a mount point, which is not enough: user_namespaces(7), EPERM.
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", "mount --rbind / \"$0\"; exec chroot \"$0\" \"$1\" --json doctor"]);
    command.arg(dir.path()).arg(env!("CARGO_BIN_EXE_ringfence"));
    let ran = Ran::of(command, b"");
    let report: Value = serde_json::from_str(&ran.expect(1)).unwrap();
    let of = |name: &str| {
        let layers = report["layers"].as_array().unwrap();
        layers.iter().find(|layer| layer["layer"] == name).unwrap()["cure"].as_str().unwrap().to_owned()
    };
    assert!(of("user").starts_with("leave the chroot"), "{report}");
    assert!(of("pid").contains("`user` first") && of("seccomp").contains("`user` first"), "{report}");
    assert_eq!(of("memory"), "", "{report}");
}
