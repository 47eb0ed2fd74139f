//! Names swapped underfoot while somebody works on them through the server: no byte goes out, and none comes in.
//!
//! A program inside swaps directories for links that lead out, and files for links and FIFOs, by `renameat2(2)` and as
//! fast as it is let. Against it run file operations of every kind over kept-alive connections. What lies outside, on
//! the host and in another user's reach, is compared to the byte; what is read is searched for what lies there.
//!
//! `RINGFENCE_RACE_OPERATIONS` sets how many operations; [`SWAPS_EACH`] as many swaps there are at least.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/faults/field.rs"]
mod field;
#[path = "../../ringfence/tests/faults/http.rs"]
mod http;
#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use field::{Field, until};
use http::Said;
use serde_json::{Value, json};

/// The program that swaps.
const SWAP: &str = include_str!("../probes/swap.c");
/// Operations unless the environment says otherwise: what takes about a minute in a debug build on two processors.
const OPERATIONS: usize = 50_000;
/// Swaps for each operation, at least.
const SWAPS_EACH: u64 = 20;
/// What lies outside, and nowhere inside.
const OUTSIDE: &str = "OUTSIDE-5b1d0f77";
/// Longest time of one operation; it may wait for a processor, and for no FIFO.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// What is there to be read, written and removed behind the links.
fn outside_at(dir: &Path) {
    for sub in ["", "sub", "d/e"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    for file in ["secret", "sub/secret", "new", "moved", "d/e/f"] {
        fs::write(dir.join(file), OUTSIDE).unwrap();
        // Whoever gets here may do what they like: only the path keeps them away.
        fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o666)).unwrap();
    }
    for sub in ["", "sub", "d", "d/e"] {
        fs::set_permissions(dir.join(sub), fs::Permissions::from_mode(0o777)).unwrap();
    }
}

/// Everything that a change of one byte, name, mode, owner, time or identity would show in.
fn look(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, [i64; 6])> {
    let mut seen = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let numbers = [meta.ino() as i64, i64::from(meta.mode()), i64::from(meta.uid()), meta.nlink() as i64];
        let times =
            [meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), meta.ctime() * 1_000_000_000 + meta.ctime_nsec()];
        let [a, b, c, d] = numbers;
        let [e, f] = times;
        seen.insert(path, (bytes, [a, b, c, d, e, f]));
    }
    seen
}

/// How a server that resolved paths on the host would do it with care: it looks at each part, and then opens. Everything
/// else about it is right, and yet it is too late when it opens.
fn naive(root: &Path, path: &str) -> io::Result<PathBuf> {
    let mut at = root.to_owned();
    for part in Path::new(path).components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
        at.push(part);
        if fs::symlink_metadata(&at)?.is_symlink() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    Ok(at)
}

/// A directory of names that are swapped, and where its links lead.
struct Lane {
    name: String,
    out: String,
}

/// Makes the lanes in a sandbox and starts the swapping of them.
fn start_swapping(field: &Field, sandbox: &str, inside: &Path, lanes: &[Lane]) {
    let route = format!("/v1/sandboxes/{sandbox}");
    let put = field.send("PUT", &format!("{route}/files?path=/tmp/swap.c"), SWAP.as_bytes());
    assert!(put.is_done(), "{put}");
    let mut line =
        "set -e; mkdir /tmp/race; : > /tmp/race/on; cc -O2 -o /tmp/swap /tmp/swap.c; cd /tmp/race".to_owned();
    for Lane { name, out } in lanes {
        line.push_str(&format!("; mkdir {name}; ln -s '{out}' {name}/out"));
    }
    let made = field.shell(sandbox, &line).json().unwrap_or_default();
    assert_eq!(made["code"], 0, "{made}");
    let mut argv = vec!["/tmp/swap", "/tmp/race"];
    argv.extend(lanes.iter().map(|lane| lane.name.as_str()));
    field.must("POST", &format!("{route}/exec"), &json!({ "argv": argv, "background": true }));
    until("the swapping begins", || turns(inside) > 0).unwrap();
}

/// How many swaps there were so far.
fn turns(inside: &Path) -> u64 {
    let bytes = fs::read(inside.join("tmp/race/turns")).unwrap_or_default();
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

/// A small tree to be unpacked.
fn archive() -> Vec<u8> {
    let mut tree = tar::Builder::new(Vec::new());
    for name in ["secret", "sub/secret", "sub/more"] {
        let mut header = tar::Header::new_ustar();
        header.set_size(6);
        header.set_mode(0o644);
        tree.append_data(&mut header, name, &b"inside"[..]).unwrap();
    }
    tree.into_inner().unwrap()
}

/// One operation: method, path and query below the sandbox's, body.
type Ask = (&'static str, String, Vec<u8>);

/// The operations of a lane, of every kind that there is.
fn operations(lane: &str) -> Vec<Ask> {
    let at = format!("/tmp/race/{lane}");
    let get = |what: &str, path: &str| ("GET", format!("/files{what}path={at}/{path}"), Vec::new());
    let put = |path: &str, more: &str| ("PUT", format!("/files?path={at}/{path}{more}"), b"inside".to_vec());
    let post = |what: &str, body: Value| ("POST", format!("/files/{what}"), body.to_string().into_bytes());
    let tree = ("PUT", format!("/files/tar?path={at}/at"), archive());
    vec![
        get("?", "at/secret"),
        put("at/secret", ""),
        get("?", "leaf"),
        put("leaf", "&mode=replace"),
        put("at/new", "&mode=append"),
        get("/stat?follow=true&", "at/secret"),
        get("/stat?follow=true&", "leaf"),
        get("/list?depth=3&", "at"),
        get("/tar?", "at"),
        tree,
        post("move", json!({ "from": format!("{at}/at/new"), "to": format!("{at}/at/moved"), "replace": true })),
        get("?", "at/moved"),
        post("mkdir", json!({ "path": format!("{at}/at/d/e"), "parents": true })),
        put("at/d/e/f", "&parents=true&mode=replace"),
        put("at/d/once", "&mode=create_new"),
        put("leaf", ""),
        post("chmod", json!({ "path": format!("{at}/at/secret"), "permissions": "640" })),
        post("chmod", json!({ "path": format!("{at}/leaf"), "permissions": "600" })),
        get("/tar?", "."),
        post("remove", json!({ "path": format!("{at}/at/d"), "recursive": true })),
        post("move", json!({ "from": format!("{at}/leaf"), "to": format!("{at}/at/leaf"), "replace": true })),
        post("remove", json!({ "path": format!("{at}/at/leaf") })),
        get("/list?depth=64&", "."),
        post("remove", json!({ "path": format!("{at}/at"), "recursive": true })),
    ]
}

/// What the operations of one lane came to.
#[derive(Debug, Default)]
struct Came {
    /// For each operation of the list: how often it was done, and how often refused.
    counts: Vec<[usize; 2]>,
    codes: BTreeSet<String>,
    wrong: Vec<String>,
}

/// Goes through a lane's operations again and again, `count` times in all.
fn work(field: &Field, sandbox: &str, lane: &str, count: usize, ended: &AtomicBool) -> Came {
    let list = operations(lane);
    let mut came = Came { counts: vec![[0; 2]; list.len()], ..Came::default() };
    let mut call = field.open().unwrap();
    for turn in 0..count {
        let (method, path, body) = &list[turn % list.len()];
        let mut bytes = field.head(method, &format!("/v1/sandboxes/{sandbox}{path}"), body.len(), "");
        bytes.extend_from_slice(body);
        let since = Instant::now();
        call.send(&bytes).unwrap();
        let said = call.answer();
        let slot = &mut came.counts[turn % list.len()];
        let mut bad = since.elapsed() > ANSWERED_WITHIN;
        match &said {
            // The name in it is ours; the text is nobody's but what lies outside.
            Said::Answer { body, .. } if contains(body, OUTSIDE.as_bytes()) => bad = true,
            Said::Answer { status: 200..=299, whole: true, .. } => slot[0] += 1,
            // A tree that vanished while it was being sent.
            Said::Answer { status: 200, whole: false, .. } => slot[1] += 1,
            said => {
                slot[1] += 1;
                match said.code() {
                    Some(code) => drop(came.codes.insert(code)),
                    None => bad = true,
                }
            }
        }
        if call.last || matches!(said, Said::Answer { whole: false, .. }) {
            call = field.open().unwrap();
        }
        if bad {
            came.wrong.push(format!("{lane}: {method} {path} after {:?}: {said}", since.elapsed()));
        }
        if came.wrong.len() > 10 || ended.load(Ordering::Relaxed) {
            break;
        }
    }
    came
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

#[test]
fn a_naive_resolver_on_the_host_would_have_been_caught() {
    let field = Field::start();
    let (sandbox, init) = field.sandbox();
    let inside = PathBuf::from(format!("/proc/{init}/root"));
    let decoy = field.system.dir().join("decoy");
    outside_at(&decoy);
    let before = look(&decoy);
    start_swapping(&field, &sandbox, &inside, &[Lane { name: "a".into(), out: decoy.to_str().unwrap().into() }]);
    let (mut read, mut written, mut tries) = (0, 0, 0);
    until("it reads and writes what lies outside", || {
        for _ in 0..1_000 {
            tries += 1;
            let Ok(path) = naive(&inside, "tmp/race/a/at/secret") else { continue };
            read += usize::from(fs::read(&path).is_ok_and(|bytes| bytes == OUTSIDE.as_bytes()));
            let Ok(path) = naive(&inside, "tmp/race/a/at/new") else { continue };
            // In place: where there is no such file it fails, as inside at the first.
            let opened = fs::File::options().write(true).open(path);
            written += usize::from(opened.is_ok_and(|mut file| io::Write::write_all(&mut file, b"got out").is_ok()));
        }
        read > 0 && written > 0
    })
    .unwrap();
    println!("{tries} tries, {} swaps: read outside {read} times, wrote outside {written} times", turns(&inside));
    assert_ne!(look(&decoy), before, "what it wrote is seen by who looks");
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

#[test]
fn names_swapped_underfoot_move_no_byte() {
    let operations_count: usize = match std::env::var("RINGFENCE_RACE_OPERATIONS") {
        Ok(text) => text.parse().expect("RINGFENCE_RACE_OPERATIONS is a number"),
        Err(_) => OPERATIONS,
    };
    let field = Field::start();
    let spec = json!({ "lease_ms": 3_600_000 });
    let (sandbox, init) = field.sandbox_with(&spec);
    let (other, init_of_other) = field.sandbox_with(&spec);
    let inside = PathBuf::from(format!("/proc/{init}/root"));
    let (host, theirs) =
        (field.system.dir().join("outside"), PathBuf::from(format!("/proc/{init_of_other}/root/tmp/outside")));
    outside_at(&host);
    // In the other's, whose ids are not ours, by the other.
    let copy = "cd /tmp; mkdir -p outside/sub outside/d/e; for f in secret sub/secret new moved d/e/f; \
                do printf OUTSIDE > outside/$f; done; chmod -R a+rwX outside";
    let made = field.shell(&other, &copy.replace("OUTSIDE", OUTSIDE)).json().unwrap();
    assert_eq!(made["code"], 0, "{made}");
    // Beside it, a link that a resolver would follow.
    symlink(&host, host.join("sub/again")).unwrap();
    let before = (look(&host), look(&theirs));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let dots = "../".repeat(12);
    let lanes = [
        Lane { name: "host".into(), out: text(&host) },
        Lane { name: "dots".into(), out: format!("{}{}", dots.trim_end_matches('/'), text(&host)) },
        Lane { name: "other".into(), out: text(&theirs) },
        Lane { name: "magic".into(), out: format!("/proc/self/root{}", text(&host)) },
        // Inside there is such a path as well: what goes there is the sandbox's own.
        Lane { name: "twin".into(), out: "/tmp/outside".into() },
    ];
    let made = field.shell(&sandbox, "mkdir -p /tmp/outside/sub; echo inside > /tmp/outside/secret").json().unwrap();
    assert_eq!(made["code"], 0, "{made}");
    start_swapping(&field, &sandbox, &inside, &lanes);

    let (began, first, ended) = (Instant::now(), turns(&inside), AtomicBool::new(false));
    let came: Vec<Came> = std::thread::scope(|scope| {
        let work = |lane: &Lane| work(&field, &sandbox, &lane.name, operations_count / lanes.len(), &ended);
        let workers: Vec<_> = lanes.iter().map(|lane| scope.spawn(move || work(lane))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let (took, at_the_end) = (began.elapsed(), turns(&inside) - first);
    let wanted = operations_count as u64 * SWAPS_EACH;
    until("as many swaps as there must be", || turns(&inside) - first >= wanted).unwrap();
    let done: usize = came.iter().flat_map(|came| came.counts.iter().map(|[done, refused]| done + refused)).sum();
    let swaps = turns(&inside) - first;
    println!("{done} operations in {took:?} against {at_the_end} swaps meanwhile, {swaps} in all");
    for (lane, came) in lanes.iter().zip(&came) {
        println!("{}: {:?} {:?}", lane.name, came.counts, came.codes);
    }

    let wrong: Vec<_> = came.iter().flat_map(|came| &came.wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let codes: BTreeSet<&str> = came.iter().flat_map(|came| came.codes.iter().map(String::as_str)).collect();
    let known = BTreeSet::from(["not_found", "file_failed", "conflict", "invalid_request"]);
    assert!(codes.is_subset(&known), "{codes:?}");
    // Each kind met the directory or file, and each met what it was swapped for.
    for (at, (method, path, _)) in operations("x").iter().enumerate() {
        let [done, refused] = came.iter().fold([0; 2], |sum, came| {
            let [done, refused] = came.counts[at];
            [sum[0] + done, sum[1] + refused]
        });
        let listing = path.contains("path=/tmp/race/x/.");
        assert!(done > 0 && (refused > 0 || listing), "{method} {path}: {done} done, {refused} refused");
    }
    assert!(at_the_end >= done as u64, "{at_the_end} swaps during {done} operations");
    assert!(swaps >= wanted && done >= operations_count - lanes.len());
    assert_eq!(before.0, look(&host), "the host's");
    assert_eq!(before.1, look(&theirs), "the other sandbox's");
    for id in [&sandbox, &other] {
        field.must("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
    }
    field.settle().unwrap();
    field.end();
}
