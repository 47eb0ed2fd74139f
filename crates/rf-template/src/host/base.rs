//! The template `base`: the `host` template, and what programs written for E2B's sandboxes find there beyond it.
//!
//! It is the same tree with one directory laid over it ([`write_additions`]), and it is to be had only where the host has
//! the programs that such sandboxes promise ([`missing`]): a `base` without git would fail late and strangely.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

/// What must be there: the program, and Debian's package that has it. `sudo` is ours in every sandbox.
pub const NEEDS: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("cat", "coreutils"),
    ("python3", "python3"),
    ("curl", "curl"),
    ("git", "git"),
    ("ps", "procps"),
    ("ss", "iproute2"),
];

/// Where programs are looked for: those directories of a sandbox's search path that come from the host, in its order.
const PATH: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/// The packages that the host with this root lacks for `base`; empty when it can be had.
#[must_use]
pub fn missing(host: &Path) -> Vec<&'static str> {
    NEEDS.iter().filter(|(program, _)| find(host, program).is_none()).map(|&(_, package)| package).collect()
}

/// How to get them.
#[must_use]
pub fn cure(missing: &[&str]) -> String {
    format!("apt-get install {}", missing.join(" "))
}

/// Makes the directory that `base` lays over the host's tree, anew: `python`, which is the host's `python3`.
///
/// Nothing is in it where there is no `python3`; `base` is not to be had then.
///
/// # Errors
/// Whatever writing `dir` gives.
pub fn write_additions(host: &Path, dir: &Path) -> io::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let bin = dir.join("usr/local/bin");
    DirBuilder::new().recursive(true).mode(0o755).create(&bin)?;
    if let Some(python) = find(host, "python3") {
        symlink(Path::new("/").join(python), bin.join("python"))?;
    }
    for path in [dir, &dir.join("usr"), &dir.join("usr/local"), &bin] {
        // Whatever the builder's umask is.
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Where a program is, relative to the root.
fn find(host: &Path, program: &str) -> Option<PathBuf> {
    PATH.iter().map(|dir| Path::new(dir).join(program)).find(|path| {
        let meta = host.join(path).metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o005 == 0o005)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(host: &Path, path: &str, mode: u32) {
        let path = host.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_by_package() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(missing(dir.path()).len(), NEEDS.len());
        for (name, _) in NEEDS.iter().filter(|(name, _)| !["git", "ss"].contains(name)) {
            program(dir.path(), &format!("usr/bin/{name}"), 0o755);
        }
        // One that only its owner may run is of no use to a sandbox.
        program(dir.path(), "usr/bin/git", 0o700);
        assert_eq!(missing(dir.path()), ["git", "iproute2"]);
        assert_eq!(cure(&missing(dir.path())), "apt-get install git iproute2");
        program(dir.path(), "usr/local/bin/git", 0o755);
        program(dir.path(), "bin/ss", 0o755);
        assert!(missing(dir.path()).is_empty());
    }

    #[test]
    fn python_is_the_python3_that_the_search_path_has_first() {
        let dir = tempfile::tempdir().unwrap();
        let (host, base) = (dir.path().join("host"), dir.path().join("base"));
        write_additions(&host, &base).unwrap();
        assert!(base.join("usr/local/bin/python").symlink_metadata().is_err());
        program(&host, "usr/bin/python3", 0o755);
        write_additions(&host, &base).unwrap();
        assert_eq!(fs::read_link(base.join("usr/local/bin/python")).unwrap(), Path::new("/usr/bin/python3"));
        program(&host, "usr/local/bin/python3", 0o755);
        write_additions(&host, &base).unwrap();
        assert_eq!(fs::read_link(base.join("usr/local/bin/python")).unwrap(), Path::new("/usr/local/bin/python3"));
    }
}
