//! Secrets: how they are made, what they look like, and what is stored of them.
//!
//! Every secret is a prefix that says its kind and 40 lower-case hex digits: 160 bits from the kernel. Because they
//! cannot be guessed, a fast hash is enough to store; because the prefix is fixed, leaks are found by scanners.

use std::{fmt, fs::File, io::Read, os::unix::fs::MetadataExt, path::Path};

use rf_store::CredentialHash;
use zeroize::{Zeroize, Zeroizing};

/// Random bytes of a secret; twice as many hex digits.
const RANDOM_BYTES: usize = 20;
/// What the hash is for, so that it is no other hash of the same text.
const CONTEXT: &str = "ringfence 2026 credential hash v1";

/// Which kind of secret, and so its prefix.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SecretKind {
    /// An API key, `rf_`.
    Key,
    /// An API key in the form that E2B's clients insist on, `e2b_`.
    KeyE2b,
    /// A session, `rfs_`.
    Session,
    /// An enrolment token, `rfe_`.
    Enrolment,
}

impl SecretKind {
    const ALL: [Self; 4] = [Self::Key, Self::KeyE2b, Self::Session, Self::Enrolment];

    /// The text before the 40 hex digits.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Key => "rf_",
            Self::KeyE2b => "e2b_",
            Self::Session => "rfs_",
            Self::Enrolment => "rfe_",
        }
    }

    /// Which kind `text` has the form of, if any. Looks at the form alone.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        Self::ALL.into_iter().find(|kind| {
            text.strip_prefix(kind.prefix())
                .is_some_and(|hex| hex.len() == 2 * RANDOM_BYTES && hex.bytes().all(lower_hex))
        })
    }
}

/// A secret's text, to be shown once. `Debug` prints nothing of it; it is wiped from memory when dropped.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A fresh secret from the kernel's random number generator.
    ///
    /// # Panics
    /// If the kernel gives no random bytes, which it does only before its generator is seeded at boot.
    #[must_use]
    pub fn mint(kind: SecretKind) -> Self {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes).expect("the kernel's random number generator is seeded");
        // Room for all of it at once: a string that grows leaves copies behind.
        let mut text = String::with_capacity(kind.prefix().len() + 2 * RANDOM_BYTES);
        text.push_str(kind.prefix());
        for byte in bytes {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        bytes.zeroize();
        Self(Zeroizing::new(text))
    }

    /// The text, for the one answer that shows it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A key of the server's own under which credentials are hashed, so that a copy of the store alone does not even tell
/// whether a given credential is in it.
pub struct Pepper(Zeroizing<[u8; 32]>);

impl Pepper {
    /// From a file of 32 to 4,096 random bytes that only its owner may read. When it is lost, so is every credential.
    ///
    /// # Errors
    /// In words: it cannot be read, has another size, or others may read it.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let file = File::open(path).map_err(|error| format!("cannot read the pepper `{shown}`: {error}"))?;
        let mode = file.metadata().map_err(|error| format!("cannot read the pepper `{shown}`: {error}"))?.mode();
        if mode & 0o077 != 0 {
            return Err(format!("the pepper `{shown}` may be read by others: mode {:o}", mode & 0o777));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(4_097));
        file.take(4_097)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("cannot read the pepper `{shown}`: {error}"))?;
        if !(32..=4_096).contains(&bytes.len()) {
            return Err(format!("the pepper `{shown}` must have 32 to 4096 bytes"));
        }
        Ok(Self(Zeroizing::new(blake3::derive_key("ringfence 2026 credential pepper v1", &bytes))))
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// What is stored of a secret.
pub(crate) fn hash(pepper: Option<&Pepper>, text: &str) -> CredentialHash {
    let mut hasher = match pepper {
        Some(pepper) => blake3::Hasher::new_keyed(&pepper.0),
        None => blake3::Hasher::new_derive_key(CONTEXT),
    };
    hasher.update(text.as_bytes());
    CredentialHash::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_secret_has_its_form_and_shows_nothing() {
        for kind in SecretKind::ALL {
            let secret = Secret::mint(kind);
            assert_eq!(SecretKind::of(secret.reveal()), Some(kind));
            assert_eq!(format!("{secret:?}"), "Secret(..)");
            assert_ne!(Secret::mint(kind).reveal(), secret.reveal());
        }
    }

    #[test]
    fn near_forms_are_no_secrets() {
        let good = Secret::mint(SecretKind::Key).reveal().to_owned();
        for wrong in
            ["", "rf_", &good[1..], &good[..42], &format!("{good}0"), &good.to_uppercase(), &format!(" {good}")]
        {
            assert_eq!(SecretKind::of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_pepper_changes_every_hash_and_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pepper");
        let write = |mode, bytes: &[u8]| {
            let _ = std::fs::remove_file(&path);
            let mut file = std::fs::OpenOptions::new().write(true).create(true).mode(mode).open(&path).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            Pepper::from_file(&path)
        };
        assert!(write(0o644, &[7; 32]).unwrap_err().contains("read by others"));
        assert!(write(0o600, &[7; 31]).unwrap_err().contains("32 to 4096"));
        let pepper = write(0o600, &[7; 32]).unwrap();
        assert_ne!(hash(Some(&pepper), "x"), hash(None, "x"));
        assert_eq!(hash(Some(&pepper), "x"), hash(Some(&pepper), "x"));
    }
}
