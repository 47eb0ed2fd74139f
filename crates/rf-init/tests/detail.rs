//! File operations in detail: paths from the home on, descriptions, attributes, writes in place, watches that can be
//! asked.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use common::{Field, FileOrder, Peer, finish};
use rf_wire::{
    detail::{Attributes, Detail, answer, flag},
    init::{change, file_answer, file_op},
};
use rustix::io::Errno;

fn op<'a>(op: u16, a: &'a [u8]) -> FileOrder<'a> {
    FileOrder { op, a, flags: flag::DETAIL, permissions: 0o755, ..FileOrder::default() }
}

/// What was described.
#[derive(Debug, Default, PartialEq)]
struct Described {
    path: String,
    mode: u32,
    target_mode: u32,
    owner: String,
    target: String,
    resolved: String,
    attributes: BTreeMap<String, String>,
}

impl Described {
    fn of(detail: Detail<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let Attributes::Read(list) = detail.attributes else { panic!("attributes were read") };
        let pair = |line: &[u8]| {
            let line = text(line.strip_suffix(b"\0").unwrap());
            let (name, value) = line.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        Self {
            path: text(detail.entry.path),
            mode: detail.entry.mode,
            target_mode: detail.target_mode,
            owner: text(detail.owner),
            target: text(detail.entry.target),
            resolved: text(detail.resolved),
            attributes: list.map(pair).collect(),
        }
    }
}

fn described(field: &Field, file: FileOrder<'_>) -> Result<Vec<Described>, Errno> {
    let reply = field.file(file, None);
    let mut all = Vec::new();
    loop {
        let message = reply.next();
        match message.kind {
            answer::DETAIL => all.push(Described::of(Detail::read(&mut message.reader()).unwrap())),
            file_answer::DONE => return Ok(all),
            file_answer::FAILED => {
                return Err(Errno::from_raw_os_error(message.reader().u32().unwrap() as i32));
            }
            kind => panic!("answer {kind}"),
        }
    }
}

fn one(field: &Field, file: FileOrder<'_>) -> Result<Described, Errno> {
    let mut all = described(field, file)?;
    assert_eq!(all.len(), 1);
    Ok(all.remove(0))
}

fn write(field: &Field, path: &[u8], attributes: &[u8], content: &[u8]) -> Result<(), i32> {
    let order = FileOrder { permissions: 0o644, b: attributes, ..op(file_op::WRITE, path) };
    let (mut file, _reply) = field.open(order)?;
    file.write_all(content).unwrap();
    Ok(())
}

#[test]
fn a_path_begins_at_the_home_unless_it_is_absolute() {
    let field = Field::start();
    let home = one(&field, op(file_op::STAT, b"")).unwrap().path;
    assert!(home.starts_with('/'), "{home}");
    assert_eq!(one(&field, op(file_op::STAT, b"~")).unwrap().path, home);
    assert_eq!(one(&field, op(file_op::STAT, b"./x/..")).unwrap().path, home);
    assert_eq!(one(&field, op(file_op::STAT, b"~/../..")).unwrap().path.matches("..").count(), 0);
    assert_eq!(one(&field, op(file_op::STAT, b"/etc/../etc")).unwrap().path, "/etc/../etc", "as it is");
    assert_eq!(one(&field, op(file_op::STAT, b"~root/x")), Err(Errno::INVAL));
    assert_eq!(one(&field, op(file_op::STAT, &field.path("nothing"))), Err(Errno::NOENT));
}

#[test]
fn a_link_is_described_with_what_it_leads_to() {
    let field = Field::start();
    let dir = field.dir.path().canonicalize().unwrap();
    fs::write(dir.join("f"), "x").unwrap();
    fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("f", dir.join("a")).unwrap();
    symlink("a", dir.join("b")).unwrap();
    symlink("nowhere", dir.join("c")).unwrap();
    let b = one(&field, op(file_op::STAT, &field.path("b"))).unwrap();
    assert_eq!((b.mode & 0o170_000, b.target_mode), (0o120_000, 0o100_640));
    assert_eq!((b.target.as_str(), b.resolved.as_str()), ("a", dir.join("f").to_str().unwrap()));
    let c = one(&field, op(file_op::STAT, &field.path("c"))).unwrap();
    assert_eq!((c.target_mode, c.resolved.as_str()), (0, ""));
    let list = described(&field, FileOrder { number: 1, ..op(file_op::LIST, &field.path("")) }).unwrap();
    assert_eq!(list[0].path.trim_end_matches('/'), dir.to_str().unwrap(), "the directory itself comes first");
    let mut names: Vec<_> = list[1..].iter().map(|entry| entry.path.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c", "f"]);
}

#[test]
fn owners_have_names_where_the_sandbox_has_them() {
    let field = Field::start();
    let root = one(&field, op(file_op::STAT, b"/etc/passwd")).unwrap();
    let uid = fs::metadata("/etc/passwd").unwrap().uid();
    // Seen through the one uid that is mapped, so either root or nobody; both have names.
    assert!(!root.owner.is_empty(), "{root:?}, {uid} outside");
}

#[test]
fn a_write_makes_parents_and_gives_the_attributes_and_no_others() {
    let field = Field::start();
    let path = field.path("new/deep/file");
    if write(&field, &path, b"a=1\nb=two words\n", b"first").is_err() {
        panic!("the file system of the temporary directory has no user attributes");
    }
    let there = field.dir.path().join("new/deep/file");
    assert_eq!(fs::read(&there).unwrap(), b"first");
    assert_eq!(fs::metadata(&there).unwrap().permissions().mode() & 0o7777, 0o644);
    let before = one(&field, op(file_op::STAT, &path)).unwrap();
    let expected: BTreeMap<_, _> = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "two words".to_owned())].into();
    assert_eq!(before.attributes, expected);
    let inode = fs::metadata(&there).unwrap().ino();
    write(&field, &path, b"b=3\n", b"2nd").unwrap();
    assert_eq!((fs::read(&there).unwrap(), fs::metadata(&there).unwrap().ino()), (b"2nd".to_vec(), inode), "in place");
    let after = one(&field, op(file_op::STAT, &path)).unwrap();
    assert_eq!(after.attributes, [("b".to_owned(), "3".to_owned())].into());
    write(&field, &path, b"", b"").unwrap();
    assert!(one(&field, op(file_op::STAT, &path)).unwrap().attributes.is_empty());
    assert_eq!(write(&field, &field.path("new"), b"", b""), Err(Errno::ISDIR.raw_os_error()));
}

#[test]
fn directories_are_made_and_files_moved_with_their_parents() {
    let field = Field::start();
    let made = one(&field, op(file_op::MAKE_DIR, &field.path("a/b"))).unwrap();
    assert_eq!(made.mode, 0o040_755);
    assert_eq!(one(&field, op(file_op::MAKE_DIR, &field.path("a/b"))), Err(Errno::EXIST));
    fs::write(field.dir.path().join("f"), "x").unwrap();
    assert_eq!(one(&field, op(file_op::MAKE_DIR, &field.path("f"))), Err(Errno::NOTDIR));
    let to = field.path("c/d/g");
    let moved = one(&field, FileOrder { b: &to, ..op(file_op::MOVE, &field.path("f")) }).unwrap();
    assert!(moved.path.ends_with("/c/d/g"));
    assert!(field.dir.path().join("c/d/g").exists() && !field.dir.path().join("f").exists());
    assert_eq!(one(&field, FileOrder { b: &to, ..op(file_op::MOVE, &field.path("f")) }), Err(Errno::NOENT));
    assert_eq!(described(&field, op(file_op::REMOVE, &field.path("c"))), Ok(Vec::new()), "with all in it");
    assert_eq!(described(&field, op(file_op::REMOVE, &field.path("c"))), Err(Errno::NOENT));
}

/// The changes told until the watch says that it has told all.
fn changes(reply: &Peer) -> Vec<(u32, String, Option<String>)> {
    reply.send(&[1], &[]);
    let mut all = Vec::new();
    loop {
        let message = reply.next();
        match message.kind {
            answer::CHANGED => {
                let mut body = message.reader();
                let mask = body.u32().unwrap();
                let path = String::from_utf8_lossy(body.string().unwrap().strip_suffix(b"\0").unwrap()).into_owned();
                let detail = (body.u32().unwrap() == 1).then(|| Described::of(Detail::read(&mut body).unwrap()).path);
                all.push((mask, path, detail));
            }
            file_answer::DONE => return all,
            kind => panic!("answer {kind}"),
        }
    }
}

fn watching(field: &Field, path: &[u8], flags: u32) -> Peer {
    let reply = field.file(FileOrder { flags: flag::DETAIL | flags, ..op(file_op::WATCH, path) }, None);
    assert_eq!(reply.next().kind, answer::DETAIL);
    finish(&reply).unwrap();
    reply
}

#[test]
fn a_watch_tells_a_new_file_in_three_changes_and_all_before_it_is_asked() {
    let field = Field::start();
    let dir = field.path("w");
    one(&field, op(file_op::MAKE_DIR, &dir)).unwrap();
    let reply = watching(&field, &dir, flag::ENTRIES);
    assert!(changes(&reply).is_empty());
    let file = field.path("w/new");
    write(&field, &file, b"", b"some bytes").unwrap();
    let text = String::from_utf8_lossy(&file).into_owned();
    let of = |mask| (mask, "new".to_owned(), Some(text.clone()));
    assert_eq!(changes(&reply), [of(change::CREATE), of(change::ATTRIBUTES), of(change::WRITE)]);
    fs::rename(field.dir.path().join("w/new"), field.dir.path().join("w/old")).unwrap();
    let told: Vec<_> = changes(&reply).into_iter().map(|(mask, path, _)| (mask, path)).collect();
    assert_eq!(told, [(change::RENAME, "new".to_owned()), (change::CREATE, "old".to_owned())]);
    fs::remove_file(field.dir.path().join("w/old")).unwrap();
    assert_eq!(changes(&reply), [(change::REMOVE, "old".to_owned(), None)]);
}

#[test]
fn a_recursive_watch_sees_what_is_written_below_a_directory_just_made() {
    let field = Field::start();
    let dir = field.path("w");
    one(&field, op(file_op::MAKE_DIR, &dir)).unwrap();
    let reply = watching(&field, &dir, 1);
    for round in 0..50 {
        let below = field.dir.path().join(format!("w/d{round}"));
        fs::create_dir(&below).unwrap();
        fs::write(below.join("f"), "x").unwrap();
        let told = changes(&reply);
        let saw = |bit: u32, path: &str| told.iter().any(|(mask, at, _)| mask & bit != 0 && at == path);
        assert!(saw(change::CREATE, &format!("d{round}")), "{told:?}");
        assert!(saw(change::WRITE, &format!("d{round}/f")), "{told:?}");
    }
}

#[test]
fn a_directory_that_leaves_is_watched_no_longer_and_one_that_moves_within_still_is() {
    let field = Field::start();
    let at = |path: &str| field.dir.path().join(path);
    for directory in ["w/leaves/deep", "w/leaves-not", "w/moves/deep"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    let reply = watching(&field, &field.path("w"), 1);
    let told = || changes(&reply).into_iter().map(|(_, path, _)| path).collect::<Vec<_>>();
    fs::write(at("w/leaves/deep/mine"), "").unwrap();
    assert!(told().contains(&"leaves/deep/mine".to_owned()));
    fs::rename(at("w/leaves"), at("left")).unwrap();
    fs::rename(at("w/moves"), at("w/moved")).unwrap();
    told();
    for file in ["left/away", "left/deep/away", "w/leaves-not/here", "w/moved/deep/here"] {
        fs::write(at(file), "").unwrap();
    }
    let mut told = told();
    told.dedup();
    assert_eq!(told, ["leaves-not/here", "moved/deep/here"]);
    fs::rename(at("left"), at("w/back")).unwrap();
    fs::write(at("w/back/deep/here"), "").unwrap();
    let reply = changes(&reply);
    assert!(reply.iter().any(|(_, path, _)| path == "back/deep/here"), "{reply:?}");
}

#[test]
fn only_directories_are_watched_in_detail() {
    let field = Field::start();
    fs::write(field.dir.path().join("f"), "x").unwrap();
    assert_eq!(described(&field, op(file_op::WATCH, &field.path("f"))), Err(Errno::NOTDIR));
    assert_eq!(described(&field, op(file_op::WATCH, &field.path("nothing"))), Err(Errno::NOENT));
}
