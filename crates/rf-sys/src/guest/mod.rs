//! What `rf-init`, process 1 of a sandbox, needs and nobody else: its entry, the memory functions that a program
//! without libc lacks, and the calls that rustix does not wrap.
//!
//! Everything here is for a program of one thread, without libc and without an allocator. The entry, the memory
//! functions and the panic handler exist only with the feature `guest-entry`, so that they never displace the host
//! programs' own; the rest compiles anywhere, to be checked and linted with the workspace.
//!
//! Does not decide who may do what: callers do.

mod arch;
mod calls;
mod cell;
#[cfg(feature = "guest-entry")]
mod entry;
mod filter;
mod fork;
mod listener;
mod map;
#[cfg(feature = "guest-entry")]
mod memory;
mod spawn;
mod text;

pub use calls::*;
pub use cell::{FdSlot, TakeCell};
#[cfg(feature = "guest-entry")]
pub use entry::die;
pub use filter::{TAKEN_FROM_WORKLOAD, install_workload_filter};
pub use fork::{Fork, fork_into};
pub use listener::{Asked, OWN_NETLINK};
pub use map::Mapping;
pub use spawn::{Failure, Identity, Plan, Pointers, Program, Step, spawn};
pub use text::{Args, cstr};
