//! The whole system of somebody without any rights: what is held, what is refused, and what is said of both.

mod support;

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use rustix::process::geteuid;
use serde_json::Value;
use support::{Ran, System, eventually, processes, signal};

/// Nobody's id on this machine. Chosen; not the server's.
const NOBODY: u32 = 1_878_982_702;
/// What nobody delegated to this id: limits need control groups. A disk in memory needs no `io`.
const MISSING: [&str; 3] = ["memory", "tasks", "cpu"];

fn start() -> System {
    assert!(geteuid().is_root(), "run this as root, which can become anybody");
    System::start_as(NOBODY)
}

fn fault(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stderr).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn a_layer_that_is_missing_is_named_with_its_cure_until_it_is_accepted() {
    let system = start();
    let mut accepted: Vec<String> = Vec::new();
    for layer in MISSING {
        let list = accepted.join(",");
        let mut args = vec!["--json", "create"];
        if !accepted.is_empty() {
            args.extend(["--accept-missing", &list]);
        }
        let refused = system.run(&args);
        refused.expect(1);
        let fault = fault(&refused);
        assert_eq!(fault["code"], "layer_unavailable", "{fault}");
        assert!(fault["message"].as_str().unwrap().contains(&format!("`{layer}`")), "{fault}");
        let hint = fault["hint"].as_str().unwrap();
        assert!(hint.contains("run the warden as root") && hint.contains("`accept_missing`"), "{fault}");
        accepted.push(layer.to_owned());
    }
    let list = accepted.join(",");
    let disk = system.run(&["--json", "create", "--accept-missing", &list, "--disk-image"]);
    disk.expect(1);
    assert_eq!(fault(&disk)["code"], "layer_unavailable", "{disk:?}");

    let made = system.json(&["create", "--accept-missing", &list]);
    let layers = made["enforcement"]["layers"].as_array().unwrap();
    // A disk in memory does no block I/O, so there is nothing to hold of that.
    for layer in layers.iter().filter(|layer| layer["layer"] != "io") {
        assert_eq!(layer["held"] == "absent", MISSING.contains(&layer["layer"].as_str().unwrap()), "{layer}");
    }
    assert_eq!(made["enforcement"]["mode"], "rootless");

    let report = system.run(&["--json", "doctor"]);
    let report: Value = serde_json::from_str(&report.expect(1)).unwrap();
    assert_eq!((report["mode"].as_str(), report["missing"].as_u64()), (Some("rootless"), Some(4)));
    for layer in report["layers"].as_array().unwrap() {
        let name = layer["layer"].as_str().unwrap();
        assert_eq!(layer["available"] == false, MISSING.contains(&name) || name == "io", "{layer}");
        assert_eq!(layer["available"] == false, !layer["cure"].as_str().unwrap().is_empty(), "{layer}");
    }
    assert_eq!(report["disk_image"]["available"], false);
    // Control: root's doctor on the same machine finds nothing of it missing.
    let as_root = Ran::of(
        {
            let mut command = support::ringfence(system.dir());
            command.args(["--json", "doctor"]);
            command
        },
        b"",
    );
    let as_root: Value = serde_json::from_slice(&as_root.stdout).unwrap();
    assert_eq!(as_root["mode"], "rooted");
    for layer in as_root["layers"].as_array().unwrap() {
        assert!(layer["available"] == true || layer["layer"] == "io", "{layer}");
    }
    system.stop();
}

#[test]
fn commands_files_and_terminals_work_and_nothing_is_left() {
    let system = start();
    let list = MISSING.join(",");
    let id = system.ok(&["create", "--accept-missing", &list]);
    let sh = |line: &str| system.run(&["exec", "-s", &id, "--sh", line]);
    assert_eq!(sh("id -un; id -u; pwd; cat /proc/self/uid_map | tr -s ' '").expect(0).lines().nth(1), Some("1000"));
    // Nothing of the host: its processes, its other users' names.
    let seen = sh("ls /proc | grep -c '^[0-9]'; hostname; grep -c . /etc/passwd").expect(0);
    assert!(seen.lines().next().unwrap().parse::<u32>().unwrap() < 10, "{seen}");
    assert_eq!(sh("exit 9").code, 9);
    assert_eq!(sh("kill -9 $$").code, 137);
    let late = system.run(&["exec", "-s", &id, "--timeout", "300ms", "--sh", "setsid sleep 1000 & sleep 1000"]);
    assert_eq!(late.code, 137);
    assert_eq!(sh("pgrep sleep").code, 1, "the tree of an exec whose time was up lives on");

    // There is one id, and so no root inside.
    let root = system.run(&["--json", "exec", "-s", &id, "--root", "--", "id"]);
    root.expect(125);
    assert_eq!(fault(&root)["code"], "forbidden", "{root:?}");
    assert_ne!(sh("sudo id").code, 0);
    assert_ne!(sh("unshare -U true").code, 0);
    // Process 1 has that id too: its limits, without which it ends nothing any more, are not to be set.
    assert_ne!(sh("prlimit --pid 1 --nofile=4:4").code, 0);
    assert_eq!(sh("prlimit --pid $$ --nofile=64:64 && ulimit -n").expect(0), "64", "the control");

    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7) as u8).collect();
    let (here, back) = (system.dir().join("here"), system.dir().join("back"));
    fs::write(&here, &bytes).unwrap();
    system.ok(&["cp", here.to_str().unwrap(), &format!("{id}:there")]);
    system.ok(&["cp", &format!("{id}:there"), back.to_str().unwrap()]);
    assert!(fs::read(&back).unwrap() == bytes);
    assert_eq!(sh("stat -c '%U %s' there").expect(0), "user 3000000");
    // The disk's bound holds without root too.
    assert_ne!(sh("head -c 200000000 /dev/zero > full").code, 0);
    assert_eq!(sh("rm full; echo room").expect(0), "room");

    let terminal = Ran::of(system.command(&["exec", "-t", "-s", &id, "--sh", "tty; stty size"]), b"");
    assert!(terminal.expect(0).starts_with("/dev/pts/"), "{terminal:?}");
    let exec = system.ok(&["exec", "-d", "-s", &id, "--sh", "echo first; sleep 0.2; exit 5"]);
    assert_eq!(system.run(&["logs", "-f", &exec]).expect(5), "first");
    assert_eq!(system.ok(&["run", "--accept-missing", &list, "--", "echo", "once"]), "once");

    let audit = system.json(&["doctor", "--audit"]);
    assert_eq!((audit["holds"].as_bool(), audit["rooted"].as_bool()), (Some(true), Some(false)), "{audit}");
    let listed = audit["processes"].as_array().unwrap();
    for process in listed {
        assert_eq!(process["uid"], NOBODY, "{process}");
        assert!(process["capabilities"] == 0 || process["own_user_namespace"] == true, "{process}");
    }
    assert!(listed.iter().any(|process| process["role"] == "init"), "{audit}");
    let table = system.ok(&["doctor", "--audit"]);
    assert!(table.contains("rootless") && !table.contains("own range"), "{table}");

    // A warden that dies takes its sandboxes along; the next one sweeps, and serves.
    let inits: Vec<u64> =
        listed.iter().filter(|process| process["role"] == "init").map(|p| p["pid"].as_u64().unwrap()).collect();
    let warden = system.child("warden");
    signal(warden, "KILL");
    eventually("another warden", || {
        let ran = system.run(&["run", "--accept-missing", &list, "--", "true"]);
        ran.code == 0
    });
    eventually("the sandboxes of the first are gone", || {
        let alive = processes();
        inits.iter().all(|init| !alive.iter().any(|(pid, line)| u64::from(*pid) == *init && line.contains("init")))
    });
    assert_eq!(sh("true").code, 125);
    // Who started it can throw all of it away, templates included, as they would anything of theirs.
    let state = system.state();
    system.stop_and(|| {
        assert!(state.join("warden/host").read_dir().unwrap().next().is_some());
        let removed = Command::new("rm").arg("-r").arg(&state).uid(NOBODY).gid(NOBODY).output().unwrap();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        assert!(!state.exists());
    });
}

#[test]
fn a_template_that_is_removed_goes_from_disk() {
    let system = start();
    let tree = system.dir().join("tree");
    fs::create_dir_all(tree.join("closed/sub")).unwrap();
    for number in 0..50 {
        fs::write(tree.join(format!("closed/sub/{number}")), "text").unwrap();
    }
    for dir in ["closed/sub", "closed"] {
        fs::set_permissions(tree.join(dir), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    }
    system.ok(&["template", "import", "mine", tree.to_str().unwrap()]);
    let layers = || fs::read_dir(system.state().join("warden/layers")).unwrap().count();
    assert_eq!(layers(), 1);
    system.ok(&["template", "rm", "mine"]);
    eventually("its layer is gone", || layers() == 0);
    system.stop();
}

#[test]
fn what_the_kernel_bounds_by_nothing_is_held_without_root_as_well() {
    const OBJECTS: &str = include_str!("../../rf-escape/probes/objects.py");
    let system = start();
    let id = system.ok(&["create", "--accept-missing", &MISSING.join(",")]);
    let probe = system.dir().join("objects.py");
    // Nobody may look at a process that dumps nothing, unless they are above it (prctl(2), PR_SET_DUMPABLE).
    fs::write(&probe, format!("import ctypes\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n{OBJECTS}")).unwrap();
    system.ok(&["cp", probe.to_str().unwrap(), &format!("{id}:/tmp/objects.py")]);
    let make =
        |kind: &str, most: &str| system.run(&["exec", "-s", &id, "--", "python3", "/tmp/objects.py", kind, most]);
    assert_eq!(make("netlink_sockets", "1000").expect(0).lines().last(), Some("ENDED ENFILE"));
    // The control: fewer are nobody's business.
    assert_eq!(make("file_locks", "50000").expect(0).lines().last(), Some("ENDED most"));
    let greedy = make("file_locks", "1000000");
    assert_eq!(greedy.code, 128 + 9, "{greedy:?}");
    system.ok(&["rm", &id]);
    system.stop();
}
