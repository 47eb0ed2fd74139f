//! Pausing: the processes of a sandbox are frozen, for as long as it is paused or its files are being saved.
//!
//! ```text
//!            Pause, the lease's end, Snapshot            the kernel says so
//!  thawed ────────────────────────────────▶ freezing ──────────────────────▶ frozen
//!    ▲                                          │ not within FREEZE_TIME        │
//!    └──────────────────────────────────────────┴──── Resume, the files are saved
//! ```
//!
//! Process 1 is frozen with the rest. Orders of the server wait in its socket until it is thawed; a new server gets a
//! socket whose other end init gets then. Before it runs again it finds word of how long it was frozen, and puts the
//! deadlines of execs off by as much: time in which nothing ran does not count. The clocks inside do go on. A lease does
//! not run while its sandbox is paused. Killing works on what is frozen, so destroying does not wait for anything.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rf_sandbox::launch::{LaunchError, Sandbox};
use rf_types::{Code, Fault, OnLeaseEnd, SandboxId, SandboxSpec, units::UnixMs};
use rf_wire::warden::{GoneWhy, Paused, PausedWhy, Reply};
use rustix::event::epoll;

use super::{ASKERS_MAX, Asker, Keeper, Source, fault, no_sandbox, now_ms, saving::Saving, too_many_wait};

/// How long the kernel may take to freeze a sandbox. Chosen: it takes well below a millisecond unless a process waits
/// for a device.
const FREEZE_TIME: Duration = Duration::from_secs(5);
/// Shortest lease of a sandbox that is resumed, milliseconds: so that it is not paused again before anybody can use it.
const LEASE_MS_MIN: u64 = 1_000;
/// Longest lease from now, milliseconds: as of a spec.
const LEASE_MS_MAX: u64 = 30 * 86_400_000;

/// Whether the processes of a sandbox run, and who does not want them to.
#[derive(Debug, Default)]
pub(super) struct Rest {
    paused: Option<Paused>,
    /// What was left of the lease when it was paused.
    left_ms: u64,
    /// Who waits to hear that it is paused.
    askers: Vec<Asker>,
    ice: Ice,
    /// Init's end of the socket of a server that came while init was frozen.
    socket: Option<OwnedFd>,
    /// A snapshot under way.
    pub(super) saving: Option<Saving>,
    /// The root became another while it was frozen.
    pub(super) new_root: bool,
}

#[derive(Debug, Default)]
enum Ice {
    #[default]
    Thawed,
    Freezing {
        begun: Instant,
        /// The kernel's news and their token, where it has any.
        events: Option<(OwnedFd, u64)>,
    },
    Frozen {
        since: Instant,
    },
}

impl Rest {
    /// Whether, since when and why it is paused.
    pub(super) const fn paused(&self) -> Option<Paused> {
        self.paused
    }

    /// Whether something still wants it frozen.
    const fn is_wanted(&self) -> bool {
        self.paused.is_some() || self.saving.is_some()
    }

    /// A new socket to init for a server that takes over.
    pub(super) fn server_socket(&mut self, sandbox: &Sandbox) -> Result<OwnedFd, LaunchError> {
        if matches!(self.ice, Ice::Thawed) {
            return sandbox.renew_server_socket();
        }
        // Told each time, a frozen init's queue would fill up: it hears of the last server alone.
        let (ours, inits) = sandbox.socket_for_later()?;
        self.socket = Some(inits);
        Ok(ours)
    }
}

fn cannot_freeze() -> Fault {
    let message = "this host cannot pause sandboxes: the warden may use neither a version 2 tree of control groups nor \
        the freezer of version 1";
    Fault::new(Code::Unsupported, message, "run the warden as root, or as a service with `Delegate=yes`")
}

impl Keeper {
    /// Whether the lease of such a sandbox can end as its spec says.
    pub(super) fn can_pause(&self, spec: &SandboxSpec) -> Result<(), Fault> {
        match spec.on_lease_end {
            OnLeaseEnd::Destroy => Ok(()),
            OnLeaseEnd::Pause if self.launcher.host().hierarchies.can_freeze() => Ok(()),
            OnLeaseEnd::Pause => Err(cannot_freeze()),
        }
    }

    /// Pauses; answers when it is.
    pub(super) fn pause(&mut self, asker: Asker, id: SandboxId) {
        match self.live.get_mut(&id).filter(|live| live.lease_until > 0) {
            None => return self.answer(asker, Err(no_sandbox())),
            Some(live) if live.rest.askers.len() >= ASKERS_MAX => return self.answer(asker, Err(too_many_wait())),
            Some(live) => live.rest.askers.push(asker),
        }
        self.begin_pause(id, PausedWhy::Asked);
    }

    /// A lease has ended.
    pub(super) fn lease_over(&mut self, id: SandboxId) {
        match self.live.get(&id).map(|live| live.spec.on_lease_end) {
            Some(OnLeaseEnd::Pause) => self.begin_pause(id, PausedWhy::Lease),
            None => self.leases.retain(|(_, of)| *of != id),
            Some(OnLeaseEnd::Destroy) => {
                self.destroy(id, None);
                self.news(Reply::Gone { id, why: GoneWhy::Lease });
            }
        }
    }

    fn begin_pause(&mut self, id: SandboxId, why: PausedWhy) {
        let Some(live) = self.live.get_mut(&id) else { return };
        if live.rest.paused.is_none() {
            let since = now_ms();
            live.rest.left_ms = live.lease_until.saturating_sub(since);
            live.rest.paused = Some(Paused { since, why });
            self.leases.remove(&(live.lease_until, id));
        }
        self.freeze(id);
    }

    /// Sees to it that a sandbox is frozen; [`Self::frozen`] comes next, or [`Self::not_frozen`].
    pub(super) fn freeze(&mut self, id: SandboxId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        match live.rest.ice {
            Ice::Thawed => {}
            Ice::Freezing { .. } => return,
            Ice::Frozen { .. } => return self.frozen(id),
        }
        let Some(freezer) = live.sandbox.freezer() else { return self.not_frozen(id, &cannot_freeze()) };
        let begun = freezer.freeze().and_then(|()| freezer.events());
        let events = match begun {
            Ok(events) => events.map(|events| (events, self.token(Source::Freezing(id)))),
            Err(error) => return self.not_frozen(id, &fault(&error.into())),
        };
        if let Some((events, token)) = &events {
            let flags = epoll::EventFlags::PRI | epoll::EventFlags::ET;
            // Without the watch it is looked at by time.
            let _ = epoll::add(&self.epoll, events, epoll::EventData::new_u64(*token), flags);
        }
        if let Some(live) = self.live.get_mut(&id) {
            live.rest.ice = Ice::Freezing { begun: Instant::now(), events };
            self.freezing.insert(id);
        }
        self.look_at_freezing(id);
    }

    /// Asks the kernel whether a sandbox is frozen by now.
    pub(super) fn look_at_freezing(&mut self, id: SandboxId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Ice::Freezing { begun, events } = &mut live.rest.ice else { return };
        let is_frozen = live.sandbox.freezer().map_or(Ok(false), |freezer| {
            // The freezer of version 1 tries again only when it is told to.
            if events.is_none() { freezer.freeze().and_then(|()| freezer.is_frozen()) } else { freezer.is_frozen() }
        });
        match is_frozen {
            Ok(false) if begun.elapsed() < FREEZE_TIME => {}
            Ok(false) => {
                let message = "the kernel does not get the sandbox frozen: a process of it waits for a device";
                self.not_frozen(id, &Fault::new(Code::TimedOut, message, "try again"));
            }
            Err(error) => self.not_frozen(id, &fault(&error.into())),
            Ok(true) => {
                let watched = events.take();
                live.rest.ice = Ice::Frozen { since: Instant::now() };
                self.freezing.remove(&id);
                if let Some((_, token)) = watched {
                    self.sources.remove(&token);
                }
                self.frozen(id);
            }
        }
    }

    /// Every process of a sandbox is frozen.
    fn frozen(&mut self, id: SandboxId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let told = std::mem::take(&mut live.rest.askers);
        let by_lease = live.rest.paused.is_some_and(|paused| paused.why == PausedWhy::Lease);
        if by_lease && told.is_empty() {
            self.news(Reply::Paused { id, why: PausedWhy::Lease });
        }
        for asker in told {
            self.answer(asker, Ok(Reply::Done {}));
        }
        self.save_frozen(id);
    }

    /// A sandbox could not be frozen: it runs on, unless its lease is over.
    fn not_frozen(&mut self, id: SandboxId, why: &Fault) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let asked = std::mem::take(&mut live.rest.askers);
        let paused = live.rest.paused.take();
        if live.rest.saving.is_some() {
            self.saved(id, Err(why.clone()));
        }
        let Some(live) = self.live.get_mut(&id) else { return };
        if paused.is_some_and(|paused| paused.why == PausedWhy::Lease) {
            // Past its lease nothing runs.
            self.destroy(id, None);
            self.news(Reply::Gone { id, why: GoneWhy::Lease });
        } else {
            if paused.is_some() {
                self.leases.insert((live.lease_until, id));
            }
            self.thaw(id);
        }
        for asker in asked {
            self.answer(asker, Err(why.clone()));
        }
    }

    pub(super) fn resume(&mut self, id: SandboxId, lease_until: Option<UnixMs>) -> Result<Reply, Fault> {
        let live = self.live.get_mut(&id).filter(|live| live.lease_until > 0).ok_or_else(no_sandbox)?;
        let now = now_ms();
        if lease_until.is_some_and(|until| until == 0 || until > now + LEASE_MS_MAX) {
            return Err(Fault::invalid("a lease ends within 30 days"));
        }
        let was_paused = live.rest.paused.take().is_some();
        let left = now + live.rest.left_ms.max(LEASE_MS_MIN);
        let lease_until = lease_until.unwrap_or(if was_paused { left } else { live.lease_until });
        self.leases.remove(&(live.lease_until, id));
        live.lease_until = lease_until;
        self.leases.insert((lease_until, id));
        let asked = std::mem::take(&mut live.rest.askers);
        for asker in asked {
            let fault = Fault::new(Code::Conflict, "the sandbox was resumed before it was paused", "pause it again");
            self.answer(asker, Err(fault));
        }
        self.thaw(id);
        // One whose init takes no word is gone now.
        self.claimed(id).map(|_| Reply::Resumed { lease_until })
    }

    /// Lets a sandbox run if nothing wants it frozen any more.
    pub(super) fn thaw(&mut self, id: SandboxId) {
        let Some(live) = self.live.get_mut(&id).filter(|live| !live.rest.is_wanted()) else { return };
        let (since, token) = match std::mem::take(&mut live.rest.ice) {
            Ice::Thawed => return,
            Ice::Freezing { begun, events } => (begun, events.map(|(_, token)| token)),
            Ice::Frozen { since } => (since, None),
        };
        let socket = live.rest.socket.take();
        self.freezing.remove(&id);
        let new_root = std::mem::take(&mut live.rest.new_root);
        let told = live.sandbox.tell_thawed(since.elapsed(), new_root, socket.as_ref().map(std::os::fd::AsFd::as_fd));
        let thawed = told.is_ok() && live.sandbox.freezer().is_some_and(|freezer| freezer.thaw().is_ok());
        if let Some(token) = token {
            self.sources.remove(&token);
        }
        if !thawed {
            // An init that takes no message is of no use to anybody.
            self.destroy(id, None);
            self.news(Reply::Gone { id, why: GoneWhy::InitDied });
        }
    }

    /// What becomes of those who wait when a sandbox ends.
    pub(super) fn abandon(&mut self, rest: Rest) {
        if let Ice::Freezing { events: Some((_, token)), .. } = rest.ice {
            self.sources.remove(&token);
        }
        for asker in rest.askers {
            self.answer(asker, Err(no_sandbox()));
        }
        if let Some(saving) = rest.saving {
            self.abandon_saving(saving);
        }
    }
}
