//! Claims: what a user may have is judged and counted in one step, so that two at once never both get the last of it.

mod support;

use std::sync::{
    Arc, Barrier,
    atomic::{AtomicU32, Ordering},
};

use futures::FutureExt as _;
use rf_places::{ExecClaim, Making, Place, Places, SandboxClaim};
use rf_policy::{Action, Asked, Credential, Permit, Principal, Question, Scope, UserUsage, judge};
use rf_types::{Code, ExecId, Fault, KeyId, RequestId, SandboxSpec, SignalScope, UserId, UserLimits};
use support::{Field, server, shell, user};

const HOUR: u64 = 3_600_000;
/// How often two threads meet for the last of something.
const ROUNDS: u32 = 1_000;

/// The product's judge, for a user who may have `limits`.
fn judged(
    user: UserId,
    limits: &UserLimits,
    action: Action,
    asked: Asked<'_>,
    usage: &UserUsage,
) -> Result<Permit, Fault> {
    let principal = Principal {
        user,
        username: "ann".parse().unwrap(),
        credential: Credential::Key { id: KeyId::from_bits(1) },
        scopes: vec![Scope::Run],
    };
    judge(&Question { principal: &principal, action, request: RequestId::random(), limits, usage, asked })
}

fn claim_sandbox(places: &Places, who: UserId, spec: &SandboxSpec, limits: &UserLimits) -> Result<SandboxClaim, Fault> {
    places.claim_sandbox(who, spec.clone(), |usage| {
        judged(who, limits, Action::SandboxCreate, Asked::Sandbox(spec), usage)
    })
}

fn claim_exec(places: &Places, who: UserId, limits: &UserLimits) -> Result<ExecClaim, Fault> {
    places.claim_exec(who, |usage| judged(who, limits, Action::Exec, Asked::Exec { root: false }, usage))
}

/// Two threads claim at the same moment, [`ROUNDS`] times; gives how many claims were made. What was not made must have
/// been refused for the limit.
fn race<T>(claim: impl Fn() -> Result<T, Fault> + Sync) -> u32 {
    let (barrier, made) = (Barrier::new(2), AtomicU32::new(0));
    let one = || {
        for _ in 0..ROUNDS {
            barrier.wait();
            let answer = claim();
            barrier.wait();
            match &answer {
                Ok(_) => drop(made.fetch_add(1, Ordering::Relaxed)),
                Err(fault) => assert_eq!(fault.code, Code::LimitReached),
            }
            drop(answer);
            barrier.wait();
        }
    };
    std::thread::scope(|threads| {
        threads.spawn(one);
        threads.spawn(one);
    });
    made.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_creates_never_both_take_the_last_slot() {
    let field = Field::new();
    let places = field.places().await;
    let spec = SandboxSpec::standard(HOUR);
    let limits = UserLimits { sandboxes_max: 1, ..UserLimits::STANDARD };
    assert_eq!(race(|| claim_sandbox(&places, user(1), &spec, &limits)), ROUNDS);
    assert_eq!(places.usage(user(1)), UserUsage::default());
    // Control: with room for both, both get it.
    assert_eq!(race(|| claim_sandbox(&places, user(1), &spec, &UserLimits::STANDARD)), 2 * ROUNDS);
    assert_eq!(places.usage(user(1)), UserUsage::default());
}

#[test]
fn two_execs_never_both_take_the_last_slot() {
    let field = Field::new();
    let (limits, exec) = (UserLimits { execs_max: 2, ..UserLimits::STANDARD }, ExecId::random());
    server(async {
        let places = field.places().await;
        let claim = support::claim_sandbox(&places, user(1));
        let place: Arc<dyn Place> = places.sandboxes().create(claim, Making::default()).await.unwrap();
        let claim = claim_exec(&places, user(1), &limits).unwrap();
        places.execs().run_background(claim, &place, exec, &shell("sleep 1000")).await.unwrap();
    });
    server(async {
        // It ran before this server came: it counts, limit or not.
        let places = field.places().await;
        assert_eq!(places.usage(user(1)).execs, 1);
        assert_eq!(race(|| claim_exec(&places, user(1), &limits)), ROUNDS);
        assert_eq!(places.usage(user(1)).execs, 1);
        let none = UserLimits { execs_max: 0, ..limits };
        assert_eq!(claim_exec(&places, user(1), &none).unwrap_err().code, Code::LimitReached);
        let control = support::permit_of(user(1), Action::ExecControl);
        places.execs().signal(&control, exec, 9, SignalScope::Tree).await.unwrap();
        places.execs().wait(&support::permit_of(user(1), Action::ExecRead), exec).await.unwrap();
        assert_eq!(places.usage(user(1)).execs, 0);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_limit_of_a_sandbox_holds_and_a_refusal_counts_nothing() {
    let field = Field::new();
    let places = field.places().await;
    let spec = SandboxSpec::standard(HOUR);
    let l = spec.limits;
    let exact = UserLimits {
        sandboxes_max: 1,
        cpu_milli_max: l.cpu_milli_max,
        memory_bytes_max: l.memory_bytes_max,
        disk_bytes_max: l.disk_bytes_max,
        lease_ms_max: spec.lease_ms,
        root_allowed: true,
        ..UserLimits::STANDARD
    };
    for (name, limits, expected) in [
        ("sandboxes", UserLimits { sandboxes_max: 0, ..exact }, Code::LimitReached),
        ("cpu", UserLimits { cpu_milli_max: l.cpu_milli_max - 1, ..exact }, Code::LimitReached),
        ("memory", UserLimits { memory_bytes_max: l.memory_bytes_max - 1, ..exact }, Code::LimitReached),
        ("disk", UserLimits { disk_bytes_max: l.disk_bytes_max - 1, ..exact }, Code::LimitReached),
        ("lease", UserLimits { lease_ms_max: spec.lease_ms - 1, ..exact }, Code::LimitReached),
        ("root", UserLimits { root_allowed: false, ..exact }, Code::Forbidden),
    ] {
        let refused = claim_sandbox(&places, user(1), &spec, &limits).unwrap_err();
        assert_eq!(refused.code, expected, "{name}");
        assert_eq!(places.usage(user(1)), UserUsage::default(), "{name}");
    }
    let claim = claim_sandbox(&places, user(1), &spec, &exact).unwrap();
    assert_eq!(claim_sandbox(&places, user(1), &spec, &exact).unwrap_err().code, Code::LimitReached);
    // Each sum by itself, where the number of sandboxes is no limit.
    let many = UserLimits { sandboxes_max: 9, ..exact };
    let twice = |limits| claim_sandbox(&places, user(1), &spec, &limits);
    for limits in [
        UserLimits { cpu_milli_max: 2 * l.cpu_milli_max, memory_bytes_max: 2 * l.memory_bytes_max, ..many },
        UserLimits { cpu_milli_max: 2 * l.cpu_milli_max, disk_bytes_max: 2 * l.disk_bytes_max, ..many },
        UserLimits { memory_bytes_max: 2 * l.memory_bytes_max, disk_bytes_max: 2 * l.disk_bytes_max, ..many },
    ] {
        assert_eq!(twice(limits).unwrap_err().code, Code::LimitReached, "{limits:?}");
    }
    // Another user's is none of theirs.
    let theirs = claim_sandbox(&places, user(2), &spec, &exact).unwrap();
    drop((claim, theirs));
    for who in [1, 2] {
        assert_eq!(places.usage(user(who)), UserUsage::default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_of_another_user_claims_nothing() {
    let field = Field::new();
    let places = field.places().await;
    let spec = SandboxSpec::standard(HOUR);
    let others = |action| Ok(support::permit_of(user(2), action));
    let refused = places.claim_sandbox(user(1), spec, |_| others(Action::SandboxCreate)).unwrap_err();
    assert_eq!(refused.code, Code::Internal);
    assert_eq!(places.claim_exec(user(1), |_| others(Action::Exec)).unwrap_err().code, Code::Internal);
    for who in [1, 2] {
        assert_eq!(places.usage(user(who)), UserUsage::default());
    }
}

#[tokio::test]
async fn other_limits_are_counted_from_their_judgement_on_and_also_when_nobody_waits_for_them() {
    let field = Field::new();
    let places = field.places().await;
    let who = user(1);
    let spec = SandboxSpec::standard(HOUR);
    let (has, wants) = (spec.limits.memory_bytes_max, spec.limits.memory_bytes_max * 2);
    // As much as one large sandbox takes, and no more.
    let limits = UserLimits { memory_bytes_max: wants, ..UserLimits::STANDARD };
    let claim = claim_sandbox(&places, who, &spec, &limits).unwrap();
    let made = places.sandboxes().create(claim, Making::default()).await.unwrap();
    let id = made.sandbox_id();
    let larger = || {
        let over = |row: &rf_places::SandboxRow| rf_types::Limits { memory_bytes_max: wants, ..row.spec.limits };
        places.claim_limits(who, id, over, |row, limits, usage| {
            assert_eq!((usage.sandboxes, usage.memory_bytes), (0, 0), "what it has is not beside it");
            let spec = SandboxSpec { limits: *limits, ..row.spec.clone() };
            judged(who, &limits_of_all(wants), Action::SandboxUpdate, Asked::Sandbox(&spec), usage)
        })
    };
    let claim = larger().unwrap();
    assert_eq!(places.usage(who).memory_bytes, wants);
    let second = claim_sandbox(&places, who, &spec, &limits).map(drop);
    assert_eq!(second.unwrap_err().code, Code::LimitReached, "another cannot have what was just given");
    drop(claim);
    assert_eq!(places.usage(who).memory_bytes, has, "not used, it is given back");

    // Its caller goes away in the middle; what the warden gave is counted all the same.
    assert!(places.sandboxes().set_limits(larger().unwrap(), id).now_or_never().is_none());
    while places.sandboxes().row(who, id).unwrap().spec.limits.memory_bytes_max != wants {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert_eq!(places.usage(who).memory_bytes, wants);
    assert_eq!(places.usage(who).sandboxes, 1);
}

fn limits_of_all(memory_bytes_max: u64) -> UserLimits {
    UserLimits { memory_bytes_max, ..UserLimits::STANDARD }
}
