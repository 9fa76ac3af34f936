//! Do these pieces belong together (L3)? Pure: labels in, a verdict out. An area with a missing, swapped or older piece is
//! not served, and never shifted.

use crate::error::{AreaError, AreaErrorKind};
use crate::label::{AreaLabel, PieceLabel};
use crate::layout::data_size;
use crate::spec::PieceSpec;

/// `piece 2 of 3 (/dev/sdc)`.
pub(crate) fn name_of(index: usize, pieces: &[PieceSpec]) -> String {
    let place = pieces.get(index).map_or_else(String::new, ToString::to_string);
    format!("piece {} of {} ({place})", index + 1, pieces.len())
}

pub(crate) fn offline(message: String, hint: &'static str) -> AreaError {
    AreaError::new(AreaErrorKind::Offline, message).hint(hint)
}

/// The label that most pieces agree on; the first of them if there is a tie.
fn reference(labels: &[PieceLabel]) -> Option<&PieceLabel> {
    let votes = |label: &PieceLabel| labels.iter().filter(|l| l.identity.area == label.identity.area).count();
    labels.iter().rev().max_by_key(|label| votes(label))
}

/// Every piece is of one area, complete, in order, and of its length. The opening is compared afterwards, by
/// [`check_opening`].
pub(crate) fn check_pieces(labels: &[PieceLabel], pieces: &[PieceSpec]) -> Result<(), AreaError> {
    let Some(reference) = reference(labels) else {
        return Err(offline("the area has no pieces".to_owned(), ""));
    };
    let (area, count) = (&reference.identity, reference.identity.count);
    for (index, (label, spec)) in labels.iter().zip(pieces).enumerate() {
        let id = &label.identity;
        let who = name_of(index, pieces);
        if id.area != area.area || id.pool != area.pool {
            return Err(offline(
                format!(
                    "{who} belongs to area {} ({}) and not to area {} ({})",
                    id.name,
                    id.area.short(),
                    area.name,
                    area.area.short()
                ),
                "attach the disk that belongs there",
            ));
        }
        if count == pieces.len() && id.index != index {
            return Err(offline(
                format!("{who} of area {} is swapped: its label says that it is piece {}", area.name, id.index + 1),
                "name the pieces in the order in which they were lent",
            ));
        }
        if id.length != spec.length {
            return Err(offline(
                format!("{who} of area {} has {} bytes, but its label says {}", area.name, spec.length, id.length),
                "restore the disk or file to its size",
            ));
        }
    }
    if count != pieces.len() {
        return Err(offline(
            format!(
                "area {} has {count} pieces, and {} are named: piece {} is missing",
                area.name,
                pieces.len(),
                missing(labels, count)
            ),
            "attach and name all of them",
        ));
    }
    Ok(())
}

fn missing(labels: &[PieceLabel], count: usize) -> usize {
    (0..count).find(|index| labels.iter().all(|label| label.identity.index != *index)).map_or(count, |index| index + 1)
}

/// Every piece took part in the last opening. An opening enters itself as pending into every piece, then into the area
/// label, then as confirmed into every piece, and only then is anything served. So a pending piece may be one ahead of the
/// area label (nothing was served since), but a confirmed one only if the area label is an old one.
pub(crate) fn check_opening(area: &AreaLabel, labels: &[PieceLabel], pieces: &[PieceSpec]) -> Result<(), AreaError> {
    if labels.len() == 1 {
        // Both labels lie on the same disk: they cannot be of different age, only interrupted.
        return Ok(());
    }
    let now = area.opening;
    let ahead = |label: &PieceLabel| label.opening.number > now.number;
    let interrupted =
        |label: &PieceLabel| label.pending && label.opening.number == now.number + 1 && label.opening.previous == now.open;
    if labels.iter().any(|label| ahead(label) && !interrupted(label)) {
        // The area label lies in piece 0.
        return Err(older(0, area, pieces, "the other pieces have been opened since"));
    }
    match labels.iter().position(|label| !ahead(label) && label.opening != now) {
        Some(index) => Err(older(index, area, pieces, "it did not take part in the last opening")),
        None => Ok(()),
    }
}

fn older(index: usize, area: &AreaLabel, pieces: &[PieceSpec], why: &str) -> AreaError {
    offline(
        format!(
            "{} of area {} is older than the others ({why}): it was restored or copied back",
            name_of(index, pieces),
            area.name
        ),
        "attach the disk that was in use last",
    )
}

/// The area label fits its pieces.
pub(crate) fn check_area(area: &AreaLabel, labels: &[PieceLabel]) -> Result<(), AreaError> {
    let bad = |what: &str| {
        Err(AreaError::new(AreaErrorKind::Format, format!("the label of area {} names other {what} than its pieces", area.name)))
    };
    if labels.iter().any(|label| label.identity.area != area.area || label.identity.pool != area.pool) {
        return bad("ids");
    }
    if !labels.iter().map(|label| label.identity.length).eq(area.piece_lengths.iter().copied()) {
        return bad("lengths");
    }
    if labels.iter().map(|label| data_size(label.identity.length)).sum::<u64>() != area.capacity {
        return bad("sizes");
    }
    Ok(())
}
