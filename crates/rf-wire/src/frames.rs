//! The frames of an exec's stream between server and client: in the body of an HTTP answer of the media type
//! [`MEDIA_TYPE`], and one in each binary message of a WebSocket, both ways.
//!
//! ```text
//! 0      1         4            8
//! | kind | 0, 0, 0 | length: u32 BE | payload: length bytes ...
//! ```
//!
//! Output is byte-exact: a payload is what the program wrote, never re-encoded. The first frame from the server is
//! [`STARTED`] or [`FAULT`], the last is [`EXIT`] or [`FAULT`]; a stream without either was cut, and how the exec
//! ended can be asked for by its id.

/// The media type of a body of frames.
pub const MEDIA_TYPE: &str = "application/vnd.ringfence.frames";
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;
/// Longest payload that either side accepts, bytes.
pub const PAYLOAD_MAX: usize = 4 * 1024 * 1024;

/// From the server: the exec runs; JSON with its id, place and pid.
pub const STARTED: u8 = 0;
/// From the server: bytes of standard output (with a terminal: all that it prints).
pub const STDOUT: u8 = 1;
/// From the server: bytes of standard error.
pub const STDERR: u8 = 2;
/// From the server, last: how the exec ended; JSON.
pub const EXIT: u8 = 3;
/// From the server, last: a fault; JSON as the body of a refused request.
pub const FAULT: u8 = 4;
/// From the client: bytes for standard input.
pub const STDIN: u8 = 16;
/// From the client: standard input ends; no payload. On a terminal its end-of-file character is typed.
pub const STDIN_END: u8 = 17;
/// From the client: the terminal's size; JSON `{"rows":24,"cols":80}`.
pub const RESIZE: u8 = 18;
/// From the client: a signal; JSON `{"signal":15,"scope":"tree"}`.
pub const SIGNAL: u8 = 19;

/// Why a frame cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameError {
    /// Fewer bytes than a header, or than the header promised.
    Short,
    /// The three bytes after the kind are not 0.
    Reserved,
    /// The payload is longer than [`PAYLOAD_MAX`].
    TooLong,
}

/// The header of a frame whose payload is `len` bytes.
///
/// # Panics
/// If `len` is above [`PAYLOAD_MAX`]: whoever makes a frame cuts its payload first.
#[must_use]
pub fn header(kind: u8, len: usize) -> [u8; HEADER_LEN] {
    assert!(len <= PAYLOAD_MAX, "a frame's payload was not cut");
    // INVARIANT: PAYLOAD_MAX fits 32 bits.
    let [a, b, c, d] = (len as u32).to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// Reads a header: kind and payload length.
///
/// # Errors
/// When it is short, its reserved bytes are not 0 or its payload would be too long.
pub fn parse_header(bytes: &[u8]) -> Result<(u8, usize), FrameError> {
    let [kind, r0, r1, r2, a, b, c, d, ..] = *bytes else { return Err(FrameError::Short) };
    if [r0, r1, r2] != [0; 3] {
        return Err(FrameError::Reserved);
    }
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len > PAYLOAD_MAX { Err(FrameError::TooLong) } else { Ok((kind, len)) }
}

/// Reads a message that is exactly one frame.
///
/// # Errors
/// As [`parse_header`]; also `Short` when the message's length is not the one that its header says.
pub fn parse_message(bytes: &[u8]) -> Result<(u8, &[u8]), FrameError> {
    let (kind, len) = parse_header(bytes)?;
    let payload = bytes.get(HEADER_LEN..).ok_or(FrameError::Short)?;
    if payload.len() == len { Ok((kind, payload)) } else { Err(FrameError::Short) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_made() {
        let mut message = header(STDOUT, 3).to_vec();
        message.extend_from_slice(b"\xff\0x");
        assert_eq!(parse_message(&message), Ok((STDOUT, &b"\xff\0x"[..])));
        assert_eq!(message[..HEADER_LEN], [1, 0, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn a_frame_that_is_cut_or_stretched_is_refused() {
        let mut message = header(STDIN, 2).to_vec();
        message.extend_from_slice(b"ab");
        for cut in 0..message.len() {
            assert_eq!(parse_message(&message[..cut]), Err(FrameError::Short), "{cut}");
        }
        message.push(b'c');
        assert_eq!(parse_message(&message), Err(FrameError::Short));
    }

    #[test]
    fn reserved_bytes_and_long_payloads_are_refused() {
        assert_eq!(parse_header(&[0, 0, 1, 0, 0, 0, 0, 0]), Err(FrameError::Reserved));
        assert_eq!(parse_header(&[0, 0, 0, 0, 255, 255, 255, 255]), Err(FrameError::TooLong));
    }
}
