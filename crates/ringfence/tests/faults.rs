//! Faults by enumeration: each part is killed at each step of each operation; nothing is lost, leaked or done twice.

#![allow(unreachable_pub, reason = "the modules are parts of this one test")]

#[path = "faults/adoption.rs"]
mod adoption;
#[path = "faults/field.rs"]
mod field;
#[path = "faults/http.rs"]
mod http;
#[path = "faults/hung.rs"]
mod hung;
#[path = "faults/making.rs"]
mod making;
#[path = "faults/memory.rs"]
mod memory;
#[path = "faults/point.rs"]
mod point;
#[path = "faults/scarce.rs"]
mod scarce;
mod support;

use field::Kind;
use point::{Target, go_through, go_through_of};

#[test]
fn the_server_is_killed_at_every_step() {
    let points = go_through(Target::Server, true);
    assert!(points >= 40, "{points}");
}

#[test]
fn the_warden_is_killed_at_every_step() {
    let points = go_through(Target::Warden, false);
    assert!(points >= 40, "{points}");
}

#[test]
fn process_1_is_killed_at_every_step() {
    let points = go_through(Target::Init, true);
    assert!(points >= 34, "{points}");
}

#[test]
fn a_machine_is_killed_at_every_step() {
    let points = go_through(Target::Machine, false);
    assert!(points >= 32, "{points}");
}

#[test]
fn the_server_of_a_machine_is_killed_at_every_step() {
    let points = go_through(Target::ServerOfMachine, false);
    assert!(points >= 32, "{points}");
}

#[test]
fn whoever_holds_an_image_disk_is_killed_at_every_step() {
    let points = [Target::Server, Target::Warden, Target::Init].map(|target| go_through_of(Kind::Image, target));
    assert!(points.iter().sum::<usize>() >= 40, "{points:?}");
}

#[test]
fn a_rootless_system_is_killed_at_many_steps() {
    let points = [Target::Server, Target::Warden, Target::Init].map(|target| go_through_of(Kind::Rootless, target));
    assert!(points.iter().sum::<usize>() >= 40, "{points:?}");
}
