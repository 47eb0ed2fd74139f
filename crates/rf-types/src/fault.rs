//! The one error that people see: what happened, to what, what to do next.

use serde::{Deserialize, Serialize};

/// What kind of error, for programs. The text form is the variant in snake case and never changes its meaning.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The request is malformed or a value is out of range.
    InvalidRequest,
    /// No credential, or one that does not verify.
    Unauthenticated,
    /// The credential is good, but its scopes do not cover this.
    Forbidden,
    /// There is no such thing, or it is another user's: the two cannot be told apart.
    NotFound,
    /// It is there already, or was changed in between.
    Conflict,
    /// A limit of the user's would be passed.
    LimitReached,
    /// More requests than allowed; try later.
    RateLimited,
    /// The body is larger than this endpoint takes.
    TooLarge,
    /// Neither a machine nor a sandbox can serve the call.
    NoPlace,
    /// The sandbox is paused, or is being paused or resumed; nothing was done.
    Paused,
    /// The place went away in the middle; how the operation ended may be unknown. It was not run elsewhere.
    PlaceLost,
    /// The machine's owner does not allow this.
    OwnerForbids,
    /// The host cannot hold a layer that the sandbox needs.
    LayerUnavailable,
    /// The template does not exist or cannot be used.
    TemplateUnavailable,
    /// The program could not be started inside the place.
    ExecFailed,
    /// The file operation failed inside the place.
    FileFailed,
    /// The sandbox's disk or inode quota is full.
    DiskFull,
    /// The sandbox has no tasks, memory or descriptors left for this.
    PlaceExhausted,
    /// The ledger cannot be written, so nothing may be done.
    LedgerUnavailable,
    /// The store cannot be read or written.
    StoreUnavailable,
    /// The warden cannot be reached or is restarting.
    WardenUnavailable,
    /// This server has no room; try later or elsewhere.
    ServerBusy,
    /// It took longer than allowed.
    TimedOut,
    /// A known thing that this version does not do.
    Unsupported,
    /// Ours to fix.
    Internal,
}

impl Code {
    /// The HTTP status that carries it.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden | Self::OwnerForbids => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::Paused => 409,
            Self::TooLarge => 413,
            Self::ExecFailed | Self::FileFailed | Self::TemplateUnavailable => 422,
            Self::LimitReached | Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::PlaceLost => 502,
            Self::NoPlace
            | Self::LayerUnavailable
            | Self::LedgerUnavailable
            | Self::StoreUnavailable
            | Self::WardenUnavailable
            | Self::ServerBusy => 503,
            Self::TimedOut => 504,
            Self::DiskFull | Self::PlaceExhausted => 507,
        }
    }

    /// Whether the same request may succeed later with nothing changed by the caller.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::LedgerUnavailable
                | Self::StoreUnavailable
                | Self::WardenUnavailable
                | Self::ServerBusy
        )
    }
}

/// An error as a client gets it; the door adds the `request_id`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// For programs.
    pub code: Code,
    /// What happened, to what. Lower case, no full stop, user input in backticks.
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
}

impl Fault {
    /// A fault with a hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }

    /// What another user's thing answers as well: there is no such thing.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("no such {what}"), "check the id, and that the key is the right user's")
    }

    /// A request that cannot be understood.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message, "see the endpoint in /v1/openapi.json")
    }
}
