//! How long an operation waits for the ledger: an intent and a result are appended, and the result is awaited, by one
//! task alone and by 4 and 64 at once. `cargo bench -p rf-ledger`; the directory is `RF_BENCH_DIR`, else the system's
//! temporary one, and should be on the disk that the ledger will be on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rf_ledger::{By, Config, Entry, Event, Ledger, LedgerKey, Outcome, verify};
use rf_types::{RequestId, UserId};

fn entry(event: Event) -> Entry {
    Entry::new(1_700_000_000_000, "exec", event)
        .request(RequestId::random())
        .user(UserId::from_bits(1), "somebody".parse().expect("a username"))
        .by(By::new("key", "key_00000000000000000000000000000001"))
        .subject("exe_00000000000000000000000000000001")
        .detail("argv", vec!["/bin/true"])
}

fn main() {
    let base = std::env::var_os("RF_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let key = LedgerKey::from_bytes([1; 32]);
    let ledger = Arc::new(Ledger::open(Config::new(dir.path().join("ledger"), key.clone()), 1).expect("opens"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let mut alone: Vec<Duration> = (0..5000)
        .map(|_| {
            let start = Instant::now();
            ledger.append(&entry(Event::Intent)).expect("written");
            start.elapsed()
        })
        .collect();
    show("append only", &mut alone, None);
    for tasks in [1_usize, 4, 64] {
        let rounds = 3000 / tasks.min(16);
        let commits = ledger.status().commits;
        let start = Instant::now();
        let mut times: Vec<Duration> = runtime.block_on(async {
            let handles: Vec<_> = (0..tasks)
                .map(|_| {
                    let ledger = Arc::clone(&ledger);
                    tokio::spawn(async move {
                        let mut times = Vec::with_capacity(rounds);
                        for _ in 0..rounds {
                            let start = Instant::now();
                            ledger.append(&entry(Event::Intent)).expect("written");
                            let result = ledger.append(&entry(Event::Result(Outcome::default()))).expect("written");
                            result.durable().await.expect("durable");
                            times.push(start.elapsed());
                        }
                        times
                    })
                })
                .collect();
            let mut all = Vec::new();
            for handle in handles {
                all.extend(handle.await.expect("did not panic"));
            }
            all
        });
        let seconds = start.elapsed().as_secs_f64();
        let pairs = times.len();
        let commits = ledger.status().commits - commits;
        let more = format!("{:.0} pairs/s, {commits} commits for {pairs} pairs", pairs as f64 / seconds);
        show(&format!("intent + result, durable, {tasks} at once"), &mut times, Some(more));
    }
    let path = ledger.dir().to_owned();
    drop(ledger);
    let start = Instant::now();
    let report = verify(&path, Some(&key), None).expect("readable");
    assert_eq!(report.problem, None);
    println!("verify: {} records in {:?}", report.records, start.elapsed());
}

fn show(what: &str, times: &mut [Duration], more: Option<String>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?} {}", at(0.5), at(0.9), at(0.99), more.unwrap_or_default());
}
