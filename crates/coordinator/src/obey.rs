//! What the manager's answers ask of whoever coordinates a volume.

use sublet_api::request::ClientAnswer;
use sublet_doors::Doors;
use sublet_volume::{ManagerDoor, Volume};

/// Does what an answer says. Answers repeat themselves: all of it is idempotent.
pub fn obey<D: Doors, M: ManagerDoor>(volume: &Volume<D, M>, answer: ClientAnswer) {
    volume.update_lenders(answer.lenders);
    if let Some(segments) = &answer.segments {
        volume.take_segments(segments);
    }
    volume.set_work(&answer.work);
    volume.set_resync(answer.resync_rate_max, false);
    volume.findings_seen(answer.findings_seen);
}
