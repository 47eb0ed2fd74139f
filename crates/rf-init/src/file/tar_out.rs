//! `TAR_OUT`: a file or a tree as a pax archive. Hard links are written as files; FIFOs, sockets and devices, and what
//! is below a procfs or sysfs, are left out. A file that shrinks while it is read is filled up with zeros, and one that
//! grows is cut, so that the archive stays whole.

use core::{ffi::CStr, mem::MaybeUninit};

use rf_sys::guest::TakeCell;
use rustix::{
    event::PollFlags,
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{FileType, OFlags, Stat, fstat, readlinkat_raw, sendfile},
    io::Errno,
};

use super::{
    Told,
    open::{is_of_the_kernel, look, look_at, regular, reopen},
    reply::Reply,
    tar::{
        BLOCK, GID, GNAME, LINK, MAGIC, MODE, MTIME, NAME, SIZE, SUM, TYPE, UID, UNAME, padding, put, put_octal,
        put_record, sum, wait_for,
    },
    walk::{WALK, Walk},
};
use crate::users::{ShortName, name_of};

/// Room for the pax records of one entry: two paths and some numbers.
const RECORDS_MAX: usize = 2 * 4096 + 512;
/// Most bytes handed to the kernel at once.
const PIECE: u64 = 1 << 20;

static RECORDS: TakeCell<[u8; RECORDS_MAX]> = TakeCell::new([0; RECORDS_MAX]);

struct Archive {
    pipe: OwnedFd,
    records: &'static mut [u8; RECORDS_MAX],
    /// The last owner looked up, for most files have the same.
    user: (u32, ShortName),
    group: (u32, ShortName),
}

pub(super) fn tar_out(path: &CStr, pipe: OwnedFd, reply: &mut Reply) -> Result<Told, Errno> {
    let records = RECORDS.take().ok_or(Errno::BUSY)?;
    // No file has this owner (setresuid(2)).
    let none = (u32::MAX, ShortName::EMPTY);
    let mut archive = Archive { pipe, records, user: none, group: none };
    let top = look(path, true)?;
    let name = path.to_bytes();
    let name = &name[name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1)..];
    let outcome = if FileType::from_raw_mode(fstat(&top)?.st_mode) == FileType::Directory {
        tree(path, &mut archive)
    } else {
        archive.file(top.as_fd(), name).map_err(|errno| (errno, name))
    };
    if let Err((errno, path)) = outcome {
        reply.failed(errno, path);
        return Ok(Told::Already);
    }
    put(&archive.pipe, &[0; 2 * BLOCK])?;
    // The end of the pipe is seen no later than the answer.
    drop(archive);
    Ok(Told::No)
}

/// Every entry of a directory. An error comes with the path it met.
fn tree(top: &CStr, archive: &mut Archive) -> Result<(), (Errno, &'static [u8])> {
    let walk: &'static mut Walk = WALK.take().ok_or((Errno::BUSY, &b""[..]))?;
    let outcome = (|| {
        walk.begin(top)?;
        while walk.step()? {
            let (directory, name) = walk.at()?;
            let file = match look_at(directory, name, false) {
                Err(Errno::NOENT) => continue,
                outcome => outcome?,
            };
            let stat = fstat(&file)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => archive.file(file.as_fd(), walk.path())?,
                FileType::Symlink => archive.link(file.as_fd(), &stat, walk.path())?,
                FileType::Directory => {
                    archive.directory(&stat, walk.path())?;
                    drop(file);
                    match walk.descend_if(|directory| !is_of_the_kernel(directory)) {
                        // It vanished, or is another thing by now.
                        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })();
    outcome.map_err(|errno| (errno, walk.path()))
}

impl Archive {
    fn directory(&mut self, stat: &Stat, path: &[u8]) -> Result<(), Errno> {
        self.header(b'5', stat, path, b"", 0)
    }

    fn link(&mut self, file: BorrowedFd<'_>, stat: &Stat, path: &[u8]) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let (target, _) = readlinkat_raw(file, c"", &mut buffer)?;
        self.header(b'2', stat, path, target, 0)
    }

    fn file(&mut self, named: BorrowedFd<'_>, path: &[u8]) -> Result<(), Errno> {
        let stat = regular(named)?;
        let file = reopen(named, OFlags::RDONLY)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(b'0', &stat, path, b"", size)?;
        let mut left = size;
        while left > 0 {
            match sendfile(&self.pipe, &file, None, left.min(PIECE) as usize) {
                // It shrank.
                Ok(0) => break,
                Ok(sent) => left = left.saturating_sub(sent as u64),
                Err(Errno::AGAIN) => wait_for(&self.pipe, PollFlags::OUT),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.zeros(left + padding(size))
    }

    fn zeros(&self, mut count: u64) -> Result<(), Errno> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let piece = count.min(ZEROS.len() as u64);
            put(&self.pipe, &ZEROS[..piece as usize])?;
            count -= piece;
        }
        Ok(())
    }

    fn header(&mut self, kind: u8, stat: &Stat, path: &[u8], link: &[u8], size: u64) -> Result<(), Errno> {
        let mut header = [0; BLOCK];
        let mut len = 0;
        // A directory is known by its type; the slash is for older readers.
        let slash = if kind == b'5' { &b"/"[..] } else { b"" };
        let mut fits = true;
        if path.len() + slash.len() <= NAME.len() {
            header[..path.len()].copy_from_slice(path);
            header[path.len()..path.len() + slash.len()].copy_from_slice(slash);
        } else {
            // For readers that do not know the record: as much as there is room for.
            let cut = path.len().min(NAME.len());
            header[..cut].copy_from_slice(&path[..cut]);
            fits &= put_record(self.records, &mut len, b"path", path);
        }
        if link.len() <= LINK.len() {
            header[LINK.start..LINK.start + link.len()].copy_from_slice(link);
        } else {
            fits &= put_record(self.records, &mut len, b"linkpath", link);
        }
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let numbers = [
            (UID, &b"uid"[..], u64::from(stat.st_uid)),
            (GID, b"gid", u64::from(stat.st_gid)),
            (SIZE, b"size", size),
            (MTIME, b"mtime", seconds),
        ];
        for (field, key, value) in numbers {
            if !put_octal(&mut header[field.clone()], value) {
                put_octal(&mut header[field], 0);
                let mut digits = [0; 20];
                fits &= put_record(self.records, &mut len, key, decimal(value, &mut digits));
            }
        }
        let fraction = stat.st_mtime_nsec;
        if len > 0 && fraction != 0 && stat.st_mtime >= 0 {
            // As exact as can be where there is an extended header anyway; it has room for one more number.
            let mut digits = [b'0'; 31];
            let mut whole = [0; 20];
            let whole = decimal(seconds, &mut whole);
            digits[..whole.len()].copy_from_slice(whole);
            digits[whole.len()] = b'.';
            let mut nanos = [0; 20];
            let nanos = decimal(fraction, &mut nanos);
            let end = whole.len() + 10;
            digits[end - nanos.len()..end].copy_from_slice(nanos);
            fits &= put_record(self.records, &mut len, b"mtime", &digits[..end]);
        }
        put_octal(&mut header[MODE], u64::from(stat.st_mode & 0o7777));
        header[TYPE] = kind;
        self.names(stat);
        for (field, name) in [(UNAME, self.user.1.bytes()), (GNAME, self.group.1.bytes())] {
            header[field.start..field.start + name.len()].copy_from_slice(name);
        }
        if !fits {
            return Err(Errno::NAMETOOLONG);
        }
        if len > 0 {
            self.records(len)?;
        }
        self.block(&mut header)
    }

    /// An extended header with the records at hand.
    fn records(&mut self, len: usize) -> Result<(), Errno> {
        let mut header = [0; BLOCK];
        header[..9].copy_from_slice(b"PaxHeader");
        put_octal(&mut header[MODE], 0o644);
        put_octal(&mut header[UID], 0);
        put_octal(&mut header[GID], 0);
        put_octal(&mut header[MTIME], 0);
        put_octal(&mut header[SIZE], len as u64);
        header[TYPE] = b'x';
        self.block(&mut header)?;
        put(&self.pipe, &self.records[..len])?;
        self.zeros(padding(len as u64))
    }

    fn block(&self, header: &mut [u8; BLOCK]) -> Result<(), Errno> {
        header[MAGIC].copy_from_slice(b"ustar\x0000");
        let sum = sum(header);
        // Six digits, a NUL, a space: as everybody writes it.
        put_octal(&mut header[SUM.start..SUM.end - 1], sum);
        header[SUM.end - 1] = b' ';
        put(&self.pipe, header)
    }

    fn names(&mut self, stat: &Stat) {
        if self.user.0 != stat.st_uid {
            self.user = (stat.st_uid, name_of(c"/etc/passwd", stat.st_uid));
        }
        if self.group.0 != stat.st_gid {
            self.group = (stat.st_gid, name_of(c"/etc/group", stat.st_gid));
        }
    }
}

fn decimal(number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}
