//! Every attack of the lists in `attacks/`: first its control, then inside a sandbox, where it must be refused.

#![allow(dead_code, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

mod attacks;
mod field;

use attacks::Attack;
use field::Field;

/// Runs the attacks of one list, and tells of all that were not contained, not only of the first.
fn contain(list: &[Attack]) {
    let field = Field::open();
    let mut wrong = Vec::new();
    for attack in list {
        if let Err(why) = field.run(attack) {
            wrong.push(format!("{}: {why}", attack.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} not contained:\n{}", wrong.len(), list.len(), wrong.join("\n"));
    println!("{} attacks contained", list.len());
    field.close();
}

#[test]
fn processes_of_the_host_are_out_of_reach() {
    contain(attacks::PROCESSES);
}

#[test]
fn proc_and_sys_tell_and_take_nothing() {
    contain(attacks::PROC);
}

#[test]
fn mounts_and_namespaces_cannot_be_made_or_changed() {
    contain(attacks::MOUNTS);
}

#[test]
fn identity_and_capabilities_cannot_be_gained() {
    contain(attacks::IDENTITY);
}

#[test]
fn kernel_interfaces_off_the_list_are_not_there() {
    contain(attacks::CALLS);
}

#[test]
fn sockets_reach_nobody_and_odd_families_are_not_there() {
    contain(attacks::SOCKETS);
}

#[test]
fn the_servers_secrets_and_descriptors_are_not_inside() {
    contain(attacks::SECRETS);
}

#[test]
fn every_number_that_is_not_printed_answers_enosys_on_the_kernel_itself() {
    let field = Field::open();
    let listed = field.listed();
    assert!((200..=300).contains(&listed.len()), "{}", listed.len());
    assert_eq!(field.numbers_beside(&listed), ["", ""]);
    // The control: getpid, getuid and gettid, were they not listed.
    let fewer: Vec<u64> = listed.into_iter().filter(|number| ![39, 102, 186].contains(number)).collect();
    assert_eq!(field.numbers_beside(&fewer), ["39,102,186", "39,102,186"]);
    field.close();
}

#[test]
fn there_are_at_least_eighty() {
    assert!(attacks::count() >= 80, "{}", attacks::count());
}
