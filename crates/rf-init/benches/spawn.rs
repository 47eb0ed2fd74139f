//! From a `SPAWN` sent to its `EXITED` received, for `/bin/true`, in one live init: `cargo bench -p rf-init`.
//!
//! Prints percentiles in microseconds, with and without a cgroup for each exec, beside a fork and exec of the same
//! program by this process. Not a test: nothing is asserted about time.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Exec, Field, Options};
use rf_wire::init::{answer, order};

const RUNS: u128 = 2000;

fn report(what: &str, mut times: Vec<u128>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {} us, p90 {} us, p99 {} us", at(50), at(90), at(99));
}

fn execs(options: Options) -> Vec<u128> {
    let field = Field::with(options);
    (0..RUNS)
        .map(|id| {
            let exec = Exec::new(id, &["/bin/true"]);
            let start = Instant::now();
            let spawned = field.spawned(&exec);
            assert_eq!(field.server.next().kind, answer::EXITED);
            let took = start.elapsed().as_micros();
            drop(spawned);
            field.server.order(order::FORGET, 1, |writer| writer.u128(id), &[]);
            assert_eq!(field.server.next().kind, answer::DONE);
            took
        })
        .collect()
}

fn main() {
    let children = (0..RUNS).map(|_| {
        let start = Instant::now();
        assert!(std::process::Command::new("/bin/true").status().expect("true runs").success());
        start.elapsed().as_micros()
    });
    report("fork and exec by the host", children.collect());
    report("exec by init", execs(Options::default()));
    report("exec by init, a cgroup each", execs(Options { cgroups: true, ..Options::default() }));
}
