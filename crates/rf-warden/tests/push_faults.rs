//! What makes a layer of what a sandbox wrote is killed at every step: the sandbox has its old root or the new one, whole
//! and writable, or is ended and that told.
//!
//! The process is held at its system calls by ptrace(2) (`steps.py` of the escape tests), and killed there.

mod support;

use std::time::{Duration, Instant};

use rf_types::{Code, DiskKind, SandboxSpec, SnapshotId, units::MIB};
use rf_wire::warden::{GoneWhy, Order, Reply, SnapshotWay};
use support::{Sandbox, Server, Warden, eventually, steps::Holder};

/// The numbers of mount_setattr(2), pivot_root(2), sendmsg(2) and setns(2).
const MOUNT_SETATTR: u32 = 442;
const PIVOT_ROOT: u32 = 155;
const SENDMSG: u32 = 46;
const SETNS: u32 = 308;
/// Before anything of the sandbox is changed, and after the word that it was, every so many calls.
const STRIDE: usize = 16;
/// Longest time between a death and the answer of whoever waited for the dead.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Begins a snapshot whose process is held, or all of whose are.
fn begin(warden: &Warden, server: &mut Server, sandbox: &Sandbox, mode: &str) -> (Holder, u64, SnapshotId) {
    // Its own process 1 and nobody else: the next child is the one.
    eventually("the warden is at rest", || warden.children() == 1);
    let (holder, snapshot) = (Holder::start(warden, mode), SnapshotId::random());
    (holder, server.send(Order::Snapshot { id: sandbox.id(), snapshot }), snapshot)
}

fn spec() -> SandboxSpec {
    let mut spec = SandboxSpec { disk: DiskKind::Memory, ..SandboxSpec::standard(600_000) };
    spec.limits.memory_bytes_max = 512 * MIB;
    spec
}

/// What it has, and that it can write wherever it could.
fn look(sandbox: &Sandbox) -> String {
    sandbox.sh("set -e; for dir in ~ /tmp /dev/shm; do echo $dir > $dir/tried; rm $dir/tried; done");
    sandbox.sh_as("root", "set -e; for dir in / /usr /etc; do echo $dir > $dir/tried; rm $dir/tried; done");
    // Where there is one root, nothing lies on it: a way down and up again leads to what it is.
    sandbox
        .sh("stat -c %d / /proc/.. /dev/.. | uniq | wc -l; cut -d' ' -f5 /proc/self/mountinfo | grep -cx /; cat ~/file")
}

/// Every system call that such a process makes, and where it first changes something of the sandbox.
fn calls(warden: &Warden, server: &mut Server) -> (Vec<u32>, usize) {
    let sandbox = server.create(&spec());
    let (mut holder, tag, snapshot) = begin(warden, server, &sandbox, "launch");
    let mut calls = Vec::new();
    while let Some(call) = holder.next() {
        calls.push(call);
        holder.tell("go");
    }
    drop(holder);
    assert!(server.answer(tag).0.is_ok());
    server.done(Order::RemoveSnapshot { snapshot });
    server.done(Order::Destroy { id: sandbox.id() });
    let first = calls.iter().position(|call| *call == MOUNT_SETATTR).unwrap();
    assert!(calls[first..].contains(&PIVOT_ROOT), "{calls:?}");
    (calls, first)
}

#[test]
fn whoever_pushes_is_killed_at_every_step() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let (calls, first) = calls(&warden, &mut server);
    let told = first + calls[first..].iter().position(|call| *call == SENDMSG).unwrap() + 2;
    let points: Vec<usize> =
        (0..first).step_by(STRIDE).chain(first..told).chain((told..calls.len()).step_by(STRIDE)).collect();
    assert!(told - first > 15, "{:?}", &calls[first..told]);
    let (mut done, mut undone, mut control) = (0, 0, None);
    let mut wrong = Vec::new();
    for (number, place) in points.iter().enumerate() {
        let sandbox = server.create(&spec());
        sandbox.sh(&format!("echo {number} > ~/file"));
        let expected = control.get_or_insert_with(|| look(&sandbox).replacen("\n0", "\nNUMBER", 1));
        let expected = expected.replace("NUMBER", &number.to_string());
        let (holder, tag, snapshot) = begin(&warden, &mut server, &sandbox, "launch");
        let call = holder.kill_at(*place);
        let killed = Instant::now();
        let result = server.answer(tag).0;
        let took = killed.elapsed();
        let mut check = |good: bool, what: String| {
            if !good {
                wrong.push(format!("point {place} of {}, call {call:?}: {what}", calls.len()));
            }
        };
        check(took < ANSWERED_WITHIN, format!("answered after {took:?}"));
        let found = look(&sandbox);
        check(found == expected, format!("{found:?} and not {expected:?}"));
        match result {
            Ok(Reply::Snapshotted(made)) => {
                done += 1;
                check(made.way == SnapshotWay::Pushed, format!("{made:?}"));
                let fork = server.create_from(&spec(), snapshot);
                let found = fork.sh("cat ~/file");
                check(found == number.to_string(), format!("a fork has {found:?}"));
                server.done(Order::RemoveSnapshot { snapshot });
                server.done(Order::Destroy { id: fork.id() });
            }
            Err(fault) => {
                undone += 1;
                check(fault.code == Code::ServerBusy && call.is_some(), format!("{fault:?}"));
            }
            other => panic!("{other:?}"),
        }
        // It can be saved as if nothing had been.
        sandbox.sh("echo again >> ~/file");
        let made = server.snapshot(sandbox.id());
        check(made.way == SnapshotWay::Pushed, format!("later {made:?}"));
        let fork = server.create_from(&spec(), made.id);
        let found = fork.sh("cat ~/file");
        check(found == format!("{number}\nagain"), format!("a later fork has {found:?}"));
        server.done(Order::RemoveSnapshot { snapshot: made.id });
        server.done(Order::Destroy { id: fork.id() });
        server.done(Order::Destroy { id: sandbox.id() });
    }
    eprintln!("{} of {} calls: {undone} undone, {done} done", points.len(), calls.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(undone > 5 && done > 1);
    eventually("nothing is left", || warden.children() == 0);
    warden.stop();
}

#[test]
fn a_sandbox_that_cannot_be_made_whole_is_ended_and_that_told() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let sandbox = server.create(&spec());
    let other = server.create(&spec());
    server.done(Order::Destroy { id: other.id() });
    let (mut holder, tag, _) = begin(&warden, &mut server, &sandbox, "each");
    // Who pushes, before the new root is there, and then who is to make the sandbox whole, before it enters it. Others that
    // the warden starts meanwhile go on.
    let mut slain = None;
    for call in [PIVOT_ROOT, SETNS] {
        while holder.next() != Some(call) || holder.held() == slain {
            holder.tell("go");
        }
        slain = holder.held();
        holder.tell("slay");
    }
    while holder.next().is_some() || holder.held() != slain {
        holder.tell("go");
    }
    drop(holder);
    let killed = Instant::now();
    assert_eq!(server.answer(tag).0.unwrap_err().code, Code::PlaceLost);
    assert!(killed.elapsed() < ANSWERED_WITHIN);
    let why = server.news(|news| match news {
        Reply::Gone { id, why } if *id == sandbox.id() => Some(*why),
        _ => None,
    });
    assert_eq!(why, GoneWhy::Broken);
    assert_eq!(server.refused(Order::Usage { id: sandbox.id() }), Code::NotFound);
    // Control: the warden goes on.
    let next = server.create(&spec());
    assert_eq!(next.sh("echo on"), "on");
    server.done(Order::Destroy { id: next.id() });
    eventually("nothing is left", || warden.children() == 0);
    warden.stop();
}
