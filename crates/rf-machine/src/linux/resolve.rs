//! Finding files for the server as the owner's level allows. No decision is made on a path's text: below full level
//! the kernel resolves beneath a descriptor of the workspace root (`RESOLVE_BENEATH`, openat2(2)), so `..`, links and
//! renames under way lead nowhere else.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rf_types::{Code, Fault, FileKind, Stat};
use rf_wire::machine::Level;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// How often a resolution that raced with a rename is tried again; openat2(2) answers EAGAIN then. Chosen: each try is
/// a microsecond, and a rename storm is not the common case.
const TRIES: usize = 1000;

/// The workspace root, open.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
    level: Level,
}

impl Root {
    /// Opens the workspace root at `path`.
    pub(crate) fn open(path: &Path, level: Level) -> std::io::Result<Self> {
        let path = path.canonicalize()?;
        let fd = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, path, level })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether files outside of the workspace may be reached.
    fn everywhere(&self) -> bool {
        self.level == Level::Full
    }

    /// `path` as seen from the root. An absolute path is taken apart only to know from where to resolve; whether it
    /// stays inside is for the kernel to find out.
    fn below<'a>(&self, path: &'a str) -> Result<&'a Path, Fault> {
        if path.contains('\0') {
            return Err(Fault::invalid("a path has a NUL byte"));
        }
        let path = Path::new(path);
        if self.everywhere() || path.is_relative() {
            return Ok(if path.as_os_str().is_empty() { Path::new(".") } else { path });
        }
        match path.strip_prefix(&self.path) {
            Ok(rest) if rest.as_os_str().is_empty() => Ok(Path::new(".")),
            Ok(rest) => Ok(rest),
            Err(_) => Err(self.outside(path)),
        }
    }

    fn outside(&self, path: &Path) -> Fault {
        Fault::new(
            Code::OwnerForbids,
            format!("`{}` is not below the machine's workspace", show(path.as_os_str())),
            format!(
                "the machine's owner allows files below {} only; they can run `ringfence join --level full`",
                self.path.display()
            ),
        )
    }

    fn openat2(&self, at: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Fault> {
        for _ in 0..TRIES {
            match rustix::fs::openat2(at, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::XDEV) => return Err(self.outside(path)),
                Err(Errno::NOSYS) => {
                    return Err(Fault::new(
                        Code::LayerUnavailable,
                        "this machine's kernel cannot resolve beneath a directory",
                        "openat2(2) came with Linux 5.6",
                    ));
                }
                Err(errno) => return Err(fault(errno, path.as_os_str())),
            }
        }
        Err(Fault::new(
            Code::Conflict,
            format!("directories on the way to `{}` are being renamed all the time", show(path.as_os_str())),
            "try again",
        ))
    }

    fn resolve(&self) -> ResolveFlags {
        if self.everywhere() {
            ResolveFlags::NO_MAGICLINKS
        } else {
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
        }
    }

    /// The file itself, without opening it: a FIFO is not waited for, a device not touched.
    pub(crate) fn find(&self, path: &str, follow: bool) -> Result<OwnedFd, Fault> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        self.openat2(self.fd.as_fd(), self.below(path)?, flags, self.resolve())
    }

    /// The directory, open for reading its entries.
    pub(crate) fn directory(&self, path: &str) -> Result<OwnedFd, Fault> {
        self.openat2(self.fd.as_fd(), self.below(path)?, OFlags::RDONLY | OFlags::DIRECTORY, self.resolve())
    }

    /// The directory that holds `path`, and its name there. Makes missing directories on request.
    pub(crate) fn parent(&self, path: &str, make: bool) -> Result<(OwnedFd, OsString), Fault> {
        let below = self.below(path)?;
        let name = below
            .file_name()
            .ok_or_else(|| Fault::invalid(format!("`{}` does not end in a name", show(below.as_os_str()))))?;
        let parent = below.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.openat2(self.fd.as_fd(), parent, flags, self.resolve()) {
            Err(fault) if make && fault.code == Code::NotFound => self.make_all(parent, 0o755)?,
            Err(fault) => return Err(fault),
            Ok(fd) => return Ok((fd, name.to_owned())),
        }
        Ok((self.openat2(self.fd.as_fd(), parent, flags, self.resolve())?, name.to_owned()))
    }

    /// Makes every missing directory of `path`.
    pub(crate) fn make_all(&self, path: &Path, permissions: u32) -> Result<(), Fault> {
        let mut so_far = PathBuf::new();
        for part in path.components() {
            let parent = if so_far.as_os_str().is_empty() { PathBuf::from(".") } else { so_far.clone() };
            so_far.push(part);
            let Component::Normal(name) = part else { continue };
            let parent = self.openat2(self.fd.as_fd(), &parent, OFlags::PATH | OFlags::DIRECTORY, self.resolve())?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(permissions)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(fault(errno, so_far.as_os_str())),
            }
        }
        Ok(())
    }

    /// As [`Root::make_all`], for a path as the server names it.
    pub(crate) fn make_all_of(&self, path: &str, permissions: u32) -> Result<(), Fault> {
        self.make_all(self.below(path)?, permissions)
    }
}

/// Opens `path` beneath `base` through no link at all.
pub(crate) fn beneath(base: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Fault> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match rustix::fs::openat2(base, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened.map_err(|errno| fault(errno, path.as_os_str())),
        }
    }
    Err(fault(Errno::AGAIN, path.as_os_str()))
}

/// Opens what `found` (of [`Root::find`]) is, if it is a regular file: the very one that was looked at.
pub(crate) fn reopen(found: &OwnedFd, flags: OFlags, path: &str) -> Result<(File, rustix::fs::Stat), Fault> {
    let path = OsStr::new(path);
    let stat = rustix::fs::fstat(found).map_err(|errno| fault(errno, path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(fault(Errno::ISDIR, path)),
        _ => {
            return Err(Fault::new(
                Code::FileFailed,
                format!("`{}` is no regular file", show(path)),
                "FIFOs, sockets and devices are listed, but never opened",
            ));
        }
    }
    // The link in /proc leads to the file that the descriptor holds, whatever its name has become; see proc(5).
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let opened = rustix::fs::open(proc_path(found), flags, Mode::empty()).map_err(|errno| fault(errno, path))?;
    Ok((File::from(opened), stat))
}

/// A path to exactly what `fd` holds.
pub(crate) fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The description of what `fd` holds, named `path`.
pub(crate) fn describe(fd: BorrowedFd<'_>, path: String) -> Result<Stat, Fault> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| fault(errno, OsStr::new(&path)))?;
    let kind = kind_of(&stat);
    let target = match kind {
        FileKind::Symlink => rustix::fs::readlinkat(fd, "", Vec::new())
            .ok()
            .map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned()),
        FileKind::File | FileKind::Directory | FileKind::Special => None,
    };
    Ok(stat_of(&stat, path, target))
}

pub(crate) fn kind_of(stat: &rustix::fs::Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Special,
    }
}

pub(crate) fn stat_of(stat: &rustix::fs::Stat, path: String, target: Option<String>) -> Stat {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    Stat {
        path,
        kind: kind_of(stat),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        permissions: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_at: seconds.saturating_mul(1000).saturating_add(stat.st_mtime_nsec / 1_000_000),
        target,
    }
}

/// A name for people: without control characters, of bounded length.
pub(crate) fn show(name: &OsStr) -> String {
    name.to_string_lossy().chars().filter(|c| !c.is_control()).take(256).collect()
}

/// What the kernel said of `path`, as a fault.
pub(crate) fn fault(errno: Errno, path: &OsStr) -> Fault {
    let code = match errno {
        Errno::NOENT => Code::NotFound,
        Errno::EXIST | Errno::NOTEMPTY => Code::Conflict,
        Errno::NOSPC | Errno::DQUOT => Code::DiskFull,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Code::PlaceExhausted,
        _ => Code::FileFailed,
    };
    let said = std::io::Error::from(errno).to_string();
    let said = said.split(" (os error").next().unwrap_or_default().to_lowercase();
    Fault::new(code, format!("`{}`: {said}", show(path)), "")
}

/// As [`fault`], for an error of the standard library.
pub(crate) fn io_fault(error: &std::io::Error, path: &OsStr) -> Fault {
    match Errno::from_io_error(error) {
        Some(errno) => fault(errno, path),
        None => Fault::new(Code::FileFailed, format!("`{}`: {error}", show(path)), ""),
    }
}
