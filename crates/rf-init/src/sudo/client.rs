//! The program that is typed: a small `sudo`.

use core::ffi::CStr;

use rf_sys::guest::{Args, TakeCell, cstr, current_directory, set_signal_mask, signal_fd, standard_stream};
use rf_wire::init::{INLINE_MAX, Reader, UNLIMITED, Writer, stage};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, read, write},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::{getgid, getuid},
};

use super::{EXITED, FAILED, RUN, SIGNAL, SOCKET};
use crate::{
    channel::{Received, Sent, receive, send},
    text::Name,
    users::{self, Rights, User},
};

/// Signals that are passed on to the command.
const PASSED_ON: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGWINCH,
];
/// What of the environment is kept without `-E`, beside `LC_*`.
const KEPT: [&[u8]; 6] = [b"TERM=", b"COLORTERM=", b"LANG=", b"LANGUAGE=", b"TZ=", b"DEBIAN_FRONTEND="];
/// What the target user's own takes the place of, also with `-E`.
const REPLACED: [&[u8]; 8] =
    [b"PATH=", b"USER=", b"LOGNAME=", b"MAIL=", b"SUDO_USER=", b"SUDO_UID=", b"SUDO_GID=", b"LD_PRELOAD="];
const USAGE: &[u8] = b"usage: sudo [-EHins] [-u user] [-D directory] [--] [NAME=value ...] command [argument ...]\n";
/// Longest command line given to a shell by `-i` and `-s`.
const LINE_MAX: usize = 32 * 1024;

static BUFFER: TakeCell<[u8; INLINE_MAX]> = TakeCell::new([0; INLINE_MAX]);
static LINE: TakeCell<[u8; LINE_MAX]> = TakeCell::new([0; LINE_MAX]);

/// What was asked for.
#[derive(Debug)]
struct Asked {
    user: &'static CStr,
    directory: Option<&'static CStr>,
    keep_environment: bool,
    set_home: bool,
    login: bool,
    shell: bool,
    /// The first argument that is not ours: assignments, then the command.
    rest: usize,
}

enum Parsed {
    Run(Asked),
    Exit(i32),
}

/// Runs a command as another user; gives its exit code.
pub(crate) fn main(args: Args) -> i32 {
    let asked = match parse(args) {
        Ok(Parsed::Run(asked)) => asked,
        Ok(Parsed::Exit(code)) => return code,
        Err(option) => {
            say(&[b"sudo: unknown option ", option.to_bytes(), b"\n", USAGE]);
            return 1;
        }
    };
    run(args, &asked).unwrap_or_else(|errno| {
        match errno {
            Errno::NOENT | Errno::CONNREFUSED => say(&[b"sudo: root cannot be had in this sandbox\n"]),
            Errno::TOOBIG => say(&[b"sudo: the command and its environment are too long\n"]),
            _ => say(&[b"sudo: cannot ask for it: ", reason(errno).cstr().to_bytes(), b"\n"]),
        }
        1
    })
}

fn parse(args: Args) -> Result<Parsed, &'static CStr> {
    let mut asked = Asked {
        user: c"root",
        directory: None,
        keep_environment: false,
        set_home: false,
        login: false,
        shell: false,
        rest: 1,
    };
    while let Some(arg) = args.get(asked.rest) {
        let text = arg.to_bytes();
        if text == b"--" {
            asked.rest += 1;
            break;
        }
        if text.len() < 2 || text[0] != b'-' {
            break;
        }
        asked.rest += 1;
        let mut next = || {
            let value = args.get(asked.rest).ok_or(arg)?;
            asked.rest += 1;
            Ok(value)
        };
        match text {
            b"--user" => asked.user = next()?,
            b"--chdir" => asked.directory = Some(next()?),
            b"--preserve-env" => asked.keep_environment = true,
            b"--set-home" => asked.set_home = true,
            b"--login" => asked.login = true,
            b"--shell" => asked.shell = true,
            b"--non-interactive" | b"--stdin" => {}
            b"--validate" | b"--reset-timestamp" | b"--remove-timestamp" => return Ok(Parsed::Exit(0)),
            b"--help" | b"-h" => {
                say(&[USAGE]);
                return Ok(Parsed::Exit(0));
            }
            b"--version" | b"-V" => {
                say(&[b"sudo of rf-init ", env!("CARGO_PKG_VERSION").as_bytes(), b"\n"]);
                return Ok(Parsed::Exit(0));
            }
            _ if text.starts_with(b"--user=") => asked.user = after(arg, 7),
            _ if text.starts_with(b"--chdir=") => asked.directory = Some(after(arg, 8)),
            _ if text.starts_with(b"--") => return Err(arg),
            _ => {
                for (at, letter) in text.iter().enumerate().skip(1) {
                    // The value of a letter is the rest of the word, or else the next one.
                    let mut value = || if at + 1 < text.len() { Ok(after(arg, at + 1)) } else { next() };
                    match letter {
                        b'u' => {
                            asked.user = value()?;
                            break;
                        }
                        b'D' => {
                            asked.directory = Some(value()?);
                            break;
                        }
                        b'p' => {
                            value()?;
                            break;
                        }
                        b'E' => asked.keep_environment = true,
                        b'H' => asked.set_home = true,
                        b'i' => asked.login = true,
                        b's' => asked.shell = true,
                        // There is never a password to ask for, nor a time that it is good for.
                        b'n' | b'S' | b'k' | b'v' | b'K' => {}
                        _ => return Err(arg),
                    }
                }
                let only_credentials = text[1..].iter().all(|letter| matches!(letter, b'k' | b'K' | b'v'));
                if only_credentials && args.get(asked.rest).is_none() {
                    return Ok(Parsed::Exit(0));
                }
            }
        }
    }
    if args.get(asked.rest).is_none() && !asked.login && !asked.shell {
        say(&[USAGE]);
        return Ok(Parsed::Exit(1));
    }
    Ok(Parsed::Run(asked))
}

/// The end of a string, from `at` on.
fn after(text: &'static CStr, at: usize) -> &'static CStr {
    cstr(text.to_bytes_with_nul().get(at..).unwrap_or(b"\0"))
}

fn run(args: Args, asked: &Asked) -> Result<i32, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(SOCKET)?)?;
    let mut mask = 0;
    for signal in PASSED_ON {
        mask |= 1_u64 << (signal - 1);
    }
    // From here on a signal is for the command.
    let signals = signal_fd(mask)?;
    set_signal_mask(mask)?;
    let buffer = BUFFER.take().ok_or(Errno::BUSY)?;
    // A user that is not there is for process 1 to refuse.
    let target = users::find(asked.user.to_bytes(), Rights { root: true, only: None }).ok();
    let len = request(args, asked, target.as_ref(), buffer)?;
    let null = openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let stdio = [0, 1, 2].map(|stream| standard_stream(stream).unwrap_or(null.as_fd()));
    match send(socket.as_fd(), &buffer[..len], stdio) {
        Sent::Yes => {}
        Sent::Later => return Err(Errno::AGAIN),
        Sent::Gone => return Err(Errno::PIPE),
        Sent::Refused(errno) => return Err(errno),
    }
    follow(&socket, &signals, args, asked, buffer)
}

/// Writes the request; gives its length.
fn request(args: Args, asked: &Asked, target: Option<&User>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut directory = [0; 4096];
    let current = current_directory(&mut directory).unwrap_or(c"/");
    let directory = match asked.directory {
        Some(directory) => directory.to_bytes(),
        // The empty one is the user's home.
        None if asked.login => b"",
        None => current.to_bytes(),
    };
    let is_assignment = |index: &usize| {
        let text = args.get(*index).map_or(&b""[..], CStr::to_bytes);
        text.iter().position(|byte| *byte == b'=').is_some_and(|at| at > 0)
    };
    let command = (asked.rest..args.len()).find(|index| !is_assignment(index)).unwrap_or(args.len());
    let mut writer = Writer::new(buffer, RUN, 0);
    writer.u128(0);
    writer.u32(0);
    writer.u16(0);
    writer.u16(0);
    for _ in 0..5 {
        writer.u64(UNLIMITED);
    }
    writer.string(asked.user.to_bytes());
    writer.string(directory);
    if asked.login || asked.shell {
        shell_argv(args, asked, target, command, &mut writer)?;
    } else {
        if command == args.len() {
            return Err(Errno::INVAL);
        }
        writer.u32((args.len() - command) as u32);
        for index in command..args.len() {
            writer.string(args.get(index).map_or(b"", CStr::to_bytes));
        }
    }
    environment(args, asked, asked.rest..command, &mut writer);
    writer.finish().map_err(|_| Errno::TOOBIG)
}

/// `SHELL [-l] [-c LINE]`, with every character of the line that a shell might heed taken literally.
fn shell_argv(
    args: Args,
    asked: &Asked,
    target: Option<&User>,
    command: usize,
    writer: &mut Writer<'_>,
) -> Result<(), Errno> {
    let own = args.env().find_map(|text| text.to_bytes().strip_prefix(b"SHELL=")).filter(|shell| !shell.is_empty());
    let theirs = target.map_or(&b"/bin/sh"[..], |user| user.shell.bytes());
    let shell = if asked.login { theirs } else { own.unwrap_or(theirs) };
    let has_line = command < args.len();
    writer.u32(1 + u32::from(asked.login) + 2 * u32::from(has_line));
    writer.string(shell);
    if asked.login {
        writer.string(b"-l");
    }
    if has_line {
        let line = LINE.take().ok_or(Errno::BUSY)?;
        let mut len = 0;
        let mut put = |byte: u8| {
            *line.get_mut(len).ok_or(Errno::TOOBIG)? = byte;
            len += 1;
            Ok(())
        };
        for index in command..args.len() {
            if index > command {
                put(b' ')?;
            }
            for byte in args.get(index).map_or(&b""[..], CStr::to_bytes) {
                // As sudo(8) has it: `$` too is left to the shell.
                if !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'-' | b'$') && byte.is_ascii() {
                    put(b'\\')?;
                }
                put(*byte)?;
            }
        }
        writer.string(b"-c");
        writer.string(&line[..len]);
    }
    Ok(())
}

fn environment(args: Args, asked: &Asked, assignments: core::ops::Range<usize>, writer: &mut Writer<'_>) {
    let assigned = |text: &[u8]| {
        let name = &text[..text.iter().position(|byte| *byte == b'=').map_or(text.len(), |at| at + 1)];
        assignments.clone().any(|index| args.get(index).is_some_and(|given| given.to_bytes().starts_with(name)))
    };
    let is_kept = |text: &&CStr| {
        let text = text.to_bytes();
        if assigned(text) || REPLACED.iter().any(|name| text.starts_with(name)) {
            return false;
        }
        if asked.keep_environment && !asked.login {
            return !(text.starts_with(b"HOME=") && asked.set_home);
        }
        text.starts_with(b"LC_") || KEPT.iter().any(|name| text.starts_with(name))
    };
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let name = users::name_of(c"/etc/passwd", uid);
    let kept = args.env().filter(is_kept).count();
    writer.u32((kept + assignments.len() + 3) as u32);
    for text in args.env().filter(is_kept) {
        writer.string(text.to_bytes());
    }
    for index in assignments.clone() {
        writer.string(args.get(index).map_or(b"", CStr::to_bytes));
    }
    for (prefix, number) in [(&b"SUDO_UID="[..], uid), (b"SUDO_GID=", gid)] {
        // Both fit: a short prefix and ten digits.
        writer.string(Name::<32>::numbered(prefix, number).unwrap_or(Name::EMPTY).cstr().to_bytes());
    }
    writer.string(Name::<64>::of(&[b"SUDO_USER=", name.bytes()]).unwrap_or(Name::EMPTY).cstr().to_bytes());
}

/// Passes signals on until the command has ended.
fn follow(socket: &OwnedFd, signals: &OwnedFd, args: Args, asked: &Asked, buffer: &mut [u8]) -> Result<i32, Errno> {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if !fds[1].revents().is_empty() {
            pass_on(socket.as_fd(), signals)?;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match receive(socket.as_fd(), buffer) {
            Received::Nothing => {}
            Received::Message(len, _) => return Ok(outcome(&buffer[..len], args, asked)),
            Received::Gone | Received::Unfit => return Err(Errno::PIPE),
        }
    }
}

fn pass_on(socket: BorrowedFd<'_>, signals: &OwnedFd) -> Result<(), Errno> {
    // struct signalfd_siginfo begins with the signal's number (signalfd(2)).
    let mut info = [0; 128];
    if read(signals, &mut info)? < 4 {
        return Ok(());
    }
    let number = u32::from_le_bytes([info[0], info[1], info[2], info[3]]);
    let mut message = [0; 32];
    let mut writer = Writer::new(&mut message, SIGNAL, 0);
    writer.u32(number);
    let len = writer.finish().map_err(|_| Errno::INVAL)?;
    // One that finds no room is lost, as a signal may be.
    send(socket, &message[..len], []);
    Ok(())
}

fn outcome(message: &[u8], args: Args, asked: &Asked) -> i32 {
    let Ok((header, mut reader)) = Reader::message(message) else { return 1 };
    let first = reader.u32().unwrap_or(0);
    match header.kind {
        EXITED if first & 0x7f == 0 => (first >> 8 & 0xff) as i32,
        EXITED => 128 + (first & 0x7f) as i32,
        FAILED => {
            let errno = Errno::from_raw_os_error(first as i32);
            let command = args.get(asked.rest).unwrap_or(c"the shell").to_bytes();
            match (reader.u32().unwrap_or(0), errno) {
                (stage::USER, Errno::NOENT) => say(&[b"sudo: unknown user ", asked.user.to_bytes(), b"\n"]),
                (stage::USER, _) => say(&[b"sudo: ", asked.user.to_bytes(), b" cannot be had in this sandbox\n"]),
                (stage::PROGRAM, Errno::NOENT) => say(&[b"sudo: ", command, b": command not found\n"]),
                _ => say(&[b"sudo: ", command, b": ", reason(errno).cstr().to_bytes(), b"\n"]),
            }
            1
        }
        _ => 1,
    }
}

fn reason(errno: Errno) -> Name<32> {
    Name::numbered(b"error ", errno.raw_os_error().unsigned_abs()).unwrap_or(Name::EMPTY)
}

fn say(parts: &[&[u8]]) {
    for part in parts {
        // Where there is nobody to tell, there is nothing to do about it.
        let _ = standard_stream(2).map(|stream| write(stream, part));
    }
}
