//! What a launch will do, worked out before anything is done. Pure: no call to the kernel.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rf_types::{DiskKind, Layer, Limits, SandboxId, SandboxSpec};

use crate::host::HostReport;

/// Ids of each sandbox, when the warden is root.
pub const IDS_PER_SANDBOX: u32 = 65_536;
/// The id of a sandbox's default user, inside.
pub const USER_ID: u32 = 1000;

/// Capabilities that `root` inside has, and init with it; numbers of linux/capability.h.
pub const CAPABILITIES_OF_ROOT: u64 = 1 << 0 // CHOWN
    | 1 << 1 // DAC_OVERRIDE
    | 1 << 3 // FOWNER
    | 1 << 4 // FSETID
    | 1 << 5 // KILL
    | 1 << 6 // SETGID
    | 1 << 7 // SETUID
    | 1 << 10; // NET_BIND_SERVICE

/// Capabilities that init needs where nobody may be `root` inside: to take on the user's identity and to signal.
pub const CAPABILITIES_OF_INIT: u64 = 1 << 5 | 1 << 6 | 1 << 7; // KILL, SETGID, SETUID

/// Layers without which there is no sandbox; no request can do without them.
pub const ALWAYS: [Layer; 9] = [
    Layer::User,
    Layer::Pid,
    Layer::Mount,
    Layer::Net,
    Layer::Ipc,
    Layer::Uts,
    Layer::Seccomp,
    Layer::NoNewPrivs,
    Layer::Capabilities,
];

/// Files of `/proc` that tell of the host and that everybody may read, covered where the host has them. Each cover is a
/// mount, which costs 2 KiB and 20 us, so what only names hardware (`bus`, `irq` and their like) is left; what is more
/// than that (kcore, kmsg, timer_list, sysrq-trigger) belongs to an id that is not mapped and cannot be opened.
///
/// `pressure` everybody may write as well: since Linux 6.5 each descriptor can have the kernel watch the host's load for
/// it, in memory that counts for nobody and at a cost for all (Documentation/accounting/psi.rst, "Unprivileged monitors").
pub const PROC_COVERED: [&str; 12] = [
    "cgroups",
    "cmdline",
    "diskstats",
    "fs",
    "interrupts",
    "kallsyms",
    "key-users",
    "keys",
    "locks",
    "modules",
    "partitions",
    "pressure",
];

/// Most directories that a root is put together from: they go to the new process beside one message, with some others.
const MOUNTS_MAX: usize = crate::packet::FDS_MAX - 8;

/// What a root is made from, found by the warden.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootSource {
    /// Overlay's lower directories, lowest first; 1 to 120.
    pub layers: Vec<PathBuf>,
    /// Host directories with their place below the root.
    pub binds: Vec<Bind>,
    /// Directories laid over the root, lowest first, that belong to the template: what it has beyond the host.
    pub additions: Vec<PathBuf>,
    /// A directory laid over the root, `usr/bin/sudo` in it, where `root` inside may be had: see [`init_program`].
    pub tools: Option<PathBuf>,
    /// What other sandboxes wrote, laid over all that, lowest first.
    pub above: Vec<Above>,
}

/// What one sandbox wrote between two snapshots: a layer for each of its overlays.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Above {
    /// For the root.
    pub root: PathBuf,
    /// For binds with an overlay: [`Bind::to`], and the layer.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

impl RootSource {
    /// The lower directories of the root, lowest first.
    pub(crate) fn root_layers(&self) -> impl Iterator<Item = &Path> {
        // What they are laid over is where `/usr` comes from: the root, or a bind of its own.
        let bound = self.binds.iter().any(Bind::is_usr);
        let own = self.layers.iter().chain(self.laid_over().filter(move |_| !bound));
        own.chain(self.above.iter().map(|above| &above.root)).map(PathBuf::as_path)
    }

    /// The lower directories of a bind, lowest first.
    pub(crate) fn bind_layers<'a>(&'a self, bind: &'a Bind) -> impl Iterator<Item = BindLayer<'a>> {
        let over = self.laid_over().filter(|_| bind.is_usr()).map(|dir| BindLayer::UsrOf(dir));
        let above = self.above.iter().filter(|_| bind.overlay).flat_map(|above| &above.binds);
        let above = above.filter(|(to, _)| *to == bind.to).map(|(_, layer)| BindLayer::At(layer));
        std::iter::once(BindLayer::At(&bind.from)).chain(over).chain(above)
    }

    /// What is laid over the root, lowest first.
    fn laid_over(&self) -> impl Iterator<Item = &PathBuf> {
        self.additions.iter().chain(&self.tools)
    }

    /// Every directory that is mounted, in the order in which the new process takes them.
    pub(crate) fn mounted(&self) -> Vec<PathBuf> {
        let binds = self.binds.iter().flat_map(|bind| self.bind_layers(bind));
        self.root_layers().map(Path::to_owned).chain(binds.map(BindLayer::path)).collect()
    }

    /// How many those are; makes no text, for a new process that copies each page of its parent's that it writes.
    pub(crate) fn mounted_count(&self) -> usize {
        self.root_layers().count() + self.binds.iter().map(|bind| self.bind_layers(bind).count()).sum::<usize>()
    }
}

/// A lower directory of a bind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BindLayer<'a> {
    /// This one.
    At(&'a Path),
    /// `usr` in this one.
    UsrOf(&'a Path),
}

impl BindLayer<'_> {
    fn path(self) -> PathBuf {
        match self {
            Self::At(path) => path.to_owned(),
            Self::UsrOf(dir) => dir.join("usr"),
        }
    }
}

/// The program that is process 1 in every sandbox and, under the name `sudo`, asks process 1 for a command as `root`.
#[must_use]
pub fn init_program() -> &'static [u8] {
    crate::launch::INIT
}

/// A host directory or file in the root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bind {
    /// On the host.
    pub from: PathBuf,
    /// Below the root, without a leading slash.
    pub to: PathBuf,
    /// Writable through an overlay of its own, the host's files staying as they are; else read-only.
    pub overlay: bool,
}

impl Bind {
    fn is_usr(&self) -> bool {
        self.overlay && below_root(&self.to) == Path::new("usr")
    }
}

/// Whose ids a sandbox has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ids {
    /// A range of [`IDS_PER_SANDBOX`] host ids from here, as 0 and up inside.
    Range {
        /// The first.
        base: u32,
    },
    /// The warden's own id alone, as [`USER_ID`] inside: what an unprivileged warden can have.
    One {
        /// The host's id of the user.
        uid: u32,
        /// The host's id of the group.
        gid: u32,
    },
}

/// A launch, worked out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sandbox.
    pub id: SandboxId,
    /// Its limits.
    pub limits: Limits,
    /// Where its files live.
    pub disk: DiskKind,
    /// Whether `root` inside may be had.
    pub root_allowed: bool,
    /// Its ids.
    pub ids: Ids,
    /// Its root.
    pub source: RootSource,
    /// Layers that this host lacks and that the request does without.
    pub absent: Vec<Layer>,
    /// Files of `/proc` to cover.
    pub proc_covered: Vec<&'static str>,
    /// Whether execs have control groups of their own; without them init looks for their processes in `/proc`.
    pub exec_groups: bool,
}

/// Why there is no plan.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The host cannot hold a layer that the spec requires.
    #[error("this host cannot hold the layer `{layer}`: {evidence}")]
    LayerUnavailable {
        /// Which.
        layer: Layer,
        /// What the probe found.
        evidence: String,
        /// What to do.
        cure: String,
    },
    /// A number is out of range.
    #[error(transparent)]
    Spec(#[from] rf_types::spec::SpecError),
    /// More layers or none.
    #[error("a root has 1 to 120 layers, not {0}")]
    Layers(usize),
    /// More mounts than one message has room for.
    #[error("a root is put together from at most {MOUNTS_MAX} mounts, not {0}")]
    Mounts(usize),
}

impl Plan {
    /// Works out the launch of `spec` on `host`.
    ///
    /// # Errors
    /// A layer that the host cannot hold and that the spec does not accept as missing; a number out of range.
    pub fn new(
        id: SandboxId,
        spec: &SandboxSpec,
        host: &HostReport,
        mut source: RootSource,
        ids: Ids,
    ) -> Result<Self, PlanError> {
        spec.validate()?;
        if source.layers.is_empty() || source.layers.len() > 120 {
            return Err(PlanError::Layers(source.layers.len()));
        }
        if source.mounted_count() > MOUNTS_MAX {
            return Err(PlanError::Mounts(source.mounted_count()));
        }
        let mut absent = Vec::new();
        for layer in Layer::ALL {
            // A disk in memory does no block I/O.
            if layer == Layer::Io && spec.disk == DiskKind::Memory {
                continue;
            }
            let found = if layer == Layer::Disk && spec.disk == DiskKind::Image { &host.image } else { host.of(layer) };
            if found.available {
                continue;
            }
            if ALWAYS.contains(&layer) || !spec.accept_missing.contains(&layer) {
                return Err(PlanError::LayerUnavailable {
                    layer,
                    evidence: found.evidence.clone(),
                    cure: found.cure.clone(),
                });
            }
            absent.push(layer);
        }
        // With one id there is no second user to be.
        let root_allowed = spec.root_allowed && matches!(ids, Ids::Range { .. });
        if !root_allowed {
            source.tools = None;
        }
        Ok(Self {
            id,
            limits: spec.limits,
            disk: spec.disk,
            root_allowed,
            ids,
            source,
            absent,
            proc_covered: host.proc_covered.clone(),
            exec_groups: host.hierarchies.has_v2(),
        })
    }

    /// Whether the plan holds `layer`.
    #[must_use]
    pub fn holds(&self, layer: Layer) -> bool {
        !self.absent.contains(&layer)
    }

    /// Capabilities in the bounding set.
    #[must_use]
    pub const fn capabilities(&self) -> u64 {
        match self.ids {
            Ids::One { .. } => 0,
            Ids::Range { .. } if self.root_allowed => CAPABILITIES_OF_ROOT,
            Ids::Range { .. } => CAPABILITIES_OF_INIT,
        }
    }

    /// The name inside: `sbx-` and the first 8 hex digits of the id.
    #[must_use]
    pub fn hostname(&self) -> String {
        format!("sbx-{:08x}", self.id.bits() >> 96)
    }

    /// The flags that init gets, see `rf-init`.
    #[must_use]
    pub fn init_flags(&self, exec_cgroups: bool) -> String {
        let mut flags = String::from("n");
        if self.root_allowed {
            flags.push('r');
        }
        if exec_cgroups {
            flags.push('c');
        }
        if matches!(self.ids, Ids::One { .. }) {
            flags.push('u');
        }
        flags
    }
}

impl fmt::Display for Plan {
    /// The plan as text, one step a line, for people and golden tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = &self.limits;
        match self.ids {
            Ids::Range { base } => writeln!(f, "ids: 0..{IDS_PER_SANDBOX} are {base}.. on the host")?,
            Ids::One { uid, gid } => writeln!(f, "ids: {USER_ID} is {uid}:{gid} on the host, and no other")?,
        }
        writeln!(f, "namespaces: user pid mount net ipc uts{}{}", self.word(Layer::CgroupNs), self.word(Layer::Time))?;
        writeln!(f, "limits: memory {} tasks {} cpu {}/1000", l.memory_bytes_max, l.tasks_max, l.cpu_milli_max)?;
        let disk = match self.disk {
            DiskKind::Memory => "tmpfs",
            DiskKind::Image => "image",
        };
        writeln!(f, "disk: {disk} bytes {} inodes {}", l.disk_bytes_max, l.inodes_max)?;
        for layer in self.source.root_layers() {
            writeln!(f, "lower: {}", layer.display())?;
        }
        for bind in &self.source.binds {
            let how = if bind.overlay { "overlay" } else { "read-only" };
            writeln!(f, "bind: {} on /{} {how}", bind.from.display(), bind.to.display())?;
        }
        for dir in &self.source.additions {
            writeln!(f, "addition: {}", dir.display())?;
        }
        writeln!(f, "proc: hidepid, /proc/sys read-only, covered: {}", self.proc_covered.join(" "))?;
        writeln!(f, "hostname: {}", self.hostname())?;
        writeln!(f, "capabilities: {:#x}", self.capabilities())?;
        for layer in [Layer::Keyring, Layer::Landlock] {
            writeln!(f, "{layer}: {}", if self.holds(layer) { "held" } else { "absent, as asked" })?;
        }
        writeln!(f, "no_new_privs, seccomp: held")
    }
}

impl Plan {
    fn word(&self, layer: Layer) -> String {
        if self.holds(layer) { format!(" {layer}") } else { String::new() }
    }
}

/// A path below the root as overlay and mount calls want it: relative.
#[must_use]
pub fn below_root(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
