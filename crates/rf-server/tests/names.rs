//! Ports by their names, `{port}-{sandbox}.{domain}`, with TLS, as browsers reach them: pages, WebSockets, HTTP/2.

mod support;

use std::{io, sync::Arc};

use axum::{body::Body, http::Request};
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rf_server::config::TlsConfig;
use rf_types::SandboxId;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use support::Listening;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

const DOMAIN: &str = "box.example.com";
/// Longer than what the kernel would move by itself, which under TLS it must not.
const LONG: usize = 3 << 20;

fn page() -> Vec<u8> {
    (0..LONG).map(|n| (n / 251) as u8).collect()
}

/// A program that answers every request with its head, or, for `/long`, with a long page.
async fn pages() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        // The connection's end.
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let body = if head.starts_with(b"GET /long ") { page() } else { head };
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&body).await.unwrap();
                }
            });
        }
    });
    port
}

/// A program that speaks WebSocket and says everything again.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    port
}

struct World {
    server: Listening,
    root: CertificateDer<'static>,
    _certificates: tempfile::TempDir,
    /// A sandbox whose ports everybody reaches, and one that needs its token.
    open: String,
    closed: String,
    token: String,
}

impl World {
    async fn new() -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let names = vec![DOMAIN.to_owned(), format!("*.{DOMAIN}")];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let files =
            TlsConfig { certificate: certificates.path().join("c.pem"), key: certificates.path().join("k.pem") };
        std::fs::write(&files.certificate, cert.pem()).unwrap();
        std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
        let server = Listening::with(|config| {
            config.tls = Some(files);
            // Where clients find it; that a test's own port is another does not matter to it.
            config.e2b.domain = Some(format!("{DOMAIN}:8443"));
        })
        .await;
        let (open, closed, token) = Default::default();
        let mut world = Self { server, root: cert.der().clone(), _certificates: certificates, open, closed, token };
        world.open = world.make(true).await;
        world.closed = world.make(false).await;
        let id: SandboxId = rf_e2b::id::sandbox_of(&world.closed).unwrap();
        world.token = world.server.app.e2b().tokens().traffic_token(id);
        world
    }

    async fn make(&self, public: bool) -> String {
        let body = json!({"templateID": "host", "timeout": 60, "network": {"allowPublicTraffic": public}}).to_string();
        let head = format!(
            "POST /v2/sandboxes HTTP/1.1\r\nhost: api.{DOMAIN}\r\nx-api-key: {}\r\ncontent-length: {}\r\n\
             content-type: application/json\r\nconnection: close\r\n\r\n{body}",
            self.server.admin,
            body.len()
        );
        let answer = self.talk(&format!("api.{DOMAIN}"), &head).await;
        let made: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(made["domain"], format!("{DOMAIN}:8443"), "{answer}");
        made["sandboxID"].as_str().unwrap().to_owned()
    }

    /// A connection that trusts the server's certificate alone, to this name.
    async fn connect(&self, host: &str, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.server.address).await?;
        let name = ServerName::try_from(host.to_owned()).unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Says something to a name and reads until the server closes.
    async fn talk(&self, host: &str, request: &str) -> String {
        let mut stream = self.connect(host, &[]).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // An end without TLS's own word for it is an end as well.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, host: &str, path: &str, more: &str) -> String {
        self.talk(host, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n")).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_reached_by_its_ports_name() {
    let world = World::new().await;
    let port = pages().await;
    let (open, closed) = (format!("{port}-{}.{DOMAIN}", world.open), format!("{port}-{}.{DOMAIN}", world.closed));
    let answer = world.get(&open, "/a?b=c", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let asked = answer.split_once("\r\n\r\n").unwrap().1.to_ascii_lowercase();
    assert!(asked.starts_with("get /a?b=c http/1.1\r\n") && asked.contains(&format!("host: {open}\r\n")), "{asked}");
    assert!(asked.contains("x-forwarded-proto: https\r\n"), "{asked}");

    // The one that is not for everybody, without its token, with another's and with its own.
    assert!(world.get(&closed, "/", "").await.starts_with("HTTP/1.1 403 "));
    assert!(world.get(&closed, "/", "e2b-traffic-access-token: x\r\n").await.starts_with("HTTP/1.1 403 "));
    let token = format!("e2b-traffic-access-token: {}\r\n", world.token);
    assert!(world.get(&closed, "/", &token).await.starts_with("HTTP/1.1 200 "));
    // What is not there, and a name that is no sandbox's.
    for host in [format!("{port}-sbx00000000000000000000000000000007.{DOMAIN}"), format!("1-{}.{DOMAIN}", world.open)] {
        assert!(world.get(&host, "/", &token).await.starts_with("HTTP/1.1 502 "), "{host}");
    }
    assert!(world.get(&format!("0-{}.{DOMAIN}", world.open), "/", "").await.starts_with("HTTP/1.1 400 "));

    // A long page, byte for byte, and then another request over the same connection.
    let mut stream = world.connect(&open, &[b"http/1.1"]).await.unwrap();
    for _ in 0..2 {
        stream.write_all(format!("GET /long HTTP/1.1\r\nhost: {open}\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let mut body = vec![0; LONG];
        stream.read_exact(&mut body).await.unwrap();
        assert!(body == page());
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_reached_by_its_ports_name() {
    let world = World::new().await;
    let port = echo().await;
    let (open, closed) = (format!("{port}-{}.{DOMAIN}", world.open), format!("{port}-{}.{DOMAIN}", world.closed));
    let stream = world.connect(&open, &[b"http/1.1"]).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(format!("wss://{open}/chat"), stream).await.unwrap();
    assert_eq!(answer.status(), 101);
    for message in [Message::text("hello"), Message::binary(page())] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();

    let stream = world.connect(&closed, &[b"http/1.1"]).await.unwrap();
    let refused = tokio_tungstenite::client_async(format!("wss://{closed}/"), stream).await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
    // Control: with its token.
    let mut request = format!("wss://{closed}/").into_client_request().unwrap();
    request.headers_mut().insert("e2b-traffic-access-token", world.token.parse().unwrap());
    let stream = world.connect(&closed, &[b"http/1.1"]).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    // At the end of the sandbox it breaks off, and is not closed in order.
    let id: SandboxId = rf_e2b::id::sandbox_of(&world.closed).unwrap();
    let api = format!("api.{DOMAIN}");
    let asked = format!(
        "DELETE /v1/sandboxes/{id} HTTP/1.1\r\nhost: {api}\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        world.server.admin
    );
    assert!(world.talk(&api, &asked).await.starts_with("HTTP/1.1 2"));
    assert!(!matches!(socket.next().await, Some(Ok(_))));
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_agreed_on_and_leads_to_the_same_programs() {
    let world = World::new().await;
    let port = pages().await;
    let open = format!("{port}-{}.{DOMAIN}", world.open);
    let stream = world.connect(&open, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driving = tokio::spawn(connection);
    let ask = |host: &str, path: &str| Request::get(format!("https://{host}{path}")).body(Body::empty()).unwrap();
    let answer = sender.send_request(ask(&open, "/long")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.into_body().collect().await.unwrap().to_bytes() == page());
    // One connection, another name: the name of each request is what counts.
    let other = format!("{port}-{}.{DOMAIN}", world.closed);
    assert_eq!(sender.send_request(ask(&other, "/")).await.unwrap().status(), 403);
    drop(sender);
    // How it ends is of no interest.
    let _ = driving.await.unwrap();
    world.server.stop().await;
}
