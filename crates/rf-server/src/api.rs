//! The bodies and queries of the public interface: what JSON they are, and how they become words of the house.
//!
//! They are apart from the house's own types, so that those may change without the interface.

mod life;

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rf_types::{
    Code, DiskKind, ExecId, ExecInfo, ExecSpec, ExecState, ExitReport, Fault, Layer, Limits, MachineId, Network,
    OnLeaseEnd, PauseKind, PlaceRef, Preference, Program, Pty, Rlimits, SandboxAbout, SandboxEnv, SandboxId,
    SandboxSpec, SignalScope, TemplateName, UserLimits,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use life::{ForkAsk, Order, PauseAsk, ResumeAsk, SandboxQuery, SnapshotAsk, SnapshotQuery};

/// Lease of a sandbox for which nobody asked for another, milliseconds. Chosen: an hour of work.
pub const LEASE_MS_STANDARD: u64 = 3_600_000;
/// Time of a one-shot command for which nobody asked for another, milliseconds.
pub const RUN_TIMEOUT_MS_STANDARD: u64 = 30_000;

/// Limits over the standard ones: 256 MiB, 1 CPU, 256 tasks, 128 MiB of disk, 32,768 inodes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsPatch {
    /// Bytes, 16 MiB to 1 TiB.
    pub memory_bytes_max: Option<u64>,
    /// Processes and threads at once, 8 to 100,000.
    pub tasks_max: Option<u32>,
    /// Thousandths of one CPU, 10 to 1,024,000.
    pub cpu_milli_max: Option<u32>,
    /// Bytes on the writable root, 1 MiB to 16 TiB.
    pub disk_bytes_max: Option<u64>,
    /// Inodes on the writable root, 256 to 100 million.
    pub inodes_max: Option<u64>,
    /// Block I/O for each direction, bytes a second.
    pub io_bytes_per_second_max: Option<u64>,
}

impl LimitsPatch {
    /// `base` with what is given here.
    #[must_use]
    pub fn over(self, base: Limits) -> Limits {
        Limits {
            memory_bytes_max: self.memory_bytes_max.unwrap_or(base.memory_bytes_max),
            tasks_max: self.tasks_max.unwrap_or(base.tasks_max),
            cpu_milli_max: self.cpu_milli_max.unwrap_or(base.cpu_milli_max),
            disk_bytes_max: self.disk_bytes_max.unwrap_or(base.disk_bytes_max),
            inodes_max: self.inodes_max.unwrap_or(base.inodes_max),
            io_bytes_per_second_max: self.io_bytes_per_second_max.unwrap_or(base.io_bytes_per_second_max),
        }
    }
}

/// A request for a sandbox.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxAsk {
    /// A name, 1 to 100 characters, that no other living sandbox of the user has.
    pub name: Option<String>,
    /// The template's name; `host` if not given.
    #[schema(value_type = Option<String>)]
    pub template: Option<TemplateName>,
    /// Limits over the standard ones.
    #[serde(default)]
    pub limits: LimitsPatch,
    /// `memory` or `image`; `memory` if not given.
    #[schema(value_type = Option<String>)]
    pub disk: Option<DiskKind>,
    /// How long it lives unless extended, milliseconds, 1 s to 30 days; one hour if not given.
    pub lease_ms: Option<u64>,
    /// Whether `root` inside may be had; if not given, as the user's policy says.
    pub root_allowed: Option<bool>,
    /// Names of layers that may be absent. Empty: all or nothing.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub accept_missing: Vec<Layer>,
    /// What happens when the lease ends: `destroy` or `pause`; `destroy` if not given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub on_lease_end: OnLeaseEnd,
    /// The snapshot whose files it begins with, by id or name. Then the template and the kind of disk are the
    /// snapshot's and are not given here, and the limits are over those of the sandbox that it was made of.
    pub from_snapshot: Option<String>,
    /// Words to find it by; at most 64 pairs and 16 KiB.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The environment of every exec in it, below the exec's own; at most 512 variables and 64 KiB. It is never given
    /// out again.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub env: SandboxEnv,
    /// Whether a call that comes while its processes are frozen resumes it.
    #[serde(default)]
    pub auto_resume: bool,
    /// What is kept when its lease's end or its idleness pauses it: `memory` (processes and files) or `files`;
    /// `memory` if not given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub auto_pause: PauseKind,
    /// It is paused when nothing was asked of it and no exec runs in it for so long, milliseconds, 1 s to 30 days.
    pub idle_pause_ms: Option<u64>,
}

impl SandboxAsk {
    /// What is said of it beside its spec.
    ///
    /// # Errors
    /// `invalid_request` naming what is out of its bound.
    pub fn about(&self) -> Result<SandboxAbout, Fault> {
        let about = SandboxAbout {
            labels: self.labels.clone(),
            env: self.env.clone(),
            auto_resume: self.auto_resume,
            auto_pause: self.auto_pause,
            idle_pause_ms: self.idle_pause_ms,
            door: serde_json::Value::Null,
        };
        about.validate()?;
        Ok(about)
    }

    /// The whole spec of one that begins with a snapshot of this one, for a user with these limits.
    ///
    /// # Errors
    /// `invalid_request` when a template or disk is given as well.
    pub fn spec_from(&self, user: &UserLimits, origin: &SandboxSpec) -> Result<SandboxSpec, Fault> {
        if self.template.is_some() || self.disk.is_some() {
            return Err(Fault::invalid(
                "`template` and `disk` are the snapshot's: they are not given with `from_snapshot`",
            ));
        }
        Ok(SandboxSpec {
            template: origin.template.clone(),
            limits: self.limits.over(origin.limits),
            disk: origin.disk,
            ..self.spec(user)
        })
    }

    /// The whole spec, for a user with these limits.
    #[must_use]
    pub fn spec(&self, user: &UserLimits) -> SandboxSpec {
        SandboxSpec {
            template: self.template.clone().unwrap_or_else(TemplateName::host),
            limits: self.limits.over(Limits::STANDARD),
            disk: self.disk.unwrap_or(DiskKind::Memory),
            on_lease_end: self.on_lease_end,
            network: Network::None,
            root_allowed: self.root_allowed.unwrap_or(user.root_allowed),
            accept_missing: self.accept_missing.clone(),
            lease_ms: self.lease_ms.unwrap_or_else(|| LEASE_MS_STANDARD.min(user.lease_ms_max)),
        }
    }
}

/// What to change of a sandbox.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxPatch {
    /// The lease ends so long from now, milliseconds.
    pub lease_ms: Option<u64>,
    /// Limits to change; the disk's cannot be.
    pub limits: Option<LimitsPatch>,
}

/// Standard input given with the request: a text, an object with `text` or `base64`, or `true` to keep it open.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, `true`, or an object with one of `text` and `base64`")]
pub enum StdinAsk {
    /// This text.
    Text(String),
    /// `true`: kept open, for `POST /v1/execs/{id}/stdin` or the frames of a WebSocket.
    Open(bool),
    /// In one of two ways.
    Object(StdinObject),
}

/// One of two.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StdinObject {
    /// This text.
    Text(String),
    /// These bytes, in standard base64.
    Base64(String),
}

/// Standard input as it is used.
#[derive(Clone, Debug)]
pub enum Stdin {
    /// `/dev/null`.
    None,
    /// These bytes and its end.
    Bytes(Bytes),
    /// Open.
    Open,
}

/// A command.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecAsk {
    /// Program and arguments. Either this or `shell`.
    pub argv: Option<Vec<String>>,
    /// A line for the shell. Either this or `argv`.
    pub shell: Option<String>,
    /// Environment on top of the place's own.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub env: SandboxEnv,
    /// Working directory; the user's home (a machine: the workspace) if not given.
    pub cwd: Option<String>,
    /// The user inside a sandbox: `user` if not given.
    pub user: Option<String>,
    /// Standard input; nothing if not given. Into a terminal it is typed, and its end as `^D`.
    pub stdin: Option<StdinAsk>,
    /// A terminal of this size instead of three pipes.
    #[schema(value_type = Option<PtySchema>)]
    pub pty: Option<Pty>,
    /// Killed with its whole tree after so many milliseconds. What it leaves running when it ends before that goes on
    /// without it: until the sandbox ends, on a machine until it is done.
    pub timeout_ms: Option<u64>,
    /// Goes on after this request, and is answered with its id at once.
    #[serde(default)]
    pub background: bool,
    /// Limits of its processes.
    #[serde(default)]
    #[schema(value_type = RlimitsSchema)]
    pub rlimits: Rlimits,
    /// Most bytes of each output stream in a JSON answer, up to the server's own bound.
    pub output_bytes_max: Option<u64>,
    /// Where: `machine`, `sandbox`, `machine-else-sandbox`, or a sandbox's or machine's id. Only where the path does
    /// not say it; the user's preference if not given.
    pub place: Option<String>,
    /// Whether `argv` is what the template's image starts, and not the client's.
    #[serde(skip)]
    pub of_template: bool,
}

/// A terminal's size.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pty)]
pub struct PtySchema {
    /// 1 to 65,535.
    pub rows: u16,
    /// 1 to 65,535.
    pub cols: u16,
}

/// Limits of one exec's processes; see setrlimit(2).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rlimits)]
pub struct RlimitsSchema {
    /// CPU time of each process, seconds.
    pub cpu_seconds_max: Option<u64>,
    /// Address space of each process, bytes.
    pub address_space_bytes_max: Option<u64>,
    /// Size of any file it writes, bytes.
    pub file_bytes_max: Option<u64>,
    /// Open descriptors of each process.
    pub files_max: Option<u64>,
}

/// Where a call is to run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// As the user prefers.
    Default,
    /// As this call prefers.
    Preferred(Preference),
    /// Exactly there.
    Place(PlaceRef),
}

impl Choice {
    /// Reads the text form.
    ///
    /// # Errors
    /// `invalid_request` naming the forms.
    pub fn parse(text: Option<&str>) -> Result<Self, Fault> {
        let Some(text) = text else { return Ok(Self::Default) };
        match text {
            "machine" => return Ok(Self::Preferred(Preference::Machine)),
            "sandbox" => return Ok(Self::Preferred(Preference::Sandbox)),
            "machine-else-sandbox" => return Ok(Self::Preferred(Preference::MachineElseSandbox)),
            _ => {}
        }
        if let Ok(id) = text.parse::<SandboxId>() {
            return Ok(Self::Place(PlaceRef::Sandbox(id)));
        }
        if let Ok(id) = text.parse::<MachineId>() {
            return Ok(Self::Place(PlaceRef::Machine(id)));
        }
        Err(Fault::invalid(
            "`place` is none of `machine`, `sandbox`, `machine-else-sandbox`, a sandbox's id and a machine's id",
        ))
    }
}

impl ExecAsk {
    /// The whole spec and the standard input.
    ///
    /// # Errors
    /// `invalid_request` naming the field that cannot be.
    pub fn spec(self) -> Result<(ExecSpec, Stdin), Fault> {
        // The kernel takes no NUL in any of them (execve(2)); said here by name and not by an errno.
        let clean = |what: &str, text: &str| {
            if text.contains('\0') { Err(Fault::invalid(format!("`{what}` holds a NUL byte"))) } else { Ok(()) }
        };
        let program = match (self.argv, self.shell) {
            (Some(argv), None) => {
                if argv.first().is_none_or(String::is_empty) {
                    return Err(Fault::invalid("`argv` names no program"));
                }
                argv.iter().try_for_each(|text| clean("argv", text))?;
                Program::Argv(argv)
            }
            (None, Some(line)) => {
                clean("shell", &line)?;
                Program::Shell(line)
            }
            (None, None) | (Some(_), Some(_)) => {
                return Err(Fault::invalid("give either `argv` or `shell`"));
            }
        };
        for (name, value) in self.env.iter() {
            clean("env", name)?;
            clean("env", value)?;
            if name.is_empty() || name.contains('=') {
                return Err(Fault::invalid("a name in `env` is empty or holds `=`"));
            }
        }
        for (what, text) in [("cwd", &self.cwd), ("user", &self.user)] {
            if let Some(text) = text {
                clean(what, text)?;
            }
        }
        if self.pty.is_some_and(|pty| pty.rows == 0 || pty.cols == 0) {
            return Err(Fault::invalid("`pty` must have at least one row and one column"));
        }
        if self.timeout_ms == Some(0) {
            return Err(Fault::invalid("`timeout_ms` must be at least 1"));
        }
        let stdin = match self.stdin {
            None | Some(StdinAsk::Open(false)) => Stdin::None,
            Some(StdinAsk::Open(true)) => Stdin::Open,
            Some(StdinAsk::Text(text) | StdinAsk::Object(StdinObject::Text(text))) => Stdin::Bytes(text.into()),
            Some(StdinAsk::Object(StdinObject::Base64(text))) => {
                let bytes = STANDARD.decode(&text).map_err(|_| Fault::invalid("`stdin.base64` is not base64"))?;
                Stdin::Bytes(bytes.into())
            }
        };
        let spec = ExecSpec {
            program,
            env: self.env.into(),
            no_language: false,
            cwd: self.cwd,
            user: self.user,
            pty: self.pty,
            stdin: !matches!(stdin, Stdin::None),
            timeout_ms: self.timeout_ms,
            rlimits: self.rlimits,
        };
        Ok((spec, stdin))
    }
}

/// A one-shot: a sandbox, a command in it, and its end.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunAsk {
    /// The command; 30 s if it gives no `timeout_ms`. With neither `argv` nor `shell`: what the template's image starts
    /// by itself.
    #[serde(default)]
    pub exec: ExecAsk,
    /// The sandbox; it is destroyed when the command ended. Its lease is the command's time and a little.
    #[serde(default)]
    pub sandbox: SandboxAsk,
}

/// A signal.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalAsk {
    /// Its number, 1 to 64.
    pub signal: i32,
    /// `process` or `tree`; `process` if not given.
    #[serde(default = "process")]
    #[schema(value_type = String)]
    pub scope: SignalScope,
}

fn process() -> SignalScope {
    SignalScope::Process
}

impl SignalAsk {
    /// Checks the number.
    ///
    /// # Errors
    /// `invalid_request`.
    pub fn check(self) -> Result<Self, Fault> {
        if (1..=64).contains(&self.signal) { Ok(self) } else { Err(Fault::invalid("`signal` must be 1 to 64")) }
    }
}

/// A terminal's new size.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeAsk {
    /// 1 to 65,535.
    pub rows: u16,
    /// 1 to 65,535.
    pub cols: u16,
}

/// What an exec used.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageAnswer {
    /// CPU time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Peak memory of its largest process, bytes.
    pub memory_peak_bytes: u64,
    /// From start to exit, microseconds.
    pub wall_us: u64,
}

/// How an exec ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExitAnswer {
    /// The exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was up.
    pub timed_out: bool,
    /// What it used.
    pub usage: UsageAnswer,
}

impl From<ExitReport> for ExitAnswer {
    fn from(exit: ExitReport) -> Self {
        let ExitReport { code, signal, timed_out, usage } = exit;
        let usage = UsageAnswer {
            cpu_user_us: usage.cpu_user_us,
            cpu_system_us: usage.cpu_system_us,
            memory_peak_bytes: usage.memory_peak_bytes,
            wall_us: usage.wall_us,
        };
        Self { code, signal, timed_out, usage }
    }
}

/// An exec that started; also the payload of a stream's first frame.
#[derive(Debug, Serialize, ToSchema)]
pub struct Started {
    /// The exec's id.
    #[schema(value_type = String)]
    pub id: ExecId,
    /// Where it runs.
    #[schema(value_type = PlaceSchema)]
    pub place: PlaceRef,
    /// Its pid as seen inside the place.
    pub pid: u32,
}

/// A place.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Place)]
pub struct PlaceSchema {
    /// `sandbox` or `machine`.
    pub kind: String,
    /// Its id.
    pub id: String,
}

/// An exec that ended, with its output.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecAnswer {
    /// The exec, and where it ran.
    #[serde(flatten)]
    pub started: Started,
    /// How it ended.
    #[serde(flatten)]
    pub exit: ExitAnswer,
    /// Standard output, encoded as `stdout_encoding` says.
    pub stdout: String,
    /// `utf-8`: the text itself; `base64`: the bytes were no text.
    pub stdout_encoding: &'static str,
    /// Whether there was more than `output_bytes_max`.
    pub stdout_truncated: bool,
    /// Standard error, encoded as `stderr_encoding` says.
    pub stderr: String,
    /// As `stdout_encoding`.
    pub stderr_encoding: &'static str,
    /// As `stdout_truncated`.
    pub stderr_truncated: bool,
}

/// An exec as listed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecItem {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ExecId,
    /// Where it runs.
    #[schema(value_type = PlaceSchema)]
    pub place: PlaceRef,
    /// Its pid inside.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whether it outlives its request.
    pub background: bool,
    /// Whether it has a terminal.
    pub pty: bool,
    /// When it started, milliseconds since 1970.
    pub started_at: u64,
    /// `running`, `exited` or `lost`.
    pub state: &'static str,
    /// How it ended, if it did.
    #[serde(flatten)]
    pub exit: Option<ExitAnswer>,
}

impl ExecItem {
    /// Of an exec in a place.
    #[must_use]
    pub fn new(place: PlaceRef, info: ExecInfo) -> Self {
        let ExecInfo { id, pid, argv, background, pty, started_at, state } = info;
        let (state, exit) = match state {
            ExecState::Running => ("running", None),
            ExecState::Exited(exit) => ("exited", Some(exit.into())),
            ExecState::Lost => ("lost", None),
        };
        Self { id, place, pid, argv, background, pty, started_at, state, exit }
    }
}

/// A list that may go on.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give this as `after` for the next page; `null` at the end.
    pub next: Option<String>,
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// The `next` of the page before.
    pub after: Option<String>,
    /// Most items, 1 to 1,000; 100 if not given.
    pub items_max: Option<u32>,
}

/// Octal permission bits as text, such as `644`.
///
/// # Errors
/// `invalid_request`.
pub fn permissions(text: Option<&str>, standard: u32) -> Result<u32, Fault> {
    let Some(text) = text else { return Ok(standard) };
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let bits = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|bits| *bits <= 0o7777);
    bits.ok_or_else(|| {
        Fault::new(
            Code::InvalidRequest,
            format!("`permissions` is `{}`", text.chars().take(20).collect::<String>()),
            "give octal digits such as `644`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(json: &str) -> Result<(ExecSpec, Stdin), String> {
        let ask: ExecAsk = serde_json::from_str(json).map_err(|error| error.to_string())?;
        ask.spec().map_err(|fault| fault.message)
    }

    #[test]
    fn an_exec_is_argv_or_shell_and_never_both() {
        assert!(ask(r#"{"argv":["true"]}"#).is_ok());
        assert!(ask(r#"{"shell":"true"}"#).is_ok());
        for wrong in [
            r"{}",
            r#"{"argv":["true"],"shell":"true"}"#,
            r#"{"argv":[]}"#,
            r#"{"argv":[""]}"#,
            r#"{"argv":["a\u0000b"]}"#,
            r#"{"shell":"true","env":{"A=B":"c"}}"#,
            r#"{"shell":"true","env":{"":"c"}}"#,
            r#"{"shell":"true","env":{"A":"\u0000"}}"#,
            r#"{"shell":"true","cwd":"\u0000"}"#,
            r#"{"shell":"true","timeout_ms":0}"#,
            r#"{"shell":"true","timeout_ms":-1}"#,
            r#"{"shell":"true","pty":{"rows":0,"cols":1}}"#,
            r#"{"shell":"true","stdin":{"base64":"*"}}"#,
            r#"{"shell":"true","stdin":{"text":"a","base64":"YQ=="}}"#,
            r#"{"shell":"true","nope":1}"#,
        ] {
            assert!(ask(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn standard_input_has_four_forms() {
        let bytes = |json: &str| match ask(json).unwrap() {
            (spec, Stdin::Bytes(bytes)) if spec.stdin => bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(bytes(r#"{"shell":"cat","stdin":"hi"}"#), "hi");
        assert_eq!(bytes(r#"{"shell":"cat","stdin":{"text":"hi"}}"#), "hi");
        assert_eq!(bytes(r#"{"shell":"cat","stdin":{"base64":"/wA="}}"#)[..], [255, 0]);
        assert!(matches!(ask(r#"{"shell":"cat","stdin":true}"#).unwrap().1, Stdin::Open));
        assert!(!ask(r#"{"shell":"cat"}"#).unwrap().0.stdin);
    }

    #[test]
    fn a_place_is_a_preference_or_an_id() {
        assert_eq!(Choice::parse(Some("machine")), Ok(Choice::Preferred(Preference::Machine)));
        let id = SandboxId::random();
        assert_eq!(Choice::parse(Some(&id.to_string())), Ok(Choice::Place(PlaceRef::Sandbox(id))));
        assert!(Choice::parse(Some("host")).is_err());
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(permissions(Some("0755"), 0), Ok(0o755));
        assert_eq!(permissions(None, 0o644), Ok(0o644));
        for wrong in ["", "8", "77777", "+644", "0o644", "-1", "100000"] {
            assert!(permissions(Some(wrong), 0).is_err(), "{wrong}");
        }
    }
}
