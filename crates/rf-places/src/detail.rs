//! File operations of a sandbox in detail: paths from the user's home on, names of owners, what a link leads to,
//! attributes, and a watch that can be asked whether it has told everything. See `rf_wire::detail`.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use rf_policy::{Action, Permit};
use rf_types::{Code, Fault, FileKind, Stat};
use rf_wire::{
    detail::{self as wire, Attributes, flag},
    init::{File, Malformed, Reader, file_op},
};
use rustix::fs::OFlags;

use crate::{
    content::{FileWriter, content},
    packet,
    place::{Change, Sink},
    refusal,
    sandbox::SandboxPlace,
    sandbox_files::{FileSink, Replies, Told, changed, check_file, kind_of, stat},
};

/// How long a helper may take for one step, as of other operations.
const STEP_TIME: Duration = Duration::from_secs(30);
/// How long a whole tree may take to be removed. Chosen.
const TREE_TIME: Duration = Duration::from_secs(600);
/// Permission bits of what is made.
const FILE_PERMISSIONS: u32 = 0o644;
const DIRECTORY_PERMISSIONS: u32 = 0o755;
/// The longest path (path_resolution(7)), its NUL not counted.
const PATH_LEN_MAX: usize = 4_095;

/// A file operation in detail. Paths are absolute, or from the user's home on; `~` is that home, and so is nothing.
#[derive(Clone, Debug)]
pub enum DetailOp {
    /// Opens a regular file to read.
    Read {
        /// The file.
        path: String,
    },
    /// Makes or empties a regular file in place, its parents as well; it is the user's then.
    Write {
        /// The file.
        path: String,
        /// Its attributes, and no others: names without `=` and NUL, values without NUL and line feeds.
        attributes: BTreeMap<String, String>,
    },
    /// Describes a directory, then all in it.
    List {
        /// The directory; a link to one is followed.
        path: String,
        /// How deep: 1 is its own entries; more than 64 is 64.
        depth: u32,
    },
    /// Describes a file, not following.
    Stat {
        /// The file.
        path: String,
    },
    /// Makes a directory and its parents.
    MakeDir {
        /// The directory.
        path: String,
    },
    /// Renames, replacing what is there; makes the target's parents.
    Move {
        /// From.
        from: String,
        /// To.
        to: String,
    },
    /// Removes with all in it.
    Remove {
        /// The file.
        path: String,
    },
    /// Reports changes in a directory.
    Watch {
        /// The directory.
        path: String,
        /// Directories below as well, also new ones.
        recursive: bool,
        /// Also where the kernel does not see every change.
        network: bool,
        /// Describe what changed.
        entries: bool,
    },
}

/// A file, described.
#[derive(Clone, Debug)]
pub struct Detail {
    /// What is there itself. The path is absolute, but relative to the directory for what is in a listed one.
    pub stat: Stat,
    /// Its `st_mode` with the bits of its kind (inode(7)), as told in the sandbox.
    pub mode: u32,
    /// What it is once links are followed; nothing where they lead nowhere.
    pub target: Option<Target>,
    /// The owner's name, or number.
    pub owner: String,
    /// The group's name, or number.
    pub group: String,
    /// Its attributes, without the prefix of their names.
    pub attributes: BTreeMap<String, String>,
}

/// What a file is once links are followed.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where a link leads; `None` for what is no link.
    pub path: Option<String>,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits.
    pub permissions: u32,
}

/// Why an operation in detail failed.
#[derive(Clone, Debug)]
pub struct DetailFault {
    /// The number of the kernel's error inside the sandbox, if it was one; as told there, so not to be trusted.
    pub errno: Option<u32>,
    /// The same for people.
    pub fault: Fault,
}

impl From<Fault> for DetailFault {
    fn from(fault: Fault) -> Self {
        Self { errno: None, fault }
    }
}

/// What an operation in detail gives back.
pub enum DetailAnswer {
    /// It is done.
    Done,
    /// The file.
    Described(Box<Detail>),
    /// The directory itself, then what is in it, as it is found.
    Listed(BoxStream<'static, Result<Detail, DetailFault>>),
    /// A file, open.
    Opened(OpenFile),
    /// Where to write; and the file's absolute path.
    Sink(String, Box<dyn Sink>),
    /// Changes, as they happen.
    Watching(Watching),
}

/// A regular file, open to be read.
pub struct OpenFile {
    /// Its description as of now; the path is absolute.
    pub stat: Stat,
    fd: OwnedFd,
}

impl OpenFile {
    /// Its bytes from `offset`, at most `length`.
    #[must_use]
    pub fn bytes(self, offset: u64, length: Option<u64>) -> BoxStream<'static, Result<Bytes, Fault>> {
        content(self.fd, offset, length, &self.stat.path)
    }
}

/// A watch. Dropped, it ends.
pub struct Watching {
    /// The directory.
    pub top: Detail,
    replies: Replies,
}

/// What a watch tells.
#[derive(Debug)]
pub enum WatchTold {
    /// A change, and what is there now, if that was asked for and something is.
    Changed(Change, Option<Box<Detail>>),
    /// All that happened before [`Watching::ask`] was told.
    Caught,
}

impl Watching {
    /// What comes next. Safe to cancel.
    ///
    /// # Errors
    /// `place_lost`; `file_failed` when the directory is gone.
    pub async fn next(&mut self) -> Result<WatchTold, Fault> {
        match self.replies.wait().await? {
            Told::Changed(change, detail) => Ok(WatchTold::Changed(change, detail)),
            Told::Change(change) => Ok(WatchTold::Changed(change, None)),
            Told::Done => Ok(WatchTold::Caught),
            other => Err(self.replies.unexpected(other)),
        }
    }

    /// Asks for [`WatchTold::Caught`].
    ///
    /// # Errors
    /// `server_busy` when the question finds no room, for many are unanswered.
    pub fn ask(&self) -> Result<(), Fault> {
        packet::send(self.replies.socket.get_ref().as_fd(), &[1], &[])
            .map_err(|_| Fault::new(Code::ServerBusy, "the watch does not take questions now", "try again"))
    }
}

/// What permits an operation.
#[must_use]
pub fn action(op: &DetailOp) -> Action {
    match op {
        DetailOp::Read { .. } | DetailOp::List { .. } | DetailOp::Stat { .. } | DetailOp::Watch { .. } => {
            Action::FileRead
        }
        DetailOp::Write { .. } | DetailOp::MakeDir { .. } | DetailOp::Move { .. } | DetailOp::Remove { .. } => {
            Action::FileWrite
        }
    }
}

impl SandboxPlace {
    /// Does a file operation in detail as `user` of the sandbox (`None`: its default user).
    ///
    /// # Errors
    /// What the kernel inside said, as its number and as `file_failed`, `not_found`, `conflict`, `disk_full`;
    /// `place_lost`, `invalid_request`.
    pub async fn file_in_detail(
        &self,
        permit: &Permit,
        op: &DetailOp,
        user: Option<&str>,
    ) -> Result<DetailAnswer, DetailFault> {
        self.check(permit, action(op))?;
        let mut attributes = String::new();
        let order = order(op, user.unwrap_or(""), &mut attributes)?;
        let mut replies = self.begin(&order, None).await?;
        match op {
            DetailOp::Read { .. } => {
                let (mut stat, fd) = opened(&mut replies).await?;
                stat.size = check_file(&fd, OFlags::RDONLY)?;
                Ok(DetailAnswer::Opened(OpenFile { stat, fd }))
            }
            DetailOp::Write { .. } => {
                let (stat, fd) = opened(&mut replies).await?;
                check_file(&fd, OFlags::WRONLY)?;
                let writer = FileWriter::new(fd, &stat.path);
                Ok(DetailAnswer::Sink(stat.path, Box::new(FileSink { writer, replies: None })))
            }
            DetailOp::List { .. } => {
                let first = described(&mut replies, STEP_TIME).await?;
                Ok(DetailAnswer::Listed(stream::iter([Ok(first)]).chain(details(replies)).boxed()))
            }
            DetailOp::Stat { .. } | DetailOp::MakeDir { .. } | DetailOp::Move { .. } => {
                described(&mut replies, STEP_TIME).await.map(|detail| DetailAnswer::Described(Box::new(detail)))
            }
            DetailOp::Remove { .. } => match told(&mut replies, TREE_TIME).await? {
                Told::Done => Ok(DetailAnswer::Done),
                other => Err(replies.unexpected(other).into()),
            },
            DetailOp::Watch { .. } => {
                let top = described(&mut replies, STEP_TIME).await?;
                match told(&mut replies, STEP_TIME).await? {
                    Told::Done => Ok(DetailAnswer::Watching(Watching { top, replies })),
                    other => Err(replies.unexpected(other).into()),
                }
            }
        }
    }
}

/// The order of an operation.
fn order<'a>(op: &'a DetailOp, user: &'a str, attributes: &'a mut String) -> Result<File<'a>, Fault> {
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let (kind, path, second, permissions, number, flags) = match op {
        DetailOp::Read { path } => (file_op::READ, path, "", 0, 0, 0),
        DetailOp::Write { path, attributes: wanted } => {
            for (name, value) in wanted {
                let breaks = |text: &str, of: &[char]| text.contains(of);
                if name.is_empty() || breaks(name, &['=', '\n', '\0']) || breaks(value, &['\n', '\0']) {
                    return Err(Fault::invalid(format!("`{}` cannot be an attribute", refusal::shorten(name))));
                }
                attributes.extend([name, "=", value, "\n"]);
            }
            (file_op::WRITE, path, attributes.as_str(), FILE_PERMISSIONS, 0, 0)
        }
        DetailOp::List { path, depth } => (file_op::LIST, path, "", 0, *depth, 0),
        DetailOp::Stat { path } => (file_op::STAT, path, "", 0, 0, 0),
        DetailOp::MakeDir { path } => (file_op::MAKE_DIR, path, "", DIRECTORY_PERMISSIONS, 0, 0),
        DetailOp::Move { from, to } => (file_op::MOVE, from, to.as_str(), 0, 0, 0),
        DetailOp::Remove { path } => (file_op::REMOVE, path, "", 0, 0, 0),
        DetailOp::Watch { path, recursive, network, entries } => {
            let flags = bit(*recursive, 1) | bit(*network, flag::NETWORK) | bit(*entries, flag::ENTRIES);
            (file_op::WATCH, path, "", 0, 0, flags)
        }
    };
    let second_max = if kind == file_op::WRITE { wire::ATTRIBUTES_BYTES_MAX } else { PATH_LEN_MAX };
    for (text, max) in [(path.as_str(), PATH_LEN_MAX), (second, second_max), (user, PATH_LEN_MAX)] {
        if text.len() > max {
            return Err(Fault::invalid(format!("a path has {} bytes, but at most {max} fit", text.len())));
        }
        if text.contains('\0') {
            return Err(Fault::invalid("the path or the user's name contains a NUL character"));
        }
    }
    Ok(File {
        op: kind,
        mode: 0,
        flags: flags | flag::DETAIL,
        permissions,
        number,
        user: user.as_bytes(),
        a: path.as_bytes(),
        b: second.as_bytes(),
    })
}

/// The next message; a failure is an error with its number.
async fn told(replies: &mut Replies, time: Duration) -> Result<Told, DetailFault> {
    match replies.next_raw(time).await? {
        Told::Failed(errno) => Err(DetailFault { errno: Some(errno), fault: refusal::file(errno, &replies.path) }),
        Told::NoRoom => Err(refusal::no_room().into()),
        told => Ok(told),
    }
}

async fn opened(replies: &mut Replies) -> Result<(Stat, OwnedFd), DetailFault> {
    match told(replies, STEP_TIME).await? {
        Told::Opened(stat, fd) => Ok((stat, fd)),
        other => Err(replies.unexpected(other).into()),
    }
}

async fn described(replies: &mut Replies, time: Duration) -> Result<Detail, DetailFault> {
    match told(replies, time).await? {
        Told::Detail(detail) => Ok(*detail),
        other => Err(replies.unexpected(other).into()),
    }
}

fn details(replies: Replies) -> impl futures::Stream<Item = Result<Detail, DetailFault>> + Send {
    stream::unfold(Some(replies), |replies| async move {
        let mut replies = replies?;
        match told(&mut replies, STEP_TIME).await {
            Ok(Told::Done) => None,
            Ok(Told::Detail(detail)) => Some((Ok(*detail), Some(replies))),
            Ok(other) => Some((Err(replies.unexpected(other).into()), None)),
            Err(fault) => Some((Err(fault), None)),
        }
    })
}

/// Reads a `DETAIL`.
pub(crate) fn parse(body: &mut Reader<'_>) -> Result<Box<Detail>, Malformed> {
    let detail = wire::Detail::read(body)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = |bytes: &[u8], id: u32| if bytes.is_empty() { id.to_string() } else { text(bytes) };
    let target = (detail.target_mode != 0).then(|| Target {
        path: (!detail.resolved.is_empty()).then(|| text(detail.resolved)),
        kind: kind_of(detail.target_mode),
        permissions: detail.target_mode & 0o7777,
    });
    let mut attributes = BTreeMap::new();
    if let Attributes::Read(list) = detail.attributes {
        for line in list.take(wire::ATTRIBUTES_MAX) {
            let line = text(line.strip_suffix(b"\0").unwrap_or(line));
            let (name, value) = line.split_once('=').ok_or(Malformed)?;
            attributes.insert(name.to_owned(), value.to_owned());
        }
    }
    let (owner, group) = (name(detail.owner, detail.entry.uid), name(detail.group, detail.entry.gid));
    Ok(Box::new(Detail { stat: stat(&detail.entry), mode: detail.entry.mode, target, owner, group, attributes }))
}

/// Reads a `CHANGED`.
pub(crate) fn parse_changed(body: &mut Reader<'_>) -> Result<Told, Malformed> {
    let mask = body.u32()?;
    let path = body.string()?;
    let change = changed(mask, path.strip_suffix(b"\0").unwrap_or(path));
    let detail = if body.u32()? == 0 { None } else { Some(parse(body)?) };
    Ok(Told::Changed(change, detail))
}
