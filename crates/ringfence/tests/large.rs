//! Large files go through the server in constant memory: up, down, a part of it, and in an archive.
//!
//! `RINGFENCE_LARGE_GIB` sets the size; five is what was promised, one what every run has time and disk for.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of what they share")]

#[path = "faults/field.rs"]
mod field;
#[path = "faults/http.rs"]
mod http;
mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Instant,
};

use field::Field;
use serde_json::{Value, json};

/// Gibibytes unless the environment says otherwise.
const GIB: u64 = 1;
/// The file is made of such blocks, each with its number at the start.
const BLOCK: usize = 1 << 20;
/// Most that the server's memory may grow by: far below the size, and whatever the size.
const GROWTH_KIB_MAX: u64 = 64 << 10;

/// A line of a process's status, in KiB; proc_pid_status(5).
fn status(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// Runs `act` and gives by how many KiB at most the server's memory grew meanwhile.
fn growth(server: u32, what: &str, bytes: u64, act: impl FnOnce()) -> u64 {
    // The peak begins anew (proc_pid_clear_refs(5)).
    fs::write(format!("/proc/{server}/clear_refs"), "5").unwrap();
    let (before, since) = (status(server, "VmRSS"), Instant::now());
    act();
    let (grown, took) = (status(server, "VmHWM").saturating_sub(before), since.elapsed());
    println!("{what}: {bytes} bytes in {took:?}, the server grew by at most {grown} KiB from {before} KiB");
    grown
}

/// Block `number` of the file.
fn mark(block: &mut [u8], number: u64) {
    block[..8].copy_from_slice(&number.to_le_bytes());
}

/// Takes an answer's body from a connection, and checks it block for block from `first` on; `skip` bytes come before.
fn check(stream: &mut TcpStream, seen: Vec<u8>, skip: usize, first: u64, count: u64) {
    let mut pending = seen;
    let mut left = skip;
    let mut template = vec![b'x'; BLOCK];
    for number in first..first + count {
        mark(&mut template, number);
        while pending.len() < left + BLOCK {
            let at = pending.len();
            pending.resize(at + (1 << 18), 0);
            let got = stream.read(&mut pending[at..]).unwrap();
            assert!(got > 0, "it ends within block {number}");
            pending.truncate(at + got);
        }
        assert!(pending[left..left + BLOCK] == template[..], "block {number} is another");
        pending.drain(..left + BLOCK);
        left = 0;
    }
}

/// Asks for bytes; the connection after the head of the answer, what came with it, and the head.
fn get(field: &Field, path: &str, more: &str) -> (TcpStream, Vec<u8>, String) {
    let mut stream = TcpStream::connect(field.system.url.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(&field.head("GET", path, 0, &format!("connection: close\r\n{more}"))).unwrap();
    let mut seen = Vec::new();
    loop {
        if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(seen[..end].to_vec()).unwrap().to_ascii_lowercase();
            return (stream, seen.split_off(end + 4), head);
        }
        let mut buffer = [0; 512];
        let got = stream.read(&mut buffer).unwrap();
        assert!(got > 0, "no answer");
        seen.extend_from_slice(&buffer[..got]);
    }
}

#[test]
fn a_large_file_streams_in_constant_memory() {
    let gib: u64 = match std::env::var("RINGFENCE_LARGE_GIB") {
        Ok(text) => text.parse().expect("RINGFENCE_LARGE_GIB is a number"),
        Err(_) => GIB,
    };
    let bytes = gib << 30;
    let blocks = bytes / BLOCK as u64;
    let field = Field::start();
    let spec = json!({
        "disk": "image", "lease_ms": 3_600_000, "limits": { "disk_bytes_max": bytes + bytes / 16 + (64 << 20), "io_bytes_per_second_max": 4u64 << 30 },
    });
    let (sandbox, _) = field.sandbox_with(&spec);
    let route = format!("/v1/sandboxes/{sandbox}/files");
    let server = field.server();
    // What is made once and kept is there.
    assert!(field.send("PUT", &format!("{route}?path=small"), &vec![0; 8 << 20]).is_done());
    assert!(field.send("GET", &format!("{route}?path=small"), b"").is_done());

    let up = growth(server, "up", bytes, || {
        let mut call = field.open().unwrap();
        let length = usize::try_from(bytes).unwrap();
        call.send(&field.head("PUT", &format!("{route}?path=large&mode=replace"), length, "")).unwrap();
        let mut block = vec![b'x'; BLOCK];
        for number in 0..blocks {
            mark(&mut block, number);
            call.send(&block).unwrap();
        }
        let said = call.answer();
        assert!(said.is_done(), "{said}");
    });
    let stat = field.must("GET", &format!("{route}/stat?path=large"), &Value::Null);
    assert_eq!(stat["size"], bytes);
    let down = growth(server, "down", bytes, || {
        let (mut stream, seen, head) = get(&field, &format!("{route}?path=large"), "");
        assert!(head.starts_with("http/1.1 200") && head.contains(&format!("content-length: {bytes}")), "{head}");
        check(&mut stream, seen, 0, 0, blocks);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "more than the file has");
    });
    let part = growth(server, "a part", 4 * BLOCK as u64, || {
        let from = (blocks - 4) * BLOCK as u64;
        let range = format!("range: bytes={from}-\r\n");
        let (mut stream, seen, head) = get(&field, &format!("{route}?path=large"), &range);
        assert!(head.starts_with("http/1.1 206"), "{head}");
        check(&mut stream, seen, 0, blocks - 4, 4);
    });
    let tree = growth(server, "as an archive", bytes, || {
        let (stream, seen, head) = get(&field, &format!("{route}/tar?path=large"), "");
        assert!(head.starts_with("http/1.1 200") && head.contains("chunked"), "{head}");
        let mut archive = tar::Archive::new(Chunks { inner: std::io::Cursor::new(seen).chain(stream), left: 0 });
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.size(), bytes);
        let (mut block, mut template) = (vec![0; BLOCK], vec![b'x'; BLOCK]);
        for number in 0..blocks {
            entry.read_exact(&mut block).unwrap();
            mark(&mut template, number);
            assert!(block == template, "block {number} is another");
        }
    });
    for (what, grown) in [("up", up), ("down", down), ("a part", part), ("as an archive", tree)] {
        assert!(grown < GROWTH_KIB_MAX, "{what}: the server grew by {grown} KiB");
    }
    assert_eq!(field.server(), server);
    field.must("DELETE", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    field.settle().unwrap();
    field.end();
}

/// A chunked body (RFC 9112, 7.1) as a stream of its bytes.
struct Chunks<R> {
    inner: R,
    left: usize,
}

impl<R: std::io::Read> Chunks<R> {
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.inner.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

impl<R: std::io::Read> std::io::Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let line = self.line()?;
            self.left = usize::from_str_radix(&line, 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = buffer.len().min(self.left);
        let got = self.inner.read(&mut buffer[..most])?;
        self.left -= got;
        if got > 0 && self.left == 0 {
            self.line()?;
        }
        Ok(got)
    }
}
