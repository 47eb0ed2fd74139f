//! Sandboxes: make, list, see, extend, change, destroy.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, Response, StatusCode, Uri},
};
use rf_gate::SecretKind;
use rf_places::{Making, SandboxClaim, SandboxRow};
use rf_policy::{Action, Asked, Permit};
use rf_store::{PageAsk, SandboxFilter};
use rf_types::{
    Code, Enforcement, Fault, LayerReport, PauseKind, PlaceRef, SandboxId, SandboxSpec, SandboxState, SnapshotId,
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{List, Order, PageQuery, SandboxAsk, SandboxPatch, SandboxQuery},
    app::{App, Caller, Named, json},
    doors::life,
    input::{self, Json},
    operation::{Ask, Operation},
    refusal::Refusal,
    rows::DEFAULT_NAME,
};

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(sandboxes, sandbox_create)).routes(routes!(
        sandbox,
        sandbox_change,
        sandbox_destroy
    ))
}

/// A sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub struct SandboxAnswer {
    /// Its id.
    #[schema(value_type = String)]
    id: SandboxId,
    /// What the user calls it.
    name: Option<String>,
    /// Whether calls that name no place go to it.
    default: bool,
    /// `running` or `paused`.
    state: &'static str,
    /// What is kept while it is paused: `memory` (processes and files) or `files`.
    pause_kind: Option<&'static str>,
    /// Since when it is paused.
    paused_at: Option<u64>,
    /// As it was asked for, with the limits it has now.
    #[schema(value_type = Object)]
    spec: SandboxSpec,
    /// Words to find it by.
    labels: BTreeMap<String, String>,
    /// The names of its environment's variables; their values are not given out.
    env_names: Vec<String>,
    /// Whether a call that comes while its processes are frozen resumes it.
    auto_resume: bool,
    /// What is kept when its lease's end or its idleness pauses it.
    auto_pause: &'static str,
    /// After how long an idle one is paused, milliseconds.
    idle_pause_ms: Option<u64>,
    /// The snapshot that it was made from; may be gone by now.
    #[schema(value_type = Option<String>)]
    from_snapshot: Option<SnapshotId>,
    /// When it was made, milliseconds since 1970.
    created_at: u64,
    /// When it last began to run.
    started_at: u64,
    /// When its lease ends and it is destroyed, or paused as its spec says; none while it is paused.
    lease_until: Option<u64>,
    /// Whether it was prepared before.
    pooled: bool,
    /// What the kernel holds of each layer, read back.
    #[schema(value_type = EnforcementSchema)]
    enforcement: Enforcement,
    /// What it uses now; only when one sandbox is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<SandboxUsage>,
}

impl From<SandboxRow> for SandboxAnswer {
    fn from(row: SandboxRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            default: row.default,
            state: row.state.name(),
            pause_kind: row.pause_kind.map(PauseKind::name),
            paused_at: row.paused_at,
            spec: row.spec,
            env_names: row.about.env.keys().cloned().collect(),
            labels: row.about.labels,
            auto_resume: row.about.auto_resume,
            auto_pause: row.about.auto_pause.name(),
            idle_pause_ms: row.about.idle_pause_ms,
            from_snapshot: row.from_snapshot,
            created_at: row.created_at,
            started_at: row.started_at,
            lease_until: (row.state == SandboxState::Running).then_some(row.lease_until),
            pooled: row.pooled,
            enforcement: row.enforcement,
            usage: None,
        }
    }
}

/// What holds a sandbox.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Enforcement)]
struct EnforcementSchema {
    /// The level of isolation: `namespaces`.
    level: String,
    /// `rooted` or `rootless`.
    mode: String,
    /// One report for each layer: `layer`, `held` (`full`, `partial` with what is `missing`, `absent`) and `evidence`.
    #[schema(value_type = Vec<Object>)]
    layers: Vec<LayerReport>,
}

/// What a sandbox uses now.
#[derive(Debug, Serialize, ToSchema)]
struct SandboxUsage {
    /// Memory now, bytes.
    memory_bytes: u64,
    /// Memory at most so far, bytes.
    memory_peak_bytes: u64,
    /// Processes killed for want of memory so far.
    oom_kills: u64,
    /// Tasks now.
    tasks: u64,
    /// CPU time so far, microseconds.
    cpu_us: u64,
    /// Bytes on the writable root.
    disk_bytes: u64,
    /// Inodes on the writable root.
    inodes: u64,
}

/// The user's sandboxes, running and paused; the one that began to run last comes first.
#[utoipa::path(get, path = "/v1/sandboxes", params(SandboxQuery),
    responses((status = 200, body = List<SandboxAnswer>)))]
async fn sandboxes(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let query: SandboxQuery = input::query(&uri)?;
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).detail("op", "list")).await?;
    let result = listed(&app, &caller, &query);
    let (rows, next) = operation.finish(result).await?;
    let items = rows.into_iter().map(SandboxAnswer::from).collect();
    Ok(json(StatusCode::OK, &List { items, next }))
}

/// A page of the user's sandboxes, found in the store; each as it is now.
fn listed(app: &App, caller: &Caller, query: &SandboxQuery) -> Result<(Vec<SandboxRow>, Option<String>), Fault> {
    let labels: Option<BTreeMap<String, String>> = (query.labels.as_deref())
        .map(|text| serde_json::from_str(text).map_err(|_| Fault::invalid("`labels` must be a JSON object of texts")))
        .transpose()?;
    let filter = SandboxFilter {
        state: query.state,
        labels: labels.as_ref(),
        template: query.template.as_ref(),
        started_from: query.started_from,
        oldest_first: query.order == Some(Order::Asc),
    };
    let ask = PageAsk { after: query.after.as_deref(), items_max: query.items_max };
    let page = app.store().sandbox_list(caller.who.scope(), filter, ask)?;
    let user = caller.who.principal().user;
    // One that ends at this moment is in the one and not in the other.
    let rows = page.items.iter().filter_map(|item| app.places().sandboxes().row(user, item.id).ok()).collect();
    Ok((rows, page.next))
}

/// A page of what is in memory anyway. `after` names the last item of the page before; when that has gone meanwhile,
/// the list must be begun anew.
///
/// # Errors
/// `invalid_request`.
pub fn paged<T>(items: Vec<T>, page: &PageQuery, name: impl Fn(&T) -> String) -> Result<List<T>, Fault> {
    let most = page.items_max.unwrap_or(100);
    if !(1..=1_000).contains(&most) {
        return Err(Fault::invalid("`items_max` must be 1 to 1000"));
    }
    let start = match &page.after {
        None => 0,
        Some(after) => {
            let found = items.iter().position(|item| name(item) == *after);
            found.ok_or_else(|| Fault::invalid("`after` is not in the list any more: begin it anew"))? + 1
        }
    };
    let more = items.len() > start + most as usize;
    let items: Vec<T> = items.into_iter().skip(start).take(most as usize).collect();
    let next = items.last().filter(|_| more).map(name);
    Ok(List { items, next })
}

/// Makes a sandbox. With an `Idempotency-Key` header the same request, repeated within a day, is answered with the same
/// sandbox, also by a server that was restarted meanwhile.
#[utoipa::path(post, path = "/v1/sandboxes", request_body = SandboxAsk,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 128 characters, of the caller's choice")),
    responses((status = 201, body = SandboxAnswer)))]
async fn sandbox_create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let bytes = app.intake().bytes(&headers, body).await?;
    let ask: SandboxAsk = input::parse(&bytes)?;
    let make = {
        let (app, caller) = (app.clone(), caller.clone());
        |repeat| async move {
            let (spec, making) = wanted(&app, &caller, &ask).await?;
            make(&app, &caller, spec, Making { repeat, ..making }).await
        }
    };
    let row = app.once(&caller, key(&headers)?, &bytes, make).await?;
    Ok(json(StatusCode::CREATED, &SandboxAnswer::from(row)))
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=128).contains(&text.len()));
    text.map(|text| Some(text.to_owned()))
        .ok_or_else(|| Fault::invalid("`Idempotency-Key` must be 1 to 128 visible characters"))
}

/// What `ask` comes to: the whole spec, and what it is made with.
///
/// # Errors
/// What is wrong with it; what the gate says of the snapshot that it names.
pub async fn wanted(app: &App, caller: &Caller, ask: &SandboxAsk) -> Result<(SandboxSpec, Making), Refusal> {
    let default = ask.name.as_deref() == Some(DEFAULT_NAME);
    ask.name.as_deref().map_or(Ok(()), check_name)?;
    let about = ask.about()?;
    let limits = caller.who.limits();
    let (spec, from) = match &ask.from_snapshot {
        None => (ask.spec(limits), None),
        Some(named) => {
            let origin = life::origin(app, caller, named).await?;
            (ask.spec_from(limits, origin.spec())?, Some(origin))
        }
    };
    Ok((spec, Making { name: ask.name.clone(), default, about, from, repeat: None }))
}

/// Refuses a name that could not be used wherever an id can: it would be taken for an id, an option, a path, or the end of
/// one in `name:path`. How long it is the store says.
fn check_name(name: &str) -> Result<(), Fault> {
    const BEGINNINGS: [&str; 6] = ["-", ".", "sbx_", "snp_", "mch_", "exe_"];
    let taken = BEGINNINGS.iter().any(|beginning| name.starts_with(beginning));
    if taken || name.contains([':', '/']) || name.trim() != name {
        return Err(Fault::invalid(format!(
            "a sandbox's name has no `:` and no `/`, no space at its ends, and does not begin with {}",
            BEGINNINGS.map(|beginning| format!("`{beginning}`")).join(", "),
        )));
    }
    Ok(())
}

/// What is asked and recorded of the making of a sandbox.
#[must_use]
pub fn asked<'a>(app: &App, spec: &'a SandboxSpec) -> Ask<'a> {
    let template = spec.template.as_str();
    // A key has the form of a template's name as well. Of other names all is recorded, digests too.
    let template = match SecretKind::of(template) {
        Some(_) => app.redactor().text(template, &[]),
        None => template.to_owned(),
    };
    let mut asked = Ask::of(Action::SandboxCreate)
        .detail("template", template)
        .detail("limits", serde_json::to_value(spec.limits).unwrap_or_default())
        .detail("lease_ms", spec.lease_ms);
    asked.asked = Asked::Sandbox(spec);
    asked
}

/// Finds out before anything is made what would be in its way.
///
/// # Errors
/// `conflict`, `template_unavailable`.
pub fn check(app: &App, caller: &Caller, spec: &SandboxSpec, making: &Making) -> Result<(), Fault> {
    // The store's own index is what holds it.
    making.name.as_deref().map_or(Ok(()), |name| app.name_is_free(caller, name))?;
    // What a snapshot stands on is there for as long as it is.
    if making.from.is_some() { Ok(()) } else { app.check_template(caller, &spec.template) }
}

/// Notes in the result's record what was made.
pub fn note(operation: &mut Operation, row: &SandboxRow) {
    operation.set_place(PlaceRef::Sandbox(row.id));
    operation.set_subject(row.id);
    operation.detail("pooled", row.pooled);
    if let Some(from) = row.from_snapshot {
        operation.detail("from_snapshot", from.to_string());
    }
    operation.set_enforcement(&row.enforcement);
}

/// Judges, counts and makes the sandbox of a whole spec; every door's way to one. What was begun is made and recorded
/// also when the client goes away.
///
/// # Errors
/// What the gate or the warden says.
pub async fn make(app: &App, caller: &Caller, spec: SandboxSpec, making: Making) -> Result<SandboxRow, Refusal> {
    let judged = app.claim_sandbox(caller, &spec);
    make_judged(app, caller, spec, making, judged).await
}

/// As [`make`], of what was judged and counted before.
///
/// # Errors
/// What the gate said or the warden says.
pub async fn make_judged(
    app: &App,
    caller: &Caller,
    spec: SandboxSpec,
    making: Making,
    judged: Result<(Arc<Permit>, SandboxClaim), Fault>,
) -> Result<SandboxRow, Refusal> {
    let (mut operation, claim) = app.begin_judged(caller, asked(app, &spec), judged).await?;
    if let Err(fault) = check(app, caller, &spec, &making) {
        return Err(operation.fail(fault).await);
    }
    let app = app.clone();
    let made = async move {
        let made = app.places().sandboxes().create(claim, making).await;
        let result = made.and_then(|place| {
            let row = app.places().sandboxes().row(place.user(), place.sandbox_id())?;
            note(&mut operation, &row);
            Ok(row)
        });
        operation.finish(result).await
    };
    App::to_its_end(made).await
}

/// One sandbox with what it uses now.
#[utoipa::path(get, path = "/v1/sandboxes/{id}", responses((status = 200, body = SandboxAnswer)))]
async fn sandbox(State(app): State<App>, caller: Caller, Named(id): Named<String>) -> Result<Response<Body>, Refusal> {
    let id: SandboxId = input::id("sandbox", &id)?;
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).subject(id)).await?;
    let read = async {
        let row = app.places().sandboxes().row(operation.permit().user(), id)?;
        let used = app.places().sandboxes().usage(operation.permit(), id).await?;
        let usage = SandboxUsage {
            memory_bytes: used.memory_bytes,
            memory_peak_bytes: used.memory_peak_bytes,
            oom_kills: used.oom_kills,
            tasks: used.tasks,
            cpu_us: used.cpu_us,
            disk_bytes: used.disk_bytes,
            inodes: used.inodes,
        };
        Ok(SandboxAnswer { usage: Some(usage), ..row.into() })
    };
    let result = read.await;
    Ok(json(StatusCode::OK, &operation.finish(result).await?))
}

/// Extends a lease or changes limits.
#[utoipa::path(patch, path = "/v1/sandboxes/{id}", request_body = SandboxPatch,
    responses((status = 200, body = SandboxAnswer)))]
async fn sandbox_change(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
    Json(patch): Json<SandboxPatch>,
) -> Result<Response<Body>, Refusal> {
    let id: SandboxId = input::id("sandbox", &id)?;
    let user = caller.who.principal().user;
    // Before anything is changed: what is refused has changed nothing.
    if let Some(lease_ms) = patch.lease_ms
        && !(1_000..=30 * 86_400_000).contains(&lease_ms)
    {
        return Err(Fault::invalid("`lease_ms` must be 1000 to 2592000000").into());
    }
    let mut row = None;
    if let Some(limits) = patch.limits {
        // Of two changes at once the second begins with the first one's.
        let _turn = app.limits_turns().take(user).await;
        let ask = Ask::of(Action::SandboxUpdate).subject(id).detail("op", "limits");
        // Another user's sandbox has no limits here, so the question is one without a quota then.
        let judged = match app.claim_limits(&caller, id, |old| limits.over(old)) {
            Ok((permit, claim)) => Ok((permit, Some(claim))),
            Err(fault) if fault.code == Code::NotFound => {
                app.permit(&caller, Action::SandboxUpdate).map(|permit| (Arc::new(permit), None))
            }
            Err(fault) => Err(fault),
        };
        let (operation, claim) = app.begin_judged(&caller, ask, judged).await?;
        let result = match claim {
            Some(claim) => app.places().sandboxes().set_limits(claim, id).await,
            None => Err(Fault::not_found("sandbox")),
        };
        row = Some(operation.finish(result).await?);
    }
    if let Some(lease_ms) = patch.lease_ms {
        let mut ask = Ask::of(Action::SandboxUpdate).subject(id).detail("op", "lease").detail("lease_ms", lease_ms);
        ask.asked = Asked::Lease { lease_ms };
        let operation = app.begin(&caller, ask).await?;
        let result = app.places().sandboxes().extend(operation.permit(), id, lease_ms).await;
        row = Some(operation.finish(result).await?);
    }
    let row = match row {
        Some(row) => row,
        None => {
            let operation = app.begin(&caller, Ask::of(Action::SandboxRead).subject(id)).await?;
            let result = app.places().sandboxes().row(user, id);
            operation.finish(result).await?
        }
    };
    Ok(json(StatusCode::OK, &SandboxAnswer::from(row)))
}

/// Destroys a sandbox; answered when nothing of it is left.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}", responses((status = 204, description = "Gone")))]
async fn sandbox_destroy(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<String>,
) -> Result<StatusCode, Refusal> {
    let id: SandboxId = input::id("sandbox", &id)?;
    destroy(&app, &caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Judges and destroys.
///
/// # Errors
/// What the gate or the warden says.
pub async fn destroy(app: &App, caller: &Caller, id: SandboxId) -> Result<(), Refusal> {
    let ask = Ask::of(Action::SandboxDestroy).subject(id).place(rf_types::PlaceRef::Sandbox(id));
    let operation = app.begin(caller, ask).await?;
    let result = app.places().sandboxes().destroy(operation.permit(), id).await;
    operation.finish(result).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_none_that_would_be_taken_for_something_else() {
        for good in ["web", "a b", "user@host", "x-1.2_3", "Größe", "sbx", "default"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["sbx_x", "snp_1", "mch_", "exe_0", "-f", "--all", "..", ".", "a:b", "a/b", " a", "a ", "\u{a0}a"] {
            assert_eq!(check_name(bad).unwrap_err().code, Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn pages_go_on_after_the_last_item() {
        let page = |after: Option<&str>| PageQuery { after: after.map(str::to_owned), items_max: Some(2) };
        let items = vec![1, 2, 3, 4, 5];
        let name = |item: &i32| item.to_string();
        let first = paged(items.clone(), &page(None), name).unwrap();
        assert_eq!((first.items, first.next.as_deref()), (vec![1, 2], Some("2")));
        let last = paged(items.clone(), &page(Some("4")), name).unwrap();
        assert_eq!((last.items, last.next), (vec![5], None));
        assert!(paged(items, &page(Some("9")), name).is_err());
    }
}
