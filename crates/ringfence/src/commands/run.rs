//! `ringfence run`: make a sandbox, run one command, print, destroy.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{
    cli::Global,
    commands::{
        exec::{self, CommandArgs},
        sandbox::SpecArgs,
    },
    connect,
    output::Output,
};

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    command: CommandArgs,
}

pub(crate) fn run(global: &Global, args: RunArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let request = args.command.request()?;
    connect::runtime()?.block_on(async {
        let sandbox = args.spec.request(None);
        let events = client.run_once(&sandbox, &request).await?;
        exec::follow(events, out).await
    })
}
