//! Snapshots, and what a sandbox may begin with: a snapshot of its user's, or the files of another sandbox as they are
//! now.
//!
//! The warden keeps them and knows no users; whose a snapshot is, is known here alone, so every way to one goes by its
//! user. What the warden has and nobody here knows is removed when the server takes over.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rf_policy::{Action, Permit};
use rf_types::{Code, Fault, SandboxId, SandboxSpec, SnapshotId, UserId};
use rf_wire::warden::Snapshot;

use super::{Sandboxes, now_ms, paused};
use crate::{
    life::Phase,
    quota::{Hold, Quota, of_snapshot},
    rows::{SandboxClaim, SnapshotClaim, SnapshotRow},
};

/// News of snapshots that are not entered yet, kept until they are. Chosen: each waits some milliseconds.
const EARLY_MAX: usize = 1_024;

/// Every user's snapshots.
pub(super) struct Snapshots(Mutex<State>);

#[derive(Default)]
struct State {
    users: HashMap<UserId, BTreeMap<SnapshotId, Kept>>,
    /// Whose each is.
    owners: HashMap<SnapshotId, UserId>,
    early: HashMap<SnapshotId, Snapshot>,
}

struct Kept {
    row: SnapshotRow,
    hold: Hold,
}

impl Snapshots {
    pub(super) fn new(rows: Vec<SnapshotRow>, quota: &Quota) -> Self {
        let mut state = State::default();
        for row in rows {
            let hold = quota.hold(row.user, of_snapshot(row.bytes));
            state.owners.insert(row.id, row.user);
            state.users.entry(row.user).or_default().insert(row.id, Kept { row, hold });
        }
        Self(Mutex::new(state))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, user: UserId, id: SnapshotId) -> Option<Kept> {
        let own = self.users.get_mut(&user)?;
        let kept = own.remove(&id)?;
        if own.is_empty() {
            self.users.remove(&user);
        }
        self.owners.remove(&id);
        Some(kept)
    }
}

/// What a sandbox may begin with. Made for one user, and good for that user's sandboxes alone.
#[derive(Clone, Debug)]
pub struct Origin {
    user: UserId,
    snapshot: SnapshotId,
    spec: SandboxSpec,
    listed: bool,
    _temporary: Option<Arc<Temporary>>,
}

/// A snapshot that is removed when the last sandbox was made from it.
struct Temporary {
    sandboxes: Sandboxes,
    snapshot: SnapshotId,
}

impl std::fmt::Debug for Temporary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Temporary({})", self.snapshot)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.sandboxes.forget_saved(self.snapshot);
    }
}

impl Origin {
    pub(super) fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    /// Its id, if its user finds it among their snapshots.
    pub(super) fn listed(&self) -> Option<SnapshotId> {
        self.listed.then_some(self.snapshot)
    }

    /// The sandbox whose files these are, as it was then. What is made from it must have its template and its kind of
    /// disk; its limits are what is meant where nothing else is asked.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// Whether a sandbox of this claim can begin with it.
    pub(super) fn fits(&self, claim: &SandboxClaim) -> Result<(), Fault> {
        if claim.permit.user() != self.user {
            return Err(Fault::not_found("snapshot"));
        }
        let spec = &claim.spec;
        if spec.template != self.spec.template || spec.disk != self.spec.disk {
            return Err(Fault::invalid(format!(
                "the snapshot is of the template `{}` and a disk of another kind can neither be given to it",
                self.spec.template
            )));
        }
        Ok(())
    }
}

impl Sandboxes {
    /// Saves the files of a sandbox, running or frozen, as they are at one instant; the sandbox goes on as it was. A
    /// name that another snapshot of the user's has goes over to this one. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// `not_found`; `conflict` when the sandbox is neither running nor frozen; `limit_reached` when it stands on too
    /// many layers; `disk_full`; `warden_unavailable`; `store_unavailable`.
    pub async fn snapshot(
        &self,
        claim: SnapshotClaim,
        id: SandboxId,
        name: Option<String>,
    ) -> Result<SnapshotRow, Fault> {
        claim.permit.require(Action::SnapshotCreate)?;
        if let Some(name) = &name {
            name_fits(name)?;
        }
        let this = self.clone();
        Self::for_sure(async move { this.snapshot_now(claim, id, name).await }).await
    }

    async fn snapshot_now(
        &self,
        claim: SnapshotClaim,
        sandbox: SandboxId,
        name: Option<String>,
    ) -> Result<SnapshotRow, Fault> {
        let SnapshotClaim { permit, hold } = claim;
        let user = permit.user();
        let spec = self.live_spec(user, sandbox)?;
        let made = self.inner.warden.snapshot(sandbox, SnapshotId::random()).await?;
        let (id, bytes, files, durable) = (made.id, made.bytes, made.files, made.durable);
        let row = SnapshotRow { id, user, name, sandbox, spec, bytes, files, durable, created_at: now_ms() };
        if let Err(fault) = self.inner.rows.snapshot_made(&row) {
            self.forget_saved(id);
            return Err(fault);
        }
        let mut state = self.inner.snapshots.lock();
        let own = state.users.entry(user).or_default();
        if let Some(name) = &row.name {
            for other in own.values_mut().filter(|other| other.row.name.as_ref() == Some(name)) {
                other.row.name = None;
            }
        }
        let mut kept = Kept { row: row.clone(), hold };
        kept.hold.change(of_snapshot(bytes));
        own.insert(id, kept);
        state.owners.insert(id, user);
        let early = state.early.remove(&id);
        drop(state);
        if let Some(news) = early {
            self.snapshot_changed(news);
        }
        self.snapshot_row(user, id)
    }

    /// The spec of a sandbox that can be saved now.
    fn live_spec(&self, user: UserId, id: SandboxId) -> Result<SandboxSpec, Fault> {
        match self.live().get(&(user, id)) {
            Some(entry) if matches!(entry.phase(), Phase::Running | Phase::Paused) => Ok(entry.row.spec.clone()),
            Some(entry) if entry.phase() == Phase::Stored => Err(Fault::new(
                Code::Conflict,
                "the sandbox is paused with its files alone",
                "resume it first, or fork it",
            )),
            Some(entry) if entry.phase().is_there() => Err(Fault { code: Code::Conflict, ..paused(entry.phase()) }),
            Some(_) | None => Err(Fault::not_found("sandbox")),
        }
    }

    /// Bytes that were written to the files of a user's sandbox which can be saved now.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `conflict`; `warden_unavailable`.
    pub async fn bytes_written(&self, user: UserId, id: SandboxId) -> Result<u64, Fault> {
        self.live_spec(user, id)?;
        Ok(self.inner.warden.usage(id).await?.disk_bytes)
    }

    /// What the warden says of a snapshot now.
    pub(super) fn snapshot_changed(&self, news: Snapshot) {
        let row = {
            let mut state = self.inner.snapshots.lock();
            let state = &mut *state;
            let Some(user) = state.owners.get(&news.id) else {
                // Of a sandbox's own files, or not entered yet.
                if state.early.len() < EARLY_MAX {
                    state.early.insert(news.id, news);
                }
                return;
            };
            let Some(kept) = state.users.get_mut(user).and_then(|own| own.get_mut(&news.id)) else { return };
            if (kept.row.bytes, kept.row.files, kept.row.durable) == (news.bytes, news.files, news.durable) {
                return;
            }
            kept.row.bytes = news.bytes;
            kept.row.files = news.files;
            kept.row.durable = news.durable;
            kept.hold.change(of_snapshot(news.bytes));
            kept.row.clone()
        };
        self.inner.rows.snapshot_changed(&row);
    }

    /// A user's snapshots, oldest first.
    #[must_use]
    pub fn snapshots(&self, user: UserId) -> Vec<SnapshotRow> {
        let state = self.inner.snapshots.lock();
        let mut rows: Vec<_> =
            state.users.get(&user).into_iter().flat_map(BTreeMap::values).map(|kept| kept.row.clone()).collect();
        rows.sort_by_key(|row| (row.created_at, row.id));
        rows
    }

    /// A user's snapshot as listed.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn snapshot_row(&self, user: UserId, id: SnapshotId) -> Result<SnapshotRow, Fault> {
        let state = self.inner.snapshots.lock();
        let found = state.users.get(&user).and_then(|own| own.get(&id)).map(|kept| kept.row.clone());
        found.ok_or_else(|| Fault::not_found("snapshot"))
    }

    /// A user's snapshot by its name.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn snapshot_named(&self, user: UserId, name: &str) -> Result<SnapshotRow, Fault> {
        let state = self.inner.snapshots.lock();
        let mut own = state.users.get(&user).into_iter().flat_map(BTreeMap::values);
        let found = own.find(|kept| kept.row.name.as_deref() == Some(name)).map(|kept| kept.row.clone());
        found.ok_or_else(|| Fault::not_found("snapshot"))
    }

    /// Removes a snapshot. Sandboxes that were made from it go on.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `store_unavailable`: then it stays.
    pub fn remove_snapshot(&self, permit: &Permit, id: SnapshotId) -> Result<(), Fault> {
        permit.require(Action::SnapshotDelete)?;
        let user = permit.user();
        self.snapshot_row(user, id)?;
        self.inner.rows.snapshot_removed(user, id)?;
        if self.inner.snapshots.lock().remove(user, id).is_none() {
            // Somebody else was faster.
            return Err(Fault::not_found("snapshot"));
        }
        self.forget_saved(id);
        Ok(())
    }

    /// Removes every snapshot of a user who is being removed.
    ///
    /// # Errors
    /// `store_unavailable`: some are there still.
    pub fn remove_snapshots_of(&self, user: UserId) -> Result<(), Fault> {
        for row in self.snapshots(user) {
            self.inner.rows.snapshot_removed(user, row.id)?;
            self.inner.snapshots.lock().remove(user, row.id);
            self.forget_saved(row.id);
        }
        Ok(())
    }

    /// What a sandbox may begin with: a user's snapshot.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn origin(&self, user: UserId, id: SnapshotId) -> Result<Origin, Fault> {
        let row = self.snapshot_row(user, id)?;
        Ok(Origin { user, snapshot: id, spec: row.spec, listed: true, _temporary: None })
    }

    /// What sandboxes may begin with: the files of another one, running or paused, as they are now. They are kept until
    /// the last sandbox was made from them.
    ///
    /// # Errors
    /// As [`Sandboxes::snapshot`].
    pub async fn fork_origin(&self, permit: &Permit, id: SandboxId) -> Result<Origin, Fault> {
        permit.require(Action::SandboxFork)?;
        let user = permit.user();
        let row = self.row(user, id)?;
        if let Some(saved) = row.saved {
            return Ok(Origin { user, snapshot: saved, spec: row.spec, listed: false, _temporary: None });
        }
        let spec = self.live_spec(user, id)?;
        let this = self.clone();
        let made = async move {
            let made = this.inner.warden.snapshot(id, SnapshotId::random()).await?;
            Ok(Arc::new(Temporary { snapshot: made.id, sandboxes: this }))
        };
        let temporary = Self::for_sure(made).await?;
        Ok(Origin { user, snapshot: temporary.snapshot, spec, listed: false, _temporary: Some(temporary) })
    }

    /// Has the warden remove a snapshot that nobody knows any more; should that fail, it is removed when the server
    /// takes over next.
    pub(super) fn forget_saved(&self, snapshot: SnapshotId) {
        self.inner.snapshots.lock().early.remove(&snapshot);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let warden = self.inner.warden.clone();
        runtime.spawn(async move {
            match warden.remove_snapshot(snapshot).await {
                Ok(()) => {}
                Err(fault) if fault.code == Code::NotFound => {}
                Err(fault) => tracing::warn!(%fault, %snapshot, "a snapshot is left to be removed later"),
            }
        });
    }

    /// The warden has a snapshot no more.
    pub(super) fn snapshot_lost(&self, id: SnapshotId, why: &str) {
        let user = self.inner.snapshots.lock().owners.get(&id).copied();
        tracing::error!(snapshot = %id, why, "a snapshot could not be kept and is lost");
        // One of a sandbox's own files is missed when the sandbox is to come back.
        let Some(user) = user else { return };
        // Where this fails the row is removed when the server takes over next.
        if self.inner.rows.snapshot_removed(user, id).is_ok() {
            self.inner.snapshots.lock().remove(user, id);
        }
    }

    /// Compares the warden's snapshots with what is known: what nobody knows is removed, and what the warden has no more
    /// is forgotten. One that the warden cannot read is neither: its row stays until its user removes it. Gives what the
    /// warden has.
    pub(super) async fn compare_snapshots(&self) -> Result<HashSet<SnapshotId>, Fault> {
        let (there, set_aside) = self.inner.warden.snapshots().await?;
        let own_files: HashSet<SnapshotId> = self.live().values().filter_map(|entry| entry.row.saved).collect();
        let ids: HashSet<SnapshotId> =
            there.iter().map(|snapshot| snapshot.id).chain(set_aside.iter().copied()).collect();
        for id in set_aside {
            tracing::error!(snapshot = %id, "the warden cannot read what this snapshot is, and has set it aside");
        }
        for snapshot in there {
            let is_listed = self.inner.snapshots.lock().owners.contains_key(&snapshot.id);
            if is_listed {
                self.snapshot_changed(snapshot);
            } else if !own_files.contains(&snapshot.id) {
                tracing::warn!(snapshot = %snapshot.id, "a snapshot that nobody knows is removed");
                self.forget_saved(snapshot.id);
            }
        }
        let missing: Vec<(SnapshotId, UserId)> = (self.inner.snapshots.lock().owners.iter())
            .filter(|(id, _)| !ids.contains(*id))
            .map(|(id, user)| (*id, *user))
            .collect();
        for (id, user) in missing {
            tracing::error!(snapshot = %id, %user, "the warden has a snapshot no more");
            self.inner.rows.snapshot_removed(user, id)?;
            self.inner.snapshots.lock().remove(user, id);
        }
        self.inner.snapshots.lock().early.clear();
        Ok(ids)
    }
}

/// What a snapshot may be called.
fn name_fits(name: &str) -> Result<(), Fault> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b);
    if (1..=128).contains(&name.len()) && name.bytes().all(fits) {
        Ok(())
    } else {
        Err(Fault::invalid("a snapshot's name is 1 to 128 of letters, digits, `-`, `_`, `.`, `:` and `/`"))
    }
}
