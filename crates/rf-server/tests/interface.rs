//! The interface as a whole: its document, who may call what, and what every error looks like.

mod support;

use std::{collections::BTreeMap, path::Path};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::{Value, json};
use support::{World, golden, whole};

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_document_is_the_committed_one() {
    let document = rf_server::doors::document();
    let parsed: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(parsed["openapi"], "3.1.0");
    golden(root().join("docs/openapi.json"), &document);
}

/// Every operation of the document: method and path.
fn operations() -> Vec<(Method, String)> {
    let document: Value = serde_json::from_str(&rf_server::doors::document()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse::<Method>();
            operations.extend(method.map(|method| (method, path.clone())));
        }
    }
    operations
}

#[test]
fn operation_ids_are_unique_and_every_reference_leads_somewhere() {
    let document: Value = serde_json::from_str(&rf_server::doors::document()).unwrap();
    let mut ids = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no id"));
            assert!(ids.insert(id.to_owned(), path.clone()).is_none(), "`{id}` is there twice");
        }
    }
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// Whether every field of `value` is in what the document says of it; `at` names where it is.
fn is_described(document: &Value, schema: &Value, value: &Value, at: &str) {
    fn properties(document: &Value, schema: &Value, found: &mut BTreeMap<String, Value>) -> bool {
        if let Some(reference) = schema["$ref"].as_str() {
            return properties(document, document.pointer(&reference[1..]).unwrap(), found);
        }
        let parts = ["allOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
        let parts = parts.filter(|part| properties(document, part, found)).count();
        match schema["properties"].as_object() {
            Some(own) => found.extend(own.iter().map(|(name, schema)| (name.clone(), schema.clone()))),
            // An object of any fields.
            None => return parts > 0,
        }
        true
    }
    match value {
        Value::Object(fields) => {
            let mut known = BTreeMap::new();
            if properties(document, schema, &mut known) {
                for (name, value) in fields {
                    let at = format!("{at}.{name}");
                    is_described(
                        document,
                        known.get(name).unwrap_or_else(|| panic!("{at} is not described")),
                        value,
                        &at,
                    );
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| is_described(document, &schema["items"], item, at)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_an_answer_is_in_the_document() {
    let world = World::new().await;
    let document: Value = serde_json::from_str(&rf_server::doors::document()).unwrap();
    let sandbox = world.sandbox(&world.ann).await;
    let path = format!("/v1/sandboxes/{sandbox}");
    let (status, answer) = world.post(&format!("{path}/snapshots"), &world.ann, json!({"name": "s"})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let (status, answer) =
        world.post(&format!("{path}/exec"), &world.ann, json!({"shell": "exec sleep 1000", "background": true})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let (status, answer) = world.post("/v1/sessions", &world.ann, json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    for (route, called, key) in [
        ("/v1/health/live", "/v1/health/live", &world.ann),
        ("/v1/health/ready", "/v1/health/ready", &world.ann),
        ("/v1/me", "/v1/me", &world.ann),
        ("/v1/keys", "/v1/keys", &world.ann),
        ("/v1/sessions", "/v1/sessions", &world.ann),
        ("/v1/sandboxes", "/v1/sandboxes", &world.ann),
        ("/v1/sandboxes/{id}", &path, &world.ann),
        ("/v1/snapshots", "/v1/snapshots", &world.ann),
        ("/v1/execs", "/v1/execs", &world.ann),
        ("/v1/templates", "/v1/templates", &world.ann),
        ("/v1/audit", "/v1/audit", &world.ann),
        ("/v1/users", "/v1/users", &world.admin),
        ("/v1/audit/verify", "/v1/audit/verify", &world.admin),
    ] {
        let (status, answer) = world.get(called, key).await;
        assert_eq!(status, StatusCode::OK, "{called}: {answer}");
        assert_ne!(answer["items"], json!([]), "{called} has something to look at");
        let schema = &document["paths"][route]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{route}");
        is_described(&document, schema, &answer, route);
    }
}

/// What another user must not learn: how each operation on a thing is called for a thing of ann's.
///
/// `None` is an operation that names no thing; the reason stands beside it. An operation of the document that is not
/// here fails the test below. Edited by hand.
fn table(things: &Things) -> Vec<(&'static str, &'static str, Option<Call>)> {
    let Things { sandbox, snapshot, exec, key, session, machine } = things;
    let empty = || Body::empty();
    let json = |value: Value| Body::from(value.to_string());
    let call = |path: String, body: Body| Some(Call { path, body });
    let sandbox_files = format!("/v1/sandboxes/{sandbox}/files");
    let machine_files = format!("/v1/machines/{machine}/files");
    let mut table = vec![
        ("GET", "/v1/health/live", None),
        ("GET", "/v1/health/ready", None),
        // Operators only: the table of roles below.
        ("GET", "/v1/health/host", None),
        ("GET", "/metrics", None),
        ("GET", "/v1/openapi.json", None),
        // The caller's own.
        ("GET", "/v1/me", None),
        ("PUT", "/v1/me/preference", None),
        ("GET", "/v1/keys", None),
        ("POST", "/v1/keys", None),
        ("DELETE", "/v1/keys/{id}", call(format!("/v1/keys/{key}"), empty())),
        ("GET", "/v1/sessions", None),
        ("POST", "/v1/sessions", None),
        ("DELETE", "/v1/sessions/{id}", call(format!("/v1/sessions/{session}"), empty())),
        // Operators only.
        ("GET", "/v1/users", None),
        ("POST", "/v1/users", None),
        ("GET", "/v1/users/{name}", None),
        ("PATCH", "/v1/users/{name}", None),
        ("DELETE", "/v1/users/{name}", None),
        ("GET", "/v1/users/{name}/keys", None),
        ("POST", "/v1/users/{name}/keys", None),
        ("DELETE", "/v1/users/{name}/keys/{id}", None),
        // The caller's own list, or a new thing of the caller's.
        ("GET", "/v1/sandboxes", None),
        ("POST", "/v1/sandboxes", None),
        ("GET", "/v1/sandboxes/{id}", call(format!("/v1/sandboxes/{sandbox}"), empty())),
        (
            "PATCH",
            "/v1/sandboxes/{id}",
            call(format!("/v1/sandboxes/{sandbox}"), json(json!({"lease_ms": 60_000, "limits": {"tasks_max": 50}}))),
        ),
        ("POST", "/v1/sandboxes/{id}/pause", call(format!("/v1/sandboxes/{sandbox}/pause"), empty())),
        ("POST", "/v1/sandboxes/{id}/resume", call(format!("/v1/sandboxes/{sandbox}/resume"), empty())),
        (
            "POST",
            "/v1/sandboxes/{id}/snapshots",
            call(format!("/v1/sandboxes/{sandbox}/snapshots"), json(json!({"name": "taken"}))),
        ),
        ("POST", "/v1/sandboxes/{id}/fork", call(format!("/v1/sandboxes/{sandbox}/fork"), json(json!({"count": 2})))),
        // The caller's own list.
        ("GET", "/v1/snapshots", None),
        ("GET", "/v1/snapshots/{id}", call(format!("/v1/snapshots/{snapshot}"), empty())),
        ("DELETE", "/v1/snapshots/{id}", call(format!("/v1/snapshots/{snapshot}"), empty())),
        ("DELETE", "/v1/sandboxes/{id}", call(format!("/v1/sandboxes/{sandbox}"), empty())),
        ("POST", "/v1/exec", call("/v1/exec".into(), json(json!({"argv": ["true"], "place": sandbox})))),
        (
            "POST",
            "/v1/sandboxes/{id}/exec",
            call(format!("/v1/sandboxes/{sandbox}/exec"), json(json!({"argv": ["true"]}))),
        ),
        (
            "POST",
            "/v1/machines/{id}/exec",
            call(format!("/v1/machines/{machine}/exec"), json(json!({"argv": ["true"]}))),
        ),
        // A sandbox of the caller's own, made for it.
        ("POST", "/v1/run", None),
        // The first message names the place: tests/streams.rs.
        ("GET", "/v1/exec/stream", None),
        ("GET", "/v1/sandboxes/{id}/exec/stream", call(format!("/v1/sandboxes/{sandbox}/exec/stream"), empty())),
        ("GET", "/v1/machines/{id}/exec/stream", call(format!("/v1/machines/{machine}/exec/stream"), empty())),
        ("GET", "/v1/execs", None),
        ("GET", "/v1/execs/{id}", call(format!("/v1/execs/{exec}"), empty())),
        ("DELETE", "/v1/execs/{id}", call(format!("/v1/execs/{exec}"), empty())),
        ("GET", "/v1/execs/{id}/wait", call(format!("/v1/execs/{exec}/wait?timeout_ms=1"), empty())),
        ("GET", "/v1/execs/{id}/logs", call(format!("/v1/execs/{exec}/logs"), empty())),
        ("GET", "/v1/execs/{id}/attach", call(format!("/v1/execs/{exec}/attach?follow=false"), empty())),
        ("POST", "/v1/execs/{id}/signal", call(format!("/v1/execs/{exec}/signal"), json(json!({"signal": 9})))),
        ("POST", "/v1/execs/{id}/stdin", call(format!("/v1/execs/{exec}/stdin"), Body::from("x"))),
        (
            "POST",
            "/v1/execs/{id}/resize",
            call(format!("/v1/execs/{exec}/resize"), json(json!({"rows": 2, "cols": 2}))),
        ),
        ("GET", "/v1/machines", None),
        ("DELETE", "/v1/machines/{id}", call(format!("/v1/machines/{machine}"), empty())),
        ("POST", "/v1/machines/enrol", None),
        ("GET", "/v1/machines/install", None),
        ("GET", "/v1/machines/binary", None),
        ("GET", "/v1/machines/connect", None),
        // Shared by all users; changed by operators only.
        ("GET", "/v1/templates", None),
        ("POST", "/v1/templates", None),
        ("GET", "/v1/templates/{name}", None),
        ("GET", "/v1/templates/{name}/import", None),
        ("PUT", "/v1/templates/{name}", None),
        ("DELETE", "/v1/templates/{name}", None),
        // The caller's own part.
        ("GET", "/v1/audit", None),
        ("GET", "/v1/audit/verify", None),
    ];
    // Routed: they go to a place of the caller's own.
    for (method, path) in FILES {
        table.push((method, leak(format!("/v1/files{path}")), None));
    }
    for (below, template) in [(sandbox_files, "/v1/sandboxes/{id}/files"), (machine_files, "/v1/machines/{id}/files")] {
        for (method, path) in FILES {
            let body = match path {
                "/mkdir" => json(json!({"path": "d"})),
                "/move" => json(json!({"from": "a", "to": "b"})),
                "/remove" => json(json!({"path": "a"})),
                "/chmod" => json(json!({"path": "a", "permissions": "600"})),
                _ => empty(),
            };
            let query = if method == "POST" { "" } else { "?path=a" };
            table.push((method, leak(format!("{template}{path}")), call(format!("{below}{path}{query}"), body)));
        }
    }
    table
}

const FILES: [(&str, &str); 11] = [
    ("GET", ""),
    ("PUT", ""),
    ("GET", "/list"),
    ("GET", "/stat"),
    ("POST", "/mkdir"),
    ("POST", "/move"),
    ("POST", "/remove"),
    ("POST", "/chmod"),
    ("GET", "/tar"),
    ("PUT", "/tar"),
    ("GET", "/watch"),
];

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

struct Call {
    path: String,
    body: Body,
}

/// Ids of ann's things, or of things that nobody has.
struct Things {
    sandbox: String,
    snapshot: String,
    exec: String,
    key: String,
    session: String,
    machine: String,
}

impl Things {
    /// One of each, really there and ann's.
    async fn of_ann(world: &World) -> Self {
        let sandbox = world.sandbox(&world.ann).await;
        let (status, exec) = world
            .post(
                &format!("/v1/sandboxes/{sandbox}/exec"),
                &world.ann,
                json!({"argv": ["sleep", "1000"], "background": true}),
            )
            .await;
        assert_eq!(status, StatusCode::ACCEPTED, "{exec}");
        let (status, snapshot) =
            world.post(&format!("/v1/sandboxes/{sandbox}/snapshots"), &world.ann, json!({"name": "mine"})).await;
        assert_eq!(status, StatusCode::CREATED, "{snapshot}");
        let (_, key) = world.post("/v1/keys", &world.ann, json!({"name": "other"})).await;
        let (_, session) = world.post("/v1/sessions", &world.ann, json!({})).await;
        let machine = support::machine(world, "ann");
        let text = |value: &Value| value["id"].as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
        Self {
            sandbox,
            snapshot: text(&snapshot),
            exec: text(&exec),
            key: text(&key),
            session: text(&session),
            machine,
        }
    }

    /// Well-formed ids that name nothing.
    fn of_nobody() -> Self {
        let zeros = "0".repeat(32);
        Self {
            sandbox: format!("sbx_{zeros}"),
            snapshot: format!("snp_{zeros}"),
            exec: format!("exe_{zeros}"),
            key: format!("key_{zeros}"),
            session: format!("ann_1700000000_{zeros}"),
            machine: format!("mch_{zeros}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_users_thing_answers_exactly_as_one_that_does_not_exist() {
    let world = World::new().await;
    let theirs = Things::of_ann(&world).await;
    let mut listed: Vec<(String, String)> = Vec::new();
    let mut compared = 0;
    for ((method, path, theirs), (_, _, nobodys)) in table(&theirs).into_iter().zip(table(&Things::of_nobody())) {
        listed.push((method.to_owned(), path.to_owned()));
        let (Some(theirs), Some(nobodys)) = (theirs, nobodys) else { continue };
        let theirs = answer(&world, method, theirs).await;
        let nobodys = answer(&world, method, nobodys).await;
        assert_eq!(theirs, nobodys, "{method} {path}");
        assert_eq!(theirs.0, StatusCode::NOT_FOUND, "{method} {path}: {}", theirs.2);
        compared += 1;
    }
    assert!(compared > 35, "{compared}");
    let mut wanted: Vec<_> =
        operations().into_iter().map(|(method, path)| (method.as_str().to_owned(), path)).collect();
    wanted.sort();
    listed.sort();
    assert_eq!(listed, wanted, "the table and the document differ");

    // Control: the same calls by their owner do something, so the refusal means something.
    let info = world.get(&format!("/v1/execs/{}", theirs.exec), &world.ann).await;
    assert_eq!((info.0, &info.1["state"]), (StatusCode::OK, &json!("running")), "nothing of bob's calls reached it");
    let sandbox = world.get(&format!("/v1/sandboxes/{}", theirs.sandbox), &world.ann).await;
    assert_eq!(sandbox.0, StatusCode::OK);
    assert_eq!(sandbox.1["state"], "running");
    let snapshots = world.get("/v1/snapshots", &world.ann).await;
    assert_eq!(snapshots.1["items"].as_array().map(Vec::len), Some(1), "{}", snapshots.1);
    assert_eq!(snapshots.1["items"][0]["name"], "mine");
    // By its id and by its name: another user's begins with neither.
    for named in [theirs.snapshot.as_str(), "mine"] {
        let (status, answer) = world.post("/v1/sandboxes", &world.bob, json!({"from_snapshot": named})).await;
        assert_eq!((status, &answer["message"]), (StatusCode::NOT_FOUND, &json!("no such snapshot")), "{answer}");
        let (status, answer) = world.post("/v1/sandboxes", &world.ann, json!({"from_snapshot": named})).await;
        assert_eq!((status, &answer["from_snapshot"]), (StatusCode::CREATED, &json!(theirs.snapshot)), "{answer}");
    }
    let machine = world.get(&format!("/v1/machines/{}/files/stat?path=a", theirs.machine), &world.ann).await;
    assert_eq!(machine.0, StatusCode::OK, "{}", machine.1);
}

/// Bob's answer: status, headers but for the request's id, body but for it.
async fn answer(world: &World, method: &str, call: Call) -> (StatusCode, Vec<String>, String) {
    let request = Request::builder()
        .method(method)
        .uri(&call.path)
        .header("authorization", format!("Bearer {}", world.bob))
        .body(call.body)
        .unwrap();
    let response = world.send(request).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let mut headers: Vec<_> = (response.headers().iter())
        .filter(|(name, _)| *name != "x-request-id")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    headers.sort();
    let (status, body) = whole(response).await;
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.contains(&id), "{} does not name its request: {body}", call.path);
    (status, headers, body.replace(&id, "ID"))
}

fn filled(path: &str) -> String {
    let zeros = "0".repeat(32);
    let id = match path {
        path if path.starts_with("/v1/machines") => format!("mch_{zeros}"),
        path if path.starts_with("/v1/execs") => format!("exe_{zeros}"),
        path if path.starts_with("/v1/snapshots") => format!("snp_{zeros}"),
        path if path.contains("/keys") => format!("key_{zeros}"),
        path if path.starts_with("/v1/sessions") => format!("ann_1_{zeros}"),
        _ => format!("sbx_{zeros}"),
    };
    path.replace("{id}", &id).replace("{name}", "nobody")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_refuses_no_credential_and_a_bad_one() {
    let world = World::new().await;
    let open: Vec<&str> = rf_server::openapi::OPEN.iter().map(|(path, _)| *path).collect();
    let good = world.ann.clone();
    let mut last = good.clone().into_bytes();
    *last.last_mut().unwrap() ^= 1;
    let bad = [
        None,
        Some(("authorization", "Bearer".to_owned())),
        Some(("authorization", format!("Basic {good}"))),
        Some(("authorization", format!("Bearer {}", String::from_utf8(last).unwrap()))),
        Some(("authorization", format!("Bearer {}", good.to_uppercase()))),
        Some(("x-api-key", "rf_0000000000000000000000000000000000000000".to_owned())),
    ];
    for (method, path) in operations() {
        for credential in &bad {
            let mut request = Request::builder().method(method.clone()).uri(filled(&path));
            if let Some((name, value)) = credential {
                request = request.header(*name, value);
            }
            let response = world.send(request.body(Body::empty()).unwrap()).await;
            if open.contains(&path.as_str()) {
                assert_ne!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
                continue;
            }
            let (status, body) = whole(response).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {credential:?}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["code"], "unauthenticated");
            assert_eq!(body["message"], "no valid credential");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_operators_is_forbidden_to_everybody_else() {
    let world = World::new().await;
    let operators = [
        ("GET", "/v1/health/host"),
        ("GET", "/metrics"),
        ("GET", "/v1/users"),
        ("POST", "/v1/users"),
        ("GET", "/v1/users/ann"),
        ("PATCH", "/v1/users/ann"),
        ("DELETE", "/v1/users/ann"),
        ("GET", "/v1/users/ann/keys"),
        ("POST", "/v1/users/ann/keys"),
        ("DELETE", "/v1/users/ann/keys/key_00000000000000000000000000000000"),
        ("POST", "/v1/templates"),
        ("PUT", "/v1/templates/x"),
        ("GET", "/v1/templates/x/import"),
        ("DELETE", "/v1/templates/x"),
        ("GET", "/v1/audit?all=true"),
        ("GET", "/v1/audit/verify"),
    ];
    for (method, path) in operators {
        let body = match (method, path) {
            ("POST", "/v1/users") => json!({"name": "eve"}),
            ("POST", "/v1/users/ann/keys") => json!({"name": "k"}),
            ("POST", "/v1/templates") => json!({"name": "x", "image": "docker.io/library/x:1"}),
            ("PATCH", _) => json!({"disabled": true}),
            _ => Value::Null,
        };
        let (status, answer) = world.call(method.parse().unwrap(), path, &world.bob, body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {answer}");
        assert_eq!(answer["code"], "forbidden");
    }
    // Control: the operator may.
    assert_eq!(world.get("/v1/users/ann", &world.admin).await.0, StatusCode::OK);
    assert_eq!(world.get("/v1/audit/verify", &world.admin).await.1["whole"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn error_texts_are_the_committed_ones() {
    let world = World::with(|config| config.door.json_bytes_max = 2048).await;
    let ann = world.ann.clone();
    let long = "x".repeat(4096);
    let sandbox = world.sandbox(&world.ann).await;
    let calls: Vec<(&str, String, String)> = vec![
        ("GET", "/nope".into(), String::new()),
        ("GET", "/v1/nope".into(), String::new()),
        ("POST", "/v1/me".into(), String::new()),
        ("TRACE", "/v1/me".into(), String::new()),
        ("POST", "/v1/sandboxes".into(), "{".into()),
        ("POST", "/v1/sandboxes".into(), "[]".into()),
        ("POST", "/v1/sandboxes".into(), "null".into()),
        ("POST", "/v1/sandboxes".into(), r#"{"nope":1}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"limits":{"memory_bytes_max":1}}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"limits":{"memory_bytes_max":-1}}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"limits":{"memory_bytes_max":1e30}}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"lease_ms":1}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"template":"../etc"}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"template":"nope"}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"disk":"cloud"}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"accept_missing":["all"]}"#.into()),
        ("POST", "/v1/sandboxes".into(), r#"{"limits":{"memory_bytes_max":1099511627776}}"#.into()),
        ("POST", "/v1/sandboxes".into(), "\u{feff}{}".into()),
        ("POST", "/v1/sandboxes".into(), format!("{}{}", "[".repeat(600), "]".repeat(600))),
        ("POST", "/v1/sandboxes".into(), format!(r#"{{"name":"{long}"}}"#)),
        ("GET", "/v1/sandboxes?items_max=0".into(), String::new()),
        ("GET", "/v1/sandboxes?items_max=x".into(), String::new()),
        ("GET", "/v1/sandboxes?nope=1".into(), String::new()),
        ("GET", "/v1/sandboxes/nope".into(), String::new()),
        ("GET", "/v1/sandboxes/%00".into(), String::new()),
        ("GET", "/v1/sandboxes/%ff".into(), String::new()),
        ("POST", format!("/v1/sandboxes/{sandbox}/exec"), "{}".into()),
        ("POST", format!("/v1/sandboxes/{sandbox}/exec"), r#"{"argv":["a"],"shell":"b"}"#.into()),
        ("POST", format!("/v1/sandboxes/{sandbox}/exec"), r#"{"argv":["a"],"place":"sandbox"}"#.into()),
        ("POST", format!("/v1/sandboxes/{sandbox}/exec"), r#"{"argv":["\u0000"]}"#.into()),
        ("POST", "/v1/exec".into(), r#"{"argv":["a"],"place":"host"}"#.into()),
        ("POST", "/v1/exec".into(), r#"{"argv":["a"],"place":"machine"}"#.into()),
        ("POST", "/v1/run".into(), r#"{"exec":{"argv":["a"],"background":true}}"#.into()),
        ("GET", format!("/v1/sandboxes/{sandbox}/files"), String::new()),
        ("GET", format!("/v1/sandboxes/{sandbox}/files?path=%00"), String::new()),
        ("GET", format!("/v1/sandboxes/{sandbox}/files/list?path=a&depth=65"), String::new()),
        ("PUT", format!("/v1/sandboxes/{sandbox}/files?path=a&permissions=9"), String::new()),
        ("PUT", format!("/v1/sandboxes/{sandbox}/files?path=a&mode=magic"), String::new()),
        ("GET", "/v1/exec/stream".into(), String::new()),
        ("GET", "/v1/machines/connect".into(), String::new()),
        ("POST", "/v1/execs/exe_00000000000000000000000000000000/signal".into(), r#"{"signal":65}"#.into()),
        ("POST", "/v1/keys".into(), r#"{"name":""}"#.into()),
        ("POST", "/v1/keys".into(), r#"{"name":"k","scopes":["operate"]}"#.into()),
        ("POST", "/v1/keys".into(), r#"{"name":"k","scopes":[]}"#.into()),
        ("POST", "/v1/keys".into(), r#"{"name":"k","expires_at":1}"#.into()),
        ("POST", "/v1/sessions".into(), r#"{"ttl_ms":1}"#.into()),
        ("POST", "/v1/machines/enrol".into(), r#"{"ttl_ms":999999999}"#.into()),
        ("GET", "/v1/audit?place=x".into(), String::new()),
        ("GET", "/v1/audit?limit=0".into(), String::new()),
        ("GET", "/v1/users".into(), String::new()),
    ];
    let mut text = String::new();
    for (method, path, body) in calls {
        let shown = if body.len() > 120 { format!("{}... {} bytes", &body[..20], body.len()) } else { body.clone() };
        let (status, answer) = world.raw(method.parse().unwrap(), &path, &ann, Body::from(body)).await;
        let mut answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("{method} {path}"));
        let fields = answer.as_object_mut().unwrap();
        assert!(fields.remove("request_id").is_some(), "{method} {path}");
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("  {name}: {value}")).collect();
        let path = path.replace(&sandbox, "SANDBOX");
        text.push_str(&format!("{method} {path} {shown}\n{}\n{}\n\n", status.as_u16(), fields.join("\n")));
    }
    golden(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/errors.txt"), &text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_acts_for_a_user_only_on_the_record() {
    let world = World::new().await;
    let sandbox = world.sandbox(&world.ann).await;
    let as_ann = |key: &str, name: &str| {
        let request = Request::get(format!("/v1/sandboxes/{sandbox}"))
            .header("authorization", format!("Bearer {key}"))
            .header("x-ringfence-act-for", name)
            .body(Body::empty())
            .unwrap();
        async { whole(world.send(request).await).await }
    };
    assert_eq!(as_ann(&world.admin, "ann").await.0, StatusCode::OK);
    assert_eq!(as_ann(&world.admin, "nobody").await.0, StatusCode::NOT_FOUND);
    // For everybody else the name makes no difference, so that it tells nothing.
    for name in ["ann", "bob", "nobody"] {
        assert_eq!(as_ann(&world.bob, name).await.0, StatusCode::FORBIDDEN, "{name}");
    }
    // As every other list calls it.
    let one = world.get("/v1/audit?order=oldest&items_max=1", &world.ann).await.1;
    assert_eq!(one["items"].as_array().map(Vec::len), Some(1), "{one}");
    let records = world.get("/v1/audit?order=oldest&limit=1000", &world.ann).await.1;
    let acted: Vec<_> = (records["items"].as_array().unwrap().iter())
        .filter(|record| record["action"] == "act_for" || record["details"]["acted_by"] == "admin")
        .map(|record| record["action"].as_str().unwrap())
        .collect();
    assert_eq!(acted, ["act_for", "sandbox_read", "sandbox_read"], "the user sees it in their own part");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_leaves_nothing_and_is_let_in_no_more() {
    let world = World::new().await;
    world.sandbox(&world.ann).await;
    let kept = world.sandbox(&world.bob).await;
    let gone = world.raw(Method::DELETE, "/v1/users/ann", &world.admin, Body::empty()).await;
    assert_eq!(gone.0, StatusCode::NO_CONTENT, "{gone:?}");
    assert_eq!(world.warden.alive(), [kept.parse().unwrap()]);
    assert_eq!(world.get("/v1/me", &world.ann).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.get("/v1/users/ann", &world.admin).await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v1/me", &world.bob).await.0, StatusCode::OK);
}

/// Bodies cut anywhere and with bytes changed anywhere: each is answered with one of our own refusals, or does what it
/// happens to say; none is our mistake.
#[tokio::test(flavor = "multi_thread")]
async fn mangled_bodies_are_never_our_mistake() {
    let world = World::new().await;
    let sandbox = world.sandbox(&world.ann).await;
    let exec = r#"{"argv":["true","\u00e4"],"env":{"A":"b"},"cwd":"/","stdin":{"base64":"YQ=="},"timeout_ms":1000}"#;
    let bodies = [
        (Method::POST, format!("/v1/sandboxes/{sandbox}/exec"), exec),
        (Method::PATCH, format!("/v1/sandboxes/{sandbox}"), r#"{"lease_ms":60000,"limits":{"tasks_max":50}}"#),
        (Method::POST, "/v1/sessions".into(), r#"{"scopes":["read"],"ttl_ms":60000}"#),
        (Method::PUT, "/v1/me/preference".into(), r#"{"preference":"machine-else-sandbox"}"#),
        (Method::POST, format!("/v1/sandboxes/{sandbox}/files/move"), r#"{"from":"/nope/a","to":"/nope/b"}"#),
        (Method::POST, "/v1/keys".into(), r#"{"name":"k","scopes":["read"],"expires_at":99999999999999}"#),
    ];
    let mut seed: u64 = 7;
    let mut next = move |below: usize| {
        // Knuth's MMIX constants; the same bytes in every run.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let mut refused = 0;
    for (method, path, body) in bodies {
        let cut = (0..body.len()).map(|at| body.as_bytes()[..at].to_vec());
        let changed: Vec<Vec<u8>> = (0..60)
            .map(|_| {
                let mut bytes = body.as_bytes().to_vec();
                for _ in 0..=next(3) {
                    let at = next(bytes.len());
                    match next(3) {
                        0 => bytes[at] = u8::try_from(next(256)).unwrap(),
                        1 => drop(bytes.remove(at)),
                        _ => bytes.insert(at, b"{}[]\",:\\0-e\xff\0"[next(13)]),
                    }
                }
                bytes
            })
            .collect();
        for bytes in cut.chain(changed) {
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            let (status, answer) = world.raw(method.clone(), &path, &world.ann, Body::from(bytes)).await;
            assert!(status.as_u16() < 500, "{method} {path} {shown}: {status} {answer:?}");
            if status.is_client_error() {
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
                assert_eq!(fields, ["code", "hint", "message", "request_id"], "{shown}");
                refused += 1;
            }
        }
    }
    assert!(refused > 400, "{refused}");
}
