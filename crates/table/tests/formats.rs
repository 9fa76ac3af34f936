//! Tables of older versions still open, tables of newer ones are refused.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use sublet_table::records::LeaseState;
use sublet_table::store::{RawRow, RowOp};
use sublet_table::{Core, Outside, RedbStore, Store, StoreError};

/// A table of format 1, made by the software that wrote it: three lenders, a free defined volume, a lent one, and a doubled one
/// that is mounted and has a stale leg.
fn fixture(dir: &Path) -> PathBuf {
    let path = dir.join("table.redb");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/table-1.redb"), &path).unwrap();
    path
}

fn load(path: &Path) -> Result<Core<RedbStore>, StoreError> {
    let mut next = 0;
    let mut random = || {
        next += 1;
        next
    };
    Core::load(RedbStore::open(path)?, &mut Outside { now_ms: 1, random: &mut random }, Vec::new())
}

#[test]
fn a_table_of_format_1_opens_whole_and_is_one_of_this_version_then() {
    let dir = tempfile::tempdir().unwrap();
    let path = fixture(dir.path());
    for _ in 0..2 {
        let core = load(&path).unwrap();
        let table = core.table();
        assert_eq!((table.servers.len(), table.areas.len(), table.volumes.len()), (3, 3, 3));
        assert!(table.damaged.is_empty(), "{:?}", table.damaged);
        let pair = table.volume("pair").unwrap();
        assert_eq!(pair.lease.as_ref().unwrap().state, LeaseState::Active);
        assert_eq!(pair.segments[0].in_sync(), [true, false]);
        assert!(table.volume("defined").unwrap().defined);
        assert_eq!(table.server_name(table.volume("carved").unwrap().borrower.unwrap()), "server-b");
        assert!(!pair.unsettled && pair.frozen.is_none());
    }
}

#[test]
fn a_table_with_a_row_of_a_newer_version_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = fixture(dir.path());
    let before = {
        let mut store = RedbStore::open(&path).unwrap();
        let loaded = store.load().unwrap();
        let row = RawRow { key: "server/00000000000000000000000000000001".to_owned(), json: b"{\"version\":4}".to_vec() };
        store.commit(loaded.revision, &[RowOp::Put(row)]).unwrap();
        store.load().unwrap()
    };
    let Err(StoreError::Failed(why)) = load(&path) else { panic!("it was taken") };
    assert!(why.contains("has version 4"), "{why}");
    assert_eq!(RedbStore::open(&path).unwrap().load().unwrap(), before, "nothing was changed");
}
