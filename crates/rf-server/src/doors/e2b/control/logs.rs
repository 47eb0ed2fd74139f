//! The log of a sandbox: what was done with it and in it, from the ledger. Commands and their output are not in it.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_e2b::models::{LogEntry, LogLevel, LogLine, Logs, LogsV2, timestamp};
use rf_ledger::{Filter, Kind, Order, Query, Record};
use rf_policy::Action;
use rf_types::{Code, Fault, PlaceRef, SandboxId, UserId};
use serde::Deserialize;
use serde_json::json;

use super::id;
use crate::{
    app::{self, App, Caller, Named},
    input,
    operation::{Ask, action_name},
    refusal::Refusal,
};

/// Most entries of one answer.
const ENTRIES_MAX: usize = 1_000;
/// Pages of the ledger that one question looks through. Chosen: some thousands of records.
const PAGES_MAX: usize = 8;
/// Longest text that is searched for, characters.
const SEARCH_CHARS_MAX: usize = 256;
/// Whose lines they are.
const LOGGER: &str = "ringfence";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct QueryV1 {
    start: Option<u64>,
    limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Direction {
    #[default]
    Forward,
    Backward,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct QueryV2 {
    cursor: Option<u64>,
    limit: Option<usize>,
    direction: Direction,
    level: Option<LogLevel>,
    search: Option<String>,
}

/// The log as lines and as entries, oldest first.
pub(super) async fn logs_v1(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    uri: Uri,
) -> Result<Response<Body>, Refusal> {
    let QueryV1 { start, limit } = input::query(&uri)?;
    let query = QueryV2 { cursor: start, limit: limit.map(|limit| limit.min(ENTRIES_MAX)), ..QueryV2::default() };
    let log_entries = read(&app, &caller, &text, query).await?;
    let line = |entry: &LogEntry| LogLine { timestamp: entry.timestamp.clone(), line: as_line(entry) };
    Ok(app::json(StatusCode::OK, &Logs { logs: log_entries.iter().map(line).collect(), log_entries }))
}

/// An entry as one line: JSON, which is how the command line of these clients reads it.
fn as_line(entry: &LogEntry) -> String {
    let mut line = json!({ "level": entry.level, "logger": LOGGER, "message": entry.message });
    for (name, value) in &entry.fields {
        line[name] = value.as_str().into();
    }
    line.to_string()
}

/// The log as entries, from some time on or back.
pub(super) async fn logs_v2(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    uri: Uri,
) -> Result<Response<Body>, Refusal> {
    let query: QueryV2 = input::query(&uri)?;
    if query.limit.is_some_and(|limit| limit > ENTRIES_MAX) {
        return Err(Fault::invalid("`limit` must be 0 to 1000").into());
    }
    if query.search.as_ref().is_some_and(|text| text.chars().count() > SEARCH_CHARS_MAX) {
        return Err(Fault::invalid("`search` must be at most 256 characters").into());
    }
    Ok(app::json(StatusCode::OK, &LogsV2 { logs: read(&app, &caller, &text, query).await? }))
}

async fn read(app: &App, caller: &Caller, text: &str, query: QueryV2) -> Result<Vec<LogEntry>, Refusal> {
    let id = id(text)?;
    // What is read is the user's part of the ledger, so it takes the scope for that.
    let operation = app.begin(caller, Ask::of(Action::AuditRead).subject(id).detail("op", "logs")).await?;
    let user = operation.permit().user();
    let there = app.places().sandboxes().row(user, id);
    let found = {
        let app = app.clone();
        let entries = tokio::task::spawn_blocking(move || entries(&app, user, id, &query)).await;
        entries.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "a reader of the ledger ended early", "")))
    };
    // One that has ended still has its log; one that never was has none.
    let result = found.and_then(|found| match there {
        Err(fault) if !found.known => Err(fault),
        Err(_) | Ok(_) => Ok(found.entries),
    });
    operation.finish(result).await
}

struct Found {
    entries: Vec<LogEntry>,
    /// Whether the user ever had such a sandbox.
    known: bool,
}

/// Reads the disk.
fn entries(app: &App, user: UserId, id: SandboxId, query: &QueryV2) -> Result<Found, Fault> {
    let forward = query.direction == Direction::Forward;
    let place = Some(PlaceRef::Sandbox(id));
    let filter = match (forward, query.cursor) {
        (true, since) => Filter { place, since, ..Filter::default() },
        (false, None) => Filter { place, ..Filter::default() },
        (false, Some(cursor)) => Filter { place, until: Some(cursor.saturating_add(1)), ..Filter::default() },
    };
    let order = if forward { Order::OldestFirst } else { Order::NewestFirst };
    let limit = query.limit.unwrap_or(ENTRIES_MAX);
    let mut asked = Query { user: Some(user), filter, order, after: None, limit: ENTRIES_MAX };
    let mut entries = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = app.ledger().page(&asked)?;
        entries.extend(page.records.iter().filter_map(entry).filter(|entry| {
            query.level.is_none_or(|level| entry.level >= level)
                && query.search.as_ref().is_none_or(|text| entry.message.contains(text.as_str()))
        }));
        asked.after = page.next;
        if entries.len() >= limit || page.next.is_none() {
            break;
        }
    }
    entries.truncate(limit);
    // Whoever asks for what is not theirs leaves records too, but none of having made it.
    let made = Filter {
        place,
        action: Some(action_name(Action::SandboxCreate).to_owned()),
        kind: Some(Kind::Result),
        ..Filter::default()
    };
    let known = !app.ledger().page(&Query { filter: made, after: None, limit: 1, ..asked })?.records.is_empty();
    Ok(Found { entries, known })
}

/// A record in words; nothing of its details but numbers and names of ours.
fn entry(record: &Record) -> Option<LogEntry> {
    let action = record.action.replace('_', " ");
    let (message, level) = match (record.kind, record.code) {
        (Kind::Intent, _) => (format!("{action} began"), LogLevel::Debug),
        (Kind::Result, None) => {
            let how = match (record.exit_code, record.signal) {
                (Some(code), _) => format!(" with exit code {code}"),
                (None, Some(signal)) => format!(" by signal {signal}"),
                (None, None) => String::new(),
            };
            (format!("{action} ended{how}"), LogLevel::Info)
        }
        (Kind::Result, Some(code)) => {
            let level = if code.http_status() >= 500 { LogLevel::Error } else { LogLevel::Warn };
            (format!("{action} failed: {}", name(code)), level)
        }
        (Kind::Decision, Some(code)) => (format!("{action} was refused: {}", name(code)), LogLevel::Warn),
        (Kind::Decision, None) => return None,
        (Kind::Note, _) => match record.details.get("why").and_then(|why| why.as_str()) {
            Some(why) => (format!("{action}: {why}"), LogLevel::Info),
            None => (action, LogLevel::Info),
        },
    };
    let mut fields = BTreeMap::from([("action".to_owned(), record.action.clone())]);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    add("request", record.request.map(|id| id.to_string()));
    add("exitCode", record.exit_code.map(|code| code.to_string()));
    add("durationUs", record.duration_us.map(|us| us.to_string()));
    Some(LogEntry { timestamp: timestamp(record.at), message, level, fields })
}

/// A code as in JSON.
fn name(code: Code) -> String {
    serde_json::to_value(code).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
