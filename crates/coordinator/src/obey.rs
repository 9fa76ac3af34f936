//! What the manager's answers ask of whoever coordinates a volume.

use sublet_api::request::ClientAnswer;
use sublet_doors::Doors;
use sublet_volume::{ManagerDoor, Volume};

/// Does what an answer says. Answers repeat themselves: all of it is idempotent. The result is the revision of the segments
/// that the volume has now, if the answer had some and they were taken over; the manager is to be told.
pub fn obey<D: Doors, M: ManagerDoor>(volume: &Volume<D, M>, answer: ClientAnswer) -> Option<u64> {
    volume.update_lenders(answer.lenders);
    let taken = answer.segments.as_ref().filter(|segments| volume.take_segments(segments)).map(|_| answer.segments_revision);
    volume.set_work(&answer.work);
    volume.set_resync(answer.resync_rate_max, answer.is_resync_paused);
    volume.findings_seen(answer.findings_seen);
    taken
}
