//! The ledger, read: a user's own part, and all of it for operators.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_ledger::{Filter, Kind, Order, Query, Record, Report};
use rf_policy::Action;
use rf_types::{Code, Fault, MachineId, PlaceRef, RequestId, SandboxId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::{App, Caller, json},
    input,
    operation::Ask,
    refusal::Refusal,
};

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(audit)).routes(routes!(verify))
}

/// Which records.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Everybody's, for operators.
    #[serde(default)]
    all: bool,
    /// Of this action, such as `exec`.
    action: Option<String>,
    /// `decision`, `intent`, `result` or `note`.
    #[param(value_type = Option<String>)]
    kind: Option<Kind>,
    /// In this sandbox or on this machine.
    place: Option<String>,
    /// Of this request.
    #[param(value_type = Option<String>)]
    request: Option<RequestId>,
    /// At this time or later, milliseconds since 1970.
    since: Option<u64>,
    /// Before this time.
    until: Option<u64>,
    /// `newest` first (if not given) or `oldest` first.
    #[param(inline)]
    order: Option<AuditOrder>,
    /// The `next` of the page before.
    after: Option<u64>,
    /// Most records, 1 to 1,000; 100 if not given.
    #[serde(alias = "items_max")]
    limit: Option<usize>,
}

/// In which order.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AuditOrder {
    /// The newest first.
    Newest,
    /// The oldest first.
    Oldest,
}

/// Some records.
#[derive(Debug, Serialize, ToSchema)]
struct AuditAnswer {
    /// The records.
    #[schema(value_type = Vec<Object>)]
    items: Vec<Record>,
    /// Give this as `after` for the next page; a page may hold few records and still have one.
    next: Option<u64>,
}

fn place(text: &str) -> Result<PlaceRef, Fault> {
    if let Ok(id) = text.parse::<SandboxId>() {
        return Ok(PlaceRef::Sandbox(id));
    }
    text.parse::<MachineId>()
        .map(PlaceRef::Machine)
        .map_err(|_| Fault::invalid("`place` is neither a sandbox's nor a machine's id"))
}

/// Records of the ledger: the user's own, or everybody's for operators.
#[utoipa::path(get, path = "/v1/audit", operation_id = "audit", params(AuditQuery),
    responses((status = 200, body = AuditAnswer)))]
async fn audit(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let asked: AuditQuery = input::query(&uri)?;
    let action = if asked.all { Action::Operate } else { Action::AuditRead };
    let operation = app.begin(&caller, Ask::of(action).detail("op", "audit")).await?;
    let read = async {
        if asked.all {
            caller.operator()?;
        }
        let filter = Filter {
            action: asked.action,
            kind: asked.kind,
            place: asked.place.as_deref().map(place).transpose()?,
            request: asked.request,
            since: asked.since,
            until: asked.until,
        };
        let query = Query {
            // The wall: nobody but an operator who said so reads more than their own.
            user: (!asked.all).then(|| caller.who.principal().user),
            filter,
            order: match asked.order {
                None | Some(AuditOrder::Newest) => Order::NewestFirst,
                Some(AuditOrder::Oldest) => Order::OldestFirst,
            },
            after: asked.after,
            limit: asked.limit.unwrap_or(100),
        };
        blocking({
            let app = app.clone();
            move || app.ledger().page(&query)
        })
        .await
    };
    let page = operation.finish(read.await).await?;
    Ok(json(StatusCode::OK, &AuditAnswer { items: page.records, next: page.next }))
}

/// Whether the ledger is whole.
#[derive(Debug, Serialize, ToSchema)]
struct VerifyAnswer {
    /// Whether nothing is wrong.
    whole: bool,
    /// What was found.
    #[schema(value_type = Object)]
    report: Report,
}

/// Checks every record of the ledger. For operators; reads all of it.
#[utoipa::path(get, path = "/v1/audit/verify", operation_id = "audit_verify",
    responses((status = 200, body = VerifyAnswer)))]
async fn verify(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let mut operation = app.begin(&caller, Ask::of(Action::Operate).detail("op", "audit_verify")).await?;
    let check = {
        let app = app.clone();
        move || rf_ledger::verify(app.ledger().dir(), Some(app.ledger_key()), None)
    };
    let result = blocking(check).await.map(|report| VerifyAnswer { whole: report.problem.is_none(), report });
    if let Ok(answer) = &result {
        operation.detail("whole", answer.whole);
    }
    Ok(json(StatusCode::OK, &operation.finish(result).await?))
}

/// Reads the disk where that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "a reader of the ledger ended early", "")))
}
