//! Short names put together, and directory entries taken apart.

use core::ffi::CStr;

use rf_sys::guest::cstr;

/// A short string with a NUL, put together from parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<const N: usize>([u8; N]);

impl<const N: usize> Name<N> {
    /// No text.
    pub(crate) const EMPTY: Self = Self([0; N]);

    /// The parts one after the other, if they fit with a NUL.
    pub(crate) fn of(parts: &[&[u8]]) -> Option<Self> {
        let mut name = [0; N];
        let mut len = 0;
        for part in parts {
            name[..N - 1].get_mut(len..len + part.len())?.copy_from_slice(part);
            len += part.len();
        }
        Some(Self(name))
    }

    /// `prefix` and a number in decimal.
    pub(crate) fn numbered(prefix: &[u8], number: u32) -> Option<Self> {
        let mut digits = [0; 10];
        let mut rest = number;
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        Self::of(&[prefix, &digits[at..]])
    }

    pub(crate) fn cstr(&self) -> &CStr {
        cstr(&self.0)
    }
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirEntry<'a> {
    /// Its name.
    pub(crate) name: &'a CStr,
    /// `DT_*` (readdir(3)); may be `DT_UNKNOWN`.
    pub(crate) kind: u8,
    /// Bytes up to the next entry.
    pub(crate) len: usize,
}

/// The entries in a buffer filled by getdents64(2), without `.` and `..`.
#[derive(Clone, Debug)]
pub(crate) struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Bytes not yet gone through.
    pub(crate) const fn rest(&self) -> usize {
        self.0.len()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = DirEntry<'a>;

    fn next(&mut self) -> Option<DirEntry<'a>> {
        loop {
            // struct linux_dirent64: inode 8, offset 8, length 2, kind 1, name.
            let len = usize::from(u16::from_le_bytes([*self.0.get(16)?, *self.0.get(17)?]));
            let kind = *self.0.get(18)?;
            let name = cstr(self.0.get(19..len)?);
            self.0 = &self.0[len..];
            if !matches!(name.to_bytes(), b"" | b"." | b"..") {
                return Some(DirEntry { name, kind, len });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_together_and_refused_when_too_long() {
        assert_eq!(Name::<8>::of(&[b"abc", b"defg"]).unwrap().cstr(), c"abcdefg");
        assert!(Name::<8>::of(&[b"abcd", b"efgh"]).is_none());
        assert_eq!(Name::<32>::numbered(b"/proc/self/fd/", 0).unwrap().cstr(), c"/proc/self/fd/0");
        assert_eq!(Name::<32>::numbered(b"n", u32::MAX).unwrap().cstr(), c"n4294967295");
    }
}
