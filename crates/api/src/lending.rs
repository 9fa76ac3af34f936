//! Requests of a volume's life: defined, borrowed, mounted, unmounted, handed over, returned; and how much a server may borrow.

use serde::{Deserialize, Serialize};
use sublet_types::{Epoch, Name, SealText, ServerId, TaskId, Way};

/// `POST /v1/volumes`: define a free volume (the administrator's way to set usage ways).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Chosen by the caller, so that a repeated request is the same task.
    pub task: TaskId,
    /// The new volume's name.
    pub name: Name,
    /// The usage way.
    pub way: Way,
    /// The areas, in the order of the volume. `doubled`: consecutive groups of `copies` areas are the legs of one segment.
    pub on: Vec<AreaShare>,
    /// Copies of each segment; only for `doubled`.
    #[serde(default = "two")]
    pub copies: u32,
}

const fn two() -> u32 {
    2
}

/// An area, or so much of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AreaShare {
    /// Name or id of the area.
    pub area: String,
    /// Bytes; none takes all of an unused area, or the longest free stretch of a used one.
    #[serde(default)]
    pub size: Option<u64>,
}

/// `POST /v1/volumes/{volume}/set-way`: give a free defined volume another usage way or other areas.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetWay {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// The usage way.
    pub way: Way,
    /// The areas; empty keeps the present ones.
    #[serde(default)]
    pub on: Vec<AreaShare>,
    /// Copies of each segment; only for `doubled`.
    #[serde(default = "two")]
    pub copies: u32,
}

/// `POST /v1/borrow`: enter a server as the borrower of a volume (seed: S1, S5, S8).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Borrow {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// Who borrows.
    pub server: ServerId,
    /// Without `size`: exactly that free volume. With it: the name of the volume to be carved.
    #[serde(default)]
    pub name: Option<Name>,
    /// Bytes needed.
    #[serde(default)]
    pub size: Option<u64>,
    /// The usage way; none is `auto`: the simplest that fits.
    #[serde(default)]
    pub way: Option<Way>,
    /// Copies on different servers; more than 1 means doubled.
    #[serde(default)]
    pub copies: Option<u32>,
    /// Allow the borrower's own areas.
    #[serde(default)]
    pub local: bool,
    /// Seal it with this key header. The volume announces `size` all the same.
    #[serde(default)]
    pub seal: Option<SealText>,
}

/// `POST /v1/volumes/{volume}/mount` (seed: S2, S4, S34).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// Who mounts: only the borrower may.
    pub server: ServerId,
    /// Refuse writes at every lender.
    #[serde(default)]
    pub read_only: bool,
}

/// `POST /v1/volumes/{volume}/unmount` (seed: S3, S32).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unmount {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// Who unmounts; none with `force`, which is the administrator's.
    #[serde(default)]
    pub server: Option<ServerId>,
    /// The epoch to close; none with `force`: the present one.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// Fence the borrower, whether or not it agrees (F3).
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/volumes/{volume}/return`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Return {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// Who returns it: the borrower; none is the administrator, who may also delete a free defined volume this way.
    #[serde(default)]
    pub server: Option<ServerId>,
    /// Dissolve a defined volume instead of making it free again.
    #[serde(default)]
    pub dissolve: bool,
}

/// `POST /v1/volumes/{volume}/transfer`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// Name or id of the new borrower.
    pub to: String,
    /// Fence the present borrower first if it is mounted.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/servers/{server}/limits`: how much a server may borrow. What it has borrowed already stays lent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLimits {
    /// Bytes in all its volumes at most, every copy counted; none is no limit.
    pub bytes_max: Option<u64>,
    /// Volumes at most; none is no limit.
    pub volumes_max: Option<u32>,
}
