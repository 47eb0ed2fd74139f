//! `ringfence up`: starts the warden and the server, keeps both alive, ends both in order.
//!
//! The supervisor reads no stranger's byte: it listens nowhere, and of its children it reads one bounded line.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use tokio::{
    signal::unix,
    sync::{mpsc, watch},
};

use crate::{
    cli::Global,
    connect,
    output::{self, Output},
    state::{Running, State},
    supervise::child::{News, Role, keep},
};

/// How long the server may take to end: its own grace for running requests, and a little.
const SERVER_GRACE: Duration = Duration::from_secs(15);
/// How long the warden may take to end: every sandbox is destroyed first.
const WARDEN_GRACE: Duration = Duration::from_secs(60);
/// The scheduler's slice of everything that we start, sandboxes included: all of it waits for wake-ups more than it
/// computes, and who wakes must not wait for a neighbour's whole slice. The least that the kernel takes.
const SLICE_NS: u64 = 100_000;

#[derive(Args, Clone, Debug)]
pub(crate) struct UpArgs {
    /// Where to listen. Port 0 takes a free one [default: 127.0.0.1:7070].
    #[arg(long, value_name = "ADDRESS", value_parser = output::parse_address)]
    listen: Option<SocketAddr>,
    /// The server's certificate chain, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Listen on an address that others reach although there is no TLS: only behind a proxy that has it.
    #[arg(long)]
    allow_plaintext: bool,
    /// How clients reach this server, such as https://run.example.com.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// A configuration file (TOML) with more settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many sandboxes are kept prepared.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    pool: u32,
    /// How many of the template `base`, which E2B's clients use, are kept prepared once the first was asked for.
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    pool_base: u32,
    /// Most sandboxes at once on this machine.
    #[arg(long, value_name = "COUNT", default_value_t = 2500)]
    sandboxes_max: u32,
}

impl UpArgs {
    /// What the server is started with.
    fn server(&self, state: &State) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--state".into(), state.root().into()];
        let mut push = |name: &str, value: OsString| args.extend([name.into(), value]);
        if let Some(listen) = self.listen {
            push("--listen", listen.to_string().into());
        }
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            push("--tls-certificate", certificate.into());
            push("--tls-key", key.into());
        }
        if let Some(url) = &self.public_url {
            push("--public-url", url.into());
        }
        if let Some(config) = &self.config {
            push("--config", config.into());
        }
        if self.allow_plaintext {
            args.push("--allow-plaintext".into());
        }
        args
    }

    /// What the warden is started with.
    fn warden(&self, state: &State) -> Vec<OsString> {
        vec![
            "--state".into(),
            state.root().into(),
            "--pool".into(),
            self.pool.to_string().into(),
            "--pool-base".into(),
            self.pool_base.to_string().into(),
            "--sandboxes-max".into(),
            self.sandboxes_max.to_string().into(),
        ]
    }
}

pub(crate) fn up(global: &Global, args: &UpArgs, out: &Output) -> Result<ExitCode> {
    let state = State::locate(global.state.as_deref())?;
    state.prepare()?;
    let _lock = state.lock()?;
    // Best effort: only a matter of how soon.
    let _ = rf_sandbox::set_slice(SLICE_NS);
    let result = connect::runtime()?.block_on(supervise(&state, args, out));
    state.clear_running();
    result
}

async fn supervise(state: &State, args: &UpArgs, out: &Output) -> Result<ExitCode> {
    let mut interrupt = unix::signal(unix::SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = unix::signal(unix::SignalKind::terminate()).context("cannot listen for signals")?;
    let warden = Role { name: "warden", args: args.warden(state), grace: WARDEN_GRACE, again: |_| Vec::new() };
    let server = Role { name: "server", args: args.server(state), grace: SERVER_GRACE, again: same_address };
    let (news, mut heard) = mpsc::channel(16);
    let (stop_warden, warden_stops) = watch::channel(false);
    let (stop_server, server_stops) = watch::channel(false);
    let all_ready = Arc::new(AtomicBool::new(false));
    let mut warden = tokio::spawn(keep(warden, news.clone(), warden_stops, all_ready.clone()));
    let mut server = tokio::spawn(keep(server, news, server_stops, all_ready));
    let mut greeted = false;
    let bar = out.spinner("starting");
    // Why we end: `None` when told to.
    let failure = loop {
        tokio::select! {
            _ = interrupt.recv() => break None,
            _ = terminate.recv() => break None,
            ended = &mut warden => break Some(ended.context("the warden's keeper ended").and_then(|ended| ended)),
            ended = &mut server => break Some(ended.context("the server's keeper ended").and_then(|ended| ended)),
            Some(news) = heard.recv() => match news {
                News::Ready("server", said) => {
                    let url = said.split(' ').next().unwrap_or_default().to_owned();
                    state.set_running(&Running { pid: std::process::id(), url: url.clone() })?;
                    let fresh = state.collect_first_key()?;
                    if !greeted {
                        greeted = true;
                        bar.finish_and_clear();
                        greet(state, &url, fresh.as_deref(), out)?;
                    }
                }
                News::Ready(..) => {}
                News::Died(name, status, rest) => {
                    bar.suspend(|| out.warning(&format!("the {name} died ({status}); starting it again in {rest:?}")));
                }
            },
        }
    };
    bar.finish_and_clear();
    out.remark("stopping: running requests end, then every sandbox is destroyed");
    // The server first: it gives orders to the warden until its last request is answered.
    let _ = stop_server.send(true);
    if !server.is_finished() {
        let _ = server.await;
    }
    let _ = stop_warden.send(true);
    if !warden.is_finished() {
        let _ = warden.await;
    }
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(error),
        Some(Ok(())) => anyhow::bail!("a part ended by itself"),
    }
}

/// The address that a server took stays its own: a port that was chosen once is asked for by its number.
fn same_address(ready: &str) -> Vec<OsString> {
    match ready.split(' ').nth(1) {
        Some(address) => vec!["--listen".into(), address.into()],
        None => Vec::new(),
    }
}

/// Says where the server is, the first key if it is new, and what to try.
fn greet(state: &State, url: &str, fresh: Option<&str>, out: &Output) -> Result<()> {
    let key_file = state.root().join("first-key");
    let value = json!({ "url": url, "key": fresh, "key_file": key_file, "pid": std::process::id() });
    if out.json() {
        // On one line, since more may come: whoever started us waits for this.
        return output::print_line(&value);
    }
    out.value(&value, |_| {
        let named = std::env::args().next().unwrap_or_else(|| "ringfence".to_owned());
        // Commands of the same person find the server and its key by the state directory.
        let usual = State::locate(None).is_ok_and(|usual| usual.root() == state.root());
        let at = if usual { String::new() } else { format!(" --state {}", state.root().display()) };
        let key = match fresh {
            Some(key) => {
                format!("{key}\n              (an operator's; shown this once, kept in {})", key_file.display())
            }
            None => format!("in {}", key_file.display()),
        };
        format!(
            "ringfence is up\n\n  address     {url}\n  first key   {key}\n\ntry:\n  {named}{at} run -- uname -a\n  \
             {named}{at} demo\n  {named}{at} doctor --audit\n"
        )
    })
}
