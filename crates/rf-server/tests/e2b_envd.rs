//! Commands of a sandbox as E2B's clients ask for them: who is let in, and every way of framing a call over Connect.

mod support;

use std::io::Write as _;

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use rf_types::SandboxId;
use serde_json::{Value, json};
use support::{World, whole};

const JSON: &str = "application/json";
const STREAM: &str = "application/connect+json";

/// A sandbox and its token.
struct Sandbox {
    id: String,
    token: String,
}

async fn sandbox(world: &World, key: &str) -> Sandbox {
    let id: SandboxId = world.sandbox(key).await.parse().unwrap();
    Sandbox { id: rf_e2b::id::sandbox_text(id), token: world.app.e2b().tokens().envd_token(id) }
}

fn request(at: &Sandbox, method: Method, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("e2b-sandbox-id", &at.id)
        .header("e2b-sandbox-port", "49983")
}

/// Sends a call and reads all of its answer.
async fn call(
    world: &World,
    at: &Sandbox,
    method: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = request(at, Method::POST, method).header("x-access-token", &at.token);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = world.send(request.body(body.into()).unwrap()).await;
    let headers = response.headers().clone();
    let (status, bytes) = whole(response).await;
    (status, headers, bytes.to_vec())
}

/// A unary call in JSON.
async fn unary(world: &World, at: &Sandbox, method: &str, body: Value) -> (StatusCode, Value) {
    let (status, _, bytes) = call(world, at, method, &[("content-type", JSON)], body.to_string()).await;
    (status, serde_json::from_slice(&bytes).unwrap())
}

/// One frame: flags, length, message.
fn frame(flags: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

/// The frames of an answer; the last is the end.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        frames.push((bytes[0], bytes[5..5 + length].to_vec()));
        bytes = &bytes[5 + length..];
    }
    assert_eq!(frames.last().expect("an end").0, 2, "the last frame is the end");
    assert!(frames[..frames.len() - 1].iter().all(|(flags, _)| *flags == 0), "nothing is compressed: {frames:?}");
    frames
}

fn events(bytes: &[u8]) -> Vec<Value> {
    frames(bytes).into_iter().map(|(_, message)| serde_json::from_slice(&message).unwrap()).collect()
}

fn shell(line: &str) -> Value {
    json!({"process": {"cmd": "/bin/sh", "args": ["-c", line]}, "stdin": false})
}

/// Runs a line to its end: all the events, the end of the stream last.
async fn run(world: &World, at: &Sandbox, start: Value, headers: &[(&str, &str)]) -> Vec<Value> {
    let body = frame(0, start.to_string().as_bytes());
    let all = [&[("content-type", STREAM), ("connect-protocol-version", "1")], headers].concat();
    let (status, got, bytes) = call(world, at, "/process.Process/Start", &all, body).await;
    assert_eq!((status, got["content-type"].to_str().unwrap()), (StatusCode::OK, STREAM));
    events(&bytes)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_told_from_its_start_to_its_end() {
    let world = World::new().await;
    let at = sandbox(&world, &world.ann).await;
    let said = run(&world, &at, shell("printf out; printf err >&2; exit 3"), &[]).await;
    assert!(said[0]["event"]["start"]["pid"].as_u64().unwrap() > 0);
    let text = |of: &str| -> Vec<u8> {
        let parts = said.iter().filter_map(|event| event["event"]["data"][of].as_str());
        parts.flat_map(|part| STANDARD.decode(part).unwrap()).collect()
    };
    assert_eq!((text("stdout"), text("stderr")), (b"out".to_vec(), b"err".to_vec()));
    let end = &said[said.len() - 2]["event"]["end"];
    assert_eq!(*end, json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"}));
    assert_eq!(said[said.len() - 1], json!({}));
    // It is in the ledger: judged, done, ended.
    let records = world.ledger().await;
    let exec: Vec<_> = records.iter().filter(|record| record["action"] == "exec").collect();
    assert_eq!(exec.len(), 2, "{exec:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_without_its_stream_and_ends_at_its_deadline() {
    let world = World::new().await;
    let at = sandbox(&world, &world.ann).await;
    let said = run(&world, &at, shell("echo up; sleep 1000"), &[("connect-timeout-ms", "400")]).await;
    assert_eq!(said.last().unwrap()["error"]["code"], "deadline_exceeded", "{said:?}");
    // Left alone, it lives until it is killed.
    let start = request(&at, Method::POST, "/process.Process/Start")
        .header("x-access-token", &at.token)
        .header("content-type", STREAM)
        .body(Body::from(frame(0, shell("sleep 1000").to_string().as_bytes())))
        .unwrap();
    let response = world.send(start).await;
    let mut body = response.into_body();
    let first = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap().into_data().unwrap();
    let pid = serde_json::from_slice::<Value>(&first[5..]).unwrap()["event"]["start"]["pid"].clone();
    drop(body);
    let mut listed = unary(&world, &at, "/process.Process/List", json!({})).await.1;
    while listed["processes"].as_array().map(Vec::len) != Some(1) {
        // The one whose time was up may still be on its way out.
        listed = unary(&world, &at, "/process.Process/List", json!({})).await.1;
    }
    assert_eq!(listed["processes"][0]["pid"], pid);
    assert_eq!(listed["processes"][0]["config"]["cmd"], "/bin/sh");
    let kill = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(unary(&world, &at, "/process.Process/SendSignal", kill.clone()).await, (StatusCode::OK, json!({})));
    let (status, again) = unary(&world, &at, "/process.Process/SendSignal", kill).await;
    assert_eq!((status, &again["code"]), (StatusCode::NOT_FOUND, &json!("not_found")), "{again}");
    // Its end is told to who comes late.
    let connect = frame(0, json!({"process": {"pid": pid}}).to_string().as_bytes());
    let (_, _, bytes) = call(&world, &at, "/process.Process/Connect", &[("content-type", STREAM)], connect).await;
    let said = events(&bytes);
    assert_eq!(said[1]["event"]["end"]["status"], "signal: killed", "{said:?}");
    assert_eq!(said[1]["event"]["end"]["exitCode"], -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_in_whole_and_to_the_right_kind_alone() {
    let world = World::new().await;
    let at = sandbox(&world, &world.ann).await;
    let cat = json!({"process": {"cmd": "cat"}, "tag": "cat"});
    let starting = run(&world, &at, cat, &[]);
    let feeding = async {
        let to = json!({"tag": "cat"});
        loop {
            let list = unary(&world, &at, "/process.Process/List", json!({})).await.1;
            if list["processes"][0]["tag"] == "cat" {
                break;
            }
        }
        let input = |kind: &str, text: &str| json!({"process": to, "input": {kind: STANDARD.encode(text)}});
        let sent = unary(&world, &at, "/process.Process/SendInput", input("stdin", "one ")).await;
        assert_eq!(sent, (StatusCode::OK, json!({})));
        let (status, wrong) = unary(&world, &at, "/process.Process/SendInput", input("pty", "x")).await;
        assert_eq!((status, &wrong["code"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("internal")));
        let size = json!({"process": to, "pty": {"size": {"cols": 1, "rows": 1}}});
        assert_eq!(unary(&world, &at, "/process.Process/Update", size).await.1["code"], "internal");
        let stream = [
            json!({"start": {"process": to}}),
            json!({"data": {"input": {"stdin": STANDARD.encode("two ")}}}),
            json!({"keepalive": {}}),
            json!({"data": {"input": {"stdin": STANDARD.encode("three")}}}),
        ];
        let body: Vec<u8> = stream.iter().flat_map(|message| frame(0, message.to_string().as_bytes())).collect();
        let (status, headers, bytes) =
            call(&world, &at, "/process.Process/StreamInput", &[("content-type", STREAM)], body).await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, STREAM));
        assert_eq!(events(&bytes), [json!({}), json!({})]);
        for _ in 0..2 {
            let closed = unary(&world, &at, "/process.Process/CloseStdin", json!({"process": to})).await;
            assert_eq!(closed, (StatusCode::OK, json!({})));
        }
    };
    let (said, ()) = tokio::join!(starting, feeding);
    let parts = said.iter().filter_map(|event| event["event"]["data"]["stdout"].as_str());
    let out: Vec<u8> = parts.flat_map(|part| STANDARD.decode(part).unwrap()).collect();
    assert_eq!(String::from_utf8(out).unwrap(), "one two three");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_sandboxs_own_token_lets_in() {
    let world = World::new().await;
    let (anns, bobs) = (sandbox(&world, &world.ann).await, sandbox(&world, &world.bob).await);
    let paths =
        ["/process.Process/List", "/process.Process/Start", "/filesystem.Filesystem/Stat", "/files/compose", "/init"];
    for path in paths {
        for token in [None, Some(""), Some("nonsense"), Some(bobs.token.as_str()), Some(world.ann.as_str())] {
            let mut request = request(&anns, Method::POST, path).header("content-type", JSON);
            if let Some(token) = token {
                request = request.header("x-access-token", token);
            }
            let (status, bytes) = whole(world.send(request.body(Body::from("{}")).unwrap()).await).await;
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!((status, &body["code"]), (StatusCode::UNAUTHORIZED, &json!(401)), "{path} {token:?}: {body}");
        }
    }
    for (path, message) in [
        ("/files?path=a", "missing signature query parameter"),
        ("/files?path=a&signature=v1_x", "invalid signature"),
        ("/files?path=a&signature=v1_x&signature_expiration=1", "invalid signature"),
    ] {
        let (status, bytes) =
            whole(world.send(request(&anns, Method::GET, path).body(Body::empty()).unwrap()).await).await;
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((status, body), (StatusCode::UNAUTHORIZED, json!({"code": 401, "message": message})), "{path}");
    }
    let wrong = request(&anns, Method::GET, "/files?path=a").header("x-access-token", "x").body(Body::empty()).unwrap();
    let body: Value = serde_json::from_slice(&whole(world.send(wrong).await).await.1).unwrap();
    assert_eq!(body, json!({"code": 401, "message": "access token present in header but does not match"}));
    let old =
        rf_e2b::signature::Signed { path: "a", used: rf_e2b::signature::Use::Read, username: "", expires: Some(1_000) };
    let signature = rf_e2b::signature::sign(&old, &anns.token).replace('+', "%2B").replace('/', "%2F");
    let link = format!("/files?path=a&signature={signature}&signature_expiration=1000");
    let (status, bytes) =
        whole(world.send(request(&anns, Method::GET, &link).body(Body::empty()).unwrap()).await).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(&bytes[..], br#"{"code":401,"message":"signature is already expired"}"#, "to the byte");
    // What needs no token, and what is not there.
    let health = request(&anns, Method::GET, "/health").body(Body::empty()).unwrap();
    assert_eq!(world.send(health).await.status(), StatusCode::NO_CONTENT);
    for path in ["/init", "/freeze", "/unfreeze", "/collapse", "/upgrade", "/", "/process.Other/List"] {
        let (status, _, bytes) = call(&world, &anns, path, &[], "{}").await;
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!(404)), "{path}");
    }
    let envs = request(&anns, Method::GET, "/envs").header("x-access-token", &anns.token).body(Body::empty()).unwrap();
    assert_eq!(whole(world.send(envs).await).await, (StatusCode::OK, "{}".into()));
}

/// One way to frame a call, and what has to come of it.
struct Case {
    name: &'static str,
    method: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    status: u16,
    /// The code of the error: in the body, or in the end of a stream; `None` is success.
    code: Option<&'static str>,
}

fn case(
    name: &'static str,
    method: &'static str,
    headers: &[(&'static str, &'static str)],
    body: impl Into<Vec<u8>>,
    status: u16,
    code: Option<&'static str>,
) -> Case {
    Case { name, method, headers: headers.to_vec(), body: body.into(), status, code }
}

fn cases() -> Vec<Case> {
    const LIST: &str = "/process.Process/List";
    const START: &str = "/process.Process/Start";
    const STAT: &str = "/filesystem.Filesystem/Stat";
    let ok = shell("true").to_string().into_bytes();
    let message = frame(0, &ok);
    let json = ("content-type", JSON);
    let stream = ("content-type", STREAM);
    vec![
        // Codecs of unary calls.
        case("json", LIST, &[json], "{}", 200, None),
        case("json with a charset", LIST, &[("content-type", "application/json; charset=utf-8")], "{}", 200, None),
        case("binary", LIST, &[("content-type", "application/proto")], "", 200, None),
        case(
            "binary that is none",
            STAT,
            &[("content-type", "application/proto")],
            [0x0a, 9, 1],
            400,
            Some("invalid_argument"),
        ),
        case("json that is none", LIST, &[json], "{", 400, Some("invalid_argument")),
        case("json of another shape", STAT, &[json], r#"{"path":7}"#, 400, Some("invalid_argument")),
        case("json with a field that nobody knows", LIST, &[json], r#"{"new":1}"#, 200, None),
        case("another type", LIST, &[("content-type", "text/plain")], "{}", 415, None),
        case("no type", LIST, &[], "{}", 415, None),
        case("a stream's type", LIST, &[stream], frame(0, b"{}"), 200, Some("invalid_argument")),
        // Compression.
        case(
            "identity",
            LIST,
            &[json, ("content-encoding", "identity"), ("accept-encoding", "identity")],
            "{}",
            200,
            None,
        ),
        case("gzip", LIST, &[json, ("content-encoding", "gzip")], packed(b"{}"), 200, None),
        case("gzip that is none", LIST, &[json, ("content-encoding", "gzip")], "{}", 400, Some("invalid_argument")),
        case(
            "a coding that nobody knows",
            LIST,
            &[json, ("content-encoding", "lzip")],
            "{}",
            501,
            Some("unimplemented"),
        ),
        // Sizes.
        case(
            "too long",
            STAT,
            &[json],
            format!(r#"{{"path":"{}"}}"#, "x".repeat(5 << 20)),
            429,
            Some("resource_exhausted"),
        ),
        case(
            "too long once unpacked",
            STAT,
            &[json, ("content-encoding", "gzip")],
            packed(&vec![b' '; 64 << 20]),
            429,
            Some("resource_exhausted"),
        ),
        // Methods and versions.
        case("a method that is not there", "/process.Process/Fork", &[json], "{}", 404, Some("unimplemented")),
        case("this version", LIST, &[json, ("connect-protocol-version", "1")], "{}", 200, None),
        // Deadlines.
        case("a deadline", LIST, &[json, ("connect-timeout-ms", "60000")], "{}", 200, None),
        case("a deadline that is none", LIST, &[json, ("connect-timeout-ms", "soon")], "{}", 200, None),
        case("a deadline without end", LIST, &[json, ("connect-timeout-ms", "9999999999")], "{}", 200, None),
        // Streams: the status is 200, and the end says what is wrong.
        case("a message", START, &[stream], message.clone(), 200, None),
        case(
            "a message in binary that is none",
            START,
            &[("content-type", "application/connect+proto")],
            frame(0, &[0x0a, 9]),
            200,
            Some("invalid_argument"),
        ),
        case("a unary call's type", START, &[json], ok.clone(), 501, Some("unimplemented")),
        case("no message", START, &[stream], "", 200, Some("unimplemented")),
        case("a head that breaks off", START, &[stream], message[..3].to_vec(), 200, Some("invalid_argument")),
        case(
            "a message that breaks off",
            START,
            &[stream],
            message[..message.len() - 1].to_vec(),
            200,
            Some("invalid_argument"),
        ),
        case(
            "a length beyond all",
            START,
            &[stream],
            [0, 0xff, 0xff, 0xff, 0xff, b'{'],
            200,
            Some("resource_exhausted"),
        ),
        case("two messages", START, &[stream], [message.clone(), message.clone()].concat(), 200, Some("unimplemented")),
        case("json that is none in a stream", START, &[stream], frame(0, b"{"), 200, Some("invalid_argument")),
        case("packed", START, &[stream, ("connect-content-encoding", "gzip")], frame(1, &packed(&ok)), 200, None),
        case(
            "not packed, though it may be",
            START,
            &[stream, ("connect-content-encoding", "gzip")],
            message.clone(),
            200,
            None,
        ),
        case("packed without saying how", START, &[stream], frame(1, &packed(&ok)), 200, Some("internal")),
        case("a flag that nobody knows", START, &[stream], frame(4, &ok), 200, None),
        case("an end where a message belongs", START, &[stream], frame(2, b"{}"), 200, Some("invalid_argument")),
        case(
            "a coding of streams that nobody knows",
            START,
            &[stream, ("connect-content-encoding", "lzip")],
            message.clone(),
            200,
            Some("unimplemented"),
        ),
        case(
            "identity in a stream",
            START,
            &[stream, ("connect-content-encoding", "identity"), ("connect-accept-encoding", "identity")],
            message,
            200,
            None,
        ),
        case(
            "input before a process is named",
            "/process.Process/StreamInput",
            &[stream],
            frame(0, br#"{"data":{"input":{"stdin":""}}}"#),
            200,
            Some("invalid_argument"),
        ),
        case(
            "input to nobody",
            "/process.Process/StreamInput",
            &[stream],
            frame(0, br#"{"start":{"process":{"pid":4000000}}}"#),
            200,
            Some("not_found"),
        ),
        case("no input at all", "/process.Process/StreamInput", &[stream], "", 200, None),
        // What the messages say.
        case(
            "a signal that is not sent",
            "/process.Process/SendSignal",
            &[json],
            r#"{"process":{"pid":1},"signal":2}"#,
            404,
            Some("not_found"),
        ),
        case("a process without a name", "/process.Process/SendSignal", &[json], "{}", 400, Some("invalid_argument")),
        case(
            "a watcher that is not there",
            "/filesystem.Filesystem/GetWatcherEvents",
            &[json],
            r#"{"watcher_id":"w1"}"#,
            404,
            Some("not_found"),
        ),
        case(
            "the same in the other spelling",
            "/filesystem.Filesystem/RemoveWatcher",
            &[json],
            r#"{"watcherId":"w1"}"#,
            404,
            Some("not_found"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_framing_has_its_answer() {
    let world = World::new().await;
    let at = sandbox(&world, &world.ann).await;
    let mut wrong = Vec::new();
    for case in cases() {
        let is_stream = case.headers.iter().any(|(_, value)| value.starts_with("application/connect+"));
        let (status, headers, bytes) = call(&world, &at, case.method, &case.headers, case.body).await;
        let code = match status.as_u16() {
            415 => None,
            200 if is_stream => {
                let end = frames(&bytes).pop().unwrap().1;
                let end: Value = serde_json::from_slice(&end).unwrap();
                end["error"]["code"].as_str().map(str::to_owned)
            }
            200 => None,
            _ => serde_json::from_slice::<Value>(&bytes).unwrap()["code"].as_str().map(str::to_owned),
        };
        if status.as_u16() != case.status || code.as_deref() != case.code {
            wrong.push(format!(
                "{}: {status} {code:?} {}",
                case.name,
                String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
            ));
        }
        let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if status == StatusCode::OK && !case.headers.iter().any(|(_, value)| value.split(';').next() == Some(kind)) {
            wrong.push(format!("{}: answered in {kind}", case.name));
        }
        for name in ["content-encoding", "connect-content-encoding"] {
            // Who packs may be told that the answer may be packed as well; none is.
            let asked = case.headers.iter().any(|(of, value)| *of == name && *value == "gzip");
            if let Some(coding) = headers.get(name).filter(|coding| *coding != "identity" && !asked) {
                wrong.push(format!("{}: answered with {name} {coding:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let get = request(&at, Method::GET, "/process.Process/List?encoding=json&message=%7B%7D")
        .header("x-access-token", &at.token)
        .body(Body::empty())
        .unwrap();
    assert_eq!(world.send(get).await.status(), StatusCode::METHOD_NOT_ALLOWED, "none of the calls is a question alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_ends_its_call() {
    let world = World::with(|config| config.door.body_timeout_ms = 1_000).await;
    let at = sandbox(&world, &world.ann).await;
    let free = world.app.intake().room().free_kib();
    for (method, kind) in [("/process.Process/List", JSON), ("/process.Process/Start", STREAM)] {
        let begun = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 1 << 20]))]);
        let never = futures::StreamExt::chain(begun, futures::stream::pending());
        let (status, _, bytes) = call(&world, &at, method, &[("content-type", kind)], Body::from_stream(never)).await;
        assert!(status != StatusCode::OK || kind == STREAM, "{method}: {status}");
        assert!(!String::from_utf8_lossy(&bytes).contains("\"start\""), "{method}: nothing was begun");
    }
    assert_eq!(world.app.intake().room().free_kib(), free, "what was held is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_no_program_reads_is_held_within_bounds() {
    let world = World::new().await;
    let at = sandbox(&world, &world.ann).await;
    let deaf = json!({"process": {"cmd": "sleep", "args": ["1000"]}, "tag": "deaf"});
    let start = request(&at, Method::POST, "/process.Process/Start")
        .header("x-access-token", &at.token)
        .header("content-type", STREAM)
        .body(Body::from(frame(0, deaf.to_string().as_bytes())))
        .unwrap();
    let mut started = world.send(start).await.into_body();
    http_body_util::BodyExt::frame(&mut started).await.unwrap().unwrap();
    // What all the other requests hold is nearly everything.
    let room = world.app.intake().room().clone();
    let free = room.free_kib();
    let mut others = room.share();
    assert!(others.grow((free - (5 << 10)) << 10));
    let input = STANDARD.encode(vec![0; 2 << 20]);
    let input = packed(json!({"process": {"tag": "deaf"}, "input": {"stdin": input}}).to_string().as_bytes());
    assert!(input.len() < 64 << 10, "packed it is small");
    let send = || {
        let headers = [("content-type", JSON), ("content-encoding", "gzip")];
        let (world, at, input) = (&world, &at, input.clone());
        async move { call(world, at, "/process.Process/SendInput", &headers, input).await }
    };
    let sent = futures::stream::iter((0..4).map(|_| send()));
    let sent = futures::StreamExt::buffer_unordered(sent, 4);
    // Two wait for a program that never reads; what is more is refused.
    let refused: Vec<_> = tokio::time::timeout(
        std::time::Duration::from_secs(60),
        futures::StreamExt::collect(futures::StreamExt::take(sent, 2)),
    )
    .await
    .expect("not all of them are held");
    for (status, _, bytes) in refused {
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")), "{body}");
    }
    let mut more = room.share();
    assert!(more.grow(4 << 20));
    let to = frame(0, json!({"start": {"process": {"tag": "deaf"}}}).to_string().as_bytes());
    let data = frame(
        1,
        &packed(json!({"data": {"input": {"stdin": STANDARD.encode(vec![0; 2 << 20])}}}).to_string().as_bytes()),
    );
    let headers = [("content-type", STREAM), ("connect-content-encoding", "gzip")];
    let (_, _, bytes) = call(&world, &at, "/process.Process/StreamInput", &headers, [to, data].concat()).await;
    let end = events(&bytes).pop().unwrap();
    assert!(end["error"]["message"].as_str().unwrap().contains("too much is held"), "{end}");
    drop((others, more));
    assert_eq!(room.free_kib(), free, "what was held is given back");
}

/// Of the code interpreter: whoever goes away while its process starts leaves one process, which the next cell has.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_kernel_starts_leaves_no_second_one() {
    let world = World::new().await;
    let at = sandbox(&world, &world.ann).await;
    let execute = |code: &str| {
        let request = Request::post("/execute").header("host", "localhost").header("e2b-sandbox-id", &at.id);
        let request = request.header("e2b-sandbox-port", "49999").header("x-access-token", &at.token);
        world.send(request.body(Body::from(json!({ "code": code }).to_string())).unwrap())
    };
    let execs = world.app.places().execs();
    // Gone as soon as the process has begun; that is where its start waits.
    let mut leaving = Box::pin(execute("1"));
    while execs.running() == 0 && futures::poll!(leaving.as_mut()).is_pending() {
        tokio::task::yield_now().await;
    }
    drop(leaving);
    let (status, said) = whole(execute("print(6 * 7)").await).await;
    let said = String::from_utf8(said.to_vec()).unwrap();
    assert!(status == StatusCode::OK && said.contains("42"), "{said}");
    assert_eq!(execs.running(), 1, "{said}");
}
