//! One sync for many: flushes that wait at the same time share the next sync of the area.

use std::cell::Cell;
use std::cell::RefCell;
use std::rc::Rc;

use sublet_area::{Area, AreaError};
use sublet_doors::Doors;
use sublet_doors::local::Signal;

/// Groups the flushes of one area.
#[derive(Default)]
pub(crate) struct Flusher {
    /// Syncs begun, counted; the newest may be under way.
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// The newest sync that failed: the kernel reports an error once, so it counts for all who waited for it or before it (W7).
    failed: RefCell<Option<(u64, AreaError)>>,
    changed: Signal,
}

impl Flusher {
    /// Makes everything durable that was written before this call: waits for a sync that is begun after it.
    ///
    /// # Errors
    /// The error of that sync, or of one between.
    pub(crate) async fn flush<D: Doors>(&self, area: &Rc<Area<D>>) -> Result<(), AreaError> {
        let wanted = self.begun.get() + 1;
        loop {
            let seen = self.changed.version();
            if self.ended.get() >= wanted {
                let failed = self.failed.borrow();
                return failed.as_ref().filter(|(number, _)| *number >= wanted).map_or(Ok(()), |(_, error)| Err(error.clone()));
            }
            if self.begun.get() > self.ended.get() {
                self.changed.changed(seen).await;
                continue;
            }
            let number = self.begun.get() + 1;
            self.begun.set(number);
            let result = area.flush().await;
            if let Err(error) = result {
                *self.failed.borrow_mut() = Some((number, error));
            }
            self.ended.set(number);
            self.changed.notify();
        }
    }
}
