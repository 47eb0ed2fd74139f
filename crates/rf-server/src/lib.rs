//! The HTTP and WebSocket edge of Ringfence.
//!
//! It parses strangers' bytes, so it holds no rights: no capability, no privileged descriptor but the warden's socket,
//! which takes a closed list of orders. A door only translates; the gate judges, the places run, the ledger records.
//!
//! ```text
//! edge (connections, TLS, bounds) ─▶ service (request id, refusals, log) ─▶ doors (one file each)
//!                                                                             │
//!            gate ◀── operation: judged, intent, done, result, durable ◀──────┘──▶ places
//!                                      └──▶ ledger
//! ```

pub mod api;
pub mod app;
pub mod config;
pub mod doors;
pub mod edge;
pub mod harden;
pub mod input;
pub mod logs;
pub mod metrics;
pub mod openapi;
pub mod operation;
pub mod output;
pub mod refusal;
pub mod registries;
pub mod repeats;
pub mod room;
pub mod rows;
pub mod run;
pub mod service;
pub mod tls;
pub mod turns;

pub use config::ServerConfig;
pub use run::{RunError, run, run_on};
