//! Deliberate bugs, to show that the simulator finds such bugs. They exist only with the feature `mutations`, which nothing that
//! is shipped has; without it [`is`] is a constant, and what stands behind it is not compiled.

macro_rules! mutations {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A deliberate bug.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutation {
            $($(#[doc = $text])+ $name,)+
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &[Mutation] = &[$(Mutation::$name,)+];
        }
    };
}

mutations! {
    /// W1: a write is acknowledged when the first leg has it.
    AckBeforeAllLegs,
    /// W1: a lender answers a flush without flushing.
    FlushNotDone,
    /// W1: a client answers flushes as if every write had been durable at once.
    UnflushedCountsAsDurable,
    /// W1: a write that has to be durable at once is sent as any other.
    DurableWriteIsNot,
    /// W2: overlapping changes run at the same time.
    NoRangeLock,
    /// W2: a resync copies without the range lock, over newer writes.
    ResyncWithoutLock,
    /// W4: OPEN does not wait for the disk I/O of older sessions.
    OpenDoesNotWait,
    /// W5: a lender that lost writes is gone on with.
    NoReplay,
    /// W6: zeroes are made on the first leg only.
    ZeroesOnOneLeg,
    /// S1, S4: neither the seeds of the survivors nor their hot regions bring back what a leg has lost.
    LostWritesNotCopied,
    /// S3: survivors note nothing of what a stale leg misses.
    MissedNotNoted,
    /// S4: a resync copies nothing.
    ResyncCopiesNothing,
    /// S5: a leg is in sync before it has what it missed, and is read.
    ServeStaleLeg,
    /// H1: a write does not wait for its hot mark, which is never written.
    NoHotMark,
    /// H2: a region counts as cool as soon as no write to it is under way at its lender.
    CoolTooEarly,
    /// H3: after an unclean close the legs are not made equal.
    NotMadeEqual,
    /// K1: what is read is not compared with its checksum.
    ChecksumIgnored,
    /// F1: a fence does not end the older sessions.
    FenceDoesNotEnd,
    /// F1, L1: changes of the label (a new epoch, a generation) are only kept in memory.
    EpochNotPersisted,
    /// L1: a label change is answered when one copy has it, and of two copies the one with the lower sequence counts.
    OlderLabelCounts,
    /// P1: a region that becomes written is not zeroed.
    RegionNotZeroed,
    /// P2: a wipe overwrites nothing.
    NothingWiped,
    /// The manager answers before its commit is durable.
    CommitNotDurable,
    /// The manager forgets that a leg is stale.
    StaleForgotten,
}

#[cfg(feature = "mutations")]
mod chosen {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static CHOSEN: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether this bug is present on this thread.
    pub fn is(mutation: Mutation) -> bool {
        CHOSEN.get() == Some(mutation)
    }

    /// This bug is present on this thread from now on; none if there is none.
    pub fn choose(mutation: Option<Mutation>) {
        CHOSEN.set(mutation);
    }
}

#[cfg(feature = "mutations")]
pub use chosen::{choose, is};

/// Whether this bug is present: never, in what is shipped.
#[cfg(not(feature = "mutations"))]
pub const fn is(_: Mutation) -> bool {
    false
}
