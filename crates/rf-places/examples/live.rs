//! Drives a real warden: what works inside a sandbox, and how fast. For people; nothing is timed by a test.
//!
//! Usage: `live STATE/run/warden.sock [execs N | idle N | loop N]`, as root, beside a `ringfence warden --state STATE`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use rf_places::{ExecEvent, ExecsConfig, FileAnswer, Place, Places, PlacesConfig, Rows, SandboxRow, file_action};
use rf_policy::{Action, Asked, Credential, Permit, Principal, Question, Scope, UserUsage, judge};
use rf_types::{
    ExecId, ExecSpec, Fault, FileOp, KeyId, Program, RequestId, Rlimits, SandboxId, SandboxSpec, SignalScope, UserId,
    UserLimits, WriteMode, units::MIB,
};

struct NoRows;

impl Rows for NoRows {
    fn made(&self, _: &SandboxRow, _: Option<&rf_places::Repeat>) -> Result<(), Fault> {
        Ok(())
    }
    fn unmade(&self, _: UserId, _: SandboxId) {}
    fn changed(&self, _: &SandboxRow, _: rf_places::ChangedWhy) -> Result<(), Fault> {
        Ok(())
    }
    fn ended(&self, _: UserId, id: SandboxId, why: rf_places::EndedWhy) {
        if why != rf_places::EndedWhy::Destroyed {
            println!("ended {id} {why:?}");
        }
    }

    fn snapshot_made(&self, _: &rf_places::SnapshotRow) -> Result<(), Fault> {
        Ok(())
    }

    fn snapshot_changed(&self, _: &rf_places::SnapshotRow) {}

    fn snapshot_removed(&self, _: UserId, _: rf_types::SnapshotId) -> Result<(), Fault> {
        Ok(())
    }
}

const USER: UserId = UserId::from_bits(1);

fn permit(action: Action) -> Permit {
    let principal = Principal {
        user: USER,
        username: "ann".parse().unwrap(),
        credential: Credential::Key { id: KeyId::from_bits(1) },
        scopes: Scope::USER.to_vec(),
    };
    let (limits, usage) = (UserLimits::STANDARD, UserUsage::default());
    let request = RequestId::random();
    judge(&Question { principal: &principal, action, request, limits: &limits, usage: &usage, asked: Asked::Nothing })
        .unwrap()
}

fn shell(line: &str) -> ExecSpec {
    ExecSpec {
        program: Program::Shell(line.into()),
        env: BTreeMap::new(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin: false,
        timeout_ms: Some(30_000),
        rlimits: Rlimits::default(),
    }
}

async fn run(places: &Places, place: &Arc<dyn Place>, spec: &ExecSpec) -> Result<rf_places::Collected, Fault> {
    let claim = places.claim_exec(USER, |_| Ok(permit(Action::Exec)))?;
    places.execs().run(claim, place, ExecId::random(), spec).await?.collect(Bytes::new(), 1 << 20, 1 << 20).await
}

async fn show(places: &Places, place: &Arc<dyn Place>, line: &str) {
    match run(places, place, &shell(line)).await {
        Ok(done) => println!(
            "$ {line}\n{}{}[{:?} {:?} timed_out={} {:?}]",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
            done.exit.code,
            done.exit.signal,
            done.exit.timed_out,
            done.exit.usage,
        ),
        Err(fault) => println!("$ {line}\n{fault:?}"),
    }
}

fn gib(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 30) / since.elapsed().as_secs_f64()
}

async fn file(place: &Arc<dyn Place>, op: FileOp) -> Result<FileAnswer, Fault> {
    place.file(&permit(file_action(&op)), &op, None).await
}

fn percentiles(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    let at = |part: f64| all[((all.len() - 1) as f64 * part) as usize];
    format!("p10 {:.3} ms, p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms", at(0.1), at(0.5), at(0.9), at(0.99))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let socket = PathBuf::from(std::env::args().nth(1).expect("the warden's socket"));
    let spool = std::env::temp_dir().join(format!("live-{}", std::process::id()));
    let config = PlacesConfig { warden_socket: socket, execs: ExecsConfig::standard(spool.clone()) };
    let places = Places::start(config, Arc::new(NoRows), Vec::new(), Vec::new()).unwrap();
    places.ready().await;
    let mut spec = SandboxSpec::standard(600_000);
    spec.limits.memory_bytes_max = 2048 * MIB;
    spec.limits.disk_bytes_max = 1536 * MIB;
    spec.limits.cpu_milli_max = 2000;
    let create = async |spec: &SandboxSpec| {
        let claim = places.claim_sandbox(USER, spec.clone(), |_| Ok(permit(Action::SandboxCreate))).unwrap();
        places.sandboxes().create(claim, rf_places::Making::default()).await
    };
    let since = Instant::now();
    let sandbox = create(&spec).await.expect("a sandbox");
    println!("created in {:?}", since.elapsed());
    let place: Arc<dyn Place> = sandbox.clone();
    let mut argv = shell("");
    argv.program = Program::Argv(vec!["/bin/true".into()]);
    let only = std::env::args().nth(2);
    let count = std::env::args().nth(3).and_then(|count| count.parse().ok()).unwrap_or(1000_u32);
    match only.as_deref() {
        Some("execs") => {
            let mut host = Vec::new();
            for _ in 0..count {
                let since = Instant::now();
                std::process::Command::new("/bin/true").status().unwrap();
                host.push(since.elapsed().as_secs_f64() * 1e3);
            }
            println!("/bin/true on the host: {}", percentiles(host));
            // On a worker, like a request's.
            let (places, place) = (places.clone(), Arc::clone(&place));
            let times = tokio::spawn(async move {
                let (mut starts, mut walls, mut times) = (Vec::new(), Vec::new(), Vec::new());
                for _ in 0..count {
                    let since = Instant::now();
                    let claim = places.claim_exec(USER, |_| Ok(permit(Action::Exec))).unwrap();
                    let running = places.execs().run(claim, &place, ExecId::random(), &argv).await.unwrap();
                    starts.push(since.elapsed().as_secs_f64() * 1e3);
                    let done = running.collect(Bytes::new(), 1 << 20, 1 << 20).await.unwrap();
                    times.push(since.elapsed().as_secs_f64() * 1e3);
                    walls.push(done.exit.usage.wall_us as f64 / 1e3);
                }
                println!("until started: {}", percentiles(starts));
                println!("as init saw it: {}", percentiles(walls));
                times
            });
            println!("exec of /bin/true: {}", percentiles(times.await.unwrap()));
            return;
        }
        Some("idle") => {
            let resident = || {
                let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
                let line = text.lines().find(|line| line.starts_with("Private_Dirty")).unwrap();
                line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
            };
            spec.limits = rf_types::Limits::STANDARD;
            let before = resident();
            let mut kept = Vec::new();
            for _ in 0..count {
                let claim = places.claim_sandbox(USER, spec.clone(), |_| Ok(permit(Action::SandboxCreate))).unwrap();
                kept.push(places.sandboxes().create(claim, rf_places::Making::default()).await.unwrap());
            }
            println!(
                "{:.2} KiB of the server's for each of {count} idle sandboxes",
                (resident() - before) / f64::from(count)
            );
            return;
        }
        Some("loop") => {
            let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let before = open();
            let since = Instant::now();
            let clients = (0..4).map(|_| {
                let (places, spec, argv) = (places.clone(), SandboxSpec::standard(600_000), argv.clone());
                tokio::spawn(async move {
                    for _ in 0..count / 4 {
                        let claim = places.claim_sandbox(USER, spec.clone(), |_| Ok(permit(Action::SandboxCreate)));
                        let sandbox =
                            places.sandboxes().create(claim.unwrap(), rf_places::Making::default()).await.unwrap();
                        let place: Arc<dyn Place> = sandbox;
                        assert_eq!(run(&places, &place, &argv).await.unwrap().exit.code, Some(0));
                        let rf_types::PlaceRef::Sandbox(id) = place.place() else { continue };
                        places.sandboxes().destroy(&permit(Action::SandboxDestroy), id).await.unwrap();
                    }
                })
            });
            futures::future::try_join_all(clients).await.unwrap();
            let rate = f64::from(count) / since.elapsed().as_secs_f64();
            println!("{rate:.0} sandboxes a second; {before} descriptors before, {} after", open());
            return;
        }
        _ => {}
    }
    for line in [
        "id; pwd; uname -a; hostname; ps aux | head; env",
        "exit 7",
        "no-such-program",
        "kill -9 $$",
        "echo out; echo err >&2; sleep 100 & echo started",
        "cat /proc/self/status | grep -i -E 'cap|nonewp|secc'",
    ] {
        show(&places, &place, line).await;
    }
    let mut late = shell("sleep 100");
    late.timeout_ms = Some(300);
    println!("timeout: {:?}", run(&places, &place, &late).await.map(|done| done.exit));
    let mut as_root = shell("id");
    as_root.user = Some("root".into());
    println!(
        "root: {:?}",
        run(&places, &place, &as_root).await.map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
    );
    let mut wrong = shell("id");
    wrong.user = Some("nobody-here".into());
    println!("user: {:?}", run(&places, &place, &wrong).await);
    let mut wrong = shell("id");
    wrong.cwd = Some("/nowhere".into());
    println!("cwd: {:?}", run(&places, &place, &wrong).await);
    let mut pty = shell("tty; stty size; echo done");
    pty.pty = Some(rf_types::Pty { rows: 30, cols: 100 });
    println!(
        "pty: {:?}",
        run(&places, &place, &pty).await.map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
    );

    // Background, attach, signal.
    let exec = ExecId::random();
    let claim = places.claim_exec(USER, |_| Ok(permit(Action::Exec))).unwrap();
    let info =
        places.execs().run_background(claim, &place, exec, &shell("echo begin; (sleep 1000 & sleep 1000)")).await;
    println!("background: {info:?}");
    places.execs().signal(&permit(Action::ExecControl), exec, 9, SignalScope::Tree).await.unwrap();
    let mut events = places.execs().attach(&permit(Action::ExecRead), exec, 0, 0, true).unwrap();
    while let Some(event) = events.next().await {
        println!("  {event:?}");
    }

    // How fast.
    let mut times = Vec::new();
    for _ in 0..300 {
        let since = Instant::now();
        run(&places, &place, &argv).await.unwrap();
        times.push(since.elapsed().as_secs_f64() * 1e3);
    }
    println!("exec of /bin/true: {}", percentiles(times));
    let mut times = Vec::new();
    for _ in 0..300 {
        let since = Instant::now();
        sandbox.ping().await.unwrap();
        times.push(since.elapsed().as_secs_f64() * 1e3);
    }
    println!("ping: {}", percentiles(times));
    let claim = places.claim_exec(USER, |_| Ok(permit(Action::Exec))).unwrap();
    let stream = shell("head -c 4294967296 /dev/zero");
    let since = Instant::now();
    let mut events = places.execs().run(claim, &place, ExecId::random(), &stream).await.unwrap().events();
    let mut total = 0;
    while let Some(event) = events.next().await {
        if let ExecEvent::Stdout(bytes) = event {
            total += bytes.len() as u64;
        }
    }
    println!("stdout: {total} bytes, {:.2} GiB/s", gib(total, since));
    let op = FileOp::Write { path: "big".into(), mode: WriteMode::Truncate, permissions: 0o644, parents: false };
    let since = Instant::now();
    match file(&place, op).await {
        Ok(FileAnswer::Sink(mut sink)) => {
            let piece = Bytes::from(vec![7; 256 * 1024]);
            for _ in 0..4096 {
                sink.write(piece.clone()).await.unwrap();
            }
            sink.finish().await.unwrap();
            println!("file in: {:.2} GiB/s", gib(1 << 30, since));
        }
        Ok(_) => println!("file in: another answer"),
        Err(fault) => println!("file in: {fault:?}"),
    }
    for _ in 0..2 {
        let since = Instant::now();
        match file(&place, FileOp::Read { path: "big".into(), offset: 0, length: None }).await {
            Ok(FileAnswer::Content { mut bytes, .. }) => {
                let mut total = 0;
                while let Some(piece) = bytes.next().await {
                    total += piece.unwrap().len() as u64;
                }
                println!("file out: {total} bytes, {:.2} GiB/s", gib(total, since));
            }
            Ok(_) => println!("file out: another answer"),
            Err(fault) => println!("file out: {fault:?}"),
        }
    }
    let since = Instant::now();
    match file(&place, FileOp::TarOut { path: ".".into() }).await {
        Ok(FileAnswer::Archive(mut bytes)) => {
            let mut total = 0;
            while let Some(piece) = bytes.next().await {
                match piece {
                    Ok(piece) => total += piece.len() as u64,
                    Err(fault) => println!("tar out: {fault:?}"),
                }
            }
            println!("tar out: {total} bytes, {:.2} GiB/s", gib(total, since));
        }
        Ok(_) => println!("tar out: another answer"),
        Err(fault) => println!("tar out: {fault:?}"),
    }
    for op in [
        FileOp::Stat { path: "big".into(), follow: true },
        FileOp::Stat { path: "missing".into(), follow: true },
        FileOp::Read { path: "/dev/zero".into(), offset: 0, length: Some(5) },
        FileOp::Read { path: "/etc/shadow".into(), offset: 0, length: Some(5) },
        FileOp::MakeDir { path: "a/b/c".into(), permissions: 0o755, parents: true },
        FileOp::Chmod { path: "big".into(), permissions: 0o600 },
        FileOp::Move { from: "big".into(), to: "bigger".into(), replace: false },
        FileOp::Remove { path: "a".into(), recursive: false },
        FileOp::Remove { path: "a".into(), recursive: true },
        FileOp::Remove { path: "bigger".into(), recursive: false },
    ] {
        match file(&place, op.clone()).await {
            Ok(FileAnswer::Stat(stat)) => println!("{op:?}: {stat:?}"),
            Ok(_) => println!("{op:?}: ok"),
            Err(fault) => println!("{op:?}: {:?} {}", fault.code, fault.message),
        }
    }
    if let Ok(FileAnswer::Entries(entries)) = file(&place, FileOp::List { path: "/".into(), depth: 1 }).await {
        println!("/: {:?}", entries.map(|entry| entry.map(|stat| stat.path)).collect::<Vec<_>>().await);
    }
    let mut times = Vec::new();
    for _ in 0..200 {
        let since = Instant::now();
        file(&place, FileOp::Stat { path: "/".into(), follow: true }).await.map(drop).unwrap();
        times.push(since.elapsed().as_secs_f64() * 1e3);
    }
    println!("stat: {}", percentiles(times));
    let mut times = Vec::new();
    for _ in 0..30 {
        let since = Instant::now();
        let sandbox = create(&spec).await.unwrap();
        let place: Arc<dyn Place> = sandbox.clone();
        run(&places, &place, &argv).await.unwrap();
        times.push(since.elapsed().as_secs_f64() * 1e3);
        let rf_types::PlaceRef::Sandbox(id) = place.place() else { continue };
        places.sandboxes().destroy(&permit(Action::SandboxDestroy), id).await.unwrap();
    }
    println!("create and first exec: {}", percentiles(times));
    for row in places.sandboxes().list(USER) {
        println!("usage: {:?}", places.sandboxes().usage(&permit(Action::SandboxRead), row.id).await);
        places.sandboxes().destroy(&permit(Action::SandboxDestroy), row.id).await.unwrap();
    }
    let _ = std::fs::remove_dir_all(spool);
}
