//! Long answers of programs in sandboxes, which the kernel moves from one socket to the other: whole, in order, and cut
//! like every other one.

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rf_types::SandboxId;
use serde_json::{Value, json};
use support::Listening;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The n-th byte of every body.
fn byte(n: usize) -> u8 {
    // Not of period 256, or a page in the wrong place would be the right one.
    ((n / 251) ^ n) as u8
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(byte).collect()
}

/// A program that answers `/LENGTH/how` with a body of that length, and counts its connections.
async fn program() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            // What becomes of it is the client's to see.
            tokio::spawn(async move { drop(serve(stream).await) });
        }
    });
    (port, connections)
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let text = String::from_utf8(head).unwrap();
        let path = text.split(' ').nth(1).unwrap();
        let mut parts = path.trim_start_matches('/').split('/');
        let (length, how) = (parts.next().unwrap().parse::<usize>().unwrap(), parts.next().unwrap_or(""));
        let version = if how == "old" { "1.0" } else { "1.1" };
        let more = if how == "last" { "connection: close\r\n" } else { "" };
        let head = format!("HTTP/{version} 200 OK\r\ncontent-length: {length}\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).await?;
        let body = bytes(length);
        match how {
            "slow" => {
                for piece in body.chunks(300_007) {
                    stream.write_all(piece).await?;
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            "cut" => return stream.write_all(&body[..length / 2]).await,
            "hang" => {
                stream.write_all(&body[..length / 2]).await?;
                return std::future::pending().await;
            }
            // At once: what comes later, when its connection is in use again, is taken for an answer.
            "more" => {
                let more = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
                stream.write_all(&[&body[..], more].concat()).await?;
            }
            "old" | "last" => return stream.write_all(&body).await,
            _ => stream.write_all(&body).await?,
        }
    }
}

/// A server with a sandbox of its operator's.
struct World {
    server: Listening,
    id: SandboxId,
    text: String,
    token: String,
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl World {
    async fn new() -> Self {
        let server = Listening::with(|_| {}).await;
        let (port, connections) = program().await;
        let mut world =
            Self { server, id: SandboxId::from_bits(0), text: String::new(), token: String::new(), port, connections };
        let made = world.call("POST", "/v1/sandboxes", &world.server.admin, "{}").await;
        world.id = made["id"].as_str().unwrap().parse().unwrap();
        world.text = rf_e2b::id::sandbox_text(world.id);
        world.token = world.server.app.e2b().tokens().traffic_token(world.id);
        world
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.address).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, key: &str, body: &str) -> Value {
        let mut stream = self.connect().await;
        let length = body.len();
        let asked = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or(Value::Null)
    }

    fn ask(&self, path: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\ne2b-sandbox-id: {}\r\ne2b-sandbox-port: {}\r\n\
             e2b-traffic-access-token: {}\r\n\r\n",
            self.text, self.port, self.token
        )
    }
}

/// Reads one head; its text.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head).unwrap())
}

/// Reads one answer whose body must be the one of this length.
async fn answer(stream: &mut TcpStream, length: usize) {
    let head = head(stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    if let Some(n) = body.iter().enumerate().position(|(n, b)| *b != byte(n)) {
        panic!("byte {n} of {length} is another");
    }
}

/// Whether this process, in which the server is, has a pipe of the size that only bodies are moved by.
fn moves() -> bool {
    std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok).any(|entry| {
        let is_pipe = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"));
        let size = |file: std::fs::File| rustix::pipe::fcntl_getpipe_size(file).ok();
        // Opened anew: the descriptor itself is somebody else's.
        is_pipe && std::fs::File::open(entry.path()).ok().and_then(size) == Some(256 << 10)
    })
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in time: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_length_comes_over_whole_one_after_the_other() {
    let world = World::new().await;
    let mut stream = world.connect().await;
    let limit = 1 << 20;
    let lengths = [1, limit - 1, limit, limit + 1, 3 * limit + 7, 0, 20 * limit, limit, 5, 8 * limit];
    for length in lengths {
        stream.write_all(world.ask(&format!("/{length}")).as_bytes()).await.unwrap();
        answer(&mut stream, length).await;
        // Until its connection is free again, which its own task says.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(world.connections.load(Ordering::Relaxed) < 4, "connections are kept");
    // In pieces, and for a client that sends all its requests before it reads.
    for how in ["slow", "last", "old", "more"] {
        let lengths = [2 * limit + 3, 5, limit, 4 * limit + 1];
        let asked: String = lengths.iter().map(|length| world.ask(&format!("/{length}/{how}"))).collect();
        stream.write_all(asked.as_bytes()).await.unwrap();
        for length in lengths {
            answer(&mut stream, length).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    eventually("no pipe is left", || !moves()).await;
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_do_not_get_into_each_others_way() {
    let world = Arc::new(World::new().await);
    // More than there are pipes for: those without one are copied.
    let clients = (0..160_usize).map(|n| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let mut stream = world.connect().await;
            for length in [(1 << 20) + n * 1_001, 70_000, (1 << 20) + n] {
                stream.write_all(world.ask(&format!("/{length}")).as_bytes()).await.unwrap();
                answer(&mut stream, length).await;
            }
        })
    });
    for client in futures::future::join_all(clients).await {
        client.unwrap();
    }
    eventually("no pipe is left", || !moves()).await;
    let Ok(world) = Arc::try_unwrap(world) else { panic!("all clients have ended") };
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_breaks_off_is_not_told_as_whole() {
    let world = World::new().await;
    for length in [2 << 20, 64 << 20] {
        let mut stream = world.connect().await;
        stream.write_all(world.ask(&format!("/{length}/cut")).as_bytes()).await.unwrap();
        head(&mut stream).await.unwrap();
        let mut body = Vec::new();
        let ended = stream.read_to_end(&mut body).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{} bytes", body.len());
        assert!(body.len() <= length / 2 && body.iter().enumerate().all(|(n, b)| *b == byte(n)));
    }
    eventually("no pipe is left", || !moves()).await;
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_sandbox_or_a_credential_cuts_what_is_under_way() {
    let world = World::new().await;
    let made = world.call("POST", "/v1/keys", &world.server.admin, &json!({"name": "short"}).to_string()).await;
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let ask = |path: &str| {
        let base = format!("/v1/sandboxes/{}/ports/{}", world.id, world.port);
        format!("GET {base}{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n")
    };
    let length = 8 << 20;
    let (mut by_key, mut by_token, mut unread) = (world.connect().await, world.connect().await, world.connect().await);
    by_key.write_all(ask(&format!("/{length}/hang")).as_bytes()).await.unwrap();
    by_token.write_all(world.ask(&format!("/{length}/hang")).as_bytes()).await.unwrap();
    // Its client takes nothing, so that it is stuck on the way out and not on the way in.
    unread.write_all(world.ask(&format!("/{}", 256 << 20)).as_bytes()).await.unwrap();
    for stream in [&mut by_key, &mut by_token] {
        head(stream).await.unwrap();
        let mut half = vec![0; length / 2];
        stream.read_exact(&mut half).await.unwrap();
        assert!(half.iter().enumerate().all(|(n, b)| *b == byte(n)));
    }
    assert!(moves(), "else this is no test of it");

    world.call("DELETE", &format!("/v1/keys/{id}"), &world.server.admin, "").await;
    let cut = tokio::time::timeout(Duration::from_secs(20), by_key.read_u8()).await.expect("it is cut");
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // The other credential stands, and so does what it asked for.
    assert!(tokio::time::timeout(Duration::from_millis(200), by_token.read_u8()).await.is_err());

    world.call("DELETE", &format!("/v1/sandboxes/{}", world.id), &world.server.admin, "").await;
    let cut = tokio::time::timeout(Duration::from_secs(20), by_token.read_u8()).await.expect("it is cut");
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(20), unread.read_to_end(&mut rest)).await.expect("it is cut");
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{} bytes came", rest.len());
    eventually("no pipe is left", || !moves()).await;
    world.server.stop().await;
}
