//! File operations in a sandbox: the order, the answers on the operation's own socket, and the bytes.
//!
//! A helper inside the sandbox resolves the path as the sandbox's user and hands out a descriptor; the bytes then move
//! without it. What it says is as hostile as the sandbox: a helper that breaks the rules fails its own operation (a
//! workload of the same user could have got hold of it), not the sandbox.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture};
use rf_policy::{Action, Permit};
use rf_types::{Code, Fault, FileKind, FileOp, Stat, WriteMode};
use rf_wire::{
    detail as wire,
    init::{Entry, File, Malformed, Reader, change, file_answer, file_op},
};
use rustix::{
    fs::{FileType, OFlags},
    net::AddressFamily,
};
use tokio::{
    io::{AsyncWriteExt as _, unix::AsyncFd},
    sync::oneshot,
};

use crate::{
    content::{FileWriter, content},
    detail::{self, Detail},
    init_client::Shared,
    packet::{self, Fds, Received},
    piece,
    pipe::{PipeReader, PipeWriter},
    place::{ByteReader, Change, ChangeKind, FileAnswer, Sink},
    reactor,
    refusal::{self, Failed},
    sandbox::SandboxPlace,
};

/// How long a helper may take for one step of an operation. Chosen: three times an order's, for it is one more fork.
const STEP_TIME: Duration = Duration::from_secs(30);
/// How long a whole tree may take to be removed or unpacked after the last byte. Chosen.
const TREE_TIME: Duration = Duration::from_secs(600);
/// Most entries of one list. Chosen: what a client could still use; a list without end is no list.
const ENTRIES_MAX: usize = 5_000_000;
/// How long the end of a helper may go before the end of its sandbox.
const END_TIME: Duration = Duration::from_millis(200);
/// The longest path (path_resolution(7)), its NUL not counted.
const PATH_LEN_MAX: usize = 4_095;

/// One message of a helper.
pub(crate) enum Told {
    Opened(Stat, OwnedFd),
    Entry(Stat),
    Done,
    Failed(u32),
    Change(Change),
    Detail(Box<Detail>),
    Changed(Change, Option<Box<Detail>>),
    /// A descriptor came for which this process had no number left.
    NoRoom,
}

/// The socket of one operation.
pub(crate) struct Replies {
    pub(crate) socket: AsyncFd<OwnedFd>,
    refused: Option<oneshot::Receiver<Failed>>,
    init: Arc<Shared>,
    pub(crate) path: String,
}

impl SandboxPlace {
    pub(crate) async fn do_file(&self, permit: &Permit, op: &FileOp, user: Option<&str>) -> Result<FileAnswer, Fault> {
        self.check(permit, action(op))?;
        let user = user.unwrap_or("");
        let (order, second) = order(op, user)?;
        match op {
            FileOp::Read { offset, length, .. } => {
                let mut replies = self.begin(&order, None).await?;
                let (mut stat, fd) = replies.opened(STEP_TIME).await?;
                stat.size = check_file(&fd, OFlags::RDONLY)?;
                let bytes = content(fd, *offset, *length, &replies.path);
                Ok(FileAnswer::Content { stat, bytes })
            }
            FileOp::Write { mode, .. } => {
                let mut replies = self.begin(&order, None).await?;
                let (_, fd) = replies.opened(STEP_TIME).await?;
                check_file(&fd, OFlags::WRONLY)?;
                let writer = FileWriter::new(fd, &replies.path);
                let replies = (*mode == WriteMode::Replace).then_some(replies);
                Ok(FileAnswer::Sink(Box::new(FileSink { writer, replies })))
            }
            FileOp::List { .. } => {
                let mut replies = self.begin(&order, None).await?;
                let first = replies.next(STEP_TIME).await?;
                Ok(FileAnswer::Entries(entries(replies, first).boxed()))
            }
            FileOp::Stat { .. } => {
                let mut replies = self.begin(&order, None).await?;
                match replies.next(STEP_TIME).await? {
                    Told::Entry(stat) => Ok(FileAnswer::Stat(stat)),
                    other => Err(replies.unexpected(other)),
                }
            }
            FileOp::TarOut { .. } => {
                let (ours, theirs) = pipe()?;
                let mut pipe = PipeReader::new(ours).map_err(|_| no_pipe())?;
                pipe.enlarge();
                let replies = self.begin(&order, Some(theirs)).await?;
                archive(replies, Box::pin(pipe)).await
            }
            FileOp::TarIn { .. } => {
                let (theirs, ours) = pipe()?;
                let pipe = PipeWriter::new(ours).map_err(|_| no_pipe())?;
                let replies = self.begin(&order, Some(theirs)).await?;
                Ok(FileAnswer::Sink(Box::new(ArchiveSink { pipe, replies, over: false })))
            }
            FileOp::Watch { .. } => {
                let mut replies = self.begin(&order, None).await?;
                replies.done(STEP_TIME).await?;
                Ok(FileAnswer::Changes(changes(replies).boxed()))
            }
            FileOp::Move { to, .. } => {
                let mut replies = self.begin(&order, None).await?;
                let done = replies.done(STEP_TIME).await;
                // What is there already is at the target.
                let at_target = |fault: &Fault| fault.code == Code::Conflict;
                if done.as_ref().is_err_and(at_target) {
                    debug_assert!(!second.is_empty());
                    return Err(Fault::new(
                        Code::Conflict,
                        format!("`{}` is there already", refusal::shorten(to)),
                        "remove it, or ask to replace it",
                    ));
                }
                done.map(|()| FileAnswer::Done)
            }
            FileOp::Remove { recursive, .. } => {
                let mut replies = self.begin(&order, None).await?;
                replies.done(if *recursive { TREE_TIME } else { STEP_TIME }).await?;
                Ok(FileAnswer::Done)
            }
            FileOp::MakeDir { .. } | FileOp::Chmod { .. } => {
                self.begin(&order, None).await?.done(STEP_TIME).await?;
                Ok(FileAnswer::Done)
            }
        }
    }

    /// Connects to a TCP port of the sandbox's loopback.
    ///
    /// # Errors
    /// `not_found` when nothing listens there; `place_lost`, `place_exhausted`.
    pub async fn connect(&self, permit: &Permit, port: u16) -> Result<tokio::net::TcpStream, Fault> {
        self.check(permit, Action::PortConnect)?;
        let order = File {
            op: file_op::CONNECT,
            mode: 0,
            flags: 0,
            permissions: 0,
            number: port.into(),
            user: b"",
            a: b"",
            b: b"",
        };
        let mut replies = self.begin(&order, None).await?;
        match replies.next_raw(STEP_TIME).await? {
            Told::Opened(_, fd) => check_tcp(fd),
            Told::Failed(errno) => Err(refusal::connect(errno, port)),
            other => Err(replies.unexpected(other)),
        }
    }

    pub(crate) async fn begin(&self, order: &File<'_>, data: Option<OwnedFd>) -> Result<Replies, Fault> {
        let (ours, theirs) = packet::pair().map_err(|error| busy(&error))?;
        let socket = reactor::register_socket(ours).map_err(|error| busy(&error))?;
        let mut fds = vec![theirs];
        fds.extend(data);
        let refused = Some(self.init().file(order, fds).await?);
        let path = String::from_utf8_lossy(order.a).into_owned();
        Ok(Replies { socket, refused, init: self.init().shared(), path })
    }
}

/// What permits an operation.
#[must_use]
pub fn action(op: &FileOp) -> Action {
    match op {
        FileOp::Read { .. }
        | FileOp::List { .. }
        | FileOp::Stat { .. }
        | FileOp::TarOut { .. }
        | FileOp::Watch { .. } => Action::FileRead,
        FileOp::Write { .. }
        | FileOp::MakeDir { .. }
        | FileOp::Move { .. }
        | FileOp::Remove { .. }
        | FileOp::Chmod { .. }
        | FileOp::TarIn { .. } => Action::FileWrite,
    }
}

/// The order of an operation, and its second path.
fn order<'a>(op: &'a FileOp, user: &'a str) -> Result<(File<'a>, &'a str), Fault> {
    let base = |op: u16, a: &'a str| File {
        op,
        mode: 0,
        flags: 0,
        permissions: 0,
        number: 0,
        user: user.as_bytes(),
        a: a.as_bytes(),
        b: b"",
    };
    let mut second = "";
    let order = match op {
        FileOp::Read { path, .. } => base(file_op::READ, path),
        FileOp::Write { path, mode, permissions, parents } => File {
            mode: match mode {
                WriteMode::Truncate => 0,
                WriteMode::CreateNew => 1,
                WriteMode::Append => 2,
                WriteMode::Replace => 3,
            },
            permissions: checked_permissions(*permissions)?,
            flags: (*parents).into(),
            ..base(file_op::WRITE, path)
        },
        FileOp::List { path, depth } => {
            if !(1..=64).contains(depth) {
                return Err(Fault::invalid(format!("`depth` is {depth}, but must be 1 to 64")));
            }
            File { number: *depth, ..base(file_op::LIST, path) }
        }
        FileOp::Stat { path, follow } => File { flags: (*follow).into(), ..base(file_op::STAT, path) },
        FileOp::MakeDir { path, permissions, parents } => File {
            permissions: checked_permissions(*permissions)?,
            flags: (*parents).into(),
            ..base(file_op::MAKE_DIR, path)
        },
        FileOp::Move { from, to, replace } => {
            second = to;
            File { flags: (*replace).into(), b: to.as_bytes(), ..base(file_op::MOVE, from) }
        }
        FileOp::Remove { path, recursive } => File { flags: (*recursive).into(), ..base(file_op::REMOVE, path) },
        FileOp::Chmod { path, permissions } => {
            File { permissions: checked_permissions(*permissions)?, ..base(file_op::CHMOD, path) }
        }
        FileOp::TarOut { path } => base(file_op::TAR_OUT, path),
        FileOp::TarIn { path } => base(file_op::TAR_IN, path),
        FileOp::Watch { path, recursive } => File { flags: (*recursive).into(), ..base(file_op::WATCH, path) },
    };
    let two = matches!(op, FileOp::Move { .. });
    for (text, needed) in [(order.a, true), (order.b, two), (order.user, false)] {
        if needed && text.is_empty() {
            return Err(Fault::invalid("the path is empty"));
        }
        if text.len() > PATH_LEN_MAX {
            return Err(Fault::invalid(format!("the path has {} bytes, but at most {PATH_LEN_MAX} fit", text.len())));
        }
        if text.contains(&0) {
            return Err(Fault::invalid("the path or the user's name contains a NUL character"));
        }
    }
    Ok((order, second))
}

fn checked_permissions(permissions: u32) -> Result<u32, Fault> {
    if permissions <= 0o7777 {
        Ok(permissions)
    } else {
        Err(Fault::invalid(format!("permissions are {permissions:#o}, but at most 0o7777 fit")))
    }
}

impl Replies {
    /// The next message; a failure is an error.
    async fn next(&mut self, time: Duration) -> Result<Told, Fault> {
        match self.next_raw(time).await? {
            Told::Failed(errno) => Err(refusal::file(errno, &self.path)),
            Told::NoRoom => Err(refusal::no_room()),
            told => Ok(told),
        }
    }

    /// The end of an unpacking: what it does not like is mostly the archive.
    async fn unpacked(&mut self, time: Duration) -> Result<(), Fault> {
        match self.next_raw(time).await? {
            Told::Done => Ok(()),
            Told::Failed(errno) => Err(refusal::archive(errno, &self.path)),
            other => Err(self.unexpected(other)),
        }
    }

    pub(crate) async fn next_raw(&mut self, time: Duration) -> Result<Told, Fault> {
        let init = Arc::clone(&self.init);
        let told = init.patiently(time, self.wait()).await;
        told.unwrap_or_else(|| Err(refusal::timed_out("a file operation")))
    }

    pub(crate) async fn wait(&mut self) -> Result<Told, Fault> {
        loop {
            let refused = async {
                match &mut self.refused {
                    Some(refused) => refused.await,
                    None => std::future::pending().await,
                }
            };
            let mut guard = tokio::select! {
                biased;
                guard = self.socket.readable() => guard.map_err(|error| busy(&error))?,
                refused = refused => {
                    self.refused = None;
                    match refused {
                        Ok(failed) => return Err(refusal::helper(failed, &self.path)),
                        Err(_) => return Err(refusal::lost("its process 1 is gone")),
                    }
                }
            };
            match packet::receive(self.socket.get_ref().as_fd(), parse) {
                Ok(Received::Message(Ok(told))) => return Ok(told),
                Ok(Received::Empty) => guard.clear_ready(),
                Ok(Received::Closed) => {
                    drop(guard);
                    return Err(self.ended().await);
                }
                Ok(Received::Message(Err(Malformed)) | Received::Broken) | Err(_) => return Err(self.broke_rules()),
            }
        }
    }

    /// The helper ended without a last word: it was killed, or its sandbox was, or it never came to be.
    async fn ended(&mut self) -> Fault {
        let refused = async {
            match self.refused.take() {
                Some(refused) => refused.await.ok(),
                None => None,
            }
        };
        if let Ok(Some(failed)) = tokio::time::timeout(END_TIME, refused).await {
            return refusal::helper(failed, &self.path);
        }
        if self.init.is_lost() {
            return refusal::lost("its process 1 is gone");
        }
        Fault::new(
            Code::FileFailed,
            format!("`{}`: the operation was killed inside the sandbox", refusal::shorten(&self.path)),
            "the sandbox may be out of memory",
        )
    }

    fn broke_rules(&self) -> Fault {
        Fault::new(
            Code::FileFailed,
            format!("`{}`: the sandbox answered nonsense", refusal::shorten(&self.path)),
            "a program inside may have tampered with the operation",
        )
    }

    pub(crate) fn unexpected(&self, told: Told) -> Fault {
        match told {
            Told::Failed(errno) => refusal::file(errno, &self.path),
            Told::NoRoom => refusal::no_room(),
            Told::Opened(..) | Told::Entry(_) | Told::Done | Told::Change(_) | Told::Detail(_) | Told::Changed(..) => {
                self.broke_rules()
            }
        }
    }

    async fn opened(&mut self, time: Duration) -> Result<(Stat, OwnedFd), Fault> {
        match self.next(time).await? {
            Told::Opened(stat, fd) => Ok((stat, fd)),
            other => Err(self.unexpected(other)),
        }
    }

    async fn done(&mut self, time: Duration) -> Result<(), Fault> {
        match self.next(time).await? {
            Told::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }
}

fn parse(bytes: &[u8], fds: Fds) -> Result<Told, Malformed> {
    let (header, mut body) = Reader::message(bytes)?;
    if fds.cut {
        return Ok(Told::NoRoom);
    }
    let mut fds = fds.list;
    let told = match (header.kind, fds.pop()) {
        (file_answer::OPENED, Some(fd)) => Told::Opened(stat(&Entry::read(&mut body)?), fd),
        (file_answer::ENTRY, None) => Told::Entry(stat(&Entry::read(&mut body)?)),
        (file_answer::DONE, None) => Told::Done,
        (file_answer::FAILED, None) => {
            let errno = body.u32()?;
            body.string()?;
            Told::Failed(errno)
        }
        (file_answer::CHANGE, None) => {
            let mask = body.u32()?;
            let path = body.string()?;
            Told::Change(changed(mask, path.strip_suffix(b"\0").unwrap_or(path)))
        }
        (wire::answer::DETAIL, None) => Told::Detail(detail::parse(&mut body)?),
        (wire::answer::CHANGED, None) => detail::parse_changed(&mut body)?,
        _ => return Err(Malformed),
    };
    if fds.is_empty() && body.is_empty() { Ok(told) } else { Err(Malformed) }
}

pub(crate) fn kind_of(mode: u32) -> FileKind {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Special,
    }
}

pub(crate) fn stat(entry: &Entry<'_>) -> Stat {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kind = kind_of(entry.mode);
    Stat {
        path: text(entry.path),
        kind,
        size: entry.size,
        permissions: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        modified_at: entry.modified_ms,
        target: (kind == FileKind::Symlink).then(|| text(entry.target)),
    }
}

pub(crate) fn changed(mask: u32, path: &[u8]) -> Change {
    let kinds = [
        (change::CREATE, ChangeKind::Create),
        (change::WRITE, ChangeKind::Write),
        (change::REMOVE, ChangeKind::Remove),
        (change::RENAME, ChangeKind::Rename),
        (change::ATTRIBUTES, ChangeKind::Attributes),
        (change::OVERFLOW, ChangeKind::Overflow),
    ];
    Change {
        path: String::from_utf8_lossy(path).into_owned(),
        kinds: kinds.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, kind)| *kind).collect(),
        directory: mask & change::DIRECTORY != 0,
    }
}

/// Checks that `fd` is a regular file open for `access`; gives its size.
pub(crate) fn check_file(fd: &OwnedFd, access: OFlags) -> Result<u64, Fault> {
    let wrong = || Fault::new(Code::FileFailed, "the sandbox handed out a wrong descriptor", "");
    let stat = rustix::fs::fstat(fd).map_err(|_| wrong())?;
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|_| wrong())?;
    let right = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && flags & (OFlags::ACCMODE | OFlags::PATH) == access;
    if right { Ok(u64::try_from(stat.st_size).unwrap_or(0)) } else { Err(wrong()) }
}

/// Checks that `fd` is a TCP socket.
fn check_tcp(fd: OwnedFd) -> Result<tokio::net::TcpStream, Fault> {
    let wrong = || Fault::new(Code::ExecFailed, "the sandbox handed out a wrong descriptor", "");
    let domain = rustix::net::sockopt::socket_domain(&fd).map_err(|_| wrong())?;
    let kind = rustix::net::sockopt::socket_type(&fd).map_err(|_| wrong())?;
    if ![AddressFamily::INET, AddressFamily::INET6].contains(&domain) || kind != rustix::net::SocketType::STREAM {
        return Err(wrong());
    }
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true).map_err(|_| wrong())?;
    tokio::net::TcpStream::from_std(stream).map_err(|error| busy(&error))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Fault> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| busy(&errno.into()))
}

fn no_pipe() -> Fault {
    Fault::new(Code::Internal, "a pipe of our own is none", "")
}

fn busy(error: &std::io::Error) -> Fault {
    Fault::new(Code::ServerBusy, format!("the server has no room for a file operation: {}", error.kind()), "try again")
}

fn entries(replies: Replies, first: Told) -> impl futures::Stream<Item = Result<Stat, Fault>> + Send {
    futures::stream::unfold(Some((replies, Some(first), 0)), |state| async move {
        let (mut replies, first, count) = state?;
        let told = match first {
            Some(told) => Ok(told),
            None => replies.next(STEP_TIME).await,
        };
        match told {
            Ok(Told::Done) => None,
            Ok(Told::Entry(_)) if count >= ENTRIES_MAX => {
                let fault = Fault::new(Code::TooLarge, "the directory has too many entries", "list a part of it");
                Some((Err(fault), None))
            }
            Ok(Told::Entry(stat)) => Some((Ok(stat), Some((replies, None, count + 1)))),
            Ok(other) => Some((Err(replies.unexpected(other)), None)),
            Err(fault) => Some((Err(fault), None)),
        }
    })
}

fn changes(replies: Replies) -> impl futures::Stream<Item = Result<Change, Fault>> + Send {
    futures::stream::unfold(Some(replies), |state| async move {
        let mut replies = state?;
        match replies.wait().await {
            Ok(Told::Change(change)) => Some((Ok(change), Some(replies))),
            Ok(other) => Some((Err(replies.unexpected(other)), None)),
            Err(fault) => Some((Err(fault), None)),
        }
    })
}

/// Waits for the first bytes of an archive, so that a path that is not there is an error and not an empty archive.
async fn archive(mut replies: Replies, mut pipe: ByteReader) -> Result<FileAnswer, Fault> {
    let mut over = false;
    let first = loop {
        tokio::select! {
            biased;
            first = piece::next_piece(&mut pipe) => break first.map_err(|error| piece::stream_broke(&error))?,
            told = replies.next(TREE_TIME), if !over => match told? {
                Told::Done => over = true,
                other => return Err(replies.unexpected(other)),
            },
        }
    };
    if first.is_empty() && !over {
        replies.done(STEP_TIME).await?;
        over = true;
    }
    let rest = futures::stream::unfold(Some((pipe, replies)), move |state| async move {
        let (mut pipe, mut replies) = state?;
        match piece::next_piece(&mut pipe).await {
            Ok(bytes) if bytes.is_empty() && over => None,
            Ok(bytes) if bytes.is_empty() => match replies.done(STEP_TIME).await {
                Ok(()) => None,
                Err(fault) => Some((Err(fault), None)),
            },
            Ok(bytes) => Some((Ok(bytes), Some((pipe, replies)))),
            Err(error) => Some((Err(piece::stream_broke(&error)), None)),
        }
    });
    Ok(FileAnswer::Archive(futures::stream::iter([Ok(first)]).chain(rest).boxed()))
}

/// Takes the bytes of a file.
pub(crate) struct FileSink {
    pub(crate) writer: FileWriter,
    /// The helper that waits for the word to put the file in its place.
    pub(crate) replies: Option<Replies>,
}

impl Sink for FileSink {
    fn write(&mut self, bytes: bytes::Bytes) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(self.writer.write(bytes))
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<(), Fault>> {
        Box::pin(async move {
            self.writer.finish().await?;
            let Some(mut replies) = self.replies else { return Ok(()) };
            /// Puts the file in its place.
            const COMMIT: &[u8] = &[1];
            if packet::send_waiting(&replies.socket, COMMIT, &[]).await.is_err() {
                return Err(replies.ended().await);
            }
            replies.done(STEP_TIME).await
        })
    }
}

/// Takes the bytes of an archive.
struct ArchiveSink {
    pipe: PipeWriter,
    replies: Replies,
    /// The helper has found the archive's end; what comes after it is padding.
    over: bool,
}

impl Sink for ArchiveSink {
    fn write(&mut self, bytes: bytes::Bytes) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            if self.over || self.pipe.write_all(&bytes).await.is_ok() {
                return Ok(());
            }
            // The helper closed its end: it says why.
            self.replies.unpacked(STEP_TIME).await?;
            self.over = true;
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<(), Fault>> {
        Box::pin(async move {
            drop(self.pipe);
            if self.over { Ok(()) } else { self.replies.unpacked(TREE_TIME).await }
        })
    }
}

/// The connection need no longer remember whom it owed an answer.
impl Drop for Replies {
    fn drop(&mut self) {
        drop(self.refused.take());
        self.init.file_over();
    }
}
