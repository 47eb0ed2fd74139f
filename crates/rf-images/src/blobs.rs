//! Blobs by digest: `DIR/sha256/HEX`, written beside (`DIR/partial/HEX`), verified, synced, renamed.
//!
//! A file that has its name is whole and has its digest. A part that was cut off stays and is gone on with.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest as _, Sha256};

use crate::{Digest, ImageError};

/// Bytes copied at once. Chosen.
const CHUNK: usize = 128 << 10;

/// The blobs of one server.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    /// Names files whose digest is not known yet.
    next: AtomicU64,
}

impl Blobs {
    /// Opens or makes the store in a directory that only the server can write.
    ///
    /// # Errors
    /// The directories cannot be made.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        for inner in ["sha256", "partial"] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir.join(inner))
                .map_err(ImageError::files(format!("make `{}`", dir.join(inner).display())))?;
        }
        Ok(Self { dir: dir.to_owned(), next: AtomicU64::new(0) })
    }

    /// Where the blobs are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens a blob for reading from its start; `None` when it is not there.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn get(&self, digest: &Digest) -> Result<Option<File>, ImageError> {
        match File::open(self.path(digest)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ImageError::files(format!("open the blob {digest}"))(e)),
        }
    }

    /// The blob's size in bytes; `None` when it is not there.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, ImageError> {
        match self.get(digest)? {
            Some(file) => file.metadata().map(|meta| Some(meta.len())).map_err(ImageError::files("look at a blob")),
            None => Ok(None),
        }
    }

    /// A whole small blob.
    ///
    /// # Errors
    /// It is not there, larger than `max`, or cannot be read.
    pub fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, ImageError> {
        let Some(file) = self.get(digest)? else { return Err(ImageError::Malformed(format!("it lacks {digest}"))) };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(ImageError::files(format!("read the blob {digest}")))?;
        if bytes.len() as u64 > max {
            return Err(ImageError::Bound { what: "bytes in a document", max });
        }
        Ok(bytes)
    }

    /// Begins to write a blob, or goes on where an earlier writer was cut off. `size` is how many bytes it must have.
    ///
    /// # Errors
    /// Another writer of the same blob is at work; the part cannot be opened or read.
    pub fn write(&self, digest: Digest, size: u64) -> Result<BlobWriter<'_>, ImageError> {
        let part = self.dir.join("partial").join(digest.hex());
        let step = || ImageError::files(format!("write the blob {digest}"));
        let mut file = loop {
            let file = options().truncate(false).open(&part).map_err(step())?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
                .map_err(|e| ImageError::files(format!("fetch {digest}: another import is at it"))(e.into()))?;
            // Between opening and locking another writer may have made it a blob: then it is not ours to write.
            let named = fs::symlink_metadata(&part).map(|meta| meta.ino()).ok();
            if named == Some(file.metadata().map_err(step())?.ino()) {
                break file;
            }
        };
        let mut hash = Sha256::new();
        let mut done = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            match file.read(&mut buffer).map_err(step())? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    done += count as u64;
                }
            }
        }
        let mut writer = BlobWriter { blobs: self, part, file, hash, done, digest, size };
        if done > size {
            writer.restart()?;
        }
        Ok(writer)
    }

    /// Bytes of a blob that an earlier writer left, from which [`Self::write`] would go on.
    ///
    /// # Errors
    /// The part cannot be looked at.
    pub fn part_size(&self, digest: &Digest, size: u64) -> Result<u64, ImageError> {
        match fs::symlink_metadata(self.dir.join("partial").join(digest.hex())) {
            Ok(meta) => Ok(if meta.len() > size { 0 } else { meta.len() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(ImageError::files(format!("look at a part of {digest}"))(e)),
        }
    }

    /// Stores everything that a reader gives; returns its digest and size.
    ///
    /// # Errors
    /// More than `max` bytes; reading or writing fails.
    pub fn add(&self, reader: &mut dyn Read, max: u64) -> Result<(Digest, u64), ImageError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let part = self.dir.join("partial").join(format!("new-{}-{number}", std::process::id()));
        let added = self.add_as(&part, reader, max);
        if added.is_err() {
            // The first error is what counts; what is left is removed at the next sweep.
            let _ = fs::remove_file(&part);
        }
        added
    }

    fn add_as(&self, part: &Path, reader: &mut dyn Read, max: u64) -> Result<(Digest, u64), ImageError> {
        let mut file = options().create_new(true).open(part).map_err(ImageError::files("write a blob"))?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ImageError::files("read the image")(e)),
            };
            size += count as u64;
            if size > max {
                return Err(ImageError::Bound { what: "bytes in one file", max });
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(ImageError::files("write a blob"))?;
        }
        let digest = Digest::from_hash(hash);
        self.settle(&file, part, &digest)?;
        Ok((digest, size))
    }

    /// Makes a verified part a blob.
    fn settle(&self, file: &File, part: &Path, digest: &Digest) -> Result<(), ImageError> {
        file.sync_all()
            .and_then(|()| fs::rename(part, self.path(digest)))
            .and_then(|()| File::open(self.dir.join("sha256"))?.sync_all())
            .map_err(ImageError::files(format!("keep the blob {digest}")))
    }

    /// Removes a blob; nothing happens when it is not there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        match fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::files(format!("remove the blob {digest}"))(e))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes every blob and part that is not among these; returns how many bytes were freed. No writer may be at
    /// work.
    ///
    /// # Errors
    /// A directory cannot be read or a file not be removed.
    pub fn sweep(&self, keep: &HashSet<Digest>) -> Result<u64, ImageError> {
        let keep: HashSet<String> = keep.iter().map(Digest::hex).collect();
        let mut freed = 0;
        for inner in ["sha256", "partial"] {
            let dir = self.dir.join(inner);
            let step = || ImageError::files(format!("sweep `{}`", dir.display()));
            for entry in fs::read_dir(&dir).map_err(step())? {
                let entry = entry.map_err(step())?;
                let kept = inner == "sha256" && entry.file_name().to_str().is_some_and(|name| keep.contains(name));
                if !kept {
                    freed += entry.metadata().map_err(step())?.len();
                    fs::remove_file(entry.path()).map_err(step())?;
                }
            }
        }
        Ok(freed)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("sha256").join(digest.hex())
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

/// A blob that comes in. Dropped before [`Self::finish`], what came stays as a part.
#[derive(Debug)]
pub struct BlobWriter<'b> {
    blobs: &'b Blobs,
    part: PathBuf,
    file: File,
    hash: Sha256,
    done: u64,
    digest: Digest,
    size: u64,
}

impl BlobWriter<'_> {
    /// Bytes that are there already: from where to go on.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Forgets what is there.
    ///
    /// # Errors
    /// The part cannot be emptied.
    pub fn restart(&mut self) -> Result<(), ImageError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(ImageError::files(format!("write the blob {}", self.digest)))?;
        self.hash = Sha256::new();
        self.done = 0;
        Ok(())
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// They are more than the blob has; they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        if bytes.len() as u64 > self.size - self.done {
            return Err(ImageError::Size { digest: self.digest, expected: self.size, found: self.size + 1 });
        }
        self.file.write_all(bytes).map_err(ImageError::files(format!("write the blob {}", self.digest)))?;
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// Verifies and keeps the blob.
    ///
    /// # Errors
    /// Fewer bytes than it has, which stay as a part; another digest, and then nothing stays; it cannot be kept.
    pub fn finish(self) -> Result<(), ImageError> {
        if self.done != self.size {
            return Err(ImageError::Size { digest: self.digest, expected: self.size, found: self.done });
        }
        let found = Digest::from_hash(self.hash);
        if found != self.digest {
            fs::remove_file(&self.part).map_err(ImageError::files("remove a wrong blob"))?;
            return Err(ImageError::Digest { expected: self.digest, found });
        }
        self.blobs.settle(&self.file, &self.part, &self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_there_only_when_it_is_whole_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello");
        let mut writer = blobs.write(digest, 5).unwrap();
        writer.write(b"hel").unwrap();
        assert!(matches!(writer.finish(), Err(ImageError::Size { found: 3, .. })));
        assert!(blobs.get(&digest).unwrap().is_none());
        // Another writer goes on.
        let mut writer = blobs.write(digest, 5).unwrap();
        assert_eq!(writer.done(), 3);
        writer.write(b"lo").unwrap();
        assert!(matches!(writer.write(b"!"), Err(ImageError::Size { found: 6, .. })));
        writer.finish().unwrap();
        assert_eq!(blobs.read(&digest, 5).unwrap(), b"hello");
        assert!(matches!(blobs.read(&digest, 4), Err(ImageError::Bound { .. })));
        // Wrong bytes leave neither a blob nor a part to go on with.
        let other = Digest::of(b"other");
        let first = blobs.write(other, 5).unwrap();
        assert!(matches!(blobs.write(other, 5), Err(ImageError::Files { .. })), "two writers of one blob");
        drop(first);
        let mut writer = blobs.write(other, 5).unwrap();
        writer.write(b"wrong").unwrap();
        assert!(matches!(writer.finish(), Err(ImageError::Digest { found, .. }) if found == Digest::of(b"wrong")));
        assert_eq!(blobs.write(other, 5).unwrap().done(), 0);
        // A part longer than the blob is no start of it.
        fs::write(dir.path().join("partial").join(other.hex()), "far too long").unwrap();
        assert_eq!(blobs.write(other, 5).unwrap().done(), 0);
    }

    #[test]
    fn what_is_added_is_named_by_its_digest_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(blobs.add(&mut b"abc".as_slice(), 3).unwrap(), (Digest::of(b"abc"), 3));
        assert!(matches!(blobs.add(&mut b"abcd".as_slice(), 3), Err(ImageError::Bound { .. })));
        assert_eq!(blobs.size(&Digest::of(b"abc")).unwrap(), Some(3));
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
        let kept = blobs.add(&mut b"kept".as_slice(), 9).unwrap().0;
        assert_eq!(blobs.sweep(&HashSet::from([kept])).unwrap(), 3);
        assert!(blobs.get(&kept).unwrap().is_some() && blobs.get(&Digest::of(b"abc")).unwrap().is_none());
    }
}
