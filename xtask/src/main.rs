//! All automation of the repository: `cargo xtask tidy`.

use std::process::ExitCode;

mod table;
mod tidy;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("tidy"), None) => report(&tidy::check(&tidy::root())),
        _ => {
            eprintln!("usage: cargo xtask tidy");
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
