//! A whole system for one test: the real binary, a state directory of its own, a port of its own; gone at the end.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// How long the system may take to start or to end. A debug build on a busy machine is slow.
const WITHIN: Duration = Duration::from_secs(120);

/// Names a copy of the binary for a test that runs as somebody else, who may not reach the original.
pub const BINARY: &str = "RINGFENCE_TEST_BINARY";

/// The binary under test. Tests of other packages, for whom cargo does not name it, find it beside their own.
pub fn binary() -> PathBuf {
    match (std::env::var_os(BINARY), option_env!("CARGO_BIN_EXE_ringfence")) {
        (Some(copy), _) => copy.into(),
        (None, Some(path)) => path.into(),
        (None, None) => {
            let tests = std::env::current_exe().unwrap();
            let path = tests.ancestors().nth(2).unwrap().join("ringfence");
            assert!(path.exists(), "build it first: cargo build -p ringfence makes {}", path.display());
            path
        }
    }
}

/// A command of the binary with an environment that holds nothing of the tester's.
pub fn ringfence(home: &Path) -> Command {
    clean(binary(), home)
}

/// The same as another user, whose binary is in their home.
fn ringfence_as(home: &Path, uid: Option<u32>) -> Command {
    let Some(uid) = uid else { return ringfence(home) };
    let mut command = clean(home.join("ringfence"), home);
    command.uid(uid).gid(uid).current_dir(home);
    command
}

fn clean(binary: PathBuf, home: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .stdin(Stdio::null());
    command
}

/// A running system.
pub struct System {
    dir: TempDir,
    up: Child,
    pub url: String,
    pub pid: u32,
    /// Whose it is, if not the tester's; they have a copy of the binary in `dir`, which is theirs.
    uid: Option<u32>,
}

impl System {
    /// Starts it and waits until it is ready.
    pub fn start() -> Self {
        Self::start_in(fresh_dir())
    }

    pub fn start_in(dir: TempDir) -> Self {
        Self::start_with(dir, &["--listen", "127.0.0.1:0"])
    }

    /// Starts it with these arguments.
    pub fn start_with(dir: TempDir, args: &[&str]) -> Self {
        Self::start_by(dir, args, None)
    }

    /// Starts one that belongs to a user id without any rights; only root can.
    pub fn start_as(uid: u32) -> Self {
        let dir = fresh_dir();
        fs::copy(binary(), dir.path().join("ringfence")).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).unwrap();
        Self::start_by(dir, &["--listen", "127.0.0.1:0"], Some(uid))
    }

    /// As [`Self::start_as`], by processes that root put into this control group before.
    pub fn start_as_in(uid: u32, group: &Path) -> Self {
        let dir = fresh_dir();
        let (copy, path) = (dir.path().join("copy"), dir.path().join("ringfence"));
        fs::copy(binary(), &copy).unwrap();
        // The commands of who is served are not in it: once controllers are handed down it can have no process itself.
        let script = format!(
            "#!/bin/sh -e\nif [ \"$1\" = up ]; then echo $$ > {}/cgroup.procs; fi\n\
             exec setpriv --reuid {uid} --regid {uid} --clear-groups {} \"$@\"\n",
            group.display(),
            copy.display(),
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).unwrap();
        Self::start_by(dir, &["--listen", "127.0.0.1:0"], Some(0))
    }

    /// Starts it, and runs its commands, by a script of the tester's that takes something away from the host and then
    /// becomes the binary: `BINARY` in its text.
    pub fn start_under(script: &str) -> Self {
        let dir = fresh_dir();
        let path = dir.path().join("ringfence");
        fs::write(&path, script.replace("BINARY", binary().to_str().unwrap())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self::start_by(dir, &["--listen", "127.0.0.1:0"], Some(0))
    }

    fn start_by(dir: TempDir, args: &[&str], uid: Option<u32>) -> Self {
        let log = fs::File::create(dir.path().join("up.log")).unwrap();
        let mut command = ringfence_as(dir.path(), uid);
        command.args(["up", "--json", "--pool", "2", "--state"]).arg(dir.path().join("state")).args(args);
        command.stdout(Stdio::piped()).stderr(log);
        let mut up = loop {
            match command.spawn() {
                // A program that another thread is just starting has our copy of the binary open for writing, until its
                // exec.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                spawned => break spawned.unwrap(),
            }
        };
        let mut line = String::new();
        let mut stdout = BufReader::new(up.stdout.take().unwrap());
        // Ends when the line comes, or when `up` gives up by itself.
        stdout.read_line(&mut line).unwrap();
        let Ok(told) = serde_json::from_str::<Value>(&line) else {
            let _ = up.kill();
            let _ = up.wait();
            panic!("the system does not start: {}", fs::read_to_string(dir.path().join("up.log")).unwrap());
        };
        Self { url: told["url"].as_str().unwrap().to_owned(), pid: up.id(), dir, up, uid }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What `up` said so far on standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("up.log")).unwrap()
    }

    /// A command as the operator of this system.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = ringfence_as(self.dir.path(), self.uid);
        command.env("RINGFENCE_STATE", self.state()).args(args);
        command
    }

    /// Runs a command as the operator of this system.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args), b"")
    }

    /// Runs a command that must succeed; gives its standard output without the last line end.
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).expect(0)
    }

    /// Runs a command with `--json` that must succeed.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The pids of the supervisor's children, by their first argument.
    pub fn child(&self, role: &str) -> u32 {
        let path = format!("/proc/{}/task/{}/children", self.pid, self.pid);
        let children = fs::read_to_string(path).unwrap();
        let is = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(role.as_bytes()))
        };
        children
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .find(is)
            .unwrap_or_else(|| panic!("no {role}: {}", self.log()))
    }

    /// Ends it in order; nothing of it may be left.
    pub fn stop(self) {
        self.stop_and(|| {});
    }

    /// As [`Self::stop`]; `after` is called when it has ended, before its directory is looked for and removed.
    pub fn stop_and(mut self, after: impl FnOnce()) {
        signal(self.pid, "TERM");
        let status = wait(&mut self.up);
        let log = self.log();
        assert!(status.success(), "{status}: {log}");
        let state = self.state();
        let left: Vec<_> = processes().into_iter().filter(|(_, line)| line.contains(state.to_str().unwrap())).collect();
        assert_eq!(left, [], "{log}");
        after();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(state.to_str().unwrap()), "{mounts}");
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // A test that failed: end it all the same. After `stop` there is nothing left to end.
        if self.up.try_wait().is_ok_and(|status| status.is_none()) {
            if std::thread::panicking() {
                eprintln!("what the system said:\n{}", self.log());
            }
            signal(self.pid, "TERM");
            let _ = wait(&mut self.up);
        }
    }
}

/// A directory that the server, which has another id, can pass.
pub fn fresh_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("ringfence-test-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    let until = Instant::now() + WITHIN;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if Instant::now() > until => {
                let _ = child.kill();
                panic!("it did not end within {WITHIN:?}");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Sends a signal by its name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// Waits until `done`, or fails saying `what`.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + WITHIN;
    while !done() {
        assert!(Instant::now() < until, "not within {WITHIN:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every process of the machine with its command line.
pub fn processes() -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) {
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// Runs it with these bytes on standard input.
    pub fn of(mut command: Command, stdin: &[u8]) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let bytes = stdin.to_vec();
        // Beside the reading, or both sides could wait for each other. A command that reads nothing is no fault.
        let feeder = std::thread::spawn(move || drop(input.write_all(&bytes)));
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        Self { code: status.code().unwrap_or_else(|| panic!("{status}: {stderr}")), stdout, stderr }
    }

    /// Its standard output as text, without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap().trim_end_matches('\n').to_owned()
    }

    /// It must have ended with this code; gives its standard output.
    pub fn expect(&self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", String::from_utf8_lossy(&self.stdout), self.stderr);
        self.text()
    }
}

/// Compares with a golden file, with ids, ports and this machine's paths taken out. `RINGFENCE_BLESS=1` writes it.
pub fn golden(name: &str, text: &str, hide: &[(&str, &str)]) {
    let mut shown = text.to_owned();
    for (from, to) in hide {
        shown = shown.replace(from, to);
    }
    let shown = without_ids(&shown);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        fs::write(&path, &shown).unwrap();
    }
    let mut kept = String::new();
    fs::File::open(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .read_to_string(&mut kept)
        .unwrap();
    assert_eq!(shown, kept, "{name}");
}

/// Ids become their prefix and `…`.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let hex =
            |text: &str| text.len() >= 32 && text.bytes().take(32).all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let prefix = ["sbx_", "usr_", "exe_", "mch_", "key_", "req_"]
            .into_iter()
            .find(|p| rest.starts_with(p) && hex(&rest[4..]));
        if let Some(prefix) = prefix {
            out.push_str(prefix);
            out.push('…');
            rest = &rest[36..];
        } else {
            let next = rest.chars().next().unwrap();
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}
