//! `ringfence completions`: what a shell needs to complete our commands.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{cli::Cli, output};

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// For which shell; for bash: `ringfence completions bash > ~/.local/share/bash-completion/completions/ringfence`.
    shell: Shell,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    // Gathered first: the library panics when whoever reads us stops reading.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ringfence", &mut script);
    output::print(&script)?;
    Ok(ExitCode::SUCCESS)
}
