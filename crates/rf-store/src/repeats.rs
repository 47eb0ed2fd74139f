//! What was made under an `Idempotency-Key`, so that a request which is sent again is answered with what it made, also
//! by the next server. The key is written in the same transaction as the row of what was made: there is never the one
//! without the other.

use rf_types::{SandboxId, UserId, units::UnixMs};
use rusqlite::{OptionalExtension as _, Transaction, params};

use crate::{
    Store, StoreError, UserScope,
    users::{blob, id, int},
};

/// Most keys of one user; the oldest are forgotten first. Chosen: far more than are repeated.
const REPEATS_MAX: u32 = 10_000;

/// In the order of their index: otherwise all of the user's are sorted for each that is made.
const FORGET_OLDEST: &str = "DELETE FROM repeats WHERE user = ?1 AND key IN
    (SELECT key FROM repeats WHERE user = ?1 ORDER BY created DESC, key DESC LIMIT -1 OFFSET ?2)";

/// A request that made something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Repeat {
    /// The digest of its body.
    pub digest: [u8; 32],
    /// The sandbox that it made.
    pub made: SandboxId,
}

/// The request that a sandbox is made for, should it come again.
#[derive(Clone, Copy, Debug)]
pub struct NewRepeat<'a> {
    /// Its `Idempotency-Key`, in the form of the door that it came by.
    pub key: &'a str,
    /// The digest of its body.
    pub digest: [u8; 32],
}

/// Notes what the user made under a key, instead of what was made under it before.
pub(crate) fn note(
    transaction: &Transaction<'_>,
    user: UserId,
    repeat: &NewRepeat<'_>,
    made: SandboxId,
    now: UnixMs,
) -> Result<(), StoreError> {
    let at = StoreError::at("note a request");
    let user = blob(user);
    transaction
        .prepare_cached(
            "INSERT INTO repeats (user, key, digest, made, created) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user, key) DO UPDATE SET
                 digest = excluded.digest, made = excluded.made, created = excluded.created",
        )
        .and_then(|mut statement| statement.execute(params![user, repeat.key, repeat.digest, blob(made), int(now)]))
        .map_err(&at)?;
    transaction
        .prepare_cached(FORGET_OLDEST)
        .and_then(|mut statement| statement.execute(params![user, REPEATS_MAX]))
        .map_err(&at)?;
    Ok(())
}

impl Store {
    /// What the user made under this key since `since`.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn repeat_get(&self, scope: &UserScope, key: &str, since: UnixMs) -> Result<Option<Repeat>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("look a repeated request up");
            let mut statement = connection
                .prepare_cached("SELECT digest, made FROM repeats WHERE user = ?1 AND key = ?2 AND created >= ?3")
                .map_err(&at)?;
            statement
                .query_row(params![blob(scope.user()), key, int(since)], |row| {
                    Ok(Repeat { digest: row.get(0)?, made: id(row, 1)? })
                })
                .optional()
                .map_err(&at)
        })
    }

    /// Forgets under which key a sandbox was made: the request was answered with a fault, and may come again.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn repeat_forget(&self, _system: &crate::SystemScope, user: UserId, made: SandboxId) -> Result<(), StoreError> {
        self.write_things(|transaction| {
            transaction
                .execute("DELETE FROM repeats WHERE user = ?1 AND made = ?2", params![blob(user), blob(made)])
                .map(drop)
                .map_err(StoreError::at("forget a request"))
        })
    }

    /// Forgets what is older than `before`. Returns how many went.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn repeats_prune(&self, _system: &crate::SystemScope, before: UnixMs) -> Result<usize, StoreError> {
        self.write_things(|transaction| {
            transaction
                .execute("DELETE FROM repeats WHERE created < ?1", [int(before)])
                .map_err(StoreError::at("forget old requests"))
        })
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn the_oldest_are_forgotten_without_sorting_all() {
        let mut connection = Connection::open_in_memory().unwrap();
        crate::schema::migrate(&mut connection, "x").unwrap();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        let user = UserId::random();
        let transaction = connection.transaction().unwrap();
        for made in 0..REPEATS_MAX + 2 {
            let repeat = NewRepeat { key: &made.to_string(), digest: [1; 32] };
            note(&transaction, user, &repeat, SandboxId::random(), UnixMs::from(made)).unwrap();
        }
        let kept = "SELECT count(*), min(created), max(created) FROM repeats";
        let kept: (u32, u32, u32) =
            transaction.query_row(kept, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!(kept, (REPEATS_MAX, 2, REPEATS_MAX + 1));

        let mut plan = transaction.prepare(&format!("EXPLAIN QUERY PLAN {FORGET_OLDEST}")).unwrap();
        let steps = plan.query_map(params![blob(user), REPEATS_MAX], |row| row.get::<_, String>(3)).unwrap();
        let steps: Vec<String> = steps.map(Result::unwrap).collect();
        assert!(steps.iter().all(|step| !step.contains("TEMP B-TREE")), "{steps:?}");
    }
}
