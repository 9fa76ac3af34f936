//! What can be asked of the manager: a method for each question.

use std::time::Duration;

use sublet_api::Refusal;
use sublet_api::mount::SetSeal;
use sublet_api::rebuild::{AcceptVolume, Forget, ForgetView, Rebuild, RebuildView};
use sublet_api::request::{
    AreaName, Borrow, ChangeLeg, CheckArea, ClientAnswer, ClientReport, ControlTask, CreateVolume, LegAnswer, Mount, Reclaim,
    Rename, Request, Return, ScrubEvery, SetLimits, SetWay, TaskAnswer, TaskOutcome, Transfer, Unmount,
};
use sublet_api::server::{Poll, PollAnswer, Register, Registered};
use sublet_api::view::{AreaView, EventView, PoolView, ServerView, TableView, TaskView, VolumeView};
use sublet_types::{ServerId, VolumeId};

use crate::manager::ManagerLink;

/// One method per question; the errors of all of them are those of [`ManagerLink::call`].
impl ManagerLink {
    /// Who the manager is.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn pool(&self) -> Result<PoolView, Refusal> {
        self.call(&Request::Pool)
    }

    /// The whole table; with `after`, held until it has a higher revision, at most `wait`.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn table(&self, after: Option<u64>, wait: Duration) -> Result<TableView, Refusal> {
        self.call(&Request::Table { after, wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) })
    }

    /// The servers.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn servers(&self) -> Result<Vec<ServerView>, Refusal> {
        self.call(&Request::Servers)
    }

    /// The areas.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn areas(&self) -> Result<Vec<AreaView>, Refusal> {
        self.call(&Request::Areas)
    }

    /// The volumes.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn volumes(&self) -> Result<Vec<VolumeView>, Refusal> {
        self.call(&Request::Volumes)
    }

    /// One volume, by name or id.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn volume(&self, volume: &str) -> Result<VolumeView, Refusal> {
        self.call(&Request::Volume(volume.into()))
    }

    /// How much a server may borrow.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn set_limits(&self, server: &str, limits: SetLimits) -> Result<ServerView, Refusal> {
        self.call(&Request::SetLimits { server: server.into(), limits })
    }

    /// The borrower of a sealed volume has wrapped its key anew.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn set_seal(&self, volume: &str, seal: SetSeal) -> Result<VolumeView, Refusal> {
        self.call(&Request::SetSeal { volume: volume.into(), seal })
    }

    /// The tasks.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn tasks(&self) -> Result<Vec<TaskView>, Refusal> {
        self.call(&Request::Tasks)
    }

    /// Events after a number, the newest `limit` of them.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn events(&self, after: u64, limit: usize) -> Result<Vec<EventView>, Refusal> {
        self.call(&Request::Events { after, limit })
    }

    /// Introduces a server.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn register(&self, register: Register) -> Result<Registered, Refusal> {
        self.call(&Request::Register(register))
    }

    /// A server's heartbeat; held by the manager.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn poll(&self, server: ServerId, poll: Poll) -> Result<PollAnswer, Refusal> {
        self.call(&Request::Poll { server, poll })
    }

    /// May this server register an area of that name?
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn check_area(&self, server: ServerId, check: CheckArea) -> Result<AreaName, Refusal> {
        self.call(&Request::CheckArea { server, check })
    }

    /// Renames a server.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn rename_server(&self, server: &str, rename: Rename) -> Result<ServerView, Refusal> {
        self.call(&Request::RenameServer { server: server.into(), rename })
    }

    /// Takes a server out of the pool.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn leave_server(&self, server: &str) -> Result<ServerView, Refusal> {
        self.call(&Request::LeaveServer { server: server.into() })
    }

    /// What would go, or goes, with a server that is lost for good.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn forget_server(&self, server: &str, forget: Forget) -> Result<ForgetView, Refusal> {
        self.call(&Request::ForgetServer { server: server.into(), forget })
    }

    /// How a rebuild of the table is.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn rebuild_state(&self) -> Result<RebuildView, Refusal> {
        self.call(&Request::RebuildState)
    }

    /// Begins or ends a rebuild of the table from the labels.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn rebuild(&self, rebuild: Rebuild) -> Result<RebuildView, Refusal> {
        self.call(&Request::Rebuild(rebuild))
    }

    /// Goes on with the copies of a volume that its labels alone do not settle.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn accept_volume(&self, volume: &str, accept: AcceptVolume) -> Result<VolumeView, Refusal> {
        self.call(&Request::AcceptVolume { volume: volume.into(), accept })
    }

    /// Trusts a quarantined area again.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn accept_area(&self, area: &str) -> Result<AreaView, Refusal> {
        self.call(&Request::AcceptArea { area: area.into() })
    }

    /// Renames an area.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn rename_area(&self, area: &str, rename: Rename) -> Result<AreaView, Refusal> {
        self.call(&Request::RenameArea { area: area.into(), rename })
    }

    /// Renames a volume.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn rename_volume(&self, volume: &str, rename: Rename) -> Result<VolumeView, Refusal> {
        self.call(&Request::RenameVolume { volume: volume.into(), rename })
    }

    /// How often a volume is scrubbed without being asked.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn scrub_every(&self, volume: &str, every: ScrubEvery) -> Result<VolumeView, Refusal> {
        self.call(&Request::ScrubEvery { volume: volume.into(), every })
    }

    /// Pauses, resumes, cancels or limits background work.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn control_task(&self, task: &str, control: ControlTask) -> Result<TaskView, Refusal> {
        self.call(&Request::ControlTask { task: task.into(), control })
    }

    /// Begins background work, or asks how it is (same task id, so it is the same task).
    ///
    /// # Errors
    /// See [`ManagerLink::call`]; also the refusal of work that has failed.
    pub fn begin(&self, request: &Request) -> Result<TaskAnswer, Refusal> {
        let answer: TaskAnswer = self.call(request)?;
        match answer.outcome {
            TaskOutcome::Failed { refusal } => Err(refusal),
            _ => Ok(answer),
        }
    }

    /// A client tells how its path is.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn client_report(&self, volume: VolumeId, report: ClientReport) -> Result<ClientAnswer, Refusal> {
        self.call(&Request::ClientReport { volume, report })
    }

    /// The holder of the lease changes an in-sync set.
    ///
    /// # Errors
    /// See [`ManagerLink::call`].
    pub fn change_leg(&self, volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        self.call(&Request::ChangeLeg { volume, change })
    }
}

/// The tasks; the errors of all of them are those of [`ManagerLink::task`].
impl ManagerLink {
    /// Defines a free volume.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn create_volume(&self, create: CreateVolume, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::CreateVolume(create), on_progress)
    }

    /// Gives a free volume another way.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn set_way(&self, volume: &str, set_way: SetWay, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::SetWay { volume: volume.into(), set_way }, on_progress)
    }

    /// Enters a server as borrower.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn borrow_volume(&self, borrow: Borrow, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::Borrow(borrow), on_progress)
    }

    /// Opens the leases of a volume.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn mount(&self, volume: &str, mount: Mount, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::Mount { volume: volume.into(), mount }, on_progress)
    }

    /// Closes the path of a volume.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn unmount(&self, volume: &str, unmount: Unmount, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::Unmount { volume: volume.into(), unmount }, on_progress)
    }

    /// Returns a volume.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn give_back(
        &self,
        volume: &str,
        give_back: Return,
        on_progress: &mut dyn FnMut(&TaskView),
    ) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::Return { volume: volume.into(), give_back }, on_progress)
    }

    /// Hands a volume to another borrower.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn transfer(
        &self,
        volume: &str,
        transfer: Transfer,
        on_progress: &mut dyn FnMut(&TaskView),
    ) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::Transfer { volume: volume.into(), transfer }, on_progress)
    }

    /// Takes an area back.
    ///
    /// # Errors
    /// See [`ManagerLink::task`].
    pub fn reclaim(&self, area: &str, reclaim: Reclaim, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        self.task(&Request::Reclaim { area: area.into(), reclaim }, on_progress)
    }
}
