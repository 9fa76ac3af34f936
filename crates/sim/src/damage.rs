//! Damage to the disks of one server, the first: bits that flip, writes that are lost or go astray, errors. The other servers'
//! disks are left alone, so that a good copy is left.

use std::rc::Rc;

use crate::disk::{DiskFaults, SimFile};
use crate::faults::{Fault, RotWhere, restart_pause};
use crate::server::Server;
use crate::world::World;

fn disks(server: &Server) -> Vec<Rc<SimFile>> {
    server.machine.files.borrow().all()
}

fn set(files: &[Rc<SimFile>], faults: DiskFaults) {
    files.iter().for_each(|file| file.faults.set(faults));
}

/// One fault of the first server's disks.
pub fn strike(world: &Rc<World>, fault: Fault) {
    let sim = &world.sim;
    let Some(victim) = world.servers.first() else { return };
    let faults = match fault {
        Fault::Rot => {
            for file in disks(victim) {
                let (tables, data) = (sublet_area::layout::HEADER_SIZE, file.data_begin.get());
                let (begin, end) = match world.knobs.rot {
                    RotWhere::Tables => (tables, data),
                    RotWhere::Data => (data, file.size.get()),
                    RotWhere::Both => (tables, file.size.get()),
                };
                if let Some(at) = file.rot(sim, begin, end - begin) {
                    sim.log("faults", || format!("a bit of {} flips at {at}", file.path.display()));
                }
            }
            return;
        }
        Fault::LostWrites | Fault::Misdirected => {
            let chance = *sim.random(|random| random.pick(&[5_000, 50_000, 300_000]));
            let (lost_write, misdirected_write) = if fault == Fault::LostWrites { (chance, 0) } else { (0, chance) };
            DiskFaults { lost_write, misdirected_write, ..DiskFaults::default() }
        }
        _ => DiskFaults {
            read_error: if sim.chance(300_000) { 100_000 } else { 0 },
            write_error: if sim.chance(300_000) { 100_000 } else { 0 },
            sync_error: if sim.chance(300_000) { 300_000 } else { 0 },
            full: sim.chance(100_000),
            ..DiskFaults::default()
        },
    };
    set(&disks(victim), faults);
    let own = Rc::clone(victim);
    sim.after(restart_pause(sim), move |_| set(&disks(&own), DiskFaults::default()));
}
