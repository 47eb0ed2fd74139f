//! Every kind of kernel object that a user can make: how many there can be in a sandbox of the standard limits, that the
//! kernel's own memory for them stays near the sandbox's, and that a neighbour and the host can still make more.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/faults/field.rs"]
mod field;
#[path = "../../ringfence/tests/faults/http.rs"]
mod http;
#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use field::Field;
use http::Said;
use serde_json::{Value, json};

use Bound::{Count, Host, Killed, Memory, Nothing};

const OBJECTS: &str = include_str!("../probes/objects.py");
const INSIDE: &str = "/tmp/objects.py";
/// What a neighbour and the host make beside it.
const MORE: u64 = 5;
const MIB: u64 = 1 << 20;
/// Beside a sandbox's memory limit: what the kernel may take meanwhile for whatever else runs on the machine.
const KERNEL_SLACK: u64 = 128 * MIB;

/// What stops a user who makes more and more of something.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// The kernel refuses at this number at the latest.
    Count(u64),
    /// The same, at a number that is the host's setting.
    Host(&'static str),
    /// The limit of memory: the kernel refuses, or kills; or this many are made within it.
    Memory(u64),
    /// There is none to be made.
    Nothing,
    /// All processes of who makes more are killed; at this number at the latest.
    Killed(u64),
}

/// A kind of object, by its function in `probes/objects.py`.
const KINDS: &[(&str, Bound)] = &[
    // Processes and threads: the limit on tasks.
    ("processes", Count(256)),
    ("zombies", Count(256)),
    ("threads", Count(256)),
    // RLIMIT_SIGPENDING.
    ("queued_signals", Count(4_096)),
    ("posix_timers", Count(4_096)),
    // No filter can be laid on a filter: programs of the kernel's are in memory that all share.
    ("seccomp_filters", Nothing),
    ("seccomp_filters_by_prctl", Nothing),
    // The kernel's own bound of layers (landlock(7)).
    ("landlock_domains", Count(16)),
    // Descriptors: RLIMIT_NOFILE.
    ("files_open", Count(8_192)),
    ("pipes", Count(4_096)),
    ("epolls", Count(8_192)),
    ("eventfds", Count(8_192)),
    ("timerfds", Count(8_192)),
    ("signalfds", Count(8_192)),
    ("memfds", Count(8_192)),
    ("pidfds", Count(8_192)),
    ("udp_sockets", Count(8_192)),
    ("tcp_listeners", Count(8_192)),
    ("unix_sockets", Count(8_192)),
    // Made by process 1, which counts them.
    ("netlink_sockets", Count(64)),
    ("descriptors_in_flight", Count(8_193)),
    // The mount of its terminals.
    ("terminals", Count(128)),
    // For each user of a user namespace.
    ("inotify_instances", Host("fs/inotify/max_user_instances")),
    ("inotify_watches", Host("fs/inotify/max_user_watches")),
    ("epoll_items", Memory(8_000_000)),
    // The warden counts them, four times a second.
    ("file_locks", Killed(1_500_000)),
    ("file_locks_of_the_dead", Killed(1_500_000)),
    ("mappings", Host("vm/max_map_count")),
    ("memory_policies", Nothing),
    // The disk's inodes.
    ("extended_attributes", Count(32_768)),
    ("names_looked_up", Memory(300_000)),
    // The IPC namespace.
    ("shared_segments", Host("kernel/shmmni")),
    ("semaphore_sets", Count(32_000)),
    ("message_queues", Host("kernel/msgmni")),
    ("messages", Memory(1_000)),
    // Landlock: their file system is nowhere below the root. Without it, RLIMIT_MSGQUEUE.
    ("posix_queues", Nothing),
    // What lies in sockets, MiB.
    ("unix_bytes", Memory(1_000)),
    ("udp_bytes", Memory(1_000)),
    ("netlink_bytes", Count(32)),
    // Memberships are memory of the kernel's that counts for nobody.
    ("ipv6_groups", Nothing),
    ("ipv4_groups", Nothing),
    ("flow_labels", Nothing),
    // Not on the list of calls, or not with these arguments.
    ("keys", Nothing),
    ("bpf_maps", Nothing),
    ("perf_counters", Nothing),
    ("user_faults", Nothing),
    ("io_urings", Nothing),
    ("aio_contexts", Nothing),
    ("fanotify_groups", Nothing),
    ("namespaces", Nothing),
    ("user_namespaces", Nothing),
    ("mounts", Nothing),
    ("device_files", Nothing),
    ("huge_pages", Nothing),
];

/// What came of a run of `probes/objects.py`.
#[derive(Debug, Default)]
struct Made {
    count: u64,
    /// What ended it; nothing where it was killed.
    ended: Option<String>,
}

impl Made {
    fn of(text: &str) -> Self {
        let mut made = Self::default();
        for line in text.lines() {
            match line.strip_prefix("ENDED ") {
                Some(why) => made.ended = Some(why.to_owned()),
                None => made.count = line.parse().unwrap_or(made.count),
            }
        }
        made
    }
}

/// Memory of the kernel's own that it cannot give back at once, bytes: all that is neither free, nor a program's, nor a
/// file's.
fn kernel_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    let others: u64 =
        ["MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "SReclaimable"].iter().map(|n| of(n)).sum();
    of("MemTotal").saturating_sub(others)
}

/// Makes some on the host, by the same program.
fn on_the_host(field: &Field, name: &str) -> Made {
    let path = field.system.dir().join("objects.py");
    fs::write(&path, OBJECTS).unwrap();
    // What it changes is changed in mounts, host names and message queues of its own, which end with it.
    let output = Command::new("unshare")
        .args(["--mount", "--uts", "python3"])
        .arg(path)
        .args([name, &MORE.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Made::of(&String::from_utf8_lossy(&output.stdout))
}

/// Starts it in a sandbox; the exec's id.
fn begin(field: &Field, sandbox: &str, name: &str, most: u64, keep: bool) -> String {
    let mut argv = vec!["python3".to_owned(), INSIDE.to_owned(), name.to_owned(), most.to_string()];
    argv.extend(keep.then(|| "keep".to_owned()));
    let ask = json!({ "argv": argv, "background": true, "timeout_ms": 300_000 });
    let begun = field.must("POST", &format!("/v1/sandboxes/{sandbox}/exec"), &ask);
    begun["id"].as_str().unwrap().to_owned()
}

/// What it has said so far, and whether it runs.
fn said(field: &Field, exec: &str) -> (Made, bool) {
    // First, or its last words could come in between.
    let runs = field.must("GET", &format!("/v1/execs/{exec}"), &Value::Null)["state"] == "running";
    let logs = field.send("GET", &format!("/v1/execs/{exec}/logs"), b"");
    let Said::Answer { status: 200, body, .. } = logs else { panic!("{logs}") };
    (Made::of(&String::from_utf8_lossy(&body)), runs)
}

/// A sandbox of the standard limits with the program in it.
fn armed(field: &Field) -> String {
    let (id, _) = field.sandbox();
    let put = field.send("PUT", &format!("/v1/sandboxes/{id}/files?path={INSIDE}"), OBJECTS.as_bytes());
    assert!(put.is_done(), "{put}");
    id
}

/// One kind; what is wrong with it.
fn hold(field: &Field, neighbour: &str, name: &str, bound: Bound) -> Result<String, String> {
    let setting = |path: &str| -> u64 {
        fs::read_to_string(format!("/proc/sys/{path}")).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    let most = match bound {
        Count(count) => count,
        Host(path) => setting(path),
        Memory(most) | Killed(most) => most,
        Nothing => 0,
    };
    // Past the bound, so that it is the kernel that ends it.
    let tried = if matches!(bound, Memory(_)) { most } else { most + 2_000 };
    let greedy = armed(field);
    let before = kernel_bytes();
    let exec = begin(field, &greedy, name, tried, true);
    let (mut peak, mut made);
    let mut waited = Duration::ZERO;
    peak = 0;
    loop {
        let (now, runs) = said(field, &exec);
        peak = peak.max(kernel_bytes().saturating_sub(before));
        made = now;
        if made.ended.is_some() || !runs {
            break;
        }
        if waited > Duration::from_secs(200) {
            return Err(format!("still at it: {made:?}"));
        }
        waited += Duration::from_millis(50);
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut wrong = Vec::new();
    let refused = made.ended.as_deref() != Some("most");
    // A batch may go past what is asked for.
    let held = match bound {
        Count(_) | Host(_) | Nothing => refused && made.count <= most,
        Memory(_) => true,
        Killed(_) => made.ended.is_none() && made.count <= most,
    };
    if !held {
        wrong.push(format!("{made:?}, and the bound is {bound:?}"));
    }
    let limit = rf_types::Limits::STANDARD.memory_bytes_max;
    if peak > limit + KERNEL_SLACK && !matches!(bound, Nothing) {
        wrong.push(format!("{} MiB of the kernel's memory, in a sandbox of {}", peak / MIB, limit / MIB));
    }
    // While it holds what it has.
    let host = on_the_host(field, name);
    if matches!(bound, Nothing) {
        // The control: here the host's answer shows that there is such a thing.
        if host.count == 0 {
            println!("{name}: not on this host either: {host:?}");
        }
    } else {
        let beside = begin(field, neighbour, name, MORE, false);
        let beside = loop {
            let (made, runs) = said(field, &beside);
            if !runs {
                break made;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        for (who, made) in [("a neighbour", beside), ("the host", host)] {
            if made.count < MORE {
                wrong.push(format!("{who} makes no more: {made:?}"));
            }
        }
    }
    field.must("DELETE", &format!("/v1/sandboxes/{greedy}"), &Value::Null);
    let told = format!("{name}: {made:?}, kernel {} MiB", peak / MIB);
    if wrong.is_empty() { Ok(told) } else { Err(format!("{name}: {}", wrong.join("; "))) }
}

#[test]
fn every_kernel_object_has_a_bound_and_others_can_still_make_it() {
    let field = Field::start();
    let neighbour = armed(&field);
    let mut wrong = Vec::new();
    for (name, bound) in KINDS {
        let once = || hold(&field, &neighbour, name, *bound);
        // Once more where it went wrong: others on this machine take memory of the kernel's too.
        match once().or_else(|_| once()) {
            Ok(told) => println!("{told}"),
            Err(told) => {
                println!("WRONG {told}");
                wrong.push(told);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    field.must("DELETE", &format!("/v1/sandboxes/{neighbour}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

#[test]
fn who_makes_too_many_locks_again_and_again_is_ended_and_nobody_else() {
    let field = Field::start();
    let neighbour = armed(&field);
    let greedy = armed(&field);
    let lives = |id: &str| field.send("GET", &format!("/v1/sandboxes/{id}"), b"").is_done();
    let mut killed = 0;
    while lives(&greedy) {
        // It may end meanwhile.
        let argv = json!({ "argv": ["python3", INSIDE, "file_locks", "3000000"], "timeout_ms": 60_000 });
        let Said::Answer { status, body, .. } =
            field.send("POST", &format!("/v1/sandboxes/{greedy}/exec"), argv.to_string().as_bytes())
        else {
            panic!("no answer")
        };
        let result: Value = serde_json::from_slice(&body).unwrap();
        assert!(status != 200 || result["signal"] == 9, "{result}");
        killed += u32::from(status == 200);
        assert!(killed < 20, "never ended");
    }
    // The first time only its processes are killed.
    assert!(killed >= 1, "{killed}");
    assert!(lives(&neighbour));
    field.must("DELETE", &format!("/v1/sandboxes/{neighbour}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}
