//! The server's one configuration file, read once and checked whole before anything listens.
//!
//! Unknown keys are refused. A key may be overlaid from the environment: [`ENV_PREFIX`], the section, two underscores,
//! the key, in upper case: `RINGFENCE__LISTEN`, `RINGFENCE__TLS__KEY`. Its value is read as TOML, and as a plain string
//! where that fails.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    doors::e2b::config::E2bConfig,
    registries::{self, RegistryConfig},
};

/// What every environment variable that overlays a key begins with; see the module.
pub const ENV_PREFIX: &str = "RINGFENCE__";
/// Longest configuration file, bytes. Chosen: a hundred times the longest sensible one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything the server is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Where it listens.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Listen on an address that others can reach although there is no `[tls]`. Only behind a proxy that has it.
    #[serde(default)]
    pub allow_plaintext_public: bool,
    /// How clients reach this server, such as `https://run.example.com`; used in the installer. Empty: from the
    /// request's own `Host`.
    #[serde(default)]
    pub public_url: String,
    /// The directory for state.db, ledger/, spool/ and blobs/. Made with mode 0700 if missing.
    pub state_dir: PathBuf,
    /// Where the first operator's key is written when the store is empty; mode 0600. `None`: nowhere but
    /// `state_dir`/first-key.
    #[serde(default)]
    pub first_key_file: Option<PathBuf>,
    /// The warden's socket.
    pub warden_socket: PathBuf,
    /// Refuse to start while this process holds a capability or could gain one; for a server that a supervisor with
    /// root started.
    #[serde(default)]
    pub require_no_rights: bool,
    /// The certificate; without it the server speaks plain HTTP.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Bounds of the door.
    #[serde(default)]
    pub door: DoorConfig,
    /// What is logged.
    #[serde(default)]
    pub log: LogConfig,
    /// Where metrics are given beside `/metrics` with an operator's key.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Who gets in: rates, issuers of tokens, the pepper.
    #[serde(default)]
    pub gate: rf_gate::GateConfig,
    /// The door of the E2B clients.
    #[serde(default)]
    pub e2b: E2bConfig,
    /// How long the ledger keeps its records.
    #[serde(default)]
    pub ledger: LedgerConfig,
    /// The registries that need credentials, or are spoken to without TLS.
    #[serde(default)]
    pub registries: Vec<RegistryConfig>,
}

/// A certificate by files, read again when they change.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM: the chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// Bounds of the door. Each has a range; see [`ServerConfig::validate`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DoorConfig {
    /// Connections at once, 1 to 65,536.
    pub connections_max: u32,
    /// Connections at once of one address, 1 to 65,536.
    pub connections_per_peer_max: u32,
    /// How long a client may take no byte of its answer; 1 s to 1 h.
    pub stall_timeout_ms: u64,
    /// From connecting to the first request's whole header, and from one request to the next's; 100 ms to 5 min.
    pub header_timeout_ms: u64,
    /// From a request's header to its whole JSON body; 100 ms to 5 min.
    pub body_timeout_ms: u64,
    /// Longest pause between two pieces of an upload; 1 s to 1 h.
    pub upload_idle_timeout_ms: u64,
    /// Longest JSON body, bytes; 1 KiB to 64 MiB.
    pub json_bytes_max: usize,
    /// Longest upload, bytes; 1 KiB to 16 TiB.
    pub upload_bytes_max: u64,
    /// Most bytes of each output stream in one JSON answer; 0 to 64 MiB.
    pub output_bytes_max: usize,
    /// How long requests may go on after the server was told to end; 0 to 10 min.
    pub shutdown_grace_ms: u64,
}

impl Default for DoorConfig {
    // Chosen: far above what a well-behaved client needs, far below what would hurt the server.
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_peer_max: 3072,
            stall_timeout_ms: 300_000,
            header_timeout_ms: 15_000,
            body_timeout_ms: 30_000,
            upload_idle_timeout_ms: 60_000,
            json_bytes_max: 8 << 20,
            upload_bytes_max: 1 << 40,
            output_bytes_max: 8 << 20,
            shutdown_grace_ms: 10_000,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Pretty,
}

/// What is logged, to standard error.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// A filter such as `info` or `info,rf_server=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned() }
    }
}

/// Metrics on a listener of their own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// A loopback address that serves `/metrics` without a credential; `None`: only the main door, to operators.
    pub listen: Option<SocketAddr>,
}

/// How long the ledger keeps its records: for ever, unless something is said here.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    /// Segments all of whose records are older are let go of, days; 1 to 36,500. `None`: never.
    pub keep_days: Option<u32>,
    /// Where they are moved, as they are; must be writable by the server's own id. `None`: `state_dir`/ledger-archive.
    pub archive_dir: Option<PathBuf>,
    /// Remove them instead of moving them.
    pub discard: bool,
}

impl LedgerConfig {
    /// Where segments are moved that are let go; `None`: they are removed.
    #[must_use]
    pub fn archive(&self, state_dir: &Path) -> Option<PathBuf> {
        (!self.discard).then(|| self.archive_dir.clone().unwrap_or_else(|| state_dir.join("ledger-archive")))
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7070))
}

/// Why a configuration is refused. Names the key wherever there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The file is longer than any sensible one.
    #[error("the configuration `{}` is longer than {FILE_BYTES_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, an unknown key, or a value of a wrong kind.
    #[error("the configuration is wrong: {0}")]
    Malformed(String),
    /// An environment variable that names no key.
    #[error("the environment variable `{name}` names no key: {why}")]
    Environment {
        /// The variable.
        name: String,
        /// Why.
        why: String,
    },
    /// A number out of its range.
    #[error("`{key}` is {value}, but must be {min} to {max}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// A value that cannot be.
    #[error("`{key}` {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A listener that others can reach, without TLS.
    #[error(
        "refusing to listen on `{address}` without TLS: others could read the keys; give `[tls]` a certificate, listen \
         on a loopback address, or say `allow_plaintext_public = true` (`--allow-plaintext`) behind a proxy that has TLS"
    )]
    PlaintextPublic {
        /// The address.
        address: SocketAddr,
    },
}

impl ServerConfig {
    /// A configuration of defaults for these three paths.
    #[must_use]
    pub fn with_paths(state_dir: PathBuf, warden_socket: PathBuf) -> Self {
        Self {
            listen: default_listen(),
            allow_plaintext_public: false,
            public_url: String::new(),
            state_dir,
            first_key_file: None,
            warden_socket,
            require_no_rights: false,
            tls: None,
            door: DoorConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            gate: rf_gate::GateConfig::default(),
            e2b: E2bConfig::default(),
            ledger: LedgerConfig::default(),
            registries: Vec::new(),
        }
    }

    /// Reads a file, lays the environment over it and checks the whole.
    ///
    /// # Errors
    /// The first thing that is wrong, by key.
    pub fn load(path: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        use std::io::Read as _;
        let read = |error| ConfigError::Read { path: path.to_owned(), error };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        let length = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if length as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned() });
        }
        Self::parse(&text, environment)
    }

    /// Reads a configuration's text and the files of secrets that it names, lays the environment over it and checks the
    /// whole.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed(one_line(&error)))?;
        for (name, value) in environment {
            if let Some(path) = name.strip_prefix(ENV_PREFIX) {
                overlay(&mut table, &name, path, &value)?;
            }
        }
        let mut config: Self = table.try_into().map_err(|error| ConfigError::Malformed(one_line(&error)))?;
        config.validate()?;
        registries::validate(&mut config.registries).map_err(|why| ConfigError::Value { key: "registries", why })?;
        Ok(config)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first one that is out of range or cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let d = &self.door;
        let ranges = [
            ("door.connections_max", d.connections_max.into(), 1, 65_536),
            ("door.connections_per_peer_max", d.connections_per_peer_max.into(), 1, 65_536),
            ("door.stall_timeout_ms", d.stall_timeout_ms, 1_000, 3_600_000),
            ("door.header_timeout_ms", d.header_timeout_ms, 100, 300_000),
            ("door.body_timeout_ms", d.body_timeout_ms, 100, 300_000),
            ("door.upload_idle_timeout_ms", d.upload_idle_timeout_ms, 1_000, 3_600_000),
            ("door.json_bytes_max", d.json_bytes_max as u64, 1 << 10, 64 << 20),
            ("door.upload_bytes_max", d.upload_bytes_max, 1 << 10, 16 << 40),
            ("door.output_bytes_max", d.output_bytes_max as u64, 0, 64 << 20),
            ("door.shutdown_grace_ms", d.shutdown_grace_ms, 0, 600_000),
        ];
        for (key, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::Range { key, value, min, max });
            }
        }
        if let Some(days) = self.ledger.keep_days
            && !(1..=36_500).contains(&days)
        {
            let (key, value) = ("ledger.keep_days", days.into());
            return Err(ConfigError::Range { key, value, min: 1, max: 36_500 });
        }
        if self.ledger.discard && self.ledger.archive_dir.is_some() {
            return Err(ConfigError::Value {
                key: "ledger",
                why: "says `discard`, and where what is discarded is kept: leave one out".to_owned(),
            });
        }
        let mut paths = vec![("state_dir", &self.state_dir), ("warden_socket", &self.warden_socket)];
        paths.extend(self.ledger.archive_dir.as_ref().map(|dir| ("ledger.archive_dir", dir)));
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(ConfigError::Value { key, why: format!("must be absolute, not `{}`", path.display()) });
            }
        }
        let url = &self.public_url;
        // It is put into a shell script, so nothing that a shell would read is taken.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/[]%".contains(&b);
        let scheme = url.starts_with("http://") || url.starts_with("https://");
        if !(url.is_empty() || scheme && url.bytes().all(plain)) {
            return Err(ConfigError::Value {
                key: "public_url",
                why: format!("must be an http or https address without a query, not `{url}`"),
            });
        }
        if self.tls.is_none() && !self.allow_plaintext_public && !loopback(self.listen.ip()) {
            return Err(ConfigError::PlaintextPublic { address: self.listen });
        }
        if let Some(address) = self.metrics.listen
            && !loopback(address.ip())
        {
            return Err(ConfigError::Value {
                key: "metrics.listen",
                why: format!("must be a loopback address, not `{address}`"),
            });
        }
        if self.log.filter.parse::<tracing_subscriber::EnvFilter>().is_err() {
            return Err(ConfigError::Value { key: "log.filter", why: format!("`{}` is no filter", self.log.filter) });
        }
        self.gate.validate().map_err(|why| ConfigError::Value { key: "gate", why })?;
        self.e2b.validate()?;
        Ok(())
    }
}

/// Whether only this machine reaches an address; an IPv4 address inside IPv6 counts as what it is.
fn loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn one_line(error: &toml::de::Error) -> String {
    error.to_string().trim_end().replace('\n', " ")
}

/// Sets one key from the environment.
fn overlay(table: &mut toml::Table, name: &str, path: &str, value: &str) -> Result<(), ConfigError> {
    let wrong = |why: &str| ConfigError::Environment { name: name.to_owned(), why: why.to_owned() };
    let mut keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
    let last = keys.pop().filter(|key| !key.is_empty()).ok_or_else(|| wrong("it is empty"))?;
    let mut at = table;
    for key in keys {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().ok_or_else(|| wrong("a part of it is not a section"))?;
    }
    // A value alone is not a TOML document, so it is read as the value of a key.
    let parsed = format!("value = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    at.insert(last, parsed.unwrap_or_else(|| toml::Value::String(value.to_owned())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "state_dir = '/s'\nwarden_socket = '/w'\n";

    fn parse(more: &str, environment: &[(&str, &str)]) -> Result<ServerConfig, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        ServerConfig::parse(&format!("{BASE}{more}"), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_configuration_is_one() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/CONFIGURATION.md")).unwrap();
        let block = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let config = parse(block, &[]).unwrap();
        assert_eq!(config.ledger.keep_days, Some(400));
        assert_eq!(config.registries[0].host, "registry.example.com");
        // What is commented out is right too, but for the files that it names.
        let all: String = block
            .lines()
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with('[')).unwrap_or(line)
            })
            .filter(|line| !line.contains("_file = ") && !line.starts_with("user = "))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(parse(&all, &[]).unwrap().gate.issuers.len(), 1, "{all}");
    }

    #[test]
    fn an_unknown_key_is_refused_at_every_level() {
        for more in ["nope = 1", "[door]\nnope = 1", "[tls]\ncertificate='/c'\nkey='/k'\nnope=1", "[log]\nnope=1"] {
            assert!(parse(more, &[]).unwrap_err().contains("nope"), "{more}");
        }
        assert!(parse("", &[("RINGFENCE__DOOR__NOPE", "1")]).unwrap_err().contains("nope"));
        assert!(parse("", &[("RINGFENCE__", "1")]).is_err());
    }

    #[test]
    fn the_environment_overlays_the_file() {
        let environment = [
            ("RINGFENCE__LISTEN", "127.0.0.1:9"),
            ("RINGFENCE__DOOR__JSON_BYTES_MAX", "2048"),
            ("RINGFENCE__LOG__FORMAT", "pretty"),
            ("RINGFENCE_OTHER", "not ours"),
        ];
        let config = parse("listen = '127.0.0.1:8'", &environment).unwrap();
        assert_eq!(config.listen.port(), 9);
        assert_eq!(config.door.json_bytes_max, 2048);
        assert_eq!(config.log.format, LogFormat::Pretty);
    }

    #[test]
    fn a_public_address_needs_tls_or_the_word() {
        for address in ["0.0.0.0:80", "10.0.0.1:80", "[::]:80", "[::ffff:8.8.8.8]:80", "192.0.2.1:80"] {
            let refused = parse(&format!("listen = '{address}'"), &[]).unwrap_err();
            assert!(refused.starts_with("refusing to listen on"), "{refused}");
            let tls = format!("listen = '{address}'\n[tls]\ncertificate = '/c'\nkey = '/k'");
            assert!(parse(&tls, &[]).is_ok());
            assert!(parse(&format!("listen = '{address}'\nallow_plaintext_public = true"), &[]).is_ok());
        }
        for address in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(parse(&format!("listen = '{address}'"), &[]).is_ok(), "{address}");
        }
        assert!(parse("[metrics]\nlisten = '0.0.0.0:9'", &[]).is_err());
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (more, key) in [
            ("[door]\nconnections_max = 0", "door.connections_max"),
            ("[door]\nheader_timeout_ms = 99", "door.header_timeout_ms"),
            ("[door]\njson_bytes_max = 1", "door.json_bytes_max"),
            ("public_url = 'https://a/$(id)'", "public_url"),
            ("public_url = 'ftp://a'", "public_url"),
            ("[log]\nfilter = '=='", "log.filter"),
            ("[gate]\nsession_ms_max = 1", "gate"),
            ("[ledger]\nkeep_days = 0", "ledger.keep_days"),
            ("[ledger]\nkeep_days = 1\narchive_dir = 'here'", "ledger.archive_dir"),
            ("[ledger]\ndiscard = true\narchive_dir = '/a'", "ledger"),
            ("[[registries]]\nhost = 'R'", "registries"),
            ("[e2b]\ndomain = 'https://a'", "e2b.domain"),
            ("[e2b]\nmemory_bytes_max = 1", "memory_bytes_max"),
        ] {
            let refused = parse(more, &[]).unwrap_err();
            assert!(refused.contains(key), "{more}: {refused}");
        }
        assert!(ServerConfig::parse("state_dir = 's'\nwarden_socket = '/w'", std::iter::empty()).is_err());
    }
}
