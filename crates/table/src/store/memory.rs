//! A store in memory. Clones share the rows, so that a test can drop a manager and load its successor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Loaded, RawRow, RowOp, Store, StoreError};

#[derive(Default)]
struct Inner {
    revision: u64,
    rows: BTreeMap<String, Vec<u8>>,
    fail: bool,
    /// So many more commits succeed, and none after them.
    left: Option<usize>,
    is_spent: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every commit fails (or no longer).
    pub fn set_failing(&self, fail: bool) {
        self.lock().fail = fail;
    }

    /// So many more commits succeed, and none after them; `None`: all do.
    pub fn set_commits_left(&self, left: Option<usize>) {
        let mut inner = self.lock();
        (inner.left, inner.is_spent) = (left, false);
    }

    /// Whether a commit has failed because none was left.
    pub fn is_spent(&self) -> bool {
        self.lock().is_spent
    }

    /// Replaces a row behind the manager's back (damage, for tests).
    pub fn overwrite(&self, key: &str, json: &[u8]) {
        self.lock().rows.insert(key.to_owned(), json.to_vec());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The rows are changed by whole inserts and removes only, so a panic elsewhere leaves them usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let inner = self.lock();
        let rows = inner.rows.iter().map(|(key, json)| RawRow { key: key.clone(), json: json.clone() }).collect();
        Ok(Loaded { revision: inner.revision, rows })
    }

    fn commit_as(&mut self, planned_on: u64, revision: u64, ops: &[RowOp]) -> Result<u64, StoreError> {
        let mut inner = self.lock();
        if inner.fail {
            return Err(StoreError::Failed("told to fail".to_owned()));
        }
        if inner.left == Some(0) {
            inner.is_spent = true;
            return Err(StoreError::Failed("no commit is left".to_owned()));
        }
        if inner.revision != planned_on {
            return Err(StoreError::Moved { planned_on, present: inner.revision });
        }
        for op in ops {
            match op {
                RowOp::Put(row) => {
                    inner.rows.insert(row.key.clone(), row.json.clone());
                }
                RowOp::Delete(key) => {
                    inner.rows.remove(key);
                }
            }
        }
        inner.left = inner.left.map(|left| left - 1);
        inner.revision = revision;
        Ok(revision)
    }
}
