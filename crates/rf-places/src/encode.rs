//! Orders to init, encoded. Pure but for the memfd of a long one.

use std::{io, io::Write as _, os::fd::OwnedFd};

use rf_types::{Code, ExecId, ExecSpec, Fault, Program, SignalScope};
use rf_wire::init::{File, HEADER_LEN, INLINE_MAX, UNLIMITED, Writer, spawn};

/// Most strings of one list; the kernel takes no more than its 6 MiB can point to (execve(2)).
const STRINGS_MAX: usize = 1 << 20;

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    // Lengths were checked against MEMFD_MAX by their sum before they are sent; a longer one is refused there.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(text);
    out.push(0);
}

fn checked<'a>(what: &str, text: &'a str) -> Result<&'a [u8], Fault> {
    if text.contains('\0') {
        return Err(Fault::invalid(format!("{what} contains a NUL character")));
    }
    Ok(text.as_bytes())
}

/// What is shown of a program in messages and lists.
#[must_use]
pub(crate) fn argv_of(program: &Program) -> Vec<String> {
    match program {
        Program::Argv(argv) => argv.clone(),
        Program::Shell(line) => vec!["sh".into(), "-c".into(), line.clone()],
    }
}

/// The first word of a program, for messages.
#[must_use]
pub(crate) fn name_of(program: &Program) -> &str {
    match program {
        Program::Argv(argv) => argv.first().map_or("", String::as_str),
        Program::Shell(_) => "sh",
    }
}

/// How many descriptors the answer to a `SPAWN` of `flags` has.
#[must_use]
pub(crate) const fn descriptors(flags: u32) -> usize {
    if flags & spawn::PTY != 0 {
        1
    } else if flags & spawn::STDIN != 0 {
        3
    } else {
        2
    }
}

/// The bits of a `SPAWN`.
#[must_use]
pub(crate) fn flags(spec: &ExecSpec, keep: bool) -> u32 {
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    bit(spec.pty.is_some(), spawn::PTY)
        | bit(spec.stdin, spawn::STDIN)
        | bit(matches!(spec.program, Program::Shell(_)), spawn::SHELL)
        | bit(keep, spawn::KEEP)
        | bit(spec.no_language, spawn::NO_LANGUAGE)
}

/// The body of a `SPAWN`; see [`rf_wire::init::Spawn`] for its layout.
///
/// # Errors
/// `invalid_request` when a text has a NUL, a name of the environment is empty or has a `=`, or there is no program.
pub(crate) fn spawn_body(exec: ExecId, spec: &ExecSpec, keep: bool) -> Result<Vec<u8>, Fault> {
    let argv: &[String] = match &spec.program {
        Program::Argv(argv) if argv.first().is_none_or(String::is_empty) => {
            return Err(Fault::invalid("there is no program to run: `argv` is empty"));
        }
        Program::Argv(argv) => argv,
        Program::Shell(line) => std::slice::from_ref(line),
    };
    if argv.len() > STRINGS_MAX || spec.env.len() > STRINGS_MAX {
        return Err(Fault::new(Code::TooLarge, "too many arguments or variables", "pass large input by a file"));
    }
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&exec.bits().to_le_bytes());
    out.extend_from_slice(&flags(spec, keep).to_le_bytes());
    let size = spec.pty.map_or((0, 0), |pty| (pty.rows, pty.cols));
    out.extend_from_slice(&size.0.to_le_bytes());
    out.extend_from_slice(&size.1.to_le_bytes());
    let limits = &spec.rlimits;
    for number in [
        spec.timeout_ms,
        limits.cpu_seconds_max,
        limits.address_space_bytes_max,
        limits.file_bytes_max,
        limits.files_max,
    ] {
        out.extend_from_slice(&number.unwrap_or(UNLIMITED).to_le_bytes());
    }
    put_string(&mut out, checked("the user's name", spec.user.as_deref().unwrap_or(""))?);
    put_string(&mut out, checked("the directory", spec.cwd.as_deref().unwrap_or(""))?);
    out.extend_from_slice(&u32::try_from(argv.len()).unwrap_or(u32::MAX).to_le_bytes());
    for argument in argv {
        put_string(&mut out, checked("an argument", argument)?);
    }
    out.extend_from_slice(&u32::try_from(spec.env.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains('=') {
            return Err(Fault::invalid(format!("`{name}` cannot be the name of an environment variable")));
        }
        put_string(&mut out, checked("the environment", &format!("{name}={value}"))?);
    }
    Ok(out)
}

/// The body of a `SIGNAL`.
#[must_use]
pub(crate) fn signal(exec: u128, signal: u32, scope: SignalScope) -> [u8; 24] {
    let mut body = [0; 24];
    body[..16].copy_from_slice(&exec.to_le_bytes());
    body[16..20].copy_from_slice(&signal.to_le_bytes());
    let scope: u32 = match scope {
        SignalScope::Process => 0,
        SignalScope::Tree => 1,
    };
    body[20..].copy_from_slice(&scope.to_le_bytes());
    body
}

/// The body of a `FILE`.
///
/// # Errors
/// `invalid_request` when it is too long; a path has at most 4,095 bytes anyway (path_resolution(7)).
pub(crate) fn file(file: &File<'_>) -> Result<Vec<u8>, Fault> {
    let too_long = |_| Fault::invalid("the path is too long");
    let mut buffer = vec![0; (HEADER_LEN + 64 + file.user.len() + file.a.len() + file.b.len()).min(INLINE_MAX)];
    let mut writer = Writer::new(&mut buffer, 0, 0);
    file.write(&mut writer);
    let len = writer.finish().map_err(too_long)?;
    buffer.truncate(len);
    buffer.drain(..HEADER_LEN);
    Ok(buffer)
}

/// A sealed memfd that holds the body of a long order, read from its start.
///
/// # Errors
/// `ENOMEM`, `EMFILE`, `ENFILE`; see memfd_create(2).
pub(crate) fn memfd(body: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create("order", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(body)?;
    std::io::Seek::rewind(&mut file)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use rf_types::Pty;
    use rf_wire::init::{Reader, Spawn};

    use super::*;

    fn spec(program: Program) -> ExecSpec {
        ExecSpec {
            program,
            env: [("A".to_owned(), "1=2".to_owned())].into(),
            no_language: false,
            cwd: Some("/tmp".into()),
            user: None,
            pty: Some(Pty { rows: 24, cols: 80 }),
            stdin: true,
            timeout_ms: Some(5),
            rlimits: rf_types::Rlimits { files_max: Some(9), ..Default::default() },
        }
    }

    #[test]
    fn init_reads_what_was_encoded() {
        let body = spawn_body(ExecId::from_bits(7), &spec(Program::Shell("echo hi".into())), true).unwrap();
        let mut reader = Reader::body(&body);
        let got = Spawn::read(&mut reader).unwrap();
        assert!(reader.is_empty());
        assert_eq!((got.exec, got.rows, got.cols, got.timeout_ms), (7, 24, 80, 5));
        assert_eq!(got.flags, spawn::PTY | spawn::STDIN | spawn::SHELL | spawn::KEEP);
        assert_eq!(got.rlimits, [UNLIMITED, UNLIMITED, UNLIMITED, 9]);
        assert_eq!((got.user, got.cwd), (&b"\0"[..], &b"/tmp\0"[..]));
        assert_eq!(got.argv.collect::<Vec<_>>(), [b"echo hi\0"]);
        assert_eq!(got.env.collect::<Vec<_>>(), [b"A=1=2\0"]);
    }

    #[test]
    fn what_the_kernel_could_not_take_is_refused_before() {
        for argv in [vec![], vec![String::new()], vec!["a\0b".into()], vec!["a".into(), "\0".into()]] {
            let refused = spawn_body(ExecId::from_bits(1), &spec(Program::Argv(argv)), false).unwrap_err();
            assert_eq!(refused.code, Code::InvalidRequest);
        }
        let mut wrong = spec(Program::Shell("x".into()));
        wrong.env = [("A=B".to_owned(), String::new())].into();
        assert!(spawn_body(ExecId::from_bits(1), &wrong, false).is_err());
    }
}
