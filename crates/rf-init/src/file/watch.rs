//! `WATCH`: tells of changes below a path until the server closes the reply socket, or the path is gone.

use core::{ffi::CStr, mem::MaybeUninit};

use rf_sys::guest::TakeCell;
use rf_wire::{
    detail::answer,
    init::{change, file_answer},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd, OwnedFd},
    fs::{
        FileType, fstat, fstatfs,
        inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    },
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    Told,
    detail::{Describer, Path},
    open::{Place, look, look_at, path_of, place_of},
    reply::Reply,
    walk::{WALK, Walk},
};
use crate::channel::Sent;

/// Most directories watched at once; chosen. The kernel has a bound for each user of its own (inotify(7)).
const WATCHES_MAX: usize = 4096;
/// Room for the paths of them all.
const PATHS_MAX: usize = 512 * 1024;

/// NFS, CIFS, SMB, SMB 2 and FUSE (statfs(2); linux/magic.h).
const NETWORK_MAGICS: [u64; 5] = [0x6969, 0xff53_4d42, 0x517b, 0xfe53_4d42, 0x6573_5546];

/// One watched directory; `wd` 0 is none (the kernel begins at 1).
#[derive(Clone, Copy, Debug)]
struct Watched {
    wd: i32,
    at: u32,
    len: u32,
}

#[derive(Debug)]
struct Watches {
    list: [Watched; WATCHES_MAX],
    count: usize,
    paths: [u8; PATHS_MAX],
    used: usize,
    /// A path put together.
    path: [u8; 8192],
}

static WATCHES: TakeCell<Watches> = TakeCell::new(Watches {
    list: [Watched { wd: 0, at: 0, len: 0 }; WATCHES_MAX],
    count: 0,
    paths: [0; PATHS_MAX],
    used: 0,
    path: [0; 8192],
});

impl Watches {
    fn path_of(&self, wd: i32) -> Option<&[u8]> {
        let watched = self.list[..self.count].iter().find(|watched| watched.wd == wd)?;
        Some(&self.paths[watched.at as usize..(watched.at + watched.len) as usize])
    }

    fn add(&mut self, wd: i32, path: &[u8]) -> Result<(), Errno> {
        // The same directory again: it was renamed, and this is its path now.
        self.forget(wd);
        if self.count == WATCHES_MAX || self.used + path.len() > PATHS_MAX {
            self.compact();
        }
        let slot = self.list.get_mut(self.count).ok_or(Errno::NOSPC)?;
        self.paths.get_mut(self.used..self.used + path.len()).ok_or(Errno::NOSPC)?.copy_from_slice(path);
        *slot = Watched { wd, at: self.used as u32, len: path.len() as u32 };
        self.count += 1;
        self.used += path.len();
        Ok(())
    }

    fn forget(&mut self, wd: i32) {
        if let Some(watched) = self.list[..self.count].iter_mut().find(|watched| watched.wd == wd) {
            watched.wd = 0;
        }
    }

    /// Forgets `path` and what is below it, and has the kernel watch that no longer.
    fn forget_below(&mut self, queue: &OwnedFd, path: &[u8]) {
        for watched in &mut self.list[..self.count] {
            let own = &self.paths[watched.at as usize..(watched.at + watched.len) as usize];
            if watched.wd != 0 && own.strip_prefix(path).is_some_and(|rest| matches!(rest, [] | [b'/', ..])) {
                // One that is gone by itself has no watch any more.
                let _ = inotify::remove_watch(queue, watched.wd);
                watched.wd = 0;
            }
        }
    }

    /// Closes the gaps of what is forgotten. Paths lie in the order of the list, so each moves down.
    fn compact(&mut self) {
        let (mut count, mut used) = (0, 0);
        for index in 0..self.count {
            let watched = self.list[index];
            if watched.wd != 0 {
                let (at, len) = (watched.at as usize, watched.len as usize);
                self.paths.copy_within(at..at + len, used);
                self.list[count] = Watched { at: used as u32, ..watched };
                count += 1;
                used += len;
            }
        }
        (self.count, self.used) = (count, used);
    }
}

struct Watch<'a> {
    queue: OwnedFd,
    watches: &'static mut Watches,
    walk: &'static mut Walk,
    reply: &'a mut Reply,
    recursive: bool,
    /// The watched path, and which file it named. Not held open: the kernel tells of a removal only when nobody holds
    /// the file any more.
    path: &'a CStr,
    place: Place,
    /// News were lost, and that was not told yet.
    overflow: bool,
    detail: Option<InDetail>,
}

/// What a watch in detail has beside.
struct InDetail {
    describer: Describer,
    entries: bool,
}

fn interest() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB
        | WatchFlags::EXCL_UNLINK
}

pub(super) fn watch(path: &CStr, recursive: bool, reply: &mut Reply) -> Result<Told, Errno> {
    begin(path, recursive, None, look(path, true)?, reply)
}

/// [`watch`] in detail: directories only, and unless `network` only where the kernel sees every change.
///
/// # Errors
/// `ENOTDIR`; `EREMOTE` where it does not.
pub(super) fn watch_in_detail(
    path: &CStr,
    recursive: bool,
    network: bool,
    entries: bool,
    describer: Describer,
    reply: &mut Reply,
) -> Result<Told, Errno> {
    let top = look(path, true)?;
    if FileType::from_raw_mode(fstat(&top)?.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    if !network && NETWORK_MAGICS.contains(&(fstatfs(&top)?.f_type as u64)) {
        return Err(Errno::REMOTE);
    }
    begin(path, recursive, Some(InDetail { describer, entries }), top, reply)
}

fn begin(
    path: &CStr,
    recursive: bool,
    detail: Option<InDetail>,
    top: OwnedFd,
    reply: &mut Reply,
) -> Result<Told, Errno> {
    let stat = fstat(&top)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let mut watch = Watch {
        queue: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
        watches: WATCHES.take().ok_or(Errno::BUSY)?,
        walk: WALK.take().ok_or(Errno::BUSY)?,
        reply,
        recursive: recursive && is_directory,
        path,
        place: place_of(&stat),
        overflow: false,
        detail,
    };
    watch.add_top(&top)?;
    drop(top);
    if watch.recursive {
        watch.add_below(b"", false)?;
    }
    if let Some(detail) = &mut watch.detail {
        detail.describer.tell_path(path, watch.reply)?;
    }
    watch.reply.done();
    match watch.follow() {
        Ok(()) => {}
        Err(errno) => watch.reply.failed(errno, path.to_bytes()),
    }
    Ok(Told::Already)
}

impl Watch<'_> {
    /// Watches the named file itself, whatever its path leads to by now.
    fn add_top(&mut self, top: &OwnedFd) -> Result<(), Errno> {
        let path = path_of(top.as_fd())?;
        let wd = inotify::add_watch(&self.queue, path.cstr(), interest())?;
        self.watches.add(wd, b"")
    }

    /// Watches every directory below `from`, itself included unless it is the top. With `tell`, tells of all that is
    /// found, for it was made before it was watched.
    fn add_below(&mut self, from: &[u8], tell: bool) -> Result<(), Errno> {
        let top = look(self.path, true).and_then(|top| Ok((place_of(&fstat(&top)?), top)));
        let Some((_, top)) = top.ok().filter(|(place, _)| *place == self.place) else {
            // The path names another file by now, and that of ours is somewhere else: look again.
            self.overflow = true;
            return self.tell_overflow().map(drop);
        };
        let start = if from.is_empty() {
            look_at(top.as_fd(), c".", false)
        } else {
            let mut name = [0; 4096];
            name[..4095].get_mut(..from.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(from);
            look_at(top.as_fd(), rf_sys::guest::cstr(&name), false)
        };
        let start = match start {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            outcome => outcome?,
        };
        if FileType::from_raw_mode(fstat(&start)?.st_mode) != FileType::Directory {
            return Ok(());
        }
        if !from.is_empty() {
            self.add_directory(&start, from)?;
        }
        self.walk.restart(path_of(start.as_fd())?.cstr())?;
        while self.walk.step()? {
            let (directory, name) = self.walk.at()?;
            let Ok(file) = look_at(directory, name, false) else { continue };
            let Ok(stat) = fstat(&file) else { continue };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let below = self.walk.path();
            let slash: &[u8] = if from.is_empty() { b"" } else { b"/" };
            let len = join(&mut self.watches.path, &[from, slash, below])?;
            let mut path = [0; 4096];
            path.get_mut(..len).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(&self.watches.path[..len]);
            if tell {
                // What has content by now was written unseen as well.
                let written = self.detail.is_some() && !is_directory && stat.st_size > 0;
                let mask = change::CREATE
                    | if is_directory { change::DIRECTORY } else { 0 }
                    | if written { change::WRITE } else { 0 };
                if !self.tell(mask, &path[..len])? {
                    return Ok(());
                }
            }
            if is_directory {
                self.add_directory(&file, &path[..len])?;
                match self.walk.descend() {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
        let name = path_of(directory.as_fd())?;
        match inotify::add_watch(&self.queue, name.cstr(), interest() | WatchFlags::ONLYDIR) {
            Ok(wd) => self.watches.add(wd, path),
            // It may not be read, so nobody could be told of it; or it is gone.
            Err(Errno::ACCESS | Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Tells of one change; false when the server is gone. One that does not fit in the server's queue is lost, and
    /// that is told as soon as there is room.
    fn tell(&mut self, mask: u32, path: &[u8]) -> Result<bool, Errno> {
        if self.overflow && !self.tell_overflow()? {
            return Ok(!self.reply.is_abandoned());
        }
        if self.detail.is_some() {
            return self.tell_in_detail(mask, path);
        }
        let sent = self.reply.try_send(file_answer::CHANGE, None, |writer| {
            writer.u32(mask);
            writer.string(path);
        });
        match sent {
            Sent::Yes => Ok(true),
            Sent::Gone => Ok(false),
            Sent::Later => {
                self.overflow = true;
                Ok(true)
            }
            Sent::Refused(errno) => Err(errno),
        }
    }

    /// As [`Watch::tell`], waiting for the server: meanwhile the kernel's queue holds what happens.
    fn tell_in_detail(&mut self, mask: u32, path: &[u8]) -> Result<bool, Errno> {
        const DESCRIBED: u32 = change::CREATE | change::WRITE | change::ATTRIBUTES;
        let Some(detail) = &mut self.detail else { return Ok(false) };
        let reply = &mut *self.reply;
        let mut sent = Err(Errno::NOENT);
        if detail.entries && mask & DESCRIBED != 0 {
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let whole = Path::of(&[self.path.to_bytes(), slash, path]).ok_or(Errno::NAMETOOLONG)?;
            sent = detail.describer.with_path(whole.cstr(), |detail| {
                reply.send(answer::CHANGED, None, |writer| {
                    writer.u32(mask);
                    writer.string(path);
                    writer.u32(1);
                    detail.write(writer);
                })
            });
        }
        // What is gone by now, or may not be seen, is told of without a description.
        if sent.as_ref().is_err_and(|errno| *errno != Errno::PIPE) {
            sent = reply.send(answer::CHANGED, None, |writer| {
                writer.u32(mask);
                writer.string(path);
                writer.u32(0);
            });
        }
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::PIPE) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the server said something; then it wants to know when all that happened before was told.
    fn is_asked(&self) -> Result<bool, Errno> {
        let mut word = [0; 1];
        match recv(self.reply.socket(), &mut word, RecvFlags::DONTWAIT) {
            Ok((got, _)) => Ok(got > 0),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// True when the overflow was told.
    fn tell_overflow(&mut self) -> Result<bool, Errno> {
        let sent = self.reply.try_send(file_answer::CHANGE, None, |writer| {
            writer.u32(change::OVERFLOW);
            writer.string(b"");
        });
        match sent {
            Sent::Yes => {
                self.overflow = false;
                Ok(true)
            }
            Sent::Later | Sent::Gone => Ok(false),
            Sent::Refused(errno) => Err(errno),
        }
    }

    fn follow(&mut self) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        loop {
            let mut room = if self.overflow { PollFlags::OUT } else { PollFlags::empty() };
            if self.detail.is_some() {
                room |= PollFlags::IN;
            }
            let mut fds =
                [PollFd::new(&self.queue, PollFlags::IN), PollFd::from_borrowed_fd(self.reply.socket(), room)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            let server = fds[1].revents();
            if server.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
            if server.contains(PollFlags::OUT) {
                self.tell_overflow()?;
            }
            // Asked before they are read: what happened before the question is among them.
            let is_asked = server.contains(PollFlags::IN) && self.is_asked()?;
            if !self.read_events(&mut buffer)? {
                return Ok(());
            }
            if is_asked {
                self.reply.done();
            }
        }
    }

    /// Takes what the kernel has to tell; false when nothing more is to come.
    fn read_events(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Result<bool, Errno> {
        let queue = rustix::io::dup(&self.queue)?;
        let mut events = inotify::Reader::new(&queue, buffer);
        // A directory that was moved from where it is watched, and the rename's number.
        let (mut left, mut left_len, mut rename) = ([0; 4096], 0, 0);
        loop {
            let event = events.next();
            // The other half of a rename comes next. Where it does not, what left is watched no longer; should it come
            // later all the same, it is watched anew.
            let stays = event
                .as_ref()
                .is_ok_and(|event| event.events().contains(ReadFlags::MOVED_TO) && event.cookie() == rename);
            if left_len > 0 && !stays {
                self.watches.forget_below(&self.queue, &left[..left_len]);
            }
            left_len = 0;
            let event = match event {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
                Err(errno) => return Err(errno),
            };
            let (wd, flags) = (event.wd(), event.events());
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.overflow = true;
                self.tell_overflow()?;
                continue;
            }
            let name = event.file_name().map_or(&b""[..], CStr::to_bytes);
            let Some(directory) = self.watches.path_of(wd) else { continue };
            let is_top = directory.is_empty();
            let mut path = [0; 4096];
            let slash: &[u8] = if is_top || name.is_empty() { b"" } else { b"/" };
            let Ok(len) = join(&mut path, &[directory, slash, name]) else { continue };
            let path = &path[..len];
            if flags.contains(ReadFlags::IGNORED) {
                self.watches.forget(wd);
                if is_top {
                    return Ok(false);
                }
                continue;
            }
            // A watched directory's own changes are told by the directory above it, but for the top.
            if name.is_empty() && !is_top {
                continue;
            }
            let mut mask = mask_of(flags);
            if self.detail.is_some() && flags.contains(ReadFlags::MOVED_TO) {
                mask = mask & !change::RENAME | change::CREATE;
            }
            if mask & !change::DIRECTORY != 0 && !self.tell(mask, path)? {
                return Ok(false);
            }
            if self.recursive && flags.contains(ReadFlags::MOVED_FROM | ReadFlags::ISDIR) {
                left[..len].copy_from_slice(path);
                (left_len, rename) = (len, event.cookie());
            }
            let came = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            if self.recursive && came && flags.contains(ReadFlags::ISDIR) {
                self.add_below(path, true)?;
            }
        }
    }
}

/// The bits of [`change`] for what the kernel tells.
fn mask_of(flags: ReadFlags) -> u32 {
    [
        (ReadFlags::CREATE, change::CREATE),
        (ReadFlags::MODIFY, change::WRITE),
        (ReadFlags::DELETE | ReadFlags::DELETE_SELF | ReadFlags::UNMOUNT, change::REMOVE),
        (ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO | ReadFlags::MOVE_SELF, change::RENAME),
        (ReadFlags::ATTRIB, change::ATTRIBUTES),
        (ReadFlags::ISDIR, change::DIRECTORY),
    ]
    .into_iter()
    .filter(|(kernel, _)| flags.intersects(*kernel))
    .fold(0, |mask, (_, bit)| mask | bit)
}

fn join(buffer: &mut [u8], parts: &[&[u8]]) -> Result<usize, Errno> {
    let mut len = 0;
    for part in parts {
        buffer.get_mut(len..len + part.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(part);
        len += part.len();
    }
    Ok(len)
}
