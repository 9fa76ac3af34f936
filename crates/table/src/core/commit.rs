//! The only place that changes the table: durable first, then in memory.

use sublet_api::{ErrorKind, Refusal};
use sublet_types::mutation::{self, Mutation};

use super::{Core, EVENTS_MAX, TASKS_MAX, work};
use crate::change::Change;
use crate::records::{EventRow, Key, ROW_VERSION, Row, VolumeRow};
use crate::store::{RowOp, Store, StoreError};

impl<S: Store> Core<S> {
    /// Commits a change against the present revision.
    pub(super) fn commit(&mut self, mut change: Change) -> Result<(), StoreError> {
        let fresh: Vec<_> =
            std::mem::take(&mut change.warnings).into_iter().filter(|warning| !self.said.contains(warning)).collect();
        change.events.extend(fresh.iter().cloned());
        if change.is_empty() {
            return Ok(());
        }
        for (subject, text) in std::mem::take(&mut change.events) {
            tracing::info!(subject, text, "event");
            let number = self.next_event + change.puts.iter().filter(|row| matches!(row, Row::Event(_))).count() as u64;
            change.puts.push(Row::Event(EventRow { version: ROW_VERSION, number, at_ms: self.now_ms, subject, text }));
        }
        self.prune(&mut change);
        let mut ops: Vec<RowOp> = change.deletes.iter().map(|key| RowOp::Delete(key.text())).collect();
        for row in &change.puts {
            ops.push(RowOp::Put(row.encode().map_err(|error| StoreError::Failed(error.to_string()))?));
        }
        let lost = mutation::is(Mutation::CommitNotDurable) && !change.puts.iter().any(|row| matches!(row, Row::Pool(_)));
        match if lost { Ok(self.revision) } else { self.store.commit(self.revision, &ops) } {
            Ok(revision) => self.revision = revision,
            Err(error) => {
                if !self.is_store_failing {
                    tracing::error!(%error, "the table cannot be written");
                }
                self.is_store_failing = true;
                return Err(error);
            }
        }
        self.is_store_failing = false;
        if self.said.len() + fresh.len() > EVENTS_MAX {
            // Some of them are told a second time then, that is all.
            self.said.clear();
        }
        self.said.extend(fresh);
        self.applied(change);
        Ok(())
    }

    fn applied(&mut self, change: Change) {
        let is_shown = |key: Key| matches!(key, Key::Server(_) | Key::Area(_) | Key::Volume(_) | Key::Wipe(_));
        let keys = change.deletes.iter().copied().chain(change.puts.iter().map(Row::key));
        if keys.into_iter().any(is_shown) {
            self.shown_revision = self.revision;
        }
        for key in change.deletes {
            self.table.delete(key);
        }
        for row in change.puts {
            if let Row::Server(row) = &row {
                let known = self.table.servers.get(&row.id);
                if known.is_none_or(|known| known.addresses != row.addresses) {
                    self.lenders_revision += 1;
                }
                if known.is_some_and(|known| known.name != row.name || known.left != row.left) {
                    self.peers.tell(row.id);
                }
            }
            let is_news = match &row {
                Row::Task(row) => work::is_task_news(self.table.tasks.get(&row.id), row),
                Row::Volume(row) => self.table.volumes.get(&row.id).is_some_and(|before| work::is_volume_news(before, row)),
                _ => false,
            };
            if let Row::Volume(row) = &row {
                // Copies that come late are taken in only while nobody uses the volume.
                let is_quiet = |row: &VolumeRow| row.lease.is_none() && row.task.is_none();
                let before = self.table.volumes.get(&row.id);
                let was_quiet = before.is_some_and(is_quiet);
                self.relabel |= !row.absent.is_empty() && is_quiet(row) && !was_quiet;
                // What its labels make of a frozen volume is looked at when nothing is going on with it any more.
                let was_changing = before.is_some_and(|before| before.task.is_some());
                self.relabel |= row.frozen.is_some() && row.task.is_none() && was_changing;
            }
            // Held reports are answered with it.
            self.lenders_revision += u64::from(is_news);
            if let Row::Event(row) = &row {
                self.next_event = self.next_event.max(row.number + 1);
            }
            self.table.put(row);
        }
    }

    /// Something that the views show has changed without a row of theirs: a server is up or lost.
    pub(super) fn mark_shown(&mut self) {
        self.shown_revision = self.revision;
    }

    /// Deletes the oldest events and finished tasks above their caps.
    fn prune(&self, change: &mut Change) {
        let new_events = change.puts.iter().filter(|row| matches!(row, Row::Event(_))).count();
        let excess = (self.table.events.len() + new_events).saturating_sub(EVENTS_MAX);
        change.deletes.extend(self.table.events.keys().take(excess).map(|number| Key::Event(*number)));
        if self.table.tasks.len() > TASKS_MAX && change.puts.iter().any(|row| matches!(row, Row::Task(_))) {
            let mut ended: Vec<_> = self.table.tasks.values().filter(|task| !task.is_running()).collect();
            ended.sort_by_key(|task| task.ended_ms);
            let excess = ended.len().saturating_sub(TASKS_MAX);
            change.deletes.extend(ended.iter().take(excess).map(|task| Key::Task(task.id)));
        }
    }

    /// Commits what a request asked for.
    pub(super) fn commit_request(&mut self, change: Change) -> Result<(), Refusal> {
        self.commit(change).map_err(|error| {
            let hint = "nothing was changed; look at the manager's disk and log, and try again";
            Refusal::new(ErrorKind::Internal, format!("the manager cannot write its table: {error}")).hint(hint)
        })
    }
}
