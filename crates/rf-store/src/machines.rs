//! Users' own computers, and the tokens by which they join.

use rf_types::{MachineId, units::UnixMs};
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use crate::{
    CredentialHash, Refused, Store, StoreError, UserScope,
    sessions::{bound, name_fits},
    users::{blob, id, int, json, millis, one, time, to_json, unique, username_of},
};

/// Machines of one user at once. Chosen.
const MACHINES_MAX: u32 = 64;
/// Enrolment tokens of one user that are neither used nor expired. Chosen.
const TOKENS_MAX: u32 = 64;
/// Most bytes of a machine's facts as JSON. Chosen: 24 texts of 1 KiB, the most that a machine may tell, with each byte
/// escaped.
const FACTS_BYTES_MAX: usize = 64 << 10;

/// A machine that joins.
#[derive(Clone, Debug)]
pub struct NewMachine<'a> {
    /// What it calls itself, 1 to 100 characters.
    pub name: &'a str,
    /// Its Ed25519 public key.
    pub public_key: &'a [u8; 32],
    /// What it announced of itself; at most 16 KiB as JSON.
    pub facts: &'a Value,
    /// The restriction that its owner set, for show: the machine itself holds it.
    pub level: &'a str,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// What it calls itself.
    pub name: String,
    /// What it announced of itself.
    pub facts: Value,
    /// The restriction that its owner set.
    pub level: String,
    /// When it joined.
    pub joined: UnixMs,
    /// When it was last heard of, coarsely.
    pub last_seen: UnixMs,
}

impl Store {
    /// Stores an enrolment token of this user's.
    ///
    /// # Errors
    /// [`StoreError::TooMany`].
    pub fn enrolment_token_make(
        &self,
        scope: &UserScope,
        hash: &CredentialHash,
        expires: UnixMs,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            bound(
                transaction,
                "SELECT count(*) FROM enrolment_tokens WHERE user = ?1 AND used_at IS NULL AND expires > ?2",
                scope,
                now,
                ("enrolment tokens", TOKENS_MAX),
            )?;
            transaction
                .prepare_cached("INSERT INTO enrolment_tokens (hash, user, created, expires) VALUES (?1, ?2, ?3, ?4)")
                .and_then(|mut statement| {
                    statement.execute(params![hash.bytes(), blob(scope.user()), int(now), int(expires)])
                })
                .map_err(StoreError::at("make an enrolment token"))?;
            Ok(())
        })
    }

    /// Uses an enrolment token up and inserts the machine, both or neither. Of many callers with one token at once,
    /// one gets the machine and the others `Revoked`.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the key has joined already; [`StoreError::Invalid`]; [`StoreError::TooMany`]. A
    /// token that is not good is `Ok(Err(_))`; in each of these the token is not used up.
    pub fn machine_enrol(
        &self,
        token: &CredentialHash,
        new: &NewMachine<'_>,
        now: UnixMs,
    ) -> Result<Result<(UserScope, Machine), Refused>, StoreError> {
        name_fits(new.name)?;
        name_fits(new.level)?;
        let facts = to_json(new.facts)?;
        if facts.len() > FACTS_BYTES_MAX {
            return Err(StoreError::Invalid { what: format!("facts must be at most {FACTS_BYTES_MAX} bytes") });
        }
        self.write(|transaction| {
            let at = StoreError::at("enrol a machine");
            let found = transaction
                .prepare_cached(
                    "SELECT u.id, u.name, u.disabled, t.expires, t.used_at
                     FROM enrolment_tokens t JOIN users u ON u.id = t.user WHERE t.hash = ?1",
                )
                .and_then(|mut statement| {
                    statement
                        .query_row([token.bytes()], |row| {
                            let scope = UserScope::new(id(row, 0)?, username_of(row, 1)?);
                            Ok((scope, millis(row, 2)?, time(row, 3)?, millis(row, 4)?))
                        })
                        .optional()
                })
                .map_err(&at)?;
            let scope = match found {
                None => return Ok(Err(Refused::Unknown)),
                Some((_, _, _, Some(_))) => return Ok(Err(Refused::Revoked)),
                Some((_, _, expires, None)) if expires <= now => return Ok(Err(Refused::Expired)),
                Some((_, Some(_), _, None)) => return Ok(Err(Refused::UserDisabled)),
                Some((scope, None, _, None)) => scope,
            };
            bound(
                transaction,
                // The time is bound for all counts alike; a machine has no end of its own.
                "SELECT count(*) FROM machines WHERE user = ?1 AND removed IS NULL AND ?2 IS NOT NULL",
                &scope,
                now,
                ("machines", MACHINES_MAX),
            )?;
            transaction
                .execute(
                    "UPDATE enrolment_tokens SET used_at = ?3 WHERE hash = ?1 AND user = ?2",
                    params![token.bytes(), blob(scope.user()), int(now)],
                )
                .map_err(&at)?;
            let machine = Machine {
                id: MachineId::random(),
                name: new.name.to_owned(),
                facts: new.facts.clone(),
                level: new.level.to_owned(),
                joined: now,
                last_seen: now,
            };
            let values = params![
                blob(machine.id),
                blob(scope.user()),
                machine.name,
                new.public_key,
                facts,
                machine.level,
                int(now)
            ];
            transaction
                .execute(
                    "INSERT INTO machines (id, user, name, public_key, facts, level, joined, last_seen)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
                    values,
                )
                .map_err(|error| unique(error, "enrol a machine", || "this machine's key has joined already".into()))?;
            Ok(Ok((scope, machine)))
        })
    }

    /// The user's machines, newest first; at most 64.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn machine_list(&self, scope: &UserScope) -> Result<Vec<Machine>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("list machines");
            let mut statement = connection
                .prepare_cached(
                    "SELECT id, name, facts, level, joined, last_seen FROM machines
                     WHERE user = ?1 AND removed IS NULL ORDER BY joined DESC, id DESC LIMIT 64",
                )
                .map_err(&at)?;
            let rows = statement.query_map([blob(scope.user())], machine_of).map_err(&at)?;
            rows.collect::<Result<_, _>>().map_err(&at)
        })
    }

    /// One machine.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also once it is removed.
    pub fn machine_get(&self, scope: &UserScope, machine: MachineId) -> Result<Machine, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a machine");
            let mut statement = connection
                .prepare_cached(
                    "SELECT id, name, facts, level, joined, last_seen FROM machines
                     WHERE id = ?1 AND user = ?2 AND removed IS NULL",
                )
                .map_err(&at)?;
            let found = statement.query_row([blob(machine), blob(scope.user())], machine_of).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "machine" })
        })
    }

    /// Removes a machine: its key is never good again.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn machine_remove(&self, scope: &UserScope, machine: MachineId, now: UnixMs) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE machines SET removed = ?3 WHERE id = ?1 AND user = ?2 AND removed IS NULL")
                .and_then(|mut statement| statement.execute(params![blob(machine), blob(scope.user()), int(now)]))
                .map_err(StoreError::at("remove a machine"))?;
            one("machine", changed)
        })
    }

    /// Notes what a machine said of itself when it connected: its facts and its owner's level.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Invalid`].
    pub fn machine_seen(
        &self,
        scope: &UserScope,
        machine: MachineId,
        said: Option<(&Value, &str)>,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        let said = match said {
            None => None,
            Some((facts, level)) => {
                name_fits(level)?;
                let facts = to_json(facts)?;
                if facts.len() > FACTS_BYTES_MAX {
                    return Err(StoreError::Invalid { what: format!("facts must be at most {FACTS_BYTES_MAX} bytes") });
                }
                Some((facts, level))
            }
        };
        let (facts, level) = said.map_or((None, None), |(facts, level)| (Some(facts), Some(level)));
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE machines SET last_seen = ?3, facts = coalesce(?4, facts), level = coalesce(?5, level)
                     WHERE id = ?1 AND user = ?2 AND removed IS NULL",
                )
                .and_then(|mut statement| {
                    statement.execute(params![blob(machine), blob(scope.user()), int(now), facts, level])
                })
                .map_err(StoreError::at("note a machine"))?;
            one("machine", changed)
        })
    }
}

fn machine_of(row: &Row<'_>) -> rusqlite::Result<Machine> {
    Ok(Machine {
        id: id(row, 0)?,
        name: row.get(1)?,
        facts: json(row, 2)?,
        level: row.get(3)?,
        joined: time(row, 4)?,
        last_seen: time(row, 5)?,
    })
}
