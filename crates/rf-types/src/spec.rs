//! What a sandbox should be, and how much a user may have.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    layer::Layer,
    units::{GIB, MIB},
};

/// Which template a root is made from: `host`, or a name of 1 to 128 of `a-z`, `0-9`, `.`, `_`, `-`, `/`, `:`, `@`
/// that starts with a letter or digit and has no empty and no `..` part.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct TemplateName(String);

impl TemplateName {
    /// The template that is always there: the host's `/usr` and a synthetic `/etc`.
    #[must_use]
    pub fn host() -> Self {
        Self("host".to_owned())
    }

    /// The other template that is always there: `host` with what programs written for E2B's sandboxes expect.
    #[must_use]
    pub fn base() -> Self {
        Self("base".to_owned())
    }

    /// Whether the server makes it itself, so that nobody imports or removes it.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        matches!(self.0.as_str(), "host" | "base")
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateName {
    type Err = ParseTemplateNameError;

    fn from_str(text: &str) -> Result<Self, ParseTemplateNameError> {
        let body = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:@".contains(&b);
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let parts = text.split('/').all(|part| !part.is_empty() && part != "..");
        if first && parts && text.len() <= 128 && text.bytes().all(body) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseTemplateNameError)
        }
    }
}

impl<'de> Deserialize<'de> for TemplateName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a template's name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a template name is 1 to 128 of a-z, 0-9, `.`, `_`, `-`, `/`, `:` and `@`, with no empty and no `..` part")]
pub struct ParseTemplateNameError;

/// Where a sandbox's writable files live.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// In memory (tmpfs). Fast; what is written counts against the sandbox's memory limit as well.
    Memory,
    /// On a file-system image of its own. Does not count as memory beyond the page cache. Needs a warden with root.
    Image,
}

/// The network a sandbox has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Only `lo`: there is no way out.
    None,
}

/// What happens to a sandbox whose lease ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLeaseEnd {
    /// It is destroyed.
    #[default]
    Destroy,
    /// It is paused: its processes are frozen and stay in memory, within its limits, until it is resumed or destroyed.
    Pause,
}

/// What one sandbox may use. Every field is a hard limit that holds before the first instruction of the user's runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of all processes and, with [`DiskKind::Memory`], files; bytes, 16 MiB to 1 TiB.
    pub memory_bytes_max: u64,
    /// Tasks (processes and threads) at once, 8 to 100,000.
    pub tasks_max: u32,
    /// CPU in thousandths of one CPU, 10 to 1,024,000.
    pub cpu_milli_max: u32,
    /// Bytes on the writable root, 1 MiB to 16 TiB.
    pub disk_bytes_max: u64,
    /// Inodes on the writable root, 256 to 100 million.
    pub inodes_max: u64,
    /// Block I/O in bytes a second for each direction, for [`DiskKind::Image`]; 1 MiB/s to 1 TiB/s.
    pub io_bytes_per_second_max: u64,
}

impl Limits {
    /// The limits of a sandbox for which nobody asked for others.
    pub const STANDARD: Self = Self {
        memory_bytes_max: 256 * MIB,
        tasks_max: 256,
        cpu_milli_max: 1_000,
        disk_bytes_max: 128 * MIB,
        inodes_max: 32_768,
        io_bytes_per_second_max: GIB,
    };
}

/// A request for a sandbox, complete: every limit is named.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// What the root is made from.
    pub template: TemplateName,
    /// What it may use.
    pub limits: Limits,
    /// Where its writable files live.
    pub disk: DiskKind,
    /// Its network.
    pub network: Network,
    /// Whether `root` inside (by the API or by `sudo`) may be had.
    pub root_allowed: bool,
    /// Layers that may be absent on this host. Empty means: all or nothing.
    pub accept_missing: Vec<Layer>,
    /// How long it lives unless extended, from its making, in milliseconds; 1 s to 30 days.
    pub lease_ms: u64,
    /// What happens when the lease ends. One that was stored before there was a choice is destroyed.
    #[serde(default)]
    pub on_lease_end: OnLeaseEnd,
}

impl SandboxSpec {
    /// A sandbox of the `host` template with [`Limits::STANDARD`], no network, `root` allowed, every layer held.
    #[must_use]
    pub fn standard(lease_ms: u64) -> Self {
        Self {
            template: TemplateName::host(),
            limits: Limits::STANDARD,
            disk: DiskKind::Memory,
            network: Network::None,
            root_allowed: true,
            accept_missing: Vec::new(),
            lease_ms,
            on_lease_end: OnLeaseEnd::Destroy,
        }
    }

    /// Checks every number against its range.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SpecError> {
        let l = &self.limits;
        let ranges = [
            ("memory_bytes_max", l.memory_bytes_max, 16 * MIB, 1024 * GIB),
            ("tasks_max", l.tasks_max.into(), 8, 100_000),
            ("cpu_milli_max", l.cpu_milli_max.into(), 10, 1_024_000),
            ("disk_bytes_max", l.disk_bytes_max, MIB, 16_384 * GIB),
            ("inodes_max", l.inodes_max, 256, 100_000_000),
            ("io_bytes_per_second_max", l.io_bytes_per_second_max, MIB, 1024 * GIB),
            ("lease_ms", self.lease_ms, 1_000, 30 * 86_400_000),
        ];
        for (field, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(SpecError { field, value, min, max });
            }
        }
        Ok(())
    }
}

/// A number of a spec that is out of its range.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{field}` is {value}, but must be {min} to {max}{}", in_units(field, *min, *max))]
pub struct SpecError {
    /// Which field.
    pub field: &'static str,
    /// What it was.
    pub value: u64,
    /// Least allowed.
    pub min: u64,
    /// Most allowed.
    pub max: u64,
}

/// The range of a field in the units that people think in, where it has such.
fn in_units(field: &str, min: u64, max: u64) -> String {
    let units: &[(u64, &str)] = if field.contains("_bytes") {
        &[(1024 * GIB, "TiB"), (GIB, "GiB"), (MIB, "MiB")]
    } else if field.ends_with("_ms") {
        &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")]
    } else if field.contains("cpu_milli") {
        &[(1_000, "CPUs"), (10, "hundredths of a CPU")]
    } else {
        return String::new();
    };
    let told = |value: u64| {
        let fits = units.iter().find(|(unit, _)| value >= *unit && value.is_multiple_of(*unit));
        fits.map_or_else(|| value.to_string(), |(unit, name)| format!("{} {name}", value / unit))
    };
    format!(" ({} to {})", told(min), told(max))
}

/// How much one user may have at once, over all their sandboxes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UserLimits {
    /// Sandboxes at once.
    pub sandboxes_max: u32,
    /// Execs at once.
    pub execs_max: u32,
    /// Sum of the sandboxes' CPU limits, thousandths of one CPU.
    pub cpu_milli_max: u32,
    /// Sum of the sandboxes' memory limits, bytes.
    pub memory_bytes_max: u64,
    /// Sum of the sandboxes' disk limits, bytes.
    pub disk_bytes_max: u64,
    /// Longest lease, milliseconds.
    pub lease_ms_max: u64,
    /// Whether the user may have `root` inside their sandboxes.
    pub root_allowed: bool,
    /// Snapshots at once.
    #[serde(default = "snapshots_max")]
    pub snapshots_max: u32,
    /// Sum of the snapshots' bytes.
    #[serde(default = "snapshot_bytes_max")]
    pub snapshot_bytes_max: u64,
}

/// Of limits that were written before there were snapshots.
const fn snapshots_max() -> u32 {
    UserLimits::STANDARD.snapshots_max
}

/// As [`snapshots_max`].
const fn snapshot_bytes_max() -> u64 {
    UserLimits::STANDARD.snapshot_bytes_max
}

impl UserLimits {
    /// The limits of a new user.
    pub const STANDARD: Self = Self {
        sandboxes_max: 20,
        execs_max: 100,
        cpu_milli_max: 20_000,
        memory_bytes_max: 8 * GIB,
        disk_bytes_max: 20 * GIB,
        lease_ms_max: 7 * 86_400_000,
        root_allowed: true,
        snapshots_max: 100,
        snapshot_bytes_max: 20 * GIB,
    };
}
