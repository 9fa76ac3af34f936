//! Somebody who takes care of the pool: has volumes scrubbed (K1), and lost copies made anew elsewhere (S6, P2).

use std::rc::Rc;
use std::time::Duration;

use sublet_api::request::{Replace, Request, Scrub};
use sublet_types::{Name, TaskId};

use crate::operator::ask_once;
use crate::world::World;

/// Asks for one thing after the other while things go wrong. What is refused is left, as people do.
pub async fn keep(world: Rc<World>) {
    let sim = &world.sim;
    while !world.is_calm() {
        sim.sleep(Duration::from_nanos(sim.below(world.knobs.care_pause_max))).await;
        let volumes: Vec<Name> =
            world.manager.table(|table| table.volumes.values().map(|row| row.name.clone()).collect()).unwrap_or_default();
        if volumes.is_empty() {
            continue;
        }
        let volume = sim.random(|random| random.pick(&volumes).to_string());
        let (at, lost) = (world.any_server(), world.any_server());
        let task = TaskId::from_u128(sim.random(|random| random.next_u128()));
        let request = if sim.chance(400_000) {
            Request::Scrub { volume: volume.clone(), scrub: Scrub { task, rate_max: 0 } }
        } else {
            Request::Replace { volume: volume.clone(), replace: Replace { task, lost: lost.name().to_string(), on: None } }
        };
        let what = if matches!(request, Request::Scrub { .. }) { "scrub" } else { "replace" };
        let answer = ask_once(&world, &at, request).await;
        sim.log("care", || match answer {
            None => format!("{what} of {volume}: nobody asked in the end"),
            Some(Ok(_)) => format!("{what} of {volume}, {}: begun", lost.name()),
            Some(Err(refusal)) => format!("{what} of {volume}, {}: {refusal}", lost.name()),
        });
    }
}
