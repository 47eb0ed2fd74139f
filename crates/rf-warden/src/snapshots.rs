//! The snapshots and the layers that they stand on, shared by reference. No process is started here.
//!
//! ```text
//! warden/snapshots/kept/HEX/root, HEX/bind0 …   one layer; HEX.part while it is copied, HEX.gone while it is removed
//! warden/snapshots/SNAPSHOT.json                a durable snapshot: what it is, and its layers, lowest first
//! ```
//!
//! A layer counts once, as the oldest snapshot's that names it: when that is removed it counts as the next one's, whose size
//! grows by it. So what a user's snapshots are told to hold is all that is kept for them.
//!
//! A layer begins as the directory that a sandbox wrote, on the file system of that sandbox, and is copied to disk
//! afterwards; a snapshot is durable when all its layers are, and only then has a file. A layer goes when no snapshot, no
//! sandbox and no copy under way names it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rf_sandbox::{
    keep::{self, Kept, Part},
    plan::Above,
    push::Written,
};
use rf_types::{Code, Fault, SandboxId, SnapshotId};
use rf_wire::warden::{SNAPSHOTS_MAX, Snapshot};
use serde::{Deserialize, Serialize};

use crate::{WardenConfig, WardenError};

/// Most snapshots that one warden keeps. Chosen; each is a few hundred bytes here.
const ALL_MAX: usize = 100_000;
/// Most layers of a snapshot's own, above its template's. Chosen: with as many for `/usr` they fit beside one message.
pub(crate) const CHAIN_MAX: usize = 60;
/// From how many on the layers of a snapshot are copied into one. Chosen: every layer makes looking for a name slower,
/// and copying them all now and then costs no more than each once again.
const MERGE_FROM: usize = 16;
/// How often a copy of what a sandbox that is gone wrote may fail for what it is, before it is given up. Chosen.
const FAILURES_MAX: u32 = 3;
/// Below so much room on the server's disk a copy that fails says nothing of what was to be copied. Chosen.
const ROOM: (u64, u64) = (64 << 20, 1_000);
/// How long after a copy failed it is tried again. Chosen.
const RETRY: Duration = Duration::from_secs(30);
/// How long after a snapshot was made its layers are copied, while the sandbox that wrote them lives. Chosen: whoever made
/// it is at work with it, and would share the processors and the disk with the copy; and one that was made for a fork is
/// removed long before.
pub(crate) const REST: Duration = Duration::from_millis(250);

/// Names one layer. Text: 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct LayerId(u128);

impl LayerId {
    /// A fresh one.
    pub(crate) fn random() -> Self {
        Self(SnapshotId::random().bits())
    }

    fn parse(text: &str) -> Option<Self> {
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let fits = text.len() == 32 && text.bytes().all(lower_hex);
        fits.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Where a sandbox wrote a layer.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Which.
    pub(crate) owner: SandboxId,
    /// The mount of its file system.
    pub(crate) disk: OwnedFd,
    pub(crate) written: Vec<Written>,
}

#[derive(Debug)]
struct Layer {
    /// Binds with an overlay, in the order of their directories.
    binds: Vec<PathBuf>,
    origin: Option<Origin>,
    durable: bool,
    /// A copy of it, or with it, is under way.
    busy: bool,
    size: Kept,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    count: u32,
    why: String,
}

#[derive(Debug)]
struct Record {
    info: Snapshot,
    /// Lowest first.
    chain: Vec<LayerId>,
    /// The layers of the template, as it was then; none of a built-in one.
    template_layers: Vec<String>,
    /// When it was noted here.
    since: Instant,
}

/// A durable snapshot as it is stored.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    snapshot: Snapshot,
    template_layers: Vec<String>,
    layers: Vec<StoredLayer>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredLayer {
    id: String,
    binds: Vec<PathBuf>,
    /// Nothing in a file of before layers were counted by themselves.
    #[serde(default)]
    size: Kept,
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Job {
    /// Copy these layers, lowest first, into the directory of this one.
    Keep { from: Vec<LayerId>, into: LayerId },
    /// Remove this directory.
    Remove(PathBuf),
}

#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    all: BTreeMap<SnapshotId, Record>,
    /// Those that are not durable yet.
    pending: BTreeSet<SnapshotId>,
    /// Layers of which a copy failed: when, how often while the disk had room, and why.
    failed: HashMap<LayerId, Failure>,
    layers: HashMap<LayerId, Layer>,
    /// Directories to be removed.
    gone: Vec<PathBuf>,
    /// Snapshots whose size is another one, and nobody was told.
    resized: BTreeSet<SnapshotId>,
    /// Layers that a file may name although nothing here does: it could not be written for certain.
    doubted: BTreeSet<LayerId>,
}

impl Snapshots {
    /// Reads what is durable; what is not was lost with the former warden.
    pub(crate) fn open(config: &WardenConfig) -> Result<Self, WardenError> {
        Self::open_at(config.own("snapshots"))
    }

    fn open_at(dir: PathBuf) -> Result<Self, WardenError> {
        let mut this = Self {
            dir,
            all: BTreeMap::new(),
            pending: BTreeSet::new(),
            failed: HashMap::new(),
            layers: HashMap::new(),
            gone: Vec::new(),
            resized: BTreeSet::new(),
            doubted: BTreeSet::new(),
        };
        let entries = |dir: &Path| -> Result<Vec<PathBuf>, WardenError> {
            let entries = fs::read_dir(dir).map_err(WardenError::file(dir))?;
            Ok(entries.flatten().map(|entry| entry.path()).collect())
        };
        for path in entries(&this.dir)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => this.read(&path).map_err(WardenError::file(&path))?,
                Some("part") => fs::remove_file(&path).map_err(WardenError::file(&path))?,
                _ => {}
            }
        }
        for path in entries(&this.kept_dir())? {
            let id = path.file_name().and_then(|name| name.to_str()).and_then(LayerId::parse);
            if id.is_none_or(|id| !this.layers.contains_key(&id)) {
                this.gone.push(path);
            }
        }
        let all: Vec<LayerId> = this.layers.keys().copied().collect();
        this.charge(&all);
        Ok(this)
    }

    fn read(&mut self, path: &Path) -> io::Result<()> {
        let Stored { snapshot, template_layers, layers } = serde_json::from_slice(&fs::read(path)?)?;
        let mut chain = Vec::new();
        for StoredLayer { id, binds, size } in layers {
            let id = LayerId::parse(&id).ok_or(io::ErrorKind::InvalidData)?;
            if !self.layer_dir(id).is_dir() {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("its layer {id} is not there")));
            }
            self.layers.entry(id).or_insert(Layer { binds, origin: None, durable: true, busy: false, size });
            chain.push(id);
        }
        let since = Instant::now();
        self.all.insert(snapshot.id, Record { info: snapshot, chain, template_layers, since });
        Ok(())
    }

    fn kept_dir(&self) -> PathBuf {
        self.dir.join("kept")
    }

    fn layer_dir(&self, id: LayerId) -> PathBuf {
        self.kept_dir().join(id.to_string())
    }

    fn file(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Those behind `after`, and whether there are more.
    pub(crate) fn list(&self, after: Option<SnapshotId>) -> (Vec<Snapshot>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut rest = self.all.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|(_, record)| &record.info);
        let list = rest.by_ref().take(SNAPSHOTS_MAX).cloned().collect();
        (list, rest.next().is_some())
    }

    /// Whether a snapshot of this name and so many layers may be made.
    pub(crate) fn may_add(&self, id: SnapshotId, layers: usize) -> Result<(), Fault> {
        if self.all.contains_key(&id) {
            return Err(Fault::new(Code::Conflict, "there is such a snapshot already", "choose another id"));
        }
        if self.all.len() >= ALL_MAX {
            return Err(Fault::new(Code::ServerBusy, "this server keeps as many snapshots as it may", "remove some"));
        }
        if layers > CHAIN_MAX {
            let message = format!("the layers of this sandbox are being put together, and it has {layers} by now");
            return Err(Fault::new(Code::ServerBusy, message, "try again shortly"));
        }
        Ok(())
    }

    /// What a snapshot is, its layers, and those of its template as it was then.
    pub(crate) fn get(&self, id: SnapshotId) -> Result<(&Snapshot, &[LayerId], &[String]), Fault> {
        let record = self.all.get(&id).ok_or_else(|| Fault::not_found("snapshot"))?;
        Ok((&record.info, &record.chain, &record.template_layers))
    }

    /// Notes a layer of so many bytes and files.
    pub(crate) fn add_layer(&mut self, id: LayerId, binds: Vec<PathBuf>, origin: Option<Origin>, size: Kept) {
        let durable = origin.is_none();
        self.layers.insert(id, Layer { binds, origin, durable, busy: false, size });
    }

    /// Forgets a layer that no snapshot names.
    pub(crate) fn forget(&mut self, id: LayerId) -> Option<OwnedFd> {
        self.layers.remove(&id).and_then(|layer| layer.origin).map(|origin| origin.disk)
    }

    /// Whether a layer is still only where this sandbox wrote it; `waiting`: one that is to be copied.
    pub(crate) fn has_of(&self, owner: SandboxId, waiting: bool) -> bool {
        let of_owner = |layer: &Layer| layer.origin.as_ref().is_some_and(|origin| origin.owner == owner);
        if !waiting {
            return self.layers.values().any(of_owner);
        }
        let chains = self.pending.iter().filter_map(|id| self.all.get(id)).flat_map(|record| &record.chain);
        chains.filter_map(|id| self.layers.get(id)).any(of_owner)
    }

    /// Whose disks these layers are on that are nowhere else yet.
    pub(crate) fn owners(&self, chain: &[LayerId]) -> BTreeSet<SandboxId> {
        let layers = chain.iter().filter_map(|id| self.layers.get(id)).filter(|layer| !layer.durable);
        layers.filter_map(|layer| layer.origin.as_ref().map(|origin| origin.owner)).collect()
    }

    /// Gives up the snapshots of sandboxes that are gone whose files cannot be kept: which, and why.
    pub(crate) fn give_up(&mut self, lives: impl Fn(SandboxId) -> bool) -> Vec<(SnapshotId, String)> {
        let hopeless = |id: &LayerId| {
            let failed = self.failed.get(id).filter(|failed| failed.count >= FAILURES_MAX)?;
            let owner = self.layers.get(id)?.origin.as_ref()?.owner;
            (!lives(owner)).then(|| failed.why.clone())
        };
        let chain = |id: &SnapshotId| self.all.get(id).map_or(&[][..], |record| &record.chain);
        let lost: Vec<_> =
            self.pending.iter().filter_map(|id| chain(id).iter().find_map(hopeless).map(|why| (*id, why))).collect();
        for (id, _) in &lost {
            self.pending.remove(id);
            let chain = self.all.remove(id).map_or_else(Vec::new, |record| record.chain);
            self.charge(&chain);
        }
        lost
    }

    /// Whether no layer is noted.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Whether a layer is noted.
    pub(crate) fn has(&self, id: LayerId) -> bool {
        self.layers.contains_key(&id)
    }

    /// Counts these layers anew, each as the oldest snapshot's that names it.
    fn charge(&mut self, layers: &[LayerId]) {
        let touched = |record: &&Record| record.chain.iter().any(|id| layers.contains(id));
        let near: BTreeSet<LayerId> =
            self.all.values().filter(touched).flat_map(|record| record.chain.iter().copied()).collect();
        let mut holders: HashMap<LayerId, (u64, SnapshotId)> = HashMap::new();
        for record in self.all.values() {
            let age = (record.info.created_at, record.info.id);
            for id in record.chain.iter().filter(|id| near.contains(id)) {
                holders.entry(*id).and_modify(|oldest| *oldest = age.min(*oldest)).or_insert(age);
            }
        }
        for record in self.all.values_mut().filter(|record| record.chain.iter().any(|id| layers.contains(id))) {
            let own = |id: &&LayerId| holders.get(id).is_some_and(|(_, holder)| *holder == record.info.id);
            let sizes = record.chain.iter().filter(own).filter_map(|id| self.layers.get(id)).map(|layer| layer.size);
            let sum = |sum: Kept, size: Kept| Kept { bytes: sum.bytes + size.bytes, files: sum.files + size.files };
            let size = sizes.fold(Kept::default(), sum);
            if (record.info.bytes, record.info.files) != (size.bytes, size.files) {
                (record.info.bytes, record.info.files) = (size.bytes, size.files);
                self.resized.insert(record.info.id);
            }
        }
    }

    /// Those whose size became another one since this was last asked.
    pub(crate) fn resized(&mut self) -> Vec<Snapshot> {
        let ids = std::mem::take(&mut self.resized);
        ids.into_iter().filter_map(|id| self.all.get(&id)).map(|record| record.info.clone()).collect()
    }

    /// Notes a snapshot on layers that are noted.
    ///
    /// # Errors
    /// When all its layers are durable and it cannot be stored.
    pub(crate) fn add(
        &mut self,
        info: Snapshot,
        chain: Vec<LayerId>,
        template_layers: Vec<String>,
    ) -> Result<Snapshot, Fault> {
        let id = info.id;
        self.all.insert(id, Record { info, chain: chain.clone(), template_layers, since: Instant::now() });
        self.pending.insert(id);
        self.charge(&chain);
        if let Err(error) = self.settle(id) {
            self.all.remove(&id);
            self.pending.remove(&id);
            self.charge(&chain);
            return Err(stored(&error));
        }
        // Whoever asked for it is told.
        self.resized.remove(&id);
        Ok(self.get(id)?.0.clone())
    }

    /// Stores a snapshot whose layers are all durable; tells whether it became durable now.
    fn settle(&mut self, id: SnapshotId) -> io::Result<bool> {
        let Some(record) = self.all.get(&id) else { return Ok(false) };
        let all_durable = |layer: &LayerId| self.layers.get(layer).is_some_and(|layer| layer.durable);
        if record.info.durable || !record.chain.iter().all(all_durable) {
            return Ok(false);
        }
        let info = Snapshot { durable: true, ..record.info.clone() };
        self.store(id, info)?;
        self.pending.remove(&id);
        Ok(true)
    }

    /// Writes a snapshot's file beside, then names it.
    fn store(&mut self, id: SnapshotId, info: Snapshot) -> io::Result<()> {
        let file = self.file(id);
        let Some(record) = self.all.get_mut(&id) else { return Ok(()) };
        let layers = record.chain.iter().map(|id| {
            let (binds, size) = self.layers.get(id).map(|layer| (layer.binds.clone(), layer.size)).unwrap_or_default();
            StoredLayer { id: id.to_string(), binds, size }
        });
        let stored = Stored {
            snapshot: Snapshot { layers: u32::try_from(record.chain.len()).unwrap_or(u32::MAX), ..info },
            template_layers: record.template_layers.clone(),
            layers: layers.collect(),
        };
        let part = file.with_extension("part");
        fs::write(&part, serde_json::to_vec(&stored)?)?;
        fs::File::open(&part)?.sync_all()?;
        fs::rename(&part, &file)?;
        fs::File::open(&self.dir)?.sync_all()?;
        record.info = stored.snapshot;
        Ok(())
    }

    /// Removes a snapshot; its layers go with [`Self::collect`]. Gives the layers of its template.
    pub(crate) fn remove(&mut self, id: SnapshotId) -> Result<Vec<String>, Fault> {
        let record = self.all.get(&id).ok_or_else(|| Fault::not_found("snapshot"))?;
        if record.info.durable {
            let removed = fs::remove_file(self.file(id)).and_then(|()| fs::File::open(&self.dir)?.sync_all());
            removed.map_err(|error| stored(&error))?;
        }
        self.pending.remove(&id);
        let Some(Record { chain, template_layers, .. }) = self.all.remove(&id) else { return Ok(Vec::new()) };
        self.charge(&chain);
        Ok(template_layers)
    }

    /// The layers of templates that snapshots stand on.
    pub(crate) fn template_layers(&self) -> BTreeSet<String> {
        self.all.values().flat_map(|record| record.template_layers.iter().cloned()).collect()
    }

    /// Where each of these layers can be had now, for a root.
    pub(crate) fn above(&self, chain: &[LayerId]) -> Result<Vec<Above>, Fault> {
        chain.iter().map(|id| self.above_of(*id)).collect()
    }

    fn above_of(&self, id: LayerId) -> Result<Above, Fault> {
        let lost = || Fault::new(Code::Internal, format!("the layer {id} is not there"), "");
        let layer = self.layers.get(&id).ok_or_else(lost)?;
        if layer.durable {
            let dir = self.layer_dir(id);
            let bind = |(index, to): (usize, &PathBuf)| (to.clone(), dir.join(bind_name(index)));
            return Ok(Above { root: dir.join(ROOT), binds: layer.binds.iter().enumerate().map(bind).collect() });
        }
        let origin = layer.origin.as_ref().ok_or_else(lost)?;
        let at = |written: &Written| below(&origin.disk, &written.dir);
        let root = origin.written.iter().find(|written| written.bind.is_none()).map(at).ok_or_else(lost)?;
        let bind = |written: &Written| Some((written.bind.clone()?, at(written)));
        Ok(Above { root, binds: origin.written.iter().filter_map(bind).collect() })
    }

    /// What is to be copied of these layers, lowest first, into one directory, and the binds of that.
    pub(crate) fn parts(&self, from: &[LayerId]) -> Result<(Vec<Part>, Vec<PathBuf>), Fault> {
        let above = self.above(from)?;
        let mut binds: Vec<PathBuf> = Vec::new();
        for (to, _) in above.iter().flat_map(|above| &above.binds) {
            if !binds.contains(to) {
                binds.push(to.clone());
            }
        }
        let root = Part { name: ROOT.to_owned(), layers: above.iter().rev().map(|above| above.root.clone()).collect() };
        let of = |to: &PathBuf| {
            let dirs = above.iter().rev().flat_map(|above| &above.binds);
            dirs.filter(|(bind, _)| bind == to).map(|(_, dir)| dir.clone()).collect()
        };
        let parts = binds.iter().enumerate().map(|(index, to)| Part { name: bind_name(index), layers: of(to) });
        Ok((std::iter::once(root).chain(parts).collect(), binds))
    }

    /// An empty directory for a layer that is about to be copied.
    pub(crate) fn begin(&self, id: LayerId) -> Result<PathBuf, Fault> {
        let part = self.layer_dir(id).with_extension("part");
        fs::create_dir(&part).map(|()| part).map_err(|error| stored(&error))
    }

    /// Names the directory of a layer that was copied whole.
    pub(crate) fn name(&self, id: LayerId) -> Result<(), Fault> {
        let dir = self.layer_dir(id);
        let named = fs::rename(dir.with_extension("part"), &dir);
        named.and_then(|()| fs::File::open(self.kept_dir())?.sync_all()).map_err(|error| stored(&error))
    }

    /// Drops what was copied of a layer.
    pub(crate) fn drop_part(&mut self, id: LayerId) {
        self.gone.push(self.layer_dir(id).with_extension("part"));
    }

    /// Whether there may be a [`Self::next_job`].
    pub(crate) fn has_work(&self) -> bool {
        !self.layers.is_empty() || !self.gone.is_empty()
    }

    /// The next thing to do, if there is any; it is under way from now on. With `haste` nothing rests first. `lives` says
    /// whether a sandbox is there still, and `chains` has those of sandboxes that are due to be copied into one layer.
    pub(crate) fn next_job(
        &mut self,
        haste: bool,
        lives: impl Fn(SandboxId) -> bool,
        chains: impl Iterator<Item = Vec<LayerId>>,
    ) -> Option<Job> {
        if let Some(path) = self.gone.pop() {
            return Some(Job::Remove(path));
        }
        let now = Instant::now();
        let ready = |id: &LayerId| {
            let rested = self.failed.get(id).is_none_or(|failed| now.duration_since(failed.at) >= RETRY);
            rested && self.layers.get(id).is_some_and(|layer| !layer.busy)
        };
        // What was written by a sandbox that is gone takes up memory for this alone.
        let is_left = |id: &LayerId| {
            let layer = self.layers.get(id).filter(|layer| !layer.durable);
            layer.and_then(|layer| layer.origin.as_ref()).is_some_and(|origin| !lives(origin.owner))
        };
        let mut pending = self.pending.iter().filter_map(|id| self.all.get(id));
        let of_snapshot = pending.find_map(|record| {
            let is_due = haste || now.duration_since(record.since) >= REST || record.chain.iter().any(is_left);
            if !is_due {
                return None;
            }
            if is_long(&record.chain) {
                return record.chain.iter().all(ready).then(|| record.chain.clone());
            }
            let wanted = |id: &&LayerId| self.layers.get(id).is_some_and(|layer| !layer.durable) && ready(id);
            record.chain.iter().find(wanted).map(|id| vec![*id])
        });
        let mut chains = chains.filter(|chain| is_long(chain) && chain.iter().all(ready));
        let from = of_snapshot.or_else(|| chains.next())?;
        for id in &from {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.busy = true;
            }
        }
        let into = if let [one] = from[..] { one } else { LayerId::random() };
        Some(Job::Keep { from, into })
    }

    /// Nothing more is done: what is left is found at the next start.
    pub(crate) fn stop(&mut self) {
        self.pending.clear();
        self.gone.clear();
    }

    /// Until something that failed is to be tried again, or something has rested.
    pub(crate) fn until_due(&self) -> Option<Duration> {
        let failed = self.failed.values().map(|failed| RETRY.saturating_sub(failed.at.elapsed()));
        let pending = self.pending.iter().filter_map(|id| self.all.get(id));
        let resting = pending.map(|record| REST.saturating_sub(record.since.elapsed()));
        failed.chain(resting).filter(|left| !left.is_zero()).min()
    }

    /// A copy has failed.
    pub(crate) fn keep_failed(&mut self, from: &[LayerId], into: LayerId, why: &str) {
        let has_room = rustix::fs::statvfs(&self.dir).is_ok_and(|stat| {
            stat.f_bavail.saturating_mul(stat.f_frsize) > ROOM.0 && (stat.f_favail > ROOM.1 || stat.f_files == 0)
        });
        for id in from {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.busy = false;
                let count = self.failed.get(id).map_or(0, |failed| failed.count) + u32::from(has_room);
                self.failed.insert(*id, Failure { at: Instant::now(), count, why: why.to_owned() });
            }
        }
        self.drop_part(into);
    }

    /// `from`, lowest first, was copied and named as `into`: gives the snapshots that changed by it, and what is not used
    /// any more of those that wrote it.
    pub(crate) fn keep_done(
        &mut self,
        from: &[LayerId],
        into: LayerId,
        binds: Vec<PathBuf>,
        kept: Kept,
    ) -> (Vec<Snapshot>, Vec<OwnedFd>) {
        let mut unused = Vec::new();
        for id in from {
            self.failed.remove(id);
            if let Some(layer) = self.layers.get_mut(id) {
                layer.busy = false;
            }
        }
        let merged = from != [into];
        let new = Layer { binds, origin: None, durable: true, busy: false, size: kept };
        let layer = self.layers.entry(into).or_insert(new);
        (layer.durable, layer.size) = (true, kept);
        unused.extend(layer.origin.take().map(|origin| origin.disk));
        let touched: Vec<LayerId> = from.iter().copied().chain([into]).collect();
        let affected = self.all.values().filter(|record| record.chain.iter().any(|id| touched.contains(id)));
        let before: Vec<(Snapshot, Vec<LayerId>)> =
            affected.map(|record| (record.info.clone(), record.chain.clone())).collect();
        if merged {
            for record in self.all.values_mut() {
                replace_prefix(&mut record.chain, from, into);
                record.info.layers = u32::try_from(record.chain.len()).unwrap_or(u32::MAX);
            }
        }
        self.charge(&touched);
        let mut changed = Vec::new();
        for (before, chain) in before {
            let id = before.id;
            // One that cannot be stored is tried again with the next copy, and is not durable until then.
            let settled = self.settle(id).unwrap_or(false);
            let Some(now) = self.all.get(&id).map(|record| record.info.clone()) else { continue };
            if before.durable && now.layers != before.layers && self.store(id, now).is_err() {
                // Its file names the layers that it stood on, or those that it was to stand on: both stay.
                if let Some(record) = self.all.get_mut(&id) {
                    record.chain = chain;
                    record.info.layers = before.layers;
                }
                self.doubted.insert(into);
                self.charge(&touched);
            }
            if settled && let Some(record) = self.all.get(&id) {
                self.resized.remove(&id);
                changed.push(record.info.clone());
            }
        }
        (changed, unused)
    }

    /// Lets go of every layer that neither a snapshot nor `used` names; gives what of sandboxes' file systems is not
    /// needed any more.
    pub(crate) fn collect(&mut self, used: &BTreeSet<LayerId>) -> Vec<OwnedFd> {
        let mut needed: BTreeSet<LayerId> = used.union(&self.doubted).copied().collect();
        needed.extend(self.all.values().flat_map(|record| record.chain.iter().copied()));
        let unneeded: Vec<LayerId> =
            self.layers.iter().filter(|(id, layer)| !layer.busy && !needed.contains(id)).map(|(id, _)| *id).collect();
        let mut unused = Vec::new();
        for id in unneeded {
            let Some(layer) = self.layers.remove(&id) else { continue };
            self.failed.remove(&id);
            if layer.durable {
                let dir = self.layer_dir(id);
                let gone = dir.with_extension("gone");
                // Where it cannot be renamed it goes under its name; no snapshot has it.
                self.gone.push(if fs::rename(&dir, &gone).is_ok() { gone } else { dir });
            }
            unused.extend(layer.origin.map(|origin| origin.disk));
        }
        unused
    }
}

const ROOT: &str = "root";

/// Whether so many layers are better copied into one.
pub(crate) fn is_long(chain: &[LayerId]) -> bool {
    chain.len() >= MERGE_FROM
}

fn bind_name(index: usize) -> String {
    format!("bind{index}")
}

/// A directory of a mount that is attached nowhere, as a path: good while the descriptor is open.
fn below(disk: &OwnedFd, dir: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd())).join(dir)
}

/// Puts one layer in the place of those at the beginning of a chain.
pub(crate) fn replace_prefix(chain: &mut Vec<LayerId>, from: &[LayerId], into: LayerId) {
    if chain.starts_with(from) {
        chain.splice(..from.len(), [into]);
    }
}

fn stored(error: &io::Error) -> Fault {
    let message = format!("the warden cannot keep snapshots: {error}");
    Fault::new(Code::StoreUnavailable, message, "look at its state directory")
}

const _: () = assert!(2 * CHAIN_MAX <= keep::LAYERS_MAX);

#[cfg(test)]
mod tests {
    use rf_types::{DiskKind, TemplateName};
    use rf_wire::warden::SnapshotWay;

    use super::*;

    /// A durable snapshot of two layers whose layers are put together; whether its file can be written then. Gives what a
    /// warden that starts afterwards finds: the snapshot's layers, and those that are there; before, and the new one.
    fn merged(can_store: bool) -> [Vec<LayerId>; 4] {
        let state = tempfile::tempdir().unwrap();
        let dir = || state.path().to_owned();
        fs::create_dir(dir().join("kept")).unwrap();
        let mut snapshots = Snapshots::open_at(dir()).unwrap();
        let [low, high, into] = [(); 3].map(|()| LayerId::random());
        for layer in [low, high, into] {
            fs::create_dir(snapshots.layer_dir(layer)).unwrap();
        }
        snapshots.add_layer(low, Vec::new(), None, Kept::default());
        snapshots.add_layer(high, Vec::new(), None, Kept::default());
        let id = SnapshotId::random();
        let info = Snapshot {
            id,
            template: TemplateName::host(),
            disk: DiskKind::Memory,
            created_at: 1,
            way: SnapshotWay::Pushed,
            bytes: 0,
            files: 0,
            layers: 2,
            durable: false,
        };
        assert!(snapshots.add(info, vec![low, high], Vec::new()).unwrap().durable);
        let in_the_way = snapshots.file(id).with_extension("part");
        if !can_store {
            fs::create_dir(&in_the_way).unwrap();
        }
        snapshots.keep_done(&[low, high], into, Vec::new(), Kept::default());
        snapshots.collect(&BTreeSet::new());
        if !can_store {
            fs::remove_dir(&in_the_way).unwrap();
        }
        let again = Snapshots::open_at(dir()).unwrap();
        let mut there: Vec<LayerId> =
            [low, high, into].into_iter().filter(|id| again.layer_dir(*id).is_dir()).collect();
        there.sort();
        let mut all = vec![low, high, into];
        all.sort();
        assert!(there.iter().all(|id| all.contains(id)));
        [again.get(id).unwrap().1.to_vec(), there, vec![low, high], vec![into]]
    }

    #[test]
    fn a_snapshot_keeps_the_layers_that_its_file_names_when_that_cannot_be_written_anew() {
        let [chain, there, before, into] = merged(false);
        assert_eq!(chain, before);
        assert!(before.iter().chain(&into).all(|id| there.contains(id)));
        // Control: where it can, it stands on the new layer alone, and the others go.
        let [chain, there, _, into] = merged(true);
        assert_eq!((chain, there), (into.clone(), into));
    }
}
