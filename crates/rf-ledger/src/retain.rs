//! Lets go of old segments and keeps the chain checkable from the oldest one that is kept.
//!
//! ```text
//! segment 0 … 4   read and checked, every record older than asked
//! a note          in the chain: what is let go, and the hash that the first kept record follows; durable
//! base            the same, sealed, beside the head; from now on the ledger begins at segment 5
//! segments 0 … 4  moved to the archive as they are, or removed
//! ```
//!
//! In this order, so that a crash at any moment leaves a whole ledger: a note without a base is a note, and segments
//! below the base are moved at the next turn. What is let go is exactly what the note says, since a segment is let go
//! only after every seal in it was checked. Without the key nobody can make a base or a note that holds, so a beginning
//! that was cut off by somebody else shows.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use rf_types::{Code, Fault, units::UnixMs};
use serde::{Deserialize, Serialize};

use crate::{
    Ledger,
    chain::{Header, check, from_hex, genesis, hex, segment_name, segments_in},
    key::Sealer,
    lines::{Lines, Next},
    record::{Entry, Event, Kind, Record},
};

const NAME: &str = "base";
/// Longest base file, bytes; it has some 300.
const BASE_BYTES_MAX: u64 = 4096;
/// What the note is called.
const ACTION: &str = "ledger_retain";

/// Where a ledger begins from which segments were let go.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Base {
    /// The ledger's random name.
    pub(crate) chain: String,
    /// The first segment that is kept.
    pub(crate) segment: u32,
    /// Its first record.
    pub(crate) first_seq: u64,
    /// The hash of the record before that one, the last that was let go.
    pub(crate) prev: String,
    /// The note in the chain that says the same.
    pub(crate) note_seq: u64,
}

#[derive(Deserialize, Serialize)]
struct Sealed {
    #[serde(flatten)]
    base: Base,
    seal: String,
}

/// What the base file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    /// There is none: the ledger begins with its first segment.
    Absent,
    /// A base whose seal holds, or without a key, that can be read.
    Base(Base),
    /// It is there and does not hold.
    Damaged,
}

impl Found {
    /// The first segment that belongs to the ledger.
    pub(crate) fn segment(&self) -> u32 {
        match self {
            Self::Base(base) => base.segment,
            Self::Absent | Self::Damaged => 0,
        }
    }
}

fn text_of(base: &Base) -> Vec<u8> {
    serde_json::to_vec(base).expect("a base is plain data")
}

/// Reads the base of the ledger in `dir`.
pub(crate) fn read(dir: &Path, sealer: Option<&Sealer>) -> io::Result<Found> {
    let file = match File::open(dir.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(BASE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(parse(&bytes, sealer).map_or(Found::Damaged, Found::Base))
}

fn parse(bytes: &[u8], sealer: Option<&Sealer>) -> Option<Base> {
    let sealed: Sealed = serde_json::from_slice(bytes.strip_suffix(b"\n")?).ok()?;
    let seal = from_hex::<32>(sealed.seal.as_bytes())?;
    from_hex::<32>(sealed.base.prev.as_bytes())?;
    // Written anew and compared, so that no byte of the file is left unchecked.
    if serde_json::to_vec(&sealed).ok()? != bytes[..bytes.len() - 1] {
        return None;
    }
    // `blake3::Hash` compares in constant time.
    let holds = sealer.is_none_or(|sealer| sealer.base(&text_of(&sealed.base)) == seal);
    holds.then_some(sealed.base)
}

fn write(dir: &Path, base: &Base, sealer: &Sealer) -> io::Result<()> {
    let sealed = Sealed { base: base.clone(), seal: hex(sealer.base(&text_of(base)).as_bytes()) };
    let mut bytes = serde_json::to_vec(&sealed).expect("a base is plain data");
    bytes.push(b'\n');
    let beside = dir.join("base.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

impl Base {
    /// Whether `record`, which stands at `note_seq`, is the note of this base.
    pub(crate) fn is_noted_by(&self, record: &Record) -> bool {
        record.kind == Kind::Note
            && record.action == ACTION
            && record.details.get("first_segment").and_then(serde_json::Value::as_u64) == Some(self.segment.into())
            && record.details.get("first_seq").and_then(serde_json::Value::as_u64) == Some(self.first_seq)
            && record.details.get("prev").and_then(serde_json::Value::as_str) == Some(self.prev.as_str())
    }
}

/// What was let go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retained {
    /// Segments let go.
    pub segments: u32,
    /// Records let go.
    pub records: u64,
    /// The first record that is kept.
    pub first_seq: u64,
}

/// One segment that was read to its end.
struct Whole {
    next_seq: u64,
    last_hash: [u8; 32],
    /// The latest time in it.
    at_max: UnixMs,
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> Fault {
    move |error| {
        Fault::new(
            Code::LedgerUnavailable,
            format!("old records cannot be let go: cannot {step}: {error}"),
            "look at the ledger's disk and the archive's directory; nothing is lost, and it is tried again",
        )
    }
}

impl Ledger {
    /// Lets go of the oldest segments all of whose records are older than `before`: moves them to `archive`, or without
    /// one removes them. The open segment is always kept. `now` is the time of the note. One caller at a time.
    ///
    /// # Errors
    /// `ledger_unavailable` when something cannot be read or written, or when a segment is not whole: then it is kept,
    /// as evidence.
    pub fn retain(&self, before: UnixMs, archive: Option<&Path>, now: UnixMs) -> Result<Option<Retained>, Fault> {
        let shared = self.shared();
        let (dir, sealer) = (&shared.dir, &shared.sealer);
        if let Some(archive) = archive {
            DirBuilder::new().recursive(true).mode(0o700).create(archive).map_err(failed("make the archive"))?;
        }
        let found = read(dir, Some(sealer)).map_err(failed("read its base"))?;
        // What a crash left below it.
        self.take_away(found.segment(), archive)?;
        let (mut first, mut next_seq, mut last_hash) = match &found {
            Found::Absent => (0, 1, genesis(&shared.chain)),
            Found::Base(base) => {
                let prev = from_hex::<32>(base.prev.as_bytes()).ok_or_else(|| not_whole(base.segment))?;
                (base.segment, base.first_seq, prev)
            }
            Found::Damaged => return Err(not_whole(0)),
        };
        let (begin, begin_seq) = (first, next_seq);
        // Those that are finished and durable: only the thread ends a segment, and it syncs it before the next.
        let end = {
            let state = shared.lock();
            let durable = state.durable;
            let finished = |number: &u32| {
                let after = state.first_seqs.get(*number as usize + 1);
                *number < state.current.number && after.is_some_and(|after| after - 1 <= durable)
            };
            (first..).take_while(finished).last().map_or(first, |last| last + 1)
        };
        while first < end {
            let whole = self.whole(first, next_seq, last_hash)?;
            if whole.at_max >= before {
                break;
            }
            Whole { next_seq, last_hash, .. } = whole;
            first += 1;
        }
        if first == begin {
            return Ok(None);
        }
        let retained = Retained { segments: first - begin, records: next_seq - begin_seq, first_seq: next_seq };
        let note = Entry::new(now, ACTION, Event::Note)
            .detail("first_segment", first)
            .detail("first_seq", next_seq)
            .detail("prev", hex(&last_hash))
            .detail("records", retained.records)
            .detail("archived", archive.is_some());
        let ticket = self.append(&note)?;
        let note_seq = ticket.seq();
        ticket.wait()?;
        let base =
            Base { chain: shared.chain.clone(), segment: first, first_seq: next_seq, prev: hex(&last_hash), note_seq };
        write(dir, &base, sealer).map_err(failed("write its base"))?;
        // Who reads from now on finds nothing of the segments below.
        let mut state = shared.lock();
        state.first_seqs.iter_mut().take(first as usize).for_each(|seq| *seq = next_seq);
        drop(state);
        self.take_away(first, archive)?;
        Ok(Some(retained))
    }

    /// Reads one finished segment to its end and checks every byte of it.
    fn whole(&self, segment: u32, first_seq: u64, prev: [u8; 32]) -> Result<Whole, Fault> {
        let shared = self.shared();
        let read = failed("read a segment");
        let mut lines = Lines::open(&shared.dir, segment).map_err(&read)?;
        let header = match lines.next().map_err(&read)? {
            Next::Line if check(lines.line(), Some(&shared.sealer)).is_ok() => {
                serde_json::from_slice::<Header>(lines.line()).ok()
            }
            Next::Line | Next::End | Next::Junk => None,
        };
        let whole = |header: &Header| {
            *header == Header::new(&shared.chain, segment, first_seq, &prev) && header.first_seq == first_seq
        };
        if !header.is_some_and(|header| whole(&header)) {
            return Err(not_whole(segment));
        }
        let mut whole = Whole { next_seq: first_seq, last_hash: prev, at_max: 0 };
        loop {
            match lines.next().map_err(&read)? {
                Next::End => return Ok(whole),
                Next::Junk => return Err(not_whole(segment)),
                Next::Line => {}
            }
            let hash = check(lines.line(), Some(&shared.sealer)).map_err(|_| not_whole(segment))?;
            let record: Record = serde_json::from_slice(lines.line()).map_err(|_| not_whole(segment))?;
            if record.seq != whole.next_seq || from_hex(record.prev.as_bytes()) != Some(whole.last_hash) {
                return Err(not_whole(segment));
            }
            whole.next_seq += 1;
            whole.last_hash = hash;
            whole.at_max = whole.at_max.max(record.at);
        }
    }

    /// Moves every segment below `first` to the archive, or removes it.
    fn take_away(&self, first: u32, archive: Option<&Path>) -> Result<(), Fault> {
        let dir = &self.shared().dir;
        let mut any = false;
        for segment in segments_in(dir).map_err(failed("list its segments"))?.into_iter().filter(|&n| n < first) {
            let (name, from) = (segment_name(segment), dir.join(segment_name(segment)));
            if let Some(archive) = archive {
                move_file(&from, archive, &name).map_err(failed("move a segment to the archive"))?;
            } else {
                std::fs::remove_file(&from).map_err(failed("remove a segment"))?;
            }
            // Its index is made from it.
            let _ = std::fs::remove_file(dir.join(format!("{segment:08}.idx")));
            any = true;
        }
        if any {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync its directory"))?;
        }
        Ok(())
    }
}

/// Moves `from` into `dir` under `name`; it is durable there before it is gone here.
fn move_file(from: &Path, dir: &Path, name: &str) -> io::Result<()> {
    let to = dir.join(name);
    match std::fs::rename(from, &to) {
        Ok(()) => File::open(dir)?.sync_all(),
        // Another file system.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let beside = dir.join(format!("{name}.new"));
            let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            io::copy(&mut File::open(from)?, &mut copy)?;
            copy.sync_all()?;
            std::fs::rename(&beside, &to)?;
            File::open(dir)?.sync_all()?;
            std::fs::remove_file(from)
        }
        Err(error) => Err(error),
    }
}

fn not_whole(segment: u32) -> Fault {
    Fault::new(
        Code::LedgerUnavailable,
        format!("old records are not let go: segment {segment} of the ledger is not what was written"),
        "run `ringfence audit verify`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LedgerKey;

    #[test]
    fn every_byte_of_a_base_counts() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = LedgerKey::from_bytes([3; 32]).sealer();
        assert_eq!(read(dir.path(), Some(&sealer)).unwrap(), Found::Absent);
        let base = Base { chain: "c".repeat(32), segment: 4, first_seq: 900, prev: hex(&[7; 32]), note_seq: 1200 };
        write(dir.path(), &base, &sealer).unwrap();
        assert_eq!(read(dir.path(), Some(&sealer)).unwrap(), Found::Base(base.clone()));
        assert_eq!(read(dir.path(), None).unwrap(), Found::Base(base));
        let other = LedgerKey::from_bytes([4; 32]).sealer();
        assert_eq!(read(dir.path(), Some(&other)).unwrap(), Found::Damaged);
        let bytes = std::fs::read(dir.path().join(NAME)).unwrap();
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            std::fs::write(dir.path().join(NAME), &wrong).unwrap();
            assert_eq!(read(dir.path(), Some(&sealer)).unwrap(), Found::Damaged, "byte {at}");
        }
    }
}
