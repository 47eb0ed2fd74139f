//! What the kernel holds of a sandbox, read back after its start from `/proc`, its cgroups and init's own trials.
//!
//! A layer that the plan holds and that is not found is an error: the launch is refused, whatever the calls returned.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use crate::{
    cgroup::Group,
    ending::Child,
    launch::LaunchError,
    plan::{Ids, Plan},
    setup::Facts,
};
use rf_sys::process::namespace_of;
use rf_types::{DiskKind, Enforcement, Held, Layer, LayerReport};
use rf_wire::init::{Ready, ready};

/// Reads back every layer.
pub(crate) fn read_back(
    plan: &Plan,
    child: &Child,
    group: &Group,
    facts: &Facts,
    ready: Ready,
    own: &OwnNamespaces,
) -> Result<Enforcement, LaunchError> {
    let seen = Seen::of(child, own);
    let mut layers = Vec::with_capacity(Layer::ALL.len());
    for layer in Layer::ALL {
        let (held, evidence) = if plan.holds(layer) {
            match look(layer, plan, &seen, group, facts, ready) {
                (true, evidence) => (partly(layer, plan, group), evidence),
                (false, evidence) => return Err(LaunchError::NotHeld { layer, evidence }),
            }
        } else {
            (Held::Absent, "absent, as the request accepted".to_owned())
        };
        layers.push(LayerReport { layer, held, evidence });
    }
    let mode = match plan.ids {
        Ids::Range { .. } => "rooted",
        Ids::One { .. } => "rootless",
    };
    Ok(Enforcement { level: "namespaces".to_owned(), mode: mode.to_owned(), layers })
}

/// Reads the limits again after a change.
pub(crate) fn refresh_limits(enforcement: &mut Enforcement, group: &Group) {
    for report in &mut enforcement.layers {
        if let Some(evidence) = group.read_back(report.layer) {
            report.evidence = evidence;
        }
    }
}

/// What of a layer that is held is still missing, by its nature.
fn partly(layer: Layer, plan: &Plan, group: &Group) -> Held {
    let missing = match (layer, plan.ids) {
        (Layer::User, Ids::One { .. }) => "one host id only: every sandbox of this warden has the same",
        (Layer::Memory, _) if group.hierarchies().memory_is_version_1() => {
            "buffers of TCP sockets: cgroup version 1 counts them apart; held to a quarter of the memory limit, and past \
             that to some 25 KiB a connection"
        }
        (Layer::Io, _) if plan.disk == DiskKind::Image && group.hierarchies().io_is_version_1() => {
            "what the kernel writes later: cgroup version 1 counts it for nobody. Held are reads, and writes that their \
             program waits for"
        }
        (Layer::Tasks, _) if !group.hierarchies().has_v2() => {
            "a group for each exec: cgroup version 1 alone. Killing an exec finds its processes in /proc, and not one that \
             detached itself from a first process that has ended"
        }
        (Layer::Landlock, _) if rf_sys::landlock::abi() < 6 => {
            "scopes of signals and abstract sockets (Landlock ABI 6); the pid and net namespaces hold both"
        }
        _ => return Held::Full,
    };
    Held::Partial { missing: missing.to_owned() }
}

/// What `/proc` says of the sandbox's process 1.
struct Seen<'a> {
    pid: i32,
    pidfd: BorrowedFd<'a>,
    status: String,
    /// `/proc/PID/cgroup`.
    cgroup: String,
    /// Of its root; an error's text when it cannot be had.
    root: Result<rustix::fs::StatFs, String>,
    own: &'a OwnNamespaces,
}

/// The warden's own namespaces, by their names in `/proc/self/ns`.
#[derive(Debug)]
pub(crate) struct OwnNamespaces(Vec<(&'static str, PathBuf)>);

impl OwnNamespaces {
    /// Looks once: they do not change after the warden has made its mount namespace.
    pub(crate) fn look() -> Self {
        let names = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];
        // One that cannot be read is missing, and then the sandbox's counts as not seen.
        let read = |name| fs::read_link(format!("/proc/self/ns/{name}")).ok().map(|link| (name, link));
        Self(names.into_iter().filter_map(read).collect())
    }

    fn get(&self, name: &str) -> Option<&Path> {
        self.0.iter().find(|(own, _)| *own == name).map(|(_, link)| link.as_path())
    }
}

impl<'a> Seen<'a> {
    fn of(child: &'a Child, own: &'a OwnNamespaces) -> Self {
        let pid = child.pid.as_raw_pid();
        // Nothing read is nothing held: every look below then fails.
        let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let root = rustix::fs::statfs(format!("/proc/{pid}/root")).map_err(|errno| errno.to_string());
        Self { pid, pidfd: child.pidfd.as_fd(), status: read("status"), cgroup: read("cgroup"), root, own }
    }

    /// A line of `status`; proc_pid_status(5).
    fn line(&self, name: &str) -> Option<&str> {
        self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// Whether its namespace is another than ours, and its name.
    fn namespace(&self, name: &str) -> (bool, String) {
        // By the process itself, where the kernel can; a name in `/proc` stays in its caches, 1 KiB each, as long as the
        // process lives.
        let number = namespace_of(self.pidfd, name).and_then(rustix::fs::fstat).map(|stat| stat.st_ino);
        let theirs = match number {
            Ok(number) => Ok(PathBuf::from(format!("{name}:[{number}]"))),
            Err(_) => fs::read_link(format!("/proc/{}/ns/{name}", self.pid)),
        };
        match (theirs, self.own.get(name)) {
            (Ok(theirs), Some(ours)) => (theirs != ours, theirs.to_string_lossy().into_owned()),
            _ => (false, format!("ns/{name} cannot be read")),
        }
    }
}

fn look(layer: Layer, plan: &Plan, seen: &Seen<'_>, group: &Group, facts: &Facts, ready: Ready) -> (bool, String) {
    let status = |name: &str, wanted: &str| {
        let value = seen.line(name).unwrap_or("missing");
        (value == wanted, format!("{name} = {value}"))
    };
    let tried = |bit: u32, what: &str| {
        let held = ready.probes & bit != 0;
        (held, format!("{what}: {}", if held { "refused" } else { "not refused" }))
    };
    match layer {
        Layer::User => {
            let (own, name) = seen.namespace("user");
            let map = fs::read_to_string(format!("/proc/{}/uid_map", seen.pid)).unwrap_or_default();
            let map = map.split_whitespace().collect::<Vec<_>>().join(" ");
            (own && !map.is_empty(), format!("{name}, uid_map = {map}"))
        }
        Layer::Pid => {
            let inner = seen.line("NSpid").and_then(|line| line.split_whitespace().last()).unwrap_or("missing");
            let (own, name) = seen.namespace("pid");
            (own && inner == "1", format!("{name}, pid inside = {inner}"))
        }
        Layer::Mount => {
            /// `OVERLAYFS_SUPER_MAGIC` (linux/magic.h).
            const OVERLAY: i64 = 0x794c_7630;
            let overlay = seen.root.as_ref().is_ok_and(|stat| stat.f_type == OVERLAY);
            let (own, name) = seen.namespace("mnt");
            (own && overlay, format!("{name}, root is {}", if overlay { "overlay" } else { "not ours" }))
        }
        Layer::Net => seen.namespace("net"),
        Layer::Ipc => seen.namespace("ipc"),
        Layer::Uts => seen.namespace("uts"),
        Layer::CgroupNs => seen.namespace("cgroup"),
        Layer::Time => seen.namespace("time"),
        Layer::Seccomp => {
            let (filtered, value) = status("Seccomp", "2");
            let (refused, trial) = tried(ready::SECCOMP, "an unlisted call");
            (filtered && refused, format!("{value}, {trial}"))
        }
        Layer::Landlock => tried(ready::LANDLOCK, "a device that only Landlock forbids"),
        Layer::NoNewPrivs => status("NoNewPrivs", "1"),
        Layer::Capabilities => status("CapBnd", &format!("{:016x}", plan.capabilities())),
        Layer::Keyring => (facts.keyring > 0, format!("session keyring {:#x}", facts.keyring)),
        Layer::Memory | Layer::Tasks | Layer::Cpu => match group.read_back(layer) {
            Some(evidence) => (member(layer, &seen.cgroup, plan), evidence),
            None => (false, "the limit cannot be read".to_owned()),
        },
        Layer::Io => match (plan.disk, group.read_back(layer)) {
            (DiskKind::Memory, _) => (true, "no block device: the disk is in memory".to_owned()),
            (DiskKind::Image, Some(evidence)) => (evidence.contains(':'), evidence),
            (DiskKind::Image, None) => (false, "the limit cannot be read".to_owned()),
        },
        Layer::Disk => match &seen.root {
            Ok(stat) => {
                let bytes = stat.f_blocks * u64::try_from(stat.f_bsize).unwrap_or(0);
                let wanted = plan.limits.disk_bytes_max.max(8 << 20).next_multiple_of(4096);
                // An image's own tables take from its size, never add to it; tmpfs rounds up to whole pages.
                let held = bytes > 0 && bytes <= wanted && stat.f_files > 0;
                (held, format!("statfs of the root: {bytes} bytes, {} inodes", stat.f_files))
            }
            Err(why) => (false, format!("statfs of the root: {why}")),
        },
    }
}

/// Whether the process is in its sandbox's group of the layer's controller, as `/proc/PID/cgroup` says (cgroups(7)).
fn member(layer: Layer, text: &str, plan: &Plan) -> bool {
    let name = plan.id.to_string();
    let controller = match layer {
        Layer::Memory => "memory",
        Layer::Tasks => "pids",
        _ => "cpu",
    };
    let mut lines = text.lines().filter_map(|line| line.split(':').nth(1).map(|controllers| (controllers, line)));
    let of = |wanted: &str| {
        lines.clone().find(|(controllers, _)| controllers.split(',').any(|c| c == wanted)).map(|(_, line)| line)
    };
    // Version 2's line names no controllers.
    let line = of(controller).or_else(|| lines.find(|(controllers, _)| controllers.is_empty()).map(|(_, line)| line));
    line.is_some_and(|line| line.ends_with(&name))
}
