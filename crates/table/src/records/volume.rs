//! Volumes: the rows of the virtual disk management table.

use serde::{Deserialize, Serialize};
use sublet_api::view::PathState;
use sublet_types::seal::announced;
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, Name, SealText, ServerId, SliceId, TaskId, VolumeId, Way};

use super::work::{BackgroundRow, BackgroundState, WorkRow};

/// One volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeRow {
    /// See [`ROW_VERSION`](super::ROW_VERSION).
    pub version: u32,
    /// The volume.
    pub id: VolumeId,
    /// Its name, unique in the pool.
    pub name: Name,
    /// Its usage way.
    pub way: Way,
    /// Its size in bytes (a multiple of 4 KiB).
    pub size: u64,
    /// Whether an administrator defined it; otherwise `borrow` carved it, and `return` dissolves it.
    pub defined: bool,
    /// Who has borrowed it.
    pub borrower: Option<ServerId>,
    /// Whether the borrower has sealed it.
    #[serde(default)]
    pub sealed: bool,
    /// The key header of a sealed volume; none if the table was made anew from the labels: the volume has it too.
    #[serde(default)]
    pub seal: Option<SealText>,
    /// The newest epoch issued.
    pub epoch: Epoch,
    /// The lease of the present mount.
    pub lease: Option<LeaseRow>,
    /// The segments in the order of the volume.
    pub segments: Vec<SegmentRow>,
    /// The task that is changing it: nothing else may meanwhile.
    pub task: Option<TaskId>,
    /// Why nothing may be done with it (its labels are ahead of the table, L5); none if all is well.
    #[serde(default)]
    pub frozen: Option<String>,
    /// What it waits for then.
    #[serde(default)]
    pub frozen_until: FrozenUntil,
    /// The path as last seen.
    #[serde(default)]
    pub path: PathRow,
    /// No epoch up to this number is issued: after a rebuild of the table nobody knows which ones were issued before and never
    /// reached a label that was seen (R1).
    #[serde(default)]
    pub epoch_floor: u64,
    /// The row was made from labels that are not all there or contradict each other (R1): it is frozen, and made anew from the
    /// labels until it is settled.
    #[serde(default)]
    pub unsettled: bool,
    /// Copies that were missing when an administrator accepted the volume without them: they return stale (R1). Of a row that is
    /// not settled: those that are missing now.
    #[serde(default)]
    pub absent: Vec<AbsentLeg>,
    /// How many copies its segments had before some were given up for good: a replacement makes as many again. 0 if none were.
    #[serde(default)]
    pub copies: u32,
    /// What is to be known for background work.
    #[serde(default)]
    pub work: WorkRow,
}

/// What ends it that a volume is frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrozenUntil {
    /// What its reason says.
    #[default]
    Decided,
    /// The table is reconciled with the labels, which know better (L5).
    Reconciled,
    /// The quarantined area with its only copy in sync is accepted (L2).
    Accepted(AreaId),
}

/// See [`VolumeRow::absent`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AbsentLeg {
    /// Which segment, counted from 0.
    pub segment: u32,
    /// Which leg of it by the label, counted from 0.
    pub leg: u32,
    /// Where the table had it, for people; empty if that is not known.
    #[serde(default)]
    pub place: String,
}

impl VolumeRow {
    /// How much of the lenders' space it takes, in bytes: whole regions, every copy counted.
    pub fn taken(&self) -> u64 {
        self.legs().map(|(_, leg)| leg.length).sum()
    }

    /// The size that its users see, in bytes.
    pub fn announced(&self) -> u64 {
        announced(self.size, self.sealed)
    }

    /// All legs with the number of their segment.
    pub fn legs(&self) -> impl Iterator<Item = (usize, &LegRow)> {
        self.segments.iter().enumerate().flat_map(|(index, segment)| segment.legs.iter().map(move |leg| (index, leg)))
    }

    /// Copies that a segment has too few, because they were given up for good.
    pub fn too_few(&self, segment: &SegmentRow) -> usize {
        (self.copies as usize).saturating_sub(segment.legs.len())
    }

    /// The epoch after the present one, above any that was ever issued (F1, R1).
    #[must_use]
    pub fn next_epoch(&self, random: u128) -> Epoch {
        Epoch { number: self.epoch.number.max(self.epoch_floor) + 1, random }
    }

    /// 1 from mount until unmount, else 0 (seed: status information).
    pub fn status(&self) -> u8 {
        match &self.lease {
            Some(lease) if lease.state != LeaseState::Opening || lease.was_mounted => 1,
            _ => 0,
        }
    }

    /// The lease, if it was opened with this epoch and is not being closed.
    pub fn lease_of(&self, epoch: Epoch) -> Option<&LeaseRow> {
        self.lease.as_ref().filter(|lease| lease.epoch == epoch && lease.state != LeaseState::Closing)
    }

    /// The epoch of whoever may have sessions at its slices: a mount's client, or the coordinator of background work.
    pub fn holder_epoch(&self) -> Option<Epoch> {
        let mounted = self.lease.as_ref().map(|lease| lease.epoch);
        mounted.or(self.work.background.as_ref().map(|row| row.epoch))
    }

    /// Whether this epoch's holder, a mount's client or the coordinator of background work, may act (S2, F4).
    pub fn is_held(&self, epoch: Epoch) -> bool {
        let background = self.work.background.as_ref();
        let coordinates =
            |row: &BackgroundRow| row.epoch == epoch && epoch == self.epoch && row.state != BackgroundState::Opening;
        self.lease_of(epoch).is_some() || background.is_some_and(coordinates)
    }

    /// Whether its labels know better than the table: it is not settled, or frozen until it is reconciled with them (L5, R1).
    pub fn is_behind(&self) -> bool {
        self.unsettled || (self.frozen.is_some() && self.frozen_until == FrozenUntil::Reconciled)
    }

    /// The same, but frozen: nothing may be done with it.
    #[must_use]
    pub fn frozen(&self, reason: String, until: FrozenUntil) -> Self {
        Self { frozen: Some(reason), frozen_until: until, ..self.clone() }
    }

    /// Ends that.
    pub fn thaw(&mut self) {
        (self.frozen, self.frozen_until) = (None, FrozenUntil::default());
    }

    /// Segments of which no in-sync leg has confirmed the newest epoch: an older client might still write there (F3).
    fn unfenced_segments(&self) -> impl Iterator<Item = &SegmentRow> {
        let newest = self.epoch.number;
        self.segments.iter().filter(move |segment| !segment.legs.iter().any(|leg| leg.in_sync && leg.confirmed >= newest))
    }

    /// Whether an older client can write nowhere any more (F3).
    pub fn is_fenced(&self) -> bool {
        self.unfenced_segments().next().is_none()
    }

    /// The legs of which one has to be fenced yet, in each of their segments. A stale leg stands for nobody.
    pub fn unfenced_legs(&self) -> impl Iterator<Item = &LegRow> {
        self.unfenced_segments().flat_map(|segment| &segment.legs).filter(|leg| leg.in_sync)
    }
}

/// The path, as its client or its disappearance told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PathRow {
    /// How it is.
    pub state: PathState,
    /// Since when, in milliseconds since 1970 (UTC).
    pub since_ms: u64,
    /// What is the matter, for people.
    pub reason: String,
}

/// The lease of one mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseRow {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its secret: goes to the borrower and the lenders only.
    pub secret: LeaseSecret,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How far it is.
    pub state: LeaseState,
    /// While it opens: the volume was mounted before by the same borrower, whose client had died (F5).
    #[serde(default)]
    pub was_mounted: bool,
}

/// See [`LeaseRow`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// The lenders are being told.
    Opening,
    /// Mounted.
    Active,
    /// A newer epoch is committed, the lenders are being fenced.
    Closing,
}

/// One segment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentRow {
    /// Length in bytes (a multiple of 4 KiB).
    pub length: u64,
    /// The generation of the in-sync set.
    pub generation: Generation,
    /// The highest generation number ever issued, so that none is issued twice.
    pub issued: u64,
    /// A generation issued for a leg that is about to return (S5).
    pub pending: Option<Pending>,
    /// The last change of the in-sync set, so that a repeated request is recognised.
    pub last: Option<LastChange>,
    /// The legs.
    pub legs: Vec<LegRow>,
}

impl SegmentRow {
    /// Issues the next generation.
    #[must_use]
    pub fn issue(&mut self, random: u128) -> Generation {
        self.issued = self.issued.max(self.generation.number) + 1;
        Generation { number: self.issued, random }
    }

    /// Flags of the in-sync set, in the order of the legs.
    pub fn in_sync(&self) -> Vec<bool> {
        self.legs.iter().map(|leg| leg.in_sync).collect()
    }
}

/// See [`SegmentRow::pending`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The generation that the leg's label gets before the commit.
    pub generation: Generation,
    /// The leg.
    pub slice: SliceId,
    /// The generation on which it was issued; any change of the set between makes it void.
    pub base: Generation,
}

/// See [`SegmentRow::last`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastChange {
    /// What was done.
    pub change: sublet_api::request::LegChange,
    /// To which leg.
    pub slice: SliceId,
    /// By the client of which epoch.
    pub epoch: Epoch,
    /// The generation before.
    pub before: Generation,
    /// The generation that it made.
    pub after: Generation,
}

/// One leg.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LegRow {
    /// The slice.
    pub slice: SliceId,
    /// In which area; the area's row knows the lender.
    pub area: AreaId,
    /// Where it begins in the area, in bytes (a multiple of 4 MiB).
    pub offset: u64,
    /// Its length in bytes (a multiple of 4 MiB).
    pub length: u64,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// The newest epoch number that its lender has confirmed to have persisted (F1).
    pub confirmed: u64,
    /// It was made in place of a lost leg, and its lender has not entered it into its label yet.
    #[serde(default)]
    pub fresh: bool,
    /// The generation in which it left the in-sync set; none if it is in it, holds nothing at all, or that is not known.
    #[serde(default)]
    pub stale_since: Option<Generation>,
}
