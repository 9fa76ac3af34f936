//! What the coordinator of a volume tells its manager: decisions only. Threads and sockets are around it (in [`crate::Manager`]
//! in reality).

use sublet_api::request::ClientReport;
use sublet_api::view::PathState;
use sublet_api::work::{FINDINGS_MAX, Finding, WorkReport};
use sublet_types::Epoch;
use sublet_volume::PathStatus;

/// The path as it was last seen, with a count of its changes.
#[derive(Debug)]
pub struct Reporter {
    epoch: Epoch,
    path: PathState,
    reason: String,
    work: Vec<WorkReport>,
    /// Not recorded by the manager yet.
    findings: Vec<Finding>,
    /// The newest segments that were taken over.
    segments_revision: u64,
    version: u64,
    /// The path is being closed by its owner: what happens to it now is no news.
    closing: bool,
    leaving: bool,
}

impl Reporter {
    /// A path that was not seen yet.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            path: PathState::default(),
            reason: String::new(),
            work: Vec::new(),
            findings: Vec::new(),
            segments_revision: 0,
            version: 0,
            closing: false,
            leaving: false,
        }
    }

    /// Takes over how the path is; true if that is news.
    pub fn update(&mut self, status: &PathStatus) -> bool {
        let before = (&self.path, &self.reason, &self.work, &self.findings);
        let fresh = before != (&status.path, &status.reason, &status.work, &status.findings);
        if !fresh || self.closing {
            return false;
        }
        self.path = status.path;
        self.reason.clone_from(&status.reason);
        self.work.clone_from(&status.work);
        self.findings.clone_from(&status.findings);
        self.version += 1;
        true
    }

    /// The volume has taken over the segments of this revision; true if that is news.
    pub fn took_segments(&mut self, revision: u64) -> bool {
        let is_news = revision > self.segments_revision;
        if is_news {
            self.segments_revision = revision;
            self.version += 1;
        }
        is_news
    }

    /// The path is being closed: no more changes are told.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// The coordinator ends: nothing is told any more but [`Reporter::farewell`].
    pub fn leave(&mut self) {
        self.closing = true;
        self.leaving = true;
    }

    /// Whether it ends.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The number of the newest change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What is to be told now, and which change is the newest in it.
    pub fn report(&self, hold: bool) -> (u64, ClientReport) {
        let report = ClientReport {
            epoch: self.epoch,
            path: self.path,
            reason: self.reason.clone(),
            work: self.work.clone(),
            findings: self.findings.iter().take(FINDINGS_MAX).cloned().collect(),
            hold,
            leaving: false,
            clean: false,
            segments_revision: self.segments_revision,
        };
        (self.version, report)
    }

    /// The last report. `clean`: every in-sync leg was flushed and closed cleanly.
    pub fn farewell(&self, clean: bool) -> ClientReport {
        ClientReport {
            epoch: self.epoch,
            path: PathState::None,
            reason: String::new(),
            work: Vec::new(),
            findings: Vec::new(),
            hold: false,
            leaving: true,
            clean,
            segments_revision: self.segments_revision,
        }
    }
}
