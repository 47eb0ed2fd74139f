//! A gate with users, and a provider of tokens whose keys are made here.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::pkcs8::{EncodePrivateKey, spki::der::pem::LineEnding};
use jsonwebtoken::{Algorithm, EncodingKey};
use rf_gate::{Authenticated, Denied, Gate, GateConfig, KeyAsked, KeyForm, Presented, Secret};
use rf_policy::{Action, Asked, Permit};
use rf_store::{NewUser, Store, SystemScope};
use rf_types::{RequestId, UserId, UserLimits, units::UnixMs};
use rsa::{pkcs1::EncodeRsaPrivateKey, traits::PublicKeyParts};
use serde_json::{Value, json};

pub(crate) const NOW: UnixMs = 1_700_000_000_000;
pub(crate) const HOUR: UnixMs = 3_600_000;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) system: SystemScope,
    pub(crate) gate: Gate,
    pub(crate) first_key: Secret,
}

pub(crate) fn world(config: GateConfig) -> World {
    let dir = tempfile::tempdir().unwrap();
    let (store, system) = Store::open(dir.path()).unwrap();
    let gate = Gate::new(store.clone(), config).unwrap();
    let (_, _, first_key) = gate.bootstrap(&system, &"root".parse().unwrap(), NOW).unwrap();
    World { dir, store, system, gate, first_key }
}

/// Runs a future that does not wait for anything outside.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl World {
    pub(crate) fn bearer(&self, text: &str, now: UnixMs) -> Result<Authenticated, Denied> {
        run(self.gate.authenticate(Presented::Bearer(text), None, now))
    }

    pub(crate) fn root(&self) -> Authenticated {
        self.bearer(self.first_key.reveal(), NOW).unwrap()
    }

    pub(crate) fn permit(&self, who: &Authenticated, action: Action) -> Permit {
        self.gate.permit(who, action, RequestId::random(), Asked::Nothing, NOW).unwrap()
    }

    /// A user, and a key of theirs with every scope of an ordinary user.
    pub(crate) fn user(&self, name: &str, limits: UserLimits) -> (UserId, Secret) {
        let root = self.root();
        let operator = root.operator().unwrap();
        let new = NewUser { name: name.parse().unwrap(), operator: false, limits };
        let (_, user) = self.store.user_create(operator, &new, NOW).unwrap();
        let permit = self.permit(&root, Action::Operate);
        let (_, secret) = self.gate.key_make_for(&permit, operator, user.id, &asked("k"), NOW).unwrap();
        (user.id, secret)
    }

    pub(crate) fn ann(&self) -> Authenticated {
        let (_, secret) = self.user("ann", UserLimits::STANDARD);
        self.bearer(secret.reveal(), NOW).unwrap()
    }
}

pub(crate) fn asked(name: &str) -> KeyAsked<'_> {
    KeyAsked { name, form: KeyForm::Ringfence, scopes: None, expires: None }
}

/// A key pair of a provider's.
pub(crate) struct Pair {
    pub(crate) kid: &'static str,
    pub(crate) algorithm: Algorithm,
    pub(crate) private: EncodingKey,
    /// The public half as a JWK, without `alg`.
    pub(crate) jwk: Value,
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Making an RSA key takes a second, so a test process makes one and uses it in each of its ways.
static RSA: LazyLock<(EncodingKey, Value)> = LazyLock::new(rsa_pair);

fn rsa_pair() -> (EncodingKey, Value) {
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2_048).unwrap();
    let jwk = json!({ "kty": "RSA", "n": b64(&key.n().to_bytes_be()), "e": b64(&key.e().to_bytes_be()) });
    (EncodingKey::from_rsa_der(key.to_pkcs1_der().unwrap().as_bytes()), jwk)
}

impl Pair {
    fn new(kid: &'static str, algorithm: Algorithm, (private, mut jwk): (EncodingKey, Value)) -> Self {
        jwk["kid"] = kid.into();
        Self { kid, algorithm, private, jwk }
    }

    pub(crate) fn rsa(kid: &'static str, algorithm: Algorithm) -> Self {
        Self::new(kid, algorithm, RSA.clone())
    }

    pub(crate) fn ec(kid: &'static str, algorithm: Algorithm) -> Self {
        let (kind, curve) = match algorithm {
            Algorithm::ES256 => (&rcgen::PKCS_ECDSA_P256_SHA256, "P-256"),
            _ => (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384"),
        };
        let pair = rcgen::KeyPair::generate_for(kind).unwrap();
        let point = &pair.public_key_raw()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let jwk = json!({ "kty": "EC", "crv": curve, "x": b64(x), "y": b64(y) });
        Self::new(kid, algorithm, (EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(), jwk))
    }

    pub(crate) fn ed(kid: &'static str) -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let pair = ed25519_dalek::SigningKey::from_bytes(&seed);
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(pair.verifying_key().as_bytes()) });
        let pem = pair.to_pkcs8_pem(LineEnding::LF).unwrap();
        Self::new(kid, Algorithm::EdDSA, (EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(), jwk))
    }

    pub(crate) fn header(&self) -> Value {
        json!({ "alg": format!("{:?}", self.algorithm), "typ": "JWT", "kid": self.kid })
    }

    /// A token with exactly this header and these claims, signed by this key.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", b64(header.as_bytes()), b64(claims.as_bytes()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.private, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

pub(crate) fn set(pairs: &[&Pair]) -> String {
    json!({ "keys": pairs.iter().map(|pair| &pair.jwk).collect::<Vec<_>>() }).to_string()
}

/// How the provider answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mood {
    Well,
    Error,
    Redirect,
    Endless,
    Nonsense,
}

/// A provider's web server: answers each request with its key set, and counts.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    body: Mutex<(Mood, String)>,
    hits: AtomicU32,
    stop: AtomicBool,
}

impl Provider {
    pub(crate) fn start(body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            body: Mutex::new((Mood::Well, body)),
            hits: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that hangs up is what some tests are about.
                let _ = served.answer(stream.unwrap(), address);
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    pub(crate) fn set(&self, mood: Mood, body: String) {
        *self.shared.body.lock().unwrap() = (mood, body);
    }

    pub(crate) fn hits(&self) -> u32 {
        self.shared.hits.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream, address: SocketAddr) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        self.hits.fetch_add(1, Ordering::SeqCst);
        let (mood, body) = self.body.lock().unwrap().clone();
        // The target of the redirect has the right keys, so that following it would show.
        let mood = if first.contains("/elsewhere") { Mood::Well } else { mood };
        let mut stream = reader.into_inner();
        match mood {
            Mood::Well => {
                write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            }
            Mood::Error => {
                write!(stream, "HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            }
            Mood::Redirect => write!(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: http://{address}/elsewhere\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            ),
            Mood::Nonsense => write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>"),
            Mood::Endless => {
                write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
                // Far beyond any bound; ends when the reader has had enough and hangs up.
                for _ in 0..(64 << 20) / 4_096 {
                    stream.write_all(&[b' '; 4_096])?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
