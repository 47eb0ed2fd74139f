//! Rows of snapshots: whose each is, and what it is of. What they hold is the warden's.

use rf_types::{SandboxId, SandboxSpec, SnapshotId, UserId, units::UnixMs};
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;

use crate::{
    Page, PageAsk, Store, StoreError, SystemScope, UserScope,
    users::{blob, id, int, json, one, time, to_json, unique},
};

/// Longest name, bytes. Chosen.
const NAME_MAX: usize = 128;

/// A snapshot.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What its user calls it, 1 to 128 bytes; no two of one user's alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The sandbox it was made of; may be gone.
    pub sandbox: SandboxId,
    /// As that sandbox was then.
    pub spec: SandboxSpec,
    /// Bytes of its own layer.
    pub bytes: u64,
    /// Files and directories of its own layer.
    pub files: u64,
    /// Whether it survives the end of the warden and of the machine.
    pub durable: bool,
    /// When it was made.
    pub created: UnixMs,
}

const COLUMNS: &str = "id, name, sandbox, spec, bytes, files, durable, created";

impl Store {
    /// Inserts a snapshot; another of the user's that has its name has none from then on, in the same transaction.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the user is gone; [`StoreError::Conflict`] when the id is in use;
    /// [`StoreError::Invalid`] for a bad name.
    pub fn snapshot_insert(&self, _system: &SystemScope, user: UserId, new: &Snapshot) -> Result<(), StoreError> {
        if new.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > NAME_MAX) {
            return Err(StoreError::Invalid { what: format!("a name of no or more than {NAME_MAX} bytes") });
        }
        let spec = to_json(&new.spec)?;
        let values = params![
            blob(new.id),
            blob(user),
            new.name,
            blob(new.sandbox),
            spec,
            int(new.bytes),
            int(new.files),
            new.durable,
            int(new.created),
        ];
        self.write_things(|transaction| {
            transaction
                .prepare_cached("UPDATE snapshots SET name = NULL WHERE user = ?1 AND name = ?2")
                .and_then(|mut statement| statement.execute(params![blob(user), new.name]))
                .map_err(StoreError::at("free a snapshot's name"))?;
            // Without its user it would be nobody's; `SELECT` makes the two one step.
            let inserted = transaction
                .prepare_cached(
                    "INSERT INTO snapshots (id, user, name, sandbox, spec, bytes, files, durable, created)
                     SELECT ?1, id, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM users WHERE id = ?2",
                )
                .and_then(|mut statement| statement.execute(values))
                .map_err(|error| unique(error, "insert a snapshot", || "there is a snapshot of that id".to_owned()))?;
            one("user", inserted)
        })
    }

    /// Sets what is counted of a snapshot, and whether it is durable.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn snapshot_change(
        &self,
        _system: &SystemScope,
        user: UserId,
        snapshot: SnapshotId,
        bytes: u64,
        files: u64,
        durable: bool,
    ) -> Result<(), StoreError> {
        let values = params![blob(snapshot), blob(user), int(bytes), int(files), durable];
        self.write_things(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE snapshots SET bytes = ?3, files = ?4, durable = ?5 WHERE id = ?1 AND user = ?2")
                .and_then(|mut statement| statement.execute(values))
                .map_err(StoreError::at("change a snapshot"))?;
            one("snapshot", changed)
        })
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn snapshot_remove(&self, _system: &SystemScope, user: UserId, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.write_things(|transaction| {
            let removed = transaction
                .prepare_cached("DELETE FROM snapshots WHERE id = ?1 AND user = ?2")
                .and_then(|mut statement| statement.execute([blob(snapshot), blob(user)]))
                .map_err(StoreError::at("remove a snapshot"))?;
            one("snapshot", removed)
        })
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn snapshot_get(&self, scope: &UserScope, snapshot: SnapshotId) -> Result<Snapshot, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a snapshot");
            let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1 AND user = ?2");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let found =
                statement.query_row([blob(snapshot), blob(scope.user())], snapshot_of).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "snapshot" })
        })
    }

    /// The user's snapshots, newest first; only those of a sandbox, or of a name, where one is given.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a bad page.
    pub fn snapshot_list(
        &self,
        scope: &UserScope,
        sandbox: Option<SandboxId>,
        name: Option<&str>,
        page: PageAsk<'_>,
    ) -> Result<Page<Snapshot>, StoreError> {
        let (items, after) = (page.items()?, page.cursor(false)?);
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots INDEXED BY snapshots_by_user
             WHERE user = ?1 AND (created, id) < (?2, ?3)
             AND (?4 IS NULL OR sandbox = ?4) AND (?5 IS NULL OR name = ?5)
             ORDER BY created DESC, id DESC LIMIT ?6"
        );
        let values = params![blob(scope.user()), after.created, after.id, sandbox.map(blob), name, items + 1];
        self.read(|connection| {
            let at = StoreError::at("list snapshots");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let rows = statement.query_map(values, snapshot_of).map_err(&at)?;
            let snapshots = rows.collect::<Result<Vec<_>, _>>().map_err(&at)?;
            Ok(Page::cut(snapshots, items, |snapshot| (snapshot.created, snapshot.id)))
        })
    }

    /// Every snapshot of every user, for the server's start.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn snapshots_all(&self, _system: &SystemScope) -> Result<Vec<(UserId, Snapshot)>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("list all snapshots");
            let sql = format!("SELECT {COLUMNS}, user FROM snapshots ORDER BY created, id");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let rows = statement.query_map([], |row| Ok((id(row, 8)?, snapshot_of(row)?))).map_err(&at)?;
            rows.collect::<Result<_, _>>().map_err(&at)
        })
    }
}

fn snapshot_of(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot {
        id: id(row, 0)?,
        name: row.get(1)?,
        sandbox: id(row, 2)?,
        spec: json(row, 3)?,
        bytes: time(row, 4)?,
        files: time(row, 5)?,
        durable: row.get(6)?,
        created: time(row, 7)?,
    })
}
