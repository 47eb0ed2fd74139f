//! What the gate adds to a request, in microseconds: `cargo bench -p rf-gate`. Says; holds nobody to it.
//!
//! Each number is of one thread on a store in a directory of its own, with 1,000 users of 3 sandboxes each beside.

use std::{
    hint::black_box,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use rf_gate::{Gate, GateConfig, KeyAsked, KeyForm, Presented, Rate};
use rf_policy::{Action, Asked, UserUsage};
use rf_store::{NewSandbox, NewUser, Store};
use rf_types::{RequestId, SandboxAbout, SandboxId, SandboxSpec, UserLimits};

/// Runs `work` 20,000 times and prints the median, the 99th percentile and the mean, microseconds.
fn measure(name: &str, mut work: impl FnMut()) {
    const ROUNDS: usize = 20_000;
    for _ in 0..ROUNDS / 10 {
        work();
    }
    let mut nanos: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_nanos()
        })
        .collect();
    nanos.sort_unstable();
    let us = |nanos: u128| nanos as f64 / 1_000.0;
    let mean = us(nanos.iter().sum::<u128>()) / ROUNDS as f64;
    println!(
        "{name:<44} p50 {:>7.1}  p99 {:>7.1}  mean {mean:>7.1}",
        us(nanos[ROUNDS / 2]),
        us(nanos[ROUNDS * 99 / 100])
    );
}

fn main() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let dir = tempfile::tempdir().expect("a directory");
    let (store, system) = Store::open(dir.path()).expect("a store");
    let rate = Rate { per_second: 1_000_000, burst: 10_000_000 };
    let gate = Gate::new(store.clone(), GateConfig { requests: rate, ..GateConfig::default() }).expect("a gate");
    let (_, _, first) = gate.bootstrap(&system, &"root".parse().expect("a name"), now).expect("a first user");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let authenticate =
        |text: &str| runtime.block_on(gate.authenticate(Presented::Bearer(text), None, now)).expect("a good key");
    let root = authenticate(first.reveal());
    let operator = root.operator().expect("an operator");
    let spec = SandboxSpec::standard(3_600_000);
    let mut secret = None;
    for n in 0..1_000 {
        let name = format!("user{n}").parse().expect("a name");
        let new = NewUser { name, operator: false, limits: UserLimits::STANDARD };
        let (_, user) = store.user_create(operator, &new, now).expect("a user");
        let permit = gate.permit(&root, Action::Operate, RequestId::random(), Asked::Nothing, now).expect("a permit");
        let asked = KeyAsked { name: "k", form: KeyForm::Ringfence, scopes: None, expires: None };
        let (_, key) = gate.key_make_for(&permit, operator, user.id, &asked, now).expect("a key");
        for _ in 0..3 {
            let about = SandboxAbout::default();
            let new =
                NewSandbox { id: SandboxId::random(), name: None, spec: &spec, about: &about, from_snapshot: None };
            store.sandbox_insert(&system, user.id, &new, now, now + spec.lease_ms).expect("a row");
        }
        secret = Some(key);
    }
    let secret = secret.expect("there are users");
    let who = authenticate(secret.reveal());
    let usage = UserUsage { sandboxes: 3, ..UserUsage::default() };

    println!("microseconds:");
    measure("authenticate by key", || drop(black_box(authenticate(secret.reveal()))));
    measure("permit, without a quota", || {
        black_box(gate.permit(&who, Action::FileRead, RequestId::random(), Asked::Nothing, now)).map(drop).expect("yes")
    });
    let exec = Asked::Exec { root: false };
    measure("permit one more exec", || {
        black_box(gate.permit_with(&who, Action::Exec, RequestId::random(), exec.clone(), &usage, now))
            .map(drop)
            .expect("yes")
    });
    measure("authenticate and permit one more exec", || {
        let who = authenticate(secret.reveal());
        black_box(gate.permit_with(&who, Action::Exec, RequestId::random(), exec.clone(), &usage, now))
            .map(drop)
            .expect("yes")
    });
    measure("permit one more sandbox", || {
        let asked = Asked::Sandbox(&spec);
        black_box(gate.permit_with(&who, Action::SandboxCreate, RequestId::random(), asked, &usage, now))
            .map(drop)
            .expect("yes")
    });
    measure("refuse a key that is not known", || {
        let unknown = "rf_0000000000000000000000000000000000000000";
        black_box(runtime.block_on(gate.authenticate(Presented::Bearer(unknown), None, now)))
            .map(drop)
            .expect_err("no");
    });
}
