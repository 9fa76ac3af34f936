//! Format 1: only devices kept region states, a byte each, and nothing else was kept of a region. They are read once, when
//! the area is opened by this software for the first time.

use sublet_doors::DiskFile;

use crate::bytes::Get;
use crate::copies::read_both;
use crate::envelope::{ENVELOPE_SIZE, STATES};
use crate::error::{AreaError, AreaErrorKind};
use crate::layout::{Reserve, STATES_PER_PAGE};
use crate::table::{Record, State};

/// Where the states begin in a page.
const STATES_AT: usize = ENVELOPE_SIZE + 24;

/// The regions of a piece of format 1, as they are in this format. `tracked`: the piece has region states.
///
/// # Errors
/// If its states cannot be read: it cannot be told then what was written.
pub(crate) async fn regions<F: DiskFile>(
    file: &F,
    piece_at: u64,
    reserve: Reserve,
    tracked: bool,
    who: &str,
) -> Result<Vec<Record>, AreaError> {
    let of = |state| Record { state, ..Record::default() };
    if !tracked {
        return Ok(vec![of(State::Plain); reserve.regions as usize]);
    }
    let mut records = Vec::with_capacity(reserve.regions as usize);
    for page in 0..reserve.states_pages() {
        let at = reserve.states_page(page).map(|at| at + piece_at);
        let bad = |what: &str| AreaError::new(AreaErrorKind::Format, format!("{who}: {what}"));
        let winner = read_both(file, at, STATES, who).await?;
        let winner = winner.ok_or_else(|| bad("its region states are gone: it cannot be told what was written"))?;
        let count = STATES_PER_PAGE.min(reserve.regions - page * STATES_PER_PAGE) as usize;
        let states = winner.bytes.get(STATES_AT..STATES_AT + count).unwrap_or(&[]);
        if Get(&winner.bytes).u64(ENVELOPE_SIZE) != page || states.iter().any(|state| *state > 1) {
            return Err(bad(&format!("page {page} of its region states makes no sense")));
        }
        records.extend(states.iter().map(|state| of(if *state == 0 { State::Blank } else { State::Plain })));
    }
    Ok(records)
}
