//! The server's side of the socket to one sandbox's init: orders out, answers and news in.
//!
//! Everything that comes in is hostile: a message that breaks the rules, in length, kind, tag or descriptors, ends the
//! sandbox ([`Shared::break_off`]). What a broken or dead init owed is answered with `place_lost`.
//!
//! One small task a sandbox reads its socket; the receive buffer is the thread's, so an idle sandbox costs one
//! registration with the reactor and some hundred bytes.
//!
//! Time: an order is answered within [`ANSWER_TIME`] or its caller gets `timed_out`; within [`HUNG_TIME`] if init says
//! nothing at all, not even to a `PING`. A starved init is not a dead one, so the sandbox itself is given up only when a
//! later `PING` stays unanswered for [`PING_TIME`] as well. An init that
//! dies is seen at once: its socket closes. While the sandbox is paused no time passes, and after that it begins anew.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rf_types::{ExecId, ExitReport, Fault, SignalScope, Usage};
use rf_wire::init::{self, Exited, File, INLINE_MAX, Listed, MEMFD_MAX, Malformed, Reader, Writer, answer, order};
use tokio::{
    io::unix::AsyncFd,
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    encode,
    packet::{self, Fds, Received},
    reactor,
    refusal::{self, Failed},
    sandboxes::EndedWhy,
};

/// How long an order may stay unanswered. Chosen: a sandbox with a hundredth of a CPU forks within a second or two.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long an order may stay unanswered by an init that says nothing at all: it hangs. Chosen: callers learn of it within
/// two seconds, and a starved init, which answers a `PING` as soon as it runs, is not taken for one.
pub const HUNG_TIME: Duration = Duration::from_millis(1_800);
/// How long a sandbox that did not answer an order in time has to answer a `PING`.
pub const PING_TIME: Duration = Duration::from_secs(20);
/// Added to the number of an order whose answer comes on a socket of its own, so that a late `FAILED` is known.
const FILE_TAG: u64 = 1 << 63;

/// The connection to one init.
#[derive(Debug)]
pub(crate) struct InitClient {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

/// What the connection's users hold.
#[derive(Debug)]
pub(crate) struct Shared {
    socket: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    lost: CancellationToken,
    /// How many messages came.
    heard: AtomicU64,
    /// Counts how often it was paused and resumed; odd while it is paused.
    pauses: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    tag: u64,
    pending: HashMap<u64, Pending>,
    exits: HashMap<u128, Ending>,
    /// Ended execs that init may forget: told in one go now and then, off the way of whoever waits.
    ended: Vec<u128>,
    /// Until the first `LIST` is answered: news of execs that we do not know yet are in that list.
    adopting: bool,
    probing: bool,
    lost: Option<Fault>,
    /// Called once when the sandbox is lost.
    on_lost: Option<OnLost>,
}

/// Who waits for the end of an exec.
struct Ending {
    kept: bool,
    waiter: oneshot::Sender<Result<ExitReport, Fault>>,
}

/// Who is told that a sandbox is lost.
pub(crate) type OnLost = Box<dyn FnOnce(EndedWhy) + Send>;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("pending", &self.pending.len()).field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// Who waits for an answer.
#[derive(Debug)]
enum Pending {
    Spawn { exec: u128, fds: usize, keep: bool, waiter: oneshot::Sender<Result<Started, Failed>> },
    Plain(oneshot::Sender<Result<(), Failed>>),
    List { found: Vec<Found>, waiter: oneshot::Sender<Vec<Found>> },
    File(oneshot::Sender<Failed>),
}

/// An exec that init started: its pid, its descriptors as they came, and its end.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) exit: Exit,
}

/// One exec of a list.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) exec: ExecId,
    pub(crate) flags: u32,
    pub(crate) wall_us: u64,
    pub(crate) running: bool,
    pub(crate) started: Started,
}

/// How an exec ends. Dropped before that was taken, it kills the exec's tree, unless the exec is kept.
#[derive(Debug)]
pub(crate) struct Exit {
    shared: Arc<Shared>,
    exec: u128,
    kept: bool,
    over: bool,
    end: oneshot::Receiver<Result<ExitReport, Fault>>,
}

impl Exit {
    /// Kills the whole tree; the end is told as always.
    pub(crate) fn kill(&self) {
        self.shared.kill(self.exec);
    }

    /// Waits for the end, at most for `time` of the sandbox's own life; `None` when it is over.
    pub(crate) async fn within(&mut self, time: Duration) -> Option<Result<ExitReport, Fault>> {
        let shared = Arc::clone(&self.shared);
        shared.within(time, self).await
    }

    /// Gives the sandbox up: it does not even kill.
    pub(crate) fn give_up(&self) {
        self.shared.break_off(refusal::lost("it did not end an exec that was killed"), EndedWhy::Broken);
    }
}

impl Future for Exit {
    type Output = Result<ExitReport, Fault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let end = ready!(Pin::new(&mut self.end).poll(context));
        self.over = true;
        Poll::Ready(end.unwrap_or_else(|_| Err(self.shared.lost_fault())))
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        // Also when its first process has ended meanwhile: others of its tree may live, and nobody took the news.
        if !self.over && !self.kept {
            self.shared.kill(self.exec);
        }
    }
}

impl InitClient {
    /// Takes the socket that the warden handed out. `adopted`: the sandbox was there before this server; then
    /// [`InitClient::list`] comes first. `on_lost` is called once, when the sandbox is lost.
    ///
    /// # Errors
    /// When the socket cannot be registered with the reactor (`ENOMEM`, `ENOSPC`: epoll_ctl(2)).
    pub(crate) fn new(socket: OwnedFd, adopted: bool, on_lost: OnLost) -> io::Result<Self> {
        let socket = reactor::register_socket(socket)?;
        let state = Mutex::new(State { adopting: adopted, on_lost: Some(on_lost), ..State::default() });
        let pauses = watch::Sender::new(0);
        let shared =
            Arc::new(Shared { socket, state, lost: CancellationToken::new(), heard: AtomicU64::new(0), pauses });
        let reader = tokio::spawn(read_all(Arc::clone(&shared)));
        Ok(Self { shared, reader })
    }

    /// Ends when the sandbox is lost; at once if it is already.
    pub(crate) async fn lost(&self) -> Fault {
        self.shared.lost.cancelled().await;
        self.shared.lost_fault()
    }

    /// Whether the sandbox is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// Notes that the sandbox is paused, or is not any more.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.shared.pauses.send_if_modified(|pauses| {
            let changes = is_paused(*pauses) != paused;
            *pauses += u64::from(changes);
            changes
        });
    }

    /// Declares the sandbox lost: everything waiting for it is answered with `fault`.
    pub(crate) fn break_off(&self, fault: Fault, why: EndedWhy) {
        self.shared.break_off(fault, why);
    }

    /// Starts an exec; `body` is that of a `SPAWN`, `fds` how many descriptors its answer must have.
    ///
    /// # Errors
    /// As the outer result `place_lost`, `timed_out`; as the inner what init said.
    pub(crate) async fn spawn(
        &self,
        exec: ExecId,
        body: &[u8],
        fds: usize,
        keep: bool,
    ) -> Result<Result<Started, Failed>, Fault> {
        // Looked for before: an exec whose streams find no room has run for nothing, and a second try would run it again.
        let socket = self.shared.socket.get_ref();
        let room: io::Result<Vec<OwnedFd>> = (0..fds).map(|_| socket.try_clone()).collect();
        room.map(drop).map_err(|_| refusal::no_room())?;
        let (waiter, answer) = oneshot::channel();
        let pending = Pending::Spawn { exec: exec.bits(), fds, keep, waiter };
        self.order(order::SPAWN, body, pending, 0).await?;
        self.answered(answer, "the start of an exec").await
    }

    /// Signals an exec.
    ///
    /// # Errors
    /// As [`InitClient::spawn`].
    pub(crate) async fn signal(
        &self,
        exec: ExecId,
        signal: u32,
        scope: SignalScope,
    ) -> Result<Result<(), Failed>, Fault> {
        let body = encode::signal(exec.bits(), signal, scope);
        self.plain(order::SIGNAL, &body, "a signal").await
    }

    /// Lets init forget an ended exec; nobody waits for the answer.
    pub(crate) fn forget(&self, exec: ExecId) {
        self.shared.order_now(order::FORGET, &exec.bits().to_le_bytes());
    }

    /// Lets init forget the execs that ended since the last time and whose callers have their answer; nobody waits.
    pub(crate) fn forget_ended(&self) {
        let ended = std::mem::take(&mut self.shared.state().ended);
        for exec in ended {
            self.shared.order_now(order::FORGET, &exec.to_le_bytes());
        }
    }

    /// Lets init close its copies of an exec's descriptors; nobody waits for the answer.
    pub(crate) fn release(shared: &Arc<Shared>, exec: u128) {
        shared.order_now(order::RELEASE, &exec.to_le_bytes());
    }

    /// What the connection's users hold.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Is it there?
    ///
    /// # Errors
    /// `place_lost`, `timed_out`.
    pub(crate) async fn ping(&self) -> Result<(), Fault> {
        self.plain(order::PING, &[], "a ping").await?.map_err(|_| refusal::lost("it refused a ping"))
    }

    /// Every exec it knows. Also ends the time in which news of unknown execs are passed over.
    ///
    /// # Errors
    /// `place_lost`, `timed_out`.
    pub(crate) async fn list(&self) -> Result<Vec<Found>, Fault> {
        let (waiter, answer) = oneshot::channel();
        self.order(order::LIST, &[], Pending::List { found: Vec::new(), waiter }, 0).await?;
        self.answered(answer, "the list of its execs").await
    }

    /// Begins a file operation; `fds` are the reply socket and perhaps a data pipe. What comes back is told only if no
    /// helper could be started.
    ///
    /// # Errors
    /// `place_lost`, `invalid_request` when it is too long.
    pub(crate) async fn file(&self, file: &File<'_>, fds: Vec<OwnedFd>) -> Result<oneshot::Receiver<Failed>, Fault> {
        let (waiter, answer) = oneshot::channel();
        let body = encode::file(file)?;
        let message = self.shared.prepare(order::FILE, &body, Pending::File(waiter), FILE_TAG, fds)?;
        self.send(message).await?;
        Ok(answer)
    }

    async fn plain(&self, kind: u16, body: &[u8], what: &str) -> Result<Result<(), Failed>, Fault> {
        let (waiter, answer) = oneshot::channel();
        self.order(kind, body, Pending::Plain(waiter), 0).await?;
        self.answered(answer, what).await
    }

    async fn order(&self, kind: u16, body: &[u8], pending: Pending, tag_bits: u64) -> Result<(), Fault> {
        let message = self.shared.prepare(kind, body, pending, tag_bits, Vec::new())?;
        self.send(message).await
    }

    async fn send(&self, message: Message) -> Result<(), Fault> {
        let borrowed: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
        match self.shared.try_send(&message.bytes, &borrowed) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done.map_err(|error| self.shared.send_failed(&error)),
        }
        // Also when the caller goes away meanwhile: nobody would ever answer it.
        let unsent = Unsent { shared: &self.shared, tag: message.tag };
        let waiting = packet::send_waiting(&self.shared.socket, &message.bytes, &message.fds);
        tokio::select! {
            sent = waiting => sent.map_err(|error| self.shared.send_failed(&error)),
            fault = self.lost() => Err(fault),
            _ = self.shared.patiently(ANSWER_TIME, std::future::pending::<()>()) => {
                self.probe();
                Err(refusal::timed_out("an order"))
            }
        }?;
        std::mem::forget(unsent);
        Ok(())
    }

    async fn answered<T>(&self, answer: oneshot::Receiver<T>, what: &str) -> Result<T, Fault> {
        match self.shared.patiently(ANSWER_TIME, answer).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(_)) => Err(self.shared.lost_fault()),
            None => {
                self.probe();
                Err(refusal::timed_out(what))
            }
        }
    }

    /// Finds out whether a sandbox that was late is still alive; gives it up if not.
    fn probe(&self) {
        let shared = Arc::clone(&self.shared);
        if std::mem::replace(&mut shared.state().probing, true) {
            return;
        }
        tokio::spawn(async move {
            let (waiter, answer) = oneshot::channel();
            let message = shared.prepare(order::PING, &[], Pending::Plain(waiter), 0, Vec::new());
            let alive = async {
                packet::send_waiting(&shared.socket, &message.ok()?.bytes, &[]).await.ok()?;
                answer.await.ok()
            };
            let alive = tokio::select! {
                alive = shared.within(PING_TIME, alive) => matches!(alive, Some(Some(_))),
                () = shared.lost.cancelled() => return,
            };
            shared.state().probing = false;
            if !alive {
                shared.break_off(refusal::lost("it did not answer for a long time"), EndedWhy::Broken);
            }
        });
    }
}

impl Drop for InitClient {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.break_off(refusal::lost("it was destroyed"), EndedWhy::Destroyed);
    }
}

const fn is_paused(pauses: u64) -> bool {
    pauses % 2 == 1
}

/// An order that init has not got yet. Dropped, nobody waits for its answer any more.
struct Unsent<'a> {
    shared: &'a Shared,
    tag: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.shared.state().pending.remove(&self.tag);
    }
}

/// An order, ready to be sent.
struct Message {
    tag: u64,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the sandbox is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Waits for `work`, at most for `time`, `None` when it is over. While the sandbox is paused no time passes, and when
    /// it is resumed it begins anew.
    async fn within<T>(&self, time: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let before = *self.pauses.borrow();
            if let Ok(done) = tokio::time::timeout(time, work.as_mut()).await {
                return Some(done);
            }
            if before == *self.pauses.borrow() && !is_paused(before) {
                return None;
            }
            let mut pauses = self.pauses.subscribe();
            tokio::select! {
                done = work.as_mut() => return Some(done),
                // The sender is our own.
                _ = pauses.wait_for(|pauses| !is_paused(*pauses)) => {}
            }
        }
    }

    /// Waits for `work`; `None` when `time` is over, or when init has been silent for [`HUNG_TIME`], to a `PING` as well.
    pub(crate) async fn patiently<T>(self: &Arc<Self>, time: Duration, work: impl Future<Output = T>) -> Option<T> {
        const SLICE: Duration = HUNG_TIME.checked_div(2).expect("two is not zero");
        let mut work = std::pin::pin!(work);
        let mut asked = false;
        let mut waited = Duration::ZERO;
        while waited < time {
            let heard = self.heard.load(Ordering::Relaxed);
            if let Some(done) = self.within(SLICE, work.as_mut()).await {
                return Some(done);
            }
            waited += SLICE;
            let is_silent = heard == self.heard.load(Ordering::Relaxed);
            if asked && is_silent {
                return None;
            }
            if is_silent {
                // Whatever it says to that, it says something.
                self.order_now(order::PING, &[]);
            }
            asked = is_silent;
        }
        None
    }

    fn lost_fault(&self) -> Fault {
        self.state().lost.clone().unwrap_or_else(|| refusal::lost("it was destroyed"))
    }

    fn send_failed(&self, error: &io::Error) -> Fault {
        if error.kind() != io::ErrorKind::WouldBlock {
            self.break_off(refusal::lost("its process 1 is gone"), EndedWhy::InitDied);
        }
        self.lost_fault()
    }

    fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        packet::send(self.socket.get_ref().as_fd(), bytes, fds)
    }

    /// Notes who waits, and builds the datagram; a long body goes to a memfd.
    fn prepare(
        &self,
        kind: u16,
        body: &[u8],
        pending: Pending,
        tag_bits: u64,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Message, Fault> {
        let inline = init::HEADER_LEN + body.len() <= INLINE_MAX;
        if body.len() > MEMFD_MAX {
            return Err(Fault::new(
                rf_types::Code::TooLarge,
                "arguments and environment together are over 8 MiB",
                "pass large input by a file or by standard input",
            ));
        }
        if !inline {
            let memfd = encode::memfd(body).map_err(|error| {
                Fault::new(rf_types::Code::ServerBusy, format!("cannot hold a long order: {error}"), "try again")
            })?;
            fds.insert(0, memfd);
        }
        let tag = {
            let mut state = self.state();
            if let Some(fault) = &state.lost {
                return Err(fault.clone());
            }
            state.tag += 1;
            let tag = state.tag | tag_bits;
            state.pending.insert(tag, pending);
            tag
        };
        let mut bytes = vec![0; init::HEADER_LEN + if inline { body.len() } else { 8 }];
        let mut writer = Writer::new(&mut bytes, if inline { kind } else { kind | init::IN_MEMFD }, tag);
        if inline {
            writer.raw(body);
        } else {
            writer.u64(body.len() as u64);
        }
        // The buffer was made for exactly this.
        debug_assert!(writer.finish().is_ok());
        Ok(Message { tag, bytes, fds })
    }

    /// Sends an order whose answer nobody waits for; later, if there is no room now.
    fn order_now(self: &Arc<Self>, kind: u16, body: &[u8]) {
        let Ok(message) = self.prepare(kind, body, Pending::Plain(oneshot::channel().0), 0, Vec::new()) else { return };
        match self.try_send(&message.bytes, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A broken socket is seen by the reader as well.
            _ => return,
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let shared = Arc::clone(self);
            runtime.spawn(async move {
                tokio::select! {
                    _ = packet::send_waiting(&shared.socket, &message.bytes, &[]) => {}
                    () = shared.lost.cancelled() => {}
                }
            });
        }
    }

    fn kill(self: &Arc<Self>, exec: u128) {
        const SIGKILL: u32 = 9;
        self.order_now(order::SIGNAL, &encode::signal(exec, SIGKILL, SignalScope::Tree));
    }

    /// Ends the connection: everybody who waits is answered. The first reason stays.
    pub(crate) fn break_off(&self, fault: Fault, why: EndedWhy) {
        let (pending, exits, on_lost) = {
            let mut state = self.state();
            if state.lost.is_some() {
                return;
            }
            state.lost = Some(fault.clone());
            (std::mem::take(&mut state.pending), std::mem::take(&mut state.exits), state.on_lost.take())
        };
        // First: whoever streams from the sandbox breaks off, before an end is told that would look like any other.
        self.lost.cancel();
        for (_, exit) in exits {
            // Who no longer waits needs no answer.
            let _ = exit.waiter.send(Err(fault.clone()));
        }
        // A dropped sender is answered with the reason by whoever holds the other side.
        drop(pending);
        self.lost.cancel();
        if let Some(on_lost) = on_lost {
            on_lost(why);
        }
    }

    /// Carries out one message.
    fn take(self: &Arc<Self>, bytes: &[u8], fds: Fds) -> Result<(), Malformed> {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let (header, mut body) = Reader::message(bytes)?;
        match header.kind {
            answer::SPAWNED => self.take_spawned(header.tag, &mut body, fds),
            answer::EXEC => self.take_listed(header.tag, &mut body, fds.list),
            answer::EXITED if fds.list.is_empty() && header.tag == 0 => self.take_exited(&mut body),
            answer::FAILED if fds.list.is_empty() => self.take_failed(header.tag, &mut body),
            answer::DONE if fds.list.is_empty() && body.is_empty() => self.take_done(header.tag),
            _ => Err(Malformed),
        }
    }

    fn take_spawned(self: &Arc<Self>, tag: u64, body: &mut Reader<'_>, fds: Fds) -> Result<(), Malformed> {
        let (told, pid) = (body.u128()?, body.u32()?);
        let mut state = self.state();
        let Some(Pending::Spawn { exec, fds: wanted, .. }) = state.pending.get(&tag) else { return Err(Malformed) };
        if *exec != told || (*wanted != fds.list.len() && !fds.cut) || !body.is_empty() {
            return Err(Malformed);
        }
        let Some(Pending::Spawn { keep, waiter, .. }) = state.pending.remove(&tag) else { return Err(Malformed) };
        let (waiter_of_end, end) = oneshot::channel();
        if state.exits.insert(told, Ending { kept: keep, waiter: waiter_of_end }).is_some() {
            return Err(Malformed);
        }
        drop(state);
        // An exec whose streams we could not take is killed, whoever it is for.
        let kept = keep && !fds.cut;
        let exit = Exit { shared: Arc::clone(self), exec: told, kept, over: false, end };
        if fds.cut {
            drop(waiter.send(Err(Failed::NO_ROOM)));
            return Ok(());
        }
        let fds = fds.list;
        // Where nobody waits any more the answer comes back and is dropped, which kills what it started: whoever waited
        // was told that it did not start.
        if let Err(Ok(mut unwanted)) = waiter.send(Ok(Started { pid, fds, exit })) {
            unwanted.exit.kept = false;
        }
        Ok(())
    }

    fn take_listed(self: &Arc<Self>, tag: u64, body: &mut Reader<'_>, fds: Vec<OwnedFd>) -> Result<(), Malformed> {
        let listed = Listed::read(body)?;
        let exec = listed.exit.exec;
        let (sender, end) = oneshot::channel();
        let mut state = self.state();
        let state = &mut *state;
        let Some(Pending::List { found, .. }) = state.pending.get_mut(&tag) else { return Err(Malformed) };
        if found.len() >= init::EXECS_MAX || !body.is_empty() || state.exits.contains_key(&exec) {
            return Err(Malformed);
        }
        if listed.running == 0 {
            // The receiver is right here.
            let _ = sender.send(Ok(report(&listed.exit)));
        } else {
            state.exits.insert(exec, Ending { kept: true, waiter: sender });
        }
        let exit = Exit { shared: Arc::clone(self), exec, kept: true, over: false, end };
        let started = Started { pid: listed.pid, fds, exit };
        found.push(Found {
            exec: ExecId::from_bits(exec),
            flags: listed.flags,
            wall_us: listed.exit.wall_us,
            running: listed.running != 0,
            started,
        });
        Ok(())
    }

    fn take_exited(&self, body: &mut Reader<'_>) -> Result<(), Malformed> {
        let exited = Exited::read(body)?;
        let mut state = self.state();
        match state.exits.remove(&exited.exec) {
            Some(Ending { kept, waiter }) if body.is_empty() => {
                if !kept {
                    state.ended.push(exited.exec);
                }
                drop(state);
                // Who dropped its exec needs no report of its end.
                let _ = waiter.send(Ok(report(&exited)));
                Ok(())
            }
            None if state.adopting => Ok(()),
            _ => Err(Malformed),
        }
    }

    fn take_failed(&self, tag: u64, body: &mut Reader<'_>) -> Result<(), Malformed> {
        let failed = Failed { errno: body.u32()?, stage: body.u32()? };
        let mut state = self.state();
        let late = tag & FILE_TAG != 0 && tag & !FILE_TAG <= state.tag && tag & !FILE_TAG != 0;
        let pending = state.pending.remove(&tag);
        drop(state);
        // Whoever stopped waiting for an order needs no answer to it.
        match pending {
            Some(Pending::Spawn { waiter, .. }) => drop(waiter.send(Err(failed))),
            Some(Pending::Plain(waiter)) => {
                let _ = waiter.send(Err(failed));
            }
            Some(Pending::File(waiter)) => {
                let _ = waiter.send(failed);
            }
            None if late => {}
            Some(Pending::List { .. }) | None => return Err(Malformed),
        }
        if body.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    fn take_done(&self, tag: u64) -> Result<(), Malformed> {
        let mut state = self.state();
        match state.pending.remove(&tag) {
            Some(Pending::Plain(waiter)) => {
                drop(state);
                // Whoever stopped waiting needs no answer.
                let _ = waiter.send(Ok(()));
                Ok(())
            }
            Some(Pending::List { found, waiter }) => {
                state.adopting = false;
                drop(state);
                drop(waiter.send(found));
                Ok(())
            }
            Some(Pending::Spawn { .. } | Pending::File(_)) | None => Err(Malformed),
        }
    }

    /// A file operation was answered on its own socket, or given up.
    pub(crate) fn file_over(&self) {
        self.state().pending.retain(|_, pending| !matches!(pending, Pending::File(waiter) if waiter.is_closed()));
    }
}

/// Reads until the other side is gone or breaks the rules.
async fn read_all(shared: Arc<Shared>) {
    /// Messages taken in one go, so that one sandbox cannot keep the thread. Chosen.
    const BURST: usize = 64;
    let (text, why) = 'connection: loop {
        let Ok(mut guard) = shared.socket.readable().await else { break ("its socket broke", EndedWhy::Broken) };
        for _ in 0..BURST {
            match packet::receive(shared.socket.get_ref().as_fd(), |bytes, fds| shared.take(bytes, fds)) {
                Ok(Received::Message(Ok(()))) => {}
                Ok(Received::Empty) => {
                    guard.clear_ready();
                    break;
                }
                Ok(Received::Message(Err(Malformed)) | Received::Broken) => {
                    break 'connection ("its process 1 broke the rules of the protocol", EndedWhy::Broken);
                }
                Ok(Received::Closed) | Err(_) => break 'connection ("its process 1 is gone", EndedWhy::InitDied),
            }
        }
        drop(guard);
        tokio::task::consume_budget().await;
    };
    shared.break_off(refusal::lost(text), why);
}

/// How an exec ended, from a status as of wait(2).
fn report(exited: &Exited) -> ExitReport {
    let signal = i32::try_from(exited.status & 0x7f).unwrap_or(0);
    let code = i32::try_from(exited.status >> 8 & 0xff).unwrap_or(0);
    ExitReport {
        code: (signal == 0).then_some(code),
        signal: (signal != 0).then_some(signal),
        timed_out: exited.timed_out == 1,
        usage: Usage {
            cpu_user_us: exited.cpu_user_us,
            cpu_system_us: exited.cpu_system_us,
            memory_peak_bytes: exited.memory_peak_bytes,
            wall_us: exited.wall_us,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens descriptors until there are no more.
    fn exhaust() -> Vec<OwnedFd> {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut all = Vec::new();
        while let Ok(more) = null.try_clone() {
            all.push(more);
        }
        all.push(null);
        all
    }

    #[tokio::test]
    async fn an_exec_whose_streams_find_no_room_is_killed_and_its_sandbox_lives() {
        let (ours, init) = packet::pair().unwrap();
        let client = InitClient::new(ours, false, Box::new(|_| {})).unwrap();
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let exec = ExecId::from_bits(9);
        let spawning = client.spawn(exec, &[], 2, true);
        let mut spawning = std::pin::pin!(spawning);
        assert!(futures::poll!(spawning.as_mut()).is_pending());
        let look = |bytes: &[u8], _: Fds| {
            let (header, body) = Reader::message(bytes).unwrap();
            let mut body = body;
            (header, body.u128().unwrap_or(0))
        };
        let Received::Message((header, _)) = packet::receive(init.as_fd(), look).unwrap() else { panic!("no order") };
        let mut bytes = [0; 64];
        let mut writer = Writer::new(&mut bytes, answer::SPAWNED, header.tag);
        writer.u128(exec.bits());
        writer.u32(5);
        let len = writer.finish().unwrap();
        let full = exhaust();
        packet::send(init.as_fd(), &bytes[..len], &[pipe.as_fd(), pipe.as_fd()]).unwrap();
        let refused = spawning.await.unwrap().unwrap_err();
        drop(full);
        // Not `server_busy`, which says that it may be tried again: it did run.
        assert_eq!(refusal::spawn(refused, "x", None, None).code, rf_types::Code::PlaceLost);
        let full = exhaust();
        let refused = client.spawn(exec, &[], 2, true).await;
        drop(full);
        assert!(matches!(refused, Err(fault) if fault.code == rf_types::Code::ServerBusy));
        let Received::Message((header, killed)) = packet::receive(init.as_fd(), look).unwrap() else {
            panic!("no order")
        };
        assert_eq!((header.kind, killed), (order::SIGNAL, exec.bits()));
        assert!(!client.is_lost());
    }
}
