//! Faults at random, from a seed: up to four at a time, each of which ends by itself.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::nets::Nets;
use super::site::{Daemon, LENDERS, SERVERS, Site, VOLUMES};
use super::writer::Load;
use crate::process::Process;
use crate::random::Random;

/// Faults at the same time.
const AT_ONCE: usize = 4;

/// What ends a fault.
enum Cure {
    Start(Daemon),
    Thaw(Process),
    Join(Vec<(usize, usize)>),
}

struct Fault {
    what: String,
    ends: Instant,
    cure: Cure,
    daemon: Option<Daemon>,
}

/// The source of all faults.
pub struct Chaos<'a> {
    site: &'a Site,
    load: &'a Load<'a>,
    random: Random,
    faults: Vec<Fault>,
    cut: BTreeSet<(usize, usize)>,
    /// How many there were.
    pub count: u32,
}

impl<'a> Chaos<'a> {
    /// No fault yet.
    pub fn new(site: &'a Site, load: &'a Load<'a>, seed: u64) -> Self {
        Self { site, load, random: Random::new(seed), faults: Vec::new(), cut: BTreeSet::new(), count: 0 }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.random.below(to - from))
    }

    /// Makes faults for that long, or until the load is over because somebody has failed; then ends all of them.
    pub fn torment(&mut self, time: Duration) {
        let begun = Instant::now();
        let mut next = begun;
        while begun.elapsed() < time && !self.load.over.load(Ordering::SeqCst) {
            self.end(|fault| fault.ends <= Instant::now());
            if Instant::now() >= next {
                if self.faults.len() < AT_ONCE {
                    self.begin();
                }
                next = Instant::now() + self.millis(50, 900);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end(|_| true);
    }

    fn end(&mut self, which: impl Fn(&Fault) -> bool) {
        let (over, stay) = std::mem::take(&mut self.faults).into_iter().partition(|fault| which(fault));
        self.faults = stay;
        let over: Vec<Fault> = over;
        for fault in over {
            self.load.timeline.note(format!("end of: {}", fault.what));
            match fault.cure {
                Cure::Start(daemon) => self.site.start(daemon),
                Cure::Thaw(process) => process.thaw(),
                Cure::Join(pairs) => {
                    for (from, to) in pairs {
                        self.cut.remove(&(from, to));
                        self.nets().join(from, to);
                    }
                }
            }
        }
    }

    fn nets(&self) -> &'a Nets {
        self.site.pool.nets().expect("cuts are made in namespaces only")
    }

    fn daemon(&mut self) -> Daemon {
        match self.random.below(SERVERS as u64 + 1) as usize {
            0 => Daemon::Manager,
            server => Daemon::Server(server - 1),
        }
    }

    /// A daemon that runs and is in no fault.
    fn healthy(&self, daemon: Daemon) -> Option<Process> {
        let free = self.faults.iter().all(|fault| fault.daemon != Some(daemon));
        free.then(|| self.site.process(daemon)).flatten()
    }

    fn begin(&mut self) {
        match self.random.below(15) {
            0..=3 => {
                let daemon = self.daemon();
                self.kill(daemon, false);
            }
            4 => self.kill(Daemon::Manager, false),
            5..=6 => {
                let lender = LENDERS.start + self.random.below(LENDERS.len() as u64) as usize;
                self.kill(Daemon::Server(lender), true);
            }
            7..=8 => self.freeze(),
            9 => self.freeze_client(),
            10..=11 => self.kill_client(),
            12 => self.terminate(),
            _ if self.site.pool.nets().is_some() => self.partition(),
            _ => {}
        }
    }

    fn add(&mut self, what: String, time: Duration, cure: Cure, daemon: Option<Daemon>) {
        self.count += 1;
        self.load.timeline.note(format!("{what} for {time:.1?}"));
        self.faults.push(Fault { what, ends: Instant::now() + time, cure, daemon });
    }

    fn kill(&mut self, daemon: Daemon, reboot: bool) {
        let away = self.millis(0, 4000);
        let boot = self.random.bits();
        let Some(process) = self.healthy(daemon) else { return };
        process.kill();
        let what = match daemon {
            Daemon::Server(server) if reboot => {
                self.site.reboot(server, boot);
                "reboot"
            }
            _ => "kill",
        };
        self.add(format!("{what} {daemon}"), away, Cure::Start(daemon), Some(daemon));
    }

    /// Asked to end, as an upgrade does.
    fn terminate(&mut self) {
        let (daemon, away) = (self.daemon(), self.millis(300, 2000));
        let Some(process) = self.healthy(daemon) else { return };
        process.signal(Signal::TERM);
        let gone = crate::wait::holds_within(Duration::from_secs(30), || !process.runs());
        assert!(gone, "{daemon} does not end when asked to");
        self.add(format!("terminate {daemon}"), away, Cure::Start(daemon), Some(daemon));
    }

    fn freeze(&mut self) {
        let daemon = self.daemon();
        // Longer than a doubled volume waits for a silent lender, now and then.
        let time = if self.random.below(7) == 0 { self.millis(10_000, 14_000) } else { self.millis(200, 4000) };
        let Some(process) = self.healthy(daemon) else { return };
        process.signal(Signal::STOP);
        self.add(format!("freeze {daemon}"), time, Cure::Thaw(process), Some(daemon));
    }

    fn freeze_client(&mut self) {
        let plan = VOLUMES[self.random.below(VOLUMES.len() as u64) as usize];
        let time = self.millis(200, 3000);
        let home = self.site.pool.mount_dir(plan.borrower, plan.name);
        let Some(process) = Process::of(&home) else { return };
        process.signal(Signal::STOP);
        self.add(format!("freeze the client of {}", plan.name), time, Cure::Thaw(process), None);
    }

    /// Its user mounts the volume again. fio would not: its volume is left alone.
    fn kill_client(&mut self) {
        let plan = VOLUMES[self.random.below(VOLUMES.len() as u64) as usize];
        let home = self.site.pool.mount_dir(plan.borrower, plan.name);
        if plan.name == "fio" || self.load.killed.lock().unwrap().contains(plan.name) {
            return;
        }
        let Some(process) = Process::of(&home) else { return };
        self.load.killed.lock().unwrap().insert(plan.name.to_owned());
        self.load.timeline.note(format!("kill the client of {}", plan.name));
        process.kill();
        self.count += 1;
    }

    fn partition(&mut self) {
        let time = if self.random.below(7) == 0 { self.millis(10_000, 14_000) } else { self.millis(200, 5000) };
        let one = self.random.below(SERVERS as u64 + 1) as usize;
        let other = self.random.below(SERVERS as u64 + 1) as usize;
        let (what, mut pairs): (_, Vec<(usize, usize)>) = match self.random.below(4) {
            0 => ("cut off from all", (0..=SERVERS).flat_map(|node| [(one, node), (node, one)]).collect()),
            1 => ("nothing from it is heard", (0..=SERVERS).map(|node| (one, node)).collect()),
            2 => ("one way", vec![(one, other)]),
            _ => ("both ways", vec![(one, other), (other, one)]),
        };
        pairs.retain(|(from, to)| from != to && !self.cut.contains(&(*from, *to)));
        pairs.sort_unstable();
        pairs.dedup();
        if pairs.is_empty() {
            return;
        }
        for (from, to) in &pairs {
            self.cut.insert((*from, *to));
            self.nets().cut(*from, *to);
        }
        self.add(format!("partition, {what}: {pairs:?}"), time, Cure::Join(pairs), None);
    }
}
