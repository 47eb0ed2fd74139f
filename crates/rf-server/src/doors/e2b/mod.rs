//! The door for the E2B clients: the same gate, the same places, in the words of their wire format.

pub mod config;
pub mod control;
pub mod cors;
pub mod envd;
pub mod errors;
pub mod interpreter;
pub mod notes;
pub mod signers;
pub mod target;
pub mod tokens;
pub mod traffic;

use std::{io, path::Path};

use self::{control::Meters, envd::watchers::Watchers, interpreter::Kernels, signers::Signers, tokens::Tokens};

/// What the door keeps for as long as the server lives.
#[derive(Debug)]
pub struct E2b {
    tokens: Tokens,
    meters: Meters,
    watchers: Watchers,
    kernels: Kernels,
    signers: Signers,
}

impl E2b {
    /// Opens what it keeps in the server's directory of state.
    ///
    /// # Errors
    /// When the key of the tokens cannot be read or made.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let tokens = Tokens::load_or_create(&state_dir.join("e2b.key"))?;
        Ok(Self {
            tokens,
            meters: Meters::default(),
            watchers: Watchers::default(),
            kernels: Kernels::default(),
            signers: Signers::default(),
        })
    }

    /// What sandboxes used over time.
    #[must_use]
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// What the watchers of sandboxes saw and nobody asked about yet.
    #[must_use]
    pub fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// The processes in which the code interpreter runs cells.
    #[must_use]
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Which sandboxes sign links.
    #[must_use]
    pub fn signers(&self) -> &Signers {
        &self.signers
    }

    /// The tokens of sandboxes.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}
