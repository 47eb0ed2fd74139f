//! The one program with rights: it keeps the sandboxes and takes a closed list of orders from a local socket.
//!
//! One thread, one epoll; no HTTP, no database, no bytes of users. What it must know of an order it checks itself. Its
//! server may die and come back: the sandboxes stay, and the new server adopts them. When the warden itself dies, the
//! kernel kills every sandbox with it (their first processes are tied to it, `PR_SET_PDEATHSIG`), and the next warden
//! sweeps what cgroups are left.
//!
//! ```text
//! prepared ──Create──▶ claimed ──Destroy, lease, init's death──▶ dying ──last process, last cgroup──▶ gone
//!    ▲                   ▲
//!    └──── starting ─────┘
//! ```

mod door;
mod gone;
mod keeper;
mod locks;
mod pool;
mod snapshots;
mod templates;
mod unpack;
mod weights;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use keeper::run;
pub use rf_sandbox::unpacker::forget_the_host;
pub use snapshots::{SetAside, set_aside};

/// Longest time that one layer is unpacked for. Chosen: the largest that there may be takes some minutes; and shorter than
/// the server waits, so that its fault says what took so long.
pub const UNPACK_TIME: Duration = Duration::from_secs(25 * 60);

/// How the warden is set up.
#[derive(Clone, Debug)]
pub struct WardenConfig {
    /// The state directory; ours are `warden/` and `run/` in it.
    pub state: PathBuf,
    /// The id that the server runs as: the only one whose orders are taken, beside our own.
    pub server_uid: u32,
    /// How many sandboxes of the template `host` are kept prepared, 0 to 256.
    pub pool: u32,
    /// How many of the template `base` are, once the first was asked for, 0 to 256.
    pub pool_base: u32,
    /// Most sandboxes at once, prepared ones included, 1 to 4,000.
    pub sandboxes_max: u32,
    /// Longest time that one layer is unpacked for; [`UNPACK_TIME`] but in tests.
    pub unpack_time: Duration,
}

impl WardenConfig {
    /// The name of our directory in the control group hierarchies: the same for the same state directory.
    #[must_use]
    pub fn base(&self) -> String {
        // FNV-1a: it only tells the instances of one host apart.
        let hash = self
            .state
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        format!("ringfence-{hash:016x}")
    }

    /// The socket on which orders are taken.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state.join("run/warden.sock")
    }

    fn own(&self, name: &str) -> PathBuf {
        self.state.join("warden").join(name)
    }
}

/// Why the warden cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WardenError {
    /// A file or directory of its own.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What launches share cannot be made.
    #[error(transparent)]
    Launcher(#[from] rf_sandbox::launch::LaunchError),
    /// What a former warden left cannot be removed.
    #[error("cannot sweep what a former warden left")]
    Sweep(#[from] rf_sandbox::cgroup::CgroupError),
    /// Another warden runs on the same state directory.
    #[error("another warden holds {}", .0.display())]
    Running(PathBuf),
}

impl WardenError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { step, source: source.into() }
    }
}
