//! What answers on the port of the code interpreter, outside the sandbox: cells of Python, run one after another in one
//! process of the sandbox's user, which keeps what they define.
//!
//! Of that interface only this much is built: `GET /health` and `POST /execute` in the default context. Contexts of one's
//! own and other languages are refused by their names.
//!
//! ```text
//! POST /execute ─▶ Caller, good in this sandbox alone ─▶ Operation ─▶ the sandbox's kernel, one cell at a time
//!      answer  ◀─ one JSON object a line, as the kernel tells them; silence is filled with keepalives
//! client gone  ─▶ the cell is interrupted, then killed with its kernel
//! ```

mod kernel;

use std::{net::IpAddr, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, Method, Request, Response, StatusCode, header},
};
use futures::stream;
use rf_policy::Action;
use rf_types::{Code, Fault, PlaceRef, RequestId};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

pub use self::kernel::Kernels;
use super::target::{ACCESS_TOKEN, Found, NoTarget, Proof, Target, single};
use crate::{
    app::{App, Caller, Peer},
    edge::Line,
    input,
    operation::Ask,
    refusal::Refusal,
};

/// The template that this interface's clients ask for; `base` has what is needed.
pub const TEMPLATE: &str = "code-interpreter-v1";
/// After this much silence a line says that the cell still runs; specified by the interface.
const KEEPALIVE_TIME: Duration = Duration::from_secs(5);
/// Lines that wait for a slow client. Chosen.
const LINES_MAX: usize = 16;
/// Most bytes of a cell that the ledger has.
const CODE_RECORDED_MAX: usize = 4096;

/// A cell to run.
#[derive(Deserialize)]
struct Execute {
    code: String,
    context_id: Option<String>,
    language: Option<String>,
    env_vars: Option<Map<String, Value>>,
}

/// Answers a request for the code interpreter of a sandbox.
///
/// # Errors
/// See [`NoTarget`].
pub async fn answer(app: &App, found: &Found, request: Request<Body>, line: &Line) -> Result<Response<Body>, NoTarget> {
    let token = single(request.headers(), &ACCESS_TOKEN);
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => {
            found.is_well(app, token).await?;
            text(StatusCode::OK, "\"OK\"")
        }
        (&Method::POST, "/execute") => {
            let id = request.extensions().get().copied().unwrap_or_else(RequestId::random);
            let peer: Option<IpAddr> = request.extensions().get::<Peer>().map(|peer| peer.0);
            let caller = match found.caller(app, id, peer, Proof::Token(token)).await {
                Ok(caller) => caller,
                Err(refusal) => return Ok(refused(&refusal.fault)),
            };
            let (target, version) = (found.awake(app).await?, request.version());
            let answer = execute(app.clone(), caller, &target, request).await;
            target.cut(answer.unwrap_or_else(|refusal| refused(&refusal.fault)), line, version)
        }
        (_, path) if path == "/contexts" || path.starts_with("/contexts/") => {
            refused(&not_built("contexts of one's own in the code interpreter"))
        }
        _ => text(StatusCode::NOT_FOUND, "no such path of the code interpreter"),
    })
}

async fn execute(app: App, caller: Caller, target: &Target, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    let (parts, body) = request.into_parts();
    let bytes = app.intake().bytes(&parts.headers, body).await?;
    let ask: Execute = input::parse(&bytes)?;
    checked(&ask)?;
    // For as long as it waits for the cells before it, and runs.
    let mut share = app.intake().room().share();
    if !share.grow(bytes.len()) {
        return Err(input::no_room().into());
    }
    drop(bytes);
    let recorded: String = ask.code.chars().take(CODE_RECORDED_MAX).collect();
    let record = Ask::of(Action::ExecControl)
        .place(PlaceRef::Sandbox(target.id))
        .subject(target.id)
        .detail("op", "execute")
        .detail("code", app.redactor().text(&recorded, &[]))
        .detail("bytes", ask.code.len());
    let operation = app.begin(&caller, record).await?;
    let kernels = app.e2b().kernels().clone();
    let held = match kernels.held(&app, &caller, target).await {
        Ok(held) => held,
        Err(fault) => return Err(operation.fail(fault).await),
    };
    let operation = operation.made_durable().await?;
    let cell = serde_json::json!({ "code": ask.code, "env_vars": ask.env_vars });
    let (lines, mut told) = mpsc::channel::<kernel::Line>(LINES_MAX);
    // It goes on without its client for as long as it takes to interrupt it.
    tokio::spawn(async move {
        let _share = share;
        let result = held.run(&app, operation.permit(), &cell, &lines).await;
        if let Err(refusal) = operation.finish(result).await {
            tracing::debug!(fault = %refusal.fault, "a cell ended badly");
        }
    });
    let body = stream::poll_fn(move |context| told.poll_recv(context).map(|line| line.map(kernel::Line::hand_on)));
    let mut response = Response::new(Body::from_stream(kernel::alive(body, KEEPALIVE_TIME)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Refuses what is not built, by its name, and an environment that is none: it would end the kernel and all it keeps.
fn checked(ask: &Execute) -> Result<(), Fault> {
    let is_variable = |(name, value): (&String, &Value)| {
        !name.is_empty() && !name.contains(['=', '\0']) && value.as_str().is_some_and(|value| !value.contains('\0'))
    };
    if !ask.env_vars.iter().flatten().all(is_variable) {
        return Err(Fault::invalid("`env_vars` must be texts by names of variables"));
    }
    match (&ask.context_id, ask.language.as_deref()) {
        (Some(_), Some(_)) => Err(Fault::invalid("only one of `context_id` and `language` can be given")),
        (Some(_), None) => Err(Fault::not_found("context")),
        (None, None | Some("python")) => Ok(()),
        (None, Some(_)) => Err(not_built("any language but Python in the code interpreter")),
    }
}

fn not_built(feature: &str) -> Fault {
    Fault::new(Code::Unsupported, format!("{feature} is not built in this version of Ringfence"), "")
}

/// These clients read an error's text as it is.
fn refused(fault: &Fault) -> Response<Body> {
    let status = match fault.code {
        // By this they know that it has ended.
        Code::PlaceLost | Code::NoPlace => StatusCode::BAD_GATEWAY,
        code => StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    text(status, &fault.message)
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_texts_by_names() {
        let checked =
            |env: &str| checked(&input::parse(format!(r#"{{"code":"1","env_vars":{env}}}"#).as_bytes()).unwrap());
        for good in ["null", "{}", r#"{"A":"","b c":"d=e"}"#] {
            assert_eq!(checked(good), Ok(()), "{good}");
        }
        for wrong in
            [r#"{"A":1}"#, r#"{"A":null}"#, r#"{"":"x"}"#, r#"{"A=B":"x"}"#, r#"{"A\u0000":"x"}"#, r#"{"A":"\u0000"}"#]
        {
            assert_eq!(checked(wrong).unwrap_err().code, Code::InvalidRequest, "{wrong}");
        }
    }
}
