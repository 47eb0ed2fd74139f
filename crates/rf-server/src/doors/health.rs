//! Whether the server is alive and ready, its numbers, and the interface's document.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode},
};
use rf_policy::Action;
use rf_types::Code;
use serde::Serialize;
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

/// Which parts are ready. Says no more than that: it needs no credential.
#[derive(Debug, Serialize, ToSchema)]
struct ReadyAnswer {
    /// Whether all are.
    ready: bool,
    /// Whether rows can be read and written.
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
    let store = app.store().check().is_ok();
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
