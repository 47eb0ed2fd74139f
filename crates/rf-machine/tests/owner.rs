//! What the owner's level holds. Every refusal has its control: the same probe, where the level allows it.

mod common;

use std::{
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use common::Joined;
use futures::StreamExt;
use rf_places::place::{FileAnswer, Place};
use rf_policy::Action;
use rf_testkit::{conformance::within, permits::permit};
use rf_types::{Code, ExecId, ExecSpec, Fault, FileOp, Program, WriteMode};
use rf_wire::machine::Level;
use tokio::io::AsyncReadExt;

fn shell(line: &str) -> ExecSpec {
    ExecSpec {
        program: Program::Shell(line.to_owned()),
        env: Default::default(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin: false,
        timeout_ms: Some(30_000),
        rlimits: Default::default(),
    }
}

/// Runs a line; its exit code and what it printed.
async fn run(joined: &Joined, line: &str) -> Result<(Option<i32>, String), Fault> {
    let place = joined.place().await;
    let mut spawned = place.spawn(&permit(joined.user, Action::Exec), ExecId::random(), &shell(line), false).await?;
    let mut text = String::new();
    spawned.stdout.read_to_string(&mut text).await.unwrap();
    Ok((spawned.exit.await?.code, text))
}

async fn file(joined: &Joined, op: FileOp) -> Result<Vec<u8>, Fault> {
    let writes = !matches!(
        op,
        FileOp::Read { .. } | FileOp::List { .. } | FileOp::Stat { .. } | FileOp::TarOut { .. } | FileOp::Watch { .. }
    );
    let action = if writes { Action::FileWrite } else { Action::FileRead };
    match joined.place().await.file(&permit(joined.user, action), &op, None).await? {
        FileAnswer::Content { mut bytes, .. } | FileAnswer::Archive(mut bytes) => {
            let mut all = Vec::new();
            while let Some(piece) = bytes.next().await {
                all.extend_from_slice(&piece?);
            }
            Ok(all)
        }
        FileAnswer::Sink(mut sink) => {
            sink.write(Bytes::from_static(b"written")).await?;
            sink.finish().await.map(|()| Vec::new())
        }
        FileAnswer::Entries(mut entries) => {
            while let Some(entry) = entries.next().await {
                entry?;
            }
            Ok(Vec::new())
        }
        FileAnswer::Done | FileAnswer::Stat(_) | FileAnswer::Changes(_) => Ok(Vec::new()),
    }
}

fn read(path: impl Into<String>) -> FileOp {
    FileOp::Read { path: path.into(), offset: 0, length: None }
}

fn write(path: impl Into<String>) -> FileOp {
    FileOp::Write { path: path.into(), mode: WriteMode::Truncate, permissions: 0o644, parents: false }
}

/// Every kind of operation on a file `name` of directory `of`.
fn every_op(of: &str, name: &str) -> Vec<FileOp> {
    let path = format!("{of}/{name}");
    let beside = format!("{of}/beside");
    let mode = |mode| FileOp::Write { path: beside.clone(), mode, permissions: 0o644, parents: true };
    vec![
        read(&path),
        FileOp::Stat { path: path.clone(), follow: true },
        FileOp::Stat { path: path.clone(), follow: false },
        FileOp::List { path: of.to_owned(), depth: 1 },
        FileOp::TarOut { path: of.to_owned() },
        FileOp::Watch { path: of.to_owned(), recursive: true },
        write(&path),
        mode(WriteMode::CreateNew),
        mode(WriteMode::Append),
        mode(WriteMode::Replace),
        FileOp::Chmod { path: path.clone(), permissions: 0o600 },
        FileOp::MakeDir { path: format!("{of}/new"), permissions: 0o755, parents: false },
        FileOp::MakeDir { path: format!("{of}/new/er"), permissions: 0o755, parents: true },
        FileOp::Move { from: path.clone(), to: format!("{of}/moved"), replace: false },
        FileOp::Move { from: format!("{of}/moved"), to: path.clone(), replace: true },
        FileOp::Remove { path, recursive: false },
        FileOp::Remove { path: format!("{of}/new"), recursive: true },
    ]
}

/// Attack: reach a file outside of the workspace by name, by `..`, and through links of every shape.
/// Held by: resolution beneath the workspace root.
#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_the_workspace() {
    for level in [Level::Full, Level::Workspace] {
        let joined = Joined::start(level).await;
        let (workspace, outside) = (joined.workspace(), joined.directory.path().join("outside"));
        symlink("../outside", workspace.join("relative-link")).unwrap();
        symlink(&outside, workspace.join("absolute-link")).unwrap();
        std::fs::create_dir(workspace.join("below")).unwrap();
        symlink("../..", workspace.join("below/up")).unwrap();
        // A name that begins like the workspace's is not below it.
        let twin = joined.directory.path().join("workspace-twin");
        std::fs::create_dir(&twin).unwrap();
        for of in [
            "../outside".to_owned(),
            "below/../../outside".to_owned(),
            "relative-link".to_owned(),
            "absolute-link".to_owned(),
            "below/up/outside".to_owned(),
            outside.display().to_string(),
            format!("{}/../outside", workspace.display()),
            twin.display().to_string(),
        ] {
            let real = if of.ends_with("twin") { &twin } else { &outside };
            let _ = std::fs::remove_dir_all(real);
            std::fs::create_dir(real).unwrap();
            std::fs::write(real.join("secret"), b"theirs").unwrap();
            for op in every_op(&of, "secret") {
                let got = within(file(&joined, op.clone())).await;
                match level {
                    Level::Full => assert!(got.is_ok(), "control {op:?}: {got:?}"),
                    _ => assert_eq!(got.map_err(|fault| fault.code), Err(Code::OwnerForbids), "{op:?}"),
                }
            }
            if level != Level::Full {
                assert_eq!(std::fs::read(real.join("secret")).unwrap(), b"theirs");
                assert_eq!(std::fs::read_dir(real).unwrap().count(), 1);
            }
        }
        joined.stop().await;
    }
}

/// Attack: the kernel's own links in /proc lead to whatever this program has open.
/// Held by: `RESOLVE_NO_MAGICLINKS`, at every level.
#[tokio::test(flavor = "multi_thread")]
async fn links_of_proc_lead_nowhere() {
    let joined = Joined::start(Level::Full).await;
    // Control: /proc itself is read at this level, as any file.
    for path in ["/proc/version", "/proc/self/stat"] {
        assert!(file(&joined, read(path)).await.is_ok(), "control: {path}");
    }
    for path in ["/proc/self/root/etc/hostname", "/proc/thread-self/cwd/Cargo.toml", "/proc/1/root/etc/hostname"] {
        assert!(file(&joined, read(path)).await.is_err(), "{path}");
    }
    joined.stop().await;
}

/// Attack: swap a directory for a link to the outside, over and over, while the server works below it.
/// Held by: one resolution by the kernel for each step, and descriptors from there on.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_swaps_move_no_byte_out() {
    const SWAPS: u64 = 100_000;
    const OPERATIONS: u64 = 2_000;
    let joined = Joined::start(Level::Workspace).await;
    let (workspace, outside) = (joined.workspace(), joined.directory.path().join("outside"));
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("f"), b"theirs").unwrap();
    std::fs::create_dir(workspace.join("swap")).unwrap();
    std::fs::write(workspace.join("swap/f"), b"ours").unwrap();
    symlink(&outside, workspace.join("link")).unwrap();
    let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let swapper = {
        let (stop, swaps, workspace) = (stop.clone(), swaps.clone(), workspace.clone());
        std::thread::spawn(move || {
            let directory = std::fs::File::open(&workspace).unwrap();
            while !stop.load(Ordering::Relaxed) || swaps.load(Ordering::Relaxed) < SWAPS {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&directory, "swap", &directory, "link", exchange).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let place = joined.place().await;
    let (mut hits, mut refusals) = (0, 0);
    for i in 0..OPERATIONS {
        let op = match i % 8 {
            0 | 1 => read("swap/f"),
            2 => FileOp::Write { path: "swap/f".into(), mode: WriteMode::Truncate, permissions: 0o644, parents: false },
            3 => {
                FileOp::Write { path: "swap/new".into(), mode: WriteMode::Replace, permissions: 0o644, parents: false }
            }
            4 => FileOp::MakeDir { path: "swap/a/b".into(), permissions: 0o755, parents: true },
            5 => FileOp::Remove { path: "swap/a".into(), recursive: true },
            6 => FileOp::Chmod { path: "swap/f".into(), permissions: 0o640 },
            _ => FileOp::Move { from: "swap/new".into(), to: "swap/newer".into(), replace: true },
        };
        let action = if matches!(op, FileOp::Read { .. }) { Action::FileRead } else { Action::FileWrite };
        match place.file(&permit(joined.user, action), &op, None).await {
            Ok(FileAnswer::Content { mut bytes, .. }) => {
                while let Some(piece) = bytes.next().await {
                    let piece = piece.unwrap();
                    assert!(!piece.starts_with(b"theirs"), "a byte came from outside");
                }
                hits += 1;
            }
            Ok(FileAnswer::Sink(mut sink)) => {
                let _ = sink.write(Bytes::from_static(b"ours")).await;
                let _ = sink.finish().await;
                hits += 1;
            }
            Ok(_) => hits += 1,
            Err(fault) => {
                let expected =
                    matches!(fault.code, Code::OwnerForbids | Code::NotFound | Code::Conflict | Code::FileFailed);
                assert!(expected, "{fault:?}");
                refusals += 1;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(swaps.load(Ordering::Relaxed) >= SWAPS);
    // Control: both sides of the swap were met.
    assert!(hits > 0 && refusals > 0, "{hits} done, {refusals} refused");
    assert_eq!(std::fs::read(outside.join("f")).unwrap(), b"theirs");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "something was made outside");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(outside.join("f")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o644);
    joined.stop().await;
}

/// Attack: a command reads, writes, makes, removes, truncates, links out or runs what is outside of the workspace.
/// Held by: Landlock.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_held_to_the_workspace() {
    for level in [Level::Full, Level::Workspace] {
        let joined = Joined::start(level).await;
        let outside = joined.directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        for (name, bytes) in [("secret", "theirs"), ("remove", ""), ("move", ""), ("cut", "whole")] {
            std::fs::write(outside.join(name), bytes).unwrap();
        }
        std::fs::write(outside.join("run"), "#!/bin/sh\necho ran\n").unwrap();
        std::os::unix::fs::PermissionsExt::set_mode(
            &mut std::fs::metadata(outside.join("run")).unwrap().permissions(),
            0o755,
        );
        let out = outside.display();
        // Control for the command itself, the same at both levels.
        assert_eq!(run(&joined, "echo x > in && cat in && rm in").await.unwrap(), (Some(0), "x\n".into()));
        for line in [
            format!("cat {out}/secret"),
            format!("ls {out}"),
            format!("echo x > {out}/new"),
            format!("mkdir {out}/newdir"),
            format!("ln -s x {out}/newlink"),
            format!("mkfifo {out}/newfifo"),
            format!("rm {out}/remove"),
            format!("mv {out}/move {out}/moved"),
            format!("truncate -s 1 {out}/cut"),
            format!("cp {out}/secret copy"),
            format!("ln {out}/secret hard && cat hard"),
            format!("ln -s {out}/secret soft && cat soft"),
            "ls /var".to_owned(),
            "ls /".to_owned(),
            "ls /tmp".to_owned(),
            "cat /etc/machine-id /etc/login.defs".to_owned(),
            "cat /proc/$PPID/environ".to_owned(),
            "ls /dev/shm".to_owned(),
        ] {
            let (code, text) = run(&joined, &line).await.unwrap();
            match level {
                // What this computer does not have is no control.
                Level::Full if line.contains("machine-id") => {}
                Level::Full => assert_eq!(code, Some(0), "control: {line}"),
                _ => assert_ne!(code, Some(0), "{line}: {text}"),
            }
            if level != Level::Full {
                assert!(!text.contains("theirs"), "{line}");
            }
        }
        if level != Level::Full {
            assert_eq!(std::fs::read(outside.join("cut")).unwrap(), b"whole");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 5);
        }
        joined.stop().await;
    }
}

/// Attack: a command signals, traces or talks to the owner's other programs.
/// Held by: Landlock's scopes, and the filter for sockets with a path.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_reach_the_owners_other_programs() {
    for level in [Level::Full, Level::Workspace] {
        let joined = Joined::start(level).await;
        let mut victim = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let socket = joined.workspace().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let pid = victim.id();
        let python = Path::new("/usr/bin/python3").exists();
        let connect = "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\"socket\")'";
        let lines = [format!("kill -STOP {pid}"), format!("cat /proc/{pid}/environ"), connect.to_owned()];
        for line in lines.iter().filter(|line| python || !line.starts_with("python")) {
            let (code, _) = run(&joined, line).await.unwrap();
            match level {
                Level::Full => assert_eq!(code, Some(0), "control: {line}"),
                _ => assert_ne!(code, Some(0), "{line}"),
            }
        }
        // Inside, its own are reached as ever.
        assert_eq!(run(&joined, "sleep 1000 & kill $! && echo done").await.unwrap().1, "done\n");
        victim.kill().unwrap();
        victim.wait().unwrap();
        joined.stop().await;
    }
}

/// Attack: a command uses a descriptor that whoever started `ringfence join` left open in it.
/// Held by: nothing but 0, 1 and 2 is open in a command.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_no_descriptor_of_the_programs() {
    let joined = Joined::start(Level::Workspace).await;
    let private = joined.directory.path().join("private");
    std::fs::write(&private, "theirs").unwrap();
    let file = std::fs::File::open(&private).unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let line = format!("cat /proc/self/fd/{0} || cat <&{0}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let control = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(control.stdout, b"theirs", "control: a program that is started as usual has it");
    let (code, printed) = run(&joined, &line).await.unwrap();
    assert_ne!((code, printed.as_str()), (Some(0), "theirs"));
    assert_eq!(printed, "");
    // `ls` has the directory open that it lists.
    assert_eq!(run(&joined, "ls /proc/self/fd").await.unwrap().1, "0\n1\n2\n3\n");
    joined.stop().await;
}

/// Attack: the server asks for what the owner did not allow.
/// Held by: the machine itself; the server's orders here are not checked by the server at all.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_cannot_raise_the_level() {
    let joined = Joined::start(Level::ReadOnly).await;
    std::fs::write(joined.workspace().join("f"), b"content").unwrap();
    let refused = run(&joined, "echo ran > ran").await.unwrap_err();
    assert_eq!(refused.code, Code::OwnerForbids);
    assert!(refused.hint.contains("--level"), "{refused:?}");
    let mut written = 0;
    for op in every_op(".", "f") {
        match file(&joined, op.clone()).await {
            Ok(_) => written += 1,
            Err(fault) => assert_eq!(fault.code, Code::OwnerForbids, "{op:?}"),
        }
    }
    assert_eq!(written, 6, "reading, describing, listing, archiving and watching are allowed");
    assert_eq!(file(&joined, FileOp::TarIn { path: "in".into() }).await.unwrap_err().code, Code::OwnerForbids);
    assert_eq!(std::fs::read(joined.workspace().join("f")).unwrap(), b"content");
    assert_eq!(std::fs::read_dir(joined.workspace()).unwrap().count(), 1);
    joined.stop().await;

    // Control: the same orders, where the owner allows them.
    let joined = Joined::start(Level::Workspace).await;
    std::fs::write(joined.workspace().join("f"), b"content").unwrap();
    assert_eq!(run(&joined, "echo ran > ran").await.unwrap().0, Some(0));
    for op in every_op(".", "f") {
        file(&joined, op.clone()).await.unwrap_or_else(|fault| panic!("{op:?}: {fault:?}"));
    }
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_holds_the_machines_key_is_refused() {
    let joined = Joined::start(Level::Workspace).await;
    let mut arguments = joined.arguments();
    arguments.state = Some(joined.workspace().join("state"));
    arguments.token = Some("any".into());
    let error = rf_machine::join(arguments, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("its own key") || error.to_string().contains("own key"), "{error}");
    joined.stop().await;
}
