//! What goes wrong: drawn from the seed, until the world is to be calm.

use std::rc::Rc;
use std::time::Duration;

use sublet_api::request::Request;

use crate::damage;
use crate::disk::DiskFaults;
use crate::exec::{MILLISECOND, SECOND, Sim, Time};
use crate::limits::{self, Limits};
use crate::operator::ask_once;
use crate::rng::Random;
use crate::slots;
use crate::tables::Loss;
use crate::world::World;

/// How often what goes wrong, and what the pool is like; drawn from the seed.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Servers.
    pub servers: u64,
    /// Volumes at the same time.
    pub volumes: u64,
    /// The largest volume, in regions of 4 MiB.
    pub volume_regions: u64,
    /// The ways that volumes may have.
    pub ways: Vec<sublet_types::Way>,
    /// How long things go wrong.
    pub fault_time: Time,
    /// The longest pause between two faults.
    pub fault_pause_max: Time,
    /// Which faults there are, with weights.
    pub faults: Vec<Fault>,
    /// A borrower's process dies instead of ending, per million mounts.
    pub borrower_crash: u64,
    /// A mount is ended by force, per million.
    pub forced_unmount: u64,
    /// Errors are allowed, wrong bytes are not.
    pub loud: bool,
    /// Ready tasks run in a random order.
    pub shuffled: bool,
    /// Devices, whose regions are tracked, instead of files.
    pub devices: bool,
    /// Areas are joined from several pieces.
    pub joined: bool,
    /// Where bits flip.
    pub rot: RotWhere,
    /// Copies of a doubled volume.
    pub copies: u32,
    /// Limits that are not the usual ones.
    pub limits: Limits,
    /// Clients close their paths after so long without a request at most; 0 if they do not.
    pub idle_close_max: Time,
    /// The longest pause between two scrubs or replacements that somebody asks for; 0 if nobody does.
    pub care_pause_max: Time,
    /// What is lost, if anything.
    pub loss: Option<Loss>,
    /// After a crash of its borrower a volume is not mounted again at once.
    pub rests_after_crash: bool,
}

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A server's process is killed.
    KillServer,
    /// A server's machine loses its power.
    CrashServer,
    /// The manager's process is killed.
    KillManager,
    /// The manager's machine loses its power.
    CrashManager,
    /// The manager dies in the middle of one of its next commits.
    ManagerInCommit,
    /// Some machines cannot reach some others, in both directions or in one.
    Partition,
    /// Connections are cut; both ends learn it, or one.
    Cut,
    /// A disk is slow.
    Slow,
    /// A disk does nothing for a while.
    Stuck,
    /// A wall clock jumps.
    Clock,
    /// A bit flips on one server's disks.
    Rot,
    /// Some writes of one server's disks are answered and never reach their place.
    LostWrites,
    /// Some writes of one server's disks land at another place.
    Misdirected,
    /// Reads, writes and syncs of one server's disks fail for a while.
    Errors,
    /// A disk of one server is changed for an empty one, another's or an older state of itself, and comes back later.
    WrongDisk,
}

/// All kinds, for drawing.
const ALL: [Fault; 10] = [
    Fault::KillServer,
    Fault::CrashServer,
    Fault::KillManager,
    Fault::CrashManager,
    Fault::ManagerInCommit,
    Fault::Partition,
    Fault::Cut,
    Fault::Slow,
    Fault::Stuck,
    Fault::Clock,
];

/// Where bits flip in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RotWhere {
    /// In labels, maps and checksums.
    Tables,
    /// In what borrowers wrote.
    Data,
    /// Anywhere: a block and its checksum may both be gone. Only where nothing makes the other leg stale: that is the good copy.
    Both,
}

/// What the first server's disks suffer in a run, if anything.
pub type Damage = Option<Fault>;

/// All kinds of it.
pub const DAMAGE: [Fault; 5] = [Fault::Rot, Fault::Errors, Fault::LostWrites, Fault::Misdirected, Fault::WrongDisk];

/// What a run is to have instead of what its seed says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Damage, or none.
    pub damage: Option<Damage>,
    /// What is lost. Only runs without damage lose anything.
    pub loss: Option<Loss>,
}

/// Tells the numbers of what was added later from the others.
const LATER: u64 = 0x6c61_7465_7200_0001;
/// The same for what was added after that.
const NEWER: u64 = 0x6e65_7765_7200_0001;
/// And after that. The seeds that had found something before lose nothing with it.
const NEWEST: u64 = 0x6e65_7765_7374_4566;
/// And after that.
const LATEST: u64 = 0x6c61_7465_7374_7265;

impl Knobs {
    /// Whether there is this kind of fault.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// True if disks of the first server hold other bytes than were written to them.
    pub fn is_damaged(&self) -> bool {
        [Fault::Rot, Fault::LostWrites, Fault::Misdirected].into_iter().any(|fault| self.has(fault))
    }

    /// True if only a loss of power loses anything that is not flushed, and the table is always the newest.
    pub fn is_lossless(&self) -> bool {
        self.loss.is_none() && DAMAGE.into_iter().all(|fault| !self.has(fault))
    }

    /// Draws them.
    pub fn draw(sim: &Sim, seed: u64, wanted: Wanted) -> Self {
        use sublet_types::Way;
        // What was added later has its own numbers, so that older seeds still mean what they meant.
        let mut later = Random::new(seed ^ LATER);
        let mut newer = Random::new(seed ^ NEWER);
        let mut newest = Random::new(seed ^ NEWEST);
        let ways: Vec<Way> = match sim.below(4) {
            0 => vec![Way::Doubled],
            1 => vec![Way::Doubled, Way::Divided],
            2 => vec![Way::Doubled, Way::Doubled, Way::Integrated, Way::Divided],
            _ => vec![Way::Doubled, Way::Single],
        };
        // A few kinds at a time find more than all of them together.
        let mut faults: Vec<Fault> = ALL.iter().copied().filter(|_| sim.chance(400_000)).collect();
        // Damage at one server only, so that a good copy is left; errors are allowed, because the other copy may be stale.
        let damage = match sim.below(8) {
            0 => Some(Fault::Rot),
            1 => Some(Fault::Errors),
            2 if later.chance(500_000) => Some(Fault::LostWrites),
            3 if later.chance(500_000) => Some(Fault::Misdirected),
            4 => Some(Fault::WrongDisk),
            _ => None,
        };
        let damage = wanted.damage.unwrap_or(damage);
        if let Some(damage) = damage {
            faults.extend([damage, damage]);
        }
        if damage == Some(Fault::Rot) {
            // Tables rot too: a block and its kept checksum on one disk, and a new process computes that one anew (K2).
            faults.retain(|fault| !matches!(fault, Fault::KillServer | Fault::CrashServer));
        }
        // Half of the runs have no damage.
        let loss = match newest.below(100) {
            _ if damage.is_some() => None,
            _ if wanted.loss.is_some() => wanted.loss,
            0..16 => Some(Loss::Table),
            16..32 => Some(Loss::News),
            32..42 => Some(Loss::Server),
            _ => None,
        };
        // A good copy is left wherever something is damaged or goes for good.
        let ways = if damage.is_some() || loss == Some(Loss::Server) { vec![Way::Doubled] } else { ways };
        let servers = sim.between(2, 4);
        let is_harmless = |fault: &Fault| {
            use Fault::{Clock, CrashManager, KillManager, ManagerInCommit, Rot};
            matches!(fault, Clock | CrashManager | KillManager | ManagerInCommit | Rot)
        };
        let rot = match newer.below(2) {
            _ if faults.iter().all(is_harmless) => RotWhere::Both,
            0 => RotWhere::Tables,
            _ => RotWhere::Data,
        };
        Self {
            servers,
            volumes: sim.between(1, 3),
            volume_regions: sim.between(1, 4),
            ways,
            fault_time: sim.between(15, 60) * SECOND,
            fault_pause_max: sim.between(1, 20) * SECOND,
            faults,
            borrower_crash: *sim.random(|random| random.pick(&[0, 200_000, 600_000])),
            forced_unmount: *sim.random(|random| random.pick(&[0, 0, 300_000])),
            loud: damage.is_some(),
            shuffled: sim.chance(300_000),
            devices: sim.chance(500_000),
            joined: later.chance(300_000),
            rot,
            copies: if servers > 2 && newer.chance(300_000) { 3 } else { 2 },
            limits: limits::draw(&mut newer),
            idle_close_max: if newer.chance(250_000) { newer.between(1, 10) * SECOND } else { 0 },
            care_pause_max: if later.chance(500_000) { later.between(1, 10) * SECOND } else { 0 },
            loss,
            rests_after_crash: Random::new(seed ^ LATEST).chance(500_000),
        }
    }
}

/// A pause that is mostly short.
pub fn restart_pause(sim: &Sim) -> Time {
    match sim.below(4) {
        0 => sim.below(100 * MILLISECOND),
        1 => sim.below(3 * SECOND),
        2 => sim.below(8 * SECOND),
        _ => sim.below(if sim.chance(300_000) { 60 } else { 25 } * SECOND),
    }
}

/// Breaks things until it is time to stop, then mends everything.
pub async fn run(world: Rc<World>) {
    let sim = &world.sim;
    let end = sim.now() + world.knobs.fault_time;
    while sim.now() < end {
        sim.sleep(Duration::from_nanos(sim.below(world.knobs.fault_pause_max))).await;
        if world.knobs.faults.is_empty() {
            continue;
        }
        while world.tables.is_held() {
            sim.sleep(Duration::from_millis(100)).await;
        }
        let fault = *sim.random(|random| random.pick(&world.knobs.faults));
        sim.log("faults", || format!("{fault:?}"));
        world.tables.striking.set(true);
        strike(&world, fault).await;
        world.tables.striking.set(false);
    }
    mend(&world).await;
}

async fn strike(world: &Rc<World>, fault: Fault) {
    let sim = &world.sim;
    let server = world.any_server();
    match fault {
        Fault::KillServer => {
            // Often while its disk is slow, and started again at once: what it had begun lands later (F2).
            if sim.chance(500_000) {
                let files = server.machine.files.borrow().all();
                let slow = sim.between(20, 2000);
                files.iter().for_each(|file| file.faults.set(DiskFaults { slow, ..file.faults.get() }));
                sim.sleep(Duration::from_nanos(sim.below(2 * SECOND))).await;
                server.stop();
                files.iter().for_each(|file| file.faults.set(DiskFaults { slow: 1, ..file.faults.get() }));
                if world.net.is_up(server.machine.id) {
                    server.start();
                }
            } else {
                server.stop();
            }
        }
        // What a disk should hold is known exactly only where nothing is torn.
        Fault::CrashServer if world.knobs.is_damaged() && world.is_first(&server) => server.stop(),
        Fault::CrashServer => {
            sim.log("faults", || format!("{} loses its power", server.name()));
            server.stop();
            server.machine.crash(sim, &world.net);
            world.truths.lost(server.id());
            let (own, machine) = (Rc::clone(world), Rc::clone(&server.machine));
            sim.after(restart_pause(sim) + SECOND, move |sim| machine.boot(sim, &own.net));
        }
        Fault::KillManager => world.manager.stop(),
        Fault::CrashManager => {
            world.manager.stop();
            world.manager.machine.crash(sim, &world.net);
            let (own, machine) = (Rc::clone(world), Rc::clone(&world.manager.machine));
            sim.after(restart_pause(sim) + SECOND, move |sim| machine.boot(sim, &own.net));
        }
        Fault::ManagerInCommit => world.manager.light_fuse(sim.below(40)),
        Fault::Partition => {
            let machines = world.servers.len() + 1;
            let island: Vec<bool> = (0..machines).map(|_| sim.chance(400_000)).collect();
            let (out, back) = (sim.chance(800_000), sim.chance(800_000));
            for from in 0..machines {
                for to in 0..machines {
                    if island.get(from) != island.get(to) {
                        let outwards = island.get(from) == Some(&true);
                        if (outwards && out) || (!outwards && back) {
                            world.net.block(from, to);
                        }
                    }
                }
            }
            sim.sleep(Duration::from_nanos(restart_pause(sim))).await;
            sim.log("faults", || "the network is whole".to_owned());
            world.net.heal(sim);
        }
        Fault::Cut => {
            // Several in a row, often while a disk is slow: what an old connection brought is still on its way to the disk.
            let slow = sim.chance(500_000);
            let files = server.machine.files.borrow().all();
            let set = |slow| files.iter().for_each(|file| file.faults.set(DiskFaults { slow, ..file.faults.get() }));
            if slow {
                set(sim.between(20, 2000));
            }
            for _ in 0..sim.between(1, 5) {
                let both = sim.chance(500_000);
                let count = world.net.cut_some(sim, both);
                sim.log("faults", || format!("{count} connections cut (both ends: {both})"));
                sim.sleep(Duration::from_nanos(sim.below(SECOND))).await;
            }
            if slow {
                set(1);
            }
        }
        Fault::Slow | Fault::Stuck => {
            for file in server.machine.files.borrow().all() {
                if fault == Fault::Slow {
                    file.faults.set(DiskFaults { slow: sim.between(2, 300), ..file.faults.get() });
                } else {
                    file.stuck_until.set(sim.now() + restart_pause(sim));
                }
            }
            if fault == Fault::Slow {
                let (own, time) = (Rc::clone(&server), restart_pause(sim));
                sim.after(time, move |_| {
                    for file in own.machine.files.borrow().all() {
                        file.faults.set(DiskFaults { slow: 1, ..file.faults.get() });
                    }
                });
            }
        }
        Fault::WrongDisk => slots::strike(world),
        Fault::Rot | Fault::LostWrites | Fault::Misdirected | Fault::Errors => damage::strike(world, fault),
        Fault::Clock => {
            let jump = sim.below(7_200_000) as i64 - 3_600_000;
            server.machine.wall_skew_ms.set(jump);
            world.manager.machine.wall_skew_ms.set(-jump);
        }
    }
}

/// Nothing goes wrong any more.
async fn mend(world: &Rc<World>) {
    let sim = &world.sim;
    // What was begun at a stuck disk ends with that, and not before.
    let stuck = |server: &Rc<crate::server::Server>| {
        let files = server.machine.files.borrow().all();
        files.iter().map(|file| file.stuck_until.get()).max().unwrap_or(0)
    };
    sim.sleep(Duration::from_nanos(world.servers.iter().map(stuck).max().unwrap_or(0).saturating_sub(sim.now()))).await;
    sim.log("faults", || "all is well from now on".to_owned());
    world.net.heal(sim);
    // First of all: a disk that was elsewhere may have been slow when it went.
    slots::put_back(world);
    for server in &world.servers {
        for file in server.machine.files.borrow().all() {
            file.faults.set(DiskFaults::default());
            file.stuck_until.set(0);
        }
    }
    // W7: an area whose disk failed takes nothing any more until its server was started again.
    for server in &world.servers {
        if server.areas().iter().any(|area| area.report("").offline.is_some()) {
            server.stop();
        }
    }
    // What is off is on its way back already.
    while !world.all_up() {
        sim.sleep(Duration::from_secs(1)).await;
    }
    if world.knobs.has(Fault::WrongDisk) {
        trust(world).await;
    }
    world.mended.set(true);
    while world.knobs.loss.is_some() && !world.tables.is_done() {
        sim.sleep(Duration::from_millis(500)).await;
    }
    world.set_calm();
}

/// An administrator looks so often, once a second, before an area is accepted.
const TRUST_LOOKS: u32 = 15;

/// L2: an administrator looks at the areas that are not trusted, and accepts them once the manager has heard of what lies there
/// now: the right disks are in their places.
async fn trust(world: &Rc<World>) {
    let sim = &world.sim;
    // What is shown of an area that is not trusted does not say which disk it was heard of: every server has polled meanwhile.
    let mut patience = TRUST_LOOKS;
    loop {
        let areas: Vec<_> = world.servers.iter().flat_map(|server| server.areas()).map(|area| area.report("")).collect();
        let expected: usize = world.servers.iter().map(|server| server.entries().len()).sum();
        let is_known = |table: &sublet_table::Table| {
            let known = |report: &sublet_api::server::AreaReport| {
                table.areas.get(&report.area).is_some_and(|row| row.quarantined.is_some() || row.open == report.open)
            };
            areas.len() == expected && areas.iter().all(known)
        };
        let doubted = |table: &sublet_table::Table| {
            table.areas.values().find(|row| row.quarantined.is_some()).map(|row| row.name.to_string())
        };
        match world.manager.table(|table| (is_known(table), doubted(table))) {
            Some((true, None)) => return,
            Some((true, Some(_))) if patience > 0 => patience -= 1,
            Some((true, Some(area))) => {
                let answer = ask_once(world, &world.any_server(), Request::AcceptArea { area: area.clone() }).await;
                sim.log("faults", || format!("area {area} is accepted: {}", answer.is_some_and(|answer| answer.is_ok())));
            }
            _ => patience = TRUST_LOOKS,
        }
        sim.sleep(Duration::from_secs(1)).await;
    }
}
