//! Memory of the server itself: everything that strangers and users can make it hold is held at once, in a process that may
//! not have much. What has no room is a typed error in time, and nobody is restarted.

use std::{
    fs,
    io::{self, Write as _},
    net::{Shutdown, TcpStream},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    field::{Field, until},
    http::{Call, Said},
};

/// Longest time to an answer, whatever it is.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// What the server may have beyond what it has when nobody asks anything, bytes. Chosen: well below what is asked of it.
const MORE: u64 = 640 << 20;
/// Resident memory that it may come to beyond that of an idle one, KiB: the 256 MiB that large things share, and as much
/// again for what each connection may have.
const GROWTH_KIB_MAX: u64 = 512 << 10;

/// A frame of an exec's stream: its header's length, and the kind that is input.
const FRAME_HEADER: usize = 8;
const STDIN: u8 = 16;

const HEADS: usize = 600;
const BODIES: usize = 96;
const STREAMS: usize = 40;
const READERS: usize = 40;
const IDLE: usize = 300;
const BODY: usize = 8 << 20;

/// A number of a process's status, KiB.
fn status_kib(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bounds a process's address space; 0: takes the bound away. By its own user, who may.
fn bound(field: &Field, pid: u32, bytes: u64) {
    let owner = fs::metadata(field.system.state().join("server")).unwrap();
    let bytes = if bytes == 0 { "unlimited".to_owned() } else { bytes.to_string() };
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), &format!("--as={bytes}:")]).uid(owner.uid()).gid(owner.gid());
    assert!(prlimit.status().unwrap().success(), "{prlimit:?}");
}

/// Sends what is taken until nothing was for a moment; how much that was.
fn push(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            // It takes no more, or has answered and gone.
            Err(_) => break,
        }
    }
    sent
}

/// Whether an answer has begun to come, or comes in a moment.
fn has_answer(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let begun = stream.peek(&mut [0]).is_ok_and(|count| count > 0);
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    begun
}

/// One frame of an exec's stream in one message of a WebSocket's client, masked with zeros (RFC 6455, section 5.2).
fn stdin_message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x82, 0x80 | 127];
    bytes.extend_from_slice(&((FRAME_HEADER + payload.len()) as u64).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, STDIN, 0, 0, 0]);
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// An exec's stream whose program reads nothing, with all that is taken of 16 MiB for it.
fn stuffed(field: &Field, sandbox: &str) -> io::Result<(Call, usize)> {
    let mut call = field.open()?;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    call.send(&field.head("GET", &format!("/v1/sandboxes/{sandbox}/exec/stream"), 0, upgrade))?;
    if let Some(refused) = call.upgrade()? {
        panic!("{refused}");
    }
    call.send(&crate::http::message(1, json!({ "argv": ["sleep", "4799.5"] }).to_string().as_bytes()))?;
    // Runs, and says so.
    call.wait_for(|seen| seen.len() > FRAME_HEADER)?;
    let piece = stdin_message(&vec![b'x'; 1 << 20]);
    let mut sender = call.sender();
    let mut sent = 0;
    for _ in 0..16 {
        let count = push(&mut sender, &piece);
        sent += count;
        if count < piece.len() {
            break;
        }
    }
    Ok((call, sent))
}

/// What one request is answered while all is full: done, or a typed refusal, in time.
fn answered(field: &Field, method: &str, path: &str, body: &Value) -> Said {
    let since = Instant::now();
    let said = field.ask(method, path, body);
    let took = since.elapsed();
    let code = said.code();
    let busy = matches!((said.status(), code.as_deref()), (503, Some("server_busy")) | (429, Some("rate_limited")));
    assert!(said.is_done() || busy, "{method} {path}: {said}");
    assert!(took < ANSWERED_WITHIN, "{took:?}: {method} {path}: {said}");
    said
}

#[test]
fn a_server_without_memory_says_so_and_goes_on() {
    let field = Field::start();
    let (sandbox, _) = field.sandbox_with(&json!({ "limits": { "disk_bytes_max": 100 << 20, "tasks_max": 400 } }));
    let exec = format!("/v1/sandboxes/{sandbox}/exec");
    let big = format!("/v1/sandboxes/{sandbox}/files?path=/tmp/big");
    assert!(field.send("PUT", &format!("{big}&mode=replace"), &vec![b'z'; 48 << 20]).is_done());
    assert!(field.shell(&sandbox, "true").is_done());
    let server = field.server();
    let idle = status_kib(server, "VmRSS");
    // The peak is counted anew from here on (proc_pid_clear_refs(5)).
    fs::write(format!("/proc/{server}/clear_refs"), "5").unwrap();
    bound(&field, server, (status_kib(server, "VmSize") << 10) + MORE);
    let peak = |what: &str| {
        let peak = status_kib(server, "VmHWM");
        eprintln!("{what}: {} MiB more than idle at most", peak.saturating_sub(idle) >> 10);
        assert_eq!(field.try_server(), Some(server), "{what}: the server ended");
        assert!(peak < idle + GROWTH_KIB_MAX, "{what}: {peak} KiB, idle {idle} KiB");
    };

    // Strangers: connections that say nothing, and heads that do not end.
    let address = field.system.url.strip_prefix("http://").unwrap();
    let silent: Vec<TcpStream> = (0..IDLE).map(|_| TcpStream::connect(address).unwrap()).collect();
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}", "x".repeat(120 << 10));
    let heads: Vec<TcpStream> = (0..HEADS)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            push(&mut stream, head.as_bytes());
            stream
        })
        .collect();
    answered(&field, "GET", "/v1/me", &Value::Null);
    peak("heads that do not end");

    // Large bodies that do not end: what has no room is refused at once, though the client has not finished.
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..BODIES {
        let mut call = field.open().unwrap();
        call.send(&field.head("POST", &exec, BODY, "")).unwrap();
        let since = Instant::now();
        push(&mut call.sender(), &vec![b'{'; BODY - 1]);
        if has_answer(&call.sender()) {
            let said = call.answer();
            assert_eq!((said.status(), said.code().as_deref()), (503, Some("server_busy")), "{said}");
            assert!(since.elapsed() < ANSWERED_WITHIN, "{:?}", since.elapsed());
            refused += 1;
        } else {
            held.push(call);
        }
    }
    assert!(refused >= BODIES / 2, "{refused} of {BODIES} were refused");
    answered(&field, "POST", &exec, &json!({ "argv": ["true"] }));
    peak("bodies that do not end");

    // Input that no program takes, beside the bodies.
    let streams: Vec<(Call, usize)> = (0..STREAMS).map(|_| stuffed(&field, &sandbox).unwrap()).collect();
    let taken: usize = streams.iter().map(|(_, sent)| sent).sum();
    eprintln!("{} MiB of input were taken by {STREAMS} streams", taken >> 20);
    answered(&field, "POST", &exec, &json!({ "argv": ["true"] }));
    peak("input that nobody reads");

    // Answers that nobody reads.
    let readers: Vec<Call> = (0..READERS)
        .map(|_| {
            let mut call = field.open().unwrap();
            call.send(&field.head("GET", &big, 0, "")).unwrap();
            call
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    answered(&field, "GET", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    for _ in 0..20 {
        answered(&field, "POST", &exec, &json!({ "argv": ["true"] }));
    }
    peak("answers that nobody reads");

    // All of it goes, and there is room again, in the same process.
    for stream in silent.iter().chain(&heads) {
        // It may have ended it already.
        let _ = stream.shutdown(Shutdown::Both);
    }
    drop((silent, heads, held, streams, readers));
    until("large bodies are taken again", || {
        let said = field.send("POST", &exec, format!("{{{}\"argv\":[\"true\"]}}", " ".repeat(BODY / 2)).as_bytes());
        assert!(said.is_done() || said.code().as_deref() == Some("server_busy"), "{said}");
        said.is_done()
    })
    .unwrap();
    assert_eq!(field.server(), server);
    bound(&field, server, 0);
    until("what nobody reads for has ended", || !crate::field::runs("sleep 4799.5")).unwrap();
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}
