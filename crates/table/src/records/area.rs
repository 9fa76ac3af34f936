//! Areas.

use serde::{Deserialize, Serialize};
use sublet_types::{AreaId, Name, OpenId, ServerId, SliceId, VolumeId};

/// One registered area.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AreaRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The area.
    pub id: AreaId,
    /// Who has its disk: it moves with the disk (identity is in the label).
    pub server: ServerId,
    /// Its name, unique in the pool.
    pub name: Name,
    /// Room for data in bytes.
    pub capacity: u64,
    /// What it lies on, for people.
    pub place: String,
    /// Whether its space is not preallocated.
    pub sparse: bool,
    /// Why it is not served; none when it is.
    pub offline: Option<String>,
    /// The opening that was last reported (L2).
    pub open: Option<OpenId>,
    /// The label's sequence that was last reported.
    pub sequence: u64,
    /// It is being taken back by its owner: nothing is placed there.
    pub reclaiming: bool,
    /// Slices of the label that the table does not know: never touched, and nothing is placed over them (L5).
    #[serde(default)]
    pub strangers: Vec<Stranger>,
    /// Why the area is not trusted: rolled back, restored or cloned (L2). Nothing new is placed there until it is accepted.
    #[serde(default)]
    pub quarantined: Option<String>,
    /// The reason in the label that an administrator has accepted: it is to be taken out of the label.
    #[serde(default)]
    pub accepted: Option<String>,
}

/// A slice that only the label knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stranger {
    /// The slice.
    pub slice: SliceId,
    /// The volume that the label names.
    pub volume: VolumeId,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}
