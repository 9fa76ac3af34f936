//! Background work: who does it, what its coordinators are told, and what becomes of what they report.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use sublet_api::Refusal;
use sublet_api::request::{ClientAnswer, ClientReport, ControlTask, Response};
use sublet_api::view::PathState;
use sublet_api::work::{Finding, FindingKind, Work, WorkKind};
use sublet_types::{ByteSize, ServerId, VolumeId};

use super::{Core, Outside};
use crate::change::Change;
use crate::plan::background::{self, Coordinator, Next, Seen};
use crate::plan::{self, Context, control, scrub};
use crate::records::{BackgroundState, Command, Row, Step, TaskRow, VolumeRow};
use crate::store::{Store, StoreError};
use crate::views;

/// What is remembered of background work that did not go well.
#[derive(Clone, Copy, Default)]
pub struct Retreat {
    /// It is not begun again before this, in milliseconds since 1970.
    until_ms: u64,
    /// How often it went wrong in a row.
    count: u32,
}

impl Retreat {
    fn next(self, now_ms: u64) -> Self {
        let pause = (background::RETRY_MS << self.count.min(10)).min(background::RETRY_MAX_MS);
        Self { until_ms: now_ms + pause, count: self.count + 1 }
    }
}

/// Whether clients and coordinators are to be told of a change of a task.
pub(super) fn is_task_news(before: Option<&TaskRow>, after: &TaskRow) -> bool {
    let what = |task: &TaskRow| (task.step.text(), task.is_paused, task.rate_max);
    matches!(after.command, Command::Scrub { .. } | Command::Replace { .. }) && before.map(what) != Some(what(after))
}

/// Whether the holder of a volume's lease is to be told of a change of its row.
pub(super) fn is_volume_news(before: &VolumeRow, after: &VolumeRow) -> bool {
    let limits = |row: &VolumeRow| (row.work.resync_rate_max, row.work.is_resync_paused);
    let opened = |row: &VolumeRow| row.legs().filter(|(_, leg)| leg.confirmed >= row.epoch.number).count();
    let is_replaced = after.work.replaced_in == after.epoch && after.work.segments_revision > 0;
    limits(before) != limits(after) || (is_replaced && (before.work != after.work || opened(before) != opened(after)))
}

impl<S: Store> Core<S> {
    /// Takes background work as far as it goes; the answer is whether anything was committed.
    pub(super) fn advance_background(&mut self, outside: &mut Outside<'_>) -> Result<bool, StoreError> {
        let is_revoked = |id: &ServerId| self.table.admissions.get(id).is_some_and(|row| row.revoked);
        let up: BTreeSet<ServerId> =
            self.peers.all.keys().copied().filter(|id| self.peers.is_up(*id) && !is_revoked(id)).collect();
        let mut busy: BTreeMap<ServerId, usize> = BTreeMap::new();
        for row in self.table.volumes.values().filter_map(|volume| volume.work.background.as_ref()) {
            *busy.entry(row.coordinator).or_default() += 1;
        }
        let candidates: Vec<VolumeId> =
            self.table.volumes.values().filter(|row| self.may_have_work(row)).map(|row| row.id).collect();
        self.retreats.retain(|id, _| candidates.contains(id));
        let reachable = self.peers.reachable();
        let (mut moved, mut wake) = (false, None);
        for id in candidates {
            let Some(volume) = self.table.volumes.get(&id) else { continue };
            let before = volume.work.background.clone();
            let standing = background::order(&self.table, volume).map(|order| self.standing(&order));
            let coordinator = self.coordinator(volume);
            let retreat = self.retreats.get(&id).copied().unwrap_or_default();
            let seen = Seen { up: &up, busy: &busy };
            let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
            let next =
                background::advance(&self.table, volume, &seen, coordinator, standing.as_ref(), retreat.until_ms, &mut context);
            let change = match next {
                Next::Nothing => continue,
                Next::At(at_ms) => {
                    wake = Some(wake.map_or(at_ms, |wake: u64| wake.min(at_ms)));
                    continue;
                }
                Next::Commit(change) => change,
                Next::Retreat(change) => {
                    self.retreats.insert(id, retreat.next(self.now_ms));
                    change
                }
            };
            self.commit(change)?;
            moved = true;
            let after = self.table.volumes.get(&id).and_then(|volume| volume.work.background.as_ref());
            match (before, after) {
                (None, Some(row)) => *busy.entry(row.coordinator).or_default() += 1,
                (Some(row), None) => {
                    if let Some(count) = busy.get_mut(&row.coordinator) {
                        *count = count.saturating_sub(1);
                    }
                }
                _ => {}
            }
        }
        self.background_wake_ms = wake;
        Ok(moved)
    }

    fn may_have_work(&self, volume: &VolumeRow) -> bool {
        volume.work.background.is_some()
            || volume.work.unclean
            || volume.legs().any(|(_, leg)| !leg.in_sync)
            || background::scrub_of(&self.table, volume.id).is_some()
    }

    fn coordinator(&self, volume: &VolumeRow) -> Coordinator {
        let watch = self.paths.get(&volume.id);
        let row = volume.work.background.as_ref();
        let Some((watch, _)) = watch.zip(row).filter(|(watch, row)| watch.epoch == row.epoch) else {
            return Coordinator::default();
        };
        let is_equalising = watch.work.iter().any(|work| work.kind == WorkKind::Equalise && !work.state.is_ended());
        Coordinator {
            lost: watch.loss(self.now_ms),
            left: watch.is_leaving.then_some(watch.is_clean),
            is_equal: watch.path == PathState::Open && !is_equalising,
        }
    }

    /// Begins the scrubs that are due.
    pub(super) fn schedule_scrubs(&mut self, outside: &mut Outside<'_>) -> Result<(), StoreError> {
        let reachable = self.peers.reachable();
        let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
        let change = scrub::schedule(&self.table, &mut context);
        self.commit(change)
    }

    /// When background work goes on by the mere passing of time.
    pub(super) fn background_wakes(&self) -> impl Iterator<Item = u64> {
        self.background_wake_ms.into_iter().chain(self.table.volumes.values().filter_map(scrub::due_ms))
    }

    /// What of a report is recorded: findings, ends and progress of scrubs, a clean close, and that former legs were dropped.
    pub(super) fn take_report(&mut self, id: VolumeId, report: &ClientReport) -> Result<(), Refusal> {
        if let Some(volume) = self.table.volumes.get(&id) {
            let change = self.findings(volume, report);
            self.commit_request(change)?;
        }
        for work in &report.work {
            let Some(volume) = self.table.volumes.get(&id) else { break };
            let change = scrub::reported(&self.table, volume, work, self.now_ms);
            self.commit_request(change)?;
        }
        let Some(volume) = self.table.volumes.get(&id) else { return Ok(()) };
        let mut change = Change::new();
        // A coordinator's last report is looked at when its lease ends.
        let mut work = volume.work.clone();
        if report.leaving && report.clean && volume.lease.is_some() {
            work.unclean = false;
        }
        let mut held = self.table.wipes.values().filter(|row| row.volume == id && row.held_by == Some(report.epoch));
        match report.segments_revision.cmp(&volume.work.segments_revision) {
            // Only this table's own replacements are told with the revision; those of one that was lost stay held.
            Ordering::Equal if volume.work.replaced_in == report.epoch => {
                for row in held {
                    change.put(Row::Wipe(crate::records::WipeRow { held_by: None, ..row.clone() }));
                }
            }
            // It has that of a table that was lost since, whose clock was ahead. What is to be taken now needs a newer number (R1).
            Ordering::Greater if held.next().is_some() => work.segments_revision = report.segments_revision.saturating_add(1),
            _ => {}
        }
        if work != volume.work {
            change.put(Row::Volume(Box::new(VolumeRow { work, ..volume.clone() })));
        }
        self.commit_request(change)
    }

    /// Findings that have not been told yet become events (K1).
    fn findings(&self, volume: &VolumeRow, report: &ClientReport) -> Change {
        let mut change = Change::new();
        let mut row = volume.work.findings;
        if row.epoch != report.epoch {
            (row.epoch, row.seen) = (report.epoch, 0);
        }
        let mut fresh: Vec<&Finding> = report.findings.iter().filter(|finding| finding.number > row.seen).collect();
        if fresh.is_empty() {
            return change;
        }
        fresh.sort_by_key(|finding| finding.number);
        for finding in fresh {
            row.seen = finding.number;
            let count = match finding.kind {
                FindingKind::Repaired => &mut row.repaired,
                FindingKind::Unrepairable => &mut row.unrepairable,
                FindingKind::Differed => &mut row.differed,
            };
            *count += 1;
            change.event(volume.name.as_str(), self.finding_text(finding));
        }
        let mut next = volume.clone();
        next.work.findings = row;
        change.put(Row::Volume(Box::new(next)));
        change
    }

    fn finding_text(&self, finding: &Finding) -> String {
        let server = self.table.server_name(finding.server);
        let area = self.table.areas.get(&finding.area).map_or_else(|| finding.area.short(), |row| row.name.to_string());
        let place = format!("{} at offset {} of area {area} at {server}", ByteSize(finding.length), finding.offset);
        let what = match finding.kind {
            FindingKind::Repaired => "did not match their checksum and were repaired from another copy",
            FindingKind::Unrepairable => "do not match their checksum, and no other copy has them: reading them is an I/O error",
            FindingKind::Differed => "differed from another copy and were made equal",
        };
        let more: String = finding.text.chars().take(200).filter(|c| !c.is_control()).collect();
        if more.is_empty() { format!("{place} {what}") } else { format!("{place} {what} ({more})") }
    }

    /// What the holder of a volume's lease is told to do.
    pub(super) fn tell_work(&self, volume: &VolumeRow, answer: &mut ClientAnswer) {
        let epoch = match (&volume.lease, &volume.work.background) {
            (Some(lease), _) => lease.epoch,
            (None, Some(background)) => background.epoch,
            (None, None) => return,
        };
        // A coordinator that is to end gets no more work.
        let is_stopping = volume.work.background.as_ref().is_some_and(|row| row.state == BackgroundState::Stopping);
        let tasks = self.table.tasks.values().filter(|task| task.is_running() && task.volume == Some(volume.id) && !is_stopping);
        answer.work = tasks.filter_map(work_of).collect();
        answer.resync_rate_max = volume.work.resync_rate_max;
        answer.is_resync_paused = volume.work.is_resync_paused;
        let findings = volume.work.findings;
        answer.findings_seen = if findings.epoch == epoch { findings.seen } else { 0 };
        let is_open = volume.legs().any(|(_, leg)| !leg.in_sync && !leg.fresh && leg.confirmed >= epoch.number);
        if volume.work.segments_revision > 0 && volume.work.replaced_in == epoch && is_open {
            answer.segments = views::mount_segments(&self.table, volume);
            answer.segments_revision = volume.work.segments_revision;
        }
    }

    /// `POST /v1/tasks/{task}`.
    pub(super) fn control_task(
        &mut self,
        outside: &mut Outside<'_>,
        text: &str,
        control: ControlTask,
    ) -> Result<Response, Refusal> {
        let (id, target) = control::find(&self.table, text)?;
        let reachable = self.peers.reachable();
        let context = Context { now_ms: self.now_ms, random: outside.random, reachable: &reachable };
        let change = control::plan(&self.table, target, control, &context)?;
        self.commit_request(change)?;
        let view = self.task_views().into_iter().find(|view| view.id == id);
        let missing = || Refusal::new(sublet_api::ErrorKind::NotFound, "the task has ended");
        Ok(Response::TaskRow(Box::new(view.ok_or_else(missing)?)))
    }

    /// `POST /v1/volumes/{volume}/scrub-every`.
    pub(super) fn scrub_every(&mut self, volume: &str, every: &sublet_api::request::ScrubEvery) -> Result<Response, Refusal> {
        let id = self.table.volume(volume)?.id;
        let change = scrub::every(&self.table, volume, every)?;
        self.commit_request(change)?;
        let row = self.table.volume(&id.to_string())?;
        Ok(Response::Volume(Box::new(self.volume_view(row))))
    }

    /// The orders that background leases ask for.
    pub(super) fn background_orders(&self) -> impl Iterator<Item = (ServerId, sublet_api::order::Order)> {
        let rows = self.table.volumes.values().filter(|volume| volume.lease.is_none() && volume.frozen.is_none());
        rows.filter_map(|volume| {
            let order = background::order(&self.table, volume)?;
            Some((plan::order_server(&self.table, &order)?, order))
        })
    }
}

/// A task, as its coordinator is told of it; none if it is not the coordinator's.
fn work_of(task: &TaskRow) -> Option<Work> {
    let kind = match (&task.command, &task.step) {
        (Command::Scrub { .. }, Step::Working) => WorkKind::Scrub,
        // The lost leg is to be left out.
        (Command::Replace { .. }, Step::Leaving) => WorkKind::Replace,
        _ => return None,
    };
    Some(Work { task: task.id, kind, rate_max: task.rate_max, is_paused: task.is_paused, done: task.done })
}
