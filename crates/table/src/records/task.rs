//! Tasks: long work with its intent recorded first.

use serde::{Deserialize, Serialize};
use sublet_api::Refusal;
use sublet_api::request::TaskOutcome;
use sublet_types::{AreaId, Epoch, ServerId, SliceId, TaskId, VolumeId};

/// One task. What its step asks of the lenders is derived from this row and the table alone, so that a manager that was
/// killed at any moment goes on where it was.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TaskRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The task; chosen by its caller.
    pub id: TaskId,
    /// What it does.
    pub command: Command,
    /// The name of the volume or area when it began.
    pub subject: String,
    /// The volume.
    pub volume: Option<VolumeId>,
    /// The area.
    pub area: Option<AreaId>,
    /// Where it is.
    pub step: Step,
    /// How it is.
    pub state: TaskState,
    /// Why it failed, or what is to be known of its end.
    pub reason: String,
    /// Bytes that it has to deal with; 0 if it does not count bytes.
    pub total: u64,
    /// When it was recorded, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// When it ended; 0 while it has not.
    pub ended_ms: u64,
    /// What its caller is answered, once it has ended.
    pub outcome: Option<TaskOutcome>,
    /// At most so many bytes a second; 0 is the default.
    #[serde(default)]
    pub rate_max: u64,
    /// Somebody has paused it.
    #[serde(default)]
    pub is_paused: bool,
    /// Bytes done, as last recorded: the next coordinator goes on there.
    #[serde(default)]
    pub done: u64,
}

impl TaskRow {
    /// Whether it goes on.
    pub fn is_running(&self) -> bool {
        self.state == TaskState::Running
    }
}

/// What a task does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Command {
    /// Define a free volume.
    Create,
    /// Give a free volume another way.
    SetWay,
    /// Carve a volume, or enter the borrower of a free one.
    Borrow {
        /// Who.
        server: ServerId,
    },
    /// Open the path.
    Mount {
        /// Who.
        server: ServerId,
    },
    /// Close the path.
    Unmount {
        /// Whether the borrower was not asked (F3).
        force: bool,
    },
    /// Give it back.
    Return,
    /// Hand it to another server.
    Transfer {
        /// To whom.
        to: ServerId,
    },
    /// Take an area back.
    Reclaim,
    /// Check and compare all checksums.
    Scrub {
        /// Nobody has asked for it.
        scheduled: bool,
    },
    /// Make a lost leg anew elsewhere.
    Replace {
        /// Which legs.
        legs: Vec<ReplacedLeg>,
        /// The area that shall get it; none takes the best-fitting space.
        on: Option<AreaId>,
    },
}

/// A leg that is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplacedLeg {
    /// The lost slice.
    pub old: SliceId,
    /// What has taken its place, once something has.
    pub new: Option<SliceId>,
    /// The segment that gets one more copy: the lost one was given up before, and no slice is left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u32>,
}

impl Command {
    /// The word in `task ls`.
    pub fn word(&self) -> &'static str {
        match self {
            Command::Create => "create",
            Command::SetWay => "set-way",
            Command::Borrow { .. } => "borrow",
            Command::Mount { .. } => "mount",
            Command::Unmount { .. } => "unmount",
            Command::Return => "return",
            Command::Transfer { .. } => "transfer",
            Command::Reclaim => "reclaim",
            Command::Scrub { .. } => "scrub",
            Command::Replace { .. } => "replace",
        }
    }
}

/// Where a task is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum Step {
    /// The lenders enter new slices into their labels; all of them must.
    Preparing,
    /// The lenders are told who has the volume now; those that do not answer learn it with the lease.
    Labelling,
    /// The lenders open the lease.
    Opening,
    /// A mount did not succeed: what was opened is fenced again.
    Undoing {
        /// Why it did not.
        refusal: Refusal,
    },
    /// The lenders close the path.
    Fencing {
        /// The epoch that is closed.
        closed: Epoch,
        /// Who had it mounted.
        holder: String,
    },
    /// Former slices are wiped.
    Wiping,
    /// Former slices are wiped before new ones take their place (set-way).
    Dropping,
    /// The lender gives the disk back to its owner.
    Releasing,
    /// The lost leg is still in sync by the table: the holder of the lease has to leave it out (S1, S2).
    Leaving,
    /// The new leg's lender enters it into its label.
    Entering,
    /// The holder of the lease works at it.
    Working,
    /// It has ended.
    Ended,
}

impl Step {
    /// The step, for people.
    pub fn text(&self) -> &'static str {
        match self {
            Step::Preparing => "preparing slices",
            Step::Labelling => "updating labels",
            Step::Opening => "opening the lease",
            Step::Undoing { .. } => "undoing",
            Step::Fencing { .. } => "closing the path",
            Step::Wiping => "wiping",
            Step::Dropping => "wiping the former slices",
            Step::Releasing => "releasing the area",
            Step::Leaving => "waiting until the lost copy is left out",
            Step::Entering => "preparing the new slice",
            Step::Working => "working",
            Step::Ended => "",
        }
    }
}

/// How a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It goes on.
    Running,
    /// It is done.
    Done,
    /// It failed and has undone what it had begun.
    Failed,
    /// Somebody has cancelled it.
    Cancelled,
}
