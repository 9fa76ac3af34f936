//! Refusals: what happened, why, and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The closed set of reasons for a refusal; each has an HTTP status and an exit code (`docs/quickstart.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is malformed (names, sizes, unknown fields).
    BadRequest,
    /// Nobody knows who asks: there is no certificate or token, or it is not valid any more.
    Unauthenticated,
    /// Whoever asks may not do that.
    Forbidden,
    /// Too many tries: later again.
    TooMany,
    /// No server, area, volume or task of that name or id.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Somebody else holds it, or its state does not allow this now.
    Conflict,
    /// Not enough free space or not enough servers.
    NoSpace,
    /// The caller's epoch is older than the volume's: it has been fenced (F4).
    StaleEpoch,
    /// A lender that is needed does not answer.
    LenderUnreachable,
    /// The manager or the local server cannot be reached.
    Unreachable,
    /// It did not finish in time; it may still be going on (see `sublet task ls`).
    TimedOut,
    /// An I/O error of a disk or file.
    Io,
    /// A defect or a damaged record.
    Internal,
}

impl ErrorKind {
    /// The HTTP status that carries this kind.
    pub const fn http_status(self) -> u16 {
        match self {
            ErrorKind::BadRequest => 400,
            ErrorKind::Unauthenticated => 401,
            ErrorKind::Forbidden => 403,
            ErrorKind::TooMany => 429,
            ErrorKind::NotFound => 404,
            ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::StaleEpoch => 409,
            ErrorKind::NoSpace => 507,
            ErrorKind::LenderUnreachable | ErrorKind::Unreachable => 503,
            ErrorKind::TimedOut => 504,
            ErrorKind::Io | ErrorKind::Internal => 500,
        }
    }

    /// The exit code of the command line for this kind (2 is for wrong usage, as the shell has it).
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Internal => 1,
            ErrorKind::BadRequest => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::AlreadyExists => 4,
            ErrorKind::Conflict => 5,
            ErrorKind::NoSpace => 6,
            ErrorKind::StaleEpoch => 7,
            ErrorKind::LenderUnreachable | ErrorKind::Unreachable => 8,
            ErrorKind::TimedOut => 9,
            ErrorKind::Io => 10,
            ErrorKind::Unauthenticated => 11,
            ErrorKind::Forbidden => 12,
            ErrorKind::TooMany => 13,
        }
    }
}

/// A request that was not carried out; nothing was changed by it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refusal {
    /// The kind, for programs.
    pub kind: ErrorKind,
    /// What happened and why, for people.
    pub message: String,
    /// What to do about it; empty if there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for Refusal {}
