//! What every handler has: the parts of the server, who calls, and where a call is to run.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    extract::{FromRequestParts, MatchedPath, Path, RawPathParams},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts},
};
use bytes::Bytes;
use rf_gate::{Authenticated, Denied, Gate, Presented};
use rf_ledger::{Entry, Event, Ledger, LedgerKey, Redactor};
use rf_places::{Places, machine::MachineHub};
use rf_store::{OperatorScope, Store, SystemScope};
use rf_types::{Code, Fault, MachineId, PlaceRef, RequestId, SandboxId, UserId, Username, units::UnixMs};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    config::ServerConfig,
    doors::{e2b::E2b, health::StoreHealth, ports::Ports, templates::Images},
    input::{self, Intake},
    metrics::Metrics,
    refusal::{Refusal, to_json},
    repeats::Repeats,
    turns::Turns,
};

/// The server's parts; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What an app is made of.
pub struct Shared {
    /// The configuration, checked.
    pub config: ServerConfig,
    /// The gate.
    pub gate: Gate,
    /// The store.
    pub store: Store,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// The ledger's key, for checking the whole.
    pub ledger_key: LedgerKey,
    /// What keeps secrets out of the ledger.
    pub redactor: Redactor,
    /// The places.
    pub places: Places,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// The bounds of reading.
    pub intake: Intake,
    /// The interface's document, once the routes are made.
    pub document: OnceLock<Bytes>,
    /// What was made under an `Idempotency-Key`.
    pub repeats: Repeats,
    /// Whether the store was well when it was last looked at.
    pub store_health: StoreHealth,
    /// Changes of limits, one after the other for each user.
    pub limits_turns: Turns,
    /// The machines that dialled in.
    pub hub: Arc<MachineHub>,
    /// Images on their way to be templates.
    pub images: Images,
    /// What the door of the E2B clients keeps.
    pub e2b: E2b,
    /// Traffic to ports inside sandboxes.
    pub ports: Ports,
    /// Held for as long as the store is open: background work ends with it.
    pub system: Arc<SystemScope>,
}

impl App {
    /// Of these parts.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// The gate.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Whether the store is well.
    #[must_use]
    pub fn store_health(&self) -> &StoreHealth {
        &self.0.store_health
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// The ledger's key.
    #[must_use]
    pub fn ledger_key(&self) -> &LedgerKey {
        &self.0.ledger_key
    }

    /// What keeps secrets out of the ledger.
    #[must_use]
    pub fn redactor(&self) -> &Redactor {
        &self.0.redactor
    }

    /// The places.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.0.places
    }

    /// The numbers.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// The bounds of reading.
    #[must_use]
    pub fn intake(&self) -> &Intake {
        &self.0.intake
    }

    /// The interface's document.
    #[must_use]
    pub fn document(&self) -> &OnceLock<Bytes> {
        &self.0.document
    }

    /// What was made under an `Idempotency-Key`.
    #[must_use]
    pub fn repeats(&self) -> &Repeats {
        &self.0.repeats
    }

    /// Changes of limits, one after the other for each user.
    #[must_use]
    pub fn limits_turns(&self) -> &Turns {
        &self.0.limits_turns
    }

    /// The machines that dialled in.
    #[must_use]
    pub fn hub(&self) -> &Arc<MachineHub> {
        &self.0.hub
    }

    /// Images on their way to be templates.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// What the door of the E2B clients keeps.
    #[must_use]
    pub fn e2b(&self) -> &E2b {
        &self.0.e2b
    }

    /// Traffic to ports inside sandboxes.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.0.ports
    }

    /// The server's own work, for tests and the like; no request comes here.
    #[must_use]
    pub fn system(&self) -> &SystemScope {
        &self.0.system
    }

    /// The numbers as OpenMetrics text, those that are counted elsewhere as of now.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        let (sandboxes, execs) = (self.places().sandboxes().count(), self.places().execs().running());
        self.metrics().set_alive(sandboxes, execs, self.hub().connected_count());
        self.metrics().text()
    }

    /// Now, by the clock of the host.
    #[must_use]
    pub fn now(&self) -> UnixMs {
        now()
    }

    /// Carries `work` out and on the record also when its client goes away in the middle: what it made would else be
    /// there, and the record would not say what.
    ///
    /// # Errors
    /// What `work` says.
    pub async fn to_its_end<T: Send + 'static>(
        work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let done = tokio::spawn(work).await;
        done.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the server made a mistake", "").into()))
    }
}

/// How long who orders too much on one connection is kept waiting before it is refused, and how often it is looked
/// whether there is room again. Chosen: an order or two in excess cost nothing, a flood costs the connection.
const PACE_TIME: Duration = Duration::from_secs(5);
const PACE_PAUSE: Duration = Duration::from_millis(10);

impl App {
    /// Counts one more request of the caller's, on a connection that carries many: whoever is past their rate is made to
    /// wait, and no more is read from them meanwhile.
    ///
    /// # Errors
    /// `rate_limited` when there was no room for long.
    pub async fn paced(&self, caller: &Caller) -> Result<(), Fault> {
        let until = tokio::time::Instant::now() + PACE_TIME;
        loop {
            match self.gate().rate(&caller.who, self.now()) {
                Ok(()) => return Ok(()),
                Err(denied) if tokio::time::Instant::now() >= until => return Err(denied.fault),
                Err(_) => tokio::time::sleep(PACE_PAUSE).await,
            }
        }
    }
}

/// Now, by the clock of the host, milliseconds since 1970.
#[must_use]
pub fn now() -> UnixMs {
    // A clock before 1970 counts as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The header by which an operator acts for the user whom it names.
pub const ACT_FOR: &str = "x-ringfence-act-for";

/// The address that a connection came from, as an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Who calls, by a credential that the gate verified.
#[derive(Clone)]
pub struct Caller {
    /// Whom the gate found.
    pub who: Authenticated,
    /// The request.
    pub request: RequestId,
    /// When it was taken up.
    pub started: Instant,
}

impl Caller {
    /// The same caller in the same request, for what outlives it.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { who: self.who.clone(), request: self.request, started: Instant::now() }
    }

    /// The operator's scope.
    ///
    /// # Errors
    /// `forbidden` for everybody else. The gate says it before; this is the proof that the store asks for.
    pub fn operator(&self) -> Result<&OperatorScope, Fault> {
        self.who
            .operator()
            .ok_or_else(|| Fault::new(Code::Forbidden, "this is for operators only", "use an operator's credential"))
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let started = Instant::now();
        // Every request that came by the door has one.
        let request = parts.extensions.get().copied().unwrap_or_else(RequestId::random);
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
        let presented = presented(&parts.headers)?;
        match app.gate().authenticate(presented, peer, app.now()).await {
            Ok(who) => match parts.headers.get(ACT_FOR) {
                None => Ok(Self { who, request, started }),
                Some(name) => Ok(Self { who: app.act_for(&who, request, name)?, request, started }),
            },
            Err(denied) => Err(app.not_let_in(denied, request, peer).await),
        }
    }
}

impl App {
    /// Records that somebody did not get in, and says what they are answered.
    pub async fn not_let_in(&self, denied: Denied, request: RequestId, peer: Option<IpAddr>) -> Refusal {
        tracing::info!(request_id = %request, reason = denied.reason, "not let in");
        if denied.fault.code == Code::Unauthenticated {
            // Bounded by the gate's rate of failures for each peer: past it the code is another.
            let mut entry = Entry::new(self.now(), "authenticate", Event::Decision(Some(denied.fault.code)))
                .request(request)
                .detail("reason", denied.reason);
            if let Some(peer) = peer {
                entry = entry.detail("peer", peer.to_string());
            }
            let recorded = match self.ledger().append(&entry) {
                Ok(ticket) => ticket.durable().await,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = recorded {
                return fault.into();
            }
        }
        denied.fault.into()
    }

    /// Lets an operator act for a user, on the record: every record of what comes of it names both.
    ///
    /// # Errors
    /// `forbidden` for everybody else, whoever is named; `not_found`; `ledger_unavailable`.
    fn act_for(&self, who: &Authenticated, request: RequestId, name: &HeaderValue) -> Result<Authenticated, Refusal> {
        let forbidden = || {
            let hint = "use an operator's credential with the scope `operate`";
            Fault::new(Code::Forbidden, "only an operator acts for another user", hint)
        };
        let operator = who.operator().ok_or_else(forbidden)?;
        let name: Username = input::id("user", name.to_str().unwrap_or_default())?;
        let user = self.store().user_by_name(operator, &name).map_err(Fault::from)?;
        Ok(self.act_for_user(who, user.id, request)?)
    }

    /// As the header of that name, for a user who is known already.
    ///
    /// # Errors
    /// What the gate says; `ledger_unavailable`, and then nobody acts.
    pub fn act_for_user(&self, who: &Authenticated, user: UserId, request: RequestId) -> Result<Authenticated, Fault> {
        self.gate().act_for(who, user, request, self.now(), |act| {
            let entry = Entry::new(self.now(), "act_for", Event::Decision(None))
                .request(act.request)
                .user(act.user.user(), act.user.username().clone())
                .detail("operator", act.operator.username().as_str());
            // Rare, and nothing is done before it stands: a commit is a fraction of a millisecond.
            self.ledger().append(&entry)?.wait()
        })
    }
}

/// The credential of a request: one, in one of two headers or the same in both. Two different ones are refused: who asks,
/// and who is on the record for it, must not be a matter of which is read first.
fn presented(headers: &HeaderMap) -> Result<Presented<'_>, Fault> {
    let refused = |message: &str, hint: &str| Fault::new(Code::Unauthenticated, message, hint);
    let missing = || {
        let hint = "send `Authorization: Bearer` with an API key, a session or a provider's token";
        refused("no valid credential", hint)
    };
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value: Option<&HeaderValue> = values.next();
        match values.next() {
            Some(_) => Err(refused(&format!("the header `{name}` is there more than once"), "send one credential")),
            None => Ok(value),
        }
    };
    let (authorization, key) = (one(header::AUTHORIZATION.as_str())?, one("x-api-key")?);
    let bearer = authorization.and_then(|value| {
        // The scheme's case does not matter (RFC 9110, section 11.1).
        let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
    });
    let own = key.and_then(|value| value.to_str().ok()).map(str::trim);
    match (authorization, key) {
        (Some(_), None) => bearer.map(Presented::Bearer).ok_or_else(missing),
        (None, Some(_)) => own.map(Presented::ApiKey).ok_or_else(missing),
        (Some(_), Some(_)) => match bearer {
            Some(text) if own == Some(text) => Ok(Presented::Bearer(text)),
            Some(_) | None => Err(refused(
                "`Authorization` and `X-API-Key` are both there and are not the same credential",
                "send one of the two, or the same key in both",
            )),
        },
        (None, None) => Err(missing()),
    }
}

/// Where a call is to run, as its path says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Where {
    /// As the user prefers.
    Routed,
    /// In this sandbox.
    Sandbox(SandboxId),
    /// On this machine.
    Machine(MachineId),
}

impl Where {
    /// The place that the path names.
    #[must_use]
    pub const fn place(self) -> Option<PlaceRef> {
        match self {
            Self::Routed => None,
            Self::Sandbox(id) => Some(PlaceRef::Sandbox(id)),
            Self::Machine(id) => Some(PlaceRef::Machine(id)),
        }
    }
}

impl FromRequestParts<App> for Where {
    type Rejection = Refusal;

    /// Comes after [`Caller`], so that only who is let in learns what is no id.
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let path = MatchedPath::from_request_parts(parts, app).await.map(|path| path.as_str().to_owned());
        let path = path.map_err(|_| Fault::new(Code::Internal, "a route without a path", ""))?;
        let params = RawPathParams::from_request_parts(parts, app).await;
        let params = params.map_err(|_| Fault::not_found("thing"))?;
        let text = params.iter().find(|(name, _)| *name == "id").map(|(_, text)| text.to_owned());
        match text {
            None => Ok(Self::Routed),
            Some(text) if path.starts_with("/v1/machines/") => Ok(Self::Machine(input::id("machine", &text)?)),
            Some(text) => Ok(Self::Sandbox(input::id("sandbox", &text)?)),
        }
    }
}

/// What stands in the path where the route has a name.
pub struct Named<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        // What is no text names nothing.
        let path = Path::<T>::from_request_parts(parts, app).await;
        path.map(|Path(value)| Self(value)).map_err(|_| Fault::not_found("thing").into())
    }
}

/// An answer of JSON.
#[must_use]
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response<Body> {
    let mut response = Response::new(Body::from(to_json(value)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_one_in_whichever_header() {
        let of = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            presented(&headers).map(|presented| match presented {
                Presented::Bearer(text) => format!("bearer {text}"),
                Presented::ApiKey(text) => format!("key {text}"),
            })
        };
        assert_eq!(of(&[("authorization", "Bearer x")]).unwrap(), "bearer x");
        assert_eq!(of(&[("authorization", "bEARER x")]).unwrap(), "bearer x");
        assert_eq!(of(&[("x-api-key", "x")]).unwrap(), "key x");
        for wrong in [
            &[][..],
            &[("authorization", "x")],
            &[("authorization", "Basic x")],
            &[("authorization", "Bearer x"), ("authorization", "Bearer y")],
            &[("x-api-key", "x"), ("x-api-key", "x")],
        ] {
            assert_eq!(of(wrong).unwrap_err().code, Code::Unauthenticated, "{wrong:?}");
        }
        let repeated = of(&[("x-api-key", "x"), ("x-api-key", "x")]).unwrap_err();
        assert!(repeated.message.contains("`x-api-key` is there more than once"), "{repeated}");
    }

    #[test]
    fn two_headers_hold_the_same_credential_or_are_refused_by_name() {
        let of = |authorization: &str, key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", authorization.parse().unwrap());
            headers.insert("x-api-key", key.parse().unwrap());
            presented(&headers).map(|presented| match presented {
                Presented::Bearer(text) => text.to_owned(),
                Presented::ApiKey(text) => format!("key {text}"),
            })
        };
        assert_eq!(of("Bearer rf_x", " rf_x ").unwrap(), "rf_x");
        for (authorization, key) in [("Bearer rf_x", "rf_y"), ("Basic rf_x", "rf_x"), ("rf_x", "rf_x"), ("Bearer", "")]
        {
            let fault = of(authorization, key).unwrap_err();
            assert_eq!(fault.code, Code::Unauthenticated);
            assert!(fault.message.starts_with("`Authorization` and `X-API-Key` are both there"), "{fault}");
            assert!(!fault.message.contains("rf_"), "{fault}");
        }
    }
}
