//! Traps for whoever does file operations for a user: FIFOs, devices, links, names. `race.rs` changes them underfoot.

#![allow(dead_code, reason = "each test binary uses a part of what they share")]

#[path = "../../ringfence/tests/support/mod.rs"]
mod support;

mod attacks;
mod field;

use std::fs;

use field::Field;
use serde_json::json;

#[test]
fn a_trap_neither_hangs_nor_leads_out() {
    let field = Field::open();
    let id = field.sandbox_of(&json!({}));
    let secret = field.host_file("secret", "of the host");
    let set = "mkfifo /tmp/fifo; ln -s /tmp/fifo /tmp/to-fifo; ln -s /dev/zero /tmp/to-zero; ln -s /proc/self/environ \
         /tmp/to-environ; ln -s SECRET /tmp/to-host; ln -s ../../../../../../../..SECRET /tmp/to-host-by-dots; ln -s \
         /proc/1/root/etc/passwd /tmp/to-init; ln -s loop /tmp/loop; python3 -c \"import socket; \
         socket.socket(socket.AF_UNIX).bind('/tmp/socket')\"; mkdir /tmp/d; ln -s /proc/self/fd/3 /tmp/to-fd; \
         ln -s /proc/self/mem /tmp/to-mem; echo fine > /tmp/fine; mkfifo /tmp/d/fifo";
    let made = field.exec_in(&id, &json!({ "shell": set.replace("SECRET", secret.to_str().unwrap()) }));
    assert_eq!(made["code"], 0, "{made}");

    assert_eq!(field.read(&id, "/tmp/fine"), Ok("fine\n".to_owned()), "the control");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host", "the control: the file is there on the host");
    for path in [
        "/tmp/fifo",
        "/tmp/to-fifo",
        "/tmp/to-zero",
        "/dev/zero",
        "/dev/tty",
        "/tmp/to-environ",
        "/proc/self/environ",
        "/proc/1/environ",
        "/proc/1/mem",
        "/tmp/to-host",
        "/tmp/to-host-by-dots",
        "/tmp/to-init",
        "/tmp/loop",
        "/tmp/socket",
        "/tmp/d",
        "/tmp/to-fd",
        "/tmp/to-mem",
        "/proc/self/root/etc/hostname",
        "/proc/version",
        secret.to_str().unwrap(),
        "/tmp/fine/x",
        "/tmp/../../../../../../../../../../etc/ringfence",
        "/tmp/\u{0}x",
    ] {
        let refused = field.read(&id, path).expect_err(path);
        assert!(["file_failed", "not_found", "invalid_request"].contains(&refused.as_str()), "{path}: {refused}");
    }
    for path in [
        "/tmp/fifo",
        "/tmp/to-fifo",
        "/tmp/to-zero",
        "/proc/self/mem",
        "/tmp/to-mem",
        "/tmp/socket",
        "/tmp/d",
        "/etc/passwd",
    ] {
        field.write(&id, path, "x").expect_err(path);
    }
    // A link to an absolute path leads to that path of the sandbox, as it does for the sandbox's own programs.
    field.write(&id, "/tmp/inside", "in").unwrap();
    let linked = field.exec_in(&id, &json!({ "shell": "ln -s /tmp/inside /tmp/to-inside" }));
    assert_eq!(linked["code"], 0);
    assert_eq!(field.read(&id, "/tmp/to-inside"), Ok("in".to_owned()));
    // A tree with traps in it comes out without what cannot be read, and without hanging.
    assert!(field.tar_out(&id, "/tmp/d").is_ok_and(|archive| archive.len() >= 1024));
    field.close();
}
