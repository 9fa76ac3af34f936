//! What people do: lend, borrow, mount, use, unmount (cleanly, by force, or not at all), hand over, return.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sublet_api::access::Caller;
use sublet_api::mount::MountingInformation;
use sublet_api::request::{Borrow, Mount, Replace, Request, Response, Return, TaskOutcome, Transfer, Unmount};
use sublet_api::{ErrorKind, Refusal};
use sublet_table::Table;
use sublet_types::limits::POLL_INTERVAL;
use sublet_types::{Epoch, Name, TaskId, VolumeId, Way};
use sublet_volume::VolumeOptions;

use crate::client::Client;
use crate::doors::SimDoors;
use crate::exec::{SECOND, Sim};
use crate::layout::Layout;
use crate::oracle::Oracle;
use crate::server::Server;
use crate::workload::{Style, Work};
use crate::world::World;

/// The pause after a refusal.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long copies that come late are waited for.
const LATE_TIME_MAX: Duration = Duration::from_secs(20);

/// One volume during its life, and who takes care of it.
pub struct Keeper {
    world: Rc<World>,
    number: u64,
    name: Name,
    size: u64,
    way: Way,
    oracle: Rc<RefCell<Oracle>>,
    style: Style,
    options: VolumeOptions,
    /// A client that was unmounted by force and lives on.
    ghost: RefCell<Option<(Rc<Work>, Rc<Client>)>>,
    /// Where it lay when the mount was to be ended by force.
    forced_at: RefCell<Option<Layout>>,
}

/// How a mount ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// Everything is durable.
    Clean,
    /// The process or its machine died, or it was fenced.
    Crashed,
}

impl Keeper {
    fn sim(&self) -> &Sim {
        &self.world.sim
    }

    fn log(&self, text: impl FnOnce() -> String) {
        self.sim().log("operator", || format!("{}: {}", self.name, text()));
    }

    async fn pause(&self, time: Duration) {
        self.sim().sleep(time).await;
    }

    /// Asks the manager from a server's machine, again and again until it answers.
    async fn ask(&self, at: &Rc<Server>, request: impl Fn() -> Request) -> Result<TaskOutcome, Refusal> {
        loop {
            match ask_once(&self.world, at, request()).await {
                Some(Ok(Response::Task(task))) => match task.outcome {
                    TaskOutcome::Running => {}
                    TaskOutcome::Failed { refusal } => return Err(refusal),
                    outcome => return Ok(outcome),
                },
                Some(Ok(_)) => return Err(Refusal::new(ErrorKind::Internal, "the manager answered something else")),
                Some(Err(refusal)) if refusal.kind == ErrorKind::Unreachable => self.pause(RETRY_PAUSE).await,
                Some(Err(refusal)) => return Err(refusal),
                None => self.pause(RETRY_PAUSE).await,
            }
        }
    }

    fn task(&self) -> TaskId {
        TaskId::from_u128(self.sim().random(|random| random.next_u128()))
    }

    /// As [`Keeper::ask`], with a new task after each refusal until it succeeds.
    async fn insist(&self, what: &str, at: &Rc<Server>, request: impl Fn(TaskId) -> Request) -> Result<TaskOutcome, Refusal> {
        let mut left = 200;
        loop {
            let task = self.task();
            match self.ask(at, || request(task)).await {
                Ok(outcome) => return Ok(outcome),
                Err(refusal) => {
                    self.log(|| format!("{what}: {refusal}"));
                    if self.world.knobs.loss.is_some() && refusal.message.contains("is mounted at") {
                        // No label had been told of its end when the table was lost.
                        self.unmount(at, None, true).await?;
                    }
                    if self.world.knobs.loss.is_some() && what == "mount" && refusal.message.contains("is lent to") {
                        // An older table had answered that it was handed over already.
                        let (task, to) = (self.task(), at.name().to_string());
                        let transfer = || Transfer { task, to: to.clone(), force: true };
                        let request = || Request::Transfer { volume: self.name.to_string(), transfer: transfer() };
                        let answer = self.ask(at, request).await;
                        self.log(|| format!("handed over again: {answer:?}"));
                    }
                    left -= 1;
                    if left == 0 || self.is_lost_task(&refusal) {
                        return Err(refusal);
                    }
                    self.pause(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Whether what was asked for had been done by a task that nobody remembers.
    fn is_lost_task(&self, refusal: &Refusal) -> bool {
        let is_done = refusal.message.contains("already") && refusal.hint.contains("nothing to be done");
        self.world.knobs.loss.is_some() && (is_done || refusal.kind == ErrorKind::AlreadyExists)
    }

    async fn borrow(&self, at: &Rc<Server>) -> Result<(), Refusal> {
        let request = |task| {
            let copies = (self.way == Way::Doubled).then_some(self.world.knobs.copies);
            let (name, size, way) = (Some(self.name.clone()), Some(self.size), Some(self.way));
            Request::Borrow(Borrow { task, server: at.id(), name, size, way, copies, local: true, seal: None })
        };
        loop {
            match self.insist("borrow", at, request).await {
                // The table was lost while it was being made: it is dissolved, because nobody has ever had it.
                Err(refusal) if self.is_lost_task(&refusal) && self.is_frozen(at).await => self.pause(RETRY_PAUSE).await,
                // It was borrowed: the task that did it is lost with the table.
                Err(refusal) if self.is_lost_task(&refusal) => return Ok(()),
                answer => return answer.map(drop),
            }
        }
    }

    async fn is_frozen(&self, at: &Rc<Server>) -> bool {
        self.state(at).await.is_some_and(|state| state.starts_with("frozen"))
    }

    /// The state of the volume in the table; none if the manager does not answer.
    async fn state(&self, at: &Rc<Server>) -> Option<String> {
        match ask_once(&self.world, at, Request::Volume(self.name.to_string())).await {
            Some(Ok(Response::Volume(view))) => Some(view.state),
            _ => None,
        }
    }

    async fn mount(&self, at: &Rc<Server>) -> Result<MountingInformation, Refusal> {
        let request =
            |task| Request::Mount { volume: self.name.to_string(), mount: Mount { task, server: at.id(), read_only: false } };
        match self.insist("mount", at, request).await? {
            TaskOutcome::Mounted { mounting } => Ok(*mounting),
            other => Err(Refusal::new(ErrorKind::Internal, format!("a mount ended with {other:?}"))),
        }
    }

    /// True if the answer says that every lender has closed the path.
    async fn unmount(&self, at: &Rc<Server>, epoch: Option<Epoch>, force: bool) -> Result<bool, Refusal> {
        let server = (!force).then_some(at.id());
        let request = |task| Request::Unmount { volume: self.name.to_string(), unmount: Unmount { task, server, epoch, force } };
        let mut left = 200;
        loop {
            let task = self.task();
            match self.ask(at, || request(task)).await {
                Ok(TaskOutcome::Unmounted { unmounting }) => return Ok(unmounting.unreachable.is_empty()),
                Ok(other) => return Err(Refusal::new(ErrorKind::Internal, format!("an unmount ended with {other:?}"))),
                // The mount has ended already.
                Err(refusal) if refusal.kind == ErrorKind::StaleEpoch => return Ok(false),
                Err(refusal) if refusal.message.contains("is not mounted") => return Ok(false),
                Err(refusal) => {
                    self.log(|| format!("unmount: {refusal}"));
                    left -= 1;
                    if left == 0 {
                        return Err(refusal);
                    }
                    self.pause(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn transfer(&self, at: &Rc<Server>, to: &Rc<Server>) -> Result<(), Refusal> {
        let request = |task| Request::Transfer {
            volume: self.name.to_string(),
            transfer: Transfer { task, to: to.name().to_string(), force: false },
        };
        match self.insist("transfer", at, request).await {
            Err(refusal) if self.is_lost_task(&refusal) => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn give_back(&self, at: &Rc<Server>) -> Result<(), Refusal> {
        let request = |task| Request::Return {
            volume: self.name.to_string(),
            give_back: Return { task, server: Some(at.id()), dissolve: false },
        };
        self.insist("return", at, request).await.map(drop)
    }

    /// Starts the client; it is tried again as its user would.
    async fn open(&self, at: &Rc<Server>, info: &MountingInformation) -> Option<Rc<Client>> {
        let world = &self.world;
        let started = Client::start(self.sim(), &world.net, &at.machine, &world.manager, info.clone(), self.options).await?;
        match started {
            Ok(client) => Some(client),
            Err(error) => {
                self.log(|| format!("the client did not start: {error}"));
                None
            }
        }
    }

    /// Where the volume lies at the end of a mount that did not end cleanly: what has changed since it was to be ended by force was
    /// done by others (F5), who may not have what a lender has lost.
    fn left(&self, info: &MountingInformation) -> Option<Layout> {
        let before = self.forced_at.take();
        let now = self.world.layout(info.volume)?;
        Some(match before {
            Some(before) => now.unchanged_since(&before),
            None => now,
        })
    }

    /// Why a mount is ended by force: the manager and the client's machine do not hear each other. They do after a while.
    fn cut_off(&self, at: &Rc<Server>) {
        let (net, own, manager) = (self.world.net.clone(), at.machine.id, self.world.manager.machine.id);
        net.block(own, manager);
        net.block(manager, own);
        let time = SECOND + self.sim().below(10 * SECOND);
        self.sim().after(time, move |sim| net.unblock(sim, own, manager));
    }

    /// Uses a mounted volume for a while, and ends that in one way or another.
    async fn session(&self, at: &Rc<Server>, client: &Rc<Client>) -> Result<Ended, Refusal> {
        let work = Work::start(&self.world, client, &self.oracle, self.style);
        let end = self.sim().now() + self.sim().between(SECOND, if self.style.quiet > 0 { 60 } else { 20 } * SECOND);
        let last = self.world.is_calm();
        let crash = !last && self.sim().chance(self.world.knobs.borrower_crash);
        let force = !last && !crash && self.sim().chance(self.world.knobs.forced_unmount);
        while self.sim().now() < end && client.is_alive() {
            self.pause(Duration::from_millis(100)).await;
        }
        self.judge(&work, client).await;
        if !client.is_alive() {
            return Ok(Ended::Crashed);
        }
        if crash {
            self.log(|| "the client is killed".to_owned());
            client.kill();
            return Ok(Ended::Crashed);
        }
        if force {
            self.log(|| "unmounted by force".to_owned());
            // The command may be given on any machine: the client's own may not reach the manager at all.
            let by = if self.sim().chance(700_000) { self.world.any_server() } else { Rc::clone(at) };
            let is_cut_off = by.id() != at.id() && self.sim().chance(500_000);
            if is_cut_off {
                self.cut_off(at);
            }
            self.forced_at.replace(Some(self.world.layout(client.info.volume).unwrap_or_default()));
            let all_told = self.unmount(&by, None, true).await?;
            // F3: one copy in sync of each segment is enough, if the table is not older than what it says that of.
            let is_fenced = all_told || (self.world.knobs.loss.is_none() && self.state(&by).await.as_deref() == Some("ready"));
            // F4: it notices by itself; what it still does is of no effect.
            if self.sim().chance(500_000) {
                // F1: from the answer on. If a lender could not be fenced, only from the next mount on (F3).
                if is_fenced {
                    work.haunt();
                }
                self.ghost.replace(Some((work, Rc::clone(client))));
                // F1: what it can do no more does not depend on when the next one comes either.
                if is_cut_off {
                    self.pause(Duration::from_nanos(self.sim().below(5 * SECOND))).await;
                }
            } else {
                self.pause(Duration::from_millis(self.sim().below(3000))).await;
                client.kill();
            }
            return Ok(Ended::Crashed);
        }
        work.stop();
        let patience = self.sim().now() + if last { 400 } else { 40 } * SECOND;
        while !work.is_quiet() && client.is_alive() && self.sim().now() < patience {
            self.pause(Duration::from_millis(100)).await;
        }
        self.judge(&work, client).await;
        if !client.is_alive() {
            return Ok(Ended::Crashed);
        }
        if !work.is_quiet() {
            if last && !self.world.knobs.loud {
                let reason = client.volume.status();
                self.world.violation(format!("requests of volume {} do not end: {reason:?}", self.name));
            }
            client.kill();
            return Ok(Ended::Crashed);
        }
        if last {
            self.settle(client).await;
            let own = Rc::clone(&work);
            crate::client::in_process(&client.doors, async move { own.read_all().await }).await;
            self.judge(&work, client).await;
        }
        if client.stop().await == Some(true) {
            let mark = self.oracle.borrow_mut().mark();
            self.oracle.borrow_mut().flushed(mark);
            self.unmount(at, Some(client.info.epoch), false).await?;
            return Ok(Ended::Clean);
        }
        if last && !self.world.knobs.loud {
            self.world.violation(format!("volume {} cannot be closed although nothing is wrong", self.name));
        }
        Ok(Ended::Crashed)
    }

    /// An order of a former table has wiped a slice that the present one had found in its label: events say that it is missing, and
    /// it is made anew: where there is room, or else in any area that is allowed when it is named.
    async fn replace_stale(&self, volume: VolumeId) {
        let of = |table: &Table| {
            let (_, leg) = table.volumes.get(&volume)?.legs().find(|(_, leg)| !leg.in_sync)?;
            let areas: Vec<String> = table.areas.values().map(|row| row.name.to_string()).collect();
            Some((table.lender_name(leg.area), areas))
        };
        let Some((lost, areas)) = self.world.manager.table(of).flatten() else { return };
        for on in std::iter::once(None).chain(areas.into_iter().map(Some)) {
            let replace = Replace { task: self.task(), lost: lost.clone(), on };
            let request = Request::Replace { volume: self.name.to_string(), replace };
            let answer = ask_once(&self.world, &self.world.any_server(), request).await;
            self.log(|| format!("a copy is made anew: {answer:?}"));
            if !matches!(answer, Some(Err(_))) {
                return;
            }
        }
    }

    /// Once nothing is wrong any more, all copies become equal.
    async fn settle(&self, client: &Rc<Client>) {
        let patience = self.sim().now() + 400 * SECOND;
        let mut replace_at = self.sim().now() + 100 * SECOND;
        let volume = client.info.volume;
        loop {
            let stale = self
                .world
                .manager
                .table(|table| table.volumes.get(&volume).map(|row| row.legs().filter(|(_, leg)| !leg.in_sync).count()));
            if stale.flatten() == Some(0) || !client.is_alive() {
                return;
            }
            if self.sim().now() > patience && self.world.knobs.loud {
                return;
            }
            if self.world.knobs.loss.is_some() && self.sim().now() > replace_at {
                replace_at += 100 * SECOND;
                self.replace_stale(volume).await;
            }
            if self.sim().now() > patience {
                let status = client.volume.status();
                return self.world.violation(format!("the copies of volume {} do not become equal: {status:?}", self.name));
            }
            self.pause(Duration::from_millis(500)).await;
        }
    }

    /// Requests must not fail, except where nobody could help it.
    async fn judge(&self, work: &Work, client: &Rc<Client>) {
        let is_taken = self.world.tables.is_taken(&self.name);
        let errors = std::mem::take(&mut *work.errors.borrow_mut());
        if let Some(error) = errors.first() {
            if !self.world.knobs.loud && !is_taken {
                self.world.violation(format!("a request of volume {} failed: {error}", self.name));
            }
            // Whoever sees an error ends the use, and begins it anew.
            client.kill();
        }
        if client.is_alive() && client.is_fenced().await {
            if !is_taken {
                self.world.violation(format!("volume {} was fenced although nobody took it over", self.name));
            }
            client.kill();
        }
    }

    /// The whole life of a volume.
    async fn life(&self) -> Result<(), Refusal> {
        let world = Rc::clone(&self.world);
        let mut at = world.any_server();
        world.tables.set_wanted(&self.name, false);
        self.borrow(&at).await?;
        world.tables.set_wanted(&self.name, true);
        self.log(|| format!("borrowed by {}: {} bytes, {}", at.name(), self.size, self.way));
        let mut calm_rounds = 0;
        loop {
            let calm = world.is_calm();
            let info = self.mount(&at).await?;
            world.tables.set_used(info.volume);
            if let Some((work, client)) = self.ghost.take() {
                work.haunt();
                self.oracle.borrow_mut().crashed(world.layout(info.volume));
                self.sim().after(self.sim().below(30 * SECOND), move |_| client.kill());
                // F1: what the former client can do no more does not depend on when the next one opens its sessions.
                if self.sim().chance(300_000) {
                    self.pause(Duration::from_nanos(self.sim().below(5 * SECOND))).await;
                }
            }
            self.log(|| format!("mounted by {} (epoch {})", at.name(), info.epoch.number));
            let ended = match self.open(&at, &info).await {
                Some(client) => self.session(&at, &client).await?,
                None if calm && world.calm_for() > 300 * SECOND && world.knobs.loud => return Ok(()),
                None if calm && world.calm_for() > 300 * SECOND => {
                    world.violation(format!("volume {} cannot be opened although nothing is wrong", self.name));
                    return Ok(());
                }
                None => {
                    self.pause(RETRY_PAUSE).await;
                    continue;
                }
            };
            self.log(|| format!("the mount ended: {ended:?}"));
            if ended == Ended::Crashed {
                self.oracle.borrow_mut().crashed(self.left(&info));
                if self.sim().chance(500_000) {
                    self.unmount(&at, None, true).await?;
                }
                if !calm && world.knobs.rests_after_crash {
                    // More goes wrong before somebody makes its copies equal.
                    self.pause(Duration::from_nanos(self.sim().below(20 * SECOND))).await;
                }
            }
            if calm {
                calm_rounds += 1;
            }
            if calm_rounds > 1 {
                return Ok(());
            }
            let mounted = ended == Ended::Crashed;
            if !mounted && self.sim().chance(if calm { 700_000 } else { 300_000 }) {
                let to = world.any_server();
                if to.id() != at.id() {
                    self.transfer(&at, &to).await?;
                    at = to;
                }
            } else if !mounted && !calm && self.sim().chance(100_000) {
                world.tables.set_wanted(&self.name, false);
                return self.give_back(&at).await;
            }
        }
    }
}

/// One try of a command at a server's machine; nothing if the machine is off or loses its power meanwhile.
pub(crate) async fn ask_once(world: &World, at: &Server, request: Request) -> Option<Result<Response, Refusal>> {
    if !world.net.is_up(at.machine.id) {
        return None;
    }
    let doors = SimDoors::start(&world.sim, &world.net, &at.machine, "command".to_owned());
    let (manager, own) = (Rc::clone(&world.manager), doors.clone());
    let answer =
        crate::client::in_process(&doors, async move { manager.call(&own, Caller::Manager, request, POLL_INTERVAL).await }).await;
    at.machine.kill(&world.sim, doors.process());
    answer
}

/// Keeps one volume after the other, until the world is calm and the last one was checked.
pub async fn keep(world: Rc<World>, number: u64) {
    let mut generation = 0;
    loop {
        generation += 1;
        let sim = &world.sim;
        let Ok(name) = format!("vol-{number}-{generation}").parse::<Name>() else { return };
        let way = *sim.random(|random| random.pick(&world.knobs.ways));
        let size = sim.between(1, world.knobs.volume_regions) << 22;
        let tag = sim.random(|random| random.bits());
        let keeper = Keeper {
            world: Rc::clone(&world),
            number,
            name,
            size,
            way,
            oracle: Rc::new(RefCell::new(Oracle::new(tag))),
            style: Style::draw(sim, size),
            options: VolumeOptions {
                idle_close: Some(sim.below(world.knobs.idle_close_max)).filter(|time| *time > 0).map(Duration::from_nanos),
                ..VolumeOptions::default()
            },
            ghost: RefCell::new(None),
            forced_at: RefCell::new(None),
        };
        world.truths.enter(&keeper.oracle);
        let result = keeper.life().await;
        world.checked.set(world.checked.get() + keeper.oracle.borrow().checked);
        if let Err(refusal) = result {
            sim.log("operator", || format!("{}: given up: {refusal}", keeper.name));
            let hopeless = matches!(refusal.kind, ErrorKind::NoSpace | ErrorKind::NotFound | ErrorKind::BadRequest);
            if world.is_calm() && !hopeless && !world.knobs.loud {
                world.violation(format!("volume {}: {refusal}", keeper.name));
            }
        }
        if world.is_calm() {
            break;
        }
        sim.log("operator", || format!("keeper {} goes on", keeper.number));
    }
    if world.knobs.loss.is_some() {
        // A copy that was missing may come back as soon as its volume is not mounted.
        world.sim.sleep(LATE_TIME_MAX).await;
    }
    world.keepers_left.set(world.keepers_left.get() - 1);
}
