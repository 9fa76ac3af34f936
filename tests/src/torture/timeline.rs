//! What happened when; printed when a test fails.

use std::sync::Mutex;
use std::time::Instant;

/// A list of what happened.
pub struct Timeline {
    begun: Instant,
    lines: Mutex<Vec<String>>,
}

impl Timeline {
    /// Begins now.
    pub fn new() -> Self {
        Self { begun: Instant::now(), lines: Mutex::default() }
    }

    /// Something happened.
    pub fn note(&self, what: impl std::fmt::Display) {
        let line = format!("{:9.3} {what}", self.begun.elapsed().as_secs_f64());
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line);
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("SUBLET_TORTURE_TIMELINE").is_some() {
            let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("timeline (seconds):\n{}", lines.join("\n"));
        }
    }
}
