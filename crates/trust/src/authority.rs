//! The pool's certificate authority.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sublet_types::PoolId;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::credentials::{Credentials, NewKey};
use crate::{Identity, TrustError};

/// How long an authority is valid: longer than any pool, since replacing it means that every server joins again.
const AUTHORITY_DAYS: u64 = 30 * 365;
/// A certificate is valid from so long before its making on, in milliseconds: clocks differ a little.
const CLOCK_TOLERANCE_MS: u64 = 5 * 60 * 1000;
const MS_PER_DAY: u64 = 24 * 3600 * 1000;

/// SHA-256 of an authority's certificate (DER). Whoever knows it can tell the pool from every other one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of this certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| TrustError::new(format!("'{}' is no fingerprint", text.escape_default())))
    }
}

/// An authority as it is kept: whoever has it can be anybody in the pool.
#[derive(Clone, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// See [`Self::VERSION`].
    pub version: u32,
    /// Its certificate (PEM).
    pub certificate: String,
    /// Its private key (PKCS 8, PEM).
    pub key: Zeroizing<String>,
}

impl AuthorityRecord {
    /// The version of this record that this program reads and writes.
    pub const VERSION: u32 = 1;
}

impl fmt::Debug for AuthorityRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityRecord").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A pool's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    record: AuthorityRecord,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

fn failed(what: &str, error: &dyn fmt::Display) -> TrustError {
    TrustError::new(format!("{what}: {error}"))
}

/// A moment as certificates have it: whole seconds.
fn moment(ms: u64) -> Result<OffsetDateTime, TrustError> {
    let seconds = i64::try_from(ms / 1000).map_err(|e| failed("a moment", &e))?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| failed("a moment", &e))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

impl Authority {
    /// A new authority for a pool. `now_ms` is the time since 1970.
    ///
    /// # Errors
    /// None in practice; the kernel gave no random bits.
    pub fn create(pool: PoolId, now_ms: u64) -> Result<Self, TrustError> {
        let fail = |e: rcgen::Error| failed("an authority cannot be made", &e);
        let key = KeyPair::generate().map_err(fail)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Sublet pool {pool}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = moment(now_ms.saturating_sub(CLOCK_TOLERANCE_MS))?;
        params.not_after = moment(now_ms.saturating_add(AUTHORITY_DAYS * MS_PER_DAY))?;
        let certificate = params.self_signed(&key).map_err(fail)?;
        let record = AuthorityRecord {
            version: AuthorityRecord::VERSION,
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        };
        Ok(Self { issuer: Issuer::new(params, key), certificate: certificate.der().clone(), record })
    }

    /// The authority of an earlier start.
    ///
    /// # Errors
    /// The record is of another version, damaged, or its key is another certificate's.
    pub fn load(record: AuthorityRecord) -> Result<Self, TrustError> {
        if record.version != AuthorityRecord::VERSION {
            return Err(TrustError::new(format!("the authority's record has version {}", record.version))
                .hint("use the program that wrote it, or a newer one"));
        }
        let key = KeyPair::from_pem(&record.key).map_err(|e| failed("the authority's key", &e))?;
        let certificate = CertificateDer::from_pem_slice(record.certificate.as_bytes())
            .map_err(|e| failed("the authority's certificate", &e))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|e| failed("the authority's certificate", &e))?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(TrustError::new("the authority's key does not belong to its certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| failed("the authority's certificate", &e))?;
        Ok(Self { issuer, certificate, record })
    }

    /// What to keep: secret.
    pub fn record(&self) -> &AuthorityRecord {
        &self.record
    }

    /// By which the pool is known.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for whoever holds the key of this request (PKCS 10, PEM): what else the request asks for is not looked
    /// at. The answer is PEM. The serial number holds the moment of issue, so that older certificates of the same identity
    /// can be told.
    ///
    /// # Errors
    /// The request is malformed, or not signed by the key that it names.
    pub fn certify(&self, identity: Identity, request: &str, now_ms: u64, lifetime_ms: u64) -> Result<String, TrustError> {
        let fail = |e: &dyn fmt::Display| failed("the request for a certificate cannot be used", e);
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).map_err(|e| fail(&e))?;
        let asked = CertificateSigningRequestParams::from_der(&der).map_err(|e| fail(&e))?;
        let mut random = [0; 8];
        // Only so that two of the same millisecond differ: the key itself is as good a source as any.
        random.copy_from_slice(&Sha256::digest(&*der)[..8]);
        let serial: Vec<u8> = now_ms.to_be_bytes().into_iter().chain(random).collect();
        let mut params = CertificateParams::default();
        let name = identity.to_string();
        params.distinguished_name = named(&name);
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().map_err(|e: rcgen::Error| fail(&e))?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            Identity::Person(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Identity::Manager | Identity::Server(_) => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = moment(now_ms.saturating_sub(CLOCK_TOLERANCE_MS))?;
        params.not_after = moment(now_ms.saturating_add(lifetime_ms))?;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&asked.public_key, &self.issuer).map_err(|e| fail(&e))?;
        Ok(certificate.pem())
    }

    /// Credentials whose key is made here: the manager's own.
    ///
    /// # Errors
    /// See [`Authority::certify`].
    pub fn issue(&self, identity: Identity, now_ms: u64, lifetime_ms: u64) -> Result<Credentials, TrustError> {
        let key = NewKey::generate()?;
        let certificate = self.certify(identity, key.request(), now_ms, lifetime_ms)?;
        key.with(self.record.certificate.clone(), certificate)
    }
}
