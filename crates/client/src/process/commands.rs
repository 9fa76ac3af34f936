//! Status, search and initialisation, in the engine's thread.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use sublet_api::control::{ClientAnswerLine, Search};
use sublet_api::work::WorkKind;
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::Doors;
use sublet_doors::local::Signal;
use sublet_volume::{ManagerDoor, Volume, Wanted, ZeroFlags};

use super::asker::Asker;

/// Zeroes made in one step of an initialisation, so that progress can be told.
const INIT_STEP: u64 = 64 << 20;
/// Matches sent in one line.
const MATCHES_PER_LINE: usize = 4096;

/// Ends the long work of a client that is about to end.
#[derive(Default)]
pub struct Stopping(Signal);

impl Stopping {
    /// Whatever runs now ends.
    pub fn stop(&self) {
        self.0.notify();
    }

    /// Waits for the next [`Stopping::stop`].
    async fn stopped(&self) {
        self.0.wait().await;
    }
}

/// The path, for people.
pub fn status<D: Doors, M: ManagerDoor>(volume: &Volume<D, M>, device: Option<String>) -> ClientAnswerLine {
    let status = volume.status();
    let resyncs = status.work.iter().filter(|work| work.kind == WorkKind::Resync);
    let resync = resyncs.map(|work| (work.done, work.total)).reduce(|all, one| (all.0 + one.0, all.1 + one.1));
    ClientAnswerLine::Status {
        path: status.path,
        reason: status.reason,
        missing: status.missing,
        device,
        resync,
        io: sublet_doors::real::io(),
    }
}

/// Makes every byte read as zero, durably (seed: initialization). An asker that went away does not stop it, only the client's
/// own end does: half an initialisation helps nobody.
pub async fn initialise<D: Doors, M: ManagerDoor>(volume: Rc<Volume<D, M>>, asker: Asker, stopping: Rc<Stopping>) {
    let work = async {
        let total = volume.size();
        let mut done = 0;
        while done < total {
            let length = INIT_STEP.min(total - done);
            volume.write_zeroes(done, length, ZeroFlags::default()).await?;
            done += length;
            asker.progress(done, total);
        }
        volume.flush().await
    };
    let watch = async {
        asker.gone().await;
        std::future::pending::<()>().await;
    };
    let (watch, stopped) = (pin!(watch), pin!(stopping.stopped()));
    let line = match select(pin!(work), select(watch, stopped)).await {
        Either::Left((Ok(()), _)) => ClientAnswerLine::Done,
        Either::Left((Err(error), _)) => ClientAnswerLine::Refused { refusal: error.refusal() },
        Either::Right(_) => ClientAnswerLine::Refused { refusal: broken_off("initialised only in part") },
    };
    asker.last(line);
}

fn broken_off(what: &str) -> Refusal {
    Refusal::new(ErrorKind::Conflict, format!("{what}: the volume is being unmounted")).hint("mount it again, then repeat it")
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

/// Finds a byte pattern. Ends at once when the asker goes away or the client is told to end.
pub async fn search<D: Doors, M: ManagerDoor>(volume: Rc<Volume<D, M>>, search: Search, asker: Asker, stopping: Rc<Stopping>) {
    let line = {
        let (gone, stopped) = (pin!(asker.gone()), pin!(stopping.stopped()));
        let work = find(&volume, &search, &asker);
        match select(pin!(work), select(gone, stopped)).await {
            Either::Left((line, _)) => line.unwrap_or_else(|refusal| ClientAnswerLine::Refused { refusal }),
            Either::Right((Either::Left(_), _)) => return tracing::debug!("a search was left by its asker"),
            Either::Right((Either::Right(_), _)) => ClientAnswerLine::Refused { refusal: broken_off("searched only in part") },
        }
    };
    asker.last(line);
}

async fn find<D: Doors, M: ManagerDoor>(
    volume: &Volume<D, M>,
    search: &Search,
    asker: &Asker,
) -> Result<ClientAnswerLine, Refusal> {
    let pattern = pattern(&search.pattern_hex)?;
    let wanted = Wanted { pattern: &pattern, limit: search.limit, count_only: search.count_only };
    let mut found = async |offsets: Vec<u64>| {
        for part in offsets.chunks(MATCHES_PER_LINE) {
            asker.line(ClientAnswerLine::Matches { offsets: part.to_vec() }).await;
        }
    };
    let mut progress = |done: u64, total: u64| asker.progress(done, total);
    let summary = volume.search(wanted, &mut found, &mut progress).await.map_err(|error| error.refusal())?;
    Ok(ClientAnswerLine::Searched { count: summary.count, limited: summary.limited })
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
