//! Every limit holds before the first instruction of a user's program, and no program of a user's runs before all hold.
//!
//! Processes are held at their steps by ptrace(2) (`probes/steps.py`), and looked at there from the host.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/faults/field.rs"]
mod field;
#[path = "../../ringfence/tests/faults/http.rs"]
mod http;
mod program;
#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use field::Field;
use http::{Call, Said};
use program::Arg;
use serde_json::{Value, json};

const STEPS: &str = include_str!("../probes/steps.py");
/// The numbers of execveat(2), fcntl(2) and seccomp(2) on x86-64.
const EXECVEAT: i64 = 322;
const FCNTL: i64 = 72;
const SECCOMP: i64 = 317;
/// The eight capabilities that `root` inside may have (linux/capability.h).
const OF_ROOT: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10;
/// Longest time between a death and the answer of whoever waited for the dead.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Where somebody is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum At {
    /// At the entry of the system call of this number.
    Call(i64),
    /// Of the program that it became, before the first instruction.
    Exec,
    /// At its end.
    End,
}

/// Who holds processes at their steps.
struct Holder {
    child: Child,
    said: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Holder {
    fn start(field: &Field, mode: &str, pids: &[u32]) -> Self {
        let path = field.system.dir().join("steps.py");
        fs::write(&path, STEPS).unwrap();
        let mut child = Command::new("python3")
            .arg(path)
            .arg(mode)
            .args(pids.iter().map(u32::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, told) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        let mut holder = Self { child, said, told };
        assert_eq!(holder.line(), "READY");
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next one who is held, and where.
    fn next(&mut self) -> (At, u32) {
        let line = self.line();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["CALL", number, pid] => (At::Call(number.parse().unwrap()), pid.parse().unwrap()),
            ["EXEC", pid] => (At::Exec, pid.parse().unwrap()),
            ["END", pid] => (At::End, pid.parse().unwrap()),
            _ => panic!("{line:?}"),
        }
    }

    fn tell(&mut self, word: &str) {
        self.told.write_all(format!("{word}\n").as_bytes()).unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Whoever was held goes on.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is asked for, and must hold.
struct Want {
    limits: Value,
    /// The program's user is `root` inside.
    root: bool,
    files_max: u64,
}

impl Want {
    /// Limits that no other sandbox has; those of the disk are the standard ones, or `inodes`.
    fn new(root: bool, inodes: Option<u64>) -> Self {
        let mut limits = json!({ "memory_bytes_max": 100 << 20, "tasks_max": 33, "cpu_milli_max": 700 });
        if let Some(inodes) = inodes {
            limits["inodes_max"] = inodes.into();
        }
        Self { limits, root, files_max: 100 }
    }

    fn exec(&self) -> Value {
        let user = if self.root { "root" } else { "user" };
        json!({ "argv": ["true"], "user": user, "rlimits": { "files_max": self.files_max } })
    }

    /// What a limit's file must say, by the names of both versions of control groups.
    fn files(&self) -> [([&'static str; 2], [String; 2]); 3] {
        let number = |name: &str| self.limits[name].as_u64().unwrap();
        let (memory, tasks, quota) =
            (number("memory_bytes_max"), number("tasks_max") + 1, number("cpu_milli_max") * 100);
        [
            (["memory.limit_in_bytes", "memory.max"], [memory.to_string(), memory.to_string()]),
            // Process 1 is not the user's.
            (["pids.max", "pids.max"], [tasks.to_string(), tasks.to_string()]),
            (["cpu.cfs_quota_us", "cpu.max"], [quota.to_string(), format!("{quota} 100000")]),
        ]
    }
}

/// What does not hold, in words.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }

    /// The limits of a sandbox's control groups.
    fn limits(&mut self, field: &Field, sandbox: &str, want: &Want) {
        let groups = field.groups_of(sandbox);
        for (names, values) in want.files() {
            let found: Vec<_> = groups
                .iter()
                .flat_map(|dir| names.iter().zip(&values).map(move |(name, value)| (dir.join(name), value)))
                .filter_map(|(path, value)| Some((fs::read_to_string(path).ok()?, value)))
                .collect();
            let held = !found.is_empty() && found.iter().all(|(text, value)| text.trim() == *value);
            self.unless(held, || format!("{}: {found:?}", names[0]));
        }
    }

    /// What every process of a sandbox has from its exec on: filters, resource limits, namespaces, groups.
    fn process(&mut self, sandbox: &str, pid: u32) {
        let status = lines(pid, "status", ':');
        let is = |name: &str, value: &str| status.get(name).is_some_and(|is| is == value);
        self.unless(is("NoNewPrivs", "1") && is("Seccomp", "2"), || format!("no filter: {status:?}"));
        self.unless(is("CapBnd", &format!("{OF_ROOT:016x}")), || format!("capabilities: {:?}", status.get("CapBnd")));
        for (name, most) in [
            ("Max open files", 8_192),
            ("Max locked memory", 8 << 20),
            ("Max pending signals", 4_096),
            ("Max msgqueue size", 819_200),
            ("Max file locks", 4_096),
            ("Max core file size", 1),
            ("Max nice priority", 0),
            ("Max realtime priority", 0),
        ] {
            let limit = hard_limit(pid, name);
            self.unless(limit.is_some_and(|limit| limit <= most), || format!("{name}: {limit:?}"));
        }
        for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            self.unless(of(&pid.to_string()) != of("self"), || format!("the host's namespace: {namespace}"));
        }
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let limited = ["memory", "pids", "cpu"].iter().all(|controller| {
            let of = |wanted: &str| {
                groups.lines().find(|line| {
                    let controllers = line.split(':').nth(1).unwrap_or_default();
                    controllers.split(',').any(|name| name == wanted)
                })
            };
            of(controller).or_else(|| of("")).is_some_and(|line| line.contains(sandbox))
        });
        self.unless(limited, || format!("not in the groups: {groups}"));
        let (first, _) = ids(pid);
        self.unless(first >= 65_536, || format!("host ids from {first}"));
    }

    /// A user's program, at its first instruction.
    fn program(&mut self, field: &Field, sandbox: &str, pid: u32, want: &Want) {
        self.limits(field, sandbox, want);
        self.process(sandbox, pid);
        let status = lines(pid, "status", ':');
        let (base, _) = ids(pid);
        let uid = (base + if want.root { 0 } else { 1_000 }).to_string();
        let uids = &status["Uid"];
        self.unless(uids.split_whitespace().all(|is| is == uid), || format!("users {uids}, not {uid}"));
        let mine = if want.root { OF_ROOT } else { 0 };
        for (name, value) in [("CapEff", mine), ("CapPrm", mine), ("CapInh", 0), ("CapAmb", 0)] {
            let is = &status[name];
            self.unless(*is == format!("{value:016x}"), || format!("{name}: {is}"));
        }
        // The sandbox's own filter, and on it the one that takes what only process 1 may call.
        let filters = status.get("Seccomp_filters").and_then(|count| count.parse().ok());
        self.unless(filters.is_some_and(|count: u32| count >= 2), || format!("filters: {filters:?}"));
        let files = hard_limit(pid, "Max open files");
        self.unless(files == Some(want.files_max), || format!("the exec's own limit of files: {files:?}"));
        let mut open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        open.sort();
        self.unless(open == ["0", "1", "2"], || format!("descriptors: {open:?}"));
        // Keys are counted for who made them (proc_key_users(5)): the keyring of its own, by the sandbox's first process.
        let keys = fs::read_to_string("/proc/key-users").unwrap();
        let own =
            keys.lines().find_map(|line| line.trim().strip_prefix(&format!("{base}:"))?.split_whitespace().next());
        self.unless(own.is_some_and(|count| count != "0"), || format!("no keyring of {base}: {keys}"));
        let oom = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        self.unless(oom.trim() == "500", || format!("oom_score_adj: {oom}"));
        let network = lines(pid, "net/dev", ':');
        let devices: Vec<_> = network.keys().filter(|name| !name.contains('|')).collect();
        self.unless(devices == ["lo"], || format!("network devices: {devices:?}"));
        let disk = rustix::fs::statvfs(format!("/proc/{pid}/root")).unwrap();
        let standard = rf_types::Limits::STANDARD;
        let inodes = want.limits["inodes_max"].as_u64().unwrap_or(standard.inodes_max);
        let bytes = disk.f_blocks * disk.f_frsize;
        self.unless(bytes == standard.disk_bytes_max && disk.f_files <= inodes, || {
            format!("disk: {bytes} bytes, {} inodes", disk.f_files)
        });
        // The first thing that it executes is still to come: the kernel counts the user's time from there.
        let times = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = times.rsplit_once(')').unwrap().1.split_whitespace().collect();
        self.unless(fields[0] == "t", || format!("it runs: {}", fields[0]));
    }

    fn none(self, what: &str) {
        assert!(self.0.is_empty(), "{what}:\n{}", self.0.join("\n"));
    }
}

/// A file of `/proc/PID` as names and values.
fn lines(pid: u32, file: &str, between: char) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(between));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

/// The hard limit of this name; proc_pid_limits(5).
fn hard_limit(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1)?.parse().ok())
}

/// A request beside us.
fn begin(field: &Field, path: &str, body: &Value) -> JoinHandle<Said> {
    let body = body.to_string();
    let mut call = field.open().unwrap();
    let mut bytes = field.head("POST", path, body.len(), "");
    bytes.extend_from_slice(body.as_bytes());
    call.send(&bytes).unwrap();
    std::thread::spawn(move || Call::answer(&mut call))
}

/// The id of the sandbox that a process is in.
fn sandbox_of(pid: u32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let at = groups.find("sbx_").unwrap_or_else(|| panic!("{pid} is in no sandbox: {groups}"));
    groups[at..at + 36].to_owned()
}

/// The host ids of a process's user namespace: the first, and how many.
fn ids(pid: u32) -> (u64, u64) {
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let map: Vec<u64> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    (map[1], map[2])
}

#[test]
fn every_sandbox_has_host_ids_of_its_own() {
    let field = Field::start();
    let mut seen: Vec<(u64, u64)> = (0..3).map(|_| ids(field.sandbox().1)).collect();
    // Prepared ones, whose users are not known yet, as well.
    field.settle().unwrap();
    seen = field.inits().into_iter().map(ids).chain(seen).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 3 + field::POOL, "each has others: {seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "they overlap: {seen:?}");
    field.end();
}

#[test]
fn where_root_is_forbidden_nobody_gets_it() {
    let field = Field::start();
    let (free, _) = field.sandbox();
    let (held, init) = field.sandbox_with(&json!({ "root_allowed": false }));
    let bounds = &lines(init, "status", ':')["CapBnd"];
    let bounds = u64::from_str_radix(bounds, 16).unwrap();
    assert!(bounds != OF_ROOT && bounds & !OF_ROOT == 0, "{bounds:x}");
    let ask = |id: &str, body: &Value| field.ask("POST", &format!("/v1/sandboxes/{id}/exec"), body);
    let as_root = json!({ "argv": ["id", "-u"], "user": "root" });
    let by_sudo = json!({ "argv": ["sudo", "id", "-u"] });
    for body in [&as_root, &by_sudo] {
        let control = ask(&free, body).json().unwrap();
        assert_eq!(control["stdout"], "0\n", "the control: {control}");
        let said = ask(&held, body);
        let refused =
            said.code().is_some() || said.json().is_some_and(|ran| ran["code"] != 0 && ran["stdout"] != "0\n");
        assert!(refused, "{body}: {said}");
    }
    // A file of root's inside stays closed.
    let said = ask(&held, &json!({ "shell": "echo x > /etc/passwd" }));
    assert_ne!(said.json().unwrap()["code"], 0, "{said}");
    field.end();
}

#[test]
fn an_unpacker_of_layers_has_no_rights_at_its_first_instruction() {
    let field = Field::start();
    let root = field.system.dir().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/mark"), "mine").unwrap();
    let mut holder = Holder::start(&field, "launch", &[field.warden()]);
    let mut import = field.system.command(&["template", "import", "mine", root.to_str().unwrap()]).spawn().unwrap();
    let pid = loop {
        let (at, pid) = holder.next();
        if at == At::Exec {
            break pid;
        }
        holder.tell("go");
    };
    let mut wrong = Wrong::default();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.split(|byte| *byte == 0).any(|word| word == b"unpack"), "{}", String::from_utf8_lossy(&command));
    let status = lines(pid, "status", ':');
    let (first, _) = ids(pid);
    let (sandbox, _) = ids(field.inits()[0]);
    wrong.unless(first >= 65_536 && first != sandbox, || format!("ids from {first}"));
    wrong.unless(status["Uid"].split_whitespace().all(|uid| uid == first.to_string()), || status["Uid"].clone());
    wrong.unless(status["NoNewPrivs"] == "1", || "it may gain privileges".to_owned());
    // CHOWN, DAC_OVERRIDE, FOWNER and FSETID, among those ids alone.
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let held = u64::from_str_radix(&status[set], 16).unwrap();
        wrong.unless(held & !0x1b == 0, || format!("{set}: {held:x}"));
    }
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        wrong.unless(of(&pid.to_string()) != of("self"), || format!("the host's namespace: {namespace}"));
    }
    let devices = lines(pid, "net/dev", ':');
    wrong.unless(devices.keys().all(|name| name == "lo" || name.contains('|')), || format!("{devices:?}"));
    holder.tell("end");
    drop(holder);
    assert!(import.wait().unwrap().success(), "the control: it did its work");
    wrong.none("the unpacker");
    field.end();
}

#[test]
fn everything_holds_at_the_first_instruction_of_a_program() {
    let field = Field::start();
    // Prepared ones, which get their limits when they are handed out, and ones that are made with theirs.
    for (root, inodes) in [(false, None), (true, None), (false, Some(4_096)), (true, Some(4_097))] {
        let want = Want::new(root, inodes);
        let (sandbox, init) = field.sandbox_with(&json!({ "limits": want.limits }));
        // Once in a sandbox that nobody has used, and once more.
        for turn in ["first", "second"] {
            let mut holder = Holder::start(&field, "first", &[init]);
            let answer = begin(&field, &format!("/v1/sandboxes/{sandbox}/exec"), &want.exec());
            let (at, pid) = holder.next();
            assert_eq!(at, At::Exec);
            let mut wrong = Wrong::default();
            wrong.program(&field, &sandbox, pid, &want);
            assert!(!answer.is_finished(), "it is held");
            holder.tell("end");
            let said = answer.join().unwrap();
            assert_eq!(said.json().map(|body| body["code"].clone()), Some(json!(0)), "the control: it ran: {said}");
            wrong.none(&format!("root {root}, inodes {inodes:?}, the {turn} program"));
        }
        field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    }
    // A one-shot in a prepared sandbox, whichever that is.
    let want = Want::new(false, None);
    field.settle().unwrap();
    let mut holder = Holder::start(&field, "first", &field.inits());
    let answer = begin(&field, "/v1/run", &json!({ "exec": want.exec(), "sandbox": { "limits": want.limits } }));
    let (at, pid) = holder.next();
    assert_eq!(at, At::Exec);
    let mut wrong = Wrong::default();
    wrong.program(&field, &sandbox_of(pid), pid, &want);
    holder.tell("end");
    assert!(answer.join().unwrap().is_done());
    wrong.none("a one-shot");
    drop(holder);
    field.settle().unwrap();
    field.end();
}

#[test]
fn the_time_of_an_exec_runs_out_before_its_first_instruction_too() {
    let field = Field::start();
    let (sandbox, init) = field.sandbox();
    let mut holder = Holder::start(&field, "first", &[init]);
    let ask = json!({ "argv": ["true"], "timeout_ms": 700 });
    let answer = begin(&field, &format!("/v1/sandboxes/{sandbox}/exec"), &ask);
    let (at, pid) = holder.next();
    assert_eq!(at, At::Exec);
    holder.tell("await");
    assert_eq!(holder.next(), (At::End, pid), "it is killed where it is held");
    let said = answer.join().unwrap();
    assert_eq!(said.json().map(|body| body["timed_out"].clone()), Some(json!(true)), "{said}");
    field.end();
}

#[test]
fn no_program_of_a_users_starts_before_the_launch_is_done() {
    let field = Field::start();
    let want = Want::new(false, Some(5_000));
    let before = field.cgroups();
    let mut holder = Holder::start(&field, "launch", &[field.warden()]);
    let answer = begin(&field, "/v1/run", &json!({ "exec": want.exec(), "sandbox": { "limits": want.limits } }));
    let (mut calls, mut wrong) = (Vec::new(), Wrong::default());
    let (sandbox, init) = loop {
        let (at, pid) = holder.next();
        let fresh: Vec<_> = field.cgroups().difference(&before).cloned().collect();
        let [sandbox] = &fresh[..] else { panic!("one sandbox is made: {fresh:?}") };
        // From its birth on, whatever step it is at.
        wrong.limits(&field, sandbox, &want);
        let members: Vec<_> = field
            .groups_of(sandbox)
            .iter()
            .flat_map(|dir| {
                fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .filter(|member| *member != pid.to_string())
            .collect();
        wrong.unless(members.is_empty(), || format!("others are in its groups at {at:?}: {members:?}"));
        wrong.unless(!answer.is_finished(), || format!("answered at {at:?}"));
        match at {
            At::Call(number) => calls.push(number),
            At::Exec => break (sandbox.clone(), pid),
            At::End => panic!("the new process ended after {calls:?}"),
        }
        holder.tell("go");
    };
    // The control: it was looked at often, and the filter is the last thing before the program of process 1, but that its
    // listener is kept open for that.
    assert!(calls.len() > 100, "{calls:?}");
    assert_eq!(calls[calls.len() - 3..], [SECCOMP, FCNTL, EXECVEAT], "{calls:?}");
    // Process 1 at its own first instruction has all that its children will have.
    wrong.process(&sandbox, init);
    // The next who is held is the user's program.
    holder.tell("follow");
    let (at, pid) = holder.next();
    assert_eq!(at, At::Exec);
    let parent = &lines(pid, "status", ':')["PPid"];
    wrong.unless(*parent == init.to_string(), || format!("started by {parent}, not by process 1, {init}"));
    wrong.program(&field, &sandbox, pid, &want);
    holder.tell("end");
    let said = answer.join().unwrap();
    assert_eq!(said.json().map(|body| body["code"].clone()), Some(json!(0)), "{said}");
    wrong.none("while it was launched");
    drop(holder);
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_launch_that_is_killed_at_any_step_runs_nothing_and_leaves_nothing() {
    /// Every so many system calls of the new process.
    const STRIDE: usize = 9;
    let field = Field::start();
    let (mut wrong, mut killed) = (Wrong::default(), 0);
    for turn in 0.. {
        // Of another size each time, so that none is prepared.
        let want = Want::new(false, Some(6_000 + turn as u64));
        let mut holder = Holder::start(&field, "launch", &[field.warden()]);
        let ask = json!({ "exec": { "argv": ["true"] }, "sandbox": { "limits": want.limits } });
        let answer = begin(&field, "/v1/run", &ask);
        let (mut steps, mut became_init) = (0, false);
        let at = loop {
            let (at, _) = holder.next();
            if at != At::Exec && (steps == turn * STRIDE || became_init) {
                break at;
            }
            became_init |= at == At::Exec;
            steps += 1;
            holder.tell("go");
        };
        holder.tell("kill");
        let since = Instant::now();
        assert_eq!(holder.next().0, At::End);
        drop(holder);
        let said = answer.join().unwrap();
        let took = since.elapsed();
        wrong.unless(said.code().is_some(), || format!("step {steps}, {at:?}: {said}"));
        wrong.unless(took < ANSWERED_WITHIN, || format!("step {steps}, {at:?}: answered after {took:?}"));
        field.settle().unwrap_or_else(|error| panic!("step {steps}, {at:?}: {error}"));
        killed += 1;
        if became_init {
            break;
        }
    }
    assert!(killed > 10, "{killed}");
    wrong.none("killed");
    // The control: left alone, such a launch does run the program.
    let want = Want::new(false, Some(5_999));
    let said =
        field.ask("POST", "/v1/run", &json!({ "exec": { "argv": ["true"] }, "sandbox": { "limits": want.limits } }));
    assert_eq!(said.json().map(|body| body["code"].clone()), Some(json!(0)), "{said}");
    field.settle().unwrap();
    field.end();
}

/// What a program tries with its first instructions, the errno that it must get, and for whom else than the user.
const FIRST_CALLS: &[(&str, u32, &[Arg], i32, bool)] = &[
    // Only Landlock answers this one so, EACCES; who lacks the capability gets EPERM.
    ("make a block device", 133, &[Arg::Text("device"), Arg::Number(0o060_600), Arg::Number(0)], 13, true),
    // Everybody may make this one elsewhere.
    ("make the device 0:0", 133, &[Arg::Text("device"), Arg::Number(0o020_600), Arg::Number(0)], 1, true),
    ("make a user namespace", 272, &[Arg::Number(0x1000_0000)], 1, true),
    ("make a mount namespace", 272, &[Arg::Number(0x2_0000)], 1, true),
    ("clone with flags that no filter reads", 435, &[Arg::Number(0), Arg::Number(0)], 38, true),
    ("load a program into the kernel", 321, &[Arg::Number(5), Arg::Number(0), Arg::Number(0)], 38, true),
    ("open a socket of raw packets", 41, &[Arg::Number(17), Arg::Number(3), Arg::Number(0x300)], 97, true),
    ("change the root", 161, &[Arg::Text("/")], 38, true),
    ("change the host's name", 170, &[Arg::Text("mine"), Arg::Number(4)], 38, true),
    ("become root", 105, &[Arg::Number(0)], 1, false),
    ("give up its groups for root's", 116, &[Arg::Number(0), Arg::Number(0)], 1, false),
];

#[test]
fn what_is_forbidden_is_forbidden_to_the_first_instruction() {
    let field = Field::start();
    let mut wrong = Wrong::default();
    for (what, number, arguments, errno, also_root) in FIRST_CALLS {
        let file = program::of_one_call(*number, arguments);
        // The control: the same file on the host, in namespaces of its own; whatever it gets, it is not that.
        let outside = field.system.dir().join("first");
        fs::write(&outside, &file).unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o755)).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let control = Command::new("unshare").args(["--mount", "--uts"]).arg(&outside).current_dir(&scratch).status();
        wrong.unless(control.unwrap().code() != Some(*errno), || format!("{what}: the control gets {errno} too"));
        let users = if *also_root { &["user", "root"][..] } else { &["user"][..] };
        for user in users {
            // A fresh sandbox each, in which nothing ran before.
            let (sandbox, _) = field.sandbox();
            let route = format!("/v1/sandboxes/{sandbox}");
            let put = field.send("PUT", &format!("{route}/files?path=/tmp/first&permissions=755"), &file);
            assert!(put.is_done(), "{put}");
            let ask = json!({ "argv": ["/tmp/first"], "user": user, "cwd": "/tmp" });
            let said = field.must("POST", &format!("{route}/exec"), &ask);
            wrong.unless(said["code"] == *errno, || format!("{what}, as {user}: {} and not {errno}", said["code"]));
            field.must("DELETE", &route, &Value::Null);
        }
    }
    wrong.none("at the first instruction");
    field.settle().unwrap();
    field.end();
}

/// Whoever traces a process hears of its end before its parent does: an operator's strace(1), for one.
#[test]
fn a_launch_that_is_killed_while_it_is_traced_leaves_nothing_either() {
    let field = Field::start();
    let want = Want::new(false, Some(7_000));
    let mut holder = Holder::start(&field, "launch", &[field.warden()]);
    let ask = json!({ "exec": { "argv": ["true"] }, "sandbox": { "limits": want.limits } });
    let answer = begin(&field, "/v1/run", &ask);
    for _ in 0..20 {
        assert_ne!(holder.next().0, At::End);
        holder.tell("go");
    }
    let (_, pid) = holder.next();
    holder.tell("slay");
    assert_eq!(holder.next(), (At::End, pid));
    holder.tell("end");
    let said = answer.join().unwrap();
    assert!(said.code().is_some(), "{said}");
    drop(holder);
    field.settle().unwrap();
    field.end();
}
