//! Where the table is kept: a small trait, redb behind it, and a memory for tests and the simulator.

mod memory;
mod redb;

use std::fmt;

pub use self::redb::RedbStore;
pub use memory::MemoryStore;

/// One row as it is stored. The store does not look into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawRow {
    /// Kind and id, for example `volume/0123...`.
    pub key: String,
    /// A JSON object with a `version`.
    pub json: Vec<u8>,
}

/// All rows at one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// Counts the commits.
    pub revision: u64,
    /// In the order of their keys.
    pub rows: Vec<RawRow>,
}

/// One change of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowOp {
    /// Insert or replace.
    Put(RawRow),
    /// Remove, if it is there.
    Delete(String),
}

/// A durable, atomic, revisioned set of rows.
pub trait Store {
    /// Reads everything.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Makes all of `ops` durable, or none of them, and returns the new revision.
    ///
    /// # Errors
    /// [`StoreError::Moved`] if the revision is no longer `planned_on`; [`StoreError::Failed`] if it cannot be made durable.
    fn commit(&mut self, planned_on: u64, ops: &[RowOp]) -> Result<u64, StoreError> {
        self.commit_as(planned_on, planned_on + 1, ops)
    }

    /// The same, with `revision` as the new one: a table that was moved here goes on where it was.
    ///
    /// # Errors
    /// See [`Store::commit`].
    fn commit_as(&mut self, planned_on: u64, revision: u64, ops: &[RowOp]) -> Result<u64, StoreError>;
}

/// The store failed.
#[derive(Debug)]
pub enum StoreError {
    /// Another process has changed the store since.
    Moved {
        /// The revision that the change was planned on.
        planned_on: u64,
        /// The present one.
        present: u64,
    },
    /// Another manager has it open.
    InUse(String),
    /// Reading or writing failed.
    Failed(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Moved { planned_on, present } => {
                write!(f, "the table changed under a plan (planned on revision {planned_on}, now {present}); nothing was changed")
            }
            StoreError::InUse(what) => {
                write!(f, "{what} is in use by another manager; stop that one first, or use another --data folder")
            }
            StoreError::Failed(what) => write!(f, "the table's store failed: {what}"),
        }
    }
}

impl std::error::Error for StoreError {}
