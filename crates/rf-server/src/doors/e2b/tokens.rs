//! The tokens of sandboxes: derived from one key of the installation's and the sandbox's id, so that nothing is stored
//! for each and they are the same after a restart.
//!
//! ```text
//! e2b.key ─ derive_key(purpose) ─▶ key of one purpose ─ keyed_hash(id's 16 bytes) ─▶ 64 hex digits
//! ```
//!
//! A token is a credential for one sandbox alone: who has the files' and commands' token acts there as its owner, and who
//! has the traffic's token reaches its ports. Neither says anything about another sandbox, or about the key.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rf_types::SandboxId;
use zeroize::Zeroizing;

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// Makes and checks the tokens of sandboxes. `Debug` prints nothing of the keys.
#[derive(Clone)]
pub struct Tokens {
    envd: Zeroizing<[u8; KEY_BYTES]>,
    traffic: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

impl Tokens {
    /// The tokens under exactly this key.
    #[must_use]
    pub fn from_key(key: &[u8; KEY_BYTES]) -> Self {
        let derive = |purpose| Zeroizing::new(blake3::derive_key(purpose, key));
        Self {
            envd: derive("ringfence 2026 token of a sandbox's commands and files v1"),
            traffic: derive("ringfence 2026 token of a sandbox's ports v1"),
        }
    }

    /// Reads the key from `path`, or makes one there when there is none: 32 random bytes, mode 0600.
    ///
    /// # Errors
    /// When it cannot be read or written, is not 32 bytes long, or others than its owner may reach it.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match create(path) {
            Ok(key) => Ok(Self::from_key(&key)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(path).map(|key| Self::from_key(&key)),
            Err(error) => Err(error),
        }
    }

    /// The token for a sandbox's commands and files: 64 lower-case hex digits.
    #[must_use]
    pub fn envd_token(&self, id: SandboxId) -> String {
        token(&self.envd, id).to_hex().to_string()
    }

    /// The token for a sandbox's ports when they are not open to everybody: 64 lower-case hex digits.
    #[must_use]
    pub fn traffic_token(&self, id: SandboxId) -> String {
        token(&self.traffic, id).to_hex().to_string()
    }

    /// Whether `text` is the token for this sandbox's commands and files; takes the same time whatever differs.
    #[must_use]
    pub fn is_envd_token(&self, id: SandboxId, text: &str) -> bool {
        is_token(&self.envd, id, text)
    }

    /// Whether `text` is the token for this sandbox's ports; takes the same time whatever differs.
    #[must_use]
    pub fn is_traffic_token(&self, id: SandboxId, text: &str) -> bool {
        is_token(&self.traffic, id, text)
    }
}

fn token(key: &[u8; KEY_BYTES], id: SandboxId) -> blake3::Hash {
    blake3::keyed_hash(key, &id.bits().to_be_bytes())
}

fn is_token(key: &[u8; KEY_BYTES], id: SandboxId, text: &str) -> bool {
    // A token has one text form.
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    // Comparing two `Hash`es takes the same time whatever differs (their own documentation).
    lower && blake3::Hash::from_hex(text).is_ok_and(|presented| presented == token(key, id))
}

fn load(path: &Path) -> io::Result<Zeroizing<[u8; KEY_BYTES]>> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!("its mode is {mode:o}, but others must not reach it")));
    }
    // One byte more than a key has, so that a longer file is seen and not cut short in silence.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let key = bytes.as_slice().try_into().map_err(|_| io::Error::other("it is not 32 bytes long"))?;
    Ok(Zeroizing::new(key))
}

fn create(path: &Path) -> io::Result<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(key.as_mut()).map_err(|error| io::Error::other(error.to_string()))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Beside it and then a link: a crash in between leaves no half key, and link(2) never replaces a key.
    let beside = dir.join(format!(".e2b-key.{}", std::process::id()));
    let made = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(key.as_ref())?;
        file.sync_all()?;
        std::fs::hard_link(&beside, path)?;
        File::open(dir)?.sync_all()
    })();
    // Also after a failure; what is left then is only our own unused half.
    let _ = std::fs::remove_file(&beside);
    made.map(|()| key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ONE: SandboxId = SandboxId::from_bits(1);
    const TWO: SandboxId = SandboxId::from_bits(2);

    #[test]
    fn a_token_is_good_for_one_sandbox_and_one_purpose() {
        let tokens = Tokens::from_key(&[7; 32]);
        let (envd, traffic) = (tokens.envd_token(ONE), tokens.traffic_token(ONE));
        assert_eq!(envd.len(), 64);
        assert!(tokens.is_envd_token(ONE, &envd) && tokens.is_traffic_token(ONE, &traffic));
        assert!(!tokens.is_envd_token(TWO, &envd) && !tokens.is_traffic_token(TWO, &traffic));
        assert!(!tokens.is_envd_token(ONE, &traffic) && !tokens.is_traffic_token(ONE, &envd));
        assert!(!Tokens::from_key(&[8; 32]).is_envd_token(ONE, &envd), "another installation's");
        assert_eq!(format!("{tokens:?}"), "Tokens(..)");
    }

    #[test]
    fn near_texts_are_no_tokens() {
        let tokens = Tokens::from_key(&[7; 32]);
        let good = tokens.envd_token(ONE);
        let flipped = if good.starts_with('0') { "1" } else { "0" };
        for wrong in [
            "",
            &good[1..],
            &format!("{good}0"),
            &good.to_uppercase(),
            &format!(" {good}"),
            &(flipped.to_owned() + &good[1..]),
        ] {
            assert!(!tokens.is_envd_token(ONE, wrong), "{wrong}");
        }
    }

    #[test]
    fn the_key_is_made_once_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e2b.key");
        let made = Tokens::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert_eq!(Tokens::load_or_create(&path).unwrap().envd_token(ONE), made.envd_token(ONE));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Tokens::load_or_create(&path).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for wrong in [0, 31, 33] {
            std::fs::write(&path, vec![1; wrong]).unwrap();
            assert!(Tokens::load_or_create(&path).is_err(), "{wrong}");
        }
    }
}
