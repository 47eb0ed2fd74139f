//! What `up` promises to whoever starts it for the first time, and what a sandbox says of its network.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use support::{Ran, System, eventually, fresh_dir, ringfence, signal};

/// The commands that `up` prints are run as they stand there.
#[test]
fn up_prints_an_address_a_first_key_and_three_commands_that_work() {
    let dir = fresh_dir();
    let state = dir.path().join("state");
    let mut up = ringfence(dir.path())
        .args(["up", "--listen", "127.0.0.1:0", "--pool", "1", "--state"])
        .arg(&state)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    // Three commands after `try:`, and then nothing more for as long as it runs.
    while said.iter().skip_while(|line| *line != "try:").count() < 4 {
        said.push(lines.next().unwrap_or_else(|| panic!("it ended: {said:?}")).unwrap());
    }
    let after = |word: &str| {
        let line = said.iter().find_map(|line| line.trim().strip_prefix(word));
        line.unwrap_or_else(|| panic!("no {word}: {said:?}")).trim().to_owned()
    };
    let (url, key) = (after("address"), after("first key"));
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert_eq!(key, fs::read_to_string(state.join("first-key")).unwrap().trim());
    let mut asked = ringfence(dir.path());
    asked.args(["--json", "ps", "--url", &url]).env("RINGFENCE_KEY", &key);
    let listed = Ran::of(asked, b"").expect(0);
    assert!(listed.contains("sandboxes"), "the address and the key do: {listed}");
    let commands: Vec<_> = said.iter().skip_while(|line| *line != "try:").skip(1).map(|line| line.trim()).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for (command, says) in commands.iter().zip(["Linux ", "", ""]) {
        let mut line = Command::new("bash");
        line.args(["-c", command]).current_dir(dir.path());
        let ran = Ran::of(line, b"");
        assert!(ran.expect(0).starts_with(says), "{command}: {ran:?}");
    }
    signal(up.id(), "TERM");
    assert!(up.wait().unwrap().success(), "{}", fs::read_to_string(dir.path().join("log")).unwrap());
}

#[test]
fn a_sandbox_has_no_way_out_and_says_so() {
    let system = System::start();
    let id = system.ok(&["create"]);
    let listed = system.json(&["ps"]);
    assert_eq!(listed["sandboxes"][0]["spec"]["network"], "none");
    let key = fs::read_to_string(system.state().join("first-key")).unwrap();
    let post = |body: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-w", "\n%{http_code}", "-X", "POST", "-H", "content-type: application/json", "-d", body])
            .args(["-H", &format!("authorization: Bearer {}", key.trim())])
            .arg(format!("{}/v1/sandboxes", system.url));
        Ran::of(curl, b"").expect(0)
    };
    // Who asks for another is told so, and gets none without it.
    let refused = post(r#"{ "network": "open" }"#);
    assert!(refused.ends_with("\n400") && refused.contains("network"), "{refused}");
    assert!(post("{}").ends_with("\n201"), "the control");
    // Nothing but the loopback, and no address beyond it is reached.
    let devices = system.ok(&["exec", "-s", &id, "--sh", "ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev"]);
    assert!(devices.trim_start().starts_with("lo") && devices.lines().count() == 1, "{devices}");
    let reach = "import socket; socket.create_connection(('192.0.2.1', 443), 5)";
    let ran = system.run(&["exec", "-s", &id, "--", "python3", "-c", reach]);
    assert!(ran.code == 1 && ran.stderr.contains("Network is unreachable"), "{ran:?}");
    eventually("it can be removed", || system.run(&["rm", &id]).code == 0);
    system.stop();
}

#[test]
fn the_document_that_is_served_is_the_committed_one() {
    let system = System::start();
    let mut curl = Command::new("curl");
    curl.args(["-sf", &format!("{}/v1/openapi.json", system.url)]);
    let served: serde_json::Value = serde_json::from_str(&Ran::of(curl, b"").expect(0)).unwrap();
    let committed: serde_json::Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
    assert!(served == committed, "cargo test -p rf-server says how to write it anew");
    assert!(served["paths"].as_object().unwrap().len() > 20, "the control");
    system.stop();
}

#[test]
fn a_boot_id_stays_over_a_pause_and_a_fork_has_another() {
    let system = System::start();
    let id = system.ok(&["create"]);
    let of = |id: &str| system.ok(&["exec", "-s", id, "--sh", "cat /proc/sys/kernel/random/boot_id; hostname"]);
    let before = of(&id);
    system.ok(&["pause", &id]);
    system.ok(&["resume", &id]);
    assert_eq!(of(&id), before);
    let forks = system.json(&["fork", &id, "--count", "2"]);
    let forks: Vec<_> =
        forks.as_array().unwrap().iter().map(|fork| of(fork["sandbox"]["id"].as_str().unwrap())).collect();
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let all: Vec<&str> = [&before, &forks[0], &forks[1], &own].map(|text| text.lines().next().unwrap()).to_vec();
    let mut different = all.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 4, "{all:?}");
    assert!(forks[0] != forks[1] && forks[0].lines().count() == 2, "{forks:?}");
    system.ok(&["rm", "--all"]);
    system.stop();
}

/// Runs its arguments at a terminal of 33 lines, which becomes one of 50 once its size was told.
const AT_A_TERMINAL: &str = r"
import fcntl, os, pty, select, struct, sys, termios, time
master, slave = pty.openpty()
def size(rows, cols):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', rows, cols, 0, 0))
size(33, 101)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    os.execv(sys.argv[1], sys.argv[1:])
os.close(slave)
end, said = time.monotonic() + 60, b''
def told(text):
    global said
    while text not in said:
        assert time.monotonic() < end, said
        os.write(master, b'stty size\n')
        pause = time.monotonic() + 0.5
        while text not in said and (left := pause - time.monotonic()) > 0:
            if select.select([master], [], [], left)[0]:
                said += os.read(master, 65536)
told(b'33 101')
size(50, 132)
told(b'50 132')
os.write(master, b'exit 7\n')
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[test]
fn a_shell_is_as_large_as_its_terminal_and_grows_with_it() {
    let system = System::start();
    let id = system.ok(&["create"]);
    let shell = system.command(&["shell", &id]);
    let mut python = Command::new("python3");
    python.args(["-c", AT_A_TERMINAL]).arg(shell.get_program()).args(shell.get_args());
    python.envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ran::of(python, b"").expect(7);
    system.ok(&["rm", &id]);
    system.stop();
}

#[test]
fn what_is_done_is_told_to_programs_in_json() {
    let system = System::start();
    let id = system.json(&["create"])["id"].as_str().unwrap().to_owned();
    let here = system.dir().join("here");
    fs::write(&here, "five!").unwrap();
    assert_eq!(system.json(&["cp", here.to_str().unwrap(), &format!("{id}:there")])["bytes"], 5);
    let exec = system.json(&["exec", "-d", "-s", &id, "--", "cat", "there"])["id"].as_str().unwrap().to_owned();
    let logs = system.json(&["logs", "-f", &exec]);
    assert_eq!((logs["stdout"].as_str(), logs["exit"]["code"].as_i64()), (Some("five!"), Some(0)), "{logs}");
    assert_eq!((&logs["id"], &logs["place"]["id"]), (&exec.as_str().into(), &id.as_str().into()), "{logs}");
    let shell = Ran::of(system.command(&["--json", "shell", &id]), b"echo a $((2 + 3)); exit 4\n");
    assert_eq!(shell.code, 4, "{shell:?}");
    let shell: serde_json::Value = serde_json::from_slice(&shell.stdout).unwrap();
    assert!(shell["stdout"].as_str().unwrap().contains("a 5"), "{shell}");
    let snapshot = system.json(&["snapshot", &id]);
    assert!(snapshot["id"].as_str().unwrap().starts_with("snp_"), "{snapshot}");
    assert_eq!(system.json(&["rm", &id])["removed"][0], id.as_str());

    let token = system.json(&["machine", "token"])["token"].as_str().unwrap().to_owned();
    let home = system.dir().join("owner");
    fs::create_dir_all(home.join("work")).unwrap();
    let mut join = ringfence(&home)
        .args(["--json", "join", &system.url, "--token", &token, "--workspace"])
        .arg(home.join("work"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(join.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&told["event"], &told["resumed"]), (&"connected".into(), &false.into()), "{told}");
    signal(join.id(), "TERM");
    assert!(join.wait().unwrap().success());
    system.stop();
}
