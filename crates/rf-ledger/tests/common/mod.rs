//! What the tests of the ledger share.

use std::path::Path;

use rf_ledger::{By, Config, Entry, Event, Ledger, LedgerKey, Outcome};
use rf_types::{PlaceRef, RequestId, SandboxId, UserId, Username};

pub(crate) fn key() -> LedgerKey {
    LedgerKey::from_bytes([42; 32])
}

pub(crate) fn config(dir: &Path, segment_bytes_max: u64) -> Config {
    Config { segment_bytes_max, ..Config::new(dir.join("ledger"), key()) }
}

pub(crate) fn open(dir: &Path, segment_bytes_max: u64) -> Ledger {
    Ledger::open(config(dir, segment_bytes_max), 1).unwrap()
}

pub(crate) fn user(n: u32) -> (UserId, Username) {
    (UserId::from_bits(n.into()), format!("user-{n}").parse().unwrap())
}

/// The `n`th of many entries that differ.
pub(crate) fn entry(n: u32) -> Entry {
    let (id, name) = user(n % 3 + 1);
    let event = match n % 3 {
        0 => Event::Decision(None),
        1 => Event::Intent,
        _ => Event::Result(Outcome { duration_us: n.into(), exit_code: Some(0), ..Outcome::default() }),
    };
    Entry::new(1_000 + u64::from(n), if n.is_multiple_of(2) { "exec" } else { "file_read" }, event)
        .request(RequestId::from_bits(u128::from(n / 3) + 1))
        .user(id, name)
        .by(By::new("key", "key_1"))
        .place(PlaceRef::Sandbox(SandboxId::from_bits(u128::from(n % 5) + 1)))
        .detail("argv", vec!["true".to_owned(), n.to_string()])
}
