//! What a browser needs to let a page of anywhere read our answers: everything is allowed to everybody, as these clients
//! expect, because no credential of ours is one that a browser adds by itself. A page can ask only with a key or a token
//! that it was given.

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
            ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
        },
        request::Parts,
    },
};

/// Headers of ours that a page may read beside the plain ones.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "X-Next-Token, X-Total-Running, X-Request-Id, Content-Disposition, Grpc-Status, Grpc-Message, \
     Grpc-Status-Details-Bin, Connect-Content-Encoding, Connect-Protocol-Version",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
/// How long a browser may remember it, seconds: two hours, the most that browsers take.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const ANYBODY: HeaderValue = HeaderValue::from_static("*");

/// The answer to a browser that asks what it may send (the Fetch standard, section 3.3); nothing for every other request.
#[must_use]
pub fn preflight(parts: &Parts) -> Option<Response<Body>> {
    let asks = parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        return None;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    allow(headers);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    // Named one by one, for `*` does not stand for `Authorization`.
    let wanted = parts.headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(ANYBODY);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.insert(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    Some(response)
}

/// Whether a browser asks whether it may send this header.
#[must_use]
pub fn asks_for(parts: &Parts, name: &HeaderName) -> bool {
    let wanted = parts.headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS);
    wanted
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .any(|wanted| wanted.trim().eq_ignore_ascii_case(name.as_str()))
}

/// Lets every page read an answer.
pub fn allow(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(pairs: &[(&str, &str)], method: Method) -> Parts {
        let mut request = Request::builder().method(method).uri("/x");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_browsers_question_is_answered_and_nothing_else() {
        let asked = [
            ("origin", "https://page.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, E2b-Sandbox-Id"),
        ];
        let answer = preflight(&parts(&asked, Method::OPTIONS)).unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS], "authorization, E2b-Sandbox-Id");
        assert!(!answer.headers().contains_key("access-control-allow-credentials"));
        assert!(asks_for(&parts(&asked, Method::OPTIONS), &HeaderName::from_static("e2b-sandbox-id")));
        assert!(!asks_for(&parts(&asked, Method::OPTIONS), &HeaderName::from_static("e2b-sandbox")));
        for (pairs, method) in
            [(&asked[..], Method::GET), (&asked[..1], Method::OPTIONS), (&asked[1..], Method::OPTIONS)]
        {
            assert!(preflight(&parts(pairs, method)).is_none());
        }
    }
}
