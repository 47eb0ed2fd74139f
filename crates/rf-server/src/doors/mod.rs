//! The doors: each translates one part of the public interface into operations. None holds a rule of its own.

pub mod account;
pub mod audit;
pub mod e2b;
pub mod execs;
pub mod files;
pub mod frames;
pub mod health;
pub mod life;
pub mod machines;
pub mod one_shot;
pub mod ports;
pub mod sandboxes;
pub mod stream;
pub mod templates;
pub mod users;

use axum::{
    Router,
    http::{HeaderValue, Response, header},
};
use bytes::Bytes;
use utoipa_axum::router::OpenApiRouter;

use crate::{app::App, openapi, refusal};

/// Every route with its part of the document.
fn all() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(health::routes())
        .merge(account::routes())
        .merge(users::routes())
        .merge(sandboxes::routes())
        .merge(life::routes())
        .merge(execs::routes())
        .merge(one_shot::routes())
        .merge(stream::routes())
        .merge(ports::routes())
        .nest("/v1/files", files::routes())
        .nest("/v1/sandboxes/{id}/files", files::routes())
        .nest("/v1/machines/{id}/files", files::routes())
        .merge(machines::routes())
        .merge(templates::routes())
        .merge(audit::routes())
}

/// The document of the interface, OpenAPI 3.1, as indented JSON.
#[must_use]
pub fn document() -> String {
    openapi::finish(all().into_openapi())
}

/// The whole interface.
pub fn router(app: App) -> Router {
    let (router, api) = all().split_for_parts();
    let document = Bytes::from(openapi::finish(api));
    // A second router of the same app has the same document.
    let _ = app.document().set(document);
    let router = router.merge(e2b::control::routes());
    router.fallback(refusal::no_such_path).method_not_allowed_fallback(refusal::no_such_method).with_state(app)
}

/// A text of a media type.
fn text(media_type: &'static str, body: impl Into<axum::body::Body>) -> Response<axum::body::Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
