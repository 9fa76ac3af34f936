//! The pool and its manager.

use serde::{Deserialize, Serialize};
use sublet_types::{ManagerId, PoolId};

/// The one row that says whose table this is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The pool.
    pub pool: PoolId,
    /// The manager.
    pub manager: ManagerId,
    /// The table is being rebuilt from the labels (R1): nothing is placed until that has ended.
    #[serde(default)]
    pub rebuild: Option<RebuildRow>,
}

/// A rebuild that is going on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RebuildRow {
    /// Since when, in milliseconds since 1970 (UTC).
    pub since_ms: u64,
    /// The table was not empty: labels that are ahead of it, and slices that it does not know, are taken over (L5).
    pub reconcile: bool,
}
