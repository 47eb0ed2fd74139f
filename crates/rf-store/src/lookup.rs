//! From a credential to a user's scope: the only way in for requests.

use std::fmt;

use rf_types::{KeyId, MachineId, Preference, SandboxId, SessionId, UserId, UserLimits, Username, units::UnixMs};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    NewUser, OperatorScope, Store, StoreError, SystemScope, Usage, UserScope,
    users::{blob, id, int, json, millis, preference_of, username_of},
};

/// The hash of a secret of high entropy; what is stored in its stead. `Debug` prints nothing of it.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct CredentialHash([u8; 32]);

impl CredentialHash {
    /// From its bytes; the gate makes them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CredentialHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialHash(..)")
    }
}

/// A credential that was found and is good now, and whose it is.
#[derive(Clone, Debug)]
pub struct Known<I> {
    /// The user's rows.
    pub scope: UserScope,
    /// Present when the user's row says operator.
    pub operator: Option<OperatorScope>,
    /// What the user may have.
    pub limits: UserLimits,
    /// Where the user wants operations to run.
    pub preference: Preference,
    /// Which key, session, or subject's row.
    pub id: I,
    /// The credential's scopes as the gate wrote them; empty for a subject.
    pub scopes: String,
    /// When the credential ends by itself.
    pub expires: Option<UnixMs>,
    /// When it was last used, coarsely.
    pub last_used: Option<UnixMs>,
}

/// Why a credential is not good. For logs and the ledger; a client gets one answer for all of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// There is none such.
    Unknown,
    /// It was revoked, ended, removed or used.
    Revoked,
    /// Its time is over.
    Expired,
    /// Its user is disabled.
    UserDisabled,
}

impl Refused {
    /// For logs and the ledger.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "unknown credential",
            Self::Revoked => "revoked credential",
            Self::Expired => "expired credential",
            Self::UserDisabled => "disabled user",
        }
    }
}

/// By what a caller proved who they are, to be checked again for each operation.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// An API key.
    Key(KeyId),
    /// A session.
    Session(&'a SessionId),
    /// A provider's token, whose own end the gate checks.
    Token,
    /// A sandbox that has not ended: its own token, or what its user lets everybody do in it.
    Sandbox(SandboxId),
}

/// What a user may have at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// What the user may have.
    pub limits: UserLimits,
    /// Whether the user's row says operator.
    pub operator: bool,
}

/// The columns every lookup reads of the user, in this order.
macro_rules! user_columns {
    () => {
        "u.id, u.name, u.operator, u.limits, u.preference, u.disabled"
    };
}

fn known<I>(row: &Row<'_>, now: UnixMs, what: I) -> rusqlite::Result<Result<Known<I>, Refused>> {
    let disabled: Option<i64> = row.get(5)?;
    let scopes: String = row.get(6)?;
    let expires = millis(row, 7)?;
    let revoked: Option<i64> = row.get(8)?;
    let last_used = millis(row, 9)?;
    if revoked.is_some() {
        return Ok(Err(Refused::Revoked));
    }
    if expires.is_some_and(|expires| expires <= now) {
        return Ok(Err(Refused::Expired));
    }
    if disabled.is_some() {
        return Ok(Err(Refused::UserDisabled));
    }
    let user = id(row, 0)?;
    Ok(Ok(Known {
        scope: UserScope::new(user, username_of(row, 1)?),
        operator: row.get::<_, bool>(2)?.then(|| OperatorScope::new(user)),
        limits: json(row, 3)?,
        preference: preference_of(row, 4)?,
        id: what,
        scopes,
        expires,
        last_used,
    }))
}

impl Store {
    /// Looks an API key up by its hash. A hash is compared by an index on 256 bits of it, so what a guess learns from
    /// the time it took is about hashes, not about keys.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]. A credential that is not good is `Ok(Err(_))`.
    pub fn scope_by_key(
        &self,
        hash: &CredentialHash,
        now: UnixMs,
    ) -> Result<Result<Known<KeyId>, Refused>, StoreError> {
        const SQL: &str = concat!(
            "SELECT ",
            user_columns!(),
            ", k.scopes, k.expires, k.revoked, k.last_used, k.id
             FROM api_keys k JOIN users u ON u.id = k.user WHERE k.hash = ?1"
        );
        let found = self.read(|connection| {
            let at = StoreError::at("look a key up");
            let mut statement = connection.prepare_cached(SQL).map_err(&at)?;
            statement.query_row([hash.bytes()], |row| known(row, now, id(row, 10)?)).optional().map_err(&at)
        })?;
        Ok(found.unwrap_or(Err(Refused::Unknown)))
    }

    /// Looks a session up by the hash of its secret.
    ///
    /// # Errors
    /// As for [`Store::scope_by_key`].
    pub fn scope_by_session(
        &self,
        hash: &CredentialHash,
        now: UnixMs,
    ) -> Result<Result<Known<SessionId>, Refused>, StoreError> {
        const SQL: &str = concat!(
            "SELECT ",
            user_columns!(),
            ", s.scopes, s.expires, s.ended, NULL, s.id
             FROM sessions s JOIN users u ON u.id = s.user WHERE s.hash = ?1"
        );
        let found = self.read(|connection| {
            let at = StoreError::at("look a session up");
            let mut statement = connection.prepare_cached(SQL).map_err(&at)?;
            statement.query_row([hash.bytes()], |row| known(row, now, session_of(row, 10)?)).optional().map_err(&at)
        })?;
        Ok(found.unwrap_or(Err(Refused::Unknown)))
    }

    /// Who a provider's subject is here. The caller has verified the token that says so.
    ///
    /// # Errors
    /// As for [`Store::scope_by_key`].
    pub fn scope_by_subject(
        &self,
        issuer: &str,
        subject: &str,
        now: UnixMs,
    ) -> Result<Result<Known<()>, Refused>, StoreError> {
        self.read(|connection| by_subject(connection, issuer, subject, now))
    }

    /// As [`Store::scope_by_subject`], and makes the user if there is none. Of two callers at once, one makes it and
    /// both get it. The first of `names` that is free is taken; a name in use is never shared, whoever has it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when no name is free; else as for [`Store::scope_by_key`].
    pub fn scope_by_subject_or_create(
        &self,
        issuer: &str,
        subject: &str,
        names: &[Username],
        limits: &UserLimits,
        now: UnixMs,
    ) -> Result<Result<Known<()>, Refused>, StoreError> {
        match self.scope_by_subject(issuer, subject, now)? {
            Err(Refused::Unknown) => {}
            answer => return Ok(answer),
        }
        self.write(|transaction| {
            match by_subject(transaction, issuer, subject, now)? {
                Err(Refused::Unknown) => {}
                answer => return Ok(answer),
            }
            let free = names.iter().find_map(|name| {
                let new = NewUser { name: name.clone(), operator: false, limits: *limits };
                match crate::users::insert(transaction, &new, now) {
                    Err(StoreError::Conflict { .. }) => None,
                    other => Some(other),
                }
            });
            let user = free.ok_or_else(|| StoreError::Conflict { what: "no free username".to_owned() })??;
            transaction
                .prepare_cached("INSERT INTO subjects (issuer, subject, user, created) VALUES (?1, ?2, ?3, ?4)")
                .and_then(|mut statement| statement.execute(params![issuer, subject, blob(user.id), int(now)]))
                .map_err(StoreError::at("insert a subject"))?;
            by_subject(transaction, issuer, subject, now)
        })
    }

    /// Who a machine belongs to, if `verify` says that it proved to have the private half of the given public key.
    ///
    /// # Errors
    /// As for [`Store::scope_by_key`].
    pub fn scope_by_machine(
        &self,
        machine: MachineId,
        verify: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Result<Result<UserScope, Refused>, StoreError> {
        let found = self.read(|connection| {
            let at = StoreError::at("look a machine up");
            let mut statement = connection
                .prepare_cached(
                    "SELECT u.id, u.name, u.disabled, m.removed, m.public_key
                     FROM machines m JOIN users u ON u.id = m.user WHERE m.id = ?1",
                )
                .map_err(&at)?;
            statement
                .query_row([blob(machine)], |row| {
                    let scope = UserScope::new(id(row, 0)?, username_of(row, 1)?);
                    let disabled: Option<i64> = row.get(2)?;
                    let removed: Option<i64> = row.get(3)?;
                    Ok((scope, disabled.is_some(), removed.is_some(), row.get::<_, [u8; 32]>(4)?))
                })
                .optional()
                .map_err(&at)
        })?;
        Ok(match found {
            None => Err(Refused::Unknown),
            // First the proof: who has not the key learns nothing of the machine's state.
            Some((_, _, _, key)) if !verify(&key) => Err(Refused::Unknown),
            Some((_, _, true, _)) => Err(Refused::Revoked),
            Some((_, true, _, _)) => Err(Refused::UserDisabled),
            Some((scope, false, false, _)) => Ok(scope),
        })
    }

    /// Whose sandbox this is, while it has not ended: for a caller who has its own token, or asks for what its user lets
    /// everybody do. The gate tells the two apart.
    ///
    /// # Errors
    /// As for [`Store::scope_by_key`].
    pub fn scope_by_sandbox(
        &self,
        sandbox: SandboxId,
        now: UnixMs,
    ) -> Result<Result<Known<SandboxId>, Refused>, StoreError> {
        const SQL: &str = concat!(
            "SELECT ",
            user_columns!(),
            ", '', NULL, s.ended, NULL
             FROM sandboxes s JOIN users u ON u.id = s.user WHERE s.id = ?1"
        );
        let found = self.read(|connection| {
            let at = StoreError::at("look a sandbox's user up");
            let mut statement = connection.prepare_cached(SQL).map_err(&at)?;
            statement.query_row([blob(sandbox)], |row| known(row, now, sandbox)).optional().map_err(&at)
        })?;
        Ok(found.unwrap_or(Err(Refused::Unknown)))
    }

    /// The scope of a user for whom an operator acts, also of a disabled one. The gate records it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Sqlite`].
    pub fn act_for(&self, _operator: &OperatorScope, user: UserId) -> Result<UserScope, StoreError> {
        self.read(|connection| scope_of(connection, user))
    }

    /// The scope of a user for the server's background work.
    ///
    /// # Errors
    /// As for [`Store::act_for`].
    pub fn scope_of(&self, _system: &SystemScope, user: UserId) -> Result<UserScope, StoreError> {
        self.read(|connection| scope_of(connection, user))
    }

    /// Whether the proof still stands, and what the user may have: read anew for each operation.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]. A proof that no longer stands is `Ok(Err(_))`.
    pub fn standing(
        &self,
        scope: &UserScope,
        proof: Proof<'_>,
        now: UnixMs,
    ) -> Result<Result<Standing, Refused>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a user's standing");
            let user = blob(scope.user());
            let credential = match proof {
                Proof::Key(key) => connection
                    .prepare_cached("SELECT expires, revoked FROM api_keys WHERE id = ?1 AND user = ?2")
                    .and_then(|mut statement| statement.query_row(params![blob(key), user], ends).optional()),
                Proof::Session(session) => connection
                    .prepare_cached("SELECT expires, ended FROM sessions WHERE id = ?1 AND user = ?2")
                    .and_then(|mut statement| statement.query_row(params![session.as_str(), user], ends).optional()),
                Proof::Token => Ok(Some((None, false))),
                Proof::Sandbox(sandbox) => connection
                    .prepare_cached("SELECT NULL, ended FROM sandboxes WHERE id = ?1 AND user = ?2")
                    .and_then(|mut statement| statement.query_row(params![blob(sandbox), user], ends).optional()),
            };
            match credential.map_err(&at)? {
                None => return Ok(Err(Refused::Unknown)),
                Some((_, true)) => return Ok(Err(Refused::Revoked)),
                Some((Some(expires), false)) if expires <= now => return Ok(Err(Refused::Expired)),
                Some(_) => {}
            }
            let standing = standing(connection, scope.user())?;
            Ok(match standing {
                None => Err(Refused::Unknown),
                Some((_, true)) => Err(Refused::UserDisabled),
                Some((standing, false)) => Ok(standing),
            })
        })
    }

    /// As [`Store::standing`] for a user for whom an operator acts, whose own proof was checked: also when disabled.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Sqlite`].
    pub fn standing_acted_for(&self, _operator: &OperatorScope, scope: &UserScope) -> Result<Standing, StoreError> {
        let found = self.read(|connection| standing(connection, scope.user()))?;
        found.map(|(standing, _)| standing).ok_or(StoreError::NotFound { what: "user" })
    }
}

/// When a credential ends, and whether it was ended.
fn ends(row: &Row<'_>) -> rusqlite::Result<(Option<UnixMs>, bool)> {
    Ok((millis(row, 0)?, row.get::<_, Option<i64>>(1)?.is_some()))
}

/// A user's standing and whether they are disabled.
pub(crate) fn standing(connection: &Connection, user: UserId) -> Result<Option<(Standing, bool)>, StoreError> {
    let at = StoreError::at("read a user's standing");
    let mut statement =
        connection.prepare_cached("SELECT limits, operator, disabled FROM users WHERE id = ?1").map_err(&at)?;
    statement
        .query_row([blob(user)], |row| {
            let standing = Standing { limits: json(row, 0)?, operator: row.get(1)? };
            Ok((standing, row.get::<_, Option<i64>>(2)?.is_some()))
        })
        .optional()
        .map_err(&at)
}

/// What a user's live sandboxes may use in all.
///
/// The index is named: left to itself SQLite walks all that the user ever had, and a user who makes and destroys all
/// day waits longer for each request than for the one before.
pub(crate) fn usage(connection: &Connection, user: UserId) -> Result<Usage, StoreError> {
    let at = StoreError::at("sum a user's sandboxes");
    let mut statement = connection
        .prepare_cached(
            "SELECT count(*), total(cpu_milli), total(memory_bytes), total(disk_bytes)
             FROM sandboxes INDEXED BY sandboxes_alive_by_user WHERE user = ?1 AND ended IS NULL",
        )
        .map_err(&at)?;
    statement
        .query_row([blob(user)], |row| {
            // `total` is a float and never overflows; the sums are whole and far below 2^53.
            let sum = |index| row.get::<_, f64>(index).map(|sum| sum as u64);
            Ok(Usage {
                sandboxes: row.get(0)?,
                cpu_milli: sum(1)?.try_into().unwrap_or(u32::MAX),
                memory_bytes: sum(2)?,
                disk_bytes: sum(3)?,
            })
        })
        .map_err(&at)
}

fn by_subject(
    connection: &Connection,
    issuer: &str,
    subject: &str,
    now: UnixMs,
) -> Result<Result<Known<()>, Refused>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        user_columns!(),
        ", '', NULL, NULL, NULL
         FROM subjects s JOIN users u ON u.id = s.user WHERE s.issuer = ?1 AND s.subject = ?2"
    );
    let at = StoreError::at("look a subject up");
    let mut statement = connection.prepare_cached(SQL).map_err(&at)?;
    let found = statement.query_row([issuer, subject], |row| known(row, now, ())).optional().map_err(&at)?;
    Ok(found.unwrap_or(Err(Refused::Unknown)))
}

fn scope_of(connection: &Connection, user: UserId) -> Result<UserScope, StoreError> {
    let at = StoreError::at("read a user");
    let mut statement = connection.prepare_cached("SELECT name FROM users WHERE id = ?1").map_err(&at)?;
    let name = statement.query_row([blob(user)], |row| username_of(row, 0)).optional().map_err(&at)?;
    name.map(|name| UserScope::new(user, name)).ok_or(StoreError::NotFound { what: "user" })
}

pub(crate) fn session_of(row: &Row<'_>, index: usize) -> rusqlite::Result<SessionId> {
    crate::users::parsed(row, index)
}
