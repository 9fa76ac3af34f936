//! An open area.
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use sublet_api::order::{Lease, SliceFacts};
use sublet_api::server::AreaReport;
use sublet_doors::{Buffer, Chunk, Doors};
use sublet_types::{AreaId, Epoch, Name, PoolId, SliceId};
use sublet_wire::message::{DiskIdentity, Extent, Open, SetState};

use crate::error::{AreaError, AreaErrorKind};
use crate::spec::{FormatSpec, PieceIdentity, PieceSpec};

/// An open area of one server: what is lent of it to whom, and its bytes. Everything happens on one thread.
pub struct Area<D: Doors> {
    doors: PhantomData<D>,
}

fn later<T>() -> Result<T, AreaError> {
    Err(AreaError::new(AreaErrorKind::Busy, "skeleton"))
}

#[allow(missing_docs, unused_variables)]
impl<D: Doors> Area<D> {
    pub async fn format(doors: &D, spec: &FormatSpec) -> Result<(), AreaError> { later() }
    pub async fn open(doors: &D, pieces: &[PieceSpec], pool: Option<PoolId>, boot: u128) -> Result<Rc<Self>, AreaError> { later() }
    pub async fn read_identity(doors: &D, piece: &PieceSpec) -> Result<Option<PieceIdentity>, AreaError> { later() }
    /// Removes any Sublet label from a piece (`lend --force` over another pool's label; a failed format).
    pub async fn clear_label(doors: &D, piece: &PieceSpec) -> Result<(), AreaError> { later() }
    pub fn id(&self) -> AreaId { AreaId::from_u128(0) }
    pub fn name(&self) -> Name { unreachable!() }
    pub fn capacity(&self) -> u64 { 0 }
    pub fn sparse(&self) -> bool { false }
    /// True if a piece lies on a copy-on-write file system (P2).
    pub fn copy_on_write(&self) -> bool { false }
    pub fn pieces(&self) -> Vec<PieceSpec> { vec![] }
    pub fn identity(&self) -> DiskIdentity { unreachable!() }
    pub fn report(&self, place: &str) -> AreaReport { unreachable!() }
    pub async fn prepare_slice(&self, facts: &SliceFacts) -> Result<(), AreaError> { later() }
    pub async fn open_lease(&self, slice: SliceId, lease: &Lease, facts: &SliceFacts) -> Result<(), AreaError> { later() }
    pub async fn fence(&self, slice: SliceId, epoch: Epoch) -> Result<(), AreaError> { later() }
    pub fn check_open(&self, open: &Open) -> Result<(), AreaError> { later() }
    /// True if the present lease of the slice refuses writes.
    pub fn lease_read_only(&self, slice: SliceId) -> bool { false }
    /// The generation and unclean flag that the label has, for the reply to OPEN.
    pub fn slice_state(&self, slice: SliceId) -> Option<(sublet_types::Generation, bool)> { None }
    /// What the label says of the slice (L4).
    pub fn slice_facts(&self, slice: SliceId) -> Option<SliceFacts> { None }
    pub async fn mark_open(&self, slice: SliceId, epoch: Epoch) -> Result<bool, AreaError> { later() }
    pub async fn mark_closed(&self, slice: SliceId, epoch: Epoch) -> Result<(), AreaError> { later() }
    pub async fn set_state(&self, slice: SliceId, epoch: Epoch, state: &SetState) -> Result<(), AreaError> { later() }
    pub async fn wipe_slice(&self, slice: SliceId, epoch: Epoch, drop: bool, progress: &dyn Fn(u64, u64)) -> Result<(), AreaError> { later() }
    pub async fn rename(&self, name: &Name) -> Result<(), AreaError> { later() }
    pub async fn release(&self) -> Result<(), AreaError> { later() }
    pub async fn read(&self, slice: SliceId, offset: u64, buffer: Buffer, range: Range<usize>) -> (Result<(), AreaError>, Buffer) { (later(), buffer) }
    pub async fn write(&self, slice: SliceId, offset: u64, data: Chunk) -> Result<(), AreaError> { later() }
    pub async fn write_zeroes(&self, slice: SliceId, offset: u64, length: u64, keep_allocated: bool) -> Result<(), AreaError> { later() }
    pub async fn flush(&self) -> Result<(), AreaError> { later() }
    pub async fn extents(&self, slice: SliceId, offset: u64, length: u64) -> Result<Vec<Extent>, AreaError> { later() }
}
