//! The bodies and queries of pausing, resuming, snapshots and forks, and of the list of sandboxes.

use std::collections::BTreeMap;

use rf_types::{PauseKind, SandboxEnv, SandboxState, TemplateName};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How to pause a sandbox.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseAsk {
    /// What to keep: `memory` (processes and files) or `files`; `memory` if not given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub keep: PauseKind,
}

/// How to resume a sandbox.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeAsk {
    /// Its lease from now on, milliseconds, 1 s to 30 days; as long as it was made with if not given.
    pub lease_ms: Option<u64>,
    /// Begin anew from its files, also where its processes are kept.
    #[serde(default)]
    pub cold: bool,
}

/// A request for a snapshot.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotAsk {
    /// A name, 1 to 128 of letters, digits, `-`, `_`, `.`, `:` and `/`. Another snapshot of the user's that has it loses
    /// it.
    pub name: Option<String>,
}

/// A request for forks: sandboxes that begin with the files of another one as they are now. They have its limits and its
/// labels, and nothing of its environment, its name, its processes or its lease.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkAsk {
    /// How many, 1 to 20; 1 if not given.
    pub count: Option<u32>,
    /// Lease of each, milliseconds, 1 s to 30 days; as long as the other was made with if not given.
    pub lease_ms: Option<u64>,
    /// Labels of each; those of the other if not given.
    pub labels: Option<BTreeMap<String, String>>,
    /// The environment of every exec in each.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub env: SandboxEnv,
}

/// Which sandboxes are listed, and which page of them.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct SandboxQuery {
    /// The `next` of the page before.
    pub after: Option<String>,
    /// Most items, 1 to 1,000; 100 if not given.
    pub items_max: Option<u32>,
    /// Only those that are `running` or `paused`.
    #[param(value_type = Option<String>)]
    pub state: Option<SandboxState>,
    /// Only those of this template.
    #[param(value_type = Option<String>)]
    pub template: Option<TemplateName>,
    /// Only those with all of these labels: a JSON object of texts.
    pub labels: Option<String>,
    /// Only those that last began to run then or later, milliseconds since 1970.
    pub started_from: Option<u64>,
    /// `asc`: the one that began first comes first; `desc` if not given.
    #[param(value_type = Option<String>)]
    pub order: Option<Order>,
}

/// An order of a list.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

/// Which snapshots are listed, and which page of them.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct SnapshotQuery {
    /// The `next` of the page before.
    pub after: Option<String>,
    /// Most items, 1 to 1,000; 100 if not given.
    pub items_max: Option<u32>,
    /// Only those of this sandbox.
    pub sandbox: Option<String>,
    /// Only the one of this name.
    pub name: Option<String>,
}
