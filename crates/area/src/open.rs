//! Opening an area: locks, labels, the table of regions, a new opening (L2).

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use futures_util::lock::Mutex;
use sublet_doors::{Disk, DiskFile, Doors, Tick};
use sublet_types::limits::REGION_SIZE;
use sublet_types::{OpenId, PoolId};

use crate::area::{Area, Inner, OpenPiece, ground};
use crate::copies::{Winner, read_both, write_both};
use crate::envelope::{AREA, PIECE, version_of};
use crate::error::{AreaError, AreaErrorKind};
use crate::failure::{Nobody, Witness};
use crate::files::{Held, hold};
use crate::join::{check_area, check_opening, check_pieces, name_of, offline};
use crate::label::{AreaLabel, HISTORY_MAX, Opening, PieceLabel};
use crate::layout::{AREA_LABEL_AT, HEADER_SIZE, PIECE_LABEL_AT, PieceMap, Reserve, data_size, metadata_size};
use crate::missed::LegMap;
use crate::record::SliceRecord;
use crate::regions::{Hot, PieceRegions, Regions};
use crate::spec::PieceSpec;
use crate::table::State;
use crate::{legacy, pages};

/// A piece on its way to being open.
struct Found<F> {
    file: Held<F>,
    label: PieceLabel,
    winner: Winner,
}

/// Locks a piece and reads its label.
async fn find<D: Doors>(doors: &D, index: usize, pieces: &[PieceSpec]) -> Result<Found<<D as Disk>::File>, AreaError> {
    let who = name_of(index, pieces);
    let Some(piece) = pieces.get(index) else { return Err(offline(format!("{who} is not named"), "")) };
    // F2: the label is read only after the lock is ours.
    let file = hold(doors, piece).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => offline(format!("{who} is missing"), "attach the disk, or restore the file"),
        _ => offline(format!("{who} cannot be opened: {error}"), "see that the disk is there and that nothing else uses it"),
    })?;
    if file.facts().size == 0 {
        return Err(offline(format!("{who} is missing: nothing is there"), "attach the disk, or restore the file"));
    }
    if file.facts().size < piece.end() {
        return Err(offline(
            format!("{who} ends after {} bytes, before the piece does", file.facts().size),
            "restore the disk or file to its size",
        ));
    }
    let winner = read_both(&file, PIECE_LABEL_AT.map(|at| at + piece.offset), PIECE, &who).await?;
    let winner = winner.ok_or_else(|| {
        offline(format!("{who} is missing: there is no Sublet label on it"), "attach the disk that belongs there")
    })?;
    let label = PieceLabel::decode(&winner.bytes)?;
    Ok(Found { file, label, winner })
}

/// Two pieces in one place, because one of them is away and another one turned up at its name. The second one would wait for
/// the lock of the first for ever.
async fn refuse_twice<D: Doors>(doors: &D, pieces: &[PieceSpec]) -> Result<(), AreaError> {
    for (index, piece) in pieces.iter().enumerate() {
        let Some(other) = pieces.iter().skip(index + 1).position(|other| other.overlaps(piece)) else { continue };
        let other = index + 1 + other;
        let there = Area::read_identity(doors, piece).await?.map(|label| label.index);
        let (missing, there) = if there == Some(index) { (other, index) } else { (index, other) };
        return Err(offline(
            format!("{} is missing: piece {} lies there", name_of(missing, pieces), there + 1),
            "attach the disk, or restore the file",
        ));
    }
    Ok(())
}

/// Reads the area label from piece 0.
async fn find_area<F: DiskFile>(found: &Found<F>, piece: &PieceSpec) -> Result<(AreaLabel, Winner), AreaError> {
    let winner =
        read_both(&found.file, AREA_LABEL_AT.map(|at| at + piece.offset), AREA, &piece.to_string()).await?.ok_or_else(|| {
            let name = &found.label.identity.name;
            AreaError::new(AreaErrorKind::Format, format!("{piece} carries a piece of area {name}, but the area label is gone"))
        })?;
    Ok((AreaLabel::decode(&winner.bytes)?, winner))
}

fn check_pool(label: &PieceLabel, pool: Option<PoolId>, piece: &PieceSpec) -> Result<(), AreaError> {
    let own = label.identity.pool;
    if pool.is_none_or(|pool| pool == own) {
        return Ok(());
    }
    Err(AreaError::new(AreaErrorKind::Disagreement, format!("{piece} belongs to another pool ({})", own.short())))
}

impl<D: Doors> Area<D> {
    /// Opens an area: waits for the locks of all its pieces (F2), checks that they belong together (L3), and begins a new
    /// opening (L2).
    ///
    /// # Errors
    /// Why it cannot be served, naming the piece. Nothing was changed then, except perhaps by an interrupted opening.
    pub async fn open(doors: &D, pieces: &[PieceSpec], pool: Option<PoolId>, boot: u128) -> Result<Rc<Self>, AreaError> {
        Self::open_with(doors, pieces, pool, boot, Rc::new(Nobody)).await
    }

    /// As [`Area::open`], with somebody who remembers failures that the disk does not take into its label (W7).
    ///
    /// # Errors
    /// As [`Area::open`]; also if the witness cannot be asked.
    pub async fn open_with(
        doors: &D,
        pieces: &[PieceSpec],
        pool: Option<PoolId>,
        boot: u128,
        witness: Rc<dyn Witness>,
    ) -> Result<Rc<Self>, AreaError> {
        refuse_twice(doors, pieces).await?;
        let mut found = Vec::with_capacity(pieces.len());
        for index in 0..pieces.len() {
            found.push(find(doors, index, pieces).await?);
        }
        let labels: Vec<PieceLabel> = found.iter().map(|found| found.label.clone()).collect();
        let (Some(first), Some(first_piece)) = (found.first(), pieces.first()) else {
            return Err(offline("the area has no pieces".to_owned(), ""));
        };
        check_pieces(&labels, pieces)?;
        check_pool(&first.label, pool, first_piece)?;
        let (mut area, winner) = find_area(first, first_piece).await?;
        check_area(&area, &labels)?;
        check_opening(&area, &labels, pieces)?;

        found.iter().for_each(|found| found.file.add_area(area.area));
        // W7: an earlier opening in this process was told of lost writes and came to nothing. Nobody is told again.
        let losses: Vec<u64> = found.iter().map(|found| found.file.losses()).collect();
        let is_noted = witness.is_noted(area.area).await;
        let is_noted = is_noted.map_err(|error| AreaError::io("reading the note of an earlier failure", &error))?;
        if is_noted || found.iter().zip(&losses).any(|(found, losses)| *losses > found.file.counted(area.area)) {
            area.failures = area.failures.wrapping_add(1);
            tracing::warn!("area {}: writes to its disk have failed: whoever did not flush may have lost some", area.name);
        }
        // The regions first: an area that cannot be read is not marked as opened.
        let regions = load_regions(&found, pieces, &area).await?;
        let now_on = ground(boot, area.failures, found.iter().map(|found| found.file.facts().disk_sequence));
        let has_lost = now_on == 0 || area.ground != now_on;
        area.ground = now_on;
        find_hot(&regions, &mut area, has_lost, doors.now());
        let open = OpenId::from_u128(doors.random_u128());
        area.history.insert(0, area.opening.open);
        area.history.truncate(HISTORY_MAX);
        area.opening = Opening { number: area.opening.number + 1, open, previous: area.opening.open };
        area.sequence += 1;
        mark_opened(&mut found, pieces, &area, &winner).await?;
        found.iter().zip(losses).for_each(|(found, losses)| found.file.set_counted(area.area, losses));
        if is_noted && let Err(error) = witness.forget(area.area).await {
            tracing::error!("area {}: the note of its failure stays: {error}", area.name);
        }

        let open_pieces = found.into_iter().zip(pieces).map(|(found, piece)| OpenPiece {
            spec: piece.clone(),
            file: found.file,
            data_at: piece.offset + HEADER_SIZE + metadata_size(piece.length),
            tracked: found.label.tracked,
        });
        let inner = |own: &Weak<Inner<D>>| Inner {
            doors: doors.clone(),
            boot,
            map: PieceMap::new(pieces.iter().map(|piece| data_size(piece.length))),
            pieces: open_pieces.collect(),
            regions,
            label: RefCell::new(Rc::new(area)),
            changing: Mutex::new(()),
            failed: RefCell::default(),
            failure_counted: Cell::new(false),
            failure_noted: Cell::new(false),
            failure_told: Cell::new(false),
            failure_witnessed: Cell::new(false),
            noting: Mutex::new(false),
            witness,
            doubtful: Cell::new(0),
            own: Weak::clone(own),
            released: Cell::new(false),
            wiping: RefCell::default(),
        };
        Ok(Rc::new(Self { inner: Rc::new_cyclic(inner) }))
    }
}

/// H3: the older format did not know which regions were being written when a slice was left open: its legs may differ anywhere.
fn may_differ(area: &AreaLabel, region: usize) -> bool {
    let at = region as u64 * REGION_SIZE;
    let left_open = |record: &SliceRecord| {
        let in_sync = record.facts.in_sync.iter().filter(|in_sync| **in_sync).count();
        (record.open.is_some() || record.unclean) && in_sync > 1 && (record.facts.offset..record.end()).contains(&at)
    };
    area.slices.iter().any(left_open)
}

/// The table of all pieces. A piece of format 1 gets its table here: beside what the older format has, so that it is still
/// that until its label says otherwise.
async fn load_regions<F: DiskFile>(found: &[Found<F>], pieces: &[PieceSpec], area: &AreaLabel) -> Result<Regions, AreaError> {
    let (mut tables, mut records) = (Vec::with_capacity(pieces.len()), Vec::new());
    for (index, (found, piece)) in found.iter().zip(pieces).enumerate() {
        let reserve = Reserve::of(piece.length);
        let who = name_of(index, pieces);
        if version_of(&found.winner.bytes) == 1 {
            tracing::info!("{who} is of format 1; it is converted: checksums are kept of what is written from now on");
            let mut old = legacy::regions(&found.file, piece.offset, reserve, found.label.tracked, &who).await?;
            for (region, record) in (records.len()..).zip(&mut old) {
                if record.state == State::Plain && may_differ(area, region) {
                    *record = record.heated();
                }
            }
            let written = pages::format(&found.file, piece.offset, reserve, &old).await;
            written.map_err(|error| AreaError::io(format!("cannot convert {who}"), &error))?;
        }
        let (own, states) = pages::load(&found.file, piece.offset, reserve, found.label.tracked, &who).await?;
        tables.push(PieceRegions { reserve, first: records.len(), pending: RefCell::default(), pages: Mutex::new(states) });
        if records.is_empty() {
            records = own;
        } else {
            records.extend(own);
        }
    }
    Ok(Regions::new(tables, records))
}

/// What was hot at the end of the last opening: it was not closed, and what was in memory then is lost (S3, K2), with `has_lost`
/// perhaps also what was not flushed (H3). Only the table is looked at: how long an opening takes does not depend on the data.
fn find_hot(regions: &Regions, area: &mut AreaLabel, has_lost: bool, now: Tick) {
    let (mut hot, mut maps) = (regions.hot.borrow_mut(), regions.maps.borrow_mut());
    for record in &mut area.slices {
        let facts = &record.facts;
        let own = (facts.offset / REGION_SIZE) as usize..(record.end() / REGION_SIZE) as usize;
        let found: Vec<usize> = own.filter(|region| regions.record(*region).state == State::Hot).collect();
        for (leg, since) in record.missed_since.iter().enumerate() {
            let Some(since) = *since else { continue };
            let bits = found.iter().map(|region| (*region, u64::MAX)).collect();
            if let Some(leg) = maps.0.entry(facts.slice).or_default().get_mut(leg) {
                leg.live = Some(LegMap { since, bits });
            }
        }
        // Once it has, it stays so over openings that take nothing with them.
        record.lost |= has_lost && !found.is_empty();
        let (slice, lost) = (record.facts.slice, record.lost);
        hot.extend(found.into_iter().map(|region| (region, Hot::found(slice, lost, now))));
    }
    if !hot.is_empty() {
        tracing::info!("area {}: {} regions were being written when it was last in use", area.name, hot.len());
    }
}

/// Enters the new opening: pending into every piece, then into the area label, then confirmed into every piece (see
/// [`check_opening`]). The copy that is damaged or older is written first, so that the good one outlives a torn write.
async fn mark_opened<F: DiskFile>(
    found: &mut [Found<F>],
    pieces: &[PieceSpec],
    area: &AreaLabel,
    winner: &Winner,
) -> Result<(), AreaError> {
    if pieces.len() > 1 {
        mark_pieces(found, pieces, area, true).await?;
    }
    if let (Some(found), Some(piece)) = (found.first(), pieces.first()) {
        let at = AREA_LABEL_AT.map(|at| at + piece.offset);
        let written = write_both(&found.file, at, &area.encode(), winner.write_first).await;
        written.map_err(|failed| AreaError::io(format!("cannot write the area label on {piece}"), &failed.error))?;
    }
    mark_pieces(found, pieces, area, false).await
}

async fn mark_pieces<F: DiskFile>(
    found: &mut [Found<F>],
    pieces: &[PieceSpec],
    area: &AreaLabel,
    pending: bool,
) -> Result<(), AreaError> {
    for (found, piece) in found.iter_mut().zip(pieces) {
        found.label.sequence += 1;
        found.label.opening = area.opening;
        found.label.pending = pending;
        found.label.identity.name = area.name.clone();
        let at = PIECE_LABEL_AT.map(|at| at + piece.offset);
        let written = write_both(&found.file, at, &found.label.encode(), found.winner.write_first).await;
        written.map_err(|failed| AreaError::io(format!("cannot write the label of {piece}"), &failed.error))?;
        // Both copies are whole and equal now.
        found.winner.write_first = 0;
    }
    Ok(())
}
