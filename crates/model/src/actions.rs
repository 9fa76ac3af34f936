//! What can happen next, and how it changes the world.

use std::ops::Not;

use sublet_volume::machine::Role;

use crate::client::{Client, Life, Part};
use crate::manager::{Answer, Event, Lease, Stand};
use crate::search::Model;
use crate::world::{LEGS, Rule, State, World};

/// Mounts end somewhere: each that does not succeed needs further epochs.
const EPOCH_MAX: u8 = 12;

/// One step. `c` is a client, `l` a leg or its lender, `q` a question on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The client opens a session.
    Open(usize, usize),
    /// A leg has been without a session for long enough.
    GiveUpLeg(usize, usize),
    /// The client learns that its session has ended.
    Notice(usize, usize),
    /// What the labels say is weighed, once.
    Settle(usize),
    /// The supervisor takes its next step.
    Supervise(usize),
    /// The manager's answer is looked at.
    Answer(usize),
    /// A target gets its flush and its label (S5).
    Prepare(usize),
    /// The copy to a leg.
    Copy(usize),
    /// A write begins.
    Write(usize),
    /// A leg is flushed.
    Flush(usize, usize),
    /// A read fixes what was open until then.
    Read(usize, usize),
    /// A region cools.
    Cool(usize, usize),
    /// A question reaches the manager.
    Deliver(usize),
    /// The task of the manager goes on.
    Advance,
    /// Somebody mounts, because nobody has it mounted.
    Remount,
    /// An order of the manager is carried out.
    Order(usize),
    /// One that was long on its way.
    LateOrder(usize),
    /// A write is submitted to the disk.
    Submit(usize, usize),
    /// The disk has carried it out, and the reply is on its way.
    Apply(usize, usize),
    /// A lender starts.
    Start(usize),
    /// The manager waits no longer for a lender that is down.
    Unreachable(usize),
    /// Fault: the manager waits no longer for a lender that is there.
    Impatient(usize),
    /// Fault: a leg that could be opened is not, for long.
    Hasty(usize, usize),
    /// Fault: a connection breaks, the lender does not know yet.
    Break(usize, usize),
    /// Fault: the client waits no longer for the manager; its question is still on the way.
    TimeOut(usize),
    /// Fault: a question comes twice.
    Twice(usize),
    /// Fault: a question is lost.
    Lose(usize),
    /// Fault: an answer is lost.
    LoseAnswer(usize),
    /// Fault: an order is long on its way.
    Delay(usize),
    /// Fault: a lender loses power; this is what is left.
    PowerCut(usize, u8),
    /// Fault: an agent ends, its kernel goes on.
    Stop(usize),
    /// Fault: the client stops.
    Crash(usize),
    /// Fault: a second mount while there is one.
    TakeOver,
    /// Fault: an unmount by force.
    Unmount,
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        self.first()
    }

    fn check(&self, state: &State) -> Result<(), String> {
        self.promises(state)
    }

    fn is_settled(&self, state: &State) -> bool {
        self.settled(state)
    }

    fn is_fault(&self, action: Action) -> bool {
        use Action::*;
        matches!(
            action,
            Impatient(_)
                | Hasty(..)
                | Break(..)
                | TimeOut(_)
                | Twice(_)
                | Lose(_)
                | LoseAnswer(_)
                | Delay(_)
                | PowerCut(..)
                | Stop(_)
                | Crash(_)
                | TakeOver
                | Unmount
        )
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        let view = self.manager.view(s.manager);
        let bounds = &self.bounds;
        let faults = s.faults < bounds.faults;
        for c in (0..s.clients.len()).filter(|c| s.clients[*c].is_live()) {
            self.client_actions(s, c, faults, out);
        }
        out.extend((0..s.questions.len()).map(Action::Deliver));
        if view.busy {
            out.push(Action::Advance);
        }
        let quiet = !view.busy && view.lease != Lease::Closing && view.epoch < EPOCH_MAX;
        // Who mounts in vain tries again when a lender is back.
        let can_open = (0..LEGS).any(|l| view.in_sync[l] && s.lenders[l].is_up);
        if quiet && can_open && self.holder(s).is_none() && s.clients.iter().all(|c| c.life != Life::Failed) {
            out.push(Action::Remount);
        }
        if quiet && s.takeovers < bounds.takeovers && self.holder(s).is_some() {
            out.push(if bounds.by_force { Action::Unmount } else { Action::TakeOver });
        }
        for l in 0..LEGS {
            let lender = &s.lenders[l];
            out.extend(lender.is_up.not().then_some(Action::Start(l)));
            let waits = view.orders[l].is_some() && s.stands[l] != Stand::Done;
            if view.busy && waits && s.stands[l] == Stand::Waiting {
                if !lender.is_up {
                    out.push(Action::Unreachable(l));
                } else if faults && bounds.network {
                    out.push(Action::Impatient(l));
                }
            }
            if !lender.is_up {
                continue;
            }
            if waits {
                out.push(Action::Order(l));
                out.extend((faults && bounds.network && lender.late.is_none()).then_some(Action::Delay(l)));
            }
            out.extend(lender.late.map(|_| Action::LateOrder(l)));
            out.extend((0..lender.wire.len()).map(|frame| Action::Submit(l, frame)));
            out.extend((0..lender.disk.len()).map(|frame| Action::Apply(l, frame)));
            if faults && bounds.power_cuts {
                let submitted = lender.disk.iter().fold(lender.stable, |bits, frame| bits | 1 << frame.value);
                out.extend((0..16).filter(|value| submitted & (1 << value) != 0).map(|value| Action::PowerCut(l, value)));
            }
            out.extend((faults && bounds.restarts).then_some(Action::Stop(l)));
        }
        if faults && bounds.network {
            for q in 0..s.questions.len() {
                out.extend([Action::Twice(q), Action::Lose(q), Action::LoseAnswer(q)]);
            }
        }
    }

    fn step(&self, before: &State, action: Action) -> Option<State> {
        let mut s = before.clone();
        s.faults += u8::from(self.is_fault(action) && !matches!(action, Action::TakeOver | Action::Unmount));
        let happened = self.client_step(&mut s, action).or_else(|| self.other_step(&mut s, action));
        happened?.then_some(())?;
        if let Some(client) = client_of(action) {
            self.finish_write(&mut s, client);
        }
        for (c, client) in s.clients.iter_mut().enumerate() {
            for (leg, lender) in client.legs.iter_mut().zip(&s.lenders) {
                // Of a dead client nothing is to be told apart; a lender whose session has ended has it no more.
                leg.other_identity &= client.life == Life::Live;
                if let Some(session) = &mut leg.session {
                    session.is_attached &= lender.session.is_some_and(|open| usize::from(open.client) == c);
                }
            }
        }
        let (old, new) = (self.manager.view(before.manager), self.manager.view(s.manager));
        for l in 0..LEGS {
            let (was, is) = (&before.lenders[l], &s.lenders[l]);
            if is.epoch < was.epoch || is.generation < was.generation {
                s.wrong = Some("F1: an epoch or a generation of a label went back");
            }
        }
        if new.epoch < old.epoch || new.generation < old.generation {
            s.wrong = Some("an epoch or a generation of the manager went back");
        }
        Some(s)
    }
}

/// The client that an action may have brought forward.
fn client_of(action: Action) -> Option<usize> {
    use Action::*;
    match action {
        Open(c, _) | Notice(c, _) | Break(c, _) | Flush(c, _) => Some(c),
        Supervise(c) | Answer(c) | Prepare(c) | Copy(c) | Write(c) => Some(c),
        _ => None,
    }
}

impl World {
    fn client_actions(&self, s: &State, c: usize, faults: bool, out: &mut Vec<Action>) {
        let (client, bounds) = (&s.clients[c], &self.bounds);
        for l in 0..LEGS {
            let leg = &client.legs[l];
            if leg.session.is_none() {
                out.extend((client.mode_wanted(l).is_some() && s.lenders[l].is_up).then_some(Action::Open(c, l)));
                if !leg.given_up && client.members.role(l) == Role::InSync {
                    // A leg that could be opened is not given up, unless it takes too long.
                    let opens = s.lenders[l].is_up && self.step(s, Action::Open(c, l)).is_some();
                    if !opens {
                        out.push(Action::GiveUpLeg(c, l));
                    } else if faults && bounds.network {
                        out.push(Action::Hasty(c, l));
                    }
                }
                continue;
            }
            if leg.session.is_some_and(|session| session.is_attached) {
                out.extend((client.legs[l].dirty && client.session(l).is_some()).then_some(Action::Flush(c, l)));
                out.extend(self.may_cool(s, c, l).then_some(Action::Cool(c, l)));
            } else {
                out.push(Action::Notice(c, l));
            }
            out.extend((faults && bounds.network).then_some(Action::Break(c, l)));
        }
        if !client.settled {
            out.push(Action::Settle(c));
        }
        if client.answer != Answer::None {
            out.push(Action::Answer(c));
        } else if client.prepare.is_some() {
            out.push(Action::Prepare(c));
        } else if client.asked.is_none() {
            out.push(Action::Supervise(c));
        }
        if client.asked.is_some() && client.answer == Answer::None && faults && bounds.network {
            out.push(Action::TimeOut(c));
        }
        if client.write.is_none() {
            out.extend(client.copying.map(|_| Action::Copy(c)));
            let may_write = client.settled && s.written < bounds.writes && !client.members.paused();
            out.extend(may_write.then_some(Action::Write(c)));
        }
        if self.holder(s) == Some(c) && s.allowed.count_ones() > 1 {
            out.extend(self.readable(s, c).into_iter().map(|l| Action::Read(c, l)));
        }
        out.extend((faults && bounds.crashes).then_some(Action::Crash(c)));
    }

    /// H2: no write under way, every leg of the set flushed after the last one.
    fn may_cool(&self, s: &State, c: usize, l: usize) -> bool {
        let client = &s.clients[c];
        s.lenders[l].hot
            && client.settled
            && client.write.is_none()
            && client.kept.is_none()
            && client.members.is_whole()
            && client.members.in_sync_flags()[l]
            && client.legs.iter().zip(client.members.in_sync_flags()).all(|(leg, in_sync)| !in_sync || !leg.dirty)
    }

    fn other_step(&self, s: &mut State, action: Action) -> Option<bool> {
        let view = self.manager.view(s.manager);
        match action {
            Action::Deliver(q) => self.deliver(s, q, true, false),
            Action::Twice(q) => self.deliver(s, q, true, true),
            Action::LoseAnswer(q) => self.deliver(s, q, false, false),
            Action::Lose(q) => {
                let question = s.questions.remove(q);
                if question.awaited {
                    s.clients[usize::from(question.client)].asked = None;
                }
            }
            Action::Advance => {
                let mut stands = s.stands;
                if self.protocol.breaks(Rule::UnreachableIsNotFenced) {
                    stands = stands.map(|stand| if stand == Stand::Unreachable { Stand::Done } else { stand });
                }
                return Some(self.manage(s, Event::Advance(stands)));
            }
            Action::Remount => return Some(self.manage(s, Event::Mount)),
            Action::TakeOver | Action::Unmount => {
                s.takeovers += 1;
                let event = if action == Action::TakeOver { Event::Mount } else { Event::Unmount };
                return Some(self.manage(s, event));
            }
            Action::Order(l) => {
                let order = view.orders[l]?;
                let before = s.lenders[l].clone();
                if !s.lenders[l].carry_out(order, 1 - l, &self.protocol) {
                    return Some(s.lenders[l] != before);
                }
                s.stands[l] = Stand::Done;
                if !view.busy {
                    self.manage(s, Event::Confirmed(l as u8));
                }
            }
            Action::Delay(l) => s.lenders[l].late = view.orders[l],
            Action::LateOrder(l) => {
                let order = s.lenders[l].late?;
                let before = s.lenders[l].clone();
                if !s.lenders[l].carry_out(order, 1 - l, &self.protocol) {
                    return Some(s.lenders[l] != before);
                }
                s.lenders[l].late = None;
            }
            Action::Unreachable(l) | Action::Impatient(l) => s.stands[l] = Stand::Unreachable,
            Action::Submit(l, index) => {
                let frame = s.lenders[l].wire.remove(index);
                // H1: the mark is durable before the disk gets the write.
                s.lenders[l].hot = true;
                s.lenders[l].disk.push(frame);
            }
            Action::Apply(l, index) => {
                let frame = s.lenders[l].disk.remove(index);
                s.lenders[l].apply(frame.value, 1 - l);
                let c = usize::from(frame.client);
                let client = &mut s.clients[c];
                let hears = !frame.is_old && client.legs[l].session.is_some_and(|session| session.is_attached);
                if hears
                    && let Some((value, parts)) = &mut client.write
                    && *value == frame.value
                    && parts[l] == Part::Sent
                {
                    parts[l] = Part::Done;
                    client.legs[l].dirty = true;
                    self.finish_write(s, c);
                }
            }
            Action::Start(l) => s.lenders[l].is_up = true,
            Action::PowerCut(l, content) => {
                s.lenders[l].power_cut(content, &self.protocol);
                s.clients.iter_mut().for_each(|client| client.legs[l].other_identity = true);
            }
            Action::Stop(l) => {
                for frame in std::mem::take(&mut s.lenders[l].disk) {
                    s.lenders[l].apply(frame.value, 1 - l);
                }
                s.lenders[l].stop(&self.protocol);
            }
            Action::Crash(c) => {
                s.clients[c].end(Life::Over);
                for question in s.questions.iter_mut().filter(|question| usize::from(question.client) == c) {
                    question.awaited = false;
                }
            }
            _ => return None,
        }
        Some(true)
    }

    /// A question reaches the manager.
    fn deliver(&self, s: &mut State, q: usize, answered: bool, stays: bool) {
        let question = s.questions[q];
        let mut ask = question.ask;
        if self.protocol.breaks(Rule::CompareAndSet) {
            ask.epoch = self.manager.view(s.manager).epoch;
        }
        let (next, answer) = self.manager.handle(s.manager, Event::Ask(ask));
        self.moved(s, next);
        let client = &mut s.clients[usize::from(question.client)];
        if question.awaited {
            if answered {
                client.answer = answer;
            } else {
                client.asked = None;
            }
        }
        if stays {
            s.questions[q].awaited = false;
        } else {
            s.questions.remove(q);
        }
    }

    fn manage(&self, s: &mut State, event: Event) -> bool {
        let (next, _) = self.manager.handle(s.manager, event);
        let changed = next != s.manager;
        self.moved(s, next);
        changed
    }

    /// The manager has committed something: orders that differ now go out anew; a lease that is open now has its client.
    fn moved(&self, s: &mut State, next: u32) {
        let (old, new) = (self.manager.view(s.manager), self.manager.view(next));
        s.manager = next;
        for l in 0..LEGS {
            if old.orders[l] != new.orders[l] {
                s.stands[l] = Stand::Waiting;
            }
        }
        if new.lease == Lease::Active && old.lease != Lease::Active {
            let slot = (0..s.clients.len()).find(|c| !s.clients[*c].is_live()).unwrap_or(0);
            s.clients[slot] = Client::new(new.epoch, new.generation, new.in_sync);
            for question in s.questions.iter_mut().filter(|question| usize::from(question.client) == slot) {
                question.awaited = false;
            }
            s.allowed = s.lossy;
        }
    }
}
