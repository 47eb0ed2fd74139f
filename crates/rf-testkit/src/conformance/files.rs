//! Cases of single files and directories.

use bytes::Bytes;
use futures::StreamExt;
use rf_places::place::FileAnswer;
use rf_types::{Code, FileKind, FileOp, Stat, WriteMode};

use super::{Site, sh};
use crate::noise;

pub(super) async fn write_modes_meet_a_file_that_is_there(site: &Site) {
    use WriteMode::{Append, CreateNew, Replace, Truncate};
    site.try_write("f", CreateNew, b"one").await.unwrap();
    assert_eq!(site.try_write("f", CreateNew, b"no").await.unwrap_err().code, Code::Conflict);
    assert_eq!(site.read("f").await, b"one");
    site.try_write("f", Append, b"+two").await.unwrap();
    assert_eq!(site.read("f").await, b"one+two");
    site.try_write("f", Truncate, b"3").await.unwrap();
    assert_eq!(site.read("f").await, b"3");
    site.shell("ln f other").await;
    site.try_write("f", Replace, b"four").await.unwrap();
    assert_eq!(site.read("f").await, b"four");
    assert_eq!(site.read("other").await, b"3", "a replace makes a new file");
    for (name, mode) in [("a", Truncate), ("b", Append), ("c", Replace)] {
        site.try_write(name, mode, b"new").await.unwrap();
        assert_eq!(site.read(name).await, b"new");
    }
    site.try_write("empty", Truncate, b"").await.unwrap();
    assert_eq!(site.read("empty").await, b"");
    let op = |parents| FileOp::Write { path: site.path("x/y/z"), mode: Truncate, permissions: 0o600, parents };
    assert_eq!(site.code(op(false)).await, Code::NotFound);
    let Ok(FileAnswer::Sink(sink)) = site.file(op(true)).await else { panic!("a write with parents gives a sink") };
    sink.finish().await.unwrap();
    assert_eq!(site.stat("x/y/z", true).await.unwrap().permissions, 0o600);
    assert_eq!(
        site.code(FileOp::Write { path: site.path("x"), mode: Truncate, permissions: 0o644, parents: false }).await,
        Code::FileFailed,
        "a directory is not written"
    );
}

pub(super) async fn a_range_is_read(site: &Site) {
    let bytes = noise(700_001);
    site.write("f", &bytes).await;
    assert_eq!(site.try_read("f", 699_990, None).await.unwrap(), bytes[699_990..]);
    assert_eq!(site.try_read("f", 5, Some(300_000)).await.unwrap(), bytes[5..300_005]);
    assert_eq!(site.try_read("f", 0, Some(0)).await.unwrap(), b"");
    assert_eq!(site.try_read("f", 700_001, None).await.unwrap(), b"");
    assert_eq!(site.try_read("f", 9_000_000, Some(5)).await.unwrap(), b"");
    let op = FileOp::Read { path: site.path("f"), offset: 3, length: Some(1) };
    let Ok(FileAnswer::Content { stat, .. }) = site.file(op).await else { panic!("a read gives content") };
    assert_eq!((stat.size, stat.kind), (700_001, FileKind::File));
}

pub(super) async fn a_broken_off_replace_leaves_the_old_file(site: &Site) {
    site.write("f", b"old").await;
    let op = FileOp::Write { path: site.path("f"), mode: WriteMode::Replace, permissions: 0o644, parents: false };
    let Ok(FileAnswer::Sink(mut sink)) = site.file(op).await else { panic!("a write gives a sink") };
    sink.write(Bytes::from_static(b"half of the new")).await.unwrap();
    drop(sink);
    // What was begun goes away in its own time; the old file is there all along.
    loop {
        assert_eq!(site.read("f").await, b"old");
        if site.shell("ls -A | wc -l").await.trim() == "1" {
            return;
        }
    }
}

pub(super) async fn what_is_not_there_is_not_found(site: &Site) {
    let path = site.path("missing");
    for op in [
        FileOp::Read { path: path.clone(), offset: 0, length: None },
        FileOp::Stat { path: path.clone(), follow: true },
        FileOp::List { path: path.clone(), depth: 1 },
        FileOp::Move { from: path.clone(), to: site.path("to"), replace: false },
        FileOp::Remove { path: path.clone(), recursive: false },
        FileOp::Chmod { path: path.clone(), permissions: 0o600 },
    ] {
        assert_eq!(site.code(op.clone()).await, Code::NotFound, "{op:?}");
    }
}

pub(super) async fn directories_are_made_moved_listed_and_removed(site: &Site) {
    let make = |name: &str, parents| FileOp::MakeDir { path: site.path(name), permissions: 0o750, parents };
    site.done(make("d", false)).await.unwrap();
    assert_eq!(site.code(make("d", false)).await, Code::Conflict);
    site.done(make("d", true)).await.unwrap();
    assert_eq!(site.code(make("x/y", false)).await, Code::NotFound);
    site.done(make("d/e/f", true)).await.unwrap();
    assert_eq!(site.stat("d", true).await.unwrap().permissions, 0o750);
    site.write("d/file", b"12345").await;
    site.write("d/e/file", b"").await;

    assert_eq!(names(list(site, "d", 1).await), ["e/", "file"]);
    assert_eq!(names(list(site, "d", 2).await), ["e/", "e/f/", "e/file", "file"]);
    let entries = list(site, "d", 64).await;
    assert_eq!(entries.iter().find(|entry| entry.path == "file").unwrap().size, 5);

    site.write("target", b"t").await;
    let op = |from: &str, to: &str, replace| FileOp::Move { from: site.path(from), to: site.path(to), replace };
    assert_eq!(site.code(op("d/file", "target", false)).await, Code::Conflict);
    site.done(op("d/file", "target", true)).await.unwrap();
    assert_eq!(site.read("target").await, b"12345");
    site.done(op("d/e", "moved", false)).await.unwrap();
    assert_eq!(names(list(site, "", 2).await), ["d/", "moved/", "moved/f/", "moved/file", "target"]);

    let op = |name: &str, recursive| FileOp::Remove { path: site.path(name), recursive };
    assert_eq!(site.code(op("moved", false)).await, Code::Conflict);
    site.done(op("moved", true)).await.unwrap();
    site.done(op("d", false)).await.unwrap();
    site.done(op("target", false)).await.unwrap();
    assert_eq!(names(list(site, "", 9).await), Vec::<String>::new());
    site.write("f", b"").await;
    assert_eq!(site.code(FileOp::List { path: site.path("f"), depth: 1 }).await, Code::FileFailed);
    // A removed tree takes what a link in it points at with it never.
    site.make_dir("tree").await;
    site.make_dir("kept").await;
    site.write("kept/file", b"kept").await;
    site.shell("ln -s ../kept tree/link; ln -s ../kept/file tree/filelink").await;
    site.done(op("tree", true)).await.unwrap();
    assert_eq!(site.read("kept/file").await, b"kept");
}

pub(super) async fn list(site: &Site, name: &str, depth: u32) -> Vec<Stat> {
    let answer = site.file(FileOp::List { path: site.path(name), depth }).await.unwrap();
    let FileAnswer::Entries(entries) = answer else { panic!("a listing gives entries") };
    let mut entries: Vec<Stat> = entries.map(Result::unwrap).collect().await;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries
}

fn names(entries: Vec<Stat>) -> Vec<String> {
    let name = |entry: Stat| if entry.kind == FileKind::Directory { entry.path + "/" } else { entry.path };
    entries.into_iter().map(name).collect()
}

pub(super) async fn permissions_are_set_and_told(site: &Site) {
    site.write("f", b"#!/bin/sh\necho ran\n").await;
    assert_eq!(site.stat("f", true).await.unwrap().permissions, 0o644);
    let op = |permissions| FileOp::Chmod { path: site.path("f"), permissions };
    site.done(op(0o750)).await.unwrap();
    assert_eq!(site.stat("f", true).await.unwrap().permissions, 0o750);
    assert_eq!(site.shell("./f").await, "ran\n");
    assert_eq!(site.shell("stat -c %a f").await, "750\n");
    let before = site.stat("f", true).await.unwrap().modified_at;
    site.shell("touch -d @1000000000 f").await;
    assert!(before > 1_000_000_000_000);
    assert_eq!(site.stat("f", true).await.unwrap().modified_at, 1_000_000_000_000);
}

pub(super) async fn links_are_told_and_followed_when_asked(site: &Site) {
    site.write("f", b"content").await;
    site.shell("ln -s f link; ln -s nowhere dangling; ln -s loop loop; mkdir d; ln -s d dlink").await;
    let stat = site.stat("link", false).await.unwrap();
    assert_eq!((stat.kind, stat.target.as_deref()), (FileKind::Symlink, Some("f")));
    assert_eq!(site.stat("link", true).await.unwrap().kind, FileKind::File);
    assert_eq!(site.read("link").await, b"content");
    assert_eq!(site.stat("dangling", true).await.unwrap_err().code, Code::NotFound);
    assert_eq!(site.stat("loop", true).await.unwrap_err().code, Code::FileFailed);
    site.write("dlink/below", b"x").await;
    assert_eq!(site.read("d/below").await, b"x");
    let entries = list(site, "", 1).await;
    let entry = entries.iter().find(|entry| entry.path == "dlink").unwrap();
    assert_eq!((entry.kind, entry.target.as_deref()), (FileKind::Symlink, Some("d")));
    site.done(FileOp::Remove { path: site.path("dlink"), recursive: true }).await.unwrap();
    assert_eq!(site.read("d/below").await, b"x");
}

pub(super) async fn a_fifo_is_listed_and_never_opened(site: &Site) {
    // Whoever opens it waits for the other end, for ever.
    site.shell("mkfifo p; ln -s p link").await;
    assert_eq!(site.stat("p", true).await.unwrap().kind, FileKind::Special);
    for name in ["p", "link"] {
        let op = FileOp::Read { path: site.path(name), offset: 0, length: None };
        assert_eq!(site.code(op).await, Code::FileFailed);
        for mode in [WriteMode::Truncate, WriteMode::Append] {
            let op = FileOp::Write { path: site.path(name), mode, permissions: 0o644, parents: false };
            assert_eq!(site.code(op).await, Code::FileFailed);
        }
    }
    assert_eq!(list(site, "", 1).await.len(), 2);
    site.done(FileOp::Chmod { path: site.path("p"), permissions: 0o600 }).await.unwrap();
    let Ok(FileAnswer::Archive(mut archive)) = site.file(FileOp::TarOut { path: site.dir.clone() }).await else {
        panic!("a directory gives an archive");
    };
    while let Some(piece) = archive.next().await {
        piece.unwrap();
    }
    site.done(FileOp::Remove { path: site.path("p"), recursive: false }).await.unwrap();
}

pub(super) async fn many_megabytes_go_in_and_come_out(site: &Site) {
    let bytes = noise(24 * 1024 * 1024 + 7);
    site.write("big", &bytes).await;
    assert_eq!(site.shell("wc -c < big").await.trim(), bytes.len().to_string());
    assert!(site.read("big").await == bytes, "other bytes came back");
}

pub(super) async fn a_rename_underfoot_gives_the_one_or_the_other(site: &Site) {
    // `swap` is a directory or a link to another, changed all the time; a read gives what is in one of them, or says
    // that it is not there in that moment.
    site.shell("mkdir one two; echo 1 > one/f; echo 2 > two/f; mv one swap; ln -s two link").await;
    let line = "while [ ! -e stop ]; do mv swap one; mv link swap; mv swap link; mv one swap; done";
    let (_, spawned) = site.spawn(&site.here(sh(line))).await;
    for _ in 0..500 {
        match site.try_read("swap/f", 0, None).await {
            Ok(bytes) => assert!(bytes == b"1\n" || bytes == b"2\n", "{bytes:?}"),
            Err(fault) => {
                assert!(matches!(fault.code, Code::NotFound | Code::Conflict | Code::FileFailed), "{fault:?}");
            }
        }
    }
    site.write("stop", b"").await;
    assert_eq!(super::finish(spawned).await.report.code, Some(0));
}
