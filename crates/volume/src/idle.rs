//! Closing the path: for a while because nobody uses it, or for good.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_doors::Doors;

use crate::error::VolumeError;
use crate::leg::after;
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::shared::Phase;
use crate::volume::Inner;

/// Flushing before the path idles may take so long; a request that comes meanwhile is not kept waiting by it.
const IDLE_FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// CLOSE comes right after a flush, so it is quick; a request that comes meanwhile waits for it.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// A copy that has just returned, or left, is in the labels within a moment, and has a session as a member; a close waits so long
/// for that.
const MEMBERS_LIMIT: Duration = Duration::from_secs(3);
/// Closing for good waits so long for lenders that do not answer ...
const END_LIMIT: Duration = Duration::from_secs(30);
/// ... and by force only so long.
const FORCE_LIMIT: Duration = Duration::from_secs(3);

impl<D: Doors, M: ManagerDoor> Inner<D, M> {
    /// Closes the path whenever it has not been used for so long.
    pub(crate) async fn watch_idle(self: Rc<Self>, idle_close: Duration) {
        let shared = &self.shared;
        loop {
            let seen = shared.changed.version();
            if shared.is_over() {
                return;
            }
            if shared.phase() != Phase::Running {
                shared.changed.changed(seen).await;
                continue;
            }
            let last_use = shared.last_use();
            let unused = shared.doors.now().since(last_use);
            if unused < idle_close {
                shared.pause(idle_close - unused).await;
            } else if shared.in_use() > 0 || !self.segments.iter().all(|s| s.is_calm()) {
                shared.pause(idle_close.min(Duration::from_secs(1))).await;
            } else {
                // F5: flush first. Requests go on meanwhile, and call the closing off.
                let flushed =
                    shared.info.read_only || matches!(shared.doors.timeout(IDLE_FLUSH_LIMIT, self.flush()).await, Ok(Ok(())));
                if flushed && shared.last_use() == last_use && shared.in_use() == 0 && shared.phase() == Phase::Running {
                    self.go_idle().await;
                }
            }
        }
    }

    async fn go_idle(&self) {
        let shared = &self.shared;
        shared.parting.set(true);
        shared.set_phase(Phase::Idling);
        self.part(false).await;
        if shared.phase() == Phase::Idling {
            shared.set_phase(Phase::Idle);
        }
    }

    /// Says CLOSE on all sessions; true if every in-sync leg has answered. The flush before has made everything durable, so an
    /// answer that does not come costs nothing but, if it was to be a clean close, the equalising at the next mount.
    async fn part(&self, clean: bool) -> bool {
        let sessions = self.segments.iter().flat_map(|segment| {
            let in_sync = segment.members.borrow().which(|m| m.role == Role::InSync);
            in_sync.into_iter().map(|leg| segment.legs.get(leg)?.session()).collect::<Vec<_>>()
        });
        let closing: Vec<_> = sessions.collect();
        let closes = closing.iter().map(|session| async {
            let Some(session) = session else { return false };
            match self.shared.doors.timeout(CLOSE_LIMIT, session.close(clean)).await {
                Ok(Ok(())) => true,
                failed => {
                    tracing::warn!(?failed, "a lender did not answer CLOSE");
                    false
                }
            }
        });
        join_all(closes).await.into_iter().all(|answered| answered)
    }

    /// See [`crate::Volume::close`].
    pub(crate) async fn close(&self, force: bool) -> Result<bool, VolumeError> {
        let shared = &self.shared;
        match shared.phase() {
            // Whoever closed it was told how.
            Phase::Closed => return Ok(false),
            Phase::Fenced(_) => return shared.alive().map(|()| false),
            _ => {}
        }
        shared.parting.set(false);
        shared.set_phase(Phase::Ending);
        let limit = if force { FORCE_LIMIT } else { END_LIMIT };
        let deadline = after(shared.doors.now(), limit);
        let result = match shared.doors.timeout(limit, self.finish()).await {
            Ok(result) => result,
            Err(_) => {
                let blocked = self.segments.iter().find(|s| !s.is_calm()).or(self.segments.first());
                Err(blocked.map_or_else(|| shared.alive().err().unwrap_or_else(closed), |s| s.expired()))
            }
        };
        if let (Err(error), false) = (&result, force) {
            shared.set_phase(Phase::Running);
            return Err(error.clone());
        }
        if result.is_ok() && !force && !shared.info.read_only {
            // Else the next mount makes the legs equal for nothing.
            let _ = shared.doors.timeout(MEMBERS_LIMIT, self.members_told()).await;
        }
        let clean = result.is_ok() && self.segments.iter().all(|s| s.members.borrow().is_whole());
        shared.parting.set(true);
        let clean = self.part(clean).await && clean;
        shared.set_phase(Phase::Closed);
        tracing::info!(volume = %shared.info.name, clean, in_time = shared.doors.now() <= deadline, "the volume is closed");
        Ok(clean)
    }

    /// Waits for requests under way and makes everything durable.
    async fn finish(&self) -> Result<(), VolumeError> {
        loop {
            let seen = self.shared.changed.version();
            if self.shared.in_use() == 0 {
                break;
            }
            self.shared.changed.changed(seen).await;
        }
        if self.shared.info.read_only { Ok(()) } else { self.flush().await }
    }

    /// See [`MEMBERS_LIMIT`].
    async fn members_told(&self) {
        loop {
            let seen = self.shared.changed.version();
            let is_due = |segment: &Rc<Segment<D, M>>| {
                let members = segment.members.borrow();
                let is_away = |leg: usize| segment.legs.get(leg).is_none_or(|leg| leg.session().is_none());
                let joins = |(leg, role): (usize, Role)| match role {
                    Role::Joining => true,
                    Role::InSync => is_away(leg),
                    _ => false,
                };
                members.labels_due || members.legs.iter().map(|m| m.role).enumerate().any(joins)
            };
            if !self.segments.iter().any(is_due) || self.shared.is_over() {
                return;
            }
            self.shared.changed.changed(seen).await;
        }
    }
}

fn closed() -> VolumeError {
    VolumeError::new(crate::VolumeErrorKind::Closed, "the volume has been closed")
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Nothing is going on that needs its sessions, and all of them are there. A stale leg is waited for: nobody but this client
    /// copies to it while the volume is mounted (S2).
    fn is_calm(&self) -> bool {
        let is_waited_for = !self.shared.info.read_only && !self.members.borrow().which(|m| m.role == Role::Stale).is_empty();
        let calm = self.members.borrow().is_calm() && self.copying.get().is_none() && !self.equalise_due.get() && !is_waited_for;
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        calm && in_sync.iter().all(|leg| self.is_sound(*leg))
    }
}
