//! Background work: its one shape, whoever does it. The manager records it, and tells whoever coordinates the volume (the
//! client while it is mounted, a lender while it is not, F5); that one reports how far it is and what it has found.

use serde::{Deserialize, Serialize};
use sublet_types::{AreaId, ServerId, SliceId, TaskId};

/// The most findings of one report; what is more comes with the next one.
pub const FINDINGS_MAX: usize = 256;

/// What kind of background work it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WorkKind {
    /// A stale leg gets what it has missed (S4).
    Resync,
    /// The checksums of all legs are checked and compared (K1).
    Scrub,
    /// Regions that were hot when the volume was closed uncleanly are made equal on all legs (H3).
    Equalise,
    /// A lost leg is made anew elsewhere.
    Replace,
    /// Former slices are overwritten (P2).
    Wipe,
}

impl WorkKind {
    /// The word in `task ls`.
    pub fn word(self) -> &'static str {
        match self {
            WorkKind::Resync => "resync",
            WorkKind::Scrub => "scrub",
            WorkKind::Equalise => "equalise",
            WorkKind::Replace => "replace",
            WorkKind::Wipe => "wipe",
        }
    }
}

/// How background work is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WorkState {
    /// It goes on.
    #[default]
    Running,
    /// It waits for something that it cannot do itself: a lender, mostly.
    Waiting,
    /// Somebody has paused it.
    Paused,
    /// It is done.
    Done,
    /// It has failed.
    Failed,
    /// Somebody has cancelled it.
    Cancelled,
}

impl WorkState {
    /// The word in `task ls`.
    pub fn word(self) -> &'static str {
        match self {
            WorkState::Running => "running",
            WorkState::Waiting => "waiting",
            WorkState::Paused => "paused",
            WorkState::Done => "done",
            WorkState::Failed => "failed",
            WorkState::Cancelled => "cancelled",
        }
    }

    /// Whether it has ended.
    pub fn is_ended(self) -> bool {
        matches!(self, WorkState::Done | WorkState::Failed | WorkState::Cancelled)
    }
}

/// What the coordinator of a volume shall do. It does all that its answer lists, and ends what is no longer listed.
/// Resyncs and equalising need no such order: they begin by themselves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Work {
    /// The manager's task.
    pub task: TaskId,
    /// What to do.
    pub kind: WorkKind,
    /// At most so many bytes a second; 0 is the coordinator's default.
    #[serde(default)]
    pub rate_max: u64,
    /// It is paused: it keeps its place and does nothing.
    #[serde(default)]
    pub is_paused: bool,
    /// How many bytes of it an earlier coordinator had done, in the order of the volume: it goes on there.
    #[serde(default)]
    pub done: u64,
}

/// How far background work is, as its coordinator tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkReport {
    /// The manager's task; none for work that began by itself.
    #[serde(default)]
    pub work: Option<TaskId>,
    /// What it is.
    pub kind: WorkKind,
    /// The leg that it is for; none if it is for all.
    #[serde(default)]
    pub slice: Option<SliceId>,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// How fast it is at present, in bytes a second.
    #[serde(default)]
    pub rate_bytes_per_s: u64,
    /// How it is.
    #[serde(default)]
    pub state: WorkState,
    /// Why it waits or failed, for people.
    #[serde(default)]
    pub reason: String,
}

/// A place where a leg did not hold what it should (K1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Counts up from 1 in one epoch. A report repeats findings until
    /// [`ClientAnswer::findings_seen`](crate::request::ClientAnswer::findings_seen) has reached them; they become events once.
    pub number: u64,
    /// The slice.
    pub slice: SliceId,
    /// Its lender.
    pub server: ServerId,
    /// Its area.
    pub area: AreaId,
    /// Where in the area's data space, in bytes (a multiple of 4 KiB).
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// What became of it.
    pub kind: FindingKind,
    /// More, for people; may be empty.
    #[serde(default)]
    pub text: String,
}

/// See [`Finding`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// It did not match its checksum, and was rewritten from another leg.
    Repaired,
    /// It did not match its checksum, and no other leg has it: reading it is an I/O error.
    Unrepairable,
    /// The legs differed although each matched its checksum; they were made equal.
    Differed,
}
