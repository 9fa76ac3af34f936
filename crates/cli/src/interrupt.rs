//! Ctrl-C (SIGINT, SIGTERM, SIGHUP) while something half-done must be undone first.

use std::process::exit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sublet_api::{ErrorKind, Refusal};

/// The exit code of a command that was interrupted: as a shell reports SIGINT.
pub const EXIT_CODE: u8 = 130;

type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    watching: bool,
    hit: bool,
    /// Ends what this command is waiting for.
    action: Option<Action>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn with_state<T>(change: impl FnOnce(&mut State) -> T) -> T {
    let mut state: MutexGuard<'_, Option<State>> = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    change(state.get_or_insert_default())
}

/// From now on the first signal ends only what is waited for (see [`during`]), so that the command can undo what it has
/// begun; the second one ends the command at once.
///
/// # Errors
/// The operating system does not let signals be waited for.
pub fn watch() -> Result<(), Refusal> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    if with_state(|state| std::mem::replace(&mut state.watching, true)) {
        return Ok(());
    }
    let failed = |e: std::io::Error| Refusal::new(ErrorKind::Internal, format!("signals cannot be waited for: {e}"));
    let mut wanted = vec![SIGINT, SIGTERM];
    if !ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(wanted).map_err(failed)?;
    std::thread::Builder::new()
        .name("sublet-signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                hit();
            }
        })
        .map_err(failed)?;
    Ok(())
}

/// True if this process was started with the signal ignored, as `nohup` does it (`SigIgn` in proc(5)).
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn hit() {
    let (again, action) = with_state(|state| (std::mem::replace(&mut state.hit, true), state.action.take()));
    if again {
        exit(EXIT_CODE.into());
    }
    eprintln!("sublet: interrupted; cleaning up (once more to end at once)");
    if let Some(action) = action {
        action();
    }
}

/// True after the first signal.
pub fn was_hit() -> bool {
    with_state(|state| state.hit)
}

/// Refuses to go on after a signal.
///
/// # Errors
/// `Conflict` if there was one.
pub fn check() -> Result<(), Refusal> {
    if was_hit() { Err(Refusal::new(ErrorKind::Conflict, "interrupted")) } else { Ok(()) }
}

/// Does some work that waits; `action` makes the wait end when a signal comes (or has come already).
pub fn during<T>(action: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
    let now = with_state(|state| {
        let action: Action = Box::new(action);
        if state.hit {
            return Some(action);
        }
        state.action = Some(action);
        None
    });
    if let Some(action) = now {
        action();
    }
    let result = work();
    with_state(|state| state.action = None);
    result
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_first_signal_ends_the_wait_and_later_waits_end_at_once() {
        let (end, ended) = channel();
        let sender = end.clone();
        during(
            move || sender.send(()).unwrap(),
            || {
                assert!(check().is_ok());
                hit();
                ended.recv().unwrap();
            },
        );
        assert!(check().is_err());
        during(move || end.send(()).unwrap(), || ended.recv().unwrap());
    }
}
