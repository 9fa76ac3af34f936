//! What is done with a table whose manager is stopped: export, import, check.

use std::path::Path;

use serde::Serialize;
use sublet_api::{ErrorKind, Refusal};
use sublet_table::{RedbStore, Store, StoreError, document};

use sublet_trust::{Authority, AuthorityRecord};
use zeroize::Zeroizing;

use crate::authority::AUTHORITY_FILE;
use crate::data_dir::DataDir;

/// What [`check`] found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Checked {
    /// How many rows the table has.
    pub rows: usize,
    /// What is wrong, one line each.
    pub findings: Vec<String>,
}

fn refusal(data: &Path, error: &StoreError) -> Refusal {
    let kind = if matches!(error, StoreError::InUse(_)) { ErrorKind::Conflict } else { ErrorKind::Internal };
    Refusal::new(kind, format!("the table in {}: {error}", data.display()))
}

/// Opens the store of a data directory that has one, and keeps the directory locked.
fn open(data: &Path) -> Result<(DataDir, RedbStore), Refusal> {
    if !data.join("table.redb").exists() {
        return Err(Refusal::new(ErrorKind::NotFound, format!("there is no table in {}", data.display())));
    }
    let dir = DataDir::open(data)?;
    let store = RedbStore::open(&dir.table()?).map_err(|error| refusal(data, &error))?;
    Ok((dir, store))
}

/// Whether this manager has a certificate authority.
pub fn has_authority(data: &Path) -> bool {
    data.join(AUTHORITY_FILE).exists()
}

/// The sealed authority of an exported document, if it has one.
///
/// # Errors
/// `internal` if it is no document.
pub fn sealed_authority(document: &str) -> Result<Option<String>, Refusal> {
    document::authority(document).map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))
}

/// The whole table as a JSON document, with the authority of the pool if `seal` seals it.
///
/// # Errors
/// `not_found` if there is none, `conflict` if a manager is using it, `internal` if it cannot be read; what `seal` says.
pub fn export(data: &Path, seal: Option<&Seal<'_>>) -> Result<String, Refusal> {
    let (dir, mut store) = open(data)?;
    let loaded = store.load().map_err(|error| refusal(data, &error))?;
    let document = document::write(&loaded).map_err(|error| refusal(data, &error))?;
    let Some(seal) = seal else { return Ok(document) };
    let Some(bytes) = dir.read_secret(AUTHORITY_FILE)? else { return Ok(document) };
    let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    document::with_authority(&document, seal(&text)?).map_err(|error| refusal(data, &error))
}

/// Seals a text.
pub type Seal<'a> = dyn Fn(&str) -> Result<String, Refusal> + 'a;

/// Makes a table from a document, with this authority of the pool; the answer is how many rows it has.
///
/// # Errors
/// `already_exists` if there is a table, `internal` if the document cannot be used.
pub fn import(document: &str, authority: Option<&str>, data: &Path) -> Result<usize, Refusal> {
    let path = data.join("table.redb");
    if path.exists() {
        let text = format!("there is a table in {} already", data.display());
        return Err(Refusal::new(ErrorKind::AlreadyExists, text).hint("name an empty directory with --data"));
    }
    // Nothing is made for a document that cannot be used.
    document::read(document, &mut sublet_table::MemoryStore::new()).map_err(|error| refusal(data, &error))?;
    let dir = DataDir::open(data)?;
    if let Some(authority) = authority {
        let unusable =
            |e: &dyn std::fmt::Display| Refusal::new(ErrorKind::Internal, format!("the authority in the document: {e}"));
        let record: AuthorityRecord = serde_json::from_str(authority).map_err(|e| unusable(&e))?;
        Authority::load(record).map_err(|e| unusable(&e))?;
        dir.write_secret(AUTHORITY_FILE, authority.as_bytes())?;
    }
    let mut store = RedbStore::open(&dir.table()?).map_err(|error| refusal(data, &error))?;
    document::read(document, &mut store).map_err(|error| refusal(data, &error))
}

/// Checks the table.
///
/// # Errors
/// `not_found` if there is none, `conflict` if a manager is using it, `internal` if it cannot be read at all.
pub fn check(data: &Path) -> Result<Checked, Refusal> {
    let (_dir, mut store) = open(data)?;
    let loaded = store.load().map_err(|error| refusal(data, &error))?;
    Ok(Checked { rows: loaded.rows.len(), findings: sublet_table::check::check(&loaded) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_goes_through_a_document_into_another_directory() {
        let outer = tempfile::tempdir().unwrap();
        let (a, b) = (outer.path().join("a"), outer.path().join("b"));
        assert_eq!(export(&a, None).unwrap_err().kind, ErrorKind::NotFound);
        assert!(!a.exists(), "looking makes nothing");
        {
            let dir = DataDir::open(&a).unwrap();
            let mut random = || 7;
            let mut outside = sublet_table::Outside { now_ms: 1, random: &mut random };
            crate::machine::load(&dir.table().unwrap(), &mut outside, Vec::new()).unwrap();
            assert_eq!(export(&a, None).unwrap_err().kind, ErrorKind::Conflict, "its manager runs");
        }
        let text = export(&a, None).unwrap();
        assert_eq!(import(&text, None, &b).unwrap(), check(&a).unwrap().rows);
        assert_eq!(check(&b).unwrap(), check(&a).unwrap());
        assert!(check(&b).unwrap().findings.is_empty());
        assert_eq!(import(&text, None, &b).unwrap_err().kind, ErrorKind::AlreadyExists);
        assert_eq!(import("{}", None, &outer.path().join("c")).unwrap_err().kind, ErrorKind::Internal);
        assert!(!outer.path().join("c").exists());
    }
}
