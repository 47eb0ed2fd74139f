//! What this host can hold, found by trying: probed once, passed along, shown by `ringfence doctor`.

use std::{fs, path::Path};

use rf_sys::{
    landlock,
    process::{self, Forked, namespaces},
};
use rf_types::Layer;
use rf_wire::warden::LayerStatus;
use rustix::{io::Errno, process::WaitOptions};

use crate::{cgroup::Hierarchies, plan::PROC_COVERED, seccomp};

/// Whether something can be had here, and how that was found out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// Whether.
    pub available: bool,
    /// How it was found out, or why it is not there.
    pub evidence: String,
    /// What to do to get it; empty when it is there.
    pub cure: String,
}

impl Found {
    fn yes(evidence: impl Into<String>) -> Self {
        Self { available: true, evidence: evidence.into(), cure: String::new() }
    }

    fn no(evidence: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { available: false, evidence: evidence.into(), cure: cure.into() }
    }

    fn tried(what: &str, result: Result<(), Errno>, cure: &str) -> Self {
        match result {
            Ok(()) => Self::yes(format!("{what}: done in a trial process")),
            Err(errno) => Self::no(format!("{what}: {errno}"), cure),
        }
    }
}

/// What this host can hold.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// Whether the prober is root and so gives each sandbox its own range of ids.
    pub rooted: bool,
    /// One for each of [`Layer::ALL`], in that order.
    layers: Vec<Found>,
    /// Whether a sandbox can have a disk of its own on an image.
    pub image: Found,
    /// Files of `/proc` that this kernel has and a sandbox must not see.
    pub proc_covered: Vec<&'static str>,
    /// The control groups.
    pub hierarchies: Hierarchies,
    /// The kernel's release.
    pub kernel: String,
}

const USERNS_CURE: &str = "allow unprivileged user namespaces: `sysctl -w user.max_user_namespaces=15000`, on Ubuntu \
    also `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` or an AppArmor profile for ringfence, on old \
    Debian `sysctl -w kernel.unprivileged_userns_clone=1`; or run the warden as root";
// user_namespaces(7): EPERM for whom the root directory is not that of the mount namespace, root or not.
const USERNS_ROOT_CURE: &str = "leave the chroot: in one the kernel makes no user namespaces, for root neither; a root of \
    one's own is made by pivot_root(2), as `systemd-nspawn` and containers have it. In a container, have its runtime allow \
    nested user namespaces";
const WITH_USER_CURE: &str = "it comes with a user namespace: get the layer `user` first";
const NAMESPACE_CURE: &str = "use a kernel with this namespace built in (CONFIG_NAMESPACES and its options)";
const CGROUP_CURE: &str = "run the warden as root, or as a service with `Delegate=yes`, on a kernel that has the \
    controller";

impl HostReport {
    /// Probes this host; `base` is the name of our directory in the control group hierarchies.
    ///
    /// # Errors
    /// When `/proc` cannot be read: then nothing can be found out.
    pub fn probe(base: &str) -> std::io::Result<Self> {
        let hierarchies = Hierarchies::find(base)?;
        let rooted = rustix::process::geteuid().is_root();
        let mut layers: Vec<_> = Layer::ALL.into_iter().map(|layer| probe_layer(layer, &hierarchies)).collect();
        if let Err(errno) = trial(0, || Ok(())) {
            blame_user(&mut layers, rooted && errno == Errno::PERM);
        }
        let proc_covered = PROC_COVERED.into_iter().filter(|name| Path::new("/proc").join(name).exists()).collect();
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Ok(Self { rooted, layers, image: probe_image(rooted), proc_covered, hierarchies, kernel })
    }

    /// What was found of `layer`.
    ///
    /// # Panics
    /// Never: `probe` made one for each layer.
    #[must_use]
    pub fn of(&self, layer: Layer) -> &Found {
        let index = Layer::ALL.iter().position(|l| *l == layer).expect("ALL has every layer");
        &self.layers[index]
    }

    /// The report as the warden's status has it.
    #[must_use]
    pub fn statuses(&self) -> Vec<LayerStatus> {
        let status = |layer| {
            let Found { available, evidence, cure } = self.of(layer).clone();
            LayerStatus { layer, available, evidence, cure }
        };
        Layer::ALL.into_iter().map(status).collect()
    }
}

/// Says what really is missing where there are no user namespaces: most layers are tried in one, and fail for that alone.
fn blame_user(layers: &mut [Found], root_is_denied: bool) {
    for (layer, found) in Layer::ALL.into_iter().zip(layers).filter(|(_, found)| !found.available) {
        match layer {
            Layer::User if root_is_denied => found.cure = USERNS_ROOT_CURE.to_owned(),
            Layer::User | Layer::Landlock | Layer::Memory | Layer::Tasks | Layer::Cpu | Layer::Io => {}
            Layer::Pid
            | Layer::Mount
            | Layer::Net
            | Layer::Ipc
            | Layer::Uts
            | Layer::CgroupNs
            | Layer::Time
            | Layer::Seccomp
            | Layer::NoNewPrivs
            | Layer::Capabilities
            | Layer::Keyring
            | Layer::Disk => found.cure = WITH_USER_CURE.to_owned(),
        }
    }
}

fn probe_layer(layer: Layer, hierarchies: &Hierarchies) -> Found {
    let namespace = |name: &str, flag| Found::tried(name, trial(flag, || Ok(())), NAMESPACE_CURE);
    match layer {
        Layer::User => Found::tried("clone3 with CLONE_NEWUSER", trial(0, || Ok(())), USERNS_CURE),
        Layer::Pid => namespace("clone3 with CLONE_NEWPID", namespaces::PID),
        Layer::Mount => Found::tried(
            "overlay and proc in a mount namespace of an own user namespace",
            trial(namespaces::PID | namespaces::MOUNT, mounts),
            "use Linux 5.12 or later with overlayfs; inside a container, give it an uncovered /proc",
        ),
        Layer::Net => namespace("clone3 with CLONE_NEWNET", namespaces::NET),
        Layer::Ipc => namespace("clone3 with CLONE_NEWIPC", namespaces::IPC),
        Layer::Uts => namespace("clone3 with CLONE_NEWUTS", namespaces::UTS),
        Layer::CgroupNs => namespace("clone3 with CLONE_NEWCGROUP", namespaces::CGROUP),
        Layer::Time => namespace("clone3 with CLONE_NEWTIME", namespaces::TIME),
        Layer::Seccomp => Found::tried(
            "the filter of a sandbox",
            trial(0, || rf_sys::seccomp::install_with_listener(&seccomp::filter()).map(drop)),
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        Layer::Landlock => match landlock::abi() {
            0 => Found::no("no Landlock", "add `landlock` to the kernel's `lsm=` list (Linux 5.13 or later)"),
            abi => Found::yes(format!("ABI {abi}")),
        },
        Layer::NoNewPrivs => {
            let set = trial(0, || rustix::thread::set_no_new_privs(true));
            Found::tried("prctl PR_SET_NO_NEW_PRIVS", set, "use Linux 3.5 or later")
        }
        Layer::Capabilities => Found::yes("bounded in the user namespace"),
        Layer::Keyring => Found::tried(
            "keyctl KEYCTL_JOIN_SESSION_KEYRING",
            trial(0, || process::join_new_session_keyring().map(drop)),
            "use a kernel with CONFIG_KEYS, and do not filter keyctl for the warden",
        ),
        Layer::Memory | Layer::Tasks | Layer::Cpu | Layer::Io => {
            let evidence = hierarchies.describe(layer);
            if hierarchies.has(layer) { Found::yes(evidence) } else { Found::no(evidence, CGROUP_CURE) }
        }
        Layer::Disk => {
            let result = trial(namespaces::MOUNT, || mount_trial("tmpfs", &[("size", "4096"), ("nr_inodes", "4")]));
            Found::tried("tmpfs with a size in an own user namespace", result, "use a kernel with CONFIG_TMPFS")
        }
    }
}

fn mount_trial(kind: &str, options: &[(&str, &str)]) -> Result<(), Errno> {
    let context = rustix::mount::fsopen(kind, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)
}

fn mounts() -> Result<(), Errno> {
    mount_trial("proc", &[("hidepid", "invisible")])?;
    // Whether the kernel has it for user namespaces; a whole overlay is tried with the first sandbox.
    rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).map(drop)
}

fn probe_image(rooted: bool) -> Found {
    let cure = "run the warden as root on a host with loop devices, ext4 and e2fsprogs (`apt-get install e2fsprogs`)";
    if !rooted {
        return Found::no("loop devices need root", cure);
    }
    if !Path::new("/dev/loop-control").exists() {
        return Found::no("no /dev/loop-control", cure);
    }
    if !fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.lines().any(|line| line.ends_with("\text4"))) {
        return Found::no("no ext4 in /proc/filesystems", cure);
    }
    match crate::disk::mkfs() {
        Some(path) => Found::yes(format!("loop devices, ext4, {}", path.display())),
        None => Found::no("no mkfs.ext4", cure),
    }
}

/// Runs `act` in a process of its own in a new user namespace (and `new` ones), of which it is root.
fn trial(new: u64, act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    match process::fork_into(namespaces::USER | new, None)? {
        Forked::Child => {
            let mapped = fs::write("/proc/self/setgroups", "deny")
                .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {uid} 1")))
                .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {gid} 1")));
            let result = match mapped {
                Ok(()) => rustix::thread::set_no_new_privs(true).and_then(|()| act()),
                Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            };
            // An exit code has 8 bits; the numbers of errors that these calls give are below 134.
            process::exit(result.map_or_else(|errno| errno.raw_os_error().clamp(1, 255), |()| 0))
        }
        Forked::Parent { pid, .. } => {
            let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()))?;
            match status.and_then(|(_, status)| status.exit_status()) {
                Some(0) => Ok(()),
                Some(code) => Err(Errno::from_raw_os_error(code)),
                None => Err(Errno::INTR),
            }
        }
    }
}
