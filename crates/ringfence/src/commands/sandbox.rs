//! `create`, `ps`, `rm`: sandboxes and machines as things.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use futures::{StreamExt as _, stream};
use rf_client::{
    Client,
    types::{LimitsRequest, SandboxRequest},
};
use rf_types::{Code, DiskKind, ExecState, Fault, Layer, MachineId, SandboxId, SnapshotId, TemplateName};
use serde_json::json;

use crate::{
    cli::Global,
    commands::life::AboutArgs,
    connect,
    named::{self, Named},
    output::{self, Output, now_ms, parse_bytes, parse_cpu, parse_ms},
};

/// What a sandbox should be.
#[derive(Args, Clone, Debug)]
pub(crate) struct SpecArgs {
    /// What its root is made from [default: host].
    #[arg(long, value_name = "NAME", help_heading = "Sandbox")]
    template: Option<TemplateName>,
    /// Memory, such as 512M [default: 256M].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Sandbox")]
    memory: Option<u64>,
    /// CPUs, such as 2 or 0.5 [default: 1].
    #[arg(long, value_name = "CPUS", value_parser = parse_cpu, help_heading = "Sandbox")]
    cpu: Option<u32>,
    /// Processes and threads at once [default: 256].
    #[arg(long, value_name = "COUNT", help_heading = "Sandbox")]
    tasks: Option<u32>,
    /// Bytes on its writable disk, such as 1G [default: 128M].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Sandbox")]
    disk: Option<u64>,
    /// Files on its writable disk [default: 32768].
    #[arg(long, value_name = "COUNT", help_heading = "Sandbox")]
    inodes: Option<u64>,
    /// Keep its files on an image of its own instead of in memory (the server needs root).
    #[arg(long, help_heading = "Sandbox")]
    disk_image: bool,
    /// Forbid root inside.
    #[arg(long, help_heading = "Sandbox")]
    no_root: bool,
    /// Accept that these layers are missing on the host; may be repeated. The sandbox is weaker without them.
    #[arg(long, value_name = "LAYER", value_delimiter = ',', value_parser = parse_layer, help_heading = "Sandbox")]
    accept_missing: Vec<Layer>,
}

/// Reads a layer by its name.
pub(crate) fn parse_layer(text: &str) -> Result<Layer, String> {
    Layer::ALL.into_iter().find(|layer| layer.name() == text).ok_or_else(|| {
        let names: Vec<_> = Layer::ALL.iter().map(|layer| layer.name()).collect();
        format!("`{text}` is no layer; one of {}", names.join(", "))
    })
}

impl SpecArgs {
    pub(crate) fn request(&self, lease_ms: Option<u64>) -> SandboxRequest {
        SandboxRequest {
            name: None,
            template: self.template.clone(),
            limits: LimitsRequest {
                memory_bytes_max: self.memory,
                cpu_milli_max: self.cpu,
                tasks_max: self.tasks,
                disk_bytes_max: self.disk,
                inodes_max: self.inodes,
            },
            disk: self.disk_image.then_some(DiskKind::Image),
            root_allowed: self.no_root.then_some(false),
            accept_missing: self.accept_missing.clone(),
            lease_ms,
            ..SandboxRequest::default()
        }
    }
}

// No `Debug`: the environment may hold secrets.
#[derive(Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// How long it lives, such as 30m or 2d [default: 1h].
    #[arg(long, value_name = "TIME", value_parser = parse_ms, help_heading = "Sandbox")]
    lease: Option<u64>,
    /// A name that no other living sandbox of the user has.
    #[arg(long, value_name = "NAME", help_heading = "Sandbox")]
    name: Option<String>,
    #[command(flatten)]
    about: AboutArgs,
}

pub(crate) fn create(global: &Global, args: CreateArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let request = args.about.over(SandboxRequest { name: args.name, ..args.spec.request(args.lease) });
    let sandbox = connect::runtime()?.block_on(client.sandbox_create(&request))?;
    out.value(&sandbox, |sandbox| sandbox.id.to_string())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    /// List the commands of this sandbox, by id or name.
    sandbox: Option<Named>,
    /// List all commands, wherever they run.
    #[arg(short, long, conflicts_with = "sandbox")]
    execs: bool,
}

pub(crate) fn ps(global: &Global, args: &PsArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    let now = now_ms();
    if args.execs || args.sandbox.is_some() {
        let execs = runtime.block_on(async {
            let of = match &args.sandbox {
                Some(sandbox) => Some(sandbox.id(&client).await?),
                None => None,
            };
            anyhow::Ok(client.execs(of).await?)
        })?;
        out.rows(&execs, &["exec", "place", "state", "age", "command"], |exec| {
            let state = match &exec.state {
                ExecState::Running => "running".to_owned(),
                ExecState::Exited(report) => format!("exited {}", report.shell_code()),
                ExecState::Lost => "lost".to_owned(),
            };
            let command = output::short(&exec.argv.join(" "), 60);
            let age = output::span(now.saturating_sub(exec.started_at));
            vec![exec.id.to_string(), exec.place.to_string(), state, age, command]
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let (sandboxes, machines) = runtime.block_on(async { tokio::join!(client.sandboxes(), client.machines()) });
    let (sandboxes, machines) = (sandboxes?, machines?);
    out.value(&json!({ "sandboxes": sandboxes, "machines": machines }), |_| {
        let boxes = sandboxes.iter().map(|sandbox| {
            let left = match sandbox.lease_until.map(|until| until.saturating_sub(now)) {
                None => "none".to_owned(),
                Some(0) => "over".to_owned(),
                Some(left) => output::span(left),
            };
            let limits = sandbox.spec.limits;
            vec![
                sandbox.id.to_string(),
                named::name_of(sandbox).unwrap_or_default().to_owned(),
                sandbox.state.clone(),
                sandbox.spec.template.to_string(),
                output::bytes(limits.memory_bytes_max),
                format!("{} cpu", f64::from(limits.cpu_milli_max) / 1000.0),
                left,
            ]
        });
        let machines = machines.iter().map(|machine| {
            let state = if machine.online { "online" } else { "offline" };
            let (name, what) = (output::short(&machine.facts.hostname, 40), output::short(&machine.facts.os, 40));
            let level = machine.level.clone();
            vec![machine.id.to_string(), name, state.to_owned(), what, String::new(), level, String::new()]
        });
        output::table(&["place", "name", "state", "what", "memory", "limit", "lease"], boxes.chain(machines))
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// Sandboxes (`sbx_…`) to destroy, snapshots (`snp_…`) to remove and machines (`mch_…`) to forget; sandboxes and
    /// snapshots by their names too.
    #[arg(required_unless_present = "all", value_name = "ID")]
    places: Vec<String>,
    /// Destroy all of the user's sandboxes.
    #[arg(long, conflicts_with = "places")]
    all: bool,
}

/// A thing to remove.
enum Removed {
    Sandbox(SandboxId),
    Machine(MachineId),
    Snapshot(SnapshotId),
}

impl std::fmt::Display for Removed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sandbox(id) => id.fmt(f),
            Self::Machine(id) => id.fmt(f),
            Self::Snapshot(id) => id.fmt(f),
        }
    }
}

/// What was typed.
enum ToRemove {
    Id(Removed),
    Name(String),
}

impl ToRemove {
    fn parse(text: &str) -> Result<Self> {
        Ok(match (text.parse(), text.parse(), text.parse()) {
            (Ok(id), ..) => Self::Id(Removed::Sandbox(id)),
            (_, Ok(id), _) => Self::Id(Removed::Machine(id)),
            (.., Ok(id)) => Self::Id(Removed::Snapshot(id)),
            _ if text.is_empty() || ["sbx_", "mch_", "snp_"].iter().any(|prefix| text.starts_with(prefix)) => {
                bail!(Fault::invalid(format!("`{text}` is no id of a sandbox, a snapshot or a machine")))
            }
            _ => Self::Name(text.to_owned()),
        })
    }
}

/// Finds what the names are of; what is removed is not guessed, so a name of two things is refused.
async fn found(client: &Client, all: Vec<ToRemove>) -> Result<Vec<Removed>> {
    let (sandboxes, snapshots) = if all.iter().any(|one| matches!(one, ToRemove::Name(_))) {
        (client.sandboxes().await?, client.snapshots(None).await?)
    } else {
        (Vec::new(), Vec::new())
    };
    let find = |one| {
        let name = match one {
            ToRemove::Id(removed) => return Ok(removed),
            ToRemove::Name(name) => name,
        };
        let boxes = sandboxes.iter().filter(|sandbox| named::is_called(sandbox, &name)).map(|sandbox| sandbox.id);
        let saved = snapshots.iter().filter(|snapshot| snapshot.name.as_deref() == Some(&name)).map(|saved| saved.id);
        match (&boxes.collect::<Vec<_>>()[..], &saved.collect::<Vec<_>>()[..]) {
            ([id], []) => Ok(Removed::Sandbox(*id)),
            ([], [id]) => Ok(Removed::Snapshot(*id)),
            ([], []) => {
                bail!(Fault::new(
                    Code::NotFound,
                    format!("neither a sandbox nor a snapshot is called `{name}`"),
                    "`ringfence ps` and `ringfence snapshots` list them",
                ))
            }
            (boxes, saved) => {
                let ids = boxes.iter().map(ToString::to_string).chain(saved.iter().map(ToString::to_string));
                Err(named::ambiguous(&name, &ids.collect::<Vec<_>>()))
            }
        }
    };
    all.into_iter().map(find).collect()
}

pub(crate) fn rm(global: &Global, args: &RmArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    let asked = args.places.iter().map(|text| ToRemove::parse(text)).collect::<Result<Vec<_>>>()?;
    let mut places = runtime.block_on(found(&client, asked))?;
    let bar = out.spinner("removing");
    let (removed, failed) = runtime.block_on(async {
        if args.all {
            places.extend(client.sandboxes().await?.into_iter().map(|sandbox| Removed::Sandbox(sandbox.id)));
        }
        // All are tried, a few at once, before the first failure is told.
        let results: Vec<_> = stream::iter(&places)
            .map(|place| async {
                match place {
                    Removed::Sandbox(id) => client.sandbox_destroy(*id).await,
                    Removed::Machine(id) => client.machine_remove(*id).await,
                    Removed::Snapshot(id) => client.snapshot_remove(*id).await,
                }
            })
            .buffered(4)
            .collect()
            .await;
        let gone = |(place, result): (&Removed, &Result<(), _>)| result.is_ok().then(|| place.to_string());
        let removed: Vec<_> = places.iter().zip(&results).filter_map(gone).collect();
        anyhow::Ok((removed, results.into_iter().find_map(Result::err)))
    })?;
    bar.finish_and_clear();
    out.done(&json!({ "removed": removed }))?;
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use rf_types::{Limits, units::MIB};

    use super::*;

    #[test]
    fn the_help_tells_what_holds_where_nothing_is_said() {
        let help = CreateArgs::augment_args(clap::Command::new("create")).render_help().to_string();
        let standard = Limits::STANDARD;
        for (option, value) in [
            ("--template", TemplateName::host().to_string()),
            ("--memory", format!("{}M", standard.memory_bytes_max / MIB)),
            ("--cpu", format!("{}", f64::from(standard.cpu_milli_max) / 1000.0)),
            ("--tasks", standard.tasks_max.to_string()),
            ("--disk <", format!("{}M", standard.disk_bytes_max / MIB)),
            ("--inodes", standard.inodes_max.to_string()),
        ] {
            let line = help.lines().find(|line| line.trim_start().starts_with(option)).unwrap();
            assert!(line.contains(&format!("[default: {value}]")), "{line}");
        }
    }
}
