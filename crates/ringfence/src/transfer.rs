//! Trees as tar archives, between this machine's disk and a place. What comes from a place is hostile: an archive is
//! unpacked beneath a directory descriptor, through no link, and only files, directories and links are made.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use indicatif::ProgressBar;
use rf_client::ByteStream;
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, linkat, mkdirat, openat2, symlinkat, unlinkat},
    io::Errno,
};
use tokio::sync::mpsc;

/// Bytes of one piece. Chosen: large enough that a system call does not count.
const PIECE: usize = 256 * 1024;
/// Pieces on their way between the disk's thread and the connection.
const PIECES_MAX: usize = 8;
/// Deepest path that an archive may hold, in parts. Chosen: no real tree comes near.
const DEPTH_MAX: usize = 128;

/// A file's bytes for an upload.
pub(crate) fn file_stream(file: File, bar: ProgressBar) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let file = tokio::fs::File::from_std(file);
    futures::stream::try_unfold((file, bar), |(mut file, bar)| async move {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = tokio::io::AsyncReadExt::read_buf(&mut file, &mut piece).await?;
        bar.inc(read as u64);
        Ok((read > 0).then(|| (piece.freeze(), (file, bar))))
    })
}

/// A directory as a tar archive, made by a thread while it is sent. Links are sent as links.
pub(crate) fn tar_stream(dir: PathBuf, bar: ProgressBar) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut writer = ChannelWriter { sender: sender.clone(), piece: BytesMut::with_capacity(PIECE), bar };
        let mut archive = tar::Builder::new(&mut writer);
        archive.follow_symlinks(false);
        let result = archive.append_dir_all(".", &dir).and_then(|()| archive.finish());
        drop(archive);
        if let Err(error) = result.and_then(|()| writer.flush()) {
            // Whoever read is gone, or learns it now.
            let _ = sender.blocking_send(Err(error));
        }
    });
    futures::stream::unfold(
        receiver,
        |mut receiver| async move { receiver.recv().await.map(|piece| (piece, receiver)) },
    )
}

struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
    bar: ProgressBar,
}

impl io::Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.bar.inc(self.piece.len() as u64);
        let piece = self.piece.split().freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct ChannelReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let taken = buffer.len().min(self.piece.len());
        buffer[..taken].copy_from_slice(&self.piece.split_to(taken));
        Ok(taken)
    }
}

/// Unpacks an archive from a place into `dir`, which must be there.
pub(crate) async fn unpack_stream(mut bytes: ByteStream, dir: PathBuf, bar: ProgressBar) -> Result<()> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let unpacking = tokio::task::spawn_blocking(move || {
        let root = open_root(&dir)?;
        unpack(ChannelReader { receiver, piece: Bytes::new() }, root.as_fd())
    });
    let mut failed = None;
    while let Some(piece) = bytes.next().await {
        match piece {
            Ok(piece) => {
                bar.inc(piece.len() as u64);
                if sender.send(Ok(piece)).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                let _ = sender.send(Err(io::Error::other("the download broke"))).await;
                failed = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let unpacked = unpacking.await.context("the unpacker ended early")?;
    match failed {
        Some(error) => Err(error.into()),
        None => unpacked,
    }
}

fn open_root(dir: &Path) -> Result<OwnedFd> {
    rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())
        .with_context(|| format!("cannot open `{}`", dir.display()))
}

/// Nothing on the way may be a link or lead out of the root; see openat2(2).
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Makes what an archive holds beneath `root`.
fn unpack(archive: impl Read, root: BorrowedFd<'_>) -> Result<()> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().context("the archive is broken")? {
        let mut entry = entry.context("the archive is broken")?;
        let path = entry.path().context("a name in the archive is broken")?.into_owned();
        let parts = plain_parts(&path)?;
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o777);
        let Some((name, above)) = parts.split_last() else { continue };
        let parent = make_dirs(root, above).with_context(|| format!("`{}`", path.display()))?;
        let kind = entry.header().entry_type();
        let done = match kind {
            tar::EntryType::Directory => match mkdirat(&parent, *name, mode | Mode::RWXU) {
                Err(Errno::EXIST) => Ok(()),
                other => other,
            },
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                write_file(&mut entry, &parent, name, mode).with_context(|| format!("`{}`", path.display()))?;
                Ok(())
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name().ok().flatten().context("a link in the archive has no target")?;
                replace(&parent, name).and_then(|()| symlinkat(target.as_ref(), &parent, *name))
            }
            tar::EntryType::Link => {
                let target = entry.link_name().ok().flatten().context("a link in the archive has no target")?;
                let target = plain_parts(&target)?;
                let Some((target_name, target_above)) = target.split_last() else { continue };
                make_dirs(root, target_above).and_then(|from| {
                    replace(&parent, name)?;
                    linkat(&from, *target_name, &parent, *name, AtFlags::empty())
                })
            }
            // Devices and FIFOs of a place have no business here; extensions are read by the library.
            _ => continue,
        };
        done.with_context(|| format!("cannot make `{}`", path.display()))?;
    }
    Ok(())
}

fn write_file(entry: &mut impl Read, parent: &OwnedFd, name: &Path, mode: Mode) -> Result<()> {
    replace(parent, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(openat2(parent, name, flags, mode, BENEATH)?);
    io::copy(entry, &mut file)?;
    Ok(())
}

/// Takes away what has the name; a directory stays, and what follows says that it is there.
fn replace(parent: &OwnedFd, name: &Path) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens the directory that `parts` name below `root`, making what is missing.
fn make_dirs(root: BorrowedFd<'_>, parts: &[&Path]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut at = openat2(root, ".", flags, Mode::empty(), BENEATH)?;
    for part in parts {
        match mkdirat(&at, *part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        at = openat2(&at, *part, flags, Mode::empty(), BENEATH)?;
    }
    Ok(at)
}

/// The parts of a name in an archive; none of them leads up or to the root.
fn plain_parts(path: &Path) -> Result<Vec<&Path>> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(Path::new(part)),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("the archive holds `{}`, which would leave its directory", path.display())
            }
        }
    }
    if parts.len() > DEPTH_MAX {
        bail!("the archive is deeper than {DEPTH_MAX} directories");
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Set as bytes: the library itself refuses to write names such as these.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let data: &[u8] = if *kind == tar::EntryType::Regular {
                content.as_bytes()
            } else {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                b""
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack_into(dir: &Path, entries: &[(&str, tar::EntryType, &str)]) -> Result<()> {
        unpack(&archive(entries)[..], open_root(dir).unwrap().as_fd())
    }

    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};

    #[test]
    fn an_honest_archive_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            ("./a/", Directory, ""),
            ("./a/b.txt", Regular, "hello"),
            ("./a/l", Symlink, "b.txt"),
            ("./h", Link, "./a/b.txt"),
            ("./p", Fifo, ""),
            ("deep/er/c", Regular, "x"),
        ];
        unpack_into(dir.path(), &entries).unwrap();
        unpack_into(dir.path(), &entries).unwrap();
        assert_eq!(fs::read(dir.path().join("a/l")).unwrap(), b"hello");
        assert_eq!(fs::read(dir.path().join("h")).unwrap(), b"hello");
        assert_eq!(fs::read(dir.path().join("deep/er/c")).unwrap(), b"x");
        assert!(!dir.path().join("p").exists());
    }

    #[test]
    fn an_archive_cannot_write_outside() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "mine").unwrap();
        let there = outside.path().to_str().unwrap();
        let absolute = format!("{there}/evil");
        let through = format!("{there}/kept");
        let attacks: [&[(&str, tar::EntryType, &str)]; 6] = [
            &[("../evil", Regular, "x")],
            &[(&absolute, Regular, "x")],
            &[("a/../../evil", Regular, "x")],
            &[("l", Symlink, there), ("l/evil", Regular, "x")],
            &[("l", Symlink, there), ("l/kept", Link, "l/kept")],
            &[("h", Link, &through)],
        ];
        for attack in attacks {
            let dir = tempfile::tempdir_in(outside.path()).unwrap();
            let inner = dir.path().join("in");
            fs::create_dir(&inner).unwrap();
            assert!(unpack_into(&inner, attack).is_err(), "{attack:?}");
            assert!(!outside.path().join("evil").exists() && !dir.path().join("evil").exists(), "{attack:?}");
            assert_eq!(fs::read(outside.path().join("kept")).unwrap(), b"mine");
        }
        // A link that is overwritten by a file of its name is replaced, not written through.
        let dir = tempfile::tempdir().unwrap();
        unpack_into(dir.path(), &[("f", Symlink, &through), ("f", Regular, "new")]).unwrap();
        assert_eq!(fs::read(outside.path().join("kept")).unwrap(), b"mine");
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
    }
}
