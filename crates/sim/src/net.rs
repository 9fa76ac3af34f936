//! The network: connections that keep the order of their bytes, and nothing else.
//!
//! Different connections overtake each other. What is sent over a blocked link waits and arrives when the link is whole again,
//! also after its sender has closed the connection and opened another one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};

use sublet_doors::Chunk;
use sublet_doors::local::Signal;

use crate::exec::{MILLISECOND, ProcessId, Sim, Time};

/// A machine's number.
pub type MachineId = usize;

/// Bytes on their way or not yet received that keep a sender waiting.
const WINDOW: usize = 512 << 10;
/// How long the network goes on sending to a machine that is off.
const RESEND: Time = 500 * MILLISECOND;

/// What travels.
enum Item {
    Data(Chunk),
    Fin,
    Reset,
}

/// One direction of a connection.
pub(crate) struct Pipe {
    from: MachineId,
    to: MachineId,
    arrived: RefCell<VecDeque<Chunk>>,
    /// Bytes sent and not taken by the reader yet.
    pub(crate) outstanding: Cell<usize>,
    last_delivery: Cell<Time>,
    /// What waits for the link, by its place in the stream.
    held: RefCell<BTreeMap<u64, Item>>,
    next_item: Cell<u64>,
    pub(crate) ended: Cell<bool>,
    pub(crate) reset: Cell<bool>,
    pub(crate) changed: Signal,
    /// The receiving end.
    end: RefCell<Weak<End>>,
}

impl Pipe {
    fn new(from: MachineId, to: MachineId) -> Rc<Self> {
        Rc::new(Self {
            from,
            to,
            arrived: RefCell::default(),
            outstanding: Cell::new(0),
            last_delivery: Cell::new(0),
            held: RefCell::default(),
            next_item: Cell::new(0),
            ended: Cell::new(false),
            reset: Cell::new(false),
            changed: Signal::new(),
            end: RefCell::default(),
        })
    }

    /// Bytes that have arrived, at most `max`, in parts as they came.
    pub(crate) fn take(&self, max: usize) -> Option<Chunk> {
        let mut arrived = self.arrived.borrow_mut();
        let chunk = arrived.pop_front()?;
        let part = if chunk.len() > max {
            arrived.push_front(chunk.part(max..chunk.len()));
            chunk.part(0..max)
        } else {
            chunk
        };
        self.outstanding.set(self.outstanding.get() - part.len());
        if self.outstanding.get() < WINDOW {
            self.changed.notify();
        }
        Some(part)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.outstanding.get() >= WINDOW
    }
}

/// One end of a connection.
pub(crate) struct End {
    sim: Sim,
    net: Net,
    process: ProcessId,
    pub(crate) machine: MachineId,
    pub(crate) peer: MachineId,
    pub(crate) incoming: Rc<Pipe>,
    pub(crate) outgoing: Rc<Pipe>,
    pub(crate) closed: Cell<bool>,
}

impl End {
    pub(crate) fn send(&self, chunk: Chunk) {
        self.outgoing.outstanding.set(self.outgoing.outstanding.get() + chunk.len());
        self.net.send(&self.sim, &self.outgoing, Item::Data(chunk));
    }

    /// The process closes it. What was sent still travels.
    pub(crate) fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        // A machine that lost its power says nothing: its peers hold a half-open connection.
        if self.net.is_up(self.machine) {
            self.net.send(&self.sim, &self.outgoing, Item::Fin);
        }
        self.incoming.changed.notify();
        self.outgoing.changed.notify();
    }

    /// The connection is cut from outside: this end learns it, the other one perhaps.
    pub(crate) fn cut(&self) {
        for pipe in [&self.incoming, &self.outgoing] {
            pipe.reset.set(true);
            pipe.changed.notify();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
    }
}

/// A listening port.
#[derive(Default)]
pub(crate) struct Port {
    pub(crate) queue: RefCell<VecDeque<Rc<End>>>,
    pub(crate) arrived: Signal,
}

/// A message between two processes that is no byte stream (the manager's requests and answers).
type Message = Box<dyn FnOnce(&Sim)>;

#[derive(Default)]
struct State {
    up: Vec<bool>,
    blocked: BTreeSet<(MachineId, MachineId)>,
    ports: BTreeMap<(MachineId, u16), (ProcessId, Rc<Port>)>,
    pipes: Vec<Weak<Pipe>>,
    ends: Vec<Weak<End>>,
    messages: Vec<(MachineId, MachineId, Message)>,
    latency: (Time, Time),
}

/// The network of a simulation. Clones are the same one.
#[derive(Clone, Default)]
pub struct Net(Rc<RefCell<State>>);

impl Net {
    /// Adds a machine.
    pub fn add(&self) -> MachineId {
        let mut state = self.0.borrow_mut();
        state.up.push(true);
        state.up.len() - 1
    }

    /// The least and the greatest time that a message takes.
    pub fn set_latency(&self, low: Time, high: Time) {
        self.0.borrow_mut().latency = (low, high);
    }

    pub(crate) fn latency(&self, sim: &Sim) -> Time {
        let (low, high) = self.0.borrow().latency;
        // A long tail: now and then something takes much longer.
        let late = if sim.chance(2000) { sim.below(200 * MILLISECOND) } else { 0 };
        sim.between(low, high) + late
    }

    pub(crate) fn set_up(&self, machine: MachineId, up: bool) {
        if let Some(place) = self.0.borrow_mut().up.get_mut(machine) {
            *place = up;
        }
    }

    pub(crate) fn is_up(&self, machine: MachineId) -> bool {
        self.0.borrow().up.get(machine).copied().unwrap_or(false)
    }

    pub(crate) fn is_blocked(&self, from: MachineId, to: MachineId) -> bool {
        self.0.borrow().blocked.contains(&(from, to))
    }

    /// Blocks one direction between two machines.
    pub fn block(&self, from: MachineId, to: MachineId) {
        if from != to {
            self.0.borrow_mut().blocked.insert((from, to));
        }
    }

    /// Everything can be reached again; what waited arrives now.
    pub fn heal(&self, sim: &Sim) {
        self.0.borrow_mut().blocked.clear();
        self.resume(sim);
    }

    /// The same for these two machines only.
    pub fn unblock(&self, sim: &Sim, one: MachineId, other: MachineId) {
        self.0.borrow_mut().blocked.retain(|link| ![(one, other), (other, one)].contains(link));
        self.resume(sim);
    }

    /// Sends on what waits for links that are whole again.
    fn resume(&self, sim: &Sim) {
        let mut state = self.0.borrow_mut();
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.ends.retain(|end| end.strong_count() > 0);
        let pipes: Vec<Rc<Pipe>> = state.pipes.iter().filter_map(Weak::upgrade).collect();
        let messages = std::mem::take(&mut state.messages);
        let is_blocked = |(from, to, _): &(MachineId, MachineId, Message)| state.blocked.contains(&(*from, *to));
        let (waiting, messages) = messages.into_iter().partition::<Vec<_>, _>(is_blocked);
        state.messages = waiting;
        drop(state);
        for pipe in pipes {
            let held = std::mem::take(&mut *pipe.held.borrow_mut());
            for (number, item) in held {
                self.forward(sim, &pipe, number, item);
            }
        }
        for (from, to, message) in messages {
            self.post(sim, from, to, message);
        }
    }

    /// Sends a message that is no byte stream. One to a machine that is off, or whose link is blocked, waits or is lost.
    pub fn post(&self, sim: &Sim, from: MachineId, to: MachineId, message: impl FnOnce(&Sim) + 'static) {
        if self.is_blocked(from, to) {
            if sim.chance(500_000) {
                self.0.borrow_mut().messages.push((from, to, Box::new(message)));
            }
            return;
        }
        let net = self.clone();
        sim.after(self.latency(sim), move |sim| {
            if net.is_blocked(from, to) {
                net.0.borrow_mut().messages.push((from, to, Box::new(message)));
            } else if net.is_up(to) {
                message(sim);
            }
        });
    }

    fn send(&self, sim: &Sim, pipe: &Rc<Pipe>, item: Item) {
        let number = pipe.next_item.get();
        pipe.next_item.set(number + 1);
        self.forward(sim, pipe, number, item);
    }

    fn forward(&self, sim: &Sim, pipe: &Rc<Pipe>, number: u64, item: Item) {
        if self.is_blocked(pipe.from, pipe.to) {
            pipe.held.borrow_mut().insert(number, item);
            return;
        }
        let at = (sim.now() + self.latency(sim)).max(pipe.last_delivery.get());
        pipe.last_delivery.set(at);
        let (net, pipe) = (self.clone(), Rc::clone(pipe));
        sim.at(at, move |sim| net.deliver(sim, &pipe, number, item));
    }

    fn deliver(&self, sim: &Sim, pipe: &Rc<Pipe>, number: u64, item: Item) {
        if self.is_blocked(pipe.from, pipe.to) {
            pipe.held.borrow_mut().insert(number, item);
            return;
        }
        if !self.is_up(pipe.to) {
            if !self.is_up(pipe.from) {
                return;
            }
            let (net, pipe) = (self.clone(), Rc::clone(pipe));
            sim.after(RESEND, move |sim| net.deliver(sim, &pipe, number, item));
            return;
        }
        let end = pipe.end.borrow().upgrade().filter(|end| !end.closed.get() && sim.is_alive(end.process));
        let Some(end) = end else {
            // Nobody there: the kernel answers with a reset, unless this is one.
            if matches!(item, Item::Data(_))
                && let Some(back) = self.back(pipe)
            {
                self.send(sim, &back, Item::Reset);
            }
            return;
        };
        drop(end);
        match item {
            Item::Data(chunk) => pipe.arrived.borrow_mut().push_back(chunk),
            Item::Fin => pipe.ended.set(true),
            Item::Reset => pipe.reset.set(true),
        }
        pipe.changed.notify();
    }

    /// The other direction of a pipe whose receiving end is gone.
    fn back(&self, pipe: &Rc<Pipe>) -> Option<Rc<Pipe>> {
        let state = self.0.borrow();
        let sender = state.ends.iter().filter_map(Weak::upgrade).find(|end| Rc::ptr_eq(&end.outgoing, pipe))?;
        Some(Rc::clone(&sender.incoming))
    }

    pub(crate) fn listen(&self, process: ProcessId, machine: MachineId, port: u16) -> Option<Rc<Port>> {
        let mut state = self.0.borrow_mut();
        if state.ports.contains_key(&(machine, port)) {
            return None;
        }
        let own = Rc::new(Port::default());
        state.ports.insert((machine, port), (process, Rc::clone(&own)));
        Some(own)
    }

    pub(crate) fn unlisten(&self, machine: MachineId, port: u16) {
        let gone = self.0.borrow_mut().ports.remove(&(machine, port));
        drop(gone);
    }

    /// The process that listens there.
    pub(crate) fn listener(&self, machine: MachineId, port: u16) -> Option<(ProcessId, Rc<Port>)> {
        self.0.borrow().ports.get(&(machine, port)).cloned()
    }

    /// A new connection; both its ends.
    pub(crate) fn pair(&self, sim: &Sim, caller: (ProcessId, MachineId), called: (ProcessId, MachineId)) -> (Rc<End>, Rc<End>) {
        let (up, down) = (Pipe::new(caller.1, called.1), Pipe::new(called.1, caller.1));
        let end = |(process, machine): (ProcessId, MachineId), peer, incoming: &Rc<Pipe>, outgoing: &Rc<Pipe>| {
            let end = Rc::new(End {
                sim: sim.clone(),
                net: self.clone(),
                process,
                machine,
                peer,
                incoming: Rc::clone(incoming),
                outgoing: Rc::clone(outgoing),
                closed: Cell::new(false),
            });
            *incoming.end.borrow_mut() = Rc::downgrade(&end);
            end
        };
        let near = end(caller, called.1, &down, &up);
        let far = end(called, caller.1, &up, &down);
        let mut state = self.0.borrow_mut();
        if state.ends.len() > 512 {
            state.pipes.retain(|pipe| pipe.strong_count() > 0);
            state.ends.retain(|end| end.strong_count() > 0);
        }
        state.pipes.extend([Rc::downgrade(&up), Rc::downgrade(&down)]);
        state.ends.extend([Rc::downgrade(&near), Rc::downgrade(&far)]);
        drop(state);
        (near, far)
    }

    /// Cuts connections at random; `both` ends learn it, or one.
    pub fn cut_some(&self, sim: &Sim, both: bool) -> usize {
        let chance = *sim.random(|random| random.pick(&[200_000, 700_000]));
        let ends: Vec<Rc<End>> = self.0.borrow().ends.iter().filter_map(Weak::upgrade).filter(|end| !end.closed.get()).collect();
        let mut count = 0;
        for end in &ends {
            if !sim.chance(chance) {
                continue;
            }
            count += 1;
            end.cut();
            let peer = ends.iter().find(|other| Rc::ptr_eq(&other.incoming, &end.outgoing));
            if let (true, Some(peer)) = (both, peer) {
                peer.cut();
            }
        }
        count
    }
}
