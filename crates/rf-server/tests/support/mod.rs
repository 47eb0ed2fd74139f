//! A whole server in this process, on a warden and inits that live in this process too and really start programs.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of this module")]

#[path = "../../../rf-places/tests/support/mod.rs"]
pub mod places;

use std::path::PathBuf;

use axum::{
    body::Body,
    http::{Method, Request, Response, StatusCode},
};
use bytes::Bytes;
use places::FakeWarden;
use rf_server::{
    ServerConfig, doors,
    run::{Server, open},
    service::Door,
};
use serde_json::{Value, json};

/// A server without a socket: requests go straight to its door.
pub struct World {
    pub dir: tempfile::TempDir,
    pub warden: FakeWarden,
    pub app: rf_server::app::App,
    pub door: Door,
    /// The operator's key.
    pub admin: String,
    /// An ordinary user's key.
    pub ann: String,
    /// Another's.
    pub bob: String,
}

pub fn config(dir: &std::path::Path) -> ServerConfig {
    let mut config = ServerConfig::with_paths(dir.join("server"), dir.join("warden.sock"));
    config.listen = "127.0.0.1:0".parse().unwrap();
    config
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let warden = FakeWarden::start(dir.path().join("warden.sock"));
        let mut config = config(dir.path());
        change(&mut config);
        let app = open(config).unwrap();
        let door = Door::new(doors::router(app.clone()), app.metrics().clone()).with_sandboxes(app.clone());
        let admin = std::fs::read_to_string(dir.path().join("server/first-key")).unwrap().trim().to_owned();
        let mut world = Self { dir, warden, app, door, admin, ann: String::new(), bob: String::new() };
        world.app.places().ready().await;
        world.ann = world.user("ann").await;
        world.bob = world.user("bob").await;
        world
    }

    /// Makes a user and a key of theirs.
    pub async fn user(&self, name: &str) -> String {
        let made = self.call(Method::POST, "/v1/users", &self.admin, json!({ "name": name })).await;
        assert_eq!(made.0, StatusCode::CREATED, "{}", made.1);
        let key = self.call(Method::POST, &format!("/v1/users/{name}/keys"), &self.admin, json!({ "name": "k" })).await;
        assert_eq!(key.0, StatusCode::CREATED, "{}", key.1);
        key.1["key"].as_str().unwrap().to_owned()
    }

    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.door.answer(request).await
    }

    /// Sends JSON with a key and reads the answer as JSON, or as a text where it is none.
    pub async fn call(&self, method: Method, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let (status, bytes) = self.raw(method, path, key, body).await;
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (status, value)
    }

    pub async fn get(&self, path: &str, key: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, key, Value::Null).await
    }

    pub async fn post(&self, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, key, body).await
    }

    pub async fn raw(&self, method: Method, path: &str, key: &str, body: Body) -> (StatusCode, Bytes) {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
        whole(self.send(request.body(body).unwrap()).await).await
    }

    /// A fresh sandbox's id.
    pub async fn sandbox(&self, key: &str) -> String {
        let (status, made) = self.post("/v1/sandboxes", key, json!({})).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    /// Every record of the ledger, oldest first.
    pub async fn ledger(&self) -> Vec<Value> {
        let (status, page) = self.get("/v1/audit?all=true&order=oldest&limit=1000", &self.admin).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().clone()
    }

    /// The files of the ledger as they lie on the disk.
    pub fn ledger_bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.dir.path().join("server/ledger")).unwrap() {
            all.extend(std::fs::read(entry.unwrap().path()).unwrap());
        }
        all
    }
}

/// The status and the whole body.
pub async fn whole(response: Response<Body>) -> (StatusCode, Bytes) {
    let status = response.status();
    (status, axum::body::to_bytes(response.into_body(), 64 << 20).await.unwrap())
}

/// A server on a socket of its own.
pub struct Listening {
    pub dir: tempfile::TempDir,
    pub warden: FakeWarden,
    pub address: std::net::SocketAddr,
    pub admin: String,
    pub app: rf_server::app::App,
    stop: tokio::sync::oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Listening {
    pub async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let warden = FakeWarden::start(dir.path().join("warden.sock"));
        let mut config = config(dir.path());
        config.door.shutdown_grace_ms = 2_000;
        change(&mut config);
        config.validate().unwrap();
        let server = Server::start(config).await.unwrap();
        let address = server.address();
        let app = server.app().clone();
        app.places().ready().await;
        let admin = std::fs::read_to_string(dir.path().join("server/first-key")).unwrap().trim().to_owned();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serving = tokio::spawn(server.serve(async move { drop(stopped.await) }));
        Self { dir, warden, address, admin, app, stop, serving }
    }

    /// Ends it as SIGTERM does.
    pub async fn stop(self) {
        drop(self.stop);
        self.serving.await.unwrap();
    }
}

/// A file of `tests/golden`, compared with `found`, or written when `RF_GOLDEN_WRITE` is set.
pub fn golden(path: PathBuf, found: &str) {
    if std::env::var_os("RF_GOLDEN_WRITE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == found,
        "`{}` differs from what the code makes; look at the difference, then write it anew with RF_GOLDEN_WRITE=1",
        path.display()
    );
}

/// A machine of the user's that is connected, and answers every file operation with one file's description.
pub fn machine(world: &World, user: &str) -> String {
    let id = rf_types::MachineId::random();
    let (system, store) = (world.app.system(), world.app.store());
    let alive = store.sandboxes_alive_all(system).unwrap();
    let scope =
        alive.into_iter().find(|(scope, _)| scope.username().as_str() == user).expect("the user has a sandbox").0;
    world.app.places().add_machine(
        scope.user(),
        std::sync::Arc::new(FakeMachine { id, user: scope.user() }),
        json!({}),
    );
    id.to_string()
}

struct FakeMachine {
    id: rf_types::MachineId,
    user: rf_types::UserId,
}

mod fake_machine {
    use futures::{FutureExt as _, future::BoxFuture};
    use rf_places::place::{AdoptedExec, FileAnswer, HeldOf, Place, Spawned};
    use rf_policy::Permit;
    use rf_types::{ExecId, ExecSpec, Fault, FileKind, FileOp, PlaceRef, SignalScope, Stat};

    impl Place for super::FakeMachine {
        fn place(&self) -> PlaceRef {
            PlaceRef::Machine(self.id)
        }

        fn spawn<'a>(
            &'a self,
            _: &'a Permit,
            _: ExecId,
            _: &'a ExecSpec,
            _: bool,
        ) -> BoxFuture<'a, Result<Spawned, Fault>> {
            async { Err(Fault::not_found("program")) }.boxed()
        }

        fn signal<'a>(&'a self, _: &'a Permit, _: ExecId, _: i32, _: SignalScope) -> BoxFuture<'a, Result<(), Fault>> {
            async { Err(Fault::not_found("running exec")) }.boxed()
        }

        fn file<'a>(
            &'a self,
            permit: &'a Permit,
            op: &'a FileOp,
            _: Option<&'a str>,
        ) -> BoxFuture<'a, Result<FileAnswer, Fault>> {
            assert_eq!(permit.user(), self.user, "a permit of another user's came to a place");
            let path = format!("{op:?}");
            let stat = Stat {
                path,
                kind: FileKind::File,
                size: 0,
                permissions: 0o644,
                uid: 0,
                gid: 0,
                modified_at: 0,
                target: None,
            };
            async { Ok(FileAnswer::Stat(stat)) }.boxed()
        }

        fn adopt_execs<'a>(&'a self, _: &'a HeldOf<'a>) -> BoxFuture<'a, Result<Vec<AdoptedExec>, Fault>> {
            async { Ok(Vec::new()) }.boxed()
        }

        fn forget(&self, _: ExecId) -> BoxFuture<'_, ()> {
            async {}.boxed()
        }
    }
}
