//! What people type. Only the grammar; the commands are in [`crate::commands`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands;

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
    /// The exit code when we, not the command that was run, failed. Those that pass a command's code through use 125,
    /// which commands themselves rarely use.
    pub(crate) fn exit_of_failure(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Shell(_) => 125,
            _ => 1,
        }
    }
}

/// Reads the command line; prints help or what is wrong with it, and exits, when there is nothing to do.
pub(crate) fn parse() -> Cli {
    Cli::parse()
}
