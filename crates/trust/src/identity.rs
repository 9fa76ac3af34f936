//! Who a certificate is for.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::ServerName;
use sublet_types::{PersonId, ServerId};

use crate::TrustError;

/// The domain under which all identities are names. `internal` is reserved for private use (ICANN, 2024), so nobody else's
/// authority can ever vouch for them.
const DOMAIN: &str = "sublet.internal";

/// Who somebody is. In a certificate it is the one DNS name among the subject's alternative names: a host name would change
/// with the machine's, and is nobody's identity (F6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    /// The pool's manager.
    Manager,
    /// A server.
    Server(ServerId),
    /// Somebody at a command line.
    Person(PersonId),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Manager => write!(f, "manager.{DOMAIN}"),
            Identity::Server(id) => write!(f, "{id}.server.{DOMAIN}"),
            Identity::Person(id) => write!(f, "{id}.person.{DOMAIN}"),
        }
    }
}

impl FromStr for Identity {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let none = || TrustError::new(format!("'{}' is no identity of a pool", text.escape_default()));
        let head = text.strip_suffix(DOMAIN).and_then(|head| head.strip_suffix('.')).ok_or_else(none)?;
        let parsed = match head.split_once('.') {
            None if head == "manager" => Some(Identity::Manager),
            Some((id, "server")) => id.parse().ok().map(Identity::Server),
            Some((id, "person")) => id.parse().ok().map(Identity::Person),
            _ => None,
        };
        // One way to write each: names compare without regard to case, ids are printed in lower case.
        parsed.filter(|identity| identity.to_string() == text).ok_or_else(none)
    }
}

impl Identity {
    /// The name that a connection to this identity is checked against.
    ///
    /// # Errors
    /// None in practice: every identity is a DNS name.
    pub fn server_name(self) -> Result<ServerName<'static>, TrustError> {
        ServerName::try_from(self.to_string()).map_err(|e| TrustError::new(format!("{self} is no DNS name: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_what_it_prints_and_nothing_else_is_one() {
        for identity in
            [Identity::Manager, Identity::Server(ServerId::from_u128(7)), Identity::Person(PersonId::from_u128(u128::MAX))]
        {
            assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
            identity.server_name().unwrap();
        }
        let id = "0123456789abcdef0123456789abcdef";
        for text in [
            String::new(),
            "sublet.internal".to_owned(),
            "manager.example.org".to_owned(),
            "managersublet.internal".to_owned(),
            "x.manager.sublet.internal".to_owned(),
            format!("{id}.sublet.internal"),
            format!("{}.server.sublet.internal", id.to_uppercase()),
            format!("{id}.server.x.sublet.internal"),
            "x.server.sublet.internal".to_owned(),
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
