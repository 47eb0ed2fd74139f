//! Connections that drop: everything goes on at the exact byte, or is lost and said to be; nothing runs twice.

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::Joined;
use futures::StreamExt;
use rf_machine::JoinEvent;
use rf_places::{
    machine::MachinePlace,
    place::{FileAnswer, Place, Spawned},
};
use rf_policy::Action;
use rf_testkit::{machines::within, permits::permit};
use rf_types::{Code, ExecId, ExecSpec, Fault, FileOp, Program, SignalScope, WriteMode};
use rf_wire::machine::{Held, Level};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn shell(line: &str, stdin: bool) -> ExecSpec {
    ExecSpec {
        program: Program::Shell(line.to_owned()),
        env: Default::default(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin,
        timeout_ms: Some(60_000),
        rlimits: Default::default(),
    }
}

async fn spawn(
    joined: &Joined,
    place: &Arc<MachinePlace>,
    exec: ExecId,
    spec: &ExecSpec,
    keep: bool,
) -> Result<Spawned, Fault> {
    place.spawn(&permit(joined.user, Action::Exec), exec, spec, keep).await
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Drops the connection again and again, each time once it is there.
fn keep_cutting(joined: &Joined) -> tokio::task::JoinHandle<()> {
    let (hub, cutter) = (joined.server.hub(), joined.server.cutter());
    tokio::spawn(async move {
        loop {
            while hub.connected_count() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Let some bytes go.
            tokio::time::sleep(Duration::from_millis(20)).await;
            cutter();
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_on_at_the_exact_byte() {
    let mut joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let cutting = keep_cutting(&joined);
    let bytes = noise(24 * 1024 * 1024);

    // In and out of one exec, and a file in both directions, over many drops.
    let exec = async {
        let line = "tee copy; echo done >&2; exit 5";
        let mut spawned = spawn(&joined, &place, ExecId::random(), &shell(line, true), false).await.unwrap();
        let mut stdin = spawned.stdin.take().unwrap();
        let (mut out, mut err) = (Vec::new(), String::new());
        let mut stderr = spawned.stderr.take().unwrap();
        let feed = async {
            stdin.write_all(&bytes).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let ((), read, error) =
            tokio::join!(feed, spawned.stdout.read_to_end(&mut out), stderr.read_to_string(&mut err));
        read.unwrap();
        error.unwrap();
        assert!(out == bytes, "{} bytes came back, or others", out.len());
        assert_eq!(err, "done\n");
        assert_eq!(spawned.exit.await.unwrap().code, Some(5));
    };
    let files = async {
        let op = FileOp::Write { path: "f".into(), mode: WriteMode::Replace, permissions: 0o644, parents: false };
        let answer = place.file(&permit(joined.user, Action::FileWrite), &op, None).await.unwrap();
        let FileAnswer::Sink(mut sink) = answer else { panic!("a write gives a sink") };
        for piece in bytes.chunks(300_000) {
            sink.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        sink.finish().await.unwrap();
        let op = FileOp::Read { path: "f".into(), offset: 0, length: None };
        let answer = place.file(&permit(joined.user, Action::FileRead), &op, None).await.unwrap();
        let FileAnswer::Content { bytes: mut content, .. } = answer else { panic!("a read gives content") };
        let mut back = Vec::new();
        while let Some(piece) = content.next().await {
            back.extend_from_slice(&piece.unwrap());
        }
        assert!(back == bytes, "{} bytes came back, or others", back.len());
    };
    // Orders run exactly once, however often their connection drops.
    let orders = async {
        for i in 0..30 {
            let line = format!("echo {i} >> log");
            let spawned = spawn(&joined, &place, ExecId::random(), &shell(&line, false), false).await.unwrap();
            assert_eq!(spawned.exit.await.unwrap().code, Some(0));
        }
    };
    within(async { tokio::join!(exec, files, orders) }).await;
    cutting.abort();
    let mut drops = 0;
    while let Ok(event) = joined.events.try_recv() {
        drops += u32::from(matches!(event, JoinEvent::Connected { resumed: true, .. }));
    }
    assert!(drops >= 5, "control: only {drops} drops were survived");
    let log = std::fs::read_to_string(joined.workspace().join("log")).unwrap();
    assert_eq!(log, (0..30).map(|i| format!("{i}\n")).collect::<String>());
    assert!(std::fs::read(joined.workspace().join("copy")).unwrap() == bytes);
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_during_a_drop_is_told_afterwards() {
    let joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let line = "echo before; while [ ! -e go ]; do sleep 0.01; done; echo after; echo x > ended; exit 7";
    let mut spawned = spawn(&joined, &place, ExecId::random(), &shell(line, false), false).await.unwrap();
    let mut first = [0; 7];
    spawned.stdout.read_exact(&mut first).await.unwrap();
    joined.server.set_open(false);
    joined.server.cut();
    within(async {
        while place.is_connected() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(joined.server.hub().joined(joined.user).is_none(), "routing does not see a machine that dropped out");
    std::fs::write(joined.workspace().join("go"), b"").unwrap();
    within(async {
        while !joined.workspace().join("ended").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    joined.server.set_open(true);
    let mut rest = String::new();
    within(spawned.stdout.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "after\n");
    assert_eq!(within(spawned.exit).await.unwrap().code, Some(7));
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stays_away_loses_its_calls_and_its_execs() {
    let joined = Joined::start_with(Level::Workspace, Duration::from_millis(300)).await;
    let place = joined.place().await;
    let line = "echo $$ > pid; echo ready; echo ran >> runs; exec sleep 1000";
    let exec = ExecId::random();
    let mut spawned = spawn(&joined, &place, exec, &shell(line, false), false).await.unwrap();
    let mut ready = [0; 6];
    spawned.stdout.read_exact(&mut ready).await.unwrap();
    joined.server.set_open(false);
    joined.server.cut();
    assert_eq!(within(spawned.exit).await.unwrap_err().code, Code::PlaceLost);
    let broken = within(spawned.stdout.read_to_end(&mut Vec::new())).await.unwrap_err();
    let fault = broken.get_ref().unwrap().downcast_ref::<Fault>().unwrap();
    assert_eq!(fault.code, Code::PlaceLost);
    let op = FileOp::Stat { path: ".".into(), follow: true };
    let late = place.file(&permit(joined.user, Action::FileRead), &op, None).await;
    assert_eq!(late.err().unwrap().code, Code::PlaceLost);
    joined.server.set_open(true);
    let again = joined.place().await;
    // It comes back with nothing to go on with; what ran for the lost caller is killed, and not run again.
    let pid = std::fs::read_to_string(joined.workspace().join("pid")).unwrap();
    within(async {
        while std::path::Path::new(&format!("/proc/{}", pid.trim())).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let refused = spawn(&joined, &again, exec, &shell(line, false), false).await.err().unwrap();
    assert_eq!(refused.code, Code::PlaceLost);
    assert_eq!(std::fs::read_to_string(joined.workspace().join("runs")).unwrap(), "ran\n");
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_program_that_is_restarted_runs_nothing_again() {
    let mut joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let exec = ExecId::random();
    let line = "echo ran >> runs; setsid sh -c 'echo $$ > pid; echo ready; exec sleep 1000'";
    let mut spawned = spawn(&joined, &place, exec, &shell(line, false), true).await.unwrap();
    let mut ready = [0; 6];
    spawned.stdout.read_exact(&mut ready).await.unwrap();
    joined.restart_machine().await;
    assert_eq!(within(spawned.exit).await.unwrap_err().code, Code::PlaceLost);
    let again = joined.place().await;
    // Its processes ended with it.
    let pid = std::fs::read_to_string(joined.workspace().join("pid")).unwrap();
    within(async {
        while std::path::Path::new(&format!("/proc/{}", pid.trim())).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(again.adopt_execs(&|_| Held::default()).await.unwrap().is_empty());
    let refused = spawn(&joined, &again, exec, &shell(line, false), true).await.err().unwrap();
    assert_eq!(refused.code, Code::PlaceLost);
    assert_eq!(std::fs::read_to_string(joined.workspace().join("runs")).unwrap(), "ran\n");
    // Control: another id runs.
    let spawned = spawn(&joined, &again, ExecId::random(), &shell("echo ran >> runs", false), false).await.unwrap();
    spawned.exit.await.unwrap();
    assert_eq!(std::fs::read_to_string(joined.workspace().join("runs")).unwrap(), "ran\nran\n");
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_takes_over_what_was_to_be_kept() {
    let joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let user = joined.user;
    let line = "echo one; read a; echo got $a; while [ ! -e go ]; do sleep 0.01; done; seq 1 300000; exit 4";
    let (kept, killed, ended) = (ExecId::random(), ExecId::random(), ExecId::random());
    let mut spawned = spawn(&joined, &place, kept, &shell(line, true), true).await.unwrap();
    let mut first = [0; 4];
    spawned.stdout.read_exact(&mut first).await.unwrap();
    let mut other =
        spawn(&joined, &place, killed, &shell("echo $$ > pid; echo up; exec sleep 1000", false), false).await.unwrap();
    other.stdout.read_exact(&mut [0; 3]).await.unwrap();
    let quick = spawn(&joined, &place, ended, &shell("echo early; exit 3", false), true).await.unwrap();
    // Its output is not read; only that it has ended is known.
    let Spawned { exit, stdout: unread, .. } = quick;
    assert_eq!(exit.await.unwrap().code, Some(3));

    joined.server.restart();
    let again = joined.place().await;
    // A server that is killed tells nobody that it reads no more.
    drop(unread);
    assert!(!Arc::ptr_eq(&place, &again));
    let held = |exec| if exec == kept { Held { stdout: 4, stderr: 0 } } else { Held::default() };
    let adopted = within(again.adopt_execs(&held)).await.unwrap();
    assert!(adopted.iter().all(|one| one.from == held(one.exec)));
    let mut adopted: Vec<_> = adopted.into_iter().map(|one| (one.exec, one.spawned)).collect();
    adopted.sort_by_key(|(exec, _)| *exec != kept);
    assert_eq!(adopted.len(), 2, "what was not to be kept is gone");
    let (exec, mut one) = adopted.remove(0);
    assert_eq!(exec, kept);
    let mut stdin = one.stdin.take().unwrap();
    stdin.write_all(b"input\n").await.unwrap();
    std::fs::write(joined.workspace().join("go"), b"").unwrap();
    let mut rest = String::new();
    within(one.stdout.read_to_string(&mut rest)).await.unwrap();
    let numbers: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    assert!(rest == format!("got input\n{numbers}"), "{rest:.80}");
    assert_eq!(within(one.exit).await.unwrap().code, Some(4));
    let (exec, mut two) = adopted.remove(0);
    assert_eq!(exec, ended);
    let mut early = String::new();
    within(two.stdout.read_to_string(&mut early)).await.unwrap();
    assert_eq!(early, "early\n", "what was not read is still there");
    assert_eq!(within(two.exit).await.unwrap().code, Some(3));
    again.forget(ended).await;

    let pid = std::fs::read_to_string(joined.workspace().join("pid")).unwrap();
    within(async {
        while std::path::Path::new(&format!("/proc/{}", pid.trim())).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let gone = again.signal(&permit(user, Action::ExecControl), killed, 9, SignalScope::Tree).await;
    assert_eq!(gone.unwrap_err().code, Code::NotFound);
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_again_and_again_gets_every_byte_once() {
    let joined = Joined::start(Level::Workspace).await;
    let exec = ExecId::random();
    // More than the window, so that what was acknowledged is gone from the machine.
    let line = "seq 1 600000; while [ ! -e go ]; do sleep 0.01; done; seq 1 200000 >&2; seq 600001 700000";
    let place = joined.place().await;
    let mut spawned = spawn(&joined, &place, exec, &shell(line, false), true).await.unwrap();
    drop(place);
    // As a server has it on disk: what one read gave is safe when the next one begins.
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for turn in 0..5_usize {
        let mut buffer = vec![0; 100_000];
        let enough = out.len() + 700_000;
        while out.len() < enough {
            let got = within(spawned.stdout.read(&mut buffer)).await.unwrap();
            assert_ne!(got, 0);
            out.extend_from_slice(&buffer[..got]);
        }
        // Taken, and not written before the server died.
        within(spawned.stdout.read(&mut buffer[..turn * 1000 + 1])).await.unwrap();
        joined.server.restart();
        let again = joined.place().await;
        drop(spawned);
        let held = Held { stdout: out.len() as u64, stderr: 0 };
        let mut adopted = within(again.adopt_execs(&|_| held)).await.unwrap();
        assert_eq!(adopted.len(), 1);
        let one = adopted.remove(0);
        assert_eq!((one.exec, one.from), (exec, held));
        spawned = one.spawned;
    }
    std::fs::write(joined.workspace().join("go"), b"").unwrap();
    let mut stderr = spawned.stderr.take().unwrap();
    let read = futures::future::join(spawned.stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
    let (first, second) = within(read).await;
    first.unwrap();
    second.unwrap();
    assert_eq!(within(spawned.exit).await.unwrap().code, Some(0));
    let numbers = |to: u32| (1..=to).flat_map(|n| format!("{n}\n").into_bytes());
    assert!(numbers(700_000).eq(out.iter().copied()), "{} bytes of standard output", out.len());
    assert!(numbers(200_000).eq(err.iter().copied()), "{} bytes of standard error", err.len());
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_what_it_had_is_told_of_the_gap() {
    let joined = Joined::start(Level::Workspace).await;
    let exec = ExecId::random();
    let line = "seq 1 600000; while [ ! -e go ]; do sleep 0.01; done";
    let place = joined.place().await;
    let mut spawned = spawn(&joined, &place, exec, &shell(line, false), true).await.unwrap();
    let mut taken = vec![0; 3_000_000];
    within(spawned.stdout.read_exact(&mut taken)).await.unwrap();
    joined.server.restart();
    let again = joined.place().await;
    drop(spawned);
    let mut adopted = within(again.adopt_execs(&|_| Held::default())).await.unwrap();
    let one = adopted.remove(0);
    assert!(one.from.stdout > 0 && one.from.stdout <= 3_000_000, "{:?}", one.from);
    std::fs::write(joined.workspace().join("go"), b"").unwrap();
    let mut rest = Vec::new();
    let Spawned { mut stdout, .. } = one.spawned;
    within(stdout.read_to_end(&mut rest)).await.unwrap();
    let all: Vec<u8> = (1..=600_000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(all.get(one.from.stdout as usize..) == Some(&rest[..]), "from {}, {} bytes", one.from.stdout, rest.len());
    joined.stop().await;
}

/// Stands between a machine and its server. Silent, it passes nothing on and closes nothing, as a network that is gone.
struct Relay {
    address: std::net::SocketAddr,
    silent: tokio::sync::watch::Sender<bool>,
}

impl Relay {
    async fn start(to: std::net::SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, heard) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            while let Ok((machine, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(to).await.unwrap();
                let ((from_machine, to_machine), (from_server, to_server)) =
                    (machine.into_split(), server.into_split());
                tokio::spawn(Self::pass(from_machine, to_server, heard.clone()));
                tokio::spawn(Self::pass(from_server, to_machine, heard.clone()));
            }
        });
        Self { address, silent }
    }

    async fn pass(
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        mut silent: tokio::sync::watch::Receiver<bool>,
    ) {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            if silent.wait_for(|silent| !silent).await.is_err() || to.write_all(&piece[..count]).await.is_err() {
                return;
            }
        }
        let _ = silent.wait_for(|silent| !silent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_machine_is_away_after_three_heartbeats_and_its_calls_are_lost() {
    let grace = Duration::from_millis(500);
    let mut joined = Joined::start_with(Level::Workspace, grace).await;
    joined.stop_machine().await;
    let relay = Relay::start(joined.server.address()).await;
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let mut args = joined.arguments();
    // By another address it is another server to the machine, which joins it anew.
    args.url = format!("http://{}", relay.address);
    args.token = Some("token-two".to_owned());
    joined.server.authority.allow("token-two", joined.user);
    args.report = Box::new(move |event| drop(sender.send(event)));
    joined.machine = Some(common::Machine::run(args));
    assert!(matches!(within(events.recv()).await, Some(JoinEvent::Connected { .. })));
    let place = joined.place().await;
    // Control: a quiet command of four heartbeats; nothing but they cross the line, and it stays.
    let quiet = spawn(&joined, &place, ExecId::random(), &shell("sleep 4", false), false).await.unwrap();
    assert_eq!(within(quiet.exit).await.unwrap().code, Some(0));
    assert!(place.is_connected());

    let spawned = spawn(&joined, &place, ExecId::random(), &shell("exec sleep 1000", false), false).await.unwrap();
    let since = tokio::time::Instant::now();
    relay.silent.send_replace(true);
    let op = FileOp::Stat { path: ".".into(), follow: true };
    let may = permit(joined.user, Action::FileRead);
    let file = place.file(&may, &op, None);
    let (exec, file) = within(async { tokio::join!(spawned.exit, file) }).await;
    let took = since.elapsed();
    assert_eq!(exec.unwrap_err().code, Code::PlaceLost);
    assert_eq!(file.err().unwrap().code, Code::PlaceLost);
    assert!(!place.is_connected() && joined.server.hub().joined(joined.user).is_none());
    // Three heartbeats of a second, of which the first may have been due; the grace; and a busy machine.
    assert!((Duration::from_secs(2)..Duration::from_secs(15)).contains(&took), "{took:?}");
    // The machine has found it out by itself, too.
    let told = within(events.recv()).await.unwrap();
    assert!(matches!(&told, JoinEvent::Disconnected { reason, .. } if reason.contains("no sign of life")), "{told:?}");
    relay.silent.send_replace(false);
    within(async { while !matches!(events.recv().await, Some(JoinEvent::Connected { resumed: false, .. })) {} }).await;
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_dials_again_with_growing_pauses() {
    let mut joined = Joined::start(Level::Workspace).await;
    joined.stop_machine().await;
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let mut args = joined.arguments();
    args.report = Box::new(move |event| drop(sender.send((tokio::time::Instant::now(), event))));
    joined.machine = Some(common::Machine::run(args));
    assert!(matches!(within(events.recv()).await, Some((_, JoinEvent::Connected { .. }))));
    for _ in 0..2 {
        joined.server.set_open(false);
        joined.server.cut();
        // Each pause is twice the one before up to the longest, and at most half of it is left to chance.
        let (mut wait, mut due) = (20, None);
        for _ in 0..6 {
            let (at, told) = within(events.recv()).await.unwrap();
            let JoinEvent::Disconnected { retry_in, .. } = told else { panic!("{told:?}") };
            let range = Duration::from_millis(wait) / 2..=Duration::from_millis(wait);
            assert!(range.contains(&retry_in), "{retry_in:?} is not in {range:?}");
            assert!(due.is_none_or(|due| at >= due), "it did not wait: {retry_in:?}");
            due = Some(at + retry_in);
            wait = (wait * 2).min(200);
        }
        joined.server.set_open(true);
        // As soon as it is there again it is connected, goes on, and begins with short pauses the next time.
        within(async {
            while !matches!(events.recv().await, Some((_, JoinEvent::Connected { resumed: true, .. }))) {}
        })
        .await;
    }
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_cannot_go_to_a_tree_is_refused_and_not_swallowed() {
    let joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let exec = ExecId::random();
    let line = shell("trap 'exit 3' 34; while :; do sleep 0.05; done", false);
    let spawned = spawn(&joined, &place, exec, &line, false).await.unwrap();
    let may = permit(joined.user, Action::ExecControl);
    let signal = |number, scope| place.signal(&may, exec, number, scope);
    assert_eq!(signal(34, SignalScope::Tree).await.unwrap_err().code, Code::InvalidRequest);
    assert_eq!(signal(65, SignalScope::Process).await.unwrap_err().code, Code::InvalidRequest);
    // Control: it is one that its first process takes.
    signal(34, SignalScope::Process).await.unwrap();
    let ended = within(spawned.exit).await.unwrap();
    assert!(ended.code == Some(3) || ended.signal == Some(34), "{ended:?}");
    joined.stop().await;
}

/// The machine does what one session orders in its order, so a signal that took long would hold up all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_every_process_of_a_large_tree_at_once() {
    let joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let exec = ExecId::random();
    let line = "for i in $(seq 600); do sleep 1000 & done; echo there; wait";
    let mut spawned = spawn(&joined, &place, exec, &shell(line, false), false).await.unwrap();
    let mut there = [0; 6];
    within(spawned.stdout.read_exact(&mut there)).await.unwrap();
    let began = std::time::Instant::now();
    place.signal(&permit(joined.user, Action::ExecControl), exec, 15, SignalScope::Tree).await.unwrap();
    // Looked through for each of them anew, the tree takes half a minute.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(within(spawned.exit).await.unwrap().signal, Some(15));
    // Its output ends with the last of them.
    within(spawned.stdout.read_to_end(&mut Vec::new())).await.unwrap();
    joined.stop().await;
}
