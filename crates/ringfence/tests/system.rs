//! The whole system by its own binary: what people type, what comes back, and what is left afterwards.

mod support;

use std::fs;

use serde_json::Value;
use support::{Ran, System, eventually, golden, processes, signal};

#[test]
fn a_command_runs_in_a_sandbox_of_its_own_and_its_end_becomes_ours() {
    let system = System::start();
    assert_eq!(system.ok(&["run", "--", "echo", "hello"]), "hello");
    assert_eq!(system.run(&["run", "--sh", "exit 7"]).code, 7);
    assert_eq!(system.run(&["run", "--sh", "kill -9 $$"]).code, 137);
    assert_eq!(system.run(&["run", "--sh", "kill -15 $$"]).code, 143);

    let ran = system.run(&["run", "--sh", r"printf 'out\377'; printf 'err' >&2"]);
    assert_eq!((ran.code, ran.stdout.as_slice(), ran.stderr.as_str()), (0, &b"out\xff"[..], "err"));

    let ran = system.run(&["run", "--timeout", "300ms", "--", "sleep", "60"]);
    assert_eq!(ran.code, 137);
    assert!(ran.stderr.contains("its time was up"), "{}", ran.stderr);

    let ran = system.run(&["run", "--", "/no/such/program"]);
    ran.expect(125);
    golden("no-such-program.txt", &ran.stderr, &[]);

    let told = system.json(&["run", "--root", "--", "id", "-u"]);
    assert_eq!((told["stdout"].as_str(), told["exit"]["code"].as_i64()), (Some("0\n"), Some(0)));

    let fed = Ran::of(system.command(&["run", "-i", "--", "wc", "-c"]), &[255; 1_000_000]);
    assert_eq!(fed.expect(0), "1000000");
    let fed = Ran::of(system.command(&["run", "-i", "--", "wc", "-c"]), &[0; (4 << 20) + 1]);
    fed.expect(125);
    assert!(fed.stderr.contains("exec -i"), "{}", fed.stderr);

    // What a server says to who writes requests is said here to who types.
    for (args, said, hint) in [
        (
            &["run", "--memory", "1K", "--", "true"][..],
            "but must be 16777216 to 1099511627776 (16 MiB to 1 TiB)",
            "see the command's --help",
        ),
        (&["create", "--lease", "100d"], "(1 s to 30 d)", "see the command's --help"),
        (&["create", "--name", "a:b"], "a sandbox's name has no `:`", "see the command's --help"),
        (&["create", "--name", "sbx_1"], "does not begin with", "see the command's --help"),
        (&["--key", "rf_0", "ps"], "no valid credential", "check the key: --key, RINGFENCE_KEY"),
        (&["template", "show", "nope"], "no such template", "`ringfence template list` lists them"),
        (&["template", "import", "x", "docker.io/library/debian:12"], "there is no file or directory", "with --image"),
    ] {
        let ran = system.run(args);
        assert!(ran.code == 1 || (args[0] == "run" && ran.code == 125), "{ran:?}");
        let (told, told_hint) = ran.stderr.split_once("\n hint: ").unwrap_or_else(|| panic!("{ran:?}"));
        assert!(told.contains(said) && told_hint.contains(hint), "{ran:?}");
    }
    let tls = system.url.replace("http://", "https://");
    let ran = system.run(&["--url", &tls, "--key", "rf_0", "ps"]);
    assert!(ran.stderr.contains("hint: it speaks no TLS: name it with http://"), "{ran:?}");

    // A one-shot leaves no sandbox.
    eventually("no sandbox is left", || system.json(&["ps"])["sandboxes"].as_array().unwrap().is_empty());
    system.stop();
}

#[test]
fn a_sandbox_lives_until_it_is_removed() {
    let system = System::start();
    // A proxy that the environment names is none for this computer; nobody listens on port 9 here.
    let mut direct = system.command(&["ps"]);
    direct.env("HTTP_PROXY", "http://127.0.0.1:9").env("http_proxy", "http://127.0.0.1:9");
    Ran::of(direct, b"").expect(0);
    let id = system.ok(&["create", "--memory", "64M", "--cpu", "0.5", "--lease", "10m", "--name", "mine"]);
    let listed = system.json(&["ps"]);
    assert_eq!(listed["sandboxes"][0]["id"], id.as_str());
    assert_eq!(listed["sandboxes"][0]["spec"]["limits"]["memory_bytes_max"], 64 << 20);
    for layer in listed["sandboxes"][0]["enforcement"]["layers"].as_array().unwrap() {
        assert_ne!(layer["held"], "absent", "{layer}");
    }

    system.ok(&["exec", "-s", &id, "--sh", "echo kept > file"]);
    // One that ends while we still send: its end is told, and not that the connection was reset by it.
    for _ in 0..20 {
        let ended =
            Ran::of(system.command(&["exec", "-s", &id, "-i", "--sh", "head -c 4; exit 3"]), &vec![b'y'; 8 << 20]);
        assert_eq!((ended.code, ended.text().as_str()), (3, "yyyy"), "{}", ended.stderr);
    }
    assert_eq!(system.ok(&["exec", "-s", &id, "-e", "WORD=a b", "--sh", "cat file; echo $WORD"]), "kept\na b");
    let fed = Ran::of(system.command(&["exec", "-i", "-s", &id, "--", "cat"]), &[7; 3_000_000]);
    assert_eq!((fed.code, fed.stdout.len()), (0, 3_000_000), "{}", fed.stderr);
    let terminal = Ran::of(system.command(&["exec", "-t", "-s", &id, "--", "tty"]), b"");
    assert!(terminal.expect(0).starts_with("/dev/pts/"), "{terminal:?}");

    // A shell is told to end when we are, takes no notice, and is killed when we have gone.
    let mut stubborn = system.command(&["shell", &id]);
    let mut stubborn =
        stubborn.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let bash = |execs: Value| {
        let is = |exec: &&Value| exec["argv"][0] == "/bin/bash" && exec["state"] == "running";
        execs.as_array().unwrap().iter().filter(is).count()
    };
    // Kept open: a shell whose input has ended ends by itself, and waiting for a child closes it.
    let input = stubborn.stdin.take();
    eventually("the shell runs", || bash(system.json(&["ps", &id])) == 1);
    signal(stubborn.id(), "TERM");
    assert_eq!(stubborn.wait().unwrap().code(), Some(143));
    drop(input);
    eventually("the shell is gone", || bash(system.json(&["ps", &id])) == 0);

    let exec = system.ok(&["exec", "-d", "-s", &id, "--sh", "echo first; sleep 0.2; echo last; exit 5"]);
    assert_eq!(system.run(&["logs", "-f", &exec]).expect(5), "first\nlast");
    assert_eq!(system.ok(&["logs", &exec]), "first\nlast");
    let execs = system.json(&["ps", &id]);
    let listed = execs.as_array().unwrap().iter().find(|e| e["id"] == exec.as_str()).unwrap();
    assert_eq!((listed["state"].as_str(), listed["code"].as_i64()), (Some("exited"), Some(5)));

    // Its name does what its id does.
    assert!(system.ok(&["ps"]).lines().any(|line| line.contains(&id) && line.contains(" mine ")));
    assert_eq!(system.ok(&["exec", "-s", "mine", "--", "cat", "file"]), "kept");
    assert_eq!(system.json(&["ps", "mine"]), system.json(&["ps", &id]));
    let copy = system.dir().join("copy");
    system.ok(&["cp", "mine:file", copy.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&copy).unwrap(), "kept\n");
    // A file here that is written the same way is not guessed at.
    fs::write(system.dir().join("mine:x"), "here").unwrap();
    let mut guess = system.command(&["cp", "mine:x", ":x"]);
    guess.current_dir(system.dir());
    let refused = Ran::of(guess, b"");
    refused.expect(1);
    assert!(refused.stderr.contains("`mine:x` is a file here"), "{}", refused.stderr);
    let mut written = system.command(&["cp", "./mine:x", "mine:x"]);
    written.current_dir(system.dir().parent().unwrap());
    Ran::of(written, b"").expect(1);
    let mut written = system.command(&["cp", "./mine:x", &format!("{id}:x")]);
    written.current_dir(system.dir());
    Ran::of(written, b"").expect(0);
    assert_eq!(system.ok(&["exec", "-s", "mine", "--", "cat", "x"]), "here");
    for unknown in [&["exec", "-s", "yours", "--", "true"][..], &["ps", "yours"], &["rm", "yours"], &["pause", "yours"]]
    {
        let refused = system.run(unknown);
        assert!(refused.code != 0 && refused.stderr.contains("`yours`"), "{unknown:?}: {}", refused.stderr);
    }
    system.ok(&["rm", "mine"]);
    let gone = system.run(&["exec", "-s", &id, "--", "true"]);
    gone.expect(125);
    golden("no-such-sandbox.txt", &gone.stderr, &[]);
    system.stop();
}

#[test]
fn files_and_trees_go_both_ways() {
    let system = System::start();
    let id = system.ok(&["create"]);
    let here = system.dir().join("here");
    fs::create_dir_all(here.join("tree/deep")).unwrap();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n * 7) as u8).collect();
    fs::write(here.join("file"), &bytes).unwrap();
    fs::write(here.join("tree/deep/a"), "in a tree").unwrap();
    std::os::unix::fs::symlink("deep/a", here.join("tree/link")).unwrap();
    let at = |path: &str| here.join(path).to_str().unwrap().to_owned();

    system.ok(&["cp", &at("file"), &format!("{id}:up/file")]);
    system.ok(&["cp", &format!("{id}:up/file"), &at("back")]);
    assert!(fs::read(here.join("back")).unwrap() == bytes);
    system.ok(&["cp", &at("tree"), &format!("{id}:copy")]);
    assert_eq!(system.ok(&["exec", "-s", &id, "--sh", "cat copy/link"]), "in a tree");
    system.ok(&["cp", &format!("{id}:copy"), &at("tree-back")]);
    assert_eq!(fs::read_to_string(here.join("tree-back/link")).unwrap(), "in a tree");

    let missing = system.run(&["cp", &format!("{id}:nope"), &at("nope")]);
    missing.expect(1);
    golden("no-such-file.txt", &missing.stderr, &[]);
    assert!(!here.join("nope").exists());
    // By standard input and output.
    let mut to = system.command(&["cp", "-", &format!("{id}:piped")]);
    to.current_dir(&here);
    Ran::of(to, &bytes).expect(0);
    let mut from = system.command(&["cp", &format!("{id}:piped"), "-"]);
    from.current_dir(&here);
    assert!(Ran::of(from, b"").stdout == bytes && !here.join("-").exists());
    system.run(&["cp", &format!("{id}:copy"), "-"]).expect(1);
    // Who has read enough, as `head` does, is told nothing.
    for args in [&["exec", "-s", &id, "--", "yes"][..], &["cp", &format!("{id}:piped"), "-"]] {
        let mut child = system.command(args);
        let mut child =
            child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(141), &b""[..]), "{args:?} {ended:?}");
    }
    // One that is ended in the middle leaves nothing behind.
    system.ok(&["exec", "-s", &id, "--", "truncate", "-s", "2G", "long"]);
    let parts = || {
        let names = fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".part")).count()
    };
    let mut copying = system.command(&["cp", &format!("{id}:long"), &at("long")]).spawn().unwrap();
    eventually("the download has begun", || parts() == 1);
    signal(copying.id(), "INT");
    assert_eq!(copying.wait().unwrap().code(), Some(130));
    assert!(parts() == 0 && !here.join("long").exists());
    system.stop();
}

#[test]
fn users_have_keys_of_their_own_and_never_meet() {
    let system = System::start();
    let ann = system.json(&["user", "add", "ann"])["key"].as_str().unwrap().to_owned();
    let ben = system.json(&["user", "add", "ben"])["key"].as_str().unwrap().to_owned();
    let as_user = |key: &str, args: &[&str]| {
        let mut command = system.command(args);
        command.env("RINGFENCE_KEY", key).env("RINGFENCE_URL", &system.url);
        Ran::of(command, b"")
    };
    let id = as_user(&ann, &["create"]).expect(0);
    assert_eq!(as_user(&ann, &["exec", "-s", &id, "--", "echo", "mine"]).expect(0), "mine");
    let theirs = as_user(&ben, &["exec", "-s", &id, "--", "echo", "theirs"]);
    let nobodys = as_user(&ben, &["exec", "-s", "sbx_00000000000000000000000000000000", "--", "true"]);
    assert_eq!((theirs.code, nobodys.code), (125, 125));
    let without_request = |text: &str| text.lines().filter(|line| !line.contains("id:")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_request(&theirs.stderr), without_request(&nobodys.stderr));
    as_user(&ben, &["rm", &id]).expect(1);
    assert_eq!(as_user(&ann, &["exec", "-s", &id, "--", "echo", "still"]).expect(0), "still");

    // A user is no operator, and a revoked key is nobody's.
    let refused = as_user(&ann, &["user", "list"]);
    refused.expect(1);
    golden("not-an-operator.txt", &refused.stderr, &[]);
    let second = as_user(&ann, &["--json", "key", "add", "--name", "second"]).expect(0);
    let second: Value = serde_json::from_str(&second).unwrap();
    let secret = second["key"].as_str().unwrap();
    as_user(secret, &["ps"]).expect(0);
    as_user(&ann, &["key", "revoke", second["id"].as_str().unwrap()]).expect(0);
    as_user(secret, &["ps"]).expect(1);

    // Limits hold: one sandbox is there already.
    system.ok(&["user", "limits", "ann", "--sandboxes", "1"]);
    let full = as_user(&ann, &["create"]);
    full.expect(1);
    assert!(full.stderr.contains("sandboxes"), "{}", full.stderr);
    as_user(&ann, &["rm", "--all"]).expect(0);
    system.ok(&["user", "rm", "ann"]);
    as_user(&ann, &["ps"]).expect(1);
    system.stop();
}

#[test]
fn the_ledger_has_it_all_and_shows_what_was_changed() {
    let system = System::start();
    system.ok(&["run", "--", "true"]);
    let whole = system.json(&["audit", "verify"]);
    assert!(whole["problem"].is_null() && whole["records"].as_u64().unwrap() > 4, "{whole}");
    let actions: Vec<_> =
        system.json(&["audit", "list"]).as_array().unwrap().iter().map(|r| r["action"].to_string()).collect();
    for action in ["\"exec\"", "\"sandbox_create\"", "\"sandbox_destroy\""] {
        assert!(actions.iter().any(|found| found == action), "{action} of {actions:?}");
    }
    let exported = system.ok(&["audit", "export"]);
    let lines: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() as u64 >= whole["records"].as_u64().unwrap());

    let ledger = system.state().join("server/ledger");
    let copy = system.dir().join("copy");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&ledger).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let copied = copy.to_str().unwrap();
    // The control: an honest copy is whole.
    system.ok(&["audit", "verify", "--ledger", copied]);
    let segment = fs::read_dir(&copy)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("sandbox_create")))
        .unwrap();
    let text = fs::read_to_string(&segment).unwrap();
    fs::write(&segment, text.replacen("sandbox_create", "sandbox_crEate", 1)).unwrap();
    let broken = system.run(&["audit", "verify", "--ledger", copied]);
    assert!(broken.expect(1).starts_with("BROKEN: "), "{broken:?}");
    system.stop();
}

#[test]
fn nobody_parses_strangers_bytes_and_holds_rights() {
    let system = System::start();
    let id = system.ok(&["create"]);
    system.ok(&["exec", "-d", "-s", &id, "--", "sleep", "60"]);
    let audit = system.json(&["doctor", "--audit"]);
    assert_eq!(audit["holds"], true, "{audit:#}");
    let of = |role: &str| -> Vec<Value> {
        audit["processes"].as_array().unwrap().iter().filter(|p| p["role"] == role).cloned().collect()
    };
    assert_eq!((of("supervisor").len(), of("warden").len(), of("server").len()), (1, 1, 1));
    let counter = &of("counter")[0];
    assert_eq!((counter["capabilities"].as_u64(), counter["seccomp"].as_u64()), (Some(1 << 2 | 1 << 19), Some(2)));
    assert!(!of("init").is_empty() && !of("workload").is_empty(), "{audit:#}");
    let server = &of("server")[0];
    assert_eq!((server["capabilities"].as_u64(), server["no_new_privs"].as_bool()), (Some(0), Some(true)));
    assert!(server["listens"].to_string().contains("127.0.0.1"), "{server}");
    for role in ["supervisor", "warden"] {
        assert!(!of(role)[0]["listens"].to_string().contains("tcp"), "{audit:#}");
    }
    system.stop();
}

#[test]
fn a_second_start_on_the_same_state_is_refused() {
    let system = System::start();
    let second = system.run(&["up", "--listen", "127.0.0.1:0"]);
    second.expect(1);
    let pid = system.pid.to_string();
    golden(
        "up-twice.txt",
        &second.stderr,
        &[(system.state().to_str().unwrap(), "STATE"), (&system.url, "URL"), (&pid, "PID")],
    );
    // The first one has not noticed.
    assert_eq!(system.ok(&["run", "--", "echo", "on"]), "on");
    system.stop();
}

#[test]
fn a_killed_server_loses_no_sandbox_and_a_killed_warden_leaves_none() {
    let system = System::start();
    let id = system.ok(&["create"]);
    let mark = "4711.25";
    system.ok(&["exec", "-d", "-s", &id, "--", "sleep", mark]);
    let alive = || processes().iter().filter(|(_, line)| line.trim() == format!("sleep {mark}")).count();
    eventually("the sleeper runs", || alive() == 1);

    let server = system.child("server");
    signal(server, "KILL");
    eventually("the sandbox answers again", || system.run(&["exec", "-s", &id, "--", "true"]).code == 0);
    assert_ne!(system.child("server"), server);
    assert_eq!(alive(), 1, "its process has not noticed");

    let warden = system.child("warden");
    signal(warden, "KILL");
    eventually("nothing of the warden's sandboxes runs", || alive() == 0);
    eventually("sandboxes are made again", || system.run(&["run", "--", "true"]).code == 0);
    assert_ne!(system.child("warden"), warden);
    let gone = system.run(&["exec", "-s", &id, "--", "true"]);
    gone.expect(125);
    system.stop();
}

#[test]
fn the_demonstration_holds() {
    let system = System::start();
    let told = system.json(&["demo"]);
    assert_eq!(told["holds"], true, "{told:#}");
    assert!(told["checks"].as_array().unwrap().len() >= 12, "{told:#}");
    let users = system.json(&["user", "list"]);
    assert!(
        users.as_array().unwrap().iter().all(|user| !user["name"].as_str().unwrap().starts_with("demo-")),
        "{users}"
    );
    system.stop();
}
