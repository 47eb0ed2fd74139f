//! The `host` template: a root made from the host's `/usr` and a synthetic rest.
//!
//! [`Plan::of`] looks at the host and decides; [`Plan::digest`] names the decision; [`HostTemplate::build`] writes it
//! below a directory, once for each digest. What gets in is on the lists of [`list`], and besides that only what every
//! user of the host may read; users, secrets, homes, environment, host name, machine id and local certificate
//! authorities of the host do not. `/usr` itself is not copied but bound read-only by whoever mounts the root
//! ([`HostTemplate::binds`]): it is taken to hold the distribution's files and what every user of the host may see.
//!
//! The tree is owned by ids 0 to 65535 as a sandbox sees them, to be mapped when it is mounted. Without the right to
//! give files away every file is the builder's, which is the sandbox's `root` then.

pub mod base;
mod certs;
mod collect;
mod etc;
pub mod list;
mod write;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Component, Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The default user's id and group inside every sandbox of the `host` template.
pub const USER_ID: u32 = 1000;

/// Changed when the same host must give another tree; part of every digest.
const FORMAT: &str = "ringfence host template 1";

/// A directory or file of the host that is bound read-only at a place of the root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bind {
    /// On the host, absolute, links resolved.
    pub from: PathBuf,
    /// In the root, absolute; the mount point is in the tree.
    pub to: PathBuf,
}

/// The `host` template as it lies on disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostTemplate {
    /// The tree, to be an overlay's lower directory.
    pub root: PathBuf,
    /// What is mounted over it read-only: `/usr`, and what else of the host's top level is needed and is no link into
    /// `/usr`, then the configured extras. In this order.
    pub binds: Vec<Bind>,
    /// 64 hex digits that change when the tree would.
    pub digest: String,
}

impl HostTemplate {
    /// Builds the tree of this host below `dir`, or finds it there: `dir/host-DIGEST`.
    ///
    /// `dir` must exist and be writable by the builder alone. A build that was cut off leaves `.part` directories,
    /// which the next one removes; so only one process may build in a `dir` at a time. Trees of other digests are left
    /// alone, since sandboxes may stand on them; see [`Self::others`].
    ///
    /// # Errors
    /// An extra directory that is not there or has no allowed target; whatever reading the host or writing `dir` gives.
    pub fn build(dir: &Path, extra: &[(PathBuf, PathBuf)]) -> io::Result<Self> {
        Plan::of(Path::new("/"), extra)?.build(dir)
    }

    /// Trees of the `host` template in `dir` of other digests than this one's: what an upgraded host leaves behind.
    ///
    /// # Errors
    /// `dir` cannot be read.
    pub fn others(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut others = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().as_bytes().starts_with(b"host-") && entry.path() != self.root {
                others.push(entry.path());
            }
        }
        Ok(others)
    }
}

/// Builds the layer that lies below those of every imported template, or finds it: `dir/base-DIGEST`.
///
/// An image may lack what a sandbox needs: the places where `/proc`, `/sys` and `/dev` are mounted, `/tmp`, the default
/// user's home, and names for users. Whatever an image has of these lies above and wins.
///
/// # Errors
/// As [`HostTemplate::build`].
pub fn build_base(dir: &Path) -> io::Result<PathBuf> {
    let plan = Plan::base(Path::new("/"))?;
    write::tree(&plan, dir, "base", &plan.digest())
}

/// One thing of the tree.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Node {
    Dir { mode: u32, owner: u32, group: u32 },
    File { mode: u32, owner: u32, group: u32, bytes: Vec<u8> },
    Copy { from: PathBuf, seen: collect::Seen },
    Link { to: OsString },
}

/// What the tree will be. Nothing is written yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// By path from the root, without a leading slash; a parent always comes before what is in it.
    nodes: BTreeMap<PathBuf, Node>,
    binds: Vec<Bind>,
}

impl Plan {
    /// Decides what the tree of the host with this root is. `extra` are directories or files of the host, each with
    /// its absolute path in the sandbox, bound read-only.
    ///
    /// # Errors
    /// The host has no `/usr`; an extra is not there, or its target is not absolute, has a `..`, or would cover
    /// something that the sandbox is made of; whatever reading the host gives.
    pub fn of(host: &Path, extra: &[(PathBuf, PathBuf)]) -> io::Result<Self> {
        let mut plan = Self { nodes: BTreeMap::new(), binds: Vec::new() };
        plan.dir("", 0o755);
        for &(path, mode) in list::DIRS {
            plan.dir(path, mode);
        }
        for &(path, mode) in list::USER_DIRS {
            plan.put(path, Node::Dir { mode, owner: USER_ID, group: USER_ID });
        }
        plan.top_level(host)?;
        for entry in list::COPIED {
            collect::copied(&mut plan, host, entry.path)?;
        }
        if plan.nodes.contains_key(Path::new("var/lib/dpkg/status")) {
            for &(path, mode) in list::DPKG_DIRS {
                plan.dir(path, mode);
            }
        }
        certs::public_roots(&mut plan, host)?;
        etc::synthetic(&mut plan, host)?;
        for (from, to) in extra {
            plan.extra(host, from, to)?;
        }
        Ok(plan)
    }

    /// Decides what lies below the layers of an imported template; see [`build_base`].
    fn base(host: &Path) -> io::Result<Self> {
        let mut plan = Self { nodes: BTreeMap::new(), binds: Vec::new() };
        plan.dir("", 0o755);
        for &(path, mode) in list::DIRS {
            let top = Path::new(path).components().next().map(Component::as_os_str);
            if ["proc", "sys", "dev", "tmp", "run", "home", "root"].iter().any(|name| top == Some(name.as_ref())) {
                plan.dir(path, mode);
            }
        }
        for (path, mode) in [("etc", 0o755), ("var", 0o755), ("var/tmp", 0o1777)] {
            plan.dir(path, mode);
        }
        for &(path, mode) in list::USER_DIRS {
            plan.put(path, Node::Dir { mode, owner: USER_ID, group: USER_ID });
        }
        etc::accounts(&mut plan, "/bin/sh");
        etc::names(&mut plan);
        etc::processors(&mut plan, host)?;
        Ok(plan)
    }

    /// Names the tree: 64 hex digits. Copied files count by size, mode and time of change, not by content, so that
    /// this takes milliseconds.
    #[must_use]
    pub fn digest(&self) -> String {
        // Every part is written with its length before it, so that no two plans give the same bytes.
        fn part(hash: &mut Sha256, bytes: &[u8]) {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        let mut hash = Sha256::new();
        part(&mut hash, FORMAT.as_bytes());
        for (path, node) in &self.nodes {
            part(&mut hash, path.as_os_str().as_bytes());
            match node {
                Node::Dir { mode, owner, group } => part(&mut hash, format!("d {mode} {owner} {group}").as_bytes()),
                Node::File { mode, owner, group, bytes } => {
                    part(&mut hash, format!("f {mode} {owner} {group}").as_bytes());
                    part(&mut hash, bytes);
                }
                Node::Copy { from, seen } => {
                    part(&mut hash, format!("c {seen:?}").as_bytes());
                    part(&mut hash, from.as_os_str().as_bytes());
                }
                Node::Link { to } => {
                    part(&mut hash, b"l");
                    part(&mut hash, to.as_bytes());
                }
            }
        }
        for bind in &self.binds {
            part(&mut hash, bind.from.as_os_str().as_bytes());
            part(&mut hash, bind.to.as_os_str().as_bytes());
        }
        crate::hex(&hash.finalize())
    }

    /// Writes the tree below `dir`, or finds it there; see [`HostTemplate::build`].
    ///
    /// # Errors
    /// Whatever reading the host or writing `dir` gives.
    pub fn build(&self, dir: &Path) -> io::Result<HostTemplate> {
        let digest = self.digest();
        let root = write::tree(self, dir, "host", &digest)?;
        Ok(HostTemplate { root, binds: self.binds.clone(), digest })
    }

    /// `/usr`, and what stands beside it for programs: links into it are mirrored, directories are bound.
    fn top_level(&mut self, host: &Path) -> io::Result<()> {
        self.binds.push(Bind { from: host.join("usr").canonicalize()?, to: "/usr".into() });
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"] {
            let from = host.join(name);
            let Ok(meta) = from.symlink_metadata() else { continue };
            if meta.is_dir() {
                self.dir(name, 0o755);
                self.binds.push(Bind { from, to: Path::new("/").join(name) });
            } else if meta.is_symlink() {
                let to = std::fs::read_link(&from)?;
                // Anything but a link into /usr is no usr-merge, and where it leads is not in the sandbox.
                if collect::leads(Path::new(name), &to).is_some_and(|path| path.starts_with("usr")) {
                    self.put(name, Node::Link { to: to.into_os_string() });
                }
            }
        }
        Ok(())
    }

    fn extra(&mut self, host: &Path, from: &Path, to: &Path) -> io::Result<()> {
        let refused = |why: &str| {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("extra directory `{}`: {why}", to.display())))
        };
        let Ok(inner) = to.strip_prefix("/") else { return refused("the target is not absolute") };
        let mut parts = inner.components().peekable();
        if parts.peek().is_none() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return refused("the target must be below `/` and have no `..`");
        }
        // Mounts and files of the sandbox's own stand there.
        if ["proc", "sys", "dev", "run", "etc", "tmp", "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "root"]
            .iter()
            .any(|own| inner.starts_with(own))
        {
            return refused("the target is part of the sandbox itself; take one below /opt, /srv, /mnt or /workspace");
        }
        let from = host.join(from.strip_prefix("/").unwrap_or(from)).canonicalize()?;
        let mut parent = PathBuf::new();
        for part in inner.parent().unwrap_or(Path::new("")).components() {
            parent.push(part);
            match self.nodes.get(&parent) {
                None => self.put_path(parent.clone(), Node::Dir { mode: 0o755, owner: 0, group: 0 }),
                Some(Node::Dir { .. }) => {}
                Some(_) => return refused("a parent of the target is no directory"),
            }
        }
        if from.is_dir() {
            if !matches!(self.nodes.get(inner), None | Some(Node::Dir { .. })) {
                return refused("the target is a file of the sandbox");
            }
            self.put_path(inner.to_owned(), Node::Dir { mode: 0o755, owner: 0, group: 0 });
        } else {
            if self.nodes.contains_key(inner) {
                return refused("the target is there already");
            }
            self.put_path(inner.to_owned(), Node::File { mode: 0o644, owner: 0, group: 0, bytes: Vec::new() });
        }
        self.binds.push(Bind { from, to: to.to_owned() });
        Ok(())
    }

    fn put(&mut self, path: &str, node: Node) {
        self.put_path(PathBuf::from(path), node);
    }

    fn put_path(&mut self, path: PathBuf, node: Node) {
        self.nodes.insert(path, node);
    }

    fn dir(&mut self, path: &str, mode: u32) {
        self.put(path, Node::Dir { mode, owner: 0, group: 0 });
    }

    fn file(&mut self, path: &str, mode: u32, text: impl Into<Vec<u8>>) {
        self.put(path, Node::File { mode, owner: 0, group: 0, bytes: text.into() });
    }

    fn link(&mut self, path: &str, to: &str) {
        self.put(path, Node::Link { to: OsString::from_vec(to.as_bytes().to_vec()) });
    }
}
