//! The server's connection to the warden: orders out, answers and news in, one connection kept for ever.
//!
//! ```text
//!  no connection ──connect, Hello──▶ connected ──closed, broken──▶ no connection (tries again, 50 ms to 2 s apart)
//! ```
//!
//! Without a connection every order is answered with `warden_unavailable` at once. With the warden its sandboxes are
//! gone, for a new warden ends what it finds: so the loss of the connection is told as [`News::Lost`].

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rf_types::{Code, Enforcement, Fault, Limits, SandboxId, SandboxSpec, SnapshotId, TemplateName, units::UnixMs};
use rf_wire::warden::{
    Answer, GoneWhy, MESSAGE_MAX, Order, Paused, PausedWhy, Reply, Request, Snapshot, Status, Template, Usage, VERSION,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    packet::{self, Fds, Received},
    reactor, refusal,
};

/// How long the warden may take to make, change or ask a sandbox. Chosen: far above what any takes under load.
const ORDER_TIME: Duration = Duration::from_secs(30);
/// How long it may say nothing at all, to nobody, before it is asked whether it is there; and again before who waits is
/// told that it hangs. Chosen: together below two seconds, and far above what any turn of its loop takes.
const SILENCE_TIME: Duration = Duration::from_millis(900);
/// How long it may take to unpack a layer or set a template.
const TEMPLATE_TIME: Duration = Duration::from_secs(1_800);
/// How long it may take to save a sandbox's files: where they are copied, that depends on how many they are.
const SNAPSHOT_TIME: Duration = Duration::from_secs(600);
/// First and longest pause between two attempts to connect. Chosen.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Orders under way at once; more wait for the user's patience, not for memory. Chosen.
const PENDING_MAX: usize = 4_096;
/// The tag of the first message; those of orders begin above it.
const HELLO_TAG: u64 = 1;
/// News kept for a slow listener; beyond that the warden's answers wait. Chosen.
const NEWS_MAX: usize = 16_384;

/// What the warden tells by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum News {
    /// A sandbox ended by itself; said before any order behind this one was given, see [`WardenClient::last_order`].
    Gone(SandboxId, GoneWhy, u64),
    /// A sandbox was paused without being told to; likewise.
    Paused(SandboxId, PausedWhy, u64),
    /// A snapshot became durable, or was counted.
    SnapshotChanged(Snapshot),
    /// A snapshot that was not durable is no more, and why.
    SnapshotLost(SnapshotId, String),
    /// The connection is lost, and every sandbox with it.
    Lost,
    /// There is a connection again.
    Back,
    /// A sandbox was made for somebody who no longer waits: it is to be destroyed.
    Orphan(SandboxId),
}

/// A sandbox that was made.
#[derive(Debug)]
pub struct Created {
    /// Its id.
    pub id: SandboxId,
    /// When its lease ends.
    pub lease_until: UnixMs,
    /// Whether it was prepared before.
    pub pooled: bool,
    /// What holds it.
    pub enforcement: Enforcement,
    /// The socket to its init.
    pub(crate) socket: OwnedFd,
}

/// A sandbox that was alive before this connection.
#[derive(Debug)]
pub struct AdoptedSandbox {
    /// Its id.
    pub id: SandboxId,
    /// As it was asked for, with the limits it has now.
    pub spec: SandboxSpec,
    /// When its lease ends.
    pub lease_until: UnixMs,
    /// What holds it.
    pub enforcement: Enforcement,
    /// Whether it is paused.
    pub paused: Option<Paused>,
    /// The socket to its init; what is written to it while the sandbox is paused is read when it is resumed.
    pub(crate) socket: OwnedFd,
}

/// The connection to the warden; cheap to clone.
#[derive(Clone, Debug)]
pub struct WardenClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// How many messages came.
    heard: AtomicU64,
    connected: watch::Sender<bool>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Arc<AsyncFd<OwnedFd>>>,
    tag: u64,
    pending: HashMap<u64, Pending>,
}

#[derive(Debug)]
enum Pending {
    One(oneshot::Sender<Result<(Reply, Option<OwnedFd>), Fault>>),
    Adopt(Vec<AdoptedSandbox>, oneshot::Sender<Result<Vec<AdoptedSandbox>, Fault>>),
}

fn unavailable() -> Fault {
    Fault::new(Code::WardenUnavailable, "the warden cannot be reached", "it is restarting: try again in a few seconds")
}

fn nonsense() -> Fault {
    Fault::new(Code::Internal, "the warden gave an answer that does not fit the order", "")
}

impl WardenClient {
    /// Begins to connect to the warden's socket, and to stay connected. News go to the receiver; it must be read.
    #[must_use]
    pub fn connect(socket: &Path) -> (Self, mpsc::Receiver<News>) {
        let (news, receiver) = mpsc::channel(NEWS_MAX);
        let inner = Arc::new(Inner {
            state: Mutex::new(State { tag: HELLO_TAG, ..State::default() }),
            heard: AtomicU64::new(0),
            connected: watch::Sender::new(false),
            keeper: Mutex::default(),
        });
        let keeper = tokio::spawn(keep_connected(Arc::downgrade(&inner), socket.to_owned(), news));
        *inner.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        (Self { inner }, receiver)
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        *self.inner.connected.borrow()
    }

    /// The number of the last order that was given. The warden says one thing after the other, so news with a number that
    /// is no greater came before the answer to any order that was given after this was asked: it may be told to its
    /// listener later all the same.
    #[must_use]
    pub(crate) fn last_order(&self) -> u64 {
        self.inner.state().tag
    }

    /// Waits until there is a connection.
    pub async fn connected(&self) {
        // The sender is ours, so the only way on is a connection.
        let _ = self.inner.connected.subscribe().wait_for(|connected| *connected).await;
    }

    /// Makes a sandbox.
    ///
    /// # Errors
    /// `warden_unavailable`, `timed_out`, and what the warden says: `layer_unavailable`, `template_unavailable`,
    /// `server_busy`.
    pub async fn create(&self, spec: SandboxSpec) -> Result<Created, Fault> {
        self.create_from(spec, None, None).await
    }

    /// Makes a sandbox that begins with the files of a snapshot, if one is named; with the id of one that is no more, if
    /// one is named.
    ///
    /// # Errors
    /// As [`WardenClient::create`]; `not_found` for the snapshot; `conflict` when a sandbox of that id lives.
    pub async fn create_from(
        &self,
        spec: SandboxSpec,
        from: Option<SnapshotId>,
        id: Option<SandboxId>,
    ) -> Result<Created, Fault> {
        match self.ask_with_fd(Order::Create { spec, from, id }, None, ORDER_TIME).await? {
            (Reply::Created { id, lease_until, pooled, enforcement }, Some(socket)) => {
                Ok(Created { id, lease_until, pooled, enforcement, socket })
            }
            _ => Err(nonsense()),
        }
    }

    /// Destroys a sandbox; answered when nothing of it is left.
    ///
    /// # Errors
    /// As [`WardenClient::create`]; `not_found`.
    pub async fn destroy(&self, id: SandboxId) -> Result<(), Fault> {
        self.done(Order::Destroy { id }, ORDER_TIME).await
    }

    /// Freezes a sandbox's processes; answered when the kernel says that they are frozen, also when they were before.
    ///
    /// # Errors
    /// As [`WardenClient::destroy`]; `unsupported` where this host cannot freeze, `conflict` while it is being saved,
    /// `timed_out` when the kernel does not get them frozen.
    pub async fn pause(&self, id: SandboxId) -> Result<(), Fault> {
        self.done(Order::Pause { id }, ORDER_TIME).await
    }

    /// Thaws a sandbox's processes; gives the end of its lease. See [`Order::Resume`] for `lease_until`.
    ///
    /// # Errors
    /// As [`WardenClient::destroy`].
    pub async fn resume(&self, id: SandboxId, lease_until: Option<UnixMs>) -> Result<UnixMs, Fault> {
        match self.ask(Order::Resume { id, lease_until }, ORDER_TIME).await? {
            Reply::Resumed { lease_until } => Ok(lease_until),
            _ => Err(nonsense()),
        }
    }

    /// Saves a sandbox's files as they are at one instant, under a name that the caller chose.
    ///
    /// # Errors
    /// As [`WardenClient::pause`]; `conflict` when there is such a snapshot, `limit_reached` when its layers are too
    /// many, `disk_full` when it had to be copied and does not fit.
    pub async fn snapshot(&self, id: SandboxId, snapshot: SnapshotId) -> Result<Snapshot, Fault> {
        match self.ask(Order::Snapshot { id, snapshot }, SNAPSHOT_TIME).await? {
            Reply::Snapshotted(snapshot) => Ok(snapshot),
            _ => Err(nonsense()),
        }
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `warden_unavailable`, `timed_out`, `not_found`.
    pub async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<(), Fault> {
        self.done(Order::RemoveSnapshot { snapshot }, ORDER_TIME).await
    }

    /// Every snapshot, in the order of their ids; and those whose files the warden has set aside, so that they are there
    /// and cannot be used.
    ///
    /// # Errors
    /// `warden_unavailable`, `timed_out`.
    pub async fn snapshots(&self) -> Result<(Vec<Snapshot>, Vec<SnapshotId>), Fault> {
        let (mut all, mut all_aside): (Vec<Snapshot>, Vec<SnapshotId>) = (Vec::new(), Vec::new());
        loop {
            let after = all.last().map(|snapshot| snapshot.id).max(all_aside.last().copied());
            match self.ask(Order::Snapshots { after }, ORDER_TIME).await? {
                // One that says there is more and gives none would never end.
                Reply::Snapshots { list, set_aside, more } if !(more && list.is_empty() && set_aside.is_empty()) => {
                    all.extend(list);
                    all_aside.extend(set_aside);
                    if !more {
                        return Ok((all, all_aside));
                    }
                }
                _ => return Err(nonsense()),
            }
        }
    }

    /// Takes over every sandbox that is alive.
    ///
    /// # Errors
    /// `warden_unavailable`, `timed_out`.
    pub async fn adopt(&self) -> Result<Vec<AdoptedSandbox>, Fault> {
        let (waiter, answer) = oneshot::channel();
        self.send(Order::Adopt {}, None, Pending::Adopt(Vec::new(), waiter)).await?;
        self.within(ORDER_TIME, answer).await
    }

    /// Sets the end of a lease.
    ///
    /// # Errors
    /// As [`WardenClient::destroy`].
    pub async fn set_lease(&self, id: SandboxId, lease_until: UnixMs) -> Result<(), Fault> {
        self.done(Order::SetLease { id, lease_until }, ORDER_TIME).await
    }

    /// Sets limits.
    ///
    /// # Errors
    /// As [`WardenClient::destroy`].
    pub async fn set_limits(&self, id: SandboxId, limits: Limits) -> Result<(), Fault> {
        self.done(Order::SetLimits { id, limits }, ORDER_TIME).await
    }

    /// What a sandbox uses.
    ///
    /// # Errors
    /// As [`WardenClient::destroy`].
    pub async fn usage(&self, id: SandboxId) -> Result<Usage, Fault> {
        match self.ask(Order::Usage { id }, ORDER_TIME).await? {
            Reply::Used(usage) => Ok(usage),
            _ => Err(nonsense()),
        }
    }

    /// Unpacks one layer from `tar`, read from its start; gives its bytes and files.
    ///
    /// # Errors
    /// As [`WardenClient::create`].
    pub async fn unpack_layer(&self, diff_id: String, tar: OwnedFd) -> Result<(u64, u64), Fault> {
        match self.ask_with_fd(Order::UnpackLayer { diff_id }, Some(tar), TEMPLATE_TIME).await? {
            (Reply::Unpacked { bytes, files }, _) => Ok((bytes, files)),
            _ => Err(nonsense()),
        }
    }

    /// Gives a template its layers, lowest first.
    ///
    /// # Errors
    /// As [`WardenClient::create`].
    pub async fn set_template(&self, name: TemplateName, layers: Vec<String>) -> Result<(), Fault> {
        self.done(Order::SetTemplate { name, layers }, TEMPLATE_TIME).await
    }

    /// Removes a template.
    ///
    /// # Errors
    /// As [`WardenClient::destroy`].
    pub async fn remove_template(&self, name: TemplateName) -> Result<(), Fault> {
        self.done(Order::RemoveTemplate { name }, TEMPLATE_TIME).await
    }

    /// Every template.
    ///
    /// # Errors
    /// `warden_unavailable`, `timed_out`.
    pub async fn templates(&self) -> Result<Vec<Template>, Fault> {
        match self.ask(Order::Templates {}, ORDER_TIME).await? {
            Reply::Templates(templates) => Ok(templates),
            _ => Err(nonsense()),
        }
    }

    /// The warden and its host.
    ///
    /// # Errors
    /// `warden_unavailable`, `timed_out`.
    pub async fn status(&self) -> Result<Status, Fault> {
        match self.ask(Order::Status {}, ORDER_TIME).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(nonsense()),
        }
    }

    async fn done(&self, order: Order, time: Duration) -> Result<(), Fault> {
        match self.ask(order, time).await? {
            Reply::Done {} => Ok(()),
            _ => Err(nonsense()),
        }
    }

    async fn ask(&self, order: Order, time: Duration) -> Result<Reply, Fault> {
        self.ask_with_fd(order, None, time).await.map(|(reply, _)| reply)
    }

    async fn ask_with_fd(
        &self,
        order: Order,
        fd: Option<OwnedFd>,
        time: Duration,
    ) -> Result<(Reply, Option<OwnedFd>), Fault> {
        let (waiter, answer) = oneshot::channel();
        self.send(order, fd, Pending::One(waiter)).await?;
        self.within(time, answer).await
    }

    async fn within<T>(&self, time: Duration, answer: oneshot::Receiver<Result<T, Fault>>) -> Result<T, Fault> {
        self.patiently(time, answer).await?.unwrap_or_else(|_| Err(unavailable()))
    }

    /// Waits for `work`; no longer than until the warden has been silent for so long that it must hang. One that is late
    /// and answers others is at work.
    async fn patiently<T>(&self, time: Duration, work: impl Future<Output = T>) -> Result<T, Fault> {
        let late = |what: &str| Fault::new(Code::TimedOut, what, "try again in a few seconds");
        let deadline = tokio::time::Instant::now() + time;
        let mut work = std::pin::pin!(work);
        let mut asked = false;
        loop {
            let heard = self.inner.heard.load(Ordering::Relaxed);
            match tokio::time::timeout(SILENCE_TIME, work.as_mut()).await {
                Ok(done) => return Ok(done),
                Err(_) if tokio::time::Instant::now() > deadline => {
                    return Err(late("the warden did not answer in time"));
                }
                Err(_) if heard != self.inner.heard.load(Ordering::Relaxed) => asked = false,
                Err(_) if asked => return Err(late("the warden hangs: it says nothing at all")),
                Err(_) => {
                    asked = true;
                    self.ping();
                }
            }
        }
    }

    /// Asks the warden for anything: whatever it says to that, it says something. Where there is no room, it reads
    /// nothing.
    fn ping(&self) {
        let mut state = self.inner.state();
        let Some(socket) = state.socket.clone() else { return };
        state.tag += 1;
        let request = Request { tag: state.tag, order: Order::Usage { id: SandboxId::random() } };
        let sent = serde_json::to_vec(&request)
            .is_ok_and(|message| packet::send(socket.get_ref().as_fd(), &message, &[]).is_ok());
        if sent {
            state.pending.insert(request.tag, Pending::One(oneshot::channel().0));
        }
    }

    async fn send(&self, order: Order, fd: Option<OwnedFd>, pending: Pending) -> Result<(), Fault> {
        let (socket, tag) = {
            let mut state = self.inner.state();
            let socket = state.socket.clone().ok_or_else(unavailable)?;
            if state.pending.len() >= PENDING_MAX {
                return Err(Fault::new(Code::ServerBusy, "too many orders to the warden are under way", "try again"));
            }
            state.tag += 1;
            let tag = state.tag;
            state.pending.insert(tag, pending);
            (socket, tag)
        };
        // Also when the caller goes away while there is no room: nobody would ever answer it.
        let unsent = Unsent { inner: &self.inner, tag };
        self.send_order(&socket, tag, order, fd).await?;
        std::mem::forget(unsent);
        Ok(())
    }

    async fn send_order(
        &self,
        socket: &AsyncFd<OwnedFd>,
        tag: u64,
        order: Order,
        fd: Option<OwnedFd>,
    ) -> Result<(), Fault> {
        let message = serde_json::to_vec(&Request { tag, order })
            .map_err(|error| Fault::new(Code::Internal, format!("cannot encode an order: {error}"), ""))?;
        if message.len() > MESSAGE_MAX {
            return Err(Fault::new(Code::TooLarge, "the order to the warden is too long", "ask for less at once"));
        }
        let fds: Vec<_> = fd.into_iter().collect();
        self.patiently(ORDER_TIME, packet::send_waiting(socket, &message, &fds)).await?.map_err(|_| unavailable())
    }
}

/// An order that the warden has not got yet. Dropped, it is not under way any more.
struct Unsent<'a> {
    inner: &'a Inner,
    tag: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.inner.state().pending.remove(&self.tag);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one message; `Err` ends the connection.
    fn take(&self, bytes: &[u8], fds: Fds) -> Result<Option<News>, String> {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let answer: Answer = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let Fds { mut list, cut } = fds;
        let fd = list.pop();
        if !list.is_empty() {
            return Err("more than one descriptor".into());
        }
        if answer.tag == 0 {
            let last = self.state().tag;
            return match answer.result {
                Ok(Reply::Gone { id, why }) => Ok(Some(News::Gone(id, why, last))),
                Ok(Reply::Paused { id, why }) => Ok(Some(News::Paused(id, why, last))),
                Ok(Reply::SnapshotLost { id, why }) => Ok(Some(News::SnapshotLost(id, why))),
                Ok(Reply::SnapshotChanged(snapshot)) => Ok(Some(News::SnapshotChanged(snapshot))),
                _ => Err("news of an unknown kind".into()),
            };
        }
        let mut state = self.state();
        match (state.pending.remove(&answer.tag), answer.result) {
            (Some(Pending::One(waiter)), Ok(Reply::Created { id, .. })) if cut => {
                drop(state);
                let _ = waiter.send(Err(refusal::no_room()));
                return Ok(Some(News::Orphan(id)));
            }
            (Some(Pending::One(waiter)), result) => {
                drop(state);
                if let Err(Ok((Reply::Created { id, .. }, _))) = waiter.send(result.map(|reply| (reply, fd))) {
                    return Ok(Some(News::Orphan(id)));
                }
            }
            (
                Some(Pending::Adopt(mut adopted, waiter)),
                Ok(Reply::Adopted { id, spec, lease_until, enforcement, paused }),
            ) => {
                let socket = fd.ok_or("an adopted sandbox without its socket")?;
                adopted.push(AdoptedSandbox { id, spec, lease_until, enforcement, paused, socket });
                state.pending.insert(answer.tag, Pending::Adopt(adopted, waiter));
            }
            (Some(Pending::Adopt(adopted, waiter)), Ok(Reply::Done {})) => drop(waiter.send(Ok(adopted))),
            (Some(Pending::Adopt(_, waiter)), Err(fault)) => drop(waiter.send(Err(fault))),
            (Some(Pending::Adopt(..)), Ok(_)) | (None, _) => return Err("an answer to no order".into()),
        }
        Ok(None)
    }
}

/// Connects, serves the connection until it ends, and begins again; ends with the last client, or when nobody reads
/// the news any more.
async fn keep_connected(inner: Weak<Inner>, path: PathBuf, news: mpsc::Sender<News>) {
    let mut pause = PAUSES.0;
    loop {
        match open(&path).await {
            Ok(socket) => {
                pause = PAUSES.0;
                let Some(strong) = inner.upgrade() else { return };
                strong.state().socket = Some(Arc::clone(&socket));
                strong.connected.send_replace(true);
                drop(strong);
                if news.send(News::Back).await.is_err() {
                    return;
                }
                let why = serve(&inner, &socket, &news).await;
                let Some(strong) = inner.upgrade() else { return };
                strong.connected.send_replace(false);
                let pending = {
                    let mut state = strong.state();
                    state.socket = None;
                    std::mem::take(&mut state.pending)
                };
                // A dropped sender is answered with `warden_unavailable`.
                drop(pending);
                tracing::warn!(why, "the connection to the warden is lost");
                if news.send(News::Lost).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, path = %path.display(), "cannot connect to the warden"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Connects and says hello.
async fn open(path: &Path) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Never waits: a full queue is `EAGAIN` (connect(2)), and tried again like every other failure.
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = Arc::new(reactor::register_socket(socket)?);
    let hello = Request { tag: HELLO_TAG, order: Order::Hello { version: VERSION } };
    packet::send_waiting(&socket, &serde_json::to_vec(&hello)?, &[]).await?;
    let refused = |what: &str| io::Error::other(what.to_owned());
    let greeting = async {
        loop {
            let mut guard = socket.readable().await?;
            let look = |bytes: &[u8], _fds| serde_json::from_slice::<Answer>(bytes);
            match packet::receive(socket.get_ref().as_fd(), look)? {
                Received::Message(answer) => return answer.map_err(io::Error::from),
                Received::Empty => guard.clear_ready(),
                Received::Closed | Received::Broken => return Err(refused("closed before the greeting")),
            }
        }
    };
    match tokio::time::timeout(ORDER_TIME, greeting).await {
        Ok(Ok(Answer { tag: HELLO_TAG, result: Ok(Reply::Done {}) })) => Ok(socket),
        Ok(Ok(Answer { result: Err(fault), .. })) => Err(refused(&fault.message)),
        Ok(Ok(_)) => Err(refused("a greeting of another kind")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(refused("no greeting in time")),
    }
}

/// Reads until the connection ends; says why it did.
async fn serve(inner: &Weak<Inner>, socket: &AsyncFd<OwnedFd>, news: &mpsc::Sender<News>) -> String {
    loop {
        let mut guard = match socket.readable().await {
            Ok(guard) => guard,
            Err(error) => return error.to_string(),
        };
        let Some(strong) = inner.upgrade() else { return "nobody uses it".into() };
        let item = match packet::receive(socket.get_ref().as_fd(), |bytes, fds| strong.take(bytes, fds)) {
            Ok(Received::Message(Ok(item))) => item,
            Ok(Received::Message(Err(why))) => return why,
            Ok(Received::Empty) => {
                guard.clear_ready();
                None
            }
            Ok(Received::Closed) => return "closed".into(),
            Ok(Received::Broken) => return "a message that does not fit".into(),
            Err(error) => return error.to_string(),
        };
        drop(strong);
        if let Some(item) = item
            && news.send(item).await.is_err()
        {
            return "nobody reads the news".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use rustix::net::{accept, bind, listen};

    use super::*;

    #[tokio::test]
    async fn an_order_whose_caller_left_before_it_was_sent_is_not_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        // One that greets and then reads nothing more.
        let greeted = tokio::task::spawn_blocking(move || {
            let warden = accept(&listener).unwrap();
            rustix::io::read(&warden, &mut [0; 4096]).unwrap();
            let hello = Answer { tag: HELLO_TAG, result: Ok(Reply::Done {}) };
            rustix::io::write(&warden, &serde_json::to_vec(&hello).unwrap()).unwrap();
            warden
        });
        let (client, _news) = WardenClient::connect(&path);
        client.connected().await;
        let _warden = greeted.await.unwrap();
        for n in 0..2 * PENDING_MAX {
            // Asked, and given up at once.
            let answer = client.usage(SandboxId::from_bits(1)).now_or_never();
            assert!(answer.is_none(), "order {n}: {answer:?}");
        }
        let under_way = client.inner.state().pending.len();
        assert!((1..PENDING_MAX).contains(&under_way), "what was sent is under way, and nothing else: {under_way}");
    }
}
