//! Operations about regions and blocks: MAP, SEED, CLEAR, COOL, VERIFY.

use sublet_doors::Doors;
use sublet_types::limits::REGION_SIZE;
use sublet_wire::Status;
use sublet_wire::message::{Clear, Cool, MapRequest, Message, Seed, VERIFY_SIZE_MAX, VerifyReply};

use crate::request::{Answer, Failure, Work};

impl<D: Doors> Work<D> {
    /// Regions that the segment touches.
    fn regions(&self) -> u64 {
        self.shared.session.length.div_ceil(REGION_SIZE)
    }

    fn check_regions(&self, regions: impl Iterator<Item = u32>) -> Result<(), Failure> {
        let count = self.regions();
        match regions.into_iter().find(|region| u64::from(*region) >= count) {
            Some(region) => Err(Failure::new(Status::OutOfRange, format!("region {region} does not lie in the slice's {count}"))),
            None => Ok(()),
        }
    }

    /// Another leg of the segment: a slice keeps no map for itself.
    fn check_leg(&self, leg: u8) -> Result<(), Failure> {
        let session = &self.shared.session;
        let legs = self.shared.served.area.slice_facts(session.slice).map_or(0, |facts| facts.in_sync.len());
        if usize::from(leg) >= legs || usize::from(leg) == session.leg {
            let text = format!("leg {leg} is none of the others of the segment's {legs}");
            return Err(Failure::new(Status::Disagreement, text));
        }
        Ok(())
    }

    /// MAP: also of a stale leg, whose hot regions and maps are copied over, too (S4).
    pub(crate) async fn map(&self, map: MapRequest) -> Result<Answer, Failure> {
        let (offset, length) = (self.frame.offset, u64::from(self.frame.length));
        let whole = offset.is_multiple_of(REGION_SIZE) && length.is_multiple_of(REGION_SIZE) && length > 0;
        let end = offset.checked_add(length).filter(|end| *end <= self.regions() * REGION_SIZE);
        if !whole || end.is_none() {
            let text = format!("{length} bytes at {offset} are not whole regions of 4 MiB of the slice");
            return Err(Failure::new(Status::OutOfRange, text));
        }
        let reply = self.shared.served.area.map(self.shared.session.slice, map.which, offset, length).await?;
        Ok(Answer::Small(reply.encode()))
    }

    /// SEED (S1, S3): also to a leg that is about to be in sync and takes over the maps for other stale legs (S5).
    pub(crate) async fn seed(&self, seed: &Seed) -> Result<(), Failure> {
        self.writable()?;
        self.check_leg(seed.leg)?;
        self.check_regions(seed.entries.iter().map(|(region, _)| *region))?;
        Ok(self.shared.served.area.seed(self.shared.session.slice, seed).await?)
    }

    /// CLEAR (S4).
    pub(crate) async fn clear(&self, clear: &Clear) -> Result<(), Failure> {
        self.writable()?;
        // A stale leg's maps are not the truth about anybody: nothing is taken off them.
        self.in_sync("it keeps its maps as they are")?;
        self.check_leg(clear.leg)?;
        self.check_regions(clear.entries.iter().map(|(region, _)| *region))?;
        Ok(self.shared.served.area.clear(self.shared.session.slice, clear.leg, &clear.entries).await?)
    }

    /// COOL (H2).
    pub(crate) async fn cool(&self, cool: &Cool) -> Result<(), Failure> {
        self.writable()?;
        self.check_regions(cool.regions.iter().copied())?;
        Ok(self.shared.served.area.cool(self.shared.session.slice, &cool.regions).await?)
    }

    /// VERIFY (K1).
    pub(crate) async fn verify(&self) -> Result<Answer, Failure> {
        let (offset, length) = self.range()?;
        if length > VERIFY_SIZE_MAX {
            return Err(Failure::new(Status::TooMuch, format!("at most {VERIFY_SIZE_MAX} bytes are verified at once")));
        }
        let blocks = self.shared.served.area.verify(self.shared.session.slice, offset, length).await?;
        Ok(Answer::Small(VerifyReply { blocks }.encode()))
    }
}
