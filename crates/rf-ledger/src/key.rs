//! The installation's key of the ledger: seals records and the head, and keys the hashes that stand for secrets.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rf_types::{Code, Fault};
use zeroize::Zeroizing;

use crate::chain::{from_hex, hex};

/// 32 random bytes, kept in a file of mode 0600 beside the ledger and nowhere else. Prints nothing.
#[derive(Clone)]
pub struct LedgerKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerKey")
    }
}

impl LedgerKey {
    /// The key of exactly these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads the key from `path`: 64 lower-case hex digits and a line feed.
    ///
    /// # Errors
    /// `ledger_unavailable` when it cannot be read, is not a key, or others than its owner may read or write it.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let fault = |what: String| {
            Fault::new(
                Code::LedgerUnavailable,
                format!("cannot use the ledger's key `{}`: {what}", path.display()),
                "put the installation's key back, mode 0600",
            )
        };
        let file = File::open(path).map_err(|error| fault(error.to_string()))?;
        let meta = file.metadata().map_err(|error| fault(error.to_string()))?;
        if meta.mode() & 0o077 != 0 {
            return Err(fault(format!("its mode is {:o}, but others must not reach it", meta.mode() & 0o777)));
        }
        // One byte more than a key has, so that a longer file is seen and not cut short in silence.
        let mut text = Zeroizing::new(Vec::with_capacity(66));
        file.take(66).read_to_end(&mut text).map_err(|error| fault(error.to_string()))?;
        let digits = text.strip_suffix(b"\n").unwrap_or(&text);
        let bytes = from_hex::<32>(digits).ok_or_else(|| fault("it is not 64 lower-case hex digits".to_owned()))?;
        Ok(Self::from_bytes(bytes))
    }

    /// Reads the key from `path`, or makes a new one there when there is none.
    ///
    /// # Errors
    /// As [`LedgerKey::load`]; and when a new one cannot be written.
    pub fn load_or_create(path: &Path) -> Result<Self, Fault> {
        match Self::create(path) {
            Ok(key) => Ok(key),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(error) => Err(Fault::new(
                Code::LedgerUnavailable,
                format!("cannot make the ledger's key `{}`: {error}", path.display()),
                "make its directory writable for the server, or free disk space",
            )),
        }
    }

    fn create(path: &Path) -> io::Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut()).map_err(|error| io::Error::other(error.to_string()))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Beside it and then a link: a crash in between leaves no half key, and link(2) never replaces a key.
        let beside = dir.join(format!(".key.{}", std::process::id()));
        let made = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            let text = Zeroizing::new(hex(bytes.as_ref()) + "\n");
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::hard_link(&beside, path)?;
            File::open(dir)?.sync_all()
        })();
        // Also after a failure; what is left then is only our own unused half.
        let _ = std::fs::remove_file(&beside);
        made.map(|()| Self(bytes))
    }

    /// A key for one purpose; the others cannot be found from it.
    fn derive(&self, context: &'static str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, self.0.as_ref()))
    }

    pub(crate) fn sealer(&self) -> Sealer {
        Sealer {
            record: self.derive("ringfence ledger 2026 seal of a record"),
            head: self.derive("ringfence ledger 2026 seal of the head"),
            base: self.derive("ringfence ledger 2026 seal of the base"),
        }
    }

    pub(crate) fn redaction(&self) -> Zeroizing<[u8; 32]> {
        self.derive("ringfence ledger 2026 hash that stands for a secret")
    }
}

/// Makes and checks seals.
#[derive(Clone)]
pub(crate) struct Sealer {
    record: Zeroizing<[u8; 32]>,
    head: Zeroizing<[u8; 32]>,
    base: Zeroizing<[u8; 32]>,
}

impl Sealer {
    /// The first 16 bytes of the keyed hash of a record's hash.
    pub(crate) fn record(&self, hash: &[u8; 32]) -> [u8; 16] {
        let full = blake3::keyed_hash(&self.record, hash);
        let mut seal = [0; 16];
        seal.copy_from_slice(&full.as_bytes()[..16]);
        seal
    }

    /// Whether `seal` is the seal of `hash`; takes the same time whatever differs.
    pub(crate) fn holds(&self, hash: &[u8; 32], seal: &[u8; 16]) -> bool {
        let right = self.record(hash);
        right.iter().zip(seal).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }

    /// The keyed hash of a head's text.
    pub(crate) fn head(&self, text: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.head, text)
    }

    /// The seal of a base's text.
    pub(crate) fn base(&self, text: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.base, text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_then_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = LedgerKey::load_or_create(&path).unwrap();
        let read = LedgerKey::load_or_create(&path).unwrap();
        assert_eq!(made.0, read.0);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert_eq!(format!("{made:?}"), "LedgerKey");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        LedgerKey::load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(LedgerKey::load(&path).unwrap_err().code, Code::LedgerUnavailable);
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for wrong in ["", "00", &"g".repeat(64), &"A".repeat(64), &"0".repeat(66), &format!("{}\n\n", "0".repeat(64))] {
            std::fs::write(&path, wrong).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(LedgerKey::load(&path).is_err(), "{wrong:?}");
        }
        std::fs::write(&path, format!("{}\n", "0".repeat(64))).unwrap();
        assert!(LedgerKey::load(&path).is_ok());
    }
}
