//! Sizes in bytes, as people type and read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. In JSON a plain integer; typed as `10G`, `512MiB`, `4096`, `1.5T` (all units are powers of 1024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(value_type = u64)]
pub struct ByteSize(pub u64);

/// 1024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub const GIB: u64 = 1 << 30;
/// 1024 GiB.
pub const TIB: u64 = 1 << 40;

/// A text is not a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeError {
    text: String,
    reason: &'static str,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not a size: {}; write a number of bytes or use K, M, G, T, P (powers of 1024), for example 512M or 10G",
            self.text.escape_default(),
            self.reason
        )
    }
}

impl std::error::Error for SizeError {}

impl ByteSize {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

fn unit_shift(unit: &str) -> Option<u32> {
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        _ => return None,
    };
    Some(shift)
}

impl FromStr for ByteSize {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let fail = |reason| SizeError { text: text.chars().take(80).collect(), reason };
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        if number.is_empty() {
            return Err(fail("it does not begin with a number"));
        }
        let shift = unit_shift(unit.trim()).ok_or_else(|| fail("its unit is not known"))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.is_empty() || (number.contains('.') && fraction.is_empty()) {
            return Err(fail("its number is malformed"));
        }
        let whole: u64 = whole.parse().map_err(|_| fail("its number is too large"))?;
        let whole = whole.checked_mul(1 << shift).ok_or_else(|| fail("it is larger than 2^64 bytes"))?;
        // A fraction of a unit is rounded down to whole bytes; twelve digits are more than any unit needs.
        let part = if fraction.is_empty() {
            0
        } else {
            let kept = fraction.get(..fraction.len().min(12)).unwrap_or(fraction);
            let numerator: u64 = kept.parse().map_err(|_| fail("its number is malformed"))?;
            let denominator = 10u128.pow(kept.len() as u32);
            u64::try_from((u128::from(numerator) << shift) / denominator).map_err(|_| fail("its number is too large"))?
        };
        whole.checked_add(part).map(ByteSize).ok_or_else(|| fail("it is larger than 2^64 bytes"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 50, "PiB"), (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        let text = units
            .iter()
            .find(|(unit, _)| self.0 >= *unit)
            .map(|(unit, name)| {
                if self.0.is_multiple_of(*unit) {
                    format!("{} {name}", self.0 / unit)
                } else {
                    format!("{:.2} {name}", self.0 as f64 / *unit as f64)
                }
            })
            .unwrap_or_else(|| format!("{} B", self.0));
        f.pad(&text)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("4096", 4096),
            ("10K", 10 * KIB),
            ("512M", 512 * MIB),
            ("512MiB", 512 * MIB),
            ("1.5g", GIB + GIB / 2),
            ("10 G", 10 * GIB),
            ("2TB", 2 * TIB),
            ("7B", 7),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for text in ["", "-1", "G", "10 potatoes", "1e9", "1..5G", ".5G", "1.G", "18446744073709551616", "16777216T", "0x10"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains("is not a size"), "{error}");
            assert!(error.contains("for example"), "{error}");
        }
    }

    #[test]
    fn sizes_print_short() {
        assert_eq!(ByteSize(512 * MIB).to_string(), "512 MiB");
        assert_eq!(ByteSize(GIB + GIB / 2).to_string(), "1.50 GiB");
        assert_eq!(ByteSize(1000).to_string(), "1000 B");
    }
}
