//! All that is Linux's own: finding files, holding and keeping commands, watching, what the machine is. A port to
//! another system replaces this module.

pub(crate) mod archive;
pub(crate) mod confine;
pub(crate) mod files;
pub(crate) mod launch;
pub(crate) mod resolve;
pub(crate) mod watch;

use std::path::PathBuf;

/// Who the machine's owner is, and what the machine is.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) hostname: String,
    pub(crate) kernel: String,
    pub(crate) arch: String,
    pub(crate) username: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: String,
}

impl Host {
    /// Asks the kernel and /etc/passwd.
    pub(crate) fn probe() -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let uid = rustix::process::getuid().as_raw().to_string();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry: Vec<&str> = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&uid.as_str()))
            .unwrap_or_default();
        let field = |at: usize| entry.get(at).copied().filter(|text| !text.is_empty());
        Self {
            hostname: text(uname.nodename()),
            kernel: text(uname.release()),
            arch: text(uname.machine()),
            username: field(0).map_or(uid.clone(), str::to_owned),
            home: std::env::var_os("HOME")
                .filter(|home| !home.is_empty())
                .map_or_else(|| PathBuf::from(field(5).unwrap_or("/")), PathBuf::from),
            shell: field(6).unwrap_or("/bin/sh").to_owned(),
        }
    }
}
