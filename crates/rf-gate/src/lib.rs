//! Who asks, may they, have they quota left: the one way in. Makes permits; runs nothing.
//!
//! ```text
//! credential ─▶ authenticate ─▶ Authenticated ─▶ permit, or permit_with a count ─▶ Permit | Fault
//!               form, hash or     scope, scopes,   reads standing and limits anew,
//!               signature, end,   limits           then rf_policy::judge
//!               rate
//! ```
//!
//! What a user has at a moment is counted by the places, whose claims ask [`Gate::permit_with`] and count in one step.
//!
//! The user comes from the verified credential and from nothing else. Whatever is wrong with a credential, the client
//! gets one and the same answer; the reason is in [`Denied::reason`], for the log and the ledger. Nothing caches a yes:
//! each permit asks again whether the credential still stands. The store counts its changes, and only while there was
//! none is what was read before taken for what would be read now.

mod accounts;
mod config;
mod gate;
mod jwks;
mod jwt;
mod rate;
mod sandbox;
mod secret;
mod seen;

pub use accounts::{Enrolled, KeyAsked, KeyForm, MachineAuthenticated};
pub use config::{GateConfig, IssuerConfig, JwksSource, ScopesByClaim, SignatureAlgorithm};
pub use gate::{ActFor, Authenticated, Denied, Gate, GateError, Presented};
pub use rate::{Party, Rate};
pub use sandbox::SandboxOwner;
pub use secret::{Pepper, Secret, SecretKind};
