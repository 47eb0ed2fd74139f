//! Ports of real sandboxes by the whole system: programs that listen on 127.0.0.1 alone are reached, nothing else is.

mod support;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;
use support::{Ran, System, eventually};

/// A page's server on 127.0.0.1 alone, with a file of 8 MiB; and beside it a program that goes over to raw bytes and
/// sends them back, as a WebSocket's server does.
const PROGRAM: &str = r#"
import http.server, os, socket, threading
os.chdir('/tmp'); open('big', 'wb').write(bytes(range(256)) * 32768); open('page', 'w').write('a page')
def echo():
    s = socket.create_server(('127.0.0.1', 9001))
    while True:
        c, _ = s.accept()
        def talk(c):
            head = b''
            while not head.endswith(b'\r\n\r\n'): head += c.recv(1)
            open('head', 'wb').write(head)
            c.sendall(b'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
            while (data := c.recv(65536)): c.sendall(data)
            c.close()
        threading.Thread(target=talk, args=(c,), daemon=True).start()
threading.Thread(target=echo, daemon=True).start()
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers(); self.wfile.write(body)
for port in (49983, 49999): threading.Thread(target=http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler).serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(('127.0.0.1', 8000), Handler).serve_forever()
"#;

fn connect(system: &System) -> TcpStream {
    let stream = TcpStream::connect(system.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// One request; its status, its head, and its body.
fn call(system: &System, line: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = connect(system);
    let length = body.len();
    let head =
        format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head.split_whitespace().nth(1).unwrap().parse().unwrap(), head, answer[end + 4..].to_vec())
}

fn key(system: &System) -> String {
    fs::read_to_string(system.state().join("first-key")).unwrap().trim().to_owned()
}

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

/// A sandbox in which the program runs.
fn sandbox(system: &System) -> String {
    let id = system.ok(&["create", "--memory", "256M", "--tasks", "64"]);
    let started =
        Ran::of(system.command(&["exec", "-s", &id, "-i", "--sh", "cat > /tmp/program.py"]), PROGRAM.as_bytes());
    started.expect(0);
    system.ok(&["exec", "-s", &id, "--detach", "--", "python3", "/tmp/program.py"]);
    let headers = bearer(&key(system));
    eventually("the program listens", || {
        call(system, &format!("GET /v1/sandboxes/{id}/ports/8000/page"), &headers, b"").0 == 200
    });
    id
}

#[test]
fn programs_that_listen_on_the_loopback_alone_are_reached_and_nothing_else() {
    let system = System::start();
    let id = sandbox(&system);
    let (mine, base) = (bearer(&key(&system)), format!("/v1/sandboxes/{id}/ports"));

    let (status, _, body) = call(&system, &format!("GET {base}/8000/page"), &mine, b"");
    assert_eq!((status, body.as_slice()), (200, &b"a page"[..]));
    let (status, _, body) = call(&system, &format!("GET {base}/8000/big"), &mine, b"");
    assert_eq!((status, body.len()), (200, 8 << 20));
    assert!(body.chunks(256).all(|chunk| chunk.iter().enumerate().all(|(n, b)| usize::from(*b) == n)));
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let (status, _, body) = call(&system, &format!("POST {base}/8000/"), &mine, &sent);
    assert!(status == 200 && body == sent);

    // Nothing listens there, or it is no port.
    let (status, _, body) = call(&system, &format!("GET {base}/8001/"), &mine, b"");
    let said: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, said["code"].as_str()), (404, Some("not_found")), "{said}");
    // The control plane's ports are its own, although the program listens on them.
    for port in [49983, 49999] {
        let inside = format!("import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/page').status)");
        assert_eq!(system.ok(&["exec", "-s", &id, "--", "python3", "-c", &inside]), "200", "control: it does listen");
        let (status, _, body) = call(&system, &format!("GET {base}/{port}/page"), &mine, b"");
        assert_eq!(status, 501, "{}", String::from_utf8_lossy(&body));
        let wire = format!("e2b-sandbox-id: {}\r\ne2b-sandbox-port: {port}\r\n", id.replace('_', ""));
        let (_, _, body) = call(&system, "GET /page", &wire, b"");
        assert_ne!(body, b"a page");
    }

    // Another user's key, and none.
    let bob = system.json(&["user", "add", "bob"])["key"].as_str().unwrap().to_owned();
    let (theirs, nobodys) =
        (format!("GET {base}/8000/page"), "GET /v1/sandboxes/sbx_00000000000000000000000000000007/ports/8000/page");
    let without_request = |body: &[u8]| {
        let mut said: Value = serde_json::from_slice(body).unwrap();
        said["request_id"] = Value::Null;
        said
    };
    let (status, _, body) = call(&system, &theirs, &bearer(&bob), b"");
    let (other_status, _, other) = call(&system, nobodys, &bearer(&bob), b"");
    assert_eq!((status, without_request(&body)), (other_status, without_request(&other)));
    assert_eq!(status, 404);
    assert_eq!(call(&system, &theirs, "", b"").0, 401);
    // By the sandbox's name alone: no door opened it.
    let wire = format!("e2b-sandbox-id: {}\r\ne2b-sandbox-port: 8000\r\n", id.replace('_', ""));
    let (status, _, body) = call(&system, "GET /page", &wire, b"");
    assert_eq!(status, 403, "{}", String::from_utf8_lossy(&body));
    system.stop();
}

#[test]
fn a_websocket_goes_through_and_is_reset_at_the_sandboxs_end() {
    let system = System::start();
    let id = sandbox(&system);
    let mut socket = connect(&system);
    let head = format!(
        "GET /v1/sandboxes/{id}/ports/9001/chat HTTP/1.1\r\nhost: localhost\r\n{}connection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n",
        bearer(&key(&system))
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let frames: Vec<u8> = (0..200_000_u32).map(|n| (n * 7) as u8).collect();
    let mut writer = socket.try_clone().unwrap();
    let sent = frames.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut got = vec![0; frames.len()];
    socket.read_exact(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == frames);
    let heard = system.ok(&["exec", "-s", &id, "--", "cat", "/tmp/head"]).to_ascii_lowercase();
    assert!(heard.starts_with("get /chat http/1.1\r\n") && heard.contains("sec-websocket-key: aaa"), "{heard}");
    assert!(!heard.contains("authorization") && !heard.contains(&key(&system)), "{heard}");

    system.ok(&["rm", &id]);
    let error = socket.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let (status, ..) = call(&system, &format!("GET /v1/sandboxes/{id}/ports/8000/page"), &bearer(&key(&system)), b"");
    assert_eq!(status, 404);
    let wire = format!("e2b-sandbox-id: {}\r\ne2b-sandbox-port: 8000\r\n", id.replace('_', ""));
    let (status, _, body) = call(&system, "GET /page", &wire, b"");
    assert!(status == 502 && String::from_utf8_lossy(&body).contains("The sandbox was not found"));
    system.stop();
}

#[test]
fn a_port_is_forwarded_to_this_computer() {
    let system = System::start();
    let id = sandbox(&system);
    let missing = "sbx_00000000000000000000000000000007";
    assert_eq!(system.run(&["port-forward", "-s", missing, "8000:0"]).code, 1);
    let mut forward = system.command(&["--json", "port-forward", "-s", &id, "8000:0", "8001:0"]);
    let mut forward = forward.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let told = serde_json::Deserializer::from_reader(forward.stdout.take().unwrap()).into_iter::<Value>().next();
    let told = told.unwrap().unwrap();
    let (open, closed) = (told[0]["local"].as_str().unwrap(), told[1]["local"].as_str().unwrap());
    for _ in 0..3 {
        let mut stream = TcpStream::connect(open).unwrap();
        stream.write_all(b"GET /big HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.") && answer.len() > 8 << 20, "{}", answer.len());
    }
    // Nothing listens there: the connection ends without a byte.
    let mut stream = TcpStream::connect(closed).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
    support::signal(forward.id(), "INT");
    assert!(forward.wait().unwrap().success());
    system.stop();
}

/// The address of a `port-forward` to port 8000 of a sandbox, and its process.
fn forwarded(system: &System, id: &str) -> (String, std::process::Child) {
    let mut forward = system.command(&["port-forward", "-s", id, "8000:0"]);
    let log = fs::File::create(system.dir().join("forward.log")).unwrap();
    let mut forward = forward.stdout(std::process::Stdio::piped()).stderr(log).spawn().unwrap();
    let mut table = io::BufReader::new(forward.stdout.take().unwrap());
    let mut row = String::new();
    for _ in 0..2 {
        row.clear();
        io::BufRead::read_line(&mut table, &mut row).unwrap();
    }
    (row.split_whitespace().next().unwrap().to_owned(), forward)
}

#[test]
fn a_forwarder_that_had_no_descriptors_left_goes_on() {
    let system = System::start();
    let id = sandbox(&system);
    let (address, mut forward) = forwarded(&system, &id);
    let page = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        read.is_ok() && answer.ends_with("a page")
    };
    assert!(page(), "control: it forwards");
    let pid = forward.id();
    let limit = |most: usize| {
        let limit = format!("--nofile={most}:");
        let status = std::process::Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
        assert!(status.success());
    };
    limit(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() + 3);
    // Each takes two there: its own and the tunnel's.
    let held: Vec<_> = (0..8).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let log = || fs::read_to_string(system.dir().join("forward.log")).unwrap();
    eventually("it says that it cannot take a connection", || log().contains("cannot accept a connection"));
    assert!(forward.try_wait().unwrap().is_none(), "{}", log());
    drop(held);
    limit(1024);
    eventually("it forwards again", page);
    support::signal(pid, "INT");
    assert!(forward.wait().unwrap().success());
    system.stop();
}
