//! Making an area, and taking its labels away.

use sublet_doors::{Buffer, DiskFile, Doors, disk::Zero};
use sublet_types::OpenId;
use sublet_types::limits::{AREA_SIZE_MIN, BLOCK_SIZE, PIECES_MAX, SIZE_MAX};
use sublet_types::size::ByteSize;

use crate::area::Area;
use crate::copies::{read_both, write_both};
use crate::envelope::PIECE;
use crate::error::{AreaError, AreaErrorKind};
use crate::files::{Held, hold, look};
use crate::label::{AreaLabel, Opening, PieceLabel};
use crate::layout::{AREA_LABEL_AT, HEADER_SIZE, PIECE_LABEL_AT, Reserve, data_size, metadata_size};
use crate::pages;
use crate::spec::{FormatSpec, PieceIdentity, PieceSpec};
use crate::table::Record;

/// The pieces are aligned, do not overlap, and leave room for an area; the answer is its capacity.
pub(crate) fn check_place(pieces: &[PieceSpec]) -> Result<u64, AreaError> {
    let refuse = |kind, message: String| Err(AreaError::new(kind, message));
    if pieces.is_empty() || pieces.len() > PIECES_MAX {
        return refuse(AreaErrorKind::OutOfRange, format!("an area has 1 to {PIECES_MAX} pieces, not {}", pieces.len()));
    }
    for (index, piece) in pieces.iter().enumerate() {
        if piece.offset % BLOCK_SIZE != 0 || piece.length % BLOCK_SIZE != 0 || piece.offset > SIZE_MAX || piece.length > SIZE_MAX
        {
            return refuse(
                AreaErrorKind::OutOfRange,
                format!("{piece}: offset and length must be multiples of 4 KiB, below 1 EiB"),
            );
        }
        if pieces.iter().skip(index + 1).any(|other| other.overlaps(piece)) {
            return refuse(AreaErrorKind::Overlap, format!("{piece} is named twice"));
        }
        if data_size(piece.length) == 0 {
            return refuse(
                AreaErrorKind::OutOfRange,
                format!("{piece} is too small: {} leave no room for data", ByteSize(piece.length)),
            );
        }
    }
    let capacity: u64 = pieces.iter().map(|piece| data_size(piece.length)).sum();
    if !(AREA_SIZE_MIN..=SIZE_MAX).contains(&capacity) {
        let (min, max) = (ByteSize(AREA_SIZE_MIN), ByteSize(SIZE_MAX));
        let message = format!("the area would have room for {}; it must be {min} to {max}", ByteSize(capacity));
        return refuse(AreaErrorKind::OutOfRange, message);
    }
    Ok(capacity)
}

/// Makes a piece read as zero where nothing else is written: the whole of a file, the header and metadata of a device.
async fn clean<F: DiskFile>(file: &F, piece: &PieceSpec, sparse: bool) -> std::io::Result<()> {
    if file.facts().device {
        file.zero(piece.offset, HEADER_SIZE + metadata_size(piece.length), Zero::Keep).await?;
    } else {
        // P1: a file that was made for the area has no data yet; one with old content must not show it.
        let how = if sparse { Zero::Punch } else { Zero::Keep };
        let mut at = piece.offset;
        for (length, data) in file.extents(piece.offset, piece.length).await? {
            if data {
                file.zero(at, length, how).await?;
            }
            at += length;
        }
    }
    file.sync().await
}

impl<D: Doors> Area<D> {
    /// Makes an area: every label in both copies, durable when it returns. A piece with a Sublet label is refused
    /// ([`clear_label`](Self::clear_label) takes one away).
    ///
    /// # Errors
    /// What does not fit, or what the disk says.
    pub async fn format(doors: &D, spec: &FormatSpec) -> Result<(), AreaError> {
        let capacity = check_place(&spec.pieces)?;
        let opening = Opening { number: 0, open: OpenId::from_u128(doors.random_u128()), previous: OpenId::from_u128(0) };
        let mut files = Vec::with_capacity(spec.pieces.len());
        for piece in &spec.pieces {
            let file = hold(doors, piece).await.map_err(|error| cannot_open(piece, &error))?;
            if file.facts().size < piece.end() {
                let size = ByteSize(file.facts().size);
                return Err(AreaError::new(AreaErrorKind::OutOfRange, format!("{piece} ends at {size}, before the piece does")));
            }
            refuse_label(&file, piece).await?;
            files.push(file);
        }
        for (piece, file) in spec.pieces.iter().zip(&files) {
            let failed = |error| AreaError::io(format!("cannot write to {piece}"), &error);
            clean(file, piece, spec.sparse).await.map_err(failed)?;
            let reserve = Reserve::of(piece.length);
            let blank = vec![Record::default(); reserve.regions as usize];
            pages::format(file, piece.offset, reserve, &blank).await.map_err(failed)?;
        }
        write_labels(spec, capacity, opening, &files).await
    }

    /// What label is on a piece; none if there is none. Takes no lock. The length of `piece` does not matter.
    ///
    /// # Errors
    /// A file that cannot be read, a damaged label, or one of a newer version.
    pub async fn read_identity(doors: &D, piece: &PieceSpec) -> Result<Option<PieceIdentity>, AreaError> {
        Ok(Self::read_opening(doors, piece).await?.map(|(identity, _)| identity))
    }

    /// As [`read_identity`](Self::read_identity), with the number of the last opening that the piece took part in: of two
    /// disks with the same label, the one with the lower number is the older copy (L3).
    ///
    /// # Errors
    /// As there.
    pub async fn read_opening(doors: &D, piece: &PieceSpec) -> Result<Option<(PieceIdentity, u64)>, AreaError> {
        let file = look(doors, piece).await?;
        let winner = read_both(&file, PIECE_LABEL_AT.map(|at| at + piece.offset), PIECE, &piece.to_string()).await?;
        winner.map(|winner| PieceLabel::decode(&winner.bytes).map(|label| (label.identity, label.opening.number))).transpose()
    }

    /// Takes any Sublet label of a piece away, also a damaged or newer one: what it held is forgotten for ever.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn clear_label(doors: &D, piece: &PieceSpec) -> Result<(), AreaError> {
        let failed = |error| AreaError::io(format!("cannot clear the label of {piece}"), &error);
        let file = hold(doors, piece).await.map_err(failed)?;
        clear(&file, piece).await.map_err(failed)
    }
}

fn cannot_open(piece: &PieceSpec, error: &std::io::Error) -> AreaError {
    let kind = match error.kind() {
        std::io::ErrorKind::ResourceBusy => AreaErrorKind::Busy,
        _ => AreaErrorKind::Io,
    };
    AreaError::new(kind, format!("cannot open {piece}: {error}"))
}

/// Zeroes the piece label's and area label's places.
pub(crate) async fn clear<F: DiskFile>(file: &F, piece: &PieceSpec) -> std::io::Result<()> {
    // The piece label goes first: without it the rest is nothing to anybody.
    for at in [PIECE_LABEL_AT[0], PIECE_LABEL_AT[1], AREA_LABEL_AT[0], AREA_LABEL_AT[1]] {
        if at + BLOCK_SIZE <= piece.length.max(HEADER_SIZE) && piece.offset + at + BLOCK_SIZE <= file.facts().size {
            file.write_at(piece.offset + at, Buffer::zeroed(BLOCK_SIZE as usize).freeze()).await?;
        }
    }
    file.sync().await
}

async fn refuse_label<F: DiskFile>(file: &F, piece: &PieceSpec) -> Result<(), AreaError> {
    let found = read_both(file, PIECE_LABEL_AT.map(|at| at + piece.offset), PIECE, &piece.to_string()).await?;
    let Some(winner) = found else { return Ok(()) };
    let identity = PieceLabel::decode(&winner.bytes)?.identity;
    Err(AreaError::new(
        AreaErrorKind::Busy,
        format!(
            "{piece} carries the label of area {} (pool {}, piece {})",
            identity.name,
            identity.pool.short(),
            identity.index + 1
        ),
    )
    .hint("reclaim that area first"))
}

async fn write_labels<F: DiskFile>(
    spec: &FormatSpec,
    capacity: u64,
    opening: Opening,
    files: &[Held<F>],
) -> Result<(), AreaError> {
    let area = AreaLabel {
        sequence: 1,
        pool: spec.pool,
        area: spec.area,
        server: spec.server,
        name: spec.name.clone(),
        opening,
        sparse: spec.sparse,
        capacity,
        piece_lengths: spec.pieces.iter().map(|piece| piece.length).collect(),
        failures: 0,
        ground: 0,
        history: Vec::new(),
        quarantine: None,
        slices: Vec::new(),
        tombstones: Vec::new(),
    };
    // The area label first: a piece label promises that the rest is there.
    if let (Some(piece), Some(file)) = (spec.pieces.first(), files.first()) {
        let written = write_both(file, AREA_LABEL_AT.map(|at| at + piece.offset), &area.encode(), 0).await;
        written.map_err(|failed| AreaError::io(format!("cannot write the area label to {piece}"), &failed.error))?;
    }
    for (index, (piece, file)) in spec.pieces.iter().zip(files).enumerate() {
        let identity = PieceIdentity {
            pool: spec.pool,
            area: spec.area,
            server: spec.server,
            name: spec.name.clone(),
            index,
            count: spec.pieces.len(),
            length: piece.length,
        };
        let label = PieceLabel { sequence: 1, identity, opening, pending: false, tracked: file.facts().device };
        let written = write_both(file, PIECE_LABEL_AT.map(|at| at + piece.offset), &label.encode(), 0).await;
        written.map_err(|failed| AreaError::io(format!("cannot write the label to {piece}"), &failed.error))?;
    }
    Ok(())
}
