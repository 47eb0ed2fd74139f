//! Where each record of a segment lies and what it is about, so that one user's records are found among everybody's.
//!
//! A hint and no more: what it points at is read, parsed and compared again before it is shown, [`crate::verify`] never
//! looks at it, and it is made anew from the segment when it is missing or does not match its digest.
//!
//! ```text
//! 0     digest of bytes 32..4192        BLAKE3
//! 32    magic, first seq, count, least and greatest `at`     5 × 8 bytes, little endian
//! 72    digest of the entries
//! 104   4,096 bytes: a Bloom filter of the users (4 bits each)
//! 4200  entries, 48 bytes each
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rf_types::{PlaceRef, UserId, units::UnixMs};

use crate::{
    chain::Link,
    lines::{Lines, Next},
    record::{Kind, Record},
};

const MAGIC: u64 = u64::from_le_bytes(*b"rfidx\0\0\x01");
const FILTER_BYTES: usize = 4096;
const HEADER_BYTES: usize = 32 + 5 * 8 + 32 + FILTER_BYTES;
const ENTRY_BYTES: usize = 48;

/// Where one record lies and what it is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct IndexEntry {
    pub(crate) offset: u32,
    /// Bytes without the line feed.
    pub(crate) len: u32,
    pub(crate) at: UnixMs,
    /// Tags: 0 where there is none.
    pub(crate) user: u64,
    pub(crate) place: u64,
    pub(crate) request: u64,
    pub(crate) action: u32,
    pub(crate) kind: u32,
}

/// The tag of an id's bits: never 0.
pub(crate) fn tag(bits: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "random bits: any 64 of them do")]
    let low = bits as u64;
    low.max(1)
}

pub(crate) fn place_tag(place: PlaceRef) -> u64 {
    match place {
        PlaceRef::Sandbox(id) => tag(id.bits()),
        PlaceRef::Machine(id) => tag(id.bits()),
    }
}

pub(crate) fn action_tag(action: &str) -> u32 {
    // FNV-1a: short texts, no attacker (a clash costs one more read).
    action.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

pub(crate) const fn kind_tag(kind: Kind) -> u32 {
    match kind {
        Kind::Decision => 1,
        Kind::Intent => 2,
        Kind::Result => 3,
        Kind::Note => 4,
    }
}

impl IndexEntry {
    pub(crate) fn of(record: &Record, offset: u64, len: usize) -> Self {
        Self {
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            len: u32::try_from(len).unwrap_or(u32::MAX),
            at: record.at,
            user: record.user.map_or(0, |id| tag(id.bits())),
            place: record.place.map_or(0, place_tag),
            request: record.request.map_or(0, |id| tag(id.bits())),
            action: action_tag(&record.action),
            kind: kind_tag(record.kind),
        }
    }

    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let longs = [self.at, self.user, self.place, self.request];
        let shorts = [self.offset, self.len, self.action, self.kind];
        for (at, value) in longs.into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in shorts.into_iter().enumerate() {
            bytes[32 + at * 4..36 + at * 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let long = |at: usize| long_at(bytes, at * 8);
        let short = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[32 + at * 4..36 + at * 4]);
            u32::from_le_bytes(word)
        };
        Self {
            at: long(0),
            user: long(1),
            place: long(2),
            request: long(3),
            offset: short(0),
            len: short(1),
            action: short(2),
            kind: short(3),
        }
    }
}

fn long_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn filter_bits(user: u64) -> [usize; 4] {
    let hash = blake3::hash(&user.to_le_bytes());
    let word = |at: usize| usize::from(u16::from_le_bytes([hash.as_bytes()[at], hash.as_bytes()[at + 1]]));
    [0, 2, 4, 6].map(|at| word(at) % (FILTER_BYTES * 8))
}

/// What is known of a finished segment without reading its entries.
pub(crate) struct Summary {
    bytes: Box<[u8; HEADER_BYTES]>,
}

impl Summary {
    pub(crate) fn may_hold(&self, user: Option<UserId>, since: Option<UnixMs>, until: Option<UnixMs>) -> bool {
        let (at_min, at_max) = (long_at(&self.bytes[..], 56), long_at(&self.bytes[..], 64));
        let filter = &self.bytes[104..];
        since.is_none_or(|since| at_max >= since)
            && until.is_none_or(|until| at_min < until)
            && user.is_none_or(|user| {
                filter_bits(tag(user.bits())).into_iter().all(|bit| filter[bit / 8] & 1 << (bit % 8) != 0)
            })
    }

    fn count(&self) -> usize {
        usize::try_from(long_at(&self.bytes[..], 48)).unwrap_or(usize::MAX)
    }
}

fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:08}.idx"))
}

/// Writes the index of a finished segment. Not synced: a loss of power costs making it anew.
pub(crate) fn write(dir: &Path, segment: u32, first_seq: u64, entries: &[IndexEntry]) -> io::Result<()> {
    let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    let mut header = [0; HEADER_BYTES];
    for entry in entries {
        body.extend_from_slice(&entry.to_bytes());
        if entry.user != 0 {
            for bit in filter_bits(entry.user) {
                header[104 + bit / 8] |= 1 << (bit % 8);
            }
        }
    }
    let at_min = entries.iter().map(|entry| entry.at).min().unwrap_or(u64::MAX);
    let at_max = entries.iter().map(|entry| entry.at).max().unwrap_or(0);
    for (at, value) in [MAGIC, first_seq, entries.len() as u64, at_min, at_max].into_iter().enumerate() {
        header[32 + at * 8..40 + at * 8].copy_from_slice(&value.to_le_bytes());
    }
    header[72..104].copy_from_slice(blake3::hash(&body).as_bytes());
    let digest = *blake3::hash(&header[32..]).as_bytes();
    header[..32].copy_from_slice(&digest);
    let beside = dir.join(format!("{segment:08}.idx.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&header)?;
    file.write_all(&body)?;
    std::fs::rename(&beside, path(dir, segment))
}

/// The summary of a finished segment, if its index is there and whole.
fn summary(file: &mut File, first_seq: u64) -> Option<Summary> {
    let mut bytes = Box::new([0; HEADER_BYTES]);
    file.read_exact(&mut bytes[..]).ok()?;
    let whole = *blake3::hash(&bytes[32..]).as_bytes() == bytes[..32]
        && long_at(&bytes[..], 32) == MAGIC
        && long_at(&bytes[..], 40) == first_seq;
    whole.then_some(Summary { bytes })
}

/// The entries of the finished segment `segment` when it may hold what is wanted, else `None`.
pub(crate) fn entries_if(
    dir: &Path,
    segment: u32,
    first_seq: u64,
    wanted: impl Fn(&Summary) -> bool,
) -> io::Result<Option<Vec<IndexEntry>>> {
    if let Ok(mut file) = File::open(path(dir, segment))
        && let Some(summary) = summary(&mut file, first_seq)
    {
        if !wanted(&summary) {
            return Ok(None);
        }
        let mut body = Vec::new();
        // Bounded by what the summary says, whose digest held.
        let len = summary.count().saturating_mul(ENTRY_BYTES);
        file.take(len as u64).read_to_end(&mut body)?;
        if body.len() == len && *blake3::hash(&body).as_bytes() == summary.bytes[72..104] {
            return Ok(Some(body.chunks_exact(ENTRY_BYTES).map(IndexEntry::from_bytes).collect()));
        }
    }
    let entries = rebuild(dir, segment)?;
    // A read-only reader cannot keep it; it only costs time.
    let _ = write(dir, segment, first_seq, &entries);
    Ok(Some(entries))
}

fn rebuild(dir: &Path, segment: u32) -> io::Result<Vec<IndexEntry>> {
    let mut lines = Lines::open(dir, segment)?;
    let mut entries = Vec::new();
    while lines.next()? == Next::Line {
        if lines.count() == 1 {
            continue;
        }
        let entry = match serde_json::from_slice::<Record>(lines.line()) {
            Ok(record) => IndexEntry::of(&record, lines.start(), lines.line().len()),
            // One that cannot be read keeps its number, so that the others keep theirs.
            Err(_) if Link::of(lines.line()).is_some() => blank(lines.start(), lines.line().len()),
            Err(_) => break,
        };
        entries.push(entry);
    }
    Ok(entries)
}

fn blank(offset: u64, len: usize) -> IndexEntry {
    IndexEntry {
        offset: u32::try_from(offset).unwrap_or(u32::MAX),
        len: u32::try_from(len).unwrap_or(u32::MAX),
        at: 0,
        user: 0,
        place: 0,
        request: 0,
        action: 0,
        kind: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_written_and_a_damaged_index_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let entry = |n: u64| IndexEntry {
            offset: n as u32,
            len: 7,
            at: 100 + n,
            user: n,
            place: n * 3,
            request: n * 5,
            action: 9,
            kind: 2,
        };
        let entries: Vec<_> = (1..300).map(entry).collect();
        write(dir.path(), 4, 1000, &entries).unwrap();
        assert_eq!(entries_if(dir.path(), 4, 1000, |_| true).unwrap().unwrap(), entries);
        assert!(entries_if(dir.path(), 4, 1000, |_| false).unwrap().is_none());
        let mut file = File::open(path(dir.path(), 4)).unwrap();
        let found = summary(&mut file, 1000).unwrap();
        assert!(found.may_hold(Some(UserId::from_bits(5)), Some(399), Some(102)));
        assert!(!found.may_hold(Some(UserId::from_bits(5)), Some(400), None));
        assert!(!found.may_hold(Some(UserId::from_bits(5)), None, Some(101)));
        let strangers = (10_000..10_100).filter(|&n| found.may_hold(Some(UserId::from_bits(n)), None, None)).count();
        assert!(strangers < 5, "{strangers} of 100 strangers pass the filter");
        let mut bytes = std::fs::read(path(dir.path(), 4)).unwrap();
        bytes[HEADER_BYTES + 5] ^= 1;
        std::fs::write(path(dir.path(), 4), bytes).unwrap();
        // Not believed, and there is no segment to make it from.
        assert_eq!(entries_if(dir.path(), 4, 1000, |_| true).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
