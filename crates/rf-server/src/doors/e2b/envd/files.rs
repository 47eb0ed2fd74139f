//! Files over plain HTTP: read, written, put together. Bytes are streamed both ways and never held whole.

use std::{collections::BTreeMap, io::Write as _, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header},
};
use bytes::Bytes;
use flate2::{
    Compression,
    write::{GzEncoder, MultiGzDecoder},
};
use futures::{StreamExt as _, stream, stream::BoxStream};
use rf_places::{
    detail::{DetailAnswer, DetailFault, DetailOp, OpenFile},
    place::Sink,
};
use rf_types::{Code, ExecId, Fault, FileKind};
use serde::{Deserialize, Serialize};

use super::{
    Asked,
    entry::{clean, name_of},
    failed, fault,
    filesystem::{begin_as, unexpected},
    json,
    multipart::Multipart,
    next_piece, parents,
    range::{self, Coding, Part},
    rpc::errno,
    upload_bounds,
};
use crate::{doors::files::streamed, input, operation::Operation};

/// What a header begins with that gives a file an attribute.
const METADATA: &str = "x-metadata-";
/// Longest name of an attribute, and most bytes of all; specified by the clients' protocol.
const KEY_BYTES_MAX: usize = 246;
const METADATA_BYTES_MAX: usize = 4_096;
/// Bytes that are unpacked at once: at most some thousand times as many come out.
const PACKED_BYTES: usize = 4 << 10;
/// What is kept of a file that came in, beside its path, bytes. Chosen above what it is.
const FILE_BYTES: usize = 256;
/// Most files put together by one call. Chosen.
const SOURCES_MAX: usize = 1_000;
/// What is said where no room is left.
const NO_SPACE: &str = "not enough disk space available";

/// Which file, as whom, and by what right.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Query {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) signature_expiration: Option<i64>,
}

impl Query {
    pub(super) fn of(uri: &Uri) -> Result<Self, Fault> {
        input::query(uri)
    }

    /// The user that is named; an empty name is none.
    fn user(&self) -> Option<&str> {
        self.username.as_deref().filter(|name| !name.is_empty())
    }
}

/// A file that was written.
#[derive(Debug, Serialize)]
struct Written {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl Written {
    fn new(path: &str, metadata: BTreeMap<String, String>) -> Self {
        let path = clean(path);
        Self { name: name_of(&path).to_owned(), path, r#type: "file", metadata }
    }
}

/// What a failed operation on a file is: as for every one.
fn refused(why: &DetailFault, path: &str, user: Option<&str>) -> Response<Body> {
    if rf_places::is_no_such_user(&why.fault) {
        let user = user.unwrap_or_default();
        let message = format!("error looking up user '{user}': user: unknown user {user}");
        return failed(StatusCode::UNAUTHORIZED, &message);
    }
    match (why.errno, why.fault.code) {
        (Some(errno::EISDIR), _) => failed(StatusCode::BAD_REQUEST, &format!("path is a directory: {path}")),
        (Some(errno::EINVAL), _) => failed(
            StatusCode::BAD_REQUEST,
            &format!("failed to expand path '{path}': cannot expand user-specific home dir"),
        ),
        (Some(errno::EACCES), _) => failed(StatusCode::FORBIDDEN, &why.fault.message),
        (Some(errno::ENOENT), _) => failed(StatusCode::NOT_FOUND, &why.fault.message),
        (_, Code::DiskFull) => failed(StatusCode::INSUFFICIENT_STORAGE, NO_SPACE),
        (Some(_), _) => failed(StatusCode::INTERNAL_SERVER_ERROR, &why.fault.message),
        (None, _) => fault(&why.fault),
    }
}

/// Opens a file to read.
async fn open(asked: &Asked, path: &str, user: Option<&str>) -> Result<(Operation, OpenFile), Response<Body>> {
    let op = DetailOp::Read { path: path.to_owned() };
    match begin_as(asked, &op, user).await {
        Ok((operation, Ok(DetailAnswer::Opened(file)))) => Ok((operation, file)),
        Ok((operation, Ok(_))) => Err(fault(&operation.fail(unexpected()).await.fault)),
        Ok((operation, Err(why))) => {
            let response = match why.errno {
                Some(errno::ENOENT) => failed(StatusCode::NOT_FOUND, &format!("path '{path}' does not exist")),
                Some(errno::EISDIR) => failed(StatusCode::BAD_REQUEST, &format!("path '{path}' is a directory")),
                _ => refused(&why, path, user),
            };
            operation.fail(why.fault).await;
            Err(response)
        }
        Err(why) => Err(fault(&why)),
    }
}

/// `GET /files`.
pub(super) async fn read(asked: Asked, request: Request<Body>) -> Response<Body> {
    let query = match Query::of(request.uri()) {
        Ok(query) => query,
        Err(why) => return fault(&why),
    };
    let headers = request.headers();
    let path = query.path.as_deref().unwrap_or("");
    let (mut operation, file) = match open(&asked, path, query.user()).await {
        Ok(opened) => opened,
        Err(response) => return response,
    };
    let coding = match range::coding(headers) {
        Coding::Gzip if range::is_special(headers) => Coding::None,
        coding => coding,
    };
    if coding == Coding::None {
        let why = Fault::invalid("no acceptable encoding found, supported: [gzip]");
        let refusal = operation.fail(why).await;
        return failed(StatusCode::NOT_ACCEPTABLE, &refusal.fault.message);
    }
    if let Err(refusal) = operation.durable().await {
        return fault(&refusal.fault);
    }
    let (size, modified) = (file.stat.size, file.stat.modified_at / 1_000);
    let mut response = Response::new(Body::empty());
    describe(response.headers_mut(), &file.stat.path, modified);
    let (offset, length) = match range::part(headers, size, modified) {
        Part::Whole => (0, size),
        Part::Some(offset, length) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            content_range(response.headers_mut(), &format!("bytes {offset}-{}/{size}", offset + length - 1));
            (offset, length)
        }
        Part::Unsatisfiable => {
            let refusal = operation.fail(Fault::invalid("no byte of the file is asked for")).await;
            let mut response = failed(StatusCode::RANGE_NOT_SATISFIABLE, &refusal.fault.message);
            content_range(response.headers_mut(), &format!("bytes */{size}"));
            return response;
        }
        other @ (Part::NotModified | Part::Failed) => {
            let unchanged = other == Part::NotModified;
            *response.status_mut() = if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::PRECONDITION_FAILED };
            return match operation.finish(Ok(())).await {
                Ok(()) => response,
                Err(refusal) => fault(&refusal.fault),
            };
        }
    };
    let bytes = file.bytes(offset, Some(length));
    if coding == Coding::Gzip {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *response.body_mut() = streamed(operation, packed(bytes), None);
        return response;
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    *response.body_mut() = streamed(operation, bytes, Some(length));
    response
}

/// What every answer with a file says of it.
fn describe(headers: &mut HeaderMap, path: &str, modified: u64) {
    // Never a type that a browser would show or run: other users' files may come from this very host's name.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(value) = HeaderValue::try_from(disposition(name_of(path))) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    if let Some(value) = range::http_date(modified).and_then(|date| HeaderValue::try_from(date).ok()) {
        headers.insert(header::LAST_MODIFIED, value);
    }
}

fn content_range(headers: &mut HeaderMap, text: &str) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(header::CONTENT_RANGE, value);
    }
}

/// A file's name as a header has it: a token, a quoted string, or its bytes in percent signs (RFC 6266, RFC 8187).
fn disposition(name: &str) -> String {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.bytes().all(token) {
        return format!("inline; filename={name}");
    }
    if name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        return format!("inline; filename=\"{quoted}\"");
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte);
    let escaped: String =
        name.bytes().map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") }).collect();
    format!("inline; filename*=utf-8''{escaped}")
}

/// The same bytes with gzip.
fn packed(bytes: BoxStream<'static, Result<Bytes, Fault>>) -> BoxStream<'static, Result<Bytes, Fault>> {
    let broken = |_| Fault::new(Code::Internal, "the bytes could not be packed", "");
    let state = Some((bytes, GzEncoder::new(Vec::new(), Compression::fast())));
    stream::unfold(state, move |state| async move {
        let (mut bytes, mut encoder) = state?;
        loop {
            let piece = match bytes.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(why)) => return Some((Err(why), None)),
                None => return Some((encoder.finish().map(Bytes::from).map_err(broken), None)),
            };
            if let Err(why) = encoder.write_all(&piece).map_err(broken) {
                return Some((Err(why), None));
            }
            if !encoder.get_ref().is_empty() {
                let out = std::mem::take(encoder.get_mut());
                return Some((Ok(out.into()), Some((bytes, encoder))));
            }
        }
    })
    .boxed()
}

/// A request's body, unpacked where it came packed.
pub(super) struct Source {
    body: Body,
    idle: Duration,
    packed: Option<(MultiGzDecoder<Vec<u8>>, Bytes)>,
}

impl Source {
    pub(super) fn new(body: Body, idle: Duration, gzip: bool) -> Self {
        Self { body, idle, packed: gzip.then(|| (MultiGzDecoder::new(Vec::new()), Bytes::new())) }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// `timed_out`; `invalid_request` for what is no gzip, or a client that broke off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some((decoder, rest)) = &mut self.packed else { return next_piece(&mut self.body, self.idle).await };
        let broken = |_| Fault::invalid("error decompressing request body: it is no gzip, or breaks off");
        loop {
            if rest.is_empty() {
                match next_piece(&mut self.body, self.idle).await? {
                    Some(piece) => *rest = piece,
                    None => {
                        decoder.try_finish().map_err(broken)?;
                        let last = std::mem::take(decoder.get_mut());
                        return Ok((!last.is_empty()).then(|| last.into()));
                    }
                }
            }
            let some = rest.split_to(rest.len().min(PACKED_BYTES));
            decoder.write_all(&some).map_err(broken)?;
            if !decoder.get_ref().is_empty() {
                return Ok(Some(std::mem::take(decoder.get_mut()).into()));
            }
        }
    }
}

/// The attributes that a request gives its files.
fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, String> {
    let mut metadata = BTreeMap::new();
    let mut total = 0;
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(METADATA) else { continue };
        let value = headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let printable = |byte: &u8| matches!(byte, b' '..=b'~');
        if key.is_empty() {
            continue;
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(format!("invalid metadata: key is longer than {KEY_BYTES_MAX} bytes"));
        }
        if !value.iter().all(printable) || key.contains('=') {
            return Err(format!("invalid metadata: value of `{key}` is not printable ASCII"));
        }
        total += key.len() + value.len();
        metadata.insert(key.to_owned(), String::from_utf8_lossy(value).into_owned());
    }
    if total > METADATA_BYTES_MAX {
        return Err(format!("invalid metadata: {total} bytes, but at most {METADATA_BYTES_MAX} fit"));
    }
    Ok(metadata)
}

/// One or more files on their way in.
struct Upload<'a> {
    asked: &'a Asked,
    user: Option<&'a str>,
    metadata: BTreeMap<String, String>,
    bytes_max: u64,
    taken: u64,
}

/// Where an upload's bytes come from.
enum From<'a> {
    Raw(&'a mut Source),
    Part(&'a mut Multipart),
}

impl From<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        match self {
            Self::Raw(source) => source.next().await,
            Self::Part(form) => form.piece().await,
        }
    }
}

impl Upload<'_> {
    /// Writes one file; its absolute path.
    async fn file(&mut self, path: &str, from: From<'_>) -> Result<String, Response<Body>> {
        let op = DetailOp::Write { path: path.to_owned(), attributes: self.metadata.clone() };
        let mut begun = begin_as(self.asked, &op, self.user).await;
        // A file that is to be made can only lack directories above it, which its user may not make.
        if matches!(&begun, Ok((_, Err(why))) if why.errno == Some(errno::ENOENT))
            && parents::make(self.asked, path, self.user).await
        {
            if let Ok((operation, Err(why))) = begun {
                operation.fail(why.fault).await;
            }
            begun = begin_as(self.asked, &op, self.user).await;
        }
        let (mut operation, sink, there) = match begun {
            Ok((operation, Ok(DetailAnswer::Sink(there, sink)))) => (operation, sink, there),
            Ok((operation, Ok(_))) => return Err(fault(&operation.fail(unexpected()).await.fault)),
            Ok((operation, Err(why))) => {
                let response = refused(&why, path, self.user);
                operation.fail(why.fault).await;
                return Err(response);
            }
            Err(why) => return Err(fault(&why)),
        };
        let before = self.taken;
        let place = &self.asked.target.place;
        let poured = tokio::select! {
            biased;
            poured = pour(sink, from, self.bytes_max, &mut self.taken) => poured,
            why = place.lost() => Err(why),
            why = operation.fallen() => Err(why),
        };
        operation.detail("bytes", self.taken - before);
        match operation.finish(poured).await {
            Ok(()) => Ok(there),
            Err(refusal) => Err(refused(&refusal.fault.into(), path, self.user)),
        }
    }
}

async fn pour(mut sink: Box<dyn Sink>, mut from: From<'_>, max: u64, taken: &mut u64) -> Result<(), Fault> {
    while let Some(piece) = from.next().await? {
        *taken += piece.len() as u64;
        if *taken > max {
            return Err(input::too_large(max));
        }
        sink.write(piece).await?;
    }
    sink.finish().await
}

/// `POST /files`.
pub(super) async fn write(asked: Asked, request: Request<Body>) -> Response<Body> {
    match upload(&asked, request).await {
        Ok(written) => json(&written),
        Err(response) => response,
    }
}

async fn upload(asked: &Asked, request: Request<Body>) -> Result<Vec<Written>, Response<Body>> {
    let bad = |message: &str| failed(StatusCode::BAD_REQUEST, message);
    let (parts, body) = request.into_parts();
    let query = Query::of(&parts.uri).map_err(|why| fault(&why))?;
    let gzip = match text(&parts.headers, header::CONTENT_ENCODING).map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") => false,
        Some("gzip") => true,
        Some(other) => {
            return Err(bad(&format!(
                "error decompressing request body: unsupported Content-Encoding: {other}, supported: [gzip]"
            )));
        }
    };
    let metadata = metadata(&parts.headers).map_err(|message| bad(&message))?;
    let content_type = text(&parts.headers, header::CONTENT_TYPE).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (idle, bytes_max) = upload_bounds(&asked.app);
    let mut source = Source::new(body, idle, gzip);
    let mut upload = Upload { asked, user: query.user(), metadata, bytes_max, taken: 0 };
    if media_type == "application/octet-stream" {
        let path = query.path.as_deref().ok_or_else(|| bad("path query parameter is required for raw body upload"))?;
        let there = upload.file(path, From::Raw(&mut source)).await?;
        return Ok(vec![Written::new(&there, upload.metadata)]);
    }
    if !media_type.starts_with("multipart/") {
        return Err(bad(&format!(
            "unsupported content type: {content_type}, expected multipart/form-data or application/octet-stream"
        )));
    }
    let mut form = Multipart::new(source, content_type).map_err(|why| fault(&why))?;
    let mut written: Vec<Written> = Vec::new();
    let mut paths = std::collections::BTreeSet::new();
    let (mut held, mut kept) = (asked.app.intake().room().share(), 0);
    while let Some(part) = form.part().await.map_err(|why| fault(&why))? {
        if part.name != "file" {
            continue;
        }
        let path = query.path.clone().or(part.filename).unwrap_or_default();
        // Of each file its path is kept until the answer, in two forms.
        kept += 2 * path.len() + FILE_BYTES;
        if !held.grow(kept) {
            return Err(fault(&input::no_room()));
        }
        if !paths.is_empty() {
            // The request itself was counted for the first.
            asked.app.paced(&asked.caller).await.map_err(|why| fault(&why))?;
        }
        // Before it is opened, and emptied: the same text is the same file.
        if !paths.insert(path.clone()) {
            return Err(bad(&format!(
                "you cannot upload multiple files to the same path '{path}' in one upload request, only the first \
                 specified file was uploaded"
            )));
        }
        let there = upload.file(&path, From::Part(&mut form)).await?;
        written.push(Written::new(&there, upload.metadata.clone()));
    }
    Ok(written)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// What is to be put together.
#[derive(Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

/// `POST /files/compose`: files one after the other into a new one, which takes its place when it is whole; then they are
/// removed.
pub(super) async fn compose(asked: Asked, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let wanted: Compose = match asked.app.intake().json(&parts.headers, body).await {
        Ok(wanted) => wanted,
        Err(why) => return failed(StatusCode::BAD_REQUEST, &format!("invalid request body: {}", why.message)),
    };
    match put_together(&asked, &wanted).await {
        Ok(written) => json(&written),
        Err(response) => response,
    }
}

/// Does one operation that hands nothing on.
async fn done(asked: &Asked, op: &DetailOp, path: &str, user: Option<&str>) -> Result<DetailAnswer, Response<Body>> {
    match begin_as(asked, op, user).await {
        Ok((operation, Ok(answer))) => match operation.finish(Ok(())).await {
            Ok(()) => Ok(answer),
            Err(refusal) => Err(fault(&refusal.fault)),
        },
        Ok((operation, Err(why))) => {
            let response = match why.errno {
                Some(errno::ENOENT) => failed(StatusCode::NOT_FOUND, &format!("source file not found: {path}")),
                _ => refused(&why, path, user),
            };
            operation.fail(why.fault).await;
            Err(response)
        }
        Err(why) => Err(fault(&why)),
    }
}

async fn put_together(asked: &Asked, wanted: &Compose) -> Result<Written, Response<Body>> {
    let bad = |message: &str| failed(StatusCode::BAD_REQUEST, message);
    let Compose { source_paths, destination, username } = wanted;
    let user = username.as_deref().filter(|name| !name.is_empty());
    if source_paths.is_empty() {
        return Err(bad("source_paths must not be empty"));
    }
    if source_paths.len() > SOURCES_MAX {
        return Err(bad(&format!("source_paths must be at most {SOURCES_MAX}")));
    }
    if destination.is_empty() {
        return Err(bad("destination is required"));
    }
    let mut sources = Vec::new();
    for path in source_paths {
        // Each is as much as a request of its own.
        asked.app.paced(&asked.caller).await.map_err(|why| fault(&why))?;
        let op = DetailOp::Stat { path: path.clone() };
        let DetailAnswer::Described(detail) = done(asked, &op, path, user).await? else {
            return Err(fault(&unexpected()));
        };
        if detail.target.is_none_or(|target| target.kind != FileKind::File) {
            return Err(bad(&format!("source path is not a regular file: {path}")));
        }
        sources.push(clean(&detail.stat.path));
    }
    // Nobody guesses it, so it is nobody's file.
    let beside = format!("{destination}.e2b-compose.{}.tmp", ExecId::random());
    let result = fill(asked, &beside, &sources, destination, user).await;
    if result.is_err() {
        // It may not even be there.
        let _ = done(asked, &DetailOp::Remove { path: beside.clone() }, &beside, user).await;
    }
    let there = result?;
    for source in &sources {
        // As long as the new file is whole, one that stays is no failure.
        let _ = done(asked, &DetailOp::Remove { path: source.clone() }, source, user).await;
    }
    Ok(Written::new(&there, BTreeMap::new()))
}

/// Writes the sources into a file beside the destination and puts it there; the destination's absolute path.
async fn fill(
    asked: &Asked,
    beside: &str,
    sources: &[String],
    destination: &str,
    user: Option<&str>,
) -> Result<String, Response<Body>> {
    let op = DetailOp::Write { path: beside.to_owned(), attributes: BTreeMap::new() };
    let (mut writing, mut sink, there) = match begin_as(asked, &op, user).await {
        Ok((operation, Ok(DetailAnswer::Sink(there, sink)))) => (operation, sink, there),
        Ok((operation, Ok(_))) => return Err(fault(&operation.fail(unexpected()).await.fault)),
        Ok((operation, Err(why))) => {
            let response = refused(&why, destination, user);
            operation.fail(why.fault).await;
            return Err(response);
        }
        Err(why) => return Err(fault(&why)),
    };
    let suffix = beside.len() - destination.len();
    let goal = clean(there.get(..there.len().saturating_sub(suffix)).unwrap_or_default());
    let mut total = 0;
    for source in sources {
        if *source == goal {
            writing.fail(Fault::invalid("a source is the destination")).await;
            let message = format!("source path \"{source}\" cannot be the same as destination");
            return Err(failed(StatusCode::BAD_REQUEST, &message));
        }
        let (reading, file) = open(asked, source, user).await?;
        let mut bytes = file.bytes(0, None);
        let mut copied = Ok(());
        while let Some(piece) = bytes.next().await {
            copied = match piece {
                Ok(piece) => {
                    total += piece.len() as u64;
                    sink.write(piece).await
                }
                Err(why) => Err(why),
            };
            if copied.is_err() {
                break;
            }
        }
        if let Err(refusal) = reading.finish(copied).await {
            writing.fail(refusal.fault.clone()).await;
            return Err(refused(&refusal.fault.into(), source, user));
        }
    }
    writing.detail("bytes", total);
    let finished = sink.finish().await;
    if let Err(refusal) = writing.finish(finished).await {
        return Err(refused(&refusal.fault.into(), destination, user));
    }
    let op = DetailOp::Move { from: beside.to_owned(), to: destination.to_owned() };
    done(asked, &op, destination, user).await?;
    Ok(goal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_is_written_so_that_no_header_breaks() {
        for (name, expected) in [
            ("a.txt", "inline; filename=a.txt"),
            ("a b.txt", "inline; filename=\"a b.txt\""),
            ("q\"\\.txt", "inline; filename=\"q\\\"\\\\.txt\""),
            ("ä\n.txt", "inline; filename*=utf-8''%C3%A4%0A.txt"),
            ("", "inline; filename=\"\""),
        ] {
            assert_eq!(disposition(name), expected);
            assert!(HeaderValue::try_from(disposition(name)).is_ok());
        }
    }

    #[test]
    fn metadata_is_printable_and_bounded() {
        let of = |pairs: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            metadata(&headers)
        };
        assert_eq!(of(&[("x-metadata-author", b"mish"), ("x-other", b"y")]).unwrap()["author"], "mish");
        assert_eq!(of(&[("x-metadata-", b"v")]).unwrap(), BTreeMap::new());
        assert!(of(&[("x-metadata-a", b"\xff")]).is_err());
        assert!(of(&[("x-metadata-a", b"tab\t")]).is_err());
        assert!(of(&[("x-metadata-a", &[b'v'; METADATA_BYTES_MAX])]).is_err());
        assert!(of(&[("x-metadata-a", &[b'v'; METADATA_BYTES_MAX - 1])]).is_ok());
        let long: &'static str = Box::leak(format!("x-metadata-{}", "k".repeat(KEY_BYTES_MAX + 1)).into_boxed_str());
        assert!(of(&[(long, b"v")]).is_err());
    }

    async fn through(packed: &[u8], piece: usize) -> Result<Vec<u8>, Fault> {
        let pieces: Vec<_> =
            (packed.chunks(piece).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))).collect();
        let body = Body::from_stream(stream::iter(pieces));
        let mut source = Source::new(body, Duration::from_secs(5), true);
        let mut all = Vec::new();
        while let Some(piece) = source.next().await? {
            assert!(piece.len() < 5 << 20, "bounded, whatever comes");
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn what_came_packed_is_unpacked_in_bounded_pieces() {
        let all: Vec<u8> = vec![7; 20 << 20];
        let pieces = stream::iter([Ok(Bytes::from(all.clone()))]).boxed();
        let packed: Vec<u8> = packed(pieces).map(Result::unwrap).collect::<Vec<_>>().await.concat();
        assert!(packed.len() < 1 << 20);
        for piece in [1000, 1 << 20] {
            assert!(through(&packed, piece).await.unwrap() == all);
        }
        assert!(through(&packed[..packed.len() - 1], 1000).await.is_err(), "broken off");
        assert!(through(b"no gzip at all", 5).await.is_err());
        assert!(through(b"", 1).await.is_err(), "not even a head");
    }
}
