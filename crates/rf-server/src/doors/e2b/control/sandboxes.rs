//! Sandboxes: make, list, see, end.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Uri},
};
use rf_e2b::{
    metadata,
    models::{NewSandbox, parse_timestamp},
    network::NetworkConfig,
};
use rf_places::{Making, Repeat, SandboxRow};
use rf_policy::Action;
use rf_types::{
    Fault, Limits, Network, OnLeaseEnd, PauseKind, SandboxAbout, SandboxId, SandboxSpec, SandboxState, TemplateName,
    UserLimits,
};
use serde::Deserialize;

use super::{
    id, not_built,
    templates::{self, Start},
    view,
};
use crate::{
    app::{App, Caller, Named, json},
    doors::{
        self,
        e2b::{notes::Notes, target::TrafficRules},
    },
    input,
    operation::Ask,
    refusal::Refusal,
};

/// How long a sandbox lives for which nobody asked for another time, seconds, in either version of the call.
const TIMEOUT_V1: u32 = 15;
const TIMEOUT_V2: u32 = 300;
/// Shortest lease, milliseconds; what is asked for as less gets this.
const LEASE_MS_MIN: u64 = 1_000;
/// Most items of a page.
const PAGE_MAX: usize = 100;

/// Makes a sandbox, first version.
pub(super) async fn create_v1(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    create(&app, &caller, &headers, body, TIMEOUT_V1).await
}

/// Makes a sandbox, second version.
pub(super) async fn create_v2(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    create(&app, &caller, &headers, body, TIMEOUT_V2).await
}

async fn create(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    body: Body,
    timeout: u32,
) -> Result<Response<Body>, Refusal> {
    let bytes = app.intake().bytes(headers, body).await?;
    let ask: NewSandbox = input::parse(&bytes)?;
    let plan = Plan::new(app, caller, ask, timeout).await?;
    let make = {
        let (app, caller) = (app.clone(), caller.clone());
        |repeat| async move { plan.carry_out(&app, &caller, repeat).await }
    };
    let row = app.once(caller, key(headers)?, &bytes, make).await?;
    Ok(json(StatusCode::CREATED, &view::sandbox(app, caller, &row)))
}

/// The key of a request that may come again: 1 to 255 lower-case letters, digits and dashes.
fn key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let text = value.to_str().ok().filter(|text| (1..=255).contains(&text.len()) && text.bytes().all(plain));
    // A line feed is in no header, so no key of the other interface is the same.
    text.map(|text| Some(format!("e2b\n{text}")))
        .ok_or_else(|| Fault::invalid("`Idempotency-Key` must be 1 to 255 lower-case letters, digits and dashes"))
}

/// A request that was understood, and of which everything can be held.
struct Plan {
    spec: SandboxSpec,
    making: Making,
}

impl Plan {
    async fn new(app: &App, caller: &Caller, ask: NewSandbox, timeout: u32) -> Result<Self, Refusal> {
        refuse_what_is_not_held(&ask, app.config().e2b.allow_unsecured)?;
        let NewSandbox { template_id, auto_pause, auto_resume, secure, network, metadata, env_vars, .. } = ask;
        let config = &app.config().e2b;
        let user = caller.who.limits();
        let (template, limits, disk, from) = match templates::start(app, caller, &template_id).await? {
            Start::Template(name) => (name, within(config.limits(), user), config.disk, None),
            // As big as what it was taken from.
            Start::Snapshot(origin) => {
                let spec = origin.spec();
                (spec.template.clone(), spec.limits, spec.disk, Some(origin))
            }
        };
        let spec = SandboxSpec {
            template,
            limits,
            disk,
            network: Network::None,
            root_allowed: user.root_allowed,
            accept_missing: Vec::new(),
            lease_ms: lease_ms(ask.timeout, timeout, user)?,
            on_lease_end: if auto_pause == Some(true) { OnLeaseEnd::Pause } else { OnLeaseEnd::Destroy },
        };
        let network = network.unwrap_or_default();
        let traffic = TrafficRules {
            secured: secure != Some(false),
            public: network.allow_public_traffic != Some(false),
            mask_host: network.mask_request_host.clone(),
        };
        let notes = Notes { network: some_network(ask.allow_internet_access, network) };
        let about = SandboxAbout {
            labels: metadata.unwrap_or_default(),
            env: env_vars.unwrap_or_default().into(),
            auto_resume: auto_resume.is_some_and(|resume| resume.enabled),
            auto_pause: if ask.auto_pause_memory == Some(false) { PauseKind::Files } else { PauseKind::Memory },
            door: notes.door(&traffic),
            ..SandboxAbout::default()
        };
        about.validate()?;
        Ok(Self { spec, making: Making { about, from, ..Making::default() } })
    }

    async fn carry_out(self, app: &App, caller: &Caller, repeat: Option<Repeat>) -> Result<SandboxRow, Refusal> {
        doors::sandboxes::make(app, caller, self.spec, Making { repeat, ..self.making }).await
    }
}

/// Refuses by its name whatever this version cannot hold. `allow_internet_access: true` is taken: clients of some versions
/// always send it, it restricts nothing, and every answer says that there is no access.
fn refuse_what_is_not_held(ask: &NewSandbox, allow_unsecured: bool) -> Result<(), Fault> {
    if ask.template_id.is_empty() {
        return Err(Fault::invalid("`templateID` is missing"));
    }
    if ask.secure == Some(false) && !allow_unsecured {
        return Err(Fault::invalid("`secure: false` is not allowed here: commands and files need the sandbox's token"));
    }
    if let Some(network) = &ask.network {
        network.check().map_err(|error| Fault::invalid(error.to_string()))?;
    }
    let resumes = ask.auto_resume.is_some_and(|resume| resume.enabled);
    if ask.auto_pause_memory == Some(false) {
        if ask.auto_pause != Some(true) {
            return Err(Fault::invalid("`autoPauseMemory: false` means nothing without `autoPause: true`"));
        }
        if resumes {
            return Err(Fault::invalid("a sandbox of which only files are kept cannot be resumed by a request for it"));
        }
    }
    if ask.iam.as_ref().is_some_and(|iam| iam.tokens.as_ref().is_some_and(|tokens| !tokens.is_empty())) {
        return Err(not_held("iam"));
    }
    if ask.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty()) {
        return Err(not_held("volumeMounts"));
    }
    Ok(())
}

/// What is said of a field that this version cannot hold. 400, as for every request that can never be carried out.
pub(super) fn not_held(field: &str) -> Fault {
    Fault::invalid(format!("`{field}` cannot be held: {}", not_built::fault("it").message))
}

/// The network to be told back: what was asked for, if anything was.
pub(super) fn some_network(allow_internet: Option<bool>, mut network: NetworkConfig) -> Option<NetworkConfig> {
    if allow_internet == Some(false) && network.deny_out.is_none() {
        network.deny_out = Some(vec!["0.0.0.0/0".to_owned()]);
    }
    let any =
        network.deny_out.is_some() || network.allow_public_traffic.is_some() || network.mask_request_host.is_some();
    any.then_some(network)
}

/// The operator's limits for a sandbox of this door, within what its user may have at all.
pub(super) fn within(limits: Limits, user: &UserLimits) -> Limits {
    Limits {
        cpu_milli_max: limits.cpu_milli_max.min(user.cpu_milli_max),
        memory_bytes_max: limits.memory_bytes_max.min(user.memory_bytes_max),
        disk_bytes_max: limits.disk_bytes_max.min(user.disk_bytes_max),
        ..limits
    }
}

/// The lease of a request.
///
/// # Errors
/// `invalid_request` when it is longer than the user may have one: clients take a passed limit for something that passes.
pub(super) fn lease_ms(seconds: Option<u32>, standard: u32, user: &UserLimits) -> Result<u64, Fault> {
    match seconds {
        None => Ok((u64::from(standard) * 1_000).min(user.lease_ms_max).max(LEASE_MS_MIN)),
        Some(seconds) => {
            let ms = u64::from(seconds) * 1_000;
            if ms > user.lease_ms_max {
                let most = user.lease_ms_max / 1_000;
                return Err(Fault::invalid(format!(
                    "a timeout of {seconds} s is longer than the {most} s that are allowed"
                )));
            }
            Ok(ms.max(LEASE_MS_MIN))
        }
    }
}

/// One sandbox, whole.
pub(super) async fn detail(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let id = id(&text)?;
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).subject(id)).await?;
    let row = operation.finish(app.places().sandboxes().row(caller.who.principal().user, id)).await?;
    Ok(json(StatusCode::OK, &view::detail(&app, &caller, &row)))
}

/// Ends a sandbox; answered when nothing of it is left.
pub(super) async fn kill(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<StatusCode, Refusal> {
    let id: SandboxId = id(&text)?;
    doors::sandboxes::destroy(&app, &caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The query of both lists.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListQuery {
    metadata: Option<String>,
    state: Option<String>,
    order: Option<String>,
    started_after: Option<String>,
    template: Option<String>,
    limit: Option<String>,
    next_token: Option<String>,
}

/// Which sandboxes are listed, and how.
#[derive(Debug, Default, PartialEq)]
struct Filter {
    metadata: BTreeMap<String, String>,
    /// `None`: whatever its state.
    state: Option<SandboxState>,
    started_from: Option<u64>,
    template: Option<String>,
    oldest_first: bool,
    limit: Option<usize>,
    after: Option<Cursor>,
}

/// Where a page ended: the last item's place in the order, which stays good when that item has gone meanwhile.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Cursor {
    started_at: u64,
    id: SandboxId,
}

impl Cursor {
    fn of(row: &SandboxRow) -> Self {
        Self { started_at: row.started_at, id: row.id }
    }

    fn text(self) -> String {
        format!("{}-{}", self.started_at, rf_e2b::id::sandbox_text(self.id))
    }

    fn parse(text: &str) -> Option<Self> {
        let (started_at, id) = text.split_once('-')?;
        let plain = started_at.bytes().all(|b| b.is_ascii_digit());
        Some(Self { started_at: started_at.parse().ok().filter(|_| plain)?, id: rf_e2b::id::sandbox_of(id)? })
    }
}

impl Filter {
    fn new(query: ListQuery) -> Result<Self, Fault> {
        let ListQuery { metadata, state, order, started_after, template, limit, next_token } = query;
        let metadata = metadata.map(|text| metadata::filter(&text)).transpose();
        let started_from = started_after.map(|text| {
            // A blank in the query's place of a `+`: the offset of a time that was not encoded.
            parse_timestamp(&text.replace(' ', "+"))
                .ok_or_else(|| Fault::invalid("`startedAfter` is no time of RFC 3339"))
        });
        Ok(Self {
            metadata: metadata.map_err(|error| Fault::invalid(error.to_string()))?.unwrap_or_default(),
            state: state.as_deref().map_or(Ok(None), states)?,
            started_from: started_from.transpose()?,
            template: template.filter(|text| !text.is_empty()),
            oldest_first: match order.as_deref() {
                None | Some("" | "desc") => false,
                Some("asc") => true,
                Some(_) => return Err(Fault::invalid("`order` must be `asc` or `desc`")),
            },
            limit: Some(limit.as_deref().map_or(Ok(PAGE_MAX), page_limit)?),
            after: match next_token.as_deref() {
                None | Some("") => None,
                Some(text) => Some(Cursor::parse(text).ok_or_else(|| Fault::invalid("`nextToken` is none of ours"))?),
            },
        })
    }

    fn takes(&self, row: &SandboxRow) -> bool {
        let named = |name: &String| *name == row.spec.template.as_str() || *name == view::template(row);
        self.metadata.iter().all(|(key, value)| row.about.labels.get(key) == Some(value))
            && self.started_from.is_none_or(|from| row.started_at >= from)
            && self.template.as_ref().is_none_or(named)
    }

    /// The page of `rows`, the token of the next one, and how many that are looked for run.
    fn page(&self, rows: Vec<SandboxRow>) -> (Vec<SandboxRow>, Option<String>, usize) {
        let mut rows: Vec<SandboxRow> = rows.into_iter().filter(|row| self.takes(row)).collect();
        let running = rows.iter().filter(|row| row.state == SandboxState::Running).count();
        rows.retain(|row| self.state.is_none_or(|state| row.state == state));
        rows.sort_by_key(Cursor::of);
        if !self.oldest_first {
            rows.reverse();
        }
        if let Some(after) = self.after {
            let beyond =
                |row: &SandboxRow| if self.oldest_first { Cursor::of(row) > after } else { Cursor::of(row) < after };
            rows.retain(beyond);
        }
        let limit = self.limit.unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| Cursor::of(row).text());
        (rows, next, running)
    }
}

fn states(text: &str) -> Result<Option<SandboxState>, Fault> {
    let (mut running, mut paused) = (false, false);
    for state in text.split(',').filter(|state| !state.is_empty()) {
        match state {
            "running" => running = true,
            "paused" => paused = true,
            _ => return Err(Fault::invalid("`state` must be of `running` and `paused`")),
        }
    }
    Ok(match (running, paused) {
        (true, false) => Some(SandboxState::Running),
        (false, true) => Some(SandboxState::Paused),
        (true, true) | (false, false) => None,
    })
}

/// Reads a page's size.
///
/// # Errors
/// `invalid_request` when it is not 1 to 100.
pub(super) fn page_limit(text: &str) -> Result<usize, Fault> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    (text.parse().ok().filter(|n| plain && (1..=PAGE_MAX).contains(n)))
        .ok_or_else(|| Fault::invalid("`limit` must be 1 to 100"))
}

/// The user's sandboxes that run, first version.
pub(super) async fn list_v1(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let ListQuery { metadata, .. } = input::query(&uri)?;
    let filter = Filter::new(ListQuery { metadata, state: Some("running".to_owned()), ..ListQuery::default() })?;
    list(&app, &caller, Filter { limit: None, ..filter }).await
}

/// The user's sandboxes, a page at a time.
pub(super) async fn list_v2(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    list(&app, &caller, Filter::new(input::query(&uri)?)?).await
}

async fn list(app: &App, caller: &Caller, filter: Filter) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(caller, Ask::of(Action::SandboxRead).detail("op", "list")).await?;
    let rows = app.places().sandboxes().list(operation.permit().user());
    let (rows, next, running) = operation.finish(Ok(filter.page(rows))).await?;
    let items: Vec<_> = rows.iter().map(view::listed).collect();
    let mut response = json(StatusCode::OK, &items);
    response.headers_mut().insert("x-total-running", HeaderValue::from(running));
    with_next(&mut response, next);
    Ok(response)
}

/// Names the next page, if there is one.
pub(super) fn with_next(response: &mut Response<Body>, next: Option<String>) {
    if let Some(value) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        response.headers_mut().insert("x-next-token", value);
    }
}

/// A template's name, for whoever looks for one.
pub(super) fn template_name(text: &str) -> Option<TemplateName> {
    text.to_ascii_lowercase().parse().ok()
}

#[cfg(test)]
#[path = "sandboxes_tests.rs"]
mod tests;
