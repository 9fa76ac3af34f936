//! Servers.

use serde::{Deserialize, Serialize};
use sublet_types::{Address, Name, ServerId};

/// One registered server. Whether it is up is not stored: that is known by hearing from it only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The server.
    pub id: ServerId,
    /// Its name, unique among the members.
    pub name: Name,
    /// Its failure zone; empty if none is set.
    pub zone: String,
    /// Its storage addresses.
    pub addresses: Vec<Address>,
    /// Its software's version.
    pub software: String,
    /// It has left for good; the row stays so that it is told so when it comes again.
    pub left: bool,
    /// Bytes that it may borrow at most, every copy counted; none is no limit.
    #[serde(default)]
    pub bytes_max: Option<u64>,
    /// Volumes that it may borrow at most; none is no limit.
    #[serde(default)]
    pub volumes_max: Option<u32>,
}
