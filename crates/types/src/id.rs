//! 128-bit random identities. Names may change, ids never do, and an address is never an identity (F6).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that should be an id is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdError(String);

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not an id: an id is 32 hexadecimal digits", self.0.escape_default())
    }
}

impl std::error::Error for IdError {}

/// Parses 32 hexadecimal digits.
pub(crate) fn parse_u128(text: &str) -> Result<u128, IdError> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(IdError(text.chars().take(80).collect()));
    }
    u128::from_str_radix(text, 16).map_err(|_| IdError(text.to_owned()))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, utoipa::ToSchema)]
        #[schema(value_type = String, example = "0123456789abcdef0123456789abcdef")]
        pub struct $name(u128);

        impl $name {
            /// Wraps 128 bits drawn from the `Rng` door.
            pub const fn from_u128(bits: u128) -> Self {
                Self(bits)
            }

            /// The bits, for records and frames (stored little-endian).
            pub const fn to_u128(self) -> u128 {
                self.0
            }

            /// The first eight hexadecimal digits: enough to tell ids apart in a table or a log.
            pub fn short(self) -> String {
                format!("{:08x}", self.0 >> 96)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_u128(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A pool: one manager's table and everything registered in it.
    PoolId
);
id!(
    /// One life of a manager's table; it stays the same over restarts and address changes.
    ManagerId
);
id!(
    /// A server with disks of its own.
    ServerId
);
id!(
    /// A token that lets somebody in, or a program ask.
    TokenId
);
id!(
    /// Somebody at a command line.
    PersonId
);
id!(
    /// An area that a server lends.
    AreaId
);
id!(
    /// A volume (virtual disk).
    VolumeId
);
id!(
    /// A slice of an area. Slice ids are random and never reused (P2).
    SliceId
);
id!(
    /// A task of the manager.
    TaskId
);
id!(
    /// One opening of an area by an agent (L2).
    OpenId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id = VolumeId::from_u128(0x0123_4567_89ab_cdef_0000_0000_0000_0001);
        assert_eq!(id.to_string().parse::<VolumeId>().unwrap(), id);
        assert_eq!(id.short(), "01234567");
        assert_eq!(serde_json::from_str::<VolumeId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    }

    #[test]
    fn what_was_typed_instead_reaches_no_terminal_as_it_is() {
        let error = "\u{1b}[2J\u{18}".parse::<SliceId>().unwrap_err().to_string();
        assert!(!error.contains(char::is_control) && error.contains("\\u{1b}[2J"), "{error:?}");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "x",
            "0123",
            "+1234567890123456789012345678901",
            "0123456789abcdef0123456789abcdeg",
            "\u{e4}123456789abcdef0123456789abcde",
        ] {
            assert!(text.parse::<SliceId>().is_err(), "{text}");
        }
    }
}
