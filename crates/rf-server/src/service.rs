//! The outermost service: gives each request its id, catches panics, writes refusals, counts and logs.
//!
//! Written by hand and thin, for every exec passes here: one allocation for the log line, no boxed layers.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderName, HeaderValue, Method, Request, Response,
        header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS},
    },
};
use futures::FutureExt as _;
use rf_types::{Code, Fault, RequestId};
use tower::Service as _;

use crate::{
    app::App,
    doors::{
        e2b::{cors, errors, traffic},
        ports::Foreign,
    },
    metrics::Metrics,
    refusal::Refusal,
};

/// The header with the request's id, in every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The whole door: router and what stands around it.
#[derive(Clone)]
pub struct Door {
    router: Router,
    metrics: Arc<Metrics>,
    /// Whose sandboxes requests may be for instead.
    sandboxes: Option<App>,
}

impl Door {
    /// A door of these routes.
    #[must_use]
    pub fn new(router: Router, metrics: Arc<Metrics>) -> Self {
        Self { router, metrics, sandboxes: None }
    }

    /// The same door, where requests for sandboxes are answered before a route is looked for.
    #[must_use]
    pub fn with_sandboxes(self, app: App) -> Self {
        Self { sandboxes: Some(app), ..self }
    }

    /// Its numbers.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Answers one request; never fails and never panics.
    pub async fn answer(&self, mut request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let id = RequestId::random();
        if let Some(app) = &self.sandboxes {
            match self.in_a_sandbox(app, request, id, started).await {
                Ok(response) => return response,
                Err(ours) => request = ours,
            }
        }
        let method = request.method().clone();
        // Without the query: it may hold paths of a user's files.
        let path = shown(request.uri().path());
        // Whose words an error is in depends on the path alone.
        let e2b = errors::is_ours(&path);
        let refused = |refusal: &Refusal| if e2b { errors::answer(refusal) } else { refusal.answer(id) };
        if e2b && method == Method::OPTIONS {
            let (parts, body) = request.into_parts();
            match cors::preflight(&parts) {
                Some(response) => return response,
                None => request = Request::from_parts(parts, body),
            }
        }
        request.extensions_mut().insert(id);
        let mut router = self.router.clone();
        let known = match &self.sandboxes {
            Some(app) if is_of_sandboxes(&method, &path) => app.places().sandboxes().known().await,
            Some(_) | None => Ok(()),
        };
        let answered = match known {
            Ok(()) => AssertUnwindSafe(async { router.call(request).await }).catch_unwind().await,
            Err(fault) => Ok(Ok(refused(&fault.into()))),
        };
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_panic) => {
                tracing::error!(request_id = %id, "a handler panicked");
                let fault = Fault::new(Code::Internal, "the server made a mistake", "report it with the request id");
                refused(&fault.into())
            }
        };
        let mut code = None;
        if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
            code = Some(refusal.fault.code);
            let headers = std::mem::take(response.headers_mut());
            response = refused(&refusal);
            // What the router adds to a 405 is kept.
            if let Some(allow) = headers.get(axum::http::header::ALLOW) {
                response.headers_mut().insert(axum::http::header::ALLOW, allow.clone());
            }
        }
        if e2b {
            cors::allow(response.headers_mut());
        }
        if let Ok(value) = HeaderValue::try_from(id.to_string()) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        // Keys and users' files are in answers: nobody between here and the client keeps them, or takes them for a page.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let took = started.elapsed();
        let status = response.status().as_u16();
        self.metrics.request(&method, status, took);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // The line is written when the answer has been: this connection's task goes on before another one is begun.
        tokio::spawn(async move {
            match code {
                Some(code) if code.http_status() >= 500 => {
                    tracing::warn!(request_id = %id, %method, path, status, took_us, ?code, "answered");
                }
                code => tracing::info!(request_id = %id, %method, path, status, took_us, ?code, "answered"),
            }
        });
        response
    }
}

impl Door {
    /// Answers a request for a sandbox; hands every other one back. Its path is not logged: it is the business of whoever
    /// runs something there.
    async fn in_a_sandbox(
        &self,
        app: &App,
        request: Request<Body>,
        id: RequestId,
        started: Instant,
    ) -> Result<Response<Body>, Request<Body>> {
        let method = request.method().clone();
        let taken = AssertUnwindSafe(traffic::take(app, request, id)).catch_unwind().await;
        let mut response = match taken {
            Ok(taken) => taken?,
            Err(_panic) => {
                tracing::error!(request_id = %id, "the traffic of a sandbox panicked");
                let fault = Fault::new(Code::Internal, "the server made a mistake", "report it with the request id");
                Refusal::from(fault).answer(id)
            }
        };
        // What a program inside answered is its own: nothing is added to it.
        if response.extensions().get::<Foreign>().is_none() {
            if let Ok(value) = HeaderValue::try_from(id.to_string()) {
                response.headers_mut().insert(REQUEST_ID, value);
            }
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        let took = started.elapsed();
        let status = response.status().as_u16();
        self.metrics.request(&method, status, took);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(request_id = %id, %method, path = "(sandbox)", status, took_us, "answered");
        Ok(response)
    }
}

/// Whether a request can be answered only by a server that knows what lived before it: what is not there yet would be
/// said not to exist, and what a user has would be judged without it.
fn is_of_sandboxes(method: &Method, path: &str) -> bool {
    let first = path.strip_prefix("/v1/").map(|rest| rest.split('/').next().unwrap_or_default());
    match first {
        Some("sandboxes" | "snapshots" | "exec" | "execs" | "run") => true,
        // With a user goes what they have.
        Some("users") => method == Method::DELETE,
        Some(_) => false,
        None => errors::is_ours(path),
    }
}

/// A path as it is logged. Somebody will put a key where an id belongs: that is not written down.
fn shown(path: &str) -> String {
    let secret = |part: &str| rf_gate::SecretKind::of(part).is_some() || part.starts_with("eyJ");
    if !path.split('/').any(secret) {
        return path.to_owned();
    }
    let parts: Vec<&str> = path.split('/').map(|part| if secret(part) { "(secret)" } else { part }).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;

    async fn boom() -> &'static str {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn a_panic_is_answered_as_our_mistake() {
        let door = Door::new(Router::new().route("/", get(boom)), Arc::default());
        let response = door.answer(Request::get("/").body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 500);
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], "internal");
        assert_eq!(body["request_id"], id);
    }

    #[tokio::test]
    async fn an_e2b_client_is_answered_in_its_own_words_also_after_a_panic() {
        let door = Door::new(Router::new().route("/sandboxes/{id}", get(boom)), Arc::default());
        let response = door.answer(Request::get("/sandboxes/x").body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 500);
        assert!(response.headers().contains_key(REQUEST_ID));
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], 500);
        assert!(body["message"].as_str().unwrap().contains("mistake"));
    }

    #[tokio::test]
    async fn a_page_may_ask_what_e2bs_clients_may_send_and_nothing_of_ours() {
        let door = Door::new(Router::new(), Arc::default());
        let ask = async |path: &str| {
            let request = Request::options(path).header("origin", "https://page.example");
            let request = request.header("access-control-request-method", "POST");
            door.answer(request.body(Body::empty()).unwrap()).await
        };
        let answer = ask("/v2/sandboxes").await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]),
            (204, &"*".parse().unwrap())
        );
        assert!(!ask("/v1/sandboxes").await.headers().contains_key("access-control-allow-origin"));
    }
}
