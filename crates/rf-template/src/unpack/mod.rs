//! Unpacks one layer beneath a directory: hostile bytes in, a tree and its digest out.
//!
//! It runs as a process of its own ([`unpacker_main`]) that the warden starts in a user namespace without rights on
//! the host; and still nothing here relies on that: no entry reaches anything that is not beneath the directory, and
//! every number that the archive names has a bound ([`Caps`]).
//!
//! | in the archive | becomes |
//! |---|---|
//! | file, directory, symbolic link, FIFO | itself; a later one of the same name wins |
//! | hard link | a link to what the archive made before; never to anything else |
//! | `.wh.NAME` | a character device 0:0 named `NAME`: overlayfs's whiteout |
//! | `.wh..wh..opq` | `user.overlay.opaque` = `y` on its directory |
//! | other `.wh..wh.*` | nothing: notes of aufs, counted |
//! | block or character device | nothing, counted; a device 0:0 is refused: it would be a whiteout in disguise |
//! | extended attributes | nothing, counted; `*.overlay.*` is refused: it would steer overlayfs |
//! | set-user-id, set-group-id of a file | cleared: they do nothing in a sandbox |
//! | `proc`, `sys`, `dev` that is no directory | refused: the sandbox's own file systems are mounted there |
//! | owner beyond the mapped ids | `nobody` (65534), counted |
//!
//! [`stream`] turns compressed bytes into tar bytes, [`entry`] turns those into entries, [`tree`] makes the files.

mod entry;
mod process;
mod stream;
mod tree;

use std::{io::Read, os::fd::BorrowedFd};

use rf_types::{Code, Fault};
use serde::{Deserialize, Serialize};

pub use self::{
    process::{Order, REPORT_BYTES_MAX, Report, unpacker_main},
    stream::BoundKind,
};
use self::{stream::Tar, tree::Tree};

/// Bounds of one layer. All are hard: the first that is passed ends the unpacking.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Bytes of the uncompressed archive.
    pub tar_bytes_max: u64,
    /// Bytes of all files together, as written.
    pub files_bytes_max: u64,
    /// Bytes of one file, holes included.
    pub file_bytes_max: u64,
    /// Entries, made directories that have no entry included.
    pub entries_max: u64,
    /// Parts of a path after its links are followed; 1 to 256.
    pub depth_max: u32,
    /// Bytes of a path and of a link's text; 1 to 4095.
    pub path_bytes_max: u32,
    /// Bytes of one extended header, extended attributes included.
    pub header_bytes_max: u32,
    /// How many times more uncompressed than compressed bytes there may be, once there are [`RATIO_FLOOR_BYTES`].
    pub ratio_max: u32,
    /// Whether files keep the archive's owners, which takes a range of 65536 ids. Without, all are the unpacker's own,
    /// and it may read, write and search every directory, so that it can remove them.
    pub owners_kept: bool,
}

/// Below this many uncompressed bytes any ratio is allowed: an empty database of zeros is no bomb. Chosen.
pub const RATIO_FLOOR_BYTES: u64 = 64 << 20;

impl Caps {
    /// The caps of a layer for which nobody asked for others. Chosen: the largest public images (machine learning) have
    /// layers of about 10 GiB and 300,000 files; the best honest ratio measured on public layers is below 50.
    pub const STANDARD: Self = Self {
        tar_bytes_max: 32 << 30,
        files_bytes_max: 24 << 30,
        file_bytes_max: 12 << 30,
        entries_max: 1_000_000,
        depth_max: 128,
        path_bytes_max: 4095,
        header_bytes_max: 1 << 20,
        ratio_max: 250,
        owners_kept: true,
    };
}

/// A layer that was unpacked whole and is durable.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Unpacked {
    /// Bytes of files written.
    pub bytes: u64,
    /// Things made: files, directories, links, FIFOs, whiteouts.
    pub files: u64,
    /// `sha256:` and 64 hex digits of the uncompressed archive.
    pub diff_id: String,
    /// Device nodes left out.
    pub devices_skipped: u64,
    /// Extended attributes left out.
    pub xattrs_skipped: u64,
    /// Notes of aufs left out.
    pub notes_skipped: u64,
    /// Things given to `nobody`.
    pub owners_squashed: u64,
}

/// Why a layer was not unpacked. What was made until then is the caller's to remove.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The compressed stream cannot be read.
    #[error("the layer's bytes cannot be read or decompressed")]
    Read(#[source] std::io::Error),
    /// It is compressed in a way that this version does not know.
    #[error("the layer is compressed with {0}, which is not supported; gzip, zstd and none are")]
    Compression(&'static str),
    /// The archive ends in the middle.
    #[error("the layer's archive is cut off")]
    Truncated,
    /// The archive's structure is wrong.
    #[error("the layer's archive is malformed: {0}")]
    Malformed(&'static str),
    /// A bound was passed.
    #[error("the layer has more than {max} {what}")]
    Bound {
        /// Which.
        what: BoundKind,
        /// How much is allowed.
        max: u64,
    },
    /// An entry asks for something that no honest image needs. The name has at most 200 printable characters.
    #[error("the layer's entry `{name}` is refused: {why}")]
    Refused {
        /// The entry.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another archive than the one that was asked for.
    #[error("the layer's digest is {found}, not {expected}")]
    Digest {
        /// What was asked for.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The kernel refused to make something.
    #[error("cannot make the layer's entry `{name}`: {errno}")]
    Make {
        /// The entry.
        name: String,
        /// What the kernel said.
        errno: rustix::io::Errno,
    },
}

impl UnpackError {
    /// As a client gets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        use rustix::io::Errno;
        let mut message = self.to_string();
        if let Self::Read(cause) = self {
            message = format!("{message}: {cause}");
        }
        let (code, hint) = match self {
            Self::Make { errno: Errno::NOSPC | Errno::DQUOT, .. } => {
                (Code::ServerBusy, "the server's disk is full; free some and import the template again")
            }
            Self::Bound { .. } => {
                (Code::TooLarge, "use a smaller image, or raise the template caps in the configuration")
            }
            Self::Make { .. } => (Code::TemplateUnavailable, "see the warden's log"),
            Self::Read(_) | Self::Truncated | Self::Digest { .. } => {
                (Code::TemplateUnavailable, "the image may be damaged; fetch it again")
            }
            Self::Compression(_) | Self::Malformed(_) | Self::Refused { .. } => {
                (Code::TemplateUnavailable, "rebuild the image with a standard tool, or do not trust it")
            }
        };
        Fault::new(code, message, hint)
    }
}

/// Unpacks one layer (tar; plain, gzip or zstd, found out by its first bytes) into an empty directory.
///
/// `expect` is the digest of the uncompressed archive, `sha256:` and 64 hex digits. The tree is on disk (syncfs(2))
/// when this returns. No other process may write in the directory meanwhile.
///
/// # Errors
/// See [`UnpackError`]; the directory then holds a part.
pub fn unpack(
    input: impl Read,
    target: BorrowedFd<'_>,
    caps: &Caps,
    expect: Option<&str>,
) -> Result<Unpacked, UnpackError> {
    let mut tar = Tar::open(input, caps)?;
    let mut tree = Tree::open(target, caps)?;
    let mut entries = entry::Entries::new(&mut tar, caps);
    while let Some(found) = entries.next()? {
        tree.make(&found, entries.body())?;
    }
    let marked = entries.marked();
    let diff_id = tar.finish()?;
    match expect {
        Some(expected) if expected != diff_id => {
            return Err(UnpackError::Digest { expected: clean(expected.as_bytes()), found: diff_id });
        }
        // Some tools forget the two blocks of zeros at the end. Without them only the digest tells that nothing is cut
        // off.
        None if !marked => return Err(UnpackError::Truncated),
        Some(_) | None => {}
    }
    tree.finish(diff_id)
}

/// The digest of an uncompressed archive, `sha256:` and 64 hex digits, without unpacking it.
///
/// # Errors
/// It cannot be read or decompressed, or passes a bound of bytes or ratio.
pub fn diff_id(input: impl Read, caps: &Caps) -> Result<String, UnpackError> {
    Tar::open(input, caps)?.finish()
}

/// Something in an archive that is looked at and not unpacked.
pub enum Member<'m> {
    /// A regular file.
    File {
        /// Bytes, as its header says.
        size: u64,
        /// Its bytes; what is not read is skipped.
        body: &'m mut dyn Read,
    },
    /// A symbolic link with its text.
    Symlink(&'m [u8]),
}

/// Shows the files and symbolic links of an archive by their names as they stand there, and makes nothing.
///
/// # Errors
/// As [`unpack`] for what is wrong with the archive itself; whatever `visit` returns, which ends it.
pub fn members<E: From<UnpackError>>(
    input: impl Read,
    caps: &Caps,
    mut visit: impl FnMut(&[u8], Member<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut tar = Tar::open(input, caps)?;
    let mut entries = entry::Entries::new(&mut tar, caps);
    let mut count = 0;
    while let Some(found) = entries.next()? {
        count += 1;
        if count > caps.entries_max {
            return Err(UnpackError::Bound { what: BoundKind::Entries, max: caps.entries_max }.into());
        }
        match found.kind {
            entry::Kind::File { size, segments: None } if size <= caps.file_bytes_max => {
                visit(&found.path, Member::File { size, body: &mut entries.body() })?;
            }
            entry::Kind::File { segments: None, .. } => {
                return Err(UnpackError::Bound { what: BoundKind::FileBytes, max: caps.file_bytes_max }.into());
            }
            entry::Kind::Symlink => visit(&found.path, Member::Symlink(&found.link))?,
            // A file with holes is none that an archive of an image has.
            entry::Kind::File { segments: Some(_), .. }
            | entry::Kind::Dir
            | entry::Kind::HardLink
            | entry::Kind::Fifo
            | entry::Kind::Device { .. } => {}
        }
    }
    Ok(())
}

/// A name from the archive for a message: at most 200 characters, the unprintable as `?`.
fn clean(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .take(200)
        .map(|c| if c.is_control() || c == '`' || c == char::REPLACEMENT_CHARACTER { '?' } else { c })
        .collect()
}
