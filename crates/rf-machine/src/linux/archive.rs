//! Trees as tar archives, in and out, by descriptors. All block.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rf_types::{Code, Fault, FileKind};
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};
use tar::{Archive, Builder, EntryType, Header};

use super::{
    files::{DEPTH_MAX, create},
    resolve::{Root, beneath, fault, io_fault, kind_of, proc_path, reopen, show},
};

/// Directories whose permission bits are set once all is unpacked; those beyond keep bits with which the owner can
/// write. Chosen to bound memory.
const DIRECTORIES_MAX: usize = 100_000;

/// Writes the file or tree at `path` as an archive. Names in it are relative; what is no file, directory or link is
/// left out.
pub(crate) fn write_archive(root: &Root, path: &str, out: impl Write) -> Result<(), Fault> {
    let found = root.find(path, true)?;
    let stat = rustix::fs::fstat(&found).map_err(|errno| fault(errno, OsStr::new(path)))?;
    let mut builder = Builder::new(out);
    match kind_of(&stat) {
        FileKind::Directory => {
            let directory = root.directory(path)?;
            add_tree(&mut builder, &directory, Path::new(""), 0)?;
        }
        FileKind::File => {
            let name = Path::new(path).file_name().unwrap_or(OsStr::new("file"));
            add_file(&mut builder, &found, Path::new(name))?;
        }
        FileKind::Symlink | FileKind::Special => {
            let message = format!("`{}` is no file or directory", show(OsStr::new(path)));
            return Err(Fault::new(Code::FileFailed, message, ""));
        }
    }
    builder.into_inner().and_then(|mut out| out.flush()).map_err(|error| io_fault(&error, OsStr::new(path)))
}

fn add_tree<W: Write>(builder: &mut Builder<W>, directory: &OwnedFd, prefix: &Path, depth: usize) -> Result<(), Fault> {
    let failed = |errno| fault(errno, prefix.as_os_str());
    if depth >= DEPTH_MAX {
        return Err(failed(Errno::LOOP));
    }
    for entry in Dir::read_from(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let path = prefix.join(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(found) => found,
            // Gone meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(fault(errno, path.as_os_str())),
        };
        let stat = rustix::fs::fstat(&found).map_err(failed)?;
        match kind_of(&stat) {
            FileKind::File => add_file(builder, &found, &path)?,
            FileKind::Symlink => {
                let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(failed)?;
                let mut header = header_of(&stat, EntryType::Symlink, 0);
                builder
                    .append_link(&mut header, &path, OsStr::from_bytes(target.as_bytes()))
                    .map_err(|error| io_fault(&error, path.as_os_str()))?;
            }
            FileKind::Directory => {
                let mut header = header_of(&stat, EntryType::Directory, 0);
                builder
                    .append_data(&mut header, &path, io::empty())
                    .map_err(|error| io_fault(&error, path.as_os_str()))?;
                drop(found);
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Ok(below) => add_tree(builder, &below, &path, depth + 1)?,
                    // Gone, or another file by now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(fault(errno, path.as_os_str())),
                }
            }
            FileKind::Special => {}
        }
    }
    Ok(())
}

fn add_file<W: Write>(builder: &mut Builder<W>, found: &OwnedFd, path: &Path) -> Result<(), Fault> {
    let (file, stat) = reopen(found, OFlags::RDONLY, &path.to_string_lossy())?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut header = header_of(&stat, EntryType::Regular, size);
    // A file that changes its size meanwhile must not bring the archive out of step.
    let exactly = file.chain(io::repeat(0)).take(size);
    builder.append_data(&mut header, path, exactly).map_err(|error| io_fault(&error, path.as_os_str()))
}

fn header_of(stat: &rustix::fs::Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

/// Unpacks an archive into the directory at `path`, which is made if missing. Every entry is resolved beneath that
/// directory through no link, whatever links the archive itself brings.
pub(crate) fn read_archive(root: &Root, path: &str, input: impl Read) -> Result<(), Fault> {
    match root.make_all_of(path, 0o755) {
        // It is there, perhaps as a link to a directory.
        Ok(()) => {}
        Err(fault) if fault.code == Code::Conflict => {}
        Err(fault) => return Err(fault),
    }
    let base = root.directory(path)?;
    let mut archive = Archive::new(input);
    let mut directories = Vec::new();
    let unreadable = |error: io::Error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
        Some(fault) => fault.clone(),
        None => Fault::invalid(format!("the archive cannot be read: {error}")),
    };
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let name = entry.path().map_err(unreadable)?.into_owned();
        let place = inside(&name)?;
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        if place.as_os_str().is_empty() {
            // The directory itself.
            continue;
        }
        let (parent, last) = parent_of(base.as_fd(), &place)?;
        let failed = |errno| fault(errno, place.as_os_str());
        match kind {
            EntryType::Directory => {
                match rustix::fs::mkdirat(&parent, &last, Mode::from_raw_mode(mode | 0o700)) {
                    Ok(()) => {}
                    // Also refuses a link to a directory.
                    Err(Errno::EXIST) => drop(beneath(base.as_fd(), &place, OFlags::PATH | OFlags::DIRECTORY)?),
                    Err(errno) => return Err(failed(errno)),
                }
                if directories.len() < DIRECTORIES_MAX {
                    directories.push((place, mode));
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(parent.as_fd(), &last).map_err(failed)?;
                let mut file = create(parent.as_fd(), &last, mode).map_err(failed)?;
                io::copy(&mut entry, &mut file).map_err(|error| {
                    match error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
                        Some(fault) => fault.clone(),
                        None => io_fault(&error, place.as_os_str()),
                    }
                })?;
                let seconds = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
                let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
                rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
                    .map_err(failed)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| Fault::invalid("a link without a target"))?;
                clear(parent.as_fd(), &last).map_err(failed)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, &last).map_err(failed)?;
            }
            EntryType::Link => {
                let target =
                    entry.link_name().map_err(unreadable)?.ok_or_else(|| Fault::invalid("a link without a target"))?;
                // Found without a link first; then linked by the descriptor, so it is that very file.
                let target = beneath(base.as_fd(), &inside(&target)?, OFlags::PATH | OFlags::NOFOLLOW)?;
                clear(parent.as_fd(), &last).map_err(failed)?;
                rustix::fs::linkat(rustix::fs::CWD, proc_path(&target), &parent, &last, AtFlags::SYMLINK_FOLLOW)
                    .map_err(failed)?;
            }
            _ => {
                return Err(Fault::invalid(format!(
                    "entry `{}` of the archive is no file, directory or link",
                    show(name.as_os_str())
                )));
            }
        }
    }
    for (place, mode) in directories.into_iter().rev() {
        let directory = beneath(base.as_fd(), &place, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(|errno| fault(errno, place.as_os_str()))?;
    }
    Ok(())
}

/// An entry's path without `.` and a leading `/`; refused with `..`.
fn inside(name: &Path) -> Result<PathBuf, Fault> {
    let mut place = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => place.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let name = show(name.as_os_str());
                return Err(Fault::invalid(format!("entry `{name}` of the archive would leave the directory")));
            }
        }
    }
    Ok(place)
}

/// The directory of `place`, made if missing, and the last name.
fn parent_of(base: BorrowedFd<'_>, place: &Path) -> Result<(OwnedFd, std::ffi::OsString), Fault> {
    let last = place.file_name().ok_or_else(|| Fault::invalid("an entry of the archive has no name"))?.to_owned();
    let parent = place.parent().unwrap_or(Path::new(""));
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match beneath(base, parent, flags) {
        Err(fault) if fault.code == Code::NotFound => {}
        found => return found.map(|fd| (fd, last)),
    }
    let mut so_far = PathBuf::new();
    for part in parent {
        let at = beneath(base, &so_far, flags)?;
        so_far.push(part);
        match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fault(errno, so_far.as_os_str())),
        }
    }
    beneath(base, parent, flags).map(|fd| (fd, last))
}

/// Takes a file that is there out of the way; a directory stays and makes the next step fail.
fn clear(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
