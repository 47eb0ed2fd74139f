//! Cases of execs.

use rf_types::{Code, ExecId, Program, Pty, Rlimits, SignalScope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Site, feed, finish, read_until, sh, spec};
use crate::noise;

const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;

pub(super) async fn output_is_byte_exact_and_apart(site: &Site) {
    let line = r"printf '\000\377\376out\n'; printf '\200err' >&2; exit 7";
    let argv = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
    let ran = site.run(&spec(Program::Argv(argv))).await;
    assert_eq!(ran.stdout, b"\x00\xff\xfeout\n");
    assert_eq!(ran.stderr, b"\x80err");
    assert_eq!((ran.report.code, ran.report.signal, ran.report.timed_out), (Some(7), None, false));
}

pub(super) async fn a_shell_line_runs(site: &Site) {
    assert_eq!(site.shell("echo a b | tr a-z A-Z").await, "A B\n");
    // Found through PATH.
    let ran = site.run(&spec(Program::Argv(vec!["echo".into(), "$HOME *".into()]))).await;
    assert_eq!(ran.stdout, b"$HOME *\n");
}

pub(super) async fn the_environment_is_small_and_as_asked(site: &Site) {
    let mut asked = sh("env");
    asked.env.insert("ASKED".into(), "one\ntwo = ü".into());
    let ran = site.run(&asked).await;
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.contains("ASKED=one\ntwo = ü\n"), "{text}");
    assert!(text.contains("PATH="), "{text}");
    // What the test itself runs with must not be there.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!text.contains("CARGO"), "{text}");
    let mut wrong = sh("true");
    wrong.env.insert("A=B".into(), "x".into());
    let fault = site.try_spawn(ExecId::random(), &wrong).await.err().expect("a name with `=` is refused");
    assert_eq!(fault.code, Code::InvalidRequest);
}

pub(super) async fn it_runs_in_the_directory_asked_for(site: &Site) {
    site.make_dir("below").await;
    let mut asked = sh("pwd -P");
    let home = String::from_utf8(site.run(&asked).await.stdout).unwrap();
    asked.cwd = Some(site.path("below"));
    let below = String::from_utf8(site.run(&asked).await.stdout).unwrap();
    assert_eq!(below.trim_end(), format!("{}/{}", home.trim_end(), site.path("below")));
    asked.cwd = Some(site.path("missing"));
    let fault = site.try_spawn(ExecId::random(), &asked).await.err().expect("there is no such directory");
    assert_eq!(fault.code, Code::ExecFailed);
}

pub(super) async fn what_cannot_start_says_why(site: &Site) {
    for program in ["/no/such/program", "no-such-program-on-any-path"] {
        let asked = spec(Program::Argv(vec![program.into()]));
        let fault = site.try_spawn(ExecId::random(), &asked).await.err().expect("there is no such program");
        assert_eq!(fault.code, Code::ExecFailed, "{fault:?}");
        assert!(fault.message.contains(program), "{fault:?}");
    }
    let nothing = spec(Program::Argv(Vec::new()));
    let fault = site.try_spawn(ExecId::random(), &nothing).await.err().expect("nothing cannot be started");
    assert_eq!(fault.code, Code::InvalidRequest);
}

pub(super) async fn standard_input_goes_through_and_ends(site: &Site) {
    let mut asked = sh("cat");
    asked.stdin = true;
    let (_, mut spawned) = site.spawn(&asked).await;
    let bytes = noise(3_000_001);
    let (ran, ()) = tokio::join!(
        async {
            let mut all = Vec::new();
            spawned.stdout.read_to_end(&mut all).await.unwrap();
            all
        },
        feed(spawned.stdin.take(), &bytes)
    );
    assert!(ran == bytes, "{} of {} bytes came back, or others", ran.len(), bytes.len());
    assert_eq!(spawned.exit.await.unwrap().code, Some(0));
}

pub(super) async fn without_standard_input_there_is_nothing_to_read(site: &Site) {
    let ran = site.run(&sh("cat; echo end")).await;
    assert_eq!(ran.stdout, b"end\n");
}

pub(super) async fn time_is_up_for_the_whole_tree(site: &Site) {
    let mut asked = site.here(sh("setsid sleep 1000 & echo $! > pid; sleep 1000"));
    asked.timeout_ms = Some(500);
    let (_, spawned) = site.spawn(&asked).await;
    let report = spawned.exit.await.unwrap();
    assert!(report.timed_out);
    assert_eq!((report.code, report.signal), (None, Some(SIGKILL)));
    gone(site, "pid").await;
}

pub(super) async fn a_signal_reaches_the_process(site: &Site) {
    let asked = sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done");
    let (exec, mut spawned) = site.spawn(&asked).await;
    read_until(&mut spawned.stdout, "ready").await;
    site.signal(exec, SIGTERM, SignalScope::Process).await.unwrap();
    assert_eq!(finish(spawned).await.report.code, Some(9));
}

pub(super) async fn a_signal_reaches_the_tree(site: &Site) {
    // The inner shell has a session of its own; only a signal to the tree finds it.
    let inner = "trap \"echo inner-got-it; exit 0\" TERM; echo inner-ready; while :; do sleep 0.02; done";
    let line = format!("trap : TERM; setsid sh -c '{inner}' & wait; wait; exit 3");
    let (exec, mut spawned) = site.spawn(&sh(&line)).await;
    read_until(&mut spawned.stdout, "inner-ready").await;
    site.signal(exec, SIGTERM, SignalScope::Tree).await.unwrap();
    let ran = finish(spawned).await;
    assert_eq!(ran.stdout, b"inner-got-it\n");
    assert_eq!(ran.report.code, Some(3));
}

pub(super) async fn killing_the_tree_kills_what_detached_itself(site: &Site) {
    // A child in a session of its own, and a grandchild whose parent is dead.
    let line = "setsid sh -c 'echo $$ > one; exec sleep 1000' & \
                (setsid sh -c 'echo $$ > two; exec sleep 1000' &) ; \
                while [ ! -s one ] || [ ! -s two ]; do sleep 0.02; done; echo ready; sleep 1000";
    let (exec, mut spawned) = site.spawn(&site.here(sh(line))).await;
    read_until(&mut spawned.stdout, "ready").await;
    site.shell("test -d /proc/$(cat one) && test -d /proc/$(cat two)").await;
    site.signal(exec, SIGKILL, SignalScope::Tree).await.unwrap();
    assert_eq!(finish(spawned).await.report.signal, Some(SIGKILL));
    gone(site, "one").await;
    gone(site, "two").await;
}

pub(super) async fn a_dropped_exec_is_killed(site: &Site) {
    let line = "setsid sh -c 'echo $$ > pid; echo ready; exec sleep 1000' & wait";
    let (_, mut spawned) = site.spawn(&site.here(sh(line))).await;
    read_until(&mut spawned.stdout, "ready").await;
    drop(spawned);
    gone(site, "pid").await;
}

pub(super) async fn what_a_dropped_exec_left_behind_is_killed(site: &Site) {
    // Its first process ends at once, so nothing but the place's own book-keeping knows whose the other one is.
    let line = r#"setsid sh -c "while [ -d /proc/$$ ]; do :; done; echo \$\$ > pid; echo ready; exec sleep 1000" &"#;
    let (exec, mut spawned) = site.spawn(&site.here(sh(line))).await;
    read_until(&mut spawned.stdout, "ready").await;
    drop(spawned);
    if site.differs.loses_detached_orphans {
        // Nothing is left that could be signalled, and it says so.
        let fault = site.signal(exec, SIGKILL, SignalScope::Tree).await.unwrap_err();
        assert_eq!(fault.code, Code::NotFound);
        site.shell("kill -9 $(cat pid)").await;
    }
    gone(site, "pid").await;
}

/// Waits until the process whose pid is in file `name` is gone; the exec's own deadline bounds it.
async fn gone(site: &Site, name: &str) {
    let mut asked = site.here(sh(&format!("while [ -d /proc/$(cat {name}) ]; do sleep 0.02; done")));
    asked.timeout_ms = Some(20_000);
    let ran = site.run(&asked).await;
    assert_eq!(ran.report.code, Some(0), "the process of {name} lives on");
}

pub(super) async fn large_output_is_whole(site: &Site) {
    let ran = site.run(&sh("seq 1 2000000; seq 1 10000 >&2")).await;
    let numbers = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>().into_bytes();
    assert!(ran.stdout == numbers(2_000_000), "{} bytes of output", ran.stdout.len());
    assert!(ran.stderr == numbers(10_000), "{} bytes of errors", ran.stderr.len());
}

pub(super) async fn a_reader_that_waits_stalls_nobody_else(site: &Site) {
    let (_, spawned) = site.spawn(&sh("head -c 50000000 /dev/zero")).await;
    // Nobody reads it meanwhile; the others go on.
    for _ in 0..3 {
        assert_eq!(site.shell("echo here").await, "here\n");
        site.write("file", b"here too").await;
        assert_eq!(site.read("file").await, b"here too");
    }
    let ran = finish(spawned).await;
    assert_eq!(ran.stdout.len(), 50_000_000);
    assert_eq!(ran.report.code, Some(0));
}

pub(super) async fn output_that_nobody_reads_ends_the_writer(site: &Site) {
    let (_, spawned) = site.spawn(&spec(Program::Argv(vec!["yes".into()]))).await;
    drop(spawned.stdout);
    let report = spawned.exit.await.unwrap();
    assert_eq!((report.code, report.signal), (None, Some(SIGPIPE)));
}

pub(super) async fn a_terminal_has_its_size_and_is_resized(site: &Site) {
    let mut asked = sh("test -t 0 && test -t 1 && test -t 2 && stty size; read line; stty size; echo \"got $line\"");
    asked.pty = Some(Pty { rows: 24, cols: 80 });
    asked.stdin = true;
    let (_, mut spawned) = site.spawn(&asked).await;
    assert!(spawned.stderr.is_none(), "a terminal has one output");
    read_until(&mut spawned.stdout, "24 80").await;
    spawned.resize.as_ref().expect("a terminal can be resized").resize(50, 132).unwrap();
    let mut stdin = spawned.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    stdin.flush().await.unwrap();
    let rest = read_until(&mut spawned.stdout, "got hello").await;
    assert!(rest.contains("50 132"), "{rest}");
    let ran = finish(spawned).await;
    assert_eq!(ran.report.code, Some(0));
}

pub(super) async fn usage_is_told(site: &Site) {
    let ran = site.run(&sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).await;
    let usage = ran.report.usage;
    assert!(usage.cpu_user_us + usage.cpu_system_us > 0, "{usage:?}");
    assert!(usage.wall_us > 0 && usage.memory_peak_bytes > 100_000, "{usage:?}");
}

pub(super) async fn an_id_is_started_once(site: &Site) {
    let exec = ExecId::random();
    let asked = site.here(sh("echo ran >> runs"));
    let spawned = site.try_spawn(exec, &asked).await.unwrap();
    finish(spawned).await;
    assert!(site.try_spawn(exec, &asked).await.is_err(), "the same id was started again");
    assert_eq!(site.read("runs").await, b"ran\n");
}

pub(super) async fn limits_hold(site: &Site) {
    let mut asked = site.here(sh("ulimit -n; ulimit -f; head -c 3000000 /dev/zero > file; wc -c < file"));
    asked.rlimits = Rlimits { files_max: Some(32), file_bytes_max: Some(1_048_576), ..Rlimits::default() };
    let ran = site.run(&asked).await;
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.starts_with("32\n") && text.ends_with("1048576\n"), "{text}");
}

pub(super) async fn what_does_not_run_is_not_found(site: &Site) {
    let fault = site.signal(ExecId::random(), SIGTERM, SignalScope::Tree).await.unwrap_err();
    assert_eq!(fault.code, Code::NotFound);
    let (exec, spawned) = site.spawn(&sh("true")).await;
    finish(spawned).await;
    let fault = site.signal(exec, SIGTERM, SignalScope::Process).await.unwrap_err();
    assert_eq!(fault.code, Code::NotFound);
}
