//! Starts the real program as process 1 of fresh namespaces and talks to it as the server and the warden do.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::{
    fs,
    io::{IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use rf_wire::init::{
    Entry, Exited, HEADER_LEN, INLINE_MAX, Reader, UNLIMITED, Writer, answer, file_answer, file_op, order,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    pipe::{PipeFlags, pipe_with},
};

include!("../../guest_build.rs");

/// How long an answer may take before the test fails; generous, for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program, built once for each test process; a second build does nothing.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        build_guest(&root, &target_dir, "x86_64-unknown-linux-gnu").expect("rf-init builds")
    })
}

/// One message as it came.
#[derive(Debug)]
pub struct Message {
    pub kind: u16,
    pub tag: u64,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    pub fn reader(&self) -> Reader<'_> {
        Reader::body(&self.body)
    }

    pub fn exited(&self) -> Exited {
        assert_eq!(self.kind, answer::EXITED, "{self:?}");
        Exited::read(&mut self.reader()).unwrap()
    }

    /// `(errno, stage)` of a `FAILED`.
    pub fn failed(&self) -> (i32, u32) {
        assert_eq!(self.kind, answer::FAILED, "{self:?}");
        let mut reader = self.reader();
        (reader.u32().unwrap() as i32, reader.u32().unwrap())
    }
}

/// One end of a socket to init or to a helper.
#[derive(Debug)]
pub struct Peer(pub OwnedFd);

pub fn peers() -> (OwnedFd, Peer) {
    let (a, b) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socketpair");
    (a, Peer(b))
}

impl Peer {
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("send");
    }

    /// The next message; `None` when the other side has closed.
    pub fn receive(&self) -> Option<Message> {
        let mut poll_fds = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert_ne!(poll(&mut poll_fds, Some(&patience)).expect("poll"), 0, "no answer");
        let mut buffer = vec![0; INLINE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = match recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) if got.bytes > 0 => got,
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => return None,
            Err(errno) => panic!("receive: {errno}"),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let (header, _) = Reader::message(&buffer[..got.bytes]).expect("header");
        let body = buffer[HEADER_LEN..got.bytes].to_vec();
        Some(Message { kind: header.kind, tag: header.tag, body, fds })
    }

    pub fn next(&self) -> Message {
        self.receive().expect("an answer")
    }

    pub fn order(&self, kind: u16, tag: u64, body: impl FnOnce(&mut Writer<'_>), fds: &[BorrowedFd<'_>]) {
        let mut buffer = vec![0; INLINE_MAX];
        let mut writer = Writer::new(&mut buffer, kind, tag);
        body(&mut writer);
        let len = writer.finish().expect("fits");
        self.send(&buffer[..len], fds);
    }
}

/// A `SPAWN` to be.
#[derive(Clone, Debug)]
pub struct Exec {
    pub id: u128,
    pub flags: u32,
    pub rows: u16,
    pub cols: u16,
    pub timeout_ms: u64,
    pub rlimits: [u64; 4],
    pub user: String,
    pub cwd: String,
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
}

impl Exec {
    pub fn new<A: AsRef<[u8]>>(id: u128, argv: &[A]) -> Self {
        Self {
            id,
            flags: 0,
            rows: 24,
            cols: 80,
            timeout_ms: UNLIMITED,
            rlimits: [UNLIMITED; 4],
            user: String::new(),
            cwd: "/".into(),
            argv: argv.iter().map(|arg| arg.as_ref().to_vec()).collect(),
            env: Vec::new(),
        }
    }

    pub fn shell(id: u128, line: &str) -> Self {
        let mut exec = Self::new(id, &[line]);
        exec.flags = rf_wire::init::spawn::SHELL;
        exec
    }

    pub fn flags(mut self, flags: u32) -> Self {
        self.flags |= flags;
        self
    }

    pub fn write(&self, writer: &mut Writer<'_>) {
        writer.u128(self.id);
        writer.u32(self.flags);
        writer.u16(self.rows);
        writer.u16(self.cols);
        writer.u64(self.timeout_ms);
        for limit in self.rlimits {
            writer.u64(limit);
        }
        writer.string(self.user.as_bytes());
        writer.string(self.cwd.as_bytes());
        for list in [&self.argv, &self.env] {
            writer.u32(list.len() as u32);
            for text in list {
                writer.string(text);
            }
        }
    }
}

/// What a whole exec came to.
#[derive(Debug)]
pub struct Done {
    pub exited: Exited,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Done {
    pub fn code(&self) -> u32 {
        assert_eq!(self.exited.status & 0x7f, 0, "killed by a signal: {self:?}");
        self.exited.status >> 8
    }

    pub fn text(&self) -> String {
        assert_eq!(self.code(), 0, "{}", String::from_utf8_lossy(&self.stderr));
        String::from_utf8(self.stdout.clone()).unwrap()
    }
}

/// A file operation to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOrder<'a> {
    pub op: u16,
    pub mode: u16,
    pub flags: u32,
    pub permissions: u32,
    pub number: u32,
    pub user: &'a str,
    pub a: &'a [u8],
    pub b: &'a [u8],
}

/// Process 1 with both its sockets; its namespaces end when this is dropped.
#[derive(Debug)]
pub struct Field {
    pub warden: Peer,
    pub server: Peer,
    pub ready: u32,
    child: Child,
    /// A directory that init's users can write to, at the same path inside.
    pub dir: tempfile::TempDir,
    cgroup: Option<PathBuf>,
}

/// How a field differs from the usual one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// With a cgroup for each exec.
    pub cgroups: bool,
    /// Root may be had.
    pub root: bool,
    /// Many uids, so that execs run as the default user, 1000: needs to be root on the machine.
    pub users: bool,
    /// The one uid that is mapped is 1000 inside.
    pub only_user: bool,
    /// Init has the capabilities KILL, SETGID and SETUID alone, as where nobody may be root.
    pub bounded: bool,
}

impl Field {
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// Starts init in user, pid, mount, ipc and net namespaces of its own. One uid only is mapped.
    pub fn with(options: Options) -> Self {
        let (warden_inside, warden) = peers();
        let (server_inside, server) = peers();
        let dir = tempfile::tempdir().unwrap();
        let mut flags = String::from(if options.users { "" } else { "u" });
        let mut cgroup = None;
        let stderr = if options.cgroups {
            flags.push('c');
            let path = own_cgroup().join(format!("rf-init-test-{}-{}", std::process::id(), unique()));
            fs::create_dir(&path).expect("a cgroup below our own");
            let fd = fs::File::open(&path).unwrap();
            cgroup = Some(path);
            Stdio::from(fd)
        } else {
            Stdio::inherit()
        };
        if options.root {
            flags.push('r');
        }
        let script = "exec 3<&0 4<&1; test $CG = 0 || exec 5<&2; exec 0</dev/null 1>/dev/null; exec \"$@\"";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh", "unshare"]);
        let bound = if options.bounded { "exec setpriv --bounding-set -all,+kill,+setgid,+setuid " } else { "exec " };
        let mut setup = String::from("ip link set lo up 2>/dev/null; ");
        if options.users {
            assert!(rustix::process::geteuid().is_root(), "this test needs root, for its many uids");
            // What init makes there is for these namespaces only.
            setup += "mount -t tmpfs -o mode=755 none /run && ";
            fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        } else if options.only_user {
            command.args(["--user", "--map-user=1000", "--map-group=1000"]);
        } else {
            command.args(["--user", "--map-root-user"]);
        }
        let child = command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--net", "--", "sh", "-c"])
            .arg(setup + bound + "\"$0\" \"$1\"")
            .arg(program())
            .arg(&flags)
            .env("CG", if options.cgroups { "1" } else { "0" })
            .stdin(Stdio::from(warden_inside))
            .stdout(Stdio::from(server_inside))
            .stderr(stderr)
            .spawn()
            .expect("unshare starts");
        let ready = warden.next();
        assert_eq!((ready.kind, ready.tag), (answer::READY, 0));
        let ready = ready.reader().u32().unwrap();
        Self { warden, server, ready, child, dir, cgroup }
    }

    /// The cgroups that init has made, from outside.
    pub fn groups(&self) -> Vec<PathBuf> {
        let own = self.cgroup.as_ref().expect("a field with cgroups");
        let entries = fs::read_dir(own).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()).collect()
    }

    /// A path in the shared directory, as bytes.
    pub fn path(&self, name: &str) -> Vec<u8> {
        self.dir.path().join(name).into_os_string().into_encoded_bytes()
    }

    pub fn spawn(&self, exec: &Exec) -> Message {
        self.server.order(order::SPAWN, 7, |writer| exec.write(writer), &[]);
        let answer = self.server.next();
        assert_eq!(answer.tag, 7);
        answer
    }

    pub fn spawned(&self, exec: &Exec) -> Message {
        let answer = self.spawn(exec);
        assert_eq!(answer.kind, answer::SPAWNED, "{answer:?} {:?}", answer.kind == answer::FAILED);
        assert_eq!(answer.reader().u128().unwrap(), exec.id);
        answer
    }

    /// Runs to the end, with all its output.
    pub fn run(&self, exec: &Exec) -> Done {
        let mut fds = self.spawned(exec).fds.into_iter();
        let out = fds.next().unwrap();
        let reader = fds.next().map(|err| std::thread::spawn(move || read_all(err)));
        let stdout = read_all(out);
        let stderr = reader.map_or_else(Vec::new, |reader| reader.join().unwrap());
        let exited = self.server.next().exited();
        assert_eq!(exited.exec, exec.id);
        Done { exited, stdout, stderr }
    }

    /// Sends a file operation; gives the reply socket.
    pub fn file(&self, file: FileOrder<'_>, pipe: Option<BorrowedFd<'_>>) -> Peer {
        let (theirs, ours) = peers();
        let mut fds = vec![theirs.as_fd()];
        fds.extend(pipe);
        let FileOrder { op, mode, flags, permissions, number, user, a, b } = file;
        let body = rf_wire::init::File { op, mode, flags, permissions, number, user: user.as_bytes(), a, b };
        self.server.order(order::FILE, 9, |writer| body.write(writer), &fds);
        ours
    }

    /// A file operation that answers `DONE` or fails with an errno.
    pub fn done(&self, file: FileOrder<'_>) -> Result<(), i32> {
        finish(&self.file(file, None))
    }

    /// Opens a file.
    pub fn open(&self, file: FileOrder<'_>) -> Result<(fs::File, Peer), i32> {
        let reply = self.file(file, None);
        let message = reply.next();
        if message.kind == file_answer::FAILED {
            return Err(message.reader().u32().unwrap() as i32);
        }
        assert_eq!(message.kind, file_answer::OPENED);
        Entry::read(&mut message.reader()).unwrap();
        Ok((message.fds.into_iter().next().unwrap().into(), reply))
    }

    pub fn read(&self, path: &[u8]) -> Result<Vec<u8>, i32> {
        let (mut file, _) = self.open(FileOrder { op: file_op::READ, a: path, ..FileOrder::default() })?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        Ok(content)
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        // Closing the warden's socket ends process 1 and with it everything inside.
        let (_, other) = peers();
        self.warden = other;
        let _ = self.child.wait();
        if let Some(cgroup) = &self.cgroup {
            for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let removed = fs::remove_dir(cgroup);
            if !std::thread::panicking() {
                removed.expect("no process is left in the cgroup");
            }
        }
    }
}

/// Waits for the end of a helper's answer.
pub fn finish(reply: &Peer) -> Result<(), i32> {
    let message = reply.next();
    match message.kind {
        file_answer::DONE => Ok(()),
        file_answer::FAILED => Err(message.reader().u32().unwrap() as i32),
        kind => panic!("answer {kind}"),
    }
}

pub fn read_all(fd: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    bytes
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// The directory of this process's own cgroup v2.
fn own_cgroup() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup v2").to_owned();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup v2 is mounted");
    Path::new(mount.split(' ').nth(1).unwrap()).join(path)
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
