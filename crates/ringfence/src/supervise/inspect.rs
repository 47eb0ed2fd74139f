//! The self-audit: every process of ours as the kernel shows it, and the one rule of the house judged on each: whoever
//! parses strangers' bytes holds no rights.
//!
//! Only `/proc` is read; no process is asked about itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What a process of ours is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// `ringfence up`: starts the two below.
    Supervisor,
    /// The program with rights.
    Warden,
    /// The program that talks to clients.
    Server,
    /// Unpacks a layer, beneath the warden.
    Unpacker,
    /// Counts locks on files for the warden, with two capabilities.
    Counter,
    /// Process 1 of a sandbox.
    Init,
    /// A user's program in a sandbox, or init's child for one file operation.
    Workload,
    /// Something else below us.
    Other,
}

impl Role {
    /// Whose bytes it reads that may be hostile; empty when nobody's.
    fn parses(self) -> &'static str {
        match self {
            Self::Server => "every client's and every sandbox's",
            Self::Unpacker => "a template's layers",
            Self::Init => "its own sandbox's",
            Self::Workload => "its own user's",
            Self::Supervisor | Self::Warden | Self::Counter | Self::Other => "",
        }
    }
}

/// One process.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) role: Role,
    /// Effective user id, as the host sees it.
    pub(crate) uid: u32,
    /// Effective, permitted, inheritable and ambient capabilities together.
    pub(crate) capabilities: u64,
    /// The bounding set.
    pub(crate) bounding: u64,
    pub(crate) no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter.
    pub(crate) seccomp: u32,
    /// Whether it is in another user namespace than the supervisor: its capabilities count only in there.
    pub(crate) own_user_namespace: bool,
    /// Sockets on which it takes connections or datagrams.
    pub(crate) listens: Vec<String>,
    /// Whose bytes it reads that may be hostile.
    pub(crate) parses: &'static str,
    /// What it could do to the host that its user could not; empty when nothing.
    pub(crate) rights: String,
    /// What breaks the rule; empty when nothing does.
    pub(crate) finding: String,
}

/// What the audit says.
#[derive(Debug, Serialize)]
pub(crate) struct Audit {
    /// Whether the rule holds.
    pub(crate) holds: bool,
    /// Whether the supervisor runs as root.
    pub(crate) rooted: bool,
    pub(crate) processes: Vec<Process>,
    /// What is wrong beside single processes, such as a part that is missing.
    pub(crate) findings: Vec<String>,
}

/// Looks at `supervisor` and everything below it.
///
/// # Errors
/// `/proc` cannot be read, or there is no such process.
pub(crate) fn audit(supervisor: u32) -> Result<Audit> {
    let home = namespace(supervisor).context("cannot look at the supervisor")?;
    let mut processes = Vec::new();
    let mut findings = Vec::new();
    let children = children()?;
    let mut open = vec![(supervisor, Role::Supervisor)];
    while let Some((pid, role)) = open.pop() {
        // A process may end while we look; then there is nothing left to judge.
        let found = match look(pid, role, &home) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                findings.push(format!("process {pid} ({role:?}) cannot be looked at: {error}; run this as root"));
                continue;
            }
        };
        for child in children.get(&pid).into_iter().flatten() {
            open.push((*child, role_of(*child, found.role)));
        }
        processes.push(found);
    }
    for role in [Role::Warden, Role::Server] {
        if !processes.iter().any(|process| process.role == role) {
            findings.push(format!("there is no {role:?} below the supervisor"));
        }
    }
    processes.sort_by_key(|process| (process.role, process.pid));
    let rooted = processes.iter().any(|process| process.role == Role::Supervisor && process.uid == 0);
    let holds = findings.is_empty() && processes.iter().all(|process| process.finding.is_empty());
    Ok(Audit { holds, rooted, processes, findings })
}

/// What a child of a process of this role is, by what the kernel says of it.
fn role_of(pid: u32, parent: Role) -> Role {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = arguments.split(|b| *b == 0).nth(1).unwrap_or_default();
    let depth = status(pid).map_or(1, |status| field(&status, "NSpid").map_or(1, |ids| ids.split_whitespace().count()));
    match (parent, first) {
        (Role::Supervisor, b"warden") => Role::Warden,
        (Role::Supervisor, b"server") => Role::Server,
        (Role::Warden, b"unpack") => Role::Unpacker,
        (Role::Warden, b"warden") if depth == 1 && name(pid) == rf_sandbox::locks::NAME => Role::Counter,
        // A copy of it that changes a sandbox's root or gives up a disk, and ends.
        (Role::Warden, b"warden") if depth == 1 => Role::Warden,
        (Role::Warden, _) if depth > 1 => Role::Init,
        (Role::Init | Role::Workload, _) => Role::Workload,
        _ => Role::Other,
    }
}

fn look(pid: u32, role: Role, home: &PathBuf) -> io::Result<Process> {
    let status = status(pid)?;
    let number =
        |name| field(&status, name).and_then(|text| text.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
    let hex = |name| field(&status, name).and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let small = |name| field(&status, name).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    // Real, effective, saved, file system: the second is what counts. Unreadable counts as root.
    let uid: u32 = number("Uid").unwrap_or(0);
    let capabilities = hex("CapEff") | hex("CapPrm") | hex("CapInh") | hex("CapAmb");
    let own_user_namespace = namespace(pid)? != *home;
    let mut process = Process {
        pid,
        role,
        uid,
        capabilities,
        bounding: hex("CapBnd"),
        no_new_privs: small("NoNewPrivs") == 1,
        seccomp: small("Seccomp"),
        own_user_namespace,
        // What listens inside a sandbox is reached by nobody outside it, and there may be thousands.
        listens: if own_user_namespace { Vec::new() } else { listeners(pid)? },
        parses: role.parses(),
        rights: String::new(),
        finding: String::new(),
    };
    judge(&mut process);
    Ok(process)
}

/// Names the rights of a process and what breaks the rule.
fn judge(process: &mut Process) {
    let mut rights = Vec::new();
    if !process.own_user_namespace {
        if process.uid == 0 {
            rights.push("runs as root".to_owned());
        }
        if process.capabilities != 0 {
            rights.push(format!("{} capabilities", process.capabilities.count_ones()));
        }
        if !process.no_new_privs && !process.parses.is_empty() {
            rights.push("may gain rights by a set-user-id program".to_owned());
        }
    } else if process.uid == 0 {
        rights.push("is root of the host in a user namespace".to_owned());
    }
    process.rights = rights.join(", ");
    let network = process.listens.iter().any(|socket| !socket.starts_with("unix"));
    process.finding = match process.role {
        // A listener that strangers reach makes a parser of whoever holds it.
        Role::Supervisor | Role::Warden | Role::Counter | Role::Other if network => {
            format!("holds rights or none that we know, and listens on {}", process.listens.join(", "))
        }
        Role::Other => "is no process that we know".to_owned(),
        _ if !process.parses.is_empty() && !process.rights.is_empty() => {
            format!("parses {} bytes and {}", process.parses, process.rights)
        }
        Role::Init | Role::Workload if !process.own_user_namespace => "is outside a sandbox".to_owned(),
        Role::Init | Role::Workload | Role::Counter if process.seccomp != 2 => "has no system call filter".to_owned(),
        _ => String::new(),
    };
}

fn status(pid: u32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
}

/// The name that a process gave itself (proc_pid_comm(5)).
fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn namespace(pid: u32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/user"))
}

/// Who is whose child, over the whole host.
fn children() -> Result<BTreeMap<u32, Vec<u32>>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(status) = status(pid) else { continue };
        if let Some(parent) = field(&status, "PPid").and_then(|text| text.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    Ok(children)
}

/// The listening sockets among a process's descriptors.
fn listeners(pid: u32) -> io::Result<Vec<String>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(link) = fs::read_link(entry?.path()) else { continue };
        let inode =
            link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
        inodes.extend(inode);
    }
    let mut found = Vec::new();
    // proc_net(5): the local address is column 1, the state column 3, the inode column 9.
    for (table, listening) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            let inode = words.get(9).and_then(|word| word.parse().ok());
            if words.get(3) == Some(&listening) && inode.is_some_and(|inode| inodes.contains(&inode)) {
                found.push(format!("{table} {}", address(words[1])));
            }
        }
    }
    // The flag is __SO_ACCEPTCON; the inode is column 6 and the path, if any, column 7.
    let text = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    for line in text.lines().skip(1) {
        let words: Vec<_> = line.split_whitespace().collect();
        let inode = words.get(6).and_then(|word| word.parse().ok());
        if words.get(3) == Some(&"00010000") && inode.is_some_and(|inode| inodes.contains(&inode)) {
            found.push(format!("unix {}", words.get(7).unwrap_or(&"unnamed")));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// An address of `/proc/net`: 32-bit words in the host's order, then the port.
fn address(text: &str) -> String {
    let Some((ip, port)) = text.split_once(':') else { return text.to_owned() };
    let port = u16::from_str_radix(port, 16).unwrap_or(0);
    let words: Option<Vec<u8>> = (0..ip.len() / 8)
        .map(|n| u32::from_str_radix(&ip[n * 8..n * 8 + 8], 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    match words.as_deref() {
        Some(&[a, b, c, d]) => format!("{a}.{b}.{c}.{d}:{port}"),
        Some(bytes) => match <[u8; 16]>::try_from(bytes) {
            Ok(bytes) => format!("[{}]:{port}", std::net::Ipv6Addr::from(bytes)),
            Err(_) => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(role: Role) -> Process {
        Process {
            pid: 1,
            role,
            uid: 1000,
            capabilities: 0,
            bounding: 0,
            no_new_privs: true,
            seccomp: 2,
            own_user_namespace: matches!(role, Role::Init | Role::Workload),
            listens: Vec::new(),
            parses: role.parses(),
            rights: String::new(),
            finding: String::new(),
        }
    }

    fn finding(change: impl FnOnce(&mut Process), role: Role) -> String {
        let mut process = process(role);
        change(&mut process);
        judge(&mut process);
        process.finding
    }

    #[test]
    fn a_parser_with_rights_is_found_and_one_without_is_not() {
        assert_eq!(finding(|_| (), Role::Server), "");
        assert!(finding(|p| p.uid = 0, Role::Server).contains("runs as root"));
        assert!(finding(|p| p.capabilities = 1 << 21, Role::Server).contains("1 capabilities"));
        assert!(finding(|p| p.no_new_privs = false, Role::Server).contains("gain rights"));
        assert!(finding(|p| p.uid = 0, Role::Unpacker).contains("runs as root"));
        assert_eq!(finding(|p| p.listens.push("tcp 127.0.0.1:7070".to_owned()), Role::Server), "");
    }

    #[test]
    fn rights_with_a_door_to_strangers_are_found() {
        assert_eq!(finding(|p| p.uid = 0, Role::Warden), "");
        assert_eq!(finding(|p| p.listens.push("unix /run/warden.sock".to_owned()), Role::Warden), "");
        assert!(finding(|p| p.listens.push("tcp 0.0.0.0:80".to_owned()), Role::Warden).contains("0.0.0.0:80"));
        assert!(!finding(|_| (), Role::Other).is_empty());
    }

    #[test]
    fn a_sandbox_that_is_none_is_found() {
        assert_eq!(finding(|p| p.capabilities = 255, Role::Init), "");
        assert!(!finding(|p| p.own_user_namespace = false, Role::Init).is_empty());
        assert!(!finding(|p| p.seccomp = 0, Role::Workload).is_empty());
        assert_eq!(finding(|p| p.uid = 0, Role::Counter), "");
        assert!(!finding(|p| p.seccomp = 0, Role::Counter).is_empty());
        assert!(!finding(|p| p.uid = 0, Role::Init).is_empty());
    }

    #[test]
    fn an_audit_of_a_process_that_is_no_supervisor_fails() {
        let audit = audit(std::process::id()).unwrap();
        assert!(!audit.holds);
        assert!(audit.findings.iter().any(|finding| finding.contains("no Server")));
        assert_eq!(audit.processes.iter().filter(|p| p.role == Role::Supervisor).count(), 1);
    }

    #[test]
    fn a_listener_is_seen_where_it_is() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let named = format!("tcp {}", listener.local_addr().unwrap());
        assert!(listeners(std::process::id()).unwrap().contains(&named));
        drop(listener);
        assert!(!listeners(std::process::id()).unwrap().contains(&named));
    }
}
