//! A lender that is given up with `server forget --lost`, and whose disks turn up again (P2, R2): what they hold is wiped, and
//! never believed.

use std::rc::Rc;
use std::time::Duration;

use sublet_api::rebuild::Forget;
use sublet_api::request::{Replace, Request, Response, Unmount};
use sublet_table::Table;
use sublet_types::{AreaId, Name, ServerId, TaskId};

use crate::exec::{SECOND, Time};
use crate::server::Server;
use crate::tables::{PATIENCE, command};
use crate::world::World;

/// How long somebody tries to be rid of a server that is away.
const TRY_TIME_MAX: Time = 150 * SECOND;

/// Switches a server off for good, has it forgotten, and lets its disks turn up again.
pub async fn keep(world: Rc<World>) {
    let sim = &world.sim;
    sim.sleep(Duration::from_nanos(sim.below(world.knobs.fault_time))).await;
    let end = sim.now() + world.knobs.fault_time;
    while sim.now() < end {
        let victim = world.any_server();
        if world.manager.table(|table| may_go(table, victim.id())) == Some(true) {
            give_up(&world, &victim).await;
            break;
        }
        sim.sleep(Duration::from_millis(500)).await;
    }
    world.tables.set_done();
}

/// Whether nothing would be lost with a server, and it has borrowed nothing.
fn may_go(table: &Table, server: ServerId) -> bool {
    let mut volumes = table.volumes.values();
    let lies_at = |area: AreaId| table.lender(area) == Some(server);
    table.member(server).is_some()
        && volumes.all(|row| {
            let mut segments = row.segments.iter();
            row.borrower != Some(server)
                && row.frozen.is_none()
                && segments.all(|segment| segment.legs.iter().any(|leg| leg.in_sync && !lies_at(leg.area)))
        })
}

async fn give_up(world: &Rc<World>, victim: &Rc<Server>) {
    let sim = &world.sim;
    let (id, name) = (victim.id(), victim.name());
    sim.log("forgotten", || format!("{name} is switched off for good"));
    victim.stop();
    victim.machine.away.set(true);
    victim.machine.crash(sim, &world.net);
    let begun = sim.now();
    let mut is_done = false;
    while sim.now() < begun + TRY_TIME_MAX && !is_done {
        sim.sleep(Duration::from_nanos(sim.between(SECOND / 2, 3 * SECOND))).await;
        // Whoever has borrowed something meanwhile waits for its server: it is not lost then.
        if world.manager.table(|table| may_go(table, id)) == Some(false) {
            break;
        }
        let is_pressing = sim.now() > begun + 60 * SECOND;
        for volume in world.manager.table(|table| mounted(table, id)).unwrap_or_default() {
            free(world, &name, volume, is_pressing).await;
        }
        is_done = forget(world, &name).await;
    }
    let is_gone = world.manager.table(|table| table.member(id).is_none());
    sim.log("forgotten", || format!("{name} is forgotten: {is_gone:?}"));
    sim.sleep(Duration::from_nanos(sim.below(30 * SECOND))).await;
    victim.machine.away.set(false);
    victim.machine.boot(sim, &world.net);
    if is_gone == Some(false) {
        return;
    }
    // Its answer may have been lost, or its manager may be away just now: whoever was forgotten is told so.
    if is_gone.is_none() || sim.chance(500_000) {
        victim.start();
        sim.sleep(Duration::from_nanos(sim.between(2 * SECOND, 15 * SECOND))).await;
    }
    while world.manager.table(|table| table.member(id).is_some()).is_none() {
        sim.sleep(Duration::from_millis(200)).await;
    }
    if world.manager.table(|table| table.member(id).is_some()) == Some(true) {
        return;
    }
    victim.join_anew();
    sim.log("forgotten", || format!("the disks of {name} turn up again at a server with an empty data folder"));
    wiped(world, victim).await;
}

/// Mounted volumes with a copy at a server.
fn mounted(table: &Table, server: ServerId) -> Vec<Name> {
    let is_at = |area: AreaId| table.lender(area) == Some(server);
    let volumes = table.volumes.values().filter(|row| row.lease.is_some() && row.legs().any(|(_, leg)| is_at(leg.area)));
    volumes.map(|row| row.name.clone()).collect()
}

/// Has a copy of a mounted volume made anew elsewhere, or takes the volume from whoever has it mounted.
async fn free(world: &Rc<World>, lost: &Name, volume: Name, by_force: bool) {
    let task = TaskId::from_u128(world.sim.random(|random| random.next_u128()));
    let text = volume.to_string();
    if by_force {
        world.tables.take(&volume);
        let unmount = Unmount { task, server: None, epoch: None, force: true };
        command(world, Request::Unmount { volume: text, unmount }).await;
    } else {
        command(world, Request::Replace { volume: text, replace: Replace { task, lost: lost.to_string(), on: None } }).await;
    }
}

/// `sublet server forget --lost`: first shown, then done if nothing is lost with it.
async fn forget(world: &Rc<World>, server: &Name) -> bool {
    let request = |confirm| Request::ForgetServer { server: server.to_string(), forget: Forget { confirm } };
    let Some(Ok(Response::Forget(view))) = command(world, request(false)).await else { return false };
    if view.losses.iter().any(|loss| loss.bytes > 0) {
        return false;
    }
    matches!(command(world, request(true)).await, Some(Ok(Response::Forget(view))) if view.done)
}

/// Waits until nothing is left of what the disks held.
async fn wiped(world: &Rc<World>, victim: &Rc<Server>) {
    let areas: Vec<AreaId> = victim.entries().iter().map(|entry| entry.area).collect();
    let is_wiped = |table: &Table| {
        let is_clean = |area: &AreaId| table.areas.get(area).is_some_and(|row| row.strangers.is_empty());
        areas.iter().all(is_clean) && table.wipes.values().all(|row| !areas.contains(&row.area))
    };
    let mut since = world.sim.now();
    while world.manager.table(is_wiped) != Some(true) {
        world.sim.sleep(Duration::from_millis(500)).await;
        if !world.is_mended() {
            since = world.sim.now();
        }
        if world.sim.now() > since + PATIENCE {
            return world.violation(format!("P2: what the disks of {} held is not wiped", victim.name()));
        }
    }
    world.sim.log("forgotten", || format!("all that the disks of {} held is wiped", victim.name()));
}
