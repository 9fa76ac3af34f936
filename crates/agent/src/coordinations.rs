//! Volumes that are not mounted and that this server coordinates for the manager (F5): at most one coordination of each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::{LocalBoxFuture, join_all};
use sublet_api::mount::MountingInformation;
use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::Flag;
use sublet_doors::Doors;
use sublet_types::{Epoch, VolumeId};

use crate::limits::COORDINATIONS_MAX;

/// Works on a volume until the flag is set or a newer epoch rules; true if it was closed in good order.
pub type Coordinate = dyn Fn(MountingInformation, Rc<Flag>) -> LocalBoxFuture<'static, bool>;

struct Running {
    epoch: Epoch,
    stop: Rc<Flag>,
    ended: Flag,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Coordinations {
    how: RefCell<Option<Box<Coordinate>>>,
    running: RefCell<BTreeMap<VolumeId, Rc<Running>>>,
}

impl Coordinations {
    pub(crate) fn set_how(&self, how: Box<Coordinate>) {
        self.how.replace(Some(how));
    }

    /// How many are going on.
    pub(crate) fn count(&self) -> usize {
        self.running.borrow().len()
    }

    /// Begins one, unless it is going on already. One of an older epoch has been fenced: it ends beside the new one.
    pub(crate) fn begin<D: Doors>(self: &Rc<Self>, doors: &D, mounting: &MountingInformation) -> Result<(), Refusal> {
        let (volume, epoch) = (mounting.volume, mounting.epoch);
        if let Some(older) = self.running.borrow().get(&volume) {
            if older.epoch == epoch {
                return Ok(());
            }
            if older.epoch.number >= epoch.number {
                let text = format!("volume {} is coordinated with epoch {} here", mounting.name, older.epoch);
                return Err(Refusal::new(ErrorKind::StaleEpoch, text));
            }
            older.stop.set();
        } else if self.count() >= COORDINATIONS_MAX {
            let text = format!("this server coordinates {COORDINATIONS_MAX} volumes already");
            return Err(Refusal::new(ErrorKind::Conflict, text));
        }
        let stop = Rc::new(Flag::default());
        let work = match &*self.how.borrow() {
            Some(how) => how(mounting.clone(), Rc::clone(&stop)),
            None => return Err(Refusal::new(ErrorKind::Conflict, "this server does not coordinate background work")),
        };
        let running = Rc::new(Running { epoch, stop, ended: Flag::default() });
        self.running.borrow_mut().insert(volume, Rc::clone(&running));
        let own = Rc::clone(self);
        doors.spawn(async move {
            work.await;
            let mut all = own.running.borrow_mut();
            if all.get(&volume).is_some_and(|present| Rc::ptr_eq(present, &running)) {
                all.remove(&volume);
            }
            drop(all);
            running.ended.set();
        });
        Ok(())
    }

    /// Ends the one of that epoch, or an older one, in good order; returns when it has ended.
    pub(crate) async fn stop(&self, volume: VolumeId, epoch: Epoch) {
        let running = self.running.borrow().get(&volume).filter(|running| running.epoch.number <= epoch.number).cloned();
        if let Some(running) = running {
            running.stop.set();
            running.ended.wait().await;
        }
    }

    /// Ends all in good order; returns when they have ended.
    pub(crate) async fn stop_all(&self) {
        let all: Vec<_> = self.running.borrow().values().cloned().collect();
        for running in &all {
            running.stop.set();
        }
        join_all(all.iter().map(|running| running.ended.wait())).await;
    }
}
