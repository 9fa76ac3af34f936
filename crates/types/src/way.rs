//! Usage ways: how areas become a volume.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The usage way of a volume (the seed's words; `linear`, `concat` and `mirror` are read as aliases).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// One area, which the volume has to itself.
    #[serde(alias = "linear")]
    Single,
    /// Areas (or divisions) of several servers follow each other.
    #[serde(alias = "concat")]
    Integrated,
    /// The same bytes on two or more servers; several segments make it doubled and integrated together.
    #[serde(alias = "mirror")]
    Doubled,
    /// A part of an area that is shared with other volumes.
    Divided,
}

/// A text names no usage way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayError(String);

impl fmt::Display for WayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not a usage way: use single, integrated, doubled or divided", self.0.escape_default())
    }
}

impl std::error::Error for WayError {}

impl Way {
    /// The word shown to people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Way::Single => "single",
            Way::Integrated => "integrated",
            Way::Doubled => "doubled",
            Way::Divided => "divided",
        }
    }

    /// The number of this way in labels and frames (`docs/format.md`).
    pub const fn to_u8(self) -> u8 {
        match self {
            Way::Single => 1,
            Way::Integrated => 2,
            Way::Doubled => 3,
            Way::Divided => 4,
        }
    }

    /// The way with that number, if there is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Way::Single),
            2 => Some(Way::Integrated),
            3 => Some(Way::Doubled),
            4 => Some(Way::Divided),
            _ => None,
        }
    }
}

impl FromStr for Way {
    type Err = WayError;
    fn from_str(text: &str) -> Result<Self, WayError> {
        match text.to_ascii_lowercase().as_str() {
            "single" | "linear" => Ok(Way::Single),
            "integrated" | "concat" => Ok(Way::Integrated),
            "doubled" | "mirror" => Ok(Way::Doubled),
            "divided" => Ok(Way::Divided),
            _ => Err(WayError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_and_their_aliases_are_read() {
        for (text, way) in [
            ("single", Way::Single),
            ("linear", Way::Single),
            ("concat", Way::Integrated),
            ("MIRROR", Way::Doubled),
            ("divided", Way::Divided),
        ] {
            assert_eq!(text.parse(), Ok(way));
        }
        assert!("raid6".parse::<Way>().is_err());
    }

    #[test]
    fn numbers_in_labels_read_back() {
        for way in [Way::Single, Way::Integrated, Way::Doubled, Way::Divided] {
            assert_eq!(Way::from_u8(way.to_u8()), Some(way));
        }
        assert_eq!(Way::from_u8(0), None);
    }
}
