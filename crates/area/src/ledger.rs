//! What a label remembers beside its slices: earlier openings (L2), whether the area is trusted, and tombstones (R2).

use sublet_api::server::Tombstone;
use sublet_doors::Doors;
use sublet_types::{OpenId, SliceId};

use crate::area::Area;
use crate::error::{AreaError, AreaErrorKind};
use crate::label::{QUARANTINE_MAX, TOMBSTONES_MAX};

impl<D: Doors> Area<D> {
    /// The label's sequence number: what is remembered of this opening, together with its id (L2).
    pub fn sequence(&self) -> u64 {
        self.inner.label.borrow().sequence
    }

    /// L2: is what somebody remembers of this area a part of its history? An opening that the label does not name, or a
    /// sequence that it has not reached, means that the area was rolled back, restored or cloned. Who remembers nothing
    /// (`open` 0) is answered yes.
    pub fn knows(&self, open: OpenId, sequence: u64) -> bool {
        let label = self.inner.label.borrow();
        if open.to_u128() == 0 {
            return true;
        }
        sequence <= label.sequence && (open == label.opening.open || label.history.contains(&open))
    }

    /// Why the area is not trusted; none when it is.
    pub fn quarantined(&self) -> Option<String> {
        self.inner.label.borrow().quarantine.clone()
    }

    /// The area is not trusted from now on (L2), or trusted again (none). It is in the label: a restart does not change it.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn set_quarantine(&self, why: Option<&str>) -> Result<(), AreaError> {
        let why = why.map(|why| why.chars().filter(char::is_ascii).take(QUARANTINE_MAX).collect());
        self.change(move |label| {
            label.quarantine = why;
            Ok(())
        })
        .await
    }

    /// Enters tombstones (R2); those that are there are brought up to date.
    ///
    /// # Errors
    /// If the label has no room for so many, or what the disk says.
    pub async fn put_tombstones(&self, tombstones: &[Tombstone]) -> Result<(), AreaError> {
        let new = tombstones.to_vec();
        self.change(move |label| {
            for tombstone in new {
                match label.tombstones.binary_search_by_key(&tombstone.slice, |known| known.slice) {
                    Ok(at) => label.tombstones.iter_mut().skip(at).take(1).for_each(|known| *known = tombstone.clone()),
                    Err(at) => label.tombstones.insert(at, tombstone),
                }
            }
            if label.tombstones.len() > TOMBSTONES_MAX {
                let message = format!("the label of area {} has no room for more than {TOMBSTONES_MAX} tombstones", label.name);
                return Err(AreaError::new(AreaErrorKind::Full, message));
            }
            Ok(())
        })
        .await
    }

    /// Drops the tombstones of slices that are confirmed as wiped (R2).
    ///
    /// # Errors
    /// What the disk says.
    pub async fn drop_tombstones(&self, slices: &[SliceId]) -> Result<(), AreaError> {
        let slices = slices.to_vec();
        self.change(move |label| {
            label.tombstones.retain(|tombstone| !slices.contains(&tombstone.slice));
            Ok(())
        })
        .await
    }
}
