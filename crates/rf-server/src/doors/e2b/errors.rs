//! How an error leaves towards an E2B client: `{code, message}` with its HTTP status, whatever went wrong.
//!
//! The clients read the body of every error as that object, and decide by status and headers alone what to raise and
//! whether to try again; a body that is no such object hides the error from them. So this is the one place where our own
//! refusals are written in their form.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
};
use rf_e2b::models::ErrorBody;
use rf_types::{Code, Fault};

use crate::refusal::{Refusal, to_json};

/// First parts of the paths that are this door's. Our own interface is below `/v1` and has none of them.
const ROOTS: [&str; 15] = [
    "sandboxes",
    "snapshots",
    "templates",
    "default-templates",
    "volumes",
    "volumecontent",
    "secrets",
    "teams",
    "nodes",
    "admin",
    "api-keys",
    "access-tokens",
    "events",
    "v2",
    "v3",
];

/// Whether the client may try again: the clients heed it before the status.
pub const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Whether a path is this door's, there or not.
#[must_use]
pub fn is_ours(path: &str) -> bool {
    let first = path.strip_prefix('/').and_then(|rest| rest.split('/').next());
    first.is_some_and(|first| ROOTS.contains(&first))
}

/// The status of a refusal here. A template that is not there is a thing that does not exist, which clients know by 404.
#[must_use]
pub fn status(refusal: &Refusal) -> StatusCode {
    if refusal.fault.code == Code::TemplateUnavailable { StatusCode::NOT_FOUND } else { refusal.status() }
}

/// The body of a refusal here.
#[must_use]
pub fn body(refusal: &Refusal) -> ErrorBody {
    let Fault { code, message, hint } = &refusal.fault;
    // There is no field for a hint. That of a malformed request leads to the document of the other interface.
    let message = match code {
        Code::InvalidRequest | Code::NotFound => message.clone(),
        Code::Unauthenticated => format!("{message}: send a key of this server as `X-API-Key`"),
        _ if hint.is_empty() => message.clone(),
        _ => format!("{message}: {hint}"),
    };
    ErrorBody { code: status(refusal).as_u16(), message }
}

/// The whole answer.
#[must_use]
pub fn answer(refusal: &Refusal) -> Response<Body> {
    let body = body(refusal);
    let mut response = Response::new(Body::from(to_json(&body)));
    *response.status_mut() = status(refusal);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let code = refusal.fault.code;
    if code == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if code.retryable() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
    } else if matches!(body.code, 429 | 502 | 503 | 504) {
        // A limit that is reached stays so until something is given back, and so do the others: clients would try again.
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_door_are_known_by_their_first_part() {
        for ours in ["/sandboxes", "/sandboxes/x", "/v2/sandboxes", "/v3", "/templates/a%2Fb", "/teams/", "/events/x"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["/", "", "/v1/sandboxes", "/sandboxes2", "/metrics", "//sandboxes", "/v1/v2", "/health"] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn a_client_is_told_whether_to_try_again() {
        let answer = |code| answer(&Fault::new(code, "it", "").into());
        for (code, status, again) in [
            (Code::LimitReached, 429, Some("false")),
            (Code::RateLimited, 429, Some("true")),
            (Code::WardenUnavailable, 503, Some("true")),
            (Code::LayerUnavailable, 503, Some("false")),
            (Code::PlaceLost, 502, Some("false")),
            (Code::TimedOut, 504, Some("false")),
            (Code::Unsupported, 501, None),
            (Code::TemplateUnavailable, 404, None),
            (Code::Unauthenticated, 401, None),
        ] {
            let response = answer(code);
            assert_eq!(response.status(), status, "{code:?}");
            assert_eq!(response.headers().get(SHOULD_RETRY).map(|value| value.to_str().unwrap()), again, "{code:?}");
            assert_eq!(response.headers().contains_key("retry-after"), again == Some("true"), "{code:?}");
        }
    }

    #[tokio::test]
    async fn the_body_is_a_number_and_a_text() {
        let response = answer(&Fault::new(Code::LimitReached, "no more", "give back").into());
        let body = axum::body::to_bytes(response.into_body(), 1 << 10).await.unwrap();
        assert_eq!(body, r#"{"code":429,"message":"no more: give back"}"#);
    }
}
