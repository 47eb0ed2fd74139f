//! Users' machines: list and remove, enrol, install, and the connection that a machine dials in with.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{
        State,
        ws::{Message, WebSocket},
    },
    http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, future::ready};
use rf_gate::Gate;
use rf_ledger::{By, Entry, Event, Ledger};
use rf_places::{
    Place, Places,
    machine::{Enrolment, MachineAuthority, MachinePlace},
    machine_install::install_script,
};
use rf_policy::Action;
use rf_store::{NewMachine, Store, SystemScope};
use rf_types::{Code, Fault, MachineId, UserId};
use rf_wire::machine::Facts;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::List,
    app::{App, Caller, Named, Peer, json, now},
    doors::{account::whole, stream::Socket},
    input::{self, Json},
    operation::Ask,
    refusal::Refusal,
};

/// Life of an enrolment token for which nobody asked for another, milliseconds. Chosen: it is typed soon.
const ENROLMENT_MS_STANDARD: u64 = 3_600_000;
/// Longest message of a machine, bytes. The protocol's own bound is lower and checked there.
const MACHINE_MESSAGE_MAX: usize = 1 << 20;
/// Piece in which the program is sent. Chosen.
const BINARY_PIECE: usize = 256 << 10;

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(machines))
        .routes(routes!(machine_remove))
        .routes(routes!(machine_enrol))
        .routes(routes!(machine_install))
        .routes(routes!(machine_binary))
        .routes(routes!(machine_connect))
}

/// A machine.
#[derive(Debug, Serialize, ToSchema)]
struct MachineAnswer {
    /// Its id.
    #[schema(value_type = String)]
    id: MachineId,
    /// What it calls itself.
    name: String,
    /// What it announced of itself: hostname, system, home, workspace.
    #[schema(value_type = Object)]
    facts: serde_json::Value,
    /// What its owner allows: `read-only`, `workspace` or `full`. The machine itself holds it.
    level: String,
    /// Whether it is connected now.
    online: bool,
    /// When it joined, milliseconds since 1970.
    joined_at: u64,
    /// When it was last heard of, coarsely.
    last_seen_at: u64,
}

/// The user's machines.
#[utoipa::path(get, path = "/v1/machines", responses((status = 200, body = List<MachineAnswer>)))]
async fn machines(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::MachineRead).detail("op", "list")).await?;
    let user = operation.permit().user();
    let rows = operation.finish(app.store().machine_list(caller.who.scope()).map_err(Fault::from)).await?;
    let items = rows.into_iter().map(|row| MachineAnswer {
        online: app.hub().machine(user, row.id).is_some(),
        id: row.id,
        name: row.name,
        facts: row.facts,
        level: row.level,
        joined_at: row.joined,
        last_seen_at: row.last_seen,
    });
    Ok(json(StatusCode::OK, &whole(items)))
}

/// Removes a machine: its key is worth nothing from then on, and what runs through it ends.
#[utoipa::path(delete, path = "/v1/machines/{id}", responses((status = 204, description = "Removed")))]
async fn machine_remove(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
) -> Result<StatusCode, Refusal> {
    let id: MachineId = input::id("machine", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::MachineManage).subject(id).detail("op", "remove")).await?;
    let user = operation.permit().user();
    let result = app.store().machine_remove(caller.who.scope(), id, app.now()).map_err(Fault::from);
    if result.is_ok() {
        // The store refuses it already, so it cannot come back in between.
        app.hub().remove(id);
        app.places().remove_machine(user, id, None);
    }
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}

/// How long an enrolment token is good.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EnrolAsk {
    /// Milliseconds, 1 s to a day; an hour if not given.
    ttl_ms: Option<u64>,
}

/// A fresh enrolment token, shown this once.
#[derive(Serialize, ToSchema)]
struct EnrolAnswer {
    /// The token, good for one machine.
    token: String,
    /// When it ends, milliseconds since 1970.
    expires_at: u64,
    /// What to type on the machine to install the program.
    install: String,
    /// What to type on the machine to join it.
    join: String,
}

/// Makes a token with which one machine can join, once.
#[utoipa::path(post, path = "/v1/machines/enrol", request_body = EnrolAsk, responses((status = 201, body = EnrolAnswer)))]
async fn machine_enrol(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Json(ask): Json<EnrolAsk>,
) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::MachineManage).detail("op", "enrol")).await?;
    let (at, ttl_ms) = (app.now(), ask.ttl_ms.unwrap_or(ENROLMENT_MS_STANDARD));
    let result = app.gate().enrolment_token_make(operation.permit(), &caller.who, ttl_ms, at);
    let secret = operation.finish(result).await?;
    let url = base_url(&app, &headers)?;
    let answer = EnrolAnswer {
        token: secret.reveal().to_owned(),
        expires_at: at.saturating_add(ttl_ms),
        install: format!("curl -fsSL {url}/v1/machines/install | sh"),
        join: format!("ringfence join {url} --token {}", secret.reveal()),
    };
    Ok(json(StatusCode::CREATED, &answer))
}

/// How machines reach this server: as configured, or as this client did.
fn base_url(app: &App, headers: &HeaderMap) -> Result<String, Fault> {
    let config = app.config();
    if !config.public_url.is_empty() {
        return Ok(config.public_url.trim_end_matches('/').to_owned());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // It comes back within a script and a line to type: nothing that a shell would read.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    let host = host.filter(|host| (1..=255).contains(&host.len()) && host.bytes().all(plain));
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    host.map(|host| format!("{scheme}://{host}")).ok_or_else(|| {
        Fault::new(
            Code::InvalidRequest,
            "the `Host` header names no plain host",
            "reach the server by its name, or set `public_url` in its configuration",
        )
    })
}

/// The program that runs, opened through the kernel's own link: also after its file was replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Its length and SHA-256, read once.
async fn program_digest() -> Result<&'static str, Fault> {
    static DIGEST: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    let digest = DIGEST.get_or_try_init(|| async {
        let read = || {
            let mut file = std::fs::File::open(PROGRAM)?;
            let mut hash = Sha256::new();
            let mut piece = vec![0; BINARY_PIECE];
            loop {
                match std::io::Read::read(&mut file, &mut piece)? {
                    0 => break,
                    read => hash.update(&piece[..read]),
                }
            }
            let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            Ok::<_, std::io::Error>(hex)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Err(std::io::Error::other("its reader ended")))
    });
    digest.await.map(String::as_str).map_err(|error| unreadable(&error))
}

fn unreadable(error: &std::io::Error) -> Fault {
    Fault::new(Code::Internal, format!("cannot read the program itself: {}", error.kind()), "")
}

/// A script that installs the program for one user of a machine and says how to join. Needs no credential and holds no
/// secret.
#[utoipa::path(get, path = "/v1/machines/install", operation_id = "machine_install",
    responses((status = 200, content_type = "text/x-shellscript", body = String)))]
async fn machine_install(State(app): State<App>, headers: HeaderMap) -> Result<Response<Body>, Refusal> {
    let url = base_url(&app, &headers)?;
    let script = install_script(&url, program_digest().await?).map_err(Fault::invalid)?;
    Ok(super::text("text/x-shellscript; charset=utf-8", script))
}

/// The program itself, for the machine's architecture if that is the server's own. Needs no credential.
#[utoipa::path(get, path = "/v1/machines/binary", operation_id = "machine_binary",
    responses((status = 200, content_type = "application/octet-stream", description = "The program")))]
async fn machine_binary() -> Result<Response<Body>, Refusal> {
    let file = tokio::fs::File::open(PROGRAM).await.map_err(|error| unreadable(&error))?;
    let length = file.metadata().await.map_err(|error| unreadable(&error))?.len();
    let bytes = futures::stream::try_unfold(file, |mut file| async move {
        let mut piece = bytes::BytesMut::with_capacity(BINARY_PIECE);
        let read = file.read_buf(&mut piece).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (piece.freeze(), file)))
    });
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// The connection of a machine: a WebSocket within which it proves who it is.
#[utoipa::path(get, path = "/v1/machines/connect", operation_id = "machine_connect",
    responses((status = 101, description = "A WebSocket")))]
async fn machine_connect(
    State(app): State<App>,
    extensions: Extensions,
    socket: Socket,
) -> Result<Response<Body>, Refusal> {
    let socket = socket.required()?.max_message_size(MACHINE_MESSAGE_MAX).max_frame_size(MACHINE_MESSAGE_MAX);
    let peer = extensions.get::<Peer>().map(|peer| peer.0);
    // Each proof that is none costs a check of a signature and a record.
    app.gate().failures_left(peer, app.now()).map_err(|denied| denied.fault)?;
    Ok(socket.on_upgrade(move |socket| machines_ws(app, socket, peer)))
}

/// Serves one connection of a machine until it ends.
async fn machines_ws(app: App, socket: WebSocket, peer: Option<IpAddr>) {
    let transport =
        socket.with(|bytes: Bytes| ready(Ok::<_, axum::Error>(Message::Binary(bytes)))).filter_map(|message| {
            ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(Message::Text(_)) => {
                    Some(Err(axum::Error::new(std::io::Error::other("a text where a frame belongs"))))
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => None,
                Err(error) => Some(Err(error)),
            })
        });
    if let Err(fault) = app.hub().serve(Box::pin(transport)).await {
        tracing::info!(%fault, "a machine was not let in");
        if fault.code == Code::Unauthenticated {
            app.gate().failed(peer, app.now());
        }
    }
}

/// Judges machines by the gate, keeps the list of those that are here, and records who came.
pub struct Authority {
    /// The gate.
    pub gate: Gate,
    /// The store.
    pub store: Store,
    /// Leave to look a user's scope up.
    pub system: Arc<SystemScope>,
    /// The places.
    pub places: Places,
    /// Where joining is recorded.
    pub ledger: Arc<Ledger>,
}

impl Authority {
    fn record(
        &self,
        action: &'static str,
        code: Option<Code>,
        known: Option<(UserId, MachineId)>,
    ) -> Result<(), Fault> {
        let mut entry = Entry::new(now(), action, Event::Decision(code));
        if let Some((user, machine)) = known {
            entry = entry.by(By::new("machine", machine.to_string())).subject(machine);
            match self.store.scope_of(&self.system, user) {
                Ok(scope) => entry = entry.user(user, scope.username().clone()),
                Err(error) => return Err(error.into()),
            }
        }
        // This is called where a thread may wait; one commit is a fraction of a millisecond.
        self.ledger.append(&entry)?.wait()
    }
}

impl Authority {
    /// A note for people; that it fails is no reason to turn a machine away.
    fn note_seen(&self, place: &MachinePlace, said: Option<(&serde_json::Value, &str)>) {
        let scope = self.store.scope_of(&self.system, place.user());
        let noted = scope.and_then(|scope| self.store.machine_seen(&scope, place.machine(), said, now()));
        if let Err(error) = noted {
            tracing::debug!(%error, machine = %place.machine(), "a machine's sign of life was not stored");
        }
    }
}

impl MachineAuthority for Authority {
    fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(UserId, MachineId), Fault> {
        let unproven = || Fault::new(Code::Unauthenticated, "no valid credential", "make a new enrolment token");
        if !Gate::machine_proves(&enrolment.public_key, enrolment.message, &enrolment.signature) {
            return Err(unproven());
        }
        let facts =
            serde_json::to_value(enrolment.facts).map_err(|_| Fault::invalid("the machine's facts are no JSON"))?;
        let level = level(enrolment.facts);
        let hostname: String = enrolment.facts.hostname.chars().take(100).collect();
        let new = NewMachine {
            name: if hostname.is_empty() { "machine" } else { &hostname },
            public_key: &enrolment.public_key,
            facts: &facts,
            level: &level,
        };
        match self.gate.machine_enrol(enrolment.token, &new, now()) {
            Ok(enrolled) => {
                let known = (enrolled.scope.user(), enrolled.machine.id);
                self.record("machine_join", None, Some(known))?;
                Ok(known)
            }
            Err(denied) => {
                self.record("machine_join", Some(denied.fault.code), None)?;
                Err(denied.fault)
            }
        }
    }

    fn recognise(&self, machine: MachineId, message: &[u8], signature: &[u8; 64]) -> Result<UserId, Fault> {
        match self.gate.authenticate_machine(machine, message, signature) {
            Ok(known) => {
                self.record("machine_connect", None, Some((known.scope.user(), machine)))?;
                Ok(known.scope.user())
            }
            Err(denied) => {
                self.record("machine_connect", Some(denied.fault.code), None)?;
                Err(denied.fault)
            }
        }
    }

    fn connected(&self, place: &Arc<MachinePlace>) {
        let facts = serde_json::to_value(place.facts()).unwrap_or_default();
        let level = level(place.facts());
        self.note_seen(place, Some((&facts, level.as_str())));
        self.places.add_machine(place.user(), Arc::clone(place) as Arc<dyn Place>, facts);
    }

    fn still_stands(&self, place: &Arc<MachinePlace>) -> bool {
        let scope = self.store.scope_of(&self.system, place.user());
        let row = scope.and_then(|scope| self.store.machine_get(&scope, place.machine()));
        // A store that cannot be asked removed nothing.
        !row.is_err_and(|error| error.is_not_found())
    }

    fn disconnected(&self, place: &Arc<MachinePlace>) {
        let connection = Arc::clone(place) as Arc<dyn Place>;
        self.places.remove_machine(place.user(), place.machine(), Some(&connection));
        self.note_seen(place, None);
    }
}

/// The level's name, as in JSON.
fn level(facts: &Facts) -> String {
    let named = serde_json::to_value(facts.level).ok();
    named.as_ref().and_then(serde_json::Value::as_str).unwrap_or("unknown").to_owned()
}
