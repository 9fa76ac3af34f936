//! Fake servers that coordinate background work: they report like clients, and bring stale legs back.

use sublet_api::mount::MountingInformation;
use sublet_api::order::Order;
use sublet_api::request::{ChangeLeg, ClientAnswer, ClientReport, LegAnswer, LegChange, Request, Response};
use sublet_api::view::PathState;
use sublet_api::work::{Work, WorkKind, WorkReport, WorkState};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{Epoch, Generation, SliceId, VolumeId};

use super::{FakeServer, Pool};
use crate::core::Event;

/// One volume that a fake server coordinates.
#[derive(Clone)]
pub struct Coordination {
    pub mounting: MountingInformation,
    /// Its held report.
    pub conn: Option<u64>,
    /// What it was told to do last.
    pub work: Vec<Work>,
    pub segments_revision: u64,
}

impl FakeServer {
    /// Orders that are for the server itself.
    pub(super) fn execute_here(&mut self, order: &Order) -> Result<(), Refusal> {
        match order {
            Order::Coordinate { .. } if self.coordinates_nothing => Err(Refusal::new(ErrorKind::Conflict, "it is tired")),
            Order::Coordinate { mounting } => {
                assert_eq!(mounting.borrower, self.id);
                assert_eq!(mounting.status, 0, "a volume that is coordinated is not mounted");
                let fresh = Coordination { mounting: (**mounting).clone(), conn: None, work: Vec::new(), segments_revision: 0 };
                let known = self.coordinates.entry(mounting.volume).or_insert_with(|| fresh.clone());
                if known.mounting.epoch != mounting.epoch {
                    *known = fresh;
                }
                Ok(())
            }
            Order::StopCoordinating { .. } => Ok(()),
            other => panic!("{other:?}"),
        }
    }
}

/// A report of somebody who holds a lease.
pub fn report(epoch: Epoch) -> ClientReport {
    ClientReport {
        epoch,
        path: PathState::Open,
        reason: String::new(),
        work: Vec::new(),
        findings: Vec::new(),
        hold: false,
        leaving: false,
        clean: false,
        segments_revision: 0,
    }
}

impl Pool {
    /// The labels of a server have what the manager has answered a client, as after a SET_STATE. The server does not report it.
    pub fn set_state(&mut self, server: usize, answer: &LegAnswer) {
        for slice in self.servers[server].areas.values_mut().flat_map(|area| area.slices.values_mut()) {
            slice.facts.generation = answer.generation;
            slice.facts.in_sync.clone_from(&answer.in_sync);
        }
    }

    /// One step of everything that a fake server coordinates; whether anything happened.
    pub(super) fn coordinate(&mut self, index: usize) -> bool {
        let server = &self.servers[index];
        if !server.alive || server.stuck {
            return false;
        }
        let mut busy = false;
        for volume in server.coordinates.keys().copied().collect::<Vec<_>>() {
            busy |= self.coordinate_one(index, volume);
        }
        busy
    }

    fn coordinate_one(&mut self, index: usize, volume: VolumeId) -> bool {
        let Some(known) = self.servers[index].coordinates.get(&volume).cloned() else { return false };
        if let Some(conn) = known.conn {
            match self.replies.remove(&conn) {
                None => return false,
                Some(Response::Client(answer)) => self.obey(index, volume, &answer),
                // Its epoch has ended.
                Some(Response::Refused(_)) => {
                    self.servers[index].coordinates.remove(&volume);
                }
                Some(other) => panic!("{other:?}"),
            }
            return true;
        }
        if !self.servers[index].is_lazy {
            self.bring_back(&known.mounting);
        }
        let done = |work: &Work| WorkReport {
            work: Some(work.task),
            kind: WorkKind::Scrub,
            slice: None,
            done: 8,
            total: 8,
            rate_bytes_per_s: 1,
            state: WorkState::Done,
            reason: String::new(),
        };
        let work = known.work.iter().filter(|work| work.kind == WorkKind::Scrub && !work.is_paused).map(done).collect();
        let base = report(known.mounting.epoch);
        let report = ClientReport { work, hold: true, segments_revision: known.segments_revision, ..base };
        let crashes = self.crashes;
        let conn = self.send(Request::ClientReport { volume, report });
        if let Some(known) = self.servers[index].coordinates.get_mut(&volume).filter(|_| self.crashes == crashes) {
            known.conn = Some(conn);
        }
        true
    }

    fn obey(&mut self, index: usize, volume: VolumeId, answer: &ClientAnswer) {
        let Some(known) = self.servers[index].coordinates.get_mut(&volume) else { return };
        known.conn = None;
        known.work.clone_from(&answer.work);
        if let Some(segments) = &answer.segments {
            known.mounting.segments.clone_from(segments);
            known.segments_revision = answer.segments_revision;
        }
    }

    /// What a holder of a lease does: stale legs that can be reached are in sync again (S5), those that cannot leave (S1).
    pub fn bring_back(&mut self, mounting: &MountingInformation) {
        for (index, segment) in mounting.segments.iter().enumerate() {
            for leg in &segment.legs {
                let Some((generation, in_sync)) = self.leg_of(mounting.volume, index, leg.slice) else { continue };
                let is_open = self.is_open(leg.slice, mounting.epoch);
                let changes: &[LegChange] = match (in_sync, is_open) {
                    (false, true) => &[LegChange::Returning, LegChange::InSync],
                    (true, false) => &[LegChange::Stale],
                    _ => &[],
                };
                for change in changes {
                    let segment = u32::try_from(index).unwrap();
                    let change = ChangeLeg { epoch: mounting.epoch, segment, slice: leg.slice, generation, change: *change };
                    let conn = self.send(Request::ChangeLeg { volume: mounting.volume, change });
                    self.replies.remove(&conn);
                }
            }
        }
    }

    fn leg_of(&self, volume: VolumeId, segment: usize, slice: SliceId) -> Option<(Generation, bool)> {
        let segment = self.core.table().volumes.get(&volume)?.segments.get(segment)?;
        let leg = segment.legs.iter().find(|leg| leg.slice == slice)?;
        Some((segment.generation, leg.in_sync))
    }

    /// Whether a living lender admits sessions of this epoch at the slice.
    pub fn is_open(&self, slice: SliceId, epoch: Epoch) -> bool {
        let living = self.servers.iter().filter(|server| server.alive && !server.stuck);
        let found = living.flat_map(|server| server.areas.values()).find_map(|area| area.slices.get(&slice));
        found.is_some_and(|row| row.admitted && row.epoch == epoch)
    }

    pub(super) fn stop_coordinating(&mut self, index: usize, volume: VolumeId, epoch: Epoch) {
        let known = self.servers[index].coordinates.get(&volume).filter(|known| known.mounting.epoch == epoch);
        if known.is_none() {
            return;
        }
        let known = self.servers[index].coordinates.remove(&volume);
        if let Some(conn) = known.and_then(|known| known.conn) {
            self.apply(Event::Gone { conn });
            self.replies.remove(&conn);
        }
        let crashes = self.crashes;
        // It is repeated until the manager has it.
        while {
            let before = self.crashes;
            let conn =
                self.send(Request::ClientReport { volume, report: ClientReport { leaving: true, clean: true, ..report(epoch) } });
            self.replies.remove(&conn);
            self.crashes > before
        } {}
        assert!(self.crashes <= crashes + 1);
    }

    pub(super) fn drop_coordinations(&mut self, index: usize) {
        for known in std::mem::take(&mut self.servers[index].coordinates).into_values() {
            if let Some(conn) = known.conn {
                self.apply(Event::Gone { conn });
                self.replies.remove(&conn);
            }
        }
    }
}
