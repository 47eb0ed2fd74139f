//! Serving the server's orders: each is checked against the owner's word, done, and answered once.

use std::{io, sync::Arc};

use bytes::Bytes;
use rf_places::{
    machine_mux::{Incoming, Mux, Outgoing},
    place::Change,
};
use rf_types::{Code, ExecId, ExecSpec, Fault, FileOp, Stat};
use rf_wire::machine::{Answer, ExecStreams, FILE_OPS_MAX, Order, ToMachine, ToServer, Violation};
use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use crate::{
    execs::{Execs, Link, Streams},
    linux::{
        archive,
        files::{self, Writing},
        watch::Watching,
    },
    owner::Owner,
};

/// Most orders that wait to be begun; a server that sends more breaks the protocol.
const ORDERS_WAITING_MAX: usize = 1024;
/// Most orders in work at once, file operations that wait for their turn included.
const ORDERS_MAX: usize = 1024;
/// Most watches at once.
const WATCHES_MAX: usize = 64;
/// Bytes read from a file at once.
const PIECE: usize = 256 * 1024;

/// What serves orders, for the life of the program.
pub(crate) struct Machine {
    pub(crate) owner: Arc<Owner>,
    pub(crate) execs: Arc<Execs>,
    working: Arc<Semaphore>,
    file_ops: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

/// An order with the streams it names, opened before anything after it is read.
struct Job {
    id: u64,
    order: Order,
    streams: Result<Open, Fault>,
}

enum Open {
    None,
    Exec(Streams),
    ToUs(Incoming),
    FromUs(Outgoing),
}

/// The orders of one session.
pub(crate) struct Orders {
    link: Link,
    execs: Arc<Execs>,
    jobs: mpsc::Sender<Job>,
}

impl Machine {
    pub(crate) fn new(owner: Arc<Owner>, execs: Arc<Execs>) -> Arc<Self> {
        Arc::new(Self {
            owner,
            execs,
            working: Arc::new(Semaphore::new(ORDERS_MAX)),
            file_ops: Arc::new(Semaphore::new(FILE_OPS_MAX)),
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
        })
    }

    /// Begins to serve a session; ends with it.
    pub(crate) fn serve(self: &Arc<Self>, link: Link) -> Orders {
        let (jobs, mut waiting) = mpsc::channel::<Job>(ORDERS_WAITING_MAX);
        let (machine, session) = (self.clone(), link.clone());
        tokio::spawn(async move {
            while let Some(job) = waiting.recv().await {
                // Answers go at the server's pace: no more orders are begun than it takes answers.
                if session.mux.room().await.is_err() {
                    return;
                }
                machine.begin(&session, job).await;
            }
        });
        Orders { link, execs: self.execs.clone(), jobs }
    }

    /// Does what takes no time at once and in order; begins the rest.
    async fn begin(self: &Arc<Self>, link: &Link, job: Job) {
        let Job { id, order, streams } = job;
        let answer = match (order, streams) {
            (_, Err(fault)) => Err(fault),
            (Order::Signal { exec, signal, scope }, Ok(_)) => {
                self.execs.signal(exec, signal, scope).await.map(|()| Answer::Done)
            }
            (Order::List, Ok(_)) => Ok(Answer::Execs { execs: self.execs.kept(link.number) }),
            (Order::Forget { exec }, Ok(_)) => self.execs.forget(exec).map(|()| Answer::Done),
            (Order::Attach { exec, held, .. }, Ok(Open::Exec(streams))) => {
                match self.execs.attach(link.clone(), exec, streams, held) {
                    // The pumps may not have seen the end of the session before yet.
                    Ok(from) => {
                        let mux = link.mux.clone();
                        tokio::spawn(async move { reply(&mux, id, Ok(Answer::Attached { from: from.await })) });
                        return;
                    }
                    Err(fault) => Err(fault),
                }
            }
            (Order::Spawn { exec, spec, keep, .. }, Ok(Open::Exec(streams))) => match self.working() {
                Ok(working) => {
                    let (machine, link) = (self.clone(), link.clone());
                    tokio::spawn(async move {
                        let answer = machine.spawn(&link, exec, spec, keep, streams).await;
                        reply(&link.mux, id, answer);
                        drop(working);
                    });
                    return;
                }
                Err(fault) => Err(fault),
            },
            (Order::File { op, finish, .. }, Ok(open)) => {
                match self.owner.allows_file(&op).and_then(|()| self.working()) {
                    Ok(working) => {
                        let (machine, mux) = (self.clone(), link.mux.clone());
                        tokio::spawn(async move {
                            machine.file(&mux, id, op, open, finish).await;
                            drop(working);
                        });
                        return;
                    }
                    Err(fault) => Err(fault),
                }
            }
            (Order::Spawn { .. } | Order::Attach { .. } | Order::Resize { .. }, Ok(_)) => {
                Err(Fault::invalid("an order whose streams do not fit it"))
            }
        };
        reply(&link.mux, id, answer);
    }

    fn working(&self) -> Result<OwnedSemaphorePermit, Fault> {
        self.working.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{ORDERS_MAX} orders are in work on this machine");
            Fault::new(Code::PlaceExhausted, message, "wait for some to end")
        })
    }

    async fn spawn(
        &self,
        link: &Link,
        exec: ExecId,
        spec: ExecSpec,
        keep: bool,
        streams: Streams,
    ) -> Result<Answer, Fault> {
        let pid = self.execs.spawn(link.clone(), exec, spec, keep, streams).await?;
        Ok(Answer::Spawned { pid })
    }

    /// Does a file operation and answers it.
    async fn file(self: &Arc<Self>, mux: &Mux, id: u64, op: FileOp, open: Open, finish: Option<u64>) {
        if let FileOp::Watch { path, recursive } = op {
            let Open::FromUs(out) = open else { return reply(mux, id, Err(no_stream())) };
            return self.watch(mux, id, path, recursive, out).await;
        }
        // The semaphore is never closed.
        let Ok(turn) = self.file_ops.clone().acquire_owned().await else { return };
        let (machine, mux, runtime) = (self.clone(), mux.clone(), Handle::current());
        // On a thread that may block; a server that does not read blocks it, which is why there are few.
        let _ = tokio::task::spawn_blocking(move || {
            machine.file_blocking(&mux, &runtime, id, op, open, finish);
            drop(turn);
        })
        .await;
    }

    fn file_blocking(&self, mux: &Mux, runtime: &Handle, id: u64, op: FileOp, open: Open, finish: Option<u64>) {
        let root = &self.owner.root;
        let done = |result: Result<(), Fault>| result.map(|()| Answer::Done);
        let answer = match (op, open) {
            (FileOp::Stat { path, follow }, Open::None) => {
                files::stat(root, &path, follow).map(|stat| Answer::Stat { stat })
            }
            (FileOp::MakeDir { path, permissions, parents }, Open::None) => {
                done(files::make_dir(root, &path, permissions, parents))
            }
            (FileOp::Move { from, to, replace }, Open::None) => done(files::move_file(root, &from, &to, replace)),
            (FileOp::Remove { path, recursive }, Open::None) => done(files::remove(root, &path, recursive)),
            (FileOp::Chmod { path, permissions }, Open::None) => done(files::chmod(root, &path, permissions)),
            (FileOp::Read { path, offset, length }, Open::FromUs(mut out)) => {
                match files::open_for_reading(root, &path, offset) {
                    Ok((file, stat)) => {
                        reply(mux, id, Ok(Answer::Stat { stat }));
                        match send_file(runtime, file, length.unwrap_or(u64::MAX), &mut out, &path) {
                            Ok(()) => out.end(),
                            Err(fault) => out.abort(fault),
                        }
                        return;
                    }
                    Err(fault) => Err(fault),
                }
            }
            (FileOp::List { path, depth }, Open::FromUs(mut out)) => {
                // Answered when it is known that there is a directory.
                match root.directory(&path) {
                    Ok(_) => {
                        reply(mux, id, Ok(Answer::Done));
                        let mut tell = |stat: &Stat| runtime.block_on(out.send(&line(stat)));
                        match files::list(root, &path, depth, &mut tell) {
                            Ok(()) => out.end(),
                            Err(fault) => out.abort(fault),
                        }
                        return;
                    }
                    Err(fault) => Err(fault),
                }
            }
            (FileOp::TarOut { path }, Open::FromUs(mut out)) => match root.find(&path, true) {
                Ok(_) => {
                    reply(mux, id, Ok(Answer::Done));
                    let writer = io::BufWriter::with_capacity(PIECE, StreamWriter { runtime, out: &mut out });
                    match archive::write_archive(root, &path, writer) {
                        Ok(()) => out.end(),
                        Err(fault) => out.abort(fault),
                    }
                    return;
                }
                Err(fault) => Err(fault),
            },
            (FileOp::Write { path, mode, permissions, parents }, Open::ToUs(incoming)) => {
                match (Writing::open(root, &path, mode, permissions, parents), finish) {
                    (Ok(writing), Some(finish)) => {
                        reply(mux, id, Ok(Answer::Done));
                        receive_file(mux, runtime, incoming, writing, finish);
                        return;
                    }
                    (Ok(_), None) => Err(Fault::invalid("a write without a number for its end")),
                    (Err(fault), _) => Err(fault),
                }
            }
            (FileOp::TarIn { path }, Open::ToUs(incoming)) => match finish {
                Some(finish) => {
                    reply(mux, id, Ok(Answer::Done));
                    let mut reader = StreamReader { runtime, incoming, piece: Bytes::new() };
                    let result = archive::read_archive(root, &path, &mut reader).and_then(|()| reader.drain());
                    finish_write(mux, finish, reader.incoming, result);
                    return;
                }
                None => Err(Fault::invalid("a write without a number for its end")),
            },
            _ => Err(no_stream()),
        };
        reply(mux, id, answer);
    }

    async fn watch(&self, mux: &Mux, id: u64, path: String, recursive: bool, mut out: Outgoing) {
        let Ok(turn) = self.watches.clone().try_acquire_owned() else {
            let fault = Fault::new(Code::PlaceExhausted, format!("{WATCHES_MAX} watches run on this machine"), "");
            return reply(mux, id, Err(fault));
        };
        let owner = self.owner.clone();
        let runtime = Handle::current();
        let started = tokio::task::spawn_blocking(move || {
            // The descriptor is registered with the runtime.
            let _inside = runtime.enter();
            Watching::start(&owner.root, &path, recursive)
        });
        let mut watching = match started.await {
            Ok(Ok(watching)) => watching,
            Ok(Err(fault)) => return reply(mux, id, Err(fault)),
            Err(_) => return reply(mux, id, Err(Fault::new(Code::Internal, "the watch ended early", ""))),
        };
        reply(mux, id, Ok(Answer::Done));
        loop {
            let changes: Vec<Change> = tokio::select! {
                changes = watching.next() => match changes {
                    Ok(changes) => changes,
                    Err(fault) => return out.abort(fault),
                },
                _ = out.stopped() => return,
            };
            if changes.is_empty() {
                break;
            }
            for change in &changes {
                if out.send(&line(change)).await.is_err() {
                    return;
                }
            }
        }
        drop(turn);
        out.end();
    }
}

impl Orders {
    /// Takes a record of stream 0. Opens the streams it names before it returns, so that no byte comes before its
    /// stream.
    ///
    /// # Errors
    /// [`Violation`] for what is no order, or one too many.
    pub(crate) fn on_record(&self, json: &[u8]) -> Result<(), Violation> {
        let ToMachine::Order { id, order } =
            serde_json::from_slice(json).map_err(|_| Violation("an order cannot be read"))?;
        let mux = &self.link.mux;
        if let Order::Resize { exec, rows, cols } = order {
            // At once, so that input which the server sends after it comes after it.
            reply(mux, id, self.execs.resize(exec, rows, cols).map(|()| Answer::Done));
            return Ok(());
        }
        let exec = |streams: &ExecStreams| {
            Ok(Open::Exec(Streams {
                stdin: streams.stdin.map(|stream| mux.open_in(stream)).transpose()?,
                stdout: mux.open_out(streams.stdout)?,
                stderr: streams.stderr.map(|stream| mux.open_out(stream)).transpose()?,
            }))
        };
        let streams = match &order {
            Order::Spawn { streams, .. } | Order::Attach { streams, .. } => exec(streams),
            Order::File { op: FileOp::Write { .. } | FileOp::TarIn { .. }, stream, .. } => {
                mux.open_in(*stream).map(Open::ToUs)
            }
            Order::File {
                op: FileOp::Read { .. } | FileOp::List { .. } | FileOp::TarOut { .. } | FileOp::Watch { .. },
                stream,
                ..
            } => mux.open_out(*stream).map(Open::FromUs),
            Order::File { .. } | Order::Signal { .. } | Order::Resize { .. } | Order::List | Order::Forget { .. } => {
                Ok(Open::None)
            }
        };
        self.jobs.try_send(Job { id, order, streams }).map_err(|_| Violation("too many orders at once"))
    }
}

fn no_stream() -> Fault {
    Fault::invalid("an order whose streams do not fit it")
}

fn reply(mux: &Mux, id: u64, answer: Result<Answer, Fault>) {
    let answer = answer.unwrap_or_else(|fault| Answer::Failed { fault });
    mux.send(&ToServer::Answer { id, answer });
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain data has a JSON form");
    line.push(b'\n');
    line
}

fn send_file(
    runtime: &Handle,
    mut file: std::fs::File,
    length: u64,
    out: &mut Outgoing,
    path: &str,
) -> Result<(), Fault> {
    let mut buffer = vec![0; PIECE];
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let got = io::Read::read(&mut file, &mut buffer[..most])
            .map_err(|error| crate::linux::resolve::io_fault(&error, path.as_ref()))?;
        if got == 0 {
            break;
        }
        left -= got as u64;
        runtime.block_on(out.send(&buffer[..got]))?;
    }
    Ok(())
}

fn receive_file(mux: &Mux, runtime: &Handle, mut incoming: Incoming, mut writing: Writing, finish: u64) {
    let result = loop {
        match runtime.block_on(incoming.next_piece(PIECE)) {
            Some(Ok(bytes)) => {
                if let Err(fault) = writing.write(&bytes) {
                    break Err(fault);
                }
            }
            // It broke off: a replace leaves the old file.
            Some(Err(fault)) => break Err(fault),
            None => break writing.finish(),
        }
    };
    finish_write(mux, finish, incoming, result);
}

/// Answers the end of a write; when it failed, the server need send no more.
fn finish_write(mux: &Mux, finish: u64, incoming: Incoming, result: Result<(), Fault>) {
    match result {
        Ok(()) => reply(mux, finish, Ok(Answer::Done)),
        Err(fault) => {
            reply(mux, finish, Err(fault.clone()));
            incoming.stop(fault);
        }
    }
}

/// A stream as a blocking writer.
struct StreamWriter<'a> {
    runtime: &'a Handle,
    out: &'a mut Outgoing,
}

impl io::Write for StreamWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.out.send(bytes)).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream as a blocking reader.
struct StreamReader<'a> {
    runtime: &'a Handle,
    incoming: Incoming,
    piece: Bytes,
}

impl StreamReader<'_> {
    /// Reads what follows the archive's end, which is padding.
    fn drain(&mut self) -> Result<(), Fault> {
        while let Some(piece) = self.runtime.block_on(self.incoming.next_piece(PIECE)) {
            piece?;
        }
        Ok(())
    }
}

impl io::Read for StreamReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            match self.runtime.block_on(self.incoming.next_piece(PIECE)) {
                Some(piece) => self.piece = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
