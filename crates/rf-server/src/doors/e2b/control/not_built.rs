//! Calls of the wire format that this version does not carry out. Each is refused with its name, with a status that makes
//! the clients raise an error at once and not try again.

use axum::{
    http::Method,
    routing::{MethodFilter, MethodRouter, on},
};
use rf_types::{Code, Fault};

use super::Row;
use crate::{
    app::{App, Caller},
    refusal::Refusal,
};

const BUILDS: &str = "the building of templates";
const TAGS: &str = "tags of templates";
const VOLUMES: &str = "volumes";
const SECRETS: &str = "secrets";
const EVENTS: &str = "webhooks and lists of events";

/// What is not built, by method and path.
const NOT_BUILT: &[(Method, &str, &str)] = &[
    (Method::POST, "/templates", BUILDS),
    (Method::POST, "/v2/templates", BUILDS),
    (Method::POST, "/v3/templates", BUILDS),
    (Method::POST, "/templates/{id}", BUILDS),
    (Method::PATCH, "/templates/{id}", BUILDS),
    (Method::PATCH, "/v2/templates/{id}", BUILDS),
    (Method::GET, "/templates/{id}/files/{hash}", BUILDS),
    (Method::POST, "/templates/{id}/builds/{build}", BUILDS),
    (Method::POST, "/v2/templates/{id}/builds/{build}", BUILDS),
    (Method::GET, "/templates/{id}/builds/{build}/status", BUILDS),
    (Method::GET, "/templates/{id}/builds/{build}/logs", BUILDS),
    (Method::POST, "/templates/tags", TAGS),
    (Method::DELETE, "/templates/tags", TAGS),
    (Method::GET, "/templates/{id}/tags", TAGS),
    (Method::GET, "/templates/{id}/tags/count", TAGS),
    (Method::GET, "/templates/{id}/tags/exists", TAGS),
    (Method::GET, "/templates/{id}/tags/groups", TAGS),
    (Method::GET, "/templates/{id}/tags/{tag}/assignments", TAGS),
    (Method::GET, "/volumes", VOLUMES),
    (Method::POST, "/volumes", VOLUMES),
    (Method::GET, "/volumes/{id}", VOLUMES),
    (Method::DELETE, "/volumes/{id}", VOLUMES),
    (Method::GET, "/secrets", SECRETS),
    (Method::POST, "/secrets", SECRETS),
    (Method::GET, "/secrets/{id}", SECRETS),
    (Method::POST, "/secrets/{id}", SECRETS),
    (Method::DELETE, "/secrets/{id}", SECRETS),
    (Method::GET, "/events/webhooks", EVENTS),
    (Method::POST, "/events/webhooks", EVENTS),
    (Method::GET, "/events/webhooks/{id}", EVENTS),
    (Method::PATCH, "/events/webhooks/{id}", EVENTS),
    (Method::DELETE, "/events/webhooks/{id}", EVENTS),
    (Method::GET, "/events/sandboxes", EVENTS),
    (Method::GET, "/events/sandboxes/{id}", EVENTS),
];

/// Their routes.
pub(super) fn table() -> impl Iterator<Item = Row> {
    NOT_BUILT.iter().map(|(method, path, feature)| (method.clone(), *path, refuse(method, feature)))
}

/// Refuses whoever is let in; everybody else learns nothing.
fn refuse(method: &Method, feature: &'static str) -> MethodRouter<App> {
    // INVARIANT: the table's methods are plain ones.
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::TRACE);
    on(filter, move |_: Caller| async move { Refusal::from(fault(feature)) })
}

/// What is said of a feature that is not built.
pub(super) fn fault(feature: &str) -> Fault {
    Fault::new(Code::Unsupported, format!("{feature} is not built in this version of Ringfence"), "")
}
