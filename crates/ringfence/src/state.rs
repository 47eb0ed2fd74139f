//! The state directory: where it is, who owns which part of it, and what a running server leaves there for commands of
//! the same person.
//!
//! ```text
//! STATE/           0711  the supervisor's
//!   server/        0700  the server's: state.db, ledger/, spool/, blobs/
//!   warden/        0700  the warden's: templates/, layers/, images/
//!   run/           0711  warden.sock, up.lock, up.json (0600)
//!   first-key      0600  the first operator's key
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rf_types::{Code, Fault};
use rustix::process::{Gid, Uid, geteuid};
use serde::{Deserialize, Serialize};

/// The user and group id that the server runs as where the supervisor has root. Chosen: far above what distributions
/// give to people and services, and outside the ranges that hand out ids for containers; nobody else's by chance.
pub(crate) const SERVER_ID: u32 = 1_878_982_657;

/// Longest small file of ours that is read whole, bytes.
const SMALL_MAX: u64 = 64 * 1024;

/// The directory and its parts.
#[derive(Clone, Debug)]
pub(crate) struct State {
    root: PathBuf,
}

/// What a running supervisor writes for commands of the same person.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Running {
    /// The supervisor's pid.
    pub(crate) pid: u32,
    /// The server's address.
    pub(crate) url: String,
}

impl State {
    /// The directory that was named, else the usual one of who runs this.
    pub(crate) fn locate(named: Option<&Path>) -> Result<Self> {
        let root = match named {
            Some(path) => std::path::absolute(path).with_context(|| format!("`{}`", path.display()))?,
            None if geteuid().is_root() => PathBuf::from("/var/lib/ringfence"),
            None => match std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()) {
                Some(path) => PathBuf::from(path).join("ringfence"),
                None => home()?.join(".local/share/ringfence"),
            },
        };
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn server(&self) -> PathBuf {
        self.root.join("server")
    }

    pub(crate) fn warden(&self) -> PathBuf {
        self.root.join("warden")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn warden_socket(&self) -> PathBuf {
        self.run().join("warden.sock")
    }

    fn first_key_path(&self) -> PathBuf {
        self.root.join("first-key")
    }

    /// Makes what is missing and checks what is there: nobody else may own or write a part of it.
    pub(crate) fn prepare(&self) -> Result<()> {
        let me = geteuid().as_raw();
        let server = if me == 0 { SERVER_ID } else { me };
        // The server, which has another id under root, must come through to its part.
        for (path, mode, owner) in [
            (self.root.clone(), 0o711, me),
            (self.run(), 0o711, me),
            (self.warden(), 0o700, me),
            (self.server(), 0o700, server),
        ] {
            make_owned(&path, mode, owner)?;
        }
        if me == 0 {
            self.check_reachable()?;
        }
        Ok(())
    }

    /// Every directory above lets the server's id through; else it could not open its own files.
    fn check_reachable(&self) -> Result<()> {
        for above in self.root.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            let mode = fs::metadata(above).with_context(|| format!("`{}`", above.display()))?.permissions().mode();
            if mode & 0o001 == 0 {
                bail!(Fault::new(
                    Code::InvalidRequest,
                    format!("`{}` cannot be passed by the server, which runs without rights", above.display()),
                    format!("choose another place with --state, or run: chmod o+x {}", above.display()),
                ));
            }
        }
        Ok(())
    }

    /// Takes the lock that one supervisor at a time holds; it is given back when the file is dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.run().join("up.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                let at = self
                    .running()
                    .map_or(String::new(), |running| format!(" (process {}, {})", running.pid, running.url));
                bail!(Fault::new(
                    Code::Conflict,
                    format!("ringfence runs already on `{}`{at}", self.root.display()),
                    "stop it first, or choose another state directory with --state",
                ))
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
            }
        }
    }

    /// Tells commands of the same person where the server is.
    pub(crate) fn set_running(&self, running: &Running) -> Result<()> {
        replace(&self.run().join("up.json"), serde_json::to_string(running)?.as_bytes())
    }

    /// Nobody runs any more.
    pub(crate) fn clear_running(&self) {
        // What stays is overwritten by the next start, and names a process that is gone.
        let _ = fs::remove_file(self.run().join("up.json"));
    }

    /// Where the server of this state is, if a supervisor said so.
    pub(crate) fn running(&self) -> Option<Running> {
        let text = read_small(&self.run().join("up.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The first operator's key, if it is here and readable.
    pub(crate) fn first_key(&self) -> Option<String> {
        read_small(&self.first_key_path()).ok().map(|text| text.trim().to_owned()).filter(|key| !key.is_empty())
    }

    /// Moves the key that the server wrote to where only the supervisor's person reads it. `None` when there is none,
    /// as always but after the very first start.
    pub(crate) fn collect_first_key(&self) -> Result<Option<String>> {
        let from = self.server().join("first-key");
        let text = match read_small(&from) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", from.display())),
        };
        let key = text.trim().to_owned();
        replace(&self.first_key_path(), format!("{key}\n").as_bytes())?;
        fs::remove_file(&from).with_context(|| format!("cannot remove `{}`", from.display()))?;
        Ok(Some(key))
    }
}

/// The home directory of who runs this.
pub(crate) fn home() -> Result<PathBuf> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home)),
        None => bail!(Fault::invalid("the environment has no HOME")),
    }
}

/// Makes a directory of this mode and owner, or checks that the one there is `owner`'s.
fn make_owned(path: &Path, mode: u32, owner: u32) -> Result<()> {
    let made = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => false,
        Ok(_) => bail!("`{}` is not a directory", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot make `{}`", parent.display()))?;
            }
            DirBuilder::new().mode(mode).create(path).with_context(|| format!("cannot make `{}`", path.display()))?;
            true
        }
        Err(error) => return Err(error).with_context(|| format!("cannot look at `{}`", path.display())),
    };
    if made && owner != geteuid().as_raw() {
        rustix::fs::chown(path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
            .with_context(|| format!("cannot give `{}` to the server", path.display()))?;
    }
    let found = fs::symlink_metadata(path)?;
    if found.uid() != owner {
        bail!(Fault::new(
            Code::Conflict,
            format!("`{}` belongs to user id {}, not {owner}", path.display(), found.uid()),
            "was it made by another user, or by a run without root? choose another state directory with --state",
        ));
    }
    // The mask of whoever started us may have taken bits from the mode, and a wider one is not ours to accept.
    if found.permissions().mode() & 0o7777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of `{}`", path.display()))?;
    }
    Ok(())
}

/// Reads a small regular file, never through a link: some of these lie where another id may write.
fn read_small(path: &Path) -> io::Result<String> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    // INVARIANT: the flags are small positive numbers on every Linux.
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(SMALL_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Puts a file in place whole or not at all, readable for its owner only.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_have_their_modes_and_a_second_supervisor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        // The temporary directory itself is closed to others; the state beneath it is what is tried.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let state = State::locate(Some(&dir.path().join("s"))).unwrap();
        state.prepare().unwrap();
        state.prepare().unwrap();
        for (path, mode) in [(state.root().to_owned(), 0o711), (state.server(), 0o700), (state.warden(), 0o700)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "{}", path.display());
        }
        let owner = if geteuid().is_root() { SERVER_ID } else { geteuid().as_raw() };
        assert_eq!(fs::metadata(state.server()).unwrap().uid(), owner);
        let _held = state.lock().unwrap();
        assert!(state.lock().unwrap_err().to_string().contains("runs already"));
    }

    #[test]
    fn the_first_key_is_moved_and_a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State { root: dir.path().to_owned() };
        fs::create_dir(state.server()).unwrap();
        assert_eq!(state.collect_first_key().unwrap(), None);
        fs::write(state.server().join("first-key"), "rfk_x\n").unwrap();
        assert_eq!(state.collect_first_key().unwrap().as_deref(), Some("rfk_x"));
        assert_eq!(state.first_key().as_deref(), Some("rfk_x"));
        assert!(!state.server().join("first-key").exists());
        fs::write(dir.path().join("secret"), "theirs").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), state.server().join("first-key")).unwrap();
        assert!(state.collect_first_key().is_err());
        assert_eq!(state.first_key().as_deref(), Some("rfk_x"));
    }
}
