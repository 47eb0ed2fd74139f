//! Everything about templates that needs no launcher: the `host` template's tree ([`host`]) and unpacking a layer
//! beneath a directory ([`unpack`]).
//!
//! A template is an immutable recipe of a sandbox's root. This crate makes directories and streams; it mounts nothing,
//! keeps no list of templates and talks to no client.

pub mod host;
pub mod unpack;

/// Lower-case hex digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
