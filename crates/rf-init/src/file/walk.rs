//! Going through a tree of directories by descriptors, with a bound on depth, and without recursion.

use core::ffi::CStr;

use rf_sys::guest::{FdSlot, TakeCell, cstr, directory_entries};
use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

use super::open::directory_at;
use crate::text::Entries;

/// Most directories inside each other that are gone through; chosen. Each holds one descriptor.
pub(super) const DEPTH_MAX: usize = 128;
/// Longest path below the top.
const PATH_MAX: usize = 4096;

/// One directory that is being gone through.
#[derive(Debug)]
struct Level {
    directory: FdSlot,
    /// The entry in hand begins at `at` and the next at `next`; the buffer is filled up to `end`.
    at: usize,
    next: usize,
    end: usize,
    /// Length of the directory's own path.
    path_len: usize,
    entries: [u8; 4096],
}

/// A walk; all zero before it begins.
#[derive(Debug)]
pub(super) struct Walk {
    levels: [Level; DEPTH_MAX],
    depth: usize,
    path: [u8; PATH_MAX],
    path_len: usize,
}

/// The one walk that a helper makes.
pub(super) static WALK: TakeCell<Walk> = TakeCell::new(Walk {
    levels: [const { Level { directory: FdSlot::EMPTY, at: 0, next: 0, end: 0, path_len: 0, entries: [0; 4096] } };
        DEPTH_MAX],
    depth: 0,
    path: [0; PATH_MAX],
    path_len: 0,
});

impl Walk {
    /// Begins with the entries of a directory; a link to one is followed.
    pub(super) fn begin(&mut self, top: &CStr) -> Result<(), Errno> {
        let directory = directory_at(CWD, top, true)?;
        self.enter(FdSlot::of(directory))
    }

    /// Leaves whatever it was in and begins anew. Here a link that the kernel made for a descriptor of ours is followed.
    pub(super) fn restart(&mut self, descriptor: &CStr) -> Result<(), Errno> {
        while self.depth > 0 {
            self.depth -= 1;
            self.levels[self.depth].directory = FdSlot::EMPTY;
        }
        self.path_len = 0;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, descriptor, flags, Mode::empty()) {
            // It may not be read: then it has no entries.
            Err(Errno::ACCESS) => Ok(()),
            outcome => self.enter(FdSlot::of(outcome?)),
        }
    }

    fn enter(&mut self, directory: FdSlot) -> Result<(), Errno> {
        let level = self.levels.get_mut(self.depth).ok_or(Errno::NAMETOOLONG)?;
        (level.at, level.next, level.end, level.path_len) = (0, 0, 0, self.path_len);
        level.directory = directory;
        self.depth += 1;
        Ok(())
    }

    /// Goes to the next entry; false at the end of the walk.
    ///
    /// # Errors
    /// `ENAMETOOLONG` when a path is longer than the kernel would take.
    pub(super) fn step(&mut self) -> Result<bool, Errno> {
        while let Some(level) = self.depth.checked_sub(1).map(|index| &mut self.levels[index]) {
            if level.next >= level.end {
                let Some(directory) = level.directory.get() else { return Err(Errno::BADF) };
                level.end = match directory_entries(directory, &mut level.entries) {
                    // It was removed meanwhile.
                    Err(Errno::NOENT) => 0,
                    outcome => outcome?,
                };
                level.next = 0;
                if level.end == 0 {
                    level.directory = FdSlot::EMPTY;
                    self.depth -= 1;
                    continue;
                }
            }
            let mut entries = Entries::new(&level.entries[level.next..level.end]);
            let before = entries.rest();
            let Some(entry) = entries.next() else {
                level.next = level.end;
                continue;
            };
            // `.` and `..` before it are stepped over as well.
            let stepped = before - entries.rest();
            level.at = level.next + stepped - entry.len;
            level.next += stepped;
            let (mut len, name) = (level.path_len, entry.name.to_bytes());
            if len > 0 {
                *self.path.get_mut(len).ok_or(Errno::NAMETOOLONG)? = b'/';
                len += 1;
            }
            self.path.get_mut(len..len + name.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name);
            self.path_len = len + name.len();
            return Ok(true);
        }
        Ok(false)
    }

    /// The directory and name of the entry in hand.
    pub(super) fn at(&self) -> Result<(BorrowedFd<'_>, &CStr), Errno> {
        let level = self.depth.checked_sub(1).map(|index| &self.levels[index]).ok_or(Errno::BADF)?;
        // 19 bytes of inode, offset, length and kind come before the name (getdents(2)).
        Ok((level.directory.get().ok_or(Errno::BADF)?, cstr(&level.entries[level.at + 19..level.next])))
    }

    /// The path of the entry in hand, below the top.
    pub(super) fn path(&self) -> &[u8] {
        &self.path[..self.path_len]
    }

    /// How deep the entry in hand is: 1 at the top.
    pub(super) const fn depth(&self) -> usize {
        self.depth
    }

    /// Goes on with the entries of the directory in hand.
    ///
    /// # Errors
    /// `ELOOP` or `ENOTDIR` when it is another thing by now; `ENAMETOOLONG` when it is too deep.
    pub(super) fn descend(&mut self) -> Result<(), Errno> {
        self.descend_if(|_| true)
    }

    /// [`Walk::descend`], but only into a directory that passes.
    pub(super) fn descend_if(&mut self, passes: impl Fn(BorrowedFd<'_>) -> bool) -> Result<(), Errno> {
        let (parent, name) = self.at()?;
        let directory = directory_at(parent, name, false)?;
        if passes(directory.as_fd()) { self.enter(FdSlot::of(directory)) } else { Ok(()) }
    }
}
