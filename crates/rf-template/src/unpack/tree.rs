//! Makes an archive's things beneath a directory, and nowhere else.
//!
//! A path is followed part by part by [`Tree::dir`], which never follows a link by the kernel: it reads a link's text
//! and walks that, as if the directory were the root. What comes out is a path without links, and that one is opened
//! with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` (openat2(2)), so that the kernel holds what the walk decided. The last
//! part of an entry's name is never followed, only replaced.
//!
//! Directories stay 0700 and get their modes, owners and times at the end, deepest first: a later entry may still
//! have to go into one that even its owner may not enter.

use std::{
    collections::BTreeMap,
    os::fd::{BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
        fchmod, fchown, fsetxattr, ftruncate, futimens, linkat, mkdirat, mknodat, openat, openat2, readlinkat, statat,
        symlinkat, syncfs, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    BoundKind, Caps, UnpackError, Unpacked, clean,
    entry::{Body, Entry, Kind},
};

/// Links followed for one path; as the kernel's own bound (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// Bytes of all directories' names together, which are kept until the end. Chosen.
const DIRECTORY_NAMES_BYTES_MAX: u64 = 64 << 20;
/// Where the sandbox's own file systems are mounted: nothing but a directory may have these names.
const MOUNT_POINTS: [&[u8]; 3] = [b"proc", b"sys", b"dev"];
/// Ids that are mapped in the unpacker's user namespace.
const IDS: u64 = 65_536;
/// Who gets what belongs to an id beyond.
const NOBODY: u32 = 65_534;
/// Bytes copied at once. Chosen.
const CHUNK: usize = 128 << 10;

/// Whatever of an entry stays with the file.
#[derive(Clone, Copy)]
struct Meta {
    mode: u32,
    owner: u32,
    group: u32,
    modified: Option<(i64, u32)>,
}

/// Of a directory that no entry describes.
const IMPLIED: Meta = Meta { mode: 0o755, owner: 0, group: 0, modified: None };

/// A directory with its path from the root: no links, no `.`, no `..`.
struct Place {
    parts: Vec<Vec<u8>>,
    fd: OwnedFd,
}

pub(super) struct Tree {
    root: OwnedFd,
    caps: Caps,
    done: Unpacked,
    entries: u64,
    /// The directory of the last entry by its name in the archive. Forgotten whenever something is removed, since only
    /// then may the name lead elsewhere.
    last: Option<(Vec<u8>, Rc<Place>)>,
    /// By path from the root, parts joined by `/`.
    dirs: BTreeMap<Vec<u8>, Meta>,
    dirs_bytes: u64,
    buffer: Vec<u8>,
}

impl Tree {
    pub(super) fn open(target: BorrowedFd<'_>, caps: &Caps) -> Result<Self, UnpackError> {
        let make = |errno| UnpackError::Make { name: ".".to_owned(), errno };
        // A descriptor of our own that can be read and synced, whatever the given one can.
        let root = openat(target, ".", dir_flags(), Mode::empty()).map_err(make)?;
        let mut tree = Self {
            root,
            caps: *caps,
            done: Unpacked::default(),
            entries: 0,
            last: None,
            dirs: BTreeMap::new(),
            dirs_bytes: 0,
            buffer: vec![0; CHUNK],
        };
        tree.dirs.insert(Vec::new(), IMPLIED);
        Ok(tree)
    }

    /// Makes one entry.
    pub(super) fn make(&mut self, entry: &Entry, body: Body<'_, '_>) -> Result<(), UnpackError> {
        let refused = |why| Err(UnpackError::Refused { name: clean(&entry.path), why });
        self.count()?;
        let parts = parts(&entry.path, &entry.path)?;
        self.done.xattrs_skipped += entry.xattrs;
        let Some((&name, above)) = parts.split_last() else {
            // `./` is the root of the tree.
            let Kind::Dir = entry.kind else { return refused("it would replace the root") };
            let meta = self.meta(entry);
            return self.describe(Vec::new(), meta);
        };
        if above.iter().any(|part| part.starts_with(b".wh.")) {
            return refused("a whiteout is no directory");
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(entry, above, hidden);
        }
        let named = |errno| UnpackError::Make { name: clean(&entry.path), errno };
        match &entry.kind {
            Kind::Dir => {
                let meta = self.meta(entry);
                let place = self.dir(&entry.path, above)?;
                let path = self.child(&place, name)?;
                match self.there(&place, name).map_err(named)? {
                    Some(stat) if is(&stat, FileType::Directory) => {}
                    there => {
                        self.clear(&place, name, there.as_ref()).map_err(named)?;
                        mkdirat(&place.fd, name, Mode::RWXU).map_err(named)?;
                        self.done.files += 1;
                        if there.is_some_and(|stat| is_whiteout(&stat)) {
                            // The lower one is hidden, and this is another of the same name.
                            let fd = openat(&place.fd, name, dir_flags(), Mode::empty()).map_err(named)?;
                            opaque(&fd).map_err(named)?;
                        }
                    }
                }
                self.describe(path, meta)
            }
            Kind::File { size, segments } => {
                if *size > self.caps.file_bytes_max {
                    return Err(UnpackError::Bound { what: BoundKind::FileBytes, max: self.caps.file_bytes_max });
                }
                let meta = self.meta(entry);
                let place = self.place(entry, above, name)?;
                self.replace(&place, name).map_err(named)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&place.fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(named)?;
                self.done.files += 1;
                self.fill(&fd, body, segments.as_deref(), *size, &entry.path)?;
                self.dress(&fd, meta, 0o1777).map_err(named)
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return refused("a link to nothing");
                }
                let meta = self.meta(entry);
                let place = self.place(entry, above, name)?;
                self.replace(&place, name).map_err(named)?;
                // The text is the workload's business: it is only ever followed inside the sandbox.
                symlinkat(entry.link.as_slice(), &place.fd, name).map_err(named)?;
                self.done.files += 1;
                self.dress_name(&place, name, meta).map_err(named)
            }
            Kind::HardLink => self.hard_link(entry, above, name),
            Kind::Fifo => {
                let meta = self.meta(entry);
                let place = self.place(entry, above, name)?;
                self.replace(&place, name).map_err(named)?;
                mknodat(&place.fd, name, FileType::Fifo, Mode::from_raw_mode(meta.mode & 0o777), 0).map_err(named)?;
                self.done.files += 1;
                self.dress_name(&place, name, meta).map_err(named)
            }
            Kind::Device { whiteout: true } => refused("it is a whiteout in disguise"),
            Kind::Device { whiteout: false } => {
                self.done.devices_skipped += 1;
                Ok(())
            }
        }
    }

    /// Gives every directory its mode, owner and time, and waits until all is on disk.
    pub(super) fn finish(mut self, diff_id: String) -> Result<Unpacked, UnpackError> {
        for (path, meta) in std::mem::take(&mut self.dirs).iter().rev() {
            let named = |errno| UnpackError::Make { name: clean(path), errno };
            match self.beneath(path) {
                Ok(fd) => {
                    let mut meta = *meta;
                    if !self.caps.owners_kept {
                        // All are ours, and without rights we could not remove a full directory that we may not write.
                        meta.mode |= 0o700;
                    }
                    self.dress(&fd, meta, 0o3777).map_err(named)?;
                }
                // It was replaced by something else since.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(named(errno)),
            }
        }
        syncfs(&self.root).map_err(|errno| UnpackError::Make { name: ".".to_owned(), errno })?;
        self.done.diff_id = diff_id;
        Ok(self.done)
    }

    /// The directory in which something that is no directory is to have this name, if it may have it there.
    fn place(&mut self, entry: &Entry, above: &[&[u8]], name: &[u8]) -> Result<Rc<Place>, UnpackError> {
        let place = self.dir(&entry.path, above)?;
        self.child(&place, name)?;
        // By where it comes to lie, not by its path, which a link may have led back to the root.
        if place.parts.is_empty() && MOUNT_POINTS.contains(&name) {
            let why = "a mount of the sandbox's own goes there";
            return Err(UnpackError::Refused { name: clean(&entry.path), why });
        }
        Ok(place)
    }

    /// The directory that these parts name, made where it is missing.
    fn dir(&mut self, entry: &[u8], names: &[&[u8]]) -> Result<Rc<Place>, UnpackError> {
        let key = names.join(&b'/');
        if let Some((last, place)) = &self.last
            && *last == key
        {
            return Ok(Rc::clone(place));
        }
        let named = |errno| UnpackError::Make { name: clean(entry), errno };
        let refused = |why| UnpackError::Refused { name: clean(entry), why };
        // What is still to be walked, the next part last.
        let mut ahead: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut at = Place { parts: Vec::new(), fd: self.root.try_clone().map_err(|e| named(errno(&e)))? };
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                // Only a link's text has these. Above the root is the root, as in a sandbox.
                at.parts.pop();
                at.fd = self.beneath(&at.parts.join(&b'/')).map_err(named)?;
                continue;
            }
            let there = self.there(&at, &name).map_err(named)?;
            match &there {
                Some(stat) if is(stat, FileType::Directory) => {}
                Some(stat) if is(stat, FileType::Symlink) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refused("its links go round or are too many"));
                    }
                    let text = readlinkat(&at.fd, name.as_slice(), Vec::new()).map_err(named)?.into_bytes();
                    if text.starts_with(b"/") {
                        at = Place { parts: Vec::new(), fd: self.root.try_clone().map_err(|e| named(errno(&e)))? };
                    }
                    let more = text.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
                    ahead.extend(more.rev().map(<[u8]>::to_vec));
                    if ahead.len() > 2 * self.caps.path_bytes_max as usize {
                        return Err(refused("its links are too long"));
                    }
                    continue;
                }
                None => self.mkdir(&at, &name, false).map_err(named)?,
                Some(stat) if is_whiteout(stat) => {
                    self.clear(&at, &name, there.as_ref()).map_err(named)?;
                    self.mkdir(&at, &name, true).map_err(named)?;
                }
                Some(_) => return Err(refused("a part of its path is no directory")),
            }
            let path = self.child(&at, &name)?;
            if there.as_ref().is_none_or(|stat| !is(stat, FileType::Directory)) {
                self.count()?;
                self.describe(path, IMPLIED)?;
            }
            let fd = openat(&at.fd, name.as_slice(), dir_flags(), Mode::empty()).map_err(named)?;
            at.parts.push(name);
            at.fd = fd;
        }
        // The walk went one part at a time without following anything; now the kernel confirms the whole.
        at.fd = self.beneath(&at.parts.join(&b'/')).map_err(named)?;
        let place = Rc::new(at);
        self.last = Some((key, Rc::clone(&place)));
        Ok(place)
    }

    fn mkdir(&mut self, at: &Place, name: &[u8], hides: bool) -> Result<(), Errno> {
        mkdirat(&at.fd, name, Mode::RWXU)?;
        self.done.files += 1;
        if hides {
            opaque(&openat(&at.fd, name, dir_flags(), Mode::empty())?)?;
        }
        Ok(())
    }

    /// Opens a directory by a path without links, held by the kernel to stay beneath the root.
    fn beneath(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(&self.root, path, dir_flags(), Mode::empty(), resolve)
    }

    /// The path of something in a directory, if it is not too deep and not too long.
    fn child(&self, place: &Place, name: &[u8]) -> Result<Vec<u8>, UnpackError> {
        if place.parts.len() >= self.caps.depth_max as usize {
            return Err(UnpackError::Bound { what: BoundKind::Depth, max: self.caps.depth_max.into() });
        }
        let mut path = place.parts.join(&b'/');
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > self.caps.path_bytes_max as usize {
            return Err(UnpackError::Bound { what: BoundKind::PathBytes, max: self.caps.path_bytes_max.into() });
        }
        Ok(path)
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.caps.entries_max {
            return Err(UnpackError::Bound { what: BoundKind::Entries, max: self.caps.entries_max });
        }
        Ok(())
    }

    fn meta(&mut self, entry: &Entry) -> Meta {
        let mapped = |id: u64| u32::try_from(id).ok().filter(|_| id < IDS);
        let (owner, group) = (mapped(entry.owner), mapped(entry.group));
        if self.caps.owners_kept && (owner.is_none() || group.is_none()) {
            self.done.owners_squashed += 1;
        }
        Meta {
            mode: entry.mode,
            owner: owner.unwrap_or(NOBODY),
            group: group.unwrap_or(NOBODY),
            modified: Some(entry.modified),
        }
    }

    /// Keeps what a directory will be like.
    fn describe(&mut self, path: Vec<u8>, meta: Meta) -> Result<(), UnpackError> {
        if !self.dirs.contains_key(&path) {
            self.dirs_bytes += path.len() as u64;
            if self.dirs_bytes > DIRECTORY_NAMES_BYTES_MAX {
                return Err(UnpackError::Bound { what: BoundKind::DirectoryNames, max: DIRECTORY_NAMES_BYTES_MAX });
            }
        }
        self.dirs.insert(path, meta);
        Ok(())
    }

    fn there(&self, place: &Place, name: &[u8]) -> Result<Option<Stat>, Errno> {
        match statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Removes what has the name.
    fn replace(&mut self, place: &Place, name: &[u8]) -> Result<(), Errno> {
        let there = self.there(place, name)?;
        self.clear(place, name, there.as_ref())
    }

    fn clear(&mut self, place: &Place, name: &[u8], there: Option<&Stat>) -> Result<(), Errno> {
        let Some(stat) = there else { return Ok(()) };
        self.last = None;
        if is(stat, FileType::Directory) {
            remove_dir(&place.fd, name)
        } else {
            unlinkat(&place.fd, name, AtFlags::empty())
        }
    }

    /// `.wh.NAME`; `hidden` is `NAME`.
    fn whiteout(&mut self, entry: &Entry, above: &[&[u8]], hidden: &[u8]) -> Result<(), UnpackError> {
        let refused = |why| Err(UnpackError::Refused { name: clean(&entry.path), why });
        let named = |errno| UnpackError::Make { name: clean(&entry.path), errno };
        if hidden == b".wh..opq" {
            let Kind::File { .. } = entry.kind else { return refused("a whiteout is an empty file") };
            let place = self.dir(&entry.path, above)?;
            return opaque(&place.fd).map_err(named);
        }
        if hidden.starts_with(b".wh.") {
            self.done.notes_skipped += 1;
            return Ok(());
        }
        let Kind::File { .. } = entry.kind else { return refused("a whiteout is an empty file") };
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return refused("a whiteout of no name");
        }
        let place = self.place(entry, above, hidden)?;
        match self.there(&place, hidden).map_err(named)? {
            None => {
                // Allowed without rights since Linux 5.8 (commit a3c751a50fe6).
                mknodat(&place.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0).map_err(named)?;
                self.done.files += 1;
                Ok(())
            }
            // A whiteout speaks of the layers below only: a directory of this layer hides them, and stays.
            Some(stat) if is(&stat, FileType::Directory) => {
                let fd = openat(&place.fd, hidden, dir_flags(), Mode::empty()).map_err(named)?;
                opaque(&fd).map_err(named)
            }
            Some(_) => Ok(()),
        }
    }

    fn hard_link(&mut self, entry: &Entry, above: &[&[u8]], name: &[u8]) -> Result<(), UnpackError> {
        let refused = |why| Err(UnpackError::Refused { name: clean(&entry.path), why });
        let named = |errno| UnpackError::Make { name: clean(&entry.path), errno };
        let to = parts(&entry.link, &entry.path)?;
        let Some((&to_name, to_above)) = to.split_last() else { return refused("a hard link to the root") };
        if to.iter().any(|part| part.starts_with(b".wh.")) {
            return refused("a hard link to a whiteout");
        }
        let source = self.dir(&entry.path, to_above)?;
        let Some(stat) = self.there(&source, to_name).map_err(named)? else {
            return refused("a hard link to something that is not there");
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            FileType::Directory
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Socket
            | FileType::Unknown => {
                return refused("a hard link to something that is no file");
            }
        }
        let place = self.place(entry, above, name)?;
        if let Some(there) = self.there(&place, name).map_err(named)? {
            if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(());
            }
            self.clear(&place, name, Some(&there)).map_err(named)?;
        }
        linkat(&source.fd, to_name, &place.fd, name, AtFlags::empty()).map_err(named)?;
        self.done.files += 1;
        Ok(())
    }

    /// Writes a file's bytes.
    fn fill(
        &mut self,
        fd: &OwnedFd,
        mut body: Body<'_, '_>,
        segments: Option<&[(u64, u64)]>,
        size: u64,
        entry: &[u8],
    ) -> Result<(), UnpackError> {
        let named = |errno| UnpackError::Make { name: clean(entry), errno };
        let whole = [(0, size)];
        for &(offset, length) in segments.unwrap_or(&whole) {
            let mut done = 0;
            while done < length {
                let part = self.buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
                let count = body.read(&mut self.buffer[..part])?;
                if count == 0 {
                    return Err(UnpackError::Malformed("a file's body is shorter than it says"));
                }
                self.done.bytes += count as u64;
                if self.done.bytes > self.caps.files_bytes_max {
                    return Err(UnpackError::Bound { what: BoundKind::FilesBytes, max: self.caps.files_bytes_max });
                }
                let mut written = 0;
                while written < count {
                    let at = offset + done + written as u64;
                    match rustix::io::pwrite(fd, &self.buffer[written..count], at) {
                        Ok(more) => written += more,
                        Err(Errno::INTR) => {}
                        Err(errno) => return Err(named(errno)),
                    }
                }
                done += count as u64;
            }
        }
        if segments.is_some() {
            ftruncate(fd, size).map_err(named)?;
        }
        Ok(())
    }

    /// Owner, then mode, which a change of owner could clear, then time.
    fn dress(&self, fd: &OwnedFd, meta: Meta, mode_mask: u32) -> Result<(), Errno> {
        if self.caps.owners_kept {
            fchown(fd, Some(Uid::from_raw(meta.owner)), Some(Gid::from_raw(meta.group)))?;
        }
        fchmod(fd, Mode::from_raw_mode(meta.mode & mode_mask))?;
        match meta.modified {
            Some(modified) => futimens(fd, &times(modified)),
            None => Ok(()),
        }
    }

    /// As [`Self::dress`] for what cannot be opened: a link, which has no mode, and a FIFO, which was made with it.
    fn dress_name(&self, place: &Place, name: &[u8], meta: Meta) -> Result<(), Errno> {
        if self.caps.owners_kept {
            let (owner, group) = (Uid::from_raw(meta.owner), Gid::from_raw(meta.group));
            chownat(&place.fd, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        match meta.modified {
            Some(modified) => utimensat(&place.fd, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW),
            None => Ok(()),
        }
    }
}

const fn dir_flags() -> OFlags {
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC)
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

fn is_whiteout(stat: &Stat) -> bool {
    is(stat, FileType::CharacterDevice) && stat.st_rdev == 0
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Marks a directory as hiding the one below, in the form that overlayfs reads with `userxattr`.
fn opaque(dir: &OwnedFd) -> Result<(), Errno> {
    fsetxattr(dir, "user.overlay.opaque", b"y", XattrFlags::empty())
}

/// The parts of a name in the archive: a leading `/` is the root of the tree, `.` is nothing, `..` is refused.
fn parts<'n>(name: &'n [u8], entry: &[u8]) -> Result<Vec<&'n [u8]>, UnpackError> {
    let refused = |why| Err(UnpackError::Refused { name: clean(entry), why });
    if name.is_empty() {
        return refused("it has no name");
    }
    let parts: Vec<_> = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return refused("`..` is in its path");
    }
    if parts.iter().any(|part| part.len() > 255) {
        return refused("a part of its path is longer than 255 bytes");
    }
    Ok(parts)
}

/// Removes a directory with all in it. As deep as [`Caps::depth_max`] at most, since we made it.
fn remove_dir(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let fd = openat(parent, name, dir_flags(), Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        if ![b".".as_slice(), b".."].contains(&entry.file_name().to_bytes()) {
            names.push(entry.file_name().to_owned());
        }
    }
    for inner in names {
        let stat = statat(&fd, &inner, AtFlags::SYMLINK_NOFOLLOW)?;
        if is(&stat, FileType::Directory) {
            remove_dir(&fd, inner.to_bytes())?;
        } else {
            unlinkat(&fd, &inner, AtFlags::empty())?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
