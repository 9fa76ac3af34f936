//! A change: rows to put and to delete, planned on one revision and committed as a whole.

use crate::records::{Key, Row};

/// What a plan wants to do to the table.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    /// Rows to insert or replace.
    pub puts: Vec<Row>,
    /// Rows to remove.
    pub deletes: Vec<Key>,
    /// Events: (subject, text). They get their numbers when the change is committed.
    pub events: Vec<(String, String)>,
    /// Events that a state of things causes again and again: each is told once in a life of the manager's process.
    pub warnings: Vec<(String, String)>,
}

impl Change {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a row; a later put of the same row in one change replaces an earlier one.
    pub fn put(&mut self, row: Row) {
        let key = row.key();
        self.puts.retain(|other| other.key() != key);
        self.puts.push(row);
    }

    /// Deletes a row.
    pub fn delete(&mut self, key: Key) {
        self.puts.retain(|other| other.key() != key);
        self.deletes.push(key);
    }

    /// Tells what happened to several parts of one thing: the same text is told once.
    pub fn event_once(&mut self, subject: impl Into<String>, text: impl Into<String>) {
        let event = (subject.into(), text.into());
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    /// Tells what happened.
    pub fn event(&mut self, subject: impl Into<String>, text: impl Into<String>) {
        self.events.push((subject.into(), text.into()));
    }

    /// Tells of a state of things.
    pub fn warning(&mut self, subject: impl Into<String>, text: impl Into<String>) {
        self.warnings.push((subject.into(), text.into()));
    }

    /// True if there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty() && self.events.is_empty() && self.warnings.is_empty()
    }
}
