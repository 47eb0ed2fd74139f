//! Who asks, may they, have they quota left: the one way in. Makes permits; runs nothing.
//!
//! ```text
//! credential ─▶ authenticate ─▶ Authenticated ─▶ permit / reserve_sandbox / reserve_exec ─▶ Permit | Fault
//!               form, hash or     scope, scopes,   reads standing, limits and usage anew,
//!               signature, end,   limits           then rf_policy::judge
//!               rate
//! ```
//!
//! The user comes from the verified credential and from nothing else. Whatever is wrong with a credential, the client
//! gets one and the same answer; the reason is in [`Denied::reason`], for the log and the ledger. Nothing caches a yes:
//! each permit reads again whether the credential still stands.

mod accounts;
mod config;
mod execs;
mod gate;
mod jwks;
mod jwt;
mod rate;
mod sandbox;
mod secret;

pub use accounts::{Enrolled, KeyAsked, KeyForm, MachineAuthenticated};
pub use config::{GateConfig, IssuerConfig, JwksSource, ScopesByClaim, SignatureAlgorithm};
pub use execs::ExecSlot;
pub use gate::{ActFor, Authenticated, Denied, Gate, GateError, Presented};
pub use rate::Rate;
pub use sandbox::SandboxOwner;
pub use secret::{Pepper, Secret, SecretKind};
