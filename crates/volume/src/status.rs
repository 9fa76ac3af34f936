//! What people and the manager are told of the path.

use std::rc::Rc;

use sublet_api::view::PathState;
use sublet_api::work::{Finding, WorkKind, WorkReport, WorkState};
use sublet_doors::Doors;

use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::shared::Phase;
use crate::throttle::Throttle;
use crate::volume::Inner;

/// How the path is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PathStatus {
    /// Open, idle or lost; none once it is closed.
    pub path: PathState,
    /// What is the matter, for people; empty if nothing is.
    pub reason: String,
    /// Lenders that do not answer, by name.
    pub missing: Vec<String>,
    /// What was found wrong and is not recorded by the manager yet ([`crate::Volume::findings_seen`]).
    pub findings: Vec<Finding>,
    /// Background work that is going on.
    pub work: Vec<WorkReport>,
}

impl<D: Doors, M: ManagerDoor> Inner<D, M> {
    /// Looks at everything.
    pub(crate) fn status(&self) -> PathStatus {
        let only = |path, reason: String| PathStatus { path, reason, ..PathStatus::default() };
        match self.shared.phase() {
            Phase::Idle | Phase::Idling => return only(PathState::Idle, String::new()),
            Phase::Closed => return only(PathState::None, "the volume is closed".into()),
            Phase::Fenced(text) => return only(PathState::Lost, format!("fenced: {text}")),
            Phase::Running | Phase::Ending => {}
        }
        let mut status = only(PathState::Open, String::new());
        let mut reasons = Vec::new();
        for segment in &self.segments {
            segment.tell(&mut status, &mut reasons);
        }
        reasons.dedup();
        status.reason = reasons.join("; ");
        status.work.extend(self.shared.scrubs.borrow().iter().map(|scrub| scrub.report()));
        status.findings = self.shared.findings.borrow().untold();
        status.missing.sort();
        status.missing.dedup();
        status
    }

    /// Tells who waits for [`crate::Volume::status_changed`], but not of every step of a copy.
    pub(crate) async fn watch_status(self: Rc<Self>) {
        let mut told = PathStatus::default();
        loop {
            let seen = self.shared.changed.version();
            let mut status = self.status();
            for work in &mut status.work {
                (work.done, work.rate_bytes_per_s) = (0, 0);
            }
            if status != told {
                told = status;
                self.status_changed.notify();
            }
            if self.shared.is_over() {
                return;
            }
            self.shared.changed.changed(seen).await;
        }
    }
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    fn tell(&self, status: &mut PathStatus, reasons: &mut Vec<String>) {
        if let Some(text) = &*self.failed.borrow() {
            status.path = PathState::Lost;
            reasons.push(text.clone());
            return;
        }
        let members = self.members.borrow();
        let readable = members.which(|m| m.role == Role::InSync && m.equal).into_iter().any(|leg| self.is_sound(leg));
        for (index, leg) in self.legs.iter().enumerate() {
            let role = members.role(index);
            let name = &leg.facts.server_name;
            let here = leg.session().is_some();
            if !here {
                status.missing.push(name.to_string());
            }
            let problem = leg.problem.borrow();
            match role {
                Role::InSync | Role::Leaving | Role::Left | Role::Joining if !here => {
                    reasons.push(format!("waiting for server {name}: {problem}"));
                    if !members.may_leave(index) && !self.can_do_without(index) {
                        status.path = PathState::Lost;
                    }
                }
                Role::Stale if here => reasons.push(format!("the copy at {name} is out of sync")),
                Role::Stale => reasons.push(format!("the copy at {name} is out of sync: {problem}")),
                Role::Copying | Role::Copied | Role::Joining => {
                    reasons.push(format!("the copy at {name} is being brought up to date"))
                }
                Role::InSync if members.legs.get(index).is_some_and(|m| !m.equal) => {
                    reasons.push(format!("the last client did not close cleanly: the copy at {name} is being made equal"));
                }
                _ => {}
            }
        }
        if !readable {
            status.path = PathState::Lost;
        }
        if let Some(problem) = &*self.manager_problem.borrow() {
            let paused = if members.paused() { "writes wait: " } else { "" };
            reasons.push(format!("{paused}{problem}"));
        }
        let work = |kind, slice, done, total, state, throttle: &Throttle| WorkReport {
            work: None,
            kind,
            slice,
            done,
            total,
            rate_bytes_per_s: throttle.rate(),
            state,
            reason: String::new(),
        };
        let state = if self.shared.throttle.is_paused() { WorkState::Paused } else { WorkState::Running };
        if let Some((copying, leg)) = self.copying.get().and_then(|copying| Some((copying, self.legs.get(copying.leg)?))) {
            status.work.push(work(
                WorkKind::Resync,
                Some(leg.facts.slice),
                copying.done,
                copying.total,
                state,
                &self.shared.throttle,
            ));
        }
        if !members.all_equal() || self.equalise_due.get() {
            let going_on = self.equalising.get();
            let (done, total) = going_on.unwrap_or_default();
            let state = if going_on.is_some() { WorkState::Running } else { WorkState::Waiting };
            status.work.push(work(WorkKind::Equalise, None, done, total, state, &self.shared.equalising));
        }
    }
}
