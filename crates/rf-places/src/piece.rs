//! Large buffers that are used again, and byte streams made of them.
//!
//! A fresh allocation of this size is mapped and faulted in anew each time, which costs more than the copy into it.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use futures::stream::BoxStream;
use rf_types::{Code, Fault};
use tokio::io::ReadBuf;

use crate::place::ByteReader;

/// Bytes of one piece. Measured: larger pieces fall out of the second-level cache between read and send.
pub const PIECE_LEN: usize = 256 * 1024;
/// Unused buffers kept for the next stream; chosen.
const KEPT_MAX: usize = 64;

static KEPT: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer of [`PIECE_LEN`] bytes that goes back to the pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Piece {
    buffer: Box<[u8]>,
    len: usize,
}

impl Piece {
    /// Takes a buffer from the pool, or makes one.
    pub(crate) fn take() -> Self {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { buffer: kept.unwrap_or_else(|| vec![0; PIECE_LEN].into_boxed_slice()), len: 0 }
    }

    /// The whole buffer, to be filled.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The first `len` bytes as shared bytes; small ones are copied so that the buffer is free again at once.
    pub(crate) fn freeze(mut self, len: usize) -> Bytes {
        const COPIED_MAX: usize = 4096;
        self.len = len.min(self.buffer.len());
        if self.len <= COPIED_MAX { Bytes::copy_from_slice(self.as_ref()) } else { Bytes::from_owner(self) }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// A place's output as a stream of large pieces; ends with the first error.
#[must_use]
pub fn pieces(reader: ByteReader) -> BoxStream<'static, Result<Bytes, Fault>> {
    Box::pin(futures::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match next_piece(&mut reader).await {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some((Ok(bytes), Some(reader))),
            Err(error) => Some((Err(stream_broke(&error)), None)),
        }
    }))
}

/// Reads what is there, at most one piece; empty at the end.
pub(crate) async fn next_piece(reader: &mut ByteReader) -> io::Result<Bytes> {
    // The buffer is taken when bytes are there, so a stream that waits holds none.
    std::future::poll_fn(|context| {
        let mut piece = Piece::take();
        let mut space = ReadBuf::new(piece.space());
        std::task::ready!(reader.as_mut().poll_read(context, &mut space))?;
        let len = space.filled().len();
        std::task::Poll::Ready(Ok(piece.freeze(len)))
    })
    .await
}

/// A stream of a place that broke.
pub(crate) fn stream_broke(error: &io::Error) -> Fault {
    Fault::new(Code::PlaceLost, format!("the stream of the place broke: {}", error.kind()), "")
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stream_keeps_every_byte_and_its_order() {
        let all: Vec<u8> = (0..3 * PIECE_LEN + 17).map(|n| (n % 251) as u8).collect();
        let mut stream = pieces(Box::pin(io::Cursor::new(all.clone())));
        let mut got = Vec::new();
        while let Some(bytes) = stream.next().await {
            got.extend_from_slice(&bytes.unwrap());
        }
        assert_eq!(got, all);
    }

    #[test]
    fn a_piece_that_is_shared_is_not_used_again_before_it_is_dropped() {
        let mut first = Piece::take();
        first.space()[..8192].fill(7);
        let shared = first.freeze(8192);
        let mut second = Piece::take();
        second.space().fill(9);
        assert!(shared.iter().all(|byte| *byte == 7));
    }
}
