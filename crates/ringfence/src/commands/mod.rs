//! The commands, one file each.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    cli::{Cli, Command},
    output::Output,
};

pub(crate) mod account;
pub(crate) mod audit;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod forward;
pub(crate) mod join;
pub(crate) mod life;
pub(crate) mod run;
pub(crate) mod sandbox;
pub(crate) mod seccomp;
pub(crate) mod server;
pub(crate) mod template;
pub(crate) mod up;
pub(crate) mod warden;

/// Runs what was typed; gives the exit code.
pub(crate) fn run(cli: Cli, out: &Output) -> Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Up(args) => up::up(global, &args, out),
        Command::Doctor(args) => doctor::doctor(global, &args, out),
        Command::Demo(args) => demo::demo(global, &args, out),
        Command::Run(args) => run::run(global, args, out),
        Command::Create(args) => sandbox::create(global, args, out),
        Command::Pause(args) => life::pause(global, &args, out),
        Command::Resume(args) => life::resume(global, &args, out),
        Command::Snapshot(args) => life::snapshot(global, &args, out),
        Command::Snapshots(args) => life::snapshots(global, &args, out),
        Command::Fork(args) => life::fork(global, args, out),
        Command::Exec(args) => exec::exec(global, args, out),
        Command::Shell(args) => exec::shell(global, args, out),
        Command::Cp(args) => cp::cp(global, &args, out),
        Command::Ps(args) => sandbox::ps(global, &args, out),
        Command::Logs(args) => exec::logs(global, &args, out),
        Command::PortForward(args) => forward::forward(global, &args, out),
        Command::Rm(args) => sandbox::rm(global, &args, out),
        Command::Join(args) => join::join(global, args, out),
        Command::User(command) => account::user(global, command, out),
        Command::Key(command) => account::key(global, command, out),
        Command::Machine(command) => account::machine(global, command, out),
        Command::Audit(command) => audit::audit(global, command, out),
        Command::Template(command) => template::template(global, command, out),
        Command::Seccomp => seccomp::seccomp(out),
        Command::Completions(args) => completions::completions(&args),
        Command::Warden(args) => warden::warden(global.state.as_deref(), &args),
        Command::Server(args) => server::server(global, &args, out),
        Command::Unpack(args) => warden::unpack(&args),
    }
}
