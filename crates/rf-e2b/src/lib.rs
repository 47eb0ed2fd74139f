//! The words of the E2B wire format: ids, models, encodings and messages, as the public clients speak them.
//!
//! **Invariant:** no I/O, no clock, no asynchronous runtime; holds no rule of ours, only how things are written.

pub mod id;
pub mod metadata;
pub mod models;
pub mod network;
pub mod rpc;
pub mod signature;

/// The version of the in-sandbox interface that is announced: clients switch features on by it.
pub const ENVD_VERSION: &str = "0.6.13";
/// The port of the in-sandbox interface. It is the control plane's: nothing inside a sandbox answers there.
pub const ENVD_PORT: u16 = 49983;
/// The port of the code interpreter. It is the control plane's as well.
pub const CODE_INTERPRETER_PORT: u16 = 49999;
