//! One user's sandbox runs every bomb; another user works beside it, and every one of their operations is done.
//!
//! Nothing is timed here but hangs: how much slower a neighbour gets is measured by `bench/run`.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/faults/field.rs"]
mod field;
#[path = "../../ringfence/tests/faults/http.rs"]
mod http;
#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use field::{Field, runs, until};
use http::{Call, Said};
use serde_json::{Value, json};

const BOMB: &str = include_str!("../probes/bomb.py");
/// In every command line of the bombs.
const MARK: &str = "bomb-of-the-neighbour";
/// Longest time of one operation of the neighbour's. It may wait for a processor; on a busy machine for many others.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Whole rounds that the neighbour makes beside each bomb, at least.
const ROUNDS: usize = 2;

/// How long each bomb has to do what it does, at least.
const BURNS: Duration = Duration::from_secs(1);

/// Lines for the shell; `bomb NAME` explodes one of `bomb.py`, and again until its time is over.
const BOMBS: &[(&str, &str)] = &[
    ("forks of forks", "f() { f | f & }; f; sleep 1000"),
    ("forks", "bomb forks"),
    ("sessions", "bomb sessions"),
    ("threads", "bomb threads"),
    ("processors", "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait"),
    ("memory", "bomb memory"),
    ("a file in memory", "bomb memory_in_a_file"),
    ("shared memory", "bomb shared_memory"),
    ("pipes", "bomb pipes"),
    ("unix sockets", "bomb unix_buffers"),
    ("tcp sockets", "bomb tcp_buffers"),
    ("disk", "while :; do dd if=/dev/zero of=/tmp/fill bs=1M 2>/dev/null; rm -f /tmp/fill; done"),
    ("syncs", "while :; do dd if=/dev/zero of=/tmp/fill bs=4k count=1000 conv=fsync 2>/dev/null; done"),
    ("files", "bomb files"),
    ("directories", "bomb directories"),
    ("links", "bomb links"),
    ("descriptors", "bomb descriptors"),
    ("locked memory", "bomb locked_memory"),
    ("timers", "bomb timers"),
    ("watchers", "bomb watchers"),
    ("output", "yes out & yes err >&2"),
    ("execs", "while :; do /bin/true; done"),
    ("signals", "trap '' USR1; for i in 1 2 3 4; do (while :; do kill -USR1 0; done) & done; wait"),
];

/// Somebody who works with a key of their own, on one connection that is kept.
struct Neighbour<'a> {
    field: &'a Field,
    key: String,
    call: Call,
}

impl Neighbour<'_> {
    /// An operation that must be done, and in time.
    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let head = String::from_utf8(self.field.head(method, path, body.len(), "")).unwrap();
        let mut bytes = head.replace(&self.field.key, &self.key).into_bytes();
        bytes.extend_from_slice(body);
        let since = Instant::now();
        self.call.send(&bytes).unwrap();
        let said = self.call.answer();
        assert!(said.is_done(), "{method} {path}: {said}");
        assert!(since.elapsed() < ANSWERED_WITHIN, "{method} {path} took {:?}", since.elapsed());
        let Said::Answer { body, .. } = said else { unreachable!("it is done") };
        body
    }

    fn json(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let said = self.ask(method, path, body.as_bytes());
        if said.is_empty() { Value::Null } else { serde_json::from_slice(&said).unwrap() }
    }

    /// What somebody does with a sandbox: commands, files, one more sandbox.
    fn round(&mut self, sandbox: &str, number: usize) {
        let route = format!("/v1/sandboxes/{sandbox}");
        let word = format!("word-{number}");
        let ran = self.json("POST", &format!("{route}/exec"), &json!({ "argv": ["echo", word] }));
        assert_eq!((&ran["code"], &ran["stdout"]), (&json!(0), &json!(format!("{word}\n"))), "{ran}");
        let bytes: Vec<u8> = (0..300_000_usize).map(|at| (at * (number + 3)) as u8).collect();
        self.ask("PUT", &format!("{route}/files?path=/tmp/mine&mode=replace"), &bytes);
        assert!(self.ask("GET", &format!("{route}/files?path=/tmp/mine"), b"") == bytes, "other bytes came back");
        let sum = self.json("POST", &format!("{route}/exec"), &json!({ "shell": "wc -c < /tmp/mine; rm /tmp/mine" }));
        assert_eq!(sum["stdout"], "300000\n", "{sum}");
        let listed = self.json("GET", &format!("{route}/files/list?path=/tmp"), &Value::Null);
        assert!(!listed.to_string().contains("bomb"), "{listed}");
        let begun = json!({ "shell": "cat /etc/hostname; exit 7", "background": true });
        let begun = self.json("POST", &format!("{route}/exec"), &begun)["id"].as_str().unwrap().to_owned();
        let ended = self.json("GET", &format!("/v1/execs/{begun}/wait?timeout_ms=19000"), &Value::Null);
        assert_eq!((&ended["state"], &ended["code"]), (&json!("exited"), &json!(7)), "{ended}");
        let more = self.json("POST", "/v1/sandboxes", &json!({}))["id"].as_str().unwrap().to_owned();
        let ran = self.json("POST", &format!("/v1/sandboxes/{more}/exec"), &json!({ "argv": ["true"] }));
        assert_eq!(ran["code"], 0, "{ran}");
        self.ask("DELETE", &format!("/v1/sandboxes/{more}"), b"");
    }
}

#[test]
fn a_neighbour_works_beside_every_bomb() {
    let field = Field::start();
    let key = field.system.json(&["user", "add", "neighbour"])["key"].as_str().unwrap().to_owned();
    let mut neighbour = Neighbour { field: &field, key, call: field.open().unwrap() };
    let quiet = neighbour.json("POST", "/v1/sandboxes", &json!({}))["id"].as_str().unwrap().to_owned();
    neighbour.round(&quiet, 0);
    let (loud, _) = field.sandbox_with(&json!({ "disk": "image", "lease_ms": 3_600_000 }));
    let route = format!("/v1/sandboxes/{loud}");
    assert!(field.send("PUT", &format!("{route}/files?path=/tmp/bomb.py"), BOMB.as_bytes()).is_done());

    let (rounds, over) = (AtomicUsize::new(1), AtomicBool::new(false));
    let mut silent = Vec::new();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                neighbour.round(&quiet, rounds.load(Ordering::Relaxed));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for (name, line) in BOMBS {
            let (before, began) = (rounds.load(Ordering::Relaxed), Instant::now());
            let line = format!(
                ": {MARK}; bomb() {{ while :; do python3 /tmp/bomb.py \"$1\" 1000000 {MARK} >/dev/null; \
                 rm -rf /tmp/bomb-*; done; }}; {line}"
            );
            let begun = field.ask("POST", &format!("{route}/exec"), &json!({ "shell": line, "background": true }));
            let id = begun.json().and_then(|exec| Some(exec["id"].as_str()?.to_owned()));
            let id = id.unwrap_or_else(|| panic!("{name}: {begun}"));
            if until("the bomb explodes", || runs(MARK)).is_err() {
                silent.push(*name);
            }
            // Its owner's own calls are answered as well, whatever the answer.
            let said = field.shell(&loud, "true");
            assert!(said.is_done() || said.code().is_some(), "{name}: {said}");
            let waited = patiently(|| {
                worker.is_finished() || (began.elapsed() > BURNS && rounds.load(Ordering::Relaxed) > before + ROUNDS)
            });
            if worker.is_finished() {
                break;
            }
            assert!(
                waited,
                "{name}: the neighbour came from round {before} to {} only",
                rounds.load(Ordering::Relaxed)
            );
            field.must("POST", &format!("/v1/execs/{id}/signal"), &json!({ "signal": 9, "scope": "tree" }));
            until("the bomb is over", || !runs(MARK)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let made = rounds.load(Ordering::Relaxed) - before;
            println!("{name}: the neighbour made {made} rounds in {:?}", began.elapsed());
        }
        over.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    });
    assert!(silent.is_empty(), "bombs that did not explode: {silent:?}");
    // Who exploded is not dead either.
    let said = field.shell(&loud, "echo here").json().unwrap();
    assert_eq!(said["stdout"], "here\n", "{said}");
    field.must("DELETE", &route, &Value::Null);
    neighbour.ask("DELETE", &format!("/v1/sandboxes/{quiet}"), b"");
    drop(neighbour);
    field.settle().unwrap();
    field.end();
}

/// Waits as long as many operations of the neighbour's may take.
fn patiently(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + 10 * ANSWERED_WITHIN;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
