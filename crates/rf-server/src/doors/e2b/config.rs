//! What the door of the E2B clients is told: `[e2b]` in the configuration.

use rf_types::{
    DiskKind, Limits, SandboxSpec,
    units::{MIB, UnixMs},
};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// The section `[e2b]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct E2bConfig {
    /// The domain below which each port of a sandbox has a name, `{port}-{sandbox}.{domain}`; lower case. Every name
    /// below it must lead to this server, and its certificate must be good for them. Behind a colon the port at which
    /// clients find this server there, where that is not 443. `None`: ports are reached by headers.
    pub domain: Option<String>,
    /// Whether a client may ask for a sandbox whose commands and files need no token (`secure: false`), so that whoever
    /// knows its id has it. Else such a request is refused.
    pub allow_unsecured: bool,
    /// CPU of a sandbox, thousandths of one; 10 to 1,024,000.
    pub cpu_milli_max: u32,
    /// Memory of a sandbox, bytes; 16 MiB to 1 TiB.
    pub memory_bytes_max: u64,
    /// Its disk, bytes; 1 MiB to 16 TiB. In memory it counts against the memory too.
    pub disk_bytes_max: u64,
    /// Its inodes; 256 to 100 million.
    pub inodes_max: u64,
    /// Its processes and threads; 8 to 100,000.
    pub tasks_max: u32,
    /// Where its files are: `memory`, or `image`, which needs a warden with root and takes larger disks.
    pub disk: DiskKind,
}

impl Default for E2bConfig {
    // What a program written for these clients expects: 2 CPUs and 512 MiB. The disk is in memory, so it gets the half of
    // it; with `disk = "image"` an operator gives it gigabytes.
    fn default() -> Self {
        Self {
            domain: None,
            allow_unsecured: false,
            cpu_milli_max: 2_000,
            memory_bytes_max: 512 * MIB,
            disk_bytes_max: 256 * MIB,
            inodes_max: 65_536,
            tasks_max: 512,
            disk: DiskKind::Memory,
        }
    }
}

impl E2bConfig {
    /// The limits of a sandbox that these clients make.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            memory_bytes_max: self.memory_bytes_max,
            tasks_max: self.tasks_max,
            cpu_milli_max: self.cpu_milli_max,
            disk_bytes_max: self.disk_bytes_max,
            inodes_max: self.inodes_max,
            io_bytes_per_second_max: Limits::STANDARD.io_bytes_per_second_max,
        }
    }

    /// The domain without its port.
    #[must_use]
    pub fn domain_name(&self) -> Option<&str> {
        self.domain.as_deref().map(|domain| domain.split_once(':').map_or(domain, |(name, _)| name))
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first one that is out of range or cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        /// Any lease will do: only the limits are asked about.
        const LEASE_MS: UnixMs = 60_000;
        let spec = SandboxSpec { limits: self.limits(), disk: self.disk, ..SandboxSpec::standard(LEASE_MS) };
        spec.validate().map_err(|error| ConfigError::Value { key: "e2b", why: format!("has {error}") })?;
        match &self.domain {
            Some(domain) if !is_domain(domain) => Err(ConfigError::Value {
                key: "e2b.domain",
                why: format!(
                    "must be a domain's name in lower case, such as `box.example.com` or `box.example.com:8443`, not \
                     `{domain}`"
                ),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Whether a text is a domain's name: labels of 1 to 63 letters, digits and inner dashes (RFC 1035, section 2.3.1), short
/// enough that a port and a sandbox's id still go before it; and a port behind it, if any.
fn is_domain(text: &str) -> bool {
    let (text, port) = text.split_once(':').map_or((text, None), |(text, port)| (text, Some(port)));
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0') && port.parse::<u16>().is_ok();
    if !port.is_none_or(is_port) {
        return false;
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 180 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut E2bConfig)) -> String {
        let mut config = E2bConfig::default();
        change(&mut config);
        config.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_defaults_are_good_and_every_wrong_value_is_named() {
        assert_eq!(refused(|_| {}), "");
        assert_eq!(refused(|config| config.domain = Some("box.example.com".into())), "");
        assert_eq!(refused(|config| config.domain = Some("localhost".into())), "");
        assert_eq!(refused(|config| config.domain = Some("box.example.com:8443".into())), "");
        for domain in [
            "",
            ".",
            "a..b",
            "Box.example.com",
            "a_b.c",
            "-a.b",
            "a-.b",
            "a.b.",
            "https://a.b",
            ":1",
            "a:",
            "a:0",
            "a:01",
        ]
        .into_iter()
        .chain(["a:65536", "a:+1", "a:x", "a:1:2", "a:1/"])
        {
            assert!(refused(|config| config.domain = Some(domain.into())).contains("e2b.domain"), "{domain}");
        }
        assert!(refused(|config| config.cpu_milli_max = 1).contains("cpu_milli_max"));
        assert!(refused(|config| config.disk_bytes_max = 1).contains("disk_bytes_max"));
    }
}
