//! Limits that the simulator draws from its seed: what has to hold must hold with any of them, and small ones are reached far
//! more often. Others than the usual ones exist only with the feature `drawn`, which nothing that is shipped has; without it
//! [`limit`] and [`time`] are constants.

use std::time::Duration;

macro_rules! drawn {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A limit that can be another one than the usual.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Drawn {
            $($(#[doc = $text])+ $name,)+
        }

        impl Drawn {
            /// All of them.
            pub const ALL: &[Drawn] = &[$(Drawn::$name,)+];
        }
    };
}

drawn! {
    /// W5: bytes that the client keeps of one segment's unflushed writes.
    KeptBytes,
    /// W5: unflushed writes that the client keeps of one segment.
    KeptEntries,
    /// How often in a row a write alone before a flush makes the next one likely.
    HabitRight,
    /// H2: hot regions of one area.
    HotRegions,
    /// H2: hot regions that each slice may have in any case.
    HotShare,
    /// K2: checksum pages of cold regions in memory.
    SumPages,
    /// K2: how often checksums of regions that stay hot are written, in milliseconds.
    Checkpoint,
    /// H2: the idle time after which a region of a slice with one leg cools, in milliseconds.
    AreaCoolAfter,
    /// H2: the idle time after which the client lets a region cool, in milliseconds.
    ClientCoolAfter,
    /// Requests in flight of one session.
    SessionDepth,
    /// Bytes of write payload in flight of one session.
    SessionBytes,
    /// How long a lender that others can do without may be silent, in milliseconds.
    Hung,
    /// How long a broken connection is tried again before a leg is left out, in milliseconds.
    ReconnectGrace,
    /// W4: how long an OPEN waits for older sessions' I/O, in milliseconds.
    OpenWait,
    /// How long the manager waits for an order's result, in milliseconds.
    Order,
    /// The pause of a resync that did not come to its end, in milliseconds.
    ResyncPause,
}

#[cfg(feature = "drawn")]
mod chosen {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::Drawn;

    thread_local! {
        static CHOSEN: RefCell<BTreeMap<Drawn, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// The limit on this thread: the usual one unless another was chosen.
    pub fn limit(which: Drawn, usual: u64) -> u64 {
        CHOSEN.with_borrow(|chosen| chosen.get(&which).copied().unwrap_or(usual))
    }

    /// These limits rule on this thread from now on, and the usual ones otherwise.
    pub fn choose(limits: BTreeMap<Drawn, u64>) {
        CHOSEN.set(limits);
    }
}

#[cfg(feature = "drawn")]
pub use chosen::{choose, limit};

/// The limit: the usual one, in what is shipped.
#[cfg(not(feature = "drawn"))]
pub const fn limit(_: Drawn, usual: u64) -> u64 {
    usual
}

/// As [`limit`], of a time in milliseconds.
pub fn time(which: Drawn, usual: Duration) -> Duration {
    Duration::from_millis(limit(which, usual.as_millis() as u64))
}
