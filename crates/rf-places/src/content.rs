//! The bytes of a file whose descriptor came from a sandbox: read and written in large pieces, in constant memory.
//!
//! What lies in the page cache is read at once (`RWF_NOWAIT`, preadv2(2)); what does not, and every write, goes to a
//! thread that may block, one piece at a time, so that a slow client holds no thread.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use rf_types::{Code, Fault};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::task::JoinHandle;

use crate::{
    piece::{PIECE_LEN, Piece},
    refusal,
};

/// How long one piece may take. Chosen: a disk under heavy load takes seconds, not more.
const PIECE_TIME: Duration = Duration::from_secs(30);
/// Bytes gathered for one write. Measured: less, and the hop to the blocking thread shows.
const GATHERED_MIN: usize = 512 * 1024;
/// Most buffers of one pwritev(2).
const SLICES_MAX: usize = 256;

fn failed(errno: Errno, path: &str) -> Fault {
    refusal::file(errno.raw_os_error().unsigned_abs(), path)
}

fn broke(path: &str) -> Fault {
    Fault::new(Code::Internal, format!("`{}`: the file's task ended early", refusal::shorten(path)), "")
}

struct Content {
    fd: Arc<OwnedFd>,
    offset: u64,
    left: u64,
    nowait: bool,
    path: String,
}

/// The file's bytes from `offset`, at most `length`, to the end that the file has when it is reached.
pub(crate) fn content(
    fd: OwnedFd,
    offset: u64,
    length: Option<u64>,
    path: &str,
) -> BoxStream<'static, Result<Bytes, Fault>> {
    let left = length.unwrap_or(u64::MAX);
    let content = Content { fd: Arc::new(fd), offset, left, nowait: true, path: path.to_owned() };
    Box::pin(futures::stream::unfold(Some(content), |content| async move {
        let mut content = content?;
        match content.next().await {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some((Ok(bytes), Some(content))),
            Err(fault) => Some((Err(fault), None)),
        }
    }))
}

impl Content {
    async fn next(&mut self) -> Result<Bytes, Fault> {
        // Beyond what an offset can say (lseek(2)) there is nothing.
        if self.left == 0 || i64::try_from(self.offset).is_err() {
            return Ok(Bytes::new());
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE_LEN);
        let bytes = match self.cached(want) {
            Some(bytes) => bytes.map_err(|errno| failed(errno, &self.path))?,
            None => self.blocking(want).await?,
        };
        self.offset += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(bytes)
    }

    /// Reads what needs no waiting; `None` where the kernel would have to, or does not know how to tell.
    fn cached(&mut self, want: usize) -> Option<Result<Bytes, Errno>> {
        if !self.nowait {
            return None;
        }
        let mut piece = Piece::take();
        let got = {
            let mut slices = [IoSliceMut::new(&mut piece.space()[..want])];
            rustix::io::preadv2(&*self.fd, &mut slices, self.offset, ReadWriteFlags::NOWAIT)
        };
        match got {
            Ok(len) => Some(Ok(piece.freeze(len))),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.nowait = false;
                None
            }
            Err(errno) => Some(Err(errno)),
        }
    }

    async fn blocking(&self, want: usize) -> Result<Bytes, Fault> {
        let fd = Arc::clone(&self.fd);
        let offset = self.offset;
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = Piece::take();
            let got = rustix::io::retry_on_intr(|| rustix::io::pread(&*fd, &mut piece.space()[..want], offset))?;
            Ok(piece.freeze(got))
        });
        match tokio::time::timeout(PIECE_TIME, reading).await {
            Ok(Ok(got)) => got.map_err(|errno| failed(errno, &self.path)),
            Ok(Err(_)) => Err(broke(&self.path)),
            Err(_) => Err(refusal::timed_out("a read")),
        }
    }
}

/// Writes a file from its start, or at its end where it was opened to append.
pub(crate) struct FileWriter {
    fd: Arc<OwnedFd>,
    offset: u64,
    gathered: Vec<Bytes>,
    gathered_len: usize,
    running: Option<JoinHandle<Result<(), Errno>>>,
    path: String,
}

impl FileWriter {
    pub(crate) fn new(fd: OwnedFd, path: &str) -> Self {
        Self {
            fd: Arc::new(fd),
            offset: 0,
            gathered: Vec::new(),
            gathered_len: 0,
            running: None,
            path: path.to_owned(),
        }
    }

    /// Takes bytes; waits while the write before is not done, so at most two writes' bytes are held.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.gathered_len += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_len < GATHERED_MIN && self.gathered.len() < SLICES_MAX {
            return Ok(());
        }
        self.flush().await
    }

    /// Waits until all is written.
    pub(crate) async fn finish(&mut self) -> Result<(), Fault> {
        self.flush().await?;
        self.settle().await
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.settle().await?;
        if self.gathered.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.gathered);
        let offset = self.offset;
        self.offset += std::mem::take(&mut self.gathered_len) as u64;
        let fd = Arc::clone(&self.fd);
        self.running = Some(tokio::task::spawn_blocking(move || write_all(&fd, &batch, offset)));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Fault> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let done = tokio::time::timeout(PIECE_TIME, running).await;
        self.running = None;
        match done {
            Ok(Ok(done)) => done.map_err(|errno| failed(errno, &self.path)),
            Ok(Err(_)) => Err(broke(&self.path)),
            Err(_) => Err(refusal::timed_out("a write")),
        }
    }
}

/// Writes every byte of `batch` from `offset` on.
fn write_all(fd: &OwnedFd, batch: &[Bytes], mut offset: u64) -> Result<(), Errno> {
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let put = rustix::io::retry_on_intr(|| rustix::io::pwritev(fd, rest, offset))?;
        if put == 0 {
            // A write of some bytes that takes none and says nothing (write(2)): better an error than a loop.
            return Err(Errno::IO);
        }
        offset += put as u64;
        IoSlice::advance_slices(&mut rest, put);
    }
    Ok(())
}

/// Reads a small file of our own whole; `None` if it is not there or larger than `len_max`.
pub(crate) fn read_small(path: &std::path::Path, len_max: u64) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() <= len_max => std::fs::read(path).map(Some),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_written_in_many_sizes_is_read_back_by_range() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let all: Vec<u8> = (0..2_500_000_u32).map(|n| (n % 253) as u8).collect();
        let mut writer = FileWriter::new(file.reopen().unwrap().into(), "f");
        for chunk in all.chunks(70_001) {
            writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        writer.finish().await.unwrap();
        for (offset, length, expected) in [
            (0, None, &all[..]),
            (17, Some(1_000_000), &all[17..1_000_017]),
            (2_499_999, Some(5), &all[2_499_999..]),
            (3_000_000, None, &[][..]),
            (u64::MAX, Some(1), &[][..]),
        ] {
            let mut stream = content(file.reopen().unwrap().into(), offset, length, "f");
            let mut got = Vec::new();
            while let Some(bytes) = stream.next().await {
                got.extend_from_slice(&bytes.unwrap());
            }
            assert!(got == expected, "{offset} {length:?}");
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_said_so() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut writer = FileWriter::new(full.into(), "f");
        writer.write(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(writer.finish().await.unwrap_err().code, Code::DiskFull);
    }
}
