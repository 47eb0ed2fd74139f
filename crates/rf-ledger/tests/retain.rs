//! Old segments are let go: the rest stays checkable, what is archived too, and a beginning that somebody else cut off
//! shows.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{entry, key, open};
use rf_ledger::{Anchor, Filter, Ledger, Order, Query, Records, Wrong, verify, verify_with_archive};
use rf_types::Code;

const SEGMENT_BYTES: u64 = 8 * 1024;
const RECORDS: u32 = 60;

/// A ledger of several segments; record `n` is of the time `1_000 + n`.
fn ledger(dir: &Path) -> Ledger {
    let ledger = open(dir, SEGMENT_BYTES);
    for n in 0..RECORDS {
        ledger.append(&entry(n)).unwrap().wait().unwrap();
    }
    ledger
}

fn segments(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".jsonl"))
        .collect();
    names.sort();
    names
}

fn numbers(ledger: &Ledger, order: Order) -> Vec<u64> {
    let mut query = Query { user: None, filter: Filter::default(), order, after: None, limit: 7 };
    let mut all = Vec::new();
    loop {
        let page = ledger.page(&query).unwrap();
        all.extend(page.records.iter().map(|record| record.seq));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return all,
        }
    }
}

struct Made {
    dir: tempfile::TempDir,
    path: PathBuf,
    archive: PathBuf,
    first_seq: u64,
}

/// A closed ledger from which the records before `before` were let go.
fn retained(before: u64) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive");
    let ledger = ledger(dir.path());
    let told = ledger.retain(before, Some(&archive), 9_000).unwrap().unwrap();
    drop(ledger);
    Made { path: dir.path().join("ledger"), archive, first_seq: told.first_seq, dir }
}

#[test]
fn what_is_old_goes_and_what_is_kept_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (path, archive) = (dir.path().join("ledger"), dir.path().join("archive"));
    let ledger = ledger(dir.path());
    let before = segments(&path);
    assert!(before.len() >= 4, "{before:?}");
    // Nothing is that old.
    assert_eq!(ledger.retain(1_000, Some(&archive), 9_000).unwrap(), None);
    assert_eq!(segments(&path), before);

    let told = ledger.retain(1_030, Some(&archive), 9_000).unwrap().unwrap();
    assert!(told.segments >= 1 && told.records == told.first_seq - 1 && told.first_seq <= 31, "{told:?}");
    // The note of it may have begun another one.
    let now = [segments(&archive), segments(&path)].concat();
    assert_eq!(now[..before.len()], before, "each segment is in one place");
    let all: Vec<u64> = (told.first_seq..=u64::from(RECORDS) + 1).collect();
    assert_eq!(numbers(&ledger, Order::OldestFirst), all);
    assert_eq!(numbers(&ledger, Order::NewestFirst), all.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(ledger.retain(1_030, Some(&archive), 9_001).unwrap(), None, "once is enough");

    let report = verify(&path, Some(&key()), None).unwrap();
    assert_eq!(report.problem, None);
    assert_eq!((report.first_seq, report.last_seq), (told.first_seq, u64::from(RECORDS) + 1));
    assert_eq!(report.records, report.last_seq - report.first_seq + 1);
    // With the archive from the very first record on.
    let whole = verify_with_archive(&path, Some(&archive), Some(&key()), None).unwrap();
    assert_eq!((whole.problem, whole.first_seq, whole.records), (None, 1, u64::from(RECORDS) + 1));
    let archived: Vec<_> = Records::open(&archive, 1).unwrap().map(|record| record.unwrap().record.seq).collect();
    assert_eq!(archived, (1..told.first_seq).collect::<Vec<_>>());

    // It goes on, also after it was opened anew, and lets go again, this time of everything but the open segment.
    drop(ledger);
    let ledger = open(dir.path(), SEGMENT_BYTES);
    for n in RECORDS..2 * RECORDS {
        ledger.append(&entry(n)).unwrap().wait().unwrap();
    }
    let again = ledger.retain(u64::MAX, None, 9_002).unwrap().unwrap();
    assert!(again.first_seq > told.first_seq);
    assert!(segments(&path).len() <= 2, "the open one, and the one that the note began");
    assert_eq!(segments(&archive).len() as u32, told.segments, "without an archive they are removed");
    ledger.append(&entry(0)).unwrap().wait().unwrap();
    drop(ledger);
    let report = verify(&path, Some(&key()), None).unwrap();
    assert_eq!((report.problem, report.first_seq), (None, again.first_seq));
    let ledger = open(dir.path(), SEGMENT_BYTES);
    assert_eq!(numbers(&ledger, Order::OldestFirst), (again.first_seq..=report.last_seq).collect::<Vec<_>>());
}

#[test]
fn a_changed_base_is_found_and_refused() {
    let made = retained(1_040);
    let base = made.path.join("base");
    let bytes = fs::read(&base).unwrap();
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 4;
        fs::write(&base, &wrong).unwrap();
        let problem = verify(&made.path, Some(&key()), None).unwrap().problem;
        assert_eq!(problem.map(|problem| problem.wrong), Some(Wrong::BaseChanged), "byte {at}");
    }
    let refused = Ledger::open(common::config(made.dir.path(), SEGMENT_BYTES), 1).unwrap_err();
    assert_eq!(refused.code, Code::LedgerUnavailable);
    fs::remove_file(&base).unwrap();
    let problem = verify(&made.path, Some(&key()), None).unwrap().problem.unwrap();
    assert_eq!((problem.wrong, problem.seq), (Wrong::SegmentMissing, Some(1)), "{problem}");
    fs::write(&base, &bytes).unwrap();
    assert_eq!(verify(&made.path, Some(&key()), None).unwrap().problem, None, "the control");
}

#[test]
fn a_beginning_that_somebody_else_cut_off_is_found() {
    // More than the base says: its segment is gone.
    let made = retained(1_020);
    let first = made.path.join(&segments(&made.path)[0]);
    fs::remove_file(first).unwrap();
    let problem = verify(&made.path, Some(&key()), None).unwrap().problem.unwrap();
    assert_eq!((problem.wrong, problem.seq), (Wrong::SegmentMissing, Some(made.first_seq)), "{problem}");

    // The base of another time, which was sealed and is older than what is there.
    let (older, newer) = (retained(1_020), retained(1_050));
    fs::copy(older.path.join("base"), newer.path.join("base")).unwrap();
    assert!(verify(&newer.path, Some(&key()), None).unwrap().problem.is_some());

    // Without the key a base can be made by anybody: then there is no note of it in the chain.
    let dir = tempfile::tempdir().unwrap();
    drop(ledger(dir.path()));
    let path = dir.path().join("ledger");
    let all = segments(&path);
    let header = fs::read_to_string(path.join(&all[1])).unwrap();
    let header: serde_json::Value = serde_json::from_str(header.lines().next().unwrap()).unwrap();
    let forged = format!(
        "{{\"chain\":{},\"segment\":1,\"first_seq\":{},\"prev\":{},\"note_seq\":{},\"seal\":\"{}\"}}\n",
        header["chain"],
        header["first_seq"],
        header["prev"],
        RECORDS,
        "0".repeat(64)
    );
    fs::remove_file(path.join(&all[0])).unwrap();
    fs::write(path.join("base"), forged).unwrap();
    let problem = verify(&path, None, None).unwrap().problem.unwrap();
    assert_eq!((problem.wrong, problem.seq), (Wrong::BaseChanged, Some(RECORDS.into())), "{problem}");
    assert_eq!(verify(&path, Some(&key()), None).unwrap().problem.unwrap().wrong, Wrong::BaseChanged);
}

#[test]
fn what_is_archived_is_checked_with_the_rest() {
    let made = retained(1_040);
    let check = || verify_with_archive(&made.path, Some(&made.archive), Some(&key()), None).unwrap();
    assert_eq!(check().problem, None);
    let first = made.archive.join(&segments(&made.archive)[0]);
    let bytes = fs::read(&first).unwrap();
    let mut wrong = bytes.clone();
    wrong[bytes.len() / 2] ^= 1;
    fs::write(&first, &wrong).unwrap();
    assert_eq!(check().problem.unwrap().wrong, Wrong::Changed);
    // The last line is gone: the next segment, archived or kept, does not go on from there.
    let short = bytes[..bytes.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    fs::write(&first, &bytes[..short]).unwrap();
    assert_eq!(check().problem.unwrap().wrong, Wrong::Dropped);
    fs::write(&first, &bytes).unwrap();
    assert_eq!(check().problem, None);

    // An anchor that is older than what is kept is found in the archive alone.
    let record = Records::open(&made.archive, 2).unwrap().next().unwrap().unwrap().record;
    let anchor = Anchor { seq: 2, hash: record.hash };
    let without = verify(&made.path, Some(&key()), Some(&anchor)).unwrap().problem.unwrap();
    assert_eq!(without.wrong, Wrong::AnchorMissed, "{without}");
    let with = verify_with_archive(&made.path, Some(&made.archive), Some(&key()), Some(&anchor)).unwrap();
    assert_eq!(with.problem, None);
}

#[test]
fn a_segment_that_is_not_whole_is_kept_as_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let ledger = ledger(dir.path());
    let before = segments(&path);
    let second = path.join(&before[1]);
    let bytes = fs::read(&second).unwrap();
    let mut wrong = bytes.clone();
    wrong[bytes.len() / 2] ^= 1;
    fs::write(&second, &wrong).unwrap();
    assert_eq!(ledger.retain(u64::MAX, None, 9_000).unwrap_err().code, Code::LedgerUnavailable);
    assert_eq!(segments(&path), before);
    fs::write(&second, &bytes).unwrap();
    assert!(ledger.retain(u64::MAX, None, 9_000).unwrap().is_some());
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let (path, archive) = (dir.path().join("ledger"), dir.path().join("archive"));
    drop(ledger(dir.path()));
    let kept: Vec<_> = segments(&path).iter().map(|name| (name.clone(), fs::read(path.join(name)).unwrap())).collect();
    let ledger = open(dir.path(), SEGMENT_BYTES);
    let told = ledger.retain(1_040, Some(&archive), 9_000).unwrap().unwrap();
    drop(ledger);
    // After the base was written, and before some segment was moved.
    for (name, bytes) in kept.iter().take(told.segments as usize).rev() {
        fs::write(path.join(name), bytes).unwrap();
        assert_eq!(verify(&path, Some(&key()), None).unwrap().problem, None, "with {name}");
        let ledger = open(dir.path(), SEGMENT_BYTES);
        ledger.append(&entry(1)).unwrap().wait().unwrap();
        assert_eq!(numbers(&ledger, Order::OldestFirst)[0], told.first_seq);
    }
    let ledger = open(dir.path(), SEGMENT_BYTES);
    assert_eq!(ledger.retain(0, Some(&archive), 9_003).unwrap(), None);
    drop(ledger);
    assert_eq!(segments(&archive).len(), told.segments as usize, "they are taken away at the next turn");
    assert_eq!(segments(&path)[0], kept[told.segments as usize].0);
    // After the note and before the base: the ledger begins where it did, with a note more.
    for (name, bytes) in kept.iter().take(told.segments as usize) {
        fs::write(path.join(name), bytes).unwrap();
    }
    fs::remove_file(path.join("base")).unwrap();
    let report = verify(&path, Some(&key()), None).unwrap();
    assert_eq!((report.problem, report.first_seq), (None, 1));
    let ledger = open(dir.path(), SEGMENT_BYTES);
    assert_eq!(numbers(&ledger, Order::OldestFirst)[0], 1);
    assert_eq!(ledger.retain(1_040, None, 9_004).unwrap(), Some(told));
    drop(ledger);
    assert_eq!(verify(&path, Some(&key()), None).unwrap().problem, None);
}
