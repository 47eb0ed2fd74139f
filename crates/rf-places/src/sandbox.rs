//! A sandbox as a place: execs and signals. File operations are in [`crate::sandbox_files`].

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use rf_policy::{Action, Permit};
use rf_types::{ExecId, ExecSpec, ExitReport, Fault, FileOp, PlaceRef, SandboxEnv, SandboxId, SignalScope, UserId};
use rf_wire::{init::spawn, machine::Held};
use tokio::io::AsyncWrite;

use crate::{
    encode,
    init_client::{Exit, Found, InitClient, OnLost, Shared, Started},
    pipe::{PipeReader, PipeWriter, Terminal, WrongDescriptor},
    place::{AdoptedExec, ByteReader, ByteWriter, FileAnswer, HeldOf, Place, Resize, Spawned},
    refusal,
    sandboxes::EndedWhy,
};

/// How much later than init the server ends an exec whose time is up, and how long that may take. Chosen.
const BACKSTOP_TIME: Duration = Duration::from_secs(5);

/// One live sandbox.
#[derive(Debug)]
pub struct SandboxPlace {
    user: UserId,
    id: SandboxId,
    env: SandboxEnv,
    init: InitClient,
    /// What goes on in it; see [`SandboxPlace::busy`].
    goings_on: Arc<AtomicUsize>,
}

/// Something goes on in a sandbox for as long as this is held.
#[derive(Debug)]
#[must_use = "what is dropped holds nothing"]
pub struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An exec with its descriptors as they are, so that they can be spliced.
pub(crate) struct RawSpawned {
    pub(crate) pid: u32,
    pub(crate) stdin: Option<ByteWriter>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) resize: Option<Box<dyn Resize>>,
    pub(crate) exit: BoxFuture<'static, Result<ExitReport, Fault>>,
}

/// An exec found in an adopted sandbox.
pub(crate) struct RawAdopted {
    pub(crate) exec: ExecId,
    pub(crate) pty: bool,
    pub(crate) wall_us: u64,
    /// Whether its first process still runs.
    pub(crate) running: bool,
    /// See [`AdoptedExec::from`]; `None`: after whatever is held, for a pipe keeps the rest.
    pub(crate) from: Option<Held>,
    pub(crate) raw: RawSpawned,
}

/// One output of an exec.
pub(crate) enum Output {
    /// A pipe.
    Pipe(PipeReader),
    /// A stream that cannot be spliced.
    Stream(ByteReader),
    /// There is none.
    None,
}

impl Output {
    fn into_reader(self) -> Option<ByteReader> {
        match self {
            Self::Pipe(pipe) => Some(Box::pin(pipe)),
            Self::Stream(stream) => Some(stream),
            Self::None => None,
        }
    }
}

impl From<RawSpawned> for Spawned {
    fn from(raw: RawSpawned) -> Self {
        Self {
            pid: raw.pid,
            stdin: raw.stdin,
            stdout: raw.stdout.into_reader().unwrap_or_else(|| Box::pin(tokio::io::empty())),
            stderr: raw.stderr.into_reader(),
            resize: raw.resize,
            exit: raw.exit,
        }
    }
}

impl From<Spawned> for RawSpawned {
    fn from(spawned: Spawned) -> Self {
        let Spawned { pid, stdin, stdout, stderr, resize, exit } = spawned;
        let stderr = stderr.map_or(Output::None, Output::Stream);
        Self { pid, stdin, stdout: Output::Stream(stdout), stderr, resize, exit }
    }
}

impl SandboxPlace {
    /// The sandbox behind the socket that the warden handed out.
    ///
    /// # Errors
    /// When the socket cannot be registered with the reactor.
    pub(crate) fn new(
        user: UserId,
        id: SandboxId,
        env: SandboxEnv,
        socket: OwnedFd,
        adopted: bool,
        on_lost: OnLost,
    ) -> io::Result<Self> {
        let goings_on = Arc::default();
        Ok(Self { user, id, env, goings_on, init: InitClient::new(socket, adopted, on_lost)? })
    }

    pub(crate) fn init(&self) -> &InitClient {
        &self.init
    }

    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// Its id.
    #[must_use]
    pub fn sandbox_id(&self) -> SandboxId {
        self.id
    }

    /// Keeps it from counting as idle. Every exec does so by itself for as long as it runs.
    pub fn busy(&self) -> Busy {
        self.goings_on.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.goings_on))
    }

    /// Whether something goes on in it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.goings_on.load(Ordering::Relaxed) > 0
    }

    /// Whether it is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.init.is_lost()
    }

    /// Resolves when the sandbox is lost.
    pub async fn lost(&self) -> Fault {
        self.init.lost().await
    }

    /// Asks its process 1 whether it is there.
    ///
    /// # Errors
    /// `place_lost`, `timed_out`.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.init.ping().await
    }

    pub(crate) fn check(&self, permit: &Permit, action: Action) -> Result<(), Fault> {
        permit.require(action)?;
        // A permit of another user's, or for another sandbox alone: as if there were no such sandbox.
        let ours = permit.user() == self.user && permit.reaches(PlaceRef::Sandbox(self.id));
        if ours { Ok(()) } else { Err(Fault::not_found("sandbox")) }
    }

    /// As [`Place::spawn`], with the descriptors as they are.
    pub(crate) async fn spawn_raw(
        &self,
        permit: &Permit,
        exec: ExecId,
        spec: &ExecSpec,
        keep: bool,
    ) -> Result<RawSpawned, Fault> {
        self.check(permit, Action::Exec)?;
        let filled = self.filled(spec);
        let spec = filled.as_ref().unwrap_or(spec);
        let flags = encode::flags(spec, keep);
        let body = encode::spawn_body(exec, spec, keep)?;
        let started = self.init.spawn(exec, &body, encode::descriptors(flags), keep).await?.map_err(|failed| {
            refusal::spawn(failed, encode::name_of(&spec.program), spec.cwd.as_deref(), spec.user.as_deref())
        })?;
        self.streams(exec, started, flags, spec.timeout_ms)
    }

    /// The spec with the sandbox's own environment below its own; `None` where that changes nothing.
    fn filled(&self, spec: &ExecSpec) -> Option<ExecSpec> {
        if self.env.is_empty() {
            return None;
        }
        let mut filled = spec.clone();
        for (name, value) in self.env.as_map() {
            filled.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Some(filled)
    }

    /// As [`Place::adopt_execs`], with the descriptors as they are.
    pub(crate) async fn adopt_raw(&self) -> Result<Vec<RawAdopted>, Fault> {
        let mut adopted = Vec::new();
        for found in self.init.list().await? {
            let Found { exec, flags, wall_us, running, started } = found;
            let pty = flags & spawn::PTY != 0;
            let raw = self.streams(exec, started, flags, None)?;
            adopted.push(RawAdopted { exec, pty, wall_us, running, from: None, raw });
        }
        Ok(adopted)
    }

    fn streams(&self, exec: ExecId, started: Started, flags: u32, timeout: Option<u64>) -> Result<RawSpawned, Fault> {
        let Started { pid, fds, exit } = started;
        let made = sort_descriptors(fds, flags);
        let Ok((stdin, stdout, stderr, resize)) = made else {
            let fault = refusal::lost("its process 1 sent wrong descriptors");
            self.init.break_off(fault.clone(), EndedWhy::Broken);
            return Err(fault);
        };
        let stdin = match (stdin, &resize) {
            (Some(pipe), _) if flags & spawn::KEEP != 0 => {
                Some(Box::pin(KeptStdin { pipe, exec: exec.bits(), init: self.init.shared() }) as ByteWriter)
            }
            (Some(pipe), _) => Some(Box::pin(pipe) as ByteWriter),
            (None, Some(terminal)) => Some(Box::pin(terminal.clone()) as ByteWriter),
            (None, None) => None,
        };
        let resize = resize.map(|terminal| -> Box<dyn Resize> { Box::new(terminal) });
        Ok(RawSpawned { pid, stdin, stdout, stderr, resize, exit: watch_exit(exit, timeout, self.busy()).boxed() })
    }
}

type Sorted = (Option<PipeWriter>, Output, Output, Option<Terminal>);

/// Checks that each descriptor is what it must be.
fn sort_descriptors(fds: Vec<OwnedFd>, flags: u32) -> Result<Sorted, WrongDescriptor> {
    let mut fds = fds.into_iter();
    let Some(first) = fds.next() else {
        // An adopted exec that nobody asked to keep: its streams are gone.
        return Ok((None, Output::None, Output::None, None));
    };
    if flags & spawn::PTY != 0 {
        let terminal = Terminal::new(first)?;
        return match fds.next() {
            None => Ok((None, Output::Stream(Box::pin(terminal.clone())), Output::None, Some(terminal))),
            Some(_) => Err(WrongDescriptor),
        };
    }
    let (stdin, stdout) = if flags & spawn::STDIN != 0 {
        (Some(PipeWriter::new(first)?), fds.next().ok_or(WrongDescriptor)?)
    } else {
        (None, first)
    };
    let stderr = fds.next().ok_or(WrongDescriptor)?;
    match fds.next() {
        None => Ok((stdin, Output::Pipe(PipeReader::new(stdout)?), Output::Pipe(PipeReader::new(stderr)?), None)),
        Some(_) => Err(WrongDescriptor),
    }
}

/// The end of an exec. Init ends one whose time is up; should it not, the server does, by the sandbox's own time.
async fn watch_exit(mut exit: Exit, timeout_ms: Option<u64>, _busy: Busy) -> Result<ExitReport, Fault> {
    let Some(timeout_ms) = timeout_ms else { return exit.await };
    let time = Duration::from_millis(timeout_ms).saturating_add(BACKSTOP_TIME);
    if let Some(end) = exit.within(time).await {
        return end;
    }
    exit.kill();
    match exit.within(BACKSTOP_TIME).await {
        Some(end) => end.map(|report| ExitReport { timed_out: true, ..report }),
        None => {
            exit.give_up();
            exit.await
        }
    }
}

/// Standard input of an exec whose descriptors init keeps as well: closing ours is not the end for the program.
struct KeptStdin {
    pipe: PipeWriter,
    exec: u128,
    init: Arc<Shared>,
}

impl AsyncWrite for KeptStdin {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        InitClient::release(&self.init, self.exec);
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}

impl Place for SandboxPlace {
    fn place(&self) -> PlaceRef {
        PlaceRef::Sandbox(self.id)
    }

    fn gone(&self) -> BoxFuture<'_, Fault> {
        Box::pin(self.lost())
    }

    fn spawn<'a>(
        &'a self,
        permit: &'a Permit,
        exec: ExecId,
        spec: &'a ExecSpec,
        keep: bool,
    ) -> BoxFuture<'a, Result<Spawned, Fault>> {
        Box::pin(async move { self.spawn_raw(permit, exec, spec, keep).await.map(Spawned::from) })
    }

    fn signal<'a>(
        &'a self,
        permit: &'a Permit,
        exec: ExecId,
        signal: i32,
        scope: SignalScope,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.check(permit, Action::ExecControl)?;
            let Some(number) = u32::try_from(signal).ok().filter(|number| (1..=64).contains(number)) else {
                return Err(Fault::invalid(format!("{signal} is no signal: give 1 to 64")));
            };
            self.init.signal(exec, number, scope).await?.map_err(refusal::signal)
        })
    }

    fn file<'a>(
        &'a self,
        permit: &'a Permit,
        op: &'a FileOp,
        user: Option<&'a str>,
    ) -> BoxFuture<'a, Result<FileAnswer, Fault>> {
        Box::pin(self.do_file(permit, op, user))
    }

    fn adopt_execs<'a>(&'a self, held: &'a HeldOf<'a>) -> BoxFuture<'a, Result<Vec<AdoptedExec>, Fault>> {
        Box::pin(async move {
            let raw = self.adopt_raw().await?;
            let adopt = |found: RawAdopted| AdoptedExec {
                exec: found.exec,
                pty: found.pty,
                wall_us: found.wall_us,
                from: found.from.unwrap_or_else(|| held(found.exec)),
                spawned: found.raw.into(),
            };
            Ok(raw.into_iter().map(adopt).collect())
        })
    }

    fn forget(&self, exec: ExecId) -> BoxFuture<'_, ()> {
        self.init.forget(exec);
        Box::pin(std::future::ready(()))
    }

    fn sandbox(&self) -> Option<&SandboxPlace> {
        Some(self)
    }
}
