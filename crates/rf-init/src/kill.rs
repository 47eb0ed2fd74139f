//! Ending a whole tree of processes.
//!
//! With cgroups that is one write which nothing in the tree can escape (`cgroup.kill`, Linux 5.14). Without them it is
//! weaker: descendants and members of the same session are looked for in `/proc` until none is found. The first process of
//! an exec then takes the orphans of its tree (`PR_SET_CHILD_SUBREAPER`, prctl(2)), so they are found while it lives; of
//! an exec whose first process has ended, one that made a session of its own is missed.

use core::ffi::CStr;

use rf_sys::guest::{cstr, directory_entries};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat},
    io::{Errno, read, write},
    process::{Pid, Signal, kill_process},
};

use crate::text::Name;

/// Rounds of looking for processes before giving up; each round kills all it finds.
const ROUNDS_MAX: usize = 64;
/// Most processes of a sandbox looked at in one round without cgroups.
const PROCESSES_MAX: usize = 1024;

/// Opens a cgroup that is there.
pub(crate) fn open_cgroup(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the cgroup of an exec and opens it.
pub(crate) fn make_cgroup(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    open_cgroup(parent, name)
}

/// Whether no process is in a cgroup or below it (`populated 0` in cgroup.events; the cgroup-v2 document).
pub(crate) fn is_empty_cgroup(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    let Ok(file) = open_below(parent, name, b"cgroup.events", OFlags::RDONLY) else { return false };
    let mut text = [0; 64];
    read(&file, &mut text).is_ok_and(|len| text[..len].starts_with(b"populated 0\n"))
}

/// Removes the cgroup of an exec. See [`Errno::BUSY`] while processes are in it.
pub(crate) fn remove_cgroup(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn open_below(parent: BorrowedFd<'_>, name: &CStr, file: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = Name::<96>::of(&[name.to_bytes(), b"/", file]).ok_or(Errno::NAMETOOLONG)?;
    openat(parent, path.cstr(), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Kills everything in a cgroup.
///
/// Before Linux 5.14, which has no `cgroup.kill`, by signals until nothing is left; a fork bomb may outrun that.
pub(crate) fn kill_cgroup(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match open_below(parent, name, b"cgroup.kill", OFlags::WRONLY) {
        Ok(file) => write(&file, b"1").map(drop),
        Err(Errno::NOENT) => {
            signal_cgroup(parent, name, Signal::KILL)?;
            for _ in 1..ROUNDS_MAX {
                if signal_cgroup(parent, name, Signal::KILL).is_err() {
                    break;
                }
            }
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

/// Sends a signal to every process in a cgroup. A process made meanwhile may be missed, as with kill(2) of a group.
pub(crate) fn signal_cgroup(parent: BorrowedFd<'_>, name: &CStr, signal: Signal) -> Result<(), Errno> {
    let mut sent = false;
    pids(parent, name, &mut |pid| sent |= kill_process(pid, signal).is_ok())?;
    if sent { Ok(()) } else { Err(Errno::SRCH) }
}

/// The exec's cgroup that a process is in, if it is in one.
pub(crate) fn group_of(parent: BorrowedFd<'_>, wanted: i32) -> Option<u128> {
    let mut found = None;
    each_group(parent, &mut |name, group| {
        let mut is_there = false;
        // One that cannot be read has nobody in it.
        let _ = pids(parent, name, &mut |pid| is_there |= pid.as_raw_pid() == wanted);
        if is_there {
            found = Some(group);
        }
    });
    found
}

/// Every process of a cgroup.
fn pids(parent: BorrowedFd<'_>, name: &CStr, visit: &mut dyn FnMut(Pid)) -> Result<(), Errno> {
    let file = open_below(parent, name, b"cgroup.procs", OFlags::RDONLY)?;
    let mut buffer = [0; 2048];
    let mut number = 0_i32;
    loop {
        let len = read(&file, &mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        for byte in &buffer[..len] {
            match byte {
                b'0'..=b'9' => number = number.saturating_mul(10).saturating_add(i32::from(byte - b'0')),
                _ => {
                    // 0 is a process of another pid namespace: not ours.
                    if let Some(pid) = Pid::from_raw(number) {
                        visit(pid);
                    }
                    number = 0;
                }
            }
        }
    }
}

/// One process as `/proc/PID/stat` has it.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    ours: bool,
}

/// Signals the descendants of `leader` and the members of its session; with SIGKILL until none is left. `is_live` tells
/// whether the leader is still ours to signal: once it was reaped, only its session is left of it.
pub(crate) fn signal_tree(leader: i32, is_live: bool, signal: Signal) -> Result<(), Errno> {
    let kills = signal == Signal::KILL;
    let leader_pid = Pid::from_raw(leader).filter(|_| is_live);
    if let Some(pid) = leader_pid.filter(|_| kills) {
        // It takes its tree's orphans, so it goes last; and makes no new children meanwhile.
        let _ = kill_process(pid, Signal::STOP);
    }
    let mut sent = false;
    for _ in 0..ROUNDS_MAX {
        let mut found = [Process::default(); PROCESSES_MAX];
        let count = processes(&mut found)?;
        let found = &mut found[..count];
        if !is_live && found.iter().any(|process| process.pid == leader) {
            // A number is given anew only when no session has it: nothing is left, and this is another's.
            break;
        }
        mark(found, leader);
        let mut any = false;
        for process in found.iter().filter(|process| process.ours && !(kills && process.pid == leader)) {
            any |= Pid::from_raw(process.pid).is_some_and(|pid| kill_process(pid, signal).is_ok());
        }
        sent |= any;
        if !any || !kills {
            break;
        }
    }
    if let Some(pid) = leader_pid.filter(|_| kills) {
        sent |= kill_process(pid, signal).is_ok();
    }
    if sent { Ok(()) } else { Err(Errno::SRCH) }
}

fn mark(processes: &mut [Process], leader: i32) {
    loop {
        let mut changed = false;
        for index in 0..processes.len() {
            let process = processes[index];
            let is_ours = process.pid == leader
                || process.session == leader
                || processes.iter().any(|other| other.ours && other.pid == process.parent);
            // Never ourselves, whatever the table says.
            if is_ours && !process.ours && process.pid > 1 {
                processes[index].ours = true;
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

/// Every living process that `/proc` shows; zombies are left out, or a tree would never seem to end.
fn processes(found: &mut [Process]) -> Result<usize, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, c"/proc", flags, Mode::empty())?;
    let mut buffer = [0; 4096];
    let mut count = 0;
    loop {
        let len = directory_entries(proc.as_fd(), &mut buffer)?;
        if len == 0 {
            return Ok(count);
        }
        for entry in crate::text::Entries::new(&buffer[..len]) {
            let name = entry.name.to_bytes();
            if !name.iter().all(u8::is_ascii_digit) {
                continue;
            }
            let Some(path) = Name::<32>::of(&[name, b"/stat"]) else { continue };
            let Ok(file) = openat(&proc, path.cstr(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
                continue;
            };
            let mut text = [0; 512];
            let Ok(len) = read(&file, &mut text) else { continue };
            if let Some(process) = stat_line(&text[..len])
                && let Some(slot) = found.get_mut(count)
            {
                *slot = process;
                count += 1;
            }
        }
    }
}

/// `pid (name) state ppid pgrp session ...` (proc_pid_stat(5)); the name may have anything in it.
fn stat_line(line: &[u8]) -> Option<Process> {
    let after = line.iter().rposition(|byte| *byte == b')')?;
    let number = |digits: &[u8]| core::str::from_utf8(digits).ok()?.parse::<i32>().ok();
    let mut fields = line.get(after + 2..)?.split(|byte| *byte == b' ');
    if matches!(fields.next()?, b"Z" | b"X") {
        return None;
    }
    let parent = number(fields.next()?)?;
    let session = number(fields.nth(1)?)?;
    let pid = number(line.split(|byte| *byte == b' ').next()?)?;
    Some(Process { pid, parent, session, ours: false })
}

/// The name of an exec's cgroup.
pub(crate) fn cgroup_name(id: u128) -> [u8; 33] {
    let mut name = [0; 33];
    for (index, digit) in name[..32].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(id >> (124 - 4 * index)) as usize & 15];
    }
    name
}

/// The exec's id that a cgroup's name stands for.
pub(crate) fn id_of_cgroup(name: &[u8]) -> Option<u128> {
    if name.len() != 32 || !name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    core::str::from_utf8(name).ok().and_then(|text| u128::from_str_radix(text, 16).ok())
}

/// Tries again to remove the cgroups of execs that are forgotten; `known` tells which are not. True when some are left.
pub(crate) fn sweep(parent: BorrowedFd<'_>, known: &dyn Fn(u128) -> bool) -> bool {
    let mut are_left = false;
    let is_whole = each_group(parent, &mut |name, group| {
        if !known(group) {
            // Still in use: tried again at the next sweep.
            are_left |= remove_cgroup(parent, name).is_err();
        }
    });
    are_left || !is_whole
}

/// Gives each exec's cgroup to `visit`; false when they cannot be listed.
fn each_group(parent: BorrowedFd<'_>, visit: &mut dyn FnMut(&CStr, u128)) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = openat(parent, c".", flags, Mode::empty()) else { return false };
    let mut buffer = [0; 4096];
    while let Ok(len) = directory_entries(directory.as_fd(), &mut buffer) {
        if len == 0 {
            break;
        }
        for entry in crate::text::Entries::new(&buffer[..len]) {
            if let Some(group) = id_of_cgroup(entry.name.to_bytes()) {
                visit(entry.name, group);
            }
        }
    }
    true
}

/// The name as the kernel wants it.
pub(crate) fn name_cstr(name: &[u8; 33]) -> &CStr {
    cstr(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_named_by_the_id_in_hex_and_back() {
        for id in [0, 1, 0x0123_4567_89ab_cdef_0011_2233_4455_6677, u128::MAX] {
            let name = cgroup_name(id);
            assert_eq!(name_cstr(&name).to_str().unwrap(), format!("{id:032x}"));
            assert_eq!(id_of_cgroup(&name[..32]), Some(id));
        }
        assert_eq!(id_of_cgroup(b"files"), None);
        assert_eq!(id_of_cgroup(b"0123456789ABCDEF0123456789ABCDEF"), None);
    }

    #[test]
    fn a_process_name_cannot_forge_its_stat_line() {
        let process = stat_line(b"12 (a) R 1 1 1) S 7 8 9 0 -1").unwrap();
        assert_eq!((process.pid, process.parent, process.session), (12, 7, 9));
        assert!(stat_line(b"12 (a) Z 7 8 9").is_none());
        assert!(stat_line(b"12 (a").is_none());
    }

    #[test]
    fn a_tree_is_descendants_and_session_and_never_process_1() {
        let of = |pid, parent, session| Process { pid, parent, session, ours: false };
        let mut all = [of(1, 0, 0), of(5, 1, 5), of(6, 5, 5), of(7, 6, 7), of(8, 1, 5), of(9, 1, 9)];
        mark(&mut all, 5);
        let ours: Vec<_> = all.iter().filter(|process| process.ours).map(|process| process.pid).collect();
        assert_eq!(ours, [5, 6, 7, 8]);
    }
}
