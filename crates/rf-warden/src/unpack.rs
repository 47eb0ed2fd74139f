//! One layer being unpacked by a process without rights.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rf_sandbox::{launch::Launcher, push::Helper, unpacker::Unpacker};
use rf_template::unpack::{Caps, Order, REPORT_BYTES_MAX, Report};
use rf_types::{Code, Fault};
use rustix::io::Errno;

/// The warden's own program, which is the unpacker's too.
const PROGRAM: &str = "/proc/self/exe";

#[derive(Debug)]
pub(crate) struct Unpacking {
    unpacker: Unpacker,
    diff_id: String,
    said: Vec<u8>,
    begun: Instant,
}

impl Unpacking {
    pub(crate) fn begin(launcher: &Launcher, diff_id: &str, target: PathBuf, blob: &OwnedFd) -> Result<Self, Fault> {
        let caps = Caps { owners_kept: launcher.host().rooted, ..Caps::STANDARD };
        let order = Order { caps, diff_id: diff_id.to_owned() };
        let unpacker = Unpacker::start(launcher, Path::new(PROGRAM), &target, blob.as_fd(), &order.argument());
        let unpacker = unpacker.map_err(|error| {
            // Empty, and ours alone: nothing was written yet.
            let _ = std::fs::remove_dir(&target);
            Fault::new(Code::ServerBusy, format!("cannot start the unpacker: {error}"), "try again")
        })?;
        Ok(Self { unpacker, diff_id: diff_id.to_owned(), said: Vec::new(), begun: Instant::now() })
    }

    pub(crate) fn watched(&self) -> BorrowedFd<'_> {
        self.unpacker.report()
    }

    pub(crate) fn diff_id(&self) -> &str {
        &self.diff_id
    }

    /// How long it is at work.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The process, killed.
    pub(crate) fn into_helper(self) -> Helper {
        self.unpacker.into_helper()
    }

    /// Reads what it says; at the end bytes and files, or why not. `None` while it is at work.
    pub(crate) fn advance(&mut self) -> Option<Result<(u64, u64), Fault>> {
        let mut buffer = [0; REPORT_BYTES_MAX];
        match rustix::io::read(self.unpacker.report(), &mut buffer[..]) {
            Ok(0) => {}
            Ok(len) => {
                self.said.extend_from_slice(&buffer[..len]);
                // One that goes on talking is not heard further.
                if self.said.len() <= REPORT_BYTES_MAX {
                    return None;
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => return None,
            Err(_) => {}
        }
        if self.said.is_empty()
            && let Some(why) = self.unpacker.unconfined()
        {
            let message = format!("the unpacker could not give up its rights, so it read nothing: {why}");
            return Some(Err(Fault::new(Code::LayerUnavailable, message, "run `ringfence doctor` on the server")));
        }
        Some(Report::read(&self.said, &self.diff_id).map(|unpacked| (unpacked.bytes, unpacked.files)))
    }
}
