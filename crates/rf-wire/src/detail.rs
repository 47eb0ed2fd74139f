//! File operations in detail: the same orders as [`crate::init::file_op`] with [`flag::DETAIL`], for who wants to know
//! more of a file and does not know where the user's home is.
//!
//! With the flag a path may be empty, `~` or begin with `~/` (the user's home), and what is relative begins there. What
//! differs beside:
//!
//! | operation | in detail |
//! |---|---|
//! | `READ` | the path of `OPENED` is absolute |
//! | `WRITE` | parents are made; truncates in place; the file is given to the user; `b` is the attributes that it is to have and no others, each `name=value` and a line feed; the path of `OPENED` is absolute |
//! | `LIST` | a `DETAIL` of the directory with its absolute path, then one of each entry with its path below it, `DONE` |
//! | `STAT` | a `DETAIL` with the absolute path, never following, then `DONE` |
//! | `MAKE_DIR` | parents are made; `EEXIST` for a directory that is there, `ENOTDIR` for another file; then as `STAT` |
//! | `MOVE` | parents of the target are made and a file there is replaced; then as `STAT` of the target |
//! | `REMOVE` | with all in it |
//! | `WATCH` | directories only; a `DETAIL` of the directory, `DONE`, then `CHANGED`; a byte from the server is answered by `DONE` once all that happened before was told |

use crate::init::{Entry, Malformed, Reader, Strings, Writer};

/// Bits of [`crate::init::File::flags`] above the operation's own.
pub mod flag {
    /// In detail.
    pub const DETAIL: u32 = 1 << 1;
    /// `WATCH`: also on a file system of another machine or program, where the kernel does not see every change.
    pub const NETWORK: u32 = 1 << 2;
    /// `WATCH`: every `CHANGED` comes with a `DETAIL` of what is there now.
    pub const ENTRIES: u32 = 1 << 3;
}

/// Kinds of messages on the reply socket, beside those of [`crate::init::file_answer`].
pub mod answer {
    /// [`super::Detail`].
    pub const DETAIL: u16 = 101;
    /// `mask: u32` (bits of [`crate::init::change`], where what was renamed hither is made), a string, the path below the
    /// watched directory, `described: u32`, and if that is 1 a [`super::Detail`] of it.
    pub const CHANGED: u16 = 102;
}

/// What the names of attributes begin with that are told and set.
pub const ATTRIBUTE_PREFIX: &[u8] = b"user.e2b.";
/// Most bytes of all attributes of a file that are told, names and values.
pub const ATTRIBUTES_BYTES_MAX: usize = 8192;
/// Most attributes of a file that are told.
pub const ATTRIBUTES_MAX: usize = 256;

/// A file, described.
#[derive(Clone, Debug)]
pub struct Detail<'a> {
    /// What is there itself, links not followed.
    pub entry: Entry<'a>,
    /// `st_mode` of what a link leads to, 0 where that is nothing; of other files the same as the entry's.
    pub target_mode: u32,
    /// Names of owner and group; empty where they have none.
    pub owner: &'a [u8],
    /// As `owner`.
    pub group: &'a [u8],
    /// The absolute path that a link leads to at last; else empty.
    pub resolved: &'a [u8],
    /// `name=value` of each attribute, names without [`ATTRIBUTE_PREFIX`]. When written, the list as it lies in the
    /// message.
    pub attributes: Attributes<'a>,
}

/// Attributes, read or to be written.
#[derive(Clone, Debug)]
pub enum Attributes<'a> {
    /// As read; each string with its NUL.
    Read(Strings<'a>),
    /// To be written: how many, and their strings as they lie in the message.
    Raw(u32, &'a [u8]),
}

impl<'a> Detail<'a> {
    /// Reads the body; the strings come without their NUL.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let without_nul = |bytes: &'a [u8]| &bytes[..bytes.len() - 1];
        Ok(Self {
            entry: Entry::read(reader)?,
            target_mode: reader.u32()?,
            owner: without_nul(reader.string()?),
            group: without_nul(reader.string()?),
            resolved: without_nul(reader.string()?),
            attributes: Attributes::Read(Strings::read(reader)?),
        })
    }

    /// Writes the body; strings are given without their NUL. Attributes that were read are not written again.
    pub fn write(&self, writer: &mut Writer<'_>) {
        self.entry.write(writer);
        writer.u32(self.target_mode);
        for text in [self.owner, self.group, self.resolved] {
            writer.string(text);
        }
        match self.attributes {
            Attributes::Raw(count, strings) => {
                writer.u32(count);
                writer.raw(strings);
            }
            Attributes::Read(_) => writer.u32(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_comes_back_as_it_was_sent_and_cut_anywhere_is_malformed() {
        let mut strings = [0; 64];
        let mut list = Writer::new(&mut strings, 0, 0);
        list.string(b"a=1");
        list.string(b"b=");
        let len = list.finish().unwrap();
        let entry = Entry { mode: 1, uid: 2, gid: 3, size: 4, modified_ms: 5, path: b"/p", target: b"t" };
        let raw = Attributes::Raw(2, &strings[crate::init::HEADER_LEN..len]);
        let sent = Detail { entry, target_mode: 6, owner: b"o", group: b"", resolved: b"/r", attributes: raw };
        let mut buffer = [0; 256];
        let mut writer = Writer::new(&mut buffer, answer::DETAIL, 7);
        sent.write(&mut writer);
        let len = writer.finish().unwrap();
        let (_, mut reader) = Reader::message(&buffer[..len]).unwrap();
        let got = Detail::read(&mut reader).unwrap();
        assert!(reader.is_empty());
        assert_eq!((got.entry.path, got.target_mode, got.owner, got.resolved), (&b"/p"[..], 6, &b"o"[..], &b"/r"[..]));
        let Attributes::Read(attributes) = got.attributes else { panic!("not read") };
        assert_eq!(attributes.collect::<Vec<_>>(), [&b"a=1\0"[..], b"b=\0"]);
        for cut in 0..len {
            let whole = Reader::message(&buffer[..cut]).and_then(|(_, mut reader)| Detail::read(&mut reader).map(drop));
            assert!(whole.is_err(), "{cut}");
        }
    }
}
