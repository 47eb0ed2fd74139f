//! Files of a place: `/v1/files` (routed), `/v1/sandboxes/{id}/files`, `/v1/machines/{id}/files`, one set of handlers.
//!
//! Bytes are streamed both ways in pieces and never held whole. Paths are the place's own and are resolved there.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http_body_util::BodyExt as _;
use rf_places::place::{FileAnswer, Place, Sink};
use rf_types::{Code, Fault, FileKind, FileOp, Stat, WriteMode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api,
    app::{App, Caller, Where},
    input::{self, Json},
    operation::{Ask, Operation},
    refusal::{Refusal, to_json},
};

/// Most entries of a list in one JSON answer; as NDJSON there is no bound. Chosen: some 5 MB.
const ENTRIES_MAX: usize = 20_000;
/// One entry or change a line.
const NDJSON: &str = "application/x-ndjson";

/// The routes, below the path of a place.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(read, write))
        .routes(routes!(list))
        .routes(routes!(stat))
        .routes(routes!(mkdir))
        .routes(routes!(rename))
        .routes(routes!(remove))
        .routes(routes!(chmod))
        .routes(routes!(tar_out, tar_in))
        .routes(routes!(watch))
}

/// Which bytes of which file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReadQuery {
    /// The file, absolute or relative to the user's home (a machine: to the workspace).
    path: String,
    /// First byte; 0 if not given. A `Range` header goes before it.
    #[serde(default)]
    offset: u64,
    /// Most bytes; to the end if not given.
    length: Option<u64>,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// Where to write and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WriteQuery {
    /// The file.
    path: String,
    /// `truncate`, `create_new`, `append` or `replace` (whole or not at all); `truncate` if not given.
    #[param(value_type = Option<String>)]
    mode: Option<WriteMode>,
    /// Octal permission bits of a new file; `644` if not given.
    permissions: Option<String>,
    /// Make missing parent directories.
    #[serde(default)]
    parents: bool,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// Which directory, how deep.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// The directory.
    path: String,
    /// 1 (its own entries, if not given) to 64.
    depth: Option<u32>,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// Which file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StatQuery {
    /// The file.
    path: String,
    /// Follow a link at the end of the path.
    #[serde(default)]
    follow: bool,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// Which tree.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TreeQuery {
    /// The directory or file.
    path: String,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// What to watch.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WatchQuery {
    /// The directory or file.
    path: String,
    /// Directories below as well, also new ones.
    #[serde(default)]
    recursive: bool,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// A directory to make.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MkdirAsk {
    /// The directory.
    path: String,
    /// Octal permission bits; `755` if not given.
    permissions: Option<String>,
    /// Make missing parents, and no error if it is there.
    #[serde(default)]
    parents: bool,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// A file to move.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MoveAsk {
    /// From.
    from: String,
    /// To.
    to: String,
    /// Replace a file that is there.
    #[serde(default)]
    replace: bool,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// A file to remove.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RemoveAsk {
    /// The file.
    path: String,
    /// Also a directory with all in it.
    #[serde(default)]
    recursive: bool,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// Permission bits to set.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChmodAsk {
    /// The file; a link at the end is followed.
    path: String,
    /// Octal permission bits.
    permissions: String,
    /// As which user of the sandbox.
    user: Option<String>,
}

/// A file.
#[derive(Debug, Serialize, ToSchema)]
struct StatAnswer {
    /// Its path, as asked for or relative to the listed directory.
    path: String,
    /// `file`, `directory`, `symlink` or `special`.
    #[schema(value_type = String)]
    kind: FileKind,
    /// Its size in bytes.
    size: u64,
    /// Permission bits as a number.
    permissions: u32,
    /// Owner inside the place.
    uid: u32,
    /// Group inside the place.
    gid: u32,
    /// When its content last changed, milliseconds since 1970.
    modified_at: u64,
    /// Where a link points.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl From<Stat> for StatAnswer {
    fn from(stat: Stat) -> Self {
        let Stat { path, kind, size, permissions, uid, gid, modified_at, target } = stat;
        Self { path, kind, size, permissions, uid, gid, modified_at, target }
    }
}

/// A directory's entries.
#[derive(Debug, Serialize, ToSchema)]
struct ListAnswer {
    /// The entries.
    items: Vec<StatAnswer>,
    /// Whether there were more; ask with `Accept: application/x-ndjson` for all.
    truncated: bool,
}

/// A change below a watched path; one a line.
#[derive(Debug, Serialize, ToSchema)]
struct ChangeAnswer {
    /// The path below the watched one.
    path: String,
    /// `create`, `write`, `remove`, `rename`, `attributes`, `overflow`.
    kinds: Vec<String>,
    /// Whether it is a directory.
    directory: bool,
}

/// An operation on a file that was judged, and is under way.
struct Begun {
    operation: Operation,
    place: Arc<dyn Place>,
    answer: FileAnswer,
}

/// Judges and begins `op`.
async fn begin(app: &App, caller: &Caller, at: &Where, op: FileOp, user: Option<&str>) -> Result<Begun, Refusal> {
    let action = rf_places::file_action(&op);
    // The kernel takes none (open(2)); said here by name and not by an errno.
    if paths(&op).iter().any(|path| path.contains('\0')) || user.is_some_and(|user| user.contains('\0')) {
        return Err(Fault::invalid("a path or user holds a NUL byte").into());
    }
    let mut ask = Ask::of(action).detail("op", name(&op));
    ask.place = at.place();
    ask = ask.detail("paths", paths(&op).iter().map(|path| app.redactor().text(path, &[])).collect::<Vec<_>>());
    if let Some(user) = user {
        ask = ask.detail("as", app.redactor().text(user, &[]));
    }
    let mut operation = app.begin(caller, ask).await?;
    let place = match app.resolve(caller, &operation, *at, api::Choice::Default).await {
        Ok(place) => place,
        Err(fault) => return Err(operation.fail(fault).await),
    };
    operation.set_place(place.place());
    match place.file(operation.permit(), &op, user).await {
        Ok(answer) => Ok(Begun { operation, place, answer }),
        Err(fault) => Err(operation.fail(fault).await),
    }
}

/// The paths of a file operation.
fn paths(op: &FileOp) -> Vec<&str> {
    match op {
        FileOp::Read { path, .. }
        | FileOp::List { path, .. }
        | FileOp::Stat { path, .. }
        | FileOp::TarOut { path }
        | FileOp::Watch { path, .. }
        | FileOp::Write { path, .. }
        | FileOp::MakeDir { path, .. }
        | FileOp::Remove { path, .. }
        | FileOp::Chmod { path, .. }
        | FileOp::TarIn { path } => vec![path],
        FileOp::Move { from, to, .. } => vec![from, to],
    }
}

/// A file operation's name, as in JSON.
const fn name(op: &FileOp) -> &'static str {
    match op {
        FileOp::Read { .. } => "read",
        FileOp::List { .. } => "list",
        FileOp::Stat { .. } => "stat",
        FileOp::TarOut { .. } => "tar_out",
        FileOp::Watch { .. } => "watch",
        FileOp::Write { .. } => "write",
        FileOp::MakeDir { .. } => "make_dir",
        FileOp::Move { .. } => "move",
        FileOp::Remove { .. } => "remove",
        FileOp::Chmod { .. } => "chmod",
        FileOp::TarIn { .. } => "tar_in",
    }
}

fn unexpected() -> Fault {
    Fault::new(Code::Internal, "the place gave another answer than the operation has", "report it with the request id")
}

/// Ends an operation whose answer is no more than `Done`.
async fn done(begun: Begun) -> Result<StatusCode, Refusal> {
    let Begun { operation, place: _, answer } = begun;
    let result = match answer {
        FileAnswer::Done => Ok(StatusCode::NO_CONTENT),
        _ => Err(unexpected()),
    };
    operation.finish(result).await
}

/// Bytes to a client; the operation ends with the last of them, or when the client goes.
pub fn streamed(operation: Operation, bytes: BoxStream<'static, Result<Bytes, Fault>>, most: Option<u64>) -> Body {
    struct Streaming {
        operation: Option<Operation>,
        bytes: BoxStream<'static, Result<Bytes, Fault>>,
        left: u64,
        sent: u64,
    }
    let left = most.unwrap_or(u64::MAX);
    let bytes = operation.while_standing(bytes);
    let streaming = Streaming { operation: Some(operation), bytes, left, sent: 0 };
    Body::from_stream(futures::stream::unfold(streaming, |mut s| async move {
        let operation = s.operation.as_mut()?;
        // More than was announced would be read as the next answer.
        let next = if s.left == 0 { None } else { s.bytes.next().await };
        match next {
            Some(Ok(mut piece)) => {
                piece.truncate(usize::try_from(s.left).unwrap_or(usize::MAX));
                s.left -= piece.len() as u64;
                s.sent += piece.len() as u64;
                Some((Ok(piece), s))
            }
            end => {
                operation.detail("bytes", s.sent);
                let operation = s.operation.take()?;
                let result = match end {
                    Some(Err(fault)) => Err(fault),
                    Some(Ok(_)) | None => Ok(()),
                };
                // The header is out, so that breaking off is the only way left to say it.
                match operation.finish(result).await {
                    Ok(()) => None,
                    Err(refusal) => Some((Err(std::io::Error::other(refusal.fault.message)), s)),
                }
            }
        }
    }))
}

/// Reads a file.
#[utoipa::path(get, path = "", operation_id = "file_read", params(ReadQuery),
    responses((status = 200, content_type = "application/octet-stream", description = "The bytes"),
        (status = 206, content_type = "application/octet-stream", description = "The bytes of a `Range`")))]
async fn read(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let ReadQuery { path, mut offset, mut length, user } = input::query(&uri)?;
    let range = range(&headers);
    if let Some((first, last)) = range {
        offset = first;
        length = last.map(|last| last - first + 1);
    }
    let begun = begin(&app, &caller, &at, FileOp::Read { path, offset, length }, user.as_deref()).await?;
    let FileAnswer::Content { stat, bytes } = begun.answer else {
        return Err(begun.operation.fail(unexpected()).await);
    };
    let mut operation = begun.operation;
    if range.is_some() && stat.size > 0 && offset >= stat.size {
        let fault = Fault::invalid(format!("the range begins at {offset} of {} bytes", stat.size));
        let refusal = operation.fail(fault).await;
        return Err(Refusal::with_status(refusal.fault, StatusCode::RANGE_NOT_SATISFIABLE));
    }
    operation.durable().await?;
    // A file of no size may still have content, as those of /proc have.
    let there = (stat.size > 0).then(|| stat.size.saturating_sub(offset));
    let most = there.map(|there| length.map_or(there, |length| length.min(there)));
    let mut response = Response::new(streamed(operation, bytes, most.or(length)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(most) = most {
        headers.insert(header::CONTENT_LENGTH, most.into());
        if range.is_some() {
            let text = format!("bytes {offset}-{}/{}", offset + most.max(1) - 1, stat.size);
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
    }
    Ok(response)
}

/// One range `first-last` or `first-`. Any other form is ignored, as RFC 9110, section 14.2 allows.
fn range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let first = digits(first).then(|| first.parse::<u64>().ok()).flatten()?;
    if last.is_empty() {
        return Some((first, None));
    }
    let last = digits(last).then(|| last.parse::<u64>().ok()).flatten()?;
    // `last - first + 1` must not overflow.
    (last >= first && last < u64::MAX).then_some((first, Some(last)))
}

/// Writes a file.
#[utoipa::path(put, path = "", operation_id = "file_write", params(WriteQuery),
    request_body(content_type = "application/octet-stream", description = "The file's bytes"),
    responses((status = 204, description = "Written")))]
async fn write(State(app): State<App>, caller: Caller, at: Where, uri: Uri, body: Body) -> Result<StatusCode, Refusal> {
    let WriteQuery { path, mode, permissions, parents, user } = input::query(&uri)?;
    let permissions = api::permissions(permissions.as_deref(), 0o644)?;
    let mode = mode.unwrap_or(WriteMode::Truncate);
    let op = FileOp::Write { path, mode, permissions, parents };
    let begun = begin(&app, &caller, &at, op, user.as_deref()).await?;
    pour(&app, begun, body).await
}

/// Pours a request's body into a place.
async fn pour(app: &App, begun: Begun, body: Body) -> Result<StatusCode, Refusal> {
    let Begun { mut operation, place, answer } = begun;
    let FileAnswer::Sink(sink) = answer else { return Err(operation.fail(unexpected()).await) };
    let door = &app.config().door;
    let idle = Duration::from_millis(door.upload_idle_timeout_ms);
    let mut taken = 0;
    let result = tokio::select! {
        biased;
        result = drain(sink, body, idle, door.upload_bytes_max, &mut taken) => result,
        // A client that is slow to send learns it at once.
        fault = place.gone() => Err(fault),
        fault = operation.fallen() => Err(fault),
    };
    operation.detail("bytes", taken);
    operation.finish(result.map(|()| StatusCode::NO_CONTENT)).await
}

async fn drain(
    mut sink: Box<dyn Sink>,
    mut body: Body,
    idle: Duration,
    max: u64,
    taken: &mut u64,
) -> Result<(), Fault> {
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| input::too_slow(idle))?;
        let Some(frame) = frame else { return sink.finish().await };
        let frame = frame.map_err(|_| Fault::invalid("the connection broke within the body"))?;
        let Ok(piece) = frame.into_data() else { continue };
        *taken += piece.len() as u64;
        if *taken > max {
            return Err(input::too_large(max));
        }
        sink.write(piece).await?;
    }
}

/// Lists a directory.
#[utoipa::path(get, path = "/list", operation_id = "file_list", params(ListQuery),
    responses((status = 200, body = ListAnswer)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let ListQuery { path, depth, user } = input::query(&uri)?;
    let depth = depth.unwrap_or(1);
    if !(1..=64).contains(&depth) {
        return Err(Fault::invalid("`depth` must be 1 to 64").into());
    }
    let begun = begin(&app, &caller, &at, FileOp::List { path, depth }, user.as_deref()).await?;
    let FileAnswer::Entries(entries) = begun.answer else { return Err(begun.operation.fail(unexpected()).await) };
    if headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes() == NDJSON.as_bytes()) {
        let lines = entries.map_ok(|stat| line(&StatAnswer::from(stat))).boxed();
        return ndjson(begun.operation, lines).await;
    }
    let collect = async {
        let mut entries = entries;
        let mut items = Vec::new();
        while let Some(stat) = entries.try_next().await? {
            if items.len() == ENTRIES_MAX {
                return Ok(ListAnswer { items, truncated: true });
            }
            items.push(stat.into());
        }
        Ok(ListAnswer { items, truncated: false })
    };
    let answer = begun.operation.finish(collect.await).await?;
    Ok(crate::app::json(StatusCode::OK, &answer))
}

fn line<T: Serialize>(value: &T) -> Bytes {
    let mut line = to_json(value);
    line.push(b'\n');
    line.into()
}

async fn ndjson(
    operation: Operation,
    lines: BoxStream<'static, Result<Bytes, Fault>>,
) -> Result<Response<Body>, Refusal> {
    let operation = operation.made_durable().await?;
    let mut response = Response::new(streamed(operation, lines, None));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    Ok(response)
}

/// Describes a file.
#[utoipa::path(get, path = "/stat", operation_id = "file_stat", params(StatQuery),
    responses((status = 200, body = StatAnswer)))]
async fn stat(State(app): State<App>, caller: Caller, at: Where, uri: Uri) -> Result<Response<Body>, Refusal> {
    let StatQuery { path, follow, user } = input::query(&uri)?;
    let begun = begin(&app, &caller, &at, FileOp::Stat { path, follow }, user.as_deref()).await?;
    let result = match begun.answer {
        FileAnswer::Stat(stat) => Ok(StatAnswer::from(stat)),
        _ => Err(unexpected()),
    };
    let answer = begun.operation.finish(result).await?;
    Ok(crate::app::json(StatusCode::OK, &answer))
}

/// Makes a directory.
#[utoipa::path(post, path = "/mkdir", operation_id = "file_mkdir", request_body = MkdirAsk,
    responses((status = 204, description = "Made")))]
async fn mkdir(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    Json(MkdirAsk { path, permissions, parents, user }): Json<MkdirAsk>,
) -> Result<StatusCode, Refusal> {
    let permissions = api::permissions(permissions.as_deref(), 0o755)?;
    done(begin(&app, &caller, &at, FileOp::MakeDir { path, permissions, parents }, user.as_deref()).await?).await
}

/// Moves a file.
#[utoipa::path(post, path = "/move", operation_id = "file_move", request_body = MoveAsk,
    responses((status = 204, description = "Moved")))]
async fn rename(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    Json(MoveAsk { from, to, replace, user }): Json<MoveAsk>,
) -> Result<StatusCode, Refusal> {
    done(begin(&app, &caller, &at, FileOp::Move { from, to, replace }, user.as_deref()).await?).await
}

/// Removes a file.
#[utoipa::path(post, path = "/remove", operation_id = "file_remove", request_body = RemoveAsk,
    responses((status = 204, description = "Removed")))]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    Json(RemoveAsk { path, recursive, user }): Json<RemoveAsk>,
) -> Result<StatusCode, Refusal> {
    done(begin(&app, &caller, &at, FileOp::Remove { path, recursive }, user.as_deref()).await?).await
}

/// Sets permission bits.
#[utoipa::path(post, path = "/chmod", operation_id = "file_chmod", request_body = ChmodAsk,
    responses((status = 204, description = "Set")))]
async fn chmod(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    Json(ChmodAsk { path, permissions, user }): Json<ChmodAsk>,
) -> Result<StatusCode, Refusal> {
    let permissions = api::permissions(Some(&permissions), 0)?;
    done(begin(&app, &caller, &at, FileOp::Chmod { path, permissions }, user.as_deref()).await?).await
}

/// Downloads a tree as a tar archive.
#[utoipa::path(get, path = "/tar", operation_id = "tar_out", params(TreeQuery),
    responses((status = 200, content_type = "application/x-tar", description = "The archive")))]
async fn tar_out(State(app): State<App>, caller: Caller, at: Where, uri: Uri) -> Result<Response<Body>, Refusal> {
    let TreeQuery { path, user } = input::query(&uri)?;
    let begun = begin(&app, &caller, &at, FileOp::TarOut { path }, user.as_deref()).await?;
    let FileAnswer::Archive(bytes) = begun.answer else { return Err(begun.operation.fail(unexpected()).await) };
    let operation = begun.operation.made_durable().await?;
    let mut response = Response::new(streamed(operation, bytes, None));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// Unpacks a tar archive.
#[utoipa::path(put, path = "/tar", operation_id = "tar_in", params(TreeQuery),
    request_body(content_type = "application/x-tar", description = "The archive"),
    responses((status = 204, description = "Unpacked")))]
async fn tar_in(
    State(app): State<App>,
    caller: Caller,
    at: Where,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let TreeQuery { path, user } = input::query(&uri)?;
    let begun = begin(&app, &caller, &at, FileOp::TarIn { path }, user.as_deref()).await?;
    pour(&app, begun, body).await
}

/// Streams changes below a path, one JSON object a line, until the client goes.
#[utoipa::path(get, path = "/watch", operation_id = "file_watch", params(WatchQuery),
    responses((status = 200, content_type = "application/x-ndjson", body = ChangeAnswer)))]
async fn watch(State(app): State<App>, caller: Caller, at: Where, uri: Uri) -> Result<Response<Body>, Refusal> {
    let WatchQuery { path, recursive, user } = input::query(&uri)?;
    let begun = begin(&app, &caller, &at, FileOp::Watch { path, recursive }, user.as_deref()).await?;
    let FileAnswer::Changes(changes) = begun.answer else { return Err(begun.operation.fail(unexpected()).await) };
    ndjson(begun.operation, changes.map_ok(|change| line(&change)).boxed()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_ignored() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            range(&headers)
        };
        assert_eq!(of("bytes=0-9"), Some((0, Some(9))));
        assert_eq!(of("bytes=5-"), Some((5, None)));
        for ignored in
            ["bytes=-5", "bytes=9-0", "bytes=0-1,3-4", "lines=0-1", "bytes=+1-2", "bytes=0-18446744073709551615"]
        {
            assert_eq!(of(ignored), None, "{ignored}");
        }
    }
}
