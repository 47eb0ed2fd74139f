//! What is removed is removed by somebody else than the warden; what a warden leaves, the next one removes.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rf_types::{Code, SandboxId, SandboxSpec, SnapshotId, TemplateName};
use rf_wire::warden::{Order, Reply};
use support::{Server, Warden, eventually};

/// First host id of the process that removes, and how many it has.
const REMOVER: std::ops::Range<u32> = 0x6FFD_0000..0x6FFE_0000;
/// The digest of an archive with nothing in it, and that archive.
const EMPTY: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

fn hex(number: u8) -> String {
    format!("{number:064x}")
}

fn layer(number: u8) -> String {
    format!("sha256:{}", hex(number))
}

fn name(text: &str) -> TemplateName {
    text.parse().unwrap()
}

/// A state directory with these layers unpacked, each of so many files, and these templates.
fn state(layers: &[(String, usize)], templates: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let warden = dir.path().join("warden");
    fs::create_dir_all(warden.join("templates")).unwrap();
    for (name, files) in layers {
        let layer = warden.join("layers").join(name);
        for part in 0..files.div_ceil(1000) {
            let sub = layer.join(format!("d{part}/sub"));
            fs::create_dir_all(&sub).unwrap();
            for file in 0..1000.min(*files) {
                fs::write(sub.join(format!("{file}")), "").unwrap();
            }
        }
        fs::create_dir_all(layer).unwrap();
    }
    for (name, layers) in templates {
        let layers: Vec<String> = layers.iter().map(|number| layer(*number)).collect();
        fs::write(warden.join("templates").join(format!("{name}.json")), serde_json::to_vec(&layers).unwrap()).unwrap();
    }
    dir
}

/// The names of what is there of layers.
fn there(warden: &Warden) -> BTreeSet<String> {
    let entries = fs::read_dir(warden.state().join("layers")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(numbers: &[u8]) -> BTreeSet<String> {
    numbers.iter().map(|number| hex(*number)).collect()
}

/// The warden's children, with their user ids.
fn processes(warden: &Warden) -> Vec<(u32, u32)> {
    let pid = warden.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let uid = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.to_owned();
        Some((pid.parse().unwrap(), line.split_whitespace().next()?.parse().unwrap()))
    };
    children.split_whitespace().filter_map(uid).collect()
}

/// The user ids of the warden's children.
fn children(warden: &Warden) -> Vec<u32> {
    processes(warden).into_iter().map(|(_, uid)| uid).collect()
}

/// Holds a process, so that it takes no SIGKILL: by the freezer of version 1, as a device that does not answer would.
struct Held(PathBuf);

impl Held {
    fn new(pid: u32) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let freezer = mounts.lines().filter_map(|line| line.split_once(" - ")).find_map(|(mount, rest)| {
            let is_freezer = rest.starts_with("cgroup ") && rest.split([' ', ',']).any(|option| option == "freezer");
            is_freezer.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
        });
        let freezer =
            freezer.expect("run this where the freezer of version 1 is mounted: nothing else holds a process");
        let held = Self(freezer.join(format!("ringfence-test-removal-{}", std::process::id())));
        fs::create_dir(&held.0).unwrap();
        fs::write(held.0.join("freezer.state"), "FROZEN").unwrap();
        fs::write(held.0.join("cgroup.procs"), pid.to_string()).unwrap();
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        eventually("the group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_layer_of_many_files_is_removed_by_a_process_without_rights_while_orders_are_taken() {
    let dir = state(&[(hex(1), 60_000), (hex(2), 1)], &[("large", &[1]), ("small", &[2])]);
    let warden = Warden::start_on(dir, &[]);
    let mut server = warden.connect();
    assert_eq!(there(&warden), set(&[1, 2]));
    server.done(Order::RemoveTemplate { name: name("large") });
    assert!(!there(&warden).contains(&hex(1)), "its name is free at once");
    let (mut answered, mut slowest, mut seen) = (0, Duration::ZERO, BTreeSet::new());
    while there(&warden).len() > 1 {
        let begun = Instant::now();
        server.ask(Order::Status {}).unwrap();
        slowest = slowest.max(begun.elapsed());
        answered += 1;
        seen.extend(children(&warden));
    }
    eprintln!("{answered} orders meanwhile, the slowest took {slowest:?}; children were {seen:?}");
    assert!(answered > 10 && slowest < Duration::from_millis(500), "{answered}, {slowest:?}");
    assert!(seen.iter().any(|uid| REMOVER.contains(uid)), "{seen:?}");
    // Control: the other one's layer is there.
    assert_eq!(there(&warden), set(&[2]));
    eventually("the process has ended", || warden.children() == 0);
    warden.stop();
}

#[test]
fn what_a_warden_leaves_is_removed_by_the_next_one() {
    let part = format!("{}.part", hex(3));
    let dir = state(&[(hex(1), 30_000), (hex(2), 1), (part, 2000), (hex(4), 10)], &[("large", &[1]), ("small", &[2])]);
    // What is none of ours.
    fs::create_dir(dir.path().join("warden/layers/lost+found")).unwrap();
    let mut warden = Warden::start_on(dir, &[]);
    let mut server = warden.connect();
    let others = |names: &[u8]| set(names).into_iter().chain(["lost+found".to_owned()]).collect::<BTreeSet<_>>();
    eventually("what no template has is gone", || there(&warden) == others(&[1, 2]));
    server.done(Order::RemoveTemplate { name: name("large") });
    warden.kill_and_restart();
    let left = there(&warden);
    assert!(left.iter().any(|name| name.ends_with(".gone")), "it was in the middle of it: {left:?}");
    eventually("the rest is gone", || there(&warden) == others(&[2]));
    warden.stop();
}

#[test]
fn a_layer_goes_with_the_last_that_stands_on_it() {
    let dir = state(&[(hex(1), 5), (hex(2), 5), (hex(3), 5)], &[("mine", &[1, 2]), ("other", &[2])]);
    let warden = Warden::start_on(dir, &[]);
    let mut server = warden.connect();
    let set_layers = |server: &mut Server, numbers: &[u8]| {
        let layers = numbers.iter().map(|number| layer(*number)).collect();
        server.done(Order::SetTemplate { name: name("mine"), layers });
    };
    // The same name with other layers: what it had goes, but for what another template has.
    let tag = server.send(Order::SetTemplate { name: name("mine"), layers: vec![layer(3)] });
    assert!(server.answer(tag).0.is_err(), "a layer that no template had was swept at the start");
    fs::create_dir(warden.state().join("layers").join(hex(3))).unwrap();
    set_layers(&mut server, &[3]);
    eventually("the first layer is gone", || there(&warden) == set(&[2, 3]));

    // A sandbox that is starting, and then is there, keeps its own.
    let mut spec = SandboxSpec::standard(600_000);
    spec.template = name("other");
    let created = server.send(Order::Create { spec, from: None, id: None });
    let removed = server.send(Order::RemoveTemplate { name: name("other") });
    server.answer(removed).0.unwrap();
    let (Ok(Reply::Created { id, .. }), _) = server.answer(created) else { panic!("it starts") };
    assert_eq!(there(&warden), set(&[2, 3]));
    server.done(Order::Destroy { id });
    eventually("its layer went with it", || there(&warden) == set(&[3]));
    warden.stop();
}

#[test]
fn a_launch_that_fails_leaves_nothing_behind_when_it_is_told() {
    let dir = state(&[(hex(1), 1)], &[("broken", &[1])]);
    // Where the sandbox's own file system is to be mounted.
    std::os::unix::fs::symlink("nowhere", dir.path().join("warden/layers").join(hex(1)).join("proc")).unwrap();
    let warden = Warden::start_on(dir, &[]);
    let mut server = warden.connect();
    let mut spec = SandboxSpec::standard(600_000);
    spec.template = name("broken");
    let id = SandboxId::random();
    for _ in 0..5 {
        let Err(fault) = server.try_create(&spec, None, Some(id)) else { panic!("it starts") };
        assert!(fault.code == Code::ServerBusy && fault.message.contains("/proc"), "{fault:?}");
        assert!(warden.children() == 0);
    }
    // Control: the id was free.
    spec.template = TemplateName::host();
    let made = server.try_create(&spec, None, Some(id)).unwrap();
    assert_eq!((made.id(), made.sh("echo here")), (id, "here".to_owned()));
    warden.stop();
}

#[test]
fn a_process_that_takes_no_sigkill_keeps_the_warden_from_nothing() {
    let (warden, mut server, sandbox) = Warden::with(&SandboxSpec::standard(600_000));
    sandbox.sh("mkdir ~/d; cd ~/d; seq 20000 | xargs touch");
    drop(sandbox.start("sleep 1000"));
    let snapshot = server.send(Order::Snapshot { id: sandbox.id(), snapshot: SnapshotId::random() });
    let mut copier = None;
    eventually("its files are being copied", || {
        copier = processes(&warden).into_iter().find(|(_, uid)| REMOVER.contains(uid));
        copier.is_some()
    });
    let copier = copier.unwrap().0;
    let held = Held::new(copier);
    server.done(Order::Destroy { id: sandbox.id() });
    assert_eq!(server.answer(snapshot).0.unwrap_err().code, Code::NotFound, "it was cut off");
    let begun = Instant::now();
    for _ in 0..100 {
        server.ask(Order::Status {}).unwrap();
    }
    let other = server.create(&SandboxSpec::standard(600_000));
    assert_eq!(other.sh("echo here"), "here");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.done(Order::Destroy { id: other.id() });
    // Control: it was there all the time. Let go, it ends, and nothing of it is left.
    assert!(processes(&warden).iter().any(|(pid, _)| *pid == copier));
    drop(held);
    eventually("it has ended", || warden.children() == 0);
    let kept = warden.state().join("snapshots/kept");
    eventually("what it copied is gone", || fs::read_dir(&kept).unwrap().next().is_none());
    warden.stop();
}

#[test]
fn an_unpacker_that_takes_too_long_is_stopped() {
    let unpack = |warden: &Warden, blob: std::os::fd::BorrowedFd<'_>| {
        let mut server = warden.connect();
        let tag = server.send_with(Order::UnpackLayer { diff_id: EMPTY.to_owned() }, &[blob]);
        server.answer(tag).0
    };
    let empty = |path: &Path| {
        fs::write(path, [0; 1024]).unwrap();
        fs::File::open(path).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = empty(&dir.path().join("layer.tar"));

    // From a pipe nothing ever comes.
    let warden = Warden::start_with(&["0", "300"]);
    let (read, _write) = std::io::pipe().unwrap();
    for _ in 0..5 {
        // More often than as many as may be at work at once.
        let begun = Instant::now();
        let fault = unpack(&warden, read.as_fd()).unwrap_err();
        assert_eq!(fault.code, Code::TimedOut, "{fault:?}");
        assert!(fault.message.contains(EMPTY) && fault.message.contains("0.3 s"), "{fault:?}");
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
    eventually("nothing of it is left", || there(&warden).is_empty() && warden.children() == 0);
    warden.stop();

    // Control: with its time it is unpacked.
    let warden = Warden::start();
    let reply = unpack(&warden, file.as_fd());
    assert!(matches!(reply, Ok(Reply::Unpacked { bytes: 0, .. })), "{reply:?}");
    let is_there = || there(&warden).contains(EMPTY.strip_prefix("sha256:").unwrap());
    assert!(is_there());
    // And is there for the template that it was unpacked for, though one that had it goes just before.
    let set = |server: &mut Server, text: &str| {
        server.done(Order::SetTemplate { name: name(text), layers: vec![EMPTY.to_owned()] });
    };
    set(&mut warden.connect(), "one");
    unpack(&warden, fs::File::open(dir.path().join("layer.tar")).unwrap().as_fd()).unwrap();
    let mut server = warden.connect();
    server.done(Order::RemoveTemplate { name: name("one") });
    set(&mut server, "two");
    assert!(is_there());
    server.done(Order::RemoveTemplate { name: name("two") });
    eventually("the last one had it", || there(&warden).is_empty());
    warden.stop();
}

#[test]
fn no_more_than_so_many_wait_for_an_end_that_does_not_come() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let id = server.create(&SandboxSpec::standard(600_000)).id();
    let (init, _) = processes(&warden).into_iter().find(|(_, uid)| *uid >= 0x7000_0000).expect("its process 1");
    let held = Held::new(init);
    let tags: Vec<u64> = (0..80).map(|_| server.send(Order::Destroy { id })).collect();
    let (wait, refused) = tags.split_at(64);
    for tag in refused {
        assert_eq!(server.answer(*tag).0.unwrap_err().code, Code::ServerBusy);
    }
    drop(held);
    for tag in wait {
        assert!(matches!(server.answer(*tag).0, Ok(Reply::Done {})));
    }
    assert_eq!(server.refused(Order::Destroy { id }), Code::NotFound);
    warden.stop();
}
