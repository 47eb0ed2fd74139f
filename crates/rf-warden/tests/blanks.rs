//! Disks on images, whose file systems are made when a size is first asked for: nobody waits for that but who asked.

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use rf_types::{Code, DiskKind, SandboxSpec, units::MIB};
use rf_wire::warden::{Order, Reply};
use rustix::process::{Pid, Signal, kill_process};
use support::{
    Server, Warden, eventually,
    steps::{EXEC, Holder},
};

fn image(mib: u64) -> SandboxSpec {
    let mut spec = SandboxSpec { disk: DiskKind::Image, ..SandboxSpec::standard(600_000) };
    spec.limits.disk_bytes_max = mib * MIB;
    spec
}

fn create(spec: &SandboxSpec) -> Order {
    Order::Create { spec: spec.clone(), from: None, id: None }
}

/// Names of what the warden has of images.
fn images(warden: &Warden) -> Vec<String> {
    let entries = fs::read_dir(warden.state().join("images")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The warden's children that make file systems.
fn makers(warden: &Warden) -> usize {
    let pid = warden.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.split_whitespace().filter(|pid| name(pid).starts_with("mkfs")).count()
}

/// What makes a file system, stopped before its first instruction. Whoever holds it by ptrace(2) would hold the warden up
/// as well, once that starts somebody else.
struct Stopped(Pid);

impl Stopped {
    fn tell(&self, signal: Signal) {
        kill_process(self.0, signal).unwrap();
    }
}

/// Asks for a sandbox, and stops what makes its disk.
fn stopped(warden: &Warden, server: &mut Server, spec: &SandboxSpec) -> (Stopped, u64) {
    let mut holder = Holder::start(warden, "launch");
    let tag = server.send(create(spec));
    while holder.next().expect("mkfs is started") != EXEC {
        holder.tell("go");
    }
    let stopped = Stopped(holder.held().unwrap());
    stopped.tell(Signal::STOP);
    drop(holder);
    (stopped, tag)
}

fn made(server: &mut Server, tag: u64) -> support::Sandbox {
    match server.answer(tag) {
        (Ok(Reply::Created { id, lease_until, .. }), Some(socket)) => support::Sandbox::new(id, lease_until, socket),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_else_waits_for_a_file_system_that_is_made() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let spec = image(40);
    let (maker, first) = stopped(&warden, &mut server, &spec);
    let begun = Instant::now();
    // Three who want the same, and somebody who does not.
    let same = [(); 3].map(|()| server.send(create(&spec)));
    let memory = server.create(&SandboxSpec::standard(600_000));
    assert_eq!(memory.sh("echo here"), "here");
    let other = server.create(&image(50));
    assert_eq!(other.sh("echo there"), "there");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(makers(&warden), 1, "one for all of a size");
    assert!(!images(&warden).contains(&format!("blank-{}-{}", 40 * MIB, spec.limits.inodes_max)));
    maker.tell(Signal::CONT);
    let tags: Vec<u64> = std::iter::once(first).chain(same).collect();
    let all: Vec<_> = tags.into_iter().map(|tag| made(&mut server, tag)).collect();
    for (number, sandbox) in all.iter().enumerate() {
        sandbox.sh(&format!("test ! -e ~/mine && echo {number} > ~/mine"));
        let blocks: u64 = sandbox.sh("stat -f -c '%b' /").parse().unwrap();
        let size: u64 = sandbox.sh("stat -f -c '%S' /").parse().unwrap();
        assert!((30 * MIB..=40 * MIB).contains(&(blocks * size)), "{blocks} of {size}");
    }
    // Control: the next one of that size is made from what is there.
    let next = server.create(&spec);
    assert_eq!((images(&warden).len(), makers(&warden)), (2, 0));
    for sandbox in all.iter().chain([&memory, &other, &next]) {
        server.done(Order::Destroy { id: sandbox.id() });
    }
    warden.stop();
}

#[test]
fn who_makes_a_file_system_is_killed_and_who_waits_is_told() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let spec = image(40);
    let (maker, first) = stopped(&warden, &mut server, &spec);
    let second = server.send(create(&spec));
    let killed = Instant::now();
    maker.tell(Signal::KILL);
    for tag in [first, second] {
        let fault = server.answer(tag).0.unwrap_err();
        assert_eq!(fault.code, Code::ServerBusy);
        assert!(fault.message.contains("mkfs.ext4"), "{fault:?}");
    }
    assert!(killed.elapsed() < Duration::from_secs(2));
    eventually("nothing of it is left", || images(&warden).is_empty() && makers(&warden) == 0);
    // Control: nobody has to do anything about it.
    let sandbox = server.create(&spec);
    assert_eq!(sandbox.sh("echo here"), "here");
    server.done(Order::Destroy { id: sandbox.id() });
    warden.stop();
}

#[test]
fn a_warden_ends_while_a_file_system_is_made() {
    let mut warden = Warden::start();
    let mut server = warden.connect();
    let (maker, _) = stopped(&warden, &mut server, &image(40));
    drop(server);
    // Its server has gone as well; another one wants the same.
    let mut server = warden.connect();
    server.send(create(&image(40)));
    assert_eq!(makers(&warden), 1);
    warden.kill_and_restart();
    maker.tell(Signal::CONT);
    let mut server = warden.connect();
    let sandbox = server.create(&image(40));
    assert_eq!(sandbox.sh("echo here > ~/file; cat ~/file"), "here");
    server.done(Order::Destroy { id: sandbox.id() });
    eventually("only what was made is there", || {
        images(&warden) == [format!("blank-{}-{}", 40 * MIB, image(40).limits.inodes_max)]
    });
    warden.stop();
}
