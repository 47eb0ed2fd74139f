//! Every call that takes a user's scope, made by Ann on Bob's things. The list of calls comes from the source: one
//! without a test here fails.

mod common;

use std::{collections::BTreeSet, path::Path};

use common::{HOUR, NOW, World, enrol, hash, insert, insert_once, world};
use rf_store::{NewKey, NewSession, PageAsk, Proof, SandboxFilter, SessionMaker, Snapshot, StoreError, UserScope};
use rf_types::{Preference, SandboxSpec, SessionId, SnapshotId, UserLimits};

/// Makes the call in `who`'s scope on Bob's things; says whether it saw or changed anything of Bob's.
type Probe = fn(&World, &UserScope) -> bool;

const PROBES: &[(&str, Probe)] = &[
    ("user_self", |w, who| w.store.user_self(who).unwrap().id == w.bob.scope.user()),
    ("preference", |w, who| {
        w.store.set_preference(&w.bob.scope, Preference::Machine).unwrap();
        w.store.preference(who).unwrap() == Preference::Machine
    }),
    ("set_preference", |w, who| {
        w.store.set_preference(who, Preference::Sandbox).unwrap();
        w.store.preference(&w.bob.scope).unwrap() == Preference::Sandbox
    }),
    ("standing", |w, who| {
        let key = w.store.standing(who, Proof::Key(w.bob.key), NOW).unwrap().is_ok();
        let session = w.store.standing(who, Proof::Session(&w.bob.session), NOW).unwrap().is_ok();
        assert_eq!(key, session);
        let limits = UserLimits { execs_max: 7, ..UserLimits::STANDARD };
        w.store.user_set_limits(&w.operator, w.bob.scope.user(), &limits).unwrap();
        let read = w.store.standing(who, Proof::Token, NOW).unwrap().unwrap().limits == limits;
        assert_eq!(key, read);
        key
    }),
    ("standing_acted_for", |w, who| {
        let limits = UserLimits { execs_max: 7, ..UserLimits::STANDARD };
        w.store.user_set_limits(&w.operator, w.bob.scope.user(), &limits).unwrap();
        w.store.standing_acted_for(&w.operator, who).unwrap().limits == limits
    }),
    ("key_insert", |w, who| {
        let new = NewKey { name: "n", hash: hash("n"), scopes: "read", expires: None };
        w.store.key_insert(who, &new, NOW).unwrap();
        w.store.key_list(&w.bob.scope).unwrap().len() == 2
    }),
    ("key_list", |w, who| w.store.key_list(who).unwrap().iter().any(|key| key.id == w.bob.key)),
    ("key_revoke", |w, who| {
        let answer = done(w.store.key_revoke(who, w.bob.key, NOW));
        assert_eq!(answer, w.store.scope_by_key(&w.bob.key_hash, NOW).unwrap().is_err());
        answer
    }),
    ("key_used", |w, who| {
        let answer = done(w.store.key_used(who, w.bob.key, NOW));
        assert_eq!(answer, w.store.key_list(&w.bob.scope).unwrap()[0].last_used.is_some());
        answer
    }),
    ("session_begin", |w, who| {
        let id = SessionId::new(who.username(), NOW / 1_000);
        let maker = SessionMaker::Other;
        let new = NewSession { id: &id, hash: hash("n"), scopes: "read", expires: NOW + HOUR, maker };
        w.store.session_begin(who, &new, NOW).unwrap().unwrap();
        w.store.session_list(&w.bob.scope, NOW).unwrap().len() == 2
    }),
    ("session_list", |w, who| w.store.session_list(who, NOW).unwrap().iter().any(|s| s.id == w.bob.session)),
    ("session_end", |w, who| {
        let answer = done(w.store.session_end(who, &w.bob.session, NOW));
        assert_eq!(answer, w.store.scope_by_session(&w.bob.session_hash, NOW).unwrap().is_err());
        answer
    }),
    ("repeat_get", |w, who| {
        insert_once(w, &w.bob.scope, "k", NOW);
        w.store.repeat_get(who, "k", 0).unwrap().is_some()
    }),
    ("enrolment_token_make", |w, who| {
        w.store.enrolment_token_make(who, &hash("n"), NOW + HOUR, NOW).unwrap();
        enrol(&w.store, &hash("n"), [9; 32]).unwrap().0 == w.bob.scope
    }),
    ("machine_list", |w, who| w.store.machine_list(who).unwrap().iter().any(|m| m.id == w.bob.machine)),
    ("machine_get", |w, who| done(w.store.machine_get(who, w.bob.machine))),
    ("machine_remove", |w, who| {
        let answer = done(w.store.machine_remove(who, w.bob.machine, NOW));
        assert_eq!(answer, w.store.scope_by_machine(w.bob.machine, |_| true).unwrap().is_err());
        answer
    }),
    ("machine_seen", |w, who| {
        let facts = serde_json::json!({ "hostname": "other" });
        let answer = done(w.store.machine_seen(who, w.bob.machine, Some((&facts, "full")), NOW + 1));
        let row = w.store.machine_get(&w.bob.scope, w.bob.machine).unwrap();
        assert_eq!(answer, row.level == "full" && row.facts == facts && row.last_seen == NOW + 1);
        answer
    }),
    ("sandbox_get", |w, who| done(w.store.sandbox_get(who, w.bob.sandbox))),
    ("sandbox_by_name", |w, who| w.store.sandbox_by_name(who, "mine").unwrap().id == w.bob.sandbox),
    ("sandbox_list", |w, who| {
        let page = w.store.sandbox_list(who, SandboxFilter::default(), PageAsk::default()).unwrap();
        page.items.iter().any(|sandbox| sandbox.id == w.bob.sandbox)
    }),
    ("snapshot_get", |w, who| {
        let id = snapshot(w);
        done(w.store.snapshot_get(who, id))
    }),
    ("snapshot_list", |w, who| {
        let id = snapshot(w);
        let all = w.store.snapshot_list(who, None, None, PageAsk::default()).unwrap().items;
        let named = w.store.snapshot_list(who, Some(w.bob.sandbox), Some("mine"), PageAsk::default()).unwrap().items;
        assert_eq!(all, named);
        all.iter().any(|snapshot| snapshot.id == id)
    }),
    ("sandbox_end", |w, who| {
        let answer = done(w.store.sandbox_end(who, w.bob.sandbox, "asked", NOW));
        assert_eq!(answer, bobs_sandbox(w).ended.is_some());
        answer
    }),
    ("usage", |w, who| {
        insert(&w.store, &w.system, &w.bob.scope, None).unwrap();
        w.store.usage(who).unwrap().sandboxes == 2
    }),
];

/// A snapshot of Bob's.
fn snapshot(w: &World) -> SnapshotId {
    let new = Snapshot {
        id: SnapshotId::random(),
        name: Some("mine".to_owned()),
        sandbox: w.bob.sandbox,
        spec: SandboxSpec::standard(HOUR),
        bytes: 7,
        files: 1,
        durable: true,
        created: NOW,
    };
    w.store.snapshot_insert(&w.system, w.bob.scope.user(), &new).unwrap();
    new.id
}

/// Calls on what is nobody's own, each with its reason.
const SHARED: &[(&str, &str)] = &[
    ("template_list", "templates are the same for all users"),
    ("template_get", "templates are the same for all users"),
];

fn done<T>(answer: Result<T, StoreError>) -> bool {
    match answer {
        Ok(_) => true,
        Err(StoreError::NotFound { .. }) => false,
        Err(other) => panic!("neither done nor not found: {other}"),
    }
}

fn bobs_sandbox(w: &World) -> rf_store::Sandbox {
    w.store.sandbox_get(&w.bob.scope, w.bob.sandbox).unwrap()
}

/// The names of all public functions of the crate whose signature has a `&UserScope`.
fn scoped_calls() -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(path).unwrap();
        for part in source.split("pub fn ").skip(1) {
            let signature = part.split(" {\n").next().unwrap();
            let arguments = signature.split("->").next().unwrap();
            if arguments.contains("&UserScope") {
                let name = arguments.split(['(', '<']).next().unwrap();
                calls.insert(name.to_owned());
            }
        }
    }
    calls
}

#[test]
fn every_scoped_call_has_a_probe() {
    let calls = scoped_calls();
    assert!(calls.len() > 20, "the source is read: {calls:?}");
    let probed: BTreeSet<String> =
        PROBES.iter().map(|(name, _)| *name).chain(SHARED.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
    assert_eq!(calls, probed);
}

#[test]
fn nobody_sees_or_changes_another_users_rows() {
    for (name, probe) in PROBES {
        let w = world();
        assert!(!probe(&w, &w.ann.scope), "`{name}` crossed from Ann to Bob");
        // Control: the same probe in Bob's own scope does touch, so that the refusal means something.
        let w = world();
        assert!(probe(&w, &w.bob.scope), "`{name}` does not work for Bob himself");
    }
}

#[test]
fn a_missing_thing_and_anothers_thing_answer_alike() {
    let w = world();
    let get = |sandbox| w.store.sandbox_get(&w.ann.scope, sandbox).unwrap_err();
    let fault = |error: StoreError| serde_json::to_string(&rf_types::Fault::from(error)).unwrap();
    let missing = fault(get(rf_types::SandboxId::from_bits(7)));
    assert_eq!(fault(get(w.bob.sandbox)), missing);
    assert!(!missing.contains("bob"));
}

#[test]
fn a_session_id_that_names_another_user_is_refused() {
    let w = world();
    let id = SessionId::new(w.bob.scope.username(), NOW / 1_000);
    let maker = SessionMaker::Other;
    let new = NewSession { id: &id, hash: hash("n"), scopes: "read", expires: NOW + HOUR, maker };
    assert!(matches!(w.store.session_begin(&w.ann.scope, &new, NOW), Err(StoreError::Invalid { .. })));
}
