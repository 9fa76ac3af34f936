//! Orders of the manager to a server, and their results. Orders are idempotent: the same order may arrive twice, also
//! after a restart of either side, and is answered the same way.

use serde::{Deserialize, Serialize};
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, Name, ServerId, SliceId, VolumeId, Way};

use crate::error::Refusal;
use crate::mount::MountingInformation;
use crate::server::Tombstone;

/// One order with the number under which it is answered. Numbers are not reused during one life of the manager process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NumberedOrder {
    /// The number, together with the random `run` of the manager's process unique.
    pub number: u64,
    /// Random per manager process, so that numbers of an earlier process are never mixed up.
    pub run: u64,
    /// What to do.
    pub order: Order,
}

/// What the manager asks of a server. Everything about a slice is addressed by slice id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Enter a slice into the area's label (L4); refused if it overlaps another one (L5). If the slice is there already
    /// with the same place, its other facts (volume, names, borrower, generation) are brought up to date.
    PrepareSlice {
        /// What the label shall say.
        slice: SliceFacts,
    },
    /// Persist the epoch, end all older sessions and their disk I/O, and admit sessions of this epoch (F1, F2).
    OpenLease {
        /// Which slice.
        slice: SliceId,
        /// In which area.
        area: AreaId,
        /// The lease.
        lease: Lease,
        /// The slice's facts as the table has them, so that the label agrees at OPEN (F6).
        facts: SliceFacts,
    },
    /// Persist the epoch as the newest, end all older sessions and their disk I/O, and admit nobody (F1, F3).
    /// Also the order that closes the path at unmount.
    Fence {
        /// Which slice.
        slice: SliceId,
        /// In which area.
        area: AreaId,
        /// Sessions of this and of any lower epoch number are closed and refused from now on.
        epoch: Epoch,
    },
    /// Overwrite the whole slice with zeroes (data, maps, checksums); resumes after a crash. Only a fenced slice is
    /// wiped. `epoch` is the epoch that fences it first.
    WipeSlice {
        /// Which slice.
        slice: SliceId,
        /// In which area.
        area: AreaId,
        /// Fences older sessions as [`Order::Fence`] does.
        epoch: Epoch,
        /// Remove the slice from the label once it is wiped (a carved volume's); otherwise it stays as a free one.
        drop: bool,
    },
    /// Stop serving the area, and give the disk back: remove a file that was made for it, clear the label elsewhere.
    ReleaseArea {
        /// Which area.
        area: AreaId,
    },
    /// Write the area's new name into its label.
    RenameArea {
        /// Which area.
        area: AreaId,
        /// The new name.
        name: Name,
    },
    /// Be the coordinator of a volume that is not mounted (F5): resync its stale legs, make it equal after an unclean close,
    /// and do what the answers to the coordinator's reports list. It reports, and changes legs, as a client does, with the
    /// epoch of this lease, of which this server is the borrower. Done as soon as it has begun.
    Coordinate {
        /// What it needs to reach the legs, with the secret of the background lease.
        mounting: Box<MountingInformation>,
    },
    /// End such work in good order: flush, close the sessions cleanly, stop. Done when that is so, also if there is nothing to stop.
    StopCoordinating {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the background lease.
        epoch: Epoch,
        /// The server that has it.
        server: ServerId,
    },
    /// Write into the area's label why it is not trusted, or that it is again (L2): a client is refused as long as it is not.
    SetQuarantine {
        /// Which area.
        area: AreaId,
        /// Why not; none: it is trusted.
        reason: Option<String>,
    },
    /// Keep these tombstones in the area's label until they are dropped (R2).
    PutTombstones {
        /// Which area.
        area: AreaId,
        /// What was deleted.
        tombstones: Vec<Tombstone>,
    },
    /// The slices are wiped, wherever they were: their tombstones leave the area's label.
    DropTombstones {
        /// Which area.
        area: AreaId,
        /// Whose tombstones.
        slices: Vec<SliceId>,
    },
}

/// What a label says of a slice (L4).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SliceFacts {
    /// The slice.
    pub slice: SliceId,
    /// In which area.
    pub area: AreaId,
    /// Where it begins in the area's data space, in bytes (a multiple of 4 MiB).
    pub offset: u64,
    /// Its length in bytes (a multiple of 4 MiB).
    pub length: u64,
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// The volume's name.
    pub volume_name: Name,
    /// The volume's usage way.
    pub way: Way,
    /// The volume's size in bytes.
    pub volume_size: u64,
    /// Which segment of the volume, counted from 0.
    pub segment: u32,
    /// How many segments the volume has.
    pub segments: u32,
    /// The length of the segment in bytes: how much of the slice the volume uses (a multiple of 4 KiB).
    pub segment_length: u64,
    /// Which leg of the segment, counted from 0.
    pub leg: u32,
    /// How many legs the segment has.
    pub legs: u32,
    /// The generation of the segment's in-sync set.
    pub generation: Generation,
    /// Which legs of the segment are in sync (one flag per leg).
    pub in_sync: Vec<bool>,
    /// Who has borrowed the volume; nobody if it is free.
    pub borrower: Option<ServerId>,
    /// Whether an administrator defined the volume; otherwise it is dissolved when it is returned.
    #[serde(default)]
    pub defined: bool,
    /// Whether its borrower has sealed the volume: nobody may take its bytes for anything but encrypted ones.
    #[serde(default)]
    pub sealed: bool,
}

/// The exclusive right of one server to one slice (section 5 of the design).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lease {
    /// The epoch of the mount.
    pub epoch: Epoch,
    /// Who may open it.
    pub borrower: ServerId,
    /// What it must show.
    pub secret: LeaseSecret,
    /// Refuse writes.
    pub read_only: bool,
}

/// How an order ended, or how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrderResult {
    /// The number of the order.
    pub number: u64,
    /// The manager process that gave it.
    pub run: u64,
    /// The outcome.
    pub outcome: Outcome,
}

/// See [`OrderResult`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Done and durable.
    Done,
    /// Going on.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Refused or failed; nothing half-done stays behind.
    Failed {
        /// Why.
        refusal: Refusal,
    },
}
