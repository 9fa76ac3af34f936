//! The wrong disk in the place of the right one, at the first server: an empty one, another's, an older state of the same one,
//! or two that have changed places. The machine is off while disks are changed, and the right ones come back in the end.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use sublet_types::{AreaId, OpenId};

use crate::disk::SimFile;
use crate::exec::SECOND;
use crate::faults::restart_pause;
use crate::server::{Entry, Server};
use crate::world::World;

/// Disks, by the names of their places.
type Disks = Vec<(PathBuf, Rc<SimFile>)>;

/// A copy of all pieces of an area, and what its label said then.
struct Backup {
    area: AreaId,
    open: OpenId,
    sequence: u64,
    pieces: Disks,
}

/// What was taken out of its place, and copies that somebody made.
#[derive(Default)]
pub struct Slots {
    right: RefCell<Disks>,
    backups: RefCell<Vec<Backup>>,
}

/// A few copies are enough.
const BACKUPS_MAX: usize = 4;

impl Slots {
    /// Whether a wrong disk is somewhere.
    pub fn is_wrong(&self) -> bool {
        !self.right.borrow().is_empty()
    }
}

/// Copies a disk, changes it for another, or puts the right one back.
pub fn strike(world: &Rc<World>) {
    let sim = &world.sim;
    let Some(victim) = world.servers.first() else { return };
    if world.slots.is_wrong() {
        return put_back(world);
    }
    if world.slots.backups.borrow().is_empty() || sim.chance(250_000) {
        return back_up(world, victim);
    }
    let entries = victim.entries();
    if entries.is_empty() {
        return;
    }
    let entry = sim.random(|random| random.pick(&entries).clone());
    let mut wrong = if sim.chance(600_000) { older(world, &entry) } else { Vec::new() };
    if wrong.is_empty() {
        wrong = match sim.below(3) {
            0 => empty(world, victim, &entry),
            1 => of_another(world, victim, &entry),
            _ => exchanged(world, victim, &entry),
        };
    }
    if !wrong.is_empty() {
        change(world, victim, wrong);
    }
}

/// Puts the right disks back, if they are not there.
pub fn put_back(world: &Rc<World>) {
    let right = std::mem::take(&mut *world.slots.right.borrow_mut());
    if let (Some(victim), false) = (world.servers.first(), right.is_empty()) {
        world.sim.log("faults", || "the right disks are put back".to_owned());
        change(world, victim, right);
        world.slots.right.borrow_mut().clear();
    }
}

/// Power off, other disks in these places, power on.
fn change(world: &Rc<World>, victim: &Rc<Server>, disks: Disks) {
    let sim = &world.sim;
    victim.stop();
    victim.machine.crash(sim, &world.net);
    for (path, disk) in disks {
        sim.log("faults", || format!("another disk is in the place of {}", path.display()));
        if let Some(before) = victim.machine.files.borrow_mut().change(&path, disk) {
            world.slots.right.borrow_mut().push((path, before));
        }
    }
    let (own, machine) = (Rc::clone(world), Rc::clone(&victim.machine));
    sim.after(restart_pause(sim) + SECOND, move |sim| machine.boot(sim, &own.net));
}

/// One of the area's pieces, as it lies there now.
fn any_piece(world: &World, victim: &Server, entry: &Entry) -> Option<(PathBuf, Rc<SimFile>)> {
    let piece = world.sim.random(|random| random.pick(&entry.pieces).path.clone());
    let disk = victim.machine.files.borrow().get(&piece)?;
    Some((piece, disk))
}

fn empty(world: &Rc<World>, victim: &Rc<Server>, entry: &Entry) -> Disks {
    let piece = any_piece(world, victim, entry);
    piece.into_iter().map(|(path, disk)| (path, disk.blank(&world.sim))).collect()
}

fn of_another(world: &Rc<World>, victim: &Rc<Server>, entry: &Entry) -> Disks {
    let Some((path, _)) = any_piece(world, victim, entry) else { return Vec::new() };
    let others = world.servers.iter().flat_map(|server| server.machine.files.borrow().all());
    let others: Vec<_> = others.filter(|disk| disk.path != path).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let other = world.sim.random(|random| Rc::clone(random.pick(&others)));
    vec![(path, other.copy(&world.sim))]
}

fn exchanged(world: &Rc<World>, victim: &Rc<Server>, entry: &Entry) -> Disks {
    let Some((path, disk)) = any_piece(world, victim, entry) else { return Vec::new() };
    let others: Vec<_> = victim.machine.files.borrow().all().into_iter().filter(|other| other.path != path).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let other = world.sim.random(|random| Rc::clone(random.pick(&others)));
    vec![(path, Rc::clone(&other)), (other.path.clone(), disk)]
}

/// An older state of all pieces, or of one. Only if the manager has heard of a later opening: nobody could know better otherwise.
fn older(world: &Rc<World>, entry: &Entry) -> Disks {
    let known = world.manager.table(|table| table.areas.get(&entry.area).map(|row| (row.open, row.sequence))).flatten();
    let Some((Some(open), sequence)) = known else { return Vec::new() };
    let backups = world.slots.backups.borrow();
    let is_older = |backup: &&Backup| backup.area == entry.area && backup.open != open && backup.sequence < sequence;
    let Some(backup) = backups.iter().find(is_older) else { return Vec::new() };
    let mut pieces: Vec<_> = backup.pieces.iter().map(|(path, disk)| (path.clone(), disk.copy(&world.sim))).collect();
    if world.sim.chance(300_000) {
        pieces.truncate(1);
    }
    pieces
}

fn back_up(world: &Rc<World>, victim: &Rc<Server>) {
    for area in victim.areas() {
        let report = area.report("");
        let entry = victim.entries().into_iter().find(|entry| entry.area == report.area);
        let (Some(entry), Some(open)) = (entry, report.open) else { continue };
        let files = victim.machine.files.borrow();
        let copy = |path: &PathBuf| files.get(path).map(|disk| (path.clone(), disk.copy(&world.sim)));
        let pieces = entry.pieces.iter().filter_map(|piece| copy(&piece.path)).collect();
        let mut backups = world.slots.backups.borrow_mut();
        backups.insert(0, Backup { area: report.area, open, sequence: report.sequence, pieces });
        backups.truncate(BACKUPS_MAX);
    }
    world.sim.log("faults", || format!("the disks of {} are copied", victim.name()));
    // What is opened next is another opening than the one that was copied.
    victim.stop();
}
