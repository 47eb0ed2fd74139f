//! What runs out: the disk of the ledger, descriptors of the server, and disk, inodes, memory and tasks of a sandbox.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    field::{Field, runs, until},
    http::{Call, Said},
    support::{System, fresh_dir},
};

/// Longest time to a typed error.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// The user id of a server that root started.
const SERVER: u32 = 1_878_982_657;

/// An answer that must be this error, in time.
fn refused(field: &Field, method: &str, path: &str, body: &Value, codes: &[(u16, &str)]) {
    let since = Instant::now();
    let said = field.ask(method, path, body);
    let took = since.elapsed();
    let code = said.code();
    assert!(codes.iter().any(|(status, word)| said.status() == *status && code.as_deref() == Some(*word)), "{said}");
    assert!(took < ANSWERED_WITHIN, "{took:?}: {said}");
}

/// Runs a program that must succeed.
fn host(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A small file system of its own; unmounted at the end, whatever happens.
struct Small(PathBuf);

impl Small {
    /// Whose owner is the server.
    fn on(dir: &Path) -> Self {
        Self::of(dir, &format!("size=24m,mode=0700,uid={SERVER},gid={SERVER}"))
    }

    fn of(dir: &Path, options: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        host("mount", &["-t", "tmpfs", "-o", options, "tmpfs", dir.to_str().unwrap()]);
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: what still ends there must not keep it.
        let _ = Command::new("umount").args(["-l", self.0.to_str().unwrap()]).status();
    }
}

#[test]
fn a_full_disk_refuses_what_cannot_be_recorded_and_heals_by_itself() {
    let dir = fresh_dir();
    // Only what the server writes: the ledger, the store, the spools.
    let small = Small::on(&dir.path().join("state/server"));
    let field = Field::of(System::start_in(dir));
    let (sandbox, _) = field.sandbox();
    let exec = format!("/v1/sandboxes/{sandbox}/exec");
    assert!(field.shell(&sandbox, "true").is_done());

    // Filled to its last byte, and held full: what the ledger had room for ahead is used up by what is refused.
    let hog = small.0.join("hog");
    let fill = || {
        let mut file = fs::File::options().create(true).append(true).open(&hog).unwrap();
        for size in [1 << 20, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    };
    fill();
    let mut tried = 0;
    until("something is refused", || {
        fill();
        tried += 1;
        let said = field.ask("POST", &exec, &json!({ "argv": ["true"] }));
        assert!(said.is_done() || said.code().is_some(), "{said}");
        said.status() == 503
    })
    .unwrap();
    eprintln!("full after {tried} execs");
    let line = json!({ "shell": "echo ran >> /tmp/ran" });
    let refusals = [(503, "ledger_unavailable"), (503, "store_unavailable")];
    for _ in 0..3 {
        refused(&field, "POST", &exec, &line, &refusals);
        refused(&field, "POST", "/v1/sandboxes", &json!({}), &refusals);
    }
    let server = field.server();

    // Room again: it goes on, nobody was restarted, and nothing of what was refused was done.
    fs::remove_file(&hog).unwrap();
    until("it works again", || field.shell(&sandbox, "true").is_done()).unwrap();
    assert_eq!(field.server(), server);
    let ran = field.shell(&sandbox, "test -e /tmp/ran").json().unwrap();
    assert_eq!(ran["code"], 1, "{ran}");
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    // The system's own end comes first, so that nothing of it is on the small disk any more.
    field.end_with(|| drop(small));
}

#[test]
fn a_server_without_descriptors_says_so_and_goes_on() {
    let field = Field::start();
    let (sandbox, _) = field.sandbox();
    let exec = format!("/v1/sandboxes/{sandbox}/exec");
    let server = field.server();
    // The limit is on the number of a new descriptor, not on how many there are.
    let highest = || -> usize {
        let names = fs::read_dir(format!("/proc/{server}/fd")).unwrap();
        names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).max().unwrap()
    };
    // By its own user, who may: root may not where it has no CAP_SYS_RESOURCE.
    let owner = fs::metadata(field.system.state().join("server")).unwrap();
    let limit = |soft: usize| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &server.to_string(), &format!("--nofile={soft}:")]).uid(owner.uid()).gid(owner.gid());
        assert!(prlimit.status().unwrap().success(), "{prlimit:?}");
    };
    let before = fs::read_to_string(format!("/proc/{server}/limits")).unwrap();
    let before = before.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    let before: usize = before.split_whitespace().nth(3).unwrap().parse().unwrap();

    // Connections that are there already, so that each asks and none is turned away at the door.
    let mut calls: Vec<Call> = (0..4).map(|_| field.open().unwrap()).collect();
    let ask = |call: &mut Call, body: &Value| {
        let body = body.to_string();
        let mut bytes = field.head("POST", &exec, body.len(), "");
        bytes.extend_from_slice(body.as_bytes());
        call.send(&bytes).unwrap();
        let since = Instant::now();
        (call.answer(), since.elapsed())
    };
    for call in &mut calls {
        assert!(ask(call, &json!({ "argv": ["true"] })).0.is_done());
    }
    let (mut refused, mut unsure) = (0, 0);
    let full = highest() + 1;
    for most in [3, full, full + 1, full + 3] {
        limit(most);
        for call in &mut calls {
            let (said, took) = ask(call, &json!({ "shell": "echo ran >> /tmp/ran" }));
            assert!(took < ANSWERED_WITHIN, "{took:?}: {said}");
            match said.code().as_deref() {
                Some("server_busy") => refused += 1,
                // Its streams found no room that was there before it started.
                Some("place_lost") => unsure += 1,
                Some(_) => panic!("{said}"),
                None => assert!(said.is_done(), "{said}"),
            }
        }
    }
    assert!(refused > 0, "the limit was never felt");
    limit(before);
    until("it works again", || field.shell(&sandbox, "true").is_done()).unwrap();
    assert_eq!(field.server(), server);
    // What was refused was not done, what was answered was done once.
    let ran = field.shell(&sandbox, "cat /tmp/ran 2>/dev/null | wc -l").json().unwrap();
    let ran: usize = ran["stdout"].as_str().unwrap().trim().parse().unwrap();
    let done = 16 - refused - unsure;
    assert!((done..=done + unsure).contains(&ran), "{ran} ran; {refused} refused, {unsure} unsure");
    drop(calls);
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_sandbox_that_used_up_everything_says_what_and_goes_on() {
    let field = Field::start();
    let limits = json!({ "limits": {
        "disk_bytes_max": 8 << 20, "inodes_max": 512, "memory_bytes_max": 64 << 20, "tasks_max": 32,
    }});
    let (sandbox, _) = field.sandbox_with(&limits);
    let route = format!("/v1/sandboxes/{sandbox}");
    let exec = format!("{route}/exec");

    // The disk: by the file door, and from inside.
    let said = field.send("PUT", &format!("{route}/files?path=/tmp/big&mode=replace"), &vec![1; 12 << 20]);
    assert_eq!((said.status(), said.code().as_deref()), (507, Some("disk_full")), "{said}");
    let said = field.shell(&sandbox, "ls /tmp; head -c 12000000 /dev/zero > /tmp/inside").json().unwrap();
    assert!(said["stderr"].as_str().unwrap().contains("No space left"), "{said}");
    assert_eq!(said["stdout"], "", "a half-written replacement was left: {said}");
    field.shell(&sandbox, "rm /tmp/inside");
    let said = field.send("PUT", &format!("{route}/files?path=/tmp/small"), b"fits");
    assert!(said.is_done(), "{said}");

    // Inodes.
    let line = "i=0; while : > /tmp/i$i; do i=$((i+1)); done 2>/dev/null; exit 0";
    assert!(field.shell(&sandbox, line).is_done());
    let said = field.send("PUT", &format!("{route}/files?path=/tmp/one-more"), b"x");
    assert_eq!((said.status(), said.code().as_deref()), (507, Some("disk_full")), "{said}");
    let said = field.shell(&sandbox, "rm -f /tmp/i*; echo freed").json().unwrap();
    assert_eq!(said["stdout"], "freed\n");
    assert!(field.send("PUT", &format!("{route}/files?path=/tmp/one-more"), b"x").is_done());

    // Memory: the hog is killed, and counted.
    let said = field.shell(&sandbox, "exec head -c 500000000 /dev/zero | exec tail -n 1 | wc -c").json().unwrap();
    assert_ne!(said["stdout"], "500000000\n", "{said}");
    let said = field.ask("POST", &exec, &json!({ "argv": ["tail", "-n", "1", "/dev/zero"] })).json().unwrap();
    assert_eq!(said["signal"], 9, "{said}");
    let usage = field.must("GET", &route, &Value::Null)["usage"].clone();
    assert!(usage["oom_kills"].as_u64().unwrap() >= 1, "{usage}");
    assert!(field.shell(&sandbox, "true").is_done());

    // Tasks: what needs one is refused at once, what ends the bomb works.
    let bomb = json!({ "shell": "while :; do sleep 4799.75 & done", "background": true });
    let bomb = field.must("POST", &exec, &bomb)["id"].as_str().unwrap().to_owned();
    until("no task is left", || {
        let usage = field.ask("GET", &route, &Value::Null).json().unwrap_or_default();
        usage["usage"]["tasks"].as_u64().is_some_and(|tasks| tasks >= 31)
    })
    .unwrap();
    let exhausted = [(507, "place_exhausted")];
    let mut refusals = 0;
    until("a command is refused for want of tasks", || {
        let since = Instant::now();
        let said = field.shell(&sandbox, "true");
        assert!(since.elapsed() < ANSWERED_WITHIN, "{said}");
        refusals += usize::from(said.code().as_deref() == Some("place_exhausted"));
        refusals > 2
    })
    .unwrap();
    refused(&field, "GET", &format!("{route}/files/stat?path=/tmp/small"), &Value::Null, &exhausted);
    field.must("POST", &format!("/v1/execs/{bomb}/signal"), &json!({ "signal": 9, "scope": "tree" }));
    until("the bomb is over", || !runs("sleep 4799.75")).unwrap();
    until("commands run again", || field.shell(&sandbox, "true").is_done()).unwrap();
    field.must("DELETE", &route, &Value::Null);
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_client_that_is_slow_or_gone_harms_only_its_own_command() {
    let field = Field::start();
    let (sandbox, _) = field.sandbox();
    let exec = format!("/v1/sandboxes/{sandbox}/exec");
    let stream = |line: &str| {
        let body = json!({ "shell": line }).to_string();
        let mut call = field.open().unwrap();
        let mut bytes = field.head("POST", &exec, body.len(), "accept: application/vnd.ringfence.frames\r\n");
        bytes.extend_from_slice(body.as_bytes());
        call.send(&bytes).unwrap();
        call.wait_for(|seen| seen.len() > 1_000).unwrap();
        call
    };
    // Slow: it reads nothing more, so its command waits; others do not.
    let slow = stream("yes slow-client-mark");
    for _ in 0..20 {
        let since = Instant::now();
        assert!(field.shell(&sandbox, "true").is_done());
        assert!(since.elapsed() < ANSWERED_WITHIN);
    }
    assert!(runs("slow-client-mark"), "a slow client's command goes on");
    // Gone: its whole tree ends, also what it left behind.
    let gone = stream("sh -c 'sleep 4799.25' & yes gone-client-mark");
    drop(gone);
    until("the gone client's tree ends", || !runs("gone-client-mark") && !runs("sleep 4799.25")).unwrap();
    assert!(runs("slow-client-mark"), "nobody else's");
    drop(slow);
    until("the slow client's tree ends", || !runs("slow-client-mark")).unwrap();
    // Gone in the middle of an upload that replaces a file: the old one stays, nothing else.
    let route = format!("/v1/sandboxes/{sandbox}/files?path=/tmp/kept&mode=replace");
    assert!(field.send("PUT", &route, b"old").is_done());
    let mut upload = field.open().unwrap();
    upload.send(&field.head("PUT", &route, 1 << 20, "")).unwrap();
    upload.send(&[1; 100_000]).unwrap();
    drop(upload);
    until("the cut upload leaves no trace", || {
        let said = field.shell(&sandbox, "ls -A /tmp; cat /tmp/kept").json().unwrap();
        said["stdout"] == "kept\nold"
    })
    .unwrap();
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    memory_kib: usize,
    mounts: usize,
}

impl Held {
    fn by(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            threads: of("Threads:"),
            memory_kib: of("VmRSS:"),
            mounts: fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count(),
        }
    }
}

/// Everything below a directory, but for what grows by nature: ledger segments and the store's own files.
fn entries(dir: &Path) -> usize {
    let Ok(found) = fs::read_dir(dir) else { return 0 };
    found
        .flatten()
        .map(|entry| 1 + if entry.file_type().is_ok_and(|kind| kind.is_dir()) { entries(&entry.path()) } else { 0 })
        .sum()
}

/// Makes, uses and destroys `count` sandboxes over kept-alive connections of four clients.
fn churn(field: &Field, count: usize) {
    std::thread::scope(|scope| {
        for client in 0..4 {
            scope.spawn(move || {
                let mut call = field.open().unwrap();
                let mut ask = |method: &str, path: &str, body: &str| {
                    let mut bytes = field.head(method, path, body.len(), "");
                    bytes.extend_from_slice(body.as_bytes());
                    call.send(&bytes).unwrap();
                    let said = call.answer();
                    assert!(said.is_done(), "{method} {path}: {said}");
                    said
                };
                for round in 0..count / 4 {
                    let made = ask("POST", "/v1/sandboxes", "{}").json().unwrap();
                    let id = made["id"].as_str().unwrap();
                    let word = format!("{client}-{round}");
                    let body = json!({ "argv": ["echo", word] }).to_string();
                    let said = ask("POST", &format!("/v1/sandboxes/{id}/exec"), &body).json().unwrap();
                    assert_eq!(said["stdout"], format!("{word}\n"), "{said}");
                    ask("DELETE", &format!("/v1/sandboxes/{id}"), "");
                }
            });
        }
    });
}

#[test]
fn a_thousand_sandboxes_leave_nothing_behind() {
    let field = Field::start();
    let (server, warden) = (field.server(), field.warden());
    // Warm: what is made once and kept, caches and pools of threads, is there.
    churn(&field, 100);
    field.settle().unwrap();
    let look = || (Held::by(server), Held::by(warden), entries(&field.system.state()), field.inits().len());
    let before = look();
    let began = Instant::now();
    churn(&field, 1_000);
    eprintln!("1,000 sandboxes in {:?}", began.elapsed());
    field.settle().unwrap();
    assert_eq!((field.server(), field.warden()), (server, warden), "nobody was restarted");
    let mut after = look();
    // Connections close and helpers end a moment after their last answer.
    let held = |after: &(Held, Held, usize, usize)| {
        after.0.descriptors <= before.0.descriptors
            && after.1.descriptors <= before.1.descriptors
            && after.0.threads <= before.0.threads + 2
            && after.1.threads <= before.1.threads
    };
    let _ = until("descriptors and threads are as before", || {
        after = look();
        held(&after)
    });
    assert!(held(&after), "before: {before:?}\nafter: {after:?}");
    assert_eq!((before.0.mounts, before.1.mounts), (after.0.mounts, after.1.mounts));
    assert_eq!((before.2, before.3), (after.2, after.3), "entries of the state directory, first processes");
    // Bounded: a kilobyte kept for each of a thousand would show.
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        assert!(after.memory_kib < before.memory_kib + 12_000, "{before:?} {after:?}");
    }
    eprintln!("before: {before:?}\nafter: {after:?}");
    assert!(matches!(field.ask("GET", "/v1/sandboxes", &Value::Null), Said::Answer { status: 200, .. }));
    field.end();
}

#[test]
fn a_full_disk_of_the_warden_refuses_what_needs_it_and_heals_by_itself() {
    let dir = fresh_dir();
    // What the warden writes: disk images, templates, layers.
    let small = Small::of(&dir.path().join("state/warden"), "size=48m,mode=0700");
    let field = Field::of(System::start_in(dir));
    let (server, warden) = (field.server(), field.warden());
    let image = |mib: u64| json!({ "disk": "image", "limits": { "disk_bytes_max": mib << 20 } });
    // An image is as large as what was written to it, so this one's sandbox meets the end of the warden's disk.
    let (sandbox, _) = field.sandbox_with(&image(96));
    let route = format!("/v1/sandboxes/{sandbox}");
    assert!(field.send("PUT", &format!("{route}/files?path=/tmp/before"), b"text").is_done());
    let (plain, _) = field.sandbox();

    let hog = small.0.join("hog");
    let mut file = fs::File::options().create(true).append(true).open(&hog).unwrap();
    for size in [1 << 20, 4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
    }
    drop(file);
    // Of a size that was not made before, so that it needs a blank image; and of one that was.
    for mib in [80, 96] {
        refused(&field, "POST", "/v1/sandboxes", &image(mib), &[(503, "server_busy"), (507, "disk_full")]);
    }
    // A layer: the unpacker is told, and nothing of it stays.
    let tree = field.system.dir().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), vec![b'x'; 1 << 20]).unwrap();
    let since = Instant::now();
    let import = field.system.run(&["--json", "template", "import", "mine", tree.to_str().unwrap()]);
    let fault: Value = serde_json::from_str(&import.stderr).unwrap_or_else(|error| panic!("{error}: {import:?}"));
    assert!(["disk_full", "store_unavailable", "server_busy"].contains(&fault["code"].as_str().unwrap()), "{fault}");
    assert!(since.elapsed() < ANSWERED_WITHIN, "{fault}");
    let layers = small.0.join("layers");
    until("nothing of the layer is left", || fs::read_dir(&layers).unwrap().next().is_none()).unwrap();
    // Who writes to a disk whose image cannot grow: what the kernel says of it comes back, and nobody hangs.
    let said = field.ask(
        "POST",
        &format!("{route}/exec"),
        &json!({
            "shell": "dd if=/dev/zero of=/tmp/fill bs=1M count=40 conv=fsync; echo dd $?", "timeout_ms": 20_000,
        }),
    );
    let ran = said.json().unwrap_or_else(|| panic!("{said}"));
    assert!(ran["stdout"].as_str().unwrap().starts_with("dd ") && ran["stdout"] != "dd 0\n", "{ran}");
    // What needs nothing of that disk is as ever.
    assert!(field.shell(&plain, "true").is_done());
    let (memory, _) = field.sandbox();
    assert!(field.shell(&memory, "true").is_done());

    fs::remove_file(&hog).unwrap();
    until("image disks are made again", || {
        let said = field.ask("POST", "/v1/sandboxes", &image(96));
        let made = said.json().and_then(|made| Some(made["id"].as_str()?.to_owned()));
        made.is_some_and(|id| {
            let wrote = field.send("PUT", &format!("/v1/sandboxes/{id}/files?path=/tmp/file"), &vec![1; 1 << 20]);
            field.must("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
            wrote.is_done()
        })
    })
    .unwrap();
    field.system.ok(&["template", "import", "mine", tree.to_str().unwrap()]);
    field.system.ok(&["template", "rm", "mine"]);
    assert_eq!((field.server(), field.warden()), (server, warden), "nobody was restarted");
    for id in [&sandbox, &plain, &memory] {
        field.must("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
    }
    field.settle().unwrap();
    field.end_with(|| drop(small));
}

/// Makes empty files until there can be no other; how many.
fn use_up_inodes(dir: &Path) -> usize {
    fs::create_dir_all(dir).unwrap();
    let more = |number: &usize| fs::File::create(dir.join(number.to_string())).is_ok();
    (0..100_000).take_while(more).count()
}

#[test]
fn disks_without_inodes_refuse_what_needs_one_and_heal_by_themselves() {
    let dir = fresh_dir();
    // Bytes enough, and few files.
    let options = format!("size=512m,nr_inodes=20000,mode=0700,uid={SERVER},gid={SERVER}");
    let servers = Small::of(&dir.path().join("state/server"), &options);
    let wardens = Small::of(&dir.path().join("state/warden"), "size=512m,nr_inodes=20000,mode=0700");
    let field = Field::of(System::start_in(dir));
    let (server, warden) = (field.server(), field.warden());
    let (sandbox, _) = field.sandbox();
    let route = format!("/v1/sandboxes/{sandbox}");
    let exec = format!("{route}/exec");
    let image = json!({ "disk": "image", "limits": { "disk_bytes_max": 80 << 20 } });

    let hogs = [servers.0.join("hog"), wardens.0.join("hog")];
    for hog in &hogs {
        let made = use_up_inodes(hog);
        assert!((100..20_000).contains(&made), "{made}");
    }
    let mut refusals = Vec::new();
    for turn in 0..3 {
        let asks = [
            ("POST", exec.clone(), json!({ "argv": ["true"] })),
            ("POST", exec.clone(), json!({ "shell": "head -c 3000000 /dev/zero", "background": true })),
            ("POST", "/v1/sandboxes".to_owned(), json!({ "name": format!("one-{turn}") })),
            ("POST", "/v1/sandboxes".to_owned(), image.clone()),
            ("POST", "/v1/run".to_owned(), json!({ "exec": { "argv": ["true"] } })),
            ("GET", "/v1/sandboxes".to_owned(), Value::Null),
        ];
        for (method, path, body) in asks {
            let since = Instant::now();
            let said = field.ask(method, &path, &body);
            let took = since.elapsed();
            assert!(said.is_done() || said.code().is_some(), "{method} {path} {body}: {said}");
            assert_ne!(said.code().as_deref(), Some("internal"), "{method} {path} {body}: {said}");
            assert!(took < ANSWERED_WITHIN, "{method} {path} {body}: {took:?}");
            refusals.extend(said.code());
        }
    }
    eprintln!("without inodes: {refusals:?}");
    assert!(!refusals.is_empty(), "the control: an image needs a file");
    for hog in &hogs {
        assert!(fs::File::create(hog.join("another")).is_err(), "the control: there still is none");
        fs::remove_dir_all(hog).unwrap();
    }

    until("image disks are made again", || field.ask("POST", "/v1/sandboxes", &image).is_done()).unwrap();
    assert!(field.shell(&sandbox, "true").is_done());
    assert_eq!((field.server(), field.warden()), (server, warden), "nobody was restarted");
    for id in field.listed().unwrap() {
        field.must("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
    }
    field.settle().unwrap();
    field.end_with(|| drop((servers, wardens)));
}
