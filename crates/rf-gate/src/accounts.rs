//! Keys, sessions, enrolment tokens and machines: made and ended on a permit, shown once, never wider than their maker.

use ed25519_dalek::{Signature, VerifyingKey};
use rf_policy::{Action, Credential, Permit, Scope};
use rf_store::{
    Key, Machine, NewKey, NewMachine, NewSession, OperatorScope, Session, SessionMaker, StoreError, SystemScope,
    UserScope,
};
use rf_types::{Code, Fault, KeyId, MachineId, SessionId, UserId, Username, units::UnixMs};

use crate::{Authenticated, Denied, Gate, Secret, SecretKind, gate::scopes_text, secret::hash};

/// Longest life of an enrolment token, milliseconds: one day. Chosen: it is typed soon or not at all.
const ENROLMENT_MS_MAX: u64 = 86_400_000;

/// A machine that has just joined.
#[derive(Debug)]
pub struct Enrolled {
    /// Its user's rows.
    pub scope: UserScope,
    /// Its row.
    pub machine: Machine,
}

/// A machine that proved to have its key.
#[derive(Debug)]
pub struct MachineAuthenticated {
    /// Its user's rows.
    pub scope: UserScope,
    /// Which.
    pub machine: MachineId,
}

impl Gate {
    /// Makes an API key of the user's. The secret is shown now or never.
    ///
    /// `scopes` of `None` are the maker's own; others must be among them. `expires` of `None` is never.
    ///
    /// # Errors
    /// `forbidden` for a scope that the maker has not; `invalid_request` for an end in the past or a bad name;
    /// `limit_reached`.
    pub fn key_make(
        &self,
        permit: &Permit,
        who: &Authenticated,
        new: &KeyAsked<'_>,
        now: UnixMs,
    ) -> Result<(Key, Secret), Fault> {
        require(permit, Action::KeyManage, &who.scope)?;
        let scopes = narrowed(&who.principal.scopes, new.scopes)?;
        self.key_insert(&who.scope, new, &scopes, now)
    }

    /// Makes an API key for a user whom an operator has just made or looks after.
    ///
    /// # Errors
    /// As for [`Gate::key_make`]; `operate` is given only to a user whose row says operator.
    pub fn key_make_for(
        &self,
        permit: &Permit,
        operator: &OperatorScope,
        user: UserId,
        new: &KeyAsked<'_>,
        now: UnixMs,
    ) -> Result<(Key, Secret), Fault> {
        permit.require(Action::Operate)?;
        let scope = self.0.store.act_for(operator, user)?;
        let row = self.0.store.user_get(operator, user)?;
        let mut whole = Scope::USER.to_vec();
        if row.operator {
            whole.push(Scope::Operate);
        }
        let scopes = narrowed(&whole, new.scopes)?;
        self.key_insert(&scope, new, &scopes, now)
    }

    /// Makes the first user, an operator, and their first key, in an empty store.
    ///
    /// # Errors
    /// `conflict` when there is any user.
    pub fn bootstrap(
        &self,
        system: &SystemScope,
        name: &Username,
        now: UnixMs,
    ) -> Result<(UserScope, Key, Secret), Fault> {
        let (scope, _) = self.0.store.user_create_first(system, name, now)?;
        let scopes = [Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate];
        let new = KeyAsked { name: "first key", form: KeyForm::Ringfence, scopes: None, expires: None };
        let (key, secret) = self.key_insert(&scope, &new, &scopes, now)?;
        Ok((scope, key, secret))
    }

    fn key_insert(
        &self,
        scope: &UserScope,
        new: &KeyAsked<'_>,
        scopes: &[Scope],
        now: UnixMs,
    ) -> Result<(Key, Secret), Fault> {
        if new.expires.is_some_and(|expires| expires <= now) {
            return Err(Fault::invalid("`expires` is in the past"));
        }
        let secret = Secret::mint(match new.form {
            KeyForm::Ringfence => SecretKind::Key,
            KeyForm::E2b => SecretKind::KeyE2b,
        });
        let hash = hash(self.0.pepper.as_ref(), secret.reveal());
        let new = NewKey { name: new.name, hash, scopes: &scopes_text(scopes), expires: new.expires };
        Ok((self.0.store.key_insert(scope, &new, now)?, secret))
    }

    /// Revokes one of the user's keys at once; also the one in use.
    ///
    /// # Errors
    /// `not_found`.
    pub fn key_revoke(&self, permit: &Permit, who: &Authenticated, key: KeyId, now: UnixMs) -> Result<(), Fault> {
        require(permit, Action::KeyManage, &who.scope)?;
        Ok(self.0.store.key_revoke(&who.scope, key, now)?)
    }

    /// Begins a session. Its secret is shown now or never; its id is public. It ends with the key that it goes back to.
    ///
    /// # Errors
    /// `forbidden` for a scope that the maker has not; `invalid_request` for a life beyond the configured;
    /// `limit_reached`; `unauthenticated` when the key or session that begins it was ended meanwhile.
    pub fn session_begin(
        &self,
        permit: &Permit,
        who: &Authenticated,
        scopes: Option<&[Scope]>,
        ttl_ms: u64,
        now: UnixMs,
    ) -> Result<(Session, Secret), Fault> {
        require(permit, Action::SessionManage, &who.scope)?;
        let scopes = narrowed(&who.principal.scopes, scopes)?;
        let ttl_ms_max = self.0.config.session_ms_max;
        if !(1_000..=ttl_ms_max).contains(&ttl_ms) {
            return Err(Fault::invalid(format!("`ttl_ms` is {ttl_ms}, but must be 1000 to {ttl_ms_max}")));
        }
        let secret = Secret::mint(SecretKind::Session);
        let id = SessionId::new(who.scope.username(), now / 1_000);
        let new = NewSession {
            id: &id,
            hash: hash(self.0.pepper.as_ref(), secret.reveal()),
            scopes: &scopes_text(&scopes),
            // It outlives neither the key or token that it was begun with, nor that one's revocation.
            expires: now.saturating_add(ttl_ms).min(who.expires.unwrap_or(UnixMs::MAX)),
            maker: match &who.principal.credential {
                Credential::Key { id } => SessionMaker::Key(*id),
                Credential::Session { id } => SessionMaker::Session(id),
                Credential::Token { .. } | Credential::Sandbox { .. } | Credential::Visitor { .. } => {
                    SessionMaker::Other
                }
            },
        };
        let session = self.0.store.session_begin(&who.scope, &new, now)?.map_err(Denied::from)?;
        Ok((session, secret))
    }

    /// Ends one of the user's sessions at once; also the one in use.
    ///
    /// # Errors
    /// `not_found`.
    pub fn session_end(
        &self,
        permit: &Permit,
        who: &Authenticated,
        session: &SessionId,
        now: UnixMs,
    ) -> Result<(), Fault> {
        require(permit, Action::SessionManage, &who.scope)?;
        Ok(self.0.store.session_end(&who.scope, session, now)?)
    }

    /// Makes a token with which one machine of the user's can join, once.
    ///
    /// # Errors
    /// `invalid_request` for a life beyond one day; `limit_reached`.
    pub fn enrolment_token_make(
        &self,
        permit: &Permit,
        who: &Authenticated,
        ttl_ms: u64,
        now: UnixMs,
    ) -> Result<Secret, Fault> {
        require(permit, Action::MachineManage, &who.scope)?;
        if !(1_000..=ENROLMENT_MS_MAX).contains(&ttl_ms) {
            return Err(Fault::invalid(format!("`ttl_ms` is {ttl_ms}, but must be 1000 to {ENROLMENT_MS_MAX}")));
        }
        let secret = Secret::mint(SecretKind::Enrolment);
        let hash = hash(self.0.pepper.as_ref(), secret.reveal());
        self.0.store.enrolment_token_make(&who.scope, &hash, now.saturating_add(ttl_ms), now)?;
        Ok(secret)
    }

    /// Lets a machine join by an enrolment token, which is used up with it. The caller has seen the machine prove that
    /// it has the private half of the key: see [`Gate::machine_proves`].
    ///
    /// # Errors
    /// [`Denied`] with `unauthenticated` for a token that is not good; `conflict` when the key has joined already;
    /// `invalid_request`; `limit_reached`.
    pub fn machine_enrol(&self, token: &str, new: &NewMachine<'_>, now: UnixMs) -> Result<Enrolled, Denied> {
        if SecretKind::of(token) != Some(SecretKind::Enrolment) {
            return Err(Denied::credential("not an enrolment token"));
        }
        let enrolled = self.0.store.machine_enrol(&hash(self.0.pepper.as_ref(), token), new, now);
        match enrolled {
            Ok(Ok((scope, machine))) => Ok(Enrolled { scope, machine }),
            Ok(Err(refused)) => Err(refused.into()),
            Err(error @ (StoreError::Conflict { .. } | StoreError::TooMany { .. } | StoreError::Invalid { .. })) => {
                Err(Denied { fault: error.into(), reason: "the machine cannot join" })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whose machine this is, if `signature` is its key's over `message`. The message must hold a nonce that the
    /// caller has just made, the machine's id, and what it is for, so that it is good for nothing else and only once.
    ///
    /// # Errors
    /// [`Denied`] with `unauthenticated`, the same for a machine that is not known, was removed or has another key.
    pub fn authenticate_machine(
        &self,
        machine: MachineId,
        message: &[u8],
        signature: &[u8; 64],
    ) -> Result<MachineAuthenticated, Denied> {
        let scope = self.0.store.scope_by_machine(machine, |key| Self::machine_proves(key, message, signature))??;
        Ok(MachineAuthenticated { scope, machine })
    }

    /// Whether `signature` is that of the Ed25519 key over `message`; strict (RFC 8032 with the checks of ZIP 215's
    /// critics: no small-order keys, one form of each signature).
    #[must_use]
    pub fn machine_proves(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(public_key)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

/// In which form a key is made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum KeyForm {
    /// `rf_`.
    #[default]
    Ringfence,
    /// `e2b_`, for clients that insist on it.
    E2b,
}

/// A key to be made.
#[derive(Clone, Copy, Debug)]
pub struct KeyAsked<'a> {
    /// What the user calls it, 1 to 100 characters.
    pub name: &'a str,
    /// In which form.
    pub form: KeyForm,
    /// What it may be used for; `None` is all that its maker may.
    pub scopes: Option<&'a [Scope]>,
    /// When it ends by itself; `None` is never.
    pub expires: Option<UnixMs>,
}

/// A permit is for this action of this user.
fn require(permit: &Permit, action: Action, scope: &UserScope) -> Result<(), Fault> {
    permit.require(action)?;
    if permit.user() == scope.user() {
        Ok(())
    } else {
        Err(Fault::new(Code::Internal, "a permit of another user was used", ""))
    }
}

/// The scopes asked for, all of which the maker must have: a set only shrinks on its way.
///
/// # Errors
/// `forbidden` for the first that the maker has not; `invalid_request` for none at all.
pub(crate) fn narrowed(makers: &[Scope], asked: Option<&[Scope]>) -> Result<Vec<Scope>, Fault> {
    let Some(asked) = asked else {
        return Ok(makers.to_vec());
    };
    if asked.is_empty() {
        return Err(Fault::invalid("`scopes` must name at least one"));
    }
    match asked.iter().find(|scope| !makers.contains(scope)) {
        None => Ok(asked.to_vec()),
        Some(scope) => Err(Fault::new(
            Code::Forbidden,
            format!("this credential has not the scope `{}` and cannot give it", scope.name()),
            "ask for scopes that the credential in use has",
        )),
    }
}
