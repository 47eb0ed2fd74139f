//! `ringfence cp`: files and trees, into and out of a place.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::StreamExt as _;
use rf_client::{Client, FilePath, Target};
use rf_types::{Code, Fault, FileKind, MachineId};
use serde_json::json;

use crate::{cli::Global, connect, named::Named, output::Output, transfer};

#[derive(Args, Debug)]
pub(crate) struct CpArgs {
    /// What to copy: a path here, or `sandbox:path` with the id or name of one, `mch_…:path`, or `:path` in the
    /// preferred place. A file here with a colon in its name is `./a:b`.
    from: String,
    /// Where to; one of the two is a place.
    to: String,
    /// The user inside.
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
}

/// One side of a copy.
#[derive(Debug, Eq, PartialEq)]
enum Side {
    Here(PathBuf),
    There(Place, String),
}

/// Where a path is.
#[derive(Debug, Eq, PartialEq)]
enum Place {
    Preferred,
    Sandbox(Named),
    Machine(MachineId),
}

impl Place {
    async fn target(&self, client: &Client) -> Result<Target> {
        Ok(match self {
            Self::Preferred => Target::Preferred,
            Self::Sandbox(named) => Target::Sandbox(named.id(client).await?),
            Self::Machine(id) => Target::Machine(*id),
        })
    }
}

impl Side {
    fn parse(text: &str) -> Result<Self> {
        let here = || Self::Here(PathBuf::from(text));
        // As scp(1): what has a slash before its colon is a path here.
        let Some((place, path)) = text.split_once(':').filter(|(place, _)| !place.contains('/')) else {
            return Ok(here());
        };
        let place = if place.is_empty() {
            Place::Preferred
        } else if let Ok(id) = place.parse() {
            Place::Machine(id)
        } else {
            match place.parse() {
                Ok(named) if !place.starts_with("mch_") => Place::Sandbox(named),
                _ => bail!(Fault::invalid(format!("`{place}` is no id of a place"))),
            }
        };
        if matches!(place, Place::Sandbox(Named::Name(_))) && Path::new(text).exists() {
            let message = format!("`{text}` is a file here, and could be a path in a sandbox");
            bail!(Fault::new(
                Code::Conflict,
                message,
                format!("write `./{text}` for the file, or give the sandbox's id")
            ));
        }
        Ok(Self::There(place, if path.is_empty() { ".".to_owned() } else { path.to_owned() }))
    }
}

pub(crate) fn cp(global: &Global, args: &CpArgs, out: &Output) -> Result<ExitCode> {
    let user = args.user.as_deref();
    let (from, to) = (Side::parse(&args.from)?, Side::parse(&args.to)?);
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    let bytes = match (&from, &to) {
        (Side::Here(from), Side::There(place, path)) => runtime.block_on(async {
            let target = place.target(&client).await?;
            upload(&client, from, FilePath { target, path, user }, out).await
        }),
        (Side::There(place, path), Side::Here(to)) => runtime.block_on(async {
            let target = place.target(&client).await?;
            download(&client, FilePath { target, path, user }, to, out).await
        }),
        (Side::Here(_), Side::Here(_)) | (Side::There(..), Side::There(..)) => {
            bail!(Fault::invalid(
                "one of the two must be in a place, such as `sbx_…:path` or `name:path`, and the other here"
            ))
        }
    }?;
    if out.json() {
        out.value(&json!({ "bytes": bytes }), |_| String::new())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The last part of a path in a place.
fn last_part(path: &str) -> Option<&str> {
    path.rsplit('/').find(|part| !part.is_empty()).filter(|part| *part != "." && *part != "..")
}

async fn upload(client: &Client, from: &Path, to: FilePath<'_>, out: &Output) -> Result<u64> {
    let found = fs::metadata(from).with_context(|| format!("`{}`", from.display()))?;
    // As cp(1): into a directory that is there, else as the name that was given.
    let into = match client.file_stat(to).await {
        Ok(stat) => stat.kind == FileKind::Directory,
        Err(error) if error.fault().is_some_and(|fault| fault.code == Code::NotFound) => to.path.ends_with('/'),
        Err(error) => return Err(error.into()),
    };
    let path = match from.canonicalize()?.file_name().and_then(|name| name.to_str()) {
        Some(name) if into => format!("{}/{name}", to.path.trim_end_matches('/')),
        _ => to.path.to_owned(),
    };
    let to = FilePath { path: &path, ..to };
    let bar = out.bytes_bar(found.is_file().then_some(found.len()), "copying");
    if found.is_dir() {
        client.tar_in(to, transfer::tar_stream(from.to_owned(), bar.clone())).await?;
    } else if found.is_file() {
        let file = File::open(from).with_context(|| format!("cannot open `{}`", from.display()))?;
        let stream = transfer::file_stream(file, bar.clone());
        client.file_write(to, found.permissions().mode() & 0o777, stream).await?;
    } else {
        bail!(Fault::invalid(format!("`{}` is neither a file nor a directory", from.display())));
    }
    bar.finish_and_clear();
    Ok(bar.position())
}

async fn download(client: &Client, from: FilePath<'_>, to: &Path, out: &Output) -> Result<u64> {
    let stat = client.file_stat(from).await?;
    let name = last_part(from.path);
    let to = if to.is_dir() {
        match name {
            Some(name) => to.join(name),
            None => to.to_owned(),
        }
    } else {
        to.to_owned()
    };
    let bar = out.bytes_bar((stat.kind == FileKind::File).then_some(stat.size), "copying");
    if stat.kind == FileKind::Directory {
        fs::create_dir_all(&to).with_context(|| format!("cannot make `{}`", to.display()))?;
        transfer::unpack_stream(client.tar_out(from).await?, to, bar.clone()).await?;
    } else {
        let (mut bytes, _) = client.file_read(from).await?;
        // Beside it first, so that a broken download leaves what was there.
        let mut partial = to.clone().into_os_string();
        partial.push(".part");
        let partial = PathBuf::from(partial);
        let result = async {
            let mut file = File::create(&partial).with_context(|| format!("cannot write `{}`", partial.display()))?;
            while let Some(piece) = bytes.next().await {
                let piece = piece?;
                bar.inc(piece.len() as u64);
                file.write_all(&piece).with_context(|| format!("cannot write `{}`", partial.display()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(stat.permissions & 0o777))?;
            fs::rename(&partial, &to).with_context(|| format!("cannot write `{}`", to.display()))
        }
        .await;
        if result.is_err() {
            let _ = fs::remove_file(&partial);
        }
        result?;
    }
    bar.finish_and_clear();
    Ok(bar.position())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_place_or_a_path() {
        let id = rf_types::SandboxId::from_bits(1);
        let sandbox = |named| Place::Sandbox(named);
        assert_eq!(Side::parse(&format!("{id}:/a:b")).unwrap(), Side::There(sandbox(Named::Id(id)), "/a:b".to_owned()));
        assert_eq!(Side::parse(&format!("{id}:")).unwrap(), Side::There(sandbox(Named::Id(id)), ".".to_owned()));
        assert_eq!(Side::parse(":x").unwrap(), Side::There(Place::Preferred, "x".to_owned()));
        let web = || sandbox(Named::Name("web".to_owned()));
        assert_eq!(Side::parse("web:/x").unwrap(), Side::There(web(), "/x".to_owned()));
        for here in ["./web:x", "/a/b:c", "a/b:c", "web"] {
            assert_eq!(Side::parse(here).unwrap(), Side::Here(PathBuf::from(here)), "{here}");
        }
        for wrong in ["sbx_nope:/x", "mch_nope:/x"] {
            assert!(Side::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(last_part("/a/b/"), Some("b"));
        assert_eq!(last_part(".."), None);
    }
}
