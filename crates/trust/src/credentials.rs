//! A certificate with its private key, and the authority that it is to be checked against.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{Fingerprint, Presented, TrustError, presented};

/// What somebody needs in order to be somebody in a pool; kept in a file of mode 0600. The key never leaves the machine on
/// which it was made.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// See [`Self::VERSION`].
    pub version: u32,
    /// The authority's certificate (PEM).
    pub authority: String,
    /// The owner's certificate (PEM).
    pub certificate: String,
    /// The owner's private key (PKCS 8, PEM).
    pub key: Zeroizing<String>,
    /// Where the manager was when they were issued.
    #[serde(default)]
    pub managers: Vec<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn damaged(what: &str, error: &dyn fmt::Display) -> TrustError {
    TrustError::new(format!("the {what} cannot be read: {error}"))
}

impl Credentials {
    /// The version of this record that this program reads and writes.
    pub const VERSION: u32 = 1;

    pub(crate) fn authority_der(&self) -> Result<CertificateDer<'static>, TrustError> {
        CertificateDer::from_pem_slice(self.authority.as_bytes()).map_err(|e| damaged("authority's certificate", &e))
    }

    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let own = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|e| damaged("certificate", &e))?;
        // The authority's own is sent along: a newcomer knows no more of it than its fingerprint.
        Ok(vec![own, self.authority_der()?])
    }

    pub(crate) fn key_der(&self) -> Result<PrivateKeyDer<'static>, TrustError> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|e| damaged("private key", &e))
    }

    /// What the certificate says.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn presented(&self) -> Result<Presented, TrustError> {
        match self.chain()?.first() {
            Some(own) => presented(own),
            None => Err(damaged("certificate", &"there is none")),
        }
    }

    /// The authority's fingerprint.
    ///
    /// # Errors
    /// The authority's certificate cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, TrustError> {
        Ok(Fingerprint::of(&self.authority_der()?))
    }
}

/// A private key that has no certificate yet.
pub struct NewKey {
    key: Zeroizing<String>,
    request: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").finish_non_exhaustive()
    }
}

impl NewKey {
    /// Draws a key.
    ///
    /// # Errors
    /// None in practice; the kernel gave no random bits.
    pub fn generate() -> Result<Self, TrustError> {
        let fail = |e: rcgen::Error| TrustError::new(format!("a key cannot be made: {e}"));
        let pair = KeyPair::generate().map_err(fail)?;
        let mut params = CertificateParams::default();
        // The authority decides who it is.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&pair).and_then(|request| request.pem()).map_err(fail)?;
        Ok(Self { key: Zeroizing::new(pair.serialize_pem()), request })
    }

    /// The request for a certificate (PKCS 10, PEM).
    pub fn request(&self) -> &str {
        &self.request
    }

    /// The key with the certificate that was issued for it.
    ///
    /// # Errors
    /// The certificate is another key's, or cannot be read.
    pub fn with(self, authority: String, certificate: String) -> Result<Credentials, TrustError> {
        let credentials =
            Credentials { version: Credentials::VERSION, authority, certificate, key: self.key, managers: Vec::new() };
        let pair = KeyPair::from_pem(&credentials.key).map_err(|e| damaged("private key", &e))?;
        let chain = credentials.chain()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|e| damaged("certificate", &e))?;
        if *parsed.public_key().subject_public_key.data != *pair.public_key_raw() {
            return Err(TrustError::new("the certificate was issued for another key"));
        }
        Ok(credentials)
    }
}
