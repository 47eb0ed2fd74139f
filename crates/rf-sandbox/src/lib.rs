//! The sandbox of level `namespaces`: spec, plan, launch, enforcement; the probe of the host.
//!
//! Knows no users' data, no HTTP, no async runtime. Used by the warden alone.
//!
//! [`plan::Plan::new`] works out a launch and touches nothing; [`launch::Launcher::begin`] is the only way to make a
//! sandbox; [`launch::Starting::advance`] gives one only after the kernel was asked what it holds.

pub mod cgroup;
mod direct;
pub mod disk;
pub mod ending;
mod enforce;
pub mod freeze;
pub mod host;
pub mod keep;
pub mod launch;
pub mod locks;
pub mod packet;
pub mod plan;
pub mod processors;
mod program;
pub mod push;
pub mod seccomp;
pub mod settings;
mod setup;
pub mod unpacker;

pub use rf_sys::process::{set_slice, watch_signals};
