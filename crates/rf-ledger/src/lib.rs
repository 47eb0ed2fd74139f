//! The append-only, hash-chained record of what was asked, decided and done.
//!
//! # What it holds against whom
//!
//! Each record names the hash of the one before it, and carries a seal: a keyed hash that only a holder of the
//! [`LedgerKey`] can make. The head file, sealed likewise, says how far the ledger reached when it last answered that a
//! record is durable. So somebody who can write the ledger's files but has **not** the key cannot change, drop,
//! reorder, insert or cut a record without [`verify`] finding it. Not held: somebody with the key (the server itself,
//! once taken over, can write a new history), and somebody who puts back an older copy of *all* the files, head
//! included (that of before the last commit can be made of the files themselves, whose head names it still); for that,
//! keep a head elsewhere now and then and give it to [`verify`] as an [`Anchor`].
//!
//! # Files
//!
//! ```text
//! ledger/
//!   lock            held (flock(2)) by the one process that writes
//!   head            two slots of 512 bytes at 0 and 4096, written in turn: how far the ledger is durable, sealed
//!   base            there once segments were let go: with which record the ledger begins, sealed
//!   00000000.jsonl  a header line, then one record a line; then, in the last segment only, zeros: room kept ahead
//!   00000000.idx    where each record of a finished segment lies; made again when it is missing or damaged
//!   00000001.jsonl  ...
//! ```
//!
//! A line is JSON with keys in a fixed order. `hash` is BLAKE3 over all bytes of the line before it, the previous
//! record's hash included; the checks work on bytes, so there is no second way to write the same record.
//!
//! # Durability
//!
//! [`Ledger::append`] hands the bytes to the kernel in the caller's thread and fails if it does not take them, so an
//! operation is refused before it starts. One thread makes records durable with one fdatasync(2) for all that wait; a
//! [`Ticket`] resolves when its record, and so every one before it, is covered. A failed fdatasync(2) closes the ledger
//! to all later appends until it is opened anew: the kernel may have dropped the dirty pages and would report success
//! the next time.
//!
//! The room for records is written ahead with zeros: on ext4 an fdatasync(2) inside it took 0.12 to 0.14 ms, and 0.17
//! to 0.19 ms where each append grew the file (measured, 2 cores, virtual disk); and a full disk shows before the
//! record is accepted.

mod chain;
mod export;
mod head;
mod index;
mod key;
mod lines;
mod page;
mod record;
mod recover;
mod redact;
mod retain;
mod verify;
mod writer;

pub use export::{Exported, Records};
pub use key::LedgerKey;
pub use page::{Filter, Order, Page, Query};
pub use record::{By, Entry, Event, Kind, Outcome, Record};
pub use redact::Redactor;
pub use retain::Retained;
pub use verify::{Anchor, Problem, Report, Wrong, verify, verify_with_archive};
pub use writer::{Config, Ledger, Status, Ticket};
