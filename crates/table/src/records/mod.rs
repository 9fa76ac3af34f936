//! The rows of the table: plain data, stored as JSON objects with a `version`.

mod access;
mod area;
mod event;
mod pool;
pub(crate) mod sense;
mod server;
mod task;
mod volume;
mod wipe;
mod work;

use std::fmt;

use serde::de::DeserializeOwned;
use sublet_types::{AreaId, PersonId, ServerId, SliceId, TaskId, TokenId, VolumeId};

pub use access::{AdmissionRow, PersonRow, TokenRow};
pub use area::{AreaRow, Stranger};
pub use event::EventRow;
pub use pool::{PoolRow, RebuildRow};
pub use server::ServerRow;
pub use task::{Command, ReplacedLeg, Step, TaskRow, TaskState};
pub use volume::{AbsentLeg, FrozenUntil, LastChange, LeaseRow, LeaseState, LegRow, PathRow, Pending, SegmentRow, VolumeRow};
pub use wipe::{Former, WipeRow};
pub use work::{BackgroundRow, BackgroundState, FindingsRow, WorkRow};

use crate::store::RawRow;

/// The version of all rows that this software writes. Version 2 added what a rebuild and the distrust of areas need; rows of
/// version 1 are read, with nothing of it. Version 3 added who may come in: a manager that knew nothing of that would let in
/// everybody. A table with a row of a higher version is refused.
pub const ROW_VERSION: u32 = 3;

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
    /// A person.
    Person(PersonId),
    /// A token.
    Token(TokenId),
    /// What is to be known of a server's certificates.
    Admission(ServerId),
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
            Key::Person(id) => format!("person/{id}"),
            Key::Token(id) => format!("token/{id}"),
            Key::Admission(id) => format!("admission/{id}"),
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
    /// See [`PersonRow`].
    Person(PersonRow),
    /// See [`TokenRow`].
    Token(TokenRow),
    /// See [`AdmissionRow`].
    Admission(AdmissionRow),
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
            Row::Person(row) => Key::Person(row.id),
            Row::Token(row) => Key::Token(row.id),
            Row::Admission(row) => Key::Admission(row.server),
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
            Row::Person(row) => serde_json::to_vec(row),
            Row::Token(row) => serde_json::to_vec(row),
            Row::Admission(row) => serde_json::to_vec(row),
        }?;
        Ok(RawRow { key: self.key().text(), json })
    }

    /// Reads a stored row, of this version or of an older one.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn decode(raw: &RawRow) -> Result<Self, RowError> {
        let kind = raw.key.split('/').next().unwrap_or_default();
        let row = match kind {
            "pool" => Row::Pool(read(&raw.json)?),
            "server" => Row::Server(read(&raw.json)?),
            "area" => Row::Area(read(&raw.json)?),
            "volume" => Row::Volume(Box::new(read(&raw.json)?)),
            "wipe" => Row::Wipe(read(&raw.json)?),
            "task" => Row::Task(Box::new(read(&raw.json)?)),
            "event" => Row::Event(read(&raw.json)?),
            "person" => Row::Person(read(&raw.json)?),
            "token" => Row::Token(read(&raw.json)?),
            "admission" => Row::Admission(read(&raw.json)?),
            other => return Err(RowError::Damaged(format!("it is of the unknown kind '{}'", other.escape_default()))),
        };
        if !sense::makes_sense(&row) {
            return Err(RowError::Damaged("its numbers are too large to be true".to_owned()));
        }
        let inside = row.key().text();
        if inside == raw.key { Ok(row) } else { Err(RowError::Damaged(format!("it says of itself that it is {inside}"))) }
    }
}

/// Why a stored row cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowError {
    /// It makes no sense: it is set aside, the rest is used.
    Damaged(String),
    /// A newer version of this software wrote it: the whole table is refused, for what an older one would make of it nobody knows.
    Newer(u32),
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowError::Damaged(why) => f.write_str(why),
            RowError::Newer(version) => write!(f, "it has version {version}, this software reads up to {ROW_VERSION}"),
        }
    }
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, RowError> {
    let damaged = |error: serde_json::Error| RowError::Damaged(format!("it is damaged: {error}"));
    let mut value: serde_json::Value = serde_json::from_slice(json).map_err(damaged)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    match version {
        None => return Err(RowError::Damaged("it is damaged: it has no version".to_owned())),
        Some(newer) if newer > u64::from(ROW_VERSION) => return Err(RowError::Newer(u32::try_from(newer).unwrap_or(u32::MAX))),
        // What an older version did not have gets its default; the row is written as one of this version.
        Some(_) => value["version"] = ROW_VERSION.into(),
    }
    serde_json::from_value(value).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_whose_numbers_cannot_be_counted_up_or_added_is_damaged() {
        let event = |number: u64| {
            let row =
                Row::Event(EventRow { version: ROW_VERSION, number, at_ms: 1, subject: String::new(), text: String::new() });
            Row::decode(&row.encode().unwrap())
        };
        assert!(event(7).is_ok() && event(sense::COUNT_MAX).is_ok());
        for number in [sense::COUNT_MAX + 1, u64::MAX] {
            assert!(matches!(event(number), Err(RowError::Damaged(_))), "{number}");
        }
    }
}
