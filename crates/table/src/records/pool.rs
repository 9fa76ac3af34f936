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
}
