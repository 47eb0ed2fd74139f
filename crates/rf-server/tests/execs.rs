//! Execs and files through the door, on inits that really start programs.

mod support;

use std::time::Duration;

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use rf_wire::frames;
use serde_json::{Value, json};
use support::{World, whole};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_waited_for_and_recorded() {
    let world = World::new().await;
    let id = world.sandbox(&world.ann).await;
    let body = json!({
        "shell": "cat; printf '\\377' >&2; exit 7",
        "stdin": "hello",
        "env": {"SECRET_TOKEN": "hunter2hunter2"},
    });
    let (status, answer) = world.post(&format!("/v1/sandboxes/{id}/exec"), &world.ann, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["code"], 7);
    assert_eq!((&answer["stdout"], &answer["stdout_encoding"]), (&json!("hello"), &json!("utf-8")));
    assert_eq!((&answer["stderr"], &answer["stderr_encoding"]), (&json!("/w=="), &json!("base64")));
    assert_eq!(answer["place"], json!({"kind": "sandbox", "id": id}));

    let records = world.ledger().await;
    let of_exec: Vec<_> = records.iter().filter(|record| record["action"] == "exec").collect();
    assert_eq!(of_exec.len(), 2, "{of_exec:?}");
    assert_eq!((&of_exec[0]["kind"], &of_exec[1]["kind"]), (&json!("intent"), &json!("result")));
    assert_eq!(of_exec[1]["exit_code"], 7);
    assert_eq!(of_exec[1]["subject"], answer["id"]);
    assert_eq!(of_exec[0]["username"], "ann");
    assert!(!String::from_utf8_lossy(&world.ledger_bytes()).contains("hunter2"), "a value of the environment is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_past_the_bound_is_cut_and_said() {
    let world = World::new().await;
    let body = json!({"shell": "head -c 100000 /dev/zero | tr '\\0' x", "output_bytes_max": 10});
    let (status, answer) = world.post("/v1/exec", &world.ann, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["stdout"], &answer["stdout_truncated"]), (&json!("xxxxxxxxxx"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_makes_the_users_sandbox_and_the_next_ones_use_it() {
    let world = World::new().await;
    let calls = (0..8).map(|_| world.post("/v1/exec", &world.ann, json!({"argv": ["true"]})));
    let answers = futures::future::join_all(calls).await;
    let places: Vec<&Value> = answers.iter().map(|(_, answer)| &answer["place"]["id"]).collect();
    assert!(places.iter().all(|place| *place == places[0] && place.is_string()), "{answers:?}");
    assert_eq!(world.warden.alive().len(), 1);
    let (_, list) = world.get("/v1/sandboxes", &world.ann).await;
    assert_eq!((list["items"].as_array().unwrap().len(), &list["items"][0]["default"]), (1, &json!(true)));
    assert_eq!(world.get("/v1/sandboxes", &world.bob).await.1["items"], json!([]));
    let made = world.ledger().await.iter().filter(|record| record["action"] == "sandbox_create").count();
    assert_eq!(made, 2, "one intent and one result");
}

/// Cuts a body of frames.
fn cut(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames_found = Vec::new();
    while !bytes.is_empty() {
        let (kind, len) = frames::parse_header(bytes).unwrap();
        frames_found.push((kind, bytes[frames::HEADER_LEN..frames::HEADER_LEN + len].to_vec()));
        bytes = &bytes[frames::HEADER_LEN + len..];
    }
    frames_found
}

fn framed(key: &str, path: &str, body: Value) -> Request<Body> {
    Request::post(path)
        .header("authorization", format!("Bearer {key}"))
        .header(header::ACCEPT, frames::MEDIA_TYPE)
        .body(Body::from(body.to_string()))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_byte_exact_from_started_to_exit() {
    let world = World::new().await;
    let line = "head -c 3000000 /dev/zero; printf err >&2; exit 3";
    let response = world.send(framed(&world.ann, "/v1/exec", json!({"shell": line}))).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], frames::MEDIA_TYPE);
    let (_, body) = whole(response).await;
    let all = cut(&body);
    let started: Value = serde_json::from_slice(&all[0].1).unwrap();
    assert_eq!((all[0].0, started["place"]["kind"].as_str()), (frames::STARTED, Some("sandbox")));
    let of = |kind| all.iter().filter(|frame| frame.0 == kind).flat_map(|frame| frame.1.clone()).collect::<Vec<u8>>();
    assert!(of(frames::STDOUT) == vec![0; 3_000_000]);
    assert_eq!(of(frames::STDERR), b"err");
    let exit: Value = serde_json::from_slice(&of(frames::EXIT)).unwrap();
    assert_eq!(exit["code"], 3);
    assert_eq!(all.last().unwrap().0, frames::EXIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_exec_along_and_the_ledger_says_so() {
    let world = World::new().await;
    let response = world.send(framed(&world.ann, "/v1/exec", json!({"shell": "echo up; sleep 1000"}))).await;
    let mut body = response.into_body().into_data_stream();
    let first = cut(&body.next().await.unwrap().unwrap());
    let id = serde_json::from_slice::<Value>(&first[0].1).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(world.get(&format!("/v1/execs/{id}"), &world.ann).await.1["state"], "running");
    drop(body);
    let ended = world.get(&format!("/v1/execs/{id}/wait?timeout_ms=20000"), &world.ann).await;
    assert_eq!(ended.1["state"], "exited", "{}", ended.1);
    let records = world.ledger().await;
    let result = records.iter().find(|record| record["action"] == "exec" && record["kind"] == "result").unwrap();
    assert_eq!(result["details"]["client_gone"], true, "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_exec_is_listed_followed_fed_and_waited_for() {
    let world = World::new().await;
    let body = json!({"shell": "read line; echo \"got $line\"; exit 4", "stdin": true, "background": true});
    let (status, item) = world.post("/v1/exec", &world.ann, body).await;
    assert_eq!((status, &item["state"]), (StatusCode::ACCEPTED, &json!("running")), "{item}");
    let id = item["id"].as_str().unwrap();
    let list = world.get("/v1/execs", &world.ann).await.1;
    assert_eq!(list["items"][0]["id"], item["id"]);
    assert_eq!(world.get("/v1/execs", &world.bob).await.1["items"], json!([]));
    let path = format!("/v1/execs/{id}/stdin?end=true");
    let (fed, body) = world.raw(Method::POST, &path, &world.ann, Body::from("line\n")).await;
    assert_eq!(fed, StatusCode::NO_CONTENT, "{body:?}");
    let ended = world.get(&format!("/v1/execs/{id}/wait"), &world.ann).await.1;
    assert_eq!((&ended["state"], &ended["code"]), (&json!("exited"), &json!(4)), "{ended}");
    for query in ["", "?follow=true", "?offset=0&length=100"] {
        let logs = world.raw(Method::GET, &format!("/v1/execs/{id}/logs{query}"), &world.ann, Body::empty()).await;
        assert_eq!(logs, (StatusCode::OK, Bytes::from("got line\n")), "{query}");
    }
    let part =
        world.raw(Method::GET, &format!("/v1/execs/{id}/logs?offset=4&length=2"), &world.ann, Body::empty()).await;
    assert_eq!(part.1, "li");
    let attached = world.raw(Method::GET, &format!("/v1/execs/{id}/attach"), &world.ann, Body::empty()).await.1;
    let kinds: Vec<u8> = cut(&attached).iter().map(|frame| frame.0).collect();
    assert_eq!(kinds, [frames::STARTED, frames::STDOUT, frames::EXIT]);
    let removed = world.raw(Method::DELETE, &format!("/v1/execs/{id}"), &world.ann, Body::empty()).await.0;
    assert_eq!(removed, StatusCode::NO_CONTENT);
    assert_eq!(world.get(&format!("/v1/execs/{id}"), &world.ann).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_background_exec() {
    let world = World::new().await;
    let (_, item) = world.post("/v1/exec", &world.ann, json!({"argv": ["sleep", "1000"], "background": true})).await;
    let id = item["id"].as_str().unwrap();
    let signal = json!({"signal": 9, "scope": "tree"});
    assert_eq!(world.post(&format!("/v1/execs/{id}/signal"), &world.ann, signal).await.0, StatusCode::NO_CONTENT);
    let ended = world.get(&format!("/v1/execs/{id}/wait"), &world.ann).await.1;
    assert_eq!(ended["signal"], 9, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_has_its_time_and_size_where_nothing_else_is_asked() {
    let world = World::new().await;
    for exec in [json!({"argv": ["true"]}), json!({"argv": ["true"], "timeout_ms": 1_234})] {
        let (status, answer) = world.post("/v1/run", &world.ann, json!({ "exec": exec })).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let larger = json!({"limits": {"memory_bytes_max": 512 << 20, "cpu_milli_max": 1_500}});
    let asked = json!({"exec": {"argv": ["true"]}, "sandbox": larger});
    assert_eq!(world.post("/v1/run", &world.ann, asked).await.0, StatusCode::OK);
    // What is held by process 1, and by the warden.
    assert_eq!(world.warden.timeouts(), [30_000, 1_234, 30_000]);
    let made: Vec<_> = (world.warden.specs().iter())
        .map(|spec| (spec.limits.memory_bytes_max >> 20, spec.limits.cpu_milli_max, spec.lease_ms))
        .collect();
    assert_eq!(made, [(256, 1_000, 90_000), (256, 1_000, 61_234), (512, 1_500, 90_000)]);
    assert!(world.warden.specs().iter().all(|spec| spec.network == rf_types::Network::None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_leaves_no_sandbox() {
    let world = World::new().await;
    let (status, answer) = world.post("/v1/run", &world.ann, json!({"exec": {"argv": ["echo", "hi"]}})).await;
    assert_eq!((status, &answer["stdout"]), (StatusCode::OK, &json!("hi\n")), "{answer}");
    // A command that cannot be started leaves none either.
    let (status, answer) = world.post("/v1/run", &world.ann, json!({"exec": {"argv": ["/no/such"]}})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("exec_failed")), "{answer}");
    let response = world.send(framed(&world.ann, "/v1/run", json!({"exec": {"argv": ["echo", "hi"]}}))).await;
    assert_eq!(cut(&whole(response).await.1).last().unwrap().0, frames::EXIT);
    until(|| world.warden.alive().is_empty()).await;
    let records = world.ledger().await;
    let destroyed = records.iter().filter(|r| r["action"] == "sandbox_destroy" && r["kind"] == "intent").count();
    assert_eq!(destroyed, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_is_recorded_as_what_it_is() {
    let world = World::new().await;
    let (status, answer) = world.post("/v1/run", &world.ann, json!({"exec": {"argv": ["echo", "hi"]}})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    // All of it is there when the answer is, but for the end of the sandbox, which comes after it.
    let told = |records: Vec<Value>| -> Vec<(String, String, Value)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ours = ["sandbox_create", "exec", "sandbox_destroy"];
        let of_it = records.iter().filter(|r| r["username"] == "ann" && ours.contains(&text(&r["action"]).as_str()));
        of_it.map(|r| (text(&r["action"]), text(&r["kind"]), r["place"].clone())).collect()
    };
    until(|| world.warden.alive().is_empty()).await;
    let mut records = told(world.ledger().await);
    while records.len() < 6 {
        records = told(world.ledger().await);
    }
    let kinds: Vec<(&str, &str)> = records.iter().map(|(action, kind, _)| (action.as_str(), kind.as_str())).collect();
    let (create, exec, destroy) = ("sandbox_create", "exec", "sandbox_destroy");
    let whole = [(create, "intent"), (exec, "intent"), (create, "result"), (exec, "result")];
    assert_eq!(kinds[..4], whole);
    assert_eq!(kinds[4..], [(destroy, "intent"), (destroy, "result")]);
    assert!(records[2..].iter().all(|(_, _, place)| *place == answer["place"]), "{records:?} {answer}");

    // Of a command that may not run no sandbox is made.
    let none = json!({"limits": {"execs_max": 0}});
    assert_eq!(world.call(Method::PATCH, "/v1/users/ann", &world.admin, none).await.0, StatusCode::OK);
    let (status, refused) = world.post("/v1/run", &world.ann, json!({"exec": {"argv": ["true"]}})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("limit_reached")), "{refused}");
    let records = told(world.ledger().await);
    assert_eq!(records[6..].iter().map(|r| (&*r.0, &*r.1)).collect::<Vec<_>>(), [(exec, "decision")]);
}

/// Waits until something is so; the test's own time limit is the bound.
async fn until(is: impl Fn() -> bool) {
    while !is() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_makes_one_sandbox() {
    let world = World::new().await;
    let make = |key: &str, body: &str, credential: &str| {
        let request = Request::post("/v1/sandboxes")
            .header("authorization", format!("Bearer {credential}"))
            .header("idempotency-key", key)
            .body(Body::from(body.to_owned()))
            .unwrap();
        async {
            let (status, body) = whole(world.send(request).await).await;
            (status, serde_json::from_slice::<Value>(&body).unwrap())
        }
    };
    let both = futures::join!(make("k", "{}", &world.ann), make("k", "{}", &world.ann));
    assert_eq!((both.0.0, &both.0.1["id"]), (StatusCode::CREATED, &both.1.1["id"]));
    assert_eq!(make("k", r#"{"lease_ms":2000}"#, &world.ann).await.0, StatusCode::CONFLICT);
    let bobs = make("k", "{}", &world.bob).await;
    assert_ne!(bobs.1["id"], both.0.1["id"]);
    assert_eq!(world.warden.alive().len(), 2);
}

/// A server may be killed at any moment: whenever a sandbox's row can be read, so can the key that it was made under.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_written_down_with_its_sandbox() {
    let world = World::new().await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let looking = {
        let (app, done) = (world.app.clone(), std::sync::Arc::clone(&done));
        std::thread::spawn(move || {
            let mut seen = std::collections::BTreeSet::new();
            loop {
                let last = done.load(std::sync::atomic::Ordering::Acquire);
                for (scope, sandbox) in app.store().sandboxes_alive_all(app.system()).unwrap() {
                    let name = sandbox.name.unwrap();
                    let repeat = app.store().repeat_get(&scope, &name, 0).unwrap();
                    assert_eq!(repeat.map(|repeat| repeat.made), Some(sandbox.id), "{name}");
                    seen.insert(name);
                }
                if last {
                    return seen.len();
                }
            }
        })
    };
    for n in 0..30 {
        let request = Request::post("/v1/sandboxes")
            .header("authorization", format!("Bearer {}", world.ann))
            .header("idempotency-key", format!("n-{n}"))
            .body(Body::from(json!({ "name": format!("n-{n}") }).to_string()))
            .unwrap();
        let (status, body) = whole(world.send(request).await).await;
        assert_eq!(status, StatusCode::CREATED, "{body:?}");
        let id = serde_json::from_slice::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();
        if n % 8 < 7 {
            let gone = world.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), &world.ann, Value::Null).await;
            assert_eq!(gone.0, StatusCode::NO_CONTENT);
        }
    }
    done.store(true, std::sync::atomic::Ordering::Release);
    assert!(looking.join().unwrap() >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_sandbox_of_a_users_limit_goes_to_one() {
    let world = World::new().await;
    let limits = json!({"limits": {"sandboxes_max": 2}});
    assert_eq!(world.call(Method::PATCH, "/v1/users/ann", &world.admin, limits).await.0, StatusCode::OK);
    let calls = (0..6).map(|_| world.post("/v1/sandboxes", &world.ann, json!({})));
    let made = futures::future::join_all(calls).await;
    let count = |wanted| made.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::TOO_MANY_REQUESTS)), (2, 4), "{made:?}");
    let denied =
        world.ledger().await.iter().filter(|r| r["action"] == "sandbox_create" && r["allowed"] == false).count();
    assert_eq!(denied, 4, "denials are recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_forks_that_are_all_refused_nothing_is_taken() {
    let world = World::new().await;
    let id = world.sandbox(&world.ann).await;
    let path = format!("/v1/sandboxes/{id}/fork");
    let most = |count: u32| {
        let limits = json!({"limits": {"sandboxes_max": count}});
        world.call(Method::PATCH, "/v1/users/ann", &world.admin, limits)
    };
    assert_eq!(most(1).await.0, StatusCode::OK);
    // The warden would say so, if it were asked.
    let fault = rf_types::Fault::new(rf_types::Code::DiskFull, "it was asked", "");
    world.warden.refuse(None, Some(fault));
    let (status, answer) = world.post(&path, &world.ann, json!({"count": 2})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let codes: Vec<_> = answer["forks"].as_array().unwrap().iter().map(|fork| fork["error"]["code"].clone()).collect();
    assert_eq!(codes, ["limit_reached", "limit_reached"]);
    let records = world.ledger().await;
    let denied = records.iter().filter(|r| r["action"] == "sandbox_create" && r["allowed"] == false).count();
    assert_eq!(denied, 2, "each is recorded");
    // Control: with room for one the warden is asked, and what it refuses is refused to all; nothing stays counted.
    assert_eq!(most(2).await.0, StatusCode::OK);
    let (_, refused) = world.post(&path, &world.ann, json!({"count": 2})).await;
    assert_eq!(refused["code"], "disk_full", "{refused}");
    let (_, made) = world.post(&path, &world.ann, json!({"count": 2})).await;
    let forks = made["forks"].as_array().unwrap();
    assert_eq!(forks.iter().filter(|fork| fork["sandbox"].is_object()).count(), 1, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_lease_are_changed_within_what_the_user_may_have() {
    let world = World::new().await;
    let id = world.sandbox(&world.ann).await;
    let path = format!("/v1/sandboxes/{id}");
    let patch = |body| world.call(Method::PATCH, &path, &world.ann, body);
    let (status, changed) = patch(json!({"limits": {"memory_bytes_max": 536870912u64}, "lease_ms": 60000})).await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    assert_eq!(changed["spec"]["limits"]["memory_bytes_max"], 536870912u64);
    let (_, me) = world.get("/v1/me", &world.ann).await;
    assert_eq!(me["usage"]["memory_bytes"], 536870912u64);
    let (status, refused) = patch(json!({"limits": {"memory_bytes_max": 1u64 << 39}})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("limit_reached")));
    let (status, refused) = patch(json!({"lease_ms": 8u64 * 86_400_000})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("limit_reached")));
    let (status, refused) = patch(json!({"limits": {"disk_bytes_max": 1u64 << 20}})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_read_listed_and_moved() {
    let world = World::new().await;
    let id = world.sandbox(&world.ann).await;
    // The fake init's files are those of this test's own directory.
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    let files = format!("/v1/sandboxes/{id}/files");
    let long: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let put = |query: String, body: Vec<u8>| {
        world.raw(Method::PUT, leak(format!("{files}?{query}")), &world.ann, Body::from(body))
    };
    let (status, body) = put(format!("path={}", at("a")), long.clone()).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body:?}");
    let read = world.raw(Method::GET, &format!("{files}?path={}", at("a")), &world.ann, Body::empty()).await;
    assert_eq!(read.0, StatusCode::OK);
    assert!(read.1 == long);
    let part = Request::get(format!("{files}?path={}", at("a")))
        .header("authorization", format!("Bearer {}", world.ann))
        .header("range", "bytes=10-19")
        .body(Body::empty())
        .unwrap();
    let part = world.send(part).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 10-19/1000000");
    assert_eq!(whole(part).await.1, long[10..20]);
    let past = Request::get(format!("{files}?path={}", at("a")))
        .header("authorization", format!("Bearer {}", world.ann))
        .header("range", "bytes=2000000-")
        .body(Body::empty())
        .unwrap();
    assert_eq!(world.send(past).await.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let missing = world.get(&format!("{files}?path={}", at("none")), &world.ann).await;
    assert_eq!((missing.0, &missing.1["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    let records = world.ledger().await;
    let wrote = records.iter().find(|r| r["action"] == "file_write" && r["kind"] == "result").unwrap();
    assert_eq!(wrote["details"]["bytes"], 1_000_000);
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_in_the_middle_has_one_sandbox_and_a_record_of_it() {
    let world = World::new().await;
    let ask = || {
        let request = axum::http::Request::post("/v1/sandboxes");
        let request = request.header("authorization", format!("Bearer {}", world.ann)).header("idempotency-key", "k");
        world.send(request.body(Body::from("{}")).unwrap())
    };
    // Asked, and gone before there is an answer.
    assert!(ask().now_or_never().is_none());
    let (status, answer) = whole(ask().await).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(world.warden.alive().len(), 1, "the same request, and the same sandbox");
    let (_, all) = world.get("/v1/sandboxes", &world.ann).await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
    let records = world.ledger().await;
    let made: Vec<_> =
        records.iter().filter(|record| record["action"] == "sandbox_create" && record["kind"] == "result").collect();
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!((&made[0]["subject"], &made[0]["details"]["client_gone"]), (&answer["id"], &Value::Null), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_refused_has_changed_nothing() {
    let world = World::new().await;
    let id = world.sandbox(&world.ann).await;
    let path = format!("/v1/sandboxes/{id}");
    let (_, before) = world.get(&path, &world.ann).await;
    let both = json!({"limits": {"memory_bytes_max": 536_870_912u64}, "lease_ms": 1});
    let (status, refused) = world.call(Method::PATCH, &path, &world.ann, both).await;
    assert_eq!((status, &refused["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")), "{refused}");
    let (_, after) = world.get(&path, &world.ann).await;
    assert_eq!(after["spec"], before["spec"]);
}
