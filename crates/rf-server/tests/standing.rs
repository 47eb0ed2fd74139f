//! What goes on after it was judged ends with its credential, and what ended long ago is let go.

mod support;

use std::time::Duration;

use axum::{
    body::Body,
    http::{Method, Request, Response, StatusCode},
};
use futures::StreamExt as _;
use rf_server::{doors, run::open, service::Door};
use rf_store::{CredentialHash, NewKey, Store};
use rf_wire::frames;
use serde_json::{Value, json};
use support::{World, whole};

/// Longest that an end may take. Far above what it takes, since tests share their machine.
const SOON: Duration = Duration::from_secs(30);

/// A key of ann's beside the one that revokes.
async fn key(world: &World) -> (String, String) {
    let (status, made) = world.post("/v1/keys", &world.ann, json!({"name": "other"})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

async fn revoke(world: &World, id: &str) {
    let (status, answer) = world.call(Method::DELETE, &format!("/v1/keys/{id}"), &world.ann, Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
}

async fn begin(world: &World, method: Method, path: &str, key: &str, body: Value) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
    let request = request.header("accept", frames::MEDIA_TYPE);
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let response = world.send(request.body(body).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    response
}

/// The last frame of a stream: its kind and JSON.
async fn last_frame(response: Response<Body>) -> (u8, Value) {
    let bytes = tokio::time::timeout(SOON, whole(response)).await.expect("it ends soon").1;
    let mut rest = &bytes[..];
    let mut last = None;
    while !rest.is_empty() {
        let (kind, length) = frames::parse_header(rest).unwrap();
        let (payload, after) = rest[frames::HEADER_LEN..].split_at(length);
        last = Some((kind, payload));
        rest = after;
    }
    let (kind, payload) = last.expect("a frame");
    (kind, serde_json::from_slice(payload).unwrap())
}

async fn running(world: &World) -> usize {
    let (_, execs) = world.get("/v1/execs", &world.ann).await;
    execs["items"].as_array().unwrap().iter().filter(|exec| exec["state"] == "running").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_keys_streams_end_with_a_typed_fault() {
    let world = World::new().await;
    let sandbox = world.sandbox(&world.ann).await;
    let (id, other) = key(&world).await;
    let path = format!("/v1/sandboxes/{sandbox}/exec");
    let background = json!({"shell": "exec sleep 1000", "background": true});
    let kept = world.post(&path, &other, background).await.1["id"].as_str().unwrap().to_owned();
    let foreground = begin(&world, Method::POST, &path, &other, json!({"shell": "echo up; exec sleep 1000"})).await;
    let attached = begin(&world, Method::GET, &format!("/v1/execs/{kept}/attach"), &other, Value::Null).await;
    let mine = begin(&world, Method::GET, &format!("/v1/execs/{kept}/attach"), &world.ann, Value::Null).await;
    let path = format!("/v1/execs/{kept}/wait");
    let waited = async { tokio::time::timeout(SOON, world.get(&path, &other)).await.expect("it ends soon") };
    let revoked = async {
        // All of them go on well past the time after which the end is noticed.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(running(&world).await, 2);
        revoke(&world, &id).await;
    };
    let ((status, fault), ()) = futures::join!(waited, revoked);
    assert_eq!((status, &fault["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")), "{fault}");
    for stream in [foreground, attached] {
        let (kind, fault) = last_frame(stream).await;
        assert_eq!((kind, &fault["code"]), (frames::FAULT, &json!("unauthenticated")), "{fault}");
        assert!(fault["message"].as_str().unwrap().contains("revoked"), "{fault}");
    }
    // What was in the foreground is killed; what is in the background is the user's, and goes on for their other keys.
    let until = async {
        while running(&world).await != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, until).await.expect("the foreground is killed");
    let mut mine = mine.into_body().into_data_stream();
    assert!(mine.next().await.unwrap().is_ok());
    assert!(tokio::time::timeout(Duration::from_secs(3), mine.next()).await.is_err(), "the control goes on");
    let records = world.ledger().await;
    let ended =
        |action: &str| records.iter().any(|record| record["action"] == action && record["code"] == "unauthenticated");
    assert!(ended("exec") && ended("exec_read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_keys_uploads_end_with_a_typed_fault() {
    let world = World::new().await;
    let sandbox = world.sandbox(&world.ann).await;
    let (id, other) = key(&world).await;
    // The fake init's files are those of this test's own directory.
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| format!("/v1/sandboxes/{sandbox}/files?path={}/{name}", dir.path().display());
    // A piece now and then, never the last.
    let endless = || {
        let pieces = futures::stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, std::io::Error>("piece"), ()))
        });
        Body::from_stream(pieces)
    };
    let (theirs, mine) = (file("theirs"), file("mine"));
    let put = async {
        tokio::time::timeout(SOON, world.raw(Method::PUT, &theirs, &other, endless())).await.expect("it ends soon")
    };
    let revoked = async {
        // It goes on well past the time after which the end is noticed.
        tokio::time::sleep(Duration::from_secs(3)).await;
        revoke(&world, &id).await;
    };
    // The control: another key's goes on for longer than it takes to notice.
    let control = tokio::time::timeout(Duration::from_secs(8), world.raw(Method::PUT, &mine, &world.ann, endless()));
    let ((status, fault), (), control) = futures::join!(put, revoked, control);
    let fault: Value = serde_json::from_slice(&fault).unwrap();
    assert_eq!((status, &fault["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")), "{fault}");
    assert!(control.is_err(), "{control:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_the_key_that_it_goes_back_to() {
    let world = World::new().await;
    let (id, other) = key(&world).await;
    let begin = |key: String| {
        let world = &world;
        async move {
            let (status, session) = world.post("/v1/sessions", &key, json!({})).await;
            assert_eq!(status, StatusCode::CREATED, "{session}");
            session["token"].as_str().unwrap().to_owned()
        }
    };
    let first = begin(other).await;
    let second = begin(first.clone()).await;
    let mine = begin(world.ann.clone()).await;
    for session in [&first, &second, &mine] {
        assert_eq!(world.get("/v1/me", session).await.0, StatusCode::OK);
    }
    revoke(&world, &id).await;
    for session in [&first, &second] {
        assert_eq!(world.get("/v1/me", session).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(world.get("/v1/me", &mine).await.0, StatusCode::OK, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_long_ago_is_let_go_when_the_server_starts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("server")).unwrap();
    let (scope, kept) = {
        let (store, system) = Store::open(&dir.path().join("server")).unwrap();
        let (scope, _) = store.user_create_first(&system, &"root".parse().unwrap(), 1).unwrap();
        let key = |hash: u8| {
            let hash = CredentialHash::from_bytes([hash; 32]);
            store.key_insert(&scope, &NewKey { name: "k", hash, scopes: "read", expires: None }, 1).unwrap().id
        };
        let (old, kept) = (key(1), key(2));
        // In 1970.
        store.key_revoke(&scope, old, 1).unwrap();
        assert_eq!(store.key_list(&scope).unwrap().len(), 2, "the control: it is there until somebody looks");
        (scope, kept)
    };
    let _warden = support::places::FakeWarden::start(dir.path().join("warden.sock"));
    let app = open(support::config(dir.path())).unwrap();
    let gone = async {
        while app.store().key_list(&scope).unwrap().len() != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("it is let go");
    assert_eq!(app.store().key_list(&scope).unwrap()[0].id, kept);
}

/// The life of one server, with all its tasks.
fn server<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// What the next server on the same state answers to a request that comes before anything else of it had a turn.
fn asked_at_once(dir: &std::path::Path, request: Request<Body>) -> (StatusCode, String) {
    server(async {
        let app = open(support::config(dir)).unwrap();
        let door = Door::new(doors::router(app.clone()), app.metrics().clone()).with_sandboxes(app.clone());
        assert!(!app.places().is_ready());
        let (status, answer) = whole(door.answer(request).await).await;
        (status, String::from_utf8_lossy(&answer).into_owned())
    })
}

/// A server that has just started does not know yet what lives: nobody is told that it does not.
#[test]
fn what_lived_before_the_server_is_never_said_not_to_exist() {
    let (dir, warden, ann, key, id) = server(async {
        let world = World::new().await;
        let id = world.sandbox(&world.ann).await;
        let (status, made) = world.post("/v1/keys", &world.ann, json!({"name": "e2b", "e2b": true})).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let limits = json!({"limits": {"sandboxes_max": 1}});
        assert_eq!(world.call(Method::PATCH, "/v1/users/ann", &world.admin, limits).await.0, StatusCode::OK);
        (world.dir, world.warden, world.ann, made["key"].as_str().unwrap().to_owned(), id)
    });
    let e2b = rf_e2b::id::sandbox_text(id.parse().unwrap());
    let ours = |method: Method, path: &str| {
        Request::builder().method(method).uri(path).header("authorization", format!("Bearer {ann}"))
    };
    let asks = [
        (ours(Method::GET, &format!("/v1/sandboxes/{id}")), "", StatusCode::OK),
        (Request::get(format!("/sandboxes/{e2b}")).header("x-api-key", key), "", StatusCode::OK),
        // To the port of its commands and files, which knows its token; this is none.
        (
            Request::get("/files?path=/x").header("e2b-sandbox-id", &e2b).header("e2b-sandbox-port", "49983"),
            "",
            StatusCode::UNAUTHORIZED,
        ),
        // One more than there may be.
        (ours(Method::POST, "/v1/sandboxes"), "{}", StatusCode::TOO_MANY_REQUESTS),
    ];
    for (request, body, expected) in asks {
        let (status, answer) = asked_at_once(dir.path(), request.body(Body::from(body)).unwrap());
        assert_eq!(status, expected, "{answer}");
    }
    // Without a warden it stays unknown, and that is said; what needs none is answered.
    drop(warden);
    for (path, expected) in [
        (format!("/v1/sandboxes/{id}"), StatusCode::SERVICE_UNAVAILABLE),
        ("/v1/sandboxes".to_owned(), StatusCode::SERVICE_UNAVAILABLE),
        ("/v1/keys".to_owned(), StatusCode::OK),
    ] {
        let (status, answer) = asked_at_once(dir.path(), ours(Method::GET, &path).body(Body::empty()).unwrap());
        assert_eq!(status, expected, "{path}: {answer}");
    }
}

/// Of the code interpreter: what its process knew is gone with the server, and so is the process once the next cell
/// begins another.
#[test]
fn a_kernel_of_an_earlier_server_is_ended_when_the_next_one_starts() {
    let execute = async |app: &rf_server::app::App, id: rf_types::SandboxId, code: &str| {
        let door = Door::new(doors::router(app.clone()), app.metrics().clone()).with_sandboxes(app.clone());
        let request = Request::post("/execute").header("e2b-sandbox-id", rf_e2b::id::sandbox_text(id));
        let request = request.header("e2b-sandbox-port", "49999");
        let request = request.header("x-access-token", app.e2b().tokens().envd_token(id));
        let answer = door.answer(request.body(Body::from(json!({ "code": code }).to_string())).unwrap()).await;
        let (status, said) = whole(answer).await;
        assert_eq!(status, StatusCode::OK);
        String::from_utf8(said.to_vec()).unwrap()
    };
    let (dir, _warden, id) = server(async {
        let world = World::new().await;
        let id = world.sandbox(&world.ann).await.parse().unwrap();
        execute(&world.app, id, "x = 6 * 7").await;
        assert!(execute(&world.app, id, "print(x)").await.contains("42"));
        // Until it is noted for the next server.
        let noted = |dir: &std::path::Path| std::fs::read_dir(dir.join("server/spool")).unwrap().count();
        while noted(world.dir.path()) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (world.dir, world.warden, id)
    });
    server(async {
        let app = open(support::config(dir.path())).unwrap();
        app.places().ready().await;
        assert_eq!(app.places().execs().running(), 1);
        let said = execute(&app, id, "print('x' in globals())").await;
        assert!(said.contains("False"), "{said}");
        let gone = async {
            while app.places().execs().running() != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, gone).await.expect("the one before is ended");
    });
}
