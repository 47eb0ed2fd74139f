//! Pure judgement: may this principal do this, and is there quota left? Knows no HTTP, no clock, no store.
//!
//! [`judge`] is the only maker of a [`Permit`], and every function that does something for a user takes one; so a way
//! around the judgement does not compile. A permit is for one action of one request; nothing caches a yes.

use std::fmt;

use rf_types::{
    Code, Fault, KeyId, PlaceRef, RequestId, SandboxId, SandboxSpec, SessionId, UserId, UserLimits, Username,
};
use serde::{Deserialize, Serialize};

/// What somebody wants to do. One for each kind of operation that the ledger tells apart.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make a sandbox.
    SandboxCreate,
    /// See one's sandboxes, their usage and enforcement.
    SandboxRead,
    /// Extend a lease, change limits.
    SandboxUpdate,
    /// Destroy a sandbox.
    SandboxDestroy,
    /// Pause a sandbox.
    SandboxPause,
    /// Resume a paused sandbox.
    SandboxResume,
    /// Take a sandbox's files as they are, for making others; each of those is a [`Action::SandboxCreate`] of its own.
    SandboxFork,
    /// Make a snapshot of a sandbox.
    SnapshotCreate,
    /// See one's snapshots.
    SnapshotRead,
    /// Remove a snapshot.
    SnapshotDelete,
    /// Run a command.
    Exec,
    /// Signal, write to, resize an exec.
    ExecControl,
    /// List, attach to, wait for execs and read their logs.
    ExecRead,
    /// Read, list, stat, watch files; download trees.
    FileRead,
    /// Write, make, move, remove, chmod files; upload trees.
    FileWrite,
    /// Speak to a port that a program inside a sandbox listens on.
    PortConnect,
    /// See one's machines and preference.
    MachineRead,
    /// Make enrolment tokens, remove machines, set the preference.
    MachineManage,
    /// See templates.
    TemplateRead,
    /// Import and remove templates.
    TemplateManage,
    /// See, make and revoke one's API keys.
    KeyManage,
    /// Begin, see and end sessions.
    SessionManage,
    /// Read one's part of the ledger.
    AuditRead,
    /// Make, change and remove users; act for one on the record; read all of the ledger.
    Operate,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 24] = [
        Self::SandboxCreate,
        Self::SandboxRead,
        Self::SandboxUpdate,
        Self::SandboxDestroy,
        Self::SandboxPause,
        Self::SandboxResume,
        Self::SandboxFork,
        Self::SnapshotCreate,
        Self::SnapshotRead,
        Self::SnapshotDelete,
        Self::Exec,
        Self::ExecControl,
        Self::ExecRead,
        Self::FileRead,
        Self::FileWrite,
        Self::PortConnect,
        Self::MachineRead,
        Self::MachineManage,
        Self::TemplateRead,
        Self::TemplateManage,
        Self::KeyManage,
        Self::SessionManage,
        Self::AuditRead,
        Self::Operate,
    ];

    /// The scope that covers it.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::SandboxRead
            | Self::SnapshotRead
            | Self::ExecRead
            | Self::FileRead
            | Self::MachineRead
            | Self::TemplateRead => Scope::Read,
            Self::SandboxCreate
            | Self::SandboxUpdate
            | Self::SandboxDestroy
            | Self::SandboxPause
            | Self::SandboxResume
            | Self::SandboxFork
            | Self::SnapshotCreate
            | Self::SnapshotDelete
            | Self::Exec
            | Self::ExecControl
            | Self::FileWrite
            | Self::PortConnect => Scope::Run,
            Self::MachineManage | Self::KeyManage | Self::SessionManage => Scope::Account,
            Self::AuditRead => Scope::Audit,
            Self::TemplateManage | Self::Operate => Scope::Operate,
        }
    }

    /// Whether it is work inside one sandbox, which a sandbox's own credential covers; never the life of the sandbox
    /// itself, nor anything else of its user's.
    #[must_use]
    pub const fn inside_a_sandbox(self) -> bool {
        match self {
            Self::Exec | Self::ExecControl | Self::ExecRead | Self::FileRead | Self::FileWrite | Self::PortConnect => {
                true
            }
            Self::SandboxCreate
            | Self::SandboxRead
            | Self::SandboxUpdate
            | Self::SandboxDestroy
            | Self::SandboxPause
            | Self::SandboxResume
            | Self::SandboxFork
            | Self::SnapshotCreate
            | Self::SnapshotRead
            | Self::SnapshotDelete
            | Self::MachineRead
            | Self::MachineManage
            | Self::TemplateRead
            | Self::TemplateManage
            | Self::KeyManage
            | Self::SessionManage
            | Self::AuditRead
            | Self::Operate => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a credential may be used for. A credential has a set of these; the set only shrinks on the way from the
/// user's own to a key or session made from it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See what is there.
    Read,
    /// Make, use and destroy places.
    Run,
    /// Keys, sessions, machines.
    Account,
    /// The user's part of the ledger.
    Audit,
    /// What only the operator may do.
    Operate,
}

impl Scope {
    /// Every scope of an ordinary user.
    pub const USER: [Self; 4] = [Self::Read, Self::Run, Self::Account, Self::Audit];

    /// The scope's name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Account => "account",
            Self::Audit => "audit",
            Self::Operate => "operate",
        }
    }
}

/// By what somebody proved who they are.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Credential {
    /// An API key.
    Key {
        /// Which.
        id: KeyId,
    },
    /// A JWT of an OIDC provider.
    Token {
        /// Its issuer.
        issuer: String,
    },
    /// A session.
    Session {
        /// Which.
        id: SessionId,
    },
    /// A sandbox's own token, which is good inside that one sandbox.
    Sandbox {
        /// Which.
        id: SandboxId,
    },
    /// None: a visitor of a port that the sandbox's user lets everybody reach. They have no rows of their own, so what
    /// they do is the sandbox's user's.
    Visitor {
        /// Of which sandbox.
        sandbox: SandboxId,
    },
}

impl Credential {
    /// The one sandbox it is good for, where it is good for one only.
    #[must_use]
    pub const fn within(&self) -> Option<SandboxId> {
        match self {
            Self::Sandbox { id } => Some(*id),
            Self::Visitor { sandbox } => Some(*sandbox),
            Self::Key { .. } | Self::Token { .. } | Self::Session { .. } => None,
        }
    }

    /// Whether it can cover an action at all, whatever its scopes.
    #[must_use]
    pub const fn covers(&self, action: Action) -> bool {
        match self {
            Self::Key { .. } | Self::Token { .. } | Self::Session { .. } => true,
            Self::Sandbox { .. } => action.inside_a_sandbox(),
            Self::Visitor { .. } => matches!(action, Action::PortConnect),
        }
    }
}

/// Who asks, as authentication found out. Never built from a parameter of the request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Principal {
    /// The user: the wall.
    pub user: UserId,
    /// The user's name.
    pub username: Username,
    /// By what they proved it.
    pub credential: Credential,
    /// What the credential may be used for.
    pub scopes: Vec<Scope>,
}

/// What a user has at this moment, over all their places.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct UserUsage {
    /// Sandboxes alive.
    pub sandboxes: u32,
    /// Execs running.
    pub execs: u32,
    /// Sum of the sandboxes' CPU limits, thousandths of one CPU.
    pub cpu_milli: u32,
    /// Sum of the sandboxes' memory limits, bytes.
    pub memory_bytes: u64,
    /// Sum of the sandboxes' disk limits, bytes.
    pub disk_bytes: u64,
    /// Snapshots.
    pub snapshots: u32,
    /// Sum of the snapshots' bytes.
    pub snapshot_bytes: u64,
}

/// What is asked beside the action itself.
#[derive(Clone, Debug)]
pub enum Asked<'a> {
    /// Nothing that has a quota.
    Nothing,
    /// A sandbox of this spec.
    Sandbox(&'a SandboxSpec),
    /// One more exec, as `root` inside or not.
    Exec {
        /// Whether it is to run as `root` inside.
        root: bool,
    },
    /// One more snapshot, this long as far as is known before it is made.
    Snapshot {
        /// Bytes.
        bytes: u64,
    },
    /// A lease this long from now.
    Lease {
        /// Milliseconds.
        lease_ms: u64,
    },
}

/// One question to [`judge`].
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// What they want to do.
    pub action: Action,
    /// The request it belongs to.
    pub request: RequestId,
    /// What they may have.
    pub limits: &'a UserLimits,
    /// What they have.
    pub usage: &'a UserUsage,
    /// What more is asked.
    pub asked: Asked<'a>,
}

/// Proof that the gate said yes to this action of this user in this request.
///
/// What does something for a user takes one:
/// ```
/// # use rf_policy::{Action, Permit};
/// # use rf_types::Fault;
/// fn remove(permit: &Permit) -> Result<(), Fault> {
///     permit.require(Action::FileWrite)
/// }
/// fn called(permit: Permit) -> Result<(), Fault> {
///     remove(&permit)
/// }
/// ```
/// Without one it does not compile:
/// ```compile_fail,E0061
/// # use rf_policy::{Action, Permit};
/// # use rf_types::Fault;
/// fn remove(permit: &Permit) -> Result<(), Fault> {
///     permit.require(Action::FileWrite)
/// }
/// fn called() -> Result<(), Fault> {
///     remove()
/// }
/// ```
/// [`judge`] is its one maker, and in what we build the gate alone calls that (`cargo xtask tidy`). Elsewhere its fields cannot be written, be it anew or over those of another one:
/// ```compile_fail,E0451
/// # use rf_policy::{Action, Permit};
/// # use rf_types::{RequestId, UserId};
/// fn forged(user: UserId, request: RequestId) -> Permit {
///     Permit { user, action: Action::Operate, request, within: None }
/// }
/// ```
/// ```compile_fail,E0616
/// # use rf_policy::{Action, Permit};
/// fn raised(mut permit: Permit) -> Permit {
///     permit.action = Action::Operate;
///     permit
/// }
/// ```
/// Nothing turns data into one, and it has no value of its own accord:
/// ```compile_fail,E0277
/// fn read<'a, D: serde::Deserializer<'a>>(from: D) -> Result<rf_policy::Permit, D::Error> {
///     serde::Deserialize::deserialize(from)
/// }
/// ```
/// ```compile_fail,E0277
/// fn made() -> rf_policy::Permit {
///     Default::default()
/// }
/// ```
/// Control of these two: an action is read, and a number made, in the same way.
/// ```
/// fn read<'a, D: serde::Deserializer<'a>>(from: D) -> Result<rf_policy::Action, D::Error> {
///     serde::Deserialize::deserialize(from)
/// }
/// fn made() -> u64 {
///     Default::default()
/// }
/// ```
/// There are no two of one judgement. What is shared is the one; what is handed on is gone:
/// ```
/// # use rf_policy::Permit;
/// fn shared(permit: Permit) -> [std::sync::Arc<Permit>; 2] {
///     let permit = std::sync::Arc::new(permit);
///     [permit.clone(), permit]
/// }
/// ```
/// ```compile_fail,E0599
/// # use rf_policy::Permit;
/// fn doubled(permit: Permit) -> [Permit; 2] {
///     [permit.clone(), permit]
/// }
/// ```
/// ```compile_fail,E0382
/// # use rf_policy::Permit;
/// fn doubled(permit: Permit) -> [Permit; 2] {
///     [permit, permit]
/// }
/// ```
/// For which action it is, and in which sandbox it is good, is known when it runs: [`Permit::require`] and
/// [`Permit::reaches`], which every door into a place asks first.
#[must_use = "a permit that nobody uses is a call that was judged and not made"]
#[derive(Debug)]
pub struct Permit {
    user: UserId,
    action: Action,
    request: RequestId,
    within: Option<SandboxId>,
}

impl Permit {
    /// Whose.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// For what.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.action
    }

    /// In which request.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// The one sandbox it is good for; `None` for all places of the user's.
    #[must_use]
    pub const fn within(&self) -> Option<SandboxId> {
        self.within
    }

    /// Whether it is good in this place of the user's; every place asks, and answers as if it were not there.
    #[must_use]
    pub fn reaches(&self, place: PlaceRef) -> bool {
        self.within.is_none_or(|only| place == PlaceRef::Sandbox(only))
    }

    /// Checks that the permit is for `action`; every door into a place does this first.
    ///
    /// # Errors
    /// `internal` when it is for another: a mistake in our own code, answered as a refusal.
    pub fn require(&self, action: Action) -> Result<(), Fault> {
        if self.action == action {
            Ok(())
        } else {
            Err(Fault::new(Code::Internal, format!("a permit for {} was used for {action}", self.action), ""))
        }
    }
}

/// Decides one question: scope first, then quota, denials before permits.
///
/// # Errors
/// `forbidden` when the credential's scopes do not cover the action; `limit_reached` when a limit of the user's would
/// be passed; `invalid_request` when the spec is out of range.
pub fn judge(question: &Question<'_>) -> Result<Permit, Fault> {
    let Question { principal, action, request, limits, usage, asked } = question;
    if !principal.credential.covers(*action) {
        return Err(Fault::new(
            Code::Forbidden,
            format!("{action} is not for a credential of one sandbox"),
            "use an API key of the user's",
        ));
    }
    let scope = action.scope();
    if !principal.scopes.contains(&scope) {
        return Err(Fault::new(
            Code::Forbidden,
            format!("this credential lacks the scope `{}`, which {action} needs", scope.name()),
            "use a credential with that scope",
        ));
    }
    match asked {
        Asked::Nothing => {}
        Asked::Sandbox(spec) => {
            spec.validate().map_err(|error| Fault::invalid(error.to_string()))?;
            within("sandboxes", u64::from(usage.sandboxes), 1, u64::from(limits.sandboxes_max))?;
            within("cpu_milli", usage.cpu_milli.into(), spec.limits.cpu_milli_max.into(), limits.cpu_milli_max.into())?;
            within("memory_bytes", usage.memory_bytes, spec.limits.memory_bytes_max, limits.memory_bytes_max)?;
            within("disk_bytes", usage.disk_bytes, spec.limits.disk_bytes_max, limits.disk_bytes_max)?;
            within("lease_ms", 0, spec.lease_ms, limits.lease_ms_max)?;
            if spec.root_allowed && !limits.root_allowed {
                return Err(no_root());
            }
        }
        Asked::Exec { root } => {
            within("execs", usage.execs.into(), 1, limits.execs_max.into())?;
            if *root && !limits.root_allowed {
                return Err(no_root());
            }
        }
        Asked::Snapshot { bytes } => {
            within("snapshots", usage.snapshots.into(), 1, limits.snapshots_max.into())?;
            within("snapshot_bytes", usage.snapshot_bytes, *bytes, limits.snapshot_bytes_max)?;
        }
        Asked::Lease { lease_ms } => within("lease_ms", 0, *lease_ms, limits.lease_ms_max)?,
    }
    Ok(Permit { user: principal.user, action: *action, request: *request, within: principal.credential.within() })
}

fn no_root() -> Fault {
    Fault::new(Code::Forbidden, "this user's policy forbids `root` inside a sandbox", "run as the default user")
}

fn within(what: &str, used: u64, asked: u64, max: u64) -> Result<(), Fault> {
    if used.checked_add(asked).is_some_and(|sum| sum <= max) {
        return Ok(());
    }
    Err(Fault::new(
        Code::LimitReached,
        format!("`{what}` would be {} of at most {max}", used.saturating_add(asked)),
        "destroy what is no longer needed, ask for less, or ask the operator for a higher limit",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(scopes: &[Scope]) -> Principal {
        Principal {
            user: UserId::from_bits(1),
            username: "ann".parse().unwrap(),
            credential: Credential::Key { id: KeyId::from_bits(2) },
            scopes: scopes.to_vec(),
        }
    }

    fn ask(principal: &Principal, action: Action, usage: UserUsage, asked: Asked<'_>) -> Result<Permit, Code> {
        let limits = UserLimits::STANDARD;
        let request = RequestId::from_bits(3);
        judge(&Question { principal, action, request, limits: &limits, usage: &usage, asked })
            .map_err(|fault| fault.code)
    }

    #[test]
    fn every_action_needs_its_scope_and_no_other_gives_it() {
        for action in Action::ALL {
            for scope in [Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate] {
                let permit = ask(&principal(&[scope]), action, UserUsage::default(), Asked::Nothing);
                assert_eq!(permit.is_ok(), action.scope() == scope, "{action} with {scope:?}");
            }
        }
    }

    #[test]
    fn a_sandboxs_own_credential_is_good_inside_it_and_a_visitors_for_its_ports() {
        let (id, other) = (SandboxId::from_bits(7), SandboxId::from_bits(8));
        let everything = [Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate];
        let with = |credential| Principal { credential, ..principal(&everything) };
        let (sandbox, visitor) = (with(Credential::Sandbox { id }), with(Credential::Visitor { sandbox: id }));
        for action in Action::ALL {
            let asked = |who: &Principal| ask(who, action, UserUsage::default(), Asked::Nothing);
            // Control: a key of the same scopes may do each.
            assert!(asked(&principal(&everything)).is_ok_and(|permit| permit.reaches(PlaceRef::Sandbox(other))));
            for (who, covered) in [(&sandbox, action.inside_a_sandbox()), (&visitor, action == Action::PortConnect)] {
                match asked(who) {
                    Ok(permit) => {
                        assert!(covered, "{action}");
                        assert!(permit.reaches(PlaceRef::Sandbox(id)));
                        assert!(!permit.reaches(PlaceRef::Sandbox(other)));
                        assert!(!permit.reaches(PlaceRef::Machine(rf_types::MachineId::from_bits(7))));
                    }
                    Err(code) => assert!(!covered && code == Code::Forbidden, "{action}"),
                }
            }
        }
    }

    #[test]
    fn the_last_sandbox_is_allowed_and_the_next_is_not() {
        let who = principal(&Scope::USER);
        let spec = SandboxSpec::standard(60_000);
        let usage = |sandboxes| UserUsage { sandboxes, ..UserUsage::default() };
        assert!(ask(&who, Action::SandboxCreate, usage(19), Asked::Sandbox(&spec)).is_ok());
        let refused = ask(&who, Action::SandboxCreate, usage(20), Asked::Sandbox(&spec));
        assert_eq!(refused.unwrap_err(), Code::LimitReached);
    }

    #[test]
    fn the_last_snapshot_is_allowed_and_the_next_is_not() {
        let who = principal(&Scope::USER);
        let most = UserLimits::STANDARD;
        let usage = |snapshots, snapshot_bytes| UserUsage { snapshots, snapshot_bytes, ..UserUsage::default() };
        let asked = |usage| ask(&who, Action::SnapshotCreate, usage, Asked::Snapshot { bytes: 10 });
        assert!(asked(usage(most.snapshots_max - 1, most.snapshot_bytes_max - 10)).is_ok());
        assert_eq!(asked(usage(most.snapshots_max, 0)).unwrap_err(), Code::LimitReached);
        assert_eq!(asked(usage(0, most.snapshot_bytes_max - 9)).unwrap_err(), Code::LimitReached);
    }

    #[test]
    fn sums_that_overflow_are_over_the_limit() {
        let who = principal(&Scope::USER);
        let spec = SandboxSpec::standard(60_000);
        let usage = UserUsage { memory_bytes: u64::MAX, ..UserUsage::default() };
        let refused = ask(&who, Action::SandboxCreate, usage, Asked::Sandbox(&spec));
        assert_eq!(refused.unwrap_err(), Code::LimitReached);
    }

    #[test]
    fn a_permit_is_for_one_action() {
        let permit = ask(&principal(&Scope::USER), Action::FileRead, UserUsage::default(), Asked::Nothing).unwrap();
        assert!(permit.require(Action::FileRead).is_ok());
        assert_eq!(permit.require(Action::Exec).unwrap_err().code, Code::Internal);
    }
}
