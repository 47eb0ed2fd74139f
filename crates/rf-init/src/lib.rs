//! Process 1 of a sandbox: starts execs, reaps them, does file operations as the sandbox's users, and answers the
//! server and the warden over two sockets.
//!
//! Static, without std, without an allocator, one thread, synchronous. It parses orders of the server and the warden
//! only; what a workload can feed it (`/etc/passwd`, `sudo`'s requests, archives, directory names) is treated as hostile,
//! and archives and names are read only in helpers that have given up every right.
//!
//! At exec the launcher has done everything that confines it. The program finds:
//!
//! | | |
//! |---|---|
//! | `argv[1]` | flags: `r` root may be had inside, `c` 5 is there, `u` one uid only (no change of ids), `n` 8 is there |
//! | 0, 1, 2 | `/dev/null` |
//! | 3 | socket of the warden; when it closes, the sandbox ends |
//! | 4 | socket of the server; when it closes, init goes on without |
//! | 5 | cgroup v2 directory, delegated; each exec gets a child named by its id in hex |
//! | 8 | the listener of its filter, at which the workload's calls for a netlink socket wait |
//!
//! Under the name `sudo` the same program asks process 1 to start a command as another user, for set-user-id bits do
//! nothing in a sandbox.

#![cfg_attr(not(test), no_std)]

mod ahead;
mod channel;
mod exec;
mod file;
mod init;
mod kill;
mod netlink;
mod probe;
mod sudo;
mod table;
mod text;
mod users;

use rf_sys::guest::Args;

/// The whole program; gives its exit code.
#[must_use]
pub fn main(args: Args) -> i32 {
    let name = args.get(0).map_or(&b""[..], core::ffi::CStr::to_bytes);
    if name == b"sudo" || name.ends_with(b"/sudo") { sudo::client::main(args) } else { init::main(args) }
}
