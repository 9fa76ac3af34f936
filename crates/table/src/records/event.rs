//! Events.

use serde::{Deserialize, Serialize};

/// Something happened. Never holds a secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// Counts up.
    pub number: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// What about: the name of a server, area or volume; empty for the manager itself.
    pub subject: String,
    /// What happened.
    pub text: String,
}
