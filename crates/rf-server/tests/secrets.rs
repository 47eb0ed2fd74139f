//! No secret in the logs, in the ledger or in the metrics, whatever is called.

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use axum::{body::Body, http::Method};
use serde_json::{Value, json};
use support::World;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_down() {
    let logs = Buffer::default();
    let writer = logs.clone();
    tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();

    let world = World::new().await;
    let mut secrets = vec![world.admin.clone(), world.ann.clone(), world.bob.clone()];
    let (_, key) = world.post("/v1/keys", &world.ann, json!({"name": "k"})).await;
    let (_, session) = world.post("/v1/sessions", &world.ann, json!({})).await;
    let (_, token) = world.post("/v1/machines/enrol", &world.ann, json!({})).await;
    for (value, field) in [(&key, "key"), (&session, "token")] {
        secrets.push(value[field].as_str().unwrap_or_else(|| panic!("{value}")).to_owned());
    }
    // Without a `Host` there is no address to show, but a token was made all the same.
    assert!(token["code"] == "invalid_request" || token["token"].is_string(), "{token}");

    // Used as they should be, and in every wrong place.
    for secret in secrets.clone() {
        world.get("/v1/me", &secret).await;
        world.get(&format!("/v1/sandboxes?after={secret}"), &world.ann).await;
        world.get(&format!("/v1/sandboxes/{secret}"), &world.ann).await;
        world.get(&format!("/v1/users/{secret}"), &world.admin).await;
        world.get(&format!("/{secret}"), &world.ann).await;
        world.post("/v1/sandboxes", &world.ann, json!({ secret.clone(): 1 })).await;
        world.raw(Method::POST, "/v1/exec", &world.ann, Body::from(format!("{{\"argv\":[\"{secret}"))).await;
        let body = json!({
            "argv": ["true", format!("--password={secret}"), secret],
            "env": {"TOKEN": secret},
            "stdin": secret,
        });
        let (status, answer) = world.post("/v1/exec", &world.ann, body).await;
        assert_eq!(status, 200, "{answer}");
        world.get(&format!("/v1/files/stat?path=/{secret}"), &world.ann).await;
        // Where a name belongs, whose form it may have.
        world.post("/v1/sandboxes", &world.ann, json!({ "template": secret })).await;
        world.post("/v1/sandboxes", &world.ann, json!({ "from_snapshot": secret })).await;
        world.post("/v2/sandboxes", &world.ann, json!({ "templateID": secret })).await;
        world.post("/v1/templates", &world.admin, json!({ "name": secret, "image": secret })).await;
        world.get(&format!("/v1/templates/{secret}/import"), &world.admin).await;
        for path in ["/v1/templates", "/templates", "/templates/aliases", "/sandboxes", "/snapshots"] {
            world.get(&format!("{path}/{secret}"), &world.ann).await;
            world.call(Method::DELETE, &format!("{path}/{secret}"), &world.ann, Value::Null).await;
        }
    }
    let metrics = world.get("/metrics", &world.admin).await.1;
    let ledger = String::from_utf8_lossy(&world.ledger_bytes()).into_owned();
    let logs = String::from_utf8(logs.0.lock().unwrap().clone()).unwrap();
    assert!(logs.lines().count() > 50, "the logs were not caught");
    for (index, secret) in secrets.iter().enumerate() {
        for (what, text) in [("log", &logs), ("ledger", &ledger), ("metrics", &Value::to_string(&metrics))] {
            let line = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(line.is_none(), "secret {index} is in the {what}: {}", line.unwrap_or_default());
        }
    }
}
