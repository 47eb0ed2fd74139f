//! The execs of this machine: started once, streamed, ended, kept over a drop and over the server's restart.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    process::Child,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rf_places::machine_mux::{Incoming, Mux, Outgoing};
use rf_types::{Code, ExecId, ExecSpec, ExitReport, Fault, SignalScope};
use rf_wire::machine::{EXECS_MAX, Held, KeptExec, ToServer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, unix::AsyncFd},
    net::{UnixStream, unix::pipe},
    sync::{mpsc, mpsc::error::TrySendError, oneshot},
    time::sleep,
};

use crate::{
    linux::launch::{self, Launched, Orders, SIGKILL},
    owner::Owner,
    state::Seen,
};

/// Bytes read from a command at once.
const READ_SIZE: usize = 64 * 1024;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The session that an exec's news go to.
#[derive(Clone)]
pub(crate) struct Link {
    /// Counts the sessions of this program.
    pub(crate) number: u64,
    /// Its streams.
    pub(crate) mux: Mux,
}

/// An exec's streams in one session.
pub(crate) struct Streams {
    pub(crate) stdin: Option<Incoming>,
    pub(crate) stdout: Outgoing,
    pub(crate) stderr: Option<Outgoing>,
}

/// All execs of this program.
pub(crate) struct Execs {
    owner: Arc<Owner>,
    table: Mutex<HashMap<ExecId, Arc<Exec>>>,
    /// Execs that are being started and not in the table yet.
    starting: AtomicUsize,
    seen: Mutex<Seen>,
}

/// An exec that is being started; it has a place of its own until it is in the table.
struct Starting<'a>(&'a AtomicUsize);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A keeper that nobody follows yet: given up, it is waited for, so that no zombie of it stays. It ends when its socket
/// is closed.
struct Unfollowed(Option<Child>);

impl Drop for Unfollowed {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

struct Exec {
    id: ExecId,
    pid: u32,
    keeper: u32,
    pty: bool,
    stdin: bool,
    keep: bool,
    started: Instant,
    orders: Orders,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    slots: Slots,
    life: Mutex<Life>,
}

/// Where a new session's streams are handed to the pumps.
struct Slots {
    stdin: Option<mpsc::Sender<Incoming>>,
    stdout: mpsc::Sender<Handed>,
    stderr: Option<mpsc::Sender<Handed>>,
}

/// A new session's stream for an output.
struct Handed {
    out: Outgoing,
    /// Bytes from the output's beginning that the server has already.
    held: u64,
    /// Told from where on it is sent.
    from: oneshot::Sender<u64>,
}

struct Life {
    link: Link,
    end: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Exited(ExitReport),
    Lost,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they guard is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_such() -> Fault {
    Fault::not_found("exec on this machine")
}

impl Execs {
    pub(crate) fn new(owner: Arc<Owner>, seen: Seen) -> Arc<Self> {
        Arc::new(Self { owner, table: Mutex::default(), starting: AtomicUsize::new(0), seen: Mutex::new(seen) })
    }

    /// Starts an exec, unless its id was ever seen. Returns its pid.
    pub(crate) async fn spawn(
        self: &Arc<Self>,
        link: Link,
        id: ExecId,
        spec: ExecSpec,
        keep: bool,
        streams: Streams,
    ) -> Result<u32, Fault> {
        self.owner.allows_exec()?;
        if spec.user.is_some() {
            return Err(Fault::invalid("a machine runs everything as its owner"));
        }
        let starting = self.make_room()?;
        lock(&self.seen).note(id)?;
        let (owner, asked) = (self.owner.clone(), spec.clone());
        let started = Instant::now();
        let launched = tokio::task::spawn_blocking(move || launch::launch(&owner, &asked))
            .await
            .map_err(|_| Fault::new(Code::Internal, "the launch ended early", ""))??;
        let broken =
            |error: io::Error| Fault::new(Code::PlaceExhausted, format!("no streams for the exec: {error}"), "");
        let Launched { pid, keeper, stdin, stdout, stderr, terminal } = launched;
        let launch::Keeper { child, socket } = keeper;
        let mut unfollowed = Unfollowed(Some(child));
        let orders = Orders(socket.try_clone().map_err(broken)?);
        socket.set_nonblocking(true).map_err(broken)?;
        let reports = UnixStream::from_std(socket).map_err(broken)?;
        let terminal = terminal.map(open_terminal).transpose().map_err(broken)?.map(Arc::new);
        let (mut writer, mut reader, mut error_reader): (Option<Writer>, Option<Reader>, Option<Reader>) =
            (None, None, None);
        if let Some(terminal) = &terminal {
            writer = Some(Box::new(Terminal(terminal.clone())));
            reader = Some(Box::new(Terminal(terminal.clone())));
        } else {
            if let Some(stdin) = stdin {
                writer = Some(Box::new(pipe::Sender::from_owned_fd(stdin).map_err(broken)?));
            }
            if let Some(stdout) = stdout {
                reader = Some(Box::new(pipe::Receiver::from_owned_fd(stdout).map_err(broken)?));
            }
            if let Some(stderr) = stderr {
                error_reader = Some(Box::new(pipe::Receiver::from_owned_fd(stderr).map_err(broken)?));
            }
        }
        let slots = Slots {
            stdin: writer.map(|writer| slot(|receiver| pump_in(writer, receiver))),
            stdout: slot(|receiver| pump_out(reader, receiver)),
            stderr: error_reader.map(|reader| slot(|receiver| pump_out(Some(reader), receiver))),
        };
        let exec = Arc::new(Exec {
            id,
            pid,
            keeper: unfollowed.0.as_ref().map_or(0, Child::id),
            pty: spec.pty.is_some(),
            stdin: spec.stdin,
            keep,
            started,
            orders,
            terminal,
            slots,
            life: Mutex::new(Life { link, end: None }),
        });
        // From the beginning: nobody need be told.
        drop(exec.hand_over(streams, Held::default()));
        lock(&self.table).insert(id, exec.clone());
        drop(starting);
        if !keep && lock(&exec.life).link.mux.dead().is_some() {
            // The session ended while it was being started, and with it its caller.
            exec.orders.kill_tree();
        }
        if let Some(child) = unfollowed.0.take() {
            tokio::spawn(self.clone().follow(exec, child, reports, spec.timeout_ms));
        }
        Ok(pid)
    }

    /// Makes room for one more, by forgetting the ended exec that began first.
    fn make_room(&self) -> Result<Starting<'_>, Fault> {
        let mut table = lock(&self.table);
        let starting = || {
            self.starting.fetch_add(1, Ordering::Relaxed);
            Starting(&self.starting)
        };
        // Counted up under the table's lock alone, so that no two take the last place.
        if table.len() + self.starting.load(Ordering::Relaxed) < EXECS_MAX {
            return Ok(starting());
        }
        let oldest = table.values().filter(|exec| lock(&exec.life).end.is_some()).min_by_key(|exec| exec.started);
        match oldest.map(|exec| exec.id) {
            Some(id) => {
                table.remove(&id);
                Ok(starting())
            }
            None => Err(Fault::new(
                Code::PlaceExhausted,
                format!("{EXECS_MAX} execs run on this machine"),
                "wait for some to end",
            )),
        }
    }

    /// Follows an exec to its end, and its keeper to its own.
    async fn follow(
        self: Arc<Self>,
        exec: Arc<Exec>,
        mut child: Child,
        mut reports: UnixStream,
        timeout_ms: Option<u64>,
    ) {
        let mut message = [0; rf_sys::command::REPORT_LEN];
        let mut timed_out = false;
        let read = {
            let mut read = std::pin::pin!(reports.read_exact(&mut message));
            let late = async {
                match timeout_ms {
                    Some(ms) => sleep(Duration::from_millis(ms)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = &mut read => read,
                () = late => {
                    timed_out = true;
                    exec.orders.kill_tree();
                    read.await
                }
            }
        };
        let end = match read.ok().and_then(|_| launch::ended(&message, exec.started, timed_out)) {
            Some(report) => End::Exited(report),
            None => End::Lost,
        };
        let link = {
            let mut life = lock(&exec.life);
            life.end = Some(end);
            life.link.clone()
        };
        exec.tell(&link.mux, end);
        let (id, keep) = (exec.id, exec.keep);
        drop(exec);
        // What the command left running lives on beneath its keeper, until it is killed, ends or this program does.
        let mut nothing = [0; 1];
        while reports.read(&mut nothing).await.is_ok_and(|got| got > 0) {}
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        if !keep {
            lock(&self.table).remove(&id);
        }
    }

    fn find(&self, id: ExecId) -> Result<Arc<Exec>, Fault> {
        lock(&self.table).get(&id).cloned().ok_or_else(no_such)
    }

    /// Signals a running exec.
    pub(crate) async fn signal(&self, id: ExecId, signal: i32, scope: SignalScope) -> Result<(), Fault> {
        self.owner.allows_exec()?;
        let exec = self.find(id)?;
        let number = u8::try_from(signal).ok().filter(|number| (1..=64).contains(number));
        let number = number.ok_or_else(|| Fault::invalid(format!("{signal} is no signal: they are 1 to 64")))?;
        if lock(&exec.life).end.is_some() {
            // Others of its tree may live on, and the keeper with them.
            let killed = scope == SignalScope::Tree && signal == SIGKILL && exec.orders.kill_tree();
            return if killed { Ok(()) } else { Err(no_such()) };
        }
        match scope {
            SignalScope::Process => exec.orders.signal(number),
            SignalScope::Tree if signal == SIGKILL => {
                exec.orders.kill_tree();
            }
            SignalScope::Tree if signal > 31 => {
                return Err(Fault::invalid(format!(
                    "{signal} is a real-time signal: it goes to one process, not to all"
                )));
            }
            SignalScope::Tree => {
                let keeper = exec.keeper;
                let _ = tokio::task::spawn_blocking(move || launch::signal_tree(keeper, signal)).await;
            }
        }
        Ok(())
    }

    /// Sets a terminal's size.
    pub(crate) fn resize(&self, id: ExecId, rows: u16, cols: u16) -> Result<(), Fault> {
        self.owner.allows_exec()?;
        let exec = self.find(id)?;
        let terminal = exec.terminal.as_ref().ok_or_else(|| Fault::invalid("this exec has no terminal"))?;
        launch::set_size(terminal.get_ref(), rows, cols)
            .map_err(|errno| Fault::new(Code::ExecFailed, format!("the terminal cannot be resized: {errno}"), ""))
    }

    /// The execs kept from earlier sessions.
    pub(crate) fn kept(&self, now: u64) -> Vec<KeptExec> {
        let table = lock(&self.table);
        let kept = table.values().filter(|exec| exec.keep && lock(&exec.life).link.number != now);
        kept.map(|exec| KeptExec {
            exec: exec.id,
            pid: exec.pid,
            pty: exec.pty,
            stdin: exec.stdin,
            wall_us: u64::try_from(exec.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
        .collect()
    }

    /// Gives a kept exec its streams in a new session, which go on after what the server holds. What comes says from
    /// where on they do.
    pub(crate) fn attach(
        &self,
        link: Link,
        id: ExecId,
        streams: Streams,
        held: Held,
    ) -> Result<impl Future<Output = Held> + Send + use<>, Fault> {
        let exec = self.find(id)?;
        let end = {
            let mut life = lock(&exec.life);
            if life.link.number == link.number || !exec.keep {
                return Err(Fault::new(Code::Conflict, "this exec is attached", ""));
            }
            life.link = link.clone();
            life.end
        };
        let from = exec.hand_over(streams, held);
        if let Some(end) = end {
            exec.tell(&link.mux, end);
        }
        Ok(from)
    }

    /// Forgets an ended exec.
    pub(crate) fn forget(&self, id: ExecId) -> Result<(), Fault> {
        let mut table = lock(&self.table);
        let ended = table.get(&id).is_some_and(|exec| lock(&exec.life).end.is_some());
        if ended {
            table.remove(&id);
        }
        Ok(())
    }

    /// A session is over: what was not to be kept is killed.
    pub(crate) fn session_over(&self, number: u64) {
        for exec in lock(&self.table).values() {
            let life = lock(&exec.life);
            if !exec.keep && life.end.is_none() && life.link.number == number {
                exec.orders.kill_tree();
            }
        }
    }

    /// Kills and forgets what belongs to no session from `number` on: it was kept long enough.
    pub(crate) fn kill_older(&self, number: u64) {
        lock(&self.table).retain(|_, exec| {
            let life = lock(&exec.life);
            let old = life.link.number < number;
            // What one that has ended left running was told to its caller as ended.
            if old && (exec.keep || life.end.is_none()) {
                exec.orders.kill_tree();
            }
            !old
        });
    }
}

impl Exec {
    /// Hands the pumps their streams of a new session. What comes says from where on the outputs go on.
    fn hand_over(&self, streams: Streams, held: Held) -> impl Future<Output = Held> + Send + use<> {
        let Streams { stdin, stdout, stderr } = streams;
        // A pump that is at its end has gone: dropping the stream tells the other side.
        let stdin = self.slots.stdin.as_ref().zip(stdin).map(|(slot, stdin)| hand_in(slot, stdin));
        let hand = |slot: &mpsc::Sender<Handed>, out, held| {
            let (from, told) = oneshot::channel();
            let handed = hand_in(slot, Handed { out, held, from });
            async move {
                if let Err(gone) = handed.await {
                    gone.out.end();
                }
                // Of a pump that has gone the server took all.
                told.await.unwrap_or(held)
            }
        };
        let stdout = hand(&self.slots.stdout, stdout, held.stdout);
        let stderr = self.slots.stderr.as_ref().zip(stderr).map(|(slot, stderr)| hand(slot, stderr, held.stderr));
        async move {
            let stdin = async {
                if let Some(stdin) = stdin {
                    drop(stdin.await);
                }
            };
            let stderr = async {
                match stderr {
                    Some(from) => from.await,
                    None => held.stderr,
                }
            };
            let ((), stdout, stderr) = futures::future::join3(stdin, stdout, stderr).await;
            Held { stdout, stderr }
        }
    }

    fn tell(&self, mux: &Mux, end: End) {
        mux.send(&match end {
            End::Exited(report) => ToServer::Exited { exec: self.id, report },
            End::Lost => ToServer::Lost { exec: self.id },
        });
    }
}

/// Starts a pump and returns where its streams are handed in, one for each session.
fn slot<T: Send + 'static, F>(pump: impl FnOnce(mpsc::Receiver<T>) -> F) -> mpsc::Sender<T>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(pump(receiver));
    sender
}

/// Hands a pump a stream of a new session: at once, or where it has not seen the one of a session before yet, once what
/// this returns is awaited, which gives the stream back when the pump has gone.
fn hand_in<T: Send + 'static>(
    slot: &mpsc::Sender<T>,
    stream: T,
) -> impl Future<Output = Result<(), T>> + Send + use<T> {
    let (slot, handed) = (slot.clone(), slot.try_send(stream));
    async move {
        match handed {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(stream)) => Err(stream),
            Err(TrySendError::Full(stream)) => slot.send(stream).await.map_err(|gone| gone.0),
        }
    }
}

/// Moves a command's output into the streams of one session after the other, losing and repeating nothing: each stream
/// begins after the last byte that the server says it holds.
async fn pump_out(reader: Option<Reader>, mut sessions: mpsc::Receiver<Handed>) {
    let mut reader = reader;
    // What was read and may not be held yet, and the offset of its first byte in the whole output.
    let (mut carry, mut at) = (Vec::new(), 0);
    while let Some(Handed { mut out, held, from }) = sessions.recv().await {
        let known = usize::try_from(held.saturating_sub(at)).unwrap_or(usize::MAX).min(carry.len());
        carry.drain(..known);
        at += known as u64;
        // Nobody asks at the first start.
        let _ = from.send(at);
        if pump_session(&mut reader, &mut out, &mut carry).await.is_ok() {
            return;
        }
        let (base, mut untaken) = out.take_untaken();
        at += base;
        untaken.append(&mut carry);
        carry = untaken;
    }
}

/// `Ok` when the stream is at its end, or the other side wants no more; `Err` when the session is over.
async fn pump_session(reader: &mut Option<Reader>, out: &mut Outgoing, carry: &mut Vec<u8>) -> Result<(), ()> {
    loop {
        while !carry.is_empty() {
            match std::future::poll_fn(|cx| out.poll_send(cx, carry)).await {
                Ok(sent) => drop(carry.drain(..sent)),
                Err(_) if out.is_session_over() => return Err(()),
                // Nobody reads any more: the pipe is closed, as it would be on a terminal.
                Err(_) => return Ok(()),
            }
        }
        let Some(from) = reader.as_mut() else {
            return out.end_and_wait().await.map_err(drop);
        };
        carry.reserve(READ_SIZE);
        tokio::select! {
            read = from.read_buf(carry) => {
                if read.unwrap_or(0) == 0 {
                    *reader = None;
                }
            }
            _ = out.stopped() => return if out.is_session_over() { Err(()) } else { Ok(()) },
        }
    }
}

/// Moves the streams of one session after the other into a command's standard input.
async fn pump_in(mut writer: Writer, mut sessions: mpsc::Receiver<Incoming>) {
    while let Some(mut from) = sessions.recv().await {
        loop {
            match from.next_piece(READ_SIZE).await {
                Some(Ok(bytes)) => {
                    if writer.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Some(Err(_)) if from.is_session_over() => break,
                // Its end, or it broke off: the command sees the end.
                None | Some(Err(_)) => return,
            }
        }
    }
}

fn open_terminal(master: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
    #[expect(deprecated, reason = "its contract, a descriptor that stays the same and open, is an `OwnedFd`'s own")]
    AsyncFd::new(master)
}

/// A terminal's master, to read and to write.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, buf.initialize_unfilled())?)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The last process has closed its end; see pty(7).
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(done) = ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                return Poll::Ready(done);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_that_come_faster_than_a_pump_sees_their_ends_are_all_handed_to_it() {
        let (slot, mut sessions) = mpsc::channel(1);
        let handed: Vec<_> = (0..3).map(|session| hand_in(&slot, session)).collect();
        let pump = async { [sessions.recv().await, sessions.recv().await, sessions.recv().await] };
        let (handed, seen) = futures::future::join(futures::future::join_all(handed), pump).await;
        assert_eq!((handed, seen), (vec![Ok(()); 3], [Some(0), Some(1), Some(2)]));
        drop(sessions);
        assert_eq!(hand_in(&slot, 3).await, Err(3), "of a pump that has gone it comes back");
    }
}
