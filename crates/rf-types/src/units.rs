//! Sizes and times as numbers with their unit in the name.

/// Bytes in a kibibyte.
pub const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// Milliseconds since 1970-01-01T00:00:00Z, as stored and sent.
pub type UnixMs = u64;
