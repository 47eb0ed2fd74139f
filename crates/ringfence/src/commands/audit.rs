//! `ringfence audit`: the ledger. `list` asks the server; `verify` and `export` read the files themselves, so that a
//! server that lies about its own past is found out.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use rf_ledger::{Anchor, LedgerKey, Records, verify_with_archive};
use rf_types::Fault;

use crate::{
    cli::Global,
    connect,
    output::{self, Output},
    state::State,
};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List the newest records of one's own.
    #[command(visible_alias = "ls")]
    List {
        /// Everybody's; for the operator.
        #[arg(short, long)]
        all: bool,
        /// How many.
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
        count: u32,
    },
    /// Read the whole ledger and name the first record that was changed, dropped or reordered.
    Verify(VerifyArgs),
    /// Print every record as one line of JSON, oldest first, exactly as it was written.
    Export {
        #[command(flatten)]
        at: LedgerArgs,
        /// The first record.
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        from: u64,
    },
}

/// Where the ledger is.
#[derive(Args, Clone, Debug)]
pub(crate) struct LedgerArgs {
    /// The ledger's directory [default: that of this machine's server].
    #[arg(long, value_name = "DIR")]
    ledger: Option<PathBuf>,
}

impl LedgerArgs {
    fn dir(&self, global: &Global) -> Result<PathBuf> {
        match &self.ledger {
            Some(dir) => Ok(dir.clone()),
            None => Ok(State::locate(global.state.as_deref())?.server().join("ledger")),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    at: LedgerArgs,
    /// The ledger's key; with it, also a chain that was made anew as a whole is found [default: the server's, where it
    /// can be read].
    #[arg(long, value_name = "FILE")]
    ledger_key: Option<PathBuf>,
    /// A record's number and hash that were kept elsewhere: the ledger must still hold it.
    #[arg(long, value_name = "NUMBER:HASH", value_parser = parse_anchor)]
    anchor: Option<Anchor>,
    /// Where records were moved that the ledger let go: checked with the rest, from the oldest on.
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
}

fn parse_anchor(text: &str) -> Result<Anchor, String> {
    let wrong = || format!("`{text}` is no anchor, such as 42:{}", "0".repeat(64));
    let (seq, hash) = text.split_once(':').ok_or_else(wrong)?;
    let hex = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match seq.parse() {
        Ok(seq) if hex => Ok(Anchor { seq, hash: hash.to_owned() }),
        _ => Err(wrong()),
    }
}

pub(crate) fn audit(global: &Global, command: AuditCommand, out: &Output) -> Result<ExitCode> {
    match command {
        AuditCommand::List { all, count } => list(global, all, count, out),
        AuditCommand::Verify(args) => check(global, &args, out),
        AuditCommand::Export { at, from } => export(&at.dir(global)?, from),
    }
}

fn list(global: &Global, all: bool, count: u32, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let records = connect::runtime()?.block_on(client.audit(count, all))?;
    out.rows(&records, &["no", "when", "user", "action", "what", "outcome", "place"], |record| {
        let text = |name: &str| match &record[name] {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let outcome = match record["allowed"].as_bool() {
            Some(true) => "allowed".to_owned(),
            Some(false) => "denied".to_owned(),
            None => match (text("code"), text("kind").as_str()) {
                (code, "result") if code.is_empty() => match text("exit_code") {
                    exit if exit.is_empty() => "done".to_owned(),
                    exit => format!("exit {exit}"),
                },
                (code, _) => code,
            },
        };
        let place = record["place"]["id"].as_str().unwrap_or_default().to_owned();
        let age = output::now_ms().saturating_sub(record["at"].as_u64().unwrap_or_default());
        vec![
            text("seq"),
            format!("{} ago", output::span(age)),
            text("username"),
            text("action"),
            text("kind"),
            outcome,
            place,
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}

fn check(global: &Global, args: &VerifyArgs, out: &Output) -> Result<ExitCode> {
    let dir = args.at.dir(global)?;
    let key = match &args.ledger_key {
        Some(path) => Some(LedgerKey::load(path)?),
        None => match dir.parent().map(|state| state.join("ledger.key")) {
            Some(path) if args.at.ledger.is_none() && path.exists() => Some(LedgerKey::load(&path)?),
            _ => None,
        },
    };
    let bar = out.spinner("reading the ledger");
    let report = verify_with_archive(&dir, args.archive.as_deref(), key.as_ref(), args.anchor.as_ref())?;
    bar.finish_and_clear();
    out.value(&report, |report| match &report.problem {
        Some(problem) => format!("BROKEN: {problem}\n{} records before it are whole", report.records),
        None => format!(
            "whole: {} records in {} segment{}{}{}\nlast: {}:{}",
            report.records,
            report.segments,
            if report.segments == 1 { "" } else { "s" },
            if report.sealed { ", every seal checked" } else { ", seals not checked (no key)" },
            match report.first_seq {
                1 => String::new(),
                first => format!("; those before {first} were let go, as a note in the chain says"),
            },
            report.last_seq,
            report.last_hash
        ),
    })?;
    Ok(if report.problem.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn export(dir: &Path, from: u64) -> Result<ExitCode> {
    if from == 0 {
        bail!(Fault::invalid("records are numbered from 1"));
    }
    let mut stdout = BufWriter::new(io::stdout().lock());
    for record in Records::open(dir, from)? {
        match writeln!(stdout, "{}", record?.line) {
            // Whoever reads us has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            other => other.context("cannot write the records")?,
        }
    }
    stdout.flush().context("cannot write the records")?;
    Ok(ExitCode::SUCCESS)
}
