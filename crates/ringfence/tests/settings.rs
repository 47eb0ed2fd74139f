//! How it is started: TLS by files, a configuration file, and settings that are refused at once.

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _};

use support::{Ran, System, fresh_dir, golden, ringfence};

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
