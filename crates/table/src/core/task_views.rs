//! `task ls`: tasks with rows of their own, and the work that follows from the state of things, in one shape.

use sublet_api::view::{TaskView, VolumeView};
use sublet_api::work::{WorkKind, WorkReport, WorkState};
use sublet_types::{SliceId, TaskId};

use super::Core;
use crate::plan::{Standing, replace, wipe};
use crate::records::{BackgroundState, Command, LegRow, Step, TaskRow, VolumeRow, WipeRow};
use crate::store::Store;
use crate::views;

impl<S: Store> Core<S> {
    /// All of it, by beginning.
    pub(super) fn task_views(&self) -> Vec<TaskView> {
        let mut views: Vec<TaskView> = self.table.tasks.values().map(|task| self.task_view(task)).collect();
        for volume in self.table.volumes.values() {
            views.extend(self.resync_views(volume));
            views.extend(self.equalise_view(volume));
        }
        views.extend(self.table.wipes.values().map(|row| self.wipe_view(row)));
        views.sort_by_key(|view| (view.started_ms, view.id));
        views
    }

    /// A volume with its background work.
    pub(super) fn volume_view(&self, volume: &VolumeRow) -> VolumeView {
        let mut view = views::volume(&self.table, volume);
        let is_work = |task: &&TaskRow| {
            task.is_running()
                && task.volume == Some(volume.id)
                && matches!(task.command, Command::Scrub { .. } | Command::Replace { .. })
        };
        view.work = self.table.tasks.values().filter(is_work).map(|task| self.task_view(task)).collect();
        view.work.extend(self.resync_views(volume));
        view.work.extend(self.equalise_view(volume));
        view
    }

    /// The volumes, by name.
    pub(super) fn volume_views(&self) -> Vec<VolumeView> {
        let mut all: Vec<VolumeView> = self.table.volumes.values().map(|row| self.volume_view(row)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// What the present coordinator of a volume reports.
    fn reports(&self, volume: &VolumeRow) -> &[WorkReport] {
        let watch = self.paths.get(&volume.id).filter(|watch| volume.is_held(watch.epoch));
        watch.map_or(&[], |watch| &watch.work)
    }

    pub(super) fn task_view(&self, task: &TaskRow) -> TaskView {
        let (reason, done) = self.progress.get(&task.id).cloned().unwrap_or_default();
        let mut view = views::task(task, &reason, done.max(task.done));
        let volume = task.volume.and_then(|id| self.table.volumes.get(&id));
        let Some(volume) = volume.filter(|_| task.is_running() && task.step == Step::Working) else { return view };
        let slices: Vec<SliceId> = replace::new_slices(task).collect();
        let is_scrub = matches!(task.command, Command::Scrub { .. });
        let is_its = |report: &&WorkReport| match report.slice {
            _ if is_scrub => report.work == Some(task.id),
            Some(slice) => slices.contains(&slice),
            None => false,
        };
        let reports: Vec<&WorkReport> = self.reports(volume).iter().filter(is_its).collect();
        view.rate_bytes_per_s = reports.iter().map(|report| report.rate_bytes_per_s).sum();
        if !reports.is_empty() {
            view.done = reports.iter().map(|report| report.done).sum();
            view.total = reports.iter().map(|report| report.total).sum();
        }
        if !task.is_paused && view.reason.is_empty() {
            let waits = reports.iter().find(|report| report.state == WorkState::Waiting).map(|report| report.reason.clone());
            let waits = waits.or_else(|| if reports.is_empty() { Some(self.why_idle(volume)) } else { None });
            if let Some(reason) = waits {
                "waiting".clone_into(&mut view.state);
                view.reason = reason;
            }
        }
        view
    }

    /// Why nobody works at a volume.
    fn why_idle(&self, volume: &VolumeRow) -> String {
        match (&volume.lease, &volume.work.background) {
            (Some(_), _) if volume.path.reason.is_empty() => "its client has not begun yet".to_owned(),
            (Some(_), _) => volume.path.reason.clone(),
            (None, Some(row)) if row.state == BackgroundState::Active => {
                format!("{} has not begun yet", self.table.server_name(row.coordinator))
            }
            (None, Some(_)) => "its lenders are being told".to_owned(),
            (None, None) => {
                let away = volume.legs().filter(|(_, leg)| !self.is_there(leg)).map(|(_, leg)| self.table.lender_name(leg.area));
                let away: Vec<String> = away.collect();
                if away.is_empty() {
                    "it waits for its turn".to_owned()
                } else {
                    format!("{} does not answer", crate::plan::listed(away))
                }
            }
        }
    }

    fn is_there(&self, leg: &LegRow) -> bool {
        self.table.areas.get(&leg.area).is_some_and(|area| area.offline.is_none() && self.peers.is_up(area.server))
    }

    /// Stale legs, but those that a replacement of a lost leg shows.
    fn resync_views(&self, volume: &VolumeRow) -> Vec<TaskView> {
        let replaced: Vec<SliceId> =
            self.table.tasks.values().filter(|task| task.is_running()).flat_map(replace::new_slices).collect();
        let mut views = Vec::new();
        for (index, leg) in volume.legs().filter(|(_, leg)| !leg.in_sync && !replaced.contains(&leg.slice)) {
            let report = self.reports(volume).iter().find(|work| work.kind == WorkKind::Resync && work.slice == Some(leg.slice));
            let lender = self.table.lender_name(leg.area);
            let (state, reason) = match report {
                _ if volume.work.is_resync_paused => (WorkState::Paused, String::new()),
                Some(report) => (report.state, report.reason.clone()),
                None if !self.is_there(leg) => (WorkState::Waiting, format!("{lender} does not answer")),
                None => (WorkState::Waiting, self.why_idle(volume)),
            };
            views.push(TaskView {
                id: TaskId::from_u128(leg.slice.to_u128()),
                kind: WorkKind::Resync.word().to_owned(),
                subject: volume.name.to_string(),
                step: format!("segment {index}, copying to {lender}"),
                state: state.word().to_owned(),
                reason,
                done: report.map_or(0, |report| report.done),
                total: report.map_or(0, |report| report.total),
                rate_bytes_per_s: report.map_or(0, |report| report.rate_bytes_per_s),
                rate_max: volume.work.resync_rate_max,
                started_ms: volume.path.since_ms,
                ended_ms: 0,
            });
        }
        views
    }

    /// Making the legs equal after an unclean close, while somebody does it, or must before anything else.
    fn equalise_view(&self, volume: &VolumeRow) -> Option<TaskView> {
        let is_reported = |work: &&WorkReport| work.kind == WorkKind::Equalise && !work.state.is_ended();
        let report = self.reports(volume).iter().find(is_reported);
        let is_due =
            volume.work.unclean && volume.lease.is_none() && volume.segments.iter().any(|segment| segment.legs.len() > 1);
        if report.is_none() && !is_due {
            return None;
        }
        let state = report.map_or(WorkState::Waiting, |report| report.state);
        Some(TaskView {
            id: TaskId::from_u128(volume.id.to_u128()),
            kind: WorkKind::Equalise.word().to_owned(),
            subject: volume.name.to_string(),
            step: "making the copies equal after an unclean close".to_owned(),
            state: state.word().to_owned(),
            reason: report.map_or_else(|| self.why_idle(volume), |report| report.reason.clone()),
            done: report.map_or(0, |report| report.done),
            total: report.map_or(0, |report| report.total),
            rate_bytes_per_s: report.map_or(0, |report| report.rate_bytes_per_s),
            rate_max: 0,
            started_ms: volume.path.since_ms,
            ended_ms: 0,
        })
    }

    fn wipe_view(&self, row: &WipeRow) -> TaskView {
        let order = wipe::order(row);
        let standing = self.standing(&order);
        let (done, total) = match &standing {
            Standing::Waiting { progress: Some((done, total)), .. } => (*done, *total),
            Standing::Done => (row.length, row.length),
            _ => (0, row.length),
        };
        let reason = if wipe::is_held(&self.table, row) {
            "the volume's client may still have it open".to_owned()
        } else {
            standing.trouble().unwrap_or_default()
        };
        let entry = self.orders.find(&order);
        TaskView {
            id: TaskId::from_u128(row.slice.to_u128()),
            kind: WorkKind::Wipe.word().to_owned(),
            subject: row.name.to_string(),
            step: if row.slice == wipe::whole_slice(row.volume) {
                "waiting for copies that were missing when it was deleted".to_owned()
            } else {
                format!("wiping at {}", self.table.lender_name(row.area))
            },
            state: if reason.is_empty() { WorkState::Running } else { WorkState::Waiting }.word().to_owned(),
            reason,
            done,
            total,
            rate_bytes_per_s: entry.map_or(0, |entry| entry.rate_bytes_per_s()),
            rate_max: 0,
            started_ms: entry.map_or(0, |entry| entry.issued_ms()),
            ended_ms: 0,
        }
    }

    /// Whether a volume is under a background lease.
    pub(super) fn is_coordinated(volume: &VolumeRow, epoch: sublet_types::Epoch) -> bool {
        volume.lease.is_none() && volume.work.background.as_ref().is_some_and(|row| row.epoch == epoch)
    }
}
