//! Which sandbox and which port a request is for, whose sandbox that is, and who asks.
//!
//! ```text
//! head of a request ─ route ─▶ our own routes
//!                        ├──▶ Address (sandbox, port): by the host's name `{port}-{id}.{domain}`, else by two headers
//!                        └──▶ a signed link to a file without an id: the sandbox whose token signed it
//! Address ─ Found::find ─▶ Found (owner, rules) ─ caller ─▶ Caller, good in that sandbox alone
//!                                    └─ awake, once somebody was let in ─▶ Target (place)
//! ```
//!
//! A sandbox that is paused is woken for who was let in, and for nobody else.
//!
//! A host's name of that form never leads to our own routes, whatever the path; and no path of ours leads to a sandbox.
//! Where a request says two things at once it is refused: which one counts must not be a matter of who reads it.

use std::{net::IpAddr, sync::Arc, time::Instant};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, Response, Uri, Version, header, request::Parts},
};
use rf_gate::SandboxOwner;
use rf_places::{SandboxRow, sandbox::SandboxPlace};
use rf_types::{Code, Fault, RequestId, SandboxId, UserId};
use serde::{Deserialize, Serialize};

use crate::{
    app::{App, Caller},
    doors::ports,
    edge::Line,
    refusal::Refusal,
};

/// The header that names the sandbox.
pub const SANDBOX_ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
/// The header that names the port.
pub const SANDBOX_PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");
/// The header with a sandbox's own token.
pub const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
/// The header with the token for ports that are not open to everybody.
pub const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
/// Longest text that is looked at as a sandbox's id: the longest label of a host's name (RFC 1035, section 2.3.4).
const ID_BYTES_MAX: usize = 63;
/// The label under which all sandboxes are reached, each by its headers.
const SHARED_LABEL: &str = "sandbox";

/// A sandbox and a port, as a request names them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    /// The sandbox as it was written: lower-case letters and digits.
    pub text: String,
    /// The port, not 0.
    pub port: u16,
}

/// Where a request goes, by nothing but its head.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route {
    /// To our own routes.
    Ours,
    /// To a port of a sandbox.
    Sandbox(Address),
    /// To the files of the sandbox that signed its link.
    Signed,
}

/// Why a head cannot be understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadHead {
    /// No host's name, or more than one.
    #[error("the request's host is not one host's name")]
    Host,
    /// The host begins like a sandbox's and is none.
    #[error("the host's name must be a port, a dash, a sandbox's id and this server's domain")]
    Label,
    /// One of the two headers without the other, or one of them twice.
    #[error("the headers e2b-sandbox-id and e2b-sandbox-port come together, each once")]
    Headers,
    /// The id has other characters than those of ids.
    #[error("the sandbox's id has characters that no id has")]
    Id,
    /// The port is no number from 1 to 65535.
    #[error("the port is no number from 1 to 65535")]
    Port,
}

/// Where a request goes. `domain` is the configured one, in lower case.
///
/// # Errors
/// See [`BadHead`].
pub fn route(domain: Option<&str>, parts: &Parts) -> Result<Route, BadHead> {
    let host = host(parts)?;
    let mut shared = false;
    if let (Some(domain), Some(host)) = (domain, &host)
        && let Some(below) = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'))
    {
        let label = below.rsplit('.').next().unwrap_or(below);
        if looks_like_a_sandbox(label) {
            // One label and no more: another one before it would be a second name of the same thing.
            return if label == below { of_label(label).map(Route::Sandbox) } else { Err(BadHead::Label) };
        }
        shared = below == SHARED_LABEL;
    }
    match (one(&parts.headers, &SANDBOX_ID)?, one(&parts.headers, &SANDBOX_PORT)?) {
        (Some(id), Some(port)) => Ok(Route::Sandbox(Address { text: checked_id(id)?, port: checked_port(port)? })),
        (Some(_), None) | (None, Some(_)) => Err(BadHead::Headers),
        (None, None) if is_signed(&parts.uri) => Ok(Route::Signed),
        (None, None) if shared => Err(BadHead::Headers),
        (None, None) => Ok(Route::Ours),
    }
}

/// The one host that a request names: its authority (`:authority`, or a whole address in the request line) and its
/// `Host` must say the same (RFC 9113, section 8.3.1; RFC 9112, section 3.2). In lower case, without port and final dot.
fn host(parts: &Parts) -> Result<Option<String>, BadHead> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let named = hosts.next().map(|value| value.to_str().map_err(|_| BadHead::Host)).transpose()?;
    if hosts.next().is_some() {
        return Err(BadHead::Host);
    }
    let text = match (parts.uri.authority(), named) {
        (Some(authority), Some(named)) if !authority.as_str().eq_ignore_ascii_case(named) => return Err(BadHead::Host),
        (Some(authority), _) => authority.as_str(),
        // HTTP/1.1 lets a client send an empty one where there is no authority.
        (None, None | Some("")) => return Ok(None),
        (None, Some(named)) => named,
    };
    host_of(text).map(Some)
}

/// The host in an authority, without its port.
fn host_of(authority: &str) -> Result<String, BadHead> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(BadHead::Host)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BadHead::Host)?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(BadHead::Host)?) };
            (address, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if port.is_some_and(|port| port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err(BadHead::Host);
    }
    if authority.starts_with('[') {
        return Ok(host.to_owned());
    }
    // With the dot of the root it is the same name.
    let host = host.strip_suffix('.').unwrap_or(host);
    let name =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if !host.split('.').all(name) {
        return Err(BadHead::Host);
    }
    Ok(host.to_ascii_lowercase())
}

/// Digits and a dash: no name of ours begins so.
fn looks_like_a_sandbox(label: &str) -> bool {
    label.split_once('-').is_some_and(|(port, _)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

fn of_label(label: &str) -> Result<Address, BadHead> {
    let (port, id) = label.split_once('-').ok_or(BadHead::Label)?;
    Ok(Address { text: checked_id(id).map_err(|_| BadHead::Label)?, port: checked_port(port)? })
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, BadHead> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(|value| value.to_str().map_err(|_| BadHead::Headers)).transpose()?;
    if values.next().is_some() { Err(BadHead::Headers) } else { Ok(value) }
}

fn checked_id(text: &str) -> Result<String, BadHead> {
    let known = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    if known && (1..=ID_BYTES_MAX).contains(&text.len()) { Ok(text.to_owned()) } else { Err(BadHead::Id) }
}

fn checked_port(text: &str) -> Result<u16, BadHead> {
    // One text for each port: no sign, no zero in front.
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).ok_or(BadHead::Port)
}

/// Whether a request is for a file by a signed link.
fn is_signed(uri: &Uri) -> bool {
    uri.path() == "/files"
        && uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("signature=")))
}

/// What the user lets others do with their sandbox's ports, as the door that made it noted it (`traffic` in the
/// sandbox's `door`). What is not there is forbidden.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficRules {
    /// Whether commands and files need the sandbox's token.
    pub secured: bool,
    /// Whether everybody reaches its other ports; else with the token for traffic only.
    pub public: bool,
    /// The `Host` that programs in it see; `${PORT}` stands for the port.
    #[serde(default)]
    pub mask_host: Option<String>,
}

impl TrafficRules {
    /// Everything needs a token: for sandboxes that no door opened.
    pub const CLOSED: Self = Self { secured: true, public: false, mask_host: None };

    /// Those in a door's notes.
    #[must_use]
    pub fn of(door: &serde_json::Value) -> Self {
        door.get("traffic").and_then(|rules| Self::deserialize(rules).ok()).unwrap_or(Self::CLOSED)
    }
}

/// Why there is no sandbox to speak to.
#[derive(Debug)]
pub enum NoTarget {
    /// It never was, has ended, or is paused and does not wake by itself.
    NotFound,
    /// Something else; answered as it is.
    Fault(Fault),
}

impl From<Fault> for NoTarget {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// By what somebody asks something of a sandbox.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// The token that came with the request, if one did; a sandbox that is not secured needs none where the operator
    /// allows that.
    Token(Option<&'a str>),
    /// A signature that the door has checked, with what came out.
    Signature(bool),
}

/// One sandbox and port that a request is for. That there is one says nothing of who asks.
pub struct Found {
    owner: SandboxOwner,
    /// The sandbox.
    pub id: SandboxId,
    /// Its id as the client wrote it.
    pub text: String,
    /// The port.
    pub port: u16,
    /// What its user lets others do.
    pub rules: TrafficRules,
    /// Whether it runs; else it is paused, and wakes for who may ask something of it.
    pub is_running: bool,
}

/// A sandbox that serves, for somebody who was let in.
pub struct Target {
    owner: SandboxOwner,
    /// The sandbox.
    pub id: SandboxId,
    /// The place.
    pub place: Arc<SandboxPlace>,
}

impl Target {
    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.owner.user()
    }

    /// The sandbox as listed.
    ///
    /// # Errors
    /// `not_found` when it has just ended.
    pub fn row(&self, app: &App) -> Result<SandboxRow, Fault> {
        app.places().sandboxes().row(self.user(), self.id)
    }

    /// An answer that is cut with the sandbox, like what a program in it says.
    #[must_use]
    pub fn cut(&self, answer: Response<Body>, line: &Line, version: Version) -> Response<Body> {
        ports::cut(answer, &self.place, None, line, version, ())
    }
}

impl Found {
    /// The living sandbox at an address, as it is: it is not woken.
    ///
    /// # Errors
    /// See [`NoTarget`].
    pub fn find(app: &App, address: Address) -> Result<Self, NoTarget> {
        let Address { text, port } = address;
        let id = rf_e2b::id::sandbox_of(&text).ok_or(NoTarget::NotFound)?;
        let owner = app.gate().sandbox_owner(id, app.now()).map_err(|denied| denied.fault)?;
        let owner = owner.ok_or(NoTarget::NotFound)?;
        let look = |row: &SandboxRow, place: Option<&Arc<SandboxPlace>>| {
            (TrafficRules::of(&row.about.door), place.is_some(), place.is_some_and(|place| place.is_lost()))
        };
        match app.places().sandboxes().peek(owner.user(), id, look) {
            Ok((rules, is_running, false)) => Ok(Self { owner, id, text, port, rules, is_running }),
            Ok((_, _, true)) | Err(_) => Err(NoTarget::NotFound),
        }
    }

    /// The sandbox for somebody who was let in: it is woken where it is paused, and counts as used.
    ///
    /// # Errors
    /// See [`NoTarget`].
    pub async fn awake(&self, app: &App) -> Result<Target, NoTarget> {
        match app.places().sandboxes().awake(self.owner.user(), self.id).await {
            Ok(place) if place.is_lost() => Err(NoTarget::NotFound),
            Ok(place) => Ok(Target { owner: self.owner.clone(), id: self.id, place }),
            Err(fault) if matches!(fault.code, Code::Paused | Code::NotFound) => Err(NoTarget::NotFound),
            Err(fault) => Err(fault.into()),
        }
    }

    /// That the sandbox is well, which needs no token while it runs. One that is paused is woken by its token's holder;
    /// to everybody else it is not there.
    ///
    /// # Errors
    /// See [`NoTarget`].
    pub async fn is_well(&self, app: &App, token: Option<&str>) -> Result<(), NoTarget> {
        match self.is_running {
            true => Ok(()),
            false if self.is_proven(app, Proof::Token(token)) => self.awake(app).await.map(drop),
            false => Err(NoTarget::NotFound),
        }
    }

    /// Whether `proof` lets somebody in to commands and files. Nothing is counted or recorded: see [`Self::caller`].
    #[must_use]
    pub fn is_proven(&self, app: &App, proof: Proof<'_>) -> bool {
        match proof {
            Proof::Signature(good) => good,
            Proof::Token(Some(token)) => app.e2b().tokens().is_envd_token(self.id, token),
            Proof::Token(None) => !self.rules.secured && app.config().e2b.allow_unsecured,
        }
    }

    /// Who asks for commands and files: a caller who may do what the owner may, inside this sandbox alone.
    ///
    /// # Errors
    /// `unauthenticated`, recorded; `rate_limited`; `forbidden` for a sandbox that is not secured where the operator
    /// does not allow that.
    pub async fn caller(
        &self,
        app: &App,
        request: RequestId,
        peer: Option<IpAddr>,
        proof: Proof<'_>,
    ) -> Result<Caller, Refusal> {
        let started = Instant::now();
        let proven = self.is_proven(app, proof);
        match app.gate().authenticate_sandbox(self.owner.clone(), proven, peer, app.now()) {
            Ok(who) => Ok(Caller { who, request, started }),
            Err(denied) => Err(app.not_let_in(denied, request, peer).await),
        }
    }

    /// Who asks for a port: the holder of the sandbox's token for traffic, or a visitor where everybody may.
    ///
    /// # Errors
    /// [`NoPass`]; what the gate says.
    pub async fn passer(
        &self,
        app: &App,
        request: RequestId,
        peer: Option<IpAddr>,
        token: Option<&str>,
    ) -> Result<Result<Caller, NoPass>, Refusal> {
        let started = Instant::now();
        let who = match token {
            Some(token) if app.e2b().tokens().is_traffic_token(self.id, token) => {
                app.gate().authenticate_sandbox(self.owner.clone(), true, peer, app.now())
            }
            // A wrong token where none is needed is none.
            _ if self.rules.public => app.gate().visitor(self.owner.clone(), app.now()),
            None => return Ok(Err(NoPass::Missing)),
            Some(_) => {
                let denied = app.gate().sandbox_refused("wrong token for a sandbox's ports", peer, app.now());
                return match app.not_let_in(denied, request, peer).await {
                    refusal if refusal.fault.code == rf_types::Code::Unauthenticated => Ok(Err(NoPass::Wrong)),
                    refusal => Err(refusal),
                };
            }
        };
        match who {
            Ok(who) => Ok(Ok(Caller { who, request, started })),
            Err(denied) => Err(app.not_let_in(denied, request, peer).await),
        }
    }
}

/// Why a port that is not open to everybody is not reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoPass {
    /// No token came.
    Missing,
    /// A wrong one did.
    Wrong,
}

/// The value of a header that must come at most once; two of them are none.
#[must_use]
pub fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    one(headers, name).ok().flatten()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const ID: &str = "sbx00112233445566778899aabbccddeeff";
    const DOMAIN: Option<&str> = Some("box.example.com");

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn to(port: u16) -> Result<Route, BadHead> {
        Ok(Route::Sandbox(Address { text: ID.to_owned(), port }))
    }

    /// By `Host` alone.
    fn at(host: &str) -> Result<Route, BadHead> {
        route(DOMAIN, &head("/v1/users", &[("host", host)]))
    }

    #[test]
    fn a_hosts_name_leads_to_a_port() {
        for host in [
            format!("3000-{ID}.box.example.com"),
            format!("3000-{ID}.box.example.com:8443"),
            format!("3000-{ID}.BOX.Example.com"),
            format!("3000-{}.box.example.com", ID.to_uppercase()),
            format!("3000-{ID}.box.example.com."),
            format!("3000-{ID}.box.example.com.:80"),
        ] {
            assert_eq!(at(&host), to(3000), "{host}");
        }
        let other = at("65535-i0.box.example.com");
        assert_eq!(
            other,
            Ok(Route::Sandbox(Address { text: "i0".to_owned(), port: 65535 })),
            "no id of ours: not found"
        );
    }

    #[test]
    fn what_looks_like_a_sandbox_and_is_none_never_leads_to_our_own_routes() {
        for (host, why) in [
            (format!("0-{ID}.box.example.com"), BadHead::Port),
            (format!("03000-{ID}.box.example.com"), BadHead::Port),
            (format!("65536-{ID}.box.example.com"), BadHead::Port),
            (format!("99999999999-{ID}.box.example.com"), BadHead::Port),
            ("3000-.box.example.com".to_owned(), BadHead::Label),
            (format!("3000-{ID}-x.box.example.com"), BadHead::Label),
            ("3000-sbx_0011.box.example.com".to_owned(), BadHead::Label),
            (format!("3000-{}.box.example.com", "a".repeat(64)), BadHead::Label),
            (format!("x.3000-{ID}.box.example.com"), BadHead::Label),
            (format!("api.3000-{ID}.box.example.com"), BadHead::Label),
        ] {
            assert_eq!(at(&host), Err(why), "{host}");
        }
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        for host in [
            format!("user@3000-{ID}.box.example.com"),
            format!("3000-{ID}.box.example.com@evil.example"),
            format!("3000-{ID}.box.example.com:80:80"),
            format!("3000-{ID}.box.example.com:http"),
            format!("3000-{ID}.box.example.com:999999"),
            format!("3000-{ID}..box.example.com"),
            format!(".3000-{ID}.box.example.com"),
            format!("3000-{ID}.box.example.com.."),
            format!("3000-{ID}.box.example.com/v1"),
            format!("3000-{ID}.box.example.com, other"),
            format!("3000-{ID}.box.example.com\tother"),
            "[::1".to_owned(),
            "[::g]".to_owned(),
            "[::1]x".to_owned(),
            ".".to_owned(),
            "%2e".to_owned(),
        ] {
            assert_eq!(at(&host), Err(BadHead::Host), "{host}");
        }
        let twice = head("/", &[("host", "a"), ("host", "a")]);
        assert_eq!(route(DOMAIN, &twice), Err(BadHead::Host));
    }

    #[test]
    fn other_hosts_lead_to_our_own_routes() {
        for host in [
            "box.example.com",
            "api.box.example.com",
            "a.b.box.example.com",
            "run.example.com",
            "localhost:7070",
            "127.0.0.1:7070",
            "[::1]:7070",
            "xbox.example.com",
            "",
        ] {
            assert_eq!(at(host), Ok(Route::Ours), "{host}");
        }
        // Another domain's label is nobody's business of ours, nor is any while none is configured.
        for (domain, host) in [(DOMAIN, format!("3000-{ID}.example.org")), (None, format!("3000-{ID}.box.example.com"))]
        {
            assert_eq!(route(domain, &head("/", &[("host", &host)])), Ok(Route::Ours), "{host}");
        }
        assert_eq!(at(&format!("3000-{ID}.evilbox.example.com")), Ok(Route::Ours), "the dot counts");
        assert_eq!(at("sandbox.box.example.com"), Err(BadHead::Headers), "only by headers, never ours");
        assert_eq!(route(DOMAIN, &head("/", &[])), Ok(Route::Ours));
    }

    #[test]
    fn two_headers_lead_to_a_port_from_any_host_of_ours() {
        for host in ["localhost:7070", "127.0.0.1", "sandbox.box.example.com", "run.example.com"] {
            let parts = head("/x", &[("host", host), ("e2b-sandbox-id", ID), ("e2b-sandbox-port", "49983")]);
            assert_eq!(route(DOMAIN, &parts), to(49983), "{host}");
        }
        let (id, port) = ("e2b-sandbox-id", "e2b-sandbox-port");
        for (headers, why) in [
            (&[(id, ID)][..], BadHead::Headers),
            (&[(port, "80")][..], BadHead::Headers),
            (&[(id, ID), (id, ID), (port, "80")][..], BadHead::Headers),
            (&[(id, ID), (port, "80"), (port, "80")][..], BadHead::Headers),
            (&[(id, "sbx_0011"), (port, "80")][..], BadHead::Id),
            (&[(id, "SBX0011"), (port, "80")][..], BadHead::Id),
            (&[(id, ""), (port, "80")][..], BadHead::Id),
            (&[(id, "../x"), (port, "80")][..], BadHead::Id),
            (&[(id, ID), (port, "0")][..], BadHead::Port),
            (&[(id, ID), (port, "+80")][..], BadHead::Port),
            (&[(id, ID), (port, "80 ")][..], BadHead::Port),
            (&[(id, ID), (port, "")][..], BadHead::Port),
        ] {
            assert_eq!(route(DOMAIN, &head("/", headers)), Err(why), "{headers:?}");
        }
    }

    #[test]
    fn the_hosts_name_counts_before_the_headers() {
        let host = format!("3000-{ID}.box.example.com");
        let parts = head("/", &[("host", &host), ("e2b-sandbox-id", "other"), ("e2b-sandbox-port", "80")]);
        assert_eq!(route(DOMAIN, &parts), to(3000));
    }

    #[test]
    fn authority_and_host_say_the_same_or_nothing_is_served() {
        let whole = format!("http://3000-{ID}.box.example.com/x");
        assert_eq!(route(DOMAIN, &head(&whole, &[])), to(3000));
        let mut parts = head(&whole, &[]);
        parts.version = Version::HTTP_2;
        assert_eq!(route(DOMAIN, &parts), to(3000));
        let same = format!("3000-{ID}.BOX.example.com");
        assert_eq!(route(DOMAIN, &head(&whole, &[("host", &same)])), to(3000));
        for (uri, host) in [
            (whole.as_str(), "box.example.com"),
            ("http://box.example.com/v1/users", same.as_str()),
            (whole.as_str(), ""),
            (&format!("http://user@3000-{ID}.box.example.com/x"), same.as_str()),
        ] {
            assert_eq!(route(DOMAIN, &head(uri, &[("host", host)])), Err(BadHead::Host), "{uri} {host}");
        }
    }

    #[test]
    fn a_signed_link_needs_no_id_and_no_other_path_is_one() {
        for uri in ["/files?signature=v1_x", "/files?path=a&signature=v1_x", "/files?signature="] {
            assert_eq!(route(DOMAIN, &head(uri, &[("host", "localhost")])), Ok(Route::Signed), "{uri}");
        }
        for uri in
            ["/files", "/files?path=signature=", "/files/?signature=x", "/v1/files?signature=x", "/files?xsignature=x"]
        {
            assert_eq!(route(DOMAIN, &head(uri, &[("host", "localhost")])), Ok(Route::Ours), "{uri}");
        }
    }

    #[test]
    fn rules_that_are_not_there_forbid() {
        let of = |text: &str| TrafficRules::of(&serde_json::from_str(text).unwrap());
        for none in ["null", "{}", r#"{"traffic":null}"#, r#"{"traffic":{"public":true}}"#, r#"{"traffic":7}"#] {
            assert_eq!(of(none), TrafficRules::CLOSED, "{none}");
        }
        let open = of(r#"{"traffic":{"secured":false,"public":true,"mask_host":"a:${PORT}"},"other":1}"#);
        assert_eq!(open, TrafficRules { secured: false, public: true, mask_host: Some("a:${PORT}".to_owned()) });
    }
}
