//! What tests share: permits, the conformance suite of places, a server for joined machines on loopback.
//!
//! Never a normal dependency of anything.

pub mod conformance;
pub mod machines;
pub mod permits;
