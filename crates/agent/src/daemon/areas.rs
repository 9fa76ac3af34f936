//! The thread `areas`: opens areas at the start, and again and again while a piece is missing.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sublet_api::server::AreaReport;
use sublet_area::{Area, PieceSpec, lendable};
use sublet_types::AreaId;

use super::failures::FailureNotes;
use super::state::{AreaEntry, Daemon};
use crate::limits::AREA_RETRY_INTERVAL;

/// An opening that takes longer waits for a lock: another process still has the area (F2).
const OPENING_TIME_USUAL: Duration = Duration::from_secs(2);
/// At the first try and then at every so many the pieces are looked for elsewhere.
const SEARCH_EVERY: u32 = 3;
/// How long a look at one place may take.
const LOOK_TIME_MAX: Duration = Duration::from_secs(3);
/// Files of a folder that are looked at for a missing piece.
const FILES_MAX: usize = 200;

/// An opening has ended: the report and the pieces, or why not.
type Opened = (AreaId, Result<(AreaReport, Vec<PieceSpec>), String>);

/// What an area lies on, for people.
pub(crate) fn place_of(pieces: &[PieceSpec]) -> String {
    let kind = |piece: &PieceSpec| if piece.path.starts_with("/dev") { "device" } else { "file" };
    match pieces {
        [piece] => format!("{} {piece}", kind(piece)),
        _ => format!("{} pieces: {}", pieces.len(), pieces.iter().map(PieceSpec::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The thread.
pub(crate) fn watch(daemon: &Arc<Daemon>) {
    let (sender, receiver) = channel::<Opened>();
    let mut opening: HashSet<AreaId> = HashSet::new();
    let mut told = Vec::new();
    for round in 0u32.. {
        let search = round % SEARCH_EVERY == 0;
        for entry in daemon.entries().into_iter().filter(|entry| entry.offline.is_some()) {
            if opening.insert(entry.area) && open(daemon, entry.clone(), search, sender.clone()).is_err() {
                // The data thread has stopped: the process ends.
                return;
            }
        }
        let begun = Instant::now();
        while let Some(left) = AREA_RETRY_INTERVAL.checked_sub(begun.elapsed()) {
            let left = if opening.is_empty() { left } else { left.min(OPENING_TIME_USUAL) };
            match receiver.recv_timeout(left) {
                Ok((area, result)) => {
                    opening.remove(&area);
                    finish(daemon, area, result);
                }
                Err(RecvTimeoutError::Timeout) => {
                    for area in &opening {
                        offline(daemon, *area, "another process still has it open; waiting for its lock");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // What the areas themselves say: a failed disk, another name, a quarantine.
        let Ok(reports) = daemon.reports() else { return };
        let state = |r: AreaReport| (r.area, r.name, r.capacity, r.offline, r.open, r.quarantined, r.failures);
        let summary: Vec<_> = reports.into_iter().map(state).collect();
        if summary != told {
            told = summary;
            daemon.outgoing.areas_changed();
        }
    }
}

fn offline(daemon: &Daemon, area: AreaId, reason: &str) {
    let own = reason.to_owned();
    // The data thread knows best: the opening may have ended just now, or a `lend` has found the area elsewhere. If it has
    // stopped, nobody asks for the area any more.
    let Ok(is_away) = daemon.data.call(async move |agent| agent.set_offline(area, &own)) else { return };
    if daemon.note_offline(area, is_away.then_some(reason)) {
        if is_away {
            tracing::warn!(area = %area.short(), "the area is offline: {reason}");
        }
        daemon.outgoing.areas_changed();
    }
}

fn finish(daemon: &Daemon, area: AreaId, result: Result<(AreaReport, Vec<PieceSpec>), String>) {
    match result {
        Ok((report, pieces)) => {
            tracing::info!(name = %report.name, place = %report.place, "area online");
            let saved = daemon.change_entries(|entries| {
                if let Some(entry) = entries.iter_mut().find(|entry| entry.area == area) {
                    (entry.name, entry.capacity, entry.place, entry.pieces) =
                        (report.name, report.capacity, report.place, pieces);
                }
            });
            if let Err(refusal) = saved {
                tracing::warn!(%refusal, "the list of areas was not saved");
            }
            daemon.note_offline(area, None);
            daemon.outgoing.areas_changed();
        }
        Err(reason) => offline(daemon, area, &reason),
    }
}

/// Starts to open an area; the result comes through the channel. F2: this waits as long as another process has the lock,
/// and meanwhile the other areas are served.
fn open(daemon: &Daemon, entry: AreaEntry, search: bool, done: Sender<Opened>) -> Result<(), sublet_api::Refusal> {
    let (pool, boot, home) = (daemon.pool(), daemon.facts.boot, daemon.home.clone());
    let elsewhere = if search { candidates(&entry.pieces) } else { Vec::new() };
    let area = entry.area;
    daemon.data.start(
        async move |agent| {
            let doors = agent.doors().clone();
            let mut pieces = entry.pieces.clone();
            if !elsewhere.is_empty() {
                find_moved(&doors, area, &mut pieces, elsewhere).await;
            }
            // An opening changes the labels: what is another area's is left alone.
            if let Some(first) = pieces.first()
                && let Ok(Some(label)) = Area::read_identity(&doors, first).await
                && label.area != area
            {
                return Err(format!("it is missing: another area ({}) lies at {first} now; attach its disk", label.name));
            }
            let notes = Rc::new(FailureNotes(home));
            let open = Area::open_with(&doors, &pieces, pool, boot, notes).await.map_err(|e| e.to_string())?;
            if open.id() != area {
                return Err(format!("another area ({}) lies there now", open.name()));
            }
            let place = place_of(&pieces);
            agent.add_area(open.clone(), &place);
            Ok((open.report(&place), pieces))
        },
        move |result| {
            // Nobody waits for it when the process ends.
            let _ = done.send((area, result));
        },
    )
}

/// Puts pieces that turned up under another name back into their places, by their labels. Of two copies of a piece the one
/// that was in use last is taken, even if an older one lies at the known place.
async fn find_moved<D: sublet_doors::Doors>(doors: &D, area: AreaId, pieces: &mut [PieceSpec], elsewhere: Vec<PieceSpec>) {
    let mut newest: Vec<Option<u64>> = Vec::with_capacity(pieces.len());
    for (index, place) in pieces.iter().enumerate() {
        let label = Area::read_opening(doors, place).await.ok().flatten();
        newest.push(label.filter(|(label, _)| label.area == area && label.index == index).map(|(_, opening)| opening));
    }
    for candidate in elsewhere {
        // A file that cannot be read is not the one that is looked for; a device that hangs keeps no others away.
        let read = doors.timeout(LOOK_TIME_MAX, Area::read_opening(doors, &candidate)).await;
        let Ok(Ok(Some((label, opening)))) = read else { continue };
        let found = PieceSpec { path: candidate.path, offset: candidate.offset, length: label.length };
        let (Some(place), Some(newest)) = (pieces.get_mut(label.index), newest.get_mut(label.index)) else { continue };
        if label.area == area && newest.is_none_or(|newest| newest < opening) {
            tracing::info!(from = %place, to = %found, "a piece turned up elsewhere");
            *place = found;
            *newest = Some(opening);
        }
    }
}

/// Where a missing piece may be: block devices, and files beside the known ones.
fn candidates(pieces: &[PieceSpec]) -> Vec<PieceSpec> {
    let mut found = lendable::block_devices();
    // A part of a disk keeps its place on the disk.
    let offsets: HashSet<u64> = pieces.iter().map(|piece| piece.offset).filter(|offset| *offset > 0).collect();
    let parts: Vec<_> =
        found.iter().flat_map(|device| offsets.iter().map(|offset| PieceSpec { offset: *offset, ..device.clone() })).collect();
    found.extend(parts);
    let folders: HashSet<PathBuf> = pieces.iter().filter_map(|piece| piece.path.parent()).map(PathBuf::from).collect();
    for folder in folders.iter().filter(|folder| !folder.starts_with("/dev")) {
        let Ok(files) = fs::read_dir(folder) else { continue };
        for file in files.flatten().take(FILES_MAX) {
            let Ok(facts) = file.metadata() else { continue };
            if facts.is_file() {
                found.push(PieceSpec { path: file.path(), offset: 0, length: facts.len() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use sublet_area::{Area, FormatSpec, PieceSpec};
    use sublet_doors::real::RealDoors;
    use sublet_types::{PoolId, ServerId};

    use super::*;

    const AREA: AreaId = AreaId::from_u128(7);
    const LENGTH: u64 = 32 << 20;

    /// Copies a file and leaves its holes: that needs little room.
    fn copy(from: &std::path::Path, to: &std::path::Path) {
        use std::os::unix::fs::FileExt;
        let bytes = fs::read(from).unwrap();
        let file = fs::File::create(to).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (n, block) in bytes.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
            file.write_all_at(block, n as u64 * 4096).unwrap();
        }
    }

    fn at(folder: &std::path::Path, name: &str) -> PieceSpec {
        PieceSpec { path: folder.join(name), offset: 0, length: LENGTH }
    }

    async fn format(doors: &RealDoors, pieces: &[PieceSpec], area: AreaId) {
        let (pool, server) = (PoolId::from_u128(1), ServerId::from_u128(2));
        let spec = FormatSpec { pool, area, server, name: "a1".parse().unwrap(), pieces: pieces.to_vec(), sparse: true };
        Area::format(doors, &spec).await.unwrap();
    }

    #[test]
    fn a_note_that_an_area_is_still_being_opened_never_closes_it_once_it_is_served() {
        super::super::testing::with_daemon(|daemon, folder| {
            let piece = at(folder, "a1.area");
            fs::File::create(&piece.path).unwrap().set_len(LENGTH).unwrap();
            let entry = AreaEntry {
                area: AREA,
                name: "a1".parse().unwrap(),
                pieces: vec![piece.clone()],
                created: true,
                place: String::new(),
                capacity: LENGTH,
                sparse: true,
                offline: Some("it is being opened".to_owned()),
            };
            daemon.change_entries(|entries| entries.push(entry.clone())).unwrap();
            offline(daemon, AREA, "another process still has it open; waiting for its lock");
            assert!(daemon.reports().unwrap()[0].offline.as_deref().is_some_and(|why| why.contains("waiting")));
            let own = piece.clone();
            daemon.data.call(async move |agent| format(agent.doors(), &[own], AREA).await).unwrap();
            let (sender, receiver) = channel();
            open(daemon, entry, false, sender).unwrap();
            let (area, result) = receiver.recv().unwrap();
            // The wait was over just before the result was there.
            offline(daemon, AREA, "another process still has it open; waiting for its lock");
            finish(daemon, area, result);
            // Nor does an opening at another place that fails.
            offline(daemon, AREA, "it is missing");
            assert!(daemon.data.call(async |agent| agent.served(AREA).is_ok()).unwrap());
            assert_eq!(daemon.reports().unwrap()[0].offline, None);
            assert_eq!(daemon.entries()[0].offline, None);
        });
    }

    #[test]
    fn pieces_are_found_by_their_labels_swapped_or_moved_and_never_an_older_copy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        let names = ["p0", "p1", "p2"];
        for name in names.iter().chain(&["stranger"]) {
            fs::File::create(folder.join(name)).unwrap().set_len(LENGTH).unwrap();
        }
        sublet_doors::real::run(async |doors: RealDoors| {
            let known: Vec<PieceSpec> = names.iter().map(|name| at(&folder, name)).collect();
            format(&doors, &known, AREA).await;
            format(&doors, &[at(&folder, "stranger")], AreaId::from_u128(8)).await;
            let found = async || {
                let mut pieces = known.clone();
                let elsewhere = candidates(&pieces);
                find_moved(&doors, AREA, &mut pieces, elsewhere).await;
                let names: Vec<_> = pieces.iter().map(|p| p.path.file_name().unwrap().to_owned()).collect();
                (names, pieces)
            };
            let rename = |from: &str, to: &str| fs::rename(folder.join(from), folder.join(to)).unwrap();
            // Nothing has moved.
            assert_eq!(found().await.0, ["p0", "p1", "p2"]);
            // Two have changed places.
            rename("p0", "x");
            rename("p2", "p0");
            rename("x", "p2");
            let (names, pieces) = found().await;
            assert_eq!(names, ["p2", "p1", "p0"]);
            // An older copy lies at the known place, the newer one elsewhere.
            copy(&folder.join("p1"), &folder.join("old"));
            drop(Area::open(&doors, &pieces, None, 0).await.unwrap());
            rename("p1", "new");
            rename("old", "p1");
            let (names, pieces) = found().await;
            assert_eq!(names, ["p2", "new", "p0"]);
            drop(Area::open(&doors, &pieces, None, 0).await.unwrap());
            // One is away: nothing takes its place, and the opening ends at once.
            fs::create_dir(folder.join("gone")).unwrap();
            rename("p2", "gone/p2");
            let (names, pieces) = found().await;
            assert_eq!(names[1..], ["new", "p0"]);
            let why = Area::open(&doors, &pieces, None, 0).await.err().unwrap().to_string();
            assert!(why.contains("piece 1 of 3") && why.contains("missing"), "{why}");
        })
        .unwrap();
    }
}
