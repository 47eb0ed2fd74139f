//! Why an image was not had.

use rf_types::{Code, Fault};

use crate::Digest;

/// Why an image was not imported. Blobs that were whole by then stay and are not fetched again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The registry cannot be reached, or the connection broke too often.
    #[error("cannot reach `{host}`")]
    Unreachable {
        /// Whom.
        host: String,
        /// Why.
        #[source]
        cause: reqwest::Error,
    },
    /// The registry wants other credentials.
    #[error("`{host}` refuses access to the image")]
    Denied {
        /// Who.
        host: String,
    },
    /// There is no such image.
    #[error("there is no image `{0}`")]
    Absent(String),
    /// An answer that is not what the protocol says.
    #[error("`{host}` answered wrongly: {why}")]
    Protocol {
        /// Who.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// A connection without encryption, or to an address of a form that the registry has no business to name.
    #[error("will not connect to `{url}`: {why}")]
    Insecure {
        /// Where to, without user and query.
        url: String,
        /// Why not.
        why: &'static str,
    },
    /// A connection to this machine or into a private network, of a registry that is not configured as within.
    #[error("will not connect to `{host}`: it leads to {address}, which is within")]
    Within {
        /// The host.
        host: String,
        /// The address that it leads to, or its own name for this machine.
        address: String,
    },
    /// The bytes are not those that were named.
    #[error("the digest is {found}, not {expected}")]
    Digest {
        /// What was named.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More or fewer bytes than were named.
    #[error("{digest} has {found} bytes, not {expected}")]
    Size {
        /// Of what.
        digest: Digest,
        /// As named.
        expected: u64,
        /// As they came; one more than expected when it went on.
        found: u64,
    },
    /// A bound was passed.
    #[error("the image has more than {max} {what}")]
    Bound {
        /// Of what.
        what: &'static str,
        /// How much is allowed.
        max: u64,
    },
    /// The image cannot be understood.
    #[error("the image is malformed: {0}")]
    Malformed(String),
    /// The image is for other machines, or of a kind that cannot be a root.
    #[error("the image cannot be used here: {0}")]
    Unusable(String),
    /// The archive that is imported is wrong.
    #[error(transparent)]
    Archive(#[from] rf_template::unpack::UnpackError),
    /// A file of the image or of the blob store cannot be read or written.
    #[error("cannot {step}")]
    Files {
        /// What was tried.
        step: String,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
}

impl ImageError {
    pub(crate) fn files(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let step = step.into();
        move |cause| Self::Files { step, cause }
    }

    /// As a client gets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        if let Self::Archive(error) = self {
            return error.fault();
        }
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        let (code, hint) = match self {
            Self::Unreachable { .. } => {
                (Code::TemplateUnavailable, "check the registry's name and the server's network, then try again")
            }
            Self::Denied { .. } | Self::Absent(_) => (
                Code::TemplateUnavailable,
                "check the image's name, and give the registry's credentials if it needs any",
            ),
            Self::Protocol { .. } => {
                (Code::TemplateUnavailable, "check that the host is a registry (OCI distribution)")
            }
            Self::Insecure { .. } => {
                (Code::TemplateUnavailable, "name the registry in the configuration to allow it without TLS")
            }
            Self::Within { .. } => (
                Code::TemplateUnavailable,
                "say `private = true` for the registry in the configuration if it is within, or leads there",
            ),
            Self::Digest { .. } | Self::Size { .. } => {
                (Code::TemplateUnavailable, "the image is damaged or was changed; fetch it again")
            }
            Self::Bound { .. } => {
                (Code::TooLarge, "use a smaller image, or raise the template caps in the configuration")
            }
            Self::Malformed(_) | Self::Archive(_) => {
                (Code::TemplateUnavailable, "rebuild the image with a standard tool, or do not trust it")
            }
            Self::Unusable(_) => (Code::TemplateUnavailable, "use an image for Linux on this machine's architecture"),
            Self::Files { .. } => (Code::TemplateUnavailable, "check the path, its permissions and the free space"),
        };
        Fault::new(code, message, hint)
    }
}
