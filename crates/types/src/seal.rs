//! The seal of an encrypted volume as others keep it for its borrower: text that means nothing to them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::SEAL_SIZE;

/// The header of an encrypted volume with its wrapped key, in base 64. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9+/]{4,1022}={0,2}$")]
pub struct SealText(String);

/// The size in bytes that users of a volume see: of a sealed one the end is not announced.
pub fn announced(size: u64, is_sealed: bool) -> u64 {
    if is_sealed { size.saturating_sub(SEAL_SIZE) } else { size }
}

/// The longest seal, in bytes.
pub const SEAL_LENGTH_MAX: usize = 1024;

/// A text is not a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealError;

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the seal of an encrypted volume: 4 to {SEAL_LENGTH_MAX} letters of base 64")
    }
}

impl std::error::Error for SealError {}

impl SealText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SealText {
    type Err = SealError;
    fn from_str(text: &str) -> Result<Self, SealError> {
        let digits = text.trim_end_matches('=');
        let legal = (4..=SEAL_LENGTH_MAX).contains(&text.len())
            && text.len() - digits.len() <= 2
            && digits.len() >= 2
            && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
        if legal { Ok(Self(text.to_owned())) } else { Err(SealError) }
    }
}

impl fmt::Debug for SealText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealText(hidden)")
    }
}

impl<'de> Deserialize<'de> for SealText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_base_64_of_a_sensible_length_is_one() {
        for text in ["AAAA", "AB+/cd09", "AAA=", "AA=="] {
            assert_eq!(text.parse::<SealText>().unwrap().as_str(), text);
        }
        for text in ["", "AAA", "A===", "====", "AA-A", "AA A", "A=AA", &"A".repeat(SEAL_LENGTH_MAX + 1)] {
            assert_eq!(text.parse::<SealText>(), Err(SealError), "{text}");
        }
        assert_eq!(format!("{:?}", "AAAA".parse::<SealText>()), "Ok(SealText(hidden))");
    }
}
