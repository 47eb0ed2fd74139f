//! File operations in a sandbox: bytes both ways, lists, archives, watches, ports, and what goes wrong.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use rf_places::{FileAnswer, Place, file_action, place::ChangeKind};
use rf_policy::Action;
use rf_types::{Code, Fault, FileKind, FileOp, WriteMode};
use support::{Field, claim_sandbox, permit_of, user};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Inside {
    field: Field,
    place: Arc<dyn Place>,
    _places: rf_places::Places,
}

impl Inside {
    async fn new() -> Self {
        let field = Field::new();
        let places = field.places().await;
        let place =
            places.sandboxes().create(claim_sandbox(&places, user(1)), rf_places::Making::default()).await.unwrap();
        Self { field, place, _places: places }
    }

    fn path(&self, name: &str) -> String {
        self.field.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn file(&self, op: FileOp) -> Result<FileAnswer, Fault> {
        self.place.file(&permit_of(user(1), file_action(&op)), &op, None).await
    }

    async fn write(&self, name: &str, mode: WriteMode, chunks: &[Bytes]) -> Result<(), Fault> {
        let op = FileOp::Write { path: self.path(name), mode, permissions: 0o644, parents: false };
        let FileAnswer::Sink(mut sink) = self.file(op).await? else { panic!("no sink") };
        for chunk in chunks {
            sink.write(chunk.clone()).await?;
        }
        sink.finish().await
    }

    async fn read(&self, name: &str, offset: u64, length: Option<u64>) -> Result<Vec<u8>, Fault> {
        let op = FileOp::Read { path: self.path(name), offset, length };
        let FileAnswer::Content { stat, bytes } = self.file(op).await? else { panic!("no content") };
        assert_eq!(stat.kind, FileKind::File);
        gather(bytes).await
    }
}

async fn gather(mut bytes: futures::stream::BoxStream<'static, Result<Bytes, Fault>>) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    while let Some(piece) = bytes.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

fn noise(len: usize) -> Bytes {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_read_whole_and_in_ranges() {
    let inside = Inside::new().await;
    let all = noise(3_000_001);
    let chunks: Vec<_> = all.chunks(65_536).map(Bytes::copy_from_slice).collect();
    inside.write("f", WriteMode::Truncate, &chunks).await.unwrap();
    assert!(inside.read("f", 0, None).await.unwrap() == all);
    assert!(inside.read("f", 1_000_000, Some(77)).await.unwrap() == all[1_000_000..1_000_077]);
    assert!(inside.read("f", 9_000_000, None).await.unwrap().is_empty());
    inside.write("f", WriteMode::Append, &[Bytes::from_static(b"tail")]).await.unwrap();
    assert_eq!(inside.read("f", 3_000_001, None).await.unwrap(), b"tail");
    let there = inside.write("f", WriteMode::CreateNew, &[]).await.unwrap_err();
    assert_eq!(there.code, Code::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replace_shows_the_old_or_the_new_and_never_a_part() {
    let inside = Inside::new().await;
    inside.write("f", WriteMode::Truncate, &[Bytes::from_static(b"old")]).await.unwrap();
    let op = FileOp::Write { path: inside.path("f"), mode: WriteMode::Replace, permissions: 0o644, parents: false };
    let FileAnswer::Sink(mut sink) = inside.file(op).await.unwrap() else { panic!("no sink") };
    sink.write(noise(2_000_000)).await.unwrap();
    assert_eq!(inside.read("f", 0, None).await.unwrap(), b"old");
    // Dropped without a finish: the old one stays, and nothing is left beside it.
    drop(sink);
    while std::path::Path::new(&inside.path("f.new")).exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(inside.read("f", 0, None).await.unwrap(), b"old");
    inside.write("f", WriteMode::Replace, &[Bytes::from_static(b"new")]).await.unwrap();
    assert_eq!(inside.read("f", 0, None).await.unwrap(), b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_is_typed_and_names_the_path() {
    let inside = Inside::new().await;
    let missing = inside.read("missing", 0, None).await.unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
    assert!(missing.message.starts_with("no such file `") && missing.message.contains("missing"), "{missing}");
    let list = inside.file(FileOp::List { path: inside.path("missing"), depth: 1 }).await;
    assert_eq!(list.err().unwrap().code, Code::NotFound);
    let watch = inside.file(FileOp::TarOut { path: inside.path("missing") }).await;
    assert_eq!(watch.err().unwrap().code, Code::NotFound);
    inside.write("f", WriteMode::Truncate, &[]).await.unwrap();
    let below = inside.read("f/below", 0, None).await.unwrap_err();
    assert_eq!(below.code, Code::FileFailed);
    let made = inside.file(FileOp::MakeDir { path: inside.path("f"), permissions: 0o755, parents: false }).await;
    assert_eq!(made.err().unwrap().code, Code::Conflict);
    inside.write("g", WriteMode::Truncate, &[]).await.unwrap();
    let moved = inside.file(FileOp::Move { from: inside.path("f"), to: inside.path("g"), replace: false }).await;
    let moved = moved.err().unwrap();
    assert!(moved.code == Code::Conflict && moved.message.contains("/g`"), "{moved}");
    for (op, what) in [
        (FileOp::List { path: "/".into(), depth: 65 }, "depth"),
        (FileOp::List { path: "/".into(), depth: 0 }, "depth"),
        (FileOp::Stat { path: String::new(), follow: true }, "empty"),
        (FileOp::Stat { path: "a\0b".into(), follow: true }, "NUL"),
        (FileOp::Stat { path: "x".repeat(5000), follow: true }, "4095"),
        (FileOp::Chmod { path: "x".into(), permissions: 0o10000 }, "0o7777"),
    ] {
        let refused = inside.file(op).await.err().unwrap();
        assert!(refused.code == Code::InvalidRequest && refused.message.contains(what), "{refused}");
    }
    // A permit for reading writes nothing.
    let op = FileOp::Remove { path: inside.path("f"), recursive: false };
    let removed = inside.place.file(&permit_of(user(1), Action::FileRead), &op, None).await;
    assert_eq!(removed.err().unwrap().code, Code::Internal);
    inside.file(op).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_archives_and_changes_come_as_streams() {
    let inside = Inside::new().await;
    std::fs::create_dir(inside.path("d")).unwrap();
    for n in 0..300 {
        std::fs::write(inside.path(&format!("d/{n}")), b"x").unwrap();
    }
    let listed = inside.file(FileOp::List { path: inside.path("d"), depth: 1 }).await.unwrap();
    let FileAnswer::Entries(entries) = listed else { panic!("no entries") };
    assert_eq!(entries.map(Result::unwrap).filter(|stat| std::future::ready(stat.size == 1)).count().await, 300);
    let FileAnswer::Stat(stat) = inside.file(FileOp::Stat { path: inside.path("d"), follow: true }).await.unwrap()
    else {
        panic!("no stat")
    };
    assert_eq!(stat.kind, FileKind::Directory);

    let all = noise(2_500_000);
    let FileAnswer::Sink(mut sink) = inside.file(FileOp::TarIn { path: inside.path("t") }).await.unwrap() else {
        panic!("no sink")
    };
    for chunk in all.chunks(100_000) {
        sink.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    sink.finish().await.unwrap();
    let FileAnswer::Archive(bytes) = inside.file(FileOp::TarOut { path: inside.path("t") }).await.unwrap() else {
        panic!("no archive")
    };
    assert!(gather(bytes).await.unwrap() == all);

    let watching = inside.file(FileOp::Watch { path: inside.path("d"), recursive: true }).await.unwrap();
    let FileAnswer::Changes(mut changes) = watching else { panic!("no changes") };
    let change = changes.next().await.unwrap().unwrap();
    assert_eq!((change.path.as_str(), change.directory), ("new", true));
    assert_eq!(change.kinds, [ChangeKind::Create]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_inside_is_reached_and_a_closed_one_is_said_so() {
    let inside = Inside::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sandbox = inside.place.sandbox().unwrap();
    let permit = permit_of(user(1), Action::PortConnect);
    let mut stream = sandbox.connect(&permit, port).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    peer.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    drop(listener);
    let closed = sandbox.connect(&permit, port).await.unwrap_err();
    assert_eq!(closed.code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_in_a_sandbox_that_dies_is_lost() {
    let inside = Inside::new().await;
    let watching = inside.file(FileOp::Watch { path: inside.path("d"), recursive: true }).await.unwrap();
    let FileAnswer::Changes(_changes) = watching else { panic!("no changes") };
    let rf_types::PlaceRef::Sandbox(id) = inside.place.place() else { panic!("no sandbox") };
    inside.field.warden.kill_init(id, None);
    inside.place.sandbox().unwrap().lost().await;
    let op = FileOp::Stat { path: inside.path("d"), follow: true };
    assert_eq!(inside.file(op).await.err().unwrap().code, Code::PlaceLost);
}
