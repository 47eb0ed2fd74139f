//! The head file: how far the ledger is durable, sealed, so that a cut at its end shows.
//!
//! Two slots are written in turn, each within one disk sector, so that one of them is whole whatever moment the power
//! fails. A head is written after the fdatasync(2) that covers its record and before anybody is told; it is itself
//! synced only when a segment ends or the ledger closes. So after a loss of power it may name an older record than the
//! last durable one, and never a newer.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    chain::{from_hex, hex},
    key::Sealer,
};

const NAME: &str = "head";
/// A slot's bytes: one sector of any disk, which is written whole or not at all.
const SLOT_BYTES: usize = 512;
const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// How far a ledger reached.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Head {
    /// The ledger's random name.
    pub(crate) chain: String,
    /// The segment that holds the record, or the first one while there is none.
    pub(crate) segment: u32,
    /// The last durable record, or 0.
    pub(crate) seq: u64,
    /// Its hash, or the genesis.
    pub(crate) hash: String,
}

#[derive(Deserialize, Serialize)]
struct Sealed {
    #[serde(flatten)]
    head: Head,
    seal: String,
}

/// What the head file says.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is none.
    Absent,
    /// The newest head whose seal holds (or, without a key, that can be read), and whether the other slot is damaged.
    Head { head: Head, damaged: bool },
    /// Nothing in it holds.
    Damaged,
}

/// The open head file.
pub(crate) struct HeadFile {
    file: File,
    slot: usize,
}

impl HeadFile {
    /// Makes the file with `head` in both slots, durable and at once: no crash leaves a half one.
    pub(crate) fn create(dir: &Path, head: &Head, sealer: &Sealer) -> io::Result<Self> {
        let beside = dir.join("head.new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        let mut this = Self { file, slot: 0 };
        this.write(head, sealer)?;
        this.write(head, sealer)?;
        this.file.sync_all()?;
        std::fs::rename(&beside, dir.join(NAME))?;
        File::open(dir)?.sync_all()?;
        Ok(this)
    }

    /// Opens the file that is there.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(dir.join(NAME))?, slot: 0 })
    }

    /// Writes `head` over the older slot.
    pub(crate) fn write(&mut self, head: &Head, sealer: &Sealer) -> io::Result<()> {
        let text = text_of(head);
        let sealed = Sealed { head: head.clone(), seal: hex(sealer.head(&text).as_bytes()) };
        let mut slot = serde_json::to_vec(&sealed).expect("a head is plain data");
        slot.push(b'\n');
        assert!(slot.len() <= SLOT_BYTES, "a head of fixed-width hex and three numbers fits a sector");
        slot.resize(SLOT_BYTES, 0);
        self.file.write_all_at(&slot, SLOT_OFFSETS[self.slot])?;
        self.slot ^= 1;
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn text_of(head: &Head) -> Vec<u8> {
    serde_json::to_vec(head).expect("a head is plain data")
}

/// Reads the head of the ledger in `dir`.
pub(crate) fn read(dir: &Path, sealer: Option<&Sealer>) -> io::Result<Found> {
    let mut tries = 0;
    loop {
        let found = read_once(dir, sealer)?;
        let whole = matches!(found, Found::Absent | Found::Head { damaged: false, .. });
        // A live ledger may be writing the slot right now, and read(2) may see a part of it.
        tries += 1;
        if whole || tries == 5 {
            return Ok(found);
        }
        std::thread::yield_now();
    }
}

fn read_once(dir: &Path, sealer: Option<&Sealer>) -> io::Result<Found> {
    let file = match File::open(dir.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(error),
    };
    let mut damaged = file.metadata()?.len() != SLOT_OFFSETS[1] + SLOT_BYTES as u64;
    let mut newest: Option<Head> = None;
    for offset in SLOT_OFFSETS {
        let mut slot = [0; SLOT_BYTES];
        let head = match file.read_exact_at(&mut slot, offset) {
            Ok(()) => parse(&slot, sealer),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        match head {
            None => damaged = true,
            Some(head) => {
                if newest.as_ref().is_none_or(|newest| newest.seq < head.seq) {
                    newest = Some(head);
                }
            }
        }
    }
    Ok(newest.map_or(Found::Damaged, |head| Found::Head { head, damaged }))
}

fn parse(slot: &[u8], sealer: Option<&Sealer>) -> Option<Head> {
    let end = slot.iter().position(|&b| b == b'\n')?;
    if slot[end + 1..].iter().any(|&b| b != 0) {
        return None;
    }
    let sealed: Sealed = serde_json::from_slice(&slot[..end]).ok()?;
    let seal = from_hex::<32>(sealed.seal.as_bytes())?;
    from_hex::<32>(sealed.head.hash.as_bytes())?;
    // Written anew and compared, so that no byte of the slot is left unchecked.
    if serde_json::to_vec(&sealed).ok()? != slot[..end] {
        return None;
    }
    // `blake3::Hash` compares in constant time.
    let holds = sealer.is_none_or(|sealer| sealer.head(&text_of(&sealed.head)) == seal);
    holds.then_some(sealed.head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LedgerKey;

    fn head(seq: u64) -> Head {
        Head { chain: "c".repeat(32), segment: 0, seq, hash: hex(&[seq as u8; 32]) }
    }

    #[test]
    fn the_newest_slot_counts_and_a_torn_one_leaves_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = LedgerKey::from_bytes([1; 32]).sealer();
        assert!(matches!(read(dir.path(), Some(&sealer)).unwrap(), Found::Absent));
        let mut file = HeadFile::create(dir.path(), &head(0), &sealer).unwrap();
        for seq in 1..10 {
            file.write(&head(seq), &sealer).unwrap();
            let Found::Head { head: found, damaged: false } = read(dir.path(), Some(&sealer)).unwrap() else {
                panic!()
            };
            assert_eq!(found, head(seq));
        }
        // Nine writes after two of the same: the newest is in the slot at 0.
        file.file.write_all_at(b"x", 0).unwrap();
        let Found::Head { head: found, damaged: true } = read(dir.path(), Some(&sealer)).unwrap() else { panic!() };
        assert_eq!(found, head(8));
        file.file.write_all_at(b"x", 4096).unwrap();
        assert!(matches!(read(dir.path(), Some(&sealer)).unwrap(), Found::Damaged));
    }

    #[test]
    fn a_head_of_another_key_does_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        HeadFile::create(dir.path(), &head(3), &LedgerKey::from_bytes([1; 32]).sealer()).unwrap();
        let other = LedgerKey::from_bytes([2; 32]).sealer();
        assert!(matches!(read(dir.path(), Some(&other)).unwrap(), Found::Damaged));
    }
}
