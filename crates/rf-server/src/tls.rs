//! TLS by certificate files that are read again when they change, so that a renewed certificate needs no restart.

use std::{
    fs,
    io::Read as _,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::config::TlsConfig;

/// Longest certificate or key file, bytes. Chosen: a chain of a hundred large certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// A file is not PEM with what is needed.
    #[error("`{path}` holds no usable {what}: {why}")]
    Pem {
        /// The file.
        path: String,
        /// Certificate or key.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("the certificate and the key do not fit")]
    Mismatch {
        /// What the library said.
        #[source]
        error: rustls::Error,
    },
}

/// What tells one version of the files from another.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// The certificate in use.
#[derive(Debug)]
pub struct Certificate {
    files: TlsConfig,
    current: RwLock<(Stamp, Arc<CertifiedKey>)>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: TlsConfig) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new((stamp(&files), read(&files)?));
        Ok(Arc::new(Self { files, current }))
    }

    /// Reads the files again if they changed; whether they did. A pair that cannot be used leaves the old one.
    ///
    /// # Errors
    /// See [`TlsError`]; the next call tries again.
    pub fn reload(&self) -> Result<bool, TlsError> {
        // The stamp is taken before the files: a change in between is seen the next time.
        let fresh = stamp(&self.files);
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == fresh {
            return Ok(false);
        }
        let key = read(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (fresh, key);
        Ok(true)
    }

    /// The configuration for accepting connections with this certificate.
    ///
    /// # Errors
    /// `Mismatch` when the library takes none of its own protocol versions, which does not happen.
    pub fn acceptor(self: &Arc<Self>) -> Result<tokio_rustls::TlsAcceptor, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Mismatch { error })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config).into())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1))
    }
}

fn stamp(files: &TlsConfig) -> Stamp {
    [&files.certificate, &files.key].map(|path| {
        let data = fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len()))
    })
}

fn read(files: &TlsConfig) -> Result<Arc<CertifiedKey>, TlsError> {
    let pem = |path: &Path, what, why: String| TlsError::Pem { path: path.display().to_string(), what, why };
    let certificates = CertificateDer::pem_slice_iter(&bytes(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem(&files.certificate, "certificate", error.to_string()))?;
    if certificates.is_empty() {
        return Err(pem(&files.certificate, "certificate", "there is none in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes(&files.key)?)
        .map_err(|error| pem(&files.key, "private key", error.to_string()))?;
    let provider = ring::default_provider();
    // Also checks that the key is the certificate's.
    CertifiedKey::from_der(certificates, key, &provider).map(Arc::new).map_err(|error| TlsError::Mismatch { error })
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = |error| TlsError::Read { path: path.display().to_string(), error };
    let mut content = Vec::new();
    fs::File::open(path).map_err(read)?.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(read)?;
    Ok(content)
}
