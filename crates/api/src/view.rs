//! What the reading commands show: the table as data.

use serde::{Deserialize, Serialize};
use sublet_types::{Address, AreaId, Epoch, Generation, ManagerId, Name, PoolId, ServerId, SliceId, TaskId, VolumeId, Way};

/// Who the manager is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    /// The pool.
    pub pool: PoolId,
    /// The manager.
    pub manager: ManagerId,
    /// The software's version.
    pub version: String,
    /// Where the manager can be reached.
    pub urls: Vec<String>,
    /// The table's revision.
    pub revision: u64,
}

/// The virtual disk management table (seed: FIG. 1B, 2B), whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TableView {
    /// Counts up with every change that this view shows, also of path and server states.
    pub revision: u64,
    /// The volumes, by name.
    pub volumes: Vec<VolumeView>,
    /// The areas, by server and name.
    pub areas: Vec<AreaView>,
    /// The servers, by name.
    pub servers: Vec<ServerView>,
}

/// One server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServerView {
    /// The server.
    pub id: ServerId,
    /// Its name.
    pub name: Name,
    /// Its failure zone; empty if none is set.
    pub zone: String,
    /// Its storage addresses.
    pub addresses: Vec<Address>,
    /// `up` or `lost`.
    pub state: ServerState,
    /// Since when, in milliseconds since 1970 (UTC).
    pub since_ms: u64,
    /// The software's version.
    pub version: String,
    /// How many areas it lends.
    pub areas: usize,
    /// Room for data that it lends, in bytes.
    pub capacity: u64,
    /// How much of it is free, in bytes.
    pub free: u64,
    /// The volumes it has borrowed.
    pub borrows: Vec<Name>,
    /// Bytes that it has borrowed, every copy counted.
    #[serde(default)]
    pub borrowed: u64,
    /// Bytes that it may borrow at most; none is no limit.
    #[serde(default)]
    pub bytes_max: Option<u64>,
    /// Volumes that it may borrow at most; none is no limit.
    #[serde(default)]
    pub volumes_max: Option<u32>,
}

/// Whether a server polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// It polls.
    Up,
    /// It has been silent for longer than `SERVER_SILENT_MAX`, or was not heard of since the manager started.
    Lost,
}

/// One area.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AreaView {
    /// The area.
    pub id: AreaId,
    /// Its name.
    pub name: Name,
    /// The lender.
    pub server: Name,
    /// The lender's id.
    pub server_id: ServerId,
    /// What it lies on.
    pub place: String,
    /// Room for data in bytes.
    pub capacity: u64,
    /// How much of it is free, in bytes.
    pub free: u64,
    /// The longest free stretch in bytes.
    pub free_stretch: u64,
    /// True if its space is not preallocated.
    pub sparse: bool,
    /// `online`, or why not.
    pub state: String,
    /// The slices in it, by offset.
    pub slices: Vec<SliceView>,
}

/// One slice of an area.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SliceView {
    /// The slice.
    pub id: SliceId,
    /// Where it begins in the area, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The volume that has it, or that had it if it is to be wiped.
    pub volume: Name,
    /// `lent`, `free` (of a defined volume that nobody borrows) or `to be wiped`.
    pub state: String,
}

/// One volume: a row of the table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VolumeView {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// Its usage way.
    pub way: Way,
    /// Its size in bytes.
    pub size: u64,
    /// The names of its areas in the order of its legs, each once (seed: storage areas).
    pub areas: Vec<Name>,
    /// True if the borrower has sealed it: its lenders have only encrypted bytes.
    #[serde(default)]
    pub sealed: bool,
    /// True if an administrator defined it; false if `borrow` carved it.
    pub defined: bool,
    /// Who has borrowed it; nobody if it is free (seed: borrow server).
    pub borrower: Option<Name>,
    /// The borrower's id.
    pub borrower_id: Option<ServerId>,
    /// 1 from mount until unmount, else 0 (seed: status information).
    pub status: u8,
    /// The path from the borrower to the lenders.
    pub path: PathState,
    /// Since when, in milliseconds since 1970 (UTC).
    pub path_since_ms: u64,
    /// What is the matter with the path, for people; empty if nothing.
    #[serde(default)]
    pub path_reason: String,
    /// The newest epoch.
    pub epoch: Epoch,
    /// `ready`, or the task that is changing it: `preparing`, `returning`, ...
    pub state: String,
    /// The segments.
    pub segments: Vec<SegmentView>,
    /// Background work for it that is going on.
    #[serde(default)]
    pub work: Vec<TaskView>,
    /// The lender that does it while the volume is not mounted (F5).
    #[serde(default)]
    pub coordinator: Option<Name>,
    /// How many places were found where a leg did not hold what it should, since the volume was made.
    #[serde(default)]
    pub findings: FindingsView,
    /// Seconds between two scheduled scrubs; 0 is never.
    #[serde(default)]
    pub scrub_every_s: u64,
    /// When the last scrub ended, in milliseconds since 1970 (UTC); 0 if there was none.
    #[serde(default)]
    pub scrubbed_ms: u64,
}

/// Counts of places where a leg did not hold what it should (K1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FindingsView {
    /// Rewritten from another leg.
    pub repaired: u64,
    /// Found on no other leg either: reading them is an I/O error.
    pub unrepairable: u64,
    /// Made equal.
    pub differed: u64,
}

/// Whether the path of a mounted volume is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// There is no path: the volume is not mounted.
    #[default]
    None,
    /// Sessions with all needed lenders are open.
    Open,
    /// Closed because nobody used it; the next access opens it again.
    Idle,
    /// The client is gone, or a lender without which it cannot go on is missing.
    Lost,
}

/// One segment of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SegmentView {
    /// Length in bytes.
    pub length: u64,
    /// The generation of its in-sync set.
    pub generation: Generation,
    /// The legs.
    pub legs: Vec<LegView>,
}

/// One leg of a segment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LegView {
    /// The slice.
    pub slice: SliceId,
    /// The area.
    pub area: Name,
    /// The lender.
    pub server: Name,
    /// Where it begins in the area, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// `in-sync` or `stale`.
    pub state: String,
}

/// One task of the manager.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskView {
    /// The task.
    pub id: TaskId,
    /// What it does: `mount`, `unmount`, `return`, `resync`, ...
    pub kind: String,
    /// To which volume or area.
    pub subject: String,
    /// The step it is in, for people.
    pub step: String,
    /// `running`, `waiting`, `paused`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// Why it waits or failed; empty if it does neither.
    #[serde(default)]
    pub reason: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 if it does not count bytes.
    pub total: u64,
    /// How fast it is, in bytes a second; 0 if that is not known.
    #[serde(default)]
    pub rate_bytes_per_s: u64,
    /// Its limit, in bytes a second; 0 is the default.
    #[serde(default)]
    pub rate_max: u64,
    /// When it was recorded, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// When it ended; 0 while it has not.
    pub ended_ms: u64,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventView {
    /// Counts up.
    pub number: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// What about: a server, area or volume name; empty for the manager itself.
    pub subject: String,
    /// What happened.
    pub text: String,
}
