//! The whole system of somebody without root to whom a control group was delegated, as systemd's `Delegate=yes` does it:
//! limits hold if the host's tree of version 2 has the controllers, and are refused by name if it has not.

mod support;

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use support::{System, eventually};

/// Nobody's id on this machine. Chosen; not the server's.
const NOBODY: u32 = 1_878_982_703;
/// The controllers that are handed down, and the layers behind them.
const LAYERS: [(&str, &str); 3] = [("memory", "memory"), ("pids", "tasks"), ("cpu", "cpu")];

/// A group that is somebody's; removed at the end.
struct Delegated {
    path: PathBuf,
    /// Which of the controllers it has.
    controllers: Vec<String>,
}

impl Delegated {
    fn to(uid: u32) -> Self {
        assert!(geteuid().is_root(), "run this as root, which delegates");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let tree = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a tree of version 2");
        let root = PathBuf::from(tree.split(' ').nth(4).unwrap());
        let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap();
        let wanted = LAYERS.map(|(controller, _)| controller);
        let controllers: Vec<String> =
            there.split_whitespace().filter(|name| wanted.contains(name)).map(str::to_owned).collect();
        for controller in &controllers {
            fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        }
        let path = root.join(format!("delegated-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let group = Self { path, controllers };
        // What the cgroup-v2 document has under "Delegation"; nothing else of it is theirs.
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(group.path.join(file), Some(uid), Some(uid)).unwrap();
        }
        group
    }

    /// The groups in it.
    fn groups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(dir);
        }
        remove(&self.path);
    }
}

#[test]
fn limits_hold_without_root_where_control_groups_were_delegated() {
    let group = Delegated::to(NOBODY);
    let system = System::start_as_in(NOBODY, &group.path);
    let has = |controller: &str| group.controllers.iter().any(|name| name == controller);
    let missing: Vec<&str> =
        LAYERS.into_iter().filter(|(controller, _)| !has(controller)).map(|(_, layer)| layer).collect();
    let list = missing.join(",");
    let mut args = vec!["create", "--memory", "64M", "--disk", "8M", "--tasks", "20", "--cpu", "0.5"];
    if !missing.is_empty() {
        let refused = system.run(&[&["--json"], &args[..]].concat());
        refused.expect(1);
        assert!(refused.stderr.contains("layer_unavailable"), "{refused:?}");
        args.extend(["--accept-missing", &list]);
    }
    let made = system.json(&args);
    let id = made["id"].as_str().unwrap();
    assert_eq!(made["enforcement"]["mode"], "rootless");
    let layers = made["enforcement"]["layers"].as_array().unwrap();
    for (controller, layer) in LAYERS {
        let report = layers.iter().find(|report| report["layer"] == layer).unwrap();
        assert_eq!(report["held"], if has(controller) { "full" } else { "absent" }, "{report}");
    }

    // An exec's own group finds what detached itself from a first process that has ended.
    let line = "(setsid sleep 1000 &); sleep 1000";
    let late = system.run(&["exec", "-s", id, "--timeout", "1s", "--sh", line]);
    assert_eq!(late.code, 137, "{late:?}");
    assert_eq!(system.run(&["exec", "-s", id, "--sh", "pgrep sleep"]).code, 1, "it lives on");

    let run = |line: &str| system.run(&["exec", "-s", id, "--sh", line]);
    if has("memory") {
        let most = |mib: u32| run(&format!("head -c {mib}M /dev/zero | tail -c {mib}M | wc -c")).text();
        assert_eq!(most(16), (16 << 20).to_string(), "the control");
        assert_ne!(most(128), (128 << 20).to_string(), "past 64 MiB");
    }
    if has("pids") {
        let started = |count: u32| run(&format!("for i in $(seq {count}); do sleep 2 & done; jobs -p | wc -l")).text();
        assert_eq!(started(10), "10", "the control");
        assert_ne!(started(60), "60", "past 20");
    }
    if has("cpu") {
        let ran = run("timeout 2 sh -c 'while :; do :; done'; cut -d' ' -f16,17 /proc/$$/stat");
        // Of its children, in ticks of 10 ms (proc_pid_stat(5)).
        let ticks: u32 = ran.text().split_whitespace().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
        assert!((20..150).contains(&ticks), "{ticks} ticks in two seconds, at half a processor");
    }
    system.ok(&["rm", id]);

    for turn in 0..5 {
        let mut args = vec!["run"];
        if !missing.is_empty() {
            args.extend(["--accept-missing", &list]);
        }
        args.extend(["--", "echo", "once"]);
        assert_eq!(system.ok(&args), "once", "turn {turn}");
    }
    // A warden that dies leaves no group to the next one.
    support::signal(system.child("warden"), "KILL");
    let mut args = vec!["run"];
    if !missing.is_empty() {
        args.extend(["--accept-missing", &list]);
    }
    args.extend(["--", "true"]);
    eventually("another warden", || system.run(&args).code == 0);
    system.stop();
    // Whoever was delegated to moved aside in it; nothing of any sandbox is left.
    let left = group.groups();
    assert!(left.iter().all(|path| path.ends_with("ringfence-itself")), "{left:?}");
}
