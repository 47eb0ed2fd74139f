//! A file as the clients' messages describe it.

use buffa::MessageField;
use buffa_types::google::protobuf::Timestamp;
use rf_e2b::rpc::filesystem::{EntryInfo, FileType};
use rf_places::detail::Detail;
use rf_types::FileKind;

/// The last part of a path.
pub(super) fn name_of(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    if path.is_empty() { "/" } else { path.rsplit('/').next().unwrap_or(path) }
}

/// An absolute path without empty parts, `.` and `..`, by its text alone.
pub(super) fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A file under an absolute path.
pub(super) fn entry(detail: Detail, path: String) -> EntryInfo {
    let Detail { stat, mode, target, owner, group, attributes } = detail;
    let is_symlink = stat.kind == FileKind::Symlink;
    let kind = match target.as_ref().map(|target| target.kind) {
        Some(FileKind::File) => FileType::FILE_TYPE_FILE,
        Some(FileKind::Directory) => FileType::FILE_TYPE_DIRECTORY,
        Some(FileKind::Symlink) => FileType::FILE_TYPE_SYMLINK,
        Some(FileKind::Special) | None => FileType::FILE_TYPE_UNSPECIFIED,
    };
    let permissions = target.as_ref().map_or(0, |target| target.permissions & 0o777);
    // One that leads nowhere is said to lead to itself.
    let leads_to = || target.and_then(|target| target.path).unwrap_or_else(|| path.clone());
    let symlink_target = is_symlink.then(leads_to);
    let modified = Timestamp {
        seconds: i64::try_from(stat.modified_at / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(stat.modified_at % 1000 * 1_000_000).unwrap_or(0),
        ..Default::default()
    };
    EntryInfo {
        name: name_of(&path).to_owned(),
        r#type: kind.into(),
        size: i64::try_from(stat.size).unwrap_or(i64::MAX),
        mode: permissions,
        permissions: letters(mode),
        owner,
        group,
        modified_time: MessageField::some(modified),
        symlink_target,
        metadata: attributes.into_iter().collect(),
        is_symlink,
        path,
    }
}

/// A mode in letters, as Go writes it: kinds and special bits first, then three times `rwx`.
fn letters(mode: u32) -> String {
    let kinds = match mode & 0o170_000 {
        0o040_000 => "d",
        0o120_000 => "L",
        0o060_000 => "D",
        0o020_000 => "Dc",
        0o010_000 => "p",
        0o140_000 => "S",
        _ => "",
    };
    // In Go's order: device before the special bits, character device after them.
    let (before, after) = if kinds == "Dc" { ("D", "c") } else { (kinds, "") };
    let mut text = String::from(before);
    text.extend([(0o4000, 'u'), (0o2000, 'g')].iter().filter(|(bit, _)| mode & bit != 0).map(|(_, letter)| *letter));
    text.push_str(after);
    if mode & 0o1000 != 0 {
        text.push('t');
    }
    if text.is_empty() {
        text.push('-');
    }
    for bit in (0..9).rev() {
        let letter = ['x', 'w', 'r'][bit % 3];
        text.push(if mode & 1 << bit == 0 { '-' } else { letter });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_go_writes_them() {
        for (mode, expected) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o104_755, "urwxr-xr-x"),
            (0o020_666, "Dcrw-rw-rw-"),
            (0o010_600, "prw-------"),
            (0o140_700, "Srwx------"),
        ] {
            assert_eq!(letters(mode), expected);
        }
    }

    #[test]
    fn paths_have_a_last_part_and_one_text() {
        for (path, name, text) in [
            ("/home/user/a.txt", "a.txt", "/home/user/a.txt"),
            ("/home/user/", "user", "/home/user"),
            ("/", "/", "/"),
            ("/a/./b//../c", "c", "/a/c"),
            ("/../..", "..", "/"),
        ] {
            assert_eq!((name_of(path), clean(path).as_str()), (name, text));
        }
    }
}
