//! The sandboxes that live, each with exactly one user: made and destroyed through the warden, looked up only by user
//! and id together, adopted when the server comes back. Their life is stepped by [`crate::life::step`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rf_policy::{Action, Permit};
use rf_types::{
    Code, Enforcement, Fault, Limits, PauseKind, SandboxAbout, SandboxId, SandboxSpec, SandboxState, UserId,
    units::UnixMs,
};
use rf_wire::warden::{GoneWhy, Usage};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    life::{Effect, Event, Phase, step},
    quota::{self, Hold, Quota},
    refusal,
    sandbox::SandboxPlace,
    warden::{AdoptedSandbox, Created, News, WardenClient},
};

/// How much later than the warden the server ends a sandbox whose lease is over. Chosen.
const LEASE_GRACE_MS: u64 = 5_000;
/// How often leases are looked at. Chosen: the warden is the one who ends them; this is the backstop.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);
/// How long a call waits for the sandboxes to be taken over after a start. Chosen: a warden is back in a fraction of it,
/// and a caller is told within two seconds that it is not.
const ADOPTION_TIME: Duration = Duration::from_millis(1_500);
/// How long between two attempts to destroy what the warden could not. Chosen.
const DESTROY_PAUSE: Duration = Duration::from_secs(5);
/// How long the warden may take to say why it ended a sandbox. Chosen.
const REASON_TIME: Duration = Duration::from_millis(50);
/// How long a caller waits for a destruction that somebody else began.
const DESTROY_TIME: Duration = Duration::from_secs(30);

/// One sandbox as stored and listed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub user: UserId,
    /// A name its user gave it; means nothing to us.
    pub name: Option<String>,
    /// Whether it is the one that the user's calls go to when they name none.
    pub default: bool,
    /// As it was asked for, with the limits it has now.
    pub spec: SandboxSpec,
    /// Whether it runs.
    pub state: SandboxState,
    /// What is kept of it while it is paused; `None` while it runs.
    pub pause_kind: Option<PauseKind>,
    /// What its maker says of it.
    pub about: SandboxAbout,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it last began to run.
    pub started_at: UnixMs,
    /// When its lease ends; means nothing while it is paused.
    pub lease_until: UnixMs,
    /// Whether it was prepared before.
    pub pooled: bool,
    /// What holds it, as read back.
    pub enforcement: Enforcement,
}

/// Why a sandbox ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedWhy {
    /// It was asked to be destroyed.
    Destroyed,
    /// Its lease ended.
    Lease,
    /// Its process 1 died.
    InitDied,
    /// Its process 1 broke the rules or did not answer.
    Broken,
    /// The warden went away, and its sandboxes with it.
    WardenRestarted,
    /// It was gone when the server came back.
    GoneMeanwhile,
}

/// The durable rows of sandboxes; the server implements it on its store. Calls take well under a millisecond.
pub trait Rows: Send + Sync {
    /// A sandbox was made; it serves nobody before this is durable.
    ///
    /// # Errors
    /// `store_unavailable`: the sandbox is destroyed again.
    fn made(&self, row: &SandboxRow) -> Result<(), Fault>;

    /// A lease or limits changed.
    ///
    /// # Errors
    /// `store_unavailable`.
    fn changed(&self, row: &SandboxRow) -> Result<(), Fault>;

    /// A sandbox ended. Where this fails the row is ended when the server starts next.
    fn ended(&self, user: UserId, id: SandboxId, why: EndedWhy);
}

/// Leave to make one sandbox, already counted in its user's quota; see [`crate::places::Places::claim_sandbox`].
#[must_use = "a claim that nobody uses is given back"]
#[derive(Debug)]
pub struct SandboxClaim {
    pub(crate) permit: Permit,
    pub(crate) spec: SandboxSpec,
    pub(crate) hold: Hold,
}

/// What a sandbox is made with beside its spec.
#[derive(Clone, Debug, Default)]
pub struct Making {
    /// A name its user gives it.
    pub name: Option<String>,
    /// Whether it is the one that the user's calls go to when they name none.
    pub default: bool,
    /// What its maker says of it; validated.
    pub about: SandboxAbout,
}

/// What lives.
#[derive(Clone)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

struct Inner {
    warden: WardenClient,
    rows: Arc<dyn Rows>,
    quota: Quota,
    live: Mutex<HashMap<(UserId, SandboxId), Entry>>,
    /// Whether what lived before was taken over; nothing is made before.
    adopted: watch::Sender<bool>,
    lost: mpsc::UnboundedSender<Lost>,
}

/// A sandbox whose init is gone or broken.
pub(crate) struct Lost {
    user: UserId,
    id: SandboxId,
    why: EndedWhy,
}

struct Entry {
    phase: Phase,
    place: Arc<SandboxPlace>,
    row: SandboxRow,
    hold: Hold,
    why: EndedWhy,
    gone: CancellationToken,
}

/// Now, by the clock of the host.
pub(crate) fn now_ms() -> UnixMs {
    // A clock before 1970 counts as 1970: leases then seem long, and the warden ends them.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Sandboxes {
    /// An empty registry; [`Sandboxes::keep`] must run.
    pub(crate) fn new(
        warden: WardenClient,
        rows: Arc<dyn Rows>,
        quota: Quota,
    ) -> (Self, mpsc::UnboundedReceiver<Lost>) {
        let (lost, lost_receiver) = mpsc::unbounded_channel();
        let live = Mutex::default();
        let adopted = watch::Sender::new(false);
        (Self { inner: Arc::new(Inner { warden, rows, quota, live, adopted, lost }) }, lost_receiver)
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

    async fn ready(&self) -> Result<(), Fault> {
        let late = |_| {
            Fault::new(
                Code::WardenUnavailable,
                "the warden cannot be reached",
                "it is restarting: try again in a few seconds",
            )
        };
        tokio::time::timeout(ADOPTION_TIME, self.adopted()).await.map_err(late)
    }

    /// Makes a sandbox. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// What the warden says; `store_unavailable`.
    pub async fn create(&self, claim: SandboxClaim, making: Making) -> Result<Arc<SandboxPlace>, Fault> {
        claim.permit.require(Action::SandboxCreate)?;
        if !self.is_adopted() {
            self.ready().await?;
        }
        let this = self.clone();
        let made = tokio::spawn(async move { this.make(claim, making).await });
        made.await.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the making of a sandbox ended early", "")))
    }

    async fn make(&self, claim: SandboxClaim, making: Making) -> Result<Arc<SandboxPlace>, Fault> {
        let SandboxClaim { permit, spec, hold } = claim;
        let user = permit.user();
        let made = self.inner.warden.create(spec.clone()).await?;
        let Created { id, lease_until, pooled, enforcement, socket } = made;
        let Making { name, default, about } = making;
        let now = now_ms();
        let row = SandboxRow {
            id,
            user,
            name,
            default,
            spec,
            state: SandboxState::Running,
            pause_kind: None,
            about,
            created_at: now,
            started_at: now,
            lease_until,
            pooled,
            enforcement,
        };
        let stored = self.inner.rows.made(&row);
        let entered = stored.and_then(|()| self.enter(row, socket, false, hold));
        if entered.is_err() {
            self.inner.rows.ended(user, id, EndedWhy::Destroyed);
            // Should this fail too, the lease ends it.
            let _ = self.inner.warden.destroy(id).await;
        }
        entered
    }

    fn enter(
        &self,
        row: SandboxRow,
        socket: std::os::fd::OwnedFd,
        adopted: bool,
        hold: Hold,
    ) -> Result<Arc<SandboxPlace>, Fault> {
        let (user, id) = (row.user, row.id);
        let lost = self.inner.lost.clone();
        // The receiver ends with the server only.
        let on_lost = Box::new(move |why| {
            let _ = lost.send(Lost { user, id, why });
        });
        let place = SandboxPlace::new(user, id, row.about.env.clone(), socket, adopted, on_lost).map_err(|error| {
            Fault::new(Code::ServerBusy, format!("no room for one more sandbox: {}", error.kind()), "try again later")
        })?;
        let place = Arc::new(place);
        let entry = Entry {
            phase: Phase::Running,
            place: Arc::clone(&place),
            row,
            hold,
            why: EndedWhy::Destroyed,
            gone: CancellationToken::new(),
        };
        self.live().insert((user, id), entry);
        // It may have broken before it was entered.
        if place.is_lost() {
            let _ = self.inner.lost.send(Lost { user, id, why: EndedWhy::InitDied });
        }
        Ok(place)
    }

    /// A user's sandbox.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn get(&self, user: UserId, id: SandboxId) -> Result<Arc<SandboxPlace>, Fault> {
        match self.live().get(&(user, id)) {
            Some(entry) if entry.phase == Phase::Running => Ok(Arc::clone(&entry.place)),
            _ => Err(Fault::not_found("sandbox")),
        }
    }

    /// A user's sandbox as listed.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn row(&self, user: UserId, id: SandboxId) -> Result<SandboxRow, Fault> {
        match self.live().get(&(user, id)) {
            Some(entry) if entry.phase == Phase::Running => Ok(entry.row.clone()),
            _ => Err(Fault::not_found("sandbox")),
        }
    }

    /// Looks at a user's sandbox without copying its row. Nothing else of any sandbox goes on meanwhile.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn look<T>(
        &self,
        user: UserId,
        id: SandboxId,
        look: impl FnOnce(&SandboxRow, &Arc<SandboxPlace>) -> T,
    ) -> Result<T, Fault> {
        match self.live().get(&(user, id)) {
            Some(entry) if entry.phase == Phase::Running => Ok(look(&entry.row, &entry.place)),
            _ => Err(Fault::not_found("sandbox")),
        }
    }

    /// The sandboxes of all users, in no order; for finding the one that signed something.
    #[must_use]
    pub fn ids(&self) -> Vec<SandboxId> {
        self.live().iter().filter(|(_, entry)| entry.phase == Phase::Running).map(|((_, id), _)| *id).collect()
    }

    /// A user's sandboxes, oldest first.
    #[must_use]
    pub fn list(&self, user: UserId) -> Vec<SandboxRow> {
        let mut rows: Vec<_> = (self.live().iter())
            .filter(|((owner, _), entry)| *owner == user && entry.phase == Phase::Running)
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

    /// The sandbox that the user's calls go to when they name none: the oldest that is marked so.
    #[must_use]
    pub fn default_of(&self, user: UserId) -> Option<Arc<SandboxPlace>> {
        (self.live().iter())
            .filter(|((owner, _), entry)| *owner == user && entry.row.default && entry.phase == Phase::Running)
            .filter(|(_, entry)| !entry.place.is_lost())
            .min_by_key(|((_, id), entry)| (entry.row.created_at, *id))
            .map(|(_, entry)| Arc::clone(&entry.place))
    }

    /// Sets the end of a lease, `lease_ms` from now.
    ///
    /// # Errors
    /// `not_found`, `warden_unavailable`, `store_unavailable`.
    pub async fn extend(&self, permit: &Permit, id: SandboxId, lease_ms: u64) -> Result<SandboxRow, Fault> {
        permit.require(Action::SandboxUpdate)?;
        let user = permit.user();
        self.get(user, id)?;
        let lease_until = now_ms().saturating_add(lease_ms);
        self.inner.warden.set_lease(id, lease_until).await?;
        self.change(user, id, |entry| entry.row.lease_until = lease_until)
    }

    /// Sets limits of memory, tasks, CPU and I/O; `claim` has the new ones and is counted while it lasts.
    ///
    /// # Errors
    /// `not_found`, `warden_unavailable`, `store_unavailable`; `invalid_request` when the disk's limits differ.
    pub async fn set_limits(&self, permit: &Permit, id: SandboxId, limits: Limits) -> Result<SandboxRow, Fault> {
        permit.require(Action::SandboxUpdate)?;
        let user = permit.user();
        let row = self.row(user, id)?;
        let old = row.spec.limits;
        if (old.disk_bytes_max, old.inodes_max) != (limits.disk_bytes_max, limits.inodes_max) {
            return Err(Fault::invalid("the disk's limits cannot be changed"));
        }
        let spec = SandboxSpec { limits, ..row.spec };
        spec.validate().map_err(|error| Fault::invalid(error.to_string()))?;
        self.inner.warden.set_limits(id, limits).await?;
        self.change(user, id, |entry| {
            entry.row.spec.limits = limits;
            entry.hold.change(quota::of_sandbox(&limits));
        })
    }

    fn change(&self, user: UserId, id: SandboxId, change: impl FnOnce(&mut Entry)) -> Result<SandboxRow, Fault> {
        let row = {
            let mut live = self.live();
            let entry = live.get_mut(&(user, id)).ok_or_else(|| Fault::not_found("sandbox"))?;
            change(entry);
            entry.row.clone()
        };
        self.inner.rows.changed(&row)?;
        Ok(row)
    }

    /// What a sandbox uses now.
    ///
    /// # Errors
    /// `not_found`, `warden_unavailable`.
    pub async fn usage(&self, permit: &Permit, id: SandboxId) -> Result<Usage, Fault> {
        permit.require(Action::SandboxRead)?;
        self.get(permit.user(), id)?;
        self.inner.warden.usage(id).await
    }

    /// Destroys a sandbox; answered when nothing of it is left. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// `not_found`; `timed_out` when it takes longer than 30 s: it goes on.
    pub async fn destroy(&self, permit: &Permit, id: SandboxId) -> Result<(), Fault> {
        permit.require(Action::SandboxDestroy)?;
        let user = permit.user();
        let gone = match self.live().get(&(user, id)) {
            Some(entry) => entry.gone.clone(),
            None => return Err(Fault::not_found("sandbox")),
        };
        self.event(user, id, Event::DestroyAsked, EndedWhy::Destroyed);
        tokio::time::timeout(DESTROY_TIME, gone.cancelled()).await.map_err(|_| {
            Fault::new(Code::TimedOut, "the sandbox is not gone yet", "it is being destroyed; look again in a while")
        })
    }

    /// Steps a sandbox's life and carries out the effect.
    fn event(&self, user: UserId, id: SandboxId, event: Event, why: EndedWhy) {
        let mut live = self.live();
        let Some(entry) = live.get_mut(&(user, id)) else { return };
        let (phase, effect) = match step(entry.phase, event) {
            Ok(next) => next,
            Err(refused) => {
                tracing::error!(%refused, %id, "a sandbox's life took a wrong turn");
                return;
            }
        };
        entry.phase = phase;
        match effect {
            Effect::Serve | Effect::Nothing => {}
            Effect::Destroy => {
                entry.why = why;
                let place = Arc::clone(&entry.place);
                drop(live);
                place.init().break_off(refusal::lost(reason(why)), why);
                tokio::spawn(self.clone().destroy_for_sure(user, id));
            }
            Effect::End | Effect::EndRow => {
                if effect == Effect::End {
                    entry.why = why;
                }
                let Some(entry) = live.remove(&(user, id)) else { return };
                drop(live);
                entry.place.init().break_off(refusal::lost(reason(entry.why)), entry.why);
                self.inner.rows.ended(user, id, entry.why);
                tracing::info!(%user, sandbox = %id, why = ?entry.why, "sandbox ended");
                drop(entry.hold);
                entry.gone.cancel();
            }
        }
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
            tokio::time::sleep(DESTROY_PAUSE).await;
            if !self.live().contains_key(&(user, id)) {
                return;
            }
        }
        self.event(user, id, Event::Destroyed, EndedWhy::Destroyed);
    }

    /// Carries on the lives of all: news of the warden, broken inits, leases. Ends with the server.
    ///
    /// `known` are the stored rows that have not ended. Whenever the warden is there (again), what lives is compared
    /// with them; `adopt` is called with each that goes on, before anybody else may use it.
    pub(crate) async fn keep<F, A>(
        self,
        mut news: mpsc::Receiver<News>,
        mut lost: mpsc::UnboundedReceiver<Lost>,
        known: Vec<SandboxRow>,
        mut adopt: F,
    ) where
        F: FnMut(Vec<Arc<SandboxPlace>>) -> A,
        A: Future<Output = ()>,
    {
        let mut known = Some(known);
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                item = news.recv() => match item {
                    None => return,
                    Some(News::Back) => {
                        match self.take_over(known.as_deref().unwrap_or_default()).await {
                            Ok(places) => {
                                known = None;
                                adopt(places).await;
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
                    Some(News::Gone(id, why)) => {
                        let why = match why {
                            GoneWhy::Lease => EndedWhy::Lease,
                            GoneWhy::InitDied => EndedWhy::InitDied,
                        };
                        let user = self.live().keys().find(|(_, known)| *known == id).map(|(user, _)| *user);
                        if let Some(user) = user {
                            self.event(user, id, Event::WardenSaysGone, why);
                        }
                    }
                    // What a paused sandbox and a snapshot are to their rows is not kept here yet.
                    Some(News::Paused(..) | News::SnapshotChanged(_)) => {}
                    Some(News::Orphan(id)) => drop(tokio::spawn({
                        let warden = self.inner.warden.clone();
                        // Should this fail, the lease ends it.
                        async move { drop(warden.destroy(id).await) }
                    })),
                },
                Some(Lost { user, id, why }) = lost.recv() => {
                    // When the warden ends a sandbox its init's socket closes first, and the reason comes after.
                    let this = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(REASON_TIME).await;
                        this.event(user, id, Event::InitBroken, why);
                    });
                }
                _ = sweep.tick() => {
                    let places: Vec<_> = self.live().values().map(|entry| Arc::clone(&entry.place)).collect();
                    for place in places {
                        place.init().forget_ended();
                    }
                    let now = now_ms();
                    let over: Vec<_> = (self.live().iter())
                        .filter(|(_, entry)| entry.row.lease_until.saturating_add(LEASE_GRACE_MS) < now)
                        .map(|(key, _)| *key)
                        .collect();
                    for (user, id) in over {
                        self.event(user, id, Event::LeasePassed, EndedWhy::Lease);
                    }
                }
            }
        }
    }

    /// Compares what lives with what is stored: what both know goes on, the rest ends.
    async fn take_over(&self, known: &[SandboxRow]) -> Result<Vec<Arc<SandboxPlace>>, Fault> {
        let alive = self.inner.warden.adopt().await?;
        let mut rows: HashMap<SandboxId, SandboxRow> = known.iter().map(|row| (row.id, row.clone())).collect();
        let mut places = Vec::new();
        for AdoptedSandbox { id, spec, lease_until, enforcement, socket, .. } in alive {
            let Some(row) = rows.remove(&id) else {
                tracing::warn!(sandbox = %id, "a sandbox that nobody knows is destroyed");
                self.inner.warden.destroy(id).await?;
                continue;
            };
            let hold = self.inner.quota.hold(row.user, quota::of_sandbox(&spec.limits));
            let row = SandboxRow { spec, lease_until, enforcement, ..row };
            let (user, id) = (row.user, row.id);
            match self.enter(row, socket, true, hold) {
                Ok(place) => places.push(place),
                Err(fault) => {
                    tracing::error!(%fault, sandbox = %id, "a sandbox cannot be taken over and is destroyed");
                    self.inner.rows.ended(user, id, EndedWhy::Broken);
                    self.inner.warden.destroy(id).await?;
                }
            }
        }
        for row in rows.into_values() {
            self.inner.rows.ended(row.user, row.id, EndedWhy::GoneMeanwhile);
        }
        Ok(places)
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
    }
}
