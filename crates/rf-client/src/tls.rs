//! Whom a client believes: the system's certificate authorities, and the one it was given.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;

use crate::error::ClientError;

/// How TLS is spoken. Without `needed` nobody is believed and the system's authorities, which a small machine may not
/// have, are not read.
pub(crate) fn config(needed: bool, certificate: Option<&[u8]>) -> Result<ClientConfig, ClientError> {
    let unusable = |error: &dyn std::fmt::Display| ClientError::Unusable(format!("TLS cannot be set up: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    if !needed {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let own = CertificateDer::pem_slice_iter(certificate.unwrap_or_default())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| ClientError::Unusable(format!("the certificate cannot be read: {error}")))?;
    if certificate.is_some() && own.is_empty() {
        return Err(ClientError::Unusable("the file holds no certificate".to_owned()));
    }
    let verifier = Verifier::new_with_extra_roots(own, provider).map_err(|error| unusable(&error))?;
    // The name of the call warns of verifiers that believe too much; this one is the system's own.
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}
