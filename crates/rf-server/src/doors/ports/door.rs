//! Our own door to ports: `/v1/sandboxes/{id}/ports/{port}/…` with an API key, for every method and for WebSockets; and
//! `/v1/sandboxes/{id}/tunnels/{port}`, which goes over (RFC 9110, section 7.8) to the bytes of a TCP connection, for
//! programs that speak something else.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderValue, Response, StatusCode, Version,
        header::{CONNECTION, CONTENT_SECURITY_POLICY, UPGRADE},
    },
    routing::{any, get},
};
use rf_e2b::{CODE_INTERPRETER_PORT, ENVD_PORT};
use rf_places::sandbox::SandboxPlace;
use rf_policy::Action;
use rf_types::{Code, Fault, MachineId, PlaceRef, SandboxId};
use utoipa_axum::router::OpenApiRouter;

use super::{NotPassed, Passage, Visit, head};
use crate::{
    app::{App, Caller, Named, Peer},
    edge::Line,
    input,
    operation::Ask,
    refusal::Refusal,
};

/// The routes. Not in the document: what is asked and answered there is the program's.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .route("/v1/sandboxes/{id}/ports/{port}", any(port))
        .route("/v1/sandboxes/{id}/ports/{port}/{*path}", any(port))
        .route("/v1/sandboxes/{id}/ports/{port}/", any(port))
        .route("/v1/sandboxes/{id}/tunnels/{port}", get(tunnel))
        .route("/v1/machines/{id}/ports/{port}", any(port_on_machine))
        .route("/v1/machines/{id}/ports/{port}/{*path}", any(port_on_machine))
}

/// The parts of the path before the program's own.
#[derive(serde::Deserialize)]
struct At {
    id: String,
    port: String,
}

/// A page that a program serves here has our own origin and must not be taken for a page of ours: a browser gives it one
/// of its own (Content Security Policy Level 3, section 6.3.2). Beside a policy of the program's both hold.
const APART: HeaderValue = HeaderValue::from_static("sandbox allow-scripts allow-forms");

/// A request to a port of one of the user's sandboxes.
async fn port(
    State(app): State<App>,
    caller: Caller,
    Named(At { id, port }): Named<At>,
    mut request: Request,
) -> Result<Response<Body>, Refusal> {
    let prefix = format!("/v1/sandboxes/{id}/ports/{port}");
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let (visit, port, place) = enter(&app, &caller, (&id, &port), peer).await?;
    // The credential of this call, whatever its form: what the program gets is the user's request without it.
    for name in ["authorization", "x-api-key", crate::app::ACT_FOR] {
        request.headers_mut().remove(name);
    }
    let line = request.extensions().get::<Line>().cloned().unwrap_or_else(Line::none);
    let secure = line.tls || app.config().public_url.starts_with("https://");
    let passage = Passage { visit, place: &place, prefix: &prefix, mask_host: None, peer, line, secure };
    let mut response = app.ports().pass(passage, request).await.map_err(|why| refusal(why, port))?;
    response.headers_mut().append(CONTENT_SECURITY_POLICY, APART);
    Ok(response)
}

/// What a client of tunnels asks to go over to.
const TUNNEL: &str = "tcp";

/// A connection to a port of one of the user's sandboxes, as bytes.
async fn tunnel(
    State(app): State<App>,
    caller: Caller,
    Named(At { id, port }): Named<At>,
    mut request: Request,
) -> Result<Response<Body>, Refusal> {
    let asked = head::upgrade(request.headers()).filter(|_| request.version() < Version::HTTP_2);
    if asked.is_none_or(|asked| asked != TUNNEL) {
        let fault = Fault::new(
            Code::InvalidRequest,
            "this endpoint is a tunnel",
            "connect with `Connection: upgrade` and `Upgrade: tcp` over HTTP/1.1",
        );
        return Err(Refusal::with_status(fault, StatusCode::UPGRADE_REQUIRED));
    }
    let line = request.extensions().get::<Line>().cloned().unwrap_or_else(Line::none);
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let (visit, port, place) = enter(&app, &caller, (&id, &port), peer).await?;
    let client = hyper::upgrade::on(&mut request);
    let passage = Passage { visit, place: &place, prefix: "", mask_host: None, peer, secure: line.tls, line };
    app.ports().tunnel(passage, client).await.map_err(|why| refusal(why, port))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(TUNNEL));
    Ok(response)
}

/// A visit of the port in a path, judged and on the record, and only then the user's sandbox, which is woken for it. Where
/// there is no such sandbox that is on the record as well.
async fn enter(
    app: &App,
    caller: &Caller,
    (id, port): (&str, &str),
    peer: Option<IpAddr>,
) -> Result<(Visit, u16, Arc<SandboxPlace>), Refusal> {
    let sandbox: SandboxId = input::id("sandbox", id)?;
    let port = number(port)?;
    let (user, sandboxes) = (caller.who.principal().user, app.places().sandboxes());
    if let Err(fault) = sandboxes.peek(user, sandbox, |_, _| ()) {
        let ask = Ask::of(Action::PortConnect).place(PlaceRef::Sandbox(sandbox)).detail("port", port);
        return Err(app.begin(caller, ask).await?.fail(fault).await);
    }
    let visit = app.ports().enter(app, caller, sandbox, port, peer).await?;
    let place = sandboxes.awake(user, sandbox).await?;
    Ok((visit, port, place))
}

/// A machine's ports are not reached: its owner shares commands and files.
async fn port_on_machine(
    State(app): State<App>,
    caller: Caller,
    Named(At { id, port }): Named<At>,
) -> Result<Response<Body>, Refusal> {
    let machine: MachineId = input::id("machine", &id)?;
    let ask = Ask::of(Action::PortConnect).place(PlaceRef::Machine(machine)).detail("port", number(&port)?);
    let operation = app.begin(&caller, ask).await?;
    let fault = match app.places().place(operation.permit().user(), PlaceRef::Machine(machine)) {
        Ok(_) => Fault::new(
            Code::Unsupported,
            "ports of a machine are not reached through the server",
            "connect to the machine itself, or run the program in a sandbox",
        ),
        Err(fault) => fault,
    };
    Err(operation.fail(fault).await)
}

fn number(text: &str) -> Result<u16, Fault> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    match text.parse().ok().filter(|_| plain) {
        Some(port @ (ENVD_PORT | CODE_INTERPRETER_PORT)) => Err(Fault::new(
            Code::Unsupported,
            format!("port {port} is the control plane's own, and nothing inside a sandbox answers there"),
            "have the program listen on another port",
        )),
        Some(port) => Ok(port),
        None => Err(Fault::invalid("the port must be a number from 1 to 65535")),
    }
}

fn refusal(why: NotPassed, port: u16) -> Refusal {
    match why {
        NotPassed::Closed => Fault::new(
            Code::NotFound,
            format!("nothing listens on port {port} in the sandbox"),
            "start the program first, on 127.0.0.1 or 0.0.0.0",
        )
        .into(),
        NotPassed::Gone => Fault::new(Code::PlaceLost, "the sandbox is gone", "make another one").into(),
        NotPassed::Unfit(why) => Fault::invalid(why).into(),
        NotPassed::NoAnswer(why) => Fault::new(
            Code::PlaceLost,
            format!("the program on port {port} gave no answer: {why}"),
            "see what it says itself",
        )
        .into(),
        NotPassed::NoRoom(fault) => fault.into(),
    }
}
