//! The one binary: what people type, and the programs that it starts from itself. Holds no logic of the house.

use std::process::ExitCode;

mod cli;
mod commands;
mod connect;
mod output;
mod state;
mod supervise;
mod terminal;
mod transfer;

fn main() -> ExitCode {
    let cli = cli::parse();
    let out = output::Output::new(cli.global.json, cli.global.quiet);
    let exit_of_failure = cli.command.exit_of_failure();
    match commands::run(cli, &out) {
        Ok(code) => code,
        Err(error) => {
            out.failure(&error);
            ExitCode::from(exit_of_failure)
        }
    }
}
