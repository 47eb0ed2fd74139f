//! Ports inside sandboxes on real sockets. The inits of these tests connect to ports of this process, so the programs
//! are here as well, and say what they were asked byte by byte.

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rf_types::SandboxId;
use serde_json::Value;
use support::Listening;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const DOMAIN: &str = "box.example.com";

/// A program that listens: it answers the n-th request of each connection with whatever it was told to, and keeps what
/// it was asked.
struct Program {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl Program {
    /// Answers every request with `answer`; what begins with `UPGRADE` echoes afterwards, with `HANG` stays open.
    async fn answering(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, answer)
    }

    fn on(listener: TcpListener, answer: &'static str) -> Self {
        let port = listener.local_addr().unwrap().port();
        let (asked, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (heard, count) = (Arc::clone(&asked), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                let heard = Arc::clone(&heard);
                tokio::spawn(async move {
                    while let Some(request) = request(&mut stream).await {
                        // Which case a header is written in is of no interest.
                        heard.lock().unwrap().push(request.to_ascii_lowercase());
                        let (kind, bytes) = answer.split_once('|').unwrap();
                        stream.write_all(bytes.as_bytes()).await.unwrap();
                        match kind {
                            "UPGRADE" => {
                                let (mut from, mut to) = stream.into_split();
                                let _ = tokio::io::copy(&mut from, &mut to).await;
                                return;
                            }
                            "HANG" => return std::future::pending().await,
                            "CLOSE" => return,
                            _ => {}
                        }
                    }
                });
            }
        });
        Self { port, asked, connections }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn only(&self) -> String {
        let asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked[0].clone()
    }
}

/// One request with its body, by length or chunked, as it came.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let whole = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let chunked = head.contains("transfer-encoding: chunked");
        let done = if chunked { body.ends_with("\r\n\r\n") } else { body.len() >= length.unwrap_or(0) };
        done.then_some(text)
    };
    let mut buffer = [0; 4096];
    loop {
        if let Some(text) = whole(&bytes) {
            return Some(text);
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
        }
    }
}

/// A server with a sandbox of its operator's.
struct World {
    server: Listening,
    id: SandboxId,
    text: String,
    token: String,
}

impl World {
    async fn new() -> Self {
        let server = Listening::with(|config| config.e2b.domain = Some(DOMAIN.to_owned())).await;
        let made = call(&server, "POST", "/v1/sandboxes", &server.admin, "{}").await;
        let made: Value = serde_json::from_str(body_of(&made)).unwrap();
        let id: SandboxId = made["id"].as_str().unwrap().parse().unwrap();
        let (text, token) = (rf_e2b::id::sandbox_text(id), server.app.e2b().tokens().traffic_token(id));
        Self { server, id, text, token }
    }

    /// The headers that lead to a port of the sandbox, with the token for it.
    fn to(&self, port: u16) -> String {
        format!(
            "host: localhost\r\ne2b-sandbox-id: {}\r\ne2b-sandbox-port: {port}\r\ne2b-traffic-access-token: {}\r\n",
            self.text, self.token
        )
    }

    /// Sends what is given and reads until the server closes.
    async fn talk(&self, bytes: &str) -> String {
        talk(&self.server, bytes).await
    }

    async fn destroy(&self) {
        let path = format!("/v1/sandboxes/{}", self.id);
        let gone = call(&self.server, "DELETE", &path, &self.server.admin, "").await;
        assert!(gone.starts_with("HTTP/1.1 2"), "{gone}");
    }
}

async fn talk(server: &Listening, bytes: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset instead of an end is an end as well.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn call(server: &Listening, method: &str, path: &str, key: &str, body: &str) -> String {
    let length = body.len();
    talk(
        server,
        &format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        ),
    )
    .await
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// Reads until the answer's head and `text` have come.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut got = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&got).contains(text) {
        let length = stream.read(&mut buffer).await.unwrap();
        assert_ne!(length, 0, "ended after {}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&got).into_owned()
}

const HELLO: &str = "KEEP|HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncache-control: max-age=9\r\nx-own: 1\r\nkeep-alive: timeout=5\r\n\r\nhello";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_asked_what_the_client_asked_and_learns_no_credential() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let answer = world
        .talk(&format!(
            "POST /a/../b?c=%2F HTTP/1.1\r\n{}x-access-token: t\r\nx-api-key: {}\r\nauthorization: Bearer app\r\n\
             x-forwarded-for: 6.6.6.6\r\nte: gzip\r\nconnection: close, x-hop\r\nx-hop: 1\r\ncontent-length: 4\r\n\r\nbody",
            world.to(program.port),
            world.server.admin
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    // The answer's head is the program's: its own rules for caches, none of ours.
    assert!(answer.contains("cache-control: max-age=9") && answer.contains("x-own: 1"), "{answer}");
    assert!(!answer.contains("no-store") && !answer.contains("keep-alive: timeout"), "{answer}");
    let asked = program.only();
    assert!(asked.starts_with("post /a/../b?c=%2f http/1.1\r\n") && asked.ends_with("\r\n\r\nbody"), "{asked}");
    for has in [
        "host: localhost\r\n",
        "authorization: bearer app\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
    ] {
        assert!(asked.contains(has), "{has}: {asked}");
    }
    for lacks in ["e2b-", "x-access-token", "x-api-key", "x-hop", "6.6.6.6", "te:", &world.token, &world.server.admin] {
        assert!(!asked.contains(lacks), "{lacks}: {asked}");
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_one_request_after_the_other() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    for n in 0..20 {
        stream.write_all(format!("GET /{n} HTTP/1.1\r\n{}\r\n", world.to(program.port)).as_bytes()).await.unwrap();
        until(&mut stream, "hello").await;
        // Until it is free again, which its own task says.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(program.asked().len(), 20);
    assert!(*program.connections.lock().unwrap() < 5, "{} connections", program.connections.lock().unwrap());
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_program_closed_is_no_failure() {
    let world = World::new().await;
    let program = Program::answering("CLOSE|HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    for _ in 0..20 {
        let answer =
            world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port))).await;
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_and_who_may_not_is_told_in_known_words() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let (id, port) = (&world.text, program.port);
    let other = world.server.app.e2b().tokens().traffic_token(SandboxId::from_bits(7));
    let envd = world.server.app.e2b().tokens().envd_token(world.id);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let to = |id: &str, port: u16, more: &str| format!("e2b-sandbox-id: {id}\r\ne2b-sandbox-port: {port}\r\n{more}");
    let token = |token: &str| format!("e2b-traffic-access-token: {token}\r\n");
    for (headers, status, message) in [
        (to(id, port, ""), 403, "Token header 'e2b-traffic-access-token' is missing"),
        (to(id, port, &token("x")), 403, "is invalid"),
        (to(id, port, &token(&other)), 403, "is invalid"),
        (to(id, port, &token(&envd)), 403, "is invalid"),
        (to(id, closed, &token(&world.token)), 502, "The sandbox is running but port is not open"),
        (to("sbx00000000000000000000000000000007", port, &token(&other)), 502, "The sandbox was not found"),
        (to("i1234567890", port, ""), 502, "The sandbox was not found"),
        (to(id, 0, &token(&world.token)), 400, "port"),
        (to("sbx_0007", port, ""), 400, "id"),
        (format!("e2b-sandbox-id: {id}\r\n"), 400, "come together"),
        (format!("e2b-sandbox-port: {port}\r\n"), 400, "come together"),
        (to(id, port, &format!("e2b-sandbox-id: {id}\r\n")), 400, "come together"),
    ] {
        let answer = world.talk(&format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{headers}: {answer}");
        let body: Value = serde_json::from_str(body_of(&answer)).unwrap();
        assert!(body["message"].as_str().unwrap().contains(message), "{body}");
        assert_eq!(body["code"], status, "{body}");
        assert!(answer.contains("cache-control: no-store"), "{answer}");
    }
    assert!(program.asked().is_empty());
    // Control: the same with the right token.
    let answer = world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(port))).await;
    assert!(answer.ends_with("hello"), "{answer}");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_host_never_leads_to_our_own_routes_nor_ours_to_it() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let host = format!("{}-{}.{DOMAIN}", program.port, world.text);
    let (token, key) = (&world.token, &world.server.admin);
    for path in ["/v1/sandboxes", "/v1/health/live", "/metrics", "/sandboxes", "/files?signature=x"] {
        let line =
            format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n");
        let without = world.talk(&format!("{line}\r\n")).await;
        assert!(without.starts_with("HTTP/1.1 403 "), "{path}: {without}");
        let with = world.talk(&format!("{line}e2b-traffic-access-token: {token}\r\n\r\n")).await;
        assert!(with.ends_with("hello"), "{path}: {with}");
    }
    let asked = program.asked();
    assert_eq!(asked.len(), 5);
    assert!(asked.iter().all(|asked| asked.contains(&format!("host: {host}\r\n")) && !asked.contains(key.as_str())));
    // A whole address in the request's line is the same host; two of them are none.
    let whole =
        format!("GET http://{host}/v1/users HTTP/1.1\r\ne2b-traffic-access-token: {token}\r\nconnection: close\r\n");
    assert!(world.talk(&format!("{whole}host: {host}\r\n\r\n")).await.ends_with("hello"));
    for hosts in ["host: localhost\r\n", &format!("host: {host}\r\nhost: {host}\r\n"), &format!("host: x@{host}\r\n")] {
        let answer = world.talk(&format!("{whole}{hosts}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{hosts}: {answer}");
    }
    // Control: our own host leads to our own routes.
    let ours =
        world.talk("GET /v1/health/live HTTP/1.1\r\nhost: api.box.example.com\r\nconnection: close\r\n\r\n").await;
    assert!(ours.starts_with("HTTP/1.1 200 "), "{ours}");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_binds_the_control_planes_ports_takes_nothing_over() {
    let world = World::new().await;
    for port in [49983, 49999] {
        // Somebody else's process may have it for the moment: then that is the program.
        let program = TcpListener::bind(("127.0.0.1", port)).await.ok().map(|listener| Program::on(listener, HELLO));
        let answer = world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(port))).await;
        assert!(!answer.ends_with("hello") && !answer.starts_with("HTTP/1.1 2"), "{answer}");
        let path = format!("/v1/sandboxes/{}/ports/{port}/", world.id);
        let answer = call(&world.server, "GET", &path, &world.server.admin, "").await;
        assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("control plane"), "{answer}");
        if let Some(program) = program {
            assert!(program.asked().is_empty() && *program.connections.lock().unwrap() == 0);
        }
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_door_reaches_the_users_ports_and_nobody_elses() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let (server, id, port) = (&world.server, world.id, program.port);
    let made = call(server, "POST", "/v1/users", &server.admin, r#"{"name":"bob"}"#).await;
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    let key = call(server, "POST", "/v1/users/bob/keys", &server.admin, r#"{"name":"k"}"#).await;
    let key: Value = serde_json::from_str(body_of(&key)).unwrap();
    let bob = key["key"].as_str().unwrap();
    let base = format!("/v1/sandboxes/{id}/ports/{port}");
    let answer = call(server, "GET", &format!("{base}/x/y?z=1"), &server.admin, "").await;
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(answer.contains("content-security-policy: sandbox"), "no page of ours: {answer}");
    let asked = program.only();
    assert!(asked.starts_with("get /x/y?z=1 http/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("x-forwarded-prefix: {base}\r\n")) && !asked.contains("authorization"), "{asked}");
    assert!(call(server, "GET", &base, &server.admin, "").await.ends_with("hello"));
    assert!(call(server, "GET", &format!("{base}/"), &server.admin, "").await.ends_with("hello"));
    let theirs = call(server, "GET", &base, bob, "").await;
    let none = call(server, "GET", &format!("/v1/sandboxes/{}/ports/{port}", SandboxId::from_bits(7)), bob, "").await;
    for answer in [&theirs, &none] {
        let body: Value = serde_json::from_str(body_of(answer)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert_eq!((&body["code"], &body["message"]), (&"not_found".into(), &"no such sandbox".into()));
    }
    assert!(call(server, "GET", &base, "rf_wrong", "").await.starts_with("HTTP/1.1 401 "));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let answer = call(server, "GET", &format!("/v1/sandboxes/{id}/ports/{closed}/"), &server.admin, "").await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("nothing listens"), "{answer}");
    let answer = call(server, "GET", &format!("/v1/sandboxes/{id}/ports/0/"), &server.admin, "").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(program.asked().len(), 3);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_kind_come_over_whole() {
    let world = World::new().await;
    // Chunked with a trailer, both ways.
    let program = Program::answering(
        "KEEP|HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let answer = world
        .talk(&format!(
            "PUT / HTTP/1.1\r\n{}te: trailers\r\ntrailer: x-in\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
             2\r\nhi\r\n0\r\nx-in: 8\r\n\r\n",
            world.to(program.port)
        ))
        .await;
    assert!(answer.contains("3\r\nabc\r\n0\r\nx-sum: 7\r\n"), "{answer}");
    assert!(program.only().contains("2\r\nhi\r\n0\r\nx-in: 8\r\n"), "{}", program.only());

    // A length and a coding at once are what requests are smuggled with: one request is what comes out.
    let program = Program::answering(HELLO).await;
    let smuggled = format!(
        "POST / HTTP/1.1\r\n{}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        world.to(program.port)
    );
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    stream.write_all(smuggled.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    assert!(program.asked().iter().all(|asked| !asked.contains("smuggled")), "{:?}", program.asked());

    // A body is sent when it is wanted.
    let program = Program::answering(HELLO).await;
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    let head =
        format!("POST / HTTP/1.1\r\n{}expect: 100-continue\r\ncontent-length: 4\r\n\r\n", world.to(program.port));
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, "100 Continue\r\n\r\n").await;
    stream.write_all(b"body").await.unwrap();
    until(&mut stream, "hello").await;
    assert!(program.only().ends_with("\r\n\r\nbody") && !program.only().contains("expect"));

    // HEAD has a length and no body.
    let program = Program::answering("CLOSE|HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
    let answer = world.talk(&format!("HEAD / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port))).await;
    assert!(answer.contains("content-length: 5") && body_of(&answer).is_empty(), "{answer}");

    // Without a length the end is the connection's.
    let program = Program::answering("CLOSE|HTTP/1.0 200 OK\r\n\r\nto the end").await;
    let answer = world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port))).await;
    assert!(answer.contains("to the end"), "{answer}");

    // What is no answer is told as none.
    for garbage in [
        "CLOSE|SSH-2.0-x\r\n",
        "CLOSE|",
        "CLOSE|HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    ] {
        let program = Program::answering(garbage).await;
        let answer =
            world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port))).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("gave no answer"), "{garbage}: {answer}");
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answers_head_is_bounded() {
    let world = World::new().await;
    let head = |fields: &str| format!("CLOSE|HTTP/1.1 200 OK\r\n{fields}content-length: 5\r\n\r\nhello").leak() as &str;
    let of = |bytes: usize| head(&format!("x-long: {}\r\n", "x".repeat(bytes)));
    let many = |count: usize| head(&(0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>());
    // What never ends is no longer in memory than what is too long.
    let endless = format!("HANG|HTTP/1.1 200 OK\r\nx-long: {}", "x".repeat(300_000)).leak() as &str;
    for (answer, passes) in
        [(of(100_000), true), (many(250), true), (of(140_000), false), (many(300), false), (endless, false)]
    {
        let program = Program::answering(answer).await;
        let request = format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port));
        let got = world.talk(&request).await;
        if passes {
            assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("hello"), "{}", got.len());
        } else {
            assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("is longer than 128 KiB"), "{}", got.len());
        }
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_leads_to_a_program_of_http_1() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Request::post(format!("http://{}/x", world.server.address))
        .header("e2b-sandbox-id", &world.text)
        .header("e2b-sandbox-port", program.port.to_string())
        .header("e2b-traffic-access-token", &world.token)
        // As browsers send them there.
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Body::from("body"))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
    let asked = program.only();
    assert!(asked.starts_with("post /x http/1.1\r\n") && asked.ends_with("body"), "{asked}");
    assert!(asked.contains(&format!("host: {}\r\n", world.server.address)), "{asked}");
    assert!(asked.contains("cookie: a=1; b=2\r\n"), "one field again: {asked}");
    world.server.stop().await;
}

const UPGRADE: &str =
    "UPGRADE|HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\nx-accept: 1\r\n\r\n";
const ENDLESS: &str = "HANG|HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_over_to_another_protocol() {
    let world = World::new().await;
    let program = Program::answering(UPGRADE).await;
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    let head = format!("GET /ws HTTP/1.1\r\n{}connection: Upgrade\r\nupgrade: echo\r\n\r\n", world.to(program.port));
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("upgrade: echo"), "{answer}");
    assert!(answer.contains("x-accept: 1"), "{answer}");
    let asked = program.only();
    assert!(asked.contains("upgrade: echo\r\n") && asked.contains("connection: upgrade\r\n"), "{asked}");
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let (mut from, mut to) = stream.into_split();
    let (writing, expected) = (sent.clone(), sent.len());
    let writer = tokio::spawn(async move {
        to.write_all(&writing).await.unwrap();
        to
    });
    let mut got = vec![0; expected];
    from.read_exact(&mut got).await.unwrap();
    assert!(got == sent);
    // The client's end is the program's end, and its end the client's.
    drop(writer.await.unwrap());
    assert_eq!(from.read(&mut [0; 1]).await.unwrap(), 0);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_over_to_a_protocol_that_was_not_asked_for() {
    let world = World::new().await;
    let program = Program::answering(UPGRADE).await;
    let answer = world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port))).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_sandbox_resets_what_is_under_way() {
    let world = World::new().await;
    let streaming = Program::answering(ENDLESS).await;
    let switched = Program::answering(UPGRADE).await;
    let mut plain = TcpStream::connect(world.server.address).await.unwrap();
    plain.write_all(format!("GET / HTTP/1.1\r\n{}\r\n", world.to(streaming.port)).as_bytes()).await.unwrap();
    until(&mut plain, "hello").await;
    let mut socket = TcpStream::connect(world.server.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\n{}connection: upgrade\r\nupgrade: echo\r\n\r\n", world.to(switched.port));
    socket.write_all(head.as_bytes()).await.unwrap();
    until(&mut socket, "\r\n\r\n").await;
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Request::get(format!("http://{}/", world.server.address))
        .header("e2b-sandbox-id", &world.text)
        .header("e2b-sandbox-port", streaming.port.to_string())
        .header("e2b-traffic-access-token", &world.token)
        .body(Body::empty())
        .unwrap();
    let mut second = client.request(request).await.unwrap().into_body();
    assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");

    world.destroy().await;
    for stream in [&mut plain, &mut socket] {
        let mut rest = Vec::new();
        let error = stream.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{rest:?}");
    }
    let error = second.frame().await.unwrap().unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("stream error") || cause.contains("reset"), "{error}: {cause}");
    let answer = world.talk(&format!("GET / HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(streaming.port))).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("The sandbox was not found"), "{answer}");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_has_one_operation_for_a_visit() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    for _ in 0..5 {
        world.talk(&format!("GET /secret HTTP/1.1\r\n{}connection: close\r\n\r\n", world.to(program.port))).await;
    }
    world.server.app.ports().end();
    let page = call(&world.server, "GET", "/v1/audit?limit=1000", &world.server.admin, "").await;
    let page: Value = serde_json::from_str(body_of(&page)).unwrap();
    let of_ports = |event: &str| -> Vec<Value> {
        let items = page["items"].as_array().unwrap().iter();
        items.filter(|item| item["action"] == "port_connect" && item["kind"] == event).cloned().collect()
    };
    let (intents, results) = (of_ports("intent"), of_ports("result"));
    assert_eq!((intents.len(), results.len()), (1, 1), "{page}");
    assert_eq!(intents[0]["details"]["port"], program.port);
    assert_eq!(intents[0]["details"]["peer"], "127.0.0.1");
    assert_eq!(intents[0]["by"]["kind"], "sandbox", "{}", intents[0]);
    assert_eq!(results[0]["details"]["requests"], 5, "{}", results[0]);
    assert!(!page.to_string().contains("secret"));
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_maker_of_a_sandbox_allows_is_what_visitors_may() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let make = async |network: &str| {
        let body = format!(r#"{{"templateID":"host","timeout":60,"network":{network}}}"#);
        let made = call(&world.server, "POST", "/v2/sandboxes", &world.server.admin, &body).await;
        assert!(made.starts_with("HTTP/1.1 201 "), "{made}");
        serde_json::from_str::<Value>(body_of(&made)).unwrap()
    };
    let visit = async |id: &Value, more: &str| {
        let host = format!("{}-{}.{DOMAIN}", program.port, id.as_str().unwrap());
        world.talk(&format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n")).await
    };
    let open = make("{}").await;
    assert!(open["trafficAccessToken"].is_null(), "{open}");
    assert!(visit(&open["sandboxID"], "").await.ends_with("hello"));
    assert!(visit(&open["sandboxID"], "e2b-traffic-access-token: wrong\r\n").await.ends_with("hello"));

    let closed = make(r#"{"allowPublicTraffic":false,"maskRequestHost":"inside:${PORT}"}"#).await;
    let token = closed["trafficAccessToken"].as_str().unwrap();
    assert!(visit(&closed["sandboxID"], "").await.starts_with("HTTP/1.1 403 "));
    let other = format!("e2b-traffic-access-token: {}\r\n", world.token);
    assert!(visit(&closed["sandboxID"], &other).await.starts_with("HTTP/1.1 403 "));
    assert!(visit(&closed["sandboxID"], &format!("e2b-traffic-access-token: {token}\r\n")).await.ends_with("hello"));
    let asked = program.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked[2].contains(&format!("host: inside:{}\r\n", program.port)), "{}", asked[2]);

    // A person who looks gets a page.
    let person = "user-agent: Mozilla/5.0\r\naccept: text/html\r\n";
    let page = visit(&closed["sandboxID"], person).await;
    assert!(page.starts_with("HTTP/1.1 403 ") && page.contains("<!doctype html>"), "{page}");

    // A visitor is on the record as one, and what they did as the maker's.
    world.server.app.ports().end();
    let page = call(&world.server, "GET", "/v1/audit?limit=1000", &world.server.admin, "").await;
    let page: Value = serde_json::from_str(body_of(&page)).unwrap();
    let items = page["items"].as_array().unwrap();
    let visits = items.iter().filter(|item| item["action"] == "port_connect" && item["by"]["kind"] == "visitor");
    assert_eq!(visits.filter(|item| item["username"] == "admin").count(), 2, "one intent and one result");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_carries_whatever_a_program_speaks() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = format!("/v1/sandboxes/{}/tunnels/{port}", world.id);
    let plain = call(&world.server, "GET", &path, &world.server.admin, "").await;
    assert!(plain.starts_with("HTTP/1.1 426 "), "{plain}");
    let ask = |key: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: upgrade{more}\r\n\
             upgrade: tcp\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    stream.write_all(ask(&world.server.admin, "").as_bytes()).await.unwrap();
    let answer = until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let (mut program, _) = listener.accept().await.unwrap();
    program.write_all(b"220 who speaks first\r\n").await.unwrap();
    until(&mut stream, "first\r\n").await;
    stream.write_all(b"QUIT").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    program.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "QUIT", "nothing of the request itself");
    drop(program);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    // Nobody else, and nothing where nothing listens.
    drop(listener);
    assert!(world.talk(&ask(&world.server.admin, ", close")).await.starts_with("HTTP/1.1 404 "));
    assert!(world.talk(&ask("rf_wrong", ", close")).await.starts_with("HTTP/1.1 401 "));
    world.server.stop().await;
}

/// A user's open sandbox, and how a visitor's request for a port of it begins.
async fn open_sandbox(world: &World, key: &str) -> impl Fn(&str, u16, &str) -> String + use<> {
    let body = r#"{"templateID":"host","timeout":60}"#;
    let made = call(&world.server, "POST", "/v2/sandboxes", key, body).await;
    assert!(made.starts_with("HTTP/1.1 201 "), "{made}");
    let made: Value = serde_json::from_str(body_of(&made)).unwrap();
    let id = made["sandboxID"].as_str().unwrap().to_owned();
    move |line, port, more| format!("{line} HTTP/1.1\r\nhost: {port}-{id}.{DOMAIN}\r\n{more}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_let_in_anew_is_visited_anew() {
    let world = World::new().await;
    let admin = &world.server.admin;
    let made = call(&world.server, "POST", "/v1/users", admin, r#"{"name":"ann"}"#).await;
    assert!(made.starts_with("HTTP/1.1 201 "), "{made}");
    let key = call(&world.server, "POST", "/v1/users/ann/keys", admin, r#"{"name":"k"}"#).await;
    let key: Value = serde_json::from_str(body_of(&key)).unwrap();
    let to = open_sandbox(&world, key["key"].as_str().unwrap()).await;
    let hanging = Program::answering(ENDLESS).await;
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    stream.write_all(to("GET /", hanging.port, "\r\n").as_bytes()).await.unwrap();
    until(&mut stream, "hello").await;
    let disable = async |disabled: bool| {
        let body = format!(r#"{{"disabled":{disabled}}}"#);
        let answer = call(&world.server, "PATCH", "/v1/users/ann", admin, &body).await;
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    };
    disable(true).await;
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    disable(false).await;
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    stream.write_all(to("GET /", hanging.port, "\r\n").as_bytes()).await.unwrap();
    until(&mut stream, "hello").await;
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_at_many_ports_is_few_records() {
    let world = World::new().await;
    let admin = &world.server.admin;
    let to = open_sandbox(&world, admin).await;
    // Where nothing listens; the kernel gives these to nobody by itself.
    for port in 61_001..=61_060 {
        world.talk(&to("GET /", port, "connection: close\r\n\r\n")).await;
    }
    world.server.app.ports().end();
    let page = call(&world.server, "GET", "/v1/audit?limit=1000", admin, "").await;
    let page: Value = serde_json::from_str(body_of(&page)).unwrap();
    let of = |kind: &str| -> Vec<Value> {
        let items = page["items"].as_array().unwrap().iter();
        items.filter(|item| item["action"] == "port_connect" && item["kind"] == kind).cloned().collect()
    };
    let (intents, results) = (of("intent"), of("result"));
    assert_eq!((intents.len(), results.len()), (33, 33), "32 ports, and all the others");
    let several: Vec<_> = intents.iter().filter(|intent| intent["details"]["port"] == "several").collect();
    assert_eq!((several.len(), &several[0]["details"]["peer"]), (1, &"127.0.0.1".into()));
    let requests: u64 = results.iter().map(|result| result["details"]["requests"].as_u64().unwrap()).sum();
    assert_eq!(requests, 60, "every request is counted");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_a_program_may_take_for_a_request_is_nobody_elses() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let second = "GET /theirs HTTP/1.1\r\nhost: x\r\n\r\n";
    let length = format!("content-length: {}\r\n\r\n{second}", second.len());
    let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
    for (n, (method, body)) in
        [("GET", &length), ("DELETE", &length), ("OPTIONS", &length), ("GET", &chunked)].into_iter().enumerate()
    {
        let answer = world
            .talk(&format!("{method} /mine HTTP/1.1\r\n{}connection: close\r\n{body}", world.to(program.port)))
            .await;
        assert!(answer.ends_with("hello"), "{method}: {answer}");
        assert!(
            program.asked()[n].contains(&second.to_ascii_lowercase()),
            "it comes over whole: {}",
            program.asked()[n]
        );
        // Until the connection would be free again.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*program.connections.lock().unwrap(), n + 1, "{method}");
    }
    // Control: what may bring a body leaves the connection for the next one.
    for _ in 0..20 {
        let post = format!("POST / HTTP/1.1\r\n{}connection: close\r\n{length}", world.to(program.port));
        assert!(world.talk(&post).await.ends_with("hello"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(*program.connections.lock().unwrap() < 10, "{} connections", program.connections.lock().unwrap());
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_elsewhere_may_read_our_own_ports_and_programs_say_it_themselves() {
    let world = World::new().await;
    let program = Program::answering(HELLO).await;
    let envd = world.server.app.e2b().tokens().envd_token(world.id);
    let page = "origin: https://page.example\r\nconnection: close\r\n";
    for (port, path, open) in [(49983, "/metrics", true), (49999, "/health", true), (program.port, "/", false)] {
        let asks = "access-control-request-method: GET\r\naccess-control-request-headers: x-access-token\r\n";
        let preflight = world.talk(&format!("OPTIONS {path} HTTP/1.1\r\n{}{page}{asks}\r\n", world.to(port))).await;
        let answer = format!("GET {path} HTTP/1.1\r\n{}{page}x-access-token: {envd}\r\n\r\n", world.to(port));
        for answer in [preflight, world.talk(&answer).await] {
            assert!(answer.starts_with("HTTP/1.1 2"), "{port}: {answer}");
            assert_eq!(answer.contains("access-control-allow-origin: *"), open, "{port}: {answer}");
        }
    }
    world.server.stop().await;
}
