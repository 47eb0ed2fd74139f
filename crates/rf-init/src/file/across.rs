//! Moving a file to where the kernel cannot rename it to: another mount (rename(2), `EXDEV`).

use core::{ffi::CStr, mem::MaybeUninit};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod,
        fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, openat, renameat, renameat_with, sendfile, unlinkat,
    },
    io::Errno,
};

use super::{
    open::{directory_at, look, place_of, regular, reopen},
    write::unguessable,
};
use crate::text::Name;

/// Most bytes that one call copies; a chunk, so that a kill is heeded in between.
const CHUNK: usize = 64 << 20;
/// Longest list of names, longest name and longest value of an attribute that is taken along; xattr(7) allows 64 KiB of
/// each, and process 1's helpers have small stacks.
const NAMES_MAX: usize = 4096;
const NAME_MAX: usize = 256;
const VALUE_MAX: usize = 4096;
/// The attributes that anybody may have; xattr(7).
const PREFIX: &[u8] = b"user.";

/// Copies a regular file beside its new name, gives it that name, and removes the old one. Whoever looks at the new name
/// sees the whole file or what was there; killed in between, the file has both names.
///
/// # Errors
/// What the kernel says of removing the old name, before anything is changed; `EXDEV` for what is no regular file; `E2BIG`
/// where its attributes are more than can be taken along.
pub(super) fn rename(from: &CStr, to: &CStr, replace: bool) -> Result<(), Errno> {
    let named = look(from, false)?;
    if FileType::from_raw_mode(fstat(&named)?.st_mode) != FileType::RegularFile {
        return Err(Errno::XDEV);
    }
    let stat = regular(named.as_fd())?;
    let source = reopen(named.as_fd(), OFlags::RDONLY)?;
    let whole = to.to_bytes();
    let (parent, last) = whole.split_at(whole.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1));
    if matches!(last, b"" | b"." | b"..") {
        return Err(Errno::NOTDIR);
    }
    let parent = Name::<4096>::of(&[if parent.is_empty() { b"." } else { parent }]).ok_or(Errno::NAMETOOLONG)?;
    let last = Name::<NAME_MAX>::of(&[last]).ok_or(Errno::NAMETOOLONG)?;
    let directory = directory_at(CWD, parent.cstr(), true)?;
    may_remove(from)?;
    let beside = unguessable()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = openat(&directory, beside.cstr(), flags, Mode::RUSR | Mode::WUSR)?;
    let outcome = copy(&source, &stat, &target).and_then(|()| {
        if replace {
            renameat(&directory, beside.cstr(), &directory, last.cstr())
        } else {
            renameat_with(&directory, beside.cstr(), &directory, last.cstr(), RenameFlags::NOREPLACE)
        }
    });
    if outcome.is_err() {
        let _ = unlinkat(&directory, beside.cstr(), AtFlags::empty());
        return outcome;
    }
    match look(from, false).and_then(fstat) {
        Ok(now) if place_of(&now) == place_of(&stat) => unlinkat(CWD, from, AtFlags::empty()),
        // Another file that has the name by now stays.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Whether the name of a file may be removed. Asked before, since what is replaced by then is lost.
///
/// As a directory: that a file is none is the last that the kernel looks at (fs/namei.c, `may_delete`).
fn may_remove(file: &CStr) -> Result<(), Errno> {
    match unlinkat(CWD, file, AtFlags::REMOVEDIR) {
        Err(Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno),
        // An empty directory had the name by now.
        Ok(()) => Err(Errno::XDEV),
    }
}

/// Content, owner, mode, attributes and times.
fn copy(source: &OwnedFd, stat: &Stat, target: &OwnedFd) -> Result<(), Errno> {
    // copy_file_range(2) refuses two kinds of file system.
    while sendfile(target, source, None, CHUNK)? > 0 {}
    let mut names = [MaybeUninit::uninit(); NAMES_MAX];
    let names: &[u8] = match flistxattr(source, &mut names) {
        Ok((names, _)) => names,
        Err(Errno::OPNOTSUPP) => b"",
        Err(Errno::RANGE) => return Err(Errno::TOOBIG),
        Err(errno) => return Err(errno),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| name.starts_with(PREFIX)) {
        let name = Name::<NAME_MAX>::of(&[name]).ok_or(Errno::TOOBIG)?;
        let mut value = [MaybeUninit::uninit(); VALUE_MAX];
        let (value, _) = fgetxattr(source, name.cstr(), &mut value).map_err(|errno| match errno {
            Errno::RANGE => Errno::TOOBIG,
            errno => errno,
        })?;
        fsetxattr(target, name.cstr(), value, XattrFlags::empty())?;
    }
    // Root inside keeps the owner; anybody else's copy is theirs.
    let _ = fchown(target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    // After the change of owner, which may take bits away (chown(2)).
    fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    futimens(
        target,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}
