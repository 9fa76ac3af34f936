//! The engine as a front end sees it.

use std::cell::Cell;
use std::rc::Rc;

use sublet_doors::local::Signal;
use sublet_doors::{Chunk, Doors};
use sublet_volume::{ManagerDoor, Volume, VolumeError, VolumeErrorKind};

use crate::device::{BlockDevice, DeviceError, DeviceErrorKind, Extent, ZeroFlags};

/// A volume, and what was noticed while it was used.
pub struct VolumeDevice<D: Doors, M: ManagerDoor> {
    volume: Rc<Volume<D, M>>,
    shut: Cell<bool>,
    fenced: Cell<bool>,
    changed: Signal,
}

impl<D: Doors, M: ManagerDoor> VolumeDevice<D, M> {
    /// The device of an open volume.
    pub fn new(volume: Rc<Volume<D, M>>) -> Self {
        Self { volume, shut: Cell::new(false), fenced: Cell::new(false), changed: Signal::new() }
    }

    /// From now on every request fails.
    pub fn shut(&self) {
        self.shut.set(true);
    }

    /// Somebody has noticed that the volume was fenced: all I/O stops (F4).
    pub fn fence(&self) {
        self.shut();
        self.fenced.set(true);
        self.changed.notify();
    }

    /// Waits until the volume was fenced.
    pub async fn until_fenced(&self) {
        loop {
            let seen = self.changed.version();
            if self.fenced.get() {
                return;
            }
            self.changed.changed(seen).await;
        }
    }

    fn open(&self) -> Result<&Volume<D, M>, DeviceError> {
        if self.shut.get() {
            return Err(DeviceError::new(DeviceErrorKind::ShutDown, "the volume is being closed or was taken over"));
        }
        Ok(&self.volume)
    }

    fn translate(&self, error: VolumeError) -> DeviceError {
        let kind = match error.kind {
            VolumeErrorKind::OutOfRange => DeviceErrorKind::OutOfRange,
            VolumeErrorKind::ReadOnly => DeviceErrorKind::ReadOnly,
            VolumeErrorKind::Fenced => {
                self.fence();
                DeviceErrorKind::ShutDown
            }
            VolumeErrorKind::Closed => DeviceErrorKind::ShutDown,
            VolumeErrorKind::Unsupported => DeviceErrorKind::TooSlow,
            VolumeErrorKind::LenderMissing | VolumeErrorKind::Io | VolumeErrorKind::Protocol => DeviceErrorKind::Io,
        };
        if kind == DeviceErrorKind::Io {
            tracing::warn!(%error, "a request failed");
        }
        DeviceError::new(kind, error.text)
    }
}

impl<D: Doors, M: ManagerDoor> BlockDevice for VolumeDevice<D, M> {
    fn size(&self) -> u64 {
        self.volume.size()
    }

    fn read_only(&self) -> bool {
        self.volume.read_only()
    }

    async fn read(&self, offset: u64, length: u64) -> Result<Vec<Chunk>, DeviceError> {
        self.open()?.read(offset, length).await.map_err(|e| self.translate(e))
    }

    async fn write(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), DeviceError> {
        self.open()?.write(offset, data, fua).await.map_err(|e| self.translate(e))
    }

    async fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        let flags = sublet_volume::ZeroFlags { fua: flags.fua, no_hole: flags.no_hole, fast: flags.fast };
        self.open()?.write_zeroes(offset, length, flags).await.map_err(|e| self.translate(e))
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.open()?.flush().await.map_err(|e| self.translate(e))
    }

    async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, DeviceError> {
        let extents = self.open()?.extents(offset, length).await.map_err(|e| self.translate(e))?;
        Ok(extents.into_iter().map(|extent| Extent { length: extent.length, data: extent.data }).collect())
    }
}
