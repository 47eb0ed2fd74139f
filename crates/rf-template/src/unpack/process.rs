//! The unpacker as a program: `ringfence unpack ORDER`, standard input the layer, descriptor 3 the empty directory.
//!
//! Its order comes from the warden as JSON in the first argument; its [`Report`] is one line of JSON on standard output.
//! It takes from itself what it can before the first byte of the layer is read; the rest of its confinement (user
//! namespace, Landlock, no network, no core dumps) is the warden's.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
    process::ExitCode,
};

use rf_types::{Code, Fault};
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit},
};
use serde::{Deserialize, Serialize};

use super::{Caps, Unpacked, unpack};

/// Longest report, bytes; whoever reads it reads no more.
pub const REPORT_BYTES_MAX: usize = 4096;
/// Longest order, bytes.
const ORDER_BYTES_MAX: usize = 4096;
/// Address space: zstd's largest window twice, and room for the names of a million directories. Chosen.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// What the unpacker is told.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Bounds.
    pub caps: Caps,
    /// `sha256:` and 64 hex digits that the uncompressed archive must have.
    pub diff_id: String,
}

impl Order {
    /// The argument after `unpack`.
    #[must_use]
    pub fn argument(&self) -> String {
        serde_json::to_string(self).expect("a struct of numbers and text is JSON")
    }
}

/// What the unpacker says, on one line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// The layer is there.
    Unpacked(Unpacked),
    /// It is not.
    Failed(Fault),
}

impl Report {
    /// Reads what an unpacker wrote. Whatever it wrote, the answer names the layer that was asked for.
    ///
    /// # Errors
    /// The unpacker's fault, or that it said nothing that can be understood (it was killed, for instance).
    pub fn read(bytes: &[u8], diff_id: &str) -> Result<Unpacked, Fault> {
        let broken = || {
            Fault::new(
                Code::TemplateUnavailable,
                "the layer's unpacker ended without a report",
                "the layer may need more memory or disk than the unpacker has; see the warden's log",
            )
        };
        if bytes.len() > REPORT_BYTES_MAX {
            return Err(broken());
        }
        match serde_json::from_slice(bytes) {
            Ok(Self::Unpacked(unpacked)) if unpacked.diff_id == diff_id => Ok(unpacked),
            Ok(Self::Failed(fault)) => Err(fault),
            Ok(Self::Unpacked(_)) | Err(_) => Err(broken()),
        }
    }
}

/// Does what the first argument after `unpack` says, and reports on standard output. 0 when the layer is there.
///
/// `target` is the empty directory: descriptor 3, borrowed by a caller who may hold unsafe code.
#[must_use]
pub fn unpacker_main(order: &str, target: BorrowedFd<'_>) -> ExitCode {
    let report = match run(order, target) {
        Ok(unpacked) => Report::Unpacked(unpacked),
        Err(fault) => Report::Failed(fault),
    };
    let mut line = serde_json::to_string(&report).expect("a struct of numbers and text is JSON");
    line.push('\n');
    // Nobody listens when this fails; the exit status still tells.
    let told = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
    match (report, told) {
        (Report::Unpacked(_), Ok(())) => ExitCode::SUCCESS,
        (Report::Unpacked(_), Err(_)) | (Report::Failed(_), _) => ExitCode::FAILURE,
    }
}

fn run(order: &str, target: BorrowedFd<'_>) -> Result<Unpacked, Fault> {
    if order.len() > ORDER_BYTES_MAX {
        return Err(Fault::invalid("the unpacker's order is too long"));
    }
    let order: Order =
        serde_json::from_str(order).map_err(|e| Fault::invalid(format!("the unpacker's order cannot be read: {e}")))?;
    confine(&order.caps).map_err(|e| {
        Fault::new(
            Code::TemplateUnavailable,
            format!("the unpacker cannot confine itself: {e}"),
            "see `ringfence doctor`",
        )
    })?;
    // A copy of the descriptor: the standard library's reader would put another buffer before ours.
    let input = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| Fault::new(Code::Internal, format!("the unpacker has no input: {e}"), ""))?;
    unpack(File::from(input), target, &order.caps, Some(&order.diff_id)).map_err(|e| e.fault())
}

/// Gives up what unpacking does not need.
fn confine(caps: &Caps) -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let bound =
        |resource, value| rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    bound(Resource::Fsize, caps.file_bytes_max)?;
    // Input, output, error, target, and a few directories of the walk.
    bound(Resource::Nofile, 256 + u64::from(caps.depth_max))?;
    bound(Resource::As, MEMORY_BYTES_MAX)?;
    // Modes are set as the archive says.
    rustix::process::umask(Mode::empty());
    Ok(())
}
