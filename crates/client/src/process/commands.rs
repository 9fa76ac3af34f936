//! Status, search and initialisation, in the engine's thread.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc::Sender;

use futures_util::future::{Either, select};
use sublet_api::control::{ClientAnswerLine, Search};
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::Doors;
use sublet_doors::local::Signal;
use sublet_volume::{ManagerDoor, Volume, ZeroFlags};

/// Zeroes made in one step of an initialisation, so that progress can be told.
const INIT_STEP: u64 = 64 << 20;
/// Matches sent in one line.
const MATCHES_PER_LINE: usize = 4096;
/// Matches that one search sends at most: they are kept until the asker takes them.
const MATCHES_MAX: u64 = 8 << 20;

/// The path, for people.
pub fn status<D: Doors, M: ManagerDoor>(volume: &Volume<D, M>, device: Option<String>) -> ClientAnswerLine {
    let status = volume.status();
    let sum = |total: (u64, u64), one: &sublet_api::request::ResyncReport| (total.0 + one.done, total.1 + one.total);
    let resync = (!status.resync.is_empty()).then(|| status.resync.iter().fold((0, 0), sum));
    ClientAnswerLine::Status { path: status.path, reason: status.reason, missing: status.missing, device, resync }
}

/// Makes every byte read as zero, durably (seed: initialization).
pub async fn initialise<D: Doors, M: ManagerDoor>(volume: Rc<Volume<D, M>>, answer: Sender<ClientAnswerLine>) {
    let total = volume.size();
    let mut done = 0;
    let mut result = Ok(());
    while done < total && result.is_ok() {
        let length = INIT_STEP.min(total - done);
        result = volume.write_zeroes(done, length, ZeroFlags::default()).await;
        done += length;
        // An asker that went away does not stop it: half an initialisation helps nobody.
        let _ = answer.send(ClientAnswerLine::Progress { done, total });
    }
    if result.is_ok() {
        result = volume.flush().await;
    }
    let line = match result {
        Ok(()) => ClientAnswerLine::Done,
        Err(error) => ClientAnswerLine::Refused { refusal: error.refusal() },
    };
    let _ = answer.send(line);
}

fn pattern(hex: &str) -> Result<Vec<u8>, Refusal> {
    let refused = || {
        Refusal::new(ErrorKind::BadRequest, "the pattern is not a non-empty, even number of hexadecimal digits")
            .hint("write for example 7f454c46")
    };
    let digits: Vec<u32> = hex.chars().map(|c| c.to_digit(16)).collect::<Option<_>>().ok_or_else(refused)?;
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return Err(refused());
    }
    Ok(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | *digit as u8)).collect())
}

/// Finds a byte pattern.
pub async fn search<D: Doors, M: ManagerDoor>(volume: Rc<Volume<D, M>>, search: Search, answer: Sender<ClientAnswerLine>) {
    let line = match pattern(&search.pattern_hex) {
        Ok(pattern) => {
            find(&volume, &pattern, &search, &answer).await.unwrap_or_else(|refusal| ClientAnswerLine::Refused { refusal })
        }
        Err(refusal) => ClientAnswerLine::Refused { refusal },
    };
    let _ = answer.send(line);
}

async fn find<D: Doors, M: ManagerDoor>(
    volume: &Volume<D, M>,
    pattern: &[u8],
    search: &Search,
    answer: &Sender<ClientAnswerLine>,
) -> Result<ClientAnswerLine, Refusal> {
    let (sent, stop, stopped) = (Cell::new(0u64), Cell::new(false), Signal::new());
    let give_up = || {
        stop.set(true);
        stopped.notify();
    };
    let mut found = |offsets: &[u64]| {
        if search.count_only || stop.get() {
            return;
        }
        sent.set(sent.get() + offsets.len() as u64);
        let gone = offsets
            .chunks(MATCHES_PER_LINE)
            .any(|part| answer.send(ClientAnswerLine::Matches { offsets: part.to_vec() }).is_err());
        if gone || sent.get() > MATCHES_MAX {
            give_up();
        }
    };
    let mut progress = |done: u64, total: u64| {
        if answer.send(ClientAnswerLine::Progress { done, total }).is_err() {
            give_up();
        }
    };
    let until_stopped = async {
        while !stop.get() {
            stopped.wait().await;
        }
    };
    let work = volume.search(pattern, search.limit, &mut found, &mut progress);
    match select(pin!(work), pin!(until_stopped)).await {
        Either::Left((Ok(summary), _)) => Ok(ClientAnswerLine::Searched { count: summary.count, limited: summary.limited }),
        Either::Left((Err(error), _)) => Err(error.refusal()),
        Either::Right(((), _)) => Err(Refusal::new(ErrorKind::BadRequest, format!("there are more than {MATCHES_MAX} matches"))
            .hint("use --count, or --limit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_hexadecimal() {
        assert_eq!(pattern("00fFa1").unwrap(), [0, 255, 161]);
        for wrong in ["", "0", "xy", "0 ", "+1", "\u{e9}\u{e9}"] {
            assert_eq!(pattern(wrong).unwrap_err().kind, ErrorKind::BadRequest, "{wrong}");
        }
    }
}
