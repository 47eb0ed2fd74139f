//! Execs: start, streams, ends, signals, deadlines, what is kept for another server.

mod common;

use common::{Exec, Field, Options};
use rf_wire::init::{answer, order, ready, spawn, stage};

#[test]
fn true_starts_and_ends() {
    let field = Field::start();
    let done = field.run(&Exec::new(1, &["/bin/true"]));
    assert_eq!((done.code(), done.exited.timed_out), (0, 0));
    assert!(done.exited.wall_us > 0 && done.exited.memory_peak_bytes > 0);
    let done = field.run(&Exec::new(2, &["false"]));
    assert_eq!(done.code(), 1);
}
