//! Sandboxes' rows against a model that fits on a page: any sequence of calls of two users, and after each one the
//! answer, the sums and the list are the model's.

mod common;

use std::collections::BTreeMap;

use common::{HOUR, NOW, World, world};
use proptest::prelude::*;
use rf_store::{NewSandbox, PageAsk, SandboxChange, SandboxFilter, StoreError, UserScope};
use rf_types::{SandboxAbout, SandboxId, SandboxSpec, SandboxState, units::MIB};

#[derive(Clone, Debug)]
enum Call {
    Insert { name: Option<u8>, memory_mib: u64 },
    Change { target: prop::sample::Index, memory_mib: u64, paused: bool, until: u64 },
    End { target: prop::sample::Index },
}

fn call() -> impl Strategy<Value = Call> {
    let target = any::<prop::sample::Index>;
    prop_oneof![
        4 => (proptest::option::of(0..3_u8), 16..64_u64)
            .prop_map(|(name, memory_mib)| Call::Insert { name, memory_mib }),
        3 => (target(), 16..64_u64, any::<bool>(), 0..HOUR).prop_map(|(target, memory_mib, paused, until)| {
            Call::Change { target, memory_mib, paused, until: NOW + until }
        }),
        2 => target().prop_map(|target| Call::End { target }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Modelled {
    anns: bool,
    name: Option<u8>,
    memory_bytes: u64,
    paused: bool,
    ended: bool,
    lease_until: u64,
}

fn scope(w: &World, ann: bool) -> &UserScope {
    if ann { &w.ann.scope } else { &w.bob.scope }
}

/// How a call ended, as far as the model knows.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    NotFound,
    Conflict,
}

fn answer<T>(result: Result<T, StoreError>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(StoreError::NotFound { .. }) => Answer::NotFound,
        Err(StoreError::Conflict { .. }) => Answer::Conflict,
        Err(other) => panic!("{other}"),
    }
}

fn spec(memory_mib: u64) -> SandboxSpec {
    let mut spec = SandboxSpec::standard(HOUR);
    spec.limits.memory_bytes_max = memory_mib * MIB;
    spec
}

/// Does the call on the store and on the model; gives both answers.
fn step(w: &World, model: &mut BTreeMap<SandboxId, Modelled>, ann: bool, call: &Call) -> (Answer, Answer) {
    let who = scope(w, ann);
    let ids: Vec<_> = model.keys().copied().collect();
    // Of everybody's, so that half of the calls are on another user's.
    let pick = |index: &prop::sample::Index| {
        if ids.is_empty() { SandboxId::from_bits(1) } else { *index.get(&ids) }
    };
    let alive =
        |model: &mut BTreeMap<SandboxId, Modelled>, id| model.get(&id).is_some_and(|m| m.anns == ann && !m.ended);
    match call {
        Call::Insert { name, memory_mib } => {
            let spec = spec(*memory_mib);
            let text = name.map(|name| format!("name {name}"));
            let new = NewSandbox {
                id: SandboxId::random(),
                name: text.as_deref(),
                spec: &spec,
                about: &SandboxAbout::default(),
                from_snapshot: None,
            };
            let real = answer(w.store.sandbox_insert(&w.system, who.user(), &new, NOW, NOW + HOUR));
            if name.is_some() && model.values().any(|m| m.anns == ann && m.name == *name && !m.ended) {
                return (real, Answer::Conflict);
            }
            let memory_bytes = spec.limits.memory_bytes_max;
            let made =
                Modelled { anns: ann, name: *name, memory_bytes, paused: false, ended: false, lease_until: NOW + HOUR };
            model.insert(new.id, made);
            (real, Answer::Done)
        }
        Call::Change { target, memory_mib, paused, until } => {
            let id = pick(target);
            let spec = spec(*memory_mib);
            let change = SandboxChange {
                spec: &spec,
                lease_until: *until,
                state: if *paused { SandboxState::Paused } else { SandboxState::Running },
                pause_kind: None,
                paused: None,
                saved: None,
                started: NOW,
                about: &SandboxAbout::default(),
            };
            let real = answer(w.store.sandbox_change(&w.system, who.user(), id, &change));
            if !alive(model, id) {
                return (real, Answer::NotFound);
            }
            let modelled = model.get_mut(&id).unwrap();
            (modelled.memory_bytes, modelled.lease_until) = (spec.limits.memory_bytes_max, *until);
            modelled.paused = *paused;
            (real, Answer::Done)
        }
        Call::End { target } => {
            let id = pick(target);
            let real = answer(w.store.sandbox_end(who, id, "asked", NOW));
            if !alive(model, id) {
                return (real, Answer::NotFound);
            }
            model.get_mut(&id).unwrap().ended = true;
            (real, Answer::Done)
        }
    }
}

fn agrees(w: &World, model: &BTreeMap<SandboxId, Modelled>) {
    for ann in [true, false] {
        let who = scope(w, ann);
        let mine = || model.iter().filter(move |(_, m)| m.anns == ann);
        let alive = || mine().filter(|(_, m)| !m.ended);
        let usage = w.store.usage(who).unwrap();
        assert_eq!(usage.sandboxes as usize, alive().count());
        assert_eq!(usage.memory_bytes, alive().map(|(_, m)| m.memory_bytes).sum::<u64>());
        let ask = PageAsk { after: None, items_max: Some(1_000) };
        let page = w.store.sandbox_list(who, SandboxFilter::default(), ask).unwrap();
        assert_eq!(page.items.len(), alive().count());
        for row in page.items {
            let modelled = &model[&row.id];
            assert_eq!((row.state == SandboxState::Paused, row.lease_until), (modelled.paused, modelled.lease_until));
            assert_eq!(row.spec.limits.memory_bytes_max, modelled.memory_bytes);
            assert_eq!(modelled.anns, ann);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_sandboxes_are_the_models(calls in proptest::collection::vec((any::<bool>(), call()), 1..40)) {
        let w = world();
        // The two that the world begins with are not the model's.
        w.store.sandbox_end(&w.ann.scope, w.ann.sandbox, "asked", NOW).unwrap();
        w.store.sandbox_end(&w.bob.scope, w.bob.sandbox, "asked", NOW).unwrap();
        w.store.prune(&w.system, NOW + 1).unwrap();
        let mut model = BTreeMap::new();
        for (ann, call) in &calls {
            let (real, modelled) = step(&w, &mut model, *ann, call);
            prop_assert_eq!(real, modelled, "{:?}", call);
            agrees(&w, &model);
        }
    }
}
