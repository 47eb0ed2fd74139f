//! `filesystem.Filesystem`: file operations of a sandbox in detail.

use std::sync::Arc;

use buffa::MessageField;
use connectrpc::{ConnectError, ErrorCode, RequestContext, Response, ServiceResult, ServiceStream};
use futures::{StreamExt as _, future::BoxFuture, stream};
use rf_e2b::rpc::filesystem::{
    __buffa::oneof::watch_dir_response::Event,
    CreateWatcherRequest, CreateWatcherResponse, EntryInfo, EventType, FilesystemEvent, GetWatcherEventsRequest,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest, RemoveWatcherResponse, StatRequest,
    StatResponse, WatchDirRequest, WatchDirResponse,
    watch_dir_response::{KeepAlive, StartEvent},
};
use rf_places::{
    detail::{Detail, DetailAnswer, DetailFault, DetailOp, WatchTold, Watching, action},
    place::{Change, ChangeKind},
};
use rf_policy::Action;
use rf_types::{Code, Fault};

use super::{
    Asked,
    entry::{clean, entry},
    rpc::{asked, errno, error, file_error, keepalive, refused},
};
use crate::{
    input,
    operation::{Ask, Operation},
};

/// Most entries of one list. Chosen: some 20 MB of message.
const ENTRIES_MAX: usize = 50_000;
/// What one entry holds in memory, about.
const ENTRY_BYTES: usize = 512;

/// Judges and does one operation.
pub(super) async fn begin(
    asked: &Asked,
    op: &DetailOp,
) -> Result<(Operation, Result<DetailAnswer, DetailFault>), ConnectError> {
    begin_as(asked, op, asked.user.as_deref()).await.map_err(|fault| error(&fault))
}

/// As [`begin`], as another user.
pub(super) async fn begin_as(
    asked: &Asked,
    op: &DetailOp,
    user: Option<&str>,
) -> Result<(Operation, Result<DetailAnswer, DetailFault>), Fault> {
    let redactor = asked.app.redactor();
    let (name, paths) = describe(op);
    let paths: Vec<_> = paths.into_iter().map(|path| redactor.text(path, &[])).collect();
    let mut ask = Ask::of(action(op)).place(asked.place()).detail("op", name).detail("paths", paths);
    if let Some(user) = user {
        ask = ask.detail("as", redactor.text(user, &[]));
    }
    let operation = asked.app.begin(&asked.caller, ask).await.map_err(|refusal| refusal.fault)?;
    let answer = asked.target.place.file_in_detail(operation.permit(), op, user).await;
    Ok((operation, answer))
}

/// An operation's name, as for `/v1`, and its paths.
fn describe(op: &DetailOp) -> (&'static str, Vec<&str>) {
    match op {
        DetailOp::Read { path } => ("read", vec![path]),
        DetailOp::Write { path, .. } => ("write", vec![path]),
        DetailOp::List { path, .. } => ("list", vec![path]),
        DetailOp::Stat { path } => ("stat", vec![path]),
        DetailOp::MakeDir { path } => ("make_dir", vec![path]),
        DetailOp::Move { from, to } => ("move", vec![from, to]),
        DetailOp::Remove { path } => ("remove", vec![path]),
        DetailOp::Watch { path, .. } => ("watch", vec![path]),
    }
}

/// Does an operation that describes one file.
async fn described(
    asked: &Asked,
    op: &DetailOp,
    message: impl Fn(u32) -> Option<(ErrorCode, String)>,
) -> Result<EntryInfo, ConnectError> {
    let (operation, answer) = begin(asked, op).await?;
    match answer {
        Ok(DetailAnswer::Described(detail)) => {
            let path = clean(&detail.stat.path);
            operation.finish(Ok(entry(*detail, path))).await.map_err(refused)
        }
        Ok(_) => Err(refused(operation.fail(unexpected()).await)),
        Err(failed) => {
            let error = file_error(&failed, asked.user.as_deref(), message);
            operation.fail(failed.fault).await;
            Err(error)
        }
    }
}

pub(super) fn unexpected() -> Fault {
    Fault::new(Code::Internal, "the place gave another answer than the operation has", "report it with the request id")
}

fn not_found(path: &str) -> (ErrorCode, String) {
    (ErrorCode::NotFound, format!("path not found: {path}"))
}

/// `Stat`.
pub(super) async fn stat(context: RequestContext, request: StatRequest) -> ServiceResult<StatResponse> {
    let asked = asked(&context)?;
    let path = request.path;
    let message = |errno| (errno == errno::ENOENT).then(|| (ErrorCode::NotFound, format!("file not found: {path}")));
    let entry = described(&asked, &DetailOp::Stat { path: path.clone() }, message).await?;
    Response::ok(StatResponse { entry: MessageField::some(entry) })
}

/// `MakeDir`.
pub(super) async fn make_dir(context: RequestContext, request: MakeDirRequest) -> ServiceResult<MakeDirResponse> {
    let asked = asked(&context)?;
    let path = request.path;
    let message = |errno| match errno {
        errno::EEXIST => Some((ErrorCode::AlreadyExists, format!("directory already exists: {path}"))),
        errno::ENOTDIR => {
            Some((ErrorCode::InvalidArgument, format!("path already exists but it is not a directory: {path}")))
        }
        _ => None,
    };
    let entry = described(&asked, &DetailOp::MakeDir { path: path.clone() }, message).await?;
    Response::ok(MakeDirResponse { entry: MessageField::some(entry) })
}

/// `Move`.
pub(super) async fn rename(context: RequestContext, request: MoveRequest) -> ServiceResult<MoveResponse> {
    let asked = asked(&context)?;
    let MoveRequest { source, destination } = request;
    let message =
        |errno| (errno == errno::ENOENT).then(|| (ErrorCode::NotFound, format!("source file not found: {source}")));
    let op = DetailOp::Move { from: source.clone(), to: destination };
    let entry = described(&asked, &op, message).await?;
    Response::ok(MoveResponse { entry: MessageField::some(entry) })
}

/// `Remove`: what is not there is removed.
pub(super) async fn remove(context: RequestContext, request: RemoveRequest) -> ServiceResult<RemoveResponse> {
    let asked = asked(&context)?;
    let (operation, answer) = begin(&asked, &DetailOp::Remove { path: request.path }).await?;
    match answer {
        Ok(_) => operation.finish(Ok(())).await.map_err(refused)?,
        Err(failed) if failed.errno == Some(errno::ENOENT) => operation.finish(Ok(())).await.map_err(refused)?,
        Err(failed) => {
            let error = file_error(&failed, asked.user.as_deref(), |_| None);
            operation.fail(failed.fault).await;
            return Err(error);
        }
    }
    Response::ok(RemoveResponse {})
}

/// `ListDir`: each directory's entries by name, before those below the next.
pub(super) async fn list_dir(context: RequestContext, request: ListDirRequest) -> ServiceResult<ListDirResponse> {
    let asked = asked(&context)?;
    let ListDirRequest { path, depth } = request;
    let message = |errno| match errno {
        errno::ENOENT => Some(not_found(&path)),
        errno::ENOTDIR => Some((ErrorCode::InvalidArgument, format!("path is not a directory: {path}"))),
        errno::ELOOP => {
            Some((ErrorCode::FailedPrecondition, format!("cyclic symlink or chain of too many links at \"{path}\"")))
        }
        _ => None,
    };
    let (operation, answer) = begin(&asked, &DetailOp::List { path: path.clone(), depth: depth.max(1) }).await?;
    let listed = match answer {
        Ok(DetailAnswer::Listed(listed)) => collect(listed, &operation).await,
        Ok(_) => Err(unexpected().into()),
        Err(failed) => Err(failed),
    };
    let mut found = match listed {
        Ok(found) => operation.finish(Ok(found)).await.map_err(refused)?.into_iter(),
        Err(failed) => {
            let error = file_error(&failed, asked.user.as_deref(), message);
            operation.fail(failed.fault).await;
            return Err(error);
        }
    };
    // The directory itself comes first.
    let top = found.next().map(|top| clean(&top.stat.path)).unwrap_or_default();
    let mut found: Vec<_> = found.collect();
    found.sort_by(|a, b| a.stat.path.split('/').cmp(b.stat.path.split('/')));
    let below = |detail: Detail| {
        let path = clean(&format!("{top}/{}", detail.stat.path));
        entry(detail, path)
    };
    Response::ok(ListDirResponse { entries: found.into_iter().map(below).collect() })
}

async fn collect(
    mut listed: futures::stream::BoxStream<'static, Result<Detail, DetailFault>>,
    operation: &Operation,
) -> Result<Vec<Detail>, DetailFault> {
    let mut share = operation.room().share();
    let mut found = Vec::new();
    while let Some(detail) = listed.next().await {
        if found.len() > ENTRIES_MAX {
            let fault = Fault::new(Code::TooLarge, "the directory has too many entries", "list a part of it");
            return Err(fault.into());
        }
        found.push(detail?);
        if !share.grow(found.len() * ENTRY_BYTES) {
            return Err(input::no_room().into());
        }
    }
    Ok(found)
}

/// Begins to watch a directory.
async fn watch(
    asked: &Asked,
    path: String,
    recursive: bool,
    entries: bool,
    network: bool,
) -> Result<(Operation, Watching), ConnectError> {
    let message = |errno| match errno {
        errno::ENOENT => Some((ErrorCode::NotFound, format!("path {path} not found"))),
        errno::ENOTDIR => Some((ErrorCode::InvalidArgument, format!("path {path} not a directory"))),
        errno::EREMOTE => {
            Some((ErrorCode::InvalidArgument, format!("cannot watch path on network filesystem: {path}")))
        }
        _ => None,
    };
    let op = DetailOp::Watch { path: path.clone(), recursive, network, entries };
    let (operation, answer) = begin(asked, &op).await?;
    match answer {
        Ok(DetailAnswer::Watching(watching)) => Ok((operation, watching)),
        Ok(_) => Err(refused(operation.fail(unexpected()).await)),
        Err(failed) => {
            let error = file_error(&failed, asked.user.as_deref(), message);
            operation.fail(failed.fault).await;
            Err(error)
        }
    }
}

/// The events of one change, in the order in which the clients expect several of one moment.
pub(super) fn events(top: &str, change: &Change, detail: Option<Box<Detail>>) -> Vec<FilesystemEvent> {
    let order = [
        (ChangeKind::Create, EventType::EVENT_TYPE_CREATE),
        (ChangeKind::Rename, EventType::EVENT_TYPE_RENAME),
        (ChangeKind::Attributes, EventType::EVENT_TYPE_CHMOD),
        (ChangeKind::Write, EventType::EVENT_TYPE_WRITE),
        (ChangeKind::Remove, EventType::EVENT_TYPE_REMOVE),
    ];
    let name = if change.path.is_empty() { "." } else { &change.path };
    let described = detail.map(|detail| {
        let path = clean(&format!("{top}/{}", change.path));
        entry(*detail, path)
    });
    let of = |(_, kind): &(ChangeKind, EventType)| FilesystemEvent {
        name: name.to_owned(),
        r#type: (*kind).into(),
        entry: match kind {
            // What is there now may be another file than the one that is gone.
            EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME => MessageField::none(),
            _ => described.clone().map_or_else(MessageField::none, MessageField::some),
        },
    };
    order.iter().filter(|(kind, _)| change.kinds.contains(kind)).map(of).collect()
}

/// News were lost: whoever watches has to look again.
pub(super) fn overflowed() -> ConnectError {
    ConnectError::data_loss("too much changed at once, and some events were lost")
}

/// `WatchDir`.
pub(super) async fn watch_dir(
    context: RequestContext,
    request: WatchDirRequest,
) -> ServiceResult<ServiceStream<WatchDirResponse>> {
    struct Watch {
        operation: Option<Operation>,
        watching: Watching,
        top: String,
        waiting: std::collections::VecDeque<Event>,
        every: std::time::Duration,
        fallen: BoxFuture<'static, Fault>,
    }
    let asked = asked(&context)?;
    let WatchDirRequest { path, recursive, include_entry, allow_network_mounts } = request;
    let (mut operation, watching) = watch(&asked, path, recursive, include_entry, allow_network_mounts).await?;
    operation.durable().await.map_err(refused)?;
    let top = clean(&watching.top.stat.path);
    let waiting = [StartEvent {}.into()].into();
    let fallen = operation.fallen();
    let watch = Watch { operation: Some(operation), watching, top, waiting, every: keepalive(&context), fallen };
    let events = stream::unfold(watch, |mut watch| async move {
        loop {
            if let Some(event) = watch.waiting.pop_front() {
                return Some((Ok(WatchDirResponse { event: Some(event) }), watch));
            }
            // Dropped with the stream when the client goes, and then recorded as that.
            watch.operation.as_ref()?;
            let told = tokio::select! {
                biased;
                told = watch.watching.next() => told,
                fault = &mut watch.fallen => Err(fault),
                () = tokio::time::sleep(watch.every) => {
                    watch.waiting.push_back(KeepAlive {}.into());
                    continue;
                }
            };
            let error = match told {
                Ok(WatchTold::Changed(change, _)) if change.kinds.contains(&ChangeKind::Overflow) => overflowed(),
                Ok(WatchTold::Changed(change, detail)) => {
                    let events = events(&watch.top, &change, detail).into_iter();
                    watch.waiting.extend(events.map(|event| Event::Filesystem(Box::new(event))));
                    continue;
                }
                Ok(WatchTold::Caught) => continue,
                // Broken off with its sandbox.
                Err(fault) if fault.code == Code::PlaceLost => std::future::pending().await,
                Err(fault) => error(&fault),
            };
            let operation = watch.operation.take()?;
            let fault = Fault::new(Code::FileFailed, error.message.clone().unwrap_or_default(), "");
            operation.fail(fault).await;
            return Some((Err(error), watch));
        }
    });
    Response::stream_ok(events.boxed())
}

/// `CreateWatcher`.
pub(super) async fn create_watcher(
    context: RequestContext,
    request: CreateWatcherRequest,
) -> ServiceResult<CreateWatcherResponse> {
    let asked = asked(&context)?;
    let CreateWatcherRequest { path, recursive, include_entry, allow_network_mounts } = request;
    let place = asked.app.e2b().watchers().place(asked.target.id).map_err(|fault| error(&fault))?;
    let (mut operation, watching) = watch(&asked, path, recursive, include_entry, allow_network_mounts).await?;
    let watcher_id = place.keep(watching, Arc::clone(&asked.target.place), asked.app.intake().room());
    operation.set_subject(&watcher_id);
    operation.finish(Ok(())).await.map_err(refused)?;
    Response::ok(CreateWatcherResponse { watcher_id })
}

/// `GetWatcherEvents`: all since the last time, up to what happened before this call.
pub(super) async fn get_watcher_events(
    context: RequestContext,
    request: GetWatcherEventsRequest,
) -> ServiceResult<GetWatcherEventsResponse> {
    let asked = asked(&context)?;
    let operation = watcher_op(&asked, "watcher_events", &request.watcher_id).await?;
    let taken = asked.app.e2b().watchers().take(asked.target.id, &request.watcher_id).await;
    finish_watcher(operation, taken, &request.watcher_id).await.and_then(|events| match events {
        Some(events) => Response::ok(GetWatcherEventsResponse { events }),
        None => Err(overflowed()),
    })
}

/// `RemoveWatcher`.
pub(super) async fn remove_watcher(
    context: RequestContext,
    request: RemoveWatcherRequest,
) -> ServiceResult<RemoveWatcherResponse> {
    let asked = asked(&context)?;
    let operation = watcher_op(&asked, "watcher_remove", &request.watcher_id).await?;
    let removed = asked.app.e2b().watchers().remove(asked.target.id, &request.watcher_id);
    finish_watcher(operation, removed, &request.watcher_id).await?;
    Response::ok(RemoveWatcherResponse {})
}

async fn watcher_op(asked: &Asked, op: &'static str, id: &str) -> Result<Operation, ConnectError> {
    let ask = Ask::of(Action::FileRead).place(asked.place()).detail("op", op);
    // A client's text, and no id of ours: not longer than one, and not a key that was put in its place.
    let id: String = asked.app.redactor().text(id, &[]).chars().take(40).collect();
    let ask = ask.subject(id);
    asked.app.begin(&asked.caller, ask).await.map_err(refused)
}

async fn finish_watcher<T>(operation: Operation, result: Result<T, Fault>, id: &str) -> Result<T, ConnectError> {
    operation.finish(result).await.map_err(|refusal| match refusal.fault.code {
        Code::NotFound => ConnectError::not_found(format!("watcher with id {id} not found")),
        _ => refused(refusal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_is_as_many_events_as_it_has_kinds() {
        let kinds = vec![ChangeKind::Write, ChangeKind::Create, ChangeKind::Rename];
        let change = Change { path: "d/f".into(), kinds, directory: false };
        let said: Vec<_> =
            events("/top", &change, None).into_iter().map(|event| (event.name, event.r#type.to_i32())).collect();
        assert_eq!(said, [("d/f".to_owned(), 1), ("d/f".to_owned(), 4), ("d/f".to_owned(), 2)]);
        let top = Change { path: String::new(), kinds: vec![ChangeKind::Attributes], directory: true };
        assert_eq!(events("/top", &top, None)[0].name, ".");
    }
}
