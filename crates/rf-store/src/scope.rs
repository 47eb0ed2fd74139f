//! Whose rows a call may touch. None of these has a public constructor: holding one is the proof.

use rf_types::{UserId, Username};

/// One user's rows. Made only by a credential lookup that succeeded, for a freshly made user, for an operator who acts
/// for a user, or for background work.
///
/// A user's rows are there for who has one, and naming the user makes none:
/// ```
/// # use rf_store::{Sandbox, Store, StoreError, UserScope};
/// # use rf_types::{SandboxId, UserId, Username};
/// fn row(store: &Store, scope: &UserScope, id: SandboxId) -> Result<Sandbox, StoreError> {
///     store.sandbox_get(scope, id)
/// }
/// ```
/// ```compile_fail,E0308
/// # use rf_store::{Sandbox, Store, StoreError, UserScope};
/// # use rf_types::{SandboxId, UserId, Username};
/// fn row(store: &Store, scope: &UserId, id: SandboxId) -> Result<Sandbox, StoreError> {
///     store.sandbox_get(scope, id)
/// }
/// ```
/// ```compile_fail,E0624
/// # use rf_store::UserScope;
/// # use rf_types::{UserId, Username};
/// fn forged(user: UserId, username: Username) -> UserScope {
///     UserScope::new(user, username)
/// }
/// ```
/// ```compile_fail,E0451
/// # use rf_store::UserScope;
/// # use rf_types::{UserId, Username};
/// fn forged(user: UserId, username: Username) -> UserScope {
///     UserScope { user, username }
/// }
/// ```
/// Control of these two: the same names and values, where everybody may write them.
/// ```
/// # use rf_types::{UserId, Username};
/// struct UserScope { user: UserId, username: Username }
/// impl UserScope {
///     fn new(user: UserId, username: Username) -> UserScope {
///         UserScope { user, username }
///     }
/// }
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserScope {
    user: UserId,
    username: Username,
}

impl UserScope {
    // INVARIANT: called only where a row of `users` was just read or written under a proof of right to it.
    pub(crate) const fn new(user: UserId, username: Username) -> Self {
        Self { user, username }
    }

    /// Whose.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// The user's name.
    #[must_use]
    pub const fn username(&self) -> &Username {
        &self.username
    }
}

/// What only an operator may do: users, templates, settings. Made only by a credential lookup of a user whose row says
/// operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OperatorScope {
    user: UserId,
}

impl OperatorScope {
    // INVARIANT: called only where the row of `user` was just read with `operator = 1`.
    pub(crate) const fn new(user: UserId) -> Self {
        Self { user }
    }

    /// Which operator.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }
}

/// The server's own background work: adoption at start, leases, cleaning, the first operator. Made once, by
/// [`Store::open`](crate::Store::open), which lets one process at a time have the store. Never reachable from a
/// request.
#[derive(Debug)]
pub struct SystemScope(());

impl SystemScope {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}
