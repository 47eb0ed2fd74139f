//! What was read of keys that came lately, for as long as nothing was written to what it was read from.
//!
//! This is no memory of a yes: the store counts what is written to it ([`rf_store::Store::changes`]), and with the first
//! change, whatever it is, all of this is forgotten. Times are looked at anew.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rf_store::CredentialHash;
use rf_types::units::UnixMs;

use crate::Authenticated;

/// Most keys that are remembered; past it all are forgotten. Chosen: some 500 bytes each.
const KEYS_MAX: usize = 4_096;

/// Keys as they were read.
#[derive(Default)]
pub(crate) struct Seen(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    /// What the store counted before any of them was read.
    changes: u64,
    known: HashMap<CredentialHash, Known>,
}

struct Known {
    who: Authenticated,
    /// Until when its last use need not be noted anew.
    noted_until: UnixMs,
}

impl Seen {
    fn keys(&self) -> MutexGuard<'_, Keys> {
        // Whole after a panic: nothing in here is done in two steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose key this is, if that was read and `changes` is still what it was then, and nothing is to be noted of it.
    pub(crate) fn get(&self, hash: &CredentialHash, changes: u64, now: UnixMs) -> Option<Authenticated> {
        let keys = self.keys();
        let known = keys.known.get(hash).filter(|_| keys.changes == changes)?;
        let good = known.noted_until > now && known.who.expires.is_none_or(|expires| expires > now);
        good.then(|| known.who.clone())
    }

    /// Remembers what was read when the store had counted `changes`.
    pub(crate) fn put(&self, hash: CredentialHash, changes: u64, who: &Authenticated, noted_until: UnixMs) {
        let mut keys = self.keys();
        if keys.changes != changes || keys.known.len() >= KEYS_MAX {
            // One that read earlier and comes later has nothing to add.
            if changes < keys.changes {
                return;
            }
            keys.known.clear();
            keys.changes = changes;
        }
        keys.known.insert(hash, Known { who: who.clone(), noted_until });
    }
}
