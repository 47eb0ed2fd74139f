//! The server from its start to its end: opens what it keeps, makes the first operator, takes over what lives, serves.

use std::{
    fs::{DirBuilder, OpenOptions},
    future::Future,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use axum::{Router, extract::State, http::Uri, routing::get};
use rf_gate::{Gate, GateError};
use rf_ledger::{Entry, Event, Ledger, LedgerKey, Redactor};
use rf_places::{
    ExecsConfig, Places, PlacesConfig, Rows,
    machine::{HubConfig, MachineHub},
};
use rf_store::{Store, StoreError, SystemScope};
use rf_types::{Fault, RequestId, Username};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    app::{App, Shared, now},
    config::{ConfigError, ServerConfig},
    doors::{self, e2b::E2b, health::StoreHealth, machines::Authority, templates::Images},
    edge, harden,
    input::Intake,
    logs,
    metrics::Metrics,
    repeats::{REPEAT_MS, Repeats},
    rows::StoredRows,
    service::Door,
    tls::{Certificate, TlsError},
    turns::Turns,
};

/// Most worker threads of the runtime. Chosen: what they do is mostly to wait for others.
const WORKERS_MAX: usize = 8;
/// How often it is looked whether every part is ready, at the start. Chosen.
const READY_PERIOD: Duration = Duration::from_millis(10);
/// How often what ended long ago is let go, and how long ago that is.
const PRUNE_PERIOD: Duration = Duration::from_secs(3_600);
const PRUNE_AFTER_MS: u64 = 30 * 86_400_000;
/// The first operator's name.
const FIRST_USER: &str = "admin";

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A value of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process holds rights that it must not.
    #[error("refusing to start: {0}")]
    Rights(String),
    /// A file or directory of the server's own.
    #[error("cannot {step} `{}`", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The runtime or its signals.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The gate.
    #[error("the gate cannot be set up: {0}")]
    Gate(#[from] GateError),
    /// The ledger, or what was to be recorded.
    #[error("{} ({})", .0.message, .0.hint)]
    Fault(Fault),
}

impl From<Fault> for RunError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Runs the server until SIGTERM or SIGINT. Called after all rights were dropped.
///
/// # Errors
/// See [`RunError`].
pub fn run(config: ServerConfig) -> Result<(), RunError> {
    // Before anything listens: a public address without TLS is refused, not taken back.
    config.validate()?;
    let address = config.listen;
    let listener = std::net::TcpListener::bind(address).map_err(|error| RunError::Listen { address, error })?;
    run_on(config, listener, |_| {})
}

/// As [`run`], on a listener that was bound while there were rights for it. `ready` is called once, with the address,
/// when every part can serve.
///
/// # Errors
/// See [`RunError`].
pub fn run_on(
    config: ServerConfig,
    listener: std::net::TcpListener,
    ready: impl FnOnce(SocketAddr) + Send + 'static,
) -> Result<(), RunError> {
    config.validate()?;
    logs::start(&config.log);
    if config.require_no_rights {
        harden::holds_no_rights().map_err(RunError::Rights)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let served = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(RunError::Runtime)?;
        let mut int = signal(SignalKind::interrupt()).map_err(RunError::Runtime)?;
        let server = Server::start_on(config, listener).await?;
        let address = server.address();
        tracing::info!(%address, "listening");
        let app = server.app().clone();
        tokio::spawn(async move {
            while !app.places().is_ready() {
                tokio::time::sleep(READY_PERIOD).await;
            }
            tracing::info!(%address, "ready");
            ready(address);
        });
        let told = async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::info!("ending");
        };
        server.serve(told).await;
        Ok(())
    });
    // Execs' pumps and the like have no end of their own.
    runtime.shutdown_timeout(Duration::from_secs(2));
    served
}

/// Worker threads: one for every two processors, the other being the sandboxes'. Measured on two: a second worker is woken
/// for nothing at every turn of a request, which costs an exec 0.07 ms; what would hold one up (files, archives, layers)
/// is done beside them.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |all| all.get() / 2).clamp(1, WORKERS_MAX)
}

/// A started server that does not serve yet.
pub struct Server {
    app: App,
    door: Door,
    listener: TcpListener,
    address: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    metrics_listener: Option<TcpListener>,
}

impl Server {
    /// Opens everything and listens. Must be called in a runtime.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn start(config: ServerConfig) -> Result<Self, RunError> {
        let address = config.listen;
        let failed = |error| RunError::Listen { address, error };
        let listener = listen(address).await?.into_std().map_err(failed)?;
        Self::start_on(config, listener).await
    }

    /// As [`Self::start`], on a listener that is bound already.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn start_on(mut config: ServerConfig, listener: std::net::TcpListener) -> Result<Self, RunError> {
        let certificate = config.tls.clone().map(Certificate::load).transpose()?;
        let failed = |error| RunError::Listen { address: config.listen, error };
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        config.listen = address;
        let metrics_listener = match config.metrics.listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let app = open(config)?;
        let door = Door::new(doors::router(app.clone()), app.metrics().clone()).with_sandboxes(app.clone());
        Ok(Self { app, door, listener, address, certificate, metrics_listener })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its parts.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Serves until `shutdown` resolves and the running requests had their grace.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { app, door, listener, certificate, metrics_listener, .. } = self;
        let config = app.config().door.clone();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let metrics = metrics_listener.map(|listener| {
            let router = Router::new().route("/metrics", get(metrics_text)).with_state(app.clone());
            let door = Door::new(router, Arc::default());
            let (config, mut stopped) = (config.clone(), stopped.clone());
            tokio::spawn(async move {
                let stopped = async move { drop(stopped.wait_for(|stop| *stop).await) };
                edge::serve(listener, door, None, &config, stopped).await;
            })
        });
        edge::serve(listener, door, certificate, &config, shutdown).await;
        stop.send_replace(true);
        if let Some(metrics) = metrics {
            let _ = metrics.await;
        }
        app.ports().end();
        let entry = Entry::new(app.now(), "server_stop", Event::Note);
        if let Err(fault) = app.ledger().append(&entry).and_then(rf_ledger::Ticket::wait) {
            tracing::warn!(%fault, "the server's end was not recorded");
        }
    }
}

async fn metrics_text(State(app): State<App>) -> String {
    app.metrics_text()
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|error| RunError::Listen { address, error })
}

/// Opens what the server keeps, and makes its parts. Must be called in a runtime.
///
/// # Errors
/// See [`RunError`].
pub fn open(config: ServerConfig) -> Result<App, RunError> {
    let dir = config.state_dir.clone();
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| RunError::File {
        step: "make the directory",
        path: dir.clone(),
        error,
    })?;
    let (store, system) = Store::open(&dir)?;
    let system = Arc::new(system);
    let ledger_key = LedgerKey::load_or_create(&dir.join("ledger.key"))?;
    let redactor = Redactor::new(&ledger_key);
    let ledger = Arc::new(Ledger::open(rf_ledger::Config::new(dir.join("ledger"), ledger_key.clone()), now())?);
    let started = Entry::new(now(), "server_start", Event::Note).detail("version", env!("CARGO_PKG_VERSION"));
    ledger.append(&started)?.wait()?;
    let gate = Gate::new(store.clone(), config.gate.clone())?;
    first_operator(&config, &gate, &store, &system, &ledger)?;

    let rows = Arc::new(StoredRows::new(store.clone(), Arc::clone(&system), Arc::clone(&ledger)));
    let known = rows.known()?;
    let spool = dir.join("spool");
    let places_config =
        PlacesConfig { warden_socket: config.warden_socket.clone(), execs: ExecsConfig::standard(spool.clone()) };
    let snapshots = rows.known_snapshots()?;
    let places = Places::start(places_config, Arc::clone(&rows) as Arc<dyn Rows>, known, snapshots)
        .map_err(|error| RunError::File { step: "open the spool", path: spool, error })?;

    let authority = Arc::new(Authority {
        gate: gate.clone(),
        store: store.clone(),
        system: Arc::clone(&system),
        places: places.clone(),
        ledger: Arc::clone(&ledger),
    });
    let hub_config = HubConfig { origins: origins(&config), ..HubConfig::new(server_id(&store, &system)?) };
    let hub = MachineHub::new(hub_config, authority);

    prune_now_and_then(store.clone(), Arc::downgrade(&system));
    retain_now_and_then(&config, &ledger);
    let images = Images::open(&dir.join("blobs"), &config.registries)?;
    let e2b = E2b::open(&dir).map_err(|error| RunError::File {
        step: "open the key of the sandboxes' tokens in",
        path: dir.clone(),
        error,
    })?;
    Ok(App::new(Shared {
        intake: Intake::new(&config.door),
        config,
        gate,
        store,
        ledger,
        ledger_key,
        redactor,
        places,
        metrics: Arc::new(Metrics::default()),
        document: OnceLock::new(),
        repeats: Repeats::default(),
        store_health: StoreHealth::default(),
        limits_turns: Turns::default(),
        hub,
        images,
        e2b,
        ports: doors::ports::Ports::default(),
        system,
    }))
}

/// Where machines may have reached this server: its public address, and itself from this machine. Empty, which is
/// anywhere, where no public address is configured.
fn origins(config: &ServerConfig) -> Vec<String> {
    let Ok(public) = config.public_url.parse::<Uri>() else { return Vec::new() };
    let Some((scheme, host)) = public.scheme_str().zip(public.host()) else { return Vec::new() };
    let port = public.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let mut origins = vec![format!("{scheme}://{}:{port}", host.to_ascii_lowercase())];
    let (ip, port) = (config.listen.ip().to_canonical(), config.listen.port());
    if ip.is_loopback() || ip.is_unspecified() {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        origins.extend(["127.0.0.1", "localhost", "[::1]"].map(|host| format!("{scheme}://{host}:{port}")));
    }
    origins
}

/// The server's name for itself, the same for ever, so that a machine's signature is good for no other server.
fn server_id(store: &Store, system: &SystemScope) -> Result<String, StoreError> {
    const KEY: &str = "server_id";
    if let Some(id) = store.setting_get(system, KEY)? {
        return Ok(id);
    }
    let id = format!("srv_{:032x}", RequestId::random().bits());
    store.setting_set(system, KEY, &id)?;
    Ok(id)
}

/// In an empty store: makes the first user, an operator who can also run things, and leaves their key in a file.
fn first_operator(
    config: &ServerConfig,
    gate: &Gate,
    store: &Store,
    system: &SystemScope,
    ledger: &Ledger,
) -> Result<(), RunError> {
    if store.has_users(system)? {
        return Ok(());
    }
    let path = config.first_key_file.clone().unwrap_or_else(|| config.state_dir.join("first-key"));
    let failed = |step| {
        let path = path.clone();
        move |error| RunError::File { step, path, error }
    };
    // Before the key is made: one that cannot be left anywhere would lock everybody out.
    let mut file = private(&path).map_err(failed("make"))?;
    let entry = Entry::new(now(), "first_operator", Event::Note).subject(FIRST_USER);
    ledger.append(&entry)?.wait()?;
    let name: Username = FIRST_USER.parse().map_err(|_| Fault::invalid("the first user's name is none"))?;
    let (_, key, secret) = gate.bootstrap(system, &name, now())?;
    let text = format!("{}\n", secret.reveal());
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    tracing::info!(user = FIRST_USER, key = %key.id, path = %path.display(), "made the first operator; the key is in the file");
    Ok(())
}

fn private(path: &Path) -> io::Result<std::fs::File> {
    // One that a broken start left behind is worth nothing: there is no user yet.
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Lets go of segments of the ledger that are older than the configuration says.
fn retain_now_and_then(config: &ServerConfig, ledger: &Arc<Ledger>) {
    let Some(days) = config.ledger.keep_days else { return };
    let archive = config.ledger.archive(&config.state_dir);
    let ledger = Arc::downgrade(ledger);
    tokio::spawn(async move {
        let mut period = tokio::time::interval(PRUNE_PERIOD);
        loop {
            period.tick().await;
            let Some(ledger) = ledger.upgrade() else { return };
            let (archive, now) = (archive.clone(), now());
            let before = now.saturating_sub(u64::from(days) * 86_400_000);
            // It reads whole segments.
            let retained = tokio::task::spawn_blocking(move || ledger.retain(before, archive.as_deref(), now)).await;
            match retained {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(told))) => {
                    tracing::info!(records = told.records, first_kept = told.first_seq, "let go of old records");
                }
                Ok(Err(fault)) => tracing::warn!(%fault, hint = fault.hint, "old records are kept"),
                Err(error) => tracing::warn!(%error, "old records are kept"),
            }
        }
    });
}

fn prune_now_and_then(store: Store, system: Weak<SystemScope>) {
    tokio::spawn(async move {
        let mut period = tokio::time::interval(PRUNE_PERIOD);
        loop {
            period.tick().await;
            let Some(system) = system.upgrade() else { return };
            match store.prune(&system, now().saturating_sub(PRUNE_AFTER_MS)) {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, "let go of what ended long ago"),
                Err(error) => tracing::warn!(%error, "cannot let go of what ended long ago"),
            }
            if let Err(error) = store.repeats_prune(&system, now().saturating_sub(REPEAT_MS)) {
                tracing::warn!(%error, "cannot forget old requests");
            }
        }
    });
}
