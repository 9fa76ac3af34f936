//! Changing the table: `volume create|set-way|rename`, `borrow`, `transfer`, `return`.

use sublet_api::request::{AreaShare, Borrow, CreateVolume, Rename, Return, SetWay, TaskAnswer, TaskOutcome, Transfer};
use sublet_api::view::VolumeView;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{ByteSize, Name, Way};

use super::key;
use crate::args::{self, WayChoice};
use crate::context::{Context, new_task, with_progress};
use crate::output::{self, print, print_json};

/// Reads `a2,b2:10G` (already split at the commas).
fn shares(texts: &[String]) -> Result<Vec<AreaShare>, Refusal> {
    let share = |text: &String| {
        let (area, size) = match text.split_once(':') {
            None => (text.as_str(), None),
            Some((area, size)) => {
                let size: ByteSize =
                    size.parse().map_err(|e| Refusal::new(ErrorKind::BadRequest, format!("--on {text}: {e}")))?;
                (area, Some(size.bytes()))
            }
        };
        if area.is_empty() {
            return Err(Refusal::new(ErrorKind::BadRequest, format!("--on '{text}' names no area")).hint("write --on a2,b2:10G"));
        }
        Ok(AreaShare { area: area.to_owned(), size })
    };
    texts.iter().map(share).collect()
}

/// Prints the row that a task answered with.
fn show(c: &Context, verb: &str, answer: &TaskAnswer) {
    match &answer.outcome {
        TaskOutcome::Volume { volume } if c.json => print_json(volume),
        TaskOutcome::Volume { volume } => {
            print(&format!("{verb} {}\n{}", volume.name, output::volumes(std::slice::from_ref(volume))))
        }
        _ if c.json => print_json(answer),
        _ => {
            let reason = if answer.task.reason.is_empty() { String::new() } else { format!(" ({})", answer.task.reason) };
            print(&format!("{verb} {}{reason}\n", answer.task.subject));
        }
    }
}

pub(super) fn create(c: &Context, name: Name, way: Way, on: &[String], copies: u32) -> Result<(), Refusal> {
    let create = CreateVolume { task: new_task()?, name, way, on: shares(on)?, copies };
    let answer = with_progress(|p| c.manager().create_volume(create, p))?;
    show(c, "created", &answer);
    warn_of_concatenation(&answer);
    Ok(())
}

/// Concatenation multiplies the risk of loss (section 3 of the design): say so when such a volume is made.
fn warn_of_concatenation(answer: &TaskAnswer) {
    let TaskOutcome::Volume { volume } = &answer.outcome else { return };
    let lone = |volume: &VolumeView| volume.segments.len() > 1 && volume.segments.iter().any(|s| s.legs.len() < 2);
    if lone(volume) {
        eprintln!(
            "note: {} lies on {} areas one after the other; if one of them is lost, the volume is lost. With --way doubled the same \
             bytes are kept on two servers.",
            volume.name,
            volume.areas.len()
        );
    }
}

pub(super) fn set_way(c: &Context, volume: &str, way: Way, on: &[String], copies: u32) -> Result<(), Refusal> {
    let set_way = SetWay { task: new_task()?, way, on: shares(on)?, copies };
    let answer = with_progress(|p| c.manager().set_way(volume, set_way, p))?;
    show(c, "changed", &answer);
    warn_of_concatenation(&answer);
    Ok(())
}

pub(super) fn rename(c: &Context, volume: &str, name: Name) -> Result<(), Refusal> {
    let view = c.manager().rename_volume(volume, Rename { name })?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!("{volume} is now called {}\n", view.name));
    }
    Ok(())
}

pub(super) fn borrow(c: &Context, options: args::Borrow) -> Result<(), Refusal> {
    let way = match options.way {
        Some(WayChoice::Way(way)) => Some(way),
        Some(WayChoice::Auto) | None => None,
    };
    let server = c.identity()?.server;
    if !options.encrypt && options.key.is_named() {
        return Err(Refusal::new(ErrorKind::BadRequest, "a key was given, but not --encrypt").hint("add --encrypt"));
    }
    let seal = options.encrypt.then(|| key::new_seal(&options.key)).transpose()?;
    let is_sealed = seal.is_some();
    let borrow = Borrow {
        task: new_task()?,
        server,
        name: options.name,
        size: options.size.map(ByteSize::bytes),
        way,
        copies: options.copies,
        local: options.local,
        seal,
    };
    let answer = with_progress(|p| c.manager().borrow_volume(borrow, p))?;
    show(c, "borrowed", &answer);
    warn_of_concatenation(&answer);
    if is_sealed {
        if !matches!(&answer.outcome, TaskOutcome::Volume { volume } if volume.sealed) {
            return Err(Refusal::new(ErrorKind::Internal, "the manager borrowed the volume, and not as an encrypted one")
                .hint("do not use it: return it; the manager's version may be older than this program's"));
        }
        eprintln!(
            "note: it is encrypted, and its key is kept wrapped by what you gave. Whoever loses that has lost the bytes for good: \
             neither its lenders nor the manager can open it."
        );
    }
    Ok(())
}

pub(super) fn transfer(c: &Context, volume: &str, to: String, force: bool) -> Result<(), Refusal> {
    let transfer = Transfer { task: new_task()?, to, force };
    let answer = with_progress(|p| c.manager().transfer(volume, transfer, p))?;
    show(c, "transferred", &answer);
    Ok(())
}

pub(super) fn give_back(c: &Context, volume: &str, dissolve: bool) -> Result<(), Refusal> {
    // Without a local server this is the administrator's command, who may return what nobody has mounted.
    let server = c.identity().ok().map(|identity| identity.server);
    let give_back = Return { task: new_task()?, server, dissolve };
    let answer = with_progress(|p| c.manager().give_back(volume, give_back, p))?;
    show(c, "returned", &answer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_areas_with_or_without_a_size() {
        let texts = ["a2".to_owned(), "b2:10G".to_owned()];
        let read = shares(&texts).unwrap();
        assert_eq!(read, [AreaShare { area: "a2".into(), size: None }, AreaShare { area: "b2".into(), size: Some(10 << 30) }]);
        for bad in ["", ":1G", "a2:", "a2:10 potatoes", "a2:-1"] {
            assert!(shares(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
