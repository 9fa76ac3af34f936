//! The doors to the real machine: files, sockets and timers through io_uring (compio), one runtime per thread. Where there is no
//! io_uring, through epoll and threads ([`without_io_uring`]).
//!
//! Blocking calls that have no completion-based form (opening and locking, `fallocate`, `SEEK_HOLE`, name resolution) run on
//! helper threads ([`blocking`]), never on the data thread. Unsafe code lives in `owned` (buffers lent to the kernel) and
//! `ioctl` only.

mod boot;
mod clock;
mod connect;
mod device;
mod driver;
mod file;
mod helper;
mod ioctl;
mod listen;
mod open;
mod owned;
mod pacer;
mod run;
mod socket;

use std::future::Future;
use std::rc::Rc;

pub use boot::boot_id;
pub use device::Device;
pub use driver::{io, without_io_uring};
pub use file::RealFile;
pub use helper::blocking;
pub use listen::RealListener;
pub use run::run;
pub use socket::{RealConn, RealReader, RealWriter};

use crate::{Doors, Rng};
use run::Tasks;

/// The doors of one thread that runs inside [`run`].
#[derive(Clone)]
pub struct RealDoors {
    tasks: Rc<Tasks>,
}

impl RealDoors {
    /// The doors of this thread.
    ///
    /// # Panics
    /// If the thread is not inside [`run`].
    #[allow(clippy::new_without_default, reason = "it only works on a thread inside `run`")]
    pub fn new() -> Self {
        let Some(tasks) = run::current() else { panic!("real doors are made on a thread inside `real::run`") };
        Self { tasks }
    }
}

impl Rng for RealDoors {
    fn random_u128(&self) -> u128 {
        let mut bytes = [0; 16];
        if let Err(error) = getrandom::fill(&mut bytes) {
            // Ids and secrets without randomness would be worse than no service.
            panic!("the kernel gives no random bytes: {error}");
        }
        u128::from_ne_bytes(bytes)
    }
}

impl Doors for RealDoors {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        Tasks::spawn(&self.tasks, task);
    }

    async fn give_way(&self) {
        self.tasks.after_next_poll().await;
    }
}
