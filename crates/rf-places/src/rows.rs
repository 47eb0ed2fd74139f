//! What is written down of sandboxes and snapshots, and what is said to make, keep and end them.

use std::sync::Arc;

use rf_policy::Permit;
use rf_types::{
    Enforcement, Fault, Limits, PauseKind, SandboxAbout, SandboxId, SandboxSpec, SandboxState, SnapshotId, UserId,
    units::UnixMs,
};
use serde::{Deserialize, Serialize};

use crate::{quota::Hold, sandboxes::Origin};

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
    /// Since when it is paused.
    pub paused_at: Option<UnixMs>,
    /// The snapshot that holds its files while nothing else is kept of it; its own, in no list.
    pub saved: Option<SnapshotId>,
    /// The snapshot that it was made from; may be gone by now.
    pub from_snapshot: Option<SnapshotId>,
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

/// One snapshot as stored and listed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub user: UserId,
    /// What its user calls it, 1 to 128 characters; no two of one user's alike. A later snapshot of that name takes it.
    pub name: Option<String>,
    /// The sandbox it was made of; may be gone by now.
    pub sandbox: SandboxId,
    /// As that sandbox was then: a sandbox made from the snapshot has its template and its kind of disk, and where
    /// nothing else is asked its limits.
    pub spec: SandboxSpec,
    /// Bytes of the layers that no older snapshot stands on; of one that is not durable, what the file system counted.
    pub bytes: u64,
    /// Files, directories and everything else that has a name, of the same layers.
    pub files: u64,
    /// Whether it survives the end of the warden and of the machine; one that is not yet will be, shortly after.
    pub durable: bool,
    /// When it was made.
    pub created_at: UnixMs,
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
    /// It was paused with its files alone, and they are not there any more.
    FilesLost,
}

/// Why a sandbox was paused, resumed or changed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangedWhy {
    /// Somebody asked for it, which is recorded where it was asked.
    Asked,
    /// Its lease ended.
    Lease,
    /// Nothing was asked of it for as long as it was to wait.
    Idle,
    /// A call came for it while it was paused.
    Call,
    /// The server found it so when it took over.
    Found,
}

/// The durable rows of sandboxes and snapshots; the server implements it on its store. Calls take well under a
/// millisecond.
pub trait Rows: Send + Sync {
    /// A sandbox was made; it serves nobody before this is durable. The request that it was made for, if it may come
    /// again, is written with it: both are there, or neither.
    ///
    /// # Errors
    /// `store_unavailable`: the sandbox is destroyed again.
    fn made(&self, row: &SandboxRow, repeat: Option<&Repeat>) -> Result<(), Fault>;

    /// A sandbox whose row was to be written, or was, is destroyed before anybody was told of it: the request that it was
    /// made for is answered with a fault, and makes another when it comes again.
    fn unmade(&self, user: UserId, id: SandboxId);

    /// A sandbox's lease, limits, state or what is said of it changed.
    ///
    /// # Errors
    /// `store_unavailable`.
    fn changed(&self, row: &SandboxRow, why: ChangedWhy) -> Result<(), Fault>;

    /// A sandbox ended. Where this fails the row is ended when the server starts next.
    fn ended(&self, user: UserId, id: SandboxId, why: EndedWhy);

    /// A snapshot was made. Another of the user's that had its name has none from now on.
    ///
    /// # Errors
    /// `store_unavailable`: the snapshot is removed again.
    fn snapshot_made(&self, row: &SnapshotRow) -> Result<(), Fault>;

    /// A snapshot is durable now, or its bytes and files are counted.
    fn snapshot_changed(&self, row: &SnapshotRow);

    /// A snapshot is to be removed; nothing of it is removed before this is durable.
    ///
    /// # Errors
    /// `store_unavailable`.
    fn snapshot_removed(&self, user: UserId, id: SnapshotId) -> Result<(), Fault>;
}

/// Leave to make one sandbox, already counted in its user's quota; see [`crate::places::Places::claim_sandbox`].
#[must_use = "a claim that nobody uses is given back"]
#[derive(Debug)]
pub struct SandboxClaim {
    pub(crate) permit: Arc<Permit>,
    pub(crate) spec: SandboxSpec,
    pub(crate) hold: Hold,
}

impl SandboxClaim {
    /// What it was judged with, for the record of the operation that it is for.
    #[must_use]
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }
}

/// Leave to resume one sandbox; see [`crate::places::Places::claim_resume`].
#[must_use = "a claim that nobody uses is given back"]
#[derive(Debug)]
pub struct ResumeClaim {
    pub(crate) permit: Arc<Permit>,
    /// What it will have beyond what it has while it is paused.
    pub(crate) more: Option<Hold>,
}

impl ResumeClaim {
    /// What it was judged with, for the record of the operation that it is for.
    #[must_use]
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }
}

/// Leave to give one sandbox other limits; see [`crate::places::Places::claim_limits`].
#[must_use = "a claim that nobody uses is given back"]
#[derive(Debug)]
pub struct LimitsClaim {
    pub(crate) permit: Arc<Permit>,
    pub(crate) limits: Limits,
    /// What it will have beyond what it has; counted until it has it.
    pub(crate) more: Hold,
}

impl LimitsClaim {
    /// What it was judged with, for the record of the operation that it is for.
    #[must_use]
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }
}

/// Leave to make one snapshot; see [`crate::places::Places::claim_snapshot`].
#[must_use = "a claim that nobody uses is given back"]
#[derive(Debug)]
pub struct SnapshotClaim {
    pub(crate) permit: Arc<Permit>,
    pub(crate) hold: Hold,
}

impl SnapshotClaim {
    /// What it was judged with, for the record of the operation that it is for.
    #[must_use]
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }
}

/// A request that may come again, and is then to be answered with what it made; means nothing to us.
#[derive(Clone, Debug)]
pub struct Repeat {
    /// How its maker called it, of each user apart.
    pub key: String,
    /// The digest of what was asked.
    pub digest: [u8; 32],
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
    /// Whose files it begins with, if not its template's alone.
    pub from: Option<Origin>,
    /// The request that it is made for, if that may come again.
    pub repeat: Option<Repeat>,
}

/// How a sandbox is resumed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resume {
    /// Its lease from now on, milliseconds; `None`: as long as its spec says.
    pub lease_ms: Option<u64>,
    /// Begin anew from its files, also where its processes are kept.
    pub cold: bool,
}
