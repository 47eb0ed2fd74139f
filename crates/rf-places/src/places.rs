//! Every place of every user behind one door: joined machines, sandboxes and their execs, and the choice among them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use rf_policy::{Permit, UserUsage};
use rf_types::{Code, Fault, Limits, MachineId, PlaceRef, Preference, SandboxId, SandboxSpec, UserId};

use crate::{
    execs::{ExecClaim, Execs, ExecsConfig},
    place::Place,
    quota::{Quota, less, of_exec, of_resumed, of_sandbox, of_snapshot, of_stored},
    route::{MachineState, Route, SandboxState, route},
    rows::{LimitsClaim, Making, ResumeClaim, Rows, SandboxClaim, SandboxRow, SnapshotClaim, SnapshotRow},
    sandbox::SandboxPlace,
    sandboxes::Sandboxes,
    warden::WardenClient,
};

/// How often, and how long apart, it is looked whether a machine's execs are still followed. Chosen.
const ADOPT_TRIES: u32 = 20;
const ADOPT_PAUSE: Duration = Duration::from_millis(100);
/// How often ended execs that are too old are let go. Chosen.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Where things are, and how much is kept.
#[derive(Clone, Debug)]
pub struct PlacesConfig {
    /// The warden's socket.
    pub warden_socket: PathBuf,
    /// What is kept of execs.
    pub execs: ExecsConfig,
}

/// A call's own choice of a place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// Like the user's preference, for this call.
    Prefer(Preference),
    /// Exactly this one.
    Place(PlaceRef),
}

/// Whether the user's first call may make their sandbox; the server implements it on its gate and ledger.
pub trait FirstUse: Send + Sync {
    /// Judges the making of the user's default sandbox, and claims it ([`Places::claim_sandbox`]).
    ///
    /// # Errors
    /// `forbidden`, `limit_reached`, `ledger_unavailable`.
    fn claim(&self) -> BoxFuture<'_, Result<SandboxClaim, Fault>>;
}

/// A joined machine as it is connected now.
#[derive(Clone)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// The place.
    pub place: Arc<dyn Place>,
    /// What it announced of itself.
    pub facts: Arc<serde_json::Value>,
}

/// Where a call goes.
pub struct Resolved {
    /// The place.
    pub place: Arc<dyn Place>,
    /// The sandbox that was made for this call, if one was.
    pub made: Option<Box<SandboxRow>>,
}

/// All places; cheap to clone.
#[derive(Clone)]
pub struct Places {
    inner: Arc<Inner>,
}

struct Inner {
    warden: WardenClient,
    sandboxes: Sandboxes,
    execs: Execs,
    quota: Quota,
    machines: Mutex<HashMap<UserId, Vec<Machine>>>,
    /// One for each user whose default sandbox is being made.
    first_uses: Mutex<HashMap<UserId, Arc<tokio::sync::Mutex<()>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// Opens the spool and begins to connect to the warden; as soon as it is there, what lived before is taken over:
    /// `known` are the stored rows of sandboxes that have not ended, `snapshots` those of all snapshots. Must be called in
    /// a tokio runtime.
    ///
    /// # Errors
    /// When the spool cannot be made or read.
    pub fn start(
        config: PlacesConfig,
        rows: Arc<dyn Rows>,
        known: Vec<SandboxRow>,
        snapshots: Vec<SnapshotRow>,
    ) -> std::io::Result<Self> {
        let quota = Quota::default();
        let execs = Execs::open(config.execs, quota.clone())?;
        let (warden, news) = WardenClient::connect(&config.warden_socket);
        let (sandboxes, lost) = Sandboxes::new(warden.clone(), rows, quota.clone(), execs.clone(), snapshots);
        tokio::spawn(sandboxes.clone().keep(news, lost, known));
        tokio::spawn(execs.clone().note_the_long_ones());
        let sweeping = execs.clone();
        tokio::spawn(async move {
            let mut period = tokio::time::interval(SWEEP_PERIOD);
            loop {
                period.tick().await;
                sweeping.sweep();
            }
        });
        let inner = Inner { warden, sandboxes, execs, quota, machines: Mutex::default(), first_uses: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the warden is there and what lived before was taken over.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.inner.sandboxes.is_adopted()
    }

    /// Waits until the warden is there and what lived before was taken over.
    pub async fn ready(&self) {
        self.inner.sandboxes.adopted().await;
    }

    /// The warden, for templates and its status.
    #[must_use]
    pub fn warden(&self) -> &WardenClient {
        &self.inner.warden
    }

    /// The sandboxes.
    #[must_use]
    pub fn sandboxes(&self) -> &Sandboxes {
        &self.inner.sandboxes
    }

    /// The execs.
    #[must_use]
    pub fn execs(&self) -> &Execs {
        &self.inner.execs
    }

    /// What the user has now, claims under way included.
    #[must_use]
    pub fn usage(&self, user: UserId) -> UserUsage {
        self.inner.quota.usage(user)
    }

    /// Claims one sandbox of `spec`: `judge` is asked with what the user has, and nobody else of the user is judged
    /// before the claim is counted.
    ///
    /// # Errors
    /// What `judge` says.
    pub fn claim_sandbox(
        &self,
        user: UserId,
        spec: SandboxSpec,
        judge: impl FnOnce(&UserUsage) -> Result<Permit, Fault>,
    ) -> Result<SandboxClaim, Fault> {
        let (permit, hold) = self.inner.quota.claim(user, of_sandbox(&spec.limits), judge)?;
        same_user(&permit, user)?;
        Ok(SandboxClaim { permit: Arc::new(permit), spec, hold })
    }

    /// Claims one exec, as [`Places::claim_sandbox`].
    ///
    /// # Errors
    /// What `judge` says.
    pub fn claim_exec(
        &self,
        user: UserId,
        judge: impl FnOnce(&UserUsage) -> Result<Permit, Fault>,
    ) -> Result<ExecClaim, Fault> {
        let (permit, hold) = self.inner.quota.claim(user, of_exec(), judge)?;
        same_user(&permit, user)?;
        Ok(ExecClaim { permit: Arc::new(permit), hold })
    }

    /// Claims the resuming of one sandbox: `judge` is asked with its row and with what the user has beside it. One that
    /// is frozen keeps its room while it is paused; of one whose files alone are kept, CPU and memory are claimed anew.
    ///
    /// # Errors
    /// What `judge` says; `not_found` when there is no such sandbox of the user's.
    pub fn claim_resume(
        &self,
        user: UserId,
        id: SandboxId,
        judge: impl FnOnce(&SandboxRow, &UserUsage) -> Result<Permit, Fault>,
    ) -> Result<ResumeClaim, Fault> {
        let row = self.inner.sandboxes.row(user, id)?;
        let (has, wants) = match row.saved {
            Some(_) => (of_stored(&row.spec.limits), of_resumed(&row.spec.limits)),
            None => (of_sandbox(&row.spec.limits), UserUsage::default()),
        };
        let beside = |usage: &UserUsage| judge(&row, &less(usage, &has));
        let (permit, hold) = self.inner.quota.claim(user, wants, beside)?;
        same_user(&permit, user)?;
        Ok(ResumeClaim { permit: Arc::new(permit), more: row.saved.map(|_| hold) })
    }

    /// Claims other limits for one sandbox: `judge` is asked with its row and with what the user has beside it.
    ///
    /// # Errors
    /// What `judge` says; `not_found` when there is no such sandbox of the user's.
    pub fn claim_limits(
        &self,
        user: UserId,
        id: SandboxId,
        limits: impl FnOnce(&SandboxRow) -> Limits,
        judge: impl FnOnce(&SandboxRow, &Limits, &UserUsage) -> Result<Permit, Fault>,
    ) -> Result<LimitsClaim, Fault> {
        let row = self.inner.sandboxes.row(user, id)?;
        let limits = limits(&row);
        let has = of_sandbox(&row.spec.limits);
        let beside = |usage: &UserUsage| judge(&row, &limits, &less(usage, &has));
        // Where they are lower nothing more is taken, and what is given back is so when it is done.
        let (permit, more) = self.inner.quota.claim(user, less(&of_sandbox(&limits), &has), beside)?;
        same_user(&permit, user)?;
        Ok(LimitsClaim { permit: Arc::new(permit), limits, more })
    }

    /// Claims one snapshot that is `bytes` long as far as is known before, as [`Places::claim_sandbox`].
    ///
    /// # Errors
    /// What `judge` says.
    pub fn claim_snapshot(
        &self,
        user: UserId,
        bytes: u64,
        judge: impl FnOnce(&UserUsage) -> Result<Permit, Fault>,
    ) -> Result<SnapshotClaim, Fault> {
        let (permit, hold) = self.inner.quota.claim(user, of_snapshot(bytes), judge)?;
        same_user(&permit, user)?;
        Ok(SnapshotClaim { permit: Arc::new(permit), hold })
    }

    /// A user's machine connected. A machine of the same id that was there before is replaced. What was started on it
    /// by an earlier server, or in a session that was given up, is taken over. Must be called in a tokio runtime.
    pub fn add_machine(&self, user: UserId, place: Arc<dyn Place>, facts: serde_json::Value) {
        let PlaceRef::Machine(id) = place.place() else { return };
        let mut machines = lock(&self.inner.machines);
        let own = machines.entry(user).or_default();
        own.retain(|machine| machine.id != id);
        own.push(Machine { id, place: Arc::clone(&place), facts: Arc::new(facts) });
        drop(machines);
        tokio::spawn(adopt_machine(self.inner.execs.clone(), user, place));
    }

    /// A user's machine is gone; with `place`, only if it is still that connection.
    pub fn remove_machine(&self, user: UserId, id: MachineId, place: Option<&Arc<dyn Place>>) {
        let mut machines = lock(&self.inner.machines);
        let Some(own) = machines.get_mut(&user) else { return };
        own.retain(|machine| machine.id != id || place.is_some_and(|place| !Arc::ptr_eq(place, &machine.place)));
        if own.is_empty() {
            machines.remove(&user);
        }
    }

    /// A user's machines that are connected, the latest last.
    #[must_use]
    pub fn machines(&self, user: UserId) -> Vec<Machine> {
        lock(&self.inner.machines).get(&user).cloned().unwrap_or_default()
    }

    /// Exactly this place of the user's, for a call that came for it: see [`Sandboxes::awake`].
    ///
    /// # Errors
    /// As [`Places::place`] and [`Sandboxes::awake`].
    pub async fn awake(&self, user: UserId, place: PlaceRef) -> Result<Arc<dyn Place>, Fault> {
        match place {
            PlaceRef::Sandbox(id) => self.inner.sandboxes.awake(user, id).await.map(|place| place as Arc<dyn Place>),
            PlaceRef::Machine(_) => self.place(user, place),
        }
    }

    /// Exactly this place of the user's, if it serves.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `paused`; `no_place` is not said of a place that was named.
    pub fn place(&self, user: UserId, place: PlaceRef) -> Result<Arc<dyn Place>, Fault> {
        match place {
            PlaceRef::Sandbox(id) => self.inner.sandboxes.get(user, id).map(|sandbox| sandbox as Arc<dyn Place>),
            PlaceRef::Machine(id) => (self.machines(user).into_iter())
                .find(|machine| machine.id == id)
                .map(|machine| machine.place)
                .ok_or_else(|| Fault::not_found("connected machine")),
        }
    }

    /// Where a call of the permit's user goes. `machine_joined` says whether the store knows a machine of the user's;
    /// `first_use` is asked when the user's own sandbox is to be made, which happens once, however many calls come
    /// first at the same moment.
    ///
    /// # Errors
    /// `no_place` with a hint; `not_found` for a named place; what `first_use` and the warden say.
    pub async fn resolve(
        &self,
        permit: &Permit,
        preference: Preference,
        choice: Option<Choice>,
        machine_joined: bool,
        first_use: &dyn FirstUse,
    ) -> Result<Resolved, Fault> {
        let user = permit.user();
        let choice = match choice {
            Some(Choice::Place(place)) => {
                return self.awake(user, place).await.map(|place| Resolved { place, made: None });
            }
            Some(Choice::Prefer(preference)) => Some(preference),
            None => None,
        };
        let machine = self.machines(user).pop();
        let machine_state = match (&machine, machine_joined) {
            (Some(_), _) => MachineState::Here,
            (None, true) => MachineState::Away,
            (None, false) => MachineState::NotJoined,
        };
        let sandbox = self.inner.sandboxes.default_of(user);
        let sandbox_state = match (&sandbox, self.is_ready()) {
            (Some(_), _) => SandboxState::Alive,
            (None, true) => SandboxState::NotMade,
            (None, false) => SandboxState::Unavailable,
        };
        match (route(preference, choice, machine_state, sandbox_state)?, machine, sandbox) {
            (Route::Machine, Some(machine), _) => Ok(Resolved { place: machine.place, made: None }),
            (Route::Sandbox, _, Some(id)) => {
                let place = self.inner.sandboxes.awake(user, id).await?;
                Ok(Resolved { place, made: None })
            }
            (Route::NewSandbox, ..) => self.first(user, first_use).await,
            (Route::Machine, None, _) | (Route::Sandbox, _, None) => {
                Err(Fault::new(Code::Internal, "a route leads to a place that is not there", ""))
            }
        }
    }

    /// Makes the user's default sandbox, or takes the one that somebody else just made.
    async fn first(&self, user: UserId, first_use: &dyn FirstUse) -> Result<Resolved, Fault> {
        let turn = Arc::clone(lock(&self.inner.first_uses).entry(user).or_default());
        let result = {
            let _turn = turn.lock().await;
            match self.inner.sandboxes.default_of(user) {
                Some(id) => {
                    let place = self.inner.sandboxes.awake(user, id).await;
                    place.map(|place| Resolved { place: place as Arc<dyn Place>, made: None })
                }
                None => self.make_default(user, first_use).await,
            }
        };
        let mut first_uses = lock(&self.inner.first_uses);
        // Ours and the map's: nobody else waits for a turn.
        if Arc::strong_count(&turn) <= 2 {
            first_uses.remove(&user);
        }
        drop(first_uses);
        result
    }

    async fn make_default(&self, user: UserId, first_use: &dyn FirstUse) -> Result<Resolved, Fault> {
        let claim = first_use.claim().await?;
        same_user(&claim.permit, user)?;
        let place: Arc<SandboxPlace> =
            self.inner.sandboxes.create(claim, Making { default: true, ..Making::default() }).await?;
        let PlaceRef::Sandbox(id) = place.place() else {
            return Err(Fault::new(Code::Internal, "a sandbox is no sandbox", ""));
        };
        let made = self.inner.sandboxes.row(user, id).ok().map(Box::new);
        Ok(Resolved { place, made })
    }
}

fn same_user(permit: &Permit, user: UserId) -> Result<(), Fault> {
    if permit.user() == user {
        Ok(())
    } else {
        Err(Fault::new(Code::Internal, "a permit of one user was used for another", ""))
    }
}

/// Takes over what runs on a machine, unless its session goes on, and with it whoever follows its execs.
async fn adopt_machine(execs: Execs, user: UserId, place: Arc<dyn Place>) {
    // Followers of a session that was just given up see its end at their next turn.
    for _ in 0..ADOPT_TRIES {
        if !execs.follows(user, place.place()) {
            if let Err(fault) = execs.adopt(user, &place).await {
                tracing::warn!(%fault, place = %place.place(), "the execs of a machine cannot be taken over");
            }
            return;
        }
        tokio::time::sleep(ADOPT_PAUSE).await;
    }
}
