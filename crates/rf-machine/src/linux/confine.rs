//! What holds a command at the level `workspace`: Landlock rules and a small system call filter.
//!
//! | reach | held by |
//! |---|---|
//! | files outside: read, written, run, made, removed, renamed | Landlock |
//! | signals, ptrace, abstract sockets of processes outside | Landlock (signals and sockets from ABI 6) |
//! | sockets with a path (session bus, Docker, agents of keys), which Landlock does not cover | the filter: no `AF_UNIX` by socket(2) |
//! | io_uring (another way to a socket), the owner's keyrings | the filter |
//! | set-id programs; root's capabilities, when root joined | `no_new_privs`, none permitted |
//! | **not held:** the network; mode, owner, times and extended attributes of files outside whose name is known (Landlock has no right for them); memory, tasks, CPU; System V objects, limits and priorities of the owner's other programs | nothing |

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rf_sys::{
    landlock::{Ruleset, abi, fs, scope},
    seccomp::Instruction,
};
use rf_types::{Code, Fault};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

/// The lowest Landlock ABI that holds the level: before 3 a file outside could be truncated.
pub(crate) const ABI_MIN: u32 = 3;

/// Directories of programs and their data, read and run.
const SYSTEM: &[&str] =
    &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/snap", "/gnu/store"];

/// What is read and not run: the kernel's tables, and the parts of /etc that are the same for everybody and that
/// programs look for. No host keys, no passwords, no accounts of mail or backup.
const READ: &[&str] = &[
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage",
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/bash_completion.d",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/debian_version",
    "/etc/default/locale",
    "/etc/environment",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/java-11-openjdk",
    "/etc/java-17-openjdk",
    "/etc/java-21-openjdk",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nanorc",
    "/etc/networks",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/perl",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/profile",
    "/etc/profile.d",
    "/etc/protocols",
    "/etc/python3",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/shells",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
    "/etc/vim",
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/systemd/resolve/resolv.conf",
];

/// Devices without content of the machine's.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// The rights on the workspace: all but making devices and driving them.
fn workspace_rights(abi: u32) -> u64 {
    fs::all(abi) & !(fs::MAKE_CHAR | fs::MAKE_BLOCK | fs::IOCTL_DEV)
}

/// The kernel's Landlock ABI, as the machine's facts tell it.
pub(crate) fn landlock_abi() -> u32 {
    abi()
}

/// What the level `workspace` does not hold here, for people.
pub(crate) fn not_held() -> Vec<String> {
    let mut missing = vec![
        "the network is as open to commands as to the owner".to_owned(),
        "mode, owner and times of files outside of the workspace can be changed by whoever knows their name".to_owned(),
        "command lines of the owner's other programs can be read in /proc".to_owned(),
        "memory, tasks and CPU have no limit of their own".to_owned(),
        "the owner's other programs share their System V queues and memory, and can be given other limits and priorities"
            .to_owned(),
    ];
    if abi() < 6 {
        missing.push("signals reach the owner's other programs (Landlock ABI 6 would hold them)".to_owned());
    }
    if abi() < 5 {
        missing.push("device controls of the allowed devices (Landlock ABI 5 would hold them)".to_owned());
    }
    missing
}

/// The rules for one command: `workspace` and `private` (its temporary files) to work in, `readable` to read and run,
/// `terminal` its own.
///
/// # Errors
/// `layer_unavailable` when the kernel has no Landlock, or one that is too old: then nothing is run at this level.
pub(crate) fn rules(
    workspace: &Path,
    private: &Path,
    readable: &[PathBuf],
    terminal: Option<&Path>,
) -> Result<Ruleset, Fault> {
    let abi = abi();
    if abi < ABI_MIN {
        return Err(Fault::new(
            Code::LayerUnavailable,
            format!(
                "this machine's kernel cannot hold commands to the workspace (Landlock ABI {abi}, {ABI_MIN} needed)"
            ),
            "the machine's owner can boot with Landlock (Linux 6.2, `lsm=landlock,...`), or join with `--level full`",
        ));
    }
    let scoped = if abi >= 6 { scope::ABSTRACT_UNIX_SOCKET | scope::SIGNAL } else { 0 };
    let failed = |errno: Errno| {
        let message = format!("this machine cannot hold commands to the workspace: {errno}");
        Fault::new(Code::LayerUnavailable, message, "")
    };
    let rules = Ruleset::new(fs::all(abi), 0, scoped).map_err(failed)?;
    let read = fs::READ_FILE | fs::READ_DIR;
    let device = fs::READ_FILE | fs::WRITE_FILE | fs::TRUNCATE | if abi >= 5 { fs::IOCTL_DEV } else { 0 };
    for path in SYSTEM.iter().map(Path::new).chain(readable.iter().map(PathBuf::as_path)) {
        allow(&rules, path, read | fs::EXECUTE, abi, true).map_err(failed)?;
    }
    for path in READ {
        allow(&rules, Path::new(path), read, abi, true).map_err(failed)?;
    }
    for path in DEVICES.iter().map(Path::new).chain(terminal) {
        allow(&rules, path, device, abi, true).map_err(failed)?;
    }
    allow(&rules, workspace, workspace_rights(abi), abi, false).map_err(failed)?;
    allow(&rules, private, workspace_rights(abi), abi, false).map_err(failed)?;
    Ok(rules)
}

/// Adds a rule; a path that is not there may be `optional`: nothing is allowed then.
fn allow(rules: &Ruleset, path: &Path, rights: u64, abi: u32, optional: bool) -> Result<(), Errno> {
    let file = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) if optional => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let stat = rustix::fs::fstat(&file)?;
    let directory = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    // Rights on a directory's entries mean nothing to a file, and the kernel refuses them.
    let of_files = fs::EXECUTE | fs::WRITE_FILE | fs::READ_FILE | fs::TRUNCATE | fs::IOCTL_DEV;
    let rights = rights & fs::all(abi) & if directory { u64::MAX } else { of_files };
    rules.allow_beneath(file.as_fd(), rights)
}

/// The system call filter; see the table above. Classic BPF over `struct seccomp_data`, seccomp(2).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn filter() -> Vec<Instruction> {
    // linux/audit.h; linux/seccomp.h; asm/unistd.h. The new calls have one number everywhere.
    #[cfg(target_arch = "x86_64")]
    const ARCH: (u32, u32, u32, [u32; 3]) = (0xC000_003E, 41, 53, [248, 249, 250]);
    #[cfg(target_arch = "aarch64")]
    const ARCH: (u32, u32, u32, [u32; 3]) = (0xC000_00B7, 198, 199, [217, 218, 219]);
    const IO_URING_SETUP: u32 = 425;
    const X32: u32 = 0x4000_0000;
    const ALLOW: u32 = 0x7FFF_0000;
    const KILL: u32 = 0x8000_0000;
    const ERRNO: u32 = 0x0005_0000;
    const ENOSYS: u32 = 38;
    const EACCES: u32 = 13;
    const AF_UNIX: u32 = 1;
    const SOCK_DGRAM: u32 = 2;
    const SOCK_RAW: u32 = 3;
    let (arch, socket, socketpair, keys) = ARCH;
    let load = |at| Instruction { code: 0x20, jt: 0, jf: 0, k: at };
    let equal = |k, jt, jf| Instruction { code: 0x15, jt, jf, k };
    let back = |k| Instruction { code: 0x06, jt: 0, jf: 0, k };
    vec![
        load(4),
        equal(arch, 1, 0),
        // Another architecture's entry has other numbers: it would walk past the rest.
        back(KILL),
        load(0),
        Instruction { code: 0x35, jt: 0, jf: 1, k: X32 },
        back(ERRNO | ENOSYS),
        equal(IO_URING_SETUP, 3, 0),
        equal(keys[0], 2, 0),
        equal(keys[1], 1, 0),
        equal(keys[2], 0, 1),
        back(ERRNO | ENOSYS),
        equal(socket, 0, 3),
        load(16),
        equal(AF_UNIX, 0, 7),
        back(ERRNO | EACCES),
        // A pair of datagram sockets can be connected anew, to a path. A raw one is made a datagram one (unix_create in
        // net/unix/af_unix.c).
        equal(socketpair, 0, 5),
        load(24),
        Instruction { code: 0x54, jt: 0, jf: 0, k: 0xF },
        equal(SOCK_DGRAM, 1, 0),
        equal(SOCK_RAW, 0, 1),
        back(ERRNO | EACCES),
        back(ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would: only the operations that it has.
    fn run(arch: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let data = |at: u32| match at {
            0 => number,
            4 => arch,
            16 => arguments[0],
            24 => arguments[1],
            other => panic!("loads {other}"),
        };
        let program = filter();
        let (mut at, mut word) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                0x20 => word = data(k),
                0x54 => word &= k,
                0x15 => at += usize::from(if word == k { jt } else { jf }),
                0x35 => at += usize::from(if word >= k { jt } else { jf }),
                0x06 => return k,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_filter_refuses_what_the_table_says_and_nothing_else() {
        const NATIVE: u32 = 0xC000_003E;
        const ALLOW: u32 = 0x7FFF_0000;
        let cases = [
            (NATIVE, 41, [1, 1], 0x0005_000D),
            (NATIVE, 41, [1, 0x8_0001], 0x0005_000D),
            (NATIVE, 41, [2, 1], ALLOW),
            (NATIVE, 41, [10, 2], ALLOW),
            (NATIVE, 53, [1, 1], ALLOW),
            (NATIVE, 53, [1, 2], 0x0005_000D),
            (NATIVE, 53, [1, 0x8_0802], 0x0005_000D),
            (NATIVE, 53, [1, 3], 0x0005_000D),
            (NATIVE, 53, [1, 0x8_0003], 0x0005_000D),
            (NATIVE, 53, [1, 5], ALLOW),
            (NATIVE, 425, [0, 0], 0x0005_0026),
            (NATIVE, 248, [0, 0], 0x0005_0026),
            (NATIVE, 249, [0, 0], 0x0005_0026),
            (NATIVE, 250, [0, 0], 0x0005_0026),
            (NATIVE, 0, [0, 0], ALLOW),
            (NATIVE, 59, [1, 2], ALLOW),
            (NATIVE, 424, [0, 0], ALLOW),
            (NATIVE, 0x4000_0029, [1, 1], 0x0005_0026),
            (0x4000_0003, 359, [1, 1], 0x8000_0000),
        ];
        for (arch, number, arguments, expected) in cases {
            assert_eq!(run(arch, number, arguments), expected, "{arch:#x} {number} {arguments:?}");
        }
    }
}
