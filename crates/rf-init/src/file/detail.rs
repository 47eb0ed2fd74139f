//! File operations in detail: paths from the user's home on, names of owners, what a link leads to, attributes. See
//! `rf_wire::detail`.

use core::{ffi::CStr, mem::MaybeUninit};

use rf_sys::guest::{TakeCell, cstr};
use rf_wire::{
    detail::{ATTRIBUTE_PREFIX, ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, Attributes, Detail, answer, flag},
    init::{File, file_op},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        CWD, FileType, Gid, Mode, Stat, Uid, XattrFlags, fchown, flistxattr, fremovexattr, fsetxattr, fstat, getxattr,
        listxattr, readlinkat_raw,
    },
    io::Errno,
};

use super::{
    Told, basic, open,
    open::{look, look_at, path_of},
    remove,
    reply::{Reply, entry_of},
    walk::{WALK, Walk},
    watch, write,
};
use crate::{
    text::Name,
    users::{ShortName, User, name_of},
};

/// A path with its NUL (path_resolution(7)).
pub(super) type Path = Name<4096>;
/// Longest name of an attribute with its NUL (xattr(7)), and longest value that is told.
const NAME_MAX: usize = 256;
const VALUE_MAX: usize = 4096;
/// Longest list of names (xattr(7)) that is looked at.
const NAMES_MAX: usize = 8192;
/// Deepest `LIST`, as of the other.
const DEPTH_MAX: u32 = 64;
/// Most entries of one `LIST`; chosen.
const ENTRIES_MAX: u32 = 1_000_000;

static LIST: TakeCell<[u8; ATTRIBUTES_BYTES_MAX]> = TakeCell::new([0; ATTRIBUTES_BYTES_MAX]);

pub(super) fn operate(order: &File<'_>, user: &User, reply: &mut Reply) -> Result<Told, Errno> {
    let path = expand(cstr(order.a), user)?;
    let a = path.cstr();
    let mut describer = Describer::new()?;
    let permissions = Mode::from_raw_mode(order.permissions & 0o7777);
    match order.op {
        file_op::READ => return open::read(a, reply),
        file_op::WRITE => return write_in_place(a, permissions, cstr(order.b).to_bytes(), user, reply),
        file_op::LIST => list(a, order.number, &mut describer, reply)?,
        file_op::STAT => describer.tell_path(a, reply)?,
        file_op::MAKE_DIR => {
            make_dir(a, permissions)?;
            describer.tell_path(a, reply)?;
        }
        file_op::MOVE => {
            let to = expand(cstr(order.b), user)?;
            basic::make_parents(to.cstr())?;
            basic::rename(a, to.cstr(), true)?;
            describer.tell_path(to.cstr(), reply)?;
        }
        file_op::REMOVE => remove::remove(a, true, reply)?,
        file_op::WATCH => {
            let recursive = order.flags & 1 != 0;
            let network = order.flags & flag::NETWORK != 0;
            return watch::watch_in_detail(a, recursive, network, order.flags & flag::ENTRIES != 0, describer, reply);
        }
        _ => return Err(Errno::OPNOTSUPP),
    }
    Ok(Told::No)
}

/// The path that is meant: absolute.
///
/// # Errors
/// `EINVAL` for the home of a user who is named; `ENAMETOOLONG`.
fn expand(path: &CStr, user: &User) -> Result<Path, Errno> {
    let (path, home) = (path.to_bytes(), user.home.bytes());
    let parts: [&[u8]; 3] = match path {
        b"" | b"~" => [home, b"", b""],
        [b'~', b'/', rest @ ..] => [home, b"/", rest],
        [b'~', ..] => return Err(Errno::INVAL),
        [b'/', ..] => [path, b"", b""],
        _ => [home, b"/", path],
    };
    let whole = Path::of(&parts).ok_or(Errno::NAMETOOLONG)?;
    if path.first() == Some(&b'/') { Ok(whole) } else { clean(whole.cstr().to_bytes()).ok_or(Errno::NAMETOOLONG) }
}

/// An absolute path without empty parts, `.` and `..`, by its text alone.
fn clean(path: &[u8]) -> Option<Path> {
    let mut text = [0; 4096];
    let mut len = 0;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => len = text[..len].iter().rposition(|byte| *byte == b'/').unwrap_or(0),
            _ => {
                *text.get_mut(len)? = b'/';
                text.get_mut(len + 1..len + 1 + part.len())?.copy_from_slice(part);
                len += 1 + part.len();
            }
        }
    }
    if len == 0 { Path::of(&[b"/"]) } else { Path::of(&[&text[..len]]) }
}

fn write_in_place(
    path: &CStr,
    permissions: Mode,
    attributes: &[u8],
    user: &User,
    reply: &mut Reply,
) -> Result<Told, Errno> {
    basic::make_parents(path)?;
    let file = write::truncated(path, permissions)?;
    // Also where it is theirs already: who watches is told so, once for each write.
    match fchown(&file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))) {
        // Another's file that they may write.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    set_attributes(&file, attributes)?;
    reply.entry(&entry_of(&fstat(&file)?, path.to_bytes(), b""), Some(file.as_fd()))?;
    Ok(Told::Already)
}

/// Gives a file these attributes and no others of ours. Touches none where nothing changes.
fn set_attributes(file: &OwnedFd, attributes: &[u8]) -> Result<(), Errno> {
    let wanted = || attributes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let name_of = |line: &[u8]| line.split(|byte| *byte == b'=').next().unwrap_or_default().len();
    let mut space = [MaybeUninit::uninit(); NAMES_MAX];
    let there: &[u8] = match flistxattr(file, &mut space) {
        Ok((names, _)) => names,
        // A file system without them: it has none, and gets none below.
        Err(Errno::OPNOTSUPP) => b"",
        Err(errno) => return Err(errno),
    };
    for name in there.split(|byte| *byte == 0) {
        let Some(short) = name.strip_prefix(ATTRIBUTE_PREFIX) else { continue };
        if !wanted().any(|line| &line[..name_of(line)] == short) {
            let name = Name::<NAME_MAX>::of(&[name]).ok_or(Errno::NAMETOOLONG)?;
            fremovexattr(file, name.cstr())?;
        }
    }
    for line in wanted() {
        let (name, value) = line.split_at(name_of(line));
        let name = Name::<NAME_MAX>::of(&[ATTRIBUTE_PREFIX, name]).ok_or(Errno::NAMETOOLONG)?;
        fsetxattr(file, name.cstr(), value.get(1..).unwrap_or_default(), XattrFlags::empty())?;
    }
    Ok(())
}

fn make_dir(path: &CStr, permissions: Mode) -> Result<(), Errno> {
    match look(path, true).and_then(fstat) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Err(Errno::EXIST),
        Ok(_) => return Err(Errno::NOTDIR),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    basic::make_dir(path, permissions, true)
}

fn list(path: &CStr, depth: u32, describer: &mut Describer, reply: &mut Reply) -> Result<(), Errno> {
    let walk: &mut Walk = WALK.take().ok_or(Errno::BUSY)?;
    walk.begin(path)?;
    describer.tell_path(path, reply)?;
    let depth = depth.clamp(1, DEPTH_MAX) as usize;
    let mut count = 0;
    while walk.step()? {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(Errno::TOOBIG);
        }
        let (directory, name) = walk.at()?;
        let named = match look_at(directory, name, false) {
            // Gone since it was listed.
            Err(Errno::NOENT) => continue,
            outcome => outcome?,
        };
        let stat = fstat(&named)?;
        let followed = is_link(&stat).then(|| look_at(directory, name, true).ok()).flatten();
        describer.tell(&named, &stat, followed.as_ref(), walk.path(), reply)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && walk.depth() < depth {
            match walk.descend() {
                Ok(()) | Err(Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

fn is_link(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

/// Describes files. Remembers the last owner and group, for neighbours mostly have the same.
#[derive(Debug)]
pub(super) struct Describer {
    owner: Option<(u32, ShortName)>,
    group: Option<(u32, ShortName)>,
    list: &'static mut [u8; ATTRIBUTES_BYTES_MAX],
}

impl Describer {
    fn new() -> Result<Self, Errno> {
        Ok(Self { owner: None, group: None, list: LIST.take().ok_or(Errno::BUSY)? })
    }

    /// Tells of the file at `path`.
    pub(super) fn tell_path(&mut self, path: &CStr, reply: &mut Reply) -> Result<(), Errno> {
        self.with_path(path, |detail| reply.detail(detail))
    }

    /// Describes the file at `path` to `then`.
    pub(super) fn with_path<T>(
        &mut self,
        path: &CStr,
        then: impl FnOnce(&Detail<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let named = look(path, false)?;
        let stat = fstat(&named)?;
        let followed = is_link(&stat).then(|| look(path, true).ok()).flatten();
        self.describe(&named, &stat, followed.as_ref(), path.to_bytes(), then)
    }

    fn tell(
        &mut self,
        named: &OwnedFd,
        stat: &Stat,
        followed: Option<&OwnedFd>,
        path: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        self.describe(named, stat, followed, path, |detail| reply.detail(detail))
    }

    fn describe<T>(
        &mut self,
        named: &OwnedFd,
        stat: &Stat,
        followed: Option<&OwnedFd>,
        path: &[u8],
        then: impl FnOnce(&Detail<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut link = [MaybeUninit::uninit(); 4095];
        let mut resolved = [MaybeUninit::uninit(); 4095];
        let (mut target, mut leads_to): (&[u8], &[u8]) = (b"", b"");
        let mut target_mode = stat.st_mode;
        if is_link(stat) {
            target = readlinkat_raw(named, c"", &mut link)?.0;
            target_mode = 0;
        }
        if let Some(followed) = followed {
            target_mode = fstat(followed)?.st_mode;
            leads_to = readlinkat_raw(CWD, path_of(followed.as_fd())?.cstr(), &mut resolved)?.0;
        }
        let known = |cache: &mut Option<(u32, ShortName)>, file: &CStr, id: u32| match *cache {
            Some((cached, name)) if cached == id => name,
            Some(_) | None => cache.insert((id, name_of(file, id))).1,
        };
        let owner = known(&mut self.owner, c"/etc/passwd", stat.st_uid);
        let group = known(&mut self.group, c"/etc/group", stat.st_gid);
        let (count, len) = match FileType::from_raw_mode(target_mode) {
            FileType::RegularFile | FileType::Directory => attributes(followed.unwrap_or(named).as_fd(), self.list),
            _ => (0, 0),
        };
        then(&Detail {
            entry: entry_of(stat, path, target),
            target_mode,
            owner: owner.bytes(),
            group: group.bytes(),
            resolved: leads_to,
            attributes: Attributes::Raw(count, &self.list[..len]),
        })
    }
}

/// Puts the attributes of a file together in `list`: how many, and their bytes. What cannot be read or told is left out.
fn attributes(file: BorrowedFd<'_>, list: &mut [u8]) -> (u32, usize) {
    let (mut count, mut len) = (0, 0);
    let Ok(path) = path_of(file) else { return (0, 0) };
    let mut space = [MaybeUninit::uninit(); NAMES_MAX];
    let Ok((names, _)) = listxattr(path.cstr(), &mut space) else { return (0, 0) };
    for name in names.split(|byte| *byte == 0) {
        let Some(short) = name.strip_prefix(ATTRIBUTE_PREFIX) else { continue };
        let Some(full) = Name::<NAME_MAX>::of(&[name]) else { continue };
        let mut space = [MaybeUninit::uninit(); VALUE_MAX];
        let Ok((value, _)) = getxattr(path.cstr(), full.cstr(), &mut space) else { continue };
        // A NUL ends a text of the message, and a `=` a name.
        if value.contains(&0) || short.contains(&b'=') || count as usize == ATTRIBUTES_MAX {
            continue;
        }
        let text_len = short.len() + 1 + value.len();
        let Some(room) = list.get_mut(len..len + 4 + text_len + 1) else { continue };
        room[..4].copy_from_slice(&(text_len as u32).to_le_bytes());
        room[4..4 + short.len()].copy_from_slice(short);
        room[4 + short.len()] = b'=';
        room[5 + short.len()..4 + text_len].copy_from_slice(value);
        room[4 + text_len] = 0;
        len += 5 + text_len;
        count += 1;
    }
    (count, len)
}

impl Reply {
    /// Describes a file in detail.
    pub(super) fn detail(&mut self, detail: &Detail<'_>) -> Result<(), Errno> {
        self.send(answer::DETAIL, None, |writer| detail.write(writer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cleaned_by_its_text() {
        for (path, expected) in [
            (&b"/home/user/a"[..], &b"/home/user/a"[..]),
            (b"/home/user//./a/", b"/home/user/a"),
            (b"/home/user/../x", b"/home/x"),
            (b"/../..", b"/"),
            (b"/", b"/"),
        ] {
            assert_eq!(clean(path).unwrap().cstr().to_bytes(), expected);
        }
    }
}
