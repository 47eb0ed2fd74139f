//! A user's own machine by the whole system: it joins by a token, its owner decides, commands follow the preference.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{Ran, System, eventually, ringfence, signal};

/// Three heartbeats of ten seconds, and some time on a busy machine: longest that a silent machine counts as online.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// The same of how long its calls wait for it then.
const GRACE_MAX: Duration = Duration::from_secs(20);

/// A `ringfence join` and its user; ends with this.
struct Joined<'a> {
    system: &'a System,
    key: String,
    child: Child,
    workspace: PathBuf,
    home: PathBuf,
}

impl<'a> Joined<'a> {
    fn start(system: &'a System, user: &str, level: &str) -> Self {
        let key = system.json(&["user", "add", user])["key"].as_str().unwrap().to_owned();
        let home = system.dir().join(user);
        let workspace = home.join("work");
        fs::create_dir_all(&workspace).unwrap();
        let token = Ran::of(Self::command_of(system, &key, &["--json", "machine", "token"]), b"").expect(0);
        let token: Value = serde_json::from_str(&token).unwrap();
        let joined = |token: Option<&str>| Self::join(system, &home, &workspace, level, token);
        let child = joined(token["token"].as_str());
        let joined = Self { system, key, child, workspace, home };
        joined.wait_until(true);
        joined
    }

    fn join(system: &System, home: &Path, workspace: &Path, level: &str, token: Option<&str>) -> Child {
        let mut command = ringfence(home);
        command.args(["join", &system.url, "--level", level, "--workspace"]).arg(workspace);
        if let Some(token) = token {
            command.env("RINGFENCE_TOKEN", token);
        }
        let log = fs::File::options().create(true).append(true).open(home.join("join.log")).unwrap();
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Ends the machine's program as its owner does.
    fn end(&mut self) {
        signal(self.child.id(), "TERM");
        assert!(self.child.wait().unwrap().success());
    }

    /// Starts it again, without a token.
    fn again(&mut self, workspace: &Path, level: &str) {
        self.child = Self::join(self.system, &self.home, workspace, level, None);
    }

    fn command_of(system: &System, key: &str, args: &[&str]) -> Command {
        let mut command = system.command(args);
        command.env("RINGFENCE_KEY", key).env("RINGFENCE_URL", &system.url);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(Self::command_of(self.system, &self.key, args), b"")
    }

    fn id(&self) -> String {
        self.machines()[0]["id"].as_str().unwrap().to_owned()
    }

    fn machines(&self) -> Vec<Value> {
        let text = self.run(&["--json", "machine", "list"]).expect(0);
        serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
    }

    fn wait_until(&self, online: bool) {
        eventually("the machine is as online as it should be", || {
            self.machines().first().is_some_and(|machine| machine["online"] == online)
        });
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            signal(self.child.id(), "TERM");
            // A stopped one would never hear of it.
            signal(self.child.id(), "CONT");
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("what the machine said:\n{}", fs::read_to_string(self.home.join("join.log")).unwrap_or_default());
        }
    }
}

#[test]
fn commands_go_to_the_machine_while_it_is_there_and_nowhere_else_unasked() {
    let system = System::start();
    let mut ann = Joined::start(&system, "ann", "full");
    fs::write(ann.workspace.join("note"), "on the machine").unwrap();
    assert_eq!(ann.run(&["exec", "--", "cat", "note"]).expect(0), "on the machine");
    assert_eq!(ann.run(&["exec", "--sh", "exit 9"]).code, 9);
    let there = ann.run(&["--json", "exec", "--", "pwd"]).expect(0);
    let there: Value = serde_json::from_str(&there).unwrap();
    assert_eq!(there["place"]["kind"], "machine", "{there}");
    // A call may choose the sandbox all the same; the file is not there.
    ann.run(&["exec", "--place", "sandbox", "--sh", "! test -e note"]).expect(0);

    let here = system.dir().join("big");
    fs::write(&here, vec![3; 2_000_000]).unwrap();
    ann.run(&["cp", here.to_str().unwrap(), ":copied"]).expect(0);
    assert_eq!(fs::read(ann.workspace.join("copied")).unwrap().len(), 2_000_000);

    // Another user's call does not reach it.
    let ben = system.json(&["user", "add", "ben"])["key"].as_str().unwrap().to_owned();
    let id = ann.id();
    Ran::of(Joined::command_of(&system, &ben, &["exec", "-m", &id, "--", "true"]), b"").expect(125);

    // The server dies and comes back: the machine dials again by itself.
    signal(system.child("server"), "KILL");
    eventually("the machine serves again", || ann.run(&["exec", "-m", &id, "--", "true"]).code == 0);

    // Gone: preferred alone there is no place; else the sandbox.
    ann.end();
    ann.wait_until(false);
    let alone = ann.run(&["exec", "--place", "machine", "--", "true"]);
    alone.expect(125);
    assert!(alone.stderr.contains("machine"), "{}", alone.stderr);
    let there = ann.run(&["--json", "exec", "--", "true"]).expect(0);
    assert_eq!(serde_json::from_str::<Value>(&there).unwrap()["place"]["kind"], "sandbox");

    // It comes back with its own key, without a token.
    ann.again(&ann.workspace.clone(), "full");
    ann.wait_until(true);
    assert_eq!(ann.machines().len(), 1);
    drop(ann);
    system.stop();
}

#[test]
fn the_owner_decides_what_may_be_done() {
    let system = System::start();
    let ann = Joined::start(&system, "ann", "workspace");
    fs::write(ann.home.join("private"), "not yours").unwrap();
    fs::write(ann.workspace.join("open"), "yours").unwrap();
    // The control, then what the kernel refuses.
    assert_eq!(ann.run(&["exec", "--", "cat", "open"]).expect(0), "yours");
    assert_ne!(ann.run(&["exec", "--", "cat", "../private"]).code, 0);
    let outside = format!("echo x > {}", ann.home.join("made").display());
    assert_ne!(ann.run(&["exec", "--sh", &outside]).code, 0);
    assert!(!ann.home.join("made").exists());
    let back = system.dir().join("back");
    ann.run(&["cp", ":../private", back.to_str().unwrap()]).expect(1);
    assert!(!back.exists());
    ann.run(&["cp", ":open", back.to_str().unwrap()]).expect(0);

    // A token that is none: said as what it is, with what to do.
    let mut stranger = ringfence(&system.dir().join("stranger"));
    stranger.args(["join", &system.url, "--token", "rfe_none", "--key-dir"]).arg(system.dir().join("stranger-key"));
    stranger.arg("--workspace").arg(&ann.workspace);
    let refused = Ran::of(stranger, b"");
    refused.expect(1);
    assert!(refused.stderr.contains("does not take the token"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`ringfence machine token`"), "{}", refused.stderr);

    let ben = Joined::start(&system, "ben", "read-only");
    fs::write(ben.workspace.join("open"), "look").unwrap();
    ben.run(&["cp", ":open", back.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read_to_string(&back).unwrap(), "look");
    ben.run(&["cp", back.to_str().unwrap(), ":written"]).expect(1);
    let refused = ben.run(&["exec", "--", "true"]);
    refused.expect(125);
    assert!(refused.stderr.contains("read-only"), "{}", refused.stderr);
    drop((ann, ben));
    system.stop();
}

#[test]
fn the_installer_brings_the_same_program() {
    let system = System::start();
    let home = system.dir().join("new");
    fs::create_dir(&home).unwrap();
    let script = Command::new("curl").args(["-fsS", &format!("{}/v1/machines/install", system.url)]).output().unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    let mut shell = Command::new("sh");
    shell.env_clear().env("HOME", &home).env("PATH", std::env::var_os("PATH").unwrap()).current_dir(&home);
    let ran = Ran::of(shell, &script.stdout);
    ran.expect(0);
    let installed = home.join(".local/bin/ringfence");
    assert!(installed.exists(), "{ran:?}");
    let version =
        |path: &Path| String::from_utf8(Command::new(path).arg("--version").output().unwrap().stdout).unwrap();
    assert_eq!(version(&installed), version(&support::binary()));
    system.stop();
}

#[test]
fn what_a_background_command_prints_is_kept_to_the_byte_while_the_server_is_killed() {
    let system = System::start();
    let ann = Joined::start(&system, "ann", "workspace");
    let id = ann.id();
    // Both outputs, faster than they are written away, with the end known before the last bytes are: a third before each
    // time that the server is killed.
    let line = "for n in $(seq 1 40); do until test -e go$((n / 14)); do sleep 0.05; done; \
                seq $((n * 10000)) $((n * 10000 + 9999)); seq $((n * 1000)) $((n * 1000 + 999)) >&2; sleep 0.05; done";
    let exec = ann.run(&["exec", "-d", "-m", &id, "--sh", line]).expect(0);
    for third in 0..3 {
        let printed = || ann.run(&["logs", &exec]).stdout.len();
        let before = printed();
        fs::write(ann.workspace.join(format!("go{third}")), "").unwrap();
        eventually("some more is printed", || printed() != before);
        signal(system.child("server"), "KILL");
        eventually("the machine serves again", || ann.run(&["exec", "-m", &id, "--", "true"]).code == 0);
    }
    let logs = ann.run(&["logs", "-f", &exec]);
    logs.expect(0);
    let numbers = |from: u32, to: u32| (from..to).map(|n| format!("{n}\n")).collect::<String>();
    assert!(logs.stdout == numbers(10_000, 410_000).as_bytes(), "{} bytes of standard output", logs.stdout.len());
    assert!(logs.stderr == numbers(1000, 41_000), "{} bytes of standard error", logs.stderr.len());
    drop(ann);
    system.stop();
}

/// A user's first machine as the interface shows it.
fn api_of(system: &System, key: &str) -> Value {
    let url = format!("{}/v1/machines", system.url);
    let told = Command::new("curl").args(["-fsS", "-H", &format!("X-API-Key: {key}"), &url]).output().unwrap();
    serde_json::from_slice::<Value>(&told.stdout).unwrap()["items"][0].clone()
}

#[test]
fn what_a_machine_announces_is_what_the_api_shows() {
    let system = System::start();
    let mut ann = Joined::start(&system, "ann", "workspace");
    let told = |args: &[&str]| {
        String::from_utf8(Command::new("uname").args(args).output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let canonical = |path: &Path| path.canonicalize().unwrap().to_str().unwrap().to_owned();
    let machine = api_of(&system, &ann.key);
    let facts = &machine["facts"];
    assert_eq!(facts["hostname"], told(&["-n"]).as_str(), "{machine}");
    assert_eq!((&facts["os"], &facts["kernel"]), (&"linux".into(), &told(&["-r"]).into()));
    assert_eq!(facts["arch"], told(&["-m"]).as_str());
    assert_eq!(facts["home"], ann.home.to_str().unwrap());
    assert_eq!(facts["workspace"], canonical(&ann.workspace).as_str());
    assert_eq!((&facts["level"], &machine["level"]), (&"workspace".into(), &"workspace".into()));
    assert_eq!((&machine["name"], &machine["online"]), (&facts["hostname"], &true.into()));
    assert!(!facts["not_held"].as_array().unwrap().is_empty());
    // The command line hides nothing of it from programs.
    let mut listed = ann.machines().remove(0);
    assert!(listed["last_seen_at"].as_u64() >= machine["last_seen_at"].as_u64(), "{listed}");
    listed["last_seen_at"] = machine["last_seen_at"].clone();
    assert_eq!(listed, machine);

    // What its owner changes is announced anew, by the same machine.
    let other = ann.home.join("other");
    fs::create_dir(&other).unwrap();
    ann.end();
    ann.again(&other, "read-only");
    eventually("the new facts are there", || api_of(&system, &ann.key)["level"] == "read-only");
    let again = api_of(&system, &ann.key);
    assert_eq!((&again["id"], &again["facts"]["workspace"]), (&machine["id"], &canonical(&other).into()));
    drop(ann);
    system.stop();
}

/// A computer that froze, or whose network is gone: nothing is closed, and nothing comes.
#[test]
fn a_machine_that_falls_silent_is_offline_and_its_calls_end() {
    let system = System::start();
    let ann = Joined::start(&system, "ann", "full");
    let id = ann.id();
    let args = ["--json", "exec", "-m", &id, "--sh", "echo runs > mark; exec sleep 1000"];
    let command = Joined::command_of(&system, &ann.key, &args);
    let calling = std::thread::spawn(move || Ran::of(command, b""));
    eventually("the command runs", || ann.workspace.join("mark").exists());
    let silent = Instant::now();
    signal(ann.child.id(), "STOP");
    ann.wait_until(false);
    assert!(silent.elapsed() < SILENCE_MAX, "{:?}", silent.elapsed());
    let lost = calling.join().unwrap();
    assert!(silent.elapsed() < SILENCE_MAX + GRACE_MAX, "{:?}", silent.elapsed());
    let fault: Value = serde_json::from_str(&lost.stderr).unwrap();
    assert_eq!((lost.code, fault["code"].as_str()), (125, Some("place_lost")), "{lost:?}");
    // New calls are told at once that there is no such place, and go nowhere else.
    let asked = Instant::now();
    let refused = ann.run(&["--json", "exec", "-m", &id, "--", "true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(asked.elapsed() < Duration::from_secs(5));
    signal(ann.child.id(), "CONT");
    ann.wait_until(true);
    assert_eq!(ann.run(&["exec", "-m", &id, "--", "cat", "mark"]).expect(0), "runs");
    drop(ann);
    system.stop();
}
