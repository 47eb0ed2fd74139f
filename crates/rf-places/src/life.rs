//! The life of a sandbox as the server sees it, stepped by one pure function.
//!
//! ```text
//!             Made                DestroyAsked, LeasePassed, InitBroken
//!  Starting ────────▶ Running ───────────────────────────────────────────▶ Stopping
//!     │                  │ WardenSaysGone, WardenLost                          │ Destroyed, WardenSaysGone,
//!     │ MakeFailed,      ▼                                                     ▼ WardenLost
//!     └─────────────▶  Gone  ◀─────────────────────────────────────────────────┘
//!       WardenLost
//!
//!             PauseAsked            Frozen             SaveAsked           Saved
//!   Running ────────────▶ Pausing ────────▶ Paused ──────────────▶ Saving ───────▶ Stored
//!    ▲ ▲ └─ WardenSaysPaused ────────────────▲ │ ◀── SaveFailed ─────┘              │ │ ▲
//!    │ │        Thawed                         │ ResumeAsked                        │ │ │ RebuildFailed
//!    │ └──────────────────────── Resuming ◀────┘                                    │ │ │
//!    │          Rebuilt                                       RebuildAsked          │ │ │
//!    └─────────────────────────────────────── Rebuilding ◀──────────────────────────┘ └─┤
//!                                                                            Gone ◀─────┘ DestroyAsked
//! ```
//! In `Paused` its processes are frozen at the warden; in `Stored` nothing of it runs and its files are a snapshot of
//! its own. Whatever is frozen ends as what runs does; what is stored outlives the warden.

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// The warden was told to make it.
    Starting,
    /// It serves.
    Running,
    /// The warden was told to freeze it; nothing new is begun in it.
    Pausing,
    /// It is frozen.
    Paused,
    /// The warden was told to thaw it.
    Resuming,
    /// It is frozen and its files are being saved.
    Saving,
    /// Its files are saved, and nothing else is left of it.
    Stored,
    /// The warden was told to make it anew from its files.
    Rebuilding,
    /// The warden was told to destroy it; nothing new is begun in it.
    Stopping,
    /// Nothing of it is left.
    Gone,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 10] = [
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Saving,
        Self::Stored,
        Self::Rebuilding,
        Self::Stopping,
        Self::Gone,
    ];

    /// Whether its user finds it: it was made and nobody destroys it.
    #[must_use]
    pub const fn is_there(self) -> bool {
        match self {
            Self::Running
            | Self::Pausing
            | Self::Paused
            | Self::Resuming
            | Self::Saving
            | Self::Stored
            | Self::Rebuilding => true,
            Self::Starting | Self::Stopping | Self::Gone => false,
        }
    }

    /// Whether it goes over into another phase by itself and soon.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Pausing | Self::Resuming | Self::Saving | Self::Rebuilding)
    }

    /// What is said of it to its user.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Starting => "being made",
            Self::Running => "running",
            Self::Pausing | Self::Saving => "being paused",
            Self::Paused | Self::Stored => "paused",
            Self::Resuming | Self::Rebuilding => "being resumed",
            Self::Stopping => "being destroyed",
            Self::Gone => "gone",
        }
    }
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
    /// It is to be frozen.
    PauseAsked,
    /// The warden froze it as told.
    Frozen,
    /// The warden could not freeze it.
    PauseFailed,
    /// The warden says that it froze it by itself: its lease ended.
    WardenSaysPaused,
    /// It is to be thawed.
    ResumeAsked,
    /// The warden thawed it as told.
    Thawed,
    /// The warden could not thaw it.
    ResumeFailed,
    /// Its files are to be kept, and nothing else.
    SaveAsked,
    /// Its files are saved, and that is written down.
    Saved,
    /// Its files could not be saved.
    SaveFailed,
    /// It is to be made anew from its files.
    RebuildAsked,
    /// The warden made it anew.
    Rebuilt,
    /// The warden could not make it anew.
    RebuildFailed,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 21] = [
        Self::Made,
        Self::MakeFailed,
        Self::LeasePassed,
        Self::DestroyAsked,
        Self::InitBroken,
        Self::WardenSaysGone,
        Self::WardenLost,
        Self::Destroyed,
        Self::PauseAsked,
        Self::Frozen,
        Self::PauseFailed,
        Self::WardenSaysPaused,
        Self::ResumeAsked,
        Self::Thawed,
        Self::ResumeFailed,
        Self::SaveAsked,
        Self::Saved,
        Self::SaveFailed,
        Self::RebuildAsked,
        Self::Rebuilt,
        Self::RebuildFailed,
    ];
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Effect {
    /// Let calls in.
    Serve,
    /// Let no calls in; whoever asked carries out the change.
    Shut,
    /// Note that it is paused.
    Rest,
    /// Note that it is stored; tell the warden to destroy what runs, and answer what ran in it with `place_lost`.
    Store,
    /// Tell the warden to destroy it; answer what runs in it with `place_lost`.
    Destroy,
    /// Answer what runs in it with `place_lost` and end its row.
    End,
    /// End its row; nothing runs in it.
    EndRow,
    /// Nothing.
    Nothing,
}

/// An event that cannot happen in a phase: what its user asked for does not fit, or a mistake in our own code.
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

        (Running, LeasePassed) => Ok((Stopping, Effect::Destroy)),
        (Running | Pausing | Paused | Resuming | Saving, DestroyAsked | InitBroken) => Ok((Stopping, Effect::Destroy)),
        (Running | Pausing | Paused | Resuming | Saving, WardenSaysGone | WardenLost) => Ok((Gone, Effect::End)),

        (Running, PauseAsked) => Ok((Pausing, Effect::Shut)),
        (Pausing, Frozen) => Ok((Paused, Effect::Rest)),
        (Pausing, PauseFailed) => Ok((Running, Effect::Serve)),
        (Running, WardenSaysPaused) => Ok((Paused, Effect::Rest)),
        (Paused, ResumeAsked) => Ok((Resuming, Effect::Shut)),
        (Resuming, Thawed) => Ok((Running, Effect::Serve)),
        (Resuming, ResumeFailed) => Ok((Paused, Effect::Rest)),
        (Paused, SaveAsked) => Ok((Saving, Effect::Shut)),
        (Saving, Saved) => Ok((Stored, Effect::Store)),
        (Saving, SaveFailed) => Ok((Paused, Effect::Rest)),
        (Stored, RebuildAsked) => Ok((Rebuilding, Effect::Shut)),
        (Rebuilding, Rebuilt) => Ok((Running, Effect::Serve)),
        (Rebuilding, RebuildFailed) => Ok((Stored, Effect::Nothing)),
        // It froze by itself while somebody asked for the same, or for the opposite right after: the answer to the
        // order says how it is.
        (Pausing | Paused | Resuming | Saving, WardenSaysPaused) => Ok((phase, Effect::Nothing)),
        // Nothing that is paused has a lease.
        (Pausing | Paused | Resuming | Saving | Stored | Rebuilding, LeasePassed) => Ok((phase, Effect::Nothing)),
        // Late news of the sandbox that it was; the warden's end does not touch its files.
        (Stored | Rebuilding, InitBroken | WardenSaysGone | WardenLost | WardenSaysPaused) => {
            Ok((phase, Effect::Nothing))
        }
        (Stored, DestroyAsked) => Ok((Gone, Effect::EndRow)),
        // What the warden is making cannot be named yet: it is destroyed when it is there.
        (Rebuilding, DestroyAsked) => Ok((Stopping, Effect::Nothing)),
        (Stopping, Rebuilt) => Ok((Stopping, Effect::Destroy)),
        (Stopping, RebuildFailed) => Ok((Gone, Effect::EndRow)),

        (Stopping, Destroyed | WardenSaysGone | WardenLost) => Ok((Gone, Effect::EndRow)),
        // Late news about a sandbox already on its way out is normal.
        (
            Stopping,
            DestroyAsked | LeasePassed | InitBroken | WardenSaysPaused | Frozen | PauseFailed | Thawed | ResumeFailed
            | Saved | SaveFailed,
        ) => Ok((Stopping, Effect::Nothing)),
        (
            Gone,
            DestroyAsked | LeasePassed | InitBroken | WardenSaysGone | WardenLost | Destroyed | WardenSaysPaused
            | Frozen | PauseFailed | Thawed | ResumeFailed | Saved | SaveFailed | Rebuilt | RebuildFailed,
        ) => Ok((Gone, Effect::Nothing)),

        (
            Starting,
            LeasePassed | WardenSaysGone | Destroyed | PauseAsked | Frozen | PauseFailed | WardenSaysPaused
            | ResumeAsked | Thawed | ResumeFailed | SaveAsked | Saved | SaveFailed | RebuildAsked | Rebuilt
            | RebuildFailed,
        )
        | (
            Running,
            Made | MakeFailed | Destroyed | Frozen | PauseFailed | ResumeAsked | Thawed | ResumeFailed | SaveAsked
            | Saved | SaveFailed | RebuildAsked | Rebuilt | RebuildFailed,
        )
        | (
            Pausing,
            Made | MakeFailed | Destroyed | PauseAsked | ResumeAsked | Thawed | ResumeFailed | SaveAsked | Saved
            | SaveFailed | RebuildAsked | Rebuilt | RebuildFailed,
        )
        | (
            Paused,
            Made | MakeFailed | Destroyed | PauseAsked | Frozen | PauseFailed | Thawed | ResumeFailed | Saved
            | SaveFailed | RebuildAsked | Rebuilt | RebuildFailed,
        )
        | (
            Resuming,
            Made | MakeFailed | Destroyed | PauseAsked | Frozen | PauseFailed | ResumeAsked | SaveAsked | Saved
            | SaveFailed | RebuildAsked | Rebuilt | RebuildFailed,
        )
        | (
            Saving,
            Made | MakeFailed | Destroyed | PauseAsked | Frozen | PauseFailed | ResumeAsked | Thawed | ResumeFailed
            | SaveAsked | RebuildAsked | Rebuilt | RebuildFailed,
        )
        | (
            Stored,
            Made | MakeFailed | Destroyed | PauseAsked | Frozen | PauseFailed | ResumeAsked | Thawed | ResumeFailed
            | SaveAsked | Saved | SaveFailed | Rebuilt | RebuildFailed,
        )
        | (
            Rebuilding,
            Made | MakeFailed | Destroyed | PauseAsked | Frozen | PauseFailed | ResumeAsked | Thawed | ResumeFailed
            | SaveAsked | Saved | SaveFailed | RebuildAsked,
        )
        | (Stopping | Gone, Made | MakeFailed | PauseAsked | ResumeAsked | SaveAsked | RebuildAsked) => {
            Err(Refused { phase, event })
        }
    }
}
