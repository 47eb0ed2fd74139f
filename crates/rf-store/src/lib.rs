//! Durable rows: users, keys, sessions, machines, enrolment tokens, sandboxes, snapshots, templates, settings. SQLite by default.
//!
//! Every call on a user's data takes a [`UserScope`], which only a credential lookup, an operator or the server's own
//! background work can have, and every statement carries its user id in the `WHERE`. Another user's thing answers
//! exactly as a thing that does not exist: [`StoreError::NotFound`].
//!
//! Calls are synchronous and take some 10 to 50 microseconds, so async code calls them directly. There is one writer
//! behind a mutex and a few readers; in WAL mode they do not wait for each other.
//!
//! Commits are not synced one by one (`synchronous = NORMAL`): after a crash of the *program* nothing is lost, after a
//! loss of *power* the last moments may be, and the file is whole. What must survive that is in the ledger, which syncs
//! before an answer goes out.
//!
//! This crate does not decide whether somebody may do something, and reads no clock: times are parameters.

mod error;
mod lookup;
mod machines;
mod pages;
mod repeats;
mod sandboxes;
mod schema;
mod scope;
mod sessions;
mod shared;
mod snapshots;
mod store;
mod users;

pub use error::StoreError;
pub use lookup::{CredentialHash, Known, Proof, Refused, Standing};
pub use machines::{Machine, NewMachine};
pub use pages::{Page, PageAsk};
pub use repeats::{NewRepeat, Repeat};
pub use sandboxes::{NewSandbox, Sandbox, SandboxChange, SandboxFilter, Usage};
pub use scope::{OperatorScope, SystemScope, UserScope};
pub use sessions::{Key, NewKey, NewSession, Session, SessionMaker};
pub use shared::{NewTemplate, Template};
pub use snapshots::Snapshot;
pub use store::Store;
pub use users::{NewUser, User};
