//! What a host's owner sets and no sandbox can be held without: how old the kernel is, and numbers that all sandboxes
//! share. Nothing is refused for any of it; `ringfence doctor` shows it, and what to do.

use std::{fs, path::Path};

use rustix::thread::CapabilitySet;

use crate::host::Found;

/// One of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    /// Its name, as sysctl(8) has it where that does.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub found: Found,
}

/// What needs which version of Linux at the least; how each was found out stands where it is used.
const NEEDS: [((u32, u32), &str); 9] = [
    ((5, 12), "own ids for each sandbox (mount_setattr)"),
    ((5, 13), "the layer `landlock`"),
    ((5, 14), "netlink sockets that are counted (SECCOMP_ADDFD_FLAG_SEND), killing a group at once (cgroup.kill)"),
    ((5, 19), "own ids for the layers of a root (overlayfs on mounts that map ids)"),
    ((6, 3), "own ids for the disk `memory` (tmpfs that maps ids)"),
    ((6, 5), "telling for sure who asks `sudo` (SO_PEERPIDFD)"),
    ((6, 11), "reading back namespaces through a process's descriptor (PIDFD_GET_USER_NAMESPACE)"),
    ((6, 15), "snapshots, forks and pausing with files alone (copies of mounts that are attached nowhere)"),
    ((6, 16), "a warden that is sent no descriptors by a sandbox (SO_PASSRIGHTS)"),
];
/// Below it, sandboxes of a warden with root, or of any, cannot be held: from 5.11 on a user namespace mounts overlayfs.
const OLDEST: [(u32, u32); 2] = [(5, 11), (5, 19)];
/// After so many days a kernel that was built then lacks fixes that others have. Chosen: long-term kernels get them weekly,
/// distributions monthly.
const OLD_DAYS: u64 = 180;
/// Memory of a file that is open (measured: some 200 bytes), and more than that, bytes.
const FILE_BYTES: u64 = 256;
/// From this `net.core.rmem_default` on the 64 netlink sockets of a sandbox are worth as much as its usual memory limit,
/// bytes. Chosen.
const RECEIVED_MAX: u64 = 4 << 20;

impl Setting {
    const fn good(name: &'static str, evidence: String) -> Self {
        Self { name, found: Found { available: true, evidence, cure: String::new() } }
    }

    fn bad(name: &'static str, evidence: String, cure: &str) -> Self {
        Self { name, found: Found { available: false, evidence, cure: cure.to_owned() } }
    }
}

/// Looks at all of them. `supervisor`: a process that a running warden was started by; none runs where there is none.
/// `now`: milliseconds since 1970.
#[must_use]
pub fn look(supervisor: Option<u32>, now: u64) -> Vec<Setting> {
    let text = |path: &str| fs::read_to_string(Path::new("/proc").join(path)).map(|text| text.trim().to_owned()).ok();
    let number = |path: &str| text(path).and_then(|text| text.parse().ok());
    let uname = rustix::system::uname();
    let (release, version) = (uname.release().to_string_lossy(), uname.version().to_string_lossy());
    let info = rustix::system::sysinfo();
    let memory = (info.totalram as u64).saturating_mul(info.mem_unit.into());
    let rooted = rustix::process::geteuid().is_root();
    let may_lower =
        rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let of = supervisor.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let spared = text(&format!("{of}/oom_score_adj")).and_then(|text| text.parse().ok()).unwrap_or(0);
    vec![
        kernel(&release, &version, rooted, now / 86_400_000),
        file_max(number("sys/fs/file-max"), memory),
        oom_score_adj(spared, may_lower),
        rmem_default(number("sys/net/core/rmem_default")),
        modprobe(text("sys/kernel/modprobe").as_deref()),
    ]
}

/// The first two numbers of a release.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Days since 1970 of a civil date. After Howard Hinnant, `days_from_civil`.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month > 2 { year } else { year - 1 };
    let month = (month + 9) % 12;
    let of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

/// When a kernel was built, in days since 1970: its version says so as date(1) does, or as `2026-01-31`.
fn built(version: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let in_range =
        |year, month, day| (1990..3000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let words: Vec<&str> = version.split(|c: char| c.is_whitespace() || "()".contains(c)).collect();
    let iso = words.iter().find_map(|word| {
        let parts: Vec<u64> = word.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        match parts[..] {
            [year, month, day] if in_range(year, month, day) => Some(days(year, month, day)),
            _ => None,
        }
    });
    iso.or_else(|| {
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|word| MONTHS.contains(word))?;
        let month = MONTHS.iter().position(|month| month == &words[at])? as u64 + 1;
        let day: u64 = words.get(at + 1)?.parse().ok()?;
        let year: u64 = words.last()?.parse().ok()?;
        in_range(year, month, day).then(|| days(year, month, day))
    })
}

fn kernel(release: &str, version: &str, rooted: bool, today: u64) -> Setting {
    const NAME: &str = "kernel";
    const CURE: &str = "install the newest kernel that your distribution has, and start it; Linux 6.16 or later has all \
        that is used";
    let Some(own) = numbers(release) else {
        return Setting::bad(NAME, format!("`{release}` is no release of Linux that is known here"), CURE);
    };
    let lacks: Vec<String> = NEEDS
        .iter()
        .filter(|(since, _)| own < *since)
        .map(|((major, minor), what)| format!("{what}: Linux {major}.{minor}"))
        .collect();
    let mut evidence = match lacks[..] {
        [] => format!("{release}: new enough for all that is used"),
        _ => format!("{release}: too old for {}", lacks.join("; ")),
    };
    let age = built(version).map(|built| today.saturating_sub(built));
    evidence.push_str(&match age {
        Some(age) => format!("; built {age} days ago"),
        None => "; it does not say when it was built".to_owned(),
    });
    if own < OLDEST[usize::from(rooted)] || age.is_some_and(|age| age > OLD_DAYS) {
        return Setting::bad(NAME, evidence, CURE);
    }
    Setting::good(NAME, evidence)
}

fn file_max(max: Option<u64>, memory: u64) -> Setting {
    const NAME: &str = "fs.file-max";
    match max {
        None => Setting::good(NAME, "the host does not say it".to_owned()),
        // Memory runs out before this does.
        Some(max) if max >= memory / FILE_BYTES => Setting::good(NAME, format!("{max}: memory alone counts")),
        Some(max) => {
            let evidence =
                format!("{max}: a few sandboxes can have all open files of the host, then nobody else opens one");
            Setting::bad(NAME, evidence, "`sysctl -w fs.file-max=9223372036854775807`, also in /etc/sysctl.d")
        }
    }
}

fn oom_score_adj(adjusted: i32, may_lower: bool) -> Setting {
    const NAME: &str = "oom_score_adj";
    match (adjusted, may_lower) {
        (0.., _) => Setting::good(NAME, format!("{adjusted}: sandboxes are chosen as others are when memory runs out")),
        (..0, true) => Setting::good(NAME, format!("{adjusted}, which is not passed on to sandboxes")),
        (..0, false) => {
            let evidence =
                format!("{adjusted}: a workload can make itself as unlikely to be chosen when memory runs out");
            let cure = "start `ringfence up` with 0 (`OOMScoreAdjust=` of its service), or with CAP_SYS_RESOURCE";
            Setting::bad(NAME, evidence, cure)
        }
    }
}

fn rmem_default(default: Option<u64>) -> Setting {
    const NAME: &str = "net.core.rmem_default";
    match default {
        None => Setting::good(NAME, "the host does not say it".to_owned()),
        Some(bytes) if bytes < RECEIVED_MAX => Setting::good(
            NAME,
            format!("{bytes}: 64 netlink sockets of a sandbox hold {} KiB at most", bytes * 64 / 1024),
        ),
        Some(bytes) => {
            let evidence = format!(
                "{bytes}: 64 netlink sockets of a sandbox hold up to {} MiB that count for nobody",
                bytes.saturating_mul(64) >> 20
            );
            Setting::bad(NAME, evidence, "`sysctl -w net.core.rmem_default=212992`, also in /etc/sysctl.d")
        }
    }
}

fn modprobe(program: Option<&str>) -> Setting {
    const NAME: &str = "kernel.modprobe";
    match program {
        None => Setting::good(NAME, "the kernel loads no modules".to_owned()),
        Some("") => Setting::good(NAME, "empty: the kernel runs no program to load modules".to_owned()),
        Some(program) => {
            let evidence = format!(
                "`{program}`: older kernels run it, counted for no sandbox, when one executes a file of no known format"
            );
            let cure = "once every module that the host needs is loaded: `sysctl -w kernel.modprobe=`";
            Setting::bad(NAME, evidence, cure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: u64 = 20_600;

    #[test]
    fn the_date_of_a_kernel_is_read_as_distributions_write_it() {
        assert_eq!((days(1970, 1, 1), days(2000, 3, 1), days(2024, 2, 29)), (0, 11_017, 19_782));
        for (version, expected) in [
            ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.90-1 (2024-05-03)", Some(days(2024, 5, 3))),
            ("#45-Ubuntu SMP PREEMPT_DYNAMIC Fri Aug 30 12:02:04 UTC 2024", Some(days(2024, 8, 30))),
            ("#1 SMP PREEMPT_DYNAMIC Sun, 07 Jan 2024 10:00:00 +0000", None),
            ("#1 SMP Sun Jan  7 10:00:00 UTC 2024", Some(days(2024, 1, 7))),
            ("#1 SMP PREEMPT_DYNAMIC @0", None),
            ("", None),
            ("99999999999999999999-01-01 Jan 99999999999999999999", None),
        ] {
            assert_eq!(built(version), expected, "{version}");
        }
    }

    #[test]
    fn a_kernel_is_judged_by_what_it_lacks_and_by_its_age() {
        let good = |release: &str, rooted| kernel(release, "", rooted, TODAY).found.available;
        assert_eq!(
            ["6.18.44-fc", "6.1.0-21-amd64", "5.19.0", "5.18.9", "5.10.0"].map(|of| good(of, true)),
            [true, true, true, false, false]
        );
        assert_eq!(["5.18.9", "5.11.0", "5.10.0"].map(|of| good(of, false)), [true, true, false]);
        assert!(!good("linux", true));
        let found = kernel("6.1.0-21-amd64", "", true, TODAY).found;
        assert!(found.evidence.contains("snapshots") && !found.evidence.contains("landlock"), "{}", found.evidence);
        for (age, expected) in [(0, true), (OLD_DAYS, true), (OLD_DAYS + 1, false)] {
            // Built on 2026-05-28, whatever today is.
            let found = kernel("6.18.1", "#1 SMP (2026-05-28)", true, days(2026, 5, 28) + age).found;
            assert_eq!((found.available, found.cure.is_empty()), (expected, expected), "{}", found.evidence);
        }
    }

    #[test]
    fn numbers_that_all_sandboxes_share_are_judged() {
        let gib = 1 << 30;
        assert!(file_max(Some(u64::MAX >> 1), 1024 * gib).found.available);
        // As the kernel sets it by itself.
        assert!(!file_max(Some(800_000), 8 * gib).found.available);
        assert!(file_max(None, gib).found.available);
        assert!(oom_score_adj(0, false).found.available && oom_score_adj(500, false).found.available);
        assert!(oom_score_adj(-900, true).found.available && !oom_score_adj(-1, false).found.available);
        assert!(rmem_default(Some(212_992)).found.available && !rmem_default(Some(64 << 20)).found.available);
        assert!(!rmem_default(Some(u64::MAX)).found.available);
        assert!(modprobe(None).found.available && modprobe(Some("")).found.available);
        assert!(!modprobe(Some("/sbin/modprobe")).found.available);
    }

    #[test]
    fn this_host_is_looked_at_and_every_fault_has_a_cure() {
        let all = look(Some(std::process::id()), TODAY * 86_400_000);
        assert_eq!(all.len(), 5);
        for Setting { name, found } in all {
            assert!(!found.evidence.is_empty() && found.available == found.cure.is_empty(), "{name}: {found:?}");
        }
    }
}
