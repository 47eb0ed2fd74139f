//! API keys and sessions: what a user proves themselves with. Only hashes are here.

use rf_types::{KeyId, SessionId, units::UnixMs};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use crate::{
    CredentialHash, Refused, Store, StoreError, UserScope,
    lookup::session_of,
    users::{blob, id, int, millis, one, time, unique},
};

/// Keys of one user that are neither revoked nor expired. Chosen.
const KEYS_MAX: u32 = 1_000;
/// Sessions of one user that are neither ended nor expired. Chosen.
const SESSIONS_MAX: u32 = 10_000;

/// An API key to be stored.
#[derive(Clone, Debug)]
pub struct NewKey<'a> {
    /// What the user calls it, 1 to 100 characters.
    pub name: &'a str,
    /// The hash of its secret.
    pub hash: CredentialHash,
    /// Its scopes, as the gate reads them back.
    pub scopes: &'a str,
    /// When it ends by itself.
    pub expires: Option<UnixMs>,
}

/// An API key as listed: nothing of its secret.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Key {
    /// Its id, which is public.
    pub id: KeyId,
    /// What the user calls it.
    pub name: String,
    /// Its scopes, as the gate wrote them.
    pub scopes: String,
    /// When it was made.
    pub created: UnixMs,
    /// When it ends by itself.
    pub expires: Option<UnixMs>,
    /// When it was revoked.
    pub revoked: Option<UnixMs>,
    /// When it was last used, coarsely.
    pub last_used: Option<UnixMs>,
}

/// A session to be stored.
#[derive(Clone, Debug)]
pub struct NewSession<'a> {
    /// Its id.
    pub id: &'a SessionId,
    /// The hash of its secret.
    pub hash: CredentialHash,
    /// Its scopes, as the gate reads them back.
    pub scopes: &'a str,
    /// When it ends by itself.
    pub expires: UnixMs,
    /// With what it was begun.
    pub maker: SessionMaker<'a>,
}

/// With what a session is begun; one that goes back to a key ends with it.
#[derive(Clone, Copy, Debug)]
pub enum SessionMaker<'a> {
    /// A key.
    Key(KeyId),
    /// Another session of the user's, with what that one was begun.
    Session(&'a SessionId),
    /// A provider's token, or the like: nothing that is kept here.
    Other,
}

/// A session as listed: nothing of its secret.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Session {
    /// Its id, which is public.
    pub id: SessionId,
    /// Its scopes, as the gate wrote them.
    pub scopes: String,
    /// When it began.
    pub created: UnixMs,
    /// When it ends by itself.
    pub expires: UnixMs,
    /// When it was ended.
    pub ended: Option<UnixMs>,
}

impl Store {
    /// Stores a key.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a bad name; [`StoreError::TooMany`].
    pub fn key_insert(&self, scope: &UserScope, new: &NewKey<'_>, now: UnixMs) -> Result<Key, StoreError> {
        name_fits(new.name)?;
        let key = Key {
            id: KeyId::random(),
            name: new.name.to_owned(),
            scopes: new.scopes.to_owned(),
            created: now,
            expires: new.expires,
            revoked: None,
            last_used: None,
        };
        let user = blob(scope.user());
        self.write(|transaction| {
            let at = StoreError::at("insert a key");
            bound(
                transaction,
                "SELECT count(*) FROM api_keys
                 WHERE user = ?1 AND revoked IS NULL AND (expires IS NULL OR expires > ?2)",
                scope,
                now,
                ("keys", KEYS_MAX),
            )?;
            let values =
                params![blob(key.id), user, key.name, new.hash.bytes(), key.scopes, int(now), key.expires.map(int)];
            transaction
                .prepare_cached(
                    "INSERT INTO api_keys (id, user, name, hash, scopes, created, expires)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )
                .and_then(|mut statement| statement.execute(values))
                .map_err(&at)?;
            Ok(())
        })?;
        Ok(key)
    }

    /// The user's keys, newest first, the revoked ones as well until they are pruned.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn key_list(&self, scope: &UserScope) -> Result<Vec<Key>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("list keys");
            let mut statement = connection
                .prepare_cached(
                    "SELECT id, name, scopes, created, expires, revoked, last_used FROM api_keys
                     WHERE user = ?1 ORDER BY created DESC, id DESC LIMIT 2000",
                )
                .map_err(&at)?;
            let rows = statement.query_map([blob(scope.user())], key_of).map_err(&at)?;
            rows.collect::<Result<_, _>>().map_err(&at)
        })
    }

    /// Revokes a key at once, and ends every session that goes back to it, also one that an operator began with it for
    /// another user. Revoking it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn key_revoke(&self, scope: &UserScope, key: KeyId, now: UnixMs) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE api_keys SET revoked = coalesce(revoked, ?3) WHERE id = ?1 AND user = ?2")
                .and_then(|mut statement| statement.execute(params![blob(key), blob(scope.user()), int(now)]))
                .map_err(StoreError::at("revoke a key"))?;
            one("key", changed)?;
            transaction
                .prepare_cached("UPDATE sessions SET ended = ?2 WHERE key = ?1 AND ended IS NULL")
                .and_then(|mut statement| statement.execute(params![blob(key), int(now)]))
                .map_err(StoreError::at("end the sessions of a key"))?;
            Ok(())
        })
    }

    /// Notes that a key was used. Call it now and then, not for each request.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn key_used(&self, scope: &UserScope, key: KeyId, now: UnixMs) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE api_keys SET last_used = ?3 WHERE id = ?1 AND user = ?2")
                .and_then(|mut statement| statement.execute(params![blob(key), blob(scope.user()), int(now)]))
                .map_err(StoreError::at("note a key's use"))?;
            one("key", changed)
        })
    }

    /// Begins a session, if what begins it still stands: its revocation came either before, and this is refused, or after,
    /// and ends this session too.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the id is not of this user's name; [`StoreError::TooMany`]. A maker that no longer
    /// stands is `Ok(Err(_))`.
    pub fn session_begin(
        &self,
        scope: &UserScope,
        new: &NewSession<'_>,
        now: UnixMs,
    ) -> Result<Result<Session, Refused>, StoreError> {
        // The id says whose it is, so that must be true.
        let named = new.id.as_str().rsplitn(3, '_').nth(2) == Some(scope.username().as_str());
        if !named {
            return Err(StoreError::Invalid { what: "a session's id must begin with its user's name".to_owned() });
        }
        self.write(|transaction| {
            bound(
                transaction,
                "SELECT count(*) FROM sessions WHERE user = ?1 AND ended IS NULL AND expires > ?2",
                scope,
                now,
                ("sessions", SESSIONS_MAX),
            )?;
            let key = match maker_key(transaction, new.maker)? {
                Ok(key) => key,
                Err(refused) => return Ok(Err(refused)),
            };
            let (id, user) = (new.id.as_str(), blob(scope.user()));
            let values = params![id, user, new.hash.bytes(), new.scopes, int(now), int(new.expires), key];
            transaction
                .prepare_cached(
                    "INSERT INTO sessions (id, user, hash, scopes, created, expires, key)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )
                .and_then(|mut statement| statement.execute(values))
                .map_err(|error| unique(error, "begin a session", || "the session is there already".to_owned()))?;
            Ok(Ok(Session {
                id: new.id.clone(),
                scopes: new.scopes.to_owned(),
                created: now,
                expires: new.expires,
                ended: None,
            }))
        })
    }

    /// The user's sessions that are neither ended nor expired, newest first, at most 1,000.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn session_list(&self, scope: &UserScope, now: UnixMs) -> Result<Vec<Session>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("list sessions");
            let mut statement = connection
                .prepare_cached(
                    "SELECT id, scopes, created, expires, ended FROM sessions
                     WHERE user = ?1 AND ended IS NULL AND expires > ?2
                     ORDER BY created DESC, id DESC LIMIT 1000",
                )
                .map_err(&at)?;
            let rows = statement.query_map(params![blob(scope.user()), int(now)], session_row).map_err(&at)?;
            rows.collect::<Result<_, _>>().map_err(&at)
        })
    }

    /// Ends a session at once. Ending it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn session_end(&self, scope: &UserScope, session: &SessionId, now: UnixMs) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE sessions SET ended = coalesce(ended, ?3) WHERE id = ?1 AND user = ?2")
                .and_then(|mut statement| statement.execute(params![session.as_str(), blob(scope.user()), int(now)]))
                .map_err(StoreError::at("end a session"))?;
            one("session", changed)
        })
    }
}

/// The key that a session of this maker goes back to, if there is one; refused where it was revoked, or the session that
/// begins another was ended.
fn maker_key(
    connection: &Connection,
    maker: SessionMaker<'_>,
) -> Result<Result<Option<[u8; 16]>, Refused>, StoreError> {
    let at = StoreError::at("look at what begins a session");
    let key = match maker {
        SessionMaker::Other => None,
        SessionMaker::Key(key) => Some(blob(key)),
        SessionMaker::Session(session) => {
            let found = connection
                .prepare_cached("SELECT key, ended FROM sessions WHERE id = ?1")
                .and_then(|mut statement| {
                    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?));
                    statement.query_row([session.as_str()], row).optional()
                })
                .map_err(&at)?;
            match found {
                None => return Ok(Err(Refused::Unknown)),
                Some((_, Some(_))) => return Ok(Err(Refused::Revoked)),
                Some((key, None)) => key,
            }
        }
    };
    let Some(key) = key else { return Ok(Ok(None)) };
    let revoked = connection
        .prepare_cached("SELECT revoked FROM api_keys WHERE id = ?1")
        .and_then(|mut statement| statement.query_row([key], |row| row.get::<_, Option<i64>>(0)).optional())
        .map_err(&at)?;
    Ok(match revoked {
        None => Err(Refused::Unknown),
        Some(Some(_)) => Err(Refused::Revoked),
        Some(None) => Ok(Some(key)),
    })
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<Key> {
    Ok(Key {
        id: id(row, 0)?,
        name: row.get(1)?,
        scopes: row.get(2)?,
        created: time(row, 3)?,
        expires: millis(row, 4)?,
        revoked: millis(row, 5)?,
        last_used: millis(row, 6)?,
    })
}

fn session_row(row: &Row<'_>) -> rusqlite::Result<Session> {
    Ok(Session {
        id: session_of(row, 0)?,
        scopes: row.get(1)?,
        created: time(row, 2)?,
        expires: time(row, 3)?,
        ended: millis(row, 4)?,
    })
}

/// Refuses one more row when the user has `max` already; `count` takes the user and the time.
pub(crate) fn bound(
    connection: &Connection,
    count: &str,
    scope: &UserScope,
    now: UnixMs,
    (what, max): (&'static str, u32),
) -> Result<(), StoreError> {
    let at = StoreError::at("count a user's rows");
    let mut statement = connection.prepare_cached(count).map_err(&at)?;
    let there: u32 = statement.query_row(params![blob(scope.user()), int(now)], |row| row.get(0)).map_err(&at)?;
    if there < max { Ok(()) } else { Err(StoreError::TooMany { what, max }) }
}

/// A name that people give: printable and short.
pub(crate) fn name_fits(name: &str) -> Result<(), StoreError> {
    let length = name.chars().count();
    if (1..=100).contains(&length) && !name.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(StoreError::Invalid { what: "a name is 1 to 100 characters without control characters".to_owned() })
    }
}
