//! How sandboxes end, and launches that will not be; and the warden itself.

use std::{fs, time::Instant};

use rf_sandbox::plan::Ids;
use rf_types::{Fault, SandboxId};
use rf_wire::warden::{GoneWhy, Reply};

use super::{
    AGAIN, ASKERS_MAX, Asker, Dying, FAILED_TIME, Keeper, START_TIME, Source, Start, too_many_wait, watch_changes,
};

impl Keeper {
    /// A launch that will not be: everything of it goes.
    pub(super) fn failed(&mut self, id: SandboxId, fault: &Fault) {
        self.sources.retain(|_, source| !matches!(source, Source::Starting(s) if *s == id));
        let Some(Start { starting, spec, asker, .. }) = self.starting.remove(&id) else { return };
        let ending = starting.end();
        if let Some(ended) = ending.ended() {
            let token = self.token(Source::Live(id));
            // Without the watch it is taken with the next event.
            let _ = watch_changes(&self.epoll, ended, token);
        }
        if asker.is_none() {
            self.pool.give_up(&spec);
        }
        self.dying.insert(id, Dying::new(ending, asker.map(|asker| (asker, fault.clone()))));
        self.finish(id);
    }

    /// Tells those whose launches failed and have not ended for too long.
    pub(super) fn tell_failed(&mut self) {
        let late = self.dying.values_mut().filter(|dying| dying.since.elapsed() >= FAILED_TIME);
        let late: Vec<_> = late.filter_map(|dying| dying.failed.take()).collect();
        for (asker, fault) in late {
            self.answer(asker, Err(fault));
        }
    }

    /// A sandbox's process 1 has ended, told to or not.
    pub(super) fn ended(&mut self, id: SandboxId, token: u64) {
        if self.live.contains_key(&id) {
            let claimed = self.live.get(&id).is_some_and(|live| live.lease_until > 0);
            self.destroy(id, None);
            if claimed {
                self.news(Reply::Gone { id, why: GoneWhy::InitDied });
            }
        }
        self.finish(id);
        // One that somebody traces is theirs to take first, and is told of once more when it is ours (ptrace(2)).
        if self.dying.get(&id).is_none_or(|dying| dying.ending.ended().is_none()) {
            self.sources.remove(&token);
        }
    }

    pub(super) fn destroy(&mut self, id: SandboxId, asker: Option<Asker>) {
        if let Some(live) = self.live.remove(&id) {
            self.leases.remove(&(live.lease_until, id));
            self.pool.forget(id);
            self.count_orphan(id, &live);
            let ending = live.sandbox.end();
            self.freezing.remove(&id);
            self.abandon(live.rest);
            self.dying.insert(id, Dying::new(ending, None));
        }
        let Some(dying) = self.dying.get_mut(&id) else { return };
        match asker {
            Some(asker) if dying.askers.len() >= ASKERS_MAX => self.answer(asker, Err(too_many_wait())),
            asker => dying.askers.extend(asker),
        }
    }

    pub(super) fn finish(&mut self, id: SandboxId) {
        let Some(dying) = self.dying.get_mut(&id) else { return };
        if !dying.ending.try_finish() {
            return;
        }
        let Some(Dying { ending, askers, failed, .. }) = self.dying.remove(&id) else { return };
        if let Ids::Range { base } = ending.ids() {
            self.ranges.push_back(base);
        }
        // Its descriptors are closed before anybody hears that it is gone.
        drop(ending);
        for asker in askers {
            self.answer(asker, Ok(Reply::Done {}));
        }
        if let Some((asker, fault)) = failed {
            self.answer(asker, Err(fault));
        }
        self.drop_left_over();
        self.collect();
    }

    /// Destroys everything, and waits for it.
    pub(super) fn stop(&mut self) {
        let ids: Vec<SandboxId> = self.live.keys().copied().collect();
        for id in ids {
            self.destroy(id, None);
        }
        for (id, start) in std::mem::take(&mut self.starting) {
            self.dying.insert(id, Dying::new(start.starting.end(), None));
        }
        self.unpacking.clear();
        self.stop_blanks();
        self.save_what_waits();
        self.stop_saving();
        drop(self.stop_removing());
        let begun = Instant::now();
        while !self.dying.is_empty() && begun.elapsed() < START_TIME {
            let ids: Vec<SandboxId> = self.dying.keys().copied().collect();
            for id in ids {
                self.finish(id);
            }
            if !self.dying.is_empty() {
                std::thread::sleep(AGAIN);
            }
        }
        self.launcher.host().hierarchies.remove_base();
        // The next warden makes it anew.
        let _ = fs::remove_file(self.config.socket());
    }
}
