//! A manager in memory: compare-and-set on (volume, epoch, generation), idempotent, and sometimes away.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use sublet_api::request::{ChangeLeg, LegAnswer, LegChange, LenderAddresses};
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::{Clock, Rng};
use sublet_types::{Generation, SliceId, VolumeId};

use super::doors::MemDoors;
use crate::options::ManagerDoor;

pub(crate) struct SegmentRow {
    pub(crate) generation: Generation,
    pub(crate) slices: Vec<SliceId>,
    pub(crate) in_sync: Vec<bool>,
    pending: Option<(SliceId, Generation)>,
    last: Option<(ChangeLeg, Generation)>,
}

impl SegmentRow {
    pub(crate) fn new(generation: Generation, slices: Vec<SliceId>, in_sync: Vec<bool>) -> Self {
        Self { generation, slices, in_sync, pending: None, last: None }
    }
}

#[derive(Clone)]
pub(crate) struct FakeManager(pub(crate) Rc<State>);

pub(crate) struct State {
    pub(crate) doors: MemDoors,
    pub(crate) segments: RefCell<Vec<SegmentRow>>,
    pub(crate) epoch: Cell<u64>,
    pub(crate) away: Cell<bool>,
    /// How often it was asked for a change.
    pub(crate) asked: Cell<usize>,
    /// So many requests more are carried out, but their answers are lost.
    pub(crate) deaf: Cell<usize>,
    /// So many returns more are put off: a label has to be written first.
    pub(crate) puts_off: Cell<usize>,
    pub(crate) lenders: RefCell<Vec<LenderAddresses>>,
    pub(crate) history: Rc<RefCell<Vec<String>>>,
}

impl ManagerDoor for FakeManager {
    async fn change_leg(&self, _volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        let state = &self.0;
        state.asked.set(state.asked.get() + 1);
        state.doors.sleep(Duration::from_millis(2)).await;
        let lost = || Refusal::new(ErrorKind::Unreachable, "the manager cannot be reached");
        if state.away.get() {
            return Err(lost());
        }
        if change.change == LegChange::Returning && state.puts_off.get() > 0 {
            state.puts_off.set(state.puts_off.get() - 1);
            return Err(Refusal::new(ErrorKind::LenderUnreachable, "a label does not tell yet that a copy was replaced"));
        }
        let answer = state.apply(&change);
        if state.deaf.get() > 0 {
            state.deaf.set(state.deaf.get() - 1);
            return Err(lost());
        }
        answer
    }

    async fn lenders(&self, _volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal> {
        if self.0.away.get() {
            return Err(Refusal::new(ErrorKind::Unreachable, "the manager cannot be reached"));
        }
        Ok(self.0.lenders.borrow().clone())
    }
}

impl State {
    fn apply(&self, change: &ChangeLeg) -> Result<LegAnswer, Refusal> {
        if change.epoch.number < self.epoch.get() {
            return Err(Refusal::new(ErrorKind::StaleEpoch, "a newer epoch was committed"));
        }
        let mut segments = self.segments.borrow_mut();
        let row = &mut segments[change.segment as usize];
        if let Some((_, generation)) = row.last.as_ref().filter(|(last, _)| last == change) {
            return Ok(LegAnswer { generation: *generation, in_sync: row.in_sync.clone() });
        }
        let conflict = |why: &str| Err(Refusal::new(ErrorKind::Conflict, why));
        let leg = row.slices.iter().position(|slice| *slice == change.slice).unwrap();
        let withdrawn = change.change == LegChange::Withdrawn;
        let undoes = row.last.as_ref().is_some_and(|(last, after)| {
            last.change == LegChange::Stale && last.slice == change.slice && *after == row.generation
        });
        if withdrawn && !undoes {
            return conflict("nothing to withdraw");
        }
        if !withdrawn && row.generation != change.generation {
            return conflict("not the present generation");
        }
        let issued = row.pending.map_or(row.generation, |(_, pending)| pending).number.max(row.generation.number) + 1;
        let mut next = Generation { number: issued, random: self.doors.random_u128() };
        match change.change {
            LegChange::Stale => {
                row.in_sync[leg] = false;
                assert!(row.in_sync.contains(&true), "S1: the last leg never leaves");
            }
            LegChange::Withdrawn => row.in_sync[leg] = true,
            LegChange::Returning => {
                row.pending = Some((change.slice, next));
                return Ok(LegAnswer { generation: next, in_sync: row.in_sync.clone() });
            }
            LegChange::InSync => {
                let Some((slice, generation)) = row.pending.filter(|(slice, _)| *slice == change.slice) else {
                    return conflict("nothing was issued");
                };
                assert_eq!(slice, change.slice);
                next = generation;
                row.in_sync[leg] = true;
            }
        }
        row.pending = None;
        row.generation = next;
        row.last = Some((change.clone(), next));
        self.history.borrow_mut().push(format!("manager {:?} {}", change.change, next.number));
        Ok(LegAnswer { generation: next, in_sync: row.in_sync.clone() })
    }
}
