//! A provider's public keys: where they come from, which of them are taken, and when they are fetched again.
//!
//! Old keys stay until a fetch brings new ones: a provider that is away locks nobody out. A key that is not known
//! causes a fetch, so that keys rotate without a restart, but not sooner after the last one than configured, so that
//! made-up keys cause no storm. One fetch runs at a time, and whoever needs its outcome waits for that one.

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{Client, Url};
use rf_types::units::UnixMs;
use serde::{Deserialize, de::IgnoredAny};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{JwksSource, SignatureAlgorithm};

/// Most bytes of a JWK set. Chosen: the largest in use are some 20 KiB.
const SET_BYTES_MAX: usize = 256 << 10;
/// Most keys of a set. Chosen.
const KEYS_MAX: usize = 64;
/// How long a fetch may take in all. Chosen: somebody waits for it.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// Bits of an RSA modulus. The least is that of RFC 7518 section 3.3; the most is the verifier's, and bounds what a
/// check costs.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// One public key for signatures.
pub(crate) struct Key {
    kid: Option<String>,
    kind: KeyKind,
    /// The only algorithm it is for, when the set says so.
    only: Option<SignatureAlgorithm>,
    pub(crate) decoding: DecodingKey,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl SignatureAlgorithm {
    /// By its name in a header. `none` and the HMACs have no name here.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "EdDSA" => Self::EdDSA,
            _ => return None,
        })
    }

    pub(crate) const fn algorithm(self) -> Algorithm {
        match self {
            Self::RS256 => Algorithm::RS256,
            Self::RS384 => Algorithm::RS384,
            Self::RS512 => Algorithm::RS512,
            Self::PS256 => Algorithm::PS256,
            Self::PS384 => Algorithm::PS384,
            Self::PS512 => Algorithm::PS512,
            Self::ES256 => Algorithm::ES256,
            Self::ES384 => Algorithm::ES384,
            Self::EdDSA => Algorithm::EdDSA,
        }
    }

    const fn kind(self) -> KeyKind {
        match self {
            Self::RS256 | Self::RS384 | Self::RS512 | Self::PS256 | Self::PS384 | Self::PS512 => KeyKind::Rsa,
            Self::ES256 => KeyKind::P256,
            Self::ES384 => KeyKind::P384,
            Self::EdDSA => KeyKind::Ed25519,
        }
    }
}

/// RFC 7517 section 4, and the parameters of the kinds we take.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
}

impl Jwk {
    /// The key, if it is one for signatures of a kind we take. A symmetric key never is: everybody has it.
    fn key(self) -> Option<Key> {
        // A private key that was published is nobody's proof of anything.
        let for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !for_signatures || self.d.is_some() || self.kid.as_ref().is_some_and(|kid| kid.len() > 256) {
            return None;
        }
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let (kind, decoding) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => {
                let (n, e) = (bytes(&self.n)?, bytes(&self.e)?);
                let bits = 8 * n.len() - n.first().map_or(0, |first| first.leading_zeros() as usize);
                if !RSA_BITS.contains(&bits) || e.is_empty() || e.len() > 4 {
                    return None;
                }
                (KeyKind::Rsa, DecodingKey::from_rsa_raw_components(&n, &e))
            }
            ("EC", Some(curve @ ("P-256" | "P-384"))) => {
                let (kind, size) = if curve == "P-256" { (KeyKind::P256, 32) } else { (KeyKind::P384, 48) };
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                if x.len() != size || y.len() != size {
                    return None;
                }
                (kind, DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?).ok()?)
            }
            ("OKP", Some("Ed25519")) => {
                let x = bytes(&self.x)?;
                if x.len() != 32 {
                    return None;
                }
                (KeyKind::Ed25519, DecodingKey::from_ed_der(&x))
            }
            _ => return None,
        };
        let only = match self.alg.as_deref() {
            None => None,
            // An algorithm that we do not take: then the key is not for us.
            Some(name) => Some(SignatureAlgorithm::named(name).filter(|alg| alg.kind() == kind)?),
        };
        Some(Key { kid: self.kid, kind, only, decoding })
    }
}

/// Reads a JWK set. Keys of kinds that we do not take are left out (RFC 7517 section 5).
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    if text.len() > SET_BYTES_MAX {
        return Err(format!("the key set has more than {SET_BYTES_MAX} bytes"));
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("not a key set: {error}"))?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("the key set has more than {KEYS_MAX} keys"));
    }
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(|value| serde_json::from_value::<Jwk>(value).ok())
        .filter_map(Jwk::key)
        .collect();
    if keys.is_empty() { Err("the key set has no key for signatures that we take".to_owned()) } else { Ok(keys) }
}

/// Checks where keys may be fetched from: HTTPS, or HTTP on a loopback address, where nobody can be in between.
pub(crate) fn check_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| format!("`{text}` is not a URL"))?;
    let host = url.host_str().unwrap_or("");
    let allowed = match url.scheme() {
        "https" => !host.is_empty(),
        "http" => is_loopback(host),
        _ => false,
    };
    if !allowed {
        return Err(format!("keys are fetched over https, or http on a loopback address, not from `{text}`"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL of the keys must not hold a password".to_owned());
    }
    Ok(url)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The keys at hand, and when they came.
struct Held {
    keys: Arc<Vec<Key>>,
    came: Option<UnixMs>,
}

/// One provider's keys.
pub(crate) struct Keys {
    source: JwksSource,
    refetch_after_ms: u64,
    refresh_after_ms: u64,
    held: RwLock<Held>,
    /// When a fetch was last tried; locked while one runs.
    tried: Arc<Mutex<Option<UnixMs>>>,
}

impl Keys {
    /// What is here is read at once, so that a mistake shows at start; a URL is fetched when first needed.
    pub(crate) fn new(source: &JwksSource, refetch_after_s: u64, refresh_after_s: u64) -> Result<Self, String> {
        let keys = match source {
            JwksSource::Url(_) => Vec::new(),
            JwksSource::File(path) => parse(&read_file(path)?)?,
            JwksSource::Inline(text) => parse(text.as_bytes())?,
        };
        Ok(Self {
            source: source.clone(),
            refetch_after_ms: refetch_after_s * 1_000,
            refresh_after_ms: refresh_after_s * 1_000,
            held: RwLock::new(Held { keys: Arc::new(keys), came: None }),
            tried: Arc::default(),
        })
    }

    /// Runs `check` on the key that a token names, fetching keys if it is not among them. `None`: there is no such.
    pub(crate) async fn with<T>(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: SignatureAlgorithm,
        now: UnixMs,
        check: impl Fn(&Key) -> T,
    ) -> Option<T> {
        let (keys, came) = self.held();
        if let Some(key) = find(&keys, kid, algorithm) {
            let old = came.is_none_or(|came| now.saturating_sub(came) >= self.refresh_after_ms);
            if old && self.is_fetched() {
                self.refresh_in_background(now);
            }
            return Some(check(key));
        }
        if !self.is_fetched() {
            return None;
        }
        // Waits for a fetch that runs already, and looks again before it begins another.
        let tried = Arc::clone(&self.tried).lock_owned().await;
        let (_, came_now) = self.held();
        if came_now == came {
            // It goes on without whoever caused it: one that hangs up would else have it tried for nothing, and nobody
            // may try again so soon. One that panics has fetched nothing.
            let keys = Arc::clone(self);
            let _ = tokio::spawn(async move { keys.fetch(tried, now).await }).await;
        }
        find(&self.held().0, kid, algorithm).map(check)
    }

    fn held(&self) -> (Arc<Vec<Key>>, Option<UnixMs>) {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&held.keys), held.came)
    }

    const fn is_fetched(&self) -> bool {
        !matches!(self.source, JwksSource::Inline(_))
    }

    fn refresh_in_background(self: &Arc<Self>, now: UnixMs) {
        if let Ok(tried) = Arc::clone(&self.tried).try_lock_owned() {
            let keys = Arc::clone(self);
            tokio::spawn(async move { keys.fetch(tried, now).await });
        }
    }

    async fn fetch(&self, mut tried: OwnedMutexGuard<Option<UnixMs>>, now: UnixMs) {
        // A clock that was set back makes the last try look far ahead; then a fetch is due as well.
        let recent = tried.is_some_and(|tried| tried <= now && now - tried < self.refetch_after_ms);
        if recent {
            return;
        }
        *tried = Some(now);
        let fetched = match &self.source {
            JwksSource::Url(url) => get(url).await,
            JwksSource::File(path) => read_file(path),
            JwksSource::Inline(_) => return,
        };
        match fetched.and_then(|text| parse(&text)) {
            Ok(keys) => {
                let held = Held { keys: Arc::new(keys), came: Some(now) };
                *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
            }
            Err(error) => tracing::warn!(error, "cannot fetch a provider's keys; the old ones stay"),
        }
    }
}

/// The key that a token names: by kid, which only picks among the provider's own keys, and of the algorithm's kind. A
/// token without a kid is taken when only one key can be meant.
fn find<'a>(keys: &'a [Key], kid: Option<&str>, algorithm: SignatureAlgorithm) -> Option<&'a Key> {
    let fits = |key: &&Key| key.kind == algorithm.kind() && key.only.is_none_or(|only| only == algorithm);
    let mut fitting = keys.iter().filter(fits);
    match kid {
        Some(kid) => fitting.find(|key| key.kid.as_deref() == Some(kid)),
        None => fitting.next().filter(|_| fitting.next().is_none()),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let shown = path.display();
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(SET_BYTES_MAX as u64 + 1).read_to_end(&mut text))
        .map_err(|error| format!("cannot read the keys `{shown}`: {error}"))?;
    Ok(text)
}

async fn get(text: &str) -> Result<Vec<u8>, String> {
    let url = check_url(text)?;
    // Needed once in a process; an error says that it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // No redirects at all: the provider's name is what makes its keys its own. A client for each fetch, because there
    // is one in an hour.
    let mut builder = Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(FETCH_MAX);
    if is_loopback(url.host_str().unwrap_or("")) {
        builder = builder.no_proxy();
    }
    let client = builder.build().map_err(|error| format!("cannot make a client: {error}"))?;
    let failed = |error: reqwest::Error| format!("cannot fetch `{text}`: {error}");
    let mut response = client.get(url.clone()).header("accept", "application/json").send().await.map_err(failed)?;
    if response.status().as_u16() != 200 {
        return Err(format!("cannot fetch `{text}`: status {}", response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > SET_BYTES_MAX {
            return Err(format!("`{text}` has more than {SET_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
