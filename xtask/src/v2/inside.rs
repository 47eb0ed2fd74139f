//! The part of the runner that runs in the machine: mounts what a host has, runs the tests, reports.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    PATH, output,
    plan::{DOCTOR, END, Plan, Test},
    run,
};

/// The second serial port.
const REPORT: &str = "/dev/ttyS1";
/// How long one test may take. Chosen: several times what the longest takes without hardware's help.
const WITHIN: Duration = Duration::from_secs(240);

/// Runs the plan in the machine; `Err` and all else but the report is for who reads the console.
pub(crate) fn inside(plan: &str) -> ExitCode {
    match machine(Path::new(plan)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn machine(plan: &Path) -> Result<()> {
    ensure!(std::process::id() != 1 && fs::read_to_string("/proc/cmdline")?.contains("cgroup_no_v1=all"), "no machine");
    let plan: Plan = serde_json::from_slice(&fs::read(plan).with_context(|| plan.display().to_string())?)?;
    let mut report = fs::File::options().write(true).open(REPORT).context(REPORT)?;
    host()?;
    let mut all_at_once = true;
    for test in &plan.tests {
        let begun = Instant::now();
        let once = || {
            let outcome = if test.name == DOCTOR { doctor(&plan.ringfence) } else { tested(test) };
            outcome.inspect_err(|error| println!("v2: {}: {error:#}", test.name)).is_ok()
        };
        // As on the host (.config/nextest.toml): what fails runs once more, and one that passes only then is named.
        let first = once();
        all_at_once &= first;
        let word = if first || once() { "passed" } else { "FAILED" };
        let tries = if first { "" } else { ", two tries" };
        // One write for each line: whoever reads sees whole ones.
        let line = format!("{word} {} {:.1} s{tries}\n", test.name, begun.elapsed().as_secs_f64());
        report.write_all(line.as_bytes())?;
    }
    // A test that fails may leave what it would have removed.
    if all_at_once {
        left()?;
    }
    report.write_all(format!("{END}\n").as_bytes())?;
    report.flush()?;
    Ok(())
}

/// Mounts what is on every host, as systemd does it.
fn host() -> Result<()> {
    let mount = |kind: &str, options: &str, at: &str| {
        run(Command::new("mount").env("PATH", PATH).args(["-t", kind, "-o", options, kind, at]))
    };
    mount("sysfs", "nosuid,nodev,noexec", "/sys")?;
    mount("cgroup2", "nosuid,nodev,noexec,nsdelegate,memory_recursiveprot", "/sys/fs/cgroup")?;
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir_all(dir)?;
    }
    mount("devpts", "nosuid,noexec,gid=5,mode=620,ptmxmode=666", "/dev/pts")?;
    mount("tmpfs", "nosuid,nodev,mode=1777", "/dev/shm")?;
    mount("mqueue", "nosuid,nodev,noexec", "/dev/mqueue")?;
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let path = Path::new("/dev").join(name);
        if !path.exists() {
            symlink(target, &path).with_context(|| path.display().to_string())?;
        }
    }
    run(Command::new("ip").env("PATH", PATH).args(["link", "set", "lo", "up"]))?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    ensure!(groups.trim() == "0::/", "the machine has control groups of version 1: {groups}");
    Ok(())
}

/// Runs one test by itself, and looks that it was run. What it says on standard error goes to the console.
fn tested(test: &Test) -> Result<()> {
    let said = Path::new("/run/said");
    let mut child = Command::new(&test.executable)
        .args(["--exact", &test.name, "--test-threads", "1", "--include-ignored", "--nocapture"])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/tmp")
        .env("RUST_BACKTRACE", "1")
        .current_dir(&test.folder)
        .stdin(Stdio::null())
        .stdout(fs::File::create(said)?)
        .spawn()
        .with_context(|| test.executable.display().to_string())?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > WITHIN {
            processes()?;
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = fs::read_to_string(said)?;
    ensure!(status.success() && text.contains("test result: ok. 1 passed; 0 failed"), "{status}: {text}");
    Ok(())
}

/// Prints every process and where in the kernel it is: for who looks why a test did not end.
fn processes() -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let line = read("cmdline").replace('\0', " ");
        if !line.is_empty() {
            println!("{} {line}\n{}{}", dir.display(), read("stack"), read("cgroup"));
        }
    }
    Ok(())
}

/// `doctor` on this machine: every layer is there, and limits are in the tree of version 2.
fn doctor(ringfence: &Path) -> Result<()> {
    let report = output(Command::new(ringfence).env("PATH", PATH).args(["--json", "doctor"]))?;
    let report: Value = serde_json::from_slice(&report)?;
    println!("v2: {report}");
    ensure!(report["mode"] == "rooted" && report["missing"] == 0, "something is missing");
    ensure!(report["disk_image"]["available"] == true, "no disks on images");
    let layers = report["layers"].as_array().context("no layers")?;
    for name in ["memory", "tasks", "cpu", "io"] {
        let layer = layers.iter().find(|layer| layer["layer"] == name).with_context(|| format!("no {name}"))?;
        ensure!(layer["available"] == true && layer["evidence"] == "version 2", "{layer}");
    }
    Ok(())
}

/// Nothing of the tests is left: no control group.
fn left() -> Result<()> {
    let mut groups = Vec::new();
    for entry in fs::read_dir("/sys/fs/cgroup")? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            groups.push(entry.file_name());
        }
    }
    ensure!(groups.is_empty(), "control groups are left: {groups:?}");
    Ok(())
}
