// Builds `rf-init` as the program it is: static, no libc, its own entry. Included by `crates/rf-sandbox/build.rs`, which
// embeds it, and by the tests here, so that what is tested is what is shipped.

/// Arguments of the linker and the compiler; each says why.
const GUEST_RUSTFLAGS: [&str; 12] = [
    // Nothing but our own code: the entry and the memory functions are in rf-sys.
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    // At a fixed address: no relocation, so no page of data is touched before `main`.
    "-Clink-arg=-no-pie",
    "-Crelocation-model=static",
    // No unwinding: a panic ends the program.
    "-Cforce-unwind-tables=no",
    "-Cpanic=abort",
    // One segment of read-only bytes and code together: fewer mappings and fewer pages for each sandbox.
    "-Clink-arg=-Wl,-z,noseparate-code",
    "-Clink-arg=-Wl,-z,norelro",
    "-Clink-arg=-Wl,-z,max-page-size=4096",
    "-Clink-arg=-Wl,--build-id=none",
    // rustix: the system calls themselves, never libc.
    "--cfg=rustix_use_linux_raw_backend",
];

/// Builds the program below `target_dir` and gives its path.
///
/// # Errors
/// What cargo said.
fn build_guest(root: &std::path::Path, target_dir: &std::path::Path, target: &str) -> Result<std::path::PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--package", "rf-init", "--bin", "rf-init"])
        .args(["--features", "guest", "--profile", "guest", "--target", target, "--target-dir"])
        .arg(target_dir);
    // What the outer build was told about flags, wrappers (clippy) and places is not meant for this one.
    for name in [
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", GUEST_RUSTFLAGS.join("\u{1f}"));
    let output = command.output().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("building rf-init failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target_dir.join(target).join("guest").join("rf-init"))
}
