//! Attack: somebody who may write the ledger's files, but has not its key, changes what they say.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{config, entry, key, open};
use proptest::prelude::*;
use rf_ledger::{Anchor, Ledger, LedgerKey, Report, Wrong, verify};
use rf_types::Code;

const RECORDS: u32 = 60;

/// A closed ledger of several segments.
fn ledger() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), 8 * 1024);
    for n in 0..RECORDS {
        ledger.append(&entry(n)).unwrap();
    }
    drop(ledger);
    let path = dir.path().join("ledger");
    let whole = verify(&path, Some(&key()), None).unwrap();
    assert_eq!(whole.problem, None);
    assert_eq!((whole.records, whole.head_seq, whole.torn_bytes), (RECORDS.into(), Some(RECORDS.into()), 0));
    assert!(whole.segments >= 3, "{} segments", whole.segments);
    (dir, path)
}

fn segment(path: &Path, number: u32) -> PathBuf {
    path.join(format!("{number:08}.jsonl"))
}

fn lines(path: &Path, number: u32) -> Vec<Vec<u8>> {
    fs::read(segment(path, number)).unwrap().split_inclusive(|&b| b == b'\n').map(<[u8]>::to_vec).collect()
}

fn put(path: &Path, number: u32, lines: &[Vec<u8>]) {
    fs::write(segment(path, number), lines.concat()).unwrap();
}

fn seq_of(line: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()
}

fn checked(path: &Path) -> Report {
    verify(path, Some(&key()), None).unwrap()
}

#[test]
fn a_changed_byte_is_found_wherever_it_is() {
    let (_dir, path) = ledger();
    for number in 0..checked(&path).segments {
        let bytes = fs::read(segment(&path, number)).unwrap();
        let first = seq_of(&lines(&path, number)[1]);
        // A step that is no divisor of anything: each field of some record is met, and each line feed by itself.
        let feeds = (0..bytes.len()).filter(|&at| bytes[at] == b'\n');
        for at in (0..bytes.len()).step_by(37).chain(feeds) {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << (at % 8);
            fs::write(segment(&path, number), &wrong).unwrap();
            let problem = checked(&path).problem.unwrap_or_else(|| panic!("byte {at} of segment {number}"));
            let line = bytes[..at].iter().filter(|&&b| b == b'\n').count() as u64;
            // The header is line 0; a record's line feed belongs to it.
            let record = if line == 0 { first } else { first + line - 1 };
            assert_eq!((problem.segment, problem.seq), (number, Some(record)), "byte {at}: {problem}");
        }
        fs::write(segment(&path, number), &bytes).unwrap();
    }
    assert_eq!(checked(&path).problem, None);
}

#[test]
fn a_changed_byte_of_the_head_is_found() {
    let (_dir, path) = ledger();
    let bytes = fs::read(path.join("head")).unwrap();
    for at in (0..512).chain(4096..4608).step_by(3) {
        let mut wrong = bytes.clone();
        wrong[at] ^= 4;
        fs::write(path.join("head"), &wrong).unwrap();
        assert_eq!(checked(&path).problem.map(|problem| problem.wrong), Some(Wrong::HeadChanged), "byte {at}");
    }
    fs::remove_file(path.join("head")).unwrap();
    assert_eq!(checked(&path).problem.unwrap().wrong, Wrong::HeadMissing);
}

#[test]
fn every_dropped_line_is_found_and_named() {
    let (_dir, path) = ledger();
    let segments = checked(&path).segments;
    for number in 0..segments {
        let all = lines(&path, number);
        for at in 1..all.len() {
            let mut wrong = all.clone();
            let seq = seq_of(&wrong.remove(at));
            put(&path, number, &wrong);
            let problem = checked(&path).problem.unwrap();
            let last = u64::from(RECORDS) == seq;
            let expected = if last { Wrong::Truncated } else { Wrong::Dropped };
            assert_eq!((problem.wrong, problem.seq), (expected, Some(seq)), "{problem}");
        }
        put(&path, number, &all);
    }
}

#[test]
fn a_line_repeated_or_moved_is_found_and_named() {
    let (_dir, path) = ledger();
    let all = lines(&path, 1);
    for (from, to) in [(1, 2), (1, 5), (3, 1), (5, 2), (2, all.len())] {
        let mut repeated = all.clone();
        repeated.insert(to, all[from].clone());
        put(&path, 1, &repeated);
        let problem = checked(&path).problem.unwrap();
        assert_eq!((problem.wrong, problem.seq), (Wrong::Duplicated, Some(seq_of(&all[from]))), "{problem}");
        // Repeated in another segment.
        put(&path, 1, &all);
        let other = lines(&path, 0);
        let mut repeated = other.clone();
        repeated.push(all[from].clone());
        put(&path, 0, &repeated);
        let found = checked(&path).problem;
        // The first record of the next segment does fit at the end of this one; it then stands there twice.
        let problem = found.unwrap();
        if from == 1 {
            assert_eq!((problem.wrong, problem.segment, problem.line), (Wrong::Inserted, 1, 1), "{problem}");
        } else {
            assert_eq!(problem.wrong, Wrong::Duplicated, "{problem}");
        }
        put(&path, 0, &other);
    }
    for (a, b) in [(1, 2), (1, 6), (4, 5)] {
        let mut swapped = all.clone();
        swapped.swap(a, b);
        put(&path, 1, &swapped);
        let problem = checked(&path).problem.unwrap();
        assert_eq!((problem.wrong, problem.seq), (Wrong::Reordered, Some(seq_of(&all[a]))), "{problem}");
    }
}

#[test]
fn a_segment_dropped_or_exchanged_is_found() {
    let (_dir, path) = ledger();
    let segments = checked(&path).segments;
    for number in 0..segments {
        let bytes = fs::read(segment(&path, number)).unwrap();
        fs::remove_file(segment(&path, number)).unwrap();
        let problem = checked(&path).problem.unwrap();
        assert_eq!((problem.wrong, problem.segment), (Wrong::SegmentMissing, number.min(problem.segment)), "{problem}");
        fs::write(segment(&path, number), bytes).unwrap();
    }
    let (first, second) = (fs::read(segment(&path, 1)).unwrap(), fs::read(segment(&path, 2)).unwrap());
    fs::write(segment(&path, 1), second).unwrap();
    fs::write(segment(&path, 2), first).unwrap();
    let problem = checked(&path).problem.unwrap();
    assert_eq!((problem.wrong, problem.segment), (Wrong::Reordered, 1), "{problem}");
    for number in 0..segments {
        fs::remove_file(segment(&path, number)).unwrap();
    }
    assert_eq!(checked(&path).problem.unwrap().wrong, Wrong::SegmentMissing);
}

#[test]
fn every_cut_of_the_end_is_found() {
    let (_dir, path) = ledger();
    let last = checked(&path).segments - 1;
    let bytes = fs::read(segment(&path, last)).unwrap();
    let header = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
    // Before and after each line feed, and many in between.
    let feeds = (header..bytes.len()).filter(|&len| bytes[len - 1] == b'\n' || bytes[len] == b'\n');
    for len in (header..bytes.len()).step_by(41).chain(feeds.collect::<Vec<_>>()) {
        fs::write(segment(&path, last), &bytes[..len]).unwrap();
        let problem = checked(&path).problem.unwrap();
        let whole = bytes[..len].iter().filter(|&&b| b == b'\n').count() as u64 - 1;
        let seq = seq_of(&lines_of(&bytes)[1]) + whole;
        assert_eq!((problem.wrong, problem.seq), (Wrong::Truncated, Some(seq)), "at {len}: {problem}");
    }
}

fn lines_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split_inclusive(|&b| b == b'\n').map(<[u8]>::to_vec).collect()
}

/// The strongest attacker without the key: makes every hash anew, which needs no secret.
#[test]
fn a_history_rewritten_with_another_key_is_found() {
    let (_dir, path) = ledger();
    let (other_dir, other) = {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), 8 * 1024);
        config.key = LedgerKey::from_bytes([1; 32]);
        let ledger = Ledger::open(config, 1).unwrap();
        for n in 0..RECORDS {
            ledger.append(&entry(n + 1)).unwrap();
        }
        drop(ledger);
        let path = dir.path().join("ledger");
        (dir, path)
    };
    // Control: without the key it looks whole.
    assert_eq!(verify(&other, None, None).unwrap().problem, None);
    assert_eq!(verify(&other, Some(&key()), None).unwrap().problem.unwrap().wrong, Wrong::Changed);
    // With our own headers and head around the others' records it is found as well.
    let (ours, theirs) = (lines(&path, 0), lines(&other, 0));
    put(&path, 0, &[vec![ours[0].clone()], theirs[1..].to_vec()].concat());
    let problem = checked(&path).problem.unwrap();
    assert_eq!((problem.wrong, problem.seq), (Wrong::Inserted, Some(1)), "{problem}");
    drop(other_dir);
}

#[test]
fn an_older_copy_of_everything_is_found_by_an_anchor_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let fill = |from: u32, to: u32| {
        let ledger = open(dir.path(), 1 << 20);
        for n in from..to {
            ledger.append(&entry(n)).unwrap();
        }
    };
    fill(0, 10);
    let copy = [segment(&path, 0), path.join("head")].map(|file| (fs::read(&file).unwrap(), file));
    fill(10, 20);
    let report = checked(&path);
    let anchor = Anchor { seq: report.records, hash: report.last_hash };
    assert_eq!(verify(&path, Some(&key()), Some(&anchor)).unwrap().problem, None);
    for (bytes, file) in &copy {
        fs::write(file, bytes).unwrap();
    }
    // As the module says: this is not held without an anchor.
    assert_eq!(checked(&path).problem, None);
    let problem = verify(&path, Some(&key()), Some(&anchor)).unwrap().problem.unwrap();
    assert_eq!((problem.wrong, problem.seq), (Wrong::AnchorMissed, Some(20)));
    let other = Anchor { seq: 5, hash: "0".repeat(64) };
    assert_eq!(verify(&path, Some(&key()), Some(&other)).unwrap().problem.unwrap().wrong, Wrong::AnchorMissed);
}

/// Attack: make the next start take damage for a torn tail, and cut what was recorded.
#[test]
fn what_was_durable_is_never_cut_at_the_start() {
    let (dir, path) = ledger();
    let last = checked(&path).segments - 1;
    let whole = fs::read(segment(&path, last)).unwrap();
    let mut changed = whole.clone();
    let middle = whole.len() / 2;
    changed[middle] ^= 1;
    for wrong in [&changed[..], &whole[..middle], &whole[..whole.len() - 1], &[]] {
        fs::write(segment(&path, last), wrong).unwrap();
        let fault = Ledger::open(config(dir.path(), 8 * 1024), 1).unwrap_err();
        assert_eq!(fault.code, Code::LedgerUnavailable);
        assert_eq!(fs::read(segment(&path, last)).unwrap(), wrong, "nothing was touched");
    }
    fs::write(segment(&path, last), &whole).unwrap();
    for gone in ["head", "00000000.jsonl", "00000001.jsonl"] {
        let bytes = fs::read(path.join(gone)).unwrap();
        fs::remove_file(path.join(gone)).unwrap();
        assert_eq!(Ledger::open(config(dir.path(), 8 * 1024), 1).unwrap_err().code, Code::LedgerUnavailable, "{gone}");
        fs::write(path.join(gone), bytes).unwrap();
    }
    // Control: with everything back it opens.
    drop(open(dir.path(), 8 * 1024));
    let mut other = config(dir.path(), 8 * 1024);
    other.key = LedgerKey::from_bytes([1; 32]);
    assert_eq!(Ledger::open(other, 1).unwrap_err().code, Code::LedgerUnavailable);
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip { at: usize, bit: u8 },
    Drop { line: usize },
    Swap { a: usize, b: usize },
    Duplicate { line: usize, to: usize },
    Truncate { at: usize },
    Remove,
    Insert { at: usize, byte: u8 },
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        any::<usize>().prop_map(|line| Mutation::Drop { line }),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Mutation::Swap { a, b }),
        (any::<usize>(), any::<usize>()).prop_map(|(line, to)| Mutation::Duplicate { line, to }),
        any::<usize>().prop_map(|at| Mutation::Truncate { at }),
        Just(Mutation::Remove),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert { at, byte }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any one change of any segment is found, and nothing before it is blamed.
    #[test]
    fn any_single_change_is_found(number in any::<u32>(), mutation in mutation()) {
        // One ledger for all cases: making it costs more than checking it.
        static LEDGER: std::sync::LazyLock<(tempfile::TempDir, PathBuf)> = std::sync::LazyLock::new(ledger);
        static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = &LEDGER.1;
        let number = number % 3;
        let file = segment(path, number);
        let bytes = fs::read(&file).unwrap();
        let mut all = lines_of(&bytes);
        let changed = match mutation {
            Mutation::Flip { at, bit } => {
                let mut wrong = bytes.clone();
                wrong[at % bytes.len()] ^= 1 << bit;
                Some(wrong)
            }
            Mutation::Drop { line } => {
                all.remove(line % all.len());
                Some(all.concat())
            }
            Mutation::Swap { a, b } => {
                let len = all.len();
                all.swap(a % len, b % len);
                Some(all.concat())
            }
            Mutation::Duplicate { line, to } => {
                let line = all[line % all.len()].clone();
                all.insert(to % (all.len() + 1), line);
                Some(all.concat())
            }
            Mutation::Truncate { at } => Some(bytes[..at % bytes.len()].to_vec()),
            Mutation::Insert { at, byte } => {
                let mut wrong = bytes.clone();
                wrong.insert(at % (bytes.len() + 1), byte);
                Some(wrong)
            }
            Mutation::Remove => None,
        };
        match &changed {
            Some(wrong) => fs::write(&file, wrong).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let report = checked(path);
        fs::write(&file, &bytes).unwrap();
        // A change of one thing for its equal, or a zero where zeros may stand, is none.
        let same = changed.as_ref().is_some_and(|wrong| {
            *wrong == bytes || wrong.strip_suffix(b"\0") == Some(&bytes)
        });
        prop_assert_eq!(report.problem.is_none(), same, "{:?}", report);
        if let Some(problem) = report.problem {
            prop_assert!(problem.segment >= number, "{}", problem);
        }
    }
}
