//! Who is killed while a new server takes over what the old one left.

use std::{fs, time::Duration, time::Instant};

use serde_json::{Value, json};

use crate::{
    field::{Field, go_on, kill, runs, stop, until},
    point::Target,
};

/// How far the new server has come when somebody is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Its process is there.
    Born,
    /// It has opened its ledger and said so there.
    Opened,
    /// It has, and the warden does not answer it yet.
    Asking,
}

/// How many servers have begun, by the ledger.
fn starts(field: &Field) -> usize {
    let path = field.system.state().join("server/ledger/00000000.jsonl");
    String::from_utf8_lossy(&fs::read(path).unwrap()).matches("\"action\":\"server_start\"").count()
}

fn interrupt(field: &Field, target: Target, step: Step, number: usize) -> Result<(), String> {
    let (sandbox, init) = field.sandbox();
    let mark = format!("sleep 4798.{number}5");
    let script = format!("echo ran >> /tmp/ran; {mark}");
    let path = format!("/v1/sandboxes/{sandbox}/exec");
    let exec = field.must("POST", &path, &json!({ "shell": script, "background": true }))["id"].clone();
    let exec = exec.as_str().unwrap_or_default();
    until("the sleeper runs", || runs(&mark))?;

    let (old, warden, before) = (field.server(), field.warden(), starts(field));
    if step == Step::Asking {
        stop(warden);
    }
    kill(old);
    let mut fresh = None;
    until("the next server", || {
        fresh = field.try_server().filter(|pid| *pid != old);
        fresh.is_some() && (step == Step::Born || starts(field) > before)
    })?;
    kill(match target {
        Target::Warden => warden,
        Target::Init => init,
        _ => fresh.unwrap_or_default(),
    });
    if target != Target::Warden {
        go_on(warden);
    }
    // Whatever is said now, it is said in time.
    let since = Instant::now();
    let said = field.ask("GET", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    if since.elapsed() > Duration::from_secs(2) {
        return Err(format!("answered only after {:?}: {said}", since.elapsed()));
    }
    until("ready again", || field.is_ready())?;
    if target == Target::Server {
        if !runs(&mark) {
            return Err("its process is gone".to_owned());
        }
        let ran = field.shell(&sandbox, "cat /tmp/ran").json().unwrap_or_default();
        let state = field.must("GET", &format!("/v1/execs/{exec}"), &Value::Null)["state"].clone();
        if ran["stdout"] != "ran\n" || state != "running" {
            return Err(format!("{state}: {ran}"));
        }
        field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    } else {
        until("the lost sandbox is not listed", || field.listed().is_some_and(|list| !list.contains(&sandbox)))?;
        let item = field.ask("GET", &format!("/v1/execs/{exec}"), &Value::Null);
        if item.json().is_none_or(|item| item["state"] == "running") {
            return Err(format!("its exec is said to run: {item}"));
        }
    }
    until("its process ends", || !runs(&mark))?;
    field.settle()
}

#[test]
fn taking_over_is_interrupted_at_every_step() {
    let field = Field::start();
    let mut wrong = Vec::new();
    let mut number = 0;
    for target in [Target::Server, Target::Warden, Target::Init] {
        for step in [Step::Born, Step::Opened, Step::Asking] {
            number += 1;
            let began = Instant::now();
            if let Err(error) = interrupt(&field, target, step, number) {
                wrong.push(format!("{target:?} killed, adoption, {step:?}: {error}"));
            }
            eprintln!("{target:?} killed, adoption, {step:?}: {:?}", began.elapsed());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    field.end();
}
