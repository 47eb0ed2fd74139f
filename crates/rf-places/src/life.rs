//! The life of a sandbox as the server sees it, stepped by one pure function.
//!
//! ```text
//!             Made                DestroyAsked, LeasePassed, InitBroken
//!  Starting ────────▶ Running ───────────────────────────────────────────▶ Stopping
//!     │                  │ WardenSaysGone, WardenLost                          │ Destroyed, WardenSaysGone,
//!     │ MakeFailed,      ▼                                                     ▼ WardenLost
//!     └─────────────▶  Gone  ◀─────────────────────────────────────────────────┘
//!       WardenLost
//! ```

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// The warden was told to make it.
    Starting,
    /// It serves.
    Running,
    /// The warden was told to destroy it; nothing new is begun in it.
    Stopping,
    /// Nothing of it is left.
    Gone,
}

/// What happens to a sandbox.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Event {
    /// The warden made it.
    Made,
    /// The warden could not make it.
    MakeFailed,
    /// Its lease ended by our clock and the warden said nothing.
    LeasePassed,
    /// Its user, or the operator, asked to destroy it.
    DestroyAsked,
    /// Its init broke the rules or does not answer.
    InitBroken,
    /// The warden says it ended by itself.
    WardenSaysGone,
    /// The warden went away, and its sandboxes with it.
    WardenLost,
    /// The warden destroyed it as told.
    Destroyed,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Effect {
    /// Let calls in.
    Serve,
    /// Tell the warden to destroy it; answer what runs in it with `place_lost`.
    Destroy,
    /// Answer what runs in it with `place_lost` and end its row.
    End,
    /// End its row; nothing runs in it.
    EndRow,
    /// Nothing.
    Nothing,
}

/// An event that cannot happen in a phase: a mistake in our own code.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{event:?} cannot happen to a sandbox that is {phase:?}")]
pub struct Refused {
    /// Where it was.
    pub phase: Phase,
    /// What was said to happen.
    pub event: Event,
}

/// One step of a sandbox's life. Decides only; the caller carries out the effect.
///
/// # Errors
/// When the event cannot happen in this phase.
pub fn step(phase: Phase, event: Event) -> Result<(Phase, Effect), Refused> {
    use {Event::*, Phase::*};
    match (phase, event) {
        (Starting, Made) => Ok((Running, Effect::Serve)),
        (Starting, MakeFailed | WardenLost) => Ok((Gone, Effect::Nothing)),
        // The user cannot name it yet, and its lease begins when it is made; but the server itself may give up on it
        // (its row cannot be written), and its init may break at once.
        (Starting, DestroyAsked | InitBroken) => Ok((Stopping, Effect::Destroy)),
        (Running, DestroyAsked | LeasePassed | InitBroken) => Ok((Stopping, Effect::Destroy)),
        (Running, WardenSaysGone | WardenLost) => Ok((Gone, Effect::End)),
        (Stopping, Destroyed | WardenSaysGone | WardenLost) => Ok((Gone, Effect::EndRow)),
        // Late news about a sandbox already on its way out is normal.
        (Stopping, DestroyAsked | LeasePassed | InitBroken) => Ok((Stopping, Effect::Nothing)),
        (Gone, DestroyAsked | LeasePassed | InitBroken | WardenSaysGone | WardenLost | Destroyed) => {
            Ok((Gone, Effect::Nothing))
        }
        (Starting, LeasePassed | WardenSaysGone | Destroyed)
        | (Running, Made | MakeFailed | Destroyed)
        | (Stopping | Gone, Made | MakeFailed) => Err(Refused { phase, event }),
    }
}
