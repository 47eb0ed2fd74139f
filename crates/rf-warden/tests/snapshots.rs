//! Snapshots and what is made from them, on the real kernel.

mod support;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use rf_types::{Code, DiskKind, SandboxId, SandboxSpec, SnapshotId, TemplateName, units::MIB};
use rf_wire::warden::{Order, SnapshotWay};
use support::{Warden, eventually};

fn spec(disk: DiskKind) -> SandboxSpec {
    let mut spec = SandboxSpec { disk, ..SandboxSpec::standard(600_000) };
    spec.limits.memory_bytes_max = 512 * MIB;
    spec
}

/// Directories of layers that the warden has on disk.
fn kept(warden: &Warden) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(warden.state().join("snapshots/kept")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn forks_have_the_files_of_one_instant(disk: DiskKind) {
    let spec = spec(disk);
    let (warden, mut server, source) = Warden::with(&spec);
    let id = source.id();
    let make = "set -e; cd ~; echo one > file; mkdir -p a/b; echo deep > a/b/c; ln -s file link; ln file other; \
        chmod 640 file; touch -d @1000000000 a/b/c; mkfifo fifo; truncate -s 50M holes; echo end >> holes; \
        echo data > /dev/shm/shared";
    source.sh(make);
    source
        .sh_as("root", "rm /usr/bin/true && mkdir /usr/lib/mine && echo usr > /usr/lib/mine/f && rm -r /etc/profile.d");

    let begun = Instant::now();
    let snapshot = server.snapshot(id);
    eprintln!("saved in {:?}", begun.elapsed());
    assert_eq!((snapshot.way, snapshot.layers), (SnapshotWay::Pushed, 1));
    assert!(snapshot.files > 8 && snapshot.bytes > 0, "{snapshot:?}");
    let look = "cd ~; cat file a/b/c link other; stat -c '%a %U %h' file; stat -c %Y a/b/c; stat -c %F fifo; \
        stat -c %s holes; tail -c 4 holes; ls /usr/bin/true /etc/profile.d 2>&1 | wc -l; cat /usr/lib/mine/f; \
        mkdir ~/x; rmdir ~/x";
    let seen = source.sh(look);
    assert!(seen.starts_with("one\ndeep\none\none\n640 user 2\n1000000000\nfifo\n52428804\nend\n2\nusr"), "{seen}");
    // The source goes on, below its new root, with all that it had.
    assert_eq!(
        source.sh("cat /dev/shm/shared; ls /proc/self/fd | wc -l; test -c /dev/null && echo dev"),
        "data\n4\ndev"
    );
    assert_eq!(source.sh("sudo id -u"), "0", "process 1 listens below the new root");
    source.sh("echo two > ~/file; rm ~/a/b/c; echo new > ~/new");

    // From where the source wrote it, and from the disk.
    for durable in [false, true] {
        if durable {
            let snapshot = server.durable(snapshot.id);
            assert!(snapshot.files > 8 && snapshot.bytes > 0 && snapshot.bytes < MIB, "{snapshot:?}");
        }
        let begun = Instant::now();
        let fork = server.create_from(&spec, snapshot.id);
        eprintln!("forked in {:?}", begun.elapsed());
        assert_ne!(fork.id(), id);
        assert_eq!(fork.sh(look), seen, "durable: {durable}");
        assert_eq!(fork.sh("ls ~/new ~/x /dev/shm/shared 2>/dev/null | wc -l"), "0");
        assert_ne!(fork.sh("hostname"), source.sh("hostname"));
        assert_eq!(fork.sh("sudo id -u"), "0");
        // What it writes is its own.
        fork.sh("echo fork > ~/file; rm ~/a/b/c; echo fork > /usr/lib/mine/f 2>/dev/null; true");
        let again = server.create_from(&spec, snapshot.id);
        assert_eq!(again.sh(look), seen);
        for gone in [fork.id(), again.id()] {
            server.done(Order::Destroy { id: gone });
        }
    }
    assert_eq!(source.sh("cat ~/file ~/new; test -e ~/a/b/c || echo gone"), "two\nnew\ngone");

    // A second one, and one of a fork.
    let second = server.snapshot(id);
    assert_eq!(second.layers, 2);
    let fork = server.create_from(&spec, second.id);
    assert_eq!(fork.sh("cat ~/file ~/new; test -e ~/a/b/c || echo gone"), "two\nnew\ngone");
    fork.sh("echo three > ~/file");
    let third = server.snapshot(fork.id());
    assert_eq!((third.layers, third.way), (3, SnapshotWay::Pushed));
    server.done(Order::Destroy { id });
    server.done(Order::Destroy { id: fork.id() });
    server.durable(third.id);
    let of_fork = server.create_from(&spec, third.id);
    assert_eq!(of_fork.sh("cat ~/file ~/new ~/link; test -e ~/a/b/c || echo gone"), "three\nnew\nthree\ngone");

    // And after the warden has ended.
    let ids: Vec<_> = [snapshot.id, second.id, third.id].into();
    let mut all = ids.clone();
    all.sort();
    assert_eq!(server.snapshots().iter().map(|s| s.id).collect::<Vec<_>>(), all);
    for id in ids {
        server.durable(id);
    }
    let mut warden = warden;
    warden.restart();
    let mut server = warden.connect();
    assert!(server.snapshots().iter().all(|s| s.durable) && server.snapshots().len() == 3);
    let back = server.create_from(&spec, third.id);
    assert_eq!(back.sh("cat ~/file ~/new; test -e ~/a/b/c || echo gone"), "three\nnew\ngone");
    warden.stop();
}

#[test]
fn forks_have_the_files_of_one_instant_from_memory() {
    forks_have_the_files_of_one_instant(DiskKind::Memory);
}

#[test]
fn forks_have_the_files_of_one_instant_from_an_image() {
    forks_have_the_files_of_one_instant(DiskKind::Image);
}

#[test]
fn directories_that_are_empty_in_all_layers_are_written_without_the_overlay() {
    for disk in [DiskKind::Memory, DiskKind::Image] {
        let spec = spec(disk);
        let (warden, mut server, source) = Warden::with(&spec);
        let file_system = source.sh("stat -fc %T / ~ /tmp /dev/shm | xargs");
        let direct = |sandbox: &support::Sandbox| {
            sandbox.sh("for dir in ~ /tmp; do test $(stat -c %d $dir) = $(stat -c %d /dev/shm) && echo direct || echo root; done | xargs")
        };
        assert_eq!(direct(&source), "direct direct", "{file_system}");
        // Control: the root itself is an overlay.
        assert!(file_system.starts_with("overlayfs "), "{file_system}");
        source.sh("echo a > ~/kept; echo b > ~/gone; mkdir ~/d; echo c > ~/d/f; chmod 700 ~");
        let first = server.snapshot(source.id());
        assert_eq!(first.way, SnapshotWay::Pushed);
        // The home is not empty any more; what is deleted stays deleted.
        assert_eq!(direct(&source), "root direct");
        source.sh("rm ~/gone; echo more >> ~/kept; echo t > /tmp/t");
        let second = server.snapshot(source.id());
        assert_eq!(direct(&source), "root root");
        source.sh("rm -r ~/d ~/kept /tmp/t");
        let third = server.snapshot(source.id());
        let look = "ls ~ /tmp | xargs; cat ~/kept ~/d/f 2>/dev/null | xargs; stat -c '%a %U' ~ /tmp | xargs";
        let mut found = |from| {
            let fork = server.create_from(&spec, from);
            (fork.sh(look), direct(&fork))
        };
        let (home, tmp) = ("/home/user:", "/tmp:");
        let expected = |listed: &str, said: &str| format!("{listed}\n{said}\n700 user 1777 root");
        assert_eq!(found(first.id), (expected(&format!("{home} d gone kept {tmp}"), "a c"), "root direct".to_owned()));
        assert_eq!(found(second.id), (expected(&format!("{home} d kept {tmp} t"), "a more c"), "root root".to_owned()));
        assert_eq!(found(third.id), (expected(&format!("{home} {tmp}"), ""), "direct direct".to_owned()));
        warden.stop();
    }
}

#[test]
fn what_running_programs_hold_is_copied_and_stays_theirs() {
    let spec = spec(DiskKind::Memory);
    let (warden, mut server, source) = Warden::with(&spec);
    let id = source.id();
    source.sh("echo before > ~/file");
    // It stands in a directory, and writes through a descriptor that it opened before.
    let line = "mkdir ~/d; cd ~/d; exec 5>log; echo one >&5; echo ready; while test ! -e go; do sleep 0.02; done; \
        echo two >&5; echo rel > made; cat ../file; pwd";
    let exec = source.start(line);
    eventually("the program is there", || source.sh("cat ~/d/log 2>/dev/null || true") == "one");
    let snapshot = server.snapshot(id);
    assert_eq!(snapshot.way, SnapshotWay::Copied);
    assert!(snapshot.durable || snapshot.layers == 1);
    source.sh("echo after > ~/file; touch ~/d/go");
    let (exited, stdout, stderr) = source.wait(exec);
    assert_eq!((exited.status, stdout.as_str(), stderr.as_str()), (0, "ready\nafter\n/home/user/d\n", ""));
    assert_eq!(source.sh("cat ~/d/log ~/d/made"), "one\ntwo\nrel");

    let fork = server.create_from(&spec, snapshot.id);
    assert_eq!(fork.sh("cat ~/file ~/d/log; ls ~/d"), "before\none\nlog");
    // Control: once it has ended nothing is copied.
    assert_eq!(server.snapshot(id).way, SnapshotWay::Pushed);
    warden.stop();
}

#[test]
fn what_the_server_writes_meanwhile_is_not_lost() {
    let spec = spec(DiskKind::Memory);
    let (warden, mut server, source) = Warden::with(&spec);
    let upload = source.open_for_writing("/home/user/upload");
    rustix::io::write(&upload, b"one ").unwrap();
    let during = server.snapshot(source.id());
    assert_eq!(during.way, SnapshotWay::Copied, "nothing but the server's descriptor holds the old root");
    rustix::io::write(&upload, b"two").unwrap();
    assert_eq!(source.sh("cat ~/upload"), "one two");
    // Control: with the descriptor gone it is pushed.
    drop(upload);
    let after = server.snapshot(source.id());
    assert_eq!(after.way, SnapshotWay::Pushed);
    source.sh("echo more > ~/upload");
    let read = |server: &mut support::Server, from| server.create_from(&spec, from).sh("cat ~/upload");
    assert_eq!(
        (read(&mut server, during.id), read(&mut server, after.id)),
        ("one ".trim().to_owned(), "one two".to_owned())
    );
    warden.stop();
}

#[test]
fn what_cannot_be_copied_is_refused_and_changes_nothing() {
    let (warden, mut server, sandbox) = Warden::with(&spec(DiskKind::Memory));
    // Deeper than any path is long, made step by step.
    let deep = "cd ~; for n in $(seq 300); do mkdir d; cd d; done; cd ~; sleep 1000";
    drop(sandbox.start(deep));
    eventually("the tree is deep", || sandbox.sh("find ~ -name d | wc -l") == "300");
    let fault = server.ask(Order::Snapshot { id: sandbox.id(), snapshot: SnapshotId::random() }).unwrap_err();
    assert!(fault.code == Code::StoreUnavailable && fault.message.contains("deep"), "{fault:?}");
    assert!(server.snapshots().is_empty());
    eventually("nothing is left", || kept(&warden).is_empty());
    assert_eq!(sandbox.sh("find ~ -name d | wc -l"), "300", "it goes on");
    warden.stop();
}

#[test]
fn a_snapshot_outlives_a_warden_that_ends_in_order_at_once() {
    let mut warden = Warden::start();
    let spec = spec(DiskKind::Memory);
    let mut server = warden.connect();
    let sandbox = server.create(&spec);
    sandbox.sh("dd if=/dev/urandom of=$HOME/file bs=1M count=50 2>/dev/null; md5sum < ~/file > ~/sum");
    let snapshot = server.snapshot(sandbox.id());
    assert!(!snapshot.durable);
    warden.restart();
    let fork = warden.connect().create_from(&spec, snapshot.id);
    assert_eq!(fork.sh("md5sum < ~/file | cmp - ~/sum && echo same"), "same");
    warden.stop();
}

#[test]
fn what_was_pushed_counts_against_the_disk() {
    for disk in [DiskKind::Memory, DiskKind::Image] {
        let warden = Warden::start();
        let mut server = warden.connect();
        let mut spec = spec(disk);
        spec.limits.disk_bytes_max = 32 * MIB;
        let source = server.create(&spec);
        let fill = "dd if=/dev/zero of=~/fill$0 bs=1M count=20 2>&1".replace("~", "$HOME");
        source.sh(&format!("sh -c '{fill}' 1"));
        assert_eq!(server.snapshot(source.id()).way, SnapshotWay::Pushed);
        // Control: a sandbox that wrote nothing has room for it.
        let other = server.create(&spec);
        other.sh(&format!("sh -c '{fill}' 2"));
        let said = source.sh_fails(&format!("sh -c '{fill}' 2"));
        assert!(said.contains("No space left"), "{said}");
        let Ok(rf_wire::warden::Reply::Used(usage)) = server.ask(Order::Usage { id: source.id() }) else { panic!() };
        // The inodes of an image take from it.
        assert!(usage.disk_bytes > 22 * MIB && usage.disk_bytes <= 32 * MIB, "{usage:?}");
        warden.stop();
    }
}

#[test]
fn a_layer_holds_on_the_new_root_what_it_held_on_the_old() {
    let (warden, mut server, sandbox) = Warden::with(&spec(DiskKind::Memory));
    // Landlock lets nobody make devices, user or root, and lets everything else be done that the owner may do. (Without
    // it a block device is "not permitted".)
    let probe = "cd /tmp; mknod dev b 1 3 2>&1 | tail -n 1; rm -rf x y; mkdir x y && echo a > x/f && mv x/f y/g && \
        ln y/g x/h && cat x/h && cd / && ls /.. | wc -l && ls / | wc -l";
    let before = sandbox.sh_as("root", probe);
    assert!(before.contains("denied"), "{before}");
    // `/tmp`, not empty any more, is the new root's own.
    let mounts = "cut -d' ' -f5 /proc/self/mountinfo | grep -v '^/tmp$' | sort";
    let mounts_before = sandbox.sh(mounts);
    for _ in 0..3 {
        assert_eq!(server.snapshot(sandbox.id()).way, SnapshotWay::Pushed);
        assert_eq!(sandbox.sh_as("root", probe), before);
        assert_eq!(sandbox.sh(mounts), mounts_before, "no mount is left behind, none is missing");
    }
    // What the root is mounted in cannot be reached.
    assert_eq!(sandbox.sh_as("root", "cd /proc/1/root/.. 2>/dev/null; cd /..; pwd"), "/");
    warden.stop();
}

#[test]
fn many_snapshots_are_put_together_into_few_layers() {
    let spec = spec(DiskKind::Memory);
    let (warden, mut server, sandbox) = Warden::with(&spec);
    let mut last = None;
    for n in 0..40 {
        sandbox.sh(&format!(
            "echo {n} > ~/last; echo {n} > ~/n{n}; rm -rf ~/d; mkdir ~/d; touch ~/d/{n}; rm -f ~/n{}",
            n - 5
        ));
        let snapshot = SnapshotId::random();
        // While the layers are being put together it may be too many.
        eventually("the snapshot is made", || match server.ask(Order::Snapshot { id: sandbox.id(), snapshot }) {
            Ok(_) => true,
            Err(fault) => {
                assert_eq!(fault.code, Code::ServerBusy, "{fault:?}");
                false
            }
        });
        last = Some(snapshot);
    }
    let last = server.durable(last.unwrap());
    assert!(last.layers <= 16, "{last:?}");
    let fork = server.create_from(&spec, last.id);
    let look = "cat ~/last; ls ~ ~/d | tr '\\n' ' '";
    assert_eq!(fork.sh(look), sandbox.sh(look));
    assert!(fork.sh(look).ends_with("39"), "{}", fork.sh(look));
    warden.stop();
}

#[test]
fn a_sandbox_comes_back_under_its_own_id() {
    let spec = spec(DiskKind::Memory);
    let (warden, mut server, sandbox) = Warden::with(&spec);
    let id = sandbox.id();
    sandbox.sh("echo kept > ~/file");
    let snapshot = server.snapshot(id).id;
    let code = |server: &mut support::Server, from, id| {
        server.try_create(&spec, Some(from), Some(id)).map(|sandbox| sandbox.id()).map_err(|fault| fault.code)
    };
    assert_eq!(code(&mut server, snapshot, id), Err(Code::Conflict), "it lives");
    let hostname = sandbox.sh("hostname");
    server.done(Order::Destroy { id });
    let back = server.try_create(&spec, Some(snapshot), Some(id)).unwrap();
    assert_eq!((back.id(), back.sh("cat ~/file"), back.sh("hostname")), (id, "kept".to_owned(), hostname));
    assert_eq!(code(&mut server, SnapshotId::random(), SandboxId::random()), Err(Code::NotFound));
    let base = SandboxSpec { template: "other".parse::<TemplateName>().unwrap(), ..spec.clone() };
    assert_eq!(server.try_create(&base, Some(snapshot), None).err().unwrap().code, Code::InvalidRequest);
    warden.stop();
}

#[test]
fn a_paused_sandbox_is_saved_and_stays_paused() {
    let spec = spec(DiskKind::Memory);
    let (warden, mut server, sandbox) = Warden::with(&spec);
    let id = sandbox.id();
    sandbox.sh("echo kept > ~/file");
    server.done(Order::Pause { id });
    let pushed = server.snapshot(id);
    assert_eq!(pushed.way, SnapshotWay::Pushed);
    assert!(!sandbox.answers_within(Duration::from_millis(100)), "it is still paused");
    server.resume(id, None);
    sandbox.pong();
    assert_eq!(sandbox.sh("cat ~/file; sudo id -u"), "kept\n0");

    drop(sandbox.start("cd ~; sleep 1000"));
    server.done(Order::Pause { id });
    assert_eq!(server.snapshot(id).way, SnapshotWay::Copied);
    assert!(!sandbox.answers_within(Duration::from_millis(100)), "it is still paused");
    let fork = server.create_from(&spec, pushed.id);
    assert_eq!(fork.sh("cat ~/file"), "kept");
    warden.stop();
}

#[test]
fn layers_go_with_the_last_that_names_them() {
    let spec = spec(DiskKind::Memory);
    let (warden, mut server, sandbox) = Warden::with(&spec);
    sandbox.sh("echo 1 > ~/file");
    let first = server.snapshot(sandbox.id()).id;
    sandbox.sh("echo 2 > ~/file");
    let second = server.snapshot(sandbox.id()).id;
    server.durable(first);
    server.durable(second);
    assert_eq!(kept(&warden).len(), 2);
    server.done(Order::RemoveSnapshot { snapshot: first });
    assert_eq!(server.refused(Order::RemoveSnapshot { snapshot: first }), Code::NotFound);
    // The second stands on it.
    let fork = server.create_from(&spec, second);
    assert_eq!((fork.sh("cat ~/file"), kept(&warden).len()), ("2".to_owned(), 2));
    server.done(Order::RemoveSnapshot { snapshot: second });
    assert_eq!(server.try_create(&spec, Some(second), None).err().unwrap().code, Code::NotFound);
    // The fork does, too, and the source would name them in its next.
    assert_eq!(
        (fork.sh("cat ~/file; ls -a ~ | wc -l"), kept(&warden).len()),
        (sandbox.sh("cat ~/file; ls -a ~ | wc -l"), 2)
    );
    let next = server.snapshot(fork.id());
    assert_eq!(next.layers, 3);
    server.done(Order::RemoveSnapshot { snapshot: next.id });
    server.done(Order::Destroy { id: fork.id() });
    server.done(Order::Destroy { id: sandbox.id() });
    eventually("the layers are gone", || kept(&warden).is_empty());
    assert!(server.snapshots().is_empty());
    warden.stop();
}

#[test]
fn a_warden_that_is_killed_leaves_no_half_snapshot() {
    let mut warden = Warden::start();
    let spec = spec(DiskKind::Memory);
    let mut whole = 0;
    // At whatever instant.
    for wait in [0, 1, 2, 4, 8, 16, 40, 100, 200] {
        let mut server = warden.connect();
        let sandbox = server.create(&spec);
        sandbox.sh("mkdir ~/d; cd ~/d; for n in $(seq 300); do echo $n > $n; done");
        let snapshot = SnapshotId::random();
        server.send(Order::Snapshot { id: sandbox.id(), snapshot });
        std::thread::sleep(Duration::from_millis(wait));
        warden.kill_and_restart();
        let mut server = warden.connect();
        for found in server.snapshots() {
            assert!(found.durable);
            let fork = server.create_from(&spec, found.id);
            assert_eq!(fork.sh("cat ~/d/* | wc -l"), "300");
            whole += 1;
            server.done(Order::Destroy { id: fork.id() });
            server.done(Order::RemoveSnapshot { snapshot: found.id });
        }
        eventually("nothing of it is left", || kept(&warden).is_empty());
        let files = fs::read_dir(warden.state().join("snapshots")).unwrap().count();
        assert_eq!(files, 1, "but for the directory of layers");
    }
    eprintln!("{whole} snapshots were whole");
    // Control: one that is let be is.
    let mut server = warden.connect();
    let sandbox = server.create(&spec);
    let snapshot = server.snapshot(sandbox.id()).id;
    server.durable(snapshot);
    warden.kill_and_restart();
    assert_eq!(warden.connect().snapshots().len(), 1);
    warden.stop();
}

#[test]
fn names_are_taken_once_and_orders_are_checked() {
    let (warden, mut server, sandbox) = Warden::with(&spec(DiskKind::Memory));
    let snapshot = server.snapshot(sandbox.id()).id;
    assert_eq!(server.refused(Order::Snapshot { id: sandbox.id(), snapshot }), Code::Conflict);
    let other = SandboxId::random();
    assert_eq!(server.refused(Order::Snapshot { id: other, snapshot: SnapshotId::random() }), Code::NotFound);
    // Two at once of one sandbox: one of them, or one after the other.
    let tags = [0; 3].map(|_| server.send(Order::Snapshot { id: sandbox.id(), snapshot: SnapshotId::random() }));
    let mut made = 0;
    for tag in tags {
        match server.answer(tag).0 {
            Ok(_) => made += 1,
            Err(fault) => assert_eq!(fault.code, Code::Conflict),
        }
    }
    assert!(made >= 1);
    // One that is destroyed meanwhile is answered.
    let tag = server.send(Order::Snapshot { id: sandbox.id(), snapshot: SnapshotId::random() });
    let destroy = server.send(Order::Destroy { id: sandbox.id() });
    let saved = server.answer(tag).0;
    assert!(saved.is_ok() || saved.is_err_and(|fault| fault.code == Code::NotFound));
    server.answer(destroy).0.unwrap();
    warden.stop();
}

/// What the warden holds: descriptors, and processes below it; but for the one that counts locks, in the warden's own user
/// namespace, with a socket and a descriptor of itself.
fn held(warden: &Warden) -> (usize, usize) {
    let pid = warden.pid();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let others = warden.children();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().split_whitespace().count();
    (fds.saturating_sub(2 * children.saturating_sub(others)), others)
}

#[test]
fn orders_in_whatever_order_leave_nothing_behind() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let spec = spec(DiskKind::Memory);
    let first = server.create(&spec).id();
    server.done(Order::Destroy { id: first });
    let before = held(&warden);
    assert_eq!(before.1, 0);

    let seed = SnapshotId::random().bits() as u64 | 1;
    eprintln!("seed {seed}");
    let mut state = seed;
    let mut random = move |below: u64| {
        // xorshift64 of Marsaglia: its numbers need only differ.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut sandboxes: Vec<support::Sandbox> = Vec::new();
    let mut snapshots: Vec<SnapshotId> = Vec::new();
    let (mut good, mut refused) = (0, 0);
    for _ in 0..40 {
        // Several at once, of which each may meet any other half done.
        let mut tags = Vec::new();
        for _ in 0..=random(6) {
            let id = match sandboxes.len() {
                0 => first,
                len => sandboxes[random(len as u64) as usize].id(),
            };
            let snapshot = match snapshots.len() {
                0 => SnapshotId::random(),
                len => snapshots[random(len as u64) as usize],
            };
            let order = match random(10) {
                0 | 1 if sandboxes.len() < 8 => Order::Create { spec: spec.clone(), from: None, id: None },
                2 | 3 if sandboxes.len() < 8 => Order::Create { spec: spec.clone(), from: Some(snapshot), id: None },
                4 => Order::Pause { id },
                5 => Order::Resume { id, lease_until: None },
                6 | 7 => {
                    let snapshot = SnapshotId::random();
                    snapshots.push(snapshot);
                    Order::Snapshot { id, snapshot }
                }
                8 => Order::RemoveSnapshot { snapshot },
                9 => Order::Destroy { id },
                _ => {
                    // Something runs, in a directory of the root; its answer is not waited for.
                    if let Some(sandbox) = sandboxes.first() {
                        sandbox.try_start("cd ~; echo $RANDOM >> file; exec sleep 0.2");
                    }
                    continue;
                }
            };
            tags.push((server.send(order), format!("{snapshot}")));
        }
        for (tag, _) in tags {
            match server.answer(tag) {
                (Ok(rf_wire::warden::Reply::Created { id, lease_until, .. }), Some(socket)) => {
                    sandboxes.push(support::Sandbox::new(id, lease_until, socket));
                    good += 1;
                }
                (Ok(_), _) => good += 1,
                (Err(fault), _) => {
                    let known = [Code::NotFound, Code::Conflict, Code::ServerBusy];
                    assert!(known.contains(&fault.code), "{fault:?}");
                    refused += 1;
                }
            }
        }
        // What was destroyed is not asked for any more, mostly.
        if random(3) == 0 {
            sandboxes = server.adopt().into_iter().map(|(sandbox, _)| sandbox).collect();
        }
    }
    eprintln!("{good} done, {refused} refused");
    assert!(good > 20);
    for (sandbox, _) in server.adopt() {
        server.done(Order::Destroy { id: sandbox.id() });
    }
    for snapshot in server.snapshots() {
        server.done(Order::RemoveSnapshot { snapshot: snapshot.id });
    }
    eventually("nothing is left on disk", || kept(&warden).is_empty());
    eventually("nothing is held", || held(&warden) == before);
    warden.stop();
}

/// What stays when a snapshot is removed, because another one stands on it, counts as that one's.
#[test]
fn a_layer_counts_as_the_oldest_snapshots_that_stands_on_it() {
    let (mut warden, mut server, sandbox) = Warden::with(&spec(DiskKind::Memory));
    let next = |server: &mut support::Server, line: &str| {
        sandbox.sh(line);
        let snapshot = server.snapshot(sandbox.id());
        server.durable(snapshot.id);
        snapshot.id
    };
    let first = next(&mut server, "head -c 4M /dev/urandom > ~/large");
    let second = next(&mut server, "echo small > ~/small");
    let third = next(&mut server, "head -c 1M /dev/urandom > ~/middle");
    let bytes = |server: &mut support::Server, id| {
        server.snapshots().into_iter().find(|snapshot| snapshot.id == id).unwrap().bytes
    };
    // Control: nothing is counted twice.
    assert!(bytes(&mut server, first) >= 4 * MIB);
    assert!(bytes(&mut server, second) < MIB);
    assert!((MIB..2 * MIB).contains(&bytes(&mut server, third)));
    server.done(Order::RemoveSnapshot { snapshot: first });
    assert!((4 * MIB..5 * MIB).contains(&bytes(&mut server, second)));
    assert!((MIB..2 * MIB).contains(&bytes(&mut server, third)));
    // Also over a restart, and told to the server without being asked.
    warden.restart();
    let mut server = warden.connect();
    assert!((4 * MIB..5 * MIB).contains(&bytes(&mut server, second)));
    server.done(Order::RemoveSnapshot { snapshot: second });
    let told = server.news(|news| match news {
        rf_wire::warden::Reply::SnapshotChanged(snapshot) if snapshot.id == third => Some(snapshot.bytes),
        _ => None,
    });
    assert!(told >= 5 * MIB, "{told}");
    assert_eq!(bytes(&mut server, third), told);
    server.done(Order::RemoveSnapshot { snapshot: third });
    warden.stop();
}
