//! Counting locks on files, while sandboxes compute.

use rf_types::SandboxId;
use rustix::io::Errno;

use super::{Keeper, Source, watch};

impl Keeper {
    /// Has those of the sandboxes that run counted, if it is time.
    pub(super) fn count_locks(&mut self) {
        let runs = self.live.values().filter(|live| live.lease_until > 0 && live.rest.paused().is_none());
        let inits = runs.filter_map(|live| live.sandbox.init());
        match self.locks.look(&self.launcher, &self.launcher.host().hierarchies, inits) {
            Ok(false) => {}
            // Without the watch it is never heard, and another is started when it has taken too long.
            Ok(true) => drop(self.hear_of_locks()),
            Err(error) => eprintln!("locks on files are not counted: {error}"),
        }
    }

    /// Waits for what the process that counts has to say.
    pub(super) fn hear_of_locks(&mut self) -> Result<(), Errno> {
        self.sources.retain(|_, source| !matches!(source, Source::Locks));
        let token = self.token(Source::Locks);
        match self.locks.watch() {
            Some(counting) => watch(&self.epoll, counting.watched(), token),
            None => Ok(()),
        }
    }

    /// The process that counts has answered, or ended.
    pub(super) fn locks_counted(&mut self, token: u64) {
        let greedy = self.locks.said().unwrap_or_else(|error| {
            self.sources.remove(&token);
            eprintln!("the process that counts locks on files has ended ({error}); there will be another");
            Vec::new()
        });
        let is_greedy = |init| greedy.contains(&init);
        let found =
            self.live.iter().filter(|(_, live)| live.lease_until > 0 && live.sandbox.init().is_some_and(is_greedy));
        let found: Vec<SandboxId> = found.map(|(id, _)| *id).collect();
        for id in found {
            if let Some(live) = self.live.get(&id) {
                self.locks.punish(id, &live.sandbox);
            }
        }
    }
}
