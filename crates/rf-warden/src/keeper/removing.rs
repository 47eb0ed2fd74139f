//! Removing directories, one at a time, by a process without rights.

use rf_sandbox::{keep::Keeping, push::Helper};

use super::{Keeper, Source, watch};
use crate::gone::Dir;

/// A removal under way.
#[derive(Debug)]
pub(super) struct Removing {
    keeping: Keeping,
    dir: Dir,
}

impl Keeper {
    /// Lets go of those of a template's layers that nobody stands on.
    pub(super) fn drop_unused(&mut self, layers: &[String]) {
        let live = self.live.values().map(|live| live.sandbox.plan());
        let plans = live.chain(self.starting.values().map(|start| start.starting.plan()));
        let is_held = |id: &str| self.snapshots.has_template_layer(id);
        self.templates.drop_unused(layers, plans.map(|plan| &plan.source), is_held);
    }

    /// As [`Self::drop_unused`], for layers that a sandbox stood on when their template was removed: one has ended.
    pub(super) fn drop_left_over(&mut self) {
        let left = self.templates.take_left();
        if !left.is_empty() {
            self.drop_unused(&left);
        }
    }

    /// Begins to remove the next directory, if none is being removed.
    pub(super) fn remove_on(&mut self) {
        self.gone.extend(self.snapshots.take_gone());
        self.gone.extend(self.templates.take_gone());
        while self.removing.is_none() {
            let Some(dir) = self.gone.next() else { return };
            if !dir.path.exists() {
                continue;
            }
            let Ok(keeping) = Keeping::empty(&self.launcher, &dir.path) else {
                self.gone.failed(dir);
                continue;
            };
            let token = self.token(Source::Removing);
            if watch(&self.epoll, keeping.watched(), token).is_ok() {
                self.removing = Some(Removing { keeping, dir });
            } else {
                self.sources.remove(&token);
                self.leave(keeping.cut_off());
                self.gone.failed(dir);
            }
        }
    }

    /// The process that empties a directory has spoken.
    pub(super) fn removed(&mut self, token: u64) {
        self.sources.remove(&token);
        let Some(Removing { keeping, dir }) = self.removing.take() else { return };
        let emptied = keeping.advance();
        if emptied.is_err() || std::fs::remove_dir(&dir.path).is_err() {
            self.gone.failed(dir);
        }
        self.leave(keeping.into_helper());
        self.remove_on();
    }

    /// Cuts it off, for the end of the warden; what is left is found at the next start.
    pub(super) fn stop_removing(&mut self) -> Option<Helper> {
        self.removing.take().map(|removing| removing.keeping.cut_off())
    }

    /// Until a directory is to be removed.
    pub(super) fn until_removed(&self) -> Option<std::time::Duration> {
        self.gone.until_due().filter(|_| self.removing.is_none())
    }
}
