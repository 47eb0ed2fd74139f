//! Permits for tests, from the one maker there is.

use rf_policy::{Action, Asked, Credential, Permit, Principal, Question, Scope, UserUsage, judge};
use rf_types::{KeyId, RequestId, UserId, UserLimits};

/// A permit of `user` for `action`, with every scope and an empty account.
///
/// # Panics
/// Never: the judge has no reason to refuse.
pub fn permit(user: UserId, action: Action) -> Permit {
    let principal = Principal {
        user,
        username: "ann".parse().expect("a username"),
        credential: Credential::Key { id: KeyId::from_bits(1) },
        scopes: vec![Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate],
    };
    judge(&Question {
        principal: &principal,
        action,
        request: RequestId::random(),
        limits: &UserLimits::STANDARD,
        usage: &UserUsage::default(),
        asked: Asked::Nothing,
    })
    .expect("every scope is there")
}
