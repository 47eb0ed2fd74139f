//! Users of the sandbox, from its own `/etc/passwd` and `/etc/group`.
//!
//! Both files are the workload's to write when it may be root, so they are read as hostile bytes: never a FIFO or a
//! device, never more than [`FILE_MAX`], and a line that does not fit or does not parse is passed over.

use core::ffi::CStr;

use rustix::{
    fd::OwnedFd,
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::{Errno, read},
};

/// Most bytes read of either file; chosen.
const FILE_MAX: usize = 1024 * 1024;
/// Longest line; chosen: a group with hundreds of members.
const LINE_MAX: usize = 4096;
/// Most supplementary groups; chosen, far below the kernel's 65,536.
const GROUPS_MAX: usize = 64;
/// The user where none is named.
const DEFAULT_NAME: &[u8] = b"user";
const DEFAULT_ID: u32 = 1000;

/// A short text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub(crate) const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    /// A copy, if it fits with a NUL after it.
    fn of(text: &[u8]) -> Option<Self> {
        let mut copy = Self::EMPTY;
        copy.bytes[..N - 1].get_mut(..text.len())?.copy_from_slice(text);
        copy.len = text.len();
        Some(copy)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn cstr(&self) -> &CStr {
        rf_sys::guest::cstr(&self.bytes)
    }
}

/// A user of the sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) name: Text<64>,
    pub(crate) home: Text<256>,
    pub(crate) shell: Text<128>,
    groups: [u32; GROUPS_MAX],
    group_count: usize,
}

impl User {
    /// The supplementary groups, the first one included.
    pub(crate) fn groups(&self) -> &[u32] {
        &self.groups[..self.group_count]
    }
}

/// What a lookup may give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    /// Whether uid 0 may be had.
    pub(crate) root: bool,
    /// The one uid there is, if there is only one.
    pub(crate) only: Option<(u32, u32)>,
}

/// Tells whether a file is as it was: what stat(2) says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file at a path; nothing where there is none, and of one that changed less than a second ago: times are as
    /// coarse as the kernel's tick, so a second change may not show.
    fn of(path: &CStr) -> Option<Self> {
        let stat = rustix::fs::stat(path).ok()?;
        let now = i64::try_from(rf_sys::guest::realtime_s()).ok()?;
        let stamp = Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        };
        (stamp.changed.0 < now - 1).then_some(stamp)
    }
}

/// The user that was found last: most execs of a sandbox are of one.
#[derive(Debug)]
pub(crate) struct Found {
    name: Text<64>,
    user: User,
    passwd: Stamp,
    group: Stamp,
}

/// As [`find`], by what was found before where neither file has changed since.
///
/// # Errors
/// As [`find`].
pub(crate) fn find_again(name: &[u8], rights: Rights, last: &mut Option<Found>) -> Result<User, Errno> {
    // Before the files are read: one that changes meanwhile has another stamp the next time.
    let stamps = Stamp::of(c"/etc/passwd").zip(Stamp::of(c"/etc/group"));
    let same = |found: &&Found| Some((found.passwd, found.group)) == stamps && found.name.bytes() == name;
    if let Some(found) = last.as_ref().filter(same) {
        return Ok(found.user);
    }
    let user = find(name, rights)?;
    *last = stamps.zip(Text::of(name)).map(|((passwd, group), name)| Found { name, user, passwd, group });
    Ok(user)
}

/// Finds a user by name or id; the empty name is the default user.
///
/// # Errors
/// `ENOENT` when there is no such user; `EPERM` when it may not be had.
pub(crate) fn find(name: &[u8], rights: Rights) -> Result<User, Errno> {
    let default_id = rights.only.map_or(DEFAULT_ID, |(uid, _)| uid);
    let wanted = if name.is_empty() && rights.only.is_none() { DEFAULT_NAME } else { name };
    let by_id = id(wanted);
    let mut found = None;
    lines(c"/etc/passwd", &mut |line| {
        let entry = passwd(line);
        let hit = |entry: &User| match by_id {
            _ if wanted.is_empty() => entry.uid == default_id,
            Some(id) => entry.uid == id,
            None => entry.name.bytes() == wanted,
        };
        found = entry.filter(hit);
        found.is_some()
    });
    let mut user = match found {
        Some(user) => user,
        None if name.is_empty() || name == DEFAULT_NAME => User {
            uid: default_id,
            gid: rights.only.map_or(DEFAULT_ID, |(_, gid)| gid),
            // All three are shorter than their room.
            name: Text::of(DEFAULT_NAME).unwrap_or(Text::EMPTY),
            home: Text::of(b"/home/user").unwrap_or(Text::EMPTY),
            shell: Text::of(b"/bin/sh").unwrap_or(Text::EMPTY),
            groups: [0; GROUPS_MAX],
            group_count: 0,
        },
        // An id needs no entry: images name such users too.
        None => {
            let uid = by_id.ok_or(Errno::NOENT)?;
            User {
                uid,
                gid: uid,
                // All three are shorter than their room.
                name: Text::of(wanted).unwrap_or(Text::EMPTY),
                home: Text::of(b"/").unwrap_or(Text::EMPTY),
                shell: Text::of(b"/bin/sh").unwrap_or(Text::EMPTY),
                groups: [0; GROUPS_MAX],
                group_count: 0,
            }
        }
    };
    match rights.only {
        Some((uid, gid)) if uid == user.uid => user.gid = gid,
        Some(_) => return Err(Errno::PERM),
        None if user.uid == 0 && !rights.root => return Err(Errno::PERM),
        None => {}
    }
    user.groups[0] = user.gid;
    user.group_count = 1;
    if rights.only.is_none() {
        lines(c"/etc/group", &mut |line| {
            if let Some(gid) = group_of(line, user.name.bytes()).filter(|gid| !user.groups().contains(gid)) {
                user.groups[user.group_count] = gid;
                user.group_count += 1;
            }
            user.group_count == GROUPS_MAX
        });
    }
    Ok(user)
}

/// A name as a tar header has room for, with its NUL.
pub(crate) type ShortName = Text<32>;

/// The name of a uid or gid in `file`; empty when it has none.
pub(crate) fn name_of(file: &CStr, id: u32) -> ShortName {
    let mut found = Text::EMPTY;
    lines(file, &mut |line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().and_then(Text::of);
        match (name, fields.nth(1).and_then(number)) {
            (Some(name), Some(number)) if number == id => {
                found = name;
                true
            }
            _ => false,
        }
    });
    found
}

/// `name:password:uid:gid:comment:home:shell` (passwd(5)).
fn passwd(line: &[u8]) -> Option<User> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = Text::of(fields.next()?)?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1)?;
    let home = if home.starts_with(b"/") { home } else { b"/" };
    let shell = fields.next().filter(|shell| shell.starts_with(b"/")).unwrap_or(b"/bin/sh");
    let (home, shell) = (Text::of(home)?, Text::of(shell)?);
    (name.len > 0).then_some(User { uid, gid, name, home, shell, groups: [0; GROUPS_MAX], group_count: 0 })
}

/// The gid of a line `name:password:gid:member,member` (group(5)) that has `user` among its members.
fn group_of(line: &[u8], user: &[u8]) -> Option<u32> {
    let mut fields = line.split(|byte| *byte == b':');
    let gid = number(fields.nth(2)?)?;
    let mut members = fields.next()?.split(|byte| *byte == b',');
    members.any(|member| member == user).then_some(gid)
}

/// A decimal id. The last value means "no id" to the kernel (setresuid(2)).
fn number(digits: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(digits).ok()?;
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// An id in the one form that it has: other programs judge by it.
fn id(text: &[u8]) -> Option<u32> {
    number(text).filter(|_| text == b"0" || !text.starts_with(b"0"))
}

fn open(path: &CStr) -> Result<OwnedFd, Errno> {
    // Not waiting, whatever it is: a FIFO, or a file with a lease on it (fcntl(2), F_SETLEASE).
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile { Ok(file) } else { Err(Errno::INVAL) }
}

/// Gives each line of a file to `visit` until it says that it has enough. A file that cannot be read has no lines.
fn lines(path: &CStr, visit: &mut dyn FnMut(&[u8]) -> bool) {
    let Ok(file) = open(path) else { return };
    let mut buffer = [0; LINE_MAX];
    let (mut filled, mut total, mut skipping) = (0, 0, false);
    loop {
        let got = match read(&file, &mut buffer[filled..]) {
            Ok(got) if got > 0 && total < FILE_MAX => got,
            _ => break,
        };
        total += got;
        filled += got;
        let mut start = 0;
        while let Some(len) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            if !core::mem::take(&mut skipping) && visit(&buffer[start..start + len]) {
                return;
            }
            start += len + 1;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == LINE_MAX {
            // Longer than any line of sense: passed over up to its end.
            (filled, skipping) = (0, true);
        }
    }
    if filled > 0 && !skipping {
        visit(&buffer[..filled]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line_gives_its_user() {
        let user = passwd(b"user:x:1000:1001:Somebody,,,:/home/user:/bin/bash").unwrap();
        assert_eq!(
            (user.uid, user.gid, user.home.bytes(), user.shell.bytes()),
            (1000, 1001, &b"/home/user"[..], &b"/bin/bash"[..])
        );
        assert_eq!(user.name.cstr(), c"user");
    }

    #[test]
    fn lines_that_make_no_user_are_passed_over() {
        for line in [
            &b""[..],
            b"user",
            b"user:x:1:2",
            b":x:0:0::/:/bin/sh",
            b"u:x:-1:0::/:",
            b"u:x:4294967295:0::/:",
            b"u:x:+1:0::/:",
        ] {
            assert!(passwd(line).is_none(), "{}", line.escape_ascii());
        }
        let long = [b'n'; 64];
        assert!(passwd(&[&long[..], b":x:1:1::/:/bin/sh"].concat()).is_none());
    }

    #[test]
    fn a_home_that_is_not_absolute_is_the_root() {
        assert_eq!(passwd(b"u:x:5:5::home:/bin/sh").unwrap().home.bytes(), b"/");
    }

    #[test]
    fn groups_are_those_with_the_user_among_their_members() {
        assert_eq!(group_of(b"video:x:44:a,user,b", b"user"), Some(44));
        assert_eq!(group_of(b"video:x:44:a,username", b"user"), None);
        assert_eq!(group_of(b"video:x:44:", b"user"), None);
    }
}
