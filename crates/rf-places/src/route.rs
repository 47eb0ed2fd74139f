//! The choice of a place for one call. Pure.

use rf_types::{Code, Fault, Preference};

/// How the user's machine is when the call begins.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MachineState {
    /// No machine was ever joined, or it was removed.
    NotJoined,
    /// Joined, but not connected now.
    Away,
    /// Connected.
    Here,
}

/// How the user's own sandbox is when the call begins.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SandboxState {
    /// There is none yet: it is made at first use.
    NotMade,
    /// It lives.
    Alive,
    /// None can be had: the warden is not there.
    Unavailable,
}

/// Where the call goes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Route {
    /// To the machine.
    Machine,
    /// To the sandbox that lives.
    Sandbox,
    /// To a sandbox that is to be made.
    NewSandbox,
}

/// Why there is no place for a call.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum NoPlace {
    /// A machine is wanted and none was joined.
    NoMachine,
    /// A machine is wanted and it is away.
    MachineAway,
    /// A sandbox is wanted and none can be had.
    NoSandbox,
}

/// Chooses. The call's own choice goes before the user's preference; a machine that is away is never replaced by a
/// sandbox unless that was asked for by name (`machine-else-sandbox`).
///
/// # Errors
/// Why there is no place; there is no third.
pub fn route(
    preference: Preference,
    choice: Option<Preference>,
    machine: MachineState,
    sandbox: SandboxState,
) -> Result<Route, NoPlace> {
    let in_sandbox = match sandbox {
        SandboxState::Alive => Ok(Route::Sandbox),
        SandboxState::NotMade => Ok(Route::NewSandbox),
        SandboxState::Unavailable => Err(NoPlace::NoSandbox),
    };
    match (choice.unwrap_or(preference), machine) {
        (Preference::Machine | Preference::MachineElseSandbox, MachineState::Here) => Ok(Route::Machine),
        (Preference::Machine, MachineState::NotJoined) => Err(NoPlace::NoMachine),
        (Preference::Machine, MachineState::Away) => Err(NoPlace::MachineAway),
        (Preference::MachineElseSandbox, MachineState::NotJoined | MachineState::Away)
        | (Preference::Sandbox, MachineState::NotJoined | MachineState::Away | MachineState::Here) => in_sandbox,
    }
}

impl From<NoPlace> for Fault {
    fn from(why: NoPlace) -> Self {
        let (message, hint) = match why {
            NoPlace::NoMachine => (
                "no machine is joined",
                "join one with `ringfence join`, or choose `sandbox` or `machine-else-sandbox`",
            ),
            NoPlace::MachineAway => (
                "the machine is not connected",
                "start `ringfence join` on it again, or choose `sandbox` or `machine-else-sandbox`",
            ),
            NoPlace::NoSandbox => ("no sandbox can be had now", "the warden is restarting: try again in a few seconds"),
        };
        Self::new(Code::NoPlace, message, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table: preference in force, machine, sandbox, answer.
    #[test]
    fn the_table_of_routes() {
        use MachineState::{Away, Here, NotJoined};
        use Preference::{Machine, MachineElseSandbox, Sandbox};
        use SandboxState::{Alive, NotMade, Unavailable};
        let table = [
            (Machine, NotJoined, NotMade, Err(NoPlace::NoMachine)),
            (Machine, NotJoined, Alive, Err(NoPlace::NoMachine)),
            (Machine, NotJoined, Unavailable, Err(NoPlace::NoMachine)),
            (Machine, Away, NotMade, Err(NoPlace::MachineAway)),
            (Machine, Away, Alive, Err(NoPlace::MachineAway)),
            (Machine, Away, Unavailable, Err(NoPlace::MachineAway)),
            (Machine, Here, NotMade, Ok(Route::Machine)),
            (Machine, Here, Alive, Ok(Route::Machine)),
            (Machine, Here, Unavailable, Ok(Route::Machine)),
            (Sandbox, NotJoined, NotMade, Ok(Route::NewSandbox)),
            (Sandbox, NotJoined, Alive, Ok(Route::Sandbox)),
            (Sandbox, NotJoined, Unavailable, Err(NoPlace::NoSandbox)),
            (Sandbox, Away, NotMade, Ok(Route::NewSandbox)),
            (Sandbox, Away, Alive, Ok(Route::Sandbox)),
            (Sandbox, Away, Unavailable, Err(NoPlace::NoSandbox)),
            (Sandbox, Here, NotMade, Ok(Route::NewSandbox)),
            (Sandbox, Here, Alive, Ok(Route::Sandbox)),
            (Sandbox, Here, Unavailable, Err(NoPlace::NoSandbox)),
            (MachineElseSandbox, NotJoined, NotMade, Ok(Route::NewSandbox)),
            (MachineElseSandbox, NotJoined, Alive, Ok(Route::Sandbox)),
            (MachineElseSandbox, NotJoined, Unavailable, Err(NoPlace::NoSandbox)),
            (MachineElseSandbox, Away, NotMade, Ok(Route::NewSandbox)),
            (MachineElseSandbox, Away, Alive, Ok(Route::Sandbox)),
            (MachineElseSandbox, Away, Unavailable, Err(NoPlace::NoSandbox)),
            (MachineElseSandbox, Here, NotMade, Ok(Route::Machine)),
            (MachineElseSandbox, Here, Alive, Ok(Route::Machine)),
            (MachineElseSandbox, Here, Unavailable, Ok(Route::Machine)),
        ];
        for (wanted, machine, sandbox, answer) in table {
            assert_eq!(route(wanted, None, machine, sandbox), answer, "{wanted:?} {machine:?} {sandbox:?}");
            // The call's choice goes before whatever the user prefers.
            for preference in [Machine, Sandbox, MachineElseSandbox] {
                assert_eq!(route(preference, Some(wanted), machine, sandbox), answer, "{preference:?} {wanted:?}");
            }
        }
    }
}
