//! The edge on a real socket: TLS, slow and too many clients, HTTP/2, ids, a graceful end.

mod support;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rf_server::config::TlsConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use support::Listening;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Writes `request` and reads until the server closes.
async fn talk(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A reset instead of an end is an end as well.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_no_whole_header_is_let_go() {
    let server = Listening::with(|config| config.door.header_timeout_ms = 200).await;
    for slow in [&b""[..], b"P", b"PRI * HTTP/2", b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nx-a:"] {
        let answer = talk(server.address, slow).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // Control: whoever sends it in time is answered.
    let answer = talk(server.address, b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_long_is_not_kept() {
    let server = Listening::with(|_| {}).await;
    let head = |bytes: usize| {
        let fill = "a".repeat(bytes);
        format!("GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-fill: {fill}\r\n\r\n").into_bytes()
    };
    let answer = talk(server.address, &head(256 << 10)).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    // Control: one that fits is answered.
    let answer = talk(server.address, &head(64 << 10)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_half_way_reads_why_after_sending_the_rest() {
    let server = Listening::with(|_| {}).await;
    let body = vec![b'x'; 8 << 20];
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "PUT /v1/sandboxes/none/files?path=x HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // More than the sockets hold, so that it is still being sent when the answer is there.
        stream.write_all(&body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("connection: close"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so() {
    let server = Listening::with(|config| config.door.connections_max = 1).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["code"], "server_busy");
    drop(first);
    // Its place is free again once its end was seen.
    loop {
        let answer =
            talk(server.address, b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        if answer.starts_with("HTTP/1.1 200 ") {
            break;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_peer_does_not_take_every_seat() {
    let server = Listening::with(|config| config.door.connections_per_peer_max = 2).await;
    let _held = [TcpStream::connect(server.address).await.unwrap(), TcpStream::connect(server.address).await.unwrap()];
    let answer = talk(server.address, b"").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    // Another address of this machine is another peer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(server.address).await.unwrap();
    other.write_all(b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_given_up_and_its_exec_with_it() {
    let server = Listening::with(|config| config.door.stall_timeout_ms = 1_000).await;
    let body = r#"{"argv":["cat","/dev/zero"]}"#;
    let request = format!(
        "POST /v1/exec HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\naccept: {}\r\ncontent-length: {}\r\n\r\n{body}",
        server.admin,
        rf_wire::frames::MEDIA_TYPE,
        body.len()
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let execs = server.app.places().execs();
    while execs.running() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while execs.running() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(stream);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_without_an_upgrade() {
    let server = Listening::with(|_| {}).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let uri = format!("http://{}/v1/health/ready", server.address);
    let response = client.request(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.version(), axum::http::Version::HTTP_2);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["ready"], true);
    drop(client);
    server.stop().await;
}

/// Attack: a stranger asks without end whether the server is ready, which looks at the store.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_whether_it_is_ready_does_not_wait_for_the_store() {
    const ASK: &[u8] = b"GET /v1/health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let server = Listening::with(|_| {}).await;
    assert!(talk(server.address, ASK).await.starts_with("HTTP/1.1 200 OK"));
    let mut raw = rusqlite::Connection::open(server.dir.path().join("server/state.db")).unwrap();
    let held = raw.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let since = std::time::Instant::now();
    let mut said = String::new();
    // One look takes as long as the store is waited for, a second.
    for _ in 0..40 {
        said = talk(server.address, ASK).await;
    }
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    while !said.contains("\"store\":false") {
        assert!(since.elapsed() < Duration::from_secs(15), "{said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        said = talk(server.address, ASK).await;
    }
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    drop(held);
    while !talk(server.address, ASK).await.starts_with("HTTP/1.1 200 OK") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_warden_lives_and_is_not_ready() {
    let mut server = Listening::with(|_| {}).await;
    let address = server.address;
    let ask = |what: &str| {
        let request = format!("GET /v1/health/{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        async move { talk(address, request.as_bytes()).await }
    };
    let until = async |status: &str| loop {
        let said = ask("ready").await;
        if said.starts_with(status) {
            return said;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    server.warden.die();
    let said = tokio::time::timeout(Duration::from_secs(30), until("HTTP/1.1 503")).await.unwrap();
    assert!(said.ends_with(r#"{"ready":false,"store":true,"ledger":true,"warden":false}"#), "{said}");
    assert!(ask("live").await.starts_with("HTTP/1.1 200 OK"));
    server.warden.listen();
    tokio::time::timeout(Duration::from_secs(30), until("HTTP/1.1 200")).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_request_and_harms_nobody() {
    let server = Listening::with(|_| {}).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  /  HTTP/1.1\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST /v1/exec HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/exec HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let answer = talk(server.address, garbage).await;
        assert!(!answer.contains("200 OK"), "{garbage:?}: {answer}");
    }
    let answer = talk(server.address, b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("200 OK"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_id_is_in_the_answer_and_in_the_ledger() {
    let server = Listening::with(|_| {}).await;
    let request = format!(
        "GET /v1/me HTTP/1.1\r\nhost: x\r\nx-request-id: req_00000000000000000000000000000001\r\nx-api-key: {}\r\n\
         connection: close\r\n\r\n",
        server.admin
    );
    let answer = talk(server.address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    assert_ne!(id, "req_00000000000000000000000000000001", "a client does not choose what the ledger says");
    let query = rf_ledger::Query {
        user: None,
        filter: rf_ledger::Filter { request: Some(id.parse().unwrap()), ..Default::default() },
        order: rf_ledger::Order::OldestFirst,
        after: None,
        limit: 10,
    };
    let kinds: Vec<_> = server.app.ledger().page(&query).unwrap().records.iter().map(|record| record.kind).collect();
    assert_eq!(kinds, [rf_ledger::Kind::Intent, rf_ledger::Kind::Result]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_request_is_answered_before_the_end() {
    let server = Listening::with(|_| {}).await;
    let body = r#"{"shell":"read x; echo done","stdin":{"text":"x\n"}}"#;
    let request = format!(
        "POST /v1/exec HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        server.admin,
        body.len()
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    // The server says so when it begins to read the body: then the request runs, and its body is still on its way when
    // the end is told.
    const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut told = vec![0; GO_ON.len()];
    stream.read_exact(&mut told).await.unwrap();
    assert_eq!(told, GO_ON);
    let address = server.address;
    let ending = tokio::spawn(server.stop());
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("done\\n"), "{answer}");
    ending.await.unwrap();
}

fn certificate(dir: &std::path::Path, name: &str) -> (TlsConfig, rustls::pki_types::CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let files = TlsConfig { certificate: dir.join("c.pem"), key: dir.join("k.pem") };
    std::fs::write(&files.certificate, cert.pem()).unwrap();
    std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
    (files, cert.der().clone())
}

async fn tls(
    address: SocketAddr,
    name: &'static str,
    root: rustls::pki_types::CertificateDer<'static>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_its_certificate_and_takes_up_a_new_one() {
    let certificates = tempfile::tempdir().unwrap();
    let (files, old) = certificate(certificates.path(), "one.test");
    let server = Listening::with(|config| config.tls = Some(files.clone())).await;
    let mut stream = tls(server.address, "one.test", old.clone()).await.unwrap();
    stream.write_all(b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    // Plain HTTP is not answered there.
    let answer = talk(server.address, b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!answer.contains("200"), "{answer}");

    let (_, fresh) = certificate(certificates.path(), "two.test");
    // It is looked at every few seconds; the test's own time limit is the bound.
    while tls(server.address, "two.test", fresh.clone()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(tls(server.address, "one.test", old).await.is_err(), "the old certificate is still served");
    server.stop().await;
}

#[test]
fn a_certificate_that_does_not_fit_its_key_is_refused_and_a_broken_change_keeps_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _) = certificate(dir.path(), "one.test");
    let kept = rf_server::tls::Certificate::load(files.clone()).unwrap();
    let other = generate_simple_self_signed(vec!["two.test".to_owned()]).unwrap();
    std::fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
    assert!(rf_server::tls::Certificate::load(files.clone()).is_err());
    // Longer, so that it is seen however coarse the file system's clock is.
    std::fs::write(&files.certificate, format!("{}\n\n", other.cert.pem())).unwrap();
    assert!(kept.reload().unwrap());
    std::fs::write(&files.certificate, "nonsense").unwrap();
    assert!(kept.reload().is_err());
    assert!(kept.reload().is_err(), "it is tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_on_their_own_listener_need_no_credential_and_name_no_user() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let server = Listening::with(|config| config.metrics.listen = Some(address)).await;
    let request = format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nconnection: close\r\n\r\n", server.admin);
    talk(server.address, request.as_bytes()).await;
    let answer = talk(address, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains(r#"ringfence_operations_total{action="sandbox_read",result="ok"} 1"#), "{answer}");
    assert!(!answer.contains("admin") && !answer.contains("usr_"), "{answer}");
    let other = talk(address, b"GET /v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    server.stop().await;
}

/// What a server says of HTTP/2 at its beginning (RFC 9113, sections 6.5 and 6.9).
#[tokio::test(flavor = "multi_thread")]
async fn what_may_come_over_http_2_before_anybody_takes_it_is_bounded() {
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    const STREAMS: u16 = 3;
    const WINDOW: u16 = 4;
    const HEADERS: u16 = 6;
    let server = Listening::with(|_| {}).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut settings, mut connection) = (std::collections::BTreeMap::new(), 65_535);
    while settings.is_empty() || connection == 65_535 {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        match head[3] {
            // Not the answer to ours.
            SETTINGS if head[4] == 0 => {
                let pairs = payload.chunks(6).map(|six| (u16::from_be_bytes([six[0], six[1]]), number(&six[2..])));
                settings.extend(pairs);
            }
            WINDOW_UPDATE => connection += number(&payload),
            _ => {}
        }
    }
    assert_eq!((settings[&STREAMS], settings[&HEADERS]), (128, 64 << 10));
    assert_eq!((settings[&WINDOW], connection), (512 << 10, 1 << 20), "as docs/CONFIGURATION.md says");
    server.stop().await;
}
