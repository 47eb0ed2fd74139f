//! `WRITE`: create, empty, append, or replace at once.

use core::{ffi::CStr, mem::MaybeUninit};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat, ftruncate, openat,
        openat2, readlinkat_raw, renameat, statat, unlinkat,
    },
    io::Errno,
    net::{RecvFlags, recv},
    rand::{GetRandomFlags, getrandom},
};

use super::{
    Told, basic,
    open::{look, regular, reopen},
    reply::{Reply, entry_of},
};
use crate::text::Name;

const TRUNCATE: u16 = 0;
const CREATE_NEW: u16 = 1;
const APPEND: u16 = 2;
const REPLACE: u16 = 3;

/// How often a file may vanish between two looks at it.
const TRIES: usize = 8;
/// Most links followed to a file that is to be replaced; the kernel's own bound is 40.
const LINKS_MAX: usize = 40;
/// Longest path, with its NUL (path_resolution(7)).
const PATH_BYTES: usize = 4096;

pub(super) fn write(
    path: &CStr,
    mode: u16,
    permissions: Mode,
    parents: bool,
    reply: &mut Reply,
) -> Result<Told, Errno> {
    if parents {
        basic::make_parents(path)?;
    }
    let extra = if mode == APPEND { OFlags::APPEND } else { OFlags::empty() };
    let file = match mode {
        REPLACE => return replace(path, permissions, reply),
        CREATE_NEW => create(path, extra, permissions)?,
        TRUNCATE | APPEND => open_or_create(path, mode, extra, permissions)?,
        _ => return Err(Errno::INVAL),
    };
    let stat = fstat(&file)?;
    reply.entry(&entry_of(&stat, path.to_bytes(), b""), Some(file.as_fd()))?;
    Ok(Told::Already)
}

/// Makes a file, or empties the one that is there.
pub(super) fn truncated(path: &CStr, permissions: Mode) -> Result<OwnedFd, Errno> {
    open_or_create(path, TRUNCATE, OFlags::empty(), permissions)
}

/// Makes a file that is not there; nothing that is there is opened.
fn create(path: &CStr, extra: OFlags, permissions: Mode) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
    openat2(CWD, path, flags, permissions, ResolveFlags::NO_MAGICLINKS)
}

fn open_or_create(path: &CStr, mode: u16, extra: OFlags, permissions: Mode) -> Result<OwnedFd, Errno> {
    for _ in 0..TRIES {
        match create(path, extra, permissions) {
            Err(Errno::EXIST) => {}
            outcome => return outcome,
        }
        let named = match look(path, true) {
            // It vanished since, or is a link to nothing.
            Err(Errno::NOENT) => continue,
            outcome => outcome?,
        };
        regular(named.as_fd())?;
        let file = reopen(named.as_fd(), OFlags::WRONLY | extra)?;
        if mode == TRUNCATE {
            // Only now, when it is known to be a regular file.
            ftruncate(&file, 0)?;
        }
        return Ok(file);
    }
    Err(Errno::NOENT)
}

/// A directory and the name of a file in it, which is no link.
struct Settled {
    directory: OwnedFd,
    name: Name<256>,
    /// What is there now.
    there: Option<Stat>,
}

/// Follows links at the end of `path` up to the directory that the file itself is in, or would be.
fn settle(path: &CStr) -> Result<Settled, Errno> {
    let mut from: Option<OwnedFd> = None;
    let mut text = [0; PATH_BYTES];
    let mut len = path.to_bytes().len();
    text.get_mut(..len).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(path.to_bytes());
    for _ in 0..LINKS_MAX {
        let whole = &text[..len];
        let cut = whole.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let (parent, last) = whole.split_at(cut);
        if matches!(last, b"" | b"." | b"..") {
            return Err(Errno::ISDIR);
        }
        let name = Name::<256>::of(&[last]).ok_or(Errno::NAMETOOLONG)?;
        let parent = Name::<PATH_BYTES>::of(&[b"./".get(..2 * usize::from(cut == 0)).unwrap_or(b""), parent]);
        let parent = parent.ok_or(Errno::NAMETOOLONG)?;
        let start = from.as_ref().map_or(CWD, AsFd::as_fd);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat2(start, parent.cstr(), flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
        let there = match statat(&directory, name.cstr(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Settled { directory, name, there: None }),
            Err(errno) => return Err(errno),
        };
        if FileType::from_raw_mode(there.st_mode) != FileType::Symlink {
            return Ok(Settled { directory, name, there: Some(there) });
        }
        let mut target = [MaybeUninit::uninit(); PATH_BYTES - 1];
        let (target, _) = readlinkat_raw(&directory, name.cstr(), &mut target)?;
        len = target.len();
        text[..len].copy_from_slice(target);
        text[len] = 0;
        from = Some(directory);
    }
    Err(Errno::LOOP)
}

fn replace(path: &CStr, permissions: Mode, reply: &mut Reply) -> Result<Told, Errno> {
    let settled = settle(path)?;
    if let Some(there) = &settled.there {
        match FileType::from_raw_mode(there.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Fifo | FileType::Socket => return Err(Errno::SPIPE),
            _ => return Err(Errno::NODEV),
        }
    }
    let beside = unguessable()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&settled.directory, beside.cstr(), flags, Mode::RUSR | Mode::WUSR)?;
    let outcome = fill(&settled, &file, path, permissions, &beside, reply);
    if outcome.is_err() {
        let _ = unlinkat(&settled.directory, beside.cstr(), AtFlags::empty());
    }
    outcome
}

/// Hands the new file over, waits until it is filled, and puts it in its place.
fn fill(
    settled: &Settled,
    file: &OwnedFd,
    path: &CStr,
    permissions: Mode,
    beside: &Name<32>,
    reply: &mut Reply,
) -> Result<Told, Errno> {
    if let Some(there) = &settled.there {
        // Root inside keeps the owner; anybody else's own file is theirs already.
        let _ = fchown(file, Some(Uid::from_raw(there.st_uid)), Some(Gid::from_raw(there.st_gid)));
    }
    // After the change of owner, which may take bits away (chown(2)).
    fchmod(file, settled.there.as_ref().map_or(permissions, |there| Mode::from_raw_mode(there.st_mode & 0o7777)))?;
    reply.entry(&entry_of(&fstat(file)?, path.to_bytes(), b""), Some(file.as_fd()))?;
    let mut word = [0; 1];
    let commits = loop {
        match recv(reply.socket(), &mut word, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => reply.wait_for_word(),
            got => break got == Ok((1, 1)) && word == [1],
        }
    };
    if !commits {
        return Err(Errno::CANCELED);
    }
    renameat(&settled.directory, beside.cstr(), &settled.directory, settled.name.cstr())?;
    Ok(Told::No)
}

/// A name that nobody can guess and so be there before us.
pub(super) fn unguessable() -> Result<Name<32>, Errno> {
    let mut random = [0; 8];
    if getrandom(&mut random, GetRandomFlags::empty())? != random.len() {
        return Err(Errno::IO);
    }
    let mut hex = [0; 16];
    for (index, digit) in hex.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[usize::from(random[index / 2] >> (4 * (index & 1)) & 15)];
    }
    Name::of(&[b".rf-", &hex, b".tmp"]).ok_or(Errno::NAMETOOLONG)
}
