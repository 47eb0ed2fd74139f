//! Opens a ledger's files: makes them, or finds the last whole record after a crash.
//!
//! Power may fail between write(2) and fdatasync(2), and then any part of what was not yet durable may be there: half a
//! line, zeros in the middle, a new segment without the end of the old one. All of that lies after the record that the
//! head names, because a head is written only after the fdatasync(2) that covers its record. So what is broken after the
//! head's record is cut off, and the cut is recorded; what is broken before it is no crash's doing and is refused.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use rf_types::{Code, Fault};

use crate::{
    chain::{Header, check, from_hex, genesis, hex, segment_name, segments_in},
    head::{self, Found, Head, HeadFile},
    index::IndexEntry,
    key::Sealer,
    lines::{Lines, Next},
    record::Record,
    retain,
};

/// What was cut off at the end.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Cut {
    /// The last record that was kept.
    pub(crate) after_seq: u64,
    /// Bytes cut, zeros at the end not counted.
    pub(crate) bytes: u64,
    /// Whole segments among them.
    pub(crate) segments: u32,
    /// The digest of the bytes cut.
    pub(crate) digest: blake3::Hash,
}

/// A ledger's files, open, whole and durable.
pub(crate) struct Recovered {
    pub(crate) lock: File,
    pub(crate) chain: String,
    pub(crate) segment: u32,
    pub(crate) file: File,
    /// Bytes of the segment that are records (and its header).
    pub(crate) written: u64,
    /// The first record of each segment, the open one's included.
    pub(crate) first_seqs: Vec<u64>,
    pub(crate) next_seq: u64,
    pub(crate) last_hash: [u8; 32],
    pub(crate) index: Vec<IndexEntry>,
    pub(crate) head: HeadFile,
    /// One of the head's slots was damaged.
    pub(crate) head_damaged: bool,
    pub(crate) cut: Option<Cut>,
}

pub(crate) fn refuse(what: impl std::fmt::Display, hint: &str) -> Fault {
    Fault::new(Code::LedgerUnavailable, format!("the ledger cannot be opened: {what}"), hint)
}

const DAMAGED: &str =
    "run `ringfence audit verify`; to start anew, move the whole `ledger` directory away and keep it as evidence";

fn io_refusal(step: &'static str) -> impl Fn(io::Error) -> Fault {
    move |error| refuse(format_args!("cannot {step}: {error}"), "look at the disk and the directory's owner and mode")
}

/// Opens or makes the ledger in `dir`.
pub(crate) fn open(dir: &Path, sealer: &Sealer) -> Result<Recovered, Fault> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_refusal("make its directory"))?;
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(io_refusal("open its lock"))?;
    lock.try_lock().map_err(|error| {
        refuse(format_args!("another process holds its lock: {error}"), "stop the other server of this state directory")
    })?;
    let base = retain::read(dir, Some(sealer)).map_err(io_refusal("read its base"))?;
    if base == retain::Found::Damaged {
        return Err(refuse("its base is damaged, or its key is another", DAMAGED));
    }
    let mut segments = segments_in(dir).map_err(io_refusal("list its segments"))?;
    // Those below it were let go, and their files are taken away at the next turn.
    segments.retain(|&segment| segment >= base.segment());
    let found = head::read(dir, Some(sealer)).map_err(io_refusal("read its head"))?;
    match found {
        Found::Absent if segments.is_empty() && base == retain::Found::Absent => create(dir, lock, sealer),
        Found::Absent => Err(refuse("its head is gone", DAMAGED)),
        Found::Damaged => Err(refuse("its head is damaged, or its key is another", DAMAGED)),
        Found::Head { head, .. } if segments.is_empty() && head.seq > 0 => {
            Err(refuse("its segments are gone", DAMAGED))
        }
        Found::Head { head, damaged } => {
            if let Some(missing) =
                (base.segment()..).zip(&segments).find_map(|(n, &segment)| (n != segment).then_some(n))
            {
                return Err(refuse(format_args!("segment {missing} is missing"), DAMAGED));
            }
            let mut scan = Scan::new(dir, sealer, head);
            if let retain::Found::Base(base) = &base {
                scan.first_seqs = vec![base.first_seq; base.segment as usize];
            }
            scan.run(&segments)?;
            scan.finish(lock, damaged)
        }
    }
}

fn create(dir: &Path, lock: File, sealer: &Sealer) -> Result<Recovered, Fault> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(|error| refuse(error, ""))?;
    let chain = hex(&name);
    let last_hash = genesis(&chain);
    let head = Head { chain: chain.clone(), segment: 0, seq: 0, hash: hex(&last_hash) };
    // The head first: a head without segments is a ledger that was just being made, segments without a head are not.
    let head = HeadFile::create(dir, &head, sealer).map_err(io_refusal("make its head"))?;
    let (file, written) = new_segment(dir, &Header::new(&chain, 0, 1, &last_hash), sealer)
        .map_err(io_refusal("make its first segment"))?;
    file.sync_all().and_then(|()| File::open(dir)?.sync_all()).map_err(io_refusal("sync its first segment"))?;
    Ok(Recovered {
        lock,
        chain,
        segment: 0,
        file,
        written,
        first_seqs: vec![1],
        next_seq: 1,
        last_hash,
        index: Vec::new(),
        head,
        head_damaged: false,
        cut: None,
    })
}

/// Makes a segment's file with its header; returns it with its length. Nothing is left when that fails.
pub(crate) fn new_segment(dir: &Path, header: &Header, sealer: &Sealer) -> io::Result<(File, u64)> {
    use std::os::unix::fs::FileExt as _;

    let path = dir.join(segment_name(header.segment));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    let line = header.line(sealer);
    match file.write_all_at(&line, 0) {
        Ok(()) => Ok((file, line.len() as u64)),
        Err(error) => {
            std::fs::remove_file(&path)?;
            Err(error)
        }
    }
}

/// Reads on from the head's segment to the last whole record.
struct Scan<'a> {
    dir: &'a Path,
    sealer: &'a Sealer,
    head: Head,
    /// Whether the head's record was seen.
    reached: bool,
    first_seqs: Vec<u64>,
    segment: u32,
    written: u64,
    next_seq: u64,
    last_hash: [u8; 32],
    index: Vec<IndexEntry>,
    cut: Option<Cut>,
}

impl<'a> Scan<'a> {
    fn new(dir: &'a Path, sealer: &'a Sealer, head: Head) -> Self {
        let last_hash = genesis(&head.chain);
        Self {
            dir,
            sealer,
            head,
            reached: false,
            first_seqs: Vec::new(),
            segment: 0,
            written: 0,
            next_seq: 1,
            last_hash,
            index: Vec::new(),
            cut: None,
        }
    }

    fn run(&mut self, segments: &[u32]) -> Result<(), Fault> {
        for &segment in segments.iter().filter(|&&segment| segment < self.head.segment) {
            let header = self
                .header(segment)?
                .ok_or_else(|| refuse(format_args!("the header of segment {segment} is damaged"), DAMAGED))?;
            self.first_seqs.push(header.first_seq);
        }
        let rest: Vec<u32> = segments.iter().copied().filter(|&segment| segment >= self.head.segment).collect();
        for (at, &segment) in rest.iter().enumerate() {
            let first = at == 0;
            if !self.segment(segment, first)? {
                self.cut_from(segment, &rest[at + 1..])?;
                break;
            }
        }
        if self.reached || (self.head.seq == 0 && segments.is_empty()) {
            return Ok(());
        }
        Err(refuse(
            format_args!("it ends at record {}, but reached record {}", self.next_seq - 1, self.head.seq),
            DAMAGED,
        ))
    }

    fn header(&self, segment: u32) -> Result<Option<Header>, Fault> {
        let mut lines = Lines::open(self.dir, segment).map_err(io_refusal("open a segment"))?;
        self.header_of(&mut lines, segment)
    }

    fn header_of(&self, lines: &mut Lines, segment: u32) -> Result<Option<Header>, Fault> {
        if lines.next().map_err(io_refusal("read a segment"))? != Next::Line {
            return Ok(None);
        }
        let header =
            check(lines.line(), Some(self.sealer)).ok().and_then(|_| serde_json::from_slice(lines.line()).ok());
        Ok(header.filter(|header: &Header| {
            header.ledger == 1 && header.segment == segment && header.chain == self.head.chain
        }))
    }

    /// Takes up one segment; whether it was whole to its end.
    fn segment(&mut self, segment: u32, first: bool) -> Result<bool, Fault> {
        let mut lines = Lines::open(self.dir, segment).map_err(io_refusal("open a segment"))?;
        let header = self.header_of(&mut lines, segment)?;
        let prev = header.as_ref().and_then(|header| from_hex::<32>(header.prev.as_bytes()));
        let (Some(header), Some(prev)) = (header, prev) else {
            if first && self.head.seq == 0 {
                // A ledger that was just being made: its first segment has no whole header yet.
                self.reached = true;
            } else if first || !self.reached {
                return Err(refuse(format_args!("the header of segment {segment} is damaged"), DAMAGED));
            }
            return Ok(false);
        };
        if first {
            // The segments before it are `verify`'s to read: the head's segment may begin anywhere.
            self.next_seq = header.first_seq;
            self.last_hash = prev;
        } else if header.first_seq != self.next_seq || prev != self.last_hash {
            return Ok(false);
        }
        self.segment = segment;
        self.first_seqs.push(header.first_seq);
        self.index.clear();
        self.written = lines.offset();
        // A head may stand just before a segment that has no record yet.
        self.see(self.next_seq - 1, self.last_hash);
        loop {
            match lines.next().map_err(io_refusal("read a segment"))? {
                Next::End => return Ok(true),
                Next::Junk => return Ok(false),
                Next::Line => {}
            }
            let Ok(hash) = check(lines.line(), Some(self.sealer)) else { return Ok(false) };
            let Ok(record) = serde_json::from_slice::<Record>(lines.line()) else { return Ok(false) };
            if record.seq != self.next_seq || from_hex(record.prev.as_bytes()) != Some(self.last_hash) {
                return Ok(false);
            }
            self.index.push(IndexEntry::of(&record, lines.start(), lines.line().len()));
            self.next_seq += 1;
            self.last_hash = hash;
            self.written = lines.offset();
            self.see(record.seq, hash);
        }
    }

    fn see(&mut self, seq: u64, hash: [u8; 32]) {
        self.reached |= seq == self.head.seq && from_hex(self.head.hash.as_bytes()) == Some(hash);
    }

    /// Cuts what is broken in `segment`, and the segments after it.
    fn cut_from(&mut self, segment: u32, later: &[u32]) -> Result<(), Fault> {
        if !self.reached {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let mut gone = 0;
        // The broken segment itself is kept up to its last record, if it has a header that belongs to the chain.
        let kept = self.first_seqs.len() == segment as usize + 1;
        for (number, from) in std::iter::once((segment, if kept { self.written } else { 0 }))
            .chain(later.iter().map(|&segment| (segment, 0)))
        {
            let path = self.dir.join(segment_name(number));
            bytes += digest_from(&path, from, &mut hasher).map_err(io_refusal("read a segment"))?;
            if number == segment && kept {
                let file = OpenOptions::new().write(true).open(&path).map_err(io_refusal("open a segment"))?;
                file.set_len(from).and_then(|()| file.sync_all()).map_err(io_refusal("cut a segment"))?;
            } else {
                std::fs::remove_file(&path).map_err(io_refusal("remove a segment"))?;
                gone += 1;
            }
        }
        self.cut = Some(Cut { after_seq: self.next_seq - 1, bytes, segments: gone, digest: hasher.finalize() });
        Ok(())
    }

    fn finish(mut self, lock: File, head_damaged: bool) -> Result<Recovered, Fault> {
        let (file, written) = if self.first_seqs.is_empty() {
            self.first_seqs.push(1);
            let header = Header::new(&self.head.chain, 0, 1, &self.last_hash);
            new_segment(self.dir, &header, self.sealer).map_err(io_refusal("make its first segment"))?
        } else {
            let path = self.dir.join(segment_name(self.segment));
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_refusal("open a segment"))?;
            // Without the zeros of the last run, whose blocks may not be all written.
            file.set_len(self.written).map_err(io_refusal("cut a segment"))?;
            (file, self.written)
        };
        file.sync_all().and_then(|()| File::open(self.dir)?.sync_all()).map_err(io_refusal("sync a segment"))?;
        let mut head = HeadFile::open(self.dir).map_err(io_refusal("open its head"))?;
        let reached = Head {
            chain: self.head.chain.clone(),
            segment: self.segment,
            seq: self.next_seq - 1,
            hash: hex(&self.last_hash),
        };
        // Both slots, so that a damaged one is whole again.
        head.write(&reached, self.sealer)
            .and_then(|()| head.sync())
            .and_then(|()| head.write(&reached, self.sealer))
            .and_then(|()| head.sync())
            .map_err(io_refusal("write its head"))?;
        Ok(Recovered {
            lock,
            chain: self.head.chain,
            segment: self.segment,
            file,
            written,
            first_seqs: self.first_seqs,
            next_seq: self.next_seq,
            last_hash: self.last_hash,
            index: self.index,
            head,
            head_damaged,
            cut: self.cut,
        })
    }
}

/// Hashes a file from `from` up to its last byte that is not zero; returns how many bytes those are.
fn digest_from(path: &Path, from: u64, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut last = 0;
    for pass in 0..2 {
        file.seek(io::SeekFrom::Start(from))?;
        let mut buffer = [0; 16 * 1024];
        let mut at = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let bytes = &buffer[..read];
            if pass == 0 {
                if let Some(end) = bytes.iter().rposition(|&b| b != 0) {
                    last = at + end as u64 + 1;
                }
            } else {
                let wanted = usize::try_from(last.saturating_sub(at)).unwrap_or(read).min(read);
                hasher.update(&bytes[..wanted]);
            }
            at += read as u64;
        }
    }
    Ok(last)
}
