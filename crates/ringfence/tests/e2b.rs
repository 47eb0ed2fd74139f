//! E2B's own clients, unchanged, through the whole system: the programs in `tests/e2b` drive them, as two users at once.
//!
//! The clients come from their registries at fixed versions (`tests/e2b/install.py`); where they cannot be had these tests
//! fail, with what is missing.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Drives these clients in one of the two ways in which a sandbox is found: by headers, or by names with TLS.
fn drive(mode: &str, clients: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let done = Command::new("python3")
        .arg(root.join("tests/e2b/run.py"))
        .arg(mode)
        .args(clients)
        .env("RINGFENCE_BINARY", env!("CARGO_BIN_EXE_ringfence"))
        .env("RINGFENCE_E2B_CLIENTS", installed())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{}\n{out}\n{err}", done.status);
    for client in clients {
        assert!(out.contains(&format!("== {mode} {client}: 0 ")), "{out}\n{err}");
    }
}

/// Where the clients are kept between runs.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().nth(1).unwrap().join("e2b-clients")
}

#[test]
fn the_python_client_by_headers() {
    drive("header", &["sync", "async"]);
}

#[test]
fn the_python_client_by_names() {
    drive("wildcard", &["sync", "async"]);
}

#[test]
fn the_javascript_client_and_the_command_line_by_headers() {
    drive("header", &["js", "cli"]);
}

#[test]
fn the_javascript_client_and_the_command_line_by_names() {
    drive("wildcard", &["js", "cli"]);
}
