//! Sealed volumes: whole blocks are encrypted on their way to the segments and decrypted on their way back. Everything below
//! (checksums, copies, resync, scrubs) has to do with encrypted bytes only; so have the lenders.

use std::rc::Rc;

use sublet_doors::{Buffer, Chunk, Doors};
use sublet_types::BlockRange;
use sublet_types::limits::{BLOCK_SIZE, REQUEST_SIZE_MAX, SEAL_SIZE};

use crate::change::Change;
use crate::error::{VolumeError, VolumeErrorKind};
use crate::options::{BlockCipher, ManagerDoor};
use crate::volume::{Inner, Volume};

/// Copies of the key header in the volume, a block each.
const COPIES: u64 = SEAL_SIZE / BLOCK_SIZE;

impl<D: Doors, M: ManagerDoor> Volume<D, M> {
    /// The blocks behind the announced size, in which a sealed volume keeps its key header, as they are stored. They can be read
    /// before the key is there. One that cannot be read does not hide the other.
    ///
    /// # Errors
    /// [`VolumeError`] if the volume is closed.
    pub async fn stored_seal(&self) -> Result<Vec<Result<Chunk, VolumeError>>, VolumeError> {
        let _in_use = self.inner.shared.begin().await?;
        let mut blocks = Vec::new();
        for copy in 0..COPIES {
            let read = self.inner.read_blocks(self.inner.size + copy * BLOCK_SIZE, BLOCK_SIZE, false, None).await;
            blocks.push(read.map(|chunks| Chunk::copy_of(&Chunk::joined(&chunks))));
        }
        Ok(blocks)
    }

    /// Stores a key header there. The second copy is only touched when the first one is durable, so one of them is always whole.
    ///
    /// # Errors
    /// [`VolumeError`]; `OutOfRange` if it is longer than a block or the volume is not sealed.
    pub async fn store_seal(&self, header: &[u8]) -> Result<(), VolumeError> {
        let mut block = Buffer::zeroed(BLOCK_SIZE as usize);
        let (true, Some(place)) = (self.inner.shared.info.sealed, block.get_mut(..header.len())) else {
            return Err(VolumeError::new(VolumeErrorKind::OutOfRange, "there is no room for a key header"));
        };
        place.copy_from_slice(header);
        let block = block.freeze();
        for copy in 0..COPIES {
            let (at, data) = (self.inner.size + copy * BLOCK_SIZE, block.clone());
            let write = move |inner: Rc<Inner<D, M>>, _| async move {
                let _guard = inner.shared.ranges.lock(BlockRange::covering(at, BLOCK_SIZE)).await;
                inner.shared.alive()?;
                inner.write_blocks(at, &data, true).await
            };
            self.carry_out(at, BLOCK_SIZE, write).await?;
        }
        Ok(())
    }

    /// From now on the volume can be used: its blocks are encrypted with this.
    ///
    /// # Errors
    /// `Unsupported` if it is not sealed, or has its key already.
    pub fn unseal(&self, cipher: Box<dyn BlockCipher>) -> Result<(), VolumeError> {
        let refused = || VolumeError::new(VolumeErrorKind::Unsupported, "the volume is not waiting for a key");
        if !self.inner.shared.info.sealed {
            return Err(refused());
        }
        self.inner.cipher.set(cipher).map_err(|_| refused())
    }
}

impl<D: Doors, M: ManagerDoor> Inner<D, M> {
    /// What the blocks of the volume are encrypted with; none if they are not.
    ///
    /// # Errors
    /// `Closed` if the volume is sealed and its key is not here: nobody may take encrypted bytes for others.
    pub(crate) fn cipher(&self) -> Result<Option<&dyn BlockCipher>, VolumeError> {
        match self.cipher.get() {
            None if self.shared.info.sealed => {
                Err(VolumeError::new(VolumeErrorKind::Closed, "the volume is encrypted, and its key is not here"))
            }
            cipher => Ok(cipher.map(|cipher| &**cipher)),
        }
    }

    /// Writes whole blocks as they are, under the caller's range lock.
    pub(crate) async fn write_blocks(&self, at: u64, data: &Chunk, fua: bool) -> Result<(), VolumeError> {
        let changes: Vec<(usize, Change)> = self
            .map
            .pieces(at, data.len() as u64, REQUEST_SIZE_MAX)
            .map(|p| (p.segment, Change::write(p.offset, data.part(p.at as usize..(p.at + p.length) as usize), fua)))
            .collect();
        self.change_all(&changes).await
    }
}

/// These whole blocks encrypted; the first one is at `at`.
pub(crate) fn encrypted(cipher: &dyn BlockCipher, at: u64, data: &Chunk) -> Result<Chunk, VolumeError> {
    converted(data, |out| cipher.encrypt(at / BLOCK_SIZE, data, out))
}

/// These whole blocks decrypted; the first one is at `at`.
pub(crate) fn decrypted(cipher: &dyn BlockCipher, at: u64, data: &Chunk) -> Result<Chunk, VolumeError> {
    converted(data, |out| cipher.decrypt(at / BLOCK_SIZE, data, out))
}

fn converted(data: &Chunk, convert: impl FnOnce(&mut [u8]) -> Result<(), String>) -> Result<Chunk, VolumeError> {
    let mut out = Buffer::new(data.len());
    convert(&mut out).map_err(|text| VolumeError::new(VolumeErrorKind::Io, text))?;
    Ok(out.freeze())
}
