//! A whole system that is looked at from outside: its processes, cgroups, ledger and files, by what the kernel shows.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    http::{Call, Said},
    support::{System, processes, ringfence},
};

/// How many prepared sandboxes the systems of these tests keep.
pub const POOL: usize = 2;
/// Longest time in which the system must have healed by itself. Generous: restarts rest up to a second, and the machine
/// may be busy.
const HEALED_WITHIN: Duration = Duration::from_secs(15);

/// Sends a signal; a process that is gone already is what SIGKILL wants.
pub fn send(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

/// Stops a process, and waits until it stands.
pub fn stop(pid: u32) {
    send(pid, Signal::STOP);
    until("a process stands still", || matches!(state(pid), Some('T' | 't' | 'Z' | 'X') | None)).unwrap();
}

/// Lets a stopped process go on.
pub fn go_on(pid: u32) {
    send(pid, Signal::CONT);
}

/// Kills a process, and waits until it runs no more.
pub fn kill(pid: u32) {
    send(pid, Signal::KILL);
    until("a killed process ends", || is_dead(pid)).unwrap();
}

/// Whether a process is the first of a sandbox; one that is just being made has no other name yet.
fn is_init(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "rf-init")
}

/// Whether a process runs no more, reaped or not.
pub fn is_dead(pid: u32) -> bool {
    matches!(state(pid), None | Some('Z' | 'X'))
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Waits until `done`; says what did not come.
pub fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + HEALED_WITHIN;
    while !done() {
        if Instant::now() > deadline {
            return Err(format!("not within {HEALED_WITHIN:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether a live process has this in its command line. A zombie has none.
pub fn runs(word: &str) -> bool {
    processes().iter().any(|(_, line)| line.contains(word))
}

/// How many loop devices stand on a file below a directory.
fn loops_on(dir: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(dir.to_str().unwrap())).count()
}

/// A machine that was joined: `ringfence join`, started again whenever it is killed.
pub struct Joined {
    pub id: String,
    pub work: PathBuf,
    home: PathBuf,
    child: Child,
}

impl Joined {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The id without rights that a rootless system belongs to. Chosen; nobody's on this machine.
const NOBODY: u32 = 1_878_982_703;

/// What the sandboxes of a field are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Their disk is in memory: the standard.
    Memory,
    /// Their disk is an image on a loop device.
    Image,
    /// Their system belongs to somebody without rights: no control groups, no pool.
    Rootless,
}

/// A running system with one user's key.
pub struct Field {
    pub system: System,
    pub kind: Kind,
    pub key: String,
    address: String,
    /// The directory of its sandboxes in each cgroup hierarchy; the first is the unified one.
    bases: Vec<PathBuf>,
    pub machine: Option<Joined>,
    /// A sandbox that looks on, and its counting exec.
    pub witness: Option<(String, String)>,
}

impl Field {
    /// Starts a system.
    pub fn start() -> Self {
        Self::of(System::start())
    }

    /// Starts a system whose sandboxes are of this kind.
    pub fn start_of(kind: Kind) -> Self {
        let system = if kind == Kind::Rootless { System::start_as(NOBODY) } else { System::start() };
        Self::of_kind(system, kind)
    }

    /// Looks at a started system.
    pub fn of(system: System) -> Self {
        Self::of_kind(system, Kind::Memory)
    }

    fn of_kind(system: System, kind: Kind) -> Self {
        let address = system.url.strip_prefix("http://").unwrap().to_owned();
        let key = fs::read_to_string(system.state().join("first-key")).unwrap().trim().to_owned();
        let mut field = Self { system, kind, key, address, bases: Vec::new(), machine: None, witness: None };
        if kind != Kind::Rootless {
            until("a prepared sandbox", || {
                field.bases = field.find_bases();
                !field.bases.is_empty()
            })
            .unwrap();
        }
        field.settle().unwrap();
        field
    }

    /// By the cgroups of the warden's children.
    fn find_bases(&self) -> Vec<PathBuf> {
        let Some(init) = self.inits().into_iter().next() else { return Vec::new() };
        let Ok(text) = fs::read_to_string(format!("/proc/{init}/cgroup")) else { return Vec::new() };
        let mut bases = BTreeSet::new();
        for line in text.lines() {
            let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
            let Some((base, _)) = path.rsplit_once("/sbx_") else { continue };
            let base = base.trim_start_matches('/');
            let roots = match controllers {
                "" => vec!["/sys/fs/cgroup/unified".to_owned(), "/sys/fs/cgroup".to_owned()],
                named => vec![format!("/sys/fs/cgroup/{named}")],
            };
            let found = roots.iter().map(|root| Path::new(root).join(base)).find(|path| path.is_dir());
            bases.extend(found.map(|path| (!controllers.is_empty(), path)));
        }
        bases.into_iter().map(|(_, path)| path).collect()
    }

    /// The directories of sandboxes in the unified hierarchy; none where there are no control groups.
    pub fn cgroups(&self) -> BTreeSet<String> {
        self.bases.first().map_or_else(BTreeSet::new, |base| self.cgroups_of(base))
    }

    /// The directory of one sandbox in every hierarchy in which it has a control group.
    #[allow(dead_code, reason = "the tests of rf-escape use it")]
    pub fn groups_of(&self, sandbox: &str) -> Vec<PathBuf> {
        self.bases.iter().map(|base| base.join(sandbox)).filter(|dir| dir.is_dir()).collect()
    }

    /// How many loop devices stand on a file of this system's.
    pub fn loops(&self) -> usize {
        loops_on(&self.system.state())
    }

    fn cgroups_of(&self, base: &Path) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(base) else { return BTreeSet::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("sbx_"))
            .collect()
    }

    /// Every cgroup directory of this system, in all hierarchies.
    pub fn cgroups_all(&self) -> usize {
        self.bases.iter().map(|base| self.cgroups_of(base).len()).sum()
    }

    /// In how many hierarchies a sandbox has a cgroup.
    pub fn hierarchies(&self) -> usize {
        self.bases.len()
    }

    pub fn server(&self) -> u32 {
        self.system.child("server")
    }

    /// The server's process, if there is one just now.
    pub fn try_server(&self) -> Option<u32> {
        let up = self.system.pid;
        let children = fs::read_to_string(format!("/proc/{up}/task/{up}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).nth(1) == Some(b"server")
        })
    }

    pub fn warden(&self) -> u32 {
        self.system.child("warden")
    }

    /// Process 1 of each sandbox: the warden's live children of that name.
    pub fn inits(&self) -> Vec<u32> {
        let warden = self.warden();
        let children = fs::read_to_string(format!("/proc/{warden}/task/{warden}/children")).unwrap_or_default();
        let all = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        // It may have others, which work for it.
        all.filter(|pid| !is_dead(*pid) && is_init(*pid)).collect()
    }

    /// Process 1 of a sandbox.
    pub fn init_of(&self, sandbox: &str) -> Option<u32> {
        let procs = fs::read_to_string(self.bases.first()?.join(sandbox).join("cgroup.procs")).ok()?;
        procs.lines().next()?.parse().ok()
    }

    /// The head of a request of this user's, with `length` bytes of body to come.
    pub fn head(&self, method: &str, path: &str, length: usize, more: &str) -> Vec<u8> {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-length: {length}\r\n{more}\r\n",
            self.address, self.key
        )
        .into_bytes()
    }

    pub fn open(&self) -> std::io::Result<Call> {
        Call::open(&self.address)
    }

    /// One whole request on a connection of its own.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Said {
        let asked = || {
            let mut call = self.open()?;
            let mut bytes = self.head(method, path, body.len(), "");
            bytes.extend_from_slice(body);
            call.send(&bytes)?;
            Ok(call.answer())
        };
        asked().unwrap_or_else(|error: std::io::Error| Said::Lost(error.to_string()))
    }

    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Said {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, &body)
    }

    /// A request that must be done.
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let said = self.ask(method, path, body);
        assert!(said.is_done(), "{method} {path}: {said}");
        said.json().unwrap_or_default()
    }

    /// Makes a sandbox; its id and its process 1.
    pub fn sandbox(&self) -> (String, u32) {
        self.sandbox_with(&json!({}))
    }

    pub fn sandbox_with(&self, spec: &Value) -> (String, u32) {
        let before = self.inits();
        let made = self.must("POST", "/v1/sandboxes", &self.spec(spec.clone()));
        let id = made["id"].as_str().unwrap().to_owned();
        let init = match self.kind {
            // One at a time: the one that was not there.
            Kind::Rootless => self.inits().into_iter().find(|pid| !before.contains(pid)),
            Kind::Memory | Kind::Image => self.init_of(&id),
        };
        let init = init.unwrap_or_else(|| panic!("{id} has no process 1"));
        (id, init)
    }

    /// What a sandbox of this field's kind is asked for with.
    pub fn spec(&self, mut spec: Value) -> Value {
        match self.kind {
            Kind::Memory => {}
            Kind::Image => {
                spec["disk"] = json!("image");
                spec["limits"]["disk_bytes_max"] = json!(64 << 20);
            }
            Kind::Rootless => spec["accept_missing"] = json!(["memory", "tasks", "cpu"]),
        }
        spec
    }

    /// Runs a line for the shell in a sandbox to its end; its answer.
    pub fn shell(&self, sandbox: &str, line: &str) -> Said {
        self.ask("POST", &format!("/v1/sandboxes/{sandbox}/exec"), &json!({ "shell": line }))
    }

    /// The user's sandboxes.
    pub fn listed(&self) -> Option<Vec<String>> {
        let list = self.ask("GET", "/v1/sandboxes?items_max=1000", &Value::Null);
        let list = list.is_done().then(|| list.json())??;
        Some(list["items"].as_array()?.iter().filter_map(|item| Some(item["id"].as_str()?.to_owned())).collect())
    }

    /// How many intents of an action the ledger has.
    pub fn intents(&self, action: &str) -> usize {
        self.records(action, "intent")
    }

    /// How many results of an action the ledger has.
    pub fn results(&self, action: &str) -> usize {
        self.records(action, "result")
    }

    fn records(&self, action: &str, kind: &str) -> usize {
        let mark = format!("\"action\":\"{action}\",\"kind\":\"{kind}\"");
        let mut count = 0;
        for entry in fs::read_dir(self.system.state().join("server/ledger")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "jsonl") {
                let bytes = fs::read(path).unwrap_or_default();
                count += String::from_utf8_lossy(&bytes).matches(&mark).count();
            }
        }
        count
    }

    pub fn is_ready(&self) -> bool {
        self.ask("GET", "/v1/health/ready", &Value::Null).status() == 200
    }

    /// Waits until the system is well again by itself, and then holds all that there must be and nothing else.
    pub fn settle(&self) -> Result<(), String> {
        until("ready again", || self.is_ready())?;
        let rootless = self.kind == Kind::Rootless;
        let pool = if rootless { 0 } else { POOL };
        let counts = || (self.listed().map(|l| l.len() + pool), self.cgroups().len(), self.inits().len());
        until("as many cgroups and first processes as there are sandboxes", || {
            let (wanted, cgroups, inits) = counts();
            let held = if rootless { cgroups == 0 } else { cgroups == inits };
            wanted == Some(inits) && held && self.cgroups_all() == cgroups * self.hierarchies()
        })
        .map_err(|error| {
            format!("{error}: {:?} in {} hierarchies: {}", counts(), self.hierarchies(), self.cgroups_all())
        })?;
        if self.kind == Kind::Image {
            let most = self.listed().map_or(0, |list| list.len());
            until("no loop device is left", || self.loops() <= most)?;
        }
        let verified = self.ask("GET", "/v1/audit/verify", &Value::Null);
        if verified.json().is_some_and(|told| told["whole"] == true) {
            Ok(())
        } else {
            Err(format!("the ledger is not whole: {verified}"))
        }
    }

    /// Starts somebody who counts in a sandbox of their own, and must not notice what happens to others.
    pub fn watch(&mut self) {
        let (sandbox, _) = self.sandbox();
        let count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
        let begun =
            self.must("POST", &format!("/v1/sandboxes/{sandbox}/exec"), &json!({ "shell": count, "background": true }));
        self.witness = Some((sandbox, begun["id"].as_str().unwrap().to_owned()));
    }

    /// Ends the counting: from one on, nothing is missing and nothing is there twice.
    pub fn ask_witness(&mut self) {
        let (sandbox, exec) = self.witness.take().unwrap();
        let path = format!("/v1/execs/{exec}");
        assert_eq!(self.must("GET", &path, &Value::Null)["state"], "running");
        self.must("POST", &format!("{path}/signal"), &json!({ "signal": 9, "scope": "tree" }));
        let ended = self.must("GET", &format!("{path}/wait?timeout_ms=20000"), &Value::Null);
        assert_eq!((&ended["state"], &ended["signal"]), (&json!("exited"), &json!(9)), "{ended}");
        let logs = self.ask("GET", &format!("{path}/logs"), &Value::Null);
        let Said::Answer { status: 200, body, whole: true } = logs else { panic!("{logs}") };
        let text = String::from_utf8(body).unwrap();
        let counted: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(counted.len() > 20 && counted.iter().copied().eq(1..=counted.len()), "{text}");
        self.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
        self.settle().unwrap();
    }

    /// Joins a machine of the user's, or starts its program again.
    pub fn join(&mut self) -> Result<(), String> {
        let (home, token) = match self.machine.take() {
            Some(mut old) => {
                send(old.child.id(), Signal::KILL);
                let _ = old.child.wait();
                (old.home.clone(), None)
            }
            None => {
                let home = self.system.dir().join("owner");
                fs::create_dir_all(home.join("work")).unwrap();
                let enrolled = self.system.json(&["machine", "token"]);
                (home, Some(enrolled["token"].as_str().unwrap().to_owned()))
            }
        };
        let work = home.join("work");
        let mut command = ringfence(&home);
        command.args(["join", &self.system.url, "--level", "full", "--workspace"]).arg(&work);
        if let Some(token) = token {
            command.env("RINGFENCE_TOKEN", token);
        }
        let log = fs::File::options().create(true).append(true).open(home.join("join.log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.machine = Some(Joined { id: String::new(), work, home, child });
        let id = self.online()?;
        if let Some(machine) = &mut self.machine {
            machine.id = id;
        }
        Ok(())
    }

    /// Waits until the machine serves; its id.
    pub fn online(&self) -> Result<String, String> {
        let mut found = None;
        until("the machine serves", || {
            let list = self.ask("GET", "/v1/machines", &Value::Null).json().unwrap_or_default();
            let Some(machine) = list["items"].as_array().and_then(|items| items.first()).cloned() else { return false };
            let Some(id) = machine["id"].as_str().map(str::to_owned) else { return false };
            let answers = machine["online"] == true
                && self.ask("POST", &format!("/v1/machines/{id}/exec"), &json!({ "argv": ["true"] })).is_done();
            found = Some(id);
            answers
        })?;
        found.ok_or_else(|| "no machine".to_owned())
    }

    /// Ends all; nothing may be left.
    pub fn end(self) {
        self.end_with(|| {});
    }

    /// As [`Self::end`], and then `after`, while its directory is still there.
    pub fn end_with(mut self, after: impl FnOnce()) {
        if let Some(mut machine) = self.machine.take() {
            send(machine.child.id(), Signal::TERM);
            let _ = machine.child.wait();
        }
        let Self { system, bases, .. } = self;
        let state = system.state();
        system.stop_and(after);
        assert_eq!(loops_on(&state), 0, "loop devices are left");
        for base in bases {
            assert!(!base.exists(), "{} is left", base.display());
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // After `end` it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the machine:\n{}", fs::read_to_string(self.home.join("join.log")).unwrap_or_default());
        }
    }
}
