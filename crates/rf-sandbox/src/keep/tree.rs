//! Copying trees, merging layers as overlayfs shows them, and emptying trees: beneath descriptors, following no link.
//!
//! Of a layer are kept: files (holes stay holes, several names of one file stay one), directories, links, FIFOs,
//! sockets, owners, modes, times, `user.*` attributes, access lists, and overlayfs's own words for what is deleted: a
//! device 0:0, and the attribute `user.overlay.opaque` of a directory under which lower layers are not looked at (the
//! kernel's overlayfs document, "whiteouts and opaque directories").

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString},
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::Kept;

/// Deepest directory. Chosen: each level takes descriptors for as long as it is walked.
const DEPTH_MAX: usize = 256;
/// Deepest directory that is emptied: what a copy that went too deep has made, below its part.
const EMPTIED_DEPTH_MAX: usize = DEPTH_MAX + 8;
/// Most memory for files of which other names are looked for, bytes: each has its first name and [`LINK_BYTES`]. Chosen:
/// two million files with names of usual length. A copy with more is refused, for without them the content of such a file
/// would be copied once for each of its names, far past the quota that holds it.
const LINKS_BYTES_MAX: usize = 256 << 20;
/// What such a file takes beside its name, bytes. Measured, and rounded up.
const LINK_BYTES: usize = 64;
/// Longest path that the kernel takes, with its NUL (linux/limits.h).
const PATH_MAX: usize = 4096;
/// How many names are taken from a directory that is being emptied at once.
const BATCH: usize = 1024;
/// Longest list of attributes and longest attribute (xattr(7)).
const XATTR_MAX: usize = 64 * 1024;
const OPAQUE: &CStr = c"user.overlay.opaque";

/// A step that failed, and with what.
#[derive(Debug)]
pub(super) struct Failed {
    step: &'static str,
    errno: Errno,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.errno)
    }
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failed>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &'static str) -> Result<T, Failed> {
        self.map_err(|errno| Failed { step, errno })
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_dir(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Failed> {
    rustix::fs::openat(at, name, DIRECTORY, Mode::empty()).step("open a directory")
}

fn stat(at: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What overlayfs puts in place of a name that is deleted.
fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Copies `layers`, the uppermost first, merged, into the new directory `name` of `target`.
pub(super) fn copy(target: &OwnedFd, name: &str, layers: &[OwnedFd]) -> Result<Kept, Failed> {
    let name = CString::new(name).map_err(|_| Errno::INVAL).step("name a directory")?;
    rustix::fs::mkdirat(target, &name, Mode::RWXU).step("make a directory")?;
    let to = open_dir(target, &name)?;
    // A mount comes as a path: opened, it can be read.
    let from = layers.iter().map(|layer| open_dir(layer, c".")).collect::<Result<Vec<_>, _>>()?;
    let mut copy = Copy {
        root: to.as_fd(),
        path: Vec::new(),
        links: HashMap::new(),
        links_bytes: 0,
        kept: Kept::default(),
        buffer: vec![0; 256 << 10],
    };
    copy.merge(to.as_fd(), &from, false, 0)?;
    Ok(copy.kept)
}

/// Has the file system write everything.
pub(super) fn sync(target: &OwnedFd) -> Result<(), Failed> {
    let dir = open_dir(target, c".")?;
    rustix::fs::syncfs(&dir).step("have everything written")
}

/// Removes all that is in `target`.
pub(super) fn empty(target: &OwnedFd) -> Result<(), Failed> {
    let dir = open_dir(target, c".")?;
    empty_below(&dir, 0)
}

fn empty_below(dir: &OwnedFd, depth: usize) -> Result<(), Failed> {
    if depth > EMPTIED_DEPTH_MAX {
        return Err(Errno::LOOP).step("go down that deep");
    }
    loop {
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).step("read a directory")?.take(BATCH + 2) {
            let entry = entry.step("read a directory")?;
            if !is_dot(entry.file_name()) {
                names.push(entry.file_name().to_owned());
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            let flags = if kind(&stat(dir, &name).step("look at a file")?) == FileType::Directory {
                empty_below(&open_dir(dir, &name)?, depth + 1)?;
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            rustix::fs::unlinkat(dir, &name, flags).step("remove a file")?;
        }
    }
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    /// Where we are below `root`.
    path: Vec<u8>,
    /// Files that have other names, and the first one they were given; an empty one is too long to be used.
    links: HashMap<(u64, u64), CString>,
    links_bytes: usize,
    kept: Kept,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    /// Copies all that is in `from`, the uppermost first, and then what `from[0]` itself is.
    fn merge(&mut self, to: BorrowedFd<'_>, from: &[OwnedFd], opaque: bool, depth: usize) -> Result<(), Failed> {
        if depth > DEPTH_MAX {
            return Err(Errno::LOOP).step("go down that deep");
        }
        let mut seen = HashSet::new();
        for (level, dir) in from.iter().enumerate() {
            for entry in Dir::read_from(dir).step("read a directory")? {
                let entry = entry.step("read a directory")?;
                let name = entry.file_name();
                // One layer has a name once.
                let is_new = from.len() == 1 || !seen.contains(name);
                if is_dot(name) || !is_new {
                    continue;
                }
                if level + 1 < from.len() {
                    seen.insert(name.to_owned());
                }
                let len = self.path.len();
                if len > 0 {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(name.to_bytes());
                self.entry(to, &from[level..], name, depth)?;
                self.path.truncate(len);
            }
        }
        let stat = rustix::fs::fstat(&from[0]).step("look at a directory")?;
        attributes(&from[0], to)?;
        if opaque {
            rustix::fs::fsetxattr(to, OPAQUE, b"y", XattrFlags::empty()).step("hide what is below a directory")?;
        }
        finish(to, &stat)
    }

    /// Copies what `from[0]` has by this name, with what lower layers add to it.
    fn entry(&mut self, to: BorrowedFd<'_>, from: &[OwnedFd], name: &CStr, depth: usize) -> Result<(), Failed> {
        let stat_of = stat(&from[0], name).step("look at a file")?;
        self.kept.files += 1;
        match kind(&stat_of) {
            FileType::Directory => {
                let mut dirs = vec![open_dir(&from[0], name)?];
                let mut opaque = is_opaque(&dirs[0])?;
                for lower in &from[1..] {
                    if opaque {
                        break;
                    }
                    match stat(lower, name) {
                        Err(Errno::NOENT) => {}
                        Err(errno) => return Err(errno).step("look at a file"),
                        Ok(stat) if kind(&stat) == FileType::Directory => {
                            let dir = open_dir(lower, name)?;
                            opaque = is_opaque(&dir)?;
                            dirs.push(dir);
                        }
                        // Over something else than a directory nothing below is seen.
                        Ok(_) => opaque = true,
                    }
                }
                rustix::fs::mkdirat(to, name, Mode::RWXU).step("make a directory")?;
                let made = open_dir(to, name)?;
                self.merge(made.as_fd(), &dirs, opaque, depth + 1)
            }
            FileType::RegularFile => self.file(to, &from[0], name, &stat_of),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&from[0], name, Vec::new()).step("read a link")?;
                rustix::fs::symlinkat(&target, to, name).step("make a link")?;
                finish_at(to, name, &stat_of)
            }
            FileType::CharacterDevice if is_whiteout(&stat_of) => {
                rustix::fs::mknodat(to, name, FileType::CharacterDevice, Mode::empty(), 0).step("note what is deleted")
            }
            kind @ (FileType::Fifo | FileType::Socket) => {
                let mode = Mode::from_raw_mode(stat_of.st_mode);
                rustix::fs::mknodat(to, name, kind, mode, 0).step("make a FIFO or socket")?;
                finish_at(to, name, &stat_of)
            }
            // Nobody in a sandbox can make one.
            FileType::BlockDevice | FileType::CharacterDevice | FileType::Unknown => {
                Err(Errno::NOTSUP).step("keep a device")
            }
        }
    }

    fn file(&mut self, to: BorrowedFd<'_>, from: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Failed> {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&id) {
            if first.is_empty() {
                return Err(Errno::NAMETOOLONG).step("give a file another name");
            }
            match rustix::fs::linkat(self.root, first, to, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // More names than the file system takes: from here on they are another file's.
                Err(Errno::MLINK) => {}
                Err(errno) => return Err(errno).step("give a file another name"),
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, flags, Mode::empty()).step("open a file")?;
        let found = rustix::fs::fstat(&source).step("look at a file")?;
        if kind(&found) != FileType::RegularFile {
            return Err(Errno::STALE).step("find a file as it was");
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR).step("make a file")?;
        self.content(&source, &made, found.st_size.unsigned_abs())?;
        attributes(&source, made.as_fd())?;
        finish(made.as_fd(), &found)?;
        if found.st_nlink > 1 { self.remember(id, LINKS_BYTES_MAX) } else { Ok(()) }
    }

    /// Notes the name that a file was given, for its other names.
    fn remember(&mut self, id: (u64, u64), bytes_max: usize) -> Result<(), Failed> {
        // A NUL is in no name.
        let name =
            if self.path.len() < PATH_MAX { CString::new(&self.path[..]).unwrap_or_default() } else { c"".into() };
        self.links_bytes += LINK_BYTES + name.count_bytes();
        if let Some(old) = self.links.insert(id, name) {
            self.links_bytes -= LINK_BYTES + old.count_bytes();
        }
        if self.links_bytes > bytes_max {
            Err(Errno::TOOBIG).step("keep track of files with several names")
        } else {
            Ok(())
        }
    }

    fn content(&mut self, from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Failed> {
        rustix::fs::ftruncate(to, size).step("size a file")?;
        let mut at = 0;
        while at < size {
            // lseek(2), SEEK_DATA: ENXIO past the last data.
            let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno).step("look for data"),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(start)).step("look for a hole")?.min(size);
            at = start;
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
                let got = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut self.buffer[..want], at))
                    .step("read a file")?;
                if got == 0 {
                    return Ok(());
                }
                let mut written = 0;
                while written < got {
                    let done = rustix::io::retry_on_intr(|| {
                        rustix::io::pwrite(to, &self.buffer[written..got], at + written as u64)
                    });
                    written += done.step("write a file")?;
                }
                at += got as u64;
                self.kept.bytes += got as u64;
            }
        }
        Ok(())
    }
}

/// Whether lower layers are not looked at below this directory.
fn is_opaque(dir: &OwnedFd) -> Result<bool, Failed> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]) {
        Ok(len) => Ok(value[..len] == *b"y"),
        // A longer one than the buffer, too, which a program may have set, is none of overlayfs's (fs/overlayfs/util.c,
        // `ovl_path_check_dir_xattr`).
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno).step("read a directory's attribute"),
    }
}

/// Copies `user.*` attributes, but for overlayfs's own, and access lists.
fn attributes(from: impl AsFd, to: BorrowedFd<'_>) -> Result<(), Failed> {
    let from = from.as_fd();
    let mut names = vec![0_u8; XATTR_MAX];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(len) => len,
        Err(errno) => return Err(errno).step("list attributes"),
    };
    let mut value = vec![0_u8; XATTR_MAX];
    for name in names[..len].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let bytes = name.to_bytes();
        let users = bytes.starts_with(b"user.") && !bytes.starts_with(b"user.overlay.");
        if !users && !bytes.starts_with(b"system.posix_acl_") {
            continue;
        }
        let len = rustix::fs::fgetxattr(from, name, &mut value[..]).step("read an attribute")?;
        rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty()).step("set an attribute")?;
    }
    Ok(())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds| Timespec { tv_sec, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Gives what is open its owner, mode and times; last, since what is written changes them.
fn finish(to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Failed> {
    let (user, group) = owner(stat);
    rustix::fs::fchown(to, user, group).step("give a file its owner")?;
    // After the owner, whose change takes set-user-id bits away (chown(2)).
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode)).step("give a file its mode")?;
    rustix::fs::futimens(to, &times(stat)).step("give a file its times")
}

/// As [`finish`], for what cannot be opened.
fn finish_at(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Failed> {
    let (user, group) = owner(stat);
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(to, name, user, group, flags).step("give a file its owner")?;
    if kind(stat) != FileType::Symlink {
        // We made it just now, and nobody else can put a link in its place.
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())
            .step("give a file its mode")?;
    }
    rustix::fs::utimensat(to, name, &times(stat), flags).step("give a file its times")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn delete(dir: &Path, name: &str) {
        rustix::fs::mknodat(open(dir), name, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    fn hide_below(dir: &Path) {
        rustix::fs::fsetxattr(open(dir), OPAQUE, b"y", XattrFlags::empty()).unwrap();
    }

    /// Three layers, the uppermost first, over which overlayfs and we must say the same.
    fn layers(dir: &Path) -> [std::path::PathBuf; 3] {
        let [upper, middle, lower] = ["upper", "middle", "lower"].map(|name| dir.join(name));
        for path in
            ["lower/a/b", "lower/gone", "lower/again/old", "middle/a/b", "middle/opaque", "upper/again/new", "upper/a"]
        {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        fs::create_dir_all(lower.join("opaque/under")).unwrap();
        for (path, text) in [
            ("lower/file", "low"),
            ("lower/a/b/low", "low"),
            ("lower/a/both", "low"),
            ("middle/a/both", "mid"),
            ("middle/a/b/mid", "mid"),
            ("upper/a/up", "up"),
            ("lower/deleted", "low"),
            ("middle/back", "mid"),
            ("lower/back", "low"),
            ("lower/turned", "a file below"),
            ("middle/over", "a file over a directory"),
        ] {
            fs::write(dir.join(path), text).unwrap();
        }
        fs::create_dir(upper.join("turned")).unwrap();
        fs::create_dir(lower.join("over")).unwrap();
        fs::write(lower.join("over/inside"), "x").unwrap();
        delete(&upper, "deleted");
        delete(&middle, "gone");
        delete(&middle, "again");
        hide_below(&upper.join("again"));
        hide_below(&middle.join("opaque"));
        [upper, middle, lower]
    }

    /// Every path with what is there.
    fn look(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(at) = dirs.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                let text = if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
                found.push(format!("{name} {:o} {}:{} {text}", meta.mode(), meta.uid(), meta.gid()));
                if meta.is_dir() {
                    dirs.push(path);
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn merged_layers_are_what_overlayfs_shows_of_them() {
        assert!(rustix::process::geteuid().is_root(), "run this as root, which may note what is deleted");
        let dir = tempfile::tempdir().unwrap();
        let layers = layers(dir.path());
        fs::create_dir(dir.path().join("kept")).unwrap();
        let opened = layers.each_ref().map(|layer| open(layer));
        let kept = copy(&open(&dir.path().join("kept")), "merged", &opened).unwrap();
        assert!(kept.files > 10);
        // Over another layer, in which everything is that they hide.
        let base = dir.path().join("base");
        for path in ["again/base", "opaque/base", "gone/base", "turned", "a/b"] {
            fs::create_dir_all(base.join(path)).unwrap();
        }
        fs::write(base.join("deleted"), "base").unwrap();
        fs::write(base.join("a/b/base"), "base").unwrap();
        let shown = |tops: &[&Path]| {
            let mut lower: Vec<String> = tops.iter().map(|path| path.display().to_string()).collect();
            lower.push(base.display().to_string());
            let context = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            for layer in lower {
                rustix::mount::fsconfig_set_string(&context, "lowerdir+", layer).unwrap();
            }
            rustix::mount::fsconfig_set_flag(&context, "userxattr").unwrap();
            rustix::mount::fsconfig_create(&context).unwrap();
            let flags = rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC;
            let mount = rustix::mount::fsmount(&context, flags, rustix::mount::MountAttrFlags::empty()).unwrap();
            use std::os::fd::AsRawFd as _;
            look(Path::new(&format!("/proc/self/fd/{}/", mount.as_raw_fd())))
        };
        let expected = shown(&[&layers[0], &layers[1], &layers[2]]);
        assert_eq!(shown(&[&dir.path().join("kept/merged")]), expected);
        // Control: what they say of deletions matters.
        assert!(expected.iter().any(|line| line.starts_with("a/b/base")));
        assert!(!expected.iter().any(|line| line.starts_with("deleted") || line.starts_with("gone")), "{expected:?}");
        assert!(!expected.iter().any(|line| line.contains("opaque/") || line.contains("again/base")), "{expected:?}");
    }

    #[test]
    fn a_copy_has_names_links_holes_owners_and_attributes() {
        assert!(rustix::process::geteuid().is_root(), "run this as root, which may give files away");
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::hard_link(from.join("sub/file"), from.join("other\n name")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        std::os::unix::fs::symlink("..", from.join("sub/up")).unwrap();
        std::os::unix::fs::chown(from.join("sub"), Some(1000), Some(1001)).unwrap();
        let holes = fs::File::create(from.join("holes")).unwrap();
        holes.set_len(1 << 26).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
        holes.set_permissions(mode).unwrap();
        rustix::fs::fsetxattr(&holes, c"user.note", b"kept", XattrFlags::empty()).unwrap();
        rustix::fs::fsetxattr(&holes, c"user.overlay.origin", b"not kept", XattrFlags::empty()).unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let kept = copy(&open(&to), "root", &[open(&from)]).unwrap();
        assert_eq!(kept, Kept { bytes: 4, files: 6 });
        let root = to.join("root");
        assert_eq!(look(&root).len(), look(&from).len());
        let meta = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
        assert_eq!((meta("sub").uid(), meta("sub").gid()), (1000, 1001));
        assert_eq!((meta("sub/file").nlink(), meta("sub/file").ino()), (2, meta("other\n name").ino()));
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!((meta("holes").len(), meta("holes").mode() & 0o7777), (1 << 26, 0o4755));
        assert!(meta("holes").blocks() < 100, "holes stay holes");
        let copied = fs::File::open(root.join("holes")).unwrap();
        let mut value = [0; 16];
        assert_eq!(rustix::fs::fgetxattr(&copied, c"user.note", &mut value[..]), Ok(4));
        assert_eq!(rustix::fs::fgetxattr(&copied, c"user.overlay.origin", &mut value[..]), Err(Errno::NODATA));
        empty(&open(&to)).unwrap();
        assert_eq!(look(&to), Vec::<String>::new());
        assert!(Path::new("/etc/passwd").exists() && from.join("sub/file").exists());
    }

    #[test]
    fn names_of_files_with_several_take_a_bounded_room() {
        let dir = tempfile::tempdir().unwrap();
        let to = open(dir.path());
        let mut copy = Copy {
            root: to.as_fd(),
            path: vec![b'a'; 100],
            links: HashMap::new(),
            links_bytes: 0,
            kept: Kept::default(),
            buffer: Vec::new(),
        };
        for id in 0..10 {
            copy.remember((1, id), 10 * (100 + LINK_BYTES)).unwrap();
        }
        // The same again takes nothing more; one that no link can be made to takes next to nothing.
        copy.remember((1, 0), 10 * (100 + LINK_BYTES)).unwrap();
        copy.path = vec![b'a'; PATH_MAX];
        copy.remember((1, 10), 10 * (100 + LINK_BYTES) + LINK_BYTES).unwrap();
        assert_eq!(copy.links[&(1, 10)].as_c_str(), c"");
        copy.path.truncate(100);
        let failed = copy.remember((1, 11), 10 * (100 + LINK_BYTES) + LINK_BYTES).unwrap_err();
        assert_eq!(failed.errno, Errno::TOOBIG);
    }

    #[test]
    fn more_names_than_a_file_system_takes_are_those_of_few_files() {
        assert!(rustix::process::geteuid().is_root(), "run this as root, which may make a file system in memory");
        let dir = tempfile::tempdir().unwrap();
        // In memory a file has as many names as there is room for; ext4 takes 65,000.
        let from = crate::disk::in_memory(1 << 20, 100_000).unwrap();
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&from, "0", file, Mode::RUSR).unwrap();
        const NAMES: usize = 65_010;
        for name in 1..NAMES {
            rustix::fs::linkat(&from, "0", &from, name.to_string(), AtFlags::empty()).unwrap();
        }
        let to = open(dir.path());
        let kept = copy(&to, "root", &[open_dir(&from, c".").unwrap()]).unwrap();
        assert_eq!(kept.files as usize, NAMES);
        let entries = fs::read_dir(dir.path().join("root")).unwrap();
        let files: HashSet<u64> = entries.map(|entry| entry.unwrap().metadata().unwrap().ino()).collect();
        assert!(files.len() <= 2, "{}", files.len());
        empty(&to).unwrap();
    }

    #[test]
    fn marks_that_a_program_made_up_keep_nothing_from_being_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (from, lower, to) = (dir.path().join("from"), dir.path().join("lower"), dir.path().join("to"));
        for (name, mark) in [("long", &[b'y'; 200][..]), ("empty", b""), ("odd", b"z"), ("real", b"y")] {
            fs::create_dir_all(from.join(name)).unwrap();
            fs::create_dir_all(lower.join(name)).unwrap();
            fs::write(lower.join(name).join("below"), "").unwrap();
            rustix::fs::fsetxattr(open(&from.join(name)), OPAQUE, mark, XattrFlags::empty()).unwrap();
        }
        fs::create_dir(&to).unwrap();
        copy(&open(&to), "root", &[open(&from), open(&lower)]).unwrap();
        for name in ["long", "empty", "odd"] {
            assert!(to.join("root").join(name).join("below").exists(), "{name}");
        }
        // Control: one that overlayfs reads hides what is below.
        assert!(!to.join("root/real/below").exists());
    }

    #[test]
    fn what_goes_too_deep_is_refused_and_can_be_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let mut at = open(&from);
        for _ in 0..DEPTH_MAX + 20 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_dir(&at, c"d").unwrap();
        }
        let failed = copy(&open(&to), "root", &[open(&from)]).unwrap_err();
        assert_eq!(failed.errno, Errno::LOOP);
        empty(&open(&to)).unwrap();
        assert!(look(&to).is_empty());
    }
}
