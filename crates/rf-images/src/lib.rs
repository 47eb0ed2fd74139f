//! Images as the server gets them: from a registry, an `oci-layout` folder, a saved archive, a tarball or a directory,
//! into blobs whose digests were verified ([`Blobs`]).
//!
//! It unpacks nothing: each layer of an [`Image`] is a blob, whose descriptor goes to the warden with the layer's
//! `diff_id`, and the unpacker there verifies that. Everything that is read has a bound ([`ImageCaps`]); whatever a
//! registry or a folder says is hostile.
//!
//! | from | by |
//! |---|---|
//! | a registry | [`Registry::pull`] |
//! | an `oci-layout` folder | [`import::layout`] |
//! | `docker save`, or a tar of an `oci-layout` | [`import::archive`] |
//! | a tarball of a root, plain, gzip or zstd | [`import::tarball`] |
//! | a tarball, whatever it is | [`import::upload`] |
//! | a directory | [`import::directory`] |

mod addresses;
mod blobs;
mod digest;
mod error;
pub mod import;
mod model;
mod reference;
mod registry;

pub use self::{
    blobs::{BlobWriter, Blobs},
    digest::{Digest, ParseDigestError},
    error::ImageError,
    model::{Image, ImageCaps, Layer},
    reference::{ParseReferenceError, Reference},
    registry::{Credentials, Registry, RegistryOptions, Secret},
};

/// Told while bytes of an image come in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Bytes of the image there so far.
    pub bytes_done: u64,
    /// Bytes that there will be; 0 while not known.
    pub bytes_total: u64,
}

/// Takes progress; called often, from any thread, and must not block.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Send + Sync);
