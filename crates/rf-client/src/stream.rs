//! The frames of an exec ([`rf_wire::frames`]): read from the body of an HTTP answer, or both ways over a WebSocket.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use futures::{SinkExt, Stream, StreamExt, stream::BoxStream};
use rf_types::{ExitReport, Pty, SignalScope};
use rf_wire::frames;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message},
};

use crate::{client::FaultBody, error::ClientError, types::Started};

/// Bytes of standard input in one message. Chosen: small enough for every server's bound, large enough to be fast.
const STDIN_PIECE: usize = 256 * 1024;

/// One piece of news of an exec.
#[derive(Debug)]
pub enum Event {
    /// It runs.
    Started(Started),
    /// Bytes of its standard output, or of its terminal.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// How it ended; nothing comes after it.
    Exit(ExitReport),
}

/// Cuts a stream of bytes into frames, wherever the pieces were cut on their way.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole frame: its kind and payload; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`ClientError::Garbled`] when the bytes are no frames.
    pub fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>, ClientError> {
        if self.buffer.len() < frames::HEADER_LEN {
            return Ok(None);
        }
        let (kind, len) = frames::parse_header(&self.buffer).map_err(|error| garbled(&format!("{error:?}")))?;
        if self.buffer.len() < frames::HEADER_LEN + len {
            self.buffer.reserve(frames::HEADER_LEN + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(frames::HEADER_LEN);
        Ok(Some((kind, self.buffer.split_to(len).freeze())))
    }
}

fn garbled(why: &str) -> ClientError {
    ClientError::Garbled { path: "exec stream".to_owned(), why: why.to_owned() }
}

fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(payload).map_err(|error| garbled(&error.to_string()))
}

/// Reads one frame from the server.
fn event(kind: u8, payload: Bytes) -> Result<Event, ClientError> {
    match kind {
        frames::STARTED => Ok(Event::Started(json(&payload)?)),
        frames::STDOUT => Ok(Event::Stdout(payload)),
        frames::STDERR => Ok(Event::Stderr(payload)),
        frames::EXIT => Ok(Event::Exit(json(&payload)?)),
        frames::FAULT => {
            let body: FaultBody = json(&payload)?;
            Err(ClientError::Refused { fault: body.fault, status: 0, request_id: body.request_id })
        }
        other => Err(garbled(&format!("a frame of kind {other} comes from a client only"))),
    }
}

/// The news of an exec, read from an HTTP answer's body.
pub struct Events {
    bytes: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    decoder: Decoder,
    url: String,
}

impl Events {
    pub(crate) fn new(url: &str, bytes: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static) -> Self {
        Self { bytes: bytes.boxed(), decoder: Decoder::default(), url: url.to_owned() }
    }

    /// The next piece of news. Not to be called after [`Event::Exit`] or an error.
    ///
    /// # Errors
    /// The server's refusal; [`ClientError::Cut`] when the stream ended too early.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some((kind, payload)) = self.decoder.next_frame()? {
                return event(kind, payload);
            }
            match self.bytes.next().await {
                Some(Ok(piece)) => self.decoder.push(&piece),
                Some(Err(source)) => {
                    return Err(ClientError::Unreachable {
                        url: self.url.clone(),
                        source: Box::new(source.without_url()),
                    });
                }
                None => return Err(ClientError::Cut),
            }
        }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The two-way stream of an exec.
pub struct ExecStream {
    read: ExecReader,
    write: ExecWriter,
}

/// What comes from an exec.
pub struct ExecReader {
    socket: futures::stream::SplitStream<Socket>,
    url: String,
    pending: VecDeque<Event>,
}

/// What goes to an exec.
pub struct ExecWriter {
    socket: futures::stream::SplitSink<Socket, Message>,
    url: String,
}

fn broken(url: &str, source: tungstenite::Error) -> ClientError {
    ClientError::Unreachable { url: url.to_owned(), source: Box::new(source) }
}

impl ExecStream {
    pub(crate) fn new(url: &str, socket: Socket) -> Self {
        let (write, read) = socket.split();
        Self {
            read: ExecReader { socket: read, url: url.to_owned(), pending: VecDeque::new() },
            write: ExecWriter { socket: write, url: url.to_owned() },
        }
    }

    pub(crate) fn join(read: ExecReader, write: ExecWriter) -> Self {
        Self { read, write }
    }

    /// Both halves, for two tasks.
    #[must_use]
    pub fn split(self) -> (ExecReader, ExecWriter) {
        (self.read, self.write)
    }
}

impl ExecReader {
    /// The next piece of news. Not to be called after [`Event::Exit`] or an error.
    ///
    /// # Errors
    /// The server's refusal; [`ClientError::Cut`] when the stream ended too early.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    let mut decoder = Decoder::default();
                    decoder.push(&bytes);
                    while let Some((kind, payload)) = decoder.next_frame()? {
                        self.pending.push_back(event(kind, payload)?);
                    }
                }
                Some(Ok(Message::Text(text))) => return Err(garbled(&format!("a text where a frame belongs: {text}"))),
                Some(Ok(Message::Close(_))) | None => return Err(ClientError::Cut),
                Some(Ok(_)) => {}
                Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) => {
                    return Err(ClientError::Cut);
                }
                Some(Err(source)) => return Err(broken(&self.url, source)),
            }
        }
    }
}

impl ExecWriter {
    async fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), ClientError> {
        let mut message = BytesMut::with_capacity(frames::HEADER_LEN + payload.len());
        message.extend_from_slice(&frames::header(kind, payload.len()));
        message.extend_from_slice(payload);
        self.socket.send(Message::Binary(message.freeze())).await.map_err(|source| broken(&self.url, source))
    }

    /// The first message: what to run.
    pub(crate) async fn begin(&mut self, request: &impl serde::Serialize) -> Result<(), ClientError> {
        let text = serde_json::to_string(request).map_err(|error| garbled(&error.to_string()))?;
        self.socket.send(Message::text(text)).await.map_err(|source| broken(&self.url, source))
    }

    /// Sends bytes to its standard input; returns when the connection has taken them.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(STDIN_PIECE) {
            self.frame(frames::STDIN, piece).await?;
        }
        Ok(())
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn stdin_end(&mut self) -> Result<(), ClientError> {
        self.frame(frames::STDIN_END, b"").await
    }

    /// Sets its terminal's size.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn resize(&mut self, size: Pty) -> Result<(), ClientError> {
        let text = serde_json::to_vec(&size).map_err(|error| garbled(&error.to_string()))?;
        self.frame(frames::RESIZE, &text).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn signal(&mut self, signal: i32, scope: SignalScope) -> Result<(), ClientError> {
        let body = crate::types::SignalRequest { signal, scope };
        let text = serde_json::to_vec(&body).map_err(|error| garbled(&error.to_string()))?;
        self.frame(frames::SIGNAL, &text).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&frames::header(kind, payload.len()), payload].concat()
    }

    #[test]
    fn frames_come_whole_however_they_were_cut() {
        let wire =
            [frame(frames::STDOUT, b"one"), frame(frames::STDERR, b""), frame(frames::STDOUT, b"\xff\0")].concat();
        for size in 1..wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(size) {
                decoder.push(piece);
                while let Some((kind, payload)) = decoder.next_frame().unwrap() {
                    seen.push((kind, payload.to_vec()));
                }
            }
            assert_eq!(seen, [(1, b"one".to_vec()), (2, Vec::new()), (1, b"\xff\0".to_vec())], "pieces of {size}");
        }
    }

    #[test]
    fn a_frame_of_the_clients_kind_is_refused_from_a_server() {
        assert!(matches!(event(frames::STDIN, Bytes::new()), Err(ClientError::Garbled { .. })));
        let mut decoder = Decoder::default();
        decoder.push(b"HTTP/1.1");
        assert!(decoder.next_frame().is_err());
    }

    #[test]
    fn a_fault_within_a_stream_keeps_its_code_and_request() {
        let body = br#"{"code":"place_lost","message":"gone","hint":"","request_id":"req_1"}"#;
        match event(frames::FAULT, Bytes::from_static(body)) {
            Err(ClientError::Refused { fault, request_id, .. }) => {
                assert_eq!(fault.code, rf_types::Code::PlaceLost);
                assert_eq!(request_id.as_deref(), Some("req_1"));
            }
            other => panic!("{other:?}"),
        }
    }
}
