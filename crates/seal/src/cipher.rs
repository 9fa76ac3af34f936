//! AES-256 in XTS mode (IEEE Std 1619-2018, NIST SP 800-38E) over blocks of 4 KiB, done by OpenSSL, which uses the processor's
//! instructions for it. The tweak of a block is its number in the volume, as 128 bits, little-endian.

use std::cell::RefCell;
use std::fmt;

use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use sublet_types::limits::BLOCK_SIZE;
use zeroize::Zeroizing;

/// Bytes of a master key: one key of 256 bits for the data, one for the tweaks.
pub const MASTER_SIZE: usize = 64;

/// What the blocks of a volume are encrypted with. Overwritten when dropped; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey(Zeroizing<[u8; MASTER_SIZE]>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(hidden)")
    }
}

impl MasterKey {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> Result<Self, ErrorStack> {
        let mut bytes = Zeroizing::new([0; MASTER_SIZE]);
        // XTS must not have the same key for data and tweaks (SP 800-38E by way of FIPS 140, A.9); OpenSSL refuses such a key.
        openssl::rand::rand_priv_bytes(bytes.as_mut_slice())?;
        Ok(Self(bytes))
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    pub(crate) fn bytes(&self) -> &[u8; MASTER_SIZE] {
        &self.0
    }
}

/// Encrypts and decrypts the blocks of one volume. Of one thread.
pub struct Cipher {
    encrypt: RefCell<CipherCtx>,
    decrypt: RefCell<CipherCtx>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(hidden)")
    }
}

impl Cipher {
    /// With this key.
    ///
    /// # Errors
    /// OpenSSL does not take it: its halves are equal, or AES-256-XTS has been disabled.
    pub fn new(key: &MasterKey) -> Result<Self, ErrorStack> {
        Self::with_key(key.bytes())
    }

    fn with_key(key: &[u8; MASTER_SIZE]) -> Result<Self, ErrorStack> {
        let xts = openssl::cipher::Cipher::aes_256_xts();
        let (mut encrypt, mut decrypt) = (CipherCtx::new()?, CipherCtx::new()?);
        encrypt.encrypt_init(Some(xts), Some(key), Some(&[0; 16]))?;
        decrypt.decrypt_init(Some(xts), Some(key), Some(&[0; 16]))?;
        Ok(Self { encrypt: RefCell::new(encrypt), decrypt: RefCell::new(decrypt) })
    }

    /// Encrypts whole blocks; the first one has this number in the volume. `from` and `into` have the same length.
    ///
    /// # Errors
    /// OpenSSL fails: out of memory.
    pub fn encrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), ErrorStack> {
        let mut ctx = self.encrypt.borrow_mut();
        for_blocks(block, from, into, |tweak, from, into| {
            ctx.encrypt_init(None, None, Some(tweak))?;
            ctx.cipher_update(from, Some(into)).map(drop)
        })
    }

    /// Decrypts whole blocks likewise. A block that is all zero stays so: it was never written, or discarded.
    ///
    /// # Errors
    /// OpenSSL fails: out of memory.
    pub fn decrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), ErrorStack> {
        let mut ctx = self.decrypt.borrow_mut();
        for_blocks(block, from, into, |tweak, from, into| {
            // A block whose encrypted bytes are all zero by chance comes once in 2^32768.
            if from.iter().all(|byte| *byte == 0) {
                into.fill(0);
                return Ok(());
            }
            ctx.decrypt_init(None, None, Some(tweak))?;
            ctx.cipher_update(from, Some(into)).map(drop)
        })
    }
}

fn for_blocks(
    first: u64,
    from: &[u8],
    into: &mut [u8],
    mut work: impl FnMut(&[u8; 16], &[u8], &mut [u8]) -> Result<(), ErrorStack>,
) -> Result<(), ErrorStack> {
    debug_assert!(from.len() == into.len() && from.len().is_multiple_of(BLOCK_SIZE as usize), "whole blocks");
    let blocks = from.chunks(BLOCK_SIZE as usize).zip(into.chunks_mut(BLOCK_SIZE as usize));
    for (block, (from, into)) in (first..).zip(blocks) {
        work(&u128::from(block).to_le_bytes(), from, into)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    /// IEEE Std 1619-2007, annex B, vector 10 (XTS-AES-256, a data unit of 512 bytes, sequence number 0xff).
    #[test]
    fn it_is_xts_aes_256_as_ieee_1619_has_it() {
        let key = bytes(
            "2718281828459045235360287471352662497757247093699959574966967627
             3141592653589793238462643383279502884197169399375105820974944592",
        );
        let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
        let expected = bytes(
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44
             680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0
             c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d
             e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f
             93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6
             dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1
             505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b
             11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac
             6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493
             c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa
             773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
        );
        let cipher = Cipher::with_key(&key.try_into().unwrap()).unwrap();
        let (mut encrypted, mut decrypted) = (vec![0; 512], vec![0; 512]);
        // One data unit that is shorter than a block of a volume.
        cipher.encrypt_unit(0xff, &plain, &mut encrypted);
        assert_eq!(encrypted, expected);
        cipher.decrypt_unit(0xff, &encrypted, &mut decrypted);
        assert_eq!(decrypted, plain);
    }

    impl Cipher {
        fn encrypt_unit(&self, number: u128, from: &[u8], into: &mut [u8]) {
            let mut ctx = self.encrypt.borrow_mut();
            ctx.encrypt_init(None, None, Some(&number.to_le_bytes())).unwrap();
            ctx.cipher_update(from, Some(into)).unwrap();
        }

        fn decrypt_unit(&self, number: u128, from: &[u8], into: &mut [u8]) {
            let mut ctx = self.decrypt.borrow_mut();
            ctx.decrypt_init(None, None, Some(&number.to_le_bytes())).unwrap();
            ctx.cipher_update(from, Some(into)).unwrap();
        }
    }

    #[test]
    fn every_block_has_its_own_tweak_and_any_stretch_can_be_read_by_itself() {
        const B: usize = BLOCK_SIZE as usize;
        let cipher = Cipher::new(&MasterKey::generate().unwrap()).unwrap();
        let plain = vec![7; 3 * B];
        let mut all = vec![0; 3 * B];
        cipher.encrypt(u64::MAX - 5, &plain, &mut all).unwrap();
        assert!(all[..B] != all[B..2 * B] && all[B..2 * B] != all[2 * B..]);
        let mut one = vec![0; B];
        cipher.decrypt(u64::MAX - 4, &all[B..2 * B], &mut one).unwrap();
        assert_eq!(one, plain[..B]);
        cipher.decrypt(u64::MAX - 5, &all[B..2 * B], &mut one).unwrap();
        assert_ne!(one, plain[..B], "a block that was moved means nothing");
        let other = Cipher::new(&MasterKey::generate().unwrap()).unwrap();
        other.decrypt(u64::MAX - 4, &all[B..2 * B], &mut one).unwrap();
        assert_ne!(one, plain[..B]);
    }

    #[test]
    fn zeroes_that_are_stored_read_as_zero_and_zeroes_that_are_written_are_not_stored_so() {
        const B: usize = BLOCK_SIZE as usize;
        let cipher = Cipher::new(&MasterKey::generate().unwrap()).unwrap();
        let (zeroes, mut out) = (vec![0; 2 * B], vec![1; 2 * B]);
        cipher.decrypt(9, &zeroes, &mut out).unwrap();
        assert_eq!(out, zeroes);
        cipher.encrypt(9, &zeroes, &mut out).unwrap();
        assert!(out[..B].iter().any(|byte| *byte != 0) && out[B..].iter().any(|byte| *byte != 0));
    }

    #[test]
    fn a_key_is_hidden() {
        let key = MasterKey::generate().unwrap();
        assert_eq!(format!("{key:?} {:?}", Cipher::new(&key).unwrap()), "MasterKey(hidden) Cipher(hidden)");
        Cipher::with_key(&[7; MASTER_SIZE]).map(drop).unwrap_err();
    }
}
