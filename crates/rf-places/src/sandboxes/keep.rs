//! The care for all sandboxes: the warden's news, broken inits, leases, idleness, and taking over what lives.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use rf_types::{Code, Fault, OnLeaseEnd, PauseKind, PlaceRef, SandboxId, SandboxState, SnapshotId, UserId};
use rf_wire::warden::GoneWhy;
use tokio::sync::mpsc;

use super::{Lost, Sandboxes, now_ms};
use crate::{
    life::{Event, Phase},
    quota,
    rows::{ChangedWhy, EndedWhy, SandboxRow},
    sandbox::SandboxPlace,
    warden::{AdoptedSandbox, News},
};

/// How much later than the warden the server ends a sandbox whose lease is over. Chosen.
const LEASE_GRACE_MS: u64 = 5_000;
/// How often leases are looked at. Chosen: the warden is the one who ends them; this is the backstop.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);
/// How long the warden may take to say why it ended a sandbox. Chosen.
const REASON_TIME: Duration = Duration::from_millis(50);
/// Sandboxes whose execs are taken over at once after a start. Chosen.
const ADOPT_AT_ONCE: usize = 32;

/// A sandbox of a user.
type Key = (UserId, SandboxId);

/// What is found when all are looked at.
#[derive(Default)]
struct Found {
    places: Vec<Arc<SandboxPlace>>,
    over: Vec<Key>,
    over_to_pause: Vec<Key>,
    idle: Vec<Key>,
    dirty: Vec<Key>,
}

impl Sandboxes {
    /// Carries on the lives of all: news of the warden, broken inits, leases. Ends with the server.
    ///
    /// `known` are the stored rows that have not ended. Whenever the warden is there (again), what lives is compared
    /// with them, and the execs of each that goes on are taken over before anybody else may use it.
    pub(crate) async fn keep(
        self,
        mut news: mpsc::Receiver<News>,
        mut lost: mpsc::UnboundedReceiver<Lost>,
        known: Vec<SandboxRow>,
    ) {
        let mut known = Some(known);
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                item = news.recv() => match item {
                    None => return,
                    Some(News::Back) => {
                        match self.take_over(known.as_deref().unwrap_or_default()).await {
                            Ok(()) => {
                                known = None;
                                self.inner.knows_all.store(true, Ordering::Release);
                                self.inner.adopted.send_replace(true);
                            }
                            // The connection broke again: the next one begins anew.
                            Err(fault) => tracing::warn!(%fault, "cannot take over the sandboxes yet"),
                        }
                    }
                    Some(News::Lost) => {
                        self.inner.adopted.send_replace(false);
                        let all: Vec<_> = self.live().keys().copied().collect();
                        for (user, id) in all {
                            self.event(user, id, Event::WardenLost, EndedWhy::WardenRestarted);
                        }
                    }
                    Some(News::Gone(id, why, said)) => {
                        let why = match why {
                            GoneWhy::Lease => EndedWhy::Lease,
                            GoneWhy::InitDied => EndedWhy::InitDied,
                            GoneWhy::Broken => EndedWhy::Broken,
                        };
                        if let Some(user) = self.user_of(id, said) {
                            self.event(user, id, Event::WardenSaysGone, why);
                        }
                    }
                    Some(News::Paused(id, _, said)) => {
                        if let Some(user) = self.user_of(id, said) {
                            self.paused_by_warden(user, id);
                        }
                    }
                    Some(News::SnapshotChanged(snapshot)) => {
                        let is_own = self.live().values().any(|entry| entry.row.saved == Some(snapshot.id));
                        if !is_own {
                            self.snapshot_changed(snapshot);
                        }
                    }
                    Some(News::SnapshotLost(id, why)) => self.snapshot_lost(id, &why),
                    Some(News::Orphan(id)) => drop(tokio::spawn({
                        let warden = self.inner.warden.clone();
                        // Should this fail, the lease ends it.
                        async move { drop(warden.destroy(id).await) }
                    })),
                },
                Some(lost) = lost.recv() => {
                    // When the warden ends a sandbox its init's socket closes first, and the reason comes after.
                    let this = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(REASON_TIME).await;
                        this.init_lost(&lost);
                    });
                }
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    /// Whose sandbox it is, of which the warden said something when the order `said` was the last; `None` also when it was
    /// resumed since: what was said is not so any more.
    fn user_of(&self, id: SandboxId, said: u64) -> Option<UserId> {
        let live = self.live();
        let ((user, _), entry) = live.iter().find(|((_, known), _)| *known == id)?;
        (said > entry.resumed_after).then_some(*user)
    }

    /// An init is gone: the sandbox's own, unless it has another one by now.
    fn init_lost(&self, lost: &Lost) {
        let Lost { user, id, generation, why } = *lost;
        if self.live().get(&(user, id)).is_some_and(|entry| entry.generation == generation) {
            self.event(user, id, Event::InitBroken, why);
        }
    }

    /// The warden froze a sandbox because its lease ended.
    fn paused_by_warden(&self, user: UserId, id: SandboxId) {
        let before = self.live().get(&(user, id)).map(super::Entry::phase);
        let after = self.event(user, id, Event::WardenSaysPaused, EndedWhy::Lease);
        if (before, after) != (Some(Phase::Running), Some(Phase::Paused)) {
            return;
        }
        self.write_row(user, id, ChangedWhy::Lease);
        let files = self.live().get(&(user, id)).is_some_and(|entry| entry.row.about.auto_pause == PauseKind::Files);
        if files {
            let this = self.clone();
            tokio::spawn(async move {
                // Where that fails it stays frozen, which keeps more.
                if let Err(fault) = this.save(user, id, ChangedWhy::Lease, false).await {
                    tracing::warn!(%fault, sandbox = %id, "a sandbox whose lease ended stays frozen");
                }
            });
        }
    }

    /// Looks at all: what is over, what is idle, what is still to be written.
    fn sweep(&self) {
        let now = now_ms();
        let mut found = Found::default();
        for (key, entry) in &*self.live() {
            if entry.dirty {
                found.dirty.push(*key);
            }
            let Some(place) = entry.place.as_ref().filter(|_| entry.phase() == Phase::Running) else { continue };
            found.places.push(Arc::clone(place));
            if entry.row.lease_until.saturating_add(LEASE_GRACE_MS) < now {
                match entry.row.spec.on_lease_end {
                    OnLeaseEnd::Destroy => found.over.push(*key),
                    OnLeaseEnd::Pause => found.over_to_pause.push(*key),
                }
            } else if let Some(idle_ms) = entry.row.about.idle_pause_ms
                && entry.used_at.saturating_add(idle_ms) < now
                && !place.is_busy()
            {
                found.idle.push(*key);
            }
        }
        for place in found.places {
            place.init().forget_ended();
        }
        for (user, id) in found.over {
            self.event(user, id, Event::LeasePassed, EndedWhy::Lease);
        }
        let pauses = (found.over_to_pause.into_iter().map(|key| (key, ChangedWhy::Lease)))
            .chain(found.idle.into_iter().map(|key| (key, ChangedWhy::Idle)));
        for ((user, id), why) in pauses {
            let this = self.clone();
            tokio::spawn(async move {
                let keep = this.row(user, id).map_or(PauseKind::Memory, |row| row.about.auto_pause);
                match this.pause_now(user, id, keep, why).await {
                    Ok(_) => tracing::info!(%user, sandbox = %id, ?why, "sandbox paused"),
                    // Somebody else did something with it, or destroyed it.
                    Err(fault) if matches!(fault.code, Code::Conflict | Code::NotFound) => {}
                    Err(fault) => tracing::warn!(%fault, sandbox = %id, ?why, "a sandbox could not be paused"),
                }
            });
        }
        for (user, id) in found.dirty {
            self.write_row(user, id, ChangedWhy::Found);
        }
    }

    /// Compares what lives with what is stored: what both know goes on, the rest ends.
    async fn take_over(&self, known: &[SandboxRow]) -> Result<(), Fault> {
        let alive = self.inner.warden.adopt().await?;
        let mut rows: HashMap<SandboxId, SandboxRow> = known.iter().map(|row| (row.id, row.clone())).collect();
        let mut places = Vec::new();
        let mut stale: Vec<SnapshotId> = Vec::new();
        for mut found in alive {
            let Some(row) = rows.remove(&found.id) else {
                tracing::warn!(sandbox = %found.id, "a sandbox that nobody knows is destroyed");
                self.inner.warden.destroy(found.id).await?;
                continue;
            };
            let frozen = found.paused.is_some();
            if row.saved.is_some() && frozen {
                // Its files are saved; the server died before it took away the rest.
                self.inner.warden.destroy(found.id).await?;
                rows.insert(row.id, row);
                continue;
            }
            // Made anew from them, and the server died before that was written.
            stale.extend(row.saved);
            if let Some(paused) = &mut found.paused {
                paused.since = paused.since.min(now_ms());
            }
            let (user, id, was) = (row.user, row.id, row.state);
            match self.enter_found(row, found) {
                Ok(place) => {
                    if !frozen {
                        places.push(place);
                    }
                    if frozen != (was == SandboxState::Paused) {
                        self.write_row(user, id, ChangedWhy::Found);
                    }
                }
                Err(fault) => {
                    tracing::error!(%fault, sandbox = %id, "a sandbox cannot be taken over and is destroyed");
                    self.inner.rows.ended(user, id, EndedWhy::Broken);
                    self.inner.warden.destroy(id).await?;
                }
            }
        }
        for row in rows.into_values() {
            if row.saved.is_some() {
                let hold = self.inner.quota.hold(row.user, quota::of_stored(&row.spec.limits));
                self.insert(row, None, Phase::Stored, hold);
            } else {
                self.inner.rows.ended(row.user, row.id, EndedWhy::GoneMeanwhile);
            }
        }
        for snapshot in stale {
            self.forget_saved(snapshot);
        }
        let there = self.compare_snapshots().await?;
        self.end_without_files(&there);
        let adopted = futures::stream::iter(places).for_each_concurrent(ADOPT_AT_ONCE, |place| self.adopt_execs(place));
        adopted.await;
        let frozen: HashSet<PlaceRef> = (self.live().iter())
            .filter(|(_, entry)| entry.unadopted)
            .map(|((_, id), _)| PlaceRef::Sandbox(*id))
            .collect();
        self.inner.execs.adoption_over(|place| frozen.contains(&place));
        Ok(())
    }

    /// Enters a sandbox that was there before this server, running or frozen as the warden says.
    fn enter_found(&self, row: SandboxRow, found: AdoptedSandbox) -> Result<Arc<SandboxPlace>, Fault> {
        let AdoptedSandbox { id: _, spec, lease_until, enforcement, paused, socket } = found;
        let hold = self.inner.quota.hold(row.user, quota::of_sandbox(&spec.limits));
        let (state, phase) = match paused {
            Some(_) => (SandboxState::Paused, Phase::Paused),
            None => (SandboxState::Running, Phase::Running),
        };
        let row = SandboxRow {
            spec,
            lease_until,
            enforcement,
            state,
            pause_kind: paused.map(|_| PauseKind::Memory),
            paused_at: paused.map(|paused| row.paused_at.unwrap_or(paused.since)),
            saved: None,
            ..row
        };
        self.enter(row, socket, true, phase, hold)
    }

    /// Ends what was paused with its files alone and whose files the warden has not.
    fn end_without_files(&self, there: &HashSet<SnapshotId>) {
        let lost: Vec<Key> = (self.live().iter())
            .filter(|(_, entry)| entry.row.saved.is_some_and(|saved| !there.contains(&saved)))
            .map(|(key, _)| *key)
            .collect();
        for (user, id) in lost {
            if let Some(entry) = self.live().get_mut(&(user, id)) {
                entry.why = EndedWhy::FilesLost;
            }
            self.event(user, id, Event::DestroyAsked, EndedWhy::FilesLost);
        }
    }
}
