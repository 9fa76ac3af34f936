//! What went wrong with a certificate, in words that say what to do.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error};

/// A certificate, key or invitation that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrustError {
    message: String,
    hint: String,
}

impl TrustError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: String::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do; empty if there is nothing.
    pub fn advice(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for TrustError {}

/// How to get a certificate again.
const JOIN_AGAIN: &str = "get a new one: `sublet token create --rejoin SERVER` at the manager, and `sublet server --rejoin STRING` here \
    (a person: `sublet person login NAME` at the manager, and `sublet login URL` here)";
/// What to look at when times do not agree.
const CLOCKS: &str = "compare the clocks of the two machines (date -u)";

/// Says what a failed handshake means. `peer` is who was called, in words.
pub fn explain(error: &Error, peer: &str) -> TrustError {
    match error {
        Error::InvalidCertificate(certificate) => unusable_peer(certificate, peer),
        Error::AlertReceived(alert) => refused_by_peer(*alert, peer),
        Error::NoCertificatesPresented => {
            TrustError::new(format!("{peer} wants to know who calls, and this caller has no certificate")).hint(JOIN_AGAIN)
        }
        Error::InvalidMessage(_) => TrustError::new(format!("{peer} does not speak TLS"))
            .hint("check the address, and that it is of this version or newer"),
        other => TrustError::new(format!("the connection to {peer} cannot be secured: {other}")),
    }
}

/// What is wrong with the certificate that the other end has shown.
fn unusable_peer(error: &CertificateError, peer: &str) -> TrustError {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => {
            TrustError::new(format!("the certificate of {peer} has expired, or this machine's clock is ahead")).hint(CLOCKS)
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            TrustError::new(format!("the certificate of {peer} is not valid yet: this machine's clock is behind")).hint(CLOCKS)
        }
        E::UnknownIssuer | E::BadSignature => TrustError::new(format!("{peer} belongs to another pool"))
            .hint("check the address; a pool whose authority was lost is joined again with `sublet server --rejoin STRING`"),
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            TrustError::new(format!("somebody else of this pool answers at the address of {peer}")).hint("check the address")
        }
        other => TrustError::new(format!("the certificate of {peer} cannot be used: {other}")),
    }
}

/// What the other end has found wrong with our certificate (RFC 8446, section 6.2).
fn refused_by_peer(alert: AlertDescription, peer: &str) -> TrustError {
    use AlertDescription as A;
    match alert {
        A::CertificateExpired => TrustError::new(format!("{peer} says that this certificate is out of date"))
            .hint(format!("{CLOCKS}, or {JOIN_AGAIN}")),
        A::UnknownCA | A::DecryptError => {
            TrustError::new(format!("{peer} belongs to another pool than this certificate")).hint(JOIN_AGAIN)
        }
        A::CertificateRequired => {
            TrustError::new(format!("{peer} wants to know who calls, and this caller has no certificate")).hint(JOIN_AGAIN)
        }
        A::CertificateRevoked | A::AccessDenied => {
            TrustError::new(format!("{peer} does not admit this certificate")).hint(JOIN_AGAIN)
        }
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate => {
            TrustError::new(format!("{peer} cannot use this certificate")).hint(format!("{CLOCKS}, or {JOIN_AGAIN}"))
        }
        other => TrustError::new(format!("{peer} has ended the connection: {other:?}")),
    }
}
