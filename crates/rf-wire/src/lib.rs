//! Every message that crosses a process or a machine, versioned. Holds no behaviour beyond encoding.
//!
//! - [`init`]: server and warden to process 1 of a sandbox, and back. Binary, without an allocator on init's side.
//! - [`warden`]: server to warden, and back. JSON in one datagram each, descriptors beside it.
//! - [`detail`]: file operations of a sandbox that tell more of a file.
//! - [`frames`]: an exec's stream between server and client.
//! - [`machine`]: server to a joined machine, and back, over one WebSocket.

#![cfg_attr(not(feature = "std"), no_std)]

pub mod detail;
pub mod frames;
pub mod init;
#[cfg(feature = "std")]
pub mod machine;
#[cfg(feature = "std")]
pub mod warden;
