//! The closed list of orders that the server may give the warden, and its answers.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` Unix socket, JSON, at most [`MESSAGE_MAX`] bytes, with descriptors
//! beside it. The warden checks every order itself; it trusts the server with nothing but its users' work.

use rf_types::{DiskKind, Enforcement, Fault, Limits, SandboxId, SandboxSpec, SnapshotId, TemplateName, units::UnixMs};
use serde::{Deserialize, Serialize};

/// The protocol's version; both sides refuse another.
pub const VERSION: u32 = 3;
/// Longest message, bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// One order with the tag that its answer carries.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the server; never 0.
    pub tag: u64,
    /// The order.
    pub order: Order,
}

/// What the server may ask.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// The first message. A second server's `Hello` takes over: the first connection is closed.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Make a sandbox, or take a prepared one. Answer: `Created`, with the socket to its init.
    Create {
        /// What it should be.
        spec: SandboxSpec,
        /// The snapshot whose files it begins with; made of the template that `spec` names.
        #[serde(default)]
        from: Option<SnapshotId>,
        /// Its id: that of a sandbox which is no more, whose files come back from a snapshot. `conflict` when it lives.
        #[serde(default)]
        id: Option<SandboxId>,
    },
    /// Destroy a sandbox. Answer: `Done` when no process, mount, cgroup or directory of it is left.
    Destroy {
        /// Which.
        id: SandboxId,
    },
    /// Hand over every claimed sandbox: an `Adopted` for each, with a new socket to its init, then `Done`.
    Adopt {},
    /// Freeze every process of a sandbox. Answer: `Done` when the kernel says that all are frozen, also when they were.
    /// Its lease does not end while it is paused; what it holds of memory stays.
    Pause {
        /// Which.
        id: SandboxId,
    },
    /// Thaw a paused sandbox. Answer: `Resumed`, also when it was not paused.
    Resume {
        /// Which.
        id: SandboxId,
        /// When its lease ends from now on; `None`: as long after now as it had left when it was paused, at least 1 s.
        lease_until: Option<UnixMs>,
    },
    /// Save the files of a sandbox, as they are at one instant, under a name that the server chose. Answer:
    /// `Snapshotted`. The sandbox goes on (or stays paused).
    Snapshot {
        /// Of which.
        id: SandboxId,
        /// Its name; `conflict` when there is such a snapshot.
        snapshot: SnapshotId,
    },
    /// Remove a snapshot. Its layers go when no other snapshot and no sandbox stands on them. Answer: `Done`.
    RemoveSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Snapshots in the order of their ids. Answer: `Snapshots`.
    Snapshots {
        /// Only those behind this one.
        #[serde(default)]
        after: Option<SnapshotId>,
    },
    /// Set the lease to end at this instant. `conflict` while the sandbox is paused.
    SetLease {
        /// Which.
        id: SandboxId,
        /// When it is destroyed.
        lease_until: UnixMs,
    },
    /// Set limits of memory, tasks, CPU and I/O. The disk's quota cannot be changed.
    SetLimits {
        /// Which.
        id: SandboxId,
        /// To what.
        limits: Limits,
    },
    /// What it uses now. Answer: `Used`.
    Usage {
        /// Which.
        id: SandboxId,
    },
    /// Unpack one layer: beside it a descriptor of the layer's (compressed) tar, read from its start. The warden runs
    /// an unpacker without rights in a user namespace of its own. Answer: `Unpacked`.
    UnpackLayer {
        /// `sha256:` and 64 hex digits of the uncompressed tar; the layer is kept under it and shared.
        diff_id: String,
    },
    /// Give a template its layers, lowest first; each was unpacked before. Answer: `Done`.
    SetTemplate {
        /// Its name.
        name: TemplateName,
        /// Its layers' `diff_id`s, 1 to 100.
        layers: Vec<String>,
    },
    /// Remove a template and the layers that no other has. Answer: `Done`.
    RemoveTemplate {
        /// Its name.
        name: TemplateName,
    },
    /// Every template. Answer: `Templates`.
    Templates {},
    /// What this host can hold, and how the warden is. Answer: `Status`.
    Status {},
}

/// What the warden answers, or tells by itself (tag 0).
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The order's tag; 0 for news.
    pub tag: u64,
    /// What came of it.
    pub result: Result<Reply, Fault>,
}

/// A good answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done {},
    /// A sandbox; beside it the socket to its init.
    Created {
        /// Its id, chosen by the warden.
        id: SandboxId,
        /// When the lease ends.
        lease_until: UnixMs,
        /// Whether it was prepared before.
        pooled: bool,
        /// What holds it.
        enforcement: Enforcement,
    },
    /// A sandbox that was alive; beside it a new socket to its init.
    Adopted {
        /// Its id.
        id: SandboxId,
        /// As it was asked for, with the limits it has now.
        spec: SandboxSpec,
        /// When the lease ends.
        lease_until: UnixMs,
        /// What holds it.
        enforcement: Enforcement,
        /// Whether it is paused.
        #[serde(default)]
        paused: Option<Paused>,
    },
    /// A sandbox runs again.
    Resumed {
        /// When its lease ends.
        lease_until: UnixMs,
    },
    /// A snapshot was made.
    Snapshotted(Snapshot),
    /// Some of the snapshots.
    Snapshots {
        /// Those that can be used, in the order of their ids.
        list: Vec<Snapshot>,
        /// Those that are there and of which the warden cannot read what they are, in the same order. Orders on one get
        /// `store_unavailable`, but for the one to remove it. Both together at most [`SNAPSHOTS_MAX`].
        set_aside: Vec<SnapshotId>,
        /// Whether there are more behind the last one of both.
        more: bool,
    },
    /// What a sandbox uses.
    Used(Usage),
    /// A layer is there.
    Unpacked {
        /// Bytes of its files.
        bytes: u64,
        /// How many files.
        files: u64,
    },
    /// The templates.
    Templates(Vec<Template>),
    /// The warden and its host.
    Status(Box<Status>),
    /// News: a sandbox ended by itself.
    Gone {
        /// Which.
        id: SandboxId,
        /// Why.
        why: GoneWhy,
    },
    /// News: a sandbox was paused without being told to.
    Paused {
        /// Which.
        id: SandboxId,
        /// Why.
        why: PausedWhy,
    },
    /// News: a snapshot is durable now, or its bytes and files are counted.
    SnapshotChanged(Snapshot),
    /// News: a snapshot that was not durable yet is no more, since its files cannot be kept and its sandbox is gone.
    SnapshotLost {
        /// Which.
        id: SnapshotId,
        /// Why, for people.
        why: String,
    },
}

/// Most snapshots in one answer.
pub const SNAPSHOTS_MAX: usize = 100;

/// That a sandbox is paused.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Paused {
    /// Since when.
    pub since: UnixMs,
    /// Why.
    pub why: PausedWhy,
}

/// Why a sandbox was paused.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PausedWhy {
    /// The server asked for it.
    Asked,
    /// Its lease ended, and its spec says to pause it then.
    Lease,
}

/// A snapshot as the warden knows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub id: SnapshotId,
    /// The template that its sandbox was made from.
    pub template: TemplateName,
    /// Where its sandbox kept its files.
    pub disk: DiskKind,
    /// When it was made.
    pub created_at: UnixMs,
    /// How it was made.
    pub way: SnapshotWay,
    /// Bytes of the layers that no older snapshot stands on; of one that is not durable, what the file system counted.
    pub bytes: u64,
    /// Files, directories and everything else that has a name, of the same layers.
    pub files: u64,
    /// Layers above the template's, its own included.
    pub layers: u32,
    /// Whether it survives the end of the warden and of the machine; one that is not yet will be, shortly after.
    pub durable: bool,
}

/// How a snapshot was made.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotWay {
    /// The written layer became a read-only one and the sandbox got a new one over it; nothing was copied.
    Pushed,
    /// Programs of the sandbox held files of the written layer, so it was copied while they were frozen.
    Copied,
}

/// Why a sandbox ended without being told to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneWhy {
    /// Its lease ended.
    Lease,
    /// Its process 1 died (killed from outside, or by the kernel for want of memory).
    InitDied,
    /// What saved its files was killed at it, and so was what should have made it whole again.
    Broken,
}

/// What a sandbox uses, as its cgroups and its file system say.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Memory now, bytes.
    pub memory_bytes: u64,
    /// Of that pages of files, which the kernel takes back when it wants memory; those in the `memory` disk and `/dev/shm`
    /// as well, which it does not. Bytes.
    pub memory_cache_bytes: u64,
    /// Memory at most so far, bytes.
    pub memory_peak_bytes: u64,
    /// Processes killed for want of memory so far.
    pub oom_kills: u64,
    /// Tasks now.
    pub tasks: u64,
    /// CPU time so far, microseconds.
    pub cpu_us: u64,
    /// Bytes on the writable root.
    pub disk_bytes: u64,
    /// Inodes on the writable root.
    pub inodes: u64,
}

/// A template as the warden knows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Template {
    /// Its name.
    pub name: TemplateName,
    /// Its layers, lowest first; empty for `host`.
    pub layers: Vec<String>,
}

/// The warden and its host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// `rooted` or `rootless`.
    pub mode: String,
    /// Sandboxes claimed by the server.
    pub sandboxes: u32,
    /// Sandboxes prepared.
    pub pooled: u32,
    /// Per layer, whether this host can hold it, and if not, the cure. In the order of [`rf_types::Layer::ALL`].
    pub layers: Vec<LayerStatus>,
    /// The kernel's release (uname(2)).
    pub kernel: String,
}

/// Whether this host can hold one layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerStatus {
    /// Which.
    pub layer: rf_types::Layer,
    /// Whether.
    pub available: bool,
    /// How that was found out, or why it is not there.
    pub evidence: String,
    /// What to do to get it; empty when it is there.
    pub cure: String,
}
