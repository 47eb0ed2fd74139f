//! One machine as a [`Place`]: each order is a record, each descriptor a stream.

use std::sync::Arc;

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, try_unfold},
};
use rf_policy::{Action, Permit};
use rf_types::{Code, ExecId, ExecSpec, Fault, FileOp, MachineId, PlaceRef, SignalScope, UserId};
use rf_wire::machine::{Answer, ExecStreams, Facts, KeptExec, Order, RECORD_MAX, ToMachine};
use serde::de::DeserializeOwned;

use crate::{
    machine::{Expected, Session},
    machine_mux::{Incoming, Outgoing, place_lost},
    place::{AdoptedExec, FileAnswer, HeldOf, Place, Resize, Sink, Spawned},
};

/// Longest line of an entry or a change, bytes; a path and a link's target are at most 4 KiB each (PATH_MAX), and JSON
/// may write a byte as six.
const LINE_MAX: usize = 64 * 1024;

/// A machine in one session. When the session is lost, so is this; the machine that comes again is another.
pub struct MachinePlace {
    user: UserId,
    machine: MachineId,
    facts: Facts,
    session: Arc<Session>,
}

impl MachinePlace {
    pub(crate) fn new(user: UserId, machine: MachineId, facts: Facts, session: Arc<Session>) -> Self {
        Self { user, machine, facts, session }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// Which it is.
    #[must_use]
    pub fn machine(&self) -> MachineId {
        self.machine
    }

    /// What it says of itself.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it is connected now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.session.mux.is_attached()
    }

    /// The permit is for this action and for the machine's user.
    fn check(&self, permit: &Permit, action: Action) -> Result<(), Fault> {
        permit.require(action)?;
        let ours = permit.user() == self.user && permit.reaches(PlaceRef::Machine(self.machine));
        if ours { Ok(()) } else { Err(Fault::not_found("machine")) }
    }

    /// Opens an exec's streams on our side. With `keep`, what we read is forgotten there only once it is kept here.
    fn open(&self, stdin: bool, pty: bool, keep: bool) -> Result<Opened, Fault> {
        let mux = &self.session.mux;
        let stdin = stdin.then(|| mux.open_out_held(self.session.stream_number())).transpose()?;
        let mut stdout = mux.open_in(self.session.stream_number())?;
        let mut stderr = (!pty).then(|| mux.open_in(self.session.stream_number())).transpose()?;
        if keep {
            std::iter::once(&mut stdout).chain(&mut stderr).for_each(Incoming::keep_until_next);
        }
        let numbers = ExecStreams {
            stdin: stdin.as_ref().map(Outgoing::stream),
            stdout: stdout.stream(),
            stderr: stderr.as_ref().map(Incoming::stream),
        };
        Ok(Opened { stdin, stdout, stderr, numbers })
    }

    async fn do_spawn(&self, permit: &Permit, exec: ExecId, spec: &ExecSpec, keep: bool) -> Result<Spawned, Fault> {
        self.check(permit, Action::Exec)?;
        only_the_owner(spec.user.as_deref())?;
        let opened = self.open(spec.stdin || spec.pty.is_some(), spec.pty.is_some(), keep)?;
        let exit = self.session.exit_of(exec, keep);
        let order = Order::Spawn { exec, spec: spec.clone(), keep, streams: opened.numbers };
        fits(&order)?;
        match self.session.order_then(order, || opened.release()).await? {
            Answer::Spawned { pid } => Ok(self.spawned(exec, pid, opened, exit.boxed())),
            _ => Err(strange()),
        }
    }

    fn spawned(
        &self,
        exec: ExecId,
        pid: u32,
        opened: Opened,
        exit: BoxFuture<'static, Result<rf_types::ExitReport, Fault>>,
    ) -> Spawned {
        let terminal = opened.stderr.is_none();
        Spawned {
            pid,
            stdin: opened.stdin.map(|mut stdin| {
                stdin.end_on_drop();
                Box::pin(stdin) as crate::place::ByteWriter
            }),
            stdout: Box::pin(opened.stdout),
            stderr: opened.stderr.map(|stderr| Box::pin(stderr) as crate::place::ByteReader),
            resize: terminal
                .then(|| Box::new(MachineResize { session: self.session.clone(), exec }) as Box<dyn Resize>),
            exit,
        }
    }

    async fn do_file(&self, permit: &Permit, op: &FileOp, user: Option<&str>) -> Result<FileAnswer, Fault> {
        let writes = match op {
            FileOp::Read { .. }
            | FileOp::List { .. }
            | FileOp::Stat { .. }
            | FileOp::TarOut { .. }
            | FileOp::Watch { .. } => false,
            FileOp::Write { .. }
            | FileOp::MakeDir { .. }
            | FileOp::Move { .. }
            | FileOp::Remove { .. }
            | FileOp::Chmod { .. }
            | FileOp::TarIn { .. } => true,
        };
        self.check(permit, if writes { Action::FileWrite } else { Action::FileRead })?;
        only_the_owner(user)?;
        let session = &self.session;
        let stream = session.stream_number();
        let order = |finish| Order::File { op: op.clone(), stream, finish };
        fits(&order(None))?;
        match op {
            FileOp::Write { .. } | FileOp::TarIn { .. } => {
                let outgoing = session.mux.open_out_held(stream)?;
                let finish = session.expect();
                match session.order_then(order(Some(finish.id)), || outgoing.release()).await? {
                    Answer::Done => Ok(FileAnswer::Sink(Box::new(MachineSink { outgoing, finish }))),
                    _ => Err(strange()),
                }
            }
            FileOp::MakeDir { .. } | FileOp::Move { .. } | FileOp::Remove { .. } | FileOp::Chmod { .. } => {
                match session.order(order(None)).await? {
                    Answer::Done => Ok(FileAnswer::Done),
                    _ => Err(strange()),
                }
            }
            FileOp::Stat { .. } => match session.order(order(None)).await? {
                Answer::Stat { stat } => Ok(FileAnswer::Stat(stat)),
                _ => Err(strange()),
            },
            FileOp::Read { length, .. } => {
                let incoming = session.mux.open_in(stream)?;
                match session.order(order(None)).await? {
                    Answer::Stat { stat } => Ok(FileAnswer::Content { stat, bytes: content(incoming, *length) }),
                    _ => Err(strange()),
                }
            }
            FileOp::List { .. } | FileOp::TarOut { .. } | FileOp::Watch { .. } => {
                let incoming = session.mux.open_in(stream)?;
                match (op, session.order(order(None)).await?) {
                    (FileOp::List { .. }, Answer::Done) => Ok(FileAnswer::Entries(lines(incoming))),
                    (FileOp::Watch { .. }, Answer::Done) => Ok(FileAnswer::Changes(lines(incoming))),
                    (_, Answer::Done) => Ok(FileAnswer::Archive(incoming.into_stream().boxed())),
                    _ => Err(strange()),
                }
            }
        }
    }

    async fn do_adopt(&self, held: &HeldOf<'_>) -> Result<Vec<AdoptedExec>, Fault> {
        let Answer::Execs { execs } = self.session.order(Order::List).await? else { return Err(strange()) };
        let mut adopted = Vec::new();
        for KeptExec { exec, pid, pty, stdin, wall_us } in execs {
            let opened = self.open(stdin || pty, pty, true)?;
            let exit = self.session.exit_of(exec, true);
            let order = Order::Attach { exec, streams: opened.numbers, held: held(exec) };
            match self.session.order_then(order, || opened.release()).await {
                Ok(Answer::Attached { from }) => {
                    let spawned = self.spawned(exec, pid, opened, exit.boxed());
                    adopted.push(AdoptedExec { exec, pty, wall_us, from, spawned });
                }
                Ok(_) => return Err(strange()),
                // It ended and was forgotten in between.
                Err(fault) if fault.code == Code::NotFound => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(adopted)
    }
}

impl Place for MachinePlace {
    fn place(&self) -> PlaceRef {
        PlaceRef::Machine(self.machine)
    }

    fn gone(&self) -> BoxFuture<'_, Fault> {
        async {
            self.session.mux.ended().await;
            self.session.mux.dead().unwrap_or_else(|| place_lost("its session is over"))
        }
        .boxed()
    }

    fn spawn<'a>(
        &'a self,
        permit: &'a Permit,
        exec: ExecId,
        spec: &'a ExecSpec,
        keep: bool,
    ) -> BoxFuture<'a, Result<Spawned, Fault>> {
        self.do_spawn(permit, exec, spec, keep).boxed()
    }

    fn signal<'a>(
        &'a self,
        permit: &'a Permit,
        exec: ExecId,
        signal: i32,
        scope: SignalScope,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            self.check(permit, Action::ExecControl)?;
            match self.session.order(Order::Signal { exec, signal, scope }).await? {
                Answer::Done => Ok(()),
                _ => Err(strange()),
            }
        }
        .boxed()
    }

    fn file<'a>(
        &'a self,
        permit: &'a Permit,
        op: &'a FileOp,
        user: Option<&'a str>,
    ) -> BoxFuture<'a, Result<FileAnswer, Fault>> {
        self.do_file(permit, op, user).boxed()
    }

    fn adopt_execs<'a>(&'a self, held: &'a HeldOf<'a>) -> BoxFuture<'a, Result<Vec<AdoptedExec>, Fault>> {
        self.do_adopt(held).boxed()
    }

    fn forget(&self, exec: ExecId) -> BoxFuture<'_, ()> {
        self.session.order_quietly(Order::Forget { exec });
        std::future::ready(()).boxed()
    }
}

struct Opened {
    stdin: Option<Outgoing>,
    stdout: Incoming,
    stderr: Option<Incoming>,
    numbers: ExecStreams,
}

impl Opened {
    fn release(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.release();
        }
    }
}

struct MachineResize {
    session: Arc<Session>,
    exec: ExecId,
}

impl Resize for MachineResize {
    fn resize(&self, rows: u16, cols: u16) -> Result<(), Fault> {
        if let Some(fault) = self.session.mux.dead() {
            return Err(fault);
        }
        self.session.order_quietly(Order::Resize { exec: self.exec, rows, cols });
        Ok(())
    }
}

struct MachineSink {
    outgoing: Outgoing,
    finish: Expected,
}

impl Sink for MachineSink {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), Fault>> {
        async move { self.outgoing.send(&bytes).await }.boxed()
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), Fault>> {
        let Self { outgoing, finish } = *self;
        outgoing.end();
        async move {
            match finish.answer().await? {
                Answer::Done => Ok(()),
                _ => Err(strange()),
            }
        }
        .boxed()
    }
}

/// A machine that answers what was not asked.
fn strange() -> Fault {
    place_lost("its answer does not fit the order")
}

fn only_the_owner(user: Option<&str>) -> Result<(), Fault> {
    match user {
        None => Ok(()),
        Some(user) => Err(Fault::new(
            Code::InvalidRequest,
            format!("a machine runs everything as its owner, not as `{}`", user.escape_debug()),
            "leave the user out",
        )),
    }
}

/// The order fits a record.
fn fits(order: &Order) -> Result<(), Fault> {
    let message = ToMachine::Order { id: u64::MAX, order: order.clone() };
    let length = serde_json::to_vec(&message).map_or(usize::MAX, |json| json.len());
    if length <= RECORD_MAX {
        return Ok(());
    }
    Err(Fault::new(
        Code::TooLarge,
        format!("the order takes {length} bytes, and a machine takes at most {RECORD_MAX}"),
        "send long input through standard input or a file",
    ))
}

/// A file's content, never more than was asked for.
fn content(incoming: Incoming, length: Option<u64>) -> BoxStream<'static, Result<Bytes, Fault>> {
    let left = length.unwrap_or(u64::MAX);
    try_unfold((incoming, left), |(mut incoming, left)| async move {
        match incoming.next_piece(1024 * 1024).await.transpose()? {
            None => Ok(None),
            Some(bytes) if bytes.len() as u64 > left => Err(strange()),
            Some(bytes) => {
                let left = left - bytes.len() as u64;
                Ok(Some((bytes, (incoming, left))))
            }
        }
    })
    .boxed()
}

/// One value for each line of JSON.
fn lines<T: DeserializeOwned + Send + 'static>(incoming: Incoming) -> BoxStream<'static, Result<T, Fault>> {
    try_unfold((incoming, Vec::<u8>::new(), 0), |(mut incoming, mut buffer, mut from)| async move {
        loop {
            if let Some(at) = buffer[from..].iter().position(|b| *b == b'\n') {
                let value = serde_json::from_slice(&buffer[from..from + at]).map_err(|_| strange())?;
                from += at + 1;
                return Ok(Some((value, (incoming, buffer, from))));
            }
            buffer.drain(..from);
            from = 0;
            if buffer.len() > LINE_MAX {
                return Err(strange());
            }
            match incoming.next_piece(LINE_MAX).await.transpose()? {
                Some(bytes) => buffer.extend_from_slice(&bytes),
                None if buffer.is_empty() => return Ok(None),
                None => return Err(strange()),
            }
        }
    })
    .boxed()
}
