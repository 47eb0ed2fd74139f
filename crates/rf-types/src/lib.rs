//! The words of the house: typed ids, units, limits, layers, the shape of an exec and of a file operation, and the
//! one error that people see.
//!
//! Nothing here does I/O or reads a clock. Every type that crosses a process is plain data with one text or JSON form.

pub mod exec;
pub mod fault;
pub mod file;
pub mod id;
pub mod layer;
pub mod place;
pub mod sandbox;
pub mod spec;
pub mod template;
pub mod units;

pub use exec::{ExecInfo, ExecSpec, ExecState, ExitReport, Program, Pty, Rlimits, SignalScope, Usage};
pub use fault::{Code, Fault};
pub use file::{FileKind, FileOp, Stat, WriteMode};
pub use id::{ExecId, KeyId, MachineId, ParseIdError, RequestId, SandboxId, SessionId, SnapshotId, UserId, Username};
pub use layer::{Enforcement, Held, Layer, LayerReport};
pub use place::{PlaceKind, PlaceRef, Preference};
pub use sandbox::{PauseKind, SandboxAbout, SandboxEnv, SandboxState};
pub use spec::{DiskKind, Limits, Network, OnLeaseEnd, SandboxSpec, TemplateName, UserLimits};
pub use template::TemplateConfig;
