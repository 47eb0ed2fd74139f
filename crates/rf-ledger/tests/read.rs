//! Reading pages and everything, while others write.

mod common;

use std::fs;

use common::{entry, key, open, user};
use rf_ledger::{Filter, Kind, Ledger, Order, Query, Record, verify};
use rf_types::{Code, PlaceRef, RequestId, SandboxId};

fn query(order: Order) -> Query {
    Query { user: None, filter: Filter::default(), order, after: None, limit: 7 }
}

/// All pages one after the other.
fn pages(ledger: &Ledger, mut query: Query) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let page = ledger.page(&query).unwrap();
        assert!(page.records.len() <= query.limit);
        all.extend(page.records);
        match page.next {
            Some(next) => query.after = Some(next),
            None => return all,
        }
    }
}

fn all(ledger: &Ledger) -> Vec<Record> {
    ledger.records(1).unwrap().map(|record| record.unwrap().record).collect()
}

#[test]
fn pages_hold_exactly_what_the_filter_wants_in_both_orders() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), 8 * 1024);
    for n in 0..200 {
        drop(ledger.append(&entry(n)).unwrap());
    }
    assert!(ledger.status().segment > 5);
    let records = all(&ledger);
    assert_eq!(records.len(), 200);
    let place = PlaceRef::Sandbox(SandboxId::from_bits(2));
    let filters = [
        Filter::default(),
        Filter { action: Some("exec".to_owned()), ..Filter::default() },
        Filter { action: Some("nothing".to_owned()), ..Filter::default() },
        Filter { kind: Some(Kind::Result), ..Filter::default() },
        Filter { place: Some(place), ..Filter::default() },
        Filter { request: Some(RequestId::from_bits(20)), ..Filter::default() },
        Filter { since: Some(1_050), until: Some(1_060), ..Filter::default() },
        Filter { since: Some(1_100), kind: Some(Kind::Intent), action: Some("exec".to_owned()), ..Filter::default() },
    ];
    for who in [None, Some(user(1).0), Some(user(3).0), Some(user(99).0)] {
        for filter in &filters {
            let wanted = |record: &&Record| {
                who.is_none_or(|who| record.user == Some(who))
                    && filter.action.as_ref().is_none_or(|action| *action == record.action)
                    && filter.kind.is_none_or(|kind| kind == record.kind)
                    && filter.place.is_none_or(|place| record.place == Some(place))
                    && filter.request.is_none_or(|request| record.request == Some(request))
                    && filter.since.is_none_or(|since| record.at >= since)
                    && filter.until.is_none_or(|until| record.at < until)
            };
            let mut expected: Vec<Record> = records.iter().filter(wanted).cloned().collect();
            let mut query = Query { user: who, filter: filter.clone(), ..query(Order::OldestFirst) };
            assert_eq!(pages(&ledger, query.clone()), expected, "{query:?}");
            expected.reverse();
            query.order = Order::NewestFirst;
            assert_eq!(pages(&ledger, query.clone()), expected, "{query:?}");
        }
    }
    let mut wrong = query(Order::NewestFirst);
    for limit in [0, 1001] {
        wrong.limit = limit;
        assert_eq!(ledger.page(&wrong).unwrap_err().code, Code::InvalidRequest);
    }
    let far = Query { after: Some(u64::MAX), ..query(Order::OldestFirst) };
    assert_eq!(ledger.page(&far).unwrap().records, []);
    assert_eq!(ledger.page(&Query { order: Order::NewestFirst, ..far }).unwrap().records[0].seq, 200);
}

#[test]
fn what_was_written_is_read_back_after_a_restart_and_without_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), 8 * 1024);
    for n in 0..100 {
        drop(ledger.append(&entry(n)).unwrap());
    }
    let before = all(&ledger);
    drop(ledger);
    let indexes = || {
        fs::read_dir(dir.path().join("ledger"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "idx"))
            .collect::<Vec<_>>()
    };
    assert!(indexes().len() > 2);
    indexes().iter().enumerate().for_each(|(n, path)| match n % 3 {
        0 => fs::remove_file(path).unwrap(),
        1 => fs::write(path, b"not an index").unwrap(),
        _ => {}
    });
    let ledger = open(dir.path(), 8 * 1024);
    assert_eq!(pages(&ledger, query(Order::OldestFirst)), before);
    // Made anew and then believed.
    assert_eq!(pages(&ledger, query(Order::OldestFirst)), before);
    assert_eq!(before[0].username.as_ref().unwrap().as_str(), "user-1");
    assert_eq!(before[2].duration_us, Some(2));
    assert_eq!(before[3].allowed, Some(true));
    assert_eq!(before[4].details["argv"][1], "4");
    for from in [1, 2, 50, 100, 101] {
        let seqs: Vec<u64> = ledger.records(from).unwrap().map(|record| record.unwrap().record.seq).collect();
        assert_eq!(seqs, (from..=100).collect::<Vec<_>>());
    }
}

#[test]
fn eight_writers_a_reader_and_a_verifier_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), 64 * 1024);
    let path = dir.path().join("ledger");
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|thread| {
                let ledger = &ledger;
                scope.spawn(move || {
                    (0..200)
                        .map(|n| {
                            let ticket = ledger.append(&entry(thread * 1000 + n)).unwrap();
                            let seq = ticket.seq();
                            if n % 10 == 0 {
                                ticket.wait().unwrap();
                                assert!(ledger.status().durable_seq >= seq);
                            }
                            (seq, u64::from(thread * 1000 + n))
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            assert_eq!(verify(&path, Some(&key()), None).unwrap().problem, None);
            let page = ledger.page(&Query { limit: 50, ..query(Order::NewestFirst) }).unwrap();
            assert!(page.records.windows(2).all(|pair| pair[0].seq == pair[1].seq + 1));
            for (expected, record) in (1..).zip(ledger.records(1).unwrap()) {
                assert_eq!(record.unwrap().record.seq, expected);
            }
        }
        let mut written: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        written.sort_unstable();
        let read: Vec<_> = all(&ledger).iter().map(|record| (record.seq, record.at - 1_000)).collect();
        assert_eq!(read, written);
    });
    drop(ledger);
    let report = verify(&path, Some(&key()), None).unwrap();
    assert_eq!((report.problem, report.records), (None, 1600));
}
