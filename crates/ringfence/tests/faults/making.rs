//! The server is killed while it makes something that is asked for again, or that nobody is to find.

use std::fs;

use serde_json::{Value, json};

use crate::{
    field::{Field, go_on, kill, runs, stop, until},
    http::{Call, Said, Waiting},
};

/// How often the server is killed at the last moment, which cannot be held still: its own row is written, and the answer
/// is not out yet, or just so.
const LAST_MOMENTS: usize = 8;

/// How far a making has come when the server is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Its intent is in the ledger, and the warden has not begun.
    Intent,
    /// The warden has begun.
    Begun,
    /// Its process 1 runs, and the server has not heard of it.
    Made,
    /// Its row is written, and its result is on its way into the ledger.
    Written,
}

/// Kills the server when what was begun has come to a step. The sandbox must not come from the pool.
fn kill_at(field: &Field, step: Step, begin: impl FnOnce() -> Waiting) -> Result<Said, String> {
    let (server, warden, cgroups) = (field.server(), field.warden(), field.cgroups());
    let (intents, results) = (field.intents("sandbox_create"), field.results("sandbox_create"));
    if step == Step::Intent {
        stop(warden);
    }
    let waiting = begin();
    let mut fresh = None;
    let mut begun = || {
        fresh = field.cgroups().difference(&cgroups).next().cloned();
        fresh.is_some()
    };
    let come = match step {
        Step::Intent => until("the intent is in the ledger", || field.intents("sandbox_create") > intents),
        Step::Begun => until("the cgroup of a new sandbox", begun),
        Step::Made => until("the cgroup of a new sandbox", &mut begun).and_then(|()| {
            stop(server);
            until("its process 1 runs", || {
                let init = fresh.as_deref().and_then(|id| field.init_of(id));
                let line = init.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
                line.is_some_and(|line| line.starts_with(b"rf-init"))
            })
        }),
        Step::Written => until("the result is in the ledger", || field.results("sandbox_create") > results),
    };
    kill(server);
    if step == Step::Intent {
        go_on(warden);
    }
    come?;
    let (said, _) = waiting.end(std::time::Instant::now());
    until("ready again", || field.is_ready())?;
    Ok(said)
}

/// Sends a request beside us.
fn begin(field: &Field, path: &str, body: &Value, more: &str) -> Waiting {
    let body = body.to_string();
    let mut bytes = field.head("POST", path, body.len(), more);
    bytes.extend_from_slice(body.as_bytes());
    let sent = field.open().and_then(|mut call| call.send(&bytes).map(|()| call));
    match sent {
        Ok(call) => Waiting::start(call, Call::answer),
        Err(error) => Waiting::said(Said::Lost(error.to_string())),
    }
}

#[test]
fn a_request_that_comes_again_after_the_servers_death_makes_one_sandbox() {
    let field = Field::start();
    // Of another size than those of the pool, so that all of it is made now.
    let spec = json!({ "limits": { "inodes_max": 4096 } });
    let last = std::iter::repeat_n(Step::Written, LAST_MOMENTS);
    let mut wrong = Vec::new();
    for (number, step) in [Step::Intent, Step::Begun, Step::Made].into_iter().chain(last).enumerate() {
        let key = format!("idempotency-key: again-{number}\r\n");
        let ask = || begin(&field, "/v1/sandboxes", &spec, &key);
        let go = || {
            let first = kill_at(&field, step, ask)?;
            let (again, _) = ask().end(std::time::Instant::now());
            if !again.is_done() {
                return Err(format!("asked again: {again}"));
            }
            let id = |said: &Said| said.json().and_then(|made| Some(made["id"].as_str()?.to_owned()));
            if first.is_done() && id(&first) != id(&again) {
                return Err(format!("two answers: {first}; {again}"));
            }
            let made = field.listed().unwrap_or_default();
            if made.len() != 1 || made.first() != id(&again).as_ref() {
                return Err(format!("there are {made:?}, and the answer is {again}"));
            }
            Ok(())
        };
        let result = go();
        wrong.extend(result.err().map(|error| format!("{step:?}, {number}: {error}")));
        for id in field.listed().unwrap_or_default() {
            field.must("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
        }
        wrong.extend(field.settle().err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    field.end();
}

#[test]
fn a_one_shot_whose_server_dies_before_its_row_is_written_leaves_nothing() {
    let field = Field::start();
    let mut wrong = Vec::new();
    for (number, step) in [Step::Intent, Step::Begun, Step::Made].into_iter().enumerate() {
        let mark = format!("sleep 4796.{number}5");
        let ask = json!({ "exec": { "shell": mark }, "sandbox": { "limits": { "inodes_max": 4096 } } });
        let go = || {
            let said = kill_at(&field, step, || begin(&field, "/v1/run", &ask, ""))?;
            if said.is_done() {
                return Err(format!("answered: {said}"));
            }
            // Whatever was made for it is gone, and nothing of it ran or runs.
            until("nothing of it is listed", || field.listed().is_some_and(|list| list.is_empty()))?;
            field.settle()?;
            if runs(&mark) { Err("its command runs".to_owned()) } else { Ok(()) }
        };
        wrong.extend(go().err().map(|error| format!("{step:?}: {error}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Control: a one-shot that nobody disturbs runs, and its sandbox goes all the same.
    let ask = json!({ "exec": { "shell": "echo here" }, "sandbox": { "limits": { "inodes_max": 4096 } } });
    assert_eq!(field.must("POST", "/v1/run", &ask)["stdout"], "here\n");
    field.settle().unwrap();
    field.end();
}
