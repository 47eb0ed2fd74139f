//! `user`, `key`, `machine`: who may, with which credential, and where their commands run.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use rf_client::types::{KeyForm, UserLimitsRequest};
use rf_types::{KeyId, MachineId, Username};
use serde_json::json;

use crate::{
    cli::Global,
    commands::exec::PlaceChoice,
    connect,
    output::{self, Output, now_ms, parse_bytes, parse_cpu, parse_ms},
};

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user, and a key for them.
    Add {
        /// 1 to 64 of a-z, 0-9, `.`, `_`, `@` and `-`.
        name: Username,
        /// Make no key.
        #[arg(long)]
        no_key: bool,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List users.
    #[command(visible_alias = "ls")]
    List,
    /// Set what a user may have at once; what is not named stays.
    Limits {
        /// The user's name.
        user: Username,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Remove a user who has no sandbox left, and all that is theirs.
    Rm {
        /// The user's name.
        user: Username,
    },
}

/// What a user may have at once.
#[derive(Args, Clone, Debug)]
pub(crate) struct LimitArgs {
    /// Sandboxes.
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    sandboxes: Option<u32>,
    /// Commands running.
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    execs: Option<u32>,
    /// CPUs of all sandboxes together.
    #[arg(long, value_name = "CPUS", value_parser = parse_cpu, help_heading = "Limits")]
    cpu: Option<u32>,
    /// Memory of all sandboxes together.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Limits")]
    memory: Option<u64>,
    /// Disk of all sandboxes together.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Limits")]
    disk: Option<u64>,
    /// Longest life of a sandbox.
    #[arg(long, value_name = "TIME", value_parser = parse_ms, help_heading = "Limits")]
    lease: Option<u64>,
    /// Snapshots at once.
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    snapshots: Option<u32>,
    /// Bytes of all snapshots together.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Limits")]
    snapshot_bytes: Option<u64>,
    /// Whether the user may be root inside their sandboxes.
    #[arg(long, value_name = "BOOL", help_heading = "Limits")]
    root: Option<bool>,
}

impl LimitArgs {
    fn request(&self) -> UserLimitsRequest {
        UserLimitsRequest {
            sandboxes_max: self.sandboxes,
            execs_max: self.execs,
            cpu_milli_max: self.cpu,
            memory_bytes_max: self.memory,
            disk_bytes_max: self.disk,
            lease_ms_max: self.lease,
            root_allowed: self.root,
            snapshots_max: self.snapshots,
            snapshot_bytes_max: self.snapshot_bytes,
        }
    }
}

pub(crate) fn user(global: &Global, command: UserCommand, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    match command {
        UserCommand::Add { name, no_key, limits } => {
            let (user, key) = runtime.block_on(async {
                let user = client.user_add(&name, &limits.request()).await?;
                let key = if no_key { None } else { Some(client.user_key_add(&name, "first").await?) };
                anyhow::Ok((user, key))
            })?;
            let secret = key.as_ref().map(|key| key.key.expose());
            out.value(&json!({ "user": user, "key": secret }), |_| match secret {
                Some(secret) => format!("{}\n{secret}", user.id),
                None => user.id.to_string(),
            })?;
            if key.is_some() {
                out.remark("The key is shown this once; give it to the user.");
            }
        }
        UserCommand::List => {
            let users = runtime.block_on(client.users())?;
            out.rows(&users, &["user", "name", "sandboxes", "cpu", "memory", "root"], |user| {
                let limits = user.limits;
                vec![
                    user.id.to_string(),
                    user.name.to_string(),
                    limits.sandboxes_max.to_string(),
                    (f64::from(limits.cpu_milli_max) / 1000.0).to_string(),
                    output::bytes(limits.memory_bytes_max),
                    if limits.root_allowed { "yes" } else { "no" }.to_owned(),
                ]
            })?;
        }
        UserCommand::Limits { user, limits } => {
            let user = runtime.block_on(client.user_limits(&user, &limits.request()))?;
            out.value(&user, |user| serde_json::to_string_pretty(&user.limits).unwrap_or_default())?;
        }
        UserCommand::Rm { user } => {
            runtime.block_on(client.user_remove(&user))?;
            out.done(&json!({ "removed": [user] }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key of one's own; it is shown this once.
    Add {
        /// What to call it.
        #[arg(long, value_name = "NAME", default_value = "cli")]
        name: String,
        /// What it may be used for [default: all that the maker may].
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
        /// When it stops working, such as 30d [default: never].
        #[arg(long, value_name = "TIME", value_parser = parse_ms)]
        expires: Option<u64>,
        /// How it looks: `e2b` for E2B's clients, of which some take no other.
        #[arg(long, value_name = "FORM", value_enum, default_value_t = KeyFormChoice::Ringfence)]
        form: KeyFormChoice,
    },
    /// List one's keys.
    #[command(visible_alias = "ls")]
    List,
    /// End keys.
    Revoke {
        /// Their ids.
        #[arg(required = true)]
        keys: Vec<KeyId>,
    },
}

/// How a key looks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KeyFormChoice {
    /// `rf_`.
    Ringfence,
    /// `e2b_`.
    E2b,
}

impl From<KeyFormChoice> for KeyForm {
    fn from(choice: KeyFormChoice) -> Self {
        match choice {
            KeyFormChoice::Ringfence => Self::Ringfence,
            KeyFormChoice::E2b => Self::E2b,
        }
    }
}

pub(crate) fn key(global: &Global, command: KeyCommand, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    match command {
        KeyCommand::Add { name, scope, expires, form } => {
            let expires_at = expires.map(|ms| now_ms() + ms);
            let key = runtime.block_on(client.key_add(&name, &scope, expires_at, form.into()))?;
            out.value(&json!({ "id": key.info.id, "key": key.key.expose() }), |_| key.key.expose().to_owned())?;
            out.remark("The key is shown this once.");
        }
        KeyCommand::List => {
            let keys = runtime.block_on(client.keys())?;
            let now = now_ms();
            out.rows(&keys, &["key", "name", "scopes", "state"], |key| {
                let state = match (key.revoked_at, key.expires_at) {
                    (Some(_), _) => "revoked".to_owned(),
                    (None, Some(at)) if at <= now => "expired".to_owned(),
                    (None, Some(at)) => format!("{} left", output::span(at - now)),
                    (None, None) => "good".to_owned(),
                };
                vec![key.id.to_string(), key.name.clone(), key.scopes.join(","), state]
            })?;
        }
        KeyCommand::Revoke { keys } => {
            runtime.block_on(async {
                for key in &keys {
                    client.key_revoke(*key).await?;
                }
                anyhow::Ok(())
            })?;
            out.done(&json!({ "revoked": keys }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// Make a token with which one computer may join, once.
    Token,
    /// List machines.
    #[command(visible_alias = "ls")]
    List,
    /// Forget a machine; its key is worth nothing afterwards.
    Rm {
        /// Its id.
        machine: MachineId,
    },
    /// Set where commands run unless a call says otherwise.
    Prefer {
        /// Where.
        place: PlaceChoice,
    },
}

pub(crate) fn machine(global: &Global, command: MachineCommand, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    match command {
        MachineCommand::Token => {
            let token = runtime.block_on(client.machine_enrol())?;
            let secret = token.token.expose();
            out.value(&json!({ "token": secret, "expires_at": token.expires_at }), |_| secret.to_owned())?;
            out.remark(&format!("On the computer that is to join: ringfence join {} --token {secret}", client.url()));
        }
        MachineCommand::List => {
            let machines = runtime.block_on(client.machines())?;
            out.rows(&machines, &["machine", "state", "hostname", "os", "level"], |machine| {
                vec![
                    machine.id.to_string(),
                    if machine.online { "online" } else { "offline" }.to_owned(),
                    output::short(&machine.facts.hostname, 40),
                    output::short(&machine.facts.os, 40),
                    machine.level.clone(),
                ]
            })?;
        }
        MachineCommand::Rm { machine } => {
            runtime.block_on(client.machine_remove(machine))?;
            out.done(&json!({ "removed": [machine] }))?;
        }
        MachineCommand::Prefer { place } => {
            runtime.block_on(client.set_preference(place.preference()))?;
            out.done(&json!({ "preference": place.preference() }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
