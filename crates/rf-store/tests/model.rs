//! Sandboxes' rows against a model that fits on a page: any sequence of calls of two users, and after each one the
//! answer, the sums and the list are the model's.

mod common;

use std::collections::BTreeMap;

use common::{HOUR, NOW, World, world};
use proptest::prelude::*;
use rf_store::{NewSandbox, PageAsk, ReserveError, SandboxFilter, SandboxPhase, StoreError, UserScope};
use rf_types::{SandboxAbout, SandboxId, SandboxSpec, units::MIB};

#[derive(Clone, Debug)]
enum Call {
    Reserve { name: Option<u8>, memory_mib: u64, allowed: bool },
    Phase { target: prop::sample::Index, stopping: bool },
    Lease { target: prop::sample::Index, until: u64 },
    End { target: prop::sample::Index },
}

fn call() -> impl Strategy<Value = Call> {
    let target = any::<prop::sample::Index>;
    prop_oneof![
        4 => (proptest::option::of(0..3_u8), 16..64_u64, prop::bool::weighted(0.8))
            .prop_map(|(name, memory_mib, allowed)| Call::Reserve { name, memory_mib, allowed }),
        2 => (target(), any::<bool>()).prop_map(|(target, stopping)| Call::Phase { target, stopping }),
        1 => (target(), 0..HOUR).prop_map(|(target, until)| Call::Lease { target, until: NOW + until }),
        2 => target().prop_map(|target| Call::End { target }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Modelled {
    anns: bool,
    name: Option<u8>,
    memory_bytes: u64,
    phase: SandboxPhase,
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
    Judged,
}

fn answer<T>(result: Result<T, StoreError>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(StoreError::NotFound { .. }) => Answer::NotFound,
        Err(StoreError::Conflict { .. }) => Answer::Conflict,
        Err(other) => panic!("{other}"),
    }
}

/// Does the call on the store and on the model; gives both answers.
fn step(w: &World, model: &mut BTreeMap<SandboxId, Modelled>, ann: bool, call: &Call) -> (Answer, Answer) {
    let who = scope(w, ann);
    let ids: Vec<_> = model.keys().copied().collect();
    // Of everybody's, so that half of the calls are on another user's.
    let pick = |index: &prop::sample::Index| {
        if ids.is_empty() { SandboxId::from_bits(1) } else { *index.get(&ids) }
    };
    let alive = |model: &mut BTreeMap<SandboxId, Modelled>, id| {
        model.get(&id).is_some_and(|m| m.anns == ann && m.phase != SandboxPhase::Ended)
    };
    match call {
        Call::Reserve { name, memory_mib, allowed } => {
            let mut spec = SandboxSpec::standard(HOUR);
            spec.limits.memory_bytes_max = memory_mib * MIB;
            let text = name.map(|name| format!("name {name}"));
            let new = NewSandbox {
                id: SandboxId::random(),
                name: text.as_deref(),
                spec: &spec,
                about: &SandboxAbout::default(),
                from_snapshot: None,
            };
            let judge = |_: &_, _: &_| if *allowed { Ok(()) } else { Err(()) };
            let real = match w.store.sandbox_reserve(who, &new, NOW, judge) {
                Ok(_) => Answer::Done,
                Err(ReserveError::Judged(())) => Answer::Judged,
                Err(ReserveError::Store(error)) => answer::<()>(Err(error)),
            };
            let taken = name.is_some()
                && model.values().any(|m| m.anns == ann && m.name == *name && m.phase != SandboxPhase::Ended);
            let modelled = match (allowed, taken) {
                (false, _) => Answer::Judged,
                (true, true) => Answer::Conflict,
                (true, false) => {
                    let made = Modelled {
                        anns: ann,
                        name: *name,
                        memory_bytes: spec.limits.memory_bytes_max,
                        phase: SandboxPhase::Starting,
                        lease_until: NOW + HOUR,
                    };
                    model.insert(new.id, made);
                    Answer::Done
                }
            };
            (real, modelled)
        }
        Call::Phase { target, stopping } => {
            let id = pick(target);
            let phase = if *stopping { SandboxPhase::Stopping } else { SandboxPhase::Running };
            let real = answer(w.store.sandbox_set_phase(who, id, phase));
            if !alive(model, id) {
                return (real, Answer::NotFound);
            }
            let modelled = model.get_mut(&id).unwrap();
            if modelled.phase == SandboxPhase::Stopping && !stopping {
                return (real, Answer::Conflict);
            }
            modelled.phase = phase;
            (real, Answer::Done)
        }
        Call::Lease { target, until } => {
            let id = pick(target);
            let real = answer(w.store.sandbox_set_lease(who, id, *until));
            if !alive(model, id) {
                return (real, Answer::NotFound);
            }
            model.get_mut(&id).unwrap().lease_until = *until;
            (real, Answer::Done)
        }
        Call::End { target } => {
            let id = pick(target);
            let real = answer(w.store.sandbox_end(who, id, "asked", NOW));
            if !alive(model, id) {
                return (real, Answer::NotFound);
            }
            model.get_mut(&id).unwrap().phase = SandboxPhase::Ended;
            (real, Answer::Done)
        }
    }
}

fn agrees(w: &World, model: &BTreeMap<SandboxId, Modelled>) {
    for ann in [true, false] {
        let who = scope(w, ann);
        let mine = || model.iter().filter(move |(_, m)| m.anns == ann);
        let alive = || mine().filter(|(_, m)| m.phase != SandboxPhase::Ended);
        let usage = w.store.usage(who).unwrap();
        assert_eq!(usage.sandboxes as usize, alive().count());
        assert_eq!(usage.memory_bytes, alive().map(|(_, m)| m.memory_bytes).sum::<u64>());
        let ask = PageAsk { after: None, items_max: Some(1_000) };
        let page = w.store.sandbox_list(who, SandboxFilter::default(), ask).unwrap();
        assert_eq!(page.items.len(), alive().count());
        for row in page.items {
            let modelled = &model[&row.id];
            assert_eq!((row.phase, row.lease_until), (modelled.phase, modelled.lease_until));
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
