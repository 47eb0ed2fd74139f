//! Everything about templates that needs no launcher: the `host` template's tree ([`host`]).
//!
//! A template is an immutable recipe of a sandbox's root. This crate makes directories and streams; it mounts nothing,
//! keeps no list of templates and talks to no client.

pub mod host;
