//! The schema and how it comes to be: numbered files, each applied once, each remembered with its checksum.
//!
//! A store that a newer version wrote, whose history differs from ours, or whose objects are not what the files make,
//! is refused by name before anything is read from it.

use std::collections::BTreeMap;

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;

/// `application_id` of our files: "RFst". Chosen; tells our file from any other SQLite database.
const APPLICATION_ID: i32 = 0x5246_7374;

/// One step of the schema.
struct Migration {
    /// The file's name; its number is its place in [`MIGRATIONS`], from 1.
    name: &'static str,
    sql: &'static str,
}

/// Every step, oldest first. A published step is never edited: its checksum is in stores already.
const MIGRATIONS: &[Migration] = &[
    Migration { name: "0001_first", sql: include_str!("migrations/0001_first.sql") },
    Migration { name: "0002_template_config", sql: include_str!("migrations/0002_template_config.sql") },
    Migration { name: "0003_sandbox_life", sql: include_str!("migrations/0003_sandbox_life.sql") },
    Migration { name: "0004_snapshots", sql: include_str!("migrations/0004_snapshots.sql") },
    Migration { name: "0005_cascades", sql: include_str!("migrations/0005_cascades.sql") },
];

/// Brings the store to this version's schema, or refuses it.
pub(crate) fn migrate(connection: &mut Connection, path: &str) -> Result<(), StoreError> {
    let at = StoreError::at("read its schema");
    let id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(&at)?;
    let objects: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(&at)?;
    if id != APPLICATION_ID && (id != 0 || objects != 0) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    apply(connection)?;
    compare_objects(connection)
}

fn apply(connection: &mut Connection) -> Result<(), StoreError> {
    let at = StoreError::at("apply a migration");
    // IMMEDIATE: two openers cannot both see a step missing.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&at)?;
    transaction
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS migrations (
                 number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL
             ) STRICT;",
        )
        .map_err(&at)?;
    let applied = {
        let mut statement =
            transaction.prepare("SELECT number, name, checksum FROM migrations ORDER BY number").map_err(&at)?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)))
            .map_err(&at)?;
        rows.collect::<Result<Vec<_>, _>>().map_err(&at)?
    };
    for (index, (number, name, sum)) in applied.iter().enumerate() {
        let Some(ours) = MIGRATIONS.get(index) else {
            return Err(StoreError::SchemaNewer { name: name.clone() });
        };
        if usize::try_from(*number) != Ok(index + 1) || name != ours.name || *sum != checksum(ours) {
            return Err(StoreError::SchemaAltered { what: format!("migration `{name}`") });
        }
    }
    for (number, migration) in (1_i64..).zip(MIGRATIONS).skip(applied.len()) {
        transaction.execute_batch(migration.sql).map_err(&at)?;
        transaction
            .execute(
                "INSERT INTO migrations (number, name, checksum) VALUES (?1, ?2, ?3)",
                (number, migration.name, checksum(migration)),
            )
            .map_err(&at)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(&at)?;
    transaction.commit().map_err(&at)
}

fn checksum(migration: &Migration) -> String {
    blake3::hash(migration.sql.as_bytes()).to_hex().to_string()
}

/// Compares the store's objects with those that the migrations make in an empty database.
fn compare_objects(connection: &Connection) -> Result<(), StoreError> {
    let mut fresh = Connection::open_in_memory().map_err(StoreError::at("open a database in memory"))?;
    apply(&mut fresh)?;
    let wanted = objects(&fresh)?;
    let found = objects(connection)?;
    let differs = wanted
        .iter()
        .find(|(name, sql)| found.get(*name) != Some(*sql))
        .map(|(name, _)| name)
        .or_else(|| found.keys().find(|name| !wanted.contains_key(*name)));
    match differs {
        Some(name) => Err(StoreError::SchemaAltered { what: format!("`{name}`") }),
        None => Ok(()),
    }
}

fn objects(connection: &Connection) -> Result<BTreeMap<String, String>, StoreError> {
    let at = StoreError::at("read its schema");
    // `sqlite_stat*` tables come from `PRAGMA optimize`, the automatic indexes have no text; neither is ours.
    let mut statement = connection
        .prepare("SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
        .map_err(&at)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&at)?;
    rows.collect::<Result<_, _>>().map_err(&at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "x").unwrap();
        connection
    }

    #[test]
    fn migrating_again_changes_nothing() {
        let mut connection = made();
        let before = objects(&connection).unwrap();
        migrate(&mut connection, "x").unwrap();
        assert_eq!(objects(&connection).unwrap(), before);
    }

    #[test]
    fn a_store_of_the_first_schema_is_brought_up_and_keeps_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT;")
            .unwrap();
        connection.execute_batch(MIGRATIONS[0].sql).unwrap();
        connection
            .execute("INSERT INTO migrations VALUES (1, ?1, ?2)", (MIGRATIONS[0].name, checksum(&MIGRATIONS[0])))
            .unwrap();
        connection
            .execute(
                "INSERT INTO templates (name, layers, source, digest, created) VALUES ('a', '[]', 's', 'd', 1)",
                [],
            )
            .unwrap();
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        apply(&mut connection).unwrap();
        let kept: (String, String) = connection
            .query_row("SELECT source, config FROM templates", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(kept, ("s".to_owned(), "{}".to_owned()));
    }

    #[test]
    fn a_newer_store_is_refused_by_name() {
        let mut connection = made();
        connection
            .execute(
                "INSERT INTO migrations VALUES (?1, '9999_later', 'x')",
                [i64::try_from(MIGRATIONS.len()).unwrap() + 1],
            )
            .unwrap();
        let error = migrate(&mut connection, "x").unwrap_err();
        assert!(matches!(&error, StoreError::SchemaNewer { name } if name == "9999_later"), "{error}");
    }

    #[test]
    fn an_altered_migration_is_refused_by_name() {
        let mut connection = made();
        connection.execute("UPDATE migrations SET checksum = 'x' WHERE number = 1", []).unwrap();
        let error = migrate(&mut connection, "x").unwrap_err();
        assert_eq!(error.to_string(), "the store's schema was altered: migration `0001_first`");
    }

    #[test]
    fn altered_objects_are_refused_by_name() {
        for (change, name) in [
            ("DROP INDEX sandboxes_alive_by_name", "sandboxes_alive_by_name"),
            ("ALTER TABLE users ADD COLUMN x TEXT", "users"),
            ("CREATE TABLE stranger (x)", "stranger"),
            ("CREATE TRIGGER sly AFTER INSERT ON users BEGIN SELECT 1; END", "sly"),
        ] {
            let mut connection = made();
            connection.execute_batch(change).unwrap();
            let error = migrate(&mut connection, "x").unwrap_err();
            assert_eq!(error.to_string(), format!("the store's schema was altered: `{name}`"));
        }
    }

    #[test]
    fn another_programs_database_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(migrate(&mut connection, "x"), Err(StoreError::Foreign { .. })));
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "application_id", 7).unwrap();
        assert!(matches!(migrate(&mut connection, "x"), Err(StoreError::Foreign { .. })));
    }
}
