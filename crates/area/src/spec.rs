//! What an area is made of, as the agent keeps it beside its other state.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sublet_types::{AreaId, Name, PoolId, ServerId};

/// One piece of an area: a stretch of a file or device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PieceSpec {
    /// The file or device. Use one path (best the canonical one) for all parts of one device.
    pub path: PathBuf,
    /// Where the piece begins in it, in bytes (a multiple of 4 KiB).
    pub offset: u64,
    /// Its length in bytes (a multiple of 4 KiB).
    pub length: u64,
}

impl PieceSpec {
    /// The byte after the last.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// True if a byte lies in both (as far as the paths tell).
    pub fn overlaps(&self, other: &Self) -> bool {
        self.path == other.path && self.offset < other.end() && other.offset < self.end()
    }
}

impl fmt::Display for PieceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.offset > 0 { write!(f, " from byte {}", self.offset) } else { Ok(()) }
    }
}

/// A new area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormatSpec {
    /// The pool it will belong to.
    pub pool: PoolId,
    /// Its id, drawn from the `Rng` door.
    pub area: AreaId,
    /// The server that lends it.
    pub server: ServerId,
    /// Its name.
    pub name: Name,
    /// Its pieces, 1 to 64, in their order for ever.
    pub pieces: Vec<PieceSpec>,
    /// True if files are not preallocated: zeroed space is given back to the file system then (W6).
    pub sparse: bool,
}

/// What a label on a piece says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PieceIdentity {
    /// The pool.
    pub pool: PoolId,
    /// The area.
    pub area: AreaId,
    /// The server that lent it.
    pub server: ServerId,
    /// The area's name.
    pub name: Name,
    /// Which piece of the area, counted from 0.
    pub index: usize,
    /// How many pieces the area has.
    pub count: usize,
    /// The length of the piece in bytes.
    pub length: u64,
}
