//! Users, and how their values are written as columns.

use std::{error::Error, str::FromStr};

use rf_types::{
    Preference, UserId, UserLimits, Username,
    id::{Id, Kind},
    units::UnixMs,
};
use rusqlite::{Connection, OptionalExtension, Row, params, types::Type};
use serde::{Serialize, de::DeserializeOwned};

use crate::{OperatorScope, Page, PageAsk, Store, StoreError, SystemScope, UserScope};

/// A user to be made.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The name, not in use.
    pub name: Username,
    /// Whether they run this Ringfence.
    pub operator: bool,
    /// What they may have.
    pub limits: UserLimits,
}

/// A user.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct User {
    /// Their id.
    pub id: UserId,
    /// Their name.
    pub name: Username,
    /// Whether they run this Ringfence.
    pub operator: bool,
    /// What they may have.
    pub limits: UserLimits,
    /// Where they want operations to run.
    pub preference: Preference,
    /// When they were made.
    pub created: UnixMs,
    /// Since when none of their credentials works.
    pub disabled: Option<UnixMs>,
}

impl Store {
    /// Makes the first user, an operator, in an empty store.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is any user.
    pub fn user_create_first(
        &self,
        _system: &SystemScope,
        name: &Username,
        now: UnixMs,
    ) -> Result<(UserScope, User), StoreError> {
        self.write(|transaction| {
            let users: u32 = transaction
                .query_row("SELECT count(*) FROM users", [], |row| row.get(0))
                .map_err(StoreError::at("count users"))?;
            if users > 0 {
                return Err(StoreError::Conflict { what: "there are users already".to_owned() });
            }
            let new = NewUser { name: name.clone(), operator: true, limits: UserLimits::STANDARD };
            let user = insert(transaction, &new, now)?;
            Ok((UserScope::new(user.id, user.name.clone()), user))
        })
    }

    /// Whether there is any user; a new store has none.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn has_users(&self, _system: &SystemScope) -> Result<bool, StoreError> {
        self.read(|connection| {
            connection
                .query_row("SELECT EXISTS (SELECT 1 FROM users)", [], |row| row.get(0))
                .map_err(StoreError::at("count users"))
        })
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the name is in use.
    pub fn user_create(
        &self,
        _operator: &OperatorScope,
        new: &NewUser,
        now: UnixMs,
    ) -> Result<(UserScope, User), StoreError> {
        self.write(|transaction| {
            let user = insert(transaction, new, now)?;
            Ok((UserScope::new(user.id, user.name.clone()), user))
        })
    }

    /// The scope's own user.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when they were deleted meanwhile.
    pub fn user_self(&self, scope: &UserScope) -> Result<User, StoreError> {
        self.read(|connection| get(connection, scope.user()))
    }

    /// Any user, for an operator.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn user_get(&self, _operator: &OperatorScope, user: UserId) -> Result<User, StoreError> {
        self.read(|connection| get(connection, user))
    }

    /// Any user by name, for an operator.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn user_by_name(&self, _operator: &OperatorScope, name: &Username) -> Result<User, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM users WHERE name = ?1");
        self.read(|connection| {
            let at = StoreError::at("read a user");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let found = statement.query_row([name.as_str()], user_of).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "user" })
        })
    }

    /// All users, newest first, for an operator.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a bad page.
    pub fn user_list(&self, _operator: &OperatorScope, page: PageAsk<'_>) -> Result<Page<User>, StoreError> {
        let (items, after) = (page.items()?, page.cursor(false)?);
        let sql = format!(
            "SELECT {COLUMNS} FROM users WHERE (created, id) < (?1, ?2) ORDER BY created DESC, id DESC LIMIT ?3"
        );
        self.read(|connection| {
            let at = StoreError::at("list users");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let rows = statement.query_map(params![after.created, after.id, items + 1], user_of).map_err(&at)?;
            let users = rows.collect::<Result<Vec<_>, _>>().map_err(&at)?;
            Ok(Page::cut(users, items, |user| (user.created, user.id)))
        })
    }

    /// Changes what a user may have. What they have over it stays until it ends; nothing new is let in.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn user_set_limits(
        &self,
        _operator: &OperatorScope,
        user: UserId,
        limits: &UserLimits,
    ) -> Result<(), StoreError> {
        let limits = to_json(limits)?;
        self.write(|transaction| {
            let at = StoreError::at("set a user's limits");
            let changed = transaction
                .prepare_cached("UPDATE users SET limits = ?2 WHERE id = ?1")
                .and_then(|mut statement| statement.execute(params![blob(user), limits]))
                .map_err(&at)?;
            one("user", changed)
        })
    }

    /// Disables a user, so that none of their credentials works, or enables them again (`None`).
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Conflict`] for the last enabled operator.
    pub fn user_set_disabled(
        &self,
        _operator: &OperatorScope,
        user: UserId,
        disabled: Option<UnixMs>,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            if disabled.is_some() {
                another_operator_stays(transaction, user)?;
            }
            let changed = transaction
                .prepare_cached("UPDATE users SET disabled = ?2 WHERE id = ?1")
                .and_then(|mut statement| statement.execute(params![blob(user), disabled.map(int)]))
                .map_err(StoreError::at("disable a user"))?;
            one("user", changed)
        })
    }

    /// Deletes a user and every row of theirs.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] while they have a sandbox alive (its row is what it is found by; disable the user and
    /// end their sandboxes first), and for the last enabled operator; [`StoreError::NotFound`].
    pub fn user_delete(&self, _operator: &OperatorScope, user: UserId) -> Result<(), StoreError> {
        self.write(|transaction| {
            let at = StoreError::at("delete a user");
            another_operator_stays(transaction, user)?;
            let alive = crate::lookup::usage(transaction, user)?.sandboxes;
            if alive > 0 {
                return Err(StoreError::Conflict { what: format!("the user still has {alive} sandboxes") });
            }
            // The rest goes by `ON DELETE CASCADE`.
            let changed = transaction.execute("DELETE FROM users WHERE id = ?1", [blob(user)]).map_err(&at)?;
            one("user", changed)
        })
    }

    /// Where the user wants operations to run.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the user was deleted meanwhile.
    pub fn preference(&self, scope: &UserScope) -> Result<Preference, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a preference");
            let mut statement = connection.prepare_cached("SELECT preference FROM users WHERE id = ?1").map_err(&at)?;
            let found =
                statement.query_row([blob(scope.user())], |row| preference_of(row, 0)).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "user" })
        })
    }

    /// Sets where the user wants operations to run.
    ///
    /// # Errors
    /// As for [`Store::preference`].
    pub fn set_preference(&self, scope: &UserScope, preference: Preference) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE users SET preference = ?2 WHERE id = ?1")
                .and_then(|mut statement| statement.execute(params![blob(scope.user()), preference_name(preference)]))
                .map_err(StoreError::at("set a preference"))?;
            one("user", changed)
        })
    }
}

const COLUMNS: &str = "id, name, operator, limits, preference, created, disabled";

fn user_of(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: id(row, 0)?,
        name: username_of(row, 1)?,
        operator: row.get(2)?,
        limits: json(row, 3)?,
        preference: preference_of(row, 4)?,
        created: time(row, 5)?,
        disabled: millis(row, 6)?,
    })
}

fn get(connection: &Connection, user: UserId) -> Result<User, StoreError> {
    let at = StoreError::at("read a user");
    let sql = format!("SELECT {COLUMNS} FROM users WHERE id = ?1");
    let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
    let found = statement.query_row([blob(user)], user_of).optional().map_err(&at)?;
    found.ok_or(StoreError::NotFound { what: "user" })
}

/// Inserts a user; `Conflict` when the name is in use.
pub(crate) fn insert(connection: &Connection, new: &NewUser, now: UnixMs) -> Result<User, StoreError> {
    let user = User {
        id: UserId::random(),
        name: new.name.clone(),
        operator: new.operator,
        limits: new.limits,
        preference: Preference::MachineElseSandbox,
        created: now,
        disabled: None,
    };
    let values = params![
        blob(user.id),
        user.name.as_str(),
        user.operator,
        to_json(&user.limits)?,
        preference_name(user.preference),
        int(now)
    ];
    connection
        .prepare_cached(
            "INSERT INTO users (id, name, operator, limits, preference, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut statement| statement.execute(values))
        .map_err(|error| unique(error, "insert a user", || format!("the username `{}` is in use", user.name)))?;
    Ok(user)
}

/// Without an operator nobody could make one: the last that is enabled stays.
fn another_operator_stays(connection: &Connection, user: UserId) -> Result<(), StoreError> {
    let last: bool = connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM users WHERE id = ?1 AND operator AND disabled IS NULL)
                AND NOT EXISTS (SELECT 1 FROM users WHERE id <> ?1 AND operator AND disabled IS NULL)",
            [blob(user)],
            |row| row.get(0),
        )
        .map_err(StoreError::at("count operators"))?;
    if last {
        return Err(StoreError::Conflict { what: "this is the last operator".to_owned() });
    }
    Ok(())
}

/// An id as its column.
pub(crate) fn blob<K: Kind>(id: Id<K>) -> [u8; 16] {
    id.bits().to_be_bytes()
}

/// A column as an id.
pub(crate) fn id<K: Kind>(row: &Row<'_>, index: usize) -> rusqlite::Result<Id<K>> {
    row.get::<_, [u8; 16]>(index).map(|bytes| Id::from_bits(u128::from_be_bytes(bytes)))
}

/// A time or size as its column. Beyond 2^63 it is the greatest there is, which is as good as never.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A column as a time.
pub(crate) fn time(row: &Row<'_>, index: usize) -> rusqlite::Result<UnixMs> {
    row.get::<_, i64>(index).map(|value| value.try_into().unwrap_or(0))
}

/// A column as a time that may be missing.
pub(crate) fn millis(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<UnixMs>> {
    row.get::<_, Option<i64>>(index).map(|value| value.map(|value| value.try_into().unwrap_or(0)))
}

/// A column of JSON as the value.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(index)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(index, error))
}

/// A column of text as the value it is the text form of.
pub(crate) fn parsed<T: FromStr<Err: Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    row.get_ref(index)?.as_str()?.parse().map_err(|error| unreadable(index, error))
}

pub(crate) fn username_of(row: &Row<'_>, index: usize) -> rusqlite::Result<Username> {
    parsed(row, index)
}

pub(crate) fn unreadable(index: usize, error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
}

/// A value as JSON.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Unreadable { what: "value to store" })
}

const fn preference_name(preference: Preference) -> &'static str {
    match preference {
        Preference::Machine => "machine",
        Preference::Sandbox => "sandbox",
        Preference::MachineElseSandbox => "machine-else-sandbox",
    }
}

pub(crate) fn preference_of(row: &Row<'_>, index: usize) -> rusqlite::Result<Preference> {
    match row.get_ref(index)?.as_str()? {
        "machine" => Ok(Preference::Machine),
        "sandbox" => Ok(Preference::Sandbox),
        "machine-else-sandbox" => Ok(Preference::MachineElseSandbox),
        _ => Err(rusqlite::Error::InvalidColumnType(index, "preference".to_owned(), Type::Text)),
    }
}

/// One row was changed, or there is no such thing.
pub(crate) fn one(what: &'static str, changed: usize) -> Result<(), StoreError> {
    if changed == 1 { Ok(()) } else { Err(StoreError::NotFound { what }) }
}

/// A broken uniqueness becomes a `Conflict`; anything else names the step.
pub(crate) fn unique(error: rusqlite::Error, step: &'static str, what: impl FnOnce() -> String) -> StoreError {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    match error.sqlite_error().map(|error| error.extended_code) {
        Some(SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY) => StoreError::Conflict { what: what() },
        _ => StoreError::at(step)(error),
    }
}
