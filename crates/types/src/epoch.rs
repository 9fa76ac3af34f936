//! Epochs, generations, session numbers and lease secrets: the numbers that decide who may write where.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::parse_u128;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
        pub struct $name {
            /// Counts up by one with every change; never goes back.
            pub number: u64,
            /// 128 random bits: equal numbers with different random parts are a split.
            #[serde(with = "hex128")]
            #[schema(value_type = String)]
            pub random: u128,
        }

        impl $name {
            /// The successor, with random bits drawn from the `Rng` door by the manager.
            #[must_use]
            pub const fn next(self, random: u128) -> Self {
                Self { number: self.number + 1, random }
            }

            /// True if both have the same number but came from different histories: never merged, always shown.
            pub const fn is_split_from(self, other: Self) -> bool {
                self.number == other.number && self.random != other.random
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.number)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}-{:08x})"), self.number, self.random >> 96)
            }
        }
    };
}

numbered!(
    /// One mount of one volume. Issued by the manager only; lenders serve the newest they have persisted (F1).
    Epoch
);
numbered!(
    /// One state of a segment's in-sync set. Issued by the manager only (S1, S5).
    Generation
);

/// Counts the sessions of one epoch with one slice; a higher one closes all lower ones (W4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SessionNumber(pub u64);

/// The random 128-bit secret of a lease: it is handed to the borrower and to the lenders, and never printed.
#[derive(Clone, Copy, Default, utoipa::ToSchema)]
#[schema(value_type = String)]
pub struct LeaseSecret(u128);

impl LeaseSecret {
    /// Wraps 128 bits drawn from the `Rng` door.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits, for frames and for records that are kept 0600.
    pub const fn to_u128(self) -> u128 {
        self.0
    }

    /// Compares without an early exit, so that timing tells a guesser nothing.
    pub fn matches(self, other: Self) -> bool {
        std::hint::black_box(self.0 ^ other.0) == 0
    }
}

/// Secrets are equal when [`LeaseSecret::matches`] says so.
impl PartialEq for LeaseSecret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(*other)
    }
}

impl Eq for LeaseSecret {}

impl fmt::Debug for LeaseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseSecret(hidden)")
    }
}

impl Serialize for LeaseSecret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        hex128::serialize(&self.0, s)
    }
}

impl<'de> Deserialize<'de> for LeaseSecret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        hex128::deserialize(d).map(Self)
    }
}

/// 128 bits as 32 hexadecimal digits in JSON, which has no integers of that size.
mod hex128 {
    use super::{Deserialize, Deserializer, Serializer, parse_u128};

    pub(super) fn serialize<S: Serializer>(bits: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{bits:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        parse_u128(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_an_equal_number_with_other_random_bits() {
        let g = Generation { number: 3, random: 7 };
        assert!(g.is_split_from(Generation { number: 3, random: 8 }));
        assert!(!g.is_split_from(g));
        assert!(!g.is_split_from(g.next(9)));
        assert_eq!(g.next(9), Generation { number: 4, random: 9 });
    }

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        let secret = LeaseSecret::from_u128(0xdead_beef);
        assert!(!format!("{secret:?}").contains("dead"));
        assert!(secret.matches(LeaseSecret::from_u128(0xdead_beef)));
        assert!(!secret.matches(LeaseSecret::from_u128(0)));
    }

    #[test]
    fn an_epoch_survives_json() {
        let e = Epoch { number: 9, random: u128::MAX };
        assert_eq!(serde_json::from_str::<Epoch>(&serde_json::to_string(&e).unwrap()).unwrap(), e);
    }
}
