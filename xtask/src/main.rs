//! All automation of the repository: `cargo xtask tidy`, `cargo xtask v2`, and with `--features codegen`
//! `cargo xtask e2b-codegen`.

use std::process::ExitCode;

#[cfg(feature = "codegen")]
mod codegen;
mod table;
mod tidy;
mod v2;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some("v2") {
        return v2::command(args.skip(1));
    }
    match (args.next().as_deref(), args.next().as_deref()) {
        (Some("tidy"), None) => report(&tidy::check(&tidy::root())),
        // What the machine of `v2` runs.
        (Some("v2-inside"), Some(plan)) => v2::inside(plan),
        #[cfg(feature = "codegen")]
        (Some("e2b-codegen"), None) => codegen::report(codegen::write(&tidy::root())),
        #[cfg(feature = "codegen")]
        (Some("e2b-codegen"), Some("--check")) => codegen::report(codegen::check(&tidy::root())),
        _ => {
            eprintln!("usage: cargo xtask tidy");
            eprintln!("       cargo xtask v2 [--workspace] [FILTER]");
            eprintln!("       cargo run -p xtask --features codegen -- e2b-codegen [--check]");
            ExitCode::from(2)
        }
    }
}

/// Prints what is untidy; success when nothing is.
fn report(findings: &anyhow::Result<Vec<String>>) -> ExitCode {
    match findings {
        Ok(findings) if findings.is_empty() => {
            println!("tidy: {} crates, nothing to complain about", table::HOUSE.len());
            ExitCode::SUCCESS
        }
        Ok(findings) => {
            for finding in findings {
                eprintln!("untidy: {finding}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
