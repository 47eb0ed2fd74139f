//! `port-forward`: ports of a sandbox on this computer.

use std::{io, net::IpAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use rf_client::Tunnels;
use rf_types::SandboxId;
use rustix::io::Errno;
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::{cli::Global, connect, named::Named, output::Output};

/// Bytes that are moved at once, each way. Chosen: what a socket takes at once.
const COPY_BYTES: usize = 64 << 10;
/// Connections of one listener at once; more wait in the kernel's queue. Chosen: a browser opens some dozens.
const CONNECTIONS_MAX: usize = 1_024;
/// The pause after a connection that could not be taken. Chosen: long enough that something is given back meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is said that none can be taken. Chosen.
const SAY_PERIOD: Duration = Duration::from_secs(10);

/// Which ports.
#[derive(Args, Clone, Debug)]
pub(crate) struct ForwardArgs {
    /// The sandbox, by id or name.
    #[arg(short, long, value_name = "SANDBOX")]
    sandbox: Named,
    /// The address of this computer to listen on.
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// A port inside, and the port here; the same one unless given, and any that is free for 0.
    #[arg(required = true, value_name = "PORT[:LOCAL]", value_parser = parse_ports)]
    ports: Vec<Ports>,
}

/// A port inside and the one here.
#[derive(Clone, Copy, Debug)]
struct Ports {
    inside: u16,
    here: u16,
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is no port: give 1 to 65535"));
    let (inside, here) = text.split_once(':').unwrap_or((text, text));
    match (number(inside)?, number(here)?) {
        (0, _) => Err("0 is no port inside: give 1 to 65535".to_owned()),
        (inside, here) => Ok(Ports { inside, here }),
    }
}

/// What is listened on.
#[derive(Serialize)]
struct Forwarded {
    local: String,
    sandbox: SandboxId,
    port: u16,
}

/// Listens until it is interrupted.
pub(crate) fn forward(global: &Global, args: &ForwardArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    connect::runtime()?.block_on(async {
        let sandbox = args.sandbox.id(&client).await?;
        // A sandbox that is not there is said now and not at the first connection.
        let _: serde_json::Value = client.get(&format!("/v1/sandboxes/{sandbox}")).await?;
        let tunnels = client.tunnels()?;
        let (mut tasks, mut all) = (tokio::task::JoinSet::new(), Vec::new());
        for ports in &args.ports {
            let address = (args.listen, ports.here);
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("cannot listen on `{}:{}`", args.listen, ports.here))?;
            let local = listener.local_addr().context("cannot tell the local address")?.to_string();
            all.push(Forwarded { local, sandbox, port: ports.inside });
            tasks.spawn(accept(listener, tunnels.clone(), sandbox, ports.inside, *out));
        }
        out.rows(&all, &["HERE", "PORT", "SANDBOX"], |row| {
            vec![row.local.clone(), row.port.to_string(), row.sandbox.to_string()]
        })?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for an interrupt")?,
            Some(ended) = tasks.join_next() => ended.context("a listener broke")??,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Carries each connection of one listener.
async fn accept(listener: TcpListener, tunnels: Tunnels, sandbox: SandboxId, port: u16, out: Output) -> Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut said: Option<Instant> = None;
    loop {
        let turn = room.clone().acquire_owned().await.context("the listener is closed")?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_final(&error) => return Err(error).context("cannot accept connections any more"),
            Err(error) => {
                if said.is_none_or(|at| at.elapsed() > SAY_PERIOD) {
                    said = Some(Instant::now());
                    out.warning(&format!("cannot accept a connection to port {port}: {error}; trying again"));
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        let tunnels = tunnels.clone();
        tokio::spawn(async move {
            if let Err(error) = carry(stream, &tunnels, sandbox, port).await {
                out.warning(&format!("{error:#}"));
            }
            drop(turn);
        });
    }
}

/// Whether a listener will never accept again. All else passes: a connection that was reset before it was accepted, no
/// descriptors or memory left, errors of the network; see accept(2), "Error handling".
fn is_final(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, None | Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::FAULT))
}

async fn carry(mut stream: TcpStream, tunnels: &Tunnels, sandbox: SandboxId, port: u16) -> Result<()> {
    let mut tunnel = tunnels.open(sandbox, port).await?;
    let _ = stream.set_nodelay(true);
    // How it ends is for the two ends to see.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut tunnel, COPY_BYTES, COPY_BYTES).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_here_is_the_one_inside_unless_given() {
        let of = |text: &str| parse_ports(text).map(|ports| (ports.inside, ports.here));
        assert_eq!(of("8000"), Ok((8000, 8000)));
        assert_eq!(of("8000:80"), Ok((8000, 80)));
        assert_eq!(of("8000:0"), Ok((8000, 0)));
        for wrong in ["", "0", "0:80", "x", "80:", ":80", "65536", "80:1:2", "-1"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
