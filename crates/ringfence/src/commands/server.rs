//! `ringfence server`: the program without rights. Started by `up`, not by people.
//!
//! In this order, while there is one thread: read the configuration, bind the port, drop every right, check that none
//! is left. Only then is anything started that reads a byte of a stranger's.

use std::{
    fs,
    io::{ErrorKind, IsTerminal as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Args;
use rf_server::{RunError, config::ServerConfig, tls::TlsError};
use rf_types::{Code, Fault};
use rustix::process::geteuid;

use crate::{
    cli::Global,
    output::Output,
    state::{SERVER_ID, State},
    supervise::{child::WRONG_SETTING, rights},
};

#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// The supervisor's pid: when it ends, so does this.
    #[arg(long, value_name = "PID")]
    supervisor: Option<u32>,
    /// Where to listen; the last one counts.
    #[arg(long, value_name = "ADDRESS", overrides_with = "listen")]
    listen: Option<SocketAddr>,
    /// The certificate chain, PEM.
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Listen on a public address without TLS.
    #[arg(long)]
    allow_plaintext: bool,
    /// How clients reach this server.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// A configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ServerArgs {
    /// The configuration file's settings, with the command line's over them.
    fn config(&self, state: &State, rooted: bool) -> Result<ServerConfig> {
        let mut table: toml::Table = match &self.config {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
                text.parse().with_context(|| format!("`{}`", path.display()))?
            }
            None => toml::Table::new(),
        };
        let mut set = |key: &str, value: String| table.insert(key.to_owned(), toml::Value::String(value));
        set("state_dir", path_text(&state.server())?);
        set("warden_socket", path_text(&state.warden_socket())?);
        if let Some(listen) = self.listen {
            set("listen", listen.to_string());
        }
        if let Some(url) = &self.public_url {
            set("public_url", url.clone());
        }
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            let tls = [("certificate", certificate), ("key", key)]
                .into_iter()
                .map(|(name, path)| {
                    let path = std::path::absolute(path)?;
                    Ok((name.to_owned(), toml::Value::String(path_text(&path)?)))
                })
                .collect::<Result<toml::Table>>()?;
            table.insert("tls".to_owned(), toml::Value::Table(tls));
        }
        if self.allow_plaintext {
            table.insert("allow_plaintext_public".to_owned(), toml::Value::Boolean(true));
        }
        if std::io::stderr().is_terminal() && !table.contains_key("log") {
            let pretty = toml::Table::from_iter([("format".to_owned(), toml::Value::String("pretty".to_owned()))]);
            table.insert("log".to_owned(), toml::Value::Table(pretty));
        }
        if rooted {
            table.insert("require_no_rights".to_owned(), toml::Value::Boolean(true));
        }
        Ok(ServerConfig::parse(&toml::to_string(&table)?, std::env::vars())?)
    }
}

/// What a server started with this configuration file would have: read and checked as it would.
pub(crate) fn config_of(global: &Global, file: &std::path::Path) -> Result<ServerConfig> {
    let args = ServerArgs {
        supervisor: None,
        listen: None,
        tls_certificate: None,
        tls_key: None,
        allow_plaintext: false,
        public_url: None,
        config: Some(file.to_owned()),
    };
    args.config(&State::locate(global.state.as_deref())?, geteuid().is_root())
}

fn path_text(path: &std::path::Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("`{}` is not UTF-8", path.display()))
}

pub(crate) fn server(global: &Global, args: &ServerArgs, out: &Output) -> Result<ExitCode> {
    // Started by way of /proc, it would be `exe` in every list of processes. It is no worse a server without a name.
    let _ = rustix::thread::set_name(c"rf-server");
    let state = State::locate(global.state.as_deref())?;
    let rooted = geteuid().is_root();
    let config = match args.config(&state, rooted) {
        Ok(config) => config,
        Err(error) => {
            out.failure(&error);
            return Ok(ExitCode::from(WRONG_SETTING));
        }
    };
    // Before the rights go: a port below 1024 takes one.
    let listener = match TcpListener::bind(config.listen) {
        Ok(listener) => listener,
        Err(error) => {
            out.failure(&cannot_listen(config.listen, &error));
            return Ok(ExitCode::from(WRONG_SETTING));
        }
    };
    if rooted {
        rights::drop_to(SERVER_ID)?;
    }
    rights::forbid_gaining()?;
    if let Some(supervisor) = args.supervisor {
        rights::die_with(supervisor)?;
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    match rf_server::run_on(config, listener, move |address| say_ready(scheme, address)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if matches!(error, RunError::Tls(_)) => {
            out.failure(&certificate_fault(error, rooted));
            Ok(ExitCode::from(WRONG_SETTING))
        }
        Err(error) => Err(error.into()),
    }
}

/// Says what to do about an address that cannot be had.
fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::AddrInUse => {
            "another program listens there, maybe another ringfence: choose an address with --listen"
        }
        ErrorKind::AddrNotAvailable => "name an address that this machine has with --listen",
        ErrorKind::PermissionDenied => {
            "a port below 1024 takes a right that you have not: choose another with --listen"
        }
        _ => "choose another address with --listen",
    };
    Fault::new(Code::InvalidRequest, format!("cannot listen on {address}: {error}"), hint).into()
}

/// Says what to do about a certificate that cannot be used.
fn certificate_fault(error: RunError, rooted: bool) -> anyhow::Error {
    let denied =
        matches!(&error, RunError::Tls(TlsError::Read { error, .. }) if error.kind() == ErrorKind::PermissionDenied);
    let hint = if denied && rooted {
        // It reads them again when they are renewed, so handing them over once would not do.
        format!(
            "the server runs without rights, as id {SERVER_ID}: let it read the files, such as by `setfacl -m u:{SERVER_ID}:r FILE`, and pass their directories"
        )
    } else {
        "give --tls-certificate and --tls-key files in PEM that belong together".to_owned()
    };
    Fault::new(Code::InvalidRequest, format!("{:#}", anyhow::Error::from(error)), hint).into()
}

/// Tells the supervisor, on the pipe that is our standard output, where a client on this machine finds us, and where
/// we listen.
fn say_ready(scheme: &str, bound: SocketAddr) {
    let mut address = bound;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    // A supervisor that is gone ends us anyway.
    let _ = writeln!(std::io::stdout(), "ready {scheme}://{address} {bound}");
}
