//! The rows of the table: plain data, stored as JSON objects with a `version`.

mod area;
mod event;
mod pool;
mod server;
mod task;
mod volume;
mod wipe;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sublet_types::{AreaId, ServerId, SliceId, TaskId, VolumeId};

pub use area::{AreaRow, Stranger};
pub use event::EventRow;
pub use pool::PoolRow;
pub use server::ServerRow;
pub use task::{Command, Step, TaskRow, TaskState};
pub use volume::{LastChange, LeaseRow, LeaseState, LegRow, PathRow, Pending, SegmentRow, VolumeRow};
pub use wipe::WipeRow;

use crate::store::RawRow;

/// The version of all rows that this software writes. A row of a higher version is quarantined.
pub const ROW_VERSION: u32 = 1;

/// Which row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// The one pool row.
    Pool,
    /// A server.
    Server(ServerId),
    /// An area.
    Area(AreaId),
    /// A volume.
    Volume(VolumeId),
    /// A slice that is to be wiped.
    Wipe(SliceId),
    /// A task.
    Task(TaskId),
    /// An event.
    Event(u64),
}

impl Key {
    /// The key in the store.
    pub fn text(self) -> String {
        match self {
            Key::Pool => "pool/".to_owned(),
            Key::Server(id) => format!("server/{id}"),
            Key::Area(id) => format!("area/{id}"),
            Key::Volume(id) => format!("volume/{id}"),
            Key::Wipe(id) => format!("wipe/{id}"),
            Key::Task(id) => format!("task/{id}"),
            Key::Event(number) => format!("event/{number:020}"),
        }
    }
}

/// A row.
#[derive(Clone, PartialEq, Debug)]
pub enum Row {
    /// See [`PoolRow`].
    Pool(PoolRow),
    /// See [`ServerRow`].
    Server(ServerRow),
    /// See [`AreaRow`].
    Area(AreaRow),
    /// See [`VolumeRow`].
    Volume(Box<VolumeRow>),
    /// See [`WipeRow`].
    Wipe(WipeRow),
    /// See [`TaskRow`].
    Task(Box<TaskRow>),
    /// See [`EventRow`].
    Event(EventRow),
}

impl Row {
    /// Which row it is.
    pub fn key(&self) -> Key {
        match self {
            Row::Pool(_) => Key::Pool,
            Row::Server(row) => Key::Server(row.id),
            Row::Area(row) => Key::Area(row.id),
            Row::Volume(row) => Key::Volume(row.id),
            Row::Wipe(row) => Key::Wipe(row.slice),
            Row::Task(row) => Key::Task(row.id),
            Row::Event(row) => Key::Event(row.number),
        }
    }

    /// The row as it is stored.
    ///
    /// # Errors
    /// If it has no JSON form, which would be a defect.
    pub fn encode(&self) -> Result<RawRow, serde_json::Error> {
        let json = match self {
            Row::Pool(row) => serde_json::to_vec(row),
            Row::Server(row) => serde_json::to_vec(row),
            Row::Area(row) => serde_json::to_vec(row),
            Row::Volume(row) => serde_json::to_vec(row),
            Row::Wipe(row) => serde_json::to_vec(row),
            Row::Task(row) => serde_json::to_vec(row),
            Row::Event(row) => serde_json::to_vec(row),
        }?;
        Ok(RawRow { key: self.key().text(), json })
    }

    /// Reads a stored row.
    ///
    /// # Errors
    /// A text for people, if the row cannot be understood.
    pub fn decode(raw: &RawRow) -> Result<Self, String> {
        let kind = raw.key.split('/').next().unwrap_or_default();
        let row = match kind {
            "pool" => Row::Pool(read(&raw.json)?),
            "server" => Row::Server(read(&raw.json)?),
            "area" => Row::Area(read(&raw.json)?),
            "volume" => Row::Volume(Box::new(read(&raw.json)?)),
            "wipe" => Row::Wipe(read(&raw.json)?),
            "task" => Row::Task(Box::new(read(&raw.json)?)),
            "event" => Row::Event(read(&raw.json)?),
            other => return Err(format!("it is of the unknown kind '{}'", other.escape_default())),
        };
        let inside = row.key().text();
        if inside == raw.key { Ok(row) } else { Err(format!("it says of itself that it is {inside}")) }
    }
}

fn read<T: DeserializeOwned + Serialize>(json: &[u8]) -> Result<T, String> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let versioned: Versioned = serde_json::from_slice(json).map_err(|error| format!("it is damaged: {error}"))?;
    if versioned.version > ROW_VERSION {
        return Err(format!("it has version {}, this software reads up to {ROW_VERSION}", versioned.version));
    }
    serde_json::from_slice(json).map_err(|error| format!("it is damaged: {error}"))
}
