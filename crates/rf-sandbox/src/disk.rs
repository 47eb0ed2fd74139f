//! A disk of its own for a sandbox: an ext4 file system on a loop device, whose size is the quota.
//!
//! The image is a sparse copy of a blank one of the same size, made once, by a process that is waited for like everything
//! that takes time; it has no name while it is in use, so it is
//! gone with its last user, whatever happens to the warden. Its file system is only ever written by this kernel, never
//! by a user's bytes directly.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use rf_types::Limits;
use rustix::{
    fs::{Mode, OFlags, SeekFrom},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::push::Helper;

/// Smallest image: below it ext4's own tables leave no room to speak of.
const BYTES_MIN: u64 = 8 << 20;
/// What the name of an image ends with that is being made.
const PART: &str = "part";

/// Most blank images that are kept. Chosen: an instance mostly has sandboxes of a few sizes; but users choose their sizes,
/// and each image takes up to some MiB of the server's disk.
const BLANKS_MAX: usize = 16;

/// The program that makes an ext4 file system, if this host has it.
#[must_use]
pub fn mkfs() -> Option<PathBuf> {
    ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/bin/mkfs.ext4"].into_iter().map(PathBuf::from).find(|p| p.exists())
}

/// A mounted, detached file system on an image, and the device it is on.
#[derive(Debug)]
pub struct Image {
    /// The mount; ids are not mapped yet.
    pub mount: OwnedFd,
    /// `major:minor`.
    pub device: String,
}

/// A mounted, detached file system in memory, of at most `bytes` and `inodes`; ids are not mapped yet.
///
/// # Errors
/// The step that failed.
pub fn in_memory(bytes: u64, inodes: u64) -> Result<OwnedFd, DiskError> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step("open tmpfs")?;
    for (key, value) in [("size", bytes.to_string()), ("nr_inodes", inodes.to_string()), ("mode", "0755".to_owned())] {
        fsconfig_set_string(&context, key, value.as_str()).step("set up tmpfs")?;
    }
    fsconfig_create(&context).step("make a tmpfs")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step("mount a tmpfs")
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct DiskError {
    /// What was being done.
    pub step: &'static str,
    /// Why not.
    #[source]
    pub source: io::Error,
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, DiskError> {
        self.map_err(|source| DiskError { step, source: source.into() })
    }
}

/// How large an image is, and how many inodes it has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size {
    bytes: u64,
    inodes: u64,
}

impl Size {
    /// Of a sandbox with these limits.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        Self { bytes: limits.disk_bytes_max.max(BYTES_MIN), inodes: limits.inodes_max }
    }
}

/// A blank image being made by a process. Dropped, that is killed, and waited for, though not for long.
#[derive(Debug)]
pub struct Blank {
    helper: Helper,
    size: Size,
    part: PathBuf,
    path: PathBuf,
}

impl Blank {
    /// Of which size.
    #[must_use]
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Readable when [`Images::finish_blank`] has something to do.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.helper.ended()
    }

    /// The process, killed.
    #[must_use]
    pub fn cut_off(self) -> Helper {
        self.helper.kill();
        let _ = fs::remove_file(&self.part);
        self.helper
    }
}

/// Makes disks in a directory that only the warden can reach.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// Uses `dir`, which is there; nothing of a former warden's in it is of use but the blank images.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A fresh file system of this size, of which there is a blank image.
    ///
    /// # Errors
    /// The step that failed; nothing of it is left.
    pub fn make(&self, size: Size) -> Result<Image, DiskError> {
        let file = self.copy(&self.path(size), size.bytes)?;
        // Open until it is mounted: a loop device with no user clears itself.
        let (device, path) = attach(&file)?;
        let rdev = device.metadata().step("look at a loop device")?.rdev();
        let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).step("open ext4")?;
        fsconfig_set_string(&context, "source", path.as_str()).step("name the disk's device")?;
        fsconfig_create(&context).step("mount the disk")?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step("mount the disk")?;
        Ok(Image { mount, device: number })
    }

    fn path(&self, Size { bytes, inodes }: Size) -> PathBuf {
        self.dir.join(format!("blank-{bytes}-{inodes}"))
    }

    /// Whether there is a blank image of this size; it is about to be used.
    #[must_use]
    pub fn has_blank(&self, size: Size) -> bool {
        let path = self.path(size);
        // The one that was used longest ago goes first; without the note it is the one that was made first.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        path.exists()
    }

    /// Begins to make the blank image of this size. No other may be under way.
    ///
    /// # Errors
    /// The step that failed; nothing is left running.
    pub fn begin_blank(&self, size: Size) -> Result<Blank, DiskError> {
        let path = self.path(size);
        let mkfs = mkfs().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).step("find mkfs.ext4")?;
        self.forget_parts(size);
        // Under a name that nobody had: what a killed warden started may open its own by name only now.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let part = path.with_added_extension(format!("{}.{PART}", now.as_nanos()));
        File::create_new(&part).and_then(|file| file.set_len(size.bytes)).step("make a blank image")?;
        // No journal: what is lost in a crash of the host is a sandbox that is lost with it. Nothing is reserved for
        // root, whose id is the user's here.
        let child = Command::new(mkfs)
            .args(["-q", "-F", "-O", "^has_journal,^resize_inode", "-m", "0", "-E", "nodiscard,root_owner=0:0", "-N"])
            .arg(size.inodes.to_string())
            .arg(&part)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .step("run mkfs.ext4")?;
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(Errno::SRCH).step("run mkfs.ext4")?;
        // It has ended or not, and nobody has taken its end: the number is its own.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).step("watch mkfs.ext4")?;
        Ok(Blank { helper: Helper::new(pidfd), size, part, path })
    }

    /// Whether a blank image is there now, once its process has ended; `None` until then.
    pub fn finish_blank(&self, blank: &mut Blank) -> Option<Result<(), DiskError>> {
        let status = blank.helper.try_status()?;
        if status != Some(0) {
            let Size { bytes, inodes } = blank.size;
            let how = status.map_or_else(|| "was killed".to_owned(), |status| format!("ended with {status}"));
            let error = io::Error::other(format!("mkfs.ext4 {how} for {bytes} bytes and {inodes} inodes"));
            // What stays is removed with the next of this size, or as one that nobody uses.
            let _ = fs::remove_file(&blank.part);
            return Some(Err(error).step("make a blank image"));
        }
        let named = fs::rename(&blank.part, &blank.path).step("name a blank image");
        self.forget_old(&blank.path);
        Some(named)
    }

    /// Removes what a killed warden left half made of an image of this size. What cannot be removed is with the next.
    fn forget_parts(&self, size: Size) {
        let path = self.path(size);
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for part in entries.flatten().map(|entry| entry.path()) {
            // `blank-BYTES-INODES.TIME.part`
            let stem = part.file_stem().map(Path::new).and_then(Path::file_stem);
            if part.extension().is_some_and(|extension| extension == PART) && stem == path.file_name() {
                let _ = fs::remove_file(part);
            }
        }
    }

    /// Removes the blank images that were used longest ago, and what was made of one when a warden was killed, but for
    /// `newest`. What cannot be removed now is tried again with the next.
    fn forget_old(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut blanks: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"blank-") && entry.path() != newest)
            .map(|entry| {
                let used = entry.metadata().and_then(|meta| meta.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
            })
            .collect();
        blanks.sort();
        for (_, path) in blanks.iter().take(blanks.len().saturating_sub(BLANKS_MAX - 1)) {
            let _ = fs::remove_file(path);
        }
    }

    /// A nameless copy of a blank image, its holes left holes.
    fn copy(&self, blank: &Path, bytes: u64) -> Result<File, DiskError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let to: File = rustix::fs::open(&self.dir, flags, Mode::from_raw_mode(0o600)).step("make a disk image")?.into();
        to.set_len(bytes).step("size a disk image")?;
        let from = File::open(blank).step("open the blank image")?;
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        loop {
            // lseek(2), SEEK_DATA: ENXIO past the last data.
            let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(to),
                Err(errno) => return Err(errno).step("look for data in the blank image"),
            };
            let end = rustix::fs::seek(&from, SeekFrom::Hole(start)).step("look for a hole in the blank image")?;
            at = start;
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let got = from.read_at(&mut buffer[..want], at).step("read the blank image")?;
                if got == 0 {
                    return Ok(to);
                }
                to.write_all_at(&buffer[..got], at).step("write a disk image")?;
                at += got as u64;
            }
        }
    }
}

/// Backs a free loop device by the file: the device and its path.
fn attach(file: &File) -> Result<(File, String), DiskError> {
    let control = File::options().read(true).write(true).open("/dev/loop-control").step("open /dev/loop-control")?;
    // Somebody else may take the device between the two calls; each try asks anew.
    for _ in 0..64 {
        let number = rf_sys::loopdev::free_number(control.as_fd()).step("find a free loop device")?;
        let path = format!("/dev/loop{number}");
        let device = File::options().read(true).write(true).open(&path).step("open a loop device")?;
        match rf_sys::loopdev::attach(device.as_fd(), file.as_fd()) {
            Ok(()) => return Ok((device, path)),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).step("attach a loop device"),
        }
    }
    Err(io::Error::from(Errno::BUSY)).step("find a free loop device")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn blank_images_of_sizes_that_nobody_asks_for_any_more_go() {
        let dir = tempfile::tempdir().unwrap();
        let blank = |size: usize| dir.path().join(format!("blank-{size}-256"));
        let begun = SystemTime::now() - Duration::from_secs(1000);
        for size in 0..40 {
            let file = File::create(blank(size)).unwrap();
            file.set_modified(begun + Duration::from_secs(size as u64)).unwrap();
        }
        File::create(dir.path().join("other")).unwrap();
        let images = Images::new(dir.path().to_owned());
        // It is there, and about to be used.
        assert!(images.has_blank(Size { bytes: 3, inodes: 256 }));
        images.forget_old(&blank(0));
        let left: Vec<usize> = (0..40).filter(|size| blank(*size).exists()).collect();
        let mut expected = vec![0, 3];
        expected.extend(26..40);
        assert_eq!(left, expected);
        assert_eq!(left.len(), BLANKS_MAX);
        assert!(dir.path().join("other").exists());
    }
}
