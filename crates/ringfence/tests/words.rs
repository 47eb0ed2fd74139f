//! What the binary says without a server: help, completions, lists, and errors that tell what to do next.

mod support;

use serde_json::Value;
use support::{Ran, fresh_dir, golden, ringfence};

fn run(args: &[&str]) -> Ran {
    let home = fresh_dir();
    let mut command = ringfence(home.path());
    command.args(args).env("RINGFENCE_STATE", home.path().join("none"));
    Ran::of(command, b"")
}

#[test]
fn the_help_names_every_command() {
    golden("help.txt", &run(&["--help"]).expect(0), &[]);
}

#[test]
fn without_a_server_the_error_says_what_to_do() {
    let ran = run(&["ps"]);
    ran.expect(1);
    golden("no-server.txt", &ran.stderr, &[]);
    let ran = run(&["--url", "http://127.0.0.1:1", "ps"]);
    ran.expect(1);
    golden("no-key.txt", &ran.stderr, &[]);
    let ran = run(&["--url", "http://127.0.0.1:1", "--key", "k", "ps"]);
    ran.expect(1);
    golden("unreachable.txt", &ran.stderr, &[]);
}

#[test]
fn an_address_that_is_none_is_said_before_its_key_is_looked_for() {
    for wrong in ["nope", "ftp://x", "127.0.0.1:7070"] {
        let ran = run(&["--url", wrong, "ps"]);
        ran.expect(1);
        assert!(ran.stderr.starts_with(&format!("error: `{wrong}` is no server's address")), "{}", ran.stderr);
    }
    // A variable that is set to nothing is none.
    let ran = run(&["--url", "", "ps"]);
    assert!(ran.stderr.starts_with("error: no server is known"), "{}", ran.stderr);
    let ran = run(&["--url", "http://127.0.0.1:1", "--key", "", "ps"]);
    assert!(ran.stderr.starts_with("error: no key for"), "{}", ran.stderr);
}

#[test]
fn lists_have_one_short_name() {
    for what in ["user", "key", "machine", "audit", "template"] {
        let ran = run(&[what, "ls"]);
        ran.expect(1);
        assert!(ran.stderr.starts_with("error: no server is known"), "{what}: {}", ran.stderr);
    }
}

#[test]
fn a_variable_has_the_same_short_name_wherever_it_is_given() {
    for command in ["create", "run", "exec"] {
        let help = run(&[command, "--help"]).expect(0);
        assert!(help.contains("-e, --env <NAME=VALUE>"), "{command}: {help}");
    }
}

#[test]
fn errors_are_json_when_that_is_asked_for() {
    let ran = run(&["--json", "ps"]);
    ran.expect(1);
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["code"], "invalid_request");
    assert!(error["hint"].as_str().unwrap().contains("ringfence up"));
}

#[test]
fn what_runs_a_command_fails_with_a_code_of_its_own() {
    assert_eq!(run(&["run", "true"]).code, 125);
    assert_eq!(run(&["exec", "true"]).code, 125);
    // The command line itself is wrong: a command's own 2 is told from it.
    assert_eq!(run(&["run"]).code, 125);
    assert_eq!(run(&["run", "--memory", "much", "true"]).code, 125);
}

#[test]
fn a_wrong_line_is_told_from_a_commands_end_and_is_json_when_that_is_asked_for() {
    for (args, code) in [
        (&["run", "--nope"][..], 125),
        (&["exec", "-s", "sbx_1", "--", "true"], 125),
        (&["shell", "a", "b"], 125),
        (&["ps", "--nope"], 2),
        (&["nope"], 2),
        (&["template", "import", "x"], 2),
    ] {
        let ran = run(args);
        assert_eq!(ran.code, code, "{args:?} {ran:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stdout.is_empty(), "{args:?} {ran:?}");
        let ran = run(&[&["--json"], args].concat());
        assert_eq!(ran.code, code, "{args:?} {ran:?}");
        let fault: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        assert_eq!(fault["code"], "invalid_request", "{fault}");
        assert!(!fault["message"].as_str().unwrap().contains("Usage"), "{fault}");
    }
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        run(args).expect(0);
    }
}

#[test]
fn there_are_completions_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).expect(0);
        assert!(script.contains("ringfence") && script.contains("audit"), "{shell}");
    }
}

#[test]
fn the_list_of_system_calls_is_short_and_every_call_has_a_reason() {
    let list: Value = serde_json::from_str(&run(&["--json", "seccomp"]).expect(0)).unwrap();
    let calls = list["calls"].as_array().unwrap();
    assert_eq!(list["count"], calls.len());
    assert!(calls.len() <= 300, "{} calls", calls.len());
    for call in calls {
        assert!(call["reason"].as_str().is_some_and(|reason| reason.len() > 3), "{call}");
    }
    let named = |name: &str| calls.iter().any(|call| call["name"] == name);
    // A control, and what must not be there.
    assert!(named("read"));
    for name in ["bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "mount", "init_module"]
    {
        assert!(!named(name), "{name}");
    }
}

#[test]
fn the_files_key_goes_to_the_files_server_alone() {
    let home = fresh_dir();
    std::fs::create_dir_all(home.path().join(".config/ringfence")).unwrap();
    let file = home.path().join(".config/ringfence/config.toml");
    // Nobody listens on port 1: a request that is sent fails otherwise than one that is not.
    let asked = |text: &str, args: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let mut command = ringfence(home.path());
        command.args(args).arg("ps").env("RINGFENCE_STATE", home.path().join("none"));
        Ran::of(command, b"").stderr
    };
    let both = "url = 'http://127.0.0.1:1/'\nkey = 'rf_x'\n";
    let elsewhere = asked(both, &["--url", "http://127.0.0.2:1"]);
    assert!(elsewhere.contains("no key for `http://127.0.0.2:1` is known"), "{elsewhere}");
    for sent in [
        asked(both, &[]),
        asked(both, &["--url", "http://127.0.0.1:1"]),
        asked(both, &["--url", "http://127.0.0.2:1", "--key", "rf_y"]),
        asked("key = 'rf_x'\n", &["--url", "http://127.0.0.2:1"]),
    ] {
        assert!(!sent.contains("no key") && sent.contains("127.0.0."), "{sent}");
    }
}

#[test]
fn a_key_of_the_command_line_or_environment_is_never_shown() {
    let home = fresh_dir();
    let mut command = ringfence(home.path());
    command.args(["--help"]).env("RINGFENCE_KEY", "rfk_very_secret").env("RINGFENCE_TOKEN", "rft_very_secret");
    assert!(!Ran::of(command, b"").expect(0).contains("very_secret"));
    let ran = run(&["--url", "http://127.0.0.1:1", "--key", "rfk_very_secret", "ps"]);
    assert!(!ran.stderr.contains("very_secret"), "{}", ran.stderr);
}

#[test]
fn an_audit_without_a_ledger_fails() {
    let ran = run(&["audit", "verify"]);
    ran.expect(1);
    assert!(ran.stderr.contains("ledger"), "{}", ran.stderr);
    assert!(ran.stderr.contains("name the directory that it is in"), "{}", ran.stderr);
}
