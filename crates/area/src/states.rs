//! Changes of a segment's in-sync set (S1, S5), with the missed maps that belong to them.

use std::rc::Rc;

use sublet_api::order::SliceFacts;
use sublet_doors::Doors;
use sublet_types::{Epoch, SliceId};
use sublet_wire::message::{SetState, StaleMark};

use crate::area::{Area, Inner, to_the_end};
use crate::envelope::COUNT_MAX;
use crate::error::{AreaError, AreaErrorKind as Kind};
use crate::label::AreaLabel;
use crate::lease::{check_generation, check_holder, no_slice, record_mut, refuse};
use crate::record::SliceRecord;

fn check_state(record: &SliceRecord, epoch: Epoch, state: &SetState) -> Result<(), AreaError> {
    check_holder(record, epoch)?;
    check_generation(record, state.generation)?;
    let (slice, known) = (record.facts.slice.short(), record.facts.generation);
    if state.generation.number < known.number {
        let text = format!("generation {} of slice {slice} is older than the label's {known}", state.generation);
        return refuse(Kind::Disagreement, text);
    }
    let legs = record.facts.in_sync.len();
    if state.in_sync.len() != legs {
        return refuse(Kind::Disagreement, format!("slice {slice} has {legs} legs, not {}", state.in_sync.len()));
    }
    match state
        .stale
        .iter()
        .find(|mark| state.in_sync.get(usize::from(mark.leg)) != Some(&false) || !(1..=COUNT_MAX).contains(&mark.since.number))
    {
        Some(mark) => refuse(Kind::Disagreement, format!("leg {} of slice {slice} is marked as stale and is not", mark.leg)),
        None => Ok(()),
    }
}

/// A leg that the manager took out of the in-sync set while nobody had the slice open. What it may lack is hot here: a region
/// cools only when every in-sync leg has flushed (H2), and this leg was one of them as long as it was.
fn left_out(record: &SliceRecord, facts: &SliceFacts) -> Vec<StaleMark> {
    let old = &record.facts;
    let own = old.leg as usize;
    let stays = old.in_sync.get(own) == Some(&true) && facts.in_sync.get(own) == Some(&true);
    if !stays || facts.generation.number <= old.generation.number || old.generation.number == 0 {
        return Vec::new();
    }
    let legs = old.in_sync.iter().zip(&facts.in_sync).enumerate();
    let left = legs.filter(|(leg, (before, after))| **before && !**after && record.missed_since.get(*leg) == Some(&None));
    // The generation in which it left, as the manager has it: no other map serves this leg (S3).
    let mark = |(leg, _)| StaleMark { leg: u8::try_from(leg).unwrap_or(u8::MAX), since: facts.generation, seeded: false };
    left.map(mark).collect()
}

impl<D: Doors> Inner<D> {
    /// H3: the legs are equal in all regions that were told as hot when the epoch began. So nobody knows better any more what
    /// the data of those is worth whose checksum pages had been lost, nor has anything that this leg has lost.
    fn equalised(&self, slice: SliceId) {
        let mut records = self.regions.records.borrow_mut();
        for (region, hot) in self.regions.hot.borrow_mut().iter_mut().filter(|(_, hot)| hot.slice == slice) {
            hot.lost = false;
            if std::mem::take(&mut hot.inherited)
                && let Some(record) = records.get_mut(*region)
            {
                record.unproved = false;
            }
        }
    }

    /// Enters into a record from which generation on the maps of its stale legs are complete.
    fn name_maps(&self, record: &mut SliceRecord) {
        let maps = self.regions.maps.borrow();
        for (leg, since) in record.missed_since.iter_mut().enumerate() {
            let stale = record.facts.in_sync.get(leg) == Some(&false);
            let live = maps.live(record.facts.slice).find(|(n, _)| *n == leg).map(|(_, map)| map.since);
            *since = live.filter(|_| stale);
        }
    }

    /// S5: the label says that these legs are in sync: their maps go, and perhaps what was sent for them.
    fn drop_maps(&self, slice: SliceId, keep_sent: bool) {
        let label = self.label();
        let Some(record) = label.find(slice) else { return };
        let named = |leg: usize| record.facts.in_sync.get(leg) == Some(&false);
        self.regions.maps.borrow_mut().retain(slice, named, keep_sent);
    }
}

impl<D: Doors> Area<D> {
    /// Persists a state of the segment's in-sync set (S1, S5): first the missed maps of the legs that are marked, then the
    /// label.
    ///
    /// # Errors
    /// If the epoch is not admitted, or the generation is older or of another history.
    pub async fn set_state(&self, slice: SliceId, epoch: Epoch, state: &SetState) -> Result<(), AreaError> {
        let state = state.clone();
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            let _still = inner.regions.cooling.lock().await;
            let label = inner.label();
            check_state(label.find(slice).ok_or_else(|| no_slice(slice, &label.name))?, epoch, &state)?;
            inner.adopt_marks(slice, &state.stale).await?;
            let changed = inner.change_here(|label| {
                let record = record_mut(label, slice)?;
                check_state(record, epoch, &state)?;
                record.facts.generation = state.generation;
                record.facts.in_sync.clone_from(&state.in_sync);
                record.unclean &= !state.equalised;
                record.lost &= !state.equalised;
                inner.name_maps(record);
                Ok(())
            });
            changed.await?;
            if state.equalised {
                inner.equalised(slice);
            }
            inner.drop_maps(slice, false);
            Ok(())
        })
        .await
    }

    /// A label change that brings facts of the manager, which may say that a leg is stale now: it gets a map (S3).
    pub(crate) async fn with_facts<R: 'static>(
        &self,
        facts: SliceFacts,
        edit: impl FnOnce(&mut AreaLabel) -> Result<R, AreaError> + 'static,
    ) -> Result<R, AreaError> {
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            let _still = inner.regions.cooling.lock().await;
            let label = inner.label();
            let marks = label.find(facts.slice).map_or_else(Vec::new, |record| left_out(record, &facts));
            inner.adopt_marks(facts.slice, &marks).await?;
            let changed = inner.change_here(|label| {
                let answer = edit(label)?;
                if let Some(record) = label.find_mut(facts.slice) {
                    inner.name_maps(record);
                }
                Ok(answer)
            });
            let answer = changed.await;
            // An order that is repeated does not lose the beginning of a list that its client is still sending (S1, S5).
            let epoch = |label: &AreaLabel| label.find(facts.slice).map(|record| record.epoch);
            inner.drop_maps(facts.slice, epoch(&label) == epoch(&inner.label()));
            answer
        })
        .await
    }
}
