//! What a test says of a mounted volume, and what it looks at afterwards.

use sublet_api::mount::MountingInformation;
use sublet_api::request::{ChangeLeg, ClientReport, LegChange, Request, Response};
use sublet_api::view::PathState;
use sublet_types::Generation;

use super::{Pool, coordinator};

impl Pool {
    pub fn change_leg(
        &mut self,
        mounting: &MountingInformation,
        leg: usize,
        generation: Generation,
        change: LegChange,
    ) -> Response {
        let slice = mounting.segments[0].legs[leg].slice;
        let change = ChangeLeg { epoch: mounting.epoch, segment: 0, slice, generation, change };
        self.ask(Request::ChangeLeg { volume: mounting.volume, change })
    }

    pub fn report(&mut self, mounting: &MountingInformation, path: PathState, hold: bool) -> u64 {
        let report = ClientReport { path, hold, ..coordinator::report(mounting.epoch) };
        self.send(Request::ClientReport { volume: mounting.volume, report })
    }

    pub fn events(&self) -> Vec<String> {
        self.core.table().events.values().map(|event| format!("{}: {}", event.subject, event.text)).collect()
    }

    /// The slices of a fake server whose sessions of any epoch are admitted.
    pub fn admitted(&self, server: usize) -> usize {
        self.servers[server].areas.values().flat_map(|area| area.slices.values()).filter(|slice| slice.admitted).count()
    }
}
