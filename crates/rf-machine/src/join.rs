//! The life of the program: dial, greet, serve, wait, again.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use rf_places::machine_mux::{Ended, Mux, place_lost, pump};
use rf_types::{Code, Fault, MachineId};
use rf_wire::machine::{
    self, Bye, Challenge, Facts, Frame, Hello, Level, NONCE_LEN, Proof, Resume, VERSION, Welcome, kind, proof_message,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    dial::{Server, Wire, tls},
    execs::{Execs, Link},
    linux::Host,
    owner::Owner,
    serve::{Machine, Orders},
    state::{Enrolled, MachineKey, State},
};

/// How long the server may take for a connection and each word of the greeting.
const GREETING_WITHIN: Duration = Duration::from_secs(20);
/// What a server says of every credential that it does not take, for whatever reason.
const NO_CREDENTIAL: &str = "no valid credential";
/// How long the end of the program waits for its goodbye to go out.
const BYE_WITHIN: Duration = Duration::from_secs(1);

/// What `ringfence join` was told.
pub struct JoinArgs {
    /// The server's URL.
    pub url: String,
    /// An enrolment token; needed the first time only.
    pub token: Option<String>,
    /// Where keys are kept; `None` is `~/.local/share/ringfence-machine`.
    pub state: Option<PathBuf>,
    /// The workspace root; `None` is `~/ringfence`, which is made.
    pub workspace: Option<PathBuf>,
    /// What the owner allows; `None` is [`Level::Workspace`].
    pub level: Option<Level>,
    /// Certificate authorities in a PEM file, beside the public ones.
    pub ca: Option<PathBuf>,
    /// Connect without TLS to another computer.
    pub allow_plaintext: bool,
    /// Directories that commands may read and run at the level `workspace`, beside the system's.
    pub readable: Vec<PathBuf>,
    /// Waiting times.
    pub timing: Timing,
    /// Gets the news, to show them.
    pub report: Box<dyn Fn(JoinEvent) + Send + Sync>,
}

impl JoinArgs {
    /// The usual for a URL: everything else as not given, news to nobody.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: None,
            state: None,
            workspace: None,
            level: None,
            ca: None,
            allow_plaintext: false,
            readable: Vec::new(),
            timing: Timing::default(),
            report: Box::new(|_| {}),
        }
    }
}

/// Waiting times of `ringfence join`.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first wait after a drop.
    pub backoff_min: Duration,
    /// The longest wait; each is twice the one before, and half of it is random.
    pub backoff_max: Duration,
    /// How long execs and what they print are kept while no server comes for them.
    pub keep: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            keep: Duration::from_secs(600),
        }
    }
}

/// News of a joined machine; each shows as one line.
#[derive(Clone, Debug)]
pub enum JoinEvent {
    /// It is connected.
    Connected {
        /// Its id.
        machine: MachineId,
        /// What it told of itself.
        facts: Box<Facts>,
        /// Whether a session goes on.
        resumed: bool,
    },
    /// It had joined before and goes on as that machine: the token it was given was not used.
    TokenUnused {
        /// Who it is.
        machine: MachineId,
    },
    /// It is not connected; it will try again.
    Disconnected {
        /// Why.
        reason: String,
        /// When it tries again.
        retry_in: Duration,
    },
}

impl fmt::Display for JoinEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { machine, facts, resumed: false } => {
                write!(f, "joined as {machine}, level {}, workspace {}", facts.level.name(), facts.workspace)
            }
            Self::Connected { resumed: true, .. } => f.write_str("connected again; everything goes on"),
            Self::TokenUnused { machine } => write!(
                f,
                "the token was not used: this computer had joined as {machine} before. To join it to another user, remove \
                 that machine first, or give another directory for its key"
            ),
            Self::Disconnected { reason, retry_in } => {
                write!(f, "not connected: {reason}; trying again in {:.1} s", retry_in.as_secs_f64())
            }
        }
    }
}

/// Why `ringfence join` ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// An argument cannot be used.
    #[error("{0}")]
    Argument(String),
    /// A file of the state, or the workspace.
    #[error("cannot use {what}")]
    File {
        /// Which.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The machine has never joined this server and no token was given.
    #[error("this machine has not joined {origin} yet: give an enrolment token with --token")]
    NotEnrolled {
        /// The server.
        origin: String,
    },
    /// The server did not let it in, or threw it out.
    #[error("{}", show(.0))]
    Refused(Fault),
    /// The server could not be reached for the first time.
    #[error("{0}")]
    Unreachable(String),
}

fn show(fault: &Fault) -> String {
    let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    match fault.hint.as_str() {
        "" => clean(&fault.message),
        hint => format!("{} ({})", clean(&fault.message), clean(hint)),
    }
}

/// Runs until `stop` resolves (then `Ok`), or the server refuses the machine.
///
/// # Errors
/// [`JoinError`]. Whatever it is, nothing is left running.
pub async fn join(args: JoinArgs, stop: impl Future<Output = ()>) -> Result<(), JoinError> {
    let mut program = Program::start(args)?;
    let (machine, current, stopping) = (program.machine.clone(), program.current.clone(), program.stopping.clone());
    let result = {
        let mut running = std::pin::pin!(program.run());
        tokio::select! {
            result = &mut running => result,
            () = stop => {
                // Tell the server, so that nobody there waits for this machine; it is told or it finds out.
                stopping.store(true, Ordering::Relaxed);
                let mux = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(mux) = mux.filter(Mux::is_attached) {
                    let fault = Fault::new(Code::PlaceLost, "the machine's owner ended `ringfence join`", "");
                    mux.say_bye(&Bye { fault, retry: false });
                    tokio::select! {
                        _ = &mut running => {}
                        () = mux.ended() => {}
                        () = sleep(BYE_WITHIN) => {}
                    }
                }
                Ok(())
            }
        }
    };
    program.end_session("its owner ended `ringfence join`");
    machine.execs.kill_older(u64::MAX);
    result
}

/// One session with the server.
struct Session {
    id: String,
    link: Link,
    orders: Orders,
}

struct Program {
    server: Server,
    tls: Arc<rustls::ClientConfig>,
    state: State,
    token: Option<String>,
    machine: Arc<Machine>,
    session: Option<Session>,
    /// The session's streams, for whoever ends the program.
    current: Arc<Mutex<Option<Mux>>>,
    /// Whether its owner ends the program: then a connection's end is no news.
    stopping: Arc<AtomicBool>,
    sessions: u64,
    timing: Timing,
    report: Box<dyn Fn(JoinEvent) + Send + Sync>,
}

/// What comes of one connection.
enum Outcome {
    /// Try again.
    Dropped { reason: String, was_connected: bool },
    /// Try again at once: it is nobody yet, and has a token with which to become somebody.
    Enrol { reason: String },
    /// Do not.
    Refused(Fault),
}

fn file(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> JoinError {
    let what = what.into();
    move |source| JoinError::File { what, source }
}

impl Program {
    fn start(args: JoinArgs) -> Result<Self, JoinError> {
        let JoinArgs { url, token, state, workspace, level, ca, allow_plaintext, readable, timing, report } = args;
        let server = Server::parse(&url, allow_plaintext).map_err(JoinError::Argument)?;
        let tls = tls(ca.as_deref()).map_err(JoinError::Argument)?;
        let level = level.unwrap_or(Level::Workspace);
        let home = Host::probe().home;
        let base = state.unwrap_or_else(|| home.join(".local/share/ringfence-machine"));
        let state = State::open(&base, &server.origin).map_err(file(format!("`{}`", base.display())))?;
        let workspace = match workspace {
            Some(workspace) => workspace,
            None => {
                let workspace = home.join("ringfence");
                match std::fs::create_dir(&workspace) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(file(format!("the workspace `{}`", workspace.display()))(error));
                    }
                    _ => workspace,
                }
            }
        };
        let private = state.fresh_private().map_err(file("the directory for temporary files"))?;
        let owner = Owner::new(&workspace, level, private, readable)
            .map_err(file(format!("the workspace `{}`", workspace.display())))?;
        if level != Level::Full && within(state.directory(), owner.root.path()) {
            return Err(JoinError::Argument(format!(
                "the workspace `{}` holds this machine's own key: choose a smaller one, or another --key-dir",
                owner.root.path().display()
            )));
        }
        let seen = state.seen().map_err(file("the list of execs"))?;
        if token.is_none() && state.enrolled().map_err(file("machine.json"))?.is_none() {
            return Err(JoinError::NotEnrolled { origin: server.origin });
        }
        let owner = Arc::new(owner);
        let execs = Execs::new(owner.clone(), seen);
        let machine = Machine::new(owner, execs);
        Ok(Self {
            server,
            tls,
            state,
            token,
            machine,
            session: None,
            current: Arc::default(),
            stopping: Arc::default(),
            sessions: 0,
            timing,
            report,
        })
    }

    async fn run(&mut self) -> Result<(), JoinError> {
        let mut wait = self.timing.backoff_min;
        let mut last_connected = Instant::now();
        let mut first = true;
        loop {
            match self.connection().await? {
                Outcome::Refused(fault) => return Err(JoinError::Refused(fault)),
                // Once at most: what was enrolled is forgotten, and a token that is refused ends the program.
                Outcome::Enrol { reason } => {
                    (self.report)(JoinEvent::Disconnected { reason, retry_in: Duration::ZERO });
                }
                Outcome::Dropped { .. } if self.stopping.load(Ordering::Relaxed) => return Ok(()),
                Outcome::Dropped { reason, was_connected } => {
                    let enrolled = self.state.enrolled().map_err(file("machine.json"))?.is_some();
                    if first && !was_connected && !enrolled {
                        // Somebody waits in front of it: say so now.
                        return Err(JoinError::Unreachable(reason));
                    }
                    first = false;
                    if was_connected {
                        wait = self.timing.backoff_min;
                        last_connected = Instant::now();
                    }
                    if last_connected.elapsed() > self.timing.keep {
                        self.end_session("the server did not come back");
                        self.machine.execs.kill_older(u64::MAX);
                    }
                    let retry_in = jittered(wait);
                    (self.report)(JoinEvent::Disconnected { reason, retry_in });
                    sleep(retry_in).await;
                    wait = (wait * 2).min(self.timing.backoff_max);
                }
            }
        }
    }

    /// One connection, from the dialling to its end.
    async fn connection(&mut self) -> Result<Outcome, JoinError> {
        let dropped = |reason: String| Ok(Outcome::Dropped { reason, was_connected: false });
        let mut wire = match timeout(GREETING_WITHIN, self.server.connect(&self.tls)).await {
            Ok(Ok(wire)) => wire,
            Ok(Err(reason)) => return dropped(reason),
            Err(_) => return dropped(format!("{} does not answer", self.server.origin)),
        };
        let welcome = match self.greet(&mut wire).await? {
            Greeted::Welcome(welcome) => welcome,
            Greeted::Refused(fault) => {
                // A key that is no longer good, and a token at hand: enrol anew.
                let enrolled = self.state.enrolled().map_err(file("machine.json"))?.is_some();
                if fault.code == Code::Unauthenticated && enrolled && self.token.is_some() {
                    self.state.forget_enrolled().map_err(file("machine.json"))?;
                    self.state.new_key().map_err(file("the machine's key"))?;
                    let reason = "the server no longer knows this machine; enrolling with the token".to_owned();
                    return Ok(Outcome::Enrol { reason });
                }
                return Ok(Outcome::Refused(self.explained(fault)));
            }
            Greeted::Dropped(reason) => return dropped(reason),
        };
        let Some((epoch, resumed)) = self.adopt(&welcome) else {
            self.end_session("the server and this machine disagree about their session");
            return dropped("the session could not go on".to_owned());
        };
        let facts = Box::new(self.machine.owner.facts());
        (self.report)(JoinEvent::Connected { machine: welcome.machine, facts, resumed });
        if self.token.take().is_some() {
            (self.report)(JoinEvent::TokenUnused { machine: welcome.machine });
        }
        let Some(Session { link, orders, .. }) = &self.session else { return dropped("no session".to_owned()) };
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.clamp(100, 60_000));
        let mux = link.mux.clone();
        let ended = pump(&mux, epoch, &mut wire, heartbeat, |json| orders.on_record(json)).await;
        let reason = match ended {
            Ended::Dropped(reason) | Ended::Closed(reason) => reason,
            Ended::Broken(violation) => {
                let fault = Fault::invalid(violation.to_string());
                let bye = machine::encode_json(kind::BYE, &Bye { fault, retry: true });
                // The connection ends in any case.
                let _ = timeout(GREETING_WITHIN, wire.send(bye.into())).await;
                self.end_session("the server broke the protocol");
                format!("the server broke the protocol: {violation}")
            }
            Ended::Bye(Bye { fault, retry: false }) => return Ok(Outcome::Refused(fault)),
            Ended::Bye(Bye { fault, retry: true }) => {
                self.end_session("the server ended the session");
                show(&fault)
            }
            Ended::SaidBye | Ended::Over => {
                self.end_session("the session is over");
                "the session is over".to_owned()
            }
        };
        let _ = timeout(GREETING_WITHIN, wire.close()).await;
        Ok(Outcome::Dropped { reason, was_connected: true })
    }

    /// A refusal with what its owner can do: the server says the same of every credential that it does not take.
    fn explained(&self, fault: Fault) -> Fault {
        if fault.code != Code::Unauthenticated || fault.message != NO_CREDENTIAL {
            return fault;
        }
        let (message, hint) = match self.token {
            Some(_) => (
                "the server does not take the token: it was used before, has expired, or is not of this server",
                "make a new one with `ringfence machine token`",
            ),
            None => (
                "the server no longer knows this machine",
                "make a token with `ringfence machine token`, and join with it",
            ),
        };
        Fault::new(fault.code, message, hint)
    }

    /// Challenge, answer, welcome.
    async fn greet(&mut self, wire: &mut Wire) -> Result<Greeted, JoinError> {
        let challenge: Challenge = match self.word(wire, kind::CHALLENGE).await {
            Word::Said(challenge) => challenge,
            Word::Bye(bye) => return Ok(bye),
        };
        if challenge.version_min > VERSION || challenge.version_max < VERSION {
            return Ok(Greeted::Refused(Fault::new(
                Code::Unsupported,
                format!(
                    "the server speaks versions {} to {} of the protocol, this program version {VERSION}",
                    challenge.version_min, challenge.version_max
                ),
                "install the ringfence that the server offers",
            )));
        }
        // What is signed is ours to form: a challenge of another shape is not answered.
        if machine::from_hex::<NONCE_LEN>(&challenge.nonce).is_none() || challenge.server.len() > 256 {
            return Ok(Greeted::Dropped("the server's challenge is malformed".to_owned()));
        }
        let origin = &self.server.origin;
        let key = self.state.key().map_err(file("the machine's key"))?;
        let enrolled = self.state.enrolled().map_err(file("machine.json"))?;
        let proof = match (&enrolled, &self.token) {
            (Some(enrolled), _) if enrolled.origin == *origin => {
                if enrolled.server != challenge.server {
                    return Ok(Greeted::Refused(Fault::new(
                        Code::Unauthenticated,
                        format!("{origin} is not the server that this machine joined"),
                        "if the server was set up anew, remove this machine's state and join with a new token",
                    )));
                }
                prove(&key, &challenge, origin, enrolled.machine)
            }
            (_, Some(token)) => {
                let public_key = key.public();
                let message = proof_message(&challenge, origin, &format!("enrol {public_key} {token}"));
                Proof::Token { token: token.clone(), public_key, signature: key.sign(&message) }
            }
            (_, None) => return Err(JoinError::NotEnrolled { origin: origin.clone() }),
        };
        let enrols = matches!(proof, Proof::Token { .. });
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            origin: origin.clone(),
            facts: self.machine.owner.facts(),
            proof,
            resume: self
                .session
                .as_ref()
                .map(|session| Resume { session: session.id.clone(), received: session.link.mux.received() }),
        };
        if let Err(error) = wire.send(machine::encode_json(kind::HELLO, &hello).into()).await {
            return Ok(Greeted::Dropped(error.to_string()));
        }
        let welcome: Welcome = match self.word(wire, kind::WELCOME).await {
            Word::Said(welcome) => welcome,
            Word::Bye(bye) => return Ok(bye),
        };
        if welcome.version != VERSION {
            return Ok(Greeted::Dropped("the server chose a version that was not offered".to_owned()));
        }
        if enrols {
            let enrolled =
                Enrolled { machine: welcome.machine, server: challenge.server.clone(), origin: origin.clone() };
            self.state.set_enrolled(&enrolled).map_err(file("machine.json"))?;
            self.token = None;
        }
        Ok(Greeted::Welcome(welcome))
    }

    /// The server's next word, which must be of `kind`.
    async fn word<T: serde::de::DeserializeOwned>(&self, wire: &mut Wire, kind: u8) -> Word<T> {
        let dropped = |reason: &str| Word::Bye(Greeted::Dropped(reason.to_owned()));
        let message = match timeout(GREETING_WITHIN, wire.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return dropped(&error.to_string()),
            Ok(None) => return dropped("the server closed the connection"),
            Err(_) => return dropped("the server does not answer"),
        };
        match Frame::decode(&message) {
            Ok(Frame::Json { kind: got, json }) if got == kind => {
                serde_json::from_slice(json).map_or_else(|_| dropped("the server cannot be understood"), Word::Said)
            }
            Ok(Frame::Json { kind: kind::BYE, json }) => match serde_json::from_slice(json) {
                Ok(Bye { fault, retry: false }) => Word::Bye(Greeted::Refused(fault)),
                Ok(Bye { fault, retry: true }) => dropped(&show(&fault)),
                Err(_) => dropped("the server cannot be understood"),
            },
            _ => dropped("the server cannot be understood"),
        }
    }

    /// Goes on with the session or begins the new one; the connection's number and whether it goes on.
    fn adopt(&mut self, welcome: &Welcome) -> Option<(u64, bool)> {
        if let Some(received) = &welcome.received {
            let session = self.session.as_ref().filter(|session| session.id == welcome.session)?;
            return session.link.mux.attach(received).ok().map(|epoch| (epoch, true));
        }
        self.end_session("the server began a new one");
        self.sessions += 1;
        let link = Link { number: self.sessions, mux: Mux::new() };
        let epoch = link.mux.attach(&[]).ok()?;
        let orders = self.machine.serve(link.clone());
        // Execs of earlier sessions wait for the server to ask for them, but not for ever.
        let (execs, keep, number) = (self.machine.execs.clone(), self.timing.keep, self.sessions);
        let over = link.mux.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = sleep(keep) => execs.kill_older(number),
                () = over.ended() => {}
            }
        });
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.mux.clone());
        self.session = Some(Session { id: welcome.session.clone(), link, orders });
        Some((epoch, false))
    }

    fn end_session(&mut self, why: &str) {
        if let Some(session) = self.session.take() {
            session.link.mux.fail(place_lost(why));
            self.machine.execs.session_over(session.link.number);
        }
    }
}

fn prove(key: &MachineKey, challenge: &Challenge, origin: &str, machine: MachineId) -> Proof {
    let message = proof_message(challenge, origin, &machine.to_string());
    Proof::Key { machine, signature: key.sign(&message) }
}

enum Greeted {
    Welcome(Welcome),
    Refused(Fault),
    Dropped(String),
}

enum Word<T> {
    Said(T),
    Bye(Greeted),
}

/// Whether `path` is `directory` or below it; both are canonical.
fn within(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
}

/// Between half of `wait` and all of it, so that machines that dropped together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 4];
    // Without random bytes every machine waits the whole time, which is no harm.
    let part =
        getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX));
    wait.mul_f64(0.5 + part / 2.0)
}
