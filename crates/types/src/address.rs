//! Network addresses: `host:port`, `1.2.3.4:port`, `[::1]:port`. An address is never an identity (F6).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A host (name, IPv4 or IPv6 address) and a TCP port. Names are resolved anew for every connection.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    host: String,
    port: u16,
}

/// A text is not an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError(String);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not an address: write HOST:PORT, for example 192.0.2.7:7471, [2001:db8::7]:7471 or storage1:7471",
            self.0.escape_default()
        )
    }
}

impl std::error::Error for AddressError {}

impl Address {
    /// Joins a host (IPv6 without brackets) and a port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Reads `HOST`, `HOST:PORT`, `IPv6` or `[IPv6]:PORT`, with a port for texts that name none.
    ///
    /// # Errors
    /// [`AddressError`] if the text is neither.
    pub fn parse_with_port(text: &str, default_port: u16) -> Result<Self, AddressError> {
        let fail = || AddressError(text.chars().take(80).collect());
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self::new(text, default_port));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(fail)?;
            host.parse::<Ipv6Addr>().map_err(|_| fail())?;
            (host, after)
        } else {
            let end = text.find(':').unwrap_or(text.len());
            text.split_at(end)
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b':' || b == b'%' || b == b'_';
        if host.is_empty() || host.len() > 255 || !host.bytes().all(legal) {
            return Err(fail());
        }
        let port = match port.strip_prefix(':') {
            Some(digits) if !digits.starts_with('+') => digits.parse().map_err(|_| fail())?,
            None if port.is_empty() => default_port,
            _ => return Err(fail()),
        };
        Ok(Self::new(host, port))
    }

    /// The host, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = Self::parse_with_port(text, 0)?;
        if address.port == 0 { Err(AddressError(text.chars().take(80).collect())) } else { Ok(address) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// In the API an address is a string.
impl utoipa::PartialSchema for Address {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        <String as utoipa::PartialSchema>::schema()
    }
}

impl utoipa::ToSchema for Address {}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse_with_port(&String::deserialize(d)?, 0).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_every_kind_are_read_and_printed() {
        for (text, host, port) in
            [("127.0.0.1:7471", "127.0.0.1", 7471), ("[::1]:9", "::1", 9), ("storage1.example:80", "storage1.example", 80)]
        {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port));
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(Address::parse_with_port("::1", 7).unwrap(), Address::new("::1", 7));
        assert_eq!(Address::parse_with_port("[::1]", 7).unwrap(), Address::new("::1", 7));
        assert_eq!(Address::parse_with_port("host", 7).unwrap(), Address::new("host", 7));
    }

    #[test]
    fn garbage_is_refused() {
        for text in
            ["", ":1", "host", "host:", "host:0", "host:65536", "host:-1", "host:+1", "[::1", "[host]:1", "a b:1", "h/x:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
