//! What the machine's owner allows. Judged here, on the owner's machine, whatever the server says.

use std::{ffi::OsString, path::PathBuf};

use rf_types::{Code, Fault, FileOp};
use rf_wire::machine::{FACT_MAX, Facts, Level};

use crate::linux::{Host, confine, resolve::Root};

/// The owner's word: level, workspace, and what commands may read beside it.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) root: Root,
    level: Level,
    /// Temporary files of commands at the level `workspace`.
    pub(crate) private: PathBuf,
    /// Directories that commands at the level `workspace` may read and run.
    pub(crate) readable: Vec<PathBuf>,
    host: Host,
}

impl Owner {
    /// Opens the workspace.
    ///
    /// # Errors
    /// As open(2) of the workspace.
    pub(crate) fn new(
        workspace: &std::path::Path,
        level: Level,
        private: PathBuf,
        readable: Vec<PathBuf>,
    ) -> std::io::Result<Self> {
        Ok(Self { root: Root::open(workspace, level)?, level, private, readable, host: Host::probe() })
    }

    /// The level.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// What the server is told of the machine.
    pub(crate) fn facts(&self) -> Facts {
        let clean = |text: &str| {
            let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
            while text.len() > FACT_MAX {
                text.pop();
            }
            text
        };
        Facts {
            hostname: clean(&self.host.hostname),
            os: std::env::consts::OS.to_owned(),
            kernel: clean(&self.host.kernel),
            arch: clean(&self.host.arch),
            home: clean(&self.host.home.to_string_lossy()),
            username: clean(&self.host.username),
            workspace: clean(&self.root.path().to_string_lossy()),
            level: self.level,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            landlock_abi: confine::landlock_abi(),
            not_held: if self.level == Level::Workspace { confine::not_held() } else { Vec::new() },
        }
    }

    /// The small environment of every command; nothing of the environment in which `ringfence join` runs but the
    /// search path at full level and the language.
    pub(crate) fn environment(&self, terminal: bool) -> Vec<(&'static str, OsString)> {
        const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("USER", self.host.username.clone().into()),
            ("LOGNAME", self.host.username.clone().into()),
            ("SHELL", self.host.shell.clone().into()),
        ];
        if self.level == Level::Full {
            environment.push(("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into())));
            environment.push(("HOME", self.host.home.clone().into()));
        } else {
            // The home is out of reach, so programs keep their files in the workspace.
            environment.push(("PATH", PATH.into()));
            environment.push(("HOME", self.root.path().into()));
            environment.push(("TMPDIR", self.private.clone().into()));
        }
        environment.push(("LANG", std::env::var_os("LANG").unwrap_or_else(|| "C.UTF-8".into())));
        if terminal {
            environment.push(("TERM", "xterm-256color".into()));
        }
        environment
    }

    /// A refusal in the owner's name.
    pub(crate) fn forbids(&self, what: &str) -> Fault {
        Fault::new(
            Code::OwnerForbids,
            format!("this machine {what}: its owner set the level `{}`", self.level.name()),
            "only the owner can change it, with `ringfence join --level`",
        )
    }

    /// Commands.
    pub(crate) fn allows_exec(&self) -> Result<(), Fault> {
        match self.level {
            Level::ReadOnly => Err(self.forbids("runs no commands")),
            Level::Workspace | Level::Full => Ok(()),
        }
    }

    /// A file operation, by its kind; where its files may be is for [`Root`].
    pub(crate) fn allows_file(&self, op: &FileOp) -> Result<(), Fault> {
        match (op, self.level) {
            (
                FileOp::Read { .. }
                | FileOp::List { .. }
                | FileOp::Stat { .. }
                | FileOp::TarOut { .. }
                | FileOp::Watch { .. },
                _,
            )
            | (_, Level::Workspace | Level::Full) => Ok(()),
            (
                FileOp::Write { .. }
                | FileOp::MakeDir { .. }
                | FileOp::Move { .. }
                | FileOp::Remove { .. }
                | FileOp::Chmod { .. }
                | FileOp::TarIn { .. },
                Level::ReadOnly,
            ) => Err(self.forbids("writes no files")),
        }
    }
}
