//! What the server and the warden say to `rf-init`, process 1 of a sandbox, and what it answers.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` Unix socket, with descriptors beside it (`SCM_RIGHTS`, unix(7)).
//! Numbers are little-endian. A message is a header and a body:
//!
//! ```text
//! 0      2      4            12
//! | kind | vers | tag: u64   | body ...
//! ```
//!
//! `tag` is chosen by who asks and comes back with every answer to that order. A string is `len: u32` and its bytes
//! followed by one NUL that `len` does not count, so init can hand it to the kernel in place. A list is `count: u32`
//! and its items.
//!
//! An order larger than [`INLINE_MAX`] travels in a memfd: the datagram is then the header with [`IN_MEMFD`] added to
//! the kind, the body is `len: u64`, and the first descriptor beside it holds the body; those of the order follow.
//!
//! **Boundary:** init is hostile to the server once a workload has run beside it: the server checks every length,
//! kind and descriptor count it gets back. Nothing but the server and the warden holds the other end of init's sockets.

/// The version in every header. The other side refuses another. 2 has the orders that tell more of a file ([`crate::detail`]).
pub const VERSION: u16 = 2;
/// Bytes of a header.
pub const HEADER_LEN: usize = 12;
/// Longest datagram; both sides keep a buffer of this size.
pub const INLINE_MAX: usize = 64 * 1024;
/// Longest body in a memfd: the kernel's own bound on arguments and environment together is near 6 MiB (execve(2)).
pub const MEMFD_MAX: usize = 8 * 1024 * 1024;
/// Added to an order's kind when its body is in a memfd.
pub const IN_MEMFD: u16 = 0x8000;
/// Most execs, running or ended and not yet forgotten, that one init keeps.
pub const EXECS_MAX: usize = 512;
/// Most descriptors beside one message.
pub const FDS_MAX: usize = 4;
/// "No limit" in a field of 64 bits.
pub const UNLIMITED: u64 = u64::MAX;

/// Kinds of orders (to init).
pub mod order {
    /// Start an exec: [`super::Spawn`]. Answer: `SPAWNED` with descriptors, or `FAILED`. Later `EXITED`.
    pub const SPAWN: u16 = 1;
    /// Signal an exec: `exec: u128, signal: u32, scope: u32` (0 process, 1 tree). Answer: `DONE` or `FAILED`.
    pub const SIGNAL: u16 = 2;
    /// A file operation: [`super::File`], with the reply socket and, for some, a data pipe. Answer: none on this
    /// socket unless the helper process cannot be started: then `FAILED`.
    pub const FILE: u16 = 3;
    /// Tell of every exec: an `EXEC` for each, with its descriptors, then `DONE`. Also makes init tell `EXITED` of
    /// ended ones only in this way.
    pub const LIST: u16 = 4;
    /// Forget an ended exec and close what is kept of it: `exec: u128`. Answer: `DONE` or `FAILED`.
    pub const FORGET: u16 = 5;
    /// Close init's kept copies of a running exec's descriptors, so that it sees end-of-file and broken pipes when the
    /// server closes its own: `exec: u128`. Answer: `DONE` or `FAILED`.
    pub const RELEASE: u16 = 6;
    /// Are you there? Answer: `DONE`.
    pub const PING: u16 = 7;
    /// Only from the warden: the descriptor beside it is the new server's socket; drop the old. Answer: `DONE`.
    pub const ADOPT: u16 = 8;
    /// Only from the warden: all processes were frozen for `us: u64` and run again, `flags: u32` (see
    /// [`super::thawed`]). Deadlines are put off by as much. No answer.
    pub const THAWED: u16 = 9;
    /// Only from the warden: kill every process of the sandbox but process 1. No answer.
    pub const KILL_ALL: u16 = 10;
}

/// Bits of the flags of [`order::THAWED`].
pub mod thawed {
    /// The root is another overlay than before: what was bound to a path is to be bound anew.
    pub const NEW_ROOT: u32 = 1;
}

/// Kinds of answers and news (from init).
pub mod answer {
    /// Only to the warden, once: init is ready. Body: [`super::Ready`].
    pub const READY: u16 = 64;
    /// `exec: u128, pid: u32`; beside it, in this order: standard input (if asked for), output, error; or the
    /// terminal's master alone.
    pub const SPAWNED: u16 = 65;
    /// `errno: u32, stage: u32`, see [`super::stage`].
    pub const FAILED: u16 = 66;
    /// News, tag 0: [`super::Exited`].
    pub const EXITED: u16 = 67;
    /// One exec of a `LIST`: [`super::Listed`], with the same descriptors as `SPAWNED`, if they are still kept.
    pub const EXEC: u16 = 68;
    /// Done; no body.
    pub const DONE: u16 = 69;
}

/// Which step of an order failed.
pub mod stage {
    /// The order itself is malformed, or its exec is not known.
    pub const ORDER: u32 = 1;
    /// The table of execs is full of running ones.
    pub const TABLE: u32 = 2;
    /// The user is not in `/etc/passwd`, or may not be had.
    pub const USER: u32 = 3;
    /// Pipes or the terminal could not be made.
    pub const PIPES: u32 = 4;
    /// The exec's cgroup could not be made.
    pub const CGROUP: u32 = 5;
    /// A process could not be made: `EAGAIN` is the limit on tasks, `ENOMEM` memory.
    pub const FORK: u32 = 6;
    /// The child could not take on its identity, limits or terminal.
    pub const IDENTITY: u32 = 7;
    /// The working directory could not be entered.
    pub const DIRECTORY: u32 = 8;
    /// The program could not be executed.
    pub const PROGRAM: u32 = 9;
    /// The signal could not be sent.
    pub const SIGNAL: u32 = 10;
}

/// Bits of [`Spawn::flags`].
pub mod spawn {
    /// A terminal instead of pipes.
    pub const PTY: u32 = 1;
    /// A pipe for standard input instead of `/dev/null`.
    pub const STDIN: u32 = 2;
    /// `argv` has one string: a line for `/bin/bash -c`, or `/bin/sh -c` where there is no bash.
    pub const SHELL: u32 = 4;
    /// Keep copies of the server's ends of the descriptors until `FORGET` or `RELEASE`, so a new server can take over.
    pub const KEEP: u32 = 8;
    /// No `LANG` in the environment but the one that is given.
    pub const NO_LANGUAGE: u32 = 16;
}

/// Kinds of file operations, in [`File::op`]; each child answers on its own reply socket (see [`file_answer`]).
pub mod file_op {
    /// `a` path. Answer: `OPENED` with a read-only descriptor of a regular file and its stat.
    pub const READ: u16 = 1;
    /// `a` path, `mode` (0 truncate, 1 create new, 2 append, 3 replace), `permissions`, flag 1 = make parents.
    /// Answer: `OPENED` with a write-only descriptor; for replace the child then waits for one byte: 1 commits
    /// (fsync is the server's affair) and is answered by `DONE`, anything else or end-of-file drops it.
    pub const WRITE: u16 = 2;
    /// `a` path, `number` depth. Answer: an `ENTRY` each, then `DONE`.
    pub const LIST: u16 = 3;
    /// `a` path, flag 1 = follow. Answer: `ENTRY`, then `DONE`.
    pub const STAT: u16 = 4;
    /// `a` path, `permissions`, flag 1 = parents and no error if there.
    pub const MAKE_DIR: u16 = 5;
    /// `a` from, `b` to, flag 1 = replace.
    pub const MOVE: u16 = 6;
    /// `a` path, flag 1 = recursive.
    pub const REMOVE: u16 = 7;
    /// `a` path, `permissions`.
    pub const CHMOD: u16 = 8;
    /// `a` path; the second descriptor is a pipe that gets the archive (POSIX pax). Answer: `DONE` at the end.
    pub const TAR_OUT: u16 = 9;
    /// `a` path; the second descriptor is a pipe that gives the archive. Answer: `DONE` at the end.
    pub const TAR_IN: u16 = 10;
    /// `a` path, flag 1 = recursive. Answer: `DONE` when it watches, then `CHANGE` for each; ends when the reply
    /// socket is closed by the server.
    pub const WATCH: u16 = 11;
    /// `number` port of 127.0.0.1 (then ::1). Answer: `OPENED` with a connected TCP socket.
    pub const CONNECT: u16 = 12;
}

/// Kinds of messages on the reply socket of a file operation. Same header, tag of the order.
pub mod file_answer {
    /// [`super::Entry`] of the file, with one descriptor.
    pub const OPENED: u16 = 96;
    /// [`super::Entry`].
    pub const ENTRY: u16 = 97;
    /// No body.
    pub const DONE: u16 = 98;
    /// `errno: u32`, then a string: the path as far as it is known to matter.
    pub const FAILED: u16 = 99;
    /// `mask: u32` (bits of [`super::change`]), then a string: the path below the watched one.
    pub const CHANGE: u16 = 100;
}

/// Bits of a `CHANGE`.
pub mod change {
    /// Made.
    pub const CREATE: u32 = 1;
    /// Content written.
    pub const WRITE: u32 = 2;
    /// Removed.
    pub const REMOVE: u32 = 4;
    /// Renamed away or hither.
    pub const RENAME: u32 = 8;
    /// Mode, owner or times.
    pub const ATTRIBUTES: u32 = 16;
    /// It is a directory.
    pub const DIRECTORY: u32 = 32;
    /// News were lost because there were too many.
    pub const OVERFLOW: u32 = 64;
}

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;

/// Writes a message into a buffer that the caller owns.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    full: bool,
}

impl<'a> Writer<'a> {
    /// Begins a message of `kind` with `tag`.
    pub fn new(buffer: &'a mut [u8], kind: u16, tag: u64) -> Self {
        let mut writer = Self { buffer, len: 0, full: false };
        writer.u16(kind);
        writer.u16(VERSION);
        writer.u64(tag);
        writer
    }

    /// Appends raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        match self.buffer.get_mut(self.len..self.len.saturating_add(bytes.len())) {
            Some(space) => {
                space.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.full = true,
        }
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 128 bits.
    pub fn u128(&mut self, value: u128) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends a string with its length and its NUL.
    pub fn string(&mut self, bytes: &[u8]) {
        // A length past 32 bits never fits the buffer, so `full` is set by `raw`.
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.raw(bytes);
        self.raw(&[0]);
    }

    /// The message's length in the buffer.
    ///
    /// # Errors
    /// When it did not fit.
    pub fn finish(self) -> Result<usize, Malformed> {
        if self.full { Err(Malformed) } else { Ok(self.len) }
    }
}

/// Reads a message's fields in order.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// A message's header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// What it is.
    pub kind: u16,
    /// Whose answer it is.
    pub tag: u64,
}

impl<'a> Reader<'a> {
    /// Reads the header of a whole message.
    ///
    /// # Errors
    /// When it is too short or of another version.
    pub fn message(bytes: &'a [u8]) -> Result<(Header, Self), Malformed> {
        let mut reader = Self { rest: bytes };
        let kind = reader.u16()?;
        if reader.u16()? != VERSION {
            return Err(Malformed);
        }
        let tag = reader.u64()?;
        Ok((Header { kind, tag }, reader))
    }

    /// Reads a body without a header (from a memfd).
    #[must_use]
    pub const fn body(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes `len` raw bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.raw(N)?.try_into().map_err(|_| Malformed)
    }

    /// Takes 16 bits.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes 32 bits.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes 64 bits.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes 128 bits.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u128(&mut self) -> Result<u128, Malformed> {
        self.array().map(u128::from_le_bytes)
    }

    /// Takes a string; the bytes include the final NUL and no other.
    ///
    /// # Errors
    /// When it is cut short, has a NUL inside or none at its end.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        let bytes = self.raw(len.checked_add(1).ok_or(Malformed)?)?;
        if bytes.iter().position(|byte| *byte == 0) == Some(len) { Ok(bytes) } else { Err(Malformed) }
    }

    /// Whether all was read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// A list of strings as it lies in the message.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    count: u32,
    reader: Reader<'a>,
}

impl<'a> Strings<'a> {
    /// Reads a list and steps the reader past it.
    ///
    /// # Errors
    /// When any string is malformed.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = reader.u32()?;
        let list = Self { count, reader: reader.clone() };
        for _ in 0..count {
            reader.string()?;
        }
        Ok(list)
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        // `read` went over all of them, so none is malformed.
        self.reader.string().ok()
    }
}

/// The body of `SPAWN`. `S` is the list type: [`Strings`] when read; host side encoders write lists directly.
#[derive(Clone, Debug)]
pub struct Spawn<'a> {
    /// The exec's id.
    pub exec: u128,
    /// Bits of [`spawn`].
    pub flags: u32,
    /// Terminal rows.
    pub rows: u16,
    /// Terminal columns.
    pub cols: u16,
    /// Init kills the tree after so many milliseconds; [`UNLIMITED`] for never.
    pub timeout_ms: u64,
    /// Soft and hard limits for `RLIMIT_CPU` (s), `RLIMIT_AS`, `RLIMIT_FSIZE` (bytes), `RLIMIT_NOFILE`;
    /// [`UNLIMITED`] leaves the sandbox's own.
    pub rlimits: [u64; 4],
    /// The user's name (with its NUL); empty for the default user.
    pub user: &'a [u8],
    /// The working directory (with its NUL); empty for the user's home.
    pub cwd: &'a [u8],
    /// Program and arguments.
    pub argv: Strings<'a>,
    /// `NAME=value` strings; init adds `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `LANG` and (with a terminal) `TERM`
    /// where they are not given.
    pub env: Strings<'a>,
}

impl<'a> Spawn<'a> {
    /// Reads the body of a `SPAWN`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            exec: reader.u128()?,
            flags: reader.u32()?,
            rows: reader.u16()?,
            cols: reader.u16()?,
            timeout_ms: reader.u64()?,
            rlimits: [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?],
            user: reader.string()?,
            cwd: reader.string()?,
            argv: Strings::read(reader)?,
            env: Strings::read(reader)?,
        })
    }
}

/// The body of `FILE`. Beside it: the reply socket, then for some operations a data pipe.
#[derive(Clone, Debug)]
pub struct File<'a> {
    /// One of [`file_op`].
    pub op: u16,
    /// Mode of a write; else 0.
    pub mode: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Permission bits.
    pub permissions: u32,
    /// Depth or port.
    pub number: u32,
    /// The user (with its NUL); empty for the default user.
    pub user: &'a [u8],
    /// First path (with its NUL).
    pub a: &'a [u8],
    /// Second path (with its NUL); else empty.
    pub b: &'a [u8],
}

impl<'a> File<'a> {
    /// Reads the body of a `FILE`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            op: reader.u16()?,
            mode: reader.u16()?,
            flags: reader.u32()?,
            permissions: reader.u32()?,
            number: reader.u32()?,
            user: reader.string()?,
            a: reader.string()?,
            b: reader.string()?,
        })
    }

    /// Writes the body; strings are given without their NUL.
    pub fn write(&self, writer: &mut Writer<'_>) {
        writer.u16(self.op);
        writer.u16(self.mode);
        writer.u32(self.flags);
        writer.u32(self.permissions);
        writer.u32(self.number);
        for text in [self.user, self.a, self.b] {
            writer.string(text);
        }
    }
}

/// The body of `READY`: what init tried, so that the warden can report it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ready {
    /// Bits of [`ready`].
    pub probes: u32,
}

/// Bits of [`Ready::probes`]: a set bit says that the kernel refused what the layer must refuse.
pub mod ready {
    /// Making a 0:0 character device below `/` was refused with `EACCES`: only Landlock does that (mknod(2) lets
    /// everybody make this one since Linux 5.8).
    pub const LANDLOCK: u32 = 1;
    /// A system call that is not on the list (`_sysctl`, 156) answered `ENOSYS` and `add_key` answered `EPERM` or
    /// `ENOSYS`.
    pub const SECCOMP: u32 = 2;
    /// The session keyring is not the one of the warden (compared by the caller through `keyctl`), tried before the
    /// filter was set.
    pub const KEYRING: u32 = 4;
    /// The exec cgroup directory is there and can be written.
    pub const EXEC_CGROUPS: u32 = 8;
}

/// The body of `EXITED`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exited {
    /// Which exec.
    pub exec: u128,
    /// The status as of wait(2).
    pub status: u32,
    /// 1 when init killed it because its time was up.
    pub timed_out: u32,
    /// CPU in user mode, microseconds.
    pub cpu_user_us: u64,
    /// CPU in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Peak resident memory of the largest process, bytes.
    pub memory_peak_bytes: u64,
    /// From start to exit, microseconds.
    pub wall_us: u64,
}

impl Exited {
    /// Reads the body.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            exec: reader.u128()?,
            status: reader.u32()?,
            timed_out: reader.u32()?,
            cpu_user_us: reader.u64()?,
            cpu_system_us: reader.u64()?,
            memory_peak_bytes: reader.u64()?,
            wall_us: reader.u64()?,
        })
    }

    /// Writes the body.
    pub fn write(&self, writer: &mut Writer<'_>) {
        writer.u128(self.exec);
        writer.u32(self.status);
        writer.u32(self.timed_out);
        writer.u64(self.cpu_user_us);
        writer.u64(self.cpu_system_us);
        writer.u64(self.memory_peak_bytes);
        writer.u64(self.wall_us);
    }
}

/// The body of `EXEC`: one line of a `LIST`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listed {
    /// Its pid inside.
    pub pid: u32,
    /// Bits of [`spawn`] it was started with.
    pub flags: u32,
    /// 1 while it runs; then only `exit.exec` and `exit.wall_us` (so far) of the following say something.
    pub running: u32,
    /// How it ended.
    pub exit: Exited,
}

impl Listed {
    /// Reads the body.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { pid: reader.u32()?, flags: reader.u32()?, running: reader.u32()?, exit: Exited::read(reader)? })
    }

    /// Writes the body.
    pub fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.pid);
        writer.u32(self.flags);
        writer.u32(self.running);
        self.exit.write(writer);
    }
}

/// The body of `OPENED` and `ENTRY`.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// `st_mode` with the type bits (inode(7)).
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Last change of content, milliseconds since 1970.
    pub modified_ms: u64,
    /// The path: below the listed directory, or as asked.
    pub path: &'a [u8],
    /// A link's target; else empty.
    pub target: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads the body; the strings come without their NUL.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let without_nul = |bytes: &'a [u8]| &bytes[..bytes.len() - 1];
        Ok(Self {
            mode: reader.u32()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            size: reader.u64()?,
            modified_ms: reader.u64()?,
            path: without_nul(reader.string()?),
            target: without_nul(reader.string()?),
        })
    }

    /// Writes the body; strings are given without their NUL.
    pub fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.mode);
        writer.u32(self.uid);
        writer.u32(self.gid);
        writer.u64(self.size);
        writer.u64(self.modified_ms);
        writer.string(self.path);
        writer.string(self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_order_comes_back_as_it_was_sent() {
        let mut buffer = [0; 256];
        let mut writer = Writer::new(&mut buffer, order::FILE, 7);
        let sent =
            File { op: file_op::MOVE, mode: 0, flags: 1, permissions: 0, number: 0, user: b"", a: b"/a", b: b"/b" };
        sent.write(&mut writer);
        let len = writer.finish().unwrap();
        let (header, mut reader) = Reader::message(&buffer[..len]).unwrap();
        assert_eq!(header, Header { kind: order::FILE, tag: 7 });
        let got = File::read(&mut reader).unwrap();
        assert_eq!((got.op, got.flags, got.a, got.b), (file_op::MOVE, 1, &b"/a\0"[..], &b"/b\0"[..]));
        assert!(reader.is_empty());
    }

    #[test]
    fn a_message_cut_anywhere_is_malformed() {
        let mut buffer = [0; 256];
        let mut writer = Writer::new(&mut buffer, answer::EXITED, 0);
        Exited { exec: 1, status: 2, timed_out: 0, cpu_user_us: 3, cpu_system_us: 4, memory_peak_bytes: 5, wall_us: 6 }
            .write(&mut writer);
        let len = writer.finish().unwrap();
        for cut in 0..len {
            let whole = Reader::message(&buffer[..cut]).and_then(|(_, mut reader)| Exited::read(&mut reader));
            assert!(whole.is_err(), "{cut}");
        }
    }

    #[test]
    fn a_message_of_another_version_is_malformed() {
        let mut buffer = [0; 64];
        let len = Writer::new(&mut buffer, order::PING, 1).finish().unwrap();
        assert!(Reader::message(&buffer[..len]).is_ok());
        for version in [VERSION - 1, VERSION + 1, 0, u16::MAX] {
            buffer[2..4].copy_from_slice(&version.to_le_bytes());
            assert!(Reader::message(&buffer[..len]).is_err(), "{version}");
        }
    }

    #[test]
    fn a_string_with_a_nul_inside_is_malformed() {
        let mut buffer = [0; 64];
        let mut writer = Writer::new(&mut buffer, 0, 0);
        writer.string(b"a\0b");
        let len = writer.finish().unwrap();
        let (_, mut reader) = Reader::message(&buffer[..len]).unwrap();
        assert_eq!(reader.string(), Err(Malformed));
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let mut buffer = [0; 16];
        let mut writer = Writer::new(&mut buffer, 0, 0);
        writer.string(b"too long for it");
        assert!(writer.finish().is_err());
    }
}
