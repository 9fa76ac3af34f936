//! Rows that cannot be read are kept aside, so that no later row of the same key overwrites them, and the rest starts.

use sublet_types::SliceId;

use crate::records::Row;
use crate::store::{RawRow, RowOp, Store, StoreError};

/// Before the key of a row that is kept aside.
const PREFIX: &str = "damaged/";

/// What to show of a row that was kept aside earlier; none for every other row.
pub(crate) fn kept_aside(raw: &RawRow) -> Option<String> {
    let key = raw.key.strip_prefix(PREFIX)?;
    let original = RawRow { key: key.to_owned(), json: raw.json.clone() };
    let why = match Row::decode(&original) {
        Ok(_) => "it was damaged when it was set aside".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!("{key}: {why}"))
}

/// The slice that a row is about which cannot be read, kept aside or not: its key says it. None if it is no row of a wipe.
pub(crate) fn wiped_slice(key: &str) -> Option<SliceId> {
    key.strip_prefix(PREFIX).unwrap_or(key).strip_prefix("wipe/")?.parse().ok()
}

/// Moves rows aside, bytes unchanged; the answer is the store's revision then.
///
/// # Errors
/// If the store cannot be written.
pub(crate) fn set_aside<S: Store>(store: &mut S, revision: u64, bad: &[(RawRow, String)]) -> Result<u64, StoreError> {
    if bad.is_empty() {
        return Ok(revision);
    }
    let ops: Vec<RowOp> = bad
        .iter()
        .flat_map(|(raw, _)| {
            let aside = RawRow { key: format!("{PREFIX}{}", raw.key), json: raw.json.clone() };
            [RowOp::Put(aside), RowOp::Delete(raw.key.clone())]
        })
        .collect();
    store.commit(revision, &ops)
}
