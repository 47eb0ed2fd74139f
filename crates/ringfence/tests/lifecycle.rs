//! The life of a sandbox by the whole system: paused, resumed, saved, begun from what was saved, forked.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};
use support::{Ran, System, eventually, signal};

/// A call of the public interface with a key; the status and the answer.
fn call(system: &System, key: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    call_by(system, &format!("authorization: Bearer {key}"), method, path, body)
}

/// As [`call`], with the header that has the key.
fn call_by(system: &System, credential: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let address = system.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n{credential}\r\n");
    write!(stream, "{head}connection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split_whitespace().nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn admin(system: &System) -> String {
    fs::read_to_string(system.state().join("first-key")).unwrap().trim().to_owned()
}

/// CPU time that a sandbox has used, microseconds.
fn cpu_us(system: &System, id: &str) -> u64 {
    let (status, answer) = call(system, &admin(system), "GET", &format!("/v1/sandboxes/{id}"), &Value::Null);
    assert_eq!(status, 200, "{answer}");
    answer["usage"]["cpu_us"].as_u64().unwrap()
}

fn state(system: &System, id: &str) -> Value {
    let (status, answer) = call(system, &admin(system), "GET", &format!("/v1/sandboxes/{id}"), &Value::Null);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Whether the server answers again after it was killed.
fn is_back(system: &System) -> bool {
    let live = TcpStream::connect(system.url.trim_start_matches("http://")).is_ok();
    live && call(system, &admin(system), "GET", "/v1/health/ready", &Value::Null).0 == 200
}

fn kill_server(system: &System) {
    let pid = system.child("server");
    signal(pid, "KILL");
    eventually("another server is ready", || {
        let other = std::panic::catch_unwind(|| system.child("server")).is_ok_and(|new| new != pid);
        other && is_back(system)
    });
}

#[test]
fn a_paused_sandbox_uses_no_cpu_and_goes_on_where_it_was() {
    let system = System::start();
    let id = system.ok(&["create", "--lease", "10m"]);
    let spin = "n=0; while :; do n=$((n+1)); [ $((n % 20000)) = 0 ] && echo $n > count; done";
    let exec = system.ok(&["exec", "-d", "-s", &id, "--sh", spin]);
    let count = || system.run(&["exec", "-s", &id, "--sh", "cat count"]).text().trim().parse::<u64>().unwrap_or(0);
    eventually("it runs", || count() > 0);
    let pid = || system.ok(&["exec", "-s", &id, "--sh", "pgrep -f 'n % 20000' | head -n 1"]);
    let before = pid();

    let paused = system.json(&["pause", &id]);
    assert_eq!((&paused[0]["state"], &paused[0]["pause_kind"]), (&json!("paused"), &json!("memory")));
    assert_eq!(paused[0]["lease_until"], Value::Null);
    // A process is frozen, and says so, some steps before it leaves its processor (kernel/cgroup/freezer.c).
    std::thread::sleep(Duration::from_millis(100));
    let used = cpu_us(&system, &id);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(cpu_us(&system, &id), used, "nothing of it runs");
    let refused = system.run(&["--json", "exec", "-s", &id, "--", "true"]);
    refused.expect(125);
    assert!(refused.stderr.contains("\"paused\""), "{}", refused.stderr);
    let again = system.run(&["--json", "pause", &id]);
    again.expect(1);
    assert!(again.stderr.contains("\"conflict\""), "{}", again.stderr);

    // Over the death of the server, while it is paused and afterwards.
    kill_server(&system);
    assert_eq!(state(&system, &id)["state"], "paused");
    assert_eq!(cpu_us(&system, &id), used);

    let resumed = system.json(&["resume", &id, "--lease", "5m"]);
    assert_eq!(resumed[0]["state"], "running");
    let lease = resumed[0]["lease_until"].as_u64().unwrap() - resumed[0]["started_at"].as_u64().unwrap();
    assert!((290_000..=310_000).contains(&lease), "{lease}");
    let at = count();
    eventually("it counts on", || count() > at);
    assert_eq!(pid(), before, "the same process");
    let listed = system.json(&["ps", &id]);
    let listed = listed.as_array().unwrap().iter().find(|e| e["id"] == exec.as_str()).unwrap().clone();
    assert_eq!(listed["state"], "running");
    system.ok(&["pause", &id]);
    system.ok(&["rm", &id]);
    assert_eq!(system.json(&["ps"])["sandboxes"], json!([]));
    system.stop();
}

#[test]
fn the_end_of_a_lease_pauses_what_said_so_and_a_call_wakes_it() {
    let system = System::start();
    let pause = ["create", "--lease", "1500ms", "--on-lease-end", "pause"];
    let waking = system.ok(&[&pause[..], &["--auto-resume"]].concat());
    let sleeping = system.ok(&pause);
    let stored = system.ok(&[&pause[..], &["--auto-pause", "files"]].concat());
    for id in [&waking, &sleeping, &stored] {
        system.ok(&["exec", "-s", id, "--sh", "echo kept > file; echo gone > /dev/shm/file"]);
    }
    for (id, kind) in [(&waking, "memory"), (&sleeping, "memory"), (&stored, "files")] {
        eventually("it is paused", || state(&system, id)["pause_kind"] == kind);
    }
    assert_eq!(system.ok(&["exec", "-s", &waking, "--sh", "cat file /dev/shm/file"]), "kept\ngone");
    assert_eq!(state(&system, &waking)["state"], "running");
    system.run(&["exec", "-s", &sleeping, "--", "true"]).expect(125);
    // Also the files of one of which nothing else was kept; what was in memory is gone.
    system.ok(&["resume", &stored, "--lease", "5m"]);
    assert_eq!(system.ok(&["exec", "-s", &stored, "--sh", "cat file; ls /dev/shm"]), "kept");
    let audit = system.ok(&["audit", "--help"]);
    assert!(!audit.is_empty());
    let (_, records) = call(&system, &admin(&system), "GET", "/v1/audit?order=oldest&limit=1000", &Value::Null);
    let noted = |action: &str, why: &str, id: &str| {
        let is =
            |record: &&Value| record["action"] == action && record["details"]["why"] == why && record["subject"] == id;
        records["items"].as_array().unwrap().iter().filter(is).count()
    };
    assert_eq!(noted("sandbox_pause", "its lease ended", &sleeping), 1);
    assert_eq!(noted("sandbox_resume", "a call came for it", &waking), 1);
    system.stop();
}

#[test]
fn a_snapshot_is_one_users_and_others_begin_with_it() {
    let system = System::start();
    let key = |user: &str| system.json(&["user", "add", user])["key"].as_str().unwrap().to_owned();
    let (ann, ben) = (key("ann"), key("ben"));
    let run = |key: &str, args: &[&str]| -> Ran { system.run(&[&["--json", "--key", key], args].concat()) };
    let json = |key: &str, args: &[&str]| -> Value { serde_json::from_str(&run(key, args).expect(0)).unwrap() };
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();

    let secret = "hush-4711";
    let parent = json(&ann, &["create", "--lease", "10m", "--env", &format!("TOKEN={secret}"), "--label", "team=a"]);
    let parent = id(&parent);
    let text = |key: &str, sandbox: &str, line: &str| {
        system.run(&["--key", key, "exec", "-s", sandbox, "--sh", line]).expect(0)
    };
    assert_eq!(text(&ann, &parent, "echo $TOKEN"), secret);
    let own = system.run(&["--key", &ann, "exec", "-s", &parent, "-e", "TOKEN=mine", "--sh", "echo $TOKEN"]);
    assert_eq!(own.expect(0), "mine", "an exec's own comes first");
    text(&ann, &parent, "echo one > file; mkdir -p d && head -c 1000000 /dev/urandom > d/big; sync");
    let first = json(&ann, &["snapshot", &parent, "--name", "base"]);
    text(&ann, &parent, "echo two > file; echo new > later");

    // By its name; what came after it is not there, and nothing of the environment.
    let child = json(&ann, &["create", "--from", "base", "--lease", "10m"]);
    assert_eq!(child["from_snapshot"], first["id"]);
    let child = id(&child);
    assert_eq!(
        text(&ann, &child, "cat file; ls later 2>/dev/null; echo \"[$TOKEN]\"; wc -c < d/big"),
        "one\n[]\n1000000"
    );
    text(&ann, &child, "echo child > file");

    // A name that a sandbox and a snapshot have is not guessed at.
    let twin = id(&json(&ann, &["create", "--lease", "10m", "--name", "base"]));
    let refused = run(&ann, &["rm", "base"]);
    let both = [twin.as_str(), first["id"].as_str().unwrap()];
    assert!(refused.code == 1 && both.iter().all(|id| refused.stderr.contains(id)), "{refused:?}");
    assert_eq!(run(&ann, &["rm", &twin]).code, 0);
    assert_eq!(text(&ann, &parent, "cat file"), "two");

    // Nobody else's.
    for refused in [
        run(&ben, &["create", "--from", "base"]),
        run(&ben, &["create", "--from", &id(&first)]),
        run(&ben, &["rm", &id(&first)]),
        run(&ben, &["snapshot", &parent]),
        run(&ben, &["fork", &parent]),
        run(&ben, &["pause", &parent]),
        run(&ben, &["resume", &parent]),
    ] {
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("\"not_found\""), "{}", refused.stderr);
    }
    assert_eq!(json(&ben, &["snapshots"]), json!([]));
    // Control: a snapshot of his own under the same name is another one.
    let bens = id(&json(&ben, &["create"]));
    json(&ben, &["snapshot", &bens, "--name", "base"]);
    assert_eq!(json(&ben, &["snapshots"]).as_array().unwrap().len(), 1);

    // The quota is named, and what is deleted counts no more; sandboxes made from it go on.
    system.ok(&["user", "limits", "ann", "--snapshots", "1"]);
    let refused = run(&ann, &["snapshot", &parent]);
    assert!(refused.stderr.contains("`snapshots`") && refused.stderr.contains("limit_reached"), "{}", refused.stderr);
    run(&ann, &["rm", &id(&first)]).expect(0);
    assert_eq!(text(&ann, &child, "cat file"), "child");
    run(&ann, &["create", "--from", "base"]).expect(1);
    let second = json(&ann, &["snapshot", &parent]);
    // Over the death of the server.
    kill_server(&system);
    assert_eq!(json(&ann, &["snapshots"])[0]["id"], second["id"]);
    eventually("it is durable", || json(&ann, &["snapshots"])[0]["durable"] == true);
    let grandchild = id(&json(&ann, &["create", "--from", &id(&second)]));
    assert_eq!(text(&ann, &grandchild, "cat file later"), "two\nnew");
    system.ok(&["user", "limits", "ann", "--snapshot-bytes", "10"]);
    run(&ann, &["rm", &id(&second)]).expect(0);
    let refused = run(&ann, &["snapshot", &parent]);
    assert!(refused.stderr.contains("`snapshot_bytes`"), "{}", refused.stderr);

    // The list is by labels; values of the environment are in no answer, no record and no log.
    let (_, found) = call(&system, &ann, "GET", "/v1/sandboxes?labels=%7B%22team%22%3A%22a%22%7D", &Value::Null);
    assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!((&found["items"][0]["id"], &found["items"][0]["env_names"]), (&json!(parent), &json!(["TOKEN"])));
    assert!(!found.to_string().contains(secret));
    assert!(!system.log().contains(secret));
    for segment in fs::read_dir(system.state().join("server/ledger")).unwrap() {
        let bytes = fs::read(segment.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }

    // With the user goes what is theirs.
    system.ok(&["user", "rm", "ben"]);
    assert_eq!(run(&ben, &["snapshots"]).code, 1);
    system.stop();
}

#[test]
fn forks_begin_with_the_files_and_with_nothing_else() {
    let system = System::start();
    system.ok(&["user", "limits", "admin", "--sandboxes", "4"]);
    let parent = system.ok(&["create", "--lease", "10m", "--env", "TOKEN=hush", "--label", "team=a"]);
    system.ok(&["exec", "-s", &parent, "--sh", "echo shared > file"]);
    system.ok(&["exec", "-d", "-s", &parent, "--sh", "sleep 1000"]);
    let forks = system.json(&["fork", &parent, "--count", "3", "--env", "OWN=x"]);
    let ids: BTreeSet<String> = forks
        .as_array()
        .unwrap()
        .iter()
        .map(|fork| fork["sandbox"]["id"].as_str().unwrap_or_else(|| panic!("{fork}")).to_owned())
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(!ids.contains(&parent));
    let mut seeds = BTreeSet::new();
    for id in &ids {
        let line = "cat file; echo \"[$TOKEN] $OWN\"; pgrep -c sleep; echo own > file";
        assert_eq!(system.ok(&["exec", "-s", id, "--sh", line]), "shared\n[] x\n0");
        seeds.insert(system.ok(&["exec", "-s", id, "--sh", "head -c 16 /dev/urandom | od -An -tx1"]));
        assert_eq!(state(&system, id)["labels"], json!({"team": "a"}));
    }
    assert_eq!(seeds.len(), 3, "each has randomness of its own");
    assert_eq!(system.ok(&["exec", "-s", &parent, "--sh", "cat file; pgrep -c sleep"]), "shared\n1");
    // Its quota is judged for each: one is made, one is refused by name.
    system.ok(&["rm", ids.first().unwrap()]);
    let (status, answer) =
        call(&system, &admin(&system), "POST", &format!("/v1/sandboxes/{parent}/fork"), &json!({"count": 2}));
    assert_eq!(status, 201, "{answer}");
    let forks = answer["forks"].as_array().unwrap();
    let made = forks.iter().filter(|fork| fork["sandbox"]["id"].is_string()).count();
    let refused = forks.iter().filter(|fork| fork["error"]["code"] == "limit_reached").count();
    assert_eq!((made, refused), (1, 1), "{answer}");
    for count in [0, 21] {
        let body = json!({ "count": count });
        let answer = call(&system, &admin(&system), "POST", &format!("/v1/sandboxes/{parent}/fork"), &body);
        assert_eq!((answer.0, &answer.1["code"]), (400, &json!("invalid_request")));
    }
    // A fork leaves no snapshot behind, in no list and not with the warden.
    assert_eq!(system.json(&["snapshots"]), json!([]));
    system.ok(&["rm", "--all"]);
    system.stop();
}

#[test]
fn with_its_files_alone_a_sandbox_outlives_the_warden() {
    let system = System::start();
    let id = system.ok(&["create", "--lease", "10m"]);
    let frozen = system.ok(&["create", "--lease", "10m"]);
    system.ok(&["exec", "-s", &id, "--sh", "echo kept > file; head -c 3000000 /dev/zero > zeros"]);
    let paused = system.json(&["pause", &id, "--keep", "files"]);
    assert_eq!((&paused[0]["state"], &paused[0]["pause_kind"]), (&json!("paused"), &json!("files")));
    system.ok(&["pause", &frozen]);
    // What it takes while it is paused is its disk.
    let (_, me) = call(&system, &admin(&system), "GET", "/v1/me", &Value::Null);
    let half = state(&system, &frozen)["spec"]["limits"]["memory_bytes_max"].as_u64().unwrap();
    assert_eq!(me["usage"]["memory_bytes"].as_u64(), Some(half), "{me}");
    // Long enough for its layer to be on the disk; the test of snapshots sees when it is.
    let layers = system.state().join("warden");
    eventually("its files are on the disk", || {
        fn holds(dir: &std::path::Path) -> bool {
            fs::read_dir(dir).is_ok_and(|entries| {
                entries.flatten().any(|entry| {
                    let path = entry.path();
                    let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                    (path.ends_with("zeros") && fs::metadata(&path).is_ok_and(|file| file.len() == 3_000_000))
                        || (is_dir && holds(&path))
                })
            })
        }
        holds(&layers)
    });
    std::thread::sleep(Duration::from_secs(2));
    let warden = system.child("warden");
    signal(warden, "KILL");
    eventually("there is another warden", || {
        std::panic::catch_unwind(|| system.child("warden")).is_ok_and(|new| new != warden) && is_back(&system)
    });
    eventually("the frozen one is gone", || system.json(&["ps"])["sandboxes"].as_array().unwrap().len() == 1);
    let resumed = system.json(&["resume", &id]);
    assert_eq!((&resumed[0]["id"], &resumed[0]["state"]), (&json!(id), &json!("running")));
    assert_eq!(system.ok(&["exec", "-s", &id, "--sh", "cat file; wc -c < zeros"]), "kept\n3000000");
    // And once more, cold from memory.
    system.ok(&["exec", "-d", "-s", &id, "--sh", "sleep 1000"]);
    system.ok(&["pause", &id]);
    system.ok(&["resume", &id, "--cold"]);
    assert_eq!(system.ok(&["exec", "-s", &id, "--sh", "cat file; pgrep -c sleep || true"]), "kept\n0");
    system.stop();
}

#[test]
fn what_is_idle_is_paused() {
    let system = System::start();
    let id = system.ok(&["create", "--lease", "10m", "--idle-pause", "1s", "--auto-resume"]);
    let exec = system.ok(&["exec", "-d", "-s", &id, "--", "sleep", "3"]);
    eventually("its command has ended", || system.json(&["ps", &id])[0]["state"] == "exited");
    eventually("it is paused", || state(&system, &id)["state"] == "paused");
    assert_eq!(system.run(&["logs", "-f", &exec]).code, 0);
    assert_eq!(system.ok(&["exec", "-s", &id, "--", "echo", "awake"]), "awake");
    system.stop();
}

/// Whoever connects while a sandbox is being paused, or resumed, gets it resumed.
#[test]
fn connecting_waits_for_a_pause_to_end() {
    let system = System::start();
    let body = json!({"name": "client", "e2b": true});
    let (status, made) = call(&system, &admin(&system), "POST", "/v1/users/admin/keys", &body);
    assert_eq!(status, 201, "{made}");
    let key = format!("x-api-key: {}", made["key"].as_str().unwrap());
    let client = |path: &str, body: &Value| call_by(&system, &key, "POST", path, body);
    let (status, made) = client("/sandboxes", &json!({"templateID": "base", "timeout": 600}));
    assert_eq!(status, 201, "{made}");
    let id = made["sandboxID"].as_str().unwrap().to_owned();
    let mut resumed = 0;
    for round in 0_u64..24 {
        let (paused, connected) = std::thread::scope(|scope| {
            let pause = scope.spawn(|| client(&format!("/sandboxes/{id}/pause"), &json!({"memory": round % 2 == 0})));
            // Each time at another instant of the pause.
            std::thread::sleep(Duration::from_micros(250 * round));
            let connected = client(&format!("/v2/sandboxes/{id}/connect"), &json!({}));
            (pause.join().unwrap(), connected)
        });
        // It may have been resumed before its files were saved.
        assert!(matches!(paused.0, 204 | 409), "{paused:?}");
        assert!(matches!(connected.0, 200 | 201), "round {round}: {connected:?}");
        resumed += u32::from(connected.0 == 201);
        let (status, answer) = client(&format!("/v2/sandboxes/{id}/connect"), &json!({}));
        assert!(matches!(status, 200 | 201), "round {round}: {answer}");
    }
    assert!(resumed > 0, "no connection came after its pause had begun");
    system.stop();
}

#[test]
fn a_one_shot_that_asks_for_nothing_has_256_mib_and_one_cpu_and_is_held_to_its_time() {
    let system = System::start();
    let key = admin(&system);
    // It lives as long as its command, and is listed meanwhile with what the kernel says of it.
    let ask = json!({ "exec": { "shell": "sleep 1000" } });
    let running = std::thread::scope(|scope| {
        let mut listed = Value::Null;
        let find = |listed: &mut Value| {
            *listed = call(&system, &key, "GET", "/v1/execs", &Value::Null).1["items"][0].clone();
            listed["pid"].as_u64().is_some_and(|pid| pid > 0)
        };
        let ran = scope.spawn(|| call(&system, &key, "POST", "/v1/run", &ask));
        eventually("its command is listed", || find(&mut listed) && listed["state"] == "running");
        let sandbox = call(&system, &key, "GET", "/v1/sandboxes", &Value::Null).1["items"][0].clone();
        let path = format!("/v1/execs/{}/signal", listed["id"].as_str().unwrap());
        assert_eq!(call(&system, &key, "POST", &path, &json!({ "signal": 9, "scope": "tree" })).0, 204);
        let (status, answer) = ran.join().unwrap();
        assert_eq!((status, &answer["signal"], &answer["timed_out"]), (200, &json!(9), &json!(false)), "{answer}");
        sandbox
    });
    let limits = &running["spec"]["limits"];
    assert_eq!((&limits["memory_bytes_max"], &limits["cpu_milli_max"]), (&json!(256 << 20), &json!(1_000)));
    // The command's 30 s and a minute to be destroyed in.
    assert_eq!((&running["spec"]["lease_ms"], &running["spec"]["network"]), (&json!(90_000), &json!("none")));
    let evidence = |layer: &str| {
        let layers = running["enforcement"]["layers"].as_array().unwrap();
        layers.iter().find(|report| report["layer"] == layer).unwrap()["evidence"].as_str().unwrap().to_owned()
    };
    // Version 1 of control groups or version 2: what is in the file of the limit.
    assert!(evidence("memory").contains(" = 268435456"), "{}", evidence("memory"));
    assert!(evidence("cpu").contains(" = 100000"), "{}", evidence("cpu"));

    let began = std::time::Instant::now();
    let ask = json!({ "exec": { "argv": ["sleep", "1000"], "timeout_ms": 300 } });
    let (status, answer) = call(&system, &key, "POST", "/v1/run", &ask);
    assert_eq!((status, &answer["signal"], &answer["timed_out"]), (200, &json!(9), &json!(true)), "{answer}");
    assert!((300..10_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    eventually("no sandbox is left", || {
        call(&system, &key, "GET", "/v1/sandboxes", &Value::Null).1["items"].as_array().is_some_and(Vec::is_empty)
    });
    system.stop();
}

/// As with `ssh -tt`: who types no more has typed the end.
#[test]
fn standard_input_that_ends_ends_on_a_terminal_too() {
    let system = System::start();
    let id = system.ok(&["create"]);
    let fed = |args: &[&str], input: &str| Ran::of(system.command(args), input.as_bytes());
    for (input, code) in [("", 0), ("exit 3\n", 3), ("false\n", 1), ("sleep 0.3\nexit 4\n", 4), ("exit 5", 5)] {
        let ran = fed(&["shell", &id], input);
        assert_eq!(ran.code, code, "{input:?}: {ran:?}");
    }
    let cat = ["exec", "-t", "-s", &id, "--", "cat"];
    // The terminal echoes what is typed, and ends lines as terminals do.
    for (input, said) in [("", ""), ("one\ntwo\n", "one\r\ntwo\r\n"), ("one\ncut", "one\r\ncut")] {
        let ran = fed(&cat, input);
        let text = String::from_utf8(ran.stdout.clone()).unwrap();
        let said = said.len();
        assert_eq!((ran.code, text.len()), (0, 2 * said), "{input:?}: {ran:?}");
    }
    // What has ended stays so, for the next that reads.
    let twice = fed(&["exec", "-t", "-s", &id, "--sh", "cat; cat; read x || exit 9"], "");
    assert_eq!(twice.code, 9, "{twice:?}");
    // Without a stream as well, in the foreground and in the background.
    let path = format!("/v1/sandboxes/{id}/exec");
    let ask = |background: bool| {
        let pty = json!({ "rows": 24, "cols": 80 });
        let body = json!({ "argv": ["cat"], "pty": pty, "stdin": "line\n", "background": background });
        call(&system, &admin(&system), "POST", &path, &body).1
    };
    let answer = ask(false);
    assert_eq!((&answer["code"], &answer["stdout"]), (&0.into(), &"line\r\nline\r\n".into()), "{answer}");
    let exec = ask(true)["id"].as_str().unwrap().to_owned();
    let wait = format!("/v1/execs/{exec}/wait");
    let ended = call(&system, &admin(&system), "GET", &wait, &Value::Null).1;
    assert_eq!(ended["code"], 0, "{ended}");
    system.stop();
}
