//! Who wants more CPU than its limit gives stands in the way of as few as possible.
//!
//! A limit alone lets a sandbox that computes without end use every processor until its time of the period is used up,
//! and whoever wakes meanwhile waits for the scheduler. So a sandbox that the kernel has throttled lately is held to as
//! many processors as it may have the time of, to those that have the fewest of such sandboxes; where that is not
//! possible it has a small share of whatever others want too. It is let go when it has used less than its limit for
//! [`LIGHT_AGAIN`].
//!
//! It is looked at only while the sandboxes together keep a processor busy, and never for more than a fiftieth of the
//! time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rf_sandbox::{
    cgroup::{Hierarchies, Share},
    launch::Sandbox,
    processors::processors,
};
use rf_types::SandboxId;

/// How often it is looked. Chosen: the period of the limits (cgroup-v2 document, cpu.max), in which one is throttled once.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a sandbox stays heavy after it was last seen to be. Chosen: ten periods.
const LIGHT_AGAIN: Duration = Duration::from_secs(1);
/// Of the time since the last look, the part of one processor that makes a look worth it, in tenths. Chosen.
const BUSY_TENTHS: u64 = 3;
/// Of its limit, the part that a heavy sandbox uses at least, in tenths. Chosen: held to its processors it is not
/// throttled any more.
const HEAVY_TENTHS: u64 = 8;
/// How many times as long as a look took is waited until the next.
const REST: u32 = 50;

/// A heavy sandbox.
#[derive(Debug)]
struct Heavy {
    seen: Instant,
    cpu_us: u64,
    /// The processors that it is held to; none where it has a small share instead.
    held_to: Vec<usize>,
}

/// What is known of the sandboxes' hunger.
#[derive(Debug)]
pub(crate) struct Weights {
    looked: Instant,
    used_us: u64,
    pause: Duration,
    processors: Vec<usize>,
    /// How often each had been throttled when it was looked at.
    throttled: HashMap<SandboxId, u64>,
    heavy: HashMap<SandboxId, Heavy>,
}

impl Weights {
    pub(crate) fn new() -> Self {
        Self {
            looked: Instant::now(),
            used_us: 0,
            pause: PERIOD,
            processors: processors(),
            throttled: HashMap::new(),
            heavy: HashMap::new(),
        }
    }

    /// Until the next look.
    pub(crate) fn due(&self) -> Duration {
        self.pause.saturating_sub(self.looked.elapsed())
    }

    /// Looks at the sandboxes that were claimed, if it is time and they are busy.
    pub(crate) fn look<'a>(
        &mut self,
        hierarchies: &Hierarchies,
        claimed: impl Iterator<Item = (SandboxId, &'a Sandbox)>,
    ) {
        let since = self.looked.elapsed();
        if since < self.pause {
            return;
        }
        let now = Instant::now();
        self.looked = now;
        self.pause = PERIOD;
        let since_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let used_us = hierarchies.cpu_used_us().unwrap_or(0);
        let used_since_us = used_us.saturating_sub(std::mem::replace(&mut self.used_us, used_us));
        if used_since_us <= since_us / 10 * BUSY_TENTHS && self.heavy.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.throttled);
        let mut heavy = std::mem::take(&mut self.heavy);
        for (id, sandbox) in claimed {
            let Some(throttled) = sandbox.throttled() else { continue };
            let grew = before.get(&id).is_some_and(|before| throttled > *before);
            self.throttled.insert(id, throttled);
            match heavy.remove(&id) {
                Some(mut known) => {
                    let cpu_us = sandbox.cpu_us().unwrap_or(0);
                    let used_us = cpu_us.saturating_sub(std::mem::replace(&mut known.cpu_us, cpu_us));
                    let limit_us = since_us / 1_000 * u64::from(sandbox.plan().limits.cpu_milli_max);
                    if grew || used_us > limit_us / 10 * HEAVY_TENTHS {
                        known.seen = now;
                    }
                    if now.duration_since(known.seen) < LIGHT_AGAIN {
                        self.heavy.insert(id, known);
                    } else {
                        release(sandbox, &known);
                    }
                }
                None if grew => {
                    // Those that are gone or light by now are not counted.
                    let mut held_to = self.fewest(&heavy, sandbox.plan().limits.cpu_milli_max);
                    if held_to.is_empty() || !sandbox.hold_to(&held_to) {
                        held_to.clear();
                        sandbox.share(Share::Small);
                    }
                    self.heavy.insert(id, Heavy { seen: now, cpu_us: sandbox.cpu_us().unwrap_or(0), held_to });
                }
                None => {}
            }
        }
        self.pause = PERIOD.max(now.elapsed() * REST);
    }

    /// As many processors as make up a limit, those with the fewest heavy sandboxes first; none when that is all of them.
    fn fewest(&self, not_looked_at: &HashMap<SandboxId, Heavy>, cpu_milli: u32) -> Vec<usize> {
        let count = usize::try_from(cpu_milli.div_ceil(1_000)).unwrap_or(usize::MAX);
        if count >= self.processors.len() {
            return Vec::new();
        }
        let on = |cpu: &usize| {
            let all = self.heavy.values().chain(not_looked_at.values());
            all.filter(|heavy| heavy.held_to.contains(cpu)).count()
        };
        // The last first: interrupts and whatever else a host does are mostly on the first.
        let mut all: Vec<usize> = self.processors.iter().rev().copied().collect();
        all.sort_by_key(on);
        all.truncate(count);
        all
    }
}

fn release(sandbox: &Sandbox, heavy: &Heavy) {
    if heavy.held_to.is_empty() {
        sandbox.share(Share::Full);
    } else {
        sandbox.hold_no_more();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(processors: usize, held: &[&[usize]]) -> Weights {
        let heavy = held.iter().enumerate().map(|(index, held_to)| {
            let heavy = Heavy { seen: Instant::now(), cpu_us: 0, held_to: held_to.to_vec() };
            (SandboxId::from_bits(index as u128), heavy)
        });
        Weights { processors: (0..processors).collect(), heavy: heavy.collect(), ..Weights::new() }
    }

    #[test]
    fn a_heavy_sandbox_gets_the_processors_with_the_fewest_others() {
        let none = HashMap::new();
        assert_eq!(weights(2, &[]).fewest(&none, 1_000), [1]);
        assert_eq!(weights(2, &[&[1]]).fewest(&none, 1_000), [0]);
        assert_eq!(weights(4, &[&[3], &[2]]).fewest(&none, 1_500), [1, 0]);
        assert_eq!(weights(4, &[&[3], &[2], &[1, 0]]).fewest(&none, 100), [3]);
    }

    #[test]
    fn one_that_may_have_every_processor_is_held_to_none() {
        assert!(weights(2, &[]).fewest(&HashMap::new(), 2_000).is_empty());
        assert!(weights(1, &[]).fewest(&HashMap::new(), 1_000).is_empty());
    }
}
