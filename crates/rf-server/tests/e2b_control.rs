//! The control plane that E2B's clients speak: who may call what, what every error looks like, what is refused by name.

mod support;

use std::collections::BTreeMap;

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use rf_server::doors::e2b::control;
use serde_json::{Value, json};
use support::{World, places::Behaviour, whole};

/// As a client sends it: the key in its own header, the body chunked.
async fn send(
    world: &World,
    method: Method,
    path: &str,
    key: Option<&str>,
    body: Value,
) -> (StatusCode, HeaderMap, Value) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    let body = match body {
        Value::Null => Body::empty(),
        Value::String(raw) => Body::from(raw),
        body => Body::from_stream(futures::stream::once(async move { Ok::<_, std::io::Error>(body.to_string()) })),
    };
    let response = world.send(request.body(body).unwrap()).await;
    let headers = response.headers().clone();
    let (status, bytes) = whole(response).await;
    let value =
        if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("every body is JSON") };
    (status, headers, value)
}

async fn get(world: &World, path: &str, key: &str) -> (StatusCode, Value) {
    let (status, _, body) = send(world, Method::GET, path, Some(key), Value::Null).await;
    (status, body)
}

async fn post(world: &World, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
    let (status, _, body) = send(world, Method::POST, path, Some(key), body).await;
    (status, body)
}

/// A key of the form that these clients insist on.
async fn key(world: &World, of: &str) -> String {
    let (status, made) = world.post("/v1/keys", of, json!({"name": "client", "e2b": true})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let key = made["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("e2b_") && key.len() == 44, "{key}");
    key
}

/// What the Python client sends for `Sandbox.create()`, and what it needs of the answer.
async fn sandbox(world: &World, key: &str, more: Value) -> Value {
    let mut body = json!({"templateID": "base", "metadata": {}, "envVars": {}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (status, made) = post(world, "/v2/sandboxes", key, body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    for name in ["templateID", "sandboxID", "clientID", "envdVersion", "envdAccessToken"] {
        assert!(made[name].is_string(), "{name}: {made}");
    }
    made
}

fn id(made: &Value) -> &str {
    made["sandboxID"].as_str().unwrap()
}

fn is_error(status: StatusCode, body: &Value) {
    assert_eq!(body["code"], status.as_u16(), "{body}");
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
}

/// A body with which a route of the table gets as far as looking for its thing.
fn body_for(path: &str) -> Value {
    match path {
        "/sandboxes" | "/v2/sandboxes" => json!({"templateID": "base"}),
        path if path.ends_with("/timeout") || path.ends_with("/connect") => json!({"timeout": 30}),
        _ => json!({}),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_credential_of_their_own_gets_anywhere() {
    let world = World::new().await;
    let (ann, bob) = (key(&world, &world.ann).await, key(&world, &world.bob).await);
    let sandbox = sandbox(&world, &ann, json!({})).await;
    let nothing = "sbx00000000000000000000000000000000";
    let table = control::table();
    assert!(table.len() > 50);
    for (method, route, _) in table {
        let at =
            |id: &str| route.replace("{id}", id).replace("{build}", "b").replace("{hash}", "h").replace("{tag}", "t");
        let (path, missing) = (at(id(&sandbox)), at(nothing));
        let body = body_for(route);
        for bad in [None, Some(""), Some("e2b_0000000000000000000000000000000000000000"), Some("nonsense")] {
            let (status, headers, body) = send(&world, method.clone(), &path, bad, body.clone()).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {route} {bad:?}: {body}");
            is_error(status, &body);
            assert!(headers.contains_key("x-request-id"));
        }
        if !route.contains("{id}") {
            continue;
        }
        // Another user's sandbox answers as one that does not exist, to the byte.
        let theirs = send(&world, method.clone(), &path, Some(&bob), body.clone()).await;
        let none = send(&world, method.clone(), &missing, Some(&bob), body).await;
        assert!(theirs.0.is_client_error() || theirs.0 == StatusCode::NOT_IMPLEMENTED, "{method} {route}: {theirs:?}");
        is_error(theirs.0, &theirs.2);
        let text =
            |answer: &(StatusCode, HeaderMap, Value), id: &str| (answer.0, answer.2.to_string().replace(id, "ID"));
        assert_eq!(text(&theirs, id(&sandbox)), text(&none, nothing), "{method} {route}");
    }
    let (status, found) = get(&world, &format!("/sandboxes/{}", id(&sandbox)), &ann).await;
    assert_eq!((status, &found["state"]), (StatusCode::OK, &json!("running")), "nothing of it was touched");
    assert_eq!(get(&world, "/v2/sandboxes", &bob).await.1, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_json_of_a_number_and_a_text() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let long = format!("{{\"templateID\":\"{}\"}}", "x".repeat(9 << 20));
    for (method, path, body, expected) in [
        (Method::GET, "/sandboxes/nothing/at/all", Value::Null, 404),
        (Method::GET, "/v2/nothing", Value::Null, 404),
        (Method::GET, "/v3/nothing", Value::Null, 404),
        (Method::GET, "/nodes", Value::Null, 404),
        (Method::PATCH, "/sandboxes", Value::Null, 405),
        (Method::PUT, "/v2/sandboxes", Value::Null, 405),
        (Method::POST, "/sandboxes", Value::String("{".into()), 400),
        (Method::POST, "/sandboxes", Value::String("[]".into()), 400),
        (Method::POST, "/v2/sandboxes", json!({}), 400),
        (Method::POST, "/v2/sandboxes", json!({"templateID": "base", "denyAll": true}), 400),
        (Method::POST, "/v2/sandboxes", json!({"templateID": "base", "timeout": 1 << 30}), 400),
        (Method::POST, "/v2/sandboxes", json!({"templateID": "no-such-template"}), 404),
        (Method::POST, "/v2/sandboxes", json!({"templateID": "No Template!"}), 404),
        (Method::POST, "/v2/sandboxes", json!({"templateID": "base", "envVars": {"A=B": "x"}}), 400),
        (Method::POST, "/v2/sandboxes", Value::String(long), 413),
        (Method::GET, "/sandboxes/nonexistingsandbox", Value::Null, 404),
        (Method::GET, "/v2/sandboxes?limit=0", Value::Null, 400),
        (Method::GET, "/v2/sandboxes?nextToken=x", Value::Null, 400),
        (Method::GET, "/templates/no-such-template", Value::Null, 404),
        (Method::POST, "/v3/templates", json!({"name": "mine"}), 501),
        (Method::GET, "/volumes", Value::Null, 501),
        (Method::GET, "/secrets", Value::Null, 501),
    ] {
        let (status, headers, body) = send(&world, method.clone(), path, Some(&ann), body).await;
        assert_eq!(status.as_u16(), expected, "{method} {path}: {body}");
        is_error(status, &body);
        assert!(headers.contains_key("x-request-id"), "{method} {path}");
        assert_eq!(headers["access-control-allow-origin"], "*", "{method} {path}");
    }
    // What is not of this door is in the other interface's words.
    let (status, _, body) = send(&world, Method::GET, "/v1/nothing", Some(&ann), Value::Null).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_not_held_is_refused_by_its_name() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    for (more, name) in [
        (json!({"network": {"allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"]}}), "network.allowOut"),
        (json!({"network": {"rules": {"a.example": [{"transform": {"headers": {"a": "b"}}}]}}}), "network.rules"),
        (json!({"network": {"egressProxy": {"address": "a:1", "password": "hush"}}}), "network.egressProxy"),
        (json!({"network": {"dnsServers": ["1.1.1.1"]}}), "network.dnsServers"),
        (json!({"network": {"denyIn": ["1.1.1.1"]}}), "denyIn"),
        (json!({"iam": {"tokens": {"aws": {"audience": "a", "tokenType": "JWT-SVID"}}}}), "iam"),
        (json!({"volumeMounts": [{"name": "v", "path": "/v"}]}), "volumeMounts"),
    ] {
        for path in ["/sandboxes", "/v2/sandboxes"] {
            let mut body = json!({"templateID": "base"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let (status, answer) = post(&world, path, &ann, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{more}: {answer}");
            let message = answer["message"].as_str().unwrap();
            assert!(message.contains(name) && !message.contains("hush"), "{more}: {message}");
        }
    }
    assert_eq!(get(&world, "/v2/sandboxes", &ann).await.1, json!([]), "nothing was made");

    let held =
        json!({"allow_internet_access": false, "network": {"denyOut": ["8.8.8.8"], "allowPublicTraffic": false}});
    let made = sandbox(&world, &ann, held).await;
    assert!(made["trafficAccessToken"].is_string());
    let path = format!("/sandboxes/{}", id(&made));
    let (_, detail) = get(&world, &path, &ann).await;
    assert_eq!(detail["allowInternetAccess"], false);
    assert_eq!(detail["network"], json!({"denyOut": ["8.8.8.8"], "allowPublicTraffic": false}));
    for (update, expected) in [
        (json!({}), StatusCode::NO_CONTENT),
        (json!({"denyOut": ["8.8.8.8"]}), StatusCode::NO_CONTENT),
        (json!({"allowOut": ["8.8.8.8"]}), StatusCode::BAD_REQUEST),
        (json!({"allow_internet_access": true}), StatusCode::BAD_REQUEST),
    ] {
        let answer = send(&world, Method::PUT, &format!("{path}/network"), Some(&ann), update.clone()).await;
        assert_eq!(answer.0, expected, "{update}: {}", answer.2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_does_without_a_token_only_where_the_operator_allows_it() {
    let ask = json!({"templateID": "base", "secure": false});
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let (status, refused) = post(&world, "/sandboxes", &ann, ask.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["message"].as_str().unwrap().contains("secure"), "{refused}");
    let world = World::with(|config| config.e2b.allow_unsecured = true).await;
    let ann = key(&world, &world.ann).await;
    let (status, made) = post(&world, "/sandboxes", &ann, ask).await;
    assert_eq!((status, made.get("envdAccessToken")), (StatusCode::CREATED, None));
    assert!(sandbox(&world, &ann, json!({})).await["envdAccessToken"].is_string(), "only the one that asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_made_seen_extended_and_ended() {
    let world = World::with(|config| config.e2b.domain = Some("box.example.com".into())).await;
    let ann = key(&world, &world.ann).await;
    // As older clients send it.
    let old = json!({"templateID": "base", "timeout": 60, "secure": true, "allow_internet_access": true,
        "autoPause": false, "metadata": {"a": "b c"}, "envVars": {"A": "1"}});
    let (status, made) = post(&world, "/sandboxes", &ann, old).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!((&made["domain"], &made["templateID"]), (&json!("box.example.com"), &json!("base")));
    assert!(made["trafficAccessToken"].is_null() && made["envdVersion"] == rf_e2b::ENVD_VERSION);
    assert!(id(&made).bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{made}");
    let path = format!("/sandboxes/{}", id(&made));
    let (_, detail) = get(&world, &path, &ann).await;
    assert_eq!(detail["metadata"], json!({"a": "b c"}));
    assert_eq!(
        (&detail["cpuCount"], &detail["memoryMB"], &detail["diskSizeMB"]),
        (&json!(2), &json!(512), &json!(256))
    );
    assert_eq!(detail["lifecycle"], json!({"autoResume": false, "onTimeout": "kill"}));
    assert_eq!(detail["envdAccessToken"], made["envdAccessToken"], "the same for as long as it lives");

    // `connect` never ends it sooner; `timeout` does.
    let end = |detail: &Value| detail["endAt"].as_str().unwrap().to_owned();
    assert_eq!(post(&world, &format!("{path}/timeout"), &ann, json!({"timeout": 60})).await.0, StatusCode::NO_CONTENT);
    let detail = get(&world, &path, &ann).await.1;
    let first = end(&detail);
    for (version, body) in [("", json!({"timeout": 5})), ("/v2", json!({"timeout": 5}))] {
        let (status, connected) = post(&world, &format!("{version}{path}/connect"), &ann, body).await;
        assert_eq!((status, &connected["envdAccessToken"]), (StatusCode::OK, &made["envdAccessToken"]));
    }
    assert_eq!(end(&get(&world, &path, &ann).await.1), first);
    assert_eq!(post(&world, &format!("/v2{path}/connect"), &ann, json!({})).await.0, StatusCode::OK);
    let longer = end(&get(&world, &path, &ann).await.1);
    assert!(longer > first, "300 s: {first} {longer}");
    assert_eq!(
        post(&world, &format!("{path}/refreshes"), &ann, json!({"duration": 1})).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(end(&get(&world, &path, &ann).await.1), longer);
    assert_eq!(post(&world, &format!("{path}/timeout"), &ann, json!({"timeout": 10})).await.0, StatusCode::NO_CONTENT);
    assert!(end(&get(&world, &path, &ann).await.1) < first);
    assert_eq!(post(&world, &format!("{path}/connect"), &ann, json!({})).await.0, StatusCode::BAD_REQUEST);

    assert_eq!(send(&world, Method::DELETE, &path, Some(&ann), Value::Null).await.0, StatusCode::NO_CONTENT);
    for (method, path) in [(Method::DELETE, path.clone()), (Method::GET, path.clone())] {
        assert_eq!(send(&world, method, &path, Some(&ann), Value::Null).await.0, StatusCode::NOT_FOUND);
    }
    assert!(world.warden.alive().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged_over_the_wire() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let mut made = Vec::new();
    for n in ["one", "two", "three"] {
        made.push(id(&sandbox(&world, &ann, json!({"metadata": {"n": n, "all": "a b&c=d"}})).await).to_owned());
    }
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|item| item["sandboxID"].as_str().unwrap().to_owned()).collect()
    };
    // Encoded as the client does, down to the query.
    let path = "/v2/sandboxes?limit=2&metadata=all%3Da%252520b%252526c%25253Dd&state=running%2Cpaused";
    let (status, headers, first) = send(&world, Method::GET, path, Some(&ann), Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    assert_eq!(names(&first), [made[2].clone(), made[1].clone()], "the newest first");
    assert_eq!(headers["x-total-running"], "3");
    let next = headers["x-next-token"].to_str().unwrap();
    let (_, headers, last) =
        send(&world, Method::GET, &format!("{path}&nextToken={next}"), Some(&ann), Value::Null).await;
    assert_eq!(names(&last), [made[0].clone()]);
    assert!(!headers.contains_key("x-next-token"));
    let (_, found) = get(&world, "/sandboxes?metadata=n%3Dtwo", &ann).await;
    assert_eq!(names(&found), [made[1].clone()]);
    assert_eq!(get(&world, "/v2/sandboxes?metadata=n%3Dfour", &ann).await.1, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_makes_one_sandbox() {
    let world = World::new().await;
    let (ann, bob) = (key(&world, &world.ann).await, key(&world, &world.bob).await);
    let make = async |key: &str, name: &str, body: Value| {
        let request = Request::post("/v2/sandboxes").header("x-api-key", key).header("idempotency-key", name);
        let (status, bytes) = whole(world.send(request.body(Body::from(body.to_string())).unwrap()).await).await;
        (status.as_u16(), serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let body = json!({"templateID": "base"});
    let first = make(&ann, "again-1", body.clone()).await;
    assert_eq!(first.0, 201);
    assert_eq!(make(&ann, "again-1", body.clone()).await, first);
    assert_eq!(make(&ann, "again-1", json!({"templateID": "host"})).await.0, 409);
    assert_eq!(make(&ann, "AGAIN", body.clone()).await.0, 400);
    assert_ne!(make(&bob, "again-1", body.clone()).await.1["sandboxID"], first.1["sandboxID"]);
    assert_ne!(make(&ann, "again-2", body).await.1["sandboxID"], first.1["sandboxID"]);
    assert_eq!(world.warden.alive().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_reads_is_told_no_token() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let made = sandbox(&world, &ann, json!({})).await;
    let ask = json!({"name": "reader", "e2b": true, "scopes": ["read"]});
    let reader = world.post("/v1/keys", &world.ann, ask).await.1["key"].as_str().unwrap().to_owned();
    let path = format!("/sandboxes/{}", id(&made));
    let (status, detail) = get(&world, &path, &reader).await;
    assert_eq!((status, detail.get("envdAccessToken")), (StatusCode::OK, None), "it would be a way to run commands");
    assert!(get(&world, &path, &ann).await.1["envdAccessToken"].is_string());
    for (path, body) in [
        (format!("{path}/connect"), json!({"timeout": 1})),
        (format!("/v2{path}/connect"), json!({})),
        (format!("{path}/timeout"), json!({"timeout": 1})),
        ("/v2/sandboxes".to_owned(), json!({"templateID": "base"})),
    ] {
        assert_eq!(post(&world, &path, &reader, body).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(get(&world, &format!("{path}/logs"), &reader).await.0, StatusCode::FORBIDDEN, "the ledger's scope");

    // Nor is it told one by a request that made a sandbox when somebody who may run things came with it.
    let again = async |key: &str| {
        let request = Request::post("/v2/sandboxes").header("x-api-key", key).header("idempotency-key", "again");
        let body = Body::from(json!({"templateID": "base", "network": {"allowPublicTraffic": false}}).to_string());
        let (status, bytes) = whole(world.send(request.body(body).unwrap()).await).await;
        (status, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let (_, first) = again(&ann).await;
    assert!(first["envdAccessToken"].is_string() && first["trafficAccessToken"].is_string());
    let (status, told) = again(&reader).await;
    assert_eq!((status, &told["sandboxID"]), (StatusCode::CREATED, &first["sandboxID"]));
    assert!(told["envdAccessToken"].is_null() && told["trafficAccessToken"].is_null(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_reached_is_not_tried_again() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    // The standard limits have CPU for ten of these.
    for _ in 0..10 {
        sandbox(&world, &ann, json!({})).await;
    }
    let ask = json!({"templateID": "base"});
    let (status, headers, body) = send(&world, Method::POST, "/v2/sandboxes", Some(&ann), ask).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    assert_eq!(headers["should-retry"], "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_row_at_once_and_none_of_another_time() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let made = sandbox(&world, &ann, json!({})).await;
    let path = format!("/sandboxes/{}/metrics", id(&made));
    let (status, rows) = get(&world, &path, &ann).await;
    assert_eq!(status, StatusCode::OK, "{rows}");
    let row = rows[0].as_object().unwrap();
    for name in [
        "timestamp",
        "timestampUnix",
        "cpuCount",
        "cpuUsedPct",
        "memUsed",
        "memTotal",
        "memCache",
        "diskUsed",
        "diskTotal",
    ] {
        assert!(row.contains_key(name), "{name}: {rows}");
    }
    assert_eq!((&row["cpuCount"], &row["memTotal"]), (&json!(2), &json!(512 << 20)));
    assert_eq!(get(&world, &path, &ann).await.1.as_array().unwrap().len(), 1, "not sampled for each question");
    assert_eq!(get(&world, &format!("{path}?start=1&end=2"), &ann).await.1, json!([]));
    assert_eq!(get(&world, &format!("{path}?start=2&end=1"), &ann).await.0, StatusCode::BAD_REQUEST);
    let (_, many) = get(&world, &format!("/sandboxes/metrics?sandbox_ids={},sbx0", id(&made)), &ann).await;
    assert_eq!(many["sandboxes"].as_object().unwrap().keys().collect::<Vec<_>>(), [id(&made)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_tells_what_was_done_and_no_secret() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let made = sandbox(&world, &ann, json!({"envVars": {"TOKEN": "hush-env"}})).await;
    let ours = rf_e2b::id::sandbox_of(id(&made)).unwrap();
    let run = json!({"argv": ["sh", "-c", "exit 3", "hush-arg"]});
    let (status, ran) = world.post(&format!("/v1/sandboxes/{ours}/exec"), &world.ann, run).await;
    assert_eq!(status, StatusCode::OK, "{ran}");
    let path = format!("/sandboxes/{}/logs", id(&made));
    let (status, logs) = get(&world, &path, &ann).await;
    assert_eq!(status, StatusCode::OK, "{logs}");
    assert!(!logs.to_string().contains("hush"), "{logs}");
    let line = |line: &Value| serde_json::from_str::<Value>(line["line"].as_str().unwrap()).unwrap();
    let lines: Vec<Value> = logs["logs"].as_array().unwrap().iter().map(line).collect();
    // The command line needs each to be JSON with these.
    assert!(lines.iter().all(|line| line["level"].is_string() && line["logger"].is_string()), "{lines:?}");
    let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["sandbox create ended", "exec began", "exec ended with exit code 3"]);
    let v2 = |query: &str| format!("/v2/sandboxes/{}/logs?{query}", id(&made));
    let messages = async |query: &str| -> Vec<String> {
        let (status, logs) = get(&world, &v2(query), &ann).await;
        assert_eq!(status, StatusCode::OK, "{query}: {logs}");
        logs["logs"].as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(messages("level=info&search=exec").await, ["exec ended with exit code 3"]);
    assert_eq!(messages("direction=backward&limit=1").await, ["exec ended with exit code 3"]);
    assert_eq!(messages("cursor=1&direction=backward").await, Vec::<String>::new());
    assert_eq!(messages("cursor=99999999999999").await, Vec::<String>::new());
    for wrong in ["limit=1001", "direction=up", "level=loud"] {
        assert_eq!(get(&world, &v2(wrong), &ann).await.0, StatusCode::BAD_REQUEST, "{wrong}");
    }
    // It is there when the sandbox is not any more.
    assert_eq!(
        send(&world, Method::DELETE, &format!("/sandboxes/{}", id(&made)), Some(&ann), Value::Null).await.0,
        204
    );
    assert_eq!(get(&world, &path, &ann).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_are_the_operators() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let (status, list) = get(&world, "/templates?teamID=x", &ann).await;
    assert_eq!(status, StatusCode::OK, "{list}");
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|item| item["templateID"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "host"]);
    for item in list.as_array().unwrap() {
        let build = item["buildID"].as_str().unwrap();
        let lengths: Vec<usize> = build.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{build}");
    }
    let (_, headers, page) = send(&world, Method::GET, "/v2/templates?limit=1", Some(&ann), Value::Null).await;
    assert_eq!((page[0]["templateID"].as_str(), headers["x-next-token"].to_str().ok()), (Some("base"), Some("base")));
    let next = send(&world, Method::GET, "/v2/templates?limit=1&nextToken=base", Some(&ann), Value::Null).await;
    assert!(next.2[0]["templateID"] == "host" && !next.1.contains_key("x-next-token"));
    for name in ["base", "BASE", "base:default"] {
        assert_eq!(get(&world, &format!("/templates/aliases/{name}"), &ann).await.1["templateID"], "base");
        assert_eq!(sandbox(&world, &ann, json!({"templateID": name})).await["templateID"], "base");
    }
    assert_eq!(get(&world, "/templates/base", &ann).await.1["builds"].as_array().unwrap().len(), 1);
    let (status, body) = get(&world, "/templates/aliases/other", &ann).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["message"].as_str().unwrap().contains("`other`"));
    let (status, teams) = get(&world, "/teams", &ann).await;
    assert_eq!((status, &teams[0]["name"], &teams[0]["isDefault"]), (StatusCode::OK, &json!("ann"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_in_the_ledger_and_tokens_are_not() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let made =
        sandbox(&world, &ann, json!({"envVars": {"TOKEN": "hush-env"}, "network": {"allowPublicTraffic": false}}))
            .await;
    get(&world, &format!("/sandboxes/{}", id(&made)), &ann).await;
    post(&world, &format!("/sandboxes/{}/timeout", id(&made)), &ann, json!({"timeout": 30})).await;
    let mut counts = BTreeMap::new();
    for record in world.ledger().await {
        if record["username"] == "ann" && record["kind"] == "result" {
            *counts.entry(record["action"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
    }
    for action in ["sandbox_create", "sandbox_read", "sandbox_update"] {
        assert_eq!(counts.get(action), Some(&1), "{counts:?}");
    }
    let bytes = String::from_utf8_lossy(&world.ledger_bytes()).into_owned();
    for secret in [&made["envdAccessToken"], &made["trafficAccessToken"], &json!("hush-env"), &json!(ann)] {
        assert!(!bytes.contains(secret.as_str().unwrap()));
    }
}

/// What a state is called in a detail, waited for: a pause at the end of a lease is the warden's news.
async fn state_is(world: &World, path: &str, key: &str, state: &str) -> Value {
    for _ in 0..500 {
        let (_, detail) = get(world, path, key).await;
        if detail["state"] == state {
            return detail;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("`{path}` did not become {state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_paused_and_connecting_wakes_it() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let made = sandbox(&world, &ann, json!({"autoPause": true, "autoResume": {"enabled": true}})).await;
    let path = format!("/sandboxes/{}", id(&made));
    let detail = get(&world, &path, &ann).await.1;
    assert_eq!(detail["lifecycle"], json!({"autoResume": true, "onTimeout": "pause"}));
    for (body, mode) in [(Value::Null, "full"), (json!({}), "full"), (json!({"memory": false}), "filesystem")] {
        let paused = send(&world, Method::POST, &format!("{path}/pause"), Some(&ann), body.clone()).await;
        assert_eq!(paused.0, StatusCode::NO_CONTENT, "{body}: {}", paused.2);
        let detail = state_is(&world, &path, &ann, "paused").await;
        assert_eq!(detail["pauseMode"], mode);
        assert_eq!(post(&world, &format!("{path}/pause"), &ann, json!({})).await.0, StatusCode::CONFLICT);
        for (call, ask) in
            [("timeout", json!({"timeout": 9})), ("refreshes", json!({})), ("refreshes", json!({"duration": 900}))]
        {
            let answer = post(&world, &format!("{path}/{call}"), &ann, ask).await;
            assert_eq!(answer.0, StatusCode::CONFLICT, "{call} has nothing to lengthen: {}", answer.1);
        }
        let (_, listed) = get(&world, "/v2/sandboxes?state=paused", &ann).await;
        assert_eq!(listed[0]["sandboxID"], made["sandboxID"]);
        assert_eq!(get(&world, "/sandboxes", &ann).await.1, json!([]), "the first version lists those that run");
        let (status, woken) = post(&world, &format!("/v2{path}/connect"), &ann, json!({})).await;
        assert_eq!((status, &woken["envdAccessToken"]), (StatusCode::CREATED, &made["envdAccessToken"]), "{woken}");
        assert_eq!(state_is(&world, &path, &ann, "running").await.get("pauseMode"), None);
        assert_eq!(post(&world, &format!("/v2{path}/connect"), &ann, json!({})).await.0, StatusCode::OK);
    }
    assert_eq!(post(&world, &format!("{path}/resume"), &ann, json!({})).await.0, StatusCode::CONFLICT, "it runs");
    post(&world, &format!("{path}/pause"), &ann, json!({"requireHealthyGuest": true})).await;
    assert_eq!(post(&world, &format!("{path}/resume"), &ann, json!({"timeout": 30})).await.0, StatusCode::CREATED);
    post(&world, &format!("{path}/pause"), &ann, json!({})).await;
    assert_eq!(send(&world, Method::DELETE, &path, Some(&ann), Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(get(&world, &path, &ann).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_does_not_answer_is_not_said_to_be_paused_already() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    world.warden.behave(Behaviour::Silent);
    let made = sandbox(&world, &ann, json!({})).await;
    let path = format!("/sandboxes/{}/pause", id(&made));
    let (status, headers, body) =
        send(&world, Method::POST, &path, Some(&ann), json!({"requireHealthyGuest": true})).await;
    assert_eq!(
        (status, &headers["should-retry"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"false".parse().unwrap()),
        "{body}"
    );
    assert!(body["message"].as_str().unwrap().contains("not paused"), "{body}");
    assert!(world.warden.frozen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_have_tokens_of_their_own_and_no_environment() {
    let world = World::new().await;
    let ann = key(&world, &world.ann).await;
    let made = sandbox(&world, &ann, json!({"envVars": {"TOKEN": "hush"}, "metadata": {"a": "b"}})).await;
    let path = format!("/sandboxes/{}/fork", id(&made));
    let (status, forks) = post(&world, &path, &ann, json!({"count": 2, "timeout": 60})).await;
    assert_eq!(status, StatusCode::CREATED, "{forks}");
    let mut tokens = vec![made["envdAccessToken"].to_string()];
    for fork in forks.as_array().unwrap() {
        assert!(fork.get("error").is_none(), "{fork}");
        let fork = &fork["sandbox"];
        tokens.push(fork["envdAccessToken"].to_string());
        let (_, detail) = get(&world, &format!("/sandboxes/{}", id(fork)), &ann).await;
        assert_eq!((&detail["metadata"], &detail["templateID"]), (&json!({"a": "b"}), &json!("base")));
        let ours = rf_e2b::id::sandbox_of(id(fork)).unwrap();
        let (_, ours) = world.get(&format!("/v1/sandboxes/{ours}"), &world.ann).await;
        assert_eq!(ours["env_names"], json!([]), "the parent's secrets are the parent's");
    }
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
    for wrong in [json!({"count": 0}), json!({"count": 21})] {
        assert_eq!(post(&world, &path, &ann, wrong).await.0, StatusCode::BAD_REQUEST);
    }
    // Ten of these have room: seven more are made, the rest say why not.
    let (status, forks) = post(&world, &path, &ann, json!({"count": 9})).await;
    assert_eq!(status, StatusCode::CREATED);
    let failed: Vec<_> = forks.as_array().unwrap().iter().filter_map(|fork| fork.get("error")).collect();
    assert_eq!((failed.len(), failed[0]["code"].as_u64()), (2, Some(429)), "{forks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_made_named_listed_used_and_removed() {
    let world = World::new().await;
    let (ann, bob) = (key(&world, &world.ann).await, key(&world, &world.bob).await);
    let made = sandbox(&world, &ann, json!({})).await;
    let path = format!("/sandboxes/{}/snapshots", id(&made));
    let (status, first) = post(&world, &path, &ann, json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{first}");
    let (_, named) = post(&world, &path, &ann, json!({"name": "snap-1"})).await;
    assert_eq!(named["names"], json!(["snap-1"]));
    for (ask, expected) in [
        (json!({"memory": true}), StatusCode::BAD_REQUEST),
        (json!({"name": "base"}), StatusCode::CONFLICT),
        (json!({"name": first["snapshotID"]}), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(post(&world, &path, &ann, ask.clone()).await.0, expected, "{ask}");
    }
    let ids = |list: Value| -> Vec<Value> {
        list.as_array().unwrap().iter().map(|item| item["snapshotID"].clone()).collect()
    };
    let (one, two) = (first["snapshotID"].clone(), named["snapshotID"].clone());
    for (query, expected) in [
        (String::new(), vec![two.clone(), one.clone()]),
        (format!("?sandboxID={}", id(&made)), vec![two.clone(), one.clone()]),
        ("?sandboxID=nonexisting".to_owned(), vec![]),
        ("?name=snap-1".to_owned(), vec![two.clone()]),
        ("?name=snap-1%3Adefault".to_owned(), vec![two.clone()]),
        ("?name=snap-2".to_owned(), vec![]),
        (format!("?name={}", one.as_str().unwrap()), vec![one.clone()]),
        (format!("?name={}&sandboxID={}", one.as_str().unwrap(), id(&made)), vec![one.clone()]),
        (format!("?name={}&sandboxID=sbx00000000000000000000000000000007", one.as_str().unwrap()), vec![]),
    ] {
        assert_eq!(ids(get(&world, &format!("/snapshots{query}"), &ann).await.1), expected, "{query}");
        assert_eq!(get(&world, &format!("/snapshots{query}"), &bob).await.1, json!([]), "{query}");
    }
    let (_, headers, page) = send(&world, Method::GET, "/snapshots?limit=1", Some(&ann), Value::Null).await;
    assert_eq!(ids(page), std::slice::from_ref(&two));
    let next = format!("/snapshots?limit=1&nextToken={}", headers["x-next-token"].to_str().unwrap());
    assert_eq!(ids(get(&world, &next, &ann).await.1), std::slice::from_ref(&one));

    for name in [one.as_str().unwrap(), "snap-1", "snap-1:default", &format!("{}:default", two.as_str().unwrap())] {
        let from = sandbox(&world, &ann, json!({"templateID": name})).await;
        let expected = if name.contains(one.as_str().unwrap()) { &one } else { &two };
        assert_eq!(&from["templateID"], expected, "{name}");
        let ask = json!({"templateID": name});
        assert_eq!(post(&world, "/v2/sandboxes", &bob, ask).await.0, StatusCode::NOT_FOUND, "{name}: ann's");
    }
    let remove = async |name: &str, key: &str| {
        let path = format!("/templates/{}", name.replace(':', "%3A"));
        send(&world, Method::DELETE, &path, Some(key), Value::Null).await.0
    };
    for name in [one.as_str().unwrap(), "snap-1"] {
        assert_eq!(remove(name, &bob).await, StatusCode::NOT_FOUND, "{name}");
        assert_eq!(remove(name, &ann).await, StatusCode::NO_CONTENT, "{name}");
        assert_eq!(remove(name, &ann).await, StatusCode::NOT_FOUND, "{name}");
    }
    assert_eq!(remove("base", &ann).await, StatusCode::FORBIDDEN);
    assert_eq!(get(&world, "/snapshots", &ann).await.1, json!([]));
}
