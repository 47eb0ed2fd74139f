//! Typed ids. Each has exactly one text form, so it can be compared, logged and used as a key.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// What an [`Id`] names; gives the prefix of its text form.
pub trait Kind: Copy + Eq + Ord + fmt::Debug {
    /// The text before the 32 hex digits, underscore included.
    const PREFIX: &'static str;
}

/// A 128-bit random name, never reused. Text: the kind's prefix and 32 lower-case hex digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Id<K: Kind>(u128, PhantomData<K>);

impl<K: Kind> Id<K> {
    /// A fresh id from the kernel's random number generator (getrandom(2)).
    ///
    /// # Panics
    /// If the kernel gives no random bytes, which it does only before its generator is seeded at boot.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel's random number generator is seeded");
        Self(u128::from_be_bytes(bytes), PhantomData)
    }

    /// The id with exactly these bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits, PhantomData)
    }

    /// The id's 128 bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:032x}", K::PREFIX, self.0)
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        // `from_str_radix` alone would also take a sign and upper case.
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        text.strip_prefix(K::PREFIX)
            .filter(|hex| hex.len() == 32 && hex.bytes().all(lower_hex))
            .and_then(|hex| u128::from_str_radix(hex, 16).ok())
            .map(Self::from_bits)
            .ok_or(ParseIdError { prefix: K::PREFIX })
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Why a text is not an id of the wanted kind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected `{prefix}` and 32 lower-case hex digits")]
pub struct ParseIdError {
    prefix: &'static str,
}

/// Marker types, one for each thing that has an id.
pub mod kinds {
    use super::Kind;

    /// A user: the wall.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct User;
    /// A sandbox.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct Sandbox;
    /// One command run in one place.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct Exec;
    /// A joined machine.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct Machine;
    /// An API key; the id is public, the secret is not in it.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct Key;
    /// A saved file system of a sandbox.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct Snapshot;
    /// One request at a door.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct Request;

    impl Kind for User {
        const PREFIX: &'static str = "usr_";
    }
    impl Kind for Sandbox {
        const PREFIX: &'static str = "sbx_";
    }
    impl Kind for Exec {
        const PREFIX: &'static str = "exe_";
    }
    impl Kind for Machine {
        const PREFIX: &'static str = "mch_";
    }
    impl Kind for Key {
        const PREFIX: &'static str = "key_";
    }
    impl Kind for Snapshot {
        const PREFIX: &'static str = "snp_";
    }
    impl Kind for Request {
        const PREFIX: &'static str = "req_";
    }
}

/// Names one user for ever.
pub type UserId = Id<kinds::User>;
/// Names one sandbox for its whole life.
pub type SandboxId = Id<kinds::Sandbox>;
/// Names one exec.
pub type ExecId = Id<kinds::Exec>;
/// Names one joined machine.
pub type MachineId = Id<kinds::Machine>;
/// Names one API key.
pub type KeyId = Id<kinds::Key>;
/// Names one snapshot.
pub type SnapshotId = Id<kinds::Snapshot>;
/// Names one request at a door; in every answer's `x-request-id` and in the ledger.
pub type RequestId = Id<kinds::Request>;

/// A user's name as people write it: 1 to 64 of `a-z`, `0-9`, `.`, `_`, `@`, `-`, starting with a letter or digit.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Username(String);

impl Username {
    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Username {
    type Err = ParseUsernameError;

    fn from_str(text: &str) -> Result<Self, ParseUsernameError> {
        let body = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._@-".contains(&b);
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if first && text.len() <= 64 && text.bytes().all(body) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseUsernameError)
        }
    }
}

impl<'de> Deserialize<'de> for Username {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a username.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a username is 1 to 64 of a-z, 0-9, `.`, `_`, `@` and `-`, and starts with a letter or digit")]
pub struct ParseUsernameError;

/// Names a user's session. Text: `{username}_{seconds since 1970}_{32 lower-case hex digits}`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct SessionId(String);

impl SessionId {
    /// A fresh session id for `username`, begun at `unix_seconds`.
    #[must_use]
    pub fn new(username: &Username, unix_seconds: u64) -> Self {
        Self(format!("{username}_{unix_seconds}_{:032x}", RequestId::random().bits()))
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = ParseSessionIdError;

    fn from_str(text: &str) -> Result<Self, ParseSessionIdError> {
        // From the right, because a username may itself hold underscores.
        let mut parts = text.rsplitn(3, '_');
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let hex = parts.next().is_some_and(|hex| hex.len() == 32 && hex.bytes().all(lower_hex));
        let stamp =
            parts.next().is_some_and(|s| !s.is_empty() && s.len() <= 12 && s.bytes().all(|b| b.is_ascii_digit()));
        let name = parts.next().is_some_and(|name| name.parse::<Username>().is_ok());
        if hex && stamp && name { Ok(Self(text.to_owned())) } else { Err(ParseSessionIdError) }
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a session id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected a username, `_`, seconds since 1970, `_` and 32 lower-case hex digits")]
pub struct ParseSessionIdError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_text_form() {
        let id = SandboxId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            id.to_string().to_uppercase(),
            id.to_string().replace("sbx_", "usr_"),
            format!("{id}0"),
            "sbx_+0000000000000000000000000000001".to_owned(),
            "sbx_".to_owned(),
        ] {
            assert!(wrong.parse::<SandboxId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_username_that_could_be_read_twice_is_refused() {
        for wrong in ["", "Ann", "-ann", "a b", "ann\n", "ä", &"a".repeat(65), "../x", "a/b", "a\0"] {
            assert!(wrong.parse::<Username>().is_err(), "{wrong:?}");
        }
        assert!("ann_b.c@d-e".parse::<Username>().is_ok());
    }

    #[test]
    fn a_session_id_keeps_underscores_of_the_username() {
        let name: Username = "ann_b".parse().unwrap();
        let id = SessionId::new(&name, 1_700_000_000);
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert!(id.as_str().starts_with("ann_b_1700000000_"));
        assert!("ann_1700000000_xyz".parse::<SessionId>().is_err());
    }
}
