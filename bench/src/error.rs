//! What ends a run.

use std::fmt;

/// A sentence that says what went wrong.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// With that sentence.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds what was being done to an error.
pub trait Doing<T> {
    /// `what` is a phrase like "making a folder".
    ///
    /// # Errors
    /// The same with that phrase before it.
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}
