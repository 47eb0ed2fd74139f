//! Which sandboxes hold too many locks on parts of files, and what becomes of them.
//!
//! All processes of one that does are killed; one that does so again and again ends. See [`rf_sandbox::locks`].

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rf_sandbox::{
    cgroup::Hierarchies,
    launch::{LaunchError, Launcher, Sandbox},
    locks::{LOCKS_MAX, Watch},
};
use rf_types::SandboxId;
use rustix::process::Pid;

/// How often it is looked. Chosen: in this time a processor makes some 200,000 locks.
const PERIOD: Duration = Duration::from_millis(250);
/// What all sandboxes must have computed since the last look to be worth another. Chosen: less than [`LOCKS_MAX`] take.
const WORTH_US: u64 = 20_000;
/// Longest look; then there is another process. Chosen: a hundred times as long as one takes on a busy host.
const LOOK_TIME: Duration = Duration::from_secs(60);
/// How often the time to the next look doubles while looks fail: to 16 s.
const FAILURES_MAX: u32 = 6;
/// How long a sandbox's processes are killed whenever there are too many locks, before that counts as doing it again.
/// Chosen: what is killed takes time to give them back.
const DYING: Duration = Duration::from_secs(3);
/// How long it is remembered. Chosen.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The process that looks, and what it found lately.
#[derive(Debug)]
pub(crate) struct Locks {
    watch: Option<Watch>,
    /// Since when it has not answered.
    asked: Option<Instant>,
    looked: Instant,
    used_us: u64,
    /// How often it failed since it last did not.
    failures: u32,
    killed: HashMap<SandboxId, Instant>,
}

impl Locks {
    /// Starts the process.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) fn begin(launcher: &Launcher) -> Result<Self, LaunchError> {
        let watch = Some(Watch::begin(launcher)?);
        let (looked, killed) = (Instant::now(), HashMap::new());
        Ok(Self { watch, asked: None, looked, used_us: 0, failures: 0, killed })
    }

    /// Until it is time for the next look, or for an end of this one.
    pub(crate) fn due(&self) -> Duration {
        match self.asked {
            Some(asked) => LOOK_TIME.saturating_sub(asked.elapsed()),
            None => (PERIOD * (1 << self.failures.min(FAILURES_MAX))).saturating_sub(self.looked.elapsed()),
        }
    }

    /// Has it look, if it is time and the sandboxes have done anything; whether its process is another since.
    ///
    /// # Errors
    /// Why there is no process that looks, for the log; it is tried again the next time.
    pub(crate) fn look(
        &mut self,
        launcher: &Launcher,
        hierarchies: &Hierarchies,
        inits: impl Iterator<Item = Pid>,
    ) -> Result<bool, String> {
        if !self.due().is_zero() {
            return Ok(false);
        }
        self.looked = Instant::now();
        if self.asked.take().is_some() {
            self.failed();
            return Err(format!("they took longer than {} s", LOOK_TIME.as_secs()));
        }
        let used_us = hierarchies.cpu_used_us();
        if used_us.is_some_and(|used_us| used_us.saturating_sub(self.used_us) < WORTH_US) {
            return Ok(false);
        }
        let mut inits = inits.peekable();
        if inits.peek().is_none() {
            return Ok(false);
        }
        self.used_us = used_us.unwrap_or(0);
        let is_new = self.watch.is_none();
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => match Watch::begin(launcher) {
                Ok(watch) => none.insert(watch),
                Err(error) => {
                    self.failed();
                    return Err(error.to_string());
                }
            },
        };
        match watch.look(inits) {
            Ok(()) => self.asked = Some(self.looked),
            Err(errno) => {
                self.failed();
                return Err(errno.to_string());
            }
        }
        Ok(is_new)
    }

    fn failed(&mut self) {
        self.watch = None;
        self.failures = self.failures.saturating_add(1);
    }

    /// The process.
    pub(crate) const fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// It has answered: the first processes of those with too many.
    ///
    /// # Errors
    /// That it has ended, for the log.
    pub(crate) fn said(&mut self) -> Result<Vec<Pid>, String> {
        let Some(watch) = &self.watch else { return Ok(Vec::new()) };
        let said = watch.said();
        self.asked = None;
        match said {
            Ok(greedy) => {
                self.failures = 0;
                Ok(greedy)
            }
            Err(errno) => {
                self.failed();
                Err(errno.to_string())
            }
        }
    }

    /// Deals with a sandbox that has too many.
    pub(crate) fn punish(&mut self, id: SandboxId, sandbox: &Sandbox) {
        self.killed.retain(|_, since| since.elapsed() < REMEMBERED);
        let before = self.killed.get(&id).map(Instant::elapsed);
        if before.is_none_or(|before| before < DYING) && sandbox.kill_workload().is_ok() {
            if before.is_none() {
                eprintln!("sandbox {id} held more than {LOCKS_MAX} locks on files: its processes were killed");
                self.killed.insert(id, Instant::now());
            }
        } else {
            eprintln!("sandbox {id} holds more than {LOCKS_MAX} locks on files again: it was ended");
            sandbox.kill();
        }
    }
}
