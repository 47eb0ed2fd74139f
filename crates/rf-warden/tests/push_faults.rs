//! What makes a layer of what a sandbox wrote is killed at every step: the sandbox has its old root or the new one, whole
//! and writable, or is ended and that told.
//!
//! The process is held at its system calls by ptrace(2) (`steps.py` of the escape tests), and killed there.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rf_types::{Code, DiskKind, SandboxSpec, SnapshotId, units::MIB};
use rf_wire::warden::{GoneWhy, Order, Reply, SnapshotWay};
use support::{Sandbox, Server, Warden, eventually};

const STEPS: &str = include_str!("../../rf-escape/probes/steps.py");
/// The numbers of mount_setattr(2) and pivot_root(2).
const MOUNT_SETATTR: u32 = 442;
const PIVOT_ROOT: u32 = 155;
/// Before anything of the sandbox is changed, every so many calls.
const STRIDE: usize = 8;
/// Longest time between a death and the answer of whoever waited for the dead.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Who holds the next child of the warden at its steps.
struct Holder {
    child: Child,
    said: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Holder {
    fn start(warden: &Warden, mode: &str) -> Self {
        let path = warden.state().join("../steps.py");
        fs::write(&path, STEPS).unwrap();
        let mut command = Command::new("python3");
        command.arg(path).arg(mode).arg(warden.pid().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (said, told) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        let mut holder = Self { child, said, told };
        assert_eq!(holder.line(), "READY");
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The number of the call at which it is held next; `None` at its end.
    fn next(&mut self) -> Option<u32> {
        let line = self.line();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["CALL", number, _] => Some(number.parse().unwrap()),
            ["END", _] => None,
            _ => panic!("{line:?}"),
        }
    }

    fn tell(&mut self, word: &str) {
        self.told.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    /// Lets it go to its call of this place, and kills it there; which call that is. `None` when it has ended before: one
    /// asks the kernel for memory a time more often than another.
    fn kill_at(mut self, place: usize) -> Option<u32> {
        for _ in 0..place {
            self.next()?;
            self.tell("go");
        }
        let call = self.next()?;
        self.tell("kill");
        assert_eq!(self.next(), None);
        Some(call)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Whoever was held goes on.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The warden's children but for those that are in its own user namespace, and do nothing for a sandbox.
fn children(warden: &Warden) -> usize {
    let pid = warden.pid();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let own = namespace(&pid.to_string()).unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().filter(|child| namespace(child).is_none_or(|found| found != own)).count()
}

/// Begins a snapshot whose process is held, or all of whose are.
fn begin(warden: &Warden, server: &mut Server, sandbox: &Sandbox, mode: &str) -> (Holder, u64, SnapshotId) {
    // Its own process 1 and nobody else: the next child is the one.
    eventually("the warden is at rest", || children(warden) == 1);
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
    let points: Vec<usize> = (0..first).step_by(STRIDE).chain(first..calls.len()).collect();
    assert!(points.len() > 30, "{} of {} calls", points.len(), calls.len());
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
    assert!(undone > 10 && done > 2);
    eventually("nothing is left", || children(&warden) == 0);
    warden.stop();
}

#[test]
fn a_sandbox_that_cannot_be_made_whole_is_ended_and_that_told() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let (calls, first) = calls(&warden, &mut server);
    let pivot = first + calls[first..].iter().position(|call| *call == PIVOT_ROOT).unwrap();
    let sandbox = server.create(&spec());
    let other = server.create(&spec());
    server.done(Order::Destroy { id: other.id() });
    let (mut holder, tag, _) = begin(&warden, &mut server, &sandbox, "each");
    // Who pushes, and then who is to make the sandbox whole: neither has done so at its third call.
    for place in [pivot, 3] {
        for _ in 0..place {
            holder.next().unwrap();
            holder.tell("go");
        }
        holder.next().unwrap();
        holder.tell("slay");
        assert_eq!(holder.next(), None);
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
    eventually("nothing is left", || children(&warden) == 0);
    warden.stop();
}
