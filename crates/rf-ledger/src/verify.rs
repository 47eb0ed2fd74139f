//! Reads a whole ledger in constant memory and names the first thing that is wrong with it.

use std::{fmt, io, path::Path};

use rf_types::{Code, Fault};
use serde::Serialize;

use crate::{
    LedgerKey,
    chain::{Broken, Header, Link, check, from_hex, genesis, hex, segments_in},
    head::{self, Found, Head},
    key::Sealer,
    lines::{Lines, Next},
    record::Record,
    retain::{self, Base},
};

/// A record's number and hash that somebody kept elsewhere; the ledger must still hold exactly it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Anchor {
    /// Its number, from 1.
    pub seq: u64,
    /// Its hash: 64 lower-case hex digits.
    pub hash: String,
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// A line's bytes are not what was written.
    Changed,
    /// Records are missing in the middle.
    Dropped,
    /// A record stands in another place than it was written in.
    Reordered,
    /// A record stands there that was not written there.
    Inserted,
    /// A record stands there twice.
    Duplicated,
    /// A segment's file is missing.
    SegmentMissing,
    /// The end is missing.
    Truncated,
    /// The head file is missing.
    HeadMissing,
    /// The head file is not what was written, or the key is not this ledger's.
    HeadChanged,
    /// The record of an anchor is not there or is another.
    AnchorMissed,
    /// The base, which says with which record the ledger begins, is not what was written, or the chain has no note of
    /// it.
    BaseChanged,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// What kind of thing.
    pub wrong: Wrong,
    /// The first record that is concerned, if it can be told.
    pub seq: Option<u64>,
    /// In which segment.
    pub segment: u32,
    /// In which line of it, from 1; the header is line 1.
    pub line: u64,
    /// All of that for people.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Report {
    /// The ledger's random name.
    pub chain: String,
    /// Segments read.
    pub segments: u32,
    /// Records that stand in an unbroken chain from the first one on.
    pub records: u64,
    /// The first record that was read: 1, unless older ones were let go.
    pub first_seq: u64,
    /// The last of them; 0 is none.
    pub last_seq: u64,
    /// The hash of the last of them: to be kept elsewhere as an [`Anchor`].
    pub last_hash: String,
    /// How far the head says the ledger is durable.
    pub head_seq: Option<u64>,
    /// Whether seals were checked: whether a key was given.
    pub sealed: bool,
    /// Bytes after the last whole record that are no record: what a crash, or a write at this moment, leaves behind the
    /// last record that anybody was told is durable. The next start cuts them and records it.
    pub torn_bytes: u64,
    /// The first thing that is wrong; `None`: the ledger is whole.
    pub problem: Option<Problem>,
}

/// Checks the ledger in `dir`: every byte of every record, its place in the chain, and that the chain reaches as far as
/// the head says. With the key, also every seal: only then are records found that somebody without the key rewrote with
/// all hashes made anew. May run beside the server. Reads each segment once, in constant memory, and a second time only
/// to say what is wrong.
///
/// # Errors
/// `ledger_unavailable` when the files cannot be read. What is wrong with the ledger itself is in the report.
pub fn verify(dir: &Path, key: Option<&LedgerKey>, anchor: Option<&Anchor>) -> Result<Report, Fault> {
    verify_with_archive(dir, None, key, anchor)
}

/// As [`verify`], from the first record that is in `archive` on, where [`crate::Ledger::retain`] moved what it let go.
///
/// # Errors
/// As for [`verify`].
pub fn verify_with_archive(
    dir: &Path,
    archive: Option<&Path>,
    key: Option<&LedgerKey>,
    anchor: Option<&Anchor>,
) -> Result<Report, Fault> {
    /// A ledger in use lets go of segments some times a day at the most. Chosen.
    const TURNS_MAX: u32 = 4;
    let sealer = key.map(LedgerKey::sealer);
    let read = || retain::read(dir, sealer.as_ref());
    let verified = (|| {
        for _ in 1..TURNS_MAX {
            let base = read()?;
            let report = Check::new(dir, archive, sealer.as_ref(), anchor, &base).verify();
            // Segments were let go meanwhile: what was missing may be where it should be.
            if report.as_ref().is_ok_and(|report| report.problem.is_none()) || read()? == base {
                return report;
            }
        }
        Check::new(dir, archive, sealer.as_ref(), anchor, &read()?).verify()
    })();
    verified.map_err(|error: io::Error| {
        Fault::new(
            Code::LedgerUnavailable,
            format!("cannot read the ledger in `{}`: {error}", dir.display()),
            match error.kind() {
                io::ErrorKind::NotFound => "name the directory that it is in",
                _ => "run it as the ledger's owner or as root",
            },
        )
    })
}

struct Check<'a> {
    dir: &'a Path,
    archive: Option<&'a Path>,
    sealer: Option<&'a Sealer>,
    anchor: Option<&'a Anchor>,
    found: &'a retain::Found,
    head: Option<Head>,
    /// The segment that was begun with.
    first: u32,
    next_seq: u64,
    last_hash: [u8; 32],
    report: Report,
}

/// Something wrong, or `None`.
type Found1 = io::Result<Option<Problem>>;

impl<'a> Check<'a> {
    fn new(
        dir: &'a Path,
        archive: Option<&'a Path>,
        sealer: Option<&'a Sealer>,
        anchor: Option<&'a Anchor>,
        found: &'a retain::Found,
    ) -> Self {
        let report = Report {
            chain: String::new(),
            segments: 0,
            records: 0,
            first_seq: 1,
            last_seq: 0,
            last_hash: String::new(),
            head_seq: None,
            sealed: sealer.is_some(),
            torn_bytes: 0,
            problem: None,
        };
        Self {
            dir,
            archive,
            sealer,
            anchor,
            found,
            head: None,
            first: found.segment(),
            next_seq: 1,
            last_hash: [0; 32],
            report,
        }
    }

    fn verify(mut self) -> io::Result<Report> {
        self.report.problem = self.run()?;
        self.report.last_seq = self.next_seq - 1;
        self.report.last_hash = hex(&self.last_hash);
        Ok(self.report)
    }

    fn base(&self) -> Option<&'a Base> {
        match self.found {
            retain::Found::Base(base) => Some(base),
            retain::Found::Absent | retain::Found::Damaged => None,
        }
    }

    /// Opens a segment of the ledger, or one that was let go of the archive.
    fn open(&self, segment: u32) -> io::Result<Lines> {
        match self.archive {
            Some(archive) if segment < self.found.segment() => Lines::open(archive, segment),
            Some(_) | None => Lines::open(self.dir, segment),
        }
    }

    /// The segments that are to be read, in order; sets where they begin.
    fn segments(&mut self) -> io::Result<Vec<u32>> {
        let kept = self.found.segment();
        let mut segments = match self.archive {
            Some(archive) => segments_in(archive)?.into_iter().filter(|&segment| segment < kept).collect(),
            None => Vec::new(),
        };
        match (segments.first(), self.base()) {
            // What is archived begins where its oldest segment does; its header is sealed.
            (Some(&first), _) => self.first = first,
            (None, Some(base)) => {
                self.next_seq = base.first_seq;
                // A base that cannot be read so was found damaged.
                self.last_hash = from_hex(base.prev.as_bytes()).unwrap_or_default();
                self.report.chain.clone_from(&base.chain);
            }
            (None, None) => {}
        }
        // Those below the base that are still here are about to be taken away.
        segments.extend(segments_in(self.dir)?.into_iter().filter(|&segment| segment >= kept));
        Ok(segments)
    }

    fn run(&mut self) -> Found1 {
        // The head before the records: a ledger in use only grows meanwhile.
        let head = head::read(self.dir, self.sealer)?;
        if *self.found == retain::Found::Damaged {
            let text = "the base was changed, or the key is not this ledger's";
            return Ok(Some(self.problem(Wrong::BaseChanged, None, 0, 0, text)));
        }
        let segments = self.segments()?;
        let head_problem = match head {
            Found::Head { head, damaged } => {
                self.report.head_seq = Some(head.seq);
                self.head = Some(head);
                damaged.then(|| self.problem(Wrong::HeadChanged, None, 0, 0, "one of the head's two slots was changed"))
            }
            Found::Damaged => Some(self.problem(
                Wrong::HeadChanged,
                None,
                0,
                0,
                "the head was changed, or the key is not this ledger's",
            )),
            Found::Absent => Some(self.problem(Wrong::HeadMissing, None, 0, 0, "the head is missing")),
        };
        for (expected, &segment) in (self.first..).zip(&segments) {
            if segment != expected {
                let text = format!("segment {expected} is missing, with the records from {} on", self.next_seq);
                return Ok(Some(self.problem(Wrong::SegmentMissing, Some(self.next_seq), expected, 0, text)));
            }
            let last = segments.last() == Some(&segment);
            if let Some(problem) = self.segment(segment, last)? {
                return Ok(Some(problem));
            }
        }
        Ok(head_problem.or_else(|| self.end(&segments)))
    }

    /// Whether the chain reaches as far as the head and the anchor say.
    fn end(&self, segments: &[u32]) -> Option<Problem> {
        let last = self.next_seq - 1;
        let segment = segments.last().copied().unwrap_or(0);
        if let Some(head) = self.head.as_ref().filter(|head| head.seq > last || segments.is_empty() && head.seq > 0) {
            // Whole segments, or a part of the last one.
            let (wrong, what) = if head.segment > segment || segments.is_empty() {
                (
                    Wrong::SegmentMissing,
                    format!("segment {} is missing, with", segment + u32::from(!segments.is_empty())),
                )
            } else {
                (Wrong::Truncated, "the end is cut off:".to_owned())
            };
            let text = format!("{what} the records {} to {} (at least)", last + 1, head.seq);
            return Some(self.problem(wrong, Some(last + 1), segment, 0, text));
        }
        if let Some(base) = self.base().filter(|base| base.note_seq > last || base.note_seq < base.first_seq) {
            let text = format!("the base names record {} as its note, which is not there", base.note_seq);
            return Some(self.problem(Wrong::BaseChanged, Some(base.note_seq), segment, 0, text));
        }
        if let Some(anchor) = self.anchor.filter(|anchor| anchor.seq < self.report.first_seq) {
            let (seq, first) = (anchor.seq, self.report.first_seq);
            let text = format!("record {seq} of the anchor was let go with all before {first}: name the archive");
            return Some(self.problem(Wrong::AnchorMissed, Some(seq), segment, 0, text));
        }
        if let Some(anchor) = self.anchor.filter(|anchor| anchor.seq > last) {
            let text = format!("record {} of the anchor is not there: the ledger ends at {last}", anchor.seq);
            return Some(self.problem(Wrong::AnchorMissed, Some(anchor.seq), segment, 0, text));
        }
        None
    }

    fn problem(&self, wrong: Wrong, seq: Option<u64>, segment: u32, line: u64, text: impl Into<String>) -> Problem {
        Problem { wrong, seq, segment, line, text: text.into() }
    }

    fn segment(&mut self, segment: u32, last: bool) -> Found1 {
        let mut lines = self.open(segment)?;
        let at = |lines: &Lines| format!("line {} of segment {segment}", lines.count().max(1));
        if lines.next()? != Next::Line || check(lines.line(), self.sealer).is_err() {
            return self.broken_header(&mut lines, segment, last);
        }
        let header: Option<Header> = serde_json::from_slice(lines.line()).ok();
        let Some((header, prev)) =
            header.and_then(|header| from_hex::<32>(header.prev.as_bytes()).map(|prev| (header, prev)))
        else {
            let text = format!("the header of segment {segment} is of another kind");
            return Ok(Some(self.problem(Wrong::Changed, Some(self.next_seq), segment, 1, text)));
        };
        if segment == 0 {
            self.report.chain.clone_from(&header.chain);
            self.last_hash = genesis(&header.chain);
        } else if self.report.chain.is_empty() {
            // The oldest one that is archived.
            self.report.chain.clone_from(&header.chain);
            (self.next_seq, self.last_hash) = (header.first_seq, prev);
        }
        if segment == self.first {
            self.report.first_seq = self.next_seq;
        }
        if let Some(base) = self.base().filter(|base| base.segment == segment)
            && (base.chain != header.chain || base.first_seq != header.first_seq || base.prev != header.prev)
        {
            let text = format!("segment {segment} does not begin as the base says");
            return Ok(Some(self.problem(Wrong::BaseChanged, Some(base.first_seq), segment, 1, text)));
        }
        let named = header.chain == self.report.chain
            && self.head.as_ref().is_none_or(|head| head.chain == header.chain)
            && header.segment == segment
            && header.ledger == 1;
        if !named {
            let text = format!("segment {segment} has the header of another segment or ledger");
            return Ok(Some(self.problem(Wrong::Reordered, Some(self.next_seq), segment, 1, text)));
        }
        if header.first_seq > self.next_seq {
            let text = format!(
                "records {} to {} are missing at the end of segment {}",
                self.next_seq,
                header.first_seq - 1,
                segment.saturating_sub(1)
            );
            return Ok(Some(self.problem(Wrong::Dropped, Some(self.next_seq), segment, 1, text)));
        }
        if header.first_seq < self.next_seq || prev != self.last_hash {
            let text = format!("{} does not go on where the segment before it ends", at(&lines));
            return Ok(Some(self.problem(Wrong::Inserted, Some(header.first_seq), segment, 1, text)));
        }
        self.report.segments += 1;
        loop {
            match lines.next()? {
                Next::End => return Ok(None),
                Next::Junk => return self.junk(&mut lines, segment, last),
                Next::Line => {}
            }
            if let Some(problem) = self.line(&mut lines, segment, last)? {
                return Ok(Some(problem));
            }
            if self.report.torn_bytes > 0 {
                return Ok(None);
            }
        }
    }

    /// Whether all that anybody was told is durable has been read.
    fn past_the_head(&self) -> bool {
        self.head.as_ref().is_some_and(|head| self.next_seq > head.seq)
    }

    fn broken_header(&mut self, lines: &mut Lines, segment: u32, last: bool) -> Found1 {
        // A segment that was just begun when the power failed.
        if last && self.past_the_head() && (segment > 0 || lines.count() == 0) {
            self.report.torn_bytes = self.torn(lines, segment, 0)?.max(1);
            return Ok(None);
        }
        let text = format!("line 1 of segment {segment}, its header, was changed");
        Ok(Some(self.problem(Wrong::Changed, Some(self.next_seq), segment, 1, text)))
    }

    /// Bytes from `from` to the last one that is not zero.
    fn torn(&self, lines: &mut Lines, segment: u32, from: u64) -> io::Result<u64> {
        lines.seek(from)?;
        let file = std::fs::File::open(self.dir.join(crate::chain::segment_name(segment)))?;
        lines_to_end(file, from)
    }

    /// Bytes that are no line.
    fn junk(&mut self, lines: &mut Lines, segment: u32, last: bool) -> Found1 {
        let from = lines.offset();
        if last && self.past_the_head() {
            self.report.torn_bytes = self.torn(lines, segment, from)?;
            return Ok(None);
        }
        let line = lines.count() + 1;
        let (wrong, what) = if last {
            (Wrong::Truncated, "is cut off or was changed")
        } else {
            (Wrong::Changed, "is no line that was written")
        };
        let text = format!("record {}, line {line} of segment {segment}, {what}", self.next_seq);
        Ok(Some(self.problem(wrong, Some(self.next_seq), segment, line, text)))
    }

    fn line(&mut self, lines: &mut Lines, segment: u32, last: bool) -> Found1 {
        let number = lines.count();
        let hash = match check(lines.line(), self.sealer) {
            Ok(hash) => hash,
            // Nobody was told of it: what a crash leaves. A line with a good hash and a bad seal is no crash's doing.
            Err(Broken::Shape | Broken::Hash) if last && self.past_the_head() => {
                let from = lines.start();
                self.report.torn_bytes = self.torn(lines, segment, from)?;
                return Ok(None);
            }
            Err(Broken::Seal) => {
                let text = format!(
                    "record {}, line {number} of segment {segment}, was not written by this ledger: its seal is not \
                     of this key",
                    self.next_seq
                );
                return Ok(Some(self.problem(Wrong::Inserted, Some(self.next_seq), segment, number, text)));
            }
            Err(Broken::Shape | Broken::Hash) => {
                let text = format!("record {}, line {number} of segment {segment}, was changed", self.next_seq);
                return Ok(Some(self.problem(Wrong::Changed, Some(self.next_seq), segment, number, text)));
            }
        };
        let Some(link) = Link::of(lines.line()) else {
            let text = format!("line {number} of segment {segment} is no record");
            return Ok(Some(self.problem(Wrong::Inserted, Some(self.next_seq), segment, number, text)));
        };
        if link.seq != self.next_seq || !link.follows(&self.last_hash) {
            return self.misplaced(&link, hash, segment, number).map(Some);
        }
        for (seq, wanted, wrong, who) in [
            self.head.as_ref().map(|head| (head.seq, &head.hash, Wrong::HeadChanged, "the head")),
            self.anchor.map(|anchor| (anchor.seq, &anchor.hash, Wrong::AnchorMissed, "the anchor")),
        ]
        .into_iter()
        .flatten()
        {
            if seq == link.seq && from_hex::<32>(wanted.as_bytes()) != Some(hash) {
                let text = format!("record {seq}, line {number} of segment {segment}, is not the one that {who} names");
                return Ok(Some(self.problem(wrong, Some(seq), segment, number, text)));
            }
        }
        if let Some(base) = self.base().filter(|base| base.note_seq == link.seq) {
            let note = serde_json::from_slice::<Record>(lines.line());
            if !note.is_ok_and(|record| base.is_noted_by(&record)) {
                let text = format!(
                    "record {}, line {number} of segment {segment}, is not the note that the base names",
                    link.seq
                );
                return Ok(Some(self.problem(Wrong::BaseChanged, Some(link.seq), segment, number, text)));
            }
        }
        self.next_seq += 1;
        self.last_hash = hash;
        self.report.records += 1;
        Ok(None)
    }

    /// Says what is wrong with a record that is whole and does not belong where it stands.
    fn misplaced(&self, link: &Link, hash: [u8; 32], segment: u32, line: u64) -> io::Result<Problem> {
        let expected = self.next_seq;
        let here = format!("line {line} of segment {segment}");
        if link.seq == expected {
            let text = format!("record {expected}, {here}, follows another record than the one before it");
            return Ok(self.problem(Wrong::Inserted, Some(expected), segment, line, text));
        }
        let mut same = 0;
        let mut later = false;
        // Where the others are: the whole ledger once more, looking at numbers and hashes only.
        'all: for number in segments_in(self.dir)? {
            let mut lines = self.open(number)?;
            while lines.next()? == Next::Line {
                let (Ok(found), Some(other)) = (check(lines.line(), self.sealer), Link::of(lines.line())) else {
                    continue;
                };
                same += u32::from(found == hash);
                later |= other.seq == expected && other.follows(&self.last_hash);
                if same > 1 {
                    break 'all;
                }
            }
        }
        Ok(if same > 1 {
            let text = format!("record {} stands a second time, in {here}", link.seq);
            self.problem(Wrong::Duplicated, Some(link.seq), segment, line, text)
        } else if link.seq < expected {
            let text = format!("record {} stands out of its order, in {here}", link.seq);
            self.problem(Wrong::Inserted, Some(link.seq), segment, line, text)
        } else if later {
            let text = format!("record {} stands in {here}, where record {expected} was written", link.seq);
            self.problem(Wrong::Reordered, Some(expected), segment, line, text)
        } else {
            let text = format!("records {expected} to {} are missing before {here}", link.seq - 1);
            self.problem(Wrong::Dropped, Some(expected), segment, line, text)
        })
    }
}

/// Bytes of `file` from `from` to its last one that is not zero.
fn lines_to_end(mut file: std::fs::File, from: u64) -> io::Result<u64> {
    use std::io::{Read as _, Seek as _};

    file.seek(io::SeekFrom::Start(from))?;
    let mut buffer = [0; 16 * 1024];
    let (mut at, mut last) = (0, 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(last);
        }
        if let Some(end) = buffer[..read].iter().rposition(|&b| b != 0) {
            last = at + end as u64 + 1;
        }
        at += read as u64;
    }
}
