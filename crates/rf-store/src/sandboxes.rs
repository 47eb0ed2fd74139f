//! Rows of sandboxes: what lives, what lived, and what a user has of the host at this moment.
//!
//! ```text
//! insert ─▶ running ⇄ paused
//!              └─────────┴──▶ ended
//! ```
//! A row is inserted once its sandbox runs. What a user has at a moment is counted by who makes the sandboxes, claims
//! under way included; the sums here are of the rows.

use std::collections::BTreeMap;

use rf_types::{
    PauseKind, SandboxAbout, SandboxEnv, SandboxId, SandboxSpec, SandboxState, SnapshotId, TemplateName, UserId,
    units::UnixMs,
};
use rusqlite::{OptionalExtension, Row, params, types::Type};
use serde::Serialize;

use crate::{
    NewRepeat, Page, PageAsk, Store, StoreError, SystemScope, UserScope, lookup, repeats,
    sessions::name_fits,
    users::{blob, id, int, json, millis, one, time, to_json, unique, username_of},
};

/// What a user's live sandboxes may use in all, summed from their specs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Sandboxes alive.
    pub sandboxes: u32,
    /// Sum of their CPU limits, thousandths of one CPU.
    pub cpu_milli: u32,
    /// Sum of their memory limits, bytes.
    pub memory_bytes: u64,
    /// Sum of their disk limits, bytes.
    pub disk_bytes: u64,
}

/// A sandbox to be inserted.
#[derive(Clone, Debug)]
pub struct NewSandbox<'a> {
    /// Its id.
    pub id: SandboxId,
    /// What the user calls it, 1 to 100 characters; no two alive of one user's alike.
    pub name: Option<&'a str>,
    /// What it is to be.
    pub spec: &'a SandboxSpec,
    /// What its maker says of it.
    pub about: &'a SandboxAbout,
    /// The snapshot that it was made from.
    pub from_snapshot: Option<SnapshotId>,
}

/// What of a live sandbox may change.
#[derive(Clone, Copy, Debug)]
pub struct SandboxChange<'a> {
    /// As it was asked for, with the limits it has now.
    pub spec: &'a SandboxSpec,
    /// When its lease ends.
    pub lease_until: UnixMs,
    /// Whether it runs.
    pub state: SandboxState,
    /// What is kept of it while it is paused.
    pub pause_kind: Option<PauseKind>,
    /// Since when it is paused.
    pub paused: Option<UnixMs>,
    /// The snapshot that holds its files while nothing else of it is kept.
    pub saved: Option<SnapshotId>,
    /// When it last began to run.
    pub started: UnixMs,
    /// What its maker says of it.
    pub about: &'a SandboxAbout,
}

/// Which of a user's live sandboxes are asked for; by default all, the one that began last first.
#[derive(Clone, Copy, Debug, Default)]
pub struct SandboxFilter<'a> {
    /// Only those in this state.
    pub state: Option<SandboxState>,
    /// Only those that have every one of these labels.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// Only those made from this template.
    pub template: Option<&'a TemplateName>,
    /// Only those that began to run then or later.
    pub started_from: Option<UnixMs>,
    /// The one that began first comes first.
    pub oldest_first: bool,
}

/// A sandbox.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What the user calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it was asked to be.
    pub spec: SandboxSpec,
    /// Whether it runs, while it is alive.
    pub state: SandboxState,
    /// What is kept of it while it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_kind: Option<PauseKind>,
    /// Since when it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<UnixMs>,
    /// The snapshot that holds its files while nothing else of it is kept; it is in no list.
    #[serde(skip)]
    pub saved: Option<SnapshotId>,
    /// The snapshot that it was made from; may be gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<SnapshotId>,
    /// What its maker says of it.
    #[serde(skip)]
    pub about: SandboxAbout,
    /// When it was made.
    pub created: UnixMs,
    /// When it last began to run.
    pub started: UnixMs,
    /// When its lease ends; means nothing while it is paused.
    pub lease_until: UnixMs,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<UnixMs>,
    /// Why it ended, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_why: Option<String>,
}

/// The columns of a sandbox, in the order of [`sandbox_of`]; `s` is the table's name in every statement.
const COLUMNS: &str = "s.id, s.name, s.spec, s.created, s.lease_until, s.ended, s.ended_why, s.state,
    s.pause_kind, s.started, s.labels, s.env, s.auto_resume, s.idle_pause_ms, s.door, s.auto_pause, s.paused, s.saved,
    s.from_snapshot";
/// How many they are.
const COLUMNS_COUNT: usize = 19;

impl Store {
    /// Inserts a sandbox that runs already, made and counted by a caller who had it judged before.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the name or the id is in use; [`StoreError::NotFound`] when the user is gone;
    /// [`StoreError::Invalid`] for a bad name.
    pub fn sandbox_insert(
        &self,
        system: &SystemScope,
        user: UserId,
        new: &NewSandbox<'_>,
        created: UnixMs,
        lease_until: UnixMs,
    ) -> Result<(), StoreError> {
        self.sandbox_insert_once(system, user, new, created, lease_until, None)
    }

    /// As [`Store::sandbox_insert`]; in the same transaction it is noted for which request it was made.
    ///
    /// # Errors
    /// As for [`Store::sandbox_insert`].
    pub fn sandbox_insert_once(
        &self,
        _system: &SystemScope,
        user: UserId,
        new: &NewSandbox<'_>,
        created: UnixMs,
        lease_until: UnixMs,
        repeat: Option<&NewRepeat<'_>>,
    ) -> Result<(), StoreError> {
        if let Some(name) = new.name {
            name_fits(name)?;
        }
        let spec = to_json(new.spec)?;
        let limits = &new.spec.limits;
        let About { labels, env, auto_resume, idle_pause_ms, door, auto_pause } = About::of(new.about)?;
        let values = params![
            blob(new.id),
            blob(user),
            new.name,
            spec,
            limits.cpu_milli_max,
            int(limits.memory_bytes_max),
            int(limits.disk_bytes_max),
            int(created),
            int(lease_until),
            labels,
            env,
            auto_resume,
            idle_pause_ms,
            door,
            auto_pause,
            new.from_snapshot.map(blob),
        ];
        self.write_things(|transaction| {
            // Without its user it would be nobody's; `SELECT` makes the two one step.
            let inserted = transaction
                .prepare_cached(
                    "INSERT INTO sandboxes
                     (id, user, name, spec, cpu_milli, memory_bytes, disk_bytes, phase, created, started, lease_until,
                      labels, env, auto_resume, idle_pause_ms, door, auto_pause, from_snapshot)
                     SELECT ?1, id, ?3, ?4, ?5, ?6, ?7, 'running', ?8, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16
                     FROM users WHERE id = ?2",
                )
                .and_then(|mut statement| statement.execute(values))
                .map_err(|error| {
                    unique(error, "insert a sandbox", || "a sandbox of that name is alive already".to_owned())
                })?;
            one("user", inserted)?;
            repeat.map_or(Ok(()), |repeat| repeats::note(transaction, user, repeat, new.id, created))
        })
    }

    /// Sets what of a live sandbox may change.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also once it has ended.
    pub fn sandbox_change(
        &self,
        _system: &SystemScope,
        user: UserId,
        sandbox: SandboxId,
        change: &SandboxChange<'_>,
    ) -> Result<(), StoreError> {
        let SandboxChange { spec, lease_until, state, pause_kind, paused, saved, started, about } = *change;
        let text = to_json(spec)?;
        let About { labels, env, auto_resume, idle_pause_ms, door, auto_pause } = About::of(about)?;
        let values = params![
            blob(sandbox),
            blob(user),
            text,
            spec.limits.cpu_milli_max,
            int(spec.limits.memory_bytes_max),
            int(spec.limits.disk_bytes_max),
            int(lease_until),
            state.name(),
            pause_kind.map(PauseKind::name),
            int(started),
            labels,
            env,
            auto_resume,
            idle_pause_ms,
            door,
            auto_pause,
            paused.map(int),
            saved.map(blob),
        ];
        self.write_things(|transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE sandboxes SET spec = ?3, cpu_milli = ?4, memory_bytes = ?5, disk_bytes = ?6,
                     lease_until = ?7, state = ?8, pause_kind = ?9, started = ?10, labels = ?11, env = ?12,
                     auto_resume = ?13, idle_pause_ms = ?14, door = ?15, auto_pause = ?16, paused = ?17, saved = ?18
                     WHERE id = ?1 AND user = ?2 AND ended IS NULL",
                )
                .and_then(|mut statement| statement.execute(values))
                .map_err(StoreError::at("change a sandbox"))?;
            one("sandbox", changed)
        })
    }

    /// As [`Store::sandbox_end`], for the server's own work on whosoever sandbox.
    ///
    /// # Errors
    /// As for [`Store::sandbox_end`].
    pub fn sandbox_end_of(
        &self,
        system: &SystemScope,
        user: UserId,
        sandbox: SandboxId,
        why: &str,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        let scope = self.scope_of(system, user)?;
        self.sandbox_end(&scope, sandbox, why, now)
    }

    /// One sandbox, alive or ended.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn sandbox_get(&self, scope: &UserScope, sandbox: SandboxId) -> Result<Sandbox, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a sandbox");
            let sql = format!("SELECT {COLUMNS} FROM sandboxes s WHERE s.id = ?1 AND s.user = ?2");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let found = statement.query_row([blob(sandbox), blob(scope.user())], sandbox_of).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "sandbox" })
        })
    }

    /// The live sandbox of that name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn sandbox_by_name(&self, scope: &UserScope, name: &str) -> Result<Sandbox, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a sandbox");
            let sql =
                format!("SELECT {COLUMNS} FROM sandboxes s WHERE s.user = ?1 AND s.name = ?2 AND s.ended IS NULL");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let found = statement.query_row(params![blob(scope.user()), name], sandbox_of).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "sandbox" })
        })
    }

    /// The user's live sandboxes that pass the filter, by when they last began to run.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a bad page.
    pub fn sandbox_list(
        &self,
        scope: &UserScope,
        filter: SandboxFilter<'_>,
        page: PageAsk<'_>,
    ) -> Result<Page<Sandbox>, StoreError> {
        let (items, after) = (page.items()?, page.cursor(filter.oldest_first)?);
        let labels = match filter.labels {
            Some(labels) if !labels.is_empty() => Some(to_json(labels)?),
            Some(_) | None => None,
        };
        // Walks the index in order and stops when the page is full.
        let (after_it, order) = if filter.oldest_first { (">", "ASC") } else { ("<", "DESC") };
        let sql = format!(
            "SELECT {COLUMNS} FROM sandboxes s INDEXED BY sandboxes_by_start
             WHERE s.user = ?1 AND s.ended IS NULL AND (s.started, s.id) {after_it} (?2, ?3) AND s.started >= ?4
             AND (?5 IS NULL OR s.state = ?5)
             AND (?6 IS NULL OR json_extract(s.spec, '$.template') = ?6)
             AND (?7 IS NULL OR NOT EXISTS (
                 SELECT 1 FROM json_each(?7) wanted WHERE NOT EXISTS (
                     SELECT 1 FROM json_each(s.labels) has WHERE has.key = wanted.key AND has.value = wanted.value)))
             ORDER BY s.started {order}, s.id {order} LIMIT ?8"
        );
        let values = params![
            blob(scope.user()),
            after.created,
            after.id,
            int(filter.started_from.unwrap_or(0)),
            filter.state.map(SandboxState::name),
            filter.template.map(TemplateName::as_str),
            labels,
            items + 1,
        ];
        self.read(|connection| {
            let at = StoreError::at("list sandboxes");
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let rows = statement.query_map(values, sandbox_of).map_err(&at)?;
            let sandboxes = rows.collect::<Result<Vec<_>, _>>().map_err(&at)?;
            Ok(Page::cut(sandboxes, items, |sandbox| (sandbox.started, sandbox.id)))
        })
    }

    /// Marks a sandbox ended, so that it counts no more. The first end and its reason stay.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also when it had ended before.
    pub fn sandbox_end(&self, scope: &UserScope, sandbox: SandboxId, why: &str, now: UnixMs) -> Result<(), StoreError> {
        self.write_things(|transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE sandboxes SET phase = 'ended', ended = ?3, ended_why = ?4
                     WHERE id = ?1 AND user = ?2 AND ended IS NULL",
                )
                .and_then(|mut statement| statement.execute(params![blob(sandbox), blob(scope.user()), int(now), why]))
                .map_err(StoreError::at("end a sandbox"))?;
            one("sandbox", changed)
        })
    }

    /// What the user's live sandboxes may use in all; nothing for a user who is gone.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn usage(&self, scope: &UserScope) -> Result<Usage, StoreError> {
        self.read(|connection| lookup::usage(connection, scope.user()))
    }

    /// Every live sandbox of every user with its user's scope: for adoption at the server's start and for leases.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn sandboxes_alive_all(&self, _system: &SystemScope) -> Result<Vec<(UserScope, Sandbox)>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("list all sandboxes");
            let sql = format!(
                "SELECT {COLUMNS}, u.id, u.name FROM sandboxes s INDEXED BY sandboxes_alive_by_user
                 JOIN users u ON u.id = s.user WHERE s.ended IS NULL ORDER BY s.created, s.id"
            );
            let mut statement = connection.prepare_cached(&sql).map_err(&at)?;
            let rows = statement
                .query_map([], |row| {
                    let scope = UserScope::new(id(row, COLUMNS_COUNT)?, username_of(row, COLUMNS_COUNT + 1)?);
                    Ok((scope, sandbox_of(row)?))
                })
                .map_err(&at)?;
            rows.collect::<Result<_, _>>().map_err(&at)
        })
    }

    /// Forgets what ended before `before`: sandboxes, revoked and expired keys, sessions, used and expired tokens,
    /// removed machines; at most 1,000 rows of each, so that no caller waits long. Returns how many went.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn prune(&self, _system: &SystemScope, before: UnixMs) -> Result<usize, StoreError> {
        const STATEMENTS: [&str; 5] = [
            "DELETE FROM sandboxes WHERE id IN (SELECT id FROM sandboxes WHERE ended < ?1 LIMIT 1000)",
            "DELETE FROM api_keys WHERE id IN
             (SELECT id FROM api_keys WHERE revoked < ?1 OR expires < ?1 LIMIT 1000)",
            "DELETE FROM sessions WHERE id IN
             (SELECT id FROM sessions WHERE ended < ?1 OR expires < ?1 LIMIT 1000)",
            "DELETE FROM enrolment_tokens WHERE hash IN
             (SELECT hash FROM enrolment_tokens WHERE used_at < ?1 OR expires < ?1 LIMIT 1000)",
            "DELETE FROM machines WHERE id IN (SELECT id FROM machines WHERE removed < ?1 LIMIT 1000)",
        ];
        let mut pruned = 0;
        for sql in STATEMENTS {
            pruned += self.write(|transaction| {
                transaction.execute(sql, [int(before)]).map_err(StoreError::at("prune what ended"))
            })?;
        }
        Ok(pruned)
    }
}

fn sandbox_of(row: &Row<'_>) -> rusqlite::Result<Sandbox> {
    Ok(Sandbox {
        id: id(row, 0)?,
        name: row.get(1)?,
        spec: json(row, 2)?,
        created: time(row, 3)?,
        lease_until: time(row, 4)?,
        ended: millis(row, 5)?,
        ended_why: row.get(6)?,
        state: match row.get_ref(7)?.as_str()? {
            "running" => SandboxState::Running,
            "paused" => SandboxState::Paused,
            _ => return Err(rusqlite::Error::InvalidColumnType(7, "state".to_owned(), Type::Text)),
        },
        pause_kind: row.get_ref(8)?.as_str_or_null()?.map(|text| pause_kind(text, 8)).transpose()?,
        started: time(row, 9)?,
        about: SandboxAbout {
            labels: json(row, 10)?,
            env: json::<SandboxEnv>(row, 11)?,
            auto_resume: row.get(12)?,
            idle_pause_ms: millis(row, 13)?,
            door: json(row, 14)?,
            auto_pause: pause_kind(row.get_ref(15)?.as_str()?, 15)?,
        },
        paused: millis(row, 16)?,
        saved: maybe_id(row, 17)?,
        from_snapshot: maybe_id(row, 18)?,
    })
}

fn pause_kind(text: &str, index: usize) -> rusqlite::Result<PauseKind> {
    match text {
        "memory" => Ok(PauseKind::Memory),
        "files" => Ok(PauseKind::Files),
        _ => Err(rusqlite::Error::InvalidColumnType(index, "pause kind".to_owned(), Type::Text)),
    }
}

fn maybe_id(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<SnapshotId>> {
    let bytes = row.get::<_, Option<[u8; 16]>>(index)?;
    Ok(bytes.map(|bytes| SnapshotId::from_bits(u128::from_be_bytes(bytes))))
}

/// What a maker says of a sandbox, as columns.
struct About {
    labels: String,
    env: String,
    auto_resume: bool,
    idle_pause_ms: Option<i64>,
    door: String,
    auto_pause: &'static str,
}

impl About {
    fn of(about: &SandboxAbout) -> Result<Self, StoreError> {
        Ok(Self {
            labels: to_json(&about.labels)?,
            env: to_json(&about.env)?,
            auto_resume: about.auto_resume,
            idle_pause_ms: about.idle_pause_ms.map(int),
            door: to_json(&about.door)?,
            auto_pause: about.auto_pause.name(),
        })
    }
}
