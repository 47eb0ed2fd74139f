//! `ringfence warden` and `ringfence unpack`: the program with rights, and its unpacker without any. Started by `up`
//! and by the warden, not by people.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;
use rf_warden::WardenConfig;
use rustix::{
    fs::{Mode, OFlags},
    process::geteuid,
};
use std::os::fd::AsFd as _;

use crate::{
    state::{SERVER_ID, State},
    supervise::rights,
};

#[derive(Args, Debug)]
pub(crate) struct WardenArgs {
    /// The supervisor's pid: when it ends, so does this.
    #[arg(long, value_name = "PID")]
    supervisor: Option<u32>,
    /// How many sandboxes are kept prepared.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    pool: u32,
    /// How many of the template `base` are kept prepared, once the first was asked for.
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    pool_base: u32,
    /// Most sandboxes at once.
    #[arg(long, value_name = "COUNT", default_value_t = 2500)]
    sandboxes_max: u32,
}

/// Runs the warden in this thread, the only one there is.
pub(crate) fn warden(state: Option<&std::path::Path>, args: &WardenArgs) -> Result<ExitCode> {
    // As the server: a list of processes tells what it is.
    let _ = rustix::thread::set_name(c"rf-warden");
    let state = State::locate(state)?;
    if let Some(supervisor) = args.supervisor {
        rights::die_with(supervisor)?;
    }
    let server_uid = if geteuid().is_root() { SERVER_ID } else { geteuid().as_raw() };
    rf_warden::run(WardenConfig {
        state: state.root().to_owned(),
        server_uid,
        pool: args.pool,
        pool_base: args.pool_base,
        sandboxes_max: args.sandboxes_max,
        unpack_time: rf_warden::UNPACK_TIME,
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
pub(crate) struct UnpackArgs {
    /// What to unpack, JSON.
    order: String,
}

/// Unpacks the layer on standard input into the directory that is descriptor 3.
pub(crate) fn unpack(args: &UnpackArgs) -> Result<ExitCode> {
    // Through its name in /proc, since a number alone is not a descriptor that anything keeps open for us.
    let target = PathBuf::from("/proc/self/fd/3");
    let target = rustix::fs::open(&target, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())
        .context("descriptor 3 is no directory")?;
    rf_warden::forget_the_host(target.as_fd()).context("cannot restrict the unpacker to its directory")?;
    Ok(rf_template::unpack::unpacker_main(&args.order, target.as_fd()))
}
