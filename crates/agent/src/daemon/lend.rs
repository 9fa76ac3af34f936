//! `sublet lend`: an area is registered completely or not at all.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sublet_api::control::Lend;
use sublet_api::request::CheckArea;
use sublet_api::server::AreaReport;
use sublet_api::{ErrorKind, Refusal};
use sublet_area::lendable::{self, Target, TargetKind};
use sublet_area::{Area, AreaErrorKind, FormatSpec, PieceIdentity, PieceSpec, file_size_for};
use sublet_doors::Rng as _;
use sublet_types::limits::{AREA_SIZE_MIN, BLOCK_SIZE, PIECES_MAX, REGION_SIZE};
use sublet_types::{AreaId, Name, PoolId};

use super::areas::place_of;
use super::failures::FailureNotes;
use super::make::{self, Tell, check_size};
use super::state::{AreaEntry, Daemon, lock};

/// How long the manager may take to hear of a new area before everything is undone.
const TELL_TIME_MAX: Duration = Duration::from_secs(15);

/// What is said when a sparse area is lent.
const DISCARDS_STAY: &str = "the area is sparse: what borrowers discard while they use it goes back to the file system as it is, and its old \
    bytes stay on the disk until something else is written there";

fn bad<T>(text: impl Into<String>, hint: &str) -> Result<T, Refusal> {
    Err(Refusal::new(ErrorKind::BadRequest, text).hint(hint))
}

/// What will be lent.
struct Plan {
    pieces: Vec<PieceSpec>,
    /// The file that is made for it.
    make: Option<PathBuf>,
    /// Existing files, whose space is allocated first.
    fill: bool,
    /// The area whose labels are on the pieces already: it is served again, with what it holds.
    known: Option<PieceIdentity>,
    warnings: Vec<String>,
}

/// Registers an area.
pub(crate) fn lend(daemon: &Arc<Daemon>, wish: &Lend, tell: Tell<'_>) -> Result<(AreaReport, Vec<String>), Refusal> {
    let _one_at_a_time = lock(&daemon.lending);
    let pool = daemon.pool().ok_or_else(|| {
        Refusal::new(ErrorKind::Unreachable, "this server has not reached its manager yet").hint("see that the manager runs")
    })?;
    let (targets, named) = check(wish)?;
    let label = known_area(daemon, wish, &targets, pool)?;
    let name = daemon.link.check_area(
        daemon.server,
        CheckArea {
            name: named.or_else(|| label.as_ref().map(|(label, _)| label.name.clone())),
            area: label.as_ref().map(|(l, _)| l.area),
        },
    )?;
    let plan = plan(daemon, wish, &targets, label, pool, &name.name)?;
    if let (Some(file), Some(piece)) = (&plan.make, plan.pieces.first()) {
        tell("making the file", 0, piece.length);
        make::make_file(file, piece.length, wish.sparse, tell)?;
    }
    let (report, late) = register(daemon, wish, &plan, pool, &name.name, tell)?;
    // P2, W6: space that is given back is not the lender's to erase any more.
    let sparse = (wish.sparse && plan.known.is_none()).then(|| DISCARDS_STAY.to_owned());
    Ok((report, plan.warnings.into_iter().chain(sparse).chain(late).collect()))
}

/// Checks the request itself, and looks at the paths.
fn check(wish: &Lend) -> Result<(Vec<Target>, Option<Name>), Refusal> {
    if wish.paths.is_empty() || wish.paths.len() > PIECES_MAX {
        return bad(format!("an area has 1 to {PIECES_MAX} paths, not {}", wish.paths.len()), "");
    }
    if wish.keep_free_percent > 99 {
        return bad("at most 99 percent of a file system can be kept free", "give another --keep-free");
    }
    if wish.paths.len() > 1 && (wish.size.is_some() || wish.offset.is_some()) {
        return bad("several paths are joined whole", "leave out --size and --offset, or lend one path");
    }
    let relative = wish.paths.iter().find(|path| !Path::new(path).is_absolute());
    if let Some(path) = relative {
        return bad(format!("'{path}' is not an absolute path"), "");
    }
    let targets = wish.paths.iter().map(|path| lendable::probe(Path::new(path))).collect::<Result<Vec<_>, _>>()?;
    let folders = targets.iter().filter(|target| target.kind == TargetKind::Folder).count();
    if folders > 0 && (targets.len() > 1 || wish.offset.is_some()) {
        return bad("a folder is lent by itself, and as a new file", "leave out --offset, or lend one folder at a time");
    }
    if let Some(size) = wish.size {
        check_size(size)?;
    }
    Ok((targets, wish.name.clone()))
}

/// A stretch of an existing file or device.
fn stretch(wish: &Lend, target: &Target) -> Result<PieceSpec, Refusal> {
    let offset = wish.offset.unwrap_or(0);
    if !offset.is_multiple_of(BLOCK_SIZE) {
        return bad(format!("the offset {offset} is not a multiple of {BLOCK_SIZE}"), "give another --offset");
    }
    let room = target.size.saturating_sub(offset) / BLOCK_SIZE * BLOCK_SIZE;
    let length = wish.size.unwrap_or(room) / BLOCK_SIZE * BLOCK_SIZE;
    if length == 0 || length > room {
        let text = format!("{} has {} bytes from byte {offset} on, {length} are asked for", target.path.display(), room);
        return Err(Refusal::new(ErrorKind::NoSpace, text).hint("give another --size or --offset"));
    }
    Ok(PieceSpec { path: target.path.clone(), offset, length })
}

/// The area of this pool whose labels are on all the paths, and its pieces in order: it has come back, perhaps under other
/// names. With `force` labels do not count.
fn known_area(
    daemon: &Daemon,
    wish: &Lend,
    targets: &[Target],
    pool: PoolId,
) -> Result<Option<(PieceIdentity, Vec<PieceSpec>)>, Refusal> {
    if wish.force || targets.iter().any(|target| target.kind == TargetKind::Folder) {
        return Ok(None);
    }
    let offset = wish.offset.unwrap_or(0);
    let asked: Vec<_> = targets
        .iter()
        .map(|target| PieceSpec { path: target.path.clone(), offset, length: target.size.saturating_sub(offset) })
        .collect();
    let labels = daemon.data.call(async move |agent| {
        let mut labels = Vec::new();
        for piece in asked {
            // Damaged labels and other things are what `check_pieces` refuses.
            let Ok(Some(label)) = Area::read_identity(agent.doors(), &piece).await else { return Vec::new() };
            labels.push((PieceSpec { length: label.length, ..piece }, label));
        }
        labels
    })?;
    let Some((_, first)) = labels.first() else { return Ok(None) };
    let first = first.clone();
    if first.pool != pool || labels.iter().any(|(_, label)| label.area != first.area) {
        return Ok(None);
    }
    if labels.len() != first.count {
        let text = format!("area {} has {} pieces, {} of them are named here", first.name, first.count, labels.len());
        return Err(
            Refusal::new(ErrorKind::Conflict, text).hint("name all pieces of the area, or use --force to forget what it holds")
        );
    }
    let mut labels = labels;
    labels.sort_by_key(|(_, label)| label.index);
    Ok(Some((first, labels.into_iter().map(|(piece, _)| piece).collect())))
}

fn plan(
    daemon: &Daemon,
    wish: &Lend,
    targets: &[Target],
    known: Option<(PieceIdentity, Vec<PieceSpec>)>,
    pool: PoolId,
    name: &Name,
) -> Result<Plan, Refusal> {
    let entries = daemon.entries();
    if let Some((label, pieces)) = known {
        if entries.iter().any(|entry| entry.area == label.area && entry.offline.is_none()) {
            return Err(Refusal::new(ErrorKind::AlreadyExists, format!("area {} is lent already", label.name)));
        }
        for piece in &pieces {
            make::refuse_locked(&piece.path)?;
        }
        let warnings = vec![format!("area {} was recognised by its label: it is served again with what it holds", label.name)];
        return Ok(Plan { pieces, make: None, fill: false, known: Some(label), warnings });
    }
    if let Some(folder) = targets.iter().find(|target| target.kind == TargetKind::Folder) {
        return plan_file(wish, folder, name);
    }
    let pieces = targets.iter().map(|target| stretch(wish, target)).collect::<Result<Vec<_>, _>>()?;
    // Another part of a disk or file that this very server lends already: the lock is its own, and shared.
    let own = |path: &Path| entries.iter().any(|entry| entry.offline.is_none() && entry.pieces.iter().any(|p| p.path == path));
    for piece in pieces.iter().filter(|piece| !own(&piece.path)) {
        make::refuse_locked(&piece.path)?;
    }
    let lent: Vec<_> = entries.iter().flat_map(|entry| entry.pieces.iter().cloned()).collect();
    let warnings = lendable::check_pieces(&pieces, &lent, Some(pool), wish.force)?;
    let fill = !wish.sparse && targets.iter().any(|target| target.kind == TargetKind::File);
    if fill {
        lendable::check_fill(&pieces, wish.keep_free_percent)?;
    }
    Ok(Plan { pieces, make: None, fill, known: None, warnings })
}

/// A new file in a folder: `--size` is the room for data; without it all surplus is lent.
fn plan_file(wish: &Lend, folder: &Target, name: &Name) -> Result<Plan, Refusal> {
    let size = match wish.size {
        Some(size) => size,
        // If that is too little for any area, the check below says so with the figures.
        None => (lendable::folder_surplus(&folder.path, wish.keep_free_percent)? / REGION_SIZE * REGION_SIZE).max(AREA_SIZE_MIN),
    };
    check_size(size)?;
    let length = file_size_for(size);
    let warnings = lendable::check_folder(&folder.path, length, wish.keep_free_percent, wish.sparse)?;
    let file = folder.path.join(format!("{name}.area"));
    if file.exists() {
        return Err(
            Refusal::new(ErrorKind::AlreadyExists, format!("{} exists already", file.display())).hint("give another --name")
        );
    }
    let pieces = vec![PieceSpec { path: file.clone(), offset: 0, length }];
    Ok(Plan { pieces, make: Some(file), fill: false, known: None, warnings })
}

/// Labels the pieces, serves the area, and tells the manager; undone if any of it fails. There is a warning if it cannot be
/// undone any more.
fn register(
    daemon: &Arc<Daemon>,
    wish: &Lend,
    plan: &Plan,
    pool: PoolId,
    name: &Name,
    tell: Tell<'_>,
) -> Result<(AreaReport, Option<String>), Refusal> {
    if plan.fill {
        for piece in &plan.pieces {
            make::fill_file(piece, tell)?;
        }
    }
    tell("labelling", 0, 1);
    let report = begin(daemon, wish, plan, pool, name).inspect_err(|_| remove_made(plan))?;
    let area = report.area;
    let before = daemon.entries().into_iter().find(|entry| entry.area == area);
    let entry = entry_of(&report, plan);
    let told = daemon
        .change_entries(|entries| {
            entries.retain(|other| other.area != area);
            entries.push(entry);
        })
        .and_then(|()| {
            tell("telling the manager", 0, 1);
            if daemon.outgoing.wait_told(daemon.outgoing.areas_changed(), TELL_TIME_MAX) {
                return Ok(());
            }
            Err(Refusal::new(ErrorKind::Unreachable, "the manager did not hear of the new area in time; nothing was changed")
                .hint("see that the manager runs, and try again"))
        });
    match told {
        Ok(()) => Ok((report, None)),
        Err(refusal) => match undo(daemon, plan, area, before)? {
            Undone::Wholly => Err(refusal),
            Undone::InUse => {
                let text = format!("the manager answered late; area {} holds slices of it already, and is lent", report.name);
                Ok((report, Some(text)))
            }
        },
    }
}

fn remove_made(plan: &Plan) {
    if let Some(file) = &plan.make {
        make::remove(file);
    }
}

/// Formats the pieces (unless they carry the area already) and serves them.
fn begin(daemon: &Daemon, wish: &Lend, plan: &Plan, pool: PoolId, name: &Name) -> Result<AreaReport, Refusal> {
    let (pieces, name, sparse, force) = (plan.pieces.clone(), name.clone(), wish.sparse, wish.force);
    let (known, made) = (plan.known.is_some(), plan.make.is_some());
    let (server, boot, home) = (daemon.server, daemon.facts.boot, daemon.home.clone());
    let work = daemon.data.call(async move |agent| {
        let doors = agent.doors().clone();
        if !known {
            for piece in pieces.iter().filter(|_| force && !made) {
                // Only what looks like a label is cleared; anything else is overwritten by formatting.
                if !matches!(Area::read_identity(&doors, piece).await, Ok(None)) {
                    Area::clear_label(&doors, piece).await?;
                }
            }
            let area = AreaId::from_u128(doors.random_u128());
            let spec = FormatSpec { pool, area, server, name: name.clone(), pieces: pieces.clone(), sparse };
            Area::format(&doors, &spec).await?;
        }
        let opened = Area::open_with(&doors, &pieces, Some(pool), boot, Rc::new(FailureNotes(home))).await;
        if opened.is_err() && !known {
            for piece in &pieces {
                // The first error is the one that counts.
                let _ = Area::clear_label(&doors, piece).await;
            }
        }
        let area = opened?;
        if area.name() != name {
            area.rename(&name).await?;
        }
        let place = place_of(&pieces);
        agent.add_area(area.clone(), &place);
        Ok::<_, sublet_area::AreaError>(area.report(&place))
    })?;
    work.map_err(|e| e.refusal())
}

/// What became of an area of which the manager did not say in time that it knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Undone {
    /// All is as it was before.
    Wholly,
    /// Slices lie in it: the manager has heard of it. It is lent, as a restart would have it, too.
    InUse,
}

/// Takes back what [`begin`] did and the entry, which was `before`. The label decides (L5): with slices in it the area, its entry
/// and its file stay. The same if nobody can say (the process is being stopped): what is found at the next start may be in use.
fn undo(daemon: &Daemon, plan: &Plan, area: AreaId, before: Option<AreaEntry>) -> Result<Undone, Refusal> {
    let formatted = plan.known.is_none();
    let away = before.as_ref().map(|entry| entry.offline.clone().unwrap_or_else(|| "it is being opened".to_owned()));
    // First: an entry without a label is an area that looks broken, a label without an entry is bytes of others that are lost.
    let undone = daemon.data.call(async move |agent| {
        if formatted && let Ok(served) = agent.served(area) {
            match served.area.release().await {
                Ok(()) => {}
                Err(error) if error.kind == AreaErrorKind::Busy => return Undone::InUse,
                Err(error) => tracing::warn!(%error, "the label of an area that was not lent stays on its disk"),
            }
        }
        agent.remove_area(area);
        if let Some(reason) = away {
            agent.set_offline(area, &reason);
        }
        Undone::Wholly
    })?;
    if undone == Undone::Wholly {
        let restored = daemon.change_entries(|entries| {
            entries.retain(|entry| entry.area != area);
            entries.extend(before);
        });
        if let Err(refusal) = restored {
            tracing::warn!(%refusal, "the list of areas was not saved");
        }
        remove_made(plan);
    }
    daemon.outgoing.areas_changed();
    Ok(undone)
}

/// The area as the server finds it again.
fn entry_of(report: &AreaReport, plan: &Plan) -> AreaEntry {
    AreaEntry {
        area: report.area,
        name: report.name.clone(),
        pieces: plan.pieces.clone(),
        created: plan.make.is_some(),
        place: report.place.clone(),
        capacity: report.capacity,
        sparse: report.sparse,
        offline: None,
    }
}

#[cfg(test)]
mod tests {
    use sublet_api::order::SliceFacts;
    use sublet_types::size::MIB;
    use sublet_types::{Generation, SliceId, VolumeId, Way};

    use super::super::testing::{POOL, with_daemon};
    use super::*;

    fn slice(area: AreaId) -> SliceFacts {
        SliceFacts {
            slice: SliceId::from_u128(1),
            area,
            offset: 0,
            length: 8 * MIB,
            volume: VolumeId::from_u128(2),
            volume_name: "v".parse().unwrap(),
            way: Way::Single,
            volume_size: 8 * MIB,
            segment: 0,
            segments: 1,
            segment_length: 8 * MIB,
            leg: 0,
            legs: 1,
            generation: Generation { number: 1, random: 9 },
            in_sync: vec![true],
            borrower: None,
            defined: false,
            sealed: false,
        }
    }

    fn wish(path: &Path) -> Lend {
        Lend {
            paths: vec![path.display().to_string()],
            name: None,
            size: None,
            offset: None,
            sparse: true,
            keep_free_percent: 0,
            force: false,
        }
    }

    #[test]
    fn l5_a_lend_that_the_manager_heard_of_too_late_is_not_undone_once_slices_lie_there() {
        with_daemon(|daemon, folder| {
            for in_use in [false, true] {
                let file = folder.join("a.area");
                let piece = PieceSpec { path: file.clone(), offset: 0, length: file_size_for(32 * MIB) };
                make::make_file(&file, piece.length, true, &mut |_, _, _| {}).unwrap();
                let plan = Plan { pieces: vec![piece], make: Some(file.clone()), fill: false, known: None, warnings: Vec::new() };
                let report = begin(daemon, &wish(&file), &plan, POOL, &"a".parse().unwrap()).unwrap();
                let area = report.area;
                daemon.change_entries(|entries| entries.push(entry_of(&report, &plan))).unwrap();
                if in_use {
                    let prepare = sublet_api::order::Order::PrepareSlice { slice: slice(area) };
                    let done = daemon.data.call(async move |agent| agent.execute(&prepare).await).unwrap();
                    assert_eq!(done, sublet_api::order::Outcome::Done);
                }
                let undone = undo(daemon, &plan, area, None).unwrap();
                assert_eq!(undone, if in_use { Undone::InUse } else { Undone::Wholly });
                assert_eq!(file.exists(), in_use);
                assert_eq!(daemon.entries().iter().any(|entry| entry.area == area && entry.created), in_use);
                let reports = daemon.data.call(async |agent| agent.reports()).unwrap();
                assert_eq!(reports.iter().map(|report| report.slices.len()).collect::<Vec<_>>(), vec![1; in_use.into()]);
            }
        });
    }

    #[test]
    fn l5_a_lend_of_an_area_that_was_known_and_away_is_undone_to_where_it_was() {
        with_daemon(|daemon, folder| {
            let file = folder.join("moved.area");
            let piece = PieceSpec { path: file.clone(), offset: 0, length: file_size_for(32 * MIB) };
            make::make_file(&file, piece.length, true, &mut |_, _, _| {}).unwrap();
            let plan = |known| Plan { pieces: vec![piece.clone()], make: None, fill: false, known, warnings: Vec::new() };
            let name: Name = "a".parse().unwrap();
            let report = begin(daemon, &wish(&file), &plan(None), POOL, &name).unwrap();
            let area = report.area;
            daemon.data.call(async move |agent| agent.remove_area(area)).unwrap();
            // It has been looked for where it was before.
            let mut before = entry_of(&report, &plan(None));
            before.pieces[0].path = folder.join("before.area");
            before.offline = Some("it is missing".to_owned());
            daemon.change_entries(|entries| entries.push(before.clone())).unwrap();
            let label = known_area(daemon, &wish(&file), &[lendable::probe(&file).unwrap()], POOL).unwrap().unwrap().0;
            let known = plan(Some(label));
            begin(daemon, &wish(&file), &known, POOL, &name).unwrap();
            assert_eq!(undo(daemon, &known, area, Some(before.clone())).unwrap(), Undone::Wholly);
            assert_eq!(daemon.entries(), [before]);
            let offline = daemon.data.call(async move |agent| {
                matches!(agent.served(area), Err(crate::agent::Missing::Offline(reason)) if reason == "it is missing")
            });
            assert!(offline.unwrap(), "its clients are told to try again");
            assert!(file.exists());
        });
    }
}
