//! Debian's kernel for the machine, unpacked beside our own build, and the small first file system that it boots with.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::{output, run};

/// Debian's name for its newest kernel. Not its `cloud` one, which has no 9p.
const KERNEL: &str = "linux-image-amd64";
/// A shell and its commands in one static program.
const BUSYBOX: &str = "busybox-static";
/// What the machine's disks, our tests and sandboxes need, with all that these depend on. A kernel in which one is built
/// in has no such file; who needs it and finds none fails by name.
const MODULES: [&str; 7] = ["virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "loop", "ext4"];
/// What others look for by the name of an algorithm, so that no dependency tells of it; not in every kernel.
const LOOKED_FOR: [&str; 1] = ["crc32c_generic"];
/// Where those are.
const FOLDERS: [&str; 8] = [
    "kernel/arch/x86/crypto",
    "kernel/crypto",
    "kernel/drivers/block",
    "kernel/drivers/virtio",
    "kernel/fs",
    "kernel/lib",
    "kernel/net/9p",
    "modules.builtin",
];

/// A kernel and its first file system.
pub(super) struct Kernel {
    /// The compressed image.
    pub(super) image: PathBuf,
    /// The archive with modules and `/init`.
    pub(super) initramfs: PathBuf,
    /// Its release, for who reads the report.
    pub(super) release: String,
}

/// Gets the packages unless they are in `dir/packages`, unpacks them and packs the first file system.
///
/// `second` is the shell line that becomes process 1 on the machine's root, in which the folders `shared` of this host are.
///
/// # Errors
/// What could not be had, and how to get it.
pub(super) fn kernel(dir: &Path, shared: &[&Path], second: &str) -> Result<Kernel> {
    let packages = dir.join("packages");
    fs::create_dir_all(&packages)?;
    let kernel = match package(&packages, "linux-image-")? {
        Some(path) => path,
        None => download(&packages, &newest_kernel()?, "linux-image-")?,
    };
    let busybox = match package(&packages, BUSYBOX)? {
        Some(path) => path,
        None => download(&packages, BUSYBOX, BUSYBOX)?,
    };
    let unpacked = unpack(dir, &kernel)?;
    let image = only(&unpacked.join("boot"), "vmlinuz-")?;
    let release = image.file_name().unwrap_or_default().to_string_lossy().trim_start_matches("vmlinuz-").to_owned();
    let modules = modules(&unpacked.join("lib/modules").join(&release))?;
    let busybox = output(
        Command::new("sh")
            .args(["-c", "dpkg-deb --fsys-tarfile \"$0\" | tar -xO ./bin/busybox ./usr/bin/busybox 2> /dev/null || :"])
            .arg(&busybox),
    )?;
    ensure!(busybox.starts_with(b"\x7fELF"), "the package {BUSYBOX} has no busybox");

    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "root"] {
        archive.dir(dir);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, first_script(&modules, shared, second).as_bytes());
    for (name, bytes) in &modules {
        archive.file(&format!("modules/{name}.ko"), 0o644, bytes);
    }
    let initramfs = dir.join("initramfs");
    fs::write(&initramfs, archive.end())?;
    Ok(Kernel { image, initramfs, release })
}

/// Process 1's first half: mounts the root and goes on there. Where a command fails it says so and ends, which panics the
/// kernel, which ends the machine without a word on its channel.
fn first_script(modules: &[(String, Vec<u8>)], shared: &[&Path], second: &str) -> String {
    let load: String = modules.iter().map(|(name, _)| format!("insmod /modules/{name}.ko\n")).collect();
    // Nobody else changes what is read there, so the kernel may keep it.
    let line = |(number, path): (usize, &&Path)| {
        let options = "ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose";
        let at = format!("\"/root{}\"", path.display());
        format!("mkdir -p {at}\nmount -t 9p -o {options} {} {at}\n", share(number))
    };
    let share: String = shared.iter().enumerate().map(line).collect();
    format!(
        "#!/bin/busybox sh
set -ex
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
{load}mount -t ext4 /dev/vda /root
mount -t tmpfs -o mode=755 run /root/run
{share}mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /bin/bash -c '{second}'
"
    )
}

/// The name by which the machine knows the folder of this number.
pub(super) fn share(number: usize) -> String {
    format!("shared{number}")
}

/// The newest file of a package in `dir` whose name begins so.
fn package(dir: &Path, begin: &str) -> Result<Option<PathBuf>> {
    let names = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(begin) && name.ends_with(".deb")
    };
    Ok(names.filter(wanted).max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok()))
}

/// The package that holds the newest kernel.
fn newest_kernel() -> Result<String> {
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))
        .with_context(|| format!("apt does not know the package {KERNEL}; {}", by_hand()))?;
    let depends = String::from_utf8(depends)?;
    let found = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let found = found.with_context(|| format!("the package {KERNEL} names no kernel; {}", by_hand()))?;
    Ok(format!("linux-image-{found}"))
}

fn download(dir: &Path, name: &str, begin: &str) -> Result<PathBuf> {
    println!("v2: downloading {name}");
    run(Command::new("apt-get").args(["-qq", "download", name]).current_dir(dir))
        .with_context(|| format!("cannot download {name}; {}", by_hand()))?;
    package(dir, begin)?.with_context(|| format!("apt-get downloaded {name} to somewhere else"))
}

fn by_hand() -> String {
    format!(
        "run `apt-get update` as root, or, where this is no Debian, put the files of Debian's packages {BUSYBOX} and the \
         linux-image-…-amd64 that {KERNEL} depends on (packages.debian.org) into `v2/packages` of the target directory"
    )
}

/// Unpacks what we need of the kernel's package, once.
fn unpack(dir: &Path, package: &Path) -> Result<PathBuf> {
    let name = package.file_stem().context("a package has a name")?;
    let unpacked = dir.join("unpacked").join(name);
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let half = dir.join("unpacked.half");
    if half.exists() {
        fs::remove_dir_all(&half)?;
    }
    fs::create_dir_all(&half)?;
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb: apt-get install dpkg")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--wildcards", "--no-same-owner", "-C"]).arg(&half).arg("./boot/vmlinuz-*");
    // Newer releases have modules below /usr.
    tar.args(["--transform", "s,^./usr/lib/,./lib/,"]);
    tar.args(FOLDERS.map(|folder| format!("*/lib/modules/*/{folder}")));
    tar.stdin(archive.stdout.take().context("a pipe was asked for")?);
    let unpacking = run(&mut tar);
    let archive = archive.wait()?;
    unpacking.with_context(|| format!("cannot unpack {}", package.display()))?;
    ensure!(archive.success(), "dpkg-deb {}: {archive}", package.display());
    fs::create_dir_all(dir.join("unpacked"))?;
    fs::rename(&half, &unpacked)?;
    Ok(unpacked)
}

fn only(dir: &Path, begin: &str) -> Result<PathBuf> {
    let found = fs::read_dir(dir).with_context(|| dir.display().to_string())?.flatten().map(|entry| entry.path());
    let mut found = found.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)));
    found.next().with_context(|| format!("no {begin}… in {}", dir.display()))
}

/// The modules that we need, each after those that it depends on: names and contents.
fn modules(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                files.push((name.replace('-', "_"), entry.path()));
            }
        }
    }
    let built_in = fs::read_to_string(dir.join("modules.builtin"))?;
    let built_in: BTreeSet<String> = built_in
        .lines()
        .filter_map(|line| Some(line.rsplit('/').next()?.strip_suffix(".ko")?.replace('-', "_")))
        .collect();
    let mut found = Vec::new();
    let there = |name: &&&str| files.iter().any(|(file, _)| file == **name);
    for name in MODULES.iter().chain(LOOKED_FOR.iter().filter(there)) {
        add(name, &files, &built_in, &mut found)?;
    }
    Ok(found)
}

fn add(
    name: &str,
    files: &[(String, PathBuf)],
    built_in: &BTreeSet<String>,
    found: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if built_in.contains(name) || found.iter().any(|(there, _)| there == name) {
        return Ok(());
    }
    let Some((_, path)) = files.iter().find(|(there, _)| there == name) else {
        bail!("the kernel has no module {name}, nor is it built in");
    };
    let bytes = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => output(Command::new("xz").arg("-dc").arg(path))?,
        Some("zst") => output(Command::new("zstd").arg("-dcq").arg(path))?,
        _ => fs::read(path)?,
    };
    for needed in depends(&bytes) {
        add(&needed, files, built_in, found)?;
    }
    found.push((name.to_owned(), bytes));
    Ok(())
}

/// What a module depends on by its section `.modinfo`, which has `key=value` strings, each ended by a zero (modinfo(8)).
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// A cpio archive in the form `newc`, which the kernel unpacks (its document `initramfs buffer format`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    fn dir(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.entry(name, 0o100_000 | mode, bytes);
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.count += 1;
        let (size, name_size) = (bytes.len(), name.len() + 1);
        // Magic; then inode, mode, uid, gid, links, time, size, device, its number, name's size and a sum of zero.
        let mut head = String::from("070701");
        for field in [self.count, mode, 0, 0, 1, 0] {
            head.push_str(&format!("{field:08x}"));
        }
        head.push_str(&format!("{size:08x}{:032x}{name_size:08x}{:08x}", 0, 0));
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_what_was_put_in() {
        let mut archive = Archive::default();
        archive.dir("d");
        archive.file("d/f", 0o644, b"12345");
        let bytes = archive.end();
        assert_eq!(bytes.len() % 4, 0);
        // As the kernel reads it: the fields stand where its document has them.
        let field = |at: usize, index: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + index * 8..][..8]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let mut at = 0;
        let mut seen = Vec::new();
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_size) = (field(at, 6), field(at, 11));
            let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_size - 1]).unwrap();
            let content = (at + 110 + name_size).next_multiple_of(4);
            seen.push((name.to_owned(), field(at, 1), bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
        let seen: Vec<_> = seen.iter().map(|(name, mode, bytes)| (name.as_str(), *mode, &bytes[..])).collect();
        assert_eq!(seen, [("d", 0o40_755, &b""[..]), ("d/f", 0o100_644, b"12345"), ("TRAILER!!!", 0, b"")]);
    }

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=9pnet,net-fs\0name=9p\0"), ["9pnet", "net_fs"]);
        assert!(depends(b"\0depends=\0name=9pnet\0").is_empty());
    }
}
