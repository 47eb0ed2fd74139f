//! The one interface of a place. A sandbox and a machine both implement it, and one conformance suite holds both.

use std::pin::Pin;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use rf_policy::Permit;
use rf_types::{ExecId, ExecSpec, ExitReport, Fault, FileOp, PlaceRef, SignalScope, Stat};
use rf_wire::machine::Held;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes out of a place.
pub type ByteReader = Pin<Box<dyn AsyncRead + Send>>;
/// Bytes into a place.
pub type ByteWriter = Pin<Box<dyn AsyncWrite + Send>>;

/// How much of an exec's outputs is kept already.
pub type HeldOf<'a> = dyn Fn(ExecId) -> Held + Send + Sync + 'a;

/// Somewhere operations run.
///
/// Every method checks that its permit is for the matching action ([`Permit::require`]): `Exec` for `spawn`,
/// `ExecControl` for `signal`, `FileRead` or `FileWrite` for `file`.
pub trait Place: Send + Sync {
    /// Which place this is.
    fn place(&self) -> PlaceRef;

    /// Starts an exec under an id that the caller made. At most once: an id is never started again, also after a
    /// dropped connection.
    ///
    /// `keep` asks the place to keep the streams reachable for another server, should this one die. Without it the
    /// exec belongs to its caller: [`Spawned::exit`] dropped before it resolved kills the whole tree.
    ///
    /// # Errors
    /// `exec_failed` with what the kernel said; `place_exhausted`; `place_lost`; `owner_forbids`.
    fn spawn<'a>(
        &'a self,
        permit: &'a Permit,
        exec: ExecId,
        spec: &'a ExecSpec,
        keep: bool,
    ) -> BoxFuture<'a, Result<Spawned, Fault>>;

    /// Sends a signal to a running exec.
    ///
    /// # Errors
    /// `not_found` when it does not run here; `place_lost`.
    fn signal<'a>(
        &'a self,
        permit: &'a Permit,
        exec: ExecId,
        signal: i32,
        scope: SignalScope,
    ) -> BoxFuture<'a, Result<(), Fault>>;

    /// Does a file operation as `user` of the place (`None`: its default user).
    ///
    /// # Errors
    /// `file_failed` with what the kernel said, `not_found`, `conflict` (exists), `disk_full`, `place_lost`,
    /// `owner_forbids`.
    fn file<'a>(
        &'a self,
        permit: &'a Permit,
        op: &'a FileOp,
        user: Option<&'a str>,
    ) -> BoxFuture<'a, Result<FileAnswer, Fault>>;

    /// The execs that ran here before this server came and whose streams are still held: each with its fresh streams,
    /// which go on after what is `held`. Called once after a place is adopted.
    ///
    /// # Errors
    /// `place_lost`.
    fn adopt_execs<'a>(&'a self, held: &'a HeldOf<'a>) -> BoxFuture<'a, Result<Vec<AdoptedExec>, Fault>>;

    /// Lets the place forget an ended exec. Failure is of no consequence.
    fn forget(&self, exec: ExecId) -> BoxFuture<'_, ()>;

    /// Resolves when the place is gone for good, and whatever goes on in it is lost.
    fn gone(&self) -> BoxFuture<'_, Fault> {
        Box::pin(std::future::pending())
    }

    /// The sandbox behind it, if it is one: its pipes can be spliced without their bytes passing through the server.
    fn sandbox(&self) -> Option<&crate::sandbox::SandboxPlace> {
        None
    }
}

/// A started exec.
pub struct Spawned {
    /// Its pid inside the place.
    pub pid: u32,
    /// Standard input, if asked for; with a terminal, the terminal's input.
    pub stdin: Option<ByteWriter>,
    /// Standard output; with a terminal, all it prints.
    pub stdout: ByteReader,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<ByteReader>,
    /// The terminal's size, with a terminal.
    pub resize: Option<Box<dyn Resize>>,
    /// How it ends. Resolves once; `place_lost` when the place goes first.
    pub exit: BoxFuture<'static, Result<ExitReport, Fault>>,
}

/// An exec found in an adopted place.
pub struct AdoptedExec {
    /// Its id.
    pub exec: ExecId,
    /// Whether it has a terminal.
    pub pty: bool,
    /// How long it has run, microseconds.
    pub wall_us: u64,
    /// Where its outputs go on: what was held, or later where bytes in between are lost.
    pub from: Held,
    /// Its streams, as of a fresh start.
    pub spawned: Spawned,
}

/// Sets a terminal's size.
pub trait Resize: Send + Sync {
    /// Sets it; the foreground process group gets SIGWINCH (ioctl_tty(2)).
    ///
    /// # Errors
    /// `place_lost`.
    fn resize(&self, rows: u16, cols: u16) -> Result<(), Fault>;
}

/// What a file operation gives back.
pub enum FileAnswer {
    /// It is done.
    Done,
    /// The file's description.
    Stat(Stat),
    /// A directory's entries, as they are found.
    Entries(BoxStream<'static, Result<Stat, Fault>>),
    /// A file's content from the asked offset, of at most the asked length.
    Content {
        /// The file's description; `size` is the whole file's.
        stat: Stat,
        /// The bytes, in pieces as large as the place finds fast.
        bytes: BoxStream<'static, Result<Bytes, Fault>>,
    },
    /// A tar archive, made while it is read.
    Archive(BoxStream<'static, Result<Bytes, Fault>>),
    /// Where to write a file's content, or an archive to unpack.
    Sink(Box<dyn Sink>),
    /// Changes, as they happen.
    Changes(BoxStream<'static, Result<Change, Fault>>),
}

/// Takes the bytes of a write. Dropped without [`Sink::finish`], a write in [`rf_types::WriteMode::Replace`] leaves
/// the old file; in the other modes it leaves what came.
pub trait Sink: Send {
    /// Takes the next bytes; returns when there is room for more.
    ///
    /// # Errors
    /// `disk_full`, `file_failed`, `place_lost`.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), Fault>>;

    /// Ends the write: the bytes are in the file, and for a replace the file is in its place.
    ///
    /// # Errors
    /// As for `write`.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), Fault>>;
}

/// One change below a watched path.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Change {
    /// The path below the watched one; empty for itself.
    pub path: String,
    /// What happened; several kinds may come in one.
    pub kinds: Vec<ChangeKind>,
    /// Whether it is a directory.
    pub directory: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Made.
    Create,
    /// Content written.
    Write,
    /// Removed.
    Remove,
    /// Renamed away or hither.
    Rename,
    /// Mode, owner or times.
    Attributes,
    /// News were lost because there were too many: look again.
    Overflow,
}
