//! Which checks there are, and how the host tells the machine of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// One check: a test that runs by itself, as cargo's runner would run it.
#[derive(Clone, Copy)]
pub(super) struct Check {
    pub(super) package: &'static str,
    /// The file in its `tests/`, or `lib` for those beside the code.
    pub(super) target: &'static str,
    /// Its full name within.
    pub(super) name: &'static str,
}

/// The line after which nothing comes.
pub(super) const END: &str = "end";
/// What the machine looks at itself: `doctor`. No executable's.
pub(super) const DOCTOR: &str = "doctor_finds_all_layers_in_version_2";

const fn check(package: &'static str, target: &'static str, name: &'static str) -> Check {
    Check { package, target, name }
}

/// What control groups have to do with, of all tests that there are.
pub(super) const CHECKS: [Check; 18] = [
    check("ringfence", "doctor", DOCTOR),
    // Limits: memory, tasks, disk; a kill through the exec's own group; processors; block I/O.
    check("rf-escape", "bombs", "a_bomb_comes_no_further_than_the_limit"),
    check("rf-escape", "bombs", "tcp_buffers_are_held_or_said_not_to_be"),
    check("rf-escape", "bombs", "killing_an_exec_finds_what_detached_itself"),
    check("rf-escape", "bombs", "processor_time_is_held_to_the_limit"),
    check("rf-warden", "limits", "block_io_is_held_as_far_as_the_report_says"),
    check("rf-warden", "limits", "a_prepared_sandbox_is_handed_out_once_and_another_prepared"),
    check("rf-warden", "heavy", "a_heavy_sandbox_is_held_to_its_processors_until_it_is_light_again"),
    // Root of this machine has a capability that not every host's has.
    check("rf-warden", "limits", "what_the_warden_is_spared_when_memory_runs_out_no_sandbox_is"),
    // The freezer, and what is left when a sandbox or a warden ends.
    check("rf-warden", "pause", "a_paused_sandbox_stands_still_and_goes_on_where_it_was"),
    check("rf-warden", "pause", "a_frozen_sandbox_is_destroyed_like_any_other"),
    check("rf-warden", "pause", "nothing_frozen_outlives_its_warden"),
    check("ringfence", "system", "a_killed_server_loses_no_sandbox_and_a_killed_warden_leaves_none"),
    check("rf-warden", "pause", "twenty_sandboxes_leave_no_group"),
    // Without root: limits in a group that was delegated, and what is said where none was.
    check("ringfence", "delegated", "limits_hold_without_root_where_control_groups_were_delegated"),
    check("ringfence", "rootless", "a_layer_that_is_missing_is_named_with_its_cure_until_it_is_accepted"),
    // What is said where there is no such tree.
    check("ringfence", "hosts", "without_a_unified_tree_the_report_says_what_a_kill_may_miss"),
    check("ringfence", "rootless", "what_the_kernel_bounds_by_nothing_is_held_without_root_as_well"),
];

/// An executable that cargo built.
pub(super) struct Executable {
    pub(super) package: String,
    pub(super) target: String,
    /// Whether it is one of tests.
    pub(super) test: bool,
    pub(super) path: PathBuf,
    /// The package's folder, in which its tests run.
    pub(super) folder: PathBuf,
}

/// What the machine is to do.
#[derive(Deserialize, Serialize)]
pub(super) struct Plan {
    /// The binary.
    pub(super) ringfence: PathBuf,
    pub(super) tests: Vec<Test>,
}

/// One test to run.
#[derive(Deserialize, Serialize)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) executable: PathBuf,
    pub(super) folder: PathBuf,
}

/// Writes what the machine is to do.
///
/// # Errors
/// A check whose executable was not built.
pub(super) fn write(path: &Path, executables: &[Executable], checks: &[Check]) -> Result<()> {
    let of = |package: &str, target: &str, test: bool| {
        let is = |e: &&Executable| (e.package.as_str(), e.target.as_str(), e.test) == (package, target, test);
        executables.iter().find(is)
    };
    let ringfence = of("ringfence", "ringfence", false).context("cargo built no binary")?.path.clone();
    let mut tests = Vec::new();
    for check in checks {
        if check.name == DOCTOR {
            tests.push(Test { name: DOCTOR.to_owned(), executable: ringfence.clone(), folder: "/".into() });
            continue;
        }
        let target = if check.target == "lib" { &check.package.replace('-', "_") } else { check.target };
        let found = of(check.package, target, true);
        let found = found.with_context(|| format!("cargo built no tests `{target}` of {}", check.package))?;
        tests.push(Test { name: check.name.to_owned(), executable: found.path.clone(), folder: found.folder.clone() });
    }
    ensure!(tests.len() == checks.len(), "a check is missing");
    fs::write(path, serde_json::to_vec(&Plan { ringfence, tests })?)?;
    Ok(())
}
