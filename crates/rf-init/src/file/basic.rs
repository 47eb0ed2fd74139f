//! The operations that need no state: describe, list, make, move, set permissions.

use core::{ffi::CStr, mem::MaybeUninit};

use rustix::{
    fd::AsFd,
    fs::{
        AtFlags, CWD, FileType, Mode, RenameFlags, chmodat, fstat, mkdirat, readlinkat_raw, renameat, renameat_with,
        statat,
    },
    io::Errno,
};

use super::{
    across,
    open::{look, path_of},
    reply::{Reply, entry_of},
    walk::{WALK, Walk},
};
use crate::text::Name;

/// Deepest `LIST`; the interface's own bound.
const LIST_DEPTH_MAX: u32 = 64;
/// Most entries of one `LIST`; chosen.
const ENTRIES_MAX: u32 = 1_000_000;

/// `STAT`.
pub(super) fn stat(path: &CStr, follow: bool, reply: &mut Reply) -> Result<(), Errno> {
    let file = look(path, follow)?;
    let stat = fstat(&file)?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let target: &[u8] = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        readlinkat_raw(&file, c"", &mut buffer)?.0
    } else {
        b""
    };
    reply.entry(&entry_of(&stat, path.to_bytes(), target), None)
}

/// `LIST`: every entry before those below it; a directory that may not be read, or vanishes, has none.
pub(super) fn list(path: &CStr, depth: u32, reply: &mut Reply) -> Result<(), Errno> {
    let walk: &mut Walk = WALK.take().ok_or(Errno::BUSY)?;
    walk.begin(path)?;
    let depth = depth.clamp(1, LIST_DEPTH_MAX) as usize;
    let mut count = 0;
    while walk.step()? {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(Errno::TOOBIG);
        }
        let (directory, name) = walk.at()?;
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut target: &[u8] = b"";
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink
            && let Ok((link, _)) = readlinkat_raw(directory, name, &mut buffer)
        {
            target = link;
        }
        reply.entry(&entry_of(&stat, walk.path(), target), None)?;
        if kind == FileType::Directory && walk.depth() < depth {
            match walk.descend() {
                Ok(()) | Err(Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// `MAKE_DIR`.
pub(super) fn make_dir(path: &CStr, permissions: Mode, parents: bool) -> Result<(), Errno> {
    if !parents {
        return mkdirat(CWD, path, permissions);
    }
    make_parents(path)?;
    match mkdirat(CWD, path, permissions) {
        Err(Errno::EXIST) => {
            let is_directory = FileType::from_raw_mode(fstat(look(path, true)?)?.st_mode) == FileType::Directory;
            if is_directory { Ok(()) } else { Err(Errno::EXIST) }
        }
        outcome => outcome,
    }
}

/// Makes every directory above the last part of `path`.
pub(super) fn make_parents(path: &CStr) -> Result<(), Errno> {
    let whole = path.to_bytes();
    let end = whole.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    for (at, _) in whole[..end].iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0) {
        let part = Name::<4096>::of(&[&whole[..at]]).ok_or(Errno::NAMETOOLONG)?;
        match mkdirat(CWD, part.cstr(), Mode::from_raw_mode(0o755)) {
            // Whatever is there: if it is no directory, the next step says so. A read-only file system says so for
            // directories that are there.
            Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// `MOVE`.
pub(super) fn rename(from: &CStr, to: &CStr, replace: bool) -> Result<(), Errno> {
    let outcome = if replace {
        renameat(CWD, from, CWD, to)
    } else {
        // Atomic: nothing can come between the look and the rename.
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
    };
    match outcome {
        Err(Errno::XDEV) => across::rename(from, to, replace),
        outcome => outcome,
    }
}

/// `CHMOD`; a link at the end is followed.
pub(super) fn chmod(path: &CStr, permissions: Mode) -> Result<(), Errno> {
    let file = look(path, true)?;
    chmodat(CWD, path_of(file.as_fd())?.cstr(), permissions, AtFlags::empty())
}
