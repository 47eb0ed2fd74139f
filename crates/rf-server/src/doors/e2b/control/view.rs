//! Our rows in the words of the wire format.

use rf_e2b::models::{CLIENT_ID, Lifecycle, ListedSandbox, Sandbox, SandboxDetail, timestamp};
use rf_places::SandboxRow;
use rf_policy::Action;
use rf_types::{Limits, OnLeaseEnd, PauseKind, SandboxState, units::MIB};

use crate::{
    app::{App, Caller},
    doors::e2b::{notes::Notes, target::TrafficRules},
};

/// Whether somebody may be told a sandbox's tokens. They are credentials for running commands in it and for its ports,
/// so who only reads is told none.
pub(super) fn may_run(caller: &Caller) -> bool {
    caller.who.principal().scopes.contains(&Action::Exec.scope())
}

/// A sandbox as it is made or connected to, with its tokens.
pub(super) fn sandbox(app: &App, caller: &Caller, row: &SandboxRow) -> Sandbox {
    let rules = TrafficRules::of(&row.about.door);
    let (tokens, may_run) = (app.e2b().tokens(), may_run(caller));
    Sandbox {
        template_id: template(row),
        sandbox_id: rf_e2b::id::sandbox_text(row.id),
        alias: Some(row.spec.template.to_string()),
        client_id: CLIENT_ID,
        envd_version: rf_e2b::ENVD_VERSION,
        envd_access_token: (may_run && rules.secured).then(|| tokens.envd_token(row.id)),
        traffic_access_token: (may_run && !rules.public).then(|| tokens.traffic_token(row.id)),
        domain: app.config().e2b.domain.clone(),
    }
}

/// A sandbox as it is listed.
pub(super) fn listed(row: &SandboxRow) -> ListedSandbox {
    let size = Size::of(&row.spec.limits);
    ListedSandbox {
        template_id: template(row),
        sandbox_id: rf_e2b::id::sandbox_text(row.id),
        alias: Some(row.spec.template.to_string()),
        client_id: CLIENT_ID,
        started_at: timestamp(row.started_at),
        end_at: timestamp(row.lease_until),
        cpu_count: size.cpus,
        memory_mb: size.memory_mb,
        disk_size_mb: size.disk_mb,
        metadata: row.about.labels.clone(),
        state: row.state.name(),
        envd_version: rf_e2b::ENVD_VERSION,
        volume_mounts: [],
    }
}

/// One sandbox, whole.
pub(super) fn detail(app: &App, caller: &Caller, row: &SandboxRow) -> SandboxDetail {
    let rules = TrafficRules::of(&row.about.door);
    let token = (may_run(caller) && rules.secured).then(|| app.e2b().tokens().envd_token(row.id));
    SandboxDetail {
        listed: listed(row),
        envd_access_token: token,
        domain: app.config().e2b.domain.clone(),
        // There is one kind of network: none.
        allow_internet_access: false,
        network: Notes::of(&row.about).network,
        lifecycle: Lifecycle {
            auto_resume: row.about.auto_resume,
            on_timeout: match row.spec.on_lease_end {
                OnLeaseEnd::Destroy => "kill",
                OnLeaseEnd::Pause => "pause",
            },
        },
        pause_mode: match (row.state, row.pause_kind) {
            (SandboxState::Paused, Some(PauseKind::Files)) => Some("filesystem"),
            (SandboxState::Paused, Some(PauseKind::Memory) | None) => Some("full"),
            (SandboxState::Running, _) => None,
        },
    }
}

/// What a sandbox was made from, as clients name it: a snapshot is a template to them.
pub(super) fn template(row: &SandboxRow) -> String {
    row.from_snapshot.map_or_else(|| row.spec.template.to_string(), rf_e2b::id::snapshot_text)
}

/// Limits in the units of the wire.
pub(super) struct Size {
    /// CPUs, rounded up.
    pub(super) cpus: u32,
    /// Memory, MiB.
    pub(super) memory_mb: u64,
    /// Disk, MiB.
    pub(super) disk_mb: u64,
}

impl Size {
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            cpus: limits.cpu_milli_max.div_ceil(1_000),
            memory_mb: limits.memory_bytes_max / MIB,
            disk_mb: limits.disk_bytes_max / MIB,
        }
    }
}
