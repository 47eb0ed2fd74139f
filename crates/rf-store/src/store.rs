//! The file, its connections, and who may have which.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    ops::Deref,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, config::DbConfig};

use crate::{StoreError, SystemScope, schema};

/// Readers at once; more wait. Chosen: a read takes some 10 us, so four serve 400,000 a second.
const READERS: usize = 4;
/// How long SQLite waits for a lock of another connection before it gives up, milliseconds. Chosen, so that an answer
/// still goes out within 2 s; only a second program could hold one that long.
const BUSY_MS: u64 = 1_000;
/// How often the write-ahead log is copied back by the checkpointer, so that no commit has to. Chosen.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Pages after which a commit checkpoints by itself, should the checkpointer not keep up; 4 KiB each. Chosen.
const CHECKPOINT_PAGES_MAX: u32 = 16_384;
/// Prepared statements kept per connection. More than there are in this crate.
const STATEMENTS_MAX: usize = 128;

/// The store. Clones are handles on the same one.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

// Dropped in this order: the checkpointer's thread, the connections, and only then the lock.
struct Inner {
    _checkpointer: Checkpointer,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    reader_back: Condvar,
    /// Counts what was written but for what [`Store::write_things`] writes.
    changes: AtomicU64,
    // Held for as long as the store is open: one process at a time.
    _lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens or makes the store in `dir` (made with mode 0700 if missing): `state.db`, its `-wal` and `-shm`, and
    /// `state.lock`. The [`SystemScope`] is the only one there is.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another holds it; [`StoreError::Foreign`], [`StoreError::SchemaNewer`] and
    /// [`StoreError::SchemaAltered`] for a file that is not ours to use; [`StoreError::Open`] and
    /// [`StoreError::Sqlite`] with the cause.
    pub fn open(dir: &Path) -> Result<(Self, SystemScope), StoreError> {
        let failed = |step, path: &Path| {
            let path = path.display().to_string();
            move |source| StoreError::Open { step, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make the directory of", dir))?;
        let lock_path = dir.join("state.lock");
        let lock = private_file(&lock_path).map_err(failed("make the lock of", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: dir.display().to_string() }),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        let path = dir.join("state.db");
        // Made here so that it is never readable by others, not even for the moment before a chmod. SQLite gives
        // `-wal` and `-shm` the same mode.
        drop(private_file(&path).map_err(failed("make", &path))?);

        let mut writer = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let at = StoreError::at("set up its connection");
        // Returns the mode it has now; on a file system without shared memory it would stay another.
        let mode: String = writer.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(&at)?;
        if mode != "wal" {
            return Err(StoreError::Open {
                step: "use a write-ahead log for",
                path: path.display().to_string(),
                source: std::io::Error::other(format!("journal mode is `{mode}`")),
            });
        }
        writer.pragma_update(None, "synchronous", "NORMAL").map_err(&at)?;
        writer.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES_MAX).map_err(&at)?;
        schema::migrate(&mut writer, &path.display().to_string())?;
        let readers = (0..READERS)
            .map(|_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let inner = Arc::new(Inner {
            _checkpointer: Checkpointer::start(path)?,
            writer: Mutex::new(writer),
            readers: Mutex::new(readers),
            reader_back: Condvar::new(),
            changes: AtomicU64::new(0),
            _lock: lock,
        });
        Ok((Self(inner), SystemScope::new()))
    }

    /// Runs `read` on a connection that cannot write.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let reader = Reader::take(&self.0);
        read(&reader)
    }

    /// Counts what is written to anything that a credential, a user or what they may have is read from. What was read
    /// after this was asked still stands for as long as it says the same: nobody but this store writes to the file, and
    /// whoever changed something hears of it only after it was counted.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Runs `write` in one IMMEDIATE transaction, which is committed if it returns `Ok` and rolled back otherwise.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let written = self.write_things(write);
        // Also when the commit failed, whatever became of it.
        self.0.changes.fetch_add(1, Ordering::AcqRel);
        written
    }

    /// As [`Store::write`], for rows of sandboxes, snapshots and the like alone: see [`Store::changes`].
    pub(crate) fn write_things<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut writer = lock(&self.0.writer);
        let transaction = writer
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::at("begin a transaction"))?;
        let value = write(&transaction)?;
        transaction.commit().map_err(StoreError::at("commit a transaction"))?;
        Ok(value)
    }

    /// Proves that the store can be read and written, for readiness: takes the write lock and gives it back.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when it cannot.
    pub fn check(&self) -> Result<(), StoreError> {
        self.read(|connection| {
            connection
                .query_row("SELECT count(*) FROM migrations", [], |_| Ok(()))
                .map_err(StoreError::at("read its migrations"))
        })?;
        self.write_things(|_| Ok(()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock leaves a rolled back transaction behind, never half a one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let at = StoreError::at("open a connection");
    // NO_MUTEX: a connection is in one thread at a time, which the borrow checker holds.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(&at)?;
    connection.busy_timeout(Duration::from_millis(BUSY_MS)).map_err(&at)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(&at)?;
    connection.pragma_update(None, "trusted_schema", false).map_err(&at)?;
    connection.pragma_update(None, "cache_size", -8_192).map_err(&at)?;
    // Otherwise a join is planned anew for each value bound to it, which takes longer than to run it. Our plans do not
    // depend on values: https://www.sqlite.org/queryplanner-ng.html#qpstab
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(&at)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// Copies the log back from a connection of its own, where waiting for the disk holds nobody up.
struct Checkpointer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    fn start(path: PathBuf) -> Result<Self, StoreError> {
        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Acquire) {
                // Parked rather than asleep, so that dropping the store can wake it.
                thread::park_timeout(CHECKPOINT_EVERY);
                // PASSIVE neither waits for readers and writers nor makes them wait. When the disk is full or gone
                // the next commit says so to somebody who can be told.
                let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            }
        };
        let thread = thread::Builder::new().name("store-checkpoint".to_owned()).spawn(run).map_err(|source| {
            StoreError::Open { step: "start the checkpointer of", path: path.display().to_string(), source }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It panics nowhere; if it did there would be nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// A reader on loan.
struct Reader<'a> {
    inner: &'a Inner,
    // `None` only in `drop`.
    connection: Option<Connection>,
}

impl<'a> Reader<'a> {
    fn take(inner: &'a Inner) -> Self {
        let mut readers = lock(&inner.readers);
        loop {
            if let Some(connection) = readers.pop() {
                return Self { inner, connection: Some(connection) };
            }
            readers = inner.reader_back.wait(readers).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Deref for Reader<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a reader keeps its connection until it is dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        lock(&self.inner.readers).extend(self.connection.take());
        self.inner.reader_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_do_not_wait_for_a_writer_nor_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let (store, system) = Store::open(dir.path()).unwrap();
        store.user_create_first(&system, &"ann".parse().unwrap(), 1).unwrap();
        let disabled = || {
            store.read(|connection| {
                let asked =
                    connection.query_row("SELECT count(*) FROM users WHERE disabled IS NOT NULL", [], |row| row.get(0));
                asked.map_err(StoreError::at("count"))
            })
        };
        store
            .write(|transaction| {
                transaction.execute("UPDATE users SET disabled = 2", []).map_err(StoreError::at("change"))?;
                // More at once than there are readers, in the middle of a write.
                thread::scope(|threads| {
                    let handles: Vec<_> = (0..4 * READERS).map(|_| threads.spawn(|| disabled().unwrap())).collect();
                    for handle in handles {
                        let count: u32 = handle.join().unwrap();
                        assert_eq!(count, 0, "not yet committed");
                    }
                });
                Ok(())
            })
            .unwrap();
        assert_eq!(disabled().unwrap(), 1);
    }
}
