//! The one short string that lets somebody into a pool.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::{Fingerprint, TrustError};

/// What an invitation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvitationKind {
    /// A new server: `sublet server --join`.
    Join,
    /// A server that is known already and needs a new certificate: `sublet server --rejoin`.
    Rejoin,
    /// Somebody at a command line: `sublet login`.
    Login,
}

impl InvitationKind {
    const ALL: [(InvitationKind, &'static str); 3] =
        [(InvitationKind::Join, "join"), (InvitationKind::Rejoin, "rejoin"), (InvitationKind::Login, "login")];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }
}

impl fmt::Display for InvitationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// 128 random bits that are worth an entry. The manager keeps only SHA-256 of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InvitationSecret(pub [u8; 16]);

impl fmt::Debug for InvitationSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InvitationSecret(hidden)")
    }
}

impl InvitationSecret {
    /// For a request to the manager.
    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl FromStr for InvitationSecret {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| TrustError::new("the secret of the invitation is damaged"))
    }
}

/// `https://HOST:PORT[,HOST:PORT]/join#FINGERPRINT.SECRET`: where the manager is, by what its pool is known, and what lets
/// in. What is behind the `#` never travels when the string is opened in a browser.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// What for.
    pub kind: InvitationKind,
    /// Where the manager is: `HOST:PORT`, at least one.
    pub managers: Vec<String>,
    /// The authority that the manager must have.
    pub fingerprint: Fingerprint,
    /// What lets in.
    pub secret: InvitationSecret,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("kind", &self.kind).field("managers", &self.managers).finish_non_exhaustive()
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}/{}#{}.{}", self.managers.join(","), self.kind, self.fingerprint, self.secret.text())
    }
}

impl FromStr for Invitation {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let malformed = |why: &str| {
            // The text is not repeated: most of it may be a secret.
            TrustError::new(format!("this is no invitation to a pool: {why}"))
                .hint("copy the whole string that `sublet token create` has printed, in quotes")
        };
        let rest = text.trim().strip_prefix("https://").ok_or_else(|| malformed("it does not begin with https://"))?;
        let (place, secrets) = rest.split_once('#').ok_or_else(|| malformed("what is behind the # is missing"))?;
        let (managers, word) = place.split_once('/').ok_or_else(|| malformed("it does not say what it is for"))?;
        let kind = InvitationKind::ALL.iter().find(|(_, known)| *known == word).map(|(kind, _)| *kind);
        let kind = kind.ok_or_else(|| malformed("it is for something that this version does not know"))?;
        let (fingerprint, secret) = secrets.split_once('.').ok_or_else(|| malformed("its end is missing"))?;
        let managers: Vec<String> = managers.split(',').map(str::to_owned).collect();
        if managers.iter().any(String::is_empty) {
            return Err(malformed("it names no manager"));
        }
        let fingerprint = fingerprint.parse().map_err(|_| malformed("its fingerprint is damaged"))?;
        let secret = secret.parse().map_err(|_| malformed("its end is missing or damaged"))?;
        Ok(Self { kind, managers, fingerprint, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            kind: InvitationKind::Join,
            managers: vec!["m.example:7470".into(), "[::1]:7470".into()],
            fingerprint: Fingerprint([7; 32]),
            secret: InvitationSecret([9; 16]),
        }
    }

    #[test]
    fn an_invitation_reads_back_what_it_prints() {
        let text = invitation().to_string();
        assert_eq!(text.parse::<Invitation>().unwrap(), invitation());
        assert_eq!(format!("  {text}\n").parse::<Invitation>().unwrap(), invitation());
    }

    #[test]
    fn half_of_one_or_anything_else_is_refused_without_repeating_it() {
        let whole = invitation().to_string();
        for cut in 0..whole.len() {
            let refused = whole[..cut].parse::<Invitation>();
            assert!(refused.is_err(), "{cut}");
        }
        for text in ["", "http://m/join#a.b", "https://m/mount#a.b", "https:///join#a.b", "https://m#a.b"] {
            let error = text.parse::<Invitation>().unwrap_err();
            assert!(error.advice().contains("sublet token create"), "{error}");
        }
        let secret = invitation().secret.text();
        let damaged = whole.replace("/join#", "/join#x");
        assert!(!damaged.parse::<Invitation>().unwrap_err().to_string().contains(&secret));
    }

    #[test]
    fn a_secret_is_hidden() {
        let secret = InvitationSecret(*b"0123456789abcdef");
        assert!(!format!("{secret:?} {:?}", invitation()).contains(&secret.text()));
    }
}
