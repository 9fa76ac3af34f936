//! `sublet lend`: an area is registered completely or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sublet_api::control::Lend;
use sublet_api::request::CheckArea;
use sublet_api::server::AreaReport;
use sublet_api::{ErrorKind, Refusal};
use sublet_area::lendable::{self, Target, TargetKind};
use sublet_area::{Area, FormatSpec, PieceIdentity, PieceSpec, file_size_for};
use sublet_doors::Rng as _;
use sublet_types::limits::{AREA_SIZE_MIN, BLOCK_SIZE, PIECES_MAX, REGION_SIZE};
use sublet_types::{AreaId, Name, PoolId};

use super::areas::place_of;
use super::make::{self, Tell, check_size};
use super::state::{AreaEntry, Daemon, lock};

/// How long the manager may take to hear of a new area before everything is undone.
const TELL_TIME_MAX: Duration = Duration::from_secs(15);

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
    let registered = register(daemon, wish, &plan, pool, &name.name, tell);
    if let (Err(_), Some(file)) = (&registered, &plan.make) {
        make::remove(file);
    }
    registered.map(|report| (report, plan.warnings))
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

/// Labels the pieces, serves the area, and tells the manager; undone if any of it fails.
fn register(
    daemon: &Arc<Daemon>,
    wish: &Lend,
    plan: &Plan,
    pool: PoolId,
    name: &Name,
    tell: Tell<'_>,
) -> Result<AreaReport, Refusal> {
    if plan.fill {
        for piece in &plan.pieces {
            make::fill_file(piece, tell)?;
        }
    }
    tell("labelling", 0, 1);
    let report = begin(daemon, wish, plan, pool, name)?;
    let area = report.area;
    let entry = AreaEntry {
        area,
        name: report.name.clone(),
        pieces: plan.pieces.clone(),
        created: plan.make.is_some(),
        place: report.place.clone(),
        capacity: report.capacity,
        sparse: report.sparse,
        offline: None,
    };
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
    if let Err(refusal) = told {
        undo(daemon, area, plan.known.is_none());
        return Err(refusal);
    }
    Ok(report)
}

/// Formats the pieces (unless they carry the area already) and serves them.
fn begin(daemon: &Daemon, wish: &Lend, plan: &Plan, pool: PoolId, name: &Name) -> Result<AreaReport, Refusal> {
    let (pieces, name, sparse, force) = (plan.pieces.clone(), name.clone(), wish.sparse, wish.force);
    let (known, made) = (plan.known.is_some(), plan.make.is_some());
    let (server, boot) = (daemon.server, daemon.facts.boot);
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
        let opened = Area::open(&doors, &pieces, Some(pool), boot).await;
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

/// Takes back what [`begin`] did.
fn undo(daemon: &Daemon, area: AreaId, formatted: bool) {
    if let Err(refusal) = daemon.change_entries(|entries| entries.retain(|entry| entry.area != area)) {
        tracing::warn!(%refusal, "the list of areas was not saved");
    }
    let released = daemon.data.call(async move |agent| {
        let result = match agent.served(area) {
            Ok(served) if formatted => served.area.release().await,
            _ => Ok(()),
        };
        agent.remove_area(area);
        result
    });
    if let Ok(Err(error)) = released {
        tracing::warn!(%error, "the label of an area that was not lent stays on its disk");
    }
    daemon.outgoing.areas_changed();
}
