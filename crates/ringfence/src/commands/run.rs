//! `ringfence run`: make a sandbox, run one command, print, destroy.

use std::{
    io::{self, Read as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use rf_client::types::Stdin;
use rf_types::{Code, Fault};

use crate::{
    cli::Global,
    commands::{
        exec::{self, HowArgs},
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
    how: HowArgs,
    /// Send our standard input to it, up to 4 MiB.
    #[arg(short, long, help_heading = "Command")]
    interactive: bool,
    /// The command and its arguments [default: what the template's image starts by itself].
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND",
        required_unless_present = "template"
    )]
    command: Vec<String>,
}

/// Longest standard input of a one-shot, bytes: it goes with the request, as base64 within its bound of 8 MiB.
const STDIN_MAX: u64 = 4 * 1024 * 1024;

/// Reads our standard input to its end.
fn stdin() -> Result<Stdin> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(STDIN_MAX + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() as u64 > STDIN_MAX {
        bail!(Fault::new(
            Code::TooLarge,
            format!("standard input is longer than {STDIN_MAX} bytes"),
            "make a sandbox with `ringfence create` and use `ringfence exec -i` or `ringfence cp`",
        ));
    }
    Ok(Stdin::Bytes { base64: STANDARD.encode(bytes) })
}

pub(crate) fn run(global: &Global, args: RunArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let mut request = args.how.request(&args.command)?;
    if args.interactive {
        request.stdin = stdin()?;
    }
    connect::runtime()?.block_on(async {
        let sandbox = args.spec.request(None);
        let events = client.run_once(&sandbox, &request).await?;
        exec::follow(events, out).await
    })
}
