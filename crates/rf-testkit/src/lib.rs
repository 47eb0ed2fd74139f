//! What tests share: permits, the conformance suite of places, a server for joined machines on loopback.
//!
//! Never a normal dependency of anything.

pub mod conformance;
pub mod machines;
pub mod permits;

/// Bytes that no coincidence makes: a generator of xorshift kind, always from the same start.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
