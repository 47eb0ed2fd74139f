//! A real warden for one test, and a client of it and of the inits that it hands out; all gone at the end.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod steps;

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    io::Read as _,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rf_sandbox::packet;
use rf_types::{Code, Fault, SandboxId, SandboxSpec, SnapshotId, units::UnixMs};
use rf_wire::{
    init::{Exited, INLINE_MAX, Reader, UNLIMITED, Writer, answer, file_answer, file_op, order, spawn},
    warden::{Answer, MESSAGE_MAX, Order, Reply, Request, Snapshot, VERSION},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

/// How long anything may take. A debug build on a busy machine is slow.
const WITHIN: Duration = Duration::from_secs(60);

/// Waits until `done`.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !done() {
        assert!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The next message of a socket; `None` at its end.
pub fn next(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MESSAGE_MAX.max(INLINE_MAX)];
    let deadline = Instant::now() + WITHIN;
    loop {
        match packet::receive(socket, &mut buffer, false) {
            Ok((0, _)) | Err(Errno::CONNRESET) => return None,
            Ok((len, fds)) => return Some((buffer[..len].to_vec(), fds)),
            Err(Errno::AGAIN) => {
                assert!(Instant::now() < deadline, "nothing came within {WITHIN:?}");
                let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::IN)];
                let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
                rustix::event::poll(&mut fds, Some(&second)).unwrap();
            }
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// A warden with a state directory of its own.
pub struct Warden {
    dir: tempfile::TempDir,
    child: Child,
    /// After its state directory.
    args: Vec<String>,
}

impl Warden {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With so many sandboxes kept prepared, and so many milliseconds to unpack a layer.
    pub fn start_with(args: &[&str]) -> Self {
        Self::start_on(tempfile::tempdir().unwrap(), args)
    }

    /// With a server and one sandbox, from which most tests go on.
    pub fn with(spec: &SandboxSpec) -> (Self, Server, Sandbox) {
        let warden = Self::start();
        let mut server = warden.connect();
        let sandbox = server.create(spec);
        (warden, server, sandbox)
    }

    /// With what is in its state directory.
    pub fn start_on(dir: tempfile::TempDir, args: &[&str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run this as root");
        fs::create_dir_all(dir.path().join("run")).unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let child = Self::run(&dir, &args);
        Self { dir, child, args }
    }

    fn run(dir: &tempfile::TempDir, args: &[String]) -> Child {
        let tests = std::env::current_exe().unwrap();
        let program = tests.ancestors().nth(2).unwrap().join("examples/warden");
        assert!(program.exists(), "cargo builds {} with the tests", program.display());
        let log = fs::File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
        // The socket of a former one is refused, a new one's accepts.
        let _ = fs::remove_file(dir.path().join("run/warden.sock"));
        let mut child =
            Command::new(program).arg(dir.path()).args(args).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        eventually("the warden listens", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(dir.path().join("log")).unwrap());
            dir.path().join("run/warden.sock").exists()
        });
        child
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("warden")
    }

    /// Its children but for those that are in its own user namespace, and do nothing for one sandbox.
    pub fn children(&self) -> usize {
        let pid = self.pid();
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let own = namespace(&pid.to_string()).unwrap();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().filter(|child| namespace(child).is_none_or(|found| found != own)).count()
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Kills it as the kernel would, and starts the next on the same state.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::run(&self.dir, &self.args);
    }

    /// Ends it in order, and starts the next on the same state.
    pub fn restart(&mut self) {
        self.end();
        self.child = Self::run(&self.dir, &self.args);
    }

    fn end(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", fs::read_to_string(self.dir.path().join("log")).unwrap());
    }

    /// Ends it in order; nothing of it may be left.
    pub fn stop(mut self) {
        self.end();
        let state = self.dir.path().to_str().unwrap();
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(state));
    }

    pub fn connect(&self) -> Server {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let path = self.dir.path().join("run/warden.sock");
        eventually("the warden takes a connection", || {
            rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).is_ok()
        });
        let mut server = Server { socket, tag: 0, news: Vec::new(), early: Vec::new() };
        server.ask(Order::Hello { version: VERSION }).unwrap();
        server
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's side of one connection.
pub struct Server {
    socket: OwnedFd,
    tag: u64,
    news: Vec<Reply>,
    /// Answers that came before others were heard.
    early: Vec<(u64, Result<Reply, Fault>, Option<OwnedFd>)>,
}

impl Server {
    pub fn send(&mut self, order: Order) -> u64 {
        self.send_with(order, &[])
    }

    pub fn send_with(&mut self, order: Order, fds: &[std::os::fd::BorrowedFd<'_>]) -> u64 {
        self.tag += 1;
        let bytes = serde_json::to_vec(&Request { tag: self.tag, order }).unwrap();
        packet::send(&self.socket, &bytes, fds).unwrap();
        self.tag
    }

    /// The next answer to this tag; news are kept.
    pub fn answer(&mut self, tag: u64) -> (Result<Reply, Fault>, Option<OwnedFd>) {
        if let Some(index) = self.early.iter().position(|(early, ..)| *early == tag) {
            let (_, result, fd) = self.early.remove(index);
            return (result, fd);
        }
        loop {
            let (bytes, fds) = next(&self.socket).expect("the warden keeps the connection");
            let answer: Answer = serde_json::from_slice(&bytes).unwrap();
            if answer.tag == tag {
                return (answer.result, fds.into_iter().next());
            }
            if answer.tag == 0 {
                self.news.push(answer.result.unwrap());
            } else {
                self.early.push((answer.tag, answer.result, fds.into_iter().next()));
            }
        }
    }

    pub fn ask_with_fd(&mut self, order: Order) -> (Result<Reply, Fault>, Option<OwnedFd>) {
        let tag = self.send(order);
        self.answer(tag)
    }

    pub fn ask(&mut self, order: Order) -> Result<Reply, Fault> {
        self.ask_with_fd(order).0
    }

    /// The next news of which `wanted` makes something.
    pub fn news<T>(&mut self, wanted: impl Fn(&Reply) -> Option<T>) -> T {
        loop {
            if let Some(index) = self.news.iter().position(|news| wanted(news).is_some()) {
                return wanted(&self.news.remove(index)).unwrap();
            }
            let (bytes, _) = next(&self.socket).expect("the warden keeps the connection");
            let answer: Answer = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(answer.tag, 0, "{answer:?}");
            self.news.push(answer.result.unwrap());
        }
    }

    pub fn create(&mut self, spec: &SandboxSpec) -> Sandbox {
        self.try_create(spec, None, None).unwrap()
    }

    pub fn create_from(&mut self, spec: &SandboxSpec, from: SnapshotId) -> Sandbox {
        self.try_create(spec, Some(from), None).unwrap()
    }

    pub fn try_create(
        &mut self,
        spec: &SandboxSpec,
        from: Option<SnapshotId>,
        id: Option<SandboxId>,
    ) -> Result<Sandbox, Fault> {
        match self.ask_with_fd(Order::Create { spec: spec.clone(), from, id }) {
            (Ok(Reply::Created { id, lease_until, .. }), Some(socket)) => Ok(Sandbox::new(id, lease_until, socket)),
            (Err(fault), None) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    pub fn done(&mut self, order: Order) {
        match self.ask(order) {
            Ok(Reply::Done {}) => {}
            other => panic!("{other:?}"),
        }
    }

    pub fn refused(&mut self, order: Order) -> Code {
        self.ask(order).map(drop).unwrap_err().code
    }

    pub fn resume(&mut self, id: SandboxId, lease_until: Option<UnixMs>) -> UnixMs {
        match self.ask(Order::Resume { id, lease_until }) {
            Ok(Reply::Resumed { lease_until }) => lease_until,
            other => panic!("{other:?}"),
        }
    }

    pub fn snapshot(&mut self, id: SandboxId) -> Snapshot {
        match self.ask(Order::Snapshot { id, snapshot: SnapshotId::random() }) {
            Ok(Reply::Snapshotted(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    pub fn snapshots(&mut self) -> Vec<Snapshot> {
        self.all_snapshots().0
    }

    /// And those whose files were set aside.
    pub fn all_snapshots(&mut self) -> (Vec<Snapshot>, Vec<SnapshotId>) {
        match self.ask(Order::Snapshots { after: None }) {
            Ok(Reply::Snapshots { list, set_aside, more: false }) => (list, set_aside),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a snapshot is durable.
    pub fn durable(&mut self, id: SnapshotId) -> Snapshot {
        if let Some(snapshot) = self.snapshots().into_iter().find(|s| s.id == id && s.durable) {
            return snapshot;
        }
        self.news(|news| match news {
            Reply::SnapshotChanged(snapshot) if snapshot.id == id && snapshot.durable => Some(snapshot.clone()),
            _ => None,
        })
    }

    /// Every sandbox that lives, with its new socket.
    pub fn adopt(&mut self) -> Vec<(Sandbox, Option<rf_wire::warden::Paused>)> {
        let tag = self.send(Order::Adopt {});
        let mut adopted = Vec::new();
        loop {
            match self.answer(tag) {
                (Ok(Reply::Adopted { id, lease_until, paused, .. }), Some(socket)) => {
                    adopted.push((Sandbox::new(id, lease_until, socket), paused));
                }
                (Ok(Reply::Done {}), None) => return adopted,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A sandbox, by its init's socket.
pub struct Sandbox {
    pub id: SandboxId,
    pub lease_until: UnixMs,
    pub socket: OwnedFd,
    /// Ends of execs that came while something else was waited for.
    ended: RefCell<HashMap<u128, Exited>>,
}

/// An exec that was started.
pub struct Exec {
    pub id: u128,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Sandbox {
    pub fn new(id: SandboxId, lease_until: UnixMs, socket: OwnedFd) -> Self {
        Self { id, lease_until, socket, ended: RefCell::default() }
    }

    pub fn id(&self) -> SandboxId {
        self.id
    }

    fn order(&self, kind: u16, tag: u64, body: impl FnOnce(&mut Writer<'_>)) {
        self.try_order(kind, tag, body).unwrap();
    }

    fn try_order(&self, kind: u16, tag: u64, body: impl FnOnce(&mut Writer<'_>)) -> Result<(), Errno> {
        let mut buffer = vec![0; INLINE_MAX];
        let mut writer = Writer::new(&mut buffer, kind, tag);
        body(&mut writer);
        let len = writer.finish().unwrap();
        packet::send(&self.socket, &buffer[..len], &[])
    }

    /// Starts a shell line in a sandbox that may be gone; nobody hears of it.
    pub fn try_start(&self, line: &str) {
        let _ = self.try_order(order::SPAWN, 7, |writer| spawn_shell(writer, random_exec(), line, "", None));
    }

    /// Sends the order to start a shell line, as `user` (empty: the default one).
    pub fn start_later(&self, line: &str, user: &str, timeout_ms: Option<u64>) -> u128 {
        let id = random_exec();
        self.order(order::SPAWN, 7, |writer| spawn_shell(writer, id, line, user, timeout_ms));
        id
    }

    pub fn started(&self, id: u128) -> Exec {
        let (bytes, fds) = self.answer();
        let (header, mut reader) = Reader::message(&bytes).unwrap();
        if header.kind == answer::FAILED {
            panic!("not started: errno {} at {}", reader.u32().unwrap(), reader.u32().unwrap());
        }
        assert_eq!((header.kind, header.tag), (answer::SPAWNED, 7));
        let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds).unwrap();
        Exec { id, stdout, stderr }
    }

    pub fn start(&self, line: &str) -> Exec {
        self.started(self.start_later(line, "", None))
    }

    /// Waits for the end of an exec: its status, and what it said.
    pub fn wait(&self, exec: Exec) -> (Exited, String, String) {
        let read = |fd: OwnedFd| {
            let mut said = Vec::new();
            fs::File::from(fd).read_to_end(&mut said).unwrap();
            String::from_utf8_lossy(&said).into_owned()
        };
        let (stdout, stderr) = (read(exec.stdout), read(exec.stderr));
        let exited = loop {
            if let Some(exited) = self.ended.borrow_mut().remove(&exec.id) {
                break exited;
            }
            let (bytes, _) = next(&self.socket).expect("init is there");
            self.note_end(&bytes).expect("nothing else is under way");
        };
        self.order(order::FORGET, 9, |writer| writer.u128(exec.id));
        let (bytes, _) = self.answer();
        assert_eq!(Reader::message(&bytes).unwrap().0.kind, answer::DONE);
        (exited, stdout, stderr)
    }

    /// The next message that answers an order: execs end whenever they do, in between as well.
    fn answer(&self) -> (Vec<u8>, Vec<OwnedFd>) {
        loop {
            let (bytes, fds) = next(&self.socket).expect("init is there");
            if self.note_end(&bytes).is_none() {
                return (bytes, fds);
            }
        }
    }

    /// Keeps the end of an exec, if that is what the message tells.
    fn note_end(&self, bytes: &[u8]) -> Option<()> {
        let (header, mut reader) = Reader::message(bytes).unwrap();
        (header.kind == answer::EXITED).then(|| {
            let exited = Exited::read(&mut reader).unwrap();
            self.ended.borrow_mut().insert(exited.exec, exited);
        })
    }

    /// Runs a shell line that must succeed; what it said, without the last line end.
    pub fn sh(&self, line: &str) -> String {
        self.sh_as("", line)
    }

    pub fn sh_as(&self, user: &str, line: &str) -> String {
        let (exited, stdout, stderr) = self.wait(self.started(self.start_later(line, user, None)));
        assert_eq!(exited.status, 0, "{line}: {stdout}{stderr}");
        stdout.trim_end().to_owned()
    }

    /// Runs a shell line that must fail; what it said.
    pub fn sh_fails(&self, line: &str) -> String {
        let (exited, stdout, stderr) = self.wait(self.start(line));
        assert_ne!(exited.status, 0, "{line}: {stdout}");
        stdout + &stderr
    }

    /// Opens a file for writing, as the server does for an upload.
    pub fn open_for_writing(&self, path: &str) -> OwnedFd {
        let (ours, inits) = packet::pair().unwrap();
        let mut buffer = vec![0; INLINE_MAX];
        let mut writer = Writer::new(&mut buffer, order::FILE, 11);
        for number in [file_op::WRITE, 0] {
            writer.u16(number);
        }
        for number in [0, 0o644, 0] {
            writer.u32(number);
        }
        for text in ["", path, ""] {
            writer.string(text.as_bytes());
        }
        let len = writer.finish().unwrap();
        packet::send(&self.socket, &buffer[..len], &[inits.as_fd()]).unwrap();
        drop(inits);
        let (bytes, fds) = next(&ours).expect("the helper answers");
        assert_eq!(Reader::message(&bytes).unwrap().0.kind, file_answer::OPENED);
        // The helper has ended.
        assert!(next(&ours).is_none_or(|(bytes, _)| Reader::message(&bytes).unwrap().0.kind == file_answer::DONE));
        fds.into_iter().next().unwrap()
    }

    /// Whether process 1 answers within this time.
    pub fn answers_within(&self, time: Duration) -> bool {
        self.order(order::PING, 8, |_| ());
        let mut fds = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
        let time = rustix::event::Timespec::try_from(time).unwrap();
        if rustix::event::poll(&mut fds, Some(&time)).unwrap() == 0 {
            return false;
        }
        let (bytes, _) = next(&self.socket).expect("init is there");
        assert_eq!(Reader::message(&bytes).unwrap().0.kind, answer::DONE);
        true
    }

    /// The answer to a ping that was sent before.
    pub fn pong(&self) {
        let (bytes, _) = next(&self.socket.as_fd().try_clone_to_owned().unwrap()).expect("init is there");
        assert_eq!(Reader::message(&bytes).unwrap().0.kind, answer::DONE);
    }
}

fn random_exec() -> u128 {
    rf_types::ExecId::random().bits()
}

/// The body of a `SPAWN` of a shell line.
fn spawn_shell(writer: &mut Writer<'_>, id: u128, line: &str, user: &str, timeout_ms: Option<u64>) {
    writer.u128(id);
    writer.u32(spawn::SHELL);
    writer.u16(0);
    writer.u16(0);
    writer.u64(timeout_ms.unwrap_or(UNLIMITED));
    for _ in 0..4 {
        writer.u64(UNLIMITED);
    }
    writer.string(user.as_bytes());
    writer.string(b"");
    writer.u32(1);
    writer.string(line.as_bytes());
    writer.u32(0);
}
