//! Writes a plan: beside, synced, renamed. A tree that has its name is complete.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

use super::{Node, Plan, collect};

/// Returns `dir/KIND-DIGEST`, which is made when it is not there.
pub(super) fn tree(plan: &Plan, dir: &Path, kind: &str, digest: &str) -> io::Result<PathBuf> {
    let done = dir.join(format!("{kind}-{digest}"));
    if done.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Ok(done);
    }
    remove_parts(dir, kind)?;
    let part = dir.join(format!(".{kind}-{digest}.part"));
    // Only root can give files away; without, the builder is the sandbox's root and owns everything.
    let made = fill(plan, &part, rustix::process::geteuid().is_root()).and_then(|()| {
        // One call makes the whole tree durable; a file-by-file fsync of 10,000 files takes a minute.
        rustix::fs::syncfs(File::open(&part)?)?;
        fs::rename(&part, &done)?;
        File::open(dir)?.sync_all()
    });
    if made.is_err() {
        // The first error is what counts; what is left is removed by the next build.
        let _ = fs::remove_dir_all(&part);
    }
    made.map(|()| done)
}

/// Removes what builds that were cut off left.
fn remove_parts(dir: &Path, kind: &str) -> io::Result<()> {
    let start = format!(".{kind}-");
    for name in collect::names(dir)? {
        let Some(text) = name.to_str() else { continue };
        if text.starts_with(&start) && text.ends_with(".part") {
            fs::remove_dir_all(dir.join(name))?;
        }
    }
    Ok(())
}

/// Makes the tree. Where nothing is given away (`gives`), no directory is closed to its owner either: the builder is no
/// root, and could not remove the tree any more, nor could a person's `rm -r`. Layers are unpacked the same way.
fn fill(plan: &Plan, root: &Path, gives: bool) -> io::Result<()> {
    let own = |path: &Path, owner: u32, group: u32| {
        if gives { lchown(path, Some(owner), Some(group)) } else { Ok(()) }
    };
    let mut modes = Vec::new();
    for (path, node) in &plan.nodes {
        let at = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
        let step = match node {
            Node::Dir { mode, owner, group } => {
                // Writable until the end, whatever it will be.
                let made = DirBuilder::new().mode(0o700).create(&at);
                modes.push((at.clone(), if gives { *mode } else { *mode | 0o700 }));
                made.and_then(|()| own(&at, *owner, *group))
            }
            Node::File { mode, owner, group, bytes } => {
                create(&at).and_then(|mut file| file.write_all(bytes)).and_then(|()| {
                    own(&at, *owner, *group)?;
                    fs::set_permissions(&at, Permissions::from_mode(*mode))
                })
            }
            Node::Copy { from, seen } => copy(from, &at, seen).and_then(|()| own(&at, 0, 0)),
            Node::Link { to } => symlink(to, &at).and_then(|()| own(&at, 0, 0)),
        };
        step.map_err(|e| io::Error::new(e.kind(), format!("cannot make `{}` of the template: {e}", path.display())))?;
    }
    // Deepest first, since a directory may become one that its owner cannot search.
    for (at, mode) in modes.iter().rev() {
        fs::set_permissions(at, Permissions::from_mode(*mode))?;
    }
    Ok(())
}

fn create(at: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(at)
}

fn copy(from: &Path, at: &Path, seen: &collect::Seen) -> io::Result<()> {
    // A FIFO that took the file's place must not hang us, nor a link lead elsewhere.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let source = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(from)?;
    let meta = source.metadata()?;
    if !meta.is_file() || meta.mode() & 0o004 == 0 || meta.ino() != seen.inode || meta.len() != seen.bytes {
        return Err(io::Error::other("it changed while it was copied; try again"));
    }
    let mut file = create(at)?;
    io::copy(&mut source.take(collect::FILE_BYTES_MAX), &mut file)?;
    file.set_permissions(Permissions::from_mode(seen.mode | 0o444))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn who_owns_the_whole_tree_can_remove_it() {
        let mut plan = Plan { nodes: BTreeMap::new(), binds: Vec::new() };
        plan.put("", Node::Dir { mode: 0o755, owner: 0, group: 0 });
        plan.put("closed", Node::Dir { mode: 0o555, owner: 0, group: 0 });
        plan.put("closed/within", Node::Dir { mode: 0o1077, owner: 7, group: 7 });
        plan.file("closed/file", 0o444, "");
        let dir = tempfile::tempdir().unwrap();
        let mode = |tree: &str, path: &str| dir.path().join(tree).join(path).metadata().unwrap().mode() & 0o7777;
        fill(&plan, &dir.path().join("own"), false).unwrap();
        let own = ["closed", "closed/within", "closed/file"].map(|path| mode("own", path));
        assert_eq!(own, [0o755, 0o1777, 0o444]);
        // Control: as root, who may remove everything, they are as they are to be.
        if rustix::process::geteuid().is_root() {
            fill(&plan, &dir.path().join("given"), true).unwrap();
            assert_eq!(["closed", "closed/within"].map(|path| mode("given", path)), [0o555, 0o1077]);
        }
    }
}
