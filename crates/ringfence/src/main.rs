//! The one binary: what people type, and the programs that it starts from itself. Holds no logic of the house.

use std::process::ExitCode;

mod cli;
mod commands;
mod connect;
mod named;
mod output;
mod state;
mod supervise;
mod terminal;
mod transfer;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if !matches!(cli.command, cli::Command::Server(_)) {
        end_at_panic();
    }
    let out = output::Output::new(cli.global.json, cli.global.quiet);
    let exit_of_failure = cli.command.exit_of_failure();
    match commands::run(cli, &out) {
        Ok(code) => code,
        Err(error) if error.is::<output::Closed>() => ExitCode::from(output::Closed::EXIT),
        Err(error) => {
            out.failure(&error);
            ExitCode::from(exit_of_failure)
        }
    }
}

/// A panic ends the process there and then. The server alone goes on: each of its requests stands by itself, and one
/// must not end all others. Who holds rights or has just forked must not unwind into code that knows nothing of it.
fn end_at_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}
