//! Every attack of the lists in `attacks/`: first its control, then inside a sandbox, where it must be refused.

#![allow(dead_code, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

mod attacks;
mod field;

use attacks::Attack;
use field::Field;
use serde_json::json;

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

/// Counts for a second and a half what happens to devices, by inotify(7); but for `tty`, which every bash opens.
const WATCH: &str = "
import ctypes, os, select, struct, time
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
for path in (b'/dev', b'/dev/null', b'/dev/urandom'):
    assert libc.inotify_add_watch(watch, path, 0xfff) > 0
open('/tmp/watching', 'w').close()
end, events = time.monotonic() + 1.5, 0
while (left := end - time.monotonic()) > 0:
    if select.select([watch], [], [], left)[0]:
        data = os.read(watch, 65536)
        while data:
            length = struct.unpack('iIII', data[:16])[3]
            events += data[16:16 + length].rstrip(b'\\0') != b'tty'
            data = data[16 + length:]
with open('/tmp/part', 'w') as file:
    file.write(str(events))
os.rename('/tmp/part', '/tmp/events')
";

#[test]
fn nobody_sees_what_others_do_with_devices() {
    let field = Field::open();
    let (watcher, other) = (field.sandbox_of(&json!({})), field.sandbox_of(&json!({})));
    let touch = json!({ "shell": ": < /dev/null; : > /dev/null; ls /dev > /dev/null; head -c 1 /dev/urandom | wc -c" });
    // The control is whoever does it in the watcher's own sandbox.
    for (who, is_seen) in [(&watcher, true), (&other, false)] {
        field.exec_in(&watcher, &json!({ "argv": ["python3", "-c", WATCH], "background": true }));
        let wait = "while [ ! -e /tmp/watching ]; do sleep 0.02; done; rm /tmp/watching";
        assert_eq!(field.exec_in(&watcher, &json!({ "shell": wait }))["code"], 0);
        let started = field.exec_in(who, &touch);
        assert_eq!(started["stdout"], "1\n", "{started}");
        let count = "while [ ! -e /tmp/events ]; do sleep 0.1; done; cat /tmp/events; rm /tmp/events";
        let said = field.exec_in(&watcher, &json!({ "shell": count }));
        let events: u64 = said["stdout"].as_str().unwrap().parse().unwrap();
        assert_eq!(events > 0, is_seen, "{events} events");
    }
    // Nor is one in the way of the other.
    let hold = json!({ "shell": "flock -n /dev/null sh -c 'touch /tmp/held; sleep 1000'", "background": true });
    field.exec_in(&watcher, &hold);
    let wait = "while [ ! -e /tmp/held ]; do sleep 0.02; done; flock -n /dev/null true";
    assert_eq!(field.exec_in(&watcher, &json!({ "shell": wait }))["code"], 1);
    assert_eq!(field.exec_in(&other, &json!({ "shell": "flock -n /dev/null true" }))["code"], 0);
    field.close();
}

#[test]
fn there_are_at_least_eighty() {
    assert!(attacks::count() >= 80, "{}", attacks::count());
}
