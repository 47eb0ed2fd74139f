//! Appends records and makes them durable, many at once.
//!
//! ```text
//! caller:   append ── lock, hash, pwrite(2), unlock ──▶ Ticket ── durable().await ─┐
//! one thread:     wait ─▶ note how far it is written ─▶ fdatasync(2) ─▶ head ──────┴▶ wake all whom it covers
//! ```
//!
//! The write is done in the caller's thread: it takes some microseconds, where a hand-over to another thread takes tens,
//! and its failure is the caller's to see. Whoever comes while an fdatasync(2) runs shares the next one.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use rf_types::{Code, Fault, units::UnixMs};
use tokio::sync::watch;

use crate::{
    LedgerKey,
    chain::{Header, close, hex},
    head::{Head, HeadFile},
    index::{self, IndexEntry},
    key::Sealer,
    record::{Entry, Event},
    recover::{self, Recovered, refuse},
};

/// Room that is written ahead with zeros; chosen: some 2,000 records, and 0.3 ms to write.
const ROOM_BYTES: u64 = 1024 * 1024;
/// Room that an append makes for itself when the thread was not fast enough.
const ROOM_AT_ONCE_BYTES: u64 = 128 * 1024;
/// Records that nobody waits for are made durable this much later.
const IDLE: Duration = Duration::from_millis(500);

/// Where and how a ledger is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ledger's directory; made with mode 0700 when it is not there.
    pub dir: PathBuf,
    /// The installation's key.
    pub key: LedgerKey,
    /// When a segment is full, bytes; held to 4 KiB to 1 GiB.
    pub segment_bytes_max: u64,
}

impl Config {
    /// A ledger in `dir` with segments of 32 MiB.
    pub fn new(dir: impl Into<PathBuf>, key: LedgerKey) -> Self {
        Self { dir: dir.into(), key, segment_bytes_max: 32 * 1024 * 1024 }
    }
}

/// Makes the bytes written to a file durable.
pub(crate) type Sync = Box<dyn Fn(&File) -> io::Result<()> + Send + std::marker::Sync>;

/// The open ledger. Closing it (dropping it) makes all records durable first.
pub struct Ledger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) chain: String,
    pub(crate) sealer: Sealer,
    segment_bytes_max: u64,
    state: Mutex<State>,
    /// Something for the thread to do.
    work: Condvar,
    /// How far it is durable, for those who wait.
    progress: watch::Sender<Progress>,
    /// There is more room.
    roomy: Condvar,
    /// As `progress`, for threads.
    done: Condvar,
    sync: Sync,
    /// The directory, kept open: its sync after a segment began must not fail for want of a descriptor.
    dir_file: File,
    /// Held while the ledger is open.
    _lock: File,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    durable: u64,
    failed: bool,
}

pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) file: File,
}

struct Retired {
    segment: Arc<Segment>,
    len: u64,
    first_seq: u64,
    index: Vec<IndexEntry>,
}

pub(crate) struct State {
    pub(crate) next_seq: u64,
    last_hash: [u8; 32],
    pub(crate) current: Arc<Segment>,
    /// Bytes of the segment that are records; the next one goes here.
    written: u64,
    /// Bytes of the segment that are allocated and, after `written`, zero.
    room: u64,
    /// The thread is writing zeros behind the room.
    extending: bool,
    /// Of the open segment.
    pub(crate) index: Vec<IndexEntry>,
    /// The first record of each segment; of those that were let go, the first one that is kept.
    pub(crate) first_seqs: Vec<u64>,
    /// Full segments that are not yet durable.
    retired: Vec<Retired>,
    /// The record up to which somebody waits.
    wanted: u64,
    pub(crate) durable: u64,
    /// Threads that wait on `done`.
    blocked: u32,
    syncs: u64,
    /// Why nothing more can be written.
    failed: Option<String>,
    closing: bool,
}

/// How a ledger is doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// The last record that was accepted; 0 is none.
    pub last_seq: u64,
    /// The last record that is durable.
    pub durable_seq: u64,
    /// The open segment's number.
    pub segment: u32,
    /// How many group commits were made since it was opened.
    pub commits: u64,
    /// Why it takes no more records until it is opened anew.
    pub failed: Option<String>,
}

impl Ledger {
    /// Opens the ledger, or makes it. After a crash it is cut back to its last whole record, and that is recorded; `now`
    /// is the time of that record.
    ///
    /// # Errors
    /// `ledger_unavailable` when another process has it open, when it cannot be read or written, or when what was
    /// durable is damaged or gone.
    pub fn open(config: Config, now: UnixMs) -> Result<Self, Fault> {
        Self::open_with(config, now, Box::new(File::sync_data))
    }

    pub(crate) fn open_with(config: Config, now: UnixMs, sync: Sync) -> Result<Self, Fault> {
        let sealer = config.key.sealer();
        let recovered = recover::open(&config.dir, &sealer)?;
        let Recovered { lock, chain, segment, file, written, first_seqs, next_seq, last_hash, index, head, .. } =
            recovered;
        let durable = next_seq - 1;
        let dir_file =
            File::open(&config.dir).map_err(|error| refuse(format_args!("cannot open its directory: {error}"), ""))?;
        let shared = Arc::new(Shared {
            dir: config.dir,
            chain,
            sealer,
            segment_bytes_max: config.segment_bytes_max.clamp(4096, 1024 * 1024 * 1024),
            state: Mutex::new(State {
                next_seq,
                last_hash,
                current: Arc::new(Segment { number: segment, file }),
                written,
                room: written,
                extending: false,
                index,
                first_seqs,
                retired: Vec::new(),
                wanted: 0,
                durable,
                blocked: 0,
                syncs: 0,
                failed: None,
                closing: false,
            }),
            work: Condvar::new(),
            roomy: Condvar::new(),
            progress: watch::Sender::new(Progress { durable, failed: false }),
            done: Condvar::new(),
            sync,
            dir_file,
            _lock: lock,
        });
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.keep_durable(head)
            })
            .map_err(|error| refuse(format_args!("cannot start its thread: {error}"), "raise the limit of tasks"))?;
        let ledger = Self { shared, thread: Some(thread) };
        if recovered.cut.is_some() || recovered.head_damaged {
            let mut entry =
                Entry::new(now, "ledger_recover", Event::Note).detail("head_damaged", recovered.head_damaged);
            if let Some(cut) = recovered.cut {
                entry = entry
                    .detail("after_seq", cut.after_seq)
                    .detail("cut_bytes", cut.bytes)
                    .detail("cut_segments", cut.segments)
                    .detail("cut_blake3", hex(cut.digest.as_bytes()));
            }
            ledger.append(&entry)?.wait()?;
        }
        Ok(ledger)
    }

    /// Appends one record: when this returns, the kernel has its bytes. It survives the end of this process, and a loss
    /// of power once its [`Ticket`] says so.
    ///
    /// # Errors
    /// `ledger_unavailable` when the bytes cannot be written: what was to be recorded must not be done. The ledger is as
    /// before and a later append may succeed, unless an fdatasync(2) failed.
    pub fn append(&self, entry: &Entry) -> Result<Ticket, Fault> {
        let seq = self.shared.append(entry)?;
        Ok(Ticket { seq, shared: Arc::clone(&self.shared) })
    }

    /// How it is doing; for readiness and metrics.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.shared.lock();
        Status {
            last_seq: state.next_seq - 1,
            durable_seq: state.durable,
            segment: state.current.number,
            commits: state.syncs,
            failed: state.failed.clone(),
        }
    }

    /// The ledger's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends by returning; were it to have panicked, there is nothing left to save here.
            let _ = thread.join();
        }
    }
}

/// One appended record, on its way to the disk. May be dropped by whom its durability does not matter to.
#[derive(Clone)]
pub struct Ticket {
    seq: u64,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("seq", &self.seq).finish_non_exhaustive()
    }
}

impl Ticket {
    /// The record's number.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// Has it made durable from now on, whether or not somebody waits for it yet.
    pub fn hasten(&self) {
        let asked = self.want(&mut self.shared.lock());
        if asked {
            // After the lock is free again, or the thread would wake only to wait for it.
            self.shared.work.notify_one();
        }
    }

    /// Waits until this record, and so every one before it, is durable.
    ///
    /// # Errors
    /// `ledger_unavailable` when it could not be made durable. Whether it is there after a crash is then not known.
    pub async fn durable(self) -> Result<(), Fault> {
        self.hasten();
        let mut progress = self.shared.progress.subscribe();
        // The sender lives in `shared`, so it cannot have gone.
        let _ = progress.wait_for(|progress| progress.durable >= self.seq || progress.failed).await;
        if progress.borrow().durable >= self.seq { Ok(()) } else { self.outcome(&self.shared.lock()) }
    }

    /// As [`Ticket::durable`], and blocks the thread.
    ///
    /// # Errors
    /// As [`Ticket::durable`].
    pub fn wait(self) -> Result<(), Fault> {
        let mut state = self.shared.lock();
        if self.want(&mut state) {
            drop(state);
            self.shared.work.notify_one();
            state = self.shared.lock();
        }
        while state.durable < self.seq && state.failed.is_none() {
            state.blocked += 1;
            state = wait(&self.shared.done, state);
            state.blocked -= 1;
        }
        self.outcome(&state)
    }

    /// Asks for it; whether the thread must be woken for that.
    fn want(&self, state: &mut State) -> bool {
        let asks = state.durable < self.seq && state.failed.is_none() && state.wanted < self.seq;
        if asks {
            state.wanted = self.seq;
        }
        asks
    }

    fn outcome(&self, state: &State) -> Result<(), Fault> {
        match &state.failed {
            _ if state.durable >= self.seq => Ok(()),
            Some(why) => Err(closed(why)),
            None => Err(closed("it was closed")),
        }
    }
}

fn closed(why: &str) -> Fault {
    Fault::new(
        Code::LedgerUnavailable,
        format!("the ledger takes no more records: {why}"),
        "nothing can be done until the operator has looked at the ledger's disk and restarted the server",
    )
}

fn not_written(step: &str, error: &io::Error) -> Fault {
    Fault::new(
        Code::LedgerUnavailable,
        format!("this could not be recorded, so it was not done: cannot {step}: {error}"),
        "free space on the ledger's disk, then try again",
    )
}

fn wait<'a>(condvar: &Condvar, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condvar.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs between two changes that belong together, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn append(&self, entry: &Entry) -> Result<u64, Fault> {
        let fields = entry.fields()?;
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            return Err(closed(why));
        }
        let seq = state.next_seq;
        let mut line = Vec::with_capacity(fields.len() + 320);
        line.extend_from_slice(format!("{{\"seq\":{seq},").as_bytes());
        line.extend_from_slice(&fields);
        line.extend_from_slice(b",\"prev\":\"");
        line.extend_from_slice(hex(&state.last_hash).as_bytes());
        line.push(b'"');
        let hash = close(&mut line, &self.sealer);
        let len = line.len() as u64;
        if state.written + len > self.segment_bytes_max && !state.index.is_empty() {
            self.rotate(&mut state)?;
        }
        while state.extending && state.written + len > state.room {
            state = wait(&self.roomy, state);
        }
        if state.written + len > state.room {
            // On a disk that is nearly full, as much as this record needs.
            let least = state.written + len;
            let ample = state.room + ROOM_AT_ONCE_BYTES.max(len);
            let file = &state.current.file;
            state.room = zero(file, state.room, ample)
                .map(|()| ample)
                .or_else(|_| zero(file, state.room, least).map(|()| least))
                .map_err(|error| not_written("make room", &error))?;
        }
        let offset = state.written;
        if let Err(error) = state.current.file.write_all_at(&line, offset) {
            // What came of it is wiped, or it would stand as a torn tail behind a shorter record.
            if let Err(wipe) = zero(&state.current.file, offset, offset + len) {
                self.fail(&mut state, &format!("a failed write could not be wiped: {wipe}"));
            }
            return Err(not_written("write", &error));
        }
        state.index.push(index_of(entry, offset, line.len() - 1));
        state.written += len;
        state.last_hash = hash;
        state.next_seq += 1;
        Ok(seq)
    }

    /// Begins the next segment.
    fn rotate(&self, state: &mut State) -> Result<(), Fault> {
        let number = state.current.number + 1;
        let header = Header::new(&self.chain, number, state.next_seq, &state.last_hash);
        let (file, written) = recover::new_segment(&self.dir, &header, &self.sealer)
            .map_err(|error| not_written("begin a segment", &error))?;
        let full = std::mem::replace(&mut state.current, Arc::new(Segment { number, file }));
        let first_seq = *state.first_seqs.last().unwrap_or(&1);
        state.retired.push(Retired {
            segment: full,
            len: state.written,
            first_seq,
            index: std::mem::take(&mut state.index),
        });
        state.first_seqs.push(state.next_seq);
        state.written = written;
        state.room = written;
        Ok(())
    }

    fn fail(&self, state: &mut State, why: &str) {
        state.failed.get_or_insert_with(|| why.to_owned());
        self.progress.send_modify(|progress| progress.failed = true);
        self.done.notify_all();
    }

    /// The thread: makes what was written durable, until the ledger closes.
    fn keep_durable(&self, mut head: HeadFile) {
        loop {
            let mut state = self.lock();
            while !state.closing && (state.failed.is_some() || state.wanted <= state.durable) {
                let (guard, timeout) =
                    self.work.wait_timeout(state, IDLE).unwrap_or_else(std::sync::PoisonError::into_inner);
                state = guard;
                if timeout.timed_out() {
                    break;
                }
            }
            let closing = state.closing;
            if state.failed.is_none() && (state.next_seq - 1 > state.durable || !state.retired.is_empty()) {
                self.commit(state, &mut head);
            } else {
                drop(state);
            }
            if closing {
                self.close(&head);
                return;
            }
            self.make_room();
        }
    }

    /// One group commit of all that is written now.
    fn commit(&self, mut state: MutexGuard<'_, State>, head: &mut HeadFile) {
        let seq = state.next_seq - 1;
        let retired = std::mem::take(&mut state.retired);
        let current = Arc::clone(&state.current);
        let reached = Head { chain: self.chain.clone(), segment: current.number, seq, hash: hex(&state.last_hash) };
        drop(state);
        let synced = (|| {
            for full in &retired {
                full.segment.file.set_len(full.len)?;
                (self.sync)(&full.segment.file)?;
            }
            (self.sync)(&current.file)?;
            if !retired.is_empty() {
                self.dir_file.sync_all()?;
            }
            // After the records and before anybody is told: so it never names a record that is not there, and a cut
            // below what was answered always shows.
            head.write(&reached, &self.sealer)?;
            if retired.is_empty() { Ok(()) } else { head.sync() }
        })();
        let mut state = self.lock();
        state.syncs += 1;
        match synced {
            Ok(()) => {
                state.durable = seq;
                let blocked = state.blocked > 0;
                // Whom it wakes must not find the lock taken.
                drop(state);
                self.progress.send_modify(|progress| progress.durable = seq);
                if blocked {
                    self.done.notify_all();
                }
            }
            Err(error) => self.fail(&mut state, &format!("cannot make records durable: {error}")),
        }
        for full in retired {
            // Made anew when somebody needs it and it is not there.
            let _ = index::write(&self.dir, full.segment.number, full.first_seq, &full.index);
        }
    }

    /// Writes zeros ahead when less than half of the room is left.
    fn make_room(&self) {
        let mut state = self.lock();
        let from = state.room;
        // Not beyond what the segment will hold.
        let to = (from + ROOM_BYTES).min(self.segment_bytes_max);
        if state.failed.is_some() || from.saturating_sub(state.written) > ROOM_BYTES / 2 || to <= from {
            return;
        }
        let current = Arc::clone(&state.current);
        // Meanwhile an append that needs this very room waits, or its record would be zeroed.
        state.extending = true;
        drop(state);
        let zeroed = zero(&current.file, from, to);
        let mut state = self.lock();
        state.extending = false;
        // A failure is for the append to meet that needs the room.
        if zeroed.is_ok() && Arc::ptr_eq(&state.current, &current) {
            state.room = to;
        }
        self.roomy.notify_all();
    }

    fn close(&self, head: &HeadFile) {
        let mut state = self.lock();
        if state.failed.is_none() {
            // Best effort: the records are durable, these only tidy.
            let _ = state.current.file.set_len(state.written);
            let _ = state.current.file.sync_all();
            let _ = head.sync();
            state.room = state.written;
        }
        self.fail(&mut state, "it was closed");
    }
}

fn index_of(entry: &Entry, offset: u64, len: usize) -> IndexEntry {
    IndexEntry {
        offset: u32::try_from(offset).unwrap_or(u32::MAX),
        len: u32::try_from(len).unwrap_or(u32::MAX),
        at: entry.at,
        user: entry.user.map_or(0, |id| index::tag(id.bits())),
        place: entry.place.map_or(0, index::place_tag),
        request: entry.request.map_or(0, |id| index::tag(id.bits())),
        action: index::action_tag(&entry.action),
        kind: index::kind_tag(entry.event.kind()),
    }
}

/// Writes zeros from `from` up to `to`.
fn zero(file: &File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(&ZEROS[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    };

    use super::*;

    fn entry(n: u64) -> Entry {
        Entry::new(n, "exec", Event::Intent)
    }

    fn open_with(dir: &Path, sync: Sync) -> Ledger {
        Ledger::open_with(Config::new(dir, LedgerKey::from_bytes([1; 32])), 1, sync).unwrap()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn a_failed_sync_closes_the_ledger_until_it_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU64::new(0));
        let sync = {
            let (broken, asked) = (Arc::clone(&broken), Arc::clone(&asked));
            move |file: &File| {
                asked.fetch_add(1, Ordering::SeqCst);
                if broken.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(5)) } else { file.sync_data() }
            }
        };
        let ledger = open_with(dir.path(), Box::new(sync));
        ledger.append(&entry(1)).unwrap().wait().unwrap();
        broken.store(true, Ordering::SeqCst);
        let second = ledger.append(&entry(2)).unwrap();
        let also = second.clone();
        assert_eq!(second.wait().unwrap_err().code, Code::LedgerUnavailable);
        assert_eq!(runtime().block_on(also.durable()).unwrap_err().code, Code::LedgerUnavailable);
        // The disk is well again, but the lost pages are lost: nobody asks it again.
        broken.store(false, Ordering::SeqCst);
        let before = asked.load(Ordering::SeqCst);
        assert_eq!(ledger.append(&entry(3)).unwrap_err().code, Code::LedgerUnavailable);
        assert!(ledger.status().failed.is_some());
        assert_eq!(ledger.status().durable_seq, 1);
        drop(ledger);
        assert_eq!(asked.load(Ordering::SeqCst), before);
        let ledger = open_with(dir.path(), Box::new(File::sync_data));
        ledger.append(&entry(4)).unwrap().wait().unwrap();
    }

    #[test]
    fn all_who_come_while_a_sync_runs_share_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let (entered, enters) = mpsc::channel();
        let (go, goes) = mpsc::channel();
        let goes = Mutex::new(goes);
        let sync = move |_: &File| {
            // The receivers are gone once the test has seen enough.
            let _ = entered.send(());
            let _ = goes.lock().unwrap().recv();
            Ok(())
        };
        let ledger = open_with(dir.path(), Box::new(sync));
        let first = ledger.append(&entry(0)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| first.wait().unwrap());
            enters.recv().unwrap();
            // The first sync runs. Two hundred more records, of which one is waited for.
            (1..200).for_each(|n| drop(ledger.append(&entry(n)).unwrap()));
            let last = ledger.append(&entry(200)).unwrap();
            assert_eq!(ledger.status().durable_seq, 0);
            go.send(()).unwrap();
            let waiter = scope.spawn(|| last.wait());
            enters.recv().unwrap();
            go.send(()).unwrap();
            waiter.join().unwrap().unwrap();
            assert_eq!((ledger.status().durable_seq, ledger.status().commits), (201, 2));
        });
        drop((go, enters));
    }

    #[test]
    fn a_result_makes_its_intent_durable_with_one_sync() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open_with(dir.path(), Box::new(File::sync_data));
        let intent = ledger.append(&entry(1)).unwrap();
        let result = ledger.append(&entry(2)).unwrap();
        runtime().block_on(async {
            result.durable().await.unwrap();
            intent.durable().await.unwrap();
        });
        assert_eq!(ledger.status().commits, 1);
    }

    #[test]
    fn what_nobody_waits_for_becomes_durable_too() {
        let dir = tempfile::tempdir().unwrap();
        let (synced, syncs) = mpsc::channel();
        let ledger = open_with(dir.path(), Box::new(move |file| synced.send(()).map_or(Ok(()), |()| file.sync_data())));
        drop(ledger.append(&entry(1)).unwrap());
        syncs.recv().unwrap();
        drop(ledger);
    }

    #[test]
    fn a_ticket_outlives_its_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open_with(dir.path(), Box::new(File::sync_data));
        let ticket = ledger.append(&entry(1)).unwrap();
        let shared = Arc::clone(&ledger.shared);
        drop(ledger);
        ticket.wait().unwrap();
        assert_eq!(shared.append(&entry(2)).unwrap_err().code, Code::LedgerUnavailable);
    }
}
