//! How it is started: TLS by files, a configuration file, and settings that are refused at once.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
};

use support::{Ran, System, eventually, fresh_dir, golden, ringfence, signal};

/// Starts with these arguments, which must fail by themselves.
fn refused(args: &[&str]) -> Ran {
    let dir = fresh_dir();
    let mut command = ringfence(dir.path());
    command.args(["up", "--pool", "0", "--state"]).arg(dir.path().join("state")).args(args);
    Ran::of(command, b"")
}

#[test]
fn a_public_address_without_tls_is_refused_unless_asked_for_by_name() {
    let ran = refused(&["--listen", "0.0.0.0:0"]);
    ran.expect(1);
    golden("plaintext.txt", &ran.stderr, &[]);
    let system = System::start_with(fresh_dir(), &["--listen", "0.0.0.0:0", "--allow-plaintext"]);
    assert!(system.url.starts_with("http://127.0.0.1:"), "{}", system.url);
    system.ok(&["run", "--", "true"]);
    system.stop();
}

#[test]
fn tls_is_by_certificate_files() {
    let dir = fresh_dir();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = ["--tls-certificate", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
    let ran = refused(&[&["--listen", "127.0.0.1:0"], &files[..]].concat());
    ran.expect(1);
    assert!(ran.stderr.contains("key.pem") && ran.stderr.contains("hint"), "{}", ran.stderr);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let args = [&["--listen", "127.0.0.1:0"], &files[..]].concat();
    let system = System::start_with(dir, &args);
    assert!(system.url.starts_with("https://127.0.0.1:"), "{}", system.url);
    // Nobody vouches for it but who is told to.
    let stranger = system.run(&["run", "--", "true"]);
    stranger.expect(125);
    let certificate = certificate.to_str().unwrap();
    assert_eq!(system.ok(&["--certificate", certificate, "run", "--", "echo", "sealed"]), "sealed");
    let fed = Ran::of(system.command(&["--certificate", certificate, "exec", "-i", "--", "cat"]), b"both ways");
    assert_eq!(fed.expect(0), "both ways");
    system.stop();
}

#[test]
fn a_configuration_file_is_read_whole_or_refused() {
    let dir = fresh_dir();
    let file = dir.path().join("ringfence.toml");
    fs::write(&file, "[door]\nconnections_max = 100\nno_such_key = 1\n").unwrap();
    let ran = refused(&["--listen", "127.0.0.1:0", "--config", file.to_str().unwrap()]);
    ran.expect(1);
    assert!(ran.stderr.contains("no_such_key"), "{}", ran.stderr);
    fs::write(&file, "[door]\nconnections_max = 100\n").unwrap();
    let path = file.to_str().unwrap().to_owned();
    let system = System::start_with(dir, &["--listen", "127.0.0.1:0", "--config", &path]);
    system.ok(&["run", "--", "true"]);
    system.stop();
}

/// A registry that takes one user alone, for as long as the test runs; gives its address.
fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // `ann:right` in base 64.
            let known = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .fold(false, |known, line| known | line.ends_with("Basic YW5uOnJpZ2h0"));
            let status = if known { "200 OK" } else { "401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    address
}

#[test]
fn doctor_reads_a_configuration_and_asks_its_registries() {
    let dir = fresh_dir();
    let (file, password) = (dir.path().join("ringfence.toml"), dir.path().join("password"));
    let doctor = || {
        let mut command = ringfence(dir.path());
        command.args(["doctor", "--config"]).arg(&file).arg("--state").arg(dir.path().join("state"));
        Ran::of(command, b"")
    };
    let (there, gone) = (registry(), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let section = |host: &str| {
        format!("[[registries]]\nhost = '{host}'\nuser = 'ann'\npassword_file = '{}'\n", password.display())
    };
    fs::write(&file, section(&there)).unwrap();

    // A file that cannot be read, and one that is wrong, are told before anything is asked.
    let ran = doctor();
    ran.expect(1);
    assert!(ran.stderr.contains(password.to_str().unwrap()), "{}", ran.stderr);
    fs::write(&password, "right\n").unwrap();
    let ran = doctor();
    let told = ran.expect(0);
    let line = told.lines().find(|line| line.contains(&there)).unwrap();
    assert!(line.contains(" yes ") && line.contains("lets us in, as `ann`"), "{line}");

    fs::write(&password, "wr0ng\n").unwrap();
    fs::write(&file, section(&there) + &section(&gone.to_string())).unwrap();
    let ran = doctor();
    ran.expect(1);
    let told = ran.text();
    let line = |host: &str| told.lines().find(|line| line.contains(host)).unwrap().to_owned();
    assert!(
        line(&there).contains(" NO ") && line(&there).contains("does not take its credentials"),
        "{}",
        line(&there)
    );
    assert!(line(&gone.to_string()).contains("cannot reach"), "{}", line(&gone.to_string()));
    assert!(!told.contains("wr0ng") && !ran.stderr.contains("wr0ng"));
    fs::write(&file, "no_such_key = 1\n").unwrap();
    let ran = doctor();
    ran.expect(1);
    assert!(ran.stderr.contains("no_such_key"), "{}", ran.stderr);
}

#[test]
fn doctor_judges_the_hosts_settings_and_what_is_stored() {
    let dir = fresh_dir();
    let state = dir.path().join("state");
    let doctor = |json: bool| {
        let mut command = ringfence(dir.path());
        command.args(["doctor", "--state"]).arg(&state).args(json.then_some("--json"));
        Ran::of(command, b"")
    };
    let names = ["kernel", "fs.file-max", "oom_score_adj", "net.core.rmem_default", "kernel.modprobe"];
    let ran = doctor(true);
    let found: serde_json::Value = serde_json::from_str(&ran.expect(0)).unwrap();
    let settings = found["settings"].as_array().unwrap();
    assert_eq!(settings.iter().map(|setting| setting["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    for setting in settings {
        // Nobody is told that something is wrong and not what to do.
        let (good, cure) = (setting["available"].as_bool().unwrap(), setting["cure"].as_str().unwrap());
        assert_eq!(good, cure.is_empty(), "{setting}");
    }
    assert_eq!(found["state"]["available"], true);
    let ran = doctor(false);
    let told = ran.expect(0);
    for setting in settings {
        let (name, cure) = (setting["name"].as_str().unwrap(), setting["cure"].as_str().unwrap());
        assert!(told.lines().any(|line| line.starts_with(name)) && told.contains(cure), "{name}: {told}");
    }

    // A snapshot that the warden sets aside is a fault.
    let snapshots = state.join("warden/snapshots");
    let file = snapshots.join("snp_00112233445566778899aabbccddeeff.json");
    fs::create_dir_all(&snapshots).unwrap();
    fs::write(&file, "{").unwrap();
    let ran = doctor(false);
    ran.expect(1);
    let told = ran.text();
    assert!(told.contains(file.to_str().unwrap()) && told.contains("malformed"), "{told}");
    let ran = doctor(true);
    ran.expect(1);
    let found: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(found["state"]["set_aside"][0]["file"], file.to_str().unwrap());
    fs::remove_file(file).unwrap();
    doctor(false).expect(0);
}

#[test]
fn an_address_that_is_taken_is_told_at_once_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = refused(&["--listen", &taken.local_addr().unwrap().to_string()]);
    ran.expect(1);
    assert_eq!(ran.stderr.matches("cannot listen on").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: another program listens there"), "{}", ran.stderr);
    // This network has no such address on any machine (RFC 5737).
    let ran = refused(&["--listen", "192.0.2.1:7070", "--allow-plaintext"]);
    ran.expect(1);
    assert!(ran.stderr.contains("hint: name an address that this machine has"), "{}", ran.stderr);
    for wrong in ["nope", "7070", "localhost"] {
        let ran = refused(&["--listen", wrong]);
        ran.expect(2);
        assert!(ran.stderr.contains("give an address and a port, such as 127.0.0.1:7070"), "{}", ran.stderr);
    }
}

/// The server dies and its configuration has become wrong meanwhile: who runs sandboxes has time to put it right.
#[test]
fn a_setting_that_becomes_wrong_ends_nobodys_sandboxes() {
    let dir = fresh_dir();
    let file = dir.path().join("ringfence.toml");
    fs::write(&file, "[door]\nconnections_max = 100\n").unwrap();
    let path = file.to_str().unwrap().to_owned();
    let system = System::start_with(dir, &["--listen", "127.0.0.1:0", "--config", &path]);
    let id = system.ok(&["create"]);
    fs::write(&file, "no_such_key = 1\n").unwrap();
    signal(system.child("server"), "KILL");
    eventually("it says what is wrong", || system.log().matches("no_such_key").count() >= 2);
    fs::write(&file, "[door]\nconnections_max = 100\n").unwrap();
    eventually("it serves again", || system.run(&["ps"]).code == 0);
    assert_eq!(system.ok(&["exec", "-s", &id, "--", "echo", "still here"]), "still here");
    system.stop();
}
