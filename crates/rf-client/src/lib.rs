//! A typed client of the public interface: REST under `/v1` and its WebSocket streams.
//!
//! Knows nothing of the server's inside and uses nothing that another program could not. What it reads has a bound;
//! streams of bytes pass through without being gathered.
//!
//! - [`Client`]: one server and one credential.
//! - [`stream`]: the frames of an exec's output, and the two-way stream of an interactive one.
//! - [`types`]: what is asked and what comes back.

mod account;
mod client;
mod error;
mod exec;
mod files;
mod sandboxes;
pub mod stream;
mod tls;
mod tunnel;
pub mod types;

pub use client::{Client, Key, Options};
pub use error::ClientError;
pub use files::{ByteStream, FilePath, Target};
pub use tunnel::{Tunnel, Tunnels};
