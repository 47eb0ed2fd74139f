//! The machine's root: an ext4 image with those of this host's Debian packages that tests and sandboxes use, and no more.
//!
//! Not the host's root itself by 9p: sandboxes show `/usr` with ids of their own, which 9p has not (mount_setattr(2),
//! `MOUNT_ATTR_IDMAP`); and a template is made by walking through all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{PATH, output, run};

/// What is used in the machine: by its start, by the tests on the host and inside of sandboxes. With all that these
/// depend on.
const WANTED: [&str; 14] = [
    "bash",
    "coreutils",
    "dash",
    "e2fsprogs",
    "findutils",
    "grep",
    "iproute2",
    "libgcc-s1",
    "mount",
    "procps",
    "python3",
    "sed",
    "tar",
    "util-linux",
];
/// Nobody reads these there.
const LEFT_OUT: [&str; 6] = [
    "/usr/include",
    "/usr/share/doc",
    "/usr/share/info",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/bash-completion",
];
/// Of `/etc`, what programs look at.
const SETTINGS: [&str; 6] =
    ["etc/alternatives", "etc/group", "etc/ld.so.cache", "etc/mke2fs.conf", "etc/nsswitch.conf", "etc/passwd"];
/// Folders that a root has, with their modes.
const FOLDERS: [(&str, u32); 10] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/local", 0o755),
    ("var/lib", 0o755),
    ("var/tmp", 0o1777),
];
/// Names at the top that are links into `/usr` on a merged system.
const LINKS: [&str; 5] = ["bin", "lib", "lib32", "lib64", "sbin"];
/// How large the file system is; the file is sparse.
const SIZE: &str = "8G";

/// An installed package.
struct Package {
    /// With its architecture, where dpkg wants to have that.
    full: String,
    version: String,
    /// Groups of alternatives.
    depends: Vec<Vec<String>>,
}

/// Makes the image, or takes the one that was made of the same packages.
///
/// # Errors
/// A package that is not installed, by name.
pub(super) fn image(dir: &Path) -> Result<PathBuf> {
    let (installed, provided) = installed()?;
    let mut chosen = BTreeSet::new();
    for name in WANTED {
        ensure!(installed.contains_key(name), "the package {name} is missing: apt-get install {name}");
        choose(name, &installed, &provided, &mut chosen);
    }
    let mut hasher = DefaultHasher::new();
    (WANTED, LEFT_OUT, SETTINGS, SIZE).hash(&mut hasher);
    for name in &chosen {
        (name, &installed[name].version).hash(&mut hasher);
    }
    let image = dir.join(format!("root-{:016x}", hasher.finish()));
    if image.exists() {
        return Ok(image);
    }
    println!("v2: packing {} packages of this host", chosen.len());
    for old in fs::read_dir(dir)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("root-")) {
        fs::remove_file(old.path())?;
    }
    let stage = dir.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fs::create_dir(&stage)?;
    stage_files(&stage, &files(&chosen, &installed)?)?;
    let half = dir.join("image.half");
    let _ = fs::remove_file(&half);
    run(Command::new("mkfs.ext4")
        .env("PATH", PATH)
        .args(["-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
        .args([&stage, &half])
        .arg(SIZE))?;
    fs::remove_dir_all(&stage)?;
    fs::rename(&half, &image)?;
    Ok(image)
}

/// All installed packages by name, and who provides a name that no package has.
fn installed() -> Result<(BTreeMap<String, Package>, BTreeMap<String, String>)> {
    let format =
        "${Package}\t${db:Status-Abbrev}\t${binary:Package}\t${Version}\t${Pre-Depends}, ${Depends}\t${Provides}\n";
    let list = output(Command::new("dpkg-query").args(["-W", "-f", format])).context("this is no Debian or Ubuntu")?;
    let (mut installed, mut provided) = (BTreeMap::new(), BTreeMap::new());
    let names = |text: &str, between: char| -> Vec<String> {
        let name = |part: &str| part.trim().split([' ', ':', '(']).next().unwrap_or_default().to_owned();
        text.split(between).map(name).filter(|name| !name.is_empty()).collect()
    };
    for line in String::from_utf8(list)?.lines() {
        let [name, status, full, version, depends, provides] = line.split('\t').collect::<Vec<_>>()[..] else {
            continue;
        };
        // Of several architectures the first is the machine's own.
        if !status.starts_with("ii") || installed.contains_key(name) {
            continue;
        }
        for provides in names(provides, ',') {
            provided.insert(provides, name.to_owned());
        }
        let depends = depends.split(',').map(|group| names(group, '|')).collect();
        let package = Package { full: full.to_owned(), version: version.to_owned(), depends };
        installed.insert(name.to_owned(), package);
    }
    Ok((installed, provided))
}

/// Adds a package and what it depends on.
fn choose(
    name: &str,
    installed: &BTreeMap<String, Package>,
    provided: &BTreeMap<String, String>,
    chosen: &mut BTreeSet<String>,
) {
    if !chosen.insert(name.to_owned()) {
        return;
    }
    for group in &installed[name].depends {
        let there = |name: &&String| installed.contains_key(*name);
        let found = group.iter().find(there).or_else(|| group.iter().find_map(|name| provided.get(name)));
        // What dpkg let be installed has all that it needs.
        if let Some(found) = found {
            choose(found, installed, provided, chosen);
        }
    }
}

/// The files of packages, relative to the root, by the names that they really have.
fn files(chosen: &BTreeSet<String>, installed: &BTreeMap<String, Package>) -> Result<BTreeSet<PathBuf>> {
    let names = chosen.iter().map(|name| &installed[name].full);
    let list = output(Command::new("dpkg-query").arg("-L").args(names))?;
    let mut found = BTreeSet::new();
    for line in String::from_utf8(list)?.lines().filter(|line| line.starts_with('/')) {
        let path = Path::new(line);
        let Some((parent, name)) = path.parent().zip(path.file_name()) else { continue };
        // A merged system has `/bin/sh` in `/usr/bin`.
        let Ok(path) = parent.canonicalize().map(|parent| parent.join(name)) else { continue };
        let is_file = path.symlink_metadata().is_ok_and(|meta| !meta.is_dir());
        if !is_file || !path.starts_with("/usr") || LEFT_OUT.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        // Python's compiled files are no package's, and without them every start compiles anew.
        if path.extension().is_some_and(|extension| extension == "py") {
            let begin = format!("{}.", path.file_stem().unwrap_or_default().to_string_lossy());
            let cache = fs::read_dir(path.with_file_name("__pycache__")).into_iter().flatten().flatten();
            let compiled = cache.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin));
            found.extend(compiled.map(|entry| relative(&entry.path())));
        }
        found.insert(relative(&path));
    }
    // Names such as `awk`, which are links by way of `/etc/alternatives`.
    for dir in ["/usr/bin", "/usr/sbin"] {
        for entry in fs::read_dir(dir)?.flatten() {
            let by_choice = fs::read_link(entry.path()).is_ok_and(|target| target.starts_with("/etc/alternatives"));
            let target = entry.path().canonicalize();
            if by_choice && target.is_ok_and(|target| found.contains(&relative(&target))) {
                found.insert(relative(&entry.path()));
            }
        }
    }
    Ok(found)
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn stage_files(stage: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    for (folder, mode) in FOLDERS {
        fs::create_dir_all(stage.join(folder))?;
        fs::set_permissions(stage.join(folder), fs::Permissions::from_mode(mode))?;
    }
    for name in LINKS {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            symlink(target, stage.join(name))?;
        }
    }
    let mut pack = Command::new("tar")
        .args(["-c", "-C", "/", "--null", "--files-from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start tar: apt-get install tar")?;
    let mut unpack = Command::new("tar");
    unpack.args(["-x", "-p", "-C"]).arg(stage).stdin(pack.stdout.take().context("a pipe was asked for")?);
    let mut unpacking = unpack.spawn()?;
    let mut names = pack.stdin.take().context("a pipe was asked for")?;
    for name in files.iter().map(PathBuf::as_path).chain(SETTINGS.map(Path::new)) {
        names.write_all(name.as_os_str().as_encoded_bytes())?;
        names.write_all(b"\0")?;
    }
    drop(names);
    ensure!(pack.wait()?.success() && unpacking.wait()?.success(), "tar did not copy all files");
    Ok(())
}
