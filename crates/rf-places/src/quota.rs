//! What each user has at this moment, counted so that a judgement and the claim it allows are one step: two requests
//! at once cannot both get the last of something.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rf_policy::UserUsage;
use rf_types::{Fault, Limits, UserId};

/// The count of everything that has a limit per user; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Quota(Arc<Mutex<HashMap<UserId, UserUsage>>>);

/// A part of a user's quota, given back when dropped.
#[derive(Debug)]
pub struct Hold {
    quota: Quota,
    user: UserId,
    part: UserUsage,
}

impl Quota {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, UserUsage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the user has now.
    #[must_use]
    pub fn usage(&self, user: UserId) -> UserUsage {
        self.lock().get(&user).copied().unwrap_or_default()
    }

    /// Asks `judge` with what the user has now, and counts `part` if it allows. Nobody else is judged in between, so
    /// `judge` must be quick and must not come back here.
    ///
    /// # Errors
    /// What `judge` says.
    pub fn claim<T>(
        &self,
        user: UserId,
        part: UserUsage,
        judge: impl FnOnce(&UserUsage) -> Result<T, Fault>,
    ) -> Result<(T, Hold), Fault> {
        let mut all = self.lock();
        let usage = all.entry(user).or_default();
        let judged = match judge(usage) {
            Ok(judged) => judged,
            Err(fault) => {
                if *usage == UserUsage::default() {
                    all.remove(&user);
                }
                return Err(fault);
            }
        };
        add(usage, &part);
        drop(all);
        Ok((judged, Hold { quota: self.clone(), user, part }))
    }

    /// Counts what is there already.
    #[must_use]
    pub fn hold(&self, user: UserId, part: UserUsage) -> Hold {
        add(self.lock().entry(user).or_default(), &part);
        Hold { quota: self.clone(), user, part }
    }
}

impl Hold {
    /// Whose.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// Counts another part instead.
    pub(crate) fn change(&mut self, part: UserUsage) {
        let mut all = self.quota.lock();
        let usage = all.entry(self.user).or_default();
        subtract(usage, &self.part);
        add(usage, &part);
        drop(all);
        self.part = part;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.quota.lock();
        if let Some(usage) = all.get_mut(&self.user) {
            subtract(usage, &self.part);
            if *usage == UserUsage::default() {
                all.remove(&self.user);
            }
        }
    }
}

/// What one sandbox counts.
#[must_use]
pub fn of_sandbox(limits: &Limits) -> UserUsage {
    UserUsage {
        sandboxes: 1,
        cpu_milli: limits.cpu_milli_max,
        memory_bytes: limits.memory_bytes_max,
        disk_bytes: limits.disk_bytes_max,
        ..UserUsage::default()
    }
}

/// What a sandbox counts of which only the files are kept.
#[must_use]
pub fn of_stored(limits: &Limits) -> UserUsage {
    UserUsage { sandboxes: 1, disk_bytes: limits.disk_bytes_max, ..UserUsage::default() }
}

/// What such a sandbox counts more when it is resumed.
#[must_use]
pub fn of_resumed(limits: &Limits) -> UserUsage {
    less(&of_sandbox(limits), &of_stored(limits))
}

/// What one snapshot counts.
#[must_use]
pub fn of_snapshot(bytes: u64) -> UserUsage {
    UserUsage { snapshots: 1, snapshot_bytes: bytes, ..UserUsage::default() }
}

/// What is left of `usage` without `part`.
#[must_use]
pub fn less(usage: &UserUsage, part: &UserUsage) -> UserUsage {
    let mut rest = *usage;
    subtract(&mut rest, part);
    rest
}

/// What one exec counts.
#[must_use]
pub fn of_exec() -> UserUsage {
    UserUsage { execs: 1, ..UserUsage::default() }
}

fn add(usage: &mut UserUsage, part: &UserUsage) {
    usage.sandboxes = usage.sandboxes.saturating_add(part.sandboxes);
    usage.execs = usage.execs.saturating_add(part.execs);
    usage.cpu_milli = usage.cpu_milli.saturating_add(part.cpu_milli);
    usage.memory_bytes = usage.memory_bytes.saturating_add(part.memory_bytes);
    usage.disk_bytes = usage.disk_bytes.saturating_add(part.disk_bytes);
    usage.snapshots = usage.snapshots.saturating_add(part.snapshots);
    usage.snapshot_bytes = usage.snapshot_bytes.saturating_add(part.snapshot_bytes);
}

fn subtract(usage: &mut UserUsage, part: &UserUsage) {
    usage.sandboxes = usage.sandboxes.saturating_sub(part.sandboxes);
    usage.execs = usage.execs.saturating_sub(part.execs);
    usage.cpu_milli = usage.cpu_milli.saturating_sub(part.cpu_milli);
    usage.memory_bytes = usage.memory_bytes.saturating_sub(part.memory_bytes);
    usage.disk_bytes = usage.disk_bytes.saturating_sub(part.disk_bytes);
    usage.snapshots = usage.snapshots.saturating_sub(part.snapshots);
    usage.snapshot_bytes = usage.snapshot_bytes.saturating_sub(part.snapshot_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_something_goes_to_one() {
        let quota = Quota::default();
        let user = UserId::from_bits(1);
        let one_at_most = |usage: &UserUsage| {
            if usage.execs == 0 { Ok(()) } else { Err(Fault::invalid("full")) }
        };
        let ((), first) = quota.claim(user, of_exec(), one_at_most).unwrap();
        assert!(quota.claim(user, of_exec(), one_at_most).is_err());
        drop(first);
        assert!(quota.claim(user, of_exec(), one_at_most).is_ok());
        assert_eq!(quota.usage(user), UserUsage::default());
    }
}
