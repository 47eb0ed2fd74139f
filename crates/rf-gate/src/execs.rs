//! How many execs each user has running, counted in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rf_types::UserId;

#[derive(Debug, Default)]
pub(crate) struct Execs(Mutex<HashMap<UserId, u32>>);

impl Execs {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn running(&self, user: UserId) -> u32 {
        self.lock().get(&user).copied().unwrap_or(0)
    }

    /// Asks `judge` with the count so far, and takes a slot if it says yes; nobody comes in between.
    pub(crate) fn take<T, E>(
        self: &Arc<Self>,
        user: UserId,
        judge: impl FnOnce(u32) -> Result<T, E>,
    ) -> Result<(T, ExecSlot), E> {
        let mut counts = self.lock();
        let running = counts.get(&user).copied().unwrap_or(0);
        let judged = judge(running)?;
        counts.insert(user, running + 1);
        Ok((judged, ExecSlot { execs: Arc::clone(self), user }))
    }
}

/// One running exec of a user's; counts until it is dropped. Hold it for as long as the exec runs, also one that
/// outlives its request.
#[derive(Debug)]
#[must_use = "a slot that is dropped counts no more"]
pub struct ExecSlot {
    execs: Arc<Execs>,
    user: UserId,
}

impl Drop for ExecSlot {
    fn drop(&mut self) {
        let mut counts = self.execs.lock();
        match counts.get(&self.user).copied() {
            // The last one takes the entry along, so that the table holds only who runs something.
            Some(0 | 1) | None => drop(counts.remove(&self.user)),
            Some(running) => drop(counts.insert(self.user, running - 1)),
        }
    }
}
