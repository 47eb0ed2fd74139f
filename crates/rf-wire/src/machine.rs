//! What a joined machine and the server say to each other over one WebSocket.
//!
//! One frame is one binary message: a kind, a stream and a payload, numbers little-endian.
//!
//! ```text
//! 0      1           5
//! | kind | stream    | payload ...
//! ```
//!
//! The machine dials. The server says [`CHALLENGE`], the machine [`HELLO`], the server [`WELCOME`]; from then on both
//! send [`DATA`] and [`ACK`], and [`PING`] when nothing else is to be said. [`BYE`] ends the connection with a reason.
//!
//! A stream is a sequence of bytes in one direction, counted from 0. `DATA` names the offset of its first byte; `ACK`
//! the offset up to which the receiver's user has taken bytes, which lets the sender forget them and go on to
//! [`WINDOW`] bytes past it. After a drop both sides tell how far they received ([`Resume`]) and the senders go back to
//! there: so every stream goes on at the exact byte, and a stream whose reader is slow holds up no other.
//!
//! Stream 0 (one in each direction) carries [`ToMachine`] and [`ToServer`] records: a tag, a length, JSON. Since it is
//! resumed like every other, an order arrives exactly once in the life of a session, and an order of a session that
//! is over never arrives.
//!
//! **Boundary:** server and machine distrust each other; each checks every length, offset and name of the other.

use rf_types::{ExecId, ExecSpec, ExitReport, Fault, FileOp, MachineId, SignalScope, Stat};
use serde::{Deserialize, Serialize};

/// The version of this protocol. Each side offers a range and the server picks the highest common one.
pub const VERSION: u16 = 2;
/// Bytes before a frame's payload.
pub const HEADER_LEN: usize = 5;
/// Bytes before a `DATA` frame's content: the header and the offset.
pub const DATA_HEADER_LEN: usize = HEADER_LEN + 8;
/// Most content of one `DATA` frame, bytes. Chosen: large enough that the frame's own cost vanishes.
pub const DATA_MAX: usize = 64 * 1024;
/// Longest binary message either side takes, bytes. A `HELLO` with a full [`Resume`] is the longest.
pub const MESSAGE_MAX: usize = 128 * 1024;
/// Bytes in flight on one stream that its receiver has not yet taken; also the replay buffer of one stream.
pub const WINDOW: u64 = 1024 * 1024;
/// Longest record on stream 0, bytes; bounds arguments and environment of an exec together.
pub const RECORD_MAX: usize = 1024 * 1024;
/// Most bytes of records that wait on stream 0 before the peer counts as gone.
pub const RECORDS_WAITING_MAX: usize = 16 * 1024 * 1024;
/// Most streams in each direction at once.
pub const STREAMS_MAX: usize = 2048;
/// Most execs that a machine keeps, running or ended and not yet forgotten.
pub const EXECS_MAX: usize = 512;
/// Most file operations at once on one machine; the next waits.
pub const FILE_OPS_MAX: usize = 64;
/// Longest text of a [`Facts`] field, bytes.
pub const FACT_MAX: usize = 1024;
/// Bytes of a challenge's nonce.
pub const NONCE_LEN: usize = 32;
/// Where the server answers a machine, below its URL.
pub const CONNECT_PATH: &str = "/v1/machines/connect";

/// Kinds of frames.
pub mod kind {
    /// Server, first: [`super::Challenge`] as JSON.
    pub const CHALLENGE: u8 = 1;
    /// Machine, answering: [`super::Hello`] as JSON.
    pub const HELLO: u8 = 2;
    /// Server, answering: [`super::Welcome`] as JSON.
    pub const WELCOME: u8 = 3;
    /// Either, last: [`super::Bye`] as JSON.
    pub const BYE: u8 = 4;
    /// Either: a sign of life; no payload.
    pub const PING: u8 = 5;
    /// Either: `offset: u64` and the bytes.
    pub const DATA: u8 = 6;
    /// Either: `offset: u64`.
    pub const ACK: u8 = 7;
}

/// Tags of the records on stream 0: `tag: u8, length: u32`, then JSON.
pub mod record {
    /// [`super::StreamNews`].
    pub const STREAM: u8 = 0;
    /// [`super::ToMachine`] or [`super::ToServer`].
    pub const MESSAGE: u8 = 1;
    /// Bytes before a record's JSON.
    pub const HEADER_LEN: usize = 5;
}

/// A frame, borrowed from its message.
#[derive(Debug, Eq, PartialEq)]
pub enum Frame<'a> {
    /// JSON of the handshake or the farewell, by kind.
    Json {
        /// [`kind::CHALLENGE`], [`kind::HELLO`], [`kind::WELCOME`] or [`kind::BYE`].
        kind: u8,
        /// The JSON.
        json: &'a [u8],
    },
    /// A sign of life.
    Ping,
    /// Bytes of a stream.
    Data {
        /// Which stream.
        stream: u32,
        /// Offset of the first byte.
        offset: u64,
        /// The bytes, 1 to [`DATA_MAX`].
        bytes: &'a [u8],
    },
    /// Bytes taken.
    Ack {
        /// Which stream.
        stream: u32,
        /// All below were taken.
        offset: u64,
    },
}

/// Why a message is not a frame, or came at a wrong moment. The connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Violation(pub &'static str);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Violation {}

impl<'a> Frame<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`Violation`] for whatever is not exactly a frame.
    pub fn decode(message: &'a [u8]) -> Result<Self, Violation> {
        if message.len() > MESSAGE_MAX {
            return Err(Violation("a message is too long"));
        }
        let (head, payload) = message.split_first_chunk::<HEADER_LEN>().ok_or(Violation("a message is too short"))?;
        let [kind, a, b, c, d] = *head;
        let stream = u32::from_le_bytes([a, b, c, d]);
        match kind {
            kind::CHALLENGE | kind::HELLO | kind::WELCOME | kind::BYE if stream == 0 => {
                Ok(Self::Json { kind, json: payload })
            }
            kind::PING if stream == 0 && payload.is_empty() => Ok(Self::Ping),
            kind::DATA => {
                let (offset, bytes) = payload.split_first_chunk::<8>().ok_or(Violation("a data frame is too short"))?;
                if bytes.is_empty() || bytes.len() > DATA_MAX {
                    return Err(Violation("a data frame has a wrong length"));
                }
                Ok(Self::Data { stream, offset: u64::from_le_bytes(*offset), bytes })
            }
            kind::ACK => {
                let offset = payload.try_into().map_err(|_| Violation("an acknowledgement has a wrong length"))?;
                Ok(Self::Ack { stream, offset: u64::from_le_bytes(offset) })
            }
            _ => Err(Violation("a frame of an unknown kind")),
        }
    }
}

/// A frame of `kind` without a stream around `payload`.
#[must_use]
pub fn encode(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
    message.push(kind);
    message.extend([0; 4]);
    message.extend(payload);
    message
}

/// A frame of `kind` around the JSON of `value`.
///
/// # Panics
/// Never: the types of this module always have a JSON form.
#[must_use]
pub fn encode_json(kind: u8, value: &impl Serialize) -> Vec<u8> {
    encode(kind, &serde_json::to_vec(value).expect("plain data has a JSON form"))
}

/// An `ACK` frame.
#[must_use]
pub fn encode_ack(stream: u32, offset: u64) -> Vec<u8> {
    let mut message = Vec::with_capacity(DATA_HEADER_LEN);
    data_header(&mut message, kind::ACK, stream, offset);
    message
}

/// Begins a `DATA` or `ACK` frame; a `DATA` frame's bytes follow.
pub fn data_header(message: &mut Vec<u8>, kind: u8, stream: u32, offset: u64) {
    message.push(kind);
    message.extend(stream.to_le_bytes());
    message.extend(offset.to_le_bytes());
}

/// The server's first word.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Lowest version it speaks.
    pub version_min: u16,
    /// Highest version it speaks.
    pub version_max: u16,
    /// [`NONCE_LEN`] random bytes in hex, made for this connection.
    pub nonce: String,
    /// The server's name for itself; a machine that was enrolled by it knows it.
    pub server: String,
}

/// How strongly a machine's owner holds what comes from the server, weakest hold last. Only the owner sets it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Files below the workspace root may be read. Nothing is run, nothing written.
    ReadOnly,
    /// Files below the workspace root only; commands are held to it by Landlock.
    Workspace,
    /// Whatever the owner may do.
    Full,
}

impl Level {
    /// The level's name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Workspace => "workspace",
            Self::Full => "full",
        }
    }
}

impl std::str::FromStr for Level {
    type Err = Violation;

    fn from_str(text: &str) -> Result<Self, Violation> {
        [Self::ReadOnly, Self::Workspace, Self::Full]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or(Violation("a level is `read-only`, `workspace` or `full`"))
    }
}

/// What a machine says of itself. Claims of the machine: shown to its user, decided upon by nobody.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Its name, as `uname -n`.
    pub hostname: String,
    /// The operating system, such as `linux`.
    pub os: String,
    /// The kernel, as `uname -r`.
    pub kernel: String,
    /// The architecture, such as `x86_64`.
    pub arch: String,
    /// The owner's home directory.
    pub home: String,
    /// The owner's login name.
    pub username: String,
    /// The workspace root; relative paths begin here.
    pub workspace: String,
    /// The level its owner set.
    pub level: Level,
    /// The version of the machine program.
    pub version: String,
    /// The kernel's Landlock ABI; 0 without.
    pub landlock_abi: u32,
    /// What the level does not hold on this machine, for people.
    pub not_held: Vec<String>,
}

impl Facts {
    /// Checks lengths, and that no text has a control character, which could fool whoever reads it on a terminal.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), Violation> {
        let texts = [
            &self.hostname,
            &self.os,
            &self.kernel,
            &self.arch,
            &self.home,
            &self.username,
            &self.workspace,
            &self.version,
        ];
        if self.not_held.len() > 16 || texts.into_iter().chain(&self.not_held).any(|text| text.len() > FACT_MAX) {
            return Err(Violation("a fact of the machine is too long"));
        }
        if texts.into_iter().chain(&self.not_held).any(|text| text.chars().any(char::is_control)) {
            return Err(Violation("a fact of the machine has a control character"));
        }
        Ok(())
    }
}

/// How a machine proves who it is. Each signature is over [`proof_message`], with the key that the machine made for
/// this server alone.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "by", deny_unknown_fields)]
pub enum Proof {
    /// The first time: an enrolment token, good once.
    Token {
        /// The token, as its user was given it.
        token: String,
        /// The machine's ed25519 key, 32 bytes in hex.
        public_key: String,
        /// The signature, 64 bytes in hex.
        signature: String,
    },
    /// From then on: its key.
    Key {
        /// The machine's id, as the first [`Welcome`] told it.
        machine: MachineId,
        /// The signature, 64 bytes in hex.
        signature: String,
    },
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token { public_key, .. } => write!(f, "Token {{ public_key: {public_key}, .. }}"),
            Self::Key { machine, .. } => write!(f, "Key {{ machine: {machine}, .. }}"),
        }
    }
}

/// What a machine signs: that it, by this key, answers this nonce of the server of this name, which it reached at this
/// origin. So an answer serves no other server, no other connection and no other machine.
///
/// `who` is the machine's id, or when it enrols: `enrol `, the public key in hex, a space and the token.
#[must_use]
pub fn proof_message(challenge: &Challenge, origin: &str, who: &str) -> Vec<u8> {
    let mut message = b"ringfence machine proof 1\0".to_vec();
    for part in [challenge.nonce.as_str(), &challenge.server, origin, who] {
        // INVARIANT: each is far below 4 GiB, since a message is at most `MESSAGE_MAX`.
        message.extend((part.len() as u32).to_le_bytes());
        message.extend(part.as_bytes());
    }
    message
}

/// A session as one side still has it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The session, as [`Welcome`] named it.
    pub session: String,
    /// How far each open stream to this side was received: stream and offset.
    pub received: Vec<(u32, u64)>,
}

/// The machine's answer to the challenge.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Lowest version it speaks.
    pub version_min: u16,
    /// Highest version it speaks.
    pub version_max: u16,
    /// Scheme, host and port at which it reached the server, such as `https://example.org:443`.
    pub origin: String,
    /// What it is.
    pub facts: Facts,
    /// Who it is.
    pub proof: Proof,
    /// The session it could go on with.
    pub resume: Option<Resume>,
}

/// The server takes the machine in.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// The version from now on.
    pub version: u16,
    /// The machine's id.
    pub machine: MachineId,
    /// The session, 32 hex digits.
    pub session: String,
    /// When this goes on with the session that the machine named: how far each stream was received. `None`: a new
    /// session, all streams of an old one are over.
    pub received: Option<Vec<(u32, u64)>>,
    /// How often each side gives a sign of life, milliseconds; three times without one ends the connection.
    pub heartbeat_ms: u64,
}

/// Why a connection ends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bye {
    /// The reason.
    pub fault: Fault,
    /// Whether the machine should come again. Not when it was removed or not let in.
    pub retry: bool,
}

/// What happens to a stream beside its bytes. Sent on stream 0, so it is never lost.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "news", deny_unknown_fields)]
pub enum StreamNews {
    /// From the sender: it ends after `length` bytes.
    End {
        /// Which.
        stream: u32,
        /// Bytes in all.
        length: u64,
    },
    /// From the sender: it breaks off.
    Abort {
        /// Which.
        stream: u32,
        /// Why.
        fault: Fault,
    },
    /// From the receiver: no more is wanted, or the stream came to its end; the sender forgets it.
    Stop {
        /// Which.
        stream: u32,
        /// Why, unless it came to its end.
        fault: Option<Fault>,
    },
}

/// What the server says on stream 0.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToMachine {
    /// An order; answered once.
    Order {
        /// The server's number for it.
        id: u64,
        /// What to do.
        order: Order,
    },
}

/// The streams of an exec. All are the server's choice of number.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExecStreams {
    /// To the machine: standard input.
    pub stdin: Option<u32>,
    /// From the machine: standard output.
    pub stdout: u32,
    /// From the machine: standard error; none with a terminal.
    pub stderr: Option<u32>,
}

/// What the server may ask.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum Order {
    /// Start an exec. Answer: [`Answer::Spawned`]; later [`ToServer::Exited`].
    Spawn {
        /// Its id; one that was seen before is refused.
        exec: ExecId,
        /// What to run.
        spec: ExecSpec,
        /// Keep it when this session is over, for the next server.
        keep: bool,
        /// Its streams.
        streams: ExecStreams,
    },
    /// Signal an exec. Answer: [`Answer::Done`].
    Signal {
        /// Which.
        exec: ExecId,
        /// signal(7), 1 to 64.
        signal: i32,
        /// Whom.
        scope: SignalScope,
    },
    /// Set a terminal's size. Answer: [`Answer::Done`].
    Resize {
        /// Which exec.
        exec: ExecId,
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// A file operation. Answer: by its kind; the bytes, or a line of JSON for each entry or change, on `stream`.
    File {
        /// What to do.
        op: FileOp,
        /// The stream: to the machine for a write, else from it.
        stream: u32,
        /// For a write: the order's number under which its end is answered, once the stream has ended.
        finish: Option<u64>,
    },
    /// Tell the execs that were kept from an earlier session. Answer: [`Answer::Execs`].
    List,
    /// Give a kept exec its streams in this session. Answer: [`Answer::Attached`]; later [`ToServer::Exited`].
    Attach {
        /// Which.
        exec: ExecId,
        /// Its streams.
        streams: ExecStreams,
        /// What the server has of its outputs: each goes on from there.
        held: Held,
    },
    /// Forget an ended exec. Answer: [`Answer::Done`].
    Forget {
        /// Which.
        exec: ExecId,
    },
}

/// How far an exec's outputs go, bytes from their beginnings; 0 for one that there is not.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Of standard output, or all that a terminal prints.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

/// One kept exec.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeptExec {
    /// Its id.
    pub exec: ExecId,
    /// Its pid.
    pub pid: u32,
    /// Whether it has a terminal.
    pub pty: bool,
    /// Whether it was started with a standard input.
    pub stdin: bool,
    /// How long it has run, microseconds.
    pub wall_us: u64,
}

/// What comes of an order.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", deny_unknown_fields)]
pub enum Answer {
    /// It is done, or for a watch: it watches.
    Done,
    /// It runs.
    Spawned {
        /// Its pid.
        pid: u32,
    },
    /// Its streams go on, each from here.
    Attached {
        /// What [`Order::Attach`] asked for, or later where the machine no longer has those bytes.
        from: Held,
    },
    /// A description; for a read, its bytes follow on the stream.
    Stat {
        /// The description.
        stat: Stat,
    },
    /// The kept execs.
    Execs {
        /// Each.
        execs: Vec<KeptExec>,
    },
    /// It was not done.
    Failed {
        /// Why.
        fault: Fault,
    },
}

/// What the machine says on stream 0.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToServer {
    /// What came of an order.
    Answer {
        /// The order's number.
        id: u64,
        /// What came of it.
        answer: Answer,
    },
    /// An exec ended.
    Exited {
        /// Which.
        exec: ExecId,
        /// How.
        report: ExitReport,
    },
    /// An exec is gone and how it ended cannot be known: its keeper was killed.
    Lost {
        /// Which.
        exec: ExecId,
    },
}

/// The bytes that `hex` spells, if it spells exactly `N` in lower case.
#[must_use]
pub fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// `bytes` in lower-case hex.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_exactly_a_frame_is_refused() {
        let data = |len: usize| {
            let mut message = Vec::new();
            data_header(&mut message, kind::DATA, 7, 9);
            message.resize(message.len() + len, b'x');
            message
        };
        assert_eq!(Frame::decode(&data(3)), Ok(Frame::Data { stream: 7, offset: 9, bytes: b"xxx" }));
        assert_eq!(Frame::decode(&encode_ack(7, 9)), Ok(Frame::Ack { stream: 7, offset: 9 }));
        assert_eq!(Frame::decode(&encode(kind::PING, b"")), Ok(Frame::Ping));
        for wrong in [
            vec![],
            vec![kind::PING],
            encode(kind::PING, b"x"),
            encode(0, b""),
            encode(99, b""),
            encode(kind::ACK, b"1234567"),
            encode(kind::DATA, b"1234567"),
            data(0),
            data(DATA_MAX + 1),
            vec![kind::PING, 1, 0, 0, 0],
            vec![kind::HELLO; MESSAGE_MAX + 1],
        ] {
            assert!(Frame::decode(&wrong).is_err(), "{:?}", &wrong[..wrong.len().min(20)]);
        }
    }

    #[test]
    fn a_proof_is_for_one_nonce_one_server_one_origin_and_one_machine() {
        let challenge = |nonce: &str, server: &str| Challenge {
            version_min: 1,
            version_max: 1,
            nonce: nonce.to_owned(),
            server: server.to_owned(),
        };
        let all = [
            proof_message(&challenge("n", "s"), "o", "m"),
            proof_message(&challenge("N", "s"), "o", "m"),
            proof_message(&challenge("n", "S"), "o", "m"),
            proof_message(&challenge("n", "s"), "O", "m"),
            proof_message(&challenge("n", "s"), "o", "M"),
            // The same text, cut elsewhere.
            proof_message(&challenge("ns", ""), "o", "m"),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn hex_has_one_form() {
        assert_eq!(from_hex::<2>("00ff"), Some([0, 255]));
        assert_eq!(to_hex(&[0, 255]), "00ff");
        for wrong in ["", "00f", "00FF", "00fg", "00ff00", "+0ff"] {
            assert_eq!(from_hex::<2>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_not_in_the_debug_form() {
        let proof = Proof::Token { token: "secret".into(), public_key: "k".into(), signature: "s".into() };
        assert!(!format!("{proof:?}").contains("secret"));
    }
}
