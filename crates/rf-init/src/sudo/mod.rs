//! `sudo`: set-user-id bits do nothing in a sandbox, so a command as another user is started by process 1.
//!
//! [`client`] is the program that people type: it sends argv, environment, directory and descriptors 0 to 2 over
//! [`SOCKET`], passes signals on, and exits as the command did. [`server`] is in process 1, which has a process of its own
//! attend to each connection, [`front`]. That believes the client nothing but what it wants: whoever may open the socket is
//! somebody of this sandbox, and root inside was allowed when the sandbox was made, or the socket is not there.
//!
//! One `SOCK_SEQPACKET` connection is one command. Messages have the header of `rf_wire::init`:
//!
//! | kind | from | body |
//! |---|---|---|
//! | [`RUN`] | client | as of a `SPAWN` (id, flags, limits and time are not heeded); beside it three descriptors |
//! | [`SIGNAL`] | client | `signal: u32`, for the command's process group |
//! | [`EXITED`] | server | `status: u32` as of wait(2); then the connection closes |
//! | [`FAILED`] | server | `errno: u32, stage: u32`; then the connection closes |

pub(crate) mod client;
pub(crate) mod front;
pub(crate) mod server;

use core::ffi::CStr;

/// Where process 1 listens.
const SOCKET: &CStr = c"/run/rf-init.sock";
const RUN: u16 = 160;
const SIGNAL: u16 = 161;
const EXITED: u16 = 162;
const FAILED: u16 = 163;
