//! What a sandbox has beside its spec: whether it runs, what its maker calls it by, and the environment of its execs.

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// Most pairs of labels, and most variables of the environment. Chosen.
const LABELS_MAX: usize = 64;
const VARIABLES_MAX: usize = 512;
/// Most bytes of all labels, of the environment, and of a door's own data as JSON. Chosen.
const LABEL_BYTES_MAX: usize = 16 << 10;
const ENV_BYTES_MAX: usize = 64 << 10;
const DOOR_BYTES_MAX: usize = 8 << 10;
/// Shortest and longest idleness after which a sandbox is paused, milliseconds. Chosen.
const IDLE_MS: std::ops::RangeInclusive<u64> = 1_000..=30 * 86_400_000;

/// Whether a sandbox runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// It serves.
    Running,
    /// It uses no CPU and has no lease until it is resumed.
    Paused,
}

impl SandboxState {
    /// Its text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// What of a sandbox is kept while it is paused.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseKind {
    /// Processes and files: its processes are frozen where they are.
    #[default]
    Memory,
    /// Files alone: its processes end, and a resume begins anew from the files.
    Files,
}

impl PauseKind {
    /// Its text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Files => "files",
        }
    }
}

/// An environment, such as the one that every exec of a sandbox begins with, below the exec's own. It may hold secrets:
/// `Debug` prints how many variables there are and nothing else.
#[derive(Clone, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct SandboxEnv(BTreeMap<String, String>);

impl SandboxEnv {
    /// The variables by name.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl From<BTreeMap<String, String>> for SandboxEnv {
    fn from(variables: BTreeMap<String, String>) -> Self {
        Self(variables)
    }
}

impl From<SandboxEnv> for BTreeMap<String, String> {
    fn from(env: SandboxEnv) -> Self {
        env.0
    }
}

impl Deref for SandboxEnv {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for SandboxEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SandboxEnv({} variables)", self.0.len())
    }
}

/// What its maker says of a sandbox beside what it should be.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxAbout {
    /// Words to find it by; they mean nothing to us. At most 64 pairs and 16 KiB.
    pub labels: BTreeMap<String, String>,
    /// The environment of its execs, below their own. At most 512 variables and 64 KiB.
    pub env: SandboxEnv,
    /// Whether a call that comes while its processes are frozen resumes it.
    pub auto_resume: bool,
    /// What is kept of it when it is paused without being asked to: by the end of its lease, or because it is idle.
    pub auto_pause: PauseKind,
    /// It is paused when nothing was asked of it and no exec runs in it for so long, milliseconds, 1 s to 30 days;
    /// `None`: never.
    pub idle_pause_ms: Option<u64>,
    /// What the door that made it must remember; means nothing to us. At most 8 KiB as JSON.
    pub door: serde_json::Value,
}

impl SandboxAbout {
    /// Checks every part against its bound.
    ///
    /// # Errors
    /// `invalid_request` naming the first part that is out of its bound.
    pub fn validate(&self) -> Result<(), Fault> {
        let bytes = |map: &BTreeMap<String, String>| map.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bounds: [(&str, &BTreeMap<String, String>, usize, usize); 2] =
            [("labels", &self.labels, LABELS_MAX, LABEL_BYTES_MAX), ("env", &self.env, VARIABLES_MAX, ENV_BYTES_MAX)];
        for (what, map, pairs_max, bytes_max) in bounds {
            let total: usize = bytes(map);
            if map.len() > pairs_max || total > bytes_max {
                return Err(Fault::invalid(format!(
                    "`{what}` has {} entries of {total} bytes; at most {pairs_max} of {bytes_max} bytes are taken",
                    map.len()
                )));
            }
            if map.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
                return Err(Fault::invalid(format!("`{what}` has a byte 0")));
            }
        }
        // As execve(2) takes them: `name=value`. The name is not quoted back: it may be a slip of the secret itself.
        if self.env.keys().any(|name| name.is_empty() || name.contains('=')) {
            return Err(Fault::invalid("the name of a variable in `env` is empty or has a `=`"));
        }
        if self.door.to_string().len() > DOOR_BYTES_MAX {
            return Err(Fault::invalid(format!("`door` is longer than {DOOR_BYTES_MAX} bytes")));
        }
        match self.idle_pause_ms {
            Some(idle) if !IDLE_MS.contains(&idle) => {
                Err(Fault::invalid(format!("`idle_pause_ms` must be {} to {}", IDLE_MS.start(), IDLE_MS.end())))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn bounds_are_held_and_named() {
        let good = SandboxAbout {
            labels: map(&[("a", "b"), ("", "")]),
            env: map(&[("A", "x=y")]).into(),
            idle_pause_ms: Some(1_000),
            ..SandboxAbout::default()
        };
        good.validate().unwrap();
        let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
        let long = map(&[("a", &"x".repeat(LABEL_BYTES_MAX))]);
        let bad: [(SandboxAbout, &str); 7] = [
            (SandboxAbout { labels: many, ..good.clone() }, "`labels`"),
            (SandboxAbout { labels: long, ..good.clone() }, "`labels`"),
            (SandboxAbout { labels: map(&[("a", "\0")]), ..good.clone() }, "`labels`"),
            (SandboxAbout { env: map(&[("A=B", "x")]).into(), ..good.clone() }, "`env`"),
            (SandboxAbout { env: map(&[("A", &"x".repeat(ENV_BYTES_MAX))]).into(), ..good.clone() }, "`env`"),
            (SandboxAbout { door: "x".repeat(DOOR_BYTES_MAX).into(), ..good.clone() }, "`door`"),
            (SandboxAbout { idle_pause_ms: Some(999), ..good.clone() }, "`idle_pause_ms`"),
        ];
        for (about, what) in bad {
            let fault = about.validate().unwrap_err();
            assert!(fault.message.contains(what), "{}", fault.message);
        }
    }

    #[test]
    fn an_environment_is_not_printed() {
        let about = SandboxAbout { env: map(&[("TOKEN", "hush")]).into(), ..SandboxAbout::default() };
        let text = format!("{about:?}");
        assert!(!text.contains("hush") && !text.contains("TOKEN"), "{text}");
    }
}
