//! Execs that several may follow from now on and that nobody has to: what they print goes to who follows then, and to
//! nobody otherwise. Nothing is written down, so there is nothing to read again.
//!
//! ```text
//!  place ──pipes──▶ pump ──▶ follower, follower, ...   each behind a bounded channel: a slow one slows the exec,
//!                    │                                  as a full pipe would
//!                    └ exit ─▶ output to its end ─▶ `ended` hook ─▶ Ended to all ─▶ kept for 30 s
//! ```
//!
//! They outlive their request, and, by copies of their streams that init keeps, the server as well: the next one takes
//! them over as execs in the background.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use rf_policy::{Action, Permit};
use rf_types::{Code, ExecId, ExecSpec, ExecState, ExitReport, Fault, PlaceRef, SandboxEnv, SignalScope, UserId};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Mutex as AsyncMutex, Notify, mpsc},
    time::Instant,
};

use super::{EndGuard, ExecClaim, ExecEvent, Execs, WatchedExit, ended_state, lock, no_stdin};
use crate::{
    piece::next_piece,
    place::{ByteReader, ByteWriter, Place, Resize, Spawned},
    spool::Which,
};

/// How long the end of an exec is still told to who comes late. Specified by the clients' protocol.
const ENDED_TIME: Duration = Duration::from_secs(30);
/// Pieces of output that wait for one follower. Chosen: at most 1 MiB each way.
const PIECES_MAX: usize = 4;
/// Most followers of one exec. Chosen.
const FOLLOWERS_MAX: usize = 64;
const SIGKILL: i32 = 9;
/// How long an exec that was killed may take to die. Chosen: what waits for a disk takes longer.
const DEATH_TIME: Duration = Duration::from_secs(2);
/// How long output may stay away once a killed exec has ended, and how long it is listened to in all: a process that it
/// left behind may hold its output for ever. Chosen.
const SILENCE_TIME: Duration = Duration::from_millis(20);
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// What is known of a live exec beside what the place knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct LiveNote {
    /// The name that its starter gave it.
    pub tag: Option<String>,
    /// The part of its environment that its starter asked for.
    pub env: SandboxEnv,
    /// The directory that its starter asked for.
    pub cwd: Option<String>,
    /// It was started by the server itself, in its user's name; see [`Execs::servers_own`].
    pub servers_own: bool,
}

/// One running exec of a place.
#[derive(Clone, Debug)]
pub struct LiveInfo {
    /// Its pid inside the place.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What its starter said of it; empty for one that an earlier server started and was killed before it was noted.
    pub note: LiveNote,
}

/// How an exec is named inside its place.
#[derive(Clone, Copy, Debug)]
pub enum LiveName<'a> {
    /// By its pid.
    Pid(u32),
    /// By its tag.
    Tag(&'a str),
}

/// Called once when an exec has ended and its output is out; the followers are told when it is done.
pub type LiveEnded = Box<dyn FnOnce(ExecState) -> BoxFuture<'static, ()> + Send>;

/// What an exec prints from now on, and its end.
pub type LiveEvents = BoxStream<'static, ExecEvent>;

/// All live execs.
#[derive(Default)]
pub(super) struct Lives(Mutex<HashMap<(UserId, ExecId), Arc<Live>>>);

/// One live exec.
struct Live {
    place: PlaceRef,
    pid: u32,
    note: Arc<LiveNote>,
    pty: bool,
    stdin: AsyncMutex<Option<ByteWriter>>,
    resize: Option<Box<dyn Resize>>,
    /// It was told to end: its output is not waited for longer than itself.
    hurried: AtomicBool,
    hurry: Notify,
    followers: Mutex<Followers>,
}

#[derive(Default)]
struct Followers {
    list: Vec<mpsc::Sender<ExecEvent>>,
    ended: Option<(ExecState, Instant)>,
}

impl Execs {
    /// Starts an exec that may be followed from its start on. Goes on whatever its caller does.
    ///
    /// # Errors
    /// What the place says; `conflict` when the id was started before.
    pub async fn run_live(
        &self,
        claim: ExecClaim,
        place: &Arc<dyn Place>,
        exec: ExecId,
        spec: &ExecSpec,
        note: LiveNote,
        ended: LiveEnded,
    ) -> Result<(u32, LiveEvents), Fault> {
        let (this, place, spec) = (self.clone(), Arc::clone(place), spec.clone());
        let started = tokio::spawn(async move { this.start_live(claim, place, exec, &spec, note, ended).await });
        started.await.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the start of an exec ended early", "")))
    }

    async fn start_live(
        &self,
        claim: ExecClaim,
        place: Arc<dyn Place>,
        exec: ExecId,
        spec: &ExecSpec,
        note: LiveNote,
        ended: LiveEnded,
    ) -> Result<(u32, LiveEvents), Fault> {
        let (permit, entry) = self.begin(claim, &place, exec, spec, note, None)?;
        let note = Arc::clone(&entry.note);
        let guard = EndGuard { execs: self.clone(), entry, exec, over: false, outlives: true };
        let spawned = match place.spawn(&permit, exec, spec, true).await {
            Ok(spawned) => spawned,
            Err(fault) => {
                guard.not_started(&fault);
                return Err(fault);
            }
        };
        let Spawned { pid, stdin, stdout, stderr, resize, exit } = spawned;
        lock(&guard.entry.info).pid = pid;
        let live = Arc::new(Live {
            place: place.place(),
            pid,
            note,
            pty: spec.pty.is_some(),
            stdin: AsyncMutex::new(stdin),
            resize,
            hurried: AtomicBool::new(false),
            hurry: Notify::new(),
            followers: Mutex::default(),
        });
        // Before the first byte is read, so that its starter misses none.
        let events = live.follow()?;
        let key = (permit.user(), exec);
        lock(&self.inner.live.0).insert(key, Arc::clone(&live));
        let this = self.clone();
        let exit = WatchedExit { exit, guard };
        tokio::spawn(async move {
            let state = live.pump(stdout, stderr, Box::pin(exit)).await;
            ended(state).await;
            live.tell_end(state).await;
            place.forget(exec).await;
            tokio::time::sleep(ENDED_TIME).await;
            lock(&this.inner.live.0).remove(&key);
        });
        Ok((pid, events))
    }

    /// The running execs of a user's place, by their pids, those that an earlier server started included.
    #[must_use]
    pub fn live(&self, user: UserId, place: PlaceRef) -> Vec<LiveInfo> {
        let live: HashSet<ExecId> = (lock(&self.inner.live.0).iter())
            .filter(|((of, _), live)| *of == user && live.place == place && !live.has_ended())
            .map(|((_, exec), _)| *exec)
            .collect();
        let mut infos = Vec::new();
        let users = lock(&self.inner.users);
        let entries = users.get(&user).into_iter().flat_map(|execs| execs.execs.values());
        for entry in entries.filter(|entry| entry.place == place) {
            let info = lock(&entry.info);
            if live.contains(&info.id) || info.background && info.state == ExecState::Running {
                let note = LiveNote::clone(&entry.note);
                infos.push(LiveInfo { pid: info.pid, argv: info.argv.clone(), note });
            }
        }
        drop(users);
        infos.sort_by_key(|info| info.pid);
        infos
    }

    /// The exec of that name in a user's place: the one that runs, else the one that ended last and is still told of.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn named(&self, user: UserId, place: PlaceRef, name: LiveName<'_>) -> Result<ExecId, Fault> {
        let live = (lock(&self.inner.live.0).iter())
            .filter(|((of, _), live)| *of == user && live.place == place && live.is_called(name))
            .max_by_key(|(_, live)| live.ended_at().map_or((true, None), |at| (false, Some(at))))
            .map(|((_, exec), live)| (*exec, live.has_ended()));
        if let Some((exec, false)) = live {
            return Ok(exec);
        }
        let users = lock(&self.inner.users);
        let kept = users.get(&user).into_iter().flat_map(|execs| execs.execs.values());
        let mut kept = kept.filter(|entry| entry.place == place && entry.is_running()).filter_map(|entry| {
            let info = lock(&entry.info);
            let is_called = match name {
                LiveName::Pid(pid) => info.pid == pid,
                LiveName::Tag(tag) => entry.note.tag.as_deref() == Some(tag),
            };
            (info.background && is_called).then_some(info.id)
        });
        kept.next().or(live.map(|(exec, _)| exec)).ok_or_else(|| Fault::not_found("process"))
    }

    /// The running execs of a user's place that a server started itself, this one or an earlier one.
    #[must_use]
    pub fn servers_own(&self, user: UserId, place: PlaceRef) -> Vec<ExecId> {
        let users = lock(&self.inner.users);
        let all = users.get(&user).into_iter().flat_map(|execs| execs.execs.iter());
        all.filter(|(_, entry)| entry.place == place && entry.note.servers_own && entry.is_running())
            .map(|(exec, _)| *exec)
            .collect()
    }

    fn live_of(&self, user: UserId, exec: ExecId) -> Option<Arc<Live>> {
        lock(&self.inner.live.0).get(&(user, exec)).cloned()
    }

    /// As [`Self::live_of`], for a permit that may be good in one sandbox only: what runs elsewhere is not there for it.
    fn live_for(&self, permit: &Permit, exec: ExecId) -> Option<Arc<Live>> {
        self.live_of(permit.user(), exec).filter(|live| permit.reaches(live.place))
    }

    /// What an exec prints from now on, and its end; its pid.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `limit_reached` when too many follow it.
    pub fn follow(&self, permit: &Permit, exec: ExecId) -> Result<(u32, LiveEvents), Fault> {
        permit.require(Action::ExecRead)?;
        if let Some(live) = self.live_for(permit, exec) {
            return Ok((live.pid, live.follow()?));
        }
        let entry = self.find_for(permit, exec)?;
        let kept = entry.kept()?;
        let [out, err] = [Which::Stdout, Which::Stderr].map(|which| kept.progress(which).borrow().len);
        let pid = lock(&entry.info).pid;
        // Where its output cannot be read, how it ended is not known to who follows.
        let events = crate::attach::attach(entry, out, err, true);
        Ok((pid, events.map(|event| event.unwrap_or(ExecEvent::Ended(ExecState::Lost))).boxed()))
    }

    /// Whether an exec has a terminal.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn has_terminal(&self, user: UserId, exec: ExecId) -> Result<bool, Fault> {
        match self.live_of(user, exec) {
            Some(live) => Ok(live.pty),
            None => self.info(user, exec).map(|info| info.pty),
        }
    }

    /// Writes to an exec's standard input or terminal; waits while it does not read.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it has no standard input, or that is closed.
    pub async fn feed(&self, permit: &Permit, exec: ExecId, bytes: &[u8]) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let Some(live) = self.live_for(permit, exec) else { return self.write_stdin(permit, exec, bytes).await };
        let mut stdin = live.stdin.lock().await;
        let writer = stdin.as_mut().ok_or_else(no_stdin)?;
        if writer.write_all(bytes).await.is_err() {
            *stdin = None;
            return Err(no_stdin());
        }
        Ok(())
    }

    /// Closes an exec's standard input.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it has none, or that is closed.
    pub async fn end_input(&self, permit: &Permit, exec: ExecId) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let Some(live) = self.live_for(permit, exec) else { return self.close_stdin(permit, exec).await };
        let mut writer = live.stdin.lock().await.take().ok_or_else(no_stdin)?;
        // It is gone either way.
        let _ = writer.shutdown().await;
        Ok(())
    }

    /// Sets the size of an exec's terminal.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it has no terminal.
    pub fn set_size(&self, permit: &Permit, exec: ExecId, rows: u16, cols: u16) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let Some(live) = self.live_for(permit, exec) else { return self.resize(permit, exec, rows, cols) };
        let no_terminal = || Fault::new(Code::Conflict, "the exec has no terminal", "start it with `pty`");
        live.resize.as_ref().ok_or_else(no_terminal)?.resize(rows, cols)
    }

    /// Sends a signal to an exec's first process, after which its output is no longer waited for once it has ended. One
    /// that is killed has ended when this returns, unless the kernel takes long.
    ///
    /// # Errors
    /// `not_found` when there is no such exec or it has ended; what the place says.
    pub async fn stop(&self, permit: &Permit, exec: ExecId, signal: i32) -> Result<(), Fault> {
        if let Some(live) = self.live_for(permit, exec) {
            live.hurried.store(true, Ordering::Release);
            live.hurry.notify_one();
        }
        self.signal(permit, exec, signal, SignalScope::Process).await?;
        if signal == SIGKILL {
            // Who looks for the process now must not find it.
            let mut state = self.find_for(permit, exec)?.state();
            let ended = state.wait_for(|state| *state != ExecState::Running);
            let _still_dying = tokio::time::timeout(DEATH_TIME, ended).await;
        }
        Ok(())
    }
}

impl Live {
    fn has_ended(&self) -> bool {
        lock(&self.followers).ended.is_some()
    }

    fn ended_at(&self) -> Option<Instant> {
        lock(&self.followers).ended.map(|(_, at)| at)
    }

    fn is_called(&self, name: LiveName<'_>) -> bool {
        match name {
            LiveName::Pid(pid) => self.pid == pid,
            LiveName::Tag(tag) => self.note.tag.as_deref() == Some(tag),
        }
    }

    fn follow(&self) -> Result<LiveEvents, Fault> {
        let mut followers = lock(&self.followers);
        if let Some((state, _)) = followers.ended {
            return Ok(stream::iter([ExecEvent::Ended(state)]).boxed());
        }
        followers.list.retain(|follower| !follower.is_closed());
        if followers.list.len() >= FOLLOWERS_MAX {
            return Err(Fault::new(Code::LimitReached, "too many follow this exec", "end one of the other streams"));
        }
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        followers.list.push(sender);
        drop(followers);
        Ok(stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed())
    }

    /// Gives every follower `event`, waiting for the slow ones; who has gone is forgotten.
    async fn tell(&self, event: ExecEvent) {
        let followers = lock(&self.followers).list.clone();
        let mut gone = false;
        for follower in followers {
            gone |= follower.send(event.clone()).await.is_err();
        }
        if gone {
            lock(&self.followers).list.retain(|follower| !follower.is_closed());
        }
    }

    async fn tell_end(&self, state: ExecState) {
        // Who comes from now on is told at once; the others after all that was printed.
        let followers = {
            let mut followers = lock(&self.followers);
            followers.ended = Some((state, Instant::now()));
            std::mem::take(&mut followers.list)
        };
        for follower in followers {
            // Each on its own: one that does not read holds up nobody else's end.
            tokio::spawn(async move { follower.send(ExecEvent::Ended(state)).await });
        }
    }

    /// Hands on what it prints until it has ended and its outputs are closed, or it was told to end.
    async fn pump(
        &self,
        stdout: ByteReader,
        stderr: Option<ByteReader>,
        exit: BoxFuture<'static, Result<ExitReport, Fault>>,
    ) -> ExecState {
        let (mut stdout, mut stderr, mut exit) = (Some(stdout), stderr, Some(exit));
        let mut ended: Option<(ExecState, Instant)> = None;
        loop {
            if let Some((state, at)) = ended {
                let over = stdout.is_none() && stderr.is_none();
                if over || (self.hurried.load(Ordering::Acquire) && at.elapsed() > DRAIN_TIME) {
                    return state;
                }
            }
            let silence = async {
                match ended {
                    Some((state, _)) if self.hurried.load(Ordering::Acquire) => {
                        tokio::time::sleep(SILENCE_TIME).await;
                        state
                    }
                    Some(_) | None => std::future::pending().await,
                }
            };
            tokio::select! {
                bytes = read(&mut stdout), if stdout.is_some() => match bytes {
                    Some(bytes) => self.tell(ExecEvent::Stdout(bytes)).await,
                    None => stdout = None,
                },
                bytes = read(&mut stderr), if stderr.is_some() => match bytes {
                    Some(bytes) => self.tell(ExecEvent::Stderr(bytes)).await,
                    None => stderr = None,
                },
                end = wait(&mut exit), if exit.is_some() => {
                    exit = None;
                    // Nobody reads it any more; a writer that waits for room finds that out by itself.
                    if let Ok(mut stdin) = self.stdin.try_lock() {
                        *stdin = None;
                    }
                    if end.is_err() {
                        // A lost place prints nothing more.
                        return ExecState::Lost;
                    }
                    // Its time is up: what it left behind does not hold its end, either.
                    if end.as_ref().is_ok_and(|report| report.timed_out) {
                        self.hurried.store(true, Ordering::Release);
                    }
                    ended = Some((ended_state(&end), Instant::now()));
                }
                state = silence => return state,
                // Looked at anew above.
                () = self.hurry.notified() => {}
            }
        }
    }
}

/// The next bytes; `None` at the end, and where the stream breaks, for how the exec ended says why.
async fn read(reader: &mut Option<ByteReader>) -> Option<Bytes> {
    match reader {
        Some(reader) => next_piece(reader).await.ok().filter(|bytes| !bytes.is_empty()),
        None => std::future::pending().await,
    }
}

async fn wait(exit: &mut Option<BoxFuture<'static, Result<ExitReport, Fault>>>) -> Result<ExitReport, Fault> {
    match exit {
        Some(exit) => exit.await,
        None => std::future::pending().await,
    }
}
