//! Orders of the manager. Each is idempotent, and answered when it is durable.

use std::rc::Rc;

use sublet_api::order::{Order, Outcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_area::{AreaError, AreaErrorKind};
use sublet_doors::Doors;
use sublet_types::mutation::{self, Mutation};
use sublet_types::{AreaId, Epoch, SliceId};

use crate::agent::{Agent, Missing, Served};
use crate::gate::{Gate, Older};

impl<D: Doors> Agent<D> {
    /// Carries out an order. `ReleaseArea` clears the labels and stops serving the area; whoever made a file for it
    /// removes the file. Never dropped before it is done: label changes run to their end.
    pub async fn execute(&self, order: &Order) -> Outcome {
        let queue = slice_of(order).map(|slice| (slice, self.order_queue(slice)));
        let turn = match &queue {
            Some((_, queue)) => Some(queue.acquire(1).await),
            None => None,
        };
        let outcome = self.execute_now(order).await;
        drop(turn);
        if let Some((slice, queue)) = queue {
            drop(queue);
            self.forget_order_queue(slice);
        }
        outcome
    }

    async fn execute_now(&self, order: &Order) -> Outcome {
        match self.carry_out(order).await {
            Ok(()) => Outcome::Done,
            Err(refusal) => {
                tracing::warn!(%refusal, ?order, "an order of the manager was not carried out");
                Outcome::Failed { refusal }
            }
        }
    }

    async fn carry_out(&self, order: &Order) -> Result<(), Refusal> {
        match order {
            Order::PrepareSlice { slice } => {
                let served = self.ordered(slice.area)?;
                // P2: answers of the manager to two polls may overtake each other, and an id is never used again.
                if self.is_dropped(slice.slice) {
                    let text = format!("slice {} was wiped and given up; a late order does not make it anew", slice.slice);
                    return Err(Refusal::new(ErrorKind::Conflict, text));
                }
                served.area.prepare_slice(slice).await.map_err(|e| e.refusal())
            }
            Order::OpenLease { slice, area, lease, facts } => {
                let (served, gate) = self.gate(*area, *slice)?;
                let _turn = gate.turn().await;
                let persisted = served.area.open_lease(*slice, lease, facts).await;
                end_older(&gate, persisted, Older::Than(lease.epoch)).await.map_err(|e| e.refusal())
            }
            Order::Fence { slice, area, epoch } => {
                let (served, gate) = self.gate(*area, *slice)?;
                let _turn = gate.turn().await;
                fence(&served, &gate, *slice, *epoch).await.map_err(|e| e.refusal())
            }
            Order::WipeSlice { slice, area, epoch, drop } => {
                let served = self.ordered(*area)?;
                // A slice that is gone has been wiped: the order came twice, or before the one that would have made it.
                let Some(gate) = served.gate(*slice) else {
                    if *drop {
                        self.note_dropped(*slice);
                    }
                    return Ok(());
                };
                let _turn = gate.turn().await;
                let result = wipe(&served, &gate, *slice, *epoch, *drop).await;
                gate.wipe.set(None);
                served.forget(*slice);
                if *drop && result.is_ok() {
                    self.note_dropped(*slice);
                }
                result.map_err(|e| e.refusal())
            }
            Order::ReleaseArea { area } => {
                let served = match self.served(*area) {
                    Err(Missing::Unknown) => return Ok(()),
                    _ => self.ordered(*area)?,
                };
                served.area.release().await.map_err(|e| e.refusal())?;
                self.remove_area(*area);
                Ok(())
            }
            Order::SetQuarantine { area, reason } => {
                self.ordered(*area)?.set_quarantine(reason.as_deref()).await.map_err(|e| e.refusal())
            }
            Order::PutTombstones { area, tombstones } => {
                self.ordered(*area)?.area.put_tombstones(tombstones).await.map_err(|e| e.refusal())
            }
            Order::DropTombstones { area, slices } => {
                self.ordered(*area)?.area.drop_tombstones(slices).await.map_err(|e| e.refusal())
            }
            Order::RenameArea { area, name } => self.ordered(*area)?.area.rename(name).await.map_err(|e| e.refusal()),
            Order::Coordinate { mounting } if mounting.borrower == self.server && !self.is_draining() => {
                self.coordinations.begin(&self.doors, mounting)
            }
            Order::Coordinate { .. } => Err(Refusal::new(ErrorKind::Conflict, "this server does not coordinate that volume now")),
            Order::StopCoordinating { volume, epoch, .. } => {
                self.coordinations.stop(*volume, *epoch).await;
                Ok(())
            }
        }
    }

    fn ordered(&self, area: AreaId) -> Result<Rc<Served<D>>, Refusal> {
        self.served(area).map_err(|missing| match missing {
            Missing::Unknown => Refusal::new(ErrorKind::NotFound, format!("this server has no area {area}")),
            Missing::Offline(reason) => {
                Refusal::new(ErrorKind::LenderUnreachable, format!("area {} is offline: {reason}", area.short()))
            }
        })
    }

    fn gate(&self, area: AreaId, slice: SliceId) -> Result<(Rc<Served<D>>, Rc<Gate>), Refusal> {
        let served = self.ordered(area)?;
        let gate = served
            .gate(slice)
            .ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("area {} has no slice {slice}", served.area.name())))?;
        Ok((served, gate))
    }
}

/// Orders for one slice are carried out in the order in which they came.
const fn slice_of(order: &Order) -> Option<SliceId> {
    match order {
        Order::PrepareSlice { slice } => Some(slice.slice),
        Order::OpenLease { slice, .. } | Order::Fence { slice, .. } | Order::WipeSlice { slice, .. } => Some(*slice),
        Order::ReleaseArea { .. }
        | Order::RenameArea { .. }
        | Order::Coordinate { .. }
        | Order::StopCoordinating { .. }
        | Order::SetQuarantine { .. }
        | Order::PutTombstones { .. }
        | Order::DropTombstones { .. } => None,
    }
}

/// F1: the epoch is durable, then everything older is closed, and its disk I/O has ended.
async fn fence<D: Doors>(served: &Served<D>, gate: &Gate, slice: SliceId, epoch: Epoch) -> Result<(), AreaError> {
    let persisted = served.area.fence(slice, epoch).await;
    end_older(gate, persisted, Older::UpTo(epoch)).await
}

/// Ends the sessions of older epochs once a newer one is persisted. A disk that does not take it (W7) keeps nobody in: the manager
/// has committed the epoch, so that the older one may neither read nor write any more (F4). The order has failed all the same:
/// a restart would admit the older epoch again.
async fn end_older(gate: &Gate, persisted: Result<(), AreaError>, older: Older) -> Result<(), AreaError> {
    match &persisted {
        Ok(()) => gate.persisted(older.epoch()),
        // The order is older than what is here, or of another history: its epoch ends nothing.
        Err(error) if matches!(error.kind, AreaErrorKind::StaleEpoch | AreaErrorKind::Disagreement) => return persisted,
        Err(_) => gate.not_persisted(older),
    }
    if !mutation::is(Mutation::FenceDoesNotEnd) {
        gate.fence(older).await;
    }
    persisted
}

async fn wipe<D: Doors>(served: &Served<D>, gate: &Rc<Gate>, slice: SliceId, epoch: Epoch, drop: bool) -> Result<(), AreaError> {
    fence(served, gate, slice, epoch).await?;
    let progress = Rc::clone(gate);
    match served.area.wipe_slice(slice, epoch, drop, &move |done, total| progress.wipe.set(Some((done, total)))).await {
        Err(error) if error.kind == AreaErrorKind::NoSlice => Ok(()),
        result => result,
    }
}
