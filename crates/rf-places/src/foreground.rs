//! An exec whose caller waits for it: its streams straight from the place, or collected up to a cap.

use std::time::Duration;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use rf_types::{ExecId, ExecState, ExitReport, Fault};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, timeout_at},
};

use crate::{
    execs::ExecEvent,
    piece::next_piece,
    place::{ByteReader, ByteWriter, Resize},
};

/// How long the output may stay silent after the program's end before it is taken to be over, and how long in all: what
/// its detached children print later belongs to nobody. Chosen.
const SILENCE_TIME: Duration = Duration::from_millis(100);
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A running exec whose caller waits. Dropped before its end, its whole tree is killed.
pub struct Foreground {
    /// Its id.
    pub id: ExecId,
    /// Its pid inside the place.
    pub pid: u32,
    /// Standard input, if asked for, or the terminal's.
    pub stdin: Option<ByteWriter>,
    /// Standard output, or all that a terminal prints.
    pub stdout: ByteReader,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<ByteReader>,
    /// The terminal's size.
    pub resize: Option<Box<dyn Resize>>,
    /// How it ends; noted in the list of execs when it resolves.
    pub exit: BoxFuture<'static, Result<ExitReport, Fault>>,
}

/// What a foreground exec printed and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// The first bytes of standard output.
    pub stdout: Vec<u8>,
    /// Whether there were more.
    pub stdout_truncated: bool,
    /// The first bytes of standard error.
    pub stderr: Vec<u8>,
    /// Whether there were more.
    pub stderr_truncated: bool,
    /// How it ended.
    pub exit: ExitReport,
}

/// The outputs and the end of an exec, until all three are over.
struct Running {
    stdout: Option<ByteReader>,
    stderr: Option<ByteReader>,
    exit: Option<BoxFuture<'static, Result<ExitReport, Fault>>>,
    end: Option<Result<ExitReport, Fault>>,
    ended_at: Option<Instant>,
}

enum Next {
    Stdout(Bytes),
    Stderr(Bytes),
    Over(Result<ExitReport, Fault>),
}

async fn read(reader: &mut Option<ByteReader>) -> Option<Bytes> {
    match reader {
        // A stream that breaks is a stream that ends: how the exec ended says why.
        Some(open) => Some(next_piece(open).await.unwrap_or_default()),
        None => std::future::pending().await,
    }
}

impl Running {
    async fn next(&mut self) -> Next {
        loop {
            if self.stdout.is_none() && self.stderr.is_none() && self.exit.is_none() {
                let end = self.end.take();
                return Next::Over(end.unwrap_or_else(|| Err(crate::refusal::lost("its end was told before"))));
            }
            let patience = async {
                match self.ended_at {
                    Some(at) => timeout_at(at + DRAIN_TIME, tokio::time::sleep(SILENCE_TIME)).await.unwrap_or(()),
                    None => std::future::pending().await,
                }
            };
            let exit = async {
                match &mut self.exit {
                    Some(exit) => exit.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Output first: what was printed before the end is told before it.
                biased;
                Some(bytes) = read(&mut self.stdout) => {
                    if !bytes.is_empty() {
                        return Next::Stdout(bytes);
                    }
                    self.stdout = None;
                }
                Some(bytes) = read(&mut self.stderr) => {
                    if !bytes.is_empty() {
                        return Next::Stderr(bytes);
                    }
                    self.stderr = None;
                }
                end = exit => {
                    self.exit = None;
                    // A lost place prints nothing more.
                    if end.is_err() {
                        (self.stdout, self.stderr) = (None, None);
                    }
                    self.end = Some(end);
                    self.ended_at = Some(Instant::now());
                }
                () = patience => (self.stdout, self.stderr) = (None, None),
            }
            if self.ended_at.is_some_and(|at| at.elapsed() > DRAIN_TIME) {
                (self.stdout, self.stderr) = (None, None);
            }
        }
    }
}

impl Foreground {
    fn split(self) -> (Running, Option<ByteWriter>) {
        let Self { id: _, pid: _, stdin, stdout, stderr, resize: _, exit } = self;
        (Running { stdout: Some(stdout), stderr, exit: Some(exit), end: None, ended_at: None }, stdin)
    }

    /// What it prints, in pieces, until [`ExecEvent::Ended`]; take `stdin` and `resize` out before. Dropped before its
    /// end, the stream kills the whole tree.
    #[must_use]
    pub fn events(self) -> BoxStream<'static, ExecEvent> {
        // Dropping standard input closes it.
        let (running, _stdin) = self.split();
        Box::pin(futures::stream::unfold(Some(running), |running| async move {
            let mut running = running?;
            Some(match running.next().await {
                Next::Stdout(bytes) => (ExecEvent::Stdout(bytes), Some(running)),
                Next::Stderr(bytes) => (ExecEvent::Stderr(bytes), Some(running)),
                Next::Over(Ok(report)) => (ExecEvent::Ended(ExecState::Exited(report)), None),
                Next::Over(Err(_)) => (ExecEvent::Ended(ExecState::Lost), None),
            })
        }))
    }

    /// Gives it `input`, reads all it prints, keeps the first bytes of each output, and waits for its end.
    ///
    /// # Errors
    /// `place_lost` when the place goes first.
    pub async fn collect(self, input: Bytes, stdout_max: usize, stderr_max: usize) -> Result<Collected, Fault> {
        let (mut running, stdin) = self.split();
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input is no error.
                let _ = stdin.write_all(&input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let read = async move {
            let (mut stdout, mut stderr) = (Capped::new(stdout_max), Capped::new(stderr_max));
            loop {
                match running.next().await {
                    Next::Stdout(bytes) => stdout.take(&bytes),
                    Next::Stderr(bytes) => stderr.take(&bytes),
                    Next::Over(end) => {
                        return end.map(|exit| Collected {
                            stdout: stdout.bytes,
                            stdout_truncated: stdout.truncated,
                            stderr: stderr.bytes,
                            stderr_truncated: stderr.truncated,
                            exit,
                        });
                    }
                }
            }
        };
        // The input is fed only as long as somebody is there to read it.
        let mut read = std::pin::pin!(read);
        tokio::select! {
            biased;
            () = feed => {}
            collected = &mut read => return collected,
        }
        read.await
    }
}

/// The first bytes of an output.
struct Capped {
    bytes: Vec<u8>,
    max: usize,
    truncated: bool,
}

impl Capped {
    const fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max, truncated: false }
    }

    fn take(&mut self, more: &[u8]) {
        let room = self.max - self.bytes.len();
        self.bytes.extend_from_slice(&more[..more.len().min(room)]);
        self.truncated |= more.len() > room;
    }
}
