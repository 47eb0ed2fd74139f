//! Requests to ports inside sandboxes, over HTTP and whatever they go over to: judged, put on the record, and carried to
//! a program that listens there, also on 127.0.0.1 alone. Nothing else is reachable: the connection is made inside the
//! sandbox, by its process 1, to its loopback.
//!
//! ```text
//! client ─(HTTP/1.1, HTTP/2, TLS)─▶ head.rs: another head ─▶ pool.rs: a connection of this sandbox and port ─▶ program
//!        ◀── body.rs: cut off with the sandbox ── moved.rs: long ones by the kernel ─────────────────────────┘
//!                 visits.rs: one operation in the ledger for each visit
//! ```
//!
//! What a program answers is hostile: it is parsed as an answer, bounded, and framed anew.

mod body;
mod door;
mod head;
mod moved;
mod pool;
mod visits;

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    http::{
        HeaderValue, Method, Request, Response, StatusCode, Version,
        header::{HOST, TRANSFER_ENCODING},
    },
};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rf_places::sandbox::SandboxPlace;
use rf_policy::Permit;
use rf_types::{Code, Fault, SandboxId};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use self::body::cut;
pub use self::door::routes;
use self::{
    moved::Back,
    pool::{Pool, Sender},
    visits::{UnderWay, Visits},
};
use crate::{
    app::{App, Caller},
    edge::Line,
    refusal::Refusal,
};

/// Bytes that are moved at once after an upgrade, each way. Chosen: what a socket takes at once.
const COPY_BYTES: usize = 64 << 10;

/// In the extensions of an answer that a program in a sandbox gave: nothing is added to its head.
#[derive(Clone, Copy, Debug)]
pub struct Foreign;

/// What is kept of traffic to ports; clones are the same one.
#[derive(Clone, Default)]
pub struct Ports {
    pool: Pool,
    visits: Visits,
}

/// A request to a port that was judged, and is on the record; its sandbox may be woken for it.
pub struct Visit {
    sandbox: SandboxId,
    port: u16,
    permit: Arc<Permit>,
    under_way: UnderWay,
}

/// Where a request is to go, and how.
pub struct Passage<'a> {
    /// That it may.
    pub visit: Visit,
    /// The sandbox's place.
    pub place: &'a Arc<SandboxPlace>,
    /// What of the path is ours and does not go on; empty for none.
    pub prefix: &'a str,
    /// The `Host` that the program is to see; `${PORT}` stands for the port.
    pub mask_host: Option<&'a str>,
    /// Whose connection.
    pub peer: Option<IpAddr>,
    /// The connection.
    pub line: Line,
    /// Whether the client spoke TLS, here or in front of here.
    pub secure: bool,
}

/// Why a request did not get to a program.
#[derive(Debug)]
pub enum NotPassed {
    /// Nothing listens there.
    Closed,
    /// The sandbox is gone.
    Gone,
    /// The request cannot go on as it is.
    Unfit(&'static str),
    /// What listens there gave no answer of HTTP, or broke off before one.
    NoAnswer(&'static str),
    /// There is no room for it.
    NoRoom(Fault),
}

/// Said of an answer whose head is past [`pool::HEAD_BYTES_MAX`] or [`pool::FIELDS_MAX`].
const LONG_HEAD: &str = "the head of its answer is longer than 128 KiB, or has more than 256 fields";
const _: () = assert!(pool::HEAD_BYTES_MAX == 128 << 10 && pool::FIELDS_MAX == 256, "as it is said");

/// What a program answered, and the connection that it came over.
struct Answered {
    response: Response<hyper::body::Incoming>,
    sender: Sender,
}

impl Ports {
    /// Ends in the ledger what is under way: the server ends.
    pub fn end(&self) {
        self.visits.end();
    }

    /// Judges a request to a port of a sandbox, and has it on the record.
    ///
    /// # Errors
    /// What the gate says no with, recorded; `ledger_unavailable`.
    pub async fn enter(
        &self,
        app: &App,
        caller: &Caller,
        sandbox: SandboxId,
        port: u16,
        peer: Option<IpAddr>,
    ) -> Result<Visit, Refusal> {
        let (permit, under_way) = self.visits.enter(app, caller, sandbox, port, peer).await?;
        Ok(Visit { sandbox, port, permit, under_way })
    }

    /// Carries a request to a program and brings its answer.
    ///
    /// # Errors
    /// See [`NotPassed`].
    pub async fn pass(&self, passage: Passage<'_>, mut request: Request<Body>) -> Result<Response<Body>, NotPassed> {
        if request.method() == Method::CONNECT {
            return Err(NotPassed::Unfit("CONNECT asks for a tunnel, and a port is none"));
        }
        let (version, small, alone) = (request.version(), moved::is_small(&request), goes_alone(&request));
        let switching = version < Version::HTTP_2 && head::upgrade(request.headers()).is_some();
        let client = switching.then(|| hyper::upgrade::on(&mut request));
        let request = outgoing(&passage, request)?;
        let Passage { visit, place, ref line, .. } = passage;
        let Visit { sandbox, port, permit, under_way } = visit;
        let to = To { place, sandbox, port, permit: &permit };
        let Answered { mut response, sender } = self.send(&to, request, switching).await?;
        // What came in one piece with the rest of an answer is read past the bound at first.
        if head::length(response.headers()) > pool::HEAD_BYTES_MAX {
            return Err(NotPassed::NoAnswer(LONG_HEAD));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = client else {
                return Err(NotPassed::NoAnswer("it went over to another protocol that nobody asked for"));
            };
            let program = hyper::upgrade::on(&mut response);
            let (place, line) = (Arc::clone(place), line.clone());
            tokio::spawn(async move {
                // One of them that breaks off before takes the other along.
                if let Ok((client, program)) = tokio::try_join!(client, program) {
                    carry(TokioIo::new(client), TokioIo::new(program), &place, &line, under_way).await;
                }
            });
            return incoming(response.map(|_| Body::empty()), true);
        }
        let reused = moved::is_kept_alive(&response);
        let (head, body) = response.into_parts();
        let body = match line.duct().filter(|_| small && version < Version::HTTP_2 && !switching) {
            Some(duct) if moved::is_worth_it(&body) => {
                let back = Back { pool: self.pool.clone(), place: Arc::clone(place), sandbox, port };
                moved::body(body, sender, duct, reused.then_some(back)).await
            }
            _ => {
                if !alone {
                    self.pool.keep(sandbox, port, sender);
                }
                Body::new(body)
            }
        };
        let response = incoming(Response::from_parts(head, body), false)?;
        Ok(cut(response, place, Some(under_way.fallen()), line, version, under_way))
    }

    /// Carries the bytes of a client that goes over to them to a program and back, whatever they speak.
    ///
    /// # Errors
    /// See [`NotPassed`].
    pub async fn tunnel(&self, passage: Passage<'_>, client: OnUpgrade) -> Result<(), NotPassed> {
        let Passage { visit, place, line, .. } = passage;
        let Visit { sandbox, port, permit, under_way } = visit;
        let (program, seat) = self.pool.connect(place, sandbox, &permit, port).await.map_err(not_connected)?;
        let place = Arc::clone(place);
        tokio::spawn(async move {
            // Nobody is there any more where it fails.
            if let Ok(client) = client.await {
                carry(TokioIo::new(client), program, &place, &line, under_way).await;
            }
            drop(seat);
        });
        Ok(())
    }

    /// Sends a request over a connection that was kept, else over a new one.
    async fn send(&self, to: &To<'_>, mut request: Request<Body>, switching: bool) -> Result<Answered, NotPassed> {
        let To { place, sandbox, port, permit } = *to;
        // One that may go over to something else is made for that.
        while !switching && let Some(mut sender) = self.pool.take(sandbox, port) {
            let again = again(&request);
            match sender.send(request).await {
                Ok(response) => return Ok(Answered { response, sender }),
                // The program closed it at the moment that we took it: it has seen nothing of the request, or may see
                // it twice (RFC 9110, section 9.2.2).
                Err(mut error) => match error.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(place, error.error())),
                },
            }
        }
        let opened = match switching {
            true => self.pool.open_switching(place, sandbox, permit, port).await,
            false => self.pool.open(place, sandbox, permit, port).await,
        };
        let mut sender = opened.map_err(not_connected)?;
        match sender.send(request).await {
            Ok(response) => Ok(Answered { response, sender }),
            Err(error) => Err(broken(place, error.error())),
        }
    }
}

/// A port, and the proof that it may be reached.
struct To<'a> {
    place: &'a Arc<SandboxPlace>,
    sandbox: SandboxId,
    port: u16,
    permit: &'a Permit,
}

fn not_connected(fault: Fault) -> NotPassed {
    match fault.code {
        Code::NotFound => NotPassed::Closed,
        Code::PlaceLost => NotPassed::Gone,
        _ => NotPassed::NoRoom(fault),
    }
}

/// The same request once more, for one that changes nothing and has no body.
fn again(request: &Request<Body>) -> Option<Request<Body>> {
    let harmless = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !harmless || !request.body().is_end_stream() {
        return None;
    }
    let mut same = Request::new(Body::empty());
    *same.method_mut() = request.method().clone();
    *same.uri_mut() = request.uri().clone();
    *same.headers_mut() = request.headers().clone();
    Some(same)
}

/// Whether nothing else may go over the connection of a request: it brings a body where that means nothing, so a program
/// may take it for the next request, and its answer to that for somebody else's (RFC 9110, section 9.3.1).
fn goes_alone(request: &Request<Body>) -> bool {
    let carries = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    !carries && !request.body().is_end_stream()
}

fn broken(place: &SandboxPlace, error: &hyper::Error) -> NotPassed {
    if place.is_lost() {
        NotPassed::Gone
    } else if error.is_parse_too_large() {
        NotPassed::NoAnswer(LONG_HEAD)
    } else if error.is_parse() {
        NotPassed::NoAnswer("what it answered is not HTTP")
    } else {
        NotPassed::NoAnswer("it closed the connection without an answer")
    }
}

/// The request as the program gets it.
fn outgoing(passage: &Passage<'_>, request: Request<Body>) -> Result<Request<Body>, NotPassed> {
    let (parts, body) = request.into_parts();
    let own = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let own = own.or_else(|| parts.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned));
    let named = match passage.mask_host {
        Some(mask) => mask.replace("${PORT}", &passage.visit.port.to_string()),
        None => own.clone().unwrap_or_else(|| format!("localhost:{}", passage.visit.port)),
    };
    let host = HeaderValue::from_str(&named).map_err(|_| NotPassed::Unfit("the host is none"))?;
    let uri = head::path(&parts.uri, passage.prefix).ok_or(NotPassed::Unfit("the path is none"))?;
    let exact = body.size_hint().exact();
    let mut headers = parts.headers;
    let from = head::From {
        peer: passage.peer,
        scheme: if passage.secure { "https" } else { "http" },
        host: own.as_deref(),
        prefix: Some(passage.prefix).filter(|prefix| !prefix.is_empty()),
    };
    if !head::to_program(&mut headers, host, exact, &from) {
        return Err(NotPassed::Unfit("`Connection` names too many headers"));
    }
    if exact.is_none() && matches!(parts.method, Method::GET | Method::HEAD) {
        // Else hyper takes it for one without a body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The answer as the client gets it.
fn incoming(response: Response<Body>, switching: bool) -> Result<Response<Body>, NotPassed> {
    let (mut parts, body) = response.into_parts();
    if !head::to_client(&mut parts.headers, switching) {
        return Err(NotPassed::NoAnswer("its `Connection` names too many headers"));
    }
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response.extensions_mut().insert(Foreign);
    Ok(response)
}

/// Carries bytes both ways after an upgrade, until both sides have ended, or the sandbox has.
async fn carry<C, P>(mut client: C, mut program: P, place: &SandboxPlace, line: &Line, held: UnderWay)
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let fallen = held.fallen();
    tokio::select! {
        // How it ends is for the two ends to see.
        _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut program, COPY_BYTES, COPY_BYTES) => {}
        () = body::over(place, Some(&fallen)) => line.reset_at_end(),
    }
    drop(held);
}
