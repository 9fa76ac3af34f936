//! What a wrapped key is opened with: a passphrase, or the bytes of a key file.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::header::HeaderError;

/// Bytes that a passphrase or a key file may have.
const LENGTH_MAX: usize = 8 << 10;
/// A key file with less is no key: it must not be guessed.
const KEY_FILE_MIN: usize = 32;
/// Bytes of the key that wraps.
pub(crate) const WRAPPING_SIZE: usize = 32;

/// Where the bytes come from: both are treated alike, this is for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A passphrase, typed or from a file of one line.
    Passphrase,
    /// All bytes of a file.
    KeyFile,
}

/// See the module. Overwritten when dropped; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Unlock {
    kind: Kind,
    bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}(hidden)", self.kind)
    }
}

/// What Argon2id is to cost (RFC 9106).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cost {
    /// Memory in KiB.
    pub(crate) memory_kib: u32,
    /// Passes over it.
    pub(crate) passes: u32,
    /// Lanes.
    pub(crate) lanes: u32,
}

impl Cost {
    /// RFC 9106, section 4, the second recommended option: 64 MiB, which every borrower has.
    pub(crate) const USUAL: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 4 };
    /// A header with more is not this program's: it would only take memory and time.
    pub(crate) const MAX: Self = Self { memory_kib: 256 << 10, passes: 16, lanes: 16 };

    /// True if it is no more than the greatest, and what Argon2 can do.
    pub(crate) fn is_fair(self) -> bool {
        self.memory_kib <= Self::MAX.memory_kib
            && self.passes <= Self::MAX.passes
            && self.lanes <= Self::MAX.lanes
            && self.params().is_ok()
    }

    fn params(self) -> Result<Params, argon2::Error> {
        Params::new(self.memory_kib, self.passes, self.lanes, Some(WRAPPING_SIZE))
    }
}

impl Unlock {
    /// A passphrase.
    ///
    /// # Errors
    /// [`HeaderError::BadUnlock`] if it is empty or too long.
    pub fn passphrase(text: &str) -> Result<Self, HeaderError> {
        match text.len() {
            0 => Err(HeaderError::BadUnlock("the passphrase is empty".to_owned())),
            length if length > LENGTH_MAX => {
                Err(HeaderError::BadUnlock(format!("the passphrase has {length} bytes; at most {LENGTH_MAX} are taken")))
            }
            _ => Ok(Self { kind: Kind::Passphrase, bytes: Zeroizing::new(text.as_bytes().to_vec()) }),
        }
    }

    /// The bytes of a key file.
    ///
    /// # Errors
    /// [`HeaderError::BadUnlock`] if they are too few to be a key, or too many.
    pub fn key_file(bytes: &[u8]) -> Result<Self, HeaderError> {
        if !(KEY_FILE_MIN..=LENGTH_MAX).contains(&bytes.len()) {
            let text = format!("a key file has {KEY_FILE_MIN} to {LENGTH_MAX} random bytes, not {}", bytes.len());
            return Err(HeaderError::BadUnlock(text));
        }
        Ok(Self { kind: Kind::KeyFile, bytes: Zeroizing::new(bytes.to_vec()) })
    }

    /// Which it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// As one line, to hand it to another process of the same owner.
    pub fn to_line(&self) -> Zeroizing<String> {
        let word = match self.kind {
            Kind::Passphrase => "passphrase",
            Kind::KeyFile => "key-file",
        };
        Zeroizing::new(format!("{word} {}", STANDARD.encode(&self.bytes)))
    }

    /// Reads what [`Unlock::to_line`] wrote.
    ///
    /// # Errors
    /// [`HeaderError::BadUnlock`].
    pub fn from_line(line: &str) -> Result<Self, HeaderError> {
        let bad = || HeaderError::BadUnlock("no key was handed over".to_owned());
        let (word, text) = line.trim_end().split_once(' ').ok_or_else(bad)?;
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| bad())?);
        match word {
            "passphrase" => Self::passphrase(std::str::from_utf8(&bytes).map_err(|_| bad())?),
            "key-file" => Self::key_file(&bytes),
            _ => Err(bad()),
        }
    }

    /// The key that wraps, by Argon2id.
    pub(crate) fn wrapping_key(&self, salt: &[u8], cost: Cost) -> Result<Zeroizing<[u8; WRAPPING_SIZE]>, HeaderError> {
        let failed = |error: argon2::Error| HeaderError::Failed(format!("Argon2id: {error}"));
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost.params().map_err(failed)?);
        let mut key = Zeroizing::new([0; WRAPPING_SIZE]);
        argon.hash_password_into(&self.bytes, salt, key.as_mut_slice()).map_err(failed)?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_refused_and_nothing_is_shown() {
        Unlock::passphrase("").unwrap_err();
        Unlock::passphrase(&"x".repeat(LENGTH_MAX + 1)).unwrap_err();
        Unlock::key_file(&[1; 31]).unwrap_err();
        Unlock::key_file(&[1; LENGTH_MAX + 1]).unwrap_err();
        let secret = Unlock::passphrase("sesame").unwrap();
        assert_eq!((format!("{secret:?}").as_str(), secret.kind()), ("Passphrase(hidden)", Kind::Passphrase));
        assert_eq!(format!("{:?}", Unlock::key_file(&[1; 32]).unwrap()), "KeyFile(hidden)");
    }

    #[test]
    fn it_is_handed_over_as_one_line() {
        for unlock in [Unlock::passphrase("ses ame\u{e4}").unwrap(), Unlock::key_file(&[9; 64]).unwrap()] {
            let line = unlock.to_line();
            assert!(!line.contains('\n'));
            assert_eq!(Unlock::from_line(&format!("{}\n", *line)).unwrap(), unlock);
        }
        for bad in ["", "passphrase", "passphrase ", "passphrase ?", "word c2VzYW1l", "key-file c2VzYW1l", "passphrase /w=="] {
            Unlock::from_line(bad).unwrap_err();
        }
    }

    #[test]
    fn costs_without_measure_are_not_fair() {
        assert!(Cost::USUAL.is_fair() && Cost::MAX.is_fair());
        for cost in [
            Cost { memory_kib: Cost::MAX.memory_kib + 1, ..Cost::USUAL },
            Cost { passes: 0, ..Cost::USUAL },
            Cost { passes: 17, ..Cost::USUAL },
            Cost { lanes: 0, ..Cost::USUAL },
            Cost { lanes: 17, ..Cost::USUAL },
            Cost { memory_kib: 1, ..Cost::USUAL },
        ] {
            assert!(!cost.is_fair(), "{cost:?}");
        }
    }
}
