//! The whole world: all parties, what is on its way between them, and what must be true.

use sublet_volume::machine::Role;

use crate::client::{Client, Life};
use crate::lender::Lender;
use crate::manager::{Ask, Lease, Manager, Stand};

/// Copies of the segment.
pub(crate) const LEGS: usize = 2;

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// S1: a survivor has answered a PING after the fault was seen.
    Ping,
    /// S1: writes are acknowledged only after the survivors' labels.
    LabelBeforeAck,
    /// S1: a leaving is withdrawn only as long as nothing was acknowledged without the leg.
    NoLateWithdrawal,
    /// S1: the survivors' maps are seeded with what was written since the leg's last flush.
    Seed,
    /// S1, H3: so are they with what may differ since an earlier client.
    SeedUnequal,
    /// S2: every change of the set is compare-and-set on the epoch.
    CompareAndSet,
    /// S3: after a survivor's crash a hot region counts as missed.
    HotCountsAsMissed,
    /// H2, S3: missed bits are durable before the hot mark goes.
    MissedBeforeCool,
    /// S5: the target's label comes before the commit.
    TargetLabelBeforeCommit,
    /// S5: the target is flushed before the commit.
    TargetFlushBeforeCommit,
    /// S4: what is hot at the target is copied too.
    TargetHot,
    /// S5: a stale leg is never read.
    NeverReadStale,
    /// H3: every leg is asked what may differ, before anything is read.
    AskEveryLeg,
    /// H3: what may differ is made equal before it is read.
    EqualBeforeRead,
    /// F1: a fence is answered after the disk I/O of older sessions.
    FenceAfterDisk,
    /// F1: the epoch survives a restart of the lender.
    EpochPersisted,
    /// F3: a lender that does not answer is not fenced.
    UnreachableIsNotFenced,
    /// W1: every leg of the set has a write before it is acknowledged.
    AllLegs,
    /// W4: OPEN is answered after the disk I/O of lower sessions.
    OpenAfterDisk,
    /// W5: a lender with another identity may have lost writes.
    Identity,
}

/// The protocol: whole, or with one rule broken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Protocol {
    /// The rule that is not kept.
    pub broken: Option<Rule>,
}

impl Protocol {
    pub(crate) fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }
}

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Writes of all clients together.
    pub writes: u8,
    /// Faults of all kinds together.
    pub faults: u8,
    /// Mounts while there is one.
    pub takeovers: u8,
    /// Such a mount is preceded by an unmount by force (F3); otherwise it is the borrower's own (F5).
    pub by_force: bool,
    /// Whether lenders can lose power.
    pub power_cuts: bool,
    /// Whether the agents of lenders can end and start again, without loss.
    pub restarts: bool,
    /// Whether connections break, and messages to the manager get lost, late or come twice.
    pub network: bool,
    /// Whether the client can stop.
    pub crashes: bool,
    /// Whether the client keeps its unflushed writes (W5); otherwise it fails when all legs have lost them.
    pub keeps: bool,
}

/// A question on its way to the manager.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Question {
    pub(crate) client: u8,
    pub(crate) ask: Ask,
    /// The client still waits for the answer.
    pub(crate) awaited: bool,
}

/// One state.
#[derive(Clone, Hash, Debug)]
pub struct State {
    pub(crate) manager: u32,
    pub(crate) stands: [Stand; LEGS],
    pub(crate) questions: Vec<Question>,
    pub(crate) lenders: [Lender; LEGS],
    /// The first mount's, and the one of a later mount.
    pub(crate) clients: [Client; 2],
    pub(crate) faults: u8,
    pub(crate) written: u8,
    pub(crate) takeovers: u8,
    /// What a read may find now, one bit a value.
    pub(crate) allowed: u16,
    /// What a read may find if the client that is there now dies.
    pub(crate) lossy: u16,
    /// The last write that a flush has covered.
    pub(crate) flushed: u8,
    /// What must not happen, and has.
    pub(crate) wrong: Option<&'static str>,
}

/// The model: protocol and bounds.
pub struct World {
    pub(crate) protocol: Protocol,
    pub(crate) bounds: Bounds,
    pub(crate) manager: Manager,
}

impl World {
    /// A world that keeps to `protocol`.
    pub fn new(protocol: Protocol, bounds: Bounds) -> Self {
        Self { protocol, bounds, manager: Manager::new() }
    }

    pub(crate) fn first(&self) -> State {
        State {
            manager: 0,
            stands: [Stand::Waiting; LEGS],
            questions: Vec::new(),
            lenders: [Lender::new(), Lender::new()],
            clients: [Client::new(1, 1, [true; LEGS]), Client::absent()],
            faults: 0,
            written: 0,
            takeovers: 0,
            allowed: 1,
            lossy: 1,
            flushed: 0,
            wrong: None,
        }
    }

    /// The connection of a client's leg is alive at both ends.
    pub(crate) fn is_connected(&self, s: &State, client: usize, leg: usize) -> bool {
        s.clients[client].session(leg).is_some_and(|session| session.is_attached)
    }

    /// The client whose mount is the newest.
    pub(crate) fn holder(&self, s: &State) -> Option<usize> {
        let view = self.manager.view(s.manager);
        (view.lease == Lease::Active).then(|| s.clients.iter().position(|c| c.is_live() && c.epoch == view.epoch)).flatten()
    }

    /// The legs that a client may read from now.
    pub(crate) fn readable(&self, s: &State, client: usize) -> Vec<usize> {
        let c = &s.clients[client];
        if !c.is_live() || !c.settled || c.write.is_some() {
            return Vec::new();
        }
        if !c.members.all_equal() && !self.protocol.breaks(Rule::EqualBeforeRead) {
            return Vec::new();
        }
        let may = |leg: &usize| {
            let stale = self.protocol.breaks(Rule::NeverReadStale) && c.members.role(*leg) == Role::Copying;
            // Without the rule any in-sync leg is as good as another.
            let unequal = self.protocol.breaks(Rule::EqualBeforeRead) && c.members.role(*leg) == Role::InSync;
            (c.is_sound(*leg) || stale || unequal) && self.is_connected(s, client, *leg)
        };
        (0..LEGS).filter(may).collect()
    }

    /// Legs that a rebuild from the labels takes for in sync (R1): mounted, or not.
    fn rebuilt(&self, s: &State) -> [bool; LEGS] {
        let labels = std::array::from_fn(|leg| (s.lenders[leg].generation, s.lenders[leg].in_sync));
        let (mounted, free) = (self.manager.rebuilt(labels, true), self.manager.rebuilt(labels, false));
        std::array::from_fn(|leg| mounted[leg] || free[leg])
    }

    pub(crate) fn promises(&self, s: &State) -> Result<(), String> {
        if let Some(wrong) = s.wrong {
            return Err(wrong.to_owned());
        }
        let view = self.manager.view(s.manager);
        if !view.in_sync.contains(&true) {
            return Err("S1: no leg is in sync".to_owned());
        }
        let rebuilt = self.rebuilt(s);
        if !rebuilt.contains(&true) {
            return Err("R1: no leg is in sync by the labels".to_owned());
        }
        let holds = |leg: usize| s.lenders[leg].may_be().all(|value| value >= s.flushed);
        for (leg, lender) in s.lenders.iter().enumerate() {
            if view.in_sync[leg] && !holds(leg) {
                return Err(format!("W1: leg {leg} is in sync for the manager and lacks a flushed write"));
            }
            if view.in_sync[leg] && !lender.in_sync[leg] {
                return Err(format!("S5: leg {leg} is in sync for the manager and stale by its own label"));
            }
            // R1: the table is lost, only the labels are left.
            if rebuilt[leg] && !holds(leg) {
                return Err(format!("R1: leg {leg} is in sync by the labels and lacks a flushed write"));
            }
            if lender.generation == view.generation && lender.in_sync != view.in_sync {
                return Err(format!("S2: the label of leg {leg} has another set of generation {}", view.generation));
            }
            if lender.session.is_some() && lender.disk.iter().any(|frame| frame.is_old) {
                return Err(format!(
                    "F1, W4: a session at leg {leg} while writes of an earlier one are on their way to the disk"
                ));
            }
            if lender.disk.iter().any(|frame| frame.epoch < lender.epoch) {
                return Err(format!("F1: leg {leg} has a newer epoch while writes of an older one are on their way to the disk"));
            }
            if lender.session.is_some_and(|session| session.epoch != lender.epoch) {
                return Err(format!("F1: leg {leg} serves another epoch than the newest it has"));
            }
        }
        if let Some(holder) = self.holder(s) {
            for leg in self.readable(s, holder) {
                let value = s.lenders[leg].content;
                if s.allowed & (1 << value) == 0 {
                    return Err(format!("K1: a read from leg {leg} finds {value}, which cannot be"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn settled(&self, s: &State) -> bool {
        let view = self.manager.view(s.manager);
        if s.clients.iter().any(|c| c.life == Life::Failed) {
            return true;
        }
        let Some(holder) = self.holder(s) else { return false };
        let c = &s.clients[holder];
        c.settled
            && !view.busy
            && view.in_sync == [true; LEGS]
            && c.members.is_calm()
            && c.write.is_none()
            && c.members.legs.iter().all(|m| m.role == Role::InSync)
            && (0..LEGS).all(|leg| self.is_connected(s, holder, leg) && s.lenders[leg].generation == view.generation)
    }
}
