//! Templates: list; import from a registry or an uploaded archive, and remove, for operators.
//!
//! The server gets an image's layers into blobs whose digests were verified and hands their descriptors to the warden,
//! whose unpacker has no rights; nothing is unpacked here.

use std::{
    collections::HashMap,
    io::{self, Read},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use rf_images::{Blobs, Digest, Image, ImageCaps, ImageError, Progress, Reference, Registry, import};
use rf_policy::Action;
use rf_store::{NewTemplate, Template};
use rf_types::{Code, Fault, TemplateConfig, TemplateName};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::List,
    app::{App, Caller, Named, json},
    doors::account::whole,
    input::{self, Json},
    operation::{Ask, Operation},
    refusal::Refusal,
    registries::{Registries, RegistryConfig},
};

/// Pieces of an upload that wait for the reader. Chosen: HTTP's pieces are small.
const PIECES_MAX: usize = 64;

/// The routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(templates, template_import))
        .routes(routes!(template_read, template_upload, template_remove))
        .routes(routes!(template_progress))
}

/// Where images are kept and had from.
pub struct Images {
    blobs: Arc<Blobs>,
    registry: OnceLock<Registry>,
    registries: Registries,
    /// Imports, one after the other: each may take a disk's and a line's whole time.
    turn: tokio::sync::Mutex<()>,
    /// How far the imports under way are, by the template's name; each operator's own are few.
    under_way: Mutex<HashMap<TemplateName, ImportAnswer>>,
}

impl Images {
    /// Opens the blobs in `dir`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: &Path, registries: &[RegistryConfig]) -> Result<Self, Fault> {
        let blobs = Arc::new(Blobs::open(dir).map_err(|error| fault(&error))?);
        Ok(Self {
            blobs,
            registry: OnceLock::new(),
            registries: Registries::new(registries),
            turn: tokio::sync::Mutex::new(()),
            under_way: Mutex::default(),
        })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<TemplateName, ImportAnswer>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes every blob but these. Only within one's turn, so that no import loses what it needs.
    fn keep_only(&self, blobs: impl Iterator<Item = Digest>) {
        match self.blobs.sweep(&blobs.collect()) {
            Ok(freed) => tracing::debug!(freed, "removed blobs of images"),
            // The import is as good without; the next one tries again.
            Err(error) => tracing::warn!(%error, "cannot remove blobs of images"),
        }
    }

    /// Made when it is first needed: it reads the system's certificates.
    fn registry(&self) -> Result<&Registry, ImageError> {
        if self.registry.get().is_none() {
            let registry = Registry::new(self.registries.options())?;
            // Whoever came first has set one that is as good.
            let _ = self.registry.set(registry);
        }
        self.registry.get().ok_or_else(|| ImageError::Absent(String::new()))
    }
}

/// A template.
#[derive(Debug, Serialize, ToSchema)]
struct TemplateAnswer {
    /// Its name.
    #[schema(value_type = String)]
    name: TemplateName,
    /// Digests of its layers, lowest first; none for `host` and `base`.
    layers: Vec<String>,
    /// What it was made from.
    source: String,
    /// The digest that names its content.
    digest: Option<String>,
    /// When it was imported, milliseconds since 1970.
    created_at: Option<u64>,
    /// How its image says that programs are started.
    #[schema(value_type = TemplateConfigSchema)]
    config: TemplateConfig,
}

/// What an exec gets where its request says nothing.
#[derive(Serialize, ToSchema)]
#[schema(as = TemplateConfig)]
struct TemplateConfigSchema {
    /// `NAME=value`.
    env: Vec<String>,
    /// A name or id, maybe with `:group`; empty: the sandbox's default user.
    user: String,
    /// The working directory; empty: the user's home.
    cwd: String,
    /// With `cmd` behind it, what `POST /v1/run` runs when no command is given.
    entrypoint: Vec<String>,
    /// See `entrypoint`.
    cmd: Vec<String>,
}

impl From<Template> for TemplateAnswer {
    fn from(template: Template) -> Self {
        let Template { name, layers, source, digest, created, config } = template;
        Self { name, layers, source, digest: Some(digest), created_at: Some(created), config }
    }
}

impl TemplateAnswer {
    /// One that is always there, in no store: it is made from what the host has.
    fn made(name: TemplateName, source: &str) -> Self {
        let source = source.to_owned();
        Self { name, layers: Vec::new(), source, digest: None, created_at: None, config: TemplateConfig::default() }
    }

    fn all_made() -> [Self; 2] {
        [
            Self::made(TemplateName::host(), "the server's own /usr and a synthetic /etc"),
            Self::made(TemplateName::base(), "`host`, and what E2B's clients expect of a sandbox"),
        ]
    }
}

/// The templates that sandboxes can be made from.
#[utoipa::path(get, path = "/v1/templates", responses((status = 200, body = List<TemplateAnswer>)))]
async fn templates(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let operation = app.begin(&caller, Ask::of(Action::TemplateRead).detail("op", "list")).await?;
    let rows = operation.finish(app.store().template_list(caller.who.scope()).map_err(Fault::from)).await?;
    // One of an earlier version that was given such a name cannot be had any more.
    let imported = rows.into_iter().filter(|template| !template.name.is_built_in()).map(TemplateAnswer::from);
    let items = TemplateAnswer::all_made().into_iter().chain(imported);
    Ok(json(StatusCode::OK, &whole(items)))
}

/// One template.
#[utoipa::path(get, path = "/v1/templates/{name}", responses((status = 200, body = TemplateAnswer)))]
async fn template_read(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let name: TemplateName = input::id("template", &name)?;
    let operation =
        app.begin(&caller, Ask::of(Action::TemplateRead).subject(app.redactor().text(name.as_str(), &[]))).await?;
    let found = match TemplateAnswer::all_made().into_iter().find(|made| made.name == name) {
        Some(made) => Ok(made),
        None => app.store().template_get(caller.who.scope(), &name).map(TemplateAnswer::from).map_err(|error| {
            let fault = Fault::from(error);
            // Templates are everybody's, so there is no other user whose it could be.
            let hint =
                if fault.code == Code::NotFound { "see GET /v1/templates".to_owned() } else { fault.hint.clone() };
            Fault { hint, ..fault }
        }),
    };
    Ok(json(StatusCode::OK, &operation.finish(found).await?))
}

impl App {
    /// The command that a template's image starts when none is given.
    ///
    /// # Errors
    /// `invalid_request` when it has none; `template_unavailable`.
    pub fn own_command(&self, caller: &Caller, name: Option<&TemplateName>) -> Result<Vec<String>, Fault> {
        let host = TemplateName::host();
        let name = name.unwrap_or(&host);
        self.check_template(caller, name)?;
        let config = match name.is_built_in() {
            true => TemplateConfig::default(),
            false => self.store().template_get(caller.who.scope(), name).map_err(Fault::from)?.config,
        };
        let command = config.command();
        if command.is_empty() {
            let what = format!("there is no command, and the template `{name}` has none of its own");
            let hint = "give a command (`argv` or `shell`), or a template whose image has one";
            return Err(Fault::new(Code::InvalidRequest, what, hint));
        }
        Ok(command)
    }
}

/// How far an import is.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
struct ImportAnswer {
    /// The template's name.
    #[schema(value_type = String)]
    name: TemplateName,
    /// What it is made from.
    source: String,
    /// `waiting` for other imports, `fetching` or `unpacking`.
    step: String,
    /// Bytes that are here, or unpacked.
    bytes_done: u64,
    /// Bytes in all; 0 while that is not known.
    bytes_total: u64,
}

/// An import under way; its state is forgotten with it.
struct UnderWay {
    app: App,
    name: TemplateName,
}

impl UnderWay {
    /// Notes an import. A second of the same name is refused: which of the two the name would be of in the end is
    /// nobody's to guess, and the first goes on also when its client has gone.
    fn begin(app: &App, name: &TemplateName, source: String) -> Result<Self, Fault> {
        let mut all = app.images().under_way();
        if let Some(other) = all.get(name) {
            return Err(Fault::new(
                Code::Conflict,
                format!("the template `{name}` is being imported already, from `{}`", other.source),
                format!("wait until that is done; GET /v1/templates/{name}/import says how far it is"),
            ));
        }
        let step = "waiting".to_owned();
        let state = ImportAnswer { name: name.clone(), source, step, bytes_done: 0, bytes_total: 0 };
        all.insert(name.clone(), state);
        Ok(Self { app: app.clone(), name: name.clone() })
    }

    fn tell(&self, step: &str, progress: Progress) {
        if let Some(state) = self.app.images().under_way().get_mut(&self.name) {
            let Progress { bytes_done, bytes_total } = progress;
            *state = ImportAnswer { step: step.to_owned(), bytes_done, bytes_total, ..state.clone() };
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.app.images().under_way().remove(&self.name);
    }
}

/// How far the import of a template is, while it goes on. For operators.
#[utoipa::path(get, path = "/v1/templates/{name}/import", responses((status = 200, body = ImportAnswer)))]
async fn template_progress(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let name: TemplateName = input::id("template", &name)?;
    let operation = app
        .begin(
            &caller,
            Ask::of(Action::TemplateManage).subject(app.redactor().text(name.as_str(), &[])).detail("op", "progress"),
        )
        .await?;
    let state = app.images().under_way().get(&name).cloned();
    Ok(json(StatusCode::OK, &operation.finish(state.ok_or_else(|| Fault::not_found("import"))).await?))
}

/// An image to import from a registry.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TemplateAsk {
    /// The template's name; one that is there is replaced for sandboxes made from then on.
    #[schema(value_type = String)]
    name: TemplateName,
    /// The image, such as `docker.io/library/debian:12`.
    image: String,
}

/// What a client may know of why an image was not had; the log has the whole chain.
fn fault(error: &ImageError) -> Fault {
    log(error);
    error.fault()
}

fn log(error: &ImageError) {
    tracing::warn!(error = error as &dyn std::error::Error, "an image was not had");
}

fn check_name(name: &TemplateName) -> Result<(), Fault> {
    if name.is_built_in() {
        let what = format!("the template `{name}` is made by the server");
        return Err(Fault::new(Code::Conflict, what, "choose another name"));
    }
    Ok(())
}

/// Imports a template from a registry; answered when it can be used. For operators.
#[utoipa::path(post, path = "/v1/templates", request_body = TemplateAsk,
    responses((status = 201, body = TemplateAnswer)))]
async fn template_import(
    State(app): State<App>,
    caller: Caller,
    Json(ask): Json<TemplateAsk>,
) -> Result<Response<Body>, Refusal> {
    let named =
        Ask::of(Action::TemplateManage).subject(app.redactor().text(ask.name.as_str(), &[])).detail("op", "import");
    let operation = app.begin(&caller, named.detail("image", app.redactor().text(&ask.image, &[]))).await?;
    // It goes on when the client does not wait: what came in is not fetched twice.
    let work = {
        let app = app.clone();
        let caller = caller.again();
        tokio::spawn(async move {
            let result = pull(&app, &caller, &operation, &ask).await;
            operation.finish(result).await
        })
    };
    Ok(json(StatusCode::CREATED, &joined(work).await?))
}

async fn joined(work: tokio::task::JoinHandle<Result<TemplateAnswer, Refusal>>) -> Result<TemplateAnswer, Refusal> {
    work.await.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "an import ended early", "").into()))
}

async fn pull(app: &App, caller: &Caller, operation: &Operation, ask: &TemplateAsk) -> Result<TemplateAnswer, Fault> {
    check_name(&ask.name)?;
    let reference: Reference = ask.image.parse().map_err(|error| {
        Fault::new(Code::InvalidRequest, format!("`image`: {error}"), "give it as `registry/name:tag`")
    })?;
    let images = app.images();
    let under_way = UnderWay::begin(app, &ask.name, reference.to_string())?;
    let _turn = images.turn.lock().await;
    let registry = images.registry().map_err(|error| fault(&error))?;
    let (caps, who) = (ImageCaps::STANDARD, images.registries.credentials(reference.registry()));
    let fetching = |progress: Progress| under_way.tell("fetching", progress);
    let image = registry.pull(&reference, who, &images.blobs, &caps, &fetching).await;
    let image = image.map_err(|error| {
        log(&error);
        images.registries.explain(&reference, &error)
    })?;
    install(app, caller, operation, &under_way, &image).await
}

/// Has the warden unpack what it has not yet, names the template there and here.
async fn install(
    app: &App,
    caller: &Caller,
    operation: &Operation,
    under_way: &UnderWay,
    image: &Image,
) -> Result<TemplateAnswer, Fault> {
    let name = &under_way.name;
    let state = app.images().under_way().get(name).cloned();
    let source = state.map(|state| state.source).unwrap_or_default();
    operation.permit().require(Action::TemplateManage)?;
    let warden = app.places().warden();
    let mut layers = Vec::with_capacity(image.layers.len());
    let mut progress = Progress { bytes_done: 0, bytes_total: image.layers.iter().map(|layer| layer.size).sum() };
    for layer in &image.layers {
        under_way.tell("unpacking", progress);
        progress.bytes_done += layer.size;
        let blob = app.images().blobs.get(&layer.blob).map_err(|error| fault(&error))?;
        let missing = || Fault::new(Code::TemplateUnavailable, "a layer of the image went missing", "import it again");
        warden.unpack_layer(layer.diff_id.to_string(), blob.ok_or_else(missing)?.into()).await?;
        layers.push(layer.diff_id.to_string());
    }
    warden.set_template(name.clone(), layers.clone()).await?;
    // The warden has the layers; what stays here only spares fetching those of the latest image again.
    app.images().keep_only(image.layers.iter().map(|layer| layer.blob));
    let digest = image.digest.to_string();
    let new = NewTemplate { name, layers: &layers, source: &source, digest: &digest, config: &image.config };
    Ok(app.store().template_put(caller.operator()?, &new, app.now())?.into())
}

/// What an upload is.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct UploadQuery {
    /// `root`: a tar of a root, plain, gzip or zstd; `image`: what `docker save` writes, or a tar of an OCI layout. If
    /// not given, it shows by what is in it.
    #[param(inline)]
    format: Option<UploadFormat>,
}

/// What an upload is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UploadFormat {
    /// A tar of a root.
    Root,
    /// A saved image.
    Image,
}

/// Imports a template from an uploaded archive. For operators.
#[utoipa::path(put, path = "/v1/templates/{name}", params(UploadQuery),
    request_body(content_type = "application/x-tar", description = "The archive"),
    responses((status = 201, body = TemplateAnswer)))]
async fn template_upload(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named<String>,
    uri: Uri,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let asked: UploadQuery = input::query(&uri)?;
    let named = Ask::of(Action::TemplateManage).subject(app.redactor().text(&name, &[])).detail("op", "upload");
    let operation = app.begin(&caller, named).await?;
    let result = upload(&app, &caller, &operation, &name, asked.format, body).await;
    Ok(json(StatusCode::CREATED, &operation.finish(result).await?))
}

async fn upload(
    app: &App,
    caller: &Caller,
    operation: &Operation,
    name: &str,
    format: Option<UploadFormat>,
    body: Body,
) -> Result<TemplateAnswer, Fault> {
    let name: TemplateName = name.parse().map_err(|error| Fault::invalid(format!("{error}")))?;
    check_name(&name)?;
    let under_way = Arc::new(UnderWay::begin(app, &name, "an upload".to_owned())?);
    let _turn = app.images().turn.lock().await;
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let blobs = Arc::clone(&app.images().blobs);
    let telling = Arc::clone(&under_way);
    let read = tokio::task::spawn_blocking(move || {
        let mut reader = Pieces { queue, rest: Bytes::new() };
        let caps = ImageCaps::STANDARD;
        let fetching = |progress: Progress| telling.tell("fetching", progress);
        match format {
            None => import::upload(&mut reader, None, &blobs, &caps, &fetching),
            Some(UploadFormat::Root) => import::tarball(&mut reader, &blobs, &caps, &fetching),
            Some(UploadFormat::Image) => import::archive(&mut reader, None, &blobs, &caps, &fetching),
        }
    });
    let door = &app.config().door;
    let came = send(body, pieces, Duration::from_millis(door.upload_idle_timeout_ms), door.upload_bytes_max).await;
    let image = read.await.unwrap_or_else(|_| Err(ImageError::Absent("its reader ended early".to_owned())));
    // What the client did wrong explains what the reader says, so it comes first.
    let installed = match came.and_then(|_| image.map_err(|error| fault(&error))) {
        Ok(image) => install(app, caller, operation, &under_way, &image).await,
        Err(fault) => Err(fault),
    };
    if installed.is_err() {
        // Nobody will go on with an upload; a pull is gone on with, so its parts stay.
        app.images().keep_only(std::iter::empty());
    }
    installed
}

/// Hands a body to a reader in another thread; ends early when that wants no more.
async fn send(mut body: Body, pieces: mpsc::Sender<io::Result<Bytes>>, idle: Duration, max: u64) -> Result<(), Fault> {
    let mut taken = 0;
    let fault = loop {
        let Ok(frame) = tokio::time::timeout(idle, body.frame()).await else { break input::too_slow(idle) };
        let Some(frame) = frame else { return Ok(()) };
        let Ok(frame) = frame else { break Fault::invalid("the connection broke within the body") };
        let Ok(piece) = frame.into_data() else { continue };
        taken += piece.len() as u64;
        if taken > max {
            break input::too_large(max);
        }
        if pieces.send(Ok(piece)).await.is_err() {
            return Ok(());
        }
    };
    // So that a body that broke off is not taken for a short archive.
    let _ = pieces.send(Err(io::Error::other("the upload broke off"))).await;
    Err(fault)
}

/// A body as a reader.
struct Pieces {
    queue: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.queue.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.rest = piece?,
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

/// Removes a template; sandboxes made from it go on. For operators.
#[utoipa::path(delete, path = "/v1/templates/{name}", responses((status = 204, description = "Removed")))]
async fn template_remove(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named<String>,
) -> Result<StatusCode, Refusal> {
    let named = Ask::of(Action::TemplateManage).subject(app.redactor().text(&name, &[])).detail("op", "remove");
    let operation = app.begin(&caller, named).await?;
    let remove = async {
        let name: TemplateName = input::id("template", &name)?;
        check_name(&name)?;
        let operator = caller.operator()?;
        // Known here first: what the warden alone has is left over from a broken import, and none of ours.
        app.store().template_get(caller.who.scope(), &name)?;
        match app.places().warden().remove_template(name.clone()).await {
            Ok(()) => {}
            Err(fault) if fault.code == Code::NotFound => {}
            Err(fault) => return Err(fault),
        }
        app.store().template_remove(operator, &name)?;
        Ok(StatusCode::NO_CONTENT)
    };
    let result = remove.await;
    operation.finish(result).await
}
