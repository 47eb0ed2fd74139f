//! Pausing and resuming, on the real kernel.

mod support;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rf_types::{Code, OnLeaseEnd, SandboxId, SandboxSpec};
use rf_wire::warden::{GoneWhy, Order, PausedWhy, Reply};
use support::{Warden, eventually};

/// CPU time that the kernel may still count after it said that all are frozen, microseconds: the way into the freezer.
const LATE_US: u64 = 1_000;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The CPU time that all processes of a sandbox used, microseconds.
fn cpu_us(server: &mut support::Server, id: SandboxId) -> u64 {
    match server.ask(Order::Usage { id }) {
        Ok(Reply::Used(usage)) => usage.cpu_us,
        other => panic!("{other:?}"),
    }
}

/// The directories of a sandbox in all cgroup hierarchies.
fn groups(id: SandboxId) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == *id.to_string() {
                    found.push(entry.path());
                }
                dirs.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_paused_sandbox_stands_still_and_goes_on_where_it_was() {
    let (warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(60_000));
    let id = sandbox.id();
    let busy = sandbox.start("i=0; while test ! -e /tmp/stop; do i=$((i+1)); done; echo $i");
    // Control: it does use the processor while it may.
    let before = cpu_us(&mut server, id);
    eventually("the loop runs", || cpu_us(&mut server, id) > before + 20_000);

    server.done(Order::Pause { id });
    let frozen = cpu_us(&mut server, id);
    std::thread::sleep(Duration::from_millis(300));
    assert!(cpu_us(&mut server, id) < frozen + LATE_US);
    assert!(!sandbox.answers_within(Duration::from_millis(100)), "process 1 is frozen too");
    // Again is the same.
    server.done(Order::Pause { id });

    let begun = Instant::now();
    server.resume(id, None);
    eprintln!("resumed in {:?}", begun.elapsed());
    sandbox.pong();
    eventually("the loop runs again", || cpu_us(&mut server, id) > frozen + 20_000);
    let stop = sandbox.start_later("touch /tmp/stop", "", None);
    let stop = sandbox.started(stop);
    // The two end in any order.
    drop((busy, stop));
    server.done(Order::Destroy { id });
    assert_eq!(groups(id), Vec::<PathBuf>::new());
    warden.stop();
}

#[test]
fn time_in_which_nothing_ran_does_not_count_against_an_exec() {
    let (warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(60_000));
    // Control: without a pause the time is held.
    let slow = sandbox.start_later("sleep 30", "", Some(300));
    let (exited, ..) = sandbox.wait(sandbox.started(slow));
    assert_eq!(exited.timed_out, 1);

    let line = "echo begun; i=0; while test $i -lt 5; do sleep 0.1; i=$((i+1)); done; echo done";
    let exec = sandbox.start_later(line, "", Some(1_500));
    let exec = sandbox.started(exec);
    server.done(Order::Pause { id: sandbox.id() });
    std::thread::sleep(Duration::from_millis(2_500));
    server.resume(sandbox.id(), None);
    let (exited, stdout, _) = sandbox.wait(exec);
    assert_eq!((exited.timed_out, exited.status, stdout.as_str()), (0, 0, "begun\ndone\n"));
    warden.stop();
}

#[test]
fn a_new_server_adopts_what_is_paused_as_often_as_it_comes() {
    let (warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(60_000));
    let id = sandbox.id();
    sandbox.sh("echo kept > /tmp/file");
    server.done(Order::Pause { id });
    drop((server, sandbox));
    // More often than a queue of messages to init is long.
    for _ in 0..400 {
        let mut server = warden.connect();
        let adopted = server.adopt();
        let [(adopted, Some(paused))] = &adopted[..] else { panic!("one is there, paused") };
        assert_eq!((adopted.id(), paused.why), (id, PausedWhy::Asked));
    }
    let mut server = warden.connect();
    let (sandbox, _) = server.adopt().pop().unwrap();
    // What is said to it now it hears when it runs again.
    let later = sandbox.start_later("cat /tmp/file", "", None);
    server.resume(id, None);
    let (exited, stdout, _) = sandbox.wait(sandbox.started(later));
    assert_eq!((exited.status, stdout.as_str()), (0, "kept\n"));
    let adopted = server.adopt();
    assert!(matches!(adopted[..], [(_, None)]), "it is not paused any more");
    warden.stop();
}

#[test]
fn a_frozen_sandbox_is_destroyed_like_any_other() {
    let (warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(60_000));
    let id = sandbox.id();
    drop(sandbox.start("sleep 1000 & sleep 1000"));
    assert!(!groups(id).is_empty());
    server.done(Order::Pause { id });
    server.done(Order::Destroy { id });
    assert_eq!(groups(id), Vec::<PathBuf>::new());
    assert_eq!(server.refused(Order::Resume { id, lease_until: None }), Code::NotFound);
    assert_eq!(server.refused(Order::Pause { id }), Code::NotFound);
    warden.stop();
}

#[test]
fn twenty_sandboxes_leave_no_group() {
    let warden = Warden::start_with(&["2"]);
    let mut server = warden.connect();
    for turn in 0..20 {
        let sandbox = server.create(&SandboxSpec::standard(60_000));
        assert_eq!(sandbox.sh("echo here"), "here", "turn {turn}");
        // Its own group, and below it one of an exec that goes on.
        drop(sandbox.start("sleep 1000"));
        assert!(!groups(sandbox.id()).is_empty(), "the control");
        server.done(Order::Destroy { id: sandbox.id() });
        assert_eq!(groups(sandbox.id()), Vec::<PathBuf>::new(), "turn {turn}");
    }
    warden.stop();
}

#[test]
fn nothing_frozen_outlives_its_warden() {
    let (mut warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(60_000));
    drop(sandbox.start("sleep 1000"));
    server.done(Order::Pause { id: sandbox.id() });
    warden.kill_and_restart();
    assert_eq!(groups(sandbox.id()), Vec::<PathBuf>::new());
    assert!(warden.connect().adopt().is_empty());
    warden.stop();
}

#[test]
fn the_end_of_a_lease_pauses_where_the_spec_says_so() {
    let (warden, mut server, destroyed) = Warden::with(&SandboxSpec::standard(1_000));
    let spec = SandboxSpec { on_lease_end: OnLeaseEnd::Pause, ..SandboxSpec::standard(1_000) };
    let paused = server.create(&spec);
    let id = paused.id();
    paused.sh("echo kept > /tmp/file");
    let gone = server.news(|news| match news {
        Reply::Gone { id, why } => Some((*id, *why)),
        _ => None,
    });
    assert_eq!(gone, (destroyed.id(), GoneWhy::Lease), "the control: by itself a lease's end destroys");
    let told = server.news(|news| match news {
        Reply::Paused { id, why } => Some((*id, *why)),
        _ => None,
    });
    assert_eq!(told, (id, PausedWhy::Lease));
    let frozen = cpu_us(&mut server, id);
    let later = Order::SetLease { id, lease_until: now_ms() + 60_000 };
    assert_eq!(server.refused(later), Code::Conflict);

    // It stays, also past what the lease was.
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(cpu_us(&mut server, id) < frozen + LATE_US);
    let until = now_ms() + 1_500;
    assert_eq!(server.resume(id, Some(until)), until);
    assert_eq!(paused.sh("cat /tmp/file"), "kept");
    // And it is paused again at the end of the next.
    let again = server.news(|news| match news {
        Reply::Paused { id, .. } => Some(*id),
        _ => None,
    });
    assert!(again == id && now_ms() >= until);
    warden.stop();
}

#[test]
fn a_lease_ends_in_a_pause_without_a_server_too() {
    let spec = SandboxSpec { on_lease_end: OnLeaseEnd::Pause, ..SandboxSpec::standard(1_000) };
    let (warden, server, sandbox) = Warden::with(&spec);
    drop(server);
    std::thread::sleep(Duration::from_millis(1_300));
    let mut server = warden.connect();
    let (adopted, paused) = server.adopt().pop().expect("it is still there");
    assert_eq!((adopted.id(), paused.unwrap().why), (sandbox.id(), PausedWhy::Lease));
    warden.stop();
}

#[test]
fn a_resumed_lease_has_what_was_left_of_it() {
    let (warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(20_000));
    server.done(Order::Pause { id: sandbox.id() });
    std::thread::sleep(Duration::from_millis(1_500));
    let until = server.resume(sandbox.id(), None);
    assert!(until >= sandbox.lease_until + 1_400 && until <= now_ms() + 20_000, "{until} {}", sandbox.lease_until);
    // One that runs keeps its lease.
    assert_eq!(server.resume(sandbox.id(), None), until);
    warden.stop();
}
