//! Real work in a sandbox, and a thousand sandboxes one after the other that leave nothing behind.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use support::{Ran, System, eventually, processes};

/// A sandbox with room for a compiler.
fn workshop(system: &System) -> String {
    system.ok(&["create", "--memory", "1G", "--disk", "512M", "--tasks", "512", "--lease", "30m"])
}

fn sh(system: &System, id: &str, line: &str) -> String {
    system.ok(&["exec", "-T", "-s", id, "--sh", line])
}

#[test]
fn programs_of_every_day_do_their_work() {
    let system = System::start();
    let id = workshop(&system);

    let python = "import hashlib, json, threading\n\
        done = []\n\
        threads = [threading.Thread(target=lambda n=n: done.append(hashlib.sha256(bytes([n]) * 100000).hexdigest())) for n in range(8)]\n\
        [t.start() for t in threads]; [t.join() for t in threads]\n\
        print(json.dumps({'threads': len(set(done)), 'sum': sum(i * i for i in range(100000))}))\n";
    let ran = Ran::of(system.command(&["exec", "-i", "-s", &id, "--", "python3", "-"]), python.as_bytes());
    assert_eq!(ran.expect(0), r#"{"threads": 8, "sum": 333328333350000}"#);
    assert_eq!(
        sh(&system, &id, "python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix)'"),
        "/home/user/v"
    );

    let node = "const fs = require('fs'); fs.writeFileSync('n.json', JSON.stringify([...Array(1000).keys()]));\
        setTimeout(() => console.log(JSON.parse(fs.readFileSync('n.json')).reduce((a, b) => a + b)), 5)";
    assert_eq!(system.ok(&["exec", "-T", "-s", &id, "--", "node", "-e", node]), "499500");

    let c = "#include <stdio.h>\n#include <pthread.h>\nstatic void *f(void *p) { *(long *)p *= 2; return 0; }\n\
        int main(void) { pthread_t t; long n = 21; pthread_create(&t, 0, f, &n); pthread_join(t, 0); printf(\"%ld\\n\", n); }\n";
    let ran = Ran::of(
        system.command(&["exec", "-i", "-s", &id, "--sh", "cat > a.c && cc -O2 -Wall -pthread -o a a.c && ./a"]),
        c.as_bytes(),
    );
    assert_eq!(ran.expect(0), "42");

    let git = "git init -q repo && cd repo && git config user.name n && git config user.email e@x && echo one > f \
        && git add f && git commit -q -m first && echo two >> f && git commit -q -a -m second && git log --oneline | wc -l \
        && git fsck --strict 2>/dev/null && git clone -q . ../clone && cat ../clone/f";
    assert_eq!(sh(&system, &id, git), "2\none\ntwo");

    let load = "sqlite3 t.db 'PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, x TEXT); \
        WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 200000) INSERT INTO t SELECT n, hex(n) FROM c; \
        SELECT count(*), max(length(x)) FROM t; PRAGMA integrity_check;'";
    assert_eq!(sh(&system, &id, load), "wal\n200000|12\nok");
    system.stop();
}

#[test]
fn a_hundred_megabytes_go_in_and_out_as_a_tree() {
    let system = System::start();
    let id = workshop(&system);
    let here = system.dir().join("tree");
    for part in 0..10_u8 {
        fs::create_dir_all(here.join(format!("d{part}"))).unwrap();
        for n in 0..10_u8 {
            let bytes: Vec<u8> = (0..1_000_000_u32).map(|i| (i >> 8) as u8 ^ i as u8 ^ part ^ n).collect();
            fs::write(here.join(format!("d{part}/f{n}")), bytes).unwrap();
        }
    }
    let sums = |dir: &std::path::Path| {
        let told = Command::new("sh")
            .args(["-c", "find . -type f | sort | xargs sha256sum"])
            .current_dir(dir)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        String::from_utf8(told.stdout).unwrap().trim_end().to_owned()
    };
    let before = sums(&here);
    assert_eq!(before.lines().count(), 100);
    system.ok(&["cp", here.to_str().unwrap(), &format!("{id}:tree")]);
    assert_eq!(sh(&system, &id, "cd tree && find . -type f | sort | xargs sha256sum"), before);
    let back = system.dir().join("back");
    system.ok(&["cp", &format!("{id}:tree"), back.to_str().unwrap()]);
    assert_eq!(sums(&back), before);
    system.stop();
}

/// What a system holds of what could leak.
fn held(system: &System) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    for role in ["server", "warden"] {
        let fds = fs::read_dir(format!("/proc/{}/fd", system.child(role))).unwrap().count();
        held.insert(format!("{role}'s descriptors"), fds);
    }
    held.insert("mounts".to_owned(), fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count());
    let warden = system.child("warden");
    let below = processes().into_iter().filter(|(pid, _)| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == warden.to_string()))
    });
    held.insert("the warden's children".to_owned(), below.count());
    let cgroups = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", &format!("*{}*", base(system)), "-print"])
        .output()
        .unwrap();
    held.insert("cgroups".to_owned(), String::from_utf8(cgroups.stdout).unwrap().lines().count());
    for part in ["warden", "run"] {
        let found = Command::new("find").arg(system.state().join(part)).output().unwrap();
        held.insert(format!("files of {part}/"), found.stdout.iter().filter(|b| **b == b'\n').count());
    }
    held
}

/// The name of this system's directory in the cgroup hierarchies.
fn base(system: &System) -> String {
    let config = rf_warden::WardenConfig { state: system.state(), server_uid: 0, pool: 0, sandboxes_max: 1 };
    config.base()
}

#[test]
fn a_thousand_sandboxes_leave_nothing_behind() {
    let system = System::start();
    let round = |count: usize| {
        // Four at a time, each with a process that outlives its command.
        let line = format!(
            "seq {count} | xargs -P 4 -I N {} run --sh 'echo N > f; (sleep 300 &); test -s f'",
            support::binary().display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", system.dir()).env("RINGFENCE_STATE", system.state());
        Ran::of(command, b"").expect(0);
        eventually("no sandbox is left", || system.json(&["ps"])["sandboxes"].as_array().unwrap().is_empty());
    };
    // What grows once, such as pools and threads, has grown.
    round(50);
    let memory = |role: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", system.child(role))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (mut before, mut same) = (None, 0);
    // The pool is filled again in its own time.
    eventually("the pool is full", || {
        let now = held(&system);
        same = if before.as_ref() == Some(&now) { same + 1 } else { 0 };
        before = Some(now);
        same == 10
    });
    let (before, server, warden) = (before.unwrap(), memory("server"), memory("warden"));
    round(1_000);
    let mut after = held(&system);
    eventually("what is held is as before", || {
        after = held(&system);
        // A connection that the server is about to close is no leak: fewer, never more.
        after.iter().all(|(what, count)| *count <= before[what])
    });
    assert_eq!(after["mounts"], before["mounts"]);
    assert!(memory("server") < server + 16 * 1024, "server: {server} kB, then {} kB", memory("server"));
    assert!(memory("warden") < warden + 4 * 1024, "warden: {warden} kB, then {} kB", memory("warden"));
    assert!(!processes().iter().any(|(_, line)| line.trim() == "sleep 300"), "a process is left");
    system.stop();
}
