//! From the labels of one segment to its in-sync set, and from those of one volume to its lease (R1).

use std::collections::BTreeMap;

use sublet_api::server::SliceReport;
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, ServerId, SliceId};

use super::FORK_JUMP;

use crate::records::{LeaseRow, LeaseState};

/// One slice as a label has it, and where.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Whose label.
    pub server: ServerId,
    /// Which area.
    pub area: AreaId,
    /// What it says.
    pub slice: &'a SliceReport,
    /// False if the area is quarantined (L2): its bytes may be older than its label claims.
    pub trusted: bool,
    /// A label has its tombstone (R2), of another epoch. If it is not obeyed, that is because the slice was given its epoch after
    /// that: by a table that knew better than the one that gave it up, or by one that was behind and did not know of it.
    pub given_up: bool,
}

impl Seen<'_> {
    fn number(&self) -> u64 {
        self.slice.facts.generation.number
    }

    /// Whether the label says that leg `leg` is in sync.
    fn says(&self, leg: u32) -> bool {
        self.slice.facts.in_sync.get(leg as usize).copied().unwrap_or(false)
    }
}

/// The in-sync set that the labels of a segment prove.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// The generation in which it was so.
    pub generation: Generation,
    /// The legs that hold every acknowledged write, by their number in the labels.
    pub in_sync: Vec<u32>,
    /// The set is smaller than the generation's own: it needs a new one.
    pub is_new: bool,
}

/// Equal numbers with different random parts, or with different sets: two histories, which are never merged.
pub fn split(legs: &BTreeMap<u32, Seen<'_>>) -> Option<u64> {
    let labels: Vec<&Seen<'_>> = legs.values().collect();
    let differs = |a: &Seen<'_>, b: &Seen<'_>| {
        let (a, b) = (&a.slice.facts, &b.slice.facts);
        a.generation.is_split_from(b.generation) || (a.generation == b.generation && a.in_sync != b.in_sync)
    };
    let mut pairs = labels.iter().enumerate().flat_map(|(i, a)| labels.iter().skip(i + 1).map(move |b| (a, b)));
    pairs.find(|(a, b)| differs(a, b)).map(|(a, _)| a.number())
}

/// Takes the labels out that are in sync by the newest one, and are not those of the copies whose numbers they have: a slice that
/// was replaced by a table that was behind, or one that others have gone on without, or one that was given up. The copy in that place has not been
/// seen then. `is_own` says what is a copy by a table that is not behind. Slices that a table replaced that was not behind have
/// tombstones (R2). What was taken out is the answer.
///
/// A copy that is really in sync may lag behind in its generation (S1, S5). But it had its generation before anybody else if
/// it has returned, so that its own label never says that it is stale, unless that went back in time (L2); and it is not from
/// before a fork ([`FORK_JUMP`]). A free volume holds nobody's bytes: all its copies are in sync, whatever their labels say.
pub fn drop_former<'a>(legs: &mut BTreeMap<u32, Seen<'a>>, is_own: impl Fn(SliceId) -> bool) -> Vec<Seen<'a>> {
    let Some(head) = legs.values().max_by_key(|seen| seen.number()).copied() else { return Vec::new() };
    if head.slice.facts.borrower.is_none() {
        return Vec::new();
    }
    let is_former = |leg: u32, seen: &Seen<'_>| {
        // The copies that were not there may have been ahead of those that were accepted.
        let is_forked = seen.number().saturating_add(FORK_JUMP / 2) <= head.number();
        let is_lagging = seen.number() < head.number() && head.says(leg) && !is_own(seen.slice.facts.slice);
        is_lagging && (is_forked || seen.given_up || (seen.trusted && !seen.says(leg)))
    };
    let mut former = Vec::new();
    legs.retain(|leg, seen| {
        let is_it = is_former(*leg, seen);
        former.extend(is_it.then_some(*seen));
        !is_it
    });
    former
}

/// Which legs are in sync, of a segment whose legs were all seen and are not split. `is_mounted`: its client decides about legs
/// that have not heard of the newest generation (S2).
pub fn in_sync(legs: &BTreeMap<u32, Seen<'_>>, is_mounted: bool) -> Option<Set> {
    let mut ceiling = u64::MAX;
    loop {
        let below = legs.values().filter(|seen| seen.number() <= ceiling);
        let head = below.max_by_key(|seen| (seen.number(), std::cmp::Reverse(seen.slice.facts.leg)))?;
        let newest = head.number();
        let members = || legs.iter().filter(|(leg, _)| head.says(**leg)).map(|(leg, seen)| (*leg, seen));
        // A leg that returns gets its generation before the manager commits it (S5). As long as a member's label does not know
        // of it, nobody can tell whether the commit came; without it the member still has everything.
        let joined: Vec<u32> = members().filter(|(_, seen)| seen.number() >= newest).map(|(leg, _)| leg).collect();
        let without = members().filter(|(_, seen)| seen.number() < newest && joined.iter().any(|leg| !seen.says(*leg)));
        if let Some(before) = without.map(|(_, seen)| seen.number()).max() {
            ceiling = before;
            continue;
        }
        let all: Vec<u32> = members().map(|(leg, _)| leg).collect();
        let good = |leg: &u32| legs.get(leg).is_some_and(|seen| seen.trusted && (is_mounted || seen.number() >= newest));
        let proven: Vec<u32> = all.iter().copied().filter(good).collect();
        // Whoever has not heard of the newest generation may have missed what came after it. A set of nobody else is left as it is.
        let in_sync = if proven.is_empty() { all.clone() } else { proven };
        // A label above the proven generation never goes back: only a new one is above it. While it is mounted, its client goes on
        // from the generation that it knows.
        let is_undone = ceiling != u64::MAX && !is_mounted;
        let is_new = is_undone || in_sync.len() < head.slice.facts.in_sync.iter().filter(|flag| **flag).count();
        return Some(Set { generation: head.slice.facts.generation, in_sync, is_new });
    }
}

/// The newest epoch in the labels of a volume, and its lease if it is mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The lease: every label with that epoch admits the borrower, and every segment has one.
    pub lease: Option<LeaseRow>,
    /// Nobody is to have it, and yet a label admits somebody: a new epoch has to fence it.
    pub must_fence: bool,
}

/// Two epochs of the same number are two histories.
pub fn epochs_split(seen: &[Seen<'_>]) -> Option<u64> {
    let newest = seen.iter().map(|seen| seen.slice.epoch).max_by_key(|epoch| epoch.number)?;
    let split = seen.iter().any(|seen| newest.number > 0 && seen.slice.epoch.is_split_from(newest));
    split.then_some(newest.number)
}

/// Who has the volume mounted, by its labels; `segments` is how many it has.
pub fn held(seen: &[Seen<'_>], segments: u32) -> Held {
    let newest = |epoch: Epoch| (epoch.number, epoch.random);
    let epoch = seen.iter().map(|seen| seen.slice.epoch).max_by_key(|epoch| newest(*epoch)).unwrap_or_default();
    let present: Vec<&SliceReport> = seen.iter().map(|seen| seen.slice).filter(|slice| slice.epoch == epoch).collect();
    let is_admitted = |slice: &&SliceReport| {
        slice.admitted && slice.lease.as_ref().is_some_and(|lease| Some(lease.borrower) == slice.facts.borrower)
    };
    let has_leg = |index: u32| present.iter().any(|slice| slice.facts.segment == index && is_admitted(slice));
    let is_mounted = epoch.number > 0 && present.iter().all(is_admitted) && (0..segments).all(has_leg);
    let lease = present.iter().filter(|_| is_mounted).find_map(|slice| {
        let lease = slice.lease.as_ref()?;
        let secret: LeaseSecret = lease.secret?;
        Some(LeaseRow { epoch, secret, read_only: lease.read_only, state: LeaseState::Active, was_mounted: true })
    });
    let must_fence = lease.is_none() && present.iter().any(|slice| slice.admitted);
    Held { epoch, lease, must_fence }
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
