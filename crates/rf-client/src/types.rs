//! What is asked of the public interface, and what comes back. Of things, fields that are not known here are kept.

use std::collections::BTreeMap;

use rf_types::{
    Enforcement, ExecId, ExecState, KeyId, Layer, MachineId, OnLeaseEnd, PauseKind, PlaceRef, Preference, Program, Pty,
    Rlimits, SandboxEnv, SandboxId, SandboxSpec, SessionId, SignalScope, SnapshotId, TemplateConfig, TemplateName,
    UserId, UserLimits, Username, units::UnixMs,
};
use serde::{Deserialize, Serialize};

/// What a server says beyond what is known here, by name: a newer one's fields are not lost to who prints them.
pub type More = serde_json::Map<String, serde_json::Value>;

/// A list as the server gives it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Items<T> {
    pub(crate) items: Vec<T>,
    #[serde(default = "Option::default")]
    pub(crate) next: Option<String>,
}

/// Limits that differ from the server's standard ones.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct LimitsRequest {
    /// Memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
    /// Tasks at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks_max: Option<u32>,
    /// Thousandths of one CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli_max: Option<u32>,
    /// Bytes on the writable root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes_max: Option<u64>,
    /// Inodes on the writable root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes_max: Option<u64>,
}

/// A request for a sandbox; what is not named is the server's standard.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct SandboxRequest {
    /// A name that no other living sandbox of the user has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the root is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateName>,
    /// What it may use.
    #[serde(default)]
    pub limits: LimitsRequest,
    /// Where its writable files live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<rf_types::DiskKind>,
    /// Whether `root` inside may be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_allowed: Option<bool>,
    /// Layers that may be absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_missing: Vec<Layer>,
    /// How long it lives, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// What happens when its lease ends.
    #[serde(default)]
    pub on_lease_end: OnLeaseEnd,
    /// The snapshot whose files it begins with, by id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<String>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The environment of every exec in it, below the exec's own.
    #[serde(default)]
    pub env: SandboxEnv,
    /// Whether a call that comes while its processes are frozen resumes it.
    #[serde(default)]
    pub auto_resume: bool,
    /// What is kept when it is paused without being asked to.
    #[serde(default)]
    pub auto_pause: PauseKind,
    /// It is paused when it was idle for so long, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_pause_ms: Option<u64>,
}

/// A sandbox.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What its user calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether calls that name no place go to it.
    #[serde(default)]
    pub default: bool,
    /// As it was made.
    pub spec: SandboxSpec,
    /// Where it is in its life.
    #[serde(default)]
    pub state: String,
    /// When it was made.
    #[serde(default)]
    pub created_at: UnixMs,
    /// When it last began to run.
    #[serde(default)]
    pub started_at: UnixMs,
    /// When its lease ends; none while it is paused.
    #[serde(default)]
    pub lease_until: Option<UnixMs>,
    /// What is kept while it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_kind: Option<PauseKind>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The snapshot that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<SnapshotId>,
    /// What holds it.
    #[serde(default)]
    pub enforcement: Option<Enforcement>,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// A snapshot.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What the user calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// The sandbox it was made of; may be gone.
    pub sandbox: SandboxId,
    /// As that sandbox was then.
    pub spec: SandboxSpec,
    /// Bytes of files that no older snapshot holds; more when one is removed whose files this one holds as well.
    #[serde(default)]
    pub bytes: u64,
    /// Files and directories of that.
    #[serde(default)]
    pub files: u64,
    /// Whether it survives the end of the machine.
    #[serde(default)]
    pub durable: bool,
    /// When it was made.
    #[serde(default)]
    pub created_at: UnixMs,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// A request for forks.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ForkRequest {
    /// How many, 1 to 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Lease of each, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// Labels of each; those of the other if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The environment of every exec in each.
    #[serde(default)]
    pub env: SandboxEnv,
}

/// What came of one fork: the one or the other.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Fork {
    /// The new sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<rf_types::Fault>,
}

/// A command to run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ExecRequest {
    /// What to run; `None`, in a one-shot alone, is what the template's image starts by itself.
    #[serde(flatten)]
    pub program: Option<Program>,
    /// The environment on top of the place's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: SandboxEnv,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
    /// Standard input.
    #[serde(default, skip_serializing_if = "Stdin::is_none")]
    pub stdin: Stdin,
    /// Killed when it runs longer, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Its own limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rlimits: Option<Rlimits>,
    /// Answer at once and let it run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// Where to run it: `machine`, `sandbox`, `machine-else-sandbox`, or a place's id; `None` is the user's preference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// An exec's standard input.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    None,
    /// `true`: kept open, for a two-way stream.
    Open(bool),
    /// These bytes, in standard base64, and its end.
    Bytes {
        /// The bytes.
        base64: String,
    },
}

impl Stdin {
    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl ExecRequest {
    /// A command with nothing else said.
    #[must_use]
    pub fn new(program: impl Into<Option<Program>>) -> Self {
        Self {
            program: program.into(),
            env: SandboxEnv::default(),
            cwd: None,
            user: None,
            pty: None,
            stdin: Stdin::None,
            timeout_ms: None,
            rlimits: None,
            background: false,
            place: None,
        }
    }
}

/// An exec that began.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Started {
    /// Its id.
    pub id: ExecId,
    /// Where it runs.
    pub place: PlaceRef,
    /// Its pid inside.
    #[serde(default)]
    pub pid: u32,
}

/// An exec as listed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exec {
    /// Its id.
    pub id: ExecId,
    /// Where it runs.
    pub place: PlaceRef,
    /// Its pid inside.
    #[serde(default)]
    pub pid: u32,
    /// Program and arguments.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Whether it outlives the request that made it.
    #[serde(default)]
    pub background: bool,
    /// When it started.
    #[serde(default)]
    pub started_at: UnixMs,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: ExecState,
}

/// A signal for an exec.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SignalRequest {
    /// Its number.
    pub signal: i32,
    /// Whom it reaches.
    pub scope: SignalScope,
}

/// A user.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: Username,
    /// What it may have at once.
    pub limits: UserLimits,
    /// Where its operations run unless a call says otherwise.
    #[serde(default)]
    pub preference: Option<Preference>,
    /// When it was made.
    #[serde(default)]
    pub created_at: UnixMs,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// What a user may have at once; what is not named stays as it is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct UserLimitsRequest {
    /// Sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandboxes_max: Option<u32>,
    /// Execs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execs_max: Option<u32>,
    /// Thousandths of one CPU, over all sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli_max: Option<u32>,
    /// Bytes of memory, over all sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
    /// Bytes of disk, over all sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes_max: Option<u64>,
    /// Longest lease, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms_max: Option<u64>,
    /// Whether `root` inside may be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_allowed: Option<bool>,
    /// Snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots_max: Option<u32>,
    /// Bytes of all snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_bytes_max: Option<u64>,
}

/// An API key, without its secret.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// What the user calls it.
    #[serde(default)]
    pub name: String,
    /// What it may be used for.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// When it was made.
    #[serde(default)]
    pub created_at: UnixMs,
    /// When it stops working.
    #[serde(default)]
    pub expires_at: Option<UnixMs>,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_at: Option<UnixMs>,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// How a key looks; it is good for the same.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum KeyForm {
    /// `rf_` and 40 hex digits.
    #[default]
    Ringfence,
    /// `e2b_` and 40 hex digits, for clients that take no other.
    E2b,
}

/// A new key, with its secret: shown this once.
#[derive(Deserialize)]
pub struct NewKey {
    /// The secret; its `Debug` prints nothing.
    pub key: Secret,
    /// The rest.
    #[serde(flatten)]
    pub info: ApiKey,
}

/// A text that must not be logged. It shows itself only through [`Secret::expose`].
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A token by which one machine may join, once.
#[derive(Debug, Deserialize)]
pub struct Enrolment {
    /// The token.
    pub token: Secret,
    /// Until when it may be used.
    #[serde(default)]
    pub expires_at: UnixMs,
}

/// Whose credential it is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Me {
    /// The user's id.
    pub id: UserId,
    /// The user's name.
    pub name: Username,
    /// Whether the credential may be used to run the server.
    #[serde(default)]
    pub operator: bool,
    /// What the user may have at once.
    pub limits: UserLimits,
    /// What the credential may be used for.
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// What a machine says of itself. It may say anything.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct MachineFacts {
    /// Its hostname.
    #[serde(default)]
    pub hostname: String,
    /// Its system, such as `linux`.
    #[serde(default)]
    pub os: String,
    /// The directory that files are held to.
    #[serde(default)]
    pub workspace: String,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// A joined machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// What it calls itself.
    #[serde(default)]
    pub name: String,
    /// What it announced of itself.
    #[serde(default)]
    pub facts: MachineFacts,
    /// What its owner allows.
    #[serde(default)]
    pub level: String,
    /// Whether it is connected now.
    #[serde(default)]
    pub online: bool,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// A template.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Template {
    /// Its name.
    pub name: TemplateName,
    /// Its layers, lowest first.
    #[serde(default)]
    pub layers: Vec<String>,
    /// What it was made from.
    #[serde(default)]
    pub source: String,
    /// The digest that names its content.
    #[serde(default)]
    pub digest: Option<String>,
    /// When it was imported.
    #[serde(default)]
    pub created_at: Option<UnixMs>,
    /// How programs are started in it.
    #[serde(default)]
    pub config: TemplateConfig,
    /// What else the server says, as it came.
    #[serde(flatten)]
    pub more: More,
}

/// How far an import is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Import {
    /// `waiting`, `fetching` or `unpacking`.
    pub step: String,
    /// Bytes that are there.
    pub bytes_done: u64,
    /// Bytes in all; 0 while that is not known.
    pub bytes_total: u64,
}

/// A user's session.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
}
