//! The end of a sandbox: every process is killed, then their groups go.
//!
//! Whoever is killed is gone within milliseconds, unless it waits for a device that does not answer: it takes its
//! SIGKILL only once it wakes (signal(7)), which may be never. The warden has one thread, so nothing here waits for
//! longer than [`DROP_TIME`]; an [`Ending`] is asked again and again, for as long as it takes.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions},
};

use crate::{
    cgroup::Group,
    launch::{Sandbox, Starting},
    plan::Ids,
};

/// Longest that dropping a process of ours waits for its end. Chosen: far more than it takes but for who waits for a
/// device, and far less than the server's patience with a silent warden.
pub(crate) const DROP_TIME: Duration = Duration::from_millis(200);

/// Kills a child of ours and waits for it, up to [`DROP_TIME`]; whether it is gone. What is not is reaped by whoever
/// reaps the warden.
pub(crate) fn kill_and_wait(pidfd: BorrowedFd<'_>) -> bool {
    // An error says that it has ended already.
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    let begun = Instant::now();
    loop {
        if try_reap(pidfd) {
            return true;
        }
        let left = DROP_TIME.saturating_sub(begun.elapsed());
        let Ok(wait) = Timespec::try_from(left) else { return false };
        if left.is_zero() {
            return false;
        }
        // Interrupted, or refused: the time above bounds how often.
        let _ = poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&wait));
    }
}

/// Waits up to [`DROP_TIME`] until a descriptor is readable.
pub(crate) fn wait(fd: BorrowedFd<'_>) {
    let begun = Instant::now();
    loop {
        let left = DROP_TIME.saturating_sub(begun.elapsed());
        let Ok(wait) = Timespec::try_from(left) else { return };
        // Interrupted it is asked again; refused for any other reason there is nothing to wait for.
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&wait)) {
            Err(Errno::INTR) if !left.is_zero() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Takes the end of a child of ours, if it has ended.
pub(crate) fn try_reap(pidfd: BorrowedFd<'_>) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let ended = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options));
    // An error says that it was never ours to reap.
    !matches!(ended, Ok(None))
}

#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// Kills the sandbox's processes and removes its groups when dropped.
#[derive(Debug)]
pub(crate) struct Cleanup {
    pub(crate) group: Group,
    pub(crate) child: Option<Child>,
    /// Every process was killed.
    killed: bool,
    removed: bool,
}

impl Cleanup {
    pub(crate) const fn new(group: Group) -> Self {
        Self { group, child: None, killed: false, removed: false }
    }

    pub(crate) fn kill(&mut self) {
        self.killed = true;
        self.group.kill();
        if let Some(child) = &self.child {
            // An error says that it has ended already.
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
        }
        self.group.let_die();
    }

    /// Takes the exit of process 1, and with it of all: the kernel ends a pid namespace with its first process.
    fn reap(&mut self) -> bool {
        if self.child.as_ref().is_some_and(|child| !try_reap(child.pidfd.as_fd())) {
            return false;
        }
        self.child = None;
        true
    }

    /// Whether nothing of it is left.
    fn try_finish(&mut self) -> bool {
        if self.reap() && self.group.remove().is_ok() {
            self.removed = true;
        }
        self.removed
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // Who was killed before was waited for as long as somebody wanted to.
        if !self.killed {
            self.kill();
            if let Some(child) = &self.child
                && kill_and_wait(child.pidfd.as_fd())
            {
                self.child = None;
            }
        }
        // What is left is swept at the warden's next start.
        self.try_finish();
    }
}

/// What is left of a sandbox, or of one on its way up, while its processes die: all of them were killed.
///
/// Dropped, it waits for nothing; what is left then is swept at the warden's next start.
#[derive(Debug)]
pub struct Ending {
    ids: Ids,
    cleanup: Cleanup,
}

impl Ending {
    /// The ids that are not free until it has finished.
    #[must_use]
    pub const fn ids(&self) -> Ids {
        self.ids
    }

    /// Readable when process 1, and with it every process, has ended; `None` once that was taken.
    #[must_use]
    pub fn ended(&self) -> Option<BorrowedFd<'_>> {
        self.cleanup.child.as_ref().map(|child| child.pidfd.as_fd())
    }

    /// Ends it for good once its processes are gone: `true` when nothing of it is left. `false` while a process is
    /// still dying, or the kernel still counts one in a group: call again.
    pub fn try_finish(&mut self) -> bool {
        self.cleanup.try_finish()
    }
}

impl Starting {
    /// Begins its end: kills every process.
    #[must_use]
    pub fn end(self) -> Ending {
        // As of a sandbox, without its disk.
        let (plan, mut cleanup) = self.into_parts();
        cleanup.kill();
        Ending { ids: plan.ids, cleanup }
    }
}

impl Sandbox {
    /// Begins its end: kills every process.
    #[must_use]
    pub fn end(mut self) -> Ending {
        // Its last user frees it, which takes as long as it holds much: not the warden, but a process that ends.
        self.disk = None;
        self.cleanup.kill();
        Ending { ids: self.plan.ids, cleanup: self.cleanup }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, process::Command};

    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;
    use crate::{host::HostReport, push::Helper};

    /// A process that takes no SIGKILL for as long as this is there: the freezer of version 1 holds it, as a device that
    /// does not answer would.
    struct Held {
        dir: PathBuf,
        child: std::process::Child,
    }

    impl Held {
        fn new() -> Self {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let freezer = mounts.lines().filter_map(|line| line.split_once(" - ")).find_map(|(mount, rest)| {
                let mut rest = rest.split(' ');
                let is_freezer = rest.next()? == "cgroup" && rest.nth(1)?.split(',').any(|option| option == "freezer");
                is_freezer.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
            });
            let freezer =
                freezer.expect("run this where the freezer of version 1 is mounted: nothing else holds a process");
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let dir = freezer.join(format!("ringfence-test-ending-{}-{number}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            let held = Self { dir, child };
            held.put("FROZEN");
            held
        }

        fn put(&self, state: &str) {
            fs::write(self.dir.join("freezer.state"), state).unwrap();
            let begun = Instant::now();
            while fs::read_to_string(self.dir.join("freezer.state")).unwrap().trim() != state {
                assert!(begun.elapsed() < Duration::from_secs(5));
            }
        }

        fn process(&self) -> Child {
            let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
            Child { pid, pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap() }
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = fs::write(self.dir.join("freezer.state"), "THAWED");
            let _ = self.child.kill();
            let _ = self.child.wait();
            let begun = Instant::now();
            while fs::remove_dir(&self.dir).is_err() && begun.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn takes<T>(act: impl FnOnce() -> T) -> (Duration, T) {
        let begun = Instant::now();
        let result = act();
        (begun.elapsed(), result)
    }

    /// A group of the test's own, with what stands for process 1.
    fn cleanup(name: &str, child: Child) -> Cleanup {
        let base = format!("ringfence-test-ending-{}-{name}", std::process::id());
        let host = HostReport::probe(&base).unwrap();
        let mut cleanup = Cleanup::new(host.hierarchies.create(name, None, false, None).unwrap());
        cleanup.child = Some(child);
        cleanup
    }

    fn remove_base(name: &str) {
        let base = format!("ringfence-test-ending-{}-{name}", std::process::id());
        HostReport::probe(&base).unwrap().hierarchies.remove_base();
    }

    #[test]
    fn who_takes_no_sigkill_is_waited_for_within_bounds_and_taken_later() {
        assert!(rustix::process::geteuid().is_root(), "run this as root");
        let held = Held::new();
        let cleanup_of = cleanup("later", held.process());
        let mut ending = Ending { ids: Ids::One { uid: 0, gid: 0 }, cleanup: cleanup_of };
        ending.cleanup.kill();
        let (time, finished) = takes(|| ending.try_finish());
        assert!(!finished && time < DROP_TIME, "{time:?}");
        held.put("THAWED");
        let begun = Instant::now();
        while !ending.try_finish() {
            assert!(begun.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(ending.ended().is_none());
        remove_base("later");
    }

    #[test]
    fn dropping_waits_no_longer_than_its_bound() {
        assert!(rustix::process::geteuid().is_root(), "run this as root");
        let most = DROP_TIME + Duration::from_secs(2);
        for name in ["cleanup", "killed"] {
            let held = Held::new();
            let mut dropped = cleanup(name, held.process());
            if name == "killed" {
                dropped.kill();
            }
            let (time, ()) = takes(|| drop(dropped));
            assert!(time < if name == "killed" { DROP_TIME } else { most }, "{name}: {time:?}");
            remove_base(name);
        }
        let held = Held::new();
        let helper = Helper::new(held.process().pidfd);
        let (time, ()) = takes(|| drop(helper));
        assert!(time < most, "{time:?}");
        // Control: one that can be killed is gone when it was dropped.
        held.put("THAWED");
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        drop(Helper::new(pidfd_open(pid, PidfdFlags::empty()).unwrap()));
        assert!(child.try_wait().is_err(), "it was reaped");
    }
}
