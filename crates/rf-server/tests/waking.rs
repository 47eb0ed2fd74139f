//! A paused sandbox that wakes by itself wakes for who may ask something of it, and for nobody else: what runs is paid for.

mod support;

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use rf_e2b::signature::{Signed, Use, sign};
use rf_types::SandboxId;
use serde_json::{Value, json};
use support::{World, whole};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const ENVD: u16 = 49983;
const INTERPRETER: u16 = 49999;

/// Somebody's sandbox, and what its maker has.
struct Made {
    id: SandboxId,
    text: String,
    envd: String,
    traffic: String,
}

async fn make(world: &World, key: &str, more: Value) -> Made {
    let mut body = json!({"templateID": "base", "timeout": 600});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (status, made) = world.post("/v2/sandboxes", key, body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let text = made["sandboxID"].as_str().unwrap().to_owned();
    let id = rf_e2b::id::sandbox_of(&text).unwrap();
    let tokens = world.app.e2b().tokens();
    Made { id, text, envd: tokens.envd_token(id), traffic: tokens.traffic_token(id) }
}

async fn pause(world: &World, key: &str, made: &Made) {
    let (status, paused) = world.post(&format!("/v1/sandboxes/{}/pause", made.id), key, json!({})).await;
    assert_eq!((status, &paused["state"]), (StatusCode::OK, &json!("paused")), "{paused}");
}

async fn state(world: &World, key: &str, made: &Made) -> Value {
    world.get(&format!("/v1/sandboxes/{}", made.id), key).await.1["state"].clone()
}

/// One request for a sandbox, as somebody sends it.
struct Try {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: &'static str,
}

impl Try {
    fn to(made: &Made, port: u16, method: Method, path: &str) -> Self {
        let headers = vec![("e2b-sandbox-id", made.text.clone()), ("e2b-sandbox-port", port.to_string())];
        Self { method, path: path.to_owned(), headers, body: "" }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(self, body: &'static str) -> Self {
        Self { body, ..self }.with("content-type", "application/json")
    }

    /// The status and the body, without the request's id, which is never the same.
    async fn send(&self, world: &World) -> (StatusCode, String) {
        let mut request = Request::builder().method(self.method.clone()).uri(&self.path).header("host", "localhost");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let (status, bytes) = whole(world.send(request.body(Body::from(self.body)).unwrap()).await).await;
        let mut text = String::from_utf8(bytes.to_vec()).unwrap();
        if let Ok(mut body) = serde_json::from_str::<Value>(&text)
            && body.get_mut("request_id").map(Value::take).is_some()
        {
            text = body.to_string();
        }
        (status, text)
    }
}

fn link(token: &str, expires: Option<i64>) -> String {
    let signature = sign(&Signed { path: "a", used: Use::Read, username: "", expires }, token);
    let link = format!("/files?path=a&signature={}", signature.replace('+', "%2B").replace('/', "%2F"));
    match expires {
        Some(expires) => format!("{link}&signature_expiration={expires}"),
        None => link,
    }
}

/// A program of this process, which is where these sandboxes' ports are.
async fn program() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
            });
        }
    });
    port
}

/// What people send who may not, each with the status that they get while the sandbox runs.
fn strangers(made: &Made, other: &Made, reader: &str, bob: &str, port: u16) -> Vec<(Try, StatusCode)> {
    let unauthorized = StatusCode::UNAUTHORIZED;
    let mut tries = Vec::new();
    for token in [None, Some("nonsense"), Some(&other.envd), Some(&made.traffic)] {
        for (at, method, path) in [
            (ENVD, Method::POST, "/process.Process/List"),
            (ENVD, Method::POST, "/files/compose"),
            (ENVD, Method::GET, "/envs"),
            (ENVD, Method::GET, "/nothing"),
            (INTERPRETER, Method::POST, "/execute"),
        ] {
            let one = Try::to(made, at, method, path).body("{}");
            let one = match token {
                Some(token) => one.with("x-access-token", token),
                None => one,
            };
            tries.push((one, unauthorized));
        }
    }
    let old = link(&made.envd, Some(1_000));
    for path in ["/files?path=a", "/files?path=a&signature=v1_x", &link(&other.envd, None), &old] {
        tries.push((Try::to(made, ENVD, Method::GET, path), unauthorized));
    }
    // The same link without the sandbox's name, which is found by whose token signed it.
    tries.push((Try { method: Method::GET, path: old, headers: vec![], body: "" }, unauthorized));
    for token in [None, Some("nonsense"), Some(&other.traffic), Some(&made.envd)] {
        let one = Try::to(made, port, Method::GET, "/");
        let one = match token {
            Some(token) => one.with("e2b-traffic-access-token", token),
            None => one,
        };
        tries.push((one, StatusCode::FORBIDDEN));
    }
    let path = format!("/v1/sandboxes/{}/ports/{port}/", made.id);
    for (key, status) in [("rf_nonsense", unauthorized), (bob, StatusCode::NOT_FOUND), (reader, StatusCode::FORBIDDEN)]
    {
        let one = Try { method: Method::GET, path: path.clone(), headers: vec![], body: "" };
        tries.push((one.with("authorization", format!("Bearer {key}")), status));
    }
    tries
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_wakes_no_sandbox_and_hears_what_they_hear_of_one_that_runs() {
    let world = World::new().await;
    let port = program().await;
    let closed = json!({"autoResume": {"enabled": true}, "network": {"allowPublicTraffic": false}});
    let made = make(&world, &world.ann, closed.clone()).await;
    let other = make(&world, &world.bob, closed).await;
    let ask = json!({"name": "reader", "scopes": ["read"]});
    let reader = world.post("/v1/keys", &world.ann, ask).await.1["key"].as_str().unwrap().to_owned();
    let tries = strangers(&made, &other, &reader, &world.bob, port);
    let mut running = Vec::new();
    for (one, status) in &tries {
        let answer = one.send(&world).await;
        assert_eq!(answer.0, *status, "{} {:?}: {}", one.path, one.headers, answer.1);
        running.push(answer);
    }
    pause(&world, &world.ann, &made).await;
    for ((one, _), before) in tries.iter().zip(&running) {
        assert_eq!(one.send(&world).await, *before, "{} {:?}", one.path, one.headers);
        assert_eq!(state(&world, &world.ann, &made).await, "paused", "{} {:?}", one.path, one.headers);
    }
    // Its health is nobody's to wake it for: without its token it is not there.
    for at in [ENVD, INTERPRETER] {
        for one in [
            Try::to(&made, at, Method::GET, "/health"),
            Try::to(&made, at, Method::GET, "/health").with("x-access-token", &other.envd),
        ] {
            let (status, body) = one.send(&world).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
            assert!(body.contains("The sandbox was not found"), "{body}");
        }
    }
    assert_eq!(state(&world, &world.ann, &made).await, "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_wakes_it_by_asking() {
    let world = World::new().await;
    let port = program().await;
    let closed = json!({"autoResume": {"enabled": true}, "network": {"allowPublicTraffic": false}});
    let made = make(&world, &world.ann, closed).await;
    let token = |one: Try| one.with("x-access-token", &made.envd);
    let key = format!("Bearer {}", world.ann);
    let path = format!("/v1/sandboxes/{}/ports/{port}/", made.id);
    for (one, status) in [
        (token(Try::to(&made, ENVD, Method::POST, "/process.Process/List")).body("{}"), StatusCode::OK),
        (token(Try::to(&made, ENVD, Method::GET, "/envs")), StatusCode::OK),
        (token(Try::to(&made, ENVD, Method::GET, "/health")), StatusCode::NO_CONTENT),
        (token(Try::to(&made, INTERPRETER, Method::GET, "/health")), StatusCode::OK),
        // Let in: there is only no such file.
        (Try::to(&made, ENVD, Method::GET, &link(&made.envd, None)), StatusCode::NOT_FOUND),
        (Try { method: Method::GET, path: link(&made.envd, None), headers: vec![], body: "" }, StatusCode::NOT_FOUND),
        (Try::to(&made, port, Method::GET, "/").with("e2b-traffic-access-token", &made.traffic), StatusCode::OK),
        (Try { method: Method::GET, path, headers: vec![("authorization", key)], body: "" }, StatusCode::OK),
    ] {
        pause(&world, &world.ann, &made).await;
        let answer = one.send(&world).await;
        assert_eq!(answer.0, status, "{} {:?}: {}", one.path, one.headers, answer.1);
        assert_eq!(state(&world, &world.ann, &made).await, "running", "{} {:?}", one.path, one.headers);
    }
    // Where its maker lets everybody reach its ports, a visitor wakes it, but not by way of its commands.
    let open = make(&world, &world.ann, json!({"autoResume": {"enabled": true}})).await;
    pause(&world, &world.ann, &open).await;
    let commands = Try::to(&open, ENVD, Method::POST, "/process.Process/List").body("{}");
    assert_eq!(commands.send(&world).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(state(&world, &world.ann, &open).await, "paused");
    assert_eq!(Try::to(&open, port, Method::GET, "/").send(&world).await, (StatusCode::OK, "hello".to_owned()));
    assert_eq!(state(&world, &world.ann, &open).await, "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stays_paused_is_not_there_for_anybody() {
    let world = World::new().await;
    let port = program().await;
    let made = make(&world, &world.ann, json!({"network": {"allowPublicTraffic": false}})).await;
    pause(&world, &world.ann, &made).await;
    for one in [
        Try::to(&made, ENVD, Method::POST, "/process.Process/List").body("{}").with("x-access-token", &made.envd),
        Try::to(&made, ENVD, Method::POST, "/process.Process/List").body("{}").with("x-access-token", "nonsense"),
        Try::to(&made, ENVD, Method::GET, "/health").with("x-access-token", &made.envd),
        Try::to(&made, INTERPRETER, Method::GET, "/health"),
        Try::to(&made, port, Method::GET, "/").with("e2b-traffic-access-token", &made.traffic),
        Try::to(&made, port, Method::GET, "/"),
    ] {
        let (status, body) = one.send(&world).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
        assert!(body.contains("The sandbox was not found"), "{body}");
    }
    let path = format!("/v1/sandboxes/{}/ports/{port}/", made.id);
    let (status, body) = world.get(&path, &world.ann).await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("paused")), "{body}");
    assert_eq!(state(&world, &world.ann, &made).await, "paused");
}
