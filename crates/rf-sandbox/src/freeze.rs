//! Freezing all processes of a sandbox, and thawing them.
//!
//! In the version 2 tree `cgroup.freeze` freezes a group and all below it; `cgroup.events` says when the last process is
//! frozen, and such a process still dies of SIGKILL at once (the kernel's cgroup-v2 document, "Core Interface Files").
//! The freezer of version 1 is used only where there is no version 2 tree: it has no news, so its state is read again
//! and again while it is at work, and what it froze dies only once it is thawed (cgroup-v1/freezer-subsystem).
//!
//! Frozen processes take no CPU time. Their clocks go on: what slept until a time that passed wakes at once.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rf_wire::init::{Writer, order, thawed};
use rustix::fs::{Mode, OFlags};

use crate::{
    cgroup::{CgroupError, Group},
    launch::{LaunchError, Sandbox, Step as _},
    packet,
};

/// The freezer of one sandbox.
#[derive(Debug)]
pub struct Freezer {
    dir: PathBuf,
    version_2: bool,
}

impl Freezer {
    /// The freezer of the group at `dir`.
    pub(crate) const fn at(dir: PathBuf, version_2: bool) -> Self {
        Self { dir, version_2 }
    }

    /// Begins to freeze. [`Self::is_frozen`] says when it is done.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        let (file, value) = if self.version_2 { ("cgroup.freeze", "1") } else { (V1_STATE, "FROZEN") };
        self.put(file, value)
    }

    /// Thaws.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let (file, value) = if self.version_2 { ("cgroup.freeze", "0") } else { (V1_STATE, "THAWED") };
        self.put(file, value)
    }

    /// Whether the kernel says that every process is frozen.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let file = self.dir.join(if self.version_2 { EVENTS } else { V1_STATE });
        let text = fs::read_to_string(&file).map_err(|source| CgroupError { path: file, source })?;
        Ok(text.lines().any(|line| line == if self.version_2 { "frozen 1" } else { "FROZEN" }))
    }

    /// A descriptor that has `POLLPRI` when [`Self::is_frozen`] may have changed; `None` where the kernel tells nothing
    /// and it is to be asked again after a while.
    ///
    /// # Errors
    /// The file that could not be opened.
    pub fn events(&self) -> Result<Option<OwnedFd>, CgroupError> {
        if !self.version_2 {
            return Ok(None);
        }
        let path = self.dir.join(EVENTS);
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(Some)
            .map_err(|errno| CgroupError { path, source: errno.into() })
    }

    fn put(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|source| CgroupError { path, source })
    }
}

const EVENTS: &str = "cgroup.events";
const V1_STATE: &str = "freezer.state";

/// Thaws a group of version 1, so that what was killed in it can die. Of no effect on others.
pub(crate) fn thaw_version_1(dir: &Path) {
    let state = dir.join(V1_STATE);
    if state.exists() {
        // A group that is gone has nothing to thaw.
        let _ = fs::write(state, "THAWED");
    }
}

impl Group {
    /// The processes in the sandbox's groups, process 1 among them, as the warden numbers them.
    ///
    /// # Errors
    /// The file that could not be read, or that there is no freezer: then the list could be old before it is read.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let Some(Freezer { dir, .. }) = self.freezer() else {
            return Err(CgroupError { path: PathBuf::new(), source: io::ErrorKind::Unsupported.into() });
        };
        let mut found = Vec::new();
        for group in crate::cgroup::tree(&dir) {
            let path = group.join("cgroup.procs");
            let text = fs::read_to_string(&path).map_err(|source| CgroupError { path, source })?;
            // A process of a namespace that is not ours to see would be 0; it counts all the same.
            found.extend(text.lines().map(|line| line.parse().unwrap_or(0)));
        }
        Ok(found)
    }
}

impl Sandbox {
    /// What freezes it, where this host can.
    #[must_use]
    pub fn freezer(&self) -> Option<Freezer> {
        self.cleanup.group.freezer()
    }

    /// Whether process 1 is its only process. Means something while it is frozen.
    ///
    /// # Errors
    /// As [`Group::processes`].
    pub fn is_idle(&self) -> Result<bool, CgroupError> {
        let own = self.cleanup.child.as_ref().map(|child| child.pid.as_raw_pid().unsigned_abs());
        Ok(self.cleanup.group.processes()?.into_iter().all(|pid| Some(pid) == own))
    }

    /// A socket for the next server in place of the last one's, while init cannot be told of it: ours, and the one that
    /// [`Self::tell_thawed`] is to give to init.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn socket_for_later(&self) -> Result<(OwnedFd, OwnedFd), LaunchError> {
        packet::pair().step("make a socket")
    }

    /// Leaves word for init, which is frozen, that it was for so long; that its root is another; that there is another
    /// server. It reads that before anything else once it is thawed.
    ///
    /// # Errors
    /// When init takes no message.
    pub fn tell_thawed(
        &self,
        frozen: Duration,
        new_root: bool,
        server: Option<BorrowedFd<'_>>,
    ) -> Result<(), LaunchError> {
        // What it answered is of no interest; but unread it would keep init from answering, and then from reading.
        packet::drain(&self.warden);
        let mut buffer = [0; 256];
        let mut writer = Writer::new(&mut buffer, order::THAWED, 1);
        writer.u64(u64::try_from(frozen.as_micros()).unwrap_or(u64::MAX));
        writer.u32(if new_root { thawed::NEW_ROOT } else { 0 });
        let len = writer.finish().map_err(|_| LaunchError::NotInit)?;
        packet::send(self.warden.as_fd(), &buffer[..len], &[]).step("tell init that it was frozen")?;
        match server {
            Some(socket) => self.give_server_socket(socket),
            None => Ok(()),
        }
    }
}

impl Group {
    /// Lets what was killed die: what the freezer of version 1 holds does not while it is frozen.
    pub(crate) fn let_die(&self) {
        if let Some(Freezer { dir, version_2: false }) = self.freezer() {
            thaw_version_1(&dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command},
        time::Instant,
    };

    use super::*;

    /// A group of the test's own with one process in it that counts.
    struct Field {
        dir: PathBuf,
        child: Child,
    }

    impl Field {
        fn at(root: &Path) -> Self {
            let dir = root.join(format!("ringfence-test-freeze-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            let child = Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            Self { dir, child }
        }

        /// Its CPU time, in ticks (proc_pid_stat(5), `utime`).
        fn ticks(&self) -> u64 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(11).unwrap().parse().unwrap()
        }

        fn counts(&self) -> bool {
            let (before, begun) = (self.ticks(), Instant::now());
            while begun.elapsed() < Duration::from_millis(400) {
                if self.ticks() > before + 1 {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            false
        }
    }

    impl Drop for Field {
        fn drop(&mut self) {
            thaw_version_1(&self.dir);
            let _ = self.child.kill();
            let _ = self.child.wait();
            let removed = Instant::now();
            while fs::remove_dir(&self.dir).is_err() && removed.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn either_freezer_stops_a_process_and_lets_it_go_on_or_die() {
        assert!(rustix::process::geteuid().is_root(), "run this as root");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let found: Vec<(PathBuf, bool)> = mounts
            .lines()
            .filter_map(|line| line.split_once(" - "))
            .filter_map(|(mount, rest)| {
                let mut rest = rest.split(' ');
                let point = PathBuf::from(mount.split(' ').nth(4)?);
                match (rest.next()?, rest.nth(1)?) {
                    ("cgroup2", _) => Some((point, true)),
                    ("cgroup", options) if options.split(',').any(|option| option == "freezer") => Some((point, false)),
                    _ => None,
                }
            })
            .collect();
        assert!(!found.is_empty(), "this host has no freezer");
        for (root, version_2) in found {
            eprintln!("{} (version 2: {version_2})", root.display());
            let mut field = Field::at(&root);
            let freezer = Freezer::at(field.dir.clone(), version_2);
            let frozen = |wanted: bool| {
                let begun = Instant::now();
                while freezer.is_frozen().unwrap() != wanted {
                    assert!(begun.elapsed() < Duration::from_secs(5));
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            // Control: it runs while it may.
            assert!(field.counts() && !freezer.is_frozen().unwrap());
            assert_eq!(freezer.events().unwrap().is_some(), version_2);
            freezer.freeze().unwrap();
            frozen(true);
            assert!(!field.counts());
            freezer.thaw().unwrap();
            frozen(false);
            assert!(field.counts());
            // What is killed while it is frozen dies: of version 1 once it is let.
            freezer.freeze().unwrap();
            frozen(true);
            field.child.kill().unwrap();
            thaw_version_1(&field.dir);
            assert!(!field.child.wait().unwrap().success());
        }
    }
}
