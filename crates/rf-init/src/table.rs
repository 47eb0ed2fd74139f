//! The execs, running and ended. Lies in `.bss`: all zero is the empty table.

use rf_sys::guest::FdSlot;
use rf_wire::init::{EXECS_MAX, Exited, Listed};
use rustix::process::Pid;

/// Where an exec is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// No exec.
    Free = 0,
    /// Its first process runs.
    Running = 1,
    /// Its first process was reaped; others of its tree may live.
    Ended = 2,
}

/// One exec.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) phase: Phase,
    /// Whether the server got its `EXITED` or saw it ended in a `LIST`.
    pub(crate) told: bool,
    /// Whether init killed it for its time.
    pub(crate) timed_out: bool,
    /// Whether it has a cgroup directory.
    pub(crate) cgroup: bool,
    /// Whether it ended since the last look at cgroups.
    pub(crate) just_ended: bool,
    /// Whether its cgroup was killed as a whole, so that no other exec may have it.
    pub(crate) cgroup_killed: bool,
    pub(crate) flags: u32,
    /// As of its order.
    pub(crate) rlimits: [u64; 4],
    pub(crate) pid: i32,
    pub(crate) status: u32,
    pub(crate) id: u128,
    /// Names its cgroup: its own id, or that of an earlier exec whose empty cgroup it took over.
    pub(crate) group: u128,
    /// Monotonic, microseconds.
    pub(crate) started_us: u64,
    /// Monotonic, microseconds; 0 is never.
    pub(crate) deadline_us: u64,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) peak_bytes: u64,
    pub(crate) wall_us: u64,
    /// The server's ends that are kept for another server, in the order of `SPAWNED`.
    pub(crate) kept: [FdSlot; 3],
}

impl Exec {
    /// No exec; all zero.
    pub(crate) const FREE: Self = Self {
        phase: Phase::Free,
        told: false,
        timed_out: false,
        cgroup: false,
        just_ended: false,
        cgroup_killed: false,
        flags: 0,
        rlimits: [0; 4],
        pid: 0,
        status: 0,
        id: 0,
        group: 0,
        started_us: 0,
        deadline_us: 0,
        user_us: 0,
        system_us: 0,
        peak_bytes: 0,
        wall_us: 0,
        kept: [FdSlot::EMPTY, FdSlot::EMPTY, FdSlot::EMPTY],
    };

    /// The pid, only while the process is ours to signal: not once it was reaped, for then another may have it.
    pub(crate) fn live_pid(&self) -> Option<Pid> {
        (self.phase == Phase::Running).then(|| Pid::from_raw(self.pid)).flatten()
    }

    /// What `EXITED` says of it.
    pub(crate) fn exited(&self) -> Exited {
        Exited {
            exec: self.id,
            status: self.status,
            timed_out: u32::from(self.timed_out),
            cpu_user_us: self.user_us,
            cpu_system_us: self.system_us,
            memory_peak_bytes: self.peak_bytes,
            wall_us: self.wall_us,
        }
    }

    /// What `EXEC` says of it.
    pub(crate) fn listed(&self, now_us: u64) -> Listed {
        let running = self.phase == Phase::Running;
        let mut exit = self.exited();
        if running {
            exit.wall_us = now_us.saturating_sub(self.started_us);
        }
        Listed { pid: self.pid.unsigned_abs(), flags: self.flags, running: u32::from(running), exit }
    }
}

/// All execs.
#[derive(Debug)]
pub(crate) struct Table {
    execs: [Exec; EXECS_MAX],
    /// No exec is at or above this place, so a sandbox with few execs touches little memory.
    used: usize,
}

impl Table {
    /// The empty table; all zero.
    pub(crate) const EMPTY: Self = Self { execs: [const { Exec::FREE }; EXECS_MAX], used: 0 };

    /// All that are not free, with their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Exec)> {
        self.execs[..self.used].iter().enumerate().filter(|(_, exec)| exec.phase != Phase::Free)
    }

    /// The first place at or after `from` whose exec is like this.
    pub(crate) fn first(&self, from: usize, is_like: impl Fn(&Exec) -> bool) -> Option<usize> {
        self.iter().find(|(place, exec)| *place >= from && is_like(exec)).map(|(place, _)| place)
    }

    /// One place.
    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut Exec> {
        self.execs[..self.used].get_mut(place).filter(|exec| exec.phase != Phase::Free)
    }

    /// The exec of an id.
    pub(crate) fn find(&mut self, id: u128) -> Option<(usize, &mut Exec)> {
        let used = self.used;
        self.execs[..used].iter_mut().enumerate().find(|(_, exec)| exec.phase != Phase::Free && exec.id == id)
    }

    /// The running exec whose first process has this pid.
    pub(crate) fn of_pid(&mut self, pid: i32) -> Option<(usize, &mut Exec)> {
        let used = self.used;
        self.execs[..used].iter_mut().enumerate().find(|(_, exec)| exec.phase == Phase::Running && exec.pid == pid)
    }

    /// A place for a new exec: a free one, else that of the longest ended one (which is given back to be cleaned up),
    /// first of those that the server knows to have ended.
    pub(crate) fn place(&mut self) -> Option<(usize, Option<Exec>)> {
        let free = self.execs[..self.used].iter().position(|exec| exec.phase == Phase::Free);
        if let Some(place) = free.or((self.used < EXECS_MAX).then_some(self.used)) {
            return Some((place, None));
        }
        let ended = |told: bool| {
            let ended = self.iter().filter(|(_, exec)| exec.phase == Phase::Ended && exec.told == told);
            ended.min_by_key(|(_, exec)| exec.started_us.saturating_add(exec.wall_us)).map(|(place, _)| place)
        };
        let place = ended(true).or_else(|| ended(false))?;
        Some((place, Some(core::mem::replace(&mut self.execs[place], Exec::FREE))))
    }

    /// Puts an exec in a place that [`Table::place`] named.
    pub(crate) fn put(&mut self, place: usize, exec: Exec) {
        self.execs[place] = exec;
        self.used = self.used.max(place + 1);
    }

    /// Takes an exec out.
    pub(crate) fn remove(&mut self, place: usize) -> Exec {
        let exec = core::mem::replace(&mut self.execs[place], Exec::FREE);
        while self.used > 0 && self.execs[self.used - 1].phase == Phase::Free {
            self.used -= 1;
        }
        exec
    }

    /// Puts every deadline off.
    pub(crate) fn put_off(&mut self, us: u64) {
        for exec in self.execs[..self.used].iter_mut().filter(|exec| exec.deadline_us != 0) {
            exec.deadline_us = exec.deadline_us.saturating_add(us);
        }
    }

    /// The nearest deadline, monotonic microseconds.
    pub(crate) fn nearest_deadline(&self) -> Option<u64> {
        self.iter().map(|(_, exec)| exec.deadline_us).filter(|deadline| *deadline != 0).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(id: u128, phase: Phase, started_us: u64, told: bool) -> Exec {
        Exec { id, phase, started_us, told, ..Exec::FREE }
    }

    #[test]
    fn a_full_table_gives_up_the_longest_ended_that_was_told() {
        let mut table = Table::EMPTY;
        for id in 0..EXECS_MAX {
            let (place, evicted) = table.place().unwrap();
            assert!(evicted.is_none());
            table.put(place, exec(id as u128, Phase::Running, 1, false));
        }
        assert!(table.place().is_none());
        for (id, started, told) in [(7, 70, true), (8, 60, true), (9, 5, false)] {
            let (_, found) = table.find(id).unwrap();
            (found.phase, found.started_us, found.told) = (Phase::Ended, started, told);
        }
        for expected in [8, 7, 9] {
            let (place, evicted) = table.place().unwrap();
            assert_eq!(evicted.unwrap().id, expected);
            table.put(place, exec(1000 + expected, Phase::Running, 1, false));
        }
        assert!(table.place().is_none());
    }

    #[test]
    fn deadlines_are_put_off_and_never_made() {
        let mut table = Table::EMPTY;
        table.put(0, Exec { deadline_us: 5, ..exec(1, Phase::Running, 1, false) });
        table.put(1, exec(2, Phase::Running, 1, false));
        table.put_off(10);
        assert_eq!((table.nearest_deadline(), table.find(2).unwrap().1.deadline_us), (Some(15), 0));
        table.put_off(u64::MAX);
        assert_eq!(table.nearest_deadline(), Some(u64::MAX));
    }

    #[test]
    fn a_reaped_pid_is_never_signalled() {
        let mut ended = exec(1, Phase::Ended, 0, false);
        ended.pid = 42;
        assert!(ended.live_pid().is_none());
    }
}
