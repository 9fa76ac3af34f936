//! The table in a redb file: one table of rows, one of numbers. Every commit is durable before it returns.

use std::path::Path;

use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::{Loaded, RawRow, RowOp, Store, StoreError};

const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
/// The layout of this file: two tables as above. Rows carry versions of their own. Format 1 is laid out alike, but its software
/// would not see what rows of version 2 say: so a file is one of format 2 from its first opening on.
const FORMAT_NOW: u64 = 2;
/// The oldest format that is read.
const FORMAT_OLDEST: u64 = 1;

/// A store in a redb file. The file is locked as long as it is open.
pub struct RedbStore {
    database: Database,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open, [`StoreError::Failed`] if it cannot be read or was written by
    /// a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.display().to_string()),
            error => StoreError::Failed(format!("{}: {error}", path.display())),
        })?;
        let store = Self { database };
        store.check_format(path)?;
        Ok(store)
    }

    /// Opens a store that lies on something else than a file, or makes it there. `path` is for messages.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_on(backend: impl StorageBackend, path: &Path) -> Result<Self, StoreError> {
        let opened = Database::builder().create_with_backend(backend);
        let database = opened.map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?;
        let store = Self { database };
        store.check_format(path)?;
        Ok(store)
    }

    fn check_format(&self, path: &Path) -> Result<(), StoreError> {
        let mut write = self.database.begin_write().map_err(failed)?;
        write.set_durability(Durability::Immediate).map_err(failed)?;
        {
            write.open_table(ROWS).map_err(failed)?;
            let mut numbers = write.open_table(NUMBERS).map_err(failed)?;
            let format = numbers.get(FORMAT).map_err(failed)?.map(|value| value.value());
            match format {
                Some(FORMAT_NOW) => {}
                None | Some(FORMAT_OLDEST..FORMAT_NOW) => {
                    numbers.insert(FORMAT, FORMAT_NOW).map_err(failed)?;
                }
                Some(other) => {
                    return Err(StoreError::Failed(format!(
                        "{} has format {other}, this version reads {FORMAT_OLDEST} to {FORMAT_NOW}; use the version of sublet that wrote it, or a newer one",
                        path.display()
                    )));
                }
            }
        }
        write.commit().map_err(failed)
    }
}

impl Store for RedbStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let numbers = read.open_table(NUMBERS).map_err(failed)?;
        let revision = numbers.get(REVISION).map_err(failed)?.map_or(0, |value| value.value());
        let table = read.open_table(ROWS).map_err(failed)?;
        let mut rows = Vec::new();
        for entry in table.iter().map_err(failed)? {
            let (key, json) = entry.map_err(failed)?;
            rows.push(RawRow { key: key.value().to_owned(), json: json.value().to_vec() });
        }
        Ok(Loaded { revision, rows })
    }

    fn commit_as(&mut self, planned_on: u64, revision: u64, ops: &[RowOp]) -> Result<u64, StoreError> {
        let mut write = self.database.begin_write().map_err(failed)?;
        write.set_durability(Durability::Immediate).map_err(failed)?;
        {
            let mut numbers = write.open_table(NUMBERS).map_err(failed)?;
            let present = numbers.get(REVISION).map_err(failed)?.map_or(0, |value| value.value());
            if present != planned_on {
                return Err(StoreError::Moved { planned_on, present });
            }
            numbers.insert(REVISION, revision).map_err(failed)?;
            let mut rows = write.open_table(ROWS).map_err(failed)?;
            for op in ops {
                match op {
                    RowOp::Put(row) => {
                        rows.insert(row.key.as_str(), row.json.as_slice()).map_err(failed)?;
                    }
                    RowOp::Delete(key) => {
                        rows.remove(key.as_str()).map_err(failed)?;
                    }
                }
            }
        }
        write.commit().map_err(failed)?;
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, json: &str) -> RowOp {
        RowOp::Put(RawRow { key: key.to_owned(), json: json.as_bytes().to_vec() })
    }

    #[test]
    fn rows_and_the_revision_come_back_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.redb");
        {
            let mut store = RedbStore::open(&path).unwrap();
            assert_eq!(store.load().unwrap(), Loaded::default());
            assert_eq!(store.commit(0, &[put("a/1", "{}"), put("a/2", "[]")]).unwrap(), 1);
            assert_eq!(store.commit(1, &[RowOp::Delete("a/1".to_owned()), put("b/1", "1")]).unwrap(), 2);
        }
        let loaded = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!(loaded.revision, 2);
        assert_eq!(loaded.rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["a/2", "b/1"]);
    }

    #[test]
    fn a_commit_planned_on_another_revision_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = RedbStore::open(&dir.path().join("table.redb")).unwrap();
        store.commit(0, &[put("a/1", "{}")]).unwrap();
        assert!(matches!(store.commit(0, &[put("a/2", "{}")]), Err(StoreError::Moved { planned_on: 0, present: 1 })));
        assert_eq!(store.load().unwrap().rows.len(), 1);
    }

    #[test]
    fn a_second_manager_on_the_same_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.redb");
        let _first = RedbStore::open(&path).unwrap();
        assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse(_))));
    }
}
