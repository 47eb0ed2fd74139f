//! File operations: content, trees, archives, changes, connections, and the traps that a workload may lay.

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
};

use common::{Exec, Field, FileOrder, Options, finish, pipe, read_all};
use rf_wire::init::{Entry, answer, change, file_answer, file_op, order, stage};
use rustix::io::Errno;

const NO_MODE: u16 = 0;
const TRUNCATE: u16 = 0;
const CREATE_NEW: u16 = 1;
const APPEND: u16 = 2;
const REPLACE: u16 = 3;

fn op<'a>(op: u16, a: &'a [u8]) -> FileOrder<'a> {
    FileOrder { op, a, mode: NO_MODE, ..FileOrder::default() }
}

fn write_order(path: &[u8], mode: u16) -> FileOrder<'_> {
    FileOrder { mode, permissions: 0o640, ..op(file_op::WRITE, path) }
}

fn write(field: &Field, path: &[u8], mode: u16, content: &[u8]) -> Result<(), i32> {
    let (mut file, reply) = field.open(write_order(path, mode))?;
    file.write_all(content).unwrap();
    if mode == REPLACE {
        reply.send(&[1], &[]);
        return finish(&reply);
    }
    Ok(())
}

fn fails<T: std::fmt::Debug>(outcome: Result<T, i32>, errno: Errno) {
    assert_eq!(outcome.expect_err("it fails"), errno.raw_os_error(), "{errno}");
}

#[derive(Debug)]
struct Found {
    path: String,
    mode: u32,
    size: u64,
    target: String,
}

fn entries(field: &Field, file: FileOrder<'_>) -> Result<Vec<Found>, i32> {
    let reply = field.file(file, None);
    let mut all = Vec::new();
    loop {
        let message = reply.next();
        match message.kind {
            file_answer::ENTRY => {
                let entry = Entry::read(&mut message.reader()).unwrap();
                all.push(Found {
                    path: String::from_utf8_lossy(entry.path).into_owned(),
                    mode: entry.mode,
                    size: entry.size,
                    target: String::from_utf8_lossy(entry.target).into_owned(),
                });
            }
            file_answer::DONE => {
                all.sort_by(|a, b| a.path.cmp(&b.path));
                return Ok(all);
            }
            file_answer::FAILED => return Err(message.reader().u32().unwrap() as i32),
            kind => panic!("answer {kind}"),
        }
    }
}

#[test]
fn content_comes_and_goes_byte_exact() {
    let field = Field::start();
    let path = field.path("a");
    let content: Vec<u8> = (0..200_000_u32).map(|number| (number * 7) as u8).collect();
    write(&field, &path, CREATE_NEW, &content).unwrap();
    assert_eq!(field.read(&path).unwrap(), content);
    assert_eq!(fs::metadata(field.dir.path().join("a")).unwrap().mode() & 0o7777, 0o640);
    fails(write(&field, &path, CREATE_NEW, b"x"), Errno::EXIST);
    write(&field, &path, APPEND, b"end").unwrap();
    assert_eq!(field.read(&path).unwrap().len(), content.len() + 3);
    write(&field, &path, TRUNCATE, b"short").unwrap();
    assert_eq!(field.read(&path).unwrap(), b"short");
    write(&field, &field.path("new"), TRUNCATE, b"1").unwrap();
    write(&field, &field.path("new2"), APPEND, b"2").unwrap();
    assert_eq!(field.read(&field.path("new2")).unwrap(), b"2");
    fails(field.read(&field.path("none")), Errno::NOENT);
    fails(write(&field, &field.path("no/such/dir"), TRUNCATE, b""), Errno::NOENT);
    let deep = field.path("no/such/dir");
    let (mut file, _) = field.open(FileOrder { flags: 1, ..write_order(&deep, TRUNCATE) }).unwrap();
    file.write_all(b"deep").unwrap();
    assert_eq!(field.read(&deep).unwrap(), b"deep");
    fails(field.open(write_order(&path, 9)), Errno::INVAL);
    fails(field.done(op(99, &path)), Errno::OPNOTSUPP);
    fails(field.done(op(file_op::READ, b"")), Errno::NOENT);
}

#[test]
fn what_was_opened_for_reading_cannot_be_written_and_the_other_way() {
    let field = Field::start();
    let path = field.path("a");
    write(&field, &path, CREATE_NEW, b"content").unwrap();
    let (mut reader, _) = field.open(op(file_op::READ, &path)).unwrap();
    assert!(reader.write(b"x").is_err());
    let (mut writer, _) = field.open(write_order(&path, APPEND)).unwrap();
    assert!(writer.read(&mut [0; 1]).is_err());
}

#[test]
fn a_replace_shows_the_old_or_the_new_and_keeps_permissions() {
    let field = Field::start();
    let dir = field.dir.path();
    let path = field.path("a");
    fs::write(dir.join("a"), "old").unwrap();
    fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o604)).unwrap();
    let names = || fs::read_dir(dir).unwrap().count();

    let (mut file, reply) = field.open(write_order(&path, REPLACE)).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(fs::read(dir.join("a")).unwrap(), b"old");
    reply.send(&[1], &[]);
    finish(&reply).unwrap();
    assert_eq!(fs::read(dir.join("a")).unwrap(), b"new");
    assert_eq!((fs::metadata(dir.join("a")).unwrap().mode() & 0o7777, names()), (0o604, 1));

    // Anything but the word drops it; so does the end of the socket.
    let (_, reply) = field.open(write_order(&path, REPLACE)).unwrap();
    reply.send(&[2], &[]);
    fails(finish(&reply), Errno::CANCELED);
    assert_eq!((fs::read(dir.join("a")).unwrap(), names()), (b"new".to_vec(), 1));
    let (file, reply) = field.open(write_order(&path, REPLACE)).unwrap();
    assert_eq!(names(), 2);
    drop((file, reply));
    while names() != 1 {
        std::thread::yield_now();
    }

    // A link is followed to what it names; the link stays.
    fs::create_dir(dir.join("d")).unwrap();
    symlink("../a", dir.join("d/link")).unwrap();
    symlink(dir.join("d/link"), dir.join("link2")).unwrap();
    write(&field, &field.path("link2"), REPLACE, b"through").unwrap();
    assert_eq!(fs::read(dir.join("a")).unwrap(), b"through");
    assert!(fs::symlink_metadata(dir.join("link2")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(dir.join("d/link")).unwrap().is_symlink());
    symlink("made", dir.join("dangling")).unwrap();
    write(&field, &field.path("dangling"), REPLACE, b"made").unwrap();
    assert_eq!(fs::read(dir.join("made")).unwrap(), b"made");
    assert_eq!(fs::metadata(dir.join("made")).unwrap().mode() & 0o7777, 0o640);
    symlink("loop", dir.join("loop")).unwrap();
    fails(write(&field, &field.path("loop"), REPLACE, b""), Errno::LOOP);
    fails(write(&field, &field.path("d"), REPLACE, b""), Errno::ISDIR);
    fails(write(&field, &field.path("d/"), REPLACE, b""), Errno::ISDIR);
}

/// Attack: files that hang whoever opens them, or are not files at all.
#[test]
fn fifos_devices_sockets_and_proc_are_never_opened() {
    let field = Field::start();
    let dir = field.dir.path();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    symlink("fifo", dir.join("to-fifo")).unwrap();
    symlink("/dev/zero", dir.join("to-device")).unwrap();
    symlink("/proc/self/environ", dir.join("to-proc")).unwrap();
    symlink("/proc/self/fd/3", dir.join("to-magic")).unwrap();
    for (name, errno) in [
        ("fifo", Errno::SPIPE),
        ("to-fifo", Errno::SPIPE),
        ("socket", Errno::SPIPE),
        ("to-device", Errno::NODEV),
        ("to-proc", Errno::ACCESS),
        ("to-magic", Errno::LOOP),
        (".", Errno::ISDIR),
    ] {
        let path = field.path(name);
        fails(field.read(&path), errno);
        for mode in [TRUNCATE, APPEND] {
            fails(field.open(write_order(&path, mode)), errno);
        }
    }
    fails(field.read(b"/proc/1/environ"), Errno::ACCESS);
    fails(field.read(b"/proc/self/status"), Errno::ACCESS);
    fails(field.read(b"/proc/self/root/etc/passwd"), Errno::LOOP);
    fails(field.open(write_order(&field.path("fifo"), REPLACE)), Errno::SPIPE);
    // Control: an ordinary file at the end of a link is read.
    fs::write(dir.join("plain"), "plain").unwrap();
    symlink("plain", dir.join("to-plain")).unwrap();
    assert_eq!(field.read(&field.path("to-plain")).unwrap(), b"plain");
}

#[test]
fn stat_and_list_describe_without_following() {
    let field = Field::start();
    let dir = field.dir.path();
    fs::create_dir_all(dir.join("d/e/f")).unwrap();
    fs::write(dir.join("d/file"), "12345").unwrap();
    symlink("e", dir.join("d/link")).unwrap();
    symlink("..", dir.join("d/e/up")).unwrap();
    let top = field.path("d");
    let at = |depth| entries(&field, FileOrder { number: depth, ..op(file_op::LIST, &top) }).unwrap();
    let names = |found: &[Found]| found.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&at(1)), ["e", "file", "link"]);
    assert_eq!(names(&at(0)), ["e", "file", "link"]);
    assert_eq!(names(&at(2)), ["e", "e/f", "e/up", "file", "link"]);
    let all = at(64);
    assert_eq!((all[3].size, all[4].target.as_str()), (5, "e"));
    assert_eq!(all[4].mode & 0o170_000, 0o120_000);
    let path = field.path("d/link");
    let link = entries(&field, op(file_op::STAT, &path)).unwrap();
    assert_eq!((link[0].target.as_str(), link[0].mode & 0o170_000), ("e", 0o120_000));
    let followed = entries(&field, FileOrder { flags: 1, ..op(file_op::STAT, &path) }).unwrap();
    assert_eq!((followed[0].target.as_str(), followed[0].mode & 0o170_000), ("", 0o040_000));
    fails(entries(&field, op(file_op::LIST, &field.path("d/file"))), Errno::NOTDIR);
    fails(entries(&field, op(file_op::STAT, &field.path("none"))), Errno::NOENT);
    // Many, more than any buffer holds.
    for number in 0..2000 {
        fs::write(dir.join(format!("d/e/{number:060}")), "").unwrap();
    }
    assert_eq!(entries(&field, FileOrder { number: 3, ..op(file_op::LIST, &top) }).unwrap().len(), 2005);
}

#[test]
fn directories_are_made_moved_and_removed() {
    let field = Field::start();
    let dir = field.dir.path();
    let make = |name: &str, flags| {
        field.done(FileOrder { permissions: 0o750, flags, ..op(file_op::MAKE_DIR, &field.path(name)) })
    };
    make("a", 0).unwrap();
    assert_eq!(fs::metadata(dir.join("a")).unwrap().mode() & 0o7777, 0o750);
    fails(make("a", 0), Errno::EXIST);
    make("a", 1).unwrap();
    make("a/b/c//d/", 1).unwrap();
    fs::write(dir.join("a/b/file"), "x").unwrap();
    fails(make("a/b/file", 1), Errno::EXIST);
    let rename = |a: &str, b: &str, flags| {
        field.done(FileOrder { flags, b: &field.path(b), ..op(file_op::MOVE, &field.path(a)) })
    };
    fs::write(dir.join("y"), "y").unwrap();
    fails(rename("a/b/file", "y", 0), Errno::EXIST);
    assert_eq!(fs::read(dir.join("y")).unwrap(), b"y");
    rename("a/b/file", "y", 1).unwrap();
    assert_eq!(fs::read(dir.join("y")).unwrap(), b"x");
    rename("y", "z", 0).unwrap();
    field.done(FileOrder { permissions: 0o4711, ..op(file_op::CHMOD, &field.path("z")) }).unwrap();
    assert_eq!(fs::metadata(dir.join("z")).unwrap().mode() & 0o7777, 0o4711);
    let remove = |name: &str, flags| field.done(FileOrder { flags, ..op(file_op::REMOVE, &field.path(name)) });
    fails(remove("a", 0), Errno::NOTEMPTY);
    symlink("/etc", dir.join("a/b/out")).unwrap();
    symlink(dir.join("z"), dir.join("a/b/c/kept")).unwrap();
    remove("a", 1).unwrap();
    assert!(!dir.join("a").exists() && dir.join("z").exists() && Path::new("/etc/passwd").exists());
    remove("z", 0).unwrap();
    fails(remove("z", 1), Errno::NOENT);
}

/// A home that is written without the overlay is another mount than what is around it.
#[test]
fn files_are_moved_to_other_file_systems_whole() {
    let field = Field::start();
    let dir = field.dir.path();
    // A tmpfs, which the field's directory is not on.
    let there = tempfile::tempdir_in("/dev/shm").unwrap();
    let rename = |a: &str, b: &Path, flags| {
        field.done(FileOrder { flags, b: b.as_os_str().as_encoded_bytes(), ..op(file_op::MOVE, &field.path(a)) })
    };
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(dir.join("file"), &bytes).unwrap();
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(dir.join("file"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 123_000_000);
    fs::File::options().write(true).open(dir.join("file")).unwrap().set_modified(time).unwrap();
    // Control: the kernel does not.
    let refused = rustix::fs::rename(dir.join("file"), there.path().join("file"));
    assert_eq!(refused, Err(Errno::XDEV), "both are on one file system here");

    fs::write(there.path().join("taken"), "old").unwrap();
    fails(rename("file", &there.path().join("taken"), 0), Errno::EXIST);
    fails(rename("file", &there.path().join("none/file"), 1), Errno::NOENT);
    assert_eq!(fs::read(there.path().join("taken")).unwrap(), b"old");
    assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1, "nothing is left of what failed");
    assert_eq!(fs::read(dir.join("file")).unwrap(), bytes);
    rename("file", &there.path().join("taken"), 1).unwrap();
    assert!(!dir.join("file").exists());
    let moved = fs::metadata(there.path().join("taken")).unwrap();
    assert_eq!((moved.mode() & 0o7777, moved.modified().unwrap()), (0o640, time));
    assert_eq!(fs::read(there.path().join("taken")).unwrap(), bytes);
    let mut note = [0; 8];
    assert_eq!(rustix::fs::getxattr(there.path().join("taken"), "user.note", &mut note[..]), Ok(4));

    // Links, directories and all else are not copied.
    symlink("/etc/passwd", dir.join("link")).unwrap();
    fs::create_dir(dir.join("tree")).unwrap();
    for name in ["link", "tree"] {
        fails(rename(name, &there.path().join(name), 1), Errno::XDEV);
        assert!(fs::symlink_metadata(dir.join(name)).is_ok());
    }
    assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1);
}

/// Attack: a tree too deep for anything that recurses or holds a descriptor for each level.
#[test]
fn a_very_deep_tree_is_removed() {
    let field = Field::start();
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = std::os::fd::OwnedFd::from(fs::File::open(field.dir.path()).unwrap());
    for level in 0..5000 {
        let name = if level == 0 { "deep" } else { "d" };
        mkdirat(&here, name, Mode::RWXU).unwrap();
        here = openat(&here, name, flags, Mode::empty()).unwrap();
    }
    openat(&here, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    field.done(FileOrder { flags: 1, ..op(file_op::REMOVE, &field.path("deep")) }).unwrap();
    assert!(!field.dir.path().join("deep").exists());
}

fn tar_out(field: &Field, path: &[u8]) -> Result<Vec<u8>, i32> {
    let (reader, writer) = pipe();
    let reply = field.file(op(file_op::TAR_OUT, path), Some(writer.as_fd()));
    drop(writer);
    let bytes = read_all(reader);
    finish(&reply).map(|()| bytes)
}

fn tar_in(field: &Field, path: &[u8], archive: &[u8]) -> Result<(), i32> {
    let (reader, writer) = pipe();
    let reply = field.file(op(file_op::TAR_IN, path), Some(reader.as_fd()));
    drop(reader);
    // Refused in the middle, the other end of the pipe closes.
    let _ = fs::File::from(writer).write_all(archive);
    finish(&reply)
}

fn host_tar(args: &[&str], input: &[u8]) -> std::process::Output {
    let mut child = std::process::Command::new("tar")
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = feeder.join();
    output
}

#[test]
fn a_tree_goes_out_and_comes_back_the_same() {
    let field = Field::start();
    let dir = field.dir.path();
    let long = "l".repeat(200);
    fs::create_dir_all(dir.join("t").join(&long).join(&long)).unwrap();
    fs::create_dir(dir.join("t/empty")).unwrap();
    let big: Vec<u8> = (0..3_000_001_u32).map(|number| (number >> 3) as u8).collect();
    fs::write(dir.join("t/big"), &big).unwrap();
    fs::write(dir.join("t").join(&long).join(&long).join("f\u{e9}\n name"), "deep").unwrap();
    fs::write(dir.join("t/run"), "#!").unwrap();
    fs::set_permissions(dir.join("t/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink(&long, dir.join("t/link")).unwrap();
    symlink("x".repeat(300), dir.join("t/long-link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("t/fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();

    let archive = tar_out(&field, &field.path("t")).unwrap();
    // tar(1) agrees with it, and finds no difference but the FIFO that was left out.
    let compared = host_tar(&["-d", "-C", dir.join("t").to_str().unwrap()], &archive);
    assert!(
        compared.status.success(),
        "{}{}",
        String::from_utf8_lossy(&compared.stdout),
        String::from_utf8_lossy(&compared.stderr)
    );
    tar_in(&field, &field.path("back/made"), &archive).unwrap();
    fs::remove_file(dir.join("t/fifo")).unwrap();
    let mut diff = std::process::Command::new("diff");
    let output = diff.args(["-r", "--no-dereference"]).arg(dir.join("t")).arg(dir.join("back/made")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (a, b) = (fs::metadata(dir.join("t/run")).unwrap(), fs::metadata(dir.join("back/made/run")).unwrap());
    assert_eq!((a.mode(), a.mtime()), (b.mode(), b.mtime()));
    // Over itself: what is there is replaced.
    tar_in(&field, &field.path("back/made"), &archive).unwrap();
    // One file.
    let one = tar_out(&field, &field.path("t/big")).unwrap();
    tar_in(&field, &field.path("one"), &one).unwrap();
    assert_eq!(fs::read(dir.join("one/big")).unwrap(), big);
    fails(tar_out(&field, &field.path("none")), Errno::NOENT);
}

#[test]
fn archives_of_tar_are_unpacked_in_all_its_formats() {
    let field = Field::start();
    let dir = field.dir.path();
    let long = "n".repeat(150);
    fs::create_dir_all(dir.join("t").join(&long)).unwrap();
    fs::write(dir.join("t").join(&long).join("file"), "content").unwrap();
    fs::write(dir.join("t/a"), "a").unwrap();
    fs::hard_link(dir.join("t/a"), dir.join("t/b")).unwrap();
    symlink("a", dir.join("t/link")).unwrap();
    for format in ["gnu", "pax", "posix", "oldgnu"] {
        let made = host_tar(&["-c", "-C", dir.join("t").to_str().unwrap(), "--format", format, "."], b"");
        assert!(made.status.success());
        tar_in(&field, &field.path(format), &made.stdout).unwrap();
        let at = dir.join(format);
        assert_eq!(fs::read(at.join(&long).join("file")).unwrap(), b"content");
        assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("a"));
        assert_eq!(fs::metadata(at.join("a")).unwrap().ino(), fs::metadata(at.join("b")).unwrap().ino());
    }
}

/// One block of a header, with its sum.
fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn content(bytes: &[u8]) -> Vec<u8> {
    let mut blocks = bytes.to_vec();
    blocks.resize(bytes.len().div_ceil(512) * 512, 0);
    blocks
}

/// Attack: archives that reach for files outside of where they are unpacked.
#[test]
fn an_archive_cannot_leave_its_directory() {
    let field = Field::start();
    let dir = field.dir.path();
    fs::create_dir(dir.join("outside")).unwrap();
    fs::write(dir.join("outside/secret"), "secret").unwrap();
    let outside = dir.join("outside");
    let outside = outside.as_os_str().as_encoded_bytes();
    let file = |name: &[u8]| [header(name, b'0', 3, b""), content(b"bad")].concat();
    let end = vec![0; 1024];
    let pax = |record: &[u8]| {
        let text = [format!("{} ", record.len() + 4).as_bytes(), record, b"\n"].concat();
        [header(b"x", b'x', text.len() as u64, b""), content(&text)].concat()
    };
    let cases: Vec<(&str, Vec<u8>, Errno)> = vec![
        ("dotdot", file(b"../outside/new"), Errno::XDEV),
        ("dotdot inside", file(b"a/../../outside/new"), Errno::XDEV),
        ("absolute", file(b"/tmp/rf-init-absolute"), Errno::XDEV),
        ("long name", [header(b"@", b'L', 15, b""), content(b"../outside/new\0"), file(b"ok")].concat(), Errno::XDEV),
        ("record", [pax(b"path=../outside/new"), file(b"ok")].concat(), Errno::XDEV),
        ("link up, then through it", [header(b"up", b'2', 0, b"../outside"), file(b"up/new")].concat(), Errno::XDEV),
        ("link out, then through it", [header(b"out", b'2', 0, outside), file(b"out/new")].concat(), Errno::XDEV),
        (
            "directory through a link",
            [header(b"up", b'2', 0, b"../outside"), header(b"up/new/", b'5', 0, b"")].concat(),
            Errno::XDEV,
        ),
        ("hard link up", header(b"hard", b'1', 0, b"../outside/secret"), Errno::XDEV),
        (
            "hard link through a link",
            [header(b"up", b'2', 0, b"../outside"), header(b"hard", b'1', 0, b"up/secret")].concat(),
            Errno::XDEV,
        ),
        ("magic link", [header(b"m", b'2', 0, b"/proc/self/root"), file(b"m/tmp/rf-init-magic")].concat(), Errno::XDEV),
        ("character device", header(b"dev", b'3', 0, b""), Errno::PERM),
        ("block device", header(b"dev", b'4', 0, b""), Errno::PERM),
        ("fifo", header(b"fifo", b'6', 0, b""), Errno::PERM),
        ("sparse", header(b"s", b'S', 0, b""), Errno::OPNOTSUPP),
        ("unknown", header(b"s", b'Z', 0, b""), Errno::OPNOTSUPP),
        ("cut content", header(b"cut", b'0', 100_000, b""), Errno::INVAL),
        ("a link with content", [header(b"l", b'2', 5, b"a"), content(b"12345")].concat(), Errno::INVAL),
        ("huge record", header(b"x", b'x', 1 << 30, b""), Errno::TOOBIG),
        ("huge long name", header(b"x", b'L', 1 << 30, b""), Errno::NAMETOOLONG),
    ];
    for (what, archive, errno) in cases {
        let outcome = tar_in(&field, &field.path("in"), &[archive, end.clone()].concat());
        assert_eq!(outcome, Err(errno.raw_os_error()), "{what}");
        assert_eq!(fs::read_dir(dir.join("outside")).unwrap().count(), 1, "{what}");
        fs::remove_dir_all(dir.join("in")).unwrap();
    }
    let mut bad_sum = file(b"a");
    bad_sum[0] = b'b';
    fails(tar_in(&field, &field.path("in"), &bad_sum), Errno::INVAL);
    // A file is put where a link was, not through it.
    let archive = [header(b"l", b'2', 0, b"../outside/secret"), file(b"l"), end].concat();
    tar_in(&field, &field.path("in"), &archive).unwrap();
    assert_eq!(fs::read(dir.join("outside/secret")).unwrap(), b"secret");
    assert_eq!(fs::read(dir.join("in/l")).unwrap(), b"bad");
    assert!(!Path::new("/tmp/rf-init-absolute").exists() && !Path::new("/tmp/rf-init-magic").exists());
}

#[test]
fn broken_archives_neither_crash_nor_hang_it() {
    let field = Field::start();
    let good = [header(b"a/b", b'0', 5, b""), content(b"hello"), header(b"l", b'2', 0, b"a"), vec![0; 1024]].concat();
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..300 {
        let mut archive = good.clone();
        for _ in 0..random() % 6 {
            let at = random() % archive.len();
            archive[at] = random() as u8;
        }
        // With a right sum, so that what is behind it is reached.
        let mut first = archive[..512].to_vec();
        first[148..156].fill(b' ');
        let sum: u32 = first.iter().map(|byte| u32::from(*byte)).sum();
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.truncate(random() % archive.len() + 1);
        let _ = tar_in(&field, &field.path("in"), &archive);
    }
    assert_eq!(field.run(&Exec::new(1, &["true"])).code(), 0);
}

#[test]
fn changes_are_told_as_they_happen() {
    let field = Field::start();
    let dir = field.dir.path().to_owned();
    fs::create_dir_all(dir.join("w/sub")).unwrap();
    let reply = field.file(FileOrder { flags: 1, ..op(file_op::WATCH, &field.path("w")) }, None);
    finish(&reply).unwrap();
    let wait_for = |mask: u32, path: &str| {
        loop {
            let message = reply.next();
            assert_eq!(message.kind, file_answer::CHANGE);
            let mut reader = message.reader();
            let (got, name) = (reader.u32().unwrap(), reader.string().unwrap());
            if got & mask == mask && &name[..name.len() - 1] == path.as_bytes() {
                return;
            }
        }
    };
    fs::write(dir.join("w/sub/f"), "1").unwrap();
    wait_for(change::CREATE, "sub/f");
    wait_for(change::WRITE, "sub/f");
    // New directories are picked up, with what is in them already.
    fs::create_dir_all(dir.join("w/new/er")).unwrap();
    wait_for(change::CREATE | change::DIRECTORY, "new");
    wait_for(change::CREATE | change::DIRECTORY, "new/er");
    fs::write(dir.join("w/new/er/g"), "2").unwrap();
    wait_for(change::CREATE, "new/er/g");
    // A renamed directory goes by its new name.
    fs::rename(dir.join("w/new"), dir.join("w/sub/moved")).unwrap();
    wait_for(change::RENAME | change::DIRECTORY, "new");
    wait_for(change::RENAME | change::DIRECTORY, "sub/moved");
    wait_for(change::CREATE, "sub/moved/er/g");
    fs::remove_file(dir.join("w/sub/moved/er/g")).unwrap();
    wait_for(change::REMOVE, "sub/moved/er/g");
    fs::remove_dir_all(dir.join("w")).unwrap();
    wait_for(change::REMOVE, "");
    // With what it watched gone, the helper ends.
    while reply.receive().is_some() {}
    fails(finish(&field.file(op(file_op::WATCH, &field.path("none")), None)), Errno::NOENT);
}

#[test]
fn a_watch_ends_when_nobody_listens() {
    let field = Field::start();
    let reply = field.file(FileOrder { flags: 1, ..op(file_op::WATCH, &field.path(".")) }, None);
    finish(&reply).unwrap();
    let helpers = |id| field.run(&Exec::shell(id, "ps -e -o comm= | grep -c rf-file || true")).text();
    assert_eq!(helpers(1), "1\n");
    drop(reply);
    for id in 2.. {
        if helpers(id) == "0\n" {
            break;
        }
    }
}

#[test]
fn a_port_inside_is_connected_to() {
    let field = Field::start();
    let script = "import socket;s=socket.create_server(('127.0.0.1',0));print(s.getsockname()[1],flush=True);\
                  c,_=s.accept();c.sendall(b'hello '+c.recv(5));c.close()";
    let answer = field.spawn(&Exec::new(1, &["python3", "-c", script]));
    assert_eq!(answer.kind, answer::SPAWNED, "needs python3: {answer:?}");
    let mut out = fs::File::from(answer.fds.into_iter().next().unwrap());
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let port: u32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
    let connect = |number| field.open(FileOrder { op: file_op::CONNECT, number, ..FileOrder::default() });
    let (socket, _) = connect(port).unwrap();
    let mut stream = std::net::TcpStream::from(std::os::fd::OwnedFd::from(socket));
    stream.set_nonblocking(false).unwrap();
    stream.write_all(b"there").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello there");
    fails(connect(1), Errno::CONNREFUSED);
    for bad in [0, 65_536, u32::MAX] {
        fails(connect(bad), Errno::INVAL);
    }
}

#[test]
fn an_order_that_cannot_start_is_answered_on_the_main_socket() {
    let field = Field::start();
    let path = field.path("a");
    field.file(FileOrder { user: "nobody-here", ..op(file_op::READ, &path) }, None);
    assert_eq!(field.server.next().failed(), (Errno::NOENT.raw_os_error(), stage::USER));
    let body = |writer: &mut rf_wire::init::Writer<'_>| {
        rf_wire::init::File { op: 1, mode: 0, flags: 0, permissions: 0, number: 0, user: b"", a: b"/", b: b"" }
            .write(writer);
    };
    field.server.order(order::FILE, 9, body, &[]);
    assert_eq!(field.server.next().failed(), (Errno::BADF.raw_os_error(), stage::ORDER));
    // Without the pipe that it needs: the helper says so.
    fails(field.done(op(file_op::TAR_OUT, &path)), Errno::BADF);
}

#[test]
fn helpers_have_no_rights_and_no_other_descriptors() {
    let field = Field::with(Options { cgroups: true, ..Options::default() });
    let reply = field.file(FileOrder { flags: 1, ..op(file_op::WATCH, &field.path(".")) }, None);
    finish(&reply).unwrap();
    let line = "for p in /proc/[0-9]*; do if grep -q rf-file $p/comm; then grep -E '^(Cap(Prm|Eff|Amb)|Seccomp|NoNewPrivs):' \
                $p/status; grep ^0:: $p/cgroup; readlink $p/fd/3 || echo refused; fi; done";
    let text = field.run(&Exec::shell(1, line)).text();
    for name in ["CapPrm", "CapEff", "CapAmb"] {
        assert!(text.contains(&format!("{name}:\t0000000000000000\n")), "{text}");
    }
    assert!(text.contains("NoNewPrivs:\t1\n") && text.contains("Seccomp:\t2\n"), "{text}");
    assert!(text.contains("/files\n"), "{text}");
    // Of the same user, and yet nobody sees into it.
    assert!(text.contains("refused\n"), "{text}");
}
