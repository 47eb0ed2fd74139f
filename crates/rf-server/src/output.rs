//! An exec's output on its way to a client: as frames, byte-exact and with backpressure, or collected within a bound.
//!
//! A piece is read from the place straight behind eight bytes of room for its frame's header, so nothing is copied
//! between the pipe and the socket.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use rf_places::place::ByteReader;
use rf_types::{Code, ExitReport, Fault};
use rf_wire::frames;
use tokio::io::AsyncReadExt as _;

use crate::room::{Room, Share};

/// First and largest piece, bytes. Measured: past 256 KiB a loopback stream gets no faster; most execs print little.
const PIECE_MIN: usize = 8 << 10;
const PIECE_MAX: usize = 256 << 10;
/// How long output may stay away after the exit before the stream ends. Only an exec that left a process behind with
/// its output open comes to this: what the exec itself wrote is in the pipe before its exit is told.
const DRAIN_IDLE: Duration = Duration::from_millis(20);
/// How long such a process is listened to at most.
const DRAIN_MAX: Duration = Duration::from_millis(250);

/// What comes next of an exec.
#[derive(Debug)]
pub enum Event {
    /// A whole frame of output: header and payload.
    Output(Bytes),
    /// It ended.
    Exit(ExitReport),
    /// How it ended is not known.
    Fault(Fault),
}

/// Output and end of one exec, in one order.
pub struct Output {
    streams: [Stream; 2],
    exit: Option<BoxFuture<'static, Result<ExitReport, Fault>>>,
    ended: Option<(Result<ExitReport, Fault>, tokio::time::Instant)>,
}

struct Stream {
    kind: u8,
    reader: Option<ByteReader>,
    buffer: BytesMut,
    size: usize,
}

impl Stream {
    fn new(kind: u8, reader: Option<ByteReader>) -> Self {
        Self { kind, reader, buffer: BytesMut::new(), size: PIECE_MIN }
    }

    /// The next frame; `None` at the end. Safe to cancel: bytes are in the buffer only once they are returned.
    async fn next(&mut self) -> Option<Bytes> {
        let reader = self.reader.as_mut()?;
        if self.buffer.is_empty() {
            self.buffer.reserve(frames::HEADER_LEN + self.size);
            self.buffer.put_slice(&[0; frames::HEADER_LEN]);
        }
        // A place whose stream breaks tells why by its exit.
        let read = reader.read_buf(&mut self.buffer).await.unwrap_or(0);
        if read == 0 {
            self.reader = None;
            self.buffer = BytesMut::new();
            return None;
        }
        if read >= self.size {
            self.size = (self.size * 4).min(PIECE_MAX);
        }
        let mut piece = self.buffer.split();
        piece[..frames::HEADER_LEN].copy_from_slice(&frames::header(self.kind, read));
        Some(piece.freeze())
    }
}

impl Output {
    /// Of these streams.
    #[must_use]
    pub fn new(
        stdout: ByteReader,
        stderr: Option<ByteReader>,
        exit: BoxFuture<'static, Result<ExitReport, Fault>>,
    ) -> Self {
        let streams = [Stream::new(frames::STDOUT, Some(stdout)), Stream::new(frames::STDERR, stderr)];
        Self { streams, exit: Some(exit), ended: None }
    }

    /// What comes next; `None` after the end was told. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let [stdout, stderr] = &mut self.streams;
            let open = [stdout.reader.is_some(), stderr.reader.is_some()];
            if open == [false; 2] && self.exit.is_none() {
                return self.ended.take().map(|(ended, _)| told(ended));
            }
            let idle = self.ended.as_ref().map(|(_, at)| {
                let last = *at + DRAIN_MAX;
                last.min(tokio::time::Instant::now() + DRAIN_IDLE)
            });
            tokio::select! {
                piece = stdout.next(), if open[0] => if let Some(piece) = piece {
                    return Some(Event::Output(piece));
                },
                piece = stderr.next(), if open[1] => if let Some(piece) = piece {
                    return Some(Event::Output(piece));
                },
                ended = wait(&mut self.exit), if self.exit.is_some() => {
                    self.exit = None;
                    self.ended = Some((ended, tokio::time::Instant::now()));
                }
                () = rest(idle), if idle.is_some() => {
                    return self.ended.take().map(|(ended, _)| {
                        self.streams.iter_mut().for_each(|stream| stream.reader = None);
                        told(ended)
                    });
                }
            }
        }
    }

    /// Everything until the end, at most `max` bytes of each stream and what there is room for; the rest is read and
    /// dropped, so that a program that prints much still ends.
    ///
    /// # Errors
    /// The fault that the place ended with.
    pub async fn collect(mut self, max: usize, room: &Room) -> Result<Collected, Fault> {
        let mut stdout = Text::new(room);
        let mut stderr = Text::new(room);
        loop {
            match self.next().await {
                Some(Event::Output(frame)) => {
                    let stream = if frame[0] == frames::STDERR { &mut stderr } else { &mut stdout };
                    stream.push(&frame[frames::HEADER_LEN..], max);
                }
                Some(Event::Exit(exit)) => return Ok(Collected { stdout, stderr, exit }),
                Some(Event::Fault(fault)) => return Err(fault),
                // `collect` takes the whole, so its end was not told before.
                None => return Err(Fault::new(Code::Internal, "an exec's end was told twice", "")),
            }
        }
    }
}

async fn wait(exit: &mut Option<BoxFuture<'static, Result<ExitReport, Fault>>>) -> Result<ExitReport, Fault> {
    match exit {
        Some(exit) => exit.await,
        None => std::future::pending().await,
    }
}

async fn rest(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn told(ended: Result<ExitReport, Fault>) -> Event {
    match ended {
        Ok(exit) => Event::Exit(exit),
        Err(fault) => Event::Fault(fault),
    }
}

/// All of an exec.
#[derive(Debug)]
pub struct Collected {
    /// Standard output.
    pub stdout: Text,
    /// Standard error; empty with a terminal.
    pub stderr: Text,
    /// How it ended.
    pub exit: ExitReport,
}

/// Collected bytes of one stream.
#[derive(Debug)]
pub struct Text {
    bytes: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
    share: Share,
}

impl Text {
    fn new(room: &Room) -> Self {
        Self { bytes: Vec::new(), truncated: false, share: room.share() }
    }

    fn push(&mut self, bytes: &[u8], max: usize) {
        let taken = &bytes[..bytes.len().min(max - self.bytes.len())];
        // Once cut it stays cut: bytes after a gap would be read as if there were none.
        if self.truncated || !self.share.grow(self.bytes.len() + taken.len()) {
            self.truncated = true;
            return;
        }
        self.truncated = taken.len() < bytes.len();
        self.bytes.extend_from_slice(taken);
    }

    /// As JSON can hold it: the text and `utf-8`, or base64 of the bytes and `base64`.
    #[must_use]
    pub fn encoded(self) -> (String, &'static str) {
        match String::from_utf8(self.bytes) {
            Ok(text) => (text, "utf-8"),
            Err(error) => (STANDARD.encode(error.as_bytes()), "base64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use rf_types::Usage;

    fn exit(code: i32) -> ExitReport {
        ExitReport { code: Some(code), signal: None, timed_out: false, usage: Usage::default() }
    }

    fn reader(bytes: &[u8]) -> ByteReader {
        Box::pin(std::io::Cursor::new(bytes.to_vec()))
    }

    #[tokio::test]
    async fn output_comes_whole_before_the_exit() {
        let long: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let mut output = Output::new(reader(&long), Some(reader(b"err")), async { Ok(exit(3)) }.boxed());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match output.next().await.unwrap() {
                Event::Output(frame) => {
                    let (kind, payload) = frames::parse_message(&frame).unwrap();
                    if kind == frames::STDOUT { out.extend_from_slice(payload) } else { err.extend_from_slice(payload) }
                }
                Event::Exit(ended) => {
                    assert_eq!(ended, exit(3));
                    break;
                }
                Event::Fault(fault) => panic!("{fault}"),
            }
        }
        assert!(output.next().await.is_none());
        assert_eq!((out == long, err), (true, b"err".to_vec()));
    }

    #[tokio::test]
    async fn more_than_the_bound_is_dropped_and_said() {
        let output = Output::new(reader(&[b'x'; 100]), Some(reader(b"four")), async { Ok(exit(0)) }.boxed());
        let collected = output.collect(4, &Room::default()).await.unwrap();
        assert!(collected.stdout.truncated && !collected.stderr.truncated);
        assert_eq!(collected.stdout.encoded(), ("xxxx".to_owned(), "utf-8"));
    }

    #[tokio::test]
    async fn output_without_room_is_cut_and_said() {
        let room = Room::default();
        let mut all = room.share();
        assert!(all.grow(room.free_kib() << 10));
        let output = Output::new(reader(&[b'x'; 1 << 20]), None, async { Ok(exit(0)) }.boxed());
        let collected = output.collect(1 << 20, &room).await.unwrap();
        assert!(collected.stdout.truncated);
        assert!(collected.stdout.encoded().0.len() <= 64 << 10);
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_come_as_base64() {
        let output = Output::new(reader(b"\xff\0"), None, async { Ok(exit(0)) }.boxed());
        assert_eq!(output.collect(10, &Room::default()).await.unwrap().stdout.encoded(), ("/wA=".to_owned(), "base64"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_left_behind_does_not_hold_the_answer() {
        let (ours, theirs) = tokio::io::duplex(64);
        let output = Output::new(Box::pin(ours), None, async { Ok(exit(0)) }.boxed());
        let collected = output.collect(10, &Room::default()).await.unwrap();
        assert_eq!(collected.exit, exit(0));
        drop(theirs);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_left_behind_that_keeps_printing_does_not_either() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let chatter = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            while theirs.write_all(b"again").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let output = Output::new(Box::pin(ours), None, async { Ok(exit(0)) }.boxed());
        assert!(output.collect(10, &Room::default()).await.unwrap().stdout.truncated);
        chatter.await.unwrap();
    }
}
