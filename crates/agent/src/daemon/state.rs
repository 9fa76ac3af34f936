//! What the server keeps: its identity and the list of its areas on disk, and what the control threads share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sublet_api::control::Identity;
use sublet_api::server::AreaReport;
use sublet_api::{ErrorKind, Refusal};
use sublet_area::PieceSpec;
use sublet_link::{Home, ManagerLink, read_record, write_private};
use sublet_types::{Address, AreaId, Name, PoolId, ServerId};

use super::data::DataHandle;
use super::manager::Outgoing;

/// The version of the list of areas that is written and understood here.
const AREAS_VERSION: u32 = 1;

/// One area as the server finds it again after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct AreaEntry {
    /// The area.
    pub area: AreaId,
    /// Its name when it was last open.
    pub name: Name,
    /// Its pieces in their order.
    pub pieces: Vec<PieceSpec>,
    /// True if its file was made for it, and is removed with it.
    pub created: bool,
    /// What it lies on, for people.
    pub place: String,
    /// Room for data in bytes.
    pub capacity: u64,
    /// True if its space is not preallocated.
    pub sparse: bool,
    /// Why it is not served; none when it is.
    #[serde(skip)]
    pub offline: Option<String>,
}

/// The file `areas.json`.
#[derive(Serialize, Deserialize)]
struct AreasFile {
    version: u32,
    areas: Vec<AreaEntry>,
}

/// What does not change while the process lives.
pub(crate) struct Facts {
    pub zone: String,
    pub advertise: Vec<Address>,
    pub listen: Vec<Address>,
    pub run: u64,
    pub boot: u128,
}

/// What the control threads share.
pub(crate) struct Daemon {
    pub home: Home,
    pub server: ServerId,
    pub link: ManagerLink,
    pub data: DataHandle,
    pub facts: Facts,
    pub outgoing: Outgoing,
    /// One `lend` at a time.
    pub lending: Mutex<()>,
    identity: Mutex<Identity>,
    areas: Mutex<Vec<AreaEntry>>,
}

/// A thread that panicked ends the process; until then its data is as good as it was.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn save(path: &Path, record: &impl Serialize) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec_pretty(record).map_err(std::io::Error::other);
    bytes
        .and_then(|bytes| write_private(path, &bytes))
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("the state cannot be saved: {e}")))
}

/// The identity of an earlier start, or a new one.
pub(crate) fn load_identity(home: &Home, name: Option<&Name>, random: impl FnOnce() -> u128) -> Result<Identity, Refusal> {
    if let Some(identity) = read_record::<Identity>(&home.identity_path(), Identity::VERSION..=Identity::VERSION)? {
        return Ok(identity);
    }
    let name = match name {
        Some(name) => name.clone(),
        None => host_name().ok_or_else(|| {
            Refusal::new(ErrorKind::BadRequest, "the host's name cannot be a server's name").hint("give it one with --name")
        })?,
    };
    let identity =
        Identity { version: Identity::VERSION, server: ServerId::from_u128(random()), name, pool: None, managers: Vec::new() };
    save(&home.identity_path(), &identity)?;
    Ok(identity)
}

/// The host's name up to its first dot, with hyphens for what a name cannot have.
fn host_name() -> Option<Name> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let label = host.split('.').next().unwrap_or_default();
    let legal: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    legal.trim_start_matches('-').parse().ok()
}

impl Daemon {
    pub(crate) fn load(
        home: Home,
        identity: Identity,
        link: ManagerLink,
        data: DataHandle,
        facts: Facts,
    ) -> Result<Self, Refusal> {
        let file: Option<AreasFile> = read_record(&home.areas_path(), AREAS_VERSION..=AREAS_VERSION)?;
        let mut areas = file.map_or_else(Vec::new, |file| file.areas);
        for entry in &mut areas {
            entry.offline = Some("it is being opened".to_owned());
        }
        let server = identity.server;
        let outgoing = Outgoing::default();
        let (identity, areas, lending) = (Mutex::new(identity), Mutex::new(areas), Mutex::new(()));
        Ok(Self { home, server, link, data, facts, outgoing, lending, identity, areas })
    }

    pub(crate) fn identity(&self) -> Identity {
        lock(&self.identity).clone()
    }

    pub(crate) fn pool(&self) -> Option<PoolId> {
        lock(&self.identity).pool
    }

    /// Changes the identity, and saves it if that made a difference.
    pub(crate) fn change_identity(&self, change: impl FnOnce(&mut Identity)) {
        let mut identity = lock(&self.identity);
        let before = identity.clone();
        change(&mut identity);
        if *identity == before {
            return;
        }
        if let Err(refusal) = save(&self.home.identity_path(), &*identity) {
            // It is learned again after a restart.
            tracing::warn!(%refusal, "the identity was not saved");
        }
    }

    pub(crate) fn entries(&self) -> Vec<AreaEntry> {
        lock(&self.areas).clone()
    }

    /// Changes the list of areas and saves it; nothing is changed if it cannot be saved.
    pub(crate) fn change_entries(&self, change: impl FnOnce(&mut Vec<AreaEntry>)) -> Result<(), Refusal> {
        let mut areas = lock(&self.areas);
        let mut fresh = areas.clone();
        change(&mut fresh);
        if *areas != fresh {
            let file = AreasFile { version: AREAS_VERSION, areas: fresh };
            save(&self.home.areas_path(), &file)?;
            *areas = file.areas;
        }
        Ok(())
    }

    /// Notes why an area is not served, or that it is. True if that is news.
    pub(crate) fn note_offline(&self, area: AreaId, reason: Option<&str>) -> bool {
        let mut areas = lock(&self.areas);
        let Some(entry) = areas.iter_mut().find(|entry| entry.area == area) else { return false };
        let news = entry.offline.as_deref() != reason;
        entry.offline = reason.map(str::to_owned);
        news
    }

    /// All areas as the manager is told: those served by their labels, the others by what is remembered of them.
    pub(crate) fn reports(&self) -> Result<Vec<AreaReport>, Refusal> {
        let online = self.data.call(async |agent| agent.reports())?;
        let mut by_id: HashMap<AreaId, AreaReport> = online.into_iter().map(|report| (report.area, report)).collect();
        let pool = self.pool();
        let reports = self.entries().into_iter().filter_map(|entry| {
            by_id.remove(&entry.area).or_else(|| {
                Some(AreaReport {
                    area: entry.area,
                    pool: pool?,
                    name: entry.name,
                    capacity: entry.capacity,
                    place: entry.place,
                    sparse: entry.sparse,
                    offline: Some(entry.offline.unwrap_or_else(|| "it is being opened".to_owned())),
                    open: None,
                    sequence: 0,
                    slices: Vec::new(),
                    history: Vec::new(),
                    quarantined: None,
                    failures: 0,
                    tombstones: Vec::new(),
                })
            })
        });
        Ok(reports.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_another_version_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let name: Name = "s".parse().unwrap();
        let made = load_identity(&home, Some(&name), || 7).unwrap();
        assert_eq!(load_identity(&home, None, || 8).unwrap(), made, "it is found again");
        for version in [0, Identity::VERSION + 1] {
            save(&home.identity_path(), &Identity { version, ..made.clone() }).unwrap();
            let before = std::fs::read(home.identity_path()).unwrap();
            let refusal = load_identity(&home, Some(&name), || 8).unwrap_err();
            assert!(refusal.message.contains(&format!("version {version}")), "{refusal}");
            assert_eq!(std::fs::read(home.identity_path()).unwrap(), before);
        }
    }
}
