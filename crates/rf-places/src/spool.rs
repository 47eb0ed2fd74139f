//! The output of a background exec on disk, so that it can be read again and outlives the server. Of others there is only
//! who, where and what, while they run for long ([`crate::execs`]).
//!
//! ```text
//!  SPOOL/exe_<32 hex>/about.json   who, where, what, and how it ended
//!                     out, err     the bytes, at most `bytes_max` each
//!                     out.cut ...  there: bytes after the last one were dropped
//! ```
//!
//! A pipe's bytes go to its file by splice(2): what was taken out of the pipe is in the file, also when the server is
//! killed in between. A terminal's bytes pass through the server, so a kill may lose the last piece; known wrinkle.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rf_types::{ExecId, ExecInfo, PlaceRef, UserId, units::UnixMs};
use rustix::{io::Errno, pipe::SpliceFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    content::read_small, execs::live::LiveNote, piece::next_piece, pipe::PipeReader, place::ByteReader, sandbox::Output,
};

/// Longest `about.json`; arguments take at most 6 MiB (execve(2)), twice that as JSON. Chosen.
const ABOUT_LEN_MAX: u64 = 16 * 1024 * 1024;
/// Most bytes of one splice(2) and of one turn on a blocking thread. Chosen.
const SPLICE_MAX: usize = 1024 * 1024;
const TURN_MAX: usize = 8 * 1024 * 1024;
/// The rest after each pipe full that is thrown away: a program that prints for nobody must cost the server less than one
/// whose output is kept. Chosen: some 50 MiB a second.
const DROP_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// What is kept of a background exec beside its output.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct About {
    pub(crate) user: UserId,
    pub(crate) place: PlaceRef,
    pub(crate) info: ExecInfo,
    /// What its starter said of it.
    #[serde(default)]
    pub(crate) note: LiveNote,
    pub(crate) ended_at: Option<UnixMs>,
}

/// How far one output has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Progress {
    pub(crate) len: u64,
    pub(crate) ended: bool,
    pub(crate) truncated: bool,
}

/// How much of an output may be kept.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// Most bytes of one output.
    pub(crate) bytes_max: u64,
    /// Most bytes of all outputs of the user.
    pub(crate) user_bytes_max: u64,
    /// Bytes kept of all outputs of the user.
    pub(crate) user_bytes: Arc<AtomicU64>,
}

impl Budget {
    /// How many more bytes may be kept of an output of which `len` are.
    fn room(&self, len: u64) -> usize {
        let own = self.bytes_max.saturating_sub(len);
        let user = self.user_bytes_max.saturating_sub(self.user_bytes.load(Ordering::Relaxed));
        usize::try_from(own.min(user)).unwrap_or(usize::MAX)
    }

    fn keep(&self, count: u64) {
        self.user_bytes.fetch_add(count, Ordering::Relaxed);
    }
}

/// Which output.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Standard output, or all that a terminal prints.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Which {
    const fn file_name(self) -> &'static str {
        match self {
            Self::Stdout => "out",
            Self::Stderr => "err",
        }
    }

    const fn cut_name(self) -> &'static str {
        match self {
            Self::Stdout => "out.cut",
            Self::Stderr => "err.cut",
        }
    }
}

/// One exec's directory.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
}

impl Spool {
    pub(crate) fn of(root: &Path, exec: ExecId) -> Self {
        Self { dir: root.join(exec.to_string()) }
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// `AlreadyExists` when the exec was started before; what mkdir(2) says.
    pub(crate) fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.dir)
    }

    /// Whether there is anything of this exec.
    pub(crate) fn is_there(&self) -> bool {
        // What cannot be looked at may be there.
        self.dir.try_exists().unwrap_or(true)
    }

    /// Writes beside it and renames over it, so that a reader never sees a part.
    pub(crate) fn write_about(&self, about: &About) -> io::Result<()> {
        let beside = self.dir.join("about.new");
        fs::write(&beside, serde_json::to_vec(about)?)?;
        fs::rename(beside, self.dir.join("about.json"))
    }

    pub(crate) fn read_about(&self) -> io::Result<Option<About>> {
        let Some(text) = read_small(&self.dir.join("about.json"), ABOUT_LEN_MAX)? else { return Ok(None) };
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Where an output stands on disk.
    pub(crate) fn progress(&self, which: Which) -> Progress {
        let len = fs::metadata(self.dir.join(which.file_name())).map_or(0, |meta| meta.len());
        Progress { len, ended: false, truncated: self.dir.join(which.cut_name()).exists() }
    }

    pub(crate) fn open_to_read(&self, which: Which) -> io::Result<OwnedFd> {
        Ok(File::open(self.dir.join(which.file_name()))?.into())
    }

    fn open_to_write(&self, which: Which) -> io::Result<File> {
        // Not to append: splice(2) refuses a target opened so.
        File::options().create(true).truncate(false).write(true).open(self.dir.join(which.file_name()))
    }

    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot remove the output of an ended exec");
        }
    }

    /// Every exec that has a directory below `root`; what is not one of ours is left alone.
    pub(crate) fn all(root: &Path) -> io::Result<Vec<(ExecId, Self)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name();
            if let Some(exec) = name.to_str().and_then(|name| name.parse().ok()) {
                found.push((exec, Self::of(root, exec)));
            }
        }
        Ok(found)
    }

    /// Moves an output to its file until it ends; past the budget it is dropped, so that the program is never held up.
    pub(crate) async fn pump(
        &self,
        which: Which,
        output: Output,
        budget: Budget,
        progress: Arc<watch::Sender<Progress>>,
    ) {
        let pumped = match output {
            Output::Pipe(pipe) => self.pump_pipe(which, pipe, &budget, &progress).await,
            Output::Stream(stream) => self.pump_stream(which, stream, &budget, &progress).await,
            Output::None => Ok(()),
        };
        if let Err(error) = pumped {
            tracing::warn!(%error, dir = %self.dir.display(), "the output of an exec is cut short");
            self.cut(which, &progress);
        }
        progress.send_modify(|progress| progress.ended = true);
    }

    /// Notes that bytes were dropped.
    pub(crate) fn cut(&self, which: Which, progress: &watch::Sender<Progress>) {
        let first = progress.send_if_modified(|progress| !std::mem::replace(&mut progress.truncated, true));
        if first && let Err(error) = File::create(self.dir.join(which.cut_name())) {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot note that output was cut");
        }
    }

    async fn pump_pipe(
        &self,
        which: Which,
        mut pipe: PipeReader,
        budget: &Budget,
        progress: &Arc<watch::Sender<Progress>>,
    ) -> io::Result<()> {
        // Where the file cannot be had the program is still not held up.
        let file = self.open_to_write(which);
        if file.is_err() {
            self.cut(which, progress);
        }
        let file = Arc::new(file.ok());
        let null = Arc::new(File::options().write(true).open("/dev/null")?);
        let from = Arc::new(pipe.duplicate()?);
        pipe.enlarge();
        loop {
            pipe.readable().await?;
            let (file, null, from) = (Arc::clone(&file), Arc::clone(&null), Arc::clone(&from));
            let (this, budget, told) = (self.clone(), budget.clone(), Arc::clone(progress));
            let turn = tokio::task::spawn_blocking(move || {
                this.splice_turn(which, &from, file.as_ref().as_ref(), &null, &budget, &told)
            });
            if turn.await.map_err(io::Error::other)?? {
                return Ok(());
            }
            if progress.borrow().truncated {
                tokio::time::sleep(DROP_PAUSE).await;
            }
        }
    }

    /// Moves what is there, a bounded amount; `true` at the end of the pipe.
    fn splice_turn(
        &self,
        which: Which,
        from: &OwnedFd,
        file: Option<&File>,
        null: &File,
        budget: &Budget,
        progress: &watch::Sender<Progress>,
    ) -> io::Result<bool> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let mut moved = 0;
        while moved < TURN_MAX {
            let Progress { len, truncated, .. } = *progress.borrow();
            let room = budget.room(len).min(SPLICE_MAX);
            let spliced = match file {
                Some(file) if room > 0 && !truncated => {
                    let mut offset = len;
                    rustix::pipe::splice(from.as_fd(), None, file.as_fd(), Some(&mut offset), room, flags)
                }
                _ => {
                    let dropped = rustix::pipe::splice(from.as_fd(), None, null.as_fd(), None, SPLICE_MAX, flags);
                    if let Ok(1..) = dropped {
                        self.cut(which, progress);
                        return Ok(false);
                    }
                    dropped
                }
            };
            match spliced {
                Ok(0) => return Ok(true),
                Ok(count) => {
                    moved += count;
                    if !truncated && room > 0 {
                        budget.keep(count as u64);
                        progress.send_modify(|progress| progress.len += count as u64);
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                // The server's own disk is full: the output is cut, the program goes on.
                Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO) if !truncated => self.cut(which, progress),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(false)
    }

    async fn pump_stream(
        &self,
        which: Which,
        mut stream: ByteReader,
        budget: &Budget,
        progress: &Arc<watch::Sender<Progress>>,
    ) -> io::Result<()> {
        let file = Arc::new(self.open_to_write(which)?);
        loop {
            let bytes = next_piece(&mut stream).await?;
            if bytes.is_empty() {
                return Ok(());
            }
            let Progress { len, truncated, .. } = *progress.borrow();
            let room = budget.room(len);
            let kept = if truncated { 0 } else { room.min(bytes.len()) };
            let piece = bytes.slice(..kept);
            let file = Arc::clone(&file);
            let writing =
                tokio::task::spawn_blocking(move || std::os::unix::fs::FileExt::write_all_at(&*file, &piece, len));
            let written = writing.await.map_err(io::Error::other)?;
            if written.is_ok() {
                budget.keep(kept as u64);
                progress.send_modify(|progress| progress.len += kept as u64);
            }
            if written.is_err() || kept < bytes.len() {
                self.cut(which, progress);
            }
        }
    }
}
