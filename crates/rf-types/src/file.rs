//! File operations of a place. Paths are the place's own, absolute or relative to the user's home (a machine: to the
//! workspace root); they are resolved inside the place, as its user, never on the host.

use serde::{Deserialize, Serialize};

use crate::units::UnixMs;

/// How a write meets a file that is there.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteMode {
    /// Create, or empty and write.
    Truncate,
    /// Create, and fail if it is there.
    CreateNew,
    /// Create, or add at the end.
    Append,
    /// Write beside it and rename over it, so that a reader sees the old or the new and never a part.
    Replace,
}

/// A file operation without its bytes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum FileOp {
    /// Read a regular file from `offset`, at most `length` bytes.
    Read {
        /// The file.
        path: String,
        /// First byte.
        offset: u64,
        /// Most bytes; `None` is to the end.
        length: Option<u64>,
    },
    /// Write a regular file.
    Write {
        /// The file.
        path: String,
        /// How to meet a file that is there.
        mode: WriteMode,
        /// Permission bits of a new file, such as `0o644`.
        permissions: u32,
        /// Make missing parent directories.
        parents: bool,
    },
    /// List a directory, not following links.
    List {
        /// The directory.
        path: String,
        /// How deep: 1 is the directory's own entries; at most 64.
        depth: u32,
    },
    /// Describe one file.
    Stat {
        /// The file.
        path: String,
        /// Follow a link at the end of the path.
        follow: bool,
    },
    /// Make a directory.
    MakeDir {
        /// The directory.
        path: String,
        /// Permission bits.
        permissions: u32,
        /// Make missing parents; no error if it is there.
        parents: bool,
    },
    /// Rename; atomic (rename(2)). A file that goes to another mount is copied, and has its new name at once.
    Move {
        /// From.
        from: String,
        /// To.
        to: String,
        /// Replace a file that is there.
        replace: bool,
    },
    /// Remove a file, or a directory with all in it when `recursive`.
    Remove {
        /// The file.
        path: String,
        /// Also a directory that is not empty.
        recursive: bool,
    },
    /// Set permission bits.
    Chmod {
        /// The file; a link at the end is followed.
        path: String,
        /// Permission bits.
        permissions: u32,
    },
    /// Stream a directory or file as a tar archive.
    TarOut {
        /// The directory or file.
        path: String,
    },
    /// Unpack a tar archive into a directory; entries that would leave it are refused.
    TarIn {
        /// The directory; made if missing.
        path: String,
    },
    /// Report changes as they happen.
    Watch {
        /// The directory or file.
        path: String,
        /// Directories below as well, also new ones.
        recursive: bool,
    },
}

/// What kind of file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device: listed, never opened.
    Special,
}

/// One file as listed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stat {
    /// Its path: as asked for [`FileOp::Stat`], relative to the listed directory for [`FileOp::List`]. Bytes that are
    /// not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Its kind.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Permission bits, `0o7777` at most.
    pub permissions: u32,
    /// Owner inside the place.
    pub uid: u32,
    /// Group inside the place.
    pub gid: u32,
    /// When its content last changed.
    pub modified_at: UnixMs,
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}
