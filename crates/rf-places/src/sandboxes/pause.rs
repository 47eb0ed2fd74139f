//! Pausing and resuming: frozen where it is, or with its files alone.
//!
//! Each of the two steps in between (`Pausing`, `Resuming`, …) has one owner, the task that asked for it, which ends the
//! step whatever becomes of its caller. Whoever comes meanwhile is told what goes on, or waits in [`Sandboxes::awake`].

use std::{sync::Arc, time::Duration};

use rf_policy::{Action, Permit};
use rf_types::{Code, Fault, PauseKind, PlaceRef, SandboxId, SandboxState, SnapshotId, UserId, units::UnixMs};

use super::{Sandboxes, now_ms, paused};
use crate::{
    life::{Event, Phase, step},
    quota,
    rows::{ChangedWhy, EndedWhy, Resume, ResumeClaim, SandboxRow},
    sandbox::SandboxPlace,
    warden::Created,
};

/// How long a call waits for a sandbox that is being paused or resumed. Chosen: saving may take long, thawing does not.
const WAKE_TIME: Duration = Duration::from_secs(30);
/// How often, and how long apart, a sandbox is made anew whose earlier self the warden still takes away.
const REBUILD_TRIES: u32 = 100;
const REBUILD_PAUSE: Duration = Duration::from_millis(100);
/// How often, and how long apart, it is tried to take away what runs of a sandbox whose files are saved.
const EVICT_TRIES: u32 = 60;
const EVICT_PAUSE: Duration = Duration::from_secs(1);

impl Sandboxes {
    /// Pauses a running sandbox: answered when all its processes are frozen, or, with [`PauseKind::Files`], when its
    /// files are saved. Goes on also when the caller stops waiting. A paused sandbox has no lease.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it does not run; `unsupported` where this host cannot freeze; `warden_unavailable`;
    /// for the files `disk_full`, `limit_reached` and `store_unavailable`: then it runs on.
    pub async fn pause(&self, permit: &Permit, id: SandboxId, keep: PauseKind) -> Result<SandboxRow, Fault> {
        permit.require(Action::SandboxPause)?;
        let (this, user) = (self.clone(), permit.user());
        Self::for_sure(async move { this.pause_now(user, id, keep, ChangedWhy::Asked).await }).await
    }

    /// Resumes a paused sandbox; answered when it serves. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it is not paused; `warden_unavailable`, `server_busy`: then it stays paused.
    pub async fn resume(&self, claim: ResumeClaim, id: SandboxId, how: Resume) -> Result<SandboxRow, Fault> {
        claim.permit.require(Action::SandboxResume)?;
        let (this, user) = (self.clone(), claim.permit.user());
        let resumed = async move {
            this.resume_now(user, id, how, claim.more, ChangedWhy::Asked).await?;
            this.row(user, id)
        };
        Self::for_sure(resumed).await
    }

    /// A user's sandbox for a call that came for it: one that is frozen and was made with `auto_resume` is resumed, one
    /// that is being paused or resumed is waited for.
    ///
    /// One that only its files are kept of is not resumed by a call: that takes room of the user's, which is judged.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `paused`; what [`Sandboxes::resume`] says.
    pub async fn awake(&self, user: UserId, id: SandboxId) -> Result<Arc<SandboxPlace>, Fault> {
        loop {
            let (phase, auto_resume, mut moves) = {
                let mut live = self.live();
                let entry = live.get_mut(&(user, id)).ok_or_else(|| Fault::not_found("sandbox"))?;
                entry.used_at = now_ms();
                if let Ok(place) = entry.serving() {
                    return Ok(Arc::clone(place));
                }
                (entry.phase(), entry.row.about.auto_resume, entry.phase.subscribe())
            };
            match phase {
                Phase::Paused if auto_resume => {
                    let this = self.clone();
                    let resumed =
                        async move { this.resume_now(user, id, Resume::default(), None, ChangedWhy::Call).await };
                    match Self::for_sure(resumed).await {
                        // Somebody else was first, with this or with something else: look again.
                        Ok(()) => {}
                        Err(fault) if fault.code == Code::Conflict => {}
                        Err(fault) => return Err(fault),
                    }
                }
                phase if phase.is_passing() => {
                    let moved = moves.wait_for(|now| *now != phase);
                    if tokio::time::timeout(WAKE_TIME, moved).await.is_err() {
                        return Err(paused(phase));
                    }
                }
                phase if phase.is_there() => return Err(paused(phase)),
                _ => return Err(Fault::not_found("sandbox")),
            }
        }
    }

    /// A user's sandbox as listed, once it is neither being paused nor being resumed.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `paused` when the step under way takes too long.
    pub async fn settled(&self, permit: &Permit, id: SandboxId) -> Result<SandboxRow, Fault> {
        permit.require(Action::SandboxUpdate)?;
        let user = permit.user();
        let mut moves = match self.live().get(&(user, id)) {
            Some(entry) => entry.phase.subscribe(),
            None => return Err(Fault::not_found("sandbox")),
        };
        let settled = tokio::time::timeout(WAKE_TIME, moves.wait_for(|phase| !phase.is_passing())).await;
        if settled.is_err() {
            let phase = self.live().get(&(user, id)).map(super::Entry::phase);
            return Err(phase.map_or_else(|| Fault::not_found("sandbox"), paused));
        }
        self.row(user, id)
    }

    /// Begins a step that its user asked for; gives the place and the row as they are now.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it cannot be done to a sandbox that is as this one is.
    fn begin(
        &self,
        user: UserId,
        id: SandboxId,
        event: Event,
    ) -> Result<(Option<Arc<SandboxPlace>>, SandboxRow), Fault> {
        let mut live = self.live();
        let entry = live.get_mut(&(user, id)).ok_or_else(|| Fault::not_found("sandbox"))?;
        let phase = entry.phase();
        match step(phase, event) {
            Ok((next, _)) => {
                entry.phase.send_replace(next);
                Ok((entry.place.clone(), entry.row.clone()))
            }
            Err(_) if phase.is_there() => Err(conflict(phase)),
            Err(_) => Err(Fault::not_found("sandbox")),
        }
    }

    pub(super) async fn pause_now(
        &self,
        user: UserId,
        id: SandboxId,
        keep: PauseKind,
        why: ChangedWhy,
    ) -> Result<SandboxRow, Fault> {
        let (place, _) = self.begin(user, id, Event::PauseAsked)?;
        let set_paused = |is| {
            if let Some(place) = &place {
                place.init().set_paused(is);
            }
        };
        // From before, for what is frozen in the middle of an answer is not late.
        set_paused(true);
        if let Err(fault) = self.inner.warden.pause(id).await {
            if fault.code == Code::TimedOut {
                // It may be frozen by now. The lease that it had goes on.
                let _ = self.inner.warden.resume(id, None).await;
            }
            set_paused(false);
            self.event(user, id, Event::PauseFailed, EndedWhy::Destroyed);
            return Err(fault);
        }
        self.event(user, id, Event::Frozen, EndedWhy::Destroyed);
        if keep == PauseKind::Files
            && let Err(fault) = self.save(user, id, why, false).await
        {
            // As it was before; its lease goes on.
            if let Err(second) = self.thaw(user, id, None, ChangedWhy::Asked).await {
                tracing::warn!(fault = %second, sandbox = %id, "a sandbox whose files could not be saved stays paused");
            }
            return Err(fault);
        }
        if keep == PauseKind::Memory {
            self.write_row(user, id, why);
        }
        self.row(user, id)
    }

    /// Keeps the files of a frozen sandbox and nothing else of it. With `keep_room` its user's quota keeps counting it
    /// whole.
    pub(super) async fn save(
        &self,
        user: UserId,
        id: SandboxId,
        why: ChangedWhy,
        keep_room: bool,
    ) -> Result<SnapshotId, Fault> {
        let (_, row) = self.begin(user, id, Event::SaveAsked)?;
        let saved = SnapshotId::random();
        let row = SandboxRow {
            state: SandboxState::Paused,
            pause_kind: Some(PauseKind::Files),
            paused_at: Some(row.paused_at.unwrap_or_else(now_ms)),
            saved: Some(saved),
            ..row
        };
        let done = match self.inner.warden.snapshot(id, saved).await {
            // Before anything of it is taken away.
            Ok(_) => self.inner.rows.changed(&row, why),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = done {
            self.forget_saved(saved);
            self.event(user, id, Event::SaveFailed, EndedWhy::Destroyed);
            return Err(fault);
        }
        let phase = self.event_with(user, id, Event::Saved, EndedWhy::Destroyed, |entry| {
            entry.row.state = row.state;
            entry.row.pause_kind = row.pause_kind;
            entry.row.paused_at = row.paused_at;
            entry.row.saved = row.saved;
            if !keep_room {
                entry.hold.change(quota::of_stored(&entry.row.spec.limits));
            }
        });
        if phase == Some(Phase::Stored) {
            Ok(saved)
        } else {
            // It was destroyed, or died, in the middle.
            self.forget_saved(saved);
            Err(Fault::not_found("sandbox"))
        }
    }

    /// Takes away what runs of a sandbox whose files are saved.
    pub(super) async fn evict(self, id: SandboxId) {
        for _ in 0..EVICT_TRIES {
            match self.inner.warden.destroy(id).await {
                Ok(()) => return,
                // With the warden it is gone as well.
                Err(fault) if matches!(fault.code, Code::NotFound | Code::WardenUnavailable) => return,
                Err(fault) => tracing::warn!(%fault, sandbox = %id, "cannot take away a saved sandbox yet"),
            }
            tokio::time::sleep(EVICT_PAUSE).await;
        }
    }

    pub(super) async fn resume_now(
        &self,
        user: UserId,
        id: SandboxId,
        how: Resume,
        more: Option<quota::Hold>,
        why: ChangedWhy,
    ) -> Result<(), Fault> {
        let phase = match self.live().get(&(user, id)) {
            Some(entry) => entry.phase(),
            None => return Err(Fault::not_found("sandbox")),
        };
        let row = self.row(user, id)?;
        let lease_ms = how.lease_ms.unwrap_or(row.spec.lease_ms);
        match (phase, how.cold) {
            (Phase::Paused, false) => self.thaw(user, id, Some(now_ms().saturating_add(lease_ms)), why).await,
            (Phase::Paused, true) => {
                self.save(user, id, why, true).await?;
                self.rebuild(user, id, lease_ms, why).await
            }
            (Phase::Stored, _) => {
                if more.is_none() {
                    // It was frozen when its resuming was judged, and its files alone were kept in between.
                    return Err(conflict(phase));
                }
                self.rebuild(user, id, lease_ms, why).await
            }
            (phase, _) if phase.is_there() => Err(conflict(phase)),
            _ => Err(Fault::not_found("sandbox")),
        }
        // `more` is given back only here: what it holds is the sandbox's own by now.
    }

    /// Thaws a frozen sandbox; `lease_until` as of [`crate::WardenClient::resume`].
    async fn thaw(
        &self,
        user: UserId,
        id: SandboxId,
        lease_until: Option<UnixMs>,
        why: ChangedWhy,
    ) -> Result<(), Fault> {
        let (place, _) = self.begin(user, id, Event::ResumeAsked)?;
        let last_order = self.inner.warden.last_order();
        let lease_until = match self.inner.warden.resume(id, lease_until).await {
            Ok(lease_until) => lease_until,
            Err(fault) => {
                self.event(user, id, Event::ResumeFailed, EndedWhy::Destroyed);
                return Err(fault);
            }
        };
        let unadopted = self.live().get_mut(&(user, id)).is_some_and(|entry| std::mem::take(&mut entry.unadopted));
        if let Some(place) = place {
            place.init().set_paused(false);
            if unadopted {
                self.adopt_execs(place).await;
            }
        }
        let phase = self.event_with(user, id, Event::Thawed, EndedWhy::Destroyed, |entry| {
            running(&mut entry.row, lease_until);
            entry.used_at = now_ms();
            entry.resumed_after = last_order;
        });
        if phase != Some(Phase::Running) {
            return Err(Fault::not_found("sandbox"));
        }
        self.write_row(user, id, why);
        Ok(())
    }

    /// Makes a sandbox anew from its saved files.
    async fn rebuild(&self, user: UserId, id: SandboxId, lease_ms: u64, why: ChangedWhy) -> Result<(), Fault> {
        self.ready().await?;
        let (_, row) = self.begin(user, id, Event::RebuildAsked)?;
        let last_order = self.inner.warden.last_order();
        let made = self.rebuilt(&row, lease_ms).await;
        let (created, place) = match made {
            Ok(made) => made,
            Err(fault) => {
                self.event(user, id, Event::RebuildFailed, EndedWhy::Destroyed);
                return Err(fault);
            }
        };
        let phase = self.event_with(user, id, Event::Rebuilt, EndedWhy::Destroyed, |entry| {
            running(&mut entry.row, created.lease_until);
            entry.row.saved = None;
            entry.row.pooled = created.pooled;
            entry.row.enforcement = created.enforcement;
            entry.place = Some(place);
            entry.used_at = now_ms();
            entry.resumed_after = last_order;
            entry.hold.change(quota::of_sandbox(&entry.row.spec.limits));
        });
        if phase != Some(Phase::Running) {
            return Err(Fault::not_found("sandbox"));
        }
        self.write_row(user, id, why);
        let is_written = self.live().get(&(user, id)).is_some_and(|entry| !entry.dirty);
        // Where the row still says that only the files are kept, the files stay.
        if let Some(saved) = row.saved.filter(|_| is_written) {
            self.forget_saved(saved);
        }
        Ok(())
    }

    async fn rebuilt(&self, row: &SandboxRow, lease_ms: u64) -> Result<(Made, Arc<SandboxPlace>), Fault> {
        let generation = self.live().get(&(row.user, row.id)).map_or(0, |entry| entry.generation);
        let mut tries = 0;
        let created = loop {
            let made = self.inner.warden.create_from(row.spec.clone(), row.saved, Some(row.id)).await;
            match made {
                Err(fault) if fault.code == Code::Conflict && tries < REBUILD_TRIES => {
                    tries += 1;
                    tokio::time::sleep(REBUILD_PAUSE).await;
                }
                made => break made?,
            }
        };
        let Created { mut lease_until, pooled, enforcement, socket, .. } = created;
        if lease_ms != row.spec.lease_ms {
            lease_until = now_ms().saturating_add(lease_ms);
            if let Err(fault) = self.inner.warden.set_lease(row.id, lease_until).await {
                tokio::spawn(self.clone().evict(row.id));
                return Err(fault);
            }
        }
        match self.place_of(row, socket, false, generation) {
            Ok(place) => Ok((Made { lease_until, pooled, enforcement }, place)),
            Err(fault) => {
                tokio::spawn(self.clone().evict(row.id));
                Err(fault)
            }
        }
    }

    /// Takes over the execs of a sandbox that was there before this server; one that does not answer is given up.
    pub(super) async fn adopt_execs(&self, sandbox: Arc<SandboxPlace>) {
        let id = sandbox.sandbox_id();
        let place: Arc<dyn crate::place::Place> = Arc::clone(&sandbox) as Arc<dyn crate::place::Place>;
        if let Err(fault) = self.inner.execs.adopt(sandbox.user(), &place).await {
            tracing::warn!(%fault, sandbox = %id, "the execs of a sandbox cannot be taken over");
            sandbox.init().break_off(fault, EndedWhy::Broken);
        }
        self.inner.execs.settle(PlaceRef::Sandbox(id));
    }
}

/// What is known of a sandbox that was made anew.
struct Made {
    lease_until: UnixMs,
    pooled: bool,
    enforcement: rf_types::Enforcement,
}

/// The row of a sandbox that runs again.
fn running(row: &mut SandboxRow, lease_until: UnixMs) {
    row.state = SandboxState::Running;
    row.pause_kind = None;
    row.paused_at = None;
    row.started_at = now_ms();
    row.lease_until = lease_until;
}

fn conflict(phase: Phase) -> Fault {
    Fault::new(Code::Conflict, format!("the sandbox is {}", phase.text()), "ask for its state and try again")
}
