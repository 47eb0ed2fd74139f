//! `ringfence join`: this computer as a user's own machine.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;
use rf_machine::JoinEvent;
use serde_json::json;
use tokio::signal::unix;

use crate::{
    cli::Global,
    output::{self, Output},
};

#[derive(Args)]
pub(crate) struct JoinArgs {
    /// The server's address.
    server: String,
    /// The enrolment token, used once; later starts prove themselves with a key of this machine's own.
    #[arg(long, value_name = "TOKEN", env = "RINGFENCE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// What the server may do here, and only you decide: `read-only` (look at files below the workspace), `workspace`
    /// (files below the workspace; commands are held to it by the kernel, or refused where it cannot), `full` (all that
    /// you may do).
    #[arg(long, value_name = "LEVEL", default_value = "workspace", value_parser = ["read-only", "workspace", "full"])]
    level: String,
    /// The directory that files are held to [default: ~/ringfence, which is made].
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// A directory that commands may read at the level `workspace`, beside the system's; may be repeated.
    #[arg(long, value_name = "DIR")]
    readable: Vec<PathBuf>,
    /// Where this machine's key is kept [default: ~/.local/share/ringfence-machine].
    #[arg(long, value_name = "DIR")]
    key_dir: Option<PathBuf>,
    /// Connect to another computer without TLS.
    #[arg(long)]
    allow_plaintext: bool,
}

pub(crate) fn join(global: &Global, args: JoinArgs, out: &Output) -> Result<ExitCode> {
    let out = *out;
    let level = args.level.parse().map_err(|violation| anyhow::anyhow!("{violation}"))?;
    let join = rf_machine::JoinArgs {
        token: args.token,
        state: args.key_dir,
        workspace: args.workspace,
        level: Some(level),
        ca: global.certificate.clone(),
        allow_plaintext: args.allow_plaintext,
        readable: args.readable,
        report: Box::new(move |event| tell(&out, &event)),
        ..rf_machine::JoinArgs::new(args.server)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut interrupt = unix::signal(unix::SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = unix::signal(unix::SignalKind::terminate()).context("cannot listen for signals")?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        rf_machine::join(join, stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Tells the news: a line for people, an object a line for programs.
fn tell(out: &Output, event: &JoinEvent) {
    if !out.json() {
        out.remark(&event.to_string());
        return;
    }
    let value = match event {
        JoinEvent::Connected { machine, facts, resumed } => {
            json!({ "event": "connected", "machine": machine, "facts": facts, "resumed": resumed })
        }
        JoinEvent::TokenUnused { machine } => json!({ "event": "token_unused", "machine": machine }),
        JoinEvent::Disconnected { reason, retry_in } => {
            json!({ "event": "disconnected", "reason": reason, "retry_ms": u64::try_from(retry_in.as_millis()).ok() })
        }
    };
    // Nothing is lost when nobody reads it.
    let _ = output::print_line(&value);
}
