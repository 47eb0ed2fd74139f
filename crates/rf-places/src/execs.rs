//! The execs of every user: those whose caller waits, and those that outlive their request. Each is known only by user
//! and id together, is started at most once, and holds its place in its user's quota until it ends.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::stream::BoxStream;
use rf_policy::{Action, Permit};
use rf_types::{
    Code, ExecId, ExecInfo, ExecSpec, ExecState, ExitReport, Fault, PlaceRef, SignalScope, UserId, units::UnixMs,
};
use rf_wire::machine::Held;
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Mutex as AsyncMutex, watch},
};

use crate::{
    content::content,
    encode::argv_of,
    foreground::Foreground,
    place::{ByteWriter, Place, Resize, Spawned},
    quota::{Hold, Quota},
    sandbox::RawSpawned,
    sandboxes::now_ms,
    spool::{About, Budget, Progress, Spool, Which},
};

mod adopt;
mod end;
pub mod live;
mod notes;

use end::{EndGuard, WatchedExit};
use live::LiveNote;
use notes::{Noted, Young};

/// What is kept of execs, and where.
#[derive(Clone, Debug)]
pub struct ExecsConfig {
    /// The directory of the background execs' output; made if missing.
    pub spool: PathBuf,
    /// Most bytes kept of each output of a background exec.
    pub bytes_max: u64,
    /// Most bytes kept of all outputs of one user's background execs. Past it the oldest ended ones go, and running ones
    /// are cut.
    pub user_bytes_max: u64,
    /// Most ended execs kept for each user; the oldest go first.
    pub ended_max: usize,
    /// How long an ended exec is kept, milliseconds.
    pub ended_ms_max: u64,
}

impl ExecsConfig {
    /// 16 MiB of each output, 512 MiB for each user, 200 ended execs of each user, for a day.
    #[must_use]
    pub fn standard(spool: PathBuf) -> Self {
        Self { spool, bytes_max: 16 << 20, user_bytes_max: 512 << 20, ended_max: 200, ended_ms_max: 86_400_000 }
    }
}

/// Leave to start one exec, already counted in its user's quota; see [`crate::places::Places::claim_exec`].
///
/// It starts one:
/// ```
/// # use std::sync::Arc;
/// # use rf_places::{ExecClaim, Execs, Place};
/// # use rf_types::{ExecId, ExecSpec};
/// async fn once(execs: Execs, place: Arc<dyn Place>, claim: ExecClaim, spec: ExecSpec) {
///     let _ = execs.run(claim, &place, ExecId::random(), &spec).await;
/// }
/// ```
/// Not two, be they one after the other or from a copy of it:
/// ```compile_fail,E0382
/// # use std::sync::Arc;
/// # use rf_places::{ExecClaim, Execs, Place};
/// # use rf_types::{ExecId, ExecSpec};
/// async fn twice(execs: Execs, place: Arc<dyn Place>, claim: ExecClaim, spec: ExecSpec) {
///     let _ = execs.run(claim, &place, ExecId::random(), &spec).await;
///     let _ = execs.run(claim, &place, ExecId::random(), &spec).await;
/// }
/// ```
/// ```compile_fail,E0599
/// # use std::sync::Arc;
/// # use rf_places::{ExecClaim, Execs, Place};
/// # use rf_types::{ExecId, ExecSpec};
/// async fn twice(execs: Execs, place: Arc<dyn Place>, claim: ExecClaim, spec: ExecSpec) {
///     let _ = execs.run(claim.clone(), &place, ExecId::random(), &spec).await;
/// }
/// ```
/// The leave to make a sandbox is no leave to run something in it, and a permit alone is none either, for nothing was
/// counted with it:
/// ```compile_fail,E0308
/// # use std::sync::Arc;
/// # use rf_places::{Execs, Place, SandboxClaim};
/// # use rf_types::{ExecId, ExecSpec};
/// async fn other(execs: Execs, place: Arc<dyn Place>, claim: SandboxClaim, spec: ExecSpec) {
///     let _ = execs.run(claim, &place, ExecId::random(), &spec).await;
/// }
/// ```
/// ```compile_fail,E0308
/// # use std::sync::Arc;
/// # use rf_places::{Execs, Place};
/// # use rf_policy::Permit;
/// # use rf_types::{ExecId, ExecSpec};
/// async fn other(execs: Execs, place: Arc<dyn Place>, permit: Permit, spec: ExecSpec) {
///     let _ = execs.run(permit, &place, ExecId::random(), &spec).await;
/// }
/// ```
#[must_use = "a claim that nobody uses is given back"]
#[derive(Debug)]
pub struct ExecClaim {
    pub(crate) permit: Arc<Permit>,
    pub(crate) hold: Hold,
}

impl ExecClaim {
    /// What it was judged with, for the record of the operation that it is for.
    #[must_use]
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }
}

/// What one exec printed so far, or how it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecEvent {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// Some output was dropped because it was too much.
    Truncated(Which),
    /// It ended; the last event.
    Ended(ExecState),
}

/// The execs; cheap to clone.
#[derive(Clone)]
pub struct Execs {
    inner: Arc<Inner>,
}

struct Inner {
    config: ExecsConfig,
    quota: Quota,
    users: Mutex<HashMap<UserId, UserExecs>>,
    live: live::Lives,
    young: Young,
}

#[derive(Default)]
struct UserExecs {
    execs: HashMap<ExecId, Arc<Entry>>,
    ended: VecDeque<(UnixMs, ExecId)>,
    /// Bytes of all their outputs.
    bytes: Arc<AtomicU64>,
}

/// One exec.
pub(crate) struct Entry {
    user: UserId,
    place: PlaceRef,
    /// Where it runs, while it does and somebody follows it.
    runs_in: Mutex<Option<Arc<dyn Place>>>,
    info: Mutex<ExecInfo>,
    /// What its starter said of it.
    note: Arc<LiveNote>,
    /// Whether the next server would know of it; means nothing in the background.
    noted: Mutex<Noted>,
    state: watch::Sender<ExecState>,
    hold: Mutex<Option<Hold>>,
    kept: Option<Kept>,
}

/// What a background exec has beside.
struct Kept {
    spool: Spool,
    out: Arc<watch::Sender<Progress>>,
    err: Arc<watch::Sender<Progress>>,
    stdin: AsyncMutex<Option<ByteWriter>>,
    resize: Mutex<Option<Box<dyn Resize>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spool_failed(error: &io::Error) -> Fault {
    Fault::new(
        Code::ServerBusy,
        format!("cannot keep the output of a background exec: {}", error.kind()),
        "the server's disk may be full: ask the operator",
    )
}

/// What the end of an exec makes its state.
fn ended_state(end: &Result<ExitReport, Fault>) -> ExecState {
    match end {
        Ok(report) => ExecState::Exited(*report),
        Err(_) => ExecState::Lost,
    }
}

impl Execs {
    /// Opens the spool and reads what an earlier server left there; those that ran then are listed as running until
    /// [`Execs::adopt`] and [`Execs::adoption_over`] say what became of them.
    ///
    /// # Errors
    /// When the spool cannot be made or read.
    pub fn open(config: ExecsConfig, quota: Quota) -> io::Result<Self> {
        std::fs::create_dir_all(&config.spool)?;
        let (users, live, young) = (Mutex::default(), live::Lives::default(), Young::default());
        let this = Self { inner: Arc::new(Inner { config, quota, users, live, young }) };
        let mut ended = Vec::new();
        for (exec, spool) in Spool::all(&this.inner.config.spool)? {
            // A directory without its description is of a start that never came to be.
            let Some(about) = spool.read_about()? else {
                spool.remove();
                continue;
            };
            let over = |which| Progress { ended: true, ..spool.progress(which) };
            let note = Arc::new(about.note);
            let entry = this.entry(about.user, about.place, None, about.info, note, None, Some(&spool), over);
            let bytes = entry.kept.as_ref().map_or(0, Kept::len);
            let mut users = lock(&this.inner.users);
            let execs = users.entry(about.user).or_default();
            execs.bytes.fetch_add(bytes, Ordering::Relaxed);
            execs.execs.insert(exec, entry);
            drop(users);
            if let Some(at) = about.ended_at {
                ended.push((at, about.user, exec));
            }
        }
        ended.sort_unstable_by_key(|(at, ..)| *at);
        for (at, user, exec) in ended {
            lock(&this.inner.users).entry(user).or_default().ended.push_back((at, exec));
            this.retain(user);
        }
        Ok(this)
    }

    #[allow(clippy::too_many_arguments)]
    fn entry(
        &self,
        user: UserId,
        place: PlaceRef,
        runs_in: Option<&Arc<dyn Place>>,
        info: ExecInfo,
        note: Arc<LiveNote>,
        hold: Option<Hold>,
        spool: Option<&Spool>,
        progress: impl Fn(Which) -> Progress,
    ) -> Arc<Entry> {
        let kept = spool.map(|spool| Kept {
            spool: spool.clone(),
            out: Arc::new(watch::Sender::new(progress(Which::Stdout))),
            err: Arc::new(watch::Sender::new(progress(Which::Stderr))),
            stdin: AsyncMutex::new(None),
            resize: Mutex::new(None),
        });
        Arc::new(Entry {
            user,
            place,
            runs_in: Mutex::new(runs_in.cloned()),
            state: watch::Sender::new(info.state),
            info: Mutex::new(info),
            note,
            noted: Mutex::default(),
            hold: Mutex::new(hold),
            kept,
        })
    }

    /// Enters an exec that is about to start.
    fn begin(
        &self,
        claim: ExecClaim,
        place: &Arc<dyn Place>,
        exec: ExecId,
        spec: &ExecSpec,
        note: LiveNote,
        spool: Option<&Spool>,
    ) -> Result<(Arc<Permit>, Arc<Entry>), Fault> {
        let ExecClaim { permit, hold } = claim;
        permit.require(Action::Exec)?;
        let user = permit.user();
        let info = ExecInfo {
            id: exec,
            pid: 0,
            argv: argv_of(&spec.program),
            background: spool.is_some(),
            pty: spec.pty.is_some(),
            started_at: now_ms(),
            state: ExecState::Running,
        };
        let (at, note) = (place.place(), Arc::new(note));
        let entry = self.entry(user, at, Some(place), info, note, Some(hold), spool, |_| Progress::default());
        match lock(&self.inner.users).entry(user).or_default().execs.entry(exec) {
            std::collections::hash_map::Entry::Occupied(_) => Err(Fault::new(
                Code::Conflict,
                format!("exec `{exec}` was already started"),
                "ask for its state; an id is started at most once",
            )),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Arc::clone(&entry));
                if spool.is_none() {
                    self.inner.young.push(&entry);
                }
                Ok((permit, entry))
            }
        }
    }

    /// An exec that never came to run is forgotten. One whose start may have happened is not: its id stays used.
    fn not_started(&self, entry: &Arc<Entry>, fault: &Fault) {
        let id = lock(&entry.info).id;
        if matches!(fault.code, Code::PlaceLost | Code::TimedOut) {
            self.end(entry, id, ExecState::Lost);
            return;
        }
        if let Some(user) = lock(&self.inner.users).get_mut(&entry.user) {
            user.execs.remove(&id);
        }
        match &entry.kept {
            Some(kept) => kept.spool.remove(),
            None => entry.forget_note(&self.inner.config.spool, id),
        }
    }

    /// Starts an exec whose caller waits: dropped, its whole tree is killed.
    ///
    /// # Errors
    /// What the place says; `conflict` when the id was started before.
    pub async fn run(
        &self,
        claim: ExecClaim,
        place: &Arc<dyn Place>,
        exec: ExecId,
        spec: &ExecSpec,
    ) -> Result<Foreground, Fault> {
        let (permit, entry) = self.begin(claim, place, exec, spec, LiveNote::default(), None)?;
        // Also when the caller goes away while the place starts it.
        let guard = EndGuard { execs: self.clone(), entry, exec, over: false, outlives: false };
        match place.spawn(&permit, exec, spec, false).await {
            Ok(Spawned { pid, stdin, stdout, stderr, resize, exit }) => {
                lock(&guard.entry.info).pid = pid;
                let exit = WatchedExit { exit, guard };
                Ok(Foreground { id: exec, pid, stdin, stdout, stderr, resize, exit: Box::pin(exit) })
            }
            Err(fault) => {
                guard.not_started(&fault);
                Err(fault)
            }
        }
    }

    /// Starts an exec that outlives its request. Goes on also when the caller stops waiting.
    ///
    /// # Errors
    /// As [`Execs::run`]; `server_busy` when its output cannot be kept.
    pub async fn run_background(
        &self,
        claim: ExecClaim,
        place: &Arc<dyn Place>,
        exec: ExecId,
        spec: &ExecSpec,
    ) -> Result<ExecInfo, Fault> {
        let (this, place, spec) = (self.clone(), Arc::clone(place), spec.clone());
        let started = tokio::spawn(async move { this.start_background(claim, &place, exec, &spec).await });
        started.await.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the start of an exec ended early", "")))
    }

    async fn start_background(
        &self,
        claim: ExecClaim,
        place: &Arc<dyn Place>,
        exec: ExecId,
        spec: &ExecSpec,
    ) -> Result<ExecInfo, Fault> {
        let spool = Spool::of(&self.inner.config.spool, exec);
        let (permit, entry) = self.begin(claim, place, exec, spec, LiveNote::default(), Some(&spool))?;
        let started = async {
            let about = entry.about(None);
            spool.make().and_then(|()| spool.write_about(&about)).map_err(|error| spool_failed(&error))?;
            match place.sandbox() {
                Some(sandbox) => sandbox.spawn_raw(&permit, exec, spec, true).await,
                None => place.spawn(&permit, exec, spec, true).await.map(RawSpawned::from),
            }
        };
        match started.await {
            Ok(raw) => {
                lock(&entry.info).pid = raw.pid;
                // The pid is for people only; that the exec runs was written before it did.
                let _ = spool.write_about(&entry.about(None));
                self.pump(Arc::clone(&entry), exec, raw).await;
                let info = lock(&entry.info).clone();
                Ok(info)
            }
            Err(fault) => {
                self.not_started(&entry, &fault);
                Err(fault)
            }
        }
    }

    /// Moves the exec's output to its spool, and notes its end.
    async fn pump(&self, entry: Arc<Entry>, exec: ExecId, raw: RawSpawned) {
        let RawSpawned { pid: _, stdin, stdout, stderr, resize, exit } = raw;
        let Some(kept) = &entry.kept else { return };
        *kept.stdin.lock().await = stdin;
        *lock(&kept.resize) = resize;
        let budget = Budget {
            bytes_max: self.inner.config.bytes_max,
            user_bytes_max: self.inner.config.user_bytes_max,
            user_bytes: Arc::clone(&lock(&self.inner.users).entry(entry.user).or_default().bytes),
        };
        let this = self.clone();
        let entry = Arc::clone(&entry);
        let place = lock(&entry.runs_in).clone();
        tokio::spawn(async move {
            let Some(kept) = &entry.kept else { return };
            let out = kept.spool.pump(Which::Stdout, stdout, budget.clone(), Arc::clone(&kept.out));
            let err = kept.spool.pump(Which::Stderr, stderr, budget, Arc::clone(&kept.err));
            let end = async {
                let end = exit.await;
                // Nobody reads it any more.
                *kept.stdin.lock().await = None;
                this.end(&entry, exec, ended_state(&end));
            };
            futures::future::join3(out, err, end).await;
            // Its last bytes may have come after its end.
            this.retain(entry.user);
            // What the place kept for another server is no longer needed.
            if let Some(place) = place {
                place.forget(exec).await;
            }
        });
    }

    /// Notes the end of an exec, frees its part of the quota, and lets the oldest ended ones go.
    fn end(&self, entry: &Arc<Entry>, exec: ExecId, state: ExecState) {
        let now = now_ms();
        lock(&entry.info).state = state;
        if let Some(kept) = &entry.kept
            && let Err(error) = kept.spool.write_about(&entry.about(Some(now)))
        {
            tracing::warn!(%error, %exec, "cannot note the end of a background exec");
        }
        if entry.kept.is_none() {
            entry.forget_note(&self.inner.config.spool, exec);
        }
        drop(lock(&entry.hold).take());
        drop(lock(&entry.runs_in).take());
        lock(&self.inner.users).entry(entry.user).or_default().ended.push_back((now, exec));
        self.retain(entry.user);
        // Last: who waited finds all of the above done.
        entry.state.send_replace(state);
    }

    /// Lets go of a user's ended execs that are too many or too old.
    fn retain(&self, user: UserId) {
        let ExecsConfig { user_bytes_max, ended_max, ended_ms_max, .. } = self.inner.config;
        let oldest = now_ms().saturating_sub(ended_ms_max);
        let mut gone = Vec::new();
        {
            let mut users = lock(&self.inner.users);
            let Some(execs) = users.get_mut(&user) else { return };
            while let Some((at, exec)) = execs.ended.front().copied() {
                let bytes = execs.bytes.load(Ordering::Relaxed);
                if execs.ended.len() <= ended_max && at >= oldest && bytes < user_bytes_max {
                    break;
                }
                execs.ended.pop_front();
                if let Some(entry) = execs.execs.remove(&exec) {
                    execs.let_go(&entry);
                    gone.push(entry);
                }
            }
            if execs.execs.is_empty() {
                users.remove(&user);
            }
        }
        for entry in gone {
            if let Some(kept) = &entry.kept {
                kept.spool.remove();
            }
        }
    }

    /// Lets go of every user's ended execs that are too old; to be called now and then.
    pub fn sweep(&self) {
        let users: Vec<_> = lock(&self.inner.users).keys().copied().collect();
        for user in users {
            self.retain(user);
        }
    }

    fn find(&self, user: UserId, exec: ExecId) -> Result<Arc<Entry>, Fault> {
        let users = lock(&self.inner.users);
        users.get(&user).and_then(|execs| execs.execs.get(&exec)).cloned().ok_or_else(|| Fault::not_found("exec"))
    }

    /// As [`Self::find`], for a permit that may be good in one sandbox only: what runs elsewhere is not there for it.
    fn find_for(&self, permit: &Permit, exec: ExecId) -> Result<Arc<Entry>, Fault> {
        let entry = self.find(permit.user(), exec)?;
        if permit.reaches(entry.place) { Ok(entry) } else { Err(Fault::not_found("exec")) }
    }

    /// One exec as listed.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn info(&self, user: UserId, exec: ExecId) -> Result<ExecInfo, Fault> {
        Ok(lock(&self.find(user, exec)?.info).clone())
    }

    /// Where an exec runs or ran.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub fn place_of(&self, user: UserId, exec: ExecId) -> Result<PlaceRef, Fault> {
        Ok(self.find(user, exec)?.place)
    }

    /// A user's execs, newest first; only those of `place` if one is named.
    #[must_use]
    pub fn list(&self, user: UserId, place: Option<PlaceRef>) -> Vec<ExecInfo> {
        let users = lock(&self.inner.users);
        let Some(execs) = users.get(&user) else { return Vec::new() };
        let mut infos: Vec<_> = (execs.execs.values())
            .filter(|entry| place.is_none_or(|place| entry.place == place))
            .map(|entry| lock(&entry.info).clone())
            .collect();
        infos.sort_by_key(|info| std::cmp::Reverse((info.started_at, info.id)));
        infos
    }

    /// How many run, over all users.
    #[must_use]
    pub fn running(&self) -> usize {
        let users = lock(&self.inner.users);
        users.values().flat_map(|execs| execs.execs.values()).filter(|entry| entry.is_running()).count()
    }

    /// Waits until an exec has ended.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's.
    pub async fn wait(&self, permit: &Permit, exec: ExecId) -> Result<ExecState, Fault> {
        permit.require(Action::ExecRead)?;
        let entry = self.find_for(permit, exec)?;
        let mut state = entry.state.subscribe();
        let ended = state.wait_for(|state| *state != ExecState::Running).await;
        ended.map(|state| *state).map_err(|_| Fault::not_found("exec"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `not_found` when there is no such exec or it has ended; what the place says.
    pub async fn signal(&self, permit: &Permit, exec: ExecId, signal: i32, scope: SignalScope) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let entry = self.find_for(permit, exec)?;
        if !entry.is_running() {
            return Err(Fault::not_found("running exec"));
        }
        let place = lock(&entry.runs_in).clone().ok_or_else(|| crate::refusal::lost("it is not connected"))?;
        place.signal(permit, exec, signal, scope).await
    }

    /// Writes to a background exec's standard input or terminal; waits while it does not read.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it has no standard input, or that is closed.
    pub async fn write_stdin(&self, permit: &Permit, exec: ExecId, bytes: &[u8]) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let entry = self.find_for(permit, exec)?;
        let kept = entry.kept()?;
        let mut stdin = kept.stdin.lock().await;
        let writer = stdin.as_mut().ok_or_else(no_stdin)?;
        if writer.write_all(bytes).await.is_err() {
            *stdin = None;
            return Err(no_stdin());
        }
        Ok(())
    }

    /// Closes a background exec's standard input; on a terminal its end is typed ([`crate::type_end`]).
    ///
    /// # Errors
    /// `not_found`; `conflict` when it has none, or that is closed.
    pub async fn close_stdin(&self, permit: &Permit, exec: ExecId) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let entry = self.find_for(permit, exec)?;
        let writer = entry.kept()?.stdin.lock().await.take().ok_or_else(no_stdin)?;
        let pty = lock(&entry.info).pty;
        crate::typed::end_stdin(writer, pty, entry.state.subscribe()).await;
        Ok(())
    }

    /// Sets the size of a background exec's terminal.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it has no terminal.
    pub fn resize(&self, permit: &Permit, exec: ExecId, rows: u16, cols: u16) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let entry = self.find_for(permit, exec)?;
        let resize = lock(&entry.kept()?.resize);
        let no_terminal = || Fault::new(Code::Conflict, "the exec has no terminal", "start it with `pty`");
        resize.as_ref().ok_or_else(no_terminal)?.resize(rows, cols)
    }

    /// What a background exec printed, from the given offsets of each output on, and what it prints from now on while
    /// `follow`; ends with [`ExecEvent::Ended`] when it has ended, or simply ends when not to follow. Several may
    /// attach at once.
    ///
    /// # Errors
    /// `not_found`, also when it is another user's; `conflict` for an exec that is not in the background.
    pub fn attach(
        &self,
        permit: &Permit,
        exec: ExecId,
        stdout_from: u64,
        stderr_from: u64,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<ExecEvent, Fault>>, Fault> {
        permit.require(Action::ExecRead)?;
        let entry = self.find_for(permit, exec)?;
        entry.kept()?;
        Ok(crate::attach::attach(entry, stdout_from, stderr_from, follow))
    }

    /// A part of one output of a background exec, and whether bytes after the last kept one were dropped.
    ///
    /// # Errors
    /// As [`Execs::attach`].
    pub fn output(
        &self,
        permit: &Permit,
        exec: ExecId,
        which: Which,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(BoxStream<'static, Result<Bytes, Fault>>, bool), Fault> {
        permit.require(Action::ExecRead)?;
        let entry = self.find_for(permit, exec)?;
        let kept = entry.kept()?;
        let truncated = kept.progress(which).borrow().truncated;
        match kept.spool.open_to_read(which) {
            Ok(fd) => Ok((content(fd, offset, length, "output"), truncated)),
            // Nothing was printed yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok((Box::pin(futures::stream::empty()), truncated))
            }
            Err(error) => Err(spool_failed(&error)),
        }
    }

    /// Removes an ended exec with its output.
    ///
    /// # Errors
    /// `not_found`; `conflict` while it runs.
    pub fn remove(&self, permit: &Permit, exec: ExecId) -> Result<(), Fault> {
        permit.require(Action::ExecControl)?;
        let entry = self.find_for(permit, exec)?;
        if entry.is_running() {
            return Err(Fault::new(Code::Conflict, "the exec is running", "kill it first"));
        }
        if let Some(execs) = lock(&self.inner.users).get_mut(&entry.user) {
            execs.execs.remove(&exec);
            execs.ended.retain(|(_, ended)| *ended != exec);
            execs.let_go(&entry);
        }
        if let Some(kept) = &entry.kept {
            kept.spool.remove();
        }
        Ok(())
    }
}

fn no_stdin() -> Fault {
    Fault::new(Code::Conflict, "the exec has no open standard input", "start it with `stdin`")
}

impl Entry {
    fn is_running(&self) -> bool {
        *self.state.borrow() == ExecState::Running
    }

    fn is_followed(&self) -> bool {
        lock(&self.runs_in).is_some()
    }

    fn kept(&self) -> Result<&Kept, Fault> {
        self.kept.as_ref().ok_or_else(|| {
            Fault::new(Code::Conflict, "the exec is not in the background", "its output goes to who started it")
        })
    }

    fn about(&self, ended_at: Option<UnixMs>) -> About {
        let info = lock(&self.info).clone();
        About { user: self.user, place: self.place, info, note: LiveNote::clone(&self.note), ended_at }
    }

    pub(crate) fn state(&self) -> watch::Receiver<ExecState> {
        self.state.subscribe()
    }

    /// One output's progress and file; `None` in the foreground.
    pub(crate) fn output(&self, which: Which) -> Option<(watch::Receiver<Progress>, &Spool)> {
        self.kept.as_ref().map(|kept| (kept.progress(which).subscribe(), &kept.spool))
    }
}

impl UserExecs {
    /// What an exec that is forgotten kept no longer counts; what a detached child of it still prints is dropped.
    fn let_go(&self, entry: &Entry) {
        if let Some(kept) = &entry.kept {
            self.bytes.fetch_sub(kept.len(), Ordering::Relaxed);
            for progress in [&kept.out, &kept.err] {
                progress.send_modify(|progress| progress.truncated = true);
            }
        }
    }
}

impl Kept {
    /// Bytes of both outputs.
    fn len(&self) -> u64 {
        self.out.borrow().len + self.err.borrow().len
    }

    /// Notes outputs that go on elsewhere than where they were held to: bytes in between are lost.
    fn note_gaps(&self, from: Held) {
        for (which, from) in [(Which::Stdout, from.stdout), (Which::Stderr, from.stderr)] {
            let progress = self.progress(which);
            let Progress { len, truncated, .. } = *progress.borrow();
            if from != len && !truncated {
                self.spool.cut(which, progress);
            }
        }
    }

    fn progress(&self, which: Which) -> &watch::Sender<Progress> {
        match which {
            Which::Stdout => &self.out,
            Which::Stderr => &self.err,
        }
    }
}
