//! Takes files of the host into a plan: those on the list that every user of the host may read.

use std::{
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use super::{Node, Plan, list};

/// Largest file that is copied, bytes. Chosen: the largest of a full Debian is dpkg's status, about 5 MiB.
pub(super) const FILE_BYTES_MAX: u64 = 32 << 20;
/// Most things of a tree that are looked at. Chosen: a full desktop's dpkg database has about 20,000.
const ENTRIES_MAX: usize = 200_000;
/// Deepest directory below a listed one. Chosen.
const DEPTH_MAX: usize = 16;

/// What a file of the host was like when the plan was made; the copy is refused when it changed its kind since.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) bytes: u64,
    pub(super) mode: u32,
    pub(super) changed_s: i64,
    pub(super) changed_ns: i64,
    pub(super) inode: u64,
}

/// Takes one entry of [`list::COPIED`]; nothing happens when the host has none.
pub(super) fn copied(plan: &mut Plan, host: &Path, entry: &str) -> io::Result<()> {
    let Some(stem) = entry.strip_suffix('*') else { return below(plan, host, Path::new(entry), 0) };
    let path = Path::new(stem);
    let (parent, start) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
    let start = if stem.ends_with('/') { Default::default() } else { start };
    for name in names(&host.join(parent))? {
        if name.as_bytes().starts_with(start.as_bytes()) {
            below(plan, host, &parent.join(name), 0)?;
        }
    }
    Ok(())
}

/// Takes a file, link or tree.
fn below(plan: &mut Plan, host: &Path, path: &Path, depth: usize) -> io::Result<()> {
    if list::NOT_COPIED.iter().any(|left_out| path == Path::new(left_out)) {
        return Ok(());
    }
    let meta = match host.join(path).symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    if plan.nodes.len() >= ENTRIES_MAX || depth > DEPTH_MAX {
        return Err(io::Error::other(format!("`{}` has too many or too deep entries to copy", path.display())));
    }
    if meta.is_symlink() {
        let to = std::fs::read_link(host.join(path))?;
        // A link that leads out of what a sandbox sees would only tell a name of the host's.
        if leads(path, &to).is_some_and(|end| visible(&end)) {
            parents(plan, path);
            plan.put_path(path.to_owned(), Node::Link { to: to.into_os_string() });
        }
    } else if meta.is_dir() && meta.mode() & 0o005 == 0o005 {
        parents(plan, path);
        if !plan.nodes.contains_key(path) {
            plan.put_path(path.to_owned(), Node::Dir { mode: 0o755, owner: 0, group: 0 });
        }
        for name in names(&host.join(path))? {
            below(plan, host, &path.join(name), depth + 1)?;
        }
    } else if meta.is_file() && meta.mode() & 0o004 != 0 && meta.len() <= FILE_BYTES_MAX {
        parents(plan, path);
        let seen = Seen {
            bytes: meta.len(),
            // Neither set-user-id nor write for others has a place in a template.
            mode: meta.mode() & 0o755,
            changed_s: meta.mtime(),
            changed_ns: meta.mtime_nsec(),
            inode: meta.ino(),
        };
        plan.put_path(path.to_owned(), Node::Copy { from: host.join(path), seen });
    }
    Ok(())
}

/// Directories above a listed file that is deeper than the made ones.
fn parents(plan: &mut Plan, path: &Path) {
    let mut parent = PathBuf::new();
    for part in path.parent().unwrap_or(Path::new("")).components() {
        parent.push(part);
        if !plan.nodes.contains_key(&parent) {
            plan.put_path(parent.clone(), Node::Dir { mode: 0o755, owner: 0, group: 0 });
        }
    }
}

/// The names in a directory, sorted; none when it is not there.
pub(super) fn names(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        names.push(entry?.file_name());
    }
    names.sort();
    Ok(names)
}

/// Where the link at `path` leads, from the root, by its text alone; `None` when it climbs above the root.
pub(super) fn leads(path: &Path, to: &Path) -> Option<PathBuf> {
    let mut end = if to.is_absolute() { PathBuf::new() } else { path.parent()?.to_owned() };
    for part in to.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir => {
                if !end.pop() {
                    return None;
                }
            }
            Component::Normal(name) => end.push(name),
            Component::Prefix(_) => return None,
        }
    }
    Some(end)
}

/// Whether what is there on the host is in a sandbox too, or is on one of the lists.
fn visible(path: &Path) -> bool {
    ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"].iter().any(|top| path.starts_with(top))
        || path.starts_with("proc/self")
        || list::COPIED.iter().any(|entry| match entry.path.strip_suffix('*') {
            Some(stem) => path.as_os_str().as_bytes().starts_with(stem.as_bytes()),
            None => path.starts_with(entry.path),
        })
}
