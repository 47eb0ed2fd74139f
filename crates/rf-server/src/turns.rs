//! Turns: what one user asks for is done one after the other, and keeps no other user waiting.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rf_types::UserId;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// From how many users on those that nobody waits for are forgotten. Chosen.
const SWEEP_FROM: usize = 64;

/// The turns of all users.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<UserId, Arc<Queue<()>>>>);

impl Turns {
    /// Waits for the user's turn; it is over when the guard is dropped.
    pub async fn take(&self, user: UserId) -> OwnedMutexGuard<()> {
        let queue = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= SWEEP_FROM {
                // A guard and whoever waits for it have one each beside ours.
                all.retain(|_, queue| Arc::strong_count(queue) > 1);
            }
            Arc::clone(all.entry(user).or_default())
        };
        queue.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_turn_keeps_the_same_user_waiting_and_nobody_else() {
        let turns = Turns::default();
        let user = UserId::from_bits;
        // Without tokio's own turns, which so many of ours would use up.
        let take = |user| tokio::task::unconstrained(turns.take(user)).now_or_never();
        let first = take(user(1)).unwrap();
        assert!(take(user(1)).is_none());
        // Others have theirs, and so many that those which are over are forgotten.
        for other in 2..=u128::try_from(SWEEP_FROM).unwrap() * 3 {
            assert!(take(user(other)).is_some());
        }
        assert!(turns.0.lock().unwrap().len() <= SWEEP_FROM);
        assert!(take(user(1)).is_none(), "one that lasts is not forgotten");
        drop(first);
        assert!(take(user(1)).is_some());
    }
}
