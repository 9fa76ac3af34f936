//! `transfer`: a volume with its bytes goes to another server (section 5 of the design).

use sublet_api::Refusal;
use sublet_api::request::Transfer;

use super::{Context, begin, check_quiet, check_unmounted, conflict, layout, limits, listed, unmount};
use crate::change::Change;
use crate::records::{Command, Row, Step};
use crate::table::Table;

/// Plans a transfer.
///
/// # Errors
/// If nobody has the volume, it is mounted and not forced, or an older client could still write to it (F3).
pub fn plan(table: &Table, volume: &str, command: &Transfer, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    let to = table.server(&command.to)?;
    match volume.borrower {
        None => {
            let hint = format!("let {} borrow it: `sublet borrow {}`", to.name, volume.name);
            return Err(conflict(format!("volume '{}' is free: there is nothing to hand over", volume.name), hint));
        }
        Some(holder) if holder == to.id => {
            return Err(conflict(
                format!("volume '{}' is lent to {} already", volume.name, to.name),
                "there is nothing to be done",
            ));
        }
        Some(_) => check_quiet(table, volume)?,
    }
    limits::check(table, to.id, volume.taken())?;
    let command_word = Command::Transfer { to: to.id };
    if command.force
        && let Some(change) = unmount::close(table, volume, (command.task, command_word.clone()), context)
    {
        return Ok(change);
    }
    check_unmounted(table, volume).map_err(|refusal| {
        let hint = format!("unmount it there, or fence it: `sublet transfer {} --to {} --force`", volume.name, to.name);
        refusal.hint(hint)
    })?;
    if volume.epoch.number > 0 && !volume.is_fenced() {
        let unfenced = listed(volume.unfenced_legs().map(|leg| table.lender_name(leg.area)));
        let text = format!(
            "volume '{}' cannot be handed over: {unfenced} has not confirmed that the former client is fenced",
            volume.name
        );
        return Err(conflict(text, "start that lender again; it is fenced before it serves anything"));
    }
    let volume = layout::handed_to(volume, to.id, command.task, (context.random)());
    let mut task = begin(command.task, command_word, volume.name.as_str(), Step::Labelling, context.now_ms);
    task.volume = Some(volume.id);
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}
