//! Watching files with inotify(7). Watches are put on descriptors, never on paths.

use std::{
    collections::HashMap,
    ffi::OsStr,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rf_places::place::{Change, ChangeKind};
use rf_types::{Code, Fault, FileKind};
use rustix::{
    fs::{Dir, Mode, OFlags, inotify},
    io::Errno,
};
use tokio::io::unix::AsyncFd;

use super::{
    files::DEPTH_MAX,
    resolve::{Root, beneath, fault, kind_of, proc_path},
};

/// Most directories below one watch.
const DIRECTORIES_MAX: usize = 8192;

/// What the kernel tells.
struct Event {
    watch: i32,
    flags: inotify::ReadFlags,
    /// The same in both halves of a rename.
    cookie: u32,
    name: Option<std::ffi::OsString>,
}

/// A running watch.
pub(crate) struct Watching {
    inotify: AsyncFd<OwnedFd>,
    top: OwnedFd,
    recursive: bool,
    /// Paths below the watched one, by watch descriptor.
    paths: HashMap<i32, PathBuf>,
}

fn mask() -> inotify::WatchFlags {
    use inotify::WatchFlags as W;
    W::CREATE | W::MODIFY | W::ATTRIB | W::DELETE | W::DELETE_SELF | W::MOVED_FROM | W::MOVED_TO | W::MOVE_SELF
}

fn exhausted(errno: Errno, path: &Path) -> Fault {
    match errno {
        Errno::NOSPC | Errno::MFILE | Errno::NOMEM => Fault::new(
            Code::PlaceExhausted,
            "the machine has no inotify watches left",
            "watch less, or raise fs.inotify.max_user_watches and max_user_instances there",
        ),
        errno => fault(errno, path.as_os_str()),
    }
}

impl Watching {
    /// Begins to watch `path`. Blocks while it walks the tree.
    pub(crate) fn start(root: &Root, path: &str, recursive: bool) -> Result<Self, Fault> {
        let named = Path::new(path);
        let top = root.find(path, true)?;
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(|errno| exhausted(errno, named))?;
        #[expect(deprecated, reason = "its contract, a descriptor that stays the same and open, is an `OwnedFd`'s own")]
        let inotify = AsyncFd::new(inotify).map_err(|error| super::resolve::io_fault(&error, named.as_os_str()))?;
        let mut watching = Self { inotify, top, recursive, paths: HashMap::new() };
        watching.add(PathBuf::new(), 0, &mut Vec::new()).map_err(|errno| exhausted(errno, named))?;
        Ok(watching)
    }

    /// Watches `path` and, when asked to, what is below; tells what it found there.
    fn add(&mut self, path: PathBuf, depth: usize, found: &mut Vec<Change>) -> Result<(), Errno> {
        if self.paths.len() >= DIRECTORIES_MAX || depth >= DEPTH_MAX {
            return Err(Errno::NOSPC);
        }
        let file = match path.as_os_str().is_empty() {
            true => rustix::io::fcntl_dupfd_cloexec(&self.top, 3)?,
            // Gone again, or no longer a directory: nothing to watch.
            false => match beneath(self.top.as_fd(), &path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(file) => file,
                Err(_) => return Ok(()),
            },
        };
        let watch = inotify::add_watch(self.inotify.get_ref(), proc_path(&file), mask())?;
        self.paths.insert(watch, path.clone());
        if !self.recursive || kind_of(&rustix::fs::fstat(&file)?) != FileKind::Directory {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // What the owner may not read is watched itself and not gone into.
        let Ok(readable) = rustix::fs::openat(&file, ".", flags, Mode::empty()) else { return Ok(()) };
        let mut below = Vec::new();
        for entry in Dir::read_from(&readable)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                let directory = entry.file_type() == rustix::fs::FileType::Directory;
                found.push(change(&path.join(name), ChangeKind::Create, directory));
                if directory {
                    below.push(path.join(name));
                }
            }
        }
        drop((readable, file));
        below.into_iter().try_for_each(|path| self.add(path, depth + 1, found))
    }

    /// Watches `path` and what is below no longer: it is now where nobody asked for it, and perhaps where the owner does not
    /// allow it.
    fn forget(&mut self, path: &Path) {
        let inotify = self.inotify.get_ref();
        self.paths.retain(|watch, below| {
            let stays = !below.starts_with(path);
            if !stays {
                // One that is gone by itself has no watch any more.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            stays
        });
    }

    /// Waits for the next changes; none when what was watched is gone.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Fault> {
        loop {
            if self.paths.is_empty() {
                return Ok(Vec::new());
            }
            let failed = |error: &std::io::Error| super::resolve::io_fault(error, OsStr::new("inotify"));
            let mut ready = self.inotify.readable().await.map_err(|error| failed(&error))?;
            let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
            let mut events = Vec::new();
            let mut reader = inotify::Reader::new(ready.get_inner(), &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
                        events.push(Event { watch: event.wd(), flags: event.events(), cookie: event.cookie(), name });
                        if reader.is_buffer_empty() {
                            break;
                        }
                    }
                    Err(Errno::AGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(errno) => return Err(fault(errno, OsStr::new("inotify"))),
                }
            }
            drop(ready);
            let changes = self.read(events);
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    fn read(&mut self, events: Vec<Event>) -> Vec<Change> {
        use inotify::ReadFlags as R;
        let mut changes: Vec<Change> = Vec::new();
        let mut events = events.into_iter().peekable();
        while let Some(Event { watch, flags, cookie, name }) = events.next() {
            if flags.contains(R::QUEUE_OVERFLOW) {
                changes.push(change(Path::new(""), ChangeKind::Overflow, false));
                continue;
            }
            if flags.contains(R::IGNORED) {
                self.paths.remove(&watch);
                continue;
            }
            let Some(base) = self.paths.get(&watch) else { continue };
            // A directory's own end is told by its parent, but for the top.
            if flags.intersects(R::DELETE_SELF | R::MOVE_SELF) && !base.as_os_str().is_empty() {
                continue;
            }
            let path = name.map_or_else(|| base.clone(), |name| base.join(name));
            let kinds = [
                (R::CREATE, ChangeKind::Create),
                (R::MODIFY, ChangeKind::Write),
                (R::DELETE | R::DELETE_SELF, ChangeKind::Remove),
                (R::MOVED_FROM | R::MOVED_TO | R::MOVE_SELF, ChangeKind::Rename),
                (R::ATTRIB, ChangeKind::Attributes),
            ];
            let directory = flags.contains(R::ISDIR);
            let kinds: Vec<_> =
                kinds.into_iter().filter(|(bits, _)| flags.intersects(*bits)).map(|(_, kind)| kind).collect();
            if kinds.is_empty() {
                continue;
            }
            changes.push(Change { path: path.to_string_lossy().into_owned(), kinds, directory });
            // The two halves of a rename come one after the other; a directory whose second half does not come has left.
            let stays = events.peek().is_some_and(|next| next.flags.contains(R::MOVED_TO) && next.cookie == cookie);
            if directory && flags.contains(R::MOVED_FROM) && !stays {
                self.forget(&path);
            }
            if directory && self.recursive && flags.intersects(R::CREATE | R::MOVED_TO) {
                let mut found = Vec::new();
                if self.add(path, 0, &mut found).is_err() {
                    found.push(change(Path::new(""), ChangeKind::Overflow, false));
                }
                changes.append(&mut found);
            }
        }
        changes
    }
}

fn change(path: &Path, kind: ChangeKind, directory: bool) -> Change {
    Change { path: path.to_string_lossy().into_owned(), kinds: vec![kind], directory }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rf_wire::machine::Level;

    use super::*;

    /// Everything that is told until something is told of `last`.
    async fn told(watching: &mut Watching, last: &str) -> Vec<String> {
        let mut paths = Vec::new();
        while !paths.iter().any(|path| path == last) {
            let changes = tokio::time::timeout(Duration::from_secs(10), watching.next()).await.unwrap().unwrap();
            paths.extend(changes.into_iter().map(|change| change.path));
        }
        paths
    }

    #[tokio::test]
    async fn a_directory_that_leaves_is_watched_no_longer_and_one_that_moves_within_still_is() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |path: &str| inside.path().join(path);
        for directory in ["leaves/deep", "moves/deep"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        let root = Root::open(inside.path(), Level::Workspace).unwrap();
        let mut watching = Watching::start(&root, "", true).unwrap();
        std::fs::write(at("leaves/deep/mine"), "").unwrap();
        // Until then it is told.
        told(&mut watching, "leaves/deep/mine").await;
        std::fs::rename(at("leaves"), outside.path().join("left")).unwrap();
        std::fs::rename(at("moves"), at("moved")).unwrap();
        told(&mut watching, "moved").await;
        std::fs::write(outside.path().join("left/deep/private"), "").unwrap();
        std::fs::write(outside.path().join("left/private"), "").unwrap();
        std::fs::write(at("moved/deep/here"), "").unwrap();
        let paths = told(&mut watching, "moved/deep/here").await;
        assert!(!paths.iter().any(|path| path.contains("private")), "{paths:?}");
    }
}
