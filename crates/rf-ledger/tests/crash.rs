//! Attack: the process is killed, or the power fails, at any moment.

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
};

use common::{config, entry, key, open};
use rf_ledger::{Kind, Ledger, verify};

const CHILD: &str = "RF_LEDGER_TEST_CHILD";

/// Not a test of its own: the process that the next test kills. Prints each record's number and hash-chained neighbour
/// once it is durable.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let ledger = open(dir.as_ref(), 32 * 1024);
    let ledger = &ledger;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0.. {
                    let ticket = ledger.append(&entry(thread * 1_000_000 + n)).unwrap();
                    let seq = ticket.seq();
                    ticket.wait().unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "durable {seq} {thread} {n}").unwrap();
                    out.flush().unwrap();
                }
            });
        }
    });
}

#[test]
fn fifty_kills_lose_no_durable_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    // Some rounds kill the child before it has opened the ledger.
    drop(open(dir.path(), 32 * 1024));
    for round in 0..50_u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_appends_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // After another number of answers each time, which is another moment of the write, the sync and the rotation.
        let answers = round * 7 % 50;
        let heard = |line: String| {
            let numbers = line.strip_prefix("durable ").map(str::to_owned)?;
            let mut numbers = numbers.split(' ').map(|n| n.parse::<u64>().unwrap());
            Some((numbers.next()?, numbers.next()?, numbers.next()?))
        };
        told.extend(lines.by_ref().filter_map(heard).take(answers as usize));
        child.kill().unwrap();
        // What it had already said before it died counts too.
        told.extend(lines.filter_map(heard));
        child.wait().unwrap();
        // Also before the ledger is opened again: a kill leaves nothing that is taken for an attack.
        let report = verify(&dir.path().join("ledger"), Some(&key()), None).unwrap();
        assert_eq!(report.problem, None, "round {round}");
    }
    let ledger = open(dir.path(), 32 * 1024);
    let records: Vec<_> = ledger.records(1).unwrap().map(|record| record.unwrap().record).collect();
    drop(ledger);
    assert!(told.len() > 500, "only {} answers", told.len());
    for (seq, thread, n) in told {
        let record = &records[usize::try_from(seq).unwrap() - 1];
        assert_eq!((record.seq, record.at), (seq, 1_000 + thread * 1_000_000 + n));
    }
    assert_eq!(verify(&dir.path().join("ledger"), Some(&key()), None).unwrap().problem, None);
}

/// What a loss of power may leave behind the last durable record: each is cut, recorded, and nothing else is lost.
#[test]
fn a_torn_tail_is_cut_back_to_the_last_whole_record() {
    let line = {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), 1 << 20);
        (0..3).for_each(|n| drop(ledger.append(&entry(n)).unwrap()));
        drop(ledger);
        let bytes = fs::read(dir.path().join("ledger/00000000.jsonl")).unwrap();
        bytes.split_inclusive(|&b| b == b'\n').nth(2).unwrap().to_vec()
    };
    let zeros = vec![0; 5000];
    let tails: [(&str, Vec<u8>); 6] = [
        ("half a line", line[..line.len() / 2].to_vec()),
        ("half a line, then zeros", [&line[..20], &zeros].concat()),
        ("zeros, then a line", [&zeros[..], &line].concat()),
        ("a line of another ledger", line.clone()),
        ("old blocks", vec![0xa5; 100_000]),
        ("line feeds", vec![b'\n'; 10]),
    ];
    for (what, tail) in tails {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), 1 << 20);
        (0..10).for_each(|n| drop(ledger.append(&entry(n)).unwrap()));
        drop(ledger);
        let path = dir.path().join("ledger/00000000.jsonl");
        let kept = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&tail, kept).unwrap();
        let report = verify(&dir.path().join("ledger"), Some(&key()), None).unwrap();
        if what == "a line of another ledger" {
            // Whole, and not ours: no crash does that.
            assert!(report.problem.is_some(), "{what}");
        } else {
            assert_eq!((report.problem, report.records), (None, 10), "{what}");
            assert!(report.torn_bytes > 0, "{what}");
        }
        let ledger = open(dir.path(), 1 << 20);
        let records: Vec<_> = ledger.records(1).unwrap().map(|record| record.unwrap().record).collect();
        assert_eq!(records.len(), 11, "{what}");
        let cut = &records[10];
        assert_eq!((cut.action.as_str(), cut.kind), ("ledger_recover", Kind::Note), "{what}");
        assert_eq!(cut.details["after_seq"], 10, "{what}");
        let bytes = tail.iter().rposition(|&b| b != 0).unwrap() + 1;
        assert_eq!(cut.details["cut_bytes"], bytes, "{what}");
        assert_eq!(cut.details["cut_blake3"], blake3::hash(&tail[..bytes]).to_string(), "{what}");
        drop(ledger);
        assert_eq!(verify(&dir.path().join("ledger"), Some(&key()), None).unwrap().problem, None, "{what}");
    }
}

/// Power fails while a ledger is made, or while a segment is begun.
#[test]
fn a_segment_without_a_whole_header_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    drop(open(dir.path(), 4096));
    for left in [&b""[..], b"{\"ledger\":1", &[0; 600]] {
        fs::write(path.join("00000000.jsonl"), left).unwrap();
        assert_eq!(verify(&path, Some(&key()), None).unwrap().problem, None);
        let ledger = open(dir.path(), 4096);
        drop(ledger);
        fs::remove_dir_all(&path).unwrap();
        drop(open(dir.path(), 4096));
    }
    fs::remove_file(path.join("00000000.jsonl")).unwrap();
    let ledger = open(dir.path(), 4096);
    (0..20).for_each(|n| drop(ledger.append(&entry(n)).unwrap()));
    drop(ledger);
    let mut records = 20;
    for left in [&b""[..], b"{\"ledger\":1"] {
        let next = verify(&path, Some(&key()), None).unwrap().segments;
        fs::write(path.join(format!("{next:08}.jsonl")), left).unwrap();
        let ledger = open(dir.path(), 4096);
        ledger.append(&entry(99)).unwrap().wait().unwrap();
        drop(ledger);
        assert_eq!(verify(&path, Some(&key()), None).unwrap().problem, None);
        records += 2;
        assert_eq!(verify(&path, Some(&key()), None).unwrap().records, records);
    }
}

#[test]
fn a_second_process_cannot_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), 4096);
    assert!(Ledger::open(config(dir.path(), 4096), 1).is_err());
    drop(first);
    assert!(Ledger::open(config(dir.path(), 4096), 1).is_ok());
}
