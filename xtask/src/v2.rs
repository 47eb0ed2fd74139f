//! Runs tests on a host of control groups version 2 alone: a virtual machine with Debian's kernel, this host's packages and
//! what was built here.
//!
//! Most machines of the field have one tree of version 2; build machines often still have version 1. So the tests that
//! look at control groups run here once more, whatever the host has. Nothing is installed: the kernel is unpacked below
//! the target directory and booted by QEMU, with hardware's help where there is `/dev/kvm`, and else, slowly, without.
//!
//! ```text
//!  this host                                        the machine
//!  build the tests, write plan                      /init: modules, root, this folder by 9p
//!  start qemu ───────── first serial port ───────▶  console: kernel, tests that failed
//!  read the report ◀─── second serial port ───────  one line for each check, and an end
//! ```
//!
//! What counts is the second port alone, to which nobody else in the machine writes: each check of the plan must be there
//! once as passed, and `end` after them. A machine that ends, hangs or boots otherwise has not said so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tidy;

mod image;
mod inside;
mod kernel;
mod plan;

pub(crate) use inside::inside;
use plan::{CHECKS, Check};

/// How long the machine may take in all. A slow builder without hardware's help takes a third of it. Chosen.
const WITHIN: Duration = Duration::from_secs(25 * 60);
/// How long a machine with hardware's help may take until its first program says something. Chosen: it takes a second.
const SPEAKS_WITHIN: Duration = Duration::from_secs(30);
/// Memory of the machine, MiB: several sandboxes at their limits, and the files that are read. Chosen.
const MEMORY_MIB: u32 = 2048;
/// Lines of the console that are shown of a machine that failed.
const SHOWN: usize = 80;
/// Set to anything, hardware's help is not used: as where there is none.
const SLOW: &str = "RINGFENCE_V2_SLOW";

/// `cargo xtask v2 [--workspace] [FILTER]`: all checks, or those whose names have `FILTER` in them. With `--workspace` the
/// tests are those that `./test` has built; without, only the packages that are needed are built.
pub(crate) fn command(args: impl Iterator<Item = String>) -> ExitCode {
    let (mut workspace, mut filter) = (false, None);
    for arg in args {
        match arg.as_str() {
            "--workspace" => workspace = true,
            _ => filter = Some(arg),
        }
    }
    match all(workspace, filter.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all(workspace: bool, filter: Option<&str>) -> Result<()> {
    let root = tidy::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let dir = target.join("v2");
    fs::create_dir_all(&dir)?;
    let checks: Vec<Check> =
        CHECKS.into_iter().filter(|check| filter.is_none_or(|filter| check.name.contains(filter))).collect();
    ensure!(!checks.is_empty(), "no check has `{}` in its name", filter.unwrap_or_default());
    plan::write(&dir.join("plan"), &executables(&root, workspace)?, &checks)?;

    let program = std::env::current_exe()?;
    // What process 1 does once it has the host's root; the kernel reboots by `b`, which ends QEMU.
    let second = format!(
        "ulimit -Hn 524288; {} v2-inside {}; echo b > /proc/sysrq-trigger; sleep 60",
        quoted(&program)?,
        quoted(&dir.join("plan"))?
    );
    let shared: Vec<&Path> = if target.starts_with(&root) { vec![&root] } else { vec![&root, &target] };
    let kernel = kernel::kernel(&dir, &shared, &second)?;
    let image = image::image(&dir)?;
    let begun = Instant::now();
    let kvm = std::env::var_os(SLOW).is_none() && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let mut machine = Machine::boot(&dir, &kernel, &image, &shared, kvm)?;
    if kvm && !machine.speaks(&dir)? {
        // As on some machines that are virtual themselves.
        println!("v2: there is /dev/kvm, and nothing boots with it");
        drop(machine);
        machine = Machine::boot(&dir, &kernel, &image, &shared, false)?;
    }
    let verdict = machine.watch(&checks, begun);
    if verdict.is_err() {
        let console = String::from_utf8_lossy(&fs::read(dir.join("console"))?).into_owned();
        let lines: Vec<&str> = console.lines().collect();
        eprintln!("v2: the end of the machine's console, which is all in {}:", dir.join("console").display());
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            eprintln!("    {}", line.trim_end());
        }
    }
    verdict?;
    println!("v2: {} checks held on Linux {} ({:.0?})", checks.len(), kernel.release, begun.elapsed());
    Ok(())
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> Result<String> {
    let path = path.to_str().context("a path that is no text")?;
    // The line stands in single quotes itself.
    ensure!(!path.contains(['\'', '"', '$', '`', '\\']), "a path that a shell would read otherwise: {path}");
    Ok(format!("\"{path}\""))
}

/// Builds the tests; each executable with its package and target.
fn executables(root: &Path, workspace: bool) -> Result<Vec<plan::Executable>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--locked", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]);
    if workspace {
        cargo.arg("--workspace");
    } else {
        let mut packages: Vec<&str> = CHECKS.iter().map(|check| check.package).collect();
        packages.sort_unstable();
        packages.dedup();
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    }
    let messages = match std::env::var_os("V2_DEV") {
        Some(p) => fs::read_to_string(p)?,
        None => String::from_utf8(output(cargo.current_dir(root))?)?,
    };
    let mut found = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("cargo's messages")?;
        let Some(executable) = message["executable"].as_str() else { continue };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let manifest = PathBuf::from(text(&message["manifest_path"]));
        let folder = manifest.parent().context("a manifest is in a folder")?.to_owned();
        let package = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let test = message["profile"]["test"].as_bool() == Some(true);
        found.push(plan::Executable {
            package,
            target: text(&message["target"]["name"]),
            test,
            path: executable.into(),
            folder,
        });
    }
    Ok(found)
}

/// A machine that runs; ended with this value, whatever happens.
struct Machine {
    qemu: Child,
    report: PathBuf,
}

impl Machine {
    fn boot(dir: &Path, kernel: &kernel::Kernel, image: &Path, shared: &[&Path], kvm: bool) -> Result<Self> {
        let (report, console) = (dir.join("report"), dir.join("console"));
        // Of no earlier machine.
        fs::write(&report, "")?;
        fs::write(&console, "")?;
        let path = |path: &Path| {
            let text = path.to_str().context("a path that is no text")?;
            ensure!(!text.contains(','), "a comma in a path, which QEMU reads otherwise: {text}");
            Ok(text.to_owned())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-smp", "2"])
            .args(["-m", &MEMORY_MIB.to_string()])
            .args(if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg,thread=multi", "-cpu", "max"] })
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&kernel.initramfs)
            // A kernel that panics ends the machine.
            .args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"])
            .args(["-serial", &format!("file:{}", path(&console)?), "-serial", &format!("file:{}", path(&report)?)])
            // What is written to it goes to a file without a name, and with the machine.
            .args(["-drive", &format!("file={},if=virtio,format=raw,cache=unsafe,snapshot=on", path(image)?)])
            .env("TMPDIR", dir)
            .stdin(Stdio::null());
        for (number, folder) in shared.iter().enumerate() {
            let (folder, tag) = (path(folder)?, kernel::share(number));
            qemu.args([
                "-virtfs",
                &format!("local,path={folder},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"),
            ]);
        }
        println!(
            "v2: booting Linux {} {}",
            kernel.release,
            if kvm { "with /dev/kvm" } else { "without hardware's help" }
        );
        let qemu = qemu.spawn().context("cannot start qemu-system-x86_64: apt-get install qemu-system-x86")?;
        Ok(Self { qemu, report })
    }

    /// Whether its kernel comes as far as the first program.
    fn speaks(&mut self, dir: &Path) -> Result<bool> {
        let begun = Instant::now();
        while fs::read(dir.join("console"))?.is_empty() {
            if begun.elapsed() > SPEAKS_WITHIN || self.qemu.try_wait()?.is_some() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(true)
    }

    /// Waits for its end, and tells each check as it comes.
    fn watch(mut self, checks: &[Check], begun: Instant) -> Result<()> {
        let mut told = 0;
        let status = loop {
            let ended = self.qemu.try_wait()?;
            let report = report(&self.report)?;
            for line in &report[told..] {
                println!("v2: {:4.0?} {line}", begun.elapsed());
            }
            told = report.len();
            match ended {
                Some(status) => break status,
                None => ensure!(begun.elapsed() < WITHIN, "the machine did not end within {WITHIN:?}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        ensure!(status.success(), "QEMU ended with {status}");
        judge(&report(&self.report)?, checks)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // After its end both are done already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The lines of the report that are whole. A serial line ends with a carriage return as well.
fn report(path: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole.lines().map(|line| line.trim_end().to_owned()).collect())
}

/// Whether a report has every check as passed, once, and its end.
fn judge(report: &[String], checks: &[Check]) -> Result<()> {
    ensure!(report.last().is_some_and(|line| line == plan::END), "the machine ended without an end to its report");
    for check in checks {
        let lines: Vec<_> = report.iter().filter(|line| line.split(' ').nth(1) == Some(check.name)).collect();
        ensure!(!lines.is_empty(), "the machine says nothing of {}", check.name);
        ensure!(lines.len() == 1 && lines[0].starts_with("passed "), "{} failed in the machine", check.name);
    }
    Ok(())
}

/// Where the system's own programs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program that must succeed.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// What a program that must succeed said.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_report_in_which_all_passed_counts() {
        let checks = &CHECKS[..2];
        let [a, b] = [checks[0].name, checks[1].name];
        let of = |lines: &[String]| judge(lines, checks);
        let (passed, failed) = (|name: &str| format!("passed {name} 3 s"), |name: &str| format!("FAILED {name} 3 s"));
        let end = plan::END.to_owned();
        assert!(of(&[passed(a), passed(b), end.clone()]).is_ok(), "the control");
        assert!(of(&[]).is_err());
        assert!(of(&[passed(a), passed(b)]).is_err(), "without an end");
        assert!(of(&[passed(a), end.clone()]).is_err(), "one is missing");
        assert!(of(&[passed(a), failed(b), end.clone()]).is_err());
        assert!(of(&[failed(a), passed(a), passed(b), end.clone()]).is_err(), "twice");
        assert!(of(&[end, passed(a), passed(b)]).is_err(), "an end before the end");
    }
}
