//! Signatures of file links, version 1: who has a link may read or write that one path without a token.
//!
//! ```text
//! "v1_" base64(sha256( path ":" "read"|"write" ":" username ":" token [ ":" expiry ] ))    standard alphabet, no "="
//! ```
//!
//! `path` is the text that the link has, not what it resolves to; `expiry` is in seconds since 1970.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What a link may be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// To read the file.
    Read,
    /// To write it.
    Write,
}

/// What a signature is about.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The path as the link has it; empty where it has none.
    pub path: &'a str,
    /// What for.
    pub used: Use,
    /// The user's name as the link has it; empty where it has none.
    pub username: &'a str,
    /// When it stops being good, seconds since 1970.
    pub expires: Option<i64>,
}

/// Why a link is not good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// It has no signature.
    Missing,
    /// It has one that is not of this token and these words.
    Invalid,
    /// It was good until it expired.
    Expired,
}

impl Refused {
    /// The words that clients look for.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Missing => "missing signature query parameter",
            Self::Invalid => "invalid signature",
            Self::Expired => "signature is already expired",
        }
    }
}

/// The signature of these words under a sandbox's token.
#[must_use]
pub fn sign(signed: &Signed<'_>, token: &str) -> String {
    let used = match signed.used {
        Use::Read => "read",
        Use::Write => "write",
    };
    let mut hash = Sha256::new();
    for part in [signed.path, ":", used, ":", signed.username, ":", token] {
        hash.update(part);
    }
    if let Some(expires) = signed.expires {
        hash.update(format!(":{expires}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(hash.finalize()))
}

/// Whether `presented` is good at `now`, seconds since 1970. Takes the same time whatever differs.
///
/// # Errors
/// Why not; a wrong signature is told before an old one.
pub fn check(signed: &Signed<'_>, token: &str, presented: Option<&str>, now: i64) -> Result<(), Refused> {
    let presented = presented.filter(|text| !text.is_empty()).ok_or(Refused::Missing)?;
    if !bool::from(sign(signed, token).as_bytes().ct_eq(presented.as_bytes())) {
        return Err(Refused::Invalid);
    }
    if signed.expires.is_some_and(|expires| expires < now) { Err(Refused::Expired) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Signed<'_> = Signed { path: "a b.txt", used: Use::Read, username: "user", expires: None };

    #[test]
    fn a_signature_is_the_hash_of_its_words() {
        // printf '%s' 'a b.txt:read:user:tok' | openssl dgst -sha256 -binary | base64
        assert_eq!(sign(&READ, "tok"), "v1_fCUBbVtCAtYV8eXmwTnO4sRm1GmLsXRaQmYElTTnX+g");
        // printf '%s' '/x:write::tok:1700000000' | ...
        let write = Signed { path: "/x", used: Use::Write, username: "", expires: Some(1_700_000_000) };
        assert_eq!(sign(&write, "tok"), "v1_Xp/Z8cjI4eSGKtHCojnl+SgFPYNe6ELfHVmbjliNtOw");
    }

    #[test]
    fn every_word_counts() {
        let good = sign(&READ, "tok");
        assert_eq!(check(&READ, "tok", Some(&good), 0), Ok(()));
        let others = [
            Signed { path: "a b.txt2", ..READ },
            Signed { used: Use::Write, ..READ },
            Signed { username: "root", ..READ },
            Signed { username: "", ..READ },
            Signed { expires: Some(9), ..READ },
        ];
        for other in others {
            assert_eq!(check(&other, "tok", Some(&good), 0), Err(Refused::Invalid), "{other:?}");
        }
        assert_eq!(check(&READ, "other", Some(&good), 0), Err(Refused::Invalid));
        assert_eq!(check(&READ, "tok", Some(&good[1..]), 0), Err(Refused::Invalid));
        for none in [None, Some("")] {
            assert_eq!(check(&READ, "tok", none, 0), Err(Refused::Missing));
        }
    }

    #[test]
    fn an_old_link_is_told_as_old_only_if_it_was_ever_good() {
        let old = Signed { expires: Some(100), ..READ };
        let good = sign(&old, "tok");
        assert_eq!(check(&old, "tok", Some(&good), 100), Ok(()));
        assert_eq!(check(&old, "tok", Some(&good), 101), Err(Refused::Expired));
        assert_eq!(check(&old, "tok", Some("v1_x"), 101), Err(Refused::Invalid));
    }
}
