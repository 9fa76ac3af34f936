//! The one error of this crate: a small kind, and a text that says what happened, why, and what to do.

use std::fmt;

use sublet_api::{ErrorKind, Refusal};

/// What kind of failure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum VolumeErrorKind {
    /// The range does not lie in the volume.
    OutOfRange,
    /// The volume is mounted read-only.
    ReadOnly,
    /// A newer epoch exists: this client has been fenced and does nothing any more (F4).
    Fenced,
    /// A lender without which it cannot go on has been missing for longer than `fail_after`.
    LenderMissing,
    /// A lender's disk failed, or no copy could be read.
    Io,
    /// What was asked cannot be done that way (fast zeroes where the lender has none).
    Unsupported,
    /// The volume was closed.
    Closed,
    /// A lender or the mounting information says something that cannot be.
    Protocol,
}

/// A request of a volume failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeError {
    /// The kind, for programs.
    pub kind: VolumeErrorKind,
    /// What happened, why, and what to do, for people.
    pub text: String,
}

impl VolumeError {
    /// An error of that kind.
    pub fn new(kind: VolumeErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The same as the command line and the API tell it.
    pub fn refusal(&self) -> Refusal {
        let kind = match self.kind {
            VolumeErrorKind::OutOfRange | VolumeErrorKind::Unsupported => ErrorKind::BadRequest,
            VolumeErrorKind::ReadOnly | VolumeErrorKind::Closed => ErrorKind::Conflict,
            VolumeErrorKind::Fenced => ErrorKind::StaleEpoch,
            VolumeErrorKind::LenderMissing => ErrorKind::LenderUnreachable,
            VolumeErrorKind::Io => ErrorKind::Io,
            VolumeErrorKind::Protocol => ErrorKind::Internal,
        };
        Refusal::new(kind, self.text.clone())
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for VolumeError {}
