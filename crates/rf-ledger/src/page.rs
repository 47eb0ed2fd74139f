//! Reads a page of records, the newest or the oldest first, without reading the whole ledger.

use std::{fs::File, os::unix::fs::FileExt as _};

use rf_types::{Code, Fault, PlaceRef, RequestId, UserId, units::UnixMs};

use crate::{
    Ledger,
    chain::segment_name,
    index::{self, IndexEntry},
    record::{Kind, Record},
    writer::Shared,
};

/// Most records of a page.
const LIMIT_MAX: usize = 1000;
/// Most index entries that one page looks at; then the page ends early and its cursor leads on.
const LOOKED_AT_MAX: usize = 2_000_000;
/// Entries of the open segment that are copied at a time while appends wait: some 0.2 MiB.
const CHUNK: usize = 4096;

/// Which records are wanted; every field that is set must match.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// This action.
    pub action: Option<String>,
    /// This kind.
    pub kind: Option<Kind>,
    /// In this place.
    pub place: Option<PlaceRef>,
    /// Of this request.
    pub request: Option<RequestId>,
    /// At this time or later.
    pub since: Option<UnixMs>,
    /// Before this time.
    pub until: Option<UnixMs>,
}

/// In which order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// The newest first.
    NewestFirst,
    /// The oldest first.
    OldestFirst,
}

/// One question to [`Ledger::page`].
#[derive(Clone, Debug)]
pub struct Query {
    /// Only this user's records. `None` is everybody's and for the operator alone.
    pub user: Option<UserId>,
    /// Which of them.
    pub filter: Filter,
    /// In which order.
    pub order: Order,
    /// Only records beyond this one in that order: `next` of the page before, or any record's number.
    pub after: Option<u64>,
    /// Most records, 1 to 1,000.
    pub limit: usize,
}

/// Some records, and where to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The records, in the order asked for.
    pub records: Vec<Record>,
    /// `after` of the next page; `None` when there is none. A page may hold fewer records than its limit, even none, and
    /// still have a next one.
    pub next: Option<u64>,
}

/// What an index entry must match, before the record is read and compared in full.
struct Wanted<'a> {
    query: &'a Query,
    user: Option<u64>,
    place: Option<u64>,
    request: Option<u64>,
    action: Option<u32>,
    kind: Option<u32>,
}

impl<'a> Wanted<'a> {
    fn new(query: &'a Query) -> Self {
        let filter = &query.filter;
        Self {
            query,
            user: query.user.map(|id| index::tag(id.bits())),
            place: filter.place.map(index::place_tag),
            request: filter.request.map(|id| index::tag(id.bits())),
            action: filter.action.as_deref().map(index::action_tag),
            kind: filter.kind.map(index::kind_tag),
        }
    }

    fn may_be(&self, entry: &IndexEntry) -> bool {
        let filter = &self.query.filter;
        self.user.is_none_or(|tag| tag == entry.user)
            && self.place.is_none_or(|tag| tag == entry.place)
            && self.request.is_none_or(|tag| tag == entry.request)
            && self.action.is_none_or(|tag| tag == entry.action)
            && self.kind.is_none_or(|tag| tag == entry.kind)
            && filter.since.is_none_or(|since| entry.at >= since)
            && filter.until.is_none_or(|until| entry.at < until)
    }

    /// The full comparison. The wall between users stands here and not on the index.
    fn is(&self, record: &Record) -> bool {
        let Query { user, filter, .. } = self.query;
        user.is_none_or(|user| record.user == Some(user))
            && filter.action.as_ref().is_none_or(|action| *action == record.action)
            && filter.kind.is_none_or(|kind| record.kind == kind)
            && filter.place.is_none_or(|place| record.place == Some(place))
            && filter.request.is_none_or(|request| record.request == Some(request))
            && filter.since.is_none_or(|since| record.at >= since)
            && filter.until.is_none_or(|until| record.at < until)
    }
}

impl Ledger {
    /// Reads one page. Blocks on the disk: some milliseconds at most for each segment that holds what is wanted.
    ///
    /// # Errors
    /// `invalid_request` when the limit is out of range; `ledger_unavailable` when the files cannot be read.
    pub fn page(&self, query: &Query) -> Result<Page, Fault> {
        if !(1..=LIMIT_MAX).contains(&query.limit) {
            return Err(Fault::invalid(format!("`limit` is {}, but must be 1 to {LIMIT_MAX}", query.limit)));
        }
        Search { shared: self.shared(), wanted: Wanted::new(query), found: Vec::new(), looked_at: 0 }.run()
    }
}

struct Search<'a> {
    shared: &'a Shared,
    wanted: Wanted<'a>,
    found: Vec<Record>,
    looked_at: usize,
}

/// How a stretch of entries ended.
enum Stretch {
    /// All were looked at.
    Done,
    /// The page is full, or has looked at enough; the next one goes on after this record.
    Full(u64),
}

impl Search<'_> {
    fn run(mut self) -> Result<Page, Fault> {
        let newest = self.wanted.query.order == Order::NewestFirst;
        let (first_seqs, end) = {
            let state = self.shared.lock();
            (state.first_seqs.clone(), state.next_seq)
        };
        // The wanted numbers: `from..to`.
        let (from, to) = match (self.wanted.query.after, newest) {
            (None, _) => (1, end),
            (Some(after), true) => (1, after.min(end)),
            (Some(after), false) => (after.saturating_add(1), end),
        };
        let mut order: Vec<usize> = (0..first_seqs.len()).collect();
        if newest {
            order.reverse();
        }
        for segment in order {
            let first = first_seqs[segment];
            let last = first_seqs.get(segment + 1).copied().unwrap_or(end);
            let (low, high) = (first.max(from), last.min(to));
            if low >= high {
                continue;
            }
            let number = u32::try_from(segment).unwrap_or(u32::MAX);
            if let Stretch::Full(next) = self.segment(number, first, low, high)? {
                return Ok(Page { records: self.found, next: Some(next) });
            }
        }
        Ok(Page { records: self.found, next: None })
    }

    /// Looks at the records `low..high` of one segment, whose first one is `first`.
    fn segment(&mut self, number: u32, first: u64, low: u64, high: u64) -> Result<Stretch, Fault> {
        let newest = self.wanted.query.order == Order::NewestFirst;
        let (mut low, mut high) = (low, high);
        while low < high {
            let (chunk_low, chunk_high) = if newest {
                (low.max(high.saturating_sub(CHUNK as u64)), high)
            } else {
                (low, high.min(low + CHUNK as u64))
            };
            let open = {
                let state = self.shared.lock();
                (state.current.number == number).then(|| {
                    let entries = state.index[at(first, chunk_low)..at(first, chunk_high)].to_vec();
                    (entries, state.current.clone())
                })
            };
            let Some((entries, segment)) = open else {
                return self.finished(number, first, low, high);
            };
            if let Stretch::Full(next) = self.entries(&segment.file, chunk_low, &entries)? {
                return Ok(Stretch::Full(next));
            }
            if newest { high = chunk_low } else { low = chunk_high }
        }
        Ok(Stretch::Done)
    }

    fn finished(&mut self, number: u32, first: u64, low: u64, high: u64) -> Result<Stretch, Fault> {
        let Query { user, filter, .. } = self.wanted.query;
        let entries = index::entries_if(&self.shared.dir, number, first, |summary| {
            summary.may_hold(*user, filter.since, filter.until)
        })
        .or_else(|error| self.let_go(number, error).map(|()| None))?;
        let Some(entries) = entries else { return Ok(Stretch::Done) };
        let entries = entries.get(at(first, low)..at(first, high)).ok_or_else(|| {
            Fault::new(
                Code::LedgerUnavailable,
                format!("segment {number} of the ledger holds fewer records than it should"),
                "the operator must run `ringfence audit verify`",
            )
        })?;
        let file = match File::open(self.shared.dir.join(segment_name(number))) {
            Ok(file) => file,
            Err(error) => return self.let_go(number, error).map(|()| Stretch::Done),
        };
        self.entries(&file, low, entries)
    }

    /// Why a segment cannot be read, unless it was let go since the search began.
    fn let_go(&self, number: u32, error: std::io::Error) -> Result<(), Fault> {
        let state = self.shared.lock();
        let first = state.first_seqs.get(number as usize);
        let gone = first.is_some() && first == state.first_seqs.get(number as usize + 1);
        if gone { Ok(()) } else { Err(unreadable(error)) }
    }

    /// Looks at `entries`, the first of which is record `low`.
    fn entries(&mut self, file: &File, low: u64, entries: &[IndexEntry]) -> Result<Stretch, Fault> {
        let newest = self.wanted.query.order == Order::NewestFirst;
        for step in 0..entries.len() {
            let place = if newest { entries.len() - 1 - step } else { step };
            self.looked_at += 1;
            if self.wanted.may_be(&entries[place]) {
                let mut line = vec![0; entries[place].len as usize];
                file.read_exact_at(&mut line, entries[place].offset.into()).map_err(unreadable)?;
                let record: Record = serde_json::from_slice(&line)
                    .map_err(|error| unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
                if self.wanted.is(&record) {
                    self.found.push(record);
                }
            }
            if self.found.len() == self.wanted.query.limit || self.looked_at == LOOKED_AT_MAX {
                return Ok(Stretch::Full(low + place as u64));
            }
        }
        Ok(Stretch::Done)
    }
}

/// Where record `seq` stands among a segment's entries.
fn at(first: u64, seq: u64) -> usize {
    usize::try_from(seq - first).unwrap_or(usize::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "taken by `map_err`")]
fn unreadable(error: std::io::Error) -> Fault {
    Fault::new(
        Code::LedgerUnavailable,
        format!("the ledger cannot be read: {error}"),
        "the operator must run `ringfence audit verify`",
    )
}
