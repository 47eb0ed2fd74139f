//! Requests for sandboxes, before any of our own routes is looked at: commands and files on the control plane's own
//! port, every other port to the program that listens there.
//!
//! The control plane's ports exist outside the sandbox: a program inside that binds them takes nothing over.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts},
};
use rf_e2b::{CODE_INTERPRETER_PORT, ENVD_PORT, signature};
use rf_types::{Code, RequestId, SandboxId};
use serde::{Deserialize, Serialize};

use super::{
    cors, envd, interpreter,
    target::{Address, BadHead, Found, NoPass, NoTarget, Route, SANDBOX_ID, TRAFFIC_TOKEN, route, single},
};
use crate::{
    app::{App, Peer},
    doors::ports::{NotPassed, Passage},
    edge::Line,
    input,
    refusal::{Refusal, to_json},
};

/// Answers a request for a sandbox; every other one is handed back.
///
/// # Errors
/// The request, when it is for our own routes.
pub async fn take(app: &App, request: Request<Body>, id: RequestId) -> Result<Response<Body>, Request<Body>> {
    let (parts, body) = request.into_parts();
    let html = wants_html(&parts.headers);
    let address = match route(app.config().e2b.domain_name(), &parts) {
        // A browser asks before it sends our headers, and does not send them then.
        Ok(Route::Ours) if cors::asks_for(&parts, &SANDBOX_ID) => match cors::preflight(&parts) {
            Some(answer) => return Ok(answer),
            None => return Err(Request::from_parts(parts, body)),
        },
        Ok(Route::Ours) => return Err(Request::from_parts(parts, body)),
        Ok(Route::Sandbox(address)) => address,
        Ok(Route::Signed) => match cors::preflight(&parts) {
            Some(answer) => return Ok(answer),
            None => match signer(app, &parts, id).await {
                Ok(address) => address,
                Err(refusal) => return Ok(with_cors(refused(None, &refusal))),
            },
        },
        Err(bad) => return Ok(bad_head(bad)),
    };
    // What programs allow pages of elsewhere is theirs to say; on our own ports everything is allowed.
    let ours = matches!(address.port, ENVD_PORT | CODE_INTERPRETER_PORT);
    if ours && let Some(answer) = cors::preflight(&parts) {
        return Ok(answer);
    }
    let text = address.text.clone();
    let line = parts.extensions.get::<Line>().cloned().unwrap_or_else(Line::none);
    let found = match app.places().sandboxes().known().await {
        Ok(()) => Found::find(app, address),
        Err(fault) => Err(NoTarget::Fault(fault)),
    };
    let answer = match found {
        Ok(found) => answer(app, found, Request::from_parts(parts, body), id, line, html).await,
        Err(none) => Err(none),
    };
    let answer = answer.unwrap_or_else(|none| match none {
        NoTarget::NotFound => Said::not_found(&text).answer(html),
        NoTarget::Fault(fault) => refused(Some(&text), &fault.into()),
    });
    Ok(if ours { with_cors(answer) } else { answer })
}

async fn answer(
    app: &App,
    found: Found,
    request: Request<Body>,
    id: RequestId,
    line: Line,
    html: bool,
) -> Result<Response<Body>, NoTarget> {
    match found.port {
        ENVD_PORT => envd::answer(app, &found, request, &line).await,
        CODE_INTERPRETER_PORT => interpreter::answer(app, &found, request, &line).await,
        _ => to_port(app, &found, request, id, line, html).await,
    }
}

/// To the program that listens there.
async fn to_port(
    app: &App,
    found: &Found,
    request: Request<Body>,
    id: RequestId,
    line: Line,
    html: bool,
) -> Result<Response<Body>, NoTarget> {
    let Found { text, port, rules, .. } = found;
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let token = single(request.headers(), &TRAFFIC_TOKEN);
    let caller = match found.passer(app, id, peer, token).await {
        Ok(Ok(caller)) => caller,
        Ok(Err(why)) => return Ok(Said::no_pass(text, why).answer(html)),
        Err(refusal) => return Ok(refused(Some(text), &refusal)),
    };
    let visit = match app.ports().enter(app, &caller, found.id, *port, peer).await {
        Ok(visit) => visit,
        Err(refusal) => return Ok(refused(Some(text), &refusal)),
    };
    let target = found.awake(app).await?;
    let secure = line.tls || app.config().public_url.starts_with("https://");
    let mask_host = rules.mask_host.as_deref();
    let passage = Passage { visit, place: &target.place, prefix: "", mask_host, peer, line, secure };
    Ok(match app.ports().pass(passage, request).await {
        Ok(response) => response,
        Err(NotPassed::Closed) => Said::closed(text, *port).answer(html),
        Err(NotPassed::Gone) => return Err(NoTarget::NotFound),
        Err(NotPassed::Unfit(why)) => Said::new(text, why, StatusCode::BAD_REQUEST).answer(html),
        Err(NotPassed::NoAnswer(why)) => {
            let message = format!("The program on port {port} gave no answer: {why}");
            Said { port: Some(*port), ..Said::new(text, &message, StatusCode::BAD_GATEWAY) }.answer(html)
        }
        Err(NotPassed::NoRoom(fault)) => refused(Some(text), &fault.into()),
    })
}

/// A signed link's query.
#[derive(Deserialize)]
struct Link {
    #[serde(default)]
    path: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    signature: String,
    signature_expiration: Option<i64>,
}

/// The sandbox whose token signed a link. That the link is good, and still, is judged where the file is served.
async fn signer(app: &App, parts: &Parts, id: RequestId) -> Result<Address, Refusal> {
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
    // Each try is work for every sandbox, so who has failed too often gets none.
    app.gate().failures_left(peer, app.now()).map_err(|denied| denied.fault)?;
    let link: Link = input::query(&parts.uri)?;
    let used = match parts.method {
        Method::GET | Method::HEAD => signature::Use::Read,
        _ => signature::Use::Write,
    };
    let signed =
        signature::Signed { path: &link.path, used, username: &link.username, expires: link.signature_expiration };
    app.places().sandboxes().known().await?;
    let alive = app.places().sandboxes().ids();
    let own = |id| signs(app, id, &signed, &link.signature);
    if let Some(found) = app.e2b().signers().find(&alive, &link.signature, own).await? {
        return Ok(Address { text: rf_e2b::id::sandbox_text(found), port: ENVD_PORT });
    }
    let denied = app.gate().sandbox_refused("a link that no sandbox signed", peer, app.now());
    let mut refusal = app.not_let_in(denied, id, peer).await;
    if refusal.fault.code == Code::Unauthenticated {
        refusal.fault.message = signature::Refused::Invalid.message().to_owned();
    }
    Err(refusal)
}

fn signs(app: &App, sandbox: SandboxId, signed: &signature::Signed<'_>, presented: &str) -> bool {
    let token = app.e2b().tokens().envd_token(sandbox);
    // An old link has its sandbox as well, which then says that it is old.
    !matches!(
        signature::check(signed, &token, Some(presented), 0),
        Err(signature::Refused::Missing | signature::Refused::Invalid)
    )
}

/// What is answered in place of a sandbox. Clients look for these words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Said<'a> {
    sandbox_id: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    code: u16,
}

impl<'a> Said<'a> {
    fn new(sandbox_id: &'a str, message: &'a str, status: StatusCode) -> Self {
        Self { sandbox_id, message, port: None, code: status.as_u16() }
    }

    /// Also for one that is another user's or paused.
    fn not_found(sandbox_id: &'a str) -> Self {
        Self::new(sandbox_id, "The sandbox was not found", StatusCode::BAD_GATEWAY)
    }

    fn closed(sandbox_id: &'a str, port: u16) -> Self {
        let message = "The sandbox is running but port is not open";
        Self { port: Some(port), ..Self::new(sandbox_id, message, StatusCode::BAD_GATEWAY) }
    }

    fn no_pass(sandbox_id: &'a str, why: NoPass) -> Self {
        let message = match why {
            NoPass::Missing => {
                "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
            }
            NoPass::Wrong => {
                "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
            }
        };
        Self::new(sandbox_id, message, StatusCode::FORBIDDEN)
    }

    fn answer(&self, html: bool) -> Response<Body> {
        let (media_type, body) = if html {
            ("text/html; charset=utf-8", self.page().into_bytes())
        } else {
            ("application/json; charset=utf-8", to_json(self))
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::BAD_GATEWAY);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }

    /// For people. The id is letters and digits, and the message is ours: neither can hold markup.
    fn page(&self) -> String {
        let Self { sandbox_id, message, code, .. } = self;
        let port = self.port.map(|port| format!("<p>Port {port}</p>")).unwrap_or_default();
        format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{code}</title></head>\
             <body><h1>{message}</h1><p>Sandbox {sandbox_id}</p>{port}</body></html>"
        )
    }
}

/// Whether somebody looks at the answer in a browser.
fn wants_html(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text(header::ACCEPT).contains("text/html") && text(header::USER_AGENT).starts_with("Mozilla/")
}

fn bad_head(bad: BadHead) -> Response<Body> {
    plain(StatusCode::BAD_REQUEST, &bad.to_string())
}

/// A fault of ours in the words of these clients.
fn refused(sandbox: Option<&str>, refusal: &Refusal) -> Response<Body> {
    let status = refusal.status();
    let mut response = match sandbox {
        Some(sandbox) => Said::new(sandbox, &refusal.fault.message, status).answer(false),
        None => plain(status, &refusal.fault.message),
    };
    if refusal.fault.code.retryable() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn plain(status: StatusCode, message: &str) -> Response<Body> {
    #[derive(Serialize)]
    struct Plain<'a> {
        code: u16,
        message: &'a str,
    }
    let mut response = Response::new(Body::from(to_json(&Plain { code: status.as_u16(), message })));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn with_cors(mut response: Response<Body>) -> Response<Body> {
    cors::allow(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(response: Response<Body>) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_words_that_clients_look_for() {
        let gone = Said::not_found("sbx1").answer(false);
        assert_eq!(gone.status(), 502);
        assert_eq!(body(gone).await, r#"{"sandboxId":"sbx1","message":"The sandbox was not found","code":502}"#);
        let closed = Said::closed("sbx1", 80).answer(false);
        assert_eq!(
            body(closed).await,
            r#"{"sandboxId":"sbx1","message":"The sandbox is running but port is not open","port":80,"code":502}"#
        );
        for why in [NoPass::Missing, NoPass::Wrong] {
            let answer = Said::no_pass("sbx1", why).answer(false);
            assert_eq!(answer.status(), 403);
            assert!(body(answer).await.contains("'e2b-traffic-access-token'"));
        }
    }

    #[tokio::test]
    async fn a_browser_gets_a_page() {
        let mut headers = HeaderMap::new();
        headers.insert("accept", "text/html,*/*".parse().unwrap());
        assert!(!wants_html(&headers), "a program that takes anything gets JSON");
        headers.insert("user-agent", "Mozilla/5.0".parse().unwrap());
        assert!(wants_html(&headers));
        let page = Said::closed("sbx1", 80).answer(true);
        assert_eq!(
            (page.status().as_u16(), &page.headers()["content-type"]),
            (502, &"text/html; charset=utf-8".parse().unwrap())
        );
        assert!(body(page).await.contains("port is not open"));
    }
}
