//! Whether the server is alive and ready, its numbers, and the interface's document.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode},
};
use rf_policy::Action;
use rf_types::Code;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::{App, Caller, json},
    operation::Ask,
    refusal::Refusal,
};

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(host))
        .routes(routes!(metrics))
        .routes(routes!(openapi))
}

/// A sign of life.
#[derive(Debug, Serialize, ToSchema)]
struct LiveAnswer {
    /// `alive`.
    status: &'static str,
    /// The program's version.
    version: &'static str,
}

/// Whether the server answers at all.
#[utoipa::path(get, path = "/v1/health/live", operation_id = "health_live", responses((status = 200, body = LiveAnswer)))]
async fn live() -> Response<Body> {
    json(StatusCode::OK, &LiveAnswer { status: "alive", version: env!("CARGO_PKG_VERSION") })
}

/// How often the store is looked at, whoever asks. Chosen: whoever sends requests elsewhere when this server cannot serve
/// asks not oftener, and who asks without end takes nothing from those whose work is written.
const STORE_PERIOD: Duration = Duration::from_secs(1);

/// Whether rows can be read and written, as of the last look.
#[derive(Debug)]
pub struct StoreHealth {
    began: Instant,
    /// When it is looked next, milliseconds since `began`.
    due_ms: AtomicU64,
    fine: AtomicBool,
}

impl Default for StoreHealth {
    fn default() -> Self {
        // It was opened, so it could be read and written.
        Self { began: Instant::now(), due_ms: AtomicU64::new(0), fine: AtomicBool::new(true) }
    }
}

impl StoreHealth {
    /// Has `look` say it, which may wait for a lock, when the last answer is too old; everybody else who comes meanwhile
    /// gets that one at once.
    async fn is_fine(&self, look: impl FnOnce() -> bool + Send + 'static) -> bool {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (now, due) = (ms(self.began.elapsed()), self.due_ms.load(Ordering::Acquire));
        let next = now.saturating_add(ms(STORE_PERIOD));
        let ours = now >= due && self.due_ms.compare_exchange(due, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if ours {
            // Beside us: a store that is held by another program is waited for.
            let fine = tokio::task::spawn_blocking(look).await.unwrap_or(false);
            self.fine.store(fine, Ordering::Release);
        }
        self.fine.load(Ordering::Acquire)
    }
}

/// Which parts are ready. Says no more than that: it needs no credential.
#[derive(Debug, Serialize, ToSchema)]
struct ReadyAnswer {
    /// Whether all are.
    ready: bool,
    /// Whether rows can be read and written, as of a second ago at most.
    store: bool,
    /// Whether records can be written.
    ledger: bool,
    /// Whether there is a warden, and its sandboxes were taken over.
    warden: bool,
}

/// Whether the server can serve; 503 when a part of it cannot.
#[utoipa::path(get, path = "/v1/health/ready", operation_id = "health_ready",
    responses((status = 200, body = ReadyAnswer), (status = 503, body = ReadyAnswer)))]
async fn ready(State(app): State<App>) -> Response<Body> {
    let rows = app.store().clone();
    let store = app.store_health().is_fine(move || rows.check().is_ok()).await;
    let ledger = app.ledger().status().failed.is_none();
    let warden = app.places().is_ready();
    let answer = ReadyAnswer { ready: store && ledger && warden, store, ledger, warden };
    let status = if answer.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &answer)
}

/// What the warden and its host can hold. For operators.
#[utoipa::path(get, path = "/v1/health/host", operation_id = "health_host", responses((status = 200, body = Object)))]
async fn host(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::Operate).detail("op", "host_status")).await?;
    let result = app.places().warden().status().await;
    Ok(json(StatusCode::OK, &operation.finish(result).await?))
}

/// The server's numbers as OpenMetrics text. For operators.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics",
    responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::Operate).detail("op", "metrics")).await?;
    let text = operation.finish(Ok(app.metrics_text())).await?;
    Ok(super::text("application/openmetrics-text; version=1.0.0; charset=utf-8", text))
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "openapi", responses((status = 200, body = Object)))]
async fn openapi(State(app): State<App>) -> Result<Response<Body>, Refusal> {
    let document = app.document().get().cloned();
    let missing = || rf_types::Fault::new(Code::Internal, "the document was not made", "");
    Ok(super::text("application/json", document.ok_or_else(missing)?))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicU32};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_store_is_looked_at_once_a_second_whoever_asks() {
        let (health, looks) = (StoreHealth::default(), Arc::new(AtomicU32::new(0)));
        let ask = async |answer: bool| {
            let looks = Arc::clone(&looks);
            let look = move || {
                looks.fetch_add(1, Ordering::Relaxed);
                answer
            };
            health.is_fine(look).await
        };
        assert!(!ask(false).await);
        for _ in 0..1_000 {
            assert!(!ask(true).await);
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::advance(STORE_PERIOD).await;
        assert!(ask(true).await);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
