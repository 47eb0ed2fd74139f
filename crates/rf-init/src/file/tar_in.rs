//! `TAR_IN`: unpacks an archive below a directory.
//!
//! The archive is a stranger's. Every path is resolved below the target and cannot leave it: by `..`, by an absolute
//! path, or by a link that the archive itself or the workload made (`RESOLVE_BENEATH`, openat2(2)). Files, directories,
//! symbolic links and hard links are made; devices, FIFOs, sparse files and anything unknown end it. What is there is
//! replaced, directories excepted. Everything belongs to the user that unpacks.

use core::ffi::CStr;

use rf_sys::guest::{TakeCell, cstr};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, linkat, mkdirat,
        openat, openat2, symlinkat, unlinkat,
    },
    io::{Errno, write},
};

use super::{
    Told, basic,
    open::{directory_at, path_of},
    reply::Reply,
    tar::{self, BLOCK, LINK, MAGIC, MODE, MTIME, NAME, PREFIX, SIZE, SUM, TYPE, get, number, padding, record, sum},
};
use crate::text::Name;

/// Longest path or link target, without its NUL.
const PATH_MAX: usize = 4095;
/// Longest extended header; chosen: two paths and room to spare.
const RECORDS_MAX: u64 = 32 * 1024;
/// Longest header for the whole archive, which is passed over.
const GLOBAL_MAX: u64 = 1024 * 1024;
/// Most entries of an archive; chosen. The disk's own quota ends most archives earlier.
const ENTRIES_MAX: u32 = 10_000_000;
/// Most bytes after the end of the archive, which are passed over: tar(1) fills up to 10,240.
const TRAILER_MAX: u64 = 1024 * 1024;
/// How often a path is resolved anew when a rename went on meanwhile (openat2(2), EAGAIN).
const TRIES: usize = 32;

/// A path of the archive, from a header or a record before it.
struct Path {
    bytes: [u8; PATH_MAX + 1],
    len: usize,
    is_set: bool,
}

impl Path {
    const EMPTY: Self = Self { bytes: [0; PATH_MAX + 1], len: 0, is_set: false };

    fn set(&mut self, parts: &[&[u8]]) -> Result<(), Errno> {
        let mut len = 0;
        for part in parts {
            if part.contains(&0) {
                return Err(Errno::INVAL);
            }
            let space = self.bytes[..PATH_MAX].get_mut(len..len + part.len()).ok_or(Errno::NAMETOOLONG)?;
            space.copy_from_slice(part);
            len += part.len();
        }
        self.bytes[len] = 0;
        self.len = len;
        self.is_set = true;
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What is at hand while an archive is read.
struct Work {
    buffer: [u8; 64 * 1024],
    path: Path,
    link: Path,
}

static WORK: TakeCell<Work> = TakeCell::new(Work { buffer: [0; 64 * 1024], path: Path::EMPTY, link: Path::EMPTY });

struct Unpack {
    pipe: OwnedFd,
    root: OwnedFd,
    work: &'static mut Work,
    /// From an extended header, for the next entry only.
    size: Option<u64>,
    modified: Option<(u64, u32)>,
}

pub(super) fn tar_in(path: &CStr, pipe: OwnedFd, reply: &mut Reply) -> Result<Told, Errno> {
    basic::make_dir(path, Mode::from_raw_mode(0o755), true)?;
    let root = directory_at(CWD, path, true)?;
    let work = WORK.take().ok_or(Errno::BUSY)?;
    let mut unpack = Unpack { pipe, root, work, size: None, modified: None };
    match unpack.all() {
        Ok(()) => Ok(Told::No),
        Err(errno) => {
            reply.failed(errno, unpack.work.path.bytes());
            Ok(Told::Already)
        }
    }
}

impl Unpack {
    fn all(&mut self) -> Result<(), Errno> {
        let mut header = [0; BLOCK];
        for _ in 0..ENTRIES_MAX {
            if !self.block(&mut header)? {
                // Without the two empty blocks: some writers leave them out.
                return Ok(());
            }
            if header.iter().all(|byte| *byte == 0) {
                return self.drain();
            }
            self.entry(&header)?;
        }
        Err(Errno::TOOBIG)
    }

    /// Reads a block; false at the end of the pipe.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Errno> {
        let mut filled = 0;
        while filled < BLOCK {
            match get(&self.pipe, &mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(Errno::INVAL),
                len => filled += len,
            }
        }
        Ok(true)
    }

    /// Reads exactly so much into the buffer.
    fn fill(&mut self, len: usize) -> Result<(), Errno> {
        let mut filled = 0;
        while filled < len {
            let space = self.work.buffer.get_mut(filled..len).ok_or(Errno::TOOBIG)?;
            match get(&self.pipe, space)? {
                0 => return Err(Errno::INVAL),
                got => filled += got,
            }
        }
        Ok(())
    }

    fn skip(&mut self, mut len: u64) -> Result<(), Errno> {
        while len > 0 {
            let piece = len.min(self.work.buffer.len() as u64);
            self.fill(piece as usize)?;
            len -= piece;
        }
        Ok(())
    }

    /// Reads what follows the end, so that who writes it does not see a broken pipe.
    fn drain(&mut self) -> Result<(), Errno> {
        let mut left = TRAILER_MAX;
        while left > 0 {
            match get(&self.pipe, &mut self.work.buffer)? {
                0 => return Ok(()),
                len => left = left.saturating_sub(len as u64),
            }
        }
        Err(Errno::TOOBIG)
    }

    fn entry(&mut self, header: &[u8; BLOCK]) -> Result<(), Errno> {
        if number(&header[SUM]) != Some(sum(header)) {
            return Err(Errno::INVAL);
        }
        let size = number(&header[SIZE]).ok_or(Errno::INVAL)?;
        match header[TYPE] {
            b'x' => return self.records(size),
            b'g' if size <= GLOBAL_MAX => return self.skip(size + padding(size)),
            b'L' | b'K' => return self.long_name(header[TYPE], size),
            _ => {}
        }
        if !self.work.path.is_set {
            let name = tar::text(&header[NAME]);
            // GNU's magic ("ustar  ") has other things where the prefix would be.
            let prefix = if header[MAGIC].starts_with(b"ustar\0") { tar::text(&header[PREFIX]) } else { b"" };
            let slash: &[u8] = if prefix.is_empty() { b"" } else { b"/" };
            self.work.path.set(&[prefix, slash, name])?;
        }
        if !self.work.link.is_set {
            self.work.link.set(&[tar::text(&header[LINK])])?;
        }
        let size = self.size.take().unwrap_or(size);
        let modified = self.modified.take().or_else(|| number(&header[MTIME]).map(|seconds| (seconds, 0)));
        let mode = Mode::from_raw_mode(number(&header[MODE]).ok_or(Errno::INVAL)? as u32 & 0o7777);
        let kind = header[TYPE];
        self.make(kind, size, mode, modified)?;
        self.work.path.is_set = false;
        self.work.link.is_set = false;
        Ok(())
    }

    /// An extended header for the next entry.
    fn records(&mut self, size: u64) -> Result<(), Errno> {
        if size > RECORDS_MAX {
            return Err(Errno::TOOBIG);
        }
        self.fill(size as usize)?;
        let Work { buffer, path, link } = &mut *self.work;
        let mut rest = &buffer[..size as usize];
        while !rest.is_empty() {
            let (key, value, after) = record(rest).ok_or(Errno::INVAL)?;
            match key {
                b"path" => path.set(&[value])?,
                b"linkpath" => link.set(&[value])?,
                b"size" => self.size = Some(tar::decimal(value).ok_or(Errno::INVAL)?),
                b"mtime" => {
                    self.modified = tar::time(value);
                }
                _ if key.starts_with(b"GNU.sparse.") => return Err(Errno::OPNOTSUPP),
                _ => {}
            }
            rest = after;
        }
        self.skip(padding(size))
    }

    /// GNU's way: the next entry's name (`L`) or link (`K`) as the content of an entry of its own.
    fn long_name(&mut self, kind: u8, size: u64) -> Result<(), Errno> {
        if size > PATH_MAX as u64 + 1 {
            return Err(Errno::NAMETOOLONG);
        }
        self.fill(size as usize)?;
        let Work { buffer, path, link } = &mut *self.work;
        let text = tar::text(&buffer[..size as usize]);
        if kind == b'L' {
            path.set(&[text])?
        } else {
            link.set(&[text])?
        };
        self.skip(padding(size))
    }

    fn make(&mut self, kind: u8, size: u64, mode: Mode, modified: Option<(u64, u32)>) -> Result<(), Errno> {
        // Old archives mark a directory by its slash alone.
        let is_directory = kind == b'5' || (matches!(kind, 0 | b'0') && self.work.path.bytes().ends_with(b"/"));
        let has_content = matches!(kind, 0 | b'0' | b'7') && !is_directory;
        if !has_content && size != 0 {
            // POSIX allows a size on some other types, without a content that follows: nobody writes it, and readers
            // disagree on what comes next.
            return Err(Errno::INVAL);
        }
        if !(has_content || is_directory || matches!(kind, b'1' | b'2')) {
            return Err(if matches!(kind, b'3' | b'4' | b'6') { Errno::PERM } else { Errno::OPNOTSUPP });
        }
        let (parent_len, name) = split(self.work.path.bytes())?;
        let Some(name) = name else {
            // The target itself: it is there.
            return if is_directory { Ok(()) } else { Err(Errno::INVAL) };
        };
        let parent = self.parent(parent_len)?;
        if is_directory {
            return make_directory(&parent, name.cstr(), mode);
        }
        if has_content {
            return self.file(&parent, name.cstr(), size, mode, modified);
        }
        if kind == b'2' {
            // Any target: it leads nowhere but inside the sandbox, and no later entry goes through it to outside.
            let target = cstr(&self.work.link.bytes);
            return replacing(&parent, name.cstr(), || symlinkat(target, &parent, name.cstr()));
        }
        // A hard link: its target is a path of the archive.
        let (target_parent, target) = split(self.work.link.bytes())?;
        let target = target.ok_or(Errno::INVAL)?;
        let from = directory_of(self.root.as_fd(), &self.work.link.bytes()[..target_parent])?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&from, target.cstr(), flags, Mode::empty())?;
        let file = path_of(file.as_fd()).map(|path| (path, file))?;
        let follow = AtFlags::SYMLINK_FOLLOW;
        replacing(&parent, name.cstr(), || linkat(CWD, file.0.cstr(), &parent, name.cstr(), follow))
    }

    /// Opens the directory that the entry goes into, making it and those above it where they are missing.
    fn parent(&self, len: usize) -> Result<OwnedFd, Errno> {
        let path = &self.work.path.bytes()[..len];
        match directory_of(self.root.as_fd(), path) {
            Err(Errno::NOENT) => {}
            outcome => return outcome,
        }
        let mut ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut last = 0;
        loop {
            let (end, is_last) = ends.next().map_or((len, true), |end| (end, false));
            let part = path[last..end].rsplit(|byte| *byte == b'/').next().unwrap_or(b"");
            if !matches!(part, b"" | b".") {
                let parent = directory_of(self.root.as_fd(), &path[..last])?;
                let name = Name::<256>::of(&[part]).ok_or(Errno::NAMETOOLONG)?;
                match mkdirat(&parent, name.cstr(), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            last = end;
            if is_last {
                return directory_of(self.root.as_fd(), path);
            }
        }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        size: u64,
        mode: Mode,
        modified: Option<(u64, u32)>,
    ) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = None;
        replacing(parent, name, || openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map(|fd| file = Some(fd)))?;
        let file = file.ok_or(Errno::IO)?;
        let mut left = size;
        while left > 0 {
            let piece = left.min(self.work.buffer.len() as u64) as usize;
            let got = get(&self.pipe, &mut self.work.buffer[..piece])?;
            if got == 0 {
                return Err(Errno::INVAL);
            }
            let mut bytes = &self.work.buffer[..got];
            while !bytes.is_empty() {
                match write(&file, bytes) {
                    Ok(0) => return Err(Errno::NOSPC),
                    Ok(len) => bytes = &bytes[len..],
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            left -= got as u64;
        }
        fchmod(&file, mode)?;
        if let Some((Ok(seconds), nanos)) = modified.map(|(seconds, nanos)| (i64::try_from(seconds), nanos)) {
            let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
            futimens(
                &file,
                &Timestamps { last_access, last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() } },
            )?;
        }
        self.skip(padding(size))
    }
}

/// Where the last part of an archive's path begins, and that part; none for the target itself.
///
/// # Errors
/// `EXDEV` for an absolute path or one with `..`.
fn split(path: &[u8]) -> Result<(usize, Option<Name<256>>), Errno> {
    if path.starts_with(b"/") || path.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err(Errno::XDEV);
    }
    let mut end = path.len();
    loop {
        let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        match &path[start..end] {
            b"" | b"." if start == 0 => return Ok((0, None)),
            b"" | b"." => end = start - 1,
            part => return Ok((start, Some(Name::of(&[part]).ok_or(Errno::NAMETOOLONG)?))),
        }
    }
}

/// Opens a directory below `root`, never above it.
fn directory_of(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let path = Name::<{ PATH_MAX + 1 }>::of(&[path]).ok_or(Errno::NAMETOOLONG)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(root, path.cstr(), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            outcome => return outcome,
        }
    }
    Err(Errno::AGAIN)
}

/// Makes a directory, or takes the one that is there; a link to one as well, for it was resolved by who made it.
fn make_directory(parent: &OwnedFd, name: &CStr, mode: Mode) -> Result<(), Errno> {
    // Others of the archive must get into it, whatever its own permissions.
    let mode = mode | Mode::RWXU;
    match mkdirat(parent, name, mode) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => directory_of(parent.as_fd(), name.to_bytes()).map(drop),
        Err(errno) => Err(errno),
    }
}

/// Makes something where another thing, but no directory, may be.
fn replacing(parent: &OwnedFd, name: &CStr, mut make: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    for _ in 0..TRIES {
        match make() {
            Err(Errno::EXIST) => match unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            },
            outcome => return outcome,
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_below_the_target_or_refused() {
        let split = |path: &[u8]| split(path).map(|(at, name)| (at, name.map(|name| name.cstr().to_owned())));
        assert_eq!(split(b"a/b/c"), Ok((4, Some(c"c".to_owned()))));
        assert_eq!(split(b"./a"), Ok((2, Some(c"a".to_owned()))));
        assert_eq!(split(b"a/b/./"), Ok((2, Some(c"b".to_owned()))));
        for top in [&b""[..], b".", b"./", b"././"] {
            assert_eq!(split(top), Ok((0, None)));
        }
        for bad in [&b"/etc/passwd"[..], b"..", b"a/../../b", b"../x", b"a/..", b"//x"] {
            assert_eq!(split(bad), Err(Errno::XDEV), "{}", bad.escape_ascii());
        }
        assert_eq!(split(b"...").map(|(at, _)| at), Ok(0));
    }
}
