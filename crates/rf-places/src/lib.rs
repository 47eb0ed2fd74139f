//! Places: the sandboxes and machines in which operations run, the life of an exec, and the choice of a place.
//!
//! Decides nothing about who may; every function that does something for a user takes a [`rf_policy::Permit`].
//!
//! ```text
//!  Places ── resolve ──▶ route ──▶ machine (its connection is another's) | sandbox
//!    │ Sandboxes: life, lease, adoption ── WardenClient ──▶ warden
//!    │    └ SandboxPlace: execs, files ── InitClient ──▶ rf-init of that sandbox
//!    └ Execs: foreground streams, background spools
//! ```
//!
//! **Invariant:** nothing here reads a path of a user's on the host; bytes come and go by descriptors that were checked.
//! **Boundary:** everything an init or a helper inside a sandbox says is hostile.

mod attach;
mod content;
pub mod detail;
mod encode;
pub mod execs;
mod foreground;
mod init_client;
pub mod life;
pub mod machine;
pub mod machine_install;
pub mod machine_mux;
mod machine_place;
mod packet;
mod piece;
mod pipe;
pub mod place;
pub mod places;
pub mod quota;
mod reactor;
mod refusal;
pub mod route;
mod rows;
pub mod sandbox;
mod sandbox_files;
pub mod sandboxes;
mod spool;
mod typed;
pub mod warden;

pub use execs::{
    ExecClaim, ExecEvent, Execs, ExecsConfig,
    live::{LiveEnded, LiveEvents, LiveInfo, LiveName, LiveNote},
};
pub use foreground::{Collected, Foreground};
pub use init_client::{ANSWER_TIME, HUNG_TIME, PING_TIME};
pub use piece::{PIECE_LEN, pieces};
pub use place::{FileAnswer, Place};
pub use places::{Choice, FirstUse, Machine, Places, PlacesConfig, Resolved};
pub use refusal::{is_no_directory, is_no_such_user};
pub use rows::{
    ChangedWhy, EndedWhy, LimitsClaim, Making, Repeat, Resume, ResumeClaim, Rows, SandboxClaim, SandboxRow,
    SnapshotClaim, SnapshotRow,
};
pub use sandbox_files::action as file_action;
pub use sandboxes::{Origin, Sandboxes};
pub use spool::Which;
pub use typed::type_end;
pub use warden::WardenClient;
