//! What people type. Only the grammar; the commands are in [`crate::commands`].

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use rf_types::{Code, Fault};

use crate::{commands, output::Output};

/// The exit code when we, not the command that was run, failed: of those that pass a command's code through. Commands
/// themselves rarely use it.
const OURS: u8 = 125;
/// The exit code of a command line that is none, of all others.
const USAGE: u8 = 2;

/// A place of their own for every user: run commands in isolated sandboxes or on joined machines, never on the host.
#[derive(Parser)]
#[command(name = "ringfence", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes. No `Debug`: it may hold a key.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// Print JSON instead of text; errors too.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// No progress bars and no remarks.
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
    /// The server's address [default: the configuration file's, else the server started here].
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "RINGFENCE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub(crate) url: Option<String>,
    /// The API key [default: the configuration file's, else the first key of the server started here].
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "RINGFENCE_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) key: Option<String>,
    /// A PEM certificate to trust besides the system's.
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "RINGFENCE_CERTIFICATE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) certificate: Option<PathBuf>,
    /// Where this machine's server keeps its state [default: /var/lib/ringfence as root, else
    /// ~/.local/share/ringfence].
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "RINGFENCE_STATE",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) state: Option<PathBuf>,
}

/// One command.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start everything on this machine, and keep it running.
    Up(commands::up::UpArgs),
    /// Say what this host can hold, layer by layer, and how to get what is missing.
    Doctor(commands::doctor::DoctorArgs),
    /// Show two users side by side: neither sees the other or the host.
    Demo(commands::demo::DemoArgs),
    /// Make a sandbox, run one command in it, print what it prints, destroy it.
    Run(commands::run::RunArgs),
    /// Make a sandbox.
    Create(commands::sandbox::CreateArgs),
    /// Run a command in a place.
    Exec(commands::exec::ExecArgs),
    /// Open a shell in a place.
    Shell(commands::exec::ShellArgs),
    /// Copy files and trees into and out of a place.
    Cp(commands::cp::CpArgs),
    /// List sandboxes and machines, or the commands of one.
    Ps(commands::sandbox::PsArgs),
    /// Print what a background command printed.
    Logs(commands::exec::LogsArgs),
    /// Pause sandboxes: their processes are frozen, or only their files are kept.
    Pause(commands::life::PauseArgs),
    /// Resume paused sandboxes.
    Resume(commands::life::ResumeArgs),
    /// Save the files of a sandbox, which goes on.
    Snapshot(commands::life::SnapshotArgs),
    /// List snapshots.
    Snapshots(commands::life::SnapshotsArgs),
    /// Make sandboxes that begin with the files of another one as they are now.
    Fork(commands::life::ForkArgs),
    /// Reach ports of a sandbox on this computer, until interrupted.
    PortForward(commands::forward::ForwardArgs),
    /// Destroy sandboxes, remove snapshots, forget machines.
    Rm(commands::sandbox::RmArgs),
    /// Join this computer to a server as a user's own machine.
    Join(commands::join::JoinArgs),
    /// Make, list, limit and remove users.
    #[command(subcommand)]
    User(commands::account::UserCommand),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Key(commands::account::KeyCommand),
    /// Tokens with which machines join, and where commands run by preference.
    #[command(subcommand)]
    Machine(commands::account::MachineCommand),
    /// Read, verify and export the ledger.
    #[command(subcommand)]
    Audit(commands::audit::AuditCommand),
    /// List, import and remove templates.
    #[command(subcommand)]
    Template(commands::template::TemplateCommand),
    /// Print the system calls that a sandbox may make, each with its reason.
    Seccomp,
    /// Print a completion script for a shell.
    Completions(commands::completions::CompletionsArgs),
    /// The program with rights; started by `up`.
    #[command(hide = true)]
    Warden(commands::warden::WardenArgs),
    /// The program without rights; started by `up`.
    #[command(hide = true)]
    Server(commands::server::ServerArgs),
    /// The unpacker of layers; started by the warden.
    #[command(hide = true)]
    Unpack(commands::warden::UnpackArgs),
}

impl Command {
    /// The exit code when we, not the command that was run, failed.
    pub(crate) fn exit_of_failure(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Shell(_) => OURS,
            _ => 1,
        }
    }
}

/// Reads the command line.
///
/// # Errors
/// With the exit code, when there is nothing to do: help was printed, or what is wrong with the line.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let args: Vec<_> = std::env::args_os().collect();
    Cli::try_parse_from(&args).map_err(|error| {
        if !error.use_stderr() {
            // Whoever reads us may have read enough.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let typed = Typed::read(args.get(1..).unwrap_or_default());
        if typed.json {
            let text = error.to_string();
            // The first lines say what is wrong; the rest is the usage.
            let wrong = text.split("\n\nUsage").next().unwrap_or(&text).trim_start_matches("error: ").trim_end();
            let fault = Fault::new(Code::InvalidRequest, wrong, "see the command's --help");
            Output::new(true, false).failure(&fault.into());
        } else {
            let _ = error.print();
        }
        ExitCode::from(if typed.passes_a_code_through { OURS } else { USAGE })
    })
}

/// What can be told of a line that is wrong.
#[derive(Debug, Eq, PartialEq)]
struct Typed {
    json: bool,
    /// Whether the exit code of the command that it names is usually another's.
    passes_a_code_through: bool,
}

impl Typed {
    fn read(args: &[OsString]) -> Self {
        let (mut json, mut command) = (false, None);
        // The options before the command that take a value, as the grammar has them.
        let grammar = Cli::command();
        let takes_value = |name: &str| {
            grammar.get_arguments().any(|arg| arg.get_long() == Some(name) && arg.get_action().takes_values())
        };
        let mut args = args.iter().map(|arg| arg.to_str().unwrap_or_default());
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some("") => break,
                Some("json") => json = true,
                Some(name) if command.is_none() && takes_value(name) => drop(args.next()),
                Some(_) => {}
                None if arg.starts_with('-') => {}
                None => drop(command.get_or_insert(arg)),
            }
        }
        Self { json, passes_a_code_through: matches!(command, Some("run" | "exec" | "shell")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_one() {
        Cli::command().debug_assert();
    }

    #[test]
    fn of_a_wrong_line_its_command_and_form_are_told() {
        let read = |line: &str| {
            let args: Vec<_> = line.split(' ').map(OsString::from).collect();
            let typed = Typed::read(&args);
            (typed.json, typed.passes_a_code_through)
        };
        assert_eq!(read("run --nope"), (false, true));
        assert_eq!(read("--state run ps --nope"), (false, false));
        assert_eq!(read("--state=x --url y -q --json exec"), (true, true));
        assert_eq!(read("exec --memory x -- --json"), (false, true));
        assert_eq!(read("shell --json a b"), (true, true));
        assert_eq!(read("create run --json"), (true, false));
        assert_eq!(read("--nope"), (false, false));
    }
}
