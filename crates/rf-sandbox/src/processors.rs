//! Holding a sandbox to some of the processors: no limit, but a courtesy among neighbours.
//!
//! A sandbox limited to one processor's time, with many processes, uses all processors for a part of each period and
//! stands still for the rest, and while it uses them everybody else waits for the scheduler's next tick. Held to as many
//! processors as it may have the time of, it has the same work done and leaves the others alone. See the kernel's
//! document of cpusets.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::cgroup::{Controller, Group};

/// How often the processes of a sandbox are gone through, so that those that are born meanwhile are met.
const ROUNDS: usize = 3;

/// The processors that this process may use, by number.
#[must_use]
pub fn processors() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

impl Group {
    /// Holds every process of the sandbox, and those that they make, to these processors.
    ///
    /// # Errors
    /// `ENOENT` where there is no cpuset controller that we may use; what the kernel says. Then some may be held and
    /// others not; [`Self::hold_no_more`] lets all go.
    pub fn hold_to(&self, processors: &[usize]) -> io::Result<()> {
        let list = processors.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let Some(cpuset) = self.cpuset() else { return Err(io::ErrorKind::NotFound.into()) };
        match cpuset {
            Cpuset::V2(dir) => fs::write(dir.join("cpuset.cpus"), list),
            Cpuset::V1 { root, base, dir } => {
                // A new group of version 1 has neither processors nor memory nodes until they are written.
                for (dir, parent) in [(&base, &root), (&dir, &base)] {
                    fs::create_dir_all(dir)?;
                    for file in ["cpuset.mems", "cpuset.cpus"] {
                        fs::write(dir.join(file), fs::read_to_string(parent.join(file))?.trim())?;
                    }
                }
                fs::write(dir.join("cpuset.cpus"), list)?;
                self.move_tasks(&dir);
                Ok(())
            }
        }
    }

    /// Lets them use every processor again.
    pub fn hold_no_more(&self) {
        match self.cpuset() {
            Some(Cpuset::V2(dir)) => {
                // An empty list is the parent's; but Linux 6.1 lets nobody who has processes have an empty one (ENOSPC;
                // kernel/cgroup/cpuset.c, `validate_change`).
                if fs::write(dir.join("cpuset.cpus"), "\n").is_err()
                    && let Ok(all) = fs::read_to_string(dir.with_file_name("cpuset.cpus.effective"))
                {
                    let _ = fs::write(dir.join("cpuset.cpus"), all.trim());
                }
            }
            Some(Cpuset::V1 { root, dir, .. }) if dir.exists() => {
                self.move_tasks(&root);
                // One that a process was born into meanwhile is removed with the sandbox.
                let _ = fs::remove_dir(dir);
            }
            _ => {}
        }
    }

    /// Moves every task of the sandbox into a group of version 1. One that ended meanwhile needs no moving.
    fn move_tasks(&self, to: &Path) {
        let Some(from) = self.tasks() else { return };
        for _ in 0..ROUNDS {
            let tasks = fs::read_to_string(&from).unwrap_or_default();
            for task in tasks.lines() {
                let _ = fs::write(to.join("tasks"), task);
            }
        }
    }

    fn cpuset(&self) -> Option<Cpuset> {
        match self.hierarchies().cpuset()? {
            Controller::V2 => self.v2_dir().map(Cpuset::V2),
            Controller::V1(root) => {
                let base = root.join(self.hierarchies().base());
                Some(Cpuset::V1 { dir: base.join(self.name()), base, root: root.clone() })
            }
        }
    }

    /// The group of version 1, if it was made.
    pub(crate) fn cpuset_dir(&self) -> Option<PathBuf> {
        match self.cpuset()? {
            Cpuset::V1 { dir, .. } => dir.exists().then_some(dir),
            Cpuset::V2(_) => None,
        }
    }
}

enum Cpuset {
    V1 { root: PathBuf, base: PathBuf, dir: PathBuf },
    V2(PathBuf),
}
