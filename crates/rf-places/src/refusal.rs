//! What the kernel inside a sandbox said, as an error that people understand.
//!
//! The numbers come from the sandbox and are hostile: any value is taken, none is trusted to be an errno.

use rf_types::{Code, Fault};
use rf_wire::init::stage;
use rustix::io::Errno;

/// Why an order to a sandbox failed, as its init tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Failed {
    /// The errno, unchecked.
    pub(crate) errno: u32,
    /// One of [`stage`], unchecked.
    pub(crate) stage: u32,
}

impl Failed {
    /// Not init's word but our own: this process may have no more descriptors.
    pub(crate) const NO_ROOM: Self = Self { errno: 0, stage: u32::MAX };
}

/// What is advised for a user whom the sandbox does not have, and a directory that cannot be entered; nowhere else.
const NAME_A_USER: &str = "name a user of its /etc/passwd, or leave the user out";
const GIVE_A_DIRECTORY: &str = "give a directory that is there and that the user may enter";

/// Whether something failed because the sandbox has no such user.
#[must_use]
pub fn is_no_such_user(fault: &Fault) -> bool {
    fault.hint == NAME_A_USER
}

/// Whether something failed because its directory could not be entered.
#[must_use]
pub fn is_no_directory(fault: &Fault) -> bool {
    fault.hint == GIVE_A_DIRECTORY
}

/// This server may have no more descriptors.
pub(crate) fn no_room() -> Fault {
    Fault::new(
        Code::ServerBusy,
        "this server has no descriptors left",
        "try again when fewer streams are open, or ask the operator to raise the limit on open files",
    )
}

/// The place is gone, or was never sound.
pub(crate) fn lost(why: &str) -> Fault {
    Fault::new(
        Code::PlaceLost,
        format!("the sandbox went away: {why}"),
        "what ran in it has ended and was not run elsewhere; make a new sandbox",
    )
}

/// Nobody answered in time.
pub(crate) fn timed_out(what: &str) -> Fault {
    Fault::new(
        Code::TimedOut,
        format!("the sandbox did not answer {what} in time"),
        "it may be starved of CPU or frozen: try again, give it more CPU, or destroy it",
    )
}

fn exhausted(message: String, hint: &str) -> Fault {
    Fault::new(Code::PlaceExhausted, message, hint)
}

/// An errno in words; unknown ones by number.
pub(crate) fn errno_text(errno: u32) -> String {
    let Ok(number @ 1..=4095) = i32::try_from(errno) else { return format!("errno {errno}") };
    let text = match Errno::from_raw_os_error(number) {
        Errno::PERM => "operation not permitted",
        Errno::NOENT => "no such file or directory",
        Errno::SRCH => "no such process",
        Errno::INTR => "interrupted",
        Errno::IO => "input/output error",
        Errno::NXIO => "no such device or address",
        Errno::TOOBIG => "argument list too long",
        Errno::NOEXEC => "exec format error",
        Errno::BADF => "bad file descriptor",
        Errno::AGAIN => "resource temporarily unavailable",
        Errno::NOMEM => "out of memory",
        Errno::ACCESS => "permission denied",
        Errno::BUSY => "device or resource busy",
        Errno::EXIST => "file exists",
        Errno::XDEV => "invalid cross-device link",
        Errno::NODEV => "not a regular file",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::INVAL => "invalid argument",
        Errno::NFILE => "too many open files in the system",
        Errno::MFILE => "too many open files",
        Errno::TXTBSY => "text file busy",
        Errno::FBIG => "file too large",
        Errno::NOSPC => "no space left on the disk",
        Errno::ROFS => "read-only file system",
        Errno::MLINK => "too many links",
        Errno::PIPE => "broken pipe",
        Errno::NAMETOOLONG => "file name too long",
        Errno::NOSYS => "function not implemented",
        Errno::NOTEMPTY => "directory not empty",
        Errno::LOOP => "too many symbolic links",
        Errno::OPNOTSUPP => "operation not supported",
        Errno::CONNREFUSED => "connection refused",
        Errno::TIMEDOUT => "timed out",
        Errno::DQUOT => "disk quota exceeded",
        _ => return format!("errno {number}"),
    };
    text.to_owned()
}

fn known(errno: u32) -> Option<Errno> {
    i32::try_from(errno).ok().filter(|number| (1..=4095).contains(number)).map(Errno::from_raw_os_error)
}

/// What an exec that could not be started is answered with.
pub(crate) fn spawn(failed: Failed, program: &str, cwd: Option<&str>, user: Option<&str>) -> Fault {
    let program = shorten(program);
    if failed == Failed::NO_ROOM {
        // It started, so this is none of the errors after which the same may be asked again.
        return Fault::new(
            Code::PlaceLost,
            "this server had no descriptors left for the exec's streams, and killed it",
            "what it did until then is not known; ask the operator to raise the limit on open files",
        );
    }
    let Failed { errno, stage } = failed;
    let text = errno_text(errno);
    match known(errno) {
        Some(Errno::AGAIN) => {
            return exhausted(
                "the sandbox has no tasks left".into(),
                "end some of its processes, or make it with a higher `tasks_max`",
            );
        }
        Some(Errno::NOMEM) => {
            return exhausted(
                "the sandbox has no memory left".into(),
                "end some of its processes, or give it a higher `memory_bytes_max`",
            );
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            return exhausted("the sandbox has no descriptors left".into(), "end some of its execs");
        }
        _ => {}
    }
    let exec_failed = |message: String, hint: &str| Fault::new(Code::ExecFailed, message, hint);
    match (stage, known(errno)) {
        (stage::TABLE, _) => exhausted(
            "too many execs are running in the sandbox".into(),
            "wait for some of them, or use another sandbox",
        ),
        (stage::ORDER, Some(Errno::EXIST)) => Fault::new(
            Code::Conflict,
            "an exec of this id was already started",
            "ask for its state; an id is started at most once",
        ),
        (stage::USER, Some(Errno::PERM | Errno::ACCESS)) => Fault::new(
            Code::Forbidden,
            format!("user `{}` may not be had in this sandbox", shorten(user.unwrap_or("user"))),
            "make the sandbox with `root_allowed`, or run as the default user",
        ),
        (stage::USER, _) => {
            exec_failed(format!("no user `{}` in the sandbox", shorten(user.unwrap_or("user"))), NAME_A_USER)
        }
        (stage::DIRECTORY, _) => {
            exec_failed(format!("cannot enter `{}`: {text}", shorten(cwd.unwrap_or("~"))), GIVE_A_DIRECTORY)
        }
        (stage::PROGRAM, Some(Errno::NOENT)) => {
            exec_failed(format!("no such program `{program}` in the sandbox"), "check the name and `PATH`")
        }
        (stage::PROGRAM, Some(Errno::TOOBIG)) => {
            Fault::new(Code::TooLarge, "arguments and environment are too long", "pass large input by a file or stdin")
        }
        (stage::PROGRAM, Some(Errno::ACCESS)) => {
            exec_failed(format!("cannot execute `{program}`: {text}"), "it must be a file with its execute bit set")
        }
        (stage::PROGRAM, _) => exec_failed(format!("cannot execute `{program}`: {text}"), ""),
        _ => exec_failed(format!("cannot start `{program}`: {text} (stage {stage})"), ""),
    }
}

/// What a file operation that failed is answered with; `path` is as the caller gave it.
pub(crate) fn file(errno: u32, path: &str) -> Fault {
    let path = shorten(path);
    let text = errno_text(errno);
    let failed = |hint: &str| Fault::new(Code::FileFailed, format!("`{path}`: {text}"), hint);
    match known(errno) {
        Some(Errno::NOENT) => {
            Fault::new(Code::NotFound, format!("no such file `{path}` in the sandbox"), "check the path")
        }
        Some(Errno::EXIST) => {
            Fault::new(Code::Conflict, format!("`{path}` is there already"), "remove it, or ask to replace it")
        }
        Some(Errno::NOTEMPTY) => Fault::new(
            Code::Conflict,
            format!("`{path}` is not empty"),
            "ask for `recursive` to remove a directory with all in it",
        ),
        Some(Errno::NOSPC | Errno::DQUOT) => Fault::new(
            Code::DiskFull,
            format!("`{path}`: the sandbox's disk or inode quota is full"),
            "remove files, or make a sandbox with a higher `disk_bytes_max` or `inodes_max`",
        ),
        Some(Errno::AGAIN) => {
            exhausted("the sandbox has no tasks left for a file operation".into(), "end some of its processes")
        }
        Some(Errno::NOMEM) => {
            exhausted("the sandbox has no memory left for a file operation".into(), "end some of its processes")
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            exhausted("the sandbox has no descriptors left for a file operation".into(), "end some of its execs")
        }
        Some(Errno::ISDIR) => failed("give a file, or use list or tar for a directory"),
        Some(Errno::NOTDIR) => failed("a part of the path is a file"),
        Some(Errno::LOOP) => failed("a link of the path leads round in a circle"),
        Some(Errno::ACCESS | Errno::PERM) => failed("the sandbox's user has no permission; ask as `root` if allowed"),
        Some(Errno::NXIO | Errno::NODEV | Errno::OPNOTSUPP) => failed("only regular files are read and written"),
        Some(Errno::NAMETOOLONG) => failed("a name has at most 255 bytes, a path 4,095"),
        Some(Errno::XDEV) => failed("only files are moved to another mount: copy it there and remove it here"),
        Some(Errno::ROFS) => failed("this part of the sandbox cannot be changed"),
        _ => failed(""),
    }
}

/// What an archive that was not unpacked below `path` is answered with.
pub(crate) fn archive(errno: u32, path: &str) -> Fault {
    let why = match known(errno) {
        Some(Errno::INVAL) => "it is no tar, is damaged or was broken off",
        Some(Errno::TOOBIG) => "a header in it is too long",
        Some(Errno::XDEV) => "an entry would leave the directory",
        Some(Errno::OPNOTSUPP) => "an entry is of a kind that is not unpacked",
        _ => return file(errno, path),
    };
    Fault::new(
        Code::InvalidRequest,
        format!("the archive cannot be unpacked below `{}`: {why}", shorten(path)),
        "send a tar, not compressed, of files, directories and links within it",
    )
}

/// What a file operation whose helper could not be started is answered with.
pub(crate) fn helper(failed: Failed, path: &str) -> Fault {
    match (failed.stage, known(failed.errno)) {
        (stage::USER, Some(Errno::PERM | Errno::ACCESS)) => Fault::new(
            Code::Forbidden,
            "this user may not be had in this sandbox",
            "make the sandbox with `root_allowed`, or ask as the default user",
        ),
        (stage::USER, _) => Fault::new(Code::FileFailed, "no such user in the sandbox", NAME_A_USER),
        _ => file(failed.errno, path),
    }
}

/// What a signal that could not be sent is answered with.
pub(crate) fn signal(failed: Failed) -> Fault {
    match (failed.stage, known(failed.errno)) {
        (stage::ORDER, _) | (_, Some(Errno::SRCH)) => Fault::not_found("running exec"),
        _ => Fault::new(Code::ExecFailed, format!("cannot signal: {}", errno_text(failed.errno)), ""),
    }
}

/// What a failed connection to a port inside is answered with.
pub(crate) fn connect(errno: u32, port: u16) -> Fault {
    match known(errno) {
        Some(Errno::CONNREFUSED) => Fault::new(
            Code::NotFound,
            format!("nothing listens on port {port} in the sandbox"),
            "start the service first, on 127.0.0.1 or 0.0.0.0",
        ),
        _ => Fault::new(Code::ExecFailed, format!("cannot connect to port {port}: {}", errno_text(errno)), ""),
    }
}

/// User input as it is shown: at most 200 bytes.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 200;
    if text.len() <= SHOWN_MAX {
        text.to_owned()
    } else {
        format!("{}...", &text[..text.floor_char_boundary(SHOWN_MAX)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_a_hostile_sandbox_may_send_has_an_answer() {
        for errno in [0, 1, 2, 4095, 4096, u32::MAX] {
            for stage in [0, 1, 9, 10, u32::MAX] {
                assert!(!spawn(Failed { errno, stage }, "x", None, None).message.is_empty());
                assert!(!signal(Failed { errno, stage }).message.is_empty());
            }
            assert!(!file(errno, "x").message.is_empty());
            assert!(!connect(errno, 80).message.is_empty());
        }
    }

    #[test]
    fn the_kinds_of_errors_that_callers_act_on() {
        let raw = |errno: Errno| errno.raw_os_error().unsigned_abs();
        for (errno, code) in [
            (Errno::NOENT, Code::NotFound),
            (Errno::EXIST, Code::Conflict),
            (Errno::NOSPC, Code::DiskFull),
            (Errno::DQUOT, Code::DiskFull),
            (Errno::NOMEM, Code::PlaceExhausted),
            (Errno::ISDIR, Code::FileFailed),
        ] {
            assert_eq!(file(raw(errno), "x").code, code, "{errno}");
        }
        let user = spawn(Failed { errno: 2, stage: stage::USER }, "x", None, Some("nobody"));
        assert!(is_no_such_user(&user) && !is_no_directory(&user));
        assert!(is_no_such_user(&helper(Failed { errno: 2, stage: stage::USER }, "x")));
        let directory = spawn(Failed { errno: 2, stage: stage::DIRECTORY }, "x", Some("/y"), None);
        assert!(is_no_directory(&directory) && !is_no_such_user(&directory));
        let program = |errno| spawn(Failed { errno: raw(errno), stage: stage::PROGRAM }, "x", None, None).code;
        assert_eq!(program(Errno::NOENT), Code::ExecFailed);
        assert_eq!(spawn(Failed { errno: 11, stage: stage::FORK }, "x", None, None).code, Code::PlaceExhausted);
    }

    #[test]
    fn long_input_is_cut_at_a_character() {
        assert_eq!(shorten(&"ä".repeat(150)).chars().filter(|c| *c == 'ä').count(), 100);
    }
}
