//! The paths of mounted volumes, as their clients tell, or as their disappearance does.

use sublet_api::request::{ClientAnswer, ClientReport, LenderAddresses, Response};
use sublet_api::view::PathState;
use sublet_api::work::WorkReport;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::POLL_INTERVAL;
use sublet_types::{Epoch, ServerId, VolumeId};

use super::Core;
use super::peers::SILENT_MAX_MS;
use crate::change::Change;
use crate::plan::leg::check_epoch;
use crate::records::{BackgroundRow, BackgroundState, LeaseState, PathRow, Row, VolumeRow};
use crate::store::{Store, StoreError};

/// A client whose held request ended has this long to send another one before its path counts as lost, in milliseconds: a
/// client that gives up one request in order to send a newer report is not gone.
const GONE_GRACE_MS: u64 = 500;

/// A report whose answer is held.
struct HeldReport {
    conn: u64,
    until_ms: u64,
    epoch: Epoch,
    lenders_revision: u64,
}

/// What is known of one mounted volume's client.
pub struct PathWatch {
    pub epoch: Epoch,
    heard_ms: u64,
    gone_ms: Option<u64>,
    pub is_leaving: bool,
    /// It has said that it closed cleanly.
    pub is_clean: bool,
    /// The path as it was last told.
    pub path: PathState,
    held: Vec<HeldReport>,
    pub work: Vec<WorkReport>,
}

impl PathWatch {
    fn new(epoch: Epoch, now_ms: u64) -> Self {
        Self {
            epoch,
            heard_ms: now_ms,
            gone_ms: None,
            is_leaving: false,
            is_clean: false,
            path: PathState::None,
            held: Vec::new(),
            work: Vec::new(),
        }
    }

    /// A held request ended without an answer.
    pub fn gone(&mut self, conn: u64, now_ms: u64) {
        let before = self.held.len();
        self.held.retain(|held| held.conn != conn);
        if self.held.len() < before && self.held.is_empty() && !self.is_leaving {
            self.gone_ms = Some(now_ms);
        }
    }

    /// Why the client counts as gone, if it does.
    pub fn loss(&self, now_ms: u64) -> Option<&'static str> {
        if self.is_leaving {
            None
        } else if self.gone_ms.is_some_and(|gone| now_ms >= gone + GONE_GRACE_MS) {
            Some("the client is gone")
        } else if self.held.is_empty() && now_ms >= self.heard_ms + SILENT_MAX_MS {
            Some("the client is silent")
        } else {
            None
        }
    }

    pub fn wakes(&self) -> impl Iterator<Item = u64> {
        let held = self.held.iter().map(|held| held.until_ms);
        let silence = (!self.is_leaving && self.held.is_empty()).then_some(self.heard_ms + SILENT_MAX_MS);
        held.chain(silence).chain(self.gone_ms.map(|gone| gone + GONE_GRACE_MS))
    }
}

impl<S: Store> Core<S> {
    /// `POST /v1/volumes/{volume}/client`.
    pub(super) fn client_report(&mut self, conn: u64, id: VolumeId, report: ClientReport) -> Result<Option<Response>, Refusal> {
        let volume = self.table.volumes.get(&id).ok_or_else(|| self.no_volume(id))?;
        check_epoch(volume, report.epoch)?;
        let state = if report.path == PathState::None { PathState::Idle } else { report.path };
        let reason = match state {
            _ if !report.reason.is_empty() => report.reason.clone(),
            _ if report.leaving => "the client has ended".to_owned(),
            _ => String::new(),
        };
        // Of a volume that is not mounted there is no path, whoever coordinates its background work.
        if !Self::is_coordinated(volume, report.epoch) {
            let change = self.path_change(volume, state, &reason);
            self.commit_request(change)?;
        }
        self.take_report(id, &report)?;
        let (now_ms, lenders_revision) = (self.now_ms, self.lenders_revision);
        let watch = self.paths.entry(id).or_insert_with(|| PathWatch::new(report.epoch, now_ms));
        if watch.epoch != report.epoch {
            let held = std::mem::take(&mut watch.held);
            *watch = PathWatch { held, ..PathWatch::new(report.epoch, now_ms) };
        }
        watch.heard_ms = now_ms;
        watch.gone_ms = None;
        watch.is_leaving = report.leaving;
        watch.is_clean = report.clean;
        watch.path = report.path;
        watch.work = report.work;
        if report.hold && !report.leaving {
            let until_ms = now_ms + POLL_INTERVAL.as_millis() as u64;
            watch.held.push(HeldReport { conn, until_ms, epoch: report.epoch, lenders_revision });
            return Ok(None);
        }
        Ok(Some(Response::Client(self.client_answer(id))))
    }

    fn client_answer(&self, id: VolumeId) -> ClientAnswer {
        let mut lenders: Vec<LenderAddresses> = Vec::new();
        let legs = self.table.volumes.get(&id).into_iter().flat_map(VolumeRow::legs);
        for server in legs.filter_map(|(_, leg)| self.table.lender(leg.area)) {
            if !lenders.iter().any(|lender| lender.server == server) {
                lenders.push(self.lender_addresses(server));
            }
        }
        let mut answer = ClientAnswer {
            lenders,
            urls: self.urls.clone(),
            work: Vec::new(),
            resync_rate_max: 0,
            is_resync_paused: false,
            segments: None,
            segments_revision: 0,
            findings_seen: 0,
        };
        if let Some(volume) = self.table.volumes.get(&id) {
            self.tell_work(volume, &mut answer);
        }
        answer
    }

    fn lender_addresses(&self, server: ServerId) -> LenderAddresses {
        let addresses = self.table.servers.get(&server).map(|row| row.addresses.clone()).unwrap_or_default();
        LenderAddresses { server, addresses, up: self.peers.is_up(server) }
    }

    fn path_change(&self, volume: &VolumeRow, state: PathState, reason: &str) -> Change {
        let mut change = Change::new();
        if volume.path.state == state && volume.path.reason == reason {
            return change;
        }
        let since_ms = if volume.path.state == state { volume.path.since_ms } else { self.now_ms };
        if volume.path.state != state {
            let word = match state {
                PathState::None => "none",
                PathState::Open => "open",
                PathState::Idle => "idle",
                PathState::Lost => "lost",
            };
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            change.event(volume.name.as_str(), format!("path {word}{why}"));
        }
        let path = PathRow { state, since_ms, reason: reason.to_owned() };
        change.put(Row::Volume(Box::new(VolumeRow { path, ..volume.clone() })));
        change
    }

    /// Notices clients that are gone.
    pub(super) fn watch_paths(&mut self) -> Result<(), StoreError> {
        let now_ms = self.now_ms;
        for volume in self.table.volumes.values() {
            let lease = volume.lease.as_ref().filter(|lease| lease.state == LeaseState::Active).map(|lease| lease.epoch);
            let at_work = |row: &&BackgroundRow| {
                volume.lease.is_none() && matches!(row.state, BackgroundState::Active | BackgroundState::Stopping)
            };
            let background = volume.work.background.as_ref().filter(at_work).map(|row| row.epoch);
            let Some(epoch) = lease.or(background) else { continue };
            let watch = self.paths.entry(volume.id).or_insert_with(|| PathWatch::new(epoch, now_ms));
            if watch.epoch != epoch {
                let held = std::mem::take(&mut watch.held);
                *watch = PathWatch { held, ..PathWatch::new(epoch, now_ms) };
            }
        }
        let lost = self.paths.iter().filter_map(|(id, watch)| {
            let volume = self.table.volumes.get(id)?;
            volume.lease_of(watch.epoch).filter(|lease| lease.state == LeaseState::Active)?;
            Some((volume, watch.loss(now_ms)?))
        });
        let changes: Vec<Change> = lost.map(|(volume, reason)| self.path_change(volume, PathState::Lost, reason)).collect();
        for change in changes {
            self.commit(change)?;
        }
        Ok(())
    }

    /// Answers held reports: the epoch has ended, the lenders have changed, or the time is over.
    pub(super) fn answer_reports(&mut self) {
        let mut due = Vec::new();
        for (id, watch) in &mut self.paths {
            let volume = self.table.volumes.get(id);
            let (now_ms, lenders_revision) = (self.now_ms, self.lenders_revision);
            let mut kept = Vec::new();
            for held in watch.held.drain(..) {
                let has_ended = volume.is_none_or(|volume| !volume.is_held(held.epoch));
                if has_ended || held.lenders_revision != lenders_revision || held.until_ms <= now_ms {
                    due.push((*id, held));
                    watch.heard_ms = now_ms;
                } else {
                    kept.push(held);
                }
            }
            watch.held = kept;
        }
        self.paths.retain(|id, watch| {
            !watch.held.is_empty()
                || self.table.volumes.get(id).is_some_and(|volume| volume.lease.is_some() || volume.work.background.is_some())
        });
        for (id, held) in due {
            let fenced =
                || Refusal::new(ErrorKind::StaleEpoch, "the volume is gone").hint("this client has been fenced and must stop");
            let checked = self.table.volumes.get(&id).ok_or_else(fenced).and_then(|volume| check_epoch(volume, held.epoch));
            let response = match checked {
                Ok(()) => Response::Client(self.client_answer(id)),
                Err(refusal) => Response::Refused(refusal),
            };
            self.reply(held.conn, response);
        }
    }
}
