//! The blocks of a tar archive: POSIX ustar with pax extensions (pax(1), "ustar Interchange Format"), and on reading
//! also the long names of GNU tar. No I/O but that of the data pipe.
//!
//! ```text
//! 0    100  108  116  124   136    148    156  157       257   263  265    297    329  337  345
//! | name | mode | uid | gid | size | mtime | sum | type | link | magic | ver | uname | gname | dev | dev | prefix |
//! ```

use core::ops::Range;

use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    io::{Errno, read, write},
};

/// Bytes of a block, and of a header.
pub(super) const BLOCK: usize = 512;
pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
pub(super) const SUM: Range<usize> = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Range<usize> = 157..257;
pub(super) const MAGIC: Range<usize> = 257..265;
pub(super) const UNAME: Range<usize> = 265..297;
pub(super) const GNAME: Range<usize> = 297..329;
pub(super) const PREFIX: Range<usize> = 345..500;

/// The sum of a header's bytes, its own field taken as spaces.
pub(super) fn sum(header: &[u8; BLOCK]) -> u64 {
    let bytes = header.iter().enumerate();
    bytes.map(|(at, byte)| u64::from(if SUM.contains(&at) { b' ' } else { *byte })).sum()
}

/// Writes a number in octal with a NUL after it. False when it does not fit.
pub(super) fn put_octal(field: &mut [u8], value: u64) -> bool {
    let mut rest = value;
    let Some((last, digits)) = field.split_last_mut() else { return false };
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    rest == 0
}

/// Reads a number: octal between spaces and NULs, or GNU's base 256.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    let (first, others) = field.split_first()?;
    if first & 0x80 != 0 {
        // Negative ones (a time before 1970) begin with 0xff: not a size.
        if *first != 0x80 {
            return None;
        }
        return others.iter().try_fold(0_u64, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(text.len());
    text[..end].iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A field of text up to its NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// Bytes that fill the last block of a content.
pub(super) const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Appends a pax record, `LENGTH KEY=VALUE\n`; LENGTH counts itself. False when it does not fit.
pub(super) fn put_record(buffer: &mut [u8], len: &mut usize, key: &[u8], value: &[u8]) -> bool {
    let body = key.len() + value.len() + 3;
    let mut total = body + 1;
    while decimal_len(total) + body != total {
        total = decimal_len(total) + body;
    }
    let Some(space) = buffer.get_mut(*len..*len + total) else { return false };
    let mut rest = total;
    let digits = decimal_len(total);
    for digit in space[..digits].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let mut at = digits;
    for part in [&b" "[..], key, b"=", value, b"\n"] {
        space[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    *len += total;
    true
}

const fn decimal_len(number: usize) -> usize {
    number.ilog10() as usize + 1
}

/// Takes the next pax record apart: key, value, and what follows.
pub(super) fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let total = decimal(&bytes[..space])?;
    let (record, rest) = bytes.split_at_checked(usize::try_from(total).ok()?)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

/// A decimal number of digits only.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Seconds and nanoseconds of a pax time such as `1700000000.25`; digits past the ninth are dropped.
pub(super) fn time(value: &[u8]) -> Option<(u64, u32)> {
    let whole = value.iter().position(|byte| *byte == b'.').unwrap_or(value.len());
    let seconds = decimal(&value[..whole])?;
    let mut nanos = 0;
    for place in 1..=9 {
        nanos = nanos * 10
            + match value.get(whole + place) {
                None => 0,
                Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
                Some(_) => return None,
            };
    }
    Some((seconds, nanos))
}

/// Waits until the pipe is ready, should the server have made it not blocking.
pub(super) fn wait_for(pipe: &OwnedFd, events: PollFlags) {
    let mut fds = [PollFd::new(pipe, events)];
    let _ = poll(&mut fds, None);
}

/// Writes all of `bytes`.
pub(super) fn put(pipe: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(pipe, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::AGAIN) => wait_for(pipe, PollFlags::OUT),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads some bytes; 0 at the end.
pub(super) fn get(pipe: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match read(pipe, &mut *buffer) {
            Err(Errno::AGAIN) => wait_for(pipe, PollFlags::IN),
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_and_nothing_else() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(0x2_0000_0000));
        assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(&[0xff; 12]), None);
    }

    #[test]
    fn an_octal_field_comes_back_or_is_refused() {
        let mut field = [0; 12];
        assert!(put_octal(&mut field, 0o77_777_777_777));
        assert_eq!(number(&field), Some(0o77_777_777_777));
        assert!(put_octal(&mut field, (1 << 33) - 1));
        assert!(!put_octal(&mut field, 1 << 33));
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for len in [1, 2, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 980, 985, 990, 995] {
            let (mut buffer, mut end) = ([0; 2048], 0);
            let value = vec![b'v'; len];
            assert!(put_record(&mut buffer, &mut end, b"path", &value));
            assert!(put_record(&mut buffer, &mut end, b"size", b"1"));
            let (key, got, rest) = record(&buffer[..end]).unwrap();
            assert_eq!((key, got), (&b"path"[..], &value[..]));
            assert_eq!(record(rest).unwrap(), (&b"size"[..], &b"1"[..], &b""[..]));
        }
    }

    #[test]
    fn times_have_nine_places() {
        assert_eq!(time(b"17"), Some((17, 0)));
        assert_eq!(time(b"17.25"), Some((17, 250_000_000)));
        assert_eq!(time(b"17.0000000019"), Some((17, 1)));
        assert_eq!(time(b"-1"), None);
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for bytes in [&b""[..], b"9", b"99 path=a\n", b"0 path=a\n", b"4 a=\n", b"6 abcd", b"x path=a\n", b"+9 path=\n"]
        {
            assert!(record(bytes).is_none(), "{}", bytes.escape_ascii());
        }
    }
}
