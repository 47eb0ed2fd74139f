//! Why a call did not bring what was asked.

use rf_types::Fault;

/// Why a call failed. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused it, and said why.
    #[error("{fault}")]
    Refused {
        /// What the server said.
        fault: Fault,
        /// The HTTP status; 0 when the refusal came within a stream.
        status: u16,
        /// By which the server's log and ledger know the call.
        request_id: Option<String>,
    },
    /// No connection, or it broke before an answer came.
    #[error("cannot reach `{url}`")]
    Unreachable {
        /// The server's address.
        url: String,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The stream ended before it said how the exec ended. The exec may still run: ask for it by its id.
    #[error("the stream was cut before the command's end was known")]
    Cut,
    /// The answer is not what this version of the interface says.
    #[error("the answer of `{path}` is not understood: {why}")]
    Garbled {
        /// The endpoint.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The address, key or certificate given to this client cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Reading or writing on this side failed.
    #[error("cannot {step}")]
    Local {
        /// What was done.
        step: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl ClientError {
    /// The server's refusal, if that is what it is.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Refused { fault, .. } => Some(fault),
            _ => None,
        }
    }
}
