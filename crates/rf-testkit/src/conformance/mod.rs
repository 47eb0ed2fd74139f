//! What every place must do, sandbox and machine alike. One suite; each kind of place runs all of it.
//!
//! ```ignore
//! rf_testkit::conformance::run(place, user).await;
//! ```
//!
//! The place must let its user run `/bin/sh` and the usual small programs (coreutils, `setsid`, `stty`), and write
//! files below its default directory.

mod exec;
mod files;
mod trees;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use rf_places::place::{FileAnswer, Place, Spawned};
use rf_policy::Action;
use rf_types::{
    Code, ExecId, ExecSpec, ExitReport, Fault, FileOp, Program, Rlimits, SignalScope, Stat, UserId, WriteMode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use crate::machines::within;
use crate::permits::permit;

/// A place under test, and a directory in it for one case.
#[derive(Clone)]
pub struct Site {
    /// The place.
    pub place: Arc<dyn Place>,
    /// Whose it is.
    pub user: UserId,
    /// The directory, relative to the place's default one.
    pub dir: String,
    /// What it does otherwise than others.
    pub differs: Differs,
}

/// What a place may do otherwise than others, since what it stands on does not let it: each is a promise less. The suite
/// runs the same cases all the same and expects exactly this.
#[derive(Clone, Copy, Debug, Default)]
pub struct Differs {
    /// When the first process of an exec has ended, one that detached itself from it (with a session of its own) is not
    /// found any more: a sandbox without control groups.
    pub loses_detached_orphans: bool,
}

/// Runs the whole suite, each case in a directory of its own, which is removed.
///
/// # Panics
/// At the first case that fails; its name is the last on standard error.
pub async fn run(place: Arc<dyn Place>, user: UserId) {
    run_where(place, user, Differs::default()).await;
}

/// As [`run`], of a place that does some things otherwise.
///
/// # Panics
/// As [`run`].
pub async fn run_where(place: Arc<dyn Place>, user: UserId, differs: Differs) {
    macro_rules! cases {
        ($($module:ident :: $case:ident),* $(,)?) => {$(
            eprintln!("conformance: {}", stringify!($module::$case));
            let site = Site { place: place.clone(), user, dir: format!("conformance-{}", stringify!($case)), differs };
            site.make_dir("").await;
            within($module::$case(&site)).await;
            site.remove("").await;
        )*};
    }
    cases![
        exec::output_is_byte_exact_and_apart,
        exec::a_shell_line_runs,
        exec::the_environment_is_small_and_as_asked,
        exec::it_runs_in_the_directory_asked_for,
        exec::what_cannot_start_says_why,
        exec::standard_input_goes_through_and_ends,
        exec::without_standard_input_there_is_nothing_to_read,
        exec::time_is_up_for_the_whole_tree,
        exec::a_signal_reaches_the_process,
        exec::a_signal_reaches_the_tree,
        exec::killing_the_tree_kills_what_detached_itself,
        exec::a_dropped_exec_is_killed,
        exec::what_a_dropped_exec_left_behind_is_killed,
        exec::large_output_is_whole,
        exec::a_reader_that_waits_stalls_nobody_else,
        exec::output_that_nobody_reads_ends_the_writer,
        exec::a_terminal_has_its_size_and_is_resized,
        exec::usage_is_told,
        exec::an_id_is_started_once,
        exec::limits_hold,
        exec::what_does_not_run_is_not_found,
        files::write_modes_meet_a_file_that_is_there,
        files::a_range_is_read,
        files::a_broken_off_replace_leaves_the_old_file,
        files::what_is_not_there_is_not_found,
        files::directories_are_made_moved_listed_and_removed,
        files::permissions_are_set_and_told,
        files::links_are_told_and_followed_when_asked,
        files::a_fifo_is_listed_and_never_opened,
        files::many_megabytes_go_in_and_come_out,
        files::a_rename_underfoot_gives_the_one_or_the_other,
        trees::a_tree_goes_out_and_in,
        trees::an_archive_that_would_leave_is_refused,
        trees::an_archive_cut_short_is_refused,
        trees::changes_are_told,
    ];
}

/// An exec that has ended.
pub(crate) struct Ran {
    pub(crate) report: ExitReport,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// An exec of `program` with nothing special.
pub(crate) fn spec(program: Program) -> ExecSpec {
    ExecSpec {
        program,
        env: Default::default(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin: false,
        timeout_ms: None,
        rlimits: Rlimits::default(),
    }
}

/// A shell line.
pub(crate) fn sh(line: &str) -> ExecSpec {
    spec(Program::Shell(line.to_owned()))
}

impl Site {
    /// A path in the case's directory.
    pub fn path(&self, name: &str) -> String {
        if name.is_empty() { self.dir.clone() } else { format!("{}/{name}", self.dir) }
    }

    /// `spec` in the case's directory.
    pub(crate) fn here(&self, mut spec: ExecSpec) -> ExecSpec {
        spec.cwd = Some(self.dir.clone());
        spec
    }

    pub(crate) async fn try_spawn(&self, exec: ExecId, spec: &ExecSpec) -> Result<Spawned, Fault> {
        self.place.spawn(&permit(self.user, Action::Exec), exec, spec, false).await
    }

    pub(crate) async fn spawn(&self, spec: &ExecSpec) -> (ExecId, Spawned) {
        let exec = ExecId::random();
        match self.try_spawn(exec, spec).await {
            Ok(spawned) => (exec, spawned),
            Err(fault) => panic!("{:?} did not start: {fault:?}", spec.program),
        }
    }

    pub(crate) async fn signal(&self, exec: ExecId, signal: i32, scope: SignalScope) -> Result<(), Fault> {
        self.place.signal(&permit(self.user, Action::ExecControl), exec, signal, scope).await
    }

    /// Runs to the end.
    pub(crate) async fn run(&self, spec: &ExecSpec) -> Ran {
        let (_, spawned) = self.spawn(spec).await;
        finish(spawned).await
    }

    /// Runs a shell line in the case's directory and expects exit code 0; what it printed.
    pub(crate) async fn shell(&self, line: &str) -> String {
        let ran = self.run(&self.here(sh(line))).await;
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.report.code, Some(0), "`{line}`: {stderr} {:?}", ran.report);
        String::from_utf8(ran.stdout).unwrap()
    }

    pub(crate) async fn file(&self, op: FileOp) -> Result<FileAnswer, Fault> {
        let action = match op {
            FileOp::Read { .. }
            | FileOp::List { .. }
            | FileOp::Stat { .. }
            | FileOp::TarOut { .. }
            | FileOp::Watch { .. } => Action::FileRead,
            _ => Action::FileWrite,
        };
        self.place.file(&permit(self.user, action), &op, None).await
    }

    /// The code of the fault that `op` gives, also when it comes only with the bytes.
    pub(crate) async fn code(&self, op: FileOp) -> Code {
        match self.file(op.clone()).await {
            Err(fault) => fault.code,
            Ok(FileAnswer::Content { mut bytes, .. }) => match bytes.next().await {
                Some(Err(fault)) => fault.code,
                other => panic!("{op:?} was done: {other:?}"),
            },
            Ok(FileAnswer::Sink(sink)) => sink.finish().await.expect_err("it was refused").code,
            Ok(_) => panic!("{op:?} was done"),
        }
    }

    pub(crate) async fn try_write(&self, name: &str, mode: WriteMode, bytes: &[u8]) -> Result<(), Fault> {
        let op = FileOp::Write { path: self.path(name), mode, permissions: 0o644, parents: false };
        match self.file(op).await? {
            FileAnswer::Sink(mut sink) => {
                for piece in bytes.chunks(100_000) {
                    sink.write(Bytes::copy_from_slice(piece)).await?;
                }
                sink.finish().await
            }
            _ => panic!("a write gives a sink"),
        }
    }

    pub(crate) async fn write(&self, name: &str, bytes: &[u8]) {
        self.try_write(name, WriteMode::Truncate, bytes).await.unwrap();
    }

    pub(crate) async fn try_read(&self, name: &str, offset: u64, length: Option<u64>) -> Result<Vec<u8>, Fault> {
        match self.file(FileOp::Read { path: self.path(name), offset, length }).await? {
            FileAnswer::Content { mut bytes, .. } => {
                let mut all = Vec::new();
                while let Some(piece) = bytes.next().await {
                    all.extend_from_slice(&piece?);
                }
                Ok(all)
            }
            _ => panic!("a read gives content"),
        }
    }

    pub(crate) async fn read(&self, name: &str) -> Vec<u8> {
        self.try_read(name, 0, None).await.unwrap()
    }

    pub(crate) async fn stat(&self, name: &str, follow: bool) -> Result<Stat, Fault> {
        match self.file(FileOp::Stat { path: self.path(name), follow }).await? {
            FileAnswer::Stat(stat) => Ok(stat),
            _ => panic!("a stat gives a description"),
        }
    }

    pub(crate) async fn done(&self, op: FileOp) -> Result<(), Fault> {
        match self.file(op.clone()).await? {
            FileAnswer::Done => Ok(()),
            _ => panic!("{op:?} gives nothing back"),
        }
    }

    /// Makes a directory of the case, with parents.
    pub async fn make_dir(&self, name: &str) {
        let op = FileOp::MakeDir { path: self.path(name), permissions: 0o755, parents: true };
        self.done(op).await.unwrap();
    }

    /// Removes something of the case, with all in it.
    pub async fn remove(&self, name: &str) {
        self.done(FileOp::Remove { path: self.path(name), recursive: true }).await.unwrap();
    }
}

/// Reads all and waits for the end.
pub(crate) async fn finish(spawned: Spawned) -> Ran {
    let Spawned { stdin, mut stdout, stderr, exit, .. } = spawned;
    drop(stdin);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let errors = async {
        if let Some(mut stderr) = stderr {
            stderr.read_to_end(&mut err).await.unwrap();
        }
    };
    let (read, (), report) = tokio::join!(stdout.read_to_end(&mut out), errors, exit);
    read.unwrap();
    Ran { report: report.unwrap(), stdout: out, stderr: err }
}

/// Reads until `wanted` has come; all that came.
pub(crate) async fn read_until(from: &mut (impl AsyncReadExt + Unpin), wanted: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let got = from.read(&mut buffer).await.unwrap();
        assert!(got > 0, "it ended before `{wanted}`: {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..got]);
        if String::from_utf8_lossy(&all).contains(wanted) {
            return String::from_utf8_lossy(&all).into_owned();
        }
    }
}

/// Writes all and ends the input.
pub(crate) async fn feed(stdin: Option<rf_places::place::ByteWriter>, bytes: &[u8]) {
    let mut stdin = stdin.expect("an input was asked for");
    stdin.write_all(bytes).await.unwrap();
    stdin.shutdown().await.unwrap();
}
