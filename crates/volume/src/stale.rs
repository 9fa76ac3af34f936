//! S1: a leg leaves the in-sync set, or stays after all.

use sublet_api::ErrorKind;
use sublet_api::request::{ChangeLeg, LegAnswer, LegChange};
use sublet_doors::Doors;
use sublet_types::Generation;
use sublet_types::mutation::{self, Mutation};
use sublet_wire::Status;
use sublet_wire::message::{SetState, StaleMark};

use crate::leg::hung_max;
use crate::members::{Doubt, Role};
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::{End, SessionError};
use crate::shared::MANAGER_LIMIT;

/// A survivor answers a PING within this time, or another step is decided on.
const PING_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// How a question to the manager ended.
pub(crate) enum Asked {
    /// Committed (or issued).
    Done(LegAnswer),
    /// It will not be; nothing was changed.
    Refused,
    /// Not known.
    Unknown,
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Asks the manager for a change of the in-sync set (S2: only the holder of the lease does).
    pub(crate) async fn ask(&self, leg: usize, generation: Generation, change: LegChange) -> Asked {
        let shared = &self.shared;
        let Some(facts) = self.legs.get(leg).map(|leg| leg.facts.clone()) else { return Asked::Refused };
        let segment = u32::try_from(self.index).unwrap_or(u32::MAX);
        let question = ChangeLeg { epoch: shared.info.epoch, segment, slice: facts.slice, generation, change };
        let answer = shared.doors.timeout(MANAGER_LIMIT, shared.manager.change_leg(shared.info.volume, question)).await;
        let refusal = match answer {
            Ok(Ok(answer)) => {
                self.manager_problem.replace(None);
                return Asked::Done(answer);
            }
            Ok(Err(refusal)) => refusal,
            Err(_) => sublet_api::Refusal::new(ErrorKind::TimedOut, "the manager does not answer"),
        };
        if refusal.kind == ErrorKind::StaleEpoch {
            shared.fence(&refusal.message);
            return Asked::Unknown;
        }
        // The manager itself may have to wait for a lender.
        let passes =
            [ErrorKind::Unreachable, ErrorKind::LenderUnreachable, ErrorKind::TimedOut, ErrorKind::Internal, ErrorKind::Io];
        let unknown = passes.contains(&refusal.kind);
        let problem = format!("waiting for the manager ({change:?} of server {}): {}", facts.server_name, refusal.message);
        if self.manager_problem.borrow().as_ref() != Some(&problem) {
            tracing::warn!(volume = %shared.info.name, segment = self.index, "{problem}");
            self.manager_problem.replace(Some(problem));
            shared.changed.notify();
        }
        if unknown { Asked::Unknown } else { Asked::Refused }
    }

    /// One survivor has answered a PING, in its unchanged identity, sent now: after the fault was seen.
    async fn survivor_answers(&self, without: usize) -> bool {
        for other in (0..self.legs.len()).filter(|other| *other != without && self.is_survivor(*other)) {
            let Some(session) = self.legs.get(other).and_then(|leg| leg.session()) else { continue };
            if matches!(self.shared.doors.timeout(PING_LIMIT, session.ping()).await, Ok(Ok(()))) {
                return true;
            }
        }
        false
    }

    /// S1, up to the manager's commit. Answers false if it has to be tried again.
    pub(crate) async fn leave(&self, leg: usize) -> bool {
        if self.role(leg) == Role::InSync {
            tracing::warn!(
                segment = self.index,
                lender = self.legs.get(leg).map(|l| l.lender()),
                "goes on without this leg: writes pause"
            );
            self.members.borrow_mut().begin_leaving(leg);
            self.shared.changed.notify();
        }
        if !self.survivor_answers(leg).await {
            return false;
        }
        let generation = {
            let mut members = self.members.borrow_mut();
            members.asked = true;
            members.generation
        };
        match self.ask(leg, generation, LegChange::Stale).await {
            Asked::Done(answer) => {
                self.left(leg, &answer);
                true
            }
            Asked::Refused => {
                // Certainly not committed: if the leg comes back, nothing is owed.
                self.members.borrow_mut().asked = false;
                false
            }
            Asked::Unknown => false,
        }
    }

    fn left(&self, leg: usize, answer: &LegAnswer) {
        if answer.in_sync.get(leg) != Some(&false) {
            tracing::error!(segment = self.index, leg, "the manager answers with a set that still has the leg that left");
        }
        if let Some(leg) = self.legs.get(leg) {
            // L2: of one that may have been rolled back no map says what it lacks.
            leg.stale_since.set(Some(answer.generation).filter(|_| !leg.disagreed.get()));
        }
        self.members.borrow_mut().has_left(leg, answer);
        if let Some(leg) = self.legs.get(leg) {
            leg.hang_up(End::Unwanted);
        }
    }

    /// The leg is back, and nothing was acknowledged without it.
    pub(crate) fn keep(&self, leg: usize) -> bool {
        tracing::info!(segment = self.index, leg, "the leg is back in time and stays");
        self.members.borrow_mut().cancel_leaving(leg);
        if self.members.borrow().doubt.is_none() {
            self.manager_problem.replace(None);
        }
        true
    }

    /// The manager was asked to commit a leaving, its answer is not known, and the leg is back: finds out, and withdraws.
    pub(crate) async fn ask_again(&self, leg: usize) -> bool {
        let Some(doubt) = self.members.borrow().doubt else { return true };
        let back = self.is_sound(leg) || self.legs.get(leg).is_some_and(|l| l.session().is_some());
        if !back && !self.survivor_answers(leg).await {
            return false;
        }
        let generation = self.members.borrow().generation;
        let left_in = match doubt.left_in {
            Some(left_in) => left_in,
            None => match self.ask(leg, generation, LegChange::Stale).await {
                Asked::Unknown => return false,
                Asked::Refused => {
                    // It was never committed, and never will be.
                    self.members.borrow_mut().doubt = None;
                    self.manager_problem.replace(None);
                    return true;
                }
                Asked::Done(answer) => {
                    let still_back = self.legs.get(leg).is_some_and(|l| l.session().is_some() && l.broken.borrow().is_none());
                    if !still_back {
                        self.left(leg, &answer);
                        return true;
                    }
                    self.members.borrow_mut().doubt = Some(Doubt { leg, left_in: Some(answer.generation) });
                    answer.generation
                }
            },
        };
        match self.ask(leg, left_in, LegChange::Withdrawn).await {
            Asked::Done(answer) => {
                self.members.borrow_mut().was_withdrawn(&answer);
                true
            }
            Asked::Refused => {
                let mut in_sync = self.members.borrow().in_sync_flags();
                if let Some(flag) = in_sync.get_mut(leg) {
                    *flag = false;
                }
                self.manager_problem.replace(None);
                self.left(leg, &LegAnswer { generation: left_in, in_sync });
                true
            }
            Asked::Unknown => false,
        }
    }

    /// Writes the present generation into the labels of all in-sync legs, with the map of what a leg that has left may lack;
    /// writes resume when all have it (S1, S5).
    pub(crate) async fn write_labels(&self) -> bool {
        let (state, due) = {
            let m = self.members.borrow();
            let stale = m.which(|m| m.role == Role::Left).into_iter().filter_map(|leg| self.mark(leg)).collect();
            let state = SetState { generation: m.generation, in_sync: m.in_sync_flags(), equalised: m.all_equal(), stale };
            (state, m.which(|m| m.role == Role::InSync && !m.labelled))
        };
        // Writes pause, so this is all: what was in flight is among it.
        let mut lacking = self.log.borrow().units();
        // An earlier client that did not close cleanly has written where the legs may differ (H3).
        lacking.extend(self.unequal.borrow().units());
        if mutation::is(Mutation::LostWritesNotCopied) {
            lacking.clear();
        }
        let lacking: Vec<(u32, u64)> = lacking.into_iter().collect();
        let mut ok = true;
        for index in due {
            let Some(leg) = self.legs.get(index) else { continue };
            let Some(session) = leg.session() else { continue };
            let work = async {
                let mut state = state.clone();
                for mark in &state.stale {
                    match session.seed(mark.leg, mark.since, &lacking).await {
                        // It keeps no maps (an area of an older format): the leg will be copied as a whole.
                        Err(SessionError::Refused(Status::Unsupported, _)) => {
                            state.stale.clear();
                            break;
                        }
                        seeded => seeded?,
                    }
                }
                session.set_state(&state).await
            };
            match self.shared.doors.timeout(hung_max(), work).await {
                Ok(Ok(())) => {
                    self.members.borrow_mut().label_written(index, state.generation);
                }
                Ok(Err(SessionError::Refused(status, text))) => {
                    tracing::error!(lender = %leg.facts.server_name, ?status, text, "the lender does not take the new generation");
                    let text = format!("server {} does not take the new generation: {text}", leg.facts.server_name);
                    if !self.leaves_broken(index, &text) {
                        self.manager_problem.replace(Some(text));
                    }
                    ok = false;
                }
                // A lost session is seen by the watchdog; a slow label is tried again.
                Ok(Err(SessionError::Lost)) | Err(_) => ok = false,
            }
        }
        if ok {
            self.look_equal();
        }
        ok
    }

    /// What survivors are told of a leg that has left: since which generation, and whether the seed is all that it may lack.
    fn mark(&self, leg: usize) -> Option<StaleMark> {
        let since = self.legs.get(leg)?.stale_since.get()?;
        Some(StaleMark { leg: u8::try_from(leg).ok()?, since, seeded: self.exact.get() })
    }

    /// Every leg has lost acknowledged writes, and they cannot be written again: never silently on (W5).
    pub(crate) fn fail(&self, leg: usize) -> bool {
        let Some(leg) = self.legs.get(leg) else { return true };
        let text = format!(
            "volume {}: server {} has restarted and lost writes that had been acknowledged and not flushed, and {}; unmount the volume, mount it again, and check its file system",
            self.shared.info.name,
            leg.facts.server_name,
            leg.broken.borrow().as_deref().unwrap_or("no other copy has them"),
        );
        tracing::error!("{text}");
        self.failed.replace(Some(text));
        true
    }
}
