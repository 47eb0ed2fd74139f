//! `REMOVE`: a file, or a tree of any shape, by descriptors.

use core::ffi::CStr;

use rf_sys::guest::{TakeCell, directory_entries};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, fstat, unlinkat},
    io::Errno,
};

use super::{
    open::{Place, directory_at, place_of},
    reply::Reply,
};
use crate::text::Entries;

/// Deepest tree that is removed; chosen. Each level costs 16 bytes, no descriptor.
const DEPTH_MAX: usize = 8192;
/// Steps between two looks at whether anybody still wants it.
const STEPS_BETWEEN_LOOKS: u32 = 512;

static ABOVE: TakeCell<[Place; DEPTH_MAX]> = TakeCell::new([(0, 0); DEPTH_MAX]);

pub(super) fn remove(path: &CStr, recursive: bool, reply: &Reply) -> Result<(), Errno> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        outcome => return outcome,
    }
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => {}
        outcome => return outcome,
    }
    empty(path, reply)?;
    unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

/// What to do after one directory was looked through.
enum Next {
    Into(OwnedFd),
    Up,
}

/// Removes all that is in a directory. Goes down into each directory that is not empty, and up by `..` when it is, but
/// only to the very directory it came from: one that was moved meanwhile ends the operation with `EAGAIN`.
fn empty(path: &CStr, reply: &Reply) -> Result<(), Errno> {
    let above = ABOVE.take().ok_or(Errno::BUSY)?;
    let mut depth = 0;
    let mut steps = 0;
    let mut here = directory_at(CWD, path, false)?;
    loop {
        match clear(&here, reply, &mut steps)? {
            Next::Into(below) => {
                *above.get_mut(depth).ok_or(Errno::NAMETOOLONG)? = place_of(&fstat(&here)?);
                depth += 1;
                here = below;
            }
            Next::Up if depth == 0 => return Ok(()),
            Next::Up => {
                depth -= 1;
                let parent = directory_at(here.as_fd(), c"..", false)?;
                if place_of(&fstat(&parent)?) != above[depth] {
                    return Err(Errno::AGAIN);
                }
                here = parent;
            }
        }
    }
}

/// Removes every entry of a directory, up to the first that is a directory with something in it.
fn clear(here: &OwnedFd, reply: &Reply, steps: &mut u32) -> Result<Next, Errno> {
    // Read anew, from the start: coming back up, all before was removed.
    let fresh = directory_at(here.as_fd(), c".", false)?;
    let mut buffer = [0; 8192];
    loop {
        let len = directory_entries(fresh.as_fd(), &mut buffer)?;
        if len == 0 {
            return Ok(Next::Up);
        }
        for entry in Entries::new(&buffer[..len]) {
            *steps += 1;
            if steps.is_multiple_of(STEPS_BETWEEN_LOOKS) && reply.is_abandoned() {
                return Err(Errno::CANCELED);
            }
            let is_directory = entry.kind == libc::DT_DIR || entry.kind == libc::DT_UNKNOWN;
            if is_directory && let Next::Into(below) = clear_directory(here, entry.name)? {
                return Ok(Next::Into(below));
            }
            if !is_directory {
                unlink(here, entry.name, AtFlags::empty())?;
            }
        }
    }
}

fn clear_directory(here: &OwnedFd, name: &CStr) -> Result<Next, Errno> {
    match unlink(here, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Next::Up),
        Err(Errno::NOTDIR) => unlink(here, name, AtFlags::empty()).map(|()| Next::Up),
        Err(Errno::NOTEMPTY | Errno::EXIST) => match directory_at(here.as_fd(), name, false) {
            Ok(below) if FileType::from_raw_mode(fstat(&below)?.st_mode) == FileType::Directory => {
                Ok(Next::Into(below))
            }
            Ok(_) => Err(Errno::NOTDIR),
            // Put in the directory's place since: a link is removed, not followed.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => unlink(here, name, AtFlags::empty()).map(|()| Next::Up),
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    }
}

/// Removes one name; one that is gone already is removed.
fn unlink(here: &OwnedFd, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(here, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    }
}
