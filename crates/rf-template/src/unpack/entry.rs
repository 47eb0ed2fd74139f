//! Tar bytes into entries: ustar, GNU and pax (POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, D.2).
//!
//! Where programs that read archives disagree, this follows Go's `archive/tar`, with which images are made and checked.

use super::{BoundKind, Caps, UnpackError, clean, stream::Tar};

/// A block of an archive, bytes.
const BLOCK: usize = 512;
/// Most extended headers before one entry. Specified: each kind comes once; a few more do no harm.
const EXTENSIONS_MAX: usize = 8;
/// Most data segments of a sparse file. Chosen.
const SEGMENTS_MAX: usize = 65_536;

/// What an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    File {
        /// Size as it will be, bytes.
        size: u64,
        /// Where the body's bytes go when there are holes: offset and length, ascending.
        segments: Option<Vec<(u64, u64)>>,
    },
    Dir,
    Symlink,
    HardLink,
    Fifo,
    /// A character or block device.
    Device {
        /// Whether it is overlayfs's whiteout: character, 0:0.
        whiteout: bool,
    },
}

/// One entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// As it stands in the archive, without NUL.
    pub(super) path: Vec<u8>,
    /// Of a link.
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: u64,
    pub(super) group: u64,
    /// Seconds since 1970 and nanoseconds.
    pub(super) modified: (i64, u32),
    /// How many extended attributes it has.
    pub(super) xattrs: u64,
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: Option<u64>,
    group: Option<u64>,
    modified: Option<(i64, u32)>,
    xattrs: u64,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Option<Vec<(u64, u64)>>,
    /// GNU sparse format 1.0: the map stands before the data.
    sparse_in_body: bool,
}

/// The body of the current entry; what is not read of it is skipped.
pub(super) struct Body<'t, 'a> {
    tar: &'t mut Tar<'a>,
    left: &'t mut u64,
}

impl Body<'_, '_> {
    /// Reads some; 0 at the body's end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let part = buffer.len().min(usize::try_from(*self.left).unwrap_or(usize::MAX));
        if part == 0 {
            return Ok(0);
        }
        match self.tar.read_some(&mut buffer[..part])? {
            0 => Err(UnpackError::Truncated),
            count => {
                *self.left -= count as u64;
                Ok(count)
            }
        }
    }
}

impl std::io::Read for Body<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Self::read(self, buffer).map_err(std::io::Error::other)
    }
}

/// The entries of an archive, one after the other.
pub(super) struct Entries<'t, 'a> {
    tar: &'t mut Tar<'a>,
    caps: Caps,
    /// Of the current body.
    left: u64,
    /// After the current body, to the next block.
    padding: u64,
    headers: u64,
    marked: bool,
}

impl<'t, 'a> Entries<'t, 'a> {
    pub(super) fn new(tar: &'t mut Tar<'a>, caps: &Caps) -> Self {
        Self { tar, caps: *caps, left: 0, padding: 0, headers: 0, marked: false }
    }

    /// Whether the archive said that it ends.
    pub(super) fn marked(&self) -> bool {
        self.marked
    }

    /// The current entry's body.
    pub(super) fn body(&mut self) -> Body<'_, 'a> {
        Body { tar: self.tar, left: &mut self.left }
    }

    /// The next entry; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extended = Extended::default();
        for extensions in 0.. {
            let Some(block) = self.header()? else {
                return if extensions == 0 { Ok(None) } else { Err(UnpackError::Truncated) };
            };
            if extensions > EXTENSIONS_MAX {
                return Err(UnpackError::Malformed("too many extended headers before one entry"));
            }
            let size = number(&block[124..136])?;
            match block[156] {
                b'x' => self.pax(size, &mut extended)?,
                // Only `git archive` writes global headers, and only a comment into them; Go ignores them too.
                b'g' => {
                    self.extension(size)?;
                }
                b'L' => extended.path = Some(text(self.extension(size)?)),
                b'K' => extended.link = Some(text(self.extension(size)?)),
                kind => return self.entry(&block, kind, size, extended).map(Some),
            }
        }
        Ok(None)
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        self.tar.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        if self.marked || !self.tar.read_whole(&mut block)? {
            return Ok(None);
        }
        if block.iter().all(|&byte| byte == 0) {
            self.marked = true;
            return Ok(None);
        }
        // The sum of all bytes with the sum's own field as spaces; some old programs summed signed bytes.
        let sum = number(&block[148..156])?;
        let bytes = || block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
        let unsigned: u64 = bytes().map(|&byte| u64::from(byte)).sum();
        let signed: i64 = bytes().map(|&byte| i64::from(byte.cast_signed())).sum();
        if sum != unsigned && i64::try_from(sum) != Ok(signed) {
            return Err(UnpackError::Malformed("a header's checksum is wrong"));
        }
        self.headers += 1;
        // Each entry may have a few headers of its own before it.
        if self.headers > self.caps.entries_max.saturating_mul(4) {
            return Err(UnpackError::Bound { what: BoundKind::Entries, max: self.caps.entries_max });
        }
        Ok(Some(block))
    }

    /// Sets the current body.
    fn begin(&mut self, size: u64) -> Result<(), UnpackError> {
        if size > self.caps.tar_bytes_max {
            return Err(UnpackError::Bound { what: BoundKind::TarBytes, max: self.caps.tar_bytes_max });
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// The whole body of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let max = self.caps.header_bytes_max;
        if size > max.into() {
            return Err(UnpackError::Bound { what: BoundKind::HeaderBytes, max: max.into() });
        }
        self.begin(size)?;
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| UnpackError::Malformed("a header's size"))?];
        if size > 0 && !self.tar.read_whole(&mut bytes)? {
            return Err(UnpackError::Truncated);
        }
        self.left = 0;
        Ok(bytes)
    }

    /// Reads a pax header: records `LENGTH KEY=VALUE\n`.
    fn pax(&mut self, size: u64, extended: &mut Extended) -> Result<(), UnpackError> {
        let bytes = self.extension(size)?;
        let mut rest = bytes.as_slice();
        let mut old_map: Vec<u64> = Vec::new();
        while !rest.is_empty() {
            const WRONG: UnpackError = UnpackError::Malformed("an extended header's record");
            let space = rest.iter().take(20).position(|&byte| byte == b' ').ok_or(WRONG)?;
            let length = usize::try_from(decimal(&rest[..space])?).map_err(|_| WRONG)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(WRONG);
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(WRONG)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => extended.size = Some(decimal(value)?),
                b"uid" => extended.owner = Some(decimal(value)?),
                b"gid" => extended.group = Some(decimal(value)?),
                b"mtime" => extended.modified = Some(instant(value)?),
                b"GNU.sparse.name" => extended.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => extended.sparse_size = Some(decimal(value)?),
                b"GNU.sparse.major" => extended.sparse_in_body = decimal(value)? == 1,
                b"GNU.sparse.map" => {
                    let numbers: Result<Vec<u64>, _> = value.split(|&byte| byte == b',').map(decimal).collect();
                    extended.sparse_map = Some(pairs(&numbers?)?);
                }
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => old_map.push(decimal(value)?),
                _ if key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"LIBARCHIVE.xattr.") => {
                    // As the kernel compares names, but in any case of letters, since nothing honest has one.
                    if key.to_ascii_lowercase().windows(9).any(|window| window == b".overlay.") {
                        return Err(UnpackError::Refused {
                            name: clean(extended.path.as_deref().unwrap_or(key)),
                            why: "its attributes would steer overlayfs",
                        });
                    }
                    extended.xattrs += 1;
                }
                _ => {}
            }
        }
        if !old_map.is_empty() {
            extended.sparse_map = Some(pairs(&old_map)?);
        }
        Ok(())
    }

    fn entry(&mut self, block: &[u8; BLOCK], kind: u8, size: u64, extended: Extended) -> Result<Entry, UnpackError> {
        let ustar = &block[257..263] == b"ustar\0";
        let gnu = &block[257..265] == b"ustar  \0";
        let path = extended.sparse_name.or(extended.path).unwrap_or_else(|| {
            let (name, prefix) = (text(block[..100].to_vec()), text(block[345..500].to_vec()));
            if ustar && !prefix.is_empty() { [prefix, name].join(&b'/') } else { name }
        });
        let link = extended.link.unwrap_or_else(|| text(block[157..257].to_vec()));
        let size = extended.size.unwrap_or(size);
        let kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' => {
                self.begin(size)?;
                let segments = if extended.sparse_in_body { Some(self.map_in_body()?) } else { extended.sparse_map };
                match segments {
                    Some(segments) => self.sparse(extended.sparse_size.unwrap_or(size), segments)?,
                    None => Kind::File { size, segments: None },
                }
            }
            b'S' if gnu => self.old_sparse(block, size)?,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => {
                let zero = number(&block[329..337])? == 0 && number(&block[337..345])? == 0;
                Kind::Device { whiteout: kind == b'3' && zero }
            }
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            _ => return Err(UnpackError::Refused { name: clean(&path), why: "it is of an unknown kind" }),
        };
        for name in [&path, &link] {
            if name.contains(&0) {
                return Err(UnpackError::Refused { name: clean(&path), why: "a NUL is in its name" });
            }
            if name.len() > self.caps.path_bytes_max as usize {
                return Err(UnpackError::Bound { what: BoundKind::PathBytes, max: self.caps.path_bytes_max.into() });
            }
        }
        Ok(Entry {
            path,
            link,
            kind,
            mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
            owner: extended.owner.map_or_else(|| number(&block[108..116]), Ok)?,
            group: extended.group.map_or_else(|| number(&block[116..124]), Ok)?,
            modified: extended.modified.map_or_else(|| signed(&block[136..148]).map(|seconds| (seconds, 0)), Ok)?,
            xattrs: extended.xattrs,
        })
    }

    /// GNU's old format: four segments in the header, then blocks of twenty-one more before the data.
    fn old_sparse(&mut self, block: &[u8; BLOCK], size: u64) -> Result<Kind, UnpackError> {
        let mut segments = Vec::new();
        let mut take = |bytes: &[u8]| -> Result<(), UnpackError> {
            for pair in bytes.chunks_exact(24) {
                if pair[0] != 0 {
                    segments.push((number(&pair[..12])?, number(&pair[12..])?));
                }
            }
            if segments.len() > SEGMENTS_MAX {
                return Err(UnpackError::Bound { what: BoundKind::SparseSegments, max: SEGMENTS_MAX as u64 });
            }
            Ok(())
        };
        take(&block[386..482])?;
        let mut more = block[482] != 0;
        while more {
            let mut extra = [0; BLOCK];
            if !self.tar.read_whole(&mut extra)? {
                return Err(UnpackError::Truncated);
            }
            take(&extra[..504])?;
            more = extra[504] != 0;
        }
        let real = number(&block[483..495])?;
        self.begin(size)?;
        self.sparse(real, segments)
    }

    /// GNU's format 1.0: decimal numbers, each on a line, in whole blocks before the data.
    fn map_in_body(&mut self) -> Result<Vec<(u64, u64)>, UnpackError> {
        const WRONG: UnpackError = UnpackError::Malformed("a sparse file's map");
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            self.left = self.left.checked_sub(BLOCK as u64).ok_or(WRONG)?;
            if !self.tar.read_whole(&mut block)? {
                return Err(UnpackError::Truncated);
            }
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(WRONG);
                    }
                    continue;
                }
                numbers.push(decimal(&line)?);
                line.clear();
                if numbers[0] > SEGMENTS_MAX as u64 {
                    return Err(UnpackError::Bound { what: BoundKind::SparseSegments, max: SEGMENTS_MAX as u64 });
                }
                // The first says how many pairs follow; the rest of the last block is padding.
                if numbers.len() as u64 == 1 + 2 * numbers[0] {
                    return pairs(&numbers[1..]);
                }
            }
        }
    }

    /// Checks a map against the size and the body.
    fn sparse(&self, size: u64, segments: Vec<(u64, u64)>) -> Result<Kind, UnpackError> {
        let (mut end, mut data) = (0_u64, 0_u64);
        for &(offset, length) in &segments {
            let after = offset.checked_add(length);
            if offset < end || after.is_none_or(|after| after > size) {
                return Err(UnpackError::Malformed("a sparse file's map"));
            }
            end = offset + length;
            data += length;
        }
        if data != self.left {
            return Err(UnpackError::Malformed("a sparse file's map"));
        }
        Ok(Kind::File { size, segments: Some(segments) })
    }
}

/// A field up to its first NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, UnpackError> {
    if numbers.len() > 2 * SEGMENTS_MAX {
        return Err(UnpackError::Bound { what: BoundKind::SparseSegments, max: SEGMENTS_MAX as u64 });
    }
    let chunks = numbers.chunks_exact(2);
    if !chunks.remainder().is_empty() {
        return Err(UnpackError::Malformed("a sparse file's map"));
    }
    Ok(chunks.map(|pair| (pair[0], pair[1])).collect())
}

/// A field of octal digits, or of GNU's base 256 when the first bit is set. Never negative.
fn number(field: &[u8]) -> Result<u64, UnpackError> {
    u64::try_from(signed(field)?).map_err(|_| UnpackError::Malformed("a negative number"))
}

fn signed(field: &[u8]) -> Result<i64, UnpackError> {
    const WRONG: UnpackError = UnpackError::Malformed("a number in a header");
    if field[0] & 0x80 != 0 {
        // The first bit marks, the second is the sign: big-endian two's complement of the other bits.
        let mut value = i64::from(field[0] & 0x3f) - i64::from(field[0] & 0x40);
        for &byte in &field[1..] {
            value = value.checked_mul(256).and_then(|value| value.checked_add(byte.into())).ok_or(WRONG)?;
        }
        return Ok(value);
    }
    let digits = field.iter().copied().skip_while(|&byte| byte == b' ').take_while(|&byte| byte != b' ' && byte != 0);
    digits.into_iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).and_then(|value| value.checked_add((digit - b'0').into())).ok_or(WRONG),
        _ => Err(WRONG),
    })
}

/// Decimal digits and nothing else.
fn decimal(text: &[u8]) -> Result<u64, UnpackError> {
    const WRONG: UnpackError = UnpackError::Malformed("a number in an extended header");
    if text.is_empty() {
        return Err(WRONG);
    }
    text.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10).and_then(|value| value.checked_add((digit - b'0').into())).ok_or(WRONG),
        _ => Err(WRONG),
    })
}

/// Seconds since 1970, maybe negative, maybe with a fraction.
fn instant(text: &[u8]) -> Result<(i64, u32), UnpackError> {
    const WRONG: UnpackError = UnpackError::Malformed("a time in an extended header");
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next().unwrap_or_default())?).map_err(|_| WRONG)?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        // Digits past the ninth are less than a nanosecond.
        let mut digits = fraction.to_vec();
        digits.resize(9, b'0');
        nanoseconds = u32::try_from(decimal(&digits)?).map_err(|_| WRONG)?;
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}
