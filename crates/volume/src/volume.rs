//! The front door.

use std::ops::Range;
use std::rc::Rc;

use sublet_api::mount::MountingInformation;
use sublet_api::request::LenderAddresses;
use sublet_doors::local::Signal;
use sublet_doors::{Buffer, Chunk, Doors};
use sublet_wire::message::Extent;

use crate::error::{VolumeError, VolumeErrorKind};
use crate::options::{ManagerDoor, VolumeOptions, ZeroFlags};
use crate::status::PathStatus;

/// How a search ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SearchSummary {
    /// How many matches were found.
    pub count: u64,
    /// True if the limit ended it.
    pub limited: bool,
}

/// A mounted volume.
pub struct Volume<D: Doors, M: ManagerDoor> {
    doors: D,
    manager: M,
    signal: Signal,
}

fn skeleton<T>() -> Result<T, VolumeError> {
    Err(VolumeError::new(VolumeErrorKind::Closed, "not written yet"))
}

#[allow(missing_docs, dead_code, unused_variables)]
impl<D: Doors, M: ManagerDoor> Volume<D, M> {
    pub async fn open(doors: D, manager: M, info: MountingInformation, options: VolumeOptions) -> Result<Rc<Self>, VolumeError> {
        skeleton()
    }
    pub fn size(&self) -> u64 {
        0
    }
    pub fn read_only(&self) -> bool {
        false
    }
    pub async fn read(&self, offset: u64, buffer: Buffer, range: Range<usize>) -> (Result<(), VolumeError>, Buffer) {
        (skeleton(), buffer)
    }
    pub async fn write(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), VolumeError> {
        skeleton()
    }
    pub async fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), VolumeError> {
        skeleton()
    }
    pub async fn flush(&self) -> Result<(), VolumeError> {
        skeleton()
    }
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, VolumeError> {
        skeleton()
    }
    pub async fn search(
        &self,
        pattern: &[u8],
        limit: Option<u64>,
        found: &mut dyn FnMut(&[u64]),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<SearchSummary, VolumeError> {
        skeleton()
    }
    pub fn status(&self) -> PathStatus {
        PathStatus::default()
    }
    pub fn status_changed(&self) -> &Signal {
        &self.signal
    }
    pub fn update_lenders(&self, lenders: Vec<LenderAddresses>) {}
    pub async fn close(&self, force: bool) -> Result<(), VolumeError> {
        skeleton()
    }
}
