//! The manager's table on a simulated disk: redb's storage backend over a [`SimFile`].
//!
//! The core is synchronous, so its disk takes no simulated time. redb wants backends that can go to other threads; the
//! simulation has one, so the backend is a number, and the file is found in a map of this thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use redb::StorageBackend;

use crate::disk::SimFile;
use crate::exec::Sim;

struct Opened {
    sim: Sim,
    file: Rc<SimFile>,
    /// After so many more writes and syncs the process is dead: nothing it does reaches the disk any more.
    dies_after: Cell<Option<u64>>,
    dead: Cell<bool>,
}

thread_local! {
    static OPENED: RefCell<BTreeMap<u64, Rc<Opened>>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// See the module.
#[derive(Debug)]
pub struct Backend(u64);

/// The hand that lets a manager die in the middle of a commit.
pub struct Fuse(u64);

fn opened(number: u64) -> io::Result<Rc<Opened>> {
    let found = OPENED.with_borrow(|opened| opened.get(&number).cloned());
    found.ok_or_else(|| io::Error::other("simulated: the backend is closed"))
}

/// A backend over the file, for one process.
pub fn open(sim: &Sim, file: &Rc<SimFile>) -> (Backend, Fuse) {
    let number = NEXT.get();
    NEXT.set(number + 1);
    let entry = Opened { sim: sim.clone(), file: Rc::clone(file), dies_after: Cell::new(None), dead: Cell::new(false) };
    OPENED.with_borrow_mut(|opened| opened.insert(number, Rc::new(entry)));
    (Backend(number), Fuse(number))
}

impl Fuse {
    /// Lets the process die after so many more operations.
    pub fn light(&self, operations: u64) {
        if let Ok(opened) = opened(self.0) {
            opened.dies_after.set(Some(operations));
        }
    }

    /// True once it has died.
    pub fn is_blown(&self) -> bool {
        opened(self.0).is_ok_and(|opened| opened.dead.get())
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // At the end of a thread the map may be gone already.
        let gone = OPENED.try_with(|opened| opened.borrow_mut().remove(&self.0));
        drop(gone);
    }
}

impl Opened {
    /// Counts an operation; an error once the process is dead.
    fn step(&self) -> io::Result<()> {
        match self.dies_after.get() {
            Some(0) => self.dead.set(true),
            Some(left) => self.dies_after.set(Some(left - 1)),
            None => {}
        }
        if self.dead.get() { Err(io::Error::other("simulated: the process is dead")) } else { Ok(()) }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(opened(self.0)?.file.size.get())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        opened(self.0)?.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        let opened = opened(self.0)?;
        opened.step()?;
        opened.file.set_size(length);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let opened = opened(self.0)?;
        opened.step()?;
        if opened.sim.chance(opened.file.faults.get().sync_error) {
            opened.file.sync_failed(&opened.sim, opened.file.landed());
            return Err(io::Error::other("simulated: a sync error"));
        }
        opened.file.synced(opened.file.landed());
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let opened = opened(self.0)?;
        opened.step()?;
        opened.file.land(offset, data)
    }
}
