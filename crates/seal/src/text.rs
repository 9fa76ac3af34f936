//! A short secret text, sealed for a document that others keep: the key of a pool's authority in an export of its table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::symm;
use zeroize::Zeroizing;

use crate::header::{Header, HeaderError};
use crate::unlock::Unlock;

const NONCE_SIZE: usize = 12;
const TAG_SIZE: usize = 16;
/// Bytes of an AES-256 key.
const KEY_SIZE: usize = 32;

/// Seals a text: a key header with a master key of its own, a point, and what AES-256-GCM makes of the text with the first half of
/// that key (nonce, bytes, tag), both in base 64. The header is authenticated with it.
///
/// # Errors
/// [`HeaderError::Failed`].
pub fn seal_text(text: &str, unlock: &Unlock) -> Result<String, HeaderError> {
    let (header, key) = Header::create(unlock)?;
    let (mut nonce, mut tag) = ([0; NONCE_SIZE], [0; TAG_SIZE]);
    openssl::rand::rand_bytes(&mut nonce)?;
    let (half, header) = (key.bytes().first_chunk::<KEY_SIZE>(), header.to_string());
    let half = half.ok_or_else(|| HeaderError::Failed("a key has another length".to_owned()))?;
    let gcm = symm::Cipher::aes_256_gcm();
    let hidden = symm::encrypt_aead(gcm, half, Some(&nonce), header.as_bytes(), text.as_bytes(), &mut tag)?;
    Ok(format!("{header}.{}", STANDARD.encode([nonce.as_slice(), &hidden, &tag].concat())))
}

/// Opens what [`seal_text`] made.
///
/// # Errors
/// [`HeaderError::Wrong`] if it is not opened by that; [`HeaderError::Damaged`] and the like.
pub fn open_text(sealed: &str, unlock: &Unlock) -> Result<Zeroizing<String>, HeaderError> {
    let damaged = || HeaderError::Damaged("the sealed text is damaged");
    let (header, hidden) = sealed.split_once('.').ok_or_else(damaged)?;
    let hidden = STANDARD.decode(hidden).map_err(|_| damaged())?;
    let (nonce, rest) = hidden.split_at_checked(NONCE_SIZE).ok_or_else(damaged)?;
    let (bytes, tag) = rest.split_at_checked(rest.len().saturating_sub(TAG_SIZE)).ok_or_else(damaged)?;
    let key = Header::parse(header)?.open(unlock)?;
    let half = key.bytes().first_chunk::<KEY_SIZE>().ok_or_else(damaged)?;
    let gcm = symm::Cipher::aes_256_gcm();
    let opened = symm::decrypt_aead(gcm, half, Some(nonce), header.as_bytes(), bytes, tag).map_err(|_| damaged())?;
    String::from_utf8(opened).map(Zeroizing::new).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_is_opened_by_its_passphrase_and_not_when_anything_is_changed() {
        let (right, wrong) = (Unlock::passphrase("sesame").unwrap(), Unlock::passphrase("Sesame").unwrap());
        let sealed = seal_text("the key of the pool", &right).unwrap();
        assert!(!sealed.contains("key of the pool"));
        assert_eq!(open_text(&sealed, &right).unwrap().as_str(), "the key of the pool");
        assert!(matches!(open_text(&sealed, &wrong), Err(HeaderError::Wrong { .. })));
        assert_ne!(seal_text("the key of the pool", &right).unwrap(), sealed);
        let (header, hidden) = sealed.split_once('.').unwrap();
        let other = seal_text("another", &right).unwrap();
        let mut bytes = STANDARD.decode(hidden).unwrap();
        bytes[NONCE_SIZE] ^= 1;
        let changed = format!("{header}.{}", STANDARD.encode(&bytes));
        let swapped = format!("{}.{hidden}", other.split_once('.').unwrap().0);
        for text in [changed.as_str(), &swapped, header, "", ".", &sealed[..sealed.len() - 8]] {
            open_text(text, &right).unwrap_err();
        }
    }
}
