//! The steps of a client, as the shells round its state machine take them.

use sublet_api::request::LegAnswer;
use sublet_volume::machine::{Doubt, Role, Step};

use crate::actions::Action;
use crate::client::{self, Life, Part};
use crate::lender::{Frame, Map, Session};
use crate::manager::{Answer, Ask, Lease, What, generation};
use crate::world::{LEGS, Question, Rule, State, World};

impl World {
    /// Answers none if the action is not a client's; false if nothing changes.
    pub(crate) fn client_step(&self, s: &mut State, action: Action) -> Option<bool> {
        match action {
            Action::Open(c, l) => return Some(self.open(s, c, l)),
            Action::GiveUpLeg(c, l) | Action::Hasty(c, l) => s.clients[c].legs[l].given_up = true,
            Action::Notice(c, l) => {
                let lender = &s.lenders[l];
                let epoch = s.clients[c].epoch;
                let fenced = lender.epoch > epoch || (lender.epoch == epoch && !lender.admitted);
                if lender.is_up && fenced {
                    self.over(s, c);
                } else {
                    s.clients[c].lose_session(l);
                }
            }
            Action::Break(c, l) => s.clients[c].lose_session(l),
            Action::Settle(c) => return Some(self.settle(s, c)),
            Action::Supervise(c) => return Some(self.supervise(s, c)),
            Action::Answer(c) => self.answer(s, c),
            Action::Prepare(c) => return Some(self.prepare(s, c)),
            Action::Copy(c) => return Some(self.copy(s, c)),
            Action::Write(c) => self.write(s, c),
            Action::Flush(c, l) => {
                s.lenders[l].flush();
                s.clients[c].legs[l].dirty = false;
                self.count_flush(s, c);
            }
            Action::Read(c, l) => {
                s.allowed &= 1 << s.lenders[l].content;
                if !s.clients[c].has_written {
                    s.lossy = s.allowed;
                }
            }
            Action::Cool(_, l) => s.lenders[l].cool(&self.protocol),
            Action::TimeOut(c) => {
                s.clients[c].asked = None;
                let open = s.questions.iter_mut().filter(|question| usize::from(question.client) == c);
                open.for_each(|question| question.awaited = false);
            }
            _ => return None,
        }
        Some(true)
    }

    /// The client has been fenced (F4).
    fn over(&self, s: &mut State, c: usize) {
        s.clients[c].end(Life::Over);
        let open = s.questions.iter_mut().filter(|question| usize::from(question.client) == c);
        open.for_each(|question| question.awaited = false);
    }

    /// OPEN, as the lender checks it (F1, F6, W4), and what the client makes of the answer.
    fn open(&self, s: &mut State, c: usize, l: usize) -> bool {
        let (client, lender) = (&mut s.clients[c], &mut s.lenders[l]);
        let Some(is_target) = client.mode_wanted(l) else { return false };
        if lender.epoch > client.epoch || (lender.epoch == client.epoch && !lender.admitted) {
            self.over(s, c);
            return true;
        }
        if lender.epoch < client.epoch {
            return false;
        }
        let near = |number: u64| number.abs_diff(lender.generation.into()) <= 1;
        let previous = client.members.previous.is_some_and(|previous| near(previous.number));
        if !is_target && (!(near(client.generation().into()) || previous) || !lender.in_sync[l]) {
            return false;
        }
        let had = lender.session.is_some();
        lender.end_session();
        if !lender.disk.is_empty() && !self.protocol.breaks(Rule::OpenAfterDisk) {
            return had;
        }
        lender.unclean |= lender.open != 0 && lender.open != client.epoch;
        lender.open = client.epoch;
        if lender.unclean {
            lender.flush();
        }
        let leg = &mut client.legs[l];
        let other_identity = std::mem::take(&mut leg.other_identity);
        if is_target {
            (leg.dirty, leg.lost) = (false, false);
        } else if other_identity && leg.dirty && !self.protocol.breaks(Rule::Identity) {
            // The session is a candidate: nothing but what was lost is written there.
            leg.lost = true;
        }
        leg.session = Some(client::Session { is_target, is_attached: true });
        leg.given_up = false;
        lender.session = Some(Session { client: c as u8, epoch: client.epoch });
        let others = client.members.which(|m| m.role == Role::InSync && m.equal);
        if !is_target && client.settled && !client.legs[l].judged {
            client.legs[l].judged = true;
            if lender.unclean && others.iter().any(|other| *other != l) {
                client.members.legs[l].equal = false;
            }
        }
        self.send(s, c, l);
        true
    }

    /// Sends the write under way to a leg that has not got it yet.
    fn send(&self, s: &mut State, c: usize, l: usize) {
        let client = &mut s.clients[c];
        let Some(session) = client.session(l) else { return };
        if let Some((value, parts)) = &mut client.write
            && parts[l] == Part::ToSend
        {
            parts[l] = Part::Sent;
            let frame = Frame { client: c as u8, epoch: client.epoch, value: *value, is_old: false };
            if session.is_attached {
                s.lenders[l].wire.push(frame);
            }
        }
    }

    fn write(&self, s: &mut State, c: usize) {
        s.written += 1;
        let value = s.written;
        s.lossy |= 1 << value;
        if self.holder(s) == Some(c) {
            s.allowed |= 1 << value;
        }
        let client = &mut s.clients[c];
        client.has_written = true;
        let part = |l| if client.members.role(l).takes_writes() { Part::ToSend } else { Part::Skipped };
        client.write = Some((value, std::array::from_fn(part)));
        (0..LEGS).for_each(|l| self.send(s, c, l));
    }

    /// What became of the write under way; when every leg has it, it is acknowledged (W1).
    pub(crate) fn finish_write(&self, s: &mut State, c: usize) {
        let connected: [bool; LEGS] = std::array::from_fn(|l| s.clients[c].session(l).is_some());
        let client = &mut s.clients[c];
        let Some((value, mut parts)) = client.write else { return };
        for l in 0..LEGS {
            if matches!(parts[l], Part::Done | Part::Skipped) {
                continue;
            }
            let role = client.members.role(l);
            if role.is_optional() && !connected[l] {
                client.members.give_up_copying(l);
                client.legs[l].session = None;
            }
            if !client.members.role(l).takes_writes() {
                parts[l] = Part::Skipped;
            }
        }
        client.write = Some((value, parts));
        let is_there = |part: &Part| matches!(part, Part::Done | Part::Skipped);
        let all = parts.iter().all(is_there) || (self.protocol.breaks(Rule::AllLegs) && parts.contains(&Part::Done));
        if !all || !parts.contains(&Part::Done) {
            return;
        }
        client.write = None;
        client.kept = Some(value);
        if self.holder(s) == Some(c) {
            s.allowed = 1 << value;
        } else {
            // A client that does not know yet that it was taken over from: what it acknowledges is in the new world.
            let view = self.manager.view(s.manager);
            if view.lease == Lease::Active && (0..LEGS).any(|l| view.in_sync[l] && parts[l] != Part::Done) {
                s.wrong = Some("F3: a write is acknowledged that the next mount does not have");
            }
        }
        self.count_flush(s, c);
    }

    /// A flush is acknowledged when no leg of the set has anything left to flush (W1).
    fn count_flush(&self, s: &mut State, c: usize) {
        let holder = self.holder(s);
        let client = &mut s.clients[c];
        let required = client.members.which(|m| m.role.is_required());
        if client.write.is_some() || required.iter().any(|l| client.legs[*l].dirty) {
            return;
        }
        let Some(value) = client.kept.take() else { return };
        client.has_written = false;
        s.flushed = s.flushed.max(value);
        if holder.is_none() || holder == Some(c) {
            s.lossy = 1 << value;
        }
    }

    /// After an unclean close the lowest leg is the source (H3). Every leg of the set has been asked, or has left.
    fn settle(&self, s: &mut State, c: usize) -> bool {
        let client = &mut s.clients[c];
        let in_sync = client.members.which(|m| m.role == Role::InSync);
        let open: Vec<usize> = in_sync.iter().copied().filter(|l| client.is_sound(*l)).collect();
        let all = open.len() == in_sync.len() || self.protocol.breaks(Rule::AskEveryLeg);
        let Some(first) = open.first().copied().filter(|_| all && !client.members.paused()) else { return false };
        let unclean = open.iter().any(|l| s.lenders[*l].unclean);
        client.settled = true;
        let differ = unclean && in_sync.len() > 1;
        for l in in_sync {
            client.legs[l].judged = differ || open.contains(&l);
            if differ && l != first {
                client.members.legs[l].equal = false;
            }
        }
        true
    }

    /// A leg answers a PING, in its unchanged identity.
    fn answers(&self, s: &State, c: usize, without: usize) -> bool {
        (0..LEGS).any(|l| l != without && s.clients[c].is_survivor(l) && self.is_connected(s, c, l))
    }

    fn ask(&self, s: &mut State, c: usize, leg: usize, number: u8, what: What) {
        let ask = Ask { epoch: s.clients[c].epoch, leg: leg as u8, generation: number, what };
        s.clients[c].asked = Some(ask);
        s.questions.push(Question { client: c as u8, ask, awaited: true });
    }

    /// The supervisor's next step; as the functions of `Segment`.
    fn supervise(&self, s: &mut State, c: usize) -> bool {
        let number = s.clients[c].generation();
        if self.protocol.breaks(Rule::NoLateWithdrawal) {
            let back = (0..LEGS).find(|l| s.clients[c].members.role(*l) == Role::Stale && self.is_connected(s, c, *l));
            if let Some(leg) = back {
                self.ask(s, c, leg, number, What::Withdrawn);
                return true;
            }
        }
        let step = s.clients[c].next_step();
        // Before the legs were asked what may differ, nothing is copied.
        if !s.clients[c].settled
            && !matches!(step, Step::Leave(_) | Step::Keep(_) | Step::AskAgain(_) | Step::Labels | Step::Replay)
        {
            return false;
        }
        match step {
            Step::Leave(leg) => self.leave(s, c, leg),
            Step::Keep(leg) => {
                s.clients[c].members.cancel_leaving(leg);
                true
            }
            Step::AskAgain(leg) => {
                let Some(doubt) = s.clients[c].members.doubt else { return false };
                let back = s.clients[c].legs[leg].session.is_some();
                if !back && !self.answers(s, c, leg) {
                    return false;
                }
                match doubt.left_in {
                    Some(left_in) => self.ask(s, c, leg, left_in.number as u8, What::Withdrawn),
                    None => self.ask(s, c, leg, number, What::Stale),
                }
                true
            }
            Step::Labels => self.label(s, c),
            Step::Replay => self.replay(s, c),
            // A disk error at every leg: not one of the faults here.
            Step::Fail(_) => false,
            Step::Resync(leg) => {
                s.clients[c].members.begin_copying(leg);
                s.clients[c].copying = Some(leg as u8);
                true
            }
            Step::Equalise(leg) => {
                s.clients[c].copying = Some(leg as u8);
                true
            }
            Step::AllEqual => {
                s.clients[c].equalise_due = false;
                s.clients[c].members.became_equal();
                true
            }
            Step::Return(leg) => {
                self.ask(s, c, leg, number, What::Returning);
                true
            }
            Step::Commit(leg) => {
                self.ask(s, c, leg, number, What::InSync);
                true
            }
            Step::Wait | Step::Until(_) => false,
        }
    }

    fn leave(&self, s: &mut State, c: usize, leg: usize) -> bool {
        let begins = s.clients[c].members.role(leg) == Role::InSync;
        if begins {
            s.clients[c].members.begin_leaving(leg);
        }
        if !self.answers(s, c, leg) && !self.protocol.breaks(Rule::Ping) {
            return begins;
        }
        let may_be = s.allowed;
        let proven = |l: usize| l != leg && s.clients[c].members.role(l) == Role::InSync && s.lenders[l].is_up;
        // What is under way is written to the others as well, sooner or later.
        let is_quiet = self.holder(s) == Some(c) && s.clients[c].write.is_none();
        if is_quiet && !(0..LEGS).any(|l| proven(l) && may_be & (1 << s.lenders[l].content) != 0) {
            s.wrong = Some("S1: a leg leaves although no other one is proven to have every write");
        }
        s.clients[c].members.asked = true;
        let number = s.clients[c].generation();
        self.ask(s, c, leg, number, What::Stale);
        true
    }

    /// SET_STATE at one leg whose label is due.
    fn label(&self, s: &mut State, c: usize) -> bool {
        let due = s.clients[c].members.which(|m| m.role == Role::InSync && !m.labelled);
        let Some(l) = due.into_iter().find(|l| self.is_connected(s, c, *l)) else { return false };
        let client = &mut s.clients[c];
        let other = 1 - l;
        // A leg that leaves before it was made equal lacks what an earlier client wrote, too (H3).
        let unequal = !client.members.legs[other].equal && !self.protocol.breaks(Rule::SeedUnequal);
        let written = (client.legs[other].dirty || client.write.is_some()) && !self.protocol.breaks(Rule::Seed);
        let seed = Some(written || unequal);
        let (number, flags) = (client.generation(), client.members.in_sync_flags());
        let present = client.members.generation;
        let lender = &mut s.lenders[l];
        lender.label(number, std::array::from_fn(|l| flags[l]), other, seed);
        // Before the legs were asked nobody knows whether they are equal (H3).
        lender.unclean &= !(client.settled && client.members.all_equal());
        client.members.label_written(l, present);
        true
    }

    /// W5: no leg has what was lost; it is written again, before anything else, to those that are back. Or the volume fails.
    fn replay(&self, s: &mut State, c: usize) -> bool {
        if !self.bounds.keeps {
            s.clients[c].end(Life::Failed);
            return true;
        }
        let mut changed = false;
        for l in 0..LEGS {
            let client = &mut s.clients[c];
            if !client.legs[l].lost || !client.legs[l].session.is_some_and(|session| session.is_attached) {
                continue;
            }
            changed = true;
            let under_way = client.write.filter(|(_, parts)| parts[l] == Part::Done).map(|(value, _)| value);
            if let Some(value) = under_way.or(client.kept) {
                s.lenders[l].apply(value, 1 - l);
                client.legs[l].dirty = true;
            }
            client.legs[l].lost = false;
            self.send(s, c, l);
        }
        changed
    }

    /// What the manager's answer means.
    fn answer(&self, s: &mut State, c: usize) {
        let client = &mut s.clients[c];
        let answer = std::mem::replace(&mut client.answer, Answer::None);
        let Some(ask) = client.asked.take() else { return };
        let leg = usize::from(ask.leg);
        let (number, in_sync) = match answer {
            Answer::StaleEpoch => return self.over(s, c),
            Answer::Done { generation, in_sync } => (generation, in_sync),
            Answer::Refused | Answer::None => return self.refused(s, c, ask),
        };
        let set = LegAnswer { generation: generation(number), in_sync: in_sync.to_vec() };
        match ask.what {
            What::Stale if client.members.doubt.is_some() && client.legs[leg].session.is_some() => {
                client.members.doubt = Some(Doubt { leg, left_in: Some(set.generation) });
            }
            What::Stale => self.left(s, c, leg, &set),
            What::Returning => client.prepare = Some((ask.leg, number)),
            What::InSync => {
                client.members.has_joined(leg, &set);
                client.legs[leg].judged = true;
                client.lose_session(leg);
            }
            What::Withdrawn if self.protocol.breaks(Rule::NoLateWithdrawal) => {
                client.members.was_withdrawn(&set);
                client.members.legs[leg].role = Role::InSync;
                client.lose_session(leg);
            }
            What::Withdrawn => client.members.was_withdrawn(&set),
        }
    }

    fn refused(&self, s: &mut State, c: usize, ask: Ask) {
        let client = &mut s.clients[c];
        let leg = usize::from(ask.leg);
        match ask.what {
            What::Stale => {
                client.members.doubt = None;
                client.members.asked = false;
            }
            What::Returning => {
                client.members.give_up_copying(leg);
                client.lose_session(leg);
            }
            What::InSync => {
                client.members.join_refused(leg);
                client.lose_session(leg);
            }
            What::Withdrawn => {
                let Some(left_in) = client.members.doubt.and_then(|doubt| doubt.left_in) else { return };
                let mut in_sync = client.members.in_sync_flags();
                in_sync[leg] = false;
                self.left(s, c, leg, &LegAnswer { generation: left_in, in_sync });
            }
        }
    }

    fn left(&self, s: &mut State, c: usize, leg: usize, answer: &LegAnswer) {
        let client = &mut s.clients[c];
        client.members.has_left(leg, answer);
        client.members.legs[leg].equal &= client.settled;
        client.lose_session(leg);
        if self.protocol.breaks(Rule::LabelBeforeAck) {
            client.members.labels_due = false;
            client.members.legs[leg].role = Role::Stale;
        }
    }

    /// S5: everything durable at the target, its label; only then the commit is asked for.
    fn prepare(&self, s: &mut State, c: usize) -> bool {
        let Some((leg, number)) = s.clients[c].prepare else { return false };
        let l = usize::from(leg);
        if s.clients[c].legs[l].session.is_none() || s.clients[c].members.role(l) != Role::Copied {
            s.clients[c].prepare = None;
            s.clients[c].members.give_up_copying(l);
            s.clients[c].lose_session(l);
            return true;
        }
        if !self.is_connected(s, c, l) {
            return false;
        }
        let client = &mut s.clients[c];
        client.prepare = None;
        if !self.protocol.breaks(Rule::TargetFlushBeforeCommit) {
            s.lenders[l].flush();
            client.legs[l].dirty = false;
        }
        if !self.protocol.breaks(Rule::TargetLabelBeforeCommit) {
            let mut in_sync = client.members.in_sync_flags();
            in_sync[l] = true;
            s.lenders[l].label(number, std::array::from_fn(|l| in_sync[l]), 1 - l, None);
            s.lenders[l].unclean = false;
        }
        client.members.begin_joining(l);
        let present = client.generation();
        self.ask(s, c, l, present, What::InSync);
        true
    }

    /// Copies what a leg may lack (S4), under the range lock: no write is under way.
    fn copy(&self, s: &mut State, c: usize) -> bool {
        let Some(leg) = s.clients[c].copying else { return false };
        let l = usize::from(leg);
        let role = s.clients[c].members.role(l);
        // The source has left, and this leg is the source now.
        let is_source = role == Role::InSync && s.clients[c].members.legs[l].equal;
        if is_source || s.clients[c].legs[l].session.is_none() || !matches!(role, Role::InSync | Role::Copying) {
            s.clients[c].copying = None;
            s.clients[c].members.give_up_copying(l);
            return true;
        }
        let source = (0..LEGS).find(|source| *source != l && s.clients[c].is_sound(*source) && self.is_connected(s, c, *source));
        let Some(source) = source.filter(|_| self.is_connected(s, c, l)) else { return false };
        let (from, to) = (&s.lenders[source], &s.lenders[l]);
        let target = to.map == Map::Missed || (to.hot && !self.protocol.breaks(Rule::TargetHot));
        let needed = from.map != Map::Clear || from.hot || target;
        let value = from.content;
        if needed || role == Role::InSync {
            s.lenders[l].apply(value, 1 - l);
        }
        if !self.protocol.breaks(Rule::TargetFlushBeforeCommit) {
            s.lenders[l].flush();
        }
        let client = &mut s.clients[c];
        client.copying = None;
        client.legs[l].dirty = false;
        if role == Role::InSync {
            client.members.legs[l].equal = true;
            client.equalise_due = true;
        } else {
            client.members.copied(l);
        }
        true
    }
}
