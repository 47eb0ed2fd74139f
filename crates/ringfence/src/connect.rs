//! Which server, and with which key: from the command line, the environment, the configuration file, or the server that
//! the same person started on this machine.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use rf_client::{Client, Key, Options};
use rf_types::{Code, Fault};
use serde::Deserialize;

use crate::{
    cli::Global,
    state::{self, State},
};

/// The configuration file, `~/.config/ringfence/config.toml`.
// No `Debug`: it holds a key.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The server's address.
    url: Option<String>,
    /// The API key.
    key: Option<String>,
    /// A PEM certificate to trust besides the system's.
    certificate: Option<PathBuf>,
}

fn config() -> Result<Config> {
    let folder = match std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => match state::home() {
            Ok(home) => home.join(".config"),
            Err(_) => return Ok(Config::default()),
        },
    };
    let path = folder.join("ringfence/config.toml");
    match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("`{}`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

/// The client that the command line, the environment, the file or this machine's own server asks for.
pub(crate) fn client(global: &Global) -> Result<Client> {
    let config = config()?;
    let state = State::locate(global.state.as_deref()).ok();
    let local = state.as_ref().and_then(State::running);
    // The file's key goes to the server that stands beside it only; alone, it is for whichever is asked.
    let elsewhere = |url: &String| global.url.as_ref().is_some_and(|named| !named.is_empty() && !same(named, url));
    let of_the_file = config.key.filter(|_| !config.url.as_ref().is_some_and(elsewhere));
    // A variable that is set to nothing is none.
    let of_the_line = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let named = of_the_line(&global.url).or(config.url);
    if let Some(url) = named.as_ref().filter(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        let message = format!("`{url}` is no server's address");
        bail!(Fault::new(
            Code::InvalidRequest,
            message,
            "it begins with https:// or http://, as in http://127.0.0.1:7070"
        ));
    }
    // The local server's key goes to the local server only, whoever names it.
    let is_local = named.as_ref().is_none_or(|url| local.as_ref().is_some_and(|local| same(url, &local.url)));
    let Some(url) = named.or_else(|| local.map(|local| local.url)) else {
        bail!(Fault::new(
            Code::InvalidRequest,
            "no server is known",
            "start one with `ringfence up`, or name one with --url or RINGFENCE_URL",
        ));
    };
    let own = || state.as_ref().filter(|_| is_local).and_then(State::first_key);
    let Some(key) = of_the_line(&global.key).or(of_the_file).or_else(own) else {
        bail!(Fault::new(
            Code::Unauthenticated,
            format!("no key for `{url}` is known"),
            "name one with --key or RINGFENCE_KEY, or write it to ~/.config/ringfence/config.toml",
        ));
    };
    with_key(global, &url, &key)
}

/// Whether two addresses are of one server, as far as their text says.
fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// The certificate to trust besides the system's: the command line's, else the configuration file's.
pub(crate) fn certificate(global: &Global) -> Result<Option<PathBuf>> {
    match &global.certificate {
        Some(path) => Ok(Some(path.clone())),
        None => Ok(config()?.certificate),
    }
}

/// A client of `url` with this key.
pub(crate) fn with_key(global: &Global, url: &str, key: &str) -> Result<Client> {
    let certificate = match certificate(global)? {
        Some(path) => Some(fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?),
        None => None,
    };
    Ok(Client::new(Options { url: url.to_owned(), key: Some(Key::new(key)), certificate })?)
}

/// A runtime for commands that talk to a server: one thread, which is enough for one person's streams.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
