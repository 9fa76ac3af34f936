//! The one file.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use sublet_doors::disk::Zero;
use sublet_doors::{Buffer, Chunk, Disk, DiskFile, FileFacts, OpenHow};

use super::MemDoors;
use crate::image::Image;

/// See the module.
pub struct MemFile {
    facts: FileFacts,
    image: Rc<RefCell<Image>>,
}

impl Disk for MemDoors {
    type File = MemFile;
    async fn open(&self, _path: &Path, how: OpenHow) -> io::Result<MemFile> {
        let image = Rc::clone(&self.0.file.borrow());
        let size = image.borrow().size();
        Ok(MemFile {
            facts: FileFacts { size, device: false, direct: how.direct, disk_sequence: 1, copy_on_write: false },
            image,
        })
    }
}

impl MemFile {
    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.facts.size => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl DiskFile for MemFile {
    fn facts(&self) -> &FileFacts {
        &self.facts
    }

    async fn read_at(&self, offset: u64, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let result = self.check(offset, range.len() as u64);
        if result.is_ok()
            && let Some(part) = buffer.get_mut(range)
        {
            self.image.borrow().read(offset, part);
        }
        (result, buffer)
    }

    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        self.image.borrow_mut().write(offset, &data);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    async fn zero(&self, offset: u64, length: u64, _how: Zero) -> io::Result<()> {
        self.check(offset, length)?;
        self.image.borrow_mut().zero(offset, length);
        Ok(())
    }

    async fn extents(&self, _offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>> {
        Ok(vec![(length, true)])
    }
}
