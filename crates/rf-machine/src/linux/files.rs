//! File operations, but for archives and watching. All block; the caller runs them on a thread for that.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Seek, SeekFrom, Write},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rf_types::{Code, Fault, Stat, WriteMode};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};

use super::resolve::{Root, describe, fault, io_fault, proc_path, reopen, show, stat_of};

/// Deepest directory that a listing, an archive or a removal goes into: one descriptor is open for each level.
pub(crate) const DEPTH_MAX: usize = 256;
/// How often a write looks again when the file appears or vanishes while it is being opened.
const TRIES: usize = 100;

/// A regular file from `offset` on, and its description.
pub(crate) fn open_for_reading(root: &Root, path: &str, offset: u64) -> Result<(File, Stat), Fault> {
    let found = root.find(path, true)?;
    let (mut file, stat) = reopen(&found, OFlags::RDONLY, path)?;
    file.seek(SeekFrom::Start(offset)).map_err(|error| io_fault(&error, OsStr::new(path)))?;
    Ok((file, stat_of(&stat, path.to_owned(), None)))
}

/// A file being written.
pub(crate) struct Writing {
    file: File,
    path: OsString,
    /// For a replace: the directory, the name of the new file and the one to give it.
    replaces: Option<(OwnedFd, OsString, OsString)>,
    /// Whether the file has a name already.
    named: bool,
}

impl Writing {
    /// Opens or makes the file.
    pub(crate) fn open(
        root: &Root,
        path: &str,
        mode: WriteMode,
        permissions: u32,
        parents: bool,
    ) -> Result<Self, Fault> {
        let name = OsStr::new(path);
        if mode == WriteMode::Replace {
            return Self::open_beside(root, path, permissions, parents);
        }
        for _ in 0..TRIES {
            if mode != WriteMode::CreateNew {
                match root.find(path, true) {
                    Ok(found) => {
                        let append = if mode == WriteMode::Append { OFlags::APPEND } else { OFlags::empty() };
                        let (file, _) = reopen(&found, OFlags::WRONLY | append, path)?;
                        if mode == WriteMode::Truncate {
                            file.set_len(0).map_err(|error| io_fault(&error, name))?;
                        }
                        return Ok(Self { file, path: name.to_owned(), replaces: None, named: true });
                    }
                    Err(fault) if fault.code == Code::NotFound => {}
                    Err(fault) => return Err(fault),
                }
            }
            let (parent, last) = root.parent(path, parents)?;
            match create(parent.as_fd(), &last, permissions) {
                Ok(file) => return Ok(Self { file, path: name.to_owned(), replaces: None, named: true }),
                // Made by somebody in between, or a link that leads nowhere: look again.
                Err(Errno::EXIST) if mode != WriteMode::CreateNew => {}
                Err(errno) => return Err(fault(errno, name)),
            }
        }
        Err(Fault::new(
            Code::Conflict,
            format!("`{}` is a link that leads nowhere, or appears and vanishes all the time", show(name)),
            "remove the link, or write where it leads",
        ))
    }

    fn open_beside(root: &Root, path: &str, permissions: u32, parents: bool) -> Result<Self, Fault> {
        let name = OsStr::new(path);
        let (parent, last) = root.parent(path, parents)?;
        match rustix::fs::statat(&parent, &last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile | FileType::Symlink => {}
                FileType::Directory => return Err(fault(Errno::ISDIR, name)),
                _ => return Err(Fault::new(Code::FileFailed, format!("`{}` is no regular file", show(name)), "")),
            },
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(fault(errno, name)),
        }
        let beside = OsString::from(format!(".ringfence-{:032x}", rf_types::RequestId::random().bits()));
        // Without a name until its end where the file system can: then nothing is left when this program is killed.
        let (file, named) = match nameless(parent.as_fd(), permissions) {
            Ok(file) => (file, false),
            Err(_) => (create(parent.as_fd(), &beside, permissions).map_err(|errno| fault(errno, name))?, true),
        };
        Ok(Self { file, path: name.to_owned(), replaces: Some((parent, beside, last)), named })
    }

    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all(bytes).map_err(|error| io_fault(&error, &self.path))
    }

    /// Puts the file in its place.
    pub(crate) fn finish(mut self) -> Result<(), Fault> {
        if let Some((parent, beside, last)) = &self.replaces {
            // The content first, then the name: after a crash it is the old file or the whole new one.
            self.file.sync_data().map_err(|error| io_fault(&error, &self.path))?;
            if !self.named {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(rustix::fs::CWD, own, parent, beside, AtFlags::SYMLINK_FOLLOW)
                    .map_err(|errno| fault(errno, &self.path))?;
            }
            rustix::fs::renameat(parent, beside, parent, last).map_err(|errno| fault(errno, &self.path))?;
            self.replaces = None;
        }
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some((parent, beside, _)) = &self.replaces {
            // Best effort: it may be gone by somebody else's hand.
            let _ = rustix::fs::unlinkat(parent, beside, AtFlags::empty());
        }
    }
}

/// Makes a regular file without a name; not every file system can.
fn nameless(parent: BorrowedFd<'_>, permissions: u32) -> Result<File, Errno> {
    let mode = Mode::from_raw_mode(permissions & 0o777);
    let fd = rustix::fs::openat(parent, ".", OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, mode)?;
    rustix::fs::fchmod(&fd, mode)?;
    Ok(File::from(fd))
}

/// Makes a new regular file and nothing else.
pub(crate) fn create(parent: BorrowedFd<'_>, name: &OsStr, permissions: u32) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(permissions & 0o777))?;
    // The bits as asked for, not less what the owner's umask takes away.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(permissions & 0o777))?;
    Ok(File::from(fd))
}

/// Describes one file.
pub(crate) fn stat(root: &Root, path: &str, follow: bool) -> Result<Stat, Fault> {
    describe(root.find(path, follow)?.as_fd(), path.to_owned())
}

/// Makes a directory.
pub(crate) fn make_dir(root: &Root, path: &str, permissions: u32, parents: bool) -> Result<(), Fault> {
    if parents {
        return root.make_all_of(path, permissions & 0o777);
    }
    let (parent, name) = root.parent(path, false)?;
    let mode = Mode::from_raw_mode(permissions & 0o777);
    let make = || {
        rustix::fs::mkdirat(&parent, &name, mode)?;
        // By now the name may be a link's to somewhere else: what gets the bits is a directory, and this very one.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, &name, flags, Mode::empty())?;
        rustix::fs::chmod(proc_path(&made), mode)
    };
    make().map_err(|errno| fault(errno, OsStr::new(path)))
}

/// Renames a file.
pub(crate) fn move_file(root: &Root, from: &str, to: &str, replace: bool) -> Result<(), Fault> {
    let (from_parent, from_name) = root.parent(from, false)?;
    let (to_parent, to_name) = root.parent(to, false)?;
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    rustix::fs::renameat_with(&from_parent, &from_name, &to_parent, &to_name, flags).map_err(|errno| {
        let named = if errno == Errno::NOENT { from } else { to };
        fault(errno, OsStr::new(named))
    })
}

/// Sets permission bits, without opening the file.
pub(crate) fn chmod(root: &Root, path: &str, permissions: u32) -> Result<(), Fault> {
    if permissions & !0o1777 != 0 {
        return Err(Fault::new(
            Code::OwnerForbids,
            format!("set-id bits are not set on a machine (asked for {permissions:o})"),
            "leave out 4000 and 2000",
        ));
    }
    let found = root.find(path, true)?;
    // fchmod(2) does not take a descriptor that was not opened; the link in /proc leads to the same file.
    rustix::fs::chmod(proc_path(&found), Mode::from_raw_mode(permissions))
        .map_err(|errno| fault(errno, OsStr::new(path)))
}

/// Removes a file, or a directory with all in it.
pub(crate) fn remove(root: &Root, path: &str, recursive: bool) -> Result<(), Fault> {
    let (parent, name) = root.parent(path, false)?;
    let stat = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| fault(errno, OsStr::new(path)))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let result = match (directory, recursive) {
        (false, _) => rustix::fs::unlinkat(&parent, &name, AtFlags::empty()),
        (true, false) => rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR),
        (true, true) => remove_tree(parent.as_fd(), &name, 0),
    };
    result.map_err(|errno| fault(errno, OsStr::new(path)))
}

/// Removes directory `name` of `parent`, by descriptors: a rename under way takes no other tree with it.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    if depth >= DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Somebody may add files while we remove: look again a few times, then say that it is not empty.
    for _ in 0..TRIES {
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let entry_name = OsStr::from_bytes(entry.file_name().to_bytes());
            if entry_name == "." || entry_name == ".." {
                continue;
            }
            match rustix::fs::unlinkat(&directory, entry_name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Linux says EISDIR, POSIX EPERM.
                Err(Errno::ISDIR | Errno::PERM) => match remove_tree(directory.as_fd(), entry_name, depth + 1) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            }
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::NOTEMPTY)
}

/// Lists a directory, telling each entry as it is found. Entries that vanish meanwhile are left out.
pub(crate) fn list(
    root: &Root,
    path: &str,
    depth: u32,
    tell: &mut dyn FnMut(&Stat) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let directory = root.directory(path)?;
    let depth = usize::try_from(depth).unwrap_or(usize::MAX).clamp(1, 64);
    list_in(&directory, "", depth, tell)
}

fn list_in(
    directory: &OwnedFd,
    prefix: &str,
    depth: usize,
    tell: &mut dyn FnMut(&Stat) -> Result<(), Fault>,
) -> Result<(), Fault> {
    use std::os::unix::ffi::OsStrExt;
    let failed = |errno| fault(errno, OsStr::new(prefix));
    for entry in Dir::read_from(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(found) = rustix::fs::openat(directory, name, flags, Mode::empty()) else { continue };
        let path = if prefix.is_empty() {
            name.to_string_lossy().into_owned()
        } else {
            format!("{prefix}/{}", name.to_string_lossy())
        };
        let Ok(stat) = describe(found.as_fd(), path) else { continue };
        tell(&stat)?;
        if stat.kind == rf_types::FileKind::Directory && depth > 1 {
            drop(found);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // A directory that the owner cannot read is listed, and not gone into.
            if let Ok(below) = rustix::fs::openat(directory, name, flags, Mode::empty()) {
                list_in(&below, &stat.path, depth - 1, tell)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        sync::atomic::{AtomicBool, Ordering},
    };

    use rf_wire::machine::Level;

    use super::*;

    /// Attack: a directory that was just made is swapped for a link to a file outside, which is to get its bits.
    #[test]
    fn a_new_directorys_bits_go_to_no_file_outside() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let private = outside.path().join("private");
        std::fs::write(&private, "mine").unwrap();
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
        let root = Root::open(inside.path(), Level::Workspace).unwrap();
        let (made, ready, done) = (inside.path().join("made"), inside.path().join("ready"), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    symlink(&private, &ready).unwrap();
                    // The instant it is there it becomes a link.
                    while std::fs::remove_dir(&made).is_err() && !done.load(Ordering::Relaxed) {}
                    std::fs::rename(&ready, &made).or_else(|_| std::fs::remove_file(&ready)).unwrap();
                    std::fs::remove_file(&made).ok();
                }
            });
            let mut swapped = 0;
            for _ in 0..20_000 {
                swapped += u32::from(make_dir(&root, "made", 0o777, false).is_err());
            }
            done.store(true, Ordering::Relaxed);
            assert!(swapped > 0, "control: it was swapped underfoot");
        });
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
