//! The program of process 1, as a file in memory that every sandbox runs.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};

use crate::launch::{INIT, LaunchError, Step as _};

/// A file with the program, sealed, so that no process that runs it can change it for the others (CVE-2019-5736).
pub(crate) fn sealed() -> Result<OwnedFd, LaunchError> {
    let file = empty().step("make a file for init")?;
    let mut rest = INIT;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).step("write init")?;
        rest = &rest[written..];
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).step("seal init")?;
    Ok(file)
}

/// A file in memory that can be sealed and run.
fn empty() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Where `vm.memfd_noexec` is set one can be run only if that was said (memfd_create(2); since Linux 6.3).
    match rustix::fs::memfd_create(c"rf-init", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"rf-init", flags),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    fn can_run(file: &OwnedFd) -> bool {
        rustix::fs::fstat(file).unwrap().st_mode & 0o111 != 0
    }

    #[test]
    fn who_has_the_program_open_cannot_change_it() {
        let file = sealed().unwrap();
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size as usize, INIT.len());
        assert_eq!(rustix::io::pwrite(&file, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&file, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
        // Control: it is the seals that forbid it.
        assert_eq!(rustix::io::pwrite(empty().unwrap(), b"x", 0), Ok(1));
    }

    #[test]
    fn init_can_be_run_where_files_in_memory_cannot_unless_that_was_said() {
        const SETTING: &str = "/proc/sys/vm/memfd_noexec";
        const INSIDE: &str = "RINGFENCE_TEST_MEMFD_NOEXEC";
        assert!(can_run(&sealed().unwrap()));
        if std::env::var_os(INSIDE).is_some() {
            let other = rustix::fs::memfd_create(c"other", MemfdFlags::CLOEXEC).unwrap();
            assert!(!can_run(&other), "the control: nobody said so of this one");
            return;
        }
        if !Path::new(SETTING).exists() {
            println!("this kernel has no {SETTING}");
            return;
        }
        assert!(rustix::process::geteuid().is_root(), "run this as root, which may make a pid namespace");
        // The setting is a pid namespace's own.
        let name = std::thread::current().name().unwrap().to_owned();
        let script = format!("echo 1 > {SETTING}; exec \"$@\"");
        let run = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &name])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && said.contains("1 passed"), "{said}");
    }
}
