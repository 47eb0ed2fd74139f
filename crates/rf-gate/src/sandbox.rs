//! Traffic that is for one sandbox: its own token is a credential for that sandbox alone, and a visitor has none.
//!
//! Who the user is comes from the sandbox's row, which names its owner; what the caller has proved decides how much of
//! the owner's they may do. The token itself is the door's to check: the gate takes its word as it takes a verified
//! signature's, and counts who is wrong.

use std::net::IpAddr;

use rf_policy::{Credential, Scope};
use rf_store::{Known, Refused};
use rf_types::{SandboxId, UserId, units::UnixMs};

use crate::{Authenticated, Denied, Gate, gate::authenticated, rate::Party};

/// Whose sandbox a request is for. Proves nothing of who asks.
#[derive(Clone, Debug)]
pub struct SandboxOwner(Known<SandboxId>);

impl SandboxOwner {
    /// The user.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.0.scope.user()
    }

    /// The sandbox.
    #[must_use]
    pub const fn sandbox(&self) -> SandboxId {
        self.0.id
    }
}

impl Gate {
    /// Whose sandbox this is; nothing for one that never was, has ended, or whose user is disabled, all alike.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn sandbox_owner(&self, sandbox: SandboxId, now: UnixMs) -> Result<Option<SandboxOwner>, Denied> {
        match self.0.store.scope_by_sandbox(sandbox, now)? {
            Ok(known) => Ok(Some(SandboxOwner(known))),
            Err(Refused::Unknown | Refused::Revoked | Refused::Expired | Refused::UserDisabled) => Ok(None),
        }
    }

    /// The holder of a sandbox's own token, if `proven` says that they showed it. What comes of it is the owner's, and
    /// good for commands, files and ports inside that one sandbox; see [`Credential::covers`].
    ///
    /// # Errors
    /// [`Denied`] with `unauthenticated`, counted against the peer; `rate_limited`.
    pub fn authenticate_sandbox(
        &self,
        owner: SandboxOwner,
        proven: bool,
        peer: Option<IpAddr>,
        now: UnixMs,
    ) -> Result<Authenticated, Denied> {
        if !proven {
            return Err(self.sandbox_refused("wrong or missing token of a sandbox", peer, now));
        }
        let id = owner.sandbox();
        let who = authenticated(owner.0, Credential::Sandbox { id }, vec![Scope::Read, Scope::Run]);
        self.rate(&who, now)?;
        Ok(who)
    }

    /// A visitor of a port that the sandbox's user lets everybody reach. What they do is the owner's, and is good for
    /// that sandbox's ports and nothing else. Counted against a rate of the sandbox's own, so that visitors cannot use
    /// up what the owner may ask.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn visitor(&self, owner: SandboxOwner, now: UnixMs) -> Result<Authenticated, Denied> {
        let sandbox = owner.sandbox();
        let rate = self.0.config.requests;
        (self.0.visits.take(sandbox, now))
            .map_err(|wait_ms| Denied::rate("requests", rate.per_second, wait_ms, "too many visits of a sandbox"))?;
        Ok(authenticated(owner.0, Credential::Visitor { sandbox }, vec![Scope::Run]))
    }

    /// What a peer is answered that showed a wrong token of a sandbox, or a link that no sandbox signed.
    #[must_use]
    pub fn sandbox_refused(&self, reason: &'static str, peer: Option<IpAddr>, now: UnixMs) -> Denied {
        match peer.map(|peer| self.0.failures.take(Party::of(peer), now)) {
            Some(Err(wait_ms)) => self.too_many_failures(wait_ms),
            Some(Ok(())) | None => Denied::credential(reason),
        }
    }

    /// Counts a failure of a peer's that was answered elsewhere.
    pub fn failed(&self, peer: Option<IpAddr>, now: UnixMs) {
        if let Some(peer) = peer {
            // Past the rate nothing more is counted; who asks first is told so.
            let _ = self.0.failures.take(Party::of(peer), now);
        }
    }

    /// Whether a peer has failures left, before something is tried for it that costs.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn failures_left(&self, peer: Option<IpAddr>, now: UnixMs) -> Result<(), Denied> {
        match peer.map(|peer| self.0.failures.has(Party::of(peer), now)) {
            Some(Err(wait_ms)) => Err(self.too_many_failures(wait_ms)),
            Some(Ok(())) | None => Ok(()),
        }
    }
}
