//! What the command line says to the local server (`$SUBLET_HOME/control.sock`) and to a volume's client
//! (`$SUBLET_HOME/mounts/NAME/control.sock`). One JSON object a line both ways; a request is answered with any number of
//! progress lines and one last line.

use serde::{Deserialize, Serialize};
use sublet_types::{Name, PoolId, ServerId};

use crate::error::Refusal;
use crate::server::AreaReport;
use crate::view::PathState;

/// The local server's identity, kept in `$SUBLET_HOME/identity.json` (0600).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// See [`Self::VERSION`].
    pub version: u32,
    /// The server's id.
    pub server: ServerId,
    /// Its name in the table.
    pub name: Name,
    /// Its pool, once it has registered.
    pub pool: Option<PoolId>,
    /// Where the manager was last reached.
    pub managers: Vec<String>,
}

impl Identity {
    /// The version of this record that this program reads and writes.
    pub const VERSION: u32 = 1;
}

/// A request to the local server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum ServerRequest {
    /// Register an area.
    Lend(Lend),
    /// What could be lent?
    Suggest,
    /// Who are you, and how are you?
    Status,
}

/// `sublet lend`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lend {
    /// Absolute paths: a folder, a file, a partition or disk, or several of them to be joined.
    pub paths: Vec<String>,
    /// Room for data in bytes (folder), or length of the part (file, device).
    pub size: Option<u64>,
    /// Where the part begins, in bytes.
    pub offset: Option<u64>,
    /// The area's name.
    pub name: Option<Name>,
    /// Do not preallocate.
    pub sparse: bool,
    /// Part of the file system that stays free, in percent.
    pub keep_free_percent: u8,
    /// Lend it although something is on it.
    pub force: bool,
}

/// An answer of the local server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum ServerAnswer {
    /// Going on.
    Progress {
        /// What is being done.
        what: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The area is registered.
    Lent {
        /// The area.
        area: AreaReport,
        /// What the lender should know (for example: copy-on-write file systems keep old blocks, P2).
        warnings: Vec<String>,
    },
    /// What could be lent.
    Suggestions {
        /// One entry a disk, partition or folder.
        suggestions: Vec<Suggestion>,
    },
    /// The state.
    Status {
        /// Who it is.
        identity: Identity,
        /// The areas.
        areas: Vec<AreaReport>,
        /// Whether the manager was reached at the last try.
        manager_reached: bool,
        /// Why the manager has refused this server, and what to do; empty if it has not.
        #[serde(default)]
        manager_refusal: String,
        /// The manager's address in use.
        manager: String,
        /// Where it listens.
        listen: Vec<String>,
        /// Open sessions of borrowers.
        sessions: usize,
        /// How its operations are given to the kernel: `io_uring`, or what is used in its place and why.
        #[serde(default)]
        io: String,
    },
    /// Refused.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

/// Something that could be lent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Suggestion {
    /// A disk, partition or folder.
    pub path: String,
    /// `disk`, `partition` or `folder`.
    pub kind: String,
    /// Bytes that could be lent.
    pub surplus: u64,
    /// The command that lends it.
    pub command: String,
    /// What to know before doing so.
    pub note: String,
}

/// A request to a volume's client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum ClientRequest {
    /// How is the path?
    Status,
    /// Find a byte pattern.
    Search(Search),
    /// Make every byte read as zero (seed: initialization).
    Init,
    /// Wrap the key of a sealed volume anew.
    Rekey {
        /// What opens it.
        old: Hidden,
        /// What is to open it from then on.
        new: Hidden,
    },
    /// Flush, close the path cleanly, and end.
    Stop {
        /// Do not wait for lenders that do not answer.
        force: bool,
    },
}

/// A line that is handed from process to process of one owner and must not be shown: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}

/// `sublet search`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Search {
    /// The bytes, in hexadecimal digits.
    pub pattern_hex: String,
    /// Stop after so many matches.
    pub limit: Option<u64>,
    /// Send no offsets, only their count.
    pub count_only: bool,
}

/// An answer of a volume's client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum ClientAnswerLine {
    /// Going on.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Byte offsets of matches, ascending.
    Matches {
        /// In the volume, in bytes.
        offsets: Vec<u64>,
    },
    /// The search has ended.
    Searched {
        /// How many matches were found.
        count: u64,
        /// True if the limit ended it.
        limited: bool,
    },
    /// The state of the path.
    Status {
        /// How it is.
        path: PathState,
        /// What is the matter, for people.
        reason: String,
        /// Missing lenders, by name.
        missing: Vec<String>,
        /// The kernel's block device, if there is one.
        device: Option<String>,
        /// Bytes copied and to copy of resyncs going on.
        resync: Option<(u64, u64)>,
        /// How its operations are given to the kernel: `io_uring`, or what is used in its place and why.
        #[serde(default)]
        io: String,
    },
    /// Done.
    Done,
    /// Refused or failed.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}
