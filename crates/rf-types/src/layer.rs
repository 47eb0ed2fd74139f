//! The layers that hold a sandbox, and what the kernel said of each when it was read back.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One mechanism that holds a sandbox.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// A user namespace of its own, with its own range of host ids when the warden runs as root.
    User,
    /// A pid namespace of its own.
    Pid,
    /// A mount namespace of its own, with its own root.
    Mount,
    /// A network namespace of its own that holds only `lo`.
    Net,
    /// An IPC namespace of its own.
    Ipc,
    /// A UTS namespace of its own.
    Uts,
    /// A cgroup namespace of its own.
    CgroupNs,
    /// A time namespace of its own.
    Time,
    /// The system call allow-list.
    Seccomp,
    /// The Landlock rules and scopes.
    Landlock,
    /// `no_new_privs`.
    NoNewPrivs,
    /// The capability bounding set.
    Capabilities,
    /// A session keyring of its own.
    Keyring,
    /// The memory limit.
    Memory,
    /// The limit on tasks.
    Tasks,
    /// The CPU limit.
    Cpu,
    /// The limit on block I/O; required only for a disk that is on a block device.
    Io,
    /// The quota of bytes and inodes on the writable root.
    Disk,
}

impl Layer {
    /// Every layer, in the order of reports.
    pub const ALL: [Self; 18] = [
        Self::User,
        Self::Pid,
        Self::Mount,
        Self::Net,
        Self::Ipc,
        Self::Uts,
        Self::CgroupNs,
        Self::Time,
        Self::Seccomp,
        Self::Landlock,
        Self::NoNewPrivs,
        Self::Capabilities,
        Self::Keyring,
        Self::Memory,
        Self::Tasks,
        Self::Cpu,
        Self::Io,
        Self::Disk,
    ];

    /// The layer's name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Mount => "mount",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::CgroupNs => "cgroup_ns",
            Self::Time => "time",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::NoNewPrivs => "no_new_privs",
            Self::Capabilities => "capabilities",
            Self::Keyring => "keyring",
            Self::Memory => "memory",
            Self::Tasks => "tasks",
            Self::Cpu => "cpu",
            Self::Io => "io",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much of a layer the kernel holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "held")]
pub enum Held {
    /// All of it.
    Full,
    /// A part; `missing` says what is not held.
    Partial {
        /// What the kernel does not hold, for people.
        missing: String,
    },
    /// Nothing; the request accepted that by name.
    Absent,
}

/// One layer as the kernel reported it after launch.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerReport {
    /// Which layer.
    pub layer: Layer,
    /// How much of it is held.
    #[serde(flatten)]
    pub held: Held,
    /// What was read back and from where, such as `memory.limit_in_bytes = 268435456`.
    pub evidence: String,
}

/// What holds a sandbox, read back from the kernel after its start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Enforcement {
    /// The level of isolation: `namespaces`.
    pub level: String,
    /// `rooted` when the sandbox has its own range of host ids, else `rootless`.
    pub mode: String,
    /// One report for each layer, in the order of [`Layer::ALL`].
    pub layers: Vec<LayerReport>,
}

impl Enforcement {
    /// The report on `layer`, if it is there.
    #[must_use]
    pub fn of(&self, layer: Layer) -> Option<&LayerReport> {
        self.layers.iter().find(|report| report.layer == layer)
    }
}
