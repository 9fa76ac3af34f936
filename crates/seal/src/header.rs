//! The header of a sealed volume: its master key, wrapped.
//!
//! 256 bytes; numbers are little-endian. As text it is base 64 (RFC 4648, 4).
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `SubletSl` |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | what opens it: 1 a passphrase, 2 a key file (for messages only) |
//! | 16 | 16 | random: tells this seal from others; stays when the key is wrapped anew |
//! | 32 | 8 | serial: 1, and one more each time that the key is wrapped anew; of two headers the higher one counts |
//! | 40 | 4, 4, 4 | Argon2id (RFC 9106): memory in KiB, passes, lanes |
//! | 52 | 12 | zero |
//! | 64 | 32 | salt, random |
//! | 96 | 12 | nonce, random |
//! | 108 | 4 | zero |
//! | 112 | 64 | the master key, encrypted with AES-256-GCM (NIST SP 800-38D); bytes 0 to 111 are authenticated with it |
//! | 176 | 16 | the tag |
//! | 192 | 60 | zero |
//! | 252 | 4 | CRC32C of bytes 0 to 251 |

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::error::ErrorStack;
use openssl::symm;
use zeroize::Zeroizing;

use crate::cipher::{MASTER_SIZE, MasterKey};
use crate::unlock::{Cost, Kind, Unlock};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 256;
const MAGIC: [u8; 8] = *b"SubletSl";
const VERSION: u32 = 1;
/// What is authenticated.
const FACTS: usize = 112;
const TAG_SIZE: usize = 16;
const SUM_AT: usize = HEADER_SIZE - 4;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Header([u8; HEADER_SIZE]);

/// What is wrong with a header, or with what is to open it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// It is none: there is something else.
    None,
    /// It is damaged.
    Damaged(&'static str),
    /// It was written by a newer program.
    Newer(u32),
    /// The passphrase or key file is not the right one.
    Wrong {
        /// What was given.
        given: Kind,
        /// What opens it.
        wanted: Kind,
    },
    /// It belongs to another encryption of the volume than the one that is stored there.
    Foreign,
    /// The passphrase or key file cannot be one at all.
    BadUnlock(String),
    /// The arithmetic failed: no memory, no random numbers.
    Failed(String),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::None => f.write_str("there is no key header"),
            HeaderError::Damaged(what) => write!(f, "the key header is damaged: {what}"),
            HeaderError::Newer(version) => write!(f, "the key header has version {version}, this program knows {VERSION}"),
            HeaderError::Wrong { given: Kind::Passphrase, wanted: Kind::Passphrase } => f.write_str("the passphrase is wrong"),
            HeaderError::Wrong { given: Kind::KeyFile, wanted: Kind::KeyFile } => {
                f.write_str("the key file is not the one of this volume")
            }
            HeaderError::Wrong { wanted: Kind::KeyFile, .. } => f.write_str("a key file opens it, not a passphrase"),
            HeaderError::Wrong { wanted: Kind::Passphrase, .. } => f.write_str("a passphrase opens it, not a key file"),
            HeaderError::Foreign => f.write_str("its two key headers are of different encryptions"),
            HeaderError::BadUnlock(text) => f.write_str(text),
            HeaderError::Failed(text) => write!(f, "the encryption failed: {text}"),
        }
    }
}

impl std::error::Error for HeaderError {}

impl From<ErrorStack> for HeaderError {
    fn from(error: ErrorStack) -> Self {
        HeaderError::Failed(error.to_string())
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Header(serial {})", self.serial())
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Header {
    /// A new seal: a new master key, wrapped.
    ///
    /// # Errors
    /// [`HeaderError::Failed`].
    pub fn create(unlock: &Unlock) -> Result<(Self, MasterKey), HeaderError> {
        let mut id = [0; 16];
        openssl::rand::rand_bytes(&mut id)?;
        let key = MasterKey::generate()?;
        Ok((Self::wrap(&key, unlock, id, 1, Cost::USUAL)?, key))
    }

    /// The same key wrapped by something else, from then on. The serial has to be higher than that of any other header.
    ///
    /// # Errors
    /// [`HeaderError::Wrong`] if `old` does not open it; [`HeaderError::Failed`].
    pub fn rewrapped(&self, old: &Unlock, new: &Unlock, serial: u64) -> Result<Self, HeaderError> {
        let key = self.open(old)?;
        Self::wrap(&key, new, self.id(), serial, Cost::USUAL)
    }

    fn wrap(key: &MasterKey, unlock: &Unlock, id: [u8; 16], serial: u64, cost: Cost) -> Result<Self, HeaderError> {
        let (mut salt, mut nonce) = ([0; 32], [0; 12]);
        openssl::rand::rand_bytes(&mut salt)?;
        openssl::rand::rand_bytes(&mut nonce)?;
        let kind: u32 = match unlock.kind() {
            Kind::Passphrase => 1,
            Kind::KeyFile => 2,
        };
        let mut facts = Vec::with_capacity(HEADER_SIZE);
        facts.extend(MAGIC);
        facts.extend(VERSION.to_le_bytes());
        facts.extend(kind.to_le_bytes());
        facts.extend(id);
        facts.extend(serial.to_le_bytes());
        facts.extend([cost.memory_kib, cost.passes, cost.lanes].map(u32::to_le_bytes).concat());
        facts.resize(64, 0);
        facts.extend(salt);
        facts.extend(nonce);
        facts.resize(FACTS, 0);
        let wrapping = unlock.wrapping_key(&salt, cost)?;
        let mut tag = [0; TAG_SIZE];
        let gcm = symm::Cipher::aes_256_gcm();
        let wrapped = symm::encrypt_aead(gcm, wrapping.as_slice(), Some(&nonce), &facts, key.bytes().as_slice(), &mut tag)?;
        let mut bytes = facts;
        bytes.extend(wrapped);
        bytes.extend(tag);
        bytes.resize(SUM_AT, 0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes.try_into().map(Self).map_err(|_| HeaderError::Failed("a header has another length".to_owned()))
    }

    /// The master key.
    ///
    /// # Errors
    /// [`HeaderError::Wrong`] if it is not opened by that; [`HeaderError::Failed`].
    pub fn open(&self, unlock: &Unlock) -> Result<MasterKey, HeaderError> {
        let wrapping = unlock.wrapping_key(self.part(64, 32), self.cost())?;
        let (facts, nonce) = (self.part(0, FACTS), self.part(96, 12));
        let (wrapped, tag) = (self.part(FACTS, MASTER_SIZE), self.part(FACTS + MASTER_SIZE, TAG_SIZE));
        let gcm = symm::Cipher::aes_256_gcm();
        let opened = symm::decrypt_aead(gcm, wrapping.as_slice(), Some(nonce), facts, wrapped, tag);
        let opened = Zeroizing::new(opened.map_err(|_| HeaderError::Wrong { given: unlock.kind(), wanted: self.kind() })?);
        MasterKey::from_slice(&opened).ok_or(HeaderError::Damaged("the wrapped key has another length"))
    }

    /// Reads one from the beginning of `bytes`.
    ///
    /// # Errors
    /// [`HeaderError::None`] if something else is there; [`HeaderError::Damaged`], [`HeaderError::Newer`].
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let own: &[u8; HEADER_SIZE] = bytes.first_chunk().ok_or(HeaderError::None)?;
        let header = Self(*own);
        if header.part(0, 8) != MAGIC {
            return Err(HeaderError::None);
        }
        if header.number(SUM_AT) != crc32c::crc32c(header.part(0, SUM_AT)) {
            return Err(HeaderError::Damaged("its checksum is wrong"));
        }
        if header.number(8) != VERSION {
            return Err(HeaderError::Newer(header.number(8)));
        }
        if !header.cost().is_fair() {
            return Err(HeaderError::Damaged("it asks for more memory or time than is sensible"));
        }
        Ok(header)
    }

    /// Reads what [`fmt::Display`] wrote.
    ///
    /// # Errors
    /// As [`Header::decode`].
    pub fn parse(text: &str) -> Result<Self, HeaderError> {
        let bytes = STANDARD.decode(text).map_err(|_| HeaderError::Damaged("it is not base 64"))?;
        if bytes.len() != HEADER_SIZE {
            return Err(HeaderError::Damaged("it has another length"));
        }
        Self::decode(&bytes)
    }

    /// As it is stored.
    pub const fn bytes(&self) -> &[u8; HEADER_SIZE] {
        &self.0
    }

    /// Tells seals apart.
    pub fn id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(self.part(16, 16));
        id
    }

    /// How often the key was wrapped: of two headers of a volume the higher one counts.
    pub fn serial(&self) -> u64 {
        u64::from(self.number(32)) | u64::from(self.number(36)) << 32
    }

    /// What opens it.
    pub fn kind(&self) -> Kind {
        if self.number(12) == 2 { Kind::KeyFile } else { Kind::Passphrase }
    }

    fn cost(&self) -> Cost {
        Cost { memory_kib: self.number(40), passes: self.number(44), lanes: self.number(48) }
    }

    fn part(&self, at: usize, length: usize) -> &[u8] {
        self.0.get(at..at + length).unwrap_or_default()
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.part(at, 4).try_into().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };

    fn secret(text: &str) -> Unlock {
        Unlock::passphrase(text).unwrap()
    }

    fn sealed(text: &str) -> (Header, MasterKey) {
        let key = MasterKey::generate().unwrap();
        (Header::wrap(&key, &secret(text), [3; 16], 1, CHEAP).unwrap(), key)
    }

    #[test]
    fn only_the_right_passphrase_opens_it_and_it_is_read_as_it_is_written() {
        let (header, key) = sealed("sesame");
        for again in [Header::decode(header.bytes()).unwrap(), Header::parse(&header.to_string()).unwrap()] {
            assert_eq!(again, header);
            assert_eq!(again.open(&secret("sesame")).unwrap(), key);
        }
        assert_eq!(header.open(&secret("Sesame")), Err(HeaderError::Wrong { given: Kind::Passphrase, wanted: Kind::Passphrase }));
        let file = Unlock::key_file(&[7; 32]).unwrap();
        assert_eq!(header.open(&file), Err(HeaderError::Wrong { given: Kind::KeyFile, wanted: Kind::Passphrase }));
        assert_eq!((header.id(), header.serial(), header.kind()), ([3; 16], 1, Kind::Passphrase));
    }

    #[test]
    fn wrapped_anew_it_has_the_same_key_and_the_old_passphrase_does_not_open_it() {
        let (header, key) = sealed("old");
        let file = Unlock::key_file(&[7; 32]).unwrap();
        assert_eq!(
            header.rewrapped(&file, &secret("new"), 2),
            Err(HeaderError::Wrong { given: Kind::KeyFile, wanted: Kind::Passphrase })
        );
        let fresh = header.rewrapped(&secret("old"), &file, 2).unwrap();
        assert_eq!((fresh.serial(), fresh.id(), fresh.kind()), (2, header.id(), Kind::KeyFile));
        assert_eq!(fresh.open(&file).unwrap(), key);
        fresh.open(&secret("old")).unwrap_err();
    }

    #[test]
    fn what_is_changed_does_not_open_even_if_its_checksum_is_made_right() {
        let (header, _) = sealed("sesame");
        for at in (0..SUM_AT).step_by(7) {
            let mut bytes = *header.bytes();
            bytes[at] ^= 1;
            assert!(Header::decode(&bytes).is_err(), "byte {at}");
            let sum = crc32c::crc32c(&bytes[..SUM_AT]).to_le_bytes();
            bytes[SUM_AT..].copy_from_slice(&sum);
            // What is behind the tag is not used at all.
            if at < 192 {
                assert!(Header::decode(&bytes).and_then(|header| header.open(&secret("sesame"))).is_err(), "byte {at}");
            }
        }
        assert_eq!(Header::decode(&[0; 4096]), Err(HeaderError::None));
        assert_eq!(Header::decode(&[]), Err(HeaderError::None));
        assert!(matches!(Header::parse("x"), Err(HeaderError::Damaged(_))));
        assert!(matches!(Header::parse(&STANDARD.encode([0; 255])), Err(HeaderError::Damaged(_))));
    }

    #[test]
    fn a_newer_one_is_refused() {
        let (header, _) = sealed("sesame");
        let mut bytes = *header.bytes();
        bytes[8] = 2;
        let sum = crc32c::crc32c(&bytes[..SUM_AT]).to_le_bytes();
        bytes[SUM_AT..].copy_from_slice(&sum);
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Newer(2)));
    }
}
