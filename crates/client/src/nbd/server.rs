//! The listening socket and its connections.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use sublet_doors::local::{Semaphore, Signal};
use sublet_doors::{Doors, Endpoint, Listener};

use super::connection::{self, Line};
use super::negotiation::Export;
use crate::device::BlockDevice;

/// Bytes of NBD requests in flight, of all connections together; a reader waits beyond. With the block device's
/// [`FUSE_BYTES_MAX`](crate::fuse::FUSE_BYTES_MAX) they are 56 MiB.
pub const NBD_BYTES_MAX: u64 = 40 << 20;
/// Connections at the same time; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 128;
/// Pause after an accept that failed (for example for want of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
pub(super) struct Shared<D, B> {
    pub(super) doors: D,
    pub(super) device: Rc<B>,
    pub(super) export: Export,
    pub(super) budget: Semaphore,
    lines: RefCell<Vec<Rc<Line>>>,
    stopping: Cell<bool>,
    /// `stopping` or `lines` has changed.
    changed: Signal,
}

impl<D: Doors, B> Shared<D, B> {
    pub(super) async fn until_stopping(&self) {
        loop {
            let seen = self.changed.version();
            if self.stopping.get() {
                return;
            }
            self.changed.changed(seen).await;
        }
    }

    /// Others wait for room: closes the connections whose clients take no replies.
    pub(super) fn end_stalled(&self) {
        let now = self.doors.now();
        for line in self.lines.borrow().iter().filter(|line| line.is_stalled(now)) {
            tracing::warn!("an NBD client takes no replies while others wait for room; its connection is closed");
            line.kill();
        }
    }
}

/// A running NBD server.
pub struct Server<D, B> {
    shared: Rc<Shared<D, B>>,
}

impl<D: Doors, B: BlockDevice> Server<D, B> {
    /// Listens at `at` and serves `device` under the empty name and under `name`, in tasks of their own.
    ///
    /// # Errors
    /// What the operating system says to listening there.
    pub async fn start(doors: D, device: Rc<B>, name: &str, at: &Endpoint) -> io::Result<Self> {
        let listener = doors.listen(at).await?;
        let export = Export { name: name.to_owned(), size: device.size(), read_only: device.read_only() };
        let shared = Rc::new(Shared {
            doors: doors.clone(),
            device,
            export,
            budget: Semaphore::new(NBD_BYTES_MAX),
            lines: RefCell::default(),
            stopping: Cell::new(false),
            changed: Signal::new(),
        });
        doors.spawn(accept(Rc::clone(&shared), listener));
        Ok(Self { shared })
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.lines.borrow().len()
    }

    /// Accepts and reads nothing more, answers what is in flight, and closes all connections; those that have not ended after
    /// `patience` are cut off.
    pub async fn stop(&self, patience: Duration) {
        let shared = &self.shared;
        shared.stopping.set(true);
        shared.changed.notify();
        let all_gone = async {
            loop {
                let seen = shared.changed.version();
                if shared.lines.borrow().is_empty() {
                    break;
                }
                shared.changed.changed(seen).await;
            }
        };
        if shared.doors.timeout(patience, all_gone).await.is_err() {
            self.cut_off();
        }
    }

    /// Closes all connections now, and accepts no more (F4).
    pub fn cut_off(&self) {
        self.shared.stopping.set(true);
        self.shared.changed.notify();
        for line in self.shared.lines.borrow().iter() {
            line.kill();
        }
    }
}

async fn accept<D: Doors, B: BlockDevice>(shared: Rc<Shared<D, B>>, listener: D::Listener) {
    // Too many are told of once, until there is room again.
    let mut full = false;
    loop {
        let next = match select(pin!(listener.accept()), pin!(shared.until_stopping())).await {
            Either::Left((next, _)) => next,
            Either::Right(((), _)) => return,
        };
        let conn = match next {
            Ok(conn) => conn,
            Err(error) => {
                tracing::warn!(%error, "an NBD connection could not be accepted");
                shared.doors.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if shared.lines.borrow().len() >= CONNECTIONS_MAX {
            if !std::mem::replace(&mut full, true) {
                tracing::warn!("there are {CONNECTIONS_MAX} NBD connections already; more are closed until some end");
            }
            continue;
        }
        full = false;
        let line = Rc::new(Line::new());
        shared.lines.borrow_mut().push(Rc::clone(&line));
        let own = Rc::clone(&shared);
        shared.doors.spawn(async move {
            connection::serve(Rc::clone(&own), conn, Rc::clone(&line)).await;
            own.lines.borrow_mut().retain(|other| !Rc::ptr_eq(other, &line));
            own.changed.notify();
        });
    }
}
