//! Who comes in: tokens, people, and what becomes of certificates.

pub mod enter;
pub mod people;
pub mod tokens;

use sha2::{Digest as _, Sha256};
use sublet_types::ServerId;

use crate::records::{AdmissionRow, ROW_VERSION};
use crate::table::Table;

/// What is kept of a secret or of a request: SHA-256, hexadecimal. A slow hash would add nothing to 128 random bits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is known of a server's certificates.
fn admission(table: &Table, server: ServerId) -> AdmissionRow {
    let known = table.admissions.get(&server).cloned();
    known.unwrap_or(AdmissionRow { version: ROW_VERSION, server, certified_from_ms: 0, revoked: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_secret_is_its_sha_256() {
        // sha256sum of the text.
        assert_eq!(digest(b"0123456789abcdef"), "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f");
    }
}
