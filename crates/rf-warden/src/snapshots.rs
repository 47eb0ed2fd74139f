//! The snapshots and the layers that they stand on, shared by reference. No process is started here.
//!
//! ```text
//! warden/snapshots/kept/HEX/root, HEX/bind0 …   one layer; HEX.part while it is copied, another name ending in .gone
//!                                               while it is removed
//! warden/snapshots/SNAPSHOT.json                a durable snapshot: what it is, and its layers, lowest first (`files`)
//! ```
//!
//! A layer counts once, as the oldest snapshot's that names it: when that is removed it counts as the next one's, whose size
//! grows by it. So what a user's snapshots are told to hold is all that is kept for them.
//!
//! A layer begins as the directory that a sandbox wrote, on the file system of that sandbox, and is copied to disk
//! afterwards; a snapshot is durable when all its layers are, and only then has a file. A layer goes when no snapshot, no
//! sandbox and no copy under way names it.

mod files;

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
use rf_types::{Code, Fault, SandboxId, SnapshotId, units::UnixMs};
use rf_wire::warden::{SNAPSHOTS_MAX, Snapshot};

pub use self::files::{SetAside, set_aside};
use crate::gone::let_go;

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
    /// The snapshots that name it, the oldest first.
    holders: BTreeSet<(UnixMs, SnapshotId)>,
}

impl Layer {
    const fn new(binds: Vec<PathBuf>, origin: Option<Origin>, durable: bool, size: Kept) -> Self {
        Self { binds, origin, durable, busy: false, size, holders: BTreeSet::new() }
    }
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

/// What is to be copied next: these layers, lowest first, into the directory of this one.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) from: Vec<LayerId>,
    pub(crate) into: LayerId,
}

#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    all: BTreeMap<SnapshotId, Record>,
    /// Those that are not durable yet.
    pending: BTreeSet<SnapshotId>,
    /// Layers of which a copy failed: when, how often while the disk had room, and why.
    failed: HashMap<LayerId, Failure>,
    /// Chains that could not be copied into one layer, and when: one of their layers may be to blame, the others are not.
    unmerged: HashMap<Vec<LayerId>, Instant>,
    /// Layers of templates, and how many snapshots have them.
    template_layers: HashMap<String, usize>,
    layers: HashMap<LayerId, Layer>,
    /// Directories to be removed.
    gone: Vec<PathBuf>,
    /// Snapshots whose size is another one, and nobody was told.
    resized: BTreeSet<SnapshotId>,
    /// Layers that a file may name although nothing here does: it could not be written for certain, or not read.
    doubted: BTreeSet<LayerId>,
    /// Snapshots whose files were set aside.
    set_aside: BTreeSet<SnapshotId>,
    /// Whether there was such a file at the start: it may name any layer of a template.
    guards: bool,
}

impl Snapshots {
    fn empty(dir: PathBuf) -> Self {
        Self {
            dir,
            all: BTreeMap::new(),
            pending: BTreeSet::new(),
            failed: HashMap::new(),
            unmerged: HashMap::new(),
            template_layers: HashMap::new(),
            layers: HashMap::new(),
            gone: Vec::new(),
            resized: BTreeSet::new(),
            doubted: BTreeSet::new(),
            set_aside: BTreeSet::new(),
            guards: false,
        }
    }

    fn insert(&mut self, record: Record) {
        for id in &record.template_layers {
            *self.template_layers.entry(id.clone()).or_default() += 1;
        }
        self.link(&record.chain, (record.info.created_at, record.info.id));
        self.all.insert(record.info.id, record);
    }

    /// Forgets a snapshot and counts its layers anew; gives those of its template.
    fn take(&mut self, id: SnapshotId) -> Vec<String> {
        self.pending.remove(&id);
        let Some(Record { info, chain, template_layers, .. }) = self.all.remove(&id) else { return Vec::new() };
        for id in &template_layers {
            if let Some(count) = self.template_layers.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    self.template_layers.remove(id);
                }
            }
        }
        self.unlink(&chain, (info.created_at, info.id));
        self.charge(&chain);
        template_layers
    }

    fn link(&mut self, chain: &[LayerId], holder: (UnixMs, SnapshotId)) {
        for id in chain {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.holders.insert(holder);
            }
        }
    }

    fn unlink(&mut self, chain: &[LayerId], holder: (UnixMs, SnapshotId)) {
        for id in chain {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.holders.remove(&holder);
            }
        }
    }

    /// Gives a snapshot another chain that has the same files.
    fn relink(&mut self, id: SnapshotId, chain: Vec<LayerId>) {
        let Some(record) = self.all.get_mut(&id) else { return };
        record.info.layers = u32::try_from(chain.len()).unwrap_or(u32::MAX);
        let holder = (record.info.created_at, id);
        let before = std::mem::replace(&mut record.chain, chain.clone());
        self.unlink(&before, holder);
        self.link(&chain, holder);
    }

    /// Those that name one of these layers.
    fn holders(&self, layers: &[LayerId]) -> BTreeSet<SnapshotId> {
        let holders = layers.iter().filter_map(|id| self.layers.get(id)).flat_map(|layer| &layer.holders);
        holders.map(|(_, id)| *id).collect()
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

    /// Some of those behind `after`, in the order of their ids; those whose files were set aside; whether there are more.
    pub(crate) fn list(&self, after: Option<SnapshotId>) -> (Vec<Snapshot>, Vec<SnapshotId>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let behind = (after.map_or(Unbounded, Excluded), Unbounded);
        let mut good = self.all.range(behind).map(|(id, record)| (*id, &record.info)).peekable();
        let mut bad = self.set_aside.range(behind).copied().peekable();
        let (mut list, mut set_aside) = (Vec::new(), Vec::new());
        while list.len() + set_aside.len() < SNAPSHOTS_MAX {
            match (good.peek(), bad.peek()) {
                (Some((id, _)), Some(other)) if other < id => set_aside.extend(bad.next()),
                (Some(_), _) => list.extend(good.next().map(|(_, info)| info.clone())),
                (None, Some(_)) => set_aside.extend(bad.next()),
                (None, None) => break,
            }
        }
        (list, set_aside, good.peek().is_some() || bad.peek().is_some())
    }

    /// Whether a snapshot of this name and so many layers may be made.
    pub(crate) fn may_add(&self, id: SnapshotId, layers: usize) -> Result<(), Fault> {
        if self.has_name(id) {
            return Err(taken());
        }
        if self.all.len() + self.set_aside.len() >= ALL_MAX {
            return Err(Fault::new(Code::ServerBusy, "this server keeps as many snapshots as it may", "remove some"));
        }
        if layers > CHAIN_MAX {
            let message = format!("the layers of this sandbox are being put together, and it has {layers} by now");
            return Err(Fault::new(Code::ServerBusy, message, "try again shortly"));
        }
        Ok(())
    }

    fn has_name(&self, id: SnapshotId) -> bool {
        self.all.contains_key(&id) || self.set_aside.contains(&id)
    }

    /// What a snapshot is, its layers, and those of its template as it was then.
    ///
    /// # Errors
    /// `not_found`; `store_unavailable` for one whose file was set aside.
    pub(crate) fn get(&self, id: SnapshotId) -> Result<(&Snapshot, &[LayerId], &[String]), Fault> {
        if self.set_aside.contains(&id) {
            let message = "what the server has stored of this snapshot cannot be read";
            let hint = "its files are there: the operator finds the fault with `ringfence doctor`";
            return Err(Fault::new(Code::StoreUnavailable, message, hint));
        }
        let record = self.all.get(&id).ok_or_else(|| Fault::not_found("snapshot"))?;
        Ok((&record.info, &record.chain, &record.template_layers))
    }

    /// Notes a layer of so many bytes and files.
    pub(crate) fn add_layer(&mut self, id: LayerId, binds: Vec<PathBuf>, origin: Option<Origin>, size: Kept) {
        let durable = origin.is_none();
        self.layers.insert(id, Layer::new(binds, origin, durable, size));
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

    /// Whose disks layers are on.
    pub(crate) fn all_owners(&self) -> BTreeSet<SandboxId> {
        self.layers.values().filter_map(|layer| layer.origin.as_ref()).map(|origin| origin.owner).collect()
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
            self.take(*id);
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
        for id in self.holders(layers) {
            let Some(record) = self.all.get_mut(&id) else { continue };
            let own = |layer: &&Layer| layer.holders.first().is_some_and(|(_, holder)| *holder == id);
            let own = record.chain.iter().filter_map(|id| self.layers.get(id)).filter(own);
            let size = own.fold(Kept::default(), |sum, layer| sum.and(layer.size));
            if (record.info.bytes, record.info.files) != (size.bytes, size.files) {
                (record.info.bytes, record.info.files) = (size.bytes, size.files);
                self.resized.insert(id);
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
    /// When there is one of its name, or all its layers are durable and it cannot be stored.
    pub(crate) fn add(
        &mut self,
        info: Snapshot,
        chain: Vec<LayerId>,
        template_layers: Vec<String>,
    ) -> Result<Snapshot, Fault> {
        let id = info.id;
        if self.has_name(id) {
            return Err(taken());
        }
        self.insert(Record { info, chain: chain.clone(), template_layers, since: Instant::now() });
        self.pending.insert(id);
        self.charge(&chain);
        if let Err(error) = self.settle(id) {
            self.take(id);
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

    /// Removes a snapshot; its layers go with [`Self::collect`], or at the next start where its file was set aside. Gives
    /// the layers of its template.
    pub(crate) fn remove(&mut self, id: SnapshotId) -> Result<Vec<String>, Fault> {
        let is_stored = match self.all.get(&id) {
            Some(record) => record.info.durable,
            None if self.set_aside.contains(&id) => true,
            None => return Err(Fault::not_found("snapshot")),
        };
        if is_stored {
            let removed = match fs::remove_file(self.file(id)) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
            let removed = removed.and_then(|()| fs::File::open(&self.dir)?.sync_all());
            removed.map_err(|error| stored(&error))?;
        }
        self.set_aside.remove(&id);
        Ok(self.take(id))
    }

    /// Whether a snapshot stands on this layer of a template, or may.
    pub(crate) fn has_template_layer(&self, id: &str) -> bool {
        self.guards || self.template_layers.contains_key(id)
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
        let dir = self.layer_dir(id);
        if self.layers.get(&id).is_none_or(|layer| !layer.durable) {
            // Named, and then not known to be on disk: to be made once more.
            self.let_go(&dir);
        }
        self.let_go(&dir.with_extension("part"));
    }

    fn let_go(&mut self, dir: &Path) {
        // One that cannot be renamed goes under its name; no snapshot has it.
        self.gone.extend(let_go(dir).unwrap_or_else(|_| Some(dir.to_owned())));
    }

    /// Directories to be removed.
    pub(crate) fn take_gone(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.gone)
    }

    /// The next thing to do, if there is any; it is under way from now on. With `haste` nothing rests first. `lives` says
    /// whether a sandbox is there still, and `chains` has those of sandboxes that are due to be copied into one layer.
    pub(crate) fn next_job(
        &mut self,
        haste: bool,
        lives: impl Fn(SandboxId) -> bool,
        chains: impl Iterator<Item = Vec<LayerId>>,
    ) -> Option<Job> {
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
        let merges = |chain: &Vec<LayerId>| {
            let rested = self.unmerged.get(chain).is_none_or(|at| now.duration_since(*at) >= RETRY);
            is_long(chain) && rested
        };
        let mut pending = self.pending.iter().filter_map(|id| self.all.get(id));
        let of_snapshot = pending.find_map(|record| {
            let is_due = haste || now.duration_since(record.since) >= REST || record.chain.iter().any(is_left);
            if !is_due {
                return None;
            }
            // One that could not be put together becomes durable layer by layer, but for those that fail.
            if merges(&record.chain) {
                return record.chain.iter().all(ready).then(|| record.chain.clone());
            }
            let wanted = |id: &&LayerId| self.layers.get(id).is_some_and(|layer| !layer.durable) && ready(id);
            record.chain.iter().find(wanted).map(|id| vec![*id])
        });
        let mut chains = chains.filter(|chain| merges(chain) && chain.iter().all(ready));
        let from = of_snapshot.or_else(|| chains.next())?;
        for id in &from {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.busy = true;
            }
        }
        let into = if let [one] = from[..] { one } else { LayerId::random() };
        Some(Job { from, into })
    }

    /// Nothing more is done: what is left is found at the next start.
    pub(crate) fn stop(&mut self) {
        self.pending.clear();
    }

    /// Until something that failed is to be tried again, or something has rested.
    pub(crate) fn until_due(&self) -> Option<Duration> {
        let failed = self.failed.values().map(|failed| &failed.at).chain(self.unmerged.values());
        let failed = failed.map(|at| RETRY.saturating_sub(at.elapsed()));
        let pending = self.pending.iter().filter_map(|id| self.all.get(id));
        let resting = pending.map(|record| REST.saturating_sub(record.since.elapsed()));
        failed.chain(resting).filter(|left| !left.is_zero()).min()
    }

    /// A copy has failed.
    pub(crate) fn keep_failed(&mut self, from: &[LayerId], into: LayerId, why: &str) {
        for id in from {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.busy = false;
            }
        }
        if from == [into] {
            let has_room = rustix::fs::statvfs(&self.dir).is_ok_and(|stat| {
                stat.f_bavail.saturating_mul(stat.f_frsize) > ROOM.0 && (stat.f_favail > ROOM.1 || stat.f_files == 0)
            });
            let count = self.failed.get(&into).map_or(0, |failed| failed.count) + u32::from(has_room);
            self.failed.insert(into, Failure { at: Instant::now(), count, why: why.to_owned() });
        } else {
            self.unmerged.insert(from.to_vec(), Instant::now());
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
        let layer = self.layers.entry(into).or_insert_with(|| Layer::new(binds, None, true, kept));
        (layer.durable, layer.size) = (true, kept);
        unused.extend(layer.origin.take().map(|origin| origin.disk));
        let touched: Vec<LayerId> = from.iter().copied().chain([into]).collect();
        let affected = self.holders(&touched);
        let mut stored = Vec::new();
        for id in affected.iter().filter(|_| merged) {
            let Some(Record { info, chain: before, .. }) = self.all.get(id) else { continue };
            let (durable, before) = (info.durable, before.clone());
            let mut chain = before.clone();
            replace_prefix(&mut chain, from, into);
            if chain != before {
                self.relink(*id, chain);
                stored.extend(durable.then_some((*id, before)));
            }
        }
        self.charge(&touched);
        for (id, before) in stored {
            let Some(info) = self.all.get(&id).map(|record| record.info.clone()) else { continue };
            if self.store(id, info).is_err() {
                // Its file names the layers that it stood on, or those that it was to stand on: both stay.
                self.relink(id, before);
                self.doubted.insert(into);
                self.charge(&touched);
            }
        }
        let mut changed = Vec::new();
        for id in affected {
            // One that cannot be stored is tried again with the next copy, and is not durable until then.
            if self.settle(id).unwrap_or(false)
                && let Some(record) = self.all.get(&id)
            {
                self.resized.remove(&id);
                changed.push(record.info.clone());
            }
        }
        (changed, unused)
    }

    /// Lets go of every layer that neither a snapshot nor `used` names; gives what of sandboxes' file systems is not
    /// needed any more.
    pub(crate) fn collect(&mut self, used: &BTreeSet<LayerId>) -> Vec<OwnedFd> {
        let is_unneeded = |(id, layer): &(&LayerId, &Layer)| {
            !layer.busy && layer.holders.is_empty() && !used.contains(*id) && !self.doubted.contains(*id)
        };
        let unneeded: Vec<LayerId> = self.layers.iter().filter(is_unneeded).map(|(id, _)| *id).collect();
        if !unneeded.is_empty() {
            self.unmerged.retain(|chain, _| !chain.iter().any(|id| unneeded.contains(id)));
        }
        let mut unused = Vec::new();
        for id in unneeded {
            let Some(layer) = self.layers.remove(&id) else { continue };
            self.failed.remove(&id);
            if layer.durable {
                self.let_go(&self.layer_dir(id));
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

fn taken() -> Fault {
    Fault::new(Code::Conflict, "there is such a snapshot already", "choose another id")
}

fn stored(error: &io::Error) -> Fault {
    let message = format!("the warden cannot keep snapshots: {error}");
    Fault::new(Code::StoreUnavailable, message, "look at its state directory")
}

const _: () = assert!(2 * CHAIN_MAX <= keep::LAYERS_MAX);

#[cfg(test)]
mod tests;
