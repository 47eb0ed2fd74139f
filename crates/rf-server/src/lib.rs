//! The HTTP and WebSocket edge of Ringfence.
//!
//! It parses strangers' bytes, so it holds no rights: no capability, no privileged descriptor but the warden's socket,
//! which takes a closed list of orders. A door only translates; the gate judges, the places run, the ledger records.

pub mod config;
pub mod edge;
pub mod input;
pub mod logs;
pub mod metrics;
pub mod output;
pub mod refusal;
pub mod service;
pub mod tls;
