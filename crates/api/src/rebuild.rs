//! Rebuilding the table from the labels of the areas, and the administrator's decisions about what labels alone do not settle.

use serde::{Deserialize, Serialize};
use sublet_types::{Address, Name, PoolId, ServerId, VolumeId};

/// `POST /v1/rebuild`: begin or end a rebuild of the table from the labels (R1).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rebuild {
    /// Which pool an empty manager takes over; none takes the only one whose servers knock.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// The table is not empty: take over what the labels have beyond it (L5).
    #[serde(default)]
    pub reconcile: bool,
    /// End it: from now on space is given out again. What is not settled stays frozen.
    #[serde(default)]
    pub finish: bool,
}

/// How a rebuild is: the answer to [`Rebuild`] and to `GET /v1/rebuild`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RebuildView {
    /// The manager's pool.
    pub pool: PoolId,
    /// True while it goes on: nothing is placed meanwhile.
    pub open: bool,
    /// Since when, in milliseconds since 1970 (UTC); 0 if none goes on.
    pub since_ms: u64,
    /// Servers of other pools that have asked this manager to register them.
    pub knocking: Vec<KnockView>,
    /// The servers that have told of their areas.
    pub reported: Vec<Name>,
    /// The servers of the table that have not.
    pub silent: Vec<Name>,
    /// The areas whose labels are not known, because they are not open.
    #[serde(default)]
    pub offline: Vec<OfflineAreaView>,
    /// How many volumes are settled.
    pub settled: usize,
    /// The volumes that are not.
    pub unsettled: Vec<UnsettledView>,
    /// How many slices are to be wiped.
    pub wipes: usize,
    /// How many slices in labels the table does not know.
    pub strangers: usize,
    /// Stored rows that cannot be read and are kept aside.
    pub damaged: Vec<String>,
}

/// A server of another pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KnockView {
    /// Its pool.
    pub pool: PoolId,
    /// The server.
    pub server: ServerId,
    /// Its name there.
    pub name: Name,
    /// Its storage addresses.
    pub addresses: Vec<Address>,
    /// When it last asked, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
}

/// An area whose label cannot be read now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OfflineAreaView {
    /// The area's name.
    pub area: Name,
    /// Whose it is.
    pub server: Name,
    /// Why it is not open.
    pub reason: String,
}

/// A volume that may not be used yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UnsettledView {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// What is missing or contradicts.
    pub reason: String,
}

/// `POST /v1/volumes/{volume}/accept`: go on with these copies (R1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptVolume {
    /// The copies to go on with: name or id of their area or server, or the id of a slice.
    pub leg: String,
    /// Also if that copy is stale by its own label: newer writes are lost then.
    #[serde(default)]
    pub stale: bool,
}

/// `POST /v1/servers/{server}/forget`: a lender is gone for good (P2, F3).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// Do it; otherwise only tell what would be lost.
    #[serde(default)]
    pub confirm: bool,
}

/// The answer to [`Forget`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ForgetView {
    /// The server.
    pub server: Name,
    /// Whether it has been done.
    pub done: bool,
    /// What the pool loses with it, or has lost.
    pub losses: Vec<LossView>,
    /// The areas that go with it.
    pub areas: Vec<Name>,
}

/// What one volume loses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LossView {
    /// The volume.
    pub volume: Name,
    /// Who has borrowed it.
    pub borrower: Option<Name>,
    /// Whether it is mounted.
    pub mounted: bool,
    /// Bytes of it that no other copy in sync has: they are lost.
    pub bytes: u64,
    /// Copies of segments that go, while another one in sync stays.
    pub copies: usize,
}
