//! One segment: reads from one leg, changes at all legs (W1).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use sublet_types::mutation::{self, Mutation};

use futures_util::future::{join_all, select_all};
use sublet_api::mount::MountSegment;
use sublet_doors::Doors;
use sublet_types::SliceId;
use sublet_wire::message::{Message, OpenMode};
use sublet_wire::{Flags, Op, Status};

use crate::broken::Survivor;
use crate::change::Change;
use crate::equal::Unequal;
use crate::error::{VolumeError, VolumeErrorKind};
use crate::hot::Hot;
use crate::leg::{Leg, Legs};
use crate::log::Log;
use crate::maps::{Units, add_units, regions_of};
use crate::members::{Members, Role};
use crate::options::ManagerDoor;
use crate::session::{End, Session, SessionError};
use crate::shared::Shared;

/// A payload may arrive damaged at the lender so often before it counts as an error.
const BAD_CHECKSUM_MAX: usize = 3;

/// See the module.
pub(crate) struct Segment<D: Doors, M: ManagerDoor> {
    pub(crate) shared: Rc<Shared<D, M>>,
    pub(crate) index: usize,
    /// Where it begins in the volume, in bytes.
    pub(crate) start: u64,
    /// In bytes.
    pub(crate) length: u64,
    pub(crate) members: RefCell<Members>,
    pub(crate) legs: Legs<D>,
    /// Slices that were legs and are not any more.
    pub(crate) former_slices: RefCell<Vec<SliceId>>,
    /// The *unclean* flags of the first OPENs have been weighed ([`crate::equal`]).
    pub(crate) settled: Cell<bool>,
    /// It cannot be served any more in this mount (lost writes, W5).
    pub(crate) failed: RefCell<Option<String>>,
    /// `fail_after` is over for reads, for changes.
    pub(crate) reads_expired: Cell<bool>,
    pub(crate) changes_expired: Cell<bool>,
    /// Why changes wait for the manager, for people.
    pub(crate) manager_problem: RefCell<Option<String>>,
    /// Legs have been made equal, and no label says so yet.
    pub(crate) equalise_due: Cell<bool>,
    /// What the legs could lose (W5).
    pub(crate) log: RefCell<Log>,
    /// A flush is under way because the log is filling.
    pub(crate) flushing: Cell<bool>,
    /// Regions that were written and have not cooled (H2).
    pub(crate) hot: RefCell<Hot>,
    /// Regions are being ordered to cool.
    pub(crate) cooling: Cell<bool>,
    /// Changes that wait for a region to cool.
    pub(crate) hot_waiters: Cell<usize>,
    /// Regions in which the legs may differ (H3).
    pub(crate) unequal: RefCell<Unequal>,
    /// The log has all that a leg which leaves may lack: there is nothing of an earlier client that did not close cleanly.
    pub(crate) exact: Cell<bool>,
    /// The legs are being made equal: bytes done, and in all.
    pub(crate) equalising: Cell<Option<(u64, u64)>>,
    /// The copying that goes on.
    pub(crate) copying: Cell<Option<Copying>>,
    /// What was written since it began.
    pub(crate) touched: RefCell<Option<Units>>,
}

/// A resync under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Copying {
    /// The target.
    pub(crate) leg: usize,
    /// Bytes done.
    pub(crate) done: u64,
    /// Bytes to do; 0 while that is being found out.
    pub(crate) total: u64,
}

/// What a leg did with a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Applied {
    Done,
    /// It is no member any more, or was only a target.
    Skipped,
    /// It cannot make zeroes fast; nothing was changed there.
    NotFast,
}

/// See [`Segment::send_beside`].
struct BesideLog<'a>(&'a RefCell<Log>);

impl Drop for BesideLog<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().count_beside();
    }
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    pub(crate) fn new(shared: Rc<Shared<D, M>>, index: usize, start: u64, facts: &MountSegment) -> Self {
        let now = shared.doors.now();
        // Sessions of a client process that had the same epoch before must be lower (W4).
        let first_session = shared.doors.wall_ms();
        let log = RefCell::new(Log::new(shared.info.segments.len()));
        Self {
            index,
            start,
            length: facts.length,
            members: RefCell::new(Members::new(facts.generation, facts.legs.iter().map(|leg| leg.in_sync))),
            legs: Legs::new(facts.legs.iter().map(|leg| Leg::new(leg.clone(), now, first_session))),
            former_slices: RefCell::default(),
            shared,
            settled: Cell::new(false),
            failed: RefCell::new(None),
            reads_expired: Cell::new(false),
            changes_expired: Cell::new(false),
            manager_problem: RefCell::new(None),
            equalise_due: Cell::new(false),
            log,
            flushing: Cell::new(false),
            hot: RefCell::default(),
            cooling: Cell::new(false),
            hot_waiters: Cell::new(0),
            unequal: RefCell::default(),
            exact: Cell::new(true),
            equalising: Cell::new(None),
            copying: Cell::new(None),
            touched: RefCell::new(None),
        }
    }

    pub(crate) fn role(&self, leg: usize) -> Role {
        self.members.borrow().role(leg)
    }

    /// As what a session with this leg should be opened now, if at all.
    pub(crate) fn mode_wanted(&self, leg: usize) -> Option<OpenMode> {
        if !self.shared.wants_sessions() || self.shared.parting.get() {
            return None;
        }
        let broken = self.legs.get(leg).is_none_or(|leg| leg.broken.borrow().is_some());
        match self.role(leg) {
            Role::InSync | Role::Leaving if broken => None,
            Role::InSync | Role::Leaving => Some(OpenMode::InSync),
            Role::Stale if self.shared.info.read_only => None,
            Role::Stale => Some(OpenMode::Target),
            // The outcome must be known first: from it follows the mode.
            Role::Left | Role::Joining | Role::Copying | Role::Copied => None,
        }
    }

    /// May a session of that mode stay?
    pub(crate) fn fits(&self, leg: usize, mode: OpenMode) -> bool {
        match self.role(leg) {
            Role::InSync | Role::Leaving => mode == OpenMode::InSync,
            Role::Left => false,
            Role::Stale | Role::Copying | Role::Copied | Role::Joining => mode == OpenMode::Target,
        }
    }

    /// The segment can go on without this leg, if need be.
    pub(crate) fn can_do_without(&self, leg: usize) -> bool {
        let members = self.members.borrow();
        members.may_leave(leg) || !members.role(leg).is_required()
    }

    /// An in-sync leg that can be read: open, equal to the others, and with every acknowledged write.
    pub(crate) fn is_sound(&self, leg: usize) -> bool {
        self.members.borrow().legs.get(leg).is_some_and(|m| m.role == Role::InSync && m.equal) && self.is_working(leg)
    }

    /// An in-sync leg that can be the survivor of another one: open, and with every acknowledged write.
    pub(crate) fn is_survivor(&self, leg: usize) -> bool {
        self.members.borrow().may_survive(leg) && self.is_working(leg)
    }

    fn is_working(&self, leg: usize) -> bool {
        let leg = self.legs.get(leg);
        leg.is_some_and(|leg| !leg.lost_writes.get() && leg.broken.borrow().is_none() && leg.session().is_some())
    }

    pub(crate) fn check(&self) -> Result<(), VolumeError> {
        self.shared.alive()?;
        match &*self.failed.borrow() {
            Some(text) => Err(VolumeError::new(VolumeErrorKind::Io, text.clone())),
            None => Ok(()),
        }
    }

    /// The error after `fail_after`.
    pub(crate) fn expired(&self) -> VolumeError {
        let missing: Vec<String> = self
            .legs
            .iter()
            .enumerate()
            .filter(|(leg, l)| self.role(*leg).is_required() && l.session().is_none())
            .map(|(_, leg)| format!("server {} ({})", leg.facts.server_name, leg.problem.borrow()))
            .collect();
        let what = match &*self.manager_problem.borrow() {
            Some(problem) => problem.clone(),
            None => format!("missing for too long: {}", missing.join(", ")),
        };
        VolumeError::new(VolumeErrorKind::LenderMissing, format!("volume {}: {what}", self.shared.info.name))
    }

    /// Asks one readable leg about a range (EXTENTS, SEARCH).
    pub(crate) async fn ask_lender<T: Message>(
        self: &Rc<Self>,
        op: Op,
        flags: Flags,
        offset: u64,
        length: u32,
        payload: &[u8],
        reply_max: usize,
    ) -> Result<T, VolumeError> {
        loop {
            let seen = self.shared.changed.version();
            self.check()?;
            if op == Op::Search {
                self.make_equal(offset, length.into(), false).await?;
            }
            let readable = self.members.borrow().which(|m| m.role == Role::InSync && m.equal);
            let open = readable.into_iter().filter(|leg| self.is_sound(*leg)).filter_map(|leg| self.legs.get(leg));
            let open = open.filter_map(|leg| leg.session().map(|session| (leg, session)));
            let Some((leg, session)) = open.min_by_key(|(_, session)| session.load()) else {
                if self.reads_expired.get() {
                    return Err(self.expired());
                }
                self.shared.changed.changed(seen).await;
                continue;
            };
            match session.ask(op, flags, offset, length, payload, reply_max).await {
                Ok(reply) => return Ok(reply),
                Err(SessionError::Lost) => {}
                Err(SessionError::Refused(status, text)) => {
                    if let Some(error) = self.judge(&session, status, &text, &leg.lender()) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// What a refusal means: nothing but the end of the session (to be tried again in the next one), or an error.
    pub(crate) fn judge(&self, session: &Session<D>, status: Status, text: &str, name: &str) -> Option<VolumeError> {
        let kind = match status {
            Status::Ok | Status::StaleEpoch => return None,
            Status::BadChecksum
            | Status::Malformed
            | Status::Version
            | Status::NoSlice
            | Status::NotYours
            | Status::Disagreement
            | Status::Superseded
            | Status::TooMuch
            | Status::Unavailable
            | Status::Deadline => {
                session.kill(End::Lost(format!("the lender refuses ({status:?}): {text}")));
                return None;
            }
            Status::OutOfRange => VolumeErrorKind::Protocol,
            Status::ReadOnly => VolumeErrorKind::ReadOnly,
            Status::Io => VolumeErrorKind::Io,
            Status::Unsupported => VolumeErrorKind::Unsupported,
        };
        Some(VolumeError::new(kind, format!("server {name} answers {status:?}: {text}")))
    }

    /// W1: something that was acknowledged is perhaps not durable at all legs. Lets go of kept changes otherwise.
    pub(crate) fn needs_flush(&self) -> bool {
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        let is_counted = !mutation::is(Mutation::UnflushedCountsAsDurable);
        let is_unflushed = |leg: usize| is_counted && self.legs.get(leg).is_some_and(|leg| leg.has_unflushed());
        self.check().is_err() || in_sync.into_iter().any(is_unflushed) || !self.log.borrow_mut().forget_durable()
    }

    /// Carries a change out at every leg (W1). Runs to its end: it must not be dropped while the caller's range lock is held
    /// for it.
    pub(crate) async fn change(self: &Rc<Self>, change: &Change) -> Result<(), VolumeError> {
        let (start, length) = change.span();
        // With one leg the lender cools by itself (H2).
        let regions = if self.legs.len() > 1 { regions_of(start, length) } else { 0..0 };
        // S1: no new change begins while a leg is leaving.
        loop {
            let seen = self.shared.changed.version();
            self.check()?;
            if matches!(change, Change::Flush) {
                break;
            }
            if !self.members.borrow().paused() {
                if self.log.borrow().is_full() {
                    Box::pin(self.wait_for_room()).await?;
                } else if self.admits(regions.clone()) || Box::pin(self.admit(regions.clone())).await? {
                    break;
                }
                continue;
            }
            if self.changes_expired.get() {
                return Err(self.expired());
            }
            self.shared.changed.changed(seen).await;
        }
        // W5: kept before any leg is sent it.
        let (kept, marks) = match change {
            Change::Flush => (0, Some((self.log.borrow_mut().mark(), self.hot.borrow_mut().mark()))),
            _ => {
                if self.hot.borrow().len() == 0 && !regions.is_empty() {
                    self.shared.changed.notify();
                }
                self.hot.borrow_mut().begin(regions.clone(), self.shared.doors.now());
                if let Some(touched) = &mut *self.touched.borrow_mut() {
                    add_units(touched, start, length);
                }
                (self.log.borrow_mut().begin(change), None)
            }
        };
        // Not a step of waiting between the look at the set and the sending: a target that is attached later finds these
        // blocks locked until this change has ended.
        let legs = self.members.borrow().which(|m| m.role.takes_writes());
        let mut outcomes = Vec::new();
        if mutation::is(Mutation::AckBeforeAllLegs) && matches!(change, Change::Write { .. }) {
            outcomes.push(select_all(legs.iter().map(|leg| Box::pin(self.change_at(*leg, change)))).await.0);
        } else if mutation::is(Mutation::ZeroesOnOneLeg) && matches!(change, Change::Zero { .. }) {
            outcomes.extend(join_all(legs.iter().take(1).map(|leg| self.change_at(*leg, change))).await);
        } else if let [leg] = legs[..] {
            outcomes.push(self.change_at(leg, change).await);
        } else {
            outcomes = join_all(legs.iter().map(|leg| self.change_at(*leg, change))).await;
        }
        if !matches!(change, Change::Flush) {
            self.hot.borrow_mut().end(regions, self.shared.doors.now());
            if self.hot_waiters.get() > 0 {
                self.shared.changed.notify();
            }
        }
        let failed = legs.iter().zip(&outcomes).find(|(_, outcome)| outcome.is_err()).map(|(leg, _)| *leg);
        let mut refused = 0;
        let mut done = 0;
        let mut error = None;
        for outcome in outcomes {
            match outcome {
                Ok(Applied::Done) => done += 1,
                Ok(Applied::Skipped) => {}
                Ok(Applied::NotFast) => refused += 1,
                Err(e) => error = Some(e),
            }
        }
        if let Some(error) = error {
            self.log.borrow_mut().end(kept, false);
            self.may_differ(change, failed);
            return Err(error);
        }
        if let Some((mark, hot_mark)) = marks {
            self.log.borrow_mut().flushed(mark);
            self.hot.borrow_mut().flushed(hot_mark);
            return Ok(());
        }
        match change {
            Change::Zero { .. } if refused > 0 && done == 0 => {
                self.log.borrow_mut().forget(kept);
                Err(VolumeError::new(VolumeErrorKind::Unsupported, "the lenders cannot make zeroes fast; write zeroes instead"))
            }
            Change::Zero { offset, length, flags } if refused > 0 => {
                // One leg has its zeroes already: the others get theirs the slow way, so that the legs stay equal.
                let slow = Change::Zero { offset: *offset, length: *length, flags: Flags(flags.0 & !Flags::FAST.0) };
                let result = Box::pin(self.change(&slow)).await;
                self.log.borrow_mut().end(kept, false);
                result
            }
            _ => {
                self.log.borrow_mut().end(kept, true);
                self.flush_soon();
                Ok(())
            }
        }
    }

    /// Carries a change out at one leg: until it is done, or the leg is not required any more.
    async fn change_at(&self, index: usize, change: &Change) -> Result<Applied, VolumeError> {
        let Some(leg) = self.legs.get(index) else { return Ok(Applied::Skipped) };
        let mut bad_checksums = 0;
        let mut failed: Option<VolumeError> = None;
        loop {
            let seen = self.shared.changed.version();
            self.check()?;
            let role = self.role(index);
            if !role.takes_writes() {
                return Ok(Applied::Skipped);
            }
            if let Some(error) = &failed {
                if role.is_optional() {
                    self.give_up(index);
                    return Ok(Applied::Skipped);
                }
                // It is not sent again as if it had not failed (W7).
                match self.after_failure(index, &error.text) {
                    Survivor::Nobody => return Err(error.clone()),
                    Survivor::Here | Survivor::Soon => self.shared.changed.changed(seen).await,
                    Survivor::Until(at) => {
                        let limit = at.since(self.shared.doors.now());
                        // Either it is back or its time is over: both lead to another look.
                        let _ = self.shared.doors.timeout(limit, self.shared.changed.changed(seen)).await;
                    }
                }
                continue;
            }
            let session = leg.session().filter(|s| self.fits(index, s.mode()));
            let Some(session) = session else {
                if role.is_optional() {
                    self.give_up(index);
                    return Ok(Applied::Skipped);
                }
                // With other legs it goes on in the background, so that they stay equal; the front end has its error by then.
                let alone = self.members.borrow().which(|m| m.role.is_required()).len() == 1;
                if self.changes_expired.get() && alone {
                    return Err(self.expired());
                }
                self.shared.changed.changed(seen).await;
                continue;
            };
            let (status, text) = match self.send(&leg, &session, change).await {
                Ok(()) => return Ok(Applied::Done),
                // Again, but in another session (W4): this one is dead.
                Err(SessionError::Lost) => continue,
                Err(SessionError::Refused(status, text)) => (status, text),
            };
            if matches!((status, change), (Status::Unsupported, Change::Zero { flags, .. }) if flags.has(Flags::FAST)) {
                return Ok(Applied::NotFast);
            }
            bad_checksums += usize::from(status == Status::BadChecksum);
            let mut error = self.judge(&session, status, &text, &leg.lender());
            if bad_checksums >= BAD_CHECKSUM_MAX {
                let text = format!("data arrives damaged at server {}, {bad_checksums} times in a row", leg.facts.server_name);
                error = Some(VolumeError::new(VolumeErrorKind::Io, text));
            }
            failed = error;
        }
    }

    /// Sends a change once.
    pub(crate) async fn send(&self, leg: &Leg<D>, session: &Session<D>, change: &Change) -> Result<(), SessionError> {
        let mark = leg.flush_mark();
        session.send_change(change).await?;
        match change {
            Change::Flush => leg.count_flush(mark),
            _ => leg.count_write(change.is_fua()),
        }
        Ok(())
    }

    /// The same for a write that the log does not keep: a flush has to follow.
    pub(crate) async fn send_beside(&self, leg: &Leg<D>, session: &Session<D>, change: &Change) -> Result<(), SessionError> {
        self.log.borrow_mut().count_beside();
        let _end = BesideLog(&self.log);
        self.send(leg, session, change).await
    }

    /// The session is the leg's from now on: requests are served from it.
    pub(crate) fn install(&self, index: usize, session: &Rc<Session<D>>) {
        if let Some(leg) = self.legs.get(index) {
            leg.install(session, self.shared.doors.now());
        }
        self.shared.changed.notify();
    }

    /// Gives up a resync: only the copy is lost.
    pub(crate) fn give_up(&self, index: usize) {
        if !self.role(index).is_optional() {
            return;
        }
        self.members.borrow_mut().give_up_copying(index);
        if let Some(leg) = self.legs.get(index) {
            leg.hang_up(End::Lost("the resync was given up".into()));
        }
        self.shared.changed.notify();
    }

    /// Carries a change out at one leg only: copies of a resync (the caller holds the range lock).
    pub(crate) async fn change_one(&self, index: usize, change: &Change) -> Result<bool, VolumeError> {
        Ok(self.change_at(index, change).await? == Applied::Done)
    }
}
