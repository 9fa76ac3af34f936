//! The whole table as one JSON document: for backups, for people, and for moving it into another store.

use serde::{Deserialize, Serialize};

use crate::records::sense::COUNT_MAX;
use crate::records::{Key, Row, RowError};
use crate::store::{Loaded, RawRow, RowOp, Store, StoreError};

/// The version of the document that this software writes, and the highest that it reads.
pub const DOCUMENT_VERSION: u32 = 1;
const KIND: &str = "sublet table";

/// See the module.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// What this is: [`KIND`].
    kind: String,
    /// See [`DOCUMENT_VERSION`].
    version: u32,
    /// The revision of the table that was written.
    revision: u64,
    /// The pool's authority, sealed by whoever exported it: text that means nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authority: Option<String>,
    rows: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    /// The row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row: Option<serde_json::Value>,
    /// Its bytes in hexadecimal digits, if they are no JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    digits.chunks(2).map(|pair| u8::try_from(pair.iter().fold(0, |sum, digit| sum * 16 + digit)).ok()).collect()
}

/// Writes all rows, lease secrets included.
///
/// # Errors
/// If it has no JSON form, which would be a defect.
pub fn write(loaded: &Loaded) -> Result<String, StoreError> {
    let entry = |raw: &RawRow| match serde_json::from_slice(&raw.json) {
        Ok(row) => Entry { key: raw.key.clone(), row: Some(row), bytes: None },
        Err(_) => Entry { key: raw.key.clone(), row: None, bytes: Some(hex(&raw.json)) },
    };
    let rows = loaded.rows.iter().map(entry).collect();
    let document =
        Document { kind: KIND.to_owned(), version: DOCUMENT_VERSION, revision: loaded.revision, authority: None, rows };
    let text = serde_json::to_string_pretty(&document).map_err(|error| StoreError::Failed(error.to_string()))?;
    Ok(text + "\n")
}

fn parsed(text: &str) -> Result<Document, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Failed(format!("this is no document of a table: {error}")))
}

/// The same document with the pool's sealed authority in it.
///
/// # Errors
/// If it is no document.
pub fn with_authority(text: &str, sealed: String) -> Result<String, StoreError> {
    let document = Document { authority: Some(sealed), ..parsed(text)? };
    let text = serde_json::to_string_pretty(&document).map_err(|error| StoreError::Failed(error.to_string()))?;
    Ok(text + "\n")
}

/// The sealed authority of a document, if it has one.
///
/// # Errors
/// If it is no document.
pub fn authority(text: &str) -> Result<Option<String>, StoreError> {
    Ok(parsed(text)?.authority)
}

/// Fills an empty store from a document; the answer is how many rows it has. A row that makes no sense is taken as it is: the
/// manager keeps it aside when it starts, as it does with one that was damaged where it lay.
///
/// # Errors
/// If the document is of a newer version or holds rows of one, if the row of the pool cannot be read, or the store is not empty.
pub fn read<S: Store>(text: &str, store: &mut S) -> Result<usize, StoreError> {
    #[derive(Deserialize)]
    struct Head {
        kind: String,
        version: u32,
    }
    let failed = |what: String| StoreError::Failed(what);
    let not_one = |error: serde_json::Error| failed(format!("this is no document of a table: {error}"));
    let head: Head = serde_json::from_str(text).map_err(not_one)?;
    if head.kind != KIND {
        return Err(failed(format!("this is no document of a table, but of a '{}'", head.kind.escape_default())));
    }
    if head.version > DOCUMENT_VERSION {
        let version = head.version;
        return Err(failed(format!("the document has version {version}, this software reads up to {DOCUMENT_VERSION}")));
    }
    let document = parsed(text)?;
    if document.revision > COUNT_MAX {
        return Err(failed(format!("this is no document of a table: it cannot have changed {} times", document.revision)));
    }
    let loaded = store.load()?;
    if !loaded.rows.is_empty() {
        return Err(failed("there is a table already; nothing was changed".to_owned()));
    }
    let mut ops = Vec::new();
    for entry in document.rows {
        let json = match (&entry.row, &entry.bytes) {
            (Some(row), None) => serde_json::to_vec(row).ok(),
            (None, Some(text)) => unhex(text),
            _ => None,
        };
        let raw = RawRow { key: entry.key, json: json.unwrap_or_default() };
        let is_pool = raw.key == Key::Pool.text();
        match Row::decode(&raw) {
            // What was kept aside stays so.
            _ if crate::core::damaged::kept_aside(&raw).is_some() => {}
            Err(error) if is_pool || matches!(error, RowError::Newer(_)) => {
                return Err(failed(format!("the row {} cannot be read: {error}", raw.key.escape_default())));
            }
            _ => {}
        }
        ops.push(RowOp::Put(raw));
    }
    store.commit_as(loaded.revision, document.revision.max(loaded.revision + 1), &ops)?;
    Ok(ops.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn row(key: &str, json: &[u8]) -> RawRow {
        RawRow { key: key.to_owned(), json: json.to_vec() }
    }

    fn filled(rows: &[RawRow]) -> MemoryStore {
        let mut store = MemoryStore::new();
        let ops: Vec<_> = rows.iter().cloned().map(RowOp::Put).collect();
        store.commit(0, &ops).unwrap();
        store
    }

    #[test]
    fn what_was_written_is_read_back_byte_for_byte_in_meaning() {
        let event = br#"{"at_ms":1,"number":7,"subject":"","text":"x","version":2}"#;
        let rows = [row("damaged/volume/zz", b"\xff\x00garbage"), row("event/00000000000000000007", event)];
        let text = write(&filled(&rows).load().unwrap()).unwrap();
        let mut empty = MemoryStore::new();
        assert_eq!(read(&text, &mut empty).unwrap(), 2);
        assert_eq!(empty.load().unwrap().rows, rows);
        assert!(read(&text, &mut empty).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn a_damaged_row_is_taken_as_it_is_and_the_revision_goes_on() {
        let text = r#"{"kind":"sublet table","version":1,"revision":77,"rows":[
            {"key":"volume/1","row":{}},{"key":"wipe/2","bytes":"ff"},{"key":"task/3"}]}"#;
        let mut store = MemoryStore::new();
        assert_eq!(read(text, &mut store).unwrap(), 3);
        let loaded = store.load().unwrap();
        let rows = [row("task/3", b""), row("volume/1", b"{}"), row("wipe/2", b"\xff")];
        assert_eq!((loaded.revision, loaded.rows.as_slice()), (77, rows.as_slice()));
        assert_eq!(store.commit(77, &[]).unwrap(), 78);
    }

    #[test]
    fn newer_and_foreign_documents_are_refused_whole() {
        for (text, why) in [
            ("{}", "no document"),
            (r#"{"kind":"mountain","version":1,"revision":1,"rows":[]}"#, "of a 'mountain'"),
            (r#"{"kind":"sublet table","version":2,"new":1}"#, "has version 2"),
            (r#"{"kind":"sublet table","version":1,"revision":18446744073709551615,"rows":[]}"#, "cannot have changed"),
            (
                r#"{"kind":"sublet table","version":1,"revision":1,"rows":[{"key":"event/1","row":{"version":9}}]}"#,
                "has version 9",
            ),
            (r#"{"kind":"sublet table","version":1,"revision":1,"rows":[{"key":"pool/","row":{}}]}"#, "no version"),
        ] {
            let mut store = MemoryStore::new();
            let error = read(text, &mut store).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(store.load().unwrap().rows.is_empty());
        }
    }
}
