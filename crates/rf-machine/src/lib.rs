//! The program behind `ringfence join`: a user's own computer as a place.
//!
//! It dials the server, proves who it is, and serves the orders of [`rf_wire::machine`] as far as its owner allows:
//! the level is set here, and nothing that the server says changes it. A connection that drops is dialled again; the
//! session then goes on at the exact byte. An exec is started at most once: its id is noted on disk before it starts.
//!
//! ```text
//!           connected, session goes on
//!        ┌──────────────────────────────┐
//!        ▼                              │
//! dial ──▶ greet ──▶ serve ──drop──▶ wait (0.5 s, doubling to a minute, half of it random)
//!            │          │
//!            └──────────┴── removed, or not let in ──▶ end
//! ```
//!
//! What belongs to Linux is in the module `linux`; the rest is for any Unix.

#[cfg(not(target_os = "linux"))]
compile_error!("`ringfence join` has its system calls for Linux only so far: see the module `linux`");

mod dial;
mod execs;
mod join;
mod linux;
mod owner;
mod serve;
mod state;

pub use join::{JoinArgs, JoinError, JoinEvent, Timing, join};
