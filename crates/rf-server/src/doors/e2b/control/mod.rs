//! The control plane: sandboxes, their life, snapshots and templates, as E2B's clients ask for them over HTTP.
//!
//! One table has every route, so that the tests go through all of them. What is not built is in it too and refused with
//! its name. Nothing is done here that our own interface does not do: a request is read, carried out by the same gate and
//! the same places, and written in other words.

mod life;
mod logs;
mod meters;
mod not_built;
mod sandboxes;
mod snapshots;
mod templates;
mod view;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Method, Response, StatusCode},
    routing::{MethodRouter, delete, get, post, put},
};
use rf_policy::Action;
use rf_types::{Fault, SandboxId};

use crate::{
    app::{App, Caller, json},
    operation::Ask,
    refusal::Refusal,
};

pub use meters::Meters;

/// One route.
pub type Row = (Method, &'static str, MethodRouter<App>);

/// Every route.
#[must_use]
pub fn table() -> Vec<Row> {
    let mut table: Vec<Row> = vec![
        (Method::POST, "/sandboxes", post(sandboxes::create_v1)),
        (Method::GET, "/sandboxes", get(sandboxes::list_v1)),
        (Method::POST, "/v2/sandboxes", post(sandboxes::create_v2)),
        (Method::GET, "/v2/sandboxes", get(sandboxes::list_v2)),
        (Method::GET, "/sandboxes/metrics", get(meters::of_many)),
        (Method::GET, "/sandboxes/{id}", get(sandboxes::detail)),
        (Method::DELETE, "/sandboxes/{id}", delete(sandboxes::kill)),
        (Method::POST, "/sandboxes/{id}/timeout", post(life::timeout)),
        (Method::POST, "/sandboxes/{id}/refreshes", post(life::refresh)),
        (Method::POST, "/sandboxes/{id}/connect", post(life::connect_v1)),
        (Method::POST, "/v2/sandboxes/{id}/connect", post(life::connect_v2)),
        (Method::POST, "/sandboxes/{id}/pause", post(life::pause)),
        (Method::POST, "/sandboxes/{id}/resume", post(life::resume)),
        (Method::POST, "/sandboxes/{id}/fork", post(life::fork)),
        (Method::PUT, "/sandboxes/{id}/network", put(life::network)),
        (Method::POST, "/sandboxes/{id}/snapshots", post(snapshots::create)),
        (Method::GET, "/snapshots", get(snapshots::list)),
        (Method::GET, "/sandboxes/{id}/metrics", get(meters::of_one)),
        (Method::GET, "/sandboxes/{id}/logs", get(logs::logs_v1)),
        (Method::GET, "/v2/sandboxes/{id}/logs", get(logs::logs_v2)),
        (Method::GET, "/templates", get(templates::list)),
        (Method::GET, "/v2/templates", get(templates::list_paged)),
        (Method::GET, "/default-templates", get(templates::list)),
        (Method::GET, "/templates/{id}", get(templates::one)),
        (Method::DELETE, "/templates/{id}", delete(templates::remove)),
        (Method::GET, "/templates/aliases/{id}", get(templates::alias)),
        (Method::GET, "/teams", get(teams)),
    ];
    table.extend(not_built::table());
    table
}

/// The router of all of them, and the sign of life that needs no credential.
pub fn routes() -> Router<App> {
    let router =
        Router::new().route("/health", get(|| async { json(StatusCode::OK, &serde_json::json!({"status": "alive"})) }));
    table().into_iter().fold(router, |router, (_, path, handler)| router.route(path, handler))
}

/// Reads a sandbox's id from the path. Older clients put a vestige behind a dash.
fn id(text: &str) -> Result<SandboxId, Fault> {
    let text = text.split_once('-').map_or(text, |(id, _)| id);
    rf_e2b::id::sandbox_of(text).ok_or_else(|| Fault::not_found("sandbox"))
}

/// The teams of who asks: a user has the one that they are.
async fn teams(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).detail("op", "teams")).await?;
    let principal = caller.who.principal();
    let team = rf_e2b::models::Team {
        team_id: principal.user.to_string(),
        name: principal.username.to_string(),
        api_key: "",
        is_default: true,
    };
    Ok(json(StatusCode::OK, &[operation.finish(Ok(team)).await?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_have_a_vestige_behind_a_dash() {
        let text = "sbx00112233445566778899aabbccddeeff";
        assert_eq!(id(text).unwrap(), id(&format!("{text}-client")).unwrap());
        for wrong in ["", "-", "nonexistingsandbox", "sbx_00112233445566778899aabbccddeeff", "ringfence-sbx0"] {
            assert!(id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_route_is_below_a_path_of_the_door() {
        for (method, path, _) in table() {
            assert!(super::super::errors::is_ours(path), "{method} {path}");
        }
    }
}
