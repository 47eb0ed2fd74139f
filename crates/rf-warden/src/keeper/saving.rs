//! Saving the files of a sandbox, keeping the layers, and beginning sandboxes with them.
//!
//! ```text
//! Snapshot ─▶ freezing ─▶ frozen ─┬ process 1 alone ─▶ pushing ─▶ answered, thawed ─▶ copied to disk, in the background
//!                                 └ others, or a file open for writing ─▶ copying to disk ─▶ answered, thawed
//! ```
//!
//! A push whose process is killed is undone or finished by another one (mending); should that not be possible either, the
//! sandbox is ended.
//!
//! See [`rf_sandbox::push`] for why only process 1 may be there when the written layer is made a read-only one.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use rf_sandbox::{
    keep::{Keeping, Kept},
    launch::LaunchError,
    plan::RootSource,
    push::{Helper, Mend, PUSHES_MAX, Push, Pushed, is_being_written, release},
};
use rf_types::{Code, Fault, SandboxId, SandboxSpec, SnapshotId};
use rf_wire::warden::{GoneWhy, Reply, Snapshot, SnapshotWay};

use super::{Asker, Keeper, Live, Source, fault, no_sandbox, now_ms, watch, watch_changes};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::snapshots::{CHAIN_MAX, Job, LayerId, Origin, REST, is_long, replace_prefix};

/// How much of the host's memory the disks of sandboxes that are gone may take while others stand on them or they are to
/// be copied, as a part of the whole. Chosen: until then a sandbox is made from a snapshot at once, past it when that is
/// on disk.
const PINNED_PART: u64 = 4;
/// Most orders that wait for a snapshot to be durable, and how long. Chosen: the server waits for 30 s.
const WAITING_MAX: usize = 256;
const WAITING_TIME: Duration = Duration::from_secs(25);
/// How long the end of the warden waits for copies. Chosen: its supervisor waits for longer.
const STOP_TIME: Duration = Duration::from_secs(8);
/// Most sandboxes whose files are copied while they are frozen, at once. Chosen: as for those in the background, and some
/// more, since somebody waits.
const COPYING_MAX: usize = 8;
/// With how little room for more layers those of a sandbox are copied into one although it was just saved. Chosen.
const ROOM: usize = 20;
/// Most copies in the background at once. Chosen: more would only share the disk.
const KEEPING_MAX: usize = 2;

/// A snapshot of a sandbox under way.
#[derive(Debug)]
pub(super) struct Saving {
    asker: Asker,
    snapshot: SnapshotId,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Freezing,
    Pushing {
        push: Push,
        /// The sandbox's file system, until the layer has it: once it is one, nothing may be missing for it.
        disk: Option<OwnedFd>,
        token: u64,
    },
    Mending {
        mend: Mend,
        disk: Option<OwnedFd>,
        token: u64,
    },
    Copying {
        keeping: Keeping,
        layer: LayerId,
        token: u64,
    },
}

/// A copy in the background.
#[derive(Debug)]
pub(super) struct Background {
    keeping: Keeping,
    job: Job,
    binds: Vec<PathBuf>,
}

/// An order to make a sandbox from a snapshot that waits until that is durable.
#[derive(Debug)]
pub(super) struct Waiting {
    asker: Asker,
    spec: SandboxSpec,
    from: SnapshotId,
    id: Option<SandboxId>,
    since: Instant,
}

/// The layers of a sandbox above those of its template.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// What its root was made from.
    pub(super) mounted: Vec<LayerId>,
    /// What is the same as that and all that it has pushed, for the next snapshot.
    pub(super) chain: Vec<LayerId>,
    /// Sandboxes on whose disks its root stands, since the layers were nowhere else when it was made.
    leans_on: BTreeSet<SandboxId>,
    /// Bytes and files of its file system when it was last pushed.
    counted: (u64, u64),
    /// When that was.
    pushed_at: Option<Instant>,
}

impl Layers {
    fn of(chain: &[LayerId], leans_on: BTreeSet<SandboxId>) -> Self {
        Self { mounted: chain.to_vec(), chain: chain.to_vec(), leans_on, ..Self::default() }
    }

    /// Until its chain is to be copied into one layer: snapshots that are removed at once, as those for forks are, leave
    /// it long, and one that is too long can take no more.
    fn until_due(&self) -> Option<Duration> {
        let rested = self.pushed_at.filter(|_| is_long(&self.chain))?.elapsed();
        Some(if self.chain.len() > CHAIN_MAX - ROOM { Duration::ZERO } else { REST.saturating_sub(rested) })
    }
}

/// Bytes and files on the file system of a sandbox.
fn counted(live: &Live) -> (u64, u64) {
    let Some(stat) = live.sandbox.disk().and_then(|disk| rustix::fs::fstatfs(disk).ok()) else { return (0, 0) };
    let block = u64::try_from(stat.f_bsize).unwrap_or(0);
    (stat.f_blocks.saturating_sub(stat.f_bfree) * block, stat.f_files.saturating_sub(stat.f_ffree))
}

fn binds(live: &Live) -> Vec<PathBuf> {
    live.sandbox.written().into_iter().filter_map(|written| written.bind).collect()
}

impl Keeper {
    /// Begins a snapshot; answers when it is made.
    pub(super) fn save(&mut self, asker: Asker, id: SandboxId, snapshot: SnapshotId) {
        let result = (|| {
            let live = self.live.get(&id).filter(|live| live.lease_until > 0).ok_or_else(no_sandbox)?;
            self.launcher.can_save().map_err(|why| {
                let hint = "copy the files out as an archive";
                Fault::new(Code::Unsupported, why, hint)
            })?;
            if live.rest.saving.is_some() {
                return Err(Fault::new(Code::Conflict, "the sandbox is being saved already", "wait for that"));
            }
            let is_same = |live: &Live| live.rest.saving.as_ref().is_some_and(|saving| saving.snapshot == snapshot);
            if self.live.values().any(is_same) {
                return Err(Fault::new(Code::Conflict, "a snapshot of this name is being made", "choose another id"));
            }
            let waiting = self.orphans.iter().filter(|(owner, _)| self.snapshots.has_of(**owner, true));
            if waiting.map(|(_, bytes)| bytes).sum::<u64>() >= pinned_max() {
                let message = "too many files of sandboxes that are gone are waiting to be written to disk";
                return Err(Fault::new(Code::ServerBusy, message, "try again in a few seconds"));
            }
            self.snapshots.may_add(snapshot, live.layers.chain.len() + 1)
        })();
        if let Err(fault) = result {
            return self.answer(asker, Err(fault));
        }
        if let Some(live) = self.live.get_mut(&id) {
            live.rest.saving = Some(Saving { asker, snapshot, step: Step::Freezing });
        }
        self.freeze(id);
    }

    /// A sandbox that is to be saved is frozen.
    pub(super) fn save_frozen(&mut self, id: SandboxId) {
        let Some(live) = self.live.get(&id) else { return };
        if !matches!(&live.rest.saving, Some(Saving { step: Step::Freezing, .. })) {
            return;
        }
        let begun = match live.sandbox.is_idle() {
            Ok(true) if live.sandbox.pushed() < PUSHES_MAX => self.begin_push(id),
            Ok(_) => self.begin_copy(id),
            Err(error) => Err(fault(&error.into())),
        };
        if let Err(fault) = begun {
            self.saved(id, Err(fault));
        }
    }

    fn begin_push(&mut self, id: SandboxId) -> Result<(), Fault> {
        let live = self.live.get(&id).ok_or_else(no_sandbox)?;
        let above = self.snapshots.above(&live.layers.mounted)?;
        let source = RootSource { above, ..live.sandbox.plan().source.clone() };
        let disk = live.sandbox.disk().ok_or_else(no_sandbox)?.try_clone_to_owned().map_err(|_| no_descriptors())?;
        let push = Push::begin(&live.sandbox, &source).map_err(|error| fault(&error))?;
        let token = self.token(Source::Saving(id));
        if watch_changes(&self.epoll, push.watched(), token).is_err() {
            // What it did until then is undone or finished.
            push.cut_off();
        }
        self.step(id, Step::Pushing { push, disk: Some(disk), token });
        // It may have spoken before it was watched.
        self.advance_saving(id);
        Ok(())
    }

    /// A push was cut off.
    fn begin_mend(&mut self, id: SandboxId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let step = live.rest.saving.as_mut().map(|saving| std::mem::replace(&mut saving.step, Step::Freezing));
        let Some(Step::Pushing { push, disk, token }) = step else { return };
        self.sources.remove(&token);
        let begun = Mend::begin(&live.sandbox, &push);
        self.leave(push.into_helper());
        let mend = match begun {
            Ok(mend) => mend,
            Err(error) => {
                self.let_go(disk.into_iter().collect());
                return self.broken(id, &error);
            }
        };
        let token = self.token(Source::Saving(id));
        let watched = watch_changes(&self.epoll, mend.watched(), token);
        if watched.is_err() {
            mend.wait();
        }
        self.step(id, Step::Mending { mend, disk, token });
        self.advance_saving(id);
        let is_mending = |live: &Live| matches!(&live.rest.saving, Some(Saving { step: Step::Mending { .. }, .. }));
        if watched.is_err() && self.live.get(&id).is_some_and(is_mending) {
            // Nobody would hear of its end.
            self.broken(id, &LaunchError::Died);
        }
    }

    /// A sandbox whose push was cut off cannot be made whole.
    fn broken(&mut self, id: SandboxId, why: &LaunchError) {
        let saving = self.live.get_mut(&id).and_then(|live| live.rest.saving.take());
        self.destroy(id, None);
        self.news(Reply::Gone { id, why: GoneWhy::Broken });
        if let Some(Saving { asker, step, .. }) = saving {
            let message =
                format!("what saved the sandbox was killed, and it could not be made whole: {}", fault(why).message);
            self.answer(asker, Err(Fault::new(Code::PlaceLost, message, "make a new sandbox")));
            self.end_step(step);
        }
    }

    fn begin_copy(&mut self, id: SandboxId) -> Result<(), Fault> {
        let is_copying = |live: &&Live| matches!(&live.rest.saving, Some(Saving { step: Step::Copying { .. }, .. }));
        if self.live.values().filter(is_copying).count() >= COPYING_MAX {
            return Err(Fault::new(Code::ServerBusy, "too many sandboxes are being copied", "try again shortly"));
        }
        let live = self.live.get(&id).ok_or_else(no_sandbox)?;
        let disk = live.sandbox.disk().ok_or_else(no_sandbox)?.try_clone_to_owned().map_err(|_| no_descriptors())?;
        let layer = LayerId::random();
        // Noted for as long as it takes to name its directories.
        self.snapshots.add_layer(
            layer,
            binds(live),
            Some(Origin { owner: id, disk, written: live.sandbox.written() }),
            Kept::default(),
        );
        let begun = (|| {
            let (parts, _) = self.snapshots.parts(&[layer])?;
            let target = self.snapshots.begin(layer)?;
            Keeping::copy(&self.launcher, &target, parts, false).map_err(|error| fault(&error))
        })();
        drop(self.snapshots.forget(layer));
        let keeping = begun.inspect_err(|_| self.snapshots.drop_part(layer))?;
        let token = self.token(Source::Saving(id));
        if watch(&self.epoll, keeping.watched(), token).is_err() {
            self.sources.remove(&token);
            self.leave(keeping.cut_off());
            self.snapshots.drop_part(layer);
            return Err(no_descriptors());
        }
        self.step(id, Step::Copying { keeping, layer, token });
        Ok(())
    }

    fn step(&mut self, id: SandboxId, step: Step) {
        if let Some(saving) = self.live.get_mut(&id).and_then(|live| live.rest.saving.as_mut()) {
            saving.step = step;
        }
    }

    /// Ends what a snapshot did so far; another step comes.
    fn drop_step(&mut self, id: SandboxId) {
        let saving = self.live.get_mut(&id).and_then(|live| live.rest.saving.as_mut());
        if let Some(step) = saving.map(|saving| std::mem::replace(&mut saving.step, Step::Freezing)) {
            self.end_step(step);
        }
    }

    /// The process that pushes or copies has spoken.
    pub(super) fn advance_saving(&mut self, id: SandboxId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let written = live.sandbox.written();
        let result = match live.rest.saving.as_ref().map(|saving| &saving.step) {
            None | Some(Step::Freezing) => return,
            Some(Step::Pushing { push, .. }) => match push.advance(&mut live.sandbox) {
                None => return,
                Some(Pushed::Done) => self.pushed(id, written),
                Some(Pushed::CutOff) => return self.begin_mend(id),
                Some(Pushed::NotDone(error)) if is_being_written(&error) => {
                    self.drop_step(id);
                    match self.begin_copy(id) {
                        Ok(()) => return,
                        Err(fault) => Err(fault),
                    }
                }
                Some(Pushed::NotDone(error)) => Err(fault(&error)),
            },
            Some(Step::Mending { mend, .. }) => match mend.advance(&mut live.sandbox) {
                None => return,
                // It was all done but for the word of it.
                Some(Ok(true)) => self.pushed(id, written),
                Some(Ok(false)) => {
                    let message = "what saved the sandbox was killed; the sandbox is as it was";
                    Err(Fault::new(Code::ServerBusy, message, "try again"))
                }
                Some(Err(error)) => return self.broken(id, &error),
            },
            Some(Step::Copying { keeping, layer, .. }) => match (keeping.advance(), *layer) {
                (Ok(kept), layer) => self.copied(id, layer, kept),
                (Err(why), _) => Err(not_kept(&why)),
            },
        };
        self.saved(id, result);
    }

    /// The written layer is a read-only one.
    fn pushed(&mut self, id: SandboxId, written: Vec<rf_sandbox::push::Written>) -> Result<Snapshot, Fault> {
        let live = self.live.get_mut(&id).ok_or_else(no_sandbox)?;
        live.rest.new_root = true;
        let (now, before) = (counted(live), live.layers.counted);
        live.layers.counted = now;
        let layer = LayerId::random();
        let size = Kept { bytes: now.0.saturating_sub(before.0), files: now.1.saturating_sub(before.1) };
        let origin = match live.rest.saving.as_mut().map(|saving| &mut saving.step) {
            Some(Step::Pushing { disk, .. } | Step::Mending { disk, .. }) => {
                disk.take().map(|disk| Origin { owner: id, disk, written })
            }
            _ => None,
        };
        // It has one from its beginning.
        let origin = origin.ok_or_else(no_sandbox)?;
        self.snapshots.add_layer(layer, binds(live), Some(origin), size);
        live.layers.chain.push(layer);
        live.layers.pushed_at = Some(Instant::now());
        let chain = live.layers.chain.clone();
        self.note(id, SnapshotWay::Pushed, chain)
    }

    /// The written layer was copied.
    fn copied(&mut self, id: SandboxId, layer: LayerId, kept: Kept) -> Result<Snapshot, Fault> {
        self.snapshots.name(layer)?;
        let live = self.live.get(&id).ok_or_else(no_sandbox)?;
        let chain = live.layers.chain.iter().copied().chain([layer]).collect();
        self.snapshots.add_layer(layer, binds(live), None, kept);
        self.note(id, SnapshotWay::Copied, chain)
    }

    fn note(&mut self, id: SandboxId, way: SnapshotWay, chain: Vec<LayerId>) -> Result<Snapshot, Fault> {
        let live = self.live.get(&id).ok_or_else(no_sandbox)?;
        let Some(saving) = &live.rest.saving else { return Err(no_sandbox()) };
        let info = Snapshot {
            id: saving.snapshot,
            template: live.spec.template.clone(),
            disk: live.spec.disk,
            created_at: now_ms(),
            way,
            // Counted with its layers.
            bytes: 0,
            files: 0,
            layers: u32::try_from(chain.len()).unwrap_or(u32::MAX),
            durable: false,
        };
        let template_layers = self.templates.layers_of(&live.sandbox.plan().source);
        self.snapshots.add(info, chain, template_layers)
    }

    /// A snapshot was made, or was not: the sandbox goes on, and who asked hears of it.
    pub(super) fn saved(&mut self, id: SandboxId, result: Result<Snapshot, Fault>) {
        let saving = self.live.get_mut(&id).and_then(|live| live.rest.saving.take());
        let Some(Saving { asker, step, .. }) = saving else { return };
        self.thaw(id);
        self.answer(asker, result.map(Reply::Snapshotted));
        self.end_step(step);
        self.collect();
    }

    /// What is left of a step that is over, or cut off.
    fn end_step(&mut self, step: Step) {
        let (helper, token) = match step {
            Step::Freezing => return,
            Step::Pushing { push, disk, token } => {
                // The sandbox may have ended, and this be the last of it.
                self.let_go(disk.into_iter().collect());
                (push.into_helper(), token)
            }
            Step::Mending { mend, disk, token } => {
                self.let_go(disk.into_iter().collect());
                (mend.into_helper(), token)
            }
            Step::Copying { keeping, layer, token } => {
                if !self.snapshots.has(layer) {
                    self.snapshots.drop_part(layer);
                }
                (keeping.into_helper(), token)
            }
        };
        self.sources.remove(&token);
        self.leave(helper);
    }

    /// What becomes of a snapshot under way when its sandbox ends.
    pub(super) fn abandon_saving(&mut self, saving: Saving) {
        let Saving { asker, step, .. } = saving;
        self.answer(asker, Err(no_sandbox()));
        match step {
            Step::Copying { keeping, layer, token } => {
                self.sources.remove(&token);
                // Nobody waits for it.
                self.leave(keeping.cut_off());
                self.snapshots.drop_part(layer);
            }
            other => self.end_step(other),
        }
    }

    // Helpers that end by themselves.

    /// Takes the end of a helper when it comes.
    pub(super) fn leave(&mut self, helper: Helper) {
        let id = self.next;
        let token = self.token(Source::Helper(id));
        // Without the watch it is killed and waited for when it is dropped, here.
        if watch(&self.epoll, helper.ended(), token).is_ok() {
            self.helpers.insert(id, helper);
        }
    }

    pub(super) fn helper_ended(&mut self, id: u64, token: u64) {
        if self.helpers.get_mut(&id).is_some_and(Helper::try_reap) {
            self.helpers.remove(&id);
            self.sources.remove(&token);
        }
    }

    // Layers.

    /// Lets go of layers that nobody uses, and goes on with what is to be copied.
    pub(super) fn collect(&mut self) {
        for snapshot in self.snapshots.resized() {
            self.news(Reply::SnapshotChanged(snapshot));
        }
        if self.snapshots.is_empty() && self.orphans.is_empty() {
            return;
        }
        for (id, why) in self.snapshots.give_up(|owner| self.live.contains_key(&owner)) {
            self.news(Reply::SnapshotLost { id, why });
        }
        let of = |layers: &Layers| layers.mounted.iter().chain(&layers.chain).copied().collect::<Vec<_>>();
        let mut used: BTreeSet<LayerId> = self.live.values().flat_map(|live| of(&live.layers)).collect();
        used.extend(self.starting.values().flat_map(|start| of(&start.layers)));
        let unused = self.snapshots.collect(&used);
        self.let_go(unused);
        if !self.orphans.is_empty() {
            let mut needed = self.snapshots.all_owners();
            needed.extend(self.live.values().flat_map(|live| &live.layers.leans_on));
            needed.extend(self.starting.values().flat_map(|start| &start.layers.leans_on));
            self.orphans.retain(|owner, _| needed.contains(owner));
        }
        self.keep_on();
    }

    /// Whether somebody needs the disk of this sandbox, beside itself.
    fn is_needed(&self, owner: SandboxId) -> bool {
        let mut layers =
            self.live.values().map(|live| &live.layers).chain(self.starting.values().map(|start| &start.layers));
        layers.any(|layers| layers.leans_on.contains(&owner)) || self.snapshots.has_of(owner, false)
    }

    /// Notes what of a sandbox that is about to end stays, because others need it.
    pub(super) fn count_orphan(&mut self, id: SandboxId, live: &Live) {
        if live.sandbox.pushed() > 0 && self.is_needed(id) {
            self.orphans.insert(id, counted(live).0);
        }
    }

    /// Begins a sandbox with the files of a snapshot, or under an id that was there before.
    pub(super) fn create_from(
        &mut self,
        asker: Asker,
        spec: SandboxSpec,
        from: Option<SnapshotId>,
        id: Option<SandboxId>,
    ) {
        if let Some(from) = from
            && self.orphans.values().sum::<u64>() >= pinned_max()
            && self.snapshots.get(from).is_ok_and(|(info, ..)| !info.durable)
        {
            if self.waiting.len() >= WAITING_MAX {
                let message = "too many sandboxes wait for a snapshot to be on disk";
                return self.answer(asker, Err(Fault::new(Code::ServerBusy, message, "try again in a few seconds")));
            }
            self.waiting.push(Waiting { asker, spec, from, id, since: Instant::now() });
            return;
        }
        if let Err(fault) = self.begin_as(spec, Some(asker), from, id) {
            self.answer(asker, Err(fault));
        }
    }

    /// Goes on with orders that waited for a snapshot.
    fn go_on_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let Waiting { asker, spec, from, id, since } = waiting;
            if self.snapshots.get(from).is_ok_and(|(info, ..)| !info.durable) {
                if since.elapsed() < WAITING_TIME {
                    self.waiting.push(Waiting { asker, spec, from, id, since });
                } else {
                    let fault = Fault::new(Code::ServerBusy, "the snapshot is not on disk yet", "try again shortly");
                    self.answer(asker, Err(fault));
                }
            } else if let Err(fault) = self.begin_as(spec, Some(asker), Some(from), id) {
                self.answer(asker, Err(fault));
            }
        }
    }

    /// Until an order has waited long enough for a snapshot.
    pub(super) fn until_waited(&self) -> Option<Duration> {
        self.waiting.iter().map(|waiting| WAITING_TIME.saturating_sub(waiting.since.elapsed())).min()
    }

    /// What is due by time.
    pub(super) fn act_on_saving(&mut self) {
        if self.waiting.iter().any(|waiting| waiting.since.elapsed() >= WAITING_TIME) {
            self.go_on_waiting();
        }
        self.keep_on();
        self.remove_on();
    }

    /// Until something is to be copied.
    pub(super) fn until_kept(&self) -> Option<Duration> {
        if self.snapshots.is_empty() || self.keeping.len() >= KEEPING_MAX {
            return None;
        }
        let chains = self.live.values().filter_map(|live| live.layers.until_due()).filter(|left| !left.is_zero());
        chains.chain(self.snapshots.until_due()).min()
    }

    /// Gives up file systems whose last user we may be.
    fn let_go(&mut self, unused: Vec<OwnedFd>) {
        if unused.is_empty() {
            return;
        }
        // Without a process they were given up here.
        if let Ok(helper) = release(unused) {
            self.leave(helper);
        }
    }

    /// Begins what is to be copied next.
    pub(super) fn keep_on(&mut self) {
        self.keep_what_is_due(!self.waiting.is_empty());
    }

    /// As [`Self::keep_on`]; with `haste` nothing rests first.
    fn keep_what_is_due(&mut self, haste: bool) {
        while self.keeping.len() < KEEPING_MAX && !self.snapshots.is_empty() {
            let due = self
                .live
                .values()
                .map(|live| &live.layers)
                .filter(|layers| layers.until_due().is_some_and(|left| left.is_zero()));
            let chains = due.map(|layers| layers.chain.clone());
            let Some(job) = self.snapshots.next_job(haste, |id| self.live.contains_key(&id), chains) else { return };
            let begun = self.snapshots.parts(&job.from).and_then(|(parts, binds)| {
                let target = self.snapshots.begin(job.into)?;
                let keeping = Keeping::copy(&self.launcher, &target, parts, true);
                keeping.map(|keeping| (keeping, binds)).map_err(|error| fault(&error))
            });
            let (keeping, binds) = match begun {
                Ok(begun) => begun,
                Err(fault) => return self.snapshots.keep_failed(&job.from, job.into, &fault.message),
            };
            let id = self.next;
            let token = self.token(Source::Keeping(id));
            if watch(&self.epoll, keeping.watched(), token).is_err() {
                self.sources.remove(&token);
                self.leave(keeping.cut_off());
                return self.snapshots.keep_failed(&job.from, job.into, &no_descriptors().message);
            }
            self.keeping.insert(id, Background { keeping, job, binds });
        }
    }

    /// A copy in the background has spoken.
    pub(super) fn kept(&mut self, id: u64, token: u64) {
        let Some(Background { keeping, job: Job { from, into }, binds }) = self.keeping.remove(&id) else { return };
        self.sources.remove(&token);
        let kept = keeping.advance().map_err(|why| not_kept(&why));
        match kept.and_then(|kept| self.snapshots.name(into).map(|()| kept)) {
            Err(fault) => self.snapshots.keep_failed(&from, into, &fault.message),
            Ok(kept) => {
                let (changed, unused) = self.snapshots.keep_done(&from, into, binds, kept);
                if from != [into] {
                    for live in self.live.values_mut() {
                        replace_prefix(&mut live.layers.chain, &from, into);
                    }
                }
                // The process that copied is the last to have them.
                drop(unused);
                for snapshot in changed {
                    self.news(Reply::SnapshotChanged(snapshot));
                }
            }
        }
        self.leave(keeping.into_helper());
        self.collect();
        self.go_on_waiting();
    }

    pub(super) fn remove_snapshot(&mut self, id: SnapshotId) -> Result<Reply, Fault> {
        let template_layers = self.snapshots.remove(id)?;
        self.collect();
        self.go_on_waiting();
        self.drop_unused(&template_layers);
        Ok(Reply::Done {})
    }

    pub(super) fn list_snapshots(&self, after: Option<SnapshotId>) -> Reply {
        let (list, set_aside, more) = self.snapshots.list(after);
        Reply::Snapshots { list, set_aside, more }
    }

    /// What the root of a sandbox of this spec is made from, and which layers of snapshots that is.
    pub(super) fn source(&self, spec: &SandboxSpec, from: Option<SnapshotId>) -> Result<(RootSource, Layers), Fault> {
        let Some(from) = from else { return Ok((self.templates.source(&spec.template)?, Layers::default())) };
        self.launcher.can_save().map_err(|why| Fault::new(Code::Unsupported, why, ""))?;
        let (info, chain, template_layers) = self.snapshots.get(from)?;
        if info.template != spec.template {
            let message = format!("the snapshot was made of the template `{}`, not `{}`", info.template, spec.template);
            return Err(Fault::invalid(message));
        }
        let source = self.templates.source_of(&spec.template, template_layers)?;
        let above = self.snapshots.above(chain)?;
        let is_bound = |to: &PathBuf| source.binds.iter().any(|bind| bind.overlay && bind.to == *to);
        if let Some((to, _)) = above.iter().flat_map(|above| &above.binds).find(|(to, _)| !is_bound(to)) {
            let message = format!("the snapshot changed /{}, which its template has no more", to.display());
            return Err(Fault::new(Code::TemplateUnavailable, message, "take the files out of an older host"));
        }
        let layers = Layers::of(chain, self.snapshots.owners(chain));
        Ok((RootSource { above, ..source }, layers))
    }

    /// Whether a sandbox may have this id.
    pub(super) fn is_free(&self, id: SandboxId) -> Result<(), Fault> {
        if self.live.contains_key(&id) || self.starting.contains_key(&id) || self.dying.contains_key(&id) {
            return Err(Fault::new(Code::Conflict, "a sandbox of this id lives", "destroy it first"));
        }
        Ok(())
    }

    /// Has what is to be copied to disk copied, as far as [`STOP_TIME`] allows: it would be lost with the warden.
    pub(super) fn save_what_waits(&mut self) {
        let begun = Instant::now();
        loop {
            self.keep_what_is_due(true);
            let wait = STOP_TIME.saturating_sub(begun.elapsed());
            if self.keeping.is_empty() || wait.is_zero() {
                return;
            }
            let (ids, mut fds): (Vec<u64>, Vec<PollFd<'_>>) = self
                .keeping
                .iter()
                .map(|(id, background)| (*id, PollFd::from_borrowed_fd(background.keeping.watched(), PollFlags::IN)))
                .unzip();
            let waited =
                Timespec::try_from(wait).map_err(|_| Errno::INVAL).and_then(|wait| poll(&mut fds, Some(&wait)));
            let ready: Vec<u64> =
                ids.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(id, _)| id).collect();
            if waited.is_err_and(|errno| errno != Errno::INTR) {
                return;
            }
            for id in ready {
                self.kept(id, 0);
            }
        }
    }

    /// Cuts off all that is under way, for the end of the warden.
    pub(super) fn stop_saving(&mut self) {
        self.snapshots.stop();
        // All are killed before one is waited for.
        let mut helpers: Vec<Helper> = std::mem::take(&mut self.helpers).into_values().collect();
        helpers.extend(std::mem::take(&mut self.keeping).into_values().map(|background| background.keeping.cut_off()));
        helpers.iter().for_each(Helper::kill);
        drop(helpers);
        for waiting in std::mem::take(&mut self.waiting) {
            let fault = Fault::new(Code::WardenUnavailable, "the warden is stopping", "try again in a few seconds");
            self.answer(waiting.asker, Err(fault));
        }
    }
}

/// How much the disks of sandboxes that are gone may take, bytes.
fn pinned_max() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into()) / PINNED_PART
}

fn no_descriptors() -> Fault {
    Fault::new(Code::ServerBusy, "the warden has no descriptors left", "try again later")
}

fn not_kept(why: &str) -> Fault {
    let message = format!("the files cannot be copied: {why}");
    Fault::new(Code::StoreUnavailable, message, "look whether the server's disk is full")
}
