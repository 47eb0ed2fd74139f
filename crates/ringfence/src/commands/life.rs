//! `pause`, `resume`, `snapshot`, `snapshots`, `fork`: the life of a sandbox beyond its making.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};
use futures::{StreamExt as _, stream};
use rf_client::{
    Client,
    types::{ForkRequest, Sandbox, SandboxRequest},
};
use rf_types::{Fault, OnLeaseEnd, PauseKind, SandboxId};

use crate::{
    cli::Global,
    connect,
    named::Named,
    output::{self, Output, now_ms, parse_ms},
};

/// What is kept while a sandbox is paused.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Keep {
    /// Processes and files.
    #[default]
    Memory,
    /// Files alone.
    Files,
}

impl From<Keep> for PauseKind {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Memory => Self::Memory,
            Keep::Files => Self::Files,
        }
    }
}

/// What happens when a lease ends.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LeaseEnd {
    /// The sandbox is destroyed.
    #[default]
    Destroy,
    /// The sandbox is paused.
    Pause,
}

/// What is said of a sandbox beside what it should be. No `Debug`: the environment may hold secrets.
#[derive(Args, Clone)]
pub(crate) struct AboutArgs {
    /// The snapshot whose files it begins with, by id or name; it says the template.
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = ["template", "disk_image"], help_heading = "Sandbox")]
    from: Option<String>,
    /// A label to find it by; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair, help_heading = "Sandbox")]
    label: Vec<(String, String)>,
    /// A variable of every command in it; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_pair, help_heading = "Sandbox")]
    env: Vec<(String, String)>,
    /// What happens when its lease ends.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t, help_heading = "Sandbox")]
    on_lease_end: LeaseEnd,
    /// Resume it when a call comes for it while it is paused.
    #[arg(long, help_heading = "Sandbox")]
    auto_resume: bool,
    /// What to keep when its lease's end or its idleness pauses it.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t, help_heading = "Sandbox")]
    auto_pause: Keep,
    /// Pause it when it was idle for so long, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = parse_ms, help_heading = "Sandbox")]
    idle_pause: Option<u64>,
}

/// Reads `NAME=VALUE`.
fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    // The text is not quoted back: it may be a secret that stands in the wrong place.
    pair.ok_or_else(|| "give NAME=VALUE".to_owned())
}

impl AboutArgs {
    pub(crate) fn over(self, request: SandboxRequest) -> SandboxRequest {
        SandboxRequest {
            from_snapshot: self.from,
            labels: self.label.into_iter().collect(),
            env: self.env.into_iter().collect::<BTreeMap<_, _>>().into(),
            on_lease_end: match self.on_lease_end {
                LeaseEnd::Destroy => OnLeaseEnd::Destroy,
                LeaseEnd::Pause => OnLeaseEnd::Pause,
            },
            auto_resume: self.auto_resume,
            auto_pause: self.auto_pause.into(),
            idle_pause_ms: self.idle_pause,
            ..request
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct PauseArgs {
    /// Sandboxes to pause, by id or name.
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<Named>,
    /// What to keep of them.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    keep: Keep,
}

pub(crate) fn pause(global: &Global, args: &PauseArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let keep = args.keep.into();
    each(&client, out, "pausing", &args.sandboxes, |id| client.sandbox_pause(id, keep))
}

#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    /// Sandboxes to resume, by id or name.
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<Named>,
    /// How long they live from now on, such as 30m or 2d.
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    lease: Option<u64>,
    /// Begin anew from their files, also where their processes are kept.
    #[arg(long)]
    cold: bool,
}

pub(crate) fn resume(global: &Global, args: &ResumeArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    each(&client, out, "resuming", &args.sandboxes, |id| client.sandbox_resume(id, args.lease, args.cold))
}

/// Does the same to several sandboxes, a few at once; all are tried before the first failure is told.
fn each<F>(
    client: &Client,
    out: &Output,
    what: &str,
    sandboxes: &[Named],
    call: impl Fn(SandboxId) -> F,
) -> Result<ExitCode>
where
    F: Future<Output = Result<Sandbox, rf_client::ClientError>>,
{
    let runtime = connect::runtime()?;
    let ids = runtime.block_on(Named::ids(sandboxes, client))?;
    let bar = out.spinner(what);
    let results = runtime.block_on(stream::iter(ids).map(call).buffered(4).collect::<Vec<_>>());
    bar.finish_and_clear();
    let (mut good, mut failed) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(sandbox) => good.push(sandbox),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    out.value(&good, |good| {
        let line = |sandbox: &Sandbox| format!("{} {}", sandbox.id, output::tame(&sandbox.state));
        good.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(error.into()),
    }
}

#[derive(Args, Debug)]
pub(crate) struct SnapshotArgs {
    /// The sandbox whose files to save, by id or name.
    sandbox: Named,
    /// A name for the snapshot; another one of that name loses it.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub(crate) fn snapshot(global: &Global, args: &SnapshotArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let bar = out.spinner("saving");
    let made = connect::runtime()?.block_on(async {
        let id = args.sandbox.id(&client).await?;
        anyhow::Ok(client.sandbox_snapshot(id, args.name.as_deref()).await?)
    });
    bar.finish_and_clear();
    out.value(&made?, |snapshot| snapshot.id.to_string())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
pub(crate) struct SnapshotsArgs {
    /// Only those of this sandbox, by id, or by name while it lives.
    sandbox: Option<Named>,
}

pub(crate) fn snapshots(global: &Global, args: &SnapshotsArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let snapshots = connect::runtime()?.block_on(async {
        let of = match &args.sandbox {
            Some(sandbox) => Some(sandbox.id(&client).await?),
            None => None,
        };
        anyhow::Ok(client.snapshots(of).await?)
    })?;
    let now = now_ms();
    out.rows(&snapshots, &["snapshot", "name", "of", "template", "size", "age"], |snapshot| {
        vec![
            snapshot.id.to_string(),
            snapshot.name.clone().unwrap_or_default(),
            snapshot.sandbox.to_string(),
            snapshot.spec.template.to_string(),
            output::bytes(snapshot.bytes),
            output::span(now.saturating_sub(snapshot.created_at)),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}

// No `Debug`: the environment may hold secrets.
#[derive(Args)]
pub(crate) struct ForkArgs {
    /// The sandbox with whose files they begin, by id or name; running or paused.
    sandbox: Named,
    /// How many, 1 to 20.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    count: u32,
    /// How long they live, such as 30m or 2d.
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    lease: Option<u64>,
    /// A label of each instead of the other's; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    label: Vec<(String, String)>,
    /// A variable of every command in each; may be repeated. None comes along from the other.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    env: Vec<(String, String)>,
}

pub(crate) fn fork(global: &Global, args: ForkArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let request = ForkRequest {
        count: Some(args.count),
        lease_ms: args.lease,
        labels: (!args.label.is_empty()).then(|| args.label.into_iter().collect()),
        env: args.env.into_iter().collect::<BTreeMap<_, _>>().into(),
    };
    let bar = out.spinner("forking");
    let forks = connect::runtime()?.block_on(async {
        let id = args.sandbox.id(&client).await?;
        anyhow::Ok(client.sandbox_fork(id, &request).await?)
    });
    bar.finish_and_clear();
    let forks = forks?;
    out.value(&forks, |forks| {
        let ids = forks.iter().filter_map(|fork| fork.sandbox.as_ref()).map(|sandbox| sandbox.id.to_string());
        ids.collect::<Vec<_>>().join("\n")
    })?;
    match forks.into_iter().find_map(|fork| fork.error) {
        None => Ok(ExitCode::SUCCESS),
        // Those that were made are printed; that some were not is the exit code's and this error's to say.
        Some(fault) => Err(Fault { message: format!("a fork was refused: {}", fault.message), ..fault }.into()),
    }
}
