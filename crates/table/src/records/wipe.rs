//! Slices to be wiped, which are tombstones at the same time (P2, R2).

use serde::{Deserialize, Serialize};
use sublet_types::{AreaId, Epoch, Name, SliceId, VolumeId};

/// The bytes of a returned volume that are still somewhere. The space is placed nowhere until the lender has confirmed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WipeRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The slice.
    pub slice: SliceId,
    /// In which area.
    pub area: AreaId,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The volume it belonged to.
    pub volume: VolumeId,
    /// The volume's name then.
    pub name: Name,
    /// The epoch that fences the slice first.
    pub epoch: Epoch,
    /// Whether the slice leaves the label afterwards; otherwise it stays as a free one of a defined volume.
    pub drop: bool,
    /// It was a lost leg of a volume that goes on without it: the volume does not wait for this wipe.
    #[serde(default)]
    pub replaced: bool,
    /// The slice was replaced while this epoch had a holder who may still have a session there: it is not fenced before that
    /// one has dropped it, because a holder that is fenced anywhere stops everywhere (F4).
    #[serde(default)]
    pub held_by: Option<Epoch>,
    /// What this table knew of the copy when it replaced it.
    #[serde(default)]
    pub was: Option<Former>,
}

/// A copy that was replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Former {
    /// Its segment, from 0.
    pub segment: u32,
    /// Its number among the copies of the segment, from 0: the slice in its place has the same.
    pub leg: u32,
    /// The last generation that had been issued for the segment. A label that tells of a later one knew more (L5).
    pub issued: u64,
}
