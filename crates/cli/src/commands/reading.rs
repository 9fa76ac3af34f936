//! The reading commands: `table`, `ls`, `show`, `events`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use serde::Serialize;
use sublet_api::Refusal;

use crate::context::Context;
use crate::output::{self, print, print_json};

/// How long one held request for a changed table lasts.
const WATCH_WAIT: Duration = Duration::from_secs(5);
/// How long `--watch` goes on while the manager is away.
const WATCH_PATIENCE: Duration = Duration::from_secs(600);

fn show<T: Serialize>(c: &Context, value: &T, text: impl FnOnce(&T) -> String) {
    if c.json { print_json(value) } else { print(&text(value)) }
}

pub(super) fn table(c: &Context, watch: bool) -> Result<(), Refusal> {
    let manager = c.manager();
    let mut view = manager.table(None, Duration::ZERO)?;
    loop {
        if watch && c.json {
            // One line a change, so that a program can read it line by line.
            print(&(serde_json::to_string(&view).unwrap_or_default() + "\n"));
        } else {
            if watch && io::stdout().is_terminal() {
                print("\x1b[H\x1b[2J");
            }
            show(c, &view, output::table);
            if watch && !io::stdout().is_terminal() {
                print("\n");
            }
        }
        if !watch {
            return Ok(());
        }
        let shown = view.revision;
        while view.revision == shown {
            view = manager.with_patience(WATCH_PATIENCE).table(Some(shown), WATCH_WAIT)?;
        }
    }
}

pub(super) fn servers(c: &Context) -> Result<(), Refusal> {
    show(c, &c.manager().servers()?, |list| output::servers(list));
    Ok(())
}

pub(super) fn areas(c: &Context) -> Result<(), Refusal> {
    show(c, &c.manager().areas()?, |list| output::areas(list));
    Ok(())
}

pub(super) fn volumes(c: &Context) -> Result<(), Refusal> {
    show(c, &c.manager().volumes()?, |list| output::volumes(list));
    Ok(())
}

pub(super) fn volume(c: &Context, volume: &str) -> Result<(), Refusal> {
    show(c, &c.manager().volume(volume)?, output::volume);
    Ok(())
}

pub(super) fn tasks(c: &Context) -> Result<(), Refusal> {
    show(c, &c.manager().tasks()?, |list| output::tasks(list));
    Ok(())
}

pub(super) fn events(c: &Context, after: u64, limit: usize) -> Result<(), Refusal> {
    show(c, &c.manager().events(after, limit)?, |list| output::events(list));
    Ok(())
}
