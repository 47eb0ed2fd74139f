//! The gate itself: from a credential to [`Authenticated`], from that to a permit.

use std::{net::IpAddr, sync::Arc};

use rf_policy::{Action, Asked, Credential, Permit, Principal, Question, Scope, UserUsage, judge};
use rf_store::{Known, OperatorScope, Proof, Refused, Store, StoreError, UserScope};
use rf_types::{Code, Fault, Preference, RequestId, SandboxId, UserId, UserLimits, units::UnixMs};

use crate::{
    GateConfig, Pepper, SecretKind,
    jwt::Tokens,
    rate::{Party, Rates},
    secret,
    seen::Seen,
};

/// How old the note of a key's last use may get, milliseconds. Chosen: a write every five minutes is nothing.
const KEY_USED_EVERY_MS: u64 = 300_000;
/// Most bytes of anything presented as a credential. Chosen: tokens with many groups are some 4 KiB.
pub(crate) const CREDENTIAL_BYTES_MAX: usize = 8 << 10;

/// A credential as it came.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// After `Authorization: Bearer `: a key, a session or a provider's token.
    Bearer(&'a str),
    /// In `X-API-Key`: a key.
    ApiKey(&'a str),
}

impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bearer(_) => "Bearer(..)",
            Self::ApiKey(_) => "ApiKey(..)",
        })
    }
}

/// Why somebody did not get in.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// What the client gets: the same for everything that is wrong with a credential.
    pub fault: Fault,
    /// What was wrong, for the log and the ledger. Holds nothing of the credential.
    pub reason: &'static str,
}

impl Denied {
    pub(crate) fn credential(reason: &'static str) -> Self {
        let fault = Fault::new(
            Code::Unauthenticated,
            "no valid credential",
            "send `Authorization: Bearer` with an API key, a session or a provider's token",
        );
        Self { fault, reason }
    }

    /// More of `what` than its rate.
    pub(crate) fn rate(what: &str, per_second: u32, wait_ms: u64, reason: &'static str) -> Self {
        let fault = Fault::new(
            Code::RateLimited,
            format!("more than {per_second} {what} a second"),
            format!("try again in {wait_ms} ms"),
        );
        Self { fault, reason }
    }
}

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        Self::credential(refused.reason())
    }
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the store failed while authenticating");
        Self { fault: error.into(), reason: "store unavailable" }
    }
}

impl From<Denied> for Fault {
    fn from(denied: Denied) -> Self {
        denied.fault
    }
}

/// Somebody whose credential is good. Made only by [`Gate::authenticate`] and [`Gate::act_for`].
///
/// The gate makes permits for them and for nobody else; a user's name or id is not enough:
/// ```
/// # use rf_gate::{Authenticated, Gate};
/// # use rf_policy::{Action, Asked, Permit};
/// # use rf_types::{Fault, RequestId};
/// fn ask(gate: &Gate, who: &Authenticated) -> Result<Permit, Fault> {
///     gate.permit(who, Action::FileRead, RequestId::random(), Asked::Nothing, 0)
/// }
/// ```
/// ```compile_fail,E0308
/// # use rf_gate::{Authenticated, Gate};
/// # use rf_policy::{Action, Asked, Permit};
/// # use rf_types::{Fault, RequestId};
/// fn ask(gate: &Gate, who: &rf_types::UserId) -> Result<Permit, Fault> {
///     gate.permit(who, Action::FileRead, RequestId::random(), Asked::Nothing, 0)
/// }
/// ```
/// Everybody may see whom it says, and nobody make it say another:
/// ```
/// # use rf_gate::Authenticated;
/// fn same(who: Authenticated) -> (rf_policy::Principal, Authenticated) {
///     (who.principal().clone(), who)
/// }
/// ```
/// ```compile_fail,E0451
/// # use rf_gate::Authenticated;
/// fn other(who: Authenticated, principal: rf_policy::Principal) -> Authenticated {
///     Authenticated { principal, ..who }
/// }
/// ```
/// ```compile_fail,E0616
/// # use rf_gate::Authenticated;
/// fn other(mut who: Authenticated, principal: rf_policy::Principal) -> Authenticated {
///     who.principal = principal;
///     who
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Authenticated {
    pub(crate) principal: Principal,
    pub(crate) scope: UserScope,
    pub(crate) operator: Option<OperatorScope>,
    pub(crate) limits: UserLimits,
    pub(crate) preference: Preference,
    /// When the credential ends by itself.
    pub(crate) expires: Option<UnixMs>,
    /// What the store had counted before all this was read; none where more than a credential's row says that it stands.
    pub(crate) changes: Option<u64>,
    /// Set when an operator acts for this user: the operator's own rows, and proof that they are one.
    pub(crate) acting: Option<(UserScope, OperatorScope)>,
}

impl Authenticated {
    /// Who asks, for the judge and the ledger.
    #[must_use]
    pub const fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The user's rows.
    #[must_use]
    pub const fn scope(&self) -> &UserScope {
        &self.scope
    }

    /// Present for an operator whose credential has the scope `operate` and who acts for nobody.
    #[must_use]
    pub const fn operator(&self) -> Option<&OperatorScope> {
        self.operator.as_ref()
    }

    /// What the user might have when they authenticated.
    #[must_use]
    pub const fn limits(&self) -> &UserLimits {
        &self.limits
    }

    /// Where the user wanted operations to run when they authenticated.
    #[must_use]
    pub const fn preference(&self) -> Preference {
        self.preference
    }

    /// The operator who acts for this user, if one does; for the ledger.
    #[must_use]
    pub fn acted_by(&self) -> Option<&UserScope> {
        self.acting.as_ref().map(|(scope, _)| scope)
    }
}

/// What [`Gate::act_for`] has the caller record before anything else.
#[derive(Clone, Copy, Debug)]
pub struct ActFor<'a> {
    /// The operator.
    pub operator: &'a UserScope,
    /// For whom.
    pub user: &'a UserScope,
    /// In which request.
    pub request: RequestId,
}

/// Why a gate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GateError(pub(crate) String);

/// The gate. Clones are handles on the same one.
#[derive(Clone)]
pub struct Gate(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) config: GateConfig,
    pub(crate) pepper: Option<Pepper>,
    tokens: Tokens,
    requests: Rates<UserId>,
    /// Requests of visitors, for each sandbox: they use up nothing of its user's own rate.
    pub(crate) visits: Rates<SandboxId>,
    pub(crate) failures: Rates<Party>,
    seen: Seen,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// A gate in front of `store`.
    ///
    /// # Errors
    /// When a value of the configuration cannot be, or the pepper or a file of keys cannot be read.
    pub fn new(store: Store, config: GateConfig) -> Result<Self, GateError> {
        config.validate().map_err(GateError)?;
        let pepper = config.pepper_file.as_deref().map(Pepper::from_file).transpose().map_err(GateError)?;
        let tokens = Tokens::new(&config.issuers).map_err(GateError)?;
        Ok(Self(Arc::new(Inner {
            store,
            pepper,
            tokens,
            requests: Rates::new(config.requests),
            visits: Rates::new(config.requests),
            failures: Rates::new(config.failures),
            seen: Seen::default(),
            config,
        })))
    }

    /// Finds out who asks. Keys and sessions are told from tokens by their form, and never wait for anything but the
    /// store; a token may wait for its provider's keys.
    ///
    /// Failures are counted by `peer`. A peer with too many gets `rate_limited` for every further failure and for
    /// every token before its signature is checked, which is what costs. A good key or session still works, because
    /// many users may sit behind one address, and 160 random bits are not guessed however often one may try.
    ///
    /// # Errors
    /// [`Denied`] with `unauthenticated`, the same for every reason; `rate_limited`; `store_unavailable`.
    pub async fn authenticate(
        &self,
        presented: Presented<'_>,
        peer: Option<IpAddr>,
        now: UnixMs,
    ) -> Result<Authenticated, Denied> {
        let peer = peer.map(Party::of);
        let found = match presented {
            Presented::Bearer(text) | Presented::ApiKey(text) if text.len() > CREDENTIAL_BYTES_MAX => {
                Err(Denied::credential("oversized credential"))
            }
            Presented::Bearer(text) | Presented::ApiKey(text) => match (SecretKind::of(text), presented) {
                (Some(SecretKind::Key | SecretKind::KeyE2b), _) => self.by_key(text, now),
                (Some(SecretKind::Session), Presented::Bearer(_)) => self.by_session(text, now),
                (None, Presented::Bearer(_)) if text.bytes().filter(|b| *b == b'.').count() == 2 => {
                    if let Some(wait_ms) = peer.and_then(|peer| self.0.failures.has(peer, now).err()) {
                        return Err(self.too_many_failures(wait_ms));
                    }
                    self.by_token(text, now).await
                }
                _ => Err(Denied::credential("a form of no credential")),
            },
        };
        match found {
            Ok(who) => {
                self.rate(&who, now)?;
                Ok(who)
            }
            Err(denied) if denied.fault.code == Code::Unauthenticated => {
                match peer.map(|peer| self.0.failures.take(peer, now)) {
                    Some(Err(wait_ms)) => Err(self.too_many_failures(wait_ms)),
                    Some(Ok(())) | None => Err(denied),
                }
            }
            Err(denied) => Err(denied),
        }
    }

    /// Counts one more request of the user's. [`Gate::authenticate`] does so itself; a door whose connection carries
    /// many requests does it for each.
    ///
    /// # Errors
    /// `rate_limited`, with how long to wait.
    pub fn rate(&self, who: &Authenticated, now: UnixMs) -> Result<(), Denied> {
        // An operator's work for a user is the operator's.
        let payer = who.acted_by().unwrap_or(&who.scope).user();
        self.0.requests.take(payer, now).map_err(|wait_ms| {
            Denied::rate("requests", self.0.config.requests.per_second, wait_ms, "too many requests")
        })
    }

    pub(crate) fn too_many_failures(&self, wait_ms: u64) -> Denied {
        let what = "wrong credentials from your address";
        Denied::rate(what, self.0.config.failures.per_second, wait_ms, "too many failed credentials from this peer")
    }

    fn by_key(&self, text: &str, now: UnixMs) -> Result<Authenticated, Denied> {
        let hash = secret::hash(self.0.pepper.as_ref(), text);
        let changes = self.0.store.changes();
        if let Some(who) = self.0.seen.get(&hash, changes, now) {
            return Ok(who);
        }
        let known = self.0.store.scope_by_key(&hash, now)??;
        let noted_until = known.last_used.map_or(0, |used| used.saturating_add(KEY_USED_EVERY_MS));
        if noted_until <= now
            && let Err(error) = self.0.store.key_used(&known.scope, known.id, now)
        {
            // Only a note for people; a full disk must not lock out whoever comes to make room.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot note a key's use");
        }
        let scopes = scopes_from(&known.scopes)?;
        let credential = Credential::Key { id: known.id };
        let who = Authenticated { changes: Some(changes), ..authenticated(known, credential, scopes) };
        if noted_until > now {
            self.0.seen.put(hash, changes, &who, noted_until);
        }
        Ok(who)
    }

    fn by_session(&self, text: &str, now: UnixMs) -> Result<Authenticated, Denied> {
        let changes = self.0.store.changes();
        let known = self.0.store.scope_by_session(&secret::hash(self.0.pepper.as_ref(), text), now)??;
        let scopes = scopes_from(&known.scopes)?;
        let credential = Credential::Session { id: known.id.clone() };
        Ok(Authenticated { changes: Some(changes), ..authenticated(known, credential, scopes) })
    }

    async fn by_token(&self, text: &str, now: UnixMs) -> Result<Authenticated, Denied> {
        let token = self.0.tokens.verify(text, now).await.map_err(Denied::credential)?;
        let store = &self.0.store;
        let mut known = if token.create_user {
            let limits = &self.0.config.new_user_limits;
            store.scope_by_subject_or_create(&token.issuer, &token.subject, &token.names, limits, now)??
        } else {
            store.scope_by_subject(&token.issuer, &token.subject, now)??
        };
        known.expires = Some(token.expires);
        Ok(authenticated(known, Credential::Token { issuer: token.issuer }, token.scopes))
    }

    /// Judges one action by what stands at this moment: the credential, the user and their limits.
    ///
    /// What is counted (a sandbox, an exec, a snapshot) is judged by [`Gate::permit_with`] within a claim of the places,
    /// which leaves no moment between the judgement and the count.
    ///
    /// # Errors
    /// `forbidden`, `limit_reached`, `invalid_request` of [`judge`]; `unauthenticated` when the credential no longer
    /// stands; `store_unavailable`; `internal` for what is counted.
    pub fn permit(
        &self,
        who: &Authenticated,
        action: Action,
        request: RequestId,
        asked: Asked<'_>,
        now: UnixMs,
    ) -> Result<Permit, Fault> {
        match asked {
            Asked::Nothing | Asked::Lease { .. } => {
                self.permit_with(who, action, request, asked, &UserUsage::default(), now)
            }
            // With no count every limit of a sum would hold.
            Asked::Sandbox(_) | Asked::Exec { .. } | Asked::Snapshot { .. } => {
                Err(Fault::new(Code::Internal, "what is counted was judged without its count", ""))
            }
        }
    }

    /// As [`Gate::permit`], also for what is counted, with what the user has as the caller counts it: the caller judges
    /// and counts in one step.
    ///
    /// # Errors
    /// As for [`Gate::permit`].
    pub fn permit_with(
        &self,
        who: &Authenticated,
        action: Action,
        request: RequestId,
        asked: Asked<'_>,
        usage: &UserUsage,
        now: UnixMs,
    ) -> Result<Permit, Fault> {
        let limits = self.standing(who, now)?;
        judge(&Question { principal: &who.principal, action, request, limits: &limits, usage, asked })
    }

    /// Lets an operator act for a user, once `record` has it on the record. What comes of it is the user's, with at
    /// most an ordinary user's scopes, and says in [`Authenticated::acted_by`] whose doing it is.
    ///
    /// # Errors
    /// `forbidden` without the scope `operate` or when the row no longer says operator; `not_found`; what `record`
    /// says, and then nobody acts.
    pub fn act_for(
        &self,
        who: &Authenticated,
        user: UserId,
        request: RequestId,
        now: UnixMs,
        record: impl FnOnce(&ActFor<'_>) -> Result<(), Fault>,
    ) -> Result<Authenticated, Fault> {
        // A permit is made and not handed on: it is for this and nothing else.
        let permit = self.permit(who, Action::Operate, request, Asked::Nothing, now)?;
        permit.require(Action::Operate)?;
        let Some(operator) = &who.operator else {
            return Err(not_operator());
        };
        let scope = self.0.store.act_for(operator, user)?;
        let row = self.0.store.user_get(operator, user)?;
        record(&ActFor { operator: &who.scope, user: &scope, request })?;
        let scopes = who.principal.scopes.iter().copied().filter(|scope| *scope != Scope::Operate);
        Ok(Authenticated {
            principal: Principal {
                user: scope.user(),
                username: scope.username().clone(),
                credential: who.principal.credential.clone(),
                scopes: scopes.collect(),
            },
            scope,
            operator: None,
            limits: row.limits,
            preference: row.preference,
            expires: who.expires,
            changes: None,
            acting: Some((who.scope.clone(), operator.clone())),
        })
    }

    /// Whether the credential still stands, read anew: for what goes on after its request was judged, such as a stream.
    ///
    /// # Errors
    /// `unauthenticated` or `forbidden` when it does not; `store_unavailable` when that cannot be told.
    pub fn still_stands(&self, who: &Authenticated, now: UnixMs) -> Result<(), Fault> {
        self.standing(who, now).map(drop)
    }

    /// Reads anew whether the credential still stands, and what the user may have.
    fn standing(&self, who: &Authenticated, now: UnixMs) -> Result<UserLimits, Fault> {
        // A provider's token has no row: its end is all there is to it.
        if who.expires.is_some_and(|expires| expires <= now) {
            return Err(Denied::credential("expired credential").fault);
        }
        // Nothing was written since to what it was read from: reading it again would say the same.
        if who.changes.is_some_and(|changes| changes == self.0.store.changes()) {
            return Ok(who.limits);
        }
        let proof = match &who.principal.credential {
            Credential::Key { id } => Proof::Key(*id),
            Credential::Session { id } => Proof::Session(id),
            Credential::Token { .. } => Proof::Token,
            Credential::Sandbox { id } => Proof::Sandbox(*id),
            Credential::Visitor { sandbox } => Proof::Sandbox(*sandbox),
        };
        // The credential is the operator's where one acts for a user.
        let holder = who.acted_by().unwrap_or(&who.scope);
        let holds = self.0.store.standing(holder, proof, now).map_err(|error| Denied::from(error).fault)?;
        let standing = holds.map_err(|refused| Denied::from(refused).fault)?;
        if who.principal.scopes.contains(&Scope::Operate) && !standing.operator {
            return Err(not_operator());
        }
        match &who.acting {
            None => Ok(standing.limits),
            Some(_) if !standing.operator => Err(not_operator()),
            Some((_, operator)) => Ok(self.0.store.standing_acted_for(operator, &who.scope)?.limits),
        }
    }
}

fn not_operator() -> Fault {
    Fault::new(Code::Forbidden, "this is for operators only", "use an operator's credential with the scope `operate`")
}

pub(crate) fn authenticated<I>(known: Known<I>, credential: Credential, mut scopes: Vec<Scope>) -> Authenticated {
    // A credential gives nothing that its user has not: `operate` needs the row as well, and the row needs the scope.
    if known.operator.is_none() {
        scopes.retain(|scope| *scope != Scope::Operate);
    }
    let operator = known.operator.filter(|_| scopes.contains(&Scope::Operate));
    Authenticated {
        principal: Principal { user: known.scope.user(), username: known.scope.username().clone(), credential, scopes },
        scope: known.scope,
        operator,
        limits: known.limits,
        preference: known.preference,
        expires: known.expires,
        changes: None,
        acting: None,
    }
}

/// Every scope, in the order in which they are written.
const SCOPES: [Scope; 5] = [Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate];

/// A set of scopes as it is stored: their names, in order, each once.
pub(crate) fn scopes_text(scopes: &[Scope]) -> String {
    let names: Vec<_> = SCOPES.iter().filter(|scope| scopes.contains(scope)).map(|scope| scope.name()).collect();
    names.join(" ")
}

/// The other way; a name that is not known refuses the whole credential rather than be left out.
fn scopes_from(text: &str) -> Result<Vec<Scope>, Denied> {
    let known = |name: &str| SCOPES.into_iter().find(|scope| scope.name() == name);
    let scopes: Option<Vec<_>> = text.split_ascii_whitespace().map(known).collect();
    scopes.ok_or_else(|| Denied::credential("a scope that this version does not know"))
}
