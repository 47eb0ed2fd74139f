//! Who hangs: a process that is there and does nothing. Whoever asks is told so in time, and when it goes on all works
//! again: nobody was restarted, and what was refused was not done.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    field::{Field, go_on, runs, stop, until},
    http::{Said, Waiting},
};

/// Longest time to a typed error.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Added by a test on a machine that is busy with others, which may have to wait for a processor.
const BUSY: Duration = Duration::from_millis(500);

/// Sends all of these at once, each on a connection of its own; the answers, and how long each took.
fn ask_all(field: &Field, asks: &[(&'static str, String, Value)]) -> Vec<(String, Said, Duration)> {
    let begun = asks.iter().map(|(method, path, body)| {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let mut bytes = field.head(method, path, body.len(), "");
        bytes.extend_from_slice(&body);
        let mut call = field.open().unwrap();
        let since = Instant::now();
        call.send(&bytes).unwrap();
        (format!("{method} {path}"), since, Waiting::start(call, crate::http::Call::answer))
    });
    let begun: Vec<_> = begun.collect();
    let ended = begun.into_iter().map(|(what, since, waiting)| {
        let (said, took) = waiting.end(since);
        (what, said, took)
    });
    ended.collect()
}

/// Each must have this code, in time.
fn refused(said: &[(String, Said, Duration)], code: &str) {
    for (what, said, took) in said {
        assert_eq!(said.code().as_deref(), Some(code), "{what}: {said}");
        assert!(*took < ANSWERED_WITHIN + BUSY, "{what} took {took:?}: {said}");
    }
}

#[test]
fn a_process_1_that_hangs_is_said_so_in_time() {
    let field = Field::start();
    let (sandbox, init) = field.sandbox();
    let (other, _) = field.sandbox();
    let (server, warden) = (field.server(), field.warden());
    let route = format!("/v1/sandboxes/{sandbox}");
    assert!(field.send("PUT", &format!("{route}/files?path=/tmp/there"), b"text").is_done());
    let begun = json!({ "shell": "sleep 4797.5", "background": true });
    let running = field.must("POST", &format!("{route}/exec"), &begun)["id"].as_str().unwrap().to_owned();
    until("it runs", || runs("sleep 4797.5")).unwrap();

    let ran = |word: &str| json!({ "shell": format!("echo {word} >> /tmp/ran; sleep 4797.25") });
    let file = |what: &str| format!("{route}/files{what}path=/tmp/there");
    let asks = [
        ("POST", format!("{route}/exec"), ran("foreground")),
        ("POST", format!("{route}/exec"), {
            let mut ask = ran("background");
            ask["background"] = true.into();
            ask
        }),
        ("POST", format!("/v1/execs/{running}/signal"), json!({ "signal": 15 })),
        ("GET", file("?"), Value::Null),
        ("PUT", file("?mode=truncate&"), json!("text")),
        ("PUT", file("?mode=replace&"), json!("text")),
        ("GET", file("/stat?"), Value::Null),
        ("GET", file("/list?"), Value::Null),
        ("GET", file("/tar?"), Value::Null),
        ("GET", file("/watch?"), Value::Null),
        ("POST", format!("{route}/files/mkdir"), json!({ "path": "/tmp/made" })),
        ("POST", format!("{route}/files/move"), json!({ "from": "/tmp/there", "to": "/tmp/moved" })),
        ("POST", format!("{route}/files/remove"), json!({ "path": "/tmp/there" })),
        ("POST", format!("{route}/files/chmod"), json!({ "path": "/tmp/there", "permissions": "600" })),
    ];
    stop(init);
    let said = ask_all(&field, &asks);
    // What needs nobody inside is answered as ever, and others notice nothing.
    assert!(field.ask("GET", &route, &Value::Null).is_done());
    assert!(field.ask("GET", &format!("/v1/execs/{running}"), &Value::Null).is_done());
    assert!(field.shell(&other, "true").is_done());
    assert!(runs("sleep 4797.5"), "what runs goes on");
    go_on(init);
    refused(&said, "timed_out");

    until("commands run again", || field.shell(&sandbox, "true").is_done()).unwrap();
    // Orders that it still had are carried out when it goes on, and what they started is killed.
    until("nothing of what was refused runs", || !runs("sleep 4797.25")).unwrap();
    field.must("DELETE", &route, &Value::Null);
    until("it is gone", || !runs("sleep 4797.5")).unwrap();
    assert_eq!((field.server(), field.warden()), (server, warden), "nobody was restarted");
    field.must("DELETE", &format!("/v1/sandboxes/{other}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_sandbox_whose_process_1_hangs_can_be_destroyed() {
    let field = Field::start();
    let (sandbox, init) = field.sandbox();
    let begun = json!({ "shell": "sleep 4797.75", "background": true });
    field.must("POST", &format!("/v1/sandboxes/{sandbox}/exec"), &begun);
    until("it runs", || runs("sleep 4797.75")).unwrap();
    stop(init);
    let since = Instant::now();
    let said = field.ask("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    assert!(said.is_done() && since.elapsed() < ANSWERED_WITHIN + BUSY, "{:?}: {said}", since.elapsed());
    until("it is gone", || !runs("sleep 4797.75")).unwrap();
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_process_1_that_hangs_for_long_ends_its_sandbox_and_no_other() {
    let field = Field::start();
    let (sandbox, init) = field.sandbox();
    let (other, _) = field.sandbox();
    let path = format!("/v1/sandboxes/{sandbox}/exec");
    let begun = json!({ "shell": "sleep 4797.85", "background": true });
    field.must("POST", &path, &begun);
    stop(init);
    refused(&ask_all(&field, &[("POST", path, json!({ "argv": ["true"] }))]), "timed_out");
    let began = Instant::now();
    while field.listed().is_some_and(|list| list.contains(&sandbox)) {
        assert!(began.elapsed() < Duration::from_secs(60), "it is kept");
        std::thread::sleep(Duration::from_millis(100));
    }
    until("it is gone", || !runs("sleep 4797.85")).unwrap();
    assert!(field.shell(&other, "true").is_done());
    field.must("DELETE", &format!("/v1/sandboxes/{other}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_warden_that_hangs_is_said_so_in_time_and_live_sandboxes_go_on() {
    let field = Field::start();
    let (sandbox, _) = field.sandbox();
    let (server, warden) = (field.server(), field.warden());
    let route = format!("/v1/sandboxes/{sandbox}");
    let asks = [
        ("POST", "/v1/sandboxes".to_owned(), json!({})),
        ("POST", "/v1/sandboxes".to_owned(), json!({ "disk": "image" })),
        ("POST", "/v1/run".to_owned(), json!({ "exec": { "argv": ["true"] } })),
        // Changes of limits wait for each other, so one.
        ("PATCH", route.clone(), json!({ "limits": { "tasks_max": 64 } })),
    ];
    stop(warden);
    let said = ask_all(&field, &asks);
    // What the warden has no part in goes on.
    let ran = field.shell(&sandbox, "echo here").json().unwrap_or_default();
    let wrote = field.send("PUT", &format!("{route}/files?path=/tmp/file"), b"text");
    let (listed, since) = (field.listed(), Instant::now());
    let told = field.ask("GET", &route, &Value::Null);
    let took = since.elapsed();
    go_on(warden);
    refused(&said, "timed_out");
    assert_eq!(ran["stdout"], "here\n", "{ran}");
    assert!(wrote.is_done() && listed.is_some());
    // What it uses is the warden's to say: told without, or refused, and in time.
    assert!(told.is_done() || told.code().is_some(), "{told}");
    assert!(took < ANSWERED_WITHIN + BUSY, "{took:?}: {told}");

    until("sandboxes are made again", || {
        field.ask("POST", "/v1/run", &json!({ "exec": { "argv": ["true"] } })).is_done()
    })
    .unwrap();
    assert_eq!((field.server(), field.warden()), (server, warden), "nobody was restarted");
    // What was refused is not there: what the warden made when it went on is destroyed.
    until("only what was there is there", || field.listed() == Some(vec![sandbox.clone()])).unwrap();
    stop(field.warden());
    let said = ask_all(&field, &[("DELETE", route.clone(), Value::Null)]);
    go_on(field.warden());
    refused(&said, "timed_out");
    until("it is destroyed", || {
        let said = field.ask("DELETE", &route, &Value::Null);
        said.is_done() || said.code().as_deref() == Some("not_found")
    })
    .unwrap();
    field.settle().unwrap();
    field.end();
}

#[test]
fn a_server_that_hung_goes_on_where_it_was() {
    let field = Field::start();
    let (sandbox, _) = field.sandbox();
    let server = field.server();
    let exec = format!("/v1/sandboxes/{sandbox}/exec");
    let running = field.must("POST", &exec, &json!({ "shell": "sleep 0.5; exit 7", "background": true }));
    stop(server);
    let body = json!({ "shell": "echo ran >> /tmp/ran; echo here" }).to_string();
    let mut bytes = field.head("POST", &exec, body.len(), "");
    bytes.extend_from_slice(body.as_bytes());
    let mut call = field.open().unwrap();
    call.send(&bytes).unwrap();
    let waiting = Waiting::start(call, crate::http::Call::answer);
    // Its pipes, clients and timers wait meanwhile.
    std::thread::sleep(Duration::from_secs(3));
    go_on(server);
    let (said, took) = waiting.end(Instant::now());
    assert!(said.is_done() && took < ANSWERED_WITHIN + BUSY, "{took:?}: {said}");
    assert_eq!(said.json().unwrap()["stdout"], "here\n", "{said}");
    let id = running["id"].as_str().unwrap();
    let ended = field.must("GET", &format!("/v1/execs/{id}/wait?timeout_ms=20000"), &Value::Null);
    assert_eq!((&ended["state"], &ended["code"]), (&json!("exited"), &json!(7)), "{ended}");
    let ran = field.shell(&sandbox, "cat /tmp/ran").json().unwrap();
    assert_eq!(ran["stdout"], "ran\n", "it ran once");
    assert_eq!(field.server(), server);
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}
