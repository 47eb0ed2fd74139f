//! Tokens of OIDC providers: what is taken, and every way in which one is not.

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use common::{HOUR, Mood, NOW, Pair, Provider, World, run, set, world};
use jsonwebtoken::Algorithm;
use rf_gate::{
    Authenticated, Gate, GateConfig, IssuerConfig, JwksSource, Presented, ScopesByClaim, SignatureAlgorithm,
};
use rf_policy::{Action, Asked, Credential, Scope};
use rf_store::Store;
use rf_types::{Code, RequestId};
use serde_json::{Value, json};

const ISSUER: &str = "https://login.example";
const NOW_S: u64 = NOW / 1_000;

fn issuer(jwks: JwksSource) -> IssuerConfig {
    IssuerConfig {
        issuer: ISSUER.to_owned(),
        audiences: vec!["ringfence".to_owned(), "also-ringfence".to_owned()],
        jwks,
        algorithms: vec![
            SignatureAlgorithm::RS256,
            SignatureAlgorithm::RS384,
            SignatureAlgorithm::RS512,
            SignatureAlgorithm::PS256,
            SignatureAlgorithm::PS384,
            SignatureAlgorithm::PS512,
            SignatureAlgorithm::ES256,
            SignatureAlgorithm::ES384,
            SignatureAlgorithm::EdDSA,
        ],
        username_claim: "preferred_username".to_owned(),
        scopes: Scope::USER.to_vec(),
        scopes_by_claim: None,
        create_users: true,
        leeway_s: 30,
        refetch_after_s: 10,
        refresh_after_s: 3_600,
    }
}

fn gate_of(issuers: Vec<IssuerConfig>) -> World {
    world(GateConfig { issuers, ..GateConfig::default() })
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "subject-1", "aud": "ringfence", "exp": NOW_S + 600, "iat": NOW_S - 10,
        "preferred_username": "carol"
    })
}

fn with(mut value: Value, changes: Value) -> Value {
    for (name, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => drop(value.as_object_mut().unwrap().remove(name)),
            change => value[name] = change.clone(),
        }
    }
    value
}

fn reason(answer: Result<Authenticated, rf_gate::Denied>) -> &'static str {
    match answer {
        Ok(_) => "taken",
        Err(denied) => {
            assert_eq!(denied.fault.code, Code::Unauthenticated, "{}", denied.reason);
            assert_eq!(denied.fault.message, "no valid credential", "the same for every reason");
            denied.reason
        }
    }
}

/// One pair of each kind, made once in a process.
struct Pairs {
    all: Vec<Pair>,
}

static PAIRS: LazyLock<Pairs> = LazyLock::new(|| Pairs {
    all: vec![
        Pair::rsa("rs256", Algorithm::RS256),
        Pair::rsa("rs384", Algorithm::RS384),
        Pair::rsa("rs512", Algorithm::RS512),
        Pair::rsa("ps256", Algorithm::PS256),
        Pair::rsa("ps384", Algorithm::PS384),
        Pair::rsa("ps512", Algorithm::PS512),
        Pair::ec("es256", Algorithm::ES256),
        Pair::ec("es384", Algorithm::ES384),
        Pair::ed("eddsa"),
    ],
});

impl Pairs {
    fn of(&self, algorithm: Algorithm) -> &Pair {
        self.all.iter().find(|pair| pair.algorithm == algorithm).unwrap()
    }

    fn inline(&self) -> JwksSource {
        JwksSource::Inline(set(&self.all.iter().collect::<Vec<_>>()))
    }
}

#[test]
fn every_configured_algorithm_is_taken_and_only_configured_ones() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    for pair in &PAIRS.all {
        let who = w.bearer(&pair.sign(&pair.header(), &claims()), NOW).unwrap();
        assert_eq!(who.principal().username.as_str(), "carol");
        assert_eq!(who.principal().credential, Credential::Token { issuer: ISSUER.to_owned() });
        assert_eq!(who.principal().scopes, Scope::USER);
        assert!(who.operator().is_none());
    }
    for pair in &PAIRS.all {
        let mut config = issuer(PAIRS.inline());
        config.algorithms.retain(|algorithm| format!("{algorithm:?}") != format!("{:?}", pair.algorithm));
        let w = gate_of(vec![config]);
        let token = pair.sign(&pair.header(), &claims());
        assert_eq!(reason(w.bearer(&token, NOW)), "token with an algorithm that its issuer does not use");
    }
}

/// Attack: a token whose claims or header are not what they must be, with a perfectly good signature.
#[test]
fn a_good_signature_does_not_excuse_bad_claims() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    let cases: &[(&str, Value, Value)] = &[
        // Controls: what is at the edge and good.
        ("taken", json!({}), json!({})),
        ("taken", json!({ "typ": null }), json!({})),
        ("taken", json!({ "typ": "at+jwt" }), json!({})),
        ("taken", json!({ "typ": "application/at+JWT" }), json!({})),
        ("taken", json!({}), json!({ "aud": ["other", "also-ringfence"] })),
        ("taken", json!({}), json!({ "exp": NOW_S - 29 })),
        ("taken", json!({}), json!({ "exp": NOW_S as f64 + 0.5 })),
        ("taken", json!({}), json!({ "nbf": NOW_S + 30 })),
        // Times.
        ("expired token", json!({}), json!({ "exp": NOW_S - 30 })),
        ("expired token", json!({}), json!({ "exp": 0 })),
        ("token without an end", json!({}), json!({ "exp": null })),
        ("malformed token end", json!({}), json!({ "exp": -1 })),
        ("malformed token claims", json!({}), json!({ "exp": "9999999999" })),
        ("token that is not valid yet", json!({}), json!({ "nbf": NOW_S + 31 })),
        ("malformed token claims", json!({}), json!({ "nbf": "0" })),
        // For whom and from whom.
        ("token for another audience", json!({}), json!({ "aud": "other" })),
        ("token for another audience", json!({}), json!({ "aud": ["other"] })),
        ("token for another audience", json!({}), json!({ "aud": [] })),
        ("token for another audience", json!({}), json!({ "aud": "ringfence " })),
        ("token without an audience", json!({}), json!({ "aud": null })),
        ("malformed token claims", json!({}), json!({ "aud": { "ringfence": true } })),
        ("token of an unknown issuer", json!({}), json!({ "iss": "https://login.example/" })),
        ("token of an unknown issuer", json!({}), json!({ "iss": "" })),
        ("malformed token claims", json!({}), json!({ "iss": null })),
        ("malformed token claims", json!({}), json!({ "iss": [ISSUER] })),
        ("token without a subject", json!({}), json!({ "sub": null })),
        ("token without a subject", json!({}), json!({ "sub": "" })),
        ("token without a subject", json!({}), json!({ "sub": "s".repeat(513) })),
        ("malformed token claims", json!({}), json!({ "sub": 7 })),
        // Headers.
        ("token with a critical header", json!({ "crit": ["exp"] }), json!({})),
        ("token with a critical header", json!({ "crit": [] }), json!({})),
        ("token with a critical header", json!({ "b64": false }), json!({})),
        ("token of another type", json!({ "typ": "logout+jwt" }), json!({})),
        ("token of another type", json!({ "typ": "dpop+jwt" }), json!({})),
        ("token of another type", json!({ "cty": "JWT" }), json!({})),
        ("malformed token header", json!({ "alg": null }), json!({})),
        ("malformed token header", json!({ "kid": 7 }), json!({})),
    ];
    for (expected, header, changes) in cases {
        let token = pair.sign(&with(pair.header(), header.clone()), &with(claims(), changes.clone()));
        assert_eq!(reason(w.bearer(&token, NOW)), *expected, "{header} {changes}");
    }
}

/// Attack: the signature is not the provider's, or is none.
#[test]
fn nothing_but_the_providers_signature_counts() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    let wrong = "token with a wrong signature";
    let never = "token with an algorithm that is never taken";
    for pair in &PAIRS.all {
        let good = pair.sign(&pair.header(), &claims());
        assert_eq!(reason(w.bearer(&good, NOW)), "taken");
        let (message, signature) = good.rsplit_once('.').unwrap();
        let (header, payload) = message.split_once('.').unwrap();

        // The claims changed after signing.
        let other = URL_SAFE_NO_PAD.encode(with(claims(), json!({ "sub": "subject-2" })).to_string());
        assert_eq!(reason(w.bearer(&format!("{header}.{other}.{signature}"), NOW)), wrong);
        // No signature, half of one, one of zeros, one that is not base64.
        let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
        let half = &signature[..signature.len() / 2];
        for bad in ["", half, &zeros, "!!!!", &format!("{signature}=")] {
            assert_eq!(reason(w.bearer(&format!("{message}.{bad}"), NOW)), wrong, "{:?}", pair.algorithm);
        }
        // `none` in every spelling, with and without the signature.
        for name in ["none", "None", "NONE", "nOnE", ""] {
            let header = URL_SAFE_NO_PAD.encode(with(pair.header(), json!({ "alg": name })).to_string());
            for signature in ["", signature] {
                assert_eq!(reason(w.bearer(&format!("{header}.{payload}.{signature}"), NOW)), never);
            }
        }
    }
}

/// Attack: an HMAC whose secret is the public key, which everybody has.
#[test]
fn a_public_key_is_no_hmac_secret() {
    let rsa = PAIRS.of(Algorithm::RS256);
    let octets = json!({ "keys": [rsa.jwk, { "kty": "oct", "kid": "oct", "k": "c2VjcmV0" }] }).to_string();
    let w = gate_of(vec![issuer(JwksSource::Inline(octets))]);
    let n = URL_SAFE_NO_PAD.decode(rsa.jwk["n"].as_str().unwrap()).unwrap();
    let secrets =
        [n, rsa.jwk.to_string().into_bytes(), rsa.jwk["n"].as_str().unwrap().as_bytes().to_vec(), b"secret".to_vec()];
    for secret in secrets {
        for (algorithm, kid) in [(Algorithm::HS256, "rs256"), (Algorithm::HS384, "rs256"), (Algorithm::HS512, "oct")] {
            let private = jsonwebtoken::EncodingKey::from_secret(&secret);
            let hmac = Pair { kid, algorithm, private, jwk: Value::Null };
            let token = hmac.sign(&hmac.header(), &claims());
            assert_eq!(reason(w.bearer(&token, NOW)), "token with an algorithm that is never taken");
            // The same bytes under the name of the algorithm that is taken.
            let header = with(hmac.header(), json!({ "alg": "RS256", "kid": "rs256" }));
            assert_eq!(reason(w.bearer(&hmac.sign(&header, &claims()), NOW)), "token with a wrong signature");
        }
    }
}

/// Attack: a token signed by a key of the attacker's that names, brings or points to a key.
#[test]
fn a_token_cannot_bring_its_own_key() {
    let ours = Pair::ed("ours");
    let theirs = Pair::ed("ours");
    let w = gate_of(vec![issuer(JwksSource::Inline(set(&[&ours])))]);
    assert_eq!(reason(w.bearer(&ours.sign(&ours.header(), &claims()), NOW)), "taken");
    let server = Provider::start(set(&[&theirs]));
    let unknown = "token with an unknown key";
    let cases = [
        ("token with a wrong signature", json!({})),
        ("token with a wrong signature", json!({ "jwk": theirs.jwk })),
        ("token with a wrong signature", json!({ "jku": server.url() })),
        ("token with a wrong signature", json!({ "x5u": server.url(), "x5c": ["AAAA"] })),
        // With one key, no kid can only mean that one.
        ("token with a wrong signature", json!({ "kid": null })),
        (unknown, json!({ "kid": "" })),
        (unknown, json!({ "kid": "ours\u{0}" })),
        (unknown, json!({ "kid": "OURS" })),
        (unknown, json!({ "kid": "../../../../dev/null" })),
        (unknown, json!({ "kid": "' OR '1'='1" })),
        (unknown, json!({ "kid": server.url() })),
        (unknown, json!({ "kid": "k".repeat(4_000) })),
    ];
    for (expected, header) in cases {
        let token = theirs.sign(&with(theirs.header(), header.clone()), &claims());
        assert_eq!(reason(w.bearer(&token, NOW)), expected, "{header}");
    }
    assert_eq!(server.hits(), 0, "nothing that a token names is fetched");
}

/// Attack: a key used as another kind, or for what its provider did not make it.
#[test]
fn a_key_is_used_only_as_what_it_is() {
    let es = PAIRS.of(Algorithm::ES256);
    let rsa = PAIRS.of(Algorithm::RS256);
    let with_keys = |keys: Value| gate_of(vec![issuer(JwksSource::Inline(json!({ "keys": keys }).to_string()))]);
    let ed = Pair::ed("ed");
    let unknown = "token with an unknown key";

    // The kid of an EC key with an algorithm of RSA, and the other way round.
    let w = with_keys(json!([es.jwk, rsa.jwk]));
    let token = rsa.sign(&with(rsa.header(), json!({ "kid": "es256" })), &claims());
    assert_eq!(reason(w.bearer(&token, NOW)), unknown);
    let token = es.sign(&with(es.header(), json!({ "kid": "rs256" })), &claims());
    assert_eq!(reason(w.bearer(&token, NOW)), unknown);

    // Bound to one algorithm by its provider: PS256 with the same modulus is another.
    let w = with_keys(json!([with(rsa.jwk.clone(), json!({ "alg": "RS256" }))]));
    assert_eq!(reason(w.bearer(&rsa.sign(&rsa.header(), &claims()), NOW)), "taken");
    let ps = PAIRS.of(Algorithm::PS256);
    let token = ps.sign(&with(ps.header(), json!({ "kid": "rs256" })), &claims());
    assert_eq!(reason(w.bearer(&token, NOW)), unknown);

    // For encryption, for signing only, published with its private half, too short, on the wrong curve.
    let short = json!({ "kty": "RSA", "kid": "rs256", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" });
    for useless in [
        with(rsa.jwk.clone(), json!({ "use": "enc" })),
        with(rsa.jwk.clone(), json!({ "key_ops": ["sign"] })),
        with(rsa.jwk.clone(), json!({ "d": "AAAA" })),
        with(rsa.jwk.clone(), json!({ "alg": "HS256" })),
        with(rsa.jwk.clone(), json!({ "alg": "ES256" })),
        short,
        with(es.jwk.clone(), json!({ "crv": "P-384" })),
        with(es.jwk.clone(), json!({ "crv": "secp256k1" })),
        with(es.jwk.clone(), json!({ "y": "AAAA" })),
        with(ed.jwk.clone(), json!({ "x": "AAAA" })),
        json!("not a key"),
    ] {
        let inline = JwksSource::Inline(json!({ "keys": [useless] }).to_string());
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let config = GateConfig { issuers: vec![issuer(inline)], ..GateConfig::default() };
        assert!(Gate::new(store, config).is_err(), "a set with no key to take is a mistake: {useless}");
    }

    // Without a kid, two keys of one kind cannot be told apart.
    let second = Pair::ed("second");
    let w = with_keys(json!([ed.jwk, second.jwk, es.jwk]));
    let token = ed.sign(&with(ed.header(), json!({ "kid": null })), &claims());
    assert_eq!(reason(w.bearer(&token, NOW)), unknown);
    let token = es.sign(&with(es.header(), json!({ "kid": null })), &claims());
    assert_eq!(reason(w.bearer(&token, NOW)), "taken");
}

/// Attack: bytes that two readers could read in two ways.
#[test]
fn malformed_tokens_are_refused_before_anything_else() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    let (header, payload) = (pair.header().to_string(), claims().to_string());
    let twice = |json: &str, member: &str| format!("{{{member},{}", &json[1..]);
    let cases = [
        ("taken", pair.sign_text(&header, &payload)),
        ("malformed token header", pair.sign_text(&twice(&header, r#""alg":"none""#), &payload)),
        ("malformed token header", pair.sign_text(&twice(&header, r#""kid":"x""#), &payload)),
        ("malformed token claims", pair.sign_text(&header, &twice(&payload, r#""iss":"x""#))),
        ("malformed token claims", pair.sign_text(&header, &twice(&payload, r#""exp":1"#))),
        ("malformed token claims", pair.sign_text(&header, &twice(&payload, r#""aud":"x""#))),
        ("malformed token claims", pair.sign_text(&header, "[]")),
        ("malformed token claims", pair.sign_text(&header, &format!("{payload} x"))),
        ("malformed token header", pair.sign_text("", &payload)),
        ("malformed token header", "..".to_owned()),
        ("malformed token header", "a.b.c".to_owned()),
        ("malformed token header", format!(" {}", pair.sign_text(&header, &payload))),
        ("a form of no credential", format!("{}.x", pair.sign_text(&header, &payload))),
        ("a form of no credential", "a.b".to_owned()),
        ("a form of no credential", String::new()),
        ("a form of no credential", "Bearer".to_owned()),
        ("oversized credential", format!("a.b.{}", "c".repeat(8 << 10))),
        ("oversized credential", "c".repeat(1 << 20)),
    ];
    for (expected, token) in cases {
        assert_eq!(reason(w.bearer(&token, NOW)), expected, "{token:.80}");
    }
    // The one place for tokens is the bearer's.
    let token = pair.sign_text(&header, &payload);
    let answer = run(w.gate.authenticate(Presented::ApiKey(&token), None, NOW));
    assert_eq!(reason(answer), "a form of no credential");
}

/// Attack: a good token of one provider, with the name of another.
#[test]
fn one_providers_keys_do_not_speak_for_another() {
    let (first, second) = (Pair::ed("same"), Pair::ed("same"));
    let mut other = issuer(JwksSource::Inline(set(&[&second])));
    other.issuer = "https://other.example".to_owned();
    let w = gate_of(vec![issuer(JwksSource::Inline(set(&[&first]))), other]);
    let mine = w.bearer(&first.sign(&first.header(), &claims()), NOW).unwrap();
    let forged = second.sign(&second.header(), &claims());
    assert_eq!(reason(w.bearer(&forged, NOW)), "token with a wrong signature");
    // The same subject of another provider is somebody else, whatever name they claim.
    let theirs = with(claims(), json!({ "iss": "https://other.example" }));
    let theirs = w.bearer(&second.sign(&second.header(), &theirs), NOW).unwrap();
    assert_ne!(theirs.principal().user, mine.principal().user);
    assert_eq!(mine.principal().username.as_str(), "carol");
    assert!(theirs.principal().username.as_str().starts_with("carol-"), "{}", theirs.principal().username);
}

#[test]
fn who_somebody_is_is_the_subject_and_not_a_name() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    let who = |changes: Value| w.bearer(&pair.sign(&pair.header(), &with(claims(), changes)), NOW).unwrap();
    let carol = who(json!({}));
    // The name changed at the provider: the same user, with the name they came with.
    let renamed = who(json!({ "preferred_username": "root" }));
    assert_eq!(renamed.scope(), carol.scope());
    // Another subject that calls itself like the operator is not the operator.
    let sly = who(json!({ "sub": "subject-2", "preferred_username": "root" }));
    assert_ne!(sly.principal().user, w.root().principal().user);
    assert!(sly.operator().is_none());
    // Names that are none of ours.
    for (n, name) in [json!("../x"), json!("é"), json!(7), Value::Null].into_iter().enumerate() {
        let odd = who(json!({ "sub": format!("odd-{n}"), "preferred_username": name }));
        assert!(odd.principal().username.as_str().starts_with("u-"), "{}", odd.principal().username);
    }
}

#[test]
fn a_subject_nobody_knows_is_refused_where_users_are_not_made() {
    let mut config = issuer(PAIRS.inline());
    config.create_users = false;
    let w = gate_of(vec![config]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    assert_eq!(reason(w.bearer(&pair.sign(&pair.header(), &claims()), NOW)), "unknown credential");
    assert_eq!(w.store.user_list(w.root().operator().unwrap(), Default::default()).unwrap().items.len(), 1);
}

#[test]
fn a_claim_gives_only_configured_scopes_and_operate_needs_the_row() {
    let mut config = issuer(PAIRS.inline());
    config.scopes = vec![Scope::Read, Scope::Run, Scope::Operate];
    let values = [
        ("viewer", vec![Scope::Read]),
        ("dev", vec![Scope::Read, Scope::Run, Scope::Account]),
        ("admin", vec![Scope::Operate]),
    ];
    let values: BTreeMap<_, _> = values.into_iter().map(|(name, scopes)| (name.to_owned(), scopes)).collect();
    config.scopes_by_claim = Some(ScopesByClaim { claim: "roles".to_owned(), values });
    let w = gate_of(vec![config]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    let scopes = |roles: Value| {
        let token = pair.sign(&pair.header(), &with(claims(), json!({ "roles": roles })));
        w.bearer(&token, NOW).unwrap().principal().scopes.clone()
    };
    assert_eq!(scopes(json!(["viewer"])), [Scope::Read]);
    assert_eq!(scopes(json!("viewer dev")), [Scope::Read, Scope::Run], "`account` is not among the configured");
    assert_eq!(scopes(json!(["admin", "viewer"])), [Scope::Read], "the row does not say operator");
    for none in [Value::Null, json!([]), json!(["Viewer"]), json!({ "viewer": true }), json!(7)] {
        assert_eq!(scopes(none), []);
    }
}

#[test]
fn a_permit_ends_with_its_token() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    let who = w.bearer(&pair.sign(&pair.header(), &claims()), NOW).unwrap();
    let permit = |now| w.gate.permit(&who, Action::SandboxRead, RequestId::random(), Asked::Nothing, now);
    assert!(permit(NOW).is_ok());
    assert!(permit(NOW + 629_999).is_ok(), "600 s and the leeway");
    assert_eq!(permit(NOW + 630_000).unwrap_err().code, Code::Unauthenticated);
}

#[test]
fn keys_rotate_without_a_restart() {
    let (old, new) = (Pair::ed("old"), Pair::ec("new", Algorithm::ES256));
    let server = Provider::start(set(&[&old]));
    let w = gate_of(vec![issuer(JwksSource::Url(server.url()))]);
    let claims = with(claims(), json!({ "exp": NOW_S + 86_400 }));
    let (by_old, by_new) = (old.sign(&old.header(), &claims), new.sign(&new.header(), &claims));
    assert_eq!(server.hits(), 0, "nothing is fetched before it is needed");
    assert_eq!(reason(w.bearer(&by_old, NOW)), "taken");
    assert_eq!(reason(w.bearer(&by_old, NOW)), "taken");
    assert_eq!(server.hits(), 1, "and then kept");

    server.set(Mood::Well, set(&[&new]));
    assert_eq!(reason(w.bearer(&by_new, NOW + 9_999)), "token with an unknown key", "not again so soon");
    assert_eq!(server.hits(), 1);
    assert_eq!(reason(w.bearer(&by_new, NOW + 10_000)), "taken");
    assert_eq!(server.hits(), 2);
    assert_eq!(reason(w.bearer(&by_old, NOW + 10_001)), "token with an unknown key", "the old one is gone");
}

#[test]
fn a_provider_that_is_away_locks_nobody_out() {
    let (old, new) = (Pair::ed("old"), Pair::ed("new"));
    let server = Provider::start(set(&[&old]));
    let w = gate_of(vec![issuer(JwksSource::Url(server.url()))]);
    let claims = with(claims(), json!({ "exp": NOW_S + 864_000 }));
    let (by_old, by_new) = (old.sign(&old.header(), &claims), new.sign(&new.header(), &claims));
    assert_eq!(reason(w.bearer(&by_old, NOW)), "taken");
    let mut now = NOW;
    for mood in [Mood::Error, Mood::Redirect, Mood::Endless, Mood::Nonsense] {
        now += 60_000;
        // What it would say is right; how it says it is not.
        server.set(mood, set(&[&old, &new]));
        let hits = server.hits();
        assert_eq!(reason(w.bearer(&by_new, now)), "token with an unknown key", "{mood:?}");
        assert_eq!(server.hits(), hits + 1, "{mood:?}: asked once, and nowhere else");
        assert_eq!(reason(w.bearer(&by_old, now)), "taken", "{mood:?}");
    }
    // Control: the same answer, said well.
    server.set(Mood::Well, set(&[&old, &new]));
    assert_eq!(reason(w.bearer(&by_new, now + 60_000)), "taken");
    let address = server.address;
    drop(server);
    assert!(std::net::TcpStream::connect(address).is_err(), "the provider is gone");
    assert_eq!(reason(w.bearer(&by_old, now + 120_000)), "taken");
}

/// Attack: cause a fetch of keys and hang up at once, over and over, so that a key which has just come into use is never
/// known. Held by: a fetch that has begun goes on without whoever caused it.
#[test]
fn who_hangs_up_during_a_fetch_locks_nobody_out() {
    let pair = Pair::ed("real");
    let server = Provider::start(set(&[&pair]));
    let w = gate_of(vec![issuer(JwksSource::Url(server.url()))]);
    let made_up = pair.sign(&with(pair.header(), json!({ "kid": "made-up" })), &claims());
    let real = pair.sign(&pair.header(), &claims());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        {
            let mut asked = std::pin::pin!(w.gate.authenticate(Presented::Bearer(&made_up), None, NOW));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(asked.as_mut().poll(&mut context).is_pending(), "it waits for the fetch");
        }
        let who = w.gate.authenticate(Presented::Bearer(&real), None, NOW).await;
        assert!(who.is_ok(), "{:?}", who.map_err(|denied| denied.reason).err());
    });
    assert_eq!(server.hits(), 1);
}

#[test]
fn made_up_keys_cause_one_fetch_and_not_a_storm() {
    let pair = Pair::ed("real");
    let server = Provider::start(set(&[&pair]));
    let w = gate_of(vec![issuer(JwksSource::Url(server.url()))]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let gate = w.gate.clone();
    let token = Arc::new(pair.sign(&pair.header(), &claims()));
    runtime.block_on(async {
        let tasks: Vec<_> = (0..64)
            .map(|n| {
                let (gate, real) = (gate.clone(), Arc::clone(&token));
                let made_up = pair.sign(&with(pair.header(), json!({ "kid": format!("made-up-{n}") })), &claims());
                tokio::spawn(async move {
                    let made_up = gate.authenticate(Presented::Bearer(&made_up), None, NOW).await;
                    assert_eq!(made_up.unwrap_err().reason, "token with an unknown key");
                    assert!(gate.authenticate(Presented::Bearer(&real), None, NOW).await.is_ok());
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(server.hits(), 1);
}

#[test]
fn keys_are_read_from_a_file_and_again_when_it_changes() {
    let (old, new) = (Pair::ed("old"), Pair::ed("new"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    std::fs::write(&path, set(&[&old])).unwrap();
    let w = gate_of(vec![issuer(JwksSource::File(path.clone()))]);
    assert_eq!(reason(w.bearer(&old.sign(&old.header(), &claims()), NOW)), "taken");
    std::fs::write(&path, set(&[&new])).unwrap();
    assert_eq!(reason(w.bearer(&new.sign(&new.header(), &claims()), NOW + 20_000)), "taken");
    std::fs::write(&path, " ".repeat(300 << 10)).unwrap();
    assert_eq!(reason(w.bearer(&new.sign(&new.header(), &claims()), NOW + 40_000)), "taken");
}

#[test]
fn a_configuration_that_cannot_be_is_refused_at_start() {
    let refused = |change: fn(&mut IssuerConfig)| {
        let mut config = issuer(JwksSource::Inline(set(&[&PAIRS.all[8]])));
        change(&mut config);
        GateConfig { issuers: vec![config], ..GateConfig::default() }.validate().is_err()
    };
    assert!(!refused(|_| {}), "control");
    assert!(refused(|config| config.audiences.clear()));
    assert!(refused(|config| config.audiences.push(String::new())));
    assert!(refused(|config| config.algorithms.clear()));
    assert!(refused(|config| config.issuer.clear()));
    assert!(refused(|config| config.leeway_s = 301));
    assert!(refused(|config| config.refetch_after_s = 0));
    assert!(refused(|config| config.username_claim.clear()));
    for (url, good) in [
        ("https://login.example/keys", true),
        ("http://127.0.0.1:8080/keys", true),
        ("http://[::1]/keys", true),
        ("http://localhost/keys", true),
        ("http://login.example/keys", false),
        ("http://127.0.0.1.login.example/keys", false),
        ("http://localhost.login.example/keys", false),
        ("https://user:secret@login.example/keys", false),
        ("file:///etc/passwd", false),
        ("keys", false),
    ] {
        let config = issuer(JwksSource::Url(url.to_owned()));
        let config = GateConfig { issuers: vec![config], ..GateConfig::default() };
        assert_eq!(config.validate().is_ok(), good, "{url}");
    }
    let twice = GateConfig { issuers: vec![issuer(PAIRS.inline()), issuer(PAIRS.inline())], ..GateConfig::default() };
    assert!(twice.validate().is_err());
    // No configuration can name an algorithm with a shared secret, or none.
    for name in ["HS256", "HS384", "HS512", "none", "None", ""] {
        assert!(serde_json::from_value::<SignatureAlgorithm>(json!(name)).is_err(), "{name}");
    }
    let unknown = json!({ "requests": { "per_second": 1, "burst": 1 }, "reqests": 1 });
    assert!(serde_json::from_value::<GateConfig>(unknown).is_err());
}

#[test]
fn a_disabled_users_token_is_refused() {
    let w = gate_of(vec![issuer(PAIRS.inline())]);
    let pair = PAIRS.of(Algorithm::EdDSA);
    let token = pair.sign(&pair.header(), &with(claims(), json!({ "exp": NOW_S + 2 * HOUR })));
    let who = w.bearer(&token, NOW).unwrap();
    let root = w.root();
    w.store.user_set_disabled(root.operator().unwrap(), who.principal().user, Some(NOW)).unwrap();
    assert_eq!(reason(w.bearer(&token, NOW)), "disabled user");
    let permit = w.gate.permit(&who, Action::SandboxRead, RequestId::random(), Asked::Nothing, NOW);
    assert_eq!(permit.unwrap_err().code, Code::Unauthenticated);
}
