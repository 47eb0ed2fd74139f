//! The bytes of a line and the hashes that chain them.
//!
//! ```text
//! {"seq":7,"at":…,…,"prev":"<64 hex>"  ,"hash":"<64 hex>"  ,"seal":"<32 hex>"}  \n
//! └──────────── body ───────────────┘
//!        hash = BLAKE3(body)                 seal = keyed BLAKE3(hash), first 16 bytes
//! ```

use serde::{Deserialize, Serialize};

use crate::key::Sealer;

/// Longest line, line feed included; chosen, so that a reader needs one small buffer.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;

const HASH_KEY: &[u8] = b",\"hash\":\"";
const SEAL_KEY: &[u8] = b"\",\"seal\":\"";
const END: &[u8] = b"\"}";
/// Bytes of a line after its body, without the line feed.
const TAIL_BYTES: usize = HASH_KEY.len() + 64 + SEAL_KEY.len() + 32 + END.len();

/// Lower-case hex digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

/// The `N` bytes of exactly `2 * N` lower-case hex digits.
pub(crate) fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn hash_of(body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("ringfence ledger 2026 line");
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

/// What the first record of a ledger names as its predecessor.
pub(crate) fn genesis(chain: &str) -> [u8; 32] {
    blake3::derive_key("ringfence ledger 2026 genesis", chain.as_bytes())
}

/// Ends `line`, which holds a body without its closing brace, with its hash, seal and line feed; returns the hash.
pub(crate) fn close(line: &mut Vec<u8>, sealer: &Sealer) -> [u8; 32] {
    let hash = hash_of(line);
    line.extend_from_slice(HASH_KEY);
    line.extend_from_slice(hex(&hash).as_bytes());
    line.extend_from_slice(SEAL_KEY);
    line.extend_from_slice(hex(&sealer.record(&hash)).as_bytes());
    line.extend_from_slice(END);
    line.push(b'\n');
    hash
}

/// Why a line is not one that we wrote.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Broken {
    /// It has not the shape of a line.
    Shape,
    /// Its hash is not that of its bytes.
    Hash,
    /// Its seal was not made with this key.
    Seal,
}

/// Checks a line, without its line feed, by itself; returns its hash.
pub(crate) fn check(line: &[u8], sealer: Option<&Sealer>) -> Result<[u8; 32], Broken> {
    let body = line.len().checked_sub(TAIL_BYTES).ok_or(Broken::Shape)?;
    let (body, tail) = line.split_at(body);
    let tail = tail.strip_prefix(HASH_KEY).ok_or(Broken::Shape)?;
    let (hash, tail) = tail.split_at(64);
    let tail = tail.strip_prefix(SEAL_KEY).ok_or(Broken::Shape)?;
    let (seal, end) = tail.split_at(32);
    if end != END {
        return Err(Broken::Shape);
    }
    let hash = from_hex::<32>(hash).ok_or(Broken::Shape)?;
    let seal = from_hex::<16>(seal).ok_or(Broken::Shape)?;
    if hash_of(body) != hash {
        return Err(Broken::Hash);
    }
    if sealer.is_some_and(|sealer| !sealer.holds(&hash, &seal)) {
        return Err(Broken::Seal);
    }
    Ok(hash)
}

/// The first line of a segment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Header {
    /// The version of the format: 1.
    pub(crate) ledger: u32,
    /// The ledger's random name: 32 hex digits.
    pub(crate) chain: String,
    /// The segment's number, from 0 without a gap.
    pub(crate) segment: u32,
    /// The number of its first record.
    pub(crate) first_seq: u64,
    /// The hash of the record before that one, or the chain's genesis.
    pub(crate) prev: String,
}

impl Header {
    pub(crate) fn new(chain: &str, segment: u32, first_seq: u64, prev: &[u8; 32]) -> Self {
        Self { ledger: 1, chain: chain.to_owned(), segment, first_seq, prev: hex(prev) }
    }

    /// The header's whole line.
    pub(crate) fn line(&self, sealer: &Sealer) -> Vec<u8> {
        // A struct of numbers and strings always serializes.
        let mut line = serde_json::to_vec(self).expect("a header is plain data");
        line.pop();
        close(&mut line, sealer);
        line
    }
}

/// What places a record in the chain.
#[derive(Debug, Deserialize)]
pub(crate) struct Link {
    pub(crate) seq: u64,
    pub(crate) prev: String,
}

impl Link {
    pub(crate) fn of(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(crate) fn follows(&self, prev: &[u8; 32]) -> bool {
        from_hex::<32>(self.prev.as_bytes()).as_ref() == Some(prev)
    }
}

/// The file of segment `segment`.
pub(crate) fn segment_name(segment: u32) -> String {
    format!("{segment:08}.jsonl")
}

/// The numbers of the segments in `dir`, in order.
pub(crate) fn segments_in(dir: &std::path::Path) -> std::io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".jsonl")) else { continue };
        if stem.len() == 8
            && stem.bytes().all(|b| b.is_ascii_digit())
            && let Ok(number) = stem.parse()
        {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LedgerKey;

    #[test]
    fn every_byte_of_a_line_counts() {
        let sealer = LedgerKey::from_bytes([7; 32]).sealer();
        let mut line = br#"{"seq":1,"at":5,"prev":"00""#.to_vec();
        close(&mut line, &sealer);
        line.pop();
        assert!(check(&line, Some(&sealer)).is_ok());
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut wrong = line.clone();
                wrong[at] ^= 1 << bit;
                assert!(check(&wrong, Some(&sealer)).is_err(), "byte {at} bit {bit}");
            }
        }
        for cut in 0..line.len() {
            assert!(check(&line[..cut], Some(&sealer)).is_err());
        }
    }

    #[test]
    fn a_seal_of_another_key_does_not_hold() {
        let mut line = br#"{"seq":1,"prev":"00""#.to_vec();
        close(&mut line, &LedgerKey::from_bytes([7; 32]).sealer());
        line.pop();
        let other = LedgerKey::from_bytes([8; 32]).sealer();
        assert_eq!(check(&line, Some(&other)), Err(Broken::Seal));
        assert!(check(&line, None).is_ok());
    }

    #[test]
    fn hex_has_one_form() {
        assert_eq!(from_hex::<2>(b"0aff"), Some([0x0a, 0xff]));
        for wrong in [&b"0aF0"[..], b"0af", b"0aff0", b"+aff", b""] {
            assert_eq!(from_hex::<2>(wrong), None);
        }
    }
}
