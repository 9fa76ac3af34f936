//! Mounting and unmounting information (seed: FIG. 5B, steps S2-S4, S33, S35).

use serde::{Deserialize, Serialize};
use sublet_types::seal::announced;
use sublet_types::{
    Address, AreaId, Epoch, Generation, LeaseSecret, ManagerId, Name, PoolId, SealText, ServerId, SliceId, VolumeId, Way,
};

/// Everything a client needs to reach a volume's lenders without asking again. Kept 0600 at the borrower
/// (`$SUBLET_HOME/mounts/NAME/mount.json`); printed without the secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountingInformation {
    /// Version of this record: 1, or 2 for a sealed volume.
    pub version: u32,
    /// The pool.
    pub pool: PoolId,
    /// The manager that issued it.
    pub manager: ManagerId,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's name when it was mounted.
    pub name: Name,
    /// The usage way, as the table has it.
    pub way: Way,
    /// Size in bytes; a sealed volume announces [`SEAL_SIZE`](sublet_types::limits::SEAL_SIZE) less.
    pub size: u64,
    /// Whether the borrower has sealed it: it is used with its key only.
    #[serde(default)]
    pub sealed: bool,
    /// The key header of a sealed volume as the table has it. The volume itself has it too, and the newer one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealText>,
    /// The borrower's id (seed: request-source server information).
    pub borrower: ServerId,
    /// The borrower's name.
    pub borrower_name: Name,
    /// The status information of the table: 1 means actually mounted.
    pub status: u8,
    /// True if writes are refused at every lender.
    pub read_only: bool,
    /// The epoch of this mount.
    pub epoch: Epoch,
    /// The lease secret; absent where the information is printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<LeaseSecret>,
    /// The segments in the order of the volume.
    pub segments: Vec<MountSegment>,
}

impl MountingInformation {
    /// A copy that may be printed: everything but the secret and the wrapped key.
    #[must_use]
    pub fn printable(&self) -> Self {
        Self { secret: None, seal: None, ..self.clone() }
    }

    /// The size that its users see, in bytes.
    pub fn announced(&self) -> u64 {
        announced(self.size, self.sealed)
    }
}

/// `POST /v1/volumes/{volume}/seal`: the borrower has wrapped the key of a sealed volume anew.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSeal {
    /// Who says so: only the borrower may.
    pub server: ServerId,
    /// The seal that it replaces, as the table should have it; none if it has none.
    #[serde(default)]
    pub from: Option<SealText>,
    /// The new one.
    pub to: SealText,
}

/// One segment of the mounting information.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountSegment {
    /// Length in bytes (a multiple of 4 KiB).
    pub length: u64,
    /// The generation of the in-sync set.
    pub generation: Generation,
    /// The legs: copies on different servers (S6).
    pub legs: Vec<MountLeg>,
}

/// One leg of the mounting information (seed: physical disk information).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountLeg {
    /// The slice: the identity in every request (F6).
    pub slice: SliceId,
    /// The area it lies in.
    pub area: AreaId,
    /// The area's name.
    pub area_name: Name,
    /// The lender.
    pub server: ServerId,
    /// The lender's name.
    pub server_name: Name,
    /// The lender's storage addresses, tried in this order.
    pub addresses: Vec<Address>,
    /// Where the slice begins in the area's data space, in bytes (for people; the lender's label decides, L5).
    pub offset: u64,
    /// Whether this leg is in the in-sync set.
    pub in_sync: bool,
    /// The generation in which a stale leg left the in-sync set. A missed map that begins with exactly this generation says
    /// what it lacks (S3); none means that it lacks everything: it is new, or it is not known since when it is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_since: Option<Generation>,
}

/// The answer to an unmount (seed: unmounting information, S3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UnmountingInformation {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// The epoch that was closed.
    pub epoch_closed: Epoch,
    /// The lenders that have closed the path.
    pub released: Vec<Name>,
    /// The lenders that did not answer; they are fenced before they serve again (F3).
    pub unreachable: Vec<Name>,
    /// The status information of the table: 0.
    pub status: u8,
}
