//! Machines: users' own computers that dialled in, as places.
//!
//! [`MachineHub::serve`] takes one connection, whatever carries it, as a stream and sink of binary messages: it
//! challenges, lets a [`MachineAuthority`] judge the proof, and goes on with the machine's session or begins a new
//! one. [`MachineHub::joined`] gives the machine of a user while it is connected.
//!
//! ```text
//!            proof            drop                 grace over, or the machine came without its session
//! (nothing) ──────▶ attached ──────▶ waiting ──────────────────────────────────────────────▶ lost
//!                      ▲                │ the machine comes back with its session
//!                      └────────────────┘
//! ```
//!
//! While a session waits, calls in progress wait with it and routing no longer sees the machine. A lost session answers
//! `place_lost` to all of them; nothing is sent again in another session, so nothing runs twice.
//!
//! **Boundary:** all that comes from a machine is hostile: bounded, checked, and its faults are made harmless
//! ([`crate::machine_mux::tame`]).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt};
use rf_types::{Code, ExecId, ExitReport, Fault, MachineId, RequestId, SignalScope, UserId};
use rf_wire::machine::{
    self, Answer, Bye, Challenge, Facts, Frame, Hello, Order, Proof, ToMachine, ToServer, VERSION, Violation, Welcome,
    kind,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::machine_mux::{Ended, Mux, place_lost, pump, tame};
pub use crate::machine_place::MachinePlace;

/// How long a machine may take from the challenge to its answer. Chosen: a slow line and a slow disk together.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long an order may stay unanswered while the machine is there. The work itself is not in it: an exec is answered
/// when it has started, a transfer when its file is open.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What the hub needs to know of its server.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// The server's name for itself: the same for ever, and no other server's.
    pub server: String,
    /// Origins at which machines may reach it, such as `https://example.org:443`; empty is any. A machine signs the
    /// origin it dialled.
    pub origins: Vec<String>,
    /// How often each side gives a sign of life; three times without one ends a connection. 100 ms to a minute.
    pub heartbeat: Duration,
    /// How long calls in progress wait for a machine that fell silent: a network that comes back.
    pub grace: Duration,
    /// How long they wait for one whose connection was closed. A program that lives dials again after half a second, so
    /// one that does not has died, and who waits is told so within two seconds.
    pub grace_closed: Duration,
}

impl HubConfig {
    /// The usual times, any origin.
    #[must_use]
    pub fn new(server: String) -> Self {
        Self {
            server,
            origins: Vec::new(),
            heartbeat: Duration::from_secs(10),
            grace: Duration::from_secs(15),
            grace_closed: Duration::from_millis(1_500),
        }
    }
}

/// A machine's first coming. Has no `Debug`: the token is a secret.
pub struct Enrolment<'a> {
    /// The enrolment token: to be used up.
    pub token: &'a str,
    /// The machine's ed25519 key.
    pub public_key: [u8; 32],
    /// What it signed.
    pub message: &'a [u8],
    /// The signature to check.
    pub signature: [u8; 64],
    /// What it says it is.
    pub facts: &'a Facts,
}

/// Judges who a machine is. Outside of this crate, which decides nothing about who may.
pub trait MachineAuthority: Send + Sync {
    /// Checks the signature, uses up the token and makes the machine.
    ///
    /// # Errors
    /// `unauthenticated` for a wrong signature or a token that is not good, or no longer.
    fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(UserId, MachineId), Fault>;

    /// Checks that `signature` over `message` is of the machine's key, and that it was not removed.
    ///
    /// # Errors
    /// `unauthenticated` in one form for every reason.
    fn recognise(&self, machine: MachineId, message: &[u8], signature: &[u8; 64]) -> Result<UserId, Fault>;

    /// A machine is there: calls may go to it. Called again, with another value, when its session goes on.
    fn connected(&self, place: &Arc<MachinePlace>);

    /// Whether the machine is still its user's: asked once it can be found here, so that one which was removed between its
    /// proof and this moment does not stay.
    fn still_stands(&self, _place: &Arc<MachinePlace>) -> bool {
        true
    }

    /// Its connection ended: no new calls may go to it. Called once for each `connected`, unless another connection
    /// took its place.
    fn disconnected(&self, place: &Arc<MachinePlace>);
}

/// All machines of this server.
pub struct MachineHub {
    config: HubConfig,
    authority: Arc<dyn MachineAuthority>,
    entries: Mutex<HashMap<MachineId, Entry>>,
    arrivals: AtomicU64,
}

struct Entry {
    place: Arc<MachinePlace>,
    /// Which arrival it was; the latest of a user's machines is the one that is used.
    arrival: u64,
}

/// One session with one machine; outlives connections.
pub(crate) struct Session {
    pub(crate) mux: Mux,
    id: String,
    next_stream: AtomicU32,
    next_order: AtomicU64,
    orders: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    execs: Mutex<HashMap<ExecId, oneshot::Sender<Option<ExitReport>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps are whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MachineHub {
    /// A hub without machines.
    #[must_use]
    pub fn new(config: HubConfig, authority: Arc<dyn MachineAuthority>) -> Arc<Self> {
        Arc::new(Self { config, authority, entries: Mutex::default(), arrivals: AtomicU64::new(0) })
    }

    /// The user's machine that is connected now; of several the one that came last.
    #[must_use]
    pub fn joined(&self, user: UserId) -> Option<Arc<MachinePlace>> {
        let entries = lock(&self.entries);
        let mine = entries.values().filter(|entry| entry.place.user() == user && entry.place.is_connected());
        mine.max_by_key(|entry| entry.arrival).map(|entry| entry.place.clone())
    }

    /// One machine of the user's, if it is connected now.
    #[must_use]
    pub fn machine(&self, user: UserId, machine: MachineId) -> Option<Arc<MachinePlace>> {
        let entries = lock(&self.entries);
        let entry = entries.get(&machine).filter(|entry| entry.place.user() == user && entry.place.is_connected());
        entry.map(|entry| entry.place.clone())
    }

    /// How many machines are connected now, for metrics.
    #[must_use]
    pub fn connected_count(&self) -> usize {
        lock(&self.entries).values().filter(|entry| entry.place.is_connected()).count()
    }

    /// Throws a machine out that its user has removed: it is told, its calls end with `place_lost`. The caller has
    /// made the authority refuse it before.
    pub fn remove(&self, machine: MachineId) {
        let entry = lock(&self.entries).remove(&machine);
        if let Some(entry) = entry {
            let session = entry.place.session();
            let fault = Fault::new(
                Code::Unauthenticated,
                format!("{machine} was removed from the server"),
                "make a new enrolment token and join again",
            );
            if session.mux.is_attached() {
                // Its connection ends once the word is out, and the session with it.
                session.mux.say_bye(&Bye { fault, retry: false });
            } else {
                session.mux.fail(place_lost("it was removed"));
            }
        }
    }

    /// Serves one connection of a machine until it ends.
    ///
    /// # Errors
    /// Why the machine was not let in; it has been told.
    pub async fn serve<T, E>(self: &Arc<Self>, mut transport: T) -> Result<(), Fault>
    where
        T: Stream<Item = Result<Bytes, E>> + Sink<Bytes, Error = E> + Unpin,
        E: std::fmt::Display,
    {
        let arrived = match self.greet(&mut transport).await {
            Ok(arrived) => arrived,
            Err(fault) => {
                // Nothing will change by coming again, unless it is we who cannot answer just now.
                let bye = Bye { retry: fault.code.retryable(), fault: fault.clone() };
                let _ = transport.send(machine::encode_json(kind::BYE, &bye).into()).await;
                let _ = transport.close().await;
                return Err(fault);
            }
        };
        let Arrived { place, welcome, epoch } = arrived;
        let session = place.session().clone();
        let mux = &session.mux;
        let mut guard = Attached { hub: self.clone(), place: place.clone(), epoch, grace: self.config.grace };
        self.authority.connected(&place);
        if !self.authority.still_stands(&place) {
            self.remove(place.machine());
        }
        tracing::info!(machine = %place.machine(), resumed = welcome.received.is_some(), "machine connected");
        let welcomed = transport.send(machine::encode_json(kind::WELCOME, &welcome).into()).await;
        let ended = match welcomed {
            Err(error) => Ended::Closed(error.to_string()),
            Ok(()) => pump(mux, epoch, &mut transport, self.config.heartbeat, |json| session.on_record(json)).await,
        };
        tracing::info!(machine = %place.machine(), ?ended, "machine's connection ended");
        match &ended {
            Ended::Dropped(_) | Ended::Over => {}
            Ended::Closed(_) => guard.grace = self.config.grace_closed,
            Ended::Broken(violation) => {
                let fault = Fault::new(Code::InvalidRequest, violation.to_string(), "update ringfence on the machine");
                let bye = machine::encode_json(kind::BYE, &Bye { fault, retry: true });
                let _ = transport.send(bye.into()).await;
                mux.fail(place_lost("it broke the protocol"));
            }
            Ended::Bye(_) => mux.fail(place_lost("its owner ended `ringfence join`")),
            Ended::SaidBye => mux.fail(place_lost("it was removed")),
        }
        drop(guard);
        let _ = timeout(HELLO_WITHIN, transport.close()).await;
        Ok(())
    }

    /// Challenge, answer, judgement, session.
    async fn greet<T, E>(self: &Arc<Self>, transport: &mut T) -> Result<Arrived, Fault>
    where
        T: Stream<Item = Result<Bytes, E>> + Sink<Bytes, Error = E> + Unpin,
        E: std::fmt::Display,
    {
        let nonce = [RequestId::random().bits().to_be_bytes(), RequestId::random().bits().to_be_bytes()].concat();
        let challenge = Challenge {
            version_min: VERSION,
            version_max: VERSION,
            nonce: machine::to_hex(&nonce),
            server: self.config.server.clone(),
        };
        let gone = |_| Fault::invalid("the machine went away before it said who it is");
        transport.send(machine::encode_json(kind::CHALLENGE, &challenge).into()).await.map_err(gone)?;
        let message = match timeout(HELLO_WITHIN, transport.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(None | Some(Err(_))) => return Err(Fault::invalid("the machine went away before it said who it is")),
            Err(_) => return Err(Fault::new(Code::TimedOut, "the machine took too long to say who it is", "")),
        };
        let hello: Hello = match Frame::decode(&message) {
            Ok(Frame::Json { kind: kind::HELLO, json }) => {
                serde_json::from_slice(json).map_err(|_| Fault::invalid("the machine's greeting cannot be read"))?
            }
            Ok(_) => return Err(Fault::invalid("the machine did not begin with its greeting")),
            Err(violation) => return Err(Fault::invalid(violation.to_string())),
        };
        if hello.version_min > VERSION || hello.version_max < VERSION {
            return Err(Fault::new(
                Code::Unsupported,
                format!(
                    "the machine speaks versions {} to {} of the protocol, this server version {VERSION}",
                    hello.version_min, hello.version_max
                ),
                "install the version of ringfence that the server offers at /v1/machines/install",
            ));
        }
        hello.facts.validate().map_err(|violation| Fault::invalid(violation.to_string()))?;
        if !self.config.origins.is_empty() && !self.config.origins.contains(&hello.origin) {
            return Err(Fault::new(
                Code::Unauthenticated,
                "the machine reached this server by an address that is not its own",
                "join by the server's public URL",
            ));
        }
        let (user, machine) = self.judge(&challenge, &hello)?;
        Ok(self.admit(user, machine, hello))
    }

    fn judge(&self, challenge: &Challenge, hello: &Hello) -> Result<(UserId, MachineId), Fault> {
        let unreadable = || Fault::new(Code::Unauthenticated, "the machine's proof cannot be read", "");
        match &hello.proof {
            Proof::Token { token, public_key, signature } => {
                let who = format!("enrol {public_key} {token}");
                let message = machine::proof_message(challenge, &hello.origin, &who);
                self.authority.enrol(&Enrolment {
                    token,
                    public_key: machine::from_hex(public_key).ok_or_else(unreadable)?,
                    message: &message,
                    signature: machine::from_hex(signature).ok_or_else(unreadable)?,
                    facts: &hello.facts,
                })
            }
            Proof::Key { machine, signature } => {
                let message = machine::proof_message(challenge, &hello.origin, &machine.to_string());
                let signature = machine::from_hex(signature).ok_or_else(unreadable)?;
                Ok((self.authority.recognise(*machine, &message, &signature)?, *machine))
            }
        }
    }

    /// Goes on with the session that the machine names, or begins a new one.
    fn admit(&self, user: UserId, machine: MachineId, hello: Hello) -> Arrived {
        let mut entries = lock(&self.entries);
        let heartbeat_ms = u64::try_from(self.config.heartbeat.as_millis()).unwrap_or(u64::MAX);
        let arrival = self.arrivals.fetch_add(1, Ordering::Relaxed);
        let welcome = |session: &Session, received| Welcome {
            version: VERSION,
            machine,
            session: session.id.clone(),
            received,
            heartbeat_ms,
        };
        let known = entries.get(&machine).map(|entry| entry.place.session().clone());
        if let (Some(session), Some(resume)) = (&known, &hello.resume)
            && session.id == resume.session
            && let Ok(epoch) = session.mux.attach(&resume.received)
        {
            let place = Arc::new(MachinePlace::new(user, machine, hello.facts, session.clone()));
            entries.insert(machine, Entry { place: place.clone(), arrival });
            return Arrived { place, welcome: welcome(session, Some(session.mux.received())), epoch };
        }
        if let Some(session) = known {
            session.mux.fail(place_lost("its program was restarted"));
        }
        let session = Arc::new(Session::new());
        // INVARIANT: a new session takes any connection, and no offset was named.
        let epoch = session.mux.attach(&[]).expect("a new session takes its first connection");
        let place = Arc::new(MachinePlace::new(user, machine, hello.facts, session.clone()));
        entries.insert(machine, Entry { place: place.clone(), arrival });
        Arrived { place, welcome: welcome(&session, None), epoch }
    }

    /// Forgets the machine if this is still its session.
    fn drop_session(&self, machine: MachineId, session: &Arc<Session>) {
        let mut entries = lock(&self.entries);
        if entries.get(&machine).is_some_and(|entry| Arc::ptr_eq(entry.place.session(), session)) {
            entries.remove(&machine);
        }
    }
}

struct Arrived {
    place: Arc<MachinePlace>,
    welcome: Welcome,
    epoch: u64,
}

/// Holds a connection's end: however it ends, the session is given its grace and then lost.
struct Attached {
    hub: Arc<MachineHub>,
    place: Arc<MachinePlace>,
    epoch: u64,
    grace: Duration,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let session = self.place.session().clone();
        if !session.mux.detach(self.epoch) {
            // Another connection is in charge.
            return;
        }
        let (hub, machine, epoch) = (self.hub.clone(), self.place.machine(), self.epoch);
        hub.authority.disconnected(&self.place);
        let give_up = move || {
            session.mux.fail(place_lost("its connection dropped and it did not come back"));
            hub.drop_session(machine, &session);
            session
        };
        if self.place.session().mux.dead().is_some() {
            give_up();
            return;
        }
        let grace = self.grace;
        let waiting = self.place.session().clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::select! {
                    () = waiting.mux.ended() => {}
                    () = sleep(grace) => {}
                }
                if waiting.mux.is_detached_since(epoch) {
                    give_up();
                }
            })),
            // The runtime is going down, and with it everybody who could wait.
            Err(_) => drop(give_up()),
        }
    }
}

impl Session {
    fn new() -> Self {
        Self {
            mux: Mux::new(),
            id: format!("{:032x}", RequestId::random().bits()),
            next_stream: AtomicU32::new(1),
            next_order: AtomicU64::new(1),
            orders: Mutex::default(),
            execs: Mutex::default(),
        }
    }

    /// A stream's number, never used before in this session.
    pub(crate) fn stream_number(&self) -> u32 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    fn on_record(&self, json: &[u8]) -> Result<(), Violation> {
        match serde_json::from_slice(json).map_err(|_| Violation("a message of the machine cannot be read"))? {
            // An answer that nobody waits for any more is no harm.
            ToServer::Answer { id, answer } => {
                if let Some(waiting) = lock(&self.orders).remove(&id) {
                    let _ = waiting.send(answer);
                }
            }
            ToServer::Exited { exec, report } => {
                if let Some(waiting) = lock(&self.execs).remove(&exec) {
                    let _ = waiting.send(Some(report));
                }
            }
            ToServer::Lost { exec } => {
                if let Some(waiting) = lock(&self.execs).remove(&exec) {
                    let _ = waiting.send(None);
                }
            }
        }
        Ok(())
    }

    /// Why nothing goes through this session.
    fn over(&self) -> Fault {
        self.mux.dead().unwrap_or_else(|| place_lost("its session is over"))
    }

    /// Expects an answer under a fresh number.
    pub(crate) fn expect(self: &Arc<Self>) -> Expected {
        let id = self.next_order.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.orders).insert(id, sender);
        Expected { session: self.clone(), id, receiver }
    }

    /// Sends an order and waits for its answer.
    ///
    /// # Errors
    /// The machine's refusal; `place_lost`; `timed_out` when a machine that is there does not answer.
    pub(crate) async fn order(self: &Arc<Self>, order: Order) -> Result<Answer, Fault> {
        self.order_then(order, || {}).await
    }

    /// As [`Session::order`]; does `sent` as soon as the order is among the records.
    pub(crate) async fn order_then(self: &Arc<Self>, order: Order, sent: impl FnOnce()) -> Result<Answer, Fault> {
        self.mux.room().await?;
        let expected = self.expect();
        self.mux.send(&ToMachine::Order { id: expected.id, order });
        sent();
        // Only time while the machine is connected counts: a drop has its own grace.
        let mut answer = std::pin::pin!(expected.answer());
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = sleep(ANSWER_WITHIN) => {
                    if self.mux.is_attached() {
                        let message = "the machine does not answer an order";
                        return Err(Fault::new(Code::TimedOut, message, "restart `ringfence join` there"));
                    }
                }
            }
        }
    }

    /// Sends an order whose answer nobody waits for.
    pub(crate) fn order_quietly(&self, order: Order) {
        let id = self.next_order.fetch_add(1, Ordering::Relaxed);
        self.mux.send(&ToMachine::Order { id, order });
    }

    /// Resolves when the exec ends: how, or why that is not known. Dropped before that, it kills the exec unless it is
    /// to be kept.
    pub(crate) fn exit_of(
        self: &Arc<Self>,
        exec: ExecId,
        keep: bool,
    ) -> impl Future<Output = Result<ExitReport, Fault>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.execs).insert(exec, sender);
        let watch = ExecWatch { session: self.clone(), exec, kill: !keep };
        async move {
            let mut watch = watch;
            let ended = tokio::select! {
                biased;
                report = receiver => match report {
                    Ok(Some(report)) => Ok(report),
                    Ok(None) => Err(place_lost("it does not know how the exec ended")),
                    Err(_) => Err(watch.session.over()),
                },
                () = watch.session.mux.ended() => Err(watch.session.over()),
            };
            watch.kill = false;
            ended
        }
    }
}

/// An exec whose end somebody waits for; forgets the waiter when dropped.
struct ExecWatch {
    session: Arc<Session>,
    exec: ExecId,
    kill: bool,
}

impl Drop for ExecWatch {
    fn drop(&mut self) {
        lock(&self.session.execs).remove(&self.exec);
        if self.kill {
            // SIGKILL, signal(7). For one that did not start the machine answers that there is none.
            self.session.order_quietly(Order::Signal { exec: self.exec, signal: 9, scope: SignalScope::Tree });
        }
    }
}

/// An answer that is to come; dropped, it is no longer expected.
pub(crate) struct Expected {
    session: Arc<Session>,
    pub(crate) id: u64,
    receiver: oneshot::Receiver<Answer>,
}

impl Expected {
    /// Waits for it.
    ///
    /// # Errors
    /// The machine's refusal; `place_lost`.
    pub(crate) async fn answer(mut self) -> Result<Answer, Fault> {
        let answer = tokio::select! {
            biased;
            answer = &mut self.receiver => answer.map_err(|_| self.session.over())?,
            () = self.session.mux.ended() => return Err(self.session.over()),
        };
        match answer {
            Answer::Failed { fault } => Err(tame(fault)),
            answer => Ok(answer),
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.session.orders).remove(&self.id);
    }
}
