//! The attacks, as data.

mod calls;
mod identity;
mod mounts;
mod proc;
mod processes;
mod secrets;
mod sockets;

pub(crate) use calls::CALLS;
pub(crate) use identity::IDENTITY;
pub(crate) use mounts::MOUNTS;
pub(crate) use proc::PROC;
pub(crate) use processes::PROCESSES;
pub(crate) use secrets::SECRETS;
pub(crate) use sockets::SOCKETS;

/// One attack.
pub(crate) struct Attack {
    /// What it is after, in words.
    pub name: &'static str,
    /// The probe and its arguments; `{...}` is filled in by the field.
    pub probe: &'static [&'static str],
    /// The refusals that count: an errno's name, or `SIGNAL 31`.
    pub refused: &'static [&'static str],
    /// How it is shown that the probe can succeed.
    pub control: Control,
    /// As whom it runs inside.
    pub who: Who,
}

/// Where the probe works.
#[derive(Clone, Copy)]
pub(crate) enum Control {
    /// On the host, as who runs the tests (root).
    Host,
    /// On the host, in fresh namespaces that unshare(1) makes with these flags.
    Private(&'static str),
    /// On the host, after these shell commands.
    Prepared(&'static str),
    /// On the host, aimed at what is on the host what the attack is after inside.
    HostAt(&'static [&'static str]),
    /// On the host; but where that answers one of `lacks`, its kernel has not got the thing at all (or has root no right
    /// to it), and then, said aloud, inside: aimed at something that is the sandbox's own, so that the probe is known to
    /// work.
    HostOr {
        /// The refusals by which a host says that it has no such thing.
        lacks: &'static [&'static str],
        /// The probe and its arguments then.
        inside: &'static [&'static str],
    },
    /// Inside the same sandbox, aimed at something that is the sandbox's own: where the layer cannot be taken away.
    Inside(&'static [&'static str]),
}

/// Whose attack it is.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Who {
    /// The sandbox's default user.
    User,
    /// `root` inside.
    Root,
}

/// An attack of the default user.
pub(crate) const fn user(
    name: &'static str,
    probe: &'static [&'static str],
    refused: &'static [&'static str],
    control: Control,
) -> Attack {
    Attack { name, probe, refused, control, who: Who::User }
}

/// An attack of `root` inside.
pub(crate) const fn root(
    name: &'static str,
    probe: &'static [&'static str],
    refused: &'static [&'static str],
    control: Control,
) -> Attack {
    Attack { name, probe, refused, control, who: Who::Root }
}

/// How many there are.
pub(crate) fn count() -> usize {
    [PROCESSES, PROC, MOUNTS, IDENTITY, CALLS, SOCKETS, SECRETS].iter().map(|list| list.len()).sum()
}
