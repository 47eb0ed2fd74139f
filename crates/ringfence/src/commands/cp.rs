//! `ringfence cp`: files and trees, into and out of a place.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::StreamExt as _;
use rf_client::{Client, FilePath, Target};
use rf_types::{Code, Fault, FileKind, MachineId, RequestId};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::Global,
    connect,
    named::Named,
    output::{Closed, Output},
    transfer,
};

#[derive(Args, Debug)]
pub(crate) struct CpArgs {
    /// What to copy: a path here, or `sandbox:path` with the id or name of one, `mch_…:path`, or `:path` in the
    /// preferred place. A file here with a colon in its name is `./a:b`; `-` is our standard input.
    from: String,
    /// Where to; one of the two is a place, and `-` is our standard output.
    to: String,
    /// The user inside.
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
}

/// One side of a copy.
#[derive(Debug, Eq, PartialEq)]
enum Side {
    Here(PathBuf),
    /// Standard input or output.
    Standard,
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
    /// A path here.
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Here(path) => Some(path),
            Self::Standard | Self::There(..) => None,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Standard);
        }
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
    let copying = async {
        match (&from, &to) {
            (from @ (Side::Here(_) | Side::Standard), Side::There(place, path)) => {
                let target = place.target(&client).await?;
                upload(&client, from.path(), FilePath { target, path, user }, out).await
            }
            (Side::There(place, path), to @ (Side::Here(_) | Side::Standard)) => {
                let target = place.target(&client).await?;
                download(&client, FilePath { target, path, user }, to.path(), out).await
            }
            (Side::There(..), Side::There(..)) | (_, Side::Here(_) | Side::Standard) => bail!(Fault::invalid(
                "one of the two must be in a place, such as `sbx_…:path` or `name:path`, and the other here"
            )),
        }
    };
    let result = runtime.block_on(unless_ended(copying));
    // A thread that packs or unpacks ends by itself, with nobody left to talk to.
    runtime.shutdown_background();
    let bytes = match result? {
        Done::With(bytes) => bytes,
        Done::By(code) => return Ok(ExitCode::from(code)),
    };
    if to != Side::Standard {
        out.done(&json!({ "bytes": bytes }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How a copy went.
enum Done {
    /// To its end, with so many bytes.
    With(u64),
    /// We were told to end; the exit code of that.
    By(u8),
}

/// Copies until it is done, or somebody ends us: then the copy is dropped, and takes what it made in part along.
async fn unless_ended(copying: impl Future<Output = Result<u64>>) -> Result<Done> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        done = copying => done.map(Done::With),
        // As a shell tells of a command that a signal ended.
        _ = interrupt.recv() => Ok(Done::By(128 + 2)),
        _ = terminate.recv() => Ok(Done::By(128 + 15)),
    }
}

/// The last part of a path in a place.
fn last_part(path: &str) -> Option<&str> {
    path.rsplit('/').find(|part| !part.is_empty()).filter(|part| *part != "." && *part != "..")
}

/// Copies a file or tree from here; without a path, standard input.
async fn upload(client: &Client, from: Option<&Path>, to: FilePath<'_>, out: &Output) -> Result<u64> {
    let Some(from) = from else {
        let stdin = io::stdin().as_fd().try_clone_to_owned().context("cannot read standard input")?;
        let bar = out.bytes_bar(None, "copying");
        client.file_write(to, 0o644, transfer::file_stream(File::from(stdin), bar.clone())).await?;
        bar.finish_and_clear();
        return Ok(bar.position());
    };
    let found = fs::metadata(from).with_context(|| format!("`{}`", from.display()))?;
    // As cp(1): into a directory that is there, else as the name that was given.
    let into = match client.file_stat(to).await {
        Ok(stat) => stat.kind == FileKind::Directory,
        Err(error) if error.fault().is_some_and(|fault| fault.code == Code::NotFound) => to.path.ends_with('/'),
        Err(error) => return Err(error.into()),
    };
    let path = if into { format!("{}/{}", to.path.trim_end_matches('/'), name_of(from)?) } else { to.path.to_owned() };
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

/// Copies a file or tree to here; without a path, a file to standard output.
async fn download(client: &Client, from: FilePath<'_>, to: Option<&Path>, out: &Output) -> Result<u64> {
    let stat = client.file_stat(from).await?;
    let Some(to) = to else {
        if stat.kind == FileKind::Directory {
            bail!(Fault::invalid(format!("`{}` is a directory: say where to copy it", from.path)));
        }
        // No bar, which would stand between what is shown where both go to one terminal.
        let (mut bytes, _) = client.file_read(from).await?;
        let (mut stdout, mut count) = (io::stdout().lock(), 0);
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            count += piece.len() as u64;
            match stdout.write_all(&piece).and_then(|()| stdout.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Closed.into()),
                written => written.context("cannot write standard output")?,
            }
        }
        return Ok(count);
    };
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
        let mut file = Landing::open(&to, stat.permissions)?;
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            bar.inc(piece.len() as u64);
            file.write(&piece)?;
        }
        file.land()?;
    }
    bar.finish_and_clear();
    Ok(bar.position())
}

/// The name under which a file or directory here goes into a directory there: as it was typed, be it a link's.
fn name_of(path: &Path) -> Result<String> {
    let name = match path.file_name() {
        Some(name) => name.to_owned(),
        // `.` and `..` have none of their own; the root has none at all.
        None => match path.canonicalize()?.file_name() {
            Some(name) => name.to_owned(),
            None => bail!(Fault::invalid(format!("`{}` has no name: say what to call it there", path.display()))),
        },
    };
    name.into_string().map_err(|name| {
        Fault::invalid(format!("`{}` is not UTF-8: say what to call it there", Path::new(&name).display())).into()
    })
}

/// A file that is being written here. A download that breaks off leaves what was there, and nothing beside it.
struct Landing {
    /// As it was typed, for people.
    path: PathBuf,
    file: File,
    /// What is to become of it; `None` for what is written in place, such as a FIFO or a terminal.
    partial: Option<Partial>,
}

/// A file beside its target, under a name that nobody can foresee and make a link of.
struct Partial {
    dir: OwnedFd,
    name: String,
    target: OsString,
}

impl Landing {
    /// Makes a file beside `path`, with these permissions as far as the mask allows them.
    fn open(path: &Path, permissions: u32) -> Result<Self> {
        let cannot = || format!("cannot write `{}`", path.display());
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(cannot),
            Ok(found) if found.is_file() => {}
            // A rename would put a file in its place. What a link leads to, such as /dev/stdout, is opened by the
            // kernel, which guards links of others in shared directories; see proc_sys_fs(5), protected_symlinks.
            Ok(_) if fs::metadata(path).is_ok_and(|found| !found.is_file()) => {
                let file = File::options().write(true).open(path).with_context(cannot)?;
                return Ok(Self { path: path.to_owned(), file, partial: None });
            }
            Ok(_) => bail!(Fault::new(
                Code::Conflict,
                format!("`{}` is a link, which is not written through", path.display()),
                "name the file that it leads to, or remove it; `-` is standard output",
            )),
        }
        let target = path.file_name().with_context(|| format!("`{}` has no name", path.display()))?.to_owned();
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(above, flags, Mode::empty()).with_context(cannot)?;
        let name = format!(".ringfence-{:032x}.part", RequestId::random().bits());
        // INVARIANT: nothing is opened that was there, so nobody has put it there.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, &name, flags, Mode::from_raw_mode(permissions & 0o777)).with_context(cannot)?;
        Ok(Self { path: path.to_owned(), file: File::from(file), partial: Some(Partial { dir, name, target }) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write `{}`", self.path.display()))
    }

    /// It is whole: it gets its name.
    fn land(mut self) -> Result<()> {
        if let Some(Partial { dir, name, target }) = &self.partial {
            renameat(dir, name, dir, target).with_context(|| format!("cannot write `{}`", self.path.display()))?;
        }
        self.partial = None;
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(Partial { dir, name, .. }) = &self.partial {
            // Who may make it may remove it; nobody is left to tell if not.
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
    }
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
        assert_eq!(Side::parse("-").unwrap(), Side::Standard);
        for here in ["./web:x", "/a/b:c", "a/b:c", "web", "./-"] {
            assert_eq!(Side::parse(here).unwrap(), Side::Here(PathBuf::from(here)), "{here}");
        }
        for wrong in ["sbx_nope:/x", "mch_nope:/x"] {
            assert!(Side::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(last_part("/a/b/"), Some("b"));
        assert_eq!(last_part(".."), None);
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Attack: links in a shared directory, in the way of a download that is foreseen.
    #[test]
    fn a_download_follows_no_link_that_others_left() {
        let (shared, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let treasure = mine.path().join("treasure");
        fs::write(&treasure, "kept").unwrap();
        for name in ["x", "x.part", ".x.part", "x.new"] {
            std::os::unix::fs::symlink(&treasure, shared.path().join(name)).unwrap();
        }
        let to = shared.path().join("x");
        let error = Landing::open(&to, 0o644).err().unwrap();
        assert!(error.to_string().contains("is a link"), "{error:#}");
        fs::remove_file(&to).unwrap();
        let mut file = Landing::open(&to, 0o640).unwrap();
        file.write(b"new").unwrap();
        file.land().unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o037, 0);
        assert_eq!(fs::read(&treasure).unwrap(), b"kept");
        assert_eq!(names(shared.path()), [".x.part", "x", "x.new", "x.part"]);
    }

    #[test]
    fn a_download_that_breaks_off_leaves_what_was_there_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("x");
        fs::write(&to, "old").unwrap();
        let (mut one, mut other) = (Landing::open(&to, 0o600).unwrap(), Landing::open(&to, 0o600).unwrap());
        one.write(b"half").unwrap();
        other.write(b"whole").unwrap();
        assert_eq!(names(dir.path()).len(), 3, "two at once are in nobody's way");
        drop(one);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        other.land().unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"whole");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn what_is_no_file_is_written_in_place() {
        let mut null = Landing::open(Path::new("/dev/null"), 0o600).unwrap();
        null.write(b"x").unwrap();
        null.land().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(Landing::open(&link, 0o600).unwrap().partial.is_none());
    }

    #[test]
    fn a_link_goes_by_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("link")).unwrap();
        assert_eq!(name_of(&dir.path().join("link")).unwrap(), "link");
        assert_eq!(name_of(&dir.path().join(".")).unwrap(), dir.path().file_name().unwrap().to_str().unwrap());
        assert!(name_of(Path::new("/")).is_err());
    }
}
