//! HTTP by hand: a request that can stop in the middle of being sent or read, and an answer that may be cut.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longest wait for any byte: a test that waits longer has found a hang.
const PATIENCE: Duration = Duration::from_secs(40);

/// What a call came to.
#[derive(Clone, Debug)]
pub enum Said {
    /// An answer; `whole` when nothing of it is missing.
    Answer { status: u16, body: Vec<u8>, whole: bool },
    /// The connection ended before the end of an answer's head.
    Lost(String),
}

impl Said {
    /// The status; 0 without an answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Answer { status, .. } => *status,
            Self::Lost(_) => 0,
        }
    }

    /// Whether there is a whole answer that says that it was done.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Answer { status: 200..=299, whole: true, .. })
    }

    /// The body as JSON.
    pub fn json(&self) -> Option<Value> {
        match self {
            Self::Answer { body, whole: true, .. } => serde_json::from_slice(body).ok(),
            Self::Answer { .. } | Self::Lost(_) => None,
        }
    }

    /// The code of an answer that is a whole error: all four of its members are there.
    pub fn code(&self) -> Option<String> {
        let body = self.json()?;
        let whole = ["code", "message", "hint", "request_id"].iter().all(|name| body[name].is_string());
        (whole && self.status() >= 400).then(|| body["code"].as_str().unwrap_or_default().to_owned())
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(why) => write!(f, "connection lost ({why})"),
            Self::Answer { status, body, whole } => {
                let shown = &body[..body.len().min(300)];
                let cut = if *whole { "" } else { ", cut" };
                write!(f, "{status}{cut}, {} bytes: {}", body.len(), String::from_utf8_lossy(shown))
            }
        }
    }
}

/// One connection.
pub struct Call {
    stream: TcpStream,
    /// Bytes that came and belong to no answer yet.
    seen: Vec<u8>,
    /// Whether the last answer said that no other follows on this connection.
    pub last: bool,
}

/// The head of an answer that was read.
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
}

impl Call {
    /// Connects.
    pub fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, seen: Vec::new(), last: false })
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = vec![0; 65_536];
        let count = self.stream.read(&mut buffer)?;
        self.seen.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Reads until `done` says so of what came, which stays to be read.
    pub fn wait_for(&mut self, done: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        while !done(&self.seen) {
            if self.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn head(&mut self) -> io::Result<Head> {
        let end = |seen: &[u8]| seen.windows(4).position(|four| four == b"\r\n\r\n");
        self.wait_for(|seen| end(seen).is_some())?;
        let at = end(&self.seen).ok_or(io::ErrorKind::InvalidData)?;
        let text = String::from_utf8_lossy(&self.seen[..at]).to_ascii_lowercase();
        self.seen.drain(..at + 4);
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let header = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'))).map(str::trim)
        };
        self.last = header("connection") == Some("close");
        let length = if status == 204 { Some(0) } else { header("content-length").and_then(|n| n.parse().ok()) };
        Ok(Head { status, length, chunked: header("transfer-encoding") == Some("chunked") })
    }

    /// Reads the next answer, as far as it comes. The connection can be used on after a whole one
    /// that does not say that it is the last.
    pub fn answer(&mut self) -> Said {
        match self.head() {
            Ok(head) => self.body(&head),
            Err(error) => Said::Lost(error.to_string()),
        }
    }

    /// Reads the answer to an upgrade; nothing when it is one, and frames follow.
    pub fn upgrade(&mut self) -> io::Result<Option<Said>> {
        let head = self.head()?;
        Ok((head.status != 101).then(|| self.body(&head)))
    }

    /// The same connection, for sending beside the reading.
    pub fn sender(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    fn body(&mut self, head: &Head) -> Said {
        let mut body = Vec::new();
        let whole = match head.length {
            Some(length) => self.take(length, &mut body).is_ok(),
            None if head.chunked => self.chunks(&mut body).is_ok(),
            None => {
                while self.more().is_ok_and(|count| count > 0) {}
                body = std::mem::take(&mut self.seen);
                true
            }
        };
        Said::Answer { status: head.status, body, whole }
    }

    fn take(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let got = self.wait_for(|seen| seen.len() >= length);
        let there = length.min(self.seen.len());
        body.extend(self.seen.drain(..there));
        got
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let end = |seen: &[u8]| seen.windows(2).position(|two| two == b"\r\n");
            self.wait_for(|seen| end(seen).is_some())?;
            let at = end(&self.seen).ok_or(io::ErrorKind::InvalidData)?;
            let line = String::from_utf8_lossy(&self.seen[..at]).into_owned();
            let length = usize::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
            self.seen.drain(..at + 2);
            self.take(length, body)?;
            self.take(2, &mut Vec::new())?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    /// Takes what came so far, then all until the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more().is_ok_and(|count| count > 0) {}
        std::mem::take(&mut self.seen)
    }
}

/// An answer and when it was there, awaited beside the test.
pub struct Waiting(std::thread::JoinHandle<(Said, Instant)>);

impl Waiting {
    /// Begins to wait.
    pub fn start(mut call: Call, read: impl FnOnce(&mut Call) -> Said + Send + 'static) -> Self {
        Self(std::thread::spawn(move || {
            let said = read(&mut call);
            (said, Instant::now())
        }))
    }

    /// For an answer that is there already.
    pub fn said(said: Said) -> Self {
        let at = Instant::now();
        Self(std::thread::spawn(move || (said, at)))
    }

    /// The answer, and how long after `since` it was there.
    pub fn end(self, since: Instant) -> (Said, Duration) {
        let (said, at) = self.0.join().unwrap();
        (said, at.saturating_duration_since(since))
    }
}

/// One message of a WebSocket's client: binary or text, masked with zeros.
pub fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut bytes = vec![0x80 | kind, 0x80 | 126];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The payloads of a WebSocket's whole binary messages.
pub fn messages(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let (length, rest) = match second & 127 {
            126 if rest.len() >= 2 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 if rest.len() >= 8 => {
                (usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap(), &rest[8..])
            }
            126 | 127 => break,
            short => (usize::from(short), rest),
        };
        if rest.len() < length {
            break;
        }
        if first & 15 == 2 {
            all.extend_from_slice(&rest[..length]);
        }
        bytes = &rest[length..];
    }
    all
}

/// The whole frames of an exec's stream: kind and payload.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while bytes.len() >= 8 {
        let length = usize::try_from(u32::from_be_bytes(bytes[4..8].try_into().unwrap())).unwrap();
        if bytes.len() < 8 + length {
            break;
        }
        found.push((bytes[0], bytes[8..8 + length].to_vec()));
        bytes = &bytes[8 + length..];
    }
    found
}
