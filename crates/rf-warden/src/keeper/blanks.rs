//! Blank images of disks, made by mkfs.ext4 when somebody first wants one of a size: launches wait for it, and nobody else
//! does. Who wants the same size waits for the same one.

use std::time::{Duration, Instant};

use rf_sandbox::{
    disk::{Blank, Size},
    plan::Plan,
};
use rf_types::{Code, DiskKind, Fault, SandboxId, SandboxSpec, SnapshotId};

use super::{Asker, Keeper, Source, fault, watch};

/// Most that are made at once. Chosen: more would only share the disk.
const MAKING_MAX: usize = 2;
/// Most launches that wait. Chosen: as many as may be under way.
const WAITING_MAX: usize = super::STARTING_MAX;
/// Longest time that one is made for. Chosen: as long as a launch may take.
const MAKING_TIME: Duration = super::START_TIME;

/// A launch that waits.
#[derive(Debug)]
struct Waiting {
    size: Size,
    spec: SandboxSpec,
    /// `None`: for the pool.
    asker: Option<Asker>,
    from: Option<SnapshotId>,
    id: Option<SandboxId>,
}

/// Blank images under way, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Blanks {
    making: Vec<(u64, Blank, Instant)>,
    waiting: Vec<Waiting>,
}

impl Blanks {
    /// Whether something for the pool waits.
    pub(super) fn is_preparing(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.asker.is_none())
    }

    /// A size that is waited for and not being made.
    fn next(&self) -> Option<Size> {
        let is_made = |size: Size| self.making.iter().any(|(_, blank, _)| blank.size() == size);
        let mut sizes = self.waiting.iter().map(|waiting| waiting.size);
        if self.making.len() < MAKING_MAX { sizes.find(|size| !is_made(*size)) } else { None }
    }
}

impl Keeper {
    /// The size of the blank image that such a launch has to wait for.
    pub(super) fn lacks_blank(&self, plan: &Plan) -> Option<Size> {
        let size = Size::of(&plan.limits);
        (plan.disk == DiskKind::Image && !self.launcher.images().has_blank(size)).then_some(size)
    }

    /// Has a launch wait for its blank image.
    pub(super) fn wait_for_blank(
        &mut self,
        size: Size,
        spec: SandboxSpec,
        asker: Option<Asker>,
        from: Option<SnapshotId>,
        id: Option<SandboxId>,
    ) -> Result<(), Fault> {
        if self.blanks.waiting.len() >= WAITING_MAX {
            return Err(Fault::new(Code::ServerBusy, "too many sandboxes are starting", "try again shortly"));
        }
        self.blanks.waiting.push(Waiting { size, spec, asker, from, id });
        self.make_blanks();
        Ok(())
    }

    /// Begins what is waited for.
    fn make_blanks(&mut self) {
        while let Some(size) = self.blanks.next() {
            let blank = match self.launcher.images().begin_blank(size) {
                Ok(blank) => blank,
                Err(error) => {
                    self.go_on_with(size, &Err(fault(&error.into())));
                    continue;
                }
            };
            let token = self.token(Source::Blank);
            if watch(&self.epoll, blank.ended(), token).is_ok() {
                self.blanks.making.push((token, blank, Instant::now()));
            } else {
                self.sources.remove(&token);
                self.leave(blank.cut_off());
                let fault = Fault::new(Code::ServerBusy, "the warden has no descriptors left", "try again later");
                self.go_on_with(size, &Err(fault));
            }
        }
    }

    /// What makes a blank image has ended.
    pub(super) fn blank_ended(&mut self, token: u64) {
        let Some(index) = self.blanks.making.iter().position(|(of, ..)| *of == token) else { return };
        let blank = &mut self.blanks.making[index].1;
        let size = blank.size();
        let Some(result) = self.launcher.images().finish_blank(blank) else { return };
        drop(self.blanks.making.swap_remove(index));
        self.sources.remove(&token);
        self.go_on_with(size, &result.map_err(|error| fault(&error.into())));
        self.make_blanks();
    }

    /// Goes on with the launches that waited for a size.
    fn go_on_with(&mut self, size: Size, made: &Result<(), Fault>) {
        let (ready, rest) =
            std::mem::take(&mut self.blanks.waiting).into_iter().partition(|waiting| waiting.size == size);
        self.blanks.waiting = rest;
        let ready: Vec<Waiting> = ready;
        for Waiting { spec, asker, from, id, .. } in ready {
            let begun = made.clone().and_then(|()| self.begin_as(spec.clone(), asker, from, id));
            match (begun, asker) {
                (Ok(()), _) => {}
                (Err(fault), Some(asker)) => self.answer(asker, Err(fault)),
                (Err(_), None) => self.pool.give_up(&spec),
            }
        }
    }

    /// Until one has been made for too long.
    pub(super) fn until_blank(&self) -> Option<Duration> {
        self.blanks.making.iter().map(|(.., begun)| MAKING_TIME.saturating_sub(begun.elapsed())).min()
    }

    /// Stops those that have had their time.
    pub(super) fn end_slow_blanks(&mut self) {
        while let Some(index) = self.blanks.making.iter().position(|(.., begun)| begun.elapsed() >= MAKING_TIME) {
            let (token, blank, _) = self.blanks.making.swap_remove(index);
            self.sources.remove(&token);
            let size = blank.size();
            self.leave(blank.cut_off());
            let message = format!("the sandbox's disk was not made within {} s", MAKING_TIME.as_secs());
            self.go_on_with(size, &Err(Fault::new(Code::TimedOut, message, "try again")));
            self.make_blanks();
        }
    }

    /// Cuts off all that is under way, for the end of the warden.
    pub(super) fn stop_blanks(&mut self) {
        for (_, blank, _) in std::mem::take(&mut self.blanks.making) {
            // Killed, and waited for when it is dropped, though not for long.
            drop(blank.cut_off());
        }
        for waiting in std::mem::take(&mut self.blanks.waiting) {
            let fault = Fault::new(Code::WardenUnavailable, "the warden is stopping", "try again in a few seconds");
            if let Some(asker) = waiting.asker {
                self.answer(asker, Err(fault));
            }
        }
    }
}
