//! What a certificate says that has been verified.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::{Identity, TrustError};

/// Who a certificate is for, and of when it is. Only as good as the verification that went before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Presented {
    /// Who it is.
    pub identity: Identity,
    /// When it was issued, in milliseconds since 1970.
    pub issued_ms: u64,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
}

impl Presented {
    /// From when on it should be replaced: two thirds of its time are over.
    pub fn renew_from_ms(&self) -> u64 {
        self.issued_ms + self.expires_ms.saturating_sub(self.issued_ms) / 3 * 2
    }
}

/// Reads a certificate of the pool.
///
/// # Errors
/// It is none, or has not exactly one identity.
pub fn presented(certificate: &CertificateDer<'_>) -> Result<Presented, TrustError> {
    let damaged = |e: &dyn std::fmt::Display| TrustError::new(format!("the certificate cannot be read: {e}"));
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| damaged(&e))?;
    let names = parsed.subject_alternative_name().map_err(|e| damaged(&e))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let [GeneralName::DNSName(name)] = names else {
        return Err(damaged(&"it does not name exactly one identity"));
    };
    // Leading zeros are not stored.
    let serial = parsed.raw_serial();
    let mut padded = [0; 16];
    let Some(room) = 16_usize.checked_sub(serial.len()) else { return Err(damaged(&"its serial number is too long")) };
    padded.iter_mut().skip(room).zip(serial).for_each(|(to, from)| *to = *from);
    let issued_ms = u64::try_from(u128::from_be_bytes(padded) >> 64).unwrap_or(u64::MAX);
    let expires_ms = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1000);
    Ok(Presented { identity: name.parse()?, issued_ms, expires_ms })
}
