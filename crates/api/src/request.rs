//! Requests to the manager. `docs/protocol.md` and the OpenAPI document list the HTTP paths.

use serde::{Deserialize, Serialize};
use sublet_types::{Address, Epoch, Generation, Name, ServerId, SliceId, TaskId, VolumeId};

use crate::access::{AddPerson, Admitted, ChangePerson, CreateToken, DrawnToken, Enter, PersonView, Renew, TokenView};
use crate::error::Refusal;
pub use crate::lending::{AreaShare, Borrow, CreateVolume, Mount, Return, SetLimits, SetWay, Transfer, Unmount};
use crate::mount::{MountSegment, MountingInformation, SetSeal, UnmountingInformation};
pub use crate::naming::{AreaName, CheckArea};
use crate::view::{PathState, TaskView, VolumeView};
use crate::work::{Finding, Work, WorkReport};

/// `POST /v1/volumes/{volume}/replace`: make a lost leg anew elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// Name or id of the server that is lost.
    pub lost: String,
    /// Name or id of the area that gets the new leg; none takes the best-fitting free space.
    #[serde(default)]
    pub on: Option<String>,
}

/// `POST /v1/volumes/{volume}/scrub`: check and compare all checksums.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
    /// At most so many bytes a second; 0 is the coordinator's default.
    #[serde(default)]
    pub rate_max: u64,
}

/// `POST /v1/volumes/{volume}/scrub-every`: how often it is scrubbed without being asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScrubEvery {
    /// Seconds between two scrubs; 0 is never, none is the default
    /// ([`SCRUB_EVERY`](sublet_types::limits::SCRUB_EVERY)).
    pub seconds: Option<u64>,
}

/// `POST /v1/tasks/{task}`: a change of background work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlTask {
    /// Do nothing for it until it is resumed; it keeps its place.
    Pause,
    /// Go on.
    Resume,
    /// End it.
    Cancel,
    /// Change its limit.
    Limit {
        /// Bytes a second; 0 is the default.
        rate_max: u64,
    },
}

impl ControlTask {
    /// The command's word.
    pub fn word(self) -> &'static str {
        match self {
            ControlTask::Pause => "pause",
            ControlTask::Resume => "resume",
            ControlTask::Cancel => "cancel",
            ControlTask::Limit { .. } => "limit",
        }
    }
}

/// `POST /v1/areas/{area}/reclaim`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reclaim {
    /// See [`CreateVolume::task`].
    pub task: TaskId,
}

/// `POST /v1/servers|areas|volumes/{it}/rename`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The new name.
    pub name: Name,
}

/// The answer to a request that is a task. The caller repeats the same request until it is no longer running.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskAnswer {
    /// The task.
    pub task: TaskView,
    /// How it ended, if it has.
    pub outcome: TaskOutcome,
}

/// See [`TaskAnswer`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum TaskOutcome {
    /// Not yet.
    Running,
    /// Refused or failed; what had been begun was undone.
    Failed {
        /// Why.
        refusal: Refusal,
    },
    /// Done, with nothing to say.
    Done,
    /// A volume was created, borrowed, transferred or changed.
    Volume {
        /// Its row.
        volume: Box<VolumeView>,
    },
    /// A volume was mounted.
    Mounted {
        /// What the client needs.
        mounting: Box<MountingInformation>,
    },
    /// A volume was unmounted.
    Unmounted {
        /// What was closed.
        unmounting: UnmountingInformation,
    },
}

/// `POST /v1/volumes/{volume}/client`: the client of a mounted volume tells how its path is. With `hold`, the manager
/// keeps the answer until something changed or `POLL_INTERVAL` is over; the end of a held request without an answer is
/// how the manager sees at once that a client died.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientReport {
    /// The client's epoch.
    pub epoch: Epoch,
    /// How the path is.
    pub path: PathState,
    /// What is the matter, for people; names the missing lender.
    #[serde(default)]
    pub reason: String,
    /// Background work that is going on, and what has ended since the last report.
    #[serde(default)]
    pub work: Vec<WorkReport>,
    /// Places where a leg did not hold what it should, by number; see [`Finding::number`].
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// See above.
    #[serde(default)]
    pub hold: bool,
    /// The client is about to end by itself: its disappearance is no loss.
    #[serde(default)]
    pub leaving: bool,
    /// With `leaving`: every in-sync leg was flushed and closed cleanly, so that nothing has to be made equal (H3).
    #[serde(default)]
    pub clean: bool,
    /// The highest [`ClientAnswer::segments_revision`] that was taken over: former legs may be fenced and wiped then (F4).
    #[serde(default)]
    pub segments_revision: u64,
}

/// The answer to a client's report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClientAnswer {
    /// Where the lenders can be reached now.
    pub lenders: Vec<LenderAddresses>,
    /// Where the manager can be reached now.
    pub urls: Vec<String>,
    /// Background work that was asked for: what is no longer listed is to be ended.
    #[serde(default)]
    pub work: Vec<Work>,
    /// Resyncs copy at most so many bytes a second; 0 is the client's default.
    #[serde(default)]
    pub resync_rate_max: u64,
    /// Resyncs pause.
    #[serde(default)]
    pub is_resync_paused: bool,
    /// All segments as they are now, when a leg was replaced since this epoch began: the leg in whose place there is
    /// another slice now is taken over as a stale one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<MountSegment>>,
    /// Counts the replaced legs of the volume: told back in [`ClientReport::segments_revision`].
    #[serde(default)]
    pub segments_revision: u64,
    /// Findings of this epoch up to this number are recorded: they need not be told again.
    #[serde(default)]
    pub findings_seen: u64,
}

/// Addresses of one lender.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LenderAddresses {
    /// The lender.
    pub server: ServerId,
    /// Its storage addresses, tried in this order.
    pub addresses: Vec<Address>,
    /// Whether the manager hears from it.
    pub up: bool,
}

/// `POST /v1/volumes/{volume}/legs`: the holder of the lease changes a segment's in-sync set (S1, S2, S5). Compare-and-set on
/// (volume, epoch, generation): refused as `stale_epoch` or `conflict` if either is no longer the present one. A repeated
/// request that has already been carried out is answered with the generation that it made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLeg {
    /// The client's epoch.
    pub epoch: Epoch,
    /// Which segment, counted from 0.
    pub segment: u32,
    /// The leg.
    pub slice: SliceId,
    /// The generation that the client knows as the present one.
    pub generation: Generation,
    /// What happens to the leg.
    pub change: LegChange,
}

/// See [`ChangeLeg`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LegChange {
    /// It leaves the in-sync set (S1): committed as generation g+1 without it. The last leg never leaves.
    Stale,
    /// A resync is about to end: issue the generation g+1 that the target's label gets before the commit (S5).
    Returning,
    /// It joins the in-sync set (S5): commits the generation issued by `Returning`.
    InSync,
    /// As long as nothing was acknowledged without it, its leaving is withdrawn (S1).
    Withdrawn,
}

/// The answer to [`ChangeLeg`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LegAnswer {
    /// The generation that was committed, or (for `Returning`) issued.
    pub generation: Generation,
    /// Which legs of the segment are in sync now, in the order of the legs.
    pub in_sync: Vec<bool>,
}

/// Everything that can be asked of a manager. The HTTP shell and the simulator make these; the manager's core answers each
/// with one [`Response`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// `GET /v1/pool`.
    Pool,
    /// `GET /v1/table?after=REVISION&wait_ms=N`: held until the revision is higher than `after`, at most so long.
    Table {
        /// The revision that the caller has; none answers at once.
        after: Option<u64>,
        /// How long to hold, in milliseconds.
        wait_ms: u64,
    },
    /// `GET /v1/servers`.
    Servers,
    /// `GET /v1/areas`.
    Areas,
    /// `GET /v1/volumes`.
    Volumes,
    /// `GET /v1/volumes/{volume}`: name or id.
    Volume(String),
    /// `GET /v1/tasks`.
    Tasks,
    /// `GET /v1/events?after=NUMBER&limit=N`.
    Events {
        /// Only events with a higher number.
        after: u64,
        /// At most so many: the newest.
        limit: usize,
    },
    /// `POST /v1/servers`.
    Register(crate::server::Register),
    /// `POST /v1/servers/{server}/poll`.
    Poll {
        /// Who polls.
        server: ServerId,
        /// The heartbeat.
        poll: crate::server::Poll,
    },
    /// `POST /v1/servers/{server}/rename`.
    RenameServer {
        /// Name or id.
        server: String,
        /// The new name.
        rename: Rename,
    },
    /// `POST /v1/servers/{server}/limits`.
    SetLimits {
        /// Name or id.
        server: String,
        /// The limits.
        limits: SetLimits,
    },
    /// `POST /v1/servers/{server}/leave`: refused while it lends or borrows.
    LeaveServer {
        /// Name or id.
        server: String,
    },
    /// `POST /v1/servers/{server}/areas/check`.
    CheckArea {
        /// Who lends.
        server: ServerId,
        /// What.
        check: CheckArea,
    },
    /// `POST /v1/areas/{area}/rename`.
    RenameArea {
        /// Name or id.
        area: String,
        /// The new name.
        rename: Rename,
    },
    /// `POST /v1/servers/{server}/forget`: it is gone for good.
    ForgetServer {
        /// Name or id.
        server: String,
        /// Whether it is meant.
        forget: crate::rebuild::Forget,
    },
    /// `GET /v1/rebuild`.
    RebuildState,
    /// `POST /v1/rebuild`.
    Rebuild(crate::rebuild::Rebuild),
    /// `POST /v1/volumes/{volume}/accept`.
    AcceptVolume {
        /// Name or id.
        volume: String,
        /// With which copies.
        accept: crate::rebuild::AcceptVolume,
    },
    /// `POST /v1/areas/{area}/accept`: a quarantined area is trusted again (L2).
    AcceptArea {
        /// Name or id.
        area: String,
    },
    /// `POST /v1/servers/{server}/revoke`: it is cut off, and what it has mounted is fenced.
    RevokeServer {
        /// Name or id.
        server: String,
    },
    /// `POST /v1/tokens`.
    CreateToken(CreateToken),
    /// `GET /v1/tokens`.
    Tokens,
    /// `POST /v1/tokens/{token}/revoke`.
    RevokeToken {
        /// Its id, or the first digits of it.
        token: String,
    },
    /// `POST /v1/people`.
    AddPerson(AddPerson),
    /// `GET /v1/people`.
    People,
    /// `POST /v1/people/{person}`.
    ChangePerson {
        /// Name or id.
        person: String,
        /// What to change.
        change: ChangePerson,
    },
    /// `POST /v1/enter`.
    Enter(Enter),
    /// `POST /v1/renew`: the caller gets another certificate.
    Renew(Renew),
    /// `GET /v1/audit?limit=N`: may the caller read the audit log? It is the shell that has it.
    Audit {
        /// At most so many lines: the newest.
        limit: usize,
    },
    /// `POST /v1/areas/{area}/reclaim`.
    Reclaim {
        /// Name or id.
        area: String,
        /// The task.
        reclaim: Reclaim,
    },
    /// `POST /v1/volumes`.
    CreateVolume(CreateVolume),
    /// `POST /v1/volumes/{volume}/set-way`.
    SetWay {
        /// Name or id.
        volume: String,
        /// The new way.
        set_way: SetWay,
    },
    /// `POST /v1/volumes/{volume}/rename`.
    RenameVolume {
        /// Name or id.
        volume: String,
        /// The new name.
        rename: Rename,
    },
    /// `POST /v1/borrow`.
    Borrow(Borrow),
    /// `POST /v1/volumes/{volume}/mount`.
    Mount {
        /// Name or id.
        volume: String,
        /// The task.
        mount: Mount,
    },
    /// `POST /v1/volumes/{volume}/unmount`.
    Unmount {
        /// Name or id.
        volume: String,
        /// The task.
        unmount: Unmount,
    },
    /// `POST /v1/volumes/{volume}/return`.
    Return {
        /// Name or id.
        volume: String,
        /// The task.
        give_back: Return,
    },
    /// `POST /v1/volumes/{volume}/transfer`.
    Transfer {
        /// Name or id.
        volume: String,
        /// The task.
        transfer: Transfer,
    },
    /// `POST /v1/volumes/{volume}/replace`.
    Replace {
        /// Name or id.
        volume: String,
        /// The task.
        replace: Replace,
    },
    /// `POST /v1/volumes/{volume}/scrub`.
    Scrub {
        /// Name or id.
        volume: String,
        /// The task.
        scrub: Scrub,
    },
    /// `POST /v1/volumes/{volume}/scrub-every`.
    ScrubEvery {
        /// Name or id.
        volume: String,
        /// How often.
        every: ScrubEvery,
    },
    /// `POST /v1/volumes/{volume}/seal`.
    SetSeal {
        /// Name or id.
        volume: String,
        /// The new seal.
        seal: SetSeal,
    },
    /// `POST /v1/tasks/{task}`: pause, resume, cancel or limit background work.
    ControlTask {
        /// Its id, or the first digits of it.
        task: String,
        /// What to do.
        control: ControlTask,
    },
    /// `POST /v1/volumes/{volume}/client`.
    ClientReport {
        /// The volume.
        volume: VolumeId,
        /// The report.
        report: ClientReport,
    },
    /// `POST /v1/volumes/{volume}/legs`.
    ChangeLeg {
        /// The volume.
        volume: VolumeId,
        /// The change.
        change: ChangeLeg,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// To `Pool`.
    Pool(crate::view::PoolView),
    /// To `Table`.
    Table(Box<crate::view::TableView>),
    /// To `Servers`.
    Servers(Vec<crate::view::ServerView>),
    /// To `Areas`.
    Areas(Vec<crate::view::AreaView>),
    /// To `Volumes`.
    Volumes(Vec<VolumeView>),
    /// To `Volume`, `RenameVolume`, `AcceptVolume`, `ScrubEvery` and `SetSeal`.
    Volume(Box<VolumeView>),
    /// To `Tasks`.
    Tasks(Vec<TaskView>),
    /// To `ControlTask`.
    TaskRow(Box<TaskView>),
    /// To `Events`.
    Events(Vec<crate::view::EventView>),
    /// To `Register`.
    Registered(crate::server::Registered),
    /// To `Poll`.
    Poll(crate::server::PollAnswer),
    /// To `CheckArea`.
    AreaName(AreaName),
    /// To `RebuildState` and `Rebuild`.
    Rebuild(Box<crate::rebuild::RebuildView>),
    /// To `ForgetServer`.
    Forget(Box<crate::rebuild::ForgetView>),
    /// To `RenameServer`, `LeaveServer`, `SetLimits` and `RevokeServer`.
    Server(Box<crate::view::ServerView>),
    /// To `RenameArea` and `AcceptArea`.
    Area(Box<crate::view::AreaView>),
    /// To every request that is a task.
    Task(Box<TaskAnswer>),
    /// To `ClientReport`.
    Client(ClientAnswer),
    /// To `ChangeLeg`.
    Leg(LegAnswer),
    /// To `CreateToken`.
    NewToken(Box<DrawnToken>),
    /// To `Tokens`.
    Tokens(Vec<TokenView>),
    /// To `RevokeToken`.
    Token(Box<TokenView>),
    /// To `People`.
    People(Vec<PersonView>),
    /// To `AddPerson` and `ChangePerson`.
    Person(PersonView),
    /// To `Enter` and `Renew`.
    Admitted(Admitted),
    /// To `Audit`: yes.
    Allowed,
    /// To any request that was refused.
    Refused(Refusal),
}
