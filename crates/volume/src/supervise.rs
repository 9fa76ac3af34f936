//! The supervisor of a segment: one task that looks at the state, decides on one step, carries it out, and looks again.
//!
//! [`decide`] is pure. Every step is bounded in time, so that a step which waits for somebody never keeps another one from
//! being decided.

use std::rc::Rc;
use std::time::Duration;

use sublet_doors::{Doors, Tick};
use sublet_wire::message::OpenMode;

use crate::leg::after;
use crate::members::{Members, Role};
use crate::options::ManagerDoor;
use crate::segment::Segment;

/// A step that failed is tried again after so long.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// When the survivor itself was away, the other leg gets so long to come back too.
const SURVIVOR_HEAD_START: Duration = Duration::from_secs(1);

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Nothing until then, or until something changes.
    Until(Tick),
    /// S1: writes pause, the manager commits.
    Leave(usize),
    /// The leg is back before anything was acknowledged without it.
    Keep(usize),
    /// Ask the manager how an earlier question ended.
    AskAgain(usize),
    /// Write the labels of this generation.
    Labels,
    /// W5: no leg has every acknowledged write; those that are back get the kept writes again.
    Replay,
    /// The segment cannot be served any more.
    Fail(usize),
    /// Copy to a stale leg what it has missed (S4).
    Resync(usize),
    /// Make an in-sync leg that may differ equal to the others (H3).
    Equalise(usize),
    /// All legs are equal: say so in the labels.
    AllEqual,
    /// S5: flush, label, commit.
    Return(usize),
    /// S5: the commit whose outcome is not known.
    Commit(usize),
}

/// What is known of one leg's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LegView {
    /// Open as a member, and with every acknowledged write.
    pub sound: bool,
    /// Open as a target of a resync.
    pub target: bool,
    /// Open at all since then.
    pub open_since: Tick,
    /// Without a session from then on it leaves.
    pub leave_at: Option<Tick>,
    /// It leaves although it answers.
    pub broken: bool,
    /// It has lost acknowledged writes.
    pub lost_writes: bool,
    /// It has a session, in which lost writes can be written again.
    pub can_replay: bool,
    /// Not before then is a resync begun.
    pub resync_after: Tick,
}

/// Decides on the next step. `retry_at` is when the last failed step may be tried again; `equalise_due` says that legs have been
/// made equal and no label says so yet; `copying` that a copy is going on.
pub fn decide(m: &Members, legs: &[LegView], now: Tick, retry_at: Tick, equalise_due: bool, copying: bool) -> Step {
    let view = |leg: usize| legs.get(leg).copied().unwrap_or_default();
    let survivor = |leg: usize| {
        let sound = (0..legs.len()).filter(|other| *other != leg && view(*other).sound);
        sound.filter(|other| m.may_survive(*other)).map(|other| view(other).open_since).min()
    };
    let mut soonest: Option<Tick> = None;
    let mut at = |tick: Tick| soonest = Some(soonest.map_or(tick, |t: Tick| t.min(tick)));
    let in_sync = m.which(|m| matches!(m.role, Role::InSync | Role::Leaving));
    let lost = in_sync.iter().copied().find(|leg| view(*leg).lost_writes);
    let is_survivor = |leg: &usize| view(*leg).sound && m.legs.get(*leg).is_some_and(|m| m.whole);
    if let Some(leg) = lost.filter(|_| !in_sync.iter().any(is_survivor)) {
        // W5: no proven survivor. One that is away may be one: it has its time to come back. One that may differ and has crashed
        // is none (H3), not even when it has the kept writes again.
        let is_hope = |leg: &usize| !view(*leg).broken && (view(*leg).can_replay || m.legs.get(*leg).is_some_and(|m| m.whole));
        if !in_sync.iter().any(is_hope) {
            return Step::Fail(leg);
        }
        let absent = in_sync.iter().map(|leg| view(*leg)).filter(|v| !v.broken && !v.can_replay && !v.sound);
        // Without a time: its session has just ended, and its own task says in a moment since when it is lost.
        let back_by = absent.map(|v| v.leave_at).try_fold(retry_at, |latest, leave_at| Some(latest.max(leave_at?)));
        if let Some(back_by) = back_by.filter(|_| in_sync.iter().any(|leg| view(*leg).can_replay)) {
            if now >= back_by {
                return Step::Replay;
            }
            at(back_by);
        }
    }
    // One question to the manager at a time; its answer decides everything else.
    let joining = m.which(|m| m.role == Role::Joining).first().copied();
    let question = joining.map(Step::Commit).or(m.doubt.map(|d| Step::AskAgain(d.leg)));
    if let Some(step) = question {
        if now >= retry_at {
            return step;
        }
        at(retry_at);
    } else if let Some(leg) = m.which(|m| m.role == Role::Leaving).first().copied() {
        if view(leg).sound {
            return Step::Keep(leg);
        }
        if survivor(leg).is_some() {
            if now >= retry_at {
                return Step::Leave(leg);
            }
            at(retry_at);
        }
    } else {
        for leg in in_sync.iter().copied().filter(|leg| !view(*leg).sound || view(*leg).broken) {
            let Some(open_since) = survivor(leg) else { continue };
            let v = view(leg);
            let due = match v.leave_at {
                _ if v.broken || v.lost_writes => now,
                Some(leave_at) => leave_at.max(after(open_since, SURVIVOR_HEAD_START)),
                // Its session has just ended: the leg's own task says in a moment since when it is lost.
                None => continue,
            };
            if now >= due {
                return Step::Leave(leg);
            }
            at(due);
        }
    }
    if m.labels_due {
        let due = m.legs.iter().enumerate().any(|(leg, m)| m.role == Role::InSync && !m.labelled && view(leg).sound);
        // Members that may differ are not sound for reading, but they have labels too.
        if due && now >= retry_at {
            return Step::Labels;
        }
        if due {
            at(retry_at);
        }
    }
    if !m.paused() && question.is_none() && !copying {
        let unequal = m.which(|m| m.role == Role::InSync && !m.equal);
        let stale = m.which(|m| m.role == Role::Stale);
        if let Some(leg) = unequal.iter().copied().find(|leg| view(*leg).sound) {
            return Step::Equalise(leg);
        }
        if unequal.is_empty() {
            if equalise_due {
                return Step::AllEqual;
            }
            if let Some(leg) = m.which(|m| m.role == Role::Copied).first().copied() {
                if now >= retry_at {
                    return Step::Return(leg);
                }
                at(retry_at);
            }
            for leg in stale.into_iter().filter(|leg| view(*leg).target) {
                if now >= view(leg).resync_after {
                    return Step::Resync(leg);
                }
                at(view(leg).resync_after);
            }
        }
    }
    soonest.map_or(Step::Wait, Step::Until)
}

/// Runs until the volume is over.
pub(crate) async fn run<D: Doors, M: ManagerDoor>(segment: Rc<Segment<D, M>>) {
    let shared = Rc::clone(&segment.shared);
    let mut retry_at = Tick::default();
    let mut blocked = Blocked::default();
    loop {
        let seen = shared.changed.version();
        if shared.is_over() {
            return;
        }
        let now = shared.doors.now();
        let wake = [blocked.look(&segment, now), segment.keep_last()].into_iter().flatten().min();
        let step = if shared.info.read_only || !shared.wants_sessions() || segment.failed.borrow().is_some() {
            Step::Wait
        } else {
            let views: Vec<LegView> = (0..segment.legs.len()).map(|leg| view(&segment, leg)).collect();
            let busy = segment.copying.get().is_some() || segment.equalising.get().is_some();
            decide(&segment.members.borrow(), &views, now, retry_at, segment.equalise_due.get(), busy)
        };
        let ok = match step {
            Step::Wait | Step::Until(_) => {
                let until = match step {
                    Step::Until(tick) => Some(tick),
                    _ => None,
                };
                match until.into_iter().chain(wake).min() {
                    // Either the time is over or something has changed: both lead to another look.
                    Some(tick) => drop(shared.doors.timeout(tick.since(now), shared.changed.changed(seen)).await),
                    None => shared.changed.changed(seen).await,
                }
                continue;
            }
            Step::Leave(leg) => segment.leave(leg).await,
            Step::Keep(leg) => segment.keep(leg),
            Step::AskAgain(leg) => segment.ask_again(leg).await,
            Step::Labels => segment.write_labels().await,
            Step::Replay => segment.replay().await,
            Step::Fail(leg) => segment.fail(leg),
            Step::Resync(leg) => segment.start_copy(leg),
            Step::Equalise(_) => segment.start_equalising(),
            Step::AllEqual => {
                segment.equalise_due.set(false);
                segment.members.borrow_mut().became_equal();
                true
            }
            Step::Return(leg) => segment.return_leg(leg).await,
            Step::Commit(leg) => segment.commit(leg).await,
        };
        retry_at = if ok { Tick::default() } else { after(shared.doors.now(), RETRY_PAUSE) };
        shared.changed.notify();
    }
}

fn view<D: Doors, M: ManagerDoor>(segment: &Segment<D, M>, index: usize) -> LegView {
    let Some(leg) = segment.legs.get(index) else { return LegView::default() };
    let mode = leg.session().map(|s| s.mode());
    let broken = leg.broken.borrow().is_some();
    LegView {
        sound: mode == Some(OpenMode::InSync) && !broken && !leg.lost_writes.get(),
        target: mode == Some(OpenMode::Target),
        open_since: leg.open_since.get(),
        leave_at: leg.leave_at.get(),
        broken,
        lost_writes: leg.lost_writes.get(),
        can_replay: leg.lost_writes.get() && !broken && leg.candidate().is_some(),
        resync_after: leg.resync_after.get(),
    }
}

/// Since when reads and changes cannot be served: for `fail_after`.
#[derive(Default)]
struct Blocked {
    reads: Option<Tick>,
    changes: Option<Tick>,
}

impl Blocked {
    /// Looks, tells the segment, and says when to look again.
    fn look<D: Doors, M: ManagerDoor>(&mut self, segment: &Segment<D, M>, now: Tick) -> Option<Tick> {
        let limit = segment.shared.options.fail_after?;
        let wanted = segment.shared.wants_sessions();
        let lost = |leg: &usize| segment.legs.get(*leg).and_then(|leg| leg.lost_since.get());
        let (readable, required, paused) = {
            let m = segment.members.borrow();
            (m.which(|m| m.role == Role::InSync && m.equal), m.which(|m| m.role.is_required()), m.paused())
        };
        let no_reads = wanted && !readable.iter().any(|leg| segment.is_sound(*leg));
        let no_changes =
            wanted && (paused || required.iter().any(|leg| segment.legs.get(*leg).is_none_or(|leg| leg.session().is_none())));
        // A silent lender counts from its silence on, not from when its session was given up.
        let since = |earlier: Option<Tick>, legs: &[usize]| earlier.or_else(|| legs.iter().filter_map(lost).max()).or(Some(now));
        self.reads = if no_reads { since(self.reads, &readable) } else { None };
        self.changes = if no_changes { since(self.changes, &required) } else { None };
        let over = |since: Option<Tick>| since.is_some_and(|since| now.since(since) >= limit);
        let before = (segment.reads_expired.get(), segment.changes_expired.get());
        segment.reads_expired.set(over(self.reads));
        segment.changes_expired.set(over(self.changes));
        if before != (segment.reads_expired.get(), segment.changes_expired.get()) {
            segment.shared.changed.notify();
        }
        let ends = [self.reads, self.changes].into_iter().flatten().map(|since| after(since, limit));
        ends.filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use sublet_types::Generation;

    use super::*;

    #[test]
    fn w5_a_segment_fails_when_no_leg_is_left_that_is_equal_or_can_be_written_again() {
        let mut m = Members::new(Generation { number: 1, random: 1 }, [true, true]);
        let decide = |m: &Members, legs: [LegView; 2]| decide(m, &legs, Tick(1), Tick(0), false, false);
        let broken = LegView { lost_writes: true, broken: true, ..LegView::default() };
        let sound = LegView { sound: true, ..LegView::default() };
        let back = LegView { lost_writes: true, can_replay: true, ..LegView::default() };
        assert_eq!(decide(&m, [broken, broken]), Step::Fail(0));
        assert_eq!(decide(&m, [broken, back]), Step::Replay);
        assert_eq!(decide(&m, [broken, sound]), Step::Leave(0));
        assert_eq!(decide(&m, [back, sound]), Step::Leave(0), "a proven survivor has what it lost");
        assert_eq!(decide(&m, [broken, LegView::default()]), Step::Wait, "it may come back with everything");
        m.legs[1].equal = false;
        assert_eq!(decide(&m, [broken, sound]), Step::Leave(0), "it has every acknowledged write");
        m.legs[1].whole = false;
        assert_eq!(decide(&m, [broken, back]), Step::Replay);
        assert_eq!(decide(&m, [broken, sound]), Step::Fail(0), "it lacks what only the source had");
        assert_eq!(decide(&m, [broken, LegView::default()]), Step::Fail(0));
        assert_eq!(decide(&m, [back, sound]), Step::Replay);
    }
}
