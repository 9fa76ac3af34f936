//! The manager's table is lost, or an older copy of it takes its place, and an administrator has it rebuilt from the labels or
//! reconciled with them (R1, L5). Copies of volumes are accepted where the labels alone do not settle which one counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use sublet_api::Refusal;
use sublet_api::rebuild::{AcceptVolume, Rebuild, RebuildView, UnsettledView};
use sublet_api::request::{Request, Response, Return};
use sublet_table::Table;
use sublet_table::records::VolumeRow;
use sublet_types::{Name, TaskId, VolumeId};

use crate::exec::{SECOND, Time};
use crate::operator::ask_once;
use crate::world::World;

/// What is lost in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// The manager's table: an empty one takes its place.
    Table,
    /// What the manager's table has learnt lately: an older copy takes its place.
    News,
    /// A server ([`crate::forgotten`]).
    Server,
}

/// All kinds of it.
pub const LOSSES: [Loss; 3] = [Loss::Table, Loss::News, Loss::Server];

/// How long the administrator may need once nothing else goes wrong.
pub const PATIENCE: Time = 400 * SECOND;
/// A rebuild is ended although volumes are not settled, after so long: they stay frozen until they are accepted.
const SETTLE_TIME_MAX: Time = 60 * SECOND;

/// How far the run's event is.
#[derive(Default)]
pub struct Tables {
    /// Nothing else goes wrong at this moment: whoever knows better than the table is heard of.
    held: Cell<bool>,
    /// A fault that takes some time goes on.
    pub striking: Cell<bool>,
    /// It is over: the table is whole again.
    done: Cell<bool>,
    /// Volumes that an administrator has taken from whoever had them mounted.
    taken: RefCell<BTreeSet<Name>>,
    /// Volumes whose borrower is giving them back, or has not got them yet: nobody needs their bytes.
    unwanted: RefCell<BTreeSet<Name>>,
    /// The names that somebody asked for. A volume with another one is called so because its own name had been taken.
    asked: RefCell<BTreeSet<Name>>,
    /// Volumes that were ever mounted.
    used: RefCell<BTreeSet<VolumeId>>,
}

impl Tables {
    /// Whether nothing else may go wrong now.
    pub fn is_held(&self) -> bool {
        self.held.get()
    }

    /// Whether the administrator has nothing to do any more.
    pub fn is_done(&self) -> bool {
        self.done.get()
    }

    /// The administrator has nothing to do any more.
    pub fn set_done(&self) {
        self.done.set(true);
    }

    /// An administrator takes a volume from whoever has it mounted.
    pub fn take(&self, volume: &Name) {
        self.taken.borrow_mut().insert(volume.clone());
    }

    /// Whether somebody needs the bytes of a volume from now on.
    pub fn set_wanted(&self, volume: &Name, wanted: bool) {
        self.asked.borrow_mut().insert(volume.clone());
        let mut unwanted = self.unwanted.borrow_mut();
        if wanted {
            unwanted.remove(volume);
        } else {
            unwanted.insert(volume.clone());
        }
    }

    /// Somebody has mounted it.
    pub fn set_used(&self, volume: VolumeId) {
        self.used.borrow_mut().insert(volume);
    }

    fn is_unwanted(&self, volume: VolumeId, name: &Name) -> bool {
        let nobody_had_it = !self.asked.borrow().contains(name) && !self.used.borrow().contains(&volume);
        self.unwanted.borrow().contains(name) || nobody_had_it
    }

    /// Whether an administrator has taken the volume from whoever had it mounted.
    pub fn is_taken(&self, volume: &Name) -> bool {
        self.taken.borrow().contains(volume)
    }
}

/// Waits for the event's time, lets it happen, and has it mended.
pub async fn keep(world: Rc<World>, loss: Loss) {
    let sim = &world.sim;
    let time = world.knobs.fault_time;
    let manager = &world.manager;
    match loss {
        Loss::Table => {
            sim.sleep(Duration::from_nanos(sim.below(time))).await;
            sim.log("tables", || "the manager's table is lost".to_owned());
            manager.change_table(manager.disk().map(|disk| disk.blank(sim)).inspect(|disk| disk.set_size(0)));
            world.checks.table_changed();
            if world.net.is_up(manager.machine.id) {
                manager.start();
            }
        }
        Loss::Server => return crate::forgotten::keep(Rc::clone(&world)).await,
        Loss::News => {
            sim.sleep(Duration::from_nanos(sim.below(time))).await;
            let copy = manager.disk().map(|disk| disk.copy(sim));
            sim.log("tables", || "the manager's table is copied".to_owned());
            sim.sleep(Duration::from_nanos(sim.below(time))).await;
            hold(&world).await;
            sim.log("tables", || "the manager's table is replaced by the older copy".to_owned());
            manager.change_table(copy);
            world.checks.table_changed();
            world.checks.behind.set(true);
            manager.start();
            // A mount that was under way in the copy is begun again, and given up when the labels turn out to know better: with
            // what it may have left behind, the mount that came of it is fenced.
            let is_changing = |row: &&VolumeRow| row.task.is_some();
            let changing = |table: &Table| table.volumes.values().filter(is_changing).map(|row| row.name.clone()).collect();
            let changing: Vec<Name> = manager.table(changing).unwrap_or_default();
            changing.iter().for_each(|volume| world.tables.take(volume));
            // Every label is heard of before anything else goes wrong. While one is not, nobody could know better.
            while !look(&world).await.is_some_and(|view| view.silent.is_empty()) {
                sim.sleep(Duration::from_millis(50)).await;
            }
            world.tables.held.set(false);
            sim.log("tables", || "all labels were heard of".to_owned());
            sim.sleep(Duration::from_nanos(sim.below(if sim.chance(500_000) { SECOND } else { 30 * SECOND }))).await;
        }
    }
    begin(&world, loss).await;
    finish(&world).await;
    world.checks.table_changed();
    world.checks.behind.set(false);
    world.tables.set_done();
    // A label may tell more when its server is back. What stays unknown is looked at less and less often.
    let mut pause = Duration::from_secs(2);
    loop {
        sim.sleep(pause).await;
        if look(&world).await.is_some_and(|view| !view.unsettled.is_empty() || view.strangers > 0) {
            // The table turns out to be behind once more: a late order of the newer one was carried out.
            world.checks.behind.set(true);
            begin(&world, Loss::News).await;
            finish(&world).await;
            world.checks.table_changed();
            world.checks.behind.set(false);
            pause = (pause * 2).min(Duration::from_secs(120));
        }
    }
}

/// Waits until everything is up, and lets nothing go wrong until it is let go.
async fn hold(world: &Rc<World>) {
    world.tables.held.set(true);
    let is_whole = || {
        let areas = |server: &Rc<crate::server::Server>| {
            let reports: Vec<_> = server.areas().iter().map(|area| area.report("")).collect();
            reports.len() == server.entries().len() && reports.iter().all(|report| report.offline.is_none())
        };
        world.all_up() && world.servers.iter().all(areas)
    };
    while world.tables.striking.get() || !is_whole() {
        world.sim.sleep(Duration::from_millis(100)).await;
    }
}

/// One command at some server's machine.
pub(crate) async fn command(world: &Rc<World>, request: Request) -> Option<Result<Response, Refusal>> {
    let answer = ask_once(world, &world.any_server(), request.clone()).await;
    world.sim.log("tables", || match &answer {
        None => format!("{request:?}: nobody asked in the end"),
        Some(Ok(_)) => format!("{request:?}: done"),
        Some(Err(refusal)) => format!("{request:?}: {refusal}"),
    });
    answer
}

/// `sublet manager rebuild --show`.
async fn look(world: &Rc<World>) -> Option<RebuildView> {
    match ask_once(world, &world.any_server(), Request::RebuildState).await? {
        Ok(Response::Rebuild(view)) => Some(*view),
        _ => None,
    }
}

/// `sublet manager rebuild`, with `--reconcile` if the table is an older one.
async fn begin(world: &Rc<World>, loss: Loss) {
    let wish = Rebuild { reconcile: loss == Loss::News, ..Rebuild::default() };
    while !matches!(command(world, Request::Rebuild(wish.clone())).await, Some(Ok(_))) {
        world.sim.sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until nobody is missing and everything is settled, accepts what does not settle, and ends the rebuild.
async fn finish(world: &Rc<World>) {
    let sim = &world.sim;
    let begun = sim.now();
    // Some do not wait for servers that are away.
    let hurry = if sim.chance(300_000) { sim.between(2, 20) * SECOND } else { SETTLE_TIME_MAX };
    let mut whole_since = None;
    loop {
        sim.sleep(Duration::from_millis(500)).await;
        let Some(view) = look(world).await else { continue };
        let is_whole = view.silent.is_empty() && view.reported.len() == world.servers.len();
        let since = *whole_since.get_or_insert(sim.now());
        if !is_whole || !world.is_mended() {
            whole_since = None;
        }
        if view.unsettled.is_empty() && !view.open {
            return sim.log("tables", || "the table is whole again".to_owned());
        }
        let for_long = is_whole && sim.now() > since + 20 * SECOND;
        if is_whole && view.open && (view.unsettled.is_empty() || sim.now() > since + SETTLE_TIME_MAX) {
            command(world, Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() })).await;
        } else if sim.now() > begun + hurry || for_long {
            for volume in &view.unsettled {
                if !accept(world, volume).await && is_whole && world.tables.is_unwanted(volume.volume, &volume.name) {
                    dissolve(world, volume).await;
                }
            }
        }
        if sim.now() > since + PATIENCE {
            return world.violation(format!("R1, L5: the table does not become whole: {view:?}"));
        }
    }
}

/// `sublet return --dissolve`: nobody needs it, and some of it is not there at all.
async fn dissolve(world: &Rc<World>, volume: &UnsettledView) {
    let task = TaskId::from_u128(world.sim.random(|random| random.next_u128()));
    let give_back = Return { task, server: None, dissolve: true };
    command(world, Request::Return { volume: volume.name.to_string(), give_back }).await;
}

/// `sublet volume accept` with a copy that has everything: the simulator knows which one that is. False if there is none.
async fn accept(world: &Rc<World>, volume: &UnsettledView) -> bool {
    let copies = world.manager.table(|table| copies(world, table, volume.volume)).unwrap_or_default();
    for leg in copies {
        let accept = AcceptVolume { leg, stale: false };
        // Whoever had it mounted is fenced, also if the answer is lost.
        world.tables.take(&volume.name);
        if let Some(Ok(_)) = command(world, Request::AcceptVolume { volume: volume.name.to_string(), accept }).await {
            return true;
        }
    }
    false
}

/// Areas and servers that have an up-to-date copy of all that they have of a volume.
fn copies(world: &World, table: &Table, volume: VolumeId) -> Vec<String> {
    let Some(row) = table.volumes.get(&volume) else { return Vec::new() };
    let is_unwanted = world.tables.is_unwanted(volume, &row.name);
    let areas: BTreeSet<_> = row.legs().map(|(_, leg)| leg.area).collect();
    let is_good = |area: &&sublet_types::AreaId| {
        let mut legs = row.legs().filter(|(_, leg)| leg.area == **area);
        legs.all(|(_, leg)| is_unwanted || world.checks.is_in_sync(volume, leg.slice))
    };
    let name = |area: &sublet_types::AreaId| Some(table.areas.get(area)?.name.to_string());
    areas.iter().filter(is_good).filter_map(name).collect()
}
