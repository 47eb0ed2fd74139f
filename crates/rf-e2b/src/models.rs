//! Bodies of the control plane. Requests refuse a field that nobody here knows: it may be a policy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::network::NetworkConfig;

/// The last millisecond that RFC 3339 can write, in the year 9999.
const LAST_MS: u64 = 253_402_300_799_999;

/// Writes a time, milliseconds since 1970, as RFC 3339 in UTC; what is later than the year 9999 as its last moment.
#[must_use]
pub fn timestamp(ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms.min(LAST_MS)) * 1_000_000);
    // INVARIANT: within these bounds there is a time, and a text for it.
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339).unwrap_or_default()
}

/// Reads a time as RFC 3339, to milliseconds since 1970, rounded down; one before 1970 counts as 1970. `None`: it is none.
#[must_use]
pub fn parse_timestamp(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(u64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(0))
}

/// The body of every error.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody {
    /// The HTTP status once more.
    pub code: u16,
    /// What happened.
    pub message: String,
}

/// A request for a sandbox, in both versions.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NewSandbox {
    /// A template's name, with or without a tag, or a snapshot's id or name.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// How long it lives, seconds.
    pub timeout: Option<u32>,
    /// Whether it is paused at its end instead of destroyed.
    pub auto_pause: Option<bool>,
    /// Whether its processes are kept by that.
    pub auto_pause_memory: Option<bool>,
    /// Whether a request for it wakes it.
    pub auto_resume: Option<AutoResume>,
    /// Whether its commands and files need a token. First version only.
    pub secure: Option<bool>,
    /// Whether it may reach the internet.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    /// Its network.
    pub network: Option<NetworkConfig>,
    /// Words to find it by.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The environment of its commands.
    pub env_vars: Option<BTreeMap<String, String>>,
    /// What the client configures an MCP gateway with, by a command of its own.
    pub mcp: Option<Map<String, Value>>,
    /// Identity of the workload.
    pub iam: Option<Iam>,
    /// Volumes.
    pub volume_mounts: Option<Vec<Value>>,
}

/// Whether a request for a paused sandbox wakes it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoResume {
    /// Whether it does.
    pub enabled: bool,
}

/// Identity of a workload. Has no `Debug`: its tokens are secrets.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Iam {
    /// Tokens by name.
    pub tokens: Option<BTreeMap<String, Value>>,
}

/// A new end of a sandbox's time.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeout {
    /// Seconds from now; 0 ends it at once.
    pub timeout: u32,
}

/// A request to pause.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pause {
    /// Whether its processes are kept.
    pub memory: Option<bool>,
    /// Whether the in-sandbox interface must answer before.
    pub require_healthy_guest: Option<bool>,
}

/// A request to connect to a sandbox, and to resume it if it is paused.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Connect {
    /// Seconds from now that it shall live at least.
    pub timeout: Option<u32>,
    /// Whether its processes go on as they were, if it is paused.
    pub memory: Option<bool>,
    /// Legacy: whether it is paused at its end.
    pub auto_pause: Option<bool>,
}

/// A request that a sandbox live on.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refresh {
    /// Seconds from now.
    pub duration: Option<u32>,
}

/// A request for copies of a sandbox.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fork {
    /// How long each lives, seconds.
    pub timeout: Option<u32>,
    /// How many.
    pub count: Option<u32>,
}

/// A request for a snapshot.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewSnapshot {
    /// Its name.
    pub name: Option<String>,
    /// Whether memory is part of it.
    pub memory: Option<bool>,
}

/// A sandbox as it is made or connected to.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// What it was made from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Means nothing any more.
    #[serde(rename = "clientID")]
    pub client_id: &'static str,
    /// The version of the in-sandbox interface.
    pub envd_version: &'static str,
    /// The token for commands and files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// The token for ports, where they need one.
    pub traffic_access_token: Option<String>,
    /// The domain below which its ports are reached.
    pub domain: Option<String>,
}

/// What a vestige of the wire format is filled with.
pub const CLIENT_ID: &str = "ringfence";

/// A sandbox as it is listed.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// What it was made from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Means nothing any more.
    #[serde(rename = "clientID")]
    pub client_id: &'static str,
    /// When it began to run.
    pub started_at: String,
    /// When its time is over.
    pub end_at: String,
    /// CPUs, rounded up.
    pub cpu_count: u32,
    /// Memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// Disk, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// Words to find it by.
    pub metadata: BTreeMap<String, String>,
    /// `running` or `paused`.
    pub state: &'static str,
    /// The version of the in-sandbox interface.
    pub envd_version: &'static str,
    /// Always empty: there are no volumes.
    pub volume_mounts: [(); 0],
}

/// One sandbox, whole.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// As it is listed.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// The token for commands and files, for who may use them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// The domain below which its ports are reached.
    pub domain: Option<String>,
    /// Whether it reaches the internet.
    pub allow_internet_access: bool,
    /// Its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// What happens at the end of its time.
    pub lifecycle: Lifecycle,
    /// What is kept of it while it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<&'static str>,
}

/// What happens at the end of a sandbox's time.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// Whether a request wakes it.
    pub auto_resume: bool,
    /// `kill` or `pause`.
    pub on_timeout: &'static str,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotInfo {
    /// Its id, which names it as a template too.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Its names.
    pub names: Vec<String>,
}

/// One of the copies that were asked for, or why there is none.
#[derive(Clone, Serialize)]
#[serde(untagged)]
pub enum Forked {
    /// It is there.
    Made {
        /// The sandbox.
        sandbox: Sandbox,
    },
    /// It is not.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// What a sandbox used at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When, milliseconds since 1970.
    pub at: u64,
    /// Its CPUs.
    pub cpu_count: u32,
    /// How much of them it used, 0 to 100.
    pub cpu_used_pct: f32,
    /// Memory in use, without the cache, bytes.
    pub mem_used: u64,
    /// Pages of files, bytes.
    pub mem_cache: u64,
    /// Memory it may use, bytes.
    pub mem_total: u64,
    /// Bytes on its disk.
    pub disk_used: u64,
    /// Bytes its disk may have.
    pub disk_total: u64,
}

/// A [`Sample`] as it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    timestamp: String,
    timestamp_unix: u64,
    cpu_count: u32,
    cpu_used_pct: f32,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

impl From<Sample> for Metric {
    fn from(sample: Sample) -> Self {
        let Sample { at, cpu_count, cpu_used_pct, mem_used, mem_cache, mem_total, disk_used, disk_total } = sample;
        Self {
            timestamp: timestamp(at),
            timestamp_unix: at / 1_000,
            cpu_count,
            cpu_used_pct,
            mem_used,
            mem_total,
            mem_cache,
            disk_used,
            disk_total,
        }
    }
}

/// The latest numbers of several sandboxes.
#[derive(Clone, Debug, Serialize)]
pub struct SandboxesWithMetrics {
    /// By id.
    pub sandboxes: BTreeMap<String, Metric>,
}

/// How much an entry of a log matters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For finding mistakes.
    Debug,
    /// What happened.
    Info,
    /// What was refused.
    Warn,
    /// What failed.
    Error,
}

/// One entry of a sandbox's log.
#[derive(Clone, Debug, Serialize)]
pub struct LogEntry {
    /// When.
    pub timestamp: String,
    /// What.
    pub message: String,
    /// How much it matters.
    pub level: LogLevel,
    /// More.
    pub fields: BTreeMap<String, String>,
}

/// One entry of a sandbox's log, as a line.
#[derive(Clone, Debug, Serialize)]
pub struct LogLine {
    /// When.
    pub timestamp: String,
    /// What.
    pub line: String,
}

/// A sandbox's log, first version.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// As lines.
    pub logs: Vec<LogLine>,
    /// As entries.
    pub log_entries: Vec<LogEntry>,
}

/// A sandbox's log, second version.
#[derive(Clone, Debug, Serialize)]
pub struct LogsV2 {
    /// As entries.
    pub logs: Vec<LogEntry>,
}

/// A template.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its id: its name.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Names its content; a UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// CPUs of a sandbox made from it.
    pub cpu_count: u32,
    /// Memory of a sandbox made from it, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// Disk of a sandbox made from it, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// Whether everybody may use it.
    pub public: bool,
    /// Its names.
    pub aliases: Vec<String>,
    /// Its names.
    pub names: Vec<String>,
    /// When it was made.
    pub created_at: String,
    /// When it was changed.
    pub updated_at: String,
    /// By whom: never said.
    pub created_by: Option<Value>,
    /// When it was last used: never said.
    pub last_spawned_at: Option<String>,
    /// How often it was used: never said.
    pub spawn_count: u64,
    /// How often it was made.
    pub build_count: u32,
    /// The version of the in-sandbox interface.
    pub envd_version: &'static str,
    /// `ready`.
    pub build_status: &'static str,
}

/// One template with how it was made.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateWithBuilds {
    /// Its id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Whether everybody may use it.
    pub public: bool,
    /// Its names.
    pub aliases: Vec<String>,
    /// Its names.
    pub names: Vec<String>,
    /// When it was made.
    pub created_at: String,
    /// When it was changed.
    pub updated_at: String,
    /// When it was last used: never said.
    pub last_spawned_at: Option<String>,
    /// How often it was used: never said.
    pub spawn_count: u64,
    /// How it was made.
    pub builds: Vec<TemplateBuild>,
}

/// How a template was made.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuild {
    /// Names its content; a UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// `ready`.
    pub status: &'static str,
    /// When it began.
    pub created_at: String,
    /// When it changed.
    pub updated_at: String,
    /// When it was done.
    pub finished_at: String,
    /// CPUs of a sandbox made from it.
    pub cpu_count: u32,
    /// Memory of a sandbox made from it, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// Disk of a sandbox made from it, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// The version of the in-sandbox interface.
    pub envd_version: &'static str,
}

/// Whether a template of some name is there.
#[derive(Clone, Debug, Serialize)]
pub struct TemplateAlias {
    /// Its id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Whether everybody may use it.
    pub public: bool,
}

/// A team: here, a user.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Team {
    /// The user's id.
    #[serde(rename = "teamID")]
    pub team_id: String,
    /// The user's name.
    pub name: String,
    /// Always empty: a key is shown once, when it is made.
    pub api_key: &'static str,
    /// Always: a user has one.
    pub is_default: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(1_792_622_096_007), "2026-10-21T22:34:56.007Z");
        for ms in [0, 1, 999, 1_792_622_096_007] {
            assert_eq!(parse_timestamp(&timestamp(ms)), Some(ms));
        }
        // As a client writes it, to the microsecond and with an offset.
        assert_eq!(parse_timestamp("2026-10-22T00:34:56.007999+02:00"), Some(1_792_622_096_007));
        assert_eq!(parse_timestamp("1960-01-01T00:00:00Z"), Some(0));
        for wrong in ["", "yesterday", "2026-10-21", "1792622096"] {
            assert_eq!(parse_timestamp(wrong), None, "{wrong}");
        }
        assert_eq!(timestamp(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_request_is_what_the_clients_send() {
        // The Python client's shortest, of either version, and the JavaScript client's.
        for text in [
            r#"{"templateID":"base","metadata":{},"envVars":{}}"#,
            r#"{"templateID":"base","timeout":300,"autoPause":false,"metadata":{},"envVars":{},"secure":true,
                "allow_internet_access":true}"#,
            r#"{"templateID":"base","timeout":300,"autoPause":true,"autoResume":{"enabled":true},"mcp":null}"#,
        ] {
            let ask: NewSandbox = serde_json::from_str(text).unwrap();
            assert_eq!(ask.template_id, "base");
        }
        let Err(error) = serde_json::from_str::<NewSandbox>(r#"{"templateID":"base","denyAll":true}"#) else {
            panic!("a field that nobody knows was taken");
        };
        assert!(error.to_string().contains("denyAll"));
        for wrong in [r#"{"timeout":-1}"#, r#"{"timeout":1.5}"#, r#"{"metadata":{"a":1}}"#] {
            assert!(serde_json::from_str::<NewSandbox>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_have_the_names_of_the_wire() {
        let listed = ListedSandbox {
            template_id: "base".into(),
            sandbox_id: "sbx1".into(),
            alias: None,
            client_id: CLIENT_ID,
            started_at: timestamp(0),
            end_at: timestamp(1),
            cpu_count: 2,
            memory_mb: 512,
            disk_size_mb: 1024,
            metadata: BTreeMap::new(),
            state: "running",
            envd_version: "0.6.13",
            volume_mounts: [],
        };
        let detail = SandboxDetail {
            listed,
            envd_access_token: Some("t".into()),
            domain: None,
            allow_internet_access: false,
            network: None,
            lifecycle: Lifecycle { auto_resume: false, on_timeout: "kill" },
            pause_mode: None,
        };
        assert_eq!(
            serde_json::to_string(&detail).unwrap(),
            r#"{"templateID":"base","sandboxID":"sbx1","clientID":"ringfence","startedAt":"1970-01-01T00:00:00Z","endAt":"1970-01-01T00:00:00.001Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"metadata":{},"state":"running","envdVersion":"0.6.13","volumeMounts":[],"envdAccessToken":"t","domain":null,"allowInternetAccess":false,"lifecycle":{"autoResume":false,"onTimeout":"kill"}}"#
        );
        let failed = Forked::Failed { error: ErrorBody { code: 429, message: "no".into() } };
        assert_eq!(serde_json::to_string(&failed).unwrap(), r#"{"error":{"code":429,"message":"no"}}"#);
    }
}
