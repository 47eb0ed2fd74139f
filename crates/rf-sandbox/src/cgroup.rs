//! Control groups, version 1 and 2: one group for each sandbox in each hierarchy that this host has.
//!
//! Version 1 has a hierarchy for each controller (memory, pids, cpu, cpuacct, blkio, freezer); version 2 has one for
//! all. Many hosts have both at once, with the controllers in one and a bare version 2 tree for killing and freezing:
//! so each controller is looked up on its own. See cgroups(7) and the kernel's cgroup-v1 and cgroup-v2 documents.

mod ahead;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rf_types::{Layer, Limits};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

pub use self::ahead::Ahead;
use self::ahead::Given;
use crate::freeze::Freezer;

/// Microseconds over which a CPU quota is counted; the kernel's own standard.
const CPU_PERIOD_US: u64 = 100_000;
/// The leaf that we move ourselves to in a group that was delegated to us.
const ASIDE: &str = "ringfence-itself";
/// Most groups below a sandbox's own: one for each exec that init can keep, and some.
const DESCENDANTS_MAX: u32 = 1024;

/// Where one controller is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Controller {
    /// In a hierarchy of version 1 mounted here.
    V1(PathBuf),
    /// In the tree of version 2.
    V2,
}

/// The hierarchies of this host, as far as we may use them.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    /// Name of our directory in each.
    base: String,
    /// Mount point of the version 2 tree, below which we may make groups.
    v2: Option<PathBuf>,
    memory: Option<Controller>,
    pids: Option<Controller>,
    cpu: Option<Controller>,
    cpuacct: Option<Controller>,
    io: Option<Controller>,
    /// Where processors are handed out; no limit, see [`crate::processors`].
    cpuset: Option<Controller>,
    /// Mount point of version 1's freezer, where there is no version 2 tree that could freeze.
    freezer: Option<PathBuf>,
    /// Those of [`MEMORY_FILES`] that are there.
    memory_files: Vec<&'static str>,
}

/// Limit of memory and swap together (version 1), of TCP buffers (version 1), of swap (version 2): by configuration.
const MEMORY_FILES: [&str; 3] = [MEMORY_AND_SWAP, TCP_BUFFERS, SWAP];
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";
const TCP_BUFFERS: &str = "memory.kmem.tcp.limit_in_bytes";
const SWAP: &str = "memory.swap.max";

impl Hierarchies {
    /// Finds them in `/proc/self/mountinfo` and makes the directory `base` in each.
    ///
    /// A controller that is not there, or in which we may not make groups, is left out: see [`Self::has`].
    ///
    /// # Errors
    /// When `/proc/self/mountinfo` cannot be read.
    pub fn find(base: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut found = Self {
            base: base.to_owned(),
            v2: None,
            memory: None,
            pids: None,
            cpu: None,
            cpuacct: None,
            io: None,
            cpuset: None,
            freezer: None,
            memory_files: Vec::new(),
        };
        let (mut v2_root, mut cpuacct, mut freezer) = (None, None::<PathBuf>, None::<PathBuf>);
        for line in mounts.lines() {
            // Fields before " - " are the mount's; after it: type, source, super options (proc_pid_mountinfo(5)).
            let Some((mount, rest)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut rest = rest.split(' ');
            match (rest.next(), rest.nth(1)) {
                (Some("cgroup2"), _) if v2_root.is_none() => v2_root = Some(point),
                (Some("cgroup"), Some(options)) => {
                    for option in options.split(',') {
                        let slot = match option {
                            "memory" => &mut found.memory,
                            "pids" => &mut found.pids,
                            "cpu" => &mut found.cpu,
                            "cpuacct" => {
                                cpuacct = Some(point.clone());
                                continue;
                            }
                            "blkio" => &mut found.io,
                            // Our directory there is made when it is first needed.
                            "cpuset" => {
                                found.cpuset = Some(Controller::V1(point.clone()));
                                continue;
                            }
                            "freezer" => {
                                freezer = Some(point.clone());
                                continue;
                            }
                            _ => continue,
                        };
                        if slot.is_none() && make_dir(&point.join(base)).is_ok() {
                            *slot = Some(Controller::V1(point.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = v2_root.and_then(usable_v2) {
            found.take_v2(root);
        }
        if found.v2.is_some() {
            // Every group of version 2 has its CPU time counted, whatever its controllers.
            found.cpuacct = Some(Controller::V2);
        } else if let Some(point) = cpuacct
            && make_dir(&point.join(base)).is_ok()
        {
            found.cpuacct = Some(Controller::V1(point));
        }
        if found.v2.is_none() {
            found.freezer = freezer.filter(|point| make_dir(&point.join(base)).is_ok());
        }
        found.look_at_memory();
        Ok(found)
    }

    /// Looks which of its optional limits the memory controller has.
    fn look_at_memory(&mut self) {
        let Some(controller) = &self.memory else { return };
        let dir = match (controller, &self.v2) {
            (Controller::V1(root), _) | (Controller::V2, Some(root)) => root.join(&self.base),
            (Controller::V2, None) => return,
        };
        self.memory_files = MEMORY_FILES.into_iter().filter(|name| dir.join(name).exists()).collect();
    }

    /// Takes the version 2 tree at `root`, with whatever controllers it has for us.
    fn take_v2(&mut self, root: PathBuf) {
        let base = root.join(&self.base);
        if make_dir(&base).is_err() {
            return;
        }
        let available = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if !rustix::process::geteuid().is_root() && !available.trim().is_empty() {
            // Before the first is handed down: with processes in it, some controllers would make it the root of a
            // threaded subtree, in which the others are not to be had. Where it fails, so does handing them down.
            let _ = step_aside(&root);
        }
        for name in available.split_whitespace() {
            let slot = match name {
                "memory" => &mut self.memory,
                "pids" => &mut self.pids,
                "cpu" => &mut self.cpu,
                "io" => &mut self.io,
                "cpuset" => &mut self.cpuset,
                _ => continue,
            };
            // It must reach two levels down: our directory, and the sandboxes' below it.
            let enable = format!("+{name}");
            let enabled = fs::write(root.join("cgroup.subtree_control"), &enable)
                .and_then(|()| fs::write(base.join("cgroup.subtree_control"), &enable));
            if slot.is_none() && enabled.is_ok() {
                *slot = Some(Controller::V2);
            }
        }
        self.v2 = Some(root);
    }

    /// Whether memory is counted by version 1, which counts TCP buffers apart and does not hold them.
    #[must_use]
    pub fn memory_is_version_1(&self) -> bool {
        matches!(self.memory, Some(Controller::V1(_)))
    }

    /// Whether block I/O is limited by version 1, which counts what is written later for nobody: its groups of memory and
    /// of I/O know nothing of each other (the kernel's cgroup-v2 document, "Writeback").
    #[must_use]
    pub fn io_is_version_1(&self) -> bool {
        matches!(self.io, Some(Controller::V1(_)))
    }

    /// Whether the controller behind `layer` is there.
    #[must_use]
    pub fn has(&self, layer: Layer) -> bool {
        self.controller(layer).is_some()
    }

    /// Where the controller behind `layer` is, for reports.
    #[must_use]
    pub fn describe(&self, layer: Layer) -> String {
        match self.controller(layer) {
            Some(Controller::V1(root)) => format!("version 1 at {}", root.display()),
            Some(Controller::V2) => "version 2".to_owned(),
            None => "no such controller that we may use".to_owned(),
        }
    }

    /// Whether the processes of a sandbox can be frozen here.
    #[must_use]
    pub const fn can_freeze(&self) -> bool {
        self.v2.is_some() || self.freezer.is_some()
    }

    /// Whether there is a version 2 tree, in which execs get groups of their own.
    #[must_use]
    pub fn has_v2(&self) -> bool {
        self.v2.is_some()
    }

    fn controller(&self, layer: Layer) -> Option<&Controller> {
        match layer {
            Layer::Memory => self.memory.as_ref(),
            Layer::Tasks => self.pids.as_ref(),
            Layer::Cpu => self.cpu.as_ref(),
            Layer::Io => self.io.as_ref(),
            _ => None,
        }
    }

    /// Our directory in each hierarchy, each once.
    fn roots(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = self.v2.iter().map(|root| root.join(&self.base)).collect();
        for controller in [&self.memory, &self.pids, &self.cpu, &self.cpuacct, &self.io].into_iter().flatten() {
            if let Controller::V1(root) = controller {
                let dir = root.join(&self.base);
                if !roots.contains(&dir) {
                    roots.push(dir);
                }
            }
        }
        roots.extend(self.freezer.iter().map(|root| root.join(&self.base)));
        roots
    }

    /// Where processors are handed out.
    pub(crate) const fn cpuset(&self) -> Option<&Controller> {
        self.cpuset.as_ref()
    }

    /// The name of our directory in each hierarchy.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Our directory in version 1's cpusets, if it was made.
    fn cpuset_base(&self) -> Option<PathBuf> {
        let Some(Controller::V1(root)) = &self.cpuset else { return None };
        Some(root.join(&self.base)).filter(|dir| dir.exists())
    }

    /// Makes the group `name` in every hierarchy, for a sandbox whose init has the host id `owner`; in that of block
    /// I/O only if it does any, and then anew whatever there is `ahead`.
    ///
    /// # Errors
    /// The path that could not be made or written. What was made is removed again.
    pub fn create(
        &self,
        name: &str,
        owner: Option<u32>,
        block_io: bool,
        ahead: Option<Ahead>,
    ) -> Result<Group, CgroupError> {
        let mut hierarchies = self.clone();
        if !block_io {
            // A sandbox without a block device needs no group to limit it.
            hierarchies.io = None;
        }
        let mut group = Group { name: name.to_owned(), hierarchies, v2_fd: None, given: None };
        let made = group.make(owner, ahead.filter(|_| !block_io));
        if let Err(error) = made {
            // The first error is the one to tell; what cannot be removed now is swept at the next start.
            let _ = group.remove();
            return Err(error);
        }
        Ok(group)
    }

    /// Kills everything in our groups and removes them all: what a warden that was killed left behind.
    ///
    /// # Errors
    /// The path that could not be removed after its processes were killed.
    pub fn sweep(&self) -> Result<usize, CgroupError> {
        let mut swept = 0;
        for root in self.roots().into_iter().chain(self.cpuset_base()) {
            for entry in fs::read_dir(&root).map_err(CgroupError::at(&root))?.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    kill_below(&entry.path())?;
                    remove_below(&entry.path())?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }

    /// Makes an empty group with limits that stays: the first limit of a kind on a host, and the removal of the last,
    /// make the kernel patch its own code on all processors (jump labels), which would be at every sandbox.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Group::limit`].
    pub fn stay_limited(&self) -> Result<(), CgroupError> {
        self.create("stay", None, false, None)?.limit(&Limits::STANDARD, None)
    }

    /// CPU time of all sandboxes of this warden so far, microseconds; nothing where it is not counted.
    #[must_use]
    pub fn cpu_used_us(&self) -> Option<u64> {
        let read = |root: &Path, file: &str| fs::read_to_string(root.join(&self.base).join(file)).ok();
        match self.cpuacct.as_ref()? {
            Controller::V1(root) => read(root, "cpuacct.usage")?.trim().parse::<u64>().ok().map(|ns| ns / 1000),
            Controller::V2 => {
                let text = read(self.v2.as_deref()?, "cpu.stat")?;
                text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
            }
        }
    }

    /// Removes our own directory, in which no process is left, from every hierarchy.
    pub fn remove_base(&self) {
        for root in self.roots().into_iter().chain(self.cpuset_base()) {
            // A sandbox that is still dying keeps it; the next start sweeps.
            let _ = remove_below(&root);
        }
    }
}

/// The directory of the version 2 tree below which we may make groups: the root for root, else our own group if it was
/// delegated to us.
fn usable_v2(mount: PathBuf) -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(mount);
    }
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = mount.join(path);
    // What is delegated is our own group, or the one above it: when we stepped aside, or a service manager put us into
    // a leaf (systemd's `DelegateSubgroup=`), to which nothing is handed down.
    let above = own.parent().filter(|above| above.starts_with(&mount) && *above != mount).map(Path::to_owned);
    let aside = own.file_name().is_some_and(|name| name == ASIDE);
    let delegated: Vec<PathBuf> =
        [(!aside).then_some(own), above].into_iter().flatten().filter(|dir| is_delegated(dir)).collect();
    // One without controllers still tells a sandbox's processes from others.
    let hands_down = |dir: &&PathBuf| {
        fs::read_to_string(dir.join("cgroup.controllers")).is_ok_and(|controllers| !controllers.trim().is_empty())
    };
    delegated.iter().find(hands_down).or(delegated.first()).cloned()
}

/// Whether we may make groups below `dir` and move processes there: what the cgroup-v2 document has under "Delegation".
fn is_delegated(dir: &Path) -> bool {
    let may_write = |file: &str| rustix::fs::access(dir.join(file), rustix::fs::Access::WRITE_OK).is_ok();
    ["", "cgroup.procs", "cgroup.subtree_control"].into_iter().all(may_write)
}

/// Moves every process of `dir`, ourselves among them, to a leaf below it: but for the root, no group may both have
/// processes and hand controllers down (cgroup-v2 document, "No Internal Process Constraint").
fn step_aside(dir: &Path) -> io::Result<()> {
    /// A process may start others while it is moved. Chosen.
    const TURNS_MAX: u32 = 16;
    let leaf = dir.join(ASIDE);
    for _ in 0..TURNS_MAX {
        let processes = fs::read_to_string(dir.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        make_dir(&leaf)?;
        for process in processes.lines() {
            match fs::write(leaf.join("cgroup.procs"), process) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                other => other?,
            }
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// A sandbox's share of a processor that others want too (`cpu.shares`, `cpu.weight`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Share {
    /// As every other.
    Full,
    /// A sixtieth of it.
    Small,
}

/// One sandbox's groups.
#[derive(Debug)]
pub struct Group {
    name: String,
    hierarchies: Hierarchies,
    v2_fd: Option<OwnedFd>,
    /// Of those of version 1, where they were made ahead.
    given: Option<Given>,
}

impl Group {
    fn dir(&self, controller: &Controller) -> PathBuf {
        let root = match controller {
            Controller::V1(root) => root,
            // `take_v2` sets both or neither.
            Controller::V2 => self.hierarchies.v2.as_deref().unwrap_or(Path::new("/")),
        };
        root.join(&self.hierarchies.base).join(&self.name)
    }

    /// Its name in every hierarchy.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file that names every task of the sandbox, in a hierarchy of version 1.
    pub(crate) fn tasks(&self) -> Option<PathBuf> {
        let h = &self.hierarchies;
        let controller = [&h.pids, &h.cpu, &h.memory].into_iter().flatten().find(|c| matches!(c, Controller::V1(_)))?;
        Some(self.dir(controller).join("tasks"))
    }

    pub(crate) fn v2_dir(&self) -> Option<PathBuf> {
        self.hierarchies.v2.as_ref().map(|root| root.join(&self.hierarchies.base).join(&self.name))
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.hierarchies.roots().into_iter().map(|root| root.join(&self.name)).collect()
    }

    fn make(&mut self, owner: Option<u32>, ahead: Option<Ahead>) -> Result<(), CgroupError> {
        self.given = ahead.map(|ahead| ahead.become_those_of(self)).transpose()?;
        let v2_dir = self.v2_dir();
        for dir in self.dirs().iter().filter(|dir| self.given.is_none() || Some(*dir) == v2_dir.as_ref()) {
            fs::create_dir(dir).map_err(CgroupError::at(dir))?;
        }
        let Some(dir) = v2_dir else { return Ok(()) };
        put(&dir, "cgroup.max.descendants", &DESCENDANTS_MAX.to_string())?;
        if let Some(owner) = owner {
            // Delegation as the cgroup-v2 document has it: the directory and the files by which processes are moved
            // within it. The limits' own files stay root's.
            for path in [dir.clone(), dir.join("cgroup.procs"), dir.join("cgroup.threads")] {
                std::os::unix::fs::chown(&path, Some(owner), Some(owner)).map_err(CgroupError::at(&path))?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&dir, flags, Mode::empty())
            .map_err(|errno| CgroupError { path: dir.clone(), source: errno.into() })?;
        self.v2_fd = Some(fd);
        Ok(())
    }

    /// What freezes it, where this host can.
    #[must_use]
    pub fn freezer(&self) -> Option<Freezer> {
        let version_1 =
            || self.hierarchies.freezer.as_ref().map(|root| root.join(&self.hierarchies.base).join(&self.name));
        self.v2_dir().map(|dir| Freezer::at(dir, true)).or_else(|| version_1().map(|dir| Freezer::at(dir, false)))
    }

    /// The hierarchies that it is in.
    #[must_use]
    pub const fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The version 2 directory, for `CLONE_INTO_CGROUP` and for init.
    #[must_use]
    pub fn v2_fd(&self) -> Option<&OwnedFd> {
        self.v2_fd.as_ref()
    }

    /// What a new process writes `0` to, each, to move itself into the groups of version 1; into that of version 2 it
    /// is born.
    ///
    /// A process that moves itself through `tasks` is moved without the lock that stops every fork of the host; moved
    /// by another, through `cgroup.procs`, it costs an RCU grace period for each hierarchy (kernel/cgroup/cgroup.c,
    /// `cgroup_procs_write_start`; since Linux 5.5). The right to write is that of who opened the file.
    ///
    /// # Errors
    /// The file that could not be opened.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let v2 = self.v2_dir();
        let version_1 = self.dirs().into_iter().filter(|dir| Some(dir) != v2.as_ref());
        version_1
            .map(|dir| {
                let path = dir.join("tasks");
                rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| CgroupError { path, source: errno.into() })
            })
            .collect()
    }

    /// Sets the limits of memory, tasks and CPU; and of I/O on `device` (`major:minor`), when there is one.
    ///
    /// # Errors
    /// The file that could not be written, or a controller that is not there and not in `missing`.
    pub fn limit(&self, limits: &Limits, device: Option<&str>) -> Result<(), CgroupError> {
        let h = &self.hierarchies;
        let memory = limits.memory_bytes_max.to_string();
        match &h.memory {
            Some(c @ Controller::V1(_)) => {
                let dir = self.dir(c);
                if h.memory_files.contains(&MEMORY_AND_SWAP) {
                    // memory <= memory and swap must hold at every moment: which is written first depends on whether
                    // it grows or shrinks, and the other order is refused.
                    if put(&dir, "memory.limit_in_bytes", &memory).is_ok() {
                        put(&dir, MEMORY_AND_SWAP, &memory)?;
                    } else {
                        put(&dir, MEMORY_AND_SWAP, &memory)?;
                        put(&dir, "memory.limit_in_bytes", &memory)?;
                    }
                } else {
                    put(&dir, "memory.limit_in_bytes", &memory)?;
                }
                // Version 1 counts TCP buffers apart; version 2 counts them as memory. Senders pass this limit, since the
                // kernel always lets a stream have its least (net/core/sock.c, `__sk_mem_raise_allocated`). Measured:
                // 400 connections take 54 MiB without it, 18 MiB at 16, and past it 25 KiB each, so 8,000 in a sandbox
                // of 64 MiB, which their sockets fill, still take 199.
                if h.memory_files.contains(&TCP_BUFFERS) {
                    put(&dir, TCP_BUFFERS, &(limits.memory_bytes_max / 4).to_string())?;
                }
            }
            Some(c @ Controller::V2) => {
                let dir = self.dir(c);
                put(&dir, "memory.max", &memory)?;
                if h.memory_files.contains(&SWAP) {
                    put(&dir, SWAP, "0")?;
                }
            }
            None => {}
        }
        if let Some(c) = &h.pids {
            // Init itself is not the user's.
            put(&self.dir(c), "pids.max", &(u64::from(limits.tasks_max) + 1).to_string())?;
        }
        let quota = u64::from(limits.cpu_milli_max) * CPU_PERIOD_US / 1000;
        match &h.cpu {
            Some(c @ Controller::V1(_)) => {
                // The period is the kernel's own standard, so it is not written.
                put(&self.dir(c), "cpu.cfs_quota_us", &quota.to_string())?;
            }
            Some(c @ Controller::V2) => put(&self.dir(c), "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?,
            None => {}
        }
        if let Some(device) = device {
            let rate = limits.io_bytes_per_second_max;
            match &h.io {
                Some(c @ Controller::V1(_)) => {
                    put(&self.dir(c), "blkio.throttle.read_bps_device", &format!("{device} {rate}"))?;
                    put(&self.dir(c), "blkio.throttle.write_bps_device", &format!("{device} {rate}"))?;
                }
                Some(c @ Controller::V2) => {
                    put(&self.dir(c), "io.max", &format!("{device} rbps={rate} wbps={rate}"))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// What the kernel says the limit behind `layer` is: file and content, for the enforcement report.
    #[must_use]
    pub fn read_back(&self, layer: Layer) -> Option<String> {
        let controller = self.hierarchies.controller(layer)?;
        let file = match (layer, controller) {
            (Layer::Memory, Controller::V1(_)) => "memory.limit_in_bytes",
            (Layer::Memory, Controller::V2) => "memory.max",
            (Layer::Tasks, _) => "pids.max",
            (Layer::Cpu, Controller::V1(_)) => "cpu.cfs_quota_us",
            (Layer::Cpu, Controller::V2) => "cpu.max",
            (Layer::Io, Controller::V1(_)) => "blkio.throttle.write_bps_device",
            (Layer::Io, Controller::V2) => "io.max",
            _ => return None,
        };
        let content = fs::read_to_string(self.dir(controller).join(file)).ok()?;
        Some(format!("{file} = {}", content.trim().replace('\n', "; ")))
    }

    /// Reads a number of the memory controller: `(version 1 file, version 2 file)`.
    fn number(&self, controller: Option<&Controller>, v1: &str, v2: &str) -> Option<u64> {
        let controller = controller?;
        let file = if matches!(controller, Controller::V1(_)) { v1 } else { v2 };
        fs::read_to_string(self.dir(controller).join(file)).ok()?.trim().parse().ok()
    }

    /// A `name value` line of a file of statistics.
    fn field(&self, controller: Option<&Controller>, v1: &str, v2: &str, name: &str) -> Option<u64> {
        let controller = controller?;
        let file = if matches!(controller, Controller::V1(_)) { v1 } else { v2 };
        let text = fs::read_to_string(self.dir(controller).join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// What the sandbox uses, as far as its controllers tell; the disk's part is left 0.
    #[must_use]
    pub fn usage(&self) -> rf_wire::warden::Usage {
        let h = &self.hierarchies;
        let memory = h.memory.as_ref();
        rf_wire::warden::Usage {
            memory_bytes: self.number(memory, "memory.usage_in_bytes", "memory.current").unwrap_or(0),
            memory_cache_bytes: self.cache_bytes(memory).unwrap_or(0),
            memory_peak_bytes: self.number(memory, "memory.max_usage_in_bytes", "memory.peak").unwrap_or(0),
            oom_kills: self.field(memory, "memory.oom_control", "memory.events", "oom_kill ").unwrap_or(0),
            // Init itself is not the user's.
            tasks: self.number(h.pids.as_ref(), "pids.current", "pids.current").unwrap_or(0).saturating_sub(1),
            cpu_us: self.cpu_us().unwrap_or(0),
            disk_bytes: 0,
            inodes: 0,
        }
    }

    /// Pages of files, bytes. Of the whole group below: processes of version 1 are in groups of their own execs.
    fn cache_bytes(&self, memory: Option<&Controller>) -> Option<u64> {
        let name = if matches!(memory?, Controller::V1(_)) { "total_cache " } else { "file " };
        self.field(memory, "memory.stat", "memory.stat", name)
    }

    /// How often the CPU limit has held it up so far.
    #[must_use]
    pub fn throttled(&self) -> Option<u64> {
        let cpu = self.hierarchies.cpu.as_ref();
        self.field(cpu, "cpu.stat", "cpu.stat", "nr_throttled ")
    }

    /// Sets its share of a processor that others want too. Best effort: it is no limit.
    pub fn share(&self, share: Share) {
        let (file, value) = match (&self.hierarchies.cpu, share) {
            (Some(Controller::V1(_)), Share::Full) => ("cpu.shares", "1024"),
            (Some(Controller::V1(_)), Share::Small) => ("cpu.shares", "16"),
            (Some(Controller::V2), Share::Full) => ("cpu.weight", "100"),
            (Some(Controller::V2), Share::Small) => ("cpu.weight", "2"),
            (None, _) => return,
        };
        if let Some(cpu) = &self.hierarchies.cpu {
            let _ = fs::write(self.dir(cpu).join(file), value);
        }
    }

    /// Kills every process of the sandbox at once, where there is a version 2 tree (`cgroup.kill`, Linux 5.14).
    ///
    /// Without one the caller kills init, and with it the kernel kills the whole pid namespace.
    pub fn kill(&self) {
        if let Some(dir) = self.v2_dir() {
            // A group that is gone has nothing to kill.
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
    }

    /// Removes the groups. Their processes must have ended.
    ///
    /// # Errors
    /// `EBUSY` while one has not.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.dirs().iter().chain(&self.cpuset_dir()).try_for_each(|dir| remove_below(dir))
    }

    /// CPU time so far, microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> Option<u64> {
        let cpuacct = self.hierarchies.cpuacct.as_ref()?;
        match cpuacct {
            Controller::V1(_) => self.number(Some(cpuacct), "cpuacct.usage", "").map(|ns| ns / 1000),
            Controller::V2 => self.field(Some(cpuacct), "", "cpu.stat", "usage_usec "),
        }
    }
}

/// A file or directory of a hierarchy that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct CgroupError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl CgroupError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

fn put(dir: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = dir.join(file);
    fs::write(&path, value).map_err(CgroupError::at(&path))
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Ours from before; but one that we may not write in is no use.
            rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(Into::into)
        }
        other => other,
    }
}

/// Kills every process in a group and those below it, and waits until they are gone.
fn kill_below(dir: &Path) -> Result<(), CgroupError> {
    crate::freeze::thaw_version_1(dir);
    // `cgroup.kill` is of version 2 alone; in version 1 the processes are killed one by one until none is left.
    let whole = fs::write(dir.join("cgroup.kill"), "1").is_ok();
    for _ in 0..2000 {
        let mut alive = false;
        for group in tree(dir) {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
                alive = true;
                if !whole {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        if !alive {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(CgroupError { path: dir.to_owned(), source: io::Error::from_raw_os_error(libc_ebusy()) })
}

const fn libc_ebusy() -> i32 {
    Errno::BUSY.raw_os_error()
}

/// A group and all below it, the deepest first.
pub(crate) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(next) = found.get(at).cloned() {
        let children = fs::read_dir(next).into_iter().flatten().flatten();
        found.extend(children.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
        at += 1;
    }
    found.reverse();
    found
}

fn remove_below(dir: &Path) -> Result<(), CgroupError> {
    // Mostly there is nothing below, and one call does it.
    if fs::remove_dir(dir).is_ok() {
        return Ok(());
    }
    for group in tree(dir) {
        match fs::remove_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CgroupError { path: group, source: error });
            }
            _ => {}
        }
    }
    Ok(())
}
