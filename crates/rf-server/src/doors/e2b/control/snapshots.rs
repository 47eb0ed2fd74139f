//! Snapshots: make and list. They are templates of their user's own, and removed as such.

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_e2b::models::{NewSnapshot, SnapshotInfo};
use rf_places::SnapshotRow;
use rf_types::{Code, Fault, SnapshotId};
use serde::Deserialize;

use super::{
    id,
    sandboxes::{not_held, page_limit, with_next},
    templates,
};
use crate::{
    api::SnapshotQuery,
    app::{App, Caller, Named, json},
    doors,
    input::{self, Json},
    refusal::Refusal,
};

/// The tag of a snapshot that has no other.
const DEFAULT_TAG: &str = ":default";

fn info(row: SnapshotRow) -> SnapshotInfo {
    SnapshotInfo { snapshot_id: rf_e2b::id::snapshot_text(row.id), names: row.name.into_iter().collect() }
}

/// The snapshot that a text names by its id, with the tag of every snapshot or without; it need not be there.
pub(super) fn named_by_id(text: &str) -> Option<SnapshotId> {
    rf_e2b::id::snapshot_of(text.strip_suffix(DEFAULT_TAG).unwrap_or(text))
}

/// The user's snapshot of a name, with the tag of every snapshot or without.
pub(super) fn by_name(app: &App, caller: &Caller, text: &str) -> Option<SnapshotRow> {
    let (user, all) = (caller.who.principal().user, app.places().sandboxes());
    let without = || all.snapshot_named(user, text.strip_suffix(DEFAULT_TAG)?).ok();
    all.snapshot_named(user, text).ok().or_else(without)
}

/// Saves a sandbox's files; the sandbox goes on.
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    Json(NewSnapshot { name, memory }): Json<NewSnapshot>,
) -> Result<Response<Body>, Refusal> {
    if memory == Some(true) {
        return Err(not_held("memory: true").into());
    }
    let id = id(&text)?;
    if let Some(name) = &name {
        check_name(&app, &caller, name)?;
    }
    let row = doors::life::snapshot_of(&app, &caller, id, name).await?;
    Ok(json(StatusCode::CREATED, &info(row)))
}

/// A name under which something else would be found is none.
fn check_name(app: &App, caller: &Caller, name: &str) -> Result<(), Fault> {
    let taken = || Fault::new(Code::Conflict, "a template has that name", "choose another name");
    if named_by_id(name).is_some() {
        return Err(Fault::invalid("a snapshot's name must not look like a snapshot's id"));
    }
    match templates::find(app, caller, name) {
        Ok(_) => Err(taken()),
        Err(fault) if fault.code == Code::TemplateUnavailable => Ok(()),
        Err(fault) => Err(fault),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListQuery {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    name: Option<String>,
    limit: Option<String>,
    next_token: Option<String>,
}

/// The user's snapshots, newest first.
pub(super) async fn list(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let ListQuery { sandbox_id, name, limit, next_token } = input::query(&uri)?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let name = some(name);
    let by_id = name.as_deref().and_then(named_by_id);
    let limit = limit.as_deref().map_or(Ok(100), page_limit)?;
    let query = SnapshotQuery {
        after: some(next_token),
        items_max: u32::try_from(limit).ok(),
        // What is no id stays none.
        sandbox: some(sandbox_id).map(|text| id(&text).map_or(text, |id| id.to_string())),
        name: name.filter(|_| by_id.is_none()).map(|name| name.strip_suffix(DEFAULT_TAG).unwrap_or(&name).to_owned()),
    };
    let (mut rows, next) = doors::life::snapshot_list(&app, &caller, &query).await?;
    if let Some(id) = by_id {
        let found = app.places().sandboxes().snapshot_row(caller.who.principal().user, id).ok();
        let of = |row: &SnapshotRow| query.sandbox.as_ref().is_none_or(|of| *of == row.sandbox.to_string());
        rows = found.into_iter().filter(of).collect();
    }
    let mut response = json(StatusCode::OK, &rows.into_iter().map(info).collect::<Vec<_>>());
    with_next(&mut response, next.filter(|_| by_id.is_none()));
    Ok(response)
}
