//! Compressed bytes into tar bytes, counted, bounded and hashed.

use std::{
    cell::Cell,
    fmt,
    io::{self, BufReader, Read},
    rc::Rc,
};

use sha2::{Digest as _, Sha256};

use super::{Caps, RATIO_FLOOR_BYTES, UnpackError};

/// Largest window of a zstd frame, as a power of two: 128 MiB, what `zstd --ultra` makes without `--long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes read at once. Chosen.
const CHUNK: usize = 128 << 10;

/// Which bound was passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BoundKind {
    /// [`Caps::tar_bytes_max`].
    TarBytes,
    /// [`Caps::ratio_max`].
    Ratio,
    /// [`Caps::files_bytes_max`].
    FilesBytes,
    /// [`Caps::file_bytes_max`].
    FileBytes,
    /// [`Caps::entries_max`].
    Entries,
    /// [`Caps::depth_max`].
    Depth,
    /// [`Caps::path_bytes_max`].
    PathBytes,
    /// [`Caps::header_bytes_max`].
    HeaderBytes,
    /// Data segments of a sparse file.
    SparseSegments,
    /// Bytes of all directories' names together.
    DirectoryNames,
}

impl fmt::Display for BoundKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TarBytes => "bytes in its uncompressed archive",
            Self::Ratio => "times its compressed size when uncompressed",
            Self::FilesBytes => "bytes in its files",
            Self::FileBytes => "bytes in one file",
            Self::Entries => "entries",
            Self::Depth => "directories within each other",
            Self::PathBytes => "bytes in one path",
            Self::HeaderBytes => "bytes in one extended header",
            Self::SparseSegments => "segments in one sparse file",
            Self::DirectoryNames => "bytes in its directories' names",
        })
    }
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// The uncompressed archive.
pub(super) struct Tar<'a> {
    inner: Box<dyn Read + 'a>,
    hash: Sha256,
    compressed: Option<Rc<Cell<u64>>>,
    read: u64,
    tar_bytes_max: u64,
    ratio_max: u64,
}

impl<'a> Tar<'a> {
    /// Looks at the first bytes and puts the right decompressor before the rest.
    pub(super) fn open(input: impl Read + 'a, caps: &Caps) -> Result<Self, UnpackError> {
        let count = Rc::new(Cell::new(0));
        let mut input = Counted { inner: input, count: Rc::clone(&count) };
        let mut magic = [0; 6];
        let mut have = 0;
        while have < magic.len() {
            match input.read(&mut magic[have..]) {
                Ok(0) => break,
                Ok(more) => have += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(UnpackError::Read(e)),
            }
        }
        let start = io::Cursor::new(magic).take(have as u64);
        let whole = BufReader::with_capacity(CHUNK, start.chain(input));
        let (inner, compressed): (Box<dyn Read + 'a>, _) = match magic {
            // RFC 1952: several members in a row are one stream.
            [0x1f, 0x8b, ..] => (Box::new(flate2::bufread::MultiGzDecoder::new(whole)), Some(count)),
            // RFC 8878.
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::Decoder::with_buffer(whole).map_err(UnpackError::Read)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(UnpackError::Read)?;
                (Box::new(decoder), Some(count))
            }
            [b'B', b'Z', b'h', b'0'..=b'9', ..] => return Err(UnpackError::Compression("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(UnpackError::Compression("xz")),
            _ => (Box::new(whole), None),
        };
        Ok(Self {
            inner,
            hash: Sha256::new(),
            compressed,
            read: 0,
            tar_bytes_max: caps.tar_bytes_max,
            ratio_max: caps.ratio_max.into(),
        })
    }

    /// Reads some; 0 only at the end of the stream.
    pub(super) fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let count = loop {
            match self.inner.read(buffer) {
                Ok(count) => break count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(UnpackError::Truncated),
                Err(e) => return Err(UnpackError::Read(e)),
            }
        };
        self.hash.update(&buffer[..count]);
        self.read += count as u64;
        if self.read > self.tar_bytes_max {
            return Err(UnpackError::Bound { what: BoundKind::TarBytes, max: self.tar_bytes_max });
        }
        if let Some(compressed) = &self.compressed
            && self.read > RATIO_FLOOR_BYTES
            && self.read / self.ratio_max.max(1) > compressed.get()
        {
            return Err(UnpackError::Bound { what: BoundKind::Ratio, max: self.ratio_max });
        }
        Ok(count)
    }

    /// Fills the buffer; `false` when the stream ended right before it.
    pub(super) fn read_whole(&mut self, buffer: &mut [u8]) -> Result<bool, UnpackError> {
        let mut have = 0;
        while have < buffer.len() {
            match self.read_some(&mut buffer[have..])? {
                0 if have == 0 => return Ok(false),
                0 => return Err(UnpackError::Truncated),
                more => have += more,
            }
        }
        Ok(true)
    }

    /// Reads and forgets.
    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<(), UnpackError> {
        let mut buffer = [0; 4096];
        while bytes > 0 {
            let part = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            match self.read_some(&mut buffer[..part])? {
                0 => return Err(UnpackError::Truncated),
                count => bytes -= count as u64,
            }
        }
        Ok(())
    }

    /// Reads the rest, which counts for the digest, and names the whole.
    pub(super) fn finish(mut self) -> Result<String, UnpackError> {
        let mut buffer = vec![0; CHUNK];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(format!("sha256:{}", crate::hex(&self.hash.finalize())))
    }
}
