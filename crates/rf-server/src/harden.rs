//! Looks whether this process holds rights. The server parses strangers' bytes, so under a supervisor with root it must
//! not: the check is of what the kernel says, not of what the supervisor meant to do.

use std::{fs, path::Path};

/// What of the process is a right, as `/proc/self/status` tells it (proc_pid_status(5)).
///
/// # Errors
/// In words: which right it holds, or that it could gain one, or that the kernel does not say.
pub fn holds_no_rights() -> Result<(), String> {
    let status = fs::read_to_string(Path::new("/proc/self/status"))
        .map_err(|error| format!("cannot read what rights this process has: {error}"))?;
    judge(&status)
}

fn judge(status: &str) -> Result<(), String> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).ok_or_else(|| format!("the kernel does not say `{name}`"))
    };
    let ids: Vec<&str> = field("Uid")?.split_whitespace().chain(field("Gid")?.split_whitespace()).collect();
    if ids.contains(&"0") {
        return Err("this process has user or group 0".to_owned());
    }
    let groups = field("Groups")?;
    if !groups.is_empty() {
        return Err(format!("this process has other groups beside its own: {groups}"));
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let value = field(set)?;
        if value.is_empty() || value.bytes().any(|b| b != b'0') {
            return Err(format!("this process holds capabilities: {set} is {value}"));
        }
    }
    match field("NoNewPrivs")? {
        "1" => Ok(()),
        _ => Err("this process could gain rights: no_new_privs is not set".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";

    #[test]
    fn every_right_is_seen() {
        assert_eq!(judge(GOOD), Ok(()));
        for (from, to) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t0\t7\t7"),
            ("Gid:\t7\t7\t7\t7", "Gid:\t7\t7\t7\t0"),
            ("Groups:\t ", "Groups:\t6 42 "),
            ("Groups:\t ", ""),
            ("CapInh:\t0", "CapInh:\t1"),
            ("CapPrm:\t0", "CapPrm:\t1"),
            ("CapEff:\t0", "CapEff:\t2"),
            ("CapAmb:\t0", "CapAmb:\tf"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("NoNewPrivs:\t1", ""),
        ] {
            assert!(judge(&GOOD.replace(from, to)).is_err(), "{to}");
        }
    }
}
