//! The warden's loop: sandboxes starting, prepared, claimed and dying, and the one server that they are kept for.

mod blanks;
mod counting;
mod ending;
mod pause;
mod removing;
mod saving;
mod unpacking;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rf_sandbox::{
    ending::Ending,
    host::HostReport,
    launch::{LaunchError, Launcher, Sandbox, Starting},
    plan::{ALWAYS, IDS_PER_SANDBOX, Ids, Plan, PlanError},
    push::Helper,
};
use rf_types::{Code, Fault, SandboxId, SandboxSpec, SnapshotId, units::UnixMs};
use rf_wire::warden::{Order, Reply, Request, Status, VERSION};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    process::Signal,
};

use self::{
    blanks::Blanks,
    pause::Rest,
    removing::Removing,
    saving::{Background, Layers, Waiting},
};
use crate::{
    WardenConfig, WardenError, door, door::Connection, gone::Gone, locks::Locks, pool::Pool, snapshots::Snapshots,
    templates::Templates, unpack::Unpacking, weights::Weights,
};

/// First host id of the first sandbox. Above the ranges that distributions hand out to users and containers.
const IDS_BASE: u32 = 0x7000_0000;
/// Most launches at once; past it an order waits for nothing and is refused.
const STARTING_MAX: usize = 256;
/// Most layers being unpacked at once.
const UNPACKING_MAX: usize = 4;
/// Longest launch. A launch takes milliseconds; a minute of none is a host in trouble.
const START_TIME: Duration = Duration::from_secs(20);
/// How long who asked for a launch that failed waits for its end, so that its id is free when they hear of it. Chosen: it
/// takes milliseconds, but for a process that waits for a device.
const FAILED_TIME: Duration = Duration::from_millis(500);
/// How long nothing was asked for before the pool is filled: whoever just got a sandbox is running its first command,
/// and the two would share the processors. Measured on two of them: it halves the time of `true`, and of a client that
/// makes a sandbox and runs a shell there within 9 ms, launches at 6 ms took one.
const QUIET: Duration = Duration::from_millis(10);
/// The same where less than half is ready.
const QUIET_SHORT: Duration = Duration::from_millis(5);
/// How soon a sandbox whose last cgroup was still busy is looked at again.
const AGAIN: Duration = Duration::from_millis(2);

/// Most orders that wait for the same sandbox to be paused or gone: a process of it that waits for a device can make that
/// take for ever. Chosen; a server asks once.
const ASKERS_MAX: usize = 64;

/// What became readable.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signal,
    Listener,
    Connection(u64),
    Starting(SandboxId),
    Live(SandboxId),
    Freezing(SandboxId),
    Saving(SandboxId),
    Keeping(u64),
    Removing,
    Helper(u64),
    Unpacking(u64),
    Blank,
    Locks,
}

/// Whose answer something is: connection and tag.
type Asker = (u64, u64);

struct Start {
    starting: Starting,
    spec: SandboxSpec,
    /// `None`: for the pool.
    asker: Option<Asker>,
    layers: Layers,
}

struct Live {
    sandbox: Sandbox,
    spec: SandboxSpec,
    /// 0 for a prepared one.
    lease_until: UnixMs,
    rest: Rest,
    layers: Layers,
}

struct Dying {
    ending: Ending,
    askers: Vec<Asker>,
    /// Whose launch failed, and why; since when it is dying.
    failed: Option<(Asker, Fault)>,
    since: Instant,
}

impl Dying {
    fn new(ending: Ending, failed: Option<(Asker, Fault)>) -> Self {
        Self { ending, askers: Vec::new(), failed, since: Instant::now() }
    }
}

struct Keeper {
    config: WardenConfig,
    launcher: Launcher,
    epoll: OwnedFd,
    listener: OwnedFd,
    sources: HashMap<u64, Source>,
    next: u64,
    /// Connections; the one in `server` gives the orders.
    connections: HashMap<u64, Connection>,
    server: Option<u64>,
    starting: HashMap<SandboxId, Start>,
    live: HashMap<SandboxId, Live>,
    pool: Pool,
    /// When the server last asked for something to be made or destroyed.
    asked: Instant,
    dying: HashMap<SandboxId, Dying>,
    leases: BTreeSet<(UnixMs, SandboxId)>,
    /// Free ranges of ids, the longest free first, so that a range rests before it is used again.
    ranges: VecDeque<u32>,
    templates: Templates,
    unpacking: HashMap<u64, (Unpacking, Asker)>,
    blanks: Blanks,
    snapshots: Snapshots,
    /// Sandboxes that are being frozen.
    freezing: BTreeSet<SandboxId>,
    keeping: HashMap<u64, Background>,
    /// Directories to be removed, and the one that is.
    gone: Gone,
    removing: Option<Removing>,
    /// Orders that wait for a snapshot to be durable.
    waiting: Vec<Waiting>,
    /// Sandboxes that are gone and whose disks others still need, and how much is on them, bytes.
    orphans: HashMap<SandboxId, u64>,
    /// Processes that end by themselves.
    helpers: HashMap<u64, Helper>,
    weights: Weights,
    locks: Locks,
}

/// Runs the warden until SIGTERM or SIGINT; then every sandbox is destroyed and nothing is left.
///
/// `base` directories in the cgroup hierarchies that a former warden of this state directory left are swept first.
///
/// # Errors
/// Why it cannot start. Once it runs, what fails is told to who asked.
pub fn run(config: WardenConfig) -> Result<(), WardenError> {
    for name in ["", "images", "top", "layers", "templates", "host", "snapshots", "snapshots/kept"] {
        private_dir(&config.own(name))?;
    }
    let _lock = door::lock(&config.own("lock"))?;
    // Before the first group is made: told to stop while it comes up, a warden leaves none behind either.
    let signals =
        rf_sandbox::watch_signals(&[Signal::TERM, Signal::INT]).map_err(WardenError::step("watch for signals"))?;
    let host = HostReport::probe(&config.base()).map_err(WardenError::step("probe the host"))?;
    let hierarchies = host.hierarchies.clone();
    let kept = keep(config, host, &signals);
    if kept.is_err() {
        // One that does not come up leaves no empty group behind either.
        hierarchies.remove_base();
    }
    kept
}

/// Sweeps, sets up, and keeps until told to stop.
fn keep(config: WardenConfig, host: HostReport, signals: &OwnedFd) -> Result<(), WardenError> {
    host.hierarchies.sweep()?;
    host.hierarchies.stay_limited()?;
    let mut templates = Templates::open(&config)?;
    let snapshots = Snapshots::open(&config)?;
    templates.sweep(|id| snapshots.has_template_layer(id))?;
    let launcher = Launcher::new(host, config.own("images"), &config.own("top"))?;
    let listener = door::listen(&config.socket(), config.server_uid)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(WardenError::step("make an epoll"))?;
    let ranges = (0..config.sandboxes_max).map(|slot| IDS_BASE + slot * IDS_PER_SANDBOX).collect();
    let pool = Pool::new(config.pool, config.pool_base);
    let locks = Locks::begin(&launcher)?;
    let mut keeper = Keeper {
        config,
        launcher,
        epoll,
        listener,
        sources: HashMap::new(),
        next: 1,
        connections: HashMap::new(),
        server: None,
        starting: HashMap::new(),
        live: HashMap::new(),
        pool,
        asked: Instant::now(),
        dying: HashMap::new(),
        leases: BTreeSet::new(),
        ranges,
        templates,
        unpacking: HashMap::new(),
        blanks: Blanks::default(),
        snapshots,
        freezing: BTreeSet::new(),
        keeping: HashMap::new(),
        gone: Gone::default(),
        removing: None,
        waiting: Vec::new(),
        orphans: HashMap::new(),
        helpers: HashMap::new(),
        weights: Weights::new(),
        locks,
    };
    keeper.collect();
    keeper.remove_on();
    let token = keeper.token(Source::Signal);
    watch(&keeper.epoll, signals, token).map_err(WardenError::step("watch for signals"))?;
    let token = keeper.token(Source::Listener);
    watch(&keeper.epoll, &keeper.listener, token).map_err(WardenError::step("watch the warden's socket"))?;
    keeper.launcher.prepare();
    keeper.hear_of_locks().map_err(WardenError::step("watch the process that counts locks"))?;
    keeper.turn()?;
    keeper.stop();
    Ok(())
}

fn private_dir(path: &std::path::Path) -> Result<(), WardenError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(WardenError::file(path))
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: u64) -> Result<(), Errno> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
}

/// As [`watch`], and told once for each change: for what is read until nothing is left of it. A process that is just being
/// started holds copies of all our descriptors until its exec, so one that we closed stays in the epoll until then, and
/// told by its level it would end every wait at once.
fn watch_changes(epoll: &OwnedFd, fd: impl AsFd, token: u64) -> Result<(), Errno> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN | epoll::EventFlags::ET)
}

fn now_ms() -> UnixMs {
    // Before 1970 every lease is over, which is safe.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn fault(error: &LaunchError) -> Fault {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    let (code, hint) = match error {
        LaunchError::NotHeld { .. } => (Code::LayerUnavailable, "run `ringfence doctor` on the server"),
        LaunchError::Source { .. } => (Code::TemplateUnavailable, "import the template again"),
        LaunchError::Died => (Code::PlaceExhausted, "ask for more memory or tasks, or try again"),
        _ => (Code::ServerBusy, "try again; if it goes on, run `ringfence doctor` on the server"),
    };
    Fault::new(code, message, hint)
}

fn too_many_wait() -> Fault {
    Fault::new(Code::ServerBusy, "too many orders wait for this sandbox", "wait for one of them")
}

fn no_sandbox() -> Fault {
    Fault::not_found("sandbox")
}

impl Keeper {
    fn token(&mut self, source: Source) -> u64 {
        let token = self.next;
        self.next += 1;
        self.sources.insert(token, source);
        token
    }

    /// Waits and acts until told to stop.
    fn turn(&mut self) -> Result<(), WardenError> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        loop {
            let wait = self.until_next();
            let count = match epoll::wait(&self.epoll, &mut events[..], wait.as_ref()) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(WardenError::step("wait for events")(errno)),
            };
            for event in &events[..count] {
                let token = event.data.u64();
                match self.sources.get(&token).copied() {
                    Some(Source::Signal) => return Ok(()),
                    Some(Source::Listener) => self.accept(),
                    Some(Source::Connection(id)) => self.hear(id),
                    Some(Source::Starting(id)) => self.advance(id, token),
                    Some(Source::Live(id)) => self.ended(id, token),
                    Some(Source::Freezing(id)) => self.look_at_freezing(id),
                    Some(Source::Saving(id)) => self.advance_saving(id),
                    Some(Source::Keeping(id)) => self.kept(id, token),
                    Some(Source::Removing) => self.removed(token),
                    Some(Source::Helper(id)) => self.helper_ended(id, token),
                    Some(Source::Unpacking(id)) => self.unpacked(id, token),
                    Some(Source::Blank) => self.blank_ended(token),
                    Some(Source::Locks) => self.locks_counted(token),
                    None => {}
                }
            }
            self.act_on_time();
            self.act_on_saving();
            self.refill();
            if !self.starting.is_empty() {
                self.launcher.prepare();
            }
        }
    }

    /// Until something is due without an event.
    fn until_next(&self) -> Option<Timespec> {
        let lease = self.leases.first().map(|(at, _)| Duration::from_millis(at.saturating_sub(now_ms())));
        let start = self.starting.values().map(|s| START_TIME.saturating_sub(s.starting.begun().elapsed())).min();
        let again = self.dying.values().any(|dying| dying.ending.ended().is_none()).then_some(AGAIN);
        let behind = self.connections.values().any(Connection::behind).then_some(AGAIN);
        let refill = (self.wants_refill() && self.starting.is_empty())
            .then(|| self.quiet().saturating_sub(self.asked.elapsed()));
        let freezing = (!self.freezing.is_empty()).then_some(AGAIN);
        let weigh = (self.live.len() > self.pool.len()).then(|| self.weights.due().min(self.locks.due()));
        let failed = self.dying.values().filter(|dying| dying.failed.is_some());
        let failed = failed.map(|dying| FAILED_TIME.saturating_sub(dying.since.elapsed())).min();
        let all = [lease, start, again, behind, refill, freezing, weigh, failed];
        let work =
            [self.until_kept(), self.until_waited(), self.until_removed(), self.until_unpacked(), self.until_blank()];
        let wait = all.into_iter().chain(work).flatten().min()?;
        // Rounded up, so that a lease is over when it is looked at.
        Timespec::try_from(wait + Duration::from_millis(1)).ok()
    }

    fn act_on_time(&mut self) {
        let claimed = self.live.iter().filter(|(_, live)| live.lease_until > 0);
        self.weights.look(&self.launcher.host().hierarchies, claimed.map(|(id, live)| (*id, &live.sandbox)));
        self.count_locks();
        let now = now_ms();
        while let Some((at, id)) = self.leases.first().copied() {
            if at > now {
                break;
            }
            self.lease_over(id);
        }
        for id in self.freezing.clone() {
            self.look_at_freezing(id);
        }
        let late: Vec<SandboxId> = self
            .starting
            .iter()
            .filter(|(_, s)| s.starting.begun().elapsed() > START_TIME)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.failed(id, &Fault::new(Code::TimedOut, "the sandbox did not start in 20 s", "try again"));
        }
        let ended: Vec<SandboxId> =
            self.dying.iter().filter(|(_, d)| d.ending.ended().is_none()).map(|(id, _)| *id).collect();
        for id in ended {
            self.finish(id);
        }
        self.tell_failed();
        self.end_slow_unpacking();
        self.end_slow_blanks();
        let behind: Vec<u64> = self.connections.iter().filter(|(_, c)| c.behind()).map(|(id, _)| *id).collect();
        for id in behind {
            if self.connections.get_mut(&id).is_some_and(|connection| connection.flush().is_err()) {
                self.close(id);
            }
        }
    }

    // Connections.

    fn accept(&mut self) {
        // A server has one connection, and the next server one more.
        const CONNECTIONS_MAX: usize = 8;
        let Ok(Some(connection)) = Connection::accept(&self.listener, self.config.server_uid) else { return };
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let id = self.next;
        let token = self.token(Source::Connection(id));
        if watch(&self.epoll, connection.fd(), token).is_ok() {
            self.connections.insert(id, connection);
        }
    }

    fn close(&mut self, id: u64) {
        self.connections.remove(&id);
        self.sources.retain(|_, source| !matches!(source, Source::Connection(c) if *c == id));
        if self.server == Some(id) {
            self.server = None;
        }
    }

    fn hear(&mut self, id: u64) {
        // A few at a time, so that one busy server does not keep the loop from the rest.
        for _ in 0..32 {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            match connection.receive() {
                Ok(Some((request, fds))) => self.order(id, request, fds),
                Ok(None) => return,
                Err(_) => return self.close(id),
            }
        }
    }

    fn answer(&mut self, (connection, tag): Asker, result: Result<Reply, Fault>) {
        self.answer_with(connection, tag, result, None);
    }

    fn answer_with(&mut self, id: u64, tag: u64, result: Result<Reply, Fault>, fd: Option<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.answer(tag, result, fd).is_err()
        {
            self.close(id);
        }
    }

    fn news(&mut self, reply: Reply) {
        if let Some(server) = self.server {
            self.answer_with(server, 0, Ok(reply), None);
        }
    }

    fn order(&mut self, connection: u64, Request { tag, order }: Request, fds: Vec<OwnedFd>) {
        let asker = (connection, tag);
        if let Order::Hello { version } = order {
            let result = self.hello(connection, version);
            return self.answer(asker, result);
        }
        if self.server != Some(connection) {
            let hint = "say Hello first; another server may have taken over";
            return self.answer(asker, Err(Fault::new(Code::Forbidden, "this connection gives no orders", hint)));
        }
        match order {
            Order::Hello { .. } => {}
            Order::Create { spec, from: None, id: None } => self.create(asker, spec),
            Order::Create { spec, from, id } => {
                self.asked = Instant::now();
                match self.can_pause(&spec) {
                    Ok(()) => self.create_from(asker, spec, from, id),
                    Err(fault) => self.answer(asker, Err(fault)),
                }
            }
            Order::Pause { id } => self.pause(asker, id),
            Order::Resume { id, lease_until } => {
                let result = self.resume(id, lease_until);
                self.answer(asker, result);
            }
            Order::Snapshot { id, snapshot } => self.save(asker, id, snapshot),
            Order::RemoveSnapshot { snapshot } => {
                let result = self.remove_snapshot(snapshot);
                self.answer(asker, result);
            }
            Order::Snapshots { after } => {
                let reply = self.list_snapshots(after);
                self.answer(asker, Ok(reply));
            }
            Order::Destroy { id } => {
                self.asked = Instant::now();
                if self.live.get(&id).is_some_and(|live| live.lease_until > 0) || self.dying.contains_key(&id) {
                    self.destroy(id, Some(asker));
                } else {
                    self.answer(asker, Err(no_sandbox()));
                }
            }
            Order::Adopt {} => self.adopt(asker),
            Order::SetLease { id, lease_until } => {
                let result = self.set_lease(id, lease_until);
                self.answer(asker, result);
            }
            Order::SetLimits { id, limits } => {
                let result = self.set_limits(id, &limits);
                self.answer(asker, result);
            }
            Order::Usage { id } => {
                let result = self.claimed(id).map(|live| Reply::Used(live.sandbox.usage()));
                self.answer(asker, result);
            }
            Order::UnpackLayer { diff_id } => self.unpack(asker, &diff_id, fds),
            Order::SetTemplate { name, layers } => {
                let before = self.templates.set(&name, &layers);
                let result = before.map(|before| self.drop_unused(&before)).map(|()| Reply::Done {});
                self.answer(asker, result);
            }
            Order::RemoveTemplate { name } => {
                let before = self.templates.remove(&name);
                let result = before.map(|before| self.drop_unused(&before)).map(|()| Reply::Done {});
                self.answer(asker, result);
            }
            Order::Templates {} => {
                let result = Ok(Reply::Templates(self.templates.list()));
                self.answer(asker, result);
            }
            Order::Status {} => {
                let status = self.status();
                self.answer(asker, Ok(Reply::Status(Box::new(status))));
            }
        }
    }

    fn hello(&mut self, connection: u64, version: u32) -> Result<Reply, Fault> {
        if version != VERSION {
            let message = format!("the warden speaks version {VERSION}, the server {version}");
            return Err(Fault::new(Code::Unsupported, message, "start both from the same binary"));
        }
        if let Some(old) = self.server.replace(connection)
            && old != connection
        {
            self.close(old);
            self.server = Some(connection);
        }
        Ok(Reply::Done {})
    }

    fn status(&self) -> Status {
        let host = self.launcher.host();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Status {
            mode: if host.rooted { "rooted" } else { "rootless" }.to_owned(),
            sandboxes: count(self.live.len() - self.pool.len()),
            pooled: count(self.pool.len()),
            layers: host.statuses(),
            kernel: host.kernel.clone(),
        }
    }

    fn claimed(&self, id: SandboxId) -> Result<&Live, Fault> {
        self.live.get(&id).filter(|live| live.lease_until > 0).ok_or_else(no_sandbox)
    }

    // Making.

    fn create(&mut self, asker: Asker, spec: SandboxSpec) {
        self.asked = Instant::now();
        if let Err(fault) = self.can_pause(&spec) {
            return self.answer(asker, Err(fault));
        }
        for id in self.pool.asked(&spec) {
            self.destroy(id, None);
        }
        if let Some(id) = self.take_prepared(&spec) {
            return self.claim(id, spec, asker, true);
        }
        if let Err(fault) = self.begin(spec, Some(asker)) {
            self.answer(asker, Err(fault));
        }
    }

    /// A prepared sandbox that is what `spec` wants but for limits that can still be set.
    fn take_prepared(&mut self, spec: &SandboxSpec) -> Option<SandboxId> {
        if spec.validate().is_err() {
            return None;
        }
        while let Some(id) = self.pool.take(spec) {
            let usable = match self.live.get_mut(&id) {
                Some(live) if spec.limits == live.spec.limits => true,
                Some(live) => live.sandbox.limit(&spec.limits).is_ok(),
                None => false,
            };
            if usable {
                return Some(id);
            }
            self.destroy(id, None);
        }
        None
    }

    fn begin(&mut self, spec: SandboxSpec, asker: Option<Asker>) -> Result<(), Fault> {
        self.begin_as(spec, asker, None, None)
    }

    /// Begins a launch, of a sandbox with the files of a snapshot, or with an id that was there before.
    fn begin_as(
        &mut self,
        spec: SandboxSpec,
        asker: Option<Asker>,
        from: Option<SnapshotId>,
        id: Option<SandboxId>,
    ) -> Result<(), Fault> {
        let id = id.unwrap_or_else(SandboxId::random);
        self.is_free(id)?;
        if self.starting.len() >= STARTING_MAX {
            return Err(Fault::new(Code::ServerBusy, "too many sandboxes are starting", "try again shortly"));
        }
        let (source, layers) = self.source(&spec, from)?;
        let host = self.launcher.host();
        let full = || Fault::new(Code::ServerBusy, "this server holds as many sandboxes as it may", "try again later");
        let ids = if host.rooted {
            Ids::Range { base: *self.ranges.front().ok_or_else(full)? }
        } else {
            if self.starting.len() + self.live.len() + self.dying.len() >= self.config.sandboxes_max as usize {
                return Err(full());
            }
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            Ids::One { uid: uid.as_raw(), gid: gid.as_raw() }
        };
        let plan = Plan::new(id, &spec, host, source, ids).map_err(|error| match error {
            PlanError::LayerUnavailable { layer, ref cure, .. } => {
                let hint = if ALWAYS.contains(&layer) {
                    cure.clone()
                } else {
                    format!("{cure}; or accept a weaker sandbox by name, with `accept_missing`: `{layer}`")
                };
                Fault::new(Code::LayerUnavailable, error.to_string(), hint)
            }
            other => Fault::invalid(other.to_string()),
        })?;
        if let Some(size) = self.lacks_blank(&plan) {
            return self.wait_for_blank(size, spec, asker, from, Some(id));
        }
        let starting = self.launcher.begin(plan).map_err(|error| fault(&error))?;
        if host.rooted {
            self.ranges.pop_front();
        }
        let token = self.token(Source::Starting(id));
        let watched = starting.watched().into_iter().try_for_each(|fd| watch_changes(&self.epoll, fd, token));
        self.starting.insert(id, Start { starting, spec, asker, layers });
        if watched.is_err() {
            self.failed(id, &Fault::new(Code::ServerBusy, "the warden has no descriptors left", "try again later"));
        }
        Ok(())
    }

    fn advance(&mut self, id: SandboxId, token: u64) {
        let Some(start) = self.starting.get_mut(&id) else { return };
        match start.starting.advance(&self.launcher) {
            Ok(None) => {}
            Ok(Some(confirmed)) => {
                self.sources.remove(&token);
                let Some(Start { starting, spec, asker, layers }) = self.starting.remove(&id) else { return };
                let sandbox = starting.into_sandbox(confirmed);
                // Only its end is of interest from here: init tells the warden nothing more.
                let _ = epoll::delete(&self.epoll, sandbox.warden_socket());
                let token = self.token(Source::Live(id));
                if let Some(ended) = sandbox.ended() {
                    // Without the watch its end is still seen, by the lease.
                    let _ = watch_changes(&self.epoll, ended, token);
                }
                let rest = Rest::default();
                self.live.insert(id, Live { sandbox, spec: spec.clone(), lease_until: 0, rest, layers });
                match asker {
                    Some(asker) => self.claim(id, spec, asker, false),
                    None if self.pool.add(id, &spec) => {}
                    None => self.destroy(id, None),
                }
            }
            Err(error) => {
                let fault = fault(&error);
                self.failed(id, &fault);
            }
        }
    }

    /// Gives a live sandbox to who asked.
    fn claim(&mut self, id: SandboxId, spec: SandboxSpec, (connection, tag): Asker, pooled: bool) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let lease_until = now_ms() + spec.lease_ms;
        live.lease_until = lease_until;
        live.spec = spec;
        let enforcement = live.sandbox.enforcement().clone();
        let socket = live.sandbox.take_server_socket();
        self.leases.insert((lease_until, id));
        if self.server != Some(connection) {
            // Nobody is left who would know of it.
            return self.destroy(id, None);
        }
        self.answer_with(connection, tag, Ok(Reply::Created { id, lease_until, pooled, enforcement }), socket);
    }

    fn wants_refill(&self) -> bool {
        self.pool.wants().is_some() && !self.blanks.is_preparing()
    }

    /// How long nothing must have been asked for before the next one is prepared.
    fn quiet(&self) -> Duration {
        if self.pool.short() { QUIET_SHORT } else { QUIET }
    }

    /// Prepares the next sandbox when nothing more urgent is under way: one at a time.
    fn refill(&mut self) {
        if self.starting.is_empty()
            && !self.blanks.is_preparing()
            && self.asked.elapsed() >= self.quiet()
            && let Some(spec) = self.pool.wants().cloned()
            && self.begin(spec.clone(), None).is_err()
        {
            self.pool.give_up(&spec);
        }
    }

    // Keeping.

    fn adopt(&mut self, asker: Asker) {
        let ids: Vec<SandboxId> =
            self.live.iter().filter(|(_, live)| live.lease_until > 0).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(live) = self.live.get_mut(&id) else { continue };
            match live.rest.server_socket(&live.sandbox) {
                Ok(socket) => {
                    let reply = Reply::Adopted {
                        id,
                        spec: live.spec.clone(),
                        lease_until: live.lease_until,
                        enforcement: live.sandbox.enforcement().clone(),
                        paused: live.rest.paused(),
                    };
                    self.answer_with(asker.0, asker.1, Ok(reply), Some(socket));
                }
                // An init that takes no message is of no use to anybody.
                Err(_) => self.destroy(id, None),
            }
        }
        self.answer(asker, Ok(Reply::Done {}));
    }

    fn set_lease(&mut self, id: SandboxId, lease_until: UnixMs) -> Result<Reply, Fault> {
        let live = self.live.get_mut(&id).filter(|live| live.lease_until > 0).ok_or_else(no_sandbox)?;
        let most = now_ms() + 30 * 86_400_000;
        if lease_until == 0 || lease_until > most {
            return Err(Fault::invalid("a lease ends within 30 days"));
        }
        if live.rest.paused().is_some() {
            return Err(Fault::new(Code::Conflict, "a paused sandbox's lease does not run", "resume it with a lease"));
        }
        self.leases.remove(&(live.lease_until, id));
        live.lease_until = lease_until;
        self.leases.insert((lease_until, id));
        Ok(Reply::Done {})
    }

    fn set_limits(&mut self, id: SandboxId, limits: &rf_types::Limits) -> Result<Reply, Fault> {
        let live = self.live.get_mut(&id).filter(|live| live.lease_until > 0).ok_or_else(no_sandbox)?;
        let spec = SandboxSpec { limits: *limits, ..live.spec.clone() };
        spec.validate().map_err(|error| Fault::invalid(error.to_string()))?;
        let now = live.spec.limits;
        if (limits.disk_bytes_max, limits.inodes_max) != (now.disk_bytes_max, now.inodes_max) {
            let hint = "make a new sandbox with the larger disk and copy the files";
            return Err(Fault::new(Code::Unsupported, "the disk's quota is set when a sandbox is made", hint));
        }
        live.sandbox.limit(limits).map_err(|error| fault(&error))?;
        live.spec = spec;
        Ok(Reply::Done {})
    }
}
