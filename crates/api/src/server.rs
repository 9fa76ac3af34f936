//! What a server tells the manager: registration, heartbeat, areas.

use serde::{Deserialize, Serialize};
use sublet_types::{
    Address, AreaId, Epoch, Generation, LeaseSecret, ManagerId, Name, OpenId, PoolId, ServerId, SliceId, VolumeId,
};

use crate::order::{NumberedOrder, OrderResult, SliceFacts};

/// A server introduces itself: at its first start, after every restart, and when its addresses changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Register {
    /// The server's id, drawn at its first start and kept in its state directory.
    pub server: ServerId,
    /// The pool it belongs to, once it knows.
    pub pool: Option<PoolId>,
    /// The name it wishes at its first registration; later names come from the manager.
    pub name: Name,
    /// The failure zone; empty if none is set.
    #[serde(default)]
    pub zone: String,
    /// Storage addresses, tried by borrowers in this order.
    pub addresses: Vec<Address>,
    /// The software's version.
    pub version: String,
    /// Random per process of the server, so that a second one with the same state directory is noticed.
    pub run: u64,
}

/// The manager's answer to a registration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Registered {
    /// The pool.
    pub pool: PoolId,
    /// The manager.
    pub manager: ManagerId,
    /// The server's name in the table.
    pub name: Name,
    /// Where the manager can be reached.
    pub urls: Vec<String>,
}

/// The heartbeat: what the server has, and the answers to earlier orders. The manager holds the request until it has
/// orders or [`POLL_INTERVAL`](sublet_types::limits::POLL_INTERVAL) is over. A poll that brings results is answered at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Poll {
    /// The server's process (see [`Register::run`]).
    pub run: u64,
    /// Answers to orders.
    #[serde(default)]
    pub results: Vec<OrderResult>,
    /// All areas with their slices: sent in the first poll after a start, and whenever they changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub areas: Option<Vec<AreaReport>>,
}

/// The answer to a poll.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PollAnswer {
    /// What to do. Orders are executed concurrently, but those for one slice in the order given.
    pub orders: Vec<NumberedOrder>,
    /// The server must register again (the manager has restarted or the server had been silent).
    pub register: bool,
    /// The server's name in the table.
    pub name: Option<Name>,
    /// Where the manager can be reached now; stored by the server.
    pub urls: Vec<String>,
    /// False when the server has left the pool for good: it may stop.
    pub member: bool,
}

/// One area as the lender has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AreaReport {
    /// The area.
    pub area: AreaId,
    /// The pool its label names.
    pub pool: PoolId,
    /// Its name in the label.
    pub name: Name,
    /// Room for data in bytes (a multiple of 4 MiB).
    pub capacity: u64,
    /// What it lies on, for people, for example `file /srv/lend/a1.area` or `3 pieces: /dev/sdb, ...`.
    pub place: String,
    /// True if its space is not preallocated.
    pub sparse: bool,
    /// Why it is not served; none when it is.
    pub offline: Option<String>,
    /// This opening (L2).
    pub open: Option<OpenId>,
    /// The label's sequence number.
    pub sequence: u64,
    /// What the label holds.
    pub slices: Vec<SliceReport>,
    /// Earlier openings that the label still names, newest first (L2).
    #[serde(default)]
    pub history: Vec<OpenId>,
    /// Why the area is not trusted (rolled back, restored or cloned, L2); none when it is.
    #[serde(default)]
    pub quarantined: Option<String>,
    /// How often a write or a sync of its disk has failed (W7).
    #[serde(default)]
    pub failures: u64,
    /// Deleted volumes whose slices elsewhere are not confirmed as wiped (R2).
    #[serde(default)]
    pub tombstones: Vec<Tombstone>,
}

impl AreaReport {
    /// Takes the lease secrets out: for whatever is shown to people.
    pub fn hide_secrets(&mut self) {
        for lease in self.slices.iter_mut().filter_map(|slice| slice.lease.as_mut()) {
            lease.secret = None;
        }
    }
}

/// One slice as the label has it (L4).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SliceReport {
    /// Place, volume, and state of the segment.
    pub facts: SliceFacts,
    /// The newest epoch persisted.
    pub epoch: Epoch,
    /// Whether sessions of that epoch are admitted.
    pub admitted: bool,
    /// A wipe of it has begun and not ended.
    pub wiping: bool,
    /// That wipe removes the slice from the label at its end.
    #[serde(default)]
    pub drop: bool,
    /// The lease that is admitted, or was last.
    #[serde(default)]
    pub lease: Option<LeaseReport>,
    /// A client has it open for writing.
    #[serde(default)]
    pub open: bool,
    /// An epoch was not closed cleanly and the legs were not made equal since (H3).
    #[serde(default)]
    pub unclean: bool,
    /// For each leg of the segment: from which generation on this slice keeps a map of what that leg misses (S3). Empty if
    /// there is no map at all.
    #[serde(default)]
    pub missed_since: Vec<Option<Generation>>,
    /// How many of its regions are hot.
    #[serde(default)]
    pub hot: u32,
}

/// The lease that a label keeps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeaseReport {
    /// Who may open the slice.
    pub borrower: ServerId,
    /// Writes are refused.
    pub read_only: bool,
    /// What it must show: told to the manager, which issued it and may have lost it (R1); nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<LeaseSecret>,
}

/// A slice of a deleted volume, in an area that could not be reached then: kept in the labels of all areas that could, until
/// the slice is confirmed as wiped (R2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Tombstone {
    /// The volume that was deleted.
    pub volume: VolumeId,
    /// The slice that is to be wiped.
    pub slice: SliceId,
    /// The area that it lies in.
    pub area: AreaId,
    /// The epoch that fences it first.
    pub epoch: Epoch,
}
