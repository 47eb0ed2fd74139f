//! Requests that may come again: under one `Idempotency-Key` something is made once, and its maker's answer is given to
//! every repetition, also by the next server.
//!
//! The key is written down in one step with what was made: a server that is killed at any moment leaves both or neither,
//! and what has no row is destroyed when the next one takes over. So a repetition makes no second one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use rf_places::{Repeat, SandboxRow};
use rf_policy::Action;
use rf_types::{Code, Fault, UserId, units::UnixMs};
use sha2::{Digest as _, Sha256};

use crate::{
    app::{App, Caller},
    operation::Ask,
    refusal::Refusal,
};

/// Longest that a request is known, milliseconds. Chosen: retries come within seconds, or with somebody's next morning.
pub const REPEAT_MS: u64 = 86_400_000;
/// How long a key's turn is kept apart from others', milliseconds, and how many at once. Chosen: above what a making
/// may take.
const TURN_MS: u64 = 600_000;
const TURNS_MAX: usize = 10_000;

/// Held by whoever makes something under a key.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// Whose turn it is with a key, of each user apart.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<Turns>);

#[derive(Debug, Default)]
struct Turns {
    turns: HashMap<(UserId, String), Turn>,
    order: VecDeque<(UnixMs, (UserId, String))>,
}

impl Repeats {
    /// The turn of one key: locked by whoever makes.
    fn turn(&self, user: UserId, key: &str, now: UnixMs) -> Turn {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((at, _)) = state.order.front() {
            if state.order.len() < TURNS_MAX && at.saturating_add(TURN_MS) > now {
                break;
            }
            if let Some((_, old)) = state.order.pop_front() {
                state.turns.remove(&old);
            }
        }
        let key = (user, key.to_owned());
        if let Some(turn) = state.turns.get(&key) {
            return Arc::clone(turn);
        }
        let turn = Turn::default();
        state.turns.insert(key.clone(), Arc::clone(&turn));
        state.order.push_back((now, key));
        turn
    }
}

impl App {
    /// The sandbox that this request makes, or made when it came under this key before. `make` writes down what it is
    /// given with what it makes.
    ///
    /// # Errors
    /// `conflict` when the key came with another body; `not_found` when what it made is gone; what `make` says.
    pub async fn once<F>(
        &self,
        caller: &Caller,
        key: Option<String>,
        body: &[u8],
        make: impl FnOnce(Option<Repeat>) -> F,
    ) -> Result<SandboxRow, Refusal>
    where
        F: Future<Output = Result<SandboxRow, Refusal>> + Send + 'static,
    {
        let Some(key) = key else { return make(None).await };
        let (now, scope) = (self.now(), caller.who.scope());
        let turn = self.repeats().turn(scope.user(), &key, now);
        // Whoever comes with the same key waits here for the first.
        let turn = turn.lock_owned().await;
        let digest: [u8; 32] = Sha256::digest(body).into();
        match self.store().repeat_get(scope, &key, now.saturating_sub(REPEAT_MS)).map_err(Fault::from)? {
            Some(repeat) if repeat.digest != digest => {
                let what = "this `Idempotency-Key` was used for another body";
                Err(Fault::new(Code::Conflict, what, "use a fresh key for another request").into())
            }
            Some(repeat) => {
                let operation = self.begin(caller, Ask::of(Action::SandboxRead).subject(repeat.made)).await?;
                let row = self.places().sandboxes().row(operation.permit().user(), repeat.made);
                operation.finish(row).await
            }
            None => {
                let making = make(Some(Repeat { key, digest }));
                // A client that goes away in the middle is one that comes again.
                let made = async move {
                    let _turn = turn;
                    making.await
                };
                Self::to_its_end(made).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_each_users_own_and_bounded() {
        let repeats = Repeats::default();
        let (ann, bob) = (UserId::from_bits(1), UserId::from_bits(2));
        let first = repeats.turn(ann, "k", 0);
        assert!(Arc::ptr_eq(&first, &repeats.turn(ann, "k", 1)));
        assert!(!Arc::ptr_eq(&first, &repeats.turn(bob, "k", 1)));
        assert!(!Arc::ptr_eq(&first, &repeats.turn(ann, "k", TURN_MS + 2)));
        for n in 0..2 * TURNS_MAX {
            drop(repeats.turn(ann, &n.to_string(), 0));
        }
        assert!(repeats.0.lock().unwrap().turns.len() <= TURNS_MAX);
    }
}
