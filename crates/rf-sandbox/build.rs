//! Builds `rf-init`, process 1 of a sandbox, and puts it at `OUT_DIR/rf-init` to be embedded.
//!
//! It is a program without std and without libc, of a profile and flags of its own, so it is built by a cargo of its own
//! in a target directory of its own. It needs nothing that the crates around it do not need already.

use std::{env, fs, path::PathBuf};

include!("../rf-init/guest_build.rs");

fn main() {
    let from_cargo = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    let root = PathBuf::from(from_cargo("CARGO_MANIFEST_DIR")).join("../..");
    let out = PathBuf::from(from_cargo("OUT_DIR"));
    for path in [
        "Cargo.toml",
        "crates/rf-init/Cargo.toml",
        "crates/rf-init/guest_build.rs",
        "crates/rf-init/src",
        "crates/rf-sys/Cargo.toml",
        "crates/rf-sys/src/guest",
        "crates/rf-sys/src/lib.rs",
        "crates/rf-wire/Cargo.toml",
        "crates/rf-wire/src/detail.rs",
        "crates/rf-wire/src/frames.rs",
        "crates/rf-wire/src/init.rs",
        "crates/rf-wire/src/lib.rs",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let built = build_guest(&root, &out.join("guest"), &from_cargo("TARGET"));
    match built.and_then(|path| fs::copy(&path, out.join("rf-init")).map_err(|error| error.to_string())) {
        Ok(_) => {}
        Err(why) => {
            println!("cargo::error={}", why.replace('\n', "\ncargo::error="));
        }
    }
}
