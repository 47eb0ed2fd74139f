//! What the machine keeps on disk, one directory for each server: its key, its name there, which execs it has seen.
//!
//! The key is for one server alone, so what it signs means nothing to another.

use std::{
    collections::{HashSet, VecDeque},
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signer, SigningKey};
use rf_types::{Code, ExecId, Fault, MachineId};
use rf_wire::machine::{from_hex, to_hex};
use serde::{Deserialize, Serialize};

/// Most exec ids that are remembered. Chosen: weeks of heavy use; 2.4 MB of file, which is written anew at twice that.
const SEEN_MAX: usize = 65_536;
/// How often the lock is tried, and the pause in between: half a second in all.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// Longest state file that is read, bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// Who the machine is at its server.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enrolled {
    /// Its id.
    pub(crate) machine: MachineId,
    /// The server's name for itself when it enrolled.
    pub(crate) server: String,
    /// The origin at which it enrolled.
    pub(crate) origin: String,
}

/// The state directory of one server, locked.
#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
    _lock: File,
}

/// The machine's key. Its debug form says nothing.
pub(crate) struct MachineKey(SigningKey);

impl MachineKey {
    /// The public half in hex.
    pub(crate) fn public(&self) -> String {
        to_hex(self.0.verifying_key().as_bytes())
    }

    /// A signature in hex.
    pub(crate) fn sign(&self, message: &[u8]) -> String {
        to_hex(&self.0.sign(message).to_bytes())
    }
}

impl std::fmt::Debug for MachineKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineKey(..)")
    }
}

impl State {
    /// Opens the directory for the server at `origin` below `base`, and locks it: one program for each machine.
    pub(crate) fn open(base: &Path, origin: &str) -> io::Result<Self> {
        let slug: String =
            origin.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect();
        let directory = base.join(slug);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(directory.join("lock"))?;
        // A program that has just ended may live on for an instant in a child that it was about to start.
        for last in (0..LOCK_TRIES).map(|try_| try_ + 1 == LOCK_TRIES) {
            match lock.try_lock() {
                Ok(()) => break,
                Err(_) if !last => std::thread::sleep(LOCK_PAUSE),
                Err(_) => {
                    let message = "`ringfence join` runs already for this server";
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
                }
            }
        }
        Ok(Self { directory: directory.canonicalize()?, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// An empty directory for commands' temporary files.
    pub(crate) fn fresh_private(&self) -> io::Result<PathBuf> {
        let path = self.directory.join("tmp");
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }

    fn read(&self, name: &str) -> io::Result<Option<String>> {
        match File::open(self.directory.join(name)) {
            Ok(file) => {
                let mut text = String::new();
                file.take(FILE_MAX).read_to_string(&mut text)?;
                Ok(Some(text))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a file in place, whole or not at all, durably.
    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        put(&self.directory, name, text)?;
        File::open(&self.directory)?.sync_all()
    }

    /// The key, made at the first call. One that others could read is refused.
    pub(crate) fn key(&self) -> io::Result<MachineKey> {
        if let Some(text) = self.read("key")? {
            let mode = std::fs::metadata(self.directory.join("key"))?.permissions().mode();
            if mode & 0o077 != 0 {
                let message = "the key file can be read by others: remove it and join with a new token";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            let seed = from_hex::<32>(text.trim_end())
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the key file is damaged"))?;
            return Ok(MachineKey(SigningKey::from_bytes(&seed)));
        }
        self.new_key()
    }

    /// A new key in place of the old one.
    pub(crate) fn new_key(&self) -> io::Result<MachineKey> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        self.replace("key", &to_hex(&seed))?;
        Ok(MachineKey(SigningKey::from_bytes(&seed)))
    }

    /// Who the machine is, if it has enrolled.
    pub(crate) fn enrolled(&self) -> io::Result<Option<Enrolled>> {
        let Some(text) = self.read("machine.json")? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Forgets who the machine was.
    pub(crate) fn forget_enrolled(&self) -> io::Result<()> {
        std::fs::remove_file(self.directory.join("machine.json"))
    }

    /// Keeps who the machine is.
    pub(crate) fn set_enrolled(&self, enrolled: &Enrolled) -> io::Result<()> {
        self.replace("machine.json", &serde_json::to_string(enrolled)?)
    }

    /// The execs that were seen.
    pub(crate) fn seen(&self) -> io::Result<Seen> {
        let text = self.read("execs")?.unwrap_or_default();
        // A last line without its end was cut by a crash; its exec had not been started.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut order: VecDeque<ExecId> = whole.lines().filter_map(|line| line.parse().ok()).collect();
        while order.len() > SEEN_MAX {
            order.pop_front();
        }
        let file = rewrite(&self.directory, &order)?;
        let (known, lines) = (order.iter().copied().collect(), order.len());
        Ok(Seen { directory: self.directory.clone(), known, order, file, lines, most: SEEN_MAX })
    }
}

/// Writes the list of execs anew; gives it, to go on with it.
fn rewrite(directory: &Path, order: &VecDeque<ExecId>) -> io::Result<File> {
    let all: String = order.iter().map(|exec| format!("{exec}\n")).collect();
    let file = put(directory, "execs", &all)?;
    // From here on it is the list, whatever else fails.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(file)
}

/// Writes beside, syncs, renames; gives the file, to go on at its end.
fn put(directory: &Path, name: &str, text: &str) -> io::Result<File> {
    let beside = directory.join(format!("{name}.new"));
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, directory.join(name))?;
    Ok(file)
}

/// The execs that this machine has been asked to start, also before it was restarted.
#[derive(Debug)]
pub(crate) struct Seen {
    directory: PathBuf,
    known: HashSet<ExecId>,
    order: VecDeque<ExecId>,
    file: File,
    /// Execs in the file, those that are no longer remembered included.
    lines: usize,
    /// How many are remembered.
    most: usize,
}

impl Seen {
    /// Notes `exec` before it starts. It is written and not synced: so it outlives this program, which is what it is for. A
    /// loss of power takes what was written last, and the session with it, and no server orders in one session what it
    /// ordered in another; to sync each would cost a disk's write before every command.
    ///
    /// # Errors
    /// `place_lost` when it was noted before: it is never started again. `disk_full` when it cannot be noted: then it
    /// is not started either.
    pub(crate) fn note(&mut self, exec: ExecId) -> Result<(), Fault> {
        if self.known.contains(&exec) {
            return Err(Fault::new(
                Code::PlaceLost,
                format!(
                    "{exec} was started on this machine before; how it ended is not known, and it is not run again"
                ),
                "start another exec",
            ));
        }
        // A line of its own, also after one that could be written in part only.
        self.file.write_all(format!("\n{exec}\n").as_bytes()).map_err(|error| {
            Fault::new(Code::DiskFull, format!("the machine cannot note the exec before it starts: {error}"), "")
        })?;
        self.known.insert(exec);
        self.order.push_back(exec);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.lines += 1;
        // Where it cannot be written anew the old one goes on, and it is tried again.
        if self.lines >= 2 * self.most
            && let Ok(file) = rewrite(&self.directory, &self.order)
        {
            self.file = file;
            self.lines = self.order.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_that_was_seen_is_refused_also_after_a_restart() {
        let base = tempfile::tempdir().unwrap();
        let exec = ExecId::random();
        {
            let state = State::open(base.path(), "https://a:1").unwrap();
            let mut seen = state.seen().unwrap();
            seen.note(exec).unwrap();
            assert_eq!(seen.note(exec).unwrap_err().code, Code::PlaceLost);
        }
        let state = State::open(base.path(), "https://a:1").unwrap();
        let mut seen = state.seen().unwrap();
        assert_eq!(seen.note(exec).unwrap_err().code, Code::PlaceLost);
        seen.note(ExecId::random()).unwrap();
    }

    #[test]
    fn a_line_that_was_cut_off_hides_none_after_it() {
        let base = tempfile::tempdir().unwrap();
        let (cut, exec) = (ExecId::random().to_string(), ExecId::random());
        {
            let state = State::open(base.path(), "https://a:1").unwrap();
            let mut seen = state.seen().unwrap();
            // As a full disk leaves it.
            seen.file.write_all(&cut.as_bytes()[..9]).unwrap();
            seen.note(exec).unwrap();
        }
        let state = State::open(base.path(), "https://a:1").unwrap();
        assert_eq!(state.seen().unwrap().note(exec).unwrap_err().code, Code::PlaceLost);
    }

    #[test]
    fn the_list_of_execs_is_bounded_also_while_it_runs_and_holds_the_newest() {
        let base = tempfile::tempdir().unwrap();
        let state = State::open(base.path(), "https://a:1").unwrap();
        let mut seen = state.seen().unwrap();
        seen.most = 50;
        let all: Vec<_> = (0..1_000).map(|_| ExecId::random()).collect();
        for exec in &all {
            seen.note(*exec).unwrap();
            let lines = state.read("execs").unwrap().unwrap().lines().filter(|line| !line.is_empty()).count();
            assert!(lines < 2 * seen.most, "{lines} lines");
        }
        drop((seen, state));
        let mut seen = State::open(base.path(), "https://a:1").unwrap().seen().unwrap();
        for exec in &all[950..] {
            assert_eq!(seen.note(*exec).unwrap_err().code, Code::PlaceLost);
        }
    }

    #[test]
    fn the_key_is_the_owners_alone_one_for_each_server_and_not_in_debug_output() {
        let base = tempfile::tempdir().unwrap();
        let state = State::open(base.path(), "https://a:1").unwrap();
        let key = state.key().unwrap();
        let mode = std::fs::metadata(state.directory().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(state.key().unwrap().public(), key.public());
        let other = State::open(base.path(), "https://b:1").unwrap();
        assert_ne!(other.key().unwrap().public(), key.public());
        assert_eq!(format!("{key:?}"), "MachineKey(..)");
        std::fs::set_permissions(state.directory().join("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(state.key().is_err(), "a key that others can read is refused");
    }

    #[test]
    fn one_program_for_each_server() {
        let base = tempfile::tempdir().unwrap();
        let first = State::open(base.path(), "https://a:1").unwrap();
        assert!(State::open(base.path(), "https://a:1").is_err());
        drop(first);
        assert!(State::open(base.path(), "https://a:1").is_ok());
    }
}
