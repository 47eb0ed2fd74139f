//! A warden and inits that live in this process and speak the real protocols: honest, broken or hostile as asked.
//!
//! The honest init really starts programs, as children of the test, so streams, ends and kills are real.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of this module")]

pub mod init;

use std::{
    collections::{BTreeMap, HashMap},
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rf_places::{
    ChangedWhy, ExecClaim, ExecsConfig, FirstUse, Making, Place, Places, PlacesConfig, Repeat, Rows, SandboxClaim,
    SandboxRow, SnapshotRow,
};
use rf_policy::{Action, Asked, Credential, Permit, Principal, Question, Scope, UserUsage, judge};
use rf_types::{
    Code, Enforcement, ExecSpec, Fault, KeyId, PlaceRef, Program, RequestId, SandboxId, SandboxSpec, SnapshotId,
    UserId, UserLimits,
};
use rf_wire::warden::{Answer, GoneWhy, Order, Paused, PausedWhy, Reply, Request, Snapshot, SnapshotWay};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg,
    shutdown, socket_with, socketpair,
};

pub use init::{Behaviour, FakeInit};

pub fn user(n: u128) -> UserId {
    UserId::from_bits(n)
}

pub fn permit_of(user: UserId, action: Action) -> Permit {
    let principal = Principal {
        user,
        username: "ann".parse().unwrap(),
        credential: Credential::Key { id: KeyId::from_bits(1) },
        scopes: vec![Scope::Read, Scope::Run, Scope::Account, Scope::Audit, Scope::Operate],
    };
    judge(&Question {
        principal: &principal,
        action,
        request: RequestId::random(),
        limits: &UserLimits::STANDARD,
        usage: &UserUsage::default(),
        asked: Asked::Nothing,
    })
    .unwrap()
}

pub fn spec_of(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        program: Program::Argv(argv.iter().map(|word| (*word).to_owned()).collect()),
        env: Default::default(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin: false,
        timeout_ms: None,
        rlimits: Default::default(),
    }
}

pub fn shell(line: &str) -> ExecSpec {
    spec_of(&["sh", "-c", line])
}

/// Rows in memory.
#[derive(Default)]
pub struct FakeRows {
    pub live: Mutex<HashMap<SandboxId, SandboxRow>>,
    pub snapshots: Mutex<HashMap<SnapshotId, SnapshotRow>>,
    pub whys: Mutex<Vec<(SandboxId, ChangedWhy)>>,
    pub ended: Mutex<Vec<(SandboxId, rf_places::EndedWhy)>>,
    pub repeats: Mutex<HashMap<String, SandboxId>>,
    pub refuse: Mutex<bool>,
}

impl Rows for FakeRows {
    fn made(&self, row: &SandboxRow, repeat: Option<&Repeat>) -> Result<(), Fault> {
        if *self.refuse.lock().unwrap() {
            return Err(Fault::new(Code::StoreUnavailable, "the store is full", ""));
        }
        if let Some(repeat) = repeat {
            self.repeats.lock().unwrap().insert(repeat.key.clone(), row.id);
        }
        self.live.lock().unwrap().insert(row.id, row.clone());
        Ok(())
    }

    fn unmade(&self, user: UserId, id: SandboxId) {
        self.repeats.lock().unwrap().retain(|_, made| *made != id);
        self.ended(user, id, rf_places::EndedWhy::Destroyed);
    }

    fn changed(&self, row: &SandboxRow, why: ChangedWhy) -> Result<(), Fault> {
        if *self.refuse.lock().unwrap() {
            return Err(Fault::new(Code::StoreUnavailable, "the store is full", ""));
        }
        self.whys.lock().unwrap().push((row.id, why));
        self.live.lock().unwrap().insert(row.id, row.clone());
        Ok(())
    }

    fn ended(&self, _user: UserId, id: SandboxId, why: rf_places::EndedWhy) {
        self.live.lock().unwrap().remove(&id);
        self.ended.lock().unwrap().push((id, why));
    }

    fn snapshot_made(&self, row: &SnapshotRow) -> Result<(), Fault> {
        if *self.refuse.lock().unwrap() {
            return Err(Fault::new(Code::StoreUnavailable, "the store is full", ""));
        }
        let mut snapshots = self.snapshots.lock().unwrap();
        if row.name.is_some() {
            for other in snapshots.values_mut().filter(|other| other.user == row.user && other.name == row.name) {
                other.name = None;
            }
        }
        snapshots.insert(row.id, row.clone());
        Ok(())
    }

    fn snapshot_changed(&self, row: &SnapshotRow) {
        self.snapshots.lock().unwrap().insert(row.id, row.clone());
    }

    fn snapshot_removed(&self, _user: UserId, id: SnapshotId) -> Result<(), Fault> {
        self.snapshots.lock().unwrap().remove(&id);
        Ok(())
    }
}

/// Sends one message with descriptors, waiting for room.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// Receives one message, waiting for it; `None` at the end.
pub fn receive(socket: BorrowedFd<'_>) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 128 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    bytes.truncate(got.bytes);
    (got.bytes > 0).then_some((bytes, fds))
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

#[derive(Default)]
struct WardenState {
    connection: Option<Arc<OwnedFd>>,
    sandboxes: HashMap<SandboxId, (SandboxSpec, u64, FakeInit)>,
    /// Which are frozen.
    frozen: HashMap<SandboxId, PausedWhy>,
    /// What each began with.
    begun_with: HashMap<SandboxId, SnapshotId>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Those of which it cannot read what they are.
    set_aside: std::collections::BTreeSet<SnapshotId>,
    /// What the next orders of these kinds are refused with.
    refuse_pause: Option<Fault>,
    refuse_snapshot: Option<Fault>,
    behaviour: Behaviour,
    /// As what each sandbox was made, and the time that each exec was given, milliseconds; in their order.
    specs: Vec<SandboxSpec>,
    timeouts: Arc<Mutex<Vec<u64>>>,
}

/// A warden in this process.
pub struct FakeWarden {
    path: PathBuf,
    state: Arc<Mutex<WardenState>>,
    listener: Option<Arc<OwnedFd>>,
    pub created: Arc<AtomicUsize>,
    pub destroyed: Arc<AtomicUsize>,
}

impl FakeWarden {
    pub fn start(path: PathBuf) -> Self {
        let mut warden =
            Self { path, state: Arc::default(), listener: None, created: Arc::default(), destroyed: Arc::default() };
        warden.listen();
        warden
    }

    /// Listens at its path and serves one server after the other.
    pub fn listen(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&self.path).unwrap()).unwrap();
        listen(&listener, 16).unwrap();
        let listener = Arc::new(listener);
        self.listener = Some(Arc::clone(&listener));
        let (state, created, destroyed) =
            (Arc::clone(&self.state), Arc::clone(&self.created), Arc::clone(&self.destroyed));
        std::thread::spawn(move || {
            while let Ok(connection) = accept_with(&*listener, SocketFlags::CLOEXEC) {
                let connection = Arc::new(connection);
                let old = state.lock().unwrap().connection.replace(Arc::clone(&connection));
                if let Some(old) = old {
                    let _ = shutdown(&*old, Shutdown::Both);
                }
                let (state, created, destroyed) = (Arc::clone(&state), Arc::clone(&created), Arc::clone(&destroyed));
                std::thread::spawn(move || serve(&connection, &state, &created, &destroyed));
            }
        });
    }

    /// Dies as by SIGKILL: its connection and every sandbox are gone at once.
    pub fn die(&mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = shutdown(&*listener, Shutdown::Both);
        }
        let mut state = self.state.lock().unwrap();
        if let Some(connection) = state.connection.take() {
            let _ = shutdown(&*connection, Shutdown::Both);
        }
        for (_, (_, _, init)) in state.sandboxes.drain() {
            init.die();
        }
        state.frozen.clear();
    }

    /// How the inits of sandboxes that are made from now on behave.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
    }

    /// Kills a sandbox's init, and says so if `tell`.
    pub fn kill_init(&self, id: SandboxId, tell: Option<GoneWhy>) {
        let mut state = self.state.lock().unwrap();
        if let Some((_, _, init)) = state.sandboxes.remove(&id) {
            init.die();
        }
        if let (Some(why), Some(connection)) = (tell, &state.connection) {
            let news = Answer { tag: 0, result: Ok(Reply::Gone { id, why }) };
            send(connection.as_fd(), &serde_json::to_vec(&news).unwrap(), &[]);
        }
    }

    /// Tells that it froze a sandbox by itself.
    pub fn freeze(&self, id: SandboxId) {
        let mut state = self.state.lock().unwrap();
        state.frozen.insert(id, PausedWhy::Lease);
        if let Some(connection) = &state.connection {
            let news = Answer { tag: 0, result: Ok(Reply::Paused { id, why: PausedWhy::Lease }) };
            send(connection.as_fd(), &serde_json::to_vec(&news).unwrap(), &[]);
        }
    }

    /// Tells that a snapshot is durable and `bytes` long.
    pub fn count(&self, id: SnapshotId, bytes: u64) {
        let mut state = self.state.lock().unwrap();
        let snapshot = state.snapshots.get_mut(&id).unwrap();
        (snapshot.bytes, snapshot.durable) = (bytes, true);
        let news = Answer { tag: 0, result: Ok(Reply::SnapshotChanged(snapshot.clone())) };
        send(state.connection.as_ref().unwrap().as_fd(), &serde_json::to_vec(&news).unwrap(), &[]);
    }

    /// What the next pauses or snapshots are refused with.
    pub fn refuse(&self, pause: Option<Fault>, snapshot: Option<Fault>) {
        let mut state = self.state.lock().unwrap();
        (state.refuse_pause, state.refuse_snapshot) = (pause, snapshot);
    }

    pub fn frozen(&self) -> Vec<SandboxId> {
        self.state.lock().unwrap().frozen.keys().copied().collect()
    }

    pub fn snapshots(&self) -> Vec<SnapshotId> {
        self.state.lock().unwrap().snapshots.keys().copied().collect()
    }

    pub fn begun_with(&self, id: SandboxId) -> Option<SnapshotId> {
        self.state.lock().unwrap().begun_with.get(&id).copied()
    }

    /// As what each sandbox was made, in their order.
    pub fn specs(&self) -> Vec<SandboxSpec> {
        self.state.lock().unwrap().specs.clone()
    }

    /// The time that each exec was given, milliseconds, in their order.
    pub fn timeouts(&self) -> Vec<u64> {
        self.state.lock().unwrap().timeouts.lock().unwrap().clone()
    }

    pub fn lease(&self, id: SandboxId) -> u64 {
        self.state.lock().unwrap().sandboxes[&id].1
    }

    /// Forgets a snapshot, as a disk that died.
    pub fn lose_snapshot(&self, id: SnapshotId) {
        self.state.lock().unwrap().snapshots.remove(&id);
    }

    /// Cannot read any more what a snapshot is; or can again.
    pub fn set_aside(&self, id: SnapshotId, bad: bool) {
        let set_aside = &mut self.state.lock().unwrap().set_aside;
        let _ = if bad { set_aside.insert(id) } else { set_aside.remove(&id) };
    }

    pub fn alive(&self) -> Vec<SandboxId> {
        self.state.lock().unwrap().sandboxes.keys().copied().collect()
    }

    pub fn init(&self, id: SandboxId) -> FakeInit {
        self.state.lock().unwrap().sandboxes[&id].2.clone()
    }
}

impl Drop for FakeWarden {
    fn drop(&mut self) {
        self.die();
    }
}

fn serve(connection: &OwnedFd, state: &Mutex<WardenState>, created: &AtomicUsize, destroyed: &AtomicUsize) {
    let answer = |tag, result: Result<Reply, Fault>, fds: &[BorrowedFd<'_>]| {
        send(connection.as_fd(), &serde_json::to_vec(&Answer { tag, result }).unwrap(), fds);
    };
    let enforcement = || Enforcement { level: "namespaces".into(), mode: "fake".into(), layers: Vec::new() };
    while let Some((bytes, _fds)) = receive(connection.as_fd()) {
        let Request { tag, order } = serde_json::from_slice(&bytes).unwrap();
        match order {
            Order::Create { spec, from, id } => {
                let (ours, theirs) = pair();
                let mut state = state.lock().unwrap();
                let id = id.unwrap_or_else(SandboxId::random);
                if state.sandboxes.contains_key(&id) {
                    answer(tag, Err(Fault::new(Code::Conflict, "it lives", "")), &[]);
                    continue;
                }
                match from {
                    Some(from) if !state.snapshots.contains_key(&from) => {
                        answer(tag, Err(Fault::not_found("snapshot")), &[]);
                        continue;
                    }
                    Some(from) if state.set_aside.contains(&from) => {
                        answer(tag, Err(Fault::new(Code::StoreUnavailable, "it cannot be read", "")), &[]);
                        continue;
                    }
                    Some(from) => drop(state.begun_with.insert(id, from)),
                    None => {}
                }
                created.fetch_add(1, Ordering::SeqCst);
                let lease_until = u64::MAX / 2;
                let init = FakeInit::start(ours, state.behaviour, Arc::clone(&state.timeouts));
                state.specs.push(spec.clone());
                state.sandboxes.insert(id, (spec, lease_until, init));
                drop(state);
                let reply = Reply::Created { id, lease_until, pooled: false, enforcement: enforcement() };
                answer(tag, Ok(reply), &[theirs.as_fd()]);
            }
            Order::Destroy { id } => {
                destroyed.fetch_add(1, Ordering::SeqCst);
                let found = {
                    let mut state = state.lock().unwrap();
                    state.frozen.remove(&id);
                    state.sandboxes.remove(&id)
                };
                match found {
                    Some((_, _, init)) => {
                        init.die();
                        answer(tag, Ok(Reply::Done {}), &[]);
                    }
                    None => answer(tag, Err(Fault::not_found("sandbox")), &[]),
                }
            }
            Order::Adopt {} => {
                let adopted: Vec<_> = {
                    let state = state.lock().unwrap();
                    (state.sandboxes.iter())
                        .map(|(id, (spec, lease, init))| {
                            let paused = state.frozen.get(id).map(|why| Paused { since: 1, why: *why });
                            (*id, spec.clone(), *lease, init.adopt(), paused)
                        })
                        .collect()
                };
                for (id, spec, lease_until, socket, paused) in adopted {
                    let reply = Reply::Adopted { id, spec, lease_until, enforcement: enforcement(), paused };
                    answer(tag, Ok(reply), &[socket.as_fd()]);
                }
                answer(tag, Ok(Reply::Done {}), &[]);
            }
            Order::SetLease { id, lease_until } => {
                if let Some(found) = state.lock().unwrap().sandboxes.get_mut(&id) {
                    found.1 = lease_until;
                }
                answer(tag, Ok(Reply::Done {}), &[]);
            }
            Order::Pause { id } => {
                let mut state = state.lock().unwrap();
                let result = match state.refuse_pause.take() {
                    Some(fault) => Err(fault),
                    None if !state.sandboxes.contains_key(&id) => Err(Fault::not_found("sandbox")),
                    None => {
                        state.frozen.insert(id, PausedWhy::Asked);
                        Ok(Reply::Done {})
                    }
                };
                answer(tag, result, &[]);
            }
            Order::Resume { id, lease_until } => {
                let mut state = state.lock().unwrap();
                state.frozen.remove(&id);
                let result = match state.sandboxes.get_mut(&id) {
                    Some(found) => {
                        found.1 = lease_until.unwrap_or(found.1);
                        Ok(Reply::Resumed { lease_until: found.1 })
                    }
                    None => Err(Fault::not_found("sandbox")),
                };
                answer(tag, result, &[]);
            }
            Order::Snapshot { id, snapshot } => {
                let mut state = state.lock().unwrap();
                let result = match (state.refuse_snapshot.take(), state.sandboxes.get(&id)) {
                    (Some(fault), _) => Err(fault),
                    (None, None) => Err(Fault::not_found("sandbox")),
                    (None, Some((spec, ..))) => {
                        let made = Snapshot {
                            id: snapshot,
                            template: spec.template.clone(),
                            disk: spec.disk,
                            created_at: 1,
                            way: SnapshotWay::Pushed,
                            bytes: 10,
                            files: 1,
                            layers: 1,
                            durable: false,
                        };
                        state.snapshots.insert(snapshot, made.clone());
                        Ok(Reply::Snapshotted(made))
                    }
                };
                answer(tag, result, &[]);
            }
            Order::RemoveSnapshot { snapshot } => {
                let removed = state.lock().unwrap().snapshots.remove(&snapshot);
                let result = removed.map(|_| Reply::Done {}).ok_or_else(|| Fault::not_found("snapshot"));
                answer(tag, result, &[]);
            }
            Order::Snapshots { after } => {
                let state = state.lock().unwrap();
                let mut behind: Vec<_> =
                    state.snapshots.values().filter(|snapshot| after.is_none_or(|after| snapshot.id > after)).collect();
                // Two at a time, so that every server asks for the rest.
                let more = behind.len() > 2;
                behind.truncate(2);
                let (bad, good): (Vec<_>, Vec<_>) =
                    behind.into_iter().partition(|snapshot| state.set_aside.contains(&snapshot.id));
                let list = good.into_iter().cloned().collect();
                let set_aside = bad.into_iter().map(|snapshot| snapshot.id).collect();
                answer(tag, Ok(Reply::Snapshots { list, set_aside, more }), &[]);
            }
            Order::Usage { .. } => answer(tag, Ok(Reply::Used(rf_wire::warden::Usage::default())), &[]),
            _ => answer(tag, Ok(Reply::Done {}), &[]),
        }
    }
}

/// A fake warden, and a server's places on it.
pub struct Field {
    pub dir: tempfile::TempDir,
    pub warden: FakeWarden,
    pub rows: Arc<FakeRows>,
}

impl Field {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let warden = FakeWarden::start(dir.path().join("warden.sock"));
        Self { dir, warden, rows: Arc::default() }
    }

    /// A server's places; the rows that are live are known to it.
    pub async fn places(&self) -> Places {
        self.places_with(|_| {}).await
    }

    pub async fn places_with(&self, change: impl FnOnce(&mut ExecsConfig)) -> Places {
        let mut execs = ExecsConfig::standard(self.dir.path().join("spool"));
        change(&mut execs);
        let config = PlacesConfig { warden_socket: self.dir.path().join("warden.sock"), execs };
        let known = self.rows.live.lock().unwrap().values().cloned().collect();
        let rows: Arc<dyn Rows> = Arc::clone(&self.rows) as Arc<dyn Rows>;
        let snapshots = self.rows.snapshots.lock().unwrap().values().cloned().collect();
        let places = Places::start(config, rows, known, snapshots).unwrap();
        places.ready().await;
        places
    }
}

/// Lets every first use through.
pub struct Allowed<'a>(pub &'a Places, pub UserId);

impl FirstUse for Allowed<'_> {
    fn claim(&self) -> futures::future::BoxFuture<'_, Result<SandboxClaim, Fault>> {
        Box::pin(async { Ok(claim_sandbox(self.0, self.1)) })
    }
}

pub fn claim_sandbox(places: &Places, user: UserId) -> SandboxClaim {
    places.claim_sandbox(user, SandboxSpec::standard(60_000), |_| Ok(permit_of(user, Action::SandboxCreate))).unwrap()
}

pub fn claim_exec(places: &Places, user: UserId) -> ExecClaim {
    places.claim_exec(user, |_| Ok(permit_of(user, Action::Exec))).unwrap()
}

/// A fresh sandbox of a user's.
pub async fn sandbox(places: &Places, user: UserId) -> Arc<dyn Place> {
    places.sandboxes().create(claim_sandbox(places, user), Making::default()).await.unwrap()
}

pub fn id_of(place: &Arc<dyn Place>) -> SandboxId {
    let PlaceRef::Sandbox(id) = place.place() else { panic!("not a sandbox") };
    id
}

/// Looks again and again until it is so; the test's own time limit is the bound.
pub async fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The life of one server that is killed: its runtime ends, with every task and descriptor of it.
pub fn server<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}
