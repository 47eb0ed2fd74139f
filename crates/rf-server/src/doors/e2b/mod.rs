//! The door for the E2B clients: the same gate, the same places, in the words of their wire format.

pub mod config;
pub mod cors;
pub mod target;
pub mod tokens;
pub mod traffic;

use std::{io, path::Path};

use self::tokens::Tokens;

/// What the door keeps for as long as the server lives.
#[derive(Debug)]
pub struct E2b {
    tokens: Tokens,
}

impl E2b {
    /// Opens what it keeps in the server's directory of state.
    ///
    /// # Errors
    /// When the key of the tokens cannot be read or made.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        Ok(Self { tokens: Tokens::load_or_create(&state_dir.join("e2b.key"))? })
    }

    /// The tokens of sandboxes.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}
