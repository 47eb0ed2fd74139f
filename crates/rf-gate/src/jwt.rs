//! Tokens of OIDC providers: JWTs (RFC 7519) in compact form, checked as RFC 8725 says.
//!
//! In this order, and the first that fails ends it: size; form; header (an asymmetric algorithm that the issuer's
//! configuration names, no `crit`, `typ` of a token); issuer, as the token claims it, only to find whose keys to use;
//! the key, by `kid` among that issuer's own, of the algorithm's kind; the signature; and only then what the token
//! says: audience, times, subject. Keys that a token brings along (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rf_policy::Scope;
use rf_types::{Username, units::UnixMs};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Number, Value};

use crate::{IssuerConfig, SignatureAlgorithm, gate::CREDENTIAL_BYTES_MAX, jwks::Keys};

/// Longest subject, bytes. OIDC core section 2 has 255; some providers go beyond.
const SUBJECT_BYTES_MAX: usize = 512;

/// The configured providers.
pub(crate) struct Tokens(HashMap<String, Issuer>);

struct Issuer {
    config: IssuerConfig,
    keys: Arc<Keys>,
}

/// What a good token says.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    /// Names for a new user, the best first.
    pub(crate) names: Vec<Username>,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) expires: UnixMs,
    pub(crate) create_user: bool,
}

/// RFC 7515 section 4.1. A member that is there twice is refused by the derived reader.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    cty: Option<IgnoredAny>,
    crit: Option<IgnoredAny>,
    // RFC 7797; has a meaning only beside `crit`, and none that we take.
    b64: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: Option<String>,
    aud: Option<Audience>,
    exp: Option<Number>,
    nbf: Option<Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Tokens {
    pub(crate) fn new(configs: &[IssuerConfig]) -> Result<Self, String> {
        let issuer = |config: &IssuerConfig| {
            let keys = Keys::new(&config.jwks, config.refetch_after_s, config.refresh_after_s)
                .map_err(|error| format!("issuer `{}`: {error}", config.issuer))?;
            Ok((config.issuer.clone(), Issuer { config: config.clone(), keys: Arc::new(keys) }))
        };
        configs.iter().map(issuer).collect::<Result<_, _>>().map(Self)
    }

    /// Checks a token.
    ///
    /// # Errors
    /// What is wrong with it, for the log and the ledger.
    pub(crate) async fn verify(&self, token: &str, now: UnixMs) -> Result<Verified, &'static str> {
        if token.len() > CREDENTIAL_BYTES_MAX {
            return Err("oversized token");
        }
        let (message, signature) = token.rsplit_once('.').ok_or("malformed token")?;
        let (header, payload) = message.split_once('.').ok_or("malformed token")?;
        let header: Header = part(header).ok_or("malformed token header")?;
        let algorithm = SignatureAlgorithm::named(&header.alg).ok_or("token with an algorithm that is never taken")?;
        if header.crit.is_some() || header.b64.is_some() {
            return Err("token with a critical header");
        }
        if header.cty.is_some() || !header.typ.as_deref().is_none_or(is_token_type) {
            return Err("token of another type");
        }
        let claims: Claims = part(payload).ok_or("malformed token claims")?;
        let issuer = self.0.get(&claims.iss).ok_or("token of an unknown issuer")?;
        if !issuer.config.algorithms.contains(&algorithm) {
            return Err("token with an algorithm that its issuer does not use");
        }
        issuer
            .keys
            .with(header.kid.as_deref(), algorithm, now, |key| {
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.decoding, algorithm.algorithm())
                    .unwrap_or(false)
            })
            .await
            .ok_or("token with an unknown key")?
            .then_some(())
            .ok_or("token with a wrong signature")?;
        let all: Map<String, Value> = part(payload).ok_or("malformed token claims")?;
        issuer.config.judge(claims, &all, now)
    }
}

impl IssuerConfig {
    /// Judges what a token with a good signature says.
    fn judge(&self, claims: Claims, all: &Map<String, Value>, now: UnixMs) -> Result<Verified, &'static str> {
        let ours = |audience: &String| self.audiences.contains(audience);
        let for_us = match &claims.aud {
            None => return Err("token without an audience"),
            Some(Audience::One(audience)) => ours(audience),
            Some(Audience::Many(audiences)) => audiences.iter().any(ours),
        };
        if !for_us {
            return Err("token for another audience");
        }
        let leeway_ms = self.leeway_s * 1_000;
        let expires = millis(&claims.exp.ok_or("token without an end")?).ok_or("malformed token end")?;
        let expires = expires.saturating_add(leeway_ms);
        if expires <= now {
            return Err("expired token");
        }
        if let Some(from) = claims.nbf {
            let from = millis(&from).ok_or("malformed token beginning")?;
            if from > now.saturating_add(leeway_ms) {
                return Err("token that is not valid yet");
            }
        }
        let subject = claims.sub.filter(|subject| (1..=SUBJECT_BYTES_MAX).contains(&subject.len()));
        let subject = subject.ok_or("token without a subject")?;
        Ok(Verified {
            names: self.names(&subject, all),
            scopes: self.scopes_of(all),
            issuer: claims.iss,
            subject,
            expires,
            create_user: self.create_users,
        })
    }

    /// Names for a new user: what the claim says, the same with a mark, the mark alone. The mark is of issuer and
    /// subject, so that a name in use is never taken for its holder.
    fn names(&self, subject: &str, all: &Map<String, Value>) -> Vec<Username> {
        let mut hasher = blake3::Hasher::new_derive_key("ringfence 2026 username mark v1");
        // The length between them keeps `ab` + `c` and `a` + `bc` apart.
        hasher.update(&(self.issuer.len() as u64).to_le_bytes());
        hasher.update(self.issuer.as_bytes()).update(subject.as_bytes());
        let mark = &hasher.finalize().to_hex()[..16];
        let claimed = all.get(&self.username_claim).and_then(Value::as_str).map(str::to_ascii_lowercase);
        let marked = claimed.as_ref().map(|name| format!("{name}-{mark}"));
        let names = [claimed, marked, Some(format!("u-{mark}"))];
        names.into_iter().flatten().filter_map(|name| name.parse().ok()).collect()
    }

    /// The configured scopes, of which a claim may leave only some.
    fn scopes_of(&self, all: &Map<String, Value>) -> Vec<Scope> {
        let Some(by) = &self.scopes_by_claim else {
            return self.scopes.clone();
        };
        let values: Vec<&str> = match all.get(&by.claim) {
            Some(Value::String(words)) => words.split_ascii_whitespace().collect(),
            Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
            Some(_) | None => Vec::new(),
        };
        let given = |scope: &Scope| {
            values.iter().any(|value| by.values.get(*value).is_some_and(|scopes| scopes.contains(scope)))
        };
        self.scopes.iter().copied().filter(given).collect()
    }
}

/// One part of a token: base64 without padding, then JSON.
fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether a header's `typ` is that of a token for us: RFC 7519 section 5.1, RFC 9068 section 2.1. An ID token says
/// `JWT`, a logout token or a proof of possession says something else, and is no credential.
fn is_token_type(typ: &str) -> bool {
    let lower = typ.to_ascii_lowercase();
    matches!(lower.strip_prefix("application/").unwrap_or(&lower), "jwt" | "at+jwt")
}

/// A NumericDate, which may have a fraction, in milliseconds.
fn millis(seconds: &Number) -> Option<UnixMs> {
    if let Some(seconds) = seconds.as_u64() {
        return Some(seconds.saturating_mul(1_000));
    }
    // Negative and not finite are refused; beyond 2^53 ms a cast saturates, which is as good as never.
    seconds.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0).map(|seconds| (seconds * 1_000.0) as u64)
}
