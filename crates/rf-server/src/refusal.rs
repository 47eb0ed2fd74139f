//! How an error leaves: `{code, message, hint, request_id}` with the status of its code, whatever went wrong.
//!
//! A handler returns a [`Refusal`]; the outermost service ([`crate::service`]) knows the request's id and writes the
//! body. So no error can leave without an id, and a missing thing and another user's thing have the same bytes but
//! for it.

use axum::{
    body::Body,
    http::{HeaderValue, Method, Response, StatusCode, Uri, header},
    response::IntoResponse,
};
use rf_types::{Code, Fault, RequestId};
use serde::Serialize;
use utoipa::ToSchema;

/// An error on its way out.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What is answered.
    pub fault: Fault,
    /// A status other than that of the fault's code: 405 and the like, which are the door's own.
    status: Option<StatusCode>,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    /// What kind of error, for programs; such as `not_found`.
    #[schema(value_type = String)]
    pub code: Code,
    /// What happened, to what.
    pub message: &'a str,
    /// What to do next; may be empty.
    pub hint: &'a str,
    /// Names this request in the logs and in the ledger.
    #[schema(value_type = String)]
    pub request_id: RequestId,
}

impl Refusal {
    /// A refusal with a status of the door's own.
    #[must_use]
    pub fn with_status(fault: Fault, status: StatusCode) -> Self {
        Self { fault, status: Some(status) }
    }

    /// The status it is answered with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        // INVARIANT: every code's status is one that HTTP knows.
        self.status.unwrap_or_else(|| {
            StatusCode::from_u16(self.fault.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        })
    }

    /// The answer's body for the request `request_id`.
    #[must_use]
    pub fn body(&self, request_id: RequestId) -> Vec<u8> {
        let Fault { code, message, hint } = &self.fault;
        to_json(&ErrorBody { code: *code, message, hint, request_id })
    }

    /// The whole answer.
    #[must_use]
    pub fn answer(&self, request_id: RequestId) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body(request_id)));
        *response.status_mut() = self.status();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.fault.code == Code::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.fault.code.retryable() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { fault, status: None }
    }
}

impl IntoResponse for Refusal {
    /// An empty answer that carries the refusal; the outermost service writes its body.
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(self);
        response
    }
}

/// JSON of a value of ours.
///
/// # Panics
/// Never: our types have string keys and no fallible serializer.
#[must_use]
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types serialize")
}

/// The answer to a path that is not there.
pub async fn no_such_path(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Fault::new(Code::NotFound, format!("no such path `{path}`"), "see /v1/openapi.json").into()
}

/// The answer to a method that a path does not have.
pub async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    let fault = Fault::new(
        Code::InvalidRequest,
        format!("`{method}` cannot be used on `{path}`"),
        "see the methods of the path in /v1/openapi.json",
    );
    Refusal::with_status(fault, StatusCode::METHOD_NOT_ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_four_fields_and_its_codes_status() {
        let refusal = Refusal::from(Fault::not_found("sandbox"));
        assert_eq!(refusal.status(), StatusCode::NOT_FOUND);
        let text = String::from_utf8(refusal.body(RequestId::from_bits(1))).unwrap();
        assert_eq!(
            text,
            r#"{"code":"not_found","message":"no such sandbox","hint":"check the id, and that the key is the right user's","request_id":"req_00000000000000000000000000000001"}"#
        );
    }
}
