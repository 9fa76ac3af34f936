//! How the two ends of a connection are set up: TLS 1.3 and nothing else.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme, version,
};

use crate::{Credentials, Fingerprint, TrustError};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn failed(error: &dyn fmt::Display) -> TrustError {
    TrustError::new(format!("TLS cannot be set up: {error}"))
}

fn roots(authority: CertificateDer<'static>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|e| failed(&e))?;
    Ok(Arc::new(roots))
}

/// A certificate that can be replaced while it is used: connections that begin afterwards show the new one.
pub struct OwnCertificate(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnCertificate").finish_non_exhaustive()
    }
}

impl OwnCertificate {
    /// Of these credentials.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(credentials: &Credentials) -> Result<Arc<Self>, TrustError> {
        Ok(Arc::new(Self(RwLock::new(certified(credentials)?))))
    }

    /// Replaces it.
    ///
    /// # Errors
    /// The credentials cannot be read; then the old one stays.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), TrustError> {
        let fresh = certified(credentials)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

fn certified(credentials: &Credentials) -> Result<Arc<CertifiedKey>, TrustError> {
    let key = CertifiedKey::from_der(credentials.chain()?, credentials.key_der()?, &provider()).map_err(|e| failed(&e))?;
    Ok(Arc::new(key))
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// For whoever calls with credentials. Whom it reaches is checked against [`crate::Identity::server_name`].
///
/// # Errors
/// The credentials cannot be read.
pub fn client_config(credentials: &Credentials) -> Result<Arc<ClientConfig>, TrustError> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&version::TLS13]).map_err(|e| failed(&e))?;
    let builder = builder.with_root_certificates(roots(credentials.authority_der()?)?);
    let config = builder.with_client_auth_cert(credentials.chain()?, credentials.key_der()?).map_err(|e| failed(&e))?;
    Ok(Arc::new(config))
}

/// For a newcomer, who has no certificate and knows no more of the pool than its authority's fingerprint.
///
/// # Errors
/// None in practice.
pub fn newcomer_config(fingerprint: Fingerprint) -> Result<Arc<ClientConfig>, TrustError> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&version::TLS13]).map_err(|e| failed(&e))?;
    // Dangerous is what this does not do: the pinned authority vouches for the name as it does for everybody else.
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { fingerprint, provider: provider() }));
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// For whoever is called. Callers without a certificate are let in only with `strangers`; what they may do then is up to
/// what serves them. A certificate that is shown must be the authority's.
///
/// # Errors
/// The credentials cannot be read.
pub fn server_config(
    authority: &Credentials,
    own: Arc<OwnCertificate>,
    strangers: bool,
) -> Result<Arc<ServerConfig>, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority.authority_der()?)?, provider());
    let verifier = if strangers { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|e| failed(&e))?;
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&version::TLS13]).map_err(|e| failed(&e))?;
    Ok(Arc::new(builder.with_client_cert_verifier(verifier).with_cert_resolver(own)))
}

/// Verifies by the one authority that has this fingerprint, which the other end has to send along.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| Fingerprint::of(certificate) == self.fingerprint);
        let Some(authority) = authority else { return Err(CertificateError::UnknownIssuer.into()) };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
