//! Two-way streams over WebSocket, on inits that really start programs.

mod support;

use futures::{SinkExt as _, StreamExt as _};
use rf_wire::frames;
use serde_json::{Value, json};
use support::Listening;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(server: &Listening, path: &str) -> Result<Socket, tungstenite::Error> {
    connect_with(server, path, &server.admin).await
}

async fn connect_with(server: &Listening, path: &str, key: &str) -> Result<Socket, tungstenite::Error> {
    let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    connect_async(request).await.map(|(socket, _)| socket)
}

async fn start(server: &Listening, ask: Value) -> Socket {
    let mut socket = connect(server, "/v1/exec/stream").await.unwrap();
    socket.send(Message::text(ask.to_string())).await.unwrap();
    socket
}

fn frame(kind: u8, payload: &[u8]) -> Message {
    Message::binary([&frames::header(kind, payload.len()), payload].concat())
}

/// The next frame; `None` when the server has closed.
async fn next(socket: &mut Socket) -> Option<(u8, Vec<u8>)> {
    loop {
        match socket.next().await? {
            Ok(Message::Binary(bytes)) => {
                let (kind, payload) = frames::parse_message(&bytes).unwrap();
                return Some((kind, payload.to_vec()));
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(other) => panic!("{other:?}"),
        }
    }
}

/// All until the last frame.
async fn rest(socket: &mut Socket) -> (Vec<u8>, Vec<u8>, (u8, Value)) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match next(socket).await.expect("a last frame") {
            (frames::STARTED, _) => {}
            (frames::STDOUT, bytes) => out.extend(bytes),
            (frames::STDERR, bytes) => err.extend(bytes),
            (kind, json) => return (out, err, (kind, serde_json::from_slice(&json).unwrap())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_output_go_both_ways_until_the_exit() {
    let server = Listening::with(|_| {}).await;
    let mut socket = start(&server, json!({"shell": "cat; echo err >&2; exit 5", "stdin": "first "})).await;
    assert_eq!(next(&mut socket).await.unwrap().0, frames::STARTED);
    socket.send(frame(frames::STDIN, b"second")).await.unwrap();
    socket.send(frame(frames::STDIN_END, b"")).await.unwrap();
    let (out, err, (kind, exit)) = rest(&mut socket).await;
    assert_eq!((out, err), (b"first second".to_vec(), b"err\n".to_vec()));
    assert_eq!((kind, &exit["code"]), (frames::EXIT, &json!(5)));
    assert!(next(&mut socket).await.is_none());
    server.stop().await;
}

/// Attack: orders without end on one connection, each of which is judged, recorded and carried out.
#[tokio::test(flavor = "multi_thread")]
async fn orders_on_a_stream_count_as_requests() {
    const ORDERS: u32 = 40;
    let rate = rf_gate::Rate { per_second: 20, burst: 10 };
    let server = Listening::with(|config| config.gate.requests = rate).await;
    // At the pace of the rate: whatever the burst holds, the rest waits.
    let least = std::time::Duration::from_millis(u64::from(1_000 / rate.per_second * (ORDERS - rate.burst)));
    // SIGCONT changes nothing of what runs.
    let order = frame(frames::SIGNAL, json!({"signal": 18}).to_string().as_bytes());
    let mut own = start(&server, json!({"argv": ["cat"]})).await;
    assert_eq!(next(&mut own).await.unwrap().0, frames::STARTED);
    let since = std::time::Instant::now();
    for _ in 0..ORDERS {
        own.send(order.clone()).await.unwrap();
    }
    own.send(frame(frames::STDIN, b"after\n")).await.unwrap();
    let echo = next(&mut own).await.unwrap();
    assert!(echo.0 == frames::STDOUT && since.elapsed() >= least, "{echo:?} after {:?}", since.elapsed());
    own.send(frame(frames::SIGNAL, json!({"signal": 9}).to_string().as_bytes())).await.unwrap();
    assert_eq!(rest(&mut own).await.2.0, frames::EXIT);

    // A pause gives the burst back, for the requests that come now.
    tokio::time::sleep(least).await;
    let begun = json!({"shell": "read line; echo $line", "background": true, "stdin": true});
    let (status, item) = post(&server, "/v1/exec", &begun.to_string()).await;
    assert_eq!(status, 202, "{item}");
    let path = format!("/v1/execs/{}/attach", item["id"].as_str().unwrap());
    let mut attached = connect(&server, &path).await.unwrap();
    assert_eq!(next(&mut attached).await.unwrap().0, frames::STARTED);
    let since = std::time::Instant::now();
    for _ in 0..ORDERS {
        attached.send(order.clone()).await.unwrap();
    }
    attached.send(frame(frames::STDIN, b"after\n")).await.unwrap();
    let (out, _, (kind, _)) = rest(&mut attached).await;
    assert_eq!((out, kind), (b"after\n".to_vec(), frames::EXIT));
    assert!(since.elapsed() >= least, "{:?}", since.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_input_to_a_program_that_echoes_it_does_not_lock_up() {
    let server = Listening::with(|_| {}).await;
    let mut socket = start(&server, json!({"argv": ["cat"]})).await;
    let (mut to_server, from_server) = {
        assert_eq!(next(&mut socket).await.unwrap().0, frames::STARTED);
        socket.split()
    };
    let piece: Vec<u8> = (0..500_000u32).map(|n| n as u8).collect();
    let sending = tokio::spawn({
        let piece = piece.clone();
        async move {
            for _ in 0..20 {
                to_server.send(frame(frames::STDIN, &piece)).await.unwrap();
            }
            to_server.send(frame(frames::STDIN_END, b"")).await.unwrap();
            to_server
        }
    });
    let mut out = Vec::new();
    let mut from_server = from_server;
    loop {
        let Message::Binary(bytes) = from_server.next().await.unwrap().unwrap() else { continue };
        match frames::parse_message(&bytes).unwrap() {
            (frames::STDOUT, payload) => out.extend_from_slice(payload),
            (frames::EXIT, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(out == piece.repeat(20), "{} bytes", out.len());
    drop(sending.await.unwrap());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_frame_ends_the_exec() {
    let server = Listening::with(|_| {}).await;
    let mut socket = start(&server, json!({"argv": ["sleep", "1000"]})).await;
    assert_eq!(next(&mut socket).await.unwrap().0, frames::STARTED);
    socket.send(frame(frames::SIGNAL, br#"{"signal":15,"scope":"tree"}"#)).await.unwrap();
    let (_, _, (kind, exit)) = rest(&mut socket).await;
    assert_eq!((kind, &exit["signal"]), (frames::EXIT, &json!(15)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_exec_along() {
    let server = Listening::with(|_| {}).await;
    let mut socket = start(&server, json!({"argv": ["sleep", "1000"]})).await;
    let (_, started) = next(&mut socket).await.unwrap();
    let id: rf_types::ExecId =
        serde_json::from_slice::<Value>(&started).unwrap()["id"].as_str().unwrap().parse().unwrap();
    let running = server.app.places().execs().running();
    assert_eq!(running, 1, "{id}");
    drop(socket);
    while server.app.places().execs().running() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_is_said_and_closed() {
    let server = Listening::with(|_| {}).await;
    for (first, then, message) in [
        (Message::binary(b"x".to_vec()), None, "the first message must be the command as JSON text"),
        (Message::text("{}"), None, "give either `argv` or `shell`"),
        (Message::text(r#"{"argv":["true"],"background":true}"#), None, "a stream is not for the background: use POST"),
        (Message::text(r#"{"argv":["cat"]}"#), Some(Message::binary(b"x".to_vec())), "a message is no frame: Short"),
        (Message::text(r#"{"argv":["cat"]}"#), Some(Message::text("x")), "a text where a frame belongs"),
        (Message::text(r#"{"argv":["cat"]}"#), Some(frame(1, b"x")), "a client sends no frame of kind 1"),
        (Message::text(r#"{"argv":["cat"]}"#), Some(frame(frames::SIGNAL, b"{}")), ""),
        (
            Message::text(r#"{"argv":["cat"]}"#),
            Some(frame(frames::RESIZE, br#"{"rows":1,"cols":1}"#)),
            "this exec has no terminal",
        ),
    ] {
        let mut socket = connect(&server, "/v1/exec/stream").await.unwrap();
        socket.send(first).await.unwrap();
        if let Some(then) = then {
            assert_eq!(next(&mut socket).await.unwrap().0, frames::STARTED);
            socket.send(then).await.unwrap();
        }
        let (_, _, (kind, fault)) = rest(&mut socket).await;
        assert_eq!((kind, &fault["code"]), (frames::FAULT, &json!("invalid_request")), "{fault}");
        assert!(fault["message"].as_str().unwrap().starts_with(message), "{fault}");
        assert!(fault["request_id"].as_str().unwrap().starts_with("req_"));
        assert!(next(&mut socket).await.is_none());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_users_place_in_the_first_message_answers_as_one_that_does_not_exist() {
    let server = Listening::with(|_| {}).await;
    let nobodys = "sbx_00000000000000000000000000000000";
    let mut socket = start(&server, json!({"argv": ["true"], "place": nobodys})).await;
    let (_, _, (kind, fault)) = rest(&mut socket).await;
    assert_eq!(
        (kind, &fault["code"], &fault["message"]),
        (frames::FAULT, &json!("not_found"), &json!("no such sandbox"))
    );
    // A place of the path is refused before the upgrade.
    match connect(&server, &format!("/v1/sandboxes/{nobodys}/exec/stream")).await {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 404),
        other => panic!("{other:?}"),
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_in_the_background_is_attached_to_fed_and_left_again() {
    let server = Listening::with(|_| {}).await;
    let request = json!({"shell": "echo up; read line; echo \"got $line\"", "stdin": true, "background": true});
    let body = request.to_string();
    let (status, item) = post(&server, "/v1/exec", &body).await;
    assert_eq!(status, 202, "{item}");
    let path = format!("/v1/execs/{}/attach", item["id"].as_str().unwrap());
    let mut first = connect(&server, &path).await.unwrap();
    assert_eq!(next(&mut first).await.unwrap().0, frames::STARTED);
    assert_eq!(next(&mut first).await.unwrap(), (frames::STDOUT, b"up\n".to_vec()));
    // Left: it runs on.
    drop(first);
    let mut second = connect(&server, &format!("{path}?stdout_offset=3")).await.unwrap();
    assert_eq!(next(&mut second).await.unwrap().0, frames::STARTED);
    second.send(frame(frames::STDIN, b"line\n")).await.unwrap();
    let (out, _, (kind, exit)) = rest(&mut second).await;
    assert_eq!(
        (String::from_utf8(out).unwrap().as_str(), kind, &exit["code"]),
        ("got line\n", frames::EXIT, &json!(0))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_keys_sockets_end_with_a_typed_fault() {
    let server = Listening::with(|_| {}).await;
    let (_, key) = post(&server, "/v1/keys", r#"{"name":"other"}"#).await;
    let mut socket = connect_with(&server, "/v1/exec/stream", key["key"].as_str().unwrap()).await.unwrap();
    socket.send(Message::text(json!({"shell": "echo $$; exec sleep 1000"}).to_string())).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap().0, frames::STARTED);
    let pid = String::from_utf8(next(&mut socket).await.unwrap().1).unwrap();
    let id = key["id"].as_str().unwrap().parse().unwrap();
    let who = rf_gate::Presented::ApiKey(&server.admin);
    let who = server.app.gate().authenticate(who, None, server.app.now()).await.unwrap();
    server.app.store().key_revoke(who.scope(), id, server.app.now()).unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), rest(&mut socket));
    let (_, _, (kind, fault)) = ended.await.expect("it ends soon");
    assert_eq!((kind, &fault["code"]), (frames::FAULT, &json!("unauthenticated")), "{fault}");
    assert!(next(&mut socket).await.is_none());
    while std::path::Path::new(&format!("/proc/{}", pid.trim())).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    server.stop().await;
}

async fn post(server: &Listening, path: &str, body: &str) -> (u16, Value) {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http::<Body>();
    let request = Request::post(format!("http://{}{path}", server.address))
        .header("authorization", format!("Bearer {}", server.admin))
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = client.request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

/// Attack: guess tokens, or fill the record with refusals, by machines that prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_prove_nothing_are_turned_away_after_some() {
    use rf_wire::machine::{self, kind};

    const MOST: u32 = 3;
    let failures = rf_gate::Rate { per_second: 1, burst: MOST };
    let server = Listening::with(|config| config.gate.failures = failures).await;
    let facts = json!({
        "hostname": "h", "os": "linux", "kernel": "6", "arch": "x86_64", "home": "/h", "username": "u",
        "workspace": "/w", "level": "workspace", "version": "1", "landlock_abi": 1, "not_held": [],
    });
    let hello = json!({
        "version_min": machine::VERSION, "version_max": machine::VERSION, "origin": "http://x:1", "facts": facts,
        "proof": { "by": "token", "token": "rfe_", "public_key": "00".repeat(32), "signature": "00".repeat(64) },
        "resume": null,
    });
    let mut refused = 0;
    loop {
        let request = format!("ws://{}/v1/machines/connect", server.address).into_client_request().unwrap();
        let mut socket = match connect_async(request).await {
            Ok((socket, _)) => socket,
            Err(tungstenite::Error::Http(response)) => {
                assert_eq!(response.status().as_u16(), 429);
                break;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(matches!(socket.next().await, Some(Ok(Message::Binary(_)))), "the challenge");
        socket.send(Message::binary(machine::encode_json(kind::HELLO, &hello))).await.unwrap();
        let Some(Ok(Message::Binary(bye))) = socket.next().await else { panic!("it is told why") };
        let Ok(machine::Frame::Json { kind: kind::BYE, json }) = machine::Frame::decode(&bye) else {
            panic!("{bye:?}")
        };
        let bye: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(bye["fault"]["code"], "unauthenticated", "{bye}");
        // Until the server is through with it.
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
        refused += 1;
        assert!(refused < 60, "one after the other is heard");
    }
    assert!(refused >= MOST, "{refused}");
    // The control: a key is heard all the same.
    let mut socket = start(&server, json!({"argv": ["true"]})).await;
    assert!(next(&mut socket).await.is_some());
    server.stop().await;
}
