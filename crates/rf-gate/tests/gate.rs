//! Keys, sessions, machines, permits, limits and rates.

mod common;

use std::net::IpAddr;

use common::{HOUR, NOW, World, asked, run, world};
use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use rf_gate::{Authenticated, Gate, GateConfig, KeyAsked, KeyForm, Presented, Rate, Secret, SecretKind};
use rf_policy::{Action, Asked, Credential, Permit, Scope, UserUsage};
use rf_store::NewMachine;
use rf_types::{Code, Fault, RequestId, SandboxSpec, UserLimits};

const ALL: [Scope; 5] = [Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate];

fn plain() -> World {
    world(GateConfig::default())
}

fn code<T>(answer: Result<T, Fault>) -> Option<Code> {
    answer.err().map(|fault| fault.code)
}

fn permit(w: &World, who: &Authenticated, action: Action) -> Result<Permit, Fault> {
    w.gate.permit(who, action, RequestId::random(), Asked::Nothing, NOW)
}

/// One more sandbox for a user who has `usage`.
fn one_sandbox(w: &World, who: &Authenticated, spec: &SandboxSpec, usage: &UserUsage) -> Result<Permit, Fault> {
    w.gate.permit_with(who, Action::SandboxCreate, RequestId::random(), Asked::Sandbox(spec), usage, NOW)
}

/// One more exec for a user who has `usage`.
fn one_exec(w: &World, who: &Authenticated, usage: &UserUsage) -> Result<Permit, Fault> {
    w.gate.permit_with(who, Action::Exec, RequestId::random(), Asked::Exec { root: false }, usage, NOW)
}

#[test]
fn a_key_works_in_both_headers_and_is_stored_as_a_hash() {
    let w = plain();
    let ann = w.ann();
    let made = KeyAsked { form: KeyForm::E2b, ..asked("e2b") };
    let (key, secret) = w.gate.key_make(&w.permit(&ann, Action::KeyManage), &ann, &made, NOW).unwrap();
    assert!(secret.reveal().starts_with("e2b_"));
    for presented in [Presented::Bearer(secret.reveal()), Presented::ApiKey(secret.reveal())] {
        let who = run(w.gate.authenticate(presented, None, NOW)).unwrap();
        assert_eq!(who.principal().user, ann.principal().user);
        assert!(!format!("{presented:?} {who:?} {secret:?} {key:?}").contains(secret.reveal()));
    }
    for entry in std::fs::read_dir(w.dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let hex = &secret.reveal().as_bytes()[4..];
        assert!(!bytes.windows(hex.len()).any(|window| window == hex), "the secret is in a file");
    }
}

#[test]
fn whatever_is_wrong_with_a_credential_the_answer_is_the_same() {
    let w = plain();
    let ann = w.ann();
    let permit = w.permit(&ann, Action::KeyManage);
    let (revoked_id, revoked) = w.gate.key_make(&permit, &ann, &asked("a"), NOW).unwrap();
    w.gate.key_revoke(&permit, &ann, revoked_id.id, NOW).unwrap();
    let short = KeyAsked { expires: Some(NOW + 1), ..asked("b") };
    let (_, expired) = w.gate.key_make(&permit, &ann, &short, NOW).unwrap();
    assert!(w.bearer(expired.reveal(), NOW).is_ok(), "control");
    let unknown = Secret::mint(SecretKind::Key);
    let session = Secret::mint(SecretKind::Session);
    let enrolment = Secret::mint(SecretKind::Enrolment);
    let cases = [
        (revoked.reveal(), "revoked credential"),
        (expired.reveal(), "expired credential"),
        (unknown.reveal(), "unknown credential"),
        (session.reveal(), "unknown credential"),
        (enrolment.reveal(), "a form of no credential"),
        ("", "a form of no credential"),
        ("rf_", "a form of no credential"),
        ("\u{0}", "a form of no credential"),
    ];
    let mut answers = Vec::new();
    for (text, reason) in cases {
        let denied = w.bearer(text, NOW + 1).unwrap_err();
        assert_eq!(denied.reason, reason);
        answers.push(serde_json::to_string(&Fault::from(denied)).unwrap());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[test]
fn a_session_is_no_api_key_and_ends() {
    let w = plain();
    let ann = w.ann();
    let permit = w.permit(&ann, Action::SessionManage);
    let (session, secret) = w.gate.session_begin(&permit, &ann, Some(&[Scope::Read]), HOUR, NOW).unwrap();
    assert!(session.id.as_str().starts_with(&format!("ann_{}_", NOW / 1_000)));
    let who = w.bearer(secret.reveal(), NOW).unwrap();
    assert_eq!(who.principal().scopes, [Scope::Read]);
    assert_eq!(who.scope(), ann.scope());
    assert!(run(w.gate.authenticate(Presented::ApiKey(secret.reveal()), None, NOW)).is_err());
    assert!(w.bearer(session.id.as_str(), NOW).is_err(), "the id is public and opens nothing");
    assert!(w.bearer(secret.reveal(), NOW + HOUR).is_err());
    assert_eq!(code(self::permit(&w, &who, Action::SandboxRead)), None);
    w.gate.session_end(&permit, &ann, &session.id, NOW).unwrap();
    assert!(w.bearer(secret.reveal(), NOW).is_err());
    assert_eq!(code(self::permit(&w, &who, Action::SandboxRead)), Some(Code::Unauthenticated));
    for ttl_ms in [0, 999, 30 * 86_400_000 + 1, u64::MAX] {
        let refused = w.gate.session_begin(&permit, &ann, None, ttl_ms, NOW);
        assert_eq!(code(refused), Some(Code::InvalidRequest), "{ttl_ms}");
    }
}

/// The permit was made before the key was revoked, and is used after it.
#[test]
fn no_session_begins_with_a_key_that_was_revoked_meanwhile() {
    let w = plain();
    let ann = w.ann();
    let (manage, keys) = (w.permit(&ann, Action::SessionManage), w.permit(&ann, Action::KeyManage));
    let (key, secret) = w.gate.key_make(&keys, &ann, &asked("stolen"), NOW).unwrap();
    let thief = w.bearer(secret.reveal(), NOW).unwrap();
    let permit = w.permit(&thief, Action::SessionManage);
    // Control: until then it begins one.
    let (_, first) = w.gate.session_begin(&permit, &thief, None, HOUR, NOW).unwrap();
    let child = w.bearer(first.reveal(), NOW).unwrap();
    w.gate.key_revoke(&keys, &ann, key.id, NOW).unwrap();
    for who in [&thief, &child] {
        assert_eq!(code(w.gate.session_begin(&permit, who, None, HOUR, NOW)), Some(Code::Unauthenticated));
    }
    assert!(w.gate.session_begin(&manage, &ann, None, HOUR, NOW).is_ok());
}

/// As SECURITY.md says: a key is the user's own, whatever it was made with.
#[test]
fn a_key_outlives_the_session_that_made_it_and_only_the_scope_account_makes_one() {
    let w = plain();
    let ann = w.ann();
    let manage = w.permit(&ann, Action::SessionManage);
    let session = |scopes: &[Scope]| {
        let (session, secret) = w.gate.session_begin(&manage, &ann, Some(scopes), HOUR, NOW).unwrap();
        (session.id, w.bearer(secret.reveal(), NOW).unwrap())
    };
    let (id, who) = session(&[Scope::Read, Scope::Account]);
    let may = w.permit(&who, Action::KeyManage);
    let (_, key) = w.gate.key_make(&may, &who, &asked("made by a session"), NOW).unwrap();
    let wider = KeyAsked { scopes: Some(&[Scope::Run]), ..asked("wider") };
    assert_eq!(code(w.gate.key_make(&may, &who, &wider, NOW)), Some(Code::Forbidden));
    w.gate.session_end(&manage, &ann, &id, NOW).unwrap();
    assert_eq!(code(permit(&w, &who, Action::KeyManage)), Some(Code::Unauthenticated));
    // One that is to leave nothing has not that scope.
    let (_, lesser) = session(&[Scope::Read, Scope::Run]);
    assert_eq!(code(permit(&w, &lesser, Action::KeyManage)), Some(Code::Forbidden));
    let made = w.bearer(key.reveal(), NOW + 2 * HOUR).unwrap();
    assert_eq!((made.scope(), made.principal().scopes.as_slice()), (ann.scope(), &[Scope::Read, Scope::Account][..]));
}

#[test]
fn nothing_caches_a_yes() {
    let w = plain();
    let root = w.root();
    let operator = root.operator().unwrap().clone();
    let (user, secret) = w.user("ann", UserLimits::STANDARD);
    let ann = w.bearer(secret.reveal(), NOW).unwrap();
    assert_eq!(code(permit(&w, &ann, Action::FileRead)), None, "control");

    w.store.user_set_disabled(&operator, user, Some(NOW)).unwrap();
    assert_eq!(code(permit(&w, &ann, Action::FileRead)), Some(Code::Unauthenticated));
    w.store.user_set_disabled(&operator, user, None).unwrap();
    assert_eq!(code(permit(&w, &ann, Action::FileRead)), None);

    let (spec, nothing) = (SandboxSpec::standard(HOUR), UserUsage::default());
    assert_eq!(code(one_exec(&w, &ann, &nothing)), None, "control");
    assert_eq!(code(one_sandbox(&w, &ann, &spec, &nothing)), None, "control");
    let none = UserLimits { execs_max: 0, sandboxes_max: 0, ..UserLimits::STANDARD };
    w.store.user_set_limits(&operator, user, &none).unwrap();
    assert_eq!(code(one_exec(&w, &ann, &nothing)), Some(Code::LimitReached));
    assert_eq!(code(one_sandbox(&w, &ann, &spec, &nothing)), Some(Code::LimitReached));

    let keys = w.store.key_list(ann.scope()).unwrap();
    w.gate.key_revoke(&w.permit(&ann, Action::KeyManage), &ann, keys[0].id, NOW).unwrap();
    for action in Action::ALL {
        assert!(permit(&w, &ann, action).is_err(), "{action}");
    }

    w.store.user_delete(&operator, user).unwrap();
    assert_eq!(code(permit(&w, &ann, Action::FileRead)), Some(Code::Unauthenticated));
    assert_eq!(code(one_sandbox(&w, &ann, &spec, &nothing)), Some(Code::Unauthenticated));
    assert_eq!(code(one_exec(&w, &ann, &nothing)), Some(Code::Unauthenticated));
}

#[test]
fn a_key_that_came_before_is_read_anew_after_any_change() {
    let w = plain();
    let root = w.root();
    let operator = root.operator().unwrap().clone();
    let (user, secret) = w.user("ann", UserLimits::STANDARD);
    let hour_later = NOW + HOUR;
    // Again and again: once it is noted when it was used, nothing is written any more.
    let thrice = |secret: &Secret, now| {
        let ask = || w.bearer(secret.reveal(), now);
        let (_, _) = (ask(), ask());
        ask()
    };
    let again = |now| thrice(&secret, now);
    let ann = again(NOW).unwrap();
    let before = w.store.changes();
    assert_eq!(again(NOW).unwrap().limits(), &UserLimits::STANDARD);
    assert_eq!(w.store.changes(), before, "control: nothing was written");

    let none = UserLimits { execs_max: 0, ..UserLimits::STANDARD };
    w.store.user_set_limits(&operator, user, &none).unwrap();
    assert_eq!(again(NOW).unwrap().limits(), &none);
    w.store.user_set_disabled(&operator, user, Some(NOW)).unwrap();
    assert_eq!(again(NOW).unwrap_err().reason, "disabled user");
    w.store.user_set_disabled(&operator, user, None).unwrap();
    again(hour_later).unwrap();
    let keys = w.store.key_list(ann.scope()).unwrap();
    assert_eq!(keys[0].last_used, Some(hour_later), "its use is noted also when nothing else changed");
    w.gate.key_revoke(&w.permit(&ann, Action::KeyManage), &ann, keys[0].id, NOW).unwrap();
    assert_eq!(again(NOW).unwrap_err().reason, "revoked credential");

    // Its own end needs no change.
    let asked = KeyAsked { expires: Some(hour_later), ..asked("short") };
    let (_, short) = w.gate.key_make(&w.permit(&root, Action::KeyManage), &root, &asked, NOW).unwrap();
    thrice(&short, hour_later - 1).unwrap();
    assert_eq!(thrice(&short, hour_later).unwrap_err().reason, "expired credential");
}

#[test]
fn what_is_counted_is_never_judged_without_its_count() {
    let w = plain();
    let ann = w.ann();
    let spec = SandboxSpec::standard(HOUR);
    for (action, asked) in [
        (Action::SandboxCreate, Asked::Sandbox(&spec)),
        (Action::Exec, Asked::Exec { root: false }),
        (Action::SnapshotCreate, Asked::Snapshot { bytes: 1 }),
    ] {
        let judged = |asked| w.gate.permit_with(&ann, action, RequestId::random(), asked, &UserUsage::default(), NOW);
        assert_eq!(code(judged(asked.clone())), None, "control: {action}");
        assert_eq!(
            code(w.gate.permit(&ann, action, RequestId::random(), asked, NOW)),
            Some(Code::Internal),
            "{action}"
        );
    }
}

#[test]
fn an_operator_without_the_scope_is_none_and_the_scope_without_the_row_neither() {
    let w = plain();
    let root = w.root();
    let reader = KeyAsked { scopes: Some(&[Scope::Read]), ..asked("r") };
    let (_, secret) = w.gate.key_make(&w.permit(&root, Action::KeyManage), &root, &reader, NOW).unwrap();
    let who = w.bearer(secret.reveal(), NOW).unwrap();
    assert!(who.operator().is_none());
    assert_eq!(code(permit(&w, &who, Action::Operate)), Some(Code::Forbidden));

    // An operator cannot give `operate` to a user whose row does not say so.
    let (user, _) = w.user("ann", UserLimits::STANDARD);
    let asks = KeyAsked { scopes: Some(&[Scope::Operate]), ..asked("o") };
    let refused = w.gate.key_make_for(&w.permit(&root, Action::Operate), root.operator().unwrap(), user, &asks, NOW);
    assert_eq!(code(refused), Some(Code::Forbidden));
}

#[test]
fn acting_for_a_user_is_recorded_first_and_is_no_more_than_the_user() {
    let w = plain();
    let root = w.root();
    let (user, secret) = w.user("ann", UserLimits::STANDARD);
    let ann = w.bearer(secret.reveal(), NOW).unwrap();
    let request = RequestId::random();
    let unrecorded = Fault::new(Code::LedgerUnavailable, "no", "");
    let refused = w.gate.act_for(&root, user, request, NOW, |_| Err(unrecorded.clone()));
    assert_eq!(refused.unwrap_err(), unrecorded);

    let mut record = None;
    let acting = w.gate.act_for(&root, user, request, NOW, |act| {
        record = Some((act.operator.user(), act.user.user(), act.request));
        Ok(())
    });
    let acting = acting.unwrap();
    assert_eq!(record, Some((root.principal().user, user, request)));
    assert_eq!(acting.scope(), ann.scope());
    assert_eq!(acting.acted_by(), Some(root.scope()));
    assert!(acting.operator().is_none());
    assert_eq!(acting.principal().scopes, Scope::USER);
    assert_eq!(permit(&w, &acting, Action::SandboxRead).unwrap().user(), user);
    assert_eq!(code(permit(&w, &acting, Action::Operate)), Some(Code::Forbidden));
    // The user's limits hold, and what is made is the user's.
    let (spec, nothing) = (SandboxSpec::standard(HOUR), UserUsage::default());
    assert_eq!(one_sandbox(&w, &acting, &spec, &nothing).unwrap().user(), user);
    let operator = root.operator().unwrap();
    w.store.user_set_limits(operator, user, &UserLimits { sandboxes_max: 0, ..UserLimits::STANDARD }).unwrap();
    assert_eq!(code(one_sandbox(&w, &acting, &spec, &nothing)), Some(Code::LimitReached));
    assert_eq!(code(one_sandbox(&w, &root, &spec, &nothing)), None, "the operator's own limits are others");
    w.store.user_set_limits(operator, user, &UserLimits::STANDARD).unwrap();

    // Who is no operator acts for nobody, and learns nothing of who there is.
    let nobody = rf_types::UserId::random();
    for user in [root.principal().user, nobody] {
        let refused = w.gate.act_for(&ann, user, request, NOW, |_| panic!("nothing to record"));
        assert_eq!(code(refused), Some(Code::Forbidden));
    }
    let missing = w.gate.act_for(&root, nobody, request, NOW, |_| panic!("nothing to record"));
    assert_eq!(code(missing), Some(Code::NotFound));

    // With the operator's key the acting ends.
    let keys = w.store.key_list(root.scope()).unwrap();
    w.gate.key_revoke(&w.permit(&root, Action::KeyManage), &root, keys[0].id, NOW).unwrap();
    assert_eq!(code(permit(&w, &acting, Action::SandboxRead)), Some(Code::Unauthenticated));
}

#[test]
fn a_permit_of_another_user_or_action_is_refused() {
    let w = plain();
    let (ann, root) = (w.ann(), w.root());
    let others = w.permit(&root, Action::KeyManage);
    assert_eq!(code(w.gate.key_make(&others, &ann, &asked("k"), NOW)), Some(Code::Internal));
    let other_action = w.permit(&ann, Action::SessionManage);
    assert_eq!(code(w.gate.key_make(&other_action, &ann, &asked("k"), NOW)), Some(Code::Internal));
    assert_eq!(w.store.key_list(ann.scope()).unwrap().len(), 1);
}

#[test]
fn every_limit_of_a_sandbox_holds() {
    let w = plain();
    let spec = SandboxSpec::standard(HOUR);
    let l = spec.limits;
    let exact = UserLimits {
        sandboxes_max: 1,
        execs_max: 1,
        cpu_milli_max: l.cpu_milli_max,
        memory_bytes_max: l.memory_bytes_max,
        disk_bytes_max: l.disk_bytes_max,
        lease_ms_max: spec.lease_ms,
        root_allowed: true,
        ..UserLimits::STANDARD
    };
    let lower: [(&str, UserLimits, Code); 7] = [
        ("sandboxes", UserLimits { sandboxes_max: 0, ..exact }, Code::LimitReached),
        ("cpu", UserLimits { cpu_milli_max: l.cpu_milli_max - 1, ..exact }, Code::LimitReached),
        ("memory", UserLimits { memory_bytes_max: l.memory_bytes_max - 1, ..exact }, Code::LimitReached),
        ("disk", UserLimits { disk_bytes_max: l.disk_bytes_max - 1, ..exact }, Code::LimitReached),
        ("lease", UserLimits { lease_ms_max: spec.lease_ms - 1, ..exact }, Code::LimitReached),
        ("root", UserLimits { root_allowed: false, ..exact }, Code::Forbidden),
        ("all but nothing", UserLimits { sandboxes_max: 1, memory_bytes_max: 0, ..exact }, Code::LimitReached),
    ];
    let (user, secret) = w.user("ann", exact);
    let ann = w.bearer(secret.reveal(), NOW).unwrap();
    let root = w.root();
    for (name, limits, expected) in lower {
        w.store.user_set_limits(root.operator().unwrap(), user, &limits).unwrap();
        assert_eq!(code(one_sandbox(&w, &ann, &spec, &UserUsage::default())), Some(expected), "{name}");
    }
    w.store.user_set_limits(root.operator().unwrap(), user, &exact).unwrap();
    assert_eq!(code(one_sandbox(&w, &ann, &spec, &UserUsage::default())), None);
    // Beside what the user has; each of the sums by itself.
    let nothing = UserUsage::default();
    for (name, has) in [
        ("sandboxes", UserUsage { sandboxes: 1, ..nothing }),
        ("cpu", UserUsage { cpu_milli: 1, ..nothing }),
        ("memory", UserUsage { memory_bytes: 1, ..nothing }),
        ("disk", UserUsage { disk_bytes: 1, ..nothing }),
    ] {
        assert_eq!(code(one_sandbox(&w, &ann, &spec, &has)), Some(Code::LimitReached), "{name}");
    }
}

#[test]
fn a_user_who_asks_too_often_waits_and_nobody_else_does() {
    let config = GateConfig { requests: Rate { per_second: 10, burst: 3 }, ..GateConfig::default() };
    let w = world(config);
    let (_, anns) = w.user("ann", UserLimits::STANDARD);
    let (_, bobs) = w.user("bob", UserLimits::STANDARD);
    let later = NOW + 60_000;
    for _ in 0..3 {
        w.bearer(anns.reveal(), later).unwrap();
    }
    let denied = w.bearer(anns.reveal(), later).unwrap_err();
    assert_eq!(denied.fault.code, Code::RateLimited);
    assert!(denied.fault.hint.contains("100 ms"), "{}", denied.fault.hint);
    w.bearer(bobs.reveal(), later).unwrap();
    w.bearer(anns.reveal(), later + 100).unwrap();
}

#[test]
fn a_peer_that_fails_too_often_is_slowed_and_its_neighbours_with_good_keys_are_not() {
    let config = GateConfig { failures: Rate { per_second: 1, burst: 5 }, ..GateConfig::default() };
    let w = world(config);
    let peer: IpAddr = "192.0.2.1".parse().unwrap();
    let other: IpAddr = "192.0.2.2".parse().unwrap();
    let ask = |text: &str, peer| run(w.gate.authenticate(Presented::Bearer(text), Some(peer), NOW));
    let bad = Secret::mint(SecretKind::Key);
    for _ in 0..5 {
        assert_eq!(ask(bad.reveal(), peer).unwrap_err().fault.code, Code::Unauthenticated);
    }
    for text in [bad.reveal(), "", "a.b.c"] {
        let fault = ask(text, peer).unwrap_err().fault;
        assert_eq!(fault.code, Code::RateLimited);
        assert_eq!(fault.message, "more than 1 wrong credentials from your address a second");
    }
    assert_eq!(ask(bad.reveal(), other).unwrap_err().fault.code, Code::Unauthenticated);
    assert!(ask(w.first_key.reveal(), peer).is_ok());
}

#[test]
fn a_machine_joins_once_and_proves_itself_each_time() {
    let w = plain();
    let ann = w.ann();
    let permit = w.permit(&ann, Action::MachineManage);
    let token = w.gate.enrolment_token_make(&permit, &ann, HOUR, NOW).unwrap();
    let pair = SigningKey::from_bytes(&[7; 32]);
    let facts = serde_json::json!({});
    let public_key = pair.verifying_key().to_bytes();
    let new = NewMachine { name: "box", public_key: &public_key, facts: &facts, level: "workspace" };
    let enrolled = w.gate.machine_enrol(token.reveal(), &new, NOW).unwrap();
    assert_eq!(&enrolled.scope, ann.scope());
    let other = NewMachine { public_key: &[9; 32], ..new.clone() };
    assert_eq!(w.gate.machine_enrol(token.reveal(), &other, NOW).unwrap_err().reason, "revoked credential");
    for bad in ["", "x", Secret::mint(SecretKind::Enrolment).reveal(), w.first_key.reveal()] {
        assert_eq!(w.gate.machine_enrol(bad, &other, NOW).unwrap_err().fault.code, Code::Unauthenticated);
    }

    let message = b"nonce and purpose";
    let good = pair.sign(message).to_bytes();
    let id = enrolled.machine.id;
    assert_eq!(&w.gate.authenticate_machine(id, message, &good).unwrap().scope, ann.scope());
    let strangers = SigningKey::from_bytes(&[8; 32]).sign(message).to_bytes();
    let mut bent = good;
    bent[40] ^= 1;
    for (id, message, signature) in [
        (id, &b"another nonce"[..], &good),
        (id, &message[..], &strangers),
        (id, &message[..], &bent),
        (id, &message[..], &[0; 64]),
        (rf_types::MachineId::random(), &message[..], &good),
    ] {
        let denied = w.gate.authenticate_machine(id, message, signature).unwrap_err();
        assert_eq!((denied.fault.code, denied.reason), (Code::Unauthenticated, "unknown credential"));
    }
    w.store.machine_remove(ann.scope(), id, NOW).unwrap();
    assert_eq!(w.gate.authenticate_machine(id, message, &good).unwrap_err().reason, "revoked credential");
}

/// Attack: a public key of small order, under which one signature fits every message.
#[test]
fn a_weak_machine_key_proves_nothing() {
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    // Control: the plain equation of RFC 8032 holds for it, so that only the strict check refuses.
    let key = ed25519_dalek::VerifyingKey::from_bytes(&identity).unwrap();
    let plain = ed25519_dalek::Verifier::verify(&key, b"any", &ed25519_dalek::Signature::from_bytes(&signature));
    assert!(plain.is_ok());
    assert!(!Gate::machine_proves(&identity, b"any", &signature));
}

#[test]
fn bootstrap_works_once() {
    let w = plain();
    let again = w.gate.bootstrap(&w.system, &"eve".parse().unwrap(), NOW);
    assert_eq!(code(again), Some(Code::Conflict));
}

#[test]
fn a_pepper_is_needed_to_know_a_credential() {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pepper");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(&[5; 64]).unwrap();
    let w = world(GateConfig { pepper_file: Some(path.clone()), ..GateConfig::default() });
    assert!(w.bearer(w.first_key.reveal(), NOW).is_ok());
    let without = Gate::new(w.store.clone(), GateConfig::default()).unwrap();
    assert!(run(without.authenticate(Presented::Bearer(w.first_key.reveal()), None, NOW)).is_err());
    std::fs::remove_file(&path).unwrap();
    let config = GateConfig { pepper_file: Some(path), ..GateConfig::default() };
    assert!(Gate::new(w.store.clone(), config).is_err(), "a pepper that is named and missing is no pepper");
}

fn scopes() -> impl Strategy<Value = Option<Vec<Scope>>> {
    proptest::option::of(proptest::collection::vec(proptest::sample::select(&ALL[..]), 0..6))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is made from whatever, a credential never may more than the one it was made with.
    #[test]
    fn scopes_only_shrink(chain in proptest::collection::vec((any::<bool>(), scopes()), 1..6)) {
        let w = plain();
        let mut who = w.root();
        for (session, ask) in chain {
            let before = who.principal().scopes.clone();
            let action = if session { Action::SessionManage } else { Action::KeyManage };
            let Ok(permit) = permit(&w, &who, action) else {
                prop_assert!(!before.contains(&Scope::Account));
                break;
            };
            let made = if session {
                w.gate.session_begin(&permit, &who, ask.as_deref(), HOUR, NOW).map(|(_, secret)| secret)
            } else {
                let new = KeyAsked { scopes: ask.as_deref(), ..asked("k") };
                w.gate.key_make(&permit, &who, &new, NOW).map(|(_, secret)| secret)
            };
            let within = ask.as_ref().is_none_or(|ask| !ask.is_empty() && ask.iter().all(|scope| before.contains(scope)));
            prop_assert_eq!(made.is_ok(), within);
            let Ok(secret) = made else { continue };
            who = w.bearer(secret.reveal(), NOW).unwrap();
            let after = &who.principal().scopes;
            prop_assert!(after.iter().all(|scope| before.contains(scope)));
            prop_assert_eq!(who.operator().is_some(), after.contains(&Scope::Operate));
            for action in Action::ALL {
                let allowed = self::permit(&w, &who, action).is_ok();
                prop_assert_eq!(allowed, after.contains(&action.scope()));
            }
        }
    }
}

#[test]
fn a_sandboxs_own_token_is_its_owners_inside_it_and_ends_with_it() {
    let w = world(GateConfig {
        requests: Rate { per_second: 1, burst: 3 },
        failures: Rate { per_second: 1, burst: 2 },
        ..GateConfig::default()
    });
    let root = w.root();
    let operator = root.operator().unwrap();
    let (ann, _) = w.user("ann", UserLimits::STANDARD);
    let id = rf_types::SandboxId::from_bits(7);
    let (spec, later) = (SandboxSpec::standard(HOUR), NOW + HOUR / 2);
    w.store
        .sandbox_insert(
            &w.system,
            ann,
            &rf_store::NewSandbox {
                id,
                name: None,
                spec: &spec,
                about: &rf_types::SandboxAbout::default(),
                from_snapshot: None,
            },
            NOW,
            NOW + HOUR,
        )
        .unwrap();
    let owner = w.gate.sandbox_owner(id, later).unwrap().unwrap();
    assert_eq!((owner.user(), owner.sandbox()), (ann, id));
    assert!(w.gate.sandbox_owner(rf_types::SandboxId::from_bits(8), later).unwrap().is_none());

    let who = w.gate.authenticate_sandbox(owner.clone(), true, None, later).unwrap();
    assert_eq!((who.principal().user, &who.principal().credential), (ann, &Credential::Sandbox { id }));
    assert!(who.operator().is_none());
    let visitor = w.gate.visitor(owner.clone(), later).unwrap();
    let ask = |who: &Authenticated, action| w.gate.permit(who, action, RequestId::random(), Asked::Nothing, later);
    for action in Action::ALL {
        let inside = ask(&who, action).is_ok_and(|permit| permit.within() == Some(id));
        assert_eq!(inside, action.inside_a_sandbox(), "{action}");
        assert_eq!(ask(&visitor, action).is_ok(), action == Action::PortConnect, "{action}");
    }

    // Who has not the token learns what everybody does whose credential is wrong, and not for ever.
    let peer: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
    let wrong = || w.gate.authenticate_sandbox(owner.clone(), false, peer, later).unwrap_err().fault.code;
    assert_eq!([wrong(), wrong(), wrong()], [Code::Unauthenticated, Code::Unauthenticated, Code::RateLimited]);
    assert_eq!(w.gate.failures_left(peer, later).unwrap_err().fault.code, Code::RateLimited);
    assert!(w.gate.failures_left(None, later).is_ok());

    // Visitors use up their own rate and not the owner's.
    let visits = (0..).take_while(|_| w.gate.visitor(owner.clone(), later).is_ok()).count();
    assert_eq!(visits, 2);
    assert!(w.gate.authenticate_sandbox(owner.clone(), true, None, later).is_ok());

    w.store.user_set_disabled(operator, ann, Some(later)).unwrap();
    assert!(w.gate.sandbox_owner(id, later).unwrap().is_none());
    assert_eq!(code(ask(&who, Action::FileRead)), Some(Code::Unauthenticated));
    w.store.user_set_disabled(operator, ann, None).unwrap();
    assert!(ask(&who, Action::FileRead).is_ok(), "control");
    w.store.sandbox_end_of(&w.system, ann, id, "destroyed", later).unwrap();
    assert!(w.gate.sandbox_owner(id, later).unwrap().is_none());
    for who in [who, visitor] {
        assert_eq!(code(ask(&who, Action::PortConnect)), Some(Code::Unauthenticated));
    }
}
