//! One leg: a slice at a lender, and the connection to it as a state machine.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use sublet_api::mount::MountLeg;
use sublet_doors::{Doors, Tick};
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::{LENDER_SILENT_MAX, RECONNECT_GRACE};
use sublet_types::mutation::{self, Mutation};
use sublet_types::{Generation, LeaseSecret, OpenId, SessionNumber};
use sublet_wire::Status;
use sublet_wire::message::{DiskIdentity, MapWhich, Open, OpenMode};

use crate::connect::{ConnectError, open_session};
use crate::maps::LegMap;
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::{End, Session};

/// A lender that answers nothing that was asked for so long is left out of a doubled volume. The rest of `LENDER_SILENT_MAX` is
/// for the manager's commit and the survivors' labels.
const HUNG_MAX: Duration = Duration::from_secs(7);
/// A single request may be unanswered for so long while others are answered.
const STUCK_MAX: Duration = Duration::from_secs(60);
/// A quiet connection is asked for a sign of life after so long.
const PING_AFTER: Duration = Duration::from_secs(3);
/// How often the watchdog looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// A session that has lived for so long forgets earlier troubles.
const STABLE_AFTER: Duration = Duration::from_secs(3);
/// How far session numbers jump when the lender knows a higher one.
const SESSION_LEAP: u64 = 1 << 24;
/// The first and the longest pause between two attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// [`HUNG_MAX`].
pub(crate) fn hung_max() -> Duration {
    drawn::time(Drawn::Hung, HUNG_MAX)
}

/// [`RECONNECT_GRACE`].
pub(crate) fn reconnect_grace() -> Duration {
    drawn::time(Drawn::ReconnectGrace, RECONNECT_GRACE)
}

/// See the module.
pub(crate) struct Leg<D: Doors> {
    pub(crate) facts: MountLeg,
    session: RefCell<Option<Rc<Session<D>>>>,
    /// A session of a lender that has lost writes: it becomes the leg's when they have been written again (W5).
    candidate: RefCell<Option<Rc<Session<D>>>>,
    number: Cell<u64>,
    /// The identity at the last OPEN.
    identity: Cell<Option<DiskIdentity>>,
    /// Writes that this leg has acknowledged, and how many of them a flush has covered.
    acknowledged: Cell<u64>,
    flushed: Cell<u64>,
    /// Why this leg must leave the in-sync set although it answers: a disk error.
    pub(crate) broken: RefCell<Option<String>>,
    /// The lender lost writes that were acknowledged: nothing that it has may be read.
    pub(crate) lost_writes: Cell<bool>,
    /// Why there is no session, for people.
    pub(crate) problem: RefCell<String>,
    /// A refusal of OPEN that trying again will hardly change.
    pub(crate) refused: Cell<bool>,
    /// Without a session since then.
    pub(crate) lost_since: Cell<Option<Tick>>,
    /// From then on a doubled segment goes on without it; none while a session is open, and until its end has been looked at.
    pub(crate) leave_at: Cell<Option<Tick>>,
    /// What `leave_at` was before a session that has not lasted yet: a leg that comes and goes gains no time by it.
    earlier_leave_at: Cell<Option<Tick>>,
    /// The session is open since then.
    pub(crate) open_since: Cell<Tick>,
    /// A generation that a return which failed has left in its label: ahead of the set's own.
    pub(crate) issued: Cell<Option<Generation>>,
    /// The generation with which it left the in-sync set: survivors' maps for it begin there. None if that is not known, or if
    /// it never held anything: then it is copied as a whole (S3).
    pub(crate) stale_since: Cell<Option<Generation>>,
    /// Its lender's marks and maps when it was opened as a member; none if it keeps none.
    pub(crate) map: RefCell<Option<LegMap>>,
    /// What its lender said of the area at the last OPEN: its opening, and its label's sequence (L2).
    known: Cell<(OpenId, u64)>,
    /// Labels may still say the generation before.
    try_previous: Cell<bool>,
    /// Its *unclean* flag and its hot regions have been looked at in this mount.
    pub(crate) judged: Cell<bool>,
    /// Its lender's label disagreed the last time: what it holds may be of an earlier time (L2).
    pub(crate) disagreed: Cell<bool>,
    /// A failed resync is begun again no earlier.
    pub(crate) resync_after: Cell<Tick>,
}

impl<D: Doors> Leg<D> {
    pub(crate) fn new(facts: MountLeg, now: Tick, first_session: u64) -> Self {
        Self {
            stale_since: Cell::new(facts.stale_since.filter(|_| !facts.in_sync)),
            facts,
            session: RefCell::new(None),
            candidate: RefCell::new(None),
            number: Cell::new(first_session),
            identity: Cell::new(None),
            acknowledged: Cell::new(0),
            flushed: Cell::new(0),
            broken: RefCell::new(None),
            lost_writes: Cell::new(false),
            problem: RefCell::new("not connected yet".into()),
            refused: Cell::new(false),
            lost_since: Cell::new(Some(now)),
            leave_at: Cell::new(Some(after(now, reconnect_grace()))),
            earlier_leave_at: Cell::new(None),
            open_since: Cell::new(now),
            issued: Cell::new(None),
            map: RefCell::new(None),
            known: Cell::new((OpenId::from_u128(0), 0)),
            try_previous: Cell::new(false),
            judged: Cell::new(false),
            disagreed: Cell::new(false),
            resync_after: Cell::new(Tick::default()),
        }
    }

    /// The session, if one is open.
    pub(crate) fn session(&self) -> Option<Rc<Session<D>>> {
        self.session.borrow().clone().filter(|s| !s.is_dead())
    }

    /// The session that is open and not the leg's yet.
    pub(crate) fn candidate(&self) -> Option<Rc<Session<D>>> {
        self.candidate.borrow().clone().filter(|s| !s.is_dead())
    }

    /// The session is the leg's from now on.
    pub(crate) fn install(&self, session: &Rc<Session<D>>, now: Tick) {
        self.candidate.replace(None);
        self.problem.replace(String::new());
        self.lost_since.set(None);
        self.earlier_leave_at.set(self.leave_at.take());
        self.open_since.set(now);
        self.session.replace(Some(Rc::clone(session)));
    }

    /// Ends the session, if there is one.
    pub(crate) fn hang_up(&self, end: End) {
        let session = self.session.borrow().clone();
        if let Some(session) = session {
            session.kill(end);
        }
    }

    /// The name of the lender.
    pub(crate) fn lender(&self) -> String {
        self.facts.server_name.to_string()
    }

    /// A write was acknowledged by this leg; with `durable` it needs no flush.
    pub(crate) fn count_write(&self, durable: bool) {
        if durable {
            return;
        }
        self.acknowledged.set(self.acknowledged.get() + 1);
    }

    /// To be taken before a flush is sent; see [`Leg::count_flush`].
    pub(crate) fn flush_mark(&self) -> u64 {
        self.acknowledged.get()
    }

    /// A flush that was sent at that mark has succeeded, in whatever session: an agent's flush is of the whole disk.
    pub(crate) fn count_flush(&self, mark: u64) {
        self.flushed.set(self.flushed.get().max(mark));
    }

    /// Writes that were acknowledged and not flushed: they are gone if the lender's identity changes.
    pub(crate) fn has_unflushed(&self) -> bool {
        self.acknowledged.get() > self.flushed.get()
    }

    /// A stale leg begins anew: nothing that it had counts.
    pub(crate) fn forget(&self) {
        self.flushed.set(self.acknowledged.get());
        self.lost_writes.set(false);
        self.broken.replace(None);
    }
}

/// The legs of a segment. One may be replaced by another slice.
pub(crate) struct Legs<D: Doors>(RefCell<Vec<Rc<Leg<D>>>>);

impl<D: Doors> Legs<D> {
    pub(crate) fn new(legs: impl IntoIterator<Item = Leg<D>>) -> Self {
        Self(RefCell::new(legs.into_iter().map(Rc::new).collect()))
    }

    pub(crate) fn get(&self, leg: usize) -> Option<Rc<Leg<D>>> {
        self.0.borrow().get(leg).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Rc<Leg<D>>> {
        self.0.borrow().clone().into_iter()
    }

    pub(crate) fn replace(&self, leg: usize, fresh: Leg<D>) {
        if let Some(place) = self.0.borrow_mut().get_mut(leg) {
            *place = Rc::new(fresh);
        }
    }
}

/// A point in time so much later.
pub(crate) fn after(tick: Tick, time: Duration) -> Tick {
    Tick(tick.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

/// Keeps the leg connected as long as the volume lives: one task per leg.
pub(crate) async fn run<D: Doors, M: ManagerDoor>(segment: Rc<Segment<D, M>>, index: usize) {
    let Some(leg) = segment.legs.get(index) else { return };
    let leg = &*leg;
    let is_replaced = || segment.legs.get(index).is_none_or(|present| present.facts.slice != leg.facts.slice);
    let shared = &segment.shared;
    let mut backoff = BACKOFF_MIN;
    let mut rested = false;
    loop {
        let seen = shared.changed.version();
        if shared.is_over() || is_replaced() {
            return;
        }
        let Some(mode) = segment.mode_wanted(index) else {
            rested = true;
            shared.changed.changed(seen).await;
            continue;
        };
        if std::mem::take(&mut rested) {
            // The time in which nobody wanted a session is not the lender's.
            let now = shared.doors.now();
            leg.lost_since.set(Some(now));
            leg.leave_at.set(Some(after(now, reconnect_grace())));
        }
        match connect(&segment, leg, index, mode).await {
            Ok(session) => {
                if is_replaced() || segment.mode_wanted(index) != Some(mode) {
                    if dismiss(&segment, &session) {
                        return;
                    }
                    continue;
                }
                if mode == OpenMode::InSync {
                    let marks = shared.doors.timeout(hung_max(), session.map(MapWhich::All, segment.length)).await;
                    let marks = match marks {
                        Ok(Ok(marks)) => marks,
                        failed => {
                            tracing::info!(lender = %leg.facts.server_name, ?failed, "the lender does not tell its hot regions");
                            if dismiss(&segment, &session) {
                                return;
                            }
                            shared.pause(backoff).await;
                            backoff = (backoff * 2).min(BACKOFF_MAX);
                            continue;
                        }
                    };
                    leg.map.replace(marks);
                    segment.weigh(index);
                }
                if is_replaced()
                    || session.is_dead()
                    || segment.mode_wanted(index) != Some(mode)
                    || !accept(&segment, leg, index, &session)
                {
                    if dismiss(&segment, &session) {
                        return;
                    }
                    continue;
                }
                let opened = shared.doors.now();
                watch(&segment, leg, index, &session).await;
                let end = session.end().await;
                let wanted = end == End::Unwanted;
                if is_replaced() {
                    // A slice that was replaced is fenced to be wiped (P2): that says nothing of the volume's epoch (F4).
                    return;
                }
                ended(&segment, leg, index, end);
                if wanted || shared.doors.now().since(opened) >= STABLE_AFTER {
                    backoff = BACKOFF_MIN;
                } else {
                    // A lender that breaks the protocol at once is not asked again at once.
                    shared.pause(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
            Err(ConnectError::Fenced(_)) if is_replaced() => return,
            Err(ConnectError::Fenced(text)) => return shared.fence(&text),
            Err(error) => {
                not_connected(&segment, leg, index, error);
                let pause = if segment.role(index) == Role::Stale { BACKOFF_MAX } else { backoff };
                shared.pause(pause).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// Ends a session that is not to become the leg's. True if it told of a newer epoch, which counts all the same (F4).
fn dismiss<D: Doors, M: ManagerDoor>(segment: &Segment<D, M>, session: &Session<D>) -> bool {
    session.kill(End::Unwanted);
    let fenced = session.fenced();
    if let Some(text) = &fenced {
        segment.shared.fence(text);
    }
    fenced.is_some()
}

/// Tries all addresses of the lender in turn.
async fn connect<D: Doors, M: ManagerDoor>(
    segment: &Segment<D, M>,
    leg: &Leg<D>,
    index: usize,
    mode: OpenMode,
) -> Result<Rc<Session<D>>, ConnectError> {
    let info = &segment.shared.info;
    let mut last = ConnectError::NotHere(format!("no address of server {} is known", leg.lender()));
    for address in segment.shared.addresses(leg.facts.server) {
        leg.number.set(leg.number.get() + 1);
        let generation = {
            let members = segment.members.borrow();
            let present = members.previous.filter(|_| leg.try_previous.get()).unwrap_or(members.generation);
            leg.issued.get().filter(|issued| mode == OpenMode::Target && issued.number > present.number).unwrap_or(present)
        };
        let open = Open {
            session: SessionNumber(leg.number.get()),
            area: leg.facts.area,
            slice: leg.facts.slice,
            volume: info.volume,
            way: info.way,
            segment: u32::try_from(segment.index).unwrap_or(u32::MAX),
            segment_length: segment.length,
            leg: u32::try_from(index).unwrap_or(u32::MAX),
            generation,
            mode,
            borrower: info.borrower,
            epoch: info.epoch,
            secret: info.secret.unwrap_or(LeaseSecret::from_u128(0)),
            known_open: leg.known.get().0,
            known_sequence: leg.known.get().1,
        };
        match open_session(&segment.shared.doors, &address, leg.facts.server, &open).await {
            Err(ConnectError::NotHere(text)) => last = ConnectError::NotHere(text),
            Err(ConnectError::Refused(Status::StaleEpoch, text)) => return Err(ConnectError::Fenced(text)),
            other => return other,
        }
    }
    Err(last)
}

fn not_connected<D: Doors, M: ManagerDoor>(segment: &Segment<D, M>, leg: &Leg<D>, index: usize, error: ConnectError) {
    let text = match error {
        ConnectError::NotHere(text) => {
            leg.refused.set(false);
            segment.shared.ask_lenders();
            text
        }
        ConnectError::Refused(status, text) => {
            if status == Status::Disagreement {
                // S1 between two labels: this one may have been written already, or not yet.
                leg.try_previous.set(!leg.try_previous.get());
                // Or the area was rolled back, restored or cloned: then no map says what it lacks (L2).
                leg.disagreed.set(true);
                if segment.role(index) == Role::Stale {
                    leg.known.set((OpenId::from_u128(0), 0));
                    leg.stale_since.set(None);
                }
            }
            if status == Status::Superseded {
                // A client with the same epoch was here before, by a clock that was ahead of ours.
                leg.number.set(leg.number.get() + SESSION_LEAP);
            }
            leg.refused.set(!matches!(status, Status::Unavailable | Status::Superseded | Status::TooMuch));
            format!("the lender refuses ({status:?}): {text}")
        }
        ConnectError::Fenced(text) => text,
    };
    if *leg.problem.borrow() != text {
        tracing::info!(lender = %leg.facts.server_name, slice = %leg.facts.slice, text, "no session with the lender");
        leg.problem.replace(text);
        segment.shared.changed.notify();
    }
}

/// Looks at what OPEN was answered with; false if the leg is of no use as what it was opened.
fn accept<D: Doors, M: ManagerDoor>(segment: &Segment<D, M>, leg: &Leg<D>, index: usize, session: &Rc<Session<D>>) -> bool {
    let Some(opened) = session.opened() else { return false };
    let another_identity = leg.identity.get().is_some_and(|before| !opened.identity.kept_writes_of(&before));
    leg.identity.set(Some(opened.identity));
    leg.known.set((opened.identity.open, opened.sequence));
    leg.try_previous.set(false);
    leg.refused.set(false);
    leg.disagreed.set(false);
    if session.mode() == OpenMode::Target {
        leg.forget();
    } else {
        if another_identity && leg.has_unflushed() && !mutation::is(Mutation::NoReplay) {
            leg.lost_writes.set(true);
        }
    }
    if leg.lost_writes.get() {
        // W5: with a proven survivor it leaves (S1), else the kept writes are written again; till then nothing is served from it.
        let text = format!("server {} has restarted and lost writes that had not been flushed", leg.facts.server_name);
        tracing::error!(text);
        leg.problem.replace(text);
        leg.candidate.replace(Some(Rc::clone(session)));
        segment.shared.changed.notify();
    } else {
        segment.install(index, session);
    }
    if session.mode() == OpenMode::InSync {
        segment.note_opened(index, opened.unclean);
    }
    true
}

/// The watchdog: one timer per session. Returns when the session has ended or is not wanted any more.
async fn watch<D: Doors, M: ManagerDoor>(segment: &Segment<D, M>, leg: &Leg<D>, index: usize, session: &Rc<Session<D>>) {
    let shared = &segment.shared;
    let began = shared.doors.now();
    let mut looked = began;
    loop {
        // While nothing is asked of the lender, only the next PING has to be thought of.
        let idle = session.silence(looked);
        let dozes = session.load() == 0 && idle.quiet >= WATCH_INTERVAL;
        let pause = if dozes { PING_AFTER.saturating_sub(idle.quiet).max(WATCH_INTERVAL) } else { WATCH_INTERVAL };
        {
            let end = pin!(async {
                loop {
                    let seen = shared.changed.version();
                    if session.is_dead() || !shared.wants_sessions() || !segment.fits(index, session.mode()) {
                        return;
                    }
                    let end = pin!(session.end());
                    let changed = pin!(shared.changed.changed(seen));
                    let _ = select(end, changed).await;
                }
            });
            let sleep = pin!(async {
                let sleep = pin!(shared.doors.sleep(pause));
                if dozes {
                    select(sleep, pin!(session.stirred())).await;
                } else {
                    sleep.await;
                }
            });
            if let Either::Left(_) = select(end, sleep).await {
                // Idle, closed or fenced: requests that still wait end with the session (F4).
                session.kill(End::Unwanted);
                return;
            }
        }
        let now = shared.doors.now();
        let late = now.since(looked) > pause + WATCH_INTERVAL * 3;
        looked = now;
        if late {
            // This process was stopped: what has arrived meanwhile is taken before anybody is blamed.
            continue;
        }
        if now.since(began) >= STABLE_AFTER {
            leg.earlier_leave_at.set(None);
        }
        let silence = session.silence(now);
        if silence.quiet >= PING_AFTER && !silence.pinging {
            session.ping_unawaited();
        }
        let (all_max, data_max) = if segment.can_do_without(index) {
            (hung_max(), Some(hung_max()))
        } else {
            (LENDER_SILENT_MAX, shared.options.fail_after)
        };
        let hung =
            data_max.is_some_and(|max| silence.data >= max) || (data_max == Some(hung_max()) && silence.oldest >= STUCK_MAX);
        if silence.all >= all_max || hung {
            let since = Tick(now.0.saturating_sub(u64::try_from(silence.all.max(silence.data).as_nanos()).unwrap_or(0)));
            let text = format!("no answer for {} s", silence.all.max(silence.oldest).as_secs());
            session.kill(End::Hung(text, since));
            return;
        }
    }
}

/// The session has ended: what that means for the leg.
fn ended<D: Doors, M: ManagerDoor>(segment: &Segment<D, M>, leg: &Leg<D>, index: usize, end: End) {
    let now = segment.shared.doors.now();
    leg.session.replace(None);
    leg.candidate.replace(None);
    // A target that loses its connection may miss writes: the resync begins anew (W4, S4).
    segment.members.borrow_mut().give_up_copying(index);
    let earlier = leg.earlier_leave_at.take();
    let keep = |at: Tick| earlier.map_or(at, |earlier| earlier.min(at));
    match end {
        End::Fenced(text) => return segment.shared.fence(&text),
        End::Lost(text) => {
            tracing::info!(lender = %leg.facts.server_name, slice = %leg.facts.slice, text, "the session is lost");
            leg.problem.replace(text);
            leg.lost_since.set(Some(now));
            leg.leave_at.set(Some(keep(after(now, reconnect_grace()))));
        }
        End::Hung(text, since) => {
            tracing::warn!(lender = %leg.facts.server_name, slice = %leg.facts.slice, text, "the lender is silent");
            leg.problem.replace(text);
            leg.lost_since.set(Some(since));
            leg.leave_at.set(Some(keep(now)));
        }
        End::Unwanted => {
            leg.lost_since.set(Some(now));
            leg.leave_at.set(Some(after(now, reconnect_grace())));
        }
    }
    segment.shared.changed.notify();
}
