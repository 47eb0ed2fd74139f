//! Where an operation runs: a sandbox or a machine. There is no third.

use serde::{Deserialize, Serialize};

use crate::id::{MachineId, SandboxId};

/// One place, named.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "id")]
pub enum PlaceRef {
    /// A sandbox on our servers.
    Sandbox(SandboxId),
    /// A user's own machine.
    Machine(MachineId),
}

impl std::fmt::Display for PlaceRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sandbox(id) => id.fmt(f),
            Self::Machine(id) => id.fmt(f),
        }
    }
}

/// The two kinds of place.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceKind {
    /// A sandbox.
    Sandbox,
    /// A joined machine.
    Machine,
}

/// Where a user wants their operations to run. A call may choose for itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preference {
    /// On the joined machine, or not at all.
    Machine,
    /// In the sandbox, also when a machine is joined.
    Sandbox,
    /// On the machine while one is joined when the call begins, else in the sandbox.
    MachineElseSandbox,
}
