//! Who may come in, and who has.

use serde::{Deserialize, Serialize};
use sublet_api::access::{Role, TokenUse};
use sublet_types::{Name, PersonId, ServerId, TokenId};

/// Somebody who may use the command line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PersonRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// Who.
    pub id: PersonId,
    /// What they are called; unique.
    pub name: Name,
    /// What they may do.
    pub role: Role,
    /// Certificates that were issued before are void, in milliseconds since 1970.
    pub certified_from_ms: u64,
    /// When they got a certificate last, in milliseconds since 1970.
    pub entered_ms: Option<u64>,
}

/// A token. Its secret is not here: only what it can be recognised by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// Which.
    pub id: TokenId,
    /// SHA-256 of its secret, hexadecimal.
    pub digest: String,
    /// What it is good for. A server or person is named by its id here.
    pub what: TokenUse,
    /// Who made it.
    pub made_by: String,
    /// When, in milliseconds since 1970.
    pub made_ms: u64,
    /// Until when it is valid, in milliseconds since 1970.
    pub expires_ms: u64,
    /// How many may use it yet.
    pub uses_left: u32,
    /// The requests (SHA-256, hexadecimal) for which it was used: they may be repeated.
    pub used_for: Vec<String>,
}

/// What is to be known of a server's certificates. A server without this row has those that its authority has issued.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdmissionRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The server.
    pub server: ServerId,
    /// Certificates that were issued before are void, in milliseconds since 1970.
    pub certified_from_ms: u64,
    /// None is valid, until it rejoins.
    pub revoked: bool,
}
