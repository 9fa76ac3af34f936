//! What a server tells the manager: registration, heartbeat, areas.

use serde::{Deserialize, Serialize};
use sublet_types::{Address, AreaId, Epoch, Generation, ManagerId, Name, OpenId, PoolId, ServerId, SliceId, VolumeId};

use crate::order::{NumberedOrder, OrderResult};

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
}

/// One slice as the label has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SliceReport {
    /// The slice.
    pub slice: SliceId,
    /// Its volume.
    pub volume: VolumeId,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The newest epoch persisted.
    pub epoch: Epoch,
    /// Whether sessions of that epoch are admitted.
    pub admitted: bool,
    /// The generation persisted.
    pub generation: Generation,
    /// A wipe of it has begun and not ended.
    pub wiping: bool,
}
