//! What answers on the port of commands and files of a sandbox: outside of it, so that nothing inside can stand in its
//! place. The words are those of the E2B clients; what is done is done by the same gate, ledger and places as for `/v1`.
//!
//! ```text
//! answer ─ /health, signed or with the token ─▶ Caller, good in this sandbox alone
//!    ├ /process.Process/*, /filesystem.Filesystem/* ─▶ connectrpc (framing, codecs, deadlines) ─▶ process, filesystem
//!    ├ /files, /files/compose ─▶ files
//!    └ /envs, /metrics ─▶ here
//! ```

mod entry;
mod envelopes;
mod files;
mod filesystem;
mod metrics;
mod multipart;
mod parents;
mod process;
mod range;
mod rpc;
pub mod watchers;

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rf_e2b::signature::{self, Signed, Use};
use rf_policy::Action;
use rf_types::{Code, Fault, PlaceRef, RequestId};
use serde::Serialize;

use super::target::{ACCESS_TOKEN, Found, NoTarget, Proof, Target, single};
use crate::{
    app::{App, Caller, Peer},
    edge::Line,
    input,
    operation::Ask,
    refusal::{Refusal, to_json},
};

/// What the clients look for where the token is missing or wrong.
const UNAUTHORIZED: &str = "unauthorized access, please provide a valid access token or method signing if supported";
/// What they look for where a wrong token came with a request for a file.
const WRONG_TOKEN: &str = "access token present in header but does not match";
/// What they take for a sandbox that is no more.
pub(super) const NOT_FOUND: &str = "The sandbox was not found";

/// A request that was let in.
pub(super) struct Asked {
    pub(super) app: App,
    pub(super) target: Arc<Target>,
    pub(super) caller: Caller,
    /// The user inside that was named; the sandbox's default one if none was.
    pub(super) user: Option<String>,
}

impl Asked {
    pub(super) fn place(&self) -> PlaceRef {
        PlaceRef::Sandbox(self.target.id)
    }
}

/// Answers a request for a sandbox's commands and files.
///
/// # Errors
/// See [`NoTarget`].
pub async fn answer(app: &App, found: &Found, request: Request<Body>, line: &Line) -> Result<Response<Body>, NoTarget> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (parts, body) = request.into_parts();
    if (&method, path.as_str()) == (&Method::GET, "/health") {
        found.is_well(app, single(&parts.headers, &ACCESS_TOKEN)).await?;
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let is_file = path == "/files" && matches!(method, Method::GET | Method::POST);
    let let_in = if is_file { file_caller(app, found, &parts).await } else { caller(app, found, &parts).await };
    let caller = match let_in {
        Ok(caller) => caller,
        Err(response) => return Ok(response),
    };
    let target = Arc::new(found.awake(app).await?);
    let (user, version) = (basic_user(&parts), parts.version);
    let request = Request::from_parts(parts, body);
    let asked = Asked { app: app.clone(), target: Arc::clone(&target), caller, user: None };
    let answer = match (&method, path.as_str()) {
        (&Method::GET, "/files") => files::read(asked, request).await,
        (&Method::POST, "/files") => files::write(asked, request).await,
        (&Method::POST, "/files/compose") => files::compose(asked, request).await,
        (&Method::GET, "/envs") => envs(&asked).await,
        (&Method::GET, "/metrics") => metrics::answer(&asked).await,
        (_, "/files" | "/files/compose" | "/envs" | "/metrics" | "/health") => empty(StatusCode::METHOD_NOT_ALLOWED),
        (_, path) if rpc::is_path(path) => rpc::answer(Asked { user, ..asked }, request).await,
        _ => failed(StatusCode::NOT_FOUND, "404 page not found"),
    };
    Ok(target.cut(answer, line, version))
}

/// Who asks, by the sandbox's token.
async fn caller(app: &App, found: &Found, parts: &Parts) -> Result<Caller, Response<Body>> {
    let token = single(&parts.headers, &ACCESS_TOKEN);
    let (id, peer) = about(parts);
    let caller = found.caller(app, id, peer, Proof::Token(token)).await;
    caller.map_err(|refusal| refused(refusal, UNAUTHORIZED))
}

/// Who asks for a file: by the sandbox's token, else by the link's signature.
async fn file_caller(app: &App, found: &Found, parts: &Parts) -> Result<Caller, Response<Body>> {
    let token = single(&parts.headers, &ACCESS_TOKEN).filter(|token| !token.is_empty());
    let (id, peer) = about(parts);
    let (proof, message) = if token.is_some() {
        (Proof::Token(token), WRONG_TOKEN)
    } else {
        let query = files::Query::of(&parts.uri).map_err(|fault| failed(StatusCode::BAD_REQUEST, &fault.message))?;
        let used = if parts.method == Method::GET { Use::Read } else { Use::Write };
        let (path, username) = (query.path.as_deref().unwrap_or(""), query.username.as_deref().unwrap_or(""));
        let signed = Signed { path, used, username, expires: query.signature_expiration };
        let now = i64::try_from(app.now() / 1000).unwrap_or(i64::MAX);
        let secret = app.e2b().tokens().envd_token(found.id);
        match signature::check(&signed, &secret, query.signature.as_deref(), now) {
            Ok(()) => (Proof::Signature(true), UNAUTHORIZED),
            // A sandbox that needs no token needs no signature, either.
            Err(why) if !found.rules.secured => (Proof::Token(None), why.message()),
            Err(why) => (Proof::Signature(false), why.message()),
        }
    };
    found.caller(app, id, peer, proof).await.map_err(|refusal| refused(refusal, message))
}

fn about(parts: &Parts) -> (RequestId, Option<IpAddr>) {
    let id = parts.extensions.get().copied().unwrap_or_else(RequestId::random);
    (id, parts.extensions.get::<Peer>().map(|peer| peer.0))
}

/// The user that `Authorization: Basic` names; what is no such header names nobody.
fn basic_user(parts: &Parts) -> Option<String> {
    let text = single(&parts.headers, &header::AUTHORIZATION)?;
    let (scheme, rest) = text.split_once(' ')?;
    let pair = STANDARD.decode(rest.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let pair = String::from_utf8(pair).ok()?;
    let user = pair.split_once(':')?.0;
    (!user.is_empty()).then(|| user.to_owned())
}

/// An error as the clients read it.
#[derive(Serialize)]
struct ErrorBody<'a> {
    code: u16,
    message: &'a str,
}

/// An answer that says what is wrong.
pub(super) fn failed(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(to_json(&ErrorBody { code: status.as_u16(), message })));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// An answer of JSON.
pub(super) fn json(value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Body::from(to_json(value)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// What a refusal of ours is there; `unauthenticated` is said for a credential that is none.
fn refused(refusal: Refusal, unauthenticated: &str) -> Response<Body> {
    match refusal.fault.code {
        Code::Unauthenticated => failed(StatusCode::UNAUTHORIZED, unauthenticated),
        _ => fault(&refusal.fault),
    }
}

/// What a fault of ours is in an answer over plain HTTP.
pub(super) fn fault(fault: &Fault) -> Response<Body> {
    let status = match fault.code {
        // The texts by which the clients know a sandbox that has ended.
        Code::PlaceLost | Code::NoPlace | Code::Paused => return failed(StatusCode::BAD_GATEWAY, NOT_FOUND),
        Code::FileFailed | Code::ExecFailed => StatusCode::INTERNAL_SERVER_ERROR,
        code => StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    failed(status, &fault.message)
}

/// The environment that the sandbox's maker asked for: what any command in it sees.
async fn envs(asked: &Asked) -> Response<Body> {
    let ask = Ask::of(Action::ExecRead).place(asked.place()).subject(asked.target.id).detail("op", "envs");
    let operation = match asked.app.begin(&asked.caller, ask).await {
        Ok(operation) => operation,
        Err(refusal) => return refused(refusal, UNAUTHORIZED),
    };
    let row = asked.target.row(&asked.app);
    match operation.finish(row).await {
        Ok(row) => json(&row.about.env),
        Err(refusal) => fault(&refusal.fault),
    }
}

/// How long an upload may stay away, and how much may come.
pub(super) fn upload_bounds(app: &App) -> (std::time::Duration, u64) {
    let door = &app.config().door;
    (std::time::Duration::from_millis(door.upload_idle_timeout_ms), door.upload_bytes_max)
}

/// The next bytes of a body.
///
/// # Errors
/// `timed_out` when none come for `idle`; `invalid_request` when the client broke off.
pub(super) async fn next_piece(body: &mut Body, idle: std::time::Duration) -> Result<Option<Bytes>, Fault> {
    use http_body_util::BodyExt as _;
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| input::too_slow(idle))?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|_| Fault::invalid("the connection broke within the body"))?;
        if let Ok(piece) = frame.into_data()
            && !piece.is_empty()
        {
            return Ok(Some(piece));
        }
    }
}
