//! Every kernel object that a workload can make has a bound, and past it the sandbox, its neighbour and the server work.
//!
//! The control of each bomb is the same bomb in a sandbox with a wider limit: it comes further there.

#![allow(dead_code, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

mod attacks;
mod field;

use field::Field;
use serde_json::{Value, json};

const BOMB: &str = include_str!("../probes/bomb.py");

struct Bomb {
    name: &'static str,
    /// Where the control may stop, past `bound`.
    most: u64,
    /// The sandbox under attack.
    narrow: Value,
    /// The control's.
    wide: Value,
    /// How far it may come in the narrow one.
    bound: u64,
    user: &'static str,
}

fn bombs() -> Vec<Bomb> {
    let memory = |mib: u64| json!({ "limits": { "memory_bytes_max": mib << 20, "disk_bytes_max": 8 << 20 } });
    let tasks = |count: u64| json!({ "limits": { "tasks_max": count } });
    let disk = |mib: u64| json!({ "limits": { "disk_bytes_max": mib << 20, "memory_bytes_max": 512 << 20 } });
    let image = |mib: u64| json!({ "disk": "image", "limits": { "disk_bytes_max": mib << 20 } });
    let inodes = |count: u64| json!({ "limits": { "inodes_max": count } });
    let bomb = |name, most, bound, narrow, wide| Bomb { name, most, narrow, wide, bound, user: "user" };
    vec![
        bomb("forks", 60, 32, tasks(32), tasks(256)),
        bomb("sessions", 60, 32, tasks(32), tasks(256)),
        bomb("threads", 60, 32, tasks(32), tasks(256)),
        bomb("memory", 120, 64, memory(64), memory(256)),
        bomb("memory_in_a_file", 120, 64, memory(64), memory(256)),
        bomb("shared_memory", 120, 64, memory(64), memory(256)),
        bomb("pipes", 80, 64, memory(64), memory(256)),
        bomb("unix_buffers", 120, 64, memory(64), memory(256)),
        bomb("disk", 40, 16, disk(16), disk(64)),
        bomb("disk", 40, 16, image(16), image(64)),
        bomb("disk_of_shm", 40, 16, disk(16), disk(64)),
        Bomb { user: "root", ..bomb("disk_of_usr", 40, 16, disk(16), disk(64)) },
        bomb("files", 2_000, 1_000, inodes(1_000), inodes(10_000)),
        bomb("directories", 2_000, 1_000, inodes(1_000), inodes(10_000)),
        bomb("links", 2_000, 1_000, inodes(1_000), inodes(10_000)),
    ]
}

impl Field {
    /// A fresh sandbox with the bombs in it.
    fn armed(&self, ask: &Value) -> String {
        let id = self.sandbox_of(ask);
        let put = self.exec_in(&id, &json!({ "shell": "cat > /tmp/bomb.py", "stdin": BOMB }));
        assert_eq!(put["code"], 0, "{put}");
        id
    }

    /// Sets one off; how far it came.
    fn explode(&self, id: &str, name: &str, most: u64, user: &str, rlimits: &Value) -> u64 {
        let argv = json!(["python3", "/tmp/bomb.py", name, most.to_string()]);
        let body = json!({ "argv": argv, "user": user, "timeout_ms": 60_000, "rlimits": rlimits });
        let result = self.exec_in(id, &body);
        assert_ne!(result["timed_out"], true, "{name}: {result}");
        result["stdout"].as_str().unwrap().lines().last().map_or(0, |line| line.parse().unwrap())
    }

    fn works(&self, id: &str) {
        let result = self.exec_in(id, &json!({ "shell": "echo here" }));
        assert_eq!(result["stdout"], "here\n", "{result}");
    }
}

#[test]
fn a_bomb_comes_no_further_than_the_limit() {
    let field = Field::open();
    let neighbour = field.sandbox_of(&json!({}));
    let mut wrong = Vec::new();
    for bomb in bombs() {
        let narrow = field.armed(&bomb.narrow);
        let reached = field.explode(&narrow, bomb.name, bomb.most, bomb.user, &json!({}));
        if reached > bomb.bound {
            wrong.push(format!("{}: came to {reached}, past {}", bomb.name, bomb.bound));
        }
        field.works(&neighbour);
        let wide = field.armed(&bomb.wide);
        let control = field.explode(&wide, bomb.name, bomb.most, bomb.user, &json!({}));
        if control <= bomb.bound {
            wrong.push(format!("{}: the control came to {control} only, so nothing is shown", bomb.name));
        }
        field.destroy(&narrow);
        field.destroy(&wide);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    field.close();
}

#[test]
fn limits_of_each_process_hold() {
    let field = Field::open();
    let id = field.armed(&json!({ "limits": { "tasks_max": 64 } }));
    let reach = |name, most, rlimits| field.explode(&id, name, most, "user", &rlimits);
    assert!(reach("descriptors", 400, json!({ "files_max": 100 })) < 100);
    assert_eq!(reach("descriptors", 400, json!({})), 400, "the control");
    assert!(reach("descriptors", 20_000, json!({})) < 8_192, "the sandbox's own limit");
    assert!(reach("locked_memory", 40, json!({})) <= 8, "RLIMIT_MEMLOCK");
    assert!(reach("timers", 100_000, json!({})) <= 4_096, "RLIMIT_SIGPENDING");
    assert!(reach("watchers", 100_000, json!({})) < 8_192, "inotify instances");
    assert_eq!(reach("terminals", 100_000, json!({})), 128, "terminals");
    field.works(&id);
    field.close();
}

#[test]
fn what_one_sandbox_has_used_up_another_still_has() {
    let field = Field::open();
    let (greedy, other) = (field.armed(&json!({})), field.armed(&json!({})));
    for name in ["watchers", "terminals"] {
        let keep = format!(
            "setsid python3 /tmp/bomb.py {name} 100000 /tmp/{name} >/dev/null 2>&1 & until [ -e /tmp/{name} ]; do sleep 0.1; done"
        );
        let result = field.exec_in(&greedy, &json!({ "shell": keep, "timeout_ms": 60_000 }));
        assert_eq!(result["code"], 0, "{result}");
        let more = |id: &str| field.explode(id, name, 5, "user", &json!({}));
        assert_eq!(more(&greedy), 0, "the control: {name} are used up");
        assert_eq!(more(&other), 5, "{name}");
    }
    field.close();
}

#[test]
fn tcp_buffers_are_held_or_said_not_to_be() {
    let field = Field::open();
    let id = field.armed(&json!({ "limits": { "memory_bytes_max": 64 << 20, "disk_bytes_max": 8 << 20 } }));
    let memory = field.layer(&id, "memory");
    // 400 descriptors are 200 connections, which took 2.5 MiB each before they were bounded.
    let reached = field.explode(&id, "tcp_buffers", 1_000, "user", &json!({ "files_max": 400 }));
    if memory["held"] == "full" {
        assert!(reached <= 64, "{reached} MiB past a limit of 64 that is said to be held");
    } else {
        assert!(memory["missing"].as_str().unwrap().contains("TCP"), "{memory}");
        // A quarter of the memory limit for all, and what the kernel gives each connection past it.
        assert!(reached <= 64 / 4 + 200 * 32 / 1024, "{reached} MiB in 200 connections");
    }
    field.works(&id);
    field.close();
}

#[test]
fn killing_an_exec_finds_what_detached_itself() {
    let field = Field::open();
    let id = field.armed(&json!({ "limits": { "tasks_max": 64 } }));
    let body = json!({ "shell": "python3 /tmp/bomb.py sessions 20; sleep 1000", "timeout_ms": 3_000 });
    let result = field.exec_in(&id, &body);
    assert_eq!(result["timed_out"], true, "{result}");
    assert_eq!(result["stdout"].as_str().unwrap().lines().last(), Some("20"), "the control: they were there");
    let left = field.exec_in(&id, &json!({ "shell": "ps -eo args | grep -c '[b]omb.py'" }));
    assert_eq!(left["stdout"], "0\n", "{left}");
    field.close();
}

#[test]
fn processor_time_is_held_to_the_limit() {
    let field = Field::open();
    let busy = "for i in 1 2; do (timeout 2 sh -c 'while :; do :; done') & done; wait";
    let share = |milli: u64| {
        let id = field.sandbox_of(&json!({ "limits": { "cpu_milli_max": milli } }));
        let result = field.exec_in(&id, &json!({ "shell": busy }));
        let usage = &result["usage"];
        let number = |name: &str| usage[name].as_f64().unwrap_or_else(|| panic!("{name}: {result}"));
        (number("cpu_user_us") + number("cpu_system_us")) / number("wall_us")
    };
    // By the kernel's own count, against its own clock: how busy the machine is only makes both smaller.
    let (narrow, control) = (share(100), share(2_000));
    assert!(narrow < 0.2, "{narrow} of a processor");
    assert!(control > 0.25, "the control had only {control} of a processor");
    field.close();
}

#[test]
fn a_flood_of_output_is_cut_and_said() {
    let field = Field::open();
    let id = field.sandbox_of(&json!({}));
    let flood = json!({ "shell": "head -c 50000000 /dev/zero | tr '\\0' x; echo end >&2", "output_bytes_max": 1000 });
    let result = field.exec_in(&id, &flood);
    assert_eq!(result["code"], 0, "it was not stopped: {}", result["stderr"]);
    assert_eq!(result["stdout"].as_str().unwrap().len(), 1000);
    assert_eq!(result["stdout_truncated"], true);
    assert_eq!((&result["stderr"], &result["stderr_truncated"]), (&json!("end\n"), &json!(false)));
    field.close();
}
