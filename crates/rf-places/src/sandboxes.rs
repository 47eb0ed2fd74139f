//! The sandboxes that live, each with exactly one user: made and destroyed through the warden, looked up only by user
//! and id together, adopted when the server comes back. Their life is stepped by [`crate::life::step`].
//!
//! Pausing and resuming are in [`pause`], snapshots and what is made from them in [`saved`], the care for all of them in
//! [`keep`].

mod keep;
mod one_shot;
mod pause;
mod saved;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rf_policy::{Action, Permit};
use rf_types::{Code, Fault, PlaceRef, SandboxId, SandboxSpec, SandboxState, UserId, units::UnixMs};
use rf_wire::warden::Usage;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::saved::Origin;
use self::{one_shot::Launched, saved::Snapshots};
pub use crate::rows::{
    ChangedWhy, EndedWhy, LimitsClaim, Making, Repeat, Resume, ResumeClaim, Rows, SandboxClaim, SandboxRow,
    SnapshotClaim, SnapshotRow,
};
use crate::{
    execs::Execs,
    life::{Effect, Event, Phase, step},
    quota::{self, Hold, Quota},
    refusal,
    sandbox::SandboxPlace,
    warden::WardenClient,
};

/// How long a call waits for the sandboxes to be taken over after a start. Chosen: a warden is back in a fraction of it,
/// and a caller is told within two seconds that it is not.
const ADOPTION_TIME: Duration = Duration::from_millis(1_500);
/// How long between two attempts to destroy what the warden could not. Chosen.
const DESTROY_PAUSE: Duration = Duration::from_secs(5);
/// How long a caller waits for a destruction that somebody else began.
const DESTROY_TIME: Duration = Duration::from_secs(30);

/// What lives.
#[derive(Clone)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

struct Inner {
    warden: WardenClient,
    rows: Arc<dyn Rows>,
    quota: Quota,
    execs: Execs,
    live: Mutex<HashMap<(UserId, SandboxId), Entry>>,
    /// Held while a row is read here and written there, so that the last one written is the last one read.
    writing: Mutex<()>,
    snapshots: Snapshots,
    /// Whether what lived before was taken over; nothing is made before.
    adopted: watch::Sender<bool>,
    /// Whether that was so once: from then on what is not known is not there.
    knows_all: AtomicBool,
    lost: mpsc::UnboundedSender<Lost>,
}

/// A sandbox whose init is gone or broken.
pub(crate) struct Lost {
    user: UserId,
    id: SandboxId,
    /// Which of the inits it had one after the other.
    generation: u64,
    why: EndedWhy,
}

struct Entry {
    phase: watch::Sender<Phase>,
    /// None while only its files are kept.
    place: Option<Arc<SandboxPlace>>,
    /// Counts its inits: news of an earlier one says nothing of this one.
    generation: u64,
    row: SandboxRow,
    hold: Hold,
    why: EndedWhy,
    gone: CancellationToken,
    /// Its destruction did not succeed at once, and goes on.
    late: CancellationToken,
    /// When something was last asked of it.
    used_at: UnixMs,
    /// The last order to the warden before it was told to resume it; 0 when it never was.
    resumed_after: u64,
    /// Its execs of before this server are taken over when it is resumed.
    unadopted: bool,
    /// Its row could not be written; it is tried again.
    dirty: bool,
    /// Held while its lease is set at the warden and here, so that both have the same one in the end.
    lease_turn: Arc<tokio::sync::Mutex<()>>,
}

impl Entry {
    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The place, if it serves.
    fn serving(&self) -> Result<&Arc<SandboxPlace>, Fault> {
        match (self.phase(), &self.place) {
            (Phase::Running, Some(place)) => Ok(place),
            (phase, _) if phase.is_there() => Err(paused(phase)),
            _ => Err(Fault::not_found("sandbox")),
        }
    }
}

/// What a call gets that comes for a sandbox which does not run.
fn paused(phase: Phase) -> Fault {
    Fault::new(
        Code::Paused,
        format!("the sandbox is {}", phase.text()),
        "resume it first; one that was made with `auto_resume` is resumed by the call itself",
    )
}

/// Now, by the clock of the host.
pub(crate) fn now_ms() -> UnixMs {
    // A clock before 1970 counts as 1970: leases then seem long, and the warden ends them.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Sandboxes {
    /// An empty registry with these snapshots; [`Sandboxes::keep`] must run.
    pub(crate) fn new(
        warden: WardenClient,
        rows: Arc<dyn Rows>,
        quota: Quota,
        execs: Execs,
        snapshots: Vec<SnapshotRow>,
    ) -> (Self, mpsc::UnboundedReceiver<Lost>) {
        let (lost, lost_receiver) = mpsc::unbounded_channel();
        let inner = Inner {
            snapshots: Snapshots::new(snapshots, &quota),
            warden,
            rows,
            quota,
            execs,
            live: Mutex::default(),
            writing: Mutex::default(),
            adopted: watch::Sender::new(false),
            knows_all: AtomicBool::new(false),
            lost,
        };
        (Self { inner: Arc::new(inner) }, lost_receiver)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<(UserId, SandboxId), Entry>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what lived before was taken over.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        *self.inner.adopted.borrow()
    }

    /// Waits until what lived before was taken over.
    pub async fn adopted(&self) {
        // The sender is ours, so the only way on is the adoption.
        let _ = self.inner.adopted.subscribe().wait_for(|adopted| *adopted).await;
    }

    /// Waits until this server knows what there was before it: until then nobody can be told that something is not there,
    /// or how much they have.
    ///
    /// # Errors
    /// `warden_unavailable` when that takes long.
    pub async fn known(&self) -> Result<(), Fault> {
        // Also while there is no warden: its sandboxes ended with it, and that is known.
        if self.inner.knows_all.load(Ordering::Acquire) { Ok(()) } else { self.ready().await }
    }

    async fn ready(&self) -> Result<(), Fault> {
        if self.is_adopted() {
            return Ok(());
        }
        let late = |_| {
            Fault::new(
                Code::WardenUnavailable,
                "the warden cannot be reached",
                "it is restarting: try again in a few seconds",
            )
        };
        tokio::time::timeout(ADOPTION_TIME, self.adopted()).await.map_err(late)
    }

    /// Carries `work` out also when its caller stops waiting.
    async fn for_sure<T: Send + 'static>(
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        let done = tokio::spawn(work).await;
        done.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the work on a sandbox ended early", "")))
    }

    /// Makes a sandbox. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// What the warden says; `store_unavailable`; `not_found` when what it is made from is another user's.
    pub async fn create(&self, claim: SandboxClaim, making: Making) -> Result<Arc<SandboxPlace>, Fault> {
        claim.permit.require(Action::SandboxCreate)?;
        if let Some(from) = &making.from {
            from.fits(&claim)?;
        }
        self.ready().await?;
        let this = self.clone();
        Self::for_sure(async move { this.make(claim, making).await }).await
    }

    async fn make(&self, claim: SandboxClaim, mut making: Making) -> Result<Arc<SandboxPlace>, Fault> {
        let repeat = making.repeat.take();
        let Launched { row, socket, hold } = self.launch(claim, making).await?;
        let (user, id) = (row.user, row.id);
        let stored = self.inner.rows.made(&row, repeat.as_ref());
        let entered = stored.and_then(|()| self.enter(row, socket, false, Phase::Running, hold));
        if entered.is_err() {
            self.inner.rows.unmade(user, id);
            // Should this fail too, the lease ends it.
            let _ = self.inner.warden.destroy(id).await;
        }
        entered
    }

    /// The place behind a socket that the warden handed out, the sandbox's init number `generation`.
    fn place_of(
        &self,
        row: &SandboxRow,
        socket: std::os::fd::OwnedFd,
        adopted: bool,
        generation: u64,
    ) -> Result<Arc<SandboxPlace>, Fault> {
        let (user, id) = (row.user, row.id);
        let lost = self.inner.lost.clone();
        // The receiver ends with the server only.
        let on_lost = Box::new(move |why| {
            let _ = lost.send(Lost { user, id, generation, why });
        });
        let place = SandboxPlace::new(user, id, row.about.env.clone(), socket, adopted, on_lost).map_err(|error| {
            Fault::new(Code::ServerBusy, format!("no room for one more sandbox: {}", error.kind()), "try again later")
        })?;
        Ok(Arc::new(place))
    }

    fn enter(
        &self,
        row: SandboxRow,
        socket: std::os::fd::OwnedFd,
        adopted: bool,
        phase: Phase,
        hold: Hold,
    ) -> Result<Arc<SandboxPlace>, Fault> {
        let place = self.place_of(&row, socket, adopted, 0)?;
        place.init().set_paused(phase != Phase::Running);
        self.insert(row, Some(Arc::clone(&place)), phase, hold);
        Ok(place)
    }

    fn insert(&self, row: SandboxRow, place: Option<Arc<SandboxPlace>>, phase: Phase, hold: Hold) {
        let (user, id) = (row.user, row.id);
        let is_lost = place.as_ref().is_some_and(|place| place.is_lost());
        let entry = Entry {
            phase: watch::Sender::new(phase),
            place,
            generation: 0,
            row,
            hold,
            why: EndedWhy::Destroyed,
            gone: CancellationToken::new(),
            late: CancellationToken::new(),
            used_at: now_ms(),
            resumed_after: 0,
            unadopted: phase == Phase::Paused,
            dirty: false,
            lease_turn: Arc::default(),
        };
        self.live().insert((user, id), entry);
        // It may have broken before it was entered.
        if is_lost {
            let _ = self.inner.lost.send(Lost { user, id, generation: 0, why: EndedWhy::InitDied });
        }
    }

    /// A user's sandbox, if it runs. See [`Sandboxes::awake`] for one that may be resumed.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `paused`.
    pub fn get(&self, user: UserId, id: SandboxId) -> Result<Arc<SandboxPlace>, Fault> {
        let mut live = self.live();
        let entry = live.get_mut(&(user, id)).ok_or_else(|| Fault::not_found("sandbox"))?;
        let place = Arc::clone(entry.serving()?);
        if entry.row.about.idle_pause_ms.is_some() {
            entry.used_at = now_ms();
        }
        Ok(place)
    }

    /// A user's sandbox as listed, running or paused.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn row(&self, user: UserId, id: SandboxId) -> Result<SandboxRow, Fault> {
        self.look_at(user, id, SandboxRow::clone)
    }

    /// As [`Sandboxes::row`], without copying it. Nothing else of any sandbox goes on meanwhile.
    ///
    /// # Errors
    /// As [`Sandboxes::row`].
    pub fn look_at<T>(&self, user: UserId, id: SandboxId, look: impl FnOnce(&SandboxRow) -> T) -> Result<T, Fault> {
        match self.live().get(&(user, id)) {
            Some(entry) if entry.phase().is_there() => Ok(look(&entry.row)),
            _ => Err(Fault::not_found("sandbox")),
        }
    }

    /// Looks at a user's sandbox that [`Sandboxes::awake`] would give, before it is known who asks for it: it is neither
    /// woken nor counted as used. The place is there if it runs already.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `paused` where a call does not wake it.
    pub fn peek<T>(
        &self,
        user: UserId,
        id: SandboxId,
        look: impl FnOnce(&SandboxRow, Option<&Arc<SandboxPlace>>) -> T,
    ) -> Result<T, Fault> {
        let live = self.live();
        let entry = live.get(&(user, id)).ok_or_else(|| Fault::not_found("sandbox"))?;
        let phase = entry.phase();
        let wakes = phase.is_passing() || phase == Phase::Paused && entry.row.about.auto_resume;
        match entry.serving() {
            Ok(place) => Ok(look(&entry.row, Some(place))),
            Err(fault) if fault.code == Code::Paused && wakes => Ok(look(&entry.row, None)),
            Err(fault) => Err(fault),
        }
    }

    /// The sandboxes of all users that are there, in no order; for finding the one that signed something.
    #[must_use]
    pub fn ids(&self) -> Vec<SandboxId> {
        self.live().iter().filter(|(_, entry)| entry.phase().is_there()).map(|((_, id), _)| *id).collect()
    }

    /// A user's sandboxes, running and paused, oldest first.
    #[must_use]
    pub fn list(&self, user: UserId) -> Vec<SandboxRow> {
        let mut rows: Vec<_> = (self.live().iter())
            .filter(|((owner, _), entry)| *owner == user && entry.phase().is_there())
            .map(|(_, entry)| entry.row.clone())
            .collect();
        rows.sort_by_key(|row| (row.created_at, row.id));
        rows
    }

    /// How many live, over all users.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live().len()
    }

    /// The sandbox that the user's calls go to when they name none: the oldest that is marked so, running or paused.
    #[must_use]
    pub fn default_of(&self, user: UserId) -> Option<SandboxId> {
        (self.live().iter())
            .filter(|((owner, _), entry)| *owner == user && entry.row.default && entry.phase().is_there())
            .filter(|(_, entry)| entry.place.as_ref().is_none_or(|place| !place.is_lost()))
            .min_by_key(|((_, id), entry)| (entry.row.created_at, *id))
            .map(|((_, id), _)| *id)
    }

    /// Sets the end of a lease, `lease_ms` from now; 0 ends it now. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// `not_found`, `paused`, `warden_unavailable`, `store_unavailable`.
    pub async fn extend(&self, permit: &Permit, id: SandboxId, lease_ms: u64) -> Result<SandboxRow, Fault> {
        self.set_lease(permit, id, lease_ms, false).await
    }

    /// As [`Sandboxes::extend`], but never sooner than it was, whoever else sets it meanwhile.
    ///
    /// # Errors
    /// As for [`Sandboxes::extend`].
    pub async fn lengthen(&self, permit: &Permit, id: SandboxId, lease_ms: u64) -> Result<SandboxRow, Fault> {
        self.set_lease(permit, id, lease_ms, true).await
    }

    async fn set_lease(
        &self,
        permit: &Permit,
        id: SandboxId,
        lease_ms: u64,
        never_sooner: bool,
    ) -> Result<SandboxRow, Fault> {
        permit.require(Action::SandboxUpdate)?;
        let user = permit.user();
        self.get(user, id)?;
        let this = self.clone();
        let set = async move {
            let turn = match this.live().get(&(user, id)) {
                Some(entry) => Arc::clone(&entry.lease_turn),
                None => return Err(Fault::not_found("sandbox")),
            };
            let _turn = turn.lock().await;
            let lease_until = now_ms().saturating_add(lease_ms);
            if never_sooner {
                let row = this.row(user, id)?;
                if row.state == SandboxState::Running && row.lease_until >= lease_until {
                    return Ok(row);
                }
            }
            this.inner.warden.set_lease(id, lease_until).await?;
            this.change(user, id, |entry| entry.row.lease_until = lease_until)
        };
        Self::for_sure(set).await
    }

    /// Sets limits of memory, tasks, CPU and I/O; `claim` has the new ones and is counted until they are. Goes on also
    /// when the caller stops waiting: what the warden gave is counted.
    ///
    /// # Errors
    /// `not_found`, `paused`, `warden_unavailable`, `store_unavailable`; `invalid_request` when the disk's limits differ.
    pub async fn set_limits(&self, claim: LimitsClaim, id: SandboxId) -> Result<SandboxRow, Fault> {
        let LimitsClaim { permit, limits, more } = claim;
        permit.require(Action::SandboxUpdate)?;
        let user = permit.user();
        self.get(user, id)?;
        let row = self.row(user, id)?;
        let old = row.spec.limits;
        if (old.disk_bytes_max, old.inodes_max) != (limits.disk_bytes_max, limits.inodes_max) {
            return Err(Fault::invalid("the disk's limits cannot be changed"));
        }
        let spec = SandboxSpec { limits, ..row.spec };
        spec.validate().map_err(|error| Fault::invalid(error.to_string()))?;
        let this = self.clone();
        let set = async move {
            this.inner.warden.set_limits(id, limits).await?;
            let changed = this.change(user, id, |entry| {
                entry.row.spec.limits = limits;
                entry.hold.change(quota::of_sandbox(&limits));
            });
            // What it held is the sandbox's own by now.
            drop(more);
            changed
        };
        Self::for_sure(set).await
    }

    /// Sets what its door must remember of a sandbox, running or paused.
    ///
    /// # Errors
    /// `not_found`, `store_unavailable`; `invalid_request` when it is too long.
    pub fn set_door(&self, permit: &Permit, id: SandboxId, door: serde_json::Value) -> Result<SandboxRow, Fault> {
        permit.require(Action::SandboxUpdate)?;
        let about = rf_types::SandboxAbout { door, ..rf_types::SandboxAbout::default() };
        about.validate()?;
        self.row(permit.user(), id)?;
        self.change(permit.user(), id, |entry| entry.row.about.door = about.door)
    }

    fn change(&self, user: UserId, id: SandboxId, change: impl FnOnce(&mut Entry)) -> Result<SandboxRow, Fault> {
        let _turn = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let row = {
            let mut live = self.live();
            let entry = live.get_mut(&(user, id)).ok_or_else(|| Fault::not_found("sandbox"))?;
            change(entry);
            entry.row.clone()
        };
        let written = self.inner.rows.changed(&row, ChangedWhy::Asked);
        if written.is_err() {
            self.set_dirty(user, id);
        }
        written.map(|()| row)
    }

    /// Writes a sandbox's row down as it is now; tried again later if that fails, for what it says has happened.
    fn write_row(&self, user: UserId, id: SandboxId, why: ChangedWhy) {
        let _turn = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let row = match self.live().get_mut(&(user, id)) {
            Some(entry) => {
                entry.dirty = false;
                entry.row.clone()
            }
            None => return,
        };
        if let Err(fault) = self.inner.rows.changed(&row, why) {
            tracing::error!(%fault, sandbox = %id, "the row of a sandbox was not written and will be");
            self.set_dirty(user, id);
        }
    }

    fn set_dirty(&self, user: UserId, id: SandboxId) {
        if let Some(entry) = self.live().get_mut(&(user, id)) {
            entry.dirty = true;
        }
    }

    /// What a sandbox uses now; nothing but its files' bytes while only those are kept.
    ///
    /// # Errors
    /// `not_found`, `warden_unavailable`.
    pub async fn usage(&self, permit: &Permit, id: SandboxId) -> Result<Usage, Fault> {
        permit.require(Action::SandboxRead)?;
        let row = self.row(permit.user(), id)?;
        match row.saved {
            Some(_) => Ok(Usage::default()),
            None => self.inner.warden.usage(id).await,
        }
    }

    /// Destroys a sandbox, running or paused; answered when nothing of it is left. Goes on also when the caller stops
    /// waiting.
    ///
    /// # Errors
    /// `not_found`; `timed_out` when the warden does not do it, or takes longer than 30 s: it goes on.
    pub async fn destroy(&self, permit: &Permit, id: SandboxId) -> Result<(), Fault> {
        permit.require(Action::SandboxDestroy)?;
        let user = permit.user();
        let (gone, late) = match self.live().get(&(user, id)) {
            Some(entry) => (entry.gone.clone(), entry.late.clone()),
            None => return Err(Fault::not_found("sandbox")),
        };
        let patience = async {
            if late.is_cancelled() {
                // The warden may just have come back.
                tokio::time::sleep(ADOPTION_TIME).await;
            }
            late.cancelled().await;
        };
        self.event(user, id, Event::DestroyAsked, EndedWhy::Destroyed);
        tokio::select! {
            biased;
            () = gone.cancelled() => return Ok(()),
            () = patience => {}
            () = tokio::time::sleep(DESTROY_TIME) => {}
        }
        let message = "the sandbox is not gone yet";
        Err(Fault::new(Code::TimedOut, message, "it is being destroyed; look again in a while"))
    }

    /// Steps a sandbox's life and carries out the effect.
    fn event(&self, user: UserId, id: SandboxId, event: Event, why: EndedWhy) -> Option<Phase> {
        self.event_with(user, id, event, why, |_| {})
    }

    /// As [`Sandboxes::event`]; `change` is applied in the same moment if the event leads to where it is meant to: not
    /// to a sandbox that is on its way out. Gives the phase it is in now; `None` when there is no such sandbox.
    fn event_with(
        &self,
        user: UserId,
        id: SandboxId,
        event: Event,
        why: EndedWhy,
        change: impl FnOnce(&mut Entry),
    ) -> Option<Phase> {
        let mut live = self.live();
        let entry = live.get_mut(&(user, id))?;
        let (phase, effect) = match step(entry.phase(), event) {
            Ok(next) => next,
            Err(refused) => {
                tracing::error!(%refused, %id, "a sandbox's life took a wrong turn");
                return Some(entry.phase());
            }
        };
        if phase.is_there() {
            change(entry);
        }
        match effect {
            Effect::Serve | Effect::Shut | Effect::Nothing => drop(entry.phase.send_replace(phase)),
            Effect::Rest => {
                entry.row.state = SandboxState::Paused;
                entry.row.pause_kind = Some(rf_types::PauseKind::Memory);
                entry.row.paused_at = Some(now_ms());
                if let Some(place) = &entry.place {
                    place.init().set_paused(true);
                }
                entry.phase.send_replace(phase);
            }
            Effect::Store => {
                let place = entry.place.take();
                // Whatever the old init says from now on is not of this sandbox any more.
                entry.generation += 1;
                entry.unadopted = false;
                entry.phase.send_replace(phase);
                drop(live);
                if let Some(place) = place {
                    place.init().break_off(refusal::lost("it was paused with its files alone"), EndedWhy::Destroyed);
                }
                self.inner.execs.settle(PlaceRef::Sandbox(id));
                tokio::spawn(self.clone().evict(id));
            }
            Effect::Destroy => {
                entry.why = why;
                entry.phase.send_replace(phase);
                let place = entry.place.clone();
                drop(live);
                if let Some(place) = place {
                    place.init().break_off(refusal::lost(reason(why)), why);
                }
                tokio::spawn(self.clone().destroy_for_sure(user, id));
            }
            Effect::End | Effect::EndRow => {
                if effect == Effect::End {
                    entry.why = why;
                }
                let entry = live.remove(&(user, id))?;
                drop(live);
                entry.phase.send_replace(phase);
                if let Some(place) = &entry.place {
                    place.init().break_off(refusal::lost(reason(entry.why)), entry.why);
                }
                if entry.unadopted {
                    self.inner.execs.settle(PlaceRef::Sandbox(id));
                }
                if let Some(saved) = entry.row.saved {
                    self.forget_saved(saved);
                }
                self.inner.rows.ended(user, id, entry.why);
                tracing::info!(%user, sandbox = %id, why = ?entry.why, "sandbox ended");
                drop(entry.hold);
                entry.gone.cancel();
            }
        }
        Some(phase)
    }

    /// Has the warden destroy a sandbox, again and again until nothing is left.
    async fn destroy_for_sure(self, user: UserId, id: SandboxId) {
        loop {
            match self.inner.warden.destroy(id).await {
                Ok(()) => break,
                Err(fault) if fault.code == Code::NotFound => break,
                // The loss of the warden is told to every sandbox, this one too.
                Err(fault) => tracing::warn!(%fault, sandbox = %id, "cannot destroy a sandbox yet"),
            }
            if let Some(entry) = self.live().get(&(user, id)) {
                entry.late.cancel();
            }
            tokio::time::sleep(DESTROY_PAUSE).await;
            if !self.live().contains_key(&(user, id)) {
                return;
            }
        }
        self.event(user, id, Event::Destroyed, EndedWhy::Destroyed);
    }
}

const fn reason(why: EndedWhy) -> &'static str {
    match why {
        EndedWhy::Destroyed => "it was destroyed",
        EndedWhy::Lease => "its lease ended",
        EndedWhy::InitDied => "its process 1 died",
        EndedWhy::Broken => "its process 1 broke the rules of the protocol",
        EndedWhy::WardenRestarted => "the warden restarted",
        EndedWhy::GoneMeanwhile => "it was gone when the server came back",
        EndedWhy::FilesLost => "it was paused, and the warden has its files no more",
    }
}
