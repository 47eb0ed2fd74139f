//! How the gate is set up. Unknown keys are refused; [`GateConfig::validate`] runs once, at start.

use std::{collections::BTreeMap, path::PathBuf};

use rf_policy::Scope;
use rf_types::{UserLimits, units::UnixMs};
use serde::{Deserialize, Serialize};

use crate::Rate;

/// The gate's part of the server's configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Requests of one user; 10,000 a second and 20,000 at once unless set: some times what this server answers one
    /// client on a small machine, so that only a runaway meets it.
    pub requests: Rate,
    /// Failed credentials of one peer's address; 10 a second and 100 at once unless set.
    pub failures: Rate,
    /// A file of 32 random bytes or more under which credentials are hashed. Chosen before the first key is made.
    pub pepper_file: Option<PathBuf>,
    /// Providers whose tokens are taken; none unless set.
    pub issuers: Vec<IssuerConfig>,
    /// Longest life of a session, milliseconds; 30 days unless set.
    pub session_ms_max: UnixMs,
    /// What a user may have whom a provider's token made.
    pub new_user_limits: UserLimits,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            requests: Rate { per_second: 10_000, burst: 20_000 },
            failures: Rate { per_second: 10, burst: 100 },
            pepper_file: None,
            issuers: Vec::new(),
            session_ms_max: 30 * 86_400_000,
            new_user_limits: UserLimits::STANDARD,
        }
    }
}

impl GateConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first that cannot be, in words.
    pub fn validate(&self) -> Result<(), String> {
        self.requests.validate("requests")?;
        self.failures.validate("failures")?;
        if !(1_000..=366 * 86_400_000).contains(&self.session_ms_max) {
            return Err("`session_ms_max` must be 1 s to 366 days".to_owned());
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            issuer.validate()?;
            if self.issuers[..index].iter().any(|other| other.issuer == issuer.issuer) {
                return Err(format!("the issuer `{}` is there twice", issuer.issuer));
            }
        }
        Ok(())
    }
}

/// One OIDC provider.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Its name, exactly as in the tokens' `iss`.
    pub issuer: String,
    /// Audiences of which a token must name one; at least one.
    pub audiences: Vec<String>,
    /// Where its public keys are.
    pub jwks: JwksSource,
    /// Signatures that are taken; `RS256`, `ES256` and `EdDSA` unless set.
    #[serde(default = "algorithms_default")]
    pub algorithms: Vec<SignatureAlgorithm>,
    /// The claim that a new user's name is made from; `preferred_username` unless set. Who somebody *is* is always
    /// `sub`.
    #[serde(default = "username_claim_default")]
    pub username_claim: String,
    /// What a token may be used for; the scopes of an ordinary user unless set. `operate` works only for a user whose
    /// row says operator.
    #[serde(default = "scopes_default")]
    pub scopes: Vec<Scope>,
    /// If set, a token has only those of `scopes` that its claim gives it.
    #[serde(default)]
    pub scopes_by_claim: Option<ScopesByClaim>,
    /// Whether a subject that is not known yet becomes a user.
    pub create_users: bool,
    /// How far clocks may be apart, seconds, 0 to 300; 30 unless set.
    #[serde(default = "leeway_default")]
    pub leeway_s: u64,
    /// How soon after a fetch of keys an unknown key may cause another, seconds, 1 to 3,600; 10 unless set.
    #[serde(default = "refetch_default")]
    pub refetch_after_s: u64,
    /// How long fetched keys are taken before they are fetched again, seconds, 60 to 86,400; 3,600 unless set. If that
    /// fails the old ones stay.
    #[serde(default = "refresh_default")]
    pub refresh_after_s: u64,
}

fn algorithms_default() -> Vec<SignatureAlgorithm> {
    vec![SignatureAlgorithm::RS256, SignatureAlgorithm::ES256, SignatureAlgorithm::EdDSA]
}

fn username_claim_default() -> String {
    "preferred_username".to_owned()
}

fn scopes_default() -> Vec<Scope> {
    Scope::USER.to_vec()
}

const fn leeway_default() -> u64 {
    30
}

const fn refetch_default() -> u64 {
    10
}

const fn refresh_default() -> u64 {
    3_600
}

impl IssuerConfig {
    fn validate(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("issuer `{}`: {what}", self.issuer));
        if self.issuer.is_empty() || self.issuer.len() > 1_024 {
            return Err("an issuer's name must be 1 to 1024 bytes".to_owned());
        }
        // Without an audience a token that was made for any other program of the same provider would be taken.
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return wrong("`audiences` must name at least one, and none may be empty");
        }
        if self.algorithms.is_empty() {
            return wrong("`algorithms` must name at least one");
        }
        if self.username_claim.is_empty() {
            return wrong("`username_claim` must not be empty");
        }
        if self.leeway_s > 300 {
            return wrong("`leeway_s` must be 0 to 300");
        }
        if !(1..=3_600).contains(&self.refetch_after_s) {
            return wrong("`refetch_after_s` must be 1 to 3600");
        }
        if !(60..=86_400).contains(&self.refresh_after_s) {
            return wrong("`refresh_after_s` must be 60 to 86400");
        }
        if let JwksSource::Url(url) = &self.jwks {
            crate::jwks::check_url(url).map(drop).or_else(|error| wrong(&error))?;
        }
        Ok(())
    }
}

/// Where a provider's public keys are.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwksSource {
    /// A JWK set over HTTPS, or HTTP on a loopback address.
    Url(String),
    /// A JWK set in a file, read again like a URL.
    File(PathBuf),
    /// The JWK set itself, as JSON.
    Inline(String),
}

/// A signature that may be taken. Only asymmetric ones: `none` and the HMACs are not in here, so that no configuration
/// can allow them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names of RFC 7518 section 3.1 and RFC 8037 section 3.1")]
pub enum SignatureAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Scopes by the values of a claim, which is a string of words or an array of strings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScopesByClaim {
    /// The claim, such as `scope`, `roles` or `groups`.
    pub claim: String,
    /// What each of its values gives.
    pub values: BTreeMap<String, Vec<Scope>>,
}
