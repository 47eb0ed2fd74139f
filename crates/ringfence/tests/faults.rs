//! Faults by enumeration: each part is killed at each step of each operation; nothing is lost, leaked or done twice.

#![allow(unreachable_pub, reason = "the modules are parts of this one test")]

#[path = "faults/field.rs"]
mod field;
#[path = "faults/http.rs"]
mod http;
#[path = "faults/point.rs"]
mod point;
mod support;

use field::Field;
use point::{Target, go_through};

#[test]
fn the_server_is_killed_at_every_step() {
    let mut field = Field::start();
    field.watch();
    let points = go_through(&mut field, Target::Server);
    assert!(points >= 35, "{points}");
    field.ask_witness();
    field.end();
}

#[test]
fn the_warden_is_killed_at_every_step() {
    let mut field = Field::start();
    let points = go_through(&mut field, Target::Warden);
    assert!(points >= 35, "{points}");
    field.end();
}

#[test]
fn process_1_is_killed_at_every_step() {
    let mut field = Field::start();
    field.watch();
    let points = go_through(&mut field, Target::Init);
    assert!(points >= 30, "{points}");
    field.ask_witness();
    field.end();
}

#[test]
fn a_machine_is_killed_at_every_step() {
    let mut field = Field::start();
    field.join().unwrap();
    let points = go_through(&mut field, Target::Machine);
    assert!(points >= 25, "{points}");
    field.end();
}

#[test]
fn the_server_of_a_machine_is_killed_at_every_step() {
    let mut field = Field::start();
    field.join().unwrap();
    let points = go_through(&mut field, Target::ServerOfMachine);
    assert!(points >= 25, "{points}");
    field.end();
}
