//! The pool of one run, and the run itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use sublet_types::{Name, VolumeId};

use crate::checks::Checks;
use crate::doors::Machine;
use crate::exec::{MILLISECOND, SECOND, Sim, Stopped, Time, WORLD};
use crate::faults::{self, Knobs, Wanted};
use crate::layout::Layout;
use crate::manager::Manager;
use crate::net::Net;
use crate::operator;
use crate::oracle::Truths;
use crate::server::Server;
use crate::slots::Slots;
use crate::tables::Tables;
use crate::trace::{Detail, Trace};

/// The longest that a run may take, in simulated time: everything heals long before.
const RUN_MAX: Time = 3600 * SECOND;

/// See the module.
pub struct World {
    /// The simulation.
    pub sim: Sim,
    /// Its network.
    pub net: Net,
    /// The manager.
    pub manager: Rc<Manager>,
    /// The servers; server i runs on machine i + 1.
    pub servers: Vec<Rc<Server>>,
    /// What was drawn for this run.
    pub knobs: Knobs,
    /// Disks that are not in their places.
    pub slots: Slots,
    /// What became of the manager's table.
    pub tables: Tables,
    /// What was seen of it.
    pub checks: Rc<Checks>,
    /// What every volume may hold.
    pub truths: Truths,
    violations: Rc<RefCell<Vec<String>>>,
    calm_since: Cell<Option<Time>>,
    /// Nothing is broken any more; what was lost may be missing yet.
    pub(crate) mended: Cell<bool>,
    /// Operators that are not done.
    pub keepers_left: Cell<u64>,
    /// Cells compared with the oracle.
    pub checked: Cell<u64>,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Simulated seconds.
    pub seconds: f64,
    /// What must not be.
    pub violations: Vec<String>,
    /// The hash of the trace, if one was made.
    pub hash: u64,
    /// The trace, if it was wanted.
    pub lines: Vec<String>,
    /// Cells compared with the oracle.
    pub checked: u64,
}

impl World {
    /// Notes what must not be; the run ends.
    pub fn violation(&self, text: String) {
        self.sim.log("VIOLATION", || text.clone());
        self.violations.borrow_mut().push(text);
    }

    /// A server, at random.
    pub fn any_server(&self) -> Rc<Server> {
        Rc::clone(self.sim.random(|random| random.pick(&self.servers)))
    }

    /// Whether it is the server whose disks are damaged.
    pub fn is_first(&self, server: &Rc<Server>) -> bool {
        self.servers.first().is_some_and(|first| Rc::ptr_eq(first, server))
    }

    /// True once nothing goes wrong any more.
    pub fn is_calm(&self) -> bool {
        self.calm_since.get().is_some()
    }

    /// True once nothing is broken any more, and everything is on.
    pub fn is_mended(&self) -> bool {
        self.mended.get() && self.all_up()
    }

    /// For how long nothing has gone wrong.
    pub fn calm_for(&self) -> Time {
        self.calm_since.get().map_or(0, |since| self.sim.now() - since)
    }

    pub(crate) fn set_calm(&self) {
        self.calm_since.set(Some(self.sim.now()));
    }

    pub(crate) fn all_up(&self) -> bool {
        self.net.is_up(self.manager.machine.id) && self.servers.iter().all(|server| self.net.is_up(server.machine.id))
    }

    /// Where a volume lies now, if that is known, and lenders keep what was not flushed.
    pub(crate) fn layout(&self, volume: VolumeId) -> Option<Layout> {
        self.knobs.is_lossless().then(|| self.manager.table(|table| Layout::of(table, volume))).flatten()?
    }

    fn build(sim: &Sim, knobs: Knobs) -> Rc<Self> {
        let net = Net::default();
        net.set_latency(50_000, sim.between(100_000, 5 * MILLISECOND));
        let violations: Rc<RefCell<Vec<String>>> = Rc::default();
        let checks = Rc::new(Checks::default());
        let (told, own) = (Rc::clone(&violations), sim.clone());
        let on_violation = move |text: String| {
            own.log("VIOLATION", || text.clone());
            told.borrow_mut().push(text);
        };
        let seen = Rc::clone(&checks);
        let watch = move |table: &sublet_table::Table| seen.table(table);
        let machine = Machine::new(sim, &net);
        let manager = Manager::new(sim, &net, &machine, Box::new(watch), Box::new(on_violation));
        let truths = Truths::default();
        let names: Vec<Name> = (1..=knobs.servers).filter_map(|n| format!("server-{n}").parse().ok()).collect();
        let servers = names.into_iter().map(|name| Server::new(sim, &net, &manager, &truths, name)).collect();
        Rc::new(Self {
            sim: sim.clone(),
            net,
            manager,
            servers,
            knobs,
            slots: Slots::default(),
            tables: Tables::default(),
            checks,
            truths,
            violations,
            calm_since: Cell::new(None),
            mended: Cell::new(false),
            keepers_left: Cell::new(0),
            checked: Cell::new(0),
        })
    }

    /// Starts everything and lets it run.
    async fn live(self: Rc<Self>) {
        let sim = &self.sim;
        self.manager.start();
        for server in &self.servers {
            server.start();
        }
        for server in &self.servers {
            let areas = sim.between(1, 2);
            for _ in 0..areas {
                let bytes = sim.between(5, 12) << 22;
                let pieces = if self.knobs.joined { sim.between(1, 3) } else { 1 };
                let mut tries = 0;
                while let Some(running) = server.running() {
                    let own = Rc::clone(server);
                    let devices = self.knobs.devices;
                    let lent =
                        crate::client::in_process(&running.doors, async move { own.lend(bytes, devices, pieces).await }).await;
                    match lent {
                        Some(Ok(())) => break,
                        other if tries > 100 => return self.violation(format!("nothing can be lent: {other:?}")),
                        _ => {
                            tries += 1;
                            sim.sleep(Duration::from_millis(200)).await;
                        }
                    }
                }
            }
        }
        sim.sleep(Duration::from_secs(1)).await;
        let own = Rc::clone(&self);
        sim.spawn(WORLD, Rc::clone(&self.manager).supervise(move || faults::restart_pause(&own.sim)));
        for server in &self.servers {
            let own = Rc::clone(&self);
            sim.spawn(WORLD, Rc::clone(server).supervise(move || faults::restart_pause(&own.sim)));
        }
        self.keepers_left.set(self.knobs.volumes);
        for number in 1..=self.knobs.volumes {
            sim.spawn(WORLD, operator::keep(Rc::clone(&self), number));
        }
        if self.knobs.care_pause_max > 0 {
            sim.spawn(WORLD, crate::care::keep(Rc::clone(&self)));
        }
        if let Some(loss) = self.knobs.loss {
            sim.spawn(WORLD, crate::tables::keep(Rc::clone(&self), loss));
        }
        sim.spawn(WORLD, crate::checks::watch(Rc::clone(&self)));
        faults::run(Rc::clone(&self)).await;
    }
}

/// Runs one seed, with what is wanted instead of what the seed says.
pub fn run(seed: u64, detail: Detail, wanted: Wanted) -> Outcome {
    let trace = Trace::new(detail);
    let sim = Sim::new(seed, trace.clone());
    let _log = (detail == Detail::Lines).then(|| crate::log::capture(&trace));
    let knobs = Knobs::draw(&sim, seed, wanted);
    sublet_types::drawn::choose(knobs.limits.clone());
    if knobs.shuffled {
        sim.shuffle();
    }
    sim.log("seed", || format!("{seed}: {knobs:?}"));
    let world = World::build(&sim, knobs);
    sim.spawn(WORLD, Rc::clone(&world).live());
    let own = Rc::clone(&world);
    let begun = Cell::new(false);
    let stopped = sim.run(move || {
        begun.set(begun.get() || own.keepers_left.get() > 0);
        !own.violations.borrow().is_empty()
            || (begun.get() && own.keepers_left.get() == 0 && own.is_calm())
            || own.sim.now() > RUN_MAX
    });
    let mut violations = world.violations.borrow().clone();
    match stopped {
        Stopped::Done if violations.is_empty() && sim.now() > RUN_MAX => {
            violations.push("the run does not end: something does not heal".to_owned());
        }
        Stopped::Done => {}
        Stopped::Dead => violations.push("nothing can run any more: a wake-up was lost".to_owned()),
        Stopped::Spinning => violations.push("tasks run on and on, and time does not".to_owned()),
    }
    if violations.is_empty() {
        violations.extend(crate::checks::at_end(&world));
    }
    let outcome = Outcome {
        seed,
        seconds: sim.now() as f64 / SECOND as f64,
        violations,
        hash: trace.hash(),
        lines: trace.lines(),
        checked: world.checked.get(),
    };
    sim.clear();
    world.manager.stop();
    for server in &world.servers {
        server.stop();
    }
    sim.clear();
    outcome
}
