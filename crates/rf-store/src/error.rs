//! Why a store call failed.

use rf_types::{Code, Fault};

/// Why a store call failed. Whatever the variant, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory or file cannot be made, locked or read.
    #[error("cannot {step} the store at `{path}`")]
    Open {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Another process, or another part of this one, has it open.
    #[error("the store at `{path}` is in use by another server")]
    InUse {
        /// Which.
        path: String,
    },
    /// The file is some other program's database.
    #[error("`{path}` is not a store of ours")]
    Foreign {
        /// Which.
        path: String,
    },
    /// A newer version of the program has been here.
    #[error("the store has the migration `{name}`, which this version does not know")]
    SchemaNewer {
        /// The first migration that is not known.
        name: String,
    },
    /// A migration or an object of the schema is not what this version made.
    #[error("the store's schema was altered: {what}")]
    SchemaAltered {
        /// What differs, by name.
        what: String,
    },
    /// SQLite refused a step.
    #[error("the store cannot {step}")]
    Sqlite {
        /// What was tried.
        step: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A row cannot be read as what it should be.
    #[error("the store holds an unreadable {what}")]
    Unreadable {
        /// Which column.
        what: &'static str,
    },
    /// There is no such thing, or it is another user's: the two cannot be told apart.
    #[error("no such {what}")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
    },
    /// It is there already, or is not in the state that the call needs.
    #[error("{what}")]
    Conflict {
        /// What collides.
        what: String,
    },
    /// A bound of the store on the rows of one user.
    #[error("at most {max} {what} at once")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: u32,
    },
    /// A value is out of its range.
    #[error("{what}")]
    Invalid {
        /// Which, and its range.
        what: String,
    },
}

impl StoreError {
    /// For `map_err` on a SQLite call: names the step.
    pub(crate) fn at(step: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { step, source }
    }

    /// Whether it says that there is no such thing.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl From<StoreError> for Fault {
    /// What a client may know: never a path, a step or SQLite's own words.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what } => Self::not_found(what),
            StoreError::Conflict { what } => Self::new(Code::Conflict, what, "choose another, or look again"),
            StoreError::TooMany { what, max } => Self::new(
                Code::LimitReached,
                format!("at most {max} {what} at once"),
                "remove what is no longer needed, then try again",
            ),
            StoreError::Invalid { what } => Self::invalid(what),
            StoreError::Open { .. }
            | StoreError::InUse { .. }
            | StoreError::Foreign { .. }
            | StoreError::SchemaNewer { .. }
            | StoreError::SchemaAltered { .. }
            | StoreError::Sqlite { .. }
            | StoreError::Unreadable { .. } => Self::new(
                Code::StoreUnavailable,
                "the store cannot be read or written at the moment",
                "try again; if it stays, the operator finds the cause in the server's log",
            ),
        }
    }
}
