//! The one error of this crate: a small stable kind, and a text for people.

use std::fmt;
use std::io;

use sublet_api::{ErrorKind, Refusal};
use sublet_wire::Status;

/// What went wrong, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AreaErrorKind {
    /// The label holds no such slice.
    NoSlice,
    /// The epoch is older than the one persisted (F1, F4).
    StaleEpoch,
    /// The secret or the borrower is not the lease's.
    NotYours,
    /// The label says something else (F6), or equal numbers come from different histories.
    Disagreement,
    /// The place belongs to another slice (L5).
    Overlap,
    /// The label has no room for another slice, or the area none for such a place.
    Full,
    /// The disk reported an error.
    Io,
    /// No label, a damaged one, or one of a newer version.
    Format,
    /// Its state does not allow this now.
    Busy,
    /// A piece is missing, swapped or older (L3), or the area was released.
    Offline,
    /// The range does not lie in the slice.
    OutOfRange,
}

/// An operation on an area that was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AreaError {
    /// The kind.
    pub kind: AreaErrorKind,
    message: String,
    hint: &'static str,
}

impl AreaError {
    pub(crate) fn new(kind: AreaErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: "" }
    }

    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    /// An error of the disk door while doing `what` (a path and an operation).
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(AreaErrorKind::Io, format!("{what}: {error}"))
    }

    /// The error as the manager and the command line are told.
    pub fn refusal(&self) -> Refusal {
        let kind = match self.kind {
            AreaErrorKind::NoSlice => ErrorKind::NotFound,
            AreaErrorKind::StaleEpoch => ErrorKind::StaleEpoch,
            AreaErrorKind::NotYours | AreaErrorKind::Disagreement | AreaErrorKind::Overlap | AreaErrorKind::Busy => {
                ErrorKind::Conflict
            }
            AreaErrorKind::Full => ErrorKind::NoSpace,
            AreaErrorKind::Io | AreaErrorKind::Format => ErrorKind::Io,
            AreaErrorKind::Offline => ErrorKind::LenderUnreachable,
            AreaErrorKind::OutOfRange => ErrorKind::BadRequest,
        };
        Refusal::new(kind, self.message.clone()).hint(self.hint)
    }

    /// The error as a client is told.
    pub const fn status(&self) -> Status {
        match self.kind {
            AreaErrorKind::NoSlice => Status::NoSlice,
            AreaErrorKind::StaleEpoch => Status::StaleEpoch,
            AreaErrorKind::NotYours => Status::NotYours,
            AreaErrorKind::Disagreement | AreaErrorKind::Overlap => Status::Disagreement,
            AreaErrorKind::Full | AreaErrorKind::OutOfRange => Status::OutOfRange,
            AreaErrorKind::Io | AreaErrorKind::Format => Status::Io,
            AreaErrorKind::Busy | AreaErrorKind::Offline => Status::Unavailable,
        }
    }
}

impl fmt::Display for AreaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for AreaError {}
