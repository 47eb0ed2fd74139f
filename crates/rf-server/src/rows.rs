//! The registry's rows on our store, and a user's first use of a sandbox on our gate and ledger.

use std::sync::{Arc, Mutex, PoisonError};

use futures::{FutureExt as _, future::BoxFuture};
use rf_ledger::{Entry, Event, Ledger};
use rf_places::{
    ChangedWhy, Choice, EndedWhy, FirstUse, LimitsClaim, Repeat, Resume, ResumeClaim, Rows, SandboxClaim, SandboxRow,
    SnapshotClaim, SnapshotRow, place::Place,
};
use rf_policy::{Action, Asked, Permit};
use rf_store::{NewRepeat, NewSandbox, SandboxChange, Store, StoreError, SystemScope};
use rf_types::{
    Enforcement, ExecSpec, Fault, Limits, PauseKind, PlaceRef, Preference, SandboxEnv, SandboxId, SandboxSpec,
    SandboxState, SnapshotId, TemplateName, UserId,
};

use crate::{
    api::{self, SandboxAsk},
    app::{App, Caller, Where, now},
    operation::{Ask, Operation},
};

/// The name under which a user's default sandbox is stored; another of that name cannot be made while it lives.
pub const DEFAULT_NAME: &str = "default";

/// Rows of sandboxes on the store.
#[derive(Debug)]
pub struct StoredRows {
    store: Store,
    system: Arc<SystemScope>,
    ledger: Arc<Ledger>,
}

impl StoredRows {
    /// On this store.
    #[must_use]
    pub fn new(store: Store, system: Arc<SystemScope>, ledger: Arc<Ledger>) -> Self {
        Self { store, system, ledger }
    }

    /// The rows of sandboxes that have not ended, for taking over what lives.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn known(&self) -> Result<Vec<SandboxRow>, StoreError> {
        let alive = self.store.sandboxes_alive_all(&self.system)?;
        let row = |(scope, sandbox): (rf_store::UserScope, rf_store::Sandbox)| SandboxRow {
            id: sandbox.id,
            user: scope.user(),
            default: sandbox.name.as_deref() == Some(DEFAULT_NAME),
            name: sandbox.name,
            spec: sandbox.spec,
            state: sandbox.state,
            pause_kind: sandbox.pause_kind,
            paused_at: sandbox.paused,
            saved: sandbox.saved,
            from_snapshot: sandbox.from_snapshot,
            about: sandbox.about,
            created_at: sandbox.created,
            started_at: sandbox.started,
            lease_until: sandbox.lease_until,
            pooled: false,
            // Read back anew by the warden when the sandbox is taken over.
            enforcement: Enforcement { level: String::new(), mode: String::new(), layers: Vec::new() },
        };
        Ok(alive.into_iter().map(row).collect())
    }

    /// The rows of all snapshots.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn known_snapshots(&self) -> Result<Vec<SnapshotRow>, StoreError> {
        let row = |(user, snapshot): (UserId, rf_store::Snapshot)| SnapshotRow {
            id: snapshot.id,
            user,
            name: snapshot.name,
            sandbox: snapshot.sandbox,
            spec: snapshot.spec,
            bytes: snapshot.bytes,
            files: snapshot.files,
            durable: snapshot.durable,
            created_at: snapshot.created,
        };
        Ok(self.store.snapshots_all(&self.system)?.into_iter().map(row).collect())
    }

    /// Records what happened to a user's thing without anybody asking for it.
    fn note(&self, action: &'static str, user: UserId, mut entry: Entry) {
        match self.store.scope_of(&self.system, user) {
            Ok(scope) => entry = entry.user(user, scope.username().clone()),
            Err(_) => entry.user = Some(user),
        }
        if let Err(fault) = self.ledger.append(&entry) {
            tracing::error!(%fault, action, "what happened by itself was not recorded");
        }
    }
}

impl Rows for StoredRows {
    fn made(&self, row: &SandboxRow, repeat: Option<&Repeat>) -> Result<(), Fault> {
        let name = if row.default { Some(DEFAULT_NAME) } else { row.name.as_deref() };
        let new = NewSandbox { id: row.id, name, spec: &row.spec, about: &row.about, from_snapshot: row.from_snapshot };
        let repeat = repeat.map(|repeat| NewRepeat { key: &repeat.key, digest: repeat.digest });
        let (created, lease_until) = (row.created_at, row.lease_until);
        let user = row.user;
        Ok(self.store.sandbox_insert_once(&self.system, user, &new, created, lease_until, repeat.as_ref())?)
    }

    fn unmade(&self, user: UserId, id: SandboxId) {
        if let Err(error) = self.store.repeat_forget(&self.system, user, id) {
            tracing::error!(%error, sandbox = %id, "a request that failed is taken for one that made this");
        }
        self.ended(user, id, EndedWhy::Destroyed);
    }

    fn changed(&self, row: &SandboxRow, why: ChangedWhy) -> Result<(), Fault> {
        let change = SandboxChange {
            spec: &row.spec,
            lease_until: row.lease_until,
            state: row.state,
            pause_kind: row.pause_kind,
            paused: row.paused_at,
            saved: row.saved,
            started: row.started_at,
            about: &row.about,
        };
        self.store.sandbox_change(&self.system, row.user, row.id, &change)?;
        let why = match why {
            // Recorded by the operation that asked.
            ChangedWhy::Asked => return Ok(()),
            ChangedWhy::Lease => "its lease ended",
            ChangedWhy::Idle => "it was idle",
            ChangedWhy::Call => "a call came for it",
            ChangedWhy::Found => "found so",
        };
        let action = match row.state {
            SandboxState::Running => "sandbox_resume",
            SandboxState::Paused => "sandbox_pause",
        };
        let entry = Entry::new(now(), action, Event::Note)
            .place(PlaceRef::Sandbox(row.id))
            .subject(row.id)
            .detail("why", why)
            .detail("keeps", row.pause_kind.map(PauseKind::name));
        self.note(action, row.user, entry);
        Ok(())
    }

    fn ended(&self, user: UserId, id: SandboxId, why: EndedWhy) {
        let asked = why == EndedWhy::Destroyed;
        let why = match why {
            EndedWhy::Destroyed => "destroyed",
            EndedWhy::Lease => "its lease ended",
            EndedWhy::InitDied => "its process 1 died",
            EndedWhy::Broken => "its process 1 broke the rules",
            EndedWhy::WardenRestarted => "the warden restarted",
            EndedWhy::GoneMeanwhile => "gone when the server came back",
            EndedWhy::FilesLost => "its saved files are gone",
        };
        match self.store.sandbox_end_of(&self.system, user, id, why, now()) {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => tracing::error!(%error, sandbox = %id, "the end of a sandbox was not stored"),
        }
        if asked {
            // Recorded by the operation that asked.
            return;
        }
        let entry =
            Entry::new(now(), "sandbox_end", Event::Note).place(PlaceRef::Sandbox(id)).subject(id).detail("why", why);
        self.note("sandbox_end", user, entry);
    }

    fn snapshot_made(&self, row: &SnapshotRow) -> Result<(), Fault> {
        let new = rf_store::Snapshot {
            id: row.id,
            name: row.name.clone(),
            sandbox: row.sandbox,
            spec: row.spec.clone(),
            bytes: row.bytes,
            files: row.files,
            durable: row.durable,
            created: row.created_at,
        };
        Ok(self.store.snapshot_insert(&self.system, row.user, &new)?)
    }

    fn snapshot_changed(&self, row: &SnapshotRow) {
        let SnapshotRow { id, user, bytes, files, durable, .. } = *row;
        match self.store.snapshot_change(&self.system, user, id, bytes, files, durable) {
            // Removed meanwhile.
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            // The warden says it again when the server takes over next.
            Err(error) => tracing::error!(%error, snapshot = %id, "the row of a snapshot was not written"),
        }
    }

    fn snapshot_removed(&self, user: UserId, id: SnapshotId) -> Result<(), Fault> {
        match self.store.snapshot_remove(&self.system, user, id) {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Judges and records the making of a default sandbox within another call.
struct First<'a> {
    app: &'a App,
    caller: &'a Caller,
    operation: Mutex<Option<Operation>>,
}

impl FirstUse for First<'_> {
    fn claim(&self) -> BoxFuture<'_, Result<SandboxClaim, Fault>> {
        async move {
            let spec = SandboxAsk::default().spec(self.caller.who.limits());
            let ask = Ask::of(Action::SandboxCreate).detail("why", "first use").detail("lease_ms", spec.lease_ms);
            let judged = self.app.claim_sandbox(self.caller, &spec);
            match self.app.begin_judged(self.caller, ask, judged).await {
                Ok((operation, claim)) => {
                    *self.operation.lock().unwrap_or_else(PoisonError::into_inner) = Some(operation);
                    Ok(claim)
                }
                Err(refusal) => Err(refusal.fault),
            }
        }
        .boxed()
    }
}

impl App {
    /// Judges an action that has no quota.
    ///
    /// # Errors
    /// What the gate says.
    pub fn permit(&self, caller: &Caller, action: Action) -> Result<Permit, Fault> {
        self.gate().permit(&caller.who, action, caller.request, Asked::Nothing, self.now())
    }

    /// Judges one more sandbox and counts it.
    ///
    /// # Errors
    /// What the gate says.
    pub fn claim_sandbox(&self, caller: &Caller, spec: &SandboxSpec) -> Result<(Arc<Permit>, SandboxClaim), Fault> {
        let user = caller.who.principal().user;
        let claim = self.places().claim_sandbox(user, spec.clone(), |usage| {
            let (action, asked) = (Action::SandboxCreate, Asked::Sandbox(spec));
            self.gate().permit_with(&caller.who, action, caller.request, asked, usage, self.now())
        })?;
        Ok((claim.permit(), claim))
    }

    /// Judges the resuming of a sandbox, and counts what it takes anew.
    ///
    /// # Errors
    /// What the gate says; `not_found`.
    pub fn claim_resume(
        &self,
        caller: &Caller,
        id: SandboxId,
        how: &Resume,
    ) -> Result<(Arc<Permit>, ResumeClaim), Fault> {
        let claim = self.places().claim_resume(caller.who.principal().user, id, |row, usage| {
            let lease_ms = how.lease_ms.unwrap_or(row.spec.lease_ms);
            // As if it were made anew beside the user's others; what it was given before is not asked again.
            let spec = SandboxSpec { lease_ms: lease_ms.max(1_000), root_allowed: false, ..row.spec.clone() };
            let asked = match row.saved {
                Some(_) => Asked::Sandbox(&spec),
                None => Asked::Lease { lease_ms },
            };
            let action = Action::SandboxResume;
            self.gate().permit_with(&caller.who, action, caller.request, asked, usage, self.now())
        })?;
        Ok((claim.permit(), claim))
    }

    /// Judges one more snapshot, `bytes` long as far as is known, and counts it.
    ///
    /// # Errors
    /// What the gate says.
    pub fn claim_snapshot(&self, caller: &Caller, bytes: u64) -> Result<(Arc<Permit>, SnapshotClaim), Fault> {
        let claim = self.places().claim_snapshot(caller.who.principal().user, bytes, |usage| {
            let (action, asked) = (Action::SnapshotCreate, Asked::Snapshot { bytes });
            self.gate().permit_with(&caller.who, action, caller.request, asked, usage, self.now())
        })?;
        Ok((claim.permit(), claim))
    }

    /// Judges one more exec and counts it.
    ///
    /// # Errors
    /// What the gate says.
    pub fn claim_exec(&self, caller: &Caller, root: bool) -> Result<(Arc<Permit>, rf_places::ExecClaim), Fault> {
        let claim = self.places().claim_exec(caller.who.principal().user, |usage| {
            let (action, asked) = (Action::Exec, Asked::Exec { root });
            self.gate().permit_with(&caller.who, action, caller.request, asked, usage, self.now())
        })?;
        Ok((claim.permit(), claim))
    }

    /// Fills in what the request left out and the sandbox's template says: before the judge is asked, who has to know
    /// of `root`.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn fill_from_template(&self, caller: &Caller, id: SandboxId, spec: &mut ExecSpec) -> Result<(), Fault> {
        // Looked at without a copy: every exec comes here, and most have nothing to be filled in.
        let of_its_own = |row: &SandboxRow| {
            (!row.spec.template.is_built_in()).then(|| (row.spec.template.clone(), row.about.env.clone()))
        };
        match self.places().sandboxes().look_at(caller.who.principal().user, id, of_its_own) {
            Ok(Some((template, own))) => self.fill(caller, &template, &own, spec),
            // Where it is not theirs or not there, that is said where every place is looked for.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// As [`App::fill_from_template`], for a sandbox with this template and this environment of its own.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn fill(
        &self,
        caller: &Caller,
        template: &TemplateName,
        own: &SandboxEnv,
        spec: &mut ExecSpec,
    ) -> Result<(), Fault> {
        if template.is_built_in() {
            return Ok(());
        }
        match self.store().template_get(caller.who.scope(), template) {
            Ok(template) => {
                // The sandbox's own environment goes above its template's, and is added where the exec starts.
                let own = own.keys().filter(|name| !spec.env.contains_key(*name)).collect::<Vec<_>>();
                template.config.fill(spec);
                for name in own {
                    spec.env.remove(name);
                }
            }
            // Removed since the sandbox was made, and its settings with it.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Judges other limits of a sandbox, as if it were made anew beside the user's others, and counts what is more.
    ///
    /// # Errors
    /// What the gate says; `not_found`.
    pub fn claim_limits(
        &self,
        caller: &Caller,
        id: SandboxId,
        limits: impl FnOnce(Limits) -> Limits,
    ) -> Result<(Arc<Permit>, LimitsClaim), Fault> {
        let over = |row: &SandboxRow| limits(row.spec.limits);
        let claim = self.places().claim_limits(caller.who.principal().user, id, over, |row, limits, usage| {
            // The lease and root are not what is asked here: both were judged when they were given.
            let spec = SandboxSpec { limits: *limits, lease_ms: 1_000, root_allowed: false, ..row.spec.clone() };
            let (action, asked) = (Action::SandboxUpdate, Asked::Sandbox(&spec));
            self.gate().permit_with(&caller.who, action, caller.request, asked, usage, self.now())
        })?;
        Ok((claim.permit(), claim))
    }

    /// Where a call goes; the user's own sandbox is made, judged and recorded as an operation of its own, at first use.
    ///
    /// # Errors
    /// `no_place`, `not_found`; what the making of a sandbox is refused with.
    pub async fn resolve(
        &self,
        caller: &Caller,
        operation: &Operation,
        at: Where,
        choice: api::Choice,
    ) -> Result<Arc<dyn Place>, Fault> {
        let user = operation.permit().user();
        let choice = match (at, choice) {
            (Where::Sandbox(id), _) => return self.places().awake(user, PlaceRef::Sandbox(id)).await,
            (Where::Machine(id), _) => return self.places().place(user, PlaceRef::Machine(id)),
            (Where::Routed, api::Choice::Default) => None,
            (Where::Routed, api::Choice::Preferred(preference)) => Some(Choice::Prefer(preference)),
            (Where::Routed, api::Choice::Place(place)) => Some(Choice::Place(place)),
        };
        let preference = caller.who.preference();
        let sandbox = matches!(choice, Some(Choice::Prefer(Preference::Sandbox) | Choice::Place(_)))
            || (choice.is_none() && preference == Preference::Sandbox);
        // Only where it matters, for it is a question to the store.
        let machine_joined = !sandbox && !self.store().machine_list(caller.who.scope())?.is_empty();
        let first = First { app: self, caller, operation: Mutex::default() };
        let resolved = self.places().resolve(operation.permit(), preference, choice, machine_joined, &first).await;
        let making = first.operation.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut making) = making else { return resolved.map(|resolved| resolved.place) };
        if let Ok(resolved) = &resolved
            && let Some(row) = &resolved.made
        {
            making.set_place(PlaceRef::Sandbox(row.id));
            making.set_subject(row.id);
            making.set_enforcement(&row.enforcement);
        }
        // Not waited for apart: what comes after it in the ledger is waited for, and so is this with it.
        making.finish_later(resolved.map(|resolved| resolved.place))
    }

    /// Whether no living sandbox of the user's has this name.
    ///
    /// # Errors
    /// `conflict`.
    pub fn name_is_free(&self, caller: &Caller, name: &str) -> Result<(), Fault> {
        match self.store().sandbox_by_name(caller.who.scope(), name) {
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Fault::new(
                rf_types::Code::Conflict,
                "a sandbox of that name is alive already",
                "choose another name, or destroy that one",
            )),
        }
    }

    /// The template that a sandbox is made from must be one that is there; the warden says so too, but later.
    ///
    /// # Errors
    /// `template_unavailable`.
    pub fn check_template(&self, caller: &Caller, name: &TemplateName) -> Result<(), Fault> {
        if name.is_built_in() {
            return Ok(());
        }
        match self.store().template_get(caller.who.scope(), name) {
            Ok(_) => Ok(()),
            Err(StoreError::NotFound { .. }) => Err(Fault::new(
                rf_types::Code::TemplateUnavailable,
                format!("no such template `{name}`"),
                "see GET /v1/templates; an operator can import one",
            )),
            Err(error) => Err(error.into()),
        }
    }
}
