//! The way from the control threads to the data thread: work is sent there and its result is waited for.

use std::rc::Rc;
use std::sync::mpsc as blocking;
use std::thread;
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::StreamExt as _;
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::Doors as _;
use sublet_doors::real::RealDoors;

use crate::agent::Agent;
use crate::limits::COMMANDS_MAX;

type OnData = Box<dyn FnOnce(&Rc<Agent<RealDoors>>) + Send>;

enum Command {
    Do(OnData),
    Stop(Result<(), Refusal>),
}

/// Sends work to the data thread.
#[derive(Clone)]
pub(crate) struct DataHandle {
    sender: mpsc::Sender<Command>,
}

/// The data thread's end.
pub(crate) struct Commands {
    receiver: mpsc::Receiver<Command>,
}

fn stopped() -> Refusal {
    Refusal::new(ErrorKind::Unreachable, "the server is stopping")
}

impl DataHandle {
    pub(crate) fn new() -> (Self, Commands) {
        let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
        (Self { sender }, Commands { receiver })
    }

    fn send(&self, command: Command) -> Result<(), Refusal> {
        /// The queue is full only while the data thread does something long: control threads can wait.
        const PAUSE: Duration = Duration::from_millis(5);
        let mut sender = self.sender.clone();
        let mut command = command;
        loop {
            match sender.try_send(command) {
                Ok(()) => return Ok(()),
                Err(full) if full.is_full() => {
                    command = full.into_inner();
                    thread::sleep(PAUSE);
                }
                Err(_) => return Err(stopped()),
            }
        }
    }

    /// Starts work on the data thread; `then` is called there with its result and must not block.
    pub(crate) fn start<T>(
        &self,
        work: impl AsyncFnOnce(Rc<Agent<RealDoors>>) -> T + Send + 'static,
        then: impl FnOnce(T) + Send + 'static,
    ) -> Result<(), Refusal> {
        self.send(Command::Do(Box::new(move |agent| {
            let own = Rc::clone(agent);
            agent.doors().spawn(async move { then(work(own).await) });
        })))
    }

    /// Does work on the data thread and waits for its result.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Rc<Agent<RealDoors>>) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (sender, receiver) = blocking::channel();
        self.start(work, move |result| {
            // A caller that has gone needs no answer.
            let _ = sender.send(result);
        })?;
        receiver.recv().map_err(|_| stopped())
    }

    /// Ends the process with this outcome.
    pub(crate) fn stop(&self, outcome: Result<(), Refusal>) {
        // It is stopping already if nobody hears.
        let _ = self.send(Command::Stop(outcome));
    }
}

impl Commands {
    /// Starts what comes, until the process shall stop.
    pub(crate) async fn run(&mut self, agent: &Rc<Agent<RealDoors>>) -> Result<(), Refusal> {
        while let Some(command) = self.receiver.next().await {
            match command {
                Command::Do(work) => work(agent),
                Command::Stop(outcome) => return outcome,
            }
        }
        Ok(())
    }
}
