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
