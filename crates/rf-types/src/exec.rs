//! One command run in one place: what is asked, and what came of it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{id::ExecId, units::UnixMs};

/// What to run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A program and its arguments; found through `PATH` of the exec's environment when it has no `/`.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c` (in a sandbox `/bin/bash -c` where it exists).
    Shell(String),
}

/// A terminal's size, in cells.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pty {
    /// Rows, 1 to 65,535.
    pub rows: u16,
    /// Columns, 1 to 65,535.
    pub cols: u16,
}

/// Limits of one exec's processes, below those of its sandbox; see setrlimit(2).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimits {
    /// CPU time of each process, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds_max: Option<u64>,
    /// Address space of each process, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_space_bytes_max: Option<u64>,
    /// Size of any file it writes, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes_max: Option<u64>,
    /// Open descriptors of each process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_max: Option<u64>,
}

/// One command, complete. Its environment may hold secrets: `Debug` prints how many variables there are and nothing else
/// of them.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// What to run.
    pub program: Program,
    /// The environment on top of the place's own small one.
    pub env: BTreeMap<String, String>,
    /// Whether a sandbox's small environment says no language (`LANG`): programs then begin in the locale `C`, for which
    /// they read no files. Says nothing on a machine, whose environment is its owner's.
    #[serde(default)]
    pub no_language: bool,
    /// The working directory, if relative then below the default one; `None` is the default: the user's home (a
    /// machine: the workspace root).
    pub cwd: Option<String>,
    /// The user inside the sandbox, `user` or `root` or another of its `/etc/passwd`; `None` is `user`. On a machine
    /// only `None`.
    pub user: Option<String>,
    /// A terminal instead of three pipes.
    pub pty: Option<Pty>,
    /// Whether a standard input is kept open for the client; else it is `/dev/null`.
    pub stdin: bool,
    /// Killed with its whole tree when it runs longer, milliseconds. `None`: until its place ends.
    pub timeout_ms: Option<u64>,
    /// Its own limits.
    pub rlimits: Rlimits,
}

impl fmt::Debug for ExecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken apart, so that a field which comes later is not left out unseen.
        let Self { program, env, no_language, cwd, user, pty, stdin, timeout_ms, rlimits } = self;
        f.debug_struct("ExecSpec")
            .field("program", program)
            .field("env", &format_args!("{} variables", env.len()))
            .field("no_language", no_language)
            .field("cwd", cwd)
            .field("user", user)
            .field("pty", pty)
            .field("stdin", stdin)
            .field("timeout_ms", timeout_ms)
            .field("rlimits", rlimits)
            .finish()
    }
}

/// What an exec used, as the kernel counted it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Peak memory of its largest process, bytes (`ru_maxrss`, getrusage(2)).
    pub memory_peak_bytes: u64,
    /// From start to exit, microseconds.
    pub wall_us: u64,
}

/// How an exec ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExitReport {
    /// The exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was up.
    pub timed_out: bool,
    /// What it used.
    pub usage: Usage,
}

impl ExitReport {
    /// The code a shell would give: the exit code, or 128 and the signal.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        self.code.or(self.signal.map(|signal| 128 + signal)).unwrap_or(255)
    }
}

/// Where an exec is in its life.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ExecState {
    /// Running.
    Running,
    /// Ended.
    Exited(ExitReport),
    /// Its place went away, so how it ended is not known. It is never run again.
    Lost,
}

/// One exec as listed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExecInfo {
    /// Its id.
    pub id: ExecId,
    /// Its pid as seen inside its place.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whether it outlives the request that made it.
    pub background: bool,
    /// Whether it has a terminal.
    pub pty: bool,
    /// When it started.
    pub started_at: UnixMs,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: ExecState,
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalScope {
    /// The exec's first process.
    Process,
    /// Every process that came from it, however it detached itself.
    Tree,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_a_command_is_not_printed() {
        let spec = ExecSpec {
            program: Program::Shell("true".to_owned()),
            env: [("TOKEN".to_owned(), "hush".to_owned())].into(),
            no_language: false,
            cwd: None,
            user: None,
            pty: None,
            stdin: false,
            timeout_ms: None,
            rlimits: Rlimits::default(),
        };
        let text = format!("{spec:?}");
        assert!(!text.contains("hush") && !text.contains("TOKEN"), "{text}");
        assert!(text.contains("1 variables") && text.contains("true"), "{text}");
    }
}
